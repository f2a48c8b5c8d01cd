"""The reward fit beside its peers: what is measured is what it is called, and every peer answers."""

import json
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def here(monkeypatch):
    monkeypatch.syspath_prepend(ROOT)


@pytest.fixture
def program(here):
    from benchmarks.reward_peers import __main__ as program

    return program


@pytest.fixture
def simulated(here, monkeypatch):
    from benchmarks.reward_peers import simulated

    monkeypatch.setattr(simulated, "HELD", 200)
    return simulated


SMALLEST = {"items": (8, 3, 120), "features": (150, 4, 3, 2, 2)}


def cases():
    import sys

    sys.path.insert(0, str(ROOT))
    try:
        from benchmarks.reward_peers import simulated

        return [(part, name) for part, each in simulated.PARTS.items() for name in each.peers]
    finally:
        sys.path.remove(str(ROOT))


@pytest.mark.parametrize(("part", "name"), cases())
def test_peer_answers(part, name, simulated):
    from benchmarks.peers import environments

    peer = simulated.PARTS[part].peers[name]
    if not environments.made(peer.environment or peer.module):
        pytest.skip(f"the environment of {name} is not there: python -m benchmarks.peers.environments")
    found = simulated.measure(part, SMALLEST[part], [name], seeds=1, limit=100.0)
    (row,) = found["methods"][name]
    assert "failed" not in row, row
    (mine,) = found["methods"][simulated.OURS]
    assert row["direction"] > 0.3 and mine["direction"] > 0.3
    assert 0 <= row["excess"] < 0.3 and row["ratio"] > 0
    if name == "choix opt_pairwise" or name.startswith("scikit-learn"):  # the same penalised objective
        (same,) = found["methods"]["ours, one rationality"]
        assert row["direction"] == pytest.approx(same["direction"], abs=1e-3)
        assert row["log_loss"] == pytest.approx(same["log_loss"], abs=1e-3)


def test_program_without_peers(program, simulated, tmp_path, capsys):
    out, page = tmp_path / "found.json", tmp_path / "page.md"
    page.write_text(
        "<!-- begin items -->\n<!-- end items -->\n<!-- begin features -->\n<!-- end features -->\n"
    )
    files = ["--out", str(out), "--page", str(page)]
    for part, size in SMALLEST.items():
        sizes = ["--sizes", "x".join(map(str, size))]
        program.main([part, *sizes, "--seeds", "2", "--only", *files])
    known = json.loads(out.read_text())
    for part, size in SMALLEST.items():
        (found,) = known[part]["sizes"]
        assert found["size"] == list(size)
        assert set(found["methods"]) == {
            "ours, default",
            "ours, joint MAP",
            "ours, one rationality",
            "the truth",
        }
        assert [row["excess"] for row in found["methods"]["the truth"]] == [0.0, 0.0]
        assert all(row["direction"] == pytest.approx(1) for row in found["methods"]["the truth"])
    text = page.read_text()
    assert "| 8 x 3 x 120 | ours, default |" in text and "| 150 x 4 x 3 x 2, 2 | ours, joint MAP |" in text
    program.main(["--render", "items", "features", *files])
    assert page.read_text() == text
    assert "Kendall tau" in capsys.readouterr().out


def test_peer_that_cannot_answer_is_told(simulated, tmp_path, monkeypatch):
    from benchmarks.peers import environments

    def absent(name, folder):
        raise environments.NotInstalled("no such version")

    monkeypatch.setattr(environments, "python_of", absent)
    name = "choix opt_pairwise"
    found = simulated.measure("items", SMALLEST["items"], [name], seeds=2, limit=10.0)
    assert found["methods"][name] == [{"failed": "not installed: no such version"}]  # asked once
    report = {"machine": "", "versions": "", "command": "", "commit": "", "sizes": [found]}
    assert "| no figure: not installed: no such version |" in simulated.markdown("items", report)


def test_unknown_part_is_refused(program, capsys):
    with pytest.raises(SystemExit):
        program.main(["labels"])
    assert "unknown part 'labels'" in capsys.readouterr().err


def test_target_at_a_small_size(program, tmp_path, here, monkeypatch):
    from benchmarks.peers import environments
    from benchmarks.reward_peers import target

    if not environments.made("scikit_learn"):
        pytest.skip("the environment of scikit-learn is not there: python -m benchmarks.peers.environments")
    monkeypatch.setattr(target, "SOLVERS", ("newton-cholesky",))
    out = tmp_path / "target.json"
    program.main(["target", "--sizes", "1000x4", "--pairs", "1", "--out", str(out)])
    found = json.loads(out.read_text())["target"]
    for each in found["tolerances"]:
        (row,) = each["solvers"]
        assert row["facts"]["gradient_in_sd"] <= target._goal(each)
        assert each["ours"]["gradient_in_sd"] <= each["tol"]
    assert [row["dtype"] for row in found["memory"]] == ["float64", "float32", "float16"]
    assert "whole joint fit" in target.markdown(found)


# --------------------------------------------------------------------------------------------------- measures


@pytest.fixture
def measures(here):
    from benchmarks.reward_peers import measures

    return measures


def test_measures_are_their_definitions(measures):
    rng = np.random.default_rng(0)
    chance, cluster = rng.random(400), rng.integers(0, 7, 400)
    chance[:3] = 0.5, 1.0, 0.0
    choice = (rng.random(400) < chance).astype(float)
    choice[2] = 1.0  # what was impossible
    found = measures.described({"a": chance, "b": 1 - chance}, choice, cluster, "a")
    loss = right = 0.0
    bins = {}
    for p, y in zip(chance, choice, strict=True):
        q = min(max(p, 1e-6), 1 - 1e-6)
        loss -= np.log(q if y else 1 - q)
        right += 0.5 if p == 0.5 else float((p > 0.5) == bool(y))
        bins.setdefault(min(int(10 * p), 9), []).append((p, y))
    gaps = [abs(np.mean([y for _, y in b]) - np.mean([p for p, _ in b])) * len(b) for b in bins.values()]
    expected = {"log_loss": loss / 400, "accuracy": right / 400, "calibration": sum(gaps) / 400}
    for name, value in expected.items():
        assert found["a"][name]["value"] == pytest.approx(value, rel=1e-12)
        low, high = found["a"][name]["interval"]
        assert low < high and found["a"][name]["change_interval"] == [0.0, 0.0]
        change = found["b"][name]["value"] - found["a"][name]["value"]
        assert found["b"][name]["change"] == pytest.approx(change, rel=1e-12)
    assert found["b"]["log_loss"]["change_interval"][0] > 0
    curve = measures.curve(chance, choice)
    assert sum(point["votes"] for point in curve) == 400
    assert curve[-1]["share"] == pytest.approx(np.mean([y for _, y in bins[9]]))


def test_interval_covers_the_mean_over_clusters(measures):
    """Bootstrap over clusters against the standard error of a mean of independent cluster means."""
    rng = np.random.default_rng(1)
    cluster = np.repeat(np.arange(200), 5)
    choice = np.repeat((rng.random(200) < 0.3).astype(float), 5)  # votes of a cluster are the same
    found = measures.described({"coin": np.full(1000, 0.6)}, choice, cluster, "coin")["coin"]["accuracy"]
    low, high = found["interval"]
    assert high - low == pytest.approx(2 * 1.96 * np.sqrt(0.3 * 0.7 / 200), rel=0.2)


def test_repeats_are_counted(here):
    from benchmarks.reward_peers.scikit_activeml import _repeat

    assert _repeat(np.array([1, 0, 1, 1, 1]), np.array([0, 0, 2, 0, 0])).tolist() == [0, 0, 0, 1, 2]


def test_crowds_have_their_truth(simulated, monkeypatch):
    monkeypatch.setattr(simulated, "HELD", 50_000)
    for crowd in (simulated.item_crowd(0, 20, 5, 10), simulated.feature_crowd(0, 10, 3, 4, 2, 1)):
        assert crowd.log_rationality.mean() == pytest.approx(0, abs=1e-12)
        gap = (crowd.choice - crowd.chance).mean()
        assert abs(gap) < 4 * 0.5 / np.sqrt(len(crowd.choice))
    assert crowd.given.asked().shape == (10, 3)
    thrice = simulated.feature_crowd(0, 10, 3, 4, 2, 3).given
    assert thrice.conversation.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3]
    assert np.array_equal(thrice.asked(), thrice.rows[thrice.conversation])


# ------------------------------------------------------------------------------------------------- real votes


@pytest.fixture
def folder(tmp_path):
    """Twelve prompts with three responses each; two teachers like what has many words, one does not care."""
    rng = np.random.default_rng(0)
    pairs, votes = [], ["id,teacher,label,rep"]
    for p in range(12):
        texts = [" ".join(["word"] * int(k)) + f" {p}" for k in rng.permutation([1, 4, 9])]
        for a, b in ((0, 1), (0, 2), (1, 2)):
            name = f"{p}-{a}-{b}"
            ids = {"a_id": f"{p}-{a}", "b_id": f"{p}-{b}"}
            words = {"prompt": f"Say {p}.", "response_a": texts[a], "response_b": texts[b]}
            pairs.append({"id": name, "category": "xy"[p % 2], **words, **ids})
            label = float(len(texts[b]) > len(texts[a]))
            coin = rng.choice([0.0, 0.5, 1.0])
            votes += [f"{name},Ann,{label:g},0", f"{name},Bob,{label:g},0", f"{name},Cy,{coin:g},0"]
    target = tmp_path / "words"
    target.mkdir()
    (target / "pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)) + "\n")
    (target / "votes.csv").write_text("\n".join(votes) + "\n")
    return target


@pytest.fixture
def recorded(here):
    from benchmarks.reward_peers import recorded

    return recorded


def test_folds_hold_out_what_they_say(recorded, folder, tmp_path):
    votes = recorded.read(folder, tmp_path / "cache", "hashing:16")
    for scheme in recorded.SCHEMES:
        fold = recorded.folds(votes, scheme, seed=0)
        assert set(fold) == set(range(recorded.FOLDS))
        for k in range(recorded.FOLDS):
            seen, held = fold != k, fold == k
            if scheme == "prompt":
                prompt = votes.prompt[votes.conversation]
                assert not set(prompt[seen]) & set(prompt[held])
                assert not recorded.known(votes, seen)[held].any()
            else:
                cell = votes.conversation * votes.teachers + votes.teacher
                assert not set(cell[seen]) & set(cell[held])
                where = recorded.known(votes, seen)
                told = set(votes.conversation[seen & (votes.choice != 0.5)])
                assert all((i in told) == yes for i, yes in zip(votes.conversation, where, strict=True))
    problem = votes.problem(seen, held, 1.0)
    assert set(problem.choice) == {0.0, 1.0}
    assert len(votes.problem(seen, held, 1.0, ties=True).choice) == seen.sum()


def test_held_out_votes_are_predicted(recorded, program, folder, tmp_path):
    pytest.importorskip("matplotlib", reason="the plots need the extra plot")
    out, page = tmp_path / "found.json", tmp_path / "page.md"
    page.write_text("<!-- begin data -->\n<!-- end data -->\n")
    where = ["--data", str(folder.parent), "--cache", str(tmp_path / "cache"), "--encoder", "hashing:16"]
    files = ["--out", str(out), "--page", str(page)]
    program.main(["data", "--sets", "words", "absent", "--only", *where, *files])
    known = json.loads(out.read_text())["data"]
    assert "there is no folder absent" in known["absent"]["skipped"]
    votes = recorded.read(folder, None, "hashing:16")
    for scheme, found in known["words"]["schemes"].items():
        models = found["models"]
        told = int(votes.told().sum())
        assert found["votes"] == told if scheme == "prompt" else 0.8 * told < found["votes"] < told
        assert found["ties"] == len(votes.choice) - told > 0
        assert (
            "ours, per teacher, ties modelled" in models and "ours, per teacher, position bias" not in models
        )
        assert ("ours on items, per teacher" in models) == (scheme == "vote")
        assert models[recorded.BASE]["log_loss"]["change"] == 0
        assert models["ours, per teacher"]["accuracy"]["value"] > 0.7
        assert models["ours, per teacher"]["log_loss"]["change"] < 0  # Cy is a coin
    text = page.read_text()
    assert "### words" in text and "Skipped: there is no folder absent" in text
    assert "| ours, per teacher, evidence |" in text
    pictures = sorted(tmp_path.glob("*.svg"))
    assert [f"({path.name})" in text for path in pictures] == [True, True]
    before = [path.read_text() for path in pictures]
    assert "change in log-loss" in before[1] and "predicted chance of b" in before[0]
    program.main(["data", "--render", *files])
    assert page.read_text() == text
    assert [path.read_text() for path in pictures] == before


def test_signs_against_gold(here, folder, tmp_path):
    from benchmarks.reward_peers import signs

    right = np.array([True] * 9 + [False] * 9 + [True, False])
    cell = np.array([0] * 9 + [1] * 9 + [2, 2])
    sign, votes = signs.truth(right, cell // 2, cell % 2, (2, 2))
    assert sign.tolist() == [[0, 0], [0, 0]]  # nine of nine is three standard errors of a coin, not more
    assert votes.tolist() == [[9, 9], [2, 0]]
    sign, _ = signs.truth(np.repeat(right, 2), np.repeat(cell // 2, 2), np.repeat(cell % 2, 2), (2, 2))
    assert sign.tolist() == [[1, -1], [0, 0]]
    pairs = [json.loads(line) for line in (folder / "pairs.jsonl").read_text().splitlines()]
    for pair in pairs:  # the truth is what Ann and Bob oppose
        pair["gold"] = float(len(pair["response_b"]) < len(pair["response_a"]))
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)) + "\n")
    found = signs.measure(folder, None, "hashing:16")
    assert found["below"] == [2, 2] and sum(found["sure"]) >= 4
    alone, *_, all_gold = found["runs"]
    assert sum(alone["agree_below"]) == 0  # votes alone take the majority's side
    assert sum(all_gold["agree_below"]) == 4
    table = signs.markdown(found | {"machine": "", "versions": "", "command": "", "commit": ""})
    assert "gold on 100% (36 pairs)" in table and "4 of 4 below" in table
