"""Rankings: Plackett-Luce by definition, pairs as its smallest case, and the bound on its mean."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import dal_native as dn
from dal_learn._answers import Rankings
from dal_learn._fit import Setting, _Problem
from dal_learn._links import Logistic
from dal_learn._rows import Rows
from dal_learn._teacher_blocks import TeacherBlocks
from dal_learn.reward import RewardModel


def ranked(R=150, N=40, d=3, m=3, C=1, lengths=(2, 5), seed=0, size=1.0):
    """Completions, rankings drawn from the model, teacher, category; the truth."""
    rng = np.random.default_rng(seed)
    phi, theta = rng.normal(size=(N, d)), size * rng.normal(size=d)
    beta = np.exp(0.5 * rng.normal(size=(m, C)))
    beta /= np.exp(np.log(beta).mean())
    j, c = rng.integers(0, m, R), rng.integers(0, C, R)
    orders = []
    for r in range(R):
        items = rng.choice(N, rng.integers(lengths[0], lengths[1] + 1), replace=False)
        utility = beta[j[r], c[r]] * (phi[items] @ theta) + rng.gumbel(size=len(items))
        orders.append(items[np.argsort(-utility)])
    return phi, orders, j, c, theta, beta


def plackett_luce(phi, order, beta, theta):
    """log of the chance of one ranking: a choice of the best, then of the best of the rest."""
    t = beta * (phi[order] @ theta)
    return sum(t[k] - np.logaddexp.reduce(t[k:]) for k in range(len(t) - 1))


def test_likelihood_and_objective_by_definition():
    phi, orders, j, c, *_ = ranked(C=2)
    weight = np.random.default_rng(0).uniform(0.2, 2, 150)
    model = RewardModel(0.7, 0.6, method="joint_map", category_correlation=0.0, tol=1e-9)
    model.fit_rankings(phi, orders, j, c, weight)
    each = [
        w * plackett_luce(phi, o, model.rationality_[a, b], model.coef_)
        for o, a, b, w in zip(orders, j, c, weight, strict=True)
    ]
    assert model.log_likelihood_ == pytest.approx(sum(each), rel=1e-10)
    log_beta = np.log(model.rationality_)
    prior = 0.35 * model.coef_ @ model.coef_ + 0.5 * (log_beta**2).sum() / 0.36
    assert model.objective_ == pytest.approx(sum(each) - prior, rel=1e-10)
    # the fit is the top: no small step along anything (within the anchor) is better
    rng = np.random.default_rng(1)
    for _ in range(20):
        step, tilt = 1e-3 * rng.normal(size=3), 1e-3 * rng.normal(size=(3, 2))
        theta, b = model.coef_ + step, log_beta + tilt - tilt.mean()
        value = sum(
            w * plackett_luce(phi, o, np.exp(b[a, e]), theta)
            for o, a, e, w in zip(orders, j, c, weight, strict=True)
        )
        assert value - 0.35 * theta @ theta - 0.5 * (b**2).sum() / 0.36 < model.objective_ + 1e-12


def test_two_items_are_a_choice_between_them():
    phi, orders, j, c, *_ = ranked(lengths=(2, 2), C=2)
    pair = np.stack(orders)
    model = RewardModel(method="joint_map", tol=1e-10).fit_rankings(phi, orders, j, c)
    chosen = RewardModel(method="joint_map", tol=1e-10).fit(
        phi[pair[:, 0]] - phi[pair[:, 1]], np.ones(150), j, c
    )
    assert model.coef_ == pytest.approx(chosen.coef_, abs=1e-8)
    assert model.rationality_ == pytest.approx(chosen.rationality_, abs=1e-8)
    assert model.information_ == pytest.approx(chosen.information_, rel=1e-6, abs=1e-8)
    assert model.rationality_se_ == pytest.approx(chosen.rationality_se_, rel=1e-6)
    assert model.coef_covariance(True) == pytest.approx(chosen.coef_covariance(True), rel=1e-5, abs=1e-9)
    assert model.objective_ == pytest.approx(chosen.objective_, rel=1e-10)


def test_information_and_errors_by_definition():
    """Expected information of every stage: covariance of (beta phi, t) under the softmax."""
    phi, orders, j, c, *_ = ranked()
    model = RewardModel(category_correlation=0.0).fit_rankings(phi, orders, j, c)
    beta, d = model.rationality_[:, 0], 3
    joint = np.diag([1.0] * d + [4.0] * 3)
    scores = []
    for order, a in zip(orders, j, strict=True):
        g = np.zeros((len(order), d + 3))
        g[:, :d], g[:, d + a] = beta[a] * phi[order], beta[a] * (phi[order] @ model.coef_)
        score = np.zeros(d + 3)
        for k in range(len(order) - 1):
            t = beta[a] * (phi[order[k:]] @ model.coef_)
            p = np.exp(t - np.logaddexp.reduce(t))
            centred = g[k:] - p @ g[k:]
            joint += (centred * p[:, None]).T @ centred
            score += centred[0]
        scores.append(score)
    assert model.information_ == pytest.approx(joint[:d, :d], rel=1e-8)
    plane = np.zeros((d + 3, d + 2))
    plane[:d, :d], plane[d:, d:] = np.eye(d), np.linalg.svd(np.ones((1, 3)))[2][1:].T
    covariance = plane @ np.linalg.inv(plane.T @ joint @ plane) @ plane.T
    assert model.coef_covariance() == pytest.approx(covariance[:d, :d], rel=1e-6, abs=1e-10)
    assert model.rationality_se_[:, 0] / beta == pytest.approx(np.sqrt(np.diag(covariance)[d:]), rel=1e-6)
    sandwich = covariance @ np.array(scores).T @ np.array(scores) @ covariance
    assert model.coef_covariance(robust=True) == pytest.approx(sandwich[:d, :d], rel=1e-6, abs=1e-10)


def problem(seed, marginal, size):
    phi, orders, j, *_ = ranked(R=12, N=8, lengths=(2, 4), seed=seed, size=size)
    rng = np.random.default_rng(seed)
    place = np.argsort([len(o) for o in orders], kind="stable")
    groups = [
        np.stack([orders[i] for i in place if len(orders[i]) == k]) for k in sorted({*map(len, orders)})
    ]
    cells, cell = np.unique(j[place], return_inverse=True)
    none = np.zeros(len(cells), int)
    blocks = TeacherBlocks.of(
        cells, none, none, none[:0], scale=0.6, correlation=0.0, drift=0.0, position_bias=0.0
    )
    answers = Rankings(Rows((dn.Pool(phi),)), groups, rng.uniform(0.5, 2, 12), cell)
    setting = Setting(0.7, blocks, np.arange(len(cells)), Logistic(), marginal)
    return _Problem(answers, setting, np.ones(len(cells))), rng


@given(st.integers(0, 500), st.booleans(), st.sampled_from([0.3, 2.0]))
@settings(max_examples=25)
def test_gradients_of_the_objective_are_its_differences(seed, marginal, size):
    """Everywhere: central differences of J in theta and log beta, S held."""
    it, rng = problem(seed, marginal, size)
    k = it.n_cells
    weight = rng.uniform(0.01, 1, len(it.start().weight))
    point = np.concatenate([rng.normal(size=3), 0.5 * rng.normal(size=k)])

    def bound(z):
        return it.state(z[:3], z[3:], weight).bound

    state = it.state(point[:3], point[3:], weight)
    numeric = [(bound(point + 1e-5 * e) - bound(point - 1e-5 * e)) / 2e-5 for e in np.eye(3 + k)]
    assert numeric[:3] == pytest.approx(it.answers.gradient(state.here.slope) - 0.7 * point[:3], abs=2e-5)
    assert numeric[3:] == pytest.approx(state.here.cell_gradient - point[3:] / 0.36, abs=2e-5)


@given(st.integers(0, 200), st.sampled_from([0.1, 1.0, 3.0]))
@settings(max_examples=8)
def test_the_bound_lies_below_the_mean_and_is_tight_without_spread(seed, size):
    it, rng = problem(seed, True, 1.0)
    mean, root = rng.normal(size=3), size * rng.normal(size=(3, 3)) / 2
    beta, none = rng.uniform(0.5, 2, it.n_cells), np.zeros(0)
    answers = it.answers

    def mean_likelihood(covariance):
        lower = np.linalg.cholesky(np.linalg.inv(covariance))
        margin = answers.rows.margin(mean)
        return answers.evaluate(margin, beta, none, answers.spread(lower), Logistic()).likelihood

    def at(theta):
        margin = answers.rows.margin(theta)
        return answers.evaluate(margin, beta, none, answers.spread(None), Logistic()).likelihood

    covariance = root @ root.T + 1e-3 * np.eye(3)
    draws = np.array([at(theta) for theta in rng.multivariate_normal(mean, covariance, 300)])
    truth, error = draws.mean(), draws.std() / np.sqrt(300)
    bound = mean_likelihood(covariance)
    assert bound < truth + 5 * error and bound < at(mean) + 1e-9  # l is concave
    assert mean_likelihood(1e-12 * covariance) == pytest.approx(at(mean), rel=1e-9)
    # To first order in the covariance nothing is lost: half the trace of the Hessian, either way.
    hessian = answers.gram(
        answers.evaluate(answers.rows.margin(mean), beta, none, answers.spread(None), Logistic()).curvature
    )
    fall = 0.5e-4 * np.trace(hessian @ covariance)
    assert at(mean) - mean_likelihood(1e-4 * covariance) == pytest.approx(fall, rel=0.02, abs=1e-9)


@pytest.mark.parametrize("method", ["marginal", "joint_map", "homogeneous"])
@pytest.mark.parametrize("size", [0.3, 3.0, 30.0])
def test_every_step_rises_on_lists_of_any_length(method, size):
    for seed in range(2):
        phi, orders, j, c, *_ = ranked(R=40, C=2, lengths=(2, 9), seed=seed, size=size)
        model = RewardModel(method=method, max_iter=500).fit_rankings(phi, orders, j, c)
        path = model.objective_path_
        assert model.converged_ and (np.diff(path) >= -1e-9 * (1 + np.abs(path[1:]))).all()
        assert np.isfinite(model.coef_).all() and np.isfinite(model.rationality_se_).all()
        assert np.linalg.eigvalsh(model.coef_covariance()).min() > 0


def test_rankings_recover_reward_and_teachers():
    phi, orders, j, c, theta, beta = ranked(R=1500, N=200, lengths=(3, 6), seed=2)
    model = RewardModel(0.3).fit_rankings(phi, orders, j, c)
    assert np.abs(model.coef_ - theta).max() < 0.15
    assert np.abs(np.log(model.rationality_ / beta)).max() < 0.2
    marks = model.rationality_interval_
    assert ((marks[..., 0] < beta) & (beta < marks[..., 1])).all()
    assert (model.reward_interval(phi[:5]) @ [-1, 1] > 0).all()
    # split into pairs, answers count as independent that are not: the errors come out too small
    pairs = [
        (better, worse, t)
        for o, t in zip(orders, j, strict=True)
        for better, worse in itertools.combinations(o, 2)
    ]
    first, second, who = map(np.array, zip(*pairs, strict=True))
    split = RewardModel(0.3).fit(phi[first] - phi[second], np.ones(len(who)), who)
    assert (split.coef_se_ < 0.9 * model.coef_se_).all()


@given(st.integers(0, 100))
@settings(max_examples=4)
def test_order_names_and_weights_do_not_matter(seed):
    phi, orders, j, c, *_ = ranked(R=30, C=2, lengths=(2, 4), seed=seed)
    rng = np.random.default_rng(seed)

    def fit(phi, orders, j, c, weight=None):
        return RewardModel(tol=1e-9).fit_rankings(phi, orders, j, c, weight, 3, 2)

    model, order, names = fit(phi, orders, j, c), rng.permutation(30), rng.permutation(40)
    shuffled = fit(phi, [orders[i] for i in order], j[order], c[order])
    where = np.argsort(names)
    renamed = fit(phi[names], [where[o] for o in orders], 2 - j, c)
    moved = fit(phi + rng.normal(size=3), orders, j, c)  # rewards have no zero of their own
    for other in (shuffled, renamed, moved):
        assert other.coef_ == pytest.approx(model.coef_, abs=1e-5)
    assert renamed.rationality_[::-1] == pytest.approx(model.rationality_, rel=1e-5)
    twice = fit(phi, orders * 2, np.tile(j, 2), np.tile(c, 2))
    assert fit(phi, orders, j, c, np.full(30, 2.0)).coef_ == pytest.approx(twice.coef_, abs=1e-5)
    some = np.arange(30) % 3 > 0
    kept = fit(phi, [orders[i] for i in np.flatnonzero(some)], j[some], c[some])
    assert fit(phi, orders, j, c, some.astype(float)).coef_ == pytest.approx(kept.coef_, abs=1e-6)


def test_nothing_ranked_gives_the_prior():
    model = RewardModel(2.0).fit_rankings(np.eye(3), [], n_teachers=2)
    assert not model.coef_.any() and np.array_equal(model.information_, 2 * np.eye(3))
    assert model.rationality_.tolist() == [[1.0], [1.0]]
    weightless = RewardModel(2.0).fit_rankings(np.eye(3), [[0, 1]], sample_weight=[0.0])
    assert not weightless.coef_.any()


@pytest.mark.parametrize(
    ("words", "arguments"),
    [
        ("rankings\\[1\\] holds 1 completion", {"rankings": [[0, 1], [2]]}),
        ("rankings\\[0\\] names a completion twice", {"rankings": [[0, 1, 0]]}),
        ("rankings\\[0\\] holds 3; expected completions between 0 and 2", {"rankings": [[0, 3]]}),
        ("rankings\\[0\\] holds -1", {"rankings": [[0, -1]]}),
        ("teacher has length 2; expected 1", {"teacher": [0, 0]}),
        ("sample_weight holds a number below 0", {"sample_weight": [-1.0]}),
        ("completions is not finite", {"completions": [[np.nan], [0], [0]]}),
    ],
)
def test_refusals(words, arguments):
    arguments = {"completions": np.ones((3, 1)), "rankings": [[0, 1]], **arguments}
    with pytest.raises(ValueError, match=words):
        RewardModel().fit_rankings(**arguments)


@pytest.mark.parametrize("options", [{"lapse": 0.1}, {"ties": True}, {"position_bias": 1.0}, {"drift": 0.1}])
def test_pieces_that_are_for_choices(options):
    with pytest.raises(ValueError, match="for rankings"):
        RewardModel(**options).fit_rankings(np.eye(2), [[0, 1]])
