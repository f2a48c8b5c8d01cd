// The first look at a pool.
#pragma once

#include <string>
#include <vector>

#include "operations/admissible.hpp"
#include "operations/bounds.hpp"
#include "operations/selection.hpp"

namespace dal {

// What the first look at the pool gives: bound[i] >= w h of every pair of conversation i that was admissible at the
// start (per cost with costs), whatever is added to M later; -1 where nobody may answer; 0 only where every such value
// is 0; +infinity where single precision does not reach.
struct FirstPass {
  std::vector<double> bound;
  std::string route;
  int64_t directions = 0;
};

// Bounds by the cheapest route, judged on a sample of the rows: the full product W x of every row, a few projections
// ("screened"), or leverages known from an earlier round ("warm"). Fills problem.leverage_out where asked for.
FirstPass first_pass(const SelectionProblem& problem, const Admissible& admissible, const SinglePass& single,
                     double rounding, const Call& call);

}  // namespace dal
