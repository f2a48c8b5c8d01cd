// Vectors of the level this file is compiled for, and loads that convert from what is stored.
// Included by csrc/kernels/*.cpp only; everything is internal to the including object file.
#pragma once

#include <cstdint>
#include <cstring>
#if defined(__F16C__)
#include <immintrin.h>
#endif

#include "kernels/table.hpp"

#if !defined(DAL_LEVEL)
#error "compile with -DDAL_LEVEL=generic|avx2|avx512"
#endif

namespace dal {
namespace DAL_LEVEL {
namespace {

#if defined(DAL_LEVEL_AVX512)
constexpr int kVectorBytes = 64;
constexpr int kTileRows = 14;  // 14 x 2 accumulators + 2 operands of 32 registers
#elif defined(DAL_LEVEL_AVX2)
constexpr int kVectorBytes = 32;
constexpr int kTileRows = 6;  // 6 x 2 accumulators + 2 operands + 1 broadcast of 16 registers
#else
constexpr int kVectorBytes = 16;
constexpr int kTileRows = 4;
#endif

template <class T, int Lanes>
struct VectorOf {
  typedef T type __attribute__((vector_size(Lanes * sizeof(T))));
};
template <class T, int Lanes>
using Vector = typename VectorOf<T, Lanes>::type;
template <class T>
constexpr int kLanes = kVectorBytes / static_cast<int>(sizeof(T));
template <class T>
using Full = Vector<T, kLanes<T>>;

// A tag type for bits that C++ has no number for.
struct Half {
  uint16_t bits;
};
struct Brain {
  uint16_t bits;
};

template <class To, class From>
inline To bits_as(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  memcpy(&to, &from, sizeof(to));
  return to;
}

inline float widen(Brain b) { return bits_as<float>(static_cast<uint32_t>(b.bits) << 16); }
// Integer arithmetic for subnormals: right even where the process flushes subnormal floats to zero.
inline float widen(Half h) {
  const uint32_t sign = static_cast<uint32_t>(h.bits & 0x8000u) << 16;
  const uint32_t exponent = (h.bits >> 10) & 0x1fu, mantissa = h.bits & 0x3ffu;
  if (exponent == 0) {
    const float magnitude = static_cast<float>(mantissa) * 5.9604644775390625e-8f;  // 2^-24
    return sign ? -magnitude : magnitude;
  }
  const uint32_t wide = exponent == 31 ? 0xffu : exponent + 112;
  return bits_as<float>(sign | (wide << 23) | (mantissa << 13));
}
inline float widen(float x) { return x; }
inline double widen(double x) { return x; }

template <class V, class T>
inline V load_raw(const T* p) {
  V v;
  memcpy(&v, p, sizeof(v));
  return v;
}

// float to double, exactly; GCC makes five instructions of eight lanes where one will do.
template <int Lanes>
inline Vector<double, Lanes> doubles(Vector<float, Lanes> f) {
#if defined(__AVX512F__)
  if constexpr (Lanes == 8) return bits_as<Vector<double, 8>>(_mm512_maskz_cvtps_pd(0xff, bits_as<__m256>(f)));
#endif
  return __builtin_convertvector(f, Vector<double, Lanes>);
}

// 16 bits to 32, for the same reason.
template <int Lanes>
inline Vector<uint32_t, Lanes> wide_bits(Vector<uint16_t, Lanes> v) {
#if defined(__AVX512F__)
  if constexpr (Lanes == 16) return bits_as<Vector<uint32_t, 16>>(_mm512_maskz_cvtepu16_epi32(0xffff, bits_as<__m256i>(v)));
#endif
#if defined(__AVX2__)
  if constexpr (Lanes == 8) return bits_as<Vector<uint32_t, 8>>(_mm256_cvtepu16_epi32(bits_as<__m128i>(v)));
#endif
  return __builtin_convertvector(v, Vector<uint32_t, Lanes>);
}

// Lanes values from p as a vector of T (float or double), converted exactly (double to float rounds).
template <class T, int Lanes, class S>
inline Vector<T, Lanes> load(const S* p) {
  if constexpr (sizeof(S) == sizeof(T) && sizeof(S) >= 4) {
    return load_raw<Vector<T, Lanes>>(p);
  } else if constexpr (sizeof(S) == 4) {
    return doubles<Lanes>(load_raw<Vector<float, Lanes>>(p));
  } else if constexpr (sizeof(S) == 8) {
    return __builtin_convertvector(load_raw<Vector<S, Lanes>>(p), Vector<T, Lanes>);
  } else {
    Vector<float, Lanes> f;
#if defined(__F16C__)
    if constexpr (__is_same(S, Half) && Lanes == 8) {
      f = bits_as<Vector<float, 8>>(_mm256_cvtph_ps(bits_as<__m128i>(load_raw<Vector<uint16_t, 8>>(p))));
    } else if constexpr (__is_same(S, Half) && Lanes == 4) {
      Vector<uint16_t, 8> wide = {p[0].bits, p[1].bits, p[2].bits, p[3].bits, 0, 0, 0, 0};
      f = bits_as<Vector<float, 4>>(_mm_cvtph_ps(bits_as<__m128i>(wide)));
    } else
#endif
#if defined(__AVX512F__)
        if constexpr (__is_same(S, Half) && Lanes == 16) {
      f = bits_as<Vector<float, 16>>(_mm512_maskz_cvtph_ps(0xffff, bits_as<__m256i>(load_raw<Vector<uint16_t, 16>>(p))));
    } else
#endif
        if constexpr (__is_same(S, Brain)) {
      const auto wide = wide_bits<Lanes>(load_raw<Vector<uint16_t, Lanes>>(p));
      f = bits_as<Vector<float, Lanes>>(wide << 16);
    } else {
      for (int k = 0; k < Lanes; ++k) f[k] = widen(p[k]);
    }
    if constexpr (sizeof(T) == 4) {
      return f;
    } else {
      return __builtin_convertvector(f, Vector<T, Lanes>);
    }
  }
}

template <class V>
inline auto sum_lanes(V v) {
  constexpr int lanes = sizeof(V) / sizeof(v[0]);
  auto total = v[0];
  for (int k = 1; k < lanes; ++k) total += v[k];
  return total;
}

// Calls f(typed pointer) for the stored type.
template <class F>
inline auto visit(const void* rows, Storage storage, F f) {
  switch (storage) {
    case Storage::f64: return f(static_cast<const double*>(rows));
    case Storage::f32: return f(static_cast<const float*>(rows));
    case Storage::f16: return f(static_cast<const Half*>(rows));
    default: return f(static_cast<const Brain*>(rows));
  }
}

// x'y in float64: four accumulators, combined in a fixed order, the tail last.
template <class S>
inline double dot(const S* x, const double* y, int64_t d) {
  constexpr int L = kLanes<double>;
  Full<double> a[4] = {};
  int64_t k = 0;
  for (; k + 4 * L <= d; k += 4 * L)
    for (int q = 0; q < 4; ++q) a[q] += load<double, L>(x + k + q * L) * load_raw<Full<double>>(y + k + q * L);
  for (; k + L <= d; k += L) a[0] += load<double, L>(x + k) * load_raw<Full<double>>(y + k);
  double total = sum_lanes((a[0] + a[1]) + (a[2] + a[3]));
  for (; k < d; ++k) total += static_cast<double>(widen(x[k])) * y[k];
  return total;
}

// out += scale x in float64
template <class S>
inline void add_scaled(const S* x, double scale, int64_t d, double* out) {
  constexpr int L = kLanes<double>;
  int64_t k = 0;
  for (; k + L <= d; k += L) {
    const Full<double> total = load_raw<Full<double>>(out + k) + load<double, L>(x + k) * scale;
    memcpy(out + k, &total, sizeof(total));
  }
  for (; k < d; ++k) out[k] += scale * static_cast<double>(widen(x[k]));
}

}  // namespace
}  // namespace DAL_LEVEL
}  // namespace dal
