// The operations: threaded drivers over the kernels. No Python; arguments are checked by the callers.
#pragma once

#include <cstdint>

#include "operations/rows.hpp"
#include "operations/threads.hpp"

namespace dal {

int64_t first_nonfinite(const Rows& rows, const Call& call);

void margin(const Rows& pool, const double* reward, double* out, const Call& call);

void choice_probability(const double* margin, const double* rationality, int64_t n, double* out, const Call& call);
void choice_weight(const double* margin, const double* rationality, int64_t n, double* out, const Call& call);

// inverse_factor: W = L^-1, (d, d) row-major. conversations: null for all n, else `count` indices. single: products in
// float. reference: null or (d), of rows only: (x - reference)' M^-1 (x - reference).
void leverage(const Rows& pool, const double* inverse_factor, const int64_t* conversations, int64_t count, double* out,
              const Call& call, bool single = false, const double* reference = nullptr);

// out (count, m) = log1p(w_ij h_i); rationality (m, C)
void information_gain(const Rows& pool, const double* reward, const double* rationality, int64_t m, int64_t categories,
                      const double* inverse_factor, const int64_t* conversations, int64_t count, double* out,
                      const Call& call);

// out (d, d) = ridge I + sum_t weight_t x_t x_t'; single: products and sums of up to 128 labels in float
void information_matrix(const Rows& rows, const double* weight, double ridge, double* out, const Call& call,
                        bool single = false);

// out (d) = sum_t weight_t x_t, and sum_t weight_t (x_t' vector) x_t
void weighted_sum(const Rows& rows, const double* weight, double* out, const Call& call);
void hessian_vector(const Rows& rows, const double* weight, const double* vector, double* out, const Call& call);
// out (cells, d): sum of weight_q x_(row_q) over the entries q < count of each cell; row null: q
void weighted_sum_by_cell(const Rows& rows, const int64_t* row, const double* weight, const int64_t* cell, int64_t count,
                          int64_t cells, double* out, const Call& call);

// The first allowed completion of largest phi'theta in each prompt of a pool of completions, that reward, and the sum over
// each group of prompts, groups[g]..groups[g + 1] - 1, of prompt_weight phi(row): row and best (prompts), mean (n_groups,
// d); allowed (N) or null. Every row is read once. A reward that is not finite is a std::overflow_error.
void best_completions(const Rows& pool, const double* reward, const double* prompt_weight, const int64_t* groups,
                      int64_t n_groups, const uint8_t* allowed, int64_t* row, double* best, double* mean,
                      const Call& call);

// The policy pi(a|p) = base_policy(a) exp(phi_a'theta / temperature) / Z_p over the completions of each prompt, in one read:
// log Z_p and E_pi phi'theta (prompts), the sum over each group of prompts of prompt_weight E_pi phi (n_groups, d), and pi
// (N). base_policy null: uniform; else each prompt has a positive one. Errors as above.
void softmax_completions(const Rows& pool, const double* reward, double temperature, const double* base_policy,
                         const double* prompt_weight, const int64_t* groups, int64_t n_groups, double* log_partition,
                         double* expected, double* mean, double* probability, const Call& call);

void update_leverage(const Rows& pool, const double* direction, double coefficient, double* leverage, const Call& call);

// out (5, n): E sp(t), E s(t), E s'(t), E t s'(t), E t^2 s'(t) under t ~ N(mean, sd^2)
void softplus_moments(const double* mean, const double* sd, int64_t n, double* out, const Call& call);

double bradley_terry_loss(const Rows& rows, const double* choice, const double* reward, const double* rationality,
                          const double* sample_weight, double* gradient, double* rationality_gradient, const Call& call);

// teacher -1 and weight 0 where none is available; available (m, C) or null
void best_teacher(const double* margin, const int32_t* category, int64_t n, const double* rationality,
                  const uint8_t* available, int64_t m, int64_t categories, int64_t* teacher, double* weight,
                  const Call& call);

}  // namespace dal
