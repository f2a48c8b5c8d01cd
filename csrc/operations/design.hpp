// The information matrix as a batch grows: a Cholesky factor updated by rank one, and the Sherman-Morrison history.
//
// Compiled once, without contraction, over kernels/exact.cpp: the leverage of a finalist has the same bits at every
// SIMD level, thread count and position in the pool.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/table.hpp"
#include "operations/threads.hpp"

namespace dal {

class Design {
 public:
  // matrix M, which must outlive this, and its lower factor L, both (d, d) row-major; about `size` additions
  Design(const KernelTable& kernels, const double* matrix, const double* factor, int64_t d, int64_t size);

  // x' M^-1 x at the current M, or at the start; `scratch` has d values
  double leverage(const double* x, double* scratch) const { return squared_solve(upper_, x, scratch); }
  double leverage_at_start(const double* x, double* scratch) const { return squared_solve(start_, x, scratch); }
  // x[q]' M^-1 x[q] for `count` rows, each the same bits as by itself; `scratch` has count times d values
  void leverages(const double* const* x, int64_t count, double* scratch, double* out) const {
    squared_solves(upper_, x, count, scratch, out);
  }
  void keep_start() { start_ = upper_; }

  // M += w x x'
  void add(const double* x, double weight, const Call& call);

  int64_t additions() const { return static_cast<int64_t>(coefficients_.size()); }
  // Addition s took leverage h_i down by coefficient[s] (x_i' direction_s)^2.
  const double* direction(int64_t s) const { return directions_.data() + s * d_; }
  const double* coefficient(int64_t s) const { return coefficients_.data() + s; }
  // h[i] of `count` rows at the start, brought up to date: h - sum_s coefficient_s (x'direction_s)^2, not below 0
  void downdate(const double* rows, int64_t count, double* h) const;
  int64_t refactorisations() const { return refactorisations_; }

 private:
  void squared_solves(const std::vector<double>& upper, const double* const* x, int64_t count, double* z,
                      double* out) const;
  double squared_solve(const std::vector<double>& upper, const double* x, double* z) const {
    double square;
    squared_solves(upper, &x, 1, z, &square);
    return square;
  }
  void pack_panel();
  void update_factor(double weight, const double* x);
  double drift() const;
  void refactor(const Call& call);

  const KernelTable& k_;
  const double* matrix_;
  int64_t d_;
  std::vector<double> upper_, start_;       // upper_ = L' row-major: every inner loop runs along a row
  std::vector<double> added_, weights_;     // x and w of every addition: M = matrix_ + sum w x x'
  std::vector<double> directions_, coefficients_;
  std::vector<double> panels_;  // directions by tile_columns, [feature][direction]: whole panels only
  int64_t refactorisations_ = 0;
};

// x'y, four partial sums in a fixed order, the same bits at every level
double portable_dot(const double* x, const double* y, int64_t d);

}  // namespace dal
