// For each row, in one pass: its projections p = V'x on a few directions, combined as sum_c coefficient_c p_c^2; one
// projection by itself (the margin); and |x|^2. Single precision; operations/screen.cpp has the error terms.
//
// Layout of the packed directions: panels of kTileColumns<float> columns, the last panel half as wide if that is enough,
// each [j][column], j < d. `columns` is a multiple of half a panel. Rows are read in place.
#include "kernels/level.hpp"
#include "kernels/tile.hpp"

namespace dal {
namespace DAL_LEVEL {
namespace {

constexpr int L = kLanes<float>;

inline float square_norm(const float* x, int64_t d) {
  Full<float> a[4] = {};
  int64_t k = 0;
  for (; k + 4 * L <= d; k += 4 * L)
    for (int q = 0; q < 4; ++q) {
      const Full<float> v = load_raw<Full<float>>(x + k + q * L);
      a[q] += v * v;
    }
  float total = sum_lanes((a[0] + a[1]) + (a[2] + a[3]));
  for (; k < d; ++k) total += x[k] * x[k];
  return total;
}

// One panel for the rows of one tile.
template <int Vectors>
void panel(const float* const (&left)[kTileRows], int count, int64_t d, const float* packed, const float* coefficient,
           int64_t at, double* combined, double* margin) {
  Tile<float, Vectors> p;
  multiply_tile<Vectors>(left, 1, packed, d, p);
  for (int r = 0; r < count; ++r) {
    Full<float> sum = {};
    for (int v = 0; v < Vectors; ++v) sum += p[r][v] * p[r][v] * load_raw<Full<float>>(coefficient + v * L);
    combined[r] += sum_lanes(sum);
    if (at >= 0 && at < Vectors * L) margin[r] = p[r][at / L][at % L];
  }
}

}  // namespace

int64_t screen_columns(int64_t wanted) { return (wanted + L - 1) / L * L; }

void pack_directions(const float* directions, int64_t columns, int64_t d, float* packed) {
  for (int64_t c0 = 0; c0 < columns;) {
    const int64_t width = columns - c0 >= 2 * L ? 2 * L : L;
    for (int64_t j = 0; j < d; ++j)
      for (int64_t c = c0; c < c0 + width; ++c) *packed++ = directions[c * d + j];
    c0 += width;
  }
}

void screen(const float* rows, int64_t n, int64_t d, const float* packed, int64_t columns, const float* coefficient,
            int64_t margin_column, double* combined, double* margin, double* square) {
  // Tile by tile, so that rows are in the first cache for their norm and for every panel.
  for (int64_t i0 = 0; i0 < n; i0 += kTileRows) {
    const float* left[kTileRows];
    const int count = tile_rows_of(rows, i0, n, d, left);
    for (int r = 0; r < count; ++r) {
      combined[i0 + r] = 0;
      square[i0 + r] = square_norm(left[r], d);
    }
    const float* directions = packed;
    for (int64_t c0 = 0; c0 < columns;) {
      const bool whole = columns - c0 >= 2 * L;
      if (whole) {
        panel<2>(left, count, d, directions, coefficient + c0, margin_column - c0, combined + i0, margin + i0);
      } else {
        panel<1>(left, count, d, directions, coefficient + c0, margin_column - c0, combined + i0, margin + i0);
      }
      directions += (whole ? 2 : 1) * L * d;
      c0 += (whole ? 2 : 1) * L;
    }
  }
}

}  // namespace DAL_LEVEL
}  // namespace dal
