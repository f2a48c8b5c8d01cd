"""What a peer learns from, and what it tells: answers on pairs of items, or on differences of features.

Runs in the peer's environment: NumPy and the standard library only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

#: A chance is kept so far from 0 and 1 when its logarithm is taken, for everybody.
LEAST_CHANCE = 1e-6


@dataclass(frozen=True, eq=False)
class Comparisons:
    """T answers of m teachers on pairs of items, each of which has a score; and H held-out questions."""

    pair: np.ndarray  # (T, 2): items a and b
    choice: np.ndarray  # (T,): 1 where b was preferred, else 0
    teacher: np.ndarray  # (T,)
    held_pair: np.ndarray  # (H, 2)
    held_teacher: np.ndarray  # (H,)
    items: int
    teachers: int
    ridge: float  # prior precision of the scores, for peers that have one to set


@dataclass(frozen=True, eq=False)
class Differences:
    """T answers of m teachers on conversations with d features; and H held-out questions."""

    rows: np.ndarray  # (n, d): phi(b) - phi(a) of every conversation
    conversation: np.ndarray  # (T,): which row was asked about
    choice: np.ndarray  # (T,): 1 where b was preferred, else 0; for peers never 0.5, a tie
    teacher: np.ndarray  # (T,)
    category: np.ndarray  # (T,)
    side: np.ndarray  # (T,): 1 where b was shown first, -1 where a was, 0 where nobody knows
    held_conversation: np.ndarray  # (H,)
    held_teacher: np.ndarray  # (H,)
    held_category: np.ndarray  # (H,)
    held_side: np.ndarray  # (H,)
    teachers: int
    categories: int
    ridge: float  # prior precision of theta

    def asked(self) -> np.ndarray:
        """The row of every answer, (T, d); not copied where rows 0 to T - 1 were asked about, in order."""
        if np.array_equal(self.conversation, np.arange(len(self.conversation))):
            return np.asarray(self.rows)[: len(self.conversation)]
        return np.asarray(self.rows)[self.conversation]


@dataclass(frozen=True, eq=False)
class Learnt:
    """What came out of a fit; what is a call is not timed."""

    parameter: np.ndarray  # scores of the items, or theta
    chance: Callable[[], np.ndarray]  # (H,): of b in the held-out questions, by the peer's own model
    belief: np.ndarray | None = None  # (m,) or (m C,): how good it takes each teacher to be, on its own scale
    log_rationality: np.ndarray | None = None  # of the same shape, where it has such a thing
    facts: Callable[[], dict[str, Any]] = dict


def told(learnt: Learnt) -> dict[str, Any]:
    """A fit as JSON."""
    arrays = {"belief": learnt.belief, "log_rationality": learnt.log_rationality}
    return {
        "parameter": learnt.parameter.tolist(),
        "chance": learnt.chance().tolist(),
        "facts": learnt.facts(),
        **{name: None if array is None else array.tolist() for name, array in arrays.items()},
    }


def logistic(t: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-np.clip(t, -700, 700)))


def logit(p: np.ndarray) -> np.ndarray:
    p = np.clip(p, 1e-12, 1 - 1e-12)
    return np.log(p) - np.log1p(-p)
