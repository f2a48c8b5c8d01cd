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
#include <cstring>
#include <limits>

#include "operations/levels.hpp"
#include "operations/screen.hpp"

namespace dal {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr double kSmallest = std::numeric_limits<double>::min();

}  // namespace

double frobenius(const double* a, int64_t count) {
  double largest = 0, sum = 0;
  for (int64_t k = 0; k < count; ++k) largest = std::max(largest, std::fabs(a[k]));
  if (largest == 0) return 0;
  for (int64_t k = 0; k < count; ++k) sum += (a[k] / largest) * (a[k] / largest);
  return largest * std::sqrt(sum);
}

double rounding_of_leverage(double condition, int64_t d) {
  const double relative = 8 * static_cast<double>(d) * std::ldexp(1.0, -53) * condition;
  return relative < 1e-6 ? relative : 1e-6;
}

// ---- single precision ---------------------------------------------------------------------------------------

void SinglePass::Space::reserve(const Rows& pool, int64_t count) {
  const auto many = static_cast<size_t>(count);
  if (margin.size() >= many) return;
  scratch.resize((many + 1) * static_cast<size_t>(pool.d));
  rows.resize(many * static_cast<size_t>(pool.d));
  margin.resize(many);
  square.resize(many);
  whitened.resize(many);
}

SinglePass::SinglePass(const SelectionProblem& p, double rounding)
    : k_(kernels()), d_(p.pool.d), packed_(static_cast<size_t>(k_.packed_factor_size(d_, true))), rounding_(rounding) {
  double largest = 0;
  for (int64_t k = 0; k < d_ * d_; ++k) largest = std::max(largest, std::fabs(p.inverse_factor[k]));
  int exponent = 0;
  std::frexp(largest, &exponent);
  scale_ = std::ldexp(1.0, -exponent);
  k_.pack_factor_float(p.inverse_factor, d_, scale_, packed_.data());
  const double d = static_cast<double>(d_), n = d + 3, u = std::ldexp(1.0, -24);
  relative_ = n * u < 0.5 ? n * u / (1 - n * u) : kInfinity;
  error_per_norm_ = relative_ * frobenius(p.inverse_factor, d_ * d_) * scale_ * (1 + 1e-9);
  flushed_ = d * std::ldexp(1.0, -126);
  flushed_norm_ = flushed_ * std::sqrt(d);
  margin_error_ = (d + 2) * std::ldexp(1.0, -52) * frobenius(p.reward, d_);
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

double SinglePass::lowest_margin(double margin, double square) const {
  const double u = std::fabs(margin) - margin_error_ * norm(square);
  return u > 0 ? u : 0;  // NaN as well
}

// ---- the first pass -----------------------------------------------------------------------------------------

namespace {

bool all_zero(const Block& block, int64_t row, int64_t d) {
  // Bits other than the sign: minus zero is zero.
  const int64_t size = storage_bytes(block.storage);
  const char* at = static_cast<const char*>(block.rows) + row * d * size;
  for (int64_t k = 0; k < d; ++k, at += size) {
    uint64_t bits = 0;
    memcpy(&bits, at, static_cast<size_t>(size));
    if (bits << (64 - 8 * size + 1)) return false;
  }
  return true;
}

// The largest weight of a category as a step function of |u| from above: weights fall as |u| grows, so the value at the
// lower edge of a step bounds the step. Steps are equal in the logarithm (128 a doubling) of the largest rationality
// times |u|, found from the bits of the number.
class Envelope {
 public:
  Envelope(const SelectionProblem& p, const Admissible& admissible) : admissible_(admissible) {
    if (p.candidate_offsets || p.cost || p.categories > 256) return;
    for (int32_t c = 0; c < p.categories; ++c) {
      double top = 0;
      for (int64_t at = c; at < p.m * p.categories; at += p.categories)
        if (p.available[at]) top = std::max(top, p.rationality[at]);
      top_.push_back(top);
      for (int64_t s = 0; s <= kSteps; ++s) {
        const double t = s == 0 ? 0 : edge(s);
        weight_.push_back(admissible.category_bound(c, top > 0 ? t / top : 0) * (1 + 1e-12));
      }
    }
  }

  double operator()(int64_t i, int32_t c, double u) const {
    if (top_.empty() || !admissible_.open(i)) return admissible_.start_bound(i, c, u);
    const double t = u * top_[static_cast<size_t>(c)];
    uint64_t bits;
    memcpy(&bits, &t, sizeof(bits));
    const int64_t s = std::clamp<int64_t>(static_cast<int64_t>(bits >> 45) - kFirst, 0, kSteps);
    return weight_[static_cast<size_t>(c * (kSteps + 1) + s)];
  }

 private:
  static constexpr int64_t kFirst = static_cast<int64_t>(1023 - 10) << 7;  // steps from 2^-10
  static constexpr int64_t kSteps = 22 << 7;                              // to 2^12
  // Step s holds t whose leading bits are kFirst + s; its lower edge, and a little less for the division by `top`.
  static double edge(int64_t s) {
    const uint64_t bits = static_cast<uint64_t>(kFirst + s) << 45;
    double t;
    memcpy(&t, &bits, sizeof(t));
    return t * (1 - 1e-14);
  }
  const Admissible& admissible_;
  std::vector<double> top_, weight_;
};

// One way of bounding leverages: fills leverage and margin of consecutive conversations.
struct Route {
  std::string name;
  const Screen* screen = nullptr;
};

class FirstLook {
 public:
  FirstLook(const SelectionProblem& p, const Admissible& admissible, const SinglePass& single, double rounding,
            const Call& call)
      : p_(p), admissible_(admissible), single_(single), rounding_(rounding), call_(call), k_(kernels()),
        envelope_(p, admissible) {}

  FirstPass run() {
    const Screen narrow(p_, 15, rounding_), wide(p_, 31, rounding_);
    const Route route = choose({{"full", nullptr}, {"screened", &narrow}, {"screened", &wide}, {"warm", nullptr}});
    FirstPass out;
    out.route = route.name;
    out.directions = route.screen ? route.screen->directions() : 0;
    out.bound.resize(static_cast<size_t>(p_.pool.n));
    const int64_t per_chunk = chunk_rows(p_.pool.d);
    std::vector<SinglePass::Space> spaces(static_cast<size_t>(call_.threads));
    std::vector<std::vector<double>> leverages(static_cast<size_t>(call_.threads));
    parallel_for(chunks_of(p_.pool.n, per_chunk), call_, [&](int64_t chunk, int worker) {
      auto& space = spaces[static_cast<size_t>(worker)];
      auto& h = leverages[static_cast<size_t>(worker)];
      space.reserve(p_.pool, per_chunk);
      h.resize(static_cast<size_t>(per_chunk));
      const int64_t start = chunk * per_chunk, stop = std::min(p_.pool.n, start + per_chunk);
      const Block block = block_of(k_, p_.pool, start, stop, space.scratch.data());
      look(route, block, [&](int64_t q) { return start + q; }, stop - start, space, h.data());
      for (int64_t q = 0; q < stop - start; ++q) {
        const auto at = static_cast<size_t>(q);
        out.bound[static_cast<size_t>(start) + at] =
            finish(start + q, block, q, h[at], space.margin[at], space.square[at]);
        if (p_.leverage_out) p_.leverage_out[start + q] = above(h[at]);
      }
    });
    return out;
  }

 private:
  // The float at or above a non-negative number.
  static float above(double h) {
    const float f = static_cast<float>(h);
    return static_cast<double>(f) >= h ? f : std::nextafterf(f, std::numeric_limits<float>::infinity());
  }

  // What an earlier round says of a leverage at this M.
  double known(int64_t i) const {
    return static_cast<double>(p_.known_leverage[i]) * p_.known_scale * (1 + rounding_) * (1 + 1e-12);
  }

  // Upper bounds of the leverages and lower bounds of |u|, the latter in space.margin; row q is conversation index(q).
  template <class Index>
  void look(const Route& route, const Block& block, Index index, int64_t count, SinglePass::Space& space,
            double* h) const {
    double *margin = space.margin.data(), *square = space.square.data();
    if (route.screen) {
      route.screen->bounds(single_.rows(block, count, space), count, h, margin, square);
      for (int64_t q = 0; p_.known_leverage && q < count; ++q) h[q] = std::min(h[q], known(index(q)));
      return;
    }
    k_.margin(block.rows, block.storage, count, p_.pool.d, p_.reward, margin, square);
    if (route.name == "warm") {
      for (int64_t q = 0; q < count; ++q) h[q] = known(index(q));
    } else {
      single_.leverages(single_.rows(block, count, space), count, square, space, h);
    }
    for (int64_t q = 0; q < count; ++q) margin[q] = single_.lowest_margin(margin[q], square[q]);
  }

  // bound = w h of conversation i; h is lowered to 0 where the row is zero
  double finish(int64_t i, const Block& block, int64_t row, double& h, double margin, double square) const {
    double u = p_.optimism > 0 ? margin - p_.optimism * std::sqrt(h) : margin;
    if (!(u > 0)) u = 0;
    const double w = envelope_(i, p_.pool.category_of(i), u);
    if ((square == 0 || h == kInfinity) && all_zero(block, row, p_.pool.d)) h = 0;
    return w < 0 ? -1 : w == 0 || h == 0 ? 0 : w * h * (1 + 1e-11);
  }

  // Judged on rows spread over the pool: the values themselves tell what the batch will reach, each route's bounds
  // how many rows would be left to look at. Costs are multiply-adds a row; kRead is what reading one number costs.
  Route choose(const std::vector<Route>& routes) const {
    constexpr double kRead = 30, kGather = 1.5;
    const double d = static_cast<double>(p_.pool.d), full = d * d / 2;
    const int64_t count = std::min<int64_t>(p_.pool.n, 4096);
    if (p_.pool.n == 0 || (!p_.eigenvalues && !p_.known_leverage)) return routes[0];
    std::vector<double> value = sample_bounds(routes[0], count), sorted = value;
    const double wanted = static_cast<double>(count) * 2 * static_cast<double>(p_.size) / static_cast<double>(p_.pool.n);
    const auto rank = static_cast<int64_t>(std::clamp(std::ceil(wanted), 1.0, static_cast<double>(count))) - 1;
    std::nth_element(sorted.begin(), sorted.begin() + rank, sorted.end(), std::greater<>());
    const double reach = sorted[static_cast<size_t>(rank)];
    size_t best = 0;
    double cheapest = full + kRead * d;
    for (size_t r = 1; r < routes.size(); ++r) {
      const bool warm = routes[r].name == "warm";
      if (warm ? !p_.known_leverage : !routes[r].screen->usable()) continue;
      const std::vector<double> bound = sample_bounds(routes[r], count);
      const auto left = static_cast<double>(std::count_if(bound.begin(), bound.end(), [&](double b) { return b >= reach; }));
      const double pass = warm ? 2 : static_cast<double>(routes[r].screen->directions() + 1);
      const double cost = (pass + kRead) * d + left / static_cast<double>(count) * kGather * (full + kRead * d);
      if (cost < cheapest) {
        cheapest = cost;
        best = r;
      }
    }
    return routes[best];
  }

  // Bounds of `count` conversations at equal distances.
  std::vector<double> sample_bounds(const Route& route, int64_t count) const {
    std::vector<double> bound(static_cast<size_t>(count));
    constexpr int64_t per_chunk = 64;
    const int64_t step = p_.pool.n / std::max<int64_t>(count, 1), d = p_.pool.d;
    std::vector<SinglePass::Space> spaces(static_cast<size_t>(call_.threads));
    parallel_for(chunks_of(count, per_chunk), call_, [&](int64_t chunk, int worker) {
      auto& space = spaces[static_cast<size_t>(worker)];
      space.reserve(p_.pool, per_chunk);
      const int64_t start = chunk * per_chunk, many = std::min(count - start, per_chunk);
      double* x = space.scratch.data();
      for (int64_t q = 0; q < many; ++q) gather(k_, p_.pool, (start + q) * step, x + q * d, x + many * d);
      const Block block{x, Storage::f64};
      double h[per_chunk];
      look(route, block, [&](int64_t q) { return (start + q) * step; }, many, space, h);
      for (int64_t q = 0; q < many; ++q) {
        const auto at = static_cast<size_t>(q);
        bound[static_cast<size_t>(start) + at] =
            finish((start + q) * step, block, q, h[q], space.margin[at], space.square[at]);
      }
    });
    return bound;
  }

  const SelectionProblem& p_;
  const Admissible& admissible_;
  const SinglePass& single_;
  double rounding_;
  const Call& call_;
  const KernelTable& k_;
  Envelope envelope_;
};

}  // namespace

FirstPass first_pass(const SelectionProblem& problem, const Admissible& admissible, const SinglePass& single,
                     double rounding, const Call& call) {
  return FirstLook(problem, admissible, single, rounding, call).run();
}

}  // namespace dal
