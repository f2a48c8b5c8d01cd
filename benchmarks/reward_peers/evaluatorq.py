"""evaluatorq's `fit_bt`: Bradley-Terry scores, a discriminator sigma per judge, P = s((s_a - s_b) / sigma).

Pure Python: Adam on the joint posterior of the scores and log sigma, weak Gaussian priors on both. Equal
answers are collapsed into one record with a weight before the clock starts, as its documentation advises.
"""

import numpy as np

from benchmarks.peers import exchange
from benchmarks.reward_peers import problems


def prepare(given: problems.Comparisons):
    from evaluatorq.ranking import JudgedComparison, fit_bt

    answers = np.column_stack([given.teacher, given.pair, given.choice])
    distinct, count = np.unique(answers, axis=0, return_counts=True)
    records = [
        JudgedComparison(
            judge=str(int(j)), item_a=str(int(a)), item_b=str(int(b)), p_a=float(1 - y), weight=float(k)
        )
        for (j, a, b, y), k in zip(distinct, count, strict=True)
    ]

    def fit() -> problems.Learnt:
        found = fit_bt(records)
        score, log_rationality = np.zeros(given.items), np.zeros(given.teachers)
        for name, skill in found.skills.items():
            score[int(name)] = skill
        for name, sigma in found.sigmas.items():
            log_rationality[int(name)] = -np.log(sigma)

        def chance() -> np.ndarray:
            a, b = given.held_pair.T
            return problems.logistic(np.exp(log_rationality[given.held_teacher]) * (score[b] - score[a]))

        facts = {"iterations": found.iterations, "converged": found.converged, "records": len(records)}
        return problems.Learnt(score, chance, log_rationality, log_rationality, lambda: facts)

    return fit


if __name__ == "__main__":
    exchange.serve(prepare, "evaluatorq", "evaluatorq.ranking", kind=problems.Comparisons, told=problems.told)
