"""Best of n: order, bounds and abstention, from their definitions."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import dal_learn.best_of as module
import dal_native as dn
from dal_learn import PessimisticReward, best_of_n, pessimistic_policy


def made(seed=0, counts=(3, 1, 4, 2), d=3, radius=0.7):
    rng = np.random.default_rng(seed)
    offsets = np.concatenate([[0], np.cumsum(counts)])
    x = rng.standard_normal((4 * d, d))
    reward = PessimisticReward(
        rng.standard_normal(d), np.eye(d) + x.T @ x, radius, reference=rng.standard_normal(d)
    )
    return rng.standard_normal((offsets[-1], d)), offsets, reward


def by_definition(phi, offsets, reward, reference):
    """Mean, deviation, bound of every completion, one at a time."""
    rows = []
    for p, (first, last) in enumerate(pairwise(offsets)):
        nu = {"mean": phi[first:last].mean(axis=0), "reward": reward.reference}.get(
            reference if isinstance(reference, str) else ""
        )
        if nu is None:
            nu = phi[first + np.broadcast_to(reference, len(offsets) - 1)[p]]
        for k in range(first, last):
            x = phi[k] - nu
            mean, sd = x @ reward.coef, np.sqrt(x @ np.linalg.solve(reward.information, x))
            rows.append((mean, sd, mean - reward.radius * sd))
    return np.array(rows).T


@settings(max_examples=60)
@given(
    seed=st.integers(0, 10**6),
    counts=st.lists(st.integers(1, 6), min_size=1, max_size=8),
    reference=st.sampled_from(["mean", "reward", 0]),
    by=st.sampled_from(["lower_bound", "mean"]),
    radius=st.sampled_from([0.0, 0.3, 3.0]),
)
def test_everything_is_its_definition(seed, counts, reference, by, radius):
    phi, offsets, reward = made(seed, tuple(counts), radius=radius)
    found = best_of_n(phi, offsets, reward, by=by, reference=reference)
    expected = by_definition(phi, offsets, reward, reference)
    np.testing.assert_allclose(
        [found.mean, found.standard_deviation, found.lower_bound], expected, atol=1e-10
    )
    height = {"lower_bound": found.lower_bound, "mean": found.mean}[by]
    for p, (first, last) in enumerate(pairwise(offsets)):
        order = found.order[first:last]
        assert sorted(order) == list(range(last - first))
        assert (np.diff(height[first:last][order]) <= 0).all()
        assert found.choice[p] == order[0]
        assert found.vouched[p] == (found.lower_bound[first + order[0]] > 0)
    careful = best_of_n(phi, offsets, reward, by=by, reference=reference, abstain=True)
    assert (careful.choice == np.where(found.vouched, found.choice, -1)).all()
    assert (careful.abstained == ~found.vouched).all()
    assert not found.abstained.any()


def test_one_baseline_for_each_prompt():
    phi, offsets, reward = made()
    baseline = np.array([2, 0, 3, 1])
    found = best_of_n(phi, offsets, reward, reference=baseline)
    np.testing.assert_allclose(
        [found.mean, found.standard_deviation, found.lower_bound],
        by_definition(phi, offsets, reward, baseline),
        atol=1e-10,
    )
    assert (found.lower_bound[offsets[:-1] + baseline] == 0.0).all()


def test_a_baseline_is_kept_where_nothing_is_surely_better():
    phi, offsets, reward = made(radius=1e6)
    found = best_of_n(phi, offsets, reward, reference=1 - np.array([0, 1, 0, 0]))
    assert (found.choice == [1, 0, 1, 1]).all()
    assert not found.vouched.any()


def test_nothing_to_choose_from_is_never_vouched_for():
    phi, offsets, reward = made(counts=(1, 1))
    found = best_of_n(phi, offsets, reward, by="mean", abstain=True)
    assert found.choice.tolist() == [-1, -1]
    assert found.mean.tolist() == found.standard_deviation.tolist() == [0.0, 0.0]


def test_equal_completions_go_by_index():
    _, _, reward = made()
    phi = np.repeat(np.random.default_rng(1).standard_normal((2, 3)), 3, axis=0)
    found = best_of_n(phi, [0, 6], reward)
    assert (np.diff(found.order[:3]) == 1).all()
    assert (np.diff(found.order[3:]) == 1).all()


def test_by_a_policy_and_by_the_least_favourable_reward():
    phi, offsets, reward = made(counts=(4, 4, 4, 4))
    policy = pessimistic_policy(
        phi, offsets, reward.coef, reward.information, reward.radius, reference="mean", temperature=0.1
    )
    found = best_of_n(phi, offsets, reward, by=policy)
    assert (found.choice == policy.choice).all()
    worst = reward.with_policy(policy.least_favourable_reward)
    # with a uniform base policy the policy is the softmax of this reward: the same order
    by_reward = best_of_n(phi, offsets, worst, by="least_favourable")
    assert (by_reward.order == found.order).all()


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
@pytest.mark.parametrize("reference", ["mean", "reward", 0])
def test_stored_types_streams_and_small_blocks(tmp_path, monkeypatch, dtype, reference):
    import dal_native.testing as t

    phi, offsets, reward = made(counts=(5, 1, 90, 3))
    reward = PessimisticReward(reward.coef, reward.information, reward.radius)
    stored = t.store(phi, dtype)
    exact = t.as_float64(stored)
    whole = best_of_n(exact, offsets, reward, reference=reference)
    monkeypatch.setattr(module, "_BLOCK_NUMBERS", 20)
    pool = dn.Pool.from_completions(stored, offsets)
    results = [
        best_of_n(stored, offsets, reward, reference=reference),
        best_of_n(pool, None, reward, reference=reference),
    ]
    if dtype != "bfloat16":
        np.save(tmp_path / "phi.npy", stored)
        streamed = dn.Pool.open(tmp_path / "phi.npy", prompt_offsets=offsets, working_memory=1024)
        results.append(best_of_n(streamed, None, reward, reference=reference))
    for found in results:
        for name in ("choice", "order", "mean", "standard_deviation", "lower_bound"):
            assert (getattr(found, name) == getattr(whole, name)).all()


def test_threads_do_not_disturb_each_other():
    phi, offsets, reward = made(counts=(7,) * 50)
    whole = best_of_n(phi, offsets, reward)
    with ThreadPoolExecutor(8) as threads:
        for found in threads.map(lambda _: best_of_n(phi, offsets, reward), range(32)):
            assert (found.lower_bound == whole.lower_bound).all()
            assert (found.order == whole.order).all()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"by": "score"}, "by is 'score'"),
        ({"by": "least_favourable"}, "by is 'least_favourable', but the reward carries none"),
        ({"reference": "median"}, "reference is 'median'"),
        ({"reference": 3}, "reference is 3 in prompt 0, which has 3 completions"),
        ({"reference": [0, 0]}, "reference has length 2; expected 4"),
        ({"reference": 0.5}, "reference has dtype float64; expected integers"),
        ({"prompt_offsets": None}, "prompt_offsets is missing"),
        ({"prompt_offsets": [0, 3, 3, 8, 10]}, "prompt 1 has 0 completions"),
        ({"completions": np.zeros((10, 4))}, "completions have 4 columns; expected 3"),
        ({"completions": np.full((10, 3), np.inf)}, "NaN or infinity, first in row 0"),
        ({"completions": np.resize([[1.7e308], [-1.7e308]], (10, 3))}, "NaN or infinity"),
        (
            {"reward": made(radius=1e308)[2], "completions": np.eye(10, 3) * 1e3},
            "lower bound of row 0 overflows",
        ),
    ],
)
def test_arguments_are_refused_by_name(changes, words):
    phi, offsets, reward = made()
    given_ = {"completions": phi, "prompt_offsets": offsets, "reward": reward, **changes}
    with pytest.raises(ValueError, match=words):
        best_of_n(**given_)


def test_pools_and_policies_that_do_not_fit_are_refused():
    phi, offsets, reward = made()
    with pytest.raises(ValueError, match="prompt_offsets are given twice"):
        best_of_n(dn.Pool.from_completions(phi, offsets), offsets, reward)
    with pytest.raises(ValueError, match="a pool of differences"):
        best_of_n(dn.Pool(phi), None, reward)
    other = pessimistic_policy(phi[:3], [0, 3], reward.coef, reward.information, 1.0)
    with pytest.raises(ValueError, match="by has length 3; expected 10"):
        best_of_n(phi, offsets, reward, by=other)
