// The first look at a pool: what every conversation can be worth at most, by the cheapest route.
#pragma once

#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <string>

#include "operations/admissible.hpp"
#include "operations/bfloat16_pass.hpp"
#include "operations/bounds.hpp"
#include "operations/selection.hpp"

namespace dal {

// The float at or above a number that is -1 or not negative; 0 only for 0.
inline float above(double value) {
  if (!(value > 0)) return static_cast<float>(value);  // 0, -1
  constexpr double smallest = std::numeric_limits<float>::min();  // subnormals may be flushed
  const auto f = static_cast<float>(value > smallest ? value : smallest);
  if (static_cast<double>(f) >= value) return f;
  uint32_t bits;  // of a positive number: the next float is the next integer
  memcpy(&bits, &f, sizeof(bits));
  ++bits;
  float up;
  memcpy(&up, &bits, sizeof(up));
  return up;
}

// A number for each conversation, all of them written before they are read: not cleared first, so that the threads that
// write them also fetch the memory.
class Column {
 public:
  void resize(size_t size) {
    size_ = size;
    at_.reset(size ? new float[size] : nullptr);
  }
  size_t size() const { return size_; }
  float* data() { return at_.get(); }
  float& operator[](size_t i) { return at_[i]; }
  float operator[](size_t i) const { return at_[i]; }

 private:
  size_t size_ = 0;
  std::unique_ptr<float[]> at_;
};

struct FirstPass {
  // bound[i] >= w h of every pair of conversation i that was admissible at the start (per cost with costs), whatever is
  // added to M later; -1 where nobody may answer; 0 only where every such value is 0; +infinity where single precision
  // does not reach.
  Column bound;
  // leverage[i] >= h at the start
  Column leverage;
  std::string route;
  int64_t directions = 0;
  bool tight = false;  // leverages near enough to start from: nothing but the final routine would sharpen them
};

// The routes: "bfloat16", the full product in bfloat16; "full", the full product in single precision; "screened", a few
// projections on eigenvectors of M; "warm", leverages known from an earlier round. What is cheapest is judged on a
// sample of the rows. Fills problem.leverage_out where asked for.
FirstPass first_pass(const SelectionProblem& problem, const Admissible& admissible, const SinglePass& single,
                     const Bfloat16Pass& products, double rounding, const Call& call);

}  // namespace dal
