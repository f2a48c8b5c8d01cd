"""Studies, the ledger and campaigns in a folder: nothing lost, nothing doubled, the same after any stop."""

from __future__ import annotations

import itertools
import json
import sqlite3
import subprocess
import sys

import numpy as np
import pytest

from dal_learn._ledger import FORMAT_VERSION, Ledger, LedgerError, campaign_lock
from dal_learn.campaign import (
    AnswersRefused,
    Campaign,
    Design,
    Study,
    load_conversations,
    save_conversations,
    split_by_prompt,
)
from dal_learn.conversations import Conversations, Texts
from dal_learn.teachers import ReplayedTeachers, SimulatedTeachers, Votes


def make_conversations(prompts=30, completions=3, d=4, seed=0, texts=False):
    rng = np.random.default_rng(seed)
    phi = rng.standard_normal((prompts * completions, d))
    words = None
    if texts:
        words = Texts(
            [f"prompt {p}" for p in range(prompts)],
            [f"text {k}" for k in range(prompts * completions)],
            [f"c{k}" for k in range(prompts * completions)],
        )
    plain = Conversations.from_completions(phi, np.arange(prompts + 1) * completions)
    gold = (plain.differences() @ np.ones(d) > 0).astype(float)
    return Conversations.from_completions(
        phi,
        np.arange(prompts + 1) * completions,
        prompt_category=np.arange(prompts) % 2,
        category_names=["x", "y"],
        gold=gold,
        texts=words,
        ids=[f"pair-{i}" for i in range(plain.n)],
    )


def make_study(method="dual", ledger=None, budget=50, **changes):
    c = make_conversations()
    rationality = np.array([[0.3, 2.0], [2.0, 0.3], [1.0, 1.0]])
    teachers = SimulatedTeachers(c, np.ones(4), rationality, seed=7)
    train, held_out = split_by_prompt(c.prompt, 0.3, 0)
    settings = Design(**({"method": method, "budget": budget, "batch": 8, "seed_labels": 12} | changes))
    return Study(
        c, teachers, settings, train=train, held_out=held_out, truth=(np.ones(4), rationality), ledger=ledger
    )


def facts(study):
    """Everything of a study that must repeat, to the bit."""
    rounds = [{k: v for k, v in vars(r).items() if not k.startswith("seconds")} for r in study.rounds]
    return rounds, study.picks(), study.model.coef_.tobytes(), study.model.rationality_.tobytes()


# ---------------------------------------------------------------------------------------------------- studies


def test_a_study_spends_its_budget_and_asks_no_pair_twice_nor_a_held_out_one():
    study = make_study()
    rounds = study.run()
    assert [r.labels for r in rounds] == [12, 20, 28, 36, 44, 50]
    assert [r.round for r in rounds] == list(range(6))
    pairs = [(row["conversation"], row["teacher"]) for row in study.picks()]
    assert len(pairs) == len(set(pairs)) == 50
    assert set(study.issued.conversation.tolist()) <= set(study.train.tolist())
    assert all(row["answer"] in (0.0, 1.0) for row in study.picks())
    assert rounds[-1].accuracy > 0.8 and rounds[-1].direction_error < 0.1
    assert all(b.log_det > a.log_det for a, b in itertools.pairwise(rounds))
    assert rounds[0].d_efficiency is None and 0 < rounds[1].d_efficiency <= 1
    assert study.step() is None


def test_log_det_is_that_of_the_definition():
    study = make_study(budget=20)
    study.run()
    i, j = study.issued.conversation, study.issued.teacher
    x, beta = study.conversations.differences(i), study.truth[1][j, study.conversations.category[i]]
    s = 1 / (1 + np.exp(-beta * (x @ np.ones(4))))
    matrix = np.eye(4) + (x.T * (beta**2 * s * (1 - s))) @ x
    assert study.rounds[-1].log_det == pytest.approx(np.linalg.slogdet(matrix)[1], abs=1e-10)


@pytest.mark.parametrize("method", ["dual", "uniform", "d_optimal_uniform_teacher", "oracle"])
@pytest.mark.parametrize("stop_after", [0, 1, 3])
def test_a_study_restored_from_its_ledger_goes_on_to_the_same_bits(tmp_path, method, stop_after):
    whole = make_study(method)
    whole.run()
    path = tmp_path / "ledger.sqlite"
    with Ledger(path) as ledger:
        part = make_study(method, ledger)
        for _ in range(stop_after):
            part.step()
    with Ledger(path) as ledger:
        rest = make_study(method, ledger)
        assert len(rest.rounds) == stop_after
        rest.run()
        assert facts(rest) == facts(whole)


class Interrupted(Exception):
    pass


@pytest.mark.parametrize("write", ["issue", "answer", "record_round"])
@pytest.mark.parametrize("after", [False, True])
def test_a_stop_around_any_write_changes_nothing(tmp_path, monkeypatch, write, after):
    """As if the process had died just before, or just after, each kind of commit in the third round."""
    whole = make_study()
    whole.run()
    path = tmp_path / "ledger.sqlite"
    real, calls = getattr(Ledger, write), []

    def dying(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == 3 and not after:
            raise Interrupted
        result = real(self, *args, **kwargs)
        if len(calls) == 3:
            raise Interrupted
        return result

    monkeypatch.setattr(Ledger, write, dying)
    with Ledger(path) as ledger, pytest.raises(Interrupted):
        make_study(ledger=ledger).run()
    monkeypatch.undo()
    with Ledger(path) as ledger:
        rest = make_study(ledger=ledger)
        rest.run()
        assert facts(rest) == facts(whole)


def test_seed_labels_are_the_same_for_every_method():
    first = {m: make_study(m, budget=12) for m in ("dual", "uniform", "apo")}
    for study in first.values():
        study.run()
    asked = [[(r["conversation"], r["teacher"]) for r in study.picks()] for study in first.values()]
    assert asked[0] == asked[1] == asked[2]


def test_a_study_stops_by_gain():
    long, short = make_study(budget=200), make_study(budget=200, stop_gain=0.25)
    assert len(short.run()) < len(long.run())
    batch = long.issued.gain[long.issued.round == len(short.rounds)]
    assert batch.mean() < 0.25
    assert all(short.issued.gain[short.issued.round == k].mean() >= 0.25 for k in range(1, len(short.rounds)))


def test_a_study_ends_when_the_recorded_pairs_run_out():
    c = make_conversations(prompts=4)
    votes = Votes([0, 1, 2, 5], [0, 1, 0, 1], [1, 0, 0.5, 1], teacher_names=["p", "q"])
    study = Study(c, ReplayedTeachers(votes, c), Design(budget=100, batch=2, seed_labels=1))
    assert [r.labels for r in study.run()] == [1, 3, 4]
    assert sorted((r["conversation"], r["teacher"], r["answer"]) for r in study.picks()) == [
        ("pair-0", "p", 1.0),
        ("pair-1", "q", 0.0),
        ("pair-2", "p", 0.5),
        ("pair-5", "q", 1.0),
    ]


def test_without_seed_labels_the_design_chooses_from_the_start():
    study = make_study(budget=16)
    c = study.conversations
    free = Study(c, study.teachers, Design(budget=8, batch=8, seed_labels=0))
    assert [r.labels for r in free.run()] == [8]
    assert len(free.issued.gain) == 8


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "magic"}, "method is 'magic', expected one of dual, uniform"),
        ({"budget": 0}, "budget is 0, expected a whole number of at least 1"),
        ({"batch": 2.5}, "batch is 2.5, expected a whole number"),
        ({"seed_labels": -1}, "seed_labels is -1"),
        ({"budget": 10, "seed_labels": 11}, "seed_labels is 11, expected at most budget"),
        ({"ridge": 0.0}, "ridge is 0.0, expected a finite number above 0"),
        ({"ridge": float("nan")}, "ridge is nan"),
        ({"stop_gain": -1.0}, "stop_gain is -1.0"),
        ({"ridge": "a"}, "ridge is 'a', expected a finite number above 0, or 'evidence'"),
        ({"lapse": 1.0}, "lapse is 1.0, expected a share of at least 0 and below 1, or 'fit'"),
        ({"lapse": "some"}, "lapse is 'some'"),
        ({"category_correlation": 1}, "category_correlation is 1, expected a share"),
        ({"position_bias": -1.0}, "position_bias is -1.0"),
        ({"drift": "much"}, "drift is 'much'"),
        ({"ties": 1}, "ties is 1, expected True or False"),
        ({"ties": True, "lapse": 0.1}, "ties is True and lapse is 0.1, expected one or the other"),
        ({"ridge": True}, "ridge is True"),
        ({"rationality_scale": None}, "rationality_scale is None"),
        ({"stop_gain": "0"}, "stop_gain is '0'"),
        ({"optimism": np.inf}, "optimism is inf"),
        ({"signed": "yes"}, "signed is 'yes', expected True or False"),
        ({"fit": "map"}, "fit is 'map', expected one of marginal"),
        ({"criterion": "best"}, "criterion is 'best', expected one of plug_in, optimistic"),
        ({"criterion": "nuisance", "optimism": 1.0}, "optimism is 1.0, expected 0 with criterion 'nuisance'"),
        ({"criterion": "nuisance", "drift": 0.1}, "drift is 0.1, expected 0 with criterion 'nuisance'"),
        ({"optimism_level": 1.0}, "optimism_level is 1.0, expected a probability"),
        ({"explore": -1}, "explore is -1, expected a whole number of at least 0"),
        ({"gold_share": 1.0}, "gold_share is 1.0, expected a share"),
        ({"gold_share": "half"}, "gold_share is 'half'"),
        ({"capacity": (1, -1)}, r"capacity is \(1, -1\), expected whole numbers of at least 0"),
        ({"capacity": 3.5}, "capacity is 3.5"),
    ],
)
def test_designs_that_cannot_be_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        Design(**{"seed_labels": 5, "budget": 20, **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"conversations": np.eye(3)}, "conversations is of type ndarray, expected Conversations"),
        ({"teachers": ["anna"]}, "teachers is of type list, expected Teachers"),
        ({"settings": {"budget": 3}}, "settings is of type dict, expected a Design"),
        ({"settings": Design(capacity=(1, 2))}, "capacity has 2 numbers, expected 3, one for each teacher"),
        ({"train": [0, 90]}, "train holds 90; expected"),
        ({"train": [[0, 1]]}, "train has"),
        ({"train": ["a"]}, "train"),
        ({"train": [0.5]}, "train"),
        ({"train": []}, "train holds no conversation"),
        ({"held_out": [-1]}, "held_out holds -1"),
        ({"truth": np.ones(4)}, "expected a pair: reward and rationality"),
        ({"truth": (np.ones(3), np.ones((3, 2)))}, "reward has length 3"),
        ({"common": (np.ones(4), np.ones((2, 2)))}, "common's rationality is of 2 teachers, expected 3"),
    ],
)
def test_studies_that_cannot_be_are_refused(changes, message):
    c = make_conversations()
    given = {"conversations": c, "teachers": SimulatedTeachers(c, np.ones(4), np.ones((3, 2)))} | changes
    with pytest.raises(ValueError, match=message):
        Study(given.pop("conversations"), given.pop("teachers"), **given)


def test_the_optimistic_criterion_tries_who_may_be_good(tmp_path):
    plain = make_study(budget=60, criterion="plug_in")
    hopeful = make_study(budget=60, criterion="optimistic", optimism_level=0.9)
    plain.run(), hopeful.run()
    assert [r["teacher"] for r in plain.picks()] != [r["teacher"] for r in hopeful.picks()]
    path = tmp_path / "ledger.sqlite"
    with Ledger(path) as ledger:
        part = make_study(ledger=ledger, budget=60, criterion="optimistic", optimism_level=0.9)
        part.step(), part.step()
    with Ledger(path) as ledger:
        rest = make_study(ledger=ledger, budget=60, criterion="optimistic", optimism_level=0.9)
        rest.run()
        assert facts(rest) == facts(hopeful)


def test_splits_keep_prompts_whole_and_differ_by_seed():
    prompt = np.repeat(np.arange(20), 3)
    train, held_out = split_by_prompt(prompt, 0.3, 0)
    assert not set(prompt[train]) & set(prompt[held_out])
    assert len(set(prompt[held_out])) == 6 and len(train) + len(held_out) == 60
    assert split_by_prompt(prompt, 0.3, 0)[1].tolist() == held_out.tolist()
    assert split_by_prompt(prompt, 0.3, 1)[1].tolist() != held_out.tolist()
    assert len(split_by_prompt(prompt, 0.0, 0)[1]) == 0
    assert len(set(prompt[split_by_prompt(prompt, 0.999, 0)[0]])) == 1
    for share in (1.0, -0.1, float("nan")):
        with pytest.raises(ValueError, match="holdout is"):
            split_by_prompt(prompt, share, 0)
    with pytest.raises(ValueError, match="1 prompt cannot be split"):
        split_by_prompt([0, 0], 0.5, 0)


@pytest.mark.parametrize("more", [{}, {"gold_share": 0.2, "explore": 7}, {"seed_labels": 0}])
def test_rationalities_as_a_nuisance(tmp_path, more):
    options = {"criterion": "nuisance", "budget": 44} | more
    whole, plain = make_study(**options), make_study(**(options | {"criterion": "plug_in"}))
    whole.run(), plain.run()
    assert [r["teacher"] for r in whole.picks()] != [r["teacher"] for r in plain.picks()]
    assert all(r.d_efficiency is None for r in whole.rounds)
    path = tmp_path / "ledger.sqlite"
    with Ledger(path) as ledger:
        part = make_study(ledger=ledger, **options)
        part.step(), part.step()
    with Ledger(path) as ledger:
        rest = make_study(ledger=ledger, **options)
        rest.run()
        assert facts(rest) == facts(whole)


def test_the_joint_information_is_of_rationalities_not_logarithms():
    study = make_study(budget=28, criterion="nuisance")
    study.run()
    model, joint = study.model, study.model.joint_information()
    assert joint.theta == pytest.approx(model.coef_covariance(), rel=1e-9)
    known = joint.cell >= 0
    variance = np.diag(joint.rationality)[joint.cell[known]]
    assert variance == pytest.approx(model.rationality_se_[known] ** 2, rel=1e-9)


def test_open_questions_count_in_the_joint_information(tmp_path):
    with begin(tmp_path / "c", seed_labels=20, criterion="nuisance") as campaign:
        campaign.ingest(answer_all(campaign.select()))
        campaign.study.restore_model()
        before = campaign.study._state().joint
        campaign.select(8)
        waiting = campaign.study._state().joint
        gain = np.linalg.slogdet(before.theta)[1] - np.linalg.slogdet(waiting.theta)[1]
        assert gain > 0.1


def test_settings_of_the_fit_reach_it():
    chosen = {
        "ridge": "evidence", "rationality_scale": "evidence", "category_correlation": 0.2, "signed": True,
        "lapse": "fit", "position_bias": 0.7, "drift": 0.1,
    }  # fmt: skip
    assert {k: Design(**chosen).model().get_params()[k] for k in chosen} == chosen
    assert Design(ties=True).model().ties is True


def test_a_ridge_by_evidence_is_the_one_in_force():
    study = make_study(budget=36, ridge="evidence", rationality_scale="evidence")
    assert study.ridge == 1.0 and study._log_spread().max() == 0.5
    study.run()
    assert study.ridge == study.model.ridge_ != 1.0
    assert study._state().ridge == study.ridge
    assert study._state().matrix == pytest.approx(study.model.information_, rel=1e-9)
    fixed = study.information(*study.common, 1.0)
    assert study.rounds[-1].log_det == pytest.approx(np.linalg.slogdet(fixed)[1])


def test_the_round_of_every_answer_reaches_the_fit():
    """A teacher who turns round half-way: with drift the last rationality is the last one."""
    c = make_conversations(prompts=60)
    schedule = np.ones((10, 3))
    schedule[3:, 0] = 0.0
    fitted = {}
    for drift in (0.0, 0.5):
        teachers = SimulatedTeachers(c, np.full(4, 1.5), np.full((3, 2), 1.5), seed=1, schedule=schedule)
        settings = Design(method="uniform", budget=280, batch=28, seed_labels=28, drift=drift)
        study = Study(c, teachers, settings)
        study.run()
        given = study.fit_arguments()
        assert given["round"].tolist() == study.issued.round.tolist() and not given["side"].any()
        fitted[drift] = study.model.rationality_[0].mean() / study.model.rationality_[1:].mean()
    assert fitted[0.5] < 0.7 * fitted[0.0]


# ------------------------------------------------------------------------------------------------ the ledger


def test_the_ledger_only_grows(tmp_path):
    path = tmp_path / "ledger.sqlite"
    with Ledger(path) as ledger:
        ledger.issue("a", 0, [3, 4], [1, 0], [0.5, 0.25], [True, False], {})
        ledger.answer("a", [(3, 1, 1.0)])
    raw = sqlite3.connect(path)
    for statement in ("DELETE FROM answers", "UPDATE issued SET teacher = 7", "DELETE FROM issued"):
        with pytest.raises(sqlite3.IntegrityError, match="append-only"):
            raw.execute(statement)
    raw.close()


def test_the_ledger_takes_the_same_twice_and_refuses_contradictions(tmp_path):
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        ledger.issue("a", 0, [3, 4], [1, 0], [0.5, 0.25], [True, False], {"x": 1})
        assert ledger.answer("a", [(3, 1, 1.0), (4, 0, 0.5)]) == (2, 0)
        assert ledger.answer("a", [(3, 1, 1.0)]) == (0, 0)
        with pytest.raises(LedgerError, match="conversation 3 was answered 1 by teacher 1, now 0"):
            ledger.answer("a", [(3, 1, 0.0)])
        with pytest.raises(LedgerError, match="never issued"):
            ledger.answer("a", [(3, 0, 0.0)])
        with pytest.raises(LedgerError, match="never issued"):
            ledger.answer("other cell", [(3, 1, 1.0)])
        with pytest.raises(LedgerError, match="refused"):
            ledger.issue("a", 1, [9, 3], [1, 1], [0.5, 0.5], [True, False], {})
        assert ledger.issued("a").conversation.tolist() == [3, 4]  # the refused batch left nothing
        assert ledger.batches("a") == {0: {"x": 1}}
        with pytest.raises(LedgerError, match="cannot be withdrawn"):
            ledger.answer("a", withdrawn=[(3, 1)])
        ledger.store("design", {"k": 1})
        ledger.store("design", {"k": 1})
        with pytest.raises(LedgerError, match="setting 'design' is in the ledger already"):
            ledger.store("design", {"k": 2})


def test_one_bad_answer_takes_none(tmp_path):
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        ledger.issue("a", 0, [3, 4], [1, 0], [0.5, 0.25], [True, False], {})
        with pytest.raises(LedgerError, match="never issued"):
            ledger.answer("a", [(3, 1, 1.0), (5, 0, 1.0)])
        assert ledger.answers("a") == {}


def test_the_ledger_keeps_numbers_to_the_bit(tmp_path):
    path, values = tmp_path / "ledger.sqlite", np.array([[0.1, -1e-300], [np.pi, 1e300]])
    with Ledger(path) as ledger:
        ledger.issue("a", 0, [2**40], [1], [0.1 + 0.2], [True], {})
        ledger.store_array("theta", values)
        ledger.store_array("theta", values)
        with pytest.raises(LedgerError, match="array 'theta' is in the ledger already"):
            ledger.store_array("theta", values + 1)
    with Ledger(path) as ledger:
        assert ledger.issued("a").gain.tolist() == [0.1 + 0.2]
        assert ledger.issued("a").conversation.tolist() == [2**40]
        assert ledger.array("theta").tobytes() == values.tobytes()
        assert ledger.array("other") is None and ledger.stored("none") is None


def test_files_that_are_no_ledger_are_refused(tmp_path):
    text = tmp_path / "text.sqlite"
    text.write_text("This is no database at all, but it is long enough to look like one to a reader. " * 20)
    with pytest.raises(LedgerError, match="not a usable campaign ledger"):
        Ledger(text)
    other = tmp_path / "other.sqlite"
    raw = sqlite3.connect(other)
    raw.execute("CREATE TABLE songs (name TEXT)")
    raw.close()
    with pytest.raises(LedgerError, match="an SQLite file, but not a campaign ledger"):
        Ledger(other)
    with pytest.raises(LedgerError, match="no such campaign ledger"):
        Ledger(tmp_path / "absent.sqlite", must_exist=True)
    assert not (tmp_path / "absent.sqlite").exists()
    with pytest.raises(LedgerError, match="cannot be opened"):
        Ledger(tmp_path / "no" / "folder.sqlite")


def test_a_newer_ledger_is_refused(tmp_path):
    path = tmp_path / "ledger.sqlite"
    Ledger(path).close()
    raw = sqlite3.connect(path)
    raw.execute(f"PRAGMA user_version={FORMAT_VERSION + 1}")
    raw.close()
    with pytest.raises(LedgerError, match=f"format {FORMAT_VERSION + 1}.*install a newer dal-native"):
        Ledger(path)


def test_a_damaged_ledger_is_refused_never_trusted(tmp_path):
    """Pages overwritten or cut off: opening or reading says so, or the content is what it was."""
    path = tmp_path / "ledger.sqlite"
    with Ledger(path) as ledger:
        for k in range(40):
            ledger.issue("a", k, range(50 * k, 50 * k + 50), [1] * 50, [0.5] * 50, [True] * 50, {})
    good = path.read_bytes()
    refused = 0
    for cut in (100, 4096, len(good) // 2, len(good) - 1):
        path.write_bytes(good[:cut])
        refused += _reads_or_refuses(path)
    for start in range(4096, len(good), 3 * 4096):
        path.write_bytes(good[:start] + bytes([0xA5]) * 64 + good[start + 64 :])
        refused += _reads_or_refuses(path)
    assert refused >= 4


def test_a_campaign_does_not_write_over_the_data_it_was_begun_with(tmp_path):
    mine = tmp_path / "conversations.jsonl"
    mine.write_text("mine")
    with pytest.raises(ValueError, match=r"conversations\.jsonl: exists; expected a folder without it"):
        Campaign.create(tmp_path, make_conversations(), ["anna"])
    assert mine.read_text() == "mine" and [p.name for p in tmp_path.iterdir()] == [mine.name]
    with campaign_lock(tmp_path):  # a creation that was killed leaves its lock, and may be repeated
        pass
    Campaign.create(tmp_path, make_conversations(), ["anna"]).close()


def test_damage_that_sqlite_cannot_see_is_refused_too(tmp_path):
    conversations = Conversations.from_differences(np.eye(4), ids=["p", "q", "r", "s"])
    with Campaign.create(tmp_path, conversations, ["anna", "ben"]) as campaign:
        campaign.select(3)
    path = tmp_path / "campaign.sqlite"
    good = path.read_bytes()
    name = good.index(b"rationality_scale")
    path.write_bytes(good[:name] + b"R" + good[name + 1 :])
    with pytest.raises(LedgerError, match=r"the campaign's settings are damaged"):
        Campaign.open(tmp_path)
    path.write_bytes(good)
    raw = sqlite3.connect(path)
    raw.executescript("DROP TRIGGER issued_no_update; UPDATE issued SET teacher = 2;")
    raw.close()
    with pytest.raises(LedgerError, match="a question about nothing or nobody"):
        Campaign.open(tmp_path)
    schema = good.index(b"CREATE TABLE")
    path.write_bytes(good[:schema] + b"CREATE \x8cABLE" + good[schema + 12 :])
    with pytest.raises(LedgerError, match=r"campaign\.sqlite: not a usable campaign ledger"):
        Campaign.open(tmp_path)


def _reads_or_refuses(path):
    try:
        with Ledger(path) as ledger:
            assert len(ledger.issued("a").round) in (0, 2000)
            return 0
    except LedgerError:
        return 1


HOLD = """
import sys, time
from dal_learn._ledger import campaign_lock
with campaign_lock(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_process_gets_a_clear_error_until_the_first_is_gone(tmp_path):
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "held\n"
        with (
            pytest.raises(LedgerError, match="another process is working in this folder"),
            campaign_lock(tmp_path),
        ):
            pass
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()
    with campaign_lock(tmp_path):  # the system let go of a killed process's lock
        pass


# -------------------------------------------------------------------------------------- campaigns in a folder


def begin(folder, texts=True, **settings):
    return Campaign.create(
        folder, make_conversations(texts=texts), ["anna", "ben"], Design(budget=1000, **settings)
    )


def answer_all(rows, word="left"):
    return [(f"file:{k}", {**row, "answer": word}) for k, row in enumerate(rows, 1)]


def test_select_and_ingest_go_round(tmp_path):
    with begin(tmp_path / "c", seed_labels=6, batch=4) as campaign:
        first = campaign.select()
        assert len(first) == 6 and {row["round"] for row in first} == {0}
        assert campaign.ingest(answer_all(first)) == (6, 0)
    with Campaign.open(tmp_path / "c") as campaign:
        second = campaign.select()
        assert len(second) == 4 and {row["round"] for row in second} == {1}
        third = campaign.select(3)  # before the second came back
        assert len(third) == 3
        pairs = {(row["conversation"], row["teacher"]) for row in first + second + third}
        assert len(pairs) == 13
        assert campaign.status() == {"rounds": 3, "issued": 13, "answered": 6, "given_up": 0, "open": 7}
        assert campaign.open_questions() == second + third
        assert campaign.ingest(answer_all(third, "tie")) == (3, 0)  # later round first
        assert campaign.ingest(answer_all(second, "skip")) == (0, 4)
        assert campaign.ingest(answer_all(second, "skip") + answer_all(third, "tie")) == (0, 0)
        assert campaign.status()["open"] == 0


def test_until_an_answer_comes_batches_are_dealt_to_all_teachers(tmp_path):
    with begin(tmp_path / "c", seed_labels=6, batch=10) as campaign:
        first, second = campaign.select(), campaign.select()
        assert {row["teacher"] for row in second} == {"anna", "ben"}
        pairs = {(row["conversation"], row["teacher"]) for row in first + second}
        assert len(pairs) == 16


def test_sides_are_random_recorded_and_undone(tmp_path):
    with begin(tmp_path / "c", seed_labels=60) as campaign:
        rows = campaign.select()
        c = campaign.study.conversations
        truth = {}
        for row in rows:
            i = c.ids.index(row["conversation"])
            a, b = (c.texts.completions[k] for k in c.pairs[i])
            assert {row["left"], row["right"]} == {a, b}
            assert row["prompt"] == c.texts.prompts[c.prompt[i]]
            assert c.texts.completions[c.texts.completion_ids.index(row["left_id"])] == row["left"]
            truth[i] = row["left"] == b
        assert 15 < sum(truth.values()) < 45
        campaign.ingest(answer_all(rows, "left"))
        for (i, _), label in campaign.study.answers.items():
            assert label == (1.0 if truth[i] else 0.0)


def test_without_texts_the_sides_are_named(tmp_path):
    with begin(tmp_path / "c", texts=False, seed_labels=20) as campaign:
        rows = campaign.select()
    assert all({row["left_id"], row["right_id"]} == {"a", "b"} and "left" not in row for row in rows)


def test_unanswered_pairs_count_as_information_until_given_up(tmp_path):
    with begin(tmp_path / "c", seed_labels=8) as campaign:
        rows = campaign.select()
        campaign.ingest(answer_all(rows[:4]))
        reward, rationality = np.full(4, 0.5), np.ones((2, 2))
        waiting = np.linalg.slogdet(campaign.study.information(reward, rationality))[1]
        campaign.ingest(answer_all(rows[4:], "skip"))
        given_up = np.linalg.slogdet(campaign.study.information(reward, rationality))[1]
        assert given_up < waiting


def test_the_side_shown_reaches_the_fit(tmp_path):
    """Anna takes what stands on the left, Ben the better one: the bias is found where it is."""
    with begin(tmp_path / "c", seed_labels=120, position_bias=1.0) as campaign:
        rows = campaign.select()
        c = campaign.study.conversations
        answers = []
        for k, row in enumerate(rows):
            left_is_b = row["left"] == c.texts.completions[c.pairs[c.ids.index(row["conversation"])][1]]
            better = "left" if left_is_b == (c.gold[c.ids.index(row["conversation"])] == 1.0) else "right"
            answers.append((f"f:{k}", {**row, "answer": "left" if row["teacher"] == "anna" else better}))
        campaign.ingest(answers)
        study = campaign.study
        study.restore_model()
        assert set(study.fit_arguments()["side"].tolist()) == {-1, 1}
        anna, ben = study.model.position_bias_
        assert anna > 2 * study.model.position_bias_se_[0] and anna > abs(ben) + 0.5
        assert "prefers a side" in study.flags()[0]["flags"]


HOSTILE = [
    ({"conversation": "pair-x"}, "conversation 'pair-x' is unknown"),
    ({"conversation": ["pair-1"]}, "is unknown"),
    ({"conversation": True}, "conversation True is unknown"),
    ({"teacher": "bob"}, "teacher 'bob' is unknown"),
    ({"teacher": None}, "teacher None is unknown"),
    ({"answer": "a"}, "answer 'a' is unknown, expected left, right, tie or skip"),
    ({"answer": 1}, "answer 1 is unknown"),
    ({"answer": float("nan")}, "answer nan is unknown"),
    ({"answer": {"choice": "left"}}, "is unknown"),
]


@pytest.mark.parametrize(("change", "message"), HOSTILE)
def test_answers_that_do_not_fit_are_refused_and_nothing_is_taken(tmp_path, change, message):
    with begin(tmp_path / "c", seed_labels=6) as campaign:
        rows = answer_all(campaign.select())
        rows[3] = (rows[3][0], {**rows[3][1], **change})
        with pytest.raises(AnswersRefused) as error:
            campaign.ingest(rows)
        assert len(error.value.problems) == 1
        assert error.value.problems[0].startswith("file:4: ") and message in error.value.problems[0]
        assert campaign.status()["answered"] == 0


def test_every_problem_is_listed(tmp_path):
    with begin(tmp_path / "c", seed_labels=6) as campaign:
        rows = answer_all(campaign.select())
        everyone = {(r["conversation"], r["teacher"]) for _, r in rows}
        free = next(t for t in ("anna", "ben") if (rows[0][1]["conversation"], t) not in everyone)
        never = {**rows[0][1], "teacher": free}
        missing = {k: v for k, v in rows[1][1].items() if k != "answer"}
        twice = {**rows[2][1], "answer": "right"}
        with pytest.raises(AnswersRefused) as error:
            campaign.ingest([*rows, ("file:7", never), ("file:8", missing), ("file:9", twice)])
        assert [p.split(": ", 1)[0] for p in error.value.problems] == ["file:7", "file:8", "file:9"]
        assert "never issued" in error.value.problems[0]
        assert "field 'answer' is missing" in error.value.problems[1]
        assert "another answer to the same question than in file:3" in error.value.problems[2]
        assert campaign.status()["answered"] == 0


def test_answers_that_contradict_the_ledger_are_refused(tmp_path):
    with begin(tmp_path / "c", seed_labels=6) as campaign:
        rows = campaign.select()
        campaign.ingest(answer_all(rows[:2], "left") + answer_all(rows[2:3], "skip"))
        with pytest.raises(AnswersRefused, match="another answer to this question was taken before"):
            campaign.ingest(answer_all(rows[:1], "right"))
        with pytest.raises(AnswersRefused, match="another answer to this question was taken before"):
            campaign.ingest(answer_all(rows[:1], "skip"))
        with pytest.raises(AnswersRefused, match="given up before"):
            campaign.ingest(answer_all(rows[2:3], "tie"))
        assert campaign.ingest(answer_all(rows[3:4], "") + answer_all(rows[4:5], None)) == (0, 0)
        assert campaign.status()["open"] == 3


def test_a_campaign_is_made_once_and_opened_only_where_there_is_one(tmp_path):
    begin(tmp_path / "c").close()
    with pytest.raises(ValueError, match="holds a campaign already"):
        begin(tmp_path / "c")
    with pytest.raises(LedgerError, match="holds no campaign"):
        Campaign.open(tmp_path / "nothing")
    assert not (tmp_path / "nothing").exists()
    with pytest.raises(ValueError, match="teachers holds an empty name, a name twice or nothing"):
        Campaign.create(tmp_path / "d", make_conversations(), ["anna", "anna"])
    with begin(tmp_path / "e"), pytest.raises(LedgerError, match="another process"):
        Campaign.open(tmp_path / "e")


def test_changed_conversations_are_noticed(tmp_path):
    begin(tmp_path / "c").close()
    names = tmp_path / "c" / "conversations.jsonl"
    names.write_text(names.read_text().replace("text 5", "text five"))
    with pytest.raises(LedgerError, match="conversations were changed"):
        Campaign.open(tmp_path / "c")


def test_a_campaign_can_be_moved(tmp_path):
    with begin(tmp_path / "c", seed_labels=6) as campaign:
        campaign.ingest(answer_all(campaign.select()))
    (tmp_path / "c").rename(tmp_path / "elsewhere")
    with Campaign.open(tmp_path / "elsewhere") as campaign:
        assert campaign.status()["answered"] == 6
        assert len(campaign.select(2)) == 2


@pytest.mark.parametrize("kind", ["texts", "completions", "differences", "float16"])
def test_conversations_come_back_to_the_bit(tmp_path, kind):
    c = make_conversations(texts=kind == "texts")
    if kind == "differences":
        c = Conversations.from_differences(c.differences(), prompt=c.prompt, ids=c.ids, gold=c.gold)
    if kind == "float16":
        c = Conversations.from_completions(c.completions.astype(np.float16), c.prompt_offsets, ids=c.ids)
    save_conversations(tmp_path, c, ["teacher, one", "ben"])
    back, teachers = load_conversations(tmp_path)
    assert teachers == ("teacher, one", "ben")
    assert back.differences().tobytes() == c.differences().tobytes()
    assert (back.ids, back.category_names, back.texts) == (c.ids, c.category_names, c.texts)
    assert back.prompt.tolist() == c.prompt.tolist() and back.category.tolist() == c.category.tolist()
    assert back.gold.tobytes() == c.gold.tobytes()
    if c.completions is not None:
        assert back.completions.dtype == c.completions.dtype


def test_stored_numbers_are_json_without_nan(tmp_path):
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        make_study(ledger=ledger, budget=20).run()
    raw = sqlite3.connect(tmp_path / "ledger.sqlite")
    for (body,) in raw.execute("SELECT body FROM rounds"):
        json.loads(body, parse_constant=pytest.fail)
    raw.close()
