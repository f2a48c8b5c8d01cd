"""The policy's summary: radius, figures, rows, and the files of the command line."""

from __future__ import annotations

import numpy as np
import pytest

from dal_learn import Conversations, RewardModel, Texts, best_of_n, confidence_radius, pessimistic_policy
from dal_learn.choices import REFERENCES, choices_of, ranked_rows


def make_conversations(texts=False):
    rng = np.random.default_rng(3)
    phi = rng.standard_normal((24, 3))
    names = None
    if texts:
        names = Texts(
            [f"prompt {p}" for p in range(8)],
            [f"answer {k}" for k in range(24)],
            [f"c{k}" for k in range(24)],
        )
    return Conversations.from_completions(phi, np.arange(9) * 3, texts=names)


def fitted(c, ridge=2.0):
    y = (c.differences() @ np.ones(c.d) > 0).astype(float)
    return RewardModel(ridge=ridge).fit(c.differences(), y)


def test_the_radius_counts_the_ridges_bias():
    c = make_conversations()
    y = (c.differences() @ np.ones(3) > 0).astype(float)
    model = RewardModel(ridge=2.0).fit(c.differences(), y)
    chi = confidence_radius(3, 0.1)
    summary = choices_of(c, model).summary
    expected = np.sqrt(model.coef_ @ model.coef_ + np.trace(model.coef_covariance()))
    assert summary["reward_norm"] == pytest.approx(expected)
    assert summary["radius"] == pytest.approx(chi + np.sqrt(2.0) * expected)
    assert choices_of(c, model, reward_norm=0.0).summary["radius"] == pytest.approx(chi)
    by_hand = choices_of(c, model, radius=1.5).summary
    assert (by_hand["radius"], by_hand["reward_norm"], by_hand["delta"]) == (1.5, None, None)
    with pytest.raises(ValueError, match="reward_norm is -1"):
        choices_of(c, model, reward_norm=-1.0)


def test_the_radius_covers_a_reward_longer_than_the_prior_expects():
    """Without the second term the truth is missed more often than delta says."""
    inside = {None: 0, 0.0: 0}
    for seed in range(40):
        rng = np.random.default_rng(seed)
        theta = rng.standard_normal(6)
        theta *= 4 / np.linalg.norm(theta)
        phi = rng.standard_normal((60, 6))
        c = Conversations.from_completions(phi, np.arange(31) * 2)
        y = (rng.random(c.n) < 1 / (1 + np.exp(-(c.differences() @ theta)))).astype(float)
        model = RewardModel().fit(c.differences(), y)
        away = theta - model.coef_
        for norm in inside:
            radius = choices_of(c, model, reward_norm=norm).summary["radius"]
            inside[norm] += np.sqrt(away @ model.information_ @ away) <= radius
    assert inside[None] >= 36 and inside[0.0] <= 32


@pytest.mark.parametrize("reference", ["mean", "first", "none"])
@pytest.mark.parametrize("temperature", [0.0, 0.2])
def test_the_summary_is_that_of_the_solvers(reference, temperature):
    c = make_conversations(texts=True)
    model = fitted(c)
    found = choices_of(c, model, radius=0.6, reference=reference, temperature=temperature, encoder="abc")
    phi, offsets = c.completions, c.prompt_offsets
    first = np.zeros(24)
    first[::3] = 1.0
    nu = {"mean": phi.reshape(8, 3, 3).mean(axis=(0, 1)), "first": phi[::3].mean(axis=0), "none": np.zeros(3)}
    np.testing.assert_allclose(found.reward.reference, nu[reference], atol=1e-12)
    policy = pessimistic_policy(
        phi, offsets, model.coef_, model.information_, 0.6, reference=nu[reference], temperature=temperature
    )
    assert found.summary["pessimistic"]["lower_bound"] == pytest.approx(policy.lower_bound, abs=2e-4)
    assert (found.reward.least_favourable_reward is None) == (temperature == 0.0)
    if temperature > 0:
        worst = found.reward.least_favourable_reward
        np.testing.assert_allclose(worst, policy.least_favourable_reward, atol=0.02)
    ranked = best_of_n(phi, offsets, found.reward, reference=REFERENCES[reference][0])
    rows = found.rows
    assert [row["choice_id"] for row in rows] == [f"c{3 * p + rows[p]['choice']}" for p in range(8)]
    at = [3 * p + rows[p]["choice"] for p in range(8)]
    assert [row["lower_bound"] for row in rows] == ranked.lower_bound[at].tolist()
    assert found.summary["prompts_vouched_for"] == (ranked.lower_bound[at] > 0).sum()
    assert found.summary["prompts_where_choices_differ"] == sum(
        row["choice"] != row["greedy_choice"] for row in rows
    )
    greedy = [3 * p + rows[p]["greedy_choice"] for p in range(8)]
    listed = found.summary["most_uncertain"]
    assert [row["standard_deviation"] for row in listed] == sorted(
        ranked.standard_deviation[greedy].tolist(), reverse=True
    )
    assert listed[0]["text"] == f"prompt {listed[0]['prompt']}"
    drawn = found.summary["drawn"]
    np.testing.assert_allclose(drawn["greedy"]["estimate"], ranked.mean[greedy], atol=1e-12)
    np.testing.assert_allclose(drawn["greedy"]["lower_bound"], ranked.lower_bound[greedy], atol=1e-12)
    if temperature > 0:  # a mixture in every prompt, close to the solver's at a smaller tolerance
        mixed = (policy.probability * ranked.mean).reshape(8, 3).sum(axis=1)
        np.testing.assert_allclose(drawn["pessimistic"]["estimate"], mixed, atol=0.05)
    assert found.reward.encoder == "abc"


def test_a_long_list_of_prompts_is_thinned_for_the_figure():
    phi = np.random.default_rng(0).standard_normal((2000, 2))
    c = Conversations.from_completions(phi, np.arange(1001) * 2)
    found = choices_of(c, fitted(c), radius=1.0)
    assert len(found.summary["drawn"]["greedy"]["estimate"]) == 400
    assert len(found.summary["most_uncertain"]) == 10
    assert len(found.rows) == 1000


def test_differences_alone_have_no_policy():
    c = Conversations.from_differences(np.eye(3))
    assert choices_of(c, RewardModel().fit(np.eye(3), [1, 0, 1])) is None


def test_ranked_rows_are_in_order():
    c = make_conversations(texts=True)
    found = choices_of(c, fitted(c), radius=1.0)
    ranked = best_of_n(c.completions, c.prompt_offsets, found.reward, abstain=True)
    rows = ranked_rows(c, ranked)
    for p, row in enumerate(rows):
        assert row["lower_bound"] == sorted(row["lower_bound"], reverse=True)
        assert row["ids"] == [f"c{3 * p + k}" for k in row["order"]]
        assert (row["choice"] is None) == (not row["vouched"]) == (row["lower_bound"][0] <= 0)
