"""Means of the softplus family under normal laws, against brute-force integration and exact values."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import dal_native as dn

MEANS = np.array([0, 0.1, 1, 3, 7, 12, 20, 36, 100, 700])
MEANS = np.concatenate([MEANS, -MEANS])
SPREADS = (0.01, 0.34, 0.35, 0.36, 1.0, 1.29, 1.3, 1.31, 2.0, 5.0, 30.0, 1e3, 1e6)


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


@pytest.mark.parametrize("sd", SPREADS)
def test_against_integration(backend, sd):
    found = dn.softplus_moments(MEANS, np.full(len(MEANS), sd), backend=backend)
    for k, mean in enumerate(MEANS):
        t, weight = grid(mean, sd)
        expected = np.array([weight @ f for f in family(t)])
        size = np.array([1 + abs(mean) + sd, 1, 1, 1, 1])
        assert (np.abs(found[:, k] - expected) <= 1e-9 * size).all(), mean


def test_backends_agree(backend):
    """The rules are the same, so that only rounding is left: spreads of all kinds side by side."""
    rng = np.random.default_rng(1)
    mean, sd = rng.normal(0, 4, 3001), rng.choice([0.0, *SPREADS], 3001)
    expected = dn.softplus_moments(mean, sd, backend="reference")
    size = np.stack([1 + np.abs(mean) + sd, *np.ones((4, 3001))])
    assert (np.abs(dn.softplus_moments(mean, sd, backend=backend) - expected) <= 4e-15 * size).all()


def test_without_spread_they_are_the_functions(backend):
    rng = np.random.default_rng(0)
    t = np.concatenate(
        [[0.0, -0.0, 1e-9, 36.0, 700.0, 707.0], rng.uniform(0, 40, 300), rng.uniform(0, 1, 300)]
    )
    t = np.concatenate([t, -t])
    got = dn.softplus_moments(t, np.zeros(len(t)), backend=backend)
    expected = np.stack(family(t.astype(np.longdouble)))
    assert (np.abs(got - expected) <= 6 * np.spacing(np.abs(got))).all()


@pytest.mark.parametrize("mean", [745.0, 760.0, 1e6, 1e300])
def test_far_out(backend, mean):
    got = dn.softplus_moments([mean, -mean, mean, -mean], [0.0, 0.0, 1.0, 1.0], backend=backend)
    assert got[0].tolist() == [mean, got[0, 1], pytest.approx(mean), got[0, 3]]
    assert got[1, ::2] == pytest.approx([1, 1], rel=1e-15)
    assert (np.abs(got[:2, 1::2]) <= 1e-300).all() and (np.abs(got[2:]) <= 1e-300).all()


def test_symmetry(backend):
    """s'(t) is even, s(t) + s(-t) = 1 and sp(t) - sp(-t) = t."""
    rng = np.random.default_rng(2)
    mean, sd = rng.normal(0, 5, 500), np.exp(rng.normal(0, 2, 500))
    there, back = (dn.softplus_moments(sign * mean, sd, backend=backend) for sign in (1, -1))
    size = 1 + np.abs(mean) + sd
    assert (np.abs(there[0] - back[0] - mean) <= 1e-14 * size).all()
    assert (np.abs(there[1] + back[1] - 1) <= 1e-14).all()
    assert (np.abs(there[2:] - [[1], [-1], [1]] * back[2:]) <= 1e-14).all()


@given(st.lists(st.tuples(st.floats(-1e6, 1e6), st.floats(0, 1e4)), min_size=1, max_size=40))
def test_a_law_does_not_depend_on_its_neighbours(laws):
    mean, sd = map(np.array, zip(*laws, strict=True))
    together = dn.softplus_moments(mean, sd, backend="cpu")
    alone = [
        dn.softplus_moments(mean[k : k + 1], sd[k : k + 1], backend="cpu")[:, 0] for k in range(len(mean))
    ]
    assert together.T.tobytes() == np.stack(alone).tobytes()
    assert (together[2] >= 0).all() and (together[1] <= 1 + 1e-12).all()


@pytest.mark.parametrize("n", [0, 1, 7, 1023, 1025, 5000])
def test_same_bits_for_any_number_of_threads(backend, n):
    rng = np.random.default_rng(n)
    mean, sd = rng.normal(0, 3, n), rng.choice([0.0, 0.1, 1.0, 4.0], n)
    one, *more = (dn.softplus_moments(mean, sd, backend=backend, threads=k).tobytes() for k in (1, 2, 7))
    assert more == [one, one]


@pytest.mark.parametrize(
    ("mean", "sd", "words"),
    [
        ([0.0], [-1.0], "sd is negative at 0; expected at least 0"),
        ([0.0], [1.0, 2.0], "sd has length 2; expected 1, one for each mean"),
        ([np.nan], [1.0], r"mean is not finite at 0 \(nan\)"),
        ([0.0, 0.0], [1.0, np.inf], r"sd is not finite at 1 \(inf\)"),
        ([[0.0]], [1.0], "mean has 2 dimensions"),
    ],
)
def test_refused(mean, sd, words):
    with pytest.raises(ValueError, match=words):
        dn.softplus_moments(mean, sd)
