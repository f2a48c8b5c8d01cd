"""The batched core under the training stacks' faces: its numbers, its queue, its failures."""

import asyncio
import copy
import math
import multiprocessing
import operator
import os
import pickle
import subprocess
import sys
import threading
import time
from concurrent.futures import CancelledError, ThreadPoolExecutor

import numpy as np
import pytest

from dal_learn import sources
from dal_learn.encoders import HashingEncoder, feature_fingerprint
from dal_learn.integrations import scorer as module
from dal_learn.integrations.scorer import RewardScorer, shared_scorer, text_of
from dal_learn.pessimistic_reward import PessimisticReward

D = 32
WORDS = ["yes", "no", "perhaps", "a longer answer, with reasons", "42", "¿qué?", "yes!", "the end"]


class Watched:
    """An encoder that says what it was asked, and can be slow, fail, or look at nothing but the batch."""

    def __init__(self, independent=True, seconds=0.0, fork_safe=True):
        self.inner = HashingEncoder(D)
        self.name, self.dimension, self.fingerprint = "watched", D, self.inner.fingerprint
        self.independent, self.seconds, self.fork_safe = independent, seconds, fork_safe
        self.batches, self.inside = [], 0

    def encode(self, texts, progress=None):
        self.inside += 1
        assert self.inside == 1, "two threads in an encoder at once"
        self.batches.append(list(texts))
        try:
            for done, text in enumerate(texts):
                time.sleep(self.seconds)
                if "broken" in text:
                    raise RuntimeError(f"cannot encode {text}")
                if progress is not None:
                    progress(done, len(texts))
            vectors = self.inner.encode(texts)
            return vectors if self.independent else vectors * (1 + 1e-3 * len(texts))
        finally:
            self.inside -= 1


def made_reward(encoder=None, text="response", **more):
    rng = np.random.default_rng(3)
    seen = rng.standard_normal((2 * D, D))
    encoder = encoder or HashingEncoder(D)
    return PessimisticReward(
        rng.standard_normal(D),
        np.eye(D) + seen.T @ seen,
        1.5,
        rng.standard_normal(D) / 10,
        encoder=feature_fingerprint(encoder, text),
        **more,
    )


def made(encoder=None, text="response", **options):
    encoder = encoder or HashingEncoder(D)
    return RewardScorer(made_reward(encoder, text), encoder, **options)


@pytest.fixture
def many():
    """Prompts and distinct completions."""
    completions = [f"{WORDS[k % len(WORDS)]} {k}" for k in range(200)]
    return [f"question {k % 7}" for k in range(200)], completions


# ------------------------------------------------------------------------------------------------ numbers


@pytest.mark.parametrize("text", ["response", "prompt+response"])
@pytest.mark.parametrize("kind", module.KINDS)
def test_rewards_are_those_of_the_features_that_learning_sees(tmp_path, text, kind):
    rows = [
        {"id": k, "prompt": f"p{k}", "response_a": WORDS[2 * k], "response_b": WORDS[2 * k + 1]}
        for k in range(4)
    ]
    sources.write_jsonl(tmp_path / "pairs.jsonl", rows)
    encoder = HashingEncoder(D)
    read = sources.read_folder(tmp_path, encoder=encoder, text=text).conversations
    reward = made_reward(encoder, text).with_policy(np.arange(D) / D)
    scorer = RewardScorer(reward, encoder, kind=kind)
    assert scorer.text == text
    prompts = [f"p{k // 2}" for k in range(8)]
    assert np.array_equal(scorer.features(prompts, WORDS), read.completions)
    assert scorer.rewards(prompts, WORDS) == getattr(reward, kind)(read.completions).tolist()
    estimates = scorer.estimates(prompts, WORDS)
    assert [x.mean for x in estimates] == reward.mean(read.completions).tolist()
    assert [x.standard_deviation for x in estimates] == reward.standard_deviation(read.completions).tolist()


@pytest.mark.parametrize("independent", [True, False])
def test_a_reward_has_the_same_bits_in_every_company(many, independent):
    prompts, completions = many
    expected = made(Watched(independent)).rewards(prompts, completions)
    assert len(set(expected)) == len(expected)
    alone = made(Watched(independent), cache_bytes=0)
    assert [alone.rewards(["x"], [words])[0] for words in completions] == expected
    for size in (2, 7, 64):
        scorer = made(Watched(independent))
        for start in range(0, 200, size):
            part = slice(start, start + size)
            assert scorer.rewards(prompts[part], completions[part]) == expected[part]
    order = np.random.default_rng(0).permutation(200)
    shuffled = made(Watched(independent)).rewards(
        [prompts[k] for k in order], [completions[k] for k in order]
    )
    assert shuffled == [expected[k] for k in order]


def test_batches_go_to_an_encoder_as_a_whole_only_where_bits_cannot_suffer(many):
    prompts, completions = many
    for independent, reproducible, largest in [(True, True, 200), (False, True, 1), (False, False, 200)]:
        encoder = Watched(independent)
        made(encoder, reproducible=reproducible).rewards(prompts, completions)
        assert max(map(len, encoder.batches)) == largest


def test_messages_are_read_as_the_text_in_them():
    scorer = made(text="prompt+response")
    plain = scorer.rewards(["Why?"], ["Because."])
    parts = [{"type": "text", "text": "Be"}, {"type": "text", "text": "cause."}]
    for prompt, completion in [
        ([{"role": "user", "content": "Why?"}], [{"role": "assistant", "content": "Because."}]),
        (({"role": "user", "content": "Why?"},), [{"role": "assistant", "content": parts}]),
        (np.array([{"role": "user", "content": "Why?"}]), "Because."),
        (
            "Why?",
            [
                {"role": "assistant", "content": None, "tool_calls": []},
                {"role": "tool", "content": "42"},
                {"role": "assistant", "content": "Because."},
            ],
        ),
    ]:
        assert scorer.rewards([prompt], [completion]) == plain
    turns = [{"role": "user", "content": "A"}, {"role": "assistant", "content": "B"}]
    assert text_of(turns) == "A\n\nB"
    assert text_of([*turns, {"role": "user", "content": [{"type": "image", "image": 0}]}]) is None
    assert text_of(["A"]) is None and text_of(7) is None


NOTHING = [
    "",
    " \n",
    None,
    7,
    [],
    [{"role": "user", "content": "only the user speaks"}],
    [{"role": "assistant", "content": [{"type": "image"}]}],
    [{"role": "assistant", "content": ""}],
]


def test_what_cannot_be_scored_is_none_or_raised_and_never_a_number():
    scorer = made()
    whole = scorer.rewards(["?"] * 2, ["yes", "no"])
    got = scorer.rewards(["?"] * 10, ["yes", *NOTHING, "no"], unscorable="none")
    assert got == [whole[0], *[None] * len(NOTHING), whole[1]]
    assert scorer.statistics()["unscored"] == len(NOTHING)
    for nothing in NOTHING:
        with pytest.raises(ValueError, match=r"completions\[1\] is .*; expected text that is not empty"):
            scorer.rewards(["?"] * 2, ["yes", nothing])
        with pytest.raises(ValueError, match=r"completions\[0\]"):
            scorer.reward("?", nothing)
    assert scorer.rewards([], []) == []
    assert scorer.rewards(["?"], [""], unscorable="none") == [None]
    with pytest.raises(ValueError, match=r"prompts\[0\] is missing"):
        made(text="prompt+response").rewards([None], ["yes"])


def test_lengths_and_kinds_of_lists_are_checked():
    scorer = made()
    with pytest.raises(ValueError, match="prompts has length 1; expected 2"):
        scorer.rewards(["?"], ["yes", "no"])
    with pytest.raises(ValueError, match="completions is a str"):
        scorer.rewards(["?"], "yes")
    with pytest.raises(ValueError, match="prompts is a generator"):
        scorer.rewards((x for x in "?"), ["yes"])
    with pytest.raises(ValueError, match="unscorable is 0"):
        scorer.rewards(["?"], ["yes"], unscorable=0)


def test_a_reward_of_other_features_is_refused(tmp_path):
    encoder = HashingEncoder(D)
    reward = made_reward(encoder)
    with pytest.raises(ValueError, match="the features would not mean the same"):
        RewardScorer(reward, HashingEncoder(D, seed=1))
    with pytest.raises(ValueError, match="text is 'prompt\\+response'; expected 'response'"):
        RewardScorer(reward, encoder, text="prompt+response")
    with pytest.raises(ValueError, match="names no encoder"):
        RewardScorer(PessimisticReward(reward.coef, reward.information, 1.0), encoder)
    bare = PessimisticReward(reward.coef, reward.information, 1.0, encoder=encoder.fingerprint)
    assert RewardScorer(bare, encoder).text == "response"
    assert RewardScorer(bare, encoder, text="prompt+response").text == "prompt+response"
    with pytest.raises(ValueError, match="holds no least favourable reward"):
        RewardScorer(reward, encoder, kind="least_favourable")
    with pytest.raises(ValueError, match="kind is 'score'"):
        RewardScorer(reward, encoder, kind="score")
    with pytest.raises(ValueError, match="expected a PessimisticReward"):
        RewardScorer(reward.coef, encoder)
    short = PessimisticReward([1.0], [[1.0]], 1.0, encoder=encoder.fingerprint)
    with pytest.raises(ValueError, match="is for 1 features"):
        RewardScorer(short, encoder)
    reward.save(tmp_path / "r.safetensors")
    loaded = RewardScorer.load(tmp_path / "r.safetensors", f"hashing:{D}", kind="mean", radius=3.0)
    assert loaded.reward_model.radius == 3.0
    assert loaded.rewards(["?"], ["yes"]) == RewardScorer(reward, encoder, kind="mean").rewards(
        ["?"], ["yes"]
    )


def test_a_number_that_is_not_finite_is_raised():
    class Wild(Watched):
        def encode(self, texts, progress=None):
            return np.full((len(texts), D), np.nan, np.float32)

    with pytest.raises(ValueError, match="NaN or infinity"):
        made(Wild()).rewards(["?"], ["yes"])


# ------------------------------------------------------------------------------------------------- cache


def test_equal_texts_are_encoded_once_and_remembered_within_bounds():
    encoder = Watched()
    scorer = made(encoder)
    scorer.rewards(["?"] * 4, ["a", "b", "a", "b"])
    scorer.rewards(["?"] * 2, ["b", "c"])
    assert encoder.batches == [["a", "b"], ["c"]]
    assert scorer.statistics()["encoded"] == 3 and scorer.statistics()["cached"] == 3
    entry = 4 * D + module._ENTRY_BYTES
    encoder = Watched()
    small = made(encoder, cache_bytes=2 * entry)
    for words in ("a", "b", "a", "c", "a", "b"):  # b is the least recently used when c comes
        small.rewards(["?"], [words])
    assert encoder.batches == [["a"], ["b"], ["c"], ["b"]]
    assert len(small._cache) == 2
    off = made(encoder, cache_bytes=0)
    assert off.rewards(["?"] * 3, ["x", "y", "x"])[0] == off.rewards(["?"], ["x"])[0]
    assert len(off._cache) == 0


# ------------------------------------------------------------------------------------------------- queue


def test_callers_of_one_moment_are_answered_together(many):
    prompts, completions = many
    expected = made().rewards(prompts, completions)
    encoder = Watched()
    scorer = made(encoder, window=2.0, max_batch=200)
    with ThreadPoolExecutor(200) as pool:
        assert list(pool.map(scorer.reward, prompts, completions)) == expected
    facts = scorer.statistics()
    assert facts["batches"] == len(encoder.batches) < 200
    assert facts["largest_batch"] == max(map(len, encoder.batches)) > 1
    assert facts["rows"] == 200 and facts["failed"] == 0 and facts["seconds_waiting"] > 0


def test_no_batch_is_larger_than_allowed_unless_one_caller_brings_more(many):
    prompts, completions = many
    encoder = Watched(seconds=0.001)
    scorer = made(encoder, window=0.2, max_batch=16)
    with ThreadPoolExecutor(64) as pool:
        answers = list(pool.map(scorer.reward, prompts, completions))
    assert answers == made().rewards(prompts, completions)
    assert max(map(len, encoder.batches)) <= 16
    many_at_once = scorer.queued(["?"] * 40, [f"new {k}" for k in range(40)])
    assert len(many_at_once) == 40 and len(encoder.batches[-1]) == 40


def test_threads_and_event_loops_at_once(many):
    prompts, completions = many
    expected = made().rewards(prompts, completions)
    scorer = made(window=0.005)

    async def in_a_loop(start):
        calls = [scorer.reward_async(prompts[k], completions[k]) for k in range(start, 200, 2)]
        return await asyncio.gather(*calls)

    with ThreadPoolExecutor(34) as pool:
        loops = [pool.submit(asyncio.run, in_a_loop(start)) for start in (0, 1)]
        direct = pool.submit(scorer.rewards, prompts, completions)
        assert list(pool.map(scorer.reward, prompts, completions)) == expected
        assert direct.result() == expected
        assert [loop.result() for loop in loops] == [expected[0::2], expected[1::2]]


def test_a_failure_reaches_the_caller_whose_text_it_is():
    for independent in (True, False):
        scorer = made(Watched(independent), window=1.0)
        words = ["yes", "broken 1", "no", "broken 2", "perhaps"]
        with ThreadPoolExecutor(5) as pool:
            calls = [pool.submit(scorer.reward, "?", w) for w in words]
            errors = [call.exception() for call in calls]
        assert [str(error) for error in errors if error] == [f"cannot encode broken {k}" for k in (1, 2)]
        good = [call.result() for call, error in zip(calls, errors, strict=True) if error is None]
        assert good == made(Watched(independent)).rewards(["?"] * 3, words[::2])
        assert scorer.statistics()["failed"] == 2
        assert math.isfinite(scorer.reward("?", "still alive"))


def test_a_broken_thread_or_interpreter_exit_leaves_nobody_waiting(monkeypatch):
    class Fatal(Watched):
        def encode(self, texts, progress=None):
            raise SystemExit("out of here")

    scorer = made(Fatal())
    for _ in range(2):
        with pytest.raises(SystemExit, match="out of here"):
            scorer.reward("?", "yes")

    scorer = made(window=0.1)
    broken = iter([MemoryError("no room for a batch")])

    def out_of_memory(batch):
        for error in broken:
            raise error
        RewardScorer._answer(scorer, batch)

    monkeypatch.setattr(scorer, "_answer", out_of_memory)
    with ThreadPoolExecutor(4) as pool:
        calls = [pool.submit(scorer.reward, "?", words) for words in WORDS[:4]]
        errors = [call.exception(30) for call in calls]
    assert any(isinstance(error, MemoryError) for error in errors)
    assert all(error is None or isinstance(error, MemoryError) for error in errors)
    assert scorer.reward("?", "yes") == scorer.rewards(["?"], ["yes"])[0]

    def refused(self):
        raise RuntimeError("can't create new thread at interpreter shutdown")

    late = made()
    monkeypatch.setattr(threading.Thread, "start", refused)
    assert late.reward("?", "yes") == late.rewards(["?"], ["yes"])[0]


def test_the_thread_of_the_queue_ends_when_nobody_comes(monkeypatch):
    monkeypatch.setattr(module, "IDLE_SECONDS", 0.02)
    scorer = made()
    first = scorer.reward("?", "yes")
    thread = scorer._waiting.thread
    if thread is not None:
        thread.join(10)
        assert not thread.is_alive()
    assert scorer._waiting.thread is None
    assert scorer.reward("?", "yes") == first


def test_deadlines():
    slow = made(Watched(seconds=0.2))
    with pytest.raises(TimeoutError, match="no reward within"):
        slow.reward("?", "yes", deadline=0.02)
    with pytest.raises(TimeoutError, match="no reward within"):
        asyncio.run(slow.reward_async("?", "no", deadline=0.02))
    with pytest.raises(TimeoutError, match="the deadline passed"):
        slow.rewards(["?"] * 9, WORDS[:1] * 8 + ["other"], deadline=0.05)
    assert slow.reward("?", "still there") == slow.rewards(["?"], ["still there"])[0]
    patient = made(Watched(seconds=0.01), deadline=20.0)
    assert patient.reward("?", "yes") == patient.rewards(["?"], ["yes"])[0]
    for long in (1e10, 1e300):
        assert patient.reward("?", "yes", deadline=long) == patient.rewards(["?"], ["yes"], deadline=long)[0]
    for wrong in (-1, math.nan, "1"):
        with pytest.raises(ValueError, match="deadline is"):
            patient.rewards(["?"], ["yes"], deadline=wrong)


def test_a_caller_who_gave_up_is_not_encoded():
    encoder = Watched(seconds=0.1)
    scorer = made(encoder, window=0.0, max_batch=1)
    first = threading.Thread(target=scorer.reward, args=("?", "first"))
    first.start()
    while not encoder.batches:
        time.sleep(0.001)
    with pytest.raises(TimeoutError):
        scorer.reward("?", "given up", deadline=0.0)
    first.join()
    scorer.reward("?", "last")
    assert [batch[0] for batch in encoder.batches] == ["first", "last"]


@pytest.mark.parametrize("error", [StopIteration, asyncio.CancelledError, CancelledError])
def test_an_error_that_no_future_carries_reaches_coroutines_too(error):
    class Ended(Watched):
        def encode(self, texts, progress=None):
            raise error

    with pytest.raises(RuntimeError, match=f"the encoder raised {error.__name__}"):
        asyncio.run(made(Ended()).reward_async("?", "yes", deadline=20.0))


def test_an_error_of_time_from_the_encoder_is_handed_on_as_it_is():
    class Late(Watched):
        def encode(self, texts, progress=None):
            raise TimeoutError("the encoder's own")

    with pytest.raises(TimeoutError, match="the encoder's own"):
        made(Late()).reward("?", "yes")
    with pytest.raises(TimeoutError, match="the encoder's own"):
        asyncio.run(made(Late()).reward_async("?", "yes"))


# -------------------------------------------------------------------------------------------- processes


def _score(scorer, words):
    with ThreadPoolExecutor(4) as pool:
        return list(pool.map(scorer.reward, ["?"] * len(words), words)), scorer.statistics()["encoded"]


def test_pickled_and_copied_it_answers_the_same():
    scorer = made(text="prompt+response", kind="mean", window=0.01, max_batch=9, cache_bytes=1000, deadline=5)
    expected = [scorer.reward("?", w) for w in WORDS]
    for other in (pickle.loads(pickle.dumps(scorer)), copy.deepcopy(scorer)):
        assert [other.reward("?", w) for w in WORDS] == expected
        for name in ("kind", "text", "window", "max_batch", "cache_bytes", "deadline", "reproducible"):
            assert getattr(other, name) == getattr(scorer, name)


def test_pickled_to_an_encoder_that_changed_it_is_refused():
    scorer = made(Watched())
    scorer.encoder.fingerprint = "updated meanwhile"
    with pytest.raises(ValueError, match="the features would not mean the same"):
        pickle.loads(pickle.dumps(scorer))


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_in_a_forked_process_it_starts_anew():
    scorer = made(window=0.05)
    expected = [scorer.reward("?", w) for w in WORDS]
    assert scorer._waiting.thread is not None  # idle, and gone in the child
    with multiprocessing.get_context("fork").Pool(1) as pool:
        found, encoded = pool.apply_async(_score, (scorer, WORDS)).get(120)
    assert found == expected and encoded == len(WORDS)
    assert [scorer.reward("?", w) for w in WORDS] == expected


def test_in_a_spawned_process_it_starts_anew():
    scorer = made(window=0.05)
    expected = scorer.queued(["?"] * len(WORDS), WORDS)
    asked = operator.methodcaller("queued", ["?"] * len(WORDS), WORDS)  # the child cannot import this file
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply_async(asked, (scorer,)).get(120) == expected


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_forked_while_everything_is_held():
    """The child waits for none of the parent's locks and threads."""
    scorer = made(Watched(seconds=0.3), window=0.0)
    busy = threading.Thread(target=scorer.reward, args=("?", "slow"))
    busy.start()
    while not scorer._encoding.locked():
        time.sleep(0.001)
    with scorer._counting, scorer._waiting.changed, module._sharing:
        child = os.fork()
        if child == 0:
            code = 1
            try:
                scorer.encoder = Watched()
                code = (
                    0
                    if math.isfinite(scorer.reward("?", "in the child")) and module._sharing.acquire(False)
                    else 2
                )
            finally:
                os._exit(code)
    busy.join()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_an_encoder_that_does_not_survive_a_fork_is_not_asked():
    scorer = made(Watched(fork_safe=False))
    assert math.isfinite(scorer.reward("?", "in the parent"))
    child = os.fork()
    if child == 0:
        code = 1
        try:
            scorer.reward("?", "in the child")
        except RuntimeError as error:
            code = 0 if "does not survive a fork" in str(error) else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert math.isfinite(scorer.reward("?", "in the parent again"))


def test_the_interpreter_exits_with_callers_about(tmp_path):
    """Threads that still ask, a call at exit, a call in a daemon: the process ends, and quickly."""
    made_reward().save(tmp_path / "r.safetensors")
    code = f"""
import atexit, threading, time
from dal_learn.integrations.scorer import RewardScorer
scorer = RewardScorer.load({str(tmp_path / "r.safetensors")!r}, "hashing:{D}")
atexit.register(lambda: print("at exit", scorer.reward("?", "yes")))
def ask():
    for k in range(300):
        scorer.reward("?", f"{{k}}")
def ask_for_ever():
    while True:
        scorer.reward("?", f"{{time.time()}}")
for _ in range(3):
    threading.Thread(target=ask).start()
    threading.Thread(target=ask_for_ever, daemon=True).start()
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("at exit ")


def test_one_scorer_for_a_process(tmp_path):
    path = tmp_path / "r.safetensors"
    made_reward().save(path)
    with ThreadPoolExecutor(8) as pool:
        found = set(pool.map(lambda _: shared_scorer(path, f"hashing:{D}", kind="mean"), range(8)))
    assert len(found) == 1
    assert shared_scorer(path, f"hashing:{D}") not in found
    reward = made_reward()
    PessimisticReward(reward.coef, reward.information, 9.0, encoder=reward.encoder).save(path)
    assert shared_scorer(path, f"hashing:{D}", kind="mean").reward_model.radius == 9.0
    for k in range(module._MOST_SHARED + 2):
        shared_scorer(path, f"hashing:{D}", max_batch=k + 1)
    assert len(module._shared) == module._MOST_SHARED
    with pytest.raises(ValueError, match="no such file"):
        shared_scorer(tmp_path / "absent", f"hashing:{D}")


def test_options_are_checked():
    for name, wrong in [
        ("window", -1),
        ("window", 61),
        ("max_batch", 0),
        ("cache_bytes", -1),
        ("deadline", -1),
    ]:
        with pytest.raises(ValueError, match=name):
            made(**{name: wrong})
