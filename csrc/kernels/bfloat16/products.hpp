// Products in bfloat16 with sums in single precision, on processors with instructions for them. Bounds only.
//
// A table of its own beside KernelTable: compiled once for the dot products of AVX-512 BF16 and once for the matrix
// units of AMX; both read the same layouts. Single-threaded, allocates nothing, calls no library code.
#pragma once

#include <cstdint>

#include "kernels/table.hpp"

namespace dal {

// Rows and columns of a block: two tiles of 16. Sizes below are in numbers of bfloat16; buffers start at 64 bytes.
constexpr int64_t kBrainBlock = 32;

struct Bfloat16Table {
  const char* name;
  // Of the product, against whitened_squares_float of the level avx512 on the same processor: 8 measured for AMX, 0.85
  // for AVX-512 BF16, both on an Intel of the fourth generation, where the latter issues half as many instructions.
  double speed;

  // The lower triangular factor V (d, d), row-major bits of bfloat16, in the order that the products read.
  int64_t (*factor_size)(int64_t d);
  void (*pack_factor)(const uint16_t* v, int64_t d, uint16_t* packed);

  int64_t (*scratch_size)(int64_t d);

  // With b_i the row rounded to bfloat16, to nearest from its value as float, and sums in single precision:
  // margin[i] = x_i' reward, square[i] = |x_i|^2, residual[i] = |x_i - b_i|^2, whitened[i] = |V b_i|^2.
  // `reward` has d values and zeros up to a multiple of 32.
  struct Sums {
    float *margin, *square, *residual, *whitened;
  };
  void (*squares)(const void* rows, Storage storage, int64_t n, int64_t d, const float* reward, const uint16_t* packed,
                  uint16_t* scratch, const Sums& out);

  // out[i] = V b_i, rows of d rounded up to a multiple of 32, for n rounded up likewise, and residual[i] as above;
  // `reward` is not used but must be there
  void (*whitened)(const float* rows, int64_t n, int64_t d, const float* reward, const uint16_t* packed,
                   uint16_t* scratch, float* residual, float* out);
};

// Defined by csrc/kernels/bfloat16/products.cpp.
namespace avx512bf16 {
extern const Bfloat16Table bfloat16_table;
}
namespace amx {
extern const Bfloat16Table bfloat16_table;
}

}  // namespace dal
