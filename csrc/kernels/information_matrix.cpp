// M += sum_t (w_t x_t) x_t', a strip of tile rows of M at a time.
//
// Packed labels: `depth` of them in panels, left [t][left_stride] of which tile_rows weighted coordinates count, right
// [t][tile_columns] plain coordinates, zeros past d; panels begin `pitch` labels apart. A tile is summed over the labels in ascending order in the type of
// the panels and then added to M in float64, so M does not depend on who computes a strip. Tiles in float halve the time;
// their sums are off by some `depth` units in the seventh digit: for preconditioners and first steps.
#include "kernels/level.hpp"
#include "kernels/tile.hpp"

namespace dal {
namespace DAL_LEVEL {
namespace {

template <class T>
constexpr int kLeftStride = (kTileRows + kLanes<T> - 1) / kLanes<T> * kLanes<T>;

// to[c] = scale x[c], c < Width, zero from `left` on
template <int Width, class T, class S>
inline void copy_panel(const S* x, int64_t left, T scale, T* to) {
  constexpr int L = kLanes<T>;
  if (left >= Width) {
    for (int c = 0; c < Width; c += L) {
      const Full<T> v = load<T, L>(x + c) * scale;
      memcpy(to + c, &v, sizeof(v));
    }
  } else {
    for (int c = 0; c < Width; ++c) to[c] = c < left ? static_cast<T>(widen(x[c])) * scale : T(0);
  }
}

template <class T>
void pack_labels(const void* rows, Storage storage, int64_t n, int64_t d, const double* weight, int64_t pitch, T* left,
                 T* right) {
  visit(rows, storage, [&](auto* p) {
    for (int64_t t = 0; t < n; ++t) {
      const auto* x = p + t * d;
      T* to = left + t * kLeftStride<T>;
      for (int64_t k = 0; k < d; k += kTileRows, to += pitch * kLeftStride<T>)
        copy_panel<kLeftStride<T>>(x + k, d - k, static_cast<T>(weight[t]), to);
      to = right + t * kTileColumns<T>;
      for (int64_t k = 0; k < d; k += kTileColumns<T>, to += pitch * kTileColumns<T>)
        copy_panel<kTileColumns<T>>(x + k, d - k, T(1), to);
    }
  });
}

template <class T>
void outer_strip(const T* left, const T* right, int64_t depth, int64_t pitch, int64_t panels, double* out, int64_t stride) {
  using Wide = Vector<double, kLanes<T>>;
  for (int64_t j = 0; j < panels; ++j) {
    Tile<T, 2> sum;
    multiply_packed_tile<2, kLeftStride<T>>(left, right + j * pitch * kTileColumns<T>, depth, sum);
    for (int r = 0; r < kTileRows; ++r) {
      double* to = out + r * stride + j * kTileColumns<T>;
      for (int half = 0; half < 2; ++half, to += kLanes<T>) {
        const Wide total = load_raw<Wide>(to) + __builtin_convertvector(sum[r][half], Wide);
        memcpy(to, &total, sizeof(total));
      }
    }
  }
}

}  // namespace

OuterShape outer_shape(bool single) {
  return single ? OuterShape{kTileRows, kTileColumns<float>, kLeftStride<float>}
                : OuterShape{kTileRows, kTileColumns<double>, kLeftStride<double>};
}

void pack_labels_double(const void* rows, Storage storage, int64_t n, int64_t d, const double* weight, int64_t pitch,
                        double* left, double* right) {
  pack_labels(rows, storage, n, d, weight, pitch, left, right);
}

void pack_labels_float(const void* rows, Storage storage, int64_t n, int64_t d, const double* weight, int64_t pitch,
                       float* left, float* right) {
  pack_labels(rows, storage, n, d, weight, pitch, left, right);
}

void outer_strip_double(const double* left, const double* right, int64_t depth, int64_t pitch, int64_t panels, double* out,
                        int64_t stride) {
  outer_strip(left, right, depth, pitch, panels, out, stride);
}

void outer_strip_float(const float* left, const float* right, int64_t depth, int64_t pitch, int64_t panels, double* out,
                       int64_t stride) {
  outer_strip(left, right, depth, pitch, panels, out, stride);
}

}  // namespace DAL_LEVEL
}  // namespace dal
