"""The optimiser behind `RewardModel`: safeguarded joint Newton on (theta, psi), psi = (log|beta|, bias).

With q = N(m, S) the posterior of theta, l the log likelihood of an answer, r the ridge and Q the prior
precision of psi, it maximises

    J(m, S, psi) = sum_t v_t E_q l_t - KL(q | N(0, I/r)) - psi'Q psi / 2

over sum_k b_k = 0, beta = sign * exp(b). At its top S^-1 = r I + gram(lambda), lambda the expected
curvature of the answers, so S is known by the numbers lambda. With S = 0 (``marginal=False``) the same J is
the joint posterior of (theta, psi). Every step is accepted only if J rises, up to rounding: an EM whose M
step moves theta as well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace

import numpy as np
import scipy.linalg
import scipy.optimize
from numpy.typing import NDArray

from ._answers import Answers, Choices, Evaluation
from ._links import Link
from ._teacher_blocks import BlockFactor, TeacherBlocks

__all__ = ["Fitted", "Setting", "fit_answers", "refit_answers"]

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

_ROUNDING = 1e-12  # rises of J below this share of its terms cannot be told from rounding
_LONGEST_STEP = 1.5  # of one log|beta|: beyond e^1.5 the quadratic model says nothing
_HALVINGS = 30
_ROUGH = 1e-2  # gradient, in posterior standard deviations, at which two choices of signs can be compared
_TOO_LARGE = (
    "the information matrix is not positive definite to working precision: "
    "ridge {ridge:g} is too small for differences of this size"
)
_MOST_LOST = 1e-6
_NOTHING_LEFT = 4 * float(np.finfo(np.float64).eps)  # of a pivot, for each feature
_SAFELY_DEFINITE = 1e-3  # least diagonal of the factor of a matrix that is at most I
_STALLED = 6
_FLIP_PASSES = 20
_SURE = 5.0  # labels that half settle the sign of a cell
_MEMORY = 6  # full steps remembered for Anderson's mixture
_HEAVY = 2e9  # U d^2 beyond which a new S costs more than a few passes over the rows
_SAMPLE_STEP, _SAMPLE_TOL = 16, 10.0  # one answer in so many for a rough fit first
_STRETCH = (0.5, 4.0)
_QUICK = 0.3  # a gradient that shrinks less than to this share wants new second derivatives
_OLDEST = 0.02  # share of the directions that later batches may determine before a whole fit
_STALE = 0.1  # posterior standard deviations by which an older spread may be off in a later batch
_NEWTON_STEPS = 30
_DENSE = 4096  # features beyond which a mode is sought without a d x d matrix
_CONJUGATE_STEPS = 400


@dataclass(frozen=True)
class Setting:
    """What is held fixed during a fit.

    Parameters
    ----------
    ridge : float
        Prior precision of theta.
    blocks : TeacherBlocks
        Prior of psi.
    free : ndarray of int64
        The cells whose rationality is estimated: the first parameters of psi, in this order.
    link : Link
        How outcomes follow from margins.
    marginal : bool
        Fit against the posterior of theta (else against its mode).
    signed : bool
        Choose the signs of the rationalities too.
    anchored : bool
        Hold the sum of the free logarithms where the start has it, although some rationalities are known.
    """

    ridge: float
    blocks: TeacherBlocks
    free: Integers
    link: Link
    marginal: bool
    signed: bool = False
    anchored: bool = False


@dataclass
class Fitted:
    """Where the optimiser stopped.

    Parameters
    ----------
    mean : ndarray, (d,)
        Posterior mean (marginal) or mode of theta.
    rationality : ndarray, (K,)
        Of each cell, sign included.
    bias : ndarray, (n,)
    link : Link
        With its shape fitted.
    curvature : ndarray
        lambda at the end, where a warm start takes up.
    factor : ndarray, (d, d) or smaller, or None
        Lower Cholesky factor of S^-1 in the coordinates of `basis`.
    spread : ndarray
        What of S the likelihood depends on.
    basis : ndarray, (d, U), or None
        Axes of the rows' span where there are fewer rows than features.
    bound : float
        J.
    bounds : list of float
        J after every step, for as long as the signs stood still.
    gradient_norm : float
        Length of J's gradient in units of posterior standard deviations (how far there was to go).
    iterations : int
    converged : bool
    reason : str
        Why it stopped short; empty when converged.
    stale : float
        Share of the d directions that answers taken in since `spread` was formed determine.
    """

    mean: Floats
    rationality: Floats
    bias: Floats
    link: Link
    curvature: Floats
    factor: Floats | None
    spread: Floats
    basis: Floats | None
    bound: float
    bounds: list[float]
    gradient_norm: float
    iterations: int
    converged: bool
    reason: str
    stale: float = 0.0


# ------------------------------------------------------------------------------------------------ one state


@dataclass
class _State:
    """A point (m, psi, lambda) with everything that J and its derivatives need there."""

    mean: Floats
    psi: Floats
    weight: Floats  # lambda of `factor`
    factor: Floats | None  # lower Cholesky of r I + gram(weight)
    spread: Floats
    leverage: Floats
    here: Evaluation
    bound: float
    settled: bool = True  # `factor` and `spread` are those of `weight`
    cross: Floats | None = None  # d/dtheta d/dpsi of a point nearby


@dataclass
class _Direction:
    """Where Newton points, and how long the gradient is."""

    mean: Floats
    psi: Floats
    gradient: float  # of (m, psi), in posterior standard deviations
    gap: float  # of lambda from its fixed point, in the same units

    @property
    def far(self) -> float:
        return float(np.hypot(self.gradient, self.gap))


@dataclass
class _Past:
    """The last full steps z -> G(z), and Anderson's guess at the fixed point of G.

    D. G. Anderson, *Iterative procedures for nonlinear integral equations*, J. ACM 12 (1965).
    """

    images: list[Floats] = field(default_factory=list)
    lengths: list[Floats] = field(default_factory=list)
    least: int = 3

    def mixture(self, image: Floats, length: Floats) -> Floats | None:
        """sum a_k G(z_k), sum a_k = 1, making |sum a_k length_k| least; None before `least` steps."""
        self.images = [*self.images[1 - _MEMORY :], image]
        self.lengths = [*self.lengths[1 - _MEMORY :], length]
        if len(self.images) < self.least:
            return None
        change = np.diff(np.stack(self.lengths), axis=0)
        share = np.linalg.lstsq(change.T, length, rcond=1e-8)[0]
        mixed: Floats = image - share @ np.diff(np.stack(self.images), axis=0)
        return mixed if np.isfinite(mixed).all() else None

    def forget(self) -> None:
        self.images.clear()
        self.lengths.clear()


class _Problem:
    """J over one set of answers with fixed signs."""

    def __init__(self, answers: Answers, setting: Setting, sign: Floats) -> None:
        self.answers, self.setting, self.sign = answers, setting, sign
        self.ridge, self.blocks, self.marginal = setting.ridge, setting.blocks, setting.marginal
        self.link = setting.link
        self.free, self.n_cells, self.d = setting.free, len(setting.free), answers.rows.d
        # A known rationality fixes the scale by itself.
        anchored = setting.anchored or self.n_cells == len(sign)
        self.anchor = self.blocks.anchor(anchored)
        self.heavy = answers.rows.n * self.d**2 > _HEAVY
        self.dense = self.marginal or self.d <= _DENSE
        self._margin: tuple[Floats, Floats] | None = None

    # -------------------------------------------------------------------------------------------- algebra

    def beta(self, psi: Floats) -> Floats:
        """Rationality of every cell, (K,)."""
        beta = self.sign.copy()
        beta[self.free] *= np.exp(psi[: self.n_cells])
        return beta

    def factor(self, weight: Floats, single: bool = False) -> Floats:
        """Lower Cholesky factor of r I + gram(lambda)."""
        matrix = self.answers.gram(weight, single)
        diagonal = np.diag_indices(self.d)
        matrix[diagonal] += self.ridge
        before = matrix[diagonal]
        try:
            lower: Floats = scipy.linalg.cholesky(matrix, lower=True, overwrite_a=True, check_finite=False)
        except np.linalg.LinAlgError:
            raise np.linalg.LinAlgError(_TOO_LARGE.format(ridge=self.ridge)) from None
        pivots_hold = lower[diagonal] ** 2 > _NOTHING_LEFT * self.d * before
        if not pivots_hold.all():  # one is made of rounding errors
            raise np.linalg.LinAlgError(_TOO_LARGE.format(ridge=self.ridge))
        return lower

    def evaluate(self, mean: Floats, psi: Floats, spread: Floats) -> Evaluation:
        if self._margin is None or self._margin[0] is not mean:
            self._margin = mean, self.answers.rows.margin(mean)
        return self.answers.evaluate(self._margin[1], self.beta(psi), psi[self.n_cells :], spread, self.link)

    # ---------------------------------------------------------------------------------------------- J

    def state(self, mean: Floats, psi: Floats, weight: Floats) -> _State:
        """Everything at (m, psi, lambda), S^-1 formed anew; LinAlgError where that cannot be computed."""
        with np.errstate(over="ignore", invalid="ignore"):
            lower = self.factor(weight) if self.marginal else None
            spread = self.answers.spread(lower, False)
            return self.placed(mean, psi, weight, lower, spread)

    def placed(
        self,
        mean: Floats,
        psi: Floats,
        weight: Floats,
        lower: Floats | None,
        spread: Floats,
        settled: bool = True,
    ) -> _State:
        """The state at (m, psi) for an S that is known already; not `settled`: for a spread held fixed.

        The latter's bound lacks what depends on S alone, and its factor need not be that of S.
        """
        with np.errstate(over="ignore", invalid="ignore"):
            here = self.evaluate(mean, psi, spread)
            bound = here.likelihood - 0.5 * self.ridge * float(mean @ mean)
            bound -= 0.5 * float(psi @ self.blocks.applied(psi))
            leverage = self.answers.leverage(weight, spread)
            if self.marginal and settled:
                assert lower is not None
                # KL beyond the mean: (r tr S + log|S^-1| - d log r - d)/2, and r tr S = d - sum lambda h.
                log_det = 2 * float(np.log(np.diag(lower)).sum())
                bound -= 0.5 * (log_det - self.d * np.log(self.ridge) - float(weight @ leverage))
        if not np.isfinite(bound):
            raise np.linalg.LinAlgError(_TOO_LARGE.format(ridge=self.ridge))
        return _State(mean, psi, weight, lower, spread, leverage, here, bound, settled)

    def target(self, here: Evaluation) -> Floats:
        """lambda as the answers want it.

        With lapses l is not concave everywhere and lambda may be negative: at the top S^-1 is positive
        definite all the same, and a step that leads elsewhere is shortened. A mode needs a Newton matrix.
        """
        return here.curvature if self.marginal else np.maximum(here.curvature, 0.0)

    # -------------------------------------------------------------------------------------------- steps

    def direction(self, s: _State) -> _Direction:
        """Joint Newton direction in (m, psi) with S held, and the length of the gradient."""
        slope = self.answers.gradient(s.here.slope) - self.ridge * s.mean
        if not self.dense:
            return self.truncated(s, slope)
        if s.factor is None:
            s.weight = self.target(s.here)
            s.factor = self.factor(s.weight)
        lower = s.factor
        white = _solve(lower, slope)
        gap = (s.here.curvature - s.weight) * s.leverage if self.marginal else np.zeros(1)
        far, distance = float(white @ white), float(np.sqrt(gap @ gap))
        if not self.blocks.size:
            return _Direction(_solve(lower, white, True), np.zeros(0), np.sqrt(far), distance)
        gradient, exact, gauss = self.teacher_terms(s)
        level, step = _within(gauss, gradient, self.anchor)
        length = float(np.sqrt(far + max(float(level @ step), 0.0)))
        for own, cross in self.couplings(s, exact, gauss):
            both = _arrow(_solve(lower, -cross.T), own, white, gradient, self.anchor)
            if both is not None:
                s.cross = cross if self.heavy else None
                return _Direction(_solve(lower, both[0], True), both[1], length, distance)
        # Not even the Gauss-Newton matrix is positive definite (S lags behind): theta and psi apart.
        return _Direction(_solve(lower, white, True), step, length, distance)

    def couplings(
        self, s: _State, exact: BlockFactor | None, gauss: BlockFactor
    ) -> Iterator[tuple[BlockFactor, Floats]]:
        """Teachers' own second derivatives with those across, the best first."""
        if s.cross is not None and exact is not None:  # of a point nearby: cheap, and good enough
            yield exact, s.cross
        for own, cross in ((exact, s.here.slope + s.here.cross_slope), (gauss, s.here.cross_slope)):
            if own is not None:
                yield own, self.cross(cross, s.here.bias_cross)

    def cross(self, cell_slope: Floats, bias_slope: Floats) -> Floats:
        """d/dtheta d/dpsi, (P, d)."""
        cells, biases = self.answers.cross(cell_slope if self.n_cells else np.zeros(0), bias_slope)
        return np.concatenate([cells[self.free] if self.n_cells else cells, biases])

    def teacher_terms(self, s: _State) -> tuple[Floats, BlockFactor | None, BlockFactor]:
        """Gradient along psi, and its negative second derivatives: exact where definite, and Gauss-Newton."""
        here, free = s.here, self.free
        slope, bend = here.cell_gradient[free], here.cell_curvature[free]
        gradient = np.concatenate([slope, here.bias_gradient]) - self.blocks.applied(s.psi)
        curvature = np.maximum(np.concatenate([bend, here.bias_curvature]), 0.0)
        coupling = here.coupling[free] if len(here.coupling) else np.zeros(0)
        partner = self.blocks.partner if len(coupling) else np.zeros(0, np.int64)
        try:
            gauss = self.blocks.factor(curvature, coupling, partner)
        except np.linalg.LinAlgError:
            gauss = self.blocks.factor(curvature, np.zeros(0), np.zeros(0, np.int64))
        diagonal = np.concatenate([bend - slope, here.bias_curvature])
        try:
            exact = self.blocks.factor(diagonal, coupling, partner)
        except np.linalg.LinAlgError:
            exact = None
        return gradient, exact, gauss

    def truncated(self, s: _State, slope: Floats) -> _Direction:
        """Newton without a d x d matrix: conjugate gradients on the Schur complement of the teachers."""
        weight = self.target(s.here)
        cross, own = np.zeros((0, self.d)), None
        right, gradient = slope, np.zeros(0)
        if self.blocks.size:
            gradient, _, own = self.teacher_terms(s)
            cross = -self.cross(s.here.cross_slope, s.here.bias_cross)
            right = slope - cross.T @ _anchored(own, gradient, self.anchor)

        def product(v: Floats) -> Floats:
            out = self.ridge * v + self.answers.product(weight, v)
            if own is not None:
                out -= cross.T @ _anchored(own, cross @ v, self.anchor)
            return out

        step, length = _conjugate_gradients(product, right)
        psi = np.zeros(0)
        if own is not None:
            level = _anchored(own, gradient, self.anchor)
            psi = level - _anchored(own, cross @ step, self.anchor)
            length = float(np.sqrt(length**2 + max(float(gradient @ level), 0.0)))
        return _Direction(step, psi, length, 0.0)

    def step(self, s: _State, to: _Direction, inner: bool) -> _State | None:
        """The longest of 1, 1/2, 1/4, ... of the direction that does not lower J; None if there is none.

        An inner step leaves S as it is.
        """
        longest = float(np.abs(to.psi[: self.n_cells]).max(initial=0.0))
        share = min(1.0, _LONGEST_STEP / longest) if longest > 0 else 1.0
        for _ in range(_HALVINGS):
            mean, psi = s.mean + share * to.mean, s.psi + share * to.psi
            trial = self.tried(s, mean, psi, share, inner)
            if trial is not None and trial.bound >= s.bound - self.slack(s):
                return trial
            share /= 2
        return None

    def tried(self, s: _State, mean: Floats, psi: Floats, share: float, inner: bool) -> _State | None:
        """The state, or None where the step leads out of what can be computed."""
        try:
            if inner:
                there = self.placed(mean, psi, s.weight, s.factor, s.spread, s.settled)
                there.cross = s.cross
                return there
            return self.state(mean, psi, self.towards(s, mean, psi, share))
        except np.linalg.LinAlgError:
            return None

    def towards(self, s: _State, mean: Floats, psi: Floats, share: float) -> Floats:
        """lambda moved by `share` to where (m, psi) and the old leverages put it."""
        if not self.marginal:
            return s.weight
        return (1 - share) * s.weight + share * self.target(self.evaluate(mean, psi, s.spread))

    def accelerated(self, s: _State, to: _Direction, past: _Past) -> _State | None:
        """Anderson's mixture of the last full steps; None where it is not known or does not raise J."""
        if not self.marginal or self.heavy:  # exact Newton converges by itself
            return None
        k = self.n_cells
        if np.abs(to.psi[:k]).max(initial=0.0) > _LONGEST_STEP:  # still far out
            past.forget()
            return None
        weight = self.towards(s, s.mean + to.mean, s.psi + to.psi, 1.0)
        image = np.concatenate([s.mean + to.mean, s.psi + to.psi, self.scaled(weight)])
        assert s.factor is not None  # marginal
        gap = (weight - s.weight) * s.leverage
        mixed = past.mixture(image, np.concatenate([s.factor.T @ to.mean, to.psi, gap]))
        if mixed is None:
            return None
        mean, psi, scaled = np.split(mixed, [self.d, self.d + len(s.psi)])
        if np.abs(psi[:k] - s.psi[:k]).max(initial=0.0) <= _LONGEST_STEP:
            old = self.scaled(s.weight)
            scaled = old + np.clip(scaled - old, -_LONGEST_STEP, _LONGEST_STEP)
            try:
                trial = self.state(mean, psi, np.exp(scaled) if self.link.concave else scaled)
            except np.linalg.LinAlgError:
                trial = None
            if trial is not None and trial.bound >= s.bound - self.slack(s):
                return trial
        past.forget()
        return None

    def scaled(self, weight: Floats) -> Floats:
        """lambda as it is mixed: its logarithm, except with lapses, where it may be negative."""
        return np.log(weight + np.finfo(float).tiny) if self.link.concave else weight

    def slack(self, s: _State) -> float:
        """Differences of J that rounding alone can make."""
        slack = _ROUNDING * (1 + abs(s.bound) + self.answers.total)
        if self.marginal and s.factor is not None:  # log|S^-1| and the leverages lose what the factor is ill
            pivot = np.diag(s.factor)
            slack += min(
                self.d * np.finfo(np.float64).eps * float((pivot.max() / pivot.min()) ** 2), _MOST_LOST
            )
        return float(slack)

    def start(self) -> _State:
        """theta = 0, every rationality 1, lambda its value there before anything is learnt from it."""
        mean, psi = np.zeros(self.d), np.zeros(self.blocks.size)
        spread = self.answers.spread(None, False)
        if self.marginal:
            try:
                with np.errstate(over="ignore"):
                    spread = self.answers.spread(np.sqrt(self.ridge) * np.eye(self.d), False)
            except ValueError:  # not finite
                raise np.linalg.LinAlgError(_TOO_LARGE.format(ridge=self.ridge)) from None
            spread = np.minimum(spread, 1e200)
        weight = np.maximum(self.evaluate(mean, psi, spread).curvature, 0.0)
        return self.state(mean, psi, weight)


def _solve(lower: Floats, right: Floats, transposed: bool = False) -> Floats:
    result: Floats = scipy.linalg.solve_triangular(
        lower, right, lower=True, trans=1 if transposed else 0, check_finite=False
    )
    return result


def _within(own: BlockFactor, gradient: Floats, anchor: Floats) -> tuple[Floats, Floats]:
    """The gradient within anchor'psi = 0, and own^-1 of it."""
    both = own.solve(np.stack([gradient, anchor], axis=1))
    level = anchor @ both[:, 0] / (anchor @ both[:, 1]) if anchor.any() else 0.0
    return gradient - level * anchor, both[:, 0] - level * both[:, 1]


def _anchored(own: BlockFactor, right: Floats, anchor: Floats) -> Floats:
    """own^-1 right within anchor'psi = 0."""
    return _within(own, right, anchor)[1]


def _arrow(
    mixed: Floats, own: BlockFactor, white: Floats, gradient: Floats, anchor: Floats
) -> tuple[Floats, Floats] | None:
    """Solve [[I, Q], [Q', D]] (p, psi) = (white, gradient) within anchor'psi = 0.

    Teachers meet only through theta, so they are eliminated first: d^2 P operations, never a P x P matrix.
    None unless the matrix is safely positive definite.
    """
    sides = own.solve(np.concatenate([gradient[:, None], anchor[:, None], mixed.T], axis=1))
    try:
        rest = scipy.linalg.cholesky(
            np.eye(len(mixed)) - mixed @ sides[:, 2:], lower=True, check_finite=False
        )
    except np.linalg.LinAlgError:
        return None
    if np.diag(rest).min(initial=1.0) < _SAFELY_DEFINITE:
        return None
    right = np.stack([white - mixed @ sides[:, 0], -mixed @ sides[:, 1]], axis=1)
    p = scipy.linalg.cho_solve((rest, True), right, check_finite=False)
    psi = sides[:, :2] - sides[:, 2:] @ p
    level = anchor @ psi[:, 0] / (anchor @ psi[:, 1]) if anchor.any() else 0.0
    return p[:, 0] - level * p[:, 1], psi[:, 0] - level * psi[:, 1]


def _conjugate_gradients(product: Callable[[Floats], Floats], right: Floats) -> tuple[Floats, float]:
    """x with product(x) close to right, and sqrt(right'x); stops where curvature is not positive."""
    x, residual = np.zeros_like(right), right.copy()
    direction, size = right.copy(), float(right @ right)
    enough = size * min(0.25, np.sqrt(size)) ** 2 * 1e-4
    for _ in range(_CONJUGATE_STEPS):
        if size <= enough or size == 0:
            break
        image = product(direction)
        bent = float(direction @ image)
        if bent <= 0:
            break
        x += (size / bent) * direction
        residual -= (size / bent) * image
        following = float(residual @ residual)
        direction = residual + (following / size) * direction
        size = following
    return x, float(np.sqrt(max(float(right @ x), 0.0)))


# ---------------------------------------------------------------------------------------------------- the fit


def fit_answers(
    answers: Answers,
    setting: Setting,
    rationality: Floats,
    *,
    max_iter: int,
    tol: float,
    start: Fitted | None = None,
) -> Fitted:
    """Fit theta and, where the setting has cells, the rationality of each.

    Parameters
    ----------
    answers : Answers
    setting : Setting
    rationality : ndarray, (K,)
        Kept as it is where rationalities are known; else only its signs are where the fit starts.
    max_iter : int
    tol : float
        Converged when the gradient is shorter, in posterior standard deviations.
    start : Fitted, optional
        An earlier fit to begin from: its `mean`, `rationality`, `bias` and, with as many entries as these
        answers have, `curvature`.

    Returns
    -------
    Fitted
    """
    if answers.total == 0:
        return _prior(answers, setting, rationality)
    turned = answers.rows.turned()
    reduced, basis = (answers, None) if turned is None else (answers.reduced(turned[0]), turned[1])
    sign = rationality.copy()
    sign[setting.free] = np.where(sign[setting.free] < 0, -1.0, 1.0)
    problem = _Problem(reduced, setting, sign)
    state = None
    if start is None and problem.heavy and problem.dense:
        with suppress(np.linalg.LinAlgError):  # with lapses: lambda of answers at odds with a rough theta
            state = _approached(problem, max_iter, tol)
    if state is None:
        state = problem.start() if start is None else _resumed(problem, start, basis)
    tried = 0
    if setting.signed and problem.n_cells:
        problem, state, tried = _choose_signs(problem, state, max_iter, max(tol, _ROUGH))
    fitted, state = _ascend(problem, state, max_iter, tol)
    fitted.iterations += tried
    return _finished(problem, fitted, state, basis)


def _prior(answers: Answers, setting: Setting, rationality: Floats) -> Fitted:
    """What no answers leave."""
    none = np.zeros(0)
    return Fitted(
        mean=np.zeros(answers.rows.d),
        rationality=rationality,
        bias=np.zeros(answers.n_biases),
        link=setting.link,
        curvature=none,
        factor=None,
        spread=none,
        basis=None,
        bound=0.0,
        bounds=[0.0],
        gradient_norm=0.0,
        iterations=0,
        converged=True,
        reason="",
    )


def _honesty(problem: _Problem) -> float:
    """Positive cells less negative ones, a cell of n labels counting n / (n + 5).

    Cells count, not labels: a design asks the most of whoever is sharp, and that may be an adversary.
    """
    n = np.bincount(problem.answers.cell, problem.answers.weight, minlength=len(problem.sign))
    return float(np.sign(problem.sign) @ (n / (n + _SURE)))


def _finished(problem: _Problem, fitted: Fitted, state: _State, basis: Floats | None) -> Fitted:
    """In the coordinates and with the signs that are reported."""
    mirrored = problem.setting.signed and problem.anchor.any()
    if mirrored and _honesty(problem) < 0:
        problem.sign, state.mean = -problem.sign, -state.mean  # the mirror image, in which most are honest
    fitted.rationality = problem.beta(state.psi)
    fitted.bias = state.psi[problem.n_cells :]
    fitted.mean, fitted.basis = (state.mean if basis is None else basis @ state.mean), basis
    fitted.link, fitted.curvature, fitted.factor = state.here.link, state.weight, state.factor
    fitted.spread = state.spread
    return fitted


def refit_answers(answers: Choices, setting: Setting, start: Fitted, *, tol: float) -> Fitted | None:
    """Take a later batch into a fit to many answers, in a few passes over the rows.

    S^-1 gets the new answers' share; how much each older margin varies under it is left as it was, as long as
    the new answers determine little of theta (_OLDEST) and no lambda wants to move far (_STALE).

    Parameters
    ----------
    answers : Choices
        Those of the fit, in the same order, and then the new ones, whose rows come last.
    setting : Setting
    start : Fitted
        The fit, with the cells and biases of `answers`.
    tol : float

    Returns
    -------
    Fitted or None
        None where a whole fit is called for: few rows, nothing to update, or S has moved too far.
    """
    sign = np.where(start.rationality < 0, -1.0, 1.0)
    fixed = np.setdiff1d(np.arange(len(sign)), setting.free)
    sign[fixed] = start.rationality[fixed]
    problem = _Problem(answers, replace(setting, link=start.link), sign)
    old, rows = len(start.curvature), len(start.spread)
    if not (problem.heavy and problem.marginal) or start.factor is None or start.basis is not None:
        return None
    psi = np.concatenate([np.log(np.abs(start.rationality[setting.free])), start.bias])
    psi[: problem.n_cells] -= psi[: problem.n_cells].mean() if problem.anchor.any() else 0.0
    new = answers.rows.take(np.arange(rows, answers.rows.n))
    white = _solve(start.factor, new.T)
    spread = np.concatenate([start.spread, np.einsum("ij,ij->j", white, white)])
    weight = problem.target(problem.evaluate(start.mean, psi, spread))
    weight[:old] = start.curvature
    added = np.zeros(answers.rows.n)
    added[rows:] = answers.of_rows(np.where(np.arange(len(weight)) < old, 0.0, weight))[rows:]
    older = start.stale + float(np.maximum(added[rows:], 0.0) @ spread[rows:]) / problem.d
    if older > _OLDEST:
        return None
    matrix = start.factor @ start.factor.T + (new.T * added[rows:]) @ new
    lower = scipy.linalg.cholesky(matrix, lower=True)
    white = _solve(lower, new.T)
    spread[rows:] = np.einsum("ij,ij->j", white, white)
    state, _ = _newton(problem, start.mean, psi, spread, lower, tol, near=0.0)
    to = problem.direction(state)
    gap = (problem.target(state.here) - weight) * answers.leverage(weight, spread)
    stale = float(np.sqrt(gap @ gap))
    if to.gradient > tol or stale > _STALE:
        return None
    settled = problem.placed(state.mean, state.psi, weight, lower, spread)
    far = float(np.hypot(to.gradient, stale))
    fitted = Fitted(
        mean=state.mean,
        rationality=problem.sign,
        bias=np.zeros(0),
        link=problem.link,
        curvature=weight,
        factor=lower,
        spread=spread,
        basis=None,
        bound=settled.bound,
        bounds=[settled.bound],
        gradient_norm=far,
        iterations=1,
        converged=True,
        reason="",
        stale=older,
    )
    return _finished(problem, fitted, settled, None)


def _resumed(problem: _Problem, start: Fitted, basis: Floats | None) -> _State:
    """The state of an earlier fit, on these answers."""
    mean = start.mean if basis is None else basis.T @ start.mean
    psi = np.zeros(problem.blocks.size)
    if problem.n_cells:
        earlier = start.rationality[problem.free]
        problem.sign[problem.free] = np.where(earlier < 0, -1.0, 1.0)
        size = np.log(np.abs(earlier))
        shifted = problem.anchor.any() and not problem.setting.anchored
        psi[: problem.n_cells] = size - (size.mean() if shifted else 0.0)
    psi[problem.n_cells :] = start.bias
    link = problem.link
    if link.free and start.link.free and type(link) is type(start.link):
        problem.link = start.link
    narrow = problem.answers.spread(None, False)
    weight = problem.target(problem.evaluate(mean, psi, narrow))
    if problem.marginal and len(start.curvature) == len(weight):
        weight = start.curvature
    elif problem.marginal and not problem.heavy and basis is start.basis is None and start.factor is not None:
        weight = problem.target(problem.evaluate(mean, psi, problem.answers.spread(start.factor, False)))
    return problem.state(mean, psi, weight)


def _approached(problem: _Problem, max_iter: int, tol: float) -> _State | None:
    """Close to the top of a problem with many answers, mostly in single precision.

    A fit to a sample of the answers comes first; then Newton for the spread that the sample suggests, and
    for newer spreads, until these stand still. What it finds is where the ascent proper begins: nothing
    here decides whether that has converged.
    """
    answers, there = problem.answers, _sampled(problem, max_iter)
    if there is None:
        return None
    lower = None if there.factor is None else there.factor * np.sqrt(_SAMPLE_STEP)
    spread = answers.spread(lower if problem.marginal else None, single=True)
    mean = _stretched(problem, there.mean, there.psi, spread)
    state, moved = _newton(problem, mean, there.psi, spread, None, 0.3)
    quickly, past = 1.0, _Past(least=2)
    while problem.marginal and moved * quickly > tol:
        lower = problem.factor(problem.target(state.here), single=True)
        image = answers.spread(lower, single=True)
        mixed = past.mixture(image, image - spread)
        spread = image if mixed is None else np.maximum(mixed, 0.0)
        before = moved
        state, moved = _newton(problem, state.mean, state.psi, spread, lower, 0.3 * tol)
        quickly = min(1.0, moved / before)
    return problem.state(state.mean, state.psi, problem.target(state.here))


def _sampled(problem: _Problem, max_iter: int) -> _State | None:
    """The rough fit; the sample's rows are let go with it. None where there is nothing to sample."""
    sample = problem.answers.sample(_SAMPLE_STEP)
    if sample is None:
        return None
    rough = _Problem(sample, problem.setting, problem.sign.copy())
    return _ascend(rough, rough.start(), max_iter, _SAMPLE_TOL)[1]


def _stretched(problem: _Problem, mean: Floats, psi: Floats, spread: Floats) -> Floats:
    """theta of the best length: a posterior mean of few answers is short, and margins just scale."""
    margin = problem.answers.rows.margin(mean)
    beta, bias, square = problem.beta(psi), psi[problem.n_cells :], float(mean @ mean)

    def loss(scale: float) -> float:
        here = problem.answers.evaluate(scale * margin, beta, bias, spread, problem.link)
        return 0.5 * problem.ridge * scale * scale * square - here.likelihood

    found = scipy.optimize.minimize_scalar(loss, bounds=_STRETCH, method="bounded", options={"xatol": 0.02})
    return np.asarray(found.x * mean)


def _newton(
    problem: _Problem,
    mean: Floats,
    psi: Floats,
    spread: Floats,
    lower: Floats | None,
    tol: float,
    near: float = 1 / 60,
) -> tuple[_State, float]:
    """The top of J over (m, psi) for a spread held fixed, and how long the gradient was at first.

    Second derivatives are formed anew where they are stale. With a factor given, that is, near the top, the
    share `near` of the first gradient is near enough: the next spread moves the top by more.
    """
    weight = problem.target(problem.evaluate(mean, psi, spread))
    state = problem.placed(mean, psi, weight, lower, spread, settled=False)
    before = first = np.inf
    for _ in range(_NEWTON_STEPS):
        if state.factor is None:
            state.factor = problem.factor(problem.target(state.here), single=True)
        to = problem.direction(state)
        first = to.gradient if np.isinf(first) else first
        enough = tol if lower is None else max(tol, near * first)
        if to.gradient <= enough:
            break
        following = problem.step(state, to, inner=True)
        if following is None:
            break
        if to.gradient > _QUICK * before:
            following.factor = following.cross = None
        before = to.gradient
        state = following
        problem.link = state.here.link
    return state, first


def _ascend(problem: _Problem, state: _State, max_iter: int, tol: float) -> tuple[Fitted, _State]:
    """Steps until the gradient is short, J stops rising, or the iterations are used up."""
    bounds, best, since = [state.bound], np.inf, 0
    iterations, reason, past = 0, "", _Past()
    while True:
        to = problem.direction(state)
        far = to.far
        if far <= tol:
            break
        since = 0 if far < 0.9 * best else since + 1
        best = min(best, far)
        if iterations >= max_iter:
            reason = f"max_iter = {max_iter} steps were not enough"
            break
        if since >= _STALLED and bounds[-1] - bounds[-1 - _STALLED] <= _ROUNDING * (1 + abs(state.bound)):
            reason = "rounding errors stop all progress"
            break
        following = problem.accelerated(state, to, past)
        if following is None:
            inner = problem.heavy and state.factor is not None and to.gap < to.gradient and not since
            following = problem.step(state, to, inner)
        if following is None:
            reason = "no step along the search direction raises the objective"
            break
        state, iterations = following, iterations + 1
        problem.link = state.here.link
        bounds.append(state.bound)
    fitted = Fitted(
        mean=state.mean,
        rationality=problem.sign,
        bias=np.zeros(0),
        link=problem.link,
        curvature=state.weight,
        factor=state.factor,
        spread=state.spread,
        basis=None,
        bound=state.bound,
        bounds=bounds,
        gradient_norm=float(far),
        iterations=iterations,
        converged=not reason,
        reason=reason,
    )
    return fitted, state


def _choose_signs(
    problem: _Problem, state: _State, max_iter: int, tol: float
) -> tuple[_Problem, _State, int]:
    """Turn the signs that the answers contradict, as long as J rises; the steps that took."""
    fitted, state = _ascend(problem, state, max_iter, tol)
    steps = fitted.iterations
    for _ in range(_FLIP_PASSES):
        gain = _gain_of_turning(problem, state)
        candidates = [(gain > 0, 1.0), (gain >= gain.max(), 1.0)] if gain.max(initial=0.0) > 0 else []
        if not problem.anchor.any():  # known rationalities tell a crowd from its mirror image
            candidates.append((np.ones(problem.n_cells, bool), -1.0))
        for turned, side in candidates:  # all at once, or else the one that gains most
            sign = problem.sign.copy()
            sign[problem.free[turned]] *= -1
            other = _Problem(problem.answers, replace(problem.setting, link=problem.link), sign)
            psi = state.psi.copy()
            if side > 0:
                psi[: problem.n_cells][turned] = 0.0
            if problem.anchor.any():
                psi[: problem.n_cells] -= psi[: problem.n_cells].mean()
            start = other.state(side * state.mean, psi, state.weight)
            fitted, there = _ascend(other, start, max_iter, tol)
            steps += fitted.iterations
            if there.bound > state.bound + tol:
                problem, state = other, there
                break
        else:
            break
    return problem, state, steps


def _gain_of_turning(problem: _Problem, state: _State) -> Floats:
    """What each cell's likelihood would gain from the other sign, its size 1 or as it is."""
    margin = problem.answers.rows.margin(state.mean)
    bias, free, beta = state.psi[problem.n_cells :], problem.free, problem.beta(state.psi)
    gains = []
    for turned in (-np.sign(beta), -beta):
        there = problem.answers.evaluate(margin, turned, bias, state.spread, problem.link)
        gains.append((there.by_cell - state.here.by_cell)[free])
    return np.maximum(*gains)
