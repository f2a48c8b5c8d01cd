"""Flags: teachers who drift, click at random, oppose the crowd, prefer a side, or were hardly asked.

Every flag is a stated test at a stated level, corrected for the number of teachers (Holm: the chance of *any*
false flag of one kind in a crowd is at most the level), and never on fewer answers than a stated number. A
teacher is compared with the reward of the others: theta without his answers, and with what is uncertain
about it. So nobody confirms himself, and where the others know little, nothing is flagged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import scipy.linalg
from numpy.typing import ArrayLike, NDArray
from scipy import special

from dal_native import _validate as V
from dal_native._dispatch import single_threaded_blas

from .reward import RewardModel

__all__ = ["FLAG_COLUMNS", "FLAG_NAMES", "LEAST", "LEVEL", "flag_teachers"]

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

#: Test -> what a teacher is called whom it flags.
FLAG_NAMES = {
    "opposes": "opposes",
    "random": "clicks at random",
    "drifts": "drifts",
    "side": "prefers a side",
}
FEW = "few answers"

FLAG_COLUMNS = (
    "teacher", "answers", "rationality", "low", "high", "agreement", "early_agreement", "late_agreement",
    "first_side", "p_opposes", "p_random", "p_drifts", "p_side", "flags",
)  # fmt: skip

#: Chance of any false flag of one kind in a crowd, and answers that a test needs, where nothing else is said.
LEVEL, LEAST = 0.05, 20

#: "Clicks at random" says: below this rationality, where 1 is the average teacher's.
_HALF_HEARTED = 0.5
#: Prior standard deviation of a teacher's own constant rationality in the test for drift.
_OWN_SPREAD = 3.0
_LARGEST_OWN = 1e3
#: How near theta without a teacher has to be found, in posterior standard deviations; how far log odds may
#: move before their curvature is taken anew, and by what factor steps should at least shrink.
_CLOSE, _LARGEST_STEP, _SLOW = 0.05, 3.0, 0.5
_NEWTON_STEPS = 80
#: Variances of a statistic below this say that nothing can be told.
_NOTHING = 1e-9


def flag_teachers(
    model: RewardModel,
    differences: ArrayLike,
    label: ArrayLike,
    teacher: ArrayLike,
    *,
    category: ArrayLike | None = None,
    round: ArrayLike | None = None,
    side: ArrayLike | None = None,
    names: Sequence[str] | None = None,
    level: float = LEVEL,
    least: int = LEAST,
) -> list[dict[str, Any]]:
    """Look for teachers whose answers should not be trusted as they are.

    Parameters
    ----------
    model : RewardModel
        Fitted to these answers.
    differences : array_like, (T, d)
        Difference phi(b) - phi(a) of each answer.
    label : array_like, (T,)
        1 (b preferred), 0 (a preferred) or between; exactly 0.5, a tie, has no direction and is not tested.
    teacher : array_like of int, (T,)
    category : array_like of int, (T,), optional
        As given to `RewardModel.fit`.
    round : array_like of int, (T,), optional
        When each answer was given; without it nobody is tested for drift.
    side : array_like of int, (T,), optional
        +1 where b was shown first, -1 where a was, 0 where that is unknown, tossed by a fair coin; without
        it nobody is tested for preferring a side.
    names : sequence of str, optional
        The teachers to report on, in the order of their indices; all of the model's by default.
    level : float, default 0.05
        Chance of any false flag of one kind in the whole crowd.
    least : int, default 20
        Answers with a direction below which a teacher is not tested but marked "few answers".

    Returns
    -------
    list of dict
        One for each name, keys `FLAG_COLUMNS`:

        - ``answers``, all of his; ``agreement``, share of those with a direction that are on the side of the
          others' reward; ``early_agreement`` and ``late_agreement``, of the first and second half by round;
          ``first_side``, share that chose what was shown first;
        - ``rationality``, ``low``, ``high``: mean over his categories, weighted by his answers, of the
          model's estimates and ends of 95 % intervals (of several categories: an interval at least as wide
          as it should be);
        - ``p_*``: corrected by Holm for the teachers tested, None where not tested;
        - ``flags``: a tuple of "opposes", "clicks at random", "drifts", "prefers a side", "few answers".

    Raises
    ------
    ValueError
        An argument does not fit.

    Notes
    -----
    u is the margin under the others' reward, V its variance, p_b = E s(b u) the chance of b at rationality b
    (probit approximation), S = sum of (2 p_1 - 1)(2 y - 1) over his answers.

    - *opposes*: both the sign test says that he agrees less often than a coin (exact binomial, one-sided),
      and S is too small for an average teacher even when theta's uncertainty, common to all his answers, is
      counted. The larger p of the two.
    - *clicks at random*: S is too small for half of the average rationality, and he cannot be told from a
      coin (two-sided p of S under a coin above `level`).
    - *drifts*: a trend over rounds of how far he follows the reward (score test of an additive trend in his
      rationality, his own constant one fitted), two-sided.
    - *prefers a side*: exact binomial test of the side shown first, two-sided.

    The normal approximations, and that questions were chosen adaptively, are tested by simulation. A crowd
    that is mostly wrong makes its honest members look as if they opposed.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> x, teacher = rng.standard_normal((600, 2)), np.arange(600) % 6
    >>> label = (rng.random(600) < 1 / (1 + np.exp(-3 * x[:, 0]))).astype(float)
    >>> label[teacher == 5] = rng.integers(2, size=100)
    >>> model = RewardModel().fit(x, label, teacher=teacher)
    >>> [row["flags"] for row in flag_teachers(model, x, label, teacher)][4:]
    [(), ('clicks at random',)]
    """
    answers = _checked(model, differences, label, teacher, category, round, side)
    names = [str(j) for j in range(model.n_teachers_)] if names is None else list(names)
    if len(names) > model.n_teachers_:
        raise ValueError(f"names has length {len(names)}; expected at most {model.n_teachers_}")
    if not 0 < V.number(level, "level") < 1:
        raise ValueError(f"level is {level!r}; expected a probability above 0 and below 1")
    least = V.whole(least, "least", 2)
    with single_threaded_blas():
        crowd = _Crowd(model, answers)
        rows = [_row(model, answers, crowd, j, name, least) for j, name in enumerate(names)]
    for test in FLAG_NAMES:
        _correct(rows, f"p_{test}")
    for row in rows:
        row["flags"] = _flags(row, level)
    return [{key: row[key] for key in FLAG_COLUMNS} for row in rows]


class _Answers(NamedTuple):
    """Answers, checked; `said` is +1 for b, -1 for a, 0 for a tie."""

    x: Floats
    label: Floats
    teacher: Integers
    category: Integers
    round: Integers | None
    side: Integers | None

    @property
    def said(self) -> Floats:
        return np.sign(self.label - 0.5)


def _checked(
    model: RewardModel,
    differences: ArrayLike,
    label: ArrayLike,
    teacher: ArrayLike,
    category: ArrayLike | None,
    round: ArrayLike | None,
    side: ArrayLike | None,
) -> _Answers:
    if not isinstance(model, RewardModel):
        raise ValueError(f"model is {type(model).__name__}; expected a fitted RewardModel")
    margin = model.decision_function(differences)  # refuses an unfitted model and what does not fit it
    x = V.floats(differences, "differences", 2)
    y = V.floats(label, "label", 1)
    if ((y < 0) | (y > 1)).any():
        raise ValueError("label holds a number outside [0, 1]; expected labels (1: b preferred)")
    zeros = np.zeros(len(margin), np.int64)
    found: dict[str, Integers | None] = {"round": None, "side": None}
    for name, given in (("teacher", teacher), ("category", category), ("round", round), ("side", side)):
        if given is not None:
            found[name] = V.integers(given, name, 1)
    j, c, r, s = found["teacher"], found.get("category"), found["round"], found["side"]
    assert j is not None
    for name, values in (("label", y), ("teacher", j), ("category", c), ("round", r), ("side", s)):
        if values is not None:
            V.length(values, len(margin), name, "row of differences")
    V.within(j, model.n_teachers_, "teacher", "teachers")
    c = zeros if c is None else c
    V.within(c, model.n_categories_, "category", "categories")
    if s is not None and not np.isin(s, (-1, 0, 1)).all():
        raise ValueError("side holds a number other than -1, 0 and 1; expected +1 where b was shown first")
    return _Answers(x, y, j, c, r, s)


# ----------------------------------------------------------------------------------------- the others' reward


def _choice(t: Floats, lapse: float) -> tuple[Floats, Floats, Floats]:
    """P(b), its slope in t, and P(b) P(a), for t = beta u: three arrays."""
    e = np.exp(-np.abs(t))
    unlikely = lapse / 2 + (1 - lapse) * e / (1 + e)
    slope = (1 - lapse) * e / (1 + e) ** 2
    return np.where(t >= 0, 1 - unlikely, unlikely), slope, unlikely * (1 - unlikely)


def _shrunk(t: Floats, variance: Floats) -> Floats:
    """The argument at which s is E s(t + noise): the probit approximation."""
    return np.asarray(t / np.sqrt(1 + np.pi / 8 * variance))


class _Hearing(NamedTuple):
    """A teacher's answers with a direction, beside what the others say about them.

    `factor` is such that factor' factor is the covariance of the margins.
    """

    rows: Integers
    margin: Floats
    variance: Floats
    factor: Floats


class _Crowd:
    """theta's posterior without the answers of any one teacher, rationalities as fitted to all.

    Newton's method from the fit of all, the curvature taken anew only where his absence moves log odds a lot:
    a step costs one pass over the answers, and few are needed.
    """

    def __init__(self, model: RewardModel, answers: _Answers) -> None:
        x = answers.x
        theta = np.asarray(model.coef_)
        if len(x) < x.shape[1]:  # only directions with answers matter
            basis = scipy.linalg.qr(x.T, mode="economic", check_finite=False)[0]
            x, theta = np.ascontiguousarray(x @ basis), basis.T @ theta
        self.x, self.theta, self.label, self.teacher = x, theta, answers.label, answers.teacher
        self.said, self.lapse, self.ridge = answers.said, model.lapse_, model.ridge_
        cell = answers.teacher, answers.category
        self.beta = model.rationality_[cell]
        if model.drift and answers.round is not None:  # what each was when he answered
            when = np.clip(np.searchsorted(model.rounds_, answers.round), 0, len(model.rounds_) - 1)
            self.beta = model.rationality_path_[(*cell, when)]
        self.margin = x @ theta
        self.weight, self.score = self._derivatives(self.margin)
        self.gradient = self.score @ x - self.ridge * theta
        self.precision = self._information(self.weight)

    def _information(self, weight: Floats) -> Floats:
        matrix = np.asarray((self.x.T * weight) @ self.x)
        matrix.ravel()[:: len(matrix) + 1] += self.ridge
        return matrix

    def _derivatives(self, margin: Floats) -> tuple[Floats, Floats]:
        """Fisher information of each answer on its margin, and its derivative of the log likelihood."""
        chance, slope, noise = _choice(self.beta * margin, self.lapse)
        noise = np.maximum(noise, np.finfo(float).tiny)
        return self.beta**2 * slope**2 / noise, self.beta * (self.label - chance) * slope / noise

    def without(self, j: int) -> _Hearing:
        """The teacher's answers under the reward of the others."""
        own = np.flatnonzero(self.teacher == j)
        x = self.x[own]
        precision = self.precision - (x.T * self.weight[own]) @ x
        gradient = self.gradient - self.score[own] @ x
        theta, margin, before, travelled = self.theta, self.margin, np.inf, 0.0
        lower = scipy.linalg.cholesky(precision, lower=True)
        for _ in range(_NEWTON_STEPS):
            step = scipy.linalg.cho_solve((lower, True), gradient)
            size = float(np.sqrt(max(step @ gradient, 0.0)))  # posterior standard deviations
            if size <= _CLOSE:
                break
            move = self.x @ step
            far = float(np.abs(self.beta * move).max())
            share = min(1.0, _LARGEST_STEP / far) if far > 0 else 1.0
            theta, margin = theta + share * step, margin + share * move
            weight, score = self._derivatives(margin)
            weight[own] = score[own] = 0.0
            gradient = score @ self.x - self.ridge * theta
            travelled += share * far
            if travelled > _LARGEST_STEP or size > _SLOW * before:  # the curvature is another one here
                lower, travelled = scipy.linalg.cholesky(self._information(weight), lower=True), 0.0
            before = size
        keep = own[self.said[own] != 0]
        factor = scipy.linalg.solve_triangular(lower, self.x[keep].T, lower=True)
        return _Hearing(
            keep, margin[keep] + self.x[keep] @ step, np.einsum("ij,ij->j", factor, factor), factor
        )


# -------------------------------------------------------------------------------------------------- the tests


def _row(
    model: RewardModel, answers: _Answers, crowd: _Crowd, j: int, name: str, least: int
) -> dict[str, Any]:
    """One teacher: estimates, agreement, and p values that are not corrected yet."""
    count = np.bincount(answers.category[answers.teacher == j], minlength=model.n_categories_)
    share = count / count.sum() if count.any() else np.full(len(count), 1 / len(count))
    low, high = (share @ model.rationality_interval_[j]).tolist()
    row: dict[str, Any] = dict.fromkeys(FLAG_COLUMNS)
    row |= {"teacher": name, "answers": int(count.sum()), "low": low, "high": high}
    row["rationality"] = float(share @ model.rationality_[j])
    if not count.any():
        return row
    h = crowd.without(j)
    said = answers.said[h.rows]
    agrees = np.where(h.margin == 0, 0.5, said * h.margin > 0)
    row["agreement"] = _mean(agrees)
    when = None if answers.round is None else answers.round[h.rows]
    if when is not None and len(np.unique(when)) > 1:
        order = np.argsort(when, kind="stable")
        row["early_agreement"] = _mean(agrees[order[: len(order) // 2]])
        row["late_agreement"] = _mean(agrees[order[len(order) // 2 :]])
    first = None if answers.side is None else (said * answers.side[h.rows])[answers.side[h.rows] != 0]
    if first is not None:
        row["first_side"] = _mean(first > 0)
    if len(said) < least:
        return row
    row |= _against_the_crowd(h, said, agrees, crowd.lapse)
    if when is not None:
        row["p_drifts"] = _trend(h, said, when.astype(np.float64))
    if first is not None and len(first) >= least:
        k = int((first > 0).sum())
        row["p_side"] = min(1.0, 2 * _at_most(min(k, len(first) - k), len(first)))
    return row


def _mean(values: NDArray[Any]) -> float | None:
    return float(np.mean(values)) if len(values) else None


def _at_most(k: int, n: int) -> float:
    """P(a fair coin falls heads at most k times of n)."""
    return float(special.bdtr(k, n, 0.5)) if n else 1.0


def _against_the_crowd(h: _Hearing, said: Floats, agrees: Floats, lapse: float) -> dict[str, float]:
    """p of "opposes" and "clicks at random", and how well a coin explains the answers."""
    chance, _, _ = _choice(_shrunk(h.margin, h.variance), lapse)
    a = 2 * chance - 1
    total, blind = float(a @ said), float(a @ a)
    known = h.margin != 0
    contradicts = _at_most(int(agrees[known].sum()), int(known.sum()))
    coin = 2 * float(special.ndtr(-abs(total) / np.sqrt(blind))) if blind > _NOTHING else 1.0
    return {
        "p_opposes": max(contradicts, _too_small(h, a, total, 1.0, lapse)),
        "p_random": _too_small(h, a, total, _HALF_HEARTED, lapse),
        "p_coin": coin,
    }


def _too_small(h: _Hearing, a: Floats, total: float, rationality: float, lapse: float) -> float:
    """P(S <= total) for a teacher of this rationality, the others' reward as uncertain as it is."""
    chance, slope, noise = _choice(_shrunk(rationality * h.margin, rationality**2 * h.variance), lapse)
    each = 2 * a * slope * rationality / np.sqrt(1 + np.pi / 8 * rationality**2 * h.variance)
    together = h.factor @ each  # errors of theta move all his answers at once
    common = max(0.0, float(together @ together - each**2 @ h.variance))
    variance = float(4 * a**2 @ noise) + common
    if variance <= _NOTHING:
        return 1.0
    return float(special.ndtr((total - a @ (2 * chance - 1)) / np.sqrt(variance)))


def _trend(h: _Hearing, said: Floats, when: Floats) -> float:
    """Two-sided p of a trend over rounds in how far the answers follow the margins."""
    u = _shrunk(h.margin, h.variance)
    label = (said + 1) / 2
    own = _own_rationality(u, label)
    chance, slope, _ = _choice(own * u, 0.0)
    weight = u * u * slope
    if weight.sum() <= _NOTHING:
        return 1.0
    late = when - weight @ when / weight.sum()  # so that his own constant rationality does not matter
    together = h.factor @ (late * u * own * slope)
    variance = float(late**2 @ weight + together @ together)
    spread = float(np.ptp(when))
    if variance <= _NOTHING * spread**2 or spread == 0:
        return 1.0
    return 2 * float(special.ndtr(-abs(late * u @ (label - chance)) / np.sqrt(variance)))


def _own_rationality(u: Floats, label: Floats) -> float:
    """A teacher's rationality as his own answers say, prior N(1, 3^2): Newton inside a bracket."""
    low, high, b = -_LARGEST_OWN, _LARGEST_OWN, 1.0
    for _ in range(_NEWTON_STEPS):
        chance, slope, _ = _choice(b * u, 0.0)
        gradient = float(u @ (label - chance)) - (b - 1) / _OWN_SPREAD**2
        low, high = (b, high) if gradient > 0 else (low, b)
        before, b = b, b + gradient / (float(u * u @ slope) + _OWN_SPREAD**-2)
        if not low < b < high:
            b = (low + high) / 2
        if abs(b - before) < 1e-9 * (1 + abs(b)):
            break
    return b


# ----------------------------------------------------------------------------------------------- the verdict


def _correct(rows: Sequence[dict[str, Any]], key: str) -> None:
    """Holm's correction over the teachers tested, in place."""
    tested = [row for row in rows if row[key] is not None]
    largest = 0.0
    for k, row in enumerate(sorted(tested, key=lambda row: float(row[key]))):
        largest = max(largest, min(1.0, (len(tested) - k) * row[key]))
        row[key] = largest


def _flags(row: Mapping[str, Any], level: float) -> tuple[str, ...]:
    if row["p_opposes"] is None:
        return (FEW,)
    found = [test for test in FLAG_NAMES if row[f"p_{test}"] is not None and row[f"p_{test}"] <= level]
    return tuple(FLAG_NAMES[test] for test in found if test != "random" or row["p_coin"] > level)
