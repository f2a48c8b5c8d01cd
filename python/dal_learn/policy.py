r"""The pessimistic policy: the best answer that the labels can vouch for.

A policy pi picks, for every prompt s, a distribution over its completions; its mean features are
x(pi) = E_s sum_a pi(a|s) phi(s, a). Labels of pairs identify rewards up to a constant only, so a policy
is judged against a reference point nu, and against every reward of the confidence ellipsoid around the
estimate:

    V(pi) = min over |theta - reward|_M <= radius of (x(pi) - nu)' theta
          = (x(pi) - nu)' reward - radius |x(pi) - nu|_{M^-1}

In the whitened coordinates z = L^-1 (x - nu), t = L' reward (M = L L', L lower Cholesky) that is
V = t'z - radius |z|: linear minus a norm, over the polytope of the z that policies reach.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import LinAlgError, cholesky, lapack, solve_triangular

import dal_native as dn
from dal_native import _validate
from dal_native._dispatch import single_threaded_blas
from dal_native.pool import decode

__all__ = [
    "PessimisticPolicy",
    "PolicyNotConverged",
    "greedy_policy",
    "lower_confidence_bound",
    "mean_features",
    "pessimistic_policy",
]

Vector = NDArray[np.float64]
Integers = NDArray[np.int64]

#: Stored numbers decoded at a time (8 MB of float64).
_BLOCK_NUMBERS = 2**20
#: Groups of prompts whose vertices are kept apart: more mean fewer reads and larger systems.
_GROUPS = 16
#: Largest reward in units of the temperature: beyond it a softmax is an argmax to every digit.
_LARGEST_LOGIT = 1e12


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
        Iterations: vertices added (temperature 0) or Newton steps.
    reads : int
        How many times all completions were read.
    least_favourable_reward : ndarray, (d,)
        The reward of the ellipsoid that certifies the gap. With a temperature the policy is its softmax; at
        temperature 0 the optimum may mix completions that tie under it.
    divergence : float
        Mean Kullback-Leibler divergence from the base policy (0 at temperature 0, where it plays no part).
    radius, temperature : float
        As given.
    reference : ndarray, (d,)
        The reference point nu used.
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


# ------------------------------------------------------------------------------------------------ the problem


@dataclass
class _Problem:
    """Validated input, and the passes over the completions that every method is built from."""

    pool: dn.Pool  # validated completions and offsets
    rows: dn.Pool  # the same rows read as differences, so that margin() gives phi'theta
    offsets: Integers
    weight: Vector  # (P,) of the prompts, sums to 1
    reward: Vector
    factor: Vector  # L
    reference: Vector = field(init=False)
    reads: int = 0

    @property
    def counts(self) -> Integers:
        return np.diff(self.offsets)

    @property
    def step(self) -> int:
        return max(1, _BLOCK_NUMBERS // self.pool.d)

    def rewards_of_all(self, theta: Vector) -> Vector:
        """phi'theta of every completion: one read."""
        self.reads += 1
        try:
            return np.asarray(dn.margin(self.rows, theta))
        except ValueError:
            raise ValueError("completions and reward are too large; their products are not finite") from None

    def mean(self, probability: Vector) -> Vector:
        """x(pi) = sum_p weight_p sum_a pi(a|p) phi(p, a), in float64 and in a fixed order: one read."""
        self.reads += 1
        share = probability * np.repeat(self.weight, self.counts)
        used = np.flatnonzero(share)
        return self.weighted(used, share[used])

    def mean_of_groups(self, probability: Vector, bounds: Integers) -> Vector:
        """Each group of prompts' part of x(pi): (G, d); one read."""
        self.reads += 1
        share = probability * np.repeat(self.weight, self.counts)
        edges = self.offsets[bounds]
        return np.stack([self.weighted(np.arange(a, b), share[a:b]) for a, b in pairwise(edges)])

    def weighted(self, rows: Integers, weight: Vector) -> Vector:
        """sum_k weight_k phi(row_k), by blocks."""
        x = np.zeros(self.pool.d)
        for start in range(0, len(rows), self.step):
            stop = start + self.step
            x += weight[start:stop] @ decode(self.pool.stored()[rows[start:stop]], self.pool.dtype_name)
        return x

    def covariance(self, probability: Vector) -> Vector:
        """E_s Cov_{a ~ pi} phi(s, a), centred before it is squared: two reads."""
        self.reads += 2
        total = np.zeros((self.pool.d, self.pool.d))
        share = np.sqrt(probability * np.repeat(self.weight, self.counts))
        for first, last in self.chunks():
            mean = np.stack(
                [
                    self.weighted(np.arange(a, b), probability[a:b])
                    for a, b in zip(self.offsets[first:last], self.offsets[first + 1 : last + 1], strict=True)
                ]
            )
            for start in range(int(self.offsets[first]), int(self.offsets[last]), self.step):
                stop = min(start + self.step, int(self.offsets[last]))
                prompt = np.searchsorted(self.offsets, np.arange(start, stop), side="right") - 1
                centred = decode(self.pool.stored()[start:stop], self.pool.dtype_name) - mean[prompt - first]
                centred *= share[start:stop, None]
                total += centred.T @ centred
        return total

    def chunks(self) -> Iterator[tuple[int, int]]:
        """Runs of prompts with at most a block of completions, or one large prompt."""
        first, n_prompts = 0, len(self.weight)
        while first < n_prompts:
            last = int(np.searchsorted(self.offsets, self.offsets[first] + self.step, side="right")) - 1
            last = min(max(last, first + 1), n_prompts)
            yield first, last
            first = last

    def best_rows(self, margin: Vector) -> tuple[Integers, Vector]:
        """First completion of largest reward in each prompt, and that reward."""
        best = np.maximum.reduceat(margin, self.offsets[:-1])
        hits = np.flatnonzero(margin == np.repeat(best, self.counts))
        first = np.searchsorted(hits, self.offsets[:-1])
        return hits[first], best

    def whiten(self, difference: Vector) -> Vector:
        """L^-1 (x - nu), for a vector or a (k, d) stack of them."""
        return np.ascontiguousarray(solve_triangular(self.factor, difference.T, lower=True).T)

    def unwhiten(self, r: Vector) -> Vector:
        """L'^-1 r: from whitened to a reward vector."""
        return np.asarray(solve_triangular(self.factor, r, lower=True, trans="T"))


def _made_problem(
    completions: Any,
    prompt_offsets: Any,
    reward: Any,
    M: Any,
    prompt_weight: Any,
) -> _Problem:
    pool = dn.Pool.from_completions(completions, prompt_offsets)
    offsets = pool.prompt_offsets
    assert offsets is not None
    if len(offsets) < 2:
        raise ValueError("prompt_offsets holds no prompt; expected at least one")
    theta = _validate.reward(reward, pool.d)
    factor = np.eye(pool.d) if M is None else _factor(M, pool.d)
    weight = _prompt_weight(prompt_weight, len(offsets) - 1)
    return _Problem(pool, dn.Pool(completions), offsets, weight, theta, factor)


def _factor(M: Any, d: int) -> Vector:
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


def _prompt_weight(values: Any, n_prompts: int) -> Vector:
    if values is None:
        return np.full(n_prompts, 1.0 / n_prompts)
    weight: Vector = _validate.floats(values, "prompt_weight", 1)
    _validate.length(weight, n_prompts, "prompt_weight", "prompt")
    if (weight < 0).any() or not weight.sum() > 0 or not np.isfinite(weight.sum()):
        raise ValueError("prompt_weight must be non-negative with a positive, finite sum")
    return np.asarray(weight / weight.sum())


def _base_policy(values: Any, offsets: Integers) -> Vector:
    """The base policy (N,), uniform where none is given."""
    counts = np.diff(offsets)
    if values is None:
        return np.repeat(1.0 / counts, counts)
    base = _validate.floats(values, "base_policy", 1)
    _validate.length(base, int(offsets[-1]), "base_policy", "completion")
    if (base < 0).any():
        raise ValueError(f"base_policy holds {base.min():g}; expected probabilities")
    total = np.add.reduceat(base, offsets[:-1])
    wrong = np.abs(total - 1.0) > 1e-6
    if wrong.any():
        p = int(np.argmax(wrong))
        raise ValueError(f"base_policy sums to {total[p]:g} in prompt {p}; expected 1 in every prompt")
    return np.asarray(base / np.repeat(total, counts))


def _set_reference(problem: _Problem, reference: Any, base: Vector) -> Vector | None:
    """Fix nu; returns the policy that sits on it, where there is one by construction."""
    d = problem.pool.d
    if reference is None:
        problem.reference = np.zeros(d)
        return None
    if isinstance(reference, str):
        name = _validate.one_of(reference, "reference", ("mean", "base"))
        anchor = base if name == "base" else _base_policy(None, problem.offsets)
        problem.reference = problem.mean(anchor)
        return anchor
    nu = _validate.floats(reference, "reference", 1)
    _validate.length(nu, d, "reference", "feature")
    problem.reference = nu
    return None


# ------------------------------------------------------------------------------------------------ public


def pessimistic_policy(
    completions: Any,
    prompt_offsets: ArrayLike,
    reward: ArrayLike,
    M: Any,
    radius: float,
    *,
    reference: ArrayLike | str | None = None,
    temperature: float = 0.0,
    base_policy: ArrayLike | None = None,
    prompt_weight: ArrayLike | None = None,
    tol: float = 1e-6,
    max_iter: int = 2000,
) -> PessimisticPolicy:
    """The policy with the largest lower bound, and a proof of how close to the largest it is.

    Parameters
    ----------
    completions : array_like, (N, d)
        Features phi of all completions, those of one prompt next to each other, in any storage type of
        `dal_native.Pool`; read in blocks, never copied as a whole.
    prompt_offsets : array_like of int, (P + 1,)
        First row of each prompt, then N. Prompts may have different numbers of completions, at least one.
    reward : array_like, (d,)
        The estimate theta_hat.
    M : array_like, (d, d), or InformationMatrix
        Information matrix of the estimate, ridge included, in units where the ellipsoid is
        |theta - theta_hat|_M <= radius.
    radius : float
        See `confidence_radius`. At 0 the policy is greedy. With ``inf`` it goes to the reference point if any
        policy reaches it, else as near as |.|_{M^-1} allows: `lower_bound` is then 0 or -inf,
        `duality_gap` is in units of |x - nu|_{M^-1}, and `least_favourable_reward` is 0 or the unit
        direction of the penalty.
    reference : None, "mean", "base" or array_like (d,), optional
        The reference point nu: zero, the mean of all completions (each prompt's mean, averaged over prompts),
        x of the base policy, or a vector. It matters: only differences of rewards are identified.
    temperature : float, default 0
        With temperature tau > 0 the objective is V(pi) - tau E_s KL(pi | base_policy), and the policy the
        softmax of base_policy exp(phi' theta / tau) under the least favourable reward theta, for this
        tau, base policy and prompt weight only; best-of-n under theta optimises something else. Needs a
        finite radius.
    base_policy : array_like, (N,), optional
        Probabilities within each prompt; uniform by default. At temperature 0 it serves
        ``reference="base"`` only.
    prompt_weight : array_like, (P,), optional
        Weight of each prompt, >= 0; equal by default.
    tol : float, default 1e-6
        Absolute: stop once the duality gap is at most this.
    max_iter : int, default 2000
        Most iterations; each reads all completions once (temperature 0) or about three times.

    Returns
    -------
    PessimisticPolicy

    Raises
    ------
    ValueError
        A shape does not fit, a number is not finite or out of range, a prompt has no completion.
    numpy.linalg.LinAlgError
        M is not positive definite, or singular to working precision.

    Warns
    -----
    PolicyNotConverged
        The gap stayed above `tol`; the policy and its gap are valid all the same.

    Notes
    -----
    Temperature 0: Frank-Wolfe over the product of simplices, one argmax per prompt and iteration, fully
    corrective (every step re-optimises over the vertices kept, which are dropped when their weight
    vanishes) on the smoothed norm sqrt(|z|^2 + eps^2), which costs at most radius * eps and has no kink
    at x(pi) = nu. The certificate holds at the kink too: theta_eps = theta_hat - radius M^-1 z /
    sqrt(|z|^2 + eps^2) lies in the ellipsoid, so E_s max_a (phi - nu)' theta_eps - V(pi) bounds what any
    policy could add. Temperature > 0: Newton steps, each with an exact trust-region solve, on the convex
    tau E_s log sum_a base exp((phi - nu)' theta / tau) over the ellipsoid. Linear algebra runs on one
    thread, so that results do not depend on their number. The design of the objective follows Zhu, Jordan
    and Jiao (2023).

    Examples
    --------
    >>> phi = [[1.0, 0.0], [0.0, 1.0]]  # one prompt, two completions
    >>> M = [[1.0, 0.0], [0.0, 100.0]]  # the second direction is known well
    >>> pessimistic_policy(phi, [0, 2], [1.0, 0.9], M, radius=1.0).choice
    array([1])
    """
    gamma = _radius(radius)
    tau = _validate.number(temperature, "temperature", 0.0)
    tol = _validate.number(tol, "tol", 0.0)
    max_iter = _validate.whole(max_iter, "max_iter", 0)
    if tau > 0 and not np.isfinite(gamma):
        raise ValueError("radius is inf; expected a finite radius when temperature is positive")
    with single_threaded_blas():
        problem = _made_problem(completions, prompt_offsets, reward, M, prompt_weight)
        base = _base_policy(base_policy, problem.offsets)
        anchor = _set_reference(problem, reference, base)
        if tau > 0:
            return _softened(problem, gamma, tau, base, tol, max_iter)
        return _hard(problem, gamma, anchor, tol, max_iter)


def greedy_policy(
    completions: Any,
    prompt_offsets: ArrayLike,
    reward: ArrayLike,
    *,
    M: Any = None,
    radius: float = 0.0,
    reference: ArrayLike | str | None = None,
    base_policy: ArrayLike | None = None,
    prompt_weight: ArrayLike | None = None,
) -> PessimisticPolicy:
    """Each prompt's best completion under the estimate, as if the estimate were the truth.

    Parameters
    ----------
    completions, prompt_offsets, reward, reference, base_policy, prompt_weight
        As for `pessimistic_policy`.
    M, radius
        Where given, the greedy policy is also judged: `lower_bound` is its V and `duality_gap` bounds how
        much the pessimistic policy can improve on it.

    Returns
    -------
    PessimisticPolicy
        With ``converged=True``: it is what it says.

    Raises
    ------
    ValueError, numpy.linalg.LinAlgError
        As for `pessimistic_policy`; also a positive radius without M.

    Examples
    --------
    >>> greedy_policy([[1.0, 0.0], [0.0, 1.0]], [0, 2], [1.0, 0.9]).choice
    array([0])
    """
    gamma = _radius(radius)
    if M is None and gamma > 0:
        raise ValueError("M is missing; expected an information matrix when radius is positive")
    with single_threaded_blas():
        problem = _made_problem(completions, prompt_offsets, reward, M, prompt_weight)
        _set_reference(problem, reference, _base_policy(base_policy, problem.offsets))
        rows, _ = problem.best_rows(problem.rewards_of_all(problem.reward))
        probability = np.zeros(int(problem.offsets[-1]))
        probability[rows] = 1.0
        z = problem.whiten(problem.weighted(rows, problem.weight) - problem.reference)
        theta = _worst_reward(problem, z, gamma, 0.0)
        gap = np.inf
        if np.isfinite(gamma):
            gap = _certificate(problem, theta) - _value(problem, z, gamma)[1]
        return _result(problem, probability, z, gamma, 0.0, gap, True, 0, theta)


def lower_confidence_bound(
    features: Any,
    reward: ArrayLike,
    M: Any,
    radius: float,
    *,
    reference: ArrayLike | str | None = None,
) -> Vector:
    """Pointwise lower bound on the reward of single completions, for best-of-n and per-sample rewards.

    Parameters
    ----------
    features : array_like, (k, d)
        Features phi.
    reward, M, radius
        As for `pessimistic_policy`; the radius finite.
    reference : None, "mean" or array_like (d,), optional
        The reference point nu: zero, the mean of `features`, or a vector.

    Returns
    -------
    ndarray, (k,)
        phi' theta_hat - radius |phi - nu|_{M^-1}.

    Raises
    ------
    ValueError, numpy.linalg.LinAlgError
        As for `pessimistic_policy`.

    Examples
    --------
    >>> lower_confidence_bound([[1.0, 0.0], [0.0, 1.0]], [1.0, 0.9], [[1.0, 0.0], [0.0, 100.0]], 1.0)
    array([0. , 0.8])
    """
    rows, _ = _validate.rows(features, "features")
    if len(rows) == 0:
        return np.zeros(0)
    with single_threaded_blas():
        problem = _made_problem(features, [0, len(rows)], reward, M, None)
        if isinstance(reference, str):
            _validate.one_of(reference, "reference", ("mean",))
        _set_reference(problem, reference, _base_policy(None, problem.offsets))
        gamma = _validate.number(radius, "radius", 0.0)
        bound = problem.rewards_of_all(problem.reward)
        for start, stop, block in problem.rows.blocks():
            z = problem.whiten(block - problem.reference)
            bound[start:stop] -= gamma * np.sqrt(np.einsum("kd,kd->k", z, z))
        return bound


def mean_features(
    completions: Any,
    prompt_offsets: ArrayLike,
    probability: ArrayLike,
    *,
    prompt_weight: ArrayLike | None = None,
) -> Vector:
    """x(pi) = E_s sum_a pi(a|s) phi(s, a): a policy's value under any reward is its product with that reward.

    Parameters
    ----------
    completions, prompt_offsets, prompt_weight
        As for `pessimistic_policy`.
    probability : array_like, (N,)
        A policy; sums to one within each prompt.

    Returns
    -------
    ndarray, (d,)

    Raises
    ------
    ValueError
        A shape or a number does not fit.

    Examples
    --------
    >>> mean_features([[1.0, 0.0], [0.0, 1.0]], [0, 2], [0.25, 0.75])
    array([0.25, 0.75])
    """
    d = _validate.rows(completions, "completions")[0].shape[1]
    with single_threaded_blas():
        problem = _made_problem(completions, prompt_offsets, np.zeros(d), None, prompt_weight)
        return problem.mean(_base_policy(probability, problem.offsets))


def _radius(value: Any) -> float:
    if not isinstance(value, (bool, str)) and np.ndim(value) == 0 and value == np.inf:
        return float(np.inf)
    return _validate.number(value, "radius", 0.0)


# ---------------------------------------------------------------------------------------------- value and gap


def _value(problem: _Problem, z: Vector, gamma: float) -> tuple[float, float]:
    """(x - nu)'theta_hat and V = (x - nu)'theta_hat - gamma |x - nu|_{M^-1}."""
    value = float((problem.factor.T @ problem.reward) @ z)
    length = float(np.linalg.norm(z))
    return value, value - (gamma * length if length > 0 else 0.0)


def _worst_reward(problem: _Problem, z: Vector, gamma: float, eps: float) -> Vector:
    """theta_eps = theta_hat - gamma M^-1 (x - nu) / sqrt(|z|^2 + eps^2): inside the ellipsoid."""
    length = float(np.hypot(np.linalg.norm(z), eps))
    if length == 0.0:
        return problem.reward.copy()
    if not np.isfinite(gamma):
        return -problem.unwhiten(z / length)
    return problem.reward - problem.unwhiten(z * (gamma / length))


def _certificate(problem: _Problem, theta: Vector) -> float:
    """max over all policies of (x - nu)'theta: an upper bound on every V, for any theta of the ellipsoid."""
    _, best = problem.best_rows(problem.rewards_of_all(theta))
    return float(problem.weight @ best - problem.reference @ theta)


def _result(
    problem: _Problem,
    probability: Vector,
    z: Vector,
    gamma: float,
    tau: float,
    gap: float,
    converged: bool,
    n_iter: int,
    theta: Vector,
    divergence: float = 0.0,
) -> PessimisticPolicy:
    value, bound = _value(problem, z, gamma)
    rows, _ = problem.best_rows(probability)
    return PessimisticPolicy(
        probability=probability,
        choice=rows - problem.offsets[:-1],
        value=value,
        lower_bound=bound,
        duality_gap=max(0.0, float(gap)),
        converged=converged,
        n_iter=n_iter,
        reads=problem.reads,
        least_favourable_reward=theta,
        divergence=divergence,
        radius=gamma,
        temperature=tau,
        reference=problem.reference,
    )


def _warn(gap: float, tol: float, n_iter: int) -> None:
    warnings.warn(
        f"duality gap {gap:.3g} after {n_iter} iterations is above tol {tol:.3g}; it is still a valid bound",
        PolicyNotConverged,
        stacklevel=4,
    )


# ---------------------------------------------------------------------------------------------- temperature 0


@dataclass
class _Vertices:
    """The deterministic policies mixed so far, kept apart for each group of prompts.

    A group's vertices have weights that sum to one, and the policy's position is the sum over groups: a
    product of simplices with one factor for each group, between one for all prompts (slow) and one for
    each (large).
    """

    bounds: Integers  # (G + 1,) first prompt of each group, then P
    shift: Vector  # (G, d) each group's part of nu
    z: Vector  # (k, d) whitened
    weight: Vector  # (k,)
    group: Integers  # (k,)
    rows: list[Integers]  # chosen rows of the group's prompts; empty: the policy that sits on nu

    @property
    def position(self) -> Vector:
        return np.asarray(self.weight @ self.z)

    def above_average(self, slope: Vector) -> Vector:
        """How much each vertex beats its group's mixture along a direction."""
        height = self.z @ slope
        return height - np.bincount(self.group, self.weight * height, len(self.shift))[self.group]

    def add(self, z: Vector, group: Integers, rows: list[Integers]) -> None:
        self.z = np.vstack([self.z, z])
        self.weight = np.append(self.weight, np.zeros(len(z)))
        self.group = np.append(self.group, group)
        self.rows = [*self.rows, *rows]

    def drop_empty(self) -> None:
        kept = self.weight > 0
        self.z, self.weight, self.group = self.z[kept], self.weight[kept], self.group[kept]
        self.rows = [rows for rows, k in zip(self.rows, kept, strict=True) if k]

    def probability(self, problem: _Problem, anchor: Vector | None) -> Vector:
        pi = np.zeros(int(problem.offsets[-1]))
        for weight, group, rows in zip(self.weight, self.group, self.rows, strict=True):
            if len(rows):
                pi[rows] += weight
            elif anchor is not None:
                first, last = problem.offsets[self.bounds[group : group + 2]]
                pi[first:last] += weight * anchor[first:last]
        return pi


def _hard(
    problem: _Problem, gamma: float, anchor: Vector | None, tol: float, max_iter: int
) -> PessimisticPolicy:
    """Fully corrective Frank-Wolfe on t'z - slope sqrt(|z|^2 + eps^2); radius inf keeps only the norm."""
    finite = bool(np.isfinite(gamma))
    slope = gamma if finite else 1.0
    t = problem.factor.T @ problem.reward if finite else np.zeros(problem.pool.d)
    vertices = _first_vertices(problem, anchor)
    eps = _smoothing(vertices.z, slope, tol)
    n_iter, upper, theta = 0, np.inf, problem.reward
    if np.linalg.norm(t) <= slope:  # theta = 0 lies in the ellipsoid: no policy has V > 0
        upper, theta = 0.0, np.zeros(problem.pool.d)
    precision = 0.02  # of the inner problem, relative to the gap
    while True:
        z = vertices.position
        lower = float(t @ z - slope * np.linalg.norm(z))
        on_reference = anchor is not None and lower <= 0.0  # tested separately: V is 0 there, and has a kink
        lower = 0.0 if on_reference else lower
        if upper - lower <= 0.9 * tol:
            break
        push = z * (slope / max(float(np.hypot(np.linalg.norm(z), eps)), np.finfo(np.float64).tiny))
        candidate = (problem.reward if finite else 0.0) - problem.unwhiten(push)
        rows, best = problem.best_rows(problem.rewards_of_all(candidate))
        bound = float(problem.weight @ best - problem.reference @ candidate)
        if bound < upper:
            upper, theta = bound, candidate
        gap = upper - lower
        if gap <= 0.9 * tol or n_iter >= max_iter or not _extend(problem, vertices, rows, t - push):
            break
        n_iter += 1
        _correct(vertices, t, slope, eps, precision * max(gap, tol) / len(vertices.shift))
        if np.array_equal(z, vertices.position):
            precision *= 0.01
            if precision < 1e-10:  # rounding leaves nothing to gain
                break
    probability = anchor if on_reference and anchor is not None else vertices.probability(problem, anchor)
    z = (
        np.zeros(problem.pool.d)
        if on_reference
        else problem.whiten(problem.mean(probability) - problem.reference)
    )
    lower = float(t @ z - slope * np.linalg.norm(z))
    gap = max(0.0, upper - lower)
    if gap > tol:
        _warn(gap, tol, n_iter)
    if not finite and np.linalg.norm(z) <= tol:
        z, theta = np.zeros_like(z), np.zeros_like(theta)
    return _result(problem, probability.copy(), z, gamma, 0.0, gap, gap <= tol, n_iter, theta)


def _first_vertices(problem: _Problem, anchor: Vector | None) -> _Vertices:
    """One greedy vertex for each group, and one on nu where a policy sits there by construction."""
    n_prompts = len(problem.weight)
    n_groups = min(_GROUPS, n_prompts)
    bounds = (np.arange(n_groups + 1) * n_prompts) // n_groups
    share = np.add.reduceat(problem.weight, bounds[:-1])
    shift = share[:, None] * problem.reference
    if anchor is not None:
        shift = problem.mean_of_groups(anchor, bounds)
    vertices = _Vertices(bounds, shift, np.zeros((0, problem.pool.d)), np.zeros(0), np.zeros(0, np.int64), [])
    rows, _ = problem.best_rows(problem.rewards_of_all(problem.reward))
    groups = np.arange(n_groups)
    vertices.add(_positions(problem, vertices, rows), groups, np.split(rows, bounds[1:-1]))
    vertices.weight[:] = 1.0
    if anchor is not None:
        vertices.add(np.zeros((n_groups, problem.pool.d)), groups, [np.zeros(0, np.int64)] * n_groups)
    return vertices


def _positions(problem: _Problem, vertices: _Vertices, rows: Integers) -> Vector:
    """Whitened position of each group's share of a deterministic policy: (G, d)."""
    x = np.stack(
        [
            problem.weighted(rows[first:last], problem.weight[first:last])
            for first, last in zip(vertices.bounds[:-1], vertices.bounds[1:], strict=True)
        ]
    )
    return problem.whiten(x - vertices.shift)


def _smoothing(z: Vector, slope: float, tol: float) -> float:
    """eps with slope * eps <= tol / 4, above rounding and below the size of the problem."""
    size = float(np.abs(z).sum()) or 1.0
    if slope == 0.0:
        return 0.0
    return float(np.clip(tol / (4.0 * slope), 1e-14 * size, size))


def _extend(problem: _Problem, vertices: _Vertices, rows: Integers, slope: Vector) -> bool:
    """Add the best vertex of each group along `slope`, where it improves; whether any did."""
    z = _positions(problem, vertices, rows)
    here = np.bincount(vertices.group, vertices.weight * (vertices.z @ slope), len(z))
    ahead = z @ slope - here
    better = ahead > 1e-9 * max(float(ahead.max()), 0.0)
    if not (ahead > 0).any():
        return False
    parts = np.split(rows, vertices.bounds[1:-1])
    vertices.add(z[better], np.flatnonzero(better), [parts[g] for g in np.flatnonzero(better)])
    return True


def _correct(
    vertices: _Vertices, t: Vector, slope: float, eps: float, tol: float, max_steps: int = 300
) -> None:
    """Re-optimise the weights of the vertices kept: Newton steps, exact line search, drops at 0."""
    v = vertices
    height = np.abs(v.z @ t) + slope * np.linalg.norm(v.z, axis=1)
    tol = max(tol, 16.0 * np.finfo(np.float64).eps * float(height.max()))  # rounding of the ascent
    for number in range(max_steps):
        z = v.position
        length = float(np.hypot(np.linalg.norm(z), eps))
        ascent = v.above_average(t - z * (slope / length) if length > 0 else t)
        if ascent.max() <= tol:
            break
        newton = _newton_step(v, ascent, z, length, slope, eps, tol)
        tried = [] if newton is None else [_searched(v, t, z, slope, eps, newton)]
        if newton is None or number % 8 == 7:
            # Newton's step keeps the vertices few, but may creep; these always get somewhere
            tried += [
                _searched(v, t, z, slope, eps, other(v, ascent)) for other in (_pairwise_step, _best_step)
            ]
        gain, size, longest, step = max(tried, key=lambda found: found[0])
        if gain <= 0:
            break
        weight = v.weight + size * step
        if size == longest:
            ends = (step < 0) & (v.weight <= -step * longest * (1.0 + 1e-12))
            weight[ends] = 0.0
        weight[weight < 1e-15] = 0.0
        v.weight = weight / np.bincount(v.group, weight, len(v.shift))[v.group]
    v.drop_empty()


def _newton_step(
    v: _Vertices, ascent: Vector, z: Vector, length: float, slope: float, eps: float, tol: float
) -> Vector | None:
    """Newton direction inside the simplices, leaving out weights that are 0 and would fall; None if none."""
    k = len(v.weight)
    order = np.lexsort((v.weight, v.group))
    heaviest = order[np.searchsorted(v.group[order], np.arange(len(v.shift)), side="right") - 1]
    pivot = heaviest[v.group]
    free = ((v.weight > 0) | (ascent > tol)) & (pivot != np.arange(k))
    norm2 = float(z @ z)
    for _ in range(25):
        index = np.flatnonzero(free)
        if len(index) == 0 or length == 0.0 or slope == 0.0:
            return None
        edge = v.z[index] - v.z[pivot[index]]
        # Hessian of slope s, s = sqrt(|z|^2 + eps^2): slope / s (I - zz'/s^2), and the root of the bracket is
        # I - (1 - eps/s) zz'/|z|^2
        if norm2 > 0:
            edge = edge - np.outer(edge @ z, z) * ((1.0 - eps / length) / norm2)
        hessian = (edge @ edge.T) * (slope / length)
        hessian[np.diag_indices_from(hessian)] += 1e-13 * np.trace(hessian) / len(index) + 1e-300
        try:
            y = np.linalg.solve(hessian, ascent[index] - ascent[pivot[index]])
        except LinAlgError:
            return None
        step = np.zeros(k)
        step[index] = y
        np.subtract.at(step, pivot[index], y)
        if not np.isfinite(step).all() or step @ ascent <= 0:
            return None
        blocked = (v.weight == 0) & (step < 0)
        if not blocked.any():
            return step
        free &= ~blocked
    return None


def _searched(
    v: _Vertices, t: Vector, z: Vector, slope: float, eps: float, step: Vector
) -> tuple[float, float, float, Vector]:
    """Gain of the best point along a step, how far it is, how far the simplices reach, and the step."""
    falling = step < 0
    if not falling.any():
        return 0.0, 0.0, 0.0, step
    longest = float(np.min(-v.weight[falling] / step[falling]))
    move = step @ v.z
    rise = float(t @ move)
    size = _line_search(rise, z, move, slope, eps, longest)
    before = float(np.hypot(np.linalg.norm(z), eps))
    after = float(np.hypot(np.linalg.norm(z + size * move), eps))
    growth = size * float((2.0 * z + size * move) @ move) / max(before + after, np.finfo(np.float64).tiny)
    return size * rise - slope * growth, size, longest, step


def _best_step(v: _Vertices, ascent: Vector) -> Vector:
    """All weight towards the best vertex of each group: the Frank-Wolfe step."""
    order = np.lexsort((ascent, v.group))
    best = order[np.searchsorted(v.group[order], np.arange(len(v.shift)), side="right") - 1]
    step = -v.weight
    step[best] += 1.0
    return step


def _pairwise_step(v: _Vertices, ascent: Vector) -> Vector:
    """Weight from the worst vertex in use to the best, within one group."""
    step = np.zeros(len(v.weight))
    best = int(np.argmax(ascent))
    in_use = (v.weight > 0) & (v.group == v.group[best])
    step[best] += 1.0
    step[int(np.argmin(np.where(in_use, ascent, np.inf)))] -= 1.0
    return step


def _line_search(gain: float, z: Vector, move: Vector, slope: float, eps: float, longest: float) -> float:
    """Maximise a gain - slope sqrt(|z + a move|^2 + eps^2) over a in [0, longest], in closed form."""
    square = float(move @ move)
    speed = slope * np.sqrt(square)
    if gain >= speed:
        return longest
    if gain <= -speed:
        return 0.0
    nearest = -float(z @ move) / square  # of |z + a move|
    left = z + nearest * move
    # gain = slope square (a - nearest) / sqrt(|left|^2 + eps^2 + square (a - nearest)^2)
    rest = np.sqrt(float(left @ left) + eps * eps)
    ahead = gain * rest / (np.sqrt(square) * np.sqrt((speed - gain) * (speed + gain)))
    return float(np.clip(nearest + ahead, 0.0, longest))


# -------------------------------------------------------------------------------------------- temperature > 0


@dataclass
class _Soft:
    """The softmax policy under one reward of the ellipsoid."""

    u: Vector  # whitened distance from the estimate, |u| <= gamma
    theta: Vector
    objective: float  # f(theta), convex, to be minimised
    probability: Vector
    z: Vector  # gradient of f in whitened coordinates: the position of the policy
    divergence: float
    rounding: float  # of the objective

    def gap(self, gamma: float) -> float:
        """f(theta) - (V(pi) - tau KL) = gamma |z| + u'z, by Fenchel's equality."""
        return gamma * float(np.linalg.norm(self.z)) + float(self.u @ self.z)


def _softened(
    problem: _Problem, gamma: float, tau: float, base: Vector, tol: float, max_iter: int
) -> PessimisticPolicy:
    """Newton on f(theta) = tau E_s log sum_a base exp((phi - nu)'theta / tau), cooled down to tau."""
    with np.errstate(divide="ignore"):
        log_base = np.log(base)
    u, n_iter = np.zeros(problem.pool.d), 0
    for warm in _cooling(problem, tau):
        goal = 0.9 * tol if warm == tau else max(0.1 * warm, 0.9 * tol)
        state = best = _soft(problem, u, warm, log_base)
        idle = 0  # steps that moved f by no more than its rounding
        while best.gap(gamma) > goal and n_iter < max_iter and idle < 8:
            n_iter += 1
            after = _newton_in_ball(problem, state, gamma, warm, log_base)
            if after is None:
                break
            idle = idle + 1 if after.objective >= state.objective - state.rounding else 0
            state = after
            best = state if state.gap(gamma) < best.gap(gamma) else best
        state, u = best, best.u
    gap = state.gap(gamma)
    if gap > tol:
        _warn(gap, tol, n_iter)
    return _result(
        problem,
        state.probability,
        state.z,
        gamma,
        tau,
        gap,
        gap <= tol,
        n_iter,
        state.theta,
        state.divergence,
    )


def _cooling(problem: _Problem, tau: float) -> list[float]:
    """Temperatures to pass through: from the spread of the estimated rewards down to tau by factors of 4."""
    margin = problem.rewards_of_all(problem.reward)
    first = problem.offsets[:-1]
    spread = float(problem.weight @ (np.maximum.reduceat(margin, first) - np.minimum.reduceat(margin, first)))
    if float(np.abs(margin).max()) / _LARGEST_LOGIT > tau:
        raise ValueError(f"temperature is {tau:g}, too small beside the rewards; expected 0 or a larger one")
    steps = max(0, int(np.ceil(np.log(max(spread, tau) / tau) / np.log(4.0))))
    return [tau * 4.0**k for k in range(steps, -1, -1)]


def _soft(problem: _Problem, u: Vector, tau: float, log_base: Vector) -> _Soft:
    theta = problem.reward + problem.unwhiten(u)
    first, counts = problem.offsets[:-1], problem.counts
    margin = problem.rewards_of_all(theta)
    logit = log_base + margin / tau
    top = np.maximum.reduceat(logit, first)
    mass = np.exp(logit - np.repeat(top, counts))
    total = np.add.reduceat(mass, first)
    probability = mass / np.repeat(total, counts)
    log_partition = top + np.log(total)
    mean_reward = np.add.reduceat(probability * margin, first)
    z = problem.whiten(problem.mean(probability) - problem.reference)
    objective = float(tau * (problem.weight @ log_partition) - problem.reference @ theta)
    divergence = float(problem.weight @ (mean_reward / tau - log_partition))
    size = tau + float(problem.weight @ np.abs(tau * log_partition)) + abs(float(problem.reference @ theta))
    rounding = 16.0 * np.finfo(np.float64).eps * size
    return _Soft(u, theta, objective, probability, z, max(0.0, divergence), rounding)


def _newton_in_ball(
    problem: _Problem, state: _Soft, gamma: float, tau: float, log_base: Vector
) -> _Soft | None:
    """One step: minimise the quadratic model over the ball exactly, then halve until f falls enough."""
    covariance = problem.covariance(state.probability)
    hessian = problem.whiten(problem.whiten(covariance).T) / tau
    values, vectors = np.linalg.eigh(0.5 * (hessian + hessian.T))
    # a floor where the policy is certain and f has no curvature: the step then runs to the ball's edge
    largest = max(float(values[-1]), float(np.linalg.norm(state.z)) / max(gamma, 1e-100))
    values = np.maximum(values, 0.0) + 1e-12 * largest + 1e-300
    linear = vectors.T @ state.z - values * (vectors.T @ state.u)
    step = vectors @ _in_ball(values, linear, gamma) - state.u
    descent = float(state.z @ step)
    if descent >= 0:
        return None
    size = 1.0
    while size > 1e-10:
        after = _soft(problem, state.u + size * step, tau, log_base)
        if after.objective <= state.objective + 1e-4 * size * descent + state.rounding:
            return after
        size *= 0.5
    return None


def _in_ball(values: Vector, linear: Vector, gamma: float) -> Vector:
    """The v with |v| <= gamma that minimises sum(values v^2 / 2 + linear v), values > 0."""
    if gamma == 0.0:
        return np.zeros_like(linear)
    inside = -linear / values
    if np.linalg.norm(inside) <= gamma:
        return inside
    # 1/|v(mu)| is concave and rises with mu, so Newton from the left end never oversteps by much; bracketed
    low, high = 0.0, float(np.linalg.norm(linear)) / gamma
    mu = low
    for _ in range(200):
        v = -linear / (values + mu)
        length = float(np.linalg.norm(v))
        if length > gamma:
            low = mu
        else:
            high = mu
        if abs(length - gamma) <= 1e-15 * gamma or high - low <= 1e-16 * high:
            break
        slope = float(np.sum(v * v / (values + mu)))
        mu += (length / gamma - 1.0) * length * length / slope
        if not low < mu < high:
            mu = 0.5 * (low + high)
    return np.asarray(v * (gamma / np.linalg.norm(v)))
