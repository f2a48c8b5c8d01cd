// x_k <- e^(x_k) for x_k <= 0, `count` of them, in place: the weights of a softmax, less its largest exponent.
//
// Float64, to 1 ulp; 0 for -infinity. A value does not depend on its neighbours or its place.
#include "kernels/exponential.hpp"
#include "kernels/level.hpp"

namespace dal {
namespace DAL_LEVEL {

void exponentials(double* x, int64_t count) {
  constexpr int L = kLanes<double>;
  int64_t k = 0;
  for (; k + L <= count; k += L) {
    const Full<double> e = exp_of_negative(load_raw<Full<double>>(x + k));
    memcpy(x + k, &e, sizeof(e));
  }
  if (k == count) return;
  Full<double> rest = {};
  memcpy(&rest, x + k, static_cast<size_t>(count - k) * sizeof(double));
  rest = exp_of_negative(rest);
  memcpy(x + k, &rest, static_cast<size_t>(count - k) * sizeof(double));
}

}  // namespace DAL_LEVEL
}  // namespace dal
