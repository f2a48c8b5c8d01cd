// The one register tile that all matrix products use: kTileRows rows times one or two vectors of columns.
#pragma once

#include "kernels/simd.hpp"

namespace dal {
namespace DAL_LEVEL {
namespace {

template <class T>
constexpr int kTileColumns = 2 * kLanes<T>;

template <class T, int Vectors>
using Tile = Full<T>[kTileRows][Vectors];

// `right` is read once from the second cache while `left` stays in the first: asked for so many steps ahead.
constexpr int64_t kAhead = 16;

// sum[r][:] = sum_j left(j, r) right[j][:], j ascending.
template <int Vectors, class T, class Left>
inline void sum_tile(Left left, const T* right, int64_t depth, Tile<T, Vectors>& sum) {
#pragma GCC unroll 16
  for (int r = 0; r < kTileRows; ++r)
#pragma GCC unroll 2
    for (int v = 0; v < Vectors; ++v) sum[r][v] = Full<T>{};
  for (int64_t j = 0; j < depth; ++j) {
    Full<T> b[Vectors];
#pragma GCC unroll 2
    for (int v = 0; v < Vectors; ++v) {
      b[v] = load_raw<Full<T>>(right + (j * Vectors + v) * kLanes<T>);
      __builtin_prefetch(right + ((j + kAhead) * Vectors + v) * kLanes<T>);
    }
#pragma GCC unroll 16
    for (int r = 0; r < kTileRows; ++r) {
#pragma GCC unroll 2
      for (int v = 0; v < Vectors; ++v) sum[r][v] += b[v] * left(j, r);
    }
  }
}

// left(j, r) = left[r][j * depth_step]: rows anywhere
template <int Vectors, class T>
inline void multiply_tile(const T* const (&left)[kTileRows], int64_t depth_step, const T* right, int64_t depth,
                          Tile<T, Vectors>& sum) {
  sum_tile<Vectors>([&](int64_t j, int r) { return left[r][j * depth_step]; }, right, depth, sum);
}

// left(j, r) = left[j * Stride + r]: packed, with one pointer for all rows
template <int Vectors, int Stride, class T>
inline void multiply_packed_tile(const T* left, const T* right, int64_t depth, Tile<T, Vectors>& sum) {
  sum_tile<Vectors>([=](int64_t j, int r) { return left[j * Stride + r]; }, right, depth, sum);
}

// The rows i0.. of a row-major matrix; past the last row the last one again, so that nothing outside is read.
template <class T>
inline int tile_rows_of(const T* rows, int64_t i0, int64_t n, int64_t d, const T* (&left)[kTileRows]) {
  const int64_t count = n - i0 < kTileRows ? n - i0 : kTileRows;
  for (int64_t r = 0; r < kTileRows; ++r) left[r] = rows + (i0 + (r < count ? r : count - 1)) * d;
  return static_cast<int>(count);
}

}  // namespace
}  // namespace DAL_LEVEL
}  // namespace dal
