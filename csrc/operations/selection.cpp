// Exact greedy: B times the admissible pair with the largest w h (log1p(w h) / cost with costs), then M += w x x'.
//
// Lazy: every conversation has an upper bound that stays valid for the whole batch, because leverages only fall and
// teachers only drop out. Bounds are refreshed, best first, until nothing unrefreshed could win; the few that remain
// within rounding of the top are decided by Design::leverage, one routine with a fixed order of operations.
// Dense: every leverage is brought up to date at every pick. Same finalists, same picks.
#include "operations/selection.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>
#include <string>
#include <unordered_map>

#include "operations/admissible.hpp"
#include "operations/bounds.hpp"
#include "operations/design.hpp"
#include "operations/leverage.hpp"
#include "operations/levels.hpp"
#include "operations/operations.hpp"

namespace dal {
namespace {

constexpr double kUnknown = -1;

// A conversation that had to be looked at in float64.
struct Touched {
  int64_t conversation;
  int32_t category;
  double margin;         // |u|, as the portable routine computes it
  double start;          // leverage at the start of the batch, estimate
  double leverage;       // leverage after `additions` additions, estimate
  int64_t additions;
  double reduced;        // max(|u| - k sd, 0) decided exactly, kUnknown until needed; |u| without optimism
};

// What the final routine says of one conversation at the current M.
struct Final {
  double leverage, margin, objective;
};

struct Entry {
  double bound;
  int64_t conversation;
};

// Heap order: the largest bound first, the smallest conversation among equals.
bool later(const Entry& x, const Entry& y) {
  return x.bound < y.bound || (x.bound == y.bound && x.conversation > y.conversation);
}

class Heap {
 public:
  bool empty() const { return entries_.empty(); }
  const Entry& top() const { return entries_.front(); }
  void push(Entry e) {
    entries_.push_back(e);
    std::push_heap(entries_.begin(), entries_.end(), later);
  }
  Entry pop() {
    std::pop_heap(entries_.begin(), entries_.end(), later);
    const Entry e = entries_.back();
    entries_.pop_back();
    return e;
  }

 private:
  std::vector<Entry> entries_;
};

class Engine {
 public:
  Engine(const SelectionProblem& p, const Call& call)
      : p_(p),
        call_(call),
        k_(kernels()),
        admissible_(p),
        design_(k_, p.matrix, p.factor, p.pool.d, p.size),
        whiten_(k_, p.inverse_factor, p.pool.d),
        rounding_(rounding_of_leverage(p.matrix, p.inverse_factor, p.pool.d)),
        slot_(static_cast<size_t>(p.pool.n), -1),
        scratch_(static_cast<size_t>(3 * p.pool.d)) {
    if (p.optimism > 0) design_.keep_start();
  }

  Selection run(const std::function<void(int64_t, int64_t)>& progress) {
    if (p_.dense) {
      start_dense();
    } else {
      start_lazy();
    }
    for (int64_t b = 0; b < p_.size; ++b) {
      poll_sometimes(call_);
      evaluated_.clear();
      memo_.clear();
      best_ = kUnknown;
      if (p_.dense) {
        finalists_dense();
      } else {
        finalists_lazy();
      }
      if (evaluated_.empty() || best_ < 0) break;
      pick();
      if (progress) progress(b + 1, p_.size);
    }
    certify();
    result_.refactorisations = design_.refactorisations();
    return std::move(result_);
  }

 private:
  // ---- the conversations looked at --------------------------------------------------------------------------

  Touched& touched(int64_t conversation) {
    return touched_[static_cast<size_t>(slot_[static_cast<size_t>(conversation)])];
  }
  bool is_touched(int64_t conversation) const { return slot_[static_cast<size_t>(conversation)] >= 0; }
  bool is_current(int64_t conversation) {
    return is_touched(conversation) && touched(conversation).additions == design_.additions();
  }

  // An upper bound of the true leverage, given an estimate that has taken `additions` updates from `start`.
  double raised(double estimate, double start, int64_t additions) const {
    return estimate + start * rounding_ * (1 + 2 * static_cast<double>(additions));
  }

  // The margin that bounds every weight from above: exact where decided, else reduced by the largest sd.
  double bounding_margin(const Touched& t) const {
    if (t.reduced != kUnknown) return t.reduced;
    return std::max(t.margin - p_.optimism * std::sqrt(raised(t.start, t.start, 0)), 0.0);
  }

  double upper_objective(const Touched& t) const {
    const double h = raised(t.leverage, t.start, t.additions);
    const double value = admissible_.objective(t.conversation, t.category, bounding_margin(t), h);
    return value > 0 ? value * (1 + 1e-11) : value;
  }

  // Brings the listed conversations up to date with M, reading each row once; looks at new ones for the first time.
  void refresh(const std::vector<int64_t>& list) {
    for (int64_t conversation : list) {
      if (is_touched(conversation)) {
        ++result_.refreshes;
        continue;
      }
      slot_[static_cast<size_t>(conversation)] = static_cast<int32_t>(touched_.size());
      touched_.push_back({conversation, p_.pool.category_of(conversation), 0, kUnknown, 0, 0, kUnknown});
      ++result_.rows_rescored;
    }
    constexpr int64_t kRows = 32;
    if (spaces_.empty()) spaces_.resize(static_cast<size_t>(call_.threads));
    parallel_for(chunks_of(static_cast<int64_t>(list.size()), kRows), call_, [&](int64_t chunk, int worker) {
      Leverage::Space& space = spaces_[static_cast<size_t>(worker)];
      space.reserve(kRows, p_.pool.d);
      const int64_t first = chunk * kRows;
      refresh_run(list.data() + first, std::min(kRows, static_cast<int64_t>(list.size()) - first), space);
    });
    for (int64_t conversation : list) check_finite(touched(conversation));
  }

  void refresh_run(const int64_t* list, int64_t count, Leverage::Space& space) {
    const int64_t d = p_.pool.d;
    int64_t fresh[32];
    double h[32];
    int64_t many = 0;
    for (int64_t q = 0; q < count; ++q) {
      if (touched(list[q]).start == kUnknown) {
        fresh[many++] = list[q];
      } else {
        gather(k_, p_.pool, list[q], space.rows.data(), space.rows.data() + d);
        downdate(touched(list[q]), space.rows.data());
      }
    }
    if (many == 0) return;
    whiten_.list(p_.pool, fresh, many, space, h);
    for (int64_t q = 0; q < many; ++q) {
      Touched& t = touched(fresh[q]);
      const double* x = space.rows.data() + q * d;
      t.margin = std::fabs(portable_dot(x, p_.reward, d));
      if (p_.optimism == 0) t.reduced = t.margin;
      t.start = t.leverage = h[q];
      downdate(t, x);
    }
  }

  void downdate(Touched& t, const double* x) {
    const int64_t from = t.additions, to = design_.additions();
    if (from == to) return;
    t.leverage = k_.downdated(x, p_.pool.d, design_.direction(from), design_.coefficient(from), to - from, t.leverage);
    t.additions = to;
  }

  void check_finite(const Touched& t) const {
    if (t.leverage <= std::numeric_limits<double>::max() && t.margin <= std::numeric_limits<double>::max()) return;
    throw std::overflow_error("the leverage or margin of conversation " + std::to_string(t.conversation) +
                              " overflows float64");
  }

  // ---- the final routine ------------------------------------------------------------------------------------

  // The exact leverage and margin of one conversation; equal rows of a pick are solved once.
  Final decide(Touched& t) {
    ++result_.finalists;
    const int64_t d = p_.pool.d;
    double *x = scratch_.data(), *z = x + d, *other = z + d;
    gather(k_, p_.pool, t.conversation, x, other);
    uint64_t key = 0xcbf29ce484222325u;
    for (int64_t j = 0; j < d; ++j) {
      uint64_t bits;
      memcpy(&bits, x + j, sizeof(bits));
      key = (key ^ bits) * 0x9e3779b97f4a7c15u;
      key ^= key >> 29;
    }
    const auto [at, isnew] = memo_.try_emplace(key, Memo{t.conversation, 0, 0});
    if (!isnew) {
      gather(k_, p_.pool, at->second.conversation, z, other);
      if (memcmp(x, z, static_cast<size_t>(d) * sizeof(double)) == 0) {
        t.reduced = at->second.margin;
        return {at->second.leverage, t.reduced, 0};
      }
    }
    const double h = design_.leverage(x, z);
    if (t.reduced == kUnknown)
      t.reduced = std::max(t.margin - p_.optimism * std::sqrt(design_.leverage_at_start(x, z)), 0.0);
    if (isnew) at->second = {t.conversation, h, t.reduced};
    return {h, t.reduced, 0};
  }

  void evaluate(int64_t conversation) {
    Touched& t = touched(conversation);
    Final f = decide(t);
    f.objective = admissible_.objective(conversation, t.category, f.margin, f.leverage);
    if (f.objective < 0) return;
    best_ = std::max(best_, f.objective);
    evaluated_.push_back({conversation, f});
  }

  double floor() const { return best_ * (1 - kTie); }

  // Among the evaluated, the smallest pair within the tie window of the largest objective.
  void pick() {
    const Evaluated* chosen = nullptr;
    for (const Evaluated& e : evaluated_)
      if (e.final.objective >= floor() && (!chosen || e.conversation < chosen->conversation)) chosen = &e;
    const int64_t i = chosen->conversation;
    Touched& t = touched(i);
    const TeacherTable::Best best =
        admissible_.smallest_reaching(i, t.category, chosen->final.margin, chosen->final.leverage, floor());
    result_.conversation.push_back(i);
    result_.teacher.push_back(best.teacher);
    result_.gain.push_back(information_gain(best.weight, chosen->final.leverage));
    weights_.push_back(best.weight);
    spent_ += admissible_.cost(best.teacher, t.category);
    const bool again = admissible_.ask(i, best.teacher);
    if (p_.dense) {
      if (!again) bound_[static_cast<size_t>(i)] = -1;
    } else {
      for (const Evaluated& e : evaluated_)
        if (e.conversation != i || again) heap_.push({upper_objective(touched(e.conversation)), e.conversation});
    }
    gather(k_, p_.pool, i, scratch_.data(), scratch_.data() + p_.pool.d);
    design_.add(scratch_.data(), best.weight, call_);
  }

  // ---- lazy -------------------------------------------------------------------------------------------------

  void start_lazy() {
    bound_ = upper_bounds(p_, admissible_, rounding_, call_);
    result_.rows_streamed += p_.pool.n;
    for (size_t i = 0; i < bound_.size(); ++i) outside_largest_ = std::max(outside_largest_, bound_[i]);
    next_entry_ = std::max<int64_t>(2048, 8 * p_.size);
  }

  // Moves the next conversations, by bound, from outside into the heap: all whose bound reaches a falling floor.
  void extend_heap() {
    const auto is_outside = [&](double bound) { return bound >= 0 && (nothing_entered_ || bound < entered_floor_); };
    outside_.clear();
    for (double bound : bound_)
      if (is_outside(bound)) outside_.push_back(bound);
    double next = 0;
    if (static_cast<int64_t>(outside_.size()) > next_entry_) {
      const auto nth = outside_.begin() + next_entry_;
      std::nth_element(outside_.begin(), nth, outside_.end(), std::greater<>());
      next = *nth;
    }
    outside_largest_ = -1;
    for (size_t i = 0; i < bound_.size(); ++i) {
      const double bound = bound_[i];
      if (!is_outside(bound)) continue;
      if (bound >= next) {
        heap_.push({bound, static_cast<int64_t>(i)});
      } else {
        outside_largest_ = std::max(outside_largest_, bound);
      }
    }
    entered_floor_ = next;
    nothing_entered_ = false;
    next_entry_ *= 2;
  }

  bool could_win(const Entry& e) const {
    if (best_ < 0) return true;
    // A bound of zero means a value of exactly zero: only a smaller conversation could still win the tie.
    if (e.bound == 0 && best_ == 0) return e.conversation < evaluated_.front().conversation;
    return e.bound >= floor();
  }

  void fill_heap() {
    while (outside_largest_ >= 0 && (heap_.empty() || outside_largest_ >= heap_.top().bound) &&
           (best_ < 0 || outside_largest_ >= floor()))
      extend_heap();
  }

  void finalists_lazy() {
    size_t block = 32;
    for (;;) {
      fill_heap();
      if (heap_.empty() || !could_win(heap_.top())) return;
      if (is_current(heap_.top().conversation)) {
        evaluate(heap_.pop().conversation);
        continue;
      }
      std::vector<int64_t> list;
      while (list.size() < block && !heap_.empty() && could_win(heap_.top()) &&
             !is_current(heap_.top().conversation)) {
        list.push_back(heap_.pop().conversation);
        if (heap_.empty() || heap_.top().bound < outside_largest_) break;
      }
      refresh(list);
      for (int64_t conversation : list) {
        const double bound = upper_objective(touched(conversation));
        if (bound >= 0) heap_.push({bound, conversation});
      }
      block = std::min<size_t>(2 * block, 1024);
      poll_sometimes(call_);
    }
  }

  // ---- dense ------------------------------------------------------------------------------------------------

  void start_dense() {
    const auto n = static_cast<size_t>(p_.pool.n);
    bound_.assign(n, 0);
    start_leverage_.resize(n);
    margin_.resize(n);
    dal::leverage(p_.pool, p_.inverse_factor, nullptr, p_.pool.n, start_leverage_.data(), call_);
    dal::margin(p_.pool, p_.reward, margin_.data(), call_);
    leverage_ = start_leverage_;
    result_.rows_streamed += 2 * p_.pool.n;
    margin_error_ = 0;
    for (int64_t k = 0; k < p_.pool.d; ++k) margin_error_ += p_.reward[k] * p_.reward[k];
    margin_error_ = static_cast<double>(p_.pool.d + 2) * std::ldexp(1.0, -52) * std::sqrt(margin_error_) *
                    std::sqrt(matrix_trace());
    for (size_t i = 0; i < n; ++i) {
      // |x| <= sqrt(trace(M) h), so the margin's error is bounded by the leverage alone.
      const double h = raised(start_leverage_[i], start_leverage_[i], 0);
      const double u = std::fabs(margin_[i]) - margin_error_ * std::sqrt(h) - p_.optimism * std::sqrt(h);
      margin_[i] = u > 0 ? u : 0;
    }
  }

  double matrix_trace() const {
    double trace = 0;
    for (int64_t k = 0; k < p_.pool.d; ++k) trace += p_.matrix[k * p_.pool.d + k];
    return trace;
  }

  void bring_up_to_date() {
    const int64_t s = design_.additions();
    if (s == dense_additions_) return;
    dal::update_leverage(p_.pool, design_.direction(s - 1), *design_.coefficient(s - 1), leverage_.data(), call_);
    result_.rows_streamed += p_.pool.n;
    dense_additions_ = s;
  }

  void finalists_dense() {
    bring_up_to_date();
    constexpr int64_t kChunk = 4096;
    parallel_for(chunks_of(p_.pool.n, kChunk), call_, [&](int64_t chunk, int) {
      for (int64_t i = chunk * kChunk; i < std::min(p_.pool.n, (chunk + 1) * kChunk); ++i) {
        const auto at = static_cast<size_t>(i);
        if (bound_[at] < 0) continue;
        const double h = raised(leverage_[at], start_leverage_[at], dense_additions_);
        const double value = admissible_.objective(i, p_.pool.category_of(i), margin_[at], h);
        bound_[at] = value < 0 ? -2 : start_leverage_[at] == 0 ? 0 : value * (1 + 1e-11);
      }
    });
    // In order of bound, so that the floor rises at once; a bound of -2 is without a teacher now, not for ever.
    std::vector<Entry> entries;
    for (int64_t i = 0; i < p_.pool.n; ++i) {
      double& bound = bound_[static_cast<size_t>(i)];
      if (bound == -2) bound = 0;
      else if (bound >= 0) entries.push_back({bound, i});
    }
    std::make_heap(entries.begin(), entries.end(), later);
    while (!entries.empty() && could_win(entries.front())) {
      std::pop_heap(entries.begin(), entries.end(), later);
      const int64_t i = entries.back().conversation;
      entries.pop_back();
      refresh({i});
      evaluate(i);
      poll_sometimes(call_);
    }
  }

  // ---- the certificate --------------------------------------------------------------------------------------

  // best_possible: the sum of the `size` largest w h at the final M over the pairs admissible at the start, at most
  // `repeats` a conversation. Bounds, largest first, are refreshed until the rest cannot reach the `size` largest.
  void certify() {
    outside_ = {};
    for (size_t b = 0; b < weights_.size(); ++b) {
      const int64_t i = result_.conversation[b];
      memo_.clear();
      const Final f = decide(touched(i));
      result_.batch_total += weights_[b] * f.leverage;
    }
    memo_.clear();
    if (p_.size == 0) return;
    const int64_t wanted = p_.cost ? 1 : p_.size;
    std::vector<Entry> waiting;
    for (int64_t i = 0; i < p_.pool.n; ++i) {
      const double bound = start_bound(i);
      if (bound >= 0) waiting.push_back({bound, i});
    }
    std::make_heap(waiting.begin(), waiting.end(), later);
    std::vector<double> largest;  // a heap of the `wanted` largest exact values, the smallest in front
    const auto keep = [&](double value) {
      if (static_cast<int64_t>(largest.size()) < wanted) {
        largest.push_back(value);
        std::push_heap(largest.begin(), largest.end(), std::greater<>());
      } else if (value > largest.front()) {
        std::pop_heap(largest.begin(), largest.end(), std::greater<>());
        largest.back() = value;
        std::push_heap(largest.begin(), largest.end(), std::greater<>());
      }
    };
    const auto reaches = [&](const Entry& e) {
      return static_cast<int64_t>(largest.size()) < wanted || e.bound > largest.front();
    };
    std::vector<double> weights;
    while (!waiting.empty() && reaches(waiting.front())) {
      std::vector<int64_t> stale;
      std::vector<int64_t> ready;
      while (stale.size() < 256 && !waiting.empty() && reaches(waiting.front())) {
        std::pop_heap(waiting.begin(), waiting.end(), later);
        const int64_t i = waiting.back().conversation;
        waiting.pop_back();
        if (is_current(i)) {
          ready.push_back(i);
          break;
        }
        stale.push_back(i);
      }
      refresh(stale);
      for (int64_t i : stale) {
        waiting.push_back({start_bound(i), i});
        std::push_heap(waiting.begin(), waiting.end(), later);
      }
      for (int64_t i : ready) {
        Touched& t = touched(i);
        const Final f = decide(t);
        weights.clear();
        admissible_.start_weights(i, t.category, f.margin, weights);
        for (double w : weights) keep(w * f.leverage);
      }
      poll_sometimes(call_);
    }
    for (double value : largest) result_.best_possible += value;
    // With costs: at equal spend no batch gains more than (cost of the batch) max w h / c.
    if (p_.cost) result_.best_possible *= spent_;
    const double upward = 1 + 1e-12 + 2 * rounding_;
    result_.best_possible *= upward;
  }

  // An upper bound of the start-admissible value at the current M.
  double start_bound(int64_t i) {
    if (!is_touched(i)) {
      if (!p_.dense) return bound_[static_cast<size_t>(i)];
      const auto at = static_cast<size_t>(i);
      const double w = admissible_.start_bound(i, p_.pool.category_of(i), margin_[at]);
      return w < 0 ? -1 : w * raised(leverage_[at], start_leverage_[at], dense_additions_) * (1 + 1e-11);
    }
    const Touched& t = touched(i);
    const double w = admissible_.start_largest(i, t.category, bounding_margin(t));
    return w < 0 ? -1 : w * raised(t.leverage, t.start, t.additions) * (1 + 1e-11);
  }

  struct Evaluated {
    int64_t conversation;
    Final final;
  };
  struct Memo {
    int64_t conversation;
    double leverage, margin;
  };

  const SelectionProblem& p_;
  const Call& call_;
  const KernelTable& k_;
  Admissible admissible_;
  Design design_;
  Leverage whiten_;
  double rounding_;

  std::vector<int32_t> slot_;  // conversation -> touched_, -1 while only its bound is known
  std::vector<Touched> touched_;
  std::vector<double> bound_;
  std::vector<double> scratch_;
  std::vector<Leverage::Space> spaces_;

  Heap heap_;
  std::vector<double> outside_;  // working copy for the next floor
  double outside_largest_ = -1, entered_floor_ = 0;
  bool nothing_entered_ = true;
  int64_t next_entry_ = 0;

  std::vector<double> start_leverage_, leverage_, margin_;  // dense only
  double margin_error_ = 0;
  int64_t dense_additions_ = 0;

  std::vector<Evaluated> evaluated_;
  std::unordered_map<uint64_t, Memo> memo_;
  double best_ = kUnknown;
  std::vector<double> weights_;
  double spent_ = 0;
  Selection result_;
};

}  // namespace

Selection select_batch(const SelectionProblem& problem, const Call& call,
                       const std::function<void(int64_t, int64_t)>& progress) {
  return Engine(problem, call).run(progress);
}

}  // namespace dal
