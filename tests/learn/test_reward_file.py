"""Saved models: what goes in comes out, and hostile files are refused in words."""

from __future__ import annotations

import json
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

from dal_learn import sources
from dal_learn.reward import RewardModel

HEAD = "score.weight"


def fitted(**parameters):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(50, 3))
    y = np.where(rng.random(50) < 0.2, 0.5, x[:, 0] > 0)
    j, c, side, when = (rng.integers(low, high, 50) for low, high in ((0, 3), (0, 2), (-1, 2), (2, 5)))
    model = RewardModel(**parameters)
    return model.fit(x, y, j, c, n_teachers=5, n_categories=2, side=side, round=when)


@pytest.mark.parametrize(
    "parameters",
    [
        {},
        {"ridge": np.float32(0.5), "method": "joint_map", "lapse": 0.1},
        {"signed": True, "max_iter": np.int64(99)},
        {"rationality": np.ones((5, 2))},
        {"rationality": [[1.0, np.nan], [2.0, 0.0], [np.nan, np.nan], [1.0, 1.0], [1.0, np.nan]]},
        {"ridge": "evidence", "rationality_scale": "evidence"},
        {"lapse": "fit", "position_bias": 0.5},
        {"ties": True, "drift": 0.3, "category_correlation": 0.2, "warm_start": True},
    ],
)
def test_everything_that_can_be_asked_survives(tmp_path, parameters):
    model = fitted(**parameters)
    model.save(tmp_path / "reward.safetensors", encoder="f00d")
    again = RewardModel.load(tmp_path / "reward.safetensors", encoder="f00d")
    attributes = (
        "coef_ rationality_ rationality_se_ rationality_interval_ information_ classes_ converged_ n_iter_ "
        "gradient_norm_ objective_ log_likelihood_ n_features_in_ n_teachers_ n_categories_ ridge_ lapse_ "
        "rationality_scale_ tie_threshold_ position_bias_ position_bias_se_ rounds_ rationality_path_"
    )
    for name in attributes.split():
        assert np.array_equal(getattr(again, name), getattr(model, name)), name
    assert np.array_equal(again.coef_covariance(), model.coef_covariance()) and again.encoder_ == "f00d"
    x = np.random.default_rng(1).normal(size=(9, 3))
    assert np.array_equal(again.predict_proba(x), model.predict_proba(x))
    for name, value in model.get_params().items():
        same = value == getattr(again, name) if name != "rationality" or value is None else None
        assert same or np.array_equal(getattr(again, name), value, equal_nan=True), name
    with pytest.raises(ValueError, match="robust needs the labels"):
        again.coef_covariance(robust=True)
    # A loaded model can be saved again, to the same bytes, and fitted anew.
    again.save(tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "reward.safetensors").read_bytes()
    again.fit(np.eye(3), [0, 1, 1], [0, 1, 4], [0, 1, 0])


def test_a_head_is_an_ordinary_safetensors_file(tmp_path):
    safetensors = pytest.importorskip("safetensors.numpy")
    model = fitted()
    model.save(tmp_path / "reward.safetensors")
    assert np.array_equal(
        safetensors.load_file(tmp_path / "reward.safetensors")["score.weight"], model.coef_[None]
    )
    assert [path.name for path in tmp_path.iterdir()] == ["reward.safetensors"]  # nothing left beside it


def test_refusals_of_saving(tmp_path):
    with pytest.raises(ValueError, match="not fitted"):
        RewardModel().save(tmp_path / "a")
    with pytest.raises(OSError, match="no-such-folder"):
        fitted().save(tmp_path / "no-such-folder" / "a")


def test_another_encoder(tmp_path):
    fitted().save(tmp_path / "a", encoder="one")
    with pytest.raises(ValueError, match="made with encoder 'one', expected 'two'"):
        RewardModel.load(tmp_path / "a", encoder="two")
    assert RewardModel.load(tmp_path / "a").encoder_ == "one"


def parts(tmp_path):
    fitted().save(tmp_path / "good")
    raw = (tmp_path / "good").read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + length])
    facts = json.loads(header.pop("__metadata__")["dal-native"])
    model = RewardModel.load(tmp_path / "good")
    tensors = {
        "score.weight": model.coef_[None],
        "rationality": model.rationality_,
        "log_rationality_se": np.full((5, 2), 0.5),
        "information": model.information_,
        "coef_covariance": model.coef_covariance(),
        "position_bias": model.position_bias_,
        "position_bias_se": model.position_bias_se_,
        "rationality_known": np.zeros((5, 2)),
        "rationality_path": model.rationality_path_,
        "rounds": np.zeros(1),
    }
    return tensors, facts


def without(mapping, key):
    return {name: value for name, value in mapping.items() if name != key}


@pytest.mark.parametrize(
    ("words", "change"),
    [
        ("tensors are", lambda t, f: (without(t, HEAD), f)),
        ("tensors are", lambda t, f: ({**t, "more": np.ones(1)}, f)),
        (
            "'score.weight' is not float64",
            lambda t, f: ({**t, HEAD: np.ones((1, 3), np.float32)}, f),
        ),
        (
            "'score.weight' holds NaN or infinity",
            lambda t, f: ({**t, HEAD: np.array([[1, np.nan, 0]])}, f),
        ),
        ("'score.weight' has shape \\(3, 1\\)", lambda t, f: ({**t, HEAD: np.ones((3, 1))}, f)),
        (
            "'information' has shape \\(3, 3\\), expected",
            lambda t, f: ({**t, HEAD: np.ones((1, 4))}, f),
        ),
        ("'rationality' has shape \\(0, 2\\)", lambda t, f: ({**t, "rationality": np.ones((0, 2))}, f)),
        ("'rationality' has shape \\(5,\\)", lambda t, f: ({**t, "rationality": np.ones(5)}, f)),
        ("not positive definite", lambda t, f: ({**t, "information": -np.eye(3)}, f)),
        ("holds a negative number", lambda t, f: ({**t, "log_rationality_se": -np.ones((5, 2))}, f)),
        ("holds a negative number", lambda t, f: ({**t, "position_bias_se": -np.ones(5)}, f)),
        ("holds a negative number", lambda t, f: ({**t, "rounds": -np.ones(1)}, f)),
        ("other than 0 and 1", lambda t, f: ({**t, "rationality_known": np.full((5, 2), 2.0)}, f)),
        ("'rounds' has shape \\(1, 1\\)", lambda t, f: ({**t, "rounds": np.ones((1, 1))}, f)),
        ("'rationality_path' has", lambda t, f: ({**t, "rationality_path": np.ones((5, 2, 3))}, f)),
        ("newer version \\(format 3\\), expected at most 2", lambda t, f: (t, {**f, "version": 3})),
        ("older version \\(format 1\\), expected 2: fit again", lambda t, f: (t, {**f, "version": 1})),
        ("version '1' is not", lambda t, f: (t, {**f, "version": "1"})),
        ("version True is not", lambda t, f: (t, {**f, "version": True})),
        ("names no 'dal-native/reward'", lambda t, f: (t, {**f, "format": "other"})),
        ("parameters are not", lambda t, f: (t, {**f, "parameters": {"ridge": 1.0}})),
        ("parameters are not", lambda t, f: (t, {**f, "parameters": {**f["parameters"], "__class__": 1}})),
        ("parameters are not", lambda t, f: (t, {**f, "parameters": []})),
        ("ridge is -1", lambda t, f: (t, {**f, "parameters": {**f["parameters"], "ridge": -1}})),
        ("'gradient_norm'", lambda t, f: (t, without(f, "gradient_norm"))),
        ("iterations is 'many'", lambda t, f: (t, {**f, "iterations": "many"})),
        ("objective is None", lambda t, f: (t, {**f, "objective": None})),
        ("encoder is not a text", lambda t, f: (t, {**f, "encoder": 7})),
    ],
)
def test_files_that_do_not_fit(tmp_path, words, change):
    tensors, facts = change(*parts(tmp_path))
    (tmp_path / "bad").write_bytes(save(tensors, metadata={"dal-native": json.dumps(facts)}))
    with pytest.raises(ValueError, match=words) as caught:
        RewardModel.load(tmp_path / "bad")
    assert str(tmp_path / "bad") in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("words", "metadata"),
    [
        ("does not come from this package", None),
        ("does not come from this package", {"other": "{}"}),
        ("metadata is not JSON", {"dal-native": "{"}),
        ("metadata is not JSON", {"dal-native": '{"format": NaN}'}),
        ("metadata is not JSON", {"dal-native": "[" * 100_000}),
        ("metadata is not a JSON object", {"dal-native": "[]"}),
    ],
)
def test_metadata_that_does_not_fit(tmp_path, words, metadata):
    (tmp_path / "bad").write_bytes(save({"coef": np.ones(2)}, metadata=metadata))
    with pytest.raises(ValueError, match=words):
        RewardModel.load(tmp_path / "bad")


def header(text, data=b""):
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw + data


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x80\x04\x95",  # a pickle
        b"PK\x03\x04",  # a zip
        struct.pack("<Q", 2**62) + b"{}",  # a header longer than the file
        header("{}"),
        header(
            '{"coef": {"dtype": "F64", "shape": [4611686018427387904, 4], "data_offsets": [0, 8]}}', b"\0" * 8
        ),
        header(
            '{"a": {"dtype": "F64", "shape": [1], "data_offsets": [0, 8]},'
            ' "b": {"dtype": "F64", "shape": [1], "data_offsets": [0, 8]}}',
            b"\0" * 8,
        ),
    ],
)
def test_garbage(tmp_path, content):
    (tmp_path / "bad").write_bytes(content)
    with pytest.raises(ValueError, match="bad: "):
        RewardModel.load(tmp_path / "bad")


def test_no_file_and_a_file_too_large(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="no such file"):
        RewardModel.load(tmp_path / "nothing")
    with pytest.raises(ValueError, match="no such file"):
        RewardModel.load(tmp_path)
    fitted().save(tmp_path / "a")
    monkeypatch.setattr("dal_learn._reward_file.LARGEST", 100)
    with pytest.raises(ValueError, match="larger than 100 bytes"):
        RewardModel.load(tmp_path / "a")


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    path = tmp_path_factory.mktemp("reward") / "good"
    fitted().save(path)
    return path


@given(st.data())
@settings(max_examples=150)
def test_truncated_or_flipped_files_load_or_are_refused_but_never_crash(good, data):
    raw = bytearray(good.read_bytes())
    if data.draw(st.booleans()):
        raw = raw[: data.draw(st.integers(0, len(raw) - 1))]
        expected = ValueError
    else:
        place = data.draw(st.integers(0, len(raw) - 1))
        raw[place] ^= 1 << data.draw(st.integers(0, 7))
        expected = None  # a flipped digit of a coefficient cannot be seen
    bad = good.with_name("bad")
    bad.write_bytes(bytes(raw))
    try:
        model = RewardModel.load(bad)
    except ValueError:
        return
    assert expected is None and np.isfinite(model.coef_).all() and np.isfinite(model.information_).all()


def test_a_saved_model_reads_as_a_reward_head(tmp_path):
    model = fitted()
    model.save(tmp_path / "reward.safetensors", encoder="abc")
    coef, information, facts = sources.read_reward(tmp_path / "reward.safetensors", encoder="abc")
    assert np.array_equal(coef, model.coef_)
    assert np.array_equal(information, model.information_)
    assert facts["encoder"] == "abc"
