"""The harness of docs/learning.md: crowds are what they say, a killed run goes on, tables add up."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def learning(monkeypatch):
    monkeypatch.syspath_prepend(ROOT)
    from benchmarks.learning import __main__ as program
    from benchmarks.learning import crowds, loop, page

    class Modules:
        pass

    found = Modules()
    found.program, found.crowds, found.loop, found.page = program, crowds, loop, page
    return found


@pytest.mark.parametrize("name", ["table", "mild", "wide", "categories", "extreme", "adversaries"])
def test_crowds_are_what_the_setting_says(learning, name):
    setting = dataclasses.replace(learning.crowds.SETTINGS[name], n=900, held_out=100, m=400)
    made = learning.crowds.crowd(setting, seed=3)
    rows = made.conversations.differences()
    assert rows.shape == (1_000, setting.d)
    assert np.mean(np.sum(rows**2, axis=1)) == pytest.approx(1.0, rel=1e-6)
    margin = rows @ made.reward
    assert np.std(margin) == pytest.approx(setting.margin, rel=1e-6)
    assert np.array_equal(made.conversations.gold == 1, margin > 0)
    assert not set(made.train) & set(made.held_out)
    assert made.rationality.shape == (400, setting.C)
    logs = np.log(np.abs(made.rationality))
    assert np.std(logs) == pytest.approx(setting.spread, rel=0.1)
    assert np.mean(made.rationality < 0) == setting.opposed
    if setting.C > 1:
        assert np.corrcoef(logs[:, 0], logs[:, 1])[0, 1] == pytest.approx(setting.common_share, abs=0.12)
    again = learning.crowds.crowd(setting, seed=3)
    assert np.array_equal(again.rationality, made.rationality) and np.array_equal(again.reward, made.reward)
    assert not np.array_equal(learning.crowds.crowd(setting, seed=4).reward, made.reward)


def test_texts_that_are_not_at_hand_are_skipped(learning, monkeypatch, tmp_path):
    monkeypatch.setattr(learning.crowds, "DATA", tmp_path)
    cells = learning.loop.Cells(tmp_path / "out.json")
    settings = {"texts": learning.crowds.SETTINGS["texts"]}
    learning.loop.measure(cells, settings, ["uniform", "dual"], range(2))
    report = json.loads((tmp_path / "out.json").read_text())
    assert report["cells"] == [] and "DAL_SHARED_DATA" in report["skipped"]["texts"]


def test_texts_become_conversations(learning, monkeypatch, tmp_path):
    (tmp_path / "tiny").mkdir()
    words = ["red", "green", "blue", "black", "white", "grey"]
    pairs = [
        {
            "id": f"{a}-{b}",
            "prompt": "Which colour?",
            "response_a": a,
            "response_b": b,
            "a_id": a,
            "b_id": b,
            "category": "colours",
            "source": "tiny",
            "gold": 1,
        }
        for a in words
        for b in words
        if a < b
    ]
    (tmp_path / "tiny" / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    monkeypatch.setattr(learning.crowds, "DATA", tmp_path)
    rows = learning.crowds.text_differences("tiny", 3, encoder="hashing:32")
    assert rows.shape == (15, 3)
    energy = np.sum(rows.astype(np.float64) ** 2, axis=0)
    assert np.all(np.diff(energy) <= 1e-6) and abs(rows[:, 0] @ rows[:, 1]) < 1e-4


def test_options_of_a_method(learning):
    setting = learning.crowds.SETTINGS["adversaries"]
    truth = learning.crowds.crowd(dataclasses.replace(setting, n=20, held_out=10), seed=0)
    made = learning.loop.asking("dual:repeats=2,fit=joint_map,tol=0.001", setting, 5, truth)
    assert (made.method, made.repeats, made.fit, made.seed) == ("dual", 2, "joint_map", 5)
    model = made.model()
    assert (model.tol, model.method, model.signed) == (0.001, "joint_map", True)
    known = learning.loop.asking("dual:known", setting, 0, truth).model()
    assert np.array_equal(known.rationality, truth.rationality)
    with pytest.raises(ValueError, match="'mood' is no parameter"):
        learning.loop.asking("dual:mood=3", setting, 0, truth)


def test_run_that_was_killed_goes_on(learning, tmp_path, monkeypatch, capsys):
    small = {"small": learning.crowds.SMALL["small"]}
    whole, killed = learning.loop.Cells(None), learning.loop.Cells(tmp_path / "out.json")
    learning.loop.measure(whole, small, ["uniform", "dual"], range(2))
    learning.loop.measure(killed, small, ["uniform", "dual"], range(1))
    measured = []
    run_cell = learning.loop.run_cell
    monkeypatch.setattr(learning.loop, "run_cell", lambda *a: measured.append(a[1:]) or run_cell(*a))
    resumed = learning.loop.Cells(tmp_path / "out.json")
    learning.loop.measure(resumed, small, ["uniform", "dual"], range(2))
    assert measured == [("uniform", 1), ("dual", 1)]

    def without_times(cells):
        return [{k: v for k, v in c.items() if not k.startswith("seconds_")} for c in cells.report["cells"]]

    assert without_times(resumed) == without_times(whole)
    assert json.loads((tmp_path / "out.json").read_text()) == resumed.report
    monkeypatch.setattr(learning.loop.common, "commit", lambda: "another")
    learning.loop.measure(resumed, small, ["dual"], range(1))
    assert measured[-1] == ("dual", 0) and len(resumed.report["cells"]) == 4


def test_smallest_size(learning, tmp_path, capsys):
    page, out = tmp_path / "page.md", tmp_path / "out.json"
    parts = [f"<!-- begin {name} -->\n<!-- end {name} -->\n" for name in ("loop", "spread")]
    page.write_text("".join(parts), encoding="utf-8")
    arguments = ["--settings", "small", "spread 1", "--seeds", "2", "--out", str(out)]
    learning.program.main(arguments)
    report = json.loads(out.read_text())
    assert {"machine", "versions", "commit", "command"} <= set(report)
    wanted = 2 * (len(learning.loop.METHODS) + len(learning.loop.SPREAD_METHODS))
    assert len(report["cells"]) == wanted
    assert all(0.5 < c["accuracy"] <= 1 and c["labels"][-1] == 60 for c in report["cells"])
    printed = capsys.readouterr().out
    assert printed.count("accuracy 0.") + printed.count("accuracy 1.") == wanted
    pytest.importorskip("matplotlib", reason="the plots need the extra plot")
    learning.program.main([*arguments, "--render", "--page", str(page)])
    plots = {p.name: p.read_bytes() for p in tmp_path.glob("*.svg")}
    assert sorted(plots) == ["page_loop.svg", "page_spread.svg"]
    text = page.read_text(encoding="utf-8")
    assert all(words in text for words in ("dual, rationalities known", "1 - cosine", "page_spread.svg"))
    learning.program.main([*arguments, "--render", "--page", str(page)])
    assert page.read_text(encoding="utf-8") == text
    assert {p.name: p.read_bytes() for p in tmp_path.glob("*.svg")} == plots
    page.write_text(text + "<!-- begin levers -->\n<!-- end levers -->\n", encoding="utf-8")
    few = ["--settings", "small", "--methods", "dual", "uniform", "--seeds", "1", "--part", "levers"]
    learning.program.main([*few, "--out", str(out), "--render", "--page", str(page)])
    levers = page.read_text(encoding="utf-8").removeprefix(text)
    assert "Seeds 0 to 0" in levers and "| uniform |" in levers and "joint MAP" not in levers


def test_differences_are_paired(learning):
    def cell(method, seed, accuracy):
        return {"setting": "s", "method": method, "seed": seed, "accuracy": accuracy}

    values = {"dual": [0.9, 0.8, 0.7], "uniform": [0.8, 0.6, 0.4], "apo": [0.7, 0.6, 0.65]}
    cells = [cell(m, k, a) for m, given in values.items() for k, a in enumerate(given)]
    found = learning.page.Results([*cells, cell("uniform", 9, 0.1)])
    lead = found.difference("s", "dual", "uniform")
    assert (lead.mean, lead.seeds) == (pytest.approx(0.2), 3)
    assert lead.error == pytest.approx(0.1 / np.sqrt(3))
    assert lead.half == pytest.approx(4.302653 * lead.error, rel=1e-6)
    assert found.closest("s") == "apo"
    assert np.isnan(learning.page.Estimate.of([0.5]).error)
