"""What the marginal fit is for: a design that trusts estimated rationalities must not fool itself.

A comparison of designs at a small scale: the dual rule (conversation and teacher by information gain) with
plug-in estimates, under the joint maximum and under the marginal fit, beside uniform choice. Seen over these
seeds: 0.924, 0.958 and 0.890 held-out accuracy; only rounding can move them, and half the gap is asked for.
"""

from __future__ import annotations

import numpy as np

import dal_native as dn
from dal_learn.reward import RewardModel
from dal_learn.teachers import SimulatedTeachers

TRAIN, TEST, DIMENSION, TEACHERS = 1500, 1000, 24, 12


def problem(seed):
    """Differences with a decaying spectrum, teachers whose rationality is log-normal with spread 0.8."""
    rng = np.random.default_rng(1000 + seed)
    spectrum = np.arange(1, DIMENSION + 1) ** -0.5
    x = rng.normal(size=(TRAIN + TEST, DIMENSION)) * spectrum
    x *= 4 / np.sqrt((x**2).sum(axis=1).mean())
    theta = rng.normal(size=DIMENSION)
    theta *= 2 / np.std(x @ theta)
    return x, theta, np.exp(0.8 * rng.normal(size=TEACHERS))


def accuracy(seed, method, rule, budget=300, batch=20):
    """Held-out accuracy after `budget` answers, chosen in batches by `rule`, refitted every time."""
    x, theta, beta = problem(seed)
    rng = np.random.default_rng(seed)
    teachers = SimulatedTeachers(x, theta, beta, seed=seed)
    pool = dn.Pool(x[:TRAIN])
    i, j = rng.choice(TRAIN, batch, replace=False), np.arange(batch) % TEACHERS
    y = teachers.ask(i, j, 0)
    model = RewardModel(method=method)
    while True:
        model.fit(x[i], y, j, n_teachers=TEACHERS)
        if len(i) >= budget:
            break
        if rule == "dual":
            asked = np.stack([i, j], axis=1)
            picks = dn.select_batch(
                pool, model.coef_, model.rationality_, model.information_, batch, exclude=asked
            )
            new_i, new_j = picks.conversation, picks.teacher
        else:
            new_i = rng.choice(np.setdiff1d(np.arange(TRAIN), i), batch, replace=False)
            new_j = rng.integers(0, TEACHERS, batch)
        y = np.append(y, teachers.ask(new_i, new_j, len(i)))
        i, j = np.append(i, new_i), np.append(j, new_j)
    truth, found = x[TRAIN:] @ theta, x[TRAIN:] @ model.coef_
    return np.mean((truth > 0) == (found > 0))


def test_marginal_fit_keeps_the_dual_rule_from_confirming_itself():
    seeds = range(8)
    mean = {
        (method, rule): np.mean([accuracy(seed, method, rule) for seed in seeds])
        for method, rule in [("joint_map", "dual"), ("marginal", "dual"), ("marginal", "uniform")]
    }
    assert mean["marginal", "dual"] > mean["joint_map", "dual"] + 0.017
    assert mean["marginal", "dual"] > mean["marginal", "uniform"] + 0.034
