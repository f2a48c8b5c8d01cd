"""benchmarks.policy_page: its plots and tables come from one command."""

import json
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def maker(monkeypatch):
    monkeypatch.syspath_prepend(ROOT)
    from benchmarks import policy_page

    return policy_page


def test_one_command_refreshes_the_page(maker, tmp_path):
    pytest.importorskip("matplotlib", reason="the plots need the extra plot")
    page, names = tmp_path / "page.md", ["settings", "storage", "cooling"]
    page.write_text("".join(f"<!-- begin {name} -->\n<!-- end {name} -->\n" for name in maker.PARTS))
    maker.main(["--page", str(page), "--small", "--parts", *names])
    found, text = json.loads(page.with_suffix(".json").read_text()), page.read_text()
    assert sorted(p.name for p in tmp_path.glob("*.svg")) == sorted(f"page_{name}.svg" for name in names)
    for row in found["settings"]["rows"]:
        for tau in ("0.0", "0.1"):
            assert row[tau]["converged"]
            assert row[tau]["gap"] <= maker.RTOL
    assert all(row[tau]["same"] for row in found["storage"]["rows"] for tau in ("0.0", "0.1"))
    for points in found["cooling"]["series"].values():
        for tau, objective, value in points:
            assert -1e-6 <= value <= objective + 1e-6 <= tau * np.log(4) + 2e-6
    maker.main(["--page", str(page), "--small", "--render", "--parts", *names])
    assert page.read_text() == text


def test_the_conic_solver_stands_beside(maker, tmp_path):
    pytest.importorskip("cvxpy", reason="cvxpy is not installed: it comes with the extra test")
    pytest.importorskip("matplotlib", reason="the plots need the extra plot")
    page = tmp_path / "page.md"
    page.write_text("<!-- begin conic -->\n<!-- end conic -->\n")
    maker.main(["--page", str(page), "--small", "--parts", "conic"])
    for row in json.loads(page.with_suffix(".json").read_text())["conic"]["rows"]:
        assert row["apart"] <= 1e-6 + row["gap"]


def test_the_page_names_its_parts(maker):
    text = (ROOT / "docs" / "policy.md").read_text()
    for name in maker.PARTS:
        assert text.count(f"<!-- begin {name} -->") == text.count(f"<!-- end {name} -->") == 1
