// M += sum_t (w_t x_t) x_t', one register tile of M at a time.
//
// left: `depth` labels of tile_rows weighted coordinates, [t][r]; right: the same labels, tile_columns plain
// coordinates, [t][c]. Labels are added in ascending order in float64, so M does not depend on who computes a tile.
#include "kernels/level.hpp"
#include "kernels/tile.hpp"

namespace dal {
namespace DAL_LEVEL {

void outer_tile(const double* left, const double* right, int64_t depth, double* out, int64_t stride) {
  const double* rows[kTileRows];
  for (int r = 0; r < kTileRows; ++r) rows[r] = left + r;
  Tile<double, 2> sum;
  multiply_tile<2>(rows, kTileRows, right, depth, sum);
  for (int r = 0; r < kTileRows; ++r)
    for (int half = 0; half < 2; ++half) {
      double* to = out + r * stride + half * kLanes<double>;
      const Full<double> total = load_raw<Full<double>>(to) + sum[r][half];
      memcpy(to, &total, sizeof(total));
    }
}

}  // namespace DAL_LEVEL
}  // namespace dal
