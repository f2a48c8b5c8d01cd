"""The batch: which conversations to ask, and whom, so that log det M grows most."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dal_native import _dispatch, _linalg, _validate
from dal_native.information import as_matrix, certified_ratio
from dal_native.pool import Pool, as_pool

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

#: Relative rounding allowed for in the certificate, which is rounded down.
_CERTIFICATE_ROUNDING = 1e-10


@dataclass(frozen=True, eq=False)
class SelectionProblem:
    """A checked selection problem, as backends receive it; arrays are C-contiguous."""

    pool: Pool
    reward: Floats  # (d,)
    rationality: Floats  # (m, C), absolute
    matrix: Floats  # (d, d)
    factor: Floats  # (d, d), its lower Cholesky factor
    size: int
    available: NDArray[np.uint8]  # (m, C)
    capacity: Integers  # (m,), -1 unlimited
    cost: Floats | None  # (m, C)
    exclude_conversation: Integers | None  # (k,) sorted, unique
    exclude_offsets: Integers | None  # (k+1,)
    exclude_teacher: Integers | None  # sorted within a conversation
    blocked: NDArray[np.uint8] | None  # (n,)
    candidate_offsets: Integers | None  # (n+1,)
    candidate_teacher: Integers | None  # sorted within a conversation
    repeats: int
    optimism: float
    method: str  # "lazy" or "dense"
    threads: int
    progress: Callable[[int, int], object] | None
    # of a Selector: known_scale * known_leverage[i] >= h_i at this M; where to leave bounds for the next
    known_leverage: NDArray[np.float32] | None = None  # (n,)
    known_scale: float = 1.0
    leverage_out: NDArray[np.float32] | None = None  # (n,)


@dataclass(frozen=True, eq=False, repr=False)
class Batch:
    """The pairs picked, in order, with what they gain and how far from the best possible they can be.

    Attributes
    ----------
    conversation, teacher : ndarray of int64, (B,)
        The picks in order. Fewer than asked for when admissible pairs run out: then
        ``counters["exhausted"]``.
    gain : ndarray of float64, (B,)
        log1p(w h) of each pick at its step, in nats.
    counters : dict
        ``rows_streamed``, ``rows_rescored``, ``refreshes``, ``stages`` taken, and ``exhausted``.
    certificate : dict
        ``slack``: no batch gains more than ``log_det_bound`` = log_det_gain + slack;
        ``d_efficiency`` = gain / bound and ``d_efficiency_dimension`` = exp(-slack / d), rounded down.
    """

    conversation: Integers
    teacher: Integers
    gain: Floats
    counters: dict[str, Any]
    certificate: dict[str, float]

    def __len__(self) -> int:
        return len(self.conversation)

    def __repr__(self) -> str:
        gained = f"log_det_gain={self.log_det_gain:.6g}, d_efficiency={self.d_efficiency:.4g}"
        return f"Batch({len(self)} pairs, {gained})"

    @property
    def log_det_gain(self) -> float:
        """Total gain in log det M."""
        return float(np.sum(self.gain))

    @property
    def d_efficiency(self) -> float:
        """Certified lower bound, in (0, 1], on this batch's gain as a share of the best possible."""
        return self.certificate["d_efficiency"]


def select_batch(
    pool: Any,
    reward: Any,
    rationality: Any,
    M: Any,
    size: int,
    *,
    available: Any = None,
    capacity: Any = None,
    cost: Any = None,
    exclude: Any = None,
    candidates: Any = None,
    repeats: int = 1,
    optimism: float = 0.0,
    method: str = "auto",
    backend: str = "auto",
    threads: int | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> Batch:
    """Pick a batch: ``size`` times, the admissible (conversation, teacher) that raises log det M most.

    Exact: the picks are those of a dense float64 evaluation of every pair at every step, whatever the
    backend, the storage type and the number of threads. Objectives within 1e-12 (relative) of the largest
    are tied; the smallest conversation wins, then the smallest teacher. No pair is picked twice.

    Parameters
    ----------
    pool : Pool or array_like, (n, d)
    reward : array_like, (d,)
        Current theta.
    rationality : array_like, (m, C) or (m,)
        Of each teacher in each category. Negative (adversarial) ones weigh as their absolute value.
    M : InformationMatrix or array_like, (d, d)
        Of the labels so far, ridge included; unchanged by the call.
    size : int
        Picks wanted, at least 0.
    available : array_like of bool, (m, C) or (m,), optional
        Who may be asked in which category.
    capacity : array_like of int, (m,), optional
        At most so many picks of each teacher in this batch.
    cost : array_like, (m, C) or (m,), optional
        Above 0; then the objective is log1p(w h) / cost instead of the gain.
    exclude : array_like of int, (k, 2), optional
        Pairs asked before; teacher -1 excludes the conversation.
    candidates : array_like of int, (k, 2), or scipy.sparse (n, m), optional
        The only admissible pairs; explicit nonzeros of a sparse matrix.
    repeats : int
        How often one conversation may be asked in this batch, by different teachers.
    optimism : float
        k: weights use max(|u| - k sqrt(h), 0) for |u|, with h as of the batch's start.
    method : {"auto", "lazy", "dense"}
        Same picks, other speed.
    progress : callable, optional
        Called with (picks made, size); what it raises stops the call.

    Returns
    -------
    Batch

    Raises
    ------
    numpy.linalg.LinAlgError
        If M is not positive definite.
    ValueError
        For arguments that do not fit, by name.

    Examples
    --------
    >>> import dal_native as dn, numpy as np
    >>> batch = dn.select_batch([[1.0, 0.0], [0.0, 3.0]], [0.0, 0.0], [1.0, 2.0], np.eye(2), size=2)
    >>> batch.conversation, batch.teacher
    (array([1, 0]), array([1, 1]))
    """
    problem = _problem(
        as_pool(pool),
        reward,
        rationality,
        M,
        size,
        available=available,
        capacity=capacity,
        cost=cost,
        exclude=exclude,
        candidates=candidates,
        repeats=repeats,
        optimism=optimism,
        method=method,
        threads=threads,
        progress=progress,
    )
    return _finish(problem, _dispatch.find("select_batch", backend)(problem))


class Selector:
    """Selection of batch after batch from one pool, with what is known of its leverages kept between rounds.

    Every selection leaves upper bounds of the leverages, 4 bytes for each conversation. As far as the next M
    exceeds the last (M_new - r M_old positive semidefinite, r proved in float64), bounds divided by r hold
    again; where they leave few rows to look at, they replace the product over the pool. The picks are those
    of `select_batch`.

    Parameters
    ----------
    pool : Pool or array_like, (n, d)

    Examples
    --------
    >>> import dal_native as dn, numpy as np
    >>> selector = dn.Selector([[1.0, 0.0], [0.0, 3.0]])
    >>> selector.select([0.0, 0.0], [1.0], np.eye(2), 1).conversation
    array([1])
    """

    def __init__(self, pool: Any) -> None:
        self.pool = as_pool(pool)
        self._known: tuple[NDArray[np.float32], Floats] | None = None  # bounds, and the M at which they hold

    def select(
        self, reward: Any, rationality: Any, M: Any, size: int, *, backend: str = "auto", **options: Any
    ) -> Batch:
        """Pick a batch: the arguments, result and errors of `select_batch`, without the pool.

        Examples
        --------
        >>> import dal_native as dn, numpy as np
        >>> len(dn.Selector(np.eye(3)).select(np.zeros(3), [1.0], np.eye(3), 2, exclude=[[0, -1]]))
        2
        """
        problem = _problem(self.pool, reward, rationality, M, size, **options)
        known, self._known = self._known, None  # lost if this call fails; another thread starts without
        ratio = None if known is None else certified_ratio(problem.matrix, known[1])
        # a backend, or a method, that leaves no bounds leaves infinity: no bound at all
        bounds = np.full(len(self.pool), np.inf, np.float32)
        problem = replace(
            problem,
            known_leverage=None if known is None or ratio is None else known[0],
            known_scale=1.0 if ratio is None else 1.0 / ratio,
            leverage_out=bounds,
        )
        batch = _finish(problem, _dispatch.find("select_batch", backend)(problem))
        self._known = bounds, problem.matrix.copy()
        return batch


def _problem(
    pool: Pool,
    reward: Any,
    rationality: Any,
    M: Any,
    size: Any,
    *,
    available: Any = None,
    capacity: Any = None,
    cost: Any = None,
    exclude: Any = None,
    candidates: Any = None,
    repeats: Any = 1,
    optimism: Any = 0.0,
    method: Any = "auto",
    threads: Any = None,
    progress: Any = None,
) -> SelectionProblem:
    beta = np.abs(_validate.rationality(rationality, pool.n_categories))
    m, n_categories = beta.shape
    matrix = as_matrix(M, pool.d)
    factor = _linalg.cholesky(matrix)  # refuses what is not positive definite, before any pass
    limit = _capacity(capacity, m)
    open_to = _validate.available(available, m, n_categories)
    open_to[limit == 0] = 0
    excluded, offsets, teacher, blocked = _exclusions(exclude, len(pool), m)
    candidate_offsets, candidate_teacher = _candidates(candidates, len(pool), m)
    if progress is not None and not callable(progress):
        raise ValueError(f"progress is {progress!r}; expected a function of (done, total)")
    method = _validate.one_of(method, "method", ("auto", "lazy", "dense"))
    return SelectionProblem(
        pool=pool,
        reward=_validate.reward(reward, pool.d),
        rationality=beta,
        matrix=matrix,
        factor=factor,
        size=_validate.whole(size, "size", 0),
        available=open_to,
        capacity=limit,
        cost=_cost(cost, m, n_categories),
        exclude_conversation=excluded,
        exclude_offsets=offsets,
        exclude_teacher=teacher,
        blocked=blocked,
        candidate_offsets=candidate_offsets,
        candidate_teacher=candidate_teacher,
        repeats=_validate.whole(repeats, "repeats", 1),
        optimism=_validate.number(optimism, "optimism", 0.0),
        method="lazy" if method == "auto" else method,
        threads=_dispatch.threads(threads),
        progress=progress,
    )


def _capacity(values: Any, m: int) -> Integers:
    if values is None:
        return np.full(m, -1, np.int64)
    limit = _validate.integers(values, "capacity", 1)
    _validate.length(limit, m, "capacity", "teacher")
    if int(limit.min()) < 0:
        raise ValueError(f"capacity holds {int(limit.min())}; expected numbers of picks of at least 0")
    return limit


def _cost(values: Any, m: int, n_categories: int) -> Floats | None:
    if values is None:
        return None
    cost = _validate.teacher_table(values, "cost", m, n_categories)
    # the bounds keep gain / cost away from overflow and from subnormals
    if float(cost.min()) < 1e-100 or float(cost.max()) > 1e100:
        bad = float(cost.min()) if float(cost.min()) < 1e-100 else float(cost.max())
        raise ValueError(f"cost holds {bad:g}; expected costs above 0 (between 1e-100 and 1e100)")
    return cost


def _pairs(values: Any, name: str) -> Integers:
    pairs = _validate.integers(values, name, (1, 2))
    if pairs.size == 0:
        return np.zeros((0, 2), np.int64)
    if pairs.ndim != 2 or pairs.shape[1] != 2:
        raise ValueError(f"{name} has shape {pairs.shape}; expected (k, 2): conversation and teacher")
    return pairs


def _sorted_unique(pairs: Integers, m: int) -> Integers:
    """Pairs in order (conversation, teacher), each once."""
    pairs = pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]
    if len(pairs) < 2:
        return pairs
    first = np.ones(len(pairs), bool)
    first[1:] = (np.diff(pairs, axis=0) != 0).any(axis=1)
    return np.ascontiguousarray(pairs[first])


def _exclusions(
    exclude: Any, n: int, m: int
) -> tuple[Integers | None, Integers | None, Integers | None, NDArray[np.uint8] | None]:
    """Excluded pairs by conversation (with offsets, teachers), and wholly excluded conversations."""
    if exclude is None:
        return None, None, None, None
    pairs = _pairs(exclude, "exclude")
    _validate.within(pairs[:, 0], n, "exclude", "conversations")
    if len(pairs) and (int(pairs[:, 1].min()) < -1 or int(pairs[:, 1].max()) >= m):
        bad = int(pairs[:, 1].min()) if int(pairs[:, 1].min()) < -1 else int(pairs[:, 1].max())
        raise ValueError(
            f"exclude holds teacher {bad}; expected teachers between 0 and {m - 1}, or -1 for all"
        )
    whole = pairs[:, 1] == -1
    blocked = None
    if whole.any():
        blocked = np.zeros(n, np.uint8)
        blocked[pairs[whole, 0]] = 1
    single = _sorted_unique(pairs[~whole], m)
    if len(single) == 0:
        return None, None, None, blocked
    conversation, count = np.unique(single[:, 0], return_counts=True)
    offsets = np.concatenate([[0], np.cumsum(count)]).astype(np.int64)
    return conversation, offsets, np.ascontiguousarray(single[:, 1]), blocked


def _candidates(candidates: Any, n: int, m: int) -> tuple[Integers | None, Integers | None]:
    """Admissible pairs as rows: offsets (n+1,) and teachers, sorted within a conversation."""
    if candidates is None:
        return None, None
    if hasattr(candidates, "tocoo"):
        if candidates.shape != (n, m):
            raise ValueError(
                f"candidates has shape {candidates.shape}; expected ({n}, {m}): conversations, teachers"
            )
        coo = candidates.tocoo()
        kept = coo.data != 0
        row, column = coo.coords if hasattr(coo, "coords") else (coo.row, coo.col)
        pairs = np.stack([row[kept], column[kept]], axis=1).astype(np.int64)
    else:
        pairs = _pairs(candidates, "candidates")
    _validate.within(pairs[:, 0], n, "candidates", "conversations")
    _validate.within(pairs[:, 1], m, "candidates", "teachers")
    pairs = _sorted_unique(pairs, m)
    offsets = np.concatenate([[0], np.cumsum(np.bincount(pairs[:, 0], minlength=n))]).astype(np.int64)
    return offsets, np.ascontiguousarray(pairs[:, 1])


def _finish(problem: SelectionProblem, found: dict[str, Any]) -> Batch:
    gain = float(np.sum(found["gain"]))
    return Batch(
        conversation=found["conversation"],
        teacher=found["teacher"],
        gain=found["gain"],
        counters={**found["counters"], "exhausted": len(found["conversation"]) < problem.size},
        certificate=_certificate(gain, found["objective_total"], found["batch_total"], problem.pool.d),
    )


def _certificate(gain: float, objective_total: float, batch_total: float, d: int) -> dict[str, float]:
    """By concavity, best <= gain + max(0, T - sum over the batch of w h); rounded against us."""
    slack = max(0.0, objective_total - batch_total) + _CERTIFICATE_ROUNDING * objective_total
    d_efficiency = 1.0 if slack == 0.0 else float(np.nextafter(gain / (gain + slack), 0.0))
    return {
        "slack": slack,
        "log_det_bound": gain + slack,
        "d_efficiency": d_efficiency,
        "d_efficiency_dimension": float(np.exp(-slack / d)),
    }
