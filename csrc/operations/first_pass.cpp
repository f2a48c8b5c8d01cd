#include "operations/first_pass.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <memory>

#include "operations/envelope.hpp"
#include "operations/levels.hpp"
#include "operations/pair_pass.hpp"
#include "operations/screen.hpp"

namespace dal {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

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

// One way of bounding leverages.
struct Route {
  enum Kind { full, bfloat16, screened, warm };
  Kind kind;
  const Screen* screen = nullptr;
  const char* name() const {
    return kind == full ? "full" : kind == bfloat16 ? "bfloat16" : kind == screened ? "screened" : "warm";
  }
};

class FirstLook {
 public:
  FirstLook(const SelectionProblem& p, const Admissible& admissible, const SinglePass& single,
            const Bfloat16Pass& products, double rounding, const Call& call)
      : p_(p), single_(single), products_(products), rounding_(rounding), call_(call), k_(kernels()),
        envelope_(p, admissible) {}

  FirstPass run() {
    const Route route = p_.route.empty() ? choose() : named(p_.route);
    FirstPass out;
    out.route = route.name();
    out.directions = route.screen ? route.screen->directions() : 0;
    out.tight = route.kind == Route::full || route.kind == Route::bfloat16;
    out.bound.resize(static_cast<size_t>(p_.pool.n));
    out.leverage.resize(static_cast<size_t>(p_.pool.n));
    // The products overlap reading with multiplying within a run: long ones, where rows are read in place.
    const bool in_place = (route.kind == Route::bfloat16 || route.kind == Route::warm) && !p_.pool.needs_scratch();
    const int64_t per_chunk = in_place ? 1024 : chunk_rows(p_.pool);
    std::vector<Space> spaces(static_cast<size_t>(call_.threads));
    parallel_for(chunks_of(p_.pool.n, per_chunk), call_, [&](int64_t chunk, int worker) {
      Space& space = spaces[static_cast<size_t>(worker)];
      reserve(space, per_chunk, in_place);
      look_at_run(route, chunk * per_chunk, std::min(p_.pool.n, (chunk + 1) * per_chunk), space, out);
    });
    return out;
  }

 private:
  // Working space of one thread.
  struct Space {
    SinglePass::Space single;
    Bfloat16Pass::Space products;
    std::vector<double> high, low;
  };

  void reserve(Space& space, int64_t count, bool in_place) const {
    space.single.reserve(p_.pool, count, in_place);
    if (products_.usable()) space.products.reserve(products_, count);
    space.high.resize(static_cast<size_t>(count));
    space.low.resize(static_cast<size_t>(count));
  }

  void look_at_run(const Route& route, int64_t start, int64_t stop, Space& space, FirstPass& out) const {
    const Block block = block_of(k_, p_.pool, start, stop, space.single.scratch.data());
    look(route, block, [&](int64_t q) { return start + q; }, stop - start, space, nullptr);
    for (int64_t q = 0; q < stop - start; ++q) {
      const auto at = static_cast<size_t>(q), i = static_cast<size_t>(start + q);
      double& h = space.high[at];
      out.bound[i] = above(finish(start + q, block, q, h, space.single.margin[at], space.single.square[at]));
      out.leverage[i] = above(h);
      if (p_.leverage_out) p_.leverage_out[i] = out.leverage[i];
    }
  }

  // What an earlier round says of a leverage at this M.
  double known(int64_t i) const {
    return static_cast<double>(p_.known_leverage[i]) * p_.known_scale * (1 + rounding_) * (1 + 1e-12);
  }

  // Upper bounds of the leverages in space.high (and lower ones in `low` where wanted and known), lower bounds of |u| in
  // space.single.margin; row q is conversation index(q).
  template <class Index>
  void look(const Route& route, const Block& block, Index index, int64_t count, Space& space, double* low) const {
    double *h = space.high.data(), *margin = space.single.margin.data(), *square = space.single.square.data();
    if (route.kind == Route::bfloat16) {
      products_.bounds(block.rows, block.storage, count, space.products, low, h, margin, square);
    } else if (route.kind == Route::screened) {
      route.screen->bounds(single_.rows(block, count, space.single), count, h, margin, square);
    } else if (route.kind == Route::warm) {
      single_.margins(block, count, space.single, margin, square);
      std::fill(h, h + count, kInfinity);
    } else {
      k_.margin(block.rows, block.storage, count, p_.pool.d, p_.reward, margin, square);
      single_.leverages(single_.rows(block, count, space.single), count, square, space.single, h);
      for (int64_t q = 0; q < count; ++q) margin[q] = single_.lowest_margin(margin[q], square[q]);
    }
    if (p_.known_leverage)
      for (int64_t q = 0; q < count; ++q) h[q] = std::min(h[q], known(index(q)));
  }

  // bound = w h of conversation i; h is lowered to 0 where the row is zero
  double finish(int64_t i, const Block& block, int64_t row, double& h, double margin, double square) const {
    double u = p_.optimism > 0 ? margin - p_.optimism * std::sqrt(h) : margin;
    if (!(u > 0)) u = 0;
    const double w = envelope_(i, p_.pool.category_of(i), u);
    if ((square == 0 || h == kInfinity) && all_zero(block, row, p_.pool.d)) h = 0;
    return w < 0 ? -1 : w == 0 || h == 0 ? 0 : w * h * (1 + 1e-11);
  }

  // ---- the choice -------------------------------------------------------------------------------------------

  // Costs in multiply-adds a row: what reading one number costs, and the products by their speed.
  static constexpr double kRead = 30;

  // Judged on rows spread over the pool: `reach`, a lower bound of what the batch will reach in the end, and the share
  // of the rows that each route's bounds leave to look at.
  Route choose() {
    const Route full{products_.usable() ? Route::bfloat16 : Route::full};
    const int64_t count = std::min<int64_t>(p_.pool.n, 4096);
    if (count == 0 || (!p_.spectrum && !p_.known_leverage && !products_.usable())) return full;
    std::vector<double> low(static_cast<size_t>(count));
    const std::vector<double> high = sample_bounds(full, count, low.data());
    reach_ = reached(low);
    const double d = static_cast<double>(p_.pool.d), product = d * d / 2;
    Best best{full, products_.usable() ? product / products_.speed() + d * (kRead + 6) + rest_cost(high, true)
                                       : product + kRead * d + rest_cost(high, true)};
    // In single precision the products are dearer and never looser than a factor of two or so of the best there is.
    if (products_.usable()) best.offer({Route::full}, product + kRead * d + least_rest_cost());
    if (p_.known_leverage) {
      const Route warm{Route::warm};
      best.offer(warm, (kRead + 2) * d + rest_cost(sample_bounds(warm, count, nullptr), false));
    }
    // An eigensolve takes about 35 d^3, on one thread; not asked for where it could not pay.
    const double solve = 35 * d * d * d / static_cast<double>(p_.pool.n);
    if (p_.spectrum && (kRead + 2.6 * 16) * d + solve + least_rest_cost() < best.cost) {
      solve_spectrum();
      for (const auto& screen : screens_)
        if (screen->usable()) {
          const Route route{Route::screened, screen.get()};
          const double pass = (kRead + 2.6 * static_cast<double>(screen->directions() + 1)) * d;
          best.offer(route, pass + rest_cost(sample_bounds(route, count, nullptr), false));
        }
    }
    return best.route;
  }

  struct Best {
    Route route;
    double cost;
    void offer(const Route& other, double price) {
      if (price < cost) *this = {other, price};
    }
  };

  void solve_spectrum() {
    const Spectrum spectrum = p_.spectrum();
    for (int64_t directions : {15, 31})
      screens_.push_back(std::make_unique<Screen>(p_, spectrum, directions, rounding_));
  }

  Route named(const std::string& name) {
    if (name == "full") return {Route::full};
    if (name == "bfloat16" && products_.usable()) return {Route::bfloat16};
    if (name == "warm" && p_.known_leverage) return {Route::warm};
    if (name == "screened" && p_.spectrum) {
      solve_spectrum();
      for (const auto& screen : screens_)
        if (screen->usable()) return {Route::screened, screen.get()};
    }
    return {Route::full};
  }

  // What about the 2 B best of the pool are worth at least, from values of the sample.
  double reached(std::vector<double>& value) const {
    const auto count = static_cast<double>(value.size());
    const double wanted = count * 2 * static_cast<double>(p_.size) / static_cast<double>(p_.pool.n);
    const auto rank = static_cast<int64_t>(std::clamp(std::ceil(wanted), 1.0, count)) - 1;
    std::nth_element(value.begin(), value.begin() + rank, value.end(), std::greater<>());
    return value[static_cast<size_t>(rank)];
  }

  // Rows that are left cost a scattered read, the directions added meanwhile, and a full product unless they had one.
  double rest_cost(const std::vector<double>& bound, bool tight) const {
    const auto left = static_cast<double>(std::count_if(bound.begin(), bound.end(), [&](double b) { return b >= reach_; }));
    return left / static_cast<double>(bound.size()) * row_cost(tight);
  }
  double least_rest_cost() const {
    return 2 * static_cast<double>(p_.size) / static_cast<double>(p_.pool.n) * row_cost(true);
  }
  double row_cost(bool tight) const {
    const double d = static_cast<double>(p_.pool.d), added = static_cast<double>(std::min<int64_t>(p_.size, 512));
    return 6 * (2 * kRead * d + added * d + (tight ? 0 : products_.usable() ? d * d / 2 / products_.speed() : d * d / 2));
  }

  // Upper bounds of w h of `count` conversations at equal distances; lower ones in `low` where wanted.
  std::vector<double> sample_bounds(const Route& route, int64_t count, double* low) const {
    std::vector<double> bound(static_cast<size_t>(count));
    constexpr int64_t per_chunk = 64;
    const int64_t step = p_.pool.n / std::max<int64_t>(count, 1), d = p_.pool.d;
    std::vector<Space> spaces(static_cast<size_t>(call_.threads));
    parallel_for(chunks_of(count, per_chunk), call_, [&](int64_t chunk, int worker) {
      Space& space = spaces[static_cast<size_t>(worker)];
      reserve(space, per_chunk, false);
      const int64_t start = chunk * per_chunk, many = std::min(count - start, per_chunk);
      double* x = space.single.scratch.data();
      for (int64_t i = start * step; i < (start + many) * step; i += step) expect(p_.pool, &i, 1);
      for (int64_t q = 0; q < many; ++q) gather(k_, p_.pool, (start + q) * step, x + q * d, x + many * d);
      const Block block{x, Storage::f64};
      const bool both = low && route.kind == Route::bfloat16;
      look(route, block, [&](int64_t q) { return (start + q) * step; }, many, space, both ? space.low.data() : nullptr);
      for (int64_t q = 0; q < many; ++q) {
        const auto at = static_cast<size_t>(q), i = static_cast<size_t>(start + q);
        double& h = space.high[at];
        const double margin = space.single.margin[at], square = space.single.square[at];
        bound[i] = finish((start + q) * step, block, q, h, margin, square);
        // The weight is an upper bound as well, but next to exact.
        if (low) low[i] = both && bound[i] > 0 && h > 0 && h < kInfinity ? bound[i] * space.low[at] / h : bound[i];
      }
    });
    return bound;
  }

  const SelectionProblem& p_;
  const SinglePass& single_;
  const Bfloat16Pass& products_;
  double rounding_;
  const Call& call_;
  const KernelTable& k_;
  Envelope envelope_;
  std::vector<std::unique_ptr<Screen>> screens_;
  double reach_ = 0;
};

}  // namespace

FirstPass first_pass(const SelectionProblem& problem, const Admissible& admissible, const SinglePass& single,
                     const Bfloat16Pass& products, double rounding, const Call& call) {
  if (problem.pool.pairs()) return pair_pass(problem, admissible, single, products, rounding, call);
  return FirstLook(problem, admissible, single, products, rounding, call).run();
}

}  // namespace dal
