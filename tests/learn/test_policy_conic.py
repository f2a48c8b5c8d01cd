"""The pessimistic policy beside a conic solver, which knows neither rewards of worst case nor smoothing."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.linalg import solve_triangular

from dal_learn.policy import pessimistic_policy

cp = pytest.importorskip("cvxpy", reason="cvxpy is not installed: it comes with the extra test")


def conic_optimum(phi, offsets, reward, M, radius, nu, weight, tau=0.0, base=None, allowed=None):
    """max over pi of V(pi) - tau E KL(pi | base): a second-order cone, and exponential cones for the KL."""
    counts = np.diff(offsets)
    share = np.repeat(weight / np.sum(weight), counts)
    one = np.repeat(np.eye(len(counts)), counts, axis=1)
    pi = cp.Variable(len(phi), nonneg=True)
    away = phi.T @ cp.multiply(share, pi) - nu
    white = solve_triangular(np.linalg.cholesky(M), np.eye(len(M)), lower=True)
    objective = reward @ away - radius * cp.norm(white @ away)
    constraints = [one @ pi == 1]
    if tau > 0:
        inside = base > 0
        objective -= tau * cp.sum(cp.multiply(share[inside], cp.rel_entr(pi[inside], base[inside])))
        constraints.append(pi[~inside] == 0)
    if allowed is not None:
        constraints.append(pi[~allowed] == 0)
    problem = cp.Problem(cp.Maximize(objective), constraints)
    problem.solve(solver=cp.CLARABEL, tol_gap_abs=1e-8, tol_gap_rel=1e-8, tol_feas=1e-8)
    assert problem.status == "optimal"
    return problem.value, np.maximum(pi.value, 0.0)


def problem_of(seed, d, counts):
    rng = np.random.default_rng(seed)
    offsets = np.concatenate([[0], np.cumsum(counts)])
    phi = rng.standard_normal((offsets[-1], d))
    x = rng.standard_normal((3 * d, d)) * np.arange(1, d + 1) ** -0.7
    M = 0.3 * np.eye(d) + x.T @ x
    weight = rng.uniform(0.2, 1.0, len(counts))
    return rng, phi, offsets, 1.5 * rng.standard_normal(d), M, weight


COUNTS = {"ragged": (1, 3, 5, 2, 7, 1, 4), "pairs": (2,) * 40, "many": (30, 25)}


@pytest.mark.parametrize("counts", COUNTS.values(), ids=COUNTS)
@pytest.mark.parametrize("radius", [0.2, 2.0, 30.0])
@pytest.mark.parametrize("reference", [None, "mean", "vector"])
def test_without_a_temperature(counts, radius, reference):
    rng, phi, offsets, reward, M, weight = problem_of(1, 5, counts)
    nu = rng.standard_normal(5) if reference == "vector" else reference
    p = pessimistic_policy(phi, offsets, reward, M, radius, reference=nu, prompt_weight=weight, tol=1e-8)
    expected, _ = conic_optimum(phi, offsets, reward, M, radius, p.reference, weight)
    assert p.duality_gap <= 1e-8
    assert p.lower_bound == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("counts", COUNTS.values(), ids=COUNTS)
@pytest.mark.parametrize("radius", [0.0, 1.0, 10.0])
@pytest.mark.parametrize("tau", [0.05, 1.0])
def test_with_a_temperature(counts, radius, tau):
    rng, phi, offsets, reward, M, weight = problem_of(2, 4, counts)
    base = np.concatenate([rng.dirichlet(np.ones(c)) for c in counts])
    p = pessimistic_policy(
        phi, offsets, reward, M, radius, reference="base", base_policy=base, prompt_weight=weight,
        temperature=tau, tol=1e-9,
    )  # fmt: skip
    expected, pi = conic_optimum(phi, offsets, reward, M, radius, p.reference, weight, tau, base)
    assert p.duality_gap <= 1e-9
    assert p.lower_bound - tau * p.divergence == pytest.approx(expected, abs=1e-6)
    np.testing.assert_allclose(p.probability, pi, atol=1e-3)


@pytest.mark.parametrize("tau", [0.0, 0.3])
def test_with_forbidden_completions(tau):
    rng, phi, offsets, reward, M, weight = problem_of(3, 4, (3, 6, 2, 5))
    allowed = rng.random(16) < 0.6
    allowed[offsets[:-1]] = True
    base = np.concatenate([rng.dirichlet(np.ones(c)) for c in (3, 6, 2, 5)])
    p = pessimistic_policy(
        phi, offsets, reward, M, 1.5, reference=rng.standard_normal(4), base_policy=base,
        prompt_weight=weight, allowed=allowed, temperature=tau, tol=1e-9,
    )  # fmt: skip
    kept = np.where(allowed, base, 0.0)
    kept /= np.repeat(np.add.reduceat(kept, offsets[:-1]), np.diff(offsets))
    expected, _ = conic_optimum(phi, offsets, reward, M, 1.5, p.reference, weight, tau, kept, allowed)
    assert not p.probability[~allowed].any()
    assert p.lower_bound - tau * p.divergence == pytest.approx(expected, abs=1e-6)
