"""benchmarks.pessimism: its plots and tables come from one command, its worlds are what they say."""

import json
from pathlib import Path

import numpy as np
import pytest

import dal_learn as dl

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def maker(monkeypatch):
    monkeypatch.syspath_prepend(ROOT)
    from benchmarks import pessimism

    return pessimism


def test_one_command_refreshes_the_page(maker, tmp_path, capsys):
    pytest.importorskip("matplotlib", reason="the plots need the extra plot")
    page = tmp_path / "page.md"
    page.write_text("".join(f"<!-- begin {name} -->\n<!-- end {name} -->\n" for name in maker.PARTS))
    arguments = ["--page", str(page), "--small"]
    maker.main(arguments)
    found, text = json.loads(page.with_suffix(".json").read_text()), page.read_text()
    pictures = {p.name: p.read_bytes() for p in tmp_path.glob("*.svg")}
    assert sorted(pictures) == sorted(f"page_{name}.svg" for name in maker.PARTS)
    for name, part in found.items():
        assert {"machine", "versions", "commit", "command"} <= set(part)
        assert f"(page_{name}.svg)" in text and text.count(part["commit"]) >= len(found)
    # a3 as the reference: nothing is lost in the end; a2: everything
    last = {name: rows[-1] for name, rows in found["zhu"]["loss"].items()}
    assert last["joint, nu = a3"][0] == pytest.approx(0.0, abs=1e-3)
    assert last["joint, nu = a2"][0] >= 0.9
    assert [len(rows) for rows in found["shift"]["worlds"].values()] == [2, 2]
    assert all(low <= middle <= high for middle, low, high in found["slope"]["slope"].values())
    maker.main([*arguments, "--render"])
    assert page.read_text() == text
    assert {p.name: p.read_bytes() for p in tmp_path.glob("*.svg")} == pictures
    again = tmp_path / "again.md"
    again.write_text(text)
    maker.main(["--page", str(again), "--small", "--seeds", "3", "--parts", "slope", "cost"])
    for name, key in (("slope", "loss"), ("cost", "settings")):
        assert json.loads(again.with_suffix(".json").read_text())[name][key] == found[name][key]


def test_labels_come_from_the_behaviour_policy(maker):
    """Each completion's share of the comparisons, and none of the second kind at disjoint support."""
    sizes = maker.Sizes(prompts=2, each=6, half=2)
    world = maker.World.drawn(np.random.default_rng(0), sizes)
    for shift in (0.0, 0.6, 1.0):
        pairs = world.pairs(np.random.default_rng(1), 40_000, shift)
        assert (pairs[:, 0] != pairs[:, 1]).all() and (pairs[:, 0] // 6 == pairs[:, 1] // 6).all()
        share = np.bincount(pairs.ravel(), minlength=12) / pairs.size
        np.testing.assert_allclose(share, world.behaviour(shift) / 2, atol=0.005)
        assert world.behaviour(shift).sum() == pytest.approx(2)


def test_losses_are_shares_of_what_there_is_to_gain(maker):
    world = maker.World.drawn(np.random.default_rng(0), maker.SMALL, 1.5)
    reward = world.phi @ world.theta
    assert world.loss(maker.chosen(world, reward)) == 0.0
    assert world.loss(np.full(len(reward), 1 / world.each)) == pytest.approx(1.0)
    first = world.first_kind.astype(float)
    assert world.phi[world.first_kind, maker.SMALL.half :].any() == np.False_
    assert world.behaviour(1.0) == pytest.approx(first * 2 / world.each)
    away = dl.mean_features(world.phi, world.offsets, maker.chosen(world, reward)) - world.phi.mean(axis=0)
    assert world.distance_to_best(4 * np.eye(world.d), world.phi.mean(axis=0)) == pytest.approx(
        np.linalg.norm(away) / 2
    )


@pytest.mark.parametrize("trouble", ["none", "copied", "tastes", "rationalities", "lapses"])
def test_many_labels_lead_to_the_theta_that_is_to_be_covered(maker, trouble):
    """The target of a coverage is what the fit converges to, whatever is wrong with the labels."""
    sizes = maker.Sizes(prompts=8, each=6, half=2)
    world = maker.World.drawn(np.random.default_rng(3), sizes)
    many = {"copied": 120_000, "tastes": 60_000}.get(trouble, 30_000)
    found = [maker._troubled(world, np.random.default_rng(seed), trouble, many) for seed in range(6)]
    errors = np.array([model.coef_ - best for model, best in found])
    size = np.linalg.norm([best for _, best in found], axis=1).mean()
    # twelve teachers' tastes average to within 0.4 / sqrt(12) in each direction, six times over
    allowed = 0.4 / np.sqrt(72) * 3 if trouble == "tastes" else 0.05
    assert np.abs(errors.mean(axis=0)).max() <= allowed * max(size, 1.0)


def test_copies_are_four_of_each(maker):
    world = maker.World.drawn(np.random.default_rng(0), maker.SMALL)
    model, best = maker._troubled(world, np.random.default_rng(0), "copied", 80)
    assert best is world.theta
    assert np.unique(model._case.asked.row, return_counts=True)[1].min() >= 4
    assert model._case.asked.count == 80


def test_a_page_that_is_not_there_is_refused(maker, tmp_path, capsys):
    with pytest.raises(SystemExit):
        maker.main(["--page", str(tmp_path / "none.md")])
    assert "does not exist" in capsys.readouterr().err
