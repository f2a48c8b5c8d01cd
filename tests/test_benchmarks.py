"""Every benchmark runs at its smallest size with every other parameter, and what it tracks is as it should
be.
"""

import importlib
import inspect
import itertools
import json
import sys
from pathlib import Path

import numpy as np
import pytest

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks"
MODULES = sorted(p.stem for p in FOLDER.glob("*.py") if p.stem not in ("__init__", "common"))
#: The most that a tracked error may be.
ERROR = {
    "Margin": 1e-14,
    "Leverage": 1e-10,
    "UpdateLeverage": 1e-12,
    "BestTeacher": 1e-12,
    "InformationMatrix": 1e-13,
    "SoftplusMoments": 1e-10,
    "WeightedSum": 1e-12,
    "BestCompletions": 1e-12,
    "SoftmaxCompletions": 1e-11,
}


def benchmarks():
    sys.path.insert(0, str(FOLDER.parent))
    try:
        for stem in MODULES:
            module = importlib.import_module(f"benchmarks.{stem}")
            for name, item in vars(module).items():
                if name.startswith("_"):
                    continue
                if inspect.isclass(item) and item.__module__ == module.__name__:
                    methods = [m for m in dir(item) if m.startswith(("time_", "peakmem_", "track_"))]
                    yield from ((item, method) for method in methods)
                elif name.startswith("timeraw_"):
                    yield (None, item)
    finally:
        sys.path.remove(str(FOLDER.parent))


@pytest.mark.parametrize(("item", "method"), list(benchmarks()), ids=lambda x: getattr(x, "__name__", str(x)))
def test_smallest_size(item, method):
    if item is None:
        code = method()
        for part in [code] if isinstance(code, str) else code:
            compile(part, "timeraw", "exec")
        return
    if method == "time_sklearn":
        pytest.importorskip("sklearn", reason="the baseline needs the extra sklearn")
    for smallest in itertools.product(item.params[0][:1], *item.params[1:]):
        benchmark = item()
        benchmark.setup(*smallest)
        result = getattr(benchmark, method)(*smallest)
        getattr(benchmark, "teardown", lambda *_: None)(*smallest)
        if method == "track_error":
            assert result <= ERROR.get(item.__name__, 1e-6)
        elif method == "track_same_picks":
            assert result == 1.0, smallest
        elif method == "track_d_efficiency":
            assert 0 < result <= 1, smallest
        elif method.startswith("track_"):
            assert np.isfinite(result) and result >= 0, smallest


@pytest.mark.parametrize(
    ("part", "shrink"),
    [("small", 400), ("warm", 2_000), ("completions", 2_000), ("threads", 2_000), ("streamed", 1)],
)
def test_figures(part, shrink, monkeypatch, tmp_path, capsys):
    monkeypatch.syspath_prepend(FOLDER.parent)
    figures = importlib.import_module("benchmarks.figures")
    monkeypatch.setattr(figures.common, "sgemm_speed", lambda: 1e11)
    monkeypatch.setattr(figures, "RUNS", 1)
    size = ["--gigabytes", "0.004", "--memory", "0.001", "--folder", str(tmp_path)]
    figures.main([part, "--shrink", str(shrink), "--out", str(tmp_path / "out.json"), *size])
    report = json.loads((tmp_path / "out.json").read_text())
    assert {"machine", "versions", "commit", "command", part} <= set(report)
    assert part != "small" or report[part]["same_picks"]
    assert capsys.readouterr().out.count("\n") > 1


def test_figures_refuse_unknown_parts(monkeypatch, capsys):
    monkeypatch.syspath_prepend(FOLDER.parent)
    figures = importlib.import_module("benchmarks.figures")
    with pytest.raises(SystemExit):
        figures.main(["tiny"])
    assert "unknown part 'tiny'" in capsys.readouterr().err
