"""contextualbandits' linear regression with upper confidence bounds, the leverage part of LinUCB.

It has no design of batches. With answers of 0 its bound is sqrt(f' (I + sum f f')^-1 f) of whitened, weighted
rows, so the row of the largest bound is the greedy D-optimal pick; the loop (bound every row, take the
largest, `partial_fit` it with an answer of 0) is ours. Argument 2: the precision.
"""

import sys

import numpy as np

from benchmarks.peers import exchange


def prepare(given: exchange.Given):
    from contextualbandits.linreg import LinearRegression

    f = given.features(sys.argv[2])

    def select() -> list[int]:
        model = LinearRegression(
            lambda_=1.0, fit_intercept=False, method="sm", use_float=f.dtype == np.float32
        )
        picks: list[int] = []
        for _ in range(given.size):
            bound = model.predict_ucb(f)
            bound[picks] = -1
            picks.append(int(bound.argmax()))
            model.partial_fit(f[picks[-1:]], np.zeros(1))
        return picks

    return select


if __name__ == "__main__":
    exchange.serve(prepare, "contextualbandits", "contextualbandits.linreg")
