// Rounding is that of teachers.cpp: a computed weight W of the true w has |W - w| <= 1e-13 w + z / 2, and for w2 <= w1
// the computed worths obey N2 <= N1 (1 + 1e-12) + r with r = z h + 1e-300. The beta nearest to t* / |u| may be off by an
// ulp where that lies inside the interval; there w is flat, so that this is far below 1e-13 w.
#include "operations/intervals.hpp"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>

#include "formulas.hpp"

namespace dal {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr double kUnderflow = 1e-300;
constexpr double kZeroFrom = 746;  // exp(-t) is 0 from here on

}  // namespace

// The weights of a category at one margin.
class IntervalTable::Weights {
 public:
  Weights(const Category& category, double margin)
      : category_(category), u_(std::fabs(margin)), peak_(kPeakRationality / u_), underflow_(kUnderflow) {
    const auto& lower = category.lower;
    above_ = std::upper_bound(lower.begin(), lower.end(), peak_) - lower.begin();
    if (lower.back() * u_ > 700) {  // past t* only a lower end counts
      const double reach = std::min(lower.back(), kZeroFrom / u_);
      underflow_ += reach * reach * kUnderflow;
    }
  }

  // The first position whose interval lies wholly past the peak.
  int64_t above() const { return above_; }
  double underflow() const { return underflow_; }
  double at(double rationality) const { return choice_weight(u_, rationality); }
  // Of a teacher before above(), by its upper end.
  double below(double upper) const { return at(std::min(upper, peak_)); }
  double operator()(int64_t position) const {
    const auto q = static_cast<size_t>(position);
    return position < above_ ? below(category_.upper[q]) : at(category_.lower[q]);
  }
  // No weight is larger than the largest of these two, but for roundings far below the tie window.
  bool decided(double upper, int64_t next, double weight) const {
    if (weight > 1e13 * underflow_) return true;
    const bool nothing_below = upper < peak_ && (upper < 0 || upper * upper == 0);
    return nothing_below &&
           (next == category_.count() || category_.lower[static_cast<size_t>(next)] * u_ > kZeroFrom);
  }

 private:
  const Category& category_;
  double u_, peak_, underflow_;
  int64_t above_;
};

IntervalTable::IntervalTable(const double* lower, const double* upper, const uint8_t* available,
                             const int64_t* capacity, const double* cost, int64_t m, int64_t categories)
    : m_(m),
      costs_(cost != nullptr),
      categories_(static_cast<size_t>(categories)),
      place_(static_cast<size_t>(m * categories), -1) {
  for (int64_t c = 0; c < categories; ++c) {
    Category& to = categories_[static_cast<size_t>(c)];
    for (int64_t j = 0; j < m; ++j)
      if (!(available && !available[j * categories + c]) && !(capacity && capacity[j] == 0)) to.teacher.push_back(j);
    std::stable_sort(to.teacher.begin(), to.teacher.end(), [&](int64_t a, int64_t b) {
      return lower[a * categories + c] < lower[b * categories + c];
    });
    while (to.leaves <= to.count()) to.leaves *= 2;
    to.range.assign(static_cast<size_t>(2 * to.leaves), Range{-1, kInfinity});
    for (int64_t q = 0; q < to.count(); ++q) {
      const int64_t at = to.teacher[static_cast<size_t>(q)] * categories + c;
      place_[static_cast<size_t>(at)] = static_cast<int32_t>(q);
      to.lower.push_back(lower[at]);
      to.upper.push_back(upper[at]);
      to.cost.push_back(cost ? cost[at] : 1.0);
      to.range[static_cast<size_t>(to.leaves + q)] = {upper[at], to.cost.back()};
    }
    for (int64_t k = to.leaves; --k > 0;) to.summarise(k);
  }
}

void IntervalTable::Category::summarise(int64_t k) {
  const Range &left = range[static_cast<size_t>(2 * k)], &right = range[static_cast<size_t>(2 * k + 1)];
  range[static_cast<size_t>(k)] = {std::max(left.upper, right.upper), std::min(left.cost, right.cost)};
}

double IntervalTable::Category::largest_upper(int64_t before, const Closed& closed) const {
  if (!closed.empty()) return largest_upper(1, 0, leaves, before, closed, -1);
  double found = -1;  // over the ranges that make up the positions before
  for (int64_t k = leaves + before; k > 1; k >>= 1)
    if (k & 1) found = std::max(found, range[static_cast<size_t>(k - 1)].upper);
  return found;
}

double IntervalTable::Category::largest_upper(int64_t k, int64_t first, int64_t last, int64_t before,
                                              const Closed& closed, double found) const {
  const double most = range[static_cast<size_t>(k)].upper;
  if (first >= before || most <= found) return found;
  if (last - first == 1) return closed(teacher[static_cast<size_t>(first)]) ? found : most;
  const int64_t middle = first + (last - first) / 2;
  const auto left = static_cast<size_t>(2 * k);
  const bool right_first = range[left + 1].upper > range[left].upper;
  for (const bool right : {right_first, !right_first})
    found = right ? largest_upper(2 * k + 1, middle, last, before, closed, found)
                  : largest_upper(2 * k, first, middle, before, closed, found);
  return found;
}

// Up to the first ancestor with somebody left beside it on the right, then down to the leftmost of these.
int64_t IntervalTable::Category::next_open(int64_t position, const Closed& closed) const {
  const auto open_at = [&](int64_t k) { return range[static_cast<size_t>(k)].upper >= 0; };
  for (; position < count(); ++position) {
    int64_t k = leaves + position;
    if (!open_at(k)) {
      do {
        while (k & 1) k >>= 1;
        if (k == 0) return count();
        ++k;
      } while (!open_at(k));
      while (k < leaves) k = open_at(2 * k) ? 2 * k : 2 * k + 1;
      position = k - leaves;
    }
    if (closed.empty() || !closed(teacher[static_cast<size_t>(position)])) return position;
  }
  return position;
}

// A walk down the tree with a bound on worth / cost for every range.
class IntervalTable::Descent {
 public:
  Descent(const Category& category, const Weights& weight, const Worth& worth, const Closed& closed)
      : category_(category),
        weight_(weight),
        worth_(worth),
        closed_(closed),
        rounding_(weight.underflow() * worth.leverage + kUnderflow) {}

  double run() {
    visit(1, 0, category_.leaves);
    return best_;
  }

 private:
  // Of the range of node k, positions from `first` up to `last`; -1: nobody.
  double bound(int64_t k, int64_t first, int64_t last) const {
    const Range& r = category_.range[static_cast<size_t>(k)];
    if (r.upper < 0) return -1;
    const int64_t above = weight_.above(), past = std::max(first, above);
    double most = first < above ? weight_.below(r.upper) : 0;
    if (past < std::min(last, category_.count())) most = std::max(most, weight_(past));
    return (worth_(most) * (1 + 1e-11) + rounding_) / r.cost;
  }

  void visit(int64_t k, int64_t first, int64_t last) {
    if (last - first == 1) {
      if (!category_.open(first)) return;
      const double value = worth_(weight_(first)) / category_.cost[static_cast<size_t>(first)];
      if (value > best_ && !closed_(category_.teacher[static_cast<size_t>(first)])) best_ = value;
      return;
    }
    const int64_t middle = first + (last - first) / 2;
    const double left = bound(2 * k, first, middle), right = bound(2 * k + 1, middle, last);
    const bool right_first = right > left;
    for (const bool to_right : {right_first, !right_first})
      if ((to_right ? right : left) > best_)
        to_right ? visit(2 * k + 1, middle, last) : visit(2 * k, first, middle);
  }

  const Category& category_;
  const Weights& weight_;
  const Worth& worth_;
  const Closed& closed_;
  double rounding_, best_ = -1;
};

double IntervalTable::largest(const Worth& worth, double margin, int32_t category, const Closed& closed) const {
  const Category& c = categories_[static_cast<size_t>(category)];
  if (c.range[1].upper < 0) return -1;
  const Weights weight(c, margin);
  if (!costs_) {
    const double upper = c.largest_upper(weight.above(), closed);
    const int64_t next = c.next_open(weight.above(), closed);
    double w = upper < 0 ? -1 : weight.below(upper);
    if (next < c.count()) w = std::max(w, weight(next));
    if (w < 0) return -1;
    if (weight.decided(upper, next, w)) return worth(w);
  }
  return Descent(c, weight, worth, closed).run();
}

template <class F>
void IntervalTable::each_open(double margin, int32_t category, const Closed& closed, F f) const {
  const Category& c = categories_[static_cast<size_t>(category)];
  if (c.range[1].upper < 0) return;
  const Weights weight(c, margin);
  const auto categories = static_cast<int64_t>(categories_.size());
  for (int64_t j = 0; j < m_; ++j) {
    const int64_t position = place_[static_cast<size_t>(j * categories + category)];
    if (position < 0 || !c.open(position) || closed(j)) continue;
    if (!f(j, weight(position), c.cost[static_cast<size_t>(position)])) return;
  }
}

IntervalTable::Best IntervalTable::smallest_reaching(double floor, const Worth& worth, double margin, int32_t category,
                                                     const Closed& closed) const {
  Best found{-1, 0};
  each_open(margin, category, closed, [&](int64_t j, double weight, double cost) {
    const bool reaches = worth(weight) / cost >= floor;
    if (reaches) found = {j, weight};
    return !reaches;
  });
  return found;
}

void IntervalTable::largest_weights(int64_t count, double margin, int32_t category, const Closed& closed,
                                    std::vector<double>& out) const {
  const auto begin = static_cast<int64_t>(out.size());
  each_open(margin, category, closed, [&](int64_t, double weight, double) {
    out.push_back(weight);
    return true;
  });
  if (static_cast<int64_t>(out.size()) - begin <= count) return;
  std::nth_element(out.begin() + begin, out.begin() + begin + count, out.end(), std::greater<>());
  out.resize(static_cast<size_t>(begin + count));
}

void IntervalTable::remove(int64_t teacher) {
  const auto categories = static_cast<int64_t>(categories_.size());
  for (int64_t c = 0; c < categories; ++c) {
    const int64_t position = place_[static_cast<size_t>(teacher * categories + c)];
    if (position < 0) continue;
    Category& from = categories_[static_cast<size_t>(c)];
    int64_t k = from.leaves + position;
    from.range[static_cast<size_t>(k)] = {-1, kInfinity};
    while (k >>= 1) from.summarise(k);
  }
}

}  // namespace dal
