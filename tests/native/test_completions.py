"""Pools of completions: pairs are never stored, and the batch is that of their differences written out."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import dal_native as dn
from dal_native import selection
from dal_native import testing as t
from dal_native._backends import cpu


@pytest.fixture(autouse=True)
def small_pools_are_remembered(monkeypatch):
    monkeypatch.setattr(selection, "_REUSE_FROM", 0)


def prompts(kind, counts, d, *, labels=20, ridge=1.0, dtype_name="float64", seed=0, offset=0.0, scale=1.0):
    """A pool of completions and the problem of its differences, both of one seed."""
    rng = np.random.default_rng(seed)
    counts = np.asarray(counts)
    offsets = np.concatenate([[0], np.cumsum(counts)])
    p = t.make_problem(kind, int(offsets[-1]), d, 6, 3, labels=labels, ridge=ridge, seed=seed)
    where = offset * rng.standard_normal(
        (len(counts), d)
    )  # completions of a prompt lie around a point of its own
    phi = t.store(scale * (p.rows() + np.repeat(where, counts, axis=0)), dtype_name)
    pool = dn.Pool.from_completions(phi, offsets, rng.integers(0, 3, len(counts)))
    every = np.arange(len(pool))
    matrix = scale * scale * p.matrix if 1e-100 < scale < 1e100 else p.matrix
    return pool, t.Problem(pool.take(every), pool.category_of(every), p.rationality, p.reward / scale, matrix)


def ragged(seed, count, most):
    return np.random.default_rng(seed).integers(1, most + 1, count)


def select(pool, p, size, **more):
    return dn.select_batch(pool, p.reward, p.rationality, p.matrix, size, backend="cpu", **p.options, **more)


def bounds_of(selector):
    """The bounds of leverages that the last round has left."""
    known = selector._known
    return (known.looked if known.since is None else known.since).leverage.astype(np.float64)


def by_route(pool, p, size, route, *, optimism=0.0, threads=2):
    """Picks and gains of one route, named, with the bounds of leverages that it leaves."""
    problem = selection._problem(
        pool, p.reward, p.rationality, p.matrix, size, optimism=optimism, threads=threads
    )
    left = np.full(len(pool), np.inf, np.float32)
    return cpu.select_batch(replace(problem, route=route, leverage_out=left)), left.astype(np.float64)


LEVELS = dn.capabilities()["simd"]["available"]
#: Routes that this processor has; without the products in bfloat16 that name stands for the full product.
ROUTES = ["full", "bfloat16", "screened"]


def same(batch, other):
    assert batch.conversation.tolist() == other.conversation.tolist()
    assert batch.teacher.tolist() == other.teacher.tolist()
    assert batch.gain.tolist() == other.gain.tolist()


COUNTS = {
    "pairs": [2] * 9,
    "one prompt": [17],
    "singles between": [1, 1, 5, 1, 2, 1, 7, 1],
    "1 to 12": list(range(1, 13)),
    "wide": [1, 33, 2],
}


@pytest.mark.parametrize("dtype_name", t.DTYPES)
@pytest.mark.parametrize("shape", COUNTS)
@pytest.mark.parametrize("kind", t.KINDS)
def test_picks_are_the_oracles(kind, shape, dtype_name):
    d = 1 + 4 * list(COUNTS).index(shape)
    pool, p = prompts(kind, COUNTS[shape], d, dtype_name=dtype_name, seed=d)
    batch = select(pool, p, 6)
    t.check_batch(batch, p, 6)
    same(batch, select(p.pool(), p, 6))


@pytest.mark.parametrize("dtype_name", t.DTYPES)
@pytest.mark.parametrize("d", [3, 16, 33, 65])
@pytest.mark.parametrize("most", [2, 16, 64])
def test_ragged_prompts(dtype_name, d, most):
    pool, p = prompts("heavy_tails", ragged(d, 30, most), d, dtype_name=dtype_name, seed=d, offset=3.0)
    same(select(pool, p, 10, threads=1 + d % 3), select(p.pool(), p, 10, method="dense"))


@pytest.mark.parametrize("dtype_name", ["float64", "float16"])
def test_prompts_of_hundreds_of_completions(dtype_name):
    """The largest is shared by the threads; its neighbours are not."""
    pool, p = prompts("power_law", [3, 1100, 1, 300, 40, 2], 18, dtype_name=dtype_name)
    batch = select(pool, p, 8, threads=2)
    reference = select(p.pool(), p, 8)
    same(batch, reference)
    assert batch.counters["rows_rescored"] < len(pool) / 10


@pytest.mark.parametrize("dtype_name", t.DTYPES)
def test_equal_completions_are_worth_nothing(dtype_name):
    """Leverages of exactly zero are told from small ones, wherever in a prompt the equal rows are."""
    rng = np.random.default_rng(1)
    phi = rng.standard_normal((40, 20))
    phi[[3, 4, 9, 15]] = phi[0]
    phi[21] = phi[20] * (1 + 2.0**-40)  # equal in the narrower types
    phi[30:] = phi[30]
    phi[31], phi[32] = 0.0, -0.0
    stored = t.store(phi, dtype_name)
    pool = dn.Pool.from_completions(stored, [0, 20, 30, 40])
    selector = dn.Selector(pool)
    M = np.eye(20)
    selector.select(np.zeros(20), [1.0], M, 3, backend="cpu")
    x = pool.take(np.arange(len(pool)))
    assert ((bounds_of(selector) == 0) == (x == 0).all(axis=1)).all()
    everything = dn.select_batch(pool, np.zeros(20), [1.0], M, len(pool), backend="cpu")
    same(everything, dn.select_batch(x, np.zeros(20), [1.0], M, len(pool), backend="cpu"))


@pytest.mark.parametrize("scale", [1e-30, 1e-18, 1e15, 1e30])
@pytest.mark.parametrize("labels", [5, 100])
def test_very_small_and_very_large_numbers(scale, labels):
    pool, p = prompts("isotropic", [12, 1, 30, 5], 20, labels=labels, dtype_name="float32", scale=scale)
    same(select(pool, p, 8), select(p.pool(), p, 8, method="dense"))


@pytest.mark.parametrize("scale", [1e-200, 1e-60, 1e60, 1e120])
def test_numbers_out_of_reach_of_single_precision(scale):
    pool, p = prompts("isotropic", [12, 1, 9], 4, scale=scale)
    p = t.Problem(
        p.differences, p.category, p.rationality, p.reward, np.eye(4) * scale**2 if scale > 1 else np.eye(4)
    )
    same(select(pool, p, 5), select(p.pool(), p, 5, method="dense"))


@pytest.mark.parametrize("offset", [1e2, 1e4, 1e6])
@pytest.mark.parametrize("dtype_name", ["float64", "float32"])
def test_prompts_far_from_the_origin(offset, dtype_name):
    """Completions agree in their leading digits: the difference is what counts."""
    pool, p = prompts("isotropic", ragged(4, 40, 9), 24, dtype_name=dtype_name, offset=offset)
    batch = select(pool, p, 8)
    same(batch, select(p.pool(), p, 8, method="dense"))
    assert batch.counters["rows_rescored"] < len(pool)


# -------------------------------------------------------------------------------------------------- routes


def routed(kind, d, *, labels=20, seed=3, dtype_name="float32", counts=None, offset=0.0):
    counts = ragged(seed, 400, 16) if counts is None else counts
    return prompts(kind, counts, d, labels=labels, dtype_name=dtype_name, seed=seed, offset=offset)


@pytest.mark.parametrize("dtype_name", t.DTYPES)
@pytest.mark.parametrize("labels", [4, 20, 6000])
def test_the_cheapest_route_is_exact(labels, dtype_name):
    pool, p = routed("power_law", 64, labels=labels, dtype_name=dtype_name)
    batch = select(pool, p, 12)
    assert batch.counters["rows_rescored"] < len(pool) / 2
    same(batch, select(p.pool(), p, 12, method="dense"))


def test_screening_is_taken_where_it_pays(run_python):
    script = """
        import numpy as np, dal_native as dn
        from dal_native import testing as t
        p = t.make_problem("power_law", 24000, 128, 5, 1, labels=20, dtype_name="float32")
        pool = dn.Pool.from_completions(p.differences, np.arange(0, 24001, 12))
        print(dn.select_batch(pool, p.reward, p.rationality, p.matrix, 9, backend="cpu").counters["stages"])
    """
    assert (
        run_python(script, DAL_NATIVE_SIMD="avx2" if "avx2" in LEVELS else "generic")
        == "['screened', 'lazy']\n"
    )


@pytest.mark.parametrize("dtype_name", t.DTYPES)
@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("kind", t.KINDS)
def test_named_routes_are_exact(kind, route, dtype_name):
    for d, counts in [(20, [*ragged(1, 40, 16), 64]), (33, [1, 2, 65, 1, 30]), (48, [3, 700, 1])]:
        pool, p = prompts(kind, counts, d, labels=30, dtype_name=dtype_name, seed=d)
        found, bound = by_route(pool, p, 8, route)
        assert found["counters"]["stages"][0] in (route, "full")
        reference = select(p.pool(), p, 8)
        assert found["conversation"].tolist() == reference.conversation.tolist()
        assert found["teacher"].tolist() == reference.teacher.tolist()
        assert found["gain"].tolist() == reference.gain.tolist()
        h = dn.leverage(p.pool(), p.matrix)
        assert (bound >= h * (1 - t.tolerance(d, np.linalg.cond(p.matrix)))).all()
        assert (bound[h == 0] == 0).all()


def test_all_routes_of_this_processor_are_taken():
    pool, p = routed("power_law", 48)
    taken = [by_route(pool, p, 2, route)[0]["counters"]["stages"][0] for route in ROUTES]
    products = dn.capabilities()["simd"]["level"] in ("avx512bf16", "amx")
    assert taken == ["full", "bfloat16" if products else "full", "screened"]


@given(
    route=st.sampled_from(ROUTES),
    seed=st.integers(0, 2**32 - 1),
    d=st.sampled_from([18, 31, 32, 40]),
    kind=st.sampled_from(t.KINDS),
    dtype_name=st.sampled_from(t.DTYPES),
    labels=st.sampled_from([0, 3, 200]),
    ridge=st.sampled_from([1e-4, 1.0, 100.0]),
    offset=st.sampled_from([0.0, 1.0, 1000.0]),
    scale=st.sampled_from([1e-12, 1.0, 1e9]),
    optimism=st.sampled_from([0.0, 1.0]),
)
def test_bounds_of_named_routes_are_bounds(
    route, seed, d, kind, dtype_name, labels, ridge, offset, scale, optimism
):
    scale = scale if dtype_name in ("float64", "float32") else 1.0
    pool, p = prompts(
        kind,
        np.append(ragged(seed, 12, 20), 2),
        d,
        labels=labels,
        ridge=ridge,
        dtype_name=dtype_name,
        seed=seed,
        offset=offset,
        scale=scale,
    )
    found, bound = by_route(pool, p, 3, route, optimism=optimism)
    reference = select(p.pool(), p, 3, optimism=optimism)
    assert found["conversation"].tolist() == reference.conversation.tolist()
    assert found["gain"].tolist() == reference.gain.tolist()
    h = dn.leverage(p.pool(), p.matrix)
    assert (bound >= h * (1 - t.tolerance(d, np.linalg.cond(p.matrix)))).all()
    assert (bound[h == 0] == 0).all()


def random_options(rng, n, m):
    """Each option present half of the time."""

    def maybe(make):
        return make() if rng.random() < 0.5 else None

    options = {
        "available": maybe(lambda: rng.random((m, 3)) < 0.7),
        "capacity": maybe(lambda: rng.integers(0, 4, m)),
        "cost": maybe(lambda: rng.choice([0.5, 1.0, 3.0], (m, 3))),
        "exclude": maybe(lambda: np.stack([rng.integers(0, n, n), rng.integers(-1, m, n)], axis=1)),
        "candidates": maybe(lambda: np.stack([rng.integers(0, n, 2 * n), rng.integers(0, m, 2 * n)], axis=1)),
    }
    options = {name: value for name, value in options.items() if value is not None}
    return {**options, "repeats": int(rng.integers(1, 4)), "optimism": float(rng.choice([0.0, 0.5, 3.0]))}


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("labels", [0, 300])
def test_every_option(seed, labels):
    rng = np.random.default_rng([seed, labels])
    kind, dtype_name = str(rng.choice(t.KINDS)), str(rng.choice(t.DTYPES))
    pool, p = routed(kind, 32, labels=labels, seed=seed, dtype_name=dtype_name, counts=ragged(seed, 40, 20))
    options = random_options(rng, len(pool), len(p.rationality))
    p = t.Problem(p.differences, p.category, p.rationality, p.reward, p.matrix, options)
    size = int(rng.integers(1, 12))
    same(select(pool, p, size, threads=2), select(p.pool(), p, size, method="dense"))


@pytest.mark.parametrize("seed", range(12))
def test_small_pools_with_every_option(seed):
    rng = np.random.default_rng(seed)
    pool, p = prompts(str(rng.choice(t.KINDS)), ragged(seed, 6, 5), int(rng.integers(1, 6)), seed=seed)
    if len(pool) == 0:
        pool, p = prompts("isotropic", [2, 3], 3, seed=seed)
    options = random_options(rng, len(pool), len(p.rationality))
    p = t.Problem(p.differences, p.category, p.rationality, p.reward, p.matrix, options)
    batch = select(pool, p, 7)
    t.check_batch(batch, p, 7)
    assert list(zip(batch.conversation, batch.teacher, strict=True)) == t.oracle_select(p, 7)[0]


def test_same_bits_for_any_number_of_threads():
    counts = [*ragged(5, 300, 16), 1100, 3, 1030]
    p = t.make_problem("power_law", sum(counts), 40, 6, 1, labels=60, dtype_name="float32")
    pool = dn.Pool.from_completions(p.differences, np.cumsum([0, *counts]))
    seen = set()
    for threads in (1, 2, 3, 4, 5):
        selector = dn.Selector(pool)
        for matrix in (p.matrix, 1.5 * p.matrix):
            batch = selector.select(p.reward, p.rationality, matrix, 9, threads=threads, backend="cpu")
        picks = batch.conversation.tobytes() + batch.teacher.tobytes() + batch.gain.tobytes()
        seen.add((picks, bounds_of(selector).tobytes(), str(batch.counters), batch.d_efficiency))
    assert len(seen) == 1


@pytest.mark.parametrize("level", LEVELS)
def test_same_picks_at_every_simd_level(run_python, level):
    script = """
        import numpy as np, dal_native as dn
        from dal_native import testing as t
        for kind, labels in [("power_law", 20), ("isotropic", 900)]:
            counts = np.random.default_rng(2).integers(1, 17, 300)
            p = t.make_problem(kind, int(counts.sum()), 48, 5, 1, labels=labels, dtype_name="float32")
            pool = dn.Pool.from_completions(p.differences, np.concatenate([[0], np.cumsum(counts)]))
            batch = dn.select_batch(pool, p.reward, p.rationality, p.matrix, 9, backend="cpu")
            print(batch.conversation.tolist(), batch.teacher.tolist(), batch.gain.tobytes().hex())
    """
    assert run_python(script, DAL_NATIVE_SIMD=level) == run_python(script, DAL_NATIVE_SIMD="generic")


# -------------------------------------------------------------------------------------------------- bounds


def refit(rng, p, how):
    x = p.differences[rng.integers(0, len(p.differences), 6)]
    added = (x * rng.uniform(0.01, 0.3, (6, 1))).T @ x
    added = 0.5 * (added + added.T)
    matrix = {
        "labels": p.matrix + added,
        "shrunk": 0.7 * p.matrix + added,
        "anew": np.eye(len(p.matrix)) * np.trace(p.matrix) / len(p.matrix),
        "same": p.matrix,
    }[how]
    reward = p.reward * rng.uniform(0.5, 1.5, len(p.reward))
    return t.Problem(p.differences, p.category, p.rationality, reward, matrix)


@given(
    seed=st.integers(0, 2**32 - 1),
    d=st.sampled_from([1, 2, 15, 17, 18, 34, 40]),
    most=st.sampled_from([2, 5, 16, 40]),
    kind=st.sampled_from(t.KINDS),
    dtype_name=st.sampled_from(t.DTYPES),
    labels=st.sampled_from([0, 3, 200]),
    ridge=st.sampled_from([1e-6, 1e-2, 1.0, 100.0]),
    offset=st.sampled_from([0.0, 1.0, 1000.0]),
    hows=st.lists(st.sampled_from(["labels", "shrunk", "anew", "same"]), max_size=2),
    optimism=st.sampled_from([0.0, 1.0]),
)
def test_kept_bounds_are_bounds(seed, d, most, kind, dtype_name, labels, ridge, offset, hows, optimism):
    counts = np.append(ragged(seed, 60, most), 2)
    pool, p = prompts(
        kind, counts, d, labels=labels, ridge=ridge, dtype_name=dtype_name, seed=seed, offset=offset
    )
    rng = np.random.default_rng(seed)
    selector = dn.Selector(pool)
    for how in ["same", *hows]:
        p = refit(rng, p, how)
        kept = selector.select(p.reward, p.rationality, p.matrix, 4, backend="cpu", optimism=optimism)
        same(kept, select(p.pool(), p, 4, optimism=optimism))
        bound, h = bounds_of(selector), dn.leverage(p.pool(), p.matrix)
        exact = t.tolerance(d, np.linalg.cond(p.matrix))  # of h itself
        assert (bound >= h * (1 - exact)).all()
        if kept.counters["stages"][0] != "warm":
            assert (bound[h == 0] == 0).all()


@pytest.mark.parametrize("kind", ["power_law", "isotropic", "heavy_tails", "clustered"])
def test_warm_rounds(kind, take_route):
    take_route("warm")  # the first round, with nothing known, takes another
    pool, p = routed(kind, 24, labels=200)
    rng = np.random.default_rng(1)
    selector = dn.Selector(pool)
    stages = []
    for _ in range(4):
        kept = selector.select(p.reward, p.rationality, p.matrix, 12, backend="cpu")
        same(kept, select(p.pool(), p, 12, method="dense"))
        stages.append(kept.counters["stages"][0])
        p = refit(rng, p, "labels")
    assert stages[1:] == ["warm"] * 3


@pytest.mark.parametrize("ridge", [1e-4, 1.0, 1e3])
@pytest.mark.parametrize("offset", [0.0, 1e3])
@pytest.mark.parametrize("kind", ["power_law", "clustered", "heavy_tails", "duplicates"])
def test_screened_bounds_are_bounds(kind, offset, ridge):
    for labels in (3, 30, 300):
        pool, p = prompts(kind, ragged(labels, 300, 16), 40, labels=labels, ridge=ridge, offset=offset)
        found, bound = by_route(pool, p, 3, "screened")
        assert found["counters"]["stages"][0] == "screened"
        h = dn.leverage(p.pool(), p.matrix)
        assert (bound >= h * (1 - t.tolerance(40, np.linalg.cond(p.matrix)))).all()
        assert (bound[h == 0] == 0).all()


@pytest.mark.parametrize(("route", "factor"), [("full", 1.01), ("bfloat16", 1.3)])
def test_bounds_of_the_full_product_are_close(route, factor):
    """A bound that is loose would be exact all the same, only slow."""
    pool, p = routed("power_law", 64, labels=6000)
    _, bound = by_route(pool, p, 2, route)
    h = dn.leverage(p.pool(), p.matrix)
    assert (bound[h > 0] <= h[h > 0] * factor).all()
