"""Fits of many answers take another road, and batches are added to it: the same optimum in the end."""

from __future__ import annotations

import numpy as np
import pytest

import dal_native as dn
from dal_learn import _fit
from dal_learn.reward import RewardModel


def crowd(T=1500, d=10, m=6, C=2, seed=0, dtype=np.float64):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(T, d)).astype(dtype)
    theta = rng.normal(size=d) / 2
    beta = np.exp(0.6 * rng.normal(size=(m, C)))
    j, c = rng.integers(0, m, T), rng.integers(0, C, T)
    y = (rng.random(T) < 1 / (1 + np.exp(-beta[j, c] * (x @ theta)))).astype(float)
    return x, y, j, c


def apart(a, b):
    """Posterior standard deviations between two thetas, and the largest change of log|beta|."""
    far = a.coef_ - b.coef_
    sizes = np.abs(np.log(np.abs(a.rationality_ / b.rationality_))).max()
    return float(np.sqrt(far @ a.information_ @ far)), float(sizes)


@pytest.fixture
def heavy(monkeypatch):
    """Every problem counts as one of many answers."""
    monkeypatch.setattr(_fit, "_HEAVY", 0.0)


@pytest.mark.parametrize("method", ["marginal", "joint_map", "homogeneous"])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("options", [{}, {"signed": True}, {"ties": True}, {"category_correlation": 0.0}])
def test_the_road_of_many_answers_ends_at_the_same_top(monkeypatch, method, dtype, options):
    x, y, j, c = crowd(dtype=dtype)
    if options.get("ties"):
        y[::7] = 0.5
    plain = RewardModel(method=method, tol=1e-8, **options).fit(x, y, j, c)
    monkeypatch.setattr(_fit, "_HEAVY", 0.0)
    other = RewardModel(method=method, tol=1e-8, **options).fit(x, y, j, c)
    assert other.converged_ and other.gradient_norm_ <= 1e-8
    assert max(apart(plain, other)) < 1e-6
    assert other.objective_ == pytest.approx(plain.objective_, abs=1e-8)


def test_that_road_is_taken(heavy, monkeypatch):
    taken = []
    monkeypatch.setattr(_fit, "_approached", lambda *a, real=_fit._approached: taken.append(1) or real(*a))
    RewardModel().fit(*crowd())
    assert taken


@pytest.mark.parametrize("many", [False, True])
@pytest.mark.parametrize(
    "paired",
    [
        False,
        pytest.param(
            True, marks=pytest.mark.skipif(not hasattr(dn.Pool, "from_pairs"), reason="no explicit pairs")
        ),
    ],
)
def test_batches_one_by_one_come_to_the_whole_fit(monkeypatch, many, paired):
    x, y, j, c = crowd()
    if many:
        monkeypatch.setattr(_fit, "_HEAVY", 0.0)
    else:
        assert len(x) * x.shape[1] ** 2 < _fit._HEAVY
    rows = [slice(0, 900), slice(900, 1100), slice(1100, 1101), slice(1101, 1500)]
    model = RewardModel(tol=1e-8)
    for part in rows:
        if paired:  # completions and their pairs
            count = part.stop - part.start
            completions = np.concatenate([np.zeros((1, x.shape[1])), x[part]])
            pairs = np.stack([np.zeros(count, int), np.arange(1, count + 1)], axis=1)
            model.partial_fit(completions, y[part], j[part], c[part], pairs=pairs)
        else:
            model.partial_fit(x[part], y[part], j[part], c[part])
    whole = RewardModel(tol=1e-8).fit(x, y, j, c)
    assert model.converged_
    assert max(apart(whole, model)) < (0.02 if many else 1e-6)


def test_a_small_batch_is_taken_in_without_a_whole_fit(heavy, monkeypatch):
    x, y, j, c = crowd(4000)
    model = RewardModel().fit(x[:3990], y[:3990], j[:3990], c[:3990])
    monkeypatch.setattr(_fit, "_ascend", None)  # a whole fit would call it
    model.partial_fit(x[3990:], y[3990:], j[3990:], c[3990:])
    monkeypatch.undo()
    whole = RewardModel(tol=1e-9).fit(x, y, j, c)
    assert model.converged_ and 0 < model.gradient_norm_ < 0.1
    assert max(apart(whole, model)) < 0.02
    assert model.information_ == pytest.approx(whole.information_, rel=2e-2, abs=0.5)


def test_new_teachers_in_a_batch(heavy):
    x, y, j, c = crowd(2000, m=5)
    j[1990:] = 5
    model = RewardModel().fit(x[:1990], y[:1990], j[:1990], c[:1990])
    model.partial_fit(x[1990:], y[1990:], j[1990:], c[1990:])
    assert model.rationality_.shape == (6, 2) and model.converged_
    assert max(apart(RewardModel().fit(x, y, j, c), model)) < 0.1


def test_what_partial_fit_refuses():
    x, y, j, c = crowd(50)
    with pytest.raises(ValueError, match="X has 3 features, but RewardModel is expecting 10"):
        RewardModel().fit(x, y, j, c).partial_fit(x[:, :3], y, j, c)
    with pytest.raises(ValueError, match="expected a model fitted here to choices"):
        RewardModel().fit_rankings(x, [[0, 1, 2]]).partial_fit(x, y)


@pytest.mark.parametrize("method", ["joint_map", "homogeneous"])
def test_a_mode_without_a_matrix_of_features(monkeypatch, method):
    x, y, j, c = crowd(300, d=12)
    dense = RewardModel(method=method, tol=1e-7).fit(x, y, j, c)
    monkeypatch.setattr(_fit, "_DENSE", 5)
    model = RewardModel(method=method, tol=1e-7).fit(x, y, j, c)
    assert model.converged_ and max(apart(dense, model)) < 1e-5


def test_warm_starts_end_where_cold_ones_do():
    x, y, j, c = crowd()
    model = RewardModel(warm_start=True, tol=1e-8).fit(x[:1200], y[:1200], j[:1200], c[:1200])
    steps = model.fit(x, y, j, c).n_iter_
    cold = RewardModel(tol=1e-8).fit(x, y, j, c)
    assert max(apart(cold, model)) < 1e-6 and steps <= cold.n_iter_


@pytest.mark.parametrize("first", [0, 4, 9])
def test_batches_may_begin_with_fewer_rows_than_features(first):
    x, y, j, c = crowd(T=60, d=12)
    model = RewardModel(tol=1e-8).fit(x[:first], y[:first], j[:first], c[:first])
    model.partial_fit(x[first:10], y[first:10], j[first:10], c[first:10])
    model.partial_fit(x[10:], y[10:], j[10:], c[10:])
    assert max(apart(model, RewardModel(tol=1e-8).fit(x, y, j, c))) < 1e-5


KNOWN = np.array([[1.0, 2], [3, -4], [-5, 6], [1, 1], [2, 2], [1, np.nan]])


@pytest.mark.parametrize("many", [False, True])
@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"lapse": 0.0}, {"lapse": 0.3}),
        ({"lapse": 0.1}, {"lapse": "fit"}),
        ({"ties": True}, {"ties": False}),
        ({"ties": False}, {"ties": True}),
        ({"signed": True}, {"signed": False}),
        ({"ridge": 1.0}, {"ridge": 30.0}),
        ({"rationality_scale": 0.5}, {"rationality_scale": 1.0}),
        ({"method": "joint_map"}, {"method": "marginal"}),
        ({"rationality": KNOWN}, {"rationality": None}),
        ({"rationality": KNOWN}, {"rationality": np.abs(KNOWN)}),
    ],
)
def test_a_later_fit_has_the_parameters_of_its_own(monkeypatch, many, before, after):
    x, y, j, c = crowd(T=300, d=3)
    y[::5], y[j == 1] = 0.5, 1 - y[j == 1]
    cold = RewardModel(tol=1e-8, **after).fit(x, y, j, c)
    if many:
        monkeypatch.setattr(_fit, "_HEAVY", 0.0)
    warm = RewardModel(tol=1e-8, warm_start=True, **before).fit(x, y, j, c).set_params(**after)
    assert max(apart(warm.fit(x, y, j, c), cold)) < 1e-5
    model = RewardModel(tol=1e-8, **before).fit(x[:-2], y[:-2], j[:-2], c[:-2]).set_params(**after)
    assert max(apart(model.partial_fit(x[-2:], y[-2:], j[-2:], c[-2:]), cold)) < 1e-5


def test_a_known_rationality_first_asked_in_a_batch(heavy):
    x, y, j, c = crowd(T=600, m=4)
    known = np.full((5, 2), np.nan)
    known[4] = 3.0
    model = RewardModel(rationality=known).fit(x, y, j, c).partial_fit(0.01 * x[:1], [1], [4])
    assert model._fitted.rationality[-1] == 3.0 and model.rationality_[4, 0] == 3.0


def test_drift_without_labels():
    model = RewardModel(drift=0.1).fit(np.zeros((0, 2)), [], n_teachers=3)
    assert model.rationality_path_.shape == (3, 1, 1) and (model.rationality_se_ == 0.5).all()


def test_signs_that_change_from_round_to_round():
    x, _, j, _ = crowd(T=900, m=3)
    when = np.arange(900) // 300
    honest = np.where((j == 2) & (when == 1), -1.0, 1.0)
    y = (honest * x[:, 0] > 0).astype(float)
    model = RewardModel(signed=True, drift=0.1).fit(x, y, j, round=2 * when)
    signs = np.sign(model.rationality_path_[:, 0])
    assert signs.tolist() == [[1, 1, 1], [1, 1, 1], [1, -1, 1]]
