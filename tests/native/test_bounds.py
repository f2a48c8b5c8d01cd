"""No bound is ever violated: what one round proves of the next one's leverages, in extended precision."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import dal_native as dn
from dal_native import _reuse
from dal_native._reuse import Factored, certified_bound, certified_ratio
from dal_native.testing import (
    DTYPES,
    KINDS,
    as_float64,
    make_problem,
    oracle_leverage,
    oracle_log_det,
    store,
)

Extended = np.longdouble


def spd(rng, d, power, scale=1.0):
    """A positive definite matrix with condition number 10^power."""
    rotation = np.linalg.qr(rng.standard_normal((d, d)))[0]
    a = (rotation * 10.0 ** np.linspace(0.0, power, d)) @ rotation.T
    return scale * 0.5 * (a + a.T)


def refitted(rng, old, how):
    """An M that a refit may turn ``old`` into."""
    d = len(old)
    factor = np.linalg.cholesky(old)
    x = (factor @ rng.standard_normal((d, min(d, 7)))).T  # rows as large as the labels behind M
    if how == "labels":
        new = old + 0.3 * x.T @ x
    elif how == "weights":
        new = (factor * rng.lognormal(0.0, 0.6, d)) @ factor.T
    elif how == "removed":
        new = old - 0.9 * np.outer(x[0], x[0]) / (1.0 + x[0] @ np.linalg.solve(old, x[0]))
    elif how == "ridge":
        new = old + 0.5 * np.diag(np.diag(old))
    elif how == "scaled":
        new = 0.3 * old
    else:
        new = old.copy()
    return 0.5 * (new + new.T)


HOWS = ["labels", "weights", "removed", "ridge", "scaled", "same"]


def hardest(rng, new, old):
    """Rows x that make h_new / h_old largest and smallest, and some others."""
    with np.errstate(all="ignore"):
        factor = np.linalg.cholesky(old)
        whitened = np.linalg.solve(factor, np.linalg.solve(factor, new).T)
        rows = (factor @ np.linalg.eigh(0.5 * (whitened + whitened.T))[1]).T
    return np.concatenate([rows, rng.standard_normal((4, len(new))) * np.sqrt(np.trace(old))])


def bounded(bound, x, h_old):
    """The bound in extended precision."""
    projection = x.astype(Extended) @ bound.direction.astype(Extended).T
    return h_old / Extended(bound.ratio) + projection**2 @ bound.coefficient.astype(Extended)


# ------------------------------------------------------------------------------------------- ratios


@pytest.mark.parametrize("d", [1, 2, 3, 7, 16, 33, 64])
@pytest.mark.parametrize("power", [0.0, 3.0, 7.0])
def test_certified_ratio(d, power):
    """new - r old is positive definite in extended precision; r is not far from the largest such number."""
    rng = np.random.default_rng(d)
    old = spd(rng, d, power)
    x = rng.standard_normal((3, d))
    for scale, new in ((0.5, 0.5 * old), (1.0, old + x.T @ x), (1e-3, 1e-3 * old + 1e-9 * x.T @ x)):
        ratio = certified_ratio(new, old)
        assert scale * 0.49 <= ratio
        assert power > 5 or scale * 0.99 <= ratio
        difference = new.astype(Extended) - Extended(ratio) * old.astype(Extended)
        assert np.isfinite(oracle_log_det(difference))
        assert (oracle_leverage(x, new) <= oracle_leverage(x, old) / ratio).all()


@settings(max_examples=60)
@given(
    seed=st.integers(0, 10**6),
    d=st.integers(1, 80),
    power=st.sampled_from([0, 2, 5]),
    how=st.sampled_from(HOWS),
)
def test_the_ratio_is_within_a_percent_of_the_smallest_eigenvalue(seed, d, power, how):
    rng = np.random.default_rng(seed)
    old = spd(rng, d, power)
    new = refitted(rng, old, how)
    inverse = np.linalg.inv(np.linalg.cholesky(old))
    smallest = np.linalg.eigvalsh(inverse @ new @ inverse.T)[0]
    assert 0.99 * smallest <= certified_ratio(new, old) <= smallest * (1.0 + 1e-9)


def test_no_ratio_is_certified_where_there_is_none():
    assert certified_ratio(np.eye(2), np.diag([1.0, 0.0])) is None
    assert certified_ratio(np.diag([1.0, -1.0]), np.eye(2)) is None
    assert certified_ratio(np.diag([1.0, 1e-18]), np.eye(2)) is None
    # numbers that overflow on the way
    assert certified_ratio(1e-300 * np.eye(2), 1e300 * np.diag([1.0, 2.0])) is None


def test_the_ratio_has_the_same_bits_for_any_number_of_blas_threads(run_python):
    script = """
        import numpy as np
        from dal_native._reuse import Factored, certified_bound
        rng = np.random.default_rng(0)
        x = rng.integers(-4, 5, (500, 300)) / 4.0  # all products below are exact, whoever adds them up
        old = x.T @ x + np.eye(300)
        new = 0.75 * old + (x[:40].T * rng.integers(0, 8, 40) / 8.0) @ x[:40]
        bound = certified_bound(Factored.of(new), Factored.of(old), 4)
        print(bound.ratio.hex(), bound.coefficient.tobytes().hex())
    """
    seen = {run_python(script, OPENBLAS_NUM_THREADS=threads) for threads in ("1", "2")}
    assert len(seen) == 1


# ----------------------------------------------------------------------------------------- directions


@settings(max_examples=150)
@given(
    seed=st.integers(0, 10**6),
    d=st.integers(1, 48),
    power=st.sampled_from([0, 2, 4, 7, 10, 12, 14]),
    scale=st.sampled_from([1e-60, 1e-30, 1.0, 1e30, 1e60]),
    how=st.sampled_from(HOWS),
    directions=st.sampled_from([0, 1, 3, 8, 60]),
)
def test_certified_bounds_are_never_violated(seed, d, power, scale, how, directions):
    """In extended precision, for the rows that are hardest: those along the pencil's own directions."""
    rng = np.random.default_rng(seed)
    old = spd(rng, d, power, scale)
    new = refitted(rng, old, how)
    try:
        bound = certified_bound(Factored.of(new), Factored.of(old), directions)
    except np.linalg.LinAlgError:
        bound = None
    if bound is None:
        assert power >= 7 or how == "removed"
        return
    x = hardest(rng, new, old)
    h_new, h_old = oracle_leverage(x, new), oracle_leverage(x, old)
    assert (h_new <= bounded(bound, x, h_old)).all()
    assert len(bound.coefficient) == len(bound.direction) <= directions


@settings(max_examples=150)
@given(
    seed=st.integers(0, 10**6),
    d=st.integers(2, 24),
    power=st.sampled_from([0, 3, 6]),
    how=st.sampled_from(HOWS),
    noise=st.sampled_from([0.0, 1e-4, 1e-2, 1.0]),
    count=st.integers(1, 6),
)
def test_no_choice_of_directions_can_break_the_bound(seed, d, power, how, noise, count):
    """Whatever vectors and eigenvalues are handed to the proof, what it lets pass is a bound."""
    rng = np.random.default_rng(seed)
    old = spd(rng, d, power)
    new = refitted(rng, old, how)
    x = hardest(rng, new, old)
    v = np.linalg.solve(old, x[rng.integers(0, d, count)].T).T
    v = v / np.linalg.norm(v, axis=1)[:, None] + noise * rng.standard_normal((count, d))
    v = (v / np.linalg.norm(v, axis=1)[:, None]).astype(np.float32)
    inverse = rng.lognormal(0.0, 1.0, count)
    pencil = _reuse._Pencil(Factored.of(new), Factored.of(old))
    h_new, h_old = oracle_leverage(x, new), oracle_leverage(x, old)
    for ratio in (0.1, 0.5, 0.9, 1.0, 1.2, 2.0):
        bound = pencil._certified(ratio, v, inverse)
        if bound is not None:
            assert (h_new <= bounded(bound, x, h_old)).all()


@pytest.mark.parametrize("lean", [0.0, 1e-6, 1e-3])
def test_directions_that_lean_on_each_other_are_not_counted_twice(lean):
    """Two nearly equal directions lift an eigenvalue by less than the sum of what each would."""
    old, new = np.eye(3), np.diag([0.3, 1.0, 1.0])
    pencil = _reuse._Pencil(Factored.of(new), Factored.of(old))
    v = np.array([[1.0, 0.0, 0.0], [np.cos(lean), np.sin(lean), 0.0]], np.float32)
    x = np.eye(3)
    passed = []
    for inverse in np.linspace(1.05, 6.0, 100):  # alone it would take 1 / 0.3
        bound = pencil._certified(0.999, v, np.full(2, inverse))
        passed.append(bound is not None)
        if bound is not None:
            h_new = oracle_leverage(x, new)
            assert (h_new <= bounded(bound, x, oracle_leverage(x, old))).all(), inverse
    assert passed[-1]
    assert not passed[0]


def test_directions_lift_the_ratio():
    """Three eigenvalues far below the others, two far above: directions take them out of the way."""
    rng = np.random.default_rng(0)
    d = 60
    old = spd(rng, d, 3.0)
    factor = np.linalg.cholesky(old)
    rotation = np.linalg.qr(rng.standard_normal((d, d)))[0]
    e = np.concatenate([[0.2, 0.3, 0.4], np.linspace(0.9, 1.1, d - 5), [4.0, 9.0]])
    new = factor @ (rotation * e) @ rotation.T @ factor.T
    new, old = Factored.of(0.5 * (new + new.T)), Factored.of(old)
    alone = certified_bound(new, old)
    assert 0.198 <= alone.ratio <= 0.2
    bound = certified_bound(new, old, 5)
    assert 0.89 <= bound.ratio <= 0.9
    assert (bound.coefficient > 0).sum() == 3
    assert (bound.coefficient < 0).sum() == 2
    x = rng.standard_normal((200, d)) @ factor.T
    h_new, h_old = oracle_leverage(x, new.matrix), oracle_leverage(x, old.matrix)
    bounds = bounded(bound, x, h_old)
    assert (h_new <= bounds).all()
    assert np.mean(bounds / h_new) < 1.15
    assert np.mean(h_old / alone.ratio / h_new) > 4


# ------------------------------------------------------------------------------- what a Selector keeps


def scaled(problem, scale, dtype_name):
    """Rows of the problem, scaled, stored; None where the type cannot hold them."""
    with np.errstate(over="ignore", under="ignore"):
        stored = store(problem.rows() * scale, dtype_name)
    return stored if np.isfinite(as_float64(stored)).all() else None


def matrix_of(rng, rows, condition):
    """M of some of the rows, with a ridge that leaves about this condition number."""
    seen = rows[rng.integers(0, len(rows), 3 * rows.shape[1])] + 0.0
    a = (seen * rng.uniform(0.01, 0.25, len(seen))[:, None]).T @ seen
    largest = max(float(np.linalg.norm(a, 2)), float(np.max(np.abs(rows))) ** 2, 1e-250)
    a += (largest / condition) * np.eye(len(a))
    return 0.5 * (a + a.T)


def kept(known):
    """The bounds of a selector, with the M at which they hold."""
    return [known.looked] if known.since is None else [known.looked, known.since]


@settings(max_examples=120)
@given(
    seed=st.integers(0, 10**6),
    kind=st.sampled_from(KINDS),
    n=st.sampled_from([1, 2, 17, 70, 400, 1500]),
    d=st.sampled_from([1, 2, 5, 9, 16, 33, 80]),
    dtype_name=st.sampled_from(DTYPES),
    scale=st.sampled_from([1e-30, 1e-12, 1e-3, 1.0, 1e3, 1e12, 1e30]),
    condition=st.sampled_from([1e2, 1e5, 1e12]),
    hows=st.lists(st.sampled_from(HOWS), min_size=1, max_size=4),
    method=st.sampled_from(["auto", "dense"]),
)
def test_kept_bounds_are_bounds(seed, kind, n, d, dtype_name, scale, condition, hows, method):
    """After any rounds: as kept, where M is well-conditioned; as used at any later M, always."""
    rng = np.random.default_rng(seed)
    problem = make_problem(kind, n=n, d=d, m=3, labels=d, dtype_name="float64", seed=seed)
    stored = scaled(problem, scale, dtype_name)
    if stored is None:
        return
    rows = as_float64(stored)
    pool = dn.Pool(stored, problem.category)
    selector = dn.Selector(pool)
    matrix = matrix_of(rng, rows, condition)
    reward = problem.reward / scale
    for how in ["same", *hows]:
        matrix = refitted(rng, matrix, how)
        arguments = reward, problem.rationality, matrix, 3
        batch = selector.select(*arguments, backend="cpu", method=method if how == "labels" else "auto")
        again = dn.select_batch(pool, *arguments, backend="cpu")
        assert batch.conversation.tolist() == again.conversation.tolist()
        assert batch.teacher.tolist() == again.teacher.tolist()
        known = selector._known
        if known is None:
            assert n < 10 * d or method == "dense"
            continue
        for bounds in kept(known):
            if condition < 1e9:
                assert (bounds.leverage >= oracle_leverage(rows, bounds.at.matrix)).all()
        later = refitted(rng, matrix, "weights")
        moved = known.at(Factored.of(later))
        assert moved is not None or condition > 1e9
        if moved is not None:
            assert (moved >= oracle_leverage(rows, later)).all()


@pytest.mark.parametrize("condition", [1e10, 1e13, 1e15])
def test_bounds_of_an_ill_conditioned_round_hold_in_a_later_one(condition):
    """float64 leverages of the first round are off by far more than any rounding of the pass."""
    rng = np.random.default_rng(1)
    d = 40
    problem = make_problem("isotropic", n=500, d=d, m=3, dtype_name="float32", seed=1)
    old = spd(rng, d, np.log10(condition))
    selector = dn.Selector(problem.pool())
    selector.select(problem.reward, problem.rationality, old, 4, backend="cpu")
    for new in (old + 1e-3 * np.eye(d), old + np.eye(d), 2.0 * old, np.eye(d) * condition):
        moved = selector._known.at(Factored.of(new))
        if moved is None:
            assert new[0, 1] != 0
            continue
        assert (moved >= oracle_leverage(problem.rows(), new)).all()


ROUNDS = """
    import hashlib
    import numpy as np
    import dal_native as dn
    from dal_native import selection
    from dal_native import testing as t

    selection._REUSE_FROM = 10
    digest = hashlib.sha256()
    routes = set()
    for dtype_name in t.DTYPES:
        for kind, n, d in (("power_law", 6000, 24), ("isotropic", 900, 17), ("heavy_tails", 500, 40)):
            p = t.make_problem(kind, n=n, d=d, m=5, labels=150, dtype_name=dtype_name, seed=d)
            rng = np.random.default_rng(d)
            selector, matrix = dn.Selector(p.pool()), p.matrix
            for _ in range(3):
                batch = selector.select(p.reward, p.rationality, matrix, 6, backend="cpu")
                routes.add(batch.counters["stages"][0])
                for bounds in (selector._known.looked, selector._known.since):
                    if bounds is not None:
                        h = t.oracle_leverage(p.rows(), bounds.at.matrix)
                        assert (bounds.leverage >= h).all(), (dtype_name, kind)
                digest.update(batch.conversation.tobytes() + batch.teacher.tobytes() + batch.gain.tobytes())
                x = p.rows()[batch.conversation]
                matrix = 0.9 * matrix + 0.2 * x.T @ x
                matrix = 0.5 * (matrix + matrix.T)
    print(dn.capabilities()["simd"]["level"], digest.hexdigest(), ",".join(sorted(routes)))
"""


def test_kept_bounds_are_bounds_at_every_simd_level(run_python):
    levels = dn.capabilities()["simd"]["available"]
    seen = [run_python(ROUNDS, DAL_NATIVE_SIMD=level).split() for level in levels]
    assert [level for level, _, _ in seen] == list(levels)
    assert len({digest for _, digest, _ in seen}) == 1
    assert all("warm" in routes.split(",") for _, _, routes in seen)
