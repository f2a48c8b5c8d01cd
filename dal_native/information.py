"""The information matrix M with its factor and inverse, kept under rank-one updates."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dal_native import _dispatch, _linalg, _validate
from dal_native.pool import Pool, as_pool

Floats = NDArray[np.float64]

#: Refactorise when the drift of factor or inverse exceeds this.
DRIFT_TOLERANCE = 1e-9
#: Refactorise after so many updates, whatever the drift.
UPDATES_BETWEEN_FACTORISATIONS = 256


class InformationMatrix:
    """M = L L' under rank-one updates of M, L and M^-1, factorised anew when these drift apart.

    Parameters
    ----------
    matrix : array_like, (d, d)
        Symmetric and positive definite, for example of `information_matrix`. It is copied.

    Attributes
    ----------
    matrix, factor, inverse : ndarray of float64, (d, d)
        M, its lower Cholesky factor, and M^-1. They are views for reading.
    log_det : float
        log det M, natural logarithm.
    drift : float
        Largest of |L^-1 M L'^-1 p - p| and |M^-1 M p - p| on a fixed unit vector p, as of the last update.
    refactorisations : int
        How often drift, or the count of updates, has made a new factorisation necessary.

    Raises
    ------
    numpy.linalg.LinAlgError
        If the matrix is not positive definite.
    ValueError
        If it is not a finite, symmetric, square matrix.

    Notes
    -----
    Sherman-Morrison for the inverse; one Givens rotation per column for the factor (LINPACK's dchud).
    One object must not be updated by two threads at once.

    Examples
    --------
    >>> import dal_native as dn, numpy as np
    >>> M = dn.InformationMatrix(np.eye(2)); M.add([1.0, 0.0], 3.0)
    >>> M.leverage([[1.0, 0.0]]), round(M.log_det, 6)
    (array([0.25]), 1.386294)
    """

    def __init__(self, matrix: Any) -> None:
        self._matrix = _validate.symmetric(matrix, None, "matrix").copy()
        d = len(self._matrix)
        probe = np.cos(np.arange(1.0, d + 1.0))  # no eigenvector of anything likely
        self._probe = probe / np.sqrt(np.sum(probe * probe))
        self.refactorisations = 0
        self._factor_view: Floats | None = None
        self._factorise()

    def _factorise(self) -> None:
        self._factor = _linalg.cholesky(self._matrix)
        lower = _linalg.triangular_inverse(self._factor)
        with _dispatch.single_threaded_blas():
            self._inverse = lower.T @ lower
        self._updates = 0
        self.drift = self._measure_drift()

    def _measure_drift(self) -> float:
        p = self._probe
        with _dispatch.single_threaded_blas():
            by_factor = _linalg.solve_lower_transposed(self._factor, p)[0]
            by_factor = _linalg.solve_lower(self._factor, self._matrix @ by_factor)[0] - p
            by_inverse = self._inverse @ (self._matrix @ p) - p
        return float(max(np.sqrt(np.sum(by_factor**2)), np.sqrt(np.sum(by_inverse**2))))

    @property
    def matrix(self) -> Floats:
        return _read_only(self._matrix)

    @property
    def factor(self) -> Floats:
        # one view for one factor: what is made of it may be kept as long as it lives
        if self._factor_view is None or self._factor_view.base is not self._factor:
            self._factor_view = _read_only(self._factor)
        return self._factor_view

    @property
    def inverse(self) -> Floats:
        return _read_only(self._inverse)

    @property
    def log_det(self) -> float:
        return _linalg.log_det(self._factor)

    @property
    def d(self) -> int:
        """Number of features."""
        return len(self._matrix)

    def __repr__(self) -> str:
        return f"InformationMatrix(d={self.d}, log_det={self.log_det:.6g}, drift={self.drift:.1g})"

    def add(self, difference: Any, weight: float) -> None:
        """M <- M + weight x x'.

        Parameters
        ----------
        difference : array_like, (d,)
        weight : float
            At least 0.

        Raises
        ------
        ValueError
            For a wrong shape, a number that is not finite, or a negative weight; M is unchanged.
        numpy.linalg.LinAlgError
            If the sum is not positive definite in float64 (overflow); M is unchanged.

        Examples
        --------
        >>> import dal_native as dn, numpy as np
        >>> M = dn.InformationMatrix(np.eye(2)); M.add([0.0, 1.0], 1.0); M.matrix.diagonal()
        array([1., 2.])
        """
        x = _validate.floats(difference, "difference", 1)
        _validate.length(x, self.d, "difference", "feature")
        w = _validate.number(weight, "weight", 0.0)
        with np.errstate(over="ignore", invalid="ignore"), _dispatch.single_threaded_blas():
            matrix = self._matrix + w * np.outer(x, x)
            if not np.isfinite(matrix).all():
                raise np.linalg.LinAlgError("the updated information matrix is not finite")
            factor = self._factor.copy()
            _linalg.update(factor, np.sqrt(w) * x)
            # Sherman-Morrison: M^-1 <- M^-1 - w v v' / (1 + w h), v = M^-1 x, h = x'v
            v = self._inverse @ x
            inverse = self._inverse - np.outer(v, v) * (w / (1.0 + w * float(x @ v)))
        before = (self._matrix, self._factor, self._inverse, self._updates, self.drift)
        self._matrix, self._factor, self._inverse = matrix, factor, inverse
        self._updates += 1
        self.drift = self._measure_drift()
        # also true for a drift of NaN
        if not self.drift <= DRIFT_TOLERANCE or self._updates >= UPDATES_BETWEEN_FACTORISATIONS:
            try:
                self._factorise()
            except np.linalg.LinAlgError:
                self._matrix, self._factor, self._inverse, self._updates, self.drift = before
                raise
            self.refactorisations += 1

    def solve(self, right: Any) -> Floats:
        """M^-1 b, by the factor.

        Parameters
        ----------
        right : array_like, (d,) or (k, d)
            One right-hand side, or one in each row.

        Returns
        -------
        ndarray of float64, of the same shape

        Raises
        ------
        ValueError
            For a wrong shape or a number that is not finite.

        Examples
        --------
        >>> import dal_native as dn, numpy as np
        >>> dn.InformationMatrix(2.0 * np.eye(2)).solve([2.0, 4.0])
        array([1., 2.])
        """
        b = _validate.floats(right, "right", (1, 2))
        if b.shape[-1] != self.d:
            raise ValueError(f"right has {b.shape[-1]} columns; expected {self.d}")
        return _linalg.solve(self._factor, b).reshape(b.shape)

    def leverage(
        self,
        pool: Any,
        conversations: Any = None,
        *,
        reference: Any = None,
        precision: str = "double",
        backend: str = "auto",
        threads: int | None = None,
    ) -> Any:
        """h_i = x_i' M^-1 x_i of a pool, or of an array of differences: see `dal_native.leverage`.

        Examples
        --------
        >>> import dal_native as dn, numpy as np
        >>> dn.InformationMatrix(2.0 * np.eye(2)).leverage([[2.0, 0.0]])
        array([2.])
        """
        pool = as_pool(pool)
        return leverage_from_factor(pool, self.factor, conversations, precision, backend, threads, reference)


def _read_only(a: Floats) -> Floats:
    view = a.view()
    view.flags.writeable = False
    return view


def as_factor(M: Any, d: int) -> Floats:
    """Lower Cholesky factor of an `InformationMatrix` or of an array, (d, d)."""
    if isinstance(M, InformationMatrix):
        if M.d != d:
            raise ValueError(f"M has shape ({M.d}, {M.d}); expected ({d}, {d})")
        return M.factor
    return _linalg.cholesky(_validate.symmetric(M, d))


def as_matrix(M: Any, d: int) -> Floats:
    """The information matrix itself, (d, d)."""
    if isinstance(M, InformationMatrix):
        if M.d != d:
            raise ValueError(f"M has shape ({M.d}, {M.d}); expected ({d}, {d})")
        return M.matrix
    return _validate.symmetric(M, d)


def leverage_from_factor(
    pool: Pool,
    factor: Floats,
    conversations: Any,
    precision: str,
    backend: str,
    threads: int | None,
    reference: Any = None,
) -> Any:
    """Validate, allocate and call the backend's ``leverage``."""
    single = _validate.one_of(precision, "precision", ("double", "single")) == "single"
    if len(factor) != pool.d:
        raise ValueError(f"M has shape ({len(factor)}, {len(factor)}); expected ({pool.d}, {pool.d})")
    index = _validate.conversations(conversations, len(pool))
    nu = _reference(reference, pool)
    out = np.empty(len(pool) if index is None else len(index))
    _dispatch.find("leverage", backend)(pool, factor, index, single, nu, out, _dispatch.threads(threads))
    _validate.finite_result(out, "leverage", index)
    return _validate.like_input(out, pool.home)


def _reference(values: Any, pool: Pool) -> Floats | None:
    if values is None:
        return None
    nu = _validate.floats(values, "reference", 1)
    _validate.length(nu, pool.d, "reference", "feature")
    if pool.prompt_offsets is not None or pool.pair_rows is not None:
        raise ValueError(
            "reference is given for pairs, whose differences have none; expected rows: pool.completions"
        )
    return nu
