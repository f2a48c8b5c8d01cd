r"""The pessimistic policy without a temperature: a smoothed start, then fully corrective Frank-Wolfe.

In whitened coordinates z = L^-1 (x(pi) - nu), t = L' reward the objective is t'z - slope |z| over the
polytope of the z that policies reach: concave, with a kink at z = 0. Two things bound it:

    lower   t'z - slope |z| of any policy found,
    upper   max_pi (x(pi) - nu)' theta of any theta in the ellipsoid seen: one argmax per prompt,

and their difference is the gap, also at the kink. While many prompts are undecided the polytope is all but
smooth, and a few of the soft problem's Newton steps, cooled down (`_policy_soft`), bring both bounds
together: smoothing costs of the order of tau^2. What is left, with few prompts or a tight tolerance, is done
by Frank-Wolfe: every read adds each group's best vertex along the gradient of the smoothed norm
sqrt(|z|^2 + eps^2), and all weights are optimised anew over the vertices kept.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy.linalg import LinAlgError

from ._policy_problem import Integers, PessimisticPolicy, Problem, Vector
from ._policy_soft import Descent, Soft, reward_spread

#: Undecided completions, for each feature, below which the polytope is treated as one.
_SMOOTH_ROWS = 0.5
#: Steps without halving the gap after which smoothing has given what it can.
_PATIENCE = 12
#: A gap of this share of the objective's terms is near their rounding: ten vertices that do not bring it down
#: by a tenth show that nothing will.
_ROUNDING, _IDLE, _LESS = 1e-10, 10, 0.9


@dataclass
class Bounds:
    """What is proved so far, and by whom."""

    upper: float
    theta: Vector
    lower: float = -np.inf
    z: Vector | None = None
    probability: Vector | None = None
    scale: float = np.nan
    n_iter: int = 0

    @property
    def gap(self) -> float:
        return self.upper - self.lower

    def above(self, upper: float, theta: Vector) -> None:
        if upper < self.upper:
            self.upper, self.theta = upper, theta

    def below(self, lower: float, z: Vector, probability: Vector | None) -> None:
        if lower > self.lower:
            self.lower, self.z, self.probability = lower, z, probability


@dataclass
class Vertices:
    """The policies mixed so far, kept apart for each group of prompts.

    A group's policies have weights that sum to one, and the position is the sum over groups: a product of
    simplices with one factor for each group, between one for all prompts (slow) and one for each (large).
    """

    n_groups: int
    z: Vector  # (k, d) whitened
    weight: Vector  # (k,)
    group: Integers  # (k,)
    policy: list[Integers | Vector]  # of the group's prompts: chosen rows, or each completion's probability

    @property
    def position(self) -> Vector:
        return np.asarray(self.weight @ self.z)

    def above_average(self, slope: Vector) -> Vector:
        """How much each vertex beats its group's mixture along a direction."""
        height = self.z @ slope
        return height - np.bincount(self.group, self.weight * height, self.n_groups)[self.group]

    def add(self, z: Vector, group: Integers, policy: list[Integers | Vector]) -> None:
        """More of them, with no weight; the first of a group gets all of it."""
        empty = np.bincount(self.group, minlength=self.n_groups)[group] == 0
        self.z = np.vstack([self.z, z])
        self.weight = np.append(self.weight, empty.astype(np.float64))
        self.group = np.append(self.group, group)
        self.policy = [*self.policy, *policy]

    def add_mixed(self, problem: Problem, parts: Vector, probability: Vector) -> None:
        """A policy that need not be a vertex."""
        rows = np.split(probability, problem.offsets[problem.groups[1:-1]])
        self.add(parts, np.arange(self.n_groups), list(rows))

    def drop_empty(self) -> None:
        kept = self.weight > 0
        self.z, self.weight, self.group = self.z[kept], self.weight[kept], self.group[kept]
        self.policy = [policy for policy, k in zip(self.policy, kept, strict=True) if k]

    def probability(self, problem: Problem) -> Vector:
        pi = np.zeros(int(problem.offsets[-1]))
        edge = problem.offsets[problem.groups]
        for weight, group, policy in zip(self.weight, self.group, self.policy, strict=True):
            if policy.dtype == np.int64:
                pi[policy] += weight
            else:
                pi[edge[group] : edge[group + 1]] += weight * policy
        return pi


# ------------------------------------------------------------------------------------------------- solver


def hard(
    problem: Problem, gamma: float, anchor: Vector | None, tol: float, rtol: float, max_iter: int
) -> PessimisticPolicy:
    """Maximise t'z - slope |z|; radius inf keeps only the norm."""
    finite = bool(np.isfinite(gamma))
    slope = (gamma if gamma > 1e-100 else 0.0) if finite else 1.0  # products of less underflow
    t = problem.factor.T @ problem.reward if finite else np.zeros(problem.pool.d)
    bounds = Bounds(np.inf, problem.reward)
    with np.errstate(over="ignore"):
        length = float(np.linalg.norm(t))
    if length <= slope:  # theta = 0 lies in the ellipsoid: no policy has V > 0
        bounds.above(0.0, np.zeros(problem.pool.d))
    vertices = Vertices(
        len(problem.shift), np.zeros((0, problem.pool.d)), np.zeros(0), np.zeros(0, np.int64), []
    )
    if anchor is not None:  # tested separately: V is 0 there, and has a kink
        bounds.below(0.0, np.zeros(problem.pool.d), anchor)
    if finite and slope > 0 and bounds.gap > tol and int(problem.offsets[-1]) > 4 * problem.pool.d:
        for state in _smoothed(problem, gamma, bounds, tol, rtol, max_iter):
            vertices.add_mixed(problem, state.parts, state.probability)
    if bounds.gap > _goal(bounds, tol, rtol):
        _first_vertices(problem, vertices, bounds, anchor, rtol, finite)
        _frank_wolfe(problem, vertices, bounds, t, slope, finite, tol, rtol, max_iter)
    z, theta = bounds.z, bounds.theta
    assert z is not None and bounds.probability is not None
    reached = not finite and bool(np.linalg.norm(z) <= tol)  # nu
    found = problem.result(
        bounds.probability.copy(), z, np.zeros_like(theta) if reached else theta,
        bounds.gap, _goal(bounds, tol, rtol), gamma=gamma, n_iter=bounds.n_iter, scale=bounds.scale,
    )  # fmt: skip
    return replace(found, lower_bound=0.0) if reached else found


def _goal(bounds: Bounds, tol: float, rtol: float) -> float:
    return max(tol, rtol * bounds.scale) if rtol > 0 and bounds.scale > 0 else tol


def _smoothed(
    problem: Problem, gamma: float, bounds: Bounds, tol: float, rtol: float, max_iter: int
) -> list[Soft]:
    """Cool the soft problem down while that closes the gap; the best state and the last, if any is of use."""
    spread = reward_spread(problem)
    if not spread > 0:
        return []
    descent = Descent(problem, gamma, problem.uniform, 0.5 * spread)
    if rtol > 0:
        bounds.scale = problem.advantage(descent.state.best)
    best, last_gap, idle = descent.state, np.inf, 0
    while True:
        state = descent.state
        lower = problem.value(state.z, gamma)[1]
        best = state if lower > bounds.lower else best
        bounds.below(lower, state.z, state.probability)
        bounds.above(state.best - float(problem.reference @ state.theta), state.theta)
        problem.told(bounds.gap)
        goal = _goal(bounds, tol, rtol)
        idle = 0 if bounds.gap < 0.5 * last_gap else idle + 1
        last_gap = bounds.gap if idle == 0 else last_gap
        if bounds.gap <= goal or bounds.n_iter >= max_iter or idle > _PATIENCE:
            break
        if _undecided(problem, state.probability) < _SMOOTH_ROWS * problem.pool.d:
            break
        # what smoothing costs falls like tau^2: aim at less than half of the goal
        cost = descent.smoothing()
        factor = float(np.clip(np.sqrt(0.4 * goal / max(cost, 1e-300)), 0.1, 0.7))
        if not descent.step(descent.cooler(factor, cost)):
            break
        bounds.n_iter += 1
    if bounds.n_iter == 0:
        return []
    return [best] if best is state else [best, state]


def _undecided(problem: Problem, probability: Vector) -> float:
    """How many completions are undecided, in effect: (sum q)^2 / sum q^2 with q = w pi (1 - pi)."""
    q = np.repeat(problem.weight, problem.counts) * probability * (1.0 - probability)
    total = float(q.sum())
    return total * total / float(q @ q) if total > 1e-150 else 0.0


def _first_vertices(
    problem: Problem, vertices: Vertices, bounds: Bounds, anchor: Vector | None, rtol: float, finite: bool
) -> None:
    """The greedy vertex where there is no better start, and the policy on nu where there is one."""
    n_groups = vertices.n_groups
    if len(vertices.weight) == 0:
        rows, best, mean = problem.best(problem.reward)
        parts = problem.whiten(mean - problem.shift)
        vertices.add(parts, np.arange(n_groups), list(np.split(rows, problem.groups[1:-1])))
        if finite:
            bounds.above(float(problem.weight @ best - problem.reference @ problem.reward), problem.reward)
        if rtol > 0 and finite:
            bounds.scale = problem.advantage(float(problem.weight @ best))
    if rtol > 0 and not finite:
        problem.advantage(0.0)
        assert problem.at_base is not None
        bounds.scale = float(np.linalg.norm(problem.whiten(problem.at_base - problem.reference)))
    if anchor is not None:
        vertices.add_mixed(problem, np.zeros((n_groups, problem.pool.d)), anchor)


def _frank_wolfe(
    problem: Problem,
    vertices: Vertices,
    bounds: Bounds,
    t: Vector,
    slope: float,
    finite: bool,
    tol: float,
    rtol: float,
    max_iter: int,
) -> None:
    """Fully corrective Frank-Wolfe on t'z - slope sqrt(|z|^2 + eps^2), until the gap is closed."""
    goal = _goal(bounds, tol, rtol)
    eps = _smoothing(vertices.z, slope, goal)
    precision = 0.02  # of the inner problem, relative to the gap
    if len(vertices.weight) > vertices.n_groups:
        _correct(vertices, t, slope, eps, precision * max(goal, 1e-300) / vertices.n_groups)
    least, idle = np.inf, 0
    while True:
        z = vertices.position
        mixed = float(t @ z - slope * np.linalg.norm(z))
        gap = bounds.upper - max(bounds.lower, mixed)
        if gap <= goal:
            break
        push = z * (slope / max(float(np.hypot(np.linalg.norm(z), eps)), np.finfo(np.float64).tiny))
        theta = (problem.reward if finite else 0.0) - problem.unwhiten(push)
        rows, best, mean = problem.best(theta)
        at_best, at_nu = float(problem.weight @ best), float(problem.reference @ theta)
        bounds.above(at_best - at_nu, theta)
        gap = bounds.upper - max(bounds.lower, mixed)
        problem.told(gap)
        parts = problem.whiten(mean - problem.shift)
        if gap <= goal or bounds.n_iter >= max_iter:
            break
        idle = 0 if gap < _LESS * least else idle + 1
        least = gap if idle == 0 else least
        if idle >= _IDLE and gap <= _ROUNDING * (abs(at_best) + abs(at_nu) + _size(vertices, t, slope)):
            break
        if not _extend(problem, vertices, rows, parts, t - push):
            break
        bounds.n_iter += 1
        _correct(vertices, t, slope, eps, precision * max(gap, goal) / vertices.n_groups)
        if np.array_equal(z, vertices.position):
            precision *= 0.01
            if precision < 1e-10:  # rounding leaves nothing to gain
                break
    if mixed > bounds.lower:
        bounds.below(mixed, z, vertices.probability(problem))


def _size(v: Vertices, t: Vector, slope: float) -> float:
    """Of the terms that the objective is the sum of."""
    return float(v.weight @ (np.abs(v.z @ t) + slope * np.linalg.norm(v.z, axis=1)))


def _smoothing(z: Vector, slope: float, tol: float) -> float:
    """eps with slope * eps <= tol / 4, above rounding and below the size of the problem."""
    size = float(np.abs(z).sum()) or 1.0
    if slope == 0.0:
        return 0.0
    return float(np.clip(tol / (4.0 * slope), 1e-14 * size, size))


def _extend(problem: Problem, vertices: Vertices, rows: Integers, z: Vector, slope: Vector) -> bool:
    """Add the best vertex of each group along `slope`, where it improves; whether any did."""
    here = np.bincount(vertices.group, vertices.weight * (vertices.z @ slope), len(z))
    ahead = z @ slope - here
    better = ahead > 1e-9 * max(float(ahead.max()), 0.0)
    if not (ahead > 0).any():
        return False
    parts = np.split(rows, problem.groups[1:-1])
    vertices.add(z[better], np.flatnonzero(better), [parts[g] for g in np.flatnonzero(better)])
    return True


# ------------------------------------------------------------------------------- weights of the vertices kept


def _correct(
    vertices: Vertices, t: Vector, slope: float, eps: float, tol: float, max_steps: int = 300
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
        v.weight = weight / np.bincount(v.group, weight, v.n_groups)[v.group]
    v.drop_empty()


def _newton_step(
    v: Vertices, ascent: Vector, z: Vector, length: float, slope: float, eps: float, tol: float
) -> Vector | None:
    """Newton direction inside the simplices, leaving out weights that are 0 and would fall; None if none."""
    k = len(v.weight)
    order = np.lexsort((v.weight, v.group))
    heaviest = order[np.searchsorted(v.group[order], np.arange(v.n_groups), side="right") - 1]
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
    v: Vertices, t: Vector, z: Vector, slope: float, eps: float, step: Vector
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


def _best_step(v: Vertices, ascent: Vector) -> Vector:
    """All weight towards the best vertex of each group: the Frank-Wolfe step."""
    order = np.lexsort((ascent, v.group))
    best = order[np.searchsorted(v.group[order], np.arange(v.n_groups), side="right") - 1]
    step = -v.weight
    step[best] += 1.0
    return step


def _pairwise_step(v: Vertices, ascent: Vector) -> Vector:
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
