"""Designs: which pairs of conversation and teacher to ask next, by the dual rule and by its rivals.

Every method has the same shape, ``method(state, size, rng) -> Picks``. It sees only what was learned so far
(the `oracle` alone sees the truth), never asks a pair twice, and asks admissible pairs only. The paper's
comparisons, and why each is here, are in `METHODS`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse
from scipy.linalg import cho_factor, cholesky, solve_triangular

import dal_native as dn

__all__ = [
    "METHODS",
    "Admissible",
    "DesignState",
    "Picks",
    "random_stream",
    "seed_design",
    "sequential_gain",
]

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


class Picks(NamedTuple):
    """A batch: conversations, teachers and gains in the order of picking.

    Attributes
    ----------
    conversation, teacher : ndarray of int64, (b,)
        b is less than the size asked for only where admissible pairs ran out.
    gain : ndarray of float64, (b,)
        log det added by each pick after those before it, at the current estimates (natural logarithm).
    d_efficiency : float or None
        Proved lower bound on the batch's D-efficiency, for methods that prove one.
    """

    conversation: Integers
    teacher: Integers
    gain: Floats
    d_efficiency: float | None = None


def random_stream(*key: int | str) -> np.random.Generator:
    """A generator that depends on its key alone, so that no state has to be stored between rounds.

    Parameters
    ----------
    *key : int or str
        For example (seed, method, round).

    Returns
    -------
    numpy.random.Generator

    Examples
    --------
    >>> a, b = random_stream(0, "uniform", 3), random_stream(0, "uniform", 3)
    >>> int(a.integers(100)) == int(b.integers(100))
    True
    """
    words: list[int] = []
    for part in key:
        raw = part.encode() if isinstance(part, str) else int(part).to_bytes(8, "little", signed=True)
        words += [len(raw), isinstance(part, str), *raw]
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(words)))


class Admissible:
    """The pairs that may still be asked.

    Parameters
    ----------
    n, m : int
        Conversations and teachers.
    candidates : scipy.sparse (n, m), optional
        Admissible pairs (non-zero entries); every pair where absent.
    asked : array_like of int, (k, 2), optional
        Pairs (conversation, teacher) already asked.
    capacity : array_like of int, (m,), optional
        How often each teacher may be asked in one batch; no limit where absent.
    closed : array_like of int, (k,), optional
        Conversations that nobody may be asked about.

    Raises
    ------
    ValueError
        The shape of `candidates` or an index in `asked` or `closed` does not fit.

    Examples
    --------
    >>> a = Admissible(2, 3, asked=[(0, 1)])
    >>> a.teachers(0).tolist(), a.count().tolist()
    ([0, 2], [2, 3])
    """

    def __init__(
        self,
        n: int,
        m: int,
        candidates: Any = None,
        asked: ArrayLike | None = None,
        capacity: ArrayLike | None = None,
        closed: ArrayLike | None = None,
    ) -> None:
        self.n, self.m = n, m
        pairs = np.zeros((0, 2), np.int64) if asked is None else np.asarray(asked, np.int64).reshape(-1, 2)
        if len(pairs) and (pairs.min() < 0 or (pairs.max(axis=0) >= (n, m)).any()):
            raise ValueError(f"asked holds a pair outside {n} conversations and {m} teachers")
        self.asked = pairs
        self.capacity = None if capacity is None else np.asarray(capacity, np.int64)
        if self.capacity is not None and self.capacity.shape != (m,):
            raise ValueError(f"capacity has shape {self.capacity.shape}, expected ({m},)")
        self.closed = np.unique(np.zeros(0, np.int64) if closed is None else np.asarray(closed, np.int64))
        if len(self.closed) and not 0 <= self.closed[0] <= self.closed[-1] < n:
            raise ValueError(f"closed holds a conversation outside {n} conversations")
        self._open = np.ones(n, bool)
        self._open[self.closed] = False
        self.candidates = None
        if candidates is not None:
            self.candidates = _csr(candidates, n, m)
            self._row = np.repeat(np.arange(n), np.diff(self.candidates.indptr))
            self._free = self._open[self._row]
            self._free[self._positions(pairs)] = False
        else:
            self._taken: dict[int, list[int]] = {}
            for i, j in np.unique(pairs, axis=0).tolist():
                self._taken.setdefault(i, []).append(j)

    def _positions(self, pairs: Integers) -> Integers:
        """Where these pairs stand among the candidates (those that are none are passed over)."""
        assert self.candidates is not None
        key = self._row * self.m + self.candidates.indices.astype(np.int64)
        wanted = pairs[:, 0] * self.m + pairs[:, 1]
        place = np.searchsorted(key, wanted)
        found = place < len(key)
        found[found] = key[place[found]] == wanted[found]
        return place[found]

    def after(
        self, pairs: Integers, *, capacity: ArrayLike | None = None, closed: ArrayLike | None = None
    ) -> Admissible:
        """What is left when these pairs were asked, too.

        Parameters
        ----------
        pairs : ndarray of int, (k, 2)
            Pairs (conversation, teacher).
        capacity : array_like of int, (m,), optional
            In place of what the pairs leave of the present one.
        closed : array_like of int, optional
            Conversations to close besides those that are.

        Returns
        -------
        Admissible

        Examples
        --------
        >>> left = Admissible(2, 3, capacity=[1, 1, 1]).after(np.array([[0, 1]]), closed=[0])
        >>> left.conversations(1).tolist(), left.capacity.tolist()
        ([1], [1, 0, 1])
        """
        left = self.capacity
        if capacity is not None:
            left = np.asarray(capacity, np.int64)
        elif left is not None:
            left = np.maximum(left - np.bincount(pairs[:, 1], minlength=self.m), 0)
        more = np.zeros(0, np.int64) if closed is None else np.asarray(closed, np.int64)
        asked = np.concatenate([self.asked, pairs])
        return Admissible(self.n, self.m, self.candidates, asked, left, np.concatenate([self.closed, more]))

    def teachers(self, conversation: int) -> Integers:
        """Teachers that may still be asked about this conversation: (k,) int64, ascending."""
        if self.candidates is not None:
            start, stop = self.candidates.indptr[conversation : conversation + 2]
            free = self._free[start:stop]
            return np.asarray(self.candidates.indices[start:stop][free], np.int64)
        everyone = np.arange(self.m if self._open[conversation] else 0)
        taken = self._taken.get(conversation)
        return everyone if taken is None or not len(everyone) else np.delete(everyone, taken)

    def conversations(self, teacher: int) -> Integers:
        """Conversations this teacher may still be asked about: (k,) int64, ascending."""
        if self.candidates is not None:
            return np.asarray(self._row[self._free & (self.candidates.indices == teacher)])
        free = self._open.copy()
        free[self.asked[self.asked[:, 1] == teacher, 0]] = False
        return np.flatnonzero(free)

    def count(self) -> Integers:
        """How many teachers may still be asked about each conversation: (n,) int64."""
        if self.candidates is not None:
            return np.bincount(self._row[self._free], minlength=self.n)
        left = np.full(self.n, self.m, np.int64)
        for i, taken in self._taken.items():
            left[i] -= len(taken)
        left[self.closed] = 0
        return left

    def count_of_teachers(self) -> Integers:
        """How many conversations each teacher may still be asked about: (m,) int64."""
        if self.candidates is not None:
            return np.bincount(self.candidates.indices[self._free], minlength=self.m).astype(np.int64)
        taken = np.unique(self.asked[self._open[self.asked[:, 0]]], axis=0)
        return self.n - len(self.closed) - np.bincount(taken[:, 1], minlength=self.m)

    def total(self) -> int:
        """How many pairs may still be asked."""
        return int(self.count().sum())

    def free_pairs(self) -> tuple[Integers, Integers]:
        """Conversations and teachers of the pairs left, for sparse candidates only: two (k,) int64."""
        assert self.candidates is not None
        return self._row[self._free], self.candidates.indices[self._free].astype(np.int64)


def _csr(candidates: Any, n: int, m: int) -> Any:
    """Candidates as CSR with sorted indices, each pair once."""
    matrix = sparse.csr_matrix(candidates, dtype=bool)
    if matrix.shape != (n, m):
        raise ValueError(f"candidates has shape {matrix.shape}, expected ({n}, {m})")
    matrix.sum_duplicates()
    matrix.eliminate_zeros()
    matrix.sort_indices()
    return matrix


@dataclass(frozen=True)
class DesignState:
    """What a method may look at when it chooses a batch.

    Parameters
    ----------
    pool : dal_native.Pool
        The n conversations.
    category : ndarray of int, (n,)
        Category of each conversation.
    reward : ndarray, (d,)
        Current estimate of theta; zeros before the first fit.
    rationality : ndarray, (m, C)
        Current estimate; ones before the first fit.
    matrix : ndarray, (d, d)
        Information of everything asked so far at these estimates, ridge included. Pairs without an answer yet
        count.
    admissible : Admissible
        The pairs that may still be asked.
    ridge : float
        Ridge of the information matrix.
    cost : ndarray, (m,), optional
        Cost of an answer; the dual rule then maximises gain per cost.
    repeats : int
        How often the dual rule may ask about one conversation in a batch.
    optimism : float
        k of the dual rule's optimistic margin max(abs(u) - k sd(u), 0).
    criterion : str
        What a pair is worth to the dual rule: "plug_in" takes the estimated rationalities as they are,
        "optimistic" the most informative ones in `rationality_interval`, "nuisance" counts only what a label
        says of theta while the rationalities are estimated by the same labels (D_s).
    rationality_interval : ndarray, (m, C, 2), optional
        Ends of an interval of the size of each rationality, for the "optimistic" criterion.
    joint : dal_native.JointInformation, optional
        Covariance of theta and the rationalities, everything asked counted, for the "nuisance" criterion.
    truth : tuple of (d,) and (m, C) arrays, optional
        True reward and rationality, where a simulation knows them; for `oracle` only.
    selector : dal_native.Selector, optional
        Keeps certified bounds from round to round; the picks are the same without.
    """

    pool: Any
    category: Integers
    reward: Floats
    rationality: Floats
    matrix: Floats
    admissible: Admissible
    ridge: float = 1.0
    cost: Floats | None = None
    repeats: int = 1
    optimism: float = 0.0
    criterion: str = "plug_in"
    rationality_interval: Floats | None = None
    joint: dn.JointInformation | None = None
    truth: tuple[Floats, Floats] | None = None
    selector: Any = field(default=None, compare=False)

    @property
    def margin(self) -> Floats:
        """u = x'theta of every conversation: (n,)."""
        return np.asarray(dn.margin(self.pool, self.reward))


def joint_after(
    joint: dn.JointInformation, differences: Floats, margin: Floats, beta: Floats, cell: Integers
) -> dn.JointInformation:
    """The joint covariance when more labels are asked for, whatever they say.

    Parameters
    ----------
    joint : dal_native.JointInformation
        With a table of cells, (m, C).
    differences : ndarray, (k, d)
        x of each label.
    margin, beta : ndarray, (k,)
        u and rationality of each.
    cell : ndarray of int, (k, 2)
        Teacher and category of each.

    Returns
    -------
    dal_native.JointInformation
        A^-1 after A += sum of v g g', g = (beta x, u e), v = s(beta u) s(-beta u).

    Examples
    --------
    >>> none = dn.JointInformation(np.eye(1), np.zeros((1, 0)), np.zeros((0, 0)), [[-1]], 0.25)
    >>> one = np.ones(1)
    >>> after = joint_after(none, np.ones((1, 1)), one, one, np.array([[0, 0]]))
    >>> np.linalg.inv(after.theta).round(3).tolist(), after.cell.tolist()  # 1 + v / (1 + v / 4), v = 0.197
    ([[1.187]], [[0]])
    """
    d, known = joint.cross.shape
    table = joint.cell.copy()
    fresh = [(j, c) for j, c in dict.fromkeys(map(tuple, cell.tolist())) if table[j, c] < 0]
    covariance = np.zeros((d + known + len(fresh),) * 2)
    covariance[:d, :d], covariance[:d, d : d + known] = joint.theta, joint.cross
    covariance[d : d + known, :d], covariance[d : d + known, d : d + known] = joint.cross.T, joint.rationality
    for k, place in enumerate(fresh, known):
        table[place] = k
        covariance[d + k, d + k] = joint.prior_variance[place]
    slope = np.asarray(dn.choice_weight(beta * margin, 1.0))
    for x, u, b, v, (j, c) in zip(differences, margin, beta, slope, cell.tolist(), strict=True):
        k = d + table[j, c]
        moved = covariance[:, :d] @ (b * x) + u * covariance[:, k]  # A^-1 g
        covariance -= np.outer(moved, moved) * (v / (1 + v * (moved[:d] @ (b * x) + u * moved[k])))
    return dn.JointInformation.from_inverse(covariance, d, table, joint.prior_variance)


def sequential_gain(differences: Floats, weight: Floats, matrix: Floats) -> Floats:
    """What each pick adds to log det after those before it.

    Parameters
    ----------
    differences : ndarray, (b, d)
        x of each pick, in order.
    weight : ndarray, (b,)
        w of each pick.
    matrix : ndarray, (d, d)
        Information before the batch, positive definite.

    Returns
    -------
    ndarray, (b,)
        log1p(w_k x_k' M_k^-1 x_k) with M_k the information after k picks; they sum to the batch's gain.

    Examples
    --------
    >>> sequential_gain(np.eye(2), np.array([1.0, 3.0]), np.eye(2)).round(4).tolist()
    [0.6931, 1.3863]
    """
    if len(differences) == 0:
        return np.zeros(0)
    whitened = solve_triangular(cholesky(matrix, lower=True), differences.T, lower=True)
    whitened *= np.sqrt(weight)
    # The pivots of I + W^1/2 X M^-1 X' W^1/2 are exactly 1 + w_k h_k at step k.
    pivots = np.diag(cho_factor(np.eye(len(weight)) + whitened.T @ whitened, lower=True)[0])
    return 2.0 * np.log(pivots)


def seed_design(admissible: Admissible, size: int, rng: np.random.Generator) -> tuple[Integers, Integers]:
    """The first labels, the same for every method: conversations at random, teachers dealt out evenly.

    Parameters
    ----------
    admissible : Admissible
        The pairs to choose from.
    size : int
        How many pairs.
    rng : numpy.random.Generator
        Decides both orders.

    Returns
    -------
    conversation, teacher : ndarray of int64, (k,)
        No pair twice, no conversation a second time before each was asked once; k < size only where pairs
        run out.

    Examples
    --------
    >>> i, j = seed_design(Admissible(4, 2), 4, np.random.default_rng(0))
    >>> sorted(i.tolist()), sorted(j.tolist())
    ([0, 1, 2, 3], [0, 0, 1, 1])
    """
    rank = rng.permutation(admissible.m)  # breaks ties between teachers asked equally often
    used = np.zeros(admissible.m, np.int64)
    left = _room(admissible)
    chosen: dict[tuple[int, int], None] = {}
    while len(chosen) < size:
        before = len(chosen)
        for i in rng.permutation(admissible.n).tolist():
            teachers = admissible.teachers(i)
            free = [j for j in teachers[left[teachers] > 0].tolist() if (i, j) not in chosen]
            if not free:
                continue
            j = min(free, key=lambda t: (used[t], rank[t]))
            chosen[i, j] = None
            used[j] += 1
            left[j] -= 1
            if len(chosen) == size:
                break
        if len(chosen) == before:
            break
    pairs = np.array(list(chosen), np.int64).reshape(-1, 2)
    return pairs[:, 0].copy(), pairs[:, 1].copy()


# ------------------------------------------------------------------------------- orders of conversations


def _room(admissible: Admissible) -> Integers:
    """Answers each teacher may still give in this batch: (m,)."""
    if admissible.capacity is None:
        return np.full(admissible.m, np.iinfo(np.int64).max, np.int64)
    return admissible.capacity.copy()


def _random_order(state: DesignState, rng: np.random.Generator) -> Integers:
    return rng.permutation(len(state.pool))


def _descending(keys: Floats) -> Integers:
    """Largest first, ties to the smallest index."""
    return np.argsort(-keys, kind="stable")


# ------------------------------------------------------------------------------------- rules for teachers

TeacherRule = Callable[[int, Integers], int]


def _uniform_teacher(rng: np.random.Generator) -> TeacherRule:
    return lambda conversation, free: int(free[rng.integers(len(free))])


def _best_teacher(state: DesignState, margin: Floats) -> TeacherRule:
    """The teacher of largest weight; ties to the smallest index."""

    def rule(conversation: int, free: Integers) -> int:
        beta = state.rationality[free, state.category[conversation]]
        weight = np.asarray(dn.choice_weight(np.full(len(free), margin[conversation]), beta))
        return int(free[np.argmax(weight)])

    return rule


class _Growing:
    """A batch being filled: conversations come in some order, a rule gives each a teacher with room."""

    def __init__(self, state: DesignState, size: int, rule: TeacherRule) -> None:
        self.state, self.size, self.rule = state, size, rule
        self.room = _room(state.admissible)
        self.conversation: list[int] = []
        self.teacher: list[int] = []

    @property
    def left(self) -> int:
        return self.size - len(self.conversation)

    def walk(self, order: Iterable[int]) -> Self:
        """Go down the order until the batch is full; a conversation without a free teacher is passed over."""
        for i in order:
            if self.left == 0:
                break
            free = self.state.admissible.teachers(i)
            free = free[self.room[free] > 0]
            if len(free):
                j = self.rule(i, free)
                self.room[j] -= 1
                self.conversation.append(i)
                self.teacher.append(j)
        return self

    def picks(self) -> Picks:
        return _with_gain(self.state, np.array(self.conversation, np.int64), np.array(self.teacher, np.int64))


def _assign(state: DesignState, order: Integers, size: int, rule: TeacherRule) -> Picks:
    """The first conversations of an order that a teacher can be found for."""
    return _Growing(state, size, rule).walk(order.tolist()).picks()


def _assign_d_optimal(
    state: DesignState, size: int, rule: TeacherRule, reward: Floats, matrix: Floats
) -> Picks:
    """Exact greedy D-optimal conversations when every teacher counts as the average one, then teachers.

    Where the teachers of some conversations are used up, the place goes to the next best conversations.
    """
    average = np.ones((1, int(state.category.max(initial=0)) + 1))
    batch = _Growing(state, size, rule)
    closed = state.admissible.count() == 0
    while batch.left:
        done = np.flatnonzero(closed)
        exclude = np.stack([done, np.full(len(done), -1)], axis=1) if len(done) else None
        chosen = dn.select_batch(state.pool, reward, average, matrix, batch.left, exclude=exclude)
        if len(chosen.conversation) == 0:
            break
        before = len(batch.conversation)
        batch.walk(chosen.conversation.tolist())
        new = state.pool.take(np.array(batch.conversation[before:], np.int64))
        weight = np.asarray(dn.choice_weight(new @ reward, 1.0))
        matrix = matrix + (new.T * weight) @ new
        closed[chosen.conversation] = True
    return batch.picks()


def _with_gain(
    state: DesignState, conversation: Integers, teacher: Integers, d_efficiency: float | None = None
) -> Picks:
    """Gains at the current estimates, whatever the method looked at."""
    differences = state.pool.take(conversation)
    beta = state.rationality[teacher, state.category[conversation]]
    weight = np.asarray(dn.choice_weight(differences @ state.reward, beta))
    return Picks(conversation, teacher, sequential_gain(differences, weight, state.matrix), d_efficiency)


# ------------------------------------------------------------------------------------------- the methods


def _exact_batch(
    state: DesignState,
    size: int,
    reward: Floats,
    rationality: Floats,
    matrix: Floats,
    selector: Any,
    **criterion: Any,
) -> Any:
    allowed = state.admissible
    options: dict[str, Any] = {
        **criterion,
        "capacity": allowed.capacity,
        "cost": state.cost,
        "repeats": state.repeats,
        "optimism": state.optimism,
    }
    if allowed.candidates is not None:
        conversation, teacher = allowed.free_pairs()
        shape = (allowed.n, allowed.m)
        options["candidates"] = sparse.csr_matrix(
            (np.ones(len(teacher), bool), (conversation, teacher)), shape=shape
        )
    elif len(allowed.asked) or len(allowed.closed):
        everyone = np.full(len(allowed.closed), -1)
        options["exclude"] = np.concatenate([allowed.asked, np.stack([allowed.closed, everyone], axis=1)])
    if selector is not None:
        return selector.select(reward, rationality, matrix, size, **options)
    return dn.select_batch(state.pool, reward, rationality, matrix, size, **options)


def dual(state: DesignState, size: int, rng: np.random.Generator) -> Picks:
    """The exact greedy D-optimal batch over conversations and teachers together.

    By the state's criterion. Gains are those of the plain determinant at the current estimates, whatever the
    criterion; the certificate is of the criterion's own objective, and there is none with "nuisance".
    """
    options: dict[str, Any] = {"criterion": state.criterion}
    if state.criterion == "optimistic":
        options["rationality_interval"] = state.rationality_interval
    if state.criterion == "nuisance":
        options["joint"] = state.joint
    given = state.reward, state.rationality, state.matrix, state.selector
    batch = _exact_batch(state, size, *given, **options)
    chosen = np.asarray(batch.conversation, np.int64), np.asarray(batch.teacher, np.int64)
    if state.criterion == "plug_in":
        return Picks(*chosen, np.asarray(batch.gain, np.float64), batch.d_efficiency)
    return _with_gain(state, *chosen, batch.d_efficiency)


def oracle(state: DesignState, size: int, rng: np.random.Generator) -> Picks:
    """The dual rule with the true reward and rationalities: what perfect knowledge would buy."""
    if state.truth is None:
        raise ValueError("method 'oracle' needs the true reward and rationality: only a simulation has them")
    reward, rationality = state.truth
    asked = state.admissible.asked
    differences = state.pool.take(asked[:, 0])
    beta = rationality[asked[:, 1], state.category[asked[:, 0]]]
    weight = np.asarray(dn.choice_weight(differences @ reward, beta))
    matrix = np.asarray(dn.information_matrix(differences, weight, ridge=state.ridge))
    batch = _exact_batch(state, size, reward, rationality, matrix, None)
    return _with_gain(state, np.asarray(batch.conversation, np.int64), np.asarray(batch.teacher, np.int64))


def uniform(state: DesignState, size: int, rng: np.random.Generator) -> Picks:
    """A conversation at random, then one of its teachers at random."""
    return _assign(state, _random_order(state, rng), size, _uniform_teacher(rng))


def best_fixed_teacher(state: DesignState, size: int, rng: np.random.Generator) -> Picks:
    """Conversations at random, all to the teacher who looks best over the whole pool.

    "Best" is the largest mean rationality, categories weighted by their conversations, among teachers that
    can still answer a whole batch; where nobody can, the next best fills up.
    """
    share = np.bincount(state.category, minlength=state.rationality.shape[1]) / max(1, len(state.category))
    ability = state.rationality @ share
    left = np.minimum(state.admissible.count_of_teachers(), _room(state.admissible))
    # first those with room for the batch, then by ability, then by room
    ranking = np.lexsort((-left, -ability, left < size))
    ranking = ranking[left[ranking] > 0]
    position = np.argsort(_random_order(state, rng))  # of each conversation in a random order
    room = _room(state.admissible)
    picked: dict[int, int] = {}
    for j in ranking.tolist():
        own = state.admissible.conversations(j)
        for i in own[np.argsort(position[own])].tolist():
            if len(picked) == size or room[j] == 0:
                break
            if i not in picked:
                picked[i] = j
                room[j] -= 1
        if len(picked) == size:
            break
    conversation = np.fromiter(picked.keys(), np.int64, len(picked))
    return _with_gain(state, conversation, np.fromiter(picked.values(), np.int64, len(picked)))


def uniform_best_teacher(state: DesignState, size: int, rng: np.random.Generator) -> Picks:
    """Conversations at random, each to the teacher whose answer would tell most about it."""
    return _assign(state, _random_order(state, rng), size, _best_teacher(state, state.margin))


def d_optimal_uniform_teacher(state: DesignState, size: int, rng: np.random.Generator) -> Picks:
    """D-optimal conversations (as if every teacher were the average one), teachers at random."""
    return _assign_d_optimal(state, size, _uniform_teacher(rng), state.reward, state.matrix)


def apo(state: DesignState, size: int, rng: np.random.Generator) -> Picks:
    """The conversations of largest leverage, without updates inside the batch, teachers at random."""
    leverage = np.asarray(dn.leverage(state.pool, state.matrix))
    return _assign(state, _descending(leverage), size, _uniform_teacher(rng))


def apo_best_teacher(state: DesignState, size: int, rng: np.random.Generator) -> Picks:
    """The conversations of largest leverage, each to its most informative teacher."""
    leverage = np.asarray(dn.leverage(state.pool, state.matrix))
    return _assign(state, _descending(leverage), size, _best_teacher(state, state.margin))


def theta_free(state: DesignState, size: int, rng: np.random.Generator) -> Picks:
    """D-optimal conversations that look at no reward at all (every weight 1/4), teachers at random."""
    differences = state.pool.take(state.admissible.asked[:, 0])
    weight = np.full(len(differences), 0.25)
    matrix = np.asarray(dn.information_matrix(differences, weight, ridge=state.ridge))
    return _assign_d_optimal(state, size, _uniform_teacher(rng), np.zeros_like(state.reward), matrix)


def uncertainty(state: DesignState, size: int, rng: np.random.Generator) -> Picks:
    """The conversations whose outcome is least certain (smallest margin), teachers at random."""
    return _assign(state, _descending(-np.abs(state.margin)), size, _uniform_teacher(rng))


def top_b(state: DesignState, size: int, rng: np.random.Generator) -> Picks:
    """The pairs of largest weight times leverage, all scored once: no updates inside the batch."""
    margin = state.margin
    weight = _largest_weight(state, margin)
    leverage = np.asarray(dn.leverage(state.pool, state.matrix))
    return _assign(state, _descending(weight * leverage), size, _best_teacher(state, margin))


def _largest_weight(state: DesignState, margin: Floats) -> Floats:
    """Weight of the best teacher that may still be asked about each conversation, 0 where none: (n,)."""
    allowed = state.admissible
    if allowed.candidates is not None:
        conversation, teacher = allowed.free_pairs()
        beta = state.rationality[teacher, state.category[conversation]]
        largest = np.zeros(len(margin))
        np.maximum.at(largest, conversation, np.asarray(dn.choice_weight(margin[conversation], beta)))
        return largest
    _, largest = dn.best_teacher(margin, state.category, state.rationality)
    largest = np.array(largest)
    largest[allowed.closed] = 0.0
    for i in np.setdiff1d(allowed.asked[:, 0], allowed.closed).tolist():
        beta = state.rationality[allowed.teachers(i), state.category[i]]
        weight = np.asarray(dn.choice_weight(np.full(len(beta), margin[i]), beta))
        largest[i] = weight.max(initial=0.0)
    return largest


Method = Callable[[DesignState, int, np.random.Generator], Picks]

#: Every method by name, the project's own rule first.
METHODS: Mapping[str, Method] = MappingProxyType(
    {
        "dual": dual,
        "uniform": uniform,
        "best_fixed_teacher": best_fixed_teacher,
        "uniform_best_teacher": uniform_best_teacher,
        "d_optimal_uniform_teacher": d_optimal_uniform_teacher,
        "apo": apo,
        "apo_best_teacher": apo_best_teacher,
        "theta_free": theta_free,
        "uncertainty": uncertainty,
        "top_b": top_b,
        "oracle": oracle,
    }
)
