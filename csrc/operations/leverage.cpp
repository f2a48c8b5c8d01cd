#include "operations/leverage.hpp"

#include <algorithm>

#include "formulas.hpp"
#include "operations/operations.hpp"

namespace dal {
namespace {

// f(worker space, first position, count, leverages of those positions)
template <class F>
void each_leverage(const Rows& pool, const double* inverse_factor, const int64_t* conversations, int64_t count,
                   const Call& call, F f) {
  const KernelTable& k = kernels();
  const Leverage whiten(k, inverse_factor, pool.d);
  const int64_t per_chunk = chunk_rows(pool.d);
  std::vector<Leverage::Space> spaces(static_cast<size_t>(call.threads));
  std::vector<std::vector<double>> squares(static_cast<size_t>(call.threads));
  parallel_for(chunks_of(count, per_chunk), call, [&](int64_t chunk, int worker) {
    Leverage::Space& space = spaces[static_cast<size_t>(worker)];
    auto& h = squares[static_cast<size_t>(worker)];
    space.reserve(per_chunk, pool.d);
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
              const Call& call) {
  each_leverage(pool, inverse_factor, conversations, count, call, [&](int64_t start, int64_t many, const double* h) {
    std::copy(h, h + many, out + start);
  });
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
