// sum_t w_t x_t, the same of each cell, and sum_t w_t x_t (x_t' v).
#include <algorithm>
#include <vector>

#include "operations/label_sums.hpp"
#include "operations/operations.hpp"

namespace dal {
namespace {

// Entries first..last-1 as float64 or as stored: the row of entry q is `row[q - first]` of these, q - first where null.
struct Entries {
  Block block;
  const int64_t* row;
};

// What lies in memory stays there; other rows are formed or read into `scratch`, (last - first + 1, d).
Entries entries_of(const KernelTable& k, const Rows& rows, const int64_t* row, int64_t first, int64_t last,
                   std::vector<double>& scratch, const Call& call) {
  if (!rows.needs_scratch())
    return row ? Entries{{rows.at(0), rows.storage}, row + first} : Entries{block_of(k, rows, first, last, nullptr), nullptr};
  const int64_t d = rows.d;
  scratch.resize(static_cast<size_t>((last - first + 1) * d));
  if (rows.file && !row) return {block_of(k, rows, first, last, scratch.data()), nullptr};
  if (row) expect(rows, row + first, last - first);
  std::vector<std::vector<double>> other(static_cast<size_t>(call.threads));
  constexpr int64_t kTogether = 16;
  parallel_for(chunks_of(last - first, kTogether), call, [&](int64_t chunk, int worker) {
    auto& mine = other[static_cast<size_t>(worker)];
    mine.resize(static_cast<size_t>(d));
    for (int64_t q = first + chunk * kTogether; q < std::min(last, first + (chunk + 1) * kTogether); ++q)
      gather(k, rows, row ? row[q] : q, scratch.data() + (q - first) * d, mine.data());
  });
  return {{scratch.data(), Storage::f64}, nullptr};
}

}  // namespace

void weighted_sum(const Rows& rows, const double* weight, double* out, const Call& call) {
  if (by_completions(rows)) {  // sum_t w_t (phi_b - phi_a) = sum over completions of what they enter with
    std::vector<double> total(static_cast<size_t>(rows.completions), 0.0);
    for (int64_t t = 0; t < rows.n; ++t) {
      total[static_cast<size_t>(rows.pair_rows[2 * t])] -= weight[t];
      total[static_cast<size_t>(rows.pair_rows[2 * t + 1])] += weight[t];
    }
    return weighted_sum(completions_of(rows), total.data(), out, call);
  }
  sum_over_labels(rows, out, call, [&](const KernelTable& k, Block block, int64_t start, int64_t count, double* sum) {
    k.add_weighted_rows(block.rows, block.storage, rows.d, nullptr, count, weight + start, nullptr, 0, rows.d, sum);
  });
}

void hessian_vector(const Rows& rows, const double* weight, const double* vector, double* out, const Call& call) {
  sum_over_labels(rows, out, call, [&](const KernelTable& k, Block block, int64_t start, int64_t count, double* sum) {
    k.hessian_vector(block.rows, block.storage, count, rows.d, weight + start, vector, sum);
  });
}

// Threads share the columns, and every sum is taken over the entries in their order: the same bits however many share.
void weighted_sum_by_cell(const Rows& rows, const int64_t* row, const double* weight, const int64_t* cell, int64_t count,
                          int64_t cells, double* out, const Call& call) {
  const KernelTable& k = kernels();
  const int64_t d = rows.d;
  constexpr int64_t kLeast = 64;  // columns: a row is read in pieces of whole cache lines, and not too short ones
  const int64_t width = chunks_of(std::max(kLeast, chunks_of(d, call.threads)), kLeast) * kLeast;
  const int64_t per_batch = rows.needs_scratch() ? chunk_rows(rows) : 4096;  // entries between looks at the interrupt
  std::vector<double> scratch;
  std::fill(out, out + cells * d, 0.0);
  for (int64_t first = 0; first < count; first += per_batch) {
    const int64_t last = std::min(count, first + per_batch);
    const Entries entries = entries_of(k, rows, row, first, last, scratch, call);
    parallel_for(chunks_of(d, width), call, [&](int64_t piece, int) {
      k.add_weighted_rows(entries.block.rows, entries.block.storage, d, entries.row, last - first, weight + first,
                          cell + first, piece * width, std::min(d, (piece + 1) * width), out);
    });
    poll_sometimes(call);
  }
}

}  // namespace dal
