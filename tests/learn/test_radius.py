"""Radii of confidence sets: quantiles, bootstrap and calibration, and what they cover."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from scipy import stats

import dal_native as dn
from dal_learn import radius as radii
from dal_learn.radius import (
    Radius,
    bootstrap_radius,
    calibrated_radius,
    confidence_radius,
    nominal_radius,
    posterior_reward_norm,
)
from dal_learn.reward import ConvergenceWarning, RewardModel
from dal_learn.reward_cv import RewardModelCV


@pytest.mark.parametrize("d", [1, 2, 17, 512])
@pytest.mark.parametrize("delta", [0.5, 0.1, 0.001])
def test_radius_is_the_quantile(d, delta):
    assert confidence_radius(d, delta) == pytest.approx(np.sqrt(stats.chi2.ppf(1 - delta, d)), rel=1e-9)
    policy = confidence_radius(d, delta, kind="policy")
    assert policy == pytest.approx(stats.norm.ppf(1 - delta), abs=1e-9)
    assert confidence_radius(d, delta, ridge=4.0, reward_norm=3.0) == pytest.approx(
        confidence_radius(d, delta) + 6.0
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"d": 0, "delta": 0.1}, "d is 0"),
        ({"d": 2.5, "delta": 0.1}, "d is 2.5"),
        ({"d": 2, "delta": 0.0}, "delta is 0"),
        ({"d": 2, "delta": 1.0}, "delta is 1"),
        ({"d": 2, "delta": np.nan}, "delta is nan"),
        ({"d": 2, "delta": 0.6, "kind": "policy"}, "delta is 0.6"),
        ({"d": 2, "delta": 0.6, "kind": "sample"}, "delta is 0.6"),
        ({"d": 2, "delta": 1.0, "kind": "sample", "count": 2}, "delta is 1"),
        ({"d": 2, "delta": 0.1, "kind": "sample", "count": 0}, "count is 0"),
        ({"d": 2, "delta": 0.1, "count": 2}, "count is 2 for kind 'ellipsoid'"),
        ({"d": 2, "delta": 0.1, "kind": "bootstrap"}, "kind is 'bootstrap'"),
        ({"d": 2, "delta": 0.1, "ridge": 1.0}, "ridge and reward_norm must be given together"),
        ({"d": 2, "delta": 0.1, "ridge": -1.0, "reward_norm": 1.0}, "ridge is -1"),
        ({"d": 2, "delta": 0.1, "ridge": 1.0, "reward_norm": np.inf}, "reward_norm is inf"),
    ],
)
def test_radius_refuses(arguments, words):
    with pytest.raises(ValueError, match=words):
        confidence_radius(**arguments)


@pytest.mark.parametrize("d", [1, 3, 40])
@pytest.mark.parametrize("count", [1, 2, 7, 10**5])
def test_samples_pay_for_their_number_and_never_more_than_the_ellipsoid(d, count):
    found = confidence_radius(d, 0.1, kind="sample", count=count)
    single = stats.norm.ppf(1 - 0.1 / count)
    assert found == pytest.approx(min(single, confidence_radius(d, 0.1)), rel=1e-9)
    assert found <= confidence_radius(d, 0.1, kind="sample", count=count + 1)


def test_bounds_of_several_completions_hold_together():
    """Exactly normal errors, d small and large beside the completions; correlated ones too."""
    rng = np.random.default_rng(0)
    for d, k in ((2, 30), (20, 5)):
        phi = rng.standard_normal((k, d)) + rng.standard_normal(d)
        error = rng.standard_normal((4000, d))  # M = I
        low = error @ phi.T - confidence_radius(d, 0.2, "sample", count=k) * np.linalg.norm(phi, axis=1)
        covered = np.mean((low <= 0).all(axis=1))
        assert 0.785 <= covered <= 0.93, (d, k, covered)


def test_quantiles_with_few_degrees_of_freedom_are_those_of_f_and_student():
    assert radii._quantile(4, 0.1, "ellipsoid", 1, 7.5) == pytest.approx(
        np.sqrt(4 * stats.f.ppf(0.9, 4, 7.5)), rel=1e-9
    )
    assert radii._quantile(4, 0.1, "policy", 1, 7.5) == pytest.approx(stats.t.ppf(0.9, 7.5), rel=1e-6)


# ------------------------------------------------------------------------------------------- fitted models


def answered(seed, count, d=4, copies=1, teachers=8, spread=0.0):
    """Fitted to labels of a known truth, every one of them `copies` times; the truth beside it."""
    rng = np.random.default_rng(seed)
    theta = rng.standard_normal(d)
    theta *= 1.5 / np.linalg.norm(theta)
    x, j = rng.standard_normal((count, d)), np.arange(count) % teachers
    each = theta + spread * rng.standard_normal((teachers, d))
    y = (rng.random(count) < dn.choice_probability(np.sum(x * each[j], axis=1), 1.0)).astype(float)
    model = RewardModel(method="homogeneous")
    return model.fit(np.tile(x, (copies, 1)), np.tile(y, copies), teacher=np.tile(j, copies)), theta


def distance(model, theta):
    away = model.coef_ - theta
    return float(np.sqrt(away @ model.information_ @ away))


def test_the_norm_of_the_posterior():
    model, _ = answered(0, 60)
    spread = np.linalg.inv(model.information_)
    expected = np.sqrt(np.sum(model.coef_**2) + np.trace(spread))
    assert posterior_reward_norm(model) == pytest.approx(expected)


@pytest.mark.parametrize("make", [nominal_radius, bootstrap_radius, calibrated_radius])
def test_a_radius_says_what_it_rests_on(make):
    model, theta = answered(1, 80)
    found = make(model, 0.2, reward_norm=float(np.linalg.norm(theta)))
    assert isinstance(found, Radius) and found.source in make.__name__
    assert float(found) == found.value == pytest.approx(found.nominal * found.inflation + found.bias)
    assert found.bias == pytest.approx(1.5) and found.nominal == confidence_radius(4, 0.2)
    assert (found.n_boot > 0, found.folds > 0) == (make is bootstrap_radius, make is calibrated_radius)
    assert str(found).startswith(f"delta 0.2 -> radius {found.value:.4g} (ellipsoid, {found.source}")
    assert "|theta| is at most 1.5" in found.assumption
    assert model.lower_bound(np.ones((1, 4)), found) == model.lower_bound(np.ones((1, 4)), found.value)
    assert make(model, reward_norm=0).bias == 0.0 and "pull" in make(model, reward_norm=0).assumption


@pytest.mark.parametrize("groups", ["conversation", "teacher", "label"])
@pytest.mark.parametrize("make", [bootstrap_radius, calibrated_radius])
def test_same_bits_for_a_seed(make, groups):
    model, _ = answered(2, 120, copies=2)
    first, again = (make(model, groups=groups, seed=5) for _ in range(2))
    assert first == again
    if make is bootstrap_radius or groups == "conversation":  # as many folds as teachers: nothing is drawn
        assert make(model, groups=groups, seed=6).inflation != first.inflation


def test_groups_by_hand_are_those_by_name():
    x = np.random.default_rng(0).standard_normal((40, 2))
    y, j = (x[:, 0] > 0).astype(float), np.arange(120) % 5
    weight = np.ones(120)
    weight[7] = 0.0  # a label that does not count keeps its place
    model = RewardModel().fit(np.tile(x, (3, 1)), np.tile(y, 3), teacher=j, sample_weight=weight)
    by_hand = {"conversation": np.arange(120) % 40 + 7, "teacher": -j, "label": np.arange(120)}
    for name, groups in by_hand.items():
        for make in (bootstrap_radius, calibrated_radius):
            one, other = make(model, groups=name).inflation, make(model, groups=groups).inflation
            assert one == pytest.approx(other, rel=0.15), (name, make)
    assert calibrated_radius(model, groups=j) == calibrated_radius(model, groups="teacher")


def test_one_step_is_near_the_exact_refit():
    model, _ = answered(3, 400)
    step = bootstrap_radius(model, n_boot=300, reward_norm=0).value
    refit = bootstrap_radius(model, n_boot=300, reward_norm=0, method="refit").value
    assert step == pytest.approx(refit, rel=0.1)


def test_the_bootstrap_has_the_sandwichs_covariance():
    """Its ellipsoid is the quantile of a normal vector with that covariance, measured by M."""
    model, _ = answered(4, 600, copies=3)
    factor = np.linalg.cholesky(_by_conversation(model, 600))
    draws = np.random.default_rng(0).standard_normal((20_000, 4)) @ factor.T
    lengths = np.sqrt(np.einsum("bi,ij,bj->b", draws, model.information_, draws))
    found = bootstrap_radius(model, n_boot=4000, reward_norm=0)
    assert found.value == pytest.approx(np.quantile(lengths, 0.9), rel=0.05)
    v = np.array([1.0, -1.0, 0.0, 2.0])
    length = np.sqrt(v @ np.linalg.solve(model.information_, v))
    one = bootstrap_radius(model, kind="policy", features=v, n_boot=4000, reward_norm=0)
    assert one.value == pytest.approx(stats.norm.ppf(0.9) * np.linalg.norm(factor.T @ v) / length, rel=0.08)


def _by_conversation(model, count):
    """Sandwich whose scores are summed over equal rows."""
    effects = np.concatenate(list(model._effects(model._joint())))
    total = sum(effects[k * count : (k + 1) * count] for k in range(len(effects) // count))
    return total.T @ total


def test_several_samples_lie_between_one_and_the_ellipsoid():
    model, _ = answered(5, 300)
    v = np.random.default_rng(1).standard_normal((6, 4))
    shared = {"n_boot": 2000, "reward_norm": 0}
    together = bootstrap_radius(model, kind="sample", features=v, **shared).value
    singles = [bootstrap_radius(model, kind="policy", features=row, **shared).value for row in v]
    assert max(singles) < together < bootstrap_radius(model, **shared).value
    few = calibrated_radius(model, kind="sample", count=3, reward_norm=0)
    assert few.value >= confidence_radius(4, 0.1, "sample", count=3)


def test_coverage_where_the_model_is_right_and_where_answers_are_copied():
    """Of the ellipsoid at delta = 0.1; four copies of every answer double the errors."""
    inside = {(copies, name): [] for copies in (1, 4) for name in ("nominal", "bootstrap", "calibrated")}
    for copies, count in ((1, 120), (4, 80)):
        for seed in range(40):
            model, theta = answered(seed, count, copies=copies)
            found = {
                "nominal": nominal_radius(model, reward_norm=0),
                "bootstrap": bootstrap_radius(model, n_boot=200, reward_norm=0),
                "calibrated": calibrated_radius(model, reward_norm=0),
            }
            for name, radius in found.items():
                inside[copies, name].append(distance(model, theta) <= radius.value)
    covered = {key: np.mean(hits) for key, hits in inside.items()}
    assert covered[1, "nominal"] >= 0.8 and covered[4, "nominal"] <= 0.5, covered
    for copies in (1, 4):
        assert covered[copies, "bootstrap"] >= 0.78, covered
        assert covered[copies, "calibrated"] >= 0.8, covered


def test_teachers_with_tastes_of_their_own_are_noticed_by_teacher_only():
    model, _ = answered(0, 800, teachers=16, spread=0.8)
    assert calibrated_radius(model, groups="conversation", reward_norm=0).inflation < 1.4
    assert calibrated_radius(model, groups="teacher", reward_norm=0).inflation > 1.5
    assert bootstrap_radius(model, groups="teacher", reward_norm=0).inflation > 1.5


def test_every_kind_of_fit_is_taken():
    rng = np.random.default_rng(0)
    x, j, c = rng.standard_normal((150, 3)), np.arange(150) % 5, np.arange(150) % 2
    y = (rng.random(150) < dn.choice_probability(x[:, 0], 2.0)).astype(float)
    given = {"teacher": j, "category": c, "side": np.where(c, 1, -1), "round": np.arange(150) // 50}
    models = [
        RewardModel(position_bias=0.5, drift=0.2).fit(x, y, **given),
        RewardModel(lapse="fit", ridge="evidence").fit(x, y, **given),
        RewardModel(ties=True).fit(x, np.where(np.arange(150) % 7 == 0, 0.5, y), teacher=j),
        RewardModel(rationality=[1.0, 2.0, np.nan, np.nan, 1.0]).fit(x, y, teacher=j),
        RewardModelCV([0.3, 3.0], [0.5], cv=2).fit(x, y, teacher=j),
        RewardModel().fit_rankings(x, [rng.permutation(150)[:3] for _ in range(60)], teacher=j[:60]),
        RewardModel().fit(x, y[:60], teacher=j[:60], pairs=np.arange(120).reshape(60, 2)),
    ]
    for model in models:
        for found in (
            bootstrap_radius(model, n_boot=100),
            bootstrap_radius(model, n_boot=20, method="refit"),
            calibrated_radius(model, folds=3),
        ):
            assert np.isfinite(found.value) and 0.3 < found.inflation < 3


def test_many_groups_share_weights(monkeypatch):
    model, _ = answered(6, 500)
    apart = bootstrap_radius(model, n_boot=2000, reward_norm=0).value
    monkeypatch.setattr(radii, "_MOST_GROUPS", 100)
    monkeypatch.setattr(radii, "_BLOCK_WEIGHTS", 700)
    assert bootstrap_radius(model, n_boot=2000, reward_norm=0).value == pytest.approx(apart, rel=0.15)


def test_separable_labels_give_finite_radii():
    x = np.array([[1.0, 0.0], [2.0, 1.0], [1.5, -1.0], [3.0, 0.5]])
    model = RewardModel(ridge=0.1).fit(x, np.ones(4))
    for found in (bootstrap_radius(model), calibrated_radius(model, folds=2)):
        assert np.isfinite(found.value) and found.value > 0


def test_fits_that_stop_early_are_reported():
    model, _ = answered(7, 60)
    model.max_iter = 1
    model.tol = 1e-12
    with pytest.warns(ConvergenceWarning, match="10 of 10 fits did not converge") as said:
        calibrated_radius(model)
    with pytest.warns(ConvergenceWarning, match="20 of 20 fits did not converge") as said_too:
        bootstrap_radius(model, method="refit", n_boot=20)
    assert {said[0].filename, said_too[0].filename} == {__file__}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bootstrap_radius(model)


@pytest.mark.parametrize(
    ("make", "arguments", "words"),
    [
        (bootstrap_radius, {"kind": "policy"}, "features is missing"),
        (bootstrap_radius, {"features": np.ones(4)}, "features is given for kind 'ellipsoid'"),
        (bootstrap_radius, {"kind": "policy", "features": np.ones(3)}, "expected 4 features"),
        (bootstrap_radius, {"kind": "sample", "features": np.ones((0, 4))}, "at least one row"),
        (bootstrap_radius, {"kind": "sample", "features": np.eye(4)[[0]] * 0}, r"features\[0\] is 0"),
        (bootstrap_radius, {"kind": "sample", "features": np.ones(4)}, "features has 1 dimensions"),
        (bootstrap_radius, {"method": "exact"}, "method is 'exact'"),
        (bootstrap_radius, {"n_boot": 5}, "n_boot is 5"),
        (bootstrap_radius, {"seed": -1}, "seed is -1"),
        (bootstrap_radius, {"groups": np.zeros(60, int)}, "holds 1 groups for 3.[0-9] directions"),
        (bootstrap_radius, {"delta": 0.0}, "delta is 0"),
        (bootstrap_radius, {"delta": 0.01, "n_boot": 99}, "delta is 0.01, too small for 99 draws"),
        (calibrated_radius, {"folds": 1}, "folds is 1"),
        (calibrated_radius, {"folds": 10**4}, "folds is 10000"),
        (calibrated_radius, {"groups": np.zeros(60, int)}, "groups holds 1 group"),
        (calibrated_radius, {"groups": np.zeros(3, int)}, "groups"),
        (calibrated_radius, {"groups": "prompt"}, "groups is 'prompt'"),
        (calibrated_radius, {"kind": "sample", "count": 0}, "count is 0"),
        (calibrated_radius, {"reward_norm": -1.0}, "reward_norm is -1"),
        (nominal_radius, {"reward_norm": np.nan}, "reward_norm is nan"),
        (nominal_radius, {"kind": "bootstrap"}, "kind is 'bootstrap'"),
    ],
)
def test_refusals_of_model_and_labels(make, arguments, words):
    model, _ = answered(8, 60)
    with pytest.raises(ValueError, match=words):
        make(model, **arguments)


@pytest.mark.parametrize("kind", ["ellipsoid", "policy", "sample"])
def test_radii_of_very_small_chances_are_finite_and_those_of_even_ones_may_be_0(kind):
    model, _ = answered(8, 60)
    tight = [calibrated_radius(model, delta, kind, reward_norm=0) for delta in (1e-4, 1e-9, 1e-18, 1e-25)]
    assert np.isfinite([float(x) for x in tight]).all()
    assert (np.diff([float(x) for x in tight]) > 0).all()
    even = calibrated_radius(model, 0.5, kind, reward_norm=0)
    assert (even.value == even.nominal == 0.0) == (kind != "ellipsoid")
    if kind == "policy":
        assert even.inflation == 1.0
        assert bootstrap_radius(model, 0.5, kind, features=np.ones(4), reward_norm=0).value >= 0.0


@pytest.mark.parametrize("make", [nominal_radius, bootstrap_radius, calibrated_radius])
def test_models_without_a_fit_or_labels_are_refused(make, tmp_path):
    with pytest.raises(ValueError, match="not fitted"):
        make(RewardModel())
    with pytest.raises(ValueError, match="model is dict"):
        make({})
    if make is nominal_radius:
        return
    with pytest.raises(ValueError, match="fitted without labels"):
        make(RewardModel().fit(np.zeros((0, 2)), []))
    answered(9, 20)[0].save(tmp_path / "reward.safetensors")
    with pytest.raises(ValueError, match="loaded from a file"):
        make(RewardModel.load(tmp_path / "reward.safetensors"))
