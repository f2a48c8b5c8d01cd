r"""The pessimistic policy: the best answer that the labels can vouch for.

A policy pi picks, for every prompt s, a distribution over its completions; its mean features are
x(pi) = E_s sum_a pi(a|s) phi(s, a). Labels of pairs identify rewards up to a constant only, so a policy
is judged against a reference point nu, and against every reward of the confidence ellipsoid around the
estimate:

    V(pi) = min over |theta - reward|_M <= radius of (x(pi) - nu)' theta
          = (x(pi) - nu)' reward - radius |x(pi) - nu|_{M^-1}

In the whitened coordinates z = L^-1 (x - nu), t = L' reward (M = L L', L lower Cholesky) that is
V = t'z - radius |z|: linear minus a norm, over the polytope of the z that policies reach. The other way
round it is a convex problem in one vector theta, the least favourable reward:

    max over pi of V(pi) = min over |theta - reward|_M <= radius of E_s max_a (phi(s, a) - nu)' theta
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

import dal_native as dn
from dal_native import _validate
from dal_native._dispatch import single_threaded_blas

from ._policy_hard import hard
from ._policy_problem import (
    PessimisticPolicy,
    PolicyNotConverged,
    Problem,
    Progress,
    Vector,
    at_home,
    factor_of,
    made_problem,
    policy_of,
    pool_of,
    prompt_weights,
    radius_of,
    set_reference,
)
from ._policy_soft import softened

__all__ = [
    "PessimisticPolicy",
    "PolicyNotConverged",
    "greedy_policy",
    "lower_confidence_bound",
    "mean_features",
    "pessimistic_policy",
]


def pessimistic_policy(
    completions: Any,
    prompt_offsets: ArrayLike | None,
    reward: ArrayLike,
    M: Any,
    radius: float,
    *,
    reference: ArrayLike | str | None = None,
    temperature: float = 0.0,
    base_policy: ArrayLike | None = None,
    prompt_weight: ArrayLike | None = None,
    allowed: ArrayLike | None = None,
    tol: float = 1e-6,
    rtol: float = 0.0,
    max_iter: int = 2000,
    progress: Progress | None = None,
) -> PessimisticPolicy:
    """The policy with the largest lower bound, and a proof of how close to the largest it is.

    Parameters
    ----------
    completions : array_like, (N, d), or Pool
        Features phi of all completions, those of one prompt next to each other, in any storage type of
        `dal_native.Pool`; or a pool of completions, also one whose rows stay in a file (`Pool.open` with
        ``prompt_offsets``). Never copied as a whole; the result has the same bits.
    prompt_offsets : array_like of int, (P + 1,), or None
        First row of each prompt, then N. Prompts may have different numbers of completions, at least one.
        None where `completions` is a pool, which has its own.
    reward : array_like, (d,)
        The estimate theta_hat.
    M : array_like, (d, d), or InformationMatrix
        Information matrix of the estimate, ridge included, in units where the ellipsoid is
        |theta - theta_hat|_M <= radius.
    radius : float
        See `confidence_radius`. At 0 the policy is greedy. With ``inf`` it goes to the reference point if any
        policy comes within `tol` of it, else as near as |.|_{M^-1} allows: `lower_bound` is then 0 or -inf,
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
        Probabilities within each prompt; uniform by default. With a temperature a completion of
        probability 0 is never chosen. At temperature 0 it serves ``reference="base"`` and `rtol` only.
    prompt_weight : array_like, (P,), optional
        Weight of each prompt, >= 0; equal by default.
    allowed : array_like of bool, (N,), optional
        Completions that may be chosen, at least one in each prompt; the others are as if they were absent:
        "mean" is that of the allowed ones, and `base_policy` is divided by what it gives to them.
    tol, rtol : float, default 1e-6 and 0
        Stop once the duality gap is at most tol, or at most rtol times `PessimisticPolicy.scale`: how much
        the greedy policy expects to win over the base policy. That scale, unlike V itself, does not change
        when a constant vector is added to all features, and is not small where V is; finding it may take one
        read.
    max_iter : int, default 2000
        Most iterations; each reads all completions about once.
    progress : callable, optional
        Called as progress(reads, gap) while it runs.

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
    The convex problem in theta is solved, smoothed by a temperature: Newton's method on
    tau E_s log sum_a base exp((phi - nu)' theta / tau) over the ellipsoid, with exact gradients, the Hessian
    estimated from pairs of completions, and an exact trust-region solve: one read a step. At temperature 0
    tau is cooled until smoothing costs less than the gap asked for; where few prompts are undecided fully
    corrective Frank-Wolfe takes over, one argmax per prompt and read, all weights optimised anew over the
    vertices kept, on the smoothed norm sqrt(|z|^2 + eps^2), which has no kink at x(pi) = nu. Every theta
    lies in the ellipsoid, so E_s max_a (phi - nu)' theta - V(pi) bounds what any policy could add, at the
    kink too. Linear algebra runs on one thread, so that results do not depend on their number. The design
    of the objective follows Zhu, Jordan and Jiao (2023).

    Examples
    --------
    >>> phi = [[1.0, 0.0], [0.0, 1.0]]  # one prompt, two completions
    >>> M = [[1.0, 0.0], [0.0, 100.0]]  # the second direction is known well
    >>> pessimistic_policy(phi, [0, 2], [1.0, 0.9], M, radius=1.0).choice
    array([1])
    """
    gamma = radius_of(radius)
    tau = _validate.number(temperature, "temperature", 0.0)
    tol, rtol = _validate.number(tol, "tol", 0.0), _validate.number(rtol, "rtol", 0.0)
    max_iter = _validate.whole(max_iter, "max_iter", 0)
    if M is None:
        raise ValueError("M is missing; expected an information matrix")
    if tau > 0 and not np.isfinite(gamma):
        raise ValueError("radius is inf; expected a finite radius when temperature is positive")
    with single_threaded_blas():
        problem = made_problem(
            completions, prompt_offsets, reward, M, prompt_weight, base_policy, allowed, progress
        )
        anchor = set_reference(problem, reference)
        if tau > 0:
            return at_home(softened(problem, gamma, tau, tol, rtol, max_iter), completions)
        return at_home(hard(problem, gamma, anchor, tol, rtol, max_iter), completions)


def greedy_policy(
    completions: Any,
    prompt_offsets: ArrayLike | None,
    reward: ArrayLike,
    *,
    M: Any = None,
    radius: float = 0.0,
    reference: ArrayLike | str | None = None,
    base_policy: ArrayLike | None = None,
    prompt_weight: ArrayLike | None = None,
    allowed: ArrayLike | None = None,
) -> PessimisticPolicy:
    """Each prompt's best completion under the estimate, as if the estimate were the truth.

    Parameters
    ----------
    completions, prompt_offsets, reward, reference, base_policy, prompt_weight, allowed
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
    gamma = radius_of(radius)
    if M is None and gamma > 0:
        raise ValueError("M is missing; expected an information matrix when radius is positive")
    with single_threaded_blas():
        problem = made_problem(completions, prompt_offsets, reward, M, prompt_weight, base_policy, allowed)
        set_reference(problem, reference)
        rows, best, mean = problem.best(problem.reward)
        probability = np.zeros(int(problem.offsets[-1]))
        probability[rows] = 1.0
        z = problem.whiten((mean - problem.shift).sum(axis=0))
        theta = _worst_reward(problem, z, gamma)
        gap = np.inf
        if np.isfinite(gamma):
            if gamma > 0:
                _, best, _ = problem.best(theta)
            upper = float(problem.weight @ best - problem.reference @ theta)
            gap = upper - problem.value(z, gamma)[1]
        result = problem.result(probability, z, theta, gap, np.inf, gamma=gamma, n_iter=0)
        return at_home(result, completions)


def _worst_reward(problem: Problem, z: Vector, gamma: float) -> Vector:
    """theta_hat - gamma M^-1 (x - nu) / |x - nu|_{M^-1}: the reward of the ellipsoid that attains V."""
    length = float(np.linalg.norm(z))
    if length == 0.0:
        return problem.reward.copy()
    if not np.isfinite(gamma):
        return -problem.unwhiten(z / length)
    return problem.reward - problem.unwhiten(z * (gamma / length))


def lower_confidence_bound(
    features: Any,
    reward: ArrayLike,
    M: Any,
    radius: float,
    *,
    reference: ArrayLike | str | None = None,
) -> Any:
    """Pointwise lower bound on the reward of single completions, for best-of-n and per-sample rewards.

    Parameters
    ----------
    features : array_like, (k, d), or Pool
        Features phi; of a pool of completions, also one in a file, all of them.
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
    pool = features.completions if isinstance(features, dn.Pool) else dn.Pool(features)
    home, pool = pool.home, pool.in_numpy()
    theta = _validate.reward(reward, pool.d)
    gamma = _validate.number(radius, "radius", 0.0)
    with single_threaded_blas():
        factor_of(M, pool.d)  # refused in the same words as by `pessimistic_policy`
        if len(pool) == 0:
            return _validate.like_input(np.zeros(0), home)
        nu = None
        if isinstance(reference, str):
            _validate.one_of(reference, "reference", ("mean",))
            nu = dn.weighted_sum(pool, np.full(len(pool), 1.0 / len(pool)))
        elif reference is not None:
            nu = _validate.floats(reference, "reference", 1)
            _validate.length(nu, pool.d, "reference", "feature")
        bound = dn.margin(pool, theta) - gamma * np.sqrt(dn.leverage(pool, M, reference=nu))
    return _validate.like_input(bound, home)


def mean_features(
    completions: Any,
    prompt_offsets: ArrayLike | None,
    probability: ArrayLike,
    *,
    prompt_weight: ArrayLike | None = None,
) -> Any:
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
    pool = pool_of(completions, prompt_offsets)
    offsets = pool.prompt_offsets
    assert offsets is not None
    policy = policy_of(probability, offsets, "probability")
    weight = prompt_weights(prompt_weight, len(offsets) - 1)
    with single_threaded_blas():
        # the softmax of a policy under the reward 0 is that policy
        mean = np.asarray(dn.softmax_completions(pool, np.zeros(pool.d), 1.0, policy, weight)[2][0])
    return _validate.like_input(mean, _validate.home(completions))
