"""Every benchmark runs at its smallest size with every other parameter, and what it tracks is as it should
be.
"""

import importlib
import inspect
import itertools
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
        if method == "track_error":
            assert result <= ERROR.get(item.__name__, 1e-6)
        elif method == "track_same_picks":
            assert result == 1.0, smallest
        elif method == "track_d_efficiency":
            assert 0 < result <= 1, smallest
        elif method.startswith("track_"):
            assert np.isfinite(result) and result >= 0, smallest
