"""Batch after batch from one pool: what is kept between batches saves work and never changes a pick."""

import copy
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

import dal_native as dn
from dal_native.testing import KINDS, as_float64, make_problem, oracle_leverage

BACKENDS = ["reference", "cpu"]


def same(a, b):
    assert a.conversation.tolist() == b.conversation.tolist()
    assert a.teacher.tolist() == b.teacher.tolist()
    np.testing.assert_array_equal(a.gain, b.gain)
    # the certificate is the same up to what single-precision bounds leave undecided
    assert a.d_efficiency == pytest.approx(b.d_efficiency, rel=1e-5)


def refit(rng, problem, reward, matrix, how):
    """Another M, theta and beta, as a refit after new answers makes them."""
    d = len(reward)
    x = problem.rows()[rng.integers(0, len(problem.differences), 6)]
    added = (x * rng.uniform(0.01, 0.3, (6, 1))).T @ x
    matrix = {
        "labels": matrix + added,
        "shrunk": 0.7 * matrix + added,
        "anew": np.eye(d) + added,
        "same": matrix,
    }[how]
    reward = reward + 0.3 * rng.standard_normal(d)
    return reward, rng.lognormal(0.0, 0.7, problem.rationality.shape), 0.5 * (matrix + matrix.T)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
def test_rounds_pick_what_single_batches_pick(backend, kind, dtype):
    problem = make_problem(kind, n=300, d=6, m=5, labels=30, dtype_name=dtype, seed=3)
    rng = np.random.default_rng(4)
    selector, pool = dn.Selector(problem.pool()), problem.pool()
    reward, beta, matrix = problem.reward, problem.rationality, problem.matrix
    for how in ["labels", "labels", "shrunk", "same", "anew", "labels"]:
        kept = selector.select(reward, beta, matrix, 7, backend=backend)
        same(kept, dn.select_batch(pool, reward, beta, matrix, 7, backend=backend))
        reward, beta, matrix = refit(rng, problem, reward, matrix, how)


@settings(max_examples=40)
@given(
    seed=st.integers(0, 10**6),
    hows=st.lists(st.sampled_from(["labels", "shrunk", "anew", "same"]), min_size=1, max_size=5),
    n=st.sampled_from([1, 3, 70, 400]),
    d=st.sampled_from([1, 2, 5, 9]),
    optimism=st.sampled_from([0.0, 1.0]),
    use_cost=st.booleans(),
)
def test_options_change_nothing_of_what_is_known(seed, hows, n, d, optimism, use_cost):
    problem = make_problem("heavy_tails", n=n, d=d, m=4, labels=12, dtype_name="float32", seed=seed)
    rng = np.random.default_rng(seed)
    selector = dn.Selector(problem.pool())
    reward, beta, matrix = problem.reward, problem.rationality, problem.matrix
    options = {"optimism": optimism, "cost": rng.uniform(0.5, 2.0, 4) if use_cost else None}
    for how in hows:
        kept = selector.select(reward, beta, matrix, 4, backend="cpu", **options)
        same(kept, dn.select_batch(problem.pool(), reward, beta, matrix, 4, backend="cpu", **options))
        reward, beta, matrix = refit(rng, problem, reward, matrix, how)


def large(kind="power_law"):
    return make_problem(kind, n=6_000, d=24, m=9, labels=200, dtype_name="float32", seed=8)


def test_same_bits_for_any_number_of_threads():
    problem = large()
    seen = []
    for threads in (1, 2, 7, 64):
        selector = dn.Selector(problem.pool())
        rng = np.random.default_rng(1)
        reward, beta, matrix = problem.reward, problem.rationality, problem.matrix
        rounds = []
        for _ in range(3):
            batch = selector.select(reward, beta, matrix, 9, threads=threads, backend="cpu")
            rounds.append(
                (batch.conversation.tobytes(), batch.gain.tobytes(), batch.d_efficiency, str(batch.counters))
            )
            reward, beta, matrix = refit(rng, problem, reward, matrix, "labels")
        seen.append(rounds)
    assert all(rounds == seen[0] for rounds in seen)


# ---------------------------------------------------------------------------------------------- what is kept


def stop(done, total):
    raise RuntimeError("enough")


def started(problem=None, size=6):
    """A selector after one round, with its problem and arguments."""
    problem = problem or large()
    selector = dn.Selector(problem.pool())
    arguments = problem.reward, problem.rationality, problem.matrix, size
    selector.select(*arguments, backend="cpu")
    return selector, problem, arguments


def stage(batch):
    return batch.counters["stages"][0]


@pytest.mark.parametrize(
    "arguments, options, error",
    [
        ({}, {"progress": stop}, RuntimeError),
        ({"M": -np.eye(24)}, {}, np.linalg.LinAlgError),
        ({"M": np.eye(23)}, {}, ValueError),
        ({"reward": np.full(24, np.nan)}, {}, ValueError),
        ({"reward": np.ones(3)}, {}, ValueError),
        ({}, {"threads": 0}, ValueError),
        ({}, {"backend": "numba"}, ValueError),
        ({}, {"exclude": [[10**6, 0]]}, ValueError),
    ],
)
def test_a_call_that_fails_leaves_what_was_known(arguments, options, error):
    selector, _, given_arguments = started()
    first = selector.select(*given_arguments, backend="cpu")
    known = selector._known
    names = dict(zip(("reward", "rationality", "M", "size"), given_arguments, strict=True))
    with pytest.raises(error):
        selector.select(**{**names, **arguments}, **{"backend": "cpu", **options})
    assert selector._known is known
    again = selector.select(*given_arguments, backend="cpu")
    assert stage(again) == "warm"
    same(again, first)


def test_a_first_call_that_fails_leaves_nothing():
    problem = large()
    selector = dn.Selector(problem.pool())
    arguments = problem.reward, problem.rationality, problem.matrix, 5
    with pytest.raises(RuntimeError, match="enough"):
        selector.select(*arguments, progress=stop)
    assert selector._known is None
    same(selector.select(*arguments), dn.select_batch(problem.pool(), *arguments))


@pytest.mark.parametrize(
    "options", [{"backend": "reference"}, {"backend": "cpu", "method": "dense"}, {"size": 0}]
)
def test_rounds_that_leave_no_bounds_keep_the_older_ones(options):
    selector, problem, (reward, beta, matrix, size) = started()
    known = selector._known
    between = 1.5 * matrix
    batch = selector.select(reward, beta, between, **{"size": 3, **options})
    same(batch, dn.select_batch(problem.pool(), reward, beta, between, **{"size": 3, **options}))
    assert selector._known is known
    later = matrix + 0.01 * np.eye(24)
    batch = selector.select(reward, beta, later, size, backend="cpu")
    assert stage(batch) == "warm"
    same(batch, dn.select_batch(problem.pool(), reward, beta, later, size, backend="cpu"))


def test_a_round_that_looks_at_all_rows_replaces_what_was_known():
    selector, problem, (reward, beta, matrix, size) = started()
    selector.select(reward, beta, 1.1 * matrix, size, backend="cpu")
    before = selector._known
    assert before.since is not None
    other = problem.matrix.copy()
    other[0] *= 1e-3
    other[:, 0] *= 1e-3  # one direction nearly forgotten: the old bounds say little
    batch = selector.select(reward, beta, other, size, backend="cpu")
    assert stage(batch) != "warm"
    assert selector._known.since is None
    np.testing.assert_array_equal(selector._known.looked.at.matrix, other)


def test_rounds_that_go_to_and_fro_lose_one_ratio_only():
    """A chain of ratios loses at every link; bounds kept with the M they were found at lose once."""
    selector, _, (reward, beta, matrix, size) = started()
    looked, rescored = selector._known.looked, []
    for factor in (1.0, *[0.9, 1.0] * 6):  # a chain would end at 0.53
        batch = selector.select(reward, beta, factor * matrix, size, backend="cpu")
        assert stage(batch) == "warm"
        rescored.append(batch.counters["rows_rescored"])
    assert selector._known.looked is looked
    assert rescored[-1] == rescored[0]
    assert (selector._known.since.leverage <= looked.leverage * 1.001).all()


@settings(max_examples=30)
@given(
    seed=st.integers(0, 10**6),
    steps=st.lists(
        st.tuples(
            st.sampled_from(["labels", "shrunk", "anew", "same"]),
            st.sampled_from(["cpu", "cpu", "cpu", "reference"]),
            st.sampled_from(["auto", "lazy", "dense"]),
            st.sampled_from(
                [None, {"optimism": 1.0}, {"repeats": 2}, {"capacity": [2, 3, 1, 1]}, {"fails": True}]
            ),
            st.sampled_from([1, 2, 5]),
        ),
        min_size=2,
        max_size=7,
    ),
)
def test_any_sequence_of_rounds_picks_what_single_batches_pick(seed, steps):
    """Backends, methods, threads, options, failures and refits in any order."""
    problem = make_problem("power_law", n=600, d=12, m=4, labels=60, dtype_name="float32", seed=seed)
    rng = np.random.default_rng(seed)
    selector = dn.Selector(problem.pool())
    reward, beta, matrix = problem.reward, problem.rationality, problem.matrix
    for how, backend, method, options, threads in steps:
        options = {"backend": backend, "method": method, "threads": threads, **(options or {})}
        if options.pop("fails", False):
            with pytest.raises(RuntimeError, match="enough"):
                selector.select(reward, beta, matrix, 4, progress=stop, **options)
        else:
            kept = selector.select(reward, beta, matrix, 4, **options)
            same(kept, dn.select_batch(problem.pool(), reward, beta, matrix, 4, **options))
        reward, beta, matrix = refit(rng, problem, reward, matrix, how)


def test_two_threads_share_a_selector():
    """Rounds at matrices far apart, at the same time: one thread's bounds never serve at the other's M."""
    problem = large()
    selector, pool = dn.Selector(problem.pool()), problem.pool()
    reward, beta = problem.reward, problem.rationality
    matrices = [problem.matrix, 50.0 * problem.matrix, problem.matrix + 30.0 * np.diag(np.arange(24.0))]
    expected = [dn.select_batch(pool, reward, beta, M, 8, backend="cpu") for M in matrices]
    barrier = threading.Barrier(3)

    def rounds(start):
        for k in range(9):
            barrier.wait(timeout=60)
            which = (start + k) % 3
            batch = selector.select(reward, beta, matrices[which], 8, backend="cpu", threads=1)
            same(batch, expected[which])
            known = selector._known  # whole, whoever left it
            for bounds in (known.looked, known.since or known.looked):
                h = dn.leverage(pool, bounds.at.matrix)
                assert (bounds.leverage * (1 + 1e-12) >= h).all()

    with ThreadPoolExecutor(3) as threads:
        for done in [threads.submit(rounds, start) for start in range(3)]:
            done.result()


def test_a_round_that_ends_after_the_pool_was_replaced_leaves_nothing():
    selector, problem, arguments = started()
    rows = problem.differences[::-1].copy()

    def replace(done, total):
        selector.pool = dn.Pool(rows, problem.category[::-1])

    batch = selector.select(*arguments[:2], 0.01 * arguments[2], 6, backend="cpu", progress=replace)
    same(batch, dn.select_batch(problem.pool(), *arguments[:2], 0.01 * arguments[2], 6, backend="cpu"))
    pool = dn.Pool(rows, problem.category[::-1])
    same(selector.select(*arguments, backend="cpu"), dn.select_batch(pool, *arguments, backend="cpu"))


@pytest.mark.parametrize("through", [copy.copy, copy.deepcopy, lambda s: pickle.loads(pickle.dumps(s))])
def test_copies_carry_what_is_known(through):
    selector, problem, arguments = started()
    twin = through(selector)
    reward, beta, matrix, size = arguments
    expected = dn.select_batch(problem.pool(), reward, beta, 1.1 * matrix, size, backend="cpu")
    for each in (twin, selector):
        batch = each.select(reward, beta, 1.1 * matrix, size, backend="cpu")
        assert stage(batch) == "warm"
        same(batch, expected)


def test_an_information_matrix_that_grows_in_place_is_no_stale_state():
    problem = large()
    selector, M = dn.Selector(problem.pool()), dn.InformationMatrix(problem.matrix)
    for _ in range(3):
        batch = selector.select(problem.reward, problem.rationality, M, 5, backend="cpu")
        expected = dn.select_batch(
            problem.pool(), problem.reward, problem.rationality, M.matrix.copy(), 5, backend="cpu"
        )
        same(batch, expected)
        for i in batch.conversation:
            M.add(problem.rows()[i], 0.2)


# ----------------------------------------------------------------------------------------- another pool


@pytest.mark.parametrize("dtype_name", ["float64", "float32", "float16", "bfloat16"])
def test_conversations_dropped_added_and_reordered(dtype_name):
    problem = make_problem("power_law", n=6_000, d=24, m=9, labels=200, dtype_name=dtype_name, seed=8)
    selector, _, (reward, beta, matrix, size) = started(problem)
    rng = np.random.default_rng(0)
    more = make_problem("power_law", n=300, d=24, labels=0, dtype_name=dtype_name, seed=9).differences
    previous = np.concatenate([rng.permutation(6_000)[:5_500], np.full(300, -1)])
    rows = np.concatenate([problem.differences[previous[:5_500]], more])
    category = np.concatenate([problem.category[previous[:5_500]], rng.integers(0, 3, 300)])
    pool = dn.Pool(rows, category)
    selector.replace_pool(pool, previous)
    assert selector.pool is pool
    h = oracle_leverage(as_float64(rows), selector._known.looked.at.matrix)
    assert (selector._known.looked.leverage >= h).all()
    assert (selector._known.looked.leverage[5_500:] <= h[5_500:] * (1 + 1e-6)).all()
    batch = selector.select(reward, beta, 1.02 * matrix, size, backend="cpu")
    assert stage(batch) == "warm"
    same(batch, dn.select_batch(pool, reward, beta, 1.02 * matrix, size, backend="cpu"))


def test_many_new_conversations_are_left_to_the_next_round():
    selector, problem, arguments = started()
    rows = np.concatenate([problem.differences, problem.differences[:2_000] * np.float32(1.5)])
    selector.replace_pool(rows)
    assert np.isinf(selector._known.looked.leverage[6_000:]).all()
    assert np.isfinite(selector._known.looked.leverage[:6_000]).all()
    same(
        selector.select(*arguments[:1], beta_of_one(arguments[1]), *arguments[2:]),
        dn.select_batch(rows, arguments[0], beta_of_one(arguments[1]), *arguments[2:]),
    )


def beta_of_one(rationality):
    return rationality[:, 0]


def test_appending_and_cutting_off_need_no_indices():
    selector, problem, arguments = started()
    known = selector._known.looked.leverage
    selector.replace_pool(dn.Pool(problem.differences[:5_000], problem.category[:5_000]))
    np.testing.assert_array_equal(selector._known.looked.leverage, known[:5_000])
    selector.replace_pool(dn.Pool(problem.differences[:5_100], problem.category[:5_100]))
    np.testing.assert_array_equal(selector._known.looked.leverage[:5_000], known[:5_000])
    batch = selector.select(*arguments, backend="cpu")
    assert stage(batch) == "warm"
    pool = dn.Pool(problem.differences[:5_100], problem.category[:5_100])
    same(batch, dn.select_batch(pool, *arguments, backend="cpu"))


@pytest.mark.parametrize(
    "wide, narrow", [("float64", "float32"), ("float32", "float16"), ("float32", "bfloat16")]
)
def test_another_storage_type_is_the_same_where_values_are(wide, narrow):
    problem = make_problem("power_law", n=6_000, d=24, m=9, labels=200, dtype_name=narrow, seed=8)
    selector, _, arguments = started(problem)
    leverage = selector._known.looked.leverage
    stored = as_float64(problem.differences).astype(wide)
    selector.replace_pool(dn.Pool(stored, problem.category))
    np.testing.assert_array_equal(selector._known.looked.leverage, leverage)
    assert stage(selector.select(*arguments, backend="cpu")) == "warm"
    stored[17, 3] = np.nextafter(stored[17, 3], 10, dtype=wide)  # no longer what the narrow type held
    with pytest.raises(ValueError, match="conversation 17 differs from conversation 17 of the pool so far"):
        dn.Selector(problem.pool()).replace_pool(dn.Pool(stored, problem.category))


def test_minus_zero_is_zero():
    rows = np.ones((20, 2), np.float32)
    rows[7, 1] = 0.0
    selector = dn.Selector(rows)
    selector.select([1.0, 1.0], [1.0], np.eye(2), 1, backend="cpu")
    signed = rows.copy()
    signed[7, 1] = -0.0
    selector.replace_pool(signed)
    assert np.isfinite(selector._known.looked.leverage).all()


def test_rows_that_are_not_what_they_are_said_to_be_are_refused():
    selector, problem, arguments = started()
    known, pool = selector._known, selector.pool
    changed = problem.differences.copy()
    changed[4_321, 23] += 1
    changed[5_000, 0] += 1
    for wrong, index, message in [
        (changed, None, "conversation 4321 differs from conversation 4321"),
        (problem.differences[1:], None, "conversation 0 differs from conversation 0"),
        (problem.differences[:10], np.arange(1, 11), "conversation 0 differs from conversation 1"),
        (problem.differences, np.full(6_000, 6_000), "previous holds 6000"),
        (problem.differences, np.full(6_000, -2), "previous holds -2"),
        (problem.differences, np.arange(5_999), "previous"),
        (problem.differences[:, :23], None, "pool has 23 features; expected 24"),
        (problem.differences, np.zeros(6_000), "previous"),
    ]:
        with pytest.raises(ValueError, match=message):
            selector.replace_pool(wrong, index)
        assert selector._known is known
        assert selector.pool is pool
    assert stage(selector.select(*arguments, backend="cpu")) == "warm"


def test_a_pool_can_be_replaced_before_anything_is_known():
    problem = large()
    selector = dn.Selector(np.ones((2, 24)))
    selector.replace_pool(problem.pool(), np.full(6_000, -1))
    assert selector._known is None
    arguments = problem.reward, problem.rationality, problem.matrix, 4
    same(selector.select(*arguments), dn.select_batch(problem.pool(), *arguments))
    selector.replace_pool(np.zeros((0, 24)), [])
    assert len(selector.select(*arguments)) == 0
    selector.replace_pool(problem.pool(), np.full(6_000, -1))
    same(selector.select(*arguments), dn.select_batch(problem.pool(), *arguments))


def completions(seed=0, prompts=260, d=16):
    rng = np.random.default_rng(seed)
    count = rng.integers(1, 9, prompts)
    rows = (rng.standard_normal((count.sum(), d)) * np.arange(1, d + 1) ** -0.6).astype(np.float32)
    return rows, np.concatenate([[0], np.cumsum(count)])


def test_prompts_dropped_and_added_to_a_pool_of_completions():
    rows, offsets = completions()
    pool = dn.Pool.from_completions(rows, offsets)
    selector = dn.Selector(pool)
    rng = np.random.default_rng(1)
    reward, beta, matrix = rng.standard_normal(16), rng.lognormal(0, 0.5, 5), np.eye(16) * 3.0
    selector.select(reward, beta, matrix, 6, backend="cpu")
    # every third prompt goes, two come
    keep = np.flatnonzero(np.arange(260) % 3)
    more = rng.standard_normal((7, 16)).astype(np.float32)
    parts = [rows[offsets[p] : offsets[p + 1]] for p in keep]
    new = dn.Pool.from_completions(
        np.concatenate([*parts, more]),
        np.cumsum([0, *map(len, parts), 4, 3]),
    )
    pairs = [np.arange(pool.pair_offsets[p], pool.pair_offsets[p + 1]) for p in keep]
    previous = np.concatenate([*pairs, np.full(9, -1)])
    selector.replace_pool(new, previous)
    h = oracle_leverage(new.block(0, len(new)), selector._known.looked.at.matrix)
    assert (selector._known.looked.leverage >= h).all()
    arguments = reward, beta, 1.01 * matrix, 6
    same(selector.select(*arguments, backend="cpu"), dn.select_batch(new, *arguments, backend="cpu"))
    previous[40] = previous[41]
    with pytest.raises(ValueError, match="conversation 40 differs"):
        dn.Selector(pool).replace_pool(new, previous)
    # the same differences, stored as such
    differences = new.block(0, len(new))
    selector.replace_pool(differences)
    same(selector.select(*arguments, backend="cpu"), dn.select_batch(differences, *arguments, backend="cpu"))


@pytest.mark.parametrize("name", ["pool.npy", "pool.safetensors"])
def test_pools_that_stay_in_files(tmp_path, name):
    """Resident to streamed, streamed to a streamed selection of it, and back; completions too."""
    selector, problem, arguments = started()

    def streamed(rows, name, **options):
        if name.endswith(".npy"):
            np.save(tmp_path / name, rows)
        else:
            safetensors.numpy.save_file({"differences": rows}, tmp_path / name)
        return dn.Pool.open(tmp_path / name, working_memory=1 << 20, **options)

    pool = streamed(problem.differences, name, category=problem.category)
    assert pool.rows is None
    selector.replace_pool(pool)
    batch = selector.select(*arguments, backend="cpu")
    assert stage(batch) == "warm"
    same(batch, dn.select_batch(problem.pool(), *arguments, backend="cpu"))
    index = np.random.default_rng(0).permutation(6_000)[:4_000]
    fewer = streamed(problem.differences[index], "fewer" + name, category=problem.category[index])
    selector.replace_pool(fewer, index)
    batch = selector.select(*arguments, backend="cpu")
    assert stage(batch) == "warm"
    same(batch, dn.select_batch(fewer, *arguments, backend="cpu"))
    with pytest.raises(ValueError, match="conversation 0 differs"):
        selector.replace_pool(pool)
    rows, offsets = completions()
    there = streamed(rows, "completions" + name, prompt_offsets=offsets)
    selector = dn.Selector(dn.Pool.from_completions(rows, offsets))
    rounds = np.ones(16), [1.0, 0.5], np.eye(16), 4
    selector.select(*rounds, backend="cpu")
    known = selector._known.looked.leverage
    selector.replace_pool(there)
    np.testing.assert_array_equal(selector._known.looked.leverage, known)


@settings(max_examples=25)
@given(
    seed=st.integers(0, 10**6),
    steps=st.lists(st.sampled_from(["drop", "add", "shuffle", "store"]), max_size=5),
)
def test_any_sequence_of_pools(seed, steps):
    rng = np.random.default_rng(seed)
    problem = make_problem("clustered", n=700, d=10, m=4, labels=40, dtype_name="float16", seed=seed)
    rows = problem.rows().astype(np.float32)
    selector = dn.Selector(rows)
    reward, beta, matrix = problem.reward, problem.rationality[:, 0], problem.matrix
    for step in ["store", *steps]:
        index = np.arange(len(rows))
        if step == "drop":
            index = rng.choice(index, len(index) - 50, replace=False)
        elif step == "add":
            index = np.concatenate([index, np.full(30, -1)])
        elif step == "shuffle":
            index = rng.permutation(index)
        fresh = rng.standard_normal((int((index < 0).sum()), 10)).astype(np.float16)
        rows = np.concatenate([rows[index[index >= 0]], fresh]).astype(
            np.float64 if step == "store" else np.float32
        )
        selector.replace_pool(rows, index)
        batch = selector.select(reward, beta, matrix, 5, backend="cpu")
        same(batch, dn.select_batch(rows, reward, beta, matrix, 5, backend="cpu"))
        reward, _, matrix = refit(rng, problem, reward, matrix, "labels")


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_pool_without_conversations_stays_without_them(backend):
    for pool in (dn.Pool(np.zeros((0, 3))), dn.Pool.from_completions(np.eye(3), [0, 1, 2, 3])):
        selector = dn.Selector(pool)
        for ridge in (1.0, 2.0, 1.0):
            batch = selector.select(np.ones(3), [1.0], ridge * np.eye(3), 2, backend=backend)
            assert len(batch) == 0
            assert batch.counters["exhausted"]
