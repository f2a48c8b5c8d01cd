"""The pages of docs/ name files, commands, counters and routes that exist; one command refreshes them."""

import importlib.util
import json
import re
from pathlib import Path

import numpy as np
import pytest

import dal_native as dn

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted((ROOT / "docs").glob("*.md"))


@pytest.fixture
def growth(monkeypatch):
    monkeypatch.syspath_prepend(ROOT)
    from benchmarks import growth

    return growth


@pytest.fixture(scope="module")
def cost():
    return (ROOT / "docs" / "cost.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_and_files_exist(page):
    text = page.read_text(encoding="utf-8")
    for name in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (page.parent / name).exists(), name
    for name in re.findall(r"`((?:benchmarks|csrc|tests|docs)/[\w./-]*)`", text):
        if (ROOT / name.split("/")[0]).is_dir():  # the tests may run beside a wheel, without csrc
            assert (ROOT / name).exists(), name


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_commands_exist(page, monkeypatch):
    monkeypatch.syspath_prepend(ROOT)
    modules = re.findall(r"python -m (benchmarks[\w.]*)", page.read_text(encoding="utf-8"))
    assert all(importlib.util.find_spec(module) for module in modules), modules


def test_commands_of_the_page_parse(cost, growth, monkeypatch):
    """The commands in the block take their options: stopped where measuring would begin."""
    from benchmarks.peers import __main__ as peers

    class Measuring(Exception):
        pass

    def stop(*_, **__):
        raise Measuring

    monkeypatch.setattr(growth, "measure", stop)
    monkeypatch.setattr(peers.side_by_side, "compare", stop)
    (block,) = re.findall(r"^```sh\n(.*?)^```$", cost, flags=re.M | re.S)
    programs = {"benchmarks.growth": growth.main, "benchmarks.peers": peers.main}
    monkeypatch.chdir(ROOT)
    for line in block.splitlines():
        _, _, module, *arguments = line.split()
        with pytest.raises(Measuring):
            programs[module](arguments)


def first_column(text, head):
    table = text.split(f"| {head} |")[1].split("\n\n")[0]
    return set(re.findall(r"^ *\| `(\w+)`", table, flags=re.M))


def test_counters_and_routes_are_explained(cost):
    x = np.random.default_rng(0).standard_normal((400, 3))
    selector, seen = dn.Selector(x), set()
    for _round in range(2):
        batch = selector.select(np.ones(3), [1.0], np.eye(3), 5)
        seen.add(batch.counters["stages"][0])
    assert first_column(cost, "counter") == set(batch.counters)
    assert seen <= first_column(cost, "route")


def test_one_command_refreshes_the_page(growth, cost, monkeypatch, tmp_path):
    pytest.importorskip("matplotlib", reason="the plots need the extra plot")
    page = tmp_path / "cost.md"
    page.write_text(cost, encoding="utf-8")
    monkeypatch.setattr(growth, "AXES", {"T": ("labels T", [500, 2_000]), "K": ("completions K", [2, 4])})
    monkeypatch.setattr(growth, "RUNS", 1)
    monkeypatch.setattr(growth.common, "sgemm_speed", lambda: 1e11)
    arguments = ["--out", str(tmp_path), "--d", "8", "--shrink", "100"]
    growth.main(arguments)
    kept = (tmp_path / "cost.json").read_text()
    both = json.loads(kept)
    assert list(both) == ["T", "K"] and both["K"]["values"] == [2, 4]
    measured = both["T"]
    assert measured["values"] == [5, 20]
    assert {len(points) for points in measured["series"].values()} == {2}
    text = page.read_text(encoding="utf-8")
    block = text.split("<!-- begin growth in T -->\n")[1].split("<!-- end growth in T -->")[0]
    assert "(cost_T.svg)" in block and measured["commit"] in block and measured["machine"] in block
    assert "d = 8" in block and "| 20 |" in block
    assert "(cost_K.svg)" in text and (tmp_path / "cost_K.svg").exists()
    picture = (tmp_path / "cost_T.svg").read_text()
    assert "reads of the pool" in picture and "seconds" in picture and "labels T" in picture
    (tmp_path / "cost_T.svg").unlink()
    both["T"]["series"][growth.LOOP][1] = None  # left out where it would take too long
    (tmp_path / "cost.json").write_text(json.dumps(both))
    growth.main([*arguments, "--render", "--axes", "T"])
    assert page.read_text(encoding="utf-8").count("| not run |") == text.count("| not run |") + 1
    (tmp_path / "cost.json").write_text(kept)
    growth.main([*arguments, "--render"])
    assert page.read_text(encoding="utf-8") == text
    assert (tmp_path / "cost_T.svg").read_text() == picture


def test_a_page_without_the_part_is_refused(growth, tmp_path):
    from benchmarks import common

    page = tmp_path / "cost.md"
    page.write_text("<!-- begin peers -->\n")
    with pytest.raises(ValueError, match="no part 'peers'"):
        common.refresh(page, "peers", "text")
    assert page.read_text() == "<!-- begin peers -->\n"
