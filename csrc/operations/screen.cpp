// The bound. M = Q (Lambda + E) Q' with |E| <= delta, the backward error of the eigensolver, so for any set S of
// directions and lambda_rest the smallest eigenvalue outside S,
//   M^-1 <= sum_S v v' / (lambda - delta) + (I - sum_S v v') / (lambda_rest - delta),
//   h <= mu_rest |x|^2 + sum_S (mu_k - mu_rest) p_k^2,  p_k = v_k' x, mu = 1 / (lambda - delta).
// Directions with small lambda take the large mu_k off mu_rest; directions with large lambda take off the energy that
// rows have there. Both ends together are tightest; how many of each is chosen from the spectrum itself, where
// lambda - lambda_min tells how much energy labelled rows had along a direction.
//
// Rounding. Each projection is off by at most g |x|, g = gamma_{d+3} + d 2^-49 (rounding of v, of x, of d products and
// sums, and of the computed eigenvector), so with C = max |coefficient| and sum |p_k| <= sqrt(K) |x|
//   |sum c_k p^_k^2 - sum c_k p_k^2| <= C |x|^2 (2 g sqrt(K) + K g^2),
// plus gamma_{K+5} C |x|^2 for the coefficients and the last sum. |x|^2 <= (1 + gamma_{d+4}) times its computed value.
// Rows so small that products may underflow, or so large that they overflow, get an infinite bound: the full product,
// which is scaled, decides.
#include "operations/screen.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

#include "operations/bounds.hpp"
#include "operations/levels.hpp"

namespace dal {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

}  // namespace

int64_t low_end(const double* lambda, int64_t d, int64_t total) {
  int64_t best = total;
  double smallest = kInfinity;
  for (int64_t low = 0; low <= total; ++low) {
    const double rest = 1 / lambda[low];
    double expected = 0;
    for (int64_t k = 0; k < d; ++k) {
      const bool taken = k < low || k >= d - (total - low);
      expected += (lambda[k] - lambda[0] * 0.999) * (taken ? 1 / lambda[k] : rest);
    }
    if (expected < smallest) {
      smallest = expected;
      best = low;
    }
  }
  return best;
}

Screen::Screen(const SelectionProblem& p, const Spectrum& spectrum, int64_t directions, double rounding)
    : k_(kernels()), d_(p.pool.d), directions_(directions) {
  if (!spectrum.values || directions + 1 >= d_) return;
  const double d = static_cast<double>(d_), total = static_cast<double>(directions);
  const double* lambda = spectrum.values;
  const double delta = d * std::ldexp(1.0, -49) * std::max(std::fabs(lambda[0]), std::fabs(lambda[d_ - 1]));
  if (!(lambda[0] > 4 * delta)) return;
  columns_ = k_.screen_columns(directions + 1);
  std::vector<float> v(static_cast<size_t>(columns_ * d_), 0.0f);
  coefficient_.assign(static_cast<size_t>(columns_), 0.0f);
  const int64_t low = low_end(lambda, d_, directions);
  rest_ = 1 / (lambda[low] - delta);
  std::vector<double> coefficient(static_cast<size_t>(directions));
  for (int64_t c = 0; c < directions; ++c) {
    const int64_t k = c < low ? c : d_ - 1 - (c - low);
    coefficient[static_cast<size_t>(c)] = 1 / (lambda[k] - delta) - rest_;
    largest_ = std::max(largest_, std::fabs(coefficient[static_cast<size_t>(c)]));
    for (int64_t j = 0; j < d_; ++j)
      v[static_cast<size_t>(c * d_ + j)] = static_cast<float>(spectrum.vectors[k * d_ + j]);
  }
  if (!(largest_ < kInfinity)) return;
  for (int64_t c = 0; c < directions && largest_ > 0; ++c)
    coefficient_[static_cast<size_t>(c)] = static_cast<float>(coefficient[static_cast<size_t>(c)] / largest_);
  reward_norm_ = frobenius(p.reward, d_);
  for (int64_t j = 0; j < d_ && reward_norm_ > 0; ++j)
    v[static_cast<size_t>(directions * d_ + j)] = static_cast<float>(p.reward[j] / reward_norm_);
  packed_.resize(v.size());
  k_.pack_directions(v.data(), columns_, d_, packed_.data());
  const double g = single_gamma(d + 3) + d * std::ldexp(1.0, -49);
  square_up_ = 1 + single_gamma(d + 4);
  error_ = square_up_ * largest_ * (2 * g * std::sqrt(total) + total * g * g + single_gamma(static_cast<double>(columns_) + 5));
  margin_error_ = g * std::sqrt(square_up_) * reward_norm_ * (1 + 1e-9);
  up_ = (1 + rounding) * (1 + 1e-12);
  usable_ = error_ < kInfinity;
}

void Screen::bounds(const float* rows, int64_t count, double* leverage, double* margin, double* square) const {
  k_.screen(rows, count, d_, packed_.data(), columns_, coefficient_.data(), directions_, leverage, margin, square);
  const double smallest = std::ldexp(1.0, -60), greatest = std::ldexp(1.0, 120);
  for (int64_t q = 0; q < count; ++q) {
    const double s = square[q];
    if (!(s > smallest && s < greatest)) {
      leverage[q] = kInfinity;
      margin[q] = 0;
      continue;
    }
    const double h = (rest_ * square_up_ * s + largest_ * leverage[q] + error_ * s) * up_;
    leverage[q] = h > 0 ? h : h <= 0 ? 0 : kInfinity;  // NaN: large terms of both signs
    margin[q] = std::max(std::fabs(margin[q]) * reward_norm_ - margin_error_ * std::sqrt(s), 0.0);
  }
}

}  // namespace dal
