"""Labels as people hand them over: checked, with equal rows told apart, and sorted into cells."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import scipy.sparse
from numpy.typing import ArrayLike, NDArray

import dal_native as dn
from dal_native import _validate as V

from ._answers import Answers, Choices, Rankings
from ._rows import Rows

__all__ = [
    "Asked",
    "Cells",
    "balanced_folds",
    "cells_of",
    "check_choices",
    "check_labels",
    "check_rankings",
    "distinct_rows",
    "features",
    "joined",
    "sizes",
]

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

_LARGEST_FEATURE = 1e50
_LARGEST_WEIGHT = 1e20
_MOST_CELLS = 10**8
_BLOCK_ROWS = 2048
_SMALL = 2**26  # bytes of distinct rows that may always be copied
_FEW_ROWS = 16_384  # of a batch that the next one may still be added to
_STORED = (np.float32, np.float16)


@dataclass(frozen=True)
class Asked:
    """Who said what about which rows: all of one length T and in range, no weight 0.

    Parameters
    ----------
    pools : tuple of dal_native.Pool
        The rows, batch after batch.
    row : ndarray of int64, (T,), or None
        Of each answer; None: the t-th.
    label : ndarray, (T,)
        Empty for rankings.
    orders : list of ndarray of int64, (R_k, k)
        Rankings by length; empty for choices.
    weight, teacher, category, round, side : ndarray, (T,)
    place : ndarray of int64, (T,)
        Where each answer stood among those handed over.
    given : int
        How many those were.
    """

    pools: tuple[Any, ...]
    row: Integers | None
    label: Floats
    orders: list[Integers]
    weight: Floats
    teacher: Integers
    category: Integers
    round: Integers
    side: Integers
    place: Integers
    given: int

    @property
    def count(self) -> int:
        return len(self.weight)

    def some(self, index: Integers) -> Asked:
        """Some of the answers, in ascending order, about the same rows."""
        ends = np.cumsum([0, *(len(order) for order in self.orders)])
        parts = zip(self.orders, ends[:-1], ends[1:], strict=True)
        row = index if self.row is None else self.row[index]
        return replace(
            self,
            row=None if self.orders else row,
            label=self.label if self.orders else self.label[index],
            orders=[o[index[(index >= low) & (index < high)] - low] for o, low, high in parts],
            weight=self.weight[index],
            teacher=self.teacher[index],
            category=self.category[index],
            round=self.round[index],
            side=self.side[index],
            place=self.place[index],
        )


def joined(first: Asked, then: Asked) -> Asked:
    """Choices of an earlier batch and of a later one; the rows stay where they are.

    Raises
    ------
    ValueError
        The numbers of features differ.
    """
    d, more = first.pools[0].d, then.pools[0].d
    if d != more:
        raise ValueError(f"X has {more} features, but RewardModel is expecting {d} features as input")
    row = None
    before = sum(len(pool) for pool in first.pools)
    if first.row is not None or then.row is not None:
        row = np.concatenate(
            [
                np.arange(first.count) if first.row is None else first.row,
                before + (np.arange(then.count) if then.row is None else then.row),
            ]
        )
    each = ("label", "weight", "teacher", "category", "round", "side")
    both: dict[str, Any] = {
        name: np.concatenate([getattr(first, name), getattr(then, name)]) for name in each
    }
    place = np.concatenate([first.place, first.given + then.place])
    pools, given = _packed(first.pools, then.pools), first.given + then.given
    return replace(first, pools=pools, row=row, place=place, given=given, **both)


def balanced_folds(group: Integers, folds: int, seed: int) -> Integers:
    """Fold of each answer: groups (0 to G - 1) in random order, the largest first, each into the lightest
    of `folds` folds, or of as many as there are groups.
    """
    size = np.bincount(group)
    order = np.random.Generator(np.random.Philox(seed)).permutation(len(size))
    load = np.zeros(min(folds, len(size)), np.int64)
    of_group = np.empty(len(size), np.int64)
    for g in order[np.argsort(-size[order], kind="stable")]:
        of_group[g] = np.argmin(load)
        load[of_group[g]] += size[g]
    return np.asarray(of_group[group])


def _packed(first: tuple[Any, ...], then: tuple[Any, ...]) -> tuple[Any, ...]:
    """Pools one after the other, small arrays of one type copied together so that there are few."""
    last, new = first[-1], then[0]
    alone = all(p.pair_offsets is None and p.pair_rows is None for p in (last, new))
    small = alone and all(isinstance(p.stored(), np.ndarray) for p in (last, new))
    if len(first) > 1 and small and last.dtype_name == new.dtype_name and len(last) < _FEW_ROWS:
        return *first[:-1], dn.Pool(np.concatenate([last.stored(), new.stored()]))
    return *first, *then


@dataclass(frozen=True)
class Cells:
    """The labelled cells, in ascending order of (teacher, category, round).

    Parameters
    ----------
    teacher, category, round : ndarray of int64, (K,)
    of_answer : ndarray of int64, (T,)
    biased : ndarray of int64
        Teachers with a position bias.
    bias_of_answer : ndarray of int64, (T,), or None
    """

    teacher: Integers
    category: Integers
    round: Integers
    of_answer: Integers
    biased: Integers
    bias_of_answer: Integers | None

    def answers(self, asked: Asked) -> Answers:
        """What the solver takes."""
        rows = Rows(asked.pools)
        if asked.orders:
            return Rankings(rows, asked.orders, asked.weight, self.of_answer)
        side = None if self.bias_of_answer is None else asked.side.astype(np.float64)
        return Choices(rows, asked.row, asked.label, asked.weight, self.of_answer, self.bias_of_answer, side)


def cells_of(asked: Asked, drifting: bool, biased: bool) -> Cells:
    """Sort answers into cells; one round only unless rationalities drift."""
    rounds = asked.round if drifting else np.zeros(asked.count, np.int64)
    kinds, times = int(asked.category.max(initial=0)) + 1, int(rounds.max(initial=0)) + 1
    if (int(asked.teacher.max(initial=0)) + 1) * kinds * times > np.iinfo(np.int64).max:
        raise ValueError(f"round reaches {times - 1}; expected rounds counted from 0")
    key, of_answer = np.unique((asked.teacher * kinds + asked.category) * times + rounds, return_inverse=True)
    j, c, when = key // times // kinds, key // times % kinds, key % times
    if not biased:
        return Cells(j, c, when, of_answer, np.zeros(0, np.int64), None)
    who, bias_of_answer = np.unique(asked.teacher, return_inverse=True)
    return Cells(j, c, when, of_answer, who, bias_of_answer)


# --------------------------------------------------------------------------------------------------- checking


def features(X: Any, name: str = "X") -> Any:
    """A pool of rows as they are stored, or of float64.

    Raises
    ------
    ValueError
        Not two dimensions, no features, not finite, not numbers, or so large that squares overflow.
    """
    if isinstance(X, dn.Pool):
        return X.in_numpy()
    if scipy.sparse.issparse(X):
        raise ValueError(f"{name} is a sparse matrix; expected a dense array")
    given = V.array(X, name)
    narrow = given.dtype.newbyteorder("=")
    kept = given.ndim == 2 and narrow in _STORED
    stored = np.require(given, narrow, ["C", "A"]) if kept else V.floats(given, name, 2)
    if stored.shape[1] == 0:
        raise ValueError(f"{name} has 0 features (shape {stored.shape}); expected at least one")
    try:
        pool = dn.Pool(stored)
    except ValueError as error:
        raise ValueError(str(error).replace("differences", name, 1)) from None
    largest = 0.0
    for start in range(0, len(stored), _BLOCK_ROWS):
        block = stored[start : start + _BLOCK_ROWS]
        largest = max(largest, float(block.max()), -float(block.min()))
    if largest > _LARGEST_FEATURE:
        raise ValueError(
            f"{name} reaches {largest:g} in size; expected at most {_LARGEST_FEATURE:g}, beyond which "
            "squares overflow"
        )
    return pool


def check_choices(
    X: Any,
    y: ArrayLike,
    teacher: ArrayLike | None = None,
    category: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    pairs: ArrayLike | None = None,
    side: ArrayLike | None = None,
    round: ArrayLike | None = None,
) -> Asked:
    """T labels, all of one length and in range.

    Raises
    ------
    ValueError
        Something is not; the message names it.
    """
    pool, row, count = _rows_of(X, pairs)
    of = "row of X" if pairs is None else "row of pairs"
    label, weight = check_labels(y, sample_weight, count, of)
    j, c, when = (
        _indices(values, name, count, of)
        for name, values in (("teacher", teacher), ("category", category), ("round", round))
    )
    shown = np.zeros(count, np.int64) if side is None else V.integers(side, "side", 1)
    V.length(shown, count, "side", of)
    if (np.abs(shown) > 1).any():
        raise ValueError(
            "side holds a number other than -1, 0, 1; expected 1 where b was shown first, -1 where a was, "
            "0 unknown"
        )
    kept, place = weight > 0, np.arange(count)
    if not kept.all():
        place = place[kept]
        row = np.arange(count) if row is None else row
        row, label, weight = row[kept], label[kept], weight[kept]
        j, c, when, shown = j[kept], c[kept], when[kept], shown[kept]
    return Asked((pool,), row, label, [], weight, j, c, when, shown, place, count)


def check_rankings(
    completions: Any,
    rankings: Sequence[ArrayLike],
    teacher: ArrayLike | None = None,
    category: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
) -> Asked:
    """R rankings, by length.

    Raises
    ------
    ValueError
        Something does not fit; the message names it.
    """
    pool = features(completions, "completions")
    lists = _orders(rankings, len(pool))
    count, of = len(lists), "ranking"
    weight = _weights(sample_weight, count, of)
    j, c = (_indices(v, name, count, of) for name, v in (("teacher", teacher), ("category", category)))
    length = np.array([len(order) for order in lists], np.int64)
    kept = np.flatnonzero(weight > 0)
    place = kept[np.argsort(length[kept], kind="stable")]
    orders = [np.stack([lists[i] for i in place if length[i] == k]) for k in np.unique(length[place])]
    orders = orders or [np.zeros((0, 2), np.int64)]
    zero = np.zeros(len(place), np.int64)
    none = np.zeros(0)
    return Asked((pool,), None, none, orders, weight[place], j[place], c[place], zero, zero, place, count)


def _orders(rankings: Sequence[ArrayLike], n: int) -> list[Integers]:
    lists = []
    for number, ranking in enumerate(rankings):
        order = V.integers(ranking, f"rankings[{number}]", 1)
        if len(order) < 2:
            raise ValueError(
                f"rankings[{number}] holds {len(order)} completion; expected two or more, best first"
            )
        V.within(order, n, f"rankings[{number}]", "completions")
        if len(np.unique(order)) < len(order):
            raise ValueError(f"rankings[{number}] names a completion twice; expected each once, best first")
        lists.append(order)
    return lists


def _rows_of(X: Any, pairs: ArrayLike | None) -> tuple[Any, Integers | None, int]:
    """Pool of distinct rows, which of them each label is about, and how many labels there are."""
    if pairs is None:
        pool = features(X)
        if pool.prompt_offsets is not None or pool.stored is None:
            return pool, None, len(pool)
        row = distinct_rows(pool)
        if row is None:
            return pool, None, len(pool)
        first, which = row
        return dn.Pool(np.ascontiguousarray(pool.stored()[first])), which, len(pool)
    pool = features(X)
    pair = V.integers(pairs, "pairs", 2)
    if pair.shape[1] != 2:
        raise ValueError(
            f"pairs has {pair.shape[1]} columns; expected two: completions a and b of each label"
        )
    V.within(pair.ravel(), len(pool), "pairs", "completions")
    distinct, which = np.unique(pair, axis=0, return_inverse=True)
    return dn.Pool.from_pairs(pool.stored(), distinct), which.reshape(-1), len(pair)


def distinct_rows(pool: Any) -> tuple[Integers, Integers] | None:
    """First positions of the distinct rows in order of appearance, and which of them each row is.

    Rows are told apart by a sum of their bits times odd constants, and compared afterwards. None where all
    rows count as distinct: they are, or few are not and a copy would cost more memory than it saves time.

    Examples
    --------
    >>> distinct_rows(dn.Pool([[2.0], [1.0], [2.0]]))[1].tolist()
    [0, 1, 0]
    """
    stored = pool.stored()
    if not isinstance(stored, np.ndarray) or len(stored) < 2:
        return None
    count, d = stored.shape
    bits = np.dtype(f"u{stored.dtype.itemsize}")
    if len(np.unique(stored[:, 0])) == count:  # one column tells them apart: as a rule
        return None
    constants = np.random.Generator(np.random.Philox(0)).integers(2**63, size=d, dtype=np.uint64) * 2 + 1
    total = np.empty(count, np.uint64)
    for start in range(0, count, _BLOCK_ROWS):
        part = np.ascontiguousarray(stored[start : start + _BLOCK_ROWS]).view(bits).astype(np.uint64)
        total[start : start + _BLOCK_ROWS] = (part ^ (part >> np.uint64(29))) @ constants
    _, first, which = np.unique(total, return_index=True, return_inverse=True)
    size = len(first) * d * stored.dtype.itemsize
    if len(first) == count or size > max(_SMALL, count * d * stored.dtype.itemsize // 8):
        return None
    order = np.argsort(first)
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    first, which = first[order], rank[which.reshape(-1)]
    for start in range(0, count, _BLOCK_ROWS):
        here = slice(start, start + _BLOCK_ROWS)
        if not np.array_equal(stored[first[which[here]]], stored[here]):
            return None
    return first, which


def check_labels(y: ArrayLike, sample_weight: ArrayLike | None, count: int, of: str) -> tuple[Floats, Floats]:
    """Labels in [0, 1] and weights of `count` of something."""
    if y is None:
        raise ValueError(
            "RewardModel requires y to be passed, but the target y is None; expected labels in [0, 1]"
        )
    given = V.array(y, "y")
    label = V.floats(given.astype(np.float64) if given.dtype == bool else given, "y", 1)
    V.length(label, count, "y", of)
    wrong = (label < 0) | (label > 1)
    if wrong.any():
        t = int(np.argmax(wrong))
        raise ValueError(f"y[{t}] is {label[t]:g}; expected labels in [0, 1] (1: b preferred)")
    return label, _weights(sample_weight, count, of)


def _indices(values: ArrayLike | None, name: str, count: int, of: str) -> Integers:
    index = np.zeros(count, np.int64) if values is None else V.integers(values, name, 1)
    V.length(index, count, name, of)
    V.within(index, 2**31, name, "indices")
    return index


def _weights(sample_weight: ArrayLike | None, count: int, of: str) -> Floats:
    weight = np.ones(count) if sample_weight is None else V.floats(sample_weight, "sample_weight", 1)
    V.length(weight, count, "sample_weight", of)
    if (weight < 0).any() or weight.max(initial=0.0) > _LARGEST_WEIGHT:
        raise ValueError(
            f"sample_weight holds a number below 0 or above {_LARGEST_WEIGHT:g}; expected weights"
        )
    return weight


def sizes(
    asked: Asked, known: Floats | None, n_teachers: int | None, n_categories: int | None
) -> tuple[int, int]:
    """m and C: as told, as the known rationalities say, or as far as the labels reach.

    Raises
    ------
    ValueError
        They do not fit together, or a label lies outside.
    """
    kinds = int(asked.category.max(initial=0)) + 1
    kinds = kinds if n_categories is None else V.whole(n_categories, "n_categories", 1)
    if known is None:
        m = int(asked.teacher.max(initial=0)) + 1
        m = m if n_teachers is None else V.whole(n_teachers, "n_teachers", 1)
    else:
        m = len(known)
        if n_teachers is not None and n_teachers != m:
            raise ValueError(f"n_teachers is {n_teachers!r}; expected {m}, as many as rows of rationality")
    if m * kinds > _MOST_CELLS:
        raise ValueError(
            f"teacher and category span {m} x {kinds} cells; expected consecutive indices from 0"
        )
    return m, kinds
