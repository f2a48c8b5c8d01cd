// Greedy D-optimal batches of (conversation, teacher) pairs, exact.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "operations/rows.hpp"
#include "operations/threads.hpp"

namespace dal {

struct Spectrum {
  const double* values = nullptr;   // (d), null where the eigensolver failed
  const double* vectors = nullptr;  // (d, d), row k belongs to value k
};

struct SelectionProblem {
  Rows pool;
  const double* reward = nullptr;          // (d)
  const double* rationality = nullptr;     // (m, categories), not negative; with intervals their lower ends
  const double* upper = nullptr;           // (m, categories): upper ends, each weight the largest in its interval; or null
  int64_t m = 0, categories = 0;
  const double* matrix = nullptr;          // M (d, d)
  const double* factor = nullptr;          // L lower, M = L L'
  const double* inverse_factor = nullptr;  // L^-1
  double inverse_norm = 0;                 // at least the spectral norm of L^-1; 0: not known
  // The eigenvalues of M, ascending, and its eigenvectors by row; asked for at most once. Empty: no screening.
  std::function<Spectrum()> spectrum;
  const uint8_t* available = nullptr;      // (m, categories)
  const int64_t* capacity = nullptr;       // (m), -1: no limit
  const double* cost = nullptr;            // (m, categories) or null
  const uint8_t* blocked = nullptr;        // (n) or null
  int64_t exclude_count = 0;               // conversations with excluded pairs, ascending
  const int64_t* exclude_conversation = nullptr;
  const int64_t* exclude_offsets = nullptr;
  const int64_t* exclude_teacher = nullptr;  // ascending within a conversation
  const int64_t* candidate_offsets = nullptr;  // (n + 1) or null: all pairs
  const int64_t* candidate_teacher = nullptr;
  int64_t size = 0;
  int64_t repeats = 1;
  double optimism = 0;
  bool dense = false;
  std::string route;  // of the first pass; empty: the cheapest. For tests: every route gives the same picks.
  // Leverages known from an earlier round: known_scale * known_leverage[i] >= h_i at this M. Null: none.
  const float* known_leverage = nullptr;
  double known_scale = 1;
  // Where to leave upper bounds of the leverages at this M for a later round, or null. May be known_leverage.
  float* leverage_out = nullptr;
};

struct Selection {
  std::vector<int64_t> conversation, teacher;
  std::vector<double> gain;
  double best_possible = 0;  // sum of the `size` largest start-admissible w h at the final M; by cost with costs
  double batch_total = 0;    // sum of w h over the picks at the final M
  std::string route;         // "full", "bfloat16", "screened", "warm" or "dense"
  int64_t directions = 0;    // of the screen
  int64_t rows_streamed = 0, rows_rescored = 0, refreshes = 0, finalists = 0, refactorisations = 0;
};

// Throws std::overflow_error when a leverage is not finite, and whatever the interrupt hook throws.
Selection select_batch(const SelectionProblem& problem, const Call& call,
                       const std::function<void(int64_t, int64_t)>& progress);

}  // namespace dal
