"""What teachers said, as the solver sees it: choices between two completions, and rankings of several.

Both kinds answer the same questions at (theta, beta, bias) and a Gaussian posterior of theta, N(m, S): the
expected log likelihood, its slope along the margins of the rows, its curvature as weights lambda that make
S^-1 = r I + gram(lambda), and the derivatives along psi = (log|beta|, bias). That is all a likelihood has to
declare; everything else is the solver's.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import scipy.linalg
import scipy.sparse
from numpy.typing import NDArray

import dal_native as dn

from ._links import Link, Terms
from ._rows import Rows

__all__ = ["Answers", "Choices", "Evaluation", "Information", "Rankings"]

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

_BLOCK = 4096  # answers whose scores are held at once
_MOST_SAMPLED = 0.25  # of the answers
_FIXED_POINT_STEPS = 200
_FIXED_POINT = 1e-14


@dataclass
class Evaluation:
    """Derivatives of sum_t v_t E l_t. P counts the parameters psi: K cells, then biases.

    Parameters
    ----------
    likelihood : float
        sum_t v_t E l_t, and the log prior of the link's shape.
    by_cell : ndarray, (K,)
        The same, cell by cell.
    slope : ndarray
        d/du of every entry (answer, or item of a ranking).
    curvature : ndarray
        lambda: what gram() takes.
    cell_gradient, cell_curvature : ndarray, (K,)
        d/db, and -E z'l''z with z = beta u (Gauss-Newton: at least 0 where l is concave).
    cross_slope : ndarray
        d/du of d/db of every entry, Gauss-Newton part; `slope` is the rest.
    bias_gradient, bias_curvature : ndarray, (n,)
    bias_cross : ndarray
        d/du d/dbias of every entry.
    coupling : ndarray, (K,)
        -d/db d/dbias, each cell with its own teacher's bias.
    link : Link
        With its shape fitted.
    """

    likelihood: float
    by_cell: Floats
    slope: Floats
    curvature: Floats
    cell_gradient: Floats
    cell_curvature: Floats
    cross_slope: Floats
    bias_gradient: Floats
    bias_curvature: Floats
    bias_cross: Floats
    coupling: Floats
    link: Link


@dataclass
class Information:
    """Fisher information in pieces: what gram() takes, blocks and couplings along psi, as in Evaluation."""

    curvature: Floats
    cells: Floats
    cross: Floats
    biases: Floats
    bias_cross: Floats
    coupling: Floats


class Answers(Protocol):
    """One kind of answers over some rows."""

    rows: Rows
    cell: Integers
    weight: Floats
    n_cells: int
    n_biases: int
    total: float

    def evaluate(self, margin: Floats, beta: Floats, bias: Floats, spread: Floats, link: Link) -> Evaluation:
        """At margins of the rows, rationality (K,), bias (n,), and the posterior's `spread`."""
        ...

    def spread(self, lower: Floats | None, single: bool) -> Floats:
        """What of S = (L L')^-1 the likelihood depends on; all zero for None."""
        ...

    def gradient(self, slope: Floats) -> Floats:
        """Along theta, (d,)."""
        ...

    def cross(self, cell_slope: Floats, bias_slope: Floats) -> tuple[Floats, Floats]:
        """d/dtheta of d/dcells and d/dbiases, (K, d) and (n, d); no rows for an empty slope."""
        ...

    def product(self, curvature: Floats, vector: Floats) -> Floats:
        """gram(curvature) vector, without the matrix: (d,)."""
        ...

    def information(self, margin: Floats, beta: Floats, bias: Floats, link: Link) -> Information:
        """Fisher information at a point."""
        ...

    def gram(self, curvature: Floats, single: bool) -> Floats:
        """(d, d)."""
        ...

    def scores(
        self, margin: Floats, beta: Floats, bias: Floats, link: Link, theta: Floats, psi: Floats
    ) -> Iterator[Floats]:
        """Score of every answer times [theta; psi] (d, k) and (K + n, k), in blocks: (t, k)."""
        ...

    def leverage(self, curvature: Floats, spread: Floats) -> Floats:
        """h such that trace(S gram(curvature)) = curvature'h."""
        ...

    def reduced(self, rows: Rows) -> Answers:
        """The same answers over rows in other coordinates."""
        ...

    def sample(self, step: int) -> Answers | None:
        """One answer in `step` of every cell, at least one; None where that saves little."""
        ...


class Choices:
    """T answers to "which of two?".

    Parameters
    ----------
    rows : Rows
        U rows of differences.
    row : ndarray of int64, (T,), or None
        Row of each answer; None: the t-th.
    label, weight : ndarray, (T,)
    cell : ndarray of int64, (T,)
        0..K-1 without gaps.
    biased : ndarray of int64, (T,), or None
        Which bias applies, 0..n-1 without gaps.
    side : ndarray, (T,), or None
        +1 where b was shown first, -1 where a was, 0 unknown.
    """

    def __init__(
        self,
        rows: Rows,
        row: Integers | None,
        label: Floats,
        weight: Floats,
        cell: Integers,
        biased: Integers | None = None,
        side: Floats | None = None,
    ) -> None:
        self.rows, self.row, self.label, self.weight, self.cell = rows, row, label, weight, cell
        self.biased, self.side = biased, side
        self.n_cells = int(cell.max(initial=-1)) + 1
        self.n_biases = 0 if biased is None else int(biased.max(initial=-1)) + 1
        self.total = float(weight.sum())

    def reduced(self, rows: Rows) -> Choices:
        return Choices(rows, self.row, self.label, self.weight, self.cell, self.biased, self.side)

    def sample(self, step: int) -> Choices | None:
        order = np.argsort(self.cell, kind="stable")
        first = np.searchsorted(self.cell[order], np.arange(self.n_cells))
        within = np.arange(len(order)) - np.repeat(first, np.diff(first, append=len(order)))
        some = np.sort(order[within % step == 0])
        if len(some) > _MOST_SAMPLED * len(order) or self.biased is not None:
            return None
        row, which = (some, None) if self.row is None else np.unique(self.row[some], return_inverse=True)
        rows = Rows([dn.Pool(self.rows.take(row))])
        return Choices(rows, which, self.label[some], self.weight[some], self.cell[some])

    def of_answers(self, of_rows: Floats) -> Floats:
        return of_rows if self.row is None else of_rows[self.row]

    def of_rows(self, of_answers: Floats) -> Floats:
        if self.row is None:
            return of_answers
        return np.bincount(self.row, of_answers, minlength=self.rows.n).astype(np.float64, copy=False)

    def of_cells(self, values: Floats) -> Floats:
        return np.bincount(self.cell, values, minlength=self.n_cells).astype(np.float64, copy=False)

    def of_biases(self, values: Floats) -> Floats:
        if self.biased is None:
            return np.zeros(0)
        return np.bincount(self.biased, values, minlength=self.n_biases).astype(np.float64, copy=False)

    def spread(self, lower: Floats | None, single: bool = False) -> Floats:
        return np.zeros(self.rows.n) if lower is None else self.rows.leverage(lower, single)

    def offset(self, bias: Floats) -> Floats:
        """What the position adds to t, (T,)."""
        if self.biased is None or self.side is None:
            return np.zeros(len(self.label))
        return np.asarray(self.side * bias[self.biased])

    def evaluate(self, margin: Floats, beta: Floats, bias: Floats, spread: Floats, link: Link) -> Evaluation:
        size, v = beta[self.cell], self.weight
        offset = self.offset(bias)
        mean = size * self.of_answers(margin) + offset
        sd = np.abs(size) * np.sqrt(self.of_answers(spread))
        link = link.fitted(mean, sd, self.label, v)
        q = link.terms(mean, sd, self.label)
        # z = beta u = t - offset under the expectation
        z_first, z_second = q.first_1 - offset * q.first, q.second_1 - offset * q.second
        zz_second = q.second_2 - 2 * offset * q.second_1 + offset * offset * q.second
        by_cell = self.of_cells(v * q.likelihood)
        side = self.side if self.side is not None else np.zeros(0)
        biased = self.biased is not None
        return Evaluation(
            likelihood=float(by_cell.sum()) + link.log_prior,
            by_cell=by_cell,
            slope=v * size * q.first,
            curvature=-v * size * size * q.second,
            cell_gradient=self.of_cells(v * z_first),
            cell_curvature=-self.of_cells(v * zz_second),
            cross_slope=v * size * z_second,
            bias_gradient=self.of_biases(v * side * q.first) if biased else np.zeros(0),
            bias_curvature=-self.of_biases(v * side * side * q.second) if biased else np.zeros(0),
            bias_cross=v * size * side * q.second if biased else np.zeros(0),
            coupling=-self.of_cells(v * side * z_second) if biased else np.zeros(0),
            link=link,
        )

    def terms(self, margin: Floats, beta: Floats, bias: Floats, link: Link) -> Terms:
        """At a point, answer by answer."""
        mean = beta[self.cell] * self.of_answers(margin) + self.offset(bias)
        return link.terms(mean, np.zeros_like(mean), self.label)

    def gradient(self, slope: Floats) -> Floats:
        return self.rows.weighted_sum(self.of_rows(slope))

    def cross(self, cell_slope: Floats, bias_slope: Floats) -> tuple[Floats, Floats]:
        cells = biases = np.zeros((0, self.rows.d))
        if len(cell_slope):
            cells = self.rows.sum_by_cell(cell_slope, self.cell, self.n_cells, self.row)
        if self.biased is not None and len(bias_slope):
            biases = self.rows.sum_by_cell(bias_slope, self.biased, self.n_biases, self.row)
        return cells, biases

    def product(self, curvature: Floats, vector: Floats) -> Floats:
        return self.rows.hessian_vector(self.of_rows(curvature), vector)

    def information(self, margin: Floats, beta: Floats, bias: Floats, link: Link) -> Information:
        size = beta[self.cell]
        z = size * self.of_answers(margin)
        fisher = self.weight * link.fisher(z + self.offset(bias))
        if self.biased is None or self.side is None:
            none = np.zeros(0)
            return Information(
                fisher * size * size, self.of_cells(fisher * z * z), fisher * size * z, none, none, none
            )
        return Information(
            fisher * size * size,
            self.of_cells(fisher * z * z),
            fisher * size * z,
            self.of_biases(fisher * self.side**2),
            fisher * size * self.side,
            self.of_cells(fisher * self.side * z),
        )

    def scores(
        self, margin: Floats, beta: Floats, bias: Floats, link: Link, theta: Floats, psi: Floats
    ) -> Iterator[Floats]:
        """Score of every answer times [theta; psi] (d, k) and (K + n, k), in blocks of answers: (t, k)."""
        q, size = self.terms(margin, beta, bias, link), beta[self.cell]
        z = size * self.of_answers(margin)
        along_rows, along_cells = self.weight * q.first * size, self.weight * q.first * z
        for start in range(0, len(self.label), _BLOCK):
            part = slice(start, start + _BLOCK)
            row = np.arange(len(self.label))[part] if self.row is None else self.row[part]
            score = along_rows[part, None] * (self.rows.take(row) @ theta)
            score += along_cells[part, None] * psi[self.cell[part]]
            if self.biased is not None and self.side is not None:
                along = (self.weight * q.first * self.side)[part, None]
                score += along * psi[self.n_cells + self.biased[part]]
            yield score

    def gram(self, curvature: Floats, single: bool = False) -> Floats:
        return self.rows.gram(self.of_rows(curvature), single)

    def leverage(self, curvature: Floats, spread: Floats) -> Floats:
        return self.of_answers(spread)


class Rankings:
    """R orders of several completions, best first: Plackett-Luce, a choice among all that are left each time.

    With t = beta u, a stage's l = t_chosen - log sum e^t over what is left. Its mean under a Gaussian is
    bounded from below by Jensen's inequality after a tilt a (probabilities):

        E log sum e^t <= log sum_i exp(mu_i + var(t_i - a't) / 2),      least at a = softmax(mu + var / 2)

    (D. A. Knowles and T. P. Minka, *Non-conjugate variational message passing*, NIPS 2011); exact without
    spread.

    Parameters
    ----------
    rows : Rows
        N completions.
    orders : list of ndarray of int64, (R_k, k)
        Rankings of equal length k >= 2, together; answers are numbered in this order.
    weight : ndarray, (R,)
    cell : ndarray of int64, (R,)
    """

    n_biases = 0

    def __init__(self, rows: Rows, orders: list[Integers], weight: Floats, cell: Integers) -> None:
        self.rows, self.orders, self.weight, self.cell = rows, orders, weight, cell
        self.n_cells = int(cell.max(initial=-1)) + 1
        stages = np.repeat([o.shape[1] - 1 for o in orders], [len(o) for o in orders])
        self.total = float(weight @ stages)

    def reduced(self, rows: Rows) -> Rankings:
        return Rankings(rows, self.orders, self.weight, self.cell)

    def sample(self, step: int) -> None:
        return None

    def _split(self, values: NDArray[np.generic]) -> list[NDArray[np.generic]]:
        """Per answer -> per length."""
        ends = np.cumsum([len(o) for o in self.orders])
        return np.split(values, ends[:-1]) if len(self.orders) else []

    def spread(self, lower: Floats | None, single: bool = False) -> Floats:
        """Covariances of the margins of each ranking's items against its first: k x k each, flat."""
        if lower is None:
            return np.zeros(sum(o.size * o.shape[1] for o in self.orders))
        parts = []
        for order in self.orders:
            count, k = order.shape
            out = np.empty((count, k, k))
            step = max(1, 2**22 // (k * self.rows.d))
            for start in range(0, count, step):
                some = order[start : start + step]
                away = self.rows.take(some.ravel()).reshape(*some.shape, -1)
                away = (away - away[:, :1]).reshape(-1, self.rows.d)
                white = scipy.linalg.solve_triangular(lower, away.T, lower=True, check_finite=False)
                white = np.ascontiguousarray(white.T).reshape(*some.shape, -1)
                out[start : start + step] = white @ white.transpose(0, 2, 1)
            parts.append(out.ravel())
        return np.concatenate(parts) if parts else np.zeros(0)

    def _spreads(self, spread: Floats) -> list[Floats]:
        parts, at = [], 0
        for order in self.orders:
            count, k = order.shape
            parts.append(spread[at : at + count * k * k].reshape(count, k, k))
            at += count * k * k
        return parts

    def evaluate(self, margin: Floats, beta: Floats, bias: Floats, spread: Floats, link: Link) -> Evaluation:
        likelihood, gradient, gauss = [np.zeros(len(self.weight)) for _ in range(3)]
        slopes, crosses, curvatures = [], [], []
        start = 0
        for order, covariance in zip(self.orders, self._spreads(spread), strict=True):
            part = slice(start, start + len(order))
            v, size = self.weight[part], beta[self.cell[part]]
            mean = size[:, None] * margin[order]
            covariance = (size * size)[:, None, None] * covariance
            slope, cross = np.zeros(order.shape), np.zeros(order.shape)
            for stage in range(order.shape[1] - 1):
                mu, V = mean[:, stage:], covariance[:, stage:, stage:]
                chance, variance, log_sum = _tilted(mu, V)
                centred = mu - np.sum(chance * mu, axis=1, keepdims=True)
                spent = np.sum(chance * variance, axis=1)  # tr(V A), A = diag(chance) - chance chance'
                likelihood[part] += mu[:, 0] - log_sum
                residual = -chance
                residual[:, 0] += 1
                gradient[part] += np.sum(residual * mu, axis=1) - spent
                gauss[part] += np.sum(chance * centred**2, axis=1) + spent
                slope[:, stage:] += (v * size)[:, None] * residual
                cross[:, stage:] -= (v * size)[:, None] * chance * centred
                curvatures.append(((v * size * size)[:, None] * chance).ravel())
            slopes.append(slope.ravel())
            crosses.append(cross.ravel())
            start += len(order)
        by_cell = self.of_cells(self.weight * likelihood)
        none = np.zeros(0)
        return Evaluation(
            likelihood=float(by_cell.sum()),
            by_cell=by_cell,
            slope=np.concatenate([none, *slopes]),
            curvature=np.concatenate([none, *curvatures]),
            cell_gradient=self.of_cells(self.weight * gradient),
            cell_curvature=self.of_cells(self.weight * gauss),
            cross_slope=np.concatenate([none, *crosses]),
            bias_gradient=none,
            bias_curvature=none,
            bias_cross=none,
            coupling=none,
            link=link,
        )

    def of_cells(self, values: Floats) -> Floats:
        return np.bincount(self.cell, values, minlength=self.n_cells).astype(np.float64, copy=False)

    def _items(self) -> Integers:
        return np.concatenate([np.zeros(0, np.int64), *[o.ravel() for o in self.orders]])

    def gradient(self, slope: Floats) -> Floats:
        return self.gradient_of_items(np.bincount(self._items(), slope, minlength=self.rows.n).astype(float))

    def gradient_of_items(self, weight: Floats) -> Floats:
        return self.rows.weighted_sum(weight)

    def cross(self, cell_slope: Floats, bias_slope: Floats) -> tuple[Floats, Floats]:
        none = np.zeros((0, self.rows.d))
        if not len(cell_slope):
            return none, none
        cells = [np.repeat(c, o.shape[1]) for o, c in zip(self.orders, self._split(self.cell), strict=True)]
        cell = np.concatenate(cells)
        return self.rows.sum_by_cell(cell_slope, cell, self.n_cells, self._items()), none

    def product(self, curvature: Floats, vector: Floats) -> Floats:
        return self.gradient_of_items(self._between(curvature) @ self.rows.margin(vector))

    def information(self, margin: Floats, beta: Floats, bias: Floats, link: Link) -> Information:
        here = self.evaluate(margin, beta, bias, self.spread(None), link)
        none = np.zeros(0)
        return Information(here.curvature, here.cell_curvature, -here.cross_slope, none, none, none)

    def scores(
        self, margin: Floats, beta: Floats, bias: Floats, link: Link, theta: Floats, psi: Floats
    ) -> Iterator[Floats]:
        """Score of every ranking times [theta; psi] (d, k) and (K, k), length by length: (R_k, k)."""
        here = self.evaluate(margin, beta, bias, self.spread(None), link)
        at, start = 0, 0
        for order in self.orders:
            slope = here.slope[at : at + order.size].reshape(order.shape)
            items = self.rows.take(order.ravel()) @ theta
            score = np.einsum("ri,rik->rk", slope, items.reshape(*order.shape, -1))
            cell = self.cell[start : start + len(order)]
            utility = np.sum(slope * margin[order], axis=1)  # sum of (v beta residual) u = d/db
            yield score + utility[:, None] * psi[cell]
            at, start = at + order.size, start + len(order)

    def _stages(self, values: Floats) -> list[list[Floats]]:
        """Flat values of (length, stage, ranking, item) -> [length][stage] (R_k, k - stage)."""
        out, at = [], 0
        for order in self.orders:
            count, k = order.shape
            stages = []
            for stage in range(k - 1):
                size = count * (k - stage)
                stages.append(values[at : at + size].reshape(count, k - stage))
                at += size
            out.append(stages)
        return out

    def gram(self, curvature: Floats, single: bool = False) -> Floats:
        """Phi' A Phi."""
        items = self.rows.take(np.arange(self.rows.n))
        gram = items.T @ (self._between(curvature) @ items)
        return np.asarray((gram + gram.T) / 2)

    def _between(self, curvature: Floats) -> scipy.sparse.csr_array:
        """A (N, N): diag(lambda) - lambda lambda' / sum(lambda), stage by stage."""
        entries, left, right = [np.zeros(0)], [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
        for order, stages in zip(self.orders, self._stages(curvature), strict=True):
            count, k = order.shape
            block = np.zeros((count, k, k))
            for stage, weight in enumerate(stages):
                total = np.maximum(weight.sum(axis=1), np.finfo(float).tiny)
                inner = block[:, stage:, stage:]
                inner -= weight[:, :, None] * (weight / total[:, None])[:, None, :]
                diagonal = np.arange(k - stage)
                inner[:, diagonal, diagonal] += weight
            entries.append(block.ravel())
            left.append(np.repeat(order, k, axis=1).ravel())
            right.append(np.tile(order, (1, k)).ravel())
        where = (np.concatenate(left), np.concatenate(right))
        return scipy.sparse.csr_array((np.concatenate(entries), where), shape=(self.rows.n, self.rows.n))

    def leverage(self, curvature: Floats, spread: Floats) -> Floats:
        parts = [np.zeros(0)]
        for stages, covariance in zip(self._stages(curvature), self._spreads(spread), strict=True):
            for stage, weight in enumerate(stages):
                total = np.maximum(weight.sum(axis=1, keepdims=True), np.finfo(float).tiny)
                parts.append(_spread_about(weight / total, covariance[:, stage:, stage:]).ravel())
        return np.concatenate(parts)


def _spread_about(tilt: Floats, V: Floats) -> Floats:
    """var(t_i - a't) = (e_i - a)'V(e_i - a) of every item, (R, k)."""
    product = np.einsum("rij,rj->ri", V, tilt)
    middle = np.sum(tilt * product, axis=1, keepdims=True)
    return np.asarray(np.maximum(np.diagonal(V, axis1=1, axis2=2) - 2 * product + middle, 0.0))


def _tilted(mu: Floats, V: Floats) -> tuple[Floats, Floats, Floats]:
    """Probabilities a = softmax(mu + var/2), var(t_i - a't), and log sum exp(mu + var/2): the least bound."""
    tilt, top = _softmax(mu)
    if not V.any():
        return tilt, np.zeros_like(mu), top
    share = 1.0
    change = np.inf
    for _ in range(_FIXED_POINT_STEPS):
        variance = _spread_about(tilt, V)
        following, _ = _softmax(mu + 0.5 * variance)
        step = float(np.abs(following - tilt).max())
        if step >= change:  # swinging back and forth
            share = max(0.5 * share, 0.05)
        change = step
        tilt = tilt + share * (following - tilt)
        if step < _FIXED_POINT:
            break
    variance = _spread_about(tilt, V)
    tilt, log_sum = _softmax(mu + 0.5 * variance)
    return tilt, variance, log_sum


def _softmax(t: Floats) -> tuple[Floats, Floats]:
    """Softmax and log-sum-exp of each row."""
    top = t.max(axis=1, keepdims=True)
    e = np.exp(t - top)
    total = e.sum(axis=1, keepdims=True)
    return e / total, (top + np.log(total))[:, 0]
