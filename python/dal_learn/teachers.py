"""Teachers: simulated, replayed from recorded votes, or people who answer through files.

The three kinds share one small interface, `Teachers`: who may be asked about what, and `ask`. A label of 1
says that completion b was preferred, 0 that a was, 0.5 is a tie, NaN is no answer (yet).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import scipy.sparse
from numpy.typing import ArrayLike, NDArray

import dal_native as dn
from dal_native import _validate as V

from ._files import FileFormatError, fingerprint, read_csv, read_json_lines, write_jsonl
from ._philox import uniform
from .conversations import Conversations, row_indices

__all__ = [
    "AnswerError",
    "HumanTeachers",
    "ReplayedTeachers",
    "SimulatedTeachers",
    "Teachers",
    "Votes",
    "side_swapped",
]

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

_BLOCK_ROWS = 4096
_SIDES = {"left": 0.0, "right": 1.0, "tie": 0.5}
_DECLINED = frozenset({"skip", "skipped", "discard", "discarded", "cancelled", "canceled"})
_STILL_OPEN = frozenset({"", "draft", "pending"})
_PROBLEMS_SHOWN = 5


class AnswerError(ValueError):
    """Answers that do not fit what was asked: none of the file's answers is taken.

    Examples
    --------
    >>> issubclass(AnswerError, ValueError)
    True
    """


@runtime_checkable
class Teachers(Protocol):
    """What the loop needs to know of its m teachers.

    Examples
    --------
    >>> isinstance(SimulatedTeachers([[1.0]], [1.0], [1.0], seed=0), Teachers)
    True
    """

    @property
    def names(self) -> tuple[str, ...]:
        """The m teachers, each name once."""

    @property
    def cost(self) -> Floats | None:
        """What one answer of each teacher costs, (m,), or None when all cost the same."""

    def admissible(self) -> scipy.sparse.csr_array | None:
        """(n, m) of bool: who may be asked about what; None for everyone about everything."""

    def ask(self, conversation: ArrayLike, teacher: ArrayLike, round: int) -> Floats:
        """Labels (B,) of the asked pairs; NaN where there is no answer (yet).

        Asking again in the same round gives the same answers; a later round asks anew.
        """


# ------------------------------------------------------------------------------------------------------ votes


@dataclass(frozen=True, eq=False)
class Votes:
    """T recorded answers, validated and read-only.

    Parameters
    ----------
    conversation : array_like of int, (T,)
        Index of the conversation.
    teacher : array_like of int, (T,)
        Index into `teacher_names`.
    label : array_like, (T,)
        1 (b preferred), 0 (a preferred), or anything between (a tie is 0.5).
    repetition : array_like of int, (T,), optional
        Counts repeated answers of one teacher on one conversation; by default in order of appearance, from 0.
    teacher_names : sequence of str, optional
        The m teachers; "0", "1", ... by default.

    Raises
    ------
    ValueError
        A length, an index, a label or a name does not fit, or a (conversation, teacher, repetition) occurs
        twice.

    Examples
    --------
    >>> Votes([0, 0, 1], [1, 1, 0], [1, 0, 0.5]).repetition.tolist()
    [0, 1, 0]
    """

    conversation: Integers
    teacher: Integers
    label: Floats
    repetition: Integers
    teacher_names: tuple[str, ...]

    def __init__(
        self,
        conversation: ArrayLike,
        teacher: ArrayLike,
        label: ArrayLike,
        repetition: ArrayLike | None = None,
        teacher_names: Iterable[str] | None = None,
    ) -> None:
        i, j, y = _pairs_asked(conversation, teacher), V.integers(teacher, "teacher", 1), _labels(label)
        V.length(y, len(i), "label", "vote")
        if teacher_names is None:
            teacher_names = map(str, range(int(j.max()) + 1 if j.size else 0))
        names = _names(teacher_names, "teacher_names")
        V.within(j, len(names), "teacher", "teachers")
        if repetition is None:
            r = _occurrence(i, j)
        else:
            r = V.integers(repetition, "repetition", 1)
            V.length(r, len(i), "repetition", "vote")
            V.within(r, 2**32, "repetition", "repetitions")
            _each_once(i, j, r)
        for field, array in (("conversation", i), ("teacher", j), ("label", y), ("repetition", r)):
            array = array.view()
            array.flags.writeable = False
            object.__setattr__(self, field, array)
        object.__setattr__(self, "teacher_names", names)

    def __len__(self) -> int:
        return len(self.label)

    def subset(self, indices: ArrayLike) -> Votes:
        """Some of the votes; teachers and repetitions keep their numbers.

        Parameters
        ----------
        indices : array_like of int or bool
            Votes to keep.

        Returns
        -------
        Votes

        Examples
        --------
        >>> len(Votes([0, 0, 1], [1, 1, 0], [1, 0, 0.5]).subset([True, False, True]))
        2
        """
        rows = row_indices(indices, len(self))
        return Votes(
            self.conversation[rows],
            self.teacher[rows],
            self.label[rows],
            self.repetition[rows],
            self.teacher_names,
        )


def _labels(values: ArrayLike) -> Floats:
    y = V.floats(values, "label", 1)
    wrong = (y < 0) | (y > 1)
    if wrong.any():
        t = int(np.argmax(wrong))
        raise ValueError(f"label[{t}] is {y[t]:g}, expected a number in [0, 1] (1: b preferred)")
    return y


def _pairs_asked(conversation: ArrayLike, teacher: ArrayLike) -> Integers:
    i, j = V.integers(conversation, "conversation", 1), V.integers(teacher, "teacher", 1)
    V.length(j, len(i), "teacher", "conversation")
    V.within(i, 2**62, "conversation", "conversations")
    return i


def _names(values: Iterable[str], name: str) -> tuple[str, ...]:
    if isinstance(values, str):
        raise ValueError(f"{name} is one string, expected a sequence of names")
    names = tuple(values)
    for j, entry in enumerate(names):
        if not isinstance(entry, str) or not entry:
            raise ValueError(f"{name}[{j}] is {entry!r}, expected a non-empty string")
    if len(set(names)) < len(names):
        twin = next(entry for entry in names if names.count(entry) > 1)
        raise ValueError(f"{name} holds {twin!r} twice, expected each once")
    return names


def _occurrence(*columns: Integers) -> Integers:
    """How often the same row occurred before: 0, 1, ... in order of appearance."""
    order = np.lexsort(columns[::-1])  # stable
    new = np.ones(len(order), bool)
    new[1:] = np.any([np.diff(column[order]) != 0 for column in columns], axis=0)
    start = np.flatnonzero(new)
    within = np.arange(len(order)) - np.repeat(start, np.diff(np.append(start, len(order))))
    result = np.empty(len(order), np.int64)
    result[order] = within
    return result


def _each_once(i: Integers, j: Integers, r: Integers) -> None:
    again = _occurrence(i, j, r)
    if again.any():
        t = int(np.argmax(again))
        raise ValueError(
            f"vote {t} repeats (conversation {i[t]}, teacher {j[t]}, repetition {r[t]}), expected each once"
        )


def _seed(seed: int) -> int:
    number = V.whole(seed, "seed", 0)
    if number >= 2**64:
        raise ValueError(f"seed is {number}; expected a whole number below 2**64")
    return number


def _cost(values: ArrayLike | None, m: int) -> Floats | None:
    if values is None:
        return None
    cost = V.floats(values, "cost", 1)
    V.length(cost, m, "cost", "teacher")
    if (cost <= 0).any():
        raise ValueError(f"cost[{int(np.argmax(cost <= 0))}] is not positive; expected costs above 0")
    return cost


def _asked(
    conversation: ArrayLike, teacher: ArrayLike, round: int, n: int, m: int
) -> tuple[Integers, Integers]:
    i, j = _pairs_asked(conversation, teacher), V.integers(teacher, "teacher", 1)
    V.within(i, n, "conversation", "conversations")
    V.within(j, m, "teacher", "teachers")
    V.whole(round, "round", 0)
    return i, j


class _Askings:
    """Numbers the askings of each pair over the rounds; a round asked again gets the same numbers."""

    def __init__(self) -> None:
        self._first: dict[tuple[int, int], dict[int, int]] = {}
        self._total: dict[tuple[int, int], int] = {}

    def number(self, i: Integers, j: Integers, round: int) -> Integers:
        again = _occurrence(i, j)
        result = np.empty(len(i), np.int64)
        for t, pair in enumerate(zip(i.tolist(), j.tolist(), strict=True)):
            first = self._first.setdefault(pair, {}).setdefault(round, self._total.get(pair, 0))
            result[t] = first + again[t]
            self._total[pair] = max(self._total.get(pair, 0), int(result[t]) + 1)
        return result


# -------------------------------------------------------------------------------------------------- simulated


class SimulatedTeachers:
    """Teachers drawn from the model: P(b preferred) = lapse/2 + (1 - lapse) s(rationality * margin).

    An answer depends on (seed, conversation, teacher, how often that pair was asked in earlier rounds), with
    a schedule on the round, and on nothing else: not on the order of asking, nor on what else was asked.

    Parameters
    ----------
    conversations : Conversations, dal_native.Pool or array_like (n, d)
        What can be asked about (an array holds the differences).
    reward : array_like, (d,)
        The true theta.
    rationality : array_like, (m, C) or (m,)
        The true rationality of each teacher (in each category); negative for an adversarial teacher.
    category : array_like of int, (n,), optional
        Category of each conversation; those of `conversations` by default.
    seed : int
        0 up to 2**64 - 1.
    lapse : float, default 0.0
        Share of answers given by a coin, in [0, 1].
    names : sequence of str, (m,), optional
        "teacher-00", "teacher-01", ... by default.
    cost : array_like, (m,), optional
        What one answer costs.
    schedule : array_like, (R, m), optional
        Teachers who drift: factor on each one's rationality in rounds 1 to R; the last row holds from then
        on. A negative factor turns a teacher round.

    Raises
    ------
    ValueError
        A shape or a number does not fit.

    Examples
    --------
    >>> t = SimulatedTeachers([[1.0], [-1.0]], reward=[50.0], rationality=[1.0, -1.0], seed=1)
    >>> t.ask([0, 1, 0], [0, 0, 1], round=1).tolist()
    [1.0, 0.0, 0.0]
    """

    def __init__(
        self,
        conversations: Conversations | dn.Pool | ArrayLike,
        reward: ArrayLike,
        rationality: ArrayLike,
        category: ArrayLike | None = None,
        seed: int = 0,
        lapse: float = 0.0,
        names: Iterable[str] | None = None,
        cost: ArrayLike | None = None,
        schedule: ArrayLike | None = None,
    ) -> None:
        self.seed, self.lapse = _seed(seed), V.number(lapse, "lapse", 0.0)
        if self.lapse > 1:
            raise ValueError(f"lapse is {self.lapse:g}; expected a share in [0, 1]")
        self.margin = _margins(conversations, reward)
        n = len(self.margin)
        own = category is None and isinstance(conversations, Conversations | dn.Pool)
        self.category = _category_of(conversations) if own else V.category(category, n).astype(np.int64)
        used = int(self.category.max()) + 1 if n else 1
        self.rationality = V.rationality(rationality, used)
        m = len(self.rationality)
        width = max(2, len(str(m - 1)))
        given = (f"teacher-{j:0{width}d}" for j in range(m)) if names is None else names
        self._names = _names(given, "names")
        if len(self._names) != m:
            raise ValueError(f"names has length {len(self._names)}; expected {m}, one for each teacher")
        self._cost = _cost(cost, m)
        self.schedule = np.ones((1, m)) if schedule is None else V.floats(schedule, "schedule", 2)
        if self.schedule.shape[0] == 0 or self.schedule.shape[1] != m:
            raise ValueError(
                f"schedule has shape {self.schedule.shape}; expected rounds x {m} teachers, one round or more"
            )
        self._askings = _Askings()

    @property
    def names(self) -> tuple[str, ...]:
        """The m teachers."""
        return self._names

    @property
    def cost(self) -> Floats | None:
        """What one answer of each teacher costs, (m,), or None."""
        return self._cost

    def admissible(self) -> None:
        """Everyone answers about everything.

        Examples
        --------
        >>> SimulatedTeachers([[1.0]], [1.0], [1.0]).admissible() is None
        True
        """

    def probability(self, conversation: ArrayLike, teacher: ArrayLike, round: int = 1) -> Floats:
        """P(b preferred) of each (conversation, teacher), lapses included.

        Parameters
        ----------
        conversation, teacher : array_like of int, (B,)
        round : int
            Where the teachers drift.

        Returns
        -------
        ndarray of float64, (B,)

        Examples
        --------
        >>> SimulatedTeachers([[0.0]], [1.0], [1.0]).probability([0], [0]).tolist()
        [0.5]
        """
        i, j = _asked(conversation, teacher, round, len(self.margin), len(self._names))
        factor = self.schedule[min(max(round, 1), len(self.schedule)) - 1, j]
        chance = _logistic(factor * self.rationality[j, self.category[i]] * self.margin[i])
        return self.lapse / 2 + (1 - self.lapse) * chance

    def ask(self, conversation: ArrayLike, teacher: ArrayLike, round: int = 1) -> Floats:
        """Labels 0.0 or 1.0 of the asked pairs.

        Parameters
        ----------
        conversation, teacher : array_like of int, (B,)
            The pairs; a pair may occur several times.
        round : int
            Asking again in the same round gives the same answers, a later round asks anew.

        Returns
        -------
        ndarray of float64, (B,)

        Raises
        ------
        ValueError
            An index lies outside 0..n-1 or 0..m-1.

        Examples
        --------
        >>> t = SimulatedTeachers([[0.0]] * 3, [1.0], [1.0], seed=5)
        >>> t.ask([0, 1, 2], [0, 0, 0], 1).tolist() == t.ask([2, 1, 0], [0, 0, 0], 1)[::-1].tolist()
        True
        """
        i, j = _asked(conversation, teacher, round, len(self.margin), len(self._names))
        repetition = self._askings.number(i, j, round)
        return np.asarray(uniform(self.seed, i, j, repetition) < self.probability(i, j, round), np.float64)


def _logistic(t: Floats) -> Floats:
    e = np.exp(-np.abs(t))  # never overflows
    return np.where(t >= 0, 1.0, e) / (1.0 + e)


def _margins(conversations: Conversations | dn.Pool | ArrayLike, reward: ArrayLike) -> Floats:
    """u = x'theta of every conversation, in blocks of rows."""
    if not isinstance(conversations, Conversations | dn.Pool):
        conversations = Conversations.from_differences(conversations)
    theta, n = V.reward(reward, conversations.d), len(conversations)
    margin = np.empty(n)
    for start in range(0, n, _BLOCK_ROWS):
        stop = min(n, start + _BLOCK_ROWS)
        rows = (
            conversations.differences(slice(start, stop))
            if isinstance(conversations, Conversations)
            else conversations.block(start, stop)
        )
        # One row at a time in a fixed order: the label of a conversation cannot depend on its neighbours.
        margin[start:stop] = np.einsum("ij,j->i", rows, theta)
    return margin


def _category_of(conversations: Any) -> Integers:
    if isinstance(conversations, Conversations):
        return np.asarray(conversations.category)
    return np.asarray(conversations.category_of(np.arange(len(conversations))), np.int64)


# --------------------------------------------------------------------------------------------------- replayed


class ReplayedTeachers:
    """Teachers that repeat what was recorded: a pair without a recorded answer cannot be asked.

    Where a pair was answered several times, the seed picks which answer is given first (by conversation and
    teacher, not by order of asking); asking again in a later round gives the next one.

    Parameters
    ----------
    votes : Votes
        The recorded answers.
    conversations : Conversations or int
        What the votes are about, or how many conversations there are.
    seed : int
        0 up to 2**64 - 1.
    cost : array_like, (m,), optional
        What one answer costs.

    Raises
    ------
    ValueError
        A vote is about a conversation that does not exist.

    Examples
    --------
    >>> t = ReplayedTeachers(Votes([0, 2], [1, 0], [1, 0.5]), 3)
    >>> t.ask([2, 0], [0, 1], round=1).tolist()
    [0.5, 1.0]
    """

    def __init__(
        self, votes: Votes, conversations: Conversations | int, seed: int = 0, cost: ArrayLike | None = None
    ) -> None:
        if not isinstance(votes, Votes):
            raise ValueError(f"votes is {type(votes).__name__}; expected Votes")
        n = (
            conversations.n
            if isinstance(conversations, Conversations)
            else V.whole(conversations, "conversations", 0)
        )
        V.within(votes.conversation, n, "votes.conversation", "conversations")
        self.seed, self.votes, self._n = _seed(seed), votes, n
        m = len(votes.teacher_names)
        self._cost = _cost(cost, m)
        key = votes.conversation * max(1, m) + votes.teacher
        order = np.lexsort((votes.repetition, key))
        self._cell, self._start, self._count = np.unique(key[order], return_index=True, return_counts=True)
        self._label = votes.label[order]
        self._askings = _Askings()

    @property
    def names(self) -> tuple[str, ...]:
        """The m teachers."""
        return self.votes.teacher_names

    @property
    def cost(self) -> Floats | None:
        """What one answer of each teacher costs, (m,), or None."""
        return self._cost

    def admissible(self) -> scipy.sparse.csr_array:
        """(n, m) of bool: the pairs with a recorded answer.

        Returns
        -------
        scipy.sparse.csr_array

        Examples
        --------
        >>> ReplayedTeachers(Votes([0, 2], [1, 0], [1, 0.5]), 3).admissible().toarray().astype(int).tolist()
        [[0, 1], [0, 0], [1, 0]]
        """
        shape = (self._n, len(self.names))
        row, column = np.divmod(self._cell, max(1, shape[1]))
        return scipy.sparse.csr_array((np.ones(len(row), bool), (row, column)), shape=shape)

    def ask(self, conversation: ArrayLike, teacher: ArrayLike, round: int = 1) -> Floats:
        """Recorded labels of the asked pairs.

        Parameters
        ----------
        conversation, teacher : array_like of int, (B,)
            The pairs.
        round : int
            Asking again in the same round gives the same answers.

        Returns
        -------
        ndarray of float64, (B,)

        Raises
        ------
        ValueError
            A pair has no recorded answer, or fewer than it was asked for.

        Examples
        --------
        >>> ReplayedTeachers(Votes([0, 0], [0, 0], [1, 0]), 1).ask([0, 0], [0, 0], 1).sum()
        np.float64(1.0)
        """
        i, j = _asked(conversation, teacher, round, self._n, len(self.names))
        key = i * max(1, len(self.names)) + j
        cell = np.searchsorted(self._cell, key)
        known = np.zeros(len(key), bool)
        inside = cell < len(self._cell)
        known[inside] = self._cell[cell[inside]] == key[inside]
        if not known.all():
            t = int(np.argmin(known))
            raise ValueError(
                f"conversation {i[t]} has no recorded answer of teacher {self.names[j[t]]!r}; "
                "expected an admissible pair"
            )
        asking, count = self._askings.number(i, j, round), self._count[cell]
        if (asking >= count).any():
            t = int(np.argmax(asking >= count))
            raise ValueError(
                f"conversation {i[t]} was asked {asking[t] + 1} times of teacher {self.names[j[t]]!r}; "
                f"expected at most the {count[t]} recorded answers"
            )
        first = (uniform(self.seed, i, j) * count).astype(np.int64)
        return np.asarray(self._label[self._start[cell] + (first + asking) % count])


# ------------------------------------------------------------------------------------------------------ human


def side_swapped(seed: int, conversation: str, teacher: str) -> bool:
    """Whether this teacher sees completion b of this conversation on the left: a fair coin by name and seed.

    Parameters
    ----------
    seed : int
    conversation, teacher : str
        Names, so that reordered files change nothing.

    Returns
    -------
    bool

    Examples
    --------
    >>> 400 < sum(side_swapped(1, str(i), "anna") for i in range(1000)) < 600
    True
    """
    return bool(int(fingerprint("side", seed, conversation, teacher)[:8], 16) & 1)


@dataclass(frozen=True)
class _Issued:
    """One round as issued: its pairs by position, and which of them were shown with b on the left."""

    conversation: tuple[int, ...]
    teacher: tuple[int, ...]
    swapped: tuple[bool, ...]


class HumanTeachers:
    """People who answer through files in a folder.

    ``ask`` writes ``round-0001.jsonl``, one question a line (conversation, teacher, prompt, left, right), and
    reads every ``round-0001.answers*.jsonl`` or ``.csv`` that lies beside it: rows of ``conversation``,
    ``teacher``, ``answer`` with answer ``left``, ``right`` or ``tie``; ``skip`` or ``discarded`` declines the
    question, nothing leaves it open. Other fields are ignored. Which completion stands on the left is tossed
    per (conversation, teacher), noted in ``.sides/round-0001.jsonl`` (not for the teachers' eyes), and undone
    on reading. An answer may come late, in a later round's file too.

    Parameters
    ----------
    folder : str or path
        Made if it does not exist.
    names : sequence of str, (m,)
        The teachers.
    conversations : Conversations
        With `texts`.
    seed : int
        Tosses the sides.
    cost : array_like, (m,), optional
        What one answer costs.

    Raises
    ------
    ValueError
        The conversations carry no texts, or a name or number does not fit.

    Examples
    --------
    >>> import tempfile
    >>> from dal_learn.conversations import Texts
    >>> texts = Texts(["2 + 2?"], ["4", "5"])
    >>> c = Conversations.from_completions([[1.0], [0.0]], [0, 2], texts=texts)
    >>> HumanTeachers(tempfile.mkdtemp(), ["anna"], c).ask([0], [0], round=1)
    array([nan])
    """

    #: Which completion stands first is tossed and noted: answers can be looked at for a preferred side.
    shows_sides = True

    def __init__(
        self,
        folder: str | os.PathLike[str],
        names: Iterable[str],
        conversations: Conversations,
        seed: int = 0,
        cost: ArrayLike | None = None,
    ) -> None:
        if not isinstance(conversations, Conversations) or conversations.texts is None:
            raise ValueError(
                "conversations carries no texts; expected Conversations with texts to show to people"
            )
        self.folder, self.conversations, self.seed = Path(folder), conversations, _seed(seed)
        self._names = _names(names, "names")
        self._cost = _cost(cost, len(self._names))
        self._teacher_index = {name: j for j, name in enumerate(self._names)}
        self._conversation_index = {name: i for i, name in enumerate(conversations.ids)}
        (self.folder / ".sides").mkdir(parents=True, exist_ok=True)

    @property
    def names(self) -> tuple[str, ...]:
        """The m teachers."""
        return self._names

    @property
    def cost(self) -> Floats | None:
        """What one answer of each teacher costs, (m,), or None."""
        return self._cost

    def admissible(self) -> None:
        """Everyone may be asked about everything."""

    def ask(self, conversation: ArrayLike, teacher: ArrayLike, round: int = 1) -> Floats:
        """Put the questions of a round, or read its answers.

        The first call writes the round's file; every call returns the answers that are there.

        Parameters
        ----------
        conversation, teacher : array_like of int, (B,)
            The pairs, none twice.
        round : int
            1 or more.

        Returns
        -------
        ndarray of float64, (B,)
            NaN where no answer has come.

        Raises
        ------
        AnswerError
            An answer does not fit: unknown names, a pair that was never issued, an unknown word, two
            different answers to one question. The round was issued before with other pairs.
        """
        i, j = _asked(conversation, teacher, round, self.conversations.n, len(self._names))
        V.whole(round, "round", 1)
        if _occurrence(i, j).any():
            t = int(np.argmax(_occurrence(i, j)))
            raise ValueError(
                f"conversation {self.conversations.ids[i[t]]!r} occurs twice for teacher "
                f"{self._names[j[t]]!r} in round {round}; expected each pair once"
            )
        if not self._path(round).exists():
            self._issue(i, j, round)
        issued = self._issued(round)
        if set(zip(issued.conversation, issued.teacher, strict=True)) != set(
            zip(i.tolist(), j.tolist(), strict=True)
        ):
            raise AnswerError(
                f"{self._path(round)}: was issued with other pairs; expected the round's own pairs"
            )
        answers = self.collect()
        return np.array(
            [answers.get((round, a, b), np.nan) for a, b in zip(i.tolist(), j.tolist(), strict=True)]
        )

    def rounds(self) -> list[int]:
        """Numbers of the rounds issued so far, ascending.

        Returns
        -------
        list of int
        """
        found = []
        for path in self.folder.glob("round-*.jsonl"):
            digits = path.name[len("round-") : -len(".jsonl")]
            if digits.isascii() and digits.isdecimal():
                found.append(int(digits))
        return sorted(found)

    def collect(self) -> dict[tuple[int, int, int], float]:
        """Every answer in the folder.

        Returns
        -------
        dict
            Label by (round, conversation, teacher); unanswered and skipped questions are missing.

        Raises
        ------
        AnswerError
            As in `ask`; the message lists the first few problems with file and line.
        """
        return self._read()[0]

    def declined(self, conversation: ArrayLike, teacher: ArrayLike, round: int = 1) -> NDArray[np.bool_]:
        """Which questions of a round were skipped, and answered in no file.

        Parameters
        ----------
        conversation, teacher : array_like of int, (B,)
        round : int

        Returns
        -------
        ndarray of bool, (B,)

        Raises
        ------
        AnswerError
            As in `ask`.
        """
        i, j = _asked(conversation, teacher, round, self.conversations.n, len(self._names))
        gone = self._read()[1]
        return np.array(
            [(round, a, b) in gone for a, b in zip(i.tolist(), j.tolist(), strict=True)], np.bool_
        )

    def _read(self) -> tuple[dict[tuple[int, int, int], float], set[tuple[int, int, int]]]:
        """Answers, and the questions that were declined and not answered, from every file."""
        issued = {number: self._issued(number) for number in self.rounds()}
        swapped = {
            (number, i, j): flag
            for number, batch in issued.items()
            for i, j, flag in zip(batch.conversation, batch.teacher, batch.swapped, strict=True)
        }
        rounds_of: dict[tuple[int, int], list[int]] = {}
        for number, i, j in swapped:
            rounds_of.setdefault((i, j), []).append(number)
        answers: dict[tuple[int, int, int], tuple[str, str]] = {}
        declined: set[tuple[int, int, int]] = set()
        problems: list[str] = []
        for number in issued:
            for where, row in self._answer_rows(number):
                try:
                    self._take(number, where, row, rounds_of, answers, declined)
                except AnswerError as error:
                    problems.append(f"{where}: {error}")
        if problems:
            more = len(problems) - _PROBLEMS_SHOWN
            tail = f"; and {more} more" if more > 0 else ""
            raise AnswerError("; ".join(problems[:_PROBLEMS_SHOWN]) + tail)
        labels = {
            key: abs(_SIDES[answer] - 1.0) if swapped[key] else _SIDES[answer]
            for key, (answer, _) in answers.items()
        }
        return labels, declined - set(labels)

    def pending(self) -> list[tuple[int, str, str]]:
        """Questions issued, not answered and not declined: (round, conversation, teacher), by name.

        Returns
        -------
        list of tuple
        """
        answers, declined = self._read()
        return [
            (number, self.conversations.ids[i], self._names[j])
            for number in self.rounds()
            for i, j in zip(*self._pairs_of(number), strict=True)
            if (number, i, j) not in answers and (number, i, j) not in declined
        ]

    # ---------------------------------------------------------------------------------------------- files

    def _path(self, round: int) -> Path:
        return self.folder / f"round-{round:04d}.jsonl"

    def _sides_path(self, round: int) -> Path:
        return self.folder / ".sides" / f"round-{round:04d}.jsonl"

    def _issue(self, i: Integers, j: Integers, round: int) -> None:
        """Write the sides first: a round that people can see can always be read back."""
        questions, sides = [], []
        for a, b in zip(i.tolist(), j.tolist(), strict=True):
            swapped = side_swapped(self.seed, self.conversations.ids[a], self._names[b])
            head = {"conversation": self.conversations.ids[a], "teacher": self._names[b]}
            sides.append({**head, "swapped": swapped})
            questions.append({**head, **self._shown(a, swapped)})
        write_jsonl(self._sides_path(round), sides)
        write_jsonl(self._path(round), questions)

    def _shown(self, i: int, swapped: bool) -> dict[str, str]:
        c = self.conversations
        assert c.texts is not None and c.pairs is not None  # texts come with completions only
        left, right = (c.texts.completions[row] for row in c.pairs[i])
        if swapped:
            left, right = right, left
        return {"prompt": c.texts.prompts[c.prompt[i]], "left": left, "right": right}

    def _issued(self, round: int) -> _Issued:
        path = self._sides_path(round)
        i, j, swapped = [], [], []
        for line, row in read_json_lines(path):
            flag = row.get("swapped")
            a = self._conversation_index.get(_text(row.get("conversation")))
            b = self._teacher_index.get(_text(row.get("teacher")))
            if a is None or b is None or not isinstance(flag, bool):
                raise FileFormatError(
                    path, line, "does not fit these conversations and teachers, expected sides noted for them"
                )
            i.append(a)
            j.append(b)
            swapped.append(flag)
        return _Issued(tuple(i), tuple(j), tuple(swapped))

    def _pairs_of(self, round: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        issued = self._issued(round)
        return issued.conversation, issued.teacher

    def _answer_rows(self, round: int) -> Iterator[tuple[str, dict[str, Any]]]:
        """(file:line, row) of every answer file of a round, in order of file name."""
        stem = f"round-{round:04d}.answers"
        for path in sorted(self.folder.glob(f"{stem}*")):
            if path.name.endswith(".jsonl"):
                rows: Iterator[tuple[int, dict[str, Any]]] = read_json_lines(path)
            elif path.name.endswith(".csv"):
                rows = read_csv(path, ("conversation", "teacher", "answer"), unescape=True)
            else:
                continue  # an editor's backup, a half-finished download
            for line, row in rows:
                yield f"{path.name}:{line}", row

    def _take(
        self,
        file_round: int,
        where: str,
        row: dict[str, Any],
        rounds_of: dict[tuple[int, int], list[int]],
        answers: dict[tuple[int, int, int], tuple[str, str]],
        declined: set[tuple[int, int, int]],
    ) -> None:
        """Enter one answer, or say why it does not fit."""
        conversation, teacher = _text(row.get("conversation")), _text(row.get("teacher"))
        i, j = self._conversation_index.get(conversation), self._teacher_index.get(teacher)
        if i is None:
            raise AnswerError(f"conversation {row.get('conversation')!r} is unknown")
        if j is None:
            raise AnswerError(f"teacher {row.get('teacher')!r} is unknown")
        earlier = [number for number in rounds_of.get((i, j), []) if number <= file_round]
        if not earlier:
            raise AnswerError(f"conversation {conversation!r} was never issued to teacher {teacher!r}")
        answer = _answer(row.get("answer"))
        if answer is None:
            return
        # A late answer belongs to the latest round that had asked; another, different one contradicts it.
        key = (earlier[-1], i, j)
        if answer in _DECLINED:
            declined.add(key)
            return
        before = answers.setdefault(key, (answer, where))
        if before[0] != answer:
            raise AnswerError(
                f"teacher {teacher!r} answers {answer!r} on conversation {conversation!r}, "
                f"but {before[0]!r} in {before[1]}"
            )


def _text(value: object) -> str:
    """A name as text: whole numbers in decimal, anything else that is not text matches nothing."""
    if isinstance(value, bool) or not isinstance(value, str | int):
        return ""
    return str(value).strip()


def _answer(value: object) -> str | None:
    """``left``, ``right``, ``tie`` or a word that declines; None for no answer."""
    if value is None:
        return None
    if isinstance(value, str):
        word = value.strip().lower()
        if word in _SIDES or word in _DECLINED:
            return word
        if word in _STILL_OPEN:
            return None
    raise AnswerError(f"answer {value!r} is unknown, expected left, right, tie or skip")
