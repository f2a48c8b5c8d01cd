// Upper bounds on leverages and on the best w h of every conversation, from single-precision products.
#pragma once

#include <vector>

#include "operations/admissible.hpp"
#include "operations/selection.hpp"

namespace dal {

// The Frobenius norm, without overflow on the way.
double frobenius(const double* a, int64_t count);

// gamma_n = n u / (1 - n u), u = 2^-24: what n roundings in single precision can add up to; infinite past n u = 1/2.
double single_gamma(double n);

// The power of two that brings the largest entry into [1/2, 1).
double power_of_two_scale(const double* a, int64_t count);

// How far float64 quantities derived from M and its factor can be off, relative to the leverage at the start, when
// `condition` bounds the condition number of M (|M|_F |W|_F^2 does, W the inverse factor at the start, because M only
// grows from there).
//
// Triangular solves and products with W, and the rotations that update the factor, are backward stable: each result is
// exact for a matrix within c d eps |M| of M, which moves h by at most c d eps condition relatively; so does one
// Sherman-Morrison term, because a_s h_s < 1. Past 1e-6 (condition times d beyond 1e9) the window stays there: float64
// arithmetic, the oracle's included, no longer determines the order that finely, and what is promised is the order of
// Design::leverage among the rows within that window, as long as no pick lifts the condition past 1 / eps.
double rounding_of_leverage(double condition, int64_t d);
// The same without the limit, for what is certified: nothing is promised there but what float64 can show.
double rounding_of_certificate(double condition, int64_t d);

// Conversations as single-precision rows with what the bounds need of them.
class SinglePass {
 public:
  SinglePass(const SelectionProblem& problem, double rounding);

  // Working space of one thread, for at most `count` conversations at a time.
  struct Space {
    std::vector<double> scratch, margin, square, whitened;
    std::vector<float> rows, sums;
    // in_place: neither the scratch nor the rows will be used
    void reserve(const Rows& pool, int64_t count, bool in_place = false);
  };

  // Rows as float, in place where they are stored so, else in the space.
  const float* rows(const Block& block, int64_t count, Space& space) const;
  // leverage[q] >= h, at the start, of `count` consecutive rows; needs margins and squares of the same rows
  void leverages(const float* rows, int64_t count, const double* square, Space& space, double* leverage) const;
  // margin[q] <= |u|, from products in single precision, and square[q] about |x|^2
  void margins(const Block& block, int64_t count, Space& space, double* margin, double* square) const;
  // The lowest |u| that a margin computed in float64 leaves possible
  double lowest_margin(double margin, double square) const;

 private:
  double leverage(double whitened, double norm) const;
  double norm(double square) const;

  const KernelTable& k_;
  int64_t d_;
  std::vector<float> packed_, reward_;
  double scale_, relative_, error_per_norm_, flushed_, flushed_norm_, rounding_, margin_error_, reward_norm_, float_error_;
};

}  // namespace dal
