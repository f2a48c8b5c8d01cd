"""The search for the best teacher under every option, against scans of all teachers."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import dal_native as dn
from dal_native import testing as t

#: Ties, zeros, neighbours inside and outside the tie window.
NEIGHBOURS = np.array([0.0, 0.5, 1.0, 1.0 + 2e-16, 1.0 + 1e-13, 1.0 + 1e-10, 2.0, 4.0])
#: So small that the weight is 0 in float64, and so large that it is 0 away from a margin of 0.
EXTREMES = np.array([5e-324, 1e-310, 1e-200, 1e60, 1e100])
MARGINS = st.one_of(st.sampled_from([0.0, 1e-300, 1e-9, 0.3, 2.4, 1e9]), st.floats(-50, 50))
SEEDS = st.integers(0, 2**32 - 1)


def rationalities(rng, shape, extreme=False):
    beta = np.where(rng.random(shape) < 0.5, rng.choice(NEIGHBOURS, shape), rng.lognormal(0, 1, shape))
    return np.where(rng.random(shape) < 0.2, rng.choice(EXTREMES, shape), beta) if extreme else beta


def costs(rng, beta):
    """Of every kind: few values, any, rising with the rationality, beyond all measure."""
    return [
        rng.choice([0.5, 1.0, 3.0], beta.shape),
        rng.lognormal(0, 1, beta.shape),
        np.clip(beta, 1e-2, 1e2) ** 0.8 * rng.lognormal(0, rng.choice([0.0, 0.1]), beta.shape),
        10.0 ** rng.integers(-100, 101, beta.shape),
    ][int(rng.integers(4))]


def problem(seed, extreme=False):
    """A few conversations, up to sixty teachers, each option present half of the time."""
    rng = np.random.default_rng(seed)
    n, d, m = int(rng.integers(1, 9)), int(rng.integers(1, 4)), int(rng.integers(1, 61))
    p = t.make_problem("isotropic", n, d, m, n_categories=2, labels=3, seed=seed)
    beta = rationalities(rng, (m, 2), extreme)
    options = {
        "available": rng.random((m, 2)) < 0.7,
        "capacity": rng.integers(0, 3, m),
        "cost": costs(rng, beta),
        "exclude": np.stack([rng.integers(0, n, n * m // 4), rng.integers(0, m, n * m // 4)], axis=1),
        "candidates": np.stack([rng.integers(0, n, n * m // 2), rng.integers(0, m, n * m // 2)], axis=1),
    }
    present = rng.random(len(options)) < [0.5, 0.5, 0.7, 0.5, 0.1]
    options = {name: value for (name, value), kept in zip(options.items(), present, strict=True) if kept}
    optimism = 0.0 if extreme else float(rng.choice([0.0, 1.0]))
    options |= {"repeats": int(rng.integers(1, 5)), "optimism": optimism}
    return t.Problem(p.differences, p.category, beta, p.reward, p.matrix, options)


def select(p, size, backend="cpu", **more):
    return dn.select_batch(
        p.pool(), p.reward, p.rationality, p.matrix, size, backend=backend, **p.options, **more
    )


def picks_of(batch):
    return list(zip(batch.conversation.tolist(), batch.teacher.tolist(), strict=True))


@given(SEEDS)
def test_picks_under_all_options_are_the_oracles(seed):
    p = problem(seed)
    expected = t.oracle_select(p, 6)[0]
    for method in ("lazy", "dense"):
        batch = select(p, 6, method=method)
        assert picks_of(batch) == expected
    t.check_batch(batch, p, 6)


@given(SEEDS)
def test_picks_where_weights_underflow_are_those_of_the_scan(seed):
    p = problem(seed, extreme=True)
    scan = select(p, 6, "reference")
    for method in ("lazy", "dense"):
        batch = select(p, 6, method=method)
        assert picks_of(batch) == picks_of(scan)
        assert batch.gain == pytest.approx(scan.gain, rel=1e-9, abs=1e-300)


@given(SEEDS, st.lists(MARGINS, min_size=1, max_size=8))
def test_best_teacher_is_that_of_a_scan(seed, margins):
    rng = np.random.default_rng(seed)
    beta, available = rationalities(rng, 40, extreme=True), rng.random(40) < rng.choice([0.0, 0.1, 0.9])
    check_best_teacher(beta, available, margins)


@pytest.mark.parametrize("beta", [np.zeros(3), 715 + 1e-3 * np.arange(20), np.full(50, 7.0)])
def test_best_teacher_of_all_zero_underflowing_or_equal_weights(beta):
    check_best_teacher(beta, np.ones(len(beta), bool), [0.0, 1.0, 3.0])


def check_best_teacher(beta, available, margins):
    for u, j, weight in zip(
        margins, *dn.best_teacher(margins, None, beta, available=available, backend="cpu"), strict=True
    ):
        every = dn.choice_weight(np.full(len(beta), u), beta, backend="cpu")
        every[~available] = -1.0
        if not available.any():
            assert (j, weight) == (-1, 0.0)
        else:
            assert j == int(np.argmax(every >= every.max() * (1 - 1e-12)))
            assert weight == every[j]


@pytest.mark.parametrize("prices", ["none", "random", "rising", "equal"])
@pytest.mark.parametrize("options", ["bare", "exclude", "repeats"])
def test_hundreds_of_teachers_used_up_one_after_another(prices, options):
    """Equal rationalities hand over to each other as capacities run out."""
    rng = np.random.default_rng(5)
    n, m = 25, 300
    p = t.make_problem("isotropic", n, 4, m, 2, seed=1)
    beta = np.exp(np.round(rng.normal(0, 0.7, (m, 2)), 1))  # about forty distinct values
    cost = {
        "none": None,
        "random": rng.lognormal(0, 0.5, (m, 2)),
        "rising": beta**0.7,
        "equal": np.full((m, 2), 3.0),
    }[prices]
    more = {
        "bare": {},
        "exclude": {"exclude": np.stack([rng.integers(0, n, 400), rng.integers(0, m, 400)], axis=1)},
        "repeats": {"repeats": 20},
    }[options]
    more["capacity"] = np.minimum(rng.integers(0, 3, m), 1)
    more |= {} if cost is None else {"cost": cost}
    p = t.Problem(p.differences, p.category, beta, p.reward, p.matrix, more)
    size = 150 if options == "repeats" else 25
    expected = picks_of(select(p, size, "reference"))
    assert len(expected) == size
    for method in ("lazy", "dense"):
        assert picks_of(select(p, size, method=method)) == expected


@pytest.mark.parametrize("power", [-300, -40, 40, 300])
def test_the_unit_of_cost_does_not_matter(power):
    rng = np.random.default_rng(0)
    p = t.make_problem("power_law", 60, 5, 70, 2, seed=2)
    cost = rng.lognormal(0, 1, (70, 2))
    first, second = (
        dn.select_batch(p.pool(), p.reward, p.rationality, p.matrix, 12, cost=c, repeats=3, backend="cpu")
        for c in (cost, np.ldexp(cost, power))
    )
    assert picks_of(first) == picks_of(second)


def test_costs_can_be_so_unequal_that_one_teacher_is_asked_for_everything():
    """What the others are worth per cost is nothing beside it, yet they are asked in order."""
    p = t.make_problem("isotropic", 5, 3, 30, 1, seed=4)
    cost = np.full((30, 1), 1e100)
    cost[17] = 1e-100
    p = t.Problem(p.differences, p.category, p.rationality, p.reward, p.matrix, {"cost": cost, "repeats": 2})
    picks = picks_of(select(p, 8))
    assert picks == t.oracle_select(p, 8)[0]
    assert [j for _, j in picks[:5]] == [17] * 5


@pytest.mark.parametrize("optimism", [0.0, 1.0])
@pytest.mark.parametrize("more", [{}, {"exclude": True, "repeats": 2, "capacity": True}])
def test_pools_large_enough_for_a_table_of_weights_per_cost(optimism, more):
    """A first look at the pool reads the bounds of a category from a table: still the picks of the scan."""
    rng = np.random.default_rng(8)
    n, m = 3000, 30
    p = t.make_problem("heavy_tails", n, 6, m, 1, seed=3)
    options = {"cost": rng.lognormal(0, 1, (m, 1)), "optimism": optimism, **more}
    if more:
        options["exclude"] = np.stack([rng.integers(0, n, n), rng.integers(0, m, n)], axis=1)
        options["capacity"] = rng.integers(0, 3, m)
    p = t.Problem(p.differences, p.category, p.rationality, p.reward, p.matrix, options)
    batch, scan = select(p, 20), select(p, 20, "reference")
    assert picks_of(batch) == picks_of(scan)
    assert batch.certificate == pytest.approx(scan.certificate, rel=1e-6)
