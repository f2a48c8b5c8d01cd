// The pairs of one prompt's completions, from its centred rows; operations/pair_pass.cpp has the error terms.
//
// Rows are float, `stride` apart, zero up to whole vectors. Sums over the depth run along it: every lane adds its own
// products, the lanes are added at the end, so a sum of d products has d / lanes + log2(lanes) roundings in a row.
// Pairs a < b are in the order (a, b). Outputs of pairs and inputs per row may be written and read up to one vector past
// their end. No argument may overlap an output.
#include "kernels/level.hpp"
#include "kernels/simd.hpp"
#include "kernels/tile.hpp"

namespace dal {
namespace DAL_LEVEL {
namespace {

constexpr int L = kLanes<float>;
constexpr int D = kLanes<double>;

// A tile of inner products or distances: kLeft rows times kRight rows, one accumulator each.
#if defined(DAL_LEVEL_AVX512)
constexpr int kLeft = 4, kRight = 4;
#else
constexpr int kLeft = 2, kRight = 4;
#endif

template <int... I>
struct Indices {};
template <int N, int... I>
struct Count : Count<N - 1, N - 1, I...> {};
template <int... I>
struct Count<0, I...> {
  using type = Indices<I...>;
};

// Lane t of the result is lane Pick::at(t) of the 2 L lanes of a and b.
template <class Pick, int... I>
inline Full<float> shuffled(Full<float> a, Full<float> b, Indices<I...>) {
#if defined(__clang__)
  return __builtin_shufflevector(a, b, Pick::at(I)...);
#else
  return __builtin_shuffle(a, b, Full<int32_t>{Pick::at(I)...});
#endif
}

// From groups of `Group` lanes in a and b, one half of each group: of a, then of b.
template <int Group, bool Upper>
struct Halves {
  static constexpr int at(int t) {
    const int within = t % Group, half = Group / 2;
    return t - within + (Upper ? half : 0) + (within < half ? within : L + within - half);
  }
};

// v[0][t] = the sum of the lanes of v[t], t < L: groups of lanes are halved until each is one lane.
template <int Group = L>
inline void add_lanes(Full<float>* v) {
  if constexpr (Group > 1) {
    using All = typename Count<L>::type;
#pragma GCC unroll 16
    for (int t = 0; t < Group / 2; ++t)
      v[t] = shuffled<Halves<Group, false>>(v[t], v[t + Group / 2], All{}) +
             shuffled<Halves<Group, true>>(v[t], v[t + Group / 2], All{});
    add_lanes<Group / 2>(v);
  }
}

template <class T>
inline void store(T* to, Full<T> v) {
  memcpy(to, &v, sizeof(v));
}

// The sums of the lanes of a tile's accumulators, in the order (left, right).
inline void store_sums(Full<float> (&sum)[kLeft * kRight], float (&out)[kLeft * kRight]) {
  static_assert(kLeft * kRight % L == 0);
#pragma GCC unroll 4
  for (int t = 0; t < kLeft * kRight; t += L) {
    add_lanes(sum + t);
    store(out + t, sum[t]);
  }
}

// ---- rows -----------------------------------------------------------------------------------------------------

// Lanes of x - centre as float: from double one rounding of the difference and one of the conversion.
template <class S>
inline Full<float> difference(const S* x, const S* centre) {
  if constexpr (__is_same(S, double)) {
    return __builtin_convertvector(load_raw<Vector<double, L>>(x) - load_raw<Vector<double, L>>(centre), Full<float>);
  } else {
    return load<float, L>(x) - load<float, L>(centre);
  }
}

template <class S>
void centre_typed(const S* rows, const S* centre, int64_t n, int64_t d, const float* direction, int64_t stride,
                  float* out, float* margin, float* square) {
  Full<float> u[L], s[L];
  for (int64_t i = 0; i < n; i += L) {
    for (int64_t r = 0; r < L; ++r) {
      u[r] = s[r] = Full<float>{};
      if (i + r >= n) continue;
      const S* x = rows + (i + r) * d;
      float* to = out + (i + r) * stride;
      int64_t k = 0;
      for (; k + L <= d; k += L) {
        const Full<float> v = difference(x + k, centre + k);
        store(to + k, v);
        u[r] += v * load_raw<Full<float>>(direction + k);
        s[r] += v * v;
      }
      if (k < d) {
        S last[L] = {}, middle[L] = {};
        for (int64_t q = k; q < d; ++q) {
          last[q - k] = x[q];
          middle[q - k] = centre[q];
        }
        const Full<float> v = difference<S>(last, middle);
        store(to + k, v);
        u[r] += v * load_raw<Full<float>>(direction + k);
        s[r] += v * v;
      }
    }
    add_lanes(u);
    add_lanes(s);
    store(margin + i, u[0]);
    store(square + i, s[0]);
  }
}

}  // namespace

int64_t float_lanes() { return L; }

void centre(const void* rows, const void* middle, Storage storage, int64_t n, int64_t d, const float* direction,
            int64_t stride, float* out, float* margin, float* square) {
  visit(rows, storage, [&](auto* x) {
    centre_typed(x, static_cast<decltype(x)>(middle), n, d, direction, stride, out, margin, square);
  });
}

// out[i][c] = x_i' v_c
void project(const float* rows, int64_t n, int64_t stride, int64_t depth, const float* directions, int64_t columns,
             float* out) {
  for (int64_t i = 0; i < n; i += kLeft)
    for (int64_t c = 0; c < columns; c += kRight) {
      const float *x[kLeft], *v[kRight];
      for (int64_t r = 0; r < kLeft; ++r) x[r] = rows + (i + r < n ? i + r : n - 1) * stride;
      for (int64_t r = 0; r < kRight; ++r) v[r] = directions + (c + r) * depth;
      Full<float> sum[kLeft * kRight] = {};
      for (int64_t k = 0; k < depth; k += L) {
        Full<float> left[kLeft];
#pragma GCC unroll 4
        for (int r = 0; r < kLeft; ++r) left[r] = load_raw<Full<float>>(x[r] + k);
#pragma GCC unroll 4
        for (int q = 0; q < kRight; ++q) {
          const Full<float> right = load_raw<Full<float>>(v[q] + k);
#pragma GCC unroll 4
          for (int r = 0; r < kLeft; ++r) sum[r * kRight + q] += left[r] * right;
        }
      }
      float p[kLeft * kRight];
      store_sums(sum, p);
      for (int64_t r = 0; r < kLeft && i + r < n; ++r) memcpy(out + (i + r) * stride + c, p + r * kRight, kRight * 4);
    }
}

// out_i = W x_i, by the packed factor of leverage.cpp; out[i] is written up to whole panels.
void whiten(const float* rows, int64_t n, int64_t stride, int64_t d, const float* packed, int64_t out_stride,
            float* out) {
  constexpr int64_t columns = kTileColumns<float>;
  for (int64_t k0 = 0; k0 < d; k0 += columns) {
    const int64_t depth = k0 + columns < d ? k0 + columns : d;
    for (int64_t i = 0; i < n; i += kTileRows) {
      const float* left[kTileRows];
      for (int64_t r = 0; r < kTileRows; ++r) left[r] = rows + (i + r < n ? i + r : n - 1) * stride;
      Tile<float, 2> y;
      multiply_tile<2>(left, 1, packed, depth, y);
      for (int64_t r = 0; r < kTileRows && i + r < n; ++r) {
        store(out + (i + r) * out_stride + k0, y[r][0]);
        store(out + (i + r) * out_stride + k0 + L, y[r][1]);
      }
    }
    packed += depth * columns;
  }
}

// ---- pairs ----------------------------------------------------------------------------------------------------

namespace {

// x_a' x_b + sum_c sign_c (p_a)_c (p_b)_c for a tile of pairs; p follows x in each row.
inline void products(const float* const (&a)[kLeft], const float* const (&b)[kRight], int64_t plain, int64_t columns,
                     const float* sign, float (&out)[kLeft * kRight]) {
  Full<float> sum[kLeft * kRight] = {};
  const auto add = [&](int64_t k, Full<float> (&left)[kLeft]) {
#pragma GCC unroll 4
    for (int q = 0; q < kRight; ++q) {
      const Full<float> right = load_raw<Full<float>>(b[q] + k);
#pragma GCC unroll 4
      for (int r = 0; r < kLeft; ++r) sum[r * kRight + q] += left[r] * right;
    }
  };
  Full<float> left[kLeft];
  for (int64_t k = 0; k < plain; k += L) {
#pragma GCC unroll 4
    for (int r = 0; r < kLeft; ++r) left[r] = load_raw<Full<float>>(a[r] + k);
    add(k, left);
  }
  for (int64_t k = 0; k < columns; k += L) {
#pragma GCC unroll 4
    for (int r = 0; r < kLeft; ++r) left[r] = load_raw<Full<float>>(a[r] + plain + k) * load_raw<Full<float>>(sign + k);
    add(plain + k, left);
  }
  store_sums(sum, out);
}

}  // namespace

// signed_out[i] = before[i] + sum_c sign_c x_ic^2 and the same without signs; whole vectors of both are written.
void row_squares(const float* rows, int64_t n, int64_t stride, int64_t columns, const float* sign, const float* before,
                 float* signed_out, float* out) {
  Full<float> s[L], t[L];
  for (int64_t i = 0; i < n; i += L) {
    for (int64_t r = 0; r < L; ++r) {
      s[r] = t[r] = Full<float>{};
      for (int64_t k = 0; i + r < n && k < columns; k += L) {
        const Full<float> x = load_raw<Full<float>>(rows + (i + r) * stride + k), square = x * x;
        s[r] += square * load_raw<Full<float>>(sign + k);
        t[r] += square;
      }
    }
    add_lanes(s);
    add_lanes(t);
    store(signed_out + i, load_raw<Full<float>>(before + i) + s[0]);
    store(out + i, load_raw<Full<float>>(before + i) + t[0]);
  }
}

void pair_products(const float* rows, int64_t count, int64_t stride, int64_t plain, int64_t columns, const float* sign,
                   int64_t a0, int64_t a1, float* out) {
  // Rows b in blocks that stay in the first cache while all a pass by them.
  const int64_t block = 8192 / stride > kRight ? 8192 / stride / kRight * kRight : kRight;
  for (int64_t b0 = a0 + 1; b0 < count; b0 += block) {
    const int64_t b1 = b0 + block < count ? b0 + block : count;
    const int64_t last = a1 < b1 - 1 ? a1 : b1 - 1;
    for (int64_t a = a0; a < last; a += kLeft) {
      const float* left[kLeft];
      for (int64_t r = 0; r < kLeft; ++r) left[r] = rows + (a + r < last ? a + r : last - 1) * stride;
      for (int64_t b = b0 > a ? b0 : a + 1; b < b1; b += kRight) {
        const float* right[kRight];
        for (int64_t q = 0; q < kRight; ++q) right[q] = rows + (b + q < b1 ? b + q : b1 - 1) * stride;
        float sum[kLeft * kRight];
        products(left, right, plain, columns, sign, sum);
        for (int64_t r = 0; r < kLeft && a + r < last; ++r) {
          // Rows a0 to row - 1 have (row - a0) (count - 1) - (a0 + ... + (row - 1)) pairs.
          const int64_t row = a + r;
          float* to = out + (row - a0) * (count - 1) - (row * (row - 1) - a0 * (a0 - 1)) / 2 + b - row - 1;
          if (b > row && b + kRight <= b1) {
            memcpy(to, sum + r * kRight, sizeof(float) * kRight);
          } else {
            for (int64_t q = b > row ? 0 : row + 1 - b; q < kRight && b + q < b1; ++q) to[q] = sum[r * kRight + q];
          }
        }
      }
    }
  }
}

void pair_spread(const float* value, int64_t count, float sign, int64_t a0, int64_t a1, float* out) {
  // Whole vectors: what is written past the pairs of one a belongs to the next and is written again.
  for (int64_t a = a0; a < a1; ++a) {
    const Full<float> first = sign * value[a] - Full<float>{};
    for (int64_t b = a + 1; b < count; b += L) store(out + (b - a - 1), load_raw<Full<float>>(value + b) + first);
    out += count - 1 - a;
  }
}

bool pair_leverages(int64_t count, const float* product, const float* square, const float* margin, const float* error,
                    const PairScale& s, double* leverage) {
  const double unscale = s.unscale, factor = s.factor;
  int64_t special = 0;
  for (int64_t q = 0; q < count; ++q) {
    const float f = square[q] - 2 * product[q];
    const double root = static_cast<double>(__builtin_sqrtf(f > 0 ? f : 0) + error[q]) * unscale;
    const double h = root * root * factor;
    leverage[q] = f - f == 0 && h < __builtin_inf() ? h : __builtin_inf();  // NaN as well
    special += margin[q] == 0 || !(leverage[q] < __builtin_inf());
  }
  return special > 0;
}

bool pair_leverages_screened(int64_t count, const float* product, const float* square, const float* margin,
                             const PairScale& s, double* leverage) {
  const double factor = s.factor;
  int64_t special = 0;
  for (int64_t q = 0; q < count; ++q) {
    const double f = square[q] - 2 * product[q], h = f * factor;
    leverage[q] = h < __builtin_inf() ? (h > 0 ? h : 0) : __builtin_inf();  // NaN as well
    special += margin[q] == 0 || !(h < __builtin_inf());
  }
  return special > 0;
}

void known_leverages(int64_t count, const float* known, double factor, double* leverage) {
  for (int64_t q = 0; q < count; ++q) {
    const double h = static_cast<double>(known[q]) * factor;
    leverage[q] = h < leverage[q] ? h : leverage[q];
  }
}

void leverages_up(int64_t count, const double* leverage, float* out) {
  for (int64_t q = 0; q < count; ++q) {
    const float h = static_cast<float>(leverage[q]) * (1 + 0x1p-22f), least = leverage[q] > 0 ? 0x1p-126f : 0.0f;
    out[q] = h > least ? h : least;
  }
}

double pair_weights(int64_t count, const double* leverage, const float* margin, const float* norm, const PairScale& s,
                  const WeightSteps& steps, float* bound) {
  const double scale = s.margin_scale, error = s.margin_error, optimism = s.optimism, top = steps.top;
  using V = Full<double>;
  using F = Vector<float, D>;
  const V none = {};
  const F none_float = {};
  F most = none_float - 1;
  for (int64_t q = 0; q < count; q += D) {
    const V h = load_raw<V>(leverage + q), m = load<double, D>(margin + q), n = load<double, D>(norm + q);
    V u = (m < none ? -m : m) * scale - n * error;
    if (optimism > 0)
      for (int k = 0; k < D; ++k) u[k] -= optimism * __builtin_sqrt(h[k]);
    const V t = u > none ? u * top : none;  // NaN as well
    auto step = bits_as<Full<int64_t>>(bits_as<Full<uint64_t>>(t) >> steps.shift) - steps.first;
    step = step < 0 ? 0 & step : step;
    V w;
    for (int k = 0; k < D; ++k) w[k] = steps.weight[step[k] < steps.last ? step[k] : steps.last];
    const V value = (w == none) | (h == none) ? none : w * h * (1 + 1e-11);
    // The float above; subnormals may be flushed.
    const F up = __builtin_convertvector(value, F) * (1 + 0x1p-22f), least = __builtin_convertvector(value > none ? none + 0x1p-126 : none, F);
    F out = up > least ? up : least;
    out = __builtin_convertvector(w < none, Vector<int32_t, D>) ? none_float - 1 : out;
    if (q + D <= count) {
      memcpy(bound + q, &out, sizeof(out));
      most = out > most ? out : most;
      continue;
    }
    for (int64_t k = 0; q + k < count; ++k) {
      bound[q + k] = out[k];
      most[k] = out[k] > most[k] ? out[k] : most[k];
    }
  }
  double largest = -1;
  for (int k = 0; k < D; ++k) largest = most[k] > largest ? most[k] : largest;
  return largest;
}

}  // namespace DAL_LEVEL
}  // namespace dal
