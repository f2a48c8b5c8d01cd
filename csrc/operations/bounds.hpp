// The first pass: for every conversation an upper bound on the best w h, from single-precision products.
#pragma once

#include <vector>

#include "operations/admissible.hpp"
#include "operations/selection.hpp"

namespace dal {

// How far float64 quantities derived from M and its factor can be off, relative to the leverage at the start.
//
// kappa = |M|_F |W|_F^2 bounds the condition number. Triangular solves and products with the inverse factor W, and the
// rotations that update it, are backward stable: each result is exact for a matrix within c d eps |M| of M, which moves
// h by at most c d eps kappa relatively; so does one Sherman-Morrison term, because a_s h_s < 1. Past 1e-6 (kappa d
// beyond 1e9) the float64 oracle itself does not determine the order more finely, and the window stays there.
double rounding_of_leverage(const double* matrix, const double* inverse_factor, int64_t d);

// bound[i] >= w h of every pair of conversation i that was admissible at the start (per cost with costs), whatever is
// added to M later; -1 where nobody may answer; 0 only where every such value is 0; +infinity where single precision
// does not reach.
std::vector<double> upper_bounds(const SelectionProblem& problem, const Admissible& admissible, double rounding,
                                 const Call& call);

}  // namespace dal
