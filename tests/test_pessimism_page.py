"""docs/pessimism.md: its example runs, its sentences agree with its figures, one command makes those."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

import dal_learn as dl

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "pessimism.md"


@pytest.fixture(scope="module")
def page():
    return PAGE.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def measured():
    return json.loads(PAGE.with_suffix(".json").read_text(encoding="utf-8"))


def test_example_runs(page, capsys):
    (example,) = re.findall(r"^```python\n(.*?)^```$", page, flags=re.M | re.S)
    exec(compile(example, PAGE.name, "exec"), {})
    nominal, bootstrap, calibrated, words = capsys.readouterr().out.splitlines()
    assert "nominal)" in nominal and "bootstrap, " in bootstrap and "calibrated, " in calibrated
    assert "the groups of labels (here 300) are independent" in words
    for name in set(re.findall(r"`(\w+)\(", page)):
        assert hasattr(dl, name), name


def test_figures_are_there_and_small(page, maker):
    for name in maker.PARTS:
        part = page.split(f"<!-- begin {name} -->")[1].split(f"<!-- end {name} -->")[0]
        assert "at commit" in part and f"(pessimism_{name}.svg)" in part
        assert PAGE.with_name(f"pessimism_{name}.svg").stat().st_size < 100_000


def test_command_of_the_page_parses(page, maker, monkeypatch):
    class Simulating(Exception):
        pass

    def stop():
        raise Simulating

    monkeypatch.setattr(maker.common, "provenance", stop)
    (block,) = re.findall(r"^```sh\n(.*?)^```$", page, flags=re.M | re.S)
    assert block.split()[:3] == ["python", "-m", "benchmarks.pessimism"]
    with pytest.raises(Simulating):
        maker.main(block.split()[3:])


def test_sentences_about_the_instance_agree_with_its_table(measured):
    loss = {name: [middle for middle, _ in rows] for name, rows in measured["zhu"]["loss"].items()}
    assert all(0.2 <= middle <= 0.4 for middle in loss["greedy"])  # about 0.3 at any number of labels
    for name in ("joint, nu = a3", "pointwise, nu = a3", "KL, nu = a3"):
        assert max(loss[name][-2:]) < 0.001 and loss[name][0] == pytest.approx(0.1, abs=0.002), name
    for name in ("joint, nu = a2", "joint, nu = mean of the actions"):
        assert min(loss[name]) > max(loss["greedy"]), name


def test_sentences_about_shift_agree_with_its_table(measured):
    shifts, worlds = measured["shift"]["shifts"], measured["shift"]["worlds"]
    mean = {w: {n: np.array([np.mean(r[n]) for r in rows]) for n in rows[0]} for w, rows in worlds.items()}
    worse, good = mean["worse"], mean["as good"]
    assert 0.2 < worse["greedy"].max() < 0.3 and worse["joint, ellipsoid"].max() < 0.035
    assert np.argmax(worse["greedy"]) in (4, 5) and worse["greedy"][-1] < worse["greedy"].max() / 2
    behind = good["joint, ellipsoid"] - good["greedy"]
    assert (behind[: shifts.index(0.9) + 1] > 0).all() and (behind[shifts.index(0.95) : -1] < 0).all()
    paid = worse["joint, calibrated"] - worse["joint, ellipsoid"]
    assert paid.max() == paid[shifts.index(0.98)] == pytest.approx(0.04, abs=0.005)
    for world in mean.values():
        assert (world["joint, policy"] - world["greedy"]).max() < 0.02
        several = [world[f"joint, {kind}"] for kind in ("ellipsoid", "policy", "bootstrap", "calibrated")]
        assert (world["pointwise, ellipsoid"][:-1] >= np.max(several, axis=0)[:-1] - 0.02).all()


def test_sentences_about_slopes_agree_with_their_table(measured):
    slopes = measured["slope"]["slope"]
    assert slopes["bound"][2] == pytest.approx(-0.5, abs=0.05)
    for name in ("greedy", "joint, ellipsoid", "joint, policy", "pointwise, ellipsoid"):
        assert slopes[name][2] < -0.9, name  # steeper than -1/2, by its interval
    ratio = [
        a[0] / b[0]
        for a, b in zip(*(measured["slope"]["loss"][n] for n in ("joint, ellipsoid", "greedy")), strict=True)
    ]
    assert 1.5 < np.median(ratio) < 2.6


def test_sentences_about_coverage_agree_with_their_table(measured):
    table = measured["coverage"]["table"]
    copied = [table["copied"][labels] for labels in ("240", "960")]
    assert all(row["ellipsoid: all"] < 0.5 for row in copied)
    for trouble, rows in table.items():
        for row in rows.values():
            assert min(row["bootstrap: all"], row["calibrated: all"]) >= 0.9, trouble
            assert min(row[f"{name}: greedy"] for name in ("bootstrap", "calibrated")) >= 0.95, trouble
    assert all(0.55 < row["policy: greedy"] < 0.8 for row in copied)
    assert all(0.85 <= row["no ridge term: all"] <= 0.95 for row in table["none"].values())


def test_sentences_about_cost_agree_with_their_table(measured):
    found = {
        row["words"]: {n: np.mean(v) for n, v in row["loss"].items()} for row in measured["cost"]["settings"]
    }
    for words in (
        "no shift, few labels",
        "no shift, radius doubled",
        "the same, reference in the second kind",
    ):
        assert found[words]["joint, ellipsoid"] > 0.6, words
    assert found["no shift, many labels"]["joint, ellipsoid"] < 0.005


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


@pytest.mark.parametrize("trouble", ["none", "adaptive", "copied", "tastes", "rationalities", "lapses"])
def test_many_labels_lead_to_the_theta_that_is_to_be_covered(maker, trouble):
    """The target of a coverage is what the fit converges to, whatever is wrong with the labels."""
    sizes = maker.Sizes(prompts=8, each=6, half=2)
    world = maker.World.drawn(np.random.default_rng(3), sizes)
    many = {"copied": 120_000, "tastes": 60_000, "adaptive": 1_200}.get(trouble, 30_000)
    found = [maker._troubled(world, np.random.default_rng(seed), trouble, many) for seed in range(6)]
    errors = np.array([model.coef_ - best for model, best in found])
    size = np.linalg.norm([best for _, best in found], axis=1).mean()
    # twelve teachers' tastes average to within 0.4 / sqrt(12) in each direction, six times over
    allowed = {"tastes": 0.4 / np.sqrt(72) * 3, "adaptive": 0.15}.get(trouble, 0.05)
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
