"""Ridge and spread of rationalities by cross-validation, along warm-started paths."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dal_native import _validate as V

from ._fit import Fitted
from ._labels import Asked, balanced_folds
from .reward import ConvergenceWarning, RewardModel, _Case

__all__ = ["RewardModelCV"]

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


class RewardModelCV(RewardModel):
    """`RewardModel` whose `ridge` and `rationality_scale` are those that predict held-out labels best.

    Parameters
    ----------
    ridges, rationality_scales : array_like
        Values to try, above 0; every pair is tried. (`rationality_scales` does not matter where all
        rationalities are known or the method is "homogeneous": give one.)
    cv : int, default 5
        Folds, at least 2; fewer where there are fewer labels or groups.
    one_standard_error : bool, default False
        Take the strongest ridge, and with it the smallest scale, whose score is within one standard error of
        the best.
    seed : int, default 0
        Which labels share a fold.
    category_correlation, method, rationality, signed, lapse, ties, position_bias, drift, max_iter, tol
        As in `RewardModel`.

    Attributes
    ----------
    ridge_, rationality_scale_ : float
        Chosen.
    scores_, scores_error_ : ndarray, (ridges, scales)
        Held-out log likelihood per label (weights in) at the fitted rewards and rationalities, and its
        standard error over folds. Values are in the order given.
    fold_ : ndarray of int64, (T,)
        Fold of each label; -1 where its weight is 0.
    coef_, rationality_, ...
        Of a last fit to all labels at the chosen values, as in `RewardModel`.

    Notes
    -----
    Labels about one prompt, or from one conversation, tell about each other: put them in one fold by
    `groups`.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> x = rng.normal(size=(60, 3))
    >>> model = RewardModelCV(ridges=[0.1, 1e4], rationality_scales=[0.5]).fit(x, x[:, 0] > 0)
    >>> model.ridge_, model.scores_.shape
    (0.1, (2, 1))
    """

    scores_: Floats
    scores_error_: Floats
    fold_: Integers

    def __init__(
        self,
        ridges: ArrayLike = (0.01, 0.1, 1.0, 10.0, 100.0),
        rationality_scales: ArrayLike = (0.25, 0.5, 1.0),
        *,
        cv: int = 5,
        one_standard_error: bool = False,
        seed: int = 0,
        category_correlation: float = 0.5,
        method: str = "marginal",
        rationality: ArrayLike | None = None,
        signed: bool = False,
        lapse: float | str = 0.0,
        ties: bool = False,
        position_bias: float = 0.0,
        drift: float = 0.0,
        max_iter: int = 200,
        tol: float = 1e-6,
    ) -> None:
        self.ridges = ridges
        self.rationality_scales = rationality_scales
        self.cv = cv
        self.one_standard_error = one_standard_error
        self.seed = seed
        self.category_correlation = category_correlation
        self.method = method
        self.rationality = rationality
        self.signed = signed
        self.lapse = lapse
        self.ties = ties
        self.position_bias = position_bias
        self.drift = drift
        self.max_iter = max_iter
        self.tol = tol

    warm_start = False
    _groups: ArrayLike | None = None

    def fit(
        self,
        X: Any,
        y: ArrayLike,
        teacher: ArrayLike | None = None,
        category: ArrayLike | None = None,
        sample_weight: ArrayLike | None = None,
        n_teachers: int | None = None,
        n_categories: int | None = None,
        *,
        pairs: ArrayLike | None = None,
        side: ArrayLike | None = None,
        round: ArrayLike | None = None,
        groups: ArrayLike | None = None,
    ) -> RewardModelCV:
        """Choose ridge and scale, then fit to all labels.

        Parameters
        ----------
        X, y, teacher, category, sample_weight, n_teachers, n_categories, pairs, side, round
            As in `RewardModel.fit`.
        groups : array_like of int, (T,), optional
            Labels with the same number stay in one fold: of the same conversation or prompt.

        Returns
        -------
        RewardModelCV
            This one.

        Raises
        ------
        ValueError
            An argument or parameter does not fit, or there are fewer than two labels or groups.

        Warns
        -----
        ConvergenceWarning
            Fits stopped early.

        Examples
        --------
        >>> x, y = np.array([[1.0], [2.0], [-1.0], [-2.0]]), [1, 1, 0, 0]
        >>> model = RewardModelCV([0.1, 1.0], [0.5], cv=2).fit(x, y, groups=[0, 0, 1, 1])
        >>> sorted({(int(a), int(b)) for a, b in zip(model.fold_, [0, 0, 1, 1])}) in (
        ...     [(0, 0), (1, 1)],
        ...     [(0, 1), (1, 0)],
        ... )
        True
        """
        self._groups = groups
        try:
            super().fit(
                *(X, y, teacher, category, sample_weight, n_teachers, n_categories),
                pairs=pairs,
                side=side,
                round=round,
            )
        finally:
            del self._groups
        return self

    def fit_rankings(
        self,
        completions: ArrayLike,
        rankings: Sequence[ArrayLike],
        teacher: ArrayLike | None = None,
        category: ArrayLike | None = None,
        sample_weight: ArrayLike | None = None,
        n_teachers: int | None = None,
        n_categories: int | None = None,
        *,
        groups: ArrayLike | None = None,
    ) -> RewardModelCV:
        """Choose ridge and scale, then fit to all rankings.

        Parameters
        ----------
        completions, rankings, teacher, category, sample_weight, n_teachers, n_categories
            As in `RewardModel.fit_rankings`.
        groups : array_like of int, (R,), optional
            Rankings with the same number stay in one fold.

        Returns
        -------
        RewardModelCV
            This one.

        Raises
        ------
        ValueError
            An argument or parameter does not fit, or there are fewer than two rankings or groups.

        Examples
        --------
        >>> orders = [[0, 1, 2], [0, 2, 1], [0, 1, 2], [1, 0, 2]]
        >>> RewardModelCV([0.1, 1.0], [0.5], cv=2).fit_rankings(np.eye(3), orders).scores_.shape
        (2, 1)
        """
        self._groups = groups
        try:
            super().fit_rankings(
                completions, rankings, teacher, category, sample_weight, n_teachers, n_categories
            )
        finally:
            del self._groups
        return self

    def _check_priors(self) -> None:
        for name in ("ridges", "rationality_scales"):
            values = V.floats(getattr(self, name), name, 1)
            if not len(values) or values.min() <= 0:
                raise ValueError(f"{name} is {getattr(self, name)!r}; expected one or more numbers above 0")
        V.whole(self.cv, "cv", 2)
        V.whole(self.seed, "seed", 0)
        if not isinstance(self.one_standard_error, bool | np.bool_):
            raise ValueError(f"one_standard_error is {self.one_standard_error!r}; expected True or False")

    def _by_evidence(self) -> tuple[bool, bool]:
        return False, False

    def _fit_case(self, case: _Case, warm: bool = False) -> Fitted:
        if warm:  # another batch: at what was chosen
            return self._fit_at(case, self.ridge_, self.rationality_scale_, self._warm(case, True))
        ridges, scales = (V.floats(v, "values", 1) for v in (self.ridges, self.rationality_scales))
        fold = self._folds(case.asked)
        held = np.empty((fold.max() + 1, len(ridges), len(scales)))
        weight = np.empty(len(held))
        unfinished = 0
        for k in range(len(held)):
            train, test = (case.asked.some(np.flatnonzero(mask)) for mask in (fold != k, fold == k))
            for column, scale in enumerate(scales):
                scores, weight[k], early = self._path(train, test, case, ridges, scale)
                held[k, :, column], unfinished = scores, unfinished + early
        if unfinished:
            warnings.warn(
                f"{unfinished} of {held.size} fits of the cross-validation did not converge",
                ConvergenceWarning,
                stacklevel=5,
            )
        self.scores_ = np.tensordot(weight / weight.sum(), held / weight[:, None, None], 1)
        off = held / weight[:, None, None] - self.scores_
        self.scores_error_ = np.sqrt(np.mean(off**2, axis=0) / (len(held) - 1))
        ridge, scale = self._chosen(ridges, scales)
        return self._fit_at(case, ridge, scale, None)

    def _path(
        self, train: Asked, test: Asked, case: _Case, ridges: Floats, scale: float
    ) -> tuple[Floats, float, int]:
        """Held-out log likelihood for every ridge, its weight, and how many fits stopped early."""
        names = set(RewardModel._parameter_names()) - {"ridge", "rationality_scale", "warm_start"}
        shared = {name: getattr(self, name) for name in names}
        model = RewardModel(rationality_scale=float(scale), warm_start=True, **shared)
        scores, weight, early = np.empty(len(ridges)), 0.0, 0
        for at in np.argsort(-ridges, kind="stable"):
            model.set_params(ridge=float(ridges[at]))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvergenceWarning)
                model._learn(train, *case.beta.shape)
            scores[at], weight = model._held_out(test)
            early += not model.converged_
        return scores, weight, early

    def _folds(self, asked: Asked) -> Integers:
        """Fold of each answer; those of a group share it."""
        if self._groups is None:
            group = np.arange(asked.count)
        else:
            given = V.integers(self._groups, "groups", 1)
            V.length(given, asked.given, "groups", "label")
            group = np.unique(given[asked.place], return_inverse=True)[1]
        count = int(group.max(initial=-1)) + 1
        if count < 2:
            raise ValueError(
                f"cross-validation needs two labels or groups (n_samples = {count}); expected more"
            )
        fold = balanced_folds(group, int(self.cv), int(self.seed))
        self.fold_ = np.full(asked.given, -1)
        self.fold_[asked.place] = fold
        return fold

    def _chosen(self, ridges: Floats, scales: Floats) -> tuple[float, float]:
        best = np.unravel_index(int(np.argmax(self.scores_)), self.scores_.shape)
        if not self.one_standard_error:
            return float(ridges[best[0]]), float(scales[best[1]])
        enough = self.scores_[best] - self.scores_error_[best]
        pairs = itertools.product(range(len(ridges)), range(len(scales)))
        near = [(ridges[a], -scales[b]) for a, b in pairs if self.scores_[a, b] >= enough]
        ridge, scale = max(near)
        return float(ridge), float(-scale)
