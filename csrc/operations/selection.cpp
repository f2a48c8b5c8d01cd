// Exact greedy: B times the admissible pair with the largest w h (log1p(w h) / cost with costs), then M += w x x'.
//
// Lazy: every conversation has an upper bound that stays valid for the whole batch, because leverages only fall and
// teachers only drop out. Bounds are refreshed, best first, until nothing unrefreshed could win; the few that remain
// within rounding of the top are decided by Design::leverage, one routine with a fixed order of operations.
// Dense: every leverage is brought up to date at every pick. Same finalists, same picks.
#include "operations/selection.hpp"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <limits>
#include <stdexcept>
#include <string>
#include <unordered_map>

#include "operations/admissible.hpp"
#include "operations/bounds.hpp"
#include "operations/design.hpp"
#include "operations/first_pass.hpp"
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
  double start;          // leverage at the start of the batch, a bound from above
  double leverage;       // leverage after `additions` additions, likewise but for the rounding of float64
  int64_t additions;
  double reduced;        // max(|u| - k sd, 0) decided exactly, kUnknown until needed; |u| without optimism
};

// What the final routine says of one conversation at the current M.
struct Final {
  double leverage = 0, margin = 0, objective = 0;
};

struct Memo {
  int64_t conversation;
  Final final;
  int64_t waiting;  // its place in the list being decided, -1 once it is
};

struct Entry {
  double bound;
  int64_t conversation;
};

// Heap order: the largest bound first, the smallest conversation among equals.
bool later(const Entry& x, const Entry& y) {
  return x.bound < y.bound || (x.bound == y.bound && x.conversation > y.conversation);
}

// Conversation -> place, for the few that have one: open addressing, at most half full.
class Places {
 public:
  int64_t find(int64_t conversation) const {
    for (size_t at = home(conversation);; at = (at + 1) & mask()) {
      if (slots_[at].conversation == conversation) return slots_[at].place;
      if (slots_[at].conversation < 0) return -1;
    }
  }

  void insert(int64_t conversation, int64_t place) {
    if (2 * ++count_ > slots_.size()) grow();
    put({conversation, place});
  }

 private:
  struct Slot {
    int64_t conversation = -1, place = -1;
  };
  size_t mask() const { return slots_.size() - 1; }
  size_t home(int64_t conversation) const {
    return static_cast<size_t>(static_cast<uint64_t>(conversation) * 0x9e3779b97f4a7c15u >> 32) & mask();
  }
  void put(const Slot& slot) {
    size_t at = home(slot.conversation);
    while (slots_[at].conversation >= 0) at = (at + 1) & mask();
    slots_[at] = slot;
  }
  void grow() {
    std::vector<Slot> old(2 * slots_.size());
    old.swap(slots_);
    for (const Slot& slot : old)
      if (slot.conversation >= 0) put(slot);
  }
  std::vector<Slot> slots_ = std::vector<Slot>(1024);
  size_t count_ = 0;
};

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

// Passes on the interrupt hook, and says now and then that the call goes on: nothing is picked while the pool is read.
class Heartbeat final : public Interrupt {
 public:
  Heartbeat(Interrupt* hook, const std::function<void(int64_t, int64_t)>& progress, int64_t size)
      : hook_(hook), progress_(progress), size_(size) {}
  void poll() override {
    if (hook_) hook_->poll();
    const auto now = std::chrono::steady_clock::now();
    if (!progress_ || now - last_ < std::chrono::milliseconds(200)) return;
    last_ = now;
    progress_(0, size_);
  }

 private:
  Interrupt* hook_;
  const std::function<void(int64_t, int64_t)>& progress_;
  int64_t size_;
  std::chrono::steady_clock::time_point last_ = std::chrono::steady_clock::now();
};

class Engine {
  static constexpr int64_t kRun = 56;  // rows refreshed together: whole tiles at every level

  struct Space {
    std::vector<double> rows;
    SinglePass::Space single;
    Bfloat16Pass::Space products;
  };

 public:
  Engine(const SelectionProblem& p, const Call& call)
      : p_(p),
        call_(call),
        k_(kernels()),
        admissible_(p),
        design_(k_, p.matrix, p.factor, p.pool.d, p.size),
        matrix_norm_(frobenius(p.matrix, p.pool.d * p.pool.d)),
        inverse_norm_(frobenius(p.inverse_factor, p.pool.d * p.pool.d)),
        rounding_(rounding_of_leverage(matrix_norm_ * inverse_norm_ * inverse_norm_, p.pool.d)),
        single_(p, rounding_),
        products_(p, rounding_, call),
        scratch_(static_cast<size_t>(3 * p.pool.d)) {
    design_.keep_start();
  }

  Selection run(const std::function<void(int64_t, int64_t)>& progress) {
    if (p_.size == 0) return std::move(result_);
    if (p_.dense) {
      start_dense();
    } else {
      Heartbeat heartbeat(call_.interrupt, progress, p_.size);
      start_lazy({call_.threads, &heartbeat});
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
    return touched_[static_cast<size_t>(places_.find(conversation))];
  }
  bool is_touched(int64_t conversation) const { return places_.find(conversation) >= 0; }
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
    double work = 0;  // multiply-adds
    const double d = static_cast<double>(p_.pool.d);
    for (int64_t conversation : list) {
      if (is_touched(conversation)) {
        ++result_.refreshes;
        work += d * static_cast<double>(1 + design_.additions() - touched(conversation).additions);
        continue;
      }
      work += d * (d / 2 + static_cast<double>(design_.additions()));
      places_.insert(conversation, static_cast<int64_t>(touched_.size()));
      touched_.push_back({conversation, p_.pool.category_of(conversation), 0, kUnknown, 0, 0, kUnknown});
      ++result_.rows_rescored;
    }
    if (spaces_.empty()) spaces_.resize(static_cast<size_t>(call_.threads));
    expect(p_.pool, list.data(), static_cast<int64_t>(list.size()));
    // Waking another thread takes longer than a few million multiply-adds.
    const Call call{work < 2e6 ? 1 : call_.threads, call_.interrupt};
    const auto count = static_cast<int64_t>(list.size());
    const int64_t run = std::clamp((count / call.threads + 3) / 4 * 4, int64_t{8}, kRun);
    parallel_for(chunks_of(count, run), call, [&](int64_t chunk, int worker) {
      Space& space = spaces_[static_cast<size_t>(worker)];
      refresh_run(list.data() + chunk * run, std::min(run, count - chunk * run), space);
    });
    for (int64_t conversation : list) check_finite(conversation, touched(conversation).leverage, touched(conversation).margin);
  }

  void refresh_run(const int64_t* list, int64_t count, Space& space) {
    const int64_t d = p_.pool.d;
    space.rows.resize(static_cast<size_t>((kRun + 1) * d));
    double* other = space.rows.data() + kRun * d;
    int64_t fresh[kRun];
    int64_t many = 0;
    for (int64_t q = 0; q < count; ++q) {
      double* x = space.rows.data() + many * d;
      gather(k_, p_.pool, list[q], x, other);
      if (touched(list[q]).start == kUnknown) {
        fresh[many++] = list[q];
      } else {
        downdate(touched(list[q]), x);
      }
    }
    if (many > 0) start_run(fresh, many, space);
  }

  // The first look: the margin as the portable routine has it, and a leverage to start from.
  void start_run(const int64_t* fresh, int64_t many, Space& space) {
    const int64_t d = p_.pool.d;
    const double* x = space.rows.data();
    double h[kRun];
    start_leverages(fresh, many, space, h);
    for (int64_t q = 0; q < many; ++q) {
      Touched& t = touched(fresh[q]);
      t.margin = std::fabs(portable_dot(x + q * d, p_.reward, d));
      if (p_.optimism == 0) t.reduced = t.margin;
      // Out of reach of single precision: the final routine at once.
      if (!(h[q] < std::numeric_limits<double>::max())) {
        std::vector<double> z(static_cast<size_t>(d));
        h[q] = design_.leverage_at_start(x + q * d, z.data());
      }
      t.start = h[q];
      if (p_.leverage_out) lower(p_.leverage_out[fresh[q]], h[q] * (1 + rounding_));
    }
    const int64_t now = design_.additions();
    design_.downdate(x, many, h);
    for (int64_t q = 0; q < many; ++q) {
      touched(fresh[q]).leverage = h[q];
      touched(fresh[q]).additions = now;
    }
  }

  // Upper bounds at the start: what the first pass has where that is tight, else a full product of these rows.
  void start_leverages(const int64_t* fresh, int64_t many, Space& space, double* h) {
    const double* x = space.rows.data();
    if (tight_) {
      for (int64_t q = 0; q < many; ++q) h[q] = static_cast<double>(start_bound_[static_cast<size_t>(fresh[q])]);
      return;
    }
    double margin[kRun], square[kRun];
    if (products_.usable()) {
      space.products.reserve(products_, kRun);
      products_.bounds(x, Storage::f64, many, space.products, nullptr, h, margin, square);
      return;
    }
    space.single.reserve(p_.pool, kRun);
    for (int64_t q = 0; q < many; ++q) square[q] = k_.dot(x + q * p_.pool.d, x + q * p_.pool.d, p_.pool.d);
    single_.leverages(single_.rows({x, Storage::f64}, many, space.single), many, square, space.single, h);
  }

  static void lower(float& known, double h) {
    const float f = std::nextafterf(static_cast<float>(h), std::numeric_limits<float>::infinity());
    if (f < known) known = f;
  }

  void downdate(Touched& t, const double* x) {
    const int64_t from = t.additions, to = design_.additions();
    if (from == to) return;
    t.leverage = k_.downdated(x, p_.pool.d, design_.direction(from), design_.coefficient(from), to - from, t.leverage);
    t.additions = to;
  }

  static void check_finite(int64_t conversation, double leverage, double margin) {
    constexpr double most = std::numeric_limits<double>::max();
    if (leverage <= most && std::fabs(margin) <= most) return;
    throw std::overflow_error("the leverage, margin or gain of conversation " + std::to_string(conversation) +
                              " overflows float64");
  }

  // ---- the final routine ------------------------------------------------------------------------------------

  // The exact leverages and margins of current conversations, in `decided_`; equal rows of a pick are solved once.
  void decide(const std::vector<int64_t>& list) {
    const int64_t d = p_.pool.d;
    const auto count = static_cast<int64_t>(list.size());
    result_.finalists += count;
    decided_.assign(list.size(), Final{});
    rows_.resize(static_cast<size_t>((count + 1) * d));
    double* other = rows_.data() + count * d;
    std::vector<int64_t> unsolved, same_as(list.size(), -1);
    for (int64_t q = 0; q < count; ++q) {
      const auto at = static_cast<size_t>(q);
      const double* x = rows_.data() + q * d;
      gather(k_, p_.pool, list[at], rows_.data() + q * d, other);
      const auto [seen, isnew] = memo_.try_emplace(key_of(x), Memo{list[at], {}, q});
      const Memo& memo = seen->second;
      if (isnew || memcmp(x, row_of(memo, other), static_cast<size_t>(d) * sizeof(double)) != 0) {
        unsolved.push_back(q);
      } else if (memo.waiting < 0) {
        decided_[at] = memo.final;
      } else {
        same_as[at] = memo.waiting;
      }
    }
    solve(list, unsolved);
    for (int64_t q : unsolved) {
      Memo& memo = memo_.at(key_of(rows_.data() + q * d));
      if (memo.waiting == q) memo = {memo.conversation, decided_[static_cast<size_t>(q)], -1};
    }
    for (size_t at = 0; at < list.size(); ++at) {
      if (same_as[at] >= 0) decided_[at] = decided_[static_cast<size_t>(same_as[at])];
      Touched& t = touched(list[at]);
      t.reduced = decided_[at].margin;
      t.leverage = std::min(t.leverage, decided_[at].leverage);
    }
  }

  uint64_t key_of(const double* x) const {
    uint64_t key = 0xcbf29ce484222325u;
    for (int64_t j = 0; j < p_.pool.d; ++j) {
      uint64_t bits;
      memcpy(&bits, x + j, sizeof(bits));
      key = (key ^ bits) * 0x9e3779b97f4a7c15u;
      key ^= key >> 29;
    }
    return key;
  }

  // The row that a memo is of: in the list being decided, or fetched into `other`.
  const double* row_of(const Memo& memo, double* other) {
    if (memo.waiting >= 0) return rows_.data() + memo.waiting * p_.pool.d;
    gather(k_, p_.pool, memo.conversation, other, scratch_.data());
    return other;
  }

  // A few rows together read the factor once; the bits of each do not depend on its company.
  void solve(const std::vector<int64_t>& list, const std::vector<int64_t>& unsolved) {
    constexpr int64_t kGroup = 4;
    const int64_t d = p_.pool.d, count = static_cast<int64_t>(unsolved.size());
    const Call call{count * d * d < 500'000 ? 1 : call_.threads, call_.interrupt};
    parallel_for(chunks_of(count, kGroup), call, [&](int64_t group, int) {
      const int64_t first = group * kGroup, many = std::min(kGroup, count - first);
      std::vector<double> z(static_cast<size_t>(many * d));
      const double* x[kGroup];
      double h[kGroup];
      for (int64_t q = 0; q < many; ++q) x[q] = rows_.data() + unsolved[static_cast<size_t>(first + q)] * d;
      design_.leverages(x, many, z.data(), h);
      for (int64_t q = 0; q < many; ++q) {
        const auto at = static_cast<size_t>(unsolved[static_cast<size_t>(first + q)]);
        const Touched& t = touched(list[at]);
        double margin = t.reduced;
        if (margin == kUnknown)
          margin = std::max(t.margin - p_.optimism * std::sqrt(design_.leverage_at_start(x[q], z.data())), 0.0);
        decided_[at] = {h[q], margin, 0};
      }
    });
  }

  void evaluate(const std::vector<int64_t>& list) {
    decide(list);
    for (size_t q = 0; q < list.size(); ++q) {
      Final f = decided_[q];
      f.objective = admissible_.objective(list[q], touched(list[q]).category, f.margin, f.leverage);
      if (f.objective < 0) continue;
      check_finite(list[q], f.objective, 0);
      best_ = std::max(best_, f.objective);
      evaluated_.push_back({list[q], f});
    }
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
    const double* x = scratch_.data();
    design_.add(x, best.weight, call_);
    matrix_norm_ += best.weight * portable_dot(x, x, p_.pool.d);
    rounding_ = rounding_of_leverage(matrix_norm_ * inverse_norm_ * inverse_norm_, p_.pool.d);
  }

  // ---- lazy -------------------------------------------------------------------------------------------------

  void start_lazy(const Call& call) {
    FirstPass first = first_pass(p_, admissible_, single_, products_, rounding_, call);
    bound_ = std::move(first.bound);
    start_bound_ = std::move(first.leverage);
    tight_ = first.tight;
    result_.route = first.route;
    result_.directions = first.directions;
    result_.rows_streamed += p_.pool.n;
    outside_largest_ = std::numeric_limits<double>::infinity();  // nothing has entered the heap yet
    next_entry_ = std::max({int64_t{2048}, 8 * std::min(p_.size, p_.pool.n), p_.pool.n / 512});
  }

  // Bounds in classes of 1.5 % each: the leading bits of a non-negative float are in order of size.
  static constexpr int kClassShift = 17;
  static constexpr int32_t kClasses = int32_t{1} << (32 - kClassShift - 1);
  static int32_t class_of(float bound) {
    int32_t bits;
    memcpy(&bits, &bound, sizeof(bits));
    return bits >> kClassShift;  // negative: nobody may answer
  }

  // Moves the next conversations from outside into the heap: the highest classes, about `next_entry_` conversations.
  void extend_heap() {
    const std::vector<int64_t> count = class_counts();
    const bool first = entered_class_ == kClasses;  // infinite bounds among them
    const float end = lower_edge(entered_class_);
    int32_t next = entered_class_;
    for (int64_t entering = 0; next > 0 && entering < next_entry_;) entering += count[static_cast<size_t>(--next)];
    const auto enters = [&](int64_t i) { return first || bound_[static_cast<size_t>(i)] < end; };
    for (int64_t i : those(lower_edge(next), enters)) heap_.push({static_cast<double>(bound_[static_cast<size_t>(i)]), i});
    // What stays outside is below the lower edge of the last class that entered.
    outside_largest_ = next > 0 ? static_cast<double>(lower_edge(next)) : -1;
    entered_class_ = next;
    next_entry_ *= 4;
  }

  static float lower_edge(int32_t c) {
    const uint32_t bits = static_cast<uint32_t>(c) << kClassShift;
    float edge;
    memcpy(&edge, &bits, sizeof(edge));
    return c < kClasses ? edge : std::numeric_limits<float>::infinity();
  }

  static constexpr int64_t kScan = 1 << 16, kRun64 = 64;

  // About how many conversations are in each class that has not entered: counted in every eighth run of 64 of a long pool.
  std::vector<int64_t> class_counts() {
    std::vector<std::vector<int64_t>> counts(static_cast<size_t>(call_.threads));
    const auto n = static_cast<int64_t>(bound_.size()), stride = n > kScan * 16 ? int64_t{8} : int64_t{1};
    parallel_for(chunks_of(n, kScan), call_, [&](int64_t chunk, int worker) {
      std::vector<int64_t>& count = counts[static_cast<size_t>(worker)];
      count.resize(kClasses);
      const int64_t end = std::min(n, (chunk + 1) * kScan);
      for (int64_t run = chunk * kScan; run < end; run += stride * kRun64)
        for (int64_t i = run; i < std::min(end, run + kRun64); ++i) {
          const int32_t c = class_of(bound_[static_cast<size_t>(i)]);
          if (c >= 0 && c < entered_class_) count[static_cast<size_t>(c)] += stride;
        }
    });
    std::vector<int64_t> total(kClasses);
    for (const auto& count : counts)
      for (size_t c = 0; c < count.size(); ++c) total[c] += count[c];
    return total;
  }

  // The conversations whose bound is at least `low` and for which f holds, ascending.
  template <class F>
  std::vector<int64_t> those(float low, F f) {
    const auto n = static_cast<int64_t>(bound_.size());
    std::vector<std::vector<int64_t>> found(static_cast<size_t>(chunks_of(n, kScan)));
    parallel_for(chunks_of(n, kScan), call_, [&](int64_t chunk, int) {
      const int64_t end = std::min(n, (chunk + 1) * kScan);
      for (int64_t run = chunk * kScan; run < end; run += kRun64) {
        const float* bound = bound_.data() + run;
        const int64_t many = std::min(kRun64, end - run);
        int32_t any = 0;
        for (int64_t q = 0; q < many; ++q) any += bound[q] >= low;
        for (int64_t q = 0; any > 0 && q < many; ++q)
          if (bound[q] >= low && f(run + q)) found[static_cast<size_t>(chunk)].push_back(run + q);
      }
    });
    std::vector<int64_t> all;
    for (const auto& part : found) all.insert(all.end(), part.begin(), part.end());
    return all;
  }

  bool could_win(const Entry& e) const {
    if (best_ < 0) return true;
    // A bound of zero means a value of exactly zero: only a smaller conversation could still win the tie.
    if (e.bound == 0 && best_ == 0) return e.conversation < evaluated_.front().conversation;
    return reaches_floor(e.bound);
  }

  // A bound holds for the true leverage; the final routine may come out above that by its own rounding.
  bool reaches_floor(double bound) const { return bound * (1 + rounding_) >= floor(); }

  void fill_heap() {
    while (outside_largest_ >= 0 && (heap_.empty() || outside_largest_ >= heap_.top().bound) &&
           (best_ < 0 || reaches_floor(outside_largest_)))
      extend_heap();
  }

  void finalists_lazy() {
    size_t block = 32;
    for (;;) {
      fill_heap();
      if (heap_.empty() || !could_win(heap_.top())) return;
      if (is_current(heap_.top().conversation)) {
        evaluate(current_top());
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

  // The best of the heap and what stands next to it, all current: decided together.
  std::vector<int64_t> current_top() {
    constexpr size_t kTogether = 8;
    const double near = std::max(heap_.top().bound * 0.998, outside_largest_);
    std::vector<int64_t> list = {heap_.pop().conversation};
    while (list.size() < kTogether && !heap_.empty() && heap_.top().bound >= near && could_win(heap_.top()) &&
           is_current(heap_.top().conversation))
      list.push_back(heap_.pop().conversation);
    return list;
  }

  // ---- dense ------------------------------------------------------------------------------------------------

  void start_dense() {
    const auto n = static_cast<size_t>(p_.pool.n);
    result_.route = "dense";
    bound_.resize(n);
    std::fill(bound_.data(), bound_.data() + n, 0.0f);
    start_leverage_.resize(n);
    margin_.resize(n);
    dal::leverage(p_.pool, p_.inverse_factor, nullptr, p_.pool.n, start_leverage_.data(), call_);
    dal::margin(p_.pool, p_.reward, margin_.data(), call_);
    for (size_t i = 0; i < n; ++i) check_finite(static_cast<int64_t>(i), start_leverage_[i], margin_[i]);
    leverage_ = start_leverage_;
    result_.rows_streamed += 2 * p_.pool.n;
    const double margin_error = static_cast<double>(p_.pool.d + 2) * std::ldexp(1.0, -52) *
                                frobenius(p_.reward, p_.pool.d) * std::sqrt(matrix_trace());
    for (size_t i = 0; i < n; ++i) {
      // |x| <= sqrt(trace(M) h), so the margin's error is bounded by the leverage alone.
      const double h = raised(start_leverage_[i], start_leverage_[i], 0);
      const double u = std::fabs(margin_[i]) - margin_error * std::sqrt(h) - p_.optimism * std::sqrt(h);
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
        bound_[at] = value < 0 ? -2.0f : start_leverage_[at] == 0 ? 0.0f : above(value * (1 + 1e-11));
      }
    });
    // In order of bound, so that the floor rises at once; a bound of -2 is without a teacher now, not for ever.
    std::vector<Entry> entries;
    for (int64_t i = 0; i < p_.pool.n; ++i) {
      float& bound = bound_[static_cast<size_t>(i)];
      if (bound == -2)
        bound = 0;
      else if (bound >= 0)
        entries.push_back({static_cast<double>(bound), i});
    }
    std::make_heap(entries.begin(), entries.end(), later);
    while (!entries.empty() && could_win(entries.front())) {
      std::pop_heap(entries.begin(), entries.end(), later);
      const int64_t i = entries.back().conversation;
      entries.pop_back();
      refresh({i});
      evaluate({i});
      poll_sometimes(call_);
    }
  }

  // ---- the certificate --------------------------------------------------------------------------------------

  // best_possible: the sum of the `size` largest w h at the final M over the pairs admissible at the start, at most
  // `repeats` a conversation. Bounds, largest first, are refreshed until the rest cannot reach the `size` largest.
  void certify() {
    std::vector<int64_t> picked = result_.conversation;
    std::sort(picked.begin(), picked.end());
    picked.erase(std::unique(picked.begin(), picked.end()), picked.end());
    refresh(picked);
    memo_.clear();
    decide(result_.conversation);
    for (size_t b = 0; b < weights_.size(); ++b) result_.batch_total += weights_[b] * decided_[b].leverage;
    wanted_ = p_.cost ? 1 : p_.size;
    // What was looked at first, then what of the rest could still reach the largest values.
    std::vector<Entry> waiting;
    for (const Touched& t : touched_) waiting.push_back({start_bound(t.conversation), t.conversation});
    settle(waiting);
    const auto could_reach = [&](int64_t i) {
      if (is_touched(i)) return false;
      const double bound = start_bound(i);
      return bound >= 0 && reaches(bound);
    };
    // Most are out of reach by their bound at the start already; with "dense" that is not kept.
    const bool full = static_cast<int64_t>(largest_.size()) == wanted_;
    const float low = p_.dense || !full ? 0.0f : static_cast<float>(largest_.front() * (1 - 1e-6) / (1 + rounding_));
    if (p_.dense) std::fill(bound_.data(), bound_.data() + bound_.size(), 0.0f);
    for (int64_t i : those(low, could_reach)) waiting.push_back({start_bound(i), i});
    settle(waiting);
    for (double value : largest_) result_.best_possible += value;
    // With costs: at equal spend no batch gains more than (cost of the batch) max w h / c.
    if (p_.cost) result_.best_possible *= spent_;
    // In float64 at the final M, like the batch's own total: both may be off by the rounding of their leverages.
    const double off = rounding_of_certificate(matrix_norm_ * inverse_norm_ * inverse_norm_, p_.pool.d);
    result_.best_possible += off * (result_.best_possible + result_.batch_total) + 1e-12 * result_.best_possible;
  }

  bool reaches(double bound) const {
    return static_cast<int64_t>(largest_.size()) < wanted_ || bound * (1 + rounding_) > largest_.front();
  }

  // Keeps the `wanted_` largest exact values in a heap, the smallest of them in front.
  void keep(double value) {
    if (static_cast<int64_t>(largest_.size()) == wanted_) {
      if (value <= largest_.front()) return;
      std::pop_heap(largest_.begin(), largest_.end(), std::greater<>());
      largest_.pop_back();
    }
    largest_.push_back(value);
    std::push_heap(largest_.begin(), largest_.end(), std::greater<>());
  }

  void keep_exact(const std::vector<int64_t>& list) {
    decide(list);
    std::vector<double> weights;
    for (size_t q = 0; q < list.size(); ++q) {
      weights.clear();
      admissible_.start_weights(list[q], touched(list[q]).category, decided_[q].margin, weights);
      for (double w : weights) keep(w * decided_[q].leverage);
    }
  }

  // Best first: what is stale is refreshed in blocks, what is current and still reaches is decided.
  void settle(std::vector<Entry>& waiting) {
    std::make_heap(waiting.begin(), waiting.end(), later);
    while (!waiting.empty() && reaches(waiting.front().bound)) {
      const bool current = is_current(waiting.front().conversation);
      const int64_t wanting = wanted_ - static_cast<int64_t>(largest_.size());
      const int64_t most = current ? std::clamp<int64_t>(wanting, 8, 256) : 1024;
      std::vector<int64_t> list;
      while (static_cast<int64_t>(list.size()) < most && !waiting.empty() && reaches(waiting.front().bound) &&
             is_current(waiting.front().conversation) == current) {
        std::pop_heap(waiting.begin(), waiting.end(), later);
        list.push_back(waiting.back().conversation);
        waiting.pop_back();
      }
      if (current) {
        keep_exact(list);
        continue;
      }
      refresh(list);
      for (int64_t i : list) {
        const double bound = start_bound(i);
        if (bound < 0) continue;
        waiting.push_back({bound, i});
        std::push_heap(waiting.begin(), waiting.end(), later);
      }
      poll_sometimes(call_);
    }
    waiting.clear();
  }

  // An upper bound of the start-admissible value at the current M.
  double start_bound(int64_t i) {
    if (!is_touched(i)) {
      if (!p_.dense) return static_cast<double>(bound_[static_cast<size_t>(i)]);
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

  const SelectionProblem& p_;
  const Call& call_;
  const KernelTable& k_;
  Admissible admissible_;
  Design design_;
  double matrix_norm_, inverse_norm_;  // |M| grows with the batch, |M^-1| does not
  double rounding_;
  SinglePass single_;
  Bfloat16Pass products_;

  Places places_;  // of conversations in touched_
  std::vector<Touched> touched_;
  Column bound_;        // of the value: see FirstPass
  Column start_bound_;  // of the leverage at the start
  bool tight_ = false;
  std::vector<double> scratch_;
  std::vector<Space> spaces_;
  std::vector<double> rows_;  // of the conversations being decided
  std::vector<Final> decided_;

  Heap heap_;
  double outside_largest_ = -1;
  int32_t entered_class_ = kClasses;
  int64_t next_entry_ = 0;

  std::vector<double> start_leverage_, leverage_, margin_;  // dense only
  int64_t dense_additions_ = 0;

  std::vector<Evaluated> evaluated_;
  std::unordered_map<uint64_t, Memo> memo_;
  double best_ = kUnknown;
  std::vector<double> weights_;
  double spent_ = 0;
  std::vector<double> largest_;
  int64_t wanted_ = 0;
  Selection result_;
};

}  // namespace

Selection select_batch(const SelectionProblem& problem, const Call& call,
                       const std::function<void(int64_t, int64_t)>& progress) {
  return Engine(problem, call).run(progress);
}

}  // namespace dal
