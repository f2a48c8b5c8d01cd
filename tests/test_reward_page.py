"""docs/reward.md: its plots and tables come from one command."""

import json
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


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
