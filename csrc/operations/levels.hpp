// Which SIMD level this processor has and which one is used.
#pragma once

#include <string>
#include <vector>

#include "kernels/table.hpp"

namespace dal {

// Levels compiled in and supported by this processor and its operating system, lowest first.
std::vector<std::string> available_levels();

// The table in use: the highest available level, or the one DAL_NATIVE_SIMD names. Throws std::invalid_argument when
// that variable names no level or one that this processor lacks. Decided once, at the first call.
const KernelTable& kernels();

// The table of a named level, for tests; throws std::invalid_argument like kernels().
const KernelTable& kernels(const std::string& level);

}  // namespace dal
