"""The side by side of peers: what a peer answers is compared, and a peer that cannot answer says why."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(ROOT)
    from benchmarks.peers import __main__ as program
    from benchmarks.peers import environments, exchange, side_by_side

    class Modules:
        pass

    found = Modules()
    found.program, found.environments = program, environments
    found.exchange, found.side_by_side = exchange, side_by_side
    return found


@pytest.fixture
def this_python(benchmarks, monkeypatch):
    """Peers run in the environment of the tests: NumPy is there, the others are not."""
    monkeypatch.setattr(benchmarks.environments, "python_of", lambda name, folder: Path(sys.executable))


def test_features_make_the_same_problem(benchmarks):
    rng = np.random.default_rng(0)
    x, half = rng.standard_normal((9, 4)).astype(np.float32), rng.standard_normal((4, 6))
    given = benchmarks.exchange.Given(
        x, np.zeros(9), np.ones((1, 1)), np.zeros(4), np.eye(4) + half @ half.T, rng.random(9), 3
    )
    f, y = given.features("float64"), x.astype(np.float64)
    grown = given.matrix + (y * given.weight[:, None]).T @ y
    direct = np.linalg.slogdet(grown)[1] - np.linalg.slogdet(given.matrix)[1]
    assert np.linalg.slogdet(np.eye(4) + f.T @ f)[1] == pytest.approx(direct, rel=1e-12)


def test_problem_survives_the_folder(benchmarks, tmp_path):
    names = ("differences", "category", "rationality", "reward", "matrix", "weight")
    given = benchmarks.exchange.Given(*[np.full((2, 2), k, np.float32) for k in range(len(names))], size=5)
    benchmarks.exchange.hand_over(tmp_path, given)
    back = benchmarks.exchange.take_over(tmp_path, benchmarks.exchange.Given)
    assert back.size == 5
    assert all(np.array_equal(getattr(back, name), getattr(given, name)) for name in names)


def test_numpy_loop_beside_ours(benchmarks, this_python, tmp_path, capsys):
    out, page = tmp_path / "peers.json", tmp_path / "page.md"
    page.write_text("above\n<!-- begin peers -->\nold\n<!-- end peers -->\nbelow\n")
    wanted = ["NumPy loop", "bmdal-reg MaxDet", "submodlib LogDeterminant"]
    files = ["--out", str(out), "--page", str(page)]
    benchmarks.program.main(
        ["--sizes", "400x8x5", "--pairs", "2", "--limit", "100", "--only", *wanted, *files]
    )
    (problem,) = json.loads(out.read_text())["problems"]
    loop, *absent = problem["peers"]
    assert loop["same_picks"] and loop["first_difference"] is None
    assert abs(loop["log_det_short"]) < 1e-9
    assert loop["version"] == f"numpy {np.__version__}"
    assert len(loop["ratios"]) == 2 and min(loop["ratios"]) > 0
    assert ["No module named" in peer["failed"] for peer in absent] == [True, True]
    text = page.read_text()
    assert text.startswith("above\n<!-- begin peers -->\n") and text.endswith("<!-- end peers -->\nbelow\n")
    assert "old" not in text
    assert "the same, in order" in text and "no figure: ended with status 1" in text
    assert capsys.readouterr().out.split("\n\n", 1)[1].strip() in text


def test_other_picks_are_told(benchmarks):
    from benchmarks import common

    p = common.pool_problem(400, 8)
    import dal_native as dn

    weight = dn.best_teacher(dn.margin(p.pool(), p.reward), p.category, p.rationality)[1]
    ours = dn.select_batch(p.pool(), p.reward, p.rationality, p.matrix, 4)
    picks = ours.conversation.tolist()
    worst = int(np.argmin(weight))
    told = benchmarks.side_by_side._same_picks(ours, [*picks[:3], worst], p, weight)
    assert (told["same_picks"], told["first_difference"], told["same_set"]) == (False, 3, False)
    assert told["log_det_short"] > 0
    swapped = benchmarks.side_by_side._same_picks(ours, [picks[1], picks[0], *picks[2:]], p, weight)
    assert (swapped["first_difference"], swapped["same_set"]) == (0, True)
    assert swapped["log_det_short"] == pytest.approx(0, abs=1e-12)
    words = benchmarks.side_by_side._picks_in_words
    assert words(told).startswith("differ from pick 4 on; log det lower by ")
    assert words(swapped) == "differ from pick 1 on; the same set in another order"
    fewer = benchmarks.side_by_side._same_picks(ours, picks[:2], p, weight)
    assert (fewer["same_picks"], fewer["first_difference"]) == (False, None)


def test_dense_kernel_of_a_large_pool_is_not_tried(benchmarks, this_python, tmp_path):
    peer = benchmarks.side_by_side.PEERS["submodlib LogDeterminant"]
    assert peer.too_large(3_000, 64, 16) is None
    assert "1,600 GB" in peer.too_large(200_000, 256, 64)


def test_silent_peer_is_ended(benchmarks, this_python, tmp_path, monkeypatch):
    monkeypatch.setattr(benchmarks.side_by_side.subprocess, "Popen", _sleeper(benchmarks))
    peer = benchmarks.side_by_side.PEERS["NumPy loop"]
    with (
        benchmarks.side_by_side.Running(peer, tmp_path, 0.2, None) as running,
        pytest.raises(benchmarks.side_by_side.Failed, match="no answer within"),
    ):
        running.answer()
    assert running.process.returncode is not None


def _sleeper(benchmarks):
    popen = benchmarks.side_by_side.subprocess.Popen
    return lambda command, **options: popen([command[0], "-c", "import time; time.sleep(60)"], **options)


def test_environment_that_cannot_be_made(benchmarks, tmp_path, monkeypatch):
    pins = tmp_path / "pins"
    pins.mkdir()
    (pins / "nobody.txt").write_text(f"no-such-package @ file://{tmp_path}/absent.whl\n")
    monkeypatch.setattr(benchmarks.environments, "REQUIREMENTS", pins)
    with pytest.raises(benchmarks.environments.NotInstalled, match="absent"):
        benchmarks.environments.python_of("nobody", tmp_path / "made")
