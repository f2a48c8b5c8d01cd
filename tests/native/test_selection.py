"""Batches: every pick is the dense oracle's, under every option; the certificate bounds what it says."""

import itertools
from fractions import Fraction

import numpy as np
import pytest
import scipy.sparse
from hypothesis import given
from hypothesis import strategies as st

import dal_native as dn
from dal_native import testing as t


def select(p, size, backend, **more):
    return dn.select_batch(
        p.pool(), p.reward, p.rationality, p.matrix, size, backend=backend, **p.options, **more
    )


def picks_of(batch):
    return list(zip(batch.conversation.tolist(), batch.teacher.tolist(), strict=True))


def with_options(p, **options):
    return t.Problem(p.differences, p.category, p.rationality, p.reward, p.matrix, options)


def random_options(rng, n, m, n_categories):
    """Each option present half of the time."""

    def maybe(make):
        return make() if rng.random() < 0.5 else None

    def pairs(k, low):
        return np.stack([rng.integers(0, n, k), rng.integers(low, m, k)], axis=1)

    options = {
        "available": maybe(lambda: rng.random((m, n_categories)) < 0.7),
        "capacity": maybe(lambda: rng.integers(0, 4, m)),
        "cost": maybe(lambda: rng.choice([0.5, 1.0, 3.0], (m, n_categories))),
        "exclude": maybe(lambda: pairs(n, -1)),
        "candidates": maybe(lambda: pairs(2 * n, 0)),
    }
    options = {name: value for name, value in options.items() if value is not None}
    return {**options, "repeats": int(rng.integers(1, 4)), "optimism": float(rng.choice([0.0, 0.5, 3.0]))}


METHODS = [("reference", "dense"), ("cpu", "dense"), ("cpu", "lazy")]


@pytest.mark.parametrize(("backend", "method"), METHODS)
@pytest.mark.parametrize("kind", t.KINDS)
@pytest.mark.parametrize("seed", range(6))
def test_random_problems_with_every_option(backend, method, kind, seed):
    rng = np.random.default_rng([seed, t.KINDS.index(kind)])
    n, d, m = int(rng.integers(1, 40)), int(rng.integers(1, 9)), int(rng.integers(1, 6))
    dtype_name = str(rng.choice(t.DTYPES))
    p = t.make_problem(kind, n, d, m, n_categories=2, dtype_name=dtype_name, seed=seed)
    for options in ({}, random_options(rng, n, m, 2), random_options(rng, n, m, 2)):
        p = with_options(p, **options)
        size = int(rng.integers(0, 12))
        batch = select(p, size, backend, method=method)
        t.check_batch(batch, p, size)
        expected, gains = t.oracle_select(p, size)
        assert picks_of(batch) == expected
        assert batch.gain == pytest.approx(gains, rel=1e-9, abs=1e-15)
        assert batch.counters["exhausted"] == (len(expected) < size)


@given(st.integers(0, 2**32 - 1))
def test_any_seed(seed):
    """The lazy and the dense way pick what the oracle picks."""
    rng = np.random.default_rng(seed)
    n, d, m = int(rng.integers(1, 30)), int(rng.integers(1, 6)), int(rng.integers(1, 5))
    kind = str(rng.choice(t.KINDS))
    p = t.make_problem(kind, n, d, m, labels=int(rng.integers(0, 30)), n_categories=2, seed=seed)
    p = with_options(p, **random_options(rng, n, m, 2))
    expected, _ = t.oracle_select(p, 8)
    for backend, method in METHODS:
        assert picks_of(select(p, 8, backend, method=method)) == expected


@pytest.mark.parametrize("kind", t.KINDS)
@pytest.mark.parametrize("labels", [0, 20, 3000])
def test_pools_large_enough_to_be_screened(kind, labels):
    """Cold and late starts, flat and falling spectra: whatever way is taken, the picks are the oracle's."""
    rng = np.random.default_rng([labels, t.KINDS.index(kind)])
    d = 48
    for dtype_name in t.DTYPES:
        n, seed = int(rng.integers(1950, 2300)), int(rng.integers(1e6))
        ridge = float(rng.choice([1e-2, 1.0, 5.0]))
        p = t.make_problem(kind, n, d, 5, 2, labels=labels, ridge=ridge, dtype_name=dtype_name, seed=seed)
        for options in ({}, random_options(rng, n, 5, 2)):
            p = with_options(p, **options)
            batch = select(p, 8, "cpu", threads=int(rng.integers(1, 4)))
            reference = select(p, 8, "reference")
            assert picks_of(batch) == picks_of(reference)
            assert batch.gain == pytest.approx(reference.gain, rel=1e-10)
            slack = 1e-5 * reference.certificate["log_det_bound"]  # a certified bound carries a margin
            assert batch.certificate == pytest.approx(reference.certificate, rel=1e-5, abs=slack)
    t.check_batch(batch, p, 8)


@pytest.mark.parametrize("n", [0, 1, 2, 17, 64, 65, 130])
@pytest.mark.parametrize("d", [1, 7, 8, 9, 16, 33, 65])
def test_awkward_sizes(backend, n, d):
    p = t.make_problem("power_law", n, d, seed=n + d)
    t.check_batch(select(p, 5, backend), p, 5)


@pytest.mark.parametrize("dtype_name", t.DTYPES)
@pytest.mark.parametrize("power", [0, 4, 8, 12])
def test_ill_conditioned_information(backend, dtype_name, power):
    p = t.make_problem("isotropic", 60, 6, dtype_name=dtype_name, seed=power)
    rng = np.random.default_rng(power)
    q = np.linalg.qr(rng.standard_normal((6, 6)))[0]
    matrix = (q * 10.0 ** np.linspace(power / 2, -power / 2, 6)) @ q.T
    p = t.Problem(p.differences, p.category, p.rationality, p.reward, (matrix + matrix.T) / 2)
    t.check_batch(select(p, 10, backend), p, 10)


@pytest.mark.parametrize("kind", ["isotropic", "heavy_tails", "power_law"])
@pytest.mark.parametrize("ridge", [1e-6, 1e-8, 1e-9])
@pytest.mark.parametrize("labels", [0, 2])
def test_weak_ridge_before_there_are_labels(backend, kind, ridge, labels):
    """Leverages fall by as much as the ridge is weak, and what is left of them must still decide."""
    p = t.make_problem(kind, n=40, d=8, labels=labels, ridge=ridge)
    t.check_batch(select(p, 12, backend), p, 12)


def exact_greedy(x, weight, size):
    """Picks by w h alone from M = I, in rational numbers: no condition is too large for them."""
    rows = [[Fraction(float(value)) for value in row] for row in x]
    d = len(rows[0])
    inverse = [[Fraction(int(a == b)) for b in range(d)] for a in range(d)]
    picks = []
    for _ in range(size):
        solved = [[sum(inverse[a][b] * row[b] for b in range(d)) for a in range(d)] for row in rows]
        h = [
            sum(v * value for v, value in zip(z, row, strict=True))
            for z, row in zip(solved, rows, strict=True)
        ]
        best = max((i for i in range(len(rows)) if i not in picks), key=lambda i: (h[i], -i))
        picks.append(best)
        share = weight / (1 + weight * h[best])
        z = solved[best]
        inverse = [[inverse[a][b] - share * z[a] * z[b] for b in range(d)] for a in range(d)]
    return picks


@pytest.mark.parametrize("scale", [1.0, 1e5, 1e70, 1e90, 1e150])
@pytest.mark.parametrize("method", ["lazy", "dense"])
def test_squares_beyond_the_range_of_float64(scale, method):
    """A leverage may come near overflow; its square, on the way to the next, must not."""
    for seed in range(8):
        x = scale * np.random.default_rng(seed).standard_normal((12, 3))
        expected = exact_greedy(x, Fraction(1, 4), 6)
        batch = dn.select_batch(x, np.zeros(3), [1.0], np.eye(3), 6, method=method, backend="cpu")
        assert batch.conversation.tolist() == expected


def test_screening_where_its_terms_overflow(take_route):
    """Large terms of opposite sign say nothing about a row: it is looked at, not passed over."""
    take_route("screened")
    d, n = 40, 3200
    x = 1e-2 * np.random.default_rng(0).standard_normal((n, d))
    x[1000:1010, :25] = 0
    x[1000:1010, 25:] *= 3e16
    M = np.diag(np.r_[np.full(25, 1e-280), np.full(15, 1e-270)])
    lazy, dense = (
        dn.select_batch(x.astype(np.float32), np.zeros(d), [1.0], M, 8, method=method, backend="cpu")
        for method in ("lazy", "dense")
    )
    assert lazy.counters["stages"][0] == "screened"
    assert picks_of(lazy) == picks_of(dense)
    assert set(lazy.conversation.tolist()) <= set(range(1000, 1010))


@pytest.mark.parametrize("power", [4, 7, 9, 12])
def test_certificate_allows_for_what_float64_cannot_show(power):
    """Leverages equal but for rounding, M ill-conditioned: the best is hardly known in float64."""
    d = 12
    for seed in range(10):
        rng = np.random.default_rng(seed)
        q = np.linalg.qr(rng.standard_normal((d, d)))[0]
        spectrum = 10.0 ** np.linspace(0, power, d)
        matrix, k = (q * spectrum) @ q.T, rng.integers(0, d, 200)
        matrix = 0.5 * (matrix + matrix.T)
        x = q[:, k].T * np.sqrt(spectrum[k])[:, None]
        noise = 1 + 1e-17 * 10.0**power * rng.standard_normal(200)
        x *= (1e-6 * noise / np.sqrt(t.oracle_leverage(x, matrix).astype(float)))[:, None]
        batch = dn.select_batch(x, np.zeros(d), [1.0], matrix, 1, backend="cpu")
        gain = np.log1p(0.25 * t.oracle_leverage(x, matrix))
        assert batch.d_efficiency <= float(gain[batch.conversation[0]] / gain.max())


@pytest.mark.parametrize("power", [15, 16, 18])
def test_information_near_singular_is_refused_or_served(backend, power):
    """Beyond 1 / eps a factorisation may or may not exist: either LinAlgError, or distinct finite picks."""
    p = t.make_problem("isotropic", 60, 6, seed=power)
    q = np.linalg.qr(np.random.default_rng(power).standard_normal((6, 6)))[0]
    matrix = (q * np.array([1, 1, 1, 1, 1, 10.0**-power])) @ q.T
    p = t.Problem(p.differences, p.category, p.rationality, p.reward, (matrix + matrix.T) / 2)
    try:
        batch = select(p, 10, backend)
    except np.linalg.LinAlgError:
        return
    assert len(set(batch.conversation.tolist())) == 10
    assert np.isfinite(batch.gain).all()
    assert 0 < batch.d_efficiency <= 1


# ------------------------------------------------------------------------------------------------- ties


def test_identical_rows_go_to_the_smallest_index(backend):
    for d in (1, 5, 8, 33):
        x = np.random.default_rng(d).standard_normal(d)
        p = t.Problem(np.tile(x, (300, 1)), np.zeros(300, int), np.ones((3, 1)), np.zeros(d), np.eye(d))
        batch = select(p, 40, backend)
        assert batch.conversation.tolist() == list(range(40))
        assert batch.teacher.tolist() == [0] * 40


@pytest.mark.parametrize("difference", [1e-13, -1e-13])
def test_values_within_the_window_are_tied(backend, difference):
    """A later row that is better by less than 1e-12 does not win."""
    x = np.array([[0.1], [1.0], [1.0 + difference / 2], [1.0]])
    p = t.Problem(x, np.zeros(4, int), np.ones((1, 1)), np.zeros(1), np.eye(1))
    assert select(p, 1, backend).conversation.tolist() == [1]


def test_values_outside_the_window_are_not_tied(backend):
    x = np.array([[1.0], [1.0 + 1e-11]])
    p = t.Problem(x, np.zeros(2, int), np.ones((1, 1)), np.zeros(1), np.eye(1))
    assert select(p, 1, backend).conversation.tolist() == [1]


def test_teachers_within_the_window_are_tied(backend):
    beta = np.array([[0.5], [2.0 * (1 - 1e-13)], [2.0], [2.0 * (1 + 1e-13)]])
    p = t.Problem(np.eye(3), np.zeros(3, int), beta, np.zeros(3), np.eye(3))
    assert picks_of(select(p, 3, backend)) == [(0, 1), (1, 1), (2, 1)]
    p = with_options(p, repeats=3, capacity=np.array([9, 2, 9, 9]))
    assert picks_of(select(p, 4, backend))[:3] == [(0, 1), (1, 1), (2, 2)]


def test_zero_differences_are_picked_last_and_gain_nothing(backend):
    x = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 0.0]])
    p = t.Problem(x, np.zeros(3, int), np.ones((2, 1)), np.zeros(2), np.eye(2))
    batch = select(p, 3, backend)
    assert picks_of(batch) == [(1, 0), (0, 0), (2, 0)]
    assert batch.gain[1:].tolist() == [0.0, 0.0]


def test_when_every_weight_is_zero_the_first_pairs_are_picked(backend):
    p = t.Problem(np.eye(3), np.zeros(3, int), np.zeros((2, 1)), np.ones(3), np.eye(3))
    batch = select(p, 2, backend)
    assert picks_of(batch) == [(0, 0), (1, 0)]
    assert (batch.log_det_gain, batch.d_efficiency) == (0.0, 1.0)


# ----------------------------------------------------------------------------------------------- options


def base(n=30, **options):
    return with_options(t.make_problem("power_law", n, 5, 4, 2, seed=3), **options)


def test_capacity_is_kept(backend):
    batch = select(base(capacity=np.array([0, 2, 1, 5])), 20, backend)
    assert np.bincount(batch.teacher, minlength=4).tolist() == [0, 2, 1, 5]
    assert batch.counters["exhausted"]


def test_availability_by_teacher_or_by_category(backend):
    closed = np.array([True, False, True, True])
    a = select(base(available=closed), 10, backend)
    b = select(base(available=np.repeat(closed[:, None], 2, 1)), 10, backend)
    assert picks_of(a) == picks_of(b)
    assert 1 not in a.teacher
    p = base(available=np.array([[1, 0], [0, 1], [0, 0], [0, 0]]))
    batch = select(p, 10, backend)
    assert (batch.teacher == p.category[batch.conversation]).all()


def test_no_teacher_available_is_an_empty_batch(backend):
    batch = select(base(available=np.zeros(4, bool)), 5, backend)
    assert len(batch) == 0
    assert batch.counters["exhausted"]
    assert (batch.log_det_gain, batch.d_efficiency) == (0.0, 1.0)


def test_exclusions(backend):
    first = picks_of(select(base(), 6, backend))
    batch = picks_of(select(base(exclude=first), 6, backend))
    assert set(first).isdisjoint(batch)
    blocked = [(i, -1) for i, _ in first]
    batch = select(base(exclude=blocked + first + first), 6, backend)
    assert {i for i, _ in first}.isdisjoint(batch.conversation.tolist())
    everything = [(i, -1) for i in range(30)]
    assert len(select(base(exclude=everything), 6, backend)) == 0
    assert picks_of(select(base(exclude=np.zeros((0, 2), int)), 6, backend)) == first
    assert picks_of(select(base(exclude=[]), 6, backend)) == first


def test_candidates_as_pairs_or_sparse(backend):
    pairs = np.array([[3, 1], [3, 2], [7, 0], [29, 3], [3, 1]])
    sparse = scipy.sparse.csr_matrix((np.ones(5), pairs.T), shape=(30, 4))
    by_pairs = select(base(candidates=pairs, repeats=2), 9, backend)
    assert sorted(picks_of(by_pairs)) == [(3, 1), (3, 2), (7, 0), (29, 3)]
    for other in (sparse, sparse.tocsc(), scipy.sparse.coo_array(sparse), sparse.astype(bool)):
        batch = dn.select_batch(*problem_arguments(base()), 9, candidates=other, repeats=2, backend=backend)
        assert picks_of(batch) == picks_of(by_pairs)
    assert len(select(base(candidates=[]), 3, backend)) == 0
    explicit_zero = scipy.sparse.csr_matrix(([0.0, 1.0], ([1, 2], [0, 0])), shape=(30, 4))
    batch = dn.select_batch(*problem_arguments(base()), 9, candidates=explicit_zero, backend=backend)
    assert picks_of(batch) == [(2, 0)]


def problem_arguments(p):
    return p.pool(), p.reward, p.rationality, p.matrix


def test_repeats_ask_different_teachers(backend):
    batch = select(base(3, repeats=4), 12, backend)
    assert sorted(picks_of(batch)) == [(i, j) for i in range(3) for j in range(4)]
    assert len(select(base(3, repeats=2), 12, backend)) == 6
    assert len(select(base(3), 12, backend)) == 3


def test_cost_prefers_the_cheap(backend):
    dear = select(base(cost=np.array([1.0, 1.0, 1.0, 1e6])), 10, backend)
    assert 3 not in dear.teacher
    same = select(base(cost=np.full(4, 7.0)), 10, backend)
    assert picks_of(same) == picks_of(select(base(), 10, backend))


def test_optimism_takes_sd_off_the_margin(backend):
    p = base(optimism=1e9)  # every weight is that of a margin of zero: the most rational teacher
    batch = select(p, 10, backend)
    assert (batch.teacher == p.rationality.argmax(axis=0)[p.category[batch.conversation]]).all()
    assert batch.gain == pytest.approx(t.oracle_select(p, 10)[1], rel=1e-9)


def test_negative_rationality_weighs_as_its_size(backend):
    p = base()
    signed = t.Problem(p.differences, p.category, -p.rationality, p.reward, p.matrix)
    assert picks_of(select(signed, 8, backend)) == picks_of(select(p, 8, backend))


def test_rationality_per_teacher_holds_in_every_category(backend):
    p = base()
    one = t.Problem(p.differences, p.category, p.rationality[:, 0], p.reward, p.matrix)
    two = t.Problem(p.differences, p.category, p.rationality[:, [0, 0]], p.reward, p.matrix)
    assert picks_of(select(one, 8, backend)) == picks_of(select(two, 8, backend))


def test_size_zero_and_size_beyond_the_pool(backend):
    batch = select(base(), 0, backend)
    assert (len(batch), batch.log_det_gain, batch.d_efficiency) == (0, 0.0, 1.0)
    assert not batch.counters["exhausted"]
    batch = select(base(), 1000, backend)
    assert sorted(batch.conversation.tolist()) == list(range(30))
    assert batch.counters["exhausted"]


@pytest.mark.parametrize("beyond", [10**9, 10**12, 2**62, 2**63, 10**30])
def test_sizes_and_repeats_far_beyond_the_pool_are_no_matter(backend, beyond):
    p = base()
    expected = picks_of(select(p, 30, backend))
    batch = select(p, beyond, backend)
    assert picks_of(batch) == expected
    assert batch.counters["exhausted"]
    every = select(with_options(p, repeats=beyond), 10**6, backend)
    assert sorted(picks_of(every)) == list(itertools.product(range(30), range(len(p.rationality))))


def test_information_matrix_object_and_array_give_the_same(backend):
    p = base()
    M = dn.InformationMatrix(p.matrix)
    batch = dn.select_batch(p.pool(), p.reward, p.rationality, M, 6, backend=backend)
    assert picks_of(batch) == picks_of(select(p, 6, backend))
    assert (M.matrix == p.matrix).all()


def later(p, rng, factor=1.0):
    """The problem of a next round: labels added, every weight shifted a little, another reward."""
    x = p.rows()[rng.integers(0, len(p.category), 10)]
    d = len(p.reward)
    shift = rng.uniform(0.9, 1.1, d)
    matrix = factor * (p.matrix * np.sqrt(np.outer(shift, shift)) + 0.1 * x.T @ x)
    reward = p.reward + 0.2 * np.linalg.cholesky(np.linalg.inv(p.matrix)) @ rng.standard_normal(d)
    return t.Problem(p.differences, p.category, p.rationality, reward, matrix, p.options)


@pytest.mark.parametrize("kind", t.KINDS)
@pytest.mark.parametrize("method", ["lazy", "dense"])
def test_selector_gives_what_select_batch_gives(backend, kind, method):
    """Round after round, whatever is kept: M grows, shrinks, turns into another; options come and go."""
    rng = np.random.default_rng(t.KINDS.index(kind))
    p = t.make_problem(kind, 150, 6, 4, 2, seed=1)
    selector = dn.Selector(p.pool())
    for round_number, factor in enumerate([1.0, 1.0, 0.3, 4.0, 1e-6, 1.0, 1e6]):
        p = later(p, rng, factor)
        p = with_options(p, **(random_options(rng, 150, 4, 2) if round_number % 2 else {}))
        # now and then another backend or method steps in between
        how = {"backend": "reference"} if round_number == 2 else {"backend": backend, "method": method}
        batch = selector.select(p.reward, p.rationality, p.matrix, 6, **p.options, **how)
        assert picks_of(batch) == picks_of(select(p, 6, "reference"))
        t.check_batch(batch, p, 6)


def test_selector_reads_less_when_rounds_resemble_each_other():
    """What is kept is used: the way is "warm" after the first round, and the picks are the same."""
    rng = np.random.default_rng(0)
    p = t.make_problem("isotropic", 6000, 48, 6, 2, labels=3000, dtype_name="float32")
    selector = dn.Selector(p.pool())
    stages = []
    for _ in range(5):
        batch = selector.select(p.reward, p.rationality, p.matrix, 10, backend="cpu")
        stages.append(batch.counters["stages"][0])
        fresh = select(p, 10, "reference")
        assert picks_of(batch) == picks_of(fresh)
        assert batch.certificate == pytest.approx(fresh.certificate, rel=1e-6)
        p = later(p, rng)
    assert stages[0] != "warm"
    assert "warm" in stages


def test_selector_survives_a_call_that_fails(backend):
    p = base()
    selector = dn.Selector(p.pool())

    def stop(done, total):
        raise KeyboardInterrupt

    for bad in ({"progress": stop}, {"size": -1}, {"M": -np.eye(5)}, {"rationality": [np.nan]}):
        arguments = {"reward": p.reward, "rationality": p.rationality, "M": p.matrix, "size": 6, **bad}
        with pytest.raises((KeyboardInterrupt, ValueError)):
            selector.select(**arguments, backend=backend)
        batch = selector.select(p.reward, p.rationality, p.matrix, 6, backend=backend)
        assert picks_of(batch) == picks_of(select(p, 6, backend))


def test_arguments_are_left_alone(backend):
    p = base(capacity=np.array([1, 2, 3, 4]), available=np.ones((4, 2), bool), cost=np.ones((4, 2)))
    arrays = [p.differences, p.category, p.rationality, p.reward, p.matrix, *p.options.values()]
    before = [a.copy() for a in arrays]
    for a in arrays:
        a.flags.writeable = False
    select(p, 9, backend)
    assert all((a == b).all() for a, b in zip(arrays, before, strict=True))


def test_progress_is_told_and_may_stop_the_call(backend):
    told = []
    select(base(), 7, backend, progress=lambda done, total: told.append((done, total)))
    assert told[-1] == (7, 7)
    assert [done for done, _ in told] == sorted(done for done, _ in told)

    class Enough(Exception):
        pass

    def stop(done, total):
        raise Enough(f"{done} of {total}")

    with pytest.raises(Enough, match="of 7"):
        select(base(), 7, backend, progress=stop)
    assert picks_of(select(base(), 7, backend)) == t.oracle_select(base(), 7)[0]


def test_repr_is_one_line(backend):
    assert repr(select(base(), 7, backend)).startswith("Batch(7 pairs, log_det_gain=")


def test_counters_are_there(backend):
    counters = select(base(), 7, backend).counters
    assert {"rows_streamed", "rows_rescored", "refreshes", "stages", "exhausted"} <= set(counters)
    assert counters["rows_streamed"] >= 30


# ------------------------------------------------------------------------------------------- certificate


@pytest.mark.parametrize("seed", range(20))
def test_certificate_bounds_the_best_batch(backend, seed):
    """No batch of that size, tried one by one, gains more than the bound."""
    rng = np.random.default_rng(seed)
    kind = t.KINDS[seed % len(t.KINDS)]
    p = t.make_problem(kind, 6, 3, 2, 2, labels=4, ridge=float(rng.choice([0.1, 1.0])), seed=seed)
    repeats = 1 + seed % 2
    p = with_options(p, repeats=repeats, exclude=[(0, 0)], capacity=[2, 3])
    batch = select(p, 3, backend)
    pairs = [(i, j) for i in range(6) for j in range(2) if (i, j) != (0, 0)]
    best = 0.0
    for chosen in itertools.combinations(pairs, len(batch)):
        conversations = [i for i, _ in chosen]
        teachers = [j for _, j in chosen]
        if max(conversations.count(i) for i in conversations) > repeats:
            continue
        if teachers.count(0) > 2 or teachers.count(1) > 3:
            continue
        best = max(best, t.log_det_gain(p, chosen))
    certificate = batch.certificate
    assert best <= certificate["log_det_bound"]
    assert batch.log_det_gain <= best + 1e-12
    assert batch.d_efficiency <= batch.log_det_gain / best
    assert certificate["d_efficiency_dimension"] <= np.exp((batch.log_det_gain - best) / 3)
    assert certificate["slack"] == pytest.approx(certificate["log_det_bound"] - batch.log_det_gain)


@pytest.mark.parametrize("seed", range(6))
def test_certificate_with_costs_bounds_every_batch_of_equal_spend(backend, seed):
    p = t.make_problem("isotropic", 5, 3, 2, 1, labels=4, seed=seed)
    cost = np.array([1.0, 2.0])
    batch = select(with_options(p, cost=cost[:, None], repeats=2), 3, backend)
    spend = cost[batch.teacher].sum()
    pairs = [(i, j) for i in range(5) for j in range(2)]
    best = max(
        t.log_det_gain(with_options(p, repeats=2), chosen)
        for k in range(1, len(pairs) + 1)
        for chosen in itertools.combinations(pairs, k)
        if sum(cost[j] for _, j in chosen) <= spend
    )
    assert best <= batch.certificate["log_det_bound"]
    assert batch.d_efficiency <= batch.log_det_gain / best


def test_certificate_of_a_greedy_optimum_is_tight(backend):
    """Orthogonal rows: greedy is optimal; and with every pair taken nothing is left to gain."""
    p = t.Problem(np.diag([3.0, 2.0, 1.0]), np.zeros(3, int), np.ones((1, 1)), np.zeros(3), np.eye(3))
    assert select(p, 3, backend).d_efficiency == pytest.approx(1.0, abs=1e-9)
    p = base(12, repeats=4)
    assert select(p, 48, backend).d_efficiency == pytest.approx(1.0, abs=1e-7)


@pytest.mark.parametrize("seed", range(4))
def test_certificates_of_the_backends_agree(seed):
    rng = np.random.default_rng(seed)
    p = with_options(base(), **random_options(rng, 30, 4, 2))
    a, b = (select(p, 6, k).certificate for k in ("reference", "cpu"))
    assert a == pytest.approx(b, rel=1e-8, abs=1e-9 * b["log_det_bound"])


# ---------------------------------------------------------------------------------------------- refusals


GOOD = {"reward": np.zeros(2), "rationality": [[1.0], [2.0]], "M": np.eye(2), "size": 1}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"size": -1}, "size is -1; expected a whole number of at least 0"),
        ({"size": 1.0}, "size is 1.0; expected a whole number"),
        ({"size": float("nan")}, "size is nan; expected a whole number"),
        ({"size": True}, "size is True; expected a whole number"),
        ({"size": None}, "size is None; expected a whole number"),
        ({"reward": np.zeros(3)}, "reward has length 3; expected 2, one for each feature"),
        ({"reward": np.zeros((2, 1))}, r"reward has 2 dimensions \(shape \(2, 1\)\); expected 1"),
        ({"reward": [np.nan, 0]}, r"reward is not finite at 0 \(nan\)"),
        ({"reward": [0, np.inf]}, r"reward is not finite at 1 \(inf\)"),
        ({"reward": ["a", "b"]}, "reward has dtype <U1; expected real numbers"),
        ({"reward": [1j, 0]}, "reward has dtype complex128"),
        ({"reward": [True, False]}, "reward has dtype bool"),
        ({"rationality": [[1.0], [np.nan]]}, r"rationality is not finite at \(1, 0\) \(nan\)"),
        ({"rationality": []}, r"rationality has no teachers \(shape \(0,\)\)"),
        ({"rationality": 1.0}, "rationality has 0 dimensions"),
        ({"rationality": [1e101]}, r"rationality holds 1e\+101; expected at most 1e\+100"),
        ({"M": np.eye(3)}, r"M has shape \(3, 3\); expected \(2, 2\)"),
        ({"M": np.ones((2, 3))}, r"M has shape \(2, 3\); expected \(2, 2\)"),
        ({"M": [[1.0, 0.5], [0.4, 1.0]]}, "M is not symmetric"),
        ({"M": [[np.nan, 0], [0, 1]]}, r"M is not finite at \(0, 0\)"),
        ({"M": dn.InformationMatrix(np.eye(3))}, r"M has shape \(3, 3\); expected \(2, 2\)"),
        ({"available": [True]}, "available has length 1; expected 2, one for each teacher"),
        ({"available": [[1, 1], [1, 1]]}, r"available has shape \(2, 2\); expected \(2,\) or \(2, 1\)"),
        ({"available": [2, 0]}, "available holds numbers other than 0 and 1"),
        ({"available": [0.5, 0.0]}, "available has dtype float64"),
        ({"capacity": [1, -1]}, "capacity holds -1; expected numbers of picks of at least 0"),
        ({"capacity": [1.0, 2.0]}, "capacity has dtype float64"),
        ({"capacity": [1]}, "capacity has length 1"),
        ({"cost": [1.0, 0.0]}, "cost holds 0; expected costs above 0"),
        ({"cost": [1.0, -2.0]}, "cost holds -2; expected costs above 0"),
        ({"cost": [1.0, np.nan]}, r"cost is not finite at 1 \(nan\)"),
        ({"cost": [1.0, 1e200]}, r"cost holds 1e\+200"),
        ({"cost": [1.0]}, "cost has length 1"),
        ({"exclude": [[2, 0]]}, "exclude holds 2; expected conversations between 0 and 1"),
        ({"exclude": [[0, 2]]}, "exclude holds teacher 2; expected teachers between 0 and 1, or -1 for all"),
        ({"exclude": [[0, -2]]}, "exclude holds teacher -2"),
        ({"exclude": [0, 1]}, r"exclude has shape \(2,\); expected \(k, 2\)"),
        ({"exclude": [[0, 1, 2]]}, r"exclude has shape \(1, 3\); expected \(k, 2\)"),
        ({"exclude": [[0.0, 1.0]]}, "exclude has dtype float64"),
        ({"candidates": [[0, -1]]}, "candidates holds -1; expected teachers between 0 and 1"),
        ({"candidates": [[5, 0]]}, "candidates holds 5; expected conversations between 0 and 1"),
        ({"candidates": scipy.sparse.eye(3)}, r"candidates has shape \(3, 3\); expected \(2, 2\)"),
        ({"repeats": 0}, "repeats is 0; expected a whole number of at least 1"),
        ({"repeats": 1.5}, "repeats is 1.5"),
        ({"optimism": -1.0}, "optimism is -1; expected a number of at least 0"),
        ({"optimism": np.nan}, "optimism is nan; expected a finite number"),
        ({"optimism": "a"}, "optimism is 'a'; expected a finite number"),
        ({"method": "fast"}, "method is 'fast'; expected one of 'auto', 'lazy', 'dense'"),
        ({"threads": 0}, "threads is 0; expected a whole number of at least 1"),
        ({"threads": "2"}, "threads is '2'"),
        ({"progress": 3}, r"progress is 3; expected a function of \(done, total\)"),
        ({"backend": "gpu"}, "backend is 'gpu'; expected one of 'auto', 'cpu', 'reference'"),
        ({"backend": "cuda"}, "backend is 'cuda', which this version does not have"),
    ],
)
def test_refused_arguments(change, words):
    with pytest.raises(ValueError, match=words):
        dn.select_batch(np.eye(2), **{**GOOD, **change})


def test_category_beyond_the_rationality_is_refused(backend):
    pool = dn.Pool(np.eye(2), category=[0, 2])
    with pytest.raises(
        ValueError, match=r"rationality has 2 categories \(shape \(1, 2\)\); expected at least 3"
    ):
        dn.select_batch(pool, np.zeros(2), [[1.0, 1.0]], np.eye(2), 1, backend=backend)
    assert len(dn.select_batch(pool, np.zeros(2), [1.0], np.eye(2), 2, backend=backend)) == 2
    with pytest.raises(ValueError, match="rationality has 1 categories"):
        dn.best_teacher([0.0], [1], [[1.0]], backend=backend)


@pytest.mark.parametrize(("backend", "method"), METHODS)
def test_rows_spoilt_behind_the_back_of_the_pool_are_named(backend, method):
    """NaN that was not there when the pool was made neither wins nor loses quietly."""
    p = base()
    x = p.rows().copy()
    pool = dn.Pool(x, p.category)
    for bad in (np.nan, np.inf, 1e200):
        x[7, 2] = bad
        with pytest.raises(ValueError, match="conversation 7"):
            dn.select_batch(pool, p.reward, p.rationality, p.matrix, 5, backend=backend, method=method)


def test_overflow_is_an_error_that_names_the_conversation(backend):
    x = np.ones((5, 2))
    x[3] = 1e200
    pool = dn.Pool(x)
    with pytest.raises(ValueError, match="leverage of conversation 3 is not finite"):
        dn.leverage(pool, np.eye(2), backend=backend)
    with pytest.raises(ValueError, match="margin of conversation 3 is not finite"):
        dn.margin(pool, [1e200, 1e200], backend=backend)
    with pytest.raises(ValueError, match="conversation 3"):
        dn.select_batch(pool, [1.0, 1.0], [1.0], np.eye(2), 2, backend=backend)
    with pytest.raises(ValueError, match="conversation 3"):
        dn.select_batch(pool, [1e200, 1e200], [1.0], np.eye(2), 2, backend=backend)
    with pytest.raises(ValueError, match="conversation 3"):
        dn.information_gain(pool, [0.0, 0.0], [1.0], np.eye(2), [0, 3], backend=backend)
    with pytest.raises(ValueError, match="the information matrix is not finite"):
        dn.information_matrix(pool, 1.0, backend=backend)
    with pytest.raises(ValueError, match="the loss or its gradient is not finite"):
        dn.bradley_terry_loss(pool, np.zeros(5), [1e200, 1e200], 1.0, backend=backend)


@pytest.mark.parametrize(("backend", "method"), METHODS)
@pytest.mark.parametrize("cost", [None, 2.0])
def test_a_gain_that_overflows_is_an_error_that_names_the_conversation(backend, method, cost):
    x = np.ones((5, 2))
    x[3] = 1e120
    with pytest.raises(ValueError, match=r"gain .*of conversation 3"):
        dn.select_batch(
            x,
            np.zeros(2),
            [1e100],
            np.eye(2),
            2,
            cost=None if cost is None else [cost],
            backend=backend,
            method=method,
        )
