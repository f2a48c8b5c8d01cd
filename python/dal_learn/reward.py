"""The reward: a heterogeneous Bradley-Terry model, its rationalities fitted against the posterior of theta.

    P(b preferred | difference x, teacher j, category c) = lapse/2 + (1 - lapse) s(beta[j, c] x'theta)

with theta ~ N(0, I / ridge) and log beta ~ N(0, rationality_scale^2), mean log beta = 0 over the cells
(teacher, category) that have labels: (a theta, beta / a) would fit equally well, so the scale has to be
fixed. Fitting (theta, beta) jointly at their common maximum believes a teacher the more, the more it is alone
with an opinion; the default fit averages over the posterior of theta instead.
"""

from __future__ import annotations

import inspect
import os
import sys
import warnings
from typing import Any

import numpy as np
import scipy.linalg
import scipy.sparse
from numpy.typing import ArrayLike, NDArray

import dal_native as dn
from dal_native import _validate as V
from dal_native._dispatch import single_threaded_blas

from ._files import FileFormatError
from ._fit import Labels, distinct_rows, expected_terms, fit_labels
from ._reward_file import HEAD, read_tensors, write_tensors

__all__ = ["ConvergenceWarning", "NotFittedError", "RewardModel"]

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

METHODS = ("marginal", "joint_map", "homogeneous")
_QUANTILE_95 = 1.959963984540054
_LARGEST_FEATURE = 1e50


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
    ridge : float, default 1.0
        Prior precision of theta, above 0.
    rationality_scale : float, default 0.5
        Prior standard deviation of log|rationality|, above 0: how far teachers are expected to differ.
    method : {"marginal", "joint_map", "homogeneous"}, default "marginal"
        "marginal" fits the rationalities against the posterior of theta (variational, Gaussian); `coef_` is
        the posterior's mean. "joint_map" takes the common maximum (teachers that were asked at high leverage
        confirm themselves: for comparison only). "homogeneous" holds every rationality at 1; `coef_` is the
        mode.
    rationality : array_like, (m, C) or (m,), optional
        Known rationalities, taken as they are, whatever the method; `coef_` is the posterior mode.
    signed : bool, default False
        Let rationalities be negative (adversarial teachers). Signs are turned one by one or together as long
        as the objective rises; of the two mirror images the one is kept in which most labels (by weight) come
        from cells of positive rationality.
    lapse : float, default 0.0
        Share of answers given by a coin, in [0, 1).
    max_iter : int, default 200
        Steps allowed; a fit that needs more warns with `ConvergenceWarning`.
    tol : float, default 1e-6
        Converged when `gradient_norm_` is at most this.

    Attributes
    ----------
    coef_ : ndarray, (d,)
        theta.
    rationality_ : ndarray, (m, C)
        1 (the prior's mean) where there are no labels.
    rationality_se_ : ndarray, (m, C)
        Standard error of `rationality_`, by the delta method from the anchored information:
        |rationality| * standard error of its logarithm. Without labels that is `rationality_scale`; 0 where
        the rationality is known or, as of a single labelled cell, fixed by the anchor.
    rationality_interval_ : ndarray, (m, C, 2)
        95 % interval, symmetric on the logarithmic scale.
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
    information_: Floats

    def __init__(
        self,
        ridge: float = 1.0,
        rationality_scale: float = 0.5,
        *,
        method: str = "marginal",
        rationality: ArrayLike | None = None,
        signed: bool = False,
        lapse: float = 0.0,
        max_iter: int = 200,
        tol: float = 1e-6,
    ) -> None:
        self.ridge = ridge
        self.rationality_scale = rationality_scale
        self.method = method
        self.rationality = rationality
        self.signed = signed
        self.lapse = lapse
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
        X: ArrayLike,
        y: ArrayLike,
        teacher: ArrayLike | None = None,
        category: ArrayLike | None = None,
        sample_weight: ArrayLike | None = None,
        n_teachers: int | None = None,
        n_categories: int | None = None,
    ) -> RewardModel:
        """Fit theta and the rationalities to T labels.

        Parameters
        ----------
        X : array_like, (T, d)
            Difference phi(b) - phi(a) of each label; T may be 0 (then the prior comes out).
        y : array_like, (T,)
            1 (b preferred), 0 (a preferred) or anything between.
        teacher, category : array_like of int, (T,), optional
            Who answered, in which category; 0 by default.
        sample_weight : array_like, (T,), optional
            0 or more; a weight of 2 is two equal labels, of 0 none.
        n_teachers, n_categories : int, optional
            m and C when the labels do not reach the last of them.

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
        known = self._check_parameters()
        x, label, weight, j, c = _check_labels(X, y, teacher, category, sample_weight)
        m, n_kinds = _sizes(j, c, known, n_teachers, n_categories)
        if known is not None:
            known = V.rationality(known, n_kinds)
            n_kinds = known.shape[1]
        V.within(j, m, "teacher", "teachers")
        V.within(c, n_kinds, "category", "categories")
        kept = weight > 0
        if not kept.all():
            x, label, weight, j, c = x[kept], label[kept], weight[kept], j[kept], c[kept]
        cells, cell = np.unique(j * n_kinds + c, return_inverse=True)
        labels = Labels(
            *distinct_rows(x),
            label,
            weight,
            cell,
            ridge=float(self.ridge),
            spread=float(self.rationality_scale),
            lapse=float(self.lapse),
        )
        estimate = known is None and self.method != "homogeneous"
        beta = np.ones((m, n_kinds)) if known is None else known.copy()
        with single_threaded_blas():
            fitted = fit_labels(
                labels,
                beta.ravel()[cells],
                marginal=estimate and self.method == "marginal",
                estimate=estimate,
                signed=bool(self.signed),
                max_iter=int(self.max_iter),
                tol=float(self.tol),
            )
            beta.ravel()[cells] = fitted.rationality
            self._store(labels, cells, estimate, beta, fitted.mean)
        self.objective_, self.objective_path_ = fitted.bound, np.array(fitted.bounds)
        self.gradient_norm_, self.n_iter_ = fitted.gradient_norm, fitted.iterations
        self.converged_ = fitted.converged
        if not fitted.converged:
            warnings.warn(
                f"the fit did not converge: {fitted.reason}; the gradient is {fitted.gradient_norm:.1e} "
                f"posterior standard deviations long, expected at most tol = {self.tol:g}",
                ConvergenceWarning,
                stacklevel=2,
            )
        return self

    def _check_parameters(self) -> ArrayLike | None:
        V.one_of(self.method, "method", METHODS)
        for name in ("ridge", "rationality_scale", "tol"):
            if V.number(getattr(self, name), name) <= 0:
                raise ValueError(f"{name} is {getattr(self, name)!r}; expected a number above 0")
        if not 0 <= V.number(self.lapse, "lapse") < 1:
            raise ValueError(f"lapse is {self.lapse!r}; expected a share in [0, 1)")
        V.whole(self.max_iter, "max_iter", 1)
        if not isinstance(self.signed, bool | np.bool_):
            raise ValueError(f"signed is {self.signed!r}; expected True or False")
        return self.rationality

    def _store(self, labels: Labels, cells: Integers, estimate: bool, beta: Floats, theta: Floats) -> None:
        """Fitted attributes, and what the standard errors need later."""
        d, x = len(theta), labels.differences
        self.coef_, self.rationality_ = theta, beta
        self.n_features_in_, (self.n_teachers_, self.n_categories_) = d, beta.shape
        self.classes_ = np.array([0, 1])
        each = beta.ravel()[cells][labels.cell]  # rationality per label
        t = each * (x @ theta)[labels.row]
        fisher = labels.weight * _fisher(t, labels.lapse)
        self.information_ = (
            dn.information_matrix(
                x, np.bincount(labels.row, fisher * each * each, minlength=len(x)), ridge=labels.ridge
            )
            if len(x)
            else labels.ridge * np.eye(d)
        )
        at = expected_terms(t, np.zeros_like(t), labels.label, labels.lapse)
        self.log_likelihood_ = float(labels.weight @ at.likelihood)
        self._labels, self._cells, self._estimated, self._t, self._each = labels, cells, estimate, t, each
        self._cross, self._own = _cells_with_theta(labels, len(cells) if estimate else 0, fisher, each, t)
        self._errors: Floats | None = None

    # --------------------------------------------------------------------------------------- standard errors

    def _log_errors(self) -> Floats:
        """Standard errors of log|rationality|, (m, C)."""
        if self._errors is None:
            errors = np.full(self.rationality_.shape, float(self.rationality_scale))
            if not self._estimated:
                errors[...] = 0.0
            elif len(self._cells):
                with single_threaded_blas():
                    errors.ravel()[self._cells] = self._joint().log_errors()
            self._errors = errors
        return self._errors

    def _joint(self) -> _JointCovariance:
        return _JointCovariance(self.information_, self._cross, self._own)

    @property
    def rationality_se_(self) -> Floats:
        """Standard error of `rationality_`, (m, C)."""
        self._require_fitted()
        return np.abs(self.rationality_) * self._log_errors()

    @property
    def rationality_interval_(self) -> Floats:
        """95 % interval of `rationality_`, (m, C, 2), lower end first."""
        self._require_fitted()
        spread = np.exp(_QUANTILE_95 * self._log_errors())
        ends = np.stack([self.rationality_ / spread, self.rationality_ * spread], axis=-1)
        return np.sort(ends, axis=-1)

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
        if self._labels is None:
            if robust:
                raise ValueError(
                    "robust needs the labels; expected a model fitted here, not loaded from a file"
                )
            return self._loaded_covariance.copy()
        with single_threaded_blas():
            joint = self._joint()
            if not robust:
                return joint.top
            labels = self._labels
            at = expected_terms(self._t, np.zeros_like(self._t), labels.label, labels.lapse)
            first = labels.weight * at.first
            half = (first * self._each)[:, None] * (labels.differences @ joint.top)[labels.row]
            if self._estimated:
                half += (first * self._t)[:, None] * joint.side[labels.cell]
            return np.asarray(half.T @ half)

    # --------------------------------------------------------------------------------------------- predicting

    def _features(self, values: ArrayLike, name: str) -> Floats:
        self._require_fitted()
        if scipy.sparse.issparse(values):
            raise ValueError(f"{name} is a sparse matrix; expected a dense array")
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
        self, X: ArrayLike, teacher: ArrayLike | None = None, category: ArrayLike | None = None
    ) -> Floats:
        """Chances that a and that b are preferred.

        Parameters
        ----------
        X : array_like, (k, d)
            Differences.
        teacher : array_like of int, (k,), optional
            Who is asked; by default a teacher of rationality 1 (the geometric mean).
        category : array_like of int, (k,), optional
            May be left out when there is one category only, or no teacher.

        Returns
        -------
        ndarray, (k, 2)
            P(a preferred), P(b preferred), lapses included.

        Raises
        ------
        ValueError
            A shape or an index does not fit.

        Examples
        --------
        >>> RewardModel().fit([[1.0]], [1]).predict_proba([[0.0]]).tolist()
        [[0.5, 0.5]]
        """
        u = self._features(X, "X") @ self.coef_
        t = self._rationality_of(len(u), teacher, category) * u
        chance = np.stack([dn.choice_probability(-t, 1.0), dn.choice_probability(t, 1.0)], axis=1)
        return self.lapse / 2 + (1 - self.lapse) * chance

    def _rationality_of(self, count: int, teacher: ArrayLike | None, category: ArrayLike | None) -> Floats:
        if teacher is None:
            return np.ones(count)
        if category is None and self.n_categories_ > 1:
            raise ValueError(f"category is missing; expected one of {self.n_categories_} for each row")
        j = V.integers(teacher, "teacher", 1)
        c = np.zeros(count, np.int64) if category is None else V.integers(category, "category", 1)
        V.length(j, count, "teacher", "row of X")
        V.length(c, count, "category", "row of X")
        V.within(j, self.n_teachers_, "teacher", "teachers")
        V.within(c, self.n_categories_, "category", "categories")
        return self.rationality_[j, c]

    def predict(
        self, X: ArrayLike, teacher: ArrayLike | None = None, category: ArrayLike | None = None
    ) -> Integers:
        """The likelier answer: 1 where b, 0 where a or neither.

        Parameters
        ----------
        X, teacher, category
            As in `predict_proba`.

        Returns
        -------
        ndarray of int, (k,)

        Examples
        --------
        >>> RewardModel().fit([[1.0]], [1]).predict([[3.0], [-3.0], [0.0]]).tolist()
        [1, 0, 0]
        """
        u = self._features(X, "X") @ self.coef_
        return (self._rationality_of(len(u), teacher, category) * u > 0).astype(np.int64)

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
        x, label, weight, _, _ = _check_labels(x, y, None, None, sample_weight)
        t = self._rationality_of(len(x), teacher, category) * (x @ self.coef_)
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
        }
        facts = {
            "parameters": {name: _plain(value) for name, value in parameters.items()},
            "rationality_known": self.rationality is not None,
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
        if facts.get("rationality_known") is True:
            model.rationality = tensors["rationality"].copy()
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
        self.information_ = tensors["information"]
        self.n_features_in_, (self.n_teachers_, self.n_categories_) = len(self.coef_), self.rationality_.shape
        self.classes_ = np.array([0, 1])
        self._errors, self._loaded_covariance = tensors["log_rationality_se"], tensors["coef_covariance"]
        self._labels = None
        self.converged_, self.n_iter_ = (
            facts["converged"] is True,
            V.whole(facts["iterations"], "iterations", 0),
        )
        self.gradient_norm_ = V.number(facts["gradient_norm"], "gradient_norm", 0.0)
        self.objective_ = V.number(facts["objective"], "objective")
        self.log_likelihood_ = V.number(facts["log_likelihood"], "log_likelihood")

    _labels: Labels | None
    _loaded_covariance: Floats


# --------------------------------------------------------------------------------------------------- checking


def _check_labels(
    X: ArrayLike,
    y: ArrayLike,
    teacher: ArrayLike | None,
    category: ArrayLike | None,
    sample_weight: ArrayLike | None,
) -> tuple[Floats, Floats, Floats, Integers, Integers]:
    """(x, label, weight, teacher, category) of T labels, all of one length and in range."""
    if scipy.sparse.issparse(X):
        raise ValueError("X is a sparse matrix; expected a dense array")
    x = V.floats(X, "X", 2)
    if x.shape[1] == 0:
        raise ValueError(f"X has 0 features (shape {x.shape}); expected at least one")
    if x.size and float(np.abs(x).max()) > _LARGEST_FEATURE:
        raise ValueError(
            f"X reaches {float(np.abs(x).max()):g} in size; expected at most "
            f"{_LARGEST_FEATURE:g}, beyond which squares overflow"
        )
    if y is None:
        raise ValueError(
            "RewardModel requires y to be passed, but the target y is None; expected labels in [0, 1]"
        )
    given = V.array(y, "y")
    label = V.floats(given.astype(np.float64) if given.dtype == bool else given, "y", 1)
    V.length(label, len(x), "y", "row of X")
    wrong = (label < 0) | (label > 1)
    if wrong.any():
        t = int(np.argmax(wrong))
        raise ValueError(f"y[{t}] is {label[t]:g}; expected labels in [0, 1] (1: b preferred)")
    indices = []
    for name, values in (("teacher", teacher), ("category", category)):
        index = np.zeros(len(x), np.int64) if values is None else V.integers(values, name, 1)
        V.length(index, len(x), name, "row of X")
        V.within(index, 2**31, name, "indices")
        indices.append(index)
    weight = np.ones(len(x)) if sample_weight is None else V.floats(sample_weight, "sample_weight", 1)
    V.length(weight, len(x), "sample_weight", "row of X")
    if (weight < 0).any() or weight.max(initial=0.0) > 1e20:
        raise ValueError("sample_weight holds a number below 0 or above 1e20; expected weights")
    return x, label, weight, indices[0], indices[1]


def _sizes(
    teacher: Integers,
    category: Integers,
    known: ArrayLike | None,
    n_teachers: int | None,
    n_categories: int | None,
) -> tuple[int, int]:
    """m and C: as told, as the known rationalities say, or as far as the labels reach."""
    kinds = (
        int(category.max(initial=0)) + 1 if n_categories is None else V.whole(n_categories, "n_categories", 1)
    )
    if known is None:
        m = int(teacher.max(initial=0)) + 1 if n_teachers is None else V.whole(n_teachers, "n_teachers", 1)
    else:
        m = len(V.rationality(known, 1))
        if n_teachers is not None and n_teachers != m:
            raise ValueError(f"n_teachers is {n_teachers!r}; expected {m}, as many as rows of rationality")
    if m * kinds > 10**8:
        raise ValueError(
            f"teacher and category span {m} x {kinds} cells; expected consecutive indices from 0"
        )
    return m, kinds


def _check_tensors(path: str | os.PathLike[str], tensors: dict[str, Floats]) -> None:
    names = {HEAD, "rationality", "log_rationality_se", "information", "coef_covariance"}
    if set(tensors) != names:
        raise FileFormatError(path, None, f"tensors are {sorted(tensors)}, expected {sorted(names)}")
    d, shape = tensors[HEAD].size, tensors["rationality"].shape
    expected = {
        HEAD: (1, d),
        "rationality": shape if len(shape) == 2 and min(shape) > 0 else (1, 1),
        "log_rationality_se": shape,
        "information": (d, d),
        "coef_covariance": (d, d),
    }
    for name, size in expected.items():
        if tensors[name].shape != size or d == 0:
            raise FileFormatError(
                path, None, f"tensor {name!r} has shape {tensors[name].shape}, expected {size}"
            )
    if (tensors["log_rationality_se"] < 0).any():
        raise FileFormatError(path, None, "tensor 'log_rationality_se' holds a negative number")
    try:
        scipy.linalg.cholesky(tensors["information"], lower=True)
    except np.linalg.LinAlgError:
        raise FileFormatError(path, None, "tensor 'information' is not positive definite") from None


def _plain(value: Any) -> Any:
    """NumPy scalars as Python's own, which JSON knows."""
    return value.item() if isinstance(value, np.generic) else value


# ---------------------------------------------------------------------------------------------------- algebra


def _cells_with_theta(
    labels: Labels, count: int, fisher: Floats, each: Floats, t: Floats
) -> tuple[Floats, Floats]:
    """Blocks of the information on (theta, log|beta|): cross (d, K) and diagonal (K,), prior included."""
    if count == 0:
        return np.zeros((labels.differences.shape[1], 0)), np.zeros(0)
    pick = scipy.sparse.csr_array(
        (fisher * each * t, (labels.cell, labels.row)), shape=(count, len(labels.differences))
    )
    own = np.bincount(labels.cell, fisher * t * t, minlength=count).astype(np.float64, copy=False)
    return np.ascontiguousarray((pick @ labels.differences).T), own + labels.spread**-2


def _fisher(t: Floats, lapse: float) -> Floats:
    """Fisher information of one answer on t = beta u: s(1-s), or p'^2 / (p (1-p)) with lapses."""
    e = np.exp(-np.abs(t))
    slope: Floats = e / (1 + e) ** 2
    if lapse == 0.0:
        return slope
    chance = lapse / 2 + (1 - lapse) * e / (1 + e)  # of the less likely answer
    return np.asarray((1 - lapse) ** 2 * slope**2 / (chance * (1 - chance)))


def _inverse(matrix: Floats) -> Floats:
    """Inverse of a positive definite matrix, exactly symmetric."""
    inverse = scipy.linalg.cho_solve((scipy.linalg.cholesky(matrix, lower=True), True), np.eye(len(matrix)))
    return np.asarray((inverse + inverse.T) / 2)


class _JointCovariance:
    """Inverse of [[M, P], [P', diag(D)]] within sum b = 0, without ever forming its K x K corner.

    Parameters
    ----------
    information : ndarray, (d, d)
        M.
    cross : ndarray, (d, K)
        P; K may be 0.
    own : ndarray, (K,)
        D, above 0.

    Attributes
    ----------
    top : ndarray, (d, d)
        Covariance of theta.
    side : ndarray, (K, d)
        Covariance of b with theta.
    """

    def __init__(self, information: Floats, cross: Floats, own: Floats) -> None:
        self.own = own
        schur = information - (cross / own) @ cross.T
        self.top = _inverse(schur)
        if not len(own):
            self.side, self.half, self.total = np.zeros((0, len(schur))), cross, own
            return
        scaled = cross / own
        self.half = scipy.linalg.solve_triangular(
            scipy.linalg.cholesky(schur, lower=True), scaled, lower=True
        )  # the corner is 1 / D + half'half
        ones = np.ones(len(own))
        self.total = ones / own + self.half.T @ (self.half @ ones)  # corner 1
        lean = -self.top @ (scaled @ ones)  # (theta, b) covariance, times 1
        self.side = -(self.top @ scaled).T - np.outer(self.total, lean) / self.total.sum()
        self.top = self.top - np.outer(lean, lean) / self.total.sum()

    def log_errors(self) -> Floats:
        """Standard deviations of b, (K,)."""
        variance = 1 / self.own + np.einsum("ij,ij->j", self.half, self.half)
        return np.asarray(np.sqrt(np.maximum(variance - self.total**2 / self.total.sum(), 0.0)))
