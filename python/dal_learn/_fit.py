"""The optimiser behind `RewardModel`: safeguarded joint Newton on (theta, log|rationality|).

With q = N(m, S) the posterior of theta, K labelled cells (teacher, category), r the ridge and tau the spread
of log|beta|, it maximises

    J(m, S, b) = sum_t v_t E_{u ~ N(x_t'm, x_t'S x_t)} l(y_t, beta_t u) - KL(q | N(0, I/r)) - |b|^2 / (2
    tau^2)

over sum_k b_k = 0, beta = sign * exp(b). At its top

    sum_t v_t beta_t E l'(beta_t u) x_t = r m,      S^-1 = r I + sum_t lambda_t x_t x_t',  lambda_t = -v_t
    beta_t^2 E l''

so S is known by the T numbers lambda. With S = 0 (``marginal=False``) the same J is the joint posterior of
(theta, b). Every step is accepted only if J rises, up to rounding: an EM whose M step moves theta as well.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import scipy.linalg
import scipy.sparse
from numpy.typing import NDArray

from ._moments import softplus_moments

__all__ = ["Fitted", "Labels", "distinct_rows", "expected_terms", "fit_labels"]

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

_BLOCK_ROWS = 2048
_ROUNDING = 1e-12  # rises of J below this share of its terms cannot be told from rounding
_LONGEST_STEP = 1.5  # of one log|beta|: beyond e^1.5 the quadratic model says nothing
_HALVINGS = 30
_ROUGH = 1e-2  # gradient, in posterior standard deviations, at which two choices of signs can be compared
_TOO_LARGE = (
    "the information matrix is not positive definite to working precision: "
    "ridge {ridge:g} is too small for differences of this size"
)
_SAFELY_DEFINITE = 1e-3  # least diagonal of the factor of a matrix that is at most I
_STALLED = 6
_FLIP_PASSES = 20
_MEMORY = 6  # full steps remembered for Anderson's mixture


@dataclass(frozen=True)
class Labels:
    """T answers, ready to fit: no weight is 0, `cell` counts 0..K-1 without gaps.

    Parameters
    ----------
    differences : ndarray of float64, (U, d)
        Distinct rows: a conversation answered many times costs its algebra once.
    row : ndarray of int64, (T,)
        Row of `differences` of each answer.
    label, weight : ndarray of float64, (T,)
    cell : ndarray of int64, (T,)
    ridge, spread, lapse : float
        Prior precision of theta; prior standard deviation of log|beta|; share of answers given by a coin.
    """

    differences: Floats
    row: Integers
    label: Floats
    weight: Floats
    cell: Integers
    ridge: float
    spread: float
    lapse: float


def distinct_rows(differences: Floats) -> tuple[Floats, Integers]:
    """The distinct rows in order of appearance, and which of them each row is.

    Rows are told apart by a sum of their bits times odd constants, and compared afterwards: should two
    different rows ever share a sum, all rows count as distinct.

    Parameters
    ----------
    differences : ndarray of float64, (T, d)

    Returns
    -------
    rows : ndarray of float64, (U, d)
    row : ndarray of int64, (T,)

    Examples
    --------
    >>> rows, row = distinct_rows(np.array([[2.0], [1.0], [2.0]]))
    >>> rows.tolist(), row.tolist()
    ([[2.0], [1.0]], [0, 1, 0])
    """
    count, d = differences.shape
    constants = np.random.Generator(np.random.Philox(0)).integers(2**63, size=d, dtype=np.uint64) * 2 + 1
    total = np.empty(count, np.uint64)
    for start in range(0, count, _BLOCK_ROWS):
        part = slice(start, start + _BLOCK_ROWS)
        bits = np.ascontiguousarray(differences[part]).view(np.uint64)
        total[part] = (bits ^ (bits >> np.uint64(29))) @ constants
    _, first, which = np.unique(total, return_index=True, return_inverse=True)
    order = np.argsort(first)
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    rows, row = differences[first[order]], rank[which]
    if len(rows) == count or not np.array_equal(rows[row], differences):
        return differences, np.arange(count)
    return rows, row


@dataclass
class Fitted:
    """Where the optimiser stopped.

    Parameters
    ----------
    mean : ndarray, (d,)
        Posterior mean (marginal) or mode of theta.
    rationality : ndarray, (K,)
        Of each cell, sign included.
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
    """

    mean: Floats
    rationality: Floats
    bound: float
    bounds: list[float]
    gradient_norm: float
    iterations: int
    converged: bool
    reason: str


@dataclass(frozen=True)
class Terms:
    """E l, E l', E l'', E t l', E t^2 l'', E t l'' of each answer, in t = beta u."""

    likelihood: Floats
    first: Floats
    second: Floats
    first_1: Floats
    second_2: Floats
    second_1: Floats


def expected_terms(mean: Floats, sd: Floats, label: Floats, lapse: float) -> Terms:
    """Means of the log likelihood l of one answer and of its derivatives under t ~ N(mean, sd^2).

    Without lapses l = y t - sp(t). With lapse eps and k = log((2 - eps) / eps) the chance eps/2 + (1 - eps)
    s(t) is eps/2 (1 + e^(t + k)) / (1 + e^t), so that l = log(eps/2) + y sp(t + k) + (1 - y) (sp(t - k) + k)
    - sp(t).

    Parameters
    ----------
    mean, sd, label : ndarray of float64, (T,)
    lapse : float
        In [0, 1).

    Returns
    -------
    Terms

    Examples
    --------
    >>> t = expected_terms(np.array([0.0]), np.array([0.0]), np.array([1.0]), 0.0)
    >>> float(t.first[0]), float(t.second[0])
    (0.5, -0.25)
    """
    # Look at every answer from the side that lost: then a sure answer's l = -sp(t) keeps its last digits.
    side = np.where(label > 0.5, -1.0, 1.0)
    y, mu, variance = np.where(label > 0.5, 1 - label, label), side * mean, sd * sd
    centre = softplus_moments(mu, sd)
    tilt = mu * centre.logistic + variance * centre.slope  # E t s(t), by Stein's identity
    if lapse == 0.0:
        return Terms(
            y * mu - centre.softplus,
            side * (y - centre.logistic),
            -centre.slope,
            y * mu - tilt,
            -centre.slope_2,
            -side * centre.slope_1,
        )
    k = np.log(2 - lapse) - np.log(lapse)
    parts = [(y, softplus_moments(mu + k, sd), k), (1 - y, softplus_moments(mu - k, sd), -k)]
    likelihood = np.log(lapse / 2) + (1 - y) * k - centre.softplus
    first, second, first_1 = -centre.logistic, -centre.slope, -tilt
    second_1, second_2 = -centre.slope_1, -centre.slope_2
    for share, at, shift in parts:  # t = (t + shift) - shift in the weighted means
        likelihood = likelihood + share * at.softplus
        first = first + share * at.logistic
        second = second + share * at.slope
        first_1 = first_1 + share * (mu * at.logistic + variance * at.slope)
        second_1 = second_1 + share * (at.slope_1 - shift * at.slope)
        second_2 = second_2 + share * (at.slope_2 - 2 * shift * at.slope_1 + shift * shift * at.slope)
    return Terms(likelihood, side * first, second, first_1, second_2, side * second_1)


# ------------------------------------------------------------------------------------------------ one state


@dataclass
class _State:
    """A point (m, b, lambda) with everything that J and its derivatives need there."""

    mean: Floats
    log_size: Floats
    weight: Floats  # lambda
    factor: Floats | None  # lower Cholesky of S^-1; None where S = 0
    leverage: Floats
    margin: Floats
    beta: Floats  # per answer
    terms: Terms
    bound: float


class _Past:
    """The last full steps z -> G(z), and Anderson's guess at the fixed point of G.

    D. G. Anderson, *Iterative procedures for nonlinear integral equations*, J. ACM 12 (1965).
    """

    def __init__(self) -> None:
        self.images: list[Floats] = []
        self.lengths: list[Floats] = []

    def mixture(self, point: Floats, image: Floats, length: Floats) -> Floats | None:
        """sum a_k G(z_k), sum a_k = 1, making |sum a_k length_k| least; None with fewer than three steps."""
        self.images = [*self.images[1 - _MEMORY :], image]
        self.lengths = [*self.lengths[1 - _MEMORY :], length]
        if len(self.images) < 3:
            return None
        change = np.diff(np.stack(self.lengths), axis=0)
        share = np.linalg.lstsq(change.T, length, rcond=1e-8)[0]
        mixed: Floats = image - share @ np.diff(np.stack(self.images), axis=0)
        return mixed if np.isfinite(mixed).all() else None

    def forget(self) -> None:
        self.images.clear()
        self.lengths.clear()


class _Problem:
    """J over one set of labels with fixed signs."""

    def __init__(self, labels: Labels, sign: Floats, marginal: bool, estimate: bool) -> None:
        self.x, self.row = labels.differences, labels.row
        self.y, self.v, self.cell = labels.label, labels.weight, labels.cell
        self.ridge, self.spread, self.lapse = labels.ridge, labels.spread, labels.lapse
        self.sign, self.marginal, self.estimate = sign, marginal, estimate
        self.n_cells = len(sign)

    # -------------------------------------------------------------------------------------------- algebra

    def factor(self, weight: Floats) -> Floats:
        """Lower Cholesky factor of r I + sum lambda x x'."""
        d, weight = self.x.shape[1], self.by_row(weight)
        matrix = np.zeros((d, d), order="F")
        for start in range(0, len(self.x), _BLOCK_ROWS):
            part = slice(start, start + _BLOCK_ROWS)
            if weight[part].min() < 0:  # only with lapses
                matrix += (self.x[part].T * weight[part]) @ self.x[part]
                continue
            rows = np.sqrt(weight[part])[:, None] * self.x[part]
            matrix = scipy.linalg.blas.dsyrk(1.0, rows.T, beta=1.0, c=matrix, lower=1, overwrite_c=1)
        matrix[np.diag_indices(d)] += self.ridge
        try:
            lower: Floats = scipy.linalg.cholesky(matrix, lower=True, overwrite_a=True, check_finite=False)
        except np.linalg.LinAlgError:
            raise np.linalg.LinAlgError(_TOO_LARGE.format(ridge=self.ridge)) from None
        return lower

    def leverages(self, lower: Floats) -> Floats:
        """h_t = |L^-1 x_t|^2, in blocks of rows."""
        h = np.empty(len(self.x))
        for start in range(0, len(self.x), _BLOCK_ROWS):
            part = slice(start, start + _BLOCK_ROWS)
            white = scipy.linalg.solve_triangular(lower, self.x[part].T, lower=True, check_finite=False)
            h[part] = np.einsum("ij,ij->j", white, white)
        return h[self.row]

    def by_row(self, values: Floats) -> Floats:
        return np.bincount(self.row, values, minlength=len(self.x)).astype(np.float64, copy=False)

    def by_cell(self, values: Floats) -> Floats:
        return np.bincount(self.cell, values, minlength=self.n_cells).astype(np.float64, copy=False)

    def rows_by_cell(self, values: Floats) -> Floats:
        """sum over each cell of values_t x_t: (d, K)."""
        pick = scipy.sparse.csr_array((values, (self.cell, self.row)), shape=(self.n_cells, len(self.x)))
        return np.ascontiguousarray((pick @ self.x).T)

    # ---------------------------------------------------------------------------------------------- J

    def state(self, mean: Floats, log_size: Floats, weight: Floats) -> _State:
        """Everything at (m, b, lambda); LinAlgError where that cannot be computed."""
        with np.errstate(over="ignore", invalid="ignore"):
            found = self._state(mean, log_size, weight)
        if not np.isfinite(found.bound):
            raise np.linalg.LinAlgError(_TOO_LARGE.format(ridge=self.ridge))
        return found

    def _state(self, mean: Floats, log_size: Floats, weight: Floats) -> _State:
        lower = self.factor(weight) if self.marginal else None
        leverage = np.zeros(len(self.row)) if lower is None else self.leverages(lower)
        beta = (self.sign * np.exp(log_size))[self.cell]
        margin = (self.x @ mean)[self.row]
        terms = self.terms(beta, margin, leverage)
        bound = float(self.v @ terms.likelihood) - 0.5 * self.ridge * float(mean @ mean)
        if self.estimate:
            bound -= 0.5 * float(log_size @ log_size) / self.spread**2
        if lower is not None:
            # KL beyond the mean: (r tr S + log|S^-1| - d log r - d)/2, and r tr S = d - sum lambda h.
            log_det = 2 * float(np.log(np.diag(lower)).sum())
            bound -= 0.5 * (log_det - len(lower) * np.log(self.ridge) - float(weight @ leverage))
        return _State(mean, log_size, weight, lower, leverage, margin, beta, terms, bound)

    def terms(self, beta: Floats, margin: Floats, leverage: Floats) -> Terms:
        return expected_terms(beta * margin, np.abs(beta) * np.sqrt(leverage), self.y, self.lapse)

    def curvature(self, beta: Floats, terms: Terms) -> Floats:
        """lambda_t = -v beta^2 E l''.

        With lapses l is not concave everywhere and lambda may be negative: at the top S^-1 is positive
        definite all the same, and a step that leads elsewhere is shortened. A mode needs a Newton matrix.
        """
        weight = -self.v * beta * beta * terms.second
        return weight if self.marginal else np.maximum(weight, 0.0)

    # -------------------------------------------------------------------------------------------- steps

    def direction(self, s: _State) -> tuple[Floats, Floats, float]:
        """Joint Newton direction in (m, b) with S held, and the length of the gradient."""
        target = self.curvature(s.beta, s.terms)
        lower = self.factor(target) if s.factor is None else s.factor
        slope = self.v * s.beta * s.terms.first
        white = _solve(lower, self.x.T @ self.by_row(slope) - self.ridge * s.mean)
        far = float(white @ white)
        if s.factor is not None:  # how far lambda is from its fixed point, in the same units
            gap = (target - s.weight) * s.leverage
            far += float(gap @ gap)
        if not self.estimate:
            return _solve(lower, white, transposed=True), np.zeros(self.n_cells), np.sqrt(far)
        prior = 1 / self.spread**2
        gradient = self.by_cell(self.v * s.terms.first_1) - prior * s.log_size
        gauss = prior + np.maximum(-self.by_cell(self.v * s.terms.second_2), 0.0)
        level = gradient - np.sum(gradient / gauss) / np.sum(1 / gauss)  # gradient within sum b = 0
        far += float(level @ (level / gauss))
        across = self.v * s.beta * s.terms.second_1
        exact = prior - self.by_cell(self.v * (s.terms.first_1 + s.terms.second_2))
        for coupling, own in ((slope + across, exact), (across, gauss)):
            both = _arrow(_solve(lower, -self.rows_by_cell(coupling)), own, white, gradient)
            if both is not None:
                return _solve(lower, both[0], transposed=True), both[1], np.sqrt(far)
        # Not even the Gauss-Newton matrix is positive definite (S lags behind): theta and b apart.
        return _solve(lower, white, transposed=True), level / gauss, np.sqrt(far)

    def step(self, s: _State, dm: Floats, db: Floats) -> _State | None:
        """The longest of 1, 1/2, 1/4, ... of the direction that does not lower J; None if there is none."""
        longest = float(np.abs(db).max(initial=0.0))
        share = min(1.0, _LONGEST_STEP / longest) if longest > 0 else 1.0
        for _ in range(_HALVINGS):
            mean, log_size = s.mean + share * dm, s.log_size + share * db
            trial = self.tried(mean, log_size, self.towards(s, mean, log_size, share))
            if trial is not None and trial.bound >= s.bound - self.slack(s):
                return trial
            share /= 2
        return None

    def tried(self, mean: Floats, log_size: Floats, weight: Floats) -> _State | None:
        """The state, or None where the step leads out of what can be computed."""
        try:
            return self.state(mean, log_size, weight)
        except np.linalg.LinAlgError:
            return None

    def towards(self, s: _State, mean: Floats, log_size: Floats, share: float) -> Floats:
        """lambda moved by `share` to where (m, b) and the old leverages put it."""
        if not self.marginal:
            return s.weight
        beta = (self.sign * np.exp(log_size))[self.cell]
        target = self.curvature(beta, self.terms(beta, (self.x @ mean)[self.row], s.leverage))
        return (1 - share) * s.weight + share * target

    def accelerated(self, s: _State, dm: Floats, db: Floats, past: _Past) -> _State | None:
        """Anderson's mixture of the last full steps; None where it is not known or does not raise J."""
        if not self.marginal:  # exact Newton converges by itself
            return None
        if np.abs(db).max(initial=0.0) > _LONGEST_STEP:  # still far out
            past.forget()
            return None
        weight = self.towards(s, s.mean + dm, s.log_size + db, 1.0)
        point = np.concatenate([s.mean, s.log_size, self.scaled(s.weight)])
        image = np.concatenate([s.mean + dm, s.log_size + db, self.scaled(weight)])
        assert s.factor is not None  # marginal
        length = np.concatenate([s.factor.T @ dm, db / self.spread, (weight - s.weight) * s.leverage])
        mixed = past.mixture(point, image, length)
        if mixed is None:
            return None
        d, k = len(s.mean), self.n_cells
        move = mixed - point
        if np.abs(move[d : d + k]).max(initial=0.0) <= _LONGEST_STEP:
            weight = point[d + k :] + np.clip(move[d + k :], -_LONGEST_STEP, _LONGEST_STEP)
            trial = self.tried(mixed[:d], mixed[d : d + k], np.exp(weight) if self.lapse == 0 else weight)
            if trial is not None and trial.bound >= s.bound - self.slack(s):
                return trial
        past.forget()
        return None

    def scaled(self, weight: Floats) -> Floats:
        """lambda as it is mixed: its logarithm, except with lapses, where it may be negative."""
        return np.log(weight + np.finfo(float).tiny) if self.lapse == 0 else weight

    def slack(self, s: _State) -> float:
        """Differences of J that rounding alone can make."""
        return _ROUNDING * (1 + abs(s.bound) + float(self.v.sum()))

    def start(self) -> _State:
        """theta = 0, every rationality 1, lambda its value there before anything is learnt from it."""
        d = self.x.shape[1]
        leverage = np.zeros(len(self.row))
        if self.marginal:
            with np.errstate(over="ignore"):
                leverage = np.minimum(np.einsum("ij,ij->i", self.x, self.x) / self.ridge, 1e200)[self.row]
        beta = self.sign[self.cell]
        weight = np.maximum(self.curvature(beta, self.terms(beta, np.zeros(len(self.row)), leverage)), 0.0)
        return self.state(np.zeros(d), np.zeros(self.n_cells), weight)


def _solve(lower: Floats, right: Floats, transposed: bool = False) -> Floats:
    result: Floats = scipy.linalg.solve_triangular(
        lower, right, lower=True, trans=1 if transposed else 0, check_finite=False
    )
    return result


def _arrow(mixed: Floats, own: Floats, white: Floats, gradient: Floats) -> tuple[Floats, Floats] | None:
    """Solve [[I, Q], [Q', diag(D)]] (p, b) = (white, gradient) within sum b = 0.

    The cells meet only through theta, so they are eliminated first: d^2 K operations, never a K x K matrix.
    None unless the matrix is safely positive definite.
    """
    if own.min() <= 0:
        return None
    try:
        rest = scipy.linalg.cholesky(
            np.eye(len(mixed)) - (mixed / own) @ mixed.T, lower=True, check_finite=False
        )
    except np.linalg.LinAlgError:
        return None
    if np.diag(rest).min() < _SAFELY_DEFINITE:
        return None
    right = np.stack([white - mixed @ (gradient / own), -mixed @ (1 / own)], axis=1)
    p = scipy.linalg.cho_solve((rest, True), right, check_finite=False)
    b = (np.stack([gradient, np.ones(len(own))], axis=1) - mixed.T @ p) / own[:, None]
    level = b[:, 0].sum() / b[:, 1].sum()  # what keeps the sum of b at 0
    return p[:, 0] - level * p[:, 1], b[:, 0] - level * b[:, 1]


# ---------------------------------------------------------------------------------------------------- the fit


def fit_labels(
    labels: Labels,
    rationality: Floats,
    *,
    marginal: bool,
    estimate: bool,
    signed: bool,
    max_iter: int,
    tol: float,
) -> Fitted:
    """Fit theta and, if asked to, the rationality of every labelled cell.

    Parameters
    ----------
    labels : Labels
    rationality : ndarray, (K,)
        Kept as it is unless `estimate`; then only its signs are where the fit starts.
    marginal : bool
        Fit against the posterior of theta (else against its mode).
    estimate : bool
        Estimate the rationalities, geometric mean 1.
    signed : bool
        Choose the signs too.
    max_iter : int
    tol : float
        Converged when the gradient is shorter, in posterior standard deviations.

    Returns
    -------
    Fitted

    Examples
    --------
    >>> first = np.zeros(1, int)
    >>> one = Labels(np.ones((1, 1)), first, np.ones(1), np.ones(1), first, 1.0, 0.5, 0.0)
    >>> f = fit_labels(one, np.ones(1), marginal=False, estimate=False, signed=False, max_iter=50, tol=1e-9)
    >>> round(float(f.mean[0]), 6)  # theta = 1 - s(theta)
    0.401058
    """
    if not len(labels.label):
        none = np.zeros(labels.differences.shape[1])
        return Fitted(none, np.ones(0), 0.0, [0.0], 0.0, 0, True, "")
    reduced, basis = _row_space(labels)
    if estimate:
        sign, log_size = np.sign(rationality), np.zeros(len(rationality))
    else:
        sign, log_size = rationality, np.zeros(len(rationality))  # sign carries the size: b stays 0
    problem = _Problem(reduced, sign, marginal, estimate)
    state = problem.start()
    tried = 0
    if estimate and signed:
        problem, state, tried = _choose_signs(reduced, problem, state, max_iter, max(tol, _ROUGH))
    fitted, state = _ascend(problem, state, max_iter, tol)
    fitted.iterations += tried
    if estimate and signed and float(problem.sign[reduced.cell] @ reduced.weight) < 0:
        problem.sign, state.mean = -problem.sign, -state.mean  # the mirror image, in which most are honest
    log_size = state.log_size - state.log_size.mean() if estimate else state.log_size
    fitted.rationality = problem.sign * np.exp(log_size)
    fitted.mean = state.mean if basis is None else basis @ state.mean
    return fitted


def _row_space(labels: Labels) -> tuple[Labels, Floats | None]:
    """With fewer rows than features, turn the axes so that only as many coordinates are left."""
    count, d = labels.differences.shape
    if count >= d:
        return labels, None
    basis, triangle = scipy.linalg.qr(labels.differences.T, mode="economic", check_finite=False)
    rows = np.ascontiguousarray(triangle.T)
    return replace(labels, differences=rows), basis


def _ascend(problem: _Problem, state: _State, max_iter: int, tol: float) -> tuple[Fitted, _State]:
    """Steps until the gradient is short, J stops rising, or the iterations are used up."""
    bounds, best, since = [state.bound], np.inf, 0
    iterations, reason, far, past = 0, "", np.inf, _Past()
    while True:
        dm, db, far = problem.direction(state)
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
        following = problem.accelerated(state, dm, db, past)
        if following is None:
            following = problem.step(state, dm, db)
        if following is None:
            reason = "no step along the search direction raises the objective"
            break
        state, iterations = following, iterations + 1
        bounds.append(state.bound)
    fitted = Fitted(
        mean=state.mean,
        rationality=problem.sign,
        bound=state.bound,
        bounds=bounds,
        gradient_norm=float(far),
        iterations=iterations,
        converged=not reason,
        reason=reason,
    )
    return fitted, state


def _choose_signs(
    labels: Labels, problem: _Problem, state: _State, max_iter: int, tol: float
) -> tuple[_Problem, _State, int]:
    """Turn the signs that the answers contradict, as long as J rises; the steps that took."""
    fitted, state = _ascend(problem, state, max_iter, tol)
    steps = fitted.iterations
    for _ in range(_FLIP_PASSES):
        gain = _gain_of_turning(problem, state)
        candidates = [gain > 0, gain >= gain.max()] if gain.max() > 0 else []
        for turned in candidates:  # all at once, or else the one that gains most
            other = _Problem(labels, np.where(turned, -problem.sign, problem.sign), problem.marginal, True)
            start = other.state(state.mean, np.where(turned, 0.0, state.log_size), state.weight)
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
    now = problem.by_cell(problem.v * state.terms.likelihood) - 0.5 * (state.log_size / problem.spread) ** 2
    gains = []
    for log_size in (np.zeros(problem.n_cells), state.log_size):
        beta = -(problem.sign * np.exp(log_size))[problem.cell]
        terms = problem.terms(beta, state.margin, state.leverage)
        gains.append(
            problem.by_cell(problem.v * terms.likelihood) - 0.5 * (log_size / problem.spread) ** 2 - now
        )
    return np.maximum(*gains)
