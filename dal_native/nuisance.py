"""Batches for the reward alone, the rationalities being a nuisance: the D_s criterion, exact.

With A the joint information of (theta, rationalities) and b the latter, a pair (i, j) of cell k gains

    log1p(v g' A^-1 g) - log1p(v g_b' A_bb^-1 g_b),    g = (beta x, u e_k),  v = s(beta u) s(-beta u).

Three blocks say the same without differences of large numbers: S, the information on theta where nothing else
is known of b; C = A_bb^-1; R = -A_tb C, by which b follows theta. With q = beta x + u r_k and
w = v / (1 + v u^2 c_kk) the gain is log1p(w q' S^-1 q), and the label changes

    S += w q q',    R -= w u q c_k',    C -= v u^2 / (1 + v u^2 c_kk) c_k c_k'.

Lazy search: v g' A^-1 g only falls as labels come in, C is known, and v u^2 <= t*^2 s'(t*) / beta^2 = a; so
since a bound was computed a gain has risen by at most log((1 + a c_kk then) / (1 + a c_kk now)).
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dal_native import _linalg, _validate
from dal_native._dispatch import single_threaded_blas
from dal_native._pairs import PEAK, TIE, admissible_pairs

if TYPE_CHECKING:
    from dal_native.selection import SelectionProblem

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class JointInformation:
    """Covariance A^-1 of (theta, rationalities), A their joint information where the scale is held fixed.

    One label of teacher j in category c adds v g g' to A, with g = (beta x, u e_k), v = s(beta u) s(-beta u)
    and k the cell of (j, c): coordinates are the reward and beta itself, not its logarithm (from log beta,
    multiply the rows and columns of a cell by its beta).

    Parameters
    ----------
    theta : array_like, (d, d)
        Of the reward; positive definite.
    cross : array_like, (d, K)
        Between the reward and the rationality of each cell.
    rationality : array_like, (K, K)
        Of the rationalities; may be singular along the direction that fixes the scale.
    cell : array_like of int, (m, C) or (m,)
        Where teacher j in category c stands among the K; -1: a cell without labels so far, independent of
        everything else. Cells may be shared; with (m,) a teacher has one in all categories.
    prior_variance : float or array_like, (m, C) or (m,), optional
        Variance of the rationality of cells without labels, at least 0; needed where there are any.

    Raises
    ------
    ValueError
        For arrays that do not fit together, by name.

    Examples
    --------
    >>> import dal_native as dn, numpy as np
    >>> joint = dn.JointInformation(np.eye(2), np.zeros((2, 1)), [[0.3]], [[0], [-1]], prior_variance=0.5)
    >>> joint.theta.shape, joint.cross.shape
    ((2, 2), (2, 1))
    """

    theta: Any
    cross: Any
    rationality: Any
    cell: Any
    prior_variance: Any = None

    def __post_init__(self) -> None:
        theta = _validate.symmetric(self.theta, None, "theta")
        cross = _validate.floats(self.cross, "cross", 2)
        _validate.length(cross, len(theta), "cross", "feature")
        cells = cross.shape[1]
        rationality = _validate.floats(self.rationality, "rationality", 2)
        if rationality.shape != (cells, cells):
            raise ValueError(
                f"rationality has shape {rationality.shape}; expected ({cells}, {cells}), as cross says"
            )
        if cells:
            rationality = _validate.symmetric(rationality, cells, "rationality")
        cell = _validate.integers(self.cell, "cell", (1, 2))
        if cell.size == 0:
            raise ValueError(f"cell is empty (shape {cell.shape}); expected one entry for each teacher")
        if int(cell.min()) < -1 or int(cell.max()) >= cells:
            bad = int(cell.min()) if int(cell.min()) < -1 else int(cell.max())
            raise ValueError(f"cell holds {bad}; expected cells between 0 and {cells - 1}, or -1")
        kept: dict[str, Any] = {"theta": theta, "cross": cross, "rationality": rationality, "cell": cell}
        kept["prior_variance"] = _prior_variance(self.prior_variance, cell)
        for name, value in kept.items():
            object.__setattr__(self, name, value)

    @classmethod
    def from_inverse(cls, inverse: Any, d: int, cell: Any, prior_variance: Any = None) -> JointInformation:
        """The same from A^-1 in one piece, (d + K, d + K): the d coordinates of the reward first.

        Examples
        --------
        >>> import dal_native as dn, numpy as np
        >>> dn.JointInformation.from_inverse(np.eye(3), 2, [0]).rationality
        array([[1.]])
        """
        whole = _validate.symmetric(inverse, None, "inverse")
        d = _validate.whole(d, "d", 1)
        if d > len(whole):
            raise ValueError(f"inverse has shape {whole.shape}; expected at least d = {d} rows")
        return cls(whole[:d, :d], whole[:d, d:], whole[d:, d:], cell, prior_variance)


def _prior_variance(values: Any, cell: Integers) -> Floats | None:
    """As many as cells, or None where none is asked for."""
    if values is None:
        if int(cell.min()) < 0:
            raise ValueError("prior_variance is None; expected a variance, because cell holds -1")
        return None
    variance = _validate.floats(values, "prior_variance", (0, 1, 2))
    if variance.ndim not in (0, cell.ndim) or variance.shape not in ((), cell.shape):
        raise ValueError(
            f"prior_variance has shape {variance.shape}; expected a number or {cell.shape}, as cell"
        )
    if float(variance.min()) < 0.0:
        raise ValueError(f"prior_variance holds {float(variance.min()):g}; expected at least 0")
    return np.ascontiguousarray(np.broadcast_to(variance, cell.shape))


# ------------------------------------------------------------------------------------------------ search

#: The largest v u^2 at beta = 1, t*^2 s'(t*), and a little more.
_MOST = PEAK**2 / (2.0 + 2.0 * np.cosh(PEAK)) * (1.0 + 1e-9)
#: Numbers in a block of pairs: what the cache holds.
_BLOCK = 1 << 16
#: What bounds in logarithms may be off by rounding, absolutely.
_ROUNDING = 1e-14


def select(problem: SelectionProblem, margin: Callable[..., None]) -> dict[str, Any]:
    """Greedy D_s batch over every admissible pair; ``margin`` is that of the backend."""
    u = np.empty(len(problem.pool))
    with single_threaded_blas(), np.errstate(over="ignore", invalid="ignore", under="ignore"):
        margin(problem.pool, problem.reward, u, problem.threads)
        _validate.finite_result(u, "margin")
        return _Search(problem, u).run()


class _Joint:
    """S, R and C now; R and C as at the start less a sum of one product for each label."""

    def __init__(self, joint: JointInformation, beta: Floats) -> None:
        self.beta = beta
        self.cell = _cells(joint, beta.shape[1])  # (m, C)
        factor = _linalg.cholesky(joint.theta)
        whitener = _linalg.triangular_inverse(factor)
        self.information = whitener.T @ whitener  # S
        follows = whitener @ joint.cross
        self.regression = whitener.T @ follows  # R at the start, of the cells with labels: (d, K)
        self.conditional = joint.rationality - follows.T @ follows  # C, likewise
        self.known = len(self.conditional)
        spread = np.diag(self.conditional)
        if (spread < -1e-6 * np.diag(joint.rationality)).any():
            raise ValueError("joint is not a covariance: cross is larger than theta and rationality allow")
        self.spread = np.zeros(int(self.cell.max()) + 1)  # c_kk now
        if joint.prior_variance is not None:
            self.spread[self.cell] = _table(joint.prior_variance, beta.shape[1])
        self.spread[: self.known] = np.maximum(spread, 0.0)
        self.labels = 0
        # R is what it was less the sum of z f', C less that of f f'
        self.z, self.f = np.zeros((8, len(factor))), np.zeros((8, len(self.spread)))
        self._factorise()

    def _factorise(self) -> None:
        self.factor = _linalg.cholesky(self.information)
        self.whitener = _linalg.triangular_inverse(self.factor)  # L^-1
        condition = np.linalg.norm(self.information) * np.linalg.norm(self.whitener) ** 2
        #: of a leverage |L^-1 x|^2, relatively
        self.rounding = min(1.0, float(8.0 * len(self.factor) * np.finfo(np.float64).eps * condition))

    def columns(self, cells: Integers) -> Floats:
        """r_k of these cells, (d, len)."""
        old = np.flatnonzero(cells < self.known)
        out = np.zeros((len(self.factor), len(cells)))
        out[:, old] = self.regression[:, cells[old]]
        out -= self.z[: self.labels].T @ self.f[: self.labels, cells]
        return out

    def _covariance(self, k: int) -> Floats:
        """c_k, of all cells."""
        out = np.zeros(len(self.spread))
        if k < self.known:
            out[: self.known] = self.conditional[:, k]
        out -= self.f[: self.labels].T @ self.f[: self.labels, k]
        out[k] = self.spread[k]
        return out

    def ask(self, x: Floats, u: float, teacher: int, category: int) -> None:
        """Add the label of this teacher on x: S += z z', R -= z f', C -= f f'."""
        k, beta = int(self.cell[teacher, category]), float(self.beta[teacher, category])
        root = float(_root_slope(np.float64(beta * u)))
        share = root / np.sqrt(1.0 + np.square(root * u) * self.spread[k])  # the root of w
        z = share * (beta * x + u * self.columns(np.array([k]))[:, 0])
        f = share * u * self._covariance(k)
        if self.labels == len(self.z):
            self.z, self.f = (np.concatenate([a, np.zeros_like(a)]) for a in (self.z, self.f))
        self.z[self.labels], self.f[self.labels] = z, f
        self.labels += 1
        self.information += np.outer(z, z)
        self.spread = np.maximum(self.spread - np.square(f), 0.0)
        self._factorise()


def _cells(joint: JointInformation, n_categories: int) -> Integers:
    """A number for every cell, those without labels after the others: (m, C)."""
    cell, known = joint.cell.copy(), joint.cross.shape[1]
    new = cell < 0
    cell[new] = known + np.arange(int(new.sum()))
    return _table(cell, n_categories)


def _table(values: NDArray[Any], n_categories: int) -> NDArray[Any]:
    """One row a teacher, one column a category."""
    return values if values.ndim == 2 else np.repeat(values[:, None], n_categories, axis=1)


def _root_slope(t: Any) -> Any:
    """The root of s(t) s(-t): e / (1 + e^2) with e = exp(-|t| / 2), which neither over- nor underflows."""
    e = np.exp(-0.5 * np.abs(t))
    return e / (1.0 + e * e)


@dataclass(frozen=True, eq=False)
class _Teachers:
    """The teachers that may still answer in a category, as bounds need them."""

    teacher: Integers  # (k,)
    beta: Floats  # (k,)
    spread: Floats  # (k,) c_kk
    follows: Floats  # (d, k) L^-1 r_k
    square: Floats  # (k,) |L^-1 r_k|^2
    cost: Floats | None  # (k,)


class _Search:
    def __init__(self, problem: SelectionProblem, u: Floats) -> None:
        assert problem.joint is not None
        self.p, self.u = problem, u
        n, n_categories = len(u), problem.rationality.shape[1]
        self.category = problem.pool.category_of(np.arange(n))
        self.joint = _Joint(problem.joint, problem.rationality)
        self.capacity = problem.capacity.copy()
        self.asked: dict[int, list[int]] = {}
        self.listed = problem.candidate_offsets is not None or problem.exclude_conversation is not None
        # objective (log1p(w q' S^-1 q), per cost) of any pair: at most upper[i] when seen[i] labels were in
        self.upper, self.seen = np.full(n, np.inf), np.zeros(n, np.int64)
        self.risen = [np.zeros(n_categories)]  # by how much an objective of a category may have, in all steps
        self.rows_streamed = self.refreshes = self.finalists = 0
        self.order, self.entered = np.arange(n), 0

    def run(self) -> dict[str, Any]:
        p = self.p
        conversation: list[int] = []
        teacher: list[int] = []
        gain: list[float] = []
        while len(gain) < p.size:
            if p.method == "dense" or not gain:
                self._look_at_all()
            pick = self._best()
            if pick is None:
                break
            i, j, worth = pick
            conversation.append(i)
            teacher.append(j)
            gain.append(float(np.log1p(worth)))
            self._take(i, j)
            if p.progress is not None:
                p.progress(len(gain), p.size)
        counters = {
            "rows_streamed": self.rows_streamed + len(self.u),
            "rows_rescored": self.finalists,
            "refreshes": self.refreshes,
            "stages": ["full", p.method],
        }
        return {
            "conversation": np.array(conversation, np.int64),
            "teacher": np.array(teacher, np.int64),
            "gain": np.array(gain, np.float64),
            "counters": counters,
        }

    # -- bounds

    def _sharpness(self) -> Floats:
        """-log(1 + a c_kk) of every cell, up to a constant for each: -log(1 / a + c_kk), (m, C)."""
        with np.errstate(divide="ignore"):
            joint = self.joint
            return np.asarray(-np.log(np.square(joint.beta) / _MOST + joint.spread[joint.cell]))

    def _rise(self, before: Floats, after: Floats) -> Floats:
        """By how much an objective may have risen in between, for each category."""
        rise = np.nan_to_num(after - before, nan=0.0)  # nan: known for sure all along
        if self.p.cost is not None:
            rise = rise / self.p.cost
        return np.asarray(rise.max(axis=0)) * (1.0 + 1e-12)

    def _bounds(self, rows: Integers) -> Floats:
        """At least the objective of every pair of these conversations now."""
        c = self.category[rows]
        risen = np.asarray(self.risen)
        rise = np.minimum(risen[-1, c] - risen[self.seen[rows], c], self.since_start[c])
        stale = self.seen[rows] < len(risen) - 1
        return np.asarray(self.upper[rows] + np.where(stale, rise + _ROUNDING, 0.0))

    def _teachers(self, category: int) -> _Teachers:
        found = self.tables.get(category)
        if found is None:
            j = np.flatnonzero((self.p.available[:, category] != 0) & (self.capacity != 0))
            cells = self.joint.cell[j, category]
            follows = self.joint.whitener @ self.joint.columns(cells)
            found = _Teachers(
                j,
                self.joint.beta[j, category],
                self.joint.spread[cells],
                follows,
                np.sum(np.square(follows), axis=0) * (1.0 + self.joint.rounding),
                None if self.p.cost is None else self.p.cost[j, category],
            )
            self.tables[category] = found
        return found

    def _largest(self, rows: Integers, x: Floats, category: int) -> Floats:
        """Bounds on the objectives of conversations of one category now, -inf where nobody may answer."""
        by = self._teachers(category)
        if len(by.teacher) == 0:
            return np.full(len(rows), -np.inf)
        y = x @ self.joint.whitener.T
        u, h = self.u[rows, None], np.einsum("ij,ij->i", y, y)[:, None] * (1.0 + self.joint.rounding)
        root = np.abs(u * by.beta)
        root *= -0.5
        np.exp(root, out=root)
        root /= 1.0 + root * root
        a = root * by.beta
        b = np.multiply(root, u, out=root)
        # v |beta L^-1 x + u L^-1 r_k|^2
        value = y @ by.follows
        value *= b
        value *= 2.0
        value += a * h
        value *= a
        b *= b
        value += b * by.square
        value /= 1.0 + b * by.spread
        if self.listed or self.asked:
            value[~self._open(rows)[:, by.teacher]] = -np.inf
        if by.cost is None:
            most = value.max(axis=1)
            return np.asarray(np.where(most == -np.inf, most, np.log1p(np.maximum(most, 0.0))))
        gain = np.where(value == -np.inf, value, np.log1p(np.maximum(value, 0.0)))
        return np.asarray((gain / by.cost).max(axis=1))

    def _open(self, rows: Integers) -> NDArray[np.bool_]:
        """The pairs of these conversations that may be asked now: (k, m)."""
        allowed: NDArray[np.bool_] = admissible_pairs(self.p, rows, self.category[rows])
        allowed &= self.capacity != 0
        for k in np.flatnonzero(np.isin(rows, list(self.asked))):
            allowed[k, self.asked[int(rows[k])]] = False
        return allowed

    def _look(self, rows: Integers, x: Floats) -> None:
        c = self.category[rows]
        for category in np.unique(c).tolist():
            of = c == category
            bound = (
                self._largest(rows[of], x[of], category) if not of.all() else self._largest(rows, x, category)
            )
            if np.isnan(bound).any() or (bound == np.inf).any():
                bad = int(rows[of][np.argmax(np.isnan(bound) | (bound == np.inf))])
                raise ValueError(f"gain of conversation {bad} is not finite; expected smaller differences")
            self.upper[rows[of]] = bound * (1.0 + 1e-12)
        self.seen[rows] = len(self.risen) - 1

    def _look_at_all(self) -> None:
        """Bounds of every conversation, in blocks that depend on sizes alone, and their order."""
        p, n = self.p, len(self.u)
        self.tables: dict[int, _Teachers] = {}
        for category in range(p.rationality.shape[1]):
            self._teachers(category)
        self.start, self.since_start = self._sharpness(), np.zeros(p.rationality.shape[1])
        step = max(1, _BLOCK // max(p.pool.d, len(p.rationality)))
        closed = np.isneginf(self.upper)

        def look(start: int) -> None:
            stop = min(start + step, n)
            self._look(np.arange(start, stop), p.pool.block(start, stop))

        with ThreadPoolExecutor(p.threads) as threads:
            for _ in threads.map(look, range(0, n, step)):
                pass
        self.rows_streamed += n
        if p.blocked is not None:
            closed |= p.blocked != 0
        self.upper[closed] = -np.inf
        self.order = np.argsort(-self.upper, kind="stable")
        self.entered = 0

    # -- one pick

    def _best(self) -> tuple[int, int, float] | None:
        """Conversation, teacher and w q' S^-1 q of the largest objective; None where nobody may answer."""
        self.final: dict[int, Floats] = {}
        self.solved: dict[bytes, Floats] = {}
        self.exact: dict[int, _Exact] = {}
        now, block, best = len(self.risen) - 1, 32, -1.0
        rows = self.order[: self.entered]
        bound = self._bounds(rows)
        while True:
            top, outside, floor = float(bound.max(initial=-np.inf)), self._outside(), self._reach(best)
            if outside >= max(top, floor) and outside > -np.inf:
                new = self.order[self.entered : max(2 * self.entered, 1024)]
                rows, bound = np.concatenate([rows, new]), np.concatenate([bound, self._bounds(new)])
                self.entered = len(rows)
                continue
            if top < floor or top == -np.inf:
                break
            current = self.seen[rows] == now
            known = float(bound[current].max(initial=-np.inf))
            if known == top:
                chosen = _largest_of(bound, np.flatnonzero(current & (bound >= max(0.998 * top, floor))), 8)
                best = max(best, *(self._evaluate(int(i)) for i in rows[chosen]))
                bound[chosen] = -np.inf
                continue
            chosen = _largest_of(
                bound, np.flatnonzero(~current & (bound >= max(known, floor)) & (bound > -np.inf)), block
            )
            self._look(rows[chosen], self.p.pool.take(rows[chosen]))
            self.refreshes += len(chosen)
            bound[chosen] = self.upper[rows[chosen]]
            block = min(2 * block, 1024)
        return self._first_of_the_best(best)

    def _outside(self) -> float:
        """At least the objective of every pair of the conversations that have not entered."""
        if self.entered == len(self.order):
            return -np.inf
        return float(self.upper[self.order[self.entered]] + self.since_start.max() + _ROUNDING)

    def _reach(self, best: float) -> float:
        """What an objective must reach to be tied with the best so far."""
        if best < 0.0:
            return -np.inf
        tied = best * (1.0 - TIE)
        return float(np.log1p(tied)) if self.p.cost is None else tied

    def _evaluate(self, i: int) -> float:
        """The objectives of conversation i by the routine that decides; the largest."""
        x, c = self.p.pool.take([i])[0], int(self.category[i])
        key = x.tobytes()
        if key not in self.solved:
            self.solved[key] = _linalg.solve_lower(self.joint.factor, x)[0]
        if c not in self.exact:
            self.exact[c] = _Exact.of(self.joint, np.flatnonzero(self.p.available[:, c]), c)
        teachers = self.exact[c]
        worth = np.full(len(self.capacity), -1.0)
        worth[teachers.teacher] = teachers.worth(self.solved[key], float(self.u[i]))
        worth[~self._open(np.array([i]))[0]] = -1.0
        if not np.isfinite(worth).all():
            raise ValueError(f"gain of conversation {i} is not finite; expected smaller differences")
        self.final[i] = worth
        self.finalists += 1
        return float(self._objective(i).max())

    def _objective(self, i: int) -> Floats:
        """w q' S^-1 q, or log1p of it per cost, of every teacher; -1 where not open: (m,)."""
        worth = self.final[i]
        if self.p.cost is None:
            return worth
        return np.where(
            worth < 0.0, -1.0, np.log1p(np.maximum(worth, 0.0)) / self.p.cost[:, self.category[i]]
        )

    def _first_of_the_best(self, best: float) -> tuple[int, int, float] | None:
        if best < 0.0:
            return None
        floor = best * (1.0 - TIE)
        i = min(i for i in self.final if (self._objective(i) >= floor).any())
        j = int(np.argmax(self._objective(i) >= floor))
        return i, j, float(self.final[i][j])

    def _take(self, i: int, j: int) -> None:
        before = self._sharpness()
        self.joint.ask(self.p.pool.take([i])[0], float(self.u[i]), j, int(self.category[i]))
        after = self._sharpness()
        self.risen.append(self.risen[-1] + self._rise(before, after))
        self.since_start = self._rise(self.start, after)
        self.tables = {}
        if self.capacity[j] > 0:
            self.capacity[j] -= 1
        self.asked.setdefault(i, []).append(j)
        if len(self.asked[i]) >= self.p.repeats:
            self.upper[i] = -np.inf


@dataclass(frozen=True, eq=False)
class _Exact:
    """The teachers of a category as the routine that decides needs them."""

    teacher: Integers  # (k,)
    beta: Floats  # (k,)
    spread: Floats  # (k,) c_kk
    follows: Floats  # (k, d) L^-1 r_k

    @classmethod
    def of(cls, joint: _Joint, teacher: Integers, category: int) -> _Exact:
        cells = joint.cell[teacher, category]
        follows = _linalg.solve_lower(joint.factor, np.ascontiguousarray(joint.columns(cells).T))
        return cls(teacher, joint.beta[teacher, category], joint.spread[cells], follows)

    def worth(self, y: Floats, u: float) -> Floats:
        """w q' S^-1 q of each teacher for y = L^-1 x, without a difference of large numbers: (k,)."""
        root = _root_slope(self.beta * u)
        q = (root * self.beta)[:, None] * y + (root * u)[:, None] * self.follows
        return np.asarray(np.einsum("ij,ij->i", q, q) / (1.0 + np.square(root * u) * self.spread))


def _largest_of(bound: Floats, among: Integers, count: int) -> Integers:
    """Those of the largest bounds, at most so many, best first."""
    if len(among) > 4 * count:
        among = among[np.argpartition(-bound[among], count)[:count]]
    return among[np.argsort(-bound[among], kind="stable")[:count]]
