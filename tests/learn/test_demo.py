"""The demonstration: what it is made of, and that pessimism shows."""

from __future__ import annotations

import dataclasses

import numpy as np

from dal_learn import demo
from dal_learn.comparison import compare, models_of
from dal_learn.design import METHODS

TINY = demo.small(2, prompts=24, budget=60)


def test_the_problem_is_seeded_and_whole():
    one, two = demo.demo_problem(TINY), demo.demo_problem(TINY)
    assert one.digest() == two.digest() != demo.demo_problem(TINY, seed=1).digest()
    c, truth = one.conversations, one.simulation
    assert c.n == 24 * 6 and c.d == 32 and c.category_names == demo.CATEGORIES
    margin = c.differences() @ truth.reward
    assert ((margin > 0) == (c.gold == 1.0)).all()
    assert abs(np.std(margin) - demo.MARGIN) < 1e-9


def test_teachers_are_specialists_on_the_anchored_scale():
    truth = demo.demo_problem(TINY).simulation
    assert abs(np.log(truth.rationality).mean()) < 1e-12
    for k, subject in enumerate(demo.CATEGORIES):
        row = truth.rationality[truth.names.index(f"{subject} expert")]
        assert row.argmax() == k and row[k] > 4 * np.delete(row, k).max()
    assert truth.rationality[truth.names.index("careless 1")].max() < 1.0


def test_spectrum_decays_and_the_rare_features_hardly_vary():
    x = demo.demo_problem(demo.DemoSize(prompts=200)).conversations.differences()
    spread = x.std(axis=0)
    assert spread[:4].mean() > 3 * spread[20:28].mean() > 15 * spread[28:].mean()


def test_every_method_takes_part():
    assert set(demo.demo_comparison(TINY).methods) == set(METHODS)


def test_pessimism_promises_less_than_it_keeps_where_completions_stray(tmp_path):
    problem = demo.demo_problem(TINY)
    settings = dataclasses.replace(demo.demo_comparison(TINY), methods=("dual",))
    compare(problem, settings, tmp_path)
    models = models_of(problem, settings, tmp_path)
    shift = demo.policy_under_shift(problem, TINY, models)
    assert shift["completions"] == [2, 4, 8]
    assert all(len(shift[k]) == 2 and len(shift[k][0]) == 3 for k in ("greedy", "pessimistic", "best"))
    true, promised = np.array(shift["pessimistic"]), np.array(shift["pessimistic_promised"])
    assert (promised <= true).mean() > 0.8
    assert (true <= np.array(shift["best"]) + 1e-9).all()
    assert (np.diff(np.array(shift["best"])) > 0).all()
    again = demo.policy_under_shift(problem, TINY, models)
    assert again == shift
