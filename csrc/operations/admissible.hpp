// Which teachers may answer on which conversation, and how much the best of them is worth.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>
#include <unordered_map>
#include <utility>
#include <variant>
#include <vector>

#include "formulas.hpp"
#include "operations/intervals.hpp"
#include "operations/selection.hpp"
#include "operations/teachers.hpp"

namespace dal {

// Admissible pairs at two times: `start`, the start of the batch, and now, with capacities used up and pairs asked.
// Weights without costs, weights per unit cost with them. Searches take O(log m) and a little for every pair of the
// conversation that is excluded or asked; lists of candidates are walked.
class Admissible {
 public:
  explicit Admissible(const SelectionProblem& p)
      : p_(p),
        capacity_(p.capacity, p.capacity + p.m),
        start_(table(p)),
        now_(start_) {}

  // An upper bound on w (or w / cost) over the teachers admissible at the start; exact where no pair is excluded.
  // -1: nobody may answer.
  double start_bound(int64_t i, int32_t c, double margin) const {
    if (!open(i)) return -1;
    return p_.candidate_offsets ? largest(i, c, margin, Time::start_ignoring_exclusions) : category_bound(c, margin);
  }

  bool open(int64_t i) const { return !(p_.blocked && p_.blocked[i]); }

  // The same for a whole category, whoever the conversation excludes or lists. As |margin| grows it never rises by more
  // than 4e-13 of itself: true weights fall; a computed one is as good as true while t = beta |u| < 16; from there on
  // neighbouring numbers t are farther apart than exp errs, so that it falls, subnormal or not; and the tree finds the
  // largest, the nearest neighbours of the peak a weight within 3e-13 of it.
  double category_bound(int32_t c, double margin) const { return per_cost(start_, c, margin, {}); }

  // The bound of a conversation, exact.
  double start_largest(int64_t i, int32_t c, double margin) const {
    if (!open(i)) return -1;
    return p_.candidate_offsets ? largest(i, c, margin, Time::start) : per_cost(start_, c, margin, excluded(i));
  }

  // The weights that count at the start, appended to `out` in any order: the `repeats` largest, or with costs the
  // largest per cost.
  void start_weights(int64_t i, int32_t c, double margin, std::vector<double>& out) const;

  // The largest objective now for leverage h: w h, or log1p(w h) / cost. -1: nobody may answer.
  double objective(int64_t i, int32_t c, double margin, double h) const {
    if (!open(i)) return -1;
    if (!p_.candidate_offsets) return largest(now_, worth(h), margin, c, closed(i));
    double best = -1;
    each(i, c, Time::now, [&](int64_t j) { best = std::fmax(best, value(j, c, margin, h)); });
    return best;
  }

  // The smallest teacher whose objective is at least `floor`, and its weight.
  TeacherTable::Best smallest_reaching(int64_t i, int32_t c, double margin, double h, double floor) const {
    if (!p_.candidate_offsets)
      return std::visit(
          [&](const auto& t) { return t.smallest_reaching(floor, worth(h), margin, c, closed(i)); }, now_);
    TeacherTable::Best found{-1, 0};
    each(i, c, Time::now, [&](int64_t j) {
      if ((found.teacher < 0 || j < found.teacher) && value(j, c, margin, h) >= floor)
        found = {j, weight(j, c, margin)};
    });
    return found;
  }

  // Records that (i, j) is asked; returns false when conversation i has used up its repeats.
  bool ask(int64_t i, int64_t j);

  double cost(int64_t j, int32_t c) const { return p_.cost ? p_.cost[j * p_.categories + c] : 1.0; }

 private:
  enum class Time { start_ignoring_exclusions, start, now };

  using Table = std::variant<TeacherTable, IntervalTable>;

  static Table table(const SelectionProblem& p) {
    if (!p.upper) return TeacherTable(p.rationality, p.available, p.capacity, p.cost, p.m, p.categories);
    return IntervalTable(p.rationality, p.upper, p.available, p.capacity, p.cost, p.m, p.categories);
  }
  static double largest(const Table& table, const Worth& worth, double margin, int32_t c, const Closed& closed) {
    return std::visit([&](const auto& t) { return t.largest(worth, margin, c, closed); }, table);
  }
  static void largest_weights(const Table& table, int64_t count, double margin, int32_t c, const Closed& closed,
                              std::vector<double>& out) {
    std::visit([&](const auto& t) { t.largest_weights(count, margin, c, closed, out); }, table);
  }

  double weight(int64_t j, int32_t c, double margin) const {
    const int64_t at = j * p_.categories + c;
    const double beta = p_.rationality[at];
    return choice_weight(margin, p_.upper ? best_rationality(margin, beta, p_.upper[at]) : beta);
  }
  Worth worth(double h) const { return {h, p_.cost != nullptr}; }
  double value(int64_t j, int32_t c, double margin, double h) const {
    return worth(h)(weight(j, c, margin)) / cost(j, c);
  }

  // Teachers that conversation i may not be asked: excluded, and now also asked.
  Closed excluded(int64_t i) const;
  Closed closed(int64_t i) const;

  // A weight per unit cost is 0 only where the weight is 0, so that a bound of 0 means a value of 0.
  static double share(double quotient) { return std::fmax(quotient, std::numeric_limits<double>::min()); }
  double per_cost(const Table& table, int32_t c, double margin, const Closed& closed) const;

  double largest(int64_t i, int32_t c, double margin, Time time) const {
    double best = -1;
    each(i, c, time, [&](int64_t j) {
      const double w = weight(j, c, margin);
      best = std::fmax(best, p_.cost && w > 0 ? share(w / cost(j, c)) : w);
    });
    return best;
  }

  // f(j) for every candidate admissible at that time
  template <class F>
  void each(int64_t i, int32_t c, Time time, F f) const {
    const Closed without = time == Time::now ? closed(i) : time == Time::start ? excluded(i) : Closed{};
    for (int64_t k = p_.candidate_offsets[i]; k < p_.candidate_offsets[i + 1]; ++k) {
      const int64_t j = p_.candidate_teacher[k];
      const int64_t left = time == Time::now ? capacity_[static_cast<size_t>(j)] : p_.capacity[j];
      if (p_.available[j * p_.categories + c] && left != 0 && !without(j)) f(j);
    }
  }

  const SelectionProblem& p_;
  std::vector<int64_t> capacity_;
  Table start_, now_;
  std::unordered_map<int64_t, std::vector<int64_t>> asked_;
};

}  // namespace dal
