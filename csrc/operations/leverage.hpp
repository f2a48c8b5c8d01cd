// |W x|^2 in float64 for runs or lists of conversations, shared by the leverage operation and the selection.
#pragma once

#include <vector>

#include "operations/levels.hpp"
#include "operations/rows.hpp"

namespace dal {

class Leverage {
 public:
  Leverage(const KernelTable& k, const double* inverse_factor, int64_t d)
      : kernels_(k), d_(d), packed_(static_cast<size_t>(k.packed_factor_size(d, false))) {
    k.pack_factor_double(inverse_factor, d, packed_.data());
  }

  // Working space of one thread, for at most `count` conversations at a time.
  struct Space {
    std::vector<double> rows;
    void reserve(int64_t count, int64_t d) { rows.resize(static_cast<size_t>((count + 1) * d)); }
  };

  // out[q] = h of conversation start + q
  void run(const Rows& pool, int64_t start, int64_t stop, Space& space, double* out) const {
    const Block block = block_of(kernels_, pool, start, stop, space.rows.data());
    const double* x = space.rows.data();
    if (block.storage == Storage::f64) {
      x = static_cast<const double*>(block.rows);
    } else {
      kernels_.to_double(block.rows, block.storage, (stop - start) * d_, space.rows.data());
    }
    kernels_.whitened_squares_double(x, stop - start, d_, packed_.data(), out);
  }

  // out[q] = h of conversation list[q]; the rows stay in space.rows as float64
  void list(const Rows& pool, const int64_t* conversations, int64_t count, Space& space, double* out) const {
    double* other = space.rows.data() + count * d_;
    for (int64_t q = 0; q < count; ++q) gather(kernels_, pool, conversations[q], space.rows.data() + q * d_, other);
    kernels_.whitened_squares_double(space.rows.data(), count, d_, packed_.data(), out);
  }

 private:
  const KernelTable& kernels_;
  int64_t d_;
  std::vector<double> packed_;
};

}  // namespace dal
