"""Whole comparisons: what they write, and that kills, workers and threads change nothing."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

import dal_native as dn
from dal_learn import comparison
from dal_learn._ledger import Ledger, LedgerError, campaign_lock
from dal_learn.campaign import Design
from dal_learn.comparison import AnswersAwaited, Comparison, People, Problem, Simulation, paired_difference
from dal_learn.conversations import Conversations, Texts
from dal_learn.reward import RewardModel
from dal_learn.teachers import Votes

CATEGORIES = ("x", "=y")


def make_conversations(prompts=24, completions=3, d=3, gold=True):
    rng = np.random.default_rng(5)
    phi = rng.standard_normal((prompts * completions, d))
    offsets = np.arange(prompts + 1) * completions
    plain = Conversations.from_completions(phi, offsets)
    return Conversations.from_completions(
        phi,
        offsets,
        prompt_category=np.arange(prompts) % 2,
        category_names=CATEGORIES,
        gold=(plain.differences() @ np.ones(d) > 0).astype(float) if gold else None,
        texts=Texts(
            [f"prompt {p}" for p in range(prompts)],
            [f"text {k}" for k in range(len(phi))],
            [f"c{k}" for k in range(len(phi))],
        ),
    )


def simulated(**changes):
    rationality = np.array([[0.3, 2.0], [2.0, 0.3], [1.0, 1.0]])
    names = ("anna", "=ben", "cleo")
    return Problem(
        "toy", make_conversations(**changes), simulation=Simulation(np.ones(3), rationality, 0.0, names)
    )


def replayed():
    rng = np.random.default_rng(1)
    c = make_conversations()
    i, j = np.nonzero(rng.random((c.n, 6)) < 0.4)
    label = np.where(rng.random(len(i)) < 0.8, c.gold[i], rng.choice([0.0, 0.5, 1.0], len(i)))
    return Problem("votes", c, votes=Votes(i, j, label, teacher_names=[f"t{k}" for k in range(6)]))


def settings(methods=("dual", "uniform", "top_b"), seeds=2, **changes):
    design = {"budget": 26, "batch": 6, "seed_labels": 8, **changes}
    return Comparison(design=Design(**design), methods=methods, seeds=seeds)


def outcome(folder, results):
    """Bytes of every file, and the results, without the fields that are times."""
    files = {
        name: (folder / name).read_bytes()
        for name in (
            "picks.jsonl",
            "teachers.csv",
            "flags.csv",
            "policy.jsonl",
            "reward.safetensors",
            "pessimistic.safetensors",
        )
    }
    return files, json.dumps(without_seconds(results), sort_keys=True)


def without_seconds(body):
    if isinstance(body, dict):
        return {k: without_seconds(v) for k, v in body.items() if not k.startswith("seconds_")}
    return [without_seconds(v) for v in body] if isinstance(body, list) else body


# ------------------------------------------------------------------------------------------------ the results


def test_results_have_the_promised_fields(tmp_path):
    results = comparison.compare(simulated(), settings(("dual", "uniform", "oracle")), tmp_path)
    comparison.write_results(tmp_path, results)
    read = json.loads((tmp_path / "results.json").read_text(), parse_constant=pytest.fail)
    assert read == results
    assert {"version", "dataset", "budget", "methods", "policy"} <= set(read)
    assert (read["version"], read["dataset"], read["budget"]) == (dn.__version__, "toy", 26)
    for values in read["methods"].values():
        for field in ("accuracy", "log_loss", "log_det", "seconds_selecting", "direction_error"):
            assert len(values[field]) == 2 and all(isinstance(v, float) for v in values[field])
        assert values["labels"] == [26, 26]
        assert values["curve"]["labels"] == [[8, 14, 20, 26]] * 2
        assert [row[-1] for row in values["curve"]["accuracy"]] == values["accuracy"]
    assert sum(map(sum, read["asked"]["dual"]["count"])) == 52
    assert comparison.dataset_of(tmp_path) == "toy"


def test_accuracy_and_log_det_are_what_they_say(tmp_path):
    problem, chosen = replayed(), settings(("uniform",), seeds=1)
    results = comparison.compare(problem, chosen, tmp_path)
    c = problem.conversations
    train, held_out = comparison.split_by_prompt(c.prompt, chosen.holdout, 0)
    picks = [json.loads(line) for line in (tmp_path / "picks.jsonl").read_text().splitlines()]
    i = np.array([c.ids.index(row["conversation"]) for row in picks])
    j = np.array([problem.names.index(row["teacher"]) for row in picks])
    y = np.array([row["answer"] for row in picks])
    sizes = {"n_teachers": 6, "n_categories": 2}
    model = RewardModel().fit(c.differences(i), y, teacher=j, category=c.category[i], **sizes)
    margin = c.differences(held_out) @ model.coef_
    known = np.isin(c.gold[held_out], (0.0, 1.0))
    right = (margin > 0) == (c.gold[held_out] == 1.0)
    assert results["methods"]["uniform"]["accuracy"] == [right[known].mean()]
    votes = problem.votes.subset(np.isin(problem.votes.conversation, train))
    x = c.differences(votes.conversation)
    cells = {"teacher": votes.teacher, "category": c.category[votes.conversation]}
    full = RewardModel().fit(x, votes.label, **cells, **sizes)
    weight = dn.choice_weight(c.differences(i) @ full.coef_, full.rationality_[j, c.category[i]])
    matrix = dn.information_matrix(c.differences(i), weight, ridge=1.0)
    expected = np.linalg.slogdet(matrix)[1]
    assert results["methods"]["uniform"]["log_det"][0] == pytest.approx(expected, abs=1e-9)
    assert results["all_votes"]["labels"] == [len(votes)]


def test_files_are_whole_and_safe(tmp_path):
    comparison.compare(simulated(), settings(), tmp_path)
    picks = [json.loads(line) for line in (tmp_path / "picks.jsonl").read_text().splitlines()]
    assert len(picks) == 26
    assert set(picks[0]) == {"round", "conversation", "teacher", "gain", "purpose", "answer"}
    table = (tmp_path / "teachers.csv").read_text().splitlines()
    assert table[0].startswith("teacher,category,votes,rationality,low,high")
    assert table[0].endswith(",flags") and all(line.endswith(",few answers") for line in table[1:])
    judged = (tmp_path / "flags.csv").read_text().splitlines()
    assert judged[0].startswith("teacher,answers,rationality,low,high,agreement") and len(judged) == 4
    assert [line.split(",")[0] for line in judged[1:]] == ["anna", "'=ben", "cleo"]
    assert any(line.startswith("'=ben,x,") for line in table) and any(",'=y," in line for line in table)
    rows = [line.split(",") for line in table[1:]]
    assert sum(int(row[2]) for row in rows) == 26
    assert all(float(row[4]) <= float(row[3]) <= float(row[5]) for row in rows)
    policy = [json.loads(line) for line in (tmp_path / "policy.jsonl").read_text().splitlines()]
    assert len(policy) == 24 and policy[3]["prompt_text"] == "prompt 3"
    assert policy[3]["choice_id"] == f"c{9 + policy[3]['choice']}"
    model = RewardModel.load(tmp_path / "reward.safetensors")
    assert model.coef_.shape == (3,)


def test_without_known_truth_there_is_no_accuracy_and_without_completions_no_policy(tmp_path):
    c = make_conversations(gold=False)
    bare = Conversations.from_differences(c.differences(), prompt=c.prompt)
    votes = Votes(np.arange(c.n), np.zeros(c.n, int), np.ones(c.n))
    problem = Problem("bare", bare, votes=votes)
    results = comparison.compare(problem, settings(("uniform",), 1), tmp_path)
    assert results["methods"]["uniform"]["accuracy"] == [None]
    assert results["policy"] is None and not (tmp_path / "policy.jsonl").exists()


def test_the_top_level_files_are_the_chosen_methods(tmp_path):
    problem = simulated()
    wanted = dataclasses.replace(settings(("dual", "uniform"), seeds=1), top="uniform")
    results = comparison.compare(problem, wanted, tmp_path / "both")
    alone = comparison.compare(problem, settings(("uniform",), seeds=1), tmp_path / "alone")
    assert results["main"] == "uniform" == alone["main"]
    assert outcome(tmp_path / "both", {})[0] == outcome(tmp_path / "alone", {})[0]
    assert comparison.compare(problem, settings(("uniform", "dual"), 1), tmp_path / "c")["main"] == "dual"


def test_paired_differences_are_student_intervals():
    d = paired_difference([0.6, 0.7, 0.65, 0.7], [0.5, 0.65, 0.7, 0.6])
    assert d["mean"] == pytest.approx(0.05)
    half = 3.182446305284263 * np.std([0.1, 0.05, -0.05, 0.1], ddof=1) / 2
    assert (d["high"] - d["low"]) / 2 == pytest.approx(half)
    assert (d["wins"], d["losses"], d["seeds"]) == (3, 1, 4)
    assert paired_difference([0.5], [0.4])["low"] is None


def test_teachers_of_a_comparison_may_drift_and_are_flagged(tmp_path):
    schedule = np.ones((9, 3))
    schedule[4:, 0] = -1.0
    plain = simulated(prompts=60)
    truth = dataclasses.replace(plain.simulation, rationality=np.full((3, 2), 2.0))
    drifting = dataclasses.replace(truth, schedule=schedule)
    problems = [dataclasses.replace(plain, simulation=s) for s in (truth, drifting)]
    assert problems[0].digest() != problems[1].digest()
    chosen = settings(("uniform",), seeds=1, budget=200, batch=25)
    flagged = []
    for k, problem in enumerate(problems):
        results = comparison.compare(problem, chosen, tmp_path / str(k))
        flagged.append([row["teacher"] for row in results["flags"]["teachers"] if row["flags"]])
        assert results["flags"]["tested"] == 3
    assert flagged == [[], ["anna"]]


# --------------------------------------------------------------------------------- the same whatever happens


@pytest.mark.parametrize("make", [simulated, replayed])
def test_workers_and_threads_change_nothing(tmp_path, make):
    whole = outcome(tmp_path / "a", comparison.compare(make(), settings(), tmp_path / "a"))
    assert outcome(tmp_path / "b", comparison.compare(make(), settings(), tmp_path / "b", workers=2)) == whole
    try:
        for threads in (1, 3):
            dn.set_threads(threads)
            out = tmp_path / f"threads-{threads}"
            assert outcome(out, comparison.compare(make(), settings(), out)) == whole
    finally:
        dn.set_threads(None)


VICTIM = """
import sys
sys.path.insert(0, sys.argv[2])
from test_comparison import replayed, settings
from dal_learn import comparison
print("begins", flush=True)
comparison.compare(replayed(), settings(), sys.argv[1], workers=int(sys.argv[3]))
"""


@pytest.mark.parametrize("workers", [1, 2])
def test_a_killed_run_goes_on_to_the_same_results(tmp_path, workers):
    whole = outcome(tmp_path / "a", comparison.compare(replayed(), settings(), tmp_path / "a"))
    out, rng = tmp_path / "b", np.random.default_rng(workers)
    stages = set()
    for _ in range(5 if workers == 1 else 3):
        victim = subprocess.Popen(
            [sys.executable, "-c", VICTIM, str(out), os.path.dirname(__file__), str(workers)],
            stdout=subprocess.PIPE,
        )
        assert victim.stdout.readline() == b"begins\n"
        time.sleep(rng.uniform(0.0, 0.5 if workers == 1 else 2.5))
        victim.send_signal(signal.SIGKILL)  # its workers notice and end
        victim.wait()
        victim.stdout.close()
        if (out / "campaign.sqlite").exists():
            with Ledger(out / "campaign.sqlite") as ledger:  # readable after every kill
                stages.add(len(ledger.finished()))
    assert outcome(out, comparison.compare(replayed(), settings(), out)) == whole
    assert stages  # the kills came after the run had begun


def test_a_folder_in_use_is_refused(tmp_path):
    with campaign_lock(tmp_path), pytest.raises(LedgerError, match="another process"):
        comparison.compare(simulated(), settings(), tmp_path)


def test_finished_and_foreign_runs_are_left_alone(tmp_path):
    chosen = settings(("uniform",), seeds=1)
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "results.json").write_text('{"theirs": true}')
    results = comparison.compare(simulated(), chosen, tmp_path)
    with pytest.raises(ValueError, match="holds an unfinished run of other data or settings; use --force"):
        comparison.compare(simulated(), settings(("dual",), seeds=1), tmp_path)
    with pytest.raises(ValueError, match="holds an unfinished run of other data"):
        comparison.compare(simulated(prompts=30), chosen, tmp_path)
    comparison.write_results(tmp_path, results)
    with pytest.raises(ValueError, match="holds a complete run; use --force to replace it"):
        comparison.compare(simulated(), chosen, tmp_path)
    again = comparison.compare(simulated(), settings(("dual",), seeds=1), tmp_path, force=True)
    assert list(again["methods"]) == ["dual"]
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert comparison.dataset_of(tmp_path) is None  # until the new results are written


def test_force_clears_a_damaged_ledger(tmp_path):
    (tmp_path / "campaign.sqlite").write_text("damaged " * 1000)
    with pytest.raises(LedgerError, match="not a usable campaign ledger"):
        comparison.compare(simulated(), settings(("uniform",), 1), tmp_path)
    assert comparison.compare(simulated(), settings(("uniform",), 1), tmp_path, force=True)["budget"] == 26


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: settings(("dual", "best")), "methods holds 'best', expected some of dual"),
        (lambda: settings(()), "methods holds nothing"),
        (lambda: settings(("dual", "dual")), "methods holds a name twice"),
        (lambda: settings(seeds=0), "seeds is 0"),
        (lambda: Comparison(holdout=1.0), "holdout is 1.0"),
        (lambda: Comparison(delta=0.0), "delta is 0.0"),
        (lambda: Comparison(radius=float("inf")), "radius is inf"),
        (lambda: Comparison(reward_norm=-1.0), "reward_norm is -1.0"),
        (
            lambda: Comparison(methods=("dual",), top="uniform"),
            "top is 'uniform', expected one of the methods",
        ),
        (lambda: Problem("none", make_conversations()), "0 of votes, simulation and people were given"),
    ],
)
def test_settings_that_cannot_be_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_nothing_is_written_for_a_run_that_cannot_be(tmp_path):
    out = tmp_path / "out"
    with pytest.raises(ValueError, match="oracle"):
        comparison.compare(replayed(), settings(("dual", "oracle")), out)
    with pytest.raises(ValueError, match="workers is 0"):
        comparison.compare(replayed(), settings(), out, workers=0)
    with pytest.raises(ValueError, match="1 prompt cannot be split"):
        comparison.compare(simulated(prompts=1), settings(), out)
    assert not out.exists()


# ----------------------------------------------------------------------------------------------------- people


def answers_of(folder, number, word="left"):
    questions = [json.loads(line) for line in (folder / f"round-{number:04d}.jsonl").read_text().splitlines()]
    rows = [{"conversation": q["conversation"], "teacher": q["teacher"], "answer": word} for q in questions]
    (folder / f"round-{number:04d}.answers.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return rows


def test_people_are_asked_round_by_round(tmp_path):
    exchange, out = tmp_path / "questions", tmp_path / "out"
    problem = Problem("people", make_conversations(), people=People(exchange, ("anna", "ben")))
    chosen = settings(("dual",), seeds=1, budget=14)
    for number in (1, 2):
        with pytest.raises(AnswersAwaited) as waiting:
            comparison.compare(problem, chosen, out)
        assert waiting.value.round == number
        assert waiting.value.open == (8 if number == 1 else 6)
        with pytest.raises(AnswersAwaited):  # nothing changes while nobody answers
            comparison.compare(problem, chosen, out)
        answers_of(exchange, number)
    results = comparison.compare(problem, chosen, out)
    assert results["answers"] == "people" and results["methods"]["dual"]["labels"] == [14]
    assert len((out / "picks.jsonl").read_text().splitlines()) == 14


def test_open_questions_can_be_given_up(tmp_path):
    exchange, out = tmp_path / "questions", tmp_path / "out"
    problem = Problem("people", make_conversations(), people=People(exchange, ("anna", "ben")))
    chosen = settings(("dual",), seeds=1, budget=8)
    with pytest.raises(AnswersAwaited):
        comparison.compare(problem, chosen, out)
    answers_of(exchange, 1)
    path = exchange / "round-0001.answers.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:5]))
    with pytest.raises(AnswersAwaited) as waiting:
        comparison.compare(problem, chosen, out)
    assert waiting.value.open == 3
    with pytest.raises(AnswersAwaited) as waiting:  # three others take their place
        comparison.compare(problem, chosen, out, give_up=True)
    assert (waiting.value.round, waiting.value.open) == (2, 3)
    answers_of(exchange, 2)
    assert comparison.compare(problem, chosen, out)["methods"]["dual"]["labels"] == [8]


def test_a_question_that_is_skipped_is_given_up(tmp_path):
    exchange, out = tmp_path / "questions", tmp_path / "out"
    problem = Problem("people", make_conversations(), people=People(exchange, ("anna", "ben")))
    chosen = settings(("dual",), seeds=1, budget=8)
    with pytest.raises(AnswersAwaited):
        comparison.compare(problem, chosen, out)
    rows = answers_of(exchange, 1)
    path = exchange / "round-0001.answers.jsonl"
    for row, word in zip(rows, ["left"] * 4 + ["skip", "Discarded", "", "draft"], strict=True):
        row["answer"] = word
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(AnswersAwaited) as waiting:  # what is empty or a draft stays open
        comparison.compare(problem, chosen, out)
    assert (waiting.value.round, waiting.value.open, waiting.value.asked) == (1, 2, 8)
    rows[6]["answer"] = rows[7]["answer"] = "tie"
    rows[4]["answer"] = "right"  # too late: it was given up
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(AnswersAwaited) as waiting:  # two others take the place of the two
        comparison.compare(problem, chosen, out)
    assert (waiting.value.round, waiting.value.open, waiting.value.asked) == (2, 2, 10)
    answers_of(exchange, 2, "skip")  # a whole round may be declined
    with pytest.raises(AnswersAwaited) as waiting:
        comparison.compare(problem, chosen, out)
    assert (waiting.value.round, waiting.value.open, waiting.value.asked) == (3, 2, 12)
    answers_of(exchange, 3)
    assert comparison.compare(problem, chosen, out)["methods"]["dual"]["labels"] == [8]
    with Ledger(out / "campaign.sqlite") as ledger:
        assert len(ledger.withdrawn("dual/0")) == 4


def test_answers_not_read_yet_are_taken_before_questions_are_given_up(tmp_path):
    exchange, out = tmp_path / "questions", tmp_path / "out"
    problem = Problem("people", make_conversations(), people=People(exchange, ("anna", "ben")))
    chosen = settings(("dual",), seeds=1, budget=8)
    with pytest.raises(AnswersAwaited):
        comparison.compare(problem, chosen, out)
    answers_of(exchange, 1)
    path = exchange / "round-0001.answers.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:5]))
    with pytest.raises(AnswersAwaited) as waiting:  # the first call that sees these answers gives up the rest
        comparison.compare(problem, chosen, out, give_up=True)
    assert (waiting.value.round, waiting.value.open, waiting.value.asked) == (2, 3, 11)


@pytest.mark.parametrize("answered", [5, 8])  # the round is open, or over
def test_an_answer_changed_after_it_was_taken_is_refused(tmp_path, answered):
    exchange, out = tmp_path / "questions", tmp_path / "out"
    problem = Problem("people", make_conversations(), people=People(exchange, ("anna", "ben")))
    chosen = settings(("dual",), seeds=1, budget=14)
    with pytest.raises(AnswersAwaited):
        comparison.compare(problem, chosen, out)
    answers_of(exchange, 1)
    path = exchange / "round-0001.answers.jsonl"
    rows = path.read_text().splitlines(keepends=True)[:answered]
    path.write_text("".join(rows))
    with pytest.raises(AnswersAwaited):
        comparison.compare(problem, chosen, out)
    path.write_text("".join(rows[:-1]) + rows[-1].replace("left", "right"))
    with pytest.raises(ValueError, match=r"round 1: teacher '\w+' answers otherwise on conversation"):
        comparison.compare(problem, chosen, out)
    path.write_text("".join(rows[:-1]))  # an answer taken may leave the file
    with pytest.raises(AnswersAwaited):
        comparison.compare(problem, chosen, out)


def test_people_answer_one_method_and_seed(tmp_path):
    problem = Problem("people", make_conversations(), people=People(tmp_path, ("anna",)))
    with pytest.raises(ValueError, match="people answer one method with one seed"):
        comparison.compare(problem, settings(("dual", "uniform"), seeds=1), tmp_path / "out")
