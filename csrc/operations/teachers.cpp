#include "operations/teachers.hpp"

#include <algorithm>
#include <cmath>

#include "formulas.hpp"
#include "operations/operations.hpp"

namespace dal {

TeacherTable::TeacherTable(const double* rationality, const uint8_t* available, const int64_t* capacity, int64_t m,
                           int64_t categories) {
  offsets_.push_back(0);
  for (int64_t c = 0; c < categories; ++c) {
    const size_t begin = entries_.size();
    for (int64_t j = 0; j < m; ++j) {
      if (available && !available[j * categories + c]) continue;
      if (capacity && capacity[j] == 0) continue;
      entries_.push_back({std::fabs(rationality[j * categories + c]), j});
    }
    const auto first = entries_.begin() + static_cast<int64_t>(begin);
    std::sort(first, entries_.end(), [](const Entry& x, const Entry& y) {
      return x.rationality < y.rationality || (x.rationality == y.rationality && x.teacher < y.teacher);
    });
    // Equal rationalities have equal weights: the smallest teacher stands for all of them.
    const auto last = std::unique(first, entries_.end(),
                                  [](const Entry& x, const Entry& y) { return x.rationality == y.rationality; });
    entries_.erase(last, entries_.end());
    offsets_.push_back(static_cast<int64_t>(entries_.size()));
  }
}

// At a fixed margin u the weight t^2 s'(t) / u^2, t = beta |u|, rises to t* and falls after it, so the largest over a
// sorted list is at one of the two neighbours of t* / |u|.
const TeacherTable::Entry* TeacherTable::peak(double margin, const Entry* first, const Entry* last,
                                              double* weight) const {
  const double u = std::fabs(margin);
  const double target = u > 0 ? kPeakRationality / u : INFINITY;
  const Entry* above = std::lower_bound(first, last, target,
                                        [](const Entry& e, double value) { return e.rationality < value; });
  if (above == last) --above;
  *weight = choice_weight(u, above->rationality);
  if (above != first) {
    const double below = choice_weight(u, (above - 1)->rationality);
    if (below > *weight) {
      *weight = below;
      return above - 1;
    }
  }
  return above;
}

double TeacherTable::largest_weight(double margin, int32_t category) const {
  const Entry* first = entries_.data() + offsets_[category];
  const Entry* last = entries_.data() + offsets_[category + 1];
  if (first == last) return -1;
  double weight;
  peak(margin, first, last, &weight);
  return weight;
}

TeacherTable::Best TeacherTable::best(double margin, int32_t category) const {
  const Entry* first = entries_.data() + offsets_[category];
  const Entry* last = entries_.data() + offsets_[category + 1];
  if (first == last) return {-1, 0};
  double weight;
  const Entry* at = peak(margin, first, last, &weight);
  int64_t teacher = at->teacher;
  double largest = weight;
  // Neighbours inside the tie window, on both sides: weights fall away from the peak, so the walk ends at the first
  // one outside. Rounding can put a neighbour above the peak entry by an ulp; the window is far wider than that.
  for (const Entry* e = at; e-- != first;) {
    const double w = choice_weight(margin, e->rationality);
    if (w < weight * (1 - kTie)) break;
    largest = std::max(largest, w);
    teacher = std::min(teacher, e->teacher);
  }
  for (const Entry* e = at + 1; e < last; ++e) {
    const double w = choice_weight(margin, e->rationality);
    if (w < weight * (1 - kTie)) break;
    largest = std::max(largest, w);
    teacher = std::min(teacher, e->teacher);
  }
  return {teacher, largest};
}

void best_teacher(const double* margin, const int32_t* category, int64_t n, const double* rationality,
                  const uint8_t* available, int64_t m, int64_t categories, int64_t* teacher, double* weight,
                  const Call& call) {
  const TeacherTable table(rationality, available, nullptr, m, categories);
  constexpr int64_t kChunk = 4096;
  parallel_for(chunks_of(n, kChunk), call, [&](int64_t chunk, int) {
    for (int64_t i = chunk * kChunk; i < std::min(n, (chunk + 1) * kChunk); ++i) {
      const TeacherTable::Best best = table.best(margin[i], category[i]);
      teacher[i] = best.teacher;
      weight[i] = best.weight;
    }
  });
}

}  // namespace dal
