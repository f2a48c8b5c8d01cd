// Element-by-element float64 steps of the final routine (operations/design.cpp).
//
// This file alone is compiled with -ffp-contract=off: one rounding for each product and one for each sum, no
// reductions, so every SIMD level gives the same bits and finalists are decided alike everywhere.
#include "kernels/level.hpp"
#include "kernels/simd.hpp"

namespace dal {
namespace DAL_LEVEL {
namespace {

using V = Full<double>;

inline void store(double* to, V v) { memcpy(to, &v, sizeof(v)); }

}  // namespace

// z -= scale x
void subtract_scaled(const double* x, double scale, int64_t count, double* z) {
  constexpr int L = kLanes<double>;
  int64_t i = 0;
  for (; i + L <= count; i += L) store(z + i, load_raw<V>(z + i) - load_raw<V>(x + i) * scale);
  for (; i < count; ++i) z[i] -= x[i] * scale;
}

// (x, y) <- (c x + s y, c y - s x)
void rotate(double c, double s, int64_t count, double* x, double* y) {
  constexpr int L = kLanes<double>;
  int64_t i = 0;
  for (; i + L <= count; i += L) {
    const V a = load_raw<V>(x + i), b = load_raw<V>(y + i);
    store(x + i, a * c + b * s);
    store(y + i, b * c - a * s);
  }
  for (; i < count; ++i) {
    const double a = x[i], b = y[i];
    x[i] = a * c + b * s;
    y[i] = b * c - a * s;
  }
}

}  // namespace DAL_LEVEL
}  // namespace dal
