"""What the solvers of the pessimistic policy share: validated input, passes over completions, the result."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import LinAlgError, cholesky, lapack, solve_triangular

import dal_native as dn
from dal_native import _validate

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Vector = NDArray[np.float64]
Integers = NDArray[np.int64]
Mask = NDArray[np.bool_]
Result = TypeVar("Result", bound="DataclassInstance")
#: Groups of prompts whose vertices are kept apart: more mean fewer reads and larger systems.
GROUPS = 32
#: The largest finite radius: its products with positions stay far from overflow.
LARGEST_RADIUS = 1e100
#: Called with the reads made and the gap proved so far.
Progress = Callable[[int, float], object]


class PolicyNotConverged(UserWarning):
    """The duality gap asked for was not reached; the policy is valid and its `duality_gap` still a bound."""


@dataclass(frozen=True, eq=False)
class PessimisticPolicy:
    """A policy over the completions of each prompt, with what can be proved about it.

    Attributes
    ----------
    probability : ndarray, (N,)
        Of each completion; sums to one within each prompt.
    choice : ndarray of int64, (P,)
        The most probable completion of each prompt, counted from 0 within the prompt (the first of equals).
    value : float
        (x(pi) - nu)' reward: the estimated value relative to the reference, the mean over prompts.
    lower_bound : float
        V(pi) = value - radius |x(pi) - nu|_{M^-1}: the value under the worst reward of the ellipsoid.
    duality_gap : float
        No policy's objective (V, less temperature times divergence) is larger than this one's by more.
    converged : bool
        Whether the gap asked for was reached.
    n_iter : int
        Iterations: Newton steps and vertices added.
    reads : int
        How many times all completions were read; reads of some of them count with their share, rounded up.
    least_favourable_reward : ndarray, (d,)
        The reward of the ellipsoid that certifies the gap. With a temperature the policy is its softmax; at
        temperature 0 the optimum may mix completions that tie under it.
    divergence : float
        Mean Kullback-Leibler divergence from the base policy (0 at temperature 0, where it plays no part).
    radius, temperature : float
        As given.
    reference : ndarray, (d,)
        The reference point nu used.
    scale : float
        What `rtol` refers to: how much the greedy policy expects to win over the base policy under the
        estimate, E_s [max_a phi'reward - E_base phi'reward]; with an infinite radius the distance
        |x(base) - nu|_{M^-1}. NaN where neither was needed.
    """

    probability: Vector
    choice: Integers
    value: float
    lower_bound: float
    duality_gap: float
    converged: bool
    n_iter: int
    reads: int
    least_favourable_reward: Vector
    divergence: float
    radius: float
    temperature: float
    reference: Vector
    scale: float = np.nan


@dataclass
class Problem:
    """Validated input, and the passes over the completions that every method is built from."""

    pool: dn.Pool
    offsets: Integers
    weight: Vector  # (P,) of the prompts, sums to 1
    reward: Vector
    factor: Vector  # L
    allowed: Mask | None = None
    base: Vector | None = None  # the base policy, nothing where forbidden; None: uniform
    progress: Progress | None = None
    rows: dn.Pool = field(init=False)  # of the pool, one by one
    groups: Integers = field(init=False)  # (G + 1,) first prompt of each group, then P
    reference: Vector = field(init=False)
    shift: Vector = field(init=False)  # (G, d) each group's part of nu
    at_base: Vector | None = None  # x of the base policy, once read
    spent: float = 0.0

    def __post_init__(self) -> None:
        self.rows = self.pool.completions
        n_prompts = len(self.weight)
        n_groups = min(GROUPS, n_prompts)
        self.groups = (np.arange(n_groups + 1) * n_prompts) // n_groups

    @property
    def counts(self) -> Integers:
        return np.diff(self.offsets)

    @property
    def uniform(self) -> Vector | None:
        """The uniform policy over the allowed completions, None where all are allowed."""
        return None if self.allowed is None else normalised(self.allowed.astype(np.float64), self.offsets)

    @property
    def reads(self) -> int:
        return int(np.ceil(self.spent - 1e-9))

    def best(self, theta: Vector) -> tuple[Integers, Vector, Vector]:
        """Row and reward of each prompt's best completion, and each group's part of x: one read."""
        self.spent += 1.0
        return dn.best_completions(
            self.pool, theta, self.weight, prompt_groups=self.groups, allowed=self.allowed
        )

    def softmax(
        self, theta: Vector, tau: float, base: Vector | None
    ) -> tuple[Vector, Vector, Vector, Vector]:
        """Log partition, expected reward, each group's part of x, and the policy: one read."""
        self.spent += 1.0
        return dn.softmax_completions(self.pool, theta, tau, base, self.weight, prompt_groups=self.groups)

    def mean(self, policy: Vector | None) -> Vector:
        """Each group's part of x(pi), (G, d): the softmax of a policy under the reward 0 is that policy."""
        return self.softmax(np.zeros(self.pool.d), 1.0, policy)[2]

    def advantage(self, best: float) -> float:
        """E_s [max_a - E_base] phi'reward, from the first part: one read, unless nu was the base policy."""
        if self.at_base is None:
            self.at_base = self.mean(self.base).sum(axis=0)
        return max(0.0, best - float(self.at_base @ self.reward))

    def differences(self, a: Integers, b: Integers) -> Vector:
        """phi(b) - phi(a) of these rows."""
        self.spent += 2.0 * len(a) / max(1, int(self.offsets[-1]))
        return np.asarray(self.rows.take(b) - self.rows.take(a))

    def whiten(self, difference: Vector) -> Vector:
        """L^-1 (x - nu), for a vector or a (k, d) stack of them."""
        return np.ascontiguousarray(self._solved(difference.T, "N").T)

    def unwhiten(self, r: Vector) -> Vector:
        """L'^-1 r: from whitened to a reward vector."""
        return np.asarray(self._solved(r, "T"))

    def _solved(self, b: Vector, trans: str) -> Vector:
        if not np.isfinite(b).all():
            raise ValueError(
                "completions, reference or radius are too large beside M: what is computed of them overflows"
            )
        return np.asarray(solve_triangular(self.factor, b, lower=True, trans=trans, check_finite=False))

    def value(self, z: Vector, gamma: float) -> tuple[float, float]:
        """(x - nu)'theta_hat and V = (x - nu)'theta_hat - gamma |x - nu|_{M^-1}."""
        value = float((self.factor.T @ self.reward) @ z)
        length = float(np.linalg.norm(z))
        return value, value - (gamma * length if length > 0 else 0.0)

    def told(self, gap: float) -> None:
        if self.progress is not None:
            self.progress(self.reads, float(gap))

    def result(
        self,
        probability: Vector,
        z: Vector,
        theta: Vector,
        gap: float,
        goal: float,
        *,
        gamma: float,
        n_iter: int,
        tau: float = 0.0,
        divergence: float = 0.0,
        scale: float = np.nan,
    ) -> PessimisticPolicy:
        """The result; warns where the gap stayed above the goal."""
        gap = max(0.0, float(gap))
        if gap > goal:
            warnings.warn(
                f"duality gap {gap:.3g} after {n_iter} iterations is above tol {goal:.3g}; "
                "it is still a valid bound",
                PolicyNotConverged,
                stacklevel=4,
            )
        value, bound = self.value(z, gamma)
        return PessimisticPolicy(
            probability, first_largest(probability, self.offsets) - self.offsets[:-1], value, bound, gap,
            gap <= goal, n_iter, self.reads, theta, divergence, gamma, tau, self.reference, scale,
        )  # fmt: skip


def first_largest(values: Vector, offsets: Integers) -> Integers:
    """Row of the first largest value in each prompt."""
    largest = np.maximum.reduceat(values, offsets[:-1])
    hits = np.flatnonzero(values == np.repeat(largest, np.diff(offsets)))
    return np.asarray(hits[np.searchsorted(hits, offsets[:-1])])


def normalised(weights: Vector, offsets: Integers) -> Vector:
    """Divided by their sum within each prompt."""
    return np.asarray(weights / np.repeat(np.add.reduceat(weights, offsets[:-1]), np.diff(offsets)))


# --------------------------------------------------------------------------------------------- what is given


def made_problem(
    completions: Any,
    prompt_offsets: Any,
    reward: Any,
    M: Any,
    prompt_weight: Any,
    base_policy: Any = None,
    allowed: Any = None,
    progress: Progress | None = None,
) -> Problem:
    if progress is not None and not callable(progress):
        raise ValueError(f"progress is a {type(progress).__name__}; expected a function of reads and gap")
    pool = pool_of(completions, prompt_offsets)
    offsets = pool.prompt_offsets
    assert offsets is not None
    if len(offsets) < 2:
        raise ValueError("prompt_offsets holds no prompt; expected at least one")
    theta = _validate.reward(reward, pool.d)
    factor = np.eye(pool.d) if M is None else factor_of(M, pool.d)
    weight = prompt_weights(prompt_weight, len(offsets) - 1)
    open_to = _allowed(allowed, offsets)
    base = _base_policy(base_policy, open_to, offsets)
    return Problem(pool, offsets, weight, theta, factor, open_to, base, progress)


def pool_of(completions: Any, prompt_offsets: Any) -> dn.Pool:
    """Completions by prompt: a pool of them as it is, or one made of an array and its offsets."""
    if not isinstance(completions, dn.Pool):
        return dn.Pool.from_completions(completions, prompt_offsets).in_numpy()
    if completions.prompt_offsets is None:
        raise ValueError(
            "completions is a pool of differences; expected one of the completions of prompts, "
            "Pool.from_completions"
        )
    if prompt_offsets is not None:
        raise ValueError("prompt_offsets must be None where completions is a pool, which has its own")
    return completions.in_numpy()


def at_home(result: Result, completions: Any) -> Result:
    """A result with its arrays where the completions live: torch tensors where these are such, not copied."""
    module = completions.home if isinstance(completions, dn.Pool) else _validate.home(completions)
    if module is None:
        return result
    held = {part.name: getattr(result, part.name) for part in fields(result)}
    moved = {
        name: _validate.like_input(array, module)
        for name, array in held.items()
        if isinstance(array, np.ndarray)
    }
    return replace(result, **moved)


def factor_of(M: Any, d: int) -> Vector:
    """Lower Cholesky factor of M; LinAlgError where M is not, or hardly, positive definite."""
    matrix = M.matrix if isinstance(M, dn.InformationMatrix) else M
    matrix = _validate.symmetric(matrix, d, "M")
    try:
        factor = cholesky(matrix, lower=True)
    except LinAlgError:
        raise LinAlgError(
            "M is not positive definite; expected an information matrix (ridge included)"
        ) from None
    rcond, _ = lapack.dpocon(factor, float(np.abs(matrix).sum(axis=0).max()), uplo="L")
    if not rcond > np.finfo(np.float64).eps:
        raise LinAlgError(
            f"M is singular to working precision (reciprocal condition {rcond:.1e}); use a larger ridge"
        )
    return np.asarray(factor)


def radius_of(value: Any) -> float:
    if not isinstance(value, (bool, str)) and np.ndim(value) == 0 and value == np.inf:
        return float(np.inf)
    radius = _validate.number(value, "radius", 0.0)
    if radius > LARGEST_RADIUS:
        raise ValueError(f"radius is {radius:g}; expected at most {LARGEST_RADIUS:g}, or inf")
    return radius


def prompt_weights(values: Any, n_prompts: int) -> Vector:
    if values is None:
        return np.full(n_prompts, 1.0 / n_prompts)
    weight: Vector = _validate.floats(values, "prompt_weight", 1)
    _validate.length(weight, n_prompts, "prompt_weight", "prompt")
    if (weight < 0).any() or not weight.sum() > 0 or not np.isfinite(weight.sum()):
        raise ValueError("prompt_weight must be non-negative with a positive, finite sum")
    return np.asarray(weight / weight.sum())


def _allowed(values: Any, offsets: Integers) -> Mask | None:
    """Which completions may be chosen; None where all may."""
    if values is None:
        return None
    mask = _validate.array(values, "allowed")
    if mask.dtype != np.bool_ or mask.ndim != 1:
        raise ValueError(f"allowed has dtype {mask.dtype} and {mask.ndim} axes; expected one axis of bool")
    _validate.length(mask, int(offsets[-1]), "allowed", "completion")
    _none_left(np.logical_or.reduceat(mask, offsets[:-1]), "allowed forbids every completion of prompt")
    return None if mask.all() else np.ascontiguousarray(mask)


def _none_left(some: Mask, words: str) -> None:
    if not some.all():
        raise ValueError(f"{words} {int(np.argmin(some))}; expected at least one to choose from")


def policy_of(values: Any, offsets: Integers, name: str) -> Vector:
    """Probabilities (N,) that sum to one in each prompt, to within rounding; divided by their sums."""
    policy = _validate.floats(values, name, 1)
    _validate.length(policy, int(offsets[-1]), name, "completion")
    if (policy < 0).any():
        raise ValueError(f"{name} holds {policy.min():g}; expected probabilities")
    total = np.add.reduceat(policy, offsets[:-1])
    wrong = np.abs(total - 1.0) > 1e-6
    if wrong.any():
        p = int(np.argmax(wrong))
        raise ValueError(f"{name} sums to {total[p]:g} in prompt {p}; expected 1 in every prompt")
    return np.asarray(policy / np.repeat(total, np.diff(offsets)))


def _base_policy(values: Any, allowed: Mask | None, offsets: Integers) -> Vector | None:
    """The base policy within the allowed completions; None where it is uniform over all."""
    if values is None:
        return None if allowed is None else normalised(allowed.astype(np.float64), offsets)
    base = policy_of(values, offsets, "base_policy")
    if allowed is None:
        return base
    base = np.where(allowed, base, 0.0)
    some = np.add.reduceat(base, offsets[:-1]) > 0
    _none_left(some, "base_policy is 0 at every allowed completion of prompt")
    return normalised(base, offsets)


def uniform_policy(problem: Problem) -> Vector:
    uniform = problem.uniform
    return np.repeat(1.0 / problem.counts, problem.counts) if uniform is None else uniform


def set_reference(problem: Problem, reference: Any) -> Vector | None:
    """Fix nu; returns the policy that sits on it, where there is one by construction."""
    d = problem.pool.d
    if isinstance(reference, str):
        name = _validate.one_of(reference, "reference", ("mean", "base"))
        anchor = problem.base if name == "base" else problem.uniform
        problem.shift = problem.mean(anchor)
        problem.reference = problem.shift.sum(axis=0)
        if name == "base" or problem.base is None:
            problem.at_base = problem.reference
        return uniform_policy(problem) if anchor is None else anchor
    nu = np.zeros(d) if reference is None else _validate.floats(reference, "reference", 1)
    _validate.length(nu, d, "reference", "feature")
    with np.errstate(over="ignore", invalid="ignore"):
        finite = np.isfinite(nu @ problem.reward)
    if not finite:
        raise ValueError("reference is too large beside reward: their product overflows")
    share = np.add.reduceat(problem.weight, problem.groups[:-1])
    problem.reference, problem.shift = nu, share[:, None] * nu
    return None
