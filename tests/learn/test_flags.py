"""Flags: who earns one gets it, honest crowds rarely do, and nobody is judged by his own echo."""

from __future__ import annotations

import collections

import numpy as np
import pytest
from scipy import stats

import dal_learn as dl
from dal_learn import flags
from dal_learn.campaign import Campaign, Design, Study
from dal_learn.conversations import Conversations
from dal_learn.flags import FLAG_COLUMNS, flag_teachers
from dal_learn.reward import RewardModel
from dal_learn.teachers import SimulatedTeachers

ROUNDS = 8


def crowd(seed, odd=None, m=8, each=80, d=5, spread=0.3, categories=1):
    """Answers of m teachers; teacher 0 is odd. Returns x, label, and what goes by name."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((m * each, d))
    theta = rng.standard_normal(d)
    theta *= 1.8 / np.linalg.norm(theta)
    teacher, category = np.arange(len(x)) % m, rng.integers(categories, size=len(x))
    number, side = np.arange(len(x)) * ROUNDS // len(x), rng.choice([-1, 1], len(x))
    beta = np.exp(spread * rng.standard_normal((m, categories)))
    t = beta[teacher, category] * (x @ theta)
    mine = teacher == 0
    if odd == "clicks at random":
        t[mine] = 0.0
    if odd == "opposes":
        t[mine] = -1.2 * (x @ theta)[mine]
    if odd == "drifts":
        t[mine] = np.where(number < ROUNDS // 2, 2.5, 0.0)[mine] * (x @ theta)[mine]
    if odd == "prefers a side":
        t[mine] += 2.0 * side[mine]
    label = (rng.random(len(x)) < 1 / (1 + np.exp(-t))).astype(float)
    return x, label, {"teacher": teacher, "category": category, "round": number, "side": side}


def judged(x, label, told, **options):
    fitted = RewardModel().fit(x, label, teacher=told["teacher"], category=told["category"])
    return flag_teachers(fitted, x, label, **told, **options)


def test_the_rows_say_what_they_promise():
    x, label, told = crowd(0, "opposes", categories=2)
    label[::10] = 0.5
    rows = judged(x, label, told, names=["anna", *"bcdefgh"])
    assert [tuple(row) for row in rows] == [FLAG_COLUMNS] * 8
    anna, model = rows[0], RewardModel().fit(x, label, told["teacher"], told["category"])
    assert anna["teacher"] == "anna" and anna["answers"] == 80 and anna["flags"] == ("opposes",)
    share = np.bincount(told["category"][told["teacher"] == 0]) / 80
    assert anna["rationality"] == pytest.approx(share @ model.rationality_[0])
    assert anna["low"] == pytest.approx(share @ model.rationality_interval_[0, :, 0])
    assert anna["low"] < anna["rationality"] < anna["high"]
    assert anna["agreement"] < 0.35 < 0.6 < rows[1]["agreement"]
    assert all(0 <= row["first_side"] <= 1 for row in rows)
    assert all(0 <= row[f"p_{test}"] <= 1 for row in rows for test in flags.FLAG_NAMES)


@pytest.mark.parametrize("odd", ["opposes", "clicks at random", "drifts", "prefers a side"])
def test_planted_teachers_are_found_and_the_others_left_alone(odd):
    found, false = collections.Counter(), 0
    for seed in range(20):
        rows = judged(*crowd(seed, odd))
        found.update(rows[0]["flags"])
        false += any(row["flags"] for row in rows[1:])
    assert found[odd] >= 14
    assert sum(found.values()) - found[odd] <= 3
    assert false <= 6


def test_honest_crowds_are_rarely_flagged():
    """Each kind of flag falls on anybody in at most 5 % of crowds: 120 crowds, three standard errors."""
    false = collections.Counter()
    for seed in range(120):
        shape = {"each": 30, "d": 12} if seed % 2 else {"each": 60, "d": 4, "categories": 2}
        rows = judged(*crowd(1000 + seed, m=6, **shape))
        false.update({flag for row in rows for flag in row["flags"]})
    limit = 120 * 0.05 + 3 * np.sqrt(120 * 0.05 * 0.95)
    assert all(count <= limit for count in false.values()), false


def test_flags_hold_where_the_dual_rule_chose_the_questions():
    false, found = collections.Counter(), 0
    for seed in range(12):
        rng = np.random.default_rng(seed)
        x, theta = rng.standard_normal((300, 5)), rng.standard_normal(5)
        beta = np.append(np.exp(0.3 * rng.standard_normal(4)), 1.5)[:, None]
        schedule = np.ones((8, 5))
        schedule[4:, -1] = -1.0  # turns round half-way
        c = Conversations.from_differences(x)
        teachers = SimulatedTeachers(
            c, 1.8 * theta / np.linalg.norm(theta), beta, seed=seed, schedule=schedule
        )
        # Plug-in: the optimistic rule asks him less once he seems dull, and 7 of 12 are noticed so soon.
        asking = Design(
            budget=280, batch=35, seed_labels=35, capacity=(9,) * 5, seed=seed, criterion="plug_in"
        )
        study = Study(c, teachers, asking)
        study.run()
        rows = study.flags()
        found += "drifts" in rows[-1]["flags"]
        false.update(flag for row in rows[:-1] for flag in row["flags"])
    assert found >= 10 and sum(false.values()) <= 4, (found, false)


def test_nobody_is_judged_by_his_own_echo():
    """One teacher's answers are most of all: the fit believes him, the others know too little to say so."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((330, 40))
    teacher = np.append(np.zeros(300, int), np.arange(30) % 3 + 1)
    label = (x[:, 0] > 0).astype(float)
    model = RewardModel().fit(x, label, teacher=teacher)
    echo = np.mean((x[:300] @ model.coef_ > 0) == (label[:300] == 1))
    row = flag_teachers(model, x, label, teacher)[0]
    assert echo > 0.95 and row["agreement"] < 0.8 and row["flags"] == ()


def test_leaving_out_is_close_to_fitting_without():
    x, label, told = crowd(3, each=60, spread=0.0)
    teacher = told["teacher"]
    fixed = np.ones((8, 1))
    model = RewardModel(rationality=fixed).fit(x, label, teacher=teacher)
    rest = teacher != 0
    without = RewardModel(rationality=fixed).fit(x[rest], label[rest], teacher=teacher[rest])
    zeros = np.zeros(len(x), int)
    crowded = flags._Crowd(model, flags._Answers(x, label, teacher, zeros, None, None))
    heard = crowded.without(0)
    exact = x[teacher == 0] @ without.coef_
    moved = np.abs(x[teacher == 0] @ model.coef_ - exact).max()
    assert np.abs(heard.margin - exact).max() < 0.1 * moved
    precision = without.information_
    expected = np.einsum("ij,jk,ik->i", x[teacher == 0], np.linalg.inv(precision), x[teacher == 0])
    assert heard.variance == pytest.approx(expected, rel=0.1)


def test_fewer_answers_than_features_change_nothing_but_the_axes():
    x, label, told = crowd(4, m=4, each=25, d=5)
    wide = np.concatenate([x, np.zeros((100, 200))], axis=1)
    narrow, broad = judged(x, label, told), judged(wide, label, told)
    for a, b in zip(narrow, broad, strict=True):
        assert a["flags"] == b["flags"]
        assert a["p_random"] == pytest.approx(b["p_random"], rel=1e-4)


def test_side_and_sign_tests_are_exact_binomial_tests():
    x, label, told = crowd(5, "prefers a side", m=1, each=60)
    told["side"][:7] = 0
    (row,) = judged(x, label, told)
    shown = told["side"] != 0
    first = int((((label - 0.5) * told["side"]) > 0)[shown].sum())
    assert row["p_side"] == pytest.approx(stats.binomtest(first, int(shown.sum())).pvalue, rel=1e-9)
    assert row["first_side"] == first / shown.sum()


@pytest.mark.parametrize("options", [{"lapse": "fit"}, {"ties": True}, {"signed": True}, {"drift": 0.2}])
def test_other_models_of_teachers_are_judged_too(options):
    x, label, told = crowd(8, "opposes", categories=2)
    label[::9] = 0.5
    model = RewardModel(**options).fit(
        x, label, told["teacher"], told["category"], round=told["round"], side=told["side"]
    )
    rows = flag_teachers(model, x, label, **told)
    assert rows[0]["flags"] == ("opposes",)
    assert all(row["flags"] == () for row in rows[1:])


def test_fast_leaving_out_is_that_of_newtons_method_to_the_end(monkeypatch):
    x, label, told = crowd(9, m=3, each=150, d=6, spread=1.0)
    model = RewardModel().fit(x, label, told["teacher"])
    zeros = np.zeros(len(x), int)
    answers = flags._Answers(x, label, told["teacher"], zeros, None, None)
    quick = flags._Crowd(model, answers).without(0)
    monkeypatch.setattr(flags, "_CLOSE", 1e-9)
    monkeypatch.setattr(flags, "_SLOW", 0.0)  # the curvature taken anew at every step
    exact = flags._Crowd(model, answers).without(0)
    assert (np.abs(quick.margin - exact.margin) <= 0.05 * np.sqrt(exact.variance)).all()


def test_holm_is_applied_to_those_tested():
    rows = [{"p": p} for p in (0.01, None, 0.04, 0.03, 0.9)]
    flags._correct(rows, "p")
    assert [row["p"] for row in rows] == [0.04, None, pytest.approx(0.09), 0.09, 0.9]


def test_few_answers_are_said_and_not_tested():
    x, label, told = crowd(6, "opposes")
    kept = (told["teacher"] != 0) | (np.cumsum(told["teacher"] == 0) <= 19)
    few = {name: values[kept] for name, values in told.items()}
    row = judged(x[kept], label[kept], few)[0]
    assert row["answers"] == 19 and row["flags"] == ("few answers",) and row["p_opposes"] is None
    assert judged(x[kept], label[kept], few, least=19)[0]["p_opposes"] is not None
    ties = label.copy()
    ties[told["teacher"] == 0] = 0.5
    row = judged(x, ties, told)[0]
    assert row["answers"] == 80 and row["agreement"] is None and row["flags"] == ("few answers",)


def test_teachers_without_answers_and_hopeless_data():
    x, label, told = crowd(7, m=3, each=30)
    model = RewardModel().fit(x, label, told["teacher"], n_teachers=5)
    rows = flag_teachers(model, x, label, told["teacher"])
    assert [row["answers"] for row in rows] == [30, 30, 30, 0, 0]
    assert rows[4]["flags"] == ("few answers",) and rows[4]["agreement"] is None
    nothing = flag_teachers(RewardModel().fit(np.zeros((0, 2)), [], n_teachers=1), np.zeros((0, 2)), [], [])
    assert nothing[0]["answers"] == 0
    zeros = np.zeros((60, 2))
    flat = RewardModel().fit(zeros, label[:60], told["teacher"][:60])
    rows = flag_teachers(flat, zeros, label[:60], told["teacher"][:60], round=told["round"][:60])
    assert [row["flags"] for row in rows] == [()] * 3
    same = RewardModel().fit(x, np.ones(90), told["teacher"])
    rows = flag_teachers(same, x, np.ones(90), told["teacher"], round=told["round"])
    assert all(np.isfinite(row["p_drifts"]) for row in rows)
    far = RewardModel().fit(1e6 * x, (x[:, 0] > 0).astype(float), told["teacher"])
    rows = flag_teachers(far, 1e6 * x, (x[:, 0] > 0).astype(float), told["teacher"], round=told["round"])
    assert [row["flags"] for row in rows] == [()] * 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": RewardModel()}, "not fitted"),
        ({"model": "model"}, "model is str; expected a fitted RewardModel"),
        ({"label": [1.0] * 4}, "label has length 4"),
        ({"label": [2.0] * 5}, "label holds a number outside"),
        ({"label": [np.nan] * 5}, "label"),
        ({"teacher": [0, 0, 0, 0, 9]}, "teacher"),
        ({"teacher": [0.5] * 5}, "teacher"),
        ({"category": [1] * 5}, "category"),
        ({"round": [1] * 6}, "round has length 6"),
        ({"side": [2] * 5}, "side holds a number other than -1, 0 and 1"),
        ({"differences": np.zeros((5, 3))}, "3 features"),
        ({"names": ["a", "b", "c"]}, "names has length 3; expected at most 2"),
        ({"level": 0.0}, "level is 0.0; expected a probability"),
        ({"least": 1}, "least is 1"),
    ],
)
def test_what_does_not_fit_is_refused(change, message):
    x, y, j = np.eye(5, 2), np.ones(5), [0, 1, 0, 1, 0]
    given = {"model": RewardModel().fit(x, y, j), "differences": x, "label": y, "teacher": j, **change}
    with pytest.raises(ValueError, match=message):
        flag_teachers(**given)


def test_sides_count_only_where_teachers_saw_them(tmp_path):
    c = Conversations.from_differences(np.random.default_rng(0).standard_normal((60, 2)))
    with Campaign.create(tmp_path / "c", c, ["anna", "ben"], Design(budget=100, seed_labels=60)) as campaign:
        rows = campaign.select()
        campaign.ingest([(f"f:{k}", {**row, "answer": "left"}) for k, row in enumerate(rows)])
        found = campaign.study.flags()
        assert [row["first_side"] for row in found] == [1.0, 1.0]
        assert all("prefers a side" in row["flags"] for row in found)
    teachers = SimulatedTeachers(c, np.ones(2), np.ones((2, 1)), seed=0)
    study = Study(c, teachers, Design(budget=60, seed_labels=60))
    study.run()
    assert all(row["first_side"] is None for row in study.flags())
    with pytest.raises(ValueError, match="the study has no answer yet"):
        Study(c, teachers, Design()).flags()


def test_it_is_public():
    assert dl.flag_teachers is flag_teachers
