// Two-sided bounds on leverages from products in bfloat16, several times faster than single precision where the
// processor has instructions for them, and tight while M is not too ill-conditioned.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/bfloat16/products.hpp"
#include "operations/rows.hpp"
#include "operations/selection.hpp"
#include "operations/threads.hpp"

namespace dal {

class Bfloat16Pass {
 public:
  Bfloat16Pass(const SelectionProblem& problem, double rounding, const Call& call);

  // Whether this processor has the products and |M^-1| is known.
  bool usable() const { return usable_; }
  // How many times faster than in single precision.
  double speed() const { return k_->speed; }

  // Working space of one thread, for at most `count` rows at a time.
  class Space {
   public:
    void reserve(const Bfloat16Pass& pass, int64_t count);

   private:
    friend class Bfloat16Pass;
    std::vector<uint16_t> tiles_;
    std::vector<float> sums_;  // margins, squares, residuals and whitened squares
    int64_t count_ = 0;
  };

  // low[q] <= h <= high[q] at the start, |u| >= margin[q], square[q] about |x|^2, for `count` consecutive rows. Out of
  // reach of single precision: low 0, high infinite, margin 0. low may be null.
  void bounds(const void* rows, Storage storage, int64_t count, Space& space, double* low, double* high, double* margin,
              double* square) const;

  // z_q = scale W x_q, d rounded up to whole blocks of 32 apart, for `count` rows and as many more as fill a block, with
  // an error of norm at most error[q]. The rows are float, `stride` apart, zero between d and stride, |x_q| <= norm[q].
  void whitened(const float* rows, int64_t count, int64_t stride, const float* norm, Space& space, float* z,
                float* error) const;

 private:
  double error_of(double norm, double rest) const;

  const Bfloat16Table* k_;
  int64_t d_;
  bool usable_ = false;
  std::vector<uint16_t> factor_;
  const uint16_t* packed_ = nullptr;
  std::vector<float> reward_;
  double scale_ = 1, reward_norm_ = 0, factor_norm_ = 0, factor_error_ = 0, sums_ = 0, square_up_ = 1;
  double squares_ = 0, flushed_ = 0, flushed_norm_ = 0, margin_error_ = 0, up_ = 1, down_ = 1;
};

}  // namespace dal
