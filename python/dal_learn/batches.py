"""Batches in parts: gold questions, teachers who are owed a hearing, and what the design would ask.

A *gold question* is a conversation whose answer is known; it is asked to measure a teacher. A teacher is
*owed* questions while fewer than `explore` were put to him. Both parts come first, whatever the method, so
that methods stay comparable; the rest of the batch is the method's own, chosen with both parts counted as
asked.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

import dal_native as dn

from .conversations import Conversations
from .design import Admissible, DesignState, Picks, joint_after, random_stream, sequential_gain

__all__ = ["GOLD_RATIONALITY", "Batch", "GoldQuestions", "choose_batch", "gold_conversations"]

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Chooser = Callable[[DesignState, int], Picks]

#: What the known answers of gold questions count as: answers of a teacher whose rationality the prior expects
#: at so many times the average teacher's.
GOLD_RATIONALITY = 4.0
#: Exploration takes at most this share of a batch, so that learning goes on (one place of a batch of one).
LARGEST_EXPLORED = 0.5
#: Gold questions are drawn from at most this share of the training prompts.
LARGEST_GOLD = 0.1

DESIGN, EXPLORE, GOLD = "design", "explore", "gold"


def gold_conversations(conversations: Conversations, train: Integers, seed: int) -> Integers:
    """Which conversations serve as gold questions: those of a tenth of the prompts, with known answers.

    Parameters
    ----------
    conversations : Conversations
    train : ndarray of int, (k,)
        Conversations that may be asked about.
    seed : int
        Draws the prompts, where more than a tenth of those in training have a conversation with a known
        answer of 0 or 1.

    Returns
    -------
    ndarray of int64, ascending

    Raises
    ------
    ValueError
        No answer is known, or nothing else would be left to ask about.

    Examples
    --------
    >>> c = Conversations.from_differences(np.eye(4), gold=[1, 0, np.nan, 0.5])
    >>> len(gold_conversations(c, np.arange(4), seed=0))
    1
    """
    answer = conversations.gold[train]
    known = train[(answer == 0.0) | (answer == 1.0)]
    if not len(known):
        raise ValueError(
            "gold_share is above 0, but no conversation in training has a known answer of 0 or 1; "
            "expected gold questions"
        )
    prompts = np.unique(conversations.prompt[known])
    most = max(1, int(LARGEST_GOLD * len(np.unique(conversations.prompt[train]))))
    drawn = random_stream(seed, "gold questions").permutation(prompts)[:most]
    chosen = known[np.isin(conversations.prompt[known], drawn)]
    if len(chosen) == len(train):
        raise ValueError("gold_share is above 0, but every conversation is a gold question; expected others")
    return np.sort(chosen)


@dataclass(frozen=True)
class GoldQuestions:
    """Gold questions to put into a batch.

    Parameters
    ----------
    places : int
        How many.
    admissible : Admissible
        To whom each may still be put; everything else is closed.
    uncertainty : ndarray, (m, C)
        Standard error of each log rationality.
    """

    places: int
    admissible: Admissible
    uncertainty: Floats


class Batch(NamedTuple):
    """Picks, and for each why it is asked: "design", "explore" or "gold"."""

    picks: Picks
    purpose: tuple[str, ...]


def choose_batch(
    state: DesignState,
    size: int,
    choose: Chooser,
    *,
    asked: Integers,
    explore: int = 0,
    gold: GoldQuestions | None = None,
    rng: np.random.Generator,
) -> Batch:
    """Choose a batch: gold questions, then teachers owed a hearing, then the method.

    Parameters
    ----------
    state : DesignState
        Gold questions closed.
    size : int
        Pairs wanted.
    choose : callable
        The method, ``choose(state, size) -> Picks``; it picks the conversations for the owed teachers too,
        then with capacities that leave room for nobody else.
    asked : ndarray of int, (m,)
        Questions put to each teacher so far, those given up left out.
    explore : int
        Teachers with fewer questions than this have first claim on half of the batch (rounded up), those
        asked least first. A conversation that they take is not asked again in the batch.
    gold : GoldQuestions, optional
    rng : numpy.random.Generator
        Breaks ties and hides the gold questions among the others; the same for every method.

    Returns
    -------
    Batch
        The method's own picks as they are where it fills the whole batch. Otherwise gains are taken anew
        in the final order and there is no certificate for the whole.

    Examples
    --------
    >>> from dal_learn.design import dual
    >>> x = np.array([[1.0, 0], [0, 1], [1, 1], [1, -1]])
    >>> state = DesignState(dn.Pool(x), np.zeros(4, int), np.zeros(2), np.array([[1.0], [2.0], [1.0]]),
    ...                     np.eye(2), Admissible(4, 3))
    >>> batch = choose_batch(state, 2, lambda s, k: dual(s, k, None), asked=np.array([5, 5, 0]),
    ...                      explore=1, rng=np.random.default_rng(0))
    >>> batch.picks.teacher.tolist(), batch.purpose
    ([2, 1], ('explore', 'design'))
    """
    parts: list[tuple[Picks, str]] = []
    capacity = state.admissible.capacity
    now = state
    if gold is not None and gold.places:
        picks = _gold_picks(now, gold, min(gold.places, size), asked, rng)
        asked = asked + np.bincount(picks.teacher, minlength=len(asked))
        parts.append((picks, GOLD))
        now = _after(now, picks)
        capacity = now.admissible.capacity
    owed = np.maximum(explore - asked, 0)
    left = size - sum(len(picks.conversation) for picks, _ in parts)
    room = _deal(now, owed, asked, min(left, int(np.ceil(LARGEST_EXPLORED * size))), rng)
    if room.any():
        only = now.admissible.after(np.zeros((0, 2), np.int64), capacity=room)
        picks = choose(dataclasses.replace(now, admissible=only), int(room.sum()))
        parts.append((picks, EXPLORE))
        if capacity is not None:
            capacity = capacity - np.bincount(picks.teacher, minlength=len(asked))
        now = _after(now, picks, capacity, close=True)
        left -= len(picks.conversation)
    if left > 0:
        parts.append((choose(now, left), DESIGN))
    asked_by = [why for picks, why in parts if len(picks.conversation)]
    if set(asked_by) <= {DESIGN}:
        picks = parts[-1][0]
        return Batch(picks, (DESIGN,) * len(picks.conversation))
    return _joined(state, parts, rng)


def _after(
    state: DesignState, picks: Picks, capacity: Integers | None = None, close: bool = False
) -> DesignState:
    """The state when these picks are asked: their information counts, they cannot be asked again."""
    pairs = np.stack([picks.conversation, picks.teacher], axis=1)
    differences = state.pool.take(picks.conversation)
    weight = _weight(state, differences, picks.conversation, picks.teacher)
    joint = state.joint
    if joint is not None:
        cell = np.stack([picks.teacher, state.category[picks.conversation]], axis=1)
        beta = state.rationality[cell[:, 0], cell[:, 1]]
        joint = joint_after(joint, differences, differences @ state.reward, beta, cell)
    closed = picks.conversation if close else None
    return dataclasses.replace(
        state,
        matrix=state.matrix + (differences.T * weight) @ differences,
        joint=joint,
        admissible=state.admissible.after(pairs, capacity=capacity, closed=closed),
    )


def _weight(state: DesignState, differences: Floats, conversation: Integers, teacher: Integers) -> Floats:
    beta = state.rationality[teacher, state.category[conversation]]
    return np.asarray(dn.choice_weight(differences @ state.reward, beta))


def _deal(
    state: DesignState, owed: Integers, asked: Integers, places: int, rng: np.random.Generator
) -> Integers:
    """How many of the places each owed teacher gets, one after the other to whoever was asked least: (m,)."""
    room = np.zeros(len(owed), np.int64)
    if not owed.any():
        return room
    most = np.minimum(owed, state.admissible.count_of_teachers())
    if state.admissible.capacity is not None:
        most = np.minimum(most, state.admissible.capacity)
    rank = rng.permutation(len(owed))
    for _ in range(places):
        able = np.flatnonzero(room < most)
        if not len(able):
            break
        room[able[np.lexsort((rank[able], asked[able] + room[able]))[0]]] += 1
    return room


def _gold_picks(
    state: DesignState, gold: GoldQuestions, places: int, asked: Integers, rng: np.random.Generator
) -> Picks:
    """Gold questions to the teachers whose rationality is least certain, one each before anybody's second.

    A teacher gets the question that would tell most about his rationality if it were the average one,
    u^2 s(u)(1 - s(u)), weighted by how uncertain he is in its category; ties are broken at random.
    """
    m = len(asked)
    spread = gold.uncertainty.mean(axis=1)
    rank = rng.permutation(m)
    information = state.margin**2 * np.asarray(dn.choice_weight(state.margin, 1.0))
    shuffled = rng.permutation(len(information))
    room = np.full(m, places) if gold.admissible.capacity is None else gold.admissible.capacity.copy()
    left = np.minimum(gold.admissible.count_of_teachers(), room)
    free: dict[int, Integers] = {}
    pairs: list[tuple[int, int]] = []
    while len(pairs) < places and left.any():
        turn = [j for j in np.lexsort((rank, asked, -spread)).tolist() if left[j] > 0]
        for j in turn[: places - len(pairs)]:
            own = free.setdefault(j, gold.admissible.conversations(j))
            worth = gold.uncertainty[j, state.category[own]] ** 2 * information[own]
            best = np.lexsort((shuffled[own], -worth))[0]
            pairs.append((int(own[best]), j))
            free[j] = np.delete(own, best)
            left[j] -= 1
    chosen = np.array(pairs, np.int64).reshape(-1, 2)
    return Picks(chosen[:, 0].copy(), chosen[:, 1].copy(), np.zeros(len(chosen)))


def _joined(state: DesignState, parts: list[tuple[Picks, str]], rng: np.random.Generator) -> Batch:
    """One batch: gold questions at random places among the others, gains in the final order."""
    conversation = np.concatenate([picks.conversation for picks, _ in parts])
    teacher = np.concatenate([picks.teacher for picks, _ in parts])
    purpose = [why for picks, why in parts for _ in picks.conversation]
    place = np.arange(len(purpose), dtype=np.float64)
    gold = np.array([why == GOLD for why in purpose])
    place[gold] = rng.uniform(gold.sum() - 0.5, len(purpose), int(gold.sum()))
    order = np.argsort(place, kind="stable")
    conversation, teacher = conversation[order], teacher[order]
    differences = state.pool.take(conversation)
    weight = _weight(state, differences, conversation, teacher)
    gain = sequential_gain(differences, weight, state.matrix)
    return Batch(Picks(conversation, teacher, gain), tuple(purpose[k] for k in order))
