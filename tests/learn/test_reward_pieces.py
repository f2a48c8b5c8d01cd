"""Pieces of the reward's likelihood: ties, lapses, position, drift, hierarchy, signs, evidence."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import scipy.optimize
from hypothesis import given, settings
from hypothesis import strategies as st

from dal_learn._links import Lapsing, Logistic, RaoKupper
from dal_learn._teacher_blocks import TeacherBlocks
from dal_learn.reward import RewardModel


def logistic(t):
    return 1 / (1 + np.exp(-t))


def crowd(T=400, d=4, m=5, C=1, seed=0, size=1.0, spread=0.6):
    """X, teacher, category, strength t without bias; theta, beta."""
    rng = np.random.default_rng(seed)
    x, theta = rng.normal(size=(T, d)), size * rng.normal(size=d)
    log_beta = spread * rng.normal(size=(m, C))
    beta = np.exp(log_beta - log_beta.mean())
    j, c = rng.integers(0, m, T), rng.integers(0, C, T)
    return x, j, c, beta[j, c] * (x @ theta), theta, beta, rng


def choices(t, rng):
    return (rng.random(len(t)) < logistic(t)).astype(float)


def dense_prior(cells, scale, rho, drift=0.0):
    """Covariance of log rationalities of (teacher, category, round), entry by entry."""
    out = np.zeros((len(cells), len(cells)))
    for a, (j, c, w) in enumerate(cells):
        for b, (k, e, v) in enumerate(cells):
            if j == k:
                out[a, b] = (scale**2 + drift**2 * min(w, v)) * (1 if c == e else rho)
    return out


# --------------------------------------------------------------------------------------------- outcome models


def outcomes(link, t):
    """Chance of a (0), a tie (1/2, or None) and b (1) from the definition."""
    if isinstance(link, RaoKupper):
        a, b = logistic(-t - link.shape), logistic(t - link.shape)
        return a, 1 - a - b, b
    share = link.shape or 0.0
    return share / 2 + (1 - share) * logistic(-t), None, share / 2 + (1 - share) * logistic(t)


def log_chance(link, t, y):
    a, tie, b = outcomes(link, t)
    if tie is not None and y == 0.5:
        return np.log(tie)
    return y * np.log(b) + (1 - y) * np.log(a)


LINKS = [Logistic(), Lapsing(0.03), Lapsing(0.4), RaoKupper(0.05), RaoKupper(0.8), RaoKupper(3.0)]


@pytest.mark.parametrize("link", LINKS, ids=lambda link: f"{type(link).__name__}-{link.shape}")
@pytest.mark.parametrize("y", [0.0, 0.5, 1.0, 0.3])
def test_terms_are_integrals_of_the_definition(link, y):
    for mean, sd in itertools.product((-2.0, 0.3, 4.0), (0.05, 0.9, 3.0)):
        node, weight = np.polynomial.legendre.leggauss(600)
        t = mean + 9 * sd * node
        weight = weight * 9 * np.exp(-0.5 * (9 * node) ** 2) / np.sqrt(2 * np.pi)
        h = 1e-4
        at, up, down = (log_chance(link, t + e, y) for e in (0.0, h, -h))
        first, second = (up - down) / (2 * h), (up - 2 * at + down) / h**2
        found = link.terms(np.array([mean]), np.array([sd]), np.array([y]))
        size = 1 + mean**2 + sd**2
        for name, value, allowed in (
            ("likelihood", at, 1e-9),
            ("first", first, 1e-7),
            ("first_1", t * first, 1e-6),
            ("second", second, 1e-5),
            ("second_1", t * second, 1e-4),
            ("second_2", t * t * second, 3e-4),
        ):
            assert getattr(found, name)[0] == pytest.approx(weight @ value, abs=allowed * size), (
                name,
                mean,
                sd,
            )


@pytest.mark.parametrize("link", LINKS, ids=lambda link: f"{type(link).__name__}-{link.shape}")
def test_fisher_information_is_the_variance_of_the_score(link):
    t, h = np.linspace(-6, 6, 25), 1e-5
    fisher = 0.0
    for chance, y in zip(outcomes(link, t), (0.0, 0.5, 1.0), strict=True):
        if chance is not None:
            score = (log_chance(link, t + h, y) - log_chance(link, t - h, y)) / (2 * h)
            fisher = fisher + chance * score**2
    assert link.fisher(t) == pytest.approx(fisher, rel=1e-6, abs=1e-12)


@pytest.mark.parametrize("link", [Lapsing(0.02, free=True), RaoKupper(0.5, free=True)])
def test_fitted_shapes_are_the_likeliest(link):
    rng = np.random.default_rng(0)
    mean, sd = 3 * rng.normal(size=300), rng.uniform(0, 1, 300)
    label = rng.choice([0.0, 0.5, 1.0, 0.2], 300, p=[0.3, 0.3, 0.35, 0.05])
    weight = rng.uniform(0.1, 2, 300)
    best = link.fitted(mean, sd, label, weight)

    def value(shape):
        one = type(link)(shape, free=True)
        return weight @ one.terms(mean, sd, label).likelihood + one.log_prior

    for shape in (best.shape * 0.98, best.shape * 1.02):
        assert value(shape) < value(best.shape)
    assert link.log_prior == 0 or value(best.shape) != weight @ best.terms(mean, sd, label).likelihood
    fixed = type(link)(0.3)
    assert fixed.fitted(mean, sd, label, weight) is fixed and fixed.log_prior == 0


# ----------------------------------------------------------------------------------------------- ties, lapses


def test_ties_are_a_third_outcome():
    x, j, _, t, theta, beta, rng = crowd(6000, spread=0.4)
    eta, u = 0.7, rng.random(6000)
    y = np.where(u < logistic(-t - eta), 0.0, np.where(u < 1 - logistic(t - eta), 0.5, 1.0))
    model = RewardModel(ties=True, ridge=0.1).fit(x, y, j)
    assert model.tie_threshold_ == pytest.approx(eta, abs=0.06)
    assert np.abs(model.coef_ - theta).max() < 0.2
    assert np.abs(np.log(model.rationality_ / beta)).max() < 0.25
    p = model.predict_proba(x, j)
    assert p.shape == (6000, 3) and p.sum(axis=1) == pytest.approx(1, abs=1e-12) and (p > 0).all()
    assert p[:, 1].mean() == pytest.approx((y == 0.5).mean(), abs=0.01)
    fitted, threshold = model.rationality_[j, 0] * (x @ model.coef_), model.tie_threshold_
    assert p[:, 0] == pytest.approx(logistic(-fitted - threshold), rel=1e-9)
    assert p[:, 2] == pytest.approx(logistic(fitted - threshold), rel=1e-9)
    assert model.classes_.tolist() == [0.0, 0.5, 1.0] and set(model.predict(x, j)) <= {0.0, 0.5, 1.0}
    assert (np.diff(model.objective_path_) >= -1e-9 * abs(model.objective_)).all()
    assert model.log_likelihood_ == pytest.approx(
        np.log(np.select([y == 0, y == 1], [p[:, 0], p[:, 2]], p[:, 1])).sum(), rel=1e-9
    )


@pytest.mark.parametrize("answer", [0.0, 0.5, 1.0])
def test_ties_only_or_none_are_finite(answer):
    x, j, *_ = crowd(40)
    model = RewardModel(ties=True).fit(x, np.full(40, answer), j)
    assert model.converged_ and np.isfinite(model.coef_).all() and np.isfinite(model.tie_threshold_)
    assert np.isfinite(model.rationality_se_).all()


@pytest.mark.parametrize(("share", "low", "high"), [(0.0, 0.0, 0.01), (0.15, 0.09, 0.21)])
def test_the_share_of_lapses_is_found_where_teachers_are_sure(share, low, high):
    for seed in range(3):
        x, j, _, t, theta, _, rng = crowd(3000, seed=seed, size=3.0)
        y = np.where(rng.random(3000) < share, rng.random(3000) < 0.5, choices(t, rng) > 0.5)
        model = RewardModel(ridge="evidence", lapse="fit").fit(x, y, j)
        assert low <= model.lapse_ <= high and model.converged_
        assert np.corrcoef(model.coef_, theta)[0, 1] > 0.99


def test_lapses_that_cannot_be_told_stay_near_nothing():
    """No teacher is ever sure: a smaller rationality says the same as lapses, the prior decides."""
    for seed in range(3):
        x, j, _, t, _, _, rng = crowd(800, seed=seed, size=0.1)
        assert RewardModel(ridge="evidence", lapse="fit").fit(x, choices(t, rng), j).lapse_ < 0.05


# --------------------------------------------------------------------------------------------------- position


def test_position_biases_are_found():
    x, j, _, t, theta, beta, rng = crowd(6000, m=4)
    side, bias = rng.integers(-1, 2, 6000), np.array([1.5, 0.0, -0.8, 0.3])
    y = choices(t + bias[j] * side, rng)
    model = RewardModel(position_bias=1.0, ridge=0.1).fit(x, y, j, side=side, n_teachers=5)
    error = model.position_bias_se_
    assert (np.abs(model.position_bias_[:4] - bias) < 4 * error[:4]).all() and (error[:4] < 0.15).all()
    assert model.position_bias_[4] == 0 and error[4] == 0
    assert np.abs(np.log(model.rationality_[:4] / beta)).max() < 0.3
    plain = RewardModel(ridge=0.1).fit(x, y, j)
    assert np.abs(model.coef_ - theta).max() < 0.15
    assert model.log_likelihood_ > plain.log_likelihood_ + 100
    p = model.predict_proba(x, j, side=side)[:, 1]
    assert p == pytest.approx(
        logistic(model.rationality_[j, 0] * (x @ model.coef_) + model.position_bias_[j] * side)
    )
    none = RewardModel(position_bias=1.0, ridge=0.1).fit(x, y, j)  # nobody knows the sides
    assert not none.position_bias_.any() and none.coef_ == pytest.approx(plain.coef_, abs=1e-5)


# ------------------------------------------------------------------------------------------- hierarchy, drift


@given(st.integers(0, 100), st.sampled_from([0.0, 0.4, 0.95]), st.sampled_from([0.0, 0.5]))
@settings(max_examples=25)
def test_blocks_hold_the_dense_prior(seed, rho, drift):
    rng = np.random.default_rng(seed)
    cells = np.unique(rng.integers(0, (4, 3, 5 if drift else 1), (12, 3)), axis=0)
    biased = np.unique(rng.integers(0, 4, 3))
    blocks = TeacherBlocks.of(*cells.T, biased, scale=0.6, correlation=rho, drift=drift, position_bias=0.3)
    k, n = len(cells), len(biased)
    dense = np.zeros((k + n, k + n))
    dense[:k, :k] = dense_prior(cells, 0.6, rho, drift)
    dense[k:, k:] = 0.09 * np.eye(n)
    psi = rng.normal(size=k + n)
    assert blocks.applied(psi) == pytest.approx(np.linalg.solve(dense, psi), rel=1e-8, abs=1e-9)
    diagonal, coupling = rng.uniform(0.5, 2, k + n), 0.1 * rng.normal(size=k)
    owner = {int(j): k + i for i, j in enumerate(biased)}
    partner = np.array([owner.get(int(j), -1) for j in cells[:, 0]])
    some = partner >= 0
    if some.all():
        matrix = np.linalg.inv(dense) + np.diag(diagonal)
        matrix[np.arange(k), partner] += coupling
        matrix[partner, np.arange(k)] += coupling
        factor = blocks.factor(diagonal, coupling, partner)
        right = rng.normal(size=(k + n, 2))
        assert factor.solve(right) == pytest.approx(np.linalg.solve(matrix, right), rel=1e-7, abs=1e-9)
        assert factor.log_det() == pytest.approx(np.linalg.slogdet(matrix)[1], rel=1e-9, abs=1e-9)
        assert factor.inverse_diagonal() == pytest.approx(np.diag(np.linalg.inv(matrix)), rel=1e-7)


@pytest.mark.parametrize(("rho", "drift"), [(0.5, 0.0), (0.9, 0.0), (0.0, 0.4), (0.6, 0.4)])
def test_the_optimum_obeys_the_dense_prior(rho, drift):
    """d log likelihood / d log beta = prior precision times log beta, plus one multiplier for the anchor."""
    x, j, c, t, _, _, rng = crowd(300, C=3)
    y, when = choices(t, rng), np.array([0, 2, 3, 7])[rng.integers(0, 4, 300)]  # rounds with gaps
    model = RewardModel(
        method="joint_map", rationality_scale=0.6, category_correlation=rho, drift=drift, tol=1e-9
    ).fit(x, y, j, c, round=when)
    key = np.stack([j, c, when if drift else 0 * when], axis=1)
    cells, cell = np.unique(key, axis=0, return_inverse=True)
    cell = cell.reshape(-1)
    assert model.rounds_.tolist() == ([0, 2, 3, 7] if drift else [0])
    b = np.log(model.rationality_path_[cells[:, 0], cells[:, 1], np.searchsorted(model.rounds_, cells[:, 2])])
    s = np.exp(b)[cell] * (x @ model.coef_)
    gradient = np.bincount(cell, s * (y - logistic(s)))
    off = gradient - np.linalg.solve(dense_prior(cells, 0.6, rho, drift), b)
    assert np.ptp(off) < 1e-6 and abs(b.mean()) < 1e-10
    # Cells without labels are what a Gaussian says of them, given the labelled ones of their teacher.
    everything = np.array(list(itertools.product(range(5), range(3), model.rounds_)))
    across = dense_prior(np.concatenate([everything, cells]), 0.6, rho, drift)[
        : len(everything), len(everything) :
    ]
    expected = across @ np.linalg.solve(dense_prior(cells, 0.6, rho, drift), b)
    assert np.log(model.rationality_path_).ravel() == pytest.approx(expected, abs=1e-9)
    assert np.array_equal(model.rationality_, model.rationality_path_[..., -1])


def test_a_teacher_is_believed_in_a_new_category_as_far_as_in_others():
    x, j, c, t, _, _, rng = crowd(900, m=3, C=3, spread=0.0)
    beta = np.array([4.0, 1.0, 0.25])
    few = (j == 0) & (c == 2)
    kept = ~few | (np.cumsum(few) <= 3)  # the good teacher has three labels in category 2
    y = choices(beta[j] * t, rng)
    fits = {
        rho: RewardModel(rationality_scale=1.0, category_correlation=rho).fit(
            *(a[kept] for a in (x, y, j, c)), n_categories=4
        )
        for rho in (0.0, 0.9)
    }
    shrunk, alone = fits[0.9].rationality_, fits[0.0].rationality_
    assert abs(np.log(shrunk[0, 2] / shrunk[0, 0])) < abs(np.log(alone[0, 2] / alone[0, 0]))
    assert (alone[:, 3] == 1).all()  # nothing is known of it
    assert shrunk[0, 3] > 1.5 > 0.7 > shrunk[2, 3]
    error = fits[0.9].rationality_se_ / shrunk
    assert (error[:, 3] > error[:, 0]).all() and (error[:, 3] < 1.0).all()


def test_errors_of_predicted_cells_are_those_of_a_dense_gaussian():
    x, j, c, t, _, _, rng = crowd(200, C=2)
    y = choices(t, rng)
    model = RewardModel(method="joint_map", category_correlation=0.7).fit(x, y, j, c, n_categories=3)
    beta, d, k = model.rationality_, 4, 15
    everything = np.array([(a, b, 0) for a in range(5) for b in range(3)])
    s = beta[j, c] * (x @ model.coef_)
    g = np.zeros((200, d + k))
    g[:, :d] = beta[j, c][:, None] * x
    g[np.arange(200), d + 3 * j + c] = s
    joint = (g * (logistic(s) * logistic(-s))[:, None]).T @ g
    joint[:d, :d] += np.eye(d)
    joint[d:, d:] += np.linalg.inv(dense_prior(everything, 0.5, 0.7))
    covariance = np.linalg.inv(joint)
    anchor = np.zeros(d + k)
    anchor[d + 3 * np.unique(np.stack([j, c], axis=1), axis=0)[:, 0]] = 0
    anchor[d + np.unique(3 * j + c)] = 1
    pull = covariance @ anchor
    covariance -= np.outer(pull, pull) / (anchor @ pull)
    expected = np.sqrt(np.diag(covariance)[d:]).reshape(5, 3)
    assert model.rationality_se_ / beta == pytest.approx(expected, rel=1e-6)
    assert model.coef_covariance() == pytest.approx(covariance[:d, :d], rel=1e-6, abs=1e-10)


def test_drift_is_followed():
    rng = np.random.default_rng(1)
    T, R = 8000, 8
    x, theta = rng.normal(size=(T, 4)), 1.5 * rng.normal(size=4)
    j, when = rng.integers(0, 3, T), rng.integers(0, R, T)
    path = np.stack([np.linspace(0.8, -0.8, R), np.zeros(R), np.linspace(-0.5, 0.5, R)])
    y = choices(np.exp(path[j, when]) * (x @ theta), rng)
    model = RewardModel(drift=0.3, ridge=0.1).fit(x, y, j, round=when)
    found = np.log(model.rationality_path_[:, 0])
    assert model.rationality_path_.shape == (3, 1, R) and model.rounds_.tolist() == list(range(R))
    assert np.abs(found - path + (path - found).mean()).max() < 0.45
    assert found[0, 0] - found[0, -1] > 1.0 and found[2, -1] - found[2, 0] > 0.5
    still = RewardModel(ridge=0.1).fit(x, y, j, round=when)
    assert still.rationality_path_.shape == (3, 1, 1) and still.log_likelihood_ < model.log_likelihood_ - 50
    with pytest.raises(ValueError, match="without drift"):
        model.rationality_profile(0)


# ---------------------------------------------------------------------------------------- known rationalities


@pytest.mark.parametrize("method", ["joint_map", "marginal"])
def test_partly_known_rationalities_fix_the_scale(method):
    x, j, _, t, theta, beta, rng = crowd(500)
    y = choices(t, rng)
    given_ = np.full((5, 1), np.nan)
    given_[[0, 3]] = 3 * beta[[0, 3]]  # on a scale of their own: theta comes out three times smaller
    model = RewardModel(method=method, rationality=given_, ridge=0.5, tol=1e-9).fit(x, y, j)
    assert np.array_equal(model.rationality_[[0, 3]], given_[[0, 3]])
    assert not model.rationality_se_[[0, 3]].any() and (model.rationality_se_[[1, 2, 4]] > 0).all()
    assert np.abs(model.coef_ - theta / 3).max() < 0.25
    if method == "joint_map":

        def loss(z):
            b = np.log(given_[:, 0])
            b[[1, 2, 4]] = z[4:]
            s = np.exp(b)[j] * (x @ z[:4])
            return np.logaddexp(0, (1 - 2 * y) * s).sum() + 0.25 * z[:4] @ z[:4] + 2 * z[4:] @ z[4:]

        other = scipy.optimize.minimize(loss, np.zeros(7), method="BFGS", options={"gtol": 1e-8})
        assert model.coef_ == pytest.approx(other.x[:4], abs=1e-5)
        assert np.log(model.rationality_[[1, 2, 4], 0]) == pytest.approx(other.x[4:], abs=1e-5)
        assert model.objective_ == pytest.approx(-other.fun, rel=1e-10)


@pytest.mark.parametrize("method", ["joint_map", "marginal", "homogeneous"])
def test_a_known_coin_says_nothing(method):
    x, j, _, t, _, _, rng = crowd(200, m=3)
    y = choices(t, rng)
    coin = RewardModel(method=method, rationality=[0.0, np.nan, 1.0]).fit(x, y, j)
    kept = j > 0
    without = RewardModel(method=method, rationality=[0.0, np.nan, 1.0]).fit(x[kept], y[kept], j[kept])
    assert coin.coef_ == pytest.approx(without.coef_, abs=1e-6) and coin.rationality_[0, 0] == 0
    assert coin.rationality_se_[0, 0] == 0 and coin.rationality_interval_[0, 0].tolist() == [0, 0]
    only = RewardModel(rationality=[0.0]).fit(x, y)
    assert not only.coef_.any() and np.array_equal(only.information_, np.eye(4))


def test_a_cell_alone_is_the_scale():
    x, _, _, t, *_, rng = crowd(60)
    y = choices(t, rng)
    model = RewardModel(position_bias=0.5).fit(
        x, y, np.full(60, 2), n_teachers=4, side=rng.integers(-1, 2, 60)
    )
    assert (model.rationality_[2] == 1) and (model.rationality_se_[2] == 0) and model.converged_
    plain = RewardModel(method="homogeneous", ridge=1.0, tol=1e-9).fit(x, y)
    joint = RewardModel(method="joint_map", ridge=1.0, tol=1e-9).fit(x, y)
    assert joint.coef_ == pytest.approx(plain.coef_, abs=1e-8)
    with pytest.raises(ValueError, match="no estimated cell beside others"):
        RewardModel().fit(x, y).rationality_profile(0)


def test_weights_of_nothing_and_nearly_nothing():
    x, j, _, t, *_, rng = crowd(80)
    y, weight = choices(t, rng), np.ones(80)
    weight[:40] = 1e-300
    tiny = RewardModel(tol=1e-8).fit(x, y, j, sample_weight=weight)
    weight[:40] = 0
    none = RewardModel(tol=1e-8).fit(x, y, j, sample_weight=weight)
    assert tiny.coef_ == pytest.approx(none.coef_, abs=1e-6)
    assert RewardModel().fit(x, y, j, sample_weight=np.full(80, 1e-300)).coef_ == pytest.approx(0, abs=1e-200)


# ------------------------------------------------------------------------------------------------------ signs


def test_adversaries_in_some_categories():
    """Worse than a coin in a category: the sign comes out there only, and most cells count as honest."""
    for seed in range(4):
        rng = np.random.default_rng(seed)
        x, theta = rng.normal(size=(2400, 5)), 1.5 * rng.normal(size=5)
        j, c = rng.integers(0, 4, 2400), rng.integers(0, 3, 2400)
        beta = np.exp(0.3 * rng.normal(size=(4, 3)))
        beta[1, 2], beta[3] = -1.2, [-0.8, -1.0, 0.9]
        y = choices(beta[j, c] * (x @ theta), rng)
        model = RewardModel(signed=True).fit(x, y, j, c)
        assert np.array_equal(np.sign(model.rationality_), np.sign(beta)), seed
        assert np.corrcoef(model.coef_, theta)[0, 1] > 0.98
        # The mirror image: everyone turned round. Most cells are honest again.
        mirror = RewardModel(signed=True).fit(x, 1 - y, j, c)
        assert np.array_equal(np.sign(mirror.rationality_), np.sign(beta))
        assert mirror.coef_ == pytest.approx(-model.coef_, abs=1e-4)
        # By cells, not by labels: whoever was asked most, or weighs most, has one vote for each of his.
        heavy = np.where(beta[j, c] < 0, 5.0, 1.0)
        weighty = RewardModel(signed=True).fit(x, y, j, c, heavy)
        assert np.array_equal(np.sign(weighty.rationality_), np.sign(beta))
        assert np.corrcoef(weighty.coef_, theta)[0, 1] > 0.98


def test_a_known_sign_decides():
    rng = np.random.default_rng(0)
    x, theta = rng.normal(size=(900, 4)), rng.normal(size=4) * 2
    j = rng.integers(0, 4, 900)
    beta = np.array([1.0, -1.0, -1.2, -0.8])
    y = choices(beta[j] * (x @ theta), rng)
    model = RewardModel(signed=True, rationality=[1.0, np.nan, np.nan, np.nan]).fit(x, y, j)
    assert np.sign(model.rationality_[:, 0]).tolist() == [1, -1, -1, -1]
    assert np.corrcoef(model.coef_, theta)[0, 1] > 0.98


# --------------------------------------------------------------------------------------------------- evidence


def laplace_evidence(x, y, ridge):
    """log of the integral over theta of likelihood times prior, by Laplace."""
    model = RewardModel(ridge, method="homogeneous", tol=1e-10).fit(x, y)
    t, d = x @ model.coef_, x.shape[1]
    value = -np.logaddexp(0, (1 - 2 * y) * t).sum() - 0.5 * ridge * model.coef_ @ model.coef_
    return value + 0.5 * d * np.log(ridge) - 0.5 * np.linalg.slogdet(model.information_)[1]


@pytest.mark.parametrize("size", [0.3, 1.0, 4.0])
def test_the_ridge_by_evidence_is_nearly_the_likeliest(size):
    x, _, _, _, theta, _, rng = crowd(600, d=12, size=size)
    y = choices(x @ theta, rng)
    model = RewardModel("evidence", method="homogeneous").fit(x, y)
    grid = model.ridge_ * np.exp(np.linspace(-2, 2, 41))
    values = [laplace_evidence(x, y, r) for r in grid]
    assert values[20] > max(values) - 0.1 and values[20] > laplace_evidence(x, y, 1.0) - 0.1
    truth = 12 / (theta @ theta)
    assert abs(np.log(model.ridge_ / truth)) < 1.0


def test_the_scale_by_evidence_follows_the_spread():
    found = []
    for spread in (0.0, 0.4, 1.0):
        x, j, _, t, _, _, rng = crowd(6000, m=25, spread=spread, size=1.5)
        model = RewardModel("evidence", "evidence").fit(x, choices(t, rng), j)
        found.append(model.rationality_scale_)
        assert model.converged_ and model.ridge_ != 1.0
    assert found[0] < 0.2 and 0.25 < found[1] < 0.6 and 0.65 < found[2] < 1.4


# ---------------------------------------------------------------------------------- stored types, warm starts


@pytest.mark.parametrize("kind", [np.float32, np.float16])
@pytest.mark.parametrize("mapped", [False, True])
def test_what_is_stored_is_the_data(kind, mapped, tmp_path):
    x, j, c, t, _, _, rng = crowd(300, d=7, C=2)
    y, stored = choices(t, rng), x.astype(kind)
    if mapped:
        np.save(tmp_path / "x.npy", stored)
        stored = np.load(tmp_path / "x.npy", mmap_mode="r")
    model = RewardModel(tol=1e-8).fit(stored, y, j, c)
    wide = RewardModel(tol=1e-8).fit(np.asarray(stored, np.float64), y, j, c)
    assert model.coef_ == pytest.approx(wide.coef_, abs=1e-6)
    assert model.rationality_ == pytest.approx(wide.rationality_, abs=1e-6)
    assert model.coef_covariance(robust=True) == pytest.approx(wide.coef_covariance(robust=True), abs=1e-7)
    assert model.information_ == pytest.approx(wide.information_, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("kind", [np.float64, np.float32])
def test_pairs_of_completions_are_their_differences(kind):
    rng = np.random.default_rng(0)
    phi, theta = rng.normal(size=(60, 5)).astype(kind), rng.normal(size=5)
    pairs = np.stack([rng.choice(60, 2, replace=False) for _ in range(400)])
    pairs[50:60] = pairs[:10]  # asked again
    x = phi[pairs[:, 1]].astype(np.float64) - phi[pairs[:, 0]]
    j, weight = rng.integers(0, 4, 400), rng.choice([0.0, 1.0, 2.0], 400)
    y, side = choices(x @ theta, rng), rng.integers(-1, 2, 400)
    model = RewardModel(position_bias=0.5, tol=1e-8).fit(phi, y, j, None, weight, pairs=pairs, side=side)
    formed = RewardModel(position_bias=0.5, tol=1e-8).fit(x, y, j, None, weight, side=side)
    assert model.coef_ == pytest.approx(formed.coef_, abs=1e-6)
    assert model.rationality_ == pytest.approx(formed.rationality_, abs=1e-6)
    assert model.information_ == pytest.approx(formed.information_, rel=1e-6, abs=1e-6)
    assert model.coef_covariance(robust=True) == pytest.approx(formed.coef_covariance(robust=True), abs=1e-7)


@pytest.mark.parametrize(
    ("words", "pairs"),
    [
        ("pairs has 3 columns", [[0, 1, 2], [0, 1, 2]]),
        ("pairs holds 3; expected completions between 0 and 2", [[0, 1], [1, 3]]),
        ("pairs holds -1", [[0, 1], [1, -1]]),
        ("y has length 2; expected 1", [[0, 1]]),
    ],
)
def test_pairs_that_do_not_fit(words, pairs):
    with pytest.raises(ValueError, match=words):
        RewardModel().fit(np.eye(3), [0, 1], pairs=pairs)


@pytest.mark.parametrize(
    "options", [{}, {"ties": True}, {"position_bias": 0.5}, {"drift": 0.3}, {"lapse": 0.1}]
)
def test_a_warm_start_ends_at_the_same_place(options):
    x, j, c, t, _, _, rng = crowd(300, C=2)
    y = np.where(rng.random(300) < 0.1, 0.5, choices(t, rng))
    side, when = rng.integers(-1, 2, 300), rng.integers(0, 3, 300)
    warm = RewardModel(warm_start=True, tol=1e-8, **options)
    for count in (100, 200, 300):
        part = slice(0, count)
        rest = {"side": side[part], "round": when[part]}
        warm.fit(x[part], y[part], j[part], c[part], n_teachers=6, n_categories=2, **rest)
    cold = RewardModel(tol=1e-8, **options)
    cold.fit(x, y, j, c, n_teachers=6, n_categories=2, side=side, round=when)
    far = warm.coef_ - cold.coef_
    assert np.sqrt(far @ cold.information_ @ far) < 1e-5
    assert np.log(warm.rationality_path_) == pytest.approx(np.log(cold.rationality_path_), abs=1e-5)
    again = warm.fit(x, y, j, c, n_teachers=6, n_categories=2, side=side, round=when)
    assert again.n_iter_ <= 2


@pytest.mark.parametrize("options", [{}, {"ties": True}, {"drift": 0.3, "position_bias": 0.5}])
def test_batches_come_to_the_same_as_everything_at_once(options):
    x, j, c, t, _, _, rng = crowd(300, C=2)
    y, weight = choices(t, rng), rng.choice([0.0, 1.0, 2.0], 300)
    side, when = rng.integers(-1, 2, 300), rng.integers(0, 3, 300)
    parts = RewardModel(tol=1e-8, **options)
    for part in (slice(0, 120), slice(120, 125), slice(125, 300)):
        more = {"side": side[part], "round": when[part]}
        parts.partial_fit(x[part], y[part], j[part], c[part], weight[part], **more)
    whole = RewardModel(tol=1e-8, **options).fit(x, y, j, c, weight, side=side, round=when)
    assert parts.coef_ == pytest.approx(whole.coef_, abs=1e-5)
    assert parts.rationality_path_ == pytest.approx(whole.rationality_path_, rel=1e-5)
    assert parts.coef_covariance(robust=True) == pytest.approx(whole.coef_covariance(robust=True), rel=1e-3)


# ------------------------------------------------------------------------------------------------ a reference


def test_joint_map_to_many_digits():
    """The stationary point in 40 digits, by mpmath from scratch."""
    mp = pytest.importorskip("mpmath")
    x, j, _, t, _, _, rng = crowd(30, d=2, m=3)
    y = choices(t, rng)
    model = RewardModel(method="joint_map", ridge=0.7, rationality_scale=0.8, tol=1e-12).fit(x, y, j)
    with mp.workdps(40):
        rows = [[mp.mpf(v) for v in row] for row in x]
        tau, ridge = mp.mpf("0.8"), mp.mpf(0.7)

        def gradient(a, b, p, q):
            logs = [p, q, -p - q]
            out = [-ridge * a, -ridge * b]
            own = [-logs[k] / tau**2 for k in range(3)]
            for row, k, label in zip(rows, j, y, strict=True):
                beta = mp.exp(logs[k])
                u = row[0] * a + row[1] * b
                left = int(label) - 1 / (1 + mp.exp(-beta * u))
                out[0] += left * beta * row[0]
                out[1] += left * beta * row[1]
                own[k] += left * beta * u
            return [*out, own[0] - own[2], own[1] - own[2]]

        start = (*model.coef_, *np.log(model.rationality_[:2, 0]))
        exact = [float(v) for v in mp.findroot(gradient, [mp.mpf(float(v)) for v in start])]
    assert model.coef_ == pytest.approx(exact[:2], abs=1e-9)
    assert np.log(model.rationality_[:2, 0]) == pytest.approx(exact[2:], abs=1e-9)


@given(st.integers(0, 300), st.sampled_from(["ties", "lapse", "position_bias", "drift"]))
@settings(max_examples=20)
def test_order_names_weights_and_sides_do_not_matter(seed, piece):
    x, j, c, t, _, _, rng = crowd(60, d=3, m=3, C=2, seed=seed)
    y = np.where(rng.random(60) < 0.2, 0.5, choices(t, rng))
    side, when = rng.integers(-1, 2, 60), rng.integers(0, 3, 60)
    options = {piece: {"ties": True, "lapse": 0.1}.get(piece, 0.4), "tol": 1e-9}

    def fit(x, y, j, c, side, when, weight=None):
        model = RewardModel(**options).fit(x, y, j, c, weight, 3, 2, side=side, round=when)
        return np.concatenate([model.coef_, np.log(model.rationality_).ravel(), model.position_bias_]), model

    found, model = fit(x, y, j, c, side, when)
    order = rng.permutation(60)
    assert fit(*(a[order] for a in (x, y, j, c, side, when)))[0] == pytest.approx(found, abs=1e-5)
    twice, _ = fit(*(np.concatenate([a, a]) for a in (x, y, j, c, side, when)))
    assert fit(x, y, j, c, side, when, np.full(60, 2.0))[0] == pytest.approx(twice, abs=1e-5)
    # b and a change names: differences, answers and sides turn round together
    assert fit(-x, 1 - y, j, c, -side, when)[0] == pytest.approx(found, abs=1e-5)
    renamed = fit(x, y, 2 - j, 1 - c, side, when)[1]
    assert np.log(renamed.rationality_[::-1, ::-1]) == pytest.approx(np.log(model.rationality_), abs=1e-5)
    assert renamed.position_bias_[::-1] == pytest.approx(model.position_bias_, abs=1e-5)
