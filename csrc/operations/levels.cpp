#include "operations/levels.hpp"

#include <cstdlib>
#include <stdexcept>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace dal {
namespace {

#if defined(__x86_64__)
struct Registers {
  unsigned a = 0, b = 0, c = 0, d = 0;
};

Registers cpuid(unsigned leaf, unsigned sub) {
  Registers r;
  __get_cpuid_count(leaf, sub, &r.a, &r.b, &r.c, &r.d);
  return r;
}

// The register state that the operating system saves (XCR0); AVX needs bits 1-2, AVX-512 bits 5-7 as well.
unsigned saved_state() {
  unsigned low, high;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return low;
}

bool has(unsigned value, std::initializer_list<int> bits) {
  for (int bit : bits)
    if (!(value >> bit & 1u)) return false;
  return true;
}

// x86-64-v3: AVX2, FMA, F16C, BMI1/2, LZCNT, MOVBE. Asked of the processor itself: compiler built-ins differ.
bool has_v3() {
  const Registers one = cpuid(1, 0);
  if (!has(one.c, {12, 22, 27, 28, 29}) || (saved_state() & 0x6u) != 0x6u) return false;
  return has(cpuid(7, 0).b, {3, 5, 8}) && has(cpuid(0x80000001u, 0).c, {5});
}

// x86-64-v4 adds AVX-512 F, DQ, CD, BW, VL.
bool has_v4() { return has_v3() && (saved_state() & 0xe6u) == 0xe6u && has(cpuid(7, 0).b, {16, 17, 28, 30, 31}); }
#endif

std::vector<const KernelTable*> available_tables() {
  std::vector<const KernelTable*> tables = {&generic::table};
#if defined(__x86_64__) && defined(DAL_HAVE_AVX2)
  if (has_v3()) tables.push_back(&avx2::table);
#endif
#if defined(__x86_64__) && defined(DAL_HAVE_AVX512)
  if (has_v4()) tables.push_back(&avx512::table);
#endif
  return tables;
}

const KernelTable& chosen() {
  const char* named = std::getenv("DAL_NATIVE_SIMD");
  if (named && *named) return kernels(std::string(named));
  return *available_tables().back();
}

}  // namespace

std::vector<std::string> available_levels() {
  std::vector<std::string> names;
  for (const KernelTable* table : available_tables()) names.emplace_back(table->name);
  return names;
}

const KernelTable& kernels(const std::string& level) {
  std::string have;
  for (const KernelTable* table : available_tables()) {
    if (level == table->name) return *table;
    have += (have.empty() ? "" : ", ") + std::string(table->name);
  }
  throw std::invalid_argument("DAL_NATIVE_SIMD is '" + level + "'; this processor offers " + have);
}

const KernelTable& kernels() {
  static const KernelTable& table = chosen();
  return table;
}

}  // namespace dal
