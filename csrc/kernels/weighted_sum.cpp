// out_(c_q) += w_q x_(r_q), columns first..last-1, and out += sum_i w_i (x_i' v) x_i.
//
// rows (., d) row-major as stored; out (cells, d) float64, entries added one by one in their order; no argument overlaps
// an output. `row` and `cell` may be null: entry q is row q, and all are of cell 0. Where they are, a few rows are taken
// side by side, and a vector of the sum is loaded and stored once for all of them, in the same order of additions;
// otherwise once for each, which is still bound by the one read of the rows.
#include "kernels/level.hpp"
#include "kernels/simd.hpp"

namespace dal {
namespace DAL_LEVEL {

namespace {

constexpr int64_t kTogether = 8;

// out += sum_r weight_r x_r, r ascending: the bits of one add_scaled after the other.
template <class S>
void add_together(const S* const (&x)[kTogether], const double* weight, int64_t d, double* out) {
  constexpr int L = kLanes<double>;
  int64_t k = 0;
  for (; k + L <= d; k += L) {
    auto total = load_raw<Full<double>>(out + k);
    for (int r = 0; r < kTogether; ++r) total = total + load<double, L>(x[r] + k) * weight[r];
    memcpy(out + k, &total, sizeof(total));
  }
  for (; k < d; ++k)
    for (int r = 0; r < kTogether; ++r) out[k] += weight[r] * static_cast<double>(widen(x[r][k]));
}

}  // namespace

void add_weighted_rows(const void* rows, Storage storage, int64_t d, const int64_t* row, int64_t count,
                       const double* weight, const int64_t* cell, int64_t first, int64_t last, double* out) {
  visit(rows, storage, [&](auto* p) {
    int64_t q = 0;
    for (; !cell && q + kTogether <= count; q += kTogether) {
      decltype(p) x[kTogether];
      for (int64_t r = 0; r < kTogether; ++r) x[r] = p + (row ? row[q + r] : q + r) * d + first;
      add_together(x, weight + q, last - first, out + first);
    }
    for (; q < count; ++q)
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
