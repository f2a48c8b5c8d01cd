#include "operations/design.hpp"

#include <algorithm>
#include <cmath>
#include <stdexcept>

namespace dal {

double portable_dot(const double* x, const double* y, int64_t d) {
  double a = 0, b = 0, c = 0, e = 0;
  int64_t k = 0;
  for (; k + 4 <= d; k += 4) {
    a += x[k] * y[k];
    b += x[k + 1] * y[k + 1];
    c += x[k + 2] * y[k + 2];
    e += x[k + 3] * y[k + 3];
  }
  double total = (a + b) + (c + e);
  for (; k < d; ++k) total += x[k] * y[k];
  return total;
}

Design::Design(const KernelTable& kernels, const double* matrix, const double* factor, int64_t d, int64_t size)
    : k_(kernels), matrix_(matrix), d_(d), upper_(static_cast<size_t>(d * d)) {
  for (int64_t i = 0; i < d; ++i)
    for (int64_t k = 0; k <= i; ++k) upper_[static_cast<size_t>(k * d + i)] = factor[i * d + k];
  const int64_t room = std::min<int64_t>(size, 1024);  // the size asked for may be far beyond what the pool holds
  added_.reserve(static_cast<size_t>(room * d));
  directions_.reserve(static_cast<size_t>(room * d));
  coefficients_.reserve(static_cast<size_t>(room));
}

// L z = x by columns of L (rows of L'): no reductions but the final sum, taken in order. Each of the `count` right-hand
// sides goes through the same operations as by itself; together they read L once.
void Design::squared_solves(const std::vector<double>& upper, const double* const* x, int64_t count, double* scratch,
                            double* out) const {
  for (int64_t q = 0; q < count; ++q) {
    std::copy(x[q], x[q] + d_, scratch + q * d_);
    out[q] = 0;
  }
  for (int64_t k = 0; k < d_; ++k) {
    const double* row = upper.data() + k * d_;
    for (int64_t q = 0; q < count; ++q) {
      double* z = scratch + q * d_;
      z[k] /= row[k];
      out[q] += z[k] * z[k];
      k_.subtract_scaled(row + k + 1, z[k], d_ - k - 1, z + k + 1);
    }
  }
}

// L L' + y y': one Givens rotation a column, y = sqrt(w) x.
void Design::update_factor(double weight, const double* x) {
  std::vector<double> y(x, x + d_);
  const double root = std::sqrt(weight);
  for (double& value : y) value *= root;
  for (int64_t k = 0; k < d_; ++k) {
    double* row = upper_.data() + k * d_ + k;
    double* rest = y.data() + k;
    if (*rest == 0) continue;
    const double r = std::hypot(*row, *rest), c = *row / r, s = *rest / r;
    *row = r;
    k_.rotate(c, s, d_ - k - 1, row + 1, rest + 1);
  }
}

void Design::add(const double* x, double weight, const Call& call) {
  // v = M^-1 x before the update, a = w / (1 + w h)
  std::vector<double> v(static_cast<size_t>(d_));
  const double h = leverage(x, v.data());
  for (int64_t k = d_; k-- > 0;) {
    const double* row = upper_.data() + k * d_;
    double& out = v[static_cast<size_t>(k)];
    out = (out - k_.dot(row + k + 1, v.data() + k + 1, d_ - k - 1)) / row[k];
  }
  directions_.insert(directions_.end(), v.begin(), v.end());
  coefficients_.push_back(weight / (1 + weight * h));
  if (additions() % k_.tile_columns == 0) pack_panel();
  added_.insert(added_.end(), x, x + d_);
  weights_.push_back(weight);
  if (weight == 0) return;
  update_factor(weight, x);
  // Rotations are backward stable: about d roundings an update. Looked at now and then all the same.
  constexpr int64_t kLookEvery = 32;
  if (additions() % kLookEvery == 0 && drift() > 1e-12 * static_cast<double>(d_)) refactor(call);
}

void Design::pack_panel() {
  const int64_t columns = k_.tile_columns, first = additions() - columns;
  for (int64_t j = 0; j < d_; ++j)
    for (int64_t s = first; s < additions(); ++s) panels_.push_back(direction(s)[j]);
}

void Design::downdate(const double* rows, int64_t count, double* h) const {
  const int64_t panels = additions() / k_.tile_columns, first = panels * k_.tile_columns;
  k_.downdated_panels(rows, count, d_, panels_.data(), coefficients_.data(), panels, h);
  k_.downdated_rows(rows, count, d_, direction(first), coefficient(first), additions() - first, h);
}

// |L L' p - M p| / |M p| in the largest component, for one fixed vector of signs.
double Design::drift() const {
  const auto d = static_cast<size_t>(d_);
  std::vector<double> sign(d), whole(d, 0.0), expected(d);
  uint64_t state = 0x9e3779b97f4a7c15u;
  for (double& value : sign) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    value = state >> 63 ? 1.0 : -1.0;
  }
  for (int64_t k = 0; k < d_; ++k) {
    const double* row = upper_.data() + k * d_ + k;
    k_.subtract_scaled(row, -portable_dot(row, sign.data() + k, d_ - k), d_ - k, whole.data() + k);
  }
  for (int64_t i = 0; i < d_; ++i)
    expected[static_cast<size_t>(i)] = portable_dot(matrix_ + i * d_, sign.data(), d_);
  for (int64_t s = 0; s < additions(); ++s) {
    const double* x = added_.data() + s * d_;
    k_.subtract_scaled(x, -weights_[static_cast<size_t>(s)] * portable_dot(x, sign.data(), d_), d_, expected.data());
  }
  double off = 0, scale = 0;
  for (size_t i = 0; i < d; ++i) {
    off = std::max(off, std::fabs(whole[i] - expected[i]));
    scale = std::max(scale, std::fabs(expected[i]));
  }
  return scale > 0 ? off / scale : off;
}

// Cholesky of M = matrix_ + sum w x x', row by row of L'.
void Design::refactor(const Call& call) {
  std::vector<double> fresh(matrix_, matrix_ + d_ * d_);
  for (int64_t s = 0; s < additions(); ++s) {
    const double* x = added_.data() + s * d_;
    for (int64_t i = 0; i < d_; ++i)
      k_.subtract_scaled(x, -weights_[static_cast<size_t>(s)] * x[i], d_, fresh.data() + i * d_);
    poll_sometimes(call);
  }
  for (int64_t k = 0; k < d_; ++k) {
    double* row = fresh.data() + k * d_;
    if (!(row[k] > 0)) return;  // the updated factor, positive by construction, stays
    const double pivot = std::sqrt(row[k]);
    for (int64_t i = k; i < d_; ++i) row[i] /= pivot;
    for (int64_t j = k + 1; j < d_; ++j) k_.subtract_scaled(row + j, row[j], d_ - j, fresh.data() + j * d_ + j);
    poll_sometimes(call);
  }
  upper_ = fresh;
  ++refactorisations_;
}

}  // namespace dal
