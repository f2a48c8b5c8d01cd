"""Gaussian means of the softplus family against brute-force integration, and the terms built from them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dal_learn._links import Lapsing, Logistic, softplus_moments

MEANS = np.array([0, 0.1, 1, 3, 7, 12, 20, 36, 100, 700])
MEANS = np.concatenate([MEANS, -MEANS])


def family(t):
    """sp, s, s', t s', t^2 s' at t."""
    e = np.exp(-np.abs(t))
    slope = e / (1 + e) ** 2
    return np.maximum(t, 0) + np.log1p(e), np.where(t >= 0, 1, e) / (1 + e), slope, t * slope, t * t * slope


def grid(mean, sd):
    """Thousands of Gauss-Legendre nodes and weights: anything smooth times the normal law."""
    edges = np.concatenate([mean + sd * np.linspace(-12, 12, 241), np.linspace(-60, 60, 241)])
    edges = np.unique(np.clip(edges, mean - 12 * sd, mean + 12 * sd))
    node, weight = np.polynomial.legendre.leggauss(12)
    half = np.diff(edges)[:, None] / 2
    t = (edges[:-1, None] + half * (1 + node)).ravel()
    law = np.exp(-0.5 * ((t - mean) / sd) ** 2) / (sd * np.sqrt(2 * np.pi))
    return t, (half * weight).ravel() * law


@pytest.mark.parametrize("sd", [0.01, 0.34, 0.36, 1.0, 1.29, 1.31, 2.0, 5.0, 30.0, 1e3, 1e6])
def test_moments_against_integration(sd):
    found = softplus_moments(MEANS, np.full(len(MEANS), sd))
    for k, mean in enumerate(MEANS):
        t, weight = grid(mean, sd)
        expected = [weight @ f for f in family(t)]
        got = [found.softplus[k], found.logistic[k], found.slope[k], found.slope_1[k], found.slope_2[k]]
        for value, truth, size in zip(got, expected, [1 + abs(mean) + sd, 1, 1, 1, 1], strict=True):
            assert abs(value - truth) <= 1e-9 * size, (mean, sd)


@pytest.mark.parametrize("mean", [0.0, -0.0, 36.0, -36.0, 700.0, -700.0, 1e6, -1e6, 1e300, -1e300])
def test_moments_without_spread_are_the_functions(mean):
    m = softplus_moments(np.array([mean]), np.zeros(1))
    exact = family(np.array([min(max(mean, -1e4), 1e4)]))
    assert m.logistic[0] == pytest.approx(exact[1][0], rel=4e-15, abs=0)
    assert m.slope[0] == pytest.approx(exact[2][0], rel=4e-15, abs=0)
    assert m.softplus[0] == pytest.approx(mean if mean > 1e4 else exact[0][0], rel=4e-15, abs=0)
    assert m.slope_1[0] == pytest.approx(exact[3][0], rel=4e-15) and np.isfinite(m.slope_2[0])


@given(st.lists(st.tuples(st.floats(-1e6, 1e6), st.floats(0, 1e4)), min_size=1, max_size=20))
def test_moments_do_not_depend_on_their_neighbours(laws):
    mean, sd = map(np.array, zip(*laws, strict=True))
    together = softplus_moments(mean, sd)
    for k in range(len(mean)):
        alone = softplus_moments(mean[k : k + 1], sd[k : k + 1])
        for name in ("softplus", "logistic", "slope", "slope_1", "slope_2"):
            one, many = getattr(alone, name)[0], getattr(together, name)[k]
            assert one == pytest.approx(many, rel=1e-12, abs=1e-15)
    assert (together.slope >= 0).all() and (together.logistic <= 1 + 1e-12).all()


def likelihood(t, y, lapse):
    """log likelihood of one answer, from the definition."""
    p = lapse / 2 + (1 - lapse) / (1 + np.exp(-t))
    q = lapse / 2 + (1 - lapse) / (1 + np.exp(t))
    return y * np.log(p) + (1 - y) * np.log(q)


@pytest.mark.parametrize("lapse", [0.0, 0.02, 0.3])
@pytest.mark.parametrize("sd", [0.05, 0.8, 2.5, 8.0])
@pytest.mark.parametrize("y", [0.0, 1.0, 0.5, 0.2, 0.9])
def test_terms_against_integration_of_the_definition(lapse, sd, y):
    for mean in (-3.0, 0.0, 1.2, 6.0):
        link = Lapsing(lapse) if lapse else Logistic()
        found = link.terms(np.array([mean]), np.array([sd]), np.array([y]))
        t, weight = grid(mean, sd)
        if lapse == 0.0:  # log s(t) itself, where the chance would be rounded to 0
            values = -y * np.logaddexp(0, -t) - (1 - y) * np.logaddexp(0, t)
        else:
            values = likelihood(t, y, lapse)
        step = 1e-4
        terms = lambda z: (  # noqa: E731
            likelihood(z, y, lapse) if lapse else -y * np.logaddexp(0, -z) - (1 - y) * np.logaddexp(0, z)
        )
        first = (terms(t + step) - terms(t - step)) / (2 * step)
        second = (terms(t + step) - 2 * values + terms(t - step)) / step**2
        expected = [values, first, second, t * first, t * t * second, t * second]
        names = ["likelihood", "first", "second", "first_1", "second_2", "second_1"]
        tolerance = [1e-9, 1e-7, 1e-5, 1e-6, 3e-4, 1e-4]
        for name, value, allowed in zip(names, expected, tolerance, strict=True):
            size = 1 + sd**2 + mean**2
            assert getattr(found, name)[0] == pytest.approx(weight @ value, abs=allowed * size), (name, mean)


@pytest.mark.parametrize("t", [36.0, 700.0, 1e6])
def test_sure_answers_keep_their_last_digits(t):
    right = Logistic().terms(np.array([t, -t]), np.zeros(2), np.array([1.0, 0.0]))
    wrong = Logistic().terms(np.array([t, -t]), np.zeros(2), np.array([0.0, 1.0]))
    assert right.likelihood == pytest.approx([-np.log1p(np.exp(-t))] * 2, rel=4e-15, abs=0)
    assert wrong.likelihood.tolist() == [-t - np.log1p(np.exp(-t))] * 2
    assert right.first == pytest.approx([np.exp(-t), -np.exp(-t)], rel=1e-12)
    assert wrong.first.tolist() == [-1 / (1 + np.exp(-t)), 1 / (1 + np.exp(-t))]
