"""RewardModelCV: the scores are held-out log likelihoods, the choice is theirs, the habits scikit-learn's."""

from __future__ import annotations

import numpy as np
import pytest

import dal_learn as dl
from dal_learn.reward import ConvergenceWarning, RewardModel
from dal_learn.reward_cv import RewardModelCV


def labels(T=240, d=4, m=5, C=2, seed=0, size=1.0, spread=0.8):
    rng = np.random.default_rng(seed)
    x, theta = rng.normal(size=(T, d)), size * rng.normal(size=d)
    beta = np.exp(spread * rng.normal(size=(m, C)))
    j, c = rng.integers(0, m, T), rng.integers(0, C, T)
    y = (rng.random(T) < 1 / (1 + np.exp(-beta[j, c] * (x @ theta)))).astype(float)
    return x, y, j, c


def log_likelihood(model, x, y, j, c):
    p = np.clip(model.predict_proba(x, j, c)[:, 1], 1e-300, 1)
    return y * np.log(p) + (1 - y) * np.log1p(-p)


def test_scores_are_held_out_log_likelihoods():
    x, y, j, c = labels()
    v = np.random.default_rng(1).uniform(0.5, 2, len(y))
    grid = {"ridges": [0.3, 5.0], "rationality_scales": [0.2, 0.9]}
    model = RewardModelCV(**grid, cv=3, tol=1e-8).fit(x, y, j, c, v)
    for a, ridge in enumerate(grid["ridges"]):
        for b, scale in enumerate(grid["rationality_scales"]):
            told, total = [], []
            for k in range(3):
                out = model.fold_ == k
                one = RewardModel(ridge, scale, tol=1e-8)
                one.fit(x[~out], y[~out], j[~out], c[~out], v[~out], n_teachers=5, n_categories=2)
                told.append(v[out] @ log_likelihood(one, x[out], y[out], j[out], c[out]))
                total.append(v[out].sum())
            each = np.array(told) / total
            assert model.scores_[a, b] == pytest.approx(sum(told) / sum(total), abs=1e-6)
            error = np.sqrt(np.mean((each - model.scores_[a, b]) ** 2) / 2)
            assert model.scores_error_[a, b] == pytest.approx(error, abs=1e-6)
    best = np.unravel_index(model.scores_.argmax(), (2, 2))
    assert model.ridge_ == grid["ridges"][best[0]]
    assert model.rationality_scale_ == grid["rationality_scales"][best[1]]
    last = RewardModel(model.ridge_, model.rationality_scale_, tol=1e-8).fit(x, y, j, c, v)
    assert np.array_equal(model.coef_, last.coef_) and np.array_equal(model.rationality_, last.rationality_)
    assert np.array_equal(model.coef_covariance(), last.coef_covariance())


def test_folds_are_even_and_keep_groups_together():
    x, y, j, c = labels()
    weight = np.ones(240)
    weight[::7] = 0
    model = RewardModelCV([1.0], [0.5], cv=4).fit(x, y, j, c, weight)
    assert (model.fold_[::7] == -1).all()
    counts = np.bincount(model.fold_[weight > 0])
    assert len(counts) == 4 and np.ptp(counts) <= 1
    groups = np.random.default_rng(0).integers(10, 50, 240)
    model = RewardModelCV([1.0], [0.5], cv=4).fit(x, y, j, c, weight, groups=groups)
    for g in np.unique(groups):
        assert len(np.unique(model.fold_[(groups == g) & (weight > 0)])) <= 1
    assert np.ptp(np.bincount(model.fold_[weight > 0])) <= 15
    again = RewardModelCV([1.0], [0.5], cv=4, seed=1).fit(x, y, j, c, weight, groups=groups)
    assert not np.array_equal(again.fold_, model.fold_)
    few = RewardModelCV([1.0], [0.5], cv=7).fit(x, y, j, c, groups=np.arange(240) % 3)
    assert len(np.unique(few.fold_)) == 3


def test_the_grid_finds_what_made_the_labels():
    """A reward twenty times too small for the ridge at hand, teachers who are all alike."""
    x, y, j, c = labels(1500, 4, 6, 1, seed=3, size=5.0, spread=0.0)
    model = RewardModelCV([0.02, 1.0, 50.0, 2500.0], [0.05, 1.5]).fit(x, y, j, c)
    assert model.ridge_ < 50 and model.rationality_scale_ == 0.05
    rng = np.random.default_rng(0)
    noise = RewardModelCV([0.01, 1e4], [0.5]).fit(x, (rng.random(1500) < 0.5).astype(int), j, c)
    assert noise.ridge_ == 1e4


def test_one_standard_error_takes_the_stronger_prior():
    x, y, j, c = labels(150, 6)
    grid = ([0.01, 0.1, 1.0, 3.0, 10.0], [0.25, 0.5, 1.0])
    best = RewardModelCV(*grid).fit(x, y, j, c)
    careful = RewardModelCV(*grid, one_standard_error=True).fit(x, y, j, c)
    assert np.array_equal(best.scores_, careful.scores_)
    top = np.unravel_index(best.scores_.argmax(), best.scores_.shape)
    near = best.scores_ >= best.scores_[top] - best.scores_error_[top]
    row = np.flatnonzero(near.any(axis=1)).max()
    assert careful.ridge_ == grid[0][row] and careful.ridge_ >= best.ridge_
    assert careful.rationality_scale_ == grid[1][np.flatnonzero(near[row]).min()]


@pytest.mark.parametrize(
    "options",
    [
        {"ties": True},
        {"lapse": "fit"},
        {"lapse": 0.1, "position_bias": 0.5},
        {"drift": 0.3},
        {"signed": True},
        {"method": "joint_map"},
        {"method": "homogeneous"},
        {"rationality": [1.0, np.nan, 2.0, np.nan, 1.0]},
    ],
)
def test_every_piece_of_the_likelihood_is_held_out(options):
    x, y, j, c = labels(160)
    rng = np.random.default_rng(0)
    y[:30] = 0.5
    more = {"side": rng.integers(-1, 2, 160), "round": rng.integers(0, 4, 160)}
    model = RewardModelCV([0.5, 2.0], [0.5], cv=2, tol=1e-8, **options).fit(x, y, j, c, **more)
    assert model.ridge_ in (0.5, 2.0) and model.converged_ and np.isfinite(model.scores_).all()
    told = 0.0
    for k in range(2):
        fold, out = model.fold_ != k, model.fold_ == k
        one = RewardModel(2.0, 0.5, tol=1e-8, **options)
        one.fit(
            *(x[fold], y[fold], j[fold], c[fold], None, 5, 2),
            **{key: values[fold] for key, values in more.items()},
        )
        when = np.maximum(np.searchsorted(one.rounds_, more["round"], side="right") - 1, 0)
        one.rationality_ = np.ones((160, 1))  # each label its own teacher, of the rationality at the time
        one.rationality_[:, 0] = one.rationality_path_[j, c, when if options.get("drift") else 0]
        one.n_teachers_, one.n_categories_, one.position_bias_ = 160, 1, one.position_bias_[j]
        p = np.log(one.predict_proba(x, np.arange(160), side=more["side"]))
        each = np.where(y == 0.5, p[:, 1] if "ties" in options else 0.5 * (p[:, 0] + p[:, -1]), 0.0)
        each = np.where(y == 0, p[:, 0], np.where(y == 1, p[:, -1], each))
        told += each[out].sum()
    assert model.scores_[1, 0] == pytest.approx(told / 160, abs=1e-6)


def test_rankings():
    rng = np.random.default_rng(0)
    phi, theta = rng.normal(size=(40, 3)), np.array([2.0, -1.0, 0.0])
    orders = []
    for _ in range(150):
        items = rng.choice(40, rng.integers(2, 5), replace=False)
        orders.append(items[np.argsort(-(phi[items] @ theta) + rng.gumbel(size=len(items)))])
    teacher, weight = rng.integers(0, 3, 150), np.ones(150)
    weight[5] = 0
    model = RewardModelCV([0.1, 1e5], [0.5], cv=3).fit_rankings(phi, orders, teacher, sample_weight=weight)
    assert model.ridge_ == 0.1 and model.fold_[5] == -1 and (np.delete(model.fold_, 5) >= 0).all()
    told = 0.0
    for k in range(3):
        kept = np.flatnonzero((model.fold_ >= 0) & (model.fold_ != k))
        one = RewardModel(0.1, 0.5, tol=1e-8)
        one.fit_rankings(phi, [orders[i] for i in kept], teacher[kept], n_teachers=3)
        for i in np.flatnonzero(model.fold_ == k):
            t = one.rationality_[teacher[i], 0] * (phi[orders[i]] @ one.coef_)
            told += sum(t[a] - np.logaddexp.reduce(t[a:]) for a in range(len(t) - 1))
    assert model.scores_[0, 0] == pytest.approx(told / 149, abs=1e-5)


def test_the_same_again_to_the_bit_and_through_a_file(tmp_path):
    x, y, j, c = labels(100)
    model = RewardModelCV(np.array([0.1, 1.0]), (0.5,), cv=3).fit(x, y, j, c)
    other = RewardModelCV(np.array([0.1, 1.0]), (0.5,), cv=3).fit(x, y, j, c)
    assert np.array_equal(model.scores_, other.scores_) and np.array_equal(model.coef_, other.coef_)
    model.save(tmp_path / "a")
    again = RewardModelCV.load(tmp_path / "a")
    assert again.ridge_ == model.ridge_ and np.array_equal(again.predict(x, j, c), model.predict(x, j, c))
    assert again.ridges == [0.1, 1.0] and again.cv == 3


@pytest.mark.parametrize(
    ("words", "parameters"),
    [
        ("ridges is \\[\\]", {"ridges": []}),
        ("ridges is \\[1.0, -1.0\\]", {"ridges": [1.0, -1.0]}),
        ("ridges is not finite", {"ridges": [np.nan]}),
        ("rationality_scales is 0", {"rationality_scales": [0.0]}),
        ("cv is 1", {"cv": 1}),
        ("seed is -1", {"seed": -1}),
        ("one_standard_error is 'yes'", {"one_standard_error": "yes"}),
        ("lapse is 2", {"lapse": 2}),
    ],
)
def test_parameters_are_looked_at_when_fitting(words, parameters):
    words = words.replace("is 0", "is \\[0.0\\]")
    with pytest.raises(ValueError, match=words):
        RewardModelCV(**parameters).fit(np.ones((4, 1)), [0, 1, 0, 1])


def test_refusals():
    with pytest.raises(ValueError, match="groups has length 1; expected 2"):
        RewardModelCV().fit(np.ones((2, 1)), [0, 1], groups=[0])
    with pytest.raises(ValueError, match="two labels or groups \\(n_samples = 1\\)"):
        RewardModelCV().fit(np.ones((2, 1)), [0, 1], groups=[3, 3])
    with pytest.raises(ValueError, match="two labels or groups"):
        RewardModelCV().fit(np.ones((1, 1)), [0])
    with pytest.warns(ConvergenceWarning) as caught:
        RewardModelCV([1.0, 0.1], [0.5], cv=2, max_iter=1).fit(*labels(60))
    said = sorted(str(one.message) for one in caught)
    assert said[0] == "4 of 4 fits of the cross-validation did not converge" and len(said) == 2


def test_habits_of_an_estimator():
    assert dl.RewardModelCV is RewardModelCV and issubclass(RewardModelCV, RewardModel)
    model = RewardModelCV([1.0], cv=2)
    assert repr(model) == "RewardModelCV(cv=2, ridges=[1.0])"
    assert set(model.get_params()) >= {"ridges", "rationality_scales", "cv", "lapse"}
    assert not {"ridge", "warm_start"} & set(model.get_params())
    with pytest.raises(ValueError, match="not fitted"):
        model.predict([[1.0]])
    base = pytest.importorskip("sklearn.base")
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import MaxAbsScaler

    x, y, _, _ = labels(80)
    assert base.clone(model).ridges == [1.0]
    line = make_pipeline(MaxAbsScaler(), RewardModelCV([0.1, 10.0], [0.5], cv=2))
    assert line.fit(x, y).score(x, y) > 0.6
