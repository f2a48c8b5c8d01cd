#include <algorithm>
#include <vector>

#include "formulas.hpp"
#include "operations/levels.hpp"
#include "operations/operations.hpp"

namespace dal {
namespace {

// What the products are taken in.
template <class T>
struct Whiten;
template <>
struct Whiten<double> {
  static constexpr Storage storage = Storage::f64;
  static constexpr auto convert = &KernelTable::to_double;
  static constexpr auto squares = &KernelTable::whitened_squares_double;
};
template <>
struct Whiten<float> {
  static constexpr Storage storage = Storage::f32;
  static constexpr auto convert = &KernelTable::to_float;
  static constexpr auto squares = &KernelTable::whitened_squares_float;
};

// |W x|^2 for runs or lists of conversations.
template <class T>
class Leverage {
 public:
  Leverage(const KernelTable& k, const double* inverse_factor, int64_t d)
      : kernels_(k), d_(d), packed_(static_cast<size_t>(k.packed_factor_size(d, Whiten<T>::storage == Storage::f32))) {
    if constexpr (Whiten<T>::storage == Storage::f32) {
      k.pack_factor_float(inverse_factor, d, 1.0, packed_.data());
    } else {
      k.pack_factor_double(inverse_factor, d, packed_.data());
    }
  }

  // The same of the rows less a reference, subtracted in float64 before anything else: no digits cancel later.
  void set_reference(const double* reference) { reference_ = reference; }

  // Working space of one thread, for at most `count` conversations at a time.
  struct Space {
    std::vector<double> gathered, scratch, centred;
    std::vector<T> rows;
    void reserve(const Rows& pool, int64_t count, bool listed, bool referred) {
      rows.resize(static_cast<size_t>(count * pool.d));
      if (listed) gathered.resize(static_cast<size_t>(2 * pool.d));
      if (referred) centred.resize(static_cast<size_t>(count * pool.d));
      if (pool.needs_scratch()) scratch.resize(static_cast<size_t>((count + 1) * pool.d));
    }
  };

  // out[q] = h of conversation start + q
  void run(const Rows& pool, int64_t start, int64_t stop, Space& space, double* out) const {
    Block block = block_of(kernels_, pool, start, stop, space.scratch.data());
    if (reference_) {
      kernels_.to_double(block.rows, block.storage, (stop - start) * d_, space.centred.data());
      for (int64_t q = 0; q < stop - start; ++q) subtract_reference(space.centred.data() + q * d_);
      block = {space.centred.data(), Storage::f64};
    }
    const T* x = space.rows.data();
    if (block.storage == Whiten<T>::storage) {
      x = static_cast<const T*>(block.rows);
    } else {
      (kernels_.*Whiten<T>::convert)(block.rows, block.storage, (stop - start) * d_, space.rows.data());
    }
    (kernels_.*Whiten<T>::squares)(x, stop - start, d_, packed_.data(), out);
  }

  // out[q] = h of conversation list[q]
  void list(const Rows& pool, const int64_t* conversations, int64_t count, Space& space, double* out) const {
    expect(pool, conversations, count);
    for (int64_t q = 0; q < count; ++q) {
      gather(kernels_, pool, conversations[q], space.gathered.data(), space.gathered.data() + d_);
      if (reference_) subtract_reference(space.gathered.data());
      (kernels_.*Whiten<T>::convert)(space.gathered.data(), Storage::f64, d_, space.rows.data() + q * d_);
    }
    (kernels_.*Whiten<T>::squares)(space.rows.data(), count, d_, packed_.data(), out);
  }

 private:
  void subtract_reference(double* x) const { kernels_.subtract_scaled(reference_, 1.0, d_, x); }

  const KernelTable& kernels_;
  int64_t d_;
  std::vector<T> packed_;
  const double* reference_ = nullptr;
};

// f(worker space, first position, count, leverages of those positions)
template <class T = double, class F>
void each_leverage(const Rows& pool, const double* inverse_factor, const int64_t* conversations, int64_t count,
                   const Call& call, F f, const double* reference = nullptr) {
  const KernelTable& k = kernels();
  Leverage<T> whiten(k, inverse_factor, pool.d);
  whiten.set_reference(reference);
  const int64_t per_chunk = chunk_rows(pool);
  std::vector<typename Leverage<T>::Space> spaces(static_cast<size_t>(call.threads));
  std::vector<std::vector<double>> squares(static_cast<size_t>(call.threads));
  parallel_for(chunks_of(count, per_chunk), call, [&](int64_t chunk, int worker) {
    auto& space = spaces[static_cast<size_t>(worker)];
    auto& h = squares[static_cast<size_t>(worker)];
    space.reserve(pool, per_chunk, conversations != nullptr, reference != nullptr);
    h.resize(static_cast<size_t>(per_chunk));
    const int64_t start = chunk * per_chunk, stop = std::min(count, start + per_chunk);
    if (conversations) {
      whiten.list(pool, conversations + start, stop - start, space, h.data());
    } else {
      whiten.run(pool, start, stop, space, h.data());
    }
    f(start, stop - start, h.data());
  });
}

}  // namespace

void leverage(const Rows& pool, const double* inverse_factor, const int64_t* conversations, int64_t count, double* out,
              const Call& call, bool single, const double* reference) {
  const auto keep = [&](int64_t start, int64_t many, const double* h) { std::copy(h, h + many, out + start); };
  if (single) {
    each_leverage<float>(pool, inverse_factor, conversations, count, call, keep, reference);
  } else {
    each_leverage(pool, inverse_factor, conversations, count, call, keep, reference);
  }
}

void information_gain(const Rows& pool, const double* reward, const double* rationality, int64_t m, int64_t categories,
                      const double* inverse_factor, const int64_t* conversations, int64_t count, double* out,
                      const Call& call) {
  const KernelTable& k = kernels();
  each_leverage(pool, inverse_factor, conversations, count, call, [&](int64_t start, int64_t many, const double* h) {
    std::vector<double> x(static_cast<size_t>(2 * pool.d));
    for (int64_t q = 0; q < many; ++q) {
      const int64_t i = conversations ? conversations[start + q] : start + q;
      gather(k, pool, i, x.data(), x.data() + pool.d);
      double u;
      k.margin(x.data(), Storage::f64, 1, pool.d, reward, &u, nullptr);
      const int32_t c = pool.category_of(i);
      for (int64_t j = 0; j < m; ++j)
        out[(start + q) * m + j] = information_gain(choice_weight(u, rationality[j * categories + c]), h[q]);
    }
  });
}

}  // namespace dal
