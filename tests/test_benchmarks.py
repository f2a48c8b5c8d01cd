"""Every benchmark runs at its smallest size, and what it tracks is as it should be."""

import importlib
import inspect
import itertools
import sys
from pathlib import Path

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
}


def benchmarks():
    sys.path.insert(0, str(FOLDER.parent))
    try:
        for stem in MODULES:
            module = importlib.import_module(f"benchmarks.{stem}")
            for name, item in vars(module).items():
                if inspect.isclass(item) and item.__module__ == module.__name__:
                    methods = [m for m in vars(item) if m.startswith(("time_", "peakmem_", "track_"))]
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
    smallest = next(itertools.product(*item.params))
    benchmark = item()
    benchmark.setup(*smallest)
    result = getattr(benchmark, method)(*smallest)
    if method == "track_error":
        assert result <= ERROR.get(item.__name__, 1e-6)
    elif method == "track_same_picks":
        assert result == 1.0
    elif method.startswith("track_"):
        assert result == result
