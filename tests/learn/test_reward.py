"""RewardModel: what the optimum must satisfy, what must not change it, and what is refused."""

from __future__ import annotations

import itertools
import warnings

import numpy as np
import pytest
import scipy.linalg
import scipy.optimize
from hypothesis import given, settings
from hypothesis import strategies as st

import dal_native as dn
from dal_learn._answers import Choices
from dal_learn._fit import Setting, _Problem
from dal_learn._labels import distinct_rows
from dal_learn._links import Lapsing, Logistic, RaoKupper
from dal_learn._rows import Rows
from dal_learn._teacher_blocks import TeacherBlocks
from dal_learn.reward import ConvergenceWarning, RewardModel

METHODS = ["marginal", "joint_map", "homogeneous"]


def labels(T=120, d=5, m=4, C=2, seed=0, size=1.0, spread=0.8):
    """X, y, teacher, category drawn from the model; the truth behind them."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(T, d)) * size
    theta = rng.normal(size=d) / size
    beta = np.exp(spread * rng.normal(size=(m, C)))
    j, c = rng.integers(0, m, T), rng.integers(0, C, T)
    y = (rng.random(T) < 1 / (1 + np.exp(-beta[j, c] * (x @ theta)))).astype(float)
    return (x, y, j, c), (theta, beta)


def sizes():
    return {"n_teachers": 4, "n_categories": 2}


def close(a, b, tol=1e-4):
    """Two fits agree: coefficients in posterior standard deviations, rationalities in their logarithms."""
    far = a.coef_ - b.coef_
    assert np.sqrt(far @ a.information_ @ far) < tol
    assert np.abs(np.log(a.rationality_ / b.rationality_)).max() < tol


def mean_normal(f, mean, sd):
    """E f(t), t ~ N(mean, sd^2), by a fine rule of its own."""
    z = np.linspace(-9, 9, 601)
    w = np.exp(-0.5 * z * z)
    return f(mean[:, None] + sd[:, None] * z) @ (w / w.sum())


def logistic(t):
    return 1 / (1 + np.exp(-np.clip(t, -700, 700)))


# ------------------------------------------------------------------------------------------------ the optimum


@pytest.mark.parametrize("shape", [(120, 5), (40, 60), (7, 3)])
def test_marginal_fit_solves_its_equations(shape):
    (x, y, j, c), _ = labels(*shape, seed=3)
    v = np.random.default_rng(1).uniform(0.2, 2, len(y))
    model = RewardModel(ridge=0.7, rationality_scale=0.6, category_correlation=0.0, tol=1e-8)
    model.fit(x, y, j, c, v, **sizes())
    assert model.converged_ and model.gradient_norm_ <= 1e-8
    beta = model.rationality_[j, c]
    # S from its own fixed point, with nothing of the model's algebra.
    precision = 0.7 * np.eye(x.shape[1])
    for _ in range(80):
        h = np.einsum("ij,jk,ik->i", x, np.linalg.inv(precision), x)
        mu, sd = beta * (x @ model.coef_), beta * np.sqrt(h)
        slope = mean_normal(lambda t: logistic(t) * logistic(-t), mu, sd)
        precision = 0.7 * np.eye(x.shape[1]) + (x * (v * beta**2 * slope)[:, None]).T @ x
    residual = v * (y - mean_normal(logistic, mu, sd))
    assert x.T @ (beta * residual) == pytest.approx(0.7 * model.coef_, abs=2e-6)
    # d/d log beta: sum E t (y - s(t)) - log beta / tau^2, the same multiplier for every labelled cell.
    tilt = v * mean_normal(lambda t: t * (y[:, None] - logistic(t)), mu, sd)
    cell = j * 2 + c
    gradient = np.bincount(cell, tilt, 8) - np.log(model.rationality_).ravel() / 0.6**2
    assert np.ptp(gradient[np.unique(cell)]) < 2e-6


def joint_loss(z, x, y, cell, k, ridge, spread):
    theta, b = z[: x.shape[1]], z[x.shape[1] :]
    b = b - b.mean()
    t = np.exp(b)[cell] * (x @ theta)
    return (
        np.sum(y * np.logaddexp(0, -t) + (1 - y) * np.logaddexp(0, t))
        + 0.5 * ridge * theta @ theta
        + 0.5 * b @ b / spread**2
    )


@pytest.mark.parametrize("seed", range(3))
def test_joint_map_is_the_maximum_that_another_optimiser_finds(seed):
    (x, y, j, c), _ = labels(150, 4, seed=seed)
    cells, cell = np.unique(j * 2 + c, return_inverse=True)
    model = RewardModel(method="joint_map", ridge=2.0, category_correlation=0.0, tol=1e-9).fit(x, y, j, c)
    start = np.concatenate([model.coef_, np.log(model.rationality_.ravel()[cells])])
    arguments = (x, y, cell, len(cells), 2.0, 0.5)
    other = scipy.optimize.minimize(joint_loss, 0 * start, arguments, method="BFGS", options={"gtol": 1e-7})
    assert joint_loss(start, *arguments) <= other.fun + 1e-9
    assert start[:4] == pytest.approx(other.x[:4], abs=1e-4)
    assert model.objective_ == pytest.approx(-joint_loss(start, *arguments), rel=1e-12)


@pytest.mark.parametrize("known", [None, "given"])
def test_fixed_rationality_is_the_mode_of_plain_bradley_terry(known):
    (x, y, j, c), (_, beta) = labels(90, 6)
    beta = beta if known else np.ones((4, 2))
    model = RewardModel(
        method="marginal" if known else "homogeneous",
        rationality=beta if known else None,
        ridge=0.5,
        tol=1e-10,
    ).fit(x, y, j, c, **sizes())
    _, gradient, _ = dn.bradley_terry_loss(x, y, model.coef_, beta[j, c])
    assert gradient == pytest.approx(-0.5 * model.coef_, abs=1e-9)
    assert np.array_equal(model.rationality_, beta) and not model.rationality_se_.any()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("lapse", [0.0, 0.1])
def test_every_step_rises(method, signed, lapse):
    for seed, size in itertools.product(range(3), (0.3, 3.0, 30.0)):
        (x, y, j, c), _ = labels(60, 30, seed=seed, size=size)
        model = RewardModel(method=method, signed=signed, lapse=lapse, max_iter=500).fit(x, y, j, c)
        path = model.objective_path_
        assert (np.diff(path) >= -1e-9 * (1 + np.abs(path[1:]))).all()
        assert model.converged_ and path[-1] == model.objective_
        if model.n_iter_ and not signed:
            assert path[-1] > path[0] and len(path) == model.n_iter_ + 1


@pytest.mark.parametrize("seed", range(4))
def test_the_bound_is_below_the_evidence_and_close(seed):
    (x, y, j, c), _ = labels(25, 1, seed=seed)
    model = RewardModel(ridge=0.8, category_correlation=0.0).fit(x, y, j, c)
    cells, cell = np.unique(j * 2 + c, return_inverse=True)
    log_beta = np.log(model.rationality_.ravel()[cells])
    theta = np.linspace(-15, 15, 20001)
    t = np.exp(log_beta)[cell][:, None] * x * theta
    log_joint = -np.sum(y[:, None] * np.logaddexp(0, -t) + (1 - y)[:, None] * np.logaddexp(0, t), axis=0)
    log_joint += -0.5 * 0.8 * theta**2 + 0.5 * np.log(0.8 / (2 * np.pi))
    top = log_joint.max()
    evidence = top + np.log(np.exp(log_joint - top).sum() * (theta[1] - theta[0]))
    evidence -= 0.5 * (log_beta @ log_beta) / 0.25
    assert evidence - 0.2 < model.objective_ <= evidence + 1e-8


LINKS = {"logistic": Logistic(), "lapses": Lapsing(0.1), "ties": RaoKupper(0.7)}


@given(
    st.integers(0, 500),
    st.booleans(),
    st.sampled_from(sorted(LINKS)),
    st.sampled_from([0.2, 1.0, 4.0]),
    st.booleans(),
    st.sampled_from([0.0, 0.7]),
)
@settings(max_examples=40)
def test_gradients_of_the_objective_are_its_differences(seed, marginal, link, size, sides, rho):
    """Everywhere, not only at the top: central differences of J in theta, in psi and in lambda."""
    (x, y, j, c), _ = labels(12, 3, seed=seed, size=size)
    rng = np.random.default_rng(seed)
    row = rng.integers(0, 9, 12)
    rows, x = x[:9], x[row]
    y = np.where(rng.random(12) < 0.3, 0.5, np.abs(y - 0.2 * (rng.random(12) < 0.2)))
    side = rng.integers(-1, 2, 12).astype(float)
    cells, cell = np.unique(j * 2 + c, return_inverse=True)
    who, biased = np.unique(j, return_inverse=True)
    k, v = len(cells), rng.uniform(0.5, 2, 12)
    teachers = who if sides else np.zeros(0, int)
    blocks = TeacherBlocks.of(
        *(cells // 2, cells % 2, np.zeros(k, int), teachers),
        scale=0.6,
        correlation=rho,
        drift=0.0,
        position_bias=0.9,
    )
    answers = Choices(Rows([dn.Pool(rows)]), row, y, v, cell, *((biased, side) if sides else ()))
    setting = Setting(0.7, blocks, np.arange(k), LINKS[link], marginal)
    problem = _Problem(answers, setting, rng.choice([-1.0, 1.0], k))
    p = blocks.size
    point = np.concatenate([rng.normal(size=3) / size, 0.5 * rng.normal(size=p), rng.uniform(0.01, 1, 12)])

    def bound(z):
        return problem.state(z[:3], z[3 : 3 + p], z[3 + p :]).bound

    state = problem.state(point[:3], point[3 : 3 + p], point[3 + p :])
    numeric = [(bound(point + 1e-5 * e) - bound(point - 1e-5 * e)) / 2e-5 for e in np.eye(len(point))]
    assert numeric[:3] == pytest.approx(
        x.T @ state.here.slope - 0.7 * state.mean, rel=1e-5, abs=1e-5 * (1 + size)
    )
    own = np.concatenate([state.here.cell_gradient, state.here.bias_gradient]) - blocks.applied(state.psi)
    assert numeric[3 : 3 + p] == pytest.approx(own, rel=1e-5, abs=1e-5 * (1 + size))
    if marginal:  # dJ/dlambda_t = sum_s (lambda*_s - lambda_s) (x_s'S x_t)^2 / 2
        shared = x @ np.linalg.inv(0.7 * np.eye(3) + (x.T * state.weight) @ x) @ x.T
        gap = problem.target(state.here) - state.weight
        assert numeric[3 + p :] == pytest.approx(gap @ shared**2 / 2, rel=1e-4, abs=1e-5 * (1 + size**2))


# ------------------------------------------------------------------------------------------------ the laws

PROBLEM = st.tuples(
    st.integers(1, 40), st.integers(1, 6), st.integers(0, 1000), st.sampled_from([0.3, 1.0, 5.0])
)


@given(PROBLEM, st.sampled_from(METHODS))
@settings(max_examples=30)
def test_the_scale_is_anchored(problem, method):
    T, d, seed, size = problem
    (x, y, j, c), _ = labels(T, d, seed=seed, size=size)
    model = RewardModel(method=method, category_correlation=0.0).fit(x, y, j, c, **sizes())
    used = np.zeros((4, 2), bool)
    used[j, c] = True
    assert abs(np.log(model.rationality_[used]).mean()) < 1e-12
    assert (model.rationality_[~used] == 1).all()


@given(PROBLEM, st.sampled_from(METHODS), st.booleans())
@settings(max_examples=25)
def test_units_order_names_and_sides_do_not_matter(problem, method, signed):
    T, d, seed, size = problem
    (x, y, j, c), _ = labels(T, d, seed=seed, size=size)
    rng = np.random.default_rng(seed)
    options = {"method": method, "signed": signed, "tol": 1e-8, "max_iter": 1000}
    model = RewardModel(**options).fit(x, y, j, c, **sizes())
    again = RewardModel(**options).fit(x, y, j, c, **sizes())
    assert np.array_equal(again.coef_, model.coef_) and np.array_equal(again.rationality_, model.rationality_)
    order = rng.permutation(T)
    shuffled = RewardModel(**options).fit(x[order], y[order], j[order], c[order], **sizes())
    flipped = RewardModel(**options).fit(-x, 1 - y, j, c, **sizes())
    turn = np.linalg.qr(rng.normal(size=(d, d)))[0]
    turned = RewardModel(**options).fit(x @ turn.T, y, j, c, **sizes())
    unit = RewardModel(**options, ridge=1 / 4).fit(x / 2, y, j, c, **sizes())
    close(model, shuffled), close(model, flipped)
    assert turned.coef_ @ turn == pytest.approx(model.coef_, abs=1e-4 * (1 + np.abs(model.coef_).max()))
    assert unit.coef_ / 2 == pytest.approx(model.coef_, abs=1e-4 * (1 + np.abs(model.coef_).max()))
    assert np.abs(np.log(unit.rationality_ / model.rationality_)).max() < 1e-4
    if not signed:
        renamed = RewardModel(**options).fit(x, y, 3 - j, 1 - c, **sizes())
        assert np.abs(np.log(renamed.rationality_[::-1, ::-1] / model.rationality_)).max() < 1e-4


@pytest.mark.parametrize("method", METHODS)
def test_weights_duplicates_and_ties(method):
    (x, y, j, c), _ = labels(50, 4)
    twice = RewardModel(method=method).fit(x, y, j, c, np.full(50, 2.0))
    close(twice, RewardModel(method=method).fit(*(np.repeat(a, 2, axis=0) for a in (x, y, j, c))))
    weight = np.ones(50)
    weight[10:20] = 0
    part = RewardModel(method=method).fit(x, y, j, c, weight, **sizes())
    kept = weight > 0
    close(part, RewardModel(method=method).fit(x[kept], y[kept], j[kept], c[kept], **sizes()))
    soft = np.where(np.arange(50) < 8, 0.5, y)
    halves = np.concatenate([np.ones(8), np.zeros(8), y[8:]])
    rows = np.concatenate([np.arange(8), np.arange(8), np.arange(8, 50)])
    weight = np.concatenate([np.full(16, 0.5), np.ones(42)])
    close(
        RewardModel(method=method).fit(x, soft, j, c),
        RewardModel(method=method).fit(x[rows], halves, j[rows], c[rows], weight),
    )


@given(st.integers(0, 40), st.integers(1, 5), st.integers(0, 99))
def test_distinct_rows_are_found_again(count, d, seed):
    x = np.random.default_rng(seed).choice([-1.0, 0.0, 1.5, 1.5 + 2**-52], (count, d))
    found = distinct_rows(dn.Pool(x))
    if found is None:
        assert count < 2 or len(np.unique(x, axis=0)) == count
        return
    first, row = found
    assert np.array_equal(x[first][row], x)
    assert len(first) == len(np.unique(x, axis=0)) and np.array_equal(np.unique(row), np.arange(len(first)))
    assert np.array_equal(np.unique(row, return_index=True)[1], first)  # order of appearance


def test_rows_are_only_a_shortcut(monkeypatch):
    (x, y, j, c), _ = labels(200, 6)
    x = x[np.random.default_rng(0).integers(0, 30, 200)]
    model = RewardModel().fit(x, y, j, c)
    monkeypatch.setattr("dal_learn._labels.distinct_rows", lambda pool: None)
    other = RewardModel().fit(x, y, j, c)
    close(model, other, 1e-5)
    assert model.information_ == pytest.approx(other.information_, rel=1e-6)
    assert model.coef_covariance(robust=True) == pytest.approx(other.coef_covariance(robust=True), rel=1e-5)
    assert model.rationality_se_ == pytest.approx(other.rationality_se_, rel=1e-5)


def test_types_and_layouts_of_input():
    (x, y, j, c), _ = labels(30, 4)
    x = x.astype(np.float32)
    model = RewardModel().fit(x, y, j, c)
    strided = np.zeros((60, 8), np.float32)
    strided[::-2, ::2] = x
    for other in (
        RewardModel().fit(np.asfortranarray(x), y.astype(int), j.astype(np.int8), c.tolist()),
        RewardModel().fit(strided[::-2, ::2], y.astype(bool), j, c),
        RewardModel().fit(x.astype(">f4"), y.tolist(), j, c),
    ):
        assert np.array_equal(other.coef_, model.coef_)
    torch = pytest.importorskip("torch")
    assert np.array_equal(RewardModel().fit(torch.tensor(x), torch.tensor(y), j, c).coef_, model.coef_)


def test_threads_do_not_change_the_bits():
    threadpoolctl = pytest.importorskip("threadpoolctl")
    (x, y, j, c), _ = labels(300, 80)
    found = []
    for count in (1, 2, 7):
        with threadpoolctl.threadpool_limits(count):
            found.append(RewardModel().fit(x, y, j, c))
    for other in found[1:]:
        assert np.array_equal(other.coef_, found[0].coef_)
        assert np.array_equal(other.rationality_se_, found[0].rationality_se_)


def test_blocks_of_labels_do_not_show(monkeypatch):
    (x, y, j, c), _ = labels(90, 6)
    x = x[np.random.default_rng(0).integers(0, 60, 90)]
    model = RewardModel().fit(x, y, j, c)
    monkeypatch.setattr("dal_learn._labels._BLOCK_ROWS", 17)
    monkeypatch.setattr("dal_learn._answers._BLOCK", 17)
    other = RewardModel().fit(x, y, j, c)
    close(other, model)
    assert other.coef_covariance(robust=True) == pytest.approx(model.coef_covariance(robust=True), rel=1e-5)


# ---------------------------------------------------------------------------------------- information, errors


def joint_fisher(model, x, j, c, ridge=1.0, spread=0.5, lapse=0.0):
    """Information on (theta, log beta of labelled cells) from the definition: p'^2 / (p (1 - p)) g g'."""
    cells, cell = np.unique(j * model.rationality_.shape[1] + c, return_inverse=True)
    beta = model.rationality_.ravel()[cells][cell]
    t = beta * (x @ model.coef_)
    p = lapse / 2 + (1 - lapse) * logistic(t)
    slope = (1 - lapse) * logistic(t) * logistic(-t)
    g = np.zeros((len(x), x.shape[1] + len(cells)))
    g[:, : x.shape[1]] = beta[:, None] * x
    g[np.arange(len(x)), x.shape[1] + cell] = t
    prior = np.concatenate([np.full(x.shape[1], ridge), np.full(len(cells), spread**-2)])
    return (g * (slope**2 / (p * (1 - p)))[:, None]).T @ g + np.diag(prior), cells


@pytest.mark.parametrize("lapse", [0.0, 0.15])
@pytest.mark.parametrize("shape", [(120, 5), (30, 50)])
def test_information_and_errors_by_definition(lapse, shape):
    (x, y, j, c), _ = labels(*shape)
    model = RewardModel(lapse=lapse, category_correlation=0.0).fit(x, y, j, c, **sizes())
    joint, cells = joint_fisher(model, x, j, c, lapse=lapse)
    d, k = x.shape[1], len(cells)
    assert model.information_ == pytest.approx(joint[:d, :d], rel=1e-9, abs=1e-9)
    # Within mean log beta = 0: move along a basis of that plane only.
    plane = scipy.linalg.block_diag(np.eye(d), scipy.linalg.null_space(np.ones((1, k))))
    covariance = plane @ np.linalg.inv(plane.T @ joint @ plane) @ plane.T
    assert model.coef_covariance() == pytest.approx(covariance[:d, :d], rel=1e-7, abs=1e-10)
    g = np.zeros((len(x), d + k))
    t = model.rationality_[j, c] * (x @ model.coef_)
    p, slope = lapse / 2 + (1 - lapse) * logistic(t), (1 - lapse) * logistic(t) * logistic(-t)
    g[:, :d] = model.rationality_[j, c][:, None] * x
    g[np.arange(len(x)), d + np.searchsorted(cells, j * 2 + c)] = t
    g *= ((y - p) / (p * (1 - p)) * slope)[:, None]
    sandwich = covariance @ g.T @ g @ covariance
    assert model.coef_covariance(robust=True) == pytest.approx(sandwich[:d, :d], rel=1e-6, abs=1e-10)
    log_error = np.full(8, 0.5)
    log_error[cells] = np.sqrt(np.diag(covariance)[d:])
    assert model.rationality_se_.ravel() == pytest.approx(model.rationality_.ravel() * log_error, rel=1e-7)
    low, high = model.rationality_interval_[..., 0], model.rationality_interval_[..., 1]
    assert np.sqrt(low * high) == pytest.approx(model.rationality_, rel=1e-12)
    assert np.log(high / low).ravel() == pytest.approx(2 * 1.959964 * log_error, rel=1e-6)
    if lapse == 0:
        expected = dn.information_matrix(
            x, dn.choice_weight(x @ model.coef_, model.rationality_[j, c]), ridge=1.0
        )
        assert model.information_ == pytest.approx(expected, rel=1e-12)


def test_intervals_cover():
    """95 % intervals of log rationality, over 60 repetitions of 4 teachers: 240 chances to miss."""
    inside = []
    for seed in range(60):
        (x, y, j, c), (_, beta) = labels(600, 3, m=4, C=1, seed=seed, spread=0.5)
        model = RewardModel(ridge=0.1).fit(x, y, j, c)
        truth = beta / np.exp(np.log(beta).mean())
        interval = model.rationality_interval_
        inside += ((interval[..., 0] < truth) & (truth < interval[..., 1])).ravel().tolist()
    assert 0.90 <= np.mean(inside) <= 0.99


def test_sandwich_agrees_when_the_model_is_right_and_not_when_labels_are_copied():
    (x, y, j, c), _ = labels(4000, 3, m=2, C=1, seed=5)
    model = RewardModel(ridge=1e-3).fit(x, y, j, c)
    plain, robust = model.coef_covariance(), model.coef_covariance(robust=True)
    assert np.diag(robust) == pytest.approx(np.diag(plain), rel=0.25)
    # Every answer written down four times: a weight of 4 does not make the model right, the sandwich sees it.
    copied = RewardModel(ridge=1e-3).fit(x, y, j, c, np.full(4000, 4.0))
    assert np.diag(copied.coef_covariance()) == pytest.approx(np.diag(plain) / 4, rel=0.1)
    assert np.diag(copied.coef_covariance(robust=True)) == pytest.approx(np.diag(robust), rel=0.1)


# ------------------------------------------------------------------------------------------------- hard cases


def sensible(model):
    for name in ("coef_", "rationality_", "rationality_se_", "rationality_interval_", "information_"):
        assert np.isfinite(getattr(model, name)).all(), name
    assert np.isfinite(model.coef_covariance()).all() and np.isfinite(model.log_likelihood_)
    assert model.converged_ and np.isfinite(model.objective_) and model.gradient_norm_ <= model.tol
    return model


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("signed", [False, True])
class TestHardCases:
    def fit(self, method, signed, *arguments, **options):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            keep = {key: options.pop(key) for key in ("n_teachers", "n_categories") if key in options}
            return sensible(RewardModel(method=method, signed=signed, **options).fit(*arguments, **keep))

    def test_no_labels_give_the_prior(self, method, signed):
        model = self.fit(
            method, signed, np.zeros((0, 3)), [], [], [], n_teachers=2, n_categories=3, ridge=2.0
        )
        assert not model.coef_.any() and np.array_equal(model.information_, 2 * np.eye(3))
        assert (model.rationality_ == 1).all() and model.rationality_.shape == (2, 3)
        assert (model.rationality_se_ == (0.0 if method == "homogeneous" else 0.5)).all()
        weightless = self.fit(method, signed, np.ones((2, 3)), [0, 1], [0, 1], None, [0, 0], ridge=2.0)
        assert not weightless.coef_.any() and (weightless.rationality_ == 1).all()

    def test_separable(self, method, signed):
        rng = np.random.default_rng(0)
        x = rng.normal(size=(200, 3))
        y = (x[:, 0] > 0).astype(int)
        model = self.fit(method, signed, x, y, rng.integers(0, 3, 200), ridge=1e-6)
        assert (model.predict(x) == y).mean() > 0.98

    def test_one_label(self, method, signed):
        model = self.fit(method, signed, [[2.0, 0.0]], [1])
        assert model.coef_[0] > 0 and model.coef_[1] == 0 and model.rationality_.tolist() == [[1.0]]

    @pytest.mark.parametrize("answer", [0, 1, 0.5])
    def test_one_answer_always(self, method, signed, answer):
        (x, _y, j, c), _ = labels(40, 3)
        self.fit(method, signed, x, np.full(40, answer), j, c)

    def test_contradictory_duplicates_say_nothing(self, method, signed):
        model = self.fit(method, signed, np.ones((10, 2)), [0, 1] * 5, [0, 0, 1, 1, 2, 2, 0, 0, 1, 1])
        assert np.abs(model.coef_).max() < 1e-6 and model.information_[0, 0] > 1.5

    def test_zero_differences_and_more_features_than_labels(self, method, signed):
        model = self.fit(method, signed, np.zeros((4, 9)), [0, 1, 1, 1], [0, 1, 2, 3])
        assert not model.coef_.any() and np.array_equal(model.information_, np.eye(9))

    def test_teachers_and_categories_without_labels(self, method, signed):
        (x, y, j, c), _ = labels(60, 3)
        sizes = {"n_teachers": 9, "n_categories": 5}
        model = self.fit(method, signed, x, y, j * 2, c, **sizes, category_correlation=0.0)
        assert model.rationality_.shape == (9, 5)
        unseen = np.ones((9, 5), bool)
        unseen[j * 2, c] = False
        assert (model.rationality_[unseen] == 1).all()
        if method != "homogeneous":
            assert (model.rationality_se_[unseen] == 0.5).all()

    @pytest.mark.parametrize("size", [1e-8, 1e3, 1e6])
    def test_tiny_and_huge_differences(self, method, signed, size):
        (x, y, j, c), _ = labels(80, 3, size=size)
        self.fit(method, signed, x, y, j, c, ridge=1.0)

    def test_a_rank_deficient_design(self, method, signed):
        (x, y, j, c), _ = labels(60, 2)
        model = self.fit(method, signed, np.concatenate([x, x, x], axis=1), y, j, c)
        assert model.coef_[:2] == pytest.approx(model.coef_[4:], abs=1e-6)

    def test_lapses(self, method, signed):
        (x, y, j, c), _ = labels(80, 3, size=10.0)
        self.fit(method, signed, x, y, j, c, lapse=0.2)

    def test_extreme_weights(self, method, signed):
        (x, y, j, c), _ = labels(40, 3)
        self.fit(method, signed, x, y, j, c, np.geomspace(1e-9, 1e6, 40))


def test_a_fit_that_stops_early_says_so():
    (x, y, j, c), _ = labels(60, 4)
    with pytest.warns(ConvergenceWarning, match="did not converge: max_iter = 1 steps were not enough"):
        model = RewardModel(max_iter=1).fit(x, y, j, c)
    assert not model.converged_ and model.n_iter_ == 1 and model.gradient_norm_ > model.tol
    with pytest.warns(ConvergenceWarning, match="rounding errors|no step"):
        RewardModel(tol=1e-300, max_iter=100_000).fit(x, y, j, c)


@pytest.mark.parametrize("method", METHODS)
def test_a_ridge_that_cannot_help(method):
    x = np.outer([1.0, -2, 3, 5], np.ones(3))  # three features that say the same
    with pytest.raises(np.linalg.LinAlgError, match="ridge 1e-300 is too small for differences of this size"):
        RewardModel(method=method, ridge=1e-300).fit(x, [0, 1, 1, 0], [0, 1, 0, 1])
    if method == "marginal":  # there the spread of a margin overflows before anything is fitted
        with pytest.raises(np.linalg.LinAlgError, match="ridge 1e-300 is too small for differences"):
            RewardModel(ridge=1e-300).fit(1e20 * x, [0, 1, 1, 0], [0, 1, 0, 1])
    sensible(RewardModel(method=method, ridge=1e-6).fit(x, [0, 1, 1, 0], [0, 1, 0, 1]))


def test_steps_stay_few():
    """Study refits every round: a cold fit may take a few dozen factorisations, not hundreds."""
    (x, y, j, c), _ = labels(500, 200, m=60, C=5, size=0.1)
    assert RewardModel().fit(x, y, j, c).n_iter_ <= 20
    (x, y, j, c), _ = labels(300, 200, m=60, C=5, size=1.0)
    assert RewardModel().fit(x, y, j, c).n_iter_ <= 60


# ------------------------------------------------------------------------------------------------- statistics


def test_rationalities_are_recovered():
    (x, y, j, c), (theta, beta) = labels(6000, 8, m=6, C=1, seed=2)
    model = RewardModel().fit(x, y, j, c)
    truth = np.log(beta) - np.log(beta).mean()
    assert np.abs(np.log(model.rationality_) - truth).max() < 0.25
    assert np.corrcoef(model.coef_, theta)[0, 1] > 0.99


def test_signs_of_adversarial_teachers():
    for seed in range(5):
        rng = np.random.default_rng(seed)
        x, theta = rng.normal(size=(900, 6)), rng.normal(size=6)
        beta = np.array([1.5, 1.0, 0.8, 1.2, -1.0, -1.6])
        j = rng.integers(0, 6, 900)
        y = rng.random(900) < logistic(beta[j] * (x @ theta))
        model = RewardModel(signed=True).fit(x, y, j)
        assert (np.sign(model.rationality_[:, 0]) == np.sign(beta)).all()
        assert abs(np.log(np.abs(model.rationality_)).mean()) < 1e-12
        assert np.corrcoef(model.coef_, theta)[0, 1] > 0.97
        low, high = model.rationality_interval_[4, 0]
        assert low < model.rationality_[4, 0] < high < 0
        mirrored = RewardModel(signed=True).fit(
            x, ~y, j
        )  # everybody turned round: most still count as honest
        assert mirrored.coef_ == pytest.approx(-model.coef_, rel=1e-5)
        assert RewardModel().fit(x, y, j).objective_ < model.objective_


def test_an_adversary_who_gave_most_labels_does_not_mirror_the_crowd():
    rng = np.random.default_rng(0)
    x, theta = rng.normal(size=(400, 4)), rng.normal(size=4)
    beta = np.array([-3.0, 1.0, 1.0, 1.0])
    j = np.where(np.arange(400) < 340, 0, rng.integers(1, 4, 400))
    y = rng.random(400) < logistic(beta[j] * (x @ theta))
    model = RewardModel(signed=True).fit(x, y, j)
    assert (np.sign(model.rationality_[:, 0]) == np.sign(beta)).all()
    assert np.corrcoef(model.coef_, theta)[0, 1] > 0.97


def test_lapses_are_allowed_for():
    rng = np.random.default_rng(0)
    x, theta = rng.normal(size=(4000, 4)), np.array([6.0, -3.0, 0.0, 2.0])
    y = rng.random(4000) < 0.15 + 0.7 * logistic(x @ theta)
    plain, allowing = RewardModel(ridge=0.01).fit(x, y), RewardModel(ridge=0.01, lapse=0.3).fit(x, y)
    assert np.abs(allowing.coef_ - theta).max() < 1.5 < np.abs(plain.coef_ - theta).max()
    assert allowing.predict_proba(100 * x[:1]).ravel() == pytest.approx(sorted([0.15, 0.85]), abs=0.7)
    assert allowing.predict_proba(100 * x).min() == pytest.approx(0.15, abs=1e-9)


# ------------------------------------------------------------------------------------------------- predicting


def test_predictions():
    (x, y, j, c), _ = labels(80, 3)
    model = RewardModel().fit(x, y, j, c)
    u = x @ model.coef_
    assert np.array_equal(model.reward(x), u) and np.array_equal(model.decision_function(x), u)
    p = model.predict_proba(x, j, c)
    assert p.shape == (80, 2) and p.sum(axis=1) == pytest.approx(1, abs=1e-15)
    assert p[:, 1] == pytest.approx(logistic(model.rationality_[j, c] * u), rel=1e-12)
    assert model.predict_proba(x)[:, 1] == pytest.approx(logistic(u), rel=1e-12)
    assert set(model.predict(x)) == {0, 1} and np.array_equal(model.predict(x), model.predict(x, j, c))
    assert model.score(x, y) == np.mean((u > 0) == y)
    far = RewardModel(rationality=[1.0]).fit([[1.0]], [1])
    for size in (36, 700, 1e6):
        t = size * far.coef_[0]
        assert far.predict_proba([[size]])[0, 0] == pytest.approx(np.exp(-t) / (1 + np.exp(-t)), rel=1e-12)


def test_score_counts_ties_and_doubts():
    model = RewardModel().fit([[1.0]], [1])
    assert model.score([[1.0], [1.0], [0.0]], [1, 0.5, 0]) == 0.75
    assert model.score([[1.0], [1.0]], [1, 0], sample_weight=[3, 1]) == 0.75
    assert model.score([[1.0], [1.0]], [0.9, 0.2]) == 0.5
    with pytest.raises(ValueError, match="no label other than ties"):
        model.score([[1.0]], [0.5])


def test_lower_bound():
    (x, y, j, c), _ = labels(50, 3)
    model = RewardModel().fit(x, y, j, c)
    nu = np.array([0.5, -1.0, 2.0])
    away = x - nu
    norm = np.sqrt(np.einsum("ij,jk,ik->i", away, np.linalg.inv(model.information_), away))
    assert model.lower_bound(x, 1.7, nu) == pytest.approx(away @ model.coef_ - 1.7 * norm, rel=1e-10)
    assert model.lower_bound(x, 0.0) == pytest.approx(model.reward(x), rel=1e-12)
    with pytest.raises(ValueError, match="radius is -1"):
        model.lower_bound(x, -1.0)


@pytest.mark.parametrize(
    ("words", "arguments"),
    [
        ("X has 4 features, but RewardModel is expecting 3", {"X": np.ones((2, 4))}),
        ("X is not finite", {"X": [[np.nan, 0, 0]]}),
        ("X has 1 dimensions", {"X": [1.0, 2, 3]}),
        ("teacher holds 4; expected teachers between 0 and 3", {"teacher": [4], "category": [0]}),
        ("category holds 2", {"teacher": [0], "category": [2]}),
        ("category is missing", {"teacher": [0]}),
        ("teacher has length 2; expected 1", {"teacher": [0, 0], "category": [0]}),
    ],
)
def test_predicting_refusals(words, arguments):
    (x, y, j, c), _ = labels(40, 3)
    with pytest.raises(ValueError, match=words):
        RewardModel().fit(x, y, j, c).predict_proba(**{"X": np.ones((1, 3)), **arguments})


def test_nothing_can_be_asked_before_fitting():
    for name in ("predict", "predict_proba", "reward", "decision_function"):
        with pytest.raises(
            ValueError, match="this RewardModel is not fitted yet; expected a call of fit first"
        ):
            getattr(RewardModel(), name)([[1.0]])
    with pytest.raises(ValueError, match="not fitted"):
        RewardModel().coef_covariance()


# --------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("words", "arguments"),
    [
        ("X is not finite at \\(1, 0\\)", {"X": [[0.0], [np.nan], [1]]}),
        ("X is not finite", {"X": [[0.0], [1], [-np.inf]]}),
        ("X has 1 dimensions", {"X": [0.0, 1, 2]}),
        ("X has 0 features", {"X": np.zeros((3, 0))}),
        ("X has dtype complex128", {"X": np.ones((3, 1)) * 1j}),
        ("X has dtype object", {"X": np.ones((3, 1), object)}),
        ("X reaches 1e\\+200", {"X": [[1e200], [0], [0]]}),
        ("y has length 2; expected 3", {"y": [0, 1]}),
        ("y\\[2\\] is 2; expected labels in \\[0, 1\\]", {"y": [0, 1, 2]}),
        ("y\\[0\\] is -1", {"y": [-1, 1, 0]}),
        ("y is not finite at 1", {"y": [0, np.nan, 0]}),
        ("y has dtype <U1", {"y": ["a", "b", "a"]}),
        ("y has 2 dimensions", {"y": [[0], [1], [1]]}),
        ("requires y", {"y": None}),
        ("teacher has length 1; expected 3", {"teacher": [0]}),
        ("teacher holds -1", {"teacher": [0, -1, 0]}),
        ("teacher has dtype float64", {"teacher": [0.0, 1, 0]}),
        ("teacher holds 2; expected teachers between 0 and 1", {"teacher": [0, 1, 2], "n_teachers": 2}),
        ("teacher and category span", {"teacher": [0, 1, 10**9]}),
        ("category holds 1; expected categories between 0 and 0", {"category": [0, 1, 0], "n_categories": 1}),
        ("category has length 4", {"category": [0, 0, 0, 0]}),
        ("n_teachers is 0", {"n_teachers": 0}),
        ("n_categories is 1.5", {"n_categories": 1.5}),
        ("sample_weight holds a number below 0", {"sample_weight": [1, -1, 1]}),
        ("sample_weight is not finite", {"sample_weight": [1, np.inf, 1]}),
        ("sample_weight has length 1", {"sample_weight": [1]}),
    ],
)
def test_fitting_refusals(words, arguments):
    arguments = {"X": np.ones((3, 1)), "y": [0, 1, 1], **arguments}
    with pytest.raises(ValueError, match=words):
        RewardModel().fit(**arguments)


@pytest.mark.parametrize(
    ("words", "parameters"),
    [
        ("ridge is 0", {"ridge": 0}),
        ("ridge is -1", {"ridge": -1.0}),
        ("ridge is nan", {"ridge": np.nan}),
        ("ridge is 'big'", {"ridge": "big"}),
        ("rationality_scale is 0", {"rationality_scale": 0.0}),
        ("rationality_scale is inf", {"rationality_scale": np.inf}),
        ("method is 'em'; expected one of 'marginal'", {"method": "em"}),
        ("lapse is 1.0", {"lapse": 1.0}),
        ("lapse is -0.1", {"lapse": -0.1}),
        ("max_iter is 0", {"max_iter": 0}),
        ("max_iter is 2.5", {"max_iter": 2.5}),
        ("tol is 0", {"tol": 0}),
        ("signed is 'yes'", {"signed": "yes"}),
        ("rationality is not finite", {"rationality": [[np.inf]]}),
        ("rationality is not finite", {"rationality": [[np.nan, -np.inf]]}),
        ("category_correlation is 1.0", {"category_correlation": 1.0}),
        ("category_correlation is -0.1", {"category_correlation": -0.1}),
        ("position_bias is -1", {"position_bias": -1.0}),
        ("drift is nan", {"drift": np.nan}),
        ("ties is 1", {"ties": 1}),
        ("warm_start is None", {"warm_start": None}),
        ("lapse is 'some'", {"lapse": "some"}),
        ("rationality_scale is 'big'", {"rationality_scale": "big"}),
        ("ties is True and lapse 0.1", {"ties": True, "lapse": 0.1}),
        ("ties is True and lapse 'fit'", {"ties": True, "lapse": "fit"}),
        ("rationality has 1 categories", {"rationality": [[1.0]]}),
        ("teacher holds 1; expected teachers between 0 and 0", {"rationality": [[1.0, 1.0]]}),
    ],
)
def test_parameters_are_looked_at_when_fitting(words, parameters):
    model = RewardModel(**parameters)
    with pytest.raises(ValueError, match=words):
        model.fit(np.ones((2, 1)), [0, 1], [0, 1], [0, 1])


def test_a_failed_fit_leaves_the_old_one():
    model = RewardModel().fit([[1.0]], [1])
    before = model.coef_.copy()
    with pytest.raises(ValueError, match="y\\[0\\] is 7"):
        model.fit([[1.0]], [7])
    assert np.array_equal(model.coef_, before)
