// M = ridge I + sum_t w_t x_t x_t': blocks of labels in order, the tiles of one block shared among the threads.
#include <algorithm>
#include <vector>

#include "operations/levels.hpp"
#include "operations/operations.hpp"

namespace dal {
namespace {

constexpr int64_t kLabels = 256;  // labels per block: two packed blocks of d = 512 fill 2 MB

// to[tile][t][c] = scale_t x_t[tile * width + c], zeros past d
void pack_labels(const double* x, const double* scale, int64_t labels, int64_t d, int64_t width, double* to) {
  for (int64_t k0 = 0; k0 < d; k0 += width)
    for (int64_t t = 0; t < labels; ++t)
      for (int64_t c = 0; c < width; ++c)
        *to++ = k0 + c < d ? (scale ? scale[t] : 1.0) * x[t * d + k0 + c] : 0.0;
}

}  // namespace

void information_matrix(const Rows& rows, const double* weight, double ridge, double* out, const Call& call) {
  const KernelTable& k = kernels();
  const int64_t d = rows.d, tr = k.tile_rows, tc = k.tile_columns;
  const int64_t down = chunks_of(d, tr), across = chunks_of(d, tc), stride = across * tc;
  std::vector<double> sum(static_cast<size_t>(down * tr * stride), 0.0);
  std::vector<double> x(static_cast<size_t>(kLabels * d));
  std::vector<double> scratch(rows.needs_scratch() ? static_cast<size_t>((kLabels + 1) * d) : 0);
  std::vector<double> left(static_cast<size_t>(down * tr * kLabels)), right(static_cast<size_t>(stride * kLabels));
  for (int64_t start = 0; start < rows.n; start += kLabels) {
    const int64_t labels = std::min(kLabels, rows.n - start);
    const Block block = block_of(k, rows, start, start + labels, scratch.data());
    k.to_double(block.rows, block.storage, labels * d, x.data());
    pack_labels(x.data(), weight + start, labels, d, tr, left.data());
    pack_labels(x.data(), nullptr, labels, d, tc, right.data());
    // Lower triangle only: tiles whose last row reaches their first column.
    parallel_for(down, call, [&](int64_t i, int) {
      for (int64_t j = 0; j < across && j * tc < (i + 1) * tr; ++j)
        k.outer_tile(left.data() + i * tr * labels, right.data() + j * tc * labels, labels,
                     sum.data() + i * tr * stride + j * tc, stride);
    });
    poll_sometimes(call);
  }
  for (int64_t i = 0; i < d; ++i)
    for (int64_t j = 0; j <= i; ++j) out[i * d + j] = out[j * d + i] = sum[static_cast<size_t>(i * stride + j)];
  for (int64_t i = 0; i < d; ++i) out[i * d + i] += ridge;
}

}  // namespace dal
