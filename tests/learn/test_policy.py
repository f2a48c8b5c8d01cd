"""The pessimistic policy against an independent solver, and what it promises about itself."""

from __future__ import annotations

import tracemalloc
import warnings
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.linalg import LinAlgError
from scipy import optimize

import dal_native as dn
from dal_learn.policy import (
    PolicyNotConverged,
    greedy_policy,
    lower_confidence_bound,
    mean_features,
    pessimistic_policy,
)
from dal_learn.radius import confidence_radius


def make_problem(seed, d=4, counts=(3, 2, 1, 4), labels=12):
    rng = np.random.default_rng(seed)
    offsets = np.concatenate([[0], np.cumsum(counts)])
    phi = rng.standard_normal((offsets[-1], d))
    x = rng.standard_normal((labels, d))
    M = 0.5 * np.eye(d) + 0.25 * x.T @ x
    return phi, offsets, rng.standard_normal(d), M


def reference_optimum(phi, offsets, reward, M, radius, nu, weight=None):
    """max_pi V by its dual, an epigraph programme over the reward that knows neither vertices nor smoothing.

    Minimise sum_p w_p s_p - nu'theta, with s_p >= phi'theta in each prompt and |theta - reward|_M <= radius;
    the point found is moved into the constraints, so that its value is an upper bound in any case.
    """
    d, n_prompts = len(reward), len(offsets) - 1
    w = np.full(n_prompts, 1 / n_prompts) if weight is None else np.asarray(weight) / np.sum(weight)
    owner = np.repeat(np.arange(n_prompts), np.diff(offsets))
    pick = np.eye(n_prompts)[owner]
    cost = np.concatenate([-nu, w])
    inside = {
        "type": "ineq",
        "fun": lambda v: radius**2 - (v[:d] - reward) @ M @ (v[:d] - reward),
        "jac": lambda v: np.concatenate([-2 * M @ (v[:d] - reward), np.zeros(n_prompts)]),
    }
    above = {
        "type": "ineq",
        "fun": lambda v: pick @ v[d:] - phi @ v[:d],
        "jac": lambda v: np.hstack([-phi, pick]),
    }
    start = np.concatenate([reward, np.maximum.reduceat(phi @ reward, offsets[:-1])])
    found = optimize.minimize(
        lambda v: cost @ v,
        start,
        jac=lambda v: cost,
        constraints=[inside, above],
        method="SLSQP",
        options={"ftol": 1e-13, "maxiter": 1000},
    )
    assert found.status in (0, 8), found.message  # 8: no further progress in double precision
    away = found.x[:d] - reward
    away *= min(1.0, radius / max(np.sqrt(away @ M @ away), 1e-300))
    theta = reward + away
    return w @ np.maximum.reduceat(phi @ theta, offsets[:-1]) - nu @ theta


def lower_bound_of(probability, phi, offsets, reward, M, radius, nu, weight=None):
    """V(pi) from its definition."""
    counts = np.diff(offsets)
    w = np.full(len(counts), 1 / len(counts)) if weight is None else np.asarray(weight) / np.sum(weight)
    x = (probability * np.repeat(w, counts)) @ phi - nu
    return x @ reward - radius * np.sqrt(x @ np.linalg.solve(M, x))


def assert_policy(probability, offsets):
    assert (probability >= 0).all()
    np.testing.assert_allclose(np.add.reduceat(probability, offsets[:-1]), 1.0, atol=1e-12)


# ---------------------------------------------------------------------------------------------- temperature 0


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("radius", [0.0, 0.3, 1.0, 3.0, 20.0])
@pytest.mark.parametrize("reference", ["zero", "inside", "outside"])
def test_optimum_is_that_of_an_independent_solver(seed, radius, reference):
    phi, offsets, reward, M = make_problem(seed)
    rng = np.random.default_rng(100 + seed)
    inside = rng.dirichlet(np.ones(len(phi))) @ phi
    nu = {"zero": np.zeros(4), "inside": inside, "outside": 3 * rng.standard_normal(4)}[reference]
    weight = [1.0, 2.0, 0.5, 1.0] if seed % 2 else None
    p = pessimistic_policy(phi, offsets, reward, M, radius, reference=nu, prompt_weight=weight)
    expected = reference_optimum(phi, offsets, reward, M, radius, nu, weight)
    assert_policy(p.probability, offsets)
    assert p.converged
    assert p.duality_gap <= 1e-6
    assert p.lower_bound == pytest.approx(expected, abs=2e-6)
    direct = lower_bound_of(p.probability, phi, offsets, reward, M, radius, nu, weight)
    assert p.lower_bound == pytest.approx(direct, abs=1e-10)


@settings(max_examples=40)
@given(
    seed=st.integers(0, 10**6),
    radius=st.floats(0, 30),
    counts=st.lists(st.integers(1, 4), min_size=1, max_size=6),
    d=st.integers(1, 5),
    max_iter=st.integers(0, 4),
    tau=st.sampled_from([0.0, 0.0, 0.3]),
)
def test_gap_is_never_smaller_than_the_true_distance_to_the_optimum(seed, radius, counts, d, max_iter, tau):
    """Also when stopped early: that is what the certificate is for."""
    phi, offsets, reward, M = make_problem(seed, d=d, counts=counts)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PolicyNotConverged)
        p = pessimistic_policy(phi, offsets, reward, M, radius, max_iter=max_iter, temperature=tau)
        best = pessimistic_policy(phi, offsets, reward, M, radius, tol=1e-9, temperature=tau)
    objective = p.lower_bound - tau * p.divergence
    assert p.duality_gap >= best.lower_bound - tau * best.divergence - objective - 1e-9
    if tau == 0.0:
        expected = reference_optimum(phi, offsets, reward, M, max(radius, 1e-6), np.zeros(d))
        assert p.duality_gap >= expected - objective - 1e-5
    inside = (p.least_favourable_reward - reward) @ M @ (p.least_favourable_reward - reward)
    assert np.sqrt(inside) <= radius * (1 + 1e-9) + 1e-9


@pytest.mark.parametrize("seed", range(4))
def test_no_vertex_and_no_edge_is_better(seed):
    """Brute force over all deterministic policies and all mixtures of two of them."""
    phi, offsets, reward, M = make_problem(seed, d=3, counts=(2, 3, 2))
    p = pessimistic_policy(phi, offsets, reward, M, 1.0)
    grids = np.meshgrid(*[range(a, b) for a, b in pairwise(offsets)])
    vertices = np.zeros((grids[0].size, len(phi)))
    for rows in np.stack(grids, axis=-1).reshape(-1, 3):
        vertices[np.argmin(vertices.any(axis=1)), rows] = 1.0
    args = (phi, offsets, reward, M, 1.0, np.zeros(3))
    best = max(
        lower_bound_of(s * u + (1 - s) * v, *args)
        for u in vertices
        for v in vertices
        for s in np.linspace(0, 1, 21)
    )
    assert p.lower_bound >= best - 1e-6


def test_one_axis_by_hand():
    """d = 1: M = 4, radius = 2, so every unit of x - nu costs 1: only rewards above 1 a unit are worth it."""
    kept = pessimistic_policy([[0.0], [1.0]], [0, 2], [0.8], [[4.0]], 2.0)
    taken = pessimistic_policy([[0.0], [1.0]], [0, 2], [1.2], [[4.0]], 2.0)
    assert kept.choice.tolist() == [0]
    assert kept.lower_bound == pytest.approx(0.0, abs=1e-6)
    assert taken.choice.tolist() == [1]
    assert taken.lower_bound == pytest.approx(0.2, abs=1e-6)
    assert taken.value == pytest.approx(1.2, abs=1e-6)
    assert taken.least_favourable_reward == pytest.approx([0.2], abs=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_radius_zero_is_greedy(seed):
    phi, offsets, reward, M = make_problem(seed)
    p = pessimistic_policy(phi, offsets, reward, M, 0.0)
    g = greedy_policy(phi, offsets, reward)
    assert p.choice.tolist() == g.choice.tolist()
    np.testing.assert_array_equal(p.probability, g.probability)
    by_hand = [int(np.argmax(phi[a:b] @ reward)) for a, b in pairwise(offsets)]
    assert g.choice.tolist() == by_hand
    assert p.value == p.lower_bound == pytest.approx(g.value)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("reference", [None, "mean"])
def test_pessimism_is_monotone_in_the_radius(seed, reference):
    phi, offsets, reward, M = make_problem(seed)
    path = [
        pessimistic_policy(phi, offsets, reward, M, radius, reference=reference, tol=1e-8)
        for radius in (0.0, 0.2, 0.5, 1.0, 2.0, 5.0, 50.0)
    ]
    bounds, values = [p.lower_bound for p in path], [p.value for p in path]
    assert all(a >= b - 1e-7 for a, b in pairwise(bounds))
    assert all(a >= b - 1e-6 for a, b in pairwise(values))
    far = [
        np.sqrt(x @ np.linalg.solve(M, x))
        for x in (mean_features(phi, offsets, p.probability) - p.reference for p in path)
    ]
    assert all(a >= b - 1e-6 for a, b in pairwise(far))


@pytest.mark.parametrize("reference", ["mean", "base"])
def test_a_large_radius_stays_exactly_on_a_reference_it_can_reach(reference):
    phi, offsets, reward, M = make_problem(3)
    base = np.concatenate(
        [np.random.default_rng(k).dirichlet(np.ones(c)) for k, c in enumerate((3, 2, 1, 4))]
    )
    p = pessimistic_policy(phi, offsets, reward, M, 100.0, reference=reference, base_policy=base)
    expected = base if reference == "base" else np.repeat(1 / np.diff(offsets), np.diff(offsets))
    np.testing.assert_allclose(p.probability, expected, atol=1e-12)
    assert p.lower_bound == 0.0
    assert p.duality_gap <= 1e-6
    np.testing.assert_allclose(p.reference, mean_features(phi, offsets, expected), atol=1e-12)


def test_the_kink_is_reached_and_certified_for_a_plain_vector_too():
    """Plain Frank-Wolfe stalls here with a gap that never closes."""
    phi, offsets, reward, M = make_problem(5, d=3, counts=(4, 4, 4, 4))
    nu = mean_features(phi, offsets, np.full(16, 0.25))
    p = pessimistic_policy(phi, offsets, reward, M, 8.0, reference=nu)
    assert p.converged
    assert p.lower_bound == pytest.approx(0.0, abs=1e-6)
    np.testing.assert_allclose(mean_features(phi, offsets, p.probability), nu, atol=1e-6)


def test_infinite_radius_goes_to_the_reference_or_as_near_as_it_can():
    phi, offsets, reward, M = make_problem(2)
    reached = pessimistic_policy(phi, offsets, reward, M, np.inf, reference="mean")
    assert reached.lower_bound == 0.0
    assert not reached.least_favourable_reward.any()
    vector = pessimistic_policy(phi, offsets, reward, M, np.inf, reference=reached.reference)
    assert vector.lower_bound == 0.0
    far = np.full(4, 10.0)
    p = pessimistic_policy(phi, offsets, reward, M, np.inf, reference=far)
    assert p.converged
    assert p.lower_bound == -np.inf
    # least distance = - (best V with reward 0 and radius 1)
    expected = -reference_optimum(phi, offsets, np.zeros(4), M, 1.0, far)
    x = mean_features(phi, offsets, p.probability) - far
    assert np.sqrt(x @ np.linalg.solve(M, x)) == pytest.approx(expected, abs=1e-5)
    theta = p.least_favourable_reward
    assert np.sqrt(theta @ M @ theta) == pytest.approx(1.0, rel=1e-9)


@pytest.mark.parametrize("d", [1, 2, 9])
def test_reaching_the_reference_takes_few_reads_whatever_the_start(d):
    """Newton's steps alone creep here: the norm is all but linear until the reference is near."""
    for seed in range(40):
        rng = np.random.default_rng(seed)
        counts = rng.integers(1, 6, 19)
        phi = rng.standard_normal((counts.sum(), d))
        offsets = np.concatenate([[0], np.cumsum(counts)])
        inside = mean_features(phi, offsets, np.repeat(1 / counts, counts))
        p = pessimistic_policy(phi, offsets, 5 * np.ones(d), 0.05 * np.eye(d), np.inf, reference=inside)
        assert p.lower_bound == 0.0
        assert p.reads < 40


@pytest.mark.parametrize(
    ("d", "n_prompts", "k", "scale"), [(30, 60, 2, 8.0), (50, 300, 4, 1.3), (24, 40, 3, 30.0)]
)
def test_larger_problems_reach_the_tolerance_in_few_reads(d, n_prompts, k, scale):
    rng = np.random.default_rng(0)
    spectrum = np.exp(-3 * np.arange(d) / d)
    phi = rng.standard_normal((n_prompts * k, d)) * spectrum
    x = rng.standard_normal((3 * d, d)) * spectrum
    M = np.eye(d) + 0.2 * x.T @ x
    p = pessimistic_policy(phi, np.arange(0, len(phi) + 1, k), rng.standard_normal(d), M, scale * np.sqrt(d))
    assert p.converged
    assert p.reads < 150


# -------------------------------------------------------------------------------------------- temperature > 0


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("tau", [0.1, 1.0])
@pytest.mark.parametrize("radius", [0.0, 0.7, 4.0])
def test_softened_optimum_is_that_of_an_independent_solver(seed, tau, radius):
    phi, offsets, reward, M = make_problem(seed, d=3, counts=(3, 2, 1))
    nu = np.array([0.3, -0.2, 0.1])
    base = np.array([0.2, 0.5, 0.3, 0.9, 0.1, 1.0])

    def objective(logits):
        e = np.exp(logits - np.repeat(np.maximum.reduceat(logits, offsets[:-1]), np.diff(offsets)))
        pi = e / np.repeat(np.add.reduceat(e, offsets[:-1]), np.diff(offsets))
        kl = np.sum(pi * np.log(np.maximum(pi, 1e-300) / base)) / 3
        return lower_bound_of(pi, phi, offsets, reward, M, radius, nu) - tau * kl

    starts = [np.log(base), np.log(base) + phi @ reward / tau]
    expected = max(
        -optimize.minimize(lambda v: -objective(v), s, method="BFGS", options={"gtol": 1e-9}).fun
        for s in starts
    )
    p = pessimistic_policy(
        phi, offsets, reward, M, radius, temperature=tau, reference=nu, base_policy=base, tol=1e-9
    )
    assert_policy(p.probability, offsets)
    assert p.duality_gap <= 1e-9
    assert p.lower_bound - tau * p.divergence == pytest.approx(expected, abs=1e-6)
    # the policy is the softmax under the least favourable reward, which lies in the ellipsoid
    e = base * np.exp(phi @ p.least_favourable_reward / tau)
    soft = e / np.repeat(np.add.reduceat(e, offsets[:-1]), np.diff(offsets))
    np.testing.assert_allclose(p.probability, soft, rtol=1e-8, atol=1e-12)
    away = p.least_favourable_reward - reward
    assert np.sqrt(away @ M @ away) <= radius * (1 + 1e-9)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("radius", [0.5, 2.0, 10.0])
def test_temperature_to_zero_agrees(seed, radius):
    phi, offsets, reward, M = make_problem(seed)
    hard = pessimistic_policy(phi, offsets, reward, M, radius, reference="mean", tol=1e-8)
    last = np.inf
    for tau in (1.0, 0.1, 0.01, 1e-4):
        soft = pessimistic_policy(
            phi, offsets, reward, M, radius, reference="mean", temperature=tau, tol=1e-8
        )
        short = hard.lower_bound - soft.lower_bound
        # V_hard <= max (V - tau KL) + tau log K
        assert -1e-7 <= short <= tau * np.log(4) + 1e-7
        assert short <= last + 1e-7
        last = short


def test_a_base_policy_without_support_is_never_left():
    phi, offsets, reward, M = make_problem(0, counts=(3, 3))
    base = np.array([0.0, 0.5, 0.5, 1.0, 0.0, 0.0])
    p = pessimistic_policy(phi, offsets, reward, M, 1.0, temperature=0.2, base_policy=base)
    assert not p.probability[base == 0].any()
    assert np.isfinite(p.divergence)


def test_temperature_with_an_infinite_radius_is_refused():
    phi, offsets, reward, M = make_problem(0)
    with pytest.raises(ValueError, match="radius is inf; expected a finite radius"):
        pessimistic_policy(phi, offsets, reward, M, np.inf, temperature=0.1)


# --------------------------------------------------------------------------------------------- what it is for


def fitted(differences, choice, ridge, count=1.0):
    """Ridge logistic regression by Newton's method: estimate and information matrix; `count` labels a row."""
    theta = np.zeros(differences.shape[1])
    for _ in range(100):
        p = 1 / (1 + np.exp(-differences @ theta))
        M = ridge * np.eye(len(theta)) + (differences * (count * p * (1 - p))[:, None]).T @ differences
        step = np.linalg.solve(M, differences.T @ (count * (choice - p)) - ridge * theta)
        theta += step / max(1.0, np.linalg.norm(step))
        if np.linalg.norm(step) < 1e-10:
            break
    return theta, M


def test_zhu_jordan_jiao_instance():
    """Greedy keeps a constant loss however many comparisons there are; pessimism's vanishes (nu = a3 = 0)."""
    phi = np.array([[1.0, 1, 0], [1, 0, 0], [0, 0, 0], [0, 1, 0]])
    truth = np.array([-1.0, 0.1, 0.9])
    rewards = phi @ truth
    x = np.stack([phi[0] - phi[1], phi[1] - phi[2]])
    rng = np.random.default_rng(0)
    mean_loss = {}
    for n in (100, 100_000):
        greedy, pessimistic = [], []
        for _ in range(200):
            wins = rng.binomial(n - 1, 1 / (1 + np.exp(-0.1)))  # of a1 over a2
            last = rng.random() < 1 / (1 + np.exp(1.0))  # a2 over a3
            reward, M = fitted(x, np.array([wins / (n - 1), last]), 0.01, count=np.array([n - 1.0, 1.0]))
            radius = confidence_radius(3, 0.1, ridge=0.01, reward_norm=1.5)
            greedy.append(rewards.max() - greedy_policy(phi, [0, 4], reward).probability @ rewards)
            p = pessimistic_policy(phi, [0, 4], reward, M, radius)
            pessimistic.append(rewards.max() - p.probability @ rewards)
        mean_loss[n] = np.mean(greedy), np.mean(pessimistic)
    assert mean_loss[100][0] > 0.15
    assert mean_loss[100_000][0] > 0.15  # about one in four runs loses 1.0
    assert mean_loss[100][1] < 0.12
    assert mean_loss[100_000][1] < 1e-3


def test_the_loss_falls_at_least_like_one_over_the_root_of_the_labels():
    """Slope of log loss against log T over random instances; nu is the mean, which the labels cover."""
    rng = np.random.default_rng(3)
    sizes, losses = (50, 200, 800, 3200), []
    offsets = np.arange(0, 41, 4)
    for size in sizes:
        total = 0.0
        for _ in range(40):
            truth = rng.standard_normal(3)
            phi = rng.standard_normal((40, 3))
            x = rng.standard_normal((size, 3))
            y = (rng.random(size) < 1 / (1 + np.exp(-x @ truth))).astype(float)
            reward, M = fitted(x, y, 0.1)
            p = pessimistic_policy(phi, offsets, reward, M, confidence_radius(3, 0.1), reference="mean")
            best = np.maximum.reduceat(phi @ truth, offsets[:-1]).mean()
            total += best - mean_features(phi, offsets, p.probability) @ truth
        losses.append(total / 40)
    slope = np.polyfit(np.log(sizes), np.log(losses), 1)[0]
    assert slope < -0.45


@pytest.mark.parametrize(("kind", "delta"), [("ellipsoid", 0.2), ("policy", 0.2)])
def test_coverage_of_the_lower_bound_is_at_least_nominal(kind, delta):
    """400 simulated studies; "policy" for a policy fixed beforehand, "ellipsoid" for the one chosen."""
    rng = np.random.default_rng(1)
    phi, offsets, _, _ = make_problem(9, d=3, counts=(4, 4, 4))
    truth = np.array([0.8, -0.5, 0.3])
    fixed = np.random.default_rng(2).dirichlet(np.ones(4), size=3).ravel()
    x_fixed = mean_features(phi, offsets, fixed)
    ridge = 0.1
    radius = confidence_radius(3, delta, kind=kind, ridge=ridge, reward_norm=float(np.linalg.norm(truth)))
    covered = 0
    for _ in range(400):
        x = rng.standard_normal((60, 3))
        y = (rng.random(60) < 1 / (1 + np.exp(-x @ truth))).astype(float)
        reward, M = fitted(x, y, ridge)
        if kind == "ellipsoid":
            p = pessimistic_policy(phi, offsets, reward, M, radius)
            covered += p.lower_bound <= mean_features(phi, offsets, p.probability) @ truth
        else:
            bound = lower_confidence_bound(x_fixed[None], reward, M, radius)[0]
            covered += bound <= x_fixed @ truth
    error = 3 * np.sqrt(delta * (1 - delta) / 400)
    assert covered / 400 >= 1 - delta - error


def test_greedy_policy_is_judged_by_the_same_measure():
    phi, offsets, reward, M = make_problem(4)
    g = greedy_policy(phi, offsets, reward, M=M, radius=1.5)
    p = pessimistic_policy(phi, offsets, reward, M, 1.5)
    assert g.lower_bound <= p.lower_bound + 1e-9
    assert g.duality_gap >= p.lower_bound - g.lower_bound - 1e-9
    assert g.lower_bound == pytest.approx(
        lower_bound_of(g.probability, phi, offsets, reward, M, 1.5, np.zeros(4))
    )
    # its worst reward attains the bound, and lies on the edge of the ellipsoid
    theta = g.least_favourable_reward
    assert mean_features(phi, offsets, g.probability) @ theta == pytest.approx(g.lower_bound)
    assert np.sqrt((theta - reward) @ M @ (theta - reward)) == pytest.approx(1.5)
    with pytest.raises(ValueError, match="M is missing"):
        greedy_policy(phi, offsets, reward, radius=1.0)


# ------------------------------------------------------------------------------------------- pointwise bound


def test_pointwise_bound_is_its_formula():
    phi, _, reward, M = make_problem(6)
    nu = np.array([0.1, 0.2, -0.3, 0.4])
    for reference, point in ((None, 0 * nu), (nu, nu), ("mean", phi.mean(axis=0))):
        z = phi - point
        expected = phi @ reward - 1.3 * np.sqrt(np.sum(z * np.linalg.solve(M, z.T).T, axis=1))
        found = lower_confidence_bound(phi, reward, M, 1.3, reference=reference)
        np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)
    assert lower_confidence_bound(np.zeros((0, 4)), reward, M, 1.0).shape == (0,)


# ------------------------------------------------------------------------------------------------ storage


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("tau", [0.0, 0.5])
def test_stored_values_are_what_counts(dtype, tau):
    phi, offsets, reward, M = make_problem(7)
    if dtype == "bfloat16":
        stored = phi.astype(pytest.importorskip("ml_dtypes").bfloat16)
    else:
        stored = phi.astype(dtype)
    a = pessimistic_policy(stored, offsets, reward, M, 1.0, temperature=tau)
    b = pessimistic_policy(stored.astype(np.float64), offsets, reward, M, 1.0, temperature=tau)
    np.testing.assert_allclose(a.probability, b.probability, rtol=1e-9, atol=1e-9)
    assert a.lower_bound == pytest.approx(b.lower_bound, abs=1e-9)


@pytest.mark.parametrize("tau", [0.0, 0.2])
def test_same_bits_again_and_with_any_number_of_threads(tau):
    rng = np.random.default_rng(0)
    phi = rng.standard_normal((400, 16))
    offsets = np.arange(0, 401, 4)
    M = np.eye(16) * 30
    found = []
    before = dn.get_threads() if hasattr(dn, "get_threads") else None
    try:
        for threads in (1, 2, 7, 1):
            dn.set_threads(threads)
            found.append(pessimistic_policy(phi, offsets, phi[0], M, 3.0, temperature=tau))
    finally:
        dn.set_threads(before)
    for p in found[1:]:
        np.testing.assert_array_equal(p.probability, found[0].probability)
        np.testing.assert_array_equal(p.least_favourable_reward, found[0].least_favourable_reward)
        assert p.lower_bound == found[0].lower_bound


@pytest.mark.parametrize("tau", [0.0, 1.0])
def test_the_pool_is_never_copied_as_a_whole(tau):
    n, d = 100_000, 64
    phi = np.random.default_rng(0).standard_normal((n, d), dtype=np.float32)
    tracemalloc.start()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PolicyNotConverged)
            pessimistic_policy(
                phi, np.arange(0, n + 1, 4), np.ones(d), 50 * np.eye(d), 2.0, temperature=tau, max_iter=3
            )
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < n * d * 8 / 2


# ------------------------------------------------------------------------------------------------ boundary


def test_prompts_with_one_completion_count_in_the_mean():
    phi = np.array([[1.0, 0], [0, 1], [5, 5]])
    p = pessimistic_policy(phi, [0, 2, 3], [1.0, 0.0], np.eye(2), 0.0)
    assert p.choice.tolist() == [0, 0]
    assert p.value == pytest.approx((1 + 5) / 2)
    only = pessimistic_policy([[2.0, 1.0]], [0, 1], [1.0, 1.0], np.eye(2), 1.0)
    assert only.probability.tolist() == [1.0]
    assert only.lower_bound == pytest.approx(3 - np.sqrt(5), abs=1e-6)


def test_weights_of_prompts():
    phi, offsets, reward, M = make_problem(1)
    none = pessimistic_policy(phi, offsets, reward, M, 1.0, prompt_weight=[1, 0, 0, 0])
    alone = pessimistic_policy(phi[:3], [0, 3], reward, M, 1.0)
    assert none.lower_bound == pytest.approx(alone.lower_bound, abs=2e-6)
    scaled = pessimistic_policy(phi, offsets, reward, M, 1.0, prompt_weight=[8, 8, 8, 8])
    assert scaled.lower_bound == pytest.approx(pessimistic_policy(phi, offsets, reward, M, 1.0).lower_bound)


def test_equal_completions_and_a_zero_reward():
    same = pessimistic_policy(np.ones((6, 3)), [0, 3, 6], np.ones(3), np.eye(3), 0.5)
    assert same.lower_bound == pytest.approx(3 - 0.5 * np.sqrt(3), abs=1e-6)
    assert same.choice.tolist() == [0, 0]
    nothing = pessimistic_policy(np.eye(3), [0, 3], np.zeros(3), np.eye(3), 0.0)
    assert nothing.lower_bound == 0.0


def test_information_matrix_objects_are_taken():
    phi, offsets, reward, M = make_problem(1)
    a = pessimistic_policy(phi, offsets, reward, dn.InformationMatrix(M), 1.0)
    b = pessimistic_policy(phi, offsets, reward, M, 1.0)
    np.testing.assert_array_equal(a.probability, b.probability)


@pytest.mark.parametrize("tau", [0.0, 0.01])
def test_a_missed_tolerance_warns_and_stays_valid(tau):
    phi, offsets, reward, M = make_problem(1, counts=(4, 4, 4, 4))
    with pytest.warns(PolicyNotConverged, match="duality gap .* is above tol 1e-12"):
        p = pessimistic_policy(phi, offsets, reward, M, 2.0, tol=1e-12, max_iter=1, temperature=tau)
    assert not p.converged
    assert p.duality_gap > 1e-12
    assert_policy(p.probability, offsets)


@pytest.mark.parametrize("scale", [1e-150, 1e-8, 1e8, 1e100])
def test_extreme_scales_give_finite_answers(scale):
    phi, offsets, reward, M = make_problem(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PolicyNotConverged)
        p = pessimistic_policy(phi * scale, offsets, reward, M, 1.0)
    assert np.isfinite(p.lower_bound)
    assert_policy(p.probability, offsets)


def refused(words, error=ValueError, **changes):
    phi, offsets, reward, M = make_problem(0)
    arguments = {
        "completions": phi,
        "prompt_offsets": offsets,
        "reward": reward,
        "M": M,
        "radius": 1.0,
        **changes,
    }
    with pytest.raises(error, match=words):
        pessimistic_policy(**arguments)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", [0, 4, 9])
def test_numbers_that_are_not_finite_are_refused_by_name(bad, where):
    phi, _, reward, M = make_problem(0)
    broken = phi.copy()
    broken[where, -1] = bad
    refused(f"completions holds NaN or infinity, first in row {where}", completions=broken)
    for name, value in (
        ("reward", reward),
        ("M", M),
        ("base_policy", np.ones(10)),
        ("prompt_weight", np.ones(4)),
    ):
        broken = value.copy()
        broken.flat[-1] = bad
        refused(f"{name} is not finite", **{name: broken})
    refused("reference is not finite", reference=np.full(4, bad))
    if bad != np.inf:
        refused("radius is", radius=bad)
    refused("temperature is", temperature=bad)


def test_arguments_that_do_not_fit_are_refused_by_name():
    refused("prompt_offsets must start at 0 and end at 10", prompt_offsets=[0, 9])
    refused("prompt 1 has 0 completions; expected at least one", prompt_offsets=[0, 3, 3, 10])
    refused(
        "prompt_offsets holds no prompt|prompt_offsets must start",
        completions=np.zeros((0, 4)),
        prompt_offsets=[0],
    )
    refused("reward has length 3; expected 4", reward=np.ones(3))
    refused(r"M has shape \(3, 3\); expected \(4, 4\)", M=np.eye(3))
    refused("M is not symmetric", M=np.triu(np.ones((4, 4))))
    refused("radius is -1", radius=-1.0)
    refused("radius is 'wide'", radius="wide")
    refused("temperature is -0.1", temperature=-0.1)
    refused("temperature is 1e-30, too small beside the rewards", temperature=1e-30)
    refused("tol is -1", tol=-1.0)
    refused("max_iter is -1", max_iter=-1)
    refused("reference has length 2; expected 4", reference=[0.0, 1.0])
    refused("reference is 'median'", reference="median")
    refused("base_policy has length 3; expected 10", base_policy=[1.0, 0, 0])
    refused("base_policy sums to 2 in prompt 1", base_policy=[0.5, 0.5, 0, 1, 1, 1, 1, 0, 0, 0])
    refused("base_policy holds -1", base_policy=[-1.0, 1, 1, 1, 0, 1, 1, 0, 0, 0])
    refused("prompt_weight has length 2; expected 4", prompt_weight=[1.0, 1.0])
    refused("prompt_weight must be non-negative", prompt_weight=[1.0, -1, 1, 1])
    refused("prompt_weight must be non-negative with a positive", prompt_weight=np.zeros(4))
    refused("completions has dtype <U1", completions=[["a", "b"]])
    refused(
        "expected smaller completions or reward",
        completions=np.full((10, 4), 1e200),
        reward=np.full(4, 1e200),
    )


def test_a_matrix_that_is_not_positive_definite_is_a_linalg_error():
    refused("M is not positive definite", error=LinAlgError, M=np.diag([1.0, 1, 1, -1]))
    refused("M is not positive definite", error=LinAlgError, M=np.zeros((4, 4)))
    refused("M is singular to working precision", error=LinAlgError, M=np.diag([1.0, 1, 1, 1e-17]))
    phi, offsets, reward, _ = make_problem(0)
    assert pessimistic_policy(phi, offsets, reward, np.diag([1e8, 1, 1, 1.0]), 1.0).converged
