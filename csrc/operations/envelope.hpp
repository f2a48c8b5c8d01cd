// The largest weight, or weight per cost, of each category as a table over |u|.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "operations/admissible.hpp"
#include "operations/selection.hpp"

namespace dal {

// The largest weight (per cost) of a category as a step function of |u| from above: weights fall as |u| grows, so the
// value at the lower edge of a step bounds the step. Steps are equal in the logarithm (128 a doubling) of the largest rationality
// times |u|, found from the bits of the number.
class Envelope {
 public:
  Envelope(const SelectionProblem& p, const Admissible& admissible) : admissible_(admissible) {
    if (p.candidate_offsets || p.categories > 256) return;
    // A search through costs takes longer than a look at the table, but a small pool does not make up for its making.
    if (p.cost && p.pool.n < p.categories * kSteps) return;
    steps_ = kSteps + (extra_doublings(p) << 7);
    for (int32_t c = 0; c < p.categories; ++c) {
      top_.push_back(top(p, p.upper ? p.upper : p.rationality, c));
      const double top = top_.back();
      for (int64_t s = 0; s <= steps_; ++s) {
        const double t = s == 0 ? 0 : edge(s);
        weight_.push_back(admissible.category_bound(c, top > 0 ? t / top : 0) * (1 + 1e-12));
      }
    }
  }

  double operator()(int64_t i, int32_t c, double u) const {
    if (top_.empty() || !admissible_.open(i)) return admissible_.start_bound(i, c, u);
    const double t = u * top_[static_cast<size_t>(c)];
    uint64_t bits;
    memcpy(&bits, &t, sizeof(bits));
    const int64_t s = std::clamp<int64_t>(static_cast<int64_t>(bits >> 45) - kFirst, 0, steps_);
    return weight_[static_cast<size_t>(c * (steps_ + 1) + s)];
  }

  // The tables themselves, for loops over many conversations; blocked conversations are not marked in them.
  bool tabled() const { return !top_.empty(); }
  WeightSteps steps(int32_t c) const {
    return {weight_.data() + c * (steps_ + 1), top_[static_cast<size_t>(c)], kFirst, steps_, 45};
  }

 private:
  static constexpr int64_t kFirst = static_cast<int64_t>(1023 - 10) << 7;  // steps from 2^-10
  static constexpr int64_t kSteps = 22 << 7;                              // to 2^12
  static constexpr int64_t kMostExtra = 42;                               // doublings

  static double top(const SelectionProblem& p, const double* rationality, int32_t c) {
    double found = 0;
    for (int64_t at = c; at < p.m * p.categories; at += p.categories)
      if (p.available[at]) found = std::max(found, rationality[at]);
    return found;
  }
  // Weights go on falling slowly where |u| is beyond the reach of upper ends and not yet of lower ones.
  static int64_t extra_doublings(const SelectionProblem& p) {
    int64_t doublings = 0;
    for (int32_t c = 0; p.upper && c < p.categories; ++c) {
      const double lower = top(p, p.rationality, c), upper = top(p, p.upper, c);
      const auto reaches = [&](int64_t k) { return std::ldexp(lower, static_cast<int>(k)) >= upper; };
      while (doublings < kMostExtra && !reaches(doublings)) ++doublings;
    }
    return doublings;
  }
  // Step s holds t whose leading bits are kFirst + s; its lower edge, and a little less for the division by `top`.
  static double edge(int64_t s) {
    const uint64_t bits = static_cast<uint64_t>(kFirst + s) << 45;
    double t;
    memcpy(&t, &bits, sizeof(t));
    return t * (1 - 1e-14);
  }
  const Admissible& admissible_;
  int64_t steps_ = kSteps;
  std::vector<double> top_, weight_;
};

}  // namespace dal
