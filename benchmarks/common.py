"""Sizes, problems, rounds and the unit of cost, shared by all benchmarks; tests run the first size of each
list.
"""

from __future__ import annotations

import functools
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

import dal_native as dn
from dal_native.testing import Problem, make_problem, store

#: (n conversations, d features)
POOLS = [(256, 8), (50_000, 128), (200_000, 256)]
DTYPES = ["float32", "float64", "float16", "bfloat16"]
#: (T labels, d features)
LABELS = [(64, 8), (20_000, 128), (100_000, 512)]
TEACHERS, CATEGORIES = 100, 4

T = TypeVar("T")
ROOT = Path(__file__).resolve().parents[1]


# ---------------------------------------------------------------------------------------------- problems


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


@dataclass(frozen=True)
class Spectrum:
    """How the energy of the rows falls along rotated axes, and how heavy the tails of their lengths are."""

    exponent: float  # the standard deviation of axis k falls as k^-exponent
    tail: float  # lengths are those of a t distribution with so many degrees of freedom
    dominant: float = 1.0  # factor of the first axis

    def blocks(self, rng: np.random.Generator, n: int, d: int) -> Iterator[NDArray[np.float32]]:
        """Float32 rows, block by block: n of them, of d features."""
        scale = (np.arange(1, d + 1) ** -self.exponent).astype(np.float32)
        scale[0] *= self.dominant
        rotation = np.linalg.qr(rng.standard_normal((d, d)))[0].astype(np.float32)
        for start in range(0, n, 65536):
            g = rng.standard_normal((min(65536, n - start), d), dtype=np.float32) * scale
            length = np.sqrt(self.tail / rng.chisquare(self.tail, len(g))).astype(np.float32)
            g *= (length / np.linalg.norm(g, axis=1))[:, None]
            yield g @ rotation

    def rows(self, rng: np.random.Generator, n: int, d: int) -> NDArray[np.float32]:
        """Float32 rows: (n, d)."""
        x, start = np.empty((n, d), np.float32), 0
        for block in self.blocks(rng, n, d):
            x[start : start + len(block)] = block
            start += len(block)
        return x


#: The spectra that selection is measured on.
SPECTRA = {
    "power_law": Spectrum(0.5, 6.0),
    "isotropic": Spectrum(0.0, 60.0),
    "dominant": Spectrum(0.2, 6.0, dominant=30.0),
    "heavy_tails": Spectrum(0.2, 2.1),
}


@functools.lru_cache(maxsize=2)
def pool_problem(
    n: int, d: int, m: int = TEACHERS, labels: int = 2_000, kind: str = "power_law", dtype: str = "float32"
) -> Problem:
    """A pool of one of the `SPECTRA`, and M of labels drawn from it and answered by random teachers."""
    rng = np.random.default_rng(0)
    x = SPECTRA[kind].rows(rng, n, d)
    reward = rng.standard_normal(d)
    reward *= 2.0 / float(np.std(x[:20_000] @ reward))
    category, rationality = rng.integers(0, CATEGORIES, n), rng.lognormal(0.0, 0.5, (m, CATEGORIES))
    seen, teacher = rng.choice(n, labels, replace=labels > n), rng.integers(0, m, labels)
    weight = dn.choice_weight(x[seen] @ reward, rationality[teacher, category[seen]])
    matrix = dn.information_matrix(x[seen], weight)
    return Problem(x if dtype == "float32" else store(x, dtype), category, rationality, reward, matrix)


@dataclass(frozen=True, eq=False)
class CompletionProblem:
    """A pool of the pairs of completions, with what `select_batch` takes beside it."""

    pool: dn.Pool
    reward: NDArray[np.float64]
    rationality: NDArray[np.float64]
    matrix: NDArray[np.float64]


@functools.lru_cache(maxsize=1)
def completion_problem(
    prompts: int, k: int, d: int, m: int = TEACHERS, labels: int = 2_000
) -> CompletionProblem:
    """Completions scattered about their prompts, float32; M of labelled pairs."""
    rng = np.random.default_rng(0)
    rows = SPECTRA["power_law"].rows(rng, prompts * k, d)
    rows.reshape(prompts, k, d)[...] += rows[::k, None, :].copy()
    pool = dn.Pool.from_completions(
        rows, np.arange(0, prompts * k + 1, k), rng.integers(0, CATEGORIES, prompts)
    )
    seen = rng.choice(len(pool), labels, replace=labels > len(pool))
    x = pool.take(seen)
    reward = rng.standard_normal(d)
    reward *= 2.0 / float(np.std(x @ reward))
    rationality = rng.lognormal(0.0, 0.5, (m, CATEGORIES))
    weight = dn.choice_weight(x @ reward, rationality[rng.integers(0, m, labels), pool.category_of(seen)])
    return CompletionProblem(pool, reward, rationality, dn.information_matrix(x, weight))


def arguments(
    p: Problem | CompletionProblem,
) -> tuple[dn.Pool, NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Pool, reward, rationality and M of a problem."""
    return p.pool if isinstance(p, CompletionProblem) else p.pool(), p.reward, p.rationality, p.matrix


def joint_information(p: Problem, labels: int, prior_variance: float = 0.25) -> dn.JointInformation:
    """The covariance after labels of random teachers on rows of the pool, every cell with labels or not."""
    rng, x = np.random.default_rng(1), p.differences
    d, (m, n_categories) = x.shape[1], p.rationality.shape
    seen, teacher = rng.integers(0, len(x), labels), rng.integers(0, m, labels)
    category = p.category[seen]
    u, beta = x[seen] @ p.reward, p.rationality[teacher, category]
    g = np.zeros((labels, d + m * n_categories))
    g[:, :d] = beta[:, None] * x[seen]
    g[np.arange(labels), d + teacher * n_categories + category] = u
    prior = np.r_[np.ones(d), (1.0 / (prior_variance * np.square(p.rationality))).ravel()]
    joint = np.diag(prior) + (g / (2.0 + 2.0 * np.cosh(beta * u))[:, None]).T @ g
    cell = np.arange(m * n_categories).reshape(m, n_categories)
    return dn.JointInformation.from_inverse(np.linalg.inv(joint), d, cell)


class Rounds:
    """Batches from one Selector, with a refit after each that takes the labels in and moves every weight
    and theta.
    """

    def __init__(self, pool: dn.Pool, p: Problem | CompletionProblem, seed: int = 5) -> None:
        self.selector = dn.Selector(pool)
        self.pool = pool
        self.reward, self.rationality, self.matrix = p.reward, p.rationality, p.matrix
        self.rng = np.random.default_rng(seed)

    def select(self, size: int, **options: Any) -> dn.Batch:
        return self.selector.select(self.reward, self.rationality, self.matrix, size, **options)

    def refit(self, batch: dn.Batch) -> None:
        """M with the new labels in and its other weights changed by up to 3 %; theta by 0.2 of its
        standard error.
        """
        x = self.pool.take(batch.conversation)
        beta = self.rationality[batch.teacher, self.pool.category_of(batch.conversation)]
        weight = dn.choice_weight(x @ self.reward, beta)
        moved = 0.97 * self.matrix + 0.03 * np.diag(np.diag(self.matrix)) + (x * weight[:, None]).T @ x
        self.matrix = 0.5 * (moved + moved.T)
        noise = self.rng.standard_normal(len(self.reward))
        self.reward = self.reward + 0.2 * np.linalg.solve(np.linalg.cholesky(self.matrix).T, noise)


# ------------------------------------------------------------------------------------------ time and reads


def timed(call: Callable[[], T]) -> tuple[T, float]:
    """A call's result and its wall time."""
    start = time.perf_counter()
    result = call()
    return result, time.perf_counter() - start


def once(call: Callable[[], object]) -> float:
    """Wall time of one call."""
    return timed(call)[1]


def seconds(call: Callable[[], object], repeats: int = 3) -> float:
    """Median wall time of a few calls."""
    return sorted(once(call) for _ in range(repeats))[repeats // 2]


#: A read of a larger pool of half precision is timed on so many bytes.
STAND_IN_BYTES = 1 << 30


def read_seconds(rows: NDArray[Any], passes: int = 3) -> float:
    """One streaming read of the pool, the unit of cost that anyone can run: the best of a few BLAS
    products of the rows with a vector, on all threads. BLAS knows no half precision: there, a product over
    float32 numbers that take as many bytes.
    """
    if rows.dtype not in (np.float32, np.float64):
        bytes_read = min(rows.nbytes, STAND_IN_BYTES)
        stand_in = np.ones((max(1, bytes_read // (4 * rows.shape[1])), rows.shape[1]), np.float32)
        return read_seconds(stand_in, passes) * rows.nbytes / stand_in.nbytes
    ones = np.ones(rows.shape[1], rows.dtype)
    best = min(once(lambda: rows @ ones) for _ in range(passes))
    time.sleep(min(0.3, 20 * best))  # BLAS keeps its idle threads spinning for a while
    return best


def reads(call: Callable[[], object], rows: NDArray[Any], repeats: int = 3) -> float:
    """Wall time of a call in reads of these rows: the median of pairs."""
    pairs = []
    for _ in range(repeats):
        unit = read_seconds(rows)
        pairs.append(once(call) / unit)
    return sorted(pairs)[repeats // 2]


def sgemm_speed() -> float:
    """Floating point operations a second of a large float32 product, all threads."""
    a = np.ones((4096, 4096), np.float32)
    return 2 * 4096**3 / min(once(lambda: a @ a) for _ in range(3))


def pair_arithmetic_seconds(pool: dn.Pool) -> float:
    """Looking at every pair of completions once: a difference and a fused product-sum for each of its
    features, at half of the speed that SGEMM shows (where a product-sum counts as 2 operations).
    """
    instructions = 2 * len(pool) * pool.d
    return 2 * instructions / (sgemm_speed() / 2)


# ------------------------------------------------------------------------------------------------- reports


def say(text: str, end: str = "\n") -> None:
    print(text, end=end, flush=True)


def provenance() -> dict[str, str]:
    """Machine and how busy it was before, versions, commit and command of a measurement."""
    state = dn.capabilities()
    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    model = names[0].split(":")[1].strip() if names else platform.processor()
    spec = sys.modules["__main__"].__spec__
    module = spec.name.removesuffix(".__main__") if spec else Path(sys.argv[0]).stem
    return {
        "machine": f"{model}, {state['cpus']} CPUs, {state['simd']['level']}, load {os.getloadavg()[0]:.1f}",
        "versions": ", ".join(
            [f"Python {platform.python_version()}", f"NumPy {np.__version__}", f"dal-native {dn.__version__}"]
        ),
        "commit": commit(),
        "command": " ".join(["python -m", module, *sys.argv[1:]]),
    }


def source(report: dict[str, Any]) -> str:
    """Where a report's figures come from, in a sentence."""
    return f"{report['machine']}; {report['versions']}; `{report['command']}` at commit {report['commit']}."


def commit() -> str:
    """The commit of the clone these benchmarks lie in, with a mark when files under version control differ
    from it.
    """
    command = ["git", "describe", "--always", "--dirty=, changed", "--exclude=*"]
    try:
        described = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    except OSError:  # no git here
        return "unknown"
    return described.stdout.strip() or "unknown"


def figure(x: float) -> str:
    """Three significant digits, never an exponent."""
    return f"{x:,.0f}" if abs(x) >= 100 else f"{x:.3g}" if abs(x) >= 0.001 else f"{x:.5f}"


def brief(x: float) -> str:
    """Two significant digits, with an exponent where it is small."""
    return f"{x:.1e}" if abs(x) < 0.01 else figure(x)


def table(head: Iterable[str], lines: Iterable[Iterable[object]]) -> str:
    """A Markdown table."""
    head = list(head)
    rows = [head, ["---"] * len(head), *([str(cell) for cell in line] for line in lines)]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def refresh(page: Path, name: str, text: str) -> None:
    """Put a text between a page's two comments with this name.

    Raises
    ------
    ValueError
        If the page has no such pair of comments.
    """
    begin, end = f"<!-- begin {name} -->\n", f"<!-- end {name} -->"
    old = page.read_text(encoding="utf-8")
    if old.count(begin) != 1 or old.count(end) != 1:
        raise ValueError(f"{page} has no part {name!r}; expected one {begin.strip()} and one {end}")
    before, rest = old.split(begin)
    after = rest.split(end)[1]
    page.write_text(before + begin + text.strip() + "\n" + end + after, encoding="utf-8")
