// The functions that exist once per SIMD level. A caller takes one table at the start of a call and keeps it.
//
// Everything behind these pointers is single-threaded, allocates nothing and calls no library code, so that an object
// compiled for one level holds no symbol that the linker could share with another level.
#pragma once

#include <cstdint>

namespace dal {

enum class Storage : int32_t { f64 = 0, f32 = 1, f16 = 2, bf16 = 3 };

inline constexpr int64_t storage_bytes(Storage s) {
  return s == Storage::f64 ? 8 : s == Storage::f32 ? 4 : 2;
}

// The largest weight of one category as a table over t = top |u|: entry (bits of t >> shift) - first, held to 0..last.
struct WeightSteps {
  const double* weight;
  double top;
  int64_t first, last;
  int shift;
};

// How the bounds of a pair follow from what is known of its two rows; operations/pair_pass.cpp has the proof.
struct PairScale {
  // full: h <= ((sqrt(square - 2 product) + error) unscale)^2 factor; screened: h <= (square - 2 product) factor
  double unscale = 1, factor = 1;
  double margin_scale = 0, margin_error = 0, optimism = 0;  // |u| >= scale |margin| - error norm - optimism sqrt(h)
};

// The tiles of the information matrix: rows and columns of one, and how far the packed labels of a left panel are apart.
struct OuterShape {
  int64_t rows, columns, left_stride;
};

struct KernelTable {
  const char* name;

  // to[k] = from[k], exactly; k < count
  void (*to_double)(const void* from, Storage storage, int64_t count, double* to);
  // to[k] = from[k] rounded to float; exact except from f64
  void (*to_float)(const void* from, Storage storage, int64_t count, float* to);

  // Index of the first row that holds NaN or infinity, -1 if none.
  int64_t (*first_nonfinite)(const void* rows, Storage storage, int64_t n, int64_t d);

  // margin[i] = x_i' reward, square[i] = x_i' x_i (skipped where square is null)
  void (*margin)(const void* rows, Storage storage, int64_t n, int64_t d, const double* reward, double* margin,
                 double* square);

  // The same in single precision, rows rounded to float first, in any order of the sums; `reward` has d values.
  void (*margin_float)(const void* rows, Storage storage, int64_t n, int64_t d, const float* reward, float* margin,
                       float* square);

  // leverage[i] -= coefficient (x_i' direction)^2, not below 0
  void (*update_leverage)(const void* rows, Storage storage, int64_t n, int64_t d, const double* direction,
                          double coefficient, double* leverage);

  // h - sum_s coefficient[s] (x' direction_s)^2 for one row x in float64; directions are rows of length d
  double (*downdated)(const double* x, int64_t d, const double* directions, const double* coefficients, int64_t count,
                      double h);

  // The same for n rows at once, h[i] in place
  void (*downdated_rows)(const double* rows, int64_t n, int64_t d, const double* directions,
                         const double* coefficients, int64_t count, double* h);
  // The same for panels of `tile_columns` directions each, packed [feature][direction]
  void (*downdated_panels)(const double* rows, int64_t n, int64_t d, const double* packed, const double* coefficients,
                           int64_t panels, double* h);
  // x'y; the order of the sum is the level's own
  double (*dot)(const double* x, const double* y, int64_t d);
  // z -= scale x, and (x, y) <- (c x + s y, c y - s x): the same bits at every level
  void (*subtract_scaled)(const double* x, double scale, int64_t count, double* z);
  void (*rotate)(double c, double s, int64_t count, double* x, double* y);

  // The inverse factor W (d x d, lower triangle, row-major), times `scale`, in the order that whitened_squares reads.
  int64_t (*packed_factor_size)(int64_t d, bool single);
  void (*pack_factor_double)(const double* w, int64_t d, double* packed);
  void (*pack_factor_float)(const double* w, int64_t d, double scale, float* packed);
  // square[i] = |W x_i|^2; `rows` row-major and contiguous
  void (*whitened_squares_double)(const double* rows, int64_t n, int64_t d, const double* packed, double* square);
  void (*whitened_squares_float)(const float* rows, int64_t n, int64_t d, const float* packed, double* square);

  // Columns to allot for `wanted` directions; directions (columns, d) in the order that screen reads; and the pass:
  // combined[i] = sum_c coefficient[c] (x_i' v_c)^2, margin[i] = x_i' v_margin_column, square[i] = |x_i|^2
  int64_t (*screen_columns)(int64_t wanted);
  void (*pack_directions)(const float* directions, int64_t columns, int64_t d, float* packed);
  void (*screen)(const float* rows, int64_t n, int64_t d, const float* packed, int64_t columns,
                 const float* coefficient, int64_t margin_column, double* combined, double* margin, double* square);

  // Pairs of a prompt's completions, pairs.cpp. `stride` and `depth` are whole vectors of float_lanes.
  int64_t (*float_lanes)();
  // out_i = x_i - middle as float, zero up to whole vectors; margin[i] = out_i' direction, square[i] = |out_i|^2
  void (*centre)(const void* rows, const void* middle, Storage storage, int64_t n, int64_t d, const float* direction,
                 int64_t stride, float* out, float* margin, float* square);
  // out_i[c] = x_i' v_c; directions (columns, depth), columns a multiple of 4; out is `stride` apart as well
  void (*project)(const float* rows, int64_t n, int64_t stride, int64_t depth, const float* directions, int64_t columns,
                  float* out);
  // out_i = W x_i by the packed factor, written up to whole panels of tile columns
  void (*whiten)(const float* rows, int64_t n, int64_t stride, int64_t d, const float* packed, int64_t out_stride,
                 float* out);
  // signed_out[i] = before[i] + sum_c sign_c x_ic^2 and out[i] = before[i] + sum_c x_ic^2, up to whole vectors
  void (*row_squares)(const float* rows, int64_t n, int64_t stride, int64_t columns, const float* sign,
                      const float* before, float* signed_out, float* out);
  // For a0 <= a < a1, a < b < count: x_a' x_b + sum_c sign_c (p_a)_c (p_b)_c, where row i holds x_i (plain), p_i (columns)
  void (*pair_products)(const float* rows, int64_t count, int64_t stride, int64_t plain, int64_t columns,
                        const float* sign, int64_t a0, int64_t a1, float* out);
  // value_b + sign value_a of the same pairs
  void (*pair_spread)(const float* value, int64_t count, float sign, int64_t a0, int64_t a1, float* out);
  // Upper bounds of leverages; whether any pair has a margin of zero (equal rows do) or an infinite bound
  bool (*pair_leverages)(int64_t count, const float* product, const float* square, const float* margin,
                         const float* error, const PairScale& scale, double* leverage);
  bool (*pair_leverages_screened)(int64_t count, const float* product, const float* square, const float* margin,
                                  const PairScale& scale, double* leverage);
  // leverage[q] = min(leverage[q], factor known[q]); out[q] >= leverage[q], 0 where it is 0
  void (*known_leverages)(int64_t count, const float* known, double factor, double* leverage);
  void (*leverages_up)(int64_t count, const double* leverage, float* out);
  // bound[q] = w h, w the largest weight that the margin leaves possible; -1 where nobody may answer. Writes `count` of
  // them and no more; returns the largest.
  double (*pair_weights)(int64_t count, const double* leverage, const float* margin, const float* norm,
                       const PairScale& scale, const WeightSteps& steps, float* bound);

  int64_t tile_columns;  // of a tile in float64

  // sum_t (w_t x_t) x_t' in tiles, information_matrix.cpp: n labels into panels, and `panels` tiles of one strip, `depth`
  // labels, added to `out`.
  OuterShape (*outer_shape)(bool single);
  void (*pack_labels_double)(const void* rows, Storage storage, int64_t n, int64_t d, const double* weight,
                             int64_t pitch, double* left, double* right);
  void (*pack_labels_float)(const void* rows, Storage storage, int64_t n, int64_t d, const double* weight,
                            int64_t pitch, float* left, float* right);
  void (*outer_strip_double)(const double* left, const double* right, int64_t depth, int64_t pitch, int64_t panels, double* out,
                             int64_t stride);
  void (*outer_strip_float)(const float* left, const float* right, int64_t depth, int64_t pitch, int64_t panels, double* out,
                            int64_t stride);

  // For q < count, columns first..last-1: out_(cell_q) += weight_q x_(row_q); null row: q, null cell: 0
  void (*add_weighted_rows)(const void* rows, Storage storage, int64_t d, const int64_t* row, int64_t count,
                            const double* weight, const int64_t* cell, int64_t first, int64_t last, double* out);
  // out += sum_i weight_i (x_i' vector) x_i
  void (*hessian_vector)(const void* rows, Storage storage, int64_t n, int64_t d, const double* weight,
                         const double* vector, double* out);

  // x[k] = e^x[k] for x[k] <= 0, softmax.cpp
  void (*exponentials)(double* x, int64_t count);

  // Means of the softplus family under normal laws, softplus.cpp: whole vectors of laws, five rows of results
  void (*softplus_hermite)(const double* mean, const double* sd, int64_t count, const double* node,
                           const double* weight, int64_t nodes, double* out, int64_t stride);
  void (*softplus_wide)(const double* mean, const double* sd, const double* tail, int64_t count, const double* node,
                        const double* rests, int64_t nodes, double* out, int64_t stride);

  // Labels first..last-1 of the Bradley-Terry loss; adds to gradient, writes rationality_gradient, returns the loss.
  double (*bradley_terry)(const void* rows, Storage storage, int64_t n, int64_t d, const double* choice,
                          const double* reward, const double* rationality, const double* sample_weight,
                          double* gradient, double* rationality_gradient);
};

// Defined once per level, by csrc/kernels/level.cpp.
namespace generic {
extern const KernelTable table;
}
namespace avx2 {
extern const KernelTable table;
}
namespace avx512 {
extern const KernelTable table;
}

}  // namespace dal
