#include "operations/admissible.hpp"

#include <algorithm>

namespace dal {

std::pair<int64_t, int64_t> Admissible::exclusions(int64_t i) const {
  const int64_t* end = p_.exclude_conversation + p_.exclude_count;
  const int64_t* at = std::lower_bound(p_.exclude_conversation, end, i);
  if (at == end || *at != i) return {0, 0};
  const int64_t k = at - p_.exclude_conversation;
  return {p_.exclude_offsets[k], p_.exclude_offsets[k + 1]};
}

bool Admissible::excluded(int64_t i, int64_t j) const {
  if (p_.exclude_count == 0) return false;
  const auto [first, last] = exclusions(i);
  return std::binary_search(p_.exclude_teacher + first, p_.exclude_teacher + last, j);
}

void Admissible::start_weights(int64_t i, int32_t c, double margin, std::vector<double>& out) const {
  if (p_.blocked && p_.blocked[i]) return;
  if (p_.repeats == 1) {
    const double w = start_largest(i, c, margin);
    if (w >= 0) out.push_back(w);
    return;
  }
  const auto begin = static_cast<int64_t>(out.size());
  each(i, c, Time::start, [&](int64_t j) { out.push_back(per_cost(choice_weight(margin, beta(j, c)), j, c)); });
  const auto first = out.begin() + begin;
  if (out.end() - first > p_.repeats) {
    std::nth_element(first, first + p_.repeats, out.end(), std::greater<>());
    out.erase(first + p_.repeats, out.end());
  }
}

bool Admissible::ask(int64_t i, int64_t j) {
  int64_t& left = capacity_[static_cast<size_t>(j)];
  if (left > 0 && --left == 0 && !p_.cost && !p_.candidate_offsets)
    now_ = TeacherTable(p_.rationality, p_.available, capacity_.data(), p_.m, p_.categories);
  if (p_.repeats == 1) return false;
  auto& asked = asked_[i];
  asked.push_back(j);
  return static_cast<int64_t>(asked.size()) < p_.repeats;
}

}  // namespace dal
