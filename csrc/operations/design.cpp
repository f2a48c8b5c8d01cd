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

Design::Design(const double* matrix, const double* factor, int64_t d, int64_t size)
    : d_(d), matrix_(matrix, matrix + d * d), upper_(static_cast<size_t>(d * d)) {
  for (int64_t i = 0; i < d; ++i)
    for (int64_t k = 0; k <= i; ++k) upper_[static_cast<size_t>(k * d + i)] = factor[i * d + k];
  directions_.reserve(static_cast<size_t>(size * d));
  coefficients_.reserve(static_cast<size_t>(size));
}

// L z = x by columns of L (rows of L'): no reductions, so the order of operations is the same however it is vectorised.
double Design::squared_solve(const std::vector<double>& upper, const double* x, double* z) const {
  std::copy(x, x + d_, z);
  double square = 0;
  for (int64_t k = 0; k < d_; ++k) {
    const double* row = upper.data() + k * d_;
    const double zk = z[k] / row[k];
    z[k] = zk;
    square += zk * zk;
    for (int64_t i = k + 1; i < d_; ++i) z[i] -= row[i] * zk;
  }
  return square;
}

// L L' + y y': one Givens rotation a column, y = sqrt(w) x.
void Design::update_factor(double weight, const double* x) {
  std::vector<double> y(x, x + d_);
  const double root = std::sqrt(weight);
  for (double& value : y) value *= root;
  for (int64_t k = 0; k < d_; ++k) {
    if (y[static_cast<size_t>(k)] == 0) continue;
    double* row = upper_.data() + k * d_;
    const double r = std::hypot(row[k], y[static_cast<size_t>(k)]);
    const double c = row[k] / r, s = y[static_cast<size_t>(k)] / r;
    row[k] = r;
    double* rest = y.data();
    for (int64_t i = k + 1; i < d_; ++i) {
      const double l = row[i], v = rest[i];
      row[i] = c * l + s * v;
      rest[i] = c * v - s * l;
    }
  }
}

void Design::add(const double* x, double weight, const Call& call) {
  // v = M^-1 x before the update, a = w / (1 + w h)
  std::vector<double> v(static_cast<size_t>(d_));
  const double h = leverage(x, v.data());
  for (int64_t k = d_; k-- > 0;) {
    const double* row = upper_.data() + k * d_;
    v[static_cast<size_t>(k)] =
        (v[static_cast<size_t>(k)] - portable_dot(row + k + 1, v.data() + k + 1, d_ - k - 1)) / row[k];
  }
  directions_.insert(directions_.end(), v.begin(), v.end());
  coefficients_.push_back(weight / (1 + weight * h));
  if (weight == 0) return;
  update_factor(weight, x);
  for (int64_t i = 0; i < d_; ++i) {
    const double scaled = weight * x[i];
    double* row = matrix_.data() + i * d_;
    for (int64_t k = 0; k < d_; ++k) row[k] += scaled * x[k];
  }
  // Rotations are backward stable: about d roundings an update. Looked at now and then all the same.
  constexpr int64_t kLookEvery = 32;
  if (additions() % kLookEvery == 0 && drift() > 1e-12 * static_cast<double>(d_)) refactor(call);
}

// |L L' p - M p| / |M p| in the largest component, for one fixed vector of signs.
double Design::drift() const {
  std::vector<double> sign(static_cast<size_t>(d_)), half(static_cast<size_t>(d_)), whole(static_cast<size_t>(d_), 0.0);
  uint64_t state = 0x9e3779b97f4a7c15u;
  for (double& value : sign) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    value = state >> 63 ? 1.0 : -1.0;
  }
  for (int64_t k = 0; k < d_; ++k)
    half[static_cast<size_t>(k)] = portable_dot(upper_.data() + k * d_ + k, sign.data() + k, d_ - k);
  for (int64_t k = 0; k < d_; ++k)
    for (int64_t i = k; i < d_; ++i)
      whole[static_cast<size_t>(i)] += upper_[static_cast<size_t>(k * d_ + i)] * half[static_cast<size_t>(k)];
  double off = 0, scale = 0;
  for (int64_t i = 0; i < d_; ++i) {
    const double expected = portable_dot(matrix_.data() + i * d_, sign.data(), d_);
    off = std::max(off, std::fabs(whole[static_cast<size_t>(i)] - expected));
    scale = std::max(scale, std::fabs(expected));
  }
  return scale > 0 ? off / scale : off;
}

// Cholesky of the accumulated M, row by row of L'.
void Design::refactor(const Call& call) {
  std::vector<double> fresh = matrix_;
  for (int64_t k = 0; k < d_; ++k) {
    double* row = fresh.data() + k * d_;
    if (!(row[k] > 0)) return;  // the updated factor, positive by construction, stays
    const double pivot = std::sqrt(row[k]);
    for (int64_t i = k; i < d_; ++i) row[i] /= pivot;
    for (int64_t j = k + 1; j < d_; ++j) {
      double* below = fresh.data() + j * d_;
      for (int64_t i = j; i < d_; ++i) below[i] -= row[j] * row[i];
    }
    poll_sometimes(call);
  }
  upper_ = fresh;
  ++refactorisations_;
}

}  // namespace dal
