"""What one round proves for the next: how far bounds of leverages at an earlier M hold at a later one.

Everything here ends in a Cholesky factorisation of a matrix that was lowered by more than all rounding on the
way to it and in it: what iterations find is a guess, what the factorisation shows is proved.

*Ratio.* With M_new - e M_old positive semidefinite, M_new^-1 <= M_old^-1 / e, so h_new <= h_old / e. The
largest such e is the smallest eigenvalue of the pencil (M_new, M_old).

*Directions.* A few eigenvalues of the pencil lie far below or above the others: there a refit took weight
away, or labels brought much. With vectors v_k and coefficients c_k of either sign, for every x,

    h_new <= h_old / e + sum_k c_k (v_k' x)^2     if     N = M_new - e M_old + Y G Y' - U F U' >= 0       (1)

    c_k > 0:  y_k = M_old v_k,  t_k: T = (v_k' M_old v_l) <= diag(t),  g_k = e^2 c_k / (1 + e c_k t_k)
    c_k < 0:  u_k = M_new v_k,  s_k: S = (v_k' M_new v_l) >= diag(s),  f_k = |c_k| / (1 + |c_k| s_k)

Proof. Let P = M_old^-1 / e + sum_{c > 0} c_k v_k v_k' and Q = M_new^-1 + sum_{c < 0} |c_k| v_k v_k'; the
claim is Q <= P. By Woodbury's identity P^-1 = e M_old - e^2 Y (C^-1 + e T)^-1 Y' <= e M_old - Y G Y', because
C^-1 + e T <= e^2 G^-1; likewise Q^-1 = M_new - U (|C|^-1 + S)^-1 U' >= M_new - U F U', because
|C|^-1 + S >= F^-1. So Q^-1 - P^-1 >= N >= 0, and inverses turn the order. Nothing is asked of the v_k:
eigenvectors make e large, others make it small. They are stored in single precision and taken as stored, so a
single-precision pass has no error from rounding them.

*Rounding.* With eps = 2^-52, sums of d products in any order err by less than (d + 2) eps times the sum of
their absolute values, a factorisation that succeeds by less than (d + 1) eps trace(N) in the 2-norm, both
with a factor of 2 to spare; Frobenius norms of positive semidefinite matrices lie below their traces. Kept
bounds, and what is decided at M_new, come from factors that are exact for matrices some (d + 1) eps trace
away: (1) is shown for every pair of matrices that close to M_old and M_new. What W = L^-1 itself was rounded
by, |W L - I| <= (d + 2) eps |W|_F |L|_F, is taken off e.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import blas

from dal_native import _dispatch, _linalg
from dal_native.pool import BLOCK_NUMBERS, Pool

Floats = NDArray[np.float64]

_EPS = float(np.finfo(np.float64).eps)
#: Eigenvalues of the directions are moved past e by this share, so that inexact eigenvectors do no harm.
_BEYOND = 2e-3
#: Residual, relative to the largest inverse eigenvalue, of eigenvectors exact enough to be directions.
_CONVERGED = 1e-4
#: Lanczos steps at most, for the ratio alone.
_STEPS = 60


@dataclass(frozen=True, eq=False)
class Factored:
    """A positive definite M = L L', and how far its inverted factor can be trusted.

    Attributes
    ----------
    matrix, factor : ndarray of float64, (d, d)
        M, and L, lower.
    kept : float
        A share s with s x' M^-1 x <= |W x|^2 for every x, W = L^-1 as LAPACK computes it; 0 when none is
        sure.
    """

    matrix: Floats
    factor: Floats
    kept: float

    @classmethod
    def of(cls, matrix: Floats, factor: Floats | None = None, inverse: Floats | None = None) -> Factored:
        """Of a matrix, with its factor and the inverse of that where they are known.

        LinAlgError when the matrix is not positive definite.
        """
        factor = _linalg.cholesky(matrix) if factor is None else factor
        inverse = _linalg.triangular_inverse(factor) if inverse is None else inverse
        with np.errstate(all="ignore"):  # not by BLAS, whose sums depend on its threads
            norms = np.sqrt(np.sum(inverse * inverse)) * np.sqrt(np.sum(factor * factor))
            error = float((len(factor) + 2) * _EPS * norms)
        return cls(matrix, factor, (1.0 - error) ** 2 if error < 0.5 else 0.0)


@dataclass(frozen=True, eq=False)
class CertifiedBound:
    """h_new <= h_old / ratio + sum_k coefficient[k] (direction[k]' x)^2 for every x, rounding included.

    Attributes
    ----------
    ratio : float
    direction : ndarray of float32, (K, d)
        Rows of length about 1, to be taken as stored.
    coefficient : ndarray of float64, (K,)
        Of either sign.
    """

    ratio: float
    direction: NDArray[np.float32]
    coefficient: Floats


def certified_ratio(new: Floats, old: Floats) -> float | None:
    """A ratio e > 0, as large as can be proved in float64, with h_new <= h_old / e for every row; or None.

    Parameters
    ----------
    new, old : ndarray of float64, (d, d)
        Symmetric.

    Returns
    -------
    float or None
        Within 1 % of the smallest eigenvalue of the pencil unless the matrices are very ill-conditioned; None
        where nothing is proved, or one of them is not positive definite.

    Examples
    --------
    >>> import numpy as np
    >>> from dal_native._reuse import certified_ratio
    >>> round(certified_ratio(np.diag([3.0, 1.0]), np.diag([2.0, 2.0])), 3)
    0.5
    """
    try:
        bound = certified_bound(Factored.of(new), Factored.of(old))
    except np.linalg.LinAlgError:
        return None
    return None if bound is None else bound.ratio


def certified_bound(new: Factored, old: Factored, directions: int = 0) -> CertifiedBound | None:
    """What leverages at ``old`` prove of leverages at ``new``: a ratio, and directions that make it larger.

    Parameters
    ----------
    new, old : Factored
    directions : int
        How many at most; fewer come back where fewer are found or can be proved.

    Returns
    -------
    CertifiedBound or None
        None where nothing is proved.

    Examples
    --------
    >>> import numpy as np
    >>> from dal_native._reuse import Factored, certified_bound
    >>> new, old = Factored.of(np.diag([0.5, 1.0, 1.0])), Factored.of(np.eye(3))
    >>> bound = certified_bound(new, old, directions=1)
    >>> round(bound.ratio, 2), np.abs(bound.direction).round(2)
    (1.0, array([[1., 0., 0.]], dtype=float32))
    """
    if not old.kept > 0.0:
        return None
    with np.errstate(all="ignore"), _dispatch.single_threaded_blas():
        pencil = _Pencil(new, old)
        try:
            found = pencil.with_directions(min(directions, pencil.d - 1)) or pencil.with_ratio()
        except np.linalg.LinAlgError:  # numbers too large for float64 on the way
            return None
    if found is None:
        return None
    return CertifiedBound(found.ratio * old.kept, found.direction, found.coefficient)


class _Pencil:
    """(M_new, M_old), its extreme eigenvalues as Lanczos finds them, and what a factorisation proves."""

    def __init__(self, new: Factored, old: Factored) -> None:
        self.new, self.old = new.matrix, old.matrix
        self.new_factor, self.old_factor = new.factor, old.factor
        self.d = len(self.new)
        self.backward = 4.0 * (self.d + 1) * _EPS  # of a matrix and its factor, times the trace
        self.equal = np.array_equal(self.new, self.old)

    # ---- the ratio ----------------------------------------------------------------------------------------

    def with_ratio(self) -> CertifiedBound | None:
        none = np.zeros((0, self.d), np.float32), np.zeros(0)
        guess = 1.0 if self.equal else self._smallest()
        # room for the rounding that the factorisation has to show itself above
        for share in (0.9999, 0.995, 0.95, 0.8, 0.5):
            ratio = share * guess
            if ratio > 0.0 and np.isfinite(ratio) and self._proves(self._lowered(ratio), self._size(ratio)):
                return CertifiedBound(ratio, *none)
        return None

    def _smallest(self) -> float:
        """The smallest eigenvalue, from below: Ritz values of the inverse are off by their residuals."""
        ritz = self._lanczos(_STEPS, lambda residual: bool(residual[0] <= 1e-3))
        return float(1.0 / (ritz.value[0] * (1.0 + ritz.residual[0])))

    # ---- directions ---------------------------------------------------------------------------------------

    def with_directions(self, count: int) -> CertifiedBound | None:
        if count < 1 or self.equal:
            return None
        ritz = self._lanczos(
            _STEPS + 3 * count, lambda residual: bool((residual[: count + 1] <= _CONVERGED).all())
        )
        settled = ritz.residual <= _CONVERGED
        # from the low end of the pencil, the first that has not settled is the rest
        low_most = int(np.argmin(settled)) if not settled.all() else len(settled)
        high_most = int(np.argmin(settled[::-1])) if not settled.all() else len(settled)
        low, high = _split(ritz.value, self.d, count, low_most, high_most)
        if low + high == 0:
            return None
        chosen = np.r_[:low, len(ritz.value) - high : len(ritz.value)]
        # v = L_old'^-1 q has v' M_old v = 1 and M_new v = M_old v / value
        v = _linalg.solve_lower_transposed(self.old_factor, ritz.vectors(chosen))
        v = (v / np.sqrt(np.sum(v * v, axis=1))[:, None]).astype(np.float32)
        inverse = ritz.value[chosen]
        for share in (0.998, 0.99, 0.97):
            ratio = float(share / ritz.value[low])
            expected = np.sum(inverse) + (self.d - len(v)) / ratio
            if expected >= self.d * ritz.value[0]:  # the ratio alone does as well
                return None
            bound = self._certified(ratio, v, inverse)
            if bound is not None:
                return bound
        return None

    def _certified(self, ratio: float, v: NDArray[np.float32], inverse: Floats) -> CertifiedBound | None:
        """(1) for these directions, each brought from its eigenvalue 1 / inverse to the ratio or beyond."""
        wide = v.astype(np.float64)
        reach = inverse * ratio  # e / e_k
        beyond = np.where(reach > 1.0, (1.0 + _BEYOND) * inverse, inverse)
        coefficient = beyond - np.where(reach > 1.0, 1.0, 1.0 - _BEYOND) / ratio
        plus, minus = coefficient > 0.0, (coefficient < 0.0) & (reach < 1.0)
        coefficient /= np.einsum("ij,ij->i", wide @ self.old, wide)
        shown = self._lowered(ratio)
        size, error = self._size(ratio), 0.0
        for which, matrix in ((plus, self.old), (minus, self.new)):
            c = np.abs(coefficient[which])
            moved, norm, off, low, high = self._products(wide[which], matrix)
            if which is plus:
                weight = ratio * ratio * c / (1.0 + ratio * c * high) * (1.0 - 8.0 * _EPS)
            else:
                weight = c / (1.0 + c * low) * (1.0 + 8.0 * _EPS)
                if not (low > 0.0).all():
                    return None
            part = (moved * weight[:, None]).T @ moved
            shown += part if which is plus else -part
            size += float(np.sum(weight * norm * norm))
            error += float(np.sum(weight * (2.0 * norm + off) * off))
        if not self._proves(shown, size, error):
            return None
        used = plus | minus
        return CertifiedBound(ratio, np.ascontiguousarray(v[used]), coefficient[used])

    def _products(self, v: Floats, matrix: Floats) -> tuple[Floats, Floats, Floats, Floats, Floats]:
        """M v as rows; their norms; what they may be off; diagonals below and above (v_k' M v_l).

        For every matrix within ``backward`` times its trace of the one given; rows of v are shorter than
        1.001.
        """
        moved = v @ matrix
        gamma = (self.d + 2) * _EPS
        near = 1.01 * self.backward * float(np.trace(matrix))
        spread = np.abs(v) @ np.abs(matrix)  # sums of absolute values
        off = 1.01 * gamma * np.sqrt(np.sum(spread * spread, axis=1)) + near
        inner = moved @ v.T
        error = np.sum(3.0 * gamma * (spread @ np.abs(v).T) + near, axis=1)
        diagonal = np.diagonal(inner)
        beside = np.sum(np.abs(inner), axis=1) - np.abs(diagonal)  # Gershgorin
        norm = np.sqrt(np.sum(moved * moved, axis=1)) * (1.0 + gamma)
        return moved, norm, off, diagonal - 1.01 * beside - error, diagonal + 1.01 * beside + error

    # ---- the proof ----------------------------------------------------------------------------------------

    def _lowered(self, ratio: float) -> Floats:
        return np.asarray(self.new - ratio * self.old)

    def _size(self, ratio: float) -> float:
        return float(np.trace(self.new) + ratio * np.trace(self.old))

    def _proves(self, shown: Floats, size: float, error: float = 0.0) -> bool:
        """Whether N is positive semidefinite, given as computed from terms whose traces add up to ``size``.

        Off by rounding: 4 (d + 1) eps size for the sums that made it and the factorisation, as much for the
        backward errors of the factors of M_old and M_new, and ``error``.
        """
        shift = 2.0 * self.backward * size + 1.01 * error
        if not np.isfinite(shift):
            return False
        shown.flat[:: self.d + 1] -= shift
        try:
            _linalg.cholesky(shown)
        except np.linalg.LinAlgError:
            return False
        return True

    # ---- Lanczos ------------------------------------------------------------------------------------------

    def _lanczos(self, most: int, enough: Callable[[Floats], bool]) -> _Ritz:
        """Lanczos on L_old' M_new^-1 L_old, whose eigenvalues are those of the pencil inverted.

        Until the residuals, relative to the largest value, are enough; they are looked at every few steps.
        """
        most = min(most, self.d)
        ritz = _Ritz(most, self.d)
        vector = np.cos(np.arange(1.0, self.d + 1.0))  # no eigenvector of anything likely
        vector /= np.sqrt(vector @ vector)
        for step in range(1, most + 1):
            vector, complete = ritz.add(vector, self._inverted(vector))
            if step % 8 == 0 or step == most or complete:
                ritz.solve()
                if complete or enough(ritz.residual):
                    break
        return ritz

    def _inverted(self, vector: Floats) -> Floats:
        # row-major lower factors are column-major upper ones: trans=1 applies L, trans=0 L'
        old, new = self.old_factor.T, self.new_factor.T
        out = blas.dtrmv(old, vector, trans=1)
        out = blas.dtrsv(new, out, trans=1, overwrite_x=1)
        out = blas.dtrsv(new, out, trans=0, overwrite_x=1)
        return np.asarray(blas.dtrmv(old, out, trans=0, overwrite_x=1))


class _Ritz:
    """An orthonormal basis that grows, and what the operator is in it."""

    value: Floats  # Ritz values, descending
    residual: Floats  # of their vectors, relative to the largest value

    def __init__(self, most: int, d: int) -> None:
        self._basis = np.empty((most, d))
        self._diagonal: list[float] = []
        self._beside: list[float] = []
        self._weight = np.empty((0, 0))

    def add(self, vector: Floats, image: Floats) -> tuple[Floats, bool]:
        """Take the next vector and its image; the vector after it, and whether there is none."""
        self._basis[len(self._diagonal)] = vector
        self._diagonal.append(float(vector @ image))
        basis = self._basis[: len(self._diagonal)]
        for _ in range(2):  # orthogonal to working precision after the second time
            image = image - (basis @ image) @ basis
        norm = float(np.sqrt(image @ image))
        self._beside.append(norm)
        return image / norm, not norm > 1e-13 * max(map(abs, self._diagonal))

    def solve(self) -> None:
        beside = self._beside[:-1]
        tridiagonal = np.diag(self._diagonal) + np.diag(beside, 1) + np.diag(beside, -1)
        value, weight = np.linalg.eigh(tridiagonal)
        self.value, self._weight = value[::-1], weight[:, ::-1]
        self.residual = np.abs(self._beside[-1] * self._weight[-1]) / self.value[0]

    def vectors(self, which: NDArray[np.int64]) -> Floats:
        """Ritz vectors by row."""
        return np.asarray(self._weight[:, which].T @ self._basis[: len(self._diagonal)])


def _split(inverse: Floats, d: int, count: int, low_most: int, high_most: int) -> tuple[int, int]:
    """How many directions to take from the low and the high end of the pencil; ``inverse`` descends.

    The split with the smallest expected bound of a row whose energy is spread evenly over the pencil.
    """
    best, smallest = (0, 0), np.inf
    for low in range(min(count, low_most, len(inverse) - 1) + 1):
        high = min(count - low, high_most, len(inverse) - low - 1)
        ends = np.sum(inverse[:low]) + np.sum(inverse[len(inverse) - high :])
        expected = float(ends + (d - low - high) * inverse[low])
        if expected < smallest:
            best, smallest = (low, high), expected
    return best


# ---------------------------------------------------------------------------------------------- rows


def first_unequal(new: Pool, old: Pool, previous: NDArray[np.int64]) -> int:
    """The first conversation whose row differs in value from row ``previous`` of the old pool, or -1.

    Conversations with a negative ``previous`` are passed over. Rows are read in blocks; what is stored in two
    types is compared by value.
    """
    step = max(1, BLOCK_NUMBERS // new.d)
    for start in range(0, len(previous), step):
        before = previous[start : start + step]
        claimed = np.flatnonzero(before >= 0)
        if len(claimed) == 0:
            continue
        equal = _equal(new, claimed + start, old, before[claimed])
        if not equal.all():
            return start + int(claimed[np.argmin(equal)])
    return -1


def _equal(new: Pool, i: NDArray[np.int64], old: Pool, j: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Whether conversations i of one pool have the differences of conversations j of the other."""
    if (new.prompt_offsets is None) != (old.prompt_offsets is None):
        return np.asarray((new.take(i) == old.take(j)).all(axis=1))
    if new.prompt_offsets is None:
        return _equal_rows(new, i, old, j)
    # pairs of equal completions; each completion is compared once
    rows = np.stack([new.pairs(i), old.pairs(j)], axis=2).reshape(-1, 2)
    rows, where = np.unique(rows, axis=0, return_inverse=True)
    return np.asarray(_equal_rows(new, rows[:, 0], old, rows[:, 1])[where].reshape(-1, 2).all(axis=1))


def _equal_rows(new: Pool, i: NDArray[np.int64], old: Pool, j: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Whether stored rows, of differences or completions, have the same values."""
    if new.rows is not None and old.rows is not None and new.dtype_name == old.dtype_name:
        bits = f"u{new.rows.dtype.itemsize}"
        equal = np.asarray((new.stored()[_run(i)].view(bits) == old.stored()[_run(j)].view(bits)).all(axis=1))
        if equal.all():
            return equal
    return np.asarray((_values(new, i) == _values(old, j)).all(axis=1))


def _values(pool: Pool, rows: NDArray[np.int64]) -> Floats:
    """Stored rows as float64; of a file, those next to each other are read in one go."""
    at = _run(rows)
    if isinstance(at, slice) and pool.prompt_offsets is None:
        return pool.block(at.start, at.stop)
    return pool._gathered(rows)


def _run(index: NDArray[np.int64]) -> slice | NDArray[np.int64]:
    """Consecutive indices as a slice, which reads without copying."""
    if np.all(np.diff(index) == 1):
        return slice(int(index[0]), int(index[-1]) + 1)
    return index
