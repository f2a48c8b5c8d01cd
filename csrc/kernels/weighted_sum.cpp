// out_(c_q) += w_q x_(r_q), columns first..last-1, and out += sum_i w_i (x_i' v) x_i.
//
// rows (., d) row-major as stored; out (cells, d) float64, entries added one by one in their order; no argument overlaps
// an output. `row` and `cell` may be null: entry q is row q, and all are of cell 0. Then a few rows are taken
// side by side, and a vector of the sum is loaded and stored once for all of them, in the same order of additions;
// otherwise once for each, which is still bound by the one read of the rows.
#include "kernels/level.hpp"
#include "kernels/simd.hpp"

namespace dal {
namespace DAL_LEVEL {

namespace {

// out += sum_r weight_r x_r, r ascending: the bits of one add_scaled after the other. Of what lies `ahead` bytes further
// every second row is asked for in time: more would keep these here waiting, the rest comes with the next look at them.
template <int Together, class S>
inline void add_together(const S* const* x, const double* weight, int64_t d, int64_t ahead, double* out) {
  constexpr int L = kLanes<double>;
  int64_t k = 0;
  for (; k + L <= d; k += L) {
    auto total = load_raw<Full<double>>(out + k);
    for (int r = 0; r < Together; ++r) {
      if (r % 2 == 0) __builtin_prefetch(reinterpret_cast<const char*>(x[r] + k) + ahead);
      total = total + load<double, L>(x[r] + k) * weight[r];
    }
    memcpy(out + k, &total, sizeof(total));
  }
  for (; k < d; ++k)
    for (int r = 0; r < Together; ++r) out[k] += weight[r] * static_cast<double>(widen(x[r][k]));
}

// Entries of one sum, as many side by side as there are.
template <class S>
void add_all(const S* rows, int64_t stride, const int64_t* row, int64_t count, const double* weight, int64_t d, double* out) {
  constexpr int64_t kTogether = 8;
  const int64_t ahead = row ? 0 : kTogether * stride * static_cast<int64_t>(sizeof(S));
  for (int64_t q = 0; q < count;) {
    const S* x[kTogether];
    const int64_t left = count - q < kTogether ? count - q : kTogether;
    for (int64_t r = 0; r < left; ++r) x[r] = rows + (row ? row[q + r] : q + r) * stride;
    if (left == kTogether) {
      add_together<kTogether>(x, weight + q, d, ahead, out);
      q += kTogether;
    } else if (left >= 4) {
      add_together<4>(x, weight + q, d, ahead, out);
      q += 4;
    } else {
      add_together<1>(x, weight + q, d, ahead, out);
      q += 1;
    }
  }
}

}  // namespace

void add_weighted_rows(const void* rows, Storage storage, int64_t d, const int64_t* row, int64_t count,
                       const double* weight, const int64_t* cell, int64_t first, int64_t last, double* out) {
  visit(rows, storage, [&](auto* p) {
    if (!cell) return add_all(p + first, d, row, count, weight, last - first, out + first);
    for (int64_t q = 0; q < count; ++q)
      add_scaled(p + (row ? row[q] : q) * d + first, weight[q], last - first, out + cell[q] * d + first);
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
