"""The executable specification: plain NumPy in float64, one equation a line, blocked over rows.

Slow where it must be, right everywhere. BLAS runs at one thread, blocks have a fixed size and nothing
depends on the argument ``threads``, so results have the same bits for any number of threads.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import lapack, solve_triangular

from dal_native._dispatch import single_threaded_blas
from dal_native._pairs import PEAK, TIE, admissible_pairs
from dal_native.pool import BLOCK_NUMBERS, Pool

if TYPE_CHECKING:
    from dal_native.selection import SelectionProblem

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

#: How far a leverage kept by rank-one updates may have drifted, relative to when last computed anew.
DRIFT = 1e-9


@contextmanager
def _float64() -> Iterator[None]:
    """BLAS at one thread, and silent overflow: callers check what comes out and name the conversation."""
    with single_threaded_blas(), np.errstate(over="ignore", invalid="ignore"):
        yield


def first_nonfinite(rows: NDArray[Any], dtype_name: str, threads: int) -> int:
    """Index of the first row that holds NaN or infinity, or -1."""
    step = max(1, BLOCK_NUMBERS // rows.shape[1])
    for start in range(0, rows.shape[0], step):
        block = rows[start : start + step]
        finite = (block & 0x7F80) != 0x7F80 if dtype_name == "bfloat16" else np.isfinite(block)
        if not finite.all():
            return start + int(np.argmin(finite.all(axis=1)))
    return -1


def margin(pool: Pool, reward: Floats, out: Floats, threads: int) -> None:
    """u_i = x_i' theta."""
    with _float64():
        for start, stop, x in pool.blocks():
            out[start:stop] = x @ reward


def choice_probability(margin: Floats, rationality: Floats, out: Floats, threads: int) -> None:
    """P(a1 preferred) = s(beta u) = 1 / (1 + exp(-beta u)), without overflow."""
    with np.errstate(over="ignore"):
        t = rationality * margin
    e = np.exp(-np.abs(t))  # in [0, 1]
    np.divide(np.where(t >= 0, 1.0, e), 1.0 + e, out=out)


def choice_weight(margin: Floats, rationality: Floats, out: Floats, threads: int) -> None:
    """w = beta^2 s(beta u) (1 - s(beta u)) = beta^2 e / (1 + e)^2 with e = exp(-|beta u|)."""
    with np.errstate(over="ignore"):
        e = np.exp(-np.abs(rationality * margin))
    np.multiply(np.square(rationality), e / np.square(1.0 + e), out=out)


# Means under a normal law. Narrow laws: Gauss-Hermite, whose error falls like exp(-c / sd), for the poles of
# s lie at +-i pi. Wide laws: the part that is not smooth on the scale of sd sits within a few units of t = 0,
# so integrate there (Gauss-Legendre on pieces of the half line, where the remaining factor decays like e^-t),
# and take the rest by formula.
_SHARP, _SHARP_NODES = 0.35, 14
_WIDE, _NARROW_NODES = 1.3, 40
_PIECES = (0.0, 1.5, 4.0, 7.5, 12.0, 18.0, 26.0, 40.0)
_PIECE_NODES = 9


def softplus_moments(mean: Floats, sd: Floats, out: Floats, threads: int) -> None:
    """E sp(t), E s(t), E s'(t), E t s'(t), E t^2 s'(t) under t ~ N(mean, sd^2), sp(t) = log(1 + e^t)."""
    step = BLOCK_NUMBERS // 64
    with _float64():
        for start in range(0, len(mean), step):
            part = slice(start, start + step)
            mu, sigma, values = mean[part], sd[part], out[:, part]
            for chosen, nodes in (
                (sigma == 0, 1),
                ((sigma > 0) & (sigma <= _SHARP), _SHARP_NODES),
                ((sigma > _SHARP) & (sigma <= _WIDE), _NARROW_NODES),
            ):
                if chosen.any():
                    values[:, chosen] = _gauss_hermite(mu[chosen], sigma[chosen], nodes)
            chosen = sigma > _WIDE
            if chosen.any():
                values[:, chosen] = _wide(mu[chosen], sigma[chosen])


def _softplus(t: Floats) -> tuple[Floats, Floats, Floats]:
    """sp(t) - max(t, 0), s(t), s'(t), none of which overflows or cancels."""
    e = np.exp(-np.abs(t))
    inverse = 1 / (1 + e)
    return np.log1p(e), np.where(t >= 0, inverse, e * inverse), e * inverse * inverse


def _gauss_hermite(mu: Floats, sigma: Floats, nodes: int) -> list[Floats]:
    node, weight = np.polynomial.hermite_e.hermegauss(nodes)
    weight /= weight.sum()
    t = mu[:, None] + sigma[:, None] * node
    rest, logistic, slope = _softplus(t)
    floor = np.maximum(mu, 0)  # the kink is taken out at the law's own mean: no cancellation far out
    excess = np.maximum(t, 0) - floor[:, None] + rest
    near = np.clip(t, -800, 800)  # t^2 s'(t) vanishes long before t^2 overflows
    terms = (logistic, slope, near * slope, near * near * slope)
    return [floor + excess @ weight, *(term @ weight for term in terms)]


def _wide(mu: Floats, sigma: Floats) -> list[Floats]:
    from scipy.special import ndtr

    node, weight = np.polynomial.legendre.leggauss(_PIECE_NODES)
    ends = np.asarray(_PIECES)
    half = np.diff(ends)[:, None] / 2
    t, v = (ends[:-1, None] + half * (1 + node)).ravel(), (half * weight).ravel()
    rest, logistic, slope = _softplus(-t)  # rest is even in t
    z = mu / sigma
    above, below = _density(z[:, None], t / sigma[:, None]), _density(z[:, None], -t / sigma[:, None])
    both, odd = (above + below) / sigma[:, None], (above - below) / sigma[:, None]
    kink = _density(z, 0.0) - np.abs(z) * ndtr(-np.abs(z))  # E max(t, 0) = max(mu, 0) + sigma kink
    return [
        np.maximum(mu, 0) + sigma * kink + both @ (v * rest),
        ndtr(z) - odd @ (v * logistic),
        both @ (v * slope),
        odd @ (v * slope * t),
        both @ (v * slope * t * t),
    ]


def _density(at: Floats, mean: Floats | float) -> Floats:
    """Of N(mean, 1)."""
    density: Floats = np.exp(-0.5 * np.square(at - mean)) / np.sqrt(2 * np.pi)
    return density


def _weights(margin: Floats, rationality: Floats, category: NDArray[np.int32]) -> Floats:
    """Weight of every teacher for these conversations: (k, m)."""
    return _weight(margin[:, None], rationality.T[category])


def _weight(margin: Floats, rationality: Floats) -> Floats:
    w = np.empty(rationality.shape)
    choice_weight(margin, rationality, w, 1)
    return w


def _largest_weights(margin: Floats, lower: Floats, upper: Floats, category: NDArray[np.int32]) -> Floats:
    """The largest weight of every teacher for beta between lower and upper: (k, m).

    beta^2 s'(beta u) rises up to beta = t* / |u| and falls after it, so it is that of the nearest beta.
    """
    with np.errstate(divide="ignore", over="ignore"):
        peak = PEAK / np.abs(margin)
    return _weight(margin[:, None], np.clip(peak[:, None], lower.T[category], upper.T[category]))


def best_teacher(
    margin: Floats,
    category: NDArray[np.int32],
    rationality: Floats,
    available: NDArray[np.uint8],
    out_teacher: Integers,
    out_weight: Floats,
    threads: int,
) -> None:
    """The available teacher of largest weight (ties: the smallest index); -1 and 0.0 where there is none."""
    step = max(1, BLOCK_NUMBERS // rationality.shape[0])
    for start in range(0, len(margin), step):
        part = slice(start, start + step)
        w = np.where(
            available.T[category[part]] != 0, _weights(margin[part], rationality, category[part]), -1.0
        )
        largest = w.max(axis=1)
        teacher = np.argmax(w >= largest[:, None] - TIE * np.abs(largest)[:, None], axis=1)
        out_teacher[part] = np.where(largest < 0, -1, teacher)
        out_weight[part] = np.where(largest < 0, 0.0, w[np.arange(len(w)), teacher])


def _leverage(x: Floats, factor: Floats) -> Floats:
    """h = |L^-1 x|^2 for each row x, with M = L L'."""
    y = solve_triangular(factor, x.T, lower=True, check_finite=False)
    return np.asarray(np.einsum("ij,ij->j", y, y))


def leverage(
    pool: Pool,
    factor: Floats,
    conversations: Integers | None,
    single: bool,
    reference: Floats | None,
    out: Floats,
    threads: int,
) -> None:
    """h_i = (x_i - nu)' M^-1 (x_i - nu) = |L^-1 (x_i - nu)|^2, nu = 0 if absent; `single` permits float32."""
    with _float64():
        for start, stop, x in _blocks(pool, conversations):
            out[start:stop] = _leverage(x if reference is None else x - reference, factor)


def _blocks(pool: Pool, conversations: Integers | None) -> Any:
    if conversations is None:
        yield from pool.blocks()
        return
    step = max(1, BLOCK_NUMBERS // pool.d)
    for start in range(0, len(conversations), step):
        stop = min(start + step, len(conversations))
        yield start, stop, pool.take(conversations[start:stop])


def information_gain(
    pool: Pool,
    reward: Floats,
    rationality: Floats,
    factor: Floats,
    conversations: Integers | None,
    out: Floats,
    threads: int,
) -> None:
    """gain(i, j) = log det(M + w_ij x_i x_i') - log det M = log1p(w_ij h_i)."""
    with _float64():
        for start, stop, x in _blocks(pool, conversations):
            index = np.arange(start, stop) if conversations is None else conversations[start:stop]
            w = _weights(x @ reward, rationality, pool.category_of(index))
            out[start:stop] = np.log1p(w * _leverage(x, factor)[:, None])


def information_matrix(
    pool: Pool, weight: Floats, ridge: float, single: bool, out: Floats, threads: int
) -> None:
    """M = ridge I + sum_i w_i x_i x_i'; `single` permits float32."""
    out[:] = ridge * np.eye(pool.d)
    with _float64():
        for start, stop, x in pool.blocks():
            root = np.sqrt(np.abs(weight[start:stop]))[:, None] * x
            plus, minus = root[weight[start:stop] > 0], root[weight[start:stop] < 0]
            out += plus.T @ plus  # a product of a matrix with itself stays symmetric
            out -= minus.T @ minus


def weighted_sum(pool: Pool, weight: Floats, out: Floats, threads: int) -> None:
    """sum_t w_t x_t."""
    out[:] = 0.0
    with _float64():
        for start, stop, x in pool.blocks():
            out += weight[start:stop] @ x


def hessian_vector(pool: Pool, weight: Floats, vector: Floats, out: Floats, threads: int) -> None:
    """sum_t w_t x_t (x_t' v)."""
    out[:] = 0.0
    with _float64():
        for start, stop, x in pool.blocks():
            out += (weight[start:stop] * (x @ vector)) @ x


def weighted_sum_by_cell(
    pool: Pool, row: Integers | None, weight: Floats, cell: Integers, out: Floats, threads: int
) -> None:
    """out_c = sum of w_q x_(row_q) over the entries q with cell_q = c."""
    out[:] = 0.0
    with _float64():
        for start, stop, x in _blocks(pool, row):
            np.add.at(out, cell[start:stop], weight[start:stop, None] * x)


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
    """row_p = argmax u_a over allowed a in p, best_p = u_(row_p), mean_g = sum_(p in g) w_p phi(row_p)."""
    rows, first = pool.completions, _offsets(pool)[:-1]
    u = _rewards(rows, reward, threads)
    of_allowed = u if allowed is None else np.where(allowed, u, -np.inf)
    out_best[:] = _largest(of_allowed, first)
    is_best = np.flatnonzero(of_allowed == _spread(out_best, pool))
    out_row[:] = is_best[np.searchsorted(is_best, first)]
    for g, (start, stop) in enumerate(pairwise(prompt_groups)):
        weighted_sum_by_cell(
            rows, out_row[start:stop], prompt_weight[start:stop], np.zeros(stop - start, np.int64),
            out_mean[g : g + 1], threads,
        )  # fmt: skip


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
    """pi_a = b_a exp(u_a / t) / Z_p; log Z_p, E_pi u and mean_g = sum_(p in g) w_p E_pi phi."""
    rows, first = pool.completions, _offsets(pool)[:-1]
    u = _rewards(rows, reward, threads)
    base = _spread(1.0 / np.diff(_offsets(pool)), pool) if base_policy is None else base_policy
    of_allowed = np.where(base > 0, u, -np.inf)
    top = _largest(of_allowed, first)
    with _float64():
        v = base * np.exp((of_allowed - _spread(top, pool)) / temperature)
        total = _total(v, first)
        out_log_partition[:] = top / temperature + np.log(total)
        out_probability[:] = v / _spread(total, pool)
        out_expected[:] = _total(out_probability * u, first)
    group = np.repeat(np.arange(len(prompt_groups) - 1), np.diff(_offsets(pool)[prompt_groups]))
    weight = _spread(prompt_weight, pool) * out_probability
    weighted_sum_by_cell(rows, None, weight, group, out_mean, threads)


def _total(of_completions: Floats, first: Integers) -> Floats:
    return np.add.reduceat(of_completions, first) if len(first) else np.empty(0)


def _offsets(pool: Pool) -> Integers:
    assert pool.prompt_offsets is not None
    return pool.prompt_offsets


def _rewards(rows: Pool, reward: Floats, threads: int) -> Floats:
    """u_a = phi_a' theta; refused where it overflows."""
    u = np.empty(len(rows))
    margin(rows, reward, u, threads)
    if not np.isfinite(u).all():
        raise ValueError(
            f"the reward of completion {int(np.argmin(np.isfinite(u)))} is not finite; "
            "expected smaller completions or reward"
        )
    return u


def _largest(of_completions: Floats, first: Integers) -> Floats:
    return np.maximum.reduceat(of_completions, first) if len(first) else np.empty(0)


def _spread(of_prompts: Floats, pool: Pool) -> Floats:
    """What belongs to a prompt, for each of its completions."""
    return np.repeat(of_prompts, np.diff(_offsets(pool)))


def update_leverage(pool: Pool, direction: Floats, coefficient: float, out: Floats, threads: int) -> None:
    """h_i <- max(0, h_i - coefficient (x_i' direction)^2)   (Sherman-Morrison)."""
    with _float64():
        for start, stop, x in pool.blocks():
            c = x @ direction
            out[start:stop] = np.maximum(0.0, out[start:stop] - coefficient * c * c)  # c^2 alone may overflow


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
    """sum_t v_t (-y log s(b_t u_t) - (1 - y) log s(-b_t u_t)), and its gradients in theta and in each b_t."""
    loss = 0.0
    out_gradient[:] = 0.0
    with _float64():
        for start, stop, x in pool.blocks():
            y, b, v = choice[start:stop], rationality[start:stop], sample_weight[start:stop]
            u = x @ reward
            t = b * u
            log1pe = np.log1p(np.exp(-np.abs(t)))
            loss += float(np.sum(v * (log1pe + y * np.maximum(-t, 0.0) + (1.0 - y) * np.maximum(t, 0.0))))
            s = np.empty_like(t)
            choice_probability(u, b, s, threads)
            slope = v * (s - y)  # d loss / d t
            out_gradient += (slope * b) @ x
            out_rationality_gradient[start:stop] = slope * u
    return loss


# --------------------------------------------------------------------------------------------- selection


def reuse_from() -> int:
    """Conversations a feature from which a Selector keeps bounds; this backend computes everything anew."""
    return 10


def select_batch(problem: SelectionProblem) -> dict[str, Any]:
    """Greedy D-optimal batch over every admissible pair.

    Leverages follow the picks by rank-one updates, or are computed anew where the condition of M forbids
    updates; rows that could win within the drift are evaluated one by one from a fresh factor of M, so that
    identical rows get identical bits.
    """
    with _float64():
        return _Greedy(problem).run()


class _Greedy:
    def __init__(self, problem: SelectionProblem) -> None:
        self.problem = p = problem
        n = len(p.pool)
        self.category = p.pool.category_of(np.arange(n))
        self.matrix = p.matrix.copy()
        self._factorise()
        self.start_leverage = np.empty(n)
        leverage(p.pool, self.factor, None, False, None, self.start_leverage, p.threads)
        self.anew = self.start_leverage  # as of the last time they were computed anew
        u = np.empty(n)
        margin(p.pool, p.reward, u, p.threads)
        for name, values in (("margin", u), ("leverage", self.start_leverage)):
            if not np.isfinite(values).all():
                bad = int(np.argmin(np.isfinite(values)))
                raise ValueError(
                    f"{name} of conversation {bad} is not finite; expected smaller differences or reward"
                )
        # optimism: |u| - k sd(u), with sd(u) = sqrt(h) frozen at the batch's start
        self.margin = np.maximum(np.abs(u) - p.optimism * np.sqrt(self.start_leverage), 0.0)
        self.leverage = self.start_leverage.copy()
        self.capacity = p.capacity.copy()
        self.asked: dict[int, list[int]] = {}
        self.slope = np.full(n, -1.0)  # largest w / cost of an admissible pair; -1 where there is none
        self.teacher = np.full(n, -1, np.int64)
        self._refresh(np.arange(n))
        self.rescored = 0

    def run(self) -> dict[str, Any]:
        p = self.problem
        picks: list[tuple[int, int, float, float]] = []
        while len(picks) < p.size:
            pick = self._best()
            if pick is None:
                break
            picks.append(pick)
            self._take(*pick)
            if p.progress is not None:
                p.progress(len(picks), p.size)
        i = np.array([k[0] for k in picks], np.int64)
        j = np.array([k[1] for k in picks], np.int64)
        w = np.array([k[2] for k in picks], np.float64)
        total, batch_total = self._certificate(i, j, w)
        n = len(p.pool)
        return {
            "conversation": i,
            "teacher": j,
            "gain": np.array([np.log1p(k[2] * k[3]) for k in picks], np.float64),
            "objective_total": total,
            "batch_total": batch_total,
            "counters": {
                "rows_streamed": n * (3 + len(picks)),
                "rows_rescored": self.rescored,
                "refreshes": n * len(picks),
                "stages": ["dense"],
            },
        }

    # -- pairs

    def _pairs(self, rows: Integers) -> tuple[Floats, Floats, NDArray[np.bool_]]:
        """Weight, cost and start-admissibility of every pair of these conversations: (k, m) each."""
        p = self.problem
        c = self.category[rows]
        cost = np.ones((1, 1)) if p.cost is None else p.cost.T[c]
        u, admissible = self.margin[rows], admissible_pairs(p, rows, c)
        if p.upper is not None:
            return _largest_weights(u, p.rationality, p.upper, c), cost, admissible
        return _weights(u, p.rationality, c), cost, admissible

    def _open(self, rows: Integers, admissible: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """What is left of the admissible pairs: capacity, repeats and the pairs asked in this batch."""
        admissible = admissible & (self.capacity != 0)
        for k in np.flatnonzero(np.isin(rows, list(self.asked))):
            asked = self.asked[int(rows[k])]
            admissible[k, asked] = False
            if len(asked) >= self.problem.repeats:
                admissible[k] = False
        return admissible

    def _refresh(self, rows: Integers) -> None:
        """The largest w / cost of the open pairs of these conversations, and its teacher."""
        for part in self._parts(rows):
            w, cost, admissible = self._pairs(part)
            ratio = np.where(self._open(part, admissible), w / cost, -1.0)
            self.teacher[part] = np.argmax(ratio, axis=1)
            self.slope[part] = ratio.max(axis=1)

    def _parts(self, rows: Integers) -> list[Integers]:
        step = max(1, BLOCK_NUMBERS // self.problem.rationality.shape[0])
        return [rows[k : k + step] for k in range(0, len(rows), step)]

    def _objective(self, rows: Integers, h: Floats) -> Floats:
        """w h, or log1p(w h) / cost, of every pair of these conversations, -1 where not open: (k, m)."""
        w, cost, admissible = self._pairs(rows)
        wh = w * h[:, None]
        objective = wh if self.problem.cost is None else np.log1p(wh) / cost
        return np.where(self._open(rows, admissible), objective, -1.0)

    # -- one pick

    def _best(self) -> tuple[int, int, float, float] | None:
        open_rows = np.flatnonzero(self.slope >= 0)
        if len(open_rows) == 0:
            return None
        if self.problem.cost is None:
            approximate = self.slope[open_rows] * self.leverage[open_rows]
        else:
            parts = self._parts(open_rows)
            approximate = np.concatenate([self._objective(k, self.leverage[k]).max(axis=1) for k in parts])
        spread = approximate + self.slope[open_rows] * self.anew[open_rows]
        drift = np.minimum(max(DRIFT, self.rounding) * spread, np.finfo(np.float64).max)
        if not np.isfinite(approximate).all():
            self._refuse_overflow(int(open_rows[np.argmin(np.isfinite(approximate))]))
        finalists = open_rows[approximate + drift >= (approximate - drift).max()]
        self.rescored += len(finalists)
        h = np.array([self._row_leverage(int(i)) for i in finalists])
        objective = np.concatenate(
            [self._objective(k, h[np.searchsorted(finalists, k)]) for k in self._parts(finalists)]
        )
        largest = objective.max()
        if not np.isfinite(largest):
            self._refuse_overflow(int(finalists[np.argmin(np.isfinite(objective).all(axis=1))]))
        row, j = divmod(int(np.argmax(objective >= largest - TIE * abs(largest))), objective.shape[1])
        i = int(finalists[row])
        return i, j, float(self._pairs(np.array([i]))[0][0, j]), float(h[row])

    def _row_leverage(self, i: int) -> float:
        """h_i by one triangular solve of one right-hand side: the same bits wherever the row stands."""
        y, _ = lapack.dtrtrs(self.factor, self.problem.pool.take([i])[0], lower=1)
        return float(np.sum(np.square(y)))

    def _take(self, i: int, j: int, w: float, h: float) -> None:
        x = self.problem.pool.take([i])[0]
        direction = lapack.dpotrs(self.factor, x, lower=1)[0]
        rounding = self.rounding
        self.matrix += w * np.outer(x, x)
        if not np.isfinite(self.matrix).all():
            self._refuse_overflow(i)
        self._factorise()
        pool, threads = self.problem.pool, self.problem.threads
        if max(rounding, self.rounding) < DRIFT:
            update_leverage(pool, direction, w / (1.0 + w * h), self.leverage, threads)
        else:
            leverage(pool, self.factor, None, False, None, self.leverage, threads)
            self.anew = self.leverage.copy()
        self.asked.setdefault(i, []).append(j)
        self._refresh(np.array([i]))
        if self.capacity[j] > 0:
            self.capacity[j] -= 1
            if self.capacity[j] == 0:
                self._refresh(np.flatnonzero(self.teacher == j))

    def _factorise(self) -> None:
        """L with M = L L', and a bound on the relative rounding of what is solved with it: d eps cond M."""
        self.factor = _cholesky(self.matrix)
        inverse, _ = lapack.dtrtri(self.factor, lower=1)
        condition = _norm(self.matrix) * _norm(inverse) ** 2
        rounding = 8.0 * len(self.matrix) * np.finfo(np.float64).eps * condition
        self.rounding = float(rounding) if rounding < 1.0 else 1.0  # NaN too

    def _refuse_overflow(self, i: int) -> None:
        raise ValueError(
            f"the gain or information of conversation {i} is not finite; "
            "expected smaller differences or parameters"
        )

    # -- the certificate

    def _certificate(self, i: Integers, j: Integers, w: Floats) -> tuple[float, float]:
        """T, the most any batch could be worth at the final M, and what this batch is worth there."""
        p = self.problem
        h = np.empty(len(p.pool))
        leverage(p.pool, self.factor, None, False, None, h, p.threads)
        batch_total = float(np.sum(w * h[i]))
        if p.cost is not None:
            spent = float(np.sum(p.cost[j, self.category[i]]))
            return spent * max([0.0, *(float(k.max()) for k in self._start_values(h, 1))]), batch_total
        largest = np.empty(0)
        for part in self._start_values(h, p.repeats):
            largest = np.sort(np.concatenate([largest, part[part >= 0]]))[::-1][: p.size]
        return float(largest.sum()), batch_total

    def _start_values(self, h: Floats, repeats: int) -> Any:
        """The ``repeats`` largest w h / cost of each conversation, of pairs admissible at the start."""
        for rows in self._parts(np.arange(len(h))):
            w, cost, admissible = self._pairs(rows)
            values = np.where(admissible, w * h[rows][:, None] / cost, -1.0)
            yield np.sort(values, axis=1)[:, ::-1][:, :repeats].ravel()


def _norm(a: Floats) -> np.float64:
    """|a|_F, without overflow or underflow of the squares."""
    largest = np.abs(a).max()
    return np.float64(largest * np.sqrt(np.sum(np.square(a / largest))))


def _cholesky(matrix: Floats) -> Floats:
    factor, status = lapack.dpotrf(matrix, lower=1, clean=1)
    if status != 0:
        raise np.linalg.LinAlgError("information matrix is not positive definite")
    return np.asarray(factor)
