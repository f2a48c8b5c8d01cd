"""The batch: which conversations to ask, and whom, so that log det M grows most."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dal_native import _dispatch, _linalg, _validate, nuisance
from dal_native._reuse import Factored, certified_bound, first_unequal
from dal_native.information import as_matrix
from dal_native.pool import Pool, as_pool

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

#: What a pair can be worth; see `select_batch`.
CRITERIA = ("plug_in", "optimistic", "nuisance")
#: Relative rounding allowed for in the certificate, which is rounded down.
_CERTIFICATE_ROUNDING = 1e-10


@dataclass(frozen=True, eq=False)
class SelectionProblem:
    """A checked selection problem, as backends receive it; arrays are C-contiguous."""

    pool: Pool
    reward: Floats  # (d,)
    rationality: Floats  # (m, C), absolute; with `upper` the lower ends of intervals
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
    upper: Floats | None = None  # (m, C): a weight is then the largest with beta in its interval
    joint: nuisance.JointInformation | None = None  # the criterion is D_s; then rationality has its signs
    # of a Selector: known_scale * known_leverage[i] >= h_i at this M; where to leave bounds for the next
    known_leverage: NDArray[np.float32] | None = None  # (n,)
    known_scale: float = 1.0
    leverage_out: NDArray[np.float32] | None = None  # (n,)
    route: str = ""  # of the first pass; empty: the cheapest, by what a sample of the rows shows

    @cached_property
    def inverse_factor(self) -> Floats:
        """L^-1, (d, d), of the factor L."""
        return _linalg.triangular_inverse(self.factor)


@dataclass(frozen=True, eq=False, repr=False)
class Batch:
    """The pairs picked, in order, with what they gain and how far from the best possible they can be.

    Attributes
    ----------
    conversation, teacher : ndarray of int64, (B,)
        The picks in order. Fewer than asked for when admissible pairs run out: then
        ``counters["exhausted"]``.
    gain : ndarray of float64, (B,)
        log1p(w h) of each pick at its step, in nats. All three are torch tensors where the pool is.
    counters : dict
        ``rows_streamed``, ``rows_rescored``, ``refreshes``, ``stages`` taken, and ``exhausted``.
    certificate : dict
        ``slack``: no batch gains more than ``log_det_bound`` = log_det_gain + slack;
        ``d_efficiency`` = gain / bound and ``d_efficiency_dimension`` = exp(-slack / d), rounded down.
        Empty with the criterion "nuisance".
    """

    conversation: Integers
    teacher: Integers
    gain: Floats
    counters: dict[str, Any]
    certificate: dict[str, float]

    def __len__(self) -> int:
        return len(self.conversation)

    def __repr__(self) -> str:
        efficiency = self.d_efficiency
        proved = "" if efficiency is None else f", d_efficiency={efficiency:.4g}"
        return f"Batch({len(self)} pairs, log_det_gain={self.log_det_gain:.6g}{proved})"

    @property
    def log_det_gain(self) -> float:
        """Total gain in log det M."""
        return float(np.sum(np.asarray(self.gain)))

    @property
    def d_efficiency(self) -> float | None:
        """Certified lower bound, in (0, 1], on this batch's gain as a share of the best possible.

        None with the criterion "nuisance", for which none is computed.
        """
        return self.certificate.get("d_efficiency")


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
    criterion: str = "plug_in",
    rationality_interval: Any = None,
    joint: nuisance.JointInformation | None = None,
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
    criterion : {"plug_in", "optimistic", "nuisance"}
        What a pair is worth. "plug_in": log1p(w h) at the rationality given. "optimistic": the same with the
        largest w for a rationality in its interval (upper confidence on w: who may be informative is tried);
        gains, M of the later picks and the certificate are of these weights. "nuisance": what the label says
        of the reward where the rationalities are estimated by the same labels (D_s): log1p(v g'A^-1 g) -
        log1p(v g_b'(A_bb)^-1 g_b), A the joint information, g = (beta x, u e_k), v = s(beta u) s(-beta u); no
        certificate is computed, M and optimism are not used.
    rationality_interval : array_like, (m, C, 2) or (m, 2), optional
        With "optimistic": lower and upper end of the size of each rationality, 0 <= lower <= upper. The
        weight is that at the point nearest to t* / |u|, t* = 2.3994; equal ends give the picks of "plug_in".
    joint : JointInformation, optional
        With "nuisance": A^-1 at the batch's start.
    method : {"auto", "lazy", "dense"}
        Same picks, other speed.
    progress : callable, optional
        Called with (picks made, size) at every pick, and with (0, size) every 0.2 s while the pool is read
        for the first time; what it raises stops the call.

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
    >>> none = np.zeros((2, 0)), np.zeros((0, 0))  # no teacher has answered yet
    >>> joint = dn.JointInformation(np.eye(2), *none, cell=[-1, -1], prior_variance=0.2)
    >>> dn.select_batch(np.eye(2), [1.0, 0.0], [1.0, 2.0], np.eye(2), 1, criterion="nuisance", joint=joint)
    Batch(1 pairs, log_det_gain=0.693147)
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
        criterion=criterion,
        rationality_interval=rationality_interval,
        joint=joint,
        method=method,
        threads=threads,
        progress=progress,
    )
    return _finish(problem, _run(problem, backend))


def _run(problem: SelectionProblem, backend: str) -> dict[str, Any]:
    if problem.joint is None:
        return _dispatch.find("select_batch", backend)(problem)  # type: ignore[no-any-return]
    return nuisance.select(problem, _dispatch.find("margin", backend))


#: From so many conversations a feature on a Selector uses what it knows; None: as the backend says.
_REUSE_FROM: int | None = None
#: What a product in single precision may lose by underflow, subnormal numbers flushed or not.
_UNDERFLOW = np.float32(2.0**-125)


@dataclass(frozen=True, eq=False)
class _Bounds:
    """Upper bounds of all leverages, and the M at which they hold. Never changed: threads share them."""

    leverage: NDArray[np.float32]  # (n,), infinite where nothing is known
    at: Factored


@dataclass(frozen=True, eq=False)
class _Known:
    """What a Selector knows of the leverages of one pool.

    Bounds that go from round to round lose a ratio at each. So the ones that a look at all rows has left are
    kept with their M, beside the last round's, which also hold what was computed of single rows since: a
    ratio from further back is never below the product of those in between.
    """

    pool: Pool
    looked: _Bounds  # of the last round that looked at all rows
    since: _Bounds | None = None  # of the last round that did not

    def at(self, new: Factored) -> NDArray[np.float32] | None:
        """Bounds at another M, (n,), or None where nothing can be proved there."""
        out = None
        for bounds in (self.looked, self.since):
            proved = None if bounds is None else certified_bound(new, bounds.at)
            if bounds is None or proved is None or not 2.0**-100 < proved.ratio < 2.0**100:
                continue
            # upwards by more than the factor, the product and, at the lower end, its underflow are rounded
            moved = bounds.leverage * np.float32((1.0 + 2.0**-22) / proved.ratio) + _UNDERFLOW
            out = moved if out is None else np.minimum(out, moved, out=out)
        return out

    def after(self, found: _Bounds, route: str) -> _Known:
        """What is known after a round has left these."""
        return replace(self, since=found) if route.startswith("warm") else _Known(self.pool, found)

    def moved_to(self, pool: Pool, previous: Integers) -> _Known:
        """The same for another pool, of which conversation i was ``previous[i]``, or new where that is -1."""
        since = None if self.since is None else _carried(self.since, pool, previous)
        return _Known(pool, _with_new(_carried(self.looked, pool, previous), pool, previous < 0), since)


class Selector:
    """Selection of batch after batch from one pool, with what is known of its leverages kept between rounds.

    Selections leave upper bounds of the leverages, 4 bytes for each conversation. As far as a later M exceeds
    the one they were found at (M_new - r M_old positive semidefinite, r proved in float64), bounds divided by
    r hold again; where they leave few rows to look at, they replace the product over the pool. The picks are
    those of `select_batch`, whatever changed in between: theta, rationality, labels added or removed, ridge,
    options, backend, pool (`replace_pool`). A call that fails leaves what was known before it.

    Parameters
    ----------
    pool : Pool or array_like, (n, d)

    Notes
    -----
    Threads may call one Selector at once; each sees one whole state. Copies and pickles take it along.

    Examples
    --------
    >>> import dal_native as dn, numpy as np
    >>> selector = dn.Selector([[1.0, 0.0], [0.0, 3.0]])
    >>> selector.select([0.0, 0.0], [1.0], np.eye(2), 1).conversation
    array([1])
    """

    def __init__(self, pool: Any) -> None:
        self.pool = as_pool(pool)
        self._known: _Known | None = None  # used only while it is of self.pool

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
        pool, known = self.pool, self._known  # as of now: another thread may replace both
        problem = _problem(pool, reward, rationality, M, size, **options)
        least = _dispatch.find("reuse_from", backend)() if _REUSE_FROM is None else _REUSE_FROM
        if problem.joint is not None or problem.method == "dense" or len(pool) < least * pool.d:
            return _finish(problem, _run(problem, backend))
        at = Factored.of(problem.matrix, problem.factor, problem.inverse_factor)
        known = known if known is not None and known.pool is pool else None
        here = None if known is None else known.at(at)
        found = np.full(len(pool), np.inf, np.float32)  # a backend may leave nothing
        batch = _finish(problem, _run(replace(problem, known_leverage=here, leverage_out=found), backend))
        if not np.isinf(found).all():
            bounds, route = _Bounds(found, at), batch.counters["stages"][0]
            self._known = _Known(pool, bounds) if known is None else known.after(bounds, route)
        return batch

    def replace_pool(self, pool: Any, previous: Any = None) -> None:
        """Go on with another pool: conversations added, dropped, reordered, or stored in another type.

        What is known of conversations that are in both pools is kept. Their rows are compared by value: a
        wrong claim is refused, because it is a mistake in the caller's book-keeping that would otherwise show
        as lost speed only. Foreign rows never change a pick.

        Parameters
        ----------
        pool : Pool or array_like, (n_new, d)
            The pool of the selections to come; of differences or of completions.
        previous : array_like of int, (n_new,), optional
            Where each conversation stood in the pool so far, -1 for a new one. When absent, conversation i is
            taken to be i of the pool so far, as far as that goes: conversations were appended, or cut off at
            the end.

        Raises
        ------
        ValueError
            For a pool of another number of features, indices that do not fit, or a conversation whose row
            differs from the one it is said to be; the selector is unchanged.

        Examples
        --------
        >>> import dal_native as dn, numpy as np
        >>> rows = np.arange(12.0).reshape(6, 2)
        >>> selector = dn.Selector(rows)
        >>> first = selector.select([1.0, 0.0], [1.0], np.eye(2), 2)
        >>> kept = np.delete(np.arange(6), first.conversation)  # without those asked
        >>> selector.replace_pool(rows[kept], kept)
        >>> len(selector.pool)
        4
        """
        old, known, new = self.pool, self._known, as_pool(pool)
        if new.d != old.d:
            raise ValueError(f"pool has {new.d} features; expected {old.d}, as the pool so far")
        if previous is None:
            index = np.arange(len(new), dtype=np.int64)
            index[len(old) :] = -1
        else:
            index = _validate.integers(previous, "previous", 1)
            _validate.length(index, len(new), "previous", "conversation")
            if len(index) and (int(index.min()) < -1 or int(index.max()) >= len(old)):
                bad = int(index.min()) if int(index.min()) < -1 else int(index.max())
                raise ValueError(f"previous holds {bad}; expected -1 or conversations below {len(old)}")
        wrong = first_unequal(new, old, index)
        if wrong >= 0:
            raise ValueError(
                f"conversation {wrong} differs from conversation {int(index[wrong])} of the pool so far; "
                "expected equal rows (-1 in previous marks a new conversation)"
            )
        if known is not None and known.pool is old:
            self._known = known.moved_to(new, index)
        self.pool = new


def _carried(bounds: _Bounds, pool: Pool, previous: Integers) -> _Bounds:
    """The bounds of conversations that were in the pool before; infinite for the others."""
    leverage = np.full(len(pool), np.inf, np.float32)
    old = previous >= 0
    leverage[old] = bounds.leverage[previous[old]]
    return replace(bounds, leverage=leverage)


#: Leverages of new conversations are computed at once while they are no larger a share of the pool.
_FEW_NEW = 0.125


def _with_new(bounds: _Bounds, pool: Pool, new: NDArray[np.bool_]) -> _Bounds:
    """The same with the leverages of a few new conversations, rounded up; they may stay infinite."""
    fresh = np.flatnonzero(new)
    if not 0 < len(fresh) <= _FEW_NEW * len(pool) or not bounds.at.kept > 0.0:
        return bounds
    exact = np.empty(len(fresh))
    _dispatch.find("leverage")(pool, bounds.at.factor, fresh, False, None, exact, _dispatch.threads())
    with np.errstate(over="ignore", under="ignore"):
        # products with W are off by no more, relatively, than W itself
        above = (exact / bounds.at.kept**2 * (1.0 + 2.0**-22) + _UNDERFLOW).astype(np.float32)
    bounds.leverage[fresh] = np.where(np.isnan(above), np.float32(np.inf), above)
    return bounds


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
    criterion: Any = "plug_in",
    rationality_interval: Any = None,
    joint: Any = None,
    method: Any = "auto",
    threads: Any = None,
    progress: Any = None,
) -> SelectionProblem:
    if pool.pair_rows is not None:
        raise ValueError(
            "pool is of listed pairs; expected differences, or completions by prompt: Pool.from_completions"
        )
    signed = _validate.rationality(rationality, pool.n_categories)
    beta = np.abs(signed)
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
    criterion = _validate.one_of(criterion, "criterion", CRITERIA)
    lower, upper = _intervals(criterion, rationality_interval, beta)
    optimism = _validate.number(optimism, "optimism", 0.0)
    _check_joint(criterion, joint, pool.d, beta.shape, optimism)
    return SelectionProblem(
        pool=pool,
        reward=_validate.reward(reward, pool.d),
        rationality=lower if joint is None else signed,
        upper=upper,
        joint=joint,
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
        optimism=optimism,
        method="lazy" if method == "auto" else method,
        threads=_dispatch.threads(threads),
        progress=progress,
    )


def _intervals(criterion: str, interval: Any, beta: Floats) -> tuple[Floats, Floats | None]:
    """Where each rationality lies: the point itself without upper ends, or lower and upper ends."""
    if (criterion == "optimistic") != (interval is not None):
        given = "given" if interval is not None else "None"
        raise ValueError(
            f"rationality_interval is {given} and criterion is {criterion!r}; expected an interval of each "
            "rationality with criterion 'optimistic', and with no other"
        )
    return (beta, None) if interval is None else _validate.rationality_interval(interval, *beta.shape)


def _check_joint(criterion: str, joint: Any, d: int, shape: tuple[int, ...], optimism: float) -> None:
    if (criterion == "nuisance") != isinstance(joint, nuisance.JointInformation):
        raise ValueError(
            f"joint is {type(joint).__name__} and criterion is {criterion!r}; expected a JointInformation "
            "with criterion 'nuisance', and None with every other"
        )
    if joint is None:
        return
    if len(joint.theta) != d:
        raise ValueError(f"joint has {len(joint.theta)} features; expected {d}, as the pool")
    if joint.cell.shape not in ((shape[0],), shape):
        raise ValueError(f"joint.cell has shape {joint.cell.shape}; expected ({shape[0]},) or {shape}")
    if optimism != 0.0:
        raise ValueError(f"optimism is {optimism:g}; expected 0 with criterion 'nuisance'")


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
    gain, certificate = float(np.sum(found["gain"])), {}
    if problem.joint is None:
        certificate = _certificate(gain, found["objective_total"], found["batch_total"], problem.pool.d)
    picks = {
        name: _validate.like_input(found[name], problem.pool.home)
        for name in ("conversation", "teacher", "gain")
    }
    return Batch(
        **picks,
        counters={**found["counters"], "exhausted": len(found["conversation"]) < problem.size},
        certificate=certificate,
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
