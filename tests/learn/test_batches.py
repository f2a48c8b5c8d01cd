"""Batches in parts: gold questions, teachers owed a hearing, and the rule that fills the rest."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

import dal_native as dn
from dal_learn import batches, design
from dal_learn.campaign import Campaign, Design, Ledger, Study
from dal_learn.conversations import Conversations
from dal_learn.teachers import ReplayedTeachers, SimulatedTeachers, Votes


def make_conversations(prompts=30, d=4):
    """Three completions a prompt, every pair with a known answer."""
    phi = np.random.default_rng(0).standard_normal((3 * prompts, d))
    gold = [phi[p + b].sum() > phi[p + a].sum() for p in range(0, 3 * prompts, 3) for a, b in PAIRS]
    return Conversations.from_completions(phi, np.arange(prompts + 1) * 3, gold=np.array(gold, float))


PAIRS = ((0, 1), (0, 2), (1, 2))


def course(study):
    """What must repeat, to the bit."""
    curve = [(r.labels, r.gain, r.d_efficiency, r.accuracy, r.log_loss) for r in study.rounds]
    return study.picks(), curve, study.model.coef_.tobytes(), study.model.rationality_.tobytes()


METHODS = [name for name in design.METHODS if name != "oracle"]


def make_state(n=60, m=6, d=3, capacity=None, candidates=None, closed=None, asked=()):
    rng = np.random.default_rng(2)
    category = np.arange(n) % 2
    x = rng.standard_normal((n, d))
    asked = np.array(asked, np.int64).reshape(-1, 2)
    return design.DesignState(
        pool=dn.Pool(x, category=category),
        category=category,
        reward=rng.standard_normal(d),
        rationality=np.exp(rng.standard_normal((m, 2))),
        matrix=np.eye(d),
        admissible=design.Admissible(n, m, candidates, asked, capacity, closed),
        selector=None,
    )


def choose(name, seed=0):
    stream = design.random_stream(seed, name)
    return lambda state, size: design.METHODS[name](state, size, stream)


def make_study(method="dual", ledger=None, m=6, n=120, **changes):
    """Simulated teachers, the last one a random clicker; every conversation has a known answer."""
    rng = np.random.default_rng(3)
    x = rng.standard_normal((n, 4))
    theta = np.array([2.0, -1.0, 1.0, 0.5])
    beta = np.exp(0.3 * rng.standard_normal((m, 1)))
    beta[-1] = 1e-6
    c = Conversations.from_differences(x, gold=(x @ theta > 0).astype(float))
    settings = {"budget": 60, "batch": 10, "seed_labels": 10, **changes}
    teachers = SimulatedTeachers(c, theta, beta, seed=4)
    held = np.arange(n - 30, n)
    return Study(
        c, teachers, Design(method=method, **settings), train=np.arange(n - 30), held_out=held, ledger=ledger
    )


# ------------------------------------------------------------------------------------------------ exploration


@pytest.mark.parametrize("name", METHODS)
def test_teachers_asked_least_are_heard_first_and_the_method_chooses_about_what(name):
    state = make_state()
    asked = np.array([9, 0, 9, 2, 1, 9])
    batch = batches.choose_batch(
        state, 8, choose(name), asked=asked, explore=3, rng=design.random_stream(0, "parts")
    )
    explored = np.array(batch.purpose) == "explore"
    assert batch.purpose == ("explore",) * 4 + ("design",) * 4
    # 3 + 1 + 2 questions are owed; of the 4 places, two fill teacher 1 up to 2, one goes to 4, one to any.
    count = np.bincount(batch.picks.teacher[explored], minlength=6)
    assert (asked + count)[[1, 3, 4]].sum() == 3 + 4 and (asked + count)[[1, 3, 4]].min() == 2
    assert count[[0, 2, 5]].sum() == 0
    only = design.Admissible(60, 6, capacity=count)
    own = choose(name)(dataclasses.replace(state, admissible=only), 4)
    assert batch.picks.conversation[explored].tolist() == own.conversation.tolist()
    assert batch.picks.teacher[explored].tolist() == own.teacher.tolist()
    assert len(set(batch.picks.conversation.tolist())) == 8
    assert batch.picks.d_efficiency is None


def test_gains_of_a_joined_batch_are_differences_of_log_determinants():
    state = make_state()
    asked = np.array([9, 0, 9, 2, 1, 9])
    batch = batches.choose_batch(
        state, 7, choose("dual"), asked=asked, explore=2, rng=design.random_stream(0)
    )
    matrix = state.matrix.copy()
    for i, j, gain in zip(*batch.picks[:3], strict=True):
        x = state.pool.take([i])[0]
        beta = state.rationality[j, state.category[i]]
        before = np.linalg.slogdet(matrix)[1]
        matrix += beta**2 / (2 + 2 * np.cosh(beta * (x @ state.reward))) * np.outer(x, x)
        assert gain == pytest.approx(np.linalg.slogdet(matrix)[1] - before, abs=1e-10)


def test_without_anything_owed_the_batch_is_the_methods_own_to_the_bit():
    state, asked = make_state(), np.full(6, 3)
    batch = batches.choose_batch(
        state, 8, choose("dual"), asked=asked, explore=3, rng=design.random_stream(0)
    )
    own = choose("dual")(state, 8)
    assert batch.picks.conversation.tolist() == own.conversation.tolist()
    assert batch.picks.gain.tobytes() == own.gain.tobytes()
    assert batch.picks.d_efficiency == own.d_efficiency > 0


def test_exploration_respects_capacity_and_what_can_be_asked_at_all():
    capacity = np.array([1, 1, 0, 4, 4, 4])
    allowed = np.ones((60, 6), bool)
    allowed[:, 1] = False
    state = make_state(capacity=capacity, candidates=allowed)
    batch = batches.choose_batch(
        state,
        8,
        choose("dual"),
        asked=np.array([0, 0, 0, 9, 9, 9]),
        explore=5,
        rng=design.random_stream(0),
    )
    count = np.bincount(batch.picks.teacher, minlength=6)
    assert batch.purpose.count("explore") == 1 and count[0] == 1  # 1 cannot be asked, 2 has no room
    assert len(batch.purpose) == 8 and (count <= capacity).all()


@pytest.mark.parametrize("method", METHODS)
def test_a_study_hears_every_teacher_soon_with_any_method(method):
    study = make_study(method, m=20, budget=70, explore=2)
    study.run()
    count = np.bincount(study.issued.teacher, minlength=20)
    assert count.min() >= 2
    explored = np.array(study.purpose()) == "explore"
    for number in range(1, len(study.rounds)):
        assert explored[study.issued.round == number].sum() <= 5
    assert not explored[study.issued.round == 0].any()
    before = make_study(method, m=20, budget=70)
    before.run()
    seeds = study.issued.round == 0
    assert study.issued.conversation[seeds].tolist() == before.issued.conversation[seeds].tolist()


def test_the_oracle_neither_explores_nor_asks_gold_questions():
    x = np.random.default_rng(0).standard_normal((40, 2))
    truth = np.ones(2), np.array([[1.0], [2.0], [3.0]])
    c = Conversations.from_differences(x, gold=(x.sum(axis=1) > 0).astype(float))
    teachers = SimulatedTeachers(c, *truth, seed=0)
    plain = {"method": "oracle", "budget": 20, "batch": 5, "seed_labels": 5}
    parts = Study(c, teachers, Design(**plain, explore=9, gold_share=0.2), truth=truth)
    own = Study(c, SimulatedTeachers(c, *truth, seed=0), Design(**plain), truth=truth)
    parts.run(), own.run()
    assert course(parts) == course(own)


# --------------------------------------------------------------------------------------------- gold questions


def gold_rows(study):
    return np.array(study.purpose()) == "gold"


@pytest.mark.parametrize("method", METHODS)
def test_gold_questions_keep_their_share_and_are_nothing_else(method):
    study = make_study(method, gold_share=0.25)
    study.run()
    gold = gold_rows(study)
    so_far = np.cumsum(gold)
    ends = np.flatnonzero(np.diff(np.append(study.issued.round, -1)))
    assert np.abs(so_far[ends] - 0.25 * (ends + 1)).max() <= 0.5
    assert set(study.issued.conversation[gold].tolist()) <= set(study.gold.tolist())
    assert not set(study.issued.conversation[~gold].tolist()) & set(study.gold.tolist())
    assert set(study.gold.tolist()) <= set(study.train.tolist())
    pairs = list(zip(study.issued.conversation.tolist(), study.issued.teacher.tolist(), strict=True))
    assert len(pairs) == len(set(pairs)) == 60
    assert [row["purpose"] for row in study.picks()] == study.purpose()


def test_gold_questions_are_the_same_for_every_method_and_differ_by_seed():
    first = {m: make_study(m, gold_share=0.2) for m in ("dual", "uniform", "apo")}
    assert len({tuple(study.gold) for study in first.values()}) == 1
    for study in first.values():
        study.step()
    assert len({tuple(study.issued.conversation) for study in first.values()}) == 1
    assert tuple(make_study(gold_share=0.2, seed=1).gold) != tuple(first["dual"].gold)


def test_gold_questions_hide_among_the_others():
    places = []
    for seed in range(12):
        study = make_study(gold_share=0.2, seed=seed)
        study.step()
        study.step()
        places += np.flatnonzero(gold_rows(study)[10:]).tolist()
    assert len(set(places)) > 5 and min(places) < 4 and max(places) > 6


def test_the_fit_is_one_likelihood_with_the_known_answers_as_one_more_teacher():
    study = make_study(gold_share=0.3)
    study.run()
    i, j, y = study.labelled()
    known = np.unique(i[gold_rows(study)])
    assert study.known().tolist() == known.tolist() and len(known) > 2
    x = np.concatenate([study.conversations.differences(i), 4.0 * study.conversations.differences(known)])
    model = study.settings.model().fit(
        x,
        np.concatenate([y, study.conversations.gold[known]]),
        teacher=np.concatenate([j, np.full(len(known), 6)]),
        n_teachers=7,
    )
    assert model.coef_.tobytes() == study.model.coef_.tobytes()
    assert study.estimates[1].shape == (6, 1)
    matrix = study._state().matrix  # what the next batch is chosen with
    assert matrix == pytest.approx(model.information_, rel=1e-9)


@pytest.mark.parametrize("stop_after", [0, 1, 3])
def test_a_study_with_parts_goes_on_to_the_same_bits(tmp_path, stop_after):
    options = {"gold_share": 0.2, "explore": 4}
    whole = make_study(**options)
    whole.run()
    path = tmp_path / "ledger.sqlite"
    with Ledger(path) as ledger:
        part = make_study(ledger=ledger, **options)
        for _ in range(stop_after):
            part.step()
    with Ledger(path) as ledger:
        rest = make_study(ledger=ledger, **options)
        rest.run()
        assert course(rest) == course(whole)
        assert {"seed", "gold", "explore", "design"} >= set(rest.purpose()) >= {"gold", "design"}


def clickers_below(share, seeds=10):
    """Share of pairs of an honest teacher and a clicker that the dual rule's fit orders rightly."""
    right = []
    for seed in range(seeds):
        rng = np.random.default_rng(seed)
        x, theta = rng.standard_normal((300, 8)), rng.standard_normal(8)
        theta *= 2 / np.linalg.norm(theta)
        beta = np.append(np.exp(0.3 * rng.standard_normal(6)), np.full(6, 1e-6))[:, None]
        c = Conversations.from_differences(x, gold=(x @ theta > 0).astype(float))
        settings = Design(budget=200, batch=20, seed_labels=24, gold_share=share, seed=seed)
        study = Study(c, SimulatedTeachers(c, theta, beta, seed=seed), settings)
        study.run()
        fitted = study.estimates[1][:, 0]
        right.append(np.mean(fitted[:6, None] > fitted[6:]))
    return np.mean(right)


def test_with_gold_questions_random_clickers_are_found_sooner():
    """The dual rule stops asking whom it suspects, and so never learns whether it was right."""
    assert clickers_below(0.2) > clickers_below(0.0) + 0.04


def test_replayed_gold_questions_are_put_only_to_who_answered_them():
    c = make_conversations(prompts=20)
    rng = np.random.default_rng(0)
    i, j = np.nonzero(rng.random((c.n, 4)) < 0.5)
    votes = Votes(i, j, c.gold[i], teacher_names=list("pqrs"))
    study = Study(c, ReplayedTeachers(votes, c), Design(budget=40, batch=8, seed_labels=8, gold_share=0.25))
    study.run()
    recorded = set(zip(i.tolist(), j.tolist(), strict=True))
    assert (
        set(zip(study.issued.conversation.tolist(), study.issued.teacher.tolist(), strict=True)) <= recorded
    )
    assert gold_rows(study).sum() > 3


def test_gold_questions_run_out_without_harm():
    study = make_study(gold_share=0.5, n=60, m=2, budget=60)
    study.run()
    gold = gold_rows(study)
    assert gold.sum() == 2 * len(study.gold) and len(gold) == 60


def test_gold_conversations_are_few_known_and_whole_prompts():
    c = make_conversations(prompts=40)
    gold = batches.gold_conversations(c, np.arange(c.n), 0)
    assert len(np.unique(c.prompt[gold])) == 4 and len(gold) == 12
    few = dataclasses.replace(c, gold=np.where(np.arange(c.n) < 2, c.gold, np.nan))
    assert batches.gold_conversations(few, np.arange(c.n), 0).tolist() == [0, 1]
    tied = dataclasses.replace(c, gold=np.full(c.n, 0.5))
    with pytest.raises(ValueError, match="no conversation in training has a known answer"):
        batches.gold_conversations(tied, np.arange(c.n), 0)
    with pytest.raises(ValueError, match="every conversation is a gold question"):
        batches.gold_conversations(c, np.arange(3), 0)


@pytest.mark.parametrize(
    ("gold", "message"),
    [
        ([119], "which is not in training"),
        ([2000], "gold holds 2000|gold"),
        ([[1]], "gold has"),
        (["a"], "gold"),
    ],
)
def test_gold_questions_that_cannot_be_are_refused(gold, message):
    study = make_study()
    with pytest.raises(ValueError, match=message):
        Study(study.conversations, study.teachers, Design(gold_share=0.1), train=study.train, gold=gold)


def test_gold_questions_of_a_campaign_stay_secret(tmp_path):
    with Campaign.create(
        tmp_path / "c", make_conversations(), ["anna", "ben"], Design(seed_labels=20, gold_share=0.3)
    ) as campaign:
        rows = campaign.select()
        assert campaign.study.purpose().count("gold") == 6
        assert all("purpose" not in row and "gold" not in row for row in rows)
        assert "gold" not in json.dumps(rows)
        campaign.ingest([("f:1", {**row, "answer": "left"}) for row in rows])
    with Campaign.open(tmp_path / "c") as campaign:
        campaign.select(10)
        assert campaign.study.purpose().count("gold") == 9
        assert len(campaign.study.known()) > 0


def test_a_campaign_without_known_answers_has_no_gold_questions(tmp_path):
    c = Conversations.from_differences(np.eye(4))
    with pytest.raises(ValueError, match="no conversation in training has a known answer"):
        Campaign.create(tmp_path / "c", c, ["anna"], Design(gold_share=0.3, budget=99))
    assert not (tmp_path / "c" / "campaign.sqlite").exists()
