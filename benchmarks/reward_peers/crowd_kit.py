"""crowd-kit's NoisyBradleyTerry: a worker answers by the scores with a chance that is their skill, else by
their bias towards the left item.

    P(left) = skill s(s_left - s_right) + (1 - skill) bias

L-BFGS with a gradient that is summed in a Python loop. In 1.4.2 that gradient is right for the scores only:
the parts of biases and skills are assigned, not added up, each to the entry before its own. `facts` says how
far it is from the slope of the function that it is the gradient of.
"""

import numpy as np

from benchmarks.peers import exchange
from benchmarks.reward_peers import problems


def prepare(given: problems.Comparisons):
    import pandas as pd
    from crowdkit.aggregation import NoisyBradleyTerry

    left, right = np.asarray(given.pair).T
    data = pd.DataFrame(
        {
            "worker": np.asarray(given.teacher),
            "left": left,
            "right": right,
            "label": np.where(given.choice == 1, right, left),
        }
    )
    wrong = _gradient_error(NoisyBradleyTerry, data.head(1000))

    def fit() -> problems.Learnt:
        found = NoisyBradleyTerry().fit(data)
        score, skill, bias = np.zeros(given.items), np.full(given.teachers, 0.5), np.full(given.teachers, 0.5)
        score[found.scores_.index] = problems.logit(found.scores_.to_numpy())
        skill[found.skills_.index], bias[found.biases_.index] = found.skills_, found.biases_

        def chance() -> np.ndarray:
            a, b = given.held_pair.T
            j = given.held_teacher
            return 1 - skill[j] * problems.logistic(score[a] - score[b]) - (1 - skill[j]) * bias[j]

        return problems.Learnt(score, chance, problems.logit(skill), facts=lambda: {"gradient_error": wrong})

    return fit


def _gradient_error(kind, data) -> dict[str, float]:
    """Length of the gradient's error over that of the true slope, for scores and for the workers' part."""
    from crowdkit.aggregation.utils import factorize

    names, pairs = factorize(data[["left", "right", "label"]].to_numpy())
    workers, worker = factorize(data["worker"].to_numpy())
    x = np.random.default_rng(0).random(1 + len(names) + 2 * len(workers))
    arguments = (pairs + 1, worker, len(names), len(workers), 1e-5)
    step = 1e-5 * np.eye(len(x))
    slope = np.array(
        [
            (
                kind._compute_log_likelihood(x + e, *arguments)
                - kind._compute_log_likelihood(x - e, *arguments)
            )
            / 2e-5
            for e in step
        ]
    )
    error = kind._compute_gradient(x, *arguments) - slope
    last = len(names)  # a worker's part overwrites the last score's
    parts = {"scores": slice(1, last), "workers": slice(last + 1, None)}
    return {
        name: float(np.linalg.norm(error[part]) / np.linalg.norm(slope[part])) for name, part in parts.items()
    }


if __name__ == "__main__":
    exchange.serve(
        prepare, "crowd-kit", "crowdkit.aggregation", kind=problems.Comparisons, told=problems.told
    )
