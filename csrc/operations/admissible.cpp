#include "operations/admissible.hpp"

#include <algorithm>

namespace dal {

Closed Admissible::excluded(int64_t i) const {
  const int64_t* end = p_.exclude_conversation + p_.exclude_count;
  const int64_t* at = std::lower_bound(p_.exclude_conversation, end, i);
  if (at == end || *at != i) return {};
  const int64_t k = at - p_.exclude_conversation;
  return {p_.exclude_teacher + p_.exclude_offsets[k], p_.exclude_teacher + p_.exclude_offsets[k + 1], nullptr};
}

Closed Admissible::closed(int64_t i) const {
  Closed out = excluded(i);
  if (p_.repeats == 1) return out;
  const auto at = asked_.find(i);
  if (at != asked_.end()) out.others = &at->second;
  return out;
}

// The largest quotient is found first; whether it should be 0 is asked only where all of them underflow.
double Admissible::per_cost(const Table& table, int32_t c, double margin, const Closed& closed) const {
  const double best = largest(table, {}, margin, c, closed);
  if (!p_.cost || best < 0) return best;
  std::vector<double> weight;
  if (best == 0) largest_weights(table, 1, margin, c, closed, weight);
  return weight.empty() || weight[0] > 0 ? share(best) : 0;
}

void Admissible::start_weights(int64_t i, int32_t c, double margin, std::vector<double>& out) const {
  if (!open(i)) return;
  if (p_.cost || p_.repeats == 1) {
    const double w = start_largest(i, c, margin);
    if (w >= 0) out.push_back(w);
    return;
  }
  if (!p_.candidate_offsets) return largest_weights(start_, p_.repeats, margin, c, excluded(i), out);
  const auto begin = static_cast<int64_t>(out.size());
  each(i, c, Time::start, [&](int64_t j) { out.push_back(weight(j, c, margin)); });
  const auto first = out.begin() + begin;
  if (out.end() - first > p_.repeats) {
    std::nth_element(first, first + p_.repeats, out.end(), std::greater<>());
    out.erase(first + p_.repeats, out.end());
  }
}

bool Admissible::ask(int64_t i, int64_t j) {
  int64_t& left = capacity_[static_cast<size_t>(j)];
  if (left > 0 && --left == 0) std::visit([&](auto& t) { t.remove(j); }, now_);
  if (p_.repeats == 1) return false;
  auto& asked = asked_[i];
  asked.push_back(j);
  return static_cast<int64_t>(asked.size()) < p_.repeats;
}

}  // namespace dal
