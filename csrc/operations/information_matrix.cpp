// M = ridge I + sum_t w_t x_t x_t': labels dealt to a few groups, each with its own sum; sums are added in their order.
#include <algorithm>
#include <cmath>
#include <vector>

#include "operations/levels.hpp"
#include "operations/operations.hpp"

namespace dal {
namespace {

constexpr int64_t kDepth = 128;         // labels packed at once: at d = 512 both copies stay in the second cache
constexpr int64_t kPitch = kDepth + 1;  // panels that many labels apart do not fall on the same lines of a cache
constexpr int64_t kTogether = 32;       // labels packed by one call
constexpr int64_t kTurn = 8 * kDepth;   // labels dealt to a group in one turn
constexpr int64_t kMostGroups = 8;      // sums of d^2 values

template <class T>
struct Steps;
template <>
struct Steps<double> {
  static constexpr bool single = false;
  static constexpr auto pack = &KernelTable::pack_labels_double;
  static constexpr auto strip = &KernelTable::outer_strip_double;
};
template <>
struct Steps<float> {
  static constexpr bool single = true;
  static constexpr auto pack = &KernelTable::pack_labels_float;
  static constexpr auto strip = &KernelTable::outer_strip_float;
};

template <class T>
class Outer {
 public:
  Outer(const Rows& rows, const double* weight)
      : rows_(rows),
        weight_(weight),
        tile_(kernels_.outer_shape(Steps<T>::single)),
        down_(chunks_of(rows.d, tile_.rows)),
        across_(chunks_of(rows.d, tile_.columns)) {}

  int64_t stride() const { return across_ * tile_.columns; }
  int64_t size() const { return down_ * tile_.rows * stride(); }

  struct Space {
    std::vector<T> left, right;
    std::vector<double> scratch;
  };

  // sum[i][j] += sum over labels first..last-1 for strips i of one part of `parts`; lower triangle, and some beyond
  void add(int64_t first, int64_t last, int64_t part, int64_t parts, Space& space, double* sum) const {
    space.left.resize(static_cast<size_t>(down_ * kPitch * tile_.left_stride));
    space.right.resize(static_cast<size_t>(across_ * kPitch * tile_.columns));
    for (int64_t start = first; start < last; start += kDepth) {
      const int64_t depth = std::min(kDepth, last - start);
      pack(start, depth, space);
      for (int64_t i = begin(part, parts); i < begin(part + 1, parts); ++i) {
        const int64_t panels = std::min(across_, chunks_of((i + 1) * tile_.rows, tile_.columns));
        (kernels_.*Steps<T>::strip)(space.left.data() + i * kPitch * tile_.left_stride, space.right.data(), depth, kPitch,
                                    panels, sum + i * tile_.rows * stride(), stride());
      }
    }
  }

 private:
  void pack(int64_t start, int64_t depth, Space& space) const {
    const int64_t together = std::min(kTogether, chunk_rows(rows_));
    if (rows_.needs_scratch()) space.scratch.resize(static_cast<size_t>((together + 1) * rows_.d));
    for (int64_t t = 0; t < depth; t += together) {
      const int64_t count = std::min(together, depth - t);
      const Block x = block_of(kernels_, rows_, start + t, start + t + count, space.scratch.data());
      (kernels_.*Steps<T>::pack)(x.rows, x.storage, count, rows_.d, weight_ + start + t, kPitch,
                                 space.left.data() + t * tile_.left_stride, space.right.data() + t * tile_.columns);
    }
  }
  // Parts of a triangle of equal area.
  int64_t begin(int64_t part, int64_t parts) const {
    const double share = std::sqrt(static_cast<double>(part) / static_cast<double>(parts));
    return static_cast<int64_t>(share * static_cast<double>(down_) + 0.5);
  }

  const KernelTable& kernels_ = kernels();
  const Rows& rows_;
  const double* weight_;
  OuterShape tile_;
  int64_t down_, across_;
};

// Every task packs for itself and waits for nobody. Groups and parts depend on sizes alone.
template <class T>
void information_matrix_of(const Rows& rows, const double* weight, double ridge, double* out, const Call& call) {
  const Outer<T> outer(rows, weight);
  const int64_t n = rows.n, d = rows.d, size = outer.size();
  const int64_t groups = std::clamp<int64_t>(n / d, 1, kMostGroups), parts = std::clamp<int64_t>(d / 512, 1, kMostGroups);
  std::vector<double> sums(static_cast<size_t>(groups * size), 0.0);
  std::vector<typename Outer<T>::Space> spaces(static_cast<size_t>(call.threads));
  const int64_t turn = std::min(kTurn, chunks_of(chunks_of(n, groups), kDepth) * kDepth);
  for (int64_t start = 0; start < n; start += groups * turn) {
    parallel_for(groups * parts, call, [&](int64_t task, int worker) {
      const int64_t group = task % groups, first = std::min(n, start + group * turn);
      outer.add(first, std::min(n, first + turn), task / groups, parts, spaces[static_cast<size_t>(worker)],
                sums.data() + group * size);
    });
    poll_sometimes(call);
  }
  parallel_for(d, call, [&](int64_t i, int) {
    for (int64_t j = 0; j <= i; ++j) {
      double total = 0;
      for (int64_t g = 0; g < groups; ++g) total += sums[static_cast<size_t>(g * size + i * outer.stride() + j)];
      out[i * d + j] = out[j * d + i] = total + (i == j ? ridge : 0);
    }
  });
}

}  // namespace

void information_matrix(const Rows& rows, const double* weight, double ridge, double* out, const Call& call,
                        bool single) {
  if (single) {
    information_matrix_of<float>(rows, weight, ridge, out, call);
  } else {
    information_matrix_of<double>(rows, weight, ridge, out, call);
  }
}

}  // namespace dal
