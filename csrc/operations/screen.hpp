// Spectral screening: a bound on every leverage from a few projections of the row.
#pragma once

#include <cstdint>
#include <vector>

#include "operations/selection.hpp"

namespace dal {

// How many of `total` directions to take from the low end of the spectrum: the split with the smallest expected bound
// when a row's energy along k is in proportion to lambda_k - lambda_min.
int64_t low_end(const double* lambda, int64_t d, int64_t total);

class Screen {
 public:
  // `directions` eigenvectors from both ends of the spectrum, and the reward as one more column.
  Screen(const SelectionProblem& problem, const Spectrum& spectrum, int64_t directions, double rounding);

  // Whether the spectrum allows a bound at all: the smallest eigenvalue stands clear of rounding.
  bool usable() const { return usable_; }
  int64_t directions() const { return directions_; }

  // For `count` rows: leverage[q] >= h (infinity where unknown) and margin[q] <= |u|; square is working space.
  void bounds(const float* rows, int64_t count, double* leverage, double* margin, double* square) const;

 private:
  const KernelTable& k_;
  int64_t d_, directions_, columns_ = 0;
  bool usable_ = false;
  std::vector<float> packed_, coefficient_;
  double rest_ = 0, largest_ = 0, error_ = 0, square_up_ = 0, reward_norm_ = 0, margin_error_ = 0, up_ = 0;
};

}  // namespace dal
