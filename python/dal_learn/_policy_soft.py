r"""The least favourable reward of the smoothed problem: Newton's method, one read of the completions a step.

With a temperature tau > 0 minimax turns max over pi of V(pi) - tau E_s KL(pi | base) into a smooth, convex
problem in d numbers (M = L L', nu the reference point, w_s the weight of a prompt):

    minimise f(theta) = tau E_s log sum_a base(a|s) exp(phi(s, a)' theta / tau) - nu' theta
    over theta = reward + L'^-1 u, |u| <= radius.

In u its gradient is z = L^-1 (x(pi) - nu), pi the softmax under theta, and f(theta) exceeds the objective of
pi by radius |z| + u'z (Fenchel): one read gives f, z, pi and the gap. The Hessian is L^-1 C L'^-1 / tau with

    C = E_s Cov_{a ~ pi} phi = 1/2 sum_s w_s sum_ab pi_a pi_b (phi_a - phi_b) (phi_a - phi_b)'.

Pairs (s, a, b) drawn with chances in proportion to w_s pi_a pi_b all count the same in C: some 16 d of them,
from where the policy is undecided, say enough about it. An estimate changes how fast the steps converge,
never to what: f, its gradient and the gap are exact.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace

import numpy as np
from scipy.linalg import LinAlgError, cho_factor, cho_solve, solve_triangular

from ._policy_problem import Integers, PessimisticPolicy, Problem, Vector

#: Largest reward in units of the temperature: beyond it a softmax is an argmax to every digit.
_LARGEST_LOGIT = 1e12
#: Pairs drawn for the curvature, for each feature, and at least; all are taken where there are no more.
_PAIRS_A_FEATURE, _LEAST_PAIRS = 16, 4096
#: Steps along which the curvature is taken from the gradients at their ends.
_SECANTS = 5


@dataclass
class Soft:
    """The softmax policy under one reward of the ellipsoid."""

    u: Vector  # whitened distance from the estimate, |u| <= gamma
    theta: Vector
    tau: float
    objective: float  # f(theta), convex, to be minimised
    best: float  # E_s max_a phi'theta, over the completions of the base policy
    probability: Vector
    parts: Vector  # (G, d) each group's part of z
    z: Vector  # gradient of f in whitened coordinates: the position of the policy
    divergence: float
    rounding: float  # of the objective

    def gap(self, gamma: float) -> float:
        """f(theta) - (V(pi) - tau KL) = gamma |z| + u'z, by Fenchel's equality."""
        return gamma * float(np.linalg.norm(self.z)) + float(self.u @ self.z)


def softened(
    problem: Problem, gamma: float, tau: float, tol: float, rtol: float, max_iter: int
) -> PessimisticPolicy:
    """Newton's method, cooled down to tau."""
    spread = reward_spread(problem)
    if spread > _LARGEST_LOGIT * tau:
        raise ValueError(f"temperature is {tau:g}, too small beside the rewards; expected 0 or a larger one")
    descent = Descent(problem, gamma, problem.base, max(tau, 0.5 * spread))
    state = best = descent.state
    scale = problem.advantage(state.best) if rtol > 0 else np.nan
    goal = max(tol, rtol * scale) if rtol > 0 else tol
    idle = 0  # steps that moved f by no more than its rounding, and left the gap where it was
    while True:
        cold = state.tau == tau
        if best.tau > tau or state.gap(gamma) < best.gap(gamma):
            best = state
        problem.told(best.gap(gamma) if cold else np.inf)
        if (cold and best.gap(gamma) <= goal) or descent.n_iter >= max_iter or idle == 8:
            break
        if not descent.step(max(tau, descent.cooler(0.1, max(descent.smoothing(), 0.1 * state.tau)))):
            if cold:
                break
            descent.cool(max(tau, 0.1 * state.tau))
        after = descent.state
        flat = after.tau == state.tau and after.objective >= state.objective - state.rounding
        idle = idle + 1 if flat and not after.gap(gamma) < 0.9 * best.gap(gamma) else 0
        state = after
    if best.tau > tau:  # stopped while still warm
        best = descent.at(best.u, tau)
    return problem.result(
        best.probability, best.z, best.theta, best.gap(gamma), goal,
        gamma=gamma, n_iter=descent.n_iter, tau=tau, divergence=best.divergence, scale=scale,
    )  # fmt: skip


class Descent:
    """Steps of Newton's method on f over the ball, from the estimate."""

    state: Soft
    average: Vector | None  # of sampled Hessians
    secants: deque[tuple[Vector, Vector]]  # steps, and how far they turned the gradient

    def __init__(self, problem: Problem, gamma: float, base: Vector | None, tau: float) -> None:
        self.problem, self.gamma, self.base, self.n_iter = problem, gamma, base, 0
        self._enter(self.at(np.zeros(problem.pool.d), tau))

    def at(self, u: Vector, tau: float) -> Soft:
        """The softmax policy at one point and temperature: one read."""
        problem = self.problem
        away = problem.unwhiten(u)
        theta = problem.reward + away
        log_partition, expected, mean, probability = problem.softmax(theta, tau, self.base)
        parts = problem.whiten(mean - problem.shift)
        at_nu = float(problem.reference @ theta)
        objective = tau * float(problem.weight @ log_partition) - at_nu
        divergence = float(problem.weight @ np.maximum(expected / tau - log_partition, 0.0))
        best = tau * float(problem.weight @ (log_partition + self._log_peak(probability)))
        size = tau + tau * float(problem.weight @ np.abs(log_partition))
        size += float(np.abs(problem.reference) @ (np.abs(problem.reward) + np.abs(away)))
        rounding = 16.0 * np.finfo(np.float64).eps * size
        return Soft(
            u, theta, tau, objective, best, probability, parts, parts.sum(axis=0), divergence, rounding
        )

    def _log_peak(self, probability: Vector) -> Vector:
        """log max_a pi / base in each prompt: its largest phi'theta / tau, less the log partition."""
        offsets = self.problem.offsets
        if self.base is None:
            return np.asarray(
                np.log(np.maximum.reduceat(probability, offsets[:-1])) + np.log(self.problem.counts)
            )
        ratio = np.divide(probability, self.base, out=np.zeros_like(probability), where=self.base > 0)
        return np.asarray(np.log(np.maximum.reduceat(ratio, offsets[:-1])))

    def smoothing(self) -> float:
        """What tau costs here: E_s [max_a - E_pi] phi'theta."""
        state = self.state
        expected = float(state.z @ (self.problem.factor.T @ state.theta))
        return max(0.0, state.best - float(self.problem.reference @ state.theta) - expected)

    def cooler(self, factor: float, cost: float) -> float:
        """The next temperature: lower once the gap that is left is less than smoothing costs."""
        return self.state.tau * (factor if self.state.gap(self.gamma) < cost else 1.0)

    def step(self, tau: float) -> bool:
        """One step, and on to temperature tau; at the same one it is shortened until f falls enough."""
        if tau < self.state.tau and self._scaled(tau):
            return True
        state, hessian = self.state, self._model()
        self.n_iter += 1
        step = in_ball(hessian, state.z - hessian @ state.u, self.gamma) - state.u
        fall = float(state.z @ step)
        if not fall < 0:
            return False
        if tau < state.tau:
            self._enter(self.at(self._nearer_to_zero(state.u + step, tau / state.tau), tau))
            return True
        for _ in range(30):
            after = self.at(state.u + step, tau)
            turn = after.z - state.z
            if np.linalg.norm(turn) > 1e-8 * np.linalg.norm(state.z):
                self.secants.append((step, turn))
            if after.objective <= state.objective + 1e-4 * fall + state.rounding:
                self.state = after
                return True
            ahead = float(after.z @ step)  # f is convex: its slope has a root before the step's end
            share = float(np.clip(fall / (fall - ahead), 0.1, 0.7)) if ahead > 0 else 0.5
            step, fall = share * step, share * fall
        return False

    def cool(self, tau: float) -> None:
        """The same reward at another temperature: one read."""
        self._enter(self.at(self.state.u, tau))

    def _enter(self, state: Soft) -> None:
        """Start at a temperature: what was learned of f's curvature at another one is forgotten."""
        self.state, self.average = state, None
        self.secants = deque(maxlen=_SECANTS)

    def _scaled(self, tau: float) -> bool:
        """Cool reward and temperature together, where that stays inside: nothing has to be read.

        The policy is the same, and f_(s tau)(s theta) = s f_tau(theta). Near x(pi) = nu, where theta goes to
        0 with tau, that is all there is to do: the gap stays small.
        """
        state, share = self.state, tau / self.state.tau
        theta = share * state.theta
        u = self.problem.factor.T @ (theta - self.problem.reward)
        if not self._shrinks() or np.linalg.norm(u) > self.gamma:
            return False
        scaled = replace(
            state, u=u, theta=theta, tau=tau, objective=share * state.objective, best=share * state.best
        )
        self._enter(scaled)
        return True

    def _shrinks(self) -> bool:
        """Whether a smaller theta is better when it is cold: at 0 f is 0, here (x - nu)'theta + smoothing."""
        worth = float(self.state.z @ (self.problem.factor.T @ self.state.theta))
        return worth + 0.5 * self.smoothing() > 0.0

    def _nearer_to_zero(self, u: Vector, least: float) -> Vector:
        """The reward of u shrunk as far as the ball allows, but by no more than the temperature."""
        if not self._shrinks():
            return u
        t = self.problem.factor.T @ self.problem.reward
        a = u + t  # of s theta: |s a - t| <= gamma
        square, along = float(a @ a), float(a @ t)
        root = along * along - square * (float(t @ t) - self.gamma**2)
        if not root >= 0.0 or square == 0.0:
            return u
        share = float(np.clip((along - np.sqrt(root)) / square, least, 1.0))
        moved = share * a - t
        return np.asarray(moved * min(1.0, self.gamma / max(float(np.linalg.norm(moved)), 1e-300)))

    def _model(self) -> Vector:
        """The Hessian: averaged over the last samples, and exact along the last steps (BFGS)."""
        state = self.state
        sample = curvature(self.problem, state.probability, state.tau, self.n_iter)
        self.average = sample if self.average is None else 0.5 * (self.average + sample)
        # a floor where the policy is certain and f has no curvature: the step then runs to the ball's edge
        slope = float(np.linalg.norm(state.z)) / max(self.gamma, 1e-100)
        floor = 1e-12 * max(float(np.trace(self.average)), slope) + 1e-300
        hessian = self.average + floor * np.eye(len(state.u))
        for step, turn in self.secants:
            ahead, along = hessian @ step, float(turn @ step)
            if along > 1e-8 * float(np.linalg.norm(turn) * np.linalg.norm(step)):
                hessian += np.outer(turn, turn) / along - np.outer(ahead, ahead) / float(step @ ahead)
        return np.asarray(0.5 * (hessian + hessian.T))


def reward_spread(problem: Problem) -> float:
    """Mean |(phi_b - phi_a)' reward| over evenly spaced pairs: of the order of what a choice can win."""
    n_pairs = len(problem.pool)
    if n_pairs == 0:
        return 0.0
    some = np.unique(np.linspace(0, n_pairs - 1, min(n_pairs, _LEAST_PAIRS)).astype(np.int64))
    a, b = problem.pool.pairs(some).T
    return float(np.abs(problem.differences(a, b) @ problem.reward).mean())


# -------------------------------------------------------------------------------------------- curvature


def curvature(problem: Problem, probability: Vector, tau: float, seed: int) -> Vector:
    """The Hessian of f in whitened coordinates, from all pairs where they are few, else from drawn ones."""
    n_pairs, room = len(problem.pool), max(_LEAST_PAIRS, _PAIRS_A_FEATURE * problem.pool.d)
    d = problem.pool.d
    if n_pairs <= room:
        a, b = problem.pool.pairs(np.arange(n_pairs)).T
        prompt = np.searchsorted(problem.offsets, a, side="right") - 1
        weight = problem.weight[prompt] * probability[a] * probability[b]
    else:
        a, b, total = drawn_pairs(problem, probability, room, seed)
        weight = np.full(len(a), 0.5 * total / room)
    if len(a) == 0:
        return np.zeros((d, d))
    x = problem.differences(a, b) * np.sqrt(weight)[:, None]
    hessian = problem.whiten(problem.whiten(x.T @ x).T) / tau
    return np.asarray(0.5 * (hessian + hessian.T))


def drawn_pairs(
    problem: Problem, probability: Vector, count: int, seed: int
) -> tuple[Integers, Integers, float]:
    """Ordered pairs of completions with chances in proportion to w_s pi_a pi_b, and the sum of these.

    One draw in each of `count` equal parts of the cumulative chances: a by w_s pi_a (1 - pi_a), then b by pi
    among the others of its prompt.
    """
    rng = np.random.default_rng(seed)
    first = np.cumsum(np.repeat(problem.weight, problem.counts) * probability * (1.0 - probability))
    total = float(first[-1])
    if not total > 0:
        return np.zeros(0, np.int64), np.zeros(0, np.int64), 0.0
    at = (np.arange(count) + rng.random(count)) * (total / count)
    a = np.minimum(np.searchsorted(first, at, side="right"), len(first) - 1)
    prompt = np.searchsorted(problem.offsets, a, side="right") - 1
    low, high = problem.offsets[prompt], problem.offsets[prompt + 1] - 1
    second = np.cumsum(probability)
    start = second[low] - probability[low]
    r = rng.random(count) * (1.0 - probability[a])
    r += np.where(r >= second[a] - probability[a] - start, probability[a], 0.0)  # past a itself
    b = np.clip(np.searchsorted(second, start + r, side="right"), low, high)
    return a, b, total


def in_ball(hessian: Vector, linear: Vector, gamma: float) -> Vector:
    """The v with |v| <= gamma that minimises v'Hv / 2 + linear'v, H positive definite."""
    length = float(np.linalg.norm(linear))
    if gamma == 0.0 or length == 0.0:
        return np.zeros_like(linear)
    unit, hessian = linear / length, hessian * (gamma / length)  # v / gamma lies in the unit ball
    # 1/|v(mu)| is concave and rises with mu, so Newton from the left end never oversteps by much; bracketed
    low = mu = max(0.0, 1.0 - float(np.trace(hessian)))  # |v| >= 1 / (largest eigenvalue + mu)
    high = 1.0
    for _ in range(100):
        try:
            factor = cho_factor(hessian + mu * np.eye(len(unit)), lower=True)
        except LinAlgError:  # positive definite but for rounding
            low, mu = mu, max(10.0 * mu, 1e-12 * float(np.trace(hessian)))
            continue
        v = -cho_solve(factor, unit)
        norm = float(np.linalg.norm(v))
        if (
            (norm <= 1.0 and mu == low)
            or norm == 0.0
            or abs(norm - 1.0) <= 1e-14
            or high - low <= 1e-14 * high
        ):
            break
        low, high = (mu, high) if norm > 1.0 else (low, mu)
        w = solve_triangular(factor[0], v, lower=True)
        mu += (norm - 1.0) * norm * norm / float(w @ w)
        if not low < mu < high:
            mu = 0.5 * (low + high)
    return np.asarray(v * (gamma / max(1.0, norm)))
