"""Campaigns: the loop of asking and learning, its storage, and whole comparisons of designs.

`Study` is one line of work: seed labels, then rounds of choosing a batch, asking, and fitting anew, until the
budget is spent or a batch would gain too little. `Campaign` keeps one in a folder, so that people can take
batches out and bring answers back. `run` does a study for every method and seed and writes what came out.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from numpy.typing import ArrayLike, NDArray
from scipy import sparse, special

import dal_native as dn
from dal_native import _validate as V

from . import batches, design
from ._files import atomic_write, file_sha256, fingerprint, read_json_lines, write_jsonl
from ._ledger import Issued, Ledger, LedgerError, campaign_lock
from .conversations import Conversations, Texts
from .flags import LEAST, LEVEL, flag_teachers
from .reward import RewardModel
from .teachers import Teachers, side_swapped

__all__ = [
    "AnswersRefused",
    "Campaign",
    "Design",
    "Ledger",
    "LedgerError",
    "Round",
    "Study",
    "split_by_prompt",
]

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

_CRITERIA = ("plug_in", "optimistic", "nuisance")
_FITS = ("marginal", "joint_map", "homogeneous")


@dataclass(frozen=True)
class Design:
    """How a study asks and learns.

    Parameters
    ----------
    method : str
        One of `dal_learn.design.METHODS`.
    budget : int
        Answers to ask for in all, seed labels included.
    batch : int
        Pairs per round.
    seed_labels : int
        Pairs of the first round, chosen at random and alike for every method. Until an answer has come every
        batch is chosen so, unless this is 0.
    seed : int
        Decides everything random here.
    ridge : float or "evidence"
        Gaussian prior on theta, and ridge of the information matrix; "evidence" fits it anew in every round
        (1 before any answer, and in `Round.log_det`).
    rationality_scale : float or "evidence"
        Prior standard deviation of log rationality; "evidence" fits it anew in every round.
    fit : str
        How rationalities are fitted: "marginal", "joint_map" or "homogeneous".
    signed : bool
        Let rationalities be negative: some teachers may be worse than a coin.
    category_correlation, lapse, ties, position_bias, drift
        As in `RewardModel`, which learns the sides that were shown (0 for simulated and replayed teachers,
        who see none) and the round of every answer.
    stop_gain : float
        Stop before a batch whose log-determinant gain per pick is below this; 0 never stops.
    repeats : int
        How often the dual rule may ask about one conversation in a batch.
    optimism : float
        k of the dual rule's optimistic margin.
    criterion : str
        How the dual rule treats that rationalities are estimates: "plug_in" takes them as they are,
        "optimistic" the most informative value in an interval of each (who may be good is tried: that is
        exploration too), "nuisance" counts only what a label says of theta while the rationalities are
        estimated by the same labels (D_s; not with `optimism` or `drift`).
    optimism_level : float
        Probability that such an interval covers its rationality.
    capacity : tuple of int or None
        How often each teacher may be asked in one batch.
    explore : int
        A teacher who was put fewer questions than this (answered or open) has first claim on half of every
        batch after the seed labels; whom asked least goes first, about the conversations that the method
        likes best for him. The same for every method but "oracle", which has nobody to find out about. Seed
        labels deal the teachers out evenly already. 0 by default: in simulations with two teachers or
        more for each seed label (plug-in rule) it cost accuracy at first, and had not paid by 400 labels; the
        optimistic criterion tries teachers where that may pay.
    gold_share : float
        Share of all questions, from the first batch on, that are gold questions: conversations with known
        answers, put to the teachers whose rationality is least certain, never twice to the same one. They
        come from at most a tenth of the training prompts and are asked as nothing else. The known answer of
        each that was answered enters the fit as the answer of one more teacher, whose rationality the prior
        expects at `batches.GOLD_RATIONALITY` times the average one's: the fit stays one likelihood, trusts
        the known answers from the start, and would notice if they cannot be fitted. Not for "oracle".

    Raises
    ------
    ValueError
        A number is out of range, or the method is unknown.

    Examples
    --------
    >>> Design(budget=60, batch=20, seed_labels=20).method
    'dual'
    """

    method: str = "dual"
    budget: int = 200
    batch: int = 20
    seed_labels: int = 40
    seed: int = 0
    ridge: float | str = 1.0
    rationality_scale: float | str = 0.5
    fit: str = "marginal"
    signed: bool = False
    category_correlation: float = 0.5
    lapse: float | str = 0.0
    ties: bool = False
    position_bias: float = 0.0
    drift: float = 0.0
    stop_gain: float = 0.0
    repeats: int = 1
    optimism: float = 0.0
    criterion: str = "optimistic"
    optimism_level: float = 0.95
    capacity: tuple[int, ...] | None = None
    explore: int = 0
    gold_share: float = 0.0

    def __post_init__(self) -> None:
        if self.method not in design.METHODS:
            raise ValueError(f"method is {self.method!r}, expected one of {', '.join(design.METHODS)}")
        for name, least in (
            ("budget", 1),
            ("batch", 1),
            ("seed_labels", 0),
            ("seed", 0),
            ("repeats", 1),
            ("explore", 0),
        ):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
                raise ValueError(f"{name} is {value!r}, expected a whole number of at least {least}")
        for name in ("ridge", "rationality_scale"):
            value = getattr(self, name)
            if value != "evidence" and not (_is_number(value) and value > 0):
                raise ValueError(f"{name} is {value!r}, expected a finite number above 0, or 'evidence'")
        if self.lapse != "fit" and not (_is_number(self.lapse) and 0 <= self.lapse < 1):  # type: ignore[operator]
            raise ValueError(f"lapse is {self.lapse!r}, expected a share of at least 0 and below 1, or 'fit'")
        if not (_is_number(self.category_correlation) and 0 <= self.category_correlation < 1):
            raise ValueError(
                f"category_correlation is {self.category_correlation!r}, "
                "expected a share of at least 0 and below 1"
            )
        for name in ("stop_gain", "optimism", "position_bias", "drift"):
            if not (_is_number(getattr(self, name)) and getattr(self, name) >= 0):
                raise ValueError(f"{name} is {getattr(self, name)!r}, expected a finite number of at least 0")
        if not (_is_number(self.gold_share) and 0 <= self.gold_share < 1):
            raise ValueError(f"gold_share is {self.gold_share!r}, expected a share of at least 0 and below 1")
        if self.criterion not in _CRITERIA:
            raise ValueError(f"criterion is {self.criterion!r}, expected one of {', '.join(_CRITERIA)}")
        for name in ("optimism", "drift"):
            if self.criterion == "nuisance" and getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)!r}, expected 0 with criterion 'nuisance'")
        if not (_is_number(self.optimism_level) and 0 < self.optimism_level < 1):
            raise ValueError(
                f"optimism_level is {self.optimism_level!r}, expected a probability above 0 and below 1"
            )
        for name in ("signed", "ties"):
            if not isinstance(getattr(self, name), bool | np.bool_):
                raise ValueError(f"{name} is {getattr(self, name)!r}, expected True or False")
        if self.ties and self.lapse:
            raise ValueError(f"ties is True and lapse is {self.lapse!r}, expected one or the other")
        self._check_capacity()
        if self.fit not in _FITS:
            raise ValueError(f"fit is {self.fit!r}, expected one of {', '.join(_FITS)}")
        if self.seed_labels > self.budget:
            raise ValueError(f"seed_labels is {self.seed_labels}, expected at most budget ({self.budget})")

    def _check_capacity(self) -> None:
        if self.capacity is None:
            return
        entries = self.capacity if isinstance(self.capacity, tuple | list) else (self.capacity,)
        for entry in entries:
            if isinstance(entry, bool) or not isinstance(entry, int | np.integer) or entry < 0:
                raise ValueError(
                    f"capacity is {self.capacity!r}, expected whole numbers of at least 0, one a teacher"
                )

    def model(self, rationality: Floats | None = None) -> RewardModel:
        """A model to fit as these settings say.

        Parameters
        ----------
        rationality : ndarray, (m, C), optional
            Known rationalities.

        Returns
        -------
        RewardModel
            Not fitted.

        Examples
        --------
        >>> Design(ridge=2.0).model().ridge
        2.0
        """
        return RewardModel(
            ridge=self.ridge,
            rationality_scale=self.rationality_scale,
            method=self.fit,
            rationality=rationality,
            signed=self.signed,
            category_correlation=self.category_correlation,
            lapse=self.lapse,
            ties=self.ties,
            position_bias=self.position_bias,
            drift=self.drift,
        )


def _is_number(value: Any) -> bool:
    """A finite number, and no bool."""
    real = isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)
    return real and bool(np.isfinite(value))


@dataclass(frozen=True)
class Round:
    """What one round came to. Fields named ``seconds_*`` are times; everything else repeats exactly.

    Attributes
    ----------
    round : int
        0 for the seed labels.
    labels : int
        Answers received so far.
    gain : float
        log det that the batch was expected to add, at the estimates it was chosen with.
    d_efficiency : float or None
        Proved lower bound on the batch's D-efficiency, for methods that prove one.
    accuracy, log_loss : float or None
        On held-out conversations with known truth.
    log_det : float or None
        log det of the information asked for so far, at the common parameters of the comparison.
    direction_error : float or None
        1 - cosine between estimated and true theta, where a simulation knows it.
    seconds_selecting, seconds_fitting : float
    """

    round: int
    labels: int
    gain: float
    d_efficiency: float | None
    accuracy: float | None
    log_loss: float | None
    log_det: float | None
    direction_error: float | None
    seconds_selecting: float
    seconds_fitting: float


def split_by_prompt(prompt: ArrayLike, share: float, seed: int) -> tuple[Integers, Integers]:
    """Training and held-out conversations such that no prompt is on both sides.

    Parameters
    ----------
    prompt : array_like of int, (n,)
        Prompt of each conversation.
    share : float
        Share of the prompts to hold out, in [0, 1); above 0 at least one prompt is on each side.
    seed : int
        Decides which.

    Returns
    -------
    train, held_out : ndarray of int64
        Indices, ascending.

    Raises
    ------
    ValueError
        `share` is out of range, or there is only one prompt to split.

    Examples
    --------
    >>> train, held_out = split_by_prompt([0, 0, 1, 1, 2, 2], 0.3, seed=0)
    >>> len(train), len(held_out)
    (4, 2)
    """
    owner = np.asarray(prompt, np.int64)
    if not 0.0 <= share < 1.0:
        raise ValueError(f"holdout is {share!r}, expected a share of at least 0 and below 1")
    if share == 0.0:
        return np.arange(len(owner)), np.zeros(0, np.int64)
    prompts = np.unique(owner)
    if len(prompts) < 2:
        raise ValueError(f"{len(prompts)} prompt cannot be split, expected two or more (or holdout 0)")
    count = min(max(1, round(share * len(prompts))), len(prompts) - 1)
    out = design.random_stream(seed, "split").permutation(prompts)[:count]
    held_out = np.isin(owner, out)
    return np.flatnonzero(~held_out), np.flatnonzero(held_out)


class Study:
    """One line of asking and learning, restored from its ledger to where it stopped.

    Parameters
    ----------
    conversations : Conversations
        All n conversations.
    teachers : Teachers
        Whom to ask; indices are those of `conversations`.
    settings : Design
        How to ask and learn.
    train : array_like of int, optional
        Conversations that may be asked about; all by default.
    held_out : array_like of int, optional
        Conversations to measure accuracy on.
    gold : array_like of int, optional
        Conversations in training, with a known answer of 0 or 1, that are asked as gold questions and as
        nothing else; by default `batches.gold_conversations` where the settings have a `gold_share`.
    truth : tuple of (d,) and (m, C) arrays, optional
        True theta and rationalities, where a simulation knows them.
    common : tuple of (d,) and (m, C) arrays, optional
        Parameters at which `Round.log_det` is taken; the truth by default.
    ledger : Ledger, optional
        Where every step is recorded before it counts; in memory by default.
    cell : str
        Name of this study in the ledger.

    Attributes
    ----------
    rounds : list of Round
        Finished rounds.
    model : RewardModel or None
        The last fit.
    waiting : int
        Pairs issued and neither answered nor withdrawn.

    Raises
    ------
    ValueError
        An index, a shape or the teachers do not fit, or a gold question has no known answer.

    Examples
    --------
    >>> from dal_learn.teachers import SimulatedTeachers
    >>> x = np.random.default_rng(0).standard_normal((60, 3))
    >>> conversations = Conversations.from_differences(x)
    >>> teachers = SimulatedTeachers(conversations, np.ones(3), np.array([[0.5], [2.0]]), seed=0)
    >>> study = Study(conversations, teachers, Design(budget=20, batch=5, seed_labels=10))
    >>> [r.labels for r in study.run()]
    [10, 15, 20]
    """

    def __init__(
        self,
        conversations: Conversations,
        teachers: Any,
        settings: Design | None = None,
        *,
        train: ArrayLike | None = None,
        held_out: ArrayLike | None = None,
        gold: ArrayLike | None = None,
        truth: tuple[Floats, Floats] | None = None,
        common: tuple[Floats, Floats] | None = None,
        ledger: Ledger | None = None,
        cell: str = "main",
    ) -> None:
        if not isinstance(conversations, Conversations):
            raise ValueError(
                f"conversations is of type {type(conversations).__name__}, expected Conversations"
            )
        if not isinstance(teachers, Teachers):
            raise ValueError(
                f"teachers is of type {type(teachers).__name__}, expected Teachers (names, cost, ask)"
            )
        if not (settings is None or isinstance(settings, Design)):
            raise ValueError(f"settings is of type {type(settings).__name__}, expected a Design")
        self.conversations, self.teachers = conversations, teachers
        self.settings = settings or Design()
        self.n_teachers = len(teachers.names)
        self.train = _rows_of(train, "train", conversations.n, np.arange(conversations.n))
        if not len(self.train):
            raise ValueError("train holds no conversation, expected at least one")
        self.gold = self._gold_questions(gold)
        self.truth = self._checked("truth", truth)
        self.common, self.cell = self._checked("common", common) or self.truth, cell
        if self.settings.capacity is not None and len(self.settings.capacity) != self.n_teachers:
            raise ValueError(
                f"capacity has {len(self.settings.capacity)} numbers, expected {self.n_teachers}, "
                "one for each teacher"
            )
        self.ledger = ledger if ledger is not None else Ledger(":memory:")
        self._position = np.full(conversations.n, -1, np.int64)  # of a conversation among those in training
        self._position[self.train] = np.arange(len(self.train))
        everything = len(self.train) == conversations.n
        self._training = conversations if everything else conversations.subset(self.train)
        self._pool = self._training.pool()
        self._selector = dn.Selector(self._pool)
        allowed = teachers.admissible()
        self._candidates = None if allowed is None else sparse.csr_matrix(allowed)[self.train]
        rows = _rows_of(held_out, "held_out", conversations.n, np.zeros(0, np.int64))
        self._held_out = _Measure(conversations, rows)
        self.model: RewardModel | None = None
        self._seconds_fitting = 0.0
        self.rounds: list[Round] = []
        self._restore()

    def _gold_questions(self, given: ArrayLike | None) -> Integers:
        """The gold questions, checked; none where the settings have no place for them."""
        if self.settings.gold_share == 0 or self.settings.method == "oracle":
            return np.zeros(0, np.int64)
        if given is None:
            return batches.gold_conversations(self.conversations, self.train, self.settings.seed)
        rows = _rows_of(given, "gold", self.conversations.n, self.train)
        for wrong, reason in (
            (~np.isin(rows, self.train), "is not in training"),
            (~np.isin(self.conversations.gold[rows], (0.0, 1.0)), "has no known answer of 0 or 1"),
        ):
            if wrong.any():
                name = self.conversations.ids[rows[np.argmax(wrong)]]
                raise ValueError(f"gold holds conversation {name!r}, which {reason}, expected gold questions")
        return rows

    def _checked(self, name: str, given: Any) -> tuple[Floats, Floats] | None:
        """theta and rationalities of a known truth, in the right shapes."""
        if given is None:
            return None
        if not isinstance(given, tuple) or len(given) != 2:
            raise ValueError(f"{name} is {given!r}, expected a pair: reward and rationality")
        reward = V.reward(given[0], self.conversations.d)
        rationality = V.rationality(given[1], self.conversations.n_categories, f"{name}'s rationality")
        if len(rationality) != self.n_teachers:
            raise ValueError(
                f"{name}'s rationality is of {len(rationality)} teachers, expected {self.n_teachers}"
            )
        return reward, rationality

    # --------------------------------------------------------------------------------------------- the state

    def _restore(self) -> None:
        """Everything from the ledger; a model fitted anew to the same answers has the same bits."""
        self._read()
        self.rounds = [Round(**body) for body in self.ledger.rounds(self.cell).values()]

    def restore_model(self) -> None:
        """Fit to the answers there are: a fit is a function of its answers, so the same bits come back."""
        if self.model is None:
            self._fit()

    def picks(self) -> list[dict[str, Any]]:
        """Every pair asked, in order, by name.

        Returns
        -------
        list of dict
            ``round``, ``conversation``, ``teacher``, ``gain``, ``purpose`` ("seed", "design", "explore" or
            "gold") and ``answer``, None where there is none.
        """
        rows = zip(
            self.issued.round.tolist(),
            self.issued.conversation.tolist(),
            self.issued.teacher.tolist(),
            self.issued.gain.tolist(),
            self.purpose(),
            strict=True,
        )
        return [
            {
                "round": number,
                "conversation": self.conversations.ids[i],
                "teacher": self.teachers.names[j],
                "gain": gain,
                "purpose": purpose,
                "answer": self.answers.get((i, j)),
            }
            for number, i, j, gain, purpose in rows
        ]

    def purpose(self) -> list[str]:
        """Why each pair was asked, in order: "seed", "design", "explore" or "gold"."""
        body = self.ledger.batches(self.cell)
        found: list[str] = []
        for number, size in zip(*np.unique(self.issued.round, return_counts=True), strict=True):
            usual = "seed" if number == 0 and self.settings.seed_labels > 0 else batches.DESIGN
            found += body[int(number)].get("purpose") or [usual] * int(size)
        return found

    def measure(self, reward: Floats) -> tuple[float | None, float | None]:
        """Accuracy and log loss of this reward on the held-out conversations; None without a known truth."""
        return self._held_out(reward)

    def refresh(self) -> None:
        """Take notice of answers that were written to the ledger from outside."""
        self._read()
        self.model = None

    def _read(self) -> None:
        self.issued: Issued = self.ledger.issued(self.cell)
        self.answers = self.ledger.answers(self.cell)
        self.withdrawn = self.ledger.withdrawn(self.cell)

    @property
    def waiting(self) -> int:
        """Pairs issued and neither answered nor withdrawn."""
        return len(self.issued.round) - len(self.answers) - len(self.withdrawn)

    def is_open(self) -> NDArray[np.bool_]:
        """Which of the issued pairs are neither answered nor withdrawn, in order."""
        pairs = zip(self.issued.conversation.tolist(), self.issued.teacher.tolist(), strict=True)
        return np.array([p not in self.answers and p not in self.withdrawn for p in pairs], np.bool_)

    def give_up(self) -> int:
        """Withdraw every open pair, which then counts neither in M nor in the budget; returns how many."""
        rows = self.is_open()
        pairs = zip(self.issued.conversation[rows].tolist(), self.issued.teacher[rows].tolist(), strict=True)
        self.ledger.answer(self.cell, withdrawn=pairs)
        self._read()
        return int(rows.sum())

    @property
    def asked(self) -> int:
        """Pairs that count against the budget: issued and not withdrawn."""
        return len(self.issued.round) - len(self.withdrawn)

    def _kept(self) -> tuple[Integers, Integers]:
        """Conversation and teacher of every pair issued and not withdrawn, in order."""
        pairs = zip(self.issued.conversation.tolist(), self.issued.teacher.tolist(), strict=True)
        keep = np.array([pair not in self.withdrawn for pair in pairs], np.bool_)
        return self.issued.conversation[keep], self.issued.teacher[keep]

    def labelled(self) -> tuple[Integers, Integers, Floats]:
        """Conversation, teacher and label of every answer, in the order of asking: three (k,) arrays."""
        pairs = zip(self.issued.conversation.tolist(), self.issued.teacher.tolist(), strict=True)
        rows = [(i, j, self.answers[i, j]) for i, j in pairs if (i, j) in self.answers]
        i, j, y = list(zip(*rows, strict=True)) or [(), (), ()]
        return np.array(i, np.int64), np.array(j, np.int64), np.array(y, np.float64)

    def known(self) -> Integers:
        """Gold questions that were answered, by whomever: their known answers count, (k,) ascending."""
        if not len(self.gold):
            return np.zeros(0, np.int64)
        answered = np.unique(np.array([i for i, _ in self.answers], np.int64))
        return np.intersect1d(answered, self.gold)

    def _new_model(self) -> RewardModel:
        told = self.truth[1] if self.settings.method == "oracle" and self.truth is not None else None
        return self.settings.model(told)

    def fit_arguments(self) -> dict[str, Any]:
        """What `RewardModel.fit` takes: every answer, and the known answers of gold questions at the end."""
        conversation, teacher, label = self.labelled()
        known, c = self.known(), self.conversations
        rows = np.concatenate([conversation, known])
        differences = np.asarray(c.differences(rows), np.float64)
        differences[len(conversation) :] *= batches.GOLD_RATIONALITY
        return {
            "X": differences,
            "y": np.concatenate([label, c.gold[known]]),
            "teacher": np.concatenate([teacher, np.full(len(known), self.n_teachers)]),
            "category": c.category[rows],
            "n_teachers": self.n_teachers + bool(len(self.gold)),
            "n_categories": c.n_categories,
            **self._shown(),
        }

    def _shown(self) -> dict[str, Integers]:
        """Round and side of every answer, then of the known answers.

        The side is +1 where b was shown first, -1 where a was, 0 for known answers and where teachers were
        shown no sides (simulated and replayed ones). A known answer counts as of the last round.
        """
        pairs = zip(self.issued.conversation.tolist(), self.issued.teacher.tolist(), strict=True)
        given = np.array([pair in self.answers for pair in pairs], np.bool_)
        number, side = self.issued.round[given], np.where(self.issued.swapped[given], 1, -1)
        if not getattr(self.teachers, "shows_sides", False):
            side = np.zeros_like(side)
        known = np.zeros(len(self.known()), np.int64)
        last = int(number.max(initial=0))
        return {"round": np.append(number, known + last), "side": np.append(side, known)}

    def flags(self, level: float = LEVEL, least: int = LEAST) -> list[dict[str, Any]]:
        """Teachers who oppose, click at random, drift or prefer a side, by the last fit.

        Parameters
        ----------
        level, least
            As in `flag_teachers`.

        Returns
        -------
        list of dict
            One for each teacher, as of `flag_teachers`.

        Raises
        ------
        ValueError
            There is no answer yet.
        """
        self.restore_model()
        if self.model is None:
            raise ValueError("the study has no answer yet, expected at least one to judge teachers by")
        given = self.fit_arguments()
        return flag_teachers(
            self.model,
            given["X"],
            given["y"],
            given["teacher"],
            category=given["category"],
            round=given["round"],
            side=given["side"],
            names=self.teachers.names,
            level=level,
            least=least,
        )

    def _fit(self) -> None:
        """Fit from a cold start to all answers so far (none at all leaves the prior)."""
        start = time.perf_counter()
        if self.answers:
            self.model = self._new_model().fit(**self.fit_arguments())
        self._seconds_fitting = time.perf_counter() - start

    @property
    def estimates(self) -> tuple[Floats, Floats]:
        """theta (d,) and rationality (m, C) as last fitted; zeros and ones before any answer."""
        if self.model is None:
            shape = (self.n_teachers, self.conversations.n_categories)
            return np.zeros(self.conversations.d), np.ones(shape)
        return np.asarray(self.model.coef_), np.asarray(self.model.rationality_)[: self.n_teachers]

    @property
    def ridge(self) -> float:
        """The ridge in force: as set, or as the evidence of the last fit says (1 before)."""
        if self.settings.ridge != "evidence":
            return float(self.settings.ridge)
        return 1.0 if self.model is None else float(self.model.ridge_)

    def information(self, reward: Floats, rationality: Floats, ridge: float | None = None) -> Floats:
        """Information of every pair asked so far at these parameters, the ridge in force included: (d, d)."""
        conversation, teacher = self._kept()
        differences = self.conversations.differences(conversation)
        beta = rationality[teacher, self.conversations.category[conversation]]
        weight = np.asarray(dn.choice_weight(differences @ reward, beta))
        ridge = self.ridge if ridge is None else ridge
        return np.asarray(dn.information_matrix(differences, weight, ridge=ridge))

    def _log_spread(self) -> Floats:
        """Standard error of every log rationality, (m, C); the prior's before any answer."""
        if self.model is None:
            shape = (self.n_teachers, self.conversations.n_categories)
            scale = self.settings.rationality_scale
            return np.full(shape, 0.5 if scale == "evidence" else float(scale))
        return self.model.rationality_se_[: self.n_teachers] / np.abs(self.estimates[1])

    def _interval(self) -> Floats | None:
        """Ends of an interval of the size of each rationality, where the criterion asks for one."""
        if self.settings.criterion != "optimistic":
            return None
        reach = special.ndtri((1 + self.settings.optimism_level) / 2) * self._log_spread()
        size = np.abs(self.estimates[1])
        return np.stack([size * np.exp(-reach), size * np.exp(reach)], axis=-1)

    def _joint(self) -> dn.JointInformation | None:
        """Covariance of theta and the rationalities, open questions counted, where the criterion needs it."""
        if self.settings.criterion != "nuisance":
            return None
        c, (reward, rationality) = self.conversations, self.estimates
        if self.model is None:
            none, prior = np.zeros((c.d, 0)), self._log_spread() ** 2
            cells = np.full(prior.shape, -1)
            joint = dn.JointInformation(np.eye(c.d) / self.ridge, none, none.T @ none, cells, prior)
        else:
            joint = _of_teachers(self.model.joint_information(), self.n_teachers)
        waits = self.is_open()
        conversation, teacher = self.issued.conversation[waits], self.issued.teacher[waits]
        cell = np.stack([teacher, c.category[conversation]], axis=1)
        differences = np.asarray(c.differences(conversation), np.float64)
        beta = rationality[cell[:, 0], cell[:, 1]]
        return design.joint_after(joint, differences, differences @ reward, beta, cell)

    def _known_information(self, reward: Floats) -> Floats:
        """What the known answers of gold questions add to the information: (d, d)."""
        known = self.known()
        if self.model is None or not len(known):
            return np.zeros((self.conversations.d, self.conversations.d))
        differences = self.conversations.differences(known)
        beta = self.model.rationality_[self.n_teachers, self.conversations.category[known]]
        weight = np.asarray(dn.choice_weight(differences @ reward, batches.GOLD_RATIONALITY * beta))
        return np.asarray((differences.T * weight) @ differences)

    def _state(self) -> design.DesignState:
        reward, rationality = self.estimates
        return design.DesignState(
            pool=self._pool,
            category=self._training.category,
            reward=reward,
            rationality=rationality,
            matrix=self.information(reward, rationality) + self._known_information(reward),
            admissible=self._admissible(self._position[self.gold]),
            ridge=self.ridge,
            cost=getattr(self.teachers, "cost", None),
            repeats=self.settings.repeats,
            optimism=self.settings.optimism,
            criterion=self.settings.criterion,
            rationality_interval=self._interval(),
            joint=self._joint(),
            truth=self.truth,
            selector=self._selector,
        )

    def _admissible(self, closed: Integers) -> design.Admissible:
        asked = np.stack([self._position[self.issued.conversation], self.issued.teacher], axis=1)
        sizes = len(self.train), self.n_teachers
        return design.Admissible(*sizes, self._candidates, asked, self.settings.capacity, closed)

    def _gold_places(self, size: int) -> batches.GoldQuestions | None:
        """Gold questions for a batch of this size, so that their share of all questions is kept."""
        if not len(self.gold):
            return None
        so_far = sum(why == batches.GOLD for why in self.purpose())
        wanted = int(self.settings.gold_share * (len(self.issued.round) + size) + 0.5)
        closed = np.ones(len(self.train), bool)
        closed[self._position[self.gold]] = False
        free = self._admissible(np.flatnonzero(closed))
        return batches.GoldQuestions(max(0, wanted - so_far), free, self._log_spread())

    # --------------------------------------------------------------------------------------------- the steps

    def issue(self, size: int | None = None) -> int:
        """Choose the next batch and record it as issued, whether or not earlier ones were answered.

        Parameters
        ----------
        size : int, optional
            Pairs to choose; the settings' seed labels in round 0 and batch afterwards, within the budget.

        Returns
        -------
        int
            How many pairs were issued: 0 when the budget is spent, no pair is left, or the gain is too small.
        """
        s = self.settings
        number = len(self.ledger.batches(self.cell))
        if size is None:
            first = number == 0 and s.seed_labels > 0
            size = min(s.seed_labels if first else s.batch, s.budget - self.asked)
        if size <= 0:
            return 0
        self.restore_model()
        start = time.perf_counter()
        picks, purpose = self._chosen(size, number)
        seconds = time.perf_counter() - start
        if len(picks.conversation) == 0 or (
            s.stop_gain > 0 and number > 0 and picks.gain.mean() < s.stop_gain
        ):
            return 0
        conversation = self.train[picks.conversation]
        self.ledger.issue(
            self.cell,
            number,
            conversation,
            picks.teacher,
            picks.gain,
            self._sides(conversation, picks.teacher),
            {"d_efficiency": picks.d_efficiency, "seconds_selecting": seconds, "purpose": list(purpose)},
        )
        self._read()
        return len(conversation)

    def _chosen(self, size: int, number: int) -> batches.Batch:
        """The batch of this round: gold questions, teachers owed a hearing, and the method's own picks."""
        s = self.settings
        seeding = s.seed_labels > 0 and not self.answers  # nothing to tell one teacher from another yet
        stream = design.random_stream(s.seed, s.method, number)

        def choose(state: design.DesignState, places: int) -> design.Picks:
            if seeding:
                return self._seed_picks(state, places, number)
            return design.METHODS[s.method](state, places, stream)

        found = batches.choose_batch(
            self._state(),
            size,
            choose,
            asked=np.bincount(self._kept()[1], minlength=self.n_teachers),
            explore=0 if seeding or s.method == "oracle" else s.explore,
            gold=self._gold_places(size),
            rng=design.random_stream(s.seed, "parts", number),
        )
        if not seeding:
            return found
        return found._replace(purpose=tuple("seed" if w == batches.DESIGN else w for w in found.purpose))

    def _sides(self, conversation: Integers, teacher: Integers) -> list[bool]:
        """Whether b is shown on the left, for each pair."""
        ids, names, seed = self.conversations.ids, self.teachers.names, self.settings.seed
        pairs = zip(conversation.tolist(), teacher.tolist(), strict=True)
        return [side_swapped(seed, ids[i], names[j]) for i, j in pairs]

    def _seed_picks(self, state: design.DesignState, size: int, number: int) -> design.Picks:
        stream = design.random_stream(self.settings.seed, "seed labels", number)
        conversation, teacher = design.seed_design(state.admissible, size, stream)
        differences = state.pool.take(conversation)
        weight = np.asarray(
            dn.choice_weight(
                differences @ state.reward, state.rationality[teacher, state.category[conversation]]
            )
        )
        gain = design.sequential_gain(differences, weight, state.matrix)
        return design.Picks(conversation, teacher, gain)

    def collect(self) -> int:
        """Ask the teachers for what is open and record what they say; returns how many are left open.

        A question that a teacher declined is withdrawn: it counts neither in M nor in the budget.
        """
        declines = getattr(self.teachers, "declined", None)
        for number in np.unique(self.issued.round).tolist():
            rows = self.issued.round == number
            conversation, teacher = self.issued.conversation[rows], self.issued.teacher[rows]
            pairs = list(zip(conversation.tolist(), teacher.tolist(), strict=True))
            if all(pair in self.answers or pair in self.withdrawn for pair in pairs):
                continue
            label = np.asarray(self.teachers.ask(conversation, teacher, number + 1), np.float64)
            skipped = (
                np.zeros(len(pairs)) if declines is None else declines(conversation, teacher, number + 1)
            )
            rest = [
                (i, j, y, gone)
                for (i, j), y, gone in zip(pairs, label.tolist(), skipped.tolist(), strict=True)
                if (i, j) not in self.answers and (i, j) not in self.withdrawn
            ]
            new = [(i, j, y) for i, j, y, _ in rest if not np.isnan(y)]
            self.ledger.answer(self.cell, new, [(i, j) for i, j, y, gone in rest if gone and np.isnan(y)])
        self._read()
        return self.waiting

    def step(self) -> Round | None:
        """Do one round: issue a batch unless one is open, ask, and fit once every answer is there.

        Returns
        -------
        Round or None
            None when the study is over, or waits for answers (`waiting` tells).
        """
        issued = len(self.ledger.batches(self.cell))
        if self.waiting == 0 and len(self.rounds) == issued and self.issue() == 0:
            return None
        if self.waiting and self.collect():
            return None
        self._fit()
        self.rounds.append(self._measured(len(self.rounds)))
        self.ledger.record_round(self.cell, self.rounds[-1].round, dataclasses.asdict(self.rounds[-1]))
        return self.rounds[-1]

    def run(self, progress: Callable[[Round], None] | None = None) -> list[Round]:
        """Do rounds until the study is over or waits for answers.

        Parameters
        ----------
        progress : callable, optional
            Called with each finished round.

        Returns
        -------
        list of Round
            Every finished round, those before a restart included.
        """
        while (done := self.step()) is not None:
            if progress is not None:
                progress(done)
        return self.rounds

    def _measured(self, number: int) -> Round:
        reward, _ = self.estimates
        accuracy, log_loss = self._held_out(reward)
        log_det = direction = None
        if self.common is not None:
            ridge = 1.0 if self.settings.ridge == "evidence" else float(self.settings.ridge)
            log_det = float(np.linalg.slogdet(self.information(*self.common, ridge))[1])
        if self.truth is not None:
            lengths = float(np.linalg.norm(reward) * np.linalg.norm(self.truth[0]))
            direction = 1.0 - float(reward @ self.truth[0]) / lengths if lengths > 0 else 1.0
        batch = self.ledger.batches(self.cell)[number]
        return Round(
            round=number,
            labels=len(self.answers),
            gain=float(self.issued.gain[self.issued.round == number].sum()),
            d_efficiency=batch["d_efficiency"],
            accuracy=accuracy,
            log_loss=log_loss,
            log_det=log_det,
            direction_error=direction,
            seconds_selecting=batch["seconds_selecting"],
            seconds_fitting=self._seconds_fitting,
        )


def _rows_of(given: ArrayLike | None, name: str, n: int, default: Integers) -> Integers:
    """Indices of conversations, ascending, each once."""
    if given is None:
        return default
    rows = V.integers(given, name, 1)
    V.within(rows, n, name, "conversations")
    return np.unique(rows)


def _of_teachers(joint: dn.JointInformation, m: int) -> dn.JointInformation:
    """The covariance without the cells of whoever comes after the first m teachers: the known answers."""
    table = joint.cell[:m]
    kept, place = np.unique(table[table >= 0], return_inverse=True)
    cell = table.copy()
    cell[table >= 0] = place
    return dn.JointInformation(
        joint.theta,
        joint.cross[:, kept],
        joint.rationality[np.ix_(kept, kept)],
        cell,
        joint.prior_variance[:m],
    )


class _Measure:
    """Accuracy and log loss of a reward on the held-out conversations whose truth is 0 or 1."""

    def __init__(self, conversations: Conversations, rows: Integers) -> None:
        gold = conversations.gold[rows]
        rows = rows[(gold == 0.0) | (gold == 1.0)]
        self.sign = 2.0 * conversations.gold[rows] - 1.0
        self.differences = conversations.differences(rows)

    def __call__(self, reward: Floats) -> tuple[float | None, float | None]:
        if len(self.sign) == 0:
            return None, None
        margin = self.sign * (self.differences @ reward)
        return float(np.mean(margin > 0)), float(np.mean(np.logaddexp(0.0, -margin)))


# ------------------------------------------------------------------------------------- campaigns in a folder

_SIDES = {"left": 0.0, "right": 1.0, "tie": 0.5}
_GIVEN_UP = frozenset({"skip", "skipped", "discard", "discarded", "cancelled", "canceled"})
_STILL_OPEN = frozenset({"", "draft", "pending"})
#: More than any campaign asks for: people with their own loop stop when they like.
UNLIMITED = 2**53


class AnswersRefused(ValueError):
    """A file of answers does not fit; `problems` lists every line that does not, and nothing was taken.

    Examples
    --------
    >>> AnswersRefused(["a.csv:2: teacher 'bob' is unknown"]).problems
    ["a.csv:2: teacher 'bob' is unknown"]
    """

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems = list(problems)
        count = len(self.problems)
        super().__init__(
            f"{count} answer{'s' * (count != 1)} refused, nothing was taken:\n" + "\n".join(self.problems)
        )


class _Elsewhere:
    """Teachers who answer through somebody else's tool: nothing comes back from asking."""

    cost = None
    shows_sides = True

    def __init__(self, names: tuple[str, ...]) -> None:
        self.names = names

    def admissible(self) -> None:
        """Everyone may be asked about everything."""

    def ask(self, conversation: Integers, teacher: Integers, round: int) -> Floats:
        """No answer yet."""
        return np.full(len(conversation), np.nan)


class Campaign:
    """A campaign in a folder of its own: batches go out, answers come in, in any order and at any time.

    The folder holds a copy of the conversations and the ledger, so it can be moved, and nothing outside can
    change what was asked. Use `create` or `open`, as context managers.

    Examples
    --------
    >>> import tempfile
    >>> conversations = Conversations.from_differences(np.eye(4), ids=["p", "q", "r", "s"])
    >>> folder = tempfile.mkdtemp()
    >>> with Campaign.create(folder, conversations, ["anna", "ben"]) as campaign:
    ...     rows = campaign.select(2)
    ...     answers = [("file:1", {**rows[0], "answer": "left"})]
    ...     campaign.ingest(answers), campaign.ingest(answers), campaign.status()["open"]
    ((1, 0), (0, 0), 1)
    """

    def __init__(self, folder: Path, lock: contextlib.ExitStack, ledger: Ledger) -> None:
        self.folder, self._lock, self.ledger = folder, lock, ledger
        conversations, names = load_conversations(folder)
        if ledger.stored("conversations") != _folder_digest(folder):
            raise LedgerError(f"{folder}: the conversations were changed after the campaign began")
        #: Fingerprint of what made the vectors, or None.
        self.encoder: str | None = ledger.stored("encoder")
        try:
            settings = Design(**ledger.stored("design"))
        except (TypeError, ValueError) as error:
            raise LedgerError(f"{folder}: the campaign's settings are damaged ({error})") from None
        self.study = Study(conversations, _Elsewhere(names), settings, ledger=ledger)
        issued = self.study.issued
        for index, size in ((issued.conversation, conversations.n), (issued.teacher, len(names))):
            if ((index < 0) | (index >= size)).any():
                raise LedgerError(f"{folder}: the ledger is damaged (a question about nothing or nobody)")

    @classmethod
    def create(
        cls,
        folder: str | os.PathLike[str],
        conversations: Conversations,
        teachers: Iterable[str],
        settings: Design | None = None,
        encoder: str | None = None,
    ) -> Campaign:
        """Begin a campaign.

        Parameters
        ----------
        folder : str or path
            Made if it does not exist; must not hold a campaign.
        conversations : Conversations
        teachers : iterable of str
            Names, each once.
        settings : Design, optional
            The budget is not a limit here by default.
        encoder : str, optional
            Fingerprint of what made the vectors, to go with a reward that is fitted later.

        Returns
        -------
        Campaign

        Raises
        ------
        ValueError
            The folder holds a campaign, or the names do not fit.
        """
        out = Path(folder)
        names = tuple(teachers)
        if not names or len(set(names)) < len(names) or not all(isinstance(t, str) and t for t in names):
            raise ValueError(
                "teachers holds an empty name, a name twice or nothing, expected names, each once"
            )
        settings = settings or Design(budget=UNLIMITED)
        Study(
            conversations, _Elsewhere(names), settings
        )  # what cannot be is refused before anything is written
        if (out / "campaign.sqlite").exists():
            raise ValueError(f"{out}: holds a campaign already; go on with it, or use another folder")
        # A creation that was killed leaves these beside the lock; without it they are somebody else's.
        taken = [out / name for name in (_NAMES, _VECTORS) if (out / name).exists()]
        if taken and not (out / "campaign.lock").exists():
            raise ValueError(f"{taken[0]}: exists; expected a folder without it for the campaign")
        out.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as stack:
            stack.enter_context(campaign_lock(out))
            save_conversations(out, conversations, names)
            # The ledger is renamed into place when complete: a kill leaves no campaign, or a whole one.
            fresh = out / "campaign.sqlite.new"
            for suffix in ("", "-wal", "-shm", "-journal"):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(f"{fresh}{suffix}")
            with Ledger(fresh) as ledger:
                ledger.store("conversations", _folder_digest(out))
                ledger.store("encoder", encoder)
                ledger.store("design", dataclasses.asdict(settings))
            os.replace(fresh, out / "campaign.sqlite")
            ledger = stack.enter_context(Ledger(out / "campaign.sqlite", must_exist=True))
            campaign = cls(out, stack, ledger)
            campaign._lock = stack.pop_all()
            return campaign

    @classmethod
    def open(cls, folder: str | os.PathLike[str]) -> Campaign:
        """Go on with a campaign.

        Parameters
        ----------
        folder : str or path

        Returns
        -------
        Campaign

        Raises
        ------
        LedgerError
            No campaign there, another process works on it, or it was damaged or changed.
        """
        out = Path(folder)
        if not (out / "campaign.sqlite").is_file():
            raise LedgerError(f"{out}: holds no campaign; expected a folder made by dal select")
        with contextlib.ExitStack() as stack:
            stack.enter_context(campaign_lock(out))
            ledger = stack.enter_context(Ledger(out / "campaign.sqlite", must_exist=True))
            if ledger.stored("design") is None:
                raise LedgerError(f"{out}: holds a run, not a campaign; expected a folder made by dal select")
            campaign = cls(out, stack, ledger)
            campaign._lock = stack.pop_all()
            return campaign

    def close(self) -> None:
        """Close the ledger and let other processes in; closing twice is no error."""
        self._lock.close()

    def __enter__(self) -> Campaign:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    # ------------------------------------------------------------------------------------------- out and in

    def select(self, size: int | None = None) -> list[dict[str, Any]]:
        """Choose the next batch and record it as issued.

        Parameters
        ----------
        size : int, optional
            Pairs; the settings' seed labels the first time and batch afterwards by default.

        Returns
        -------
        list of dict
            As `questions`; empty when no pair is left, the budget is spent, or too little would be gained.
        """
        before = len(self.study.issued.round)
        with dn.single_threaded_blas():
            self.study.issue(size)
        return self.questions(range(before, len(self.study.issued.round)))

    def open_questions(self) -> list[dict[str, Any]]:
        """The questions without an answer, those given up left out."""
        return self.questions(np.flatnonzero(self.study.is_open()).tolist())

    def questions(self, positions: Iterable[int]) -> list[dict[str, Any]]:
        """Issued pairs as they are shown: sides drawn at random for each, texts where they are known.

        Parameters
        ----------
        positions : iterable of int
            Places in the order of issuing.

        Returns
        -------
        list of dict
            ``conversation``, ``teacher``, ``gain``, ``round``, ``left_id``, ``right_id``, and with texts
            ``prompt``, ``left``, ``right``.
        """
        issued, c, names = self.study.issued, self.study.conversations, self.study.teachers.names
        rows = []
        for k in positions:
            i, swapped = int(issued.conversation[k]), bool(issued.swapped[k])
            row: dict[str, Any] = {
                "conversation": c.ids[i],
                "teacher": names[issued.teacher[k]],
                "gain": float(issued.gain[k]),
                "round": int(issued.round[k]),
            }
            sides = ("b", "a") if swapped else ("a", "b")
            if c.texts is not None and c.pairs is not None:
                left, right = c.pairs[i][::-1] if swapped else c.pairs[i]
                row["prompt"] = c.texts.prompts[c.prompt[i]]
                row["left"], row["right"] = c.texts.completions[left], c.texts.completions[right]
                sides = c.texts.completion_ids[left], c.texts.completion_ids[right]
            row["left_id"], row["right_id"] = sides
            rows.append(row)
        return rows

    def ingest(self, rows: Iterable[tuple[str, Mapping[str, Any]]]) -> tuple[int, int]:
        """Take answers back: all of them, or none when one does not fit.

        Parameters
        ----------
        rows : iterable of (str, mapping)
            Where the row stands, and its fields ``conversation``, ``teacher`` and ``answer``: "left",
            "right", "tie", or "skip" to give the question up; empty, null or "draft" leaves it open. Other
            fields are passed over.

        Returns
        -------
        answers, given_up : int
            How many of each were new; what is there already counts no more.

        Raises
        ------
        AnswersRefused
            Unknown names, a pair that was never issued, an unknown word, answers that contradict each other
            or the ledger; every such row is listed.
        """
        reading = _Reading(self.study)
        for where, row in rows:
            reading.take(where, row)
        if reading.problems:
            raise AnswersRefused(reading.problems)
        labels = [(i, j, y) for (i, j), (y, _) in reading.taken.items() if y is not None]
        given_up = [pair for pair, (y, _) in reading.taken.items() if y is None]
        new = self.ledger.answer(self.study.cell, labels, given_up)
        self.study.refresh()
        return new

    def status(self) -> dict[str, Any]:
        """Counts: rounds, issued, answered, given up, open."""
        study = self.study
        return {
            "rounds": len(self.ledger.batches(study.cell)),
            "issued": len(study.issued.round),
            "answered": len(study.answers),
            "given_up": len(study.withdrawn),
            "open": study.waiting,
        }


class _Reading:
    """Answers being read: what fits is taken down, what does not is listed."""

    def __init__(self, study: Study) -> None:
        self.study = study
        self.conversation = {name: i for i, name in enumerate(study.conversations.ids)}
        self.teacher = {name: j for j, name in enumerate(study.teachers.names)}
        issued = study.issued
        keys = zip(issued.conversation.tolist(), issued.teacher.tolist(), strict=True)
        self.swapped = dict(zip(keys, issued.swapped.tolist(), strict=True))
        self.taken: dict[tuple[int, int], tuple[float | None, str]] = {}
        self.problems: list[str] = []

    def take(self, where: str, row: Mapping[str, Any]) -> None:
        try:
            self._take(where, row)
        except ValueError as error:
            self.problems.append(f"{where}: {error}")

    def _take(self, where: str, row: Mapping[str, Any]) -> None:
        for name in ("conversation", "teacher", "answer"):
            if name not in row:
                raise ValueError(f"field {name!r} is missing")
        i, j = self.conversation.get(_text(row["conversation"])), self.teacher.get(_text(row["teacher"]))
        if i is None:
            raise ValueError(f"conversation {row['conversation']!r} is unknown")
        if j is None:
            raise ValueError(f"teacher {row['teacher']!r} is unknown")
        if (i, j) not in self.swapped:
            raise ValueError(f"conversation {row['conversation']!r} was never issued to {row['teacher']!r}")
        word = _word(row["answer"])
        if word in _STILL_OPEN:
            return
        label = None if word in _GIVEN_UP else _SIDES[word]
        if label is not None and self.swapped[i, j]:
            label = 1.0 - label
        before, place = self.taken.setdefault((i, j), (label, where))
        if before != label:
            raise ValueError(f"another answer to the same question than in {place}")
        self._check_ledger((i, j), label)

    def _check_ledger(self, pair: tuple[int, int], label: float | None) -> None:
        answered, gone = pair in self.study.answers, pair in self.study.withdrawn
        if answered and self.study.answers[pair] != label:
            raise ValueError("another answer to this question was taken before")
        if gone and label is not None:
            raise ValueError("this question was given up before")


def _text(value: object) -> str:
    """A name as text; whole numbers in decimal, so that 7 and "7" are the same."""
    if isinstance(value, bool) or not isinstance(value, str | int):
        return ""
    return str(value)


def _word(value: object) -> str:
    word = "" if value is None else value.strip().lower() if isinstance(value, str) else None
    if word is None or not (word in _SIDES or word in _GIVEN_UP or word in _STILL_OPEN):
        raise ValueError(f"answer {value!r} is unknown, expected left, right, tie or skip")
    return word


# ----------------------------------------------------------------------------- conversations kept in a folder

_VECTORS, _NAMES = "conversations.safetensors", "conversations.jsonl"


def save_conversations(
    folder: str | os.PathLike[str], conversations: Conversations, teachers: Iterable[str]
) -> None:
    """Write conversations and teacher names so that `load_conversations` gives them back to the bit.

    Parameters
    ----------
    folder : str or path
        An existing folder.
    conversations : Conversations
    teachers : iterable of str
    """
    c = conversations
    tensors: dict[str, NDArray[Any]] = {"category": c.category, "prompt": c.prompt, "gold": c.gold}
    if c.completions is None:
        tensors["differences"] = c.differences()
    else:
        assert c.prompt_offsets is not None and c.pairs is not None
        tensors |= {"completions": c.completions, "prompt_offsets": c.prompt_offsets, "pairs": c.pairs}
    out = Path(folder)
    with atomic_write(out / _VECTORS, "wb") as file:
        file.write(safetensors.numpy.save({k: np.array(v) for k, v in tensors.items()}))
    write_jsonl(out / _NAMES, _name_rows(c, teachers))


def _name_rows(c: Conversations, teachers: Iterable[str]) -> Iterable[dict[str, str]]:
    for kind, names in (("teacher", teachers), ("category", c.category_names), ("conversation", c.ids)):
        yield from ({"kind": kind, "name": name} for name in names)
    if c.texts is not None:
        yield from ({"kind": "prompt", "text": text} for text in c.texts.prompts)
        rows = zip(c.texts.completion_ids, c.texts.completions, strict=True)
        yield from ({"kind": "completion", "name": name, "text": text} for name, text in rows)


def load_conversations(folder: str | os.PathLike[str]) -> tuple[Conversations, tuple[str, ...]]:
    """Read what `save_conversations` wrote.

    Parameters
    ----------
    folder : str or path

    Returns
    -------
    conversations : Conversations
    teachers : tuple of str

    Raises
    ------
    ValueError
        A file is missing or was damaged.
    """
    out = Path(folder)
    found: dict[str, list[dict[str, Any]]] = {}
    for _, row in read_json_lines(out / _NAMES):
        found.setdefault(str(row.get("kind")), []).append(row)
    names = {kind: [row.get("name") for row in rows] for kind, rows in found.items()}
    try:
        t = safetensors.numpy.load_file(out / _VECTORS)
    except (OSError, safetensors.SafetensorError) as error:
        raise ValueError(f"{out / _VECTORS}: cannot be read ({error})") from None
    shared: dict[str, Any] = {
        "category": t["category"],
        "category_names": names.get("category", []),
        "ids": names.get("conversation", []),
        "gold": t["gold"],
    }
    teachers = tuple(str(name) for name in names.get("teacher", []))
    if "differences" in t:
        return Conversations.from_differences(t["differences"], prompt=t["prompt"], **shared), teachers
    texts = None
    if "prompt" in found:
        texts = Texts(
            [row["text"] for row in found["prompt"]],
            [row["text"] for row in found["completion"]],
            [row["name"] for row in found["completion"]],
        )
    made = Conversations.from_completions(
        t["completions"], t["prompt_offsets"], t["pairs"], texts=texts, **shared
    )
    return made, teachers


def _folder_digest(folder: Path) -> str:
    return fingerprint(file_sha256(folder / _VECTORS), file_sha256(folder / _NAMES))
