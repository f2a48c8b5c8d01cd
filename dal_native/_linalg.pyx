# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, freethreading_compatible=True
"""Small dense linear algebra on lower Cholesky factors, by SciPy's BLAS and LAPACK, without the GIL.

Matrices are row-major (d, d) float64; only the lower triangle of a factor is read, and its upper triangle is zero.
A row-major lower triangle is a column-major upper one, so LAPACK is called with 'U' throughout.
"""

from libc.math cimport hypot, isfinite, log
from scipy.linalg.cython_blas cimport drot, dtrsm
from scipy.linalg.cython_lapack cimport dpotrf, dtrtri

import numpy as np

from dal_native._dispatch import single_threaded_blas


cdef int lower_cholesky(double* a, int d) noexcept nogil:
    """a <- L with a = L L'. Returns 0, or k > 0 where the leading minor of order k is not positive."""
    cdef int status = 0, i, j
    cdef char upper = b'U'
    dpotrf(&upper, &d, a, &d, &status)
    for i in range(d):
        for j in range(i + 1, d):
            a[<Py_ssize_t>i * d + j] = 0.0
        if status == 0 and not isfinite(a[<Py_ssize_t>i * d + i]):
            status = i + 1
    return status


cdef int lower_inverse(double* factor, int d) noexcept nogil:
    """factor <- L^-1. Returns 0, or k > 0 where L[k-1, k-1] is zero."""
    cdef int status = 0
    cdef char upper = b'U', diagonal = b'N'
    dtrtri(&upper, &diagonal, &d, factor, &d, &status)
    return status


cdef void lower_solve(const double* factor, double* b, int d, int k, bint transposed) noexcept nogil:
    """b <- L^-1 b, or L'^-1 b when transposed, for k right-hand sides, the rows of b (k, d)."""
    # column-major, b is (d, k) and the factor is U = L': L b = c is U' b = c
    cdef char left = b'L', upper = b'U', diagonal = b'N', operation = b'N' if transposed else b'T'
    cdef double one = 1.0
    if k > 0:
        dtrsm(&left, &upper, &operation, &diagonal, &d, &k, &one, <double*>factor, &d, b, &d)


cdef double lower_log_det(const double* factor, int d) noexcept nogil:
    """log det(L L') = 2 sum log L_kk."""
    cdef double total = 0.0
    cdef int k
    for k in range(d):
        total += log(factor[<Py_ssize_t>k * d + k])
    return 2.0 * total


cdef int lower_update(double* factor, double* x, int d) noexcept nogil:
    """L <- the factor of L L' + x x', by one Givens rotation per column (LINPACK's dchud); x is destroyed.

    Rotations are orthogonal, so errors do not grow with the number of updates. Returns 0, or k > 0 where the
    diagonal is no longer finite and positive.
    """
    cdef int k, rest, one = 1
    cdef double r, c, s
    cdef double* diagonal
    for k in range(d):
        diagonal = factor + <Py_ssize_t>k * d + k
        r = hypot(diagonal[0], x[k])
        if not (r > 0.0 and isfinite(r)):
            return k + 1
        c = diagonal[0] / r
        s = x[k] / r
        diagonal[0] = r
        rest = d - k - 1
        if rest > 0:
            drot(&rest, diagonal + d, &d, x + k + 1, &one, &c, &s)
    return 0


def _refuse(status, what):
    raise np.linalg.LinAlgError(f"{what} is not positive definite (leading minor of order {status})")


def _square(double[:, ::1] a, Py_ssize_t d):
    if a.shape[0] != d or a.shape[1] != d or d == 0:
        raise ValueError(f"factor has shape ({a.shape[0]}, {a.shape[1]}); expected a square of side {d}")


def cholesky(matrix):
    """Lower Cholesky factor of a symmetric matrix, (d, d); LinAlgError when it is not positive definite."""
    out = np.array(matrix, dtype=np.float64, order="C", copy=True, ndmin=2)
    cdef double[:, ::1] a = out
    cdef int d = <int>a.shape[0], status
    _square(a, d)
    with single_threaded_blas():
        with nogil:
            status = lower_cholesky(&a[0, 0], d)
    if status:
        _refuse(status, "information matrix")
    return out


def triangular_inverse(factor):
    """L^-1 of a lower factor, (d, d)."""
    out = np.array(factor, dtype=np.float64, order="C", copy=True, ndmin=2)
    cdef double[:, ::1] a = out
    cdef int d = <int>a.shape[0], status
    _square(a, d)
    with single_threaded_blas():
        with nogil:
            status = lower_inverse(&a[0, 0], d)
    if status:
        raise np.linalg.LinAlgError(f"factor is singular: its diagonal is zero in row {status - 1}")
    return out


def solve(const double[:, ::1] factor, right):
    """M^-1 b = L'^-1 L^-1 b for each row b of ``right``, (k, d); M = L L'."""
    return _solve(factor, right, True, True)


def solve_lower(const double[:, ::1] factor, right):
    """L^-1 b for each row b of ``right``, (k, d)."""
    return _solve(factor, right, True, False)


def solve_lower_transposed(const double[:, ::1] factor, right):
    """L'^-1 b for each row b of ``right``, (k, d)."""
    return _solve(factor, right, False, True)


cdef _solve(const double[:, ::1] factor, right, bint forward, bint backward):
    out = np.array(right, dtype=np.float64, order="C", copy=True, ndmin=2)
    cdef double[:, ::1] b = out
    cdef int d = <int>factor.shape[0], k = <int>b.shape[0]
    if factor.shape[0] == 0 or factor.shape[1] != d or b.shape[1] != d:
        raise ValueError(f"right-hand sides have {b.shape[1]} columns; expected {d}, as the factor")
    if k == 0:
        return out
    with single_threaded_blas():
        with nogil:
            if forward:
                lower_solve(&factor[0, 0], &b[0, 0], d, k, False)
            if backward:
                lower_solve(&factor[0, 0], &b[0, 0], d, k, True)
    return out


def log_det(const double[:, ::1] factor):
    """log det M = 2 sum log L_kk."""
    if factor.shape[0] == 0 or factor.shape[0] != factor.shape[1]:
        raise ValueError("factor is not a square of side at least 1")
    cdef double total
    with nogil:
        total = lower_log_det(&factor[0, 0], <int>factor.shape[0])
    return total


def update(double[:, ::1] factor, x):
    """Turn the factor of M into the factor of M + x x', in place; LinAlgError (factor spoilt) on overflow."""
    work = np.array(x, dtype=np.float64, order="C", copy=True, ndmin=1)
    cdef double[::1] v = work
    cdef int d = <int>v.shape[0], status
    _square(factor, d)
    with single_threaded_blas():
        with nogil:
            status = lower_update(&factor[0, 0], &v[0], d)
    if status:
        _refuse(status, "updated information matrix")
