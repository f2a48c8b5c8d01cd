// The first look at a pool of completions, whose pairs are never stored.
#pragma once

#include "operations/first_pass.hpp"

namespace dal {

// What first_pass gives, for a pool of pairs: each completion is read, centred and projected once.
FirstPass pair_pass(const SelectionProblem& problem, const Admissible& admissible, const SinglePass& single,
                    const Bfloat16Pass& products, double rounding, const Call& call);

}  // namespace dal
