// The pool as the operations see it: n conversations, each a row of differences, stored or formed on the fly.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "kernels/table.hpp"

namespace dal {

// Either `rows` (n, d) holds the differences themselves, or `rows` (N, d) holds completions and conversation i is the
// pair a < b of one prompt, x = row b - row a, counted by (prompt, a, b).
struct Rows {
  const void* rows = nullptr;
  Storage storage = Storage::f64;
  int64_t n = 0;  // conversations
  int64_t d = 0;
  const int64_t* prompt_offsets = nullptr;  // (prompts + 1): first completion of each prompt
  const int64_t* pair_offsets = nullptr;    // (prompts + 1): first conversation of each prompt
  int64_t prompts = 0;
  const int32_t* category = nullptr;  // per conversation, or per prompt where pairs are formed

  bool pairs() const { return pair_offsets != nullptr; }
  const char* at(int64_t row) const {
    return static_cast<const char*>(rows) + row * d * storage_bytes(storage);
  }
  int64_t prompt_of(int64_t i) const {
    return std::upper_bound(pair_offsets, pair_offsets + prompts + 1, i) - pair_offsets - 1;
  }
  int32_t category_of(int64_t i) const { return category[pairs() ? prompt_of(i) : i]; }
};

// A run of conversations in the form the kernels read: a window of the stored rows, or differences in `scratch`.
struct Block {
  const void* rows;
  Storage storage;
};

// Walks the pairs of a run of conversations: f(position in the run, prompt, row a, row b).
template <class F>
void each_pair(const Rows& pool, int64_t start, int64_t stop, F f) {
  if (start >= stop) return;
  int64_t prompt = pool.prompt_of(start);
  int64_t within = start - pool.pair_offsets[prompt];
  for (int64_t i = start; i < stop; ++i, ++within) {
    while (i >= pool.pair_offsets[prompt + 1]) {
      ++prompt;
      within = 0;
    }
    const int64_t first = pool.prompt_offsets[prompt], count = pool.prompt_offsets[prompt + 1] - first;
    // Pairs of a: count - 1 - a of them, so b - a - 1 is what is left of `within` after the earlier a.
    int64_t a = 0, left = within;
    while (left >= count - 1 - a) left -= count - 1 - a++;
    f(i - start, prompt, first + a, first + a + 1 + left);
  }
}

// x = phi(b) - phi(a) in float64, `other` holds d values of scratch.
inline void form_difference(const KernelTable& k, const Rows& pool, int64_t a, int64_t b, double* x, double* other) {
  k.to_double(pool.at(b), pool.storage, pool.d, x);
  k.to_double(pool.at(a), pool.storage, pool.d, other);
  for (int64_t j = 0; j < pool.d; ++j) x[j] -= other[j];
}

// Conversations start..stop-1; scratch (stop - start + 1, d) is used only where pairs are formed.
inline Block block_of(const KernelTable& k, const Rows& pool, int64_t start, int64_t stop, double* scratch) {
  if (!pool.pairs()) return {pool.at(start), pool.storage};
  double* other = scratch + (stop - start) * pool.d;
  each_pair(pool, start, stop, [&](int64_t at, int64_t, int64_t a, int64_t b) {
    form_difference(k, pool, a, b, scratch + at * pool.d, other);
  });
  return {scratch, Storage::f64};
}

// Conversation i as float64 in x; `other` as in form_difference.
inline void gather(const KernelTable& k, const Rows& pool, int64_t i, double* x, double* other) {
  if (!pool.pairs()) {
    k.to_double(pool.at(i), pool.storage, pool.d, x);
  } else {
    each_pair(pool, i, i + 1, [&](int64_t, int64_t, int64_t a, int64_t b) { form_difference(k, pool, a, b, x, other); });
  }
}

// Rows per chunk: enough to amortise a packed factor, small enough that one chunk stays in the second-level cache and
// well under the interval between two looks at the interrupt hook.
inline int64_t chunk_rows(int64_t d) { return std::clamp<int64_t>((1 << 16) / (d > 0 ? d : 1), 16, 1024); }

inline int64_t chunks_of(int64_t n, int64_t per_chunk) { return (n + per_chunk - 1) / per_chunk; }

}  // namespace dal
