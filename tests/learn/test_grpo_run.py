"""The real run: TRL trains a tiny model made on the spot on the plain and on the pessimistic reward."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="extra 'trl' is not installed")
for needed in ("transformers", "datasets", "accelerate", "trl"):
    pytest.importorskip(needed, reason="extra 'trl' is not installed")

from dal_learn import PessimisticReward  # noqa: E402
from dal_learn.encoders import get_encoder  # noqa: E402
from dal_learn.integrations.reward_directory import save_reward_model_directory  # noqa: E402
from dal_learn.integrations.scorer import RewardScorer  # noqa: E402
from dal_learn.integrations.trl_reward import TRLReward  # noqa: E402

SCRIPT = Path(__file__).resolve().parents[2] / "docs" / "examples" / "train_grpo.py"
pytestmark = [
    # TRL 1.16 sets an option by the name that transformers 5.23 has deprecated
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated:FutureWarning"),
]


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("train_grpo", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["train_grpo"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules["train_grpo"]


@pytest.fixture(autouse=True)
def one_thread_and_no_network(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")  # for what is started from here
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def problem(example):
    words = example.tiny_words()
    return words, *example.tiny_reward(words)


class Recorder(TRLReward):
    """The reward function, which remembers what it was handed and what it gave."""

    def __init__(self, scorer):
        super().__init__(scorer)
        self.calls = []

    def __call__(self, **given):
        answers = super().__call__(**given)
        self.calls.append((given, answers))
        return answers


def samples(example, problem, model, tokenizer, options):
    words, reward, encoder = problem
    prompts = [row["prompt"] for row in example.tiny_prompts(words)]
    scorer = RewardScorer(reward, encoder)
    return example.summary(scorer, *example.sample(model, tokenizer, prompts, options))


@pytest.mark.parametrize(
    ("trainer", "kind"), [("grpo", "mean"), ("grpo", "lower_bound"), ("rloo", "lower_bound")]
)
def test_the_policy_moves_towards_the_reward(example, problem, tmp_path, trainer, kind):
    words, reward, encoder = problem
    options = example.Options(trainer=trainer, steps=12)
    model, tokenizer = example.tiny_model(words)
    recorder = Recorder(RewardScorer(reward, encoder, kind=kind))
    before = samples(example, problem, model, tokenizer, options)
    trained = example.train(
        model, tokenizer, example.tiny_prompts(words), recorder, options, os.fspath(tmp_path)
    )
    after = samples(example, problem, model, tokenizer, options)

    # what the reward function was handed, call after call
    assert len(recorder.calls) == options.steps
    for given, answers in recorder.calls:
        prompts, completions = given["prompts"], given["completions"]
        assert (
            len(prompts) == len(completions) == len(given["completion_ids"]) == len(answers) == options.batch
        )
        assert {*given} >= {"prompts", "completions", "completion_ids", "trainer_state", "number"}
        assert all(
            isinstance(text, str) and set(text.split()) <= set(words) for text in prompts + completions
        )
        known = {row["number"]: row["prompt"] for row in example.tiny_prompts(words)}
        assert [known[number] for number in given["number"]] == prompts  # columns arrive row by row
        assert all(len(set(prompts[k : k + 8])) == 1 for k in range(0, len(prompts), 8))  # by groups
        scored = [k for k, text in enumerate(completions) if text.strip()]
        assert [k for k, answer in enumerate(answers) if answer is not None] == scored
        features = encoder.encode([completions[k] for k in scored])
        expected = reward.mean(features) if kind == "mean" else reward.lower_bound(features)
        np.testing.assert_array_equal([answers[k] for k in scored], expected)

    # what the trainer made of it
    name = f"rewards/dal_{kind}/mean"
    history = [entry[name] for entry in trained.state.log_history if name in entry]
    assert len(history) == 4
    assert all(
        f"dal_{kind}/standard_deviation" in entry for entry in trained.state.log_history if name in entry
    )
    assert history[-1] > history[0]

    # the samples are independent, and other seeds gave 24 standard errors of their means and more
    error = float(np.hypot(before.standard_error, after.standard_error))
    assert after.lower_bound - before.lower_bound > 10 * error
    assert after.mean > before.mean


def test_pessimism_stays_nearer_to_what_was_labelled(example, problem):
    """From the same start, with the same steps: the bound is higher, the deviation smaller.

    The words, and so the reward, follow the package's own text: over other lists of words the bound was
    higher by 11 to 21 standard errors and the deviation smaller by 17 % or more.
    """
    found = example.tiny(example.Options())
    plain, pessimistic = found["mean"][1], found["lower_bound"][1]
    assert found["mean"][0] == found["lower_bound"][0]  # both started from the same samples
    error = float(np.hypot(plain.standard_error, pessimistic.standard_error))
    assert pessimistic.lower_bound > plain.lower_bound + 3 * error
    assert pessimistic.standard_deviation < 0.95 * plain.standard_deviation


def test_a_reward_models_folder_serves_the_trainer_by_name(example, problem, tmp_path):
    """TRL loads the folder itself; its logits are the fitted reward."""
    words, *_ = problem
    model, tokenizer = example.tiny_model(words)
    model.model.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    encoder = get_encoder(tmp_path / "base")
    theta = np.random.default_rng(2).normal(size=encoder.dimension)
    reward = PessimisticReward(theta, np.eye(encoder.dimension), 1.0, encoder=encoder.fingerprint)
    folder = save_reward_model_directory(tmp_path / "reward", encoder, reward)
    options = example.Options(steps=4)
    trained = example.train(
        model, tokenizer, example.tiny_prompts(words), os.fspath(folder), options, os.fspath(tmp_path / "out")
    )
    history = [entry["rewards/reward/mean"] for entry in trained.state.log_history if "reward" in entry]
    assert len(history) == 4
    assert np.isfinite(history).all()
    head = trained.reward_funcs[0]
    texts = ["reward teacher", "labels"]
    batch = trained.reward_processing_classes[0](texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        found = head(**batch).logits[:, 0].numpy()
    np.testing.assert_allclose(found, encoder.encode(texts) @ theta, rtol=1e-4, atol=1e-5)


def test_the_script_with_a_model_of_ones_own(example, problem, tmp_path, capsys):
    words, reward, _ = problem
    model, tokenizer = example.tiny_model(words)
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    reward.save(tmp_path / "reward.safetensors")
    rows = "\n".join(json.dumps(row) for row in example.tiny_prompts(words))
    (tmp_path / "prompts.jsonl").write_text(rows, encoding="utf-8")
    example.main(
        [
            *("--model", os.fspath(tmp_path / "model"), "--data", os.fspath(tmp_path / "prompts.jsonl")),
            *("--reward", os.fspath(tmp_path / "reward.safetensors"), "--encoder", "hashing:256"),
            *("--steps", "3", "--tokens", "8", "--learning-rate", "1e-2", "--samples", "32"),
            *("--output", os.fspath(tmp_path / "trained")),
        ]
    )
    assert "grpo on lower_bound, 3 steps of 64 completions" in capsys.readouterr().out
    trained = example.AutoModelForCausalLM.from_pretrained(tmp_path / "trained")
    assert any(not torch.equal(a, b) for a, b in zip(model.parameters(), trained.parameters(), strict=True))


def test_the_script_says_what_is_wrong(example, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        example.main(["--model", "x"])
    assert stopped.value.code == 2
    assert "--model needs --data and --reward" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stopped:
        example.main(["--help"])
    assert stopped.value.code == 0
    with pytest.raises(ValueError, match='expected one JSON object a line, each with a text "prompt"'):
        (tmp_path / "wrong.jsonl").write_text('{"question": "?"}\n')
        example.read_prompts(os.fspath(tmp_path / "wrong.jsonl"))
    full = ["--model", "x", "--data", "y", "--reward", "z", "--output", os.fspath(tmp_path)]
    with pytest.raises(SystemExit, match=r"error: .* expected --output to be a new or an empty folder"):
        example.main(full)
    with pytest.raises(SystemExit, match=r"error: "):
        example.main([*full[:-1], os.fspath(tmp_path / "new")])


def test_the_script_names_the_extra(run_python):
    script = f"""
        import runpy, sys
        sys.modules["torch"] = None
        try:
            runpy.run_path({os.fspath(SCRIPT)!r}, run_name="__main__")
        except SystemExit as stopped:
            print(stopped)
    """
    assert "training needs the extra trl: pip install 'dal-native[trl]'" in run_python(script)
