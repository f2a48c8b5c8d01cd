// The bound. W the inverse factor times a power of two (exact), V its rounding to bfloat16, b the row x rounded to
// bfloat16; y = W x, so that the leverage is |y|^2 over the scale squared. What is computed is y^ = V b + a, where a is
// the rounding of the sums: in component k at most gamma_{depth_k + 3} |V_k| |b| (any order of depth_k products, fused or
// not), so |a| <= s |b| with s^2 = sum_k gamma_k^2 |V_k|^2. Then
//   | |y^| - |y| | <= |V b - W x| + |a| <= |V| |x - b| + |V - W| |x| + s |b| =: e,      |b| <= |x| + |x - b|,
// spectral norms. |x - b| is summed row by row, exact for stored floats but for the sum (float64 rows were rounded to
// float first: 2^-24 |x| more). |W| <= the certified norm that comes with the problem, |V| <= |W| + |V - W|, and
// |A|^8 = |(A'A)^2|^2 <= |(A'A)^2|_F^2 for A = V - W, known exactly. The squares of y^ are added in single precision, 2
// steps a lane and 16 lanes: relative gamma. Products and squares that underflow cost 2^-126 each, whether flushed or not.
#include "operations/bfloat16_pass.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

#include "operations/bounds.hpp"
#include "operations/levels.hpp"
#include "operations/operations.hpp"

namespace dal {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

uint16_t to_bfloat16(double value) {
  const float f = static_cast<float>(value);
  uint32_t bits;
  memcpy(&bits, &f, sizeof(bits));
  return static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

double from_bfloat16(uint16_t half) {
  const uint32_t bits = static_cast<uint32_t>(half) << 16;
  float f;
  memcpy(&f, &bits, sizeof(f));
  return static_cast<double>(f);
}

// A'A of a square matrix
std::vector<double> gram(const std::vector<double>& a, int64_t d, const Call& call) {
  Rows rows;
  rows.rows = a.data();
  rows.n = rows.d = d;
  const std::vector<double> one(static_cast<size_t>(d), 1.0);
  std::vector<double> out(a.size());
  information_matrix(rows, one.data(), 0.0, out.data(), call);
  return out;
}

// An upper bound of the spectral norm. Rounding in float64 moves each Frobenius norm by far less than 1e-6 relative
// (d sqrt(d) eps); entries whose squares underflow are worth less than 1e-60 together.
double norm_bound(const std::vector<double>& a, int64_t d, bool sharp, const Call& call) {
  const double plain = frobenius(a.data(), d * d);
  if (!sharp || plain == 0) return plain * (1 + 1e-6);
  const std::vector<double> fourth = gram(gram(a, d, call), d, call);
  return std::min(plain, std::sqrt(std::sqrt(frobenius(fourth.data(), d * d)))) * (1 + 1e-6) + 1e-60;
}

uint16_t* aligned(uint16_t* p) {
  return reinterpret_cast<uint16_t*>((reinterpret_cast<uintptr_t>(p) + 63) & ~uintptr_t{63});
}

}  // namespace

void Bfloat16Pass::Space::reserve(const Bfloat16Pass& pass, int64_t count) {
  if (count <= count_) return;
  count_ = count;
  tiles_.resize(static_cast<size_t>(pass.k_->scratch_size(pass.d_) + 32));
  sums_.resize(static_cast<size_t>(4 * count));
}

Bfloat16Pass::Bfloat16Pass(const SelectionProblem& p, double rounding, const Call& call)
    : k_(bfloat16_products()), d_(p.pool.d) {
  if (!k_ || !(p.inverse_norm > 0)) return;
  const auto d = static_cast<size_t>(d_);
  scale_ = power_of_two_scale(p.inverse_factor, d_ * d_);
  std::vector<uint16_t> v(d * d);
  std::vector<double> error(d * d, 0.0);
  double sums = 0, widest = 0;
  for (size_t k = 0; k < d; ++k) {
    double row = 0;
    for (size_t j = 0; j <= k; ++j) {
      const double exact = p.inverse_factor[k * d + j] * scale_;
      v[k * d + j] = to_bfloat16(exact);
      const double rounded = from_bfloat16(v[k * d + j]);
      error[k * d + j] = rounded - exact;
      row += rounded * rounded;
    }
    const double depth = static_cast<double>((k / 32 + 1) * 32), g = single_gamma(depth + 3);
    sums += g * g * row;
    widest = depth;
  }
  factor_.resize(static_cast<size_t>(k_->factor_size(d_) + 32));
  uint16_t* packed = aligned(factor_.data());
  k_->pack_factor(v.data(), d_, packed);
  packed_ = packed;
  // Two products of d^3: worth it where the pool is long.
  factor_error_ = norm_bound(error, d_, p.pool.n > 100 * d_, call);
  factor_norm_ = p.inverse_norm * scale_ * (1 + 1e-9) + factor_error_;
  sums_ = std::sqrt(sums) * (1 + 1e-9);
  squares_ = single_gamma(widest / 16 + 16);
  flushed_ = widest * std::ldexp(1.0, -126);
  flushed_norm_ = 4 * widest * std::sqrt(widest) * std::ldexp(1.0, -126);
  reward_norm_ = frobenius(p.reward, d_);
  reward_.assign(static_cast<size_t>((d_ + 31) / 32 * 32), 0.0f);
  for (size_t j = 0; j < d && reward_norm_ > 0; ++j) reward_[j] = static_cast<float>(p.reward[j] / reward_norm_);
  square_up_ = 1 + single_gamma(static_cast<double>(d_) + 6);
  margin_error_ = single_gamma(static_cast<double>(d_) + 5) * reward_norm_ * square_up_;
  up_ = (1 + rounding) * (1 + 1e-12);
  down_ = (1 - rounding) * (1 - 1e-12);
  usable_ = sums_ < kInfinity && squares_ < 0.5 && factor_norm_ < kInfinity && reward_norm_ < kInfinity &&
            square_up_ < kInfinity;
}

double Bfloat16Pass::error_of(double norm, double rest) const {
  return (factor_norm_ * rest + factor_error_ * norm + sums_ * (norm + rest)) * (1 + 1e-9) + flushed_norm_;
}

void Bfloat16Pass::whitened(const float* rows, int64_t count, int64_t stride, const float* norm, Space& space, float* z,
                            float* error) const {
  float* residual = space.sums_.data();
  k_->whitened(rows, count, stride, reward_.data(), packed_, aligned(space.tiles_.data()), residual, z);
  for (int64_t q = 0; q < count; ++q) {
    const double rest = std::sqrt(residual[q] * square_up_ + flushed_);
    error[q] = static_cast<float>(error_of(norm[q], rest)) * (1 + 0x1p-22f);
  }
}

void Bfloat16Pass::bounds(const void* rows, Storage storage, int64_t count, Space& space, double* low, double* high,
                          double* margin, double* square) const {
  float *u = space.sums_.data(), *s = u + space.count_, *r = s + space.count_, *y = r + space.count_;
  k_->squares(rows, storage, count, d_, reward_.data(), packed_, aligned(space.tiles_.data()), {u, s, r, y});
  const double smallest = std::ldexp(1.0, -60), greatest = std::ldexp(1.0, 120);
  const double rounded_first = storage == Storage::f64 ? 1.01 * std::ldexp(1.0, -24) : 0;
  for (int64_t q = 0; q < count; ++q) {
    const double xx = s[q];
    square[q] = xx;
    const double norm = std::sqrt(xx * square_up_);
    const double rest = std::sqrt(r[q] * square_up_ + flushed_) + rounded_first * norm;
    const double error = error_of(norm, rest);
    const double root = (std::sqrt((y[q] + flushed_) / (1 - squares_)) + error) / scale_;
    const double h = root * root * up_;
    const bool within = xx > smallest && xx < greatest && h < kInfinity;  // false for NaN as well
    high[q] = within ? h : kInfinity;
    margin[q] = within ? std::max(std::fabs(u[q]) * reward_norm_ - margin_error_ * norm, 0.0) : 0;
    if (low) {
      const double least = within ? std::max(std::sqrt(y[q] / (1 + squares_)) - error, 0.0) / scale_ : 0;
      low[q] = least * least * down_;
    }
  }
}

}  // namespace dal
