"""The reward: a heterogeneous Bradley-Terry model, its rationalities fitted against the posterior of theta.

    P(b preferred | x, teacher j, category c) = lapse/2 + (1 - lapse) s(beta[j, c] x'theta + bias_j side)

with theta ~ N(0, I / ridge) and log beta ~ N(0, rationality_scale^2), what a teacher's categories have in
common included, and mean log beta = 0 over the cells (teacher, category) that have labels: (a theta, beta /
a) would fit equally well, so the scale has to be fixed. Fitting (theta, beta) jointly at their common maximum
believes a teacher the more, the more it is alone with an opinion; the default fit averages over the posterior
of theta instead.
"""

from __future__ import annotations

import inspect
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import scipy.linalg
import scipy.optimize
import scipy.sparse
import scipy.stats
from numpy.typing import ArrayLike, NDArray

import dal_native as dn
from dal_native import _validate as V
from dal_native._dispatch import single_threaded_blas

from ._answers import Answers, Choices, Information
from ._covariance import JointCovariance, prior_covariance
from ._files import FileFormatError
from ._fit import Fitted, Setting, fit_answers, refit_answers
from ._labels import Asked, Cells, cells_of, check_choices, check_labels, check_rankings, joined, sizes
from ._links import Lapsing, Link, Logistic, RaoKupper
from ._reward_file import HEAD, read_tensors, write_tensors
from ._teacher_blocks import TeacherBlocks

__all__ = ["ConvergenceWarning", "NotFittedError", "RewardModel"]

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

METHODS = ("marginal", "joint_map", "homogeneous")
_EVIDENCE_STEPS = 30  # updates of ridge and rationality_scale
_EVIDENCE = 0.01  # largest change of their logarithms at which the updates stop
_RIDGES, _SCALES = (1e-6, 1e8), (0.05, 3.0)
_START_LAPSE, _START_TIES = 0.02, 0.5
_CLIMB = 60  # steps towards the top of a profile, or down from it
_PROFILE = 1e-3  # how near the ends of a profile's interval are found, in standard deviations
#: Tensors of a saved model and the sizes of their axes: d features, m teachers, C categories, R rounds.
TENSORS = {
    HEAD: "1d",
    "rationality": "mC",
    "log_rationality_se": "mC",
    "information": "dd",
    "coef_covariance": "dd",
    "position_bias": "m",
    "position_bias_se": "m",
    "rationality_known": "mC",
    "rationality_path": "mCR",
    "rounds": "R",
}


class ConvergenceWarning(UserWarning):
    """A fit stopped before its gradient was short; the message says why.

    Examples
    --------
    >>> issubclass(ConvergenceWarning, UserWarning)
    True
    """


class NotFittedError(ValueError, AttributeError):
    """A question to a model that has not been fitted.

    Examples
    --------
    >>> try:
    ...     RewardModel().predict([[1.0]])
    ... except ValueError as error:
    ...     print(error)
    this RewardModel is not fitted yet; expected a call of fit first
    """


class RewardModel:
    """Linear reward from answers of teachers who differ in rationality; follows scikit-learn's conventions.

    Parameters
    ----------
    ridge : float or "evidence", default 1.0
        Prior precision of theta, above 0; "evidence" takes the one under which the labels are likeliest
        (marginal likelihood, see Notes).
    rationality_scale : float or "evidence", default 0.5
        Prior standard deviation of log|rationality|, above 0: how far teachers are expected to differ.
    category_correlation : float, default 0.5
        Share of that variance which all categories of a teacher have in common, in [0, 1): a teacher with few
        labels in a category is believed there as far as in others, and without any as far as the crowd.
    method : {"marginal", "joint_map", "homogeneous"}, default "marginal"
        "marginal" fits the rationalities against the posterior of theta (variational, Gaussian); `coef_` is
        the posterior's mean. "joint_map" takes the common maximum (teachers that were asked at high leverage
        confirm themselves: for comparison only). "homogeneous" holds every rationality at 1; `coef_` is the
        mode.
    rationality : array_like, (m, C) or (m,), optional
        Known rationalities, taken as they are, whatever the method; NaN where one is to be estimated. With
        all of them known `coef_` is the posterior mode. Known ones fix the scale: nothing is anchored then.
    signed : bool, default False
        Let rationalities be negative (adversarial teachers). Signs are turned one by one or together as long
        as the objective rises; of the two mirror images the one is kept in which most cells (teacher,
        category) are positive, a cell with labels of weight n counting n / (n + 5): a design asks the most
        of whoever is sharp, and that may be an adversary.
    lapse : float or "fit", default 0.0
        Share of answers given by a coin, in [0, 1); "fit" estimates one for the whole crowd, with the prior
        Beta(1, 10). It shows only where teachers are sure of themselves (|beta x'theta| well above 1), else
        it cannot be told from small rationalities; with a `ridge` that does not fit theta's size it takes up
        the misfit.
    ties : bool, default False
        Take a label of exactly 0.5 as a tie, a third outcome (Rao and Kupper, 1967), with one threshold for
        the crowd; otherwise it is half an answer for each side. Not together with lapses.
    position_bias : float, default 0.0
        Prior standard deviation of every teacher's bias towards the completion shown first (`side` of `fit`),
        on the scale of beta times margin; 0 for none.
    drift : float, default 0.0
        Standard deviation by which log|rationality| of a teacher walks from round to round (`round` of
        `fit`); `rationality_` is then that of the last round. 0 for none.
    warm_start : bool, default False
        Begin the next fit where the last one ended.
    max_iter : int, default 200
        Steps allowed; a fit that needs more warns with `ConvergenceWarning`.
    tol : float, default 1e-6
        Converged when `gradient_norm_` is at most this.

    Attributes
    ----------
    coef_ : ndarray, (d,)
        theta.
    rationality_ : ndarray, (m, C)
        Without labels, what the teacher's other categories suggest; 1 (the prior's mean) without any.
    rationality_se_ : ndarray, (m, C)
        Standard error of `rationality_`, by the delta method from the anchored information:
        |rationality| * standard error of its logarithm; 0 where the rationality is known or, as of a single
        labelled cell, fixed by the anchor.
    rationality_interval_ : ndarray, (m, C, 2)
        95 % interval, symmetric on the logarithmic scale; `rationality_profile` is better near zero.
    rounds_, rationality_path_ : ndarray, (R,) and (m, C, R)
        With drift: the rounds that have labels, and the rationalities then.
    position_bias_, position_bias_se_ : ndarray, (m,)
        Towards the side shown first; 0 where it is not estimated.
    lapse_, tie_threshold_ : float
        As given, or as fitted; `tie_threshold_` is 0 without ties.
    ridge_, rationality_scale_ : float
        As given, or as the evidence says.
    information_ : ndarray, (d, d)
        ridge I + sum of w x x' at (`coef_`, `rationality_`).
    converged_ : bool
    n_iter_ : int
    gradient_norm_ : float
        Length of the objective's gradient measured by the inverse information: how far the optimum still is,
        in posterior standard deviations.
    objective_, objective_path_ : float, ndarray
        The variational bound (or joint log posterior) at the end, and after every step.
    log_likelihood_ : float
        Of the labels at (`coef_`, `rationality_`), weights included.
    n_features_in_, n_teachers_, n_categories_ : int
    classes_ : ndarray
        0 (a preferred) and 1 (b preferred).

    Notes
    -----
    Labels in between 0 and 1 enter as that much of a 1 and the rest of a 0. Duplicates are independent
    answers. The order of the labels changes the fit by rounding errors only; the same input gives the same
    bits.

    Examples
    --------
    >>> x = np.array([[1.0, 0], [0, 1], [1, 1], [1, -1]])
    >>> model = RewardModel().fit(x, [1, 0, 1, 1], teacher=[0, 1, 0, 1])
    >>> model.predict([[2.0, 0.0]]).tolist(), model.rationality_.shape
    ([1], (2, 1))
    """

    coef_: Floats
    rationality_: Floats
    _matrix: Floats | None

    def __init__(
        self,
        ridge: float | str = 1.0,
        rationality_scale: float | str = 0.5,
        *,
        category_correlation: float = 0.5,
        method: str = "marginal",
        rationality: ArrayLike | None = None,
        signed: bool = False,
        lapse: float | str = 0.0,
        ties: bool = False,
        position_bias: float = 0.0,
        drift: float = 0.0,
        warm_start: bool = False,
        max_iter: int = 200,
        tol: float = 1e-6,
    ) -> None:
        self.ridge = ridge
        self.rationality_scale = rationality_scale
        self.category_correlation = category_correlation
        self.method = method
        self.rationality = rationality
        self.signed = signed
        self.lapse = lapse
        self.ties = ties
        self.position_bias = position_bias
        self.drift = drift
        self.warm_start = warm_start
        self.max_iter = max_iter
        self.tol = tol

    # --------------------------------------------------------------------------------- scikit-learn's habits

    @classmethod
    def _parameter_names(cls) -> list[str]:
        return sorted(name for name in inspect.signature(cls.__init__).parameters if name != "self")

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The constructor's arguments, as they were given.

        Parameters
        ----------
        deep : bool
            No effect: none of them is an estimator.

        Returns
        -------
        dict

        Examples
        --------
        >>> RewardModel(ridge=2.0).get_params()["ridge"]
        2.0
        """
        return {name: getattr(self, name) for name in self._parameter_names()}

    def set_params(self, **params: Any) -> RewardModel:
        """Change constructor arguments; they are looked at when fitting.

        Parameters
        ----------
        **params
            By name.

        Returns
        -------
        RewardModel
            This one.

        Raises
        ------
        ValueError
            A name is not one of them.

        Examples
        --------
        >>> RewardModel().set_params(ridge=3.0).ridge
        3.0
        """
        known = self._parameter_names()
        for name, value in params.items():
            if name not in known:
                raise ValueError(
                    f"{name!r} is no parameter of RewardModel, expected one of {', '.join(known)}"
                )
            setattr(self, name, value)
        return self

    def __repr__(self) -> str:
        defaults = inspect.signature(type(self).__init__).parameters
        given = [
            f"{name}={value!r}"
            for name, value in self.get_params().items()
            if not (value is defaults[name].default or np.array_equal(value, defaults[name].default))
        ]
        return f"{type(self).__name__}({', '.join(given)})"

    def __sklearn_tags__(self) -> Any:
        """What scikit-learn asks of its estimators; only it calls this."""
        from sklearn.utils import ClassifierTags, InputTags, Tags, TargetTags

        return Tags(
            estimator_type="classifier",
            target_tags=TargetTags(required=True),
            classifier_tags=ClassifierTags(multi_class=False, poor_score=True),
            input_tags=InputTags(),
        )

    def __sklearn_is_fitted__(self) -> bool:
        return "coef_" in vars(self)

    def _require_fitted(self) -> None:
        if "coef_" in vars(self):
            return
        words = f"this {type(self).__name__} is not fitted yet; expected a call of fit first"
        known = sys.modules.get("sklearn.exceptions")  # its users catch its own class
        raise (NotFittedError(words) if known is None else known.NotFittedError(words))

    # ------------------------------------------------------------------------------------------------ fitting

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
    ) -> RewardModel:
        """Fit theta and the rationalities to T labels.

        Parameters
        ----------
        X : array_like, (T, d), or Pool
            Difference phi(b) - phi(a) of each label; T may be 0 (then the prior comes out). float32 and
            float16 arrays are read as they are stored, and so are memory maps and pools of files. With
            `pairs`: completions, (N, d).
        y : array_like, (T,)
            1 (b preferred), 0 (a preferred) or anything between.
        teacher, category : array_like of int, (T,), optional
            Who answered, in which category; 0 by default.
        sample_weight : array_like, (T,), optional
            0 or more; a weight of 2 is two equal labels, of 0 none.
        n_teachers, n_categories : int, optional
            m and C when the labels do not reach the last of them.
        pairs : array_like of int, (T, 2), optional
            Completions (a, b) of each label, rows of X; differences are formed block by block and never
            stored.
        side : array_like of int, (T,), optional
            1 where b was shown first, -1 where a was, 0 where nobody knows; for `position_bias`.
        round : array_like of int, (T,), optional
            0 or more: when each label was given; for `drift`.

        Returns
        -------
        RewardModel
            This one.

        Raises
        ------
        ValueError
            An argument or parameter does not fit. (As `LinAlgError` when the ridge is too small for the size
            of the differences.)

        Warns
        -----
        ConvergenceWarning
            The fit stopped early; the message says why.

        Examples
        --------
        >>> RewardModel().fit(np.zeros((0, 2)), []).information_.tolist()
        [[1.0, 0.0], [0.0, 1.0]]
        """
        self._check_parameters()
        asked = check_choices(X, y, teacher, category, sample_weight, pairs, side, round)
        return self._learn(asked, n_teachers, n_categories)

    def fit_rankings(
        self,
        completions: ArrayLike,
        rankings: Sequence[ArrayLike],
        teacher: ArrayLike | None = None,
        category: ArrayLike | None = None,
        sample_weight: ArrayLike | None = None,
        n_teachers: int | None = None,
        n_categories: int | None = None,
    ) -> RewardModel:
        """Fit theta and the rationalities to R rankings of two or more completions (Plackett-Luce).

        A ranking is a choice of the best, then of the best of the rest, and so on; it is not split into
        pairs, whose answers would count as independent. With method "marginal" the expectation over the
        posterior of theta is a lower bound (Knowles and Minka, 2011), which two-item rankings do not share
        with `fit`.

        Parameters
        ----------
        completions : array_like, (N, d)
        rankings : sequence of array_like of int
            Rows of `completions`, best first, each at most once; of any lengths from 2.
        teacher, category : array_like of int, (R,), optional
        sample_weight : array_like, (R,), optional
        n_teachers, n_categories : int, optional
            As in `fit`.

        Returns
        -------
        RewardModel
            This one.

        Raises
        ------
        ValueError
            An argument or parameter does not fit; `lapse`, `ties`, `position_bias` and `drift` are for
            choices.

        Examples
        --------
        >>> model = RewardModel().fit_rankings(np.eye(3), [[2, 0, 1], [2, 1, 0]])
        >>> int(model.coef_.argmax())
        2
        """
        self._check_parameters()
        for name in ("lapse", "ties", "position_bias", "drift"):
            if getattr(self, name):
                raise ValueError(f"{name} is {getattr(self, name)!r}; expected 0 or False for rankings")
        asked = check_rankings(completions, rankings, teacher, category, sample_weight)
        return self._learn(asked, n_teachers, n_categories)

    def partial_fit(
        self,
        X: Any,
        y: ArrayLike,
        teacher: ArrayLike | None = None,
        category: ArrayLike | None = None,
        sample_weight: ArrayLike | None = None,
        n_teachers: int | None = None,
        n_categories: int | None = None,
        *,
        classes: ArrayLike | None = None,
        pairs: ArrayLike | None = None,
        side: ArrayLike | None = None,
        round: ArrayLike | None = None,
    ) -> RewardModel:
        """Learn from another batch beside all that was fitted before; earlier X is read again, not copied.

        With many labels of many features a small batch costs a few passes over the rows instead of a whole
        fit: how much older margins vary under the posterior is then left as it was, as long as the batches
        since the last whole fit determine less than 2 % of theta's directions (sum of weight times leverage,
        over d). `converged_` says that everything else is within `tol`, `gradient_norm_` how far that
        shortcut leaves it. Otherwise it is `fit` on everything, begun where the last fit ended.

        Parameters
        ----------
        X, y, teacher, category, sample_weight, n_teachers, n_categories, pairs, side, round
            The new labels, as in `fit`.
        classes : array_like, optional
            Not looked at: 0 and 1 are known. For scikit-learn's convention.

        Returns
        -------
        RewardModel
            This one.

        Raises
        ------
        ValueError
            An argument does not fit, or rankings or a file are what was fitted before.

        Examples
        --------
        >>> model = RewardModel().fit([[1.0], [2.0]], [1, 0])
        >>> len(model.partial_fit([[1.0]], [1]).objective_path_) > 0
        True
        """
        if "coef_" not in vars(self):
            return self.fit(
                X,
                y,
                teacher,
                category,
                sample_weight,
                n_teachers,
                n_categories,
                pairs=pairs,
                side=side,
                round=round,
            )
        if self._loaded_covariance is not None or self._case.asked.orders:
            raise ValueError(
                "partial_fit needs the labels of an earlier fit; expected a model fitted here to choices"
            )
        self._check_parameters()
        asked = joined(
            self._case.asked, check_choices(X, y, teacher, category, sample_weight, pairs, side, round)
        )
        m = max(self.n_teachers_, int(asked.teacher.max(initial=0)) + 1)
        kinds = max(self.n_categories_, int(asked.category.max(initial=0)) + 1)
        return self._learn(asked, n_teachers or m, n_categories or kinds, more=True)

    def _check_parameters(self) -> None:
        V.one_of(self.method, "method", METHODS)
        self._check_priors()
        if V.number(self.tol, "tol") <= 0:
            raise ValueError(f"tol is {self.tol!r}; expected a number above 0")
        if isinstance(self.lapse, str):
            V.one_of(self.lapse, "lapse", ("fit",))
        elif not 0 <= V.number(self.lapse, "lapse") < 1:
            raise ValueError(f'lapse is {self.lapse!r}; expected a share in [0, 1) or "fit"')
        if not 0 <= V.number(self.category_correlation, "category_correlation") < 1:
            raise ValueError(
                f"category_correlation is {self.category_correlation!r}; expected a share in [0, 1)"
            )
        for name in ("position_bias", "drift"):
            V.number(getattr(self, name), name, 0.0)
        V.whole(self.max_iter, "max_iter", 1)
        for name in ("signed", "ties", "warm_start"):
            if not isinstance(getattr(self, name), bool | np.bool_):
                raise ValueError(f"{name} is {getattr(self, name)!r}; expected True or False")
        if self.ties and self.lapse:
            raise ValueError(f"ties is True and lapse {self.lapse!r}; expected one of them, not both")

    def _check_priors(self) -> None:
        for name in ("ridge", "rationality_scale"):
            if isinstance(getattr(self, name), str):
                V.one_of(getattr(self, name), name, ("evidence",))
            elif V.number(getattr(self, name), name) <= 0:
                raise ValueError(
                    f'{name} is {getattr(self, name)!r}; expected a number above 0 or "evidence"'
                )

    def _known(self, n_categories: int) -> tuple[Floats | None, NDArray[np.bool_] | None]:
        """Known rationalities (m, C), 1 where they are not, and where they are."""
        if self.rationality is None:
            return None, None
        given = V.array(self.rationality, "rationality")
        if given.dtype.kind != "f" or not np.isnan(given).any():
            known = V.rationality(given, n_categories)
            return known, np.ones(known.shape, bool)
        unknown = np.isnan(given)
        known = V.rationality(np.where(unknown, 1.0, given), n_categories)
        unknown = V.rationality(unknown.astype(np.float64), n_categories) > 0
        return known, ~unknown

    def _given(self) -> NDArray[np.bool_]:
        """Which rationalities the constructor was told, (m, C)."""
        fixed = self._known(self.n_categories_)[1]
        return np.zeros(self.rationality_.shape, bool) if fixed is None else fixed

    def _learn(
        self, asked: Asked, n_teachers: int | None, n_categories: int | None, more: bool = False
    ) -> RewardModel:
        reached = int(asked.category.max(initial=0)) + 1
        known, fixed = self._known(reached if n_categories is None else n_categories)
        m, kinds = sizes(asked, known, n_teachers, n_categories)
        kinds = kinds if known is None else known.shape[1]
        V.within(asked.teacher, m, "teacher", "teachers")
        V.within(asked.category, kinds, "category", "categories")
        beta = np.ones((m, kinds)) if known is None else known
        if fixed is None:
            fixed = np.full((m, kinds), self.method == "homogeneous")
        cells = cells_of(asked, bool(self.drift), bool(self.position_bias))
        case = _Case(asked, cells, cells.answers(asked), beta, fixed)
        with single_threaded_blas():
            fitted = self._refit(case) if more else None
            self._store(case, self._fit_case(case, more) if fitted is None else fitted)
        fitted = self._fitted
        if not fitted.converged:
            warnings.warn(
                f"the fit did not converge: {fitted.reason}; the gradient is {fitted.gradient_norm:.1e} "
                f"posterior standard deviations long, expected at most tol = {self.tol:g}",
                ConvergenceWarning,
                stacklevel=3,
            )
        return self

    def _setting(self, case: _Case, ridge: float, scale: float) -> Setting:
        cells, free = case.cells, case.free
        blocks = TeacherBlocks.of(
            cells.teacher[free],
            cells.category[free],
            cells.round[free],
            cells.biased,
            scale=scale,
            correlation=float(self.category_correlation),
            drift=float(self.drift),
            position_bias=float(self.position_bias),
        )
        marginal = self.method == "marginal" and len(free) > 0
        return Setting(ridge, blocks, free, self._link(), marginal, bool(self.signed))

    def _link(self) -> Link:
        if self.ties:
            return RaoKupper(_START_TIES, free=True)
        if self.lapse == "fit":
            return Lapsing(_START_LAPSE, free=True)
        return Lapsing(float(self.lapse)) if self.lapse else Logistic()

    def _refit(self, case: _Case) -> Fitted | None:
        """A later batch taken in quickly; None where a whole fit is called for."""
        if (
            any(self._by_evidence())
            or self.signed
            or self._fitted.link.free
            or not isinstance(case.answers, Choices)
        ):
            return None
        if self._learnt_with != self._declared() or not case.knows_as(self._case):
            return None
        start = _carried_over(self._fitted, self._case, case, False)
        setting = self._setting(case, self.ridge_, self.rationality_scale_)
        with suppress(np.linalg.LinAlgError):  # with lapses: answers at odds with the fit so far
            return refit_answers(case.answers, setting, start, tol=float(self.tol))
        return None

    def _declared(self) -> tuple[Any, ...]:
        """The parameters that say what is fitted, known rationalities aside."""
        aside = ("rationality", "warm_start", "max_iter", "tol")
        return tuple(value for name, value in self.get_params().items() if name not in aside)

    def _by_evidence(self) -> tuple[bool, bool]:
        """Whether the labels choose the ridge and the scale."""
        return isinstance(self.ridge, str), isinstance(self.rationality_scale, str)

    def _fit_at(self, case: _Case, ridge: float, scale: float, start: Fitted | None) -> Fitted:
        self.ridge_, self.rationality_scale_ = ridge, scale
        return fit_answers(
            case.answers,
            self._setting(case, ridge, scale),
            case.rationality,
            max_iter=int(self.max_iter),
            tol=float(self.tol),
            start=start,
        )

    def _fit_case(self, case: _Case, warm: bool = False) -> Fitted:
        """Fit; where asked to, move ridge and scale until the labels are as likely as they can be."""
        ridge = 1.0 if isinstance(self.ridge, str) else float(self.ridge)
        scale = 0.5 if isinstance(self.rationality_scale, str) else float(self.rationality_scale)
        free = self._by_evidence()
        start = self._warm(case, warm or self.warm_start)
        for _ in range(_EVIDENCE_STEPS):
            start = self._fit_at(case, ridge, scale, start)
            if not any(free) or not start.converged or case.answers.total == 0:
                break
            better = _likelier(case, start, self._setting(case, ridge, scale), scale)
            before = np.log([ridge, scale])
            ridge, scale = (better[0] if free[0] else ridge), (better[1] if free[1] else scale)
            if np.abs(np.log([ridge, scale]) - before).max() < _EVIDENCE:
                break
        assert start is not None
        return start

    def _warm(self, case: _Case, warm: bool) -> Fitted | None:
        """The last fit, on this case's cells, if it is to be taken up."""
        last = vars(self).get("_fitted")
        if not warm or last is None or self.coef_.shape != (case.answers.rows.d,):
            return None
        return _carried_over(last, self._case, case, bool(self.signed))

    def _store(self, case: _Case, fitted: Fitted) -> None:
        """Fitted attributes, and what the standard errors need later."""
        self._case, self._fitted, self._setting_used = (
            case,
            fitted,
            self._setting(case, self.ridge_, self.rationality_scale_),
        )
        self._learnt_with = self._declared()
        self.coef_ = fitted.mean
        self.n_features_in_, (self.n_teachers_, self.n_categories_) = len(fitted.mean), case.beta.shape
        self.classes_ = np.array([0.0, 0.5, 1.0]) if self.ties else np.array([0, 1])
        self.position_bias_ = np.zeros(self.n_teachers_)
        self.position_bias_[case.cells.biased] = fitted.bias
        self.lapse_ = float(fitted.link.shape or 0.0) if isinstance(fitted.link, Lapsing) else 0.0
        self.tie_threshold_ = float(fitted.link.shape or 0.0) if isinstance(fitted.link, RaoKupper) else 0.0
        margin = case.answers.rows.margin(fitted.mean)
        at = margin, fitted.rationality, fitted.bias, fitted.link
        self._information = case.answers.information(*at)
        self._matrix: Floats | None = None
        none = case.answers.spread(None, False)
        fixed_link = fitted.link.held()
        self.log_likelihood_ = case.answers.evaluate(*at[:3], none, fixed_link).likelihood
        self.objective_, self.objective_path_ = fitted.bound, np.array(fitted.bounds)
        self.gradient_norm_, self.n_iter_ = fitted.gradient_norm, fitted.iterations
        self.converged_ = fitted.converged
        self._loaded_covariance = None
        self._joint_covariance: JointCovariance | None = None
        self._errors: Floats | None = None
        self._bias_errors: Floats | None = None
        labelled = np.unique(case.cells.round)
        self.rounds_ = labelled if self.drift and len(labelled) else np.zeros(1, np.int64)
        paths = [self._predicted_cells(int(r))[0] for r in self.rounds_]
        self.rationality_path_ = np.stack(paths, axis=-1)
        self.rationality_ = np.ascontiguousarray(self.rationality_path_[..., -1])

    def _held_out(self, asked: Asked) -> tuple[float, float]:
        """Log likelihood of other answers at (`coef_`, `rationality_`), and their weight."""
        answers, (margin, beta, bias, link) = self._at(asked)
        none = answers.spread(None, False)
        return answers.evaluate(margin, beta, bias, none, link).likelihood, float(asked.weight.sum())

    def _held_out_score(self, asked: Asked) -> Floats:
        """Score of other answers along theta, (d,)."""
        answers, at = self._at(asked)
        score, d = np.zeros(self.n_features_in_), self.n_features_in_
        for rows in answers.scores(*at, np.eye(d), np.zeros((answers.n_cells + answers.n_biases, d))):
            score += rows.sum(axis=0)
        return score

    def _information_of(self, asked: Asked) -> Floats:
        """What some answers add to `information_`, (d, d)."""
        answers, at = self._at(asked)
        return answers.gram(answers.information(*at).curvature, False)

    def _at(self, asked: Asked) -> tuple[Answers, tuple[Floats, Floats, Floats, Link]]:
        """Other answers, and where to evaluate them: margins, rationalities, biases, link."""
        cells = cells_of(asked, bool(self.drift), bool(self.position_bias))
        answers = cells.answers(asked)
        window = np.maximum(np.searchsorted(self.rounds_, cells.round, side="right") - 1, 0)
        beta = self.rationality_path_[cells.teacher, cells.category, window]
        bias = self.position_bias_[cells.biased]
        return answers, (answers.rows.margin(self.coef_), beta, bias, self._fitted.link.held())

    def _predicted_cells(self, when: int, errors: bool = False) -> tuple[Floats, Floats]:
        """Rationality of every (teacher, category) in round `when`, and standard errors of its logarithm."""
        case, cells = self._case, self._case.cells
        beta = np.where(case.fixed, case.beta, 1.0)
        scale, rho, drift = self.rationality_scale_, float(self.category_correlation), float(self.drift)
        log_se = np.where(case.fixed, 0.0, np.sqrt(scale**2 + drift**2 * when))
        free = case.free
        if not len(free):
            return beta, log_se
        value, sign = np.log(np.abs(self._fitted.rationality[free])), np.sign(self._fitted.rationality[free])
        teacher, category, window = cells.teacher[free], cells.category[free], cells.round[free]
        if rho == 0 and not drift:  # cells tell nothing about each other
            beta[teacher, category] = sign * np.exp(value)
            if errors:
                log_se[teacher, category] = np.sqrt(self._joint().variance()[: len(free)])
            return beta, log_se
        count = np.bincount(cells.of_answer, case.asked.weight, minlength=len(cells.teacher))[free]
        kinds = np.arange(case.beta.shape[1])
        now = np.full(len(kinds), when)
        for mine in np.split(np.arange(len(free)), np.flatnonzero(np.diff(teacher)) + 1):
            j, c, w = int(teacher[mine[0]]), category[mine], window[mine]
            own = prior_covariance(c, w, c, w, scale, rho, drift)
            across = prior_covariance(kinds, now, c, w, scale, rho, drift)
            pull = np.linalg.solve(own, across.T).T
            open_to = ~case.fixed[j]
            towards = np.where(count[mine] @ sign[mine] < 0, -1.0, 1.0)
            signs = np.full(len(kinds), towards)
            nearest = np.argsort(
                np.where(w <= when, w, -1 - w), kind="stable"
            )  # the last one until now, last
            signs[c[nearest]] = sign[mine][nearest]
            beta[j, open_to] = (signs * np.exp(pull @ value[mine]))[open_to]
            if errors:
                rest = prior_covariance(kinds, now, kinds, now, scale, rho, drift) - pull @ across.T
                rest += pull @ self._joint().corner(mine) @ pull.T
                log_se[j, open_to] = np.sqrt(np.maximum(np.diag(rest), 0.0))[open_to]
        return beta, log_se

    # --------------------------------------------------------------------------------------- standard errors

    @property
    def information_(self) -> Floats:
        """ridge I + sum of w x x' at (`coef_`, `rationality_`), (d, d); formed when it is first asked for."""
        self._require_fitted()
        if self._matrix is None:
            with single_threaded_blas():
                self._matrix = self._case.answers.gram(self._information.curvature, False)
            self._matrix[np.diag_indices(self.n_features_in_)] += self.ridge_
        return self._matrix

    def _log_errors(self) -> Floats:
        """Standard errors of log|rationality|, (m, C)."""
        if self._errors is None:
            with single_threaded_blas():
                self._errors = self._predicted_cells(int(self.rounds_[-1]), errors=True)[1]
        return self._errors

    def _joint(self) -> JointCovariance:
        if self._joint_covariance is None:
            self._joint_covariance = _joint_covariance(
                self._case, self._setting_used, self._information, self.information_
            )
        return self._joint_covariance

    @property
    def rationality_se_(self) -> Floats:
        """Standard error of `rationality_`, (m, C)."""
        self._require_fitted()
        return np.abs(self.rationality_) * self._log_errors()

    @property
    def rationality_interval_(self) -> Floats:
        """95 % interval of `rationality_`, (m, C, 2), lower end first."""
        self._require_fitted()
        spread = np.exp(_normal_quantile(0.95) * self._log_errors())
        ends = np.stack([self.rationality_ / spread, self.rationality_ * spread], axis=-1)
        return np.sort(ends, axis=-1)

    @property
    def position_bias_se_(self) -> Floats:
        """Standard error of `position_bias_`, (m,)."""
        self._require_fitted()
        if self._bias_errors is None:
            self._bias_errors = np.zeros(self.n_teachers_)
            if len(self._case.cells.biased):
                with single_threaded_blas():
                    variance = self._joint().variance()[len(self._case.free) :]
                self._bias_errors[self._case.cells.biased] = np.sqrt(variance)
        return self._bias_errors

    def coef_covariance(self, robust: bool = False) -> Floats:
        """Covariance of `coef_`, with the uncertainty of the estimated rationalities in it.

        Parameters
        ----------
        robust : bool, default False
            False: inverse of the anchored information's Schur complement. True: the sandwich, which does not
            trust the model (not for a model that was loaded from a file; it reads the X of `fit` again).

        Returns
        -------
        ndarray, (d, d)

        Raises
        ------
        ValueError
            `robust` without the labels.

        Examples
        --------
        >>> RewardModel(ridge=4.0).fit(np.zeros((0, 1)), []).coef_covariance().tolist()
        [[0.25]]
        """
        self._require_fitted()
        if self._loaded_covariance is not None:
            if robust:
                raise ValueError(
                    "robust needs the labels; expected a model fitted here, not loaded from a file"
                )
            return self._loaded_covariance.copy()
        with single_threaded_blas():
            joint = self._joint()
            return self._sandwich(joint) if robust else joint.top.copy()

    def _sandwich(self, joint: JointCovariance) -> Floats:
        """sum of s s' over the answers, s the score's effect on theta."""
        total = np.zeros((self.n_features_in_, self.n_features_in_))
        for effect in self._effects(joint):
            total += effect.T @ effect
        return total

    def _effects(self, joint: JointCovariance) -> Iterator[Floats]:
        """What each answer's score does to theta (one Newton step), in blocks of answers: (t, d)."""
        case, fitted = self._case, self._fitted
        psi = np.zeros((case.answers.n_cells + case.answers.n_biases, self.n_features_in_))
        psi[case.free] = joint.side[: len(case.free)]
        psi[case.answers.n_cells :] = joint.side[len(case.free) :]
        margin = case.answers.rows.margin(fitted.mean)
        link = fitted.link.held()
        yield from case.answers.scores(margin, fitted.rationality, fitted.bias, link, joint.top, psi)

    @property
    def coef_se_(self) -> Floats:
        """Standard error of `coef_`, (d,)."""
        return np.asarray(np.sqrt(np.diag(self.coef_covariance())))

    def reward_interval(self, features: ArrayLike, level: float = 0.95, robust: bool = False) -> Floats:
        """Interval of the reward x'theta of every row, with the uncertainty of the rationalities in it.

        For differences it is the interval of a margin. Rewards of single completions have no zero of their
        own: only intervals of differences mean something by themselves.

        Parameters
        ----------
        features : array_like, (k, d)
            Differences of completions (or completions).
        level : float
            In (0, 1).
        robust : bool
            By the sandwich covariance.

        Returns
        -------
        ndarray, (k, 2)
            x'theta -+ z sqrt(x' Cov x), z the normal quantile.

        Raises
        ------
        ValueError
            Wrong shape, not finite, or `level` out of range.

        Examples
        --------
        >>> model = RewardModel(ridge=4.0).fit(np.zeros((0, 1)), [])
        >>> model.reward_interval([[1.0]]).round(2).tolist()
        [[-0.98, 0.98]]
        """
        x = self._features(features, "features")
        z = _normal_quantile(V.number(level, "level", 0.0))
        covariance = self.coef_covariance(robust)
        sd = np.sqrt(np.maximum(np.einsum("ij,ij->i", x @ covariance, x), 0.0))
        middle = x @ self.coef_
        return np.stack([middle - z * sd, middle + z * sd], axis=1)

    def joint_information(self) -> Any:
        """Covariance of (theta, rationality), for the "nuisance" criterion of selection.

        Returns
        -------
        dal_native.JointInformation
            On the anchored scale, of the rationalities themselves, not of their logarithms. Cells without
            labels, and known ones, hold -1 and enter with the variance that `rationality_se_` says.

        Raises
        ------
        ValueError
            The model was loaded from a file, or its rationalities drift.

        Examples
        --------
        >>> model = RewardModel().fit([[1.0], [2.0]], [1, 0], teacher=[0, 1])
        >>> model.joint_information().cell.tolist()
        [[0], [1]]
        """
        self._require_fitted()
        if self._loaded_covariance is not None or self.drift:
            raise ValueError("joint_information needs a model fitted here without drift; expected one")
        case, free = self._case, self._case.free
        with single_threaded_blas():
            joint = self._joint()
            cell = np.full(case.beta.shape, -1, np.int64)
            cell[case.cells.teacher[free], case.cells.category[free]] = np.arange(len(free))
            beta = self.rationality_[case.cells.teacher[free], case.cells.category[free]]
            return dn.JointInformation(
                theta=joint.top.copy(),
                cross=joint.side[: len(free)].T * beta,
                rationality=joint.corner(np.arange(len(free))) * np.outer(beta, beta),
                cell=cell,
                prior_variance=self.rationality_se_**2,
            )

    def rationality_profile(
        self, teacher: int, category: int = 0, level: float = 0.95
    ) -> tuple[float, float]:
        """Interval of one rationality by its profile, which may reach 0 and below: for coins and adversaries.

        The set of values b such that, with this rationality held at b and everything else fitted again, the
        objective (without the prior of this rationality) stays within half a chi-square quantile of its top.
        The scale is that of the other cells, whose geometric mean stays where the fit has it.

        Parameters
        ----------
        teacher, category : int
            A labelled cell.
        level : float
            In (0, 1).

        Returns
        -------
        lower, upper : float

        Raises
        ------
        ValueError
            The cell has no labels, is known, or is the only one; or the model was loaded from a file, or
            drifts.

        Examples
        --------
        >>> x, y, j = [[1.0], [2.0], [1.0], [2.0]] * 3, [1, 1, 1, 0] * 3, [0, 0, 1, 1] * 3
        >>> low, high = RewardModel().fit(x, y, j).rationality_profile(1)
        >>> low < 0 < high
        True
        """
        self._require_fitted()
        if self._loaded_covariance is not None or self.drift:
            raise ValueError("rationality_profile needs a model fitted here without drift; expected one")
        z = _normal_quantile(V.number(level, "level", 0.0))
        cells = self._case.cells
        found = np.flatnonzero((cells.teacher == teacher) & (cells.category == category))
        free = self._case.free
        alone = len(free) == 1 and len(cells.teacher) == 1  # then the anchor holds it at 1
        if not len(found) or found[0] not in free or alone:
            raise ValueError(
                f"teacher {teacher!r} in category {category!r} is no estimated cell beside others; expected "
                "one with labels"
            )
        with single_threaded_blas():
            profile = _Profile(self, int(found[0]))
            return profile.end(z, -1.0), profile.end(z, 1.0)

    # --------------------------------------------------------------------------------------------- predicting

    def _features(self, values: ArrayLike, name: str) -> Floats:
        self._require_fitted()
        if scipy.sparse.issparse(values):
            raise ValueError(f"{name} is a sparse matrix; expected a dense array")
        if isinstance(values, dn.Pool):
            values = values.take(np.arange(len(values)))
        x = V.floats(values, name, 2)
        if x.shape[1] != self.n_features_in_:
            raise ValueError(
                f"{name} has {x.shape[1]} features, but {type(self).__name__} is expecting "
                f"{self.n_features_in_} features as input"
            )
        return x

    def reward(self, features: ArrayLike) -> Floats:
        """Reward phi'theta of completions (or margin of differences).

        Parameters
        ----------
        features : array_like, (k, d)

        Returns
        -------
        ndarray, (k,)

        Raises
        ------
        ValueError
            Wrong shape, or not finite.

        Examples
        --------
        >>> RewardModel().fit([[1.0]], [0]).reward([[0.0]]).tolist()
        [0.0]
        """
        return self._features(features, "features") @ self.coef_

    def lower_bound(self, features: ArrayLike, radius: float, reference: ArrayLike | None = None) -> Floats:
        """Pointwise pessimistic reward (phi - nu)'theta - radius * |phi - nu|_{M^-1}, M the information.

        Parameters
        ----------
        features : array_like, (k, d)
            Completions.
        radius : float
            0 or more; see `confidence_radius`.
        reference : array_like, (d,), optional
            nu; 0 by default. Labels of pairs determine differences only, so nu matters.

        Returns
        -------
        ndarray, (k,)

        Raises
        ------
        ValueError
            Wrong shape, not finite, or a negative radius.

        Examples
        --------
        >>> RewardModel(ridge=4.0).fit(np.zeros((0, 1)), []).lower_bound([[1.0]], radius=2.0).tolist()
        [-1.0]
        """
        away = self._features(features, "features")
        radius = V.number(radius, "radius", 0.0)
        if reference is not None:
            away = away - V.reward(reference, self.n_features_in_)
        lower = scipy.linalg.cholesky(self.information_, lower=True)
        white = scipy.linalg.solve_triangular(lower, away.T, lower=True)
        norm = np.sqrt(np.einsum("ij,ij->j", white, white))
        return np.asarray(away @ self.coef_ - radius * norm)

    def decision_function(self, X: ArrayLike) -> Floats:
        """Margin x'theta of differences: positive where b is expected to be better.

        Parameters
        ----------
        X : array_like, (k, d)

        Returns
        -------
        ndarray, (k,)

        Examples
        --------
        >>> RewardModel().fit([[1.0]], [1]).decision_function([[2.0]])[0] > 0
        np.True_
        """
        return self._features(X, "X") @ self.coef_

    def predict_proba(
        self,
        X: ArrayLike,
        teacher: ArrayLike | None = None,
        category: ArrayLike | None = None,
        side: ArrayLike | None = None,
    ) -> Floats:
        """Chances of the outcomes.

        Parameters
        ----------
        X : array_like, (k, d)
            Differences.
        teacher : array_like of int, (k,), optional
            Who is asked; by default a teacher of rationality 1 (the geometric mean) without position bias.
        category : array_like of int, (k,), optional
            May be left out when there is one category only, or no teacher.
        side : array_like of int, (k,), optional
            1 where b is shown first, -1 where a is, 0 unknown.

        Returns
        -------
        ndarray, (k, 2), or (k, 3) with ties
            In the order of `classes_`: P(a preferred), P(tie) if ties are modelled, P(b preferred); lapses
            included.

        Raises
        ------
        ValueError
            A shape or an index does not fit.

        Examples
        --------
        >>> RewardModel().fit([[1.0]], [1]).predict_proba([[0.0]]).tolist()
        [[0.5, 0.5]]
        """
        t = self._strength(self._features(X, "X") @ self.coef_, teacher, category, side)
        if self.ties:
            a, b = (dn.choice_probability(sign * t - self.tie_threshold_, 1.0) for sign in (-1, 1))
            return np.stack([a, np.expm1(2 * self.tie_threshold_) * a * b, b], axis=1)
        chance = np.stack([dn.choice_probability(-t, 1.0), dn.choice_probability(t, 1.0)], axis=1)
        return self.lapse_ / 2 + (1 - self.lapse_) * chance

    def _strength(
        self,
        margin: Floats,
        teacher: ArrayLike | None,
        category: ArrayLike | None,
        side: ArrayLike | None = None,
    ) -> Floats:
        """t = beta u + bias side of every row."""
        count = len(margin)
        if teacher is None:
            return margin
        if category is None and self.n_categories_ > 1:
            raise ValueError(f"category is missing; expected one of {self.n_categories_} for each row")
        j = V.integers(teacher, "teacher", 1)
        c = np.zeros(count, np.int64) if category is None else V.integers(category, "category", 1)
        V.length(j, count, "teacher", "row of X")
        V.length(c, count, "category", "row of X")
        V.within(j, self.n_teachers_, "teacher", "teachers")
        V.within(c, self.n_categories_, "category", "categories")
        t = self.rationality_[j, c] * margin
        if side is None:
            return t
        shown = V.integers(side, "side", 1)
        V.length(shown, count, "side", "row of X")
        return t + self.position_bias_[j] * shown

    def predict(
        self, X: ArrayLike, teacher: ArrayLike | None = None, category: ArrayLike | None = None
    ) -> NDArray[Any]:
        """The likeliest answer: 1 where b, 0 where a (or neither, unless ties are modelled: then 0.5).

        Parameters
        ----------
        X, teacher, category
            As in `predict_proba`.

        Returns
        -------
        ndarray, (k,)

        Examples
        --------
        >>> RewardModel().fit([[1.0]], [1]).predict([[3.0], [-3.0], [0.0]]).tolist()
        [1, 0, 0]
        """
        if self.ties:
            return np.asarray(self.classes_[np.argmax(self.predict_proba(X, teacher, category), axis=1)])
        u = self._features(X, "X") @ self.coef_
        return (self._strength(u, teacher, category) > 0).astype(np.int64)

    def score(
        self,
        X: ArrayLike,
        y: ArrayLike,
        teacher: ArrayLike | None = None,
        category: ArrayLike | None = None,
        sample_weight: ArrayLike | None = None,
    ) -> float:
        """Share of labels on the side that the model expects.

        Parameters
        ----------
        X, teacher, category
            As in `predict_proba`.
        y : array_like, (k,)
            Labels in [0, 1]. Exactly 0.5 (a tie) does not count; above it means b.
        sample_weight : array_like, (k,), optional
            0 or more.

        Returns
        -------
        float
            A margin of exactly 0 counts as half right.

        Raises
        ------
        ValueError
            No label counts, or a shape or number does not fit.

        Examples
        --------
        >>> RewardModel().fit([[1.0]], [1]).score([[1.0], [2.0], [5.0]], [1, 0, 0.5])
        0.5
        """
        x = self._features(X, "X")
        label, weight = check_labels(y, sample_weight, len(x), "row of X")
        t = self._strength(x @ self.coef_, teacher, category)
        weight = weight * (label != 0.5)
        if weight.sum() == 0:
            raise ValueError("y holds no label other than ties with a weight above 0; expected at least one")
        right = np.where(t == 0, 0.5, (t > 0) == (label > 0.5))
        return float(weight @ right / weight.sum())

    # -------------------------------------------------------------------------------------------------- files

    def save(self, path: str | os.PathLike[str], encoder: str | None = None) -> None:
        """Write the fitted model as safetensors with JSON metadata; no pickle, never half-written.

        The labels are not stored.

        Parameters
        ----------
        path : str or path
        encoder : str, optional
            Fingerprint of the encoder that made the features.

        Raises
        ------
        ValueError
            The model is not fitted.

        Examples
        --------
        >>> import tempfile, pathlib
        >>> target = pathlib.Path(tempfile.mkdtemp()) / "reward.safetensors"
        >>> RewardModel().fit([[1.0]], [1]).save(target, encoder="abc")
        >>> RewardModel.load(target).encoder_
        'abc'
        """
        self._require_fitted()
        parameters = {name: value for name, value in self.get_params().items() if name != "rationality"}
        tensors = {
            HEAD: self.coef_[None, :],
            "rationality": self.rationality_,
            "log_rationality_se": self._log_errors(),
            "information": self.information_,
            "coef_covariance": self.coef_covariance(),
            "position_bias": self.position_bias_,
            "position_bias_se": self.position_bias_se_,
            "rationality_known": self._given().astype(np.float64),
            "rationality_path": self.rationality_path_,
            "rounds": self.rounds_.astype(np.float64),
        }
        facts = {
            "lapse": float(self.lapse_),
            "tie_threshold": float(self.tie_threshold_),
            "ridge": float(self.ridge_),
            "rationality_scale": float(self.rationality_scale_),
            "parameters": {name: _plain(value) for name, value in parameters.items()},
            "converged": bool(self.converged_),
            "iterations": int(self.n_iter_),
            "gradient_norm": float(self.gradient_norm_),
            "objective": float(self.objective_),
            "log_likelihood": float(self.log_likelihood_),
            "encoder": encoder if encoder is not None else getattr(self, "encoder_", None),
        }
        write_tensors(path, tensors, facts)

    @classmethod
    def load(cls, path: str | os.PathLike[str], encoder: str | None = None) -> RewardModel:
        """Read a model that `save` wrote.

        Parameters
        ----------
        path : str or path
        encoder : str, optional
            Fingerprint of the encoder in use: a model made with another one is refused.

        Returns
        -------
        RewardModel
            Ready to predict; `encoder_` is the stored fingerprint or None.

        Raises
        ------
        ValueError
            Not such a file, damaged, from a newer version, or made with another encoder.

        Examples
        --------
        >>> import tempfile, pathlib
        >>> target = pathlib.Path(tempfile.mkdtemp()) / "reward.safetensors"
        >>> RewardModel(ridge=2.0).fit([[1.0]], [1]).save(target)
        >>> RewardModel.load(target).ridge
        2.0
        """
        tensors, facts = read_tensors(path)
        _check_tensors(path, tensors)
        stored = facts.get("encoder")
        if not (stored is None or isinstance(stored, str)):
            raise FileFormatError(path, None, "encoder is not a text")
        if encoder is not None and stored != encoder:
            raise FileFormatError(
                path,
                None,
                f"made with encoder {stored!r}, expected {encoder!r}: the features would not mean the same",
            )
        parameters = facts.get("parameters")
        known = set(cls._parameter_names()) - {"rationality"}
        if not isinstance(parameters, dict) or set(parameters) != known:
            raise FileFormatError(path, None, f"parameters are not {', '.join(sorted(known))}")
        model = cls(**parameters)
        if tensors["rationality_known"].any():
            model.rationality = np.where(tensors["rationality_known"] == 1, tensors["rationality"], np.nan)
        try:
            model._check_parameters()
            model._restore(tensors, facts)
        except (KeyError, TypeError, ValueError) as error:
            raise FileFormatError(path, None, f"its metadata does not fit ({error})") from None
        model.encoder_ = stored
        return model

    encoder_: str | None

    def _restore(self, tensors: dict[str, Floats], facts: dict[str, Any]) -> None:
        self.coef_, self.rationality_ = tensors[HEAD][0], tensors["rationality"]
        self._matrix = tensors["information"]
        self.n_features_in_, (self.n_teachers_, self.n_categories_) = len(self.coef_), self.rationality_.shape
        self.classes_ = np.array([0.0, 0.5, 1.0]) if self.ties else np.array([0, 1])
        self.rounds_, self.rationality_path_ = tensors["rounds"].astype(np.int64), tensors["rationality_path"]
        self._errors, self._loaded_covariance = tensors["log_rationality_se"], tensors["coef_covariance"]
        self.position_bias_, self._bias_errors = tensors["position_bias"], tensors["position_bias_se"]
        self.lapse_ = V.number(facts["lapse"], "lapse", 0.0)
        self.tie_threshold_ = V.number(facts["tie_threshold"], "tie_threshold", 0.0)
        self.ridge_ = V.number(facts["ridge"], "ridge", 0.0)
        self.rationality_scale_ = V.number(facts["rationality_scale"], "rationality_scale", 0.0)
        self.converged_, self.n_iter_ = (
            facts["converged"] is True,
            V.whole(facts["iterations"], "iterations", 0),
        )
        self.gradient_norm_ = V.number(facts["gradient_norm"], "gradient_norm", 0.0)
        self.objective_ = V.number(facts["objective"], "objective")
        self.log_likelihood_ = V.number(facts["log_likelihood"], "log_likelihood")

    _case: _Case
    _fitted: Fitted
    _learnt_with: tuple[Any, ...]
    _loaded_covariance: Floats | None = None


# --------------------------------------------------------------------------------------------------- files


def _check_tensors(path: str | os.PathLike[str], tensors: dict[str, Floats]) -> None:
    if set(tensors) != set(TENSORS):
        raise FileFormatError(path, None, f"tensors are {sorted(tensors)}, expected {sorted(TENSORS)}")
    table, rounds = tensors["rationality"].shape, tensors["rounds"].shape
    table, rounds = table if len(table) == 2 and min(table) else (1, 1), rounds if len(rounds) == 1 else (1,)
    sizes = {"d": tensors[HEAD].size, "m": table[0], "C": table[1], "R": rounds[0], "1": 1}
    for name, axes in TENSORS.items():
        expected = tuple(sizes[axis] for axis in axes)
        if tensors[name].shape != expected or not min(expected):
            raise FileFormatError(
                path, None, f"tensor {name!r} has shape {tensors[name].shape}, expected {expected}"
            )
    for name in ("log_rationality_se", "position_bias_se", "rounds"):
        if (tensors[name] < 0).any():
            raise FileFormatError(path, None, f"tensor {name!r} holds a negative number")
    if not np.isin(tensors["rationality_known"], (0, 1)).all():
        raise FileFormatError(path, None, "tensor 'rationality_known' holds a number other than 0 and 1")
    try:
        scipy.linalg.cholesky(tensors["information"], lower=True)
    except np.linalg.LinAlgError:
        raise FileFormatError(path, None, "tensor 'information' is not positive definite") from None


def _plain(value: Any) -> Any:
    """NumPy's scalars and arrays as Python's own, which JSON knows."""
    return value.tolist() if isinstance(value, np.generic | np.ndarray) else value


# ---------------------------------------------------------------------------------------------------- algebra


@dataclass
class _Case:
    """One set of answers, ready to fit.

    Parameters
    ----------
    asked : Asked
    cells : Cells
    answers : Answers
    beta : ndarray, (m, C)
        Known rationalities, 1 elsewhere.
    fixed : ndarray of bool, (m, C)
        Where they are known.
    """

    asked: Asked
    cells: Cells
    answers: Answers
    beta: Floats
    fixed: NDArray[np.bool_]

    @property
    def free(self) -> Integers:
        """Labelled cells whose rationality is estimated."""
        return np.flatnonzero(~self.fixed[self.cells.teacher, self.cells.category])

    @property
    def rationality(self) -> Floats:
        """Of every labelled cell, (K,)."""
        return self.beta[self.cells.teacher, self.cells.category]

    def knows_as(self, before: _Case) -> bool:
        """Whether what is known here is what an earlier case, perhaps of fewer cells, knew."""
        old = tuple(slice(size) for size in before.beta.shape)
        same = np.array_equal(self.fixed[old], before.fixed)
        return same and np.array_equal(self.beta[old], before.beta)


def _carried_over(last: Fitted, before: _Case, case: _Case, signed: bool) -> Fitted:
    """An earlier fit on the cells and teachers of another case; new ones begin at the prior's mean."""
    keys = zip(before.cells.teacher, before.cells.category, before.cells.round, strict=True)
    earlier = dict(zip(keys, last.rationality, strict=True))
    keys = zip(case.cells.teacher, case.cells.category, case.cells.round, strict=True)
    beta, free = case.rationality, case.free
    found = np.array([earlier.get(key, 1.0) for key in keys])[free]
    beta[free] = np.where(found == 0, 1.0, found if signed else np.abs(found))
    bias = np.zeros(len(case.cells.biased))
    _, here, there = np.intersect1d(case.cells.biased, before.cells.biased, return_indices=True)
    if len(last.bias):
        bias[here] = last.bias[there]
    return replace(last, rationality=beta, bias=bias)


def _anchor(case: _Case, setting: Setting) -> Floats:
    """Ones for the logarithms whose sum is held at 0: all, unless a known rationality fixes the scale."""
    return setting.blocks.anchor(len(case.free) == case.answers.n_cells)


def _joint_covariance(
    case: _Case, setting: Setting, information: Information, matrix: Floats
) -> JointCovariance:
    blocks, free = setting.blocks, case.free
    cells, biases = case.answers.cross(
        information.cross if len(free) else np.zeros(0), information.bias_cross
    )
    cross = np.concatenate([cells[free] if len(free) else cells, biases])
    coupling = information.coupling[free] if len(information.coupling) else np.zeros(0)
    partner = blocks.partner if len(coupling) else np.zeros(0, np.int64)
    own = blocks.factor(np.concatenate([information.cells[free], information.biases]), coupling, partner)
    return JointCovariance(matrix, cross, own, _anchor(case, setting))


def _likelier(case: _Case, fitted: Fitted, setting: Setting, scale: float) -> tuple[float, float]:
    """Ridge and rationality scale that make the labels likelier, by MacKay's fixed point.

    With g = d - ridge tr Cov(theta), the number of directions that the labels determine, ridge = g /
    |theta|^2; with R = Cov(b) / scale^2 a priori and k = K - tr(R^-1 Cov(b)) / scale^2, scale^2 = b'R^-1 b /
    k.

    D. J. C. MacKay, *Bayesian interpolation*, Neural Computation 4 (1992).
    """
    margin = case.answers.rows.margin(fitted.mean)
    information = case.answers.information(margin, fitted.rationality, fitted.bias, fitted.link)
    matrix = case.answers.gram(information.curvature, False)
    matrix[np.diag_indices(len(matrix))] += setting.ridge
    joint = _joint_covariance(case, setting, information, matrix)
    determined = len(matrix) - setting.ridge * float(np.trace(joint.top))
    size = float(fitted.mean @ fitted.mean)
    ridge = setting.ridge if size == 0 else float(np.clip(determined / size, *_RIDGES))
    k = len(case.free)
    if k < 2:
        return ridge, scale
    b = np.zeros(setting.blocks.size)
    b[:k] = np.log(np.abs(fitted.rationality[case.free]))
    quadratic = float(b @ setting.blocks.applied(b)) * scale**2
    prior = setting.blocks.prior[setting.blocks.block[:k], setting.blocks.slot[:k], setting.blocks.slot[:k]]
    spent = float(
        prior @ joint.variance()[:k]
    )  # the diagonal of R^-1 Cov(b): exact where cells are independent
    told = max(k - spent, 1e-3 * k)
    return ridge, float(np.clip(np.sqrt(quadratic / told), *_SCALES))


class _Profile:
    """The objective as one rationality is moved, everything else fitted again each time."""

    def __init__(self, model: RewardModel, cell: int) -> None:
        self.model, self.case, self.cell = model, model._case, cell
        self.last = model._fitted
        self.anchored = bool(_anchor(self.case, model._setting_used).any())
        teacher, category = self.case.cells.teacher[cell], self.case.cells.category[cell]
        start = float(model._fitted.rationality[cell])
        self.step = max(abs(start), 0.1) * max(float(model._log_errors()[teacher, category]), 1e-3)
        self.best, self.top = self._peak(start)

    def __call__(self, value: float) -> float:
        fixed, beta = self.case.fixed.copy(), self.case.beta.copy()
        at = self.case.cells.teacher[self.cell], self.case.cells.category[self.cell]
        fixed[at], beta[at] = True, value
        case = replace(self.case, fixed=fixed, beta=beta)
        setting = self.model._setting(case, self.model.ridge_, self.model.rationality_scale_)
        setting = replace(setting, signed=False, anchored=self.anchored)
        rationality = self.last.rationality.copy()
        rationality[self.cell] = value
        self.last = fit_answers(
            case.answers,
            setting,
            rationality,
            max_iter=int(self.model.max_iter),
            tol=max(float(self.model.tol), 1e-5),
            start=replace(self.last, rationality=rationality),
        )
        return self.last.bound

    def _peak(self, start: float) -> tuple[float, float]:
        """Where the profile is highest, and how high; without the cell's own prior not where the fit is."""
        h = 0.5 * self.step
        at = [start - h, start, start + h]
        value = [self(b) for b in at]
        for _ in range(_CLIMB):
            highest = int(np.argmax(value))
            if highest == 1:
                break
            if highest == 0:
                at, value = [at[0] - h, *at[:2]], [self(at[0] - h), *value[:2]]
            else:
                at, value = [*at[1:], at[2] + h], [*value[1:], self(at[2] + h)]
        tilt, bend = 0.5 * (value[2] - value[0]), value[2] - 2 * value[1] + value[0]
        if bend >= 0:
            return at[1], value[1]
        shift = float(np.clip(-tilt / bend, -1.0, 1.0))  # the vertex of the parabola
        return at[1] + shift * h, value[1] + tilt * shift + 0.5 * bend * shift * shift

    def _distance(self, value: float) -> float:
        """sqrt(2 fall), nearly straight on either side of the top."""
        return float(np.sqrt(2 * max(self.top - self(value), 0.0)))

    def end(self, z: float, towards: float) -> float:
        """Where the profile has fallen by z^2 / 2 on one side of its top."""
        inside, fallen, reach = self.best, -z, z * self.step
        for _ in range(_CLIMB):
            outside = inside + towards * reach
            beyond = self._distance(outside) - z
            if beyond > 0:
                break
            inside, fallen, reach = outside, beyond, 2 * reach
        else:
            return float(towards * np.inf)
        for _ in range(_CLIMB):  # the false position, the retained end's value halved (Illinois)
            middle = inside - fallen * (outside - inside) / (beyond - fallen)
            here = self._distance(middle) - z
            if abs(here) < _PROFILE:
                return float(middle)
            if here < 0:
                inside, fallen, beyond = middle, here, 0.5 * beyond
            else:
                outside, beyond, fallen = middle, here, 0.5 * fallen
        return float(middle)


def _normal_quantile(level: float) -> float:
    """Half width of a two-sided interval of this level, in standard deviations."""
    if not 0 < level < 1:
        raise ValueError(f"level is {level!r}; expected a number between 0 and 1")
    return float(scipy.stats.norm.ppf(0.5 + level / 2))
