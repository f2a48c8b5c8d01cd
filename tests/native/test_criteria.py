"""Batches by other criteria than the plug-in gain: what they take, and that every pick is the oracle's."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import dal_native as dn
from dal_native import testing as t

METHODS = [("reference", "dense"), ("cpu", "dense"), ("cpu", "lazy")]
LEVEL = dn.capabilities()["simd"]["level"]
SEEDS = st.integers(0, 2**32 - 1)


def select(p, size, backend="cpu", **more):
    return dn.select_batch(
        p.pool(), p.reward, p.rationality, p.matrix, size, backend=backend, **p.options, **more
    )


def picks_of(batch):
    return list(zip(batch.conversation.tolist(), batch.teacher.tolist(), strict=True))


def with_options(p, **options):
    return t.Problem(p.differences, p.category, p.rationality, p.reward, p.matrix, options)


def random_options(rng, n, m, share=0.5):
    """Costs, capacities, availability, exclusions and candidates, each present with that probability."""
    options = {
        "available": rng.random((m, 2)) < 0.7,
        "capacity": rng.integers(0, 4, m),
        "cost": rng.lognormal(0, 1, (m, 2)),
        "exclude": np.stack([rng.integers(0, n, n), rng.integers(0, m, n)], axis=1),
        "candidates": np.stack([rng.integers(0, n, 2 * n), rng.integers(0, m, 2 * n)], axis=1),
    }
    present = rng.random(len(options)) < share
    options = {name: value for (name, value), kept in zip(options.items(), present, strict=True) if kept}
    return {**options, "repeats": int(rng.integers(1, 4))}


# -------------------------------------------------------------------------------------------- optimistic


def intervals(rng, beta, extreme=False):
    """Around the rationalities: points, narrow and wide ones, from 0 and up to any size; some equal."""
    below = rng.choice([0.0, 0.3, 0.9, 1.0, 1.0], beta.shape)
    above = rng.choice([1.0, 1.0, 1.2, 4.0, 1e4], beta.shape)
    ends = np.stack([beta * below, beta * above], axis=-1)
    ends[rng.random(len(beta)) < 0.3] = ends[0]
    if extreme:
        ends[rng.random(len(beta)) < 0.2] = [0.0, 1e100]
        ends[rng.random(len(beta)) < 0.2] = 0.0
        ends[rng.random(len(beta)) < 0.2] = [700.0, 800.0]
        ends[rng.random(len(beta)) < 0.2] = [1e-200, 1e-160]
    return ends


def optimistic(p, rng, extreme=False, **options):
    ends = intervals(rng, p.rationality, extreme)
    return with_options(p, criterion="optimistic", rationality_interval=ends, **options)


def optimistic_problem(seed, extreme=False):
    rng = np.random.default_rng(seed)
    n, d, m = int(rng.integers(1, 25)), int(rng.integers(1, 5)), int(rng.integers(1, 40))
    p = t.make_problem(str(rng.choice(t.KINDS)), n, d, m, n_categories=2, seed=seed)
    optimism = 0.0 if extreme else float(rng.choice([0.0, 1.0]))
    return optimistic(p, rng, extreme, **random_options(rng, n, m), optimism=optimism)


@given(SEEDS)
def test_optimistic_picks_are_the_oracles(seed):
    p = optimistic_problem(seed)
    expected = t.oracle_select(p, 6)[0]
    for backend, method in METHODS:
        batch = select(p, 6, backend, method=method)
        assert picks_of(batch) == expected
        t.check_batch(batch, p, 6)


@given(SEEDS)
def test_optimistic_picks_where_weights_underflow_are_those_of_the_scan(seed):
    p = optimistic_problem(seed, extreme=True)
    scan = select(p, 6, "reference")
    for method in ("lazy", "dense"):
        batch = select(p, 6, method=method)
        assert picks_of(batch) == picks_of(scan)
        assert batch.gain == pytest.approx(scan.gain, rel=1e-9, abs=1e-300)


@given(SEEDS)
def test_intervals_that_are_points_are_the_plug_in_bit_for_bit(seed):
    rng = np.random.default_rng(seed)
    n, m = int(rng.integers(1, 60)), int(rng.integers(1, 40))
    p = t.make_problem(str(rng.choice(t.KINDS)), n, 4, m, n_categories=2, seed=seed)
    p = with_options(p, **random_options(rng, n, m, share=0.3), optimism=float(rng.choice([0.0, 1.0])))
    points = np.stack([p.rationality, p.rationality], axis=-1)
    for backend, method in METHODS:
        plug_in = select(p, 8, backend, method=method)
        batch = select(p, 8, backend, method=method, criterion="optimistic", rationality_interval=points)
        assert picks_of(batch) == picks_of(plug_in)
        assert batch.gain.tobytes() == plug_in.gain.tobytes()


@pytest.mark.parametrize("route", ["full", "bfloat16", "screened", "warm"])
@pytest.mark.parametrize("dtype_name", t.DTYPES)
@pytest.mark.parametrize("costs", [False, True])
def test_optimistic_picks_by_every_route(take_route, route, dtype_name, costs):
    if route == "bfloat16" and LEVEL not in ("avx512bf16", "amx"):
        pytest.skip(f"products in bfloat16 need AVX-512 BF16 or AMX; the SIMD level is {LEVEL}")
    take_route(route)
    rng = np.random.default_rng(costs)
    p = t.make_problem("heavy_tails", 600, 33, 12, 2, labels=40, dtype_name=dtype_name, seed=4)
    more = {"cost": rng.lognormal(0, 1, (12, 2))} if costs else {}
    p = optimistic(p, rng, **more)
    batches = []
    for threads in (1, 3):
        selector = dn.Selector(p.pool())
        if route == "warm":
            before = p.matrix - 0.1 * np.eye(33)
            selector.select(p.reward, p.rationality, before, 1, backend="cpu", **p.options)
        batch = selector.select(p.reward, p.rationality, p.matrix, 12, threads=threads, **p.options)
        assert batch.counters["stages"][0] == route
        batches.append(batch)
    t.check_batch(batches[0], p, 12)
    assert picks_of(batches[0]) == picks_of(batches[1])
    assert batches[0].gain.tobytes() == batches[1].gain.tobytes()
    reference = select(p, 12, "reference")
    assert picks_of(batch) == picks_of(reference)
    assert batch.certificate == pytest.approx(reference.certificate, rel=1e-5)


def test_optimistic_picks_from_completions():
    rng = np.random.default_rng(7)
    completions = rng.standard_normal((90, 6))
    offsets = np.arange(0, 91, 3)
    pool = dn.Pool.from_completions(completions, offsets, category=np.arange(30) % 2)
    beta = rng.lognormal(0, 0.7, (8, 2))
    arguments = (np.ones(6), beta, np.eye(6), 10)
    ends = intervals(rng, beta)
    first, second = (
        dn.select_batch(
            pool, *arguments, criterion="optimistic", rationality_interval=ends, repeats=2, backend=backend
        )
        for backend in ("cpu", "reference")
    )
    assert picks_of(first) == picks_of(second)


@pytest.mark.parametrize("costs", [False, True])
@pytest.mark.parametrize("more", ["bare", "exclude", "repeats"])
def test_hundreds_of_intervals_used_up_one_after_another(costs, more):
    """Teachers whose intervals hold the peak tie; equal ones hand over to each other as they run out."""
    rng = np.random.default_rng(5)
    n, m = 25, 300
    p = t.make_problem("isotropic", n, 4, m, 2, seed=1)
    beta = np.exp(np.round(rng.normal(0, 0.7, (m, 2)), 1))
    options = {
        "bare": {},
        "exclude": {"exclude": np.stack([rng.integers(0, n, 400), rng.integers(0, m, 400)], axis=1)},
        "repeats": {"repeats": 20},
    }[more]
    options["capacity"] = rng.integers(0, 2, m)
    options |= {"cost": rng.lognormal(0, 0.5, (m, 2))} if costs else {}
    p = optimistic(t.Problem(p.differences, p.category, beta, p.reward, p.matrix), rng, **options)
    size = 120 if more == "repeats" else 25
    expected = picks_of(select(p, size, "reference"))
    assert len(expected) == size
    for method in ("lazy", "dense"):
        assert picks_of(select(p, size, method=method)) == expected


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_optimistic_ties_go_to_the_smallest_teacher(backend):
    """All whose interval holds t* / |u| weigh the same; at a margin of 0 the largest upper end counts."""
    ends = np.array([[0.0, 1.0], [2.0, 3.0], [0.5, 2.5], [2.39935, 9.0], [0.0, 1e100]])
    arguments = (np.array([[1.0], [0.0]]), [1.0], np.ones(5), np.eye(1))
    options = {"criterion": "optimistic", "rationality_interval": ends, "backend": backend}
    batch = dn.select_batch(*arguments, 2, **options)
    assert picks_of(batch) == [(0, 1), (1, 0)]
    for j in (1, 2, 3, 4):
        assert dn.select_batch(*arguments, 1, available=np.arange(5) >= j, **options).teacher.tolist() == [j]
    batch = dn.select_batch(np.ones((1, 1)), [0.0], np.ones(5), np.eye(1), 1, **options)
    assert picks_of(batch) == [(0, 4)]


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_an_interval_per_teacher_holds_in_every_category(backend):
    p = t.make_problem("power_law", 30, 5, 6, 3, seed=3)
    ends = intervals(np.random.default_rng(0), np.ones(6))
    one, all_ = (
        select(p, 8, backend, criterion="optimistic", rationality_interval=values)
        for values in (ends, np.repeat(ends[:, None], 3, axis=1))
    )
    assert picks_of(one) == picks_of(all_)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("seed", range(8))
def test_optimistic_certificate_bounds_the_best_batch(backend, seed):
    """Of the criterion's weights: no batch of that size, tried one by one, gains more than the bound."""
    rng = np.random.default_rng(seed)
    p = t.make_problem(t.KINDS[seed % len(t.KINDS)], 6, 3, 2, 2, labels=4, seed=seed)
    p = optimistic(p, rng)
    batch = select(p, 3, backend)
    pairs = [
        list(zip(i, j, strict=True))
        for i in itertools.combinations(range(6), 3)
        for j in itertools.product(range(2), repeat=3)
    ]
    best = max(t.log_det_gain(p, chosen) for chosen in pairs)
    assert batch.log_det_gain <= best + 1e-12
    assert best <= batch.certificate["log_det_bound"]
    assert batch.d_efficiency <= batch.log_det_gain / best
    assert batch.log_det_gain == pytest.approx(t.log_det_gain(p, picks_of(batch)), rel=1e-9)


@pytest.mark.parametrize("costs", [False, True])
def test_pools_large_enough_for_a_table_of_largest_weights(costs):
    """Lower ends of 0 and far upper ones stretch the table over |u|: still the picks of the scan."""
    rng = np.random.default_rng(8)
    p = t.make_problem("heavy_tails", 6000, 6, 30, 1, seed=3)
    ends = intervals(rng, p.rationality)
    ends[3] = [[0.0, 1e6]]
    options = {"cost": rng.lognormal(0, 1, (30, 1))} if costs else {}
    p = with_options(p, criterion="optimistic", rationality_interval=ends, **options)
    batch, scan = select(p, 20), select(p, 20, "reference")
    assert picks_of(batch) == picks_of(scan)
    slack = 1e-4 * scan.certificate["log_det_bound"]  # a certified bound carries a margin
    assert batch.certificate == pytest.approx(scan.certificate, rel=1e-4, abs=slack)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"criterion": "best"}, "criterion is 'best'; expected one of 'plug_in', 'optimistic'"),
        ({"criterion": "optimistic"}, "rationality_interval is None and criterion is 'optimistic'; expected"),
        ({"rationality_interval": [[0, 1]]}, "rationality_interval is given and criterion is 'plug_in'"),
        ({"rationality_interval": [[0.0, 1.0]] * 2}, "rationality_interval has length 2; expected 1"),
        (
            {"rationality_interval": [[0.0, 1.0, 2.0]]},
            r"has shape \(1, 3\); expected \(1, 2\) or \(1, 2, 2\)",
        ),
        (
            {"rationality_interval": [[[0.0, 1.0]]]},
            r"has shape \(1, 1, 2\); expected \(1, 2\) or \(1, 2, 2\)",
        ),
        ({"rationality_interval": [[-1.0, 1.0]]}, "rationality_interval holds -1; expected sizes"),
        ({"rationality_interval": [[0.0, 1e101]]}, r"holds 1e\+101; expected at most 1e\+100"),
        ({"rationality_interval": [[0.0, np.inf]]}, r"rationality_interval is not finite at \(0, 1\)"),
        ({"rationality_interval": [[2.0, 1.0]]}, r"holds \[2, 1\] at 0; expected lower ends first"),
    ],
)
def test_criteria_that_do_not_fit_are_refused(change, words):
    if "rationality_interval" in change and "given" not in words:
        change = {"criterion": "optimistic", **change}
    with pytest.raises(ValueError, match=words):
        dn.select_batch(np.eye(2), np.zeros(2), [[1.0, 2.0]], np.eye(2), 1, **change)


# --------------------------------------------------------------------------------- the joint information

JOINT = {
    "theta": np.eye(2),
    "cross": np.zeros((2, 1)),
    "rationality": [[1.0]],
    "cell": [[0], [-1]],
    "prior_variance": 1,
}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"theta": np.ones((2, 3))}, r"theta has shape \(2, 3\); expected square"),
        ({"theta": [[1.0, 0.5], [0.4, 1.0]]}, "theta is not symmetric"),
        ({"cross": np.zeros((3, 1))}, "cross has length 3; expected 2, one for each feature"),
        ({"cross": np.zeros(2)}, "cross has 1 dimensions"),
        ({"rationality": np.eye(2)}, r"rationality has shape \(2, 2\); expected \(1, 1\), as cross says"),
        ({"rationality": [[np.nan]]}, r"rationality is not finite at \(0, 0\)"),
        ({"cell": [[1], [0]]}, "cell holds 1; expected cells between 0 and 0, or -1"),
        ({"cell": [[-2], [0]]}, "cell holds -2"),
        ({"cell": [0.0]}, "cell has dtype float64"),
        ({"cell": np.zeros((0, 1), int)}, r"cell is empty \(shape \(0, 1\)\)"),
        ({"prior_variance": None}, "prior_variance is None; expected a variance, because cell holds -1"),
        ({"prior_variance": -1.0}, "prior_variance holds -1; expected at least 0"),
        ({"prior_variance": [1.0, 1.0]}, r"prior_variance has shape \(2,\); expected a number or \(2, 1\)"),
    ],
)
def test_joint_informations_that_do_not_fit_are_refused(change, words):
    with pytest.raises(ValueError, match=words):
        dn.JointInformation(**{**JOINT, **change})


def test_joint_information_in_one_piece_is_that_in_blocks():
    whole = np.cov(np.random.default_rng(0).standard_normal((5, 40)))
    joint = dn.JointInformation.from_inverse(whole, 3, [[0, 1], [1, -1]], prior_variance=0.25)
    assert (np.block([[joint.theta, joint.cross], [joint.cross.T, joint.rationality]]) == whole).all()
    assert (joint.prior_variance == np.full((2, 2), 0.25)).all()
    with pytest.raises(ValueError, match=r"inverse has shape \(5, 5\); expected at least d = 6 rows"):
        dn.JointInformation.from_inverse(whole, 6, [0])
