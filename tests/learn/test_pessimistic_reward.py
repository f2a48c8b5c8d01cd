"""The lower bound as an object that travels: its numbers, its file, what it refuses."""

from __future__ import annotations

import copy
import json
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from numpy.linalg import LinAlgError

import dal_native as dn
from dal_learn import PessimisticReward, RewardModel, lower_confidence_bound
from dal_learn._files import FileFormatError


def made(d=5, seed=0, **changes):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((3 * d, d))
    fields = {
        "coef": rng.standard_normal(d),
        "information": np.eye(d) + x.T @ x,
        "radius": 1.5,
        "reference": rng.standard_normal(d),
        "encoder": "abc",
    }
    return PessimisticReward(**{**fields, **changes})


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
def test_numbers_are_their_definition(dtype):
    reward = made()
    phi = np.random.default_rng(1).standard_normal((40, 5)).astype(dtype)
    away = phi.astype(np.float64) - reward.reference
    deviation = np.sqrt(np.einsum("ij,ij->i", away, np.linalg.solve(reward.information, away.T).T))
    found = reward.estimates(phi)
    np.testing.assert_allclose(found.mean, away @ reward.coef, atol=1e-12)
    np.testing.assert_allclose(found.standard_deviation, deviation, rtol=1e-12)
    np.testing.assert_allclose(found.lower_bound, away @ reward.coef - 1.5 * deviation, atol=1e-12)
    for one, name in zip(found, found._fields, strict=True):
        assert (getattr(reward, name)(phi) == one).all()
    pointwise = lower_confidence_bound(phi, reward.coef, reward.information, 1.5, reference=reward.reference)
    np.testing.assert_allclose(found.lower_bound, pointwise - reward.reference @ reward.coef, atol=1e-12)


def test_a_pool_of_prompts_counts_its_completions_and_not_their_pairs():
    reward, phi = made(), np.random.default_rng(3).standard_normal((6, 5))
    pool = dn.Pool.from_completions(phi, [0, 2, 6])
    for one, other in zip(reward.estimates(pool), reward.estimates(phi), strict=True):
        assert (one == other).all()
    assert (reward.mean(pool) == reward.mean(phi)).all()


def test_at_the_reference_nothing_is_claimed():
    reward = made()
    assert [float(x[0]) for x in reward.estimates(reward.reference[None])] == [0.0, 0.0, 0.0]


def test_bits_do_not_depend_on_the_batch_or_on_threads():
    reward = made(33)
    phi = np.random.default_rng(2).standard_normal((200, 33))
    whole = reward.lower_bound(phi)
    parts = [range(k, min(k + step, 200)) for step in (1, 7, 64) for k in range(0, 200, step)]
    with ThreadPoolExecutor(8) as threads:
        for part, found in zip(parts, threads.map(lambda p: reward.lower_bound(phi[p]), parts), strict=True):
            assert (found == whole[part]).all()


def test_from_a_model_and_its_file(tmp_path):
    rng = np.random.default_rng(3)
    model = RewardModel().fit(rng.standard_normal((30, 4)), rng.integers(0, 2, 30))
    model.save(tmp_path / "reward.safetensors", encoder="abc")
    phi, nu = rng.standard_normal((6, 4)), rng.standard_normal(4)
    reward = PessimisticReward.from_model(model, 2.0, reference=nu)
    np.testing.assert_allclose(reward.lower_bound(phi), model.lower_bound(phi, 2.0, nu), atol=1e-12)
    loaded = PessimisticReward.load(tmp_path / "reward.safetensors", encoder="abc", radius=2.0)
    np.testing.assert_allclose(loaded.lower_bound(phi), model.lower_bound(phi, 2.0), atol=1e-12)
    assert loaded.encoder == "abc"
    with pytest.raises(ValueError, match="holds a fitted reward without a radius"):
        PessimisticReward.load(tmp_path / "reward.safetensors")
    with pytest.raises(ValueError, match="made with encoder 'abc', expected 'other'"):
        PessimisticReward.load(tmp_path / "reward.safetensors", encoder="other", radius=1.0)
    with pytest.raises(ValueError, match="not fitted"):
        PessimisticReward.from_model(RewardModel(), 1.0)


def test_file_keeps_everything(tmp_path):
    class Quantile(float):
        assumption = "answers are independent"

    reward = made(radius=Quantile(1.25)).with_policy(np.arange(5.0))
    path = tmp_path / "pessimistic.safetensors"
    reward.save(path)
    first = path.read_bytes()
    found = PessimisticReward.load(path, encoder="abc")
    for name in ("coef", "information", "reference", "least_favourable_reward"):
        assert (getattr(found, name) == getattr(reward, name)).all()
    assert (found.radius, found.encoder, found.assumption) == (1.25, "abc", "answers are independent")
    found.save(path)
    assert path.read_bytes() == first
    other = PessimisticReward.load(path, radius=3.0)
    assert (other.radius, other.assumption) == (3.0, None)
    with pytest.raises(ValueError, match=r"^radius is inf"):
        PessimisticReward.load(path, radius=np.inf)
    assert PessimisticReward.load(path, radius=0.0).radius == 0.0
    phi = np.random.default_rng(4).standard_normal((9, 5))
    assert (found.lower_bound(phi) == reward.lower_bound(phi)).all()
    assert (found.least_favourable(phi) == reward.least_favourable(phi)).all()
    np.testing.assert_allclose(
        reward.least_favourable(phi), (phi - reward.reference) @ np.arange(5.0), atol=1e-12
    )
    with pytest.raises(ValueError, match="made with encoder 'abc', expected 'xyz'"):
        PessimisticReward.load(path, encoder="xyz")


def test_other_processes_can_have_it():
    reward = made(assumption="many labels").with_policy(np.arange(5.0))
    phi = np.random.default_rng(5).standard_normal((3, 5))
    for again in (pickle.loads(pickle.dumps(reward)), copy.deepcopy(reward)):
        assert (again.lower_bound(phi) == reward.lower_bound(phi)).all()
        assert (again.least_favourable(phi) == reward.least_favourable(phi)).all()
        assert (again.encoder, again.assumption) == ("abc", "many labels")
        assert not again.coef.flags.writeable and not again.information.flags.writeable


def test_nothing_can_be_changed():
    reward = made()
    with pytest.raises(AttributeError):
        reward.radius = 0.0
    for name in ("coef", "information", "reference", "factor"):
        with pytest.raises(ValueError, match="read-only"):
            getattr(reward, name)[...] = 0.0


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"coef": np.zeros((2, 2))}, "coef"),
        ({"coef": [0.0, np.nan, 0.0, 0.0, 0.0]}, "coef"),
        ({"information": np.eye(4)}, "M has shape"),
        ({"information": np.full((5, 5), np.inf)}, "M"),
        ({"radius": -1.0}, "radius is -1"),
        ({"radius": np.inf}, "radius is inf"),
        ({"radius": "large"}, "radius"),
        ({"reference": np.zeros(4)}, "reference"),
        ({"reference": np.full(5, np.nan)}, "reference"),
        ({"encoder": 7}, "encoder is a int; expected text"),
        ({"least_favourable_reward": np.zeros(6)}, "least_favourable_reward"),
    ],
)
def test_arguments_are_refused_by_name(changes, words):
    with pytest.raises(ValueError, match=words):
        made(**changes)


def test_a_matrix_that_is_not_positive_definite():
    with pytest.raises(LinAlgError, match="positive definite"):
        made(information=-np.eye(5))


def test_features_that_do_not_fit_are_refused():
    reward = made()
    with pytest.raises(ValueError, match="features have 4 columns; expected 5"):
        reward.lower_bound(np.zeros((2, 4)))
    with pytest.raises(ValueError, match="NaN or infinity, first in row 1"):
        reward.lower_bound(np.array([[0.0] * 5, [np.nan] * 5]))
    with pytest.raises(ValueError, match="no least favourable reward is known"):
        reward.least_favourable(np.zeros((1, 5)))
    with pytest.raises(ValueError, match="lower bound of row 1 overflows"):
        made(radius=1e308).lower_bound(np.stack([reward.reference, reward.reference + 1e3]))
    assert reward.lower_bound(np.zeros((0, 5))).shape == (0,)


@pytest.mark.parametrize(
    ("words", "spoil"),
    [
        ("information is missing", lambda t, f: ({k: v for k, v in t.items() if k != "information"}, f)),
        ("radius is missing", lambda t, f: (t, {k: v for k, v in f.items() if k != "radius"})),
        ("radius is beyond float64", lambda t, f: (t, {**f, "radius": 10**400})),
        ("radius is -2", lambda t, f: (t, {**f, "radius": -2.0})),
        ("expected one row", lambda t, f: ({**t, "score.weight": np.zeros((2, 5))}, f)),
        ("positive definite", lambda t, f: ({**t, "information": -np.eye(5)}, f)),
        ("encoder is a int", lambda t, f: (t, {**f, "encoder": 3})),
        ("newer version", lambda t, f: (t, {**f, "version": 99})),
        ("names no 'dal-native/pessimistic-reward'", lambda t, f: (t, {**f, "format": "dal-native/other"})),
        ("holds NaN", lambda t, f: ({**t, "reference": np.full(5, np.nan)}, f)),
    ],
)
def test_files_that_do_not_fit(tmp_path, words, spoil):
    from safetensors.numpy import load_file, save_file

    path = tmp_path / "spoilt.safetensors"
    made().save(path)
    tensors = load_file(path)
    facts = {"format": "dal-native/pessimistic-reward", "version": 1, "radius": 1.5, "encoder": None}
    tensors, facts = spoil(tensors, facts)
    save_file(tensors, path, metadata={"dal-native": json.dumps(facts)})
    with pytest.raises(FileFormatError, match=words):
        PessimisticReward.load(path)
