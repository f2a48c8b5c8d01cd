// The Python module: checks shapes and layout, releases the GIL, calls. It never computes.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <memory>
#include <optional>
#include <string>

#include "operations/levels.hpp"
#include "operations/operations.hpp"
#include "operations/row_file.hpp"
#include "operations/selection.hpp"

namespace py = pybind11;
using dal::Call;
using dal::Rows;

namespace {

// Arrays are taken as they are: a wrong dtype or layout is a TypeError or ValueError here, never a silent copy.
template <class T>
using Array = py::array_t<T, py::array::c_style>;
using Doubles = Array<double>;
using Integers = Array<int64_t>;
using Bytes = Array<uint8_t>;

[[noreturn]] void refuse(const std::string& what) { throw py::value_error(what); }

template <class T>
const T* read(const Array<T>& a, const char* name, std::initializer_list<int64_t> shape) {
  if (a.ndim() != static_cast<py::ssize_t>(shape.size())) refuse(std::string(name) + ": wrong number of dimensions");
  py::ssize_t axis = 0;
  for (int64_t length : shape)
    if (a.shape(axis++) != length) refuse(std::string(name) + ": wrong length");
  if (!(a.flags() & py::array::c_style)) refuse(std::string(name) + ": must be C-contiguous");
  if (!(a.flags() & py::detail::npy_api::NPY_ARRAY_ALIGNED_)) refuse(std::string(name) + ": must be aligned");
  return a.data();
}

template <class T>
T* write(Array<T>& a, const char* name, std::initializer_list<int64_t> shape) {
  read(a, name, shape);
  if (!a.writeable()) refuse(std::string(name) + ": must be writeable");
  return a.mutable_data();
}

template <class T>
const T* read(const std::optional<Array<T>>& a, const char* name, std::initializer_list<int64_t> shape) {
  return a ? read(*a, name, shape) : nullptr;
}

int64_t length(const py::array& a) { return a.ndim() ? a.shape(0) : 0; }

dal::Storage storage_of(const std::string& name) {
  if (name == "float64") return dal::Storage::f64;
  if (name == "float32") return dal::Storage::f32;
  if (name == "float16") return dal::Storage::f16;
  if (name == "bfloat16") return dal::Storage::bf16;
  refuse("storage: unknown type " + name);
}

Rows rows_of(const py::array& rows, const std::string& storage) {
  Rows r;
  r.storage = storage_of(storage);
  if (rows.ndim() != 2) refuse("rows: wrong number of dimensions");
  if (!(rows.flags() & py::array::c_style)) refuse("rows: must be C-contiguous");
  if (!(rows.flags() & py::detail::npy_api::NPY_ARRAY_ALIGNED_)) refuse("rows: must be aligned");
  // "=" and "|": native byte order
  const char kind = r.storage == dal::Storage::bf16 ? 'u' : 'f', order = rows.dtype().byteorder();
  if (rows.itemsize() != dal::storage_bytes(r.storage) || rows.dtype().kind() != kind || (order != '=' && order != '|'))
    refuse("rows: dtype does not fit " + storage);
  r.rows = rows.data();
  r.n = rows.shape(0);
  r.d = rows.shape(1);
  if (r.d < 1) refuse("rows: no features");
  return r;
}

Rows rows_of(dal::RowFile& file) {
  Rows r;
  r.file = &file;
  r.storage = file.storage();
  r.n = file.rows();
  r.d = file.d();
  return r;
}

std::shared_ptr<dal::RowFile> open_rows(const std::string& path, bool named, int descriptor, int scattered,
                                        const std::tuple<int64_t, int64_t, uint64_t, uint64_t>& state,
                                        const Integers& first_rows, const Integers& offsets, const std::string& storage,
                                        int64_t rows, int64_t d, int64_t working_memory) {
  const dal::FileState opened{std::get<0>(state), std::get<1>(state), std::get<2>(state), std::get<3>(state)};
  if (rows < 0 || d < 1 || d > (int64_t{1} << 40) || rows > (int64_t{1} << 60) / (8 * d)) refuse("rows: out of range");
  if (working_memory < dal::RowFile::least_memory(d)) refuse("working_memory: too little");
  const int64_t count = length(first_rows);
  const int64_t *first = read(first_rows, "first_rows", {count}), *offset = read(offsets, "offsets", {count});
  std::vector<dal::FileRun> runs;
  for (int64_t k = 0; k < count; ++k) {
    if (k == 0 ? first[k] != 0 : first[k] <= first[k - 1] || first[k] >= rows)
      refuse("first_rows: must rise from 0, below rows");
    const int64_t end = k + 1 < count ? first[k + 1] : rows;
    const int64_t bytes = (end - first[k]) * d * dal::storage_bytes(storage_of(storage));
    if (offset[k] < 0 || offset[k] > opened.size - bytes) refuse("offsets: beyond the file");
    runs.push_back({first[k], offset[k]});
  }
  if (rows > 0 && runs.empty()) refuse("first_rows: missing");
  return std::make_shared<dal::RowFile>(path, named, descriptor, scattered, opened, std::move(runs), storage_of(storage), rows,
                                        d, working_memory);
}

void check_indices(const int64_t* index, int64_t count, int64_t n, const char* name) {
  for (int64_t k = 0; k < count; ++k)
    if (index[k] < 0 || index[k] >= n) refuse(std::string(name) + ": index out of range");
}

// A pool as Python hands it over; keeps the arrays alive as long as the call.
struct PoolView {
  py::array rows;
  std::shared_ptr<dal::RowFile> file;  // in place of the rows
  std::string storage;
  std::optional<Array<int32_t>> category;
  std::optional<Integers> prompt_offsets, pair_offsets, pair_rows;

  Rows view() const {
    Rows r = file ? rows_of(*file) : rows_of(rows, storage);
    if (pair_offsets) {
      r.prompts = length(*pair_offsets) - 1;
      if (r.prompts < 0 || !prompt_offsets) refuse("pair_offsets: needs prompt_offsets");
      r.pair_offsets = read(*pair_offsets, "pair_offsets", {r.prompts + 1});
      r.prompt_offsets = read(*prompt_offsets, "prompt_offsets", {r.prompts + 1});
      check_offsets(r);
      r.n = r.pair_offsets[r.prompts];
    } else if (pair_rows) {
      r.completions = r.n;
      r.n = length(*pair_rows);
      r.pair_rows = read(*pair_rows, "pair_rows", {r.n, 2});
      check_indices(r.pair_rows, 2 * r.n, r.completions, "pair_rows");
    }
    r.category = read(category, "category", {r.pairs() ? r.prompts : r.n});
    return r;
  }

  static void check_offsets(const Rows& r) {
    if (r.prompt_offsets[0] != 0 || r.pair_offsets[0] != 0 || r.prompt_offsets[r.prompts] != r.n)
      refuse("prompt_offsets: must start at 0 and end at the number of completions");
    for (int64_t p = 0; p < r.prompts; ++p) {
      const int64_t k = r.prompt_offsets[p + 1] - r.prompt_offsets[p];
      if (k < 1 || r.pair_offsets[p + 1] - r.pair_offsets[p] != k * (k - 1) / 2)
        refuse("pair_offsets: does not fit prompt_offsets");
    }
  }
};

// Asks Python for pending signals; the exception of a signal handler ends the call.
class PythonInterrupt final : public dal::Interrupt {
 public:
  void poll() override {
    py::gil_scoped_acquire hold;
    if (PyErr_CheckSignals() != 0) throw py::error_already_set();
  }
};

// The GIL is released while f runs; `call` polls for signals on this thread.
template <class F>
auto detached(int threads, F f) {
  if (threads < 1 || threads > 1024) refuse("threads: expected 1 to 1024");
  PythonInterrupt interrupt;
  const Call call{threads, &interrupt};
  py::gil_scoped_release release;
  return f(call);
}

// A bad row was seen; rows before it may not have been read yet.
[[noreturn]] void refuse_nonfinite(dal::RowFile& file, int64_t stop, const Call& call) {
  constexpr int64_t kRows = 1 << 14;
  for (int64_t start = 0; start < stop; start += kRows) {
    const int64_t bad = file.first_nonfinite(start, std::min(stop, start + kRows));
    if (bad >= 0) {
      stop = bad;
      break;
    }
    poll_sometimes(call);
  }
  throw dal::FileError(file.path(), 0,
                       "holds NaN or infinity, first in row " + std::to_string(stop) + "; expected finite numbers");
}

// A call on a pool: what lies in a file is looked at before and after, and the blocks of fewer threads are held at once
// where the working memory has no room for more.
template <class F>
auto detached(const Rows& pool, int threads, F f) {
  if (!pool.file) return detached(threads, f);
  return detached(threads, [&](const Call& call) {
    pool.file->check();
    const Call fewer{pool.file->threads(call.threads), call.interrupt};
    try {
      if constexpr (std::is_void_v<decltype(f(fewer))>) {
        f(fewer);
        pool.file->check();
      } else {
        auto result = f(fewer);
        pool.file->check();
        return result;
      }
    } catch (const dal::NonfiniteRow& found) {
      pool.file->check();
      refuse_nonfinite(*pool.file, found.row, call);
    } catch (const std::overflow_error&) {
      pool.file->check();  // numbers of a file that was written to meanwhile may be anything
      throw;
    }
  });
}

void check_categories(const int32_t* category, int64_t count, int64_t categories) {
  if (!category) refuse("category: missing");
  for (int64_t k = 0; k < count; ++k)
    if (category[k] < 0 || category[k] >= categories) refuse("category: index out of range");
}

int64_t first_nonfinite(const py::array& rows, const std::string& storage, int threads) {
  const Rows r = rows_of(rows, storage);
  return detached(threads, [&](const Call& call) { return dal::first_nonfinite(r, call); });
}

void margin(const PoolView& pool, const Doubles& reward, Doubles out, int threads) {
  const Rows r = pool.view();
  const double* theta = read(reward, "reward", {r.d});
  double* to = write(out, "out", {r.n});
  detached(r, threads, [&](const Call& call) { dal::margin(r, theta, to, call); });
}

void softplus_moments(const Doubles& mean, const Doubles& sd, Doubles out, int threads) {
  const int64_t n = length(mean);
  const double *mu = read(mean, "mean", {n}), *sigma = read(sd, "sd", {n});
  double* to = write(out, "out", {5, n});
  detached(threads, [&](const Call& call) { dal::softplus_moments(mu, sigma, n, to, call); });
}

using Elementwise = void (*)(const double*, const double*, int64_t, double*, const Call&);

template <Elementwise operation>
void elementwise(const Doubles& margin, const Doubles& rationality, Doubles out, int threads) {
  const int64_t n = length(margin);
  const double *u = read(margin, "margin", {n}), *b = read(rationality, "rationality", {n});
  double* to = write(out, "out", {n});
  detached(threads, [&](const Call& call) { operation(u, b, n, to, call); });
}

void best_teacher(const Doubles& margin, const Array<int32_t>& category, const Doubles& rationality,
                  const std::optional<Bytes>& available, Integers teacher, Doubles weight, int threads) {
  const int64_t n = length(margin);
  if (rationality.ndim() != 2) refuse("rationality: wrong number of dimensions");
  const int64_t m = rationality.shape(0), categories = rationality.shape(1);
  const double *u = read(margin, "margin", {n}), *b = read(rationality, "rationality", {m, categories});
  const int32_t* c = read(category, "category", {n});
  const uint8_t* open = read(available, "available", {m, categories});
  check_categories(c, n, categories);
  int64_t* j = write(teacher, "teacher", {n});
  double* w = write(weight, "weight", {n});
  detached(threads, [&](const Call& call) { dal::best_teacher(u, c, n, b, open, m, categories, j, w, call); });
}

void leverage(const PoolView& pool, const Doubles& inverse_factor, const std::optional<Integers>& conversations,
              bool single, const std::optional<Doubles>& reference, Doubles out, int threads) {
  const Rows r = pool.view();
  const double *w = read(inverse_factor, "inverse_factor", {r.d, r.d}), *nu = read(reference, "reference", {r.d});
  if (nu && r.formed()) refuse("reference: expected a pool of rows");
  const int64_t count = conversations ? length(*conversations) : r.n;
  const int64_t* list = read(conversations, "conversations", {count});
  if (list) check_indices(list, count, r.n, "conversations");
  double* to = write(out, "out", {count});
  detached(r, threads, [&](const Call& call) { dal::leverage(r, w, list, count, to, call, single, nu); });
}

void information_gain(const PoolView& pool, const Doubles& reward, const Doubles& rationality,
                      const Doubles& inverse_factor, const std::optional<Integers>& conversations, Doubles out,
                      int threads) {
  const Rows r = pool.view();
  if (rationality.ndim() != 2) refuse("rationality: wrong number of dimensions");
  const int64_t m = rationality.shape(0), categories = rationality.shape(1);
  const double *theta = read(reward, "reward", {r.d}), *b = read(rationality, "rationality", {m, categories});
  const double* w = read(inverse_factor, "inverse_factor", {r.d, r.d});
  check_categories(r.category, r.pairs() ? r.prompts : r.n, categories);
  const int64_t count = conversations ? length(*conversations) : r.n;
  const int64_t* list = read(conversations, "conversations", {count});
  if (list) check_indices(list, count, r.n, "conversations");
  double* to = write(out, "out", {count, m});
  detached(r, threads, [&](const Call& call) {
    dal::information_gain(r, theta, b, m, categories, w, list, count, to, call);
  });
}

void information_matrix(const PoolView& pool, const Doubles& weight, double ridge, bool single, Doubles out,
                        int threads) {
  const Rows r = pool.view();
  const double* w = read(weight, "weight", {r.n});
  double* to = write(out, "out", {r.d, r.d});
  detached(r, threads, [&](const Call& call) { dal::information_matrix(r, w, ridge, to, call, single); });
}

void weighted_sum(const PoolView& pool, const Doubles& weight, Doubles out, int threads) {
  const Rows r = pool.view();
  const double* w = read(weight, "weight", {r.n});
  double* to = write(out, "out", {r.d});
  detached(r, threads, [&](const Call& call) { dal::weighted_sum(r, w, to, call); });
}

void hessian_vector(const PoolView& pool, const Doubles& weight, const Doubles& vector, Doubles out, int threads) {
  const Rows r = pool.view();
  const double *w = read(weight, "weight", {r.n}), *v = read(vector, "vector", {r.d});
  double* to = write(out, "out", {r.d});
  detached(r, threads, [&](const Call& call) { dal::hessian_vector(r, w, v, to, call); });
}

void weighted_sum_by_cell(const PoolView& pool, const std::optional<Integers>& row, const Doubles& weight,
                          const Integers& cell, Doubles out, int threads) {
  const Rows r = pool.view();
  const int64_t count = length(weight), cells = length(out);
  const double* w = read(weight, "weight", {count});
  const int64_t *at = read(row, "row", {count}), *c = read(cell, "cell", {count});
  if (at) check_indices(at, count, r.n, "row");
  if (!at && count != r.n) refuse("weight: wrong length");
  check_indices(c, count, cells, "cell");
  double* to = write(out, "out", {cells, r.d});
  detached(r, threads, [&](const Call& call) { dal::weighted_sum_by_cell(r, at, w, c, count, cells, to, call); });
}

// A pool of completions, at least one for each prompt; the checked bounds of groups of its prompts.
Rows completions_of(const PoolView& pool) {
  const Rows r = pool.view();
  if (!r.pairs()) refuse("pool: expected completions of prompts");
  return r;
}

const int64_t* group_bounds(const Integers& groups, int64_t n_groups, int64_t prompts) {
  const int64_t* bound = read(groups, "prompt_groups", {n_groups + 1});
  if (n_groups < 0 || bound[0] != 0 || bound[n_groups] != prompts)
    refuse("prompt_groups: must start at 0 and end at the number of prompts");
  for (int64_t g = 0; g < n_groups; ++g)
    if (bound[g] > bound[g + 1]) refuse("prompt_groups: must not fall");
  return bound;
}

void best_completions(const PoolView& pool, const Doubles& reward, const Doubles& prompt_weight, const Integers& groups,
                      const std::optional<Bytes>& allowed, Integers row, Doubles best, Doubles mean, int threads) {
  const Rows r = completions_of(pool);
  const int64_t n_groups = length(groups) - 1, rows = r.prompt_offsets[r.prompts];
  const double *theta = read(reward, "reward", {r.d}), *w = read(prompt_weight, "prompt_weight", {r.prompts});
  const int64_t* bound = group_bounds(groups, n_groups, r.prompts);
  const uint8_t* open = read(allowed, "allowed", {rows});
  for (int64_t p = 0; open && p < r.prompts; ++p)
    if (std::none_of(open + r.prompt_offsets[p], open + r.prompt_offsets[p + 1], [](uint8_t a) { return a != 0; }))
      refuse("allowed: a prompt without any allowed completion");
  int64_t* at = write(row, "row", {r.prompts});
  double *top = write(best, "best", {r.prompts}), *sum = write(mean, "mean", {n_groups, r.d});
  detached(r, threads, [&](const Call& call) {
    dal::best_completions(r, theta, w, bound, n_groups, open, at, top, sum, call);
  });
}

void softmax_completions(const PoolView& pool, const Doubles& reward, double temperature,
                         const std::optional<Doubles>& base_policy, const Doubles& prompt_weight, const Integers& groups,
                         Doubles log_partition, Doubles expected, Doubles mean, Doubles probability, int threads) {
  const Rows r = completions_of(pool);
  const int64_t n_groups = length(groups) - 1, rows = r.prompt_offsets[r.prompts];
  const double *theta = read(reward, "reward", {r.d}), *w = read(prompt_weight, "prompt_weight", {r.prompts});
  const int64_t* bound = group_bounds(groups, n_groups, r.prompts);
  const double* base = read(base_policy, "base_policy", {rows});
  for (int64_t q = 0; base && q < rows; ++q)
    if (!(base[q] >= 0 && base[q] <= 2)) refuse("base_policy: expected probabilities");
  for (int64_t p = 0; base && p < r.prompts; ++p)
    if (std::none_of(base + r.prompt_offsets[p], base + r.prompt_offsets[p + 1], [](double b) { return b > 0; }))
      refuse("base_policy: a prompt without any probability");
  if (!(temperature > 0 && std::isfinite(temperature))) refuse("temperature: expected a positive number");
  double *z = write(log_partition, "log_partition", {r.prompts}), *u = write(expected, "expected", {r.prompts});
  double *sum = write(mean, "mean", {n_groups, r.d}), *pi = write(probability, "probability", {rows});
  detached(r, threads, [&](const Call& call) {
    dal::softmax_completions(r, theta, temperature, base, w, bound, n_groups, z, u, sum, pi, call);
  });
}

void update_leverage(const PoolView& pool, const Doubles& direction, double coefficient, Doubles out, int threads) {
  const Rows r = pool.view();
  const double* v = read(direction, "direction", {r.d});
  double* to = write(out, "out", {r.n});
  detached(r, threads, [&](const Call& call) { dal::update_leverage(r, v, coefficient, to, call); });
}

double bradley_terry_loss(const PoolView& pool, const Doubles& choice, const Doubles& reward, const Doubles& rationality,
                          const std::optional<Doubles>& sample_weight, Doubles gradient, Doubles rationality_gradient,
                          int threads) {
  const Rows r = pool.view();
  const double *y = read(choice, "choice", {r.n}), *theta = read(reward, "reward", {r.d});
  const double *b = read(rationality, "rationality", {r.n}), *v = read(sample_weight, "sample_weight", {r.n});
  double* g = write(gradient, "gradient", {r.d});
  double* gb = write(rationality_gradient, "rationality_gradient", {r.n});
  return detached(r, threads, [&](const Call& call) { return dal::bradley_terry_loss(r, y, theta, b, v, g, gb, call); });
}

py::array_t<int64_t> as_array(const std::vector<int64_t>& v) {
  return py::array_t<int64_t>(static_cast<py::ssize_t>(v.size()), v.data());
}

py::dict select_batch(const PoolView& pool, const Doubles& reward, const Doubles& rationality,
                      const std::optional<Doubles>& upper, const Doubles& matrix, const Doubles& factor,
                      const Doubles& inverse_factor, double inverse_norm, const py::object& spectrum,
                      const Bytes& available, const Integers& capacity, const std::optional<Doubles>& cost,
                      const std::optional<Bytes>& blocked, const std::optional<Integers>& exclude_conversation,
                      const std::optional<Integers>& exclude_offsets, const std::optional<Integers>& exclude_teacher,
                      const std::optional<Integers>& candidate_offsets,
                      const std::optional<Integers>& candidate_teacher, int64_t size, int64_t repeats, double optimism,
                      bool dense, const std::string& route, std::optional<Array<float>> known_leverage, double known_scale,
                      std::optional<Array<float>> leverage_out, int threads, const py::object& progress) {
  dal::SelectionProblem p;
  p.pool = pool.view();
  const int64_t n = p.pool.n, d = p.pool.d;
  if (rationality.ndim() != 2) refuse("rationality: wrong number of dimensions");
  p.m = rationality.shape(0);
  p.categories = rationality.shape(1);
  check_categories(p.pool.category, p.pool.pairs() ? p.pool.prompts : n, p.categories);
  p.reward = read(reward, "reward", {d});
  p.rationality = read(rationality, "rationality", {p.m, p.categories});
  p.upper = read(upper, "upper", {p.m, p.categories});
  p.matrix = read(matrix, "matrix", {d, d});
  p.factor = read(factor, "factor", {d, d});
  p.inverse_factor = read(inverse_factor, "inverse_factor", {d, d});
  p.inverse_norm = inverse_norm;
  std::optional<std::pair<Doubles, Doubles>> solved;  // keeps the arrays alive
  if (!spectrum.is_none())
    p.spectrum = [&]() -> dal::Spectrum {
      py::gil_scoped_acquire hold;
      const py::object found = spectrum();
      if (found.is_none()) return {};
      solved = found.cast<std::pair<Doubles, Doubles>>();
      return {read(solved->first, "eigenvalues", {d}), read(solved->second, "eigenvectors", {d, d})};
    };
  p.route = route;
  p.available = read(available, "available", {p.m, p.categories});
  p.capacity = read(capacity, "capacity", {p.m});
  p.cost = read(cost, "cost", {p.m, p.categories});
  p.blocked = read(blocked, "blocked", {n});
  if (exclude_conversation) {
    p.exclude_count = length(*exclude_conversation);
    p.exclude_conversation = read(exclude_conversation, "exclude_conversation", {p.exclude_count});
    p.exclude_offsets = read(exclude_offsets, "exclude_offsets", {p.exclude_count + 1});
    if (!p.exclude_offsets || !exclude_teacher || p.exclude_offsets[0] != 0) refuse("exclude_offsets: incomplete");
    for (int64_t k = 0; k < p.exclude_count; ++k)
      if (p.exclude_offsets[k + 1] < p.exclude_offsets[k]) refuse("exclude_offsets: must not fall");
    p.exclude_teacher = read(exclude_teacher, "exclude_teacher", {p.exclude_offsets[p.exclude_count]});
  }
  if (candidate_offsets) {
    p.candidate_offsets = read(candidate_offsets, "candidate_offsets", {n + 1});
    if (!candidate_teacher || p.candidate_offsets[0] != 0) refuse("candidate_offsets: incomplete");
    for (int64_t i = 0; i < n; ++i)
      if (p.candidate_offsets[i + 1] < p.candidate_offsets[i]) refuse("candidate_offsets: must not fall");
    p.candidate_teacher = read(candidate_teacher, "candidate_teacher", {p.candidate_offsets[n]});
    check_indices(p.candidate_teacher, p.candidate_offsets[n], p.m, "candidate_teacher");
  }
  if (size < 0 || repeats < 1 || !(optimism >= 0)) refuse("size, repeats or optimism: out of range");
  p.size = size;
  p.repeats = repeats;
  p.optimism = optimism;
  p.dense = dense;
  p.known_leverage = read(known_leverage, "known_leverage", {n});
  p.known_scale = known_scale;
  if (leverage_out) p.leverage_out = write(*leverage_out, "leverage_out", {n});
  std::function<void(int64_t, int64_t)> report;
  if (!progress.is_none())
    report = [&](int64_t done, int64_t total) {
      py::gil_scoped_acquire hold;
      progress(done, total);
    };
  const dal::Selection s = detached(p.pool, threads, [&](const Call& call) { return dal::select_batch(p, call, report); });
  py::dict counters, out;
  py::list stages;
  stages.append(s.route);
  if (s.route != "dense") stages.append("lazy");
  counters["stages"] = stages;
  counters["directions"] = s.directions;
  counters["rows_streamed"] = s.rows_streamed;
  counters["rows_rescored"] = s.rows_rescored;
  counters["refreshes"] = s.refreshes;
  counters["finalists"] = s.finalists;
  counters["refactorisations"] = s.refactorisations;
  out["conversation"] = as_array(s.conversation);
  out["teacher"] = as_array(s.teacher);
  out["gain"] = py::array_t<double>(static_cast<py::ssize_t>(s.gain.size()), s.gain.data());
  out["objective_total"] = s.best_possible;
  out["batch_total"] = s.batch_total;
  out["counters"] = counters;
  return out;
}

}  // namespace

PYBIND11_MODULE(_kernels, m, py::mod_gil_not_used()) {
  m.doc() = "Compiled kernels of dal_native; use the functions of dal_native, which check and word their arguments.";
  m.def("simd_level", [] {
    try {
      return dal::level_name();
    } catch (const std::invalid_argument& error) {
      throw py::value_error(error.what());
    }
  });
  m.def("available_levels", &dal::available_levels);
  m.def("pool_size", &dal::pool_size);

  py::register_exception_translator([](std::exception_ptr raised) {
    try {
      if (raised) std::rethrow_exception(raised);
    } catch (const dal::FileError& error) {
      if (error.code == 0) {
        PyErr_SetString(PyExc_ValueError, error.what());
      } else {
        const py::tuple arguments = py::make_tuple(error.code, std::strerror(error.code), error.path);
        PyErr_SetObject(PyExc_OSError, arguments.ptr());
      }
    }
  });
  py::class_<dal::RowFile, std::shared_ptr<dal::RowFile>>(m, "RowFile")
      .def(py::init(&open_rows), py::arg("path"), py::arg("named"), py::arg("descriptor"), py::arg("scattered"), py::arg("state"),
           py::arg("first_rows").noconvert(), py::arg("offsets").noconvert(), py::arg("storage"), py::arg("rows"),
           py::arg("d"), py::arg("working_memory"));
  py::class_<PoolView>(m, "PoolView")
      .def(py::init([](std::shared_ptr<dal::RowFile> file, std::string storage, std::optional<Array<int32_t>> category,
                       std::optional<Integers> prompt_offsets, std::optional<Integers> pair_offsets,
                       std::optional<Integers> pair_rows) {
             return PoolView{py::array(), std::move(file), std::move(storage), std::move(category),
                             std::move(prompt_offsets), std::move(pair_offsets), std::move(pair_rows)};
           }),
           py::arg("rows").none(false), py::arg("storage"), py::arg("category").noconvert() = py::none(),
           py::arg("prompt_offsets").noconvert() = py::none(), py::arg("pair_offsets").noconvert() = py::none(),
           py::arg("pair_rows").noconvert() = py::none())
      .def(py::init([](py::array rows, std::string storage, std::optional<Array<int32_t>> category,
                       std::optional<Integers> prompt_offsets, std::optional<Integers> pair_offsets,
                       std::optional<Integers> pair_rows) {
             return PoolView{std::move(rows), nullptr, std::move(storage), std::move(category), std::move(prompt_offsets),
                             std::move(pair_offsets), std::move(pair_rows)};
           }),
           py::arg("rows").noconvert(), py::arg("storage"), py::arg("category").noconvert() = py::none(),
           py::arg("prompt_offsets").noconvert() = py::none(), py::arg("pair_offsets").noconvert() = py::none(),
           py::arg("pair_rows").noconvert() = py::none());

#define DAL_IN(name) py::arg(name).noconvert()
  m.def("first_nonfinite", &first_nonfinite, DAL_IN("rows"), py::arg("storage"), py::arg("threads"));
  m.def("margin", &margin, py::arg("pool"), DAL_IN("reward"), DAL_IN("out"), py::arg("threads"));
  m.def("choice_probability", &elementwise<dal::choice_probability>, DAL_IN("margin"), DAL_IN("rationality"),
        DAL_IN("out"), py::arg("threads"));
  m.def("choice_weight", &elementwise<dal::choice_weight>, DAL_IN("margin"), DAL_IN("rationality"), DAL_IN("out"),
        py::arg("threads"));
  m.def("softplus_moments", &softplus_moments, DAL_IN("mean"), DAL_IN("sd"), DAL_IN("out"), py::arg("threads"));
  m.def("best_teacher", &best_teacher, DAL_IN("margin"), DAL_IN("category"), DAL_IN("rationality"), DAL_IN("available"),
        DAL_IN("teacher"), DAL_IN("weight"), py::arg("threads"));
  m.def("leverage", &leverage, py::arg("pool"), DAL_IN("inverse_factor"), DAL_IN("conversations"), py::arg("single"),
        DAL_IN("reference"), DAL_IN("out"), py::arg("threads"));
  m.def("information_gain", &information_gain, py::arg("pool"), DAL_IN("reward"), DAL_IN("rationality"),
        DAL_IN("inverse_factor"), DAL_IN("conversations"), DAL_IN("out"), py::arg("threads"));
  m.def("information_matrix", &information_matrix, py::arg("pool"), DAL_IN("weight"), py::arg("ridge"), py::arg("single"), DAL_IN("out"),
        py::arg("threads"));
  m.def("weighted_sum", &weighted_sum, py::arg("pool"), DAL_IN("weight"), DAL_IN("out"), py::arg("threads"));
  m.def("hessian_vector", &hessian_vector, py::arg("pool"), DAL_IN("weight"), DAL_IN("vector"), DAL_IN("out"),
        py::arg("threads"));
  m.def("weighted_sum_by_cell", &weighted_sum_by_cell, py::arg("pool"), DAL_IN("row"), DAL_IN("weight"), DAL_IN("cell"),
        DAL_IN("out"), py::arg("threads"));
  m.def("best_completions", &best_completions, py::arg("pool"), DAL_IN("reward"), DAL_IN("prompt_weight"),
        DAL_IN("prompt_groups"), DAL_IN("allowed"), DAL_IN("row"), DAL_IN("best"), DAL_IN("mean"), py::arg("threads"));
  m.def("softmax_completions", &softmax_completions, py::arg("pool"), DAL_IN("reward"), py::arg("temperature"),
        DAL_IN("base_policy"), DAL_IN("prompt_weight"), DAL_IN("prompt_groups"), DAL_IN("log_partition"),
        DAL_IN("expected"), DAL_IN("mean"), DAL_IN("probability"), py::arg("threads"));
  m.def("update_leverage", &update_leverage, py::arg("pool"), DAL_IN("direction"), py::arg("coefficient"),
        DAL_IN("out"), py::arg("threads"));
  m.def("bradley_terry_loss", &bradley_terry_loss, py::arg("pool"), DAL_IN("choice"), DAL_IN("reward"),
        DAL_IN("rationality"), DAL_IN("sample_weight"), DAL_IN("gradient"), DAL_IN("rationality_gradient"),
        py::arg("threads"));
  m.def("select_batch", &select_batch, py::arg("pool"), DAL_IN("reward"), DAL_IN("rationality"), DAL_IN("upper"),
        DAL_IN("matrix"), DAL_IN("factor"), DAL_IN("inverse_factor"), py::arg("inverse_norm"), py::arg("spectrum"),
        DAL_IN("available"), DAL_IN("capacity"), DAL_IN("cost"), DAL_IN("blocked"), DAL_IN("exclude_conversation"), DAL_IN("exclude_offsets"), DAL_IN("exclude_teacher"),
        DAL_IN("candidate_offsets"), DAL_IN("candidate_teacher"), py::arg("size"), py::arg("repeats"),
        py::arg("optimism"), py::arg("dense"), py::arg("route"), DAL_IN("known_leverage"), py::arg("known_scale"),
        DAL_IN("leverage_out"), py::arg("threads"), py::arg("progress"));
#undef DAL_IN
}
