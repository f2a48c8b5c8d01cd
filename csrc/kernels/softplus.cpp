// E sp(t), E s(t), E s'(t), E t s'(t), E t^2 s'(t) under t ~ N(mean, sd^2), sp(t) = log(1 + e^t), s = sp'.
//
// A law a lane: mean, sd (count), `count` whole vectors; out five rows, `stride` apart, in the order above; no argument
// overlaps an output. Float64 sums in the order of the nodes, so a law does not depend on its neighbours.
#include "kernels/exponential.hpp"
#include "kernels/level.hpp"

namespace dal {
namespace DAL_LEVEL {
namespace {

using V = Full<double>;
constexpr int L = kLanes<double>;

inline void store(double* to, V v) { memcpy(to, &v, sizeof(v)); }
inline V absolute(V v) { return larger(v, -v); }

}  // namespace

// sum_q weight_q f(mean + sd node_q). The kink of sp is taken out at the mean: nothing cancels far out.
// Where |t| > 800, s' is 0 and t^2 could overflow: t is held there.
void softplus_hermite(const double* mean, const double* sd, int64_t count, const double* node, const double* weight,
                      int64_t nodes, double* out, int64_t stride) {
  for (int64_t i = 0; i < count; i += L) {
    const V mu = load_raw<V>(mean + i), sigma = load_raw<V>(sd + i), floor = larger(mu, V{});
    V softplus = {}, logistic = {}, slope = {}, slope_1 = {}, slope_2 = {};
    for (int64_t q = 0; q < nodes; ++q) {
      const V t = mu + sigma * node[q], e = exp_of_negative(-absolute(t)), inverse = 1.0 / (e + 1.0);
      const V near = larger(-larger(-t, V{} - 800.0), V{} - 800.0);
      const V s = t >= 0 ? inverse : e * inverse, weighted = e * inverse * inverse * weight[q], first = near * weighted;
      softplus += (larger(t, V{}) - floor + log1p_of_unit(e)) * weight[q];
      logistic += s * weight[q];
      slope += weighted;
      slope_1 += first;
      slope_2 += near * first;
    }
    store(out + i, floor + softplus);
    store(out + stride + i, logistic);
    store(out + 2 * stride + i, slope);
    store(out + 3 * stride + i, slope_1);
    store(out + 4 * stride + i, slope_2);
  }
}

// Wide laws: sp = max(t, 0) + an even rest, s = step + an odd rest, s' even; the first parts by the normal law itself,
// the rests by nodes t_q >= 0 whose weights hold the rest: `rests` three rows of `nodes` (sp - t, s(-t), s').
// tail[i] = P(N(0, 1) > |mean_i / sd_i|).
void softplus_wide(const double* mean, const double* sd, const double* tail, int64_t count, const double* node,
                   const double* rests, int64_t nodes, double* out, int64_t stride) {
  constexpr double kDensity = 0.3989422804014327;  // 1 / sqrt(2 pi)
  for (int64_t i = 0; i < count; i += L) {
    const V mu = load_raw<V>(mean + i), sigma = load_raw<V>(sd + i), beyond = load_raw<V>(tail + i);
    const V inverse = 1.0 / sigma, z = mu / sigma, density = inverse * kDensity;
    V softplus = {}, logistic = {}, slope = {}, slope_1 = {}, slope_2 = {};
    for (int64_t q = 0; q < nodes; ++q) {
      const double t = node[q];
      const V right = (t - mu) * inverse, left = (t + mu) * inverse;
      const V above = exp_of_negative(right * right * -0.5), below = exp_of_negative(left * left * -0.5);
      const V both = above + below, odd = above - below;
      const double weight = rests[2 * nodes + q];
      softplus += both * rests[q];
      logistic += odd * rests[nodes + q];
      slope += both * weight;
      slope_1 += odd * (weight * t);
      slope_2 += both * (weight * t * t);
    }
    const V kink = exp_of_negative(z * z * -0.5) * kDensity - absolute(z) * beyond;  // E max(t, 0) = max(mu, 0) + sd kink
    store(out + i, larger(mu, V{}) + sigma * kink + softplus * density);
    store(out + stride + i, (z > 0 ? 1.0 - beyond : beyond) - logistic * density);
    store(out + 2 * stride + i, slope * density);
    store(out + 3 * stride + i, slope_1 * density);
    store(out + 4 * stride + i, slope_2 * density);
  }
}

}  // namespace DAL_LEVEL
}  // namespace dal
