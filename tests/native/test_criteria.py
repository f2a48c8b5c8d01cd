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
        ({"criterion": "best"}, "criterion is 'best'; expected one of 'plug_in', 'optimistic', 'nuisance'"),
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


# ---------------------------------------------------------------------------------------------- nuisance


def covariance(rng, p, cell, labels, prior=1.0, anchored=False, ridge=1.0):
    """A^-1 after that many labels of any teachers; anchored: the sum of the rationalities is known."""
    d, cells = len(p.reward), int(cell.max(initial=-1)) + 1
    A = np.zeros((d + cells, d + cells))
    A[:d, :d] = ridge * np.eye(d)
    shared = 0.5 * prior * (np.eye(cells) + rng.integers(0, 2))  # a part in common, or none
    A[d:, d:] = np.linalg.inv(shared) if cells else shared
    answering = np.argwhere(cell >= 0)
    for _ in range(labels if len(answering) else 0):
        j, c = answering[rng.integers(len(answering))][[0, -1]]
        c = c if cell.ndim == 2 else rng.integers(p.rationality.shape[1])
        x, beta = rng.standard_normal(d), p.rationality[j, c]
        g = np.zeros(d + cells)
        g[:d], g[d + (cell[j, c] if cell.ndim == 2 else cell[j])] = beta * x, x @ p.reward
        A += np.outer(g, g) / (2 + 2 * np.cosh(beta * x @ p.reward))
    basis = np.eye(d + cells)
    if anchored and cells:
        known = np.r_[np.zeros(d), np.ones(cells)][None]
        basis = np.linalg.svd(known)[2][1:].T
    inverse = basis @ np.linalg.inv(basis.T @ A @ basis) @ basis.T
    return (inverse + inverse.T) / 2


def with_joint(p, rng, labels, **options):
    """Some cells without labels, in a third of the problems one for all categories."""
    m, n_categories = p.rationality.shape
    cell = np.full((m,) if rng.random() < 0.3 else (m, n_categories), -1)
    known = rng.random(cell.shape) < rng.choice([0.0, 0.6, 1.0])
    cell[known] = rng.permutation(int(known.sum()))
    prior, ridge = float(rng.choice([0.1, 1.0, 10.0])), float(rng.choice([1e-2, 1.0]))
    inverse = covariance(rng, p, cell, labels, prior, bool(rng.random() < 0.4), ridge)
    variance = rng.choice([0.05, 1.0]) if rng.random() < 0.5 else rng.uniform(0, 1, cell.shape)
    joint = dn.JointInformation.from_inverse(inverse, len(p.reward), cell, variance)
    return with_options(p, criterion="nuisance", joint=joint, **options)


def joint_problem(seed, n=None, **more):
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 25)) if n is None else n
    d, m = int(rng.integers(1, 5)), int(rng.integers(1, 7))
    p = t.make_problem(str(rng.choice(t.KINDS)), n, d, m, n_categories=2, seed=seed, **more)
    signed = p.rationality * rng.choice([1, 1, 1, -1], p.rationality.shape)
    p = t.Problem(p.differences, p.category, signed, p.reward, p.matrix)
    return with_joint(p, rng, int(rng.integers(0, 40)), **random_options(rng, n, m, share=0.4))


@given(SEEDS)
def test_nuisance_picks_are_the_oracles(seed):
    """Differences of log determinants of the anchored joint information, every pair at every step."""
    p = joint_problem(seed)
    expected, gains = t.oracle_select(p, 6)
    for backend, method in METHODS:
        batch = select(p, 6, backend, method=method)
        assert picks_of(batch) == expected
        assert batch.gain == pytest.approx(gains, rel=1e-9, abs=1e-14)
        assert batch.counters["exhausted"] == (len(expected) < 6)
    t.check_batch(batch, p, 6)


@pytest.mark.parametrize("dtype_name", t.DTYPES)
@pytest.mark.parametrize("seed", range(2))
def test_nuisance_picks_depend_on_nothing_but_the_problem(monkeypatch, dtype_name, seed):
    """Not on threads, blocks, backend or method, where many conversations never enter the search."""
    p = joint_problem(seed, n=1500, dtype_name=dtype_name)
    first = select(p, 12)
    for block, threads, method in ((1 << 16, 3, "lazy"), (64, 1, "lazy"), (1 << 10, 2, "dense")):
        monkeypatch.setattr(dn.nuisance, "_BLOCK", block)
        batch = select(p, 12, threads=threads, method=method)
        assert picks_of(batch) == picks_of(first)
        assert batch.gain.tobytes() == first.gain.tobytes()
    assert picks_of(select(p, 12, "reference")) == picks_of(first)
    selector = dn.Selector(p.pool())
    for _ in range(2):
        batch = selector.select(p.reward, p.rationality, p.matrix, 12, **p.options)
        assert picks_of(batch) == picks_of(first)


def test_the_lazy_search_looks_at_few_conversations():
    rng = np.random.default_rng(0)
    p = t.make_problem("power_law", 20_000, 8, 5, 2, seed=1)
    cell = np.arange(10).reshape(5, 2)
    joint = dn.JointInformation.from_inverse(covariance(rng, p, cell, 300), 8, cell)
    batch = select(with_options(p, criterion="nuisance", joint=joint), 20)
    assert batch.counters["refreshes"] < 20_000
    assert batch.counters["rows_rescored"] < 400


def test_rationalities_known_for_sure_are_no_nuisance():
    """Without variance the criterion is the plug-in, M the inverse of the reward's covariance."""
    p = t.make_problem("power_law", 200, 5, 6, 2, seed=3)
    rng = np.random.default_rng(0)
    options = random_options(rng, 200, 6)
    joint = dn.JointInformation(
        np.linalg.inv(p.matrix), np.zeros((5, 0)), np.zeros((0, 0)), np.full((6, 2), -1), 0.0
    )
    batch = select(with_options(p, criterion="nuisance", joint=joint, **options), 15)
    plug_in = select(with_options(p, **options), 15)
    assert picks_of(batch) == picks_of(plug_in)
    assert batch.gain == pytest.approx(plug_in.gain, rel=1e-9)


def test_what_a_nuisance_batch_gains_is_in_the_covariance_of_the_reward():
    rng = np.random.default_rng(1)
    p = t.make_problem("isotropic", 60, 4, 5, 2, seed=2)
    cell = np.arange(10).reshape(5, 2)
    before = covariance(rng, p, cell, 100)
    joint = dn.JointInformation.from_inverse(before, 4, cell)
    batch = select(with_options(p, criterion="nuisance", joint=joint), 12)
    A = np.linalg.inv(before)
    for i, j in picks_of(batch):
        x, beta = p.differences[i], p.rationality[j, p.category[i]]
        g = np.r_[beta * x, np.zeros(10)]
        g[4 + cell[j, p.category[i]]] = x @ p.reward
        A += np.outer(g, g) / (2 + 2 * np.cosh(beta * x @ p.reward))
    after = np.linalg.inv(A)[:4, :4]
    grown = np.linalg.slogdet(before[:4, :4])[1] - np.linalg.slogdet(after)[1]
    assert batch.log_det_gain == pytest.approx(grown, rel=1e-9)
    assert (batch.d_efficiency, batch.certificate) == (None, {})
    assert repr(batch) == f"Batch(12 pairs, log_det_gain={batch.log_det_gain:.6g})"


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_nuisance_ties_go_to_the_first_pair(backend):
    rows = np.tile(np.random.default_rng(0).standard_normal(3), (50, 1))
    joint = dn.JointInformation(np.eye(3), np.zeros((3, 0)), np.zeros((0, 0)), [-1, -1], 0.3)
    options = {"criterion": "nuisance", "joint": joint, "backend": backend}
    arguments = (rows, [0.1, 0.2, 0.3], [1.5, 1.5], np.eye(3))
    assert picks_of(dn.select_batch(*arguments, 1, **options)) == [(0, 0)]
    batch = dn.select_batch(*arguments, 30, available=[False, True], **options)
    assert picks_of(batch) == [(i, 1) for i in range(30)]
    nothing = dn.select_batch(np.zeros((4, 3)), *arguments[1:], 3, **options)
    assert picks_of(nothing) == [(0, 0), (1, 0), (2, 0)]
    assert nothing.log_det_gain == 0.0


def test_nuisance_batches_from_completions_and_files(tmp_path):
    rng = np.random.default_rng(7)
    rows = rng.standard_normal((90, 6)).astype(np.float32)
    np.save(tmp_path / "rows.npy", rows)
    joint = dn.JointInformation(np.eye(6), np.zeros((6, 0)), np.zeros((0, 0)), [-1] * 4, [0.1, 0.2, 0.3, 0.4])
    arguments = (rng.standard_normal(6), rng.lognormal(0, 0.7, 4), np.eye(6), 10)
    options = {"criterion": "nuisance", "joint": joint, "repeats": 2}
    streamed = dn.Pool.open(tmp_path / "rows.npy", working_memory=1 << 20)
    by_file = dn.select_batch(streamed, *arguments, threads=2, **options)
    assert picks_of(by_file) == picks_of(dn.select_batch(rows, *arguments, **options))
    pool = dn.Pool.from_completions(rows, np.arange(0, 91, 3))
    differences = pool.take(np.arange(len(pool)))
    by_pairs = dn.select_batch(pool, *arguments, **options)
    assert picks_of(by_pairs) == picks_of(dn.select_batch(differences, *arguments, **options))


def test_nuisance_tells_its_progress_and_may_be_stopped():
    p = joint_problem(3, n=20)
    told = []
    batch = select(p, 4, progress=lambda done, size: told.append((done, size)))
    assert told == [(k + 1, 4) for k in range(len(batch))]

    def stop(done, size):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        select(p, 4, progress=stop)
    assert len(select(p, 0)) == 0


NUISANCE = {
    "criterion": "nuisance",
    "joint": dn.JointInformation(np.eye(2), np.zeros((2, 1)), [[1.0]], [[0, -1]], 1.0),
}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"joint": None}, "joint is NoneType and criterion is 'nuisance'; expected a JointInformation"),
        ({"joint": np.eye(3)}, "joint is ndarray and criterion is 'nuisance'"),
        ({"criterion": "plug_in"}, "joint is JointInformation and criterion is 'plug_in'; expected"),
        ({"rationality_interval": [[0.0, 1.0]]}, "rationality_interval is given and criterion is 'nuisance'"),
        ({"optimism": 1.0}, "optimism is 1; expected 0 with criterion 'nuisance'"),
        (
            {"joint": dn.JointInformation(np.eye(3), np.zeros((3, 1)), [[1.0]], [[0, 0]])},
            "joint has 3 features; expected 2, as the pool",
        ),
        (
            {"joint": dn.JointInformation(np.eye(2), np.zeros((2, 1)), [[1.0]], [[0], [0]])},
            r"joint.cell has shape \(2, 1\); expected \(1,\) or \(1, 2\)",
        ),
        (
            {"joint": dn.JointInformation(np.eye(2), [[2.0], [0.0]], [[1.0]], [[0, 0]])},
            "joint is not a covariance: cross is larger than theta and rationality allow",
        ),
    ],
)
def test_joint_informations_that_do_not_fit_the_selection_are_refused(change, words):
    with pytest.raises(ValueError, match=words):
        dn.select_batch(np.eye(2), np.zeros(2), [[1.0, 2.0]], np.eye(2), 1, **{**NUISANCE, **change})


def test_what_nuisance_cannot_serve_is_an_error():
    joint = dn.JointInformation(np.diag([1.0, -1.0]), np.zeros((2, 1)), [[1.0]], [0])
    with pytest.raises(np.linalg.LinAlgError, match="not positive definite"):
        dn.select_batch(np.eye(2), np.zeros(2), [1.0], np.eye(2), 1, criterion="nuisance", joint=joint)
    rows = np.ones((5, 2))
    rows[3] = 1e200
    arguments = ([1.0], np.eye(2), 2)
    options = {
        "criterion": "nuisance",
        "joint": dn.JointInformation(np.eye(2), np.zeros((2, 1)), [[1.0]], [0]),
    }
    with pytest.raises(ValueError, match="gain of conversation 3 is not finite"):
        dn.select_batch(rows, np.zeros(2), *arguments, **options)
    with pytest.raises(ValueError, match="margin of conversation 3 is not finite"):
        dn.select_batch(rows, [1e200, 1e200], *arguments, **options)


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
