"""Best of n: rank the completions of each prompt, and say where the labels do not tell.

Each prompt has a reference nu_p (the average of its completions, or the answer one has today), and every
completion a mean, a standard deviation and a lower bound of what it is better by:

    (phi - nu_p)'theta,  |phi - nu_p|_{M^-1},  mean - radius * deviation

The completion ranked first is *vouched for* where its lower bound is positive: no reward within the radius
says that the reference is as good.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

import dal_native as dn
from dal_native import _validate

from ._policy_problem import at_home
from .pessimistic_reward import PessimisticReward
from .policy import PessimisticPolicy

__all__ = ["BestOfN", "best_of_n"]

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

#: What completions can be ranked by, besides a policy.
_MEASURES = ("lower_bound", "mean", "least_favourable")
#: Numbers decoded at a time (8 MB of float64).
_BLOCK_NUMBERS = 2**20


@dataclass(frozen=True, eq=False)
class BestOfN:
    """The completions of each prompt in order.

    Attributes
    ----------
    choice : ndarray of int64, (P,)
        The completion ranked first, counted from 0 within the prompt; -1 where the call abstained.
    vouched : ndarray of bool, (P,)
        Whether the completion ranked first has a positive lower bound over the prompt's reference.
    order : ndarray of int64, (N,)
        Completions of each prompt from best to worst, counted within the prompt; ties by index.
    mean, standard_deviation, lower_bound : ndarray, (N,)
        Of every completion, relative to its prompt's reference.
    by : str
        What they were ranked by.
    """

    choice: Integers
    vouched: NDArray[np.bool_]
    order: Integers
    mean: Floats
    standard_deviation: Floats
    lower_bound: Floats
    by: str

    @property
    def abstained(self) -> NDArray[np.bool_]:
        """Where no choice is made, (P,)."""
        return self.choice < 0


def best_of_n(
    completions: Any,
    prompt_offsets: ArrayLike | None,
    reward: PessimisticReward,
    *,
    by: str | PessimisticPolicy = "lower_bound",
    reference: str | ArrayLike = "mean",
    abstain: bool = False,
) -> BestOfN:
    """Rank the completions of each prompt.

    Parameters
    ----------
    completions : array_like (N, d), or Pool
        Features phi, those of one prompt next to each other, in any storage type of `dal_native.Pool`; read
        once, in blocks of whole prompts. Or a pool made by `Pool.from_completions` or `Pool.open`.
    prompt_offsets : array_like of int, (P + 1,), or None
        First row of each prompt, then N; None where a pool brings its own.
    reward : PessimisticReward
    by : {"lower_bound", "mean", "least_favourable"} or PessimisticPolicy
        The measure: the lower bound of each completion by itself, the estimate, the least favourable reward
        that `reward` carries, or the probabilities of a policy for the same prompts (which optimises the
        bound of all prompts together; ties go to the larger lower bound).
    reference : "mean", "reward" or array_like of int
        What a completion must be better than: the average of its prompt's completions, the one reference of
        `reward`, or one completion of each prompt (its index there; a single number for all), such as the
        answer in use today. It moves the lower bounds, and the choice by them.
    abstain : bool, default False
        Choose nothing, -1, where the completion ranked first is not vouched for.

    Returns
    -------
    BestOfN

    Raises
    ------
    ValueError
        A shape does not fit, a number is not finite or out of range, a prompt has no completion.

    Notes
    -----
    The bound of a single completion holds for that completion at the level that the radius was made for.
    Choosing the best of n is a choice from the labels: only a radius of the whole ellipsoid covers every
    completion at once. Thread-safe: nothing is shared but `reward`, which does not change.

    Examples
    --------
    >>> reward = PessimisticReward([1.0, 0.9], np.diag([1.0, 100.0]), radius=1.0)
    >>> found = best_of_n([[1.0, 0.0], [0.0, 1.0]], [0, 2], reward, reference="reward")
    >>> found.choice, found.lower_bound
    (array([1]), array([0. , 0.8]))
    >>> best_of_n([[1.0, 0.0], [0.0, 1.0]], [0, 2], reward, abstain=True).choice  # 0.9 and 1 are too close
    array([-1])
    """
    pool = _pool(completions, prompt_offsets, reward.d)
    offsets = pool.prompt_offsets
    assert offsets is not None
    name, chance = _measure(by, reward, int(offsets[-1]))
    against = _reference(reference, np.diff(offsets))
    mean, deviation = np.empty(int(offsets[-1])), np.empty(int(offsets[-1]))
    height = mean if name == "mean" else np.empty(int(offsets[-1]))
    for part, away in _differences(pool, offsets, reward, against):
        mean[part] = dn.margin(away, reward.coef)
        deviation[part] = np.sqrt(dn.leverage(away, reward._matrix))
        if name == "least_favourable":
            height[part] = dn.margin(away, reward.least_favourable_reward)
    bound = reward._bound(mean, deviation)
    height = {"lower_bound": bound, "policy": chance}.get(name, height)
    return at_home(_ranked(offsets, height, mean, deviation, bound, name, abstain), completions)


def _pool(completions: Any, prompt_offsets: Any, d: int) -> dn.Pool:
    if isinstance(completions, dn.Pool):
        if prompt_offsets is not None:
            raise ValueError("prompt_offsets are given twice; expected None with a pool, which has its own")
        if completions.prompt_offsets is None:
            raise ValueError("completions is a pool of differences; expected one of completions")
        pool = completions
    elif prompt_offsets is None:
        raise ValueError("prompt_offsets is missing; expected the first row of each prompt, then N")
    else:
        pool = dn.Pool.from_completions(completions, prompt_offsets)
    if pool.d != d:
        raise ValueError(f"completions have {pool.d} columns; expected {d}, as the reward")
    return pool.in_numpy()


def _measure(by: Any, reward: PessimisticReward, n: int) -> tuple[str, Floats]:
    """Name of the measure, and the probabilities of a policy."""
    if isinstance(by, PessimisticPolicy):
        _validate.length(by.probability, n, "by", "completion")
        return "policy", np.asarray(_validate.floats(by.probability, "by", 1))
    name = _validate.one_of(by, "by", _MEASURES)
    if name == "least_favourable" and reward.least_favourable_reward is None:
        raise ValueError("by is 'least_favourable', but the reward carries none; expected one of a policy")
    return name, np.zeros(0)


def _reference(reference: Any, counts: Integers) -> str | Integers:
    """ "mean", "reward", or the index of each prompt's baseline."""
    if isinstance(reference, str):
        return _validate.one_of(reference, "reference", ("mean", "reward"))
    index = _validate.integers(reference, "reference", (0, 1))
    if index.ndim == 1:
        _validate.length(index, len(counts), "reference", "prompt")
    index = np.broadcast_to(index, counts.shape)
    wrong = (index < 0) | (index >= counts)
    if wrong.any():
        p = int(np.argmax(wrong))
        raise ValueError(
            f"reference is {int(index[p])} in prompt {p}, which has {int(counts[p])} completions"
        )
    return index


def _differences(
    pool: dn.Pool, offsets: Integers, reward: PessimisticReward, against: str | Integers
) -> Iterator[tuple[slice, Floats]]:
    """phi - nu_p in float64, by blocks of whole prompts."""
    rows, step = pool.completions, max(1, _BLOCK_NUMBERS // pool.d)
    first, n_prompts = 0, len(offsets) - 1
    while first < n_prompts:
        last = int(np.searchsorted(offsets, offsets[first] + step, side="right")) - 1
        last = min(max(last, first + 1), n_prompts)
        start, stop = int(offsets[first]), int(offsets[last])
        block = rows.block(start, stop)
        local, counts = offsets[first:last] - start, np.diff(offsets[first : last + 1])
        with np.errstate(over="ignore", invalid="ignore"):  # what overflows is refused with its row
            if isinstance(against, str) and against == "reward":
                block -= reward.reference
            else:
                nu = (
                    np.add.reduceat(block, local, axis=0) / counts[:, None]
                    if isinstance(against, str)
                    else block[local + against[first:last]]
                )
                block -= np.repeat(nu, counts, axis=0)
        yield slice(start, stop), block
        first = last


def _ranked(
    offsets: Integers,
    height: Floats,
    mean: Floats,
    deviation: Floats,
    bound: Floats,
    name: str,
    abstain: bool,
) -> BestOfN:
    start = np.repeat(offsets[:-1], np.diff(offsets))
    row = np.arange(len(height))
    sorted_rows = np.lexsort((row, -bound, -height, start))
    order = sorted_rows - start
    best = sorted_rows[offsets[:-1]]
    vouched = bound[best] > 0.0
    choice = np.where(vouched, best - offsets[:-1], -1) if abstain else best - offsets[:-1]
    return BestOfN(choice, vouched, order, mean, deviation, bound, name)
