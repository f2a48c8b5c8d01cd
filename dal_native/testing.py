"""Seeded problems, and the oracle: every operation by its definition, in extended precision, slowly.

The oracle shares no formula with the backends: leverages come from a Cholesky solve in long double, gains
from differences of log determinants, gradients from finite differences, batches from every pair at each step.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dal_native.nuisance import JointInformation
from dal_native.pool import Pool
from dal_native.selection import Batch

Floats = NDArray[np.float64]
Extended = NDArray[np.longdouble]

#: The kinds of problem that `make_problem` knows.
KINDS = ("isotropic", "power_law", "heavy_tails", "duplicates", "clustered", "equal")
#: Storage types, as in `Pool.dtype_name`.
DTYPES = ("float64", "float32", "float16", "bfloat16")


# ---------------------------------------------------------------------------------------------- problems


@dataclass(frozen=True, eq=False)
class Problem:
    """A selection problem: stored differences, and the float64 arguments that go with them."""

    differences: NDArray[Any]  # (n, d) as stored; bfloat16 in its one-field dtype
    category: NDArray[np.int64]  # (n,)
    rationality: Floats  # (m, C)
    reward: Floats  # (d,)
    matrix: Floats  # (d, d)
    options: dict[str, Any] = field(default_factory=dict)

    def pool(self) -> Pool:
        """The pool of this problem."""
        return Pool(self.differences, self.category)

    def rows(self) -> Floats:
        """The stored differences in float64, (n, d)."""
        return as_float64(self.differences)


def to_bfloat16(x: ArrayLike) -> NDArray[Any]:
    """Round to bfloat16 (nearest, ties to even), in the one-field dtype that `Pool` takes: any shape.

    Examples
    --------
    >>> from dal_native.testing import as_float64, to_bfloat16
    >>> as_float64(to_bfloat16([1.0, 1.01]))
    array([1.       , 1.0078125])
    """
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    return rounded.astype(np.uint16).view(np.dtype([("bfloat16", "<u2")]))


def store(x: ArrayLike, dtype_name: str) -> NDArray[Any]:
    """Round to a storage type: any shape.

    Examples
    --------
    >>> from dal_native.testing import store
    >>> store([1.0001], "float16").dtype
    dtype('float16')
    """
    if dtype_name == "bfloat16":
        return to_bfloat16(x)
    return np.asarray(x, np.dtype(dtype_name))


def as_float64(stored: NDArray[Any]) -> Floats:
    """What `store` stored, in float64.

    Examples
    --------
    >>> from dal_native.testing import as_float64, store
    >>> as_float64(store([0.5], "bfloat16"))
    array([0.5])
    """
    if stored.dtype.names == ("bfloat16",):
        stored = (stored["bfloat16"].astype(np.uint32) << np.uint32(16)).view(np.float32)
    return stored.astype(np.float64)


def make_problem(
    kind: str = "isotropic",
    n: int = 40,
    d: int = 5,
    m: int = 4,
    n_categories: int = 3,
    *,
    labels: int = 20,
    ridge: float = 1.0,
    dtype_name: str = "float64",
    seed: int = 0,
) -> Problem:
    """A seeded problem: differences of some kind, log-normal rationalities, a reward, and M of labelled rows.

    Parameters
    ----------
    kind : str
        One of `KINDS`: the spectrum and tails of the differences, or how they repeat.
    n, d, m, n_categories : int
        Conversations, features, teachers, categories.
    labels : int
        Rows, drawn like the pool, that M has seen.
    ridge : float
    dtype_name : str
        Storage type of the differences.
    seed : int

    Returns
    -------
    Problem

    Raises
    ------
    ValueError
        For an unknown kind.

    Examples
    --------
    >>> from dal_native.testing import make_problem
    >>> make_problem("power_law", n=10, d=3).rows().shape
    (10, 3)
    """
    rng = np.random.default_rng(seed)
    x = as_float64(store(_differences(rng, kind, n + labels, d), dtype_name))
    category = rng.integers(0, n_categories, n)
    rationality = rng.lognormal(0.0, 0.7, (m, n_categories))
    reward = rng.standard_normal(d)
    reward *= 2.0 / (1e-3 + float(np.sqrt(np.sum((x @ reward) ** 2) / max(1, len(x)))))  # margins of size 2
    seen = x[n:]
    weight = rng.uniform(0.01, 0.25, labels)
    matrix = ridge * np.eye(d) + (seen * weight[:, None]).T @ seen
    stored = store(x[:n], dtype_name)
    return Problem(stored, category, rationality, reward, 0.5 * (matrix + matrix.T))


def _differences(rng: np.random.Generator, kind: str, n: int, d: int) -> Floats:
    x = rng.standard_normal((n, d))
    if kind == "isotropic":
        return x
    if kind == "power_law":
        rotation = np.linalg.qr(rng.standard_normal((d, d)))[0]
        return np.asarray((x * np.arange(1, d + 1) ** -0.8) @ rotation)
    if kind == "heavy_tails":
        return np.asarray(x * np.sqrt(3.0 / rng.chisquare(3.0, n))[:, None])
    if kind == "duplicates":
        return x[rng.integers(0, max(1, n // 4), n)]
    if kind == "clustered":
        return x[rng.integers(0, max(1, n // 8), n)] + 0.05 * x
    if kind == "equal":
        return np.repeat(x[:1], n, axis=0)
    raise ValueError(f"kind is {kind!r}; expected one of {', '.join(KINDS)}")


def tolerance(d: int, condition: float = 1.0) -> float:
    """Relative error allowed of an operation on d features: the one tolerance of the tests.

    The stored values are the data and all arithmetic on them is float64, so the storage type does not enter.

    Examples
    --------
    >>> from dal_native.testing import tolerance
    >>> tolerance(64) < 1e-12
    True
    """
    return float(8.0 * np.finfo(np.float64).eps * (d + 8) * max(1.0, condition))


# ------------------------------------------------------------------------------------------- definitions


def _extended(x: ArrayLike) -> Extended:
    return np.asarray(x, np.longdouble)


def _cholesky(matrix: Extended) -> Extended:
    """Of one matrix or of many, (..., d, d)."""
    a = matrix.copy()
    for k in range(a.shape[-1]):
        a[..., k, k] = np.sqrt(a[..., k, k] - np.sum(a[..., k, :k] ** 2, axis=-1))
        below = np.sum(a[..., k + 1 :, :k] * a[..., k, None, :k], axis=-1)
        a[..., k + 1 :, k] = (a[..., k + 1 :, k] - below) / a[..., k, k, None]
    return np.tril(a)


def _inverse(matrix: Extended) -> Extended:
    """Of a positive definite matrix, by its factor."""
    factor, out = _cholesky(matrix), np.eye(len(matrix), dtype=np.longdouble)
    for k in range(len(matrix)):
        out[k] = (out[k] - factor[k, :k] @ out[:k]) / factor[k, k]
    return np.asarray(out.T @ out)


def oracle_margin(x: Floats, reward: Floats) -> Extended:
    """u_i = x_i' theta, (n,)."""
    return np.asarray(np.sum(_extended(x) * _extended(reward), axis=1))


def oracle_best_completions(
    phi: Floats, offsets: ArrayLike, reward: Floats, weight: Floats, groups: ArrayLike, allowed: ArrayLike
) -> tuple[NDArray[np.int64], Extended, Extended]:
    """Each prompt's allowed completions tried one by one: row and reward (P,), sums of features (G, d)."""
    u, bounds = oracle_margin(phi, reward), np.asarray(offsets, np.int64)
    row = [
        max((k for k in range(a, b) if np.asarray(allowed)[k]), key=lambda k: (u[k], -k))
        for a, b in pairwise(bounds)
    ]
    chosen = _extended(weight)[:, None] * _extended(phi)[row]
    mean = [np.sum(chosen[a:b], axis=0) for a, b in pairwise(np.asarray(groups, np.int64))]
    return np.array(row, np.int64), u[row], np.array(mean, np.longdouble).reshape(-1, phi.shape[1])


def oracle_softmax_completions(
    phi: Floats, offsets: ArrayLike, reward: Floats, temperature: float, base: Floats
) -> tuple[Extended, Extended, Extended, Extended]:
    """log Z, E u and E phi of each prompt's own distribution, (P,), (P,) and (P, d), and pi, (N,)."""
    u, bounds = oracle_margin(phi, reward), np.asarray(offsets, np.int64)
    log_z, expected, mean, probability = [], [], [], []
    for a, b in pairwise(bounds):
        used = np.flatnonzero(base[a:b]) + a
        logit = np.log(_extended(base)[used]) + u[used] / np.longdouble(temperature)
        top = logit.max()
        log_z.append(top + np.log(np.sum(np.exp(logit - top))))
        pi = np.zeros(b - a, np.longdouble)
        pi[used - a] = np.exp(logit - log_z[-1])
        expected.append(np.sum(pi * u[a:b]))
        mean.append(np.sum(pi[:, None] * _extended(phi)[a:b], axis=0))
        probability.append(pi)
    return np.array(log_z), np.array(expected), np.array(mean), np.concatenate(probability)


def oracle_probability(margin: ArrayLike, rationality: ArrayLike) -> Extended:
    """1 / (1 + exp(-beta u)), broadcast."""
    with np.errstate(over="ignore"):
        return np.asarray(1 / (1 + np.exp(-_extended(rationality) * _extended(margin))))


def oracle_weight(margin: ArrayLike, rationality: ArrayLike) -> Extended:
    """Fisher information of one answer on the margin, P'(u)^2 / (P (1 - P)) = beta^2 P (1 - P), broadcast."""
    p = oracle_probability(margin, rationality)
    q = oracle_probability(margin, -_extended(rationality))
    return np.asarray(_extended(rationality) ** 2 * p * q)


def oracle_largest_weight(margin: ArrayLike, lower: ArrayLike, upper: ArrayLike) -> Extended:
    """The largest weight for beta in [lower, upper], where it rises and then falls, by golden sections."""
    u, low, high = (np.array(a) for a in np.broadcast_arrays(*map(_extended, (margin, lower, upper))))
    ends = np.maximum(oracle_weight(u, low), oracle_weight(u, high))
    share = (np.sqrt(np.longdouble(5)) - 1) / 2
    while (high - low > 1e-10 * high).any():  # flat where it is largest: 1e-20 of the weight
        left, right = high - share * (high - low), low + share * (high - low)
        rising = oracle_weight(u, left) < oracle_weight(u, right)
        low, high = np.where(rising, left, low), np.where(rising, high, right)
    return np.asarray(np.maximum(ends, oracle_weight(u, (low + high) / 2)))


def oracle_leverage(x: Floats, matrix: ArrayLike) -> Extended:
    """x_i' M^-1 x_i, (n,), by a Cholesky solve; the same additions in the same order for every row."""
    factor = _cholesky(_extended(matrix))
    y = _extended(x).copy()
    for k in range(y.shape[1]):
        y[:, k] = (y[:, k] - np.sum(np.ascontiguousarray(y[:, :k]) * factor[k, :k], axis=1)) / factor[k, k]
    return np.asarray(np.sum(y * y, axis=1))


def oracle_log_det(matrix: ArrayLike) -> Any:
    """log det M, of one matrix or of many, (..., d, d)."""
    diagonal = np.diagonal(_cholesky(_extended(matrix)), axis1=-2, axis2=-1)
    return 2 * np.sum(np.log(diagonal), axis=-1)


def oracle_gain(
    x: Floats, category: ArrayLike, reward: Floats, rationality: Floats, matrix: Floats
) -> Extended:
    """log det(M + w_ij x_i x_i') - log det M of every pair, (n, m)."""
    w = oracle_weight(oracle_margin(x, reward)[:, None], rationality.T[np.asarray(category, np.int64)])
    before = oracle_log_det(matrix)
    gain = np.empty(w.shape, np.longdouble)
    for i, row in enumerate(_extended(x)):
        for j in range(w.shape[1]):
            gain[i, j] = oracle_log_det(_extended(matrix) + w[i, j] * np.outer(row, row)) - before
    return gain


def oracle_best_teacher(
    margin: Floats, category: ArrayLike, rationality: Floats, available: NDArray[Any] | None = None
) -> tuple[list[int], list[float]]:
    """Every teacher tried on every conversation: the smallest index within 1e-12 of the largest weight."""
    teachers, weights = [], []
    for u, c in zip(margin, np.asarray(category, np.int64), strict=True):
        w = oracle_weight(u, np.abs(rationality[:, c]))
        open_to = [j for j in range(len(w)) if available is None or available[j, c]]
        best = max((w[j] for j in open_to), default=None)
        tied = [j for j in open_to if best is not None and w[j] >= best * (1 - 1e-12)]
        teachers.append(tied[0] if tied else -1)
        weights.append(float(w[tied[0]]) if tied else 0.0)
    return teachers, weights


def oracle_information_matrix(x: Floats, weight: Floats, ridge: float) -> Extended:
    """ridge I + sum_i w_i x_i x_i', added up one by one, (d, d)."""
    out = np.longdouble(ridge) * np.eye(x.shape[1], dtype=np.longdouble)
    for row, w in zip(_extended(x), _extended(weight), strict=True):
        out += w * np.outer(row, row)
    return out


def oracle_weighted_sum_by_cell(x: Floats, weight: Floats, cell: ArrayLike, cells: int) -> Extended:
    """sum of w_q x_q over the entries q of each cell, added up one by one, (cells, d)."""
    out = np.zeros((cells, x.shape[1]), np.longdouble)
    for row, w, c in zip(_extended(x), _extended(weight), np.asarray(cell, np.int64), strict=True):
        out[c] += w * row
    return out


def oracle_loss(
    x: Floats, choice: Floats, reward: ArrayLike, rationality: ArrayLike, sample_weight: ArrayLike
) -> np.longdouble:
    """Negative log likelihood, every term by its definition."""
    u = np.sum(_extended(x) * _extended(reward), axis=1)
    p = oracle_probability(u, rationality)
    q = oracle_probability(u, -_extended(rationality))
    y, v = _extended(choice), _extended(sample_weight)
    return np.longdouble(
        np.sum(v * -(np.where(y > 0, y * np.log(p), 0) + np.where(y < 1, (1 - y) * np.log(q), 0)))
    )


def finite_difference(function: Any, at: Floats, step: float = 1e-4) -> Extended:
    """Gradient by fourth-order central differences in long double, of the shape of ``at``."""
    out = np.empty(at.shape, np.longdouble)
    for k in np.ndindex(at.shape):
        h = np.zeros(at.shape, np.longdouble)
        h[k] = step
        x = _extended(at)
        out[k] = (8 * (function(x + h) - function(x - h)) - (function(x + 2 * h) - function(x - 2 * h))) / (
            12 * h[k]
        )
    return out


# -------------------------------------------------------------------------------------------- selection


class OracleGreedy:
    """The selection problem by definition: every pair at every step, in extended precision.

    Options are those of `select_batch`, in full shape: available and cost (m, C), capacity (m,), exclude and
    candidates (k, 2), repeats, optimism, criterion "plug_in" or "optimistic", rationality_interval (m, C, 2).
    """

    def __init__(self, problem: Problem) -> None:
        options = problem.options
        self.x = problem.rows()
        self.c = problem.category
        self.beta = np.abs(problem.rationality)
        self.matrix = _extended(problem.matrix)
        n, m = len(self.x), len(self.beta)
        u = np.abs(oracle_margin(self.x, problem.reward))
        sd = np.sqrt(oracle_leverage(self.x, self.matrix))
        u = np.maximum(u - options.get("optimism", 0.0) * sd, 0)
        interval = options.get("rationality_interval")
        if interval is None:
            self.weight = oracle_weight(u[:, None], self.beta.T[self.c])
        else:
            ends = np.asarray(interval, np.float64)
            self.weight = oracle_largest_weight(u[:, None], ends[..., 0].T[self.c], ends[..., 1].T[self.c])
        cost = options.get("cost")
        self.cost = None if cost is None else np.asarray(cost, np.float64).T[self.c]
        available = options.get("available")
        self.open = (
            np.ones((n, m), bool) if available is None else np.asarray(available, bool).T[self.c].copy()
        )
        if options.get("candidates") is not None:
            listed = np.zeros((n, m), bool)
            for i, j in options["candidates"]:
                listed[i, j] = True
            self.open &= listed
        for i, j in options.get("exclude", ()):
            self.open[i, slice(None) if j == -1 else j] = False
        capacity = options.get("capacity")
        self.capacity = np.full(m, n * m) if capacity is None else np.array(capacity, np.int64)
        self.left = np.full(n, options.get("repeats", 1))

    def objective(self) -> Extended:
        """Objective of every pair, -1 where it is not admissible now: (n, m)."""
        wh = self.weight * oracle_leverage(self.x, self.matrix)[:, None]
        value = wh if self.cost is None else np.log1p(wh) / self.cost
        return np.where(self.open & (self.capacity > 0) & (self.left > 0)[:, None], value, np.longdouble(-1))

    def take(self, i: int, j: int) -> float:
        """Add the pair to M; its gain as a difference of log determinants."""
        before = oracle_log_det(self.matrix)
        row = _extended(self.x[i])
        self.matrix = self.matrix + self.weight[i, j] * np.outer(row, row)
        self.open[i, j] = False
        self.left[i] -= 1
        self.capacity[j] -= 1
        return float(oracle_log_det(self.matrix) - before)


class OracleNuisance(OracleGreedy):
    """The same by the criterion "nuisance": options ``joint``, and criterion itself.

    With A the inverse of the covariance on its range, a gain is how much log det A - log det A_bb grows.
    """

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        joint: JointInformation = problem.options["joint"]
        m, n_categories = problem.rationality.shape
        d, known = joint.cross.shape
        cell = np.array(joint.cell).reshape(m, -1) * np.ones((1, n_categories), np.int64)
        single = np.arange(m)[:, None] * np.ones((1, n_categories), np.int64)  # of cells without labels
        single = single if joint.cell.ndim == 1 else np.arange(m * n_categories).reshape(m, n_categories)
        cell = np.where(cell < 0, known + single, cell)
        spread = np.zeros(known + int(single.max()) + 1)
        if joint.prior_variance is not None:
            prior = joint.prior_variance.reshape(m, -1) * np.ones((1, n_categories))
            spread[known + single] = prior
        covariance = np.diag(spread)
        covariance[:known, :known] = joint.rationality
        value, vector = np.linalg.eigh(covariance)
        basis = vector[:, value > 1e-10 * value.max(initial=1e-300)]
        whole = np.zeros((d + len(spread), d + len(spread)))
        whole[:d, :d], whole[d:, d:] = joint.theta, covariance
        whole[:d, d : d + known], whole[d : d + known, :d] = joint.cross, joint.cross.T
        across = _extended(np.block([[np.eye(d), np.zeros((d, basis.shape[1]))],
                                     [np.zeros((len(spread), d)), basis]]))  # fmt: skip
        self.d, self.matrix = d, _inverse(across.T @ _extended(whole) @ across)
        u = oracle_margin(self.x, problem.reward)[:, None]
        beta = problem.rationality.T[self.c]
        at = cell.T[self.c]  # (n, m)
        self.slope = oracle_probability(u, beta) * oracle_probability(u, -_extended(beta))
        reward = _extended(beta)[..., None] * _extended(self.x)[:, None]
        self.g = np.concatenate([reward, u[..., None] * _extended(basis)[at]], axis=2)  # (n, m, d + r)

    def gain(self) -> Extended:
        """Of every pair, (n, m)."""
        g = self.g * np.sqrt(self.slope)[..., None]
        after = self.matrix + g[..., :, None] * g[..., None, :]
        b = slice(self.d, None)
        whole = oracle_log_det(after) - oracle_log_det(self.matrix)
        return np.asarray(whole - (oracle_log_det(after[..., b, b]) - oracle_log_det(self.matrix[b, b])))

    def objective(self) -> Extended:
        """exp(gain) - 1, or gain / cost, of every pair, -1 where it is not admissible now: (n, m)."""
        gain = self.gain()
        value = np.expm1(gain) if self.cost is None else gain / self.cost
        open_now = self.open & (self.capacity > 0) & (self.left > 0)[:, None]
        return np.where(open_now, np.maximum(value, 0), np.longdouble(-1))

    def take(self, i: int, j: int) -> float:
        """Add the label; its gain."""
        gain = float(self.gain()[i, j])
        self.matrix = self.matrix + self.slope[i, j] * np.outer(self.g[i, j], self.g[i, j])
        self.open[i, j] = False
        self.left[i] -= 1
        self.capacity[j] -= 1
        return gain


def _oracle(problem: Problem) -> OracleGreedy:
    return (OracleNuisance if problem.options.get("joint") is not None else OracleGreedy)(problem)


def oracle_select(problem: Problem, size: int) -> tuple[list[tuple[int, int]], list[float]]:
    """Dense greedy over every admissible pair: picks and gains.

    Ties within 1e-12 (relative) go to the smallest conversation, then the smallest teacher.

    Examples
    --------
    >>> from dal_native.testing import make_problem, oracle_select
    >>> picks, gains = oracle_select(make_problem(n=6, d=2), 2)
    >>> len(picks), gains[0] > gains[1]
    (2, True)
    """
    oracle = _oracle(problem)
    picks, gains = [], []
    for _ in range(size):
        value = oracle.objective()
        if not (value >= 0).any():
            break
        best = value.max()
        i, j = (int(k) for k in np.argwhere(value >= best - np.longdouble(1e-12) * best)[0])
        picks.append((i, j))
        gains.append(oracle.take(i, j))
    return picks, gains


def check_batch(batch: Batch, problem: Problem, size: int, rounding: float = 0.0) -> None:
    """Assert that every pick is the oracle's, given the picks before it, and every gain a log det difference.

    A pick may lie below the oracle's best by 1e-12, or by the rounding of a float64 leverage where that is
    more: 16 eps times the condition of M. Of pairs that the oracle finds exactly equal it must be the first.

    Raises
    ------
    AssertionError
        At the first pick that is not admissible, not the best, or not the first of equals.

    Examples
    --------
    >>> import dal_native as dn
    >>> from dal_native.testing import check_batch, make_problem
    >>> p = make_problem(n=6, d=2)
    >>> check_batch(dn.select_batch(p.pool(), p.reward, p.rationality, p.matrix, 3), p, 3)
    """
    oracle = _oracle(problem)
    picks = list(zip(batch.conversation.tolist(), batch.teacher.tolist(), strict=True))
    for step, (i, j) in enumerate(picks):
        value = oracle.objective()
        assert value[i, j] >= 0, f"pick {step}: pair {(i, j)} is not admissible"
        condition = float(np.linalg.cond(oracle.matrix.astype(np.float64)))
        window = max(1e-12, rounding, 16 * np.finfo(np.float64).eps * condition)
        best = value.max()
        assert value[i, j] >= best * (1 - window), (
            f"pick {step}: {value[i, j]} of {(i, j)} is below the best, {best}"
        )
        first = [int(k) for k in np.argwhere(value == value[i, j])[0]]
        assert (i, j) == tuple(first), f"pick {step}: {(i, j)} equals {tuple(first)}, which comes first"
        gain = oracle.take(i, j)
        scale = max(abs(gain), 1e-3)
        got = float(batch.gain[step])
        assert abs(got - gain) <= (window + 1e-9) * scale, f"pick {step}: gain {got}, log det grew by {gain}"
    exhausted = len(picks) < size
    assert not exhausted or not (oracle.objective() >= 0).any(), (
        f"only {len(picks)} of {size} picks, more are open"
    )


def log_det_gain(problem: Problem, picks: Iterable[tuple[int, int]]) -> float:
    """log det(M + the picks) - log det M, with the weights of the batch's start.

    Examples
    --------
    >>> from dal_native.testing import log_det_gain, make_problem
    >>> log_det_gain(make_problem(), [])
    0.0
    """
    oracle = _oracle(problem)
    return float(sum(oracle.take(i, j) for i, j in picks))
