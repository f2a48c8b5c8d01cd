"""Every way of looking at a pool for the first time gives the same picks; the cheapest is taken."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import dal_native as dn
from dal_native import testing as t

ROUTES = ["full", "bfloat16", "screened", "warm"]
LEVEL = dn.capabilities()["simd"]["level"]


def need(route):
    if route == "bfloat16" and LEVEL not in ("avx512bf16", "amx"):
        pytest.skip(f"products in bfloat16 need AVX-512 BF16 or AMX; the SIMD level is {LEVEL}")


def first_stage(batch):
    return batch.counters["stages"][0]


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("kind", t.KINDS)
@pytest.mark.parametrize("dtype_name", t.DTYPES)
@pytest.mark.parametrize("d", [17, 64, 70])
def test_each_route_picks_what_the_oracle_picks(take_route, route, kind, dtype_name, d):
    need(route)
    take_route(route)
    p = t.make_problem(kind, 500, d, 5, 2, labels=40, dtype_name=dtype_name, seed=d)
    selector = dn.Selector(p.pool())
    if route == "warm":
        selector.select(p.reward, p.rationality, p.matrix - 0.1 * np.eye(d), 1, backend="cpu")
    batch = selector.select(p.reward, p.rationality, p.matrix, 12, backend="cpu")
    assert first_stage(batch) == route
    assert (batch.counters["directions"] > 0) == (route == "screened")
    t.check_batch(batch, p, 12)


@settings(max_examples=40)
@given(
    seed=st.integers(0, 10**6),
    kind=st.sampled_from(t.KINDS),
    n=st.sampled_from([1, 31, 33, 500, 1100]),
    d=st.sampled_from([1, 2, 31, 32, 33, 100]),
    scale=st.sampled_from([-40, -25, -12, 0, 12, 30, 45]),
    ridge=st.sampled_from([1e-8, 1e-3, 1.0]),
)
def test_any_scale_and_shape_by_the_products(seed, kind, n, d, scale, ridge):
    need("bfloat16")
    p = t.make_problem(kind, n, d, 4, 2, labels=20, ridge=ridge, dtype_name="float64", seed=seed)
    x = p.differences * 10.0**scale
    reward, matrix = p.reward * 10.0**-scale, p.matrix * 10.0 ** (2 * scale)
    p = t.Problem(x, p.category, p.rationality, reward, matrix)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dn.selection, "SelectionProblem", _by_products)
        t.check_batch(dn.select_batch(p.pool(), reward, p.rationality, matrix, 6, backend="cpu"), p, 6)


def _by_products(**fields):
    return _PROBLEM(**fields, route="bfloat16")


_PROBLEM = dn.selection.SelectionProblem


def cold(level, n, d, labels, kind, run_python):
    """The first stage and the share of the rows looked at, of a cold call at that SIMD level."""
    out = run_python(
        f"""
        import dal_native as dn
        from dal_native.testing import make_problem
        p = make_problem({kind!r}, {n}, {d}, m=9, labels={labels}, dtype_name="float32", seed=8)
        batch = dn.select_batch(p.pool(), p.reward, p.rationality, p.matrix, 12, backend="cpu")
        print(batch.counters["stages"][0], batch.counters["rows_rescored"] / {n})
        """,
        DAL_NATIVE_SIMD=level,
    )
    stage, share = out.split()
    return stage, float(share)


def test_screening_is_taken_where_it_pays(run_python):
    """Without products in bfloat16 a few projections are cheaper than a full product while labels are few."""
    stage, share = cold("avx2", 40_000, 160, 150, "power_law", run_python)
    assert stage == "screened"
    assert share < 0.5


def test_a_full_product_is_taken_where_screening_does_not_pay(run_python):
    stage, share = cold("avx2", 9_000, 24, 9_000, "isotropic", run_python)
    assert stage == "full"
    assert share < 0.5


def test_the_products_are_taken_where_the_processor_has_them(run_python):
    need("bfloat16")
    stage, share = cold(LEVEL, 9_000, 96, 9_000, "isotropic", run_python)
    assert stage == "bfloat16"
    assert share < 0.5


def test_what_is_known_is_used(run_python):
    """Rounds with little news are served by the kept bounds, where a full product is dear."""
    stages = run_python(
        """
        import dal_native as dn, numpy as np
        from dal_native.testing import make_problem
        p = make_problem("power_law", n=12_000, d=96, m=9, labels=4_000, dtype_name="float32", seed=8)
        selector, matrix = dn.Selector(p.pool()), p.matrix
        for _ in range(3):
            batch = selector.select(p.reward, p.rationality, matrix, 12, backend="cpu")
            x = p.differences[batch.conversation].astype(np.float64)
            matrix = matrix + 0.1 * x.T @ x
            print(batch.counters["stages"][0])
        """,
        DAL_NATIVE_SIMD="avx2",
    ).split()
    assert stages[1:] == ["warm", "warm"]


def test_short_pools_are_looked_at_anew(monkeypatch):
    """Proving what is known costs O(d^3); the backend says from how many conversations that pays."""
    monkeypatch.setattr(dn.selection, "_REUSE_FROM", None)
    p = t.make_problem("power_law", 3_000, 40, 5, labels=2_000, dtype_name="float32", seed=1)
    selector = dn.Selector(p.pool())
    stages = [
        first_stage(selector.select(p.reward, p.rationality, p.matrix, 4, backend="cpu")) for _ in range(3)
    ]
    assert "warm" not in stages
    assert selector._known is None
