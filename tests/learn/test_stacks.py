"""The faces that training stacks call, in the way that each stack calls them."""

import asyncio
import functools
import importlib
import importlib.util
import inspect
import pickle
import subprocess
import sys
import threading

import numpy as np
import pytest

from dal_learn.encoders import HashingEncoder, feature_fingerprint
from dal_learn.integrations import openrlhf_reward, verl_reward
from dal_learn.integrations.openrlhf_reward import OpenRLHFReward, split_query, write_reward_function
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


# --------------------------------------------------------------------------------------------- OpenRLHF


class Executor:
    """How SingleTurnAgentExecutor (OpenRLHF 0.11.2) loads a reward function and calls it, and what the
    samples generator does with the answer; engine and tokenizer left out.
    """

    def __init__(self, path):
        assert str(path).endswith(".py")
        spec = importlib.util.spec_from_file_location("reward_func", path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        self.reward_func = module.reward_func

    async def execute(self, query, prompt, label):
        calls = [asyncio.to_thread(self.reward_func, [query], [prompt], [label])]
        answer = (await asyncio.gather(*calls))[0]
        info = {"reward": first(answer["rewards"]), "score": first(answer["scores"])}
        return info | {key: first(value) for key, value in answer["extra_logs"].items()}


def first(values):
    """`torch.tensor([values])` of the only value, as a number in float32."""
    assert len(values) == 1
    torch = sys.modules.get("torch")
    if torch is None:
        return float(np.float32(values[0]))
    assert values.dtype == torch.float32 and values.shape == (1,)
    return torch.tensor([values]).flatten()[0].item()


TEMPLATE = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"


def test_openrlhf_calls_a_written_file_with_one_completion_from_many_threads(tmp_path, reward_file, scorer):
    path = tmp_path / "reward.py"
    write_reward_function(path, reward_file, f"hashing:{D}", window=0.05, kind=None)
    executor = Executor(path)
    prompt = TEMPLATE.format("Why?")

    async def rollouts():
        return await asyncio.gather(
            *(executor.execute(f"{prompt}{words}<|im_end|>", prompt, "label") for words in WORDS)
        )

    found = asyncio.run(rollouts())
    expected = scorer.estimates(["?"] * len(WORDS), WORDS)
    assert [x["reward"] for x in found] == np.float32([x.reward for x in expected]).tolist()
    assert [x["dal_mean"] for x in found] == np.float32([x.mean for x in expected]).tolist()
    for got, estimate in zip(found, expected, strict=True):
        assert got["score"] == pytest.approx(1 / (1 + np.exp(-estimate.reward)), rel=1e-6)
    assert executor.reward_func.scorer.statistics()["largest_batch"] > 1
    assert executor.reward_func.scorer is Executor(path).reward_func.scorer


def test_openrlhf_with_torch_answers_tensors(scorer):
    torch = pytest.importorskip("torch", reason="extra 'torch' is not installed")
    found = OpenRLHFReward(scorer)(["pyes", "pno"], ["p", "p"], [None, None])
    for values in (found["rewards"], found["scores"], *found["extra_logs"].values()):
        assert values.dtype == torch.float32 and values.shape == (2,)
    assert found["rewards"].tolist() == np.float32(scorer.rewards(["p"] * 2, ["yes", "no"])).tolist()


def test_openrlhf_without_torch_answers_lists(tmp_path, reward_file):
    path = tmp_path / "reward.py"
    write_reward_function(path, reward_file, f"hashing:{D}")
    code = (
        "import sys, runpy; f = runpy.run_path(sys.argv[1])['reward_func']; "
        "a = f(['pyes'], ['p'], ['']); assert 'torch' not in sys.modules; print(a)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.startswith("{'rewards': [")


def test_openrlhf_installed_calls_it_the_same_way(tmp_path, reward_file, scorer):
    """Against the stack's own executor, where it is installed."""
    agent = pytest.importorskip("openrlhf.utils.agent", reason="OpenRLHF is not installed")
    path = tmp_path / "reward.py"
    write_reward_function(path, reward_file, f"hashing:{D}")

    class Tokenizer:
        def __call__(self, text, **_):
            torch = importlib.import_module("torch")
            return {"input_ids": torch.tensor([[ord(letter) for letter in text]])}

        def decode(self, ids, **_):
            return "".join(map(chr, ids))

    class Sampling:
        max_tokens, logprobs = 100, None

    class Output:
        token_ids, logprobs, finish_reason = [ord(letter) for letter in "yes</s>"], None, "stop"

    class Engine:
        async def generate(self, *_, **__):
            return type("Request", (), {"outputs": [Output]})

    executor = agent.SingleTurnAgentExecutor(str(path))
    done = asyncio.run(executor.execute("User: ?\n", "", Sampling, 1000, Tokenizer(), Engine()))
    assert done["reward"].tolist() == np.float32(scorer.rewards(["?"], ["yes"])).tolist()
    assert set(done["extra_logs"]) == {"dal_mean", "dal_standard_deviation", "dal_unscored"}


@pytest.mark.parametrize(
    ("query", "prompt", "completion"),
    [
        ("Why? Because.", "Why?", " Because."),
        ("Why?Because.</s>", "Why?", "Because."),
        ("Why?Because.<|im_end|>\n<|endoftext|><|endoftext|>", "Why?", "Because."),
        ("Why?Ends in space  ", "Why?", "Ends in space  "),
        ("<s> [INST] Why? [/INST]Because.", "<s>[INST] Why? [/INST]", "Because."),
        ("User: Why?\nBot: Because.", "User:  Why?\nBot: ", "Because."),
        ("User: Why?\nBot:Because.", "User:  Why?\nBot: ", "Because."),
        ("b" * 40 + "Because.", "a" * 100 + "b" * 40, "Because."),
        ("ab" * 30 + "Because.", "ab" * 300, "Because."),
        ("Why?", "Why?", ""),
        ("b" * 40, "a" * 100 + "b" * 50, ""),
        ("Because.", "", "Because."),
        ("", "", ""),
    ],
)
def test_openrlhf_queries_are_split(query, prompt, completion):
    assert split_query(query, prompt) == completion


@pytest.mark.parametrize(
    ("query", "prompt"), [("No.", "Why?"), ("b" * 31 + "Because.", "a" * 100 + "b" * 31), ("", "Why?")]
)
def test_openrlhf_queries_of_another_prompt_are_refused(query, prompt):
    with pytest.raises(ValueError, match="does not begin with its prompt"):
        split_query(query, prompt)


def test_openrlhf_chances_stay_between_0_and_1_in_float32(scorer):
    function = OpenRLHFReward(scorer, unscorable=0.0)
    for far in (-1e308, -800.0, -20.0, 20.0, 800.0, 1e308):
        function.unscorable = far
        [chance] = function(["Why?"], ["Why?"], [None])["scores"]
        assert 0.0 < float(np.float32(chance)) < 1.0 and (chance > 0.5) == (far > 0.0)


def test_openrlhf_end_tokens_by_the_thousand():
    assert split_query("Why? Because. " + "<pad> </s>\n" * 200_000, "Why?") == " Because. "


@pytest.mark.parametrize("name", ['three """ quotes.py', "back\\Nslash.py", "line\nbreak.py"])
def test_openrlhf_files_of_any_name_can_be_imported(tmp_path, reward_file, name):
    write_reward_function(tmp_path / name, reward_file, f"hashing:{D}")
    names = {}
    exec((tmp_path / name).read_text(), names)
    assert callable(names["reward_func"])


def test_openrlhf_overlap_is_that_of_the_definition():
    rng = np.random.default_rng(0)
    for _ in range(300):
        text, other = ("".join(rng.choice(["a", "b"], rng.integers(0, 9))) for _ in range(2))
        sizes = range(min(len(text), len(other)) + 1)
        expected = max(k for k in sizes if text[len(text) - k :] == other[:k])
        assert openrlhf_reward._overlap(text, other) == expected


def test_openrlhf_prompts_lose_their_template_where_the_encoder_sees_them():
    scorer = RewardScorer(made_reward("prompt+response"), HashingEncoder(D))
    before, after = TEMPLATE.split("{}")
    function = OpenRLHFReward(scorer, prompt_prefix=before, prompt_suffix=after)
    prompt = TEMPLATE.format("Why?")
    found = function([prompt + "yes"], [prompt], [None])
    assert first(found["rewards"]) == np.float32(scorer.rewards(["Why?"], ["yes"])[0])
    with pytest.raises(ValueError, match=r"queries\[0\]: the prompt does not stand between"):
        function(["Why?yes"], ["Why?"], [None])


def test_openrlhf_failures_are_raised_unless_a_reward_for_nothing_is_named(scorer, reward_file, tmp_path):
    function = OpenRLHFReward(scorer)
    with pytest.raises(ValueError, match="expected text that is not empty"):
        function(["p</s>"], ["p"], [None])
    with pytest.raises(ValueError, match="prompts has length 0; expected 1"):
        function(["p"], [], [])
    with pytest.raises(ValueError, match=r"queries\[0\] is a NoneType"):
        function([None], ["p"], [None])
    named = OpenRLHFReward(scorer, unscorable=-3.0)
    found = named(["p</s>", "pyes"], ["p", "p"], [None, None])
    got = {key: [float(x) for x in values] for key, values in found["extra_logs"].items()}
    assert np.allclose(found["rewards"], [-3, scorer.rewards(["?"], ["yes"])[0]], rtol=1e-6)
    assert got["dal_unscored"] == [1.0, 0.0] and got["dal_standard_deviation"][0] == 0.0
    assert all(0 < float(x) < 1 for x in found["scores"])
    assert len(named(["p"], ["p"], None)["rewards"]) == 1
    for wrong in (
        {"unscorable": np.nan},
        {"end_tokens": "</s>"},
        {"end_tokens": [""]},
        {"prompt_prefix": None},
    ):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            OpenRLHFReward(scorer, **wrong)
    with pytest.raises(ValueError, match="expected a RewardScorer"):
        OpenRLHFReward(None)
    path = tmp_path / "reward.py"
    with pytest.raises(ValueError, match="the features would not mean the same"):
        write_reward_function(path, reward_file, f"hashing:{D - 1}")
    with pytest.raises(ValueError, match=r"ends in \.py"):
        write_reward_function(tmp_path / "reward.txt", reward_file, f"hashing:{D}")
    assert not path.exists()


# ------------------------------------------------------------------------------------------------- verl


def merged(function, fixed, **given):
    """`_call_with_kwargs` of verl 0.9.1: what the configuration names wins."""
    return function(**{**given, **fixed})


class Manager:
    """How load_extern_object and the reward manager "naive" of verl 0.9.1 find the function and call it."""

    def __init__(self, path, name, **reward_kwargs):
        if path.startswith("pkg://"):
            module = importlib.import_module(path.removeprefix("pkg://"))
        else:
            spec = importlib.util.spec_from_file_location(f"custom_module_{hash(path)}", path)
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
        function = getattr(module, name)
        self.is_async = inspect.iscoroutinefunction(function)
        self.compute_score = functools.partial(merged, function, reward_kwargs)

    async def run_single(self, solution, extra_info):
        given = {
            "data_source": "ours",
            "solution_str": solution,
            "ground_truth": "",
            "extra_info": {**extra_info, "num_turns": None, "rollout_reward_scores": {}},
            "reward_router_address": "127.0.0.1:1",
            "reward_model_tokenizer": None,
        }
        if self.is_async:
            result = await self.compute_score(**given)
        else:
            loop = asyncio.get_running_loop()
            result = await loop.run_in_executor(None, lambda: self.compute_score(**given))
        return {"reward_score": result["score"], "reward_extra_info": dict(result)}


async def all_of(manager, infos, solutions):
    return await asyncio.gather(
        *(manager.run_single(words, info) for words, info in zip(solutions, infos, strict=True))
    )


@pytest.mark.parametrize("name", ["compute_score", "compute_score_async"])
def test_verl_calls_it_one_by_one(reward_file, scorer, name):
    manager = Manager(
        "pkg://dal_learn.integrations.verl_reward", name, reward=str(reward_file), encoder=f"hashing:{D}"
    )
    assert manager.is_async == name.endswith("async")
    found = asyncio.run(all_of(manager, [{}] * len(WORDS), WORDS))
    expected = scorer.estimates(["?"] * len(WORDS), WORDS)
    assert [x["reward_score"] for x in found] == [x.reward for x in expected]
    infos = [x["reward_extra_info"] for x in found]
    assert [x["dal_standard_deviation"] for x in infos] == [x.standard_deviation for x in expected]
    assert {tuple(info) for info in infos} == {
        ("score", "dal_mean", "dal_standard_deviation", "dal_unscored", "dal_seconds")
    }


def test_verl_from_a_file_of_the_users_own_and_pickled(tmp_path, reward_file, scorer):
    path = tmp_path / "mine.py"
    path.write_text("from dal_learn.integrations.verl_reward import compute_score\n")
    manager = Manager(str(path), "compute_score", reward=str(reward_file), encoder=f"hashing:{D}")
    for function in (manager.compute_score, pickle.loads(pickle.dumps(manager.compute_score))):
        assert function(solution_str="yes")["score"] == scorer.rewards(["?"], ["yes"])[0]


@pytest.mark.parametrize("name", ["compute_score", "compute_score_async"])
def test_verl_takes_the_prompt_from_extra_info(tmp_path, name):
    reward = made_reward("prompt+response")
    path = tmp_path / "pessimistic.safetensors"
    reward.save(path)
    scorer = RewardScorer(reward, HashingEncoder(D))
    fixed = {"reward": str(path), "encoder": f"hashing:{D}"}
    manager = Manager("pkg://dal_learn.integrations.verl_reward", name, **fixed)
    chat = np.array([{"role": "user", "content": "Why?"}], dtype=object)
    found = asyncio.run(all_of(manager, [{"prompt": "Why?"}, {"prompt": chat}], ["yes", "yes"]))
    assert [x["reward_score"] for x in found] == scorer.rewards(["Why?"], ["yes"]) * 2
    with pytest.raises(ValueError, match=r"extra_info has no 'prompt' .* but the encoder sees prompts"):
        asyncio.run(manager.run_single("yes", {"question": "Why?"}))
    other = Manager("pkg://dal_learn.integrations.verl_reward", name, prompt_key="question", **fixed)
    found = asyncio.run(other.run_single("yes", {"question": "Why?"}))
    assert found["reward_score"] == scorer.rewards(["Why?"], ["yes"])[0]


@pytest.mark.parametrize("name", ["compute_score", "compute_score_async"])
def test_verl_failures_are_raised(reward_file, name):
    def call(**given):
        answer = getattr(verl_reward, name)(**given)
        return asyncio.run(answer) if inspect.isawaitable(answer) else answer

    fixed = {"reward": str(reward_file), "encoder": f"hashing:{D}"}
    with pytest.raises(ValueError, match="reward is None; expected it in reward_kwargs"):
        call(solution_str="yes", encoder=f"hashing:{D}")
    with pytest.raises(ValueError, match="encoder is None; expected it in reward_kwargs"):
        call(solution_str="yes", reward=str(reward_file))
    for nothing in ("", None, " "):
        with pytest.raises(ValueError, match="expected text that is not empty"):
            call(solution_str=nothing, **fixed)
        named = call(solution_str=nothing, unscorable=-2.0, **fixed)
        assert (named["score"], named["dal_unscored"]) == (-2.0, 1.0)
    with pytest.raises(ValueError, match="unscorable is nan"):
        call(solution_str="", unscorable=float("nan"), **fixed)
    with pytest.raises(ValueError, match="kind is 'bound'"):
        call(solution_str="yes", kind="bound", **fixed)
    with pytest.raises(ValueError, match="max_batch is 0"):
        call(solution_str="yes", scorer_options={"max_batch": 0}, **fixed)
    wider = call(solution_str="yes", radius=2.0, scorer_options={"reproducible": False}, **fixed)
    plain = call(solution_str="yes", kind="mean", **fixed)
    assert wider["score"] == plain["dal_mean"] - 2.0 * plain["dal_standard_deviation"]
