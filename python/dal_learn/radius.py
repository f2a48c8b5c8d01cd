"""How large the confidence set is: from the chance of missing the truth to a radius, and what it rests on.

A radius gamma makes the set {theta : |theta - theta_hat|_M <= gamma}, M the information matrix of the fit.
Three ways to one:

- *nominal*: quantiles of the normal distribution that the model itself claims;
- *bootstrap*: how far the estimate moves when whole conversations (or teachers) count for more or less;
- *calibrated*: nominal, times how much larger the errors on held-out labels are than the model claims.

Each adds sqrt(ridge) S, S >= |theta|, for the ridge's pull towards 0. All of them speak of the reward that
predicts the labels best; where even that one is not what people meant, no label shows it.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import scipy.linalg
import scipy.sparse
from numpy.typing import ArrayLike, NDArray
from scipy.special import chdtri, fdtri, ndtri, stdtrit

from dal_native import _validate
from dal_native._dispatch import single_threaded_blas

from ._labels import Asked, balanced_folds
from .reward import ConvergenceWarning, RewardModel

__all__ = [
    "Radius",
    "bootstrap_radius",
    "calibrated_radius",
    "confidence_radius",
    "nominal_radius",
    "posterior_reward_norm",
]

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

KINDS = ("ellipsoid", "policy", "sample")
METHODS = ("one_step", "refit")

#: Groups whose scores are kept apart in a bootstrap; beyond so many, some share their weights.
_MOST_GROUPS = 2**15
#: Weights drawn at a time.
_BLOCK_WEIGHTS = 2**22
_MOST_FOLDS = 1000

_SCOPE = {
    "ellipsoid": "for every policy at once, also one chosen from the labels",
    "policy": "for one policy fixed before the labels were seen",
    "sample": "for {count} completion(s) fixed before the labels were seen, whatever their dependence",
}
_BIAS = "; |theta| is at most {norm:.4g}"


@dataclass(frozen=True)
class Radius:
    """A radius and what it rests on; ``float()`` gives the number, and functions that want a radius take it.

    Parameters
    ----------
    value : float
        In units of |.|_M, M = `RewardModel.information_`.
    delta : float
        Chance left for the truth to lie outside.
    kind : {"ellipsoid", "policy", "sample"}
        What is covered at once.
    source : {"nominal", "bootstrap", "calibrated"}
    assumption : str
        What must hold, in one sentence.
    nominal : float
        The quantile that the model itself claims, before inflation and bias.
    inflation : float
        How many times that the radius is, bias aside; 1 where it is 0.
    reward_norm, bias : float
        S, and sqrt(ridge) S, which was added.
    n_boot, folds : int
        Draws of a bootstrap, folds of a calibration; 0 otherwise.

    Examples
    --------
    >>> radius = nominal_radius(RewardModel().fit([[1.0]], [1]), 0.1, reward_norm=1.0)
    >>> print(radius)
    delta 0.1 -> radius 2.645 (ellipsoid, nominal)
    >>> round(float(radius), 3)
    2.645
    """

    value: float
    delta: float
    kind: str
    source: str
    assumption: str
    nominal: float
    inflation: float = 1.0
    reward_norm: float = 0.0
    bias: float = 0.0
    n_boot: int = 0
    folds: int = 0

    def __float__(self) -> float:
        return self.value

    def __str__(self) -> str:
        times = "" if self.inflation == 1.0 else f", {self.inflation:.3g} times the nominal quantile"
        return f"delta {self.delta:g} -> radius {self.value:.4g} ({self.kind}, {self.source}{times})"


# ------------------------------------------------------------------------------------------------ nominal


def confidence_radius(
    d: int,
    delta: float,
    kind: str = "ellipsoid",
    ridge: float | None = None,
    reward_norm: float | None = None,
    count: int = 1,
) -> float:
    """Radius of the confidence set, in standard errors of the fit.

    Parameters
    ----------
    d : int
        Number of features.
    delta : float
        Probability, in (0, 1), that the truth may lie outside; at most 0.5 for "policy" and for one "sample".
    kind : {"ellipsoid", "policy", "sample"}
        "ellipsoid": sqrt(chi2_d(1 - delta)), holds for all policies at once, also for one chosen from the
        labels. "policy": the one-sided normal quantile, holds only for one policy fixed before the labels
        were seen. "sample": lower bounds of `count` single completions, all of them fixed before the labels
        were seen, hold together: the one-sided normal quantile at delta / count (Bonferroni: whatever their
        dependence), or the ellipsoid's radius where that is smaller.
    ridge, reward_norm : float, optional
        The ridge lambda inside M and a bound S >= |theta*|: adds sqrt(lambda) S, the bias of the ridge,
        without which coverage falls far below nominal while labels are few. Give both or neither.
    count : int
        Completions whose bounds hold together; for ``kind="sample"``.

    Returns
    -------
    float
        The radius, in units of |.|_M.

    Raises
    ------
    ValueError
        An argument is out of range, or only one of `ridge` and `reward_norm` is given.

    Notes
    -----
    Asymptotic in the number of labels, and unproved where the pairs were chosen adaptively.

    Examples
    --------
    >>> round(confidence_radius(2, 0.05), 4)
    2.4477
    >>> round(confidence_radius(2, 0.05, kind="policy"), 4)
    1.6449
    >>> [round(confidence_radius(8, 0.05, kind="sample", count=k), 4) for k in (1, 20, 10**6)]
    [1.6449, 2.807, 3.9379]
    """
    d = _validate.whole(d, "d", 1)
    if (ridge is None) != (reward_norm is None):
        raise ValueError("ridge and reward_norm must be given together; expected both or neither")
    radius = _quantile(d, *_level(delta, kind, count))
    if ridge is not None:
        ridge = _validate.number(ridge, "ridge", 0.0)
        radius += float(np.sqrt(ridge)) * _validate.number(reward_norm, "reward_norm", 0.0)
    return radius


def _level(delta: Any, kind: Any, count: Any = 1) -> tuple[float, str, int]:
    """Checked."""
    kind = _validate.one_of(kind, "kind", KINDS)
    count = _validate.whole(count, "count", 1)
    if count > 1 and kind != "sample":
        raise ValueError(f"count is {count} for kind {kind!r}; expected 1, or kind 'sample'")
    delta = _validate.number(delta, "delta")
    closed = kind == "policy" or (kind == "sample" and count == 1)
    largest = 0.5 if closed else 1.0
    if not 0.0 < delta <= largest or delta == 1.0:
        raise ValueError(
            f"delta is {delta:g}; expected a probability in (0, {largest:g}{']' if closed else ')'}"
        )
    return delta, kind, count


def _quantile(d: int, delta: float, kind: str, count: int, freedom: float = np.inf) -> float:
    """Of |error| where its scale is known, or estimated with so many degrees of freedom."""
    known = not np.isfinite(freedom)
    # the upper quantile of F(d, n) is 1 over the lower one of F(n, d), which keeps a small delta's digits
    whole = float(np.sqrt(chdtri(d, delta) if known else d / fdtri(freedom, d, delta)))
    if kind == "ellipsoid":
        return whole
    single = abs(float(ndtri(delta / count) if known else stdtrit(freedom, delta / count)))
    return single if kind == "policy" else min(single, whole)


def posterior_reward_norm(model: RewardModel) -> float:
    """The S of a radius where nobody knows one: theta's expected length under the posterior.

    S^2 = |theta_hat|^2 + trace of its covariance: d / ridge before any label, the estimate's own where there
    are many.

    Parameters
    ----------
    model : RewardModel
        Fitted.

    Returns
    -------
    float

    Examples
    --------
    >>> posterior_reward_norm(RewardModel(ridge=0.25).fit(np.zeros((0, 4)), []))
    4.0
    """
    return float(np.sqrt(model.coef_ @ model.coef_ + np.trace(model.coef_covariance())))


def nominal_radius(
    model: RewardModel,
    delta: float = 0.1,
    kind: str = "ellipsoid",
    *,
    count: int = 1,
    reward_norm: float | None = None,
) -> Radius:
    """The radius that a fitted model itself claims.

    Parameters
    ----------
    model : RewardModel
        Fitted.
    delta, kind, count
        As for `confidence_radius`.
    reward_norm : float, optional
        S >= |theta|; `posterior_reward_norm` by default, 0 leaves the ridge's bias out.

    Returns
    -------
    Radius

    Raises
    ------
    ValueError
        An argument is out of range, or the model is not fitted.

    Examples
    --------
    >>> model = RewardModel().fit([[1.0], [2.0]], [1, 1])
    >>> radius = nominal_radius(model, 0.05, "policy", reward_norm=0)
    >>> round(radius.value, 4), radius.assumption.split(",")[0]
    (1.6449, 'for one policy fixed before the labels were seen')
    """
    level, d = _level(delta, kind, count), _fitted(model)
    words = "the answers are independent and follow the model, labels being many"
    nominal = _quantile(d, *level)
    return _made(model, nominal, nominal, level, "nominal", words, reward_norm)


def _fitted(model: Any) -> int:
    """Number of features of a fitted model."""
    if not isinstance(model, RewardModel):
        raise ValueError(f"model is {type(model).__name__}; expected a fitted RewardModel")
    model._require_fitted()
    return int(model.n_features_in_)


def _made(
    model: RewardModel,
    nominal: float,
    found: float,
    level: tuple[float, str, int],
    source: str,
    words: str,
    reward_norm: float | None,
    **counts: int,
) -> Radius:
    """The quantile that was found, with the ridge's bias, and everything assumed in a sentence."""
    delta, kind, count = level
    given = reward_norm is not None
    norm = _validate.number(reward_norm, "reward_norm", 0.0) if given else posterior_reward_norm(model)
    bias = float(np.sqrt(model.ridge_)) * norm
    words += _BIAS.format(norm=norm) if norm > 0 else "; the ridge's pull towards 0 does not matter"
    return Radius(
        value=found + bias,
        delta=delta,
        kind=kind,
        source=source,
        assumption=f"{_SCOPE[kind].format(count=count)}, if {words}",
        nominal=nominal,
        inflation=found / nominal if nominal > 0 else 1.0,
        reward_norm=norm,
        bias=bias,
        **counts,
    )


# ------------------------------------------------------------------------------------------------ bootstrap


def bootstrap_radius(
    model: RewardModel,
    delta: float = 0.1,
    kind: str = "ellipsoid",
    *,
    features: ArrayLike | None = None,
    groups: str | ArrayLike = "conversation",
    method: str = "one_step",
    n_boot: int = 1000,
    seed: int = 0,
    reward_norm: float | None = None,
) -> Radius:
    """How far the estimate moves when groups of labels count for more or less: a multiplier bootstrap.

    Every group of labels gets a weight drawn from the standard exponential distribution; the radius is the
    1 - delta quantile of how far the estimate under such weights is from the estimate. It needs no answer to
    be independent of the others in its group, and no link or rationality to be right: it corrects for copied
    answers and for a model that misstates its own errors, and while labels are few it does not charge for
    directions that only the prior knows (those are the ridge's, see `reward_norm`).

    Parameters
    ----------
    model : RewardModel
        Fitted here, not loaded from a file; the X of its fit is read again.
    delta : float
        As for `confidence_radius`.
    kind : {"ellipsoid", "policy", "sample"}
        "ellipsoid": |theta_b - theta_hat|_M. "policy": v'(theta_b - theta_hat) / |v|_{M^-1} for one v = x(pi)
        - nu, one-sided. "sample": the largest of these over several v.
    features : array_like, (d,) for "policy", (k, d) for "sample"
        The v, none of them 0; not for "ellipsoid".
    groups : "conversation", "teacher", "label" or array_like of int, (T,)
        Labels that are weighted together. A conversation is a row of X, or a pair of completions: equal rows
        are one. Otherwise one number for each label handed to `fit`.
    method : {"one_step", "refit"}
        One Newton step from the estimate for each draw (one pass over the labels for all of them), or an
        exact warm-started fit for each.
    n_boot : int
        Draws, at least 20 and 1 / delta.
    seed : int
        The same seed gives the same bits.
    reward_norm : float, optional
        As for `nominal_radius`.

    Returns
    -------
    Radius

    Raises
    ------
    ValueError
        An argument does not fit, the model was loaded from a file, or there are no more groups than
        directions that the labels determine.

    Notes
    -----
    The weights have variance 1, so that for many groups the draws have the covariance of the sandwich. Scores
    at the estimate are smaller than at the truth: distances are multiplied by sqrt(G / (G - k)), G groups, k
    = d - ridge tr Cov(theta) directions determined by the labels. Beyond 32,768 groups some share weights.
    Asymptotic in the number of groups: ten teachers tell little about teachers.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> x = rng.standard_normal((400, 3))
    >>> y = rng.random(400) < 1 / (1 + np.exp(-x[:, 0]))
    >>> once = bootstrap_radius(RewardModel().fit(x, y), reward_norm=0)
    >>> copied = RewardModel().fit(np.tile(x, (4, 1)), np.tile(y, 4))
    >>> bool(0.8 < once.inflation < 1.2), bool(1.6 < bootstrap_radius(copied, reward_norm=0).inflation < 2.4)
    (True, True)
    """
    d = _fitted(model)
    kind = _validate.one_of(kind, "kind", KINDS)
    v = _directions(features, kind, d)
    level = _level(delta, kind, 1 if v is None or kind != "sample" else len(v))
    method = _validate.one_of(method, "method", METHODS)
    n_boot = _validate.whole(n_boot, "n_boot", 20)
    if n_boot * level[0] < 1.0 - 1e-9:  # the largest draw would stand for a quantile beyond it
        raise ValueError(f"delta is {level[0]:g}, too small for {n_boot} draws; expected at least 1 / n_boot")
    seed = _validate.whole(seed, "seed", 0)
    asked = _labels(model)
    group = _groups(asked, groups)
    with single_threaded_blas():
        size = int(group.max()) + 1
        determined = d - model.ridge_ * float(np.trace(model.coef_covariance()))
        if size <= determined:
            raise ValueError(
                f"groups holds {size} groups for {determined:.1f} directions that the labels determine; "
                "expected more"
            )
        rng = np.random.Generator(np.random.Philox(seed))
        weighted = group % _MOST_GROUPS, min(size, _MOST_GROUPS), n_boot, rng
        moved = _one_step(model, *weighted) if method == "one_step" else _refits(model, asked, *weighted)
        far = _distances(moved, v, scipy.linalg.cholesky(model.information_, lower=True))
    nominal = _quantile(d, *level)
    far *= np.sqrt(size / (size - determined))
    found = max(float(np.quantile(far, 1.0 - level[0], method="higher")), 0.0)
    words = (
        f"the groups of labels (here {size}) are independent and many, and theta is the reward that predicts "
        "such labels best"
    )
    return _made(model, nominal, found, level, "bootstrap", words, reward_norm, n_boot=n_boot)


def _directions(features: ArrayLike | None, kind: str, d: int) -> Floats | None:
    """What "policy" and "sample" look along, (k, d)."""
    if kind == "ellipsoid":
        if features is not None:
            raise ValueError("features is given for kind 'ellipsoid'; expected none, or another kind")
        return None
    if features is None:
        raise ValueError(f"features is missing; expected the directions of kind {kind!r}")
    v = np.atleast_2d(_validate.floats(features, "features", 1 if kind == "policy" else 2))
    if v.shape[1] != d or not len(v):
        raise ValueError(f"features has shape {np.shape(features)}; expected {d} features, at least one row")
    empty = ~v.any(axis=1)
    if empty.any():
        raise ValueError(f"features[{int(np.argmax(empty))}] is 0; expected directions other than 0")
    return v


def _distances(moved: Floats, v: Floats | None, lower: Floats) -> Floats:
    """|moved|_M, or the largest v'moved / |v|_{M^-1}: one for each draw, (n_boot,)."""
    if v is None:
        return np.asarray(np.linalg.norm(moved @ lower, axis=1))
    white = scipy.linalg.solve_triangular(lower, v.T, lower=True)
    return np.asarray((moved @ (v / np.linalg.norm(white, axis=0)[:, None]).T).max(axis=1))


def _one_step(
    model: RewardModel, group: Integers, size: int, n_boot: int, rng: np.random.Generator
) -> Floats:
    """sum over groups of (w_g - 1) times the group's pull on theta, (n_boot, d)."""
    pull, start = np.zeros((size, model.n_features_in_)), 0
    for rows in model._effects(model._joint()):
        here, which = np.unique(group[start : start + len(rows)], return_inverse=True)
        entries = (np.ones(len(rows)), (which.reshape(-1), np.arange(len(rows))))
        pull[here] += scipy.sparse.csr_array(entries, (len(here), len(rows))) @ rows
        start += len(rows)
    moved = np.empty((n_boot, pull.shape[1]))
    step = max(1, _BLOCK_WEIGHTS // size)
    for first in range(0, n_boot, step):
        count = min(step, n_boot - first)
        moved[first : first + count] = (rng.standard_exponential((count, size)) - 1.0) @ pull
    return moved


def _refits(
    model: RewardModel, asked: Asked, group: Integers, size: int, n_boot: int, rng: np.random.Generator
) -> Floats:
    """Exact fits under the weights, each begun at the estimate, less the estimate: (n_boot, d)."""
    moved = np.empty((n_boot, model.n_features_in_))
    early = 0
    for b in range(n_boot):
        weight = asked.weight * rng.standard_exponential(size)[group]
        again, converged = _fitted_again(model, replace(asked, weight=weight))
        moved[b] = again.coef_ - model.coef_
        early += not converged
    _say_early(early, n_boot, 4)
    return moved


# ---------------------------------------------------------------------------------------------- calibration


def calibrated_radius(
    model: RewardModel,
    delta: float = 0.1,
    kind: str = "ellipsoid",
    *,
    count: int = 1,
    groups: str | ArrayLike = "conversation",
    folds: int = 10,
    seed: int = 0,
    reward_norm: float | None = None,
) -> Radius:
    r"""The nominal radius, times how much larger errors on held-out labels are than the model claims.

    The model is fitted again without each fold of the labels, and the held-out labels have a score g_k there.
    With I_k their share of the information M of the whole fit, the model claims that g_k has mean 0 and
    covariance V_k = I_k + I_k (M - I_k)^-1 I_k: noise of the held-out labels, and error of the fit. So

        c^2 = sum_k g_k' M^-1 g_k / sum_k tr(M^-1 V_k)

    is 1 where the model is right and, for folds of one size, estimates |theta_hat - theta|_M^2 relative to
    what is claimed. The nominal quantile is multiplied by c, never by less than 1: a model that looks better
    than it claims has, as a rule, been lucky.

    Parameters
    ----------
    model : RewardModel
        Fitted here, not loaded from a file; the X of its fit is read again.
    delta, kind, count
        As for `confidence_radius`.
    groups
        Labels that share a fold, as for `bootstrap_radius`: what may be copied from each other must.
    folds : int
        From 2 to 1000; fewer where there are fewer groups. More of them cost more fits and depend less on
        `seed`.
    seed : int
        Which groups share a fold.
    reward_norm : float, optional
        As for `nominal_radius`.

    Returns
    -------
    Radius
        `inflation` is the factor on the nominal quantile.

    Raises
    ------
    ValueError
        An argument does not fit, the model was loaded from a file, or there are fewer than two groups.

    Notes
    -----
    c^2 is itself an estimate, with about nu = (sum tr M^-1 V_k)^2 / sum tr (M^-1 V_k)^2 degrees of freedom
    (Satterthwaite), no more than there are groups less the directions they determine; in place of chi-square
    and normal quantiles those of F and Student with nu degrees are taken, as for a linear regression whose
    noise is unknown. One factor serves all directions: errors that are large along a few only are spread over
    all. Held-out labels cannot show what is wrong in all of them alike: a bias that all teachers share, or a
    reward on another scale than theirs.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> x = rng.standard_normal((400, 3))
    >>> y = rng.random(400) < 1 / (1 + np.exp(-x[:, 0]))
    >>> once = calibrated_radius(RewardModel().fit(x, y), reward_norm=0)
    >>> copied = calibrated_radius(RewardModel().fit(np.tile(x, (4, 1)), np.tile(y, 4)), reward_norm=0)
    >>> bool(1 <= once.inflation < 1.5), bool(1.5 < copied.inflation < 3)
    (True, True)
    """
    level, d = _level(delta, kind, count), _fitted(model)
    folds = _validate.whole(folds, "folds", 2)
    if folds > _MOST_FOLDS:
        raise ValueError(f"folds is {folds}; expected at most {_MOST_FOLDS}")
    seed = _validate.whole(seed, "seed", 0)
    asked = _labels(model)
    group = _groups(asked, groups)
    size = int(group.max()) + 1
    if size < 2:
        raise ValueError("groups holds 1 group; expected at least two, to hold one out")
    fold = balanced_folds(group, folds, seed)
    with single_threaded_blas():
        lower = scipy.linalg.cholesky(model.information_, lower=True)
        most = 1.0 - model.ridge_ / float(np.linalg.norm(model.information_, 2))
        seen = claimed = squares = 0.0
        early = 0
        for k in range(int(fold.max()) + 1):
            train, test = (asked.some(np.flatnonzero(mask)) for mask in (fold != k, fold == k))
            again, converged = _fitted_again(model, train)
            early += not converged
            white = scipy.linalg.solve_triangular(lower, again._held_out_score(test), lower=True)
            half = scipy.linalg.solve_triangular(lower, model._information_of(test), lower=True)
            share = np.linalg.eigvalsh(scipy.linalg.solve_triangular(lower, half.T, lower=True))
            share = np.clip(share, 0.0, most)
            claim = share / (1.0 - share)  # eigenvalues of M^-1 V_k
            seen += float(white @ white)
            claimed += float(claim.sum())
            squares += float(claim @ claim)
        determined = d - model.ridge_ * float(np.trace(model.coef_covariance()))
    _say_early(early, int(fold.max()) + 1)
    nominal = _quantile(d, *level)
    freedom = max(1.0, min(claimed**2 / squares, size - determined)) if squares > 0 else 1.0
    scale = np.sqrt(seen / claimed) if claimed > 0 else 1.0
    found = max(nominal, float(scale) * _quantile(d, *level, freedom))
    words = (
        f"the groups of labels (here {size}) are independent, theta is the reward that predicts such labels "
        "best, and its error is larger than claimed by one factor in all directions"
    )
    return _made(model, nominal, found, level, "calibrated", words, reward_norm, folds=int(fold.max()) + 1)


# ------------------------------------------------------------------------------------ labels, and fits again


def _labels(model: RewardModel) -> Asked:
    """What the model was fitted to."""
    if model._loaded_covariance is not None:
        raise ValueError("model was loaded from a file without its labels; expected a model fitted here")
    return model._case.asked


def _groups(asked: Asked, groups: str | ArrayLike) -> Integers:
    """Group of each answer, 0 to G - 1 without gaps."""
    if not isinstance(groups, str):
        given = _validate.integers(groups, "groups", 1)
        _validate.length(given, asked.given, "groups", "label")
        key = given[asked.place]
    else:
        _validate.one_of(groups, "groups", ("conversation", "teacher", "label"))
        row = np.arange(asked.count) if asked.row is None or groups == "label" else asked.row
        key = asked.teacher if groups == "teacher" else row
    if not len(key):
        raise ValueError("model was fitted without labels; expected some")
    return np.asarray(np.unique(key, return_inverse=True)[1].reshape(-1))


def _fitted_again(model: RewardModel, asked: Asked) -> tuple[RewardModel, bool]:
    """The same model fitted to other answers, begun where it ended, and whether it converged."""
    again = RewardModel(model.ridge_, model.rationality_scale_, warm_start=True)
    others = set(RewardModel._parameter_names()) - {"ridge", "rationality_scale", "warm_start"}
    again.set_params(**{name: getattr(model, name) for name in others})
    again._case, again._fitted, again.coef_ = model._case, model._fitted, model.coef_
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        again._learn(asked, *model._case.beta.shape)
    return again, again.converged_


def _say_early(early: int, of: int, stacklevel: int = 3) -> None:
    if early:
        warnings.warn(f"{early} of {of} fits did not converge", ConvergenceWarning, stacklevel=stacklevel)
