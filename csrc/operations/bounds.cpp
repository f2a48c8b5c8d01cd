// Proof of the bound. Let y = W x in real arithmetic, h = |y|^2, and let hats mark single-precision results.
// Rounding the entries of W and x and adding d products in any order, fused or not, gives in each component
//   |y^_k - y_k| <= g sum_j |W_kj| |x_j| <= g |W_k| |x|,  g = gamma_{d+3} = (d+3) u / (1 - (d+3) u), u = 2^-24,
// so |y^ - y| <= e = g |W|_F |x| (Cauchy-Schwarz), plus d 2^-126 a component where products underflow, flushed or not.
// The squares are added in single precision within a tile and double across tiles: s^ >= (1 - g) |y^|^2 - d 2^-126. So
//   h <= ( sqrt((s^ + d 2^-126) / (1 - g)) + e + d sqrt(d) 2^-126 )^2.
// The margin is off by at most d eps |x| |theta|; every weight falls as |u| grows, so the weight at |u| minus that error
// (and minus k sqrt(h) with optimism, h bounded above) is an upper bound of each teacher's weight. As M grows h falls,
// and teachers only drop out, so the product stays an upper bound during the whole batch.
// W is scaled by a power of two (exact) to largest entry in [1/2, 1). An overflow gives infinity or NaN: bound infinite.
#include "operations/bounds.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

#include "operations/levels.hpp"

namespace dal {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr double kSmallest = std::numeric_limits<double>::min();

double frobenius(const double* a, int64_t count) {
  double largest = 0, sum = 0;
  for (int64_t k = 0; k < count; ++k) largest = std::max(largest, std::fabs(a[k]));
  if (largest == 0) return 0;
  for (int64_t k = 0; k < count; ++k) sum += (a[k] / largest) * (a[k] / largest);
  return largest * std::sqrt(sum);
}

// The constants of the proof above for one factor.
struct SingleBound {
  double scale, relative, error_per_norm, flushed, flushed_norm, rounding;

  SingleBound(const double* inverse_factor, int64_t d, double rounding_) : rounding(rounding_) {
    double largest = 0;
    for (int64_t k = 0; k < d * d; ++k) largest = std::max(largest, std::fabs(inverse_factor[k]));
    int exponent = 0;
    std::frexp(largest, &exponent);
    scale = std::ldexp(1.0, -exponent);
    const double n = static_cast<double>(d) + 3, u = std::ldexp(1.0, -24);
    relative = n * u < 0.5 ? n * u / (1 - n * u) : kInfinity;
    error_per_norm = relative * frobenius(inverse_factor, d * d) * scale * (1 + 1e-9);
    flushed = static_cast<double>(d) * std::ldexp(1.0, -126);
    flushed_norm = flushed * std::sqrt(static_cast<double>(d));
  }

  // square = |W x|^2 as computed, norm = |x|
  double leverage(double square, double norm) const {
    const double root = std::sqrt((square + flushed) / (1 - relative)) + error_per_norm * norm + flushed_norm;
    const double h = (root / scale) * (root / scale) * (1 + rounding) * (1 + 1e-12);
    return h < kInfinity ? h : kInfinity;  // NaN as well
  }
};

bool all_zero(const KernelTable& k, const Block& block, int64_t row, int64_t d) {
  std::vector<double> x(static_cast<size_t>(d));
  k.to_double(static_cast<const char*>(block.rows) + row * d * storage_bytes(block.storage), block.storage, d, x.data());
  return std::all_of(x.begin(), x.end(), [](double value) { return value == 0; });
}

struct Space {
  std::vector<double> scratch, margin, square, whitened;
  std::vector<float> rows;
};

}  // namespace

double rounding_of_leverage(const double* matrix, const double* inverse_factor, int64_t d) {
  const double w = frobenius(inverse_factor, d * d);
  const double kappa = frobenius(matrix, d * d) * w * w;
  const double eps = 8 * static_cast<double>(d) * std::ldexp(1.0, -53) * kappa;
  return eps < 1e-6 ? eps : 1e-6;
}

std::vector<double> upper_bounds(const SelectionProblem& p, const Admissible& admissible, double rounding,
                                 const Call& call) {
  const KernelTable& k = kernels();
  const Rows& pool = p.pool;
  const int64_t d = pool.d, per_chunk = chunk_rows(d);
  const SingleBound single(p.inverse_factor, d, rounding);
  std::vector<float> packed(static_cast<size_t>(k.packed_factor_size(d, true)));
  k.pack_factor_float(p.inverse_factor, d, single.scale, packed.data());
  const double margin_error = static_cast<double>(d + 2) * std::ldexp(1.0, -52) * frobenius(p.reward, d);
  std::vector<double> bound(static_cast<size_t>(pool.n));
  std::vector<Space> spaces(static_cast<size_t>(call.threads));

  parallel_for(chunks_of(pool.n, per_chunk), call, [&](int64_t chunk, int worker) {
    Space& s = spaces[static_cast<size_t>(worker)];
    if (s.margin.empty()) {
      if (pool.pairs()) s.scratch.resize(static_cast<size_t>((per_chunk + 1) * d));
      s.margin.resize(static_cast<size_t>(per_chunk));
      s.square = s.whitened = s.margin;
      s.rows.resize(static_cast<size_t>(per_chunk * d));
    }
    const int64_t start = chunk * per_chunk, stop = std::min(pool.n, start + per_chunk), count = stop - start;
    const Block block = block_of(k, pool, start, stop, s.scratch.data());
    k.margin(block.rows, block.storage, count, d, p.reward, s.margin.data(), s.square.data());
    const float* x = static_cast<const float*>(block.rows);
    if (block.storage != Storage::f32) {
      k.to_float(block.rows, block.storage, count * d, s.rows.data());
      x = s.rows.data();
    }
    k.whitened_squares_float(x, count, d, packed.data(), s.whitened.data());
    for (int64_t q = 0; q < count; ++q) {
      const auto at = static_cast<size_t>(q);
      // Squares below the smallest normal number may have been lost, one a component.
      const double norm = std::sqrt(s.square[at] + static_cast<double>(d) * kSmallest) * (1 + 1e-9);
      const double h = s.square[at] == 0 && all_zero(k, block, q, d) ? 0 : single.leverage(s.whitened[at], norm);
      double u = std::fabs(s.margin[at]) - margin_error * norm;
      if (p.optimism > 0) u -= p.optimism * std::sqrt(h);
      const double w = admissible.start_bound(start + q, pool.category_of(start + q), u > 0 ? u : 0);
      double& out = bound[static_cast<size_t>(start + q)];
      if (w < 0) {
        out = -1;
      } else if (w == 0 || h == 0) {
        out = 0;
      } else {
        out = w * h * (1 + 1e-11);
      }
    }
  });
  return bound;
}

}  // namespace dal
