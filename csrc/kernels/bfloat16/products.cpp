// y_i = V b_i, V (d, d) lower triangular, both in bfloat16, sums in single precision.
//
// Layout, for both instruction sets: blocks of 32 rows or columns, each step of 32 features two tiles of 1 KiB.
// Rows: tile row r holds the 32 features of row r. Factor: panels of 32 outputs k, depth min(d, k0 + 32) features (the
// triangle is skipped in whole steps), tile row p holds the features 2p and 2p+1 of 16 outputs next to each other.
// Padding is zero. operations/bfloat16_pass.cpp has the error terms: sums in any order, subnormals flushed or not.
#include "kernels/bfloat16/products.hpp"

#include <immintrin.h>

#include "kernels/simd.hpp"

namespace dal {
namespace DAL_LEVEL {
namespace {

constexpr int64_t B = kBrainBlock;
constexpr int64_t kTileNumbers = 16 * B;
constexpr int64_t kStepNumbers = 2 * kTileNumbers;

using V16 = Full<float>;
using Sums = Bfloat16Table::Sums;

inline int64_t steps_of(int64_t d) { return (d + B - 1) / B; }

int64_t factor_size(int64_t d) { return steps_of(d) * (steps_of(d) + 1) / 2 * kStepNumbers; }

void pack_factor(const uint16_t* v, int64_t d, uint16_t* packed) {
  for (int64_t k0 = 0; k0 < d; k0 += B)
    for (int64_t j0 = 0; j0 <= k0; j0 += B)
      for (int64_t half = 0; half < 2; ++half)
        for (int64_t pair = 0; pair < B / 2; ++pair)
          for (int64_t column = 0; column < 16; ++column)
            for (int64_t odd = 0; odd < 2; ++odd) {
              const int64_t k = k0 + half * 16 + column, j = j0 + 2 * pair + odd;
              *packed++ = k < d && j <= k ? v[k * d + j] : uint16_t{0};
            }
}

// 16 of 32 bfloat16 as float: `places` says which, for the upper halves of the lanes.
inline V16 widened(__m512i bits, __m512i places) {
  return bits_as<V16>(_mm512_maskz_permutexvar_epi16(0xaaaaaaaau, places, bits));
}
inline __m512i places_from(int first) {
  Vector<uint32_t, 16> places;
  for (int lane = 0; lane < 16; ++lane) places[lane] = static_cast<uint32_t>(first + lane) << 16;
  return bits_as<__m512i>(places);
}

// By halves: any order of the sum is within the bounds.
inline float sum_tree(V16 v) {
  struct Halves {
    Vector<float, 8> low, high;
  };
  struct Quarters {
    Vector<float, 4> low, high;
  };
  const auto h = bits_as<Halves>(v);
  const auto q = bits_as<Quarters>(h.low + h.high);
  const Vector<float, 4> e = q.low + q.high;
  return (e[0] + e[1]) + (e[2] + e[3]);
}

inline uint16_t* row_of(uint16_t* prepared, int64_t i, int64_t steps) {
  return prepared + i / B * steps * kStepNumbers + i % B / 16 * kTileNumbers + i % 16 * B;
}

// Rows on their way into tiles, 32 features at a time, so that the work fits between the steps of a product.
template <class S>
class Preparation {
 public:
  Preparation(const S* rows, int64_t n, int64_t d, const float* reward, uint16_t* prepared, float* margin,
              float* square, float* residual)
      : x_(rows), reward_(reward), prepared_(prepared), to_(prepared), margin_(margin), square_(square),
        residual_(residual), n_(n), d_(d), steps_(steps_of(d)) {}

  bool done() const { return i_ >= n_; }

  void step() {
    if (k_ + B <= d_) {
      const char* ahead = reinterpret_cast<const char*>(x_ + k_) + 2048;
      for (size_t line = 0; line < B * sizeof(S); line += 64) _mm_prefetch(ahead + line, _MM_HINT_T0);
      add(load<float, 16>(x_ + k_), load<float, 16>(x_ + k_ + 16));
    } else {
      alignas(64) float rest[B] = {};
      for (int64_t j = 0; k_ + j < d_; ++j) rest[j] = static_cast<float>(widen(x_[k_ + j]));
      add(load_raw<V16>(rest), load_raw<V16>(rest + 16));
    }
    to_ += kStepNumbers;
    k_ += B;
    if (k_ >= d_) finish_row();
  }

 private:
  void add(V16 x0, V16 x1) {
    const __m512i bits = bits_as<__m512i>(_mm512_cvtne2ps_pbh(bits_as<__m512>(x1), bits_as<__m512>(x0)));
    memcpy(to_, &bits, sizeof(bits));
    const V16 r0 = x0 - widened(bits, places_from(0)), r1 = x1 - widened(bits, places_from(16));
    u0_ += x0 * load_raw<V16>(reward_ + k_);
    u1_ += x1 * load_raw<V16>(reward_ + k_ + 16);
    s0_ += x0 * x0;
    s1_ += x1 * x1;
    r0_ += r0 * r0;
    r1_ += r1 * r1;
  }

  void finish_row() {
    margin_[i_] = sum_tree(u0_ + u1_);
    square_[i_] = sum_tree(s0_ + s1_);
    residual_[i_] = sum_tree(r0_ + r1_);
    u0_ = u1_ = s0_ = s1_ = r0_ = r1_ = V16{};
    x_ += d_;
    k_ = 0;
    to_ = row_of(prepared_, ++i_, steps_);
  }

  const S* x_;
  const float* reward_;
  uint16_t *prepared_, *to_;
  float *margin_, *square_, *residual_;
  int64_t n_, d_, steps_, i_ = 0, k_ = 0;
  V16 u0_ = {}, u1_ = {}, s0_ = {}, s1_ = {}, r0_ = {}, r1_ = {};
};

// Rows that a block of 32 lacks are zero.
void pad(uint16_t* prepared, int64_t n, int64_t d) {
  const __m512i zero = _mm512_setzero_si512();
  for (int64_t i = n; i < steps_of(n) * B; ++i) {
    uint16_t* to = row_of(prepared, i, steps_of(d));
    for (int64_t s = 0; s < steps_of(d); ++s) memcpy(to + s * kStepNumbers, &zero, sizeof(zero));
  }
}

#if defined(__AMX_BF16__)

constexpr double kSpeed = 8;

struct alignas(64) TileShapes {
  uint8_t palette = 1, start = 0, unused[14] = {};
  uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
const TileShapes kShapes;

inline void take_unit() { _tile_loadconfig(&kShapes); }
inline void release_unit() { _tile_release(); }

// out (32, 32) = rows (32, depth) times panel (depth, 32); between() after every step
template <class F>
inline void multiply_block(const uint16_t* rows, const uint16_t* panel, int64_t steps, float* out, int64_t stride,
                           F between) {
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int64_t s = 0; s < steps; ++s, rows += kStepNumbers, panel += kStepNumbers) {
    _tile_loadd(6, panel, 64);
    _tile_loadd(4, rows, 64);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(7, panel + kTileNumbers, 64);
    _tile_dpbf16ps(1, 4, 7);
    _tile_loadd(5, rows + kTileNumbers, 64);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
    between();
  }
  const int64_t bytes = stride * static_cast<int64_t>(sizeof(float));
  _tile_stored(0, out, bytes);
  _tile_stored(1, out + 16, bytes);
  _tile_stored(2, out + 16 * stride, bytes);
  _tile_stored(3, out + 16 * stride + 16, bytes);
}

#else

constexpr double kSpeed = 0.85;

inline void take_unit() {}
inline void release_unit() {}

inline __m512bh twice(const uint16_t* pair) {
  int32_t both;
  memcpy(&both, pair, sizeof(both));
  return bits_as<__m512bh>(_mm512_set1_epi32(both));
}

// 8 rows at a time: 16 sums in registers
template <class F>
inline void multiply_block(const uint16_t* rows, const uint16_t* panel, int64_t steps, float* out, int64_t stride,
                           F between) {
  constexpr int R = 8;
  for (int64_t r0 = 0; r0 < B; r0 += R) {
    __m512 sum[R][2];
    for (int r = 0; r < R; ++r) sum[r][0] = sum[r][1] = _mm512_setzero_ps();
    for (int64_t s = 0; s < steps; ++s) {
      if (r0 == 0) between();
      const uint16_t* x = rows + s * kStepNumbers + r0 / 16 * kTileNumbers + r0 % 16 * B;
      const uint16_t* v = panel + s * kStepNumbers;
      for (int64_t p = 0; p < B / 2; ++p) {
        const auto v0 = load_raw<__m512bh>(v + p * B), v1 = load_raw<__m512bh>(v + kTileNumbers + p * B);
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
          const __m512bh a = twice(x + r * B + 2 * p);
          sum[r][0] = _mm512_dpbf16_ps(sum[r][0], a, v0);
          sum[r][1] = _mm512_dpbf16_ps(sum[r][1], a, v1);
        }
      }
    }
    for (int r = 0; r < R; ++r) {
      _mm512_storeu_ps(out + (r0 + r) * stride, sum[r][0]);
      _mm512_storeu_ps(out + (r0 + r) * stride + 16, sum[r][1]);
    }
  }
}

#endif

// Adds up |V b_i|^2 for a block of 32 rows.
template <class F>
inline void block_squares(const uint16_t* rows, int64_t steps, const uint16_t* panel, int64_t count, float* square,
                          F between) {
  alignas(64) float y[B * B];
  V16 sum[B];
  for (V16& s : sum) s = V16{};
  for (int64_t k = 1; k <= steps; ++k) {
    multiply_block(rows, panel, k, y, B, between);
    for (int64_t r = 0; r < B; ++r) {
      const V16 y0 = load_raw<V16>(y + r * B), y1 = load_raw<V16>(y + r * B + 16);
      sum[r] += y0 * y0;
      sum[r] += y1 * y1;
    }
    panel += k * kStepNumbers;
  }
  for (int64_t r = 0; r < count; ++r) square[r] = sum_tree(sum[r]);
}

// While the units multiply one block, the next one is read and rounded: two blocks of tiles in turn.
template <class S>
void squares_typed(const S* rows, int64_t n, int64_t d, const float* reward, const uint16_t* packed,
                   uint16_t* two_blocks, const Sums& out) {
  const int64_t steps = steps_of(d), share = (2 * B + steps) / (steps + 1);
  uint16_t *here = two_blocks, *next = two_blocks + steps * kStepNumbers;
  const auto prepare_block = [&](int64_t start, uint16_t* to) {
    const int64_t count = start >= n ? 0 : n - start < B ? n - start : B;
    if (count < B && start < n) pad(to, count, d);
    return Preparation<S>(rows + start * d, count, d, reward, to, out.margin + start, out.square + start,
                          out.residual + start);
  };
  for (auto first = prepare_block(0, here); !first.done();) first.step();
  for (int64_t start = 0; start < n; start += B) {
    auto coming = prepare_block(start + B, next);
    block_squares(here, steps, packed, n - start < B ? n - start : B, out.whitened + start, [&] {
      for (int64_t q = 0; q < share && !coming.done(); ++q) coming.step();
    });
    while (!coming.done()) coming.step();
    uint16_t* const turn = here;
    here = next;
    next = turn;
  }
}

int64_t scratch_size(int64_t d) { return 2 * steps_of(d) * kStepNumbers; }

void squares(const void* rows, Storage storage, int64_t n, int64_t d, const float* reward, const uint16_t* packed,
             uint16_t* scratch, const Sums& out) {
  take_unit();
  visit(rows, storage, [&](auto* x) { squares_typed(x, n, d, reward, packed, scratch, out); });
  release_unit();
}

void whitened(const float* rows, int64_t n, int64_t d, const float* reward, const uint16_t* packed, uint16_t* scratch,
              float* residual, float* out) {
  take_unit();
  const int64_t steps = steps_of(d), width = steps * B;
  float margin[B], square[B];
  for (int64_t start = 0; start < n; start += B) {
    const int64_t count = n - start < B ? n - start : B;
    if (count < B) pad(scratch, count, d);
    Preparation<float> rounding(rows + start * d, count, d, reward, scratch, margin, square, residual + start);
    while (!rounding.done()) rounding.step();
    const uint16_t* panel = packed;
    for (int64_t k = 1; k <= steps; ++k) {
      multiply_block(scratch, panel, k, out + start * width + (k - 1) * B, width, [] {});
      panel += k * kStepNumbers;
    }
  }
  release_unit();
}

}  // namespace

#define DAL_STRING_(x) #x
#define DAL_STRING(x) DAL_STRING_(x)

const Bfloat16Table bfloat16_table = {
    DAL_STRING(DAL_LEVEL), kSpeed, factor_size, pack_factor, scratch_size, squares, whitened,
};

}  // namespace DAL_LEVEL
}  // namespace dal
