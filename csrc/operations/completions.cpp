// The best completion of each prompt, the softmax of its rewards, and their sums of features: every row is read once.
//
// Rows are taken in runs: whole prompts of at most run_rows completions together, or as much of one prompt that has
// more. A few runs of one group of prompts are a task, with a sum of its own; sums are added in the order of the tasks,
// some tasks at a time, on the calling thread. Where the cuts lie depends on sizes alone, so that neither the number of
// threads nor where the rows are kept changes a bit. A run is looked at piece by piece: rows come from memory once, and
// are still in the nearest cache when they are added to the sum after their rewards are known.
#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

#include "operations/levels.hpp"
#include "operations/operations.hpp"

namespace dal {
namespace {

constexpr int64_t kRunsTogether = 4;    // of a task: more cost less adding, fewer are read closer together
constexpr int64_t kTasksTogether = 64;  // between two additions: bounds what is kept at so many times d values
constexpr double kNone = -std::numeric_limits<double>::infinity();

int64_t run_rows(int64_t d) { return std::clamp<int64_t>((1 << 16) / d, 64, 1024); }

// Of a run looked at in pieces that the nearest cache has room for, while the next one is on its way. Several times more
// of one large prompt, where each piece may bring a larger reward than all before.
int64_t near_rows(int64_t d, bool part) { return std::clamp<int64_t>((1 << 12) / d, 8, 256) * (part ? 4 : 1); }

// Prompts of one group with all of their rows, or a part of the rows of one prompt: a task, a run or a piece.
struct Task {
  int64_t group, first_prompt, last_prompt, first_row, last_row;
  bool part;
};

// Cuts the prompts into tasks, one after the other.
class Cuts {
 public:
  Cuts(const Rows& pool, const int64_t* groups) : offsets_(pool.prompt_offsets), prompts_(pool.prompts), groups_(groups) {
    most_ = run_rows(pool.d);
  }

  bool next(Task& task) {
    if (prompt_ == prompts_) return false;
    while (prompt_ >= groups_[group_ + 1]) ++group_;
    const int64_t first_row = offsets_[prompt_] + within_, room = kRunsTogether * most_;
    task = {group_, prompt_, prompt_ + 1, first_row, first_row, offsets_[prompt_ + 1] - offsets_[prompt_] > most_};
    if (task.part) {
      task.last_row = std::min(offsets_[prompt_ + 1], first_row + room);
      within_ += task.last_row - first_row;
      if (task.last_row == offsets_[prompt_ + 1]) leave(prompt_ + 1);
      return true;
    }
    int64_t stop = prompt_ + 1;
    while (stop < groups_[group_ + 1] && offsets_[stop + 1] - offsets_[stop] <= most_ &&
           offsets_[stop + 1] - first_row <= room)
      ++stop;
    task.last_prompt = stop;
    task.last_row = offsets_[stop];
    leave(stop);
    return true;
  }

 private:
  void leave(int64_t stop) {
    prompt_ = stop;
    within_ = 0;
  }

  const int64_t *offsets_;
  int64_t prompts_;
  const int64_t* groups_;
  int64_t most_, group_ = 0, prompt_ = 0, within_ = 0;
};

// What a task finds: features summed, and of a part of a prompt what the rest of that prompt has to know.
struct Found {
  std::vector<double> sum;
  double top = kNone;                // the largest reward
  int64_t row = -1;                  // and the first row that has it
  double total = 0, expected = 0;    // sums of v = base exp((u - top) / temperature) and v u; then `sum` is that of v phi
  int64_t overflown = -1;            // the first row whose reward is not finite
};

// Working space of one thread.
struct Space {
  std::vector<char> window;
  std::vector<double> reward, weight;
  std::vector<int64_t> chosen;
};

// f(first prompt, last prompt, first row, last row) for whole prompts of at most `most` rows together, or for one that has
// more; of a part of a prompt, for `most` rows at a time.
template <class F>
void each_piece(const Rows& pool, const Task& task, int64_t most, F f) {
  const int64_t* offsets = pool.prompt_offsets;
  if (task.part) {
    for (int64_t row = task.first_row; row < task.last_row; row += most)
      f(Task{task.group, task.first_prompt, task.last_prompt, row, std::min(task.last_row, row + most), true});
    return;
  }
  for (int64_t prompt = task.first_prompt; prompt < task.last_prompt;) {
    int64_t stop = prompt + 1;
    while (stop < task.last_prompt && offsets[stop + 1] - offsets[prompt] <= most) ++stop;
    f(Task{task.group, prompt, stop, offsets[prompt], offsets[stop], false});
    prompt = stop;
  }
}

// look(kernels, piece, rows in memory, space, found) for every run, or near piece of one, with its rewards in `space`, on
// any thread; add(task, found) for every task, in their order, on the calling thread.
template <class Look, class Add>
void each_task(const Rows& pool, const double* reward, const int64_t* groups, bool near, const Call& call, Look look,
               Add add) {
  const KernelTable& k = kernels();
  const auto most = static_cast<size_t>(run_rows(pool.d));
  std::vector<Space> spaces(static_cast<size_t>(call.threads));
  std::vector<Task> tasks(static_cast<size_t>(kTasksTogether));
  std::vector<Found> found(static_cast<size_t>(kTasksTogether));
  Cuts cuts(pool, groups);
  for (;;) {
    size_t count = 0;
    while (count < tasks.size() && cuts.next(tasks[count])) ++count;
    if (count == 0) return;
    parallel_for(static_cast<int64_t>(count), call, [&](int64_t chunk, int worker) {
      const Task& task = tasks[static_cast<size_t>(chunk)];
      Found& mine = found[static_cast<size_t>(chunk)];
      Space& space = spaces[static_cast<size_t>(worker)];
      space.reward.resize(most);
      space.weight.resize(most);
      std::vector<double> sum = std::move(mine.sum);
      sum.assign(static_cast<size_t>(pool.d), 0.0);
      mine = Found{};
      mine.sum = std::move(sum);
      each_piece(pool, task, run_rows(pool.d), [&](const Task& run) {
        if (mine.overflown >= 0) return;
        const Rows held = with_rows(pool, run.first_row, run.last_row, space.window);
        each_piece(pool, run, near ? near_rows(pool.d, run.part) : run_rows(pool.d), [&](const Task& piece) {
          const int64_t rows = piece.last_row - piece.first_row;
          double* u = space.reward.data();
          k.margin(held.at(piece.first_row), held.storage, rows, pool.d, reward, u, nullptr);
          for (int64_t q = 0; q < rows && mine.overflown < 0; ++q)
            if (!std::isfinite(u[q])) mine.overflown = piece.first_row + q;
          if (mine.overflown < 0) look(k, piece, held, space, mine);
        });
      });
    });
    for (size_t chunk = 0; chunk < count; ++chunk) {
      if (found[chunk].overflown >= 0)
        throw std::overflow_error("the reward of completion " + std::to_string(found[chunk].overflown) + " is not finite");
      add(tasks[chunk], found[chunk]);
    }
    poll_sometimes(call);
  }
}

void add_scaled(const std::vector<double>& x, double scale, double* out) {
  for (size_t j = 0; j < x.size(); ++j) out[j] += scale * x[j];
}

}  // namespace

void best_completions(const Rows& pool, const double* reward, const double* prompt_weight, const int64_t* groups,
                      int64_t n_groups, const uint8_t* allowed, int64_t* row, double* best, double* mean,
                      const Call& call) {
  const int64_t d = pool.d, *offsets = pool.prompt_offsets;
  std::fill(mean, mean + n_groups * d, 0.0);
  // The first of the largest rewards among allowed rows, u[0] that of row `first`; better than `top` or none.
  const auto first_best = [=](const double* u, int64_t first, int64_t last, double& top, int64_t& at) {
    for (int64_t q = first; q < last; ++q)
      if (u[q - first] > top && (!allowed || allowed[q])) {
        top = u[q - first];
        at = q;
      }
  };
  const auto look = [&](const KernelTable& k, const Task& piece, const Rows& held, Space& space, Found& found) {
    const double* u = space.reward.data();
    if (piece.part) {
      const int64_t before = found.row;
      first_best(u, piece.first_row, piece.last_row, found.top, found.row);
      if (found.row != before) k.to_double(held.at(found.row), held.storage, d, found.sum.data());
      return;
    }
    const int64_t prompts = piece.last_prompt - piece.first_prompt;
    space.chosen.resize(static_cast<size_t>(prompts));
    for (int64_t p = piece.first_prompt; p < piece.last_prompt; ++p) {
      double top = kNone;
      first_best(u + (offsets[p] - piece.first_row), offsets[p], offsets[p + 1], top, row[p]);
      best[p] = top;
      space.chosen[static_cast<size_t>(p - piece.first_prompt)] = row[p] - piece.first_row;
    }
    k.add_weighted_rows(held.at(piece.first_row), held.storage, d, space.chosen.data(), prompts,
                        prompt_weight + piece.first_prompt, nullptr, 0, d, found.sum.data());
  };
  Found open;  // of the prompt whose parts are coming
  each_task(pool, reward, groups, false, call, look, [&](const Task& task, Found& found) {
    double* sum = mean + task.group * d;
    if (!task.part) return add_scaled(found.sum, 1.0, sum);
    if (found.top > open.top) std::swap(open, found);
    const int64_t p = task.first_prompt;
    if (task.last_row < offsets[p + 1]) return;
    row[p] = open.row;
    best[p] = open.top;
    add_scaled(open.sum, prompt_weight[p], sum);
    open = Found{};
  });
}

namespace {

// The base policy of the completions of one prompt.
class Base {
 public:
  Base(const double* of_rows, int64_t count) : of_rows_(of_rows), uniform_(1.0 / static_cast<double>(count)) {}
  double operator[](int64_t row) const { return of_rows_ ? of_rows_[row] : uniform_; }

 private:
  const double* of_rows_;  // or null: uniform
  double uniform_;
};

// The largest reward that the base policy permits in rows first..last-1; u[0] is that of row `first`.
double largest(const Base& base, const double* u, int64_t first, int64_t last) {
  double top = kNone;
  for (int64_t q = first; q < last; ++q)
    if (u[q - first] > top && base[q] > 0) top = u[q - first];
  return top;
}

// (u - top) / temperature, -infinity where the base policy forbids: the difference first, so that nothing overflows
// upwards. x may be u.
void exponents(const Base& base, const double* u, double top, double temperature, int64_t first, int64_t last, double* x) {
  for (int64_t q = first; q < last; ++q) x[q - first] = base[q] > 0 ? (u[q - first] - top) / temperature : kNone;
}

// The part of a prompt with the larger `top` stays as it is, the other is brought to that and added.
void add_part(Found& open, Found& found, double temperature) {
  if (found.top > open.top) std::swap(open, found);
  if (found.top == kNone) return;
  const double scale = std::exp((found.top - open.top) / temperature);
  open.total += scale * found.total;
  open.expected += scale * found.expected;
  add_scaled(found.sum, scale, open.sum.data());
}

}  // namespace

void softmax_completions(const Rows& pool, const double* reward, double temperature, const double* base_policy,
                         const double* prompt_weight, const int64_t* groups, int64_t n_groups, double* log_partition,
                         double* expected, double* mean, double* probability, const Call& call) {
  const int64_t d = pool.d, *offsets = pool.prompt_offsets;
  std::fill(mean, mean + n_groups * d, 0.0);
  const auto base_of = [=](int64_t p) { return Base(base_policy, offsets[p + 1] - offsets[p]); };
  const auto look_at_part = [&](const KernelTable& k, const Base& base, int64_t first, int64_t last, const Rows& held,
                                Space& space, Found& found) {
    double *u = space.reward.data(), *v = space.weight.data();
    std::copy(u, u + (last - first), probability + first);  // until the whole prompt is known
    const double top = std::max(found.top, largest(base, u, first, last));
    if (top == kNone) return;
    if (top > found.top && found.top > kNone) {
      const double scale = std::exp((found.top - top) / temperature);
      found.total *= scale;
      found.expected *= scale;
      for (double& x : found.sum) x *= scale;
    }
    found.top = top;
    exponents(base, u, top, temperature, first, last, v);
    k.exponentials(v, last - first);
    for (int64_t q = 0; q < last - first; ++q) {
      v[q] *= base[first + q];
      found.total += v[q];
      found.expected += v[q] * u[q];
    }
    k.add_weighted_rows(held.at(first), held.storage, d, nullptr, last - first, v, nullptr, 0, d, found.sum.data());
  };
  const auto look = [&](const KernelTable& k, const Task& piece, const Rows& held, Space& space, Found& found) {
    const int64_t first_prompt = piece.first_prompt, last_prompt = piece.last_prompt;
    const int64_t first_row = piece.first_row, last_row = piece.last_row;
    if (piece.part) return look_at_part(k, base_of(first_prompt), first_row, last_row, held, space, found);
    double *u = space.reward.data(), *v = space.weight.data();
    for (int64_t p = first_prompt; p < last_prompt; ++p) {
      const Base base = base_of(p);
      const int64_t first = offsets[p], last = offsets[p + 1], at = first - first_row;
      const double top = largest(base, u + at, first, last);
      exponents(base, u + at, top, temperature, first, last, v + at);
      log_partition[p] = top / temperature;
    }
    k.exponentials(v, last_row - first_row);
    for (int64_t p = first_prompt; p < last_prompt; ++p) {
      const Base base = base_of(p);
      double total = 0, reward_of_policy = 0;
      for (int64_t q = offsets[p]; q < offsets[p + 1]; ++q) total += v[q - first_row] *= base[q];
      for (int64_t q = offsets[p]; q < offsets[p + 1]; ++q) {
        probability[q] = v[q - first_row] / total;
        reward_of_policy += probability[q] * u[q - first_row];
        v[q - first_row] = prompt_weight[p] * probability[q];
      }
      log_partition[p] += std::log(total);
      expected[p] = reward_of_policy;
    }
    k.add_weighted_rows(held.at(first_row), held.storage, d, nullptr, last_row - first_row, v, nullptr, 0, d,
                        found.sum.data());
  };
  const auto finish = [&](const Found& open, int64_t p, double* sum) {
    log_partition[p] = open.top / temperature + std::log(open.total);
    expected[p] = open.expected / open.total;
    for (size_t j = 0; j < open.sum.size(); ++j) sum[j] += prompt_weight[p] * (open.sum[j] / open.total);
    constexpr int64_t kPiece = 4096;
    const Base base = base_of(p);
    for (int64_t first = offsets[p]; first < offsets[p + 1]; first += kPiece) {
      const int64_t last = std::min(offsets[p + 1], first + kPiece);
      double* pi = probability + first;
      exponents(base, pi, open.top, temperature, first, last, pi);
      kernels().exponentials(pi, last - first);
      for (int64_t q = first; q < last; ++q) probability[q] = base[q] * probability[q] / open.total;
      poll_sometimes(call);
    }
  };
  Found open;  // of the prompt whose parts are coming
  each_task(pool, reward, groups, true, call, look, [&](const Task& task, Found& found) {
    double* sum = mean + task.group * d;
    if (!task.part) return add_scaled(found.sum, 1.0, sum);
    add_part(open, found, temperature);
    if (task.last_row < offsets[task.last_prompt]) return;
    finish(open, task.first_prompt, sum);
    open = Found{};
  });
}

}  // namespace dal
