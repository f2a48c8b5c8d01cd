"""choix' `opt_pairwise`: Bradley-Terry scores by Newton-CG, no teachers.

Its penalty is alpha |s|^2, without a half: alpha is half of our ridge.
"""

import numpy as np

from benchmarks.peers import exchange
from benchmarks.reward_peers import problems


def prepare(given: problems.Comparisons):
    import choix

    pair, choice = np.asarray(given.pair), np.asarray(given.choice).astype(np.int64)
    row = np.arange(len(pair))
    won = np.column_stack([pair[row, choice], pair[row, 1 - choice]]).tolist()

    def fit() -> problems.Learnt:
        score = choix.opt_pairwise(given.items, won, alpha=given.ridge / 2)
        a, b = given.held_pair.T
        return problems.Learnt(score, lambda: problems.logistic(score[b] - score[a]))

    return fit


if __name__ == "__main__":
    exchange.serve(prepare, "choix", "choix", kind=problems.Comparisons, told=problems.told)
