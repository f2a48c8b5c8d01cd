// Which SIMD level this processor has and which one is used.
#pragma once

#include <string>
#include <vector>

#include "kernels/bfloat16/products.hpp"
#include "kernels/table.hpp"

namespace dal {

// Levels compiled in and supported by this processor and its operating system, lowest first.
std::vector<std::string> available_levels();

// The level in use: the highest available one, or the one DAL_NATIVE_SIMD names. Throws std::invalid_argument when that
// variable names no level or one that this processor lacks. Decided once, at the first call of any of these.
const std::string& level_name();
const KernelTable& kernels();
// The table of a named level, for tests; throws likewise.
const KernelTable& kernels(const std::string& level);
// Null below the levels "avx512bf16" and "amx".
const Bfloat16Table* bfloat16_products();

}  // namespace dal
