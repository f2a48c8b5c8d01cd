"""The compiled backend: unwraps pools, hands arrays to the C++ kernels, computes nothing itself.

The SIMD level is the highest this processor offers, or the one the environment variable DAL_NATIVE_SIMD names
("generic", "avx2", "avx512", "avx512bf16" or "amx").
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import lapack

from dal_native import _kernels, _linalg
from dal_native._dispatch import BackendConfigurationError, single_threaded_blas

try:
    SIMD_LEVEL = _kernels.simd_level()
except ValueError as error:  # an impossible DAL_NATIVE_SIMD must not be passed over by "auto"
    raise BackendConfigurationError(str(error)) from None

if TYPE_CHECKING:
    from dal_native.pool import Pool
    from dal_native.selection import SelectionProblem

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


def capabilities() -> dict[str, Any]:
    """SIMD level in use, and those this processor offers."""
    return {"simd": {"level": SIMD_LEVEL, "available": _kernels.available_levels()}}


def _view(pool: Pool) -> _kernels.PoolView:
    rows = pool.stored(_kernels.RowFile)
    offsets = pool.prompt_offsets, pool.pair_offsets
    return _kernels.PoolView(rows, pool.dtype_name, pool.category, *offsets, pool.pair_rows)


def first_nonfinite(rows: NDArray[Any], dtype_name: str, threads: int) -> int:
    return _kernels.first_nonfinite(rows, dtype_name, threads)


def margin(pool: Pool, reward: Floats, out: Floats, threads: int) -> None:
    _kernels.margin(_view(pool), reward, out, threads)


def choice_probability(margin: Floats, rationality: Floats, out: Floats, threads: int) -> None:
    _kernels.choice_probability(margin, rationality, out, threads)


def choice_weight(margin: Floats, rationality: Floats, out: Floats, threads: int) -> None:
    _kernels.choice_weight(margin, rationality, out, threads)


def softplus_moments(mean: Floats, sd: Floats, out: Floats, threads: int) -> None:
    _kernels.softplus_moments(mean, sd, out, threads)


def best_teacher(
    margin: Floats,
    category: NDArray[np.int32],
    rationality: Floats,
    available: NDArray[np.uint8],
    out_teacher: Integers,
    out_weight: Floats,
    threads: int,
) -> None:
    _kernels.best_teacher(margin, category, rationality, available, out_teacher, out_weight, threads)


def leverage(
    pool: Pool,
    factor: Floats,
    conversations: Integers | None,
    single: bool,
    reference: Floats | None,
    out: Floats,
    threads: int,
) -> None:
    _kernels.leverage(_view(pool), _inverse_of(factor), conversations, single, reference, out, threads)


#: id of a factor -> the factor, weakly, and its inverse.
_inverses: dict[int, tuple[weakref.ref[Floats], Floats]] = {}


def _inverse_of(factor: Floats) -> Floats:
    """L^-1, d^3 / 3 operations, kept as long as the factor lives: some callers come with one row at a time.

    Factors are never written to once they are made (`InformationMatrix.add` makes a new one).
    """
    known = _inverses.get(id(factor))
    if known is not None and known[0]() is factor:
        return known[1]
    inverse, key, kept = _linalg.triangular_inverse(factor), id(factor), _inverses
    kept[key] = weakref.ref(factor, lambda _: kept.pop(key, None)), inverse
    return inverse


def information_gain(
    pool: Pool,
    reward: Floats,
    rationality: Floats,
    factor: Floats,
    conversations: Integers | None,
    out: Floats,
    threads: int,
) -> None:
    inverse = _linalg.triangular_inverse(factor)
    _kernels.information_gain(_view(pool), reward, rationality, inverse, conversations, out, threads)


def information_matrix(
    pool: Pool, weight: Floats, ridge: float, single: bool, out: Floats, threads: int
) -> None:
    _kernels.information_matrix(_view(pool), weight, ridge, single, out, threads)


def weighted_sum(pool: Pool, weight: Floats, out: Floats, threads: int) -> None:
    _kernels.weighted_sum(_view(pool), weight, out, threads)


def hessian_vector(pool: Pool, weight: Floats, vector: Floats, out: Floats, threads: int) -> None:
    _kernels.hessian_vector(_view(pool), weight, vector, out, threads)


def weighted_sum_by_cell(
    pool: Pool, row: Integers | None, weight: Floats, cell: Integers, out: Floats, threads: int
) -> None:
    _kernels.weighted_sum_by_cell(_view(pool), row, weight, cell, out, threads)


def best_completions(
    pool: Pool,
    reward: Floats,
    prompt_weight: Floats,
    prompt_groups: Integers,
    allowed: NDArray[np.uint8] | None,
    out_row: Integers,
    out_best: Floats,
    out_mean: Floats,
    threads: int,
) -> None:
    given = (reward, prompt_weight, prompt_groups, allowed)
    with _overflow_as_bad_value():
        _kernels.best_completions(_view(pool), *given, out_row, out_best, out_mean, threads)


def softmax_completions(
    pool: Pool,
    reward: Floats,
    temperature: float,
    base_policy: Floats | None,
    prompt_weight: Floats,
    prompt_groups: Integers,
    out_log_partition: Floats,
    out_expected: Floats,
    out_mean: Floats,
    out_probability: Floats,
    threads: int,
) -> None:
    given = (reward, temperature, base_policy, prompt_weight, prompt_groups)
    out = (out_log_partition, out_expected, out_mean, out_probability)
    with _overflow_as_bad_value():
        _kernels.softmax_completions(_view(pool), *given, *out, threads)


@contextmanager
def _overflow_as_bad_value() -> Iterator[None]:
    try:
        yield
    except OverflowError as error:
        raise ValueError(f"{error}; expected smaller completions or reward") from None


def update_leverage(pool: Pool, direction: Floats, coefficient: float, out: Floats, threads: int) -> None:
    _kernels.update_leverage(_view(pool), direction, coefficient, out, threads)


def bradley_terry_loss(
    pool: Pool,
    choice: Floats,
    reward: Floats,
    rationality: Floats,
    sample_weight: Floats,
    out_gradient: Floats,
    out_rationality_gradient: Floats,
    threads: int,
) -> float:
    return _kernels.bradley_terry_loss(
        _view(pool),
        choice,
        reward,
        rationality,
        sample_weight,
        out_gradient,
        out_rationality_gradient,
        threads,
    )


def reuse_from() -> int:
    """Conversations a feature from which looking at the pool anew costs more than proving what is known.

    The proof takes O(d^3), a look O(n d^2): measured at d = 256 and 512, two threads.
    """
    return 1000 if SIMD_LEVEL == "amx" else 100


#: Screening can pay from so many conversations a feature on: an eigensolve is not free.
_SCREEN_FROM = 40


def _spectrum(problem: SelectionProblem) -> tuple[Floats, Floats] | None:
    """Eigenvalues of M, ascending, and eigenvectors by row."""
    with single_threaded_blas():
        values, vectors, failed = lapack.dsyevd(problem.matrix)
    if failed:  # no spectrum, no screening: slower, never wrong
        return None
    return values, np.ascontiguousarray(vectors.T)


def _inverse_norm(matrix: Floats, factor: Floats) -> float:
    """At least the spectral norm of L^-1, proved by a Cholesky factorisation; 0.0 where none succeeds.

    The smallest eigenvalue is guessed by inverse iteration; M - r I is positive semidefinite if, less the
    backward error of the factorisation (below (d + 1) eps times the trace), it has a factor.
    """
    d = len(matrix)
    v = np.cos(np.arange(1.0, d + 1.0))
    for _ in range(8):
        v = _linalg.solve(factor, v)[0]
        length = float(np.max(np.abs(v)))
        if not 0.0 < length < np.inf:
            return 0.0
        v /= length
    shift = 4.0 * (d + 1) * np.finfo(np.float64).eps * float(np.trace(matrix))
    for share in (0.95, 0.85, 0.7, 0.4):
        smallest = share / length
        shifted = matrix.copy()
        shifted.flat[:: d + 1] -= smallest + shift
        try:
            _linalg.cholesky(shifted)
        except np.linalg.LinAlgError:
            continue
        return float(1.0 / np.sqrt(smallest))
    return 0.0


def select_batch(problem: SelectionProblem) -> dict[str, Any]:
    dense, products = problem.method == "dense", SIMD_LEVEL in ("avx512bf16", "amx")
    screening = not dense and len(problem.pool) >= _SCREEN_FROM * problem.pool.d
    try:
        return _kernels.select_batch(
            _view(problem.pool),
            problem.reward,
            problem.rationality,
            problem.upper,
            problem.matrix,
            problem.factor,
            problem.inverse_factor,
            _inverse_norm(problem.matrix, problem.factor) if products and not dense else 0.0,
            (lambda: _spectrum(problem)) if screening or problem.route == "screened" else None,
            problem.available,
            problem.capacity,
            problem.cost,
            problem.blocked,
            problem.exclude_conversation,
            problem.exclude_offsets,
            problem.exclude_teacher,
            problem.candidate_offsets,
            problem.candidate_teacher,
            min(problem.size, 1 << 62),
            min(problem.repeats, len(problem.rationality)),
            problem.optimism,
            dense,
            problem.route,
            problem.known_leverage,
            problem.known_scale,
            problem.leverage_out,
            problem.threads,
            problem.progress,
        )
    except OverflowError as error:
        raise ValueError(f"{error}; expected smaller differences or a larger ridge") from None
