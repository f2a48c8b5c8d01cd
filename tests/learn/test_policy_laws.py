"""What holds for every pessimistic policy, whatever the numbers; and the policy of large and stored pools."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import dal_native as dn
from dal_learn import _policy_soft
from dal_learn._policy_soft import curvature, drawn_pairs, in_ball
from dal_learn.policy import (
    PolicyNotConverged,
    greedy_policy,
    lower_confidence_bound,
    mean_features,
    pessimistic_policy,
)

PROBLEMS = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 10**6),
        "d": st.integers(1, 5),
        "counts": st.lists(st.integers(1, 5), min_size=1, max_size=8),
        "radius": st.floats(0, 10),
        "tau": st.sampled_from([0.0, 0.3]),
    }
)


class Case:
    """A small problem and its solution."""

    def __init__(self, seed, d, counts, radius, tau):
        rng = self.rng = np.random.default_rng(seed)
        self.offsets = np.concatenate([[0], np.cumsum(counts)])
        self.phi = rng.standard_normal((self.offsets[-1], d))
        x = rng.standard_normal((2 * d, d))
        self.M = 0.5 * np.eye(d) + x.T @ x
        self.reward, self.nu = rng.standard_normal(d), rng.standard_normal(d)
        self.weight = rng.uniform(0.1, 1.0, len(counts))
        self.radius, self.tau = radius, tau

    def solve(self, **changes):
        arguments = {
            "completions": self.phi,
            "prompt_offsets": self.offsets,
            "reward": self.reward,
            "M": self.M,
            "radius": self.radius,
            "reference": self.nu,
            "prompt_weight": self.weight,
            "temperature": self.tau,
            "tol": 1e-8,
            **changes,
        }
        return pessimistic_policy(**arguments)

    def objective(self, p):
        return p.lower_bound - self.tau * p.divergence


@settings(max_examples=30)
@given(PROBLEMS, st.integers(0, 3), st.floats(0, 0.3))
def test_a_gap_is_valid_also_when_stopped_early(problem, max_iter, rtol):
    case = Case(**problem)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PolicyNotConverged)
        early = case.solve(max_iter=max_iter, rtol=rtol)
        late = case.solve()
    assert case.objective(late) - case.objective(early) <= early.duality_gap + 1e-7
    if early.converged and rtol > 0:
        assert early.duality_gap <= max(1e-8, rtol * early.scale)


@settings(max_examples=30)
@given(PROBLEMS)
def test_neither_the_order_of_prompts_nor_a_constant_vector_matters(problem):
    case = Case(**problem)
    first = case.solve()
    order = case.rng.permutation(len(case.weight))
    rows = np.concatenate([np.arange(case.offsets[p], case.offsets[p + 1]) for p in order])
    shift = case.rng.standard_normal(case.phi.shape[1])
    second = case.solve(
        completions=case.phi[rows] + shift,
        prompt_offsets=np.concatenate([[0], np.cumsum(np.diff(case.offsets)[order])]),
        prompt_weight=case.weight[order],
        reference=case.nu + shift,
    )
    assert case.objective(second) == pytest.approx(case.objective(first), abs=1e-7)


@settings(max_examples=30)
@given(PROBLEMS, st.sampled_from([0.125, 4.0, 1000.0]))
def test_units_of_features_do_not_matter(problem, unit):
    """phi -> a phi, theta -> theta / a, M -> a^2 M: the same rewards, the same policy and bound."""
    case = Case(**problem)
    first = case.solve()
    second = case.solve(
        completions=unit * case.phi, reward=case.reward / unit, M=unit**2 * case.M, reference=unit * case.nu
    )
    assert case.objective(second) == pytest.approx(case.objective(first), abs=1e-7)


@settings(max_examples=30)
@given(PROBLEMS, st.floats(0.01, 3))
def test_a_larger_radius_never_helps(problem, more):
    case = Case(**problem)
    assert case.objective(case.solve(radius=case.radius + more)) <= case.objective(case.solve()) + 1e-7


@settings(max_examples=30)
@given(PROBLEMS)
def test_forbidden_completions_are_as_if_they_were_absent(problem):
    case = Case(**problem)
    allowed = case.rng.random(len(case.phi)) < 0.6
    allowed[case.offsets[:-1]] = True
    base = np.concatenate([case.rng.dirichlet(np.ones(c)) for c in np.diff(case.offsets)])
    for reference in ("mean", "base", case.nu):
        p = case.solve(allowed=allowed, reference=reference, base_policy=base)
        kept = np.where(allowed, base, 0.0)
        kept /= np.repeat(np.add.reduceat(kept, case.offsets[:-1]), np.diff(case.offsets))
        counts = np.add.reduceat(allowed.astype(int), case.offsets[:-1])
        q = case.solve(
            completions=case.phi[allowed],
            prompt_offsets=np.concatenate([[0], np.cumsum(counts)]),
            reference=reference,
            base_policy=kept[allowed],
        )
        assert not p.probability[~allowed].any()
        np.testing.assert_allclose(p.reference, q.reference, atol=1e-12)
        assert case.objective(p) == pytest.approx(case.objective(q), abs=1e-7)


def test_greedy_choices_keep_to_what_is_allowed():
    phi, allowed = np.array([[3.0], [2.0], [1.0]]), [False, True, True]
    assert greedy_policy(phi, [0, 3], [1.0], allowed=allowed).choice.tolist() == [1]
    assert pessimistic_policy(phi, [0, 3], [1.0], [[1e6]], 1.0, allowed=allowed).choice.tolist() == [1]
    zero = pessimistic_policy(phi, [0, 3], [1.0], [[1.0]], 0.0, allowed=allowed)
    assert zero.probability.tolist() == [0.0, 1.0, 0.0]


def test_a_gap_that_only_rounding_keeps_open_ends_the_search():
    rng = np.random.default_rng(3)
    phi, offsets = rng.standard_normal((60, 12)), np.arange(0, 61, 6)
    nu = rng.dirichlet(np.ones(60)) @ phi
    with pytest.warns(PolicyNotConverged, match=r"above tol 0;"):
        p = pessimistic_policy(phi, offsets, 0.3 * np.ones(12), np.eye(12), 3.0, reference=nu, tol=0.0)
    assert 0 < p.duality_gap < 1e-11
    assert p.n_iter < 200


# -------------------------------------------------------------------------------------------- larger problems


def larger(n_prompts, k, d, decay, seed=0):
    """M with a power-law spectrum, and about the chi-square radius with the bias of the ridge."""
    rng = np.random.default_rng(seed)
    phi = rng.standard_normal((n_prompts * k, d), dtype=np.float32)
    q, _ = np.linalg.qr(rng.standard_normal((d, d)))
    M = (q * (1.0 + 20_000 * np.arange(1, d + 1) ** -decay)) @ q.T
    reward = rng.standard_normal(d)
    radius = np.sqrt(d + 2 * np.sqrt(d)) + 2.0
    return phi, np.arange(0, len(phi) + 1, k), 2 * reward / np.linalg.norm(reward), 0.5 * (M + M.T), radius


@pytest.mark.parametrize(("n_prompts", "k", "d"), [(6000, 2, 64), (1500, 8, 64), (300, 64, 64)])
@pytest.mark.parametrize("decay", [0.0, 1.5])
@pytest.mark.parametrize("tau", [0.0, 0.1])
def test_few_reads_to_a_relative_gap(n_prompts, k, d, decay, tau):
    phi, offsets, reward, M, radius = larger(n_prompts, k, d, decay)
    seen = []
    p = pessimistic_policy(
        phi, offsets, reward, M, radius, reference="mean", temperature=tau, tol=0.0, rtol=1e-3,
        progress=lambda reads, gap: seen.append((reads, gap)),
    )  # fmt: skip
    best = np.maximum.reduceat(phi @ reward, offsets[:-1]).mean()
    assert p.scale == pytest.approx(best - (phi @ reward).mean(), rel=1e-5)
    assert p.converged
    assert p.duality_gap <= 1e-3 * p.scale
    assert p.reads <= 20
    assert [reads for reads, _ in seen] == sorted(reads for reads, _ in seen)
    assert seen[-1] == (p.reads, pytest.approx(p.duality_gap, abs=1e-12))
    exact = pessimistic_policy(
        phi, offsets, reward, M, radius, reference="mean", temperature=tau, tol=1e-6 * p.scale
    )
    assert exact.converged
    short = exact.lower_bound - tau * exact.divergence - (p.lower_bound - tau * p.divergence)
    assert -1e-6 * p.scale <= short <= p.duality_gap + 1e-9


@pytest.mark.parametrize("radius_share", [0.5, 3.0])
def test_the_two_problems_agree_as_the_temperature_goes_to_zero(radius_share):
    """V* - tau log K <= max (V - tau KL) <= V*, also where the optimum lies on the reference (the kink)."""
    phi, offsets, reward, M, _ = larger(400, 4, 16, 1.0)
    radius = radius_share * np.sqrt(reward @ M @ reward)
    nu = mean_features(phi, offsets, np.full(1600, 0.25))
    hard = pessimistic_policy(phi, offsets, reward, M, radius, reference=nu, tol=1e-8)
    for tau in (1.0, 1e-2, 1e-4):
        soft = pessimistic_policy(phi, offsets, reward, M, radius, reference=nu, temperature=tau, tol=1e-8)
        short = hard.lower_bound - (soft.lower_bound - tau * soft.divergence)
        assert -2e-8 <= short <= tau * np.log(4) + 2e-8


# ------------------------------------------------------------------------------------------------- storage


@pytest.mark.parametrize("tau", [0.0, 0.2])
def test_a_file_streamed_or_mapped_gives_the_same_bits(tau, tmp_path):
    phi, offsets, reward, M, radius = larger(600, 8, 24, 1.5)
    np.save(tmp_path / "phi.npy", phi)
    arguments = {"reference": "mean", "temperature": tau, "tol": 0.0, "rtol": 1e-3}
    first = pessimistic_policy(phi, offsets, reward, M, radius, **arguments)
    pools = [
        dn.Pool.from_completions(phi, offsets),
        dn.Pool.open(tmp_path / "phi.npy", prompt_offsets=offsets),
        dn.Pool.open(tmp_path / "phi.npy", prompt_offsets=offsets, working_memory=1 << 16),
    ]
    for pool in pools:
        for threads in (1, 3):
            dn.set_threads(threads)
            try:
                p = pessimistic_policy(pool, None, reward, M, radius, **arguments)
            finally:
                dn.set_threads(None)
            np.testing.assert_array_equal(p.probability, first.probability)
            np.testing.assert_array_equal(p.least_favourable_reward, first.least_favourable_reward)
            assert (p.lower_bound, p.duality_gap, p.reads) == (
                first.lower_bound, first.duality_gap, first.reads,
            )  # fmt: skip
        g = greedy_policy(pool, None, reward, M=M, radius=radius)
        assert g.value == greedy_policy(phi, offsets, reward, M=M, radius=radius).value
        bound = lower_confidence_bound(pool, reward, M, radius, reference="mean")
        np.testing.assert_array_equal(bound, lower_confidence_bound(phi, reward, M, radius, reference="mean"))
        x = mean_features(pool, None, p.probability)
        np.testing.assert_array_equal(x, mean_features(phi, offsets, p.probability))


# ----------------------------------------------------------------------------------------------- curvature


def test_drawn_pairs_say_what_all_pairs_say(monkeypatch):
    """The sampled Hessian beside E_s Cov_pi(phi) / tau from its definition."""
    case = Case(5, 3, [2, 5, 3, 1, 4] * 200, 1.0, 0.5)
    problem = _policy_soft_problem(case)
    margin = case.phi @ case.reward
    pi = np.exp(2 * margin)
    pi /= np.repeat(np.add.reduceat(pi, case.offsets[:-1]), np.diff(case.offsets))
    w = case.weight / case.weight.sum()
    covariance = np.zeros((3, 3))
    for p, (a, b) in enumerate(zip(case.offsets[:-1], case.offsets[1:], strict=True)):
        centred = case.phi[a:b] - pi[a:b] @ case.phi[a:b]
        covariance += w[p] * (centred.T * pi[a:b]) @ centred
    inverse = np.linalg.inv(np.linalg.cholesky(case.M))
    expected = inverse @ covariance @ inverse.T / 0.5
    monkeypatch.setattr(_policy_soft, "_LEAST_PAIRS", 10**6)
    np.testing.assert_allclose(curvature(problem, pi, 0.5, 0), expected, rtol=1e-10, atol=1e-12)
    monkeypatch.setattr(_policy_soft, "_LEAST_PAIRS", 4000)
    sampled = np.mean([curvature(problem, pi, 0.5, seed) for seed in range(20)], axis=0)
    np.testing.assert_allclose(sampled, expected, atol=0.02 * np.abs(expected).max())
    a, b, total = drawn_pairs(problem, pi, 5000, 0)
    prompt = np.searchsorted(case.offsets, np.arange(len(pi)), side="right") - 1
    assert (prompt[a] == prompt[b]).all()
    assert (a != b).all()
    assert total == pytest.approx(np.sum(w[prompt] * pi * (1 - pi)))
    chance = w[prompt] * pi * (1 - pi) / total
    assert np.abs(np.bincount(a, minlength=len(pi)) - 5000 * chance).max() <= 2.0  # one draw in each part


def _policy_soft_problem(case):
    from dal_learn._policy_problem import made_problem

    return made_problem(case.phi, case.offsets, case.reward, case.M, case.weight)


@settings(max_examples=60)
@given(st.integers(0, 10**6), st.integers(1, 6), st.floats(1e-3, 1e3))
def test_the_step_in_the_ball_is_optimal(seed, d, gamma):
    """H v + linear = -mu v with mu >= 0, and mu > 0 only on the edge."""
    rng = np.random.default_rng(seed)
    root = rng.standard_normal((d, d + 2)) * 10.0 ** rng.uniform(-3, 3)
    hessian, linear = root @ root.T, rng.standard_normal(d)
    v = in_ball(hessian, linear, gamma)
    length = np.linalg.norm(v)
    assert length <= gamma * (1 + 1e-12)
    slope = hessian @ v + linear
    mu = -float(slope @ v) / length**2
    size = np.linalg.norm(hessian, 2) * length + np.linalg.norm(linear)
    np.testing.assert_allclose(slope + mu * v, 0.0, atol=1e-8 * size)
    assert mu * length >= -1e-8 * size
    if length < gamma * (1 - 1e-9):
        assert mu * length <= 1e-8 * size


# ------------------------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("words", "changes"),
    [
        ("allowed forbids every completion of prompt 1", {"allowed": [True, True, False, False]}),
        ("allowed has dtype int64 and 1 axes; expected one axis of bool", {"allowed": [1, 1, 1, 0]}),
        ("allowed has length 3; expected 4", {"allowed": [True, True, True]}),
        (
            "base_policy is 0 at every allowed completion of prompt 0",
            {"allowed": [True, False, True, True], "base_policy": [0.0, 1.0, 0.5, 0.5]},
        ),
        ("rtol is -1", {"rtol": -1.0}),
        ("rtol is not finite|rtol is nan", {"rtol": np.nan}),
        ("pool of differences", {"completions": dn.Pool(np.eye(4)), "prompt_offsets": None}),
        (
            "prompt_offsets must be None where completions is a pool",
            {"completions": dn.Pool.from_completions(np.eye(4), [0, 2, 4])},
        ),
        ("reward has length 3; expected 4", {"reward": np.ones(3)}),
        ("M is missing", {"M": None}),
        ("progress is a int; expected a function", {"progress": 5}),
        ("radius is 1e[+]308; expected at most 1e[+]100, or inf", {"radius": 1e308}),
        ("too large beside M", {"reference": np.full(4, 1e300), "M": 1e-20 * np.eye(4)}),
        ("reference is too large beside reward", {"reference": np.full(4, 1e308)}),
    ],
)
def test_refused(words, changes):
    arguments = {
        "completions": np.eye(4),
        "prompt_offsets": [0, 2, 4],
        "reward": np.ones(4),
        "M": np.eye(4),
        "radius": 1.0,
        **changes,
    }
    with pytest.raises(ValueError, match=words):
        pessimistic_policy(**arguments)


def test_at_an_infinite_radius_the_value_is_that_of_the_policy():
    phi, reward = 1e-8 * np.eye(2), np.array([1e8, 2e8])
    p = pessimistic_policy(phi, [0, 2], reward, np.eye(2), np.inf, tol=1e-2)
    assert p.lower_bound == 0.0  # |x| is below tol: as good as on the reference point
    assert p.value == pytest.approx(p.probability @ phi @ reward)


def test_a_low_temperature_is_reached_step_by_step():
    """Two prompts that the penalty keeps undecided, though the temperature is nothing beside it."""
    p = pessimistic_policy(
        np.eye(4), [0, 2, 4], np.arange(4.0), np.eye(4), 1e4, temperature=1e-4, tol=1e-2
    )  # with the warning that it did not converge as an error
    assert p.converged
    assert p.probability == pytest.approx(0.5, abs=1e-3)


@pytest.mark.parametrize("tau", [1e-300, 1e-200, 1e-20])
def test_a_temperature_next_to_nothing_still_ends(tau):
    with pytest.warns(PolicyNotConverged):
        p = pessimistic_policy(np.eye(4), [0, 2, 4], np.ones(4), np.eye(4), 1.0, temperature=tau, max_iter=9)
    assert p.lower_bound <= 0.5 <= p.lower_bound + p.duality_gap


def test_probabilities_that_do_not_sum_to_one_are_refused():
    with pytest.raises(ValueError, match=r"probability sums to 1\.5 in prompt 1; expected 1 in every prompt"):
        mean_features(np.eye(4), [0, 2, 4], [0.5, 0.5, 1.0, 0.5])
    with pytest.raises(ValueError, match="probability holds -1"):
        mean_features(np.eye(4), [0, 2, 4], [2.0, -1.0, 0.5, 0.5])


def test_a_nan_in_a_streamed_file_is_named(tmp_path):
    phi = np.ones((64, 8))
    phi[37, 3] = np.nan
    np.save(tmp_path / "phi.npy", phi)
    pool = dn.Pool.open(tmp_path / "phi.npy", prompt_offsets=[0, 32, 64], working_memory=1 << 12)
    with pytest.raises(ValueError, match="NaN or infinity, first in row 37"):
        pessimistic_policy(pool, None, np.ones(8), np.eye(8), 1.0)
