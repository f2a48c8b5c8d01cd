// The scalar mathematics, one copy of every formula. Host and device; internal linkage, so that a copy compiled
// for one instruction set can never be linked into code meant for another.
#pragma once

#include <math.h>

#if defined(__CUDACC__)
#define DAL_FORMULA static __host__ __device__ inline
#else
#define DAL_FORMULA static inline
#endif

namespace dal {

// s(t) = 1 / (1 + exp(-t)), without overflow for either sign.
DAL_FORMULA double logistic(double t) {
  const double e = exp(-fabs(t));
  return t >= 0 ? 1 / (1 + e) : e / (1 + e);
}

// s'(t) = s(t) (1 - s(t)) = e / (1 + e)^2 with e = exp(-|t|).
DAL_FORMULA double logistic_slope(double t) {
  const double e = exp(-fabs(t));
  return e / ((1 + e) * (1 + e));
}

// -log s(t) = log(1 + exp(-t)); for t << 0 it is -t + log1p(exp(t)).
DAL_FORMULA double logistic_loss(double t) { return log1p(exp(-fabs(t))) + (t < 0 ? -t : 0); }

// P(second completion preferred) = s(beta u)
DAL_FORMULA double choice_probability(double margin, double rationality) {
  return logistic(rationality * margin);
}

// w = beta^2 s(beta u) (1 - s(beta u))
DAL_FORMULA double choice_weight(double margin, double rationality) {
  return rationality * rationality * logistic_slope(rationality * margin);
}

// log det(M + w x x') - log det M = log(1 + w h)
DAL_FORMULA double information_gain(double weight, double leverage) { return log1p(weight * leverage); }

// t* = argmax t^2 s'(t), the root of t tanh(t / 2) = 2: the weight of a teacher, as a function of beta at a fixed
// margin u, rises while beta |u| < t* and falls after it.
static constexpr double kPeakRationality = 2.3993572805154676;

// The rationality in [lower, upper] whose weight at this margin is largest.
DAL_FORMULA double best_rationality(double margin, double lower, double upper) {
  const double peak = kPeakRationality / fabs(margin);
  return peak < lower ? lower : peak > upper ? upper : peak;
}

}  // namespace dal
