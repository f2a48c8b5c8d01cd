// Sums over labels with the same bits for any number of threads.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "operations/levels.hpp"
#include "operations/rows.hpp"
#include "operations/threads.hpp"

namespace dal {

// out[0..d) = sum over all conversations of what f(kernels, block, start, count, sum) adds to `sum`, d values: fixed
// chunks, each with its own sum, added in their order; the parts of a chunk come one after the other.
template <class F>
void sum_over_labels(const Rows& rows, double* out, const Call& call, F f) {
  const KernelTable& k = kernels();
  const int64_t n = rows.n, d = rows.d;
  constexpr int64_t kMostChunks = 64;  // bounds the partial sums at 64 d values
  const int64_t per_chunk = std::max<int64_t>(256, chunks_of(n, kMostChunks));
  const int64_t chunks = chunks_of(n, per_chunk);
  std::vector<double> partial(static_cast<size_t>(chunks * d), 0.0);
  std::vector<std::vector<double>> scratch(static_cast<size_t>(call.threads));
  parallel_for(chunks, call, [&](int64_t chunk, int worker) {
    auto& mine = scratch[static_cast<size_t>(worker)];
    const int64_t most = std::min<int64_t>(per_chunk, chunk_rows(rows));
    if (rows.needs_scratch()) mine.resize(static_cast<size_t>((most + 1) * d));
    const int64_t end = std::min(n, (chunk + 1) * per_chunk);
    for (int64_t start = chunk * per_chunk; start < end; start += most) {
      const int64_t stop = std::min(end, start + most);
      f(k, block_of(k, rows, start, stop, mine.data()), start, stop - start, partial.data() + chunk * d);
    }
  });
  std::fill(out, out + d, 0.0);
  for (int64_t c = 0; c < chunks; ++c)
    for (int64_t j = 0; j < d; ++j) out[j] += partial[static_cast<size_t>(c * d + j)];
}

}  // namespace dal
