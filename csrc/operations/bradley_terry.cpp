// The labels in fixed chunks, each with its own partial gradient; losses and gradients are added in chunk order.
#include <numeric>
#include <vector>

#include "operations/label_sums.hpp"
#include "operations/operations.hpp"

namespace dal {

double bradley_terry_loss(const Rows& rows, const double* choice, const double* reward, const double* rationality,
                          const double* sample_weight, double* gradient, double* rationality_gradient,
                          const Call& call) {
  std::vector<double> losses(static_cast<size_t>(rows.n), 0.0);  // of each block, where it starts
  sum_over_labels(rows, gradient, call, [&](const KernelTable& k, Block block, int64_t start, int64_t count, double* sum) {
    losses[static_cast<size_t>(start)] =
        k.bradley_terry(block.rows, block.storage, count, rows.d, choice + start, reward, rationality + start,
                        sample_weight ? sample_weight + start : nullptr, sum, rationality_gradient + start);
  });
  return std::accumulate(losses.begin(), losses.end(), 0.0);
}

}  // namespace dal
