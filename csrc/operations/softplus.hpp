// Means of the softplus family under normal laws, for laws in any order and of any spread.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/table.hpp"

namespace dal {

// Working space of one thread for `most` laws at a time.
class SoftplusMoments {
 public:
  SoftplusMoments(const KernelTable& k, int64_t most);
  // out: five rows, `stride` apart: E sp, E s, E s', E t s', E t^2 s'; count <= most, sd >= 0
  void run(const double* mean, const double* sd, int64_t count, double* out, int64_t stride);

 private:
  const KernelTable& kernels_;
  int64_t room_;  // `most`, up to whole vectors
  std::vector<int64_t> chosen_[4];  // laws of each kind
  std::vector<double> space_;  // mean, sd, tail, five rows of results: `room_` values each
};

}  // namespace dal
