// Proof of the bound by the full product. Let y = W x in real arithmetic, h = |y|^2, and let hats mark single-precision
// results. Rounding the entries of W and x and adding d products in any order, fused or not, gives in each component
//   |y^_k - y_k| <= g sum_j |W_kj| |x_j| <= g |W_k| |x|,  g = gamma_{d+3} = (d+3) u / (1 - (d+3) u), u = 2^-24,
// so |y^ - y| <= e = g |W|_F |x| (Cauchy-Schwarz), plus d 2^-126 a component where products underflow, flushed or not.
// The squares are added in single precision within a tile and double across tiles: s^ >= (1 - g) |y^|^2 - d 2^-126. So
//   h <= ( sqrt((s^ + d 2^-126) / (1 - g)) + e + d sqrt(d) 2^-126 )^2.
// W is scaled by a power of two (exact) to largest entry in [1/2, 1). An overflow gives infinity or NaN: bound infinite.
//
// The margin, in float64, is off by at most d eps |x| |theta|; every weight falls as |u| grows, so the weight at |u|
// minus that error (and minus k sqrt(h) with optimism, h bounded above) is an upper bound of each teacher's weight. As M
// grows h falls, and teachers only drop out, so the product stays an upper bound during the whole batch.
#include "operations/bounds.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

#include "operations/levels.hpp"

namespace dal {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr double kSmallest = std::numeric_limits<double>::min();

}  // namespace

double frobenius(const double* a, int64_t count) {
  const double square = kernels().dot(a, a, count);
  if (square > 1e-200 && square < 1e200) return std::sqrt(square);
  double largest = 0, sum = 0;
  for (int64_t k = 0; k < count; ++k) largest = std::max(largest, std::fabs(a[k]));
  if (largest == 0) return 0;
  for (int64_t k = 0; k < count; ++k) sum += (a[k] / largest) * (a[k] / largest);
  return largest * std::sqrt(sum);
}

double single_gamma(double n) {
  const double nu = n * std::ldexp(1.0, -24);
  return nu < 0.5 ? nu / (1 - nu) : kInfinity;
}

double power_of_two_scale(const double* a, int64_t count) {
  double largest = 0;
  for (int64_t k = 0; k < count; ++k) largest = std::max(largest, std::fabs(a[k]));
  int exponent = 0;
  std::frexp(largest, &exponent);
  return std::ldexp(1.0, -exponent);
}

double rounding_of_leverage(double condition, int64_t d) {
  const double relative = 8 * static_cast<double>(d) * std::ldexp(1.0, -53) * condition;
  return relative < 1e-6 ? relative : 1e-6;
}

double rounding_of_certificate(double condition, int64_t d) {
  return std::min(8 * static_cast<double>(d) * std::ldexp(1.0, -53) * condition, 1e6);
}

// ---- single precision ---------------------------------------------------------------------------------------

void SinglePass::Space::reserve(const Rows& pool, int64_t count, bool in_place) {
  const auto many = static_cast<size_t>(count);
  if (margin.size() >= many) return;
  if (!in_place) {
    scratch.resize((many + 1) * static_cast<size_t>(pool.d));
    rows.resize(many * static_cast<size_t>(pool.d));
  }
  margin.resize(many);
  square.resize(many);
  whitened.resize(many);
  sums.resize(2 * many);
}

SinglePass::SinglePass(const SelectionProblem& p, double rounding)
    : k_(kernels()), d_(p.pool.d), packed_(static_cast<size_t>(k_.packed_factor_size(d_, true))), rounding_(rounding) {
  scale_ = power_of_two_scale(p.inverse_factor, d_ * d_);
  k_.pack_factor_float(p.inverse_factor, d_, scale_, packed_.data());
  const double d = static_cast<double>(d_);
  relative_ = single_gamma(d + 3);
  error_per_norm_ = relative_ * frobenius(p.inverse_factor, d_ * d_) * scale_ * (1 + 1e-9);
  flushed_ = d * std::ldexp(1.0, -126);
  flushed_norm_ = flushed_ * std::sqrt(d);
  reward_norm_ = frobenius(p.reward, d_);
  margin_error_ = (d + 2) * std::ldexp(1.0, -52) * reward_norm_;
  // Rounding of the row, of the reward, and of d products and sums; |x| <= sqrt(1 + gamma) times its computed value.
  const double most = single_gamma(d + 6);
  float_error_ = most * reward_norm_ * (1 + most);
  reward_.assign(static_cast<size_t>(d_), 0.0f);
  for (size_t j = 0; j < reward_.size() && reward_norm_ > 0; ++j)
    reward_[j] = static_cast<float>(p.reward[j] / reward_norm_);
}

const float* SinglePass::rows(const Block& block, int64_t count, Space& space) const {
  if (block.storage == Storage::f32) return static_cast<const float*>(block.rows);
  k_.to_float(block.rows, block.storage, count * d_, space.rows.data());
  return space.rows.data();
}

// Squares below the smallest normal number may have been lost, one a component.
double SinglePass::norm(double square) const {
  return std::sqrt(square + static_cast<double>(d_) * kSmallest) * (1 + 1e-9);
}

double SinglePass::leverage(double whitened, double norm) const {
  const double root = std::sqrt((whitened + flushed_) / (1 - relative_)) + error_per_norm_ * norm + flushed_norm_;
  const double h = (root / scale_) * (root / scale_) * (1 + rounding_) * (1 + 1e-12);
  return h < kInfinity ? h : kInfinity;  // NaN as well
}

void SinglePass::leverages(const float* rows, int64_t count, const double* square, Space& space, double* out) const {
  k_.whitened_squares_float(rows, count, d_, packed_.data(), space.whitened.data());
  for (int64_t q = 0; q < count; ++q) out[q] = leverage(space.whitened[static_cast<size_t>(q)], norm(square[q]));
}

void SinglePass::margins(const Block& block, int64_t count, Space& space, double* margin, double* square) const {
  float *u = space.sums.data(), *s = u + count;
  k_.margin_float(block.rows, block.storage, count, d_, reward_.data(), u, s);
  const double smallest = std::ldexp(1.0, -60), greatest = std::ldexp(1.0, 120);
  for (int64_t q = 0; q < count; ++q) {
    square[q] = s[q];
    const double lowest = std::fabs(u[q]) * reward_norm_ - float_error_ * std::sqrt(square[q]);
    margin[q] = square[q] > smallest && square[q] < greatest && lowest > 0 ? lowest : 0;
  }
}

double SinglePass::lowest_margin(double margin, double square) const {
  const double u = std::fabs(margin) - margin_error_ * norm(square);
  return u > 0 ? u : 0;  // NaN as well
}

}  // namespace dal
