#include "operations/levels.hpp"

#include <cstdlib>
#include <stdexcept>

#if defined(__x86_64__)
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
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

bool has_bfloat16() { return has_v4() && cpuid(7, 0).a >= 1 && has(cpuid(7, 1).a, {5}); }

// Linux hands out the registers of the matrix units on request: arch_prctl(ARCH_REQ_XCOMP_PERM, XTILEDATA).
bool has_matrix_units() {
#if defined(__linux__) && defined(SYS_arch_prctl)
  if (!has_bfloat16() || (saved_state() & 0x60000u) != 0x60000u || !has(cpuid(7, 0).d, {22, 24})) return false;
  return syscall(SYS_arch_prctl, 0x1023, 18) == 0;
#else
  return false;
#endif
}
#endif

struct Level {
  std::string name;
  const KernelTable* table;
  const Bfloat16Table* products;
};

std::vector<Level> levels_here() {
  std::vector<Level> levels = {{"generic", &generic::table, nullptr}};
#if defined(__x86_64__) && defined(DAL_HAVE_AVX2)
  if (has_v3()) levels.push_back({"avx2", &avx2::table, nullptr});
#endif
#if defined(__x86_64__) && defined(DAL_HAVE_AVX512)
  if (has_v4()) levels.push_back({"avx512", &avx512::table, nullptr});
#if defined(DAL_HAVE_AVX512BF16)
  if (has_bfloat16()) levels.push_back({"avx512bf16", &avx512::table, &avx512bf16::bfloat16_table});
#endif
#if defined(DAL_HAVE_AMX)
  if (has_matrix_units()) levels.push_back({"amx", &avx512::table, &amx::bfloat16_table});
#endif
#endif
  return levels;
}

Level named(const std::string& name) {
  std::string have;
  for (const Level& level : levels_here()) {
    if (level.name == name) return level;
    have += (have.empty() ? "" : ", ") + level.name;
  }
  throw std::invalid_argument("DAL_NATIVE_SIMD is '" + name + "'; this processor offers " + have);
}

Level chosen() {
  const char* name = std::getenv("DAL_NATIVE_SIMD");
  return name && *name ? named(name) : levels_here().back();
}

const Level& level_in_use() {
  static const Level level = chosen();
  return level;
}

}  // namespace

std::vector<std::string> available_levels() {
  std::vector<std::string> names;
  for (const Level& level : levels_here()) names.push_back(level.name);
  return names;
}

const std::string& level_name() { return level_in_use().name; }

const KernelTable& kernels() { return *level_in_use().table; }
const KernelTable& kernels(const std::string& level) { return *named(level).table; }

const Bfloat16Table* bfloat16_products() { return level_in_use().products; }

}  // namespace dal
