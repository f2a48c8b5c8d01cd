"""What a careful NumPy user writes: one product with the whole pool in float32, then one read of it per pick.

It chooses the teachers too, and gets the problem as it is: nothing is prepared for it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np


def numpy_loop(p: Any, size: int) -> list[tuple[int, int]]:
    """Greedy picks (conversation, teacher) of a problem with float32 differences."""
    x, matrix = p.differences, p.matrix
    margin = (x @ p.reward.astype(np.float32)).astype(np.float64)
    weight, teacher = np.zeros(len(x)), np.zeros(len(x), np.int64)
    for start in range(0, len(x), 4096):
        part = slice(start, min(start + 4096, len(x)))
        beta = p.rationality.T[p.category[part]]
        w = beta**2 / (2 + 2 * np.cosh(np.clip(beta * margin[part, None], -700, 700)))
        teacher[part] = w.argmax(1)
        weight[part] = w.max(1)
    inverse = np.linalg.inv(matrix)
    half = np.linalg.cholesky(inverse).astype(np.float32)
    h = np.concatenate([((x[s : s + 4096] @ half) ** 2).sum(1) for s in range(0, len(x), 4096)]).astype(
        np.float64
    )
    picks = []
    for _ in range(size):
        i = int(np.argmax(weight * h))
        v = inverse @ x[i].astype(np.float64)
        a = weight[i] / (1 + weight[i] * (x[i] @ v))
        inverse -= a * np.outer(v, v)
        h -= a * (x @ v.astype(np.float32)).astype(np.float64) ** 2
        picks.append((i, int(teacher[i])))
        weight[i] = 0
    return picks


if __name__ == "__main__":
    from benchmarks.peers import exchange

    def prepare(given: exchange.Given) -> Callable[[], list[int]]:
        read = replace(given, differences=np.array(given.differences))
        return lambda: [i for i, _ in numpy_loop(read, read.size)]

    exchange.serve(prepare, "numpy")
