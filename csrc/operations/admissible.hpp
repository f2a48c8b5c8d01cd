// Which teachers may answer on which conversation, and how much the best of them is worth.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>
#include <unordered_map>
#include <utility>
#include <vector>

#include "formulas.hpp"
#include "operations/selection.hpp"
#include "operations/teachers.hpp"

namespace dal {

// Admissible pairs at two times: `start`, the start of the batch, and now, with capacities used up and pairs asked.
// Weights without costs, weights per unit cost with them.
class Admissible {
 public:
  explicit Admissible(const SelectionProblem& p)
      : p_(p),
        capacity_(p.capacity, p.capacity + p.m),
        start_(p.rationality, p.available, p.capacity, p.m, p.categories),
        now_(start_) {}

  // An upper bound on w (or w / cost) over the teachers admissible at the start; exact where no pair is excluded.
  // -1: nobody may answer.
  double start_bound(int64_t i, int32_t c, double margin) const {
    if (p_.blocked && p_.blocked[i]) return -1;
    if (p_.candidate_offsets || p_.cost) return largest(i, c, margin, Time::start_ignoring_exclusions);
    return start_.largest_weight(margin, c);
  }

  bool open(int64_t i) const { return !(p_.blocked && p_.blocked[i]); }
  // The same for a whole category, whoever the conversation excludes.
  double category_bound(int32_t c, double margin) const { return start_.largest_weight(margin, c); }

  // The bound of a conversation, exact.
  double start_largest(int64_t i, int32_t c, double margin) const {
    if (p_.blocked && p_.blocked[i]) return -1;
    if (!plain(i)) return largest(i, c, margin, Time::start);
    return start_.largest_weight(margin, c);
  }

  // The `repeats` largest weights (or weights per cost) at the start, appended to `out` in any order.
  void start_weights(int64_t i, int32_t c, double margin, std::vector<double>& out) const;

  // The largest objective now for leverage h: w h, or log1p(w h) / cost. -1: nobody may answer.
  double objective(int64_t i, int32_t c, double margin, double h) const {
    if (p_.blocked && p_.blocked[i]) return -1;
    if (plain(i) && !was_asked(i)) {
      const double w = now_.largest_weight(margin, c);
      return w < 0 ? -1 : w * h;
    }
    double best = -1;
    each(i, c, Time::now, [&](int64_t j) { best = std::fmax(best, value(j, c, margin, h)); });
    return best;
  }

  // The smallest teacher whose objective is at least `floor`, and its weight.
  TeacherTable::Best smallest_reaching(int64_t i, int32_t c, double margin, double h, double floor) const {
    TeacherTable::Best found{-1, 0};
    each(i, c, Time::now, [&](int64_t j) {
      if ((found.teacher < 0 || j < found.teacher) && value(j, c, margin, h) >= floor)
        found = {j, choice_weight(margin, beta(j, c))};
    });
    return found;
  }

  // Records that (i, j) is asked; returns false when conversation i has used up its repeats.
  bool ask(int64_t i, int64_t j);

  double cost(int64_t j, int32_t c) const { return p_.cost ? p_.cost[j * p_.categories + c] : 1.0; }

 private:
  enum class Time { start_ignoring_exclusions, start, now };

  double beta(int64_t j, int32_t c) const { return p_.rationality[j * p_.categories + c]; }
  double value(int64_t j, int32_t c, double margin, double h) const {
    const double wh = choice_weight(margin, beta(j, c)) * h;
    return p_.cost ? log1p(wh) / cost(j, c) : wh;
  }
  // A weight per unit cost; 0 only where the weight is 0, so that a bound of 0 means a value of 0.
  double per_cost(double weight, int64_t j, int32_t c) const {
    const double share = weight / cost(j, c);
    return share > 0 || weight == 0 ? share : std::numeric_limits<double>::min();
  }
  // Nothing but the category decides who may answer, and there are no costs: the sorted table serves.
  bool plain(int64_t i) const { return !p_.candidate_offsets && !p_.cost && exclusions(i).first == exclusions(i).second; }
  bool was_asked(int64_t i) const { return p_.repeats > 1 && asked_.count(i) > 0; }

  std::pair<int64_t, int64_t> exclusions(int64_t i) const;
  bool excluded(int64_t i, int64_t j) const;

  double largest(int64_t i, int32_t c, double margin, Time time) const {
    double best = -1;
    each(i, c, time, [&](int64_t j) { best = std::fmax(best, per_cost(choice_weight(margin, beta(j, c)), j, c)); });
    return best;
  }

  // f(j) for every teacher admissible at that time
  template <class F>
  void each(int64_t i, int32_t c, Time time, F f) const {
    const auto* asked = time == Time::now && was_asked(i) ? &asked_.at(i) : nullptr;
    const auto offer = [&](int64_t j) {
      if (!p_.available[j * p_.categories + c]) return;
      if ((time == Time::now ? capacity_[static_cast<size_t>(j)] : p_.capacity[j]) == 0) return;
      if (time != Time::start_ignoring_exclusions && excluded(i, j)) return;
      if (asked)
        for (int64_t other : *asked)
          if (other == j) return;
      f(j);
    };
    if (p_.candidate_offsets) {
      for (int64_t k = p_.candidate_offsets[i]; k < p_.candidate_offsets[i + 1]; ++k) offer(p_.candidate_teacher[k]);
    } else {
      for (int64_t j = 0; j < p_.m; ++j) offer(j);
    }
  }

  const SelectionProblem& p_;
  std::vector<int64_t> capacity_;
  TeacherTable start_, now_;
  std::unordered_map<int64_t, std::vector<int64_t>> asked_;
};

}  // namespace dal
