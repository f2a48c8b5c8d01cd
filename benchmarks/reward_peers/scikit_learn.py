"""scikit-learn's LogisticRegression on the differences, no intercept, C = 1 / ridge: one teacher for all.

Argument 2: the solver. Argument 3: its tol, or `within:G` for the largest of 1e-4, 1e-5, ..., 1e-14 by which
the gradient of the penalised objective is at most G posterior standard deviations long (found before the
clock starts; the last one where none is enough).
"""

import sys
import warnings

import numpy as np

from benchmarks.peers import exchange
from benchmarks.reward_peers import problems

ITERATIONS = 10_000


def prepare(given: problems.Differences):
    from sklearn.linear_model import LogisticRegression

    x, y = np.array(given.asked()), np.array(given.choice)
    solver, stop = sys.argv[2:4]

    def model_of(tol: float, warm_start: bool = False):
        return LogisticRegression(
            C=1 / given.ridge,
            fit_intercept=False,
            solver=solver,
            tol=tol,
            max_iter=ITERATIONS,
            warm_start=warm_start,
        )

    def fitted(model):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what its gradient came to is told
            return model.fit(x, y)

    def lengths(theta: np.ndarray) -> tuple[float, float]:
        """Of the penalised objective's gradient: Euclidean, and in posterior standard deviations."""
        chance = problems.logistic(x @ theta)
        gradient = x.T @ (y - chance) - given.ridge * theta
        hessian = x.T @ (x * (chance * (1 - chance))[:, None]) + given.ridge * np.eye(len(theta))
        return float(np.linalg.norm(gradient)), float(np.sqrt(gradient @ np.linalg.solve(hessian, gradient)))

    if stop.startswith("within:"):
        # A Newton step from near the optimum goes far beyond the tol that it was asked for: those start anew.
        searched = model_of(1.0, warm_start=solver == "lbfgs")
        for power in range(4, 15):
            tol = 10.0**-power
            theta = fitted(searched.set_params(tol=tol)).coef_[0]
            if lengths(theta)[1] <= float(stop[len("within:") :]):
                break
    else:
        tol = float(stop)

    def fit() -> problems.Learnt:
        model = fitted(model_of(tol))
        theta = model.coef_[0].astype(np.float64)

        def facts() -> dict[str, float]:
            plain, whitened = lengths(theta)
            iterations = int(model.n_iter_[0])
            return {"tol": tol, "gradient": plain, "gradient_in_sd": whitened, "iterations": iterations}

        held = given.held_conversation
        return problems.Learnt(theta, lambda: problems.logistic(given.rows[held] @ theta), facts=facts)

    return fit


if __name__ == "__main__":
    exchange.serve(
        prepare, "scikit-learn", "sklearn.linear_model", kind=problems.Differences, told=problems.told
    )
