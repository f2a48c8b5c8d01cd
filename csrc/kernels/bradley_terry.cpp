// loss = sum_t v_t [ y_t * -log s(b_t u_t) + (1 - y_t) * -log s(-b_t u_t) ],  u_t = x_t' theta
// d loss / d(b_t u_t) = v_t (s(b_t u_t) - y_t);  gradient = sum_t v_t b_t (s - y) x_t;  by rationality: v_t u_t (s - y)
//
// One pass over the labels, float64 sums in ascending order; the row is read twice while it is in the first cache.
#include "formulas.hpp"
#include "kernels/level.hpp"
#include "kernels/simd.hpp"

namespace dal {
namespace DAL_LEVEL {
double bradley_terry(const void* rows, Storage storage, int64_t n, int64_t d, const double* choice,
                     const double* reward, const double* rationality, const double* sample_weight, double* gradient,
                     double* rationality_gradient) {
  return visit(rows, storage, [&](auto* p) {
    double loss = 0;
    for (int64_t t = 0; t < n; ++t) {
      const auto* x = p + t * d;
      const double u = dot(x, reward, d), b = rationality[t], y = choice[t];
      const double v = sample_weight ? sample_weight[t] : 1.0;
      const double at = b * u;
      // A zero coefficient drops its term before an infinite loss could make it NaN.
      loss += v * ((y > 0 ? y * logistic_loss(at) : 0) + (y < 1 ? (1 - y) * logistic_loss(-at) : 0));
      const double residual = v * (logistic(at) - y);
      rationality_gradient[t] = residual * u;
      add_scaled(x, residual * b, d, gradient);
    }
    return loss;
  });
}

}  // namespace DAL_LEVEL
}  // namespace dal
