// h_i = x_i' M^-1 x_i = |W x_i|^2 with M = L L', W = L^-1 lower triangular.
//
// Work: n d^2 / 2 multiply-adds, half of a full product, because column panel k0 of W' has only k0 + width rows.
// Nothing of size n x d is stored: a tile of whitened values is squared and added while it is in registers. Rows are
// read in place, one broadcast per element and panel.
//
// Layout of the packed factor: panels of kTileColumns outputs k, each [j][k - k0] for j < min(d, k0 + columns), zeros
// above the diagonal and past d. Accumulators have the type of the product; squares are added in float64 across panels.
// The float version feeds certified upper bounds only (operations/bounds.cpp has the error term), the double version
// is the reported leverage.
#include "kernels/level.hpp"
#include "kernels/tile.hpp"

namespace dal {
namespace DAL_LEVEL {
namespace {

template <class T>
int64_t panel_depth(int64_t k0, int64_t d) {
  return k0 + kTileColumns<T> < d ? k0 + kTileColumns<T> : d;
}

template <class T>
int64_t factor_size(int64_t d) {
  int64_t size = 0;
  for (int64_t k0 = 0; k0 < d; k0 += kTileColumns<T>) size += panel_depth<T>(k0, d) * kTileColumns<T>;
  return size;
}

template <class T>
void pack_factor(const double* w, int64_t d, double scale, T* packed) {
  for (int64_t k0 = 0; k0 < d; k0 += kTileColumns<T>)
    for (int64_t j = 0; j < panel_depth<T>(k0, d); ++j)
      for (int64_t k = k0; k < k0 + kTileColumns<T>; ++k)
        *packed++ = k < d && j <= k ? static_cast<T>(w[k * d + j] * scale) : T(0);
}

template <class T>
void whitened_squares(const T* rows, int64_t n, int64_t d, const T* packed, double* square) {
  for (int64_t i = 0; i < n; ++i) square[i] = 0;
  for (int64_t k0 = 0; k0 < d; k0 += kTileColumns<T>) {
    const int64_t depth = panel_depth<T>(k0, d);
    for (int64_t i0 = 0; i0 < n; i0 += kTileRows) {
      const T* left[kTileRows];
      const int count = tile_rows_of(rows, i0, n, d, left);
      Tile<T, 2> y;
      multiply_tile<2>(left, 1, packed, depth, y);
      for (int r = 0; r < count; ++r) square[i0 + r] += sum_lanes(y[r][0] * y[r][0] + y[r][1] * y[r][1]);
    }
    packed += depth * kTileColumns<T>;
  }
}

}  // namespace

// h_i -= sum_s a_s (x_i' v_s)^2 for whole panels of directions, in tiles.
void downdated_panels(const double* rows, int64_t n, int64_t d, const double* packed, const double* coefficients,
                      int64_t panels, double* h) {
  constexpr int64_t C = kTileColumns<double>;
  constexpr int L = kLanes<double>;
  for (int64_t i0 = 0; i0 < n; i0 += kTileRows) {
    const double* left[kTileRows];
    const int count = tile_rows_of(rows, i0, n, d, left);
    for (int64_t p = 0; p < panels; ++p) {
      Tile<double, 2> c;
      multiply_tile<2>(left, 1, packed + p * C * d, d, c);
      const auto a0 = load_raw<Full<double>>(coefficients + p * C), a1 = load_raw<Full<double>>(coefficients + p * C + L);
      for (int r = 0; r < count; ++r) h[i0 + r] -= sum_lanes((a0 * c[r][0]) * c[r][0] + (a1 * c[r][1]) * c[r][1]);
    }
    for (int r = 0; r < count; ++r) h[i0 + r] = h[i0 + r] > 0 ? h[i0 + r] : 0;
  }
}

int64_t packed_factor_size(int64_t d, bool single) { return single ? factor_size<float>(d) : factor_size<double>(d); }

void pack_factor_double(const double* w, int64_t d, double* packed) { pack_factor(w, d, 1.0, packed); }

void pack_factor_float(const double* w, int64_t d, double scale, float* packed) { pack_factor(w, d, scale, packed); }

void whitened_squares_double(const double* rows, int64_t n, int64_t d, const double* packed, double* square) {
  whitened_squares(rows, n, d, packed, square);
}

void whitened_squares_float(const float* rows, int64_t n, int64_t d, const float* packed, double* square) {
  whitened_squares(rows, n, d, packed, square);
}

}  // namespace DAL_LEVEL
}  // namespace dal
