// The first look at a pool: an upper bound of w h for every conversation, by the cheapest route.
#include "operations/first_pass.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>

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
    const int64_t per_chunk = chunk_rows(p_.pool);
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
      for (int64_t i = start * step; i < (start + many) * step; i += step) expect(p_.pool, &i, 1);
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
  if (problem.pool.pairs()) return pair_pass(problem, admissible, single, rounding, call);
  return FirstLook(problem, admissible, single, rounding, call).run();
}

}  // namespace dal
