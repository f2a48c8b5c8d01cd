// E sp(t), E s(t), E s'(t), E t s'(t), E t^2 s'(t) under t ~ N(mean, sd^2), to about 1e-12.
//
// Gauss-Hermite errs like exp(-c / sd): the poles of s lie at +-i pi. So narrow laws take 14 nodes, wider ones 40, and
// wide ones, for which what is not smooth on the scale of sd sits within a few units of t = 0, Gauss-Legendre there on
// pieces of the half line. Laws of one kind are gathered, so that a vector of them needs no branch.
#include "operations/softplus.hpp"

#include <algorithm>
#include <cmath>
#include <iterator>

#include "formulas.hpp"
#include "operations/levels.hpp"
#include "operations/operations.hpp"
#include "operations/quadrature.hpp"

namespace dal {
namespace {

constexpr int64_t kChunk = 1024;
constexpr double kLargest14 = 0.35, kLargest40 = 1.3;
constexpr double kPieces[] = {0.0, 1.5, 4.0, 7.5, 12.0, 18.0, 26.0, 40.0};

struct Rule {
  std::vector<double> node, weight;
  int64_t size() const { return static_cast<int64_t>(node.size()); }
  void add(double at, double w) {
    node.push_back(at);
    weight.push_back(w);
  }
};

template <size_t N>
Rule both_halves(const NodeWeight (&half)[N], double middle, double scale) {
  Rule rule;
  for (size_t q = N; q-- > 0;)
    if (half[q].node > 0) rule.add(middle - scale * half[q].node, scale * half[q].weight);
  for (const NodeWeight& q : half) rule.add(middle + scale * q.node, scale * q.weight);
  return rule;
}

struct Rules {
  Rule point, sharp = both_halves(kHermite14, 0.0, 1.0), narrow = both_halves(kHermite40, 0.0, 1.0), half_line;
  std::vector<double> rests;  // what softplus_wide sums: weight (sp(t) - t), weight s(-t), weight s'(t)

  Rules() {
    point.add(0.0, 1.0);
    for (size_t k = 0; k + 1 < std::size(kPieces); ++k) {
      const Rule piece = both_halves(kLegendre9, (kPieces[k] + kPieces[k + 1]) / 2, (kPieces[k + 1] - kPieces[k]) / 2);
      for (size_t q = 0; q < piece.node.size(); ++q) half_line.add(piece.node[q], piece.weight[q]);
    }
    for (auto f : {logistic_loss, minus_logistic, logistic_slope})
      for (size_t q = 0; q < half_line.node.size(); ++q) rests.push_back(half_line.weight[q] * f(half_line.node[q]));
  }
  static double minus_logistic(double t) { return logistic(-t); }
};

const Rules& rules() {
  static const Rules made;
  return made;
}

enum Kind { kPoint, kSharp, kNarrow, kWide };

Kind kind_of(double sd) {
  return sd == 0 ? kPoint : sd <= kLargest14 ? kSharp : sd <= kLargest40 ? kNarrow : kWide;
}

}  // namespace

SoftplusMoments::SoftplusMoments(const KernelTable& k, int64_t most)
    : kernels_(k), room_(chunks_of(most, k.float_lanes()) * k.float_lanes()), space_(static_cast<size_t>(8 * room_)) {}

void SoftplusMoments::run(const double* mean, const double* sd, int64_t count, double* out, int64_t stride) {
  double *mu = space_.data(), *sigma = mu + room_, *tail = sigma + room_, *result = tail + room_;
  for (auto& laws : chosen_) laws.clear();
  for (int64_t i = 0; i < count; ++i) chosen_[kind_of(sd[i])].push_back(i);
  for (int kind = 0; kind <= kWide; ++kind) {
    const std::vector<int64_t>& chosen = chosen_[kind];
    const auto many = static_cast<int64_t>(chosen.size());
    if (many == 0) continue;
    const int64_t whole = chunks_of(many, kernels_.float_lanes()) * kernels_.float_lanes();
    for (int64_t q = 0; q < whole; ++q) {
      const int64_t i = chosen[static_cast<size_t>(std::min(q, many - 1))];
      mu[q] = mean[i];
      sigma[q] = sd[i];
      if (kind == kWide) tail[q] = 0.5 * std::erfc(std::fabs(mu[q] / sigma[q]) * 0.7071067811865476);
    }
    const Rules& all = rules();
    if (kind == kWide) {
      kernels_.softplus_wide(mu, sigma, tail, whole, all.half_line.node.data(), all.rests.data(), all.half_line.size(),
                             result, room_);
    } else {
      const Rule& rule = kind == kPoint ? all.point : kind == kSharp ? all.sharp : all.narrow;
      kernels_.softplus_hermite(mu, sigma, whole, rule.node.data(), rule.weight.data(), rule.size(), result, room_);
    }
    for (int64_t row = 0; row < 5; ++row)
      for (int64_t q = 0; q < many; ++q)
        out[row * stride + chosen[static_cast<size_t>(q)]] = result[row * room_ + q];
  }
}

void softplus_moments(const double* mean, const double* sd, int64_t n, double* out, const Call& call) {
  const KernelTable& k = kernels();
  std::vector<std::vector<SoftplusMoments>> spaces(static_cast<size_t>(call.threads));
  parallel_for(chunks_of(n, kChunk), call, [&](int64_t chunk, int worker) {
    auto& mine = spaces[static_cast<size_t>(worker)];
    if (mine.empty()) mine.emplace_back(k, kChunk);
    const int64_t start = chunk * kChunk;
    mine[0].run(mean + start, sd + start, std::min(kChunk, n - start), out + start, n);
  });
}

}  // namespace dal
