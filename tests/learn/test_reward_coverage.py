"""Intervals hold the truth about as often as they say: few runs, and bounds that chance keeps."""

from __future__ import annotations

import importlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scipy.stats

from dal_learn.reward import RewardModel

RUNS, LEVEL = 150, 0.95
#: Fewer or more held than this in RUNS independent runs happens once in 100,000 times, were LEVEL exact.
BOUNDS = scipy.stats.binom.ppf([1e-5, 1 - 1e-5], RUNS, LEVEL)


def test_intervals_hold_the_truth_as_often_as_they_say():
    """One coordinate, one margin and one rationality a run, truths drawn from the prior."""
    held = {"theta": 0, "margin": 0, "rationality": 0}
    for seed in range(RUNS):
        rng = np.random.default_rng([7, seed])
        x, theta, log_beta = rng.normal(size=(500, 4)), rng.normal(size=4), 0.5 * rng.normal(size=6)
        beta, j = np.exp(log_beta - log_beta.mean()), rng.integers(0, 6, 500)
        y = rng.random(500) < 1 / (1 + np.exp(-beta[j] * (x @ theta)))
        model = RewardModel().fit(x, y, j)
        held["theta"] += abs(model.coef_[0] - theta[0]) < 1.96 * model.coef_se_[0]
        z = rng.normal(size=(1, 4))
        low, high = model.reward_interval(z)[0]
        held["margin"] += low < z[0] @ theta < high
        low, high = model.rationality_interval_[0, 0]
        held["rationality"] += low < beta[0] < high
    for name, count in held.items():
        assert BOUNDS[0] <= count <= BOUNDS[1], (name, count)


def test_a_profile_holds_zero_where_a_teacher_is_a_coin():
    held = 0
    for seed in range(40):
        rng = np.random.default_rng([8, seed])
        x, theta, j = rng.normal(size=(400, 3)), 1.5 * rng.normal(size=3), rng.integers(0, 4, 400)
        beta = np.array([0.0, 1.0, 1.0, 1.0])
        y = rng.random(400) < 1 / (1 + np.exp(-beta[j] * (x @ theta)))
        model = RewardModel().fit(x, y, j)
        low, high = model.rationality_profile(0)
        held += low < 0 < high
        assert model.rationality_interval_[0, 0, 0] > 0  # on the logarithmic scale nothing holds 0
        if seed == 0:
            narrow = model.rationality_profile(0, level=0.5)
            assert low < narrow[0] < narrow[1] < high
    assert held >= scipy.stats.binom.ppf(1e-5, 40, LEVEL)


def test_a_profile_is_where_the_objective_has_fallen_by_the_quantile():
    """By hand: the cell's rationality held at each end, the others' scale where the fit has it."""
    rng = np.random.default_rng(3)
    x, theta, j = rng.normal(size=(300, 3)), rng.normal(size=3), rng.integers(0, 3, 300)
    y = rng.random(300) < 1 / (1 + np.exp(-np.array([0.4, 1.0, 1.5])[j] * (x @ theta)))
    model = RewardModel(method="joint_map", category_correlation=0.0, tol=1e-9).fit(x, y, j)
    others = np.log(model.rationality_[1:, 0]).mean()

    def objective(value):
        """The rest fitted again over a fine grid of how the others differ."""
        best = -np.inf
        for half in np.linspace(-2, 2, 161):
            beta = np.exp([others - half, others + half])
            known = RewardModel(rationality=[value, *beta], tol=1e-9).fit(x, y, j)
            log_beta = np.log(beta)
            best = max(best, known.objective_ - 2 * log_beta @ log_beta)
        return best

    low, high = model.rationality_profile(0)
    top = max(objective(b) for b in np.linspace(low, high, 15))
    for end in (low, high):
        assert top - objective(end) == pytest.approx(0.5 * 1.96**2, abs=0.05)


@pytest.fixture
def coverage(monkeypatch):
    root = Path(__file__).resolve().parents[2]
    if not (root / "benchmarks" / "coverage.py").is_file():
        pytest.skip("no benchmarks beside these tests")
    monkeypatch.syspath_prepend(root)
    return importlib.import_module("benchmarks.coverage")


def test_the_benchmark_measures_every_setting(coverage, monkeypatch, tmp_path, capsys):
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- begin coverage -->\n<!-- end coverage -->\nafter\n")
    small = tuple(replace(s, labels=80, name=f"setting {k}") for k, s in enumerate(coverage.SETTINGS))
    monkeypatch.setattr(coverage, "SETTINGS", small)
    monkeypatch.setattr(coverage, "PSEUDO", 500)
    monkeypatch.setattr("sys.argv", ["coverage", "--runs", "2", "--page", str(page)])
    coverage.main()
    text = page.read_text()
    assert all(f"| setting {k} |" in text for k in range(len(small))) and "Per cent over 2 runs" in text
    assert text.startswith("before") and text.endswith("after\n") and "setting 0" in capsys.readouterr().out
    for setting in small:
        (held,) = coverage.measured(setting, 1)
        assert held and all(0 <= share <= 1 for share in held.values())
