// Rounding. A computed weight W is at most 716 eps (the error of t = beta |u| <= 708 in the exponent, and a few
// operations) from the true w, relatively, plus what underflow does: at most 2^-1074 in beta^2 and in the product, and
// past t = 708, where exp(-t) is subnormal, at most 1.5 * 2^-1074 beta^2. Past 746 the exponential is 0. So amply, and
// without subnormal numbers, which are slow,
//   |W - w| <= 1e-13 w + z / 2,   z = 1e-300 (1 + min(beta_max, 746 / |u|)^2),   the square only past t = 700,
// and since log1p is within an ulp, for w2 <= w1 the computed worths obey
//   N2 <= N1 (1 + 1e-12) + r,   r = z h + 1e-300;
// and likewise N2 <= N(w2) (1 + 1e-12) + r. As a + r <= max((1 + 1e-11) a, 1e12 r), bounds on log N2 hold with a margin
// of 3e-11 as long as they are not below log(1e12 r). The margin also covers logarithms, tangents and lines: each is
// within 1e-13 (|slope| + 9) (1 + |log beta| + |log cost|). A range is passed over where its bound is below the
// logarithm of what was found; then N2 / c2 is below that too, in real numbers and so, rounding being monotone, in
// float64. What is found has the bits of a scan.
#include "operations/teachers.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

#include "formulas.hpp"
#include "operations/operations.hpp"

namespace dal {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr int64_t kNobody = std::numeric_limits<int64_t>::max();
constexpr double kUnderflow = 1e-300;
constexpr double kZeroFrom = 746;  // exp(-t) is 0 from here on
constexpr double kSteepest = 8;    // line of log cost over log beta

}  // namespace

bool Closed::operator()(int64_t teacher) const {
  return (first != last && std::binary_search(first, last, teacher)) ||
         (others && std::find(others->begin(), others->end(), teacher) != others->end());
}

double Worth::operator()(double weight) const {
  const double wh = weight * leverage;
  return logarithm ? log1p(wh) : wh;
}

// ---- in order of rationality --------------------------------------------------------------------------------

SortedTeachers::SortedTeachers(const double* rationality, const uint8_t* available, const int64_t* capacity, int64_t m,
                               int64_t categories) {
  struct Entry {
    double rationality;
    int64_t teacher;
  };
  const auto most = static_cast<size_t>(m * categories);
  rationality_.reserve(most);
  teacher_.reserve(most);
  across_.reserve(most);
  std::vector<Entry> entries;
  entries.reserve(static_cast<size_t>(m));
  for (int64_t c = 0; c < categories; ++c) {
    entries.clear();
    for (int64_t j = 0; j < m; ++j)
      if (!(available && !available[j * categories + c]) && !(capacity && capacity[j] == 0))
        entries.push_back({std::fabs(rationality[j * categories + c]), j});
    std::sort(entries.begin(), entries.end(), [](const Entry& x, const Entry& y) {
      return x.rationality < y.rationality || (x.rationality == y.rationality && x.teacher < y.teacher);
    });
    first_.push_back(static_cast<int64_t>(teacher_.size()));
    size_t start = teacher_.size();
    for (const Entry& e : entries) {
      if (start < teacher_.size() && e.rationality != rationality_.back()) start = teacher_.size();
      across_.push_back(static_cast<int32_t>(start) - static_cast<int32_t>(first_.back()));
      across_[start] = static_cast<int32_t>(teacher_.size()) - static_cast<int32_t>(first_.back());
      rationality_.push_back(e.rationality);
      teacher_.push_back(e.teacher);
    }
  }
  first_.push_back(static_cast<int64_t>(teacher_.size()));
}

SortedTeachers::View SortedTeachers::view(int64_t category) const {
  const int64_t begin = first(category);
  return {rationality_.data() + begin, teacher_.data() + begin, across_.data() + begin, first(category + 1) - begin};
}

// The weights of a category at one margin, and what rounding leaves of their order. At a fixed margin u the weight
// t^2 s'(t) / u^2, t = beta |u|, rises up to t* and falls after it.
class SortedTeachers::Weights {
 public:
  Weights(const View& view, double margin)
      : rationality_(view.rationality), count_(view.count), u_(std::fabs(margin)), underflow_(kUnderflow) {
    const double largest = rationality_[count_ - 1];
    if (largest * u_ > 700) {
      const double reach = std::min(largest, kZeroFrom / u_);
      underflow_ += reach * reach * kUnderflow;
    }
  }

  double operator()(int64_t position) const { return choice_weight(u_, rationality_[position]); }
  double t(int64_t position) const { return rationality_[position] * u_; }

  // The first position past the peak, t >= t*.
  int64_t peak() const {
    const double target = u_ > 0 ? kPeakRationality / u_ : kInfinity;
    return std::lower_bound(rationality_, rationality_ + count_, target) - rationality_;
  }
  // No weight at any margin is larger.
  double most() const { return rationality_[count_ - 1] * rationality_[count_ - 1]; }
  // How much a computed weight can exceed the truth by underflow alone.
  double underflow() const { return underflow_; }
  // No weight farther from the peak is larger than this one, but for roundings far below the tie window.
  bool leads(double weight) const { return weight > 1e13 * underflow_; }
  // Every computed weight from here on, away from the peak, is exactly 0.
  bool zero_below(int64_t position) const {
    return position < 0 || rationality_[position] * rationality_[position] == 0;
  }
  bool zero_above(int64_t position) const { return position >= count_ || t(position) > kZeroFrom; }

 private:
  const double* rationality_;
  int64_t count_;
  double u_, underflow_;
};

SortedTeachers::Best SortedTeachers::best(double margin, int32_t category) const {
  const View v = view(category);
  if (v.count == 0) return {-1, 0};
  const Weights weight(v, margin);
  int64_t below = weight.peak(), above = below;  // the walk has taken what lies between
  double lower = below > 0 ? weight(below - 1) : -1, upper = above < v.count ? weight(above) : -1;
  double most = std::max(lower, upper);
  Best found{kNobody, 0};
  if (!weight.leads(most) && !(weight.zero_below(below - 1) && weight.zero_above(above))) {
    // Underflow may have changed the order.
    for (int64_t q = 0; q < v.count; ++q) most = std::max(most, weight(q));
    for (int64_t q = 0; q < v.count; ++q)
      if (v.teacher[q] < found.teacher && weight(q) >= most * (1 - kTie)) found = {v.teacher[q], weight(q)};
    return found;
  }
  // Neighbours inside the tie window, on both sides: weights fall away from the peak, so the walk ends at the first
  // one outside. Of equal rationalities the smallest teacher comes first.
  const double floor = most * (1 - kTie);
  for (; lower >= floor; lower = below > 0 ? weight(below - 1) : -1) {
    below = v.across[below - 1];
    if (v.teacher[below] < found.teacher) found = {v.teacher[below], lower};
  }
  for (; upper >= floor; upper = above < v.count ? weight(above) : -1) {
    if (v.teacher[above] < found.teacher) found = {v.teacher[above], upper};
    above = v.across[above] + 1;
  }
  return found;
}

// ---- the tree -----------------------------------------------------------------------------------------------

TeacherTable::TeacherTable(const double* rationality, const uint8_t* available, const int64_t* capacity,
                           const double* cost, int64_t m, int64_t categories)
    : SortedTeachers(rationality, available, capacity, m, categories),
      costs_(cost != nullptr),
      place_(static_cast<size_t>(m * categories), 0) {
  for (int64_t c = 0; c < categories; ++c) {
    const View v = view(c);
    int64_t leaves = 2;
    while (leaves <= v.count) leaves *= 2;
    leaves_.push_back(leaves);
    root_.push_back(static_cast<int64_t>(range_.size()));
    range_.resize(range_.size() + static_cast<size_t>(leaves), Range{kInfinity, 0, 0, kNobody});
    open_.resize(open_.size() + static_cast<size_t>(2 * leaves), 0);
    uint8_t* open = open_.data() + 2 * root_.back();
    double beta = 0, price = 0;
    for (int64_t q = 0; q < v.count; ++q) {
      const int64_t at = v.teacher[q] * categories + c;
      place_[static_cast<size_t>(at)] = static_cast<int32_t>(q + 1);
      open[leaves + q + 1] = 1;
      cost_.push_back(cost ? cost[at] : 1.0);
      if (!cost) continue;
      log_cost_.push_back(std::log(cost_.back()));
      // So small a rationality is worth 0: any abscissa will do.
      log_rationality_.push_back(std::log(std::max(v.rationality[q], kUnderflow)));
      beta = std::max(beta, std::fabs(log_rationality_.back()));
      price = std::max(price, std::fabs(log_cost_.back()));
    }
    scale_.push_back(1 + beta + price);
    for (int64_t k = leaves; --k > 0;) open[k] = open[2 * k] | open[2 * k + 1];
    for (int64_t k = leaves; --k > 0;) summarise(c, k);
    if (cost) fit(c);
  }
}

TeacherTable::Tree TeacherTable::tree(int64_t category) const {
  const auto c = static_cast<size_t>(category);
  const int64_t begin = first(category), root = root_[c];
  return {view(category),
          leaves_[c],
          cost_.data() + begin,
          costs_ ? log_cost_.data() + begin : nullptr,
          costs_ ? log_rationality_.data() + begin : nullptr,
          open_.data() + 2 * root,
          range_.data() + root,
          scale_[c]};
}

// The teacher of node k and the ranges of its children, together.
void TeacherTable::summarise(int64_t category, int64_t k) {
  const Tree t = tree(category);
  int64_t width = t.leaves, first = k;
  for (; first > 1; first >>= 1) width /= 2;
  const int64_t position = (k * width - t.leaves) + width / 2 - 1;
  Range& r = range_[static_cast<size_t>(root_[static_cast<size_t>(category)] + k)];
  r.low = kInfinity;
  r.teacher = kNobody;
  if (position < t.sorted.count && t.open[t.leaves + position + 1]) {
    r.low = costs_ ? t.log_cost[position] : 0;
    r.teacher = t.sorted.teacher[position];
  }
  for (int64_t child = 2 * k; child < t.leaves && child <= 2 * k + 1; ++child) {
    r.low = std::min(r.low, t.range[child].low);
    r.teacher = std::min(r.teacher, t.range[child].teacher);
  }
}

// Lines below the points (log beta, log cost) of every range: the edge of their lower hull at the mean log beta, which
// lies closest to them on the whole. Any slope gives a valid line.
void TeacherTable::fit(int64_t category) {
  const Tree t = tree(category);
  for (int64_t k = 1, width = t.leaves, start = 0; k < t.leaves; ++k, start += width) {
    if (start == t.leaves) {
      start = 0;
      width /= 2;
    }
    const int64_t begin = start, end = std::min(start + width - 1, t.sorted.count);  // positions from 0
    if (begin >= end) continue;
    const double *x = t.log_rationality, *y = t.log_cost;
    double mean = 0;
    for (int64_t q = begin; q < end; ++q) mean += x[q] / static_cast<double>(end - begin);
    double slope = 0, offset = 0;
    for (int64_t left = begin, right = end - 1, turn = 0; turn < 8; ++turn) {
      slope = x[right] > x[left] ? (y[right] - y[left]) / (x[right] - x[left]) : 0;
      slope = std::clamp(slope, -kSteepest, kSteepest);
      int64_t lowest = left;
      for (int64_t q = begin; q < end; ++q)
        if (y[q] - slope * x[q] < y[lowest] - slope * x[lowest]) lowest = q;
      offset = y[lowest] - slope * x[lowest];
      if (lowest == left || lowest == right) break;
      (x[lowest] <= mean ? left : right) = lowest;
    }
    Range& r = range_[static_cast<size_t>(root_[static_cast<size_t>(category)] + k)];
    r.slope = slope;
    r.offset = offset;
  }
}

void TeacherTable::remove(int64_t teacher) {
  for (int64_t c = 0; c < categories(); ++c) {
    const int32_t position = place_[static_cast<size_t>(teacher * categories() + c)];
    if (position == 0) continue;
    const int64_t leaves = leaves_[static_cast<size_t>(c)];
    uint8_t* open = open_.data() + 2 * root_[static_cast<size_t>(c)];
    int64_t k = leaves + position;
    open[k] = 0;
    while (k >>= 1) {
      open[k] = open[2 * k] | open[2 * k + 1];
      summarise(c, k);
    }
  }
}

// Up to the first ancestor with somebody left beside it on the right, then down to the leftmost of these.
int64_t TeacherTable::Tree::next_open(int64_t position, const Closed& closed) const {
  for (; position <= sorted.count; ++position) {
    int64_t k = leaves + position;
    if (!open[k]) {
      do {
        while (k & 1) k >>= 1;
        if (k == 0) return sorted.count + 1;
        ++k;
      } while (!open[k]);
      while (k < leaves) k = open[2 * k] ? 2 * k : 2 * k + 1;
      position = k - leaves;
    }
    if (closed.empty() || !closed(sorted.teacher[position - 1])) return position;
  }
  return position;
}

int64_t TeacherTable::Tree::previous_open(int64_t position, const Closed& closed) const {
  for (; position > 0; --position) {
    int64_t k = leaves + position;
    if (!open[k]) {
      do {
        while (!(k & 1)) k >>= 1;
        if (k == 1) return 0;
        --k;
      } while (!open[k]);
      while (k < leaves) k = open[2 * k + 1] ? 2 * k + 1 : 2 * k;
      position = k - leaves;
    }
    if (closed.empty() || !closed(sorted.teacher[position - 1])) return position;
  }
  return 0;
}

// ---- searches -----------------------------------------------------------------------------------------------

// A walk down the tree with a bound on log(worth / cost) for every range. The visitor says which ranges to enter, which
// of two first, and what to do with an open teacher.
class TeacherTable::Descent {
 public:
  Descent(const Tree& tree, const Weights& weight, const Worth& worth)
      : tree_(tree),
        weight_(weight),
        worth_(worth),
        tangents_(tree.log_cost && weight.most() * worth.leverage < 1e300),
        least_(std::log(1e12 * (weight.underflow() * worth.leverage + kUnderflow))) {}

  template <class Visitor>
  void run(Visitor& visitor) const {
    visit(1, 0, tree_.leaves, kInfinity, visitor);
  }

 private:
  // What the teacher in the middle of a node says of the others.
  struct Look {
    double worth, log, slope, margin;
    double x;      // log beta, NaN where the tangent is not used
    bool below;    // the peak
    bool nothing;  // every weight farther from the peak is 0
  };

  Look look(int64_t position) const {
    const double w = weight_(position), t = weight_.t(position), worth = worth_(w), log = std::log(worth);
    const bool below = t < kPeakRationality;
    Look at{worth, log, 0, 0, 0, below, below ? weight_.zero_below(position) : weight_.zero_above(position)};
    if (tangents_ && weight_.leads(w) && worth > 1e-290) {
      const double e = exp(-t), wh = w * worth_.leverage;
      at.x = tree_.log_rationality[position];
      at.slope = (2 - t * (1 - e) / (1 + e)) * (worth_.logarithm ? wh / (1 + wh) / worth : 1);
    } else {
      at.x = std::numeric_limits<double>::quiet_NaN();
    }
    at.margin = 3e-11 + 1e-13 * ((std::fabs(at.slope) + 9) * tree_.scale + (worth > 0 ? std::fabs(log) : 0));
    return at;
  }

  // Bounds log(worth / cost) in the range of node k, positions first to last, where log worth <= top.
  double bound(const Range& r, int64_t first, int64_t last, const Look& at, double top) const {
    double most = top - r.low;
    if (at.x == at.x) {
      const double left = tree_.log_rationality[first - 1], right = tree_.log_rationality[last - 1];
      const double from = at.log + at.slope * (left - at.x), to = at.log + at.slope * (right - at.x);
      most = std::min({most, std::max(from, to) + at.margin - r.low,
                       std::max(from - r.slope * left, to - r.slope * right) + at.margin - r.offset});
    }
    return std::max(most, least_ - r.low);
  }

  template <class Visitor>
  void visit(int64_t k, int64_t first, int64_t last, double top, Visitor& visitor) const {
    const int64_t middle = first + (last - first) / 2;
    const Range none{kInfinity, 0, 0, kNobody};
    if (middle > tree_.sorted.count) {
      if (middle - first > 1) visit(2 * k, first, middle, top, visitor);
      return;
    }
    const Look at = look(middle - 1);
    if (tree_.open[tree_.leaves + middle]) visitor.teacher(middle - 1, at.worth);
    if (middle - first == 1) return;
    const double here = at.log + at.margin;
    const Range &left = tree_.range[2 * k], &right = middle < tree_.sorted.count ? tree_.range[2 * k + 1] : none;
    double lower = -kInfinity, upper = -kInfinity;
    if (left.low < kInfinity && !(at.below && at.nothing))
      lower = bound(left, first + 1, middle - 1, at, at.below ? std::min(top, here) : top);
    if (right.low < kInfinity && !(!at.below && at.nothing))
      upper = bound(right, middle + 1, std::min(last - 1, tree_.sorted.count), at, at.below ? top : std::min(top, here));
    const bool turned = visitor.prefers(right, upper, left, lower);
    for (const bool to_right : {turned, !turned})
      if (visitor.enters(to_right ? right : left, to_right ? upper : lower))
        to_right ? visit(2 * k + 1, middle, last, at.below ? top : std::min(top, here), visitor)
                 : visit(2 * k, first, middle, at.below ? std::min(top, here) : top, visitor);
  }

  const Tree& tree_;
  const Weights& weight_;
  const Worth& worth_;
  bool tangents_;  // not where a product may overflow: computed worths could exceed them
  double least_;
};

double TeacherTable::largest(const Worth& worth, double margin, int32_t category, const Closed& closed) const {
  const Tree t = tree(category);
  if (!t.open[1]) return -1;
  const Weights weight(t.sorted, margin);
  if (!costs_) {
    const int64_t peak = weight.peak();
    const int64_t below = t.previous_open(peak, closed) - 1, above = t.next_open(peak + 1, closed) - 1;
    const double lower = below < 0 ? -1 : weight(below), upper = above == t.sorted.count ? -1 : weight(above);
    const double w = lower > upper ? lower : upper;
    if (w < 0) return -1;
    if (weight.leads(w) || (weight.zero_below(below) && weight.zero_above(above))) return worth(w);
  }
  struct {
    const Tree& t;
    const Closed& closed;
    double best = -1, log_best = -kInfinity;

    bool enters(const Range& r, double bound) const { return r.low < kInfinity && (best < 0 || bound > log_best); }
    bool prefers(const Range&, double bound, const Range&, double other) const { return bound > other; }
    void teacher(int64_t position, double its_worth) {
      const double value = its_worth / t.cost[position];
      if (!(value > best) || closed(t.sorted.teacher[position])) return;
      best = value;
      log_best = log(value);
    }
  } visitor{t, closed};
  Descent(t, weight, worth).run(visitor);
  return visitor.best;
}

SortedTeachers::Best TeacherTable::smallest_reaching(double floor, const Worth& worth, double margin, int32_t category,
                                                     const Closed& closed) const {
  const Tree t = tree(category);
  if (!t.open[1]) return {-1, 0};
  const Weights weight(t.sorted, margin);
  struct {
    const Tree& t;
    const Closed& closed;
    double floor, log_floor;
    int64_t found = kNobody, at = -1;

    bool enters(const Range& r, double bound) const { return r.teacher < found && bound >= log_floor; }
    bool prefers(const Range& r, double, const Range& other, double) const { return r.teacher < other.teacher; }
    void teacher(int64_t position, double its_worth) {
      const int64_t j = t.sorted.teacher[position];
      if (j > found || !(its_worth / t.cost[position] >= floor) || closed(j)) return;
      found = j;
      at = position;
    }
  } visitor{t, closed, floor, std::log(floor)};
  Descent(t, weight, worth).run(visitor);
  if (visitor.at < 0) return {-1, 0};
  return {visitor.found, weight(visitor.at)};
}

void TeacherTable::largest_weights(int64_t count, double margin, int32_t category, const Closed& closed,
                                   std::vector<double>& out) const {
  const Tree t = tree(category);
  if (!t.open[1]) return;
  const Weights weight(t.sorted, margin);
  const auto begin = static_cast<int64_t>(out.size());
  const int64_t past = t.sorted.count, peak = weight.peak();
  int64_t below = t.previous_open(peak, closed) - 1, above = t.next_open(peak + 1, closed) - 1;
  const auto weight_at = [&](int64_t q) { return q < 0 || q == past ? -1 : weight(q); };
  double lower = weight_at(below), upper = weight_at(above), last = kInfinity;
  for (; count > 0 && std::max(lower, upper) >= 0; --count) {
    last = std::max(lower, upper);
    out.push_back(last);
    if (upper >= lower) {
      above = t.next_open(above + 2, closed) - 1;
      upper = weight_at(above);
    } else {
      below = t.previous_open(below, closed) - 1;
      lower = weight_at(below);
    }
  }
  if (weight.leads(last) || (weight.zero_below(below) && weight.zero_above(above))) return;
  // Underflow may have changed the order.
  count = static_cast<int64_t>(out.size()) - begin;
  out.resize(static_cast<size_t>(begin));
  for (int64_t q = t.next_open(1, closed); q <= past; q = t.next_open(q + 1, closed)) out.push_back(weight(q - 1));
  std::nth_element(out.begin() + begin, out.begin() + begin + count, out.end(), std::greater<>());
  out.resize(static_cast<size_t>(begin + count));
}

void best_teacher(const double* margin, const int32_t* category, int64_t n, const double* rationality,
                  const uint8_t* available, int64_t m, int64_t categories, int64_t* teacher, double* weight,
                  const Call& call) {
  const SortedTeachers teachers(rationality, available, nullptr, m, categories);
  constexpr int64_t kChunk = 4096;
  parallel_for(chunks_of(n, kChunk), call, [&](int64_t chunk, int) {
    for (int64_t i = chunk * kChunk; i < std::min(n, (chunk + 1) * kChunk); ++i) {
      const SortedTeachers::Best best = teachers.best(margin[i], category[i]);
      teacher[i] = best.teacher;
      weight[i] = best.weight;
    }
  });
}

}  // namespace dal
