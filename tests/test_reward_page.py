"""docs/reward.md: its example runs, what it names exists, its plots and tables come from one command."""

import inspect
import json
import re
from pathlib import Path

import pytest

import dal_learn as dl
from dal_learn.flags import FEW, FLAG_NAMES

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "reward.md"


@pytest.fixture(scope="module")
def page():
    return PAGE.read_text(encoding="utf-8")


def blocks(text, language):
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.M | re.S)


def test_example_runs(page, capsys):
    (example,) = blocks(page, "python")
    names = {}
    exec(compile(example, PAGE.name, "exec"), names)
    printed = capsys.readouterr().out.splitlines()
    assert [line for line in printed[:12] if "clicks" in line] == [printed[7]]
    low, high = names["model"].rationality_profile(7, 0)
    assert low < 0 < high


def test_every_parameter_and_flag_is_explained(page):
    for name in inspect.signature(dl.RewardModel).parameters:
        assert f"`{name}" in page or name in ("warm_start", "max_iter", "tol"), name
    table = page.split("| flag | says |")[1].split("\n\n")[0]
    assert set(re.findall(r"^\| ([a-z ]+) \|", table, flags=re.M)) == {*FLAG_NAMES.values(), FEW}


def test_names_of_results_exist(page):
    model = dl.RewardModel().fit([[1.0], [2.0]], [1, 0], teacher=[0, 1])
    for name in set(re.findall(r"`(\w+_)`", page)):
        assert hasattr(model, name), name
    for name in ("coef_covariance", "reward_interval", "rationality_profile", "partial_fit", "fit_rankings"):
        assert name in page and callable(getattr(model, name))
    for name in set(re.findall(r"`dl\.(\w+)`", page)):
        assert hasattr(dl, name), name


def test_chances_in_words_are_right(page):
    table = page.split("| rationality | right where")[1].split("\n\n")[0]
    rows = re.findall(r"^\| ([-\d.]+) \| (\d+) % \| (\d+) % \|", table, flags=re.M)
    assert len(rows) == 7
    for rationality, *percents in rows:
        for odds, percent in zip((3.0, 9.0), percents, strict=True):
            right = odds ** float(rationality)
            assert round(100 * right / (1 + right)) == int(percent)


def test_figures_are_there_and_small(page, maker):
    for name in maker.PARTS:
        part = page.split(f"<!-- begin {name} -->")[1].split(f"<!-- end {name} -->")[0]
        assert "at commit" in part and f"(reward_{name}.svg)" in part
        assert PAGE.with_name(f"reward_{name}.svg").stat().st_size < 60_000


def test_command_of_the_page_parses(page, maker, monkeypatch):
    class Simulating(Exception):
        pass

    def stop():
        raise Simulating

    monkeypatch.setattr(maker.common, "provenance", stop)
    monkeypatch.chdir(ROOT)
    (block,) = blocks(page, "sh")
    (line,) = block.splitlines()
    assert line.startswith("python -m benchmarks.reward_page ")
    with pytest.raises(Simulating):
        maker.main(line.split()[3:])


@pytest.fixture
def maker(monkeypatch):
    monkeypatch.syspath_prepend(ROOT)
    from benchmarks import reward_page

    return reward_page


def test_one_command_refreshes_the_page(maker, tmp_path, capsys):
    pytest.importorskip("matplotlib", reason="the plots need the extra plot")
    page = tmp_path / "page.md"
    page.write_text("".join(f"<!-- begin {name} -->\n<!-- end {name} -->\n" for name in maker.PARTS))
    arguments = ["--page", str(page), "--small", "--seeds", "2"]
    maker.main(arguments)
    found, text = json.loads(page.with_suffix(".json").read_text()), page.read_text()
    pictures = {p.name: p.read_bytes() for p in tmp_path.glob("*.svg")}
    assert sorted(pictures) == sorted(f"page_{name}.svg" for name in maker.PARTS)
    for name, part in found.items():
        assert {"machine", "versions", "commit", "command"} <= set(part)
        assert f"(page_{name}.svg)" in text and text.count(part["commit"]) >= len(found)
    groups, odd = found["shrinkage"]["groups"], found["zero"]["teachers"]
    assert [group["teachers"] for group in groups.values()] == [2 * maker.SMALL.alike] * len(groups)
    assert all(
        len(run["accuracy"]) == len(run["labels"]) for run in found["confirming"]["runs"]["marginal, dual"]
    )
    assert all(0 < row["ends"][0] < row["ends"][1] for row in odd.values())
    assert odd["0"]["ends"][2] < 0 < odd["0"]["ends"][3]
    assert "2 of 2" in text.split("<!-- begin zero -->")[1]
    maker.main([*arguments, "--render"])
    assert page.read_text() == text
    assert {p.name: p.read_bytes() for p in tmp_path.glob("*.svg")} == pictures
    again = tmp_path / "again.md"
    again.write_text(text)
    maker.main(["--page", str(again), "--small", "--seeds", "2", "--parts", "shrinkage"])
    assert json.loads(again.with_suffix(".json").read_text())["shrinkage"]["groups"] == groups


def test_a_page_that_is_not_there_is_refused(maker, tmp_path, capsys):
    with pytest.raises(SystemExit):
        maker.main(["--page", str(tmp_path / "none.md")])
    assert "does not exist" in capsys.readouterr().err
