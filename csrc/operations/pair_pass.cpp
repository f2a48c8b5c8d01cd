// Bounds of all pairs of a prompt from its completions. With c_r the float rows of completion r minus the prompt's
// first, x the difference of a pair a < b as the data has it (in float64), u = 2^-24, and n = n_a + n_b, n_r >= |c_r|:
//
// Centring. Each component of c_r is rounded once from the stored numbers (and once more from float64), or flushed to
// zero below 2^-126, and so may be what it is made of: x = c_b - c_a + r with |r| <= 2 u n + 2^-124 sqrt(d).
//
// Sums of k terms along the depth have at most k / lanes + 8 roundings in a row (pairs.cpp), D for the d features.
// |c_r|^2 <= s_r / (1 - gamma_D) + d 2^-125 with s_r its float sum; n_r is the root of that, rounded up.
//
// Squared distances come from products. For float rows y_r and signs S (all + in the full product), let N_r = y_r' S y_r
// and m_r = |y_r|. The float sums N^_r and P^ for y_a' S y_b are off by at most gamma_M m_r^2 and gamma_M m_a m_b, so
//   (y_b - y_a)' S (y_b - y_a) <= N^_a + N^_b - 2 P^ + 2 gamma_M (m_a^2 + m_b^2) = square_a + square_b - 2 P^:
// the cancellation costs no more than the error of products of that length has to cost anyway. The squares of rows are
// rounded up by 2^-22, which covers the rounding of their sum.
//
// Full product. y_r = z_r = W c_r comes with an error e_r of its norm (whiten: e_r = gamma_{d+3} |W|_F n_r + d^1.5
// 2^-126, as in bounds.cpp; in bfloat16 as in bfloat16_pass.cpp), and d 2^-123 is added to each square for products that underflow, so
//   sqrt(h) <= sqrt(square_a + square_b - 2 P^) + e_a + e_b + |W|_F (2 u n + 2^-124 sqrt(d)) + 2^-124 sqrt(d).
// W is scaled by a power of two to largest entry in [1/2, 1).
//
// In bfloat16, rows as small or as large as the screen refuses are refused as well.
//
// Screen, see screen.cpp for the bound h <= rest |x|^2 + sum_k c_k (v_k' x)^2 of K directions. y_r holds c_r and the
// q_k = sqrt(|c_k| / rest) v_k' c_r with the sign of c_k. A q_k is off by at most sqrt(|c_k| / rest) G n_r,
// G = gamma_{D+4} + d 2^-49, centring and the final difference included, so by Cauchy-Schwarz the sum over k by at most
//   (2 G |c / rest| + G^2 sum_k |c_k| / rest) n^2, and |x|^2 differs from |c_b - c_a|^2 by at most 4 u n^2.
// A factor of 1.001 covers products of these terms, n^2 <= 2 (n_a^2 + n_b^2) makes them a part of the squares. Rows with
// |c_r|^2 outside 2^-60 .. 2^80 get n_r = infinity, so that what underflows stays below u n^2 and nothing overflows
// (|c_k| <= 2^30 rest); a row that equals the first of its prompt is exactly zero.
//
// Margins. u_a and u_b are float sums along the depth like the projections: |u| >= |u_b - u_a| - G n |theta|.
//
// A pair whose two stored rows are equal has leverage 0, and margins that are equal to the last bit. What overflows
// makes a bound infinite; single precision then does not reach, and the exact routine decides.
#include "operations/pair_pass.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

#include "operations/envelope.hpp"
#include "operations/levels.hpp"
#include "operations/screen.hpp"

namespace dal {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
const double kUnit = std::ldexp(1.0, -24);

// A float not below x, |x| >= 2^-123, by 2^-23 |x| at least.
float rounded_up(double x) {
  const auto f = static_cast<float>(x);
  return f + std::fabs(f) * 0x1p-22f;
}
int64_t up_to(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }
// Pairs of `count` rows whose first is before a.
int64_t pairs_before(int64_t a, int64_t count) { return a * (count - 1) - a * (a - 1) / 2; }

// Floats at an address that whole vectors divide.
class Floats {
 public:
  float* reserve(int64_t count) {
    if (static_cast<int64_t>(room_.size()) < count + 16) room_.resize(static_cast<size_t>(count + 16));
    return data();
  }
  float* data() { return room_.data() + (64 - reinterpret_cast<uintptr_t>(room_.data()) % 64) % 64 / sizeof(float); }

 private:
  std::vector<float> room_;
};

// ---- rows -----------------------------------------------------------------------------------------------------

// A few eigenvectors from both ends of the spectrum, scaled by the roots of their coefficients over `rest`.
struct Directions {
  int64_t count = 0;
  std::vector<float> vectors, sign;
  double rest = 0, slope = 0;
};

struct Route {
  const char* name;
  const Directions* directions;  // null: the full product, or nothing ("warm")
  bool full() const { return name[0] == 'f' || bfloat16(); }
  bool bfloat16() const { return name[0] == 'b'; }
  bool warm() const { return name[0] == 'w'; }
};

// Centred rows of consecutive completions and what the bounds need of each.
struct Centred {
  const float *rows, *whitened, *margin, *norm, *error, *square;
};

class PairRows {
 public:
  struct Space {
    Floats rows, whitened, margin, norm, error, square, with_signs, all;
  };
  using Products = Bfloat16Pass::Space;

  PairRows(const SelectionProblem& p, const Bfloat16Pass& products, double rounding)
      : k_(kernels()),
        p_(p),
        products_(products),
        d_(p.pool.d),
        lanes_(k_.float_lanes()),
        depth_(up_to(d_, lanes_)),
        packed_(static_cast<size_t>(k_.packed_factor_size(d_, true))),
        reward_(static_cast<size_t>(depth_)),
        plus_(static_cast<size_t>(depth_), 1.0f),
        rounding_(rounding) {
    const double d = static_cast<double>(d_);
    sums_ = static_cast<double>(depth_ / lanes_) + 8;
    const double g = single_gamma(sums_), projected = single_gamma(sums_ + 4) + d * std::ldexp(1.0, -49);
    square_up_ = 1 / (1 - g);
    square_tiny_ = d * std::ldexp(1.0, -125);

    const double factor_scale = power_of_two_scale(p.inverse_factor, d_ * d_), tiny = std::ldexp(1.0, -124) * std::sqrt(d);
    k_.pack_factor_float(p.inverse_factor, d_, factor_scale, packed_.data());
    const double factor_norm = frobenius(p.inverse_factor, d_ * d_) * factor_scale * (1 + 1e-9);
    centring_per_norm_ = factor_norm * 2 * kUnit * (1 + 1e-9);
    error_per_norm_ = factor_norm * single_gamma(d + 3) * (1 + 1e-9);
    error_tiny_ = (d * tiny + factor_norm * tiny + tiny) * (1 + 1e-9);
    scale_.unscale = 1 / factor_scale;
    scale_.factor = (1 + std::ldexp(1.0, -18)) * (1 + rounding);

    // Without a reward any direction serves to tell rows apart.
    const double reward_norm = frobenius(p.reward, d_);
    for (int64_t j = 0; j < d_; ++j)
      reward_[static_cast<size_t>(j)] = reward_norm > 0 ? static_cast<float>(p.reward[j] / reward_norm) : 1.0f;
    scale_.margin_scale = reward_norm;
    scale_.margin_error = projected * reward_norm * (1 + 1e-6);
    scale_.optimism = p.optimism;
  }

  // `count` directions, none where the spectrum or the size allows no bound.
  Directions directions(const Spectrum& spectrum, int64_t count) const {
    Directions out;
    if (!spectrum.values || count + 1 >= d_) return out;
    const double* lambda = spectrum.values;
    const double delta = static_cast<double>(d_) * std::ldexp(1.0, -49) * std::max(std::fabs(lambda[0]), std::fabs(lambda[d_ - 1]));
    if (!(lambda[0] > 4 * delta)) return out;
    const int64_t low = low_end(lambda, d_, count);
    out.rest = 1 / (lambda[low] - delta);
    out.vectors.resize(static_cast<size_t>(count * depth_));
    double sum = 0, square = 0, largest = 0;
    for (int64_t c = 0; c < count; ++c) {
      const int64_t k = c < low ? c : d_ - 1 - (c - low);
      const double coefficient = 1 / (lambda[k] - delta) / out.rest - 1, root = std::sqrt(std::fabs(coefficient));
      out.sign.push_back(coefficient < 0 ? -1.0f : 1.0f);
      for (int64_t j = 0; j < d_; ++j)
        out.vectors[static_cast<size_t>(c * depth_ + j)] = static_cast<float>(spectrum.vectors[k * d_ + j] * root);
      sum += std::fabs(coefficient);
      square += coefficient * coefficient;
      largest = std::max(largest, std::fabs(coefficient));
    }
    const double g = single_gamma(sums_ + 4) + static_cast<double>(d_) * std::ldexp(1.0, -49);
    out.slope = 1.001 * (2 * g * std::sqrt(square) + g * g * sum + 4 * kUnit);
    out.count = out.rest < kInfinity && largest < 0x1p30 && out.slope < kInfinity ? count : 0;
    return out;
  }

  // Floats from one row of `rows` to the next, and of `whitened`.
  int64_t stride(const Route& route) const { return depth_ + (route.directions ? route.directions->count : 0); }
  int64_t whitened_stride() const { return up_to(d_, std::max(kBrainBlock, 2 * lanes_)); }

  void reserve(const Route& route, int64_t rows, Space& space) const {
    rows = up_to(rows, kBrainBlock);
    for (Floats* f : {&space.margin, &space.norm, &space.error, &space.square, &space.with_signs, &space.all}) f->reserve(rows + 2 * lanes_);
    space.rows.reserve(rows * stride(route));
    if (route.full()) space.whitened.reserve(rows * whitened_stride());
  }

  // Completions first..first+count-1 of the prompt that begins at `middle`, as rows at, at + 1, ... of the space.
  // Writes past the last of them what the next call writes again: in order, or in whole vectors.
  void centre(const Rows& pool, int64_t middle, int64_t first, int64_t count, const Route& route, int64_t at,
              Space& space) const {
    k_.centre(pool.at(first), pool.at(middle), pool.storage, count, d_, reward_.data(), stride(route),
              space.rows.data() + at * stride(route), space.margin.data() + at, space.square.data() + at);
    const float* square = space.square.data() + at;
    float* norm = space.norm.data() + at;
    for (int64_t r = 0; r < count; ++r) {
      const double n = std::sqrt(square[r] * square_up_ + square_tiny_) * (1 + 1e-9);
      norm[r] = rounded_up(n);
      if ((route.directions || route.bfloat16()) && !(square[r] > 0x1p-60f && square[r] < 0x1p80f) && !equal(pool, middle, first + r))
        norm[r] = std::numeric_limits<float>::infinity();
    }
  }

  // What the route needs of `count` centred rows from row `at` on, which centre has written.
  void project(int64_t count, const Route& route, int64_t at, Space& space, Products& products) const {
    float *rows = space.rows.data() + at * stride(route), *square = space.square.data() + at;
    float *signs = space.with_signs.data() + at, *all = space.all.data() + at;
    const float* norm = space.norm.data() + at;
    if (route.full()) {
      float* z = space.whitened.data() + at * whitened_stride();
      float* error = space.error.data() + at;
      if (route.bfloat16()) {
        products.reserve(products_, up_to(count, kBrainBlock));
        products_.whitened(rows, count, stride(route), norm, products, z, error);
      } else {
        k_.whiten(rows, count, stride(route), d_, packed_.data(), whitened_stride(), z);
        for (int64_t r = 0; r < count; ++r) error[r] = rounded_up(error_per_norm_ * norm[r] + error_tiny_);
      }
      for (int64_t r = 0; r < count; ++r) error[r] = rounded_up(error[r] + centring_per_norm_ * norm[r] + error_tiny_);
      std::fill(square, square + up_to(count, lanes_), 0.0f);
      k_.row_squares(z, count, whitened_stride(), depth_, plus_.data(), square, signs, all);
      const double up = 1 + 4 * single_gamma(sums_), tiny = static_cast<double>(d_) * std::ldexp(1.0, -123);
      for (int64_t r = 0; r < count; ++r) square[r] = rounded_up(all[r] * up + tiny);
    } else if (route.directions) {
      const Directions& v = *route.directions;
      k_.project(rows, count, stride(route), depth_, v.vectors.data(), v.count, rows + depth_);
      k_.row_squares(rows + depth_, count, stride(route), v.count, v.sign.data(), square, signs, all);
      const double g = single_gamma(sums_ + static_cast<double>(v.count / lanes_));
      for (int64_t r = 0; r < count; ++r)
        square[r] = rounded_up(signs[r] + 2.001 * g / (1 - g) * all[r] + 2 * v.slope * norm[r] * static_cast<double>(norm[r]));
    }
  }

  Centred at(int64_t row, const Route& route, Space& space) const {
    return {space.rows.data() + row * stride(route), space.whitened.data() + row * whitened_stride(),
            space.margin.data() + row, space.norm.data() + row, space.error.data() + row, space.square.data() + row};
  }

  // Whether two stored completions are equal, number by number.
  bool equal(const Rows& pool, int64_t a, int64_t b) const {
    if (a == b) return true;
    const int64_t size = storage_bytes(pool.storage);
    const char *x = pool.at(a), *y = pool.at(b);
    for (int64_t k = 0; k < d_; ++k, x += size, y += size) {
      uint64_t one = 0, other = 0;
      memcpy(&one, x, static_cast<size_t>(size));
      memcpy(&other, y, static_cast<size_t>(size));
      const bool zero = !((one | other) << (64 - 8 * size + 1));  // minus zero is zero
      if (one != other && !zero) return false;
    }
    return true;
  }

  // leverage[q] >= h of the pairs of rows a0 <= a < a1 with b > a; known (of these pairs) may be null. Returns whether
  // some pair may be of equal rows or out of reach.
  struct PairSpace {
    Floats product, margin, norm, error, square;
    std::vector<double> leverage;
    void reserve(int64_t count) {
      for (Floats* f : {&product, &margin, &norm, &error, &square}) f->reserve(count + 32);
      if (static_cast<int64_t>(leverage.size()) < count + 32) leverage.resize(static_cast<size_t>(count + 32));
    }
  };
  bool leverages(const Centred& c, int64_t count, const Route& route, int64_t a0, int64_t a1, PairSpace& space) const {
    const int64_t pairs = pairs_before(a1, count) - pairs_before(a0, count);
    space.reserve(pairs);
    k_.pair_spread(c.margin, count, -1, a0, a1, space.margin.data());
    k_.pair_spread(c.norm, count, 1, a0, a1, space.norm.data());
    double* h = space.leverage.data();
    if (route.warm()) {
      std::fill(h, h + pairs, kInfinity);
      return true;
    }
    k_.pair_spread(c.square, count, 1, a0, a1, space.square.data());
    const float *product = space.product.data(), *square = space.square.data(), *margin = space.margin.data();
    if (route.full()) {
      k_.pair_products(c.whitened, count, whitened_stride(), depth_, 0, nullptr, a0, a1, space.product.data());
      k_.pair_spread(c.error, count, 1, a0, a1, space.error.data());
      return k_.pair_leverages(pairs, product, square, margin, space.error.data(), scale_, h);
    }
    const Directions& v = *route.directions;
    k_.pair_products(c.rows, count, stride(route), depth_, v.count, v.sign.data(), a0, a1, space.product.data());
    PairScale scale = scale_;
    scale.factor = v.rest * (1 + rounding_) * (1 + 1e-6);
    return k_.pair_leverages_screened(pairs, product, square, margin, scale, h);
  }

  const PairScale& scale() const { return scale_; }
  int64_t lanes() const { return lanes_; }

 private:
  const KernelTable& k_;
  const SelectionProblem& p_;
  const Bfloat16Pass& products_;
  int64_t d_, lanes_, depth_;
  std::vector<float> packed_, reward_, plus_;
  double rounding_, sums_ = 0, square_up_ = 0, square_tiny_ = 0;
  double error_per_norm_ = 0, error_tiny_ = 0, centring_per_norm_ = 0;
  PairScale scale_;
};

// ---- the pass -------------------------------------------------------------------------------------------------

// Pairs to look at: the pool, or a sample of it whose pair q is pair index[q] of the pool.
struct View {
  Rows pool;
  const int64_t* index;
  const float* known;
  float* leverage_out;
  float* bound;

  View with_rows(int64_t first, int64_t last, std::vector<char>& to) const {
    return {dal::with_rows(pool, first, last, to), index, known, leverage_out, bound};
  }
};

class PairPass {
 public:
  PairPass(const SelectionProblem& p, const Admissible& admissible, const SinglePass& single,
           const Bfloat16Pass& products, double rounding, const Call& call)
      : p_(p),
        call_(call),
        k_(kernels()),
        single_(single),
        products_(products),
        rows_(p, products, rounding),
        envelope_(p, admissible),
        admissible_(admissible),
        known_factor_(p.known_scale * (1 + rounding) * (1 + 1e-12)),
        factor_norm_(frobenius(p.inverse_factor, p.pool.d * p.pool.d) * (1 + 1e-9)),
        spaces_(static_cast<size_t>(call.threads)) {}

  FirstPass run() {
    const Route route = p_.route.empty() ? choose() : named(p_.route);
    FirstPass out;
    out.route = route.name;
    out.directions = route.directions ? route.directions->count : 0;
    out.bound.resize(static_cast<size_t>(p_.pool.n));
    pass({p_.pool, nullptr, p_.known_leverage, p_.leverage_out, out.bound.data()}, route);
    return out;
  }

 private:
  static constexpr int64_t kAgain = 112;  // whole tiles at every level

  struct Again {
    struct Pair {
      int64_t at;
      int32_t category;
      double leverage;
      float margin, norm;
    };
    std::vector<Pair> pairs;
    std::vector<float> rows;
    SinglePass::Space single;
  };

  struct Space {
    PairRows::Space rows;
    PairRows::PairSpace pairs;
    PairRows::Products products;
    Again again;
    std::vector<char> stored;  // of a file
  };

  // Prompts in runs of about chunk_rows completions; one with more than that by itself, shared by all threads.
  void pass(const View& view, const Route& route) {
    const Rows& pool = view.pool;
    const int64_t most = std::max<int64_t>(chunk_rows(pool), 64);
    std::vector<int64_t> begin, large;
    int64_t rows = most;
    for (int64_t p = 0; p < pool.prompts; ++p) {
      const int64_t count = pool.prompt_offsets[p + 1] - pool.prompt_offsets[p];
      if (count > most) {
        large.push_back(p);
        rows = most;  // the next prompt begins a run
        continue;
      }
      if (rows + count > most) {
        begin.push_back(p);
        rows = 0;
      }
      rows += count;
    }
    begin.push_back(pool.prompts);
    constexpr int64_t runs = 4;  // in a chunk: while one is worked on, the next is on its way from memory
    const auto total = static_cast<int64_t>(begin.size()) - 1;
    parallel_for(chunks_of(total, runs), call_, [&](int64_t chunk, int worker) {
      const int64_t last = std::min(total, (chunk + 1) * runs);
      for (int64_t r = chunk * runs; r < last; ++r) {
        const int64_t *at = begin.data() + r, next = r + 1 < last ? pool.prompt_offsets[at[1]] : -1;
        run_of_prompts(view, route, at[0], at[1], most, next, spaces_[static_cast<size_t>(worker)]);
      }
    });
    for (int64_t prompt : large) large_prompt(view, route, prompt);
  }

  // From prompt `first` on, up to `stop` or a prompt with more than `most` completions; the run after this one begins at
  // completion `next`, if that is not negative.
  void run_of_prompts(const View& all, const Route& route, int64_t first, int64_t stop, int64_t most, int64_t next,
                      Space& space) {
    const int64_t* offsets = all.pool.prompt_offsets;
    while (stop > first && offsets[stop] - offsets[stop - 1] > most) --stop;
    const int64_t begin = offsets[first], count = offsets[stop] - begin;
    const View view = all.with_rows(begin, begin + count, space.stored);
    rows_.reserve(route, count, space.rows);
    for (int64_t p = first; p < stop; ++p)
      rows_.centre(view.pool, offsets[p], offsets[p], offsets[p + 1] - offsets[p], route, offsets[p] - begin, space.rows);
    rows_.project(count, route, 0, space.rows, space.products);
    for (int64_t p = first; p < stop; ++p) {
      const int64_t at = offsets[p] - begin, rows = offsets[p + 1] - offsets[p];
      if (next >= 0 && !all.pool.file) fetch(view.pool, next + at, std::min(next + at + rows, offsets[view.pool.prompts]));
      if (rows > 1) pairs(view, route, p, rows_.at(at, route, space.rows), 0, rows - 1, space);
    }
    sharpen_now(view, space.again);
  }

  // Asks for completions begin..end-1 to be brought into the cache.
  static void fetch(const Rows& pool, int64_t begin, int64_t end) {
    if (begin >= end) return;
    for (const char* at = pool.at(begin); at < pool.at(end); at += 64) __builtin_prefetch(at, 0, 2);
  }

  void large_prompt(const View& all, const Route& route, int64_t prompt) {
    constexpr int64_t per_chunk = 64;  // whole vectors at every level
    const int64_t first = all.pool.prompt_offsets[prompt], count = all.pool.prompt_offsets[prompt + 1] - first;
    std::vector<char> stored;
    const View view = all.with_rows(first, first + count, stored);
    PairRows::Space rows;
    rows_.reserve(route, count, rows);
    parallel_for(chunks_of(count, per_chunk), call_, [&](int64_t chunk, int worker) {
      const int64_t at = chunk * per_chunk, many = std::min(per_chunk, count - at);
      rows_.centre(view.pool, first, first + at, many, route, at, rows);
      rows_.project(many, route, at, rows, spaces_[static_cast<size_t>(worker)].products);
    });
    const Centred centred = rows_.at(0, route, rows);
    const int64_t step = std::max<int64_t>(4, (1 << 15) / count / 4 * 4);
    parallel_for(chunks_of(count - 1, step), call_, [&](int64_t chunk, int worker) {
      Space& space = spaces_[static_cast<size_t>(worker)];
      pairs(view, route, prompt, centred, chunk * step, std::min(count - 1, (chunk + 1) * step), space);
      sharpen_now(view, space.again);
    });
  }

  // The bounds of the pairs a0 <= a < a1, a < b, of one prompt.
  void pairs(const View& view, const Route& route, int64_t prompt, const Centred& centred, int64_t a0, int64_t a1,
             Space& all) {
    PairRows::PairSpace& space = all.pairs;
    const int64_t row = view.pool.prompt_offsets[prompt], count = view.pool.prompt_offsets[prompt + 1] - row;
    const int64_t begin = view.pool.pair_offsets[prompt] + pairs_before(a0, count);
    const int64_t many = pairs_before(a1, count) - pairs_before(a0, count);
    const bool special = rows_.leverages(centred, count, route, a0, a1, space);
    double* h = space.leverage.data();
    if (view.known) k_.known_leverages(many, view.known + begin, known_factor_, h);
    if (special) {
      int64_t q = 0;
      for (int64_t a = a0; a < a1; ++a)
        for (int64_t b = a + 1; b < count; ++b, ++q)
          if (h[q] == kInfinity || space.margin.data()[q] == 0)
            if (rows_.equal(view.pool, row + a, row + b)) h[q] = 0;
    }
    if (view.leverage_out) k_.leverages_up(many, h, view.leverage_out + begin);
    const double largest = weigh(view, view.pool.category[prompt], begin, many, space);
    if (largest >= reach_ && reach_ < kInfinity) sharpen(view, route, view.pool.category[prompt], centred, count, a0, a1, begin, all);
  }

  // Bounds from the leverages and margins; returns the largest, or one above it.
  double weigh(const View& view, int32_t category, int64_t begin, int64_t many, PairRows::PairSpace& space) const {
    float* bound = view.bound + begin;
    double largest = -1;
    const double* h = space.leverage.data();
    const auto conversation = [&](int64_t q) { return view.index ? view.index[begin + q] : begin + q; };
    if (envelope_.tabled()) {
      largest = k_.pair_weights(many, h, space.margin.data(), space.norm.data(), rows_.scale(), envelope_.steps(category), bound);
      for (int64_t q = 0; p_.blocked && q < many; ++q)
        if (!admissible_.open(conversation(q))) bound[q] = -1;
      return largest;
    }
    for (int64_t q = 0; q < many; ++q) {
      bound[q] = above(value(conversation(q), category, h[q], space.margin.data()[q], space.norm.data()[q]));
      largest = std::max<double>(largest, bound[q]);
    }
    return largest;
  }

  // ---- pairs that may win ---------------------------------------------------------------------------------------

  // Pairs whose bound reaches `reach_` are bounded again by the full product of their difference, a whole tile at a
  // time, while their rows are at hand.
  void sharpen(const View& view, const Route& route, int32_t category, const Centred& centred, int64_t count, int64_t a0,
               int64_t a1, int64_t begin, Space& space) {
    const float* bound = view.bound + begin;
    const int64_t d = p_.pool.d, stride = rows_.stride(route);
    int64_t q = 0;
    for (int64_t a = a0; a < a1; ++a)
      for (int64_t b = a + 1; b < count; ++b, ++q) {
        if (!(bound[q] >= reach_)) continue;
        Again& again = space.again;
        again.rows.resize(static_cast<size_t>(kAgain * d));
        const auto at = static_cast<int64_t>(again.pairs.size());
        float* x = again.rows.data() + at * d;
        const float *from = centred.rows + a * stride, *to = centred.rows + b * stride;
        for (int64_t j = 0; j < d; ++j) x[j] = to[j] - from[j];
        again.pairs.push_back({begin + q, category, space.pairs.leverage[static_cast<size_t>(q)],
                               space.pairs.margin.data()[q], space.pairs.norm.data()[q]});
        if (at + 1 == kAgain) sharpen_now(view, again);
      }
  }

  void sharpen_now(const View& view, Again& again) const {
    const auto count = static_cast<int64_t>(again.pairs.size());
    double square[kAgain], h[kAgain];
    for (int64_t q = 0; q < count; ++q) {
      const double n = again.pairs[static_cast<size_t>(q)].norm;
      square[q] = n * n * (1 + 1e-6);
    }
    again.single.reserve(p_.pool, kAgain);
    single_.leverages(again.rows.data(), count, square, again.single, h);
    for (int64_t q = 0; q < count; ++q) {
      const Again::Pair& pair = again.pairs[static_cast<size_t>(q)];
      const double root = std::sqrt(h[q]) + 4 * kUnit * factor_norm_ * pair.norm, product = root * root * (1 + 1e-12);
      if (!(product < pair.leverage)) continue;
      if (view.leverage_out) k_.leverages_up(1, &product, view.leverage_out + pair.at);
      const int64_t conversation = view.index ? view.index[pair.at] : pair.at;
      view.bound[pair.at] = above(value(conversation, pair.category, product, pair.margin, pair.norm));
    }
    again.pairs.clear();
  }

  // The bound of one pair, as pair_weights has it.
  double value(int64_t conversation, int32_t category, double h, double margin, double norm) const {
    const PairScale& s = rows_.scale();
    const double u = std::fabs(margin) * s.margin_scale - norm * s.margin_error - s.optimism * std::sqrt(h);
    const double w = envelope_(conversation, category, u > 0 ? u : 0);
    return w < 0 ? -1 : w == 0 || h == 0 ? 0 : w * h * (1 + 1e-11);
  }

  // ---- the route ------------------------------------------------------------------------------------------------

  // Up to 16 neighbouring completions of prompts at equal distances among the conversations, as a pool of their own.
  struct Sample {
    std::vector<char> rows;
    std::vector<int64_t> prompt_offsets{0}, pair_offsets{0}, index;
    std::vector<int32_t> category;
    std::vector<float> known;
  };

  Sample sample() const {
    constexpr int64_t most = 16;
    const Rows& pool = p_.pool;
    const int64_t room = std::clamp<int64_t>((1 << 21) / pool.d, 256, 8192);
    const int64_t typical = std::clamp<int64_t>(2 * pool.n / pool.prompt_offsets[pool.prompts] + 1, 2, most);
    const int64_t step = std::max<int64_t>(1, pool.n / (room / typical));
    Sample s;
    std::vector<char> stored;  // of a file
    int64_t taken = 0;         // completions before this one
    for (int64_t i = step / 2; i < pool.n && s.prompt_offsets.back() + most <= room; i += step) {
      const int64_t prompt = pool.prompt_of(i), first = pool.prompt_offsets[prompt], end = pool.prompt_offsets[prompt + 1];
      int64_t from = first;
      each_pair(pool, i, i + 1, [&](int64_t, int64_t, int64_t a, int64_t) { from = std::max(first, std::min(a, end - most)); });
      if (from < taken) continue;
      taken = std::min(end, from + most);
      const Rows held = with_rows(pool, from, taken, stored);
      s.rows.insert(s.rows.end(), held.at(from), held.at(taken));
      s.category.push_back(pool.category[prompt]);
      s.prompt_offsets.push_back(s.prompt_offsets.back() + taken - from);
      for (int64_t a = from; a < taken; ++a)
        for (int64_t b = a + 1; b < taken; ++b)
          s.index.push_back(pool.pair_offsets[prompt] + pairs_before(a - first, end - first) + b - a - 1);
      s.pair_offsets.push_back(static_cast<int64_t>(s.index.size()));
    }
    for (int64_t i : s.index)
      if (p_.known_leverage) s.known.push_back(p_.known_leverage[i]);
    return s;
  }

  bool solve_spectrum() {
    const Spectrum spectrum = p_.spectrum();
    for (int64_t count : {16, 32}) screens_.push_back(rows_.directions(spectrum, count));
    return screens_[0].count > 0;
  }

  Route named(const std::string& name) {
    if (name == "bfloat16" && products_.usable()) return {"bfloat16", nullptr};
    if (name == "warm" && p_.known_leverage) return {"warm", nullptr};
    if (name == "screened" && p_.spectrum && solve_spectrum()) return {"screened", &screens_[0]};
    return {"full", nullptr};
  }

  // Judged on the sample: the full product tells what the batch will reach, the bounds of each route how many pairs it
  // leaves to look at again. Costs are multiply-adds of the whole pool; kRead is what reading one number costs.
  Route choose() {
    const Route full{"full", nullptr};
    if (p_.pool.n == 0 || (!p_.spectrum && !p_.known_leverage && !products_.usable())) return full;
    Sample s = sample();
    Rows pool = p_.pool;
    pool.rows = s.rows.data();
    pool.file = nullptr;
    pool.n = static_cast<int64_t>(s.index.size());
    pool.prompts = static_cast<int64_t>(s.category.size());
    pool.prompt_offsets = s.prompt_offsets.data();
    pool.pair_offsets = s.pair_offsets.data();
    pool.category = s.category.data();
    std::vector<float> bound(s.index.size());
    const View view{pool, s.index.data(), p_.known_leverage ? s.known.data() : nullptr, nullptr, bound.data()};
    pass(view, full);
    std::vector<float> sorted = bound;
    const auto sampled = static_cast<double>(sorted.size()), n = static_cast<double>(p_.pool.n);
    const double wanted = std::ceil(sampled * 2 * static_cast<double>(p_.size) / n);
    const auto rank = static_cast<int64_t>(std::clamp(wanted, 1.0, sampled)) - 1;
    std::nth_element(sorted.begin(), sorted.begin() + rank, sorted.end(), std::greater<>());
    const double reach = sorted[static_cast<size_t>(rank)];

    constexpr double kRead = 30, kAgainCost = 2, kProductSpeed = 8, kDirection = 1.6;
    const double d = static_cast<double>(p_.pool.d), rows = static_cast<double>(p_.pool.prompt_offsets[p_.pool.prompts]);
    Route best = full;
    double cheapest = rows * d * (kRead + d / 2) + n * 1.5 * d;
    const auto offer = [&](const Route& route, double cost) {
      if (cost >= cheapest) return;
      pass(view, route);
      const auto left = static_cast<double>(std::count_if(bound.begin(), bound.end(), [&](float b) { return b >= reach; }));
      // A pair that is left is bounded again in the pass, and most of these are looked at by the engine after it.
      const double added = static_cast<double>(std::min<int64_t>(p_.size, 512));
      cost += left / sampled * n * (kAgainCost * (d * d / 2 + kRead * d) + 12 * (2 * kRead + added) * d);
      if (cost >= cheapest) return;
      cheapest = cost;
      best = route;
    };
    if (products_.usable()) offer({"bfloat16", nullptr}, rows * d * (kRead + 4 + d / 2 / kProductSpeed) + n * 1.5 * d);
    if (p_.known_leverage) offer({"warm", nullptr}, rows * d * kRead + n * 30);
    // An eigensolve takes about 25 d^3, on one thread; not asked for where it could not pay.
    const double screened = rows * d * (kRead + 16 * kDirection) + n * 1.5 * d;
    if (p_.spectrum && screened + 25 * d * d * d < cheapest && solve_spectrum())
      for (const Directions& v : screens_)
        if (v.count > 0) offer({"screened", &v}, rows * d * (kRead + kDirection * static_cast<double>(v.count)) + n * 1.5 * d);
    if (!best.full() || best.bfloat16()) reach_ = reach;
    return best;
  }

  const SelectionProblem& p_;
  const Call& call_;
  const KernelTable& k_;
  const SinglePass& single_;
  const Bfloat16Pass& products_;
  PairRows rows_;
  Envelope envelope_;
  const Admissible& admissible_;
  std::vector<Directions> screens_;
  double known_factor_, factor_norm_;
  double reach_ = kInfinity;  // bounds from here on are sharpened
  std::vector<Space> spaces_;
};

}  // namespace

FirstPass pair_pass(const SelectionProblem& problem, const Admissible& admissible, const SinglePass& single,
                    const Bfloat16Pass& products, double rounding, const Call& call) {
  return PairPass(problem, admissible, single, products, rounding, call).run();
}

}  // namespace dal
