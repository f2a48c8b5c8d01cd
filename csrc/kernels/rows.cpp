// Passes that read each row of the pool once: conversion, finiteness, margins, Sherman-Morrison updates.
//
// Layout: rows (n, d) row-major and contiguous, stored as f64, f32, f16 or bf16. Accumulators are float64 whatever
// is stored: these passes are bound by memory, so the wider sum is free, and its rounding error stays far below
// every other term of the certified bounds. No argument may overlap an output.
#include "kernels/level.hpp"
#include "kernels/simd.hpp"

namespace dal {
namespace DAL_LEVEL {
namespace {

template <class T, class S>
void convert(const S* from, int64_t count, T* to) {
  constexpr int L = kLanes<T>;
  int64_t k = 0;
  for (; k + L <= count; k += L) {
    const Full<T> v = load<T, L>(from + k);
    memcpy(to + k, &v, sizeof(v));
  }
  for (; k < count; ++k) to[k] = static_cast<T>(widen(from[k]));
}

// Non-finite values have an all-ones exponent: one integer test, no floating-point comparison that NaN could pass.
inline bool nonfinite(double x) { return (bits_as<uint64_t>(x) >> 52 & 0x7ffu) == 0x7ffu; }
inline bool nonfinite(float x) { return (bits_as<uint32_t>(x) >> 23 & 0xffu) == 0xffu; }
inline bool nonfinite(Half x) { return (x.bits >> 10 & 0x1fu) == 0x1fu; }
inline bool nonfinite(Brain x) { return (x.bits >> 7 & 0xffu) == 0xffu; }

template <class S>
int64_t first_nonfinite_typed(const S* rows, int64_t n, int64_t d) {
  for (int64_t i = 0; i < n; ++i) {
    const S* x = rows + i * d;
    unsigned bad = 0;
    for (int64_t k = 0; k < d; ++k) bad |= nonfinite(x[k]) ? 1u : 0u;
    if (bad) return i;
  }
  return -1;
}

// u_i = x_i' theta and, where asked for, |x_i|^2. What comes a little later is asked for in time: the processor by itself
// looks ahead no further than the end of a page.
template <bool Square, class S>
void margin_typed(const S* rows, int64_t n, int64_t d, const double* reward, double* margin, double* square) {
  constexpr int L = kLanes<double>;
  constexpr int64_t kAhead = 2048;  // bytes
  for (int64_t i = 0; i < n; ++i) {
    const S* x = rows + i * d;
    Full<double> u[4] = {}, q[4] = {};
    int64_t k = 0;
    for (; k + 4 * L <= d; k += 4 * L) {
      constexpr int64_t kBytes = 4 * L * static_cast<int64_t>(sizeof(S));
      for (int64_t line = 0; line < kBytes; line += 64)
        __builtin_prefetch(reinterpret_cast<const char*>(x + k) + kAhead + line);
      for (int j = 0; j < 4; ++j) {
        const Full<double> v = load<double, L>(x + k + j * L);
        u[j] += v * load_raw<Full<double>>(reward + k + j * L);
        if constexpr (Square) q[j] += v * v;
      }
    }
    for (; k + L <= d; k += L) {
      const Full<double> v = load<double, L>(x + k);
      u[0] += v * load_raw<Full<double>>(reward + k);
      if constexpr (Square) q[0] += v * v;
    }
    double total = sum_lanes((u[0] + u[1]) + (u[2] + u[3]));
    double norm = sum_lanes((q[0] + q[1]) + (q[2] + q[3]));
    for (; k < d; ++k) {
      const double v = widen(x[k]);
      total += v * reward[k];
      norm += v * v;
    }
    margin[i] = total;
    if constexpr (Square) square[i] = norm;
  }
}

// The same in single precision, as fast as rows arrive: two of them side by side, and what comes asked for in time.
template <int Rows, class S>
inline void margin_float_rows(const S* rows, int64_t d, const float* reward, float* margin, float* square) {
  constexpr int L = kLanes<float>;
  constexpr int64_t kAhead = 2048;  // bytes
  Full<float> u[Rows][2] = {}, q[Rows][2] = {};
  int64_t k = 0;
  for (; k + 2 * L <= d; k += 2 * L)
    for (int j = 0; j < 2; ++j) {
      const Full<float> theta = load_raw<Full<float>>(reward + k + j * L);
      for (int r = 0; r < Rows; ++r) {
        const S* x = rows + r * d + k + j * L;
        __builtin_prefetch(reinterpret_cast<const char*>(x) + (Rows - 1) * d * static_cast<int64_t>(sizeof(S)) + kAhead);
        const Full<float> v = load<float, L>(x);
        u[r][j] += v * theta;
        q[r][j] += v * v;
      }
    }
  for (int r = 0; r < Rows; ++r) {
    float total = sum_lanes(u[r][0] + u[r][1]), norm = sum_lanes(q[r][0] + q[r][1]);
    for (int64_t j = k; j < d; ++j) {
      const auto v = static_cast<float>(widen(rows[r * d + j]));
      total += v * reward[j];
      norm += v * v;
    }
    margin[r] = total;
    square[r] = norm;
  }
}

// h - a c^2, in the order that overflows last
inline double after_update(double h, double coefficient, double c) { return h - (coefficient * c) * c; }

}  // namespace

void to_double(const void* from, Storage storage, int64_t count, double* to) {
  visit(from, storage, [&](auto* p) { convert<double>(p, count, to); });
}

void to_float(const void* from, Storage storage, int64_t count, float* to) {
  visit(from, storage, [&](auto* p) { convert<float>(p, count, to); });
}

int64_t first_nonfinite(const void* rows, Storage storage, int64_t n, int64_t d) {
  return visit(rows, storage, [&](auto* p) { return first_nonfinite_typed(p, n, d); });
}

void margin(const void* rows, Storage storage, int64_t n, int64_t d, const double* reward, double* out,
            double* square) {
  visit(rows, storage, [&](auto* p) {
    square ? margin_typed<true>(p, n, d, reward, out, square) : margin_typed<false>(p, n, d, reward, out, square);
  });
}

void margin_float(const void* rows, Storage storage, int64_t n, int64_t d, const float* reward, float* out,
                  float* square) {
  visit(rows, storage, [&](auto* p) {
    int64_t i = 0;
    for (; i + 2 <= n; i += 2) margin_float_rows<2>(p + i * d, d, reward, out + i, square + i);
    if (i < n) margin_float_rows<1>(p + i * d, d, reward, out + i, square + i);
  });
}

// (M + w x x')^-1 = M^-1 - a v v', v = M^-1 x, a = w / (1 + w h)  =>  h_i -= a (x_i'v)^2
// In the order (a c) c: c^2 alone overflows long before h does.
void update_leverage(const void* rows, Storage storage, int64_t n, int64_t d, const double* direction,
                     double coefficient, double* leverage) {
  visit(rows, storage, [&](auto* p) {
    for (int64_t i = 0; i < n; ++i) {
      const double c = dot(p + i * d, direction, d);
      const double h = after_update(leverage[i], coefficient, c);
      leverage[i] = h > 0 ? h : 0;
    }
  });
}

double plain_dot(const double* x, const double* y, int64_t d) { return dot(x, y, d); }

double downdated(const double* x, int64_t d, const double* directions, const double* coefficients, int64_t count,
                 double h) {
  for (int64_t s = 0; s < count; ++s) h = after_update(h, coefficients[s], dot(x, directions + s * d, d));
  return h > 0 ? h : 0;
}

// Four rows at a time, so that a direction is read from the cache once for all four.
void downdated_rows(const double* rows, int64_t n, int64_t d, const double* directions, const double* coefficients,
                    int64_t count, double* h) {
  constexpr int L = kLanes<double>;
  int64_t i = 0;
  for (; i + 4 <= n; i += 4) {
    const double* x = rows + i * d;
    for (int64_t s = 0; s < count; ++s) {
      const double* v = directions + s * d;
      Full<double> sum[4][2] = {};
      int64_t k = 0;
      for (; k + 2 * L <= d; k += 2 * L) {
        const Full<double> v0 = load_raw<Full<double>>(v + k), v1 = load_raw<Full<double>>(v + k + L);
        for (int r = 0; r < 4; ++r) {
          sum[r][0] += load_raw<Full<double>>(x + r * d + k) * v0;
          sum[r][1] += load_raw<Full<double>>(x + r * d + k + L) * v1;
        }
      }
      for (int r = 0; r < 4; ++r) {
        double c = sum_lanes(sum[r][0] + sum[r][1]);
        for (int64_t q = k; q < d; ++q) c += x[r * d + q] * v[q];
        h[i + r] = after_update(h[i + r], coefficients[s], c);
      }
    }
    for (int r = 0; r < 4; ++r) h[i + r] = h[i + r] > 0 ? h[i + r] : 0;
  }
  for (; i < n; ++i) h[i] = downdated(rows + i * d, d, directions, coefficients, count, h[i]);
}

}  // namespace DAL_LEVEL
}  // namespace dal
