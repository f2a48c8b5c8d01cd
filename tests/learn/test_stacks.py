"""The faces that training stacks call, in the way that each stack calls them."""

import functools
import inspect
import pickle
import threading

import numpy as np
import pytest

from dal_learn.encoders import HashingEncoder, feature_fingerprint
from dal_learn.integrations.scorer import RewardScorer
from dal_learn.integrations.trl_reward import TRLReward
from dal_learn.pessimistic_reward import PessimisticReward

D = 16
WORDS = ["yes", "no", "perhaps", "a longer answer"]


def made_reward(text="response"):
    rng = np.random.default_rng(7)
    seen = rng.standard_normal((2 * D, D))
    name = feature_fingerprint(HashingEncoder(D), text)
    return PessimisticReward(rng.standard_normal(D), np.eye(D) + seen.T @ seen, 1.0, encoder=name)


@pytest.fixture
def scorer():
    return RewardScorer(made_reward(), HashingEncoder(D))


@pytest.fixture
def reward_file(tmp_path):
    path = tmp_path / "pessimistic.safetensors"
    made_reward().save(path)
    return path


# --------------------------------------------------------------------------------------------------- TRL


class Trainer:
    """The calling sequence of GRPOTrainer._calculate_rewards (TRL 1.16), torch left out."""

    def __init__(self, function):
        while isinstance(function, functools.partial):
            function = function.func
        self.name = getattr(function, "__name__", type(function).__name__)
        assert not inspect.iscoroutinefunction(function)
        assert not inspect.iscoroutinefunction(function.__call__)
        self.function, self.extra, self.metrics = function, {}, {}

    def rewards(self, prompts, completions, **columns):
        got = self.function(
            prompts=prompts,
            completions=completions,
            completion_ids=[[1, 2]] * len(prompts),
            **columns,
            trainer_state=object(),
            log_extra=lambda column, values: self.extra.setdefault(column, []).extend(values),
            log_metric=lambda name, value: self.metrics.setdefault(name, []).append(value),
            environments=None,
        )
        got = [reward if reward is not None else np.nan for reward in got]
        assert len(got) == len(prompts)
        return np.array(got, np.float32)


def test_trl_standard_form(scorer):
    trainer = Trainer(TRLReward(scorer))
    got = trainer.rewards(["?"] * 5, [*WORDS, ""], solution=["x"] * 5, category=[0] * 5)
    expected = scorer.rewards(["?"] * 4, WORDS)
    assert np.array_equal(got[:4], np.float32(expected)) and np.isnan(got[4])
    assert trainer.name == "dal_lower_bound"
    estimates = scorer.estimates(["?"] * 4, WORDS)
    assert trainer.extra["dal_lower_bound/estimate"] == [*(x.mean for x in estimates), None]
    deviations = [x.standard_deviation for x in estimates]
    assert trainer.extra["dal_lower_bound/standard_deviation"] == [*deviations, None]
    assert trainer.metrics["dal_lower_bound/unscored"] == [1.0]
    assert trainer.metrics["dal_lower_bound/standard_deviation"] == [pytest.approx(np.mean(deviations))]


def test_trl_conversational_form(scorer):
    prompts = [[{"role": "system", "content": "Be brief."}, {"role": "user", "content": "?"}]] * 4
    completions = [[{"role": "assistant", "content": words}] for words in WORDS]
    assert TRLReward(scorer)(prompts=prompts, completions=completions) == scorer.rewards(["?"] * 4, WORDS)


def test_trl_metrics_have_the_same_keys_whatever_the_batch_holds(scorer):
    keys = set()
    for completions in (WORDS, ["", ""], []):
        trainer = Trainer(TRLReward(scorer, name="mine"))
        trainer.rewards(["?"] * len(completions), completions)
        assert all(np.isfinite(value).all() for value in trainer.metrics.values())
        keys.add((tuple(trainer.metrics), tuple(trainer.extra)))
    assert len(keys) == 1
    assert all(name.startswith("mine/") for name in keys.pop()[0])


def test_trl_failures_are_raised_and_lengths_are_checked(scorer):
    function = TRLReward(scorer)
    with pytest.raises(ValueError, match="prompts has length 1; expected 2"):
        function(prompts=["?"], completions=["a", "b"])
    with pytest.raises(TypeError):
        function(["?"], ["a"])
    with pytest.raises(ValueError, match="expected a RewardScorer"):
        TRLReward(None)
    scorer.encoder.encode = None
    with pytest.raises(TypeError):
        function(prompts=["?"], completions=["a"])


def test_trl_from_a_worker_thread_and_pickled(scorer):
    function = TRLReward(scorer, name="mine")
    other = pickle.loads(pickle.dumps(function))
    assert other.__name__ == "mine"
    found = []

    def ask():
        found.append(function(prompts=["?"] * 4, completions=WORDS))

    thread = threading.Thread(target=ask)
    thread.start()
    thread.join()
    assert found == [other(prompts=["?"] * 4, completions=WORDS)]
