"""Batch after batch from one pool: what is kept between batches saves work and never changes a pick."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import dal_native as dn
from dal_native.testing import KINDS, as_float64, make_problem

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


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    hows=st.lists(st.sampled_from(["labels", "shrunk", "anew", "same"]), min_size=1, max_size=5),
    n=st.sampled_from([1, 3, 70, 400]),
    d=st.sampled_from([1, 2, 5, 9]),
    optimism=st.sampled_from([0.0, 1.0]),
    use_cost=st.booleans(),
)
def test_kept_bounds_are_bounds(seed, hows, n, d, optimism, use_cost):
    problem = make_problem("heavy_tails", n=n, d=d, m=4, labels=12, dtype_name="float32", seed=seed)
    rng = np.random.default_rng(seed)
    selector = dn.Selector(problem.pool())
    reward, beta, matrix = problem.reward, problem.rationality, problem.matrix
    options = {"optimism": optimism, "cost": rng.uniform(0.5, 2.0, 4) if use_cost else None}
    for how in hows:
        kept = selector.select(reward, beta, matrix, 4, backend="cpu", **options)
        same(kept, dn.select_batch(problem.pool(), reward, beta, matrix, 4, backend="cpu", **options))
        h = dn.leverage(as_float64(problem.differences), matrix)
        assert (selector._known[0].astype(float) >= h * (1 - 1e-12)).all()
        reward, beta, matrix = refit(rng, problem, reward, matrix, how)


def large(kind="power_law"):
    return make_problem(kind, n=6_000, d=24, m=9, labels=200, dtype_name="float32", seed=8)


@pytest.mark.parametrize("kind", ["power_law", "isotropic", "heavy_tails", "clustered"])
def test_screened_and_warm_routes_are_taken_and_exact(kind):
    problem = large(kind)
    rng = np.random.default_rng(1)
    selector = dn.Selector(problem.pool())
    reward, beta, matrix = problem.reward, problem.rationality, problem.matrix
    stages = []
    for _ in range(4):
        kept = selector.select(reward, beta, matrix, 12, backend="cpu")
        dense = dn.select_batch(problem.pool(), reward, beta, matrix, 12, backend="cpu", method="dense")
        assert kept.conversation.tolist() == dense.conversation.tolist()
        assert kept.teacher.tolist() == dense.teacher.tolist()
        stages.append(kept.counters["stages"][0])
        reward, beta, matrix = refit(rng, problem, reward, matrix, "labels")
    assert stages[1:] == ["warm"] * 3, stages


def test_screening_is_taken_where_it_pays():
    p = make_problem("power_law", n=9_000, d=96, m=9, labels=150, dtype_name="float32", seed=8)
    batch = dn.select_batch(p.pool(), p.reward, p.rationality, p.matrix, 12, backend="cpu")
    assert batch.counters["stages"][0] == "screened"
    assert batch.counters["directions"] > 0
    assert batch.counters["rows_rescored"] < len(p.differences) / 2


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


def test_a_stopped_batch_changes_nothing_that_is_picked_later():
    problem = large()
    selector = dn.Selector(problem.pool())
    arguments = problem.reward, problem.rationality, problem.matrix, 5
    first = selector.select(*arguments)

    def stop(done, total):
        raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        selector.select(*arguments, progress=stop)
    same(selector.select(*arguments), first)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_pool_without_conversations_stays_without_them(backend):
    for pool in (dn.Pool(np.zeros((0, 3))), dn.Pool.from_completions(np.eye(3), [0, 1, 2, 3])):
        selector = dn.Selector(pool)
        for ridge in (1.0, 2.0, 1.0):
            batch = selector.select(np.ones(3), [1.0], ridge * np.eye(3), 2, backend=backend)
            assert len(batch) == 0
            assert batch.counters["exhausted"]
