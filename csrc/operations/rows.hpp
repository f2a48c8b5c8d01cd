// The pool as the operations see it: n conversations, each a row of differences, stored or formed on the fly.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "kernels/table.hpp"
#include "operations/row_file.hpp"

namespace dal {

// Either `rows` (n, d) holds the differences themselves, or `rows` (N, d) holds completions and conversation i is the
// pair a < b of one prompt, x = row b - row a, counted by (prompt, a, b), or any pair listed in `pair_rows`.
// Where `file` is set, `rows` is null: the rows are read as they are needed. Whatever takes a Rows reaches them through
// block_of and gather, which serve both.
struct Rows {
  const void* rows = nullptr;
  int64_t first_row = 0;  // the one that `rows` points at
  RowFile* file = nullptr;
  Storage storage = Storage::f64;
  int64_t n = 0;  // conversations
  int64_t d = 0;
  const int64_t* prompt_offsets = nullptr;  // (prompts + 1): first completion of each prompt
  const int64_t* pair_offsets = nullptr;    // (prompts + 1): first conversation of each prompt
  int64_t prompts = 0;
  const int64_t* pair_rows = nullptr;  // (n, 2): completions a and b of each conversation
  int64_t completions = 0;             // N, where pairs are listed
  const int32_t* category = nullptr;   // per conversation, or per prompt where pairs are those of prompts

  bool pairs() const { return pair_offsets != nullptr; }  // of prompts
  bool formed() const { return pairs() || pair_rows; }
  bool needs_scratch() const { return formed() || file; }  // for block_of
  // Rows in memory only.
  const char* at(int64_t row) const {
    return static_cast<const char*>(rows) + (row - first_row) * d * storage_bytes(storage);
  }
  // One row as stored; of a file, in a buffer of this thread until its next call.
  const void* stored(int64_t row) const { return file ? file->row(row) : at(row); }
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

// Walks the pairs of a run of conversations: f(position in the run, prompt, row a, row b); listed pairs have prompt -1.
template <class F>
void each_pair(const Rows& pool, int64_t start, int64_t stop, F f) {
  if (start >= stop) return;
  if (pool.pair_rows) {
    for (int64_t i = start; i < stop; ++i) f(i - start, int64_t{-1}, pool.pair_rows[2 * i], pool.pair_rows[2 * i + 1]);
    return;
  }
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
  k.to_double(pool.stored(b), pool.storage, pool.d, x);
  k.to_double(pool.stored(a), pool.storage, pool.d, other);
  for (int64_t j = 0; j < pool.d; ++j) x[j] -= other[j];
}

// form_difference for a run of conversations of a file, which is read in windows of consecutive completions.
inline void form_differences_of_file(const KernelTable& k, const Rows& pool, int64_t start, int64_t stop, double* x,
                                     double* other) {
  const int64_t size = pool.d * storage_bytes(pool.storage);
  int64_t first = 0, last = 0, decoded = -1;  // completions in the window; the one in `other`
  std::vector<char> window(static_cast<size_t>(pool.file->block_rows() * size));
  const int64_t end = start < stop ? pool.prompt_offsets[pool.prompt_of(stop - 1) + 1] : 0;
  const auto completion = [&](int64_t row) {
    if (row < first || row >= last) {
      first = row;
      last = std::min(end, row + pool.file->block_rows());
      pool.file->read(first, last, window.data());
    }
    return window.data() + (row - first) * size;
  };
  each_pair(pool, start, stop, [&](int64_t, int64_t, int64_t a, int64_t b) {
    if (a != decoded) k.to_double(completion(a), pool.storage, pool.d, other);
    decoded = a;
    k.to_double(completion(b), pool.storage, pool.d, x);
    for (int64_t j = 0; j < pool.d; ++j) x[j] -= other[j];
    x += pool.d;
  });
}

// Conversations start..stop-1; scratch (stop - start + 1, d) is used only where the pool needs it.
inline Block block_of(const KernelTable& k, const Rows& pool, int64_t start, int64_t stop, double* scratch) {
  if (!pool.formed()) {
    if (!pool.file) return {pool.at(start), pool.storage};
    pool.file->read(start, stop, scratch);
    return {scratch, pool.storage};
  }
  double* other = scratch + (stop - start) * pool.d;
  if (pool.file && pool.pairs()) {
    form_differences_of_file(k, pool, start, stop, scratch, other);
  } else {
    each_pair(pool, start, stop, [&](int64_t at, int64_t, int64_t a, int64_t b) {
      form_difference(k, pool, a, b, scratch + at * pool.d, other);
    });
  }
  return {scratch, Storage::f64};
}

// Conversation i as float64 in x; `other` as in form_difference.
inline void gather(const KernelTable& k, const Rows& pool, int64_t i, double* x, double* other) {
  if (!pool.formed()) {
    k.to_double(pool.stored(i), pool.storage, pool.d, x);
  } else {
    each_pair(pool, i, i + 1, [&](int64_t, int64_t, int64_t a, int64_t b) { form_difference(k, pool, a, b, x, other); });
  }
}

// Whether a sum over listed pairs costs less as one over their completions: each is read once instead of each pair twice.
inline bool by_completions(const Rows& pool) { return pool.pair_rows && !pool.file && pool.completions <= 2 * pool.n; }

// The completions of listed pairs as if they were the conversations.
inline Rows completions_of(const Rows& pool) {
  Rows all = pool;
  all.n = pool.completions;
  all.pair_rows = nullptr;
  all.category = nullptr;
  return all;
}

// The pool with stored rows first..last-1 in memory: as it is, or, of a file, with these in `to` and no others.
inline Rows with_rows(const Rows& pool, int64_t first, int64_t last, std::vector<char>& to) {
  if (!pool.file) return pool;
  to.resize(static_cast<size_t>((last - first) * pool.d * storage_bytes(pool.storage)));
  pool.file->read(first, last, to.data());
  Rows held = pool;
  held.file = nullptr;
  held.rows = to.data();
  held.first_row = first;
  return held;
}

// Says that these conversations will be gathered soon, one by one.
inline void expect(const Rows& pool, const int64_t* conversations, int64_t count) {
  if (!pool.file) return;
  for (int64_t q = 0; q < count; ++q) {
    const int64_t i = conversations[q];
    if (pool.formed()) {
      each_pair(pool, i, i + 1, [&](int64_t, int64_t, int64_t a, int64_t b) {
        pool.file->expect(a);
        pool.file->expect(b);
      });
    } else {
      pool.file->expect(i);
    }
  }
}

// Rows per chunk: enough to amortise a packed factor, small enough that one chunk stays in the second-level cache and
// well under the interval between two looks at the interrupt hook.
inline int64_t chunk_rows(int64_t d) { return std::clamp<int64_t>((1 << 16) / (d > 0 ? d : 1), 16, 1024); }

// Of a file, at most what its working memory has room for.
inline int64_t chunk_rows(const Rows& pool) { return pool.file ? pool.file->block_rows() : chunk_rows(pool.d); }

inline int64_t chunks_of(int64_t n, int64_t per_chunk) { return (n + per_chunk - 1) / per_chunk; }

}  // namespace dal
