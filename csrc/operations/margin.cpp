// Margins, elementwise choice formulas, finiteness and the Sherman-Morrison update of leverages.
#include <algorithm>
#include <atomic>
#include <vector>

#include "formulas.hpp"
#include "operations/levels.hpp"
#include "operations/operations.hpp"

namespace dal {
namespace {

// Runs f(block of conversations, first, count) over the whole pool, chunk by chunk.
template <class F>
void each_block(const Rows& pool, const Call& call, F f) {
  const KernelTable& k = kernels();
  const int64_t per_chunk = chunk_rows(pool);
  std::vector<std::vector<double>> scratch(static_cast<size_t>(call.threads));
  parallel_for(chunks_of(pool.n, per_chunk), call, [&](int64_t chunk, int worker) {
    const int64_t start = chunk * per_chunk, stop = std::min(pool.n, start + per_chunk);
    auto& mine = scratch[static_cast<size_t>(worker)];
    if (pool.needs_scratch()) mine.resize(static_cast<size_t>((per_chunk + 1) * pool.d));
    f(k, block_of(k, pool, start, stop, mine.data()), start, stop - start);
  });
}

template <class F>
void elementwise(int64_t n, const Call& call, F f) {
  constexpr int64_t kChunk = 16384;
  parallel_for(chunks_of(n, kChunk), call, [&](int64_t chunk, int) {
    for (int64_t i = chunk * kChunk; i < std::min(n, (chunk + 1) * kChunk); ++i) f(i);
  });
}

}  // namespace

int64_t first_nonfinite(const Rows& rows, const Call& call) {
  const KernelTable& k = kernels();
  const int64_t per_chunk = chunk_rows(rows.d);
  std::atomic<int64_t> first{rows.n};
  parallel_for(chunks_of(rows.n, per_chunk), call, [&](int64_t chunk, int) {
    const int64_t start = chunk * per_chunk, stop = std::min(rows.n, start + per_chunk);
    if (start >= first.load()) return;
    const int64_t at = k.first_nonfinite(rows.at(start), rows.storage, stop - start, rows.d);
    if (at < 0) return;
    int64_t seen = first.load();
    while (start + at < seen && !first.compare_exchange_weak(seen, start + at)) {
    }
  });
  return first == rows.n ? -1 : first.load();
}

void margin(const Rows& pool, const double* reward, double* out, const Call& call) {
  if (by_completions(pool)) {  // u = phi_b' theta - phi_a' theta
    std::vector<double> value(static_cast<size_t>(pool.completions));
    margin(completions_of(pool), reward, value.data(), call);
    elementwise(pool.n, call, [&](int64_t i) {
      out[i] = value[static_cast<size_t>(pool.pair_rows[2 * i + 1])] - value[static_cast<size_t>(pool.pair_rows[2 * i])];
    });
    return;
  }
  each_block(pool, call, [&](const KernelTable& k, Block block, int64_t start, int64_t count) {
    k.margin(block.rows, block.storage, count, pool.d, reward, out + start, nullptr);
  });
}

void update_leverage(const Rows& pool, const double* direction, double coefficient, double* out, const Call& call) {
  each_block(pool, call, [&](const KernelTable& k, Block block, int64_t start, int64_t count) {
    k.update_leverage(block.rows, block.storage, count, pool.d, direction, coefficient, out + start);
  });
}

void choice_probability(const double* at, const double* rationality, int64_t n, double* out, const Call& call) {
  elementwise(n, call, [=](int64_t i) { out[i] = choice_probability(at[i], rationality[i]); });
}

void choice_weight(const double* at, const double* rationality, int64_t n, double* out, const Call& call) {
  elementwise(n, call, [=](int64_t i) { out[i] = choice_weight(at[i], rationality[i]); });
}

}  // namespace dal
