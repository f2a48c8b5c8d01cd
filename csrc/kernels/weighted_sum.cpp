// out_(c_q) += w_q x_(r_q), columns first..last-1, and out += sum_i w_i (x_i' v) x_i.
//
// rows (., d) row-major as stored; out (cells, d) float64, entries added one by one in their order; no argument overlaps
// an output. The sum lies in a near cache while rows come from memory, so one vector is loaded and stored a step: bound
// by the one read of the rows. `row` and `cell` may be null: entry q is row q, and all are of cell 0.
#include "kernels/level.hpp"
#include "kernels/simd.hpp"

namespace dal {
namespace DAL_LEVEL {

void add_weighted_rows(const void* rows, Storage storage, int64_t d, const int64_t* row, int64_t count,
                       const double* weight, const int64_t* cell, int64_t first, int64_t last, double* out) {
  visit(rows, storage, [&](auto* p) {
    for (int64_t q = 0; q < count; ++q)
      add_scaled(p + (row ? row[q] : q) * d + first, weight[q], last - first, out + (cell ? cell[q] : 0) * d + first);
  });
}

// The row is read twice while it is in the first cache.
void hessian_vector(const void* rows, Storage storage, int64_t n, int64_t d, const double* weight, const double* vector,
                    double* out) {
  visit(rows, storage, [&](auto* p) {
    for (int64_t i = 0; i < n; ++i) add_scaled(p + i * d, weight[i] * dot(p + i * d, vector, d), d, out);
  });
}

}  // namespace DAL_LEVEL
}  // namespace dal
