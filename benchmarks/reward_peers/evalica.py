"""evalica's `bradley_terry`: scores by fixed-point iterations in Rust; no teachers, no prior.

Where an item won or lost all of its comparisons, every score comes out the same: the likelihood then has no
maximum, and the geometric mean that its iterations divide by is 0 or infinite. Items never seen get 0.
"""

import numpy as np

from benchmarks.peers import exchange
from benchmarks.reward_peers import problems


def prepare(given: problems.Comparisons):
    import evalica

    a, b = (side.tolist() for side in np.asarray(given.pair).T)
    winner = [evalica.Winner.Y if y else evalica.Winner.X for y in np.asarray(given.choice) == 1]

    def fit() -> problems.Learnt:
        found = evalica.bradley_terry(a, b, winner)
        strength = found.scores.to_numpy(np.float64)
        score = np.zeros(given.items)
        score[found.scores.index] = np.where(strength > 0, np.log(np.maximum(strength, 1e-300)), 0.0)
        left, right = given.held_pair.T

        def facts() -> dict[str, int]:
            return {"iterations": found.iterations, "limit": found.limit}

        return problems.Learnt(score, lambda: problems.logistic(score[right] - score[left]), facts=facts)

    return fit


if __name__ == "__main__":
    exchange.serve(prepare, "evalica", "evalica", kind=problems.Comparisons, told=problems.told)
