// The labels in fixed chunks, each with its own partial gradient; partials are added in chunk order.
#include <algorithm>
#include <vector>

#include "operations/levels.hpp"
#include "operations/operations.hpp"

namespace dal {

double bradley_terry_loss(const Rows& rows, const double* choice, const double* reward, const double* rationality,
                          const double* sample_weight, double* gradient, double* rationality_gradient,
                          const Call& call) {
  const KernelTable& k = kernels();
  const int64_t n = rows.n, d = rows.d;
  constexpr int64_t kMostChunks = 64;  // bounds the partial gradients at 64 d values
  const int64_t per_chunk = std::max<int64_t>(256, chunks_of(n, kMostChunks));
  const int64_t chunks = chunks_of(n, per_chunk);
  std::vector<double> partial(static_cast<size_t>(chunks * d), 0.0), losses(static_cast<size_t>(chunks), 0.0);
  std::vector<std::vector<double>> scratch(static_cast<size_t>(call.threads));
  parallel_for(chunks, call, [&](int64_t chunk, int worker) {
    auto& mine = scratch[static_cast<size_t>(worker)];
    const int64_t most = std::min<int64_t>(per_chunk, chunk_rows(rows));
    if (rows.needs_scratch()) mine.resize(static_cast<size_t>((most + 1) * d));
    const int64_t end = std::min(n, (chunk + 1) * per_chunk);
    for (int64_t start = chunk * per_chunk; start < end; start += most) {
      const int64_t stop = std::min(end, start + most);
      const Block block = block_of(k, rows, start, stop, mine.data());
      losses[static_cast<size_t>(chunk)] +=
          k.bradley_terry(block.rows, block.storage, stop - start, d, choice + start, reward, rationality + start,
                          sample_weight ? sample_weight + start : nullptr, partial.data() + chunk * d,
                          rationality_gradient + start);
    }
  });
  std::fill(gradient, gradient + d, 0.0);
  double loss = 0;
  for (int64_t c = 0; c < chunks; ++c) {
    loss += losses[static_cast<size_t>(c)];
    for (int64_t j = 0; j < d; ++j) gradient[j] += partial[static_cast<size_t>(c * d + j)];
  }
  return loss;
}

}  // namespace dal
