// The one register tile that all matrix products use: kTileRows x (2 vectors).
#pragma once

#include "kernels/simd.hpp"

namespace dal {
namespace DAL_LEVEL {
namespace {

template <class T>
constexpr int kTileColumns = 2 * kLanes<T>;

// sum[r][:] = sum_j left[j][r] * right[j][:], j ascending; left has kTileRows values per j, right kTileColumns.
template <class T>
inline void multiply_tile(const T* left, const T* right, int64_t depth, Full<T> (&sum)[kTileRows][2]) {
  for (int r = 0; r < kTileRows; ++r) sum[r][0] = sum[r][1] = Full<T>{};
  for (int64_t j = 0; j < depth; ++j) {
    const Full<T> b0 = load_raw<Full<T>>(right + j * kTileColumns<T>);
    const Full<T> b1 = load_raw<Full<T>>(right + j * kTileColumns<T> + kLanes<T>);
    const T* a = left + j * kTileRows;
#pragma GCC unroll 16
    for (int r = 0; r < kTileRows; ++r) {
      sum[r][0] += b0 * a[r];
      sum[r][1] += b1 * a[r];
    }
  }
}

}  // namespace
}  // namespace DAL_LEVEL
}  // namespace dal
