"""Sizes, problems and the unit of cost, shared by all benchmarks; tests run the first size of each list."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

import dal_native as dn
from dal_native.testing import Problem, make_problem

#: (n conversations, d features)
POOLS = [(256, 8), (50_000, 128), (200_000, 256)]
DTYPES = ["float32", "float64", "float16", "bfloat16"]
#: (T labels, d features)
LABELS = [(64, 8), (20_000, 128), (100_000, 512)]
TEACHERS, CATEGORIES = 100, 4


@functools.lru_cache(maxsize=2)
def problem(n: int, d: int, dtype: str = "float32", kind: str = "power_law", labels: int = 2_000) -> Problem:
    """A seeded problem, the same for every benchmark."""
    return make_problem(kind, n, d, TEACHERS, CATEGORIES, labels=labels, dtype_name=dtype, seed=0)


@functools.lru_cache(maxsize=2)
def labels(
    t: int, d: int
) -> tuple[NDArray[np.float32], NDArray[np.float64], NDArray[np.int64], NDArray[np.float64]]:
    """Simulated answers: differences (T, d) float32, choice, teacher, and the reward behind them."""
    rng = np.random.default_rng(1)
    x = (rng.standard_normal((t, d)) * np.arange(1, d + 1) ** -0.5).astype(np.float32)
    reward = rng.standard_normal(d)
    teacher = rng.integers(0, TEACHERS, t)
    beta = rng.lognormal(0.0, 0.5, TEACHERS)[teacher]
    choice = (rng.random(t) < 1 / (1 + np.exp(-beta * (x @ reward)))).astype(np.float64)
    return x, choice, teacher, reward


def seconds(call: Callable[[], object], repeats: int = 3) -> float:
    """Median wall time of a few calls."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return sorted(times)[repeats // 2]


def read_seconds(rows: NDArray[np.float32]) -> float:
    """One streaming read of the pool by BLAS: the unit of cost that anyone can run."""
    ones = np.ones(rows.shape[1], rows.dtype)
    return seconds(lambda: rows @ ones)


def arguments(p: Problem) -> tuple[dn.Pool, NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Pool, reward, rationality and M of a problem."""
    return p.pool(), p.reward, p.rationality, p.matrix
