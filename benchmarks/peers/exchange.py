"""What goes to a peer and what comes back: arrays in a folder, then one line of JSON for each run.

Runs in the peer's environment: NumPy and the standard library only.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

T = TypeVar("T")
BLOCK = 4096  # rows worked on at a time


@dataclass(frozen=True, eq=False)
class Given:
    """A selection problem as a peer receives it: float32 rows, and what belongs to them in float64."""

    differences: np.ndarray  # (n, d) float32
    category: np.ndarray  # (n,)
    rationality: np.ndarray  # (m, C)
    reward: np.ndarray  # (d,)
    matrix: np.ndarray  # (d, d), M
    weight: np.ndarray  # (n,), of the best teacher
    size: int

    def features(self, dtype: str) -> np.ndarray:
        """f_i = sqrt(w_i) L^-1 x_i with M = L L': (n, d). log det(I + sum f f') = log det(M + sum w x x') -
        log det M.

        So a rule that knows nothing of teachers or of earlier labels greedily picks what ours picks.
        """
        whiten = np.linalg.inv(np.linalg.cholesky(self.matrix)).T
        out = np.empty(self.differences.shape, dtype)
        for start in range(0, len(out), BLOCK):
            part = slice(start, start + BLOCK)
            out[part] = np.sqrt(self.weight[part, None]) * (
                self.differences[part].astype(np.float64) @ whiten
            )
        return out


def hand_over(folder: Path, given: Any) -> None:
    """Write a problem, a dataclass of arrays and numbers, to a folder."""
    numbers = {}
    for field in fields(given):
        value = getattr(given, field.name)
        if isinstance(value, np.ndarray):
            np.save(folder / f"{field.name}.npy", value)
        else:
            numbers[field.name] = value
    (folder / "numbers.json").write_text(json.dumps(numbers))


def take_over(folder: Path, kind: type[T]) -> T:
    """A problem of that class from a folder, its arrays mapped: what a peer does not read takes no memory."""
    numbers = json.loads((folder / "numbers.json").read_text())
    arrays = [field.name for field in fields(kind) if field.name not in numbers]  # type: ignore[arg-type]
    return kind(**{name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in arrays}, **numbers)


def resident(field: str) -> int:
    """Bytes of resident memory of this process now (VmRSS) or at the peak (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(field)).split()[1])


def measured(call: Callable[[], object]) -> tuple[object, float, int, int]:
    """A call's result, its seconds, the peak of resident memory, and how far that lies above the start."""
    before = resident("VmRSS")
    with contextlib.suppress(OSError):  # where it may not be written the peak counts from the process's start
        Path("/proc/self/clear_refs").write_text("5")
    start = time.perf_counter()
    result = call()
    took = time.perf_counter() - start
    peak = resident("VmHWM")
    return result, took, peak, peak - before


def picks(selected: list[int]) -> dict[str, Any]:
    """What is told of a selection."""
    return {"conversation": selected}


def serve(
    prepare: Callable[[Any], Callable[[], Any]],
    package: str,
    *modules: str,
    kind: type = Given,
    told: Callable[[Any], dict[str, Any]] = picks,
) -> None:
    """Import the package's modules and read the problem, of that kind; then run what `prepare` returns once
    for every line that comes in, and answer what is `told` of its result, which is not timed.

    Answers go to what was standard output; what the peer itself prints goes to standard error.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for module in modules:
        importlib.import_module(module)
    given = take_over(Path(sys.argv[1]), kind)
    start = time.perf_counter()
    run = prepare(given)
    ready = {
        "prepare_seconds": time.perf_counter() - start,
        "version": f"{package} {importlib.metadata.version(package)}",
    }
    print(json.dumps(ready), file=answers, flush=True)
    for _ in sys.stdin:
        result, took, peak, grown = measured(run)
        answer = {"seconds": took, "peak_bytes": peak, "grown_bytes": grown, **told(result)}
        print(json.dumps(answer), file=answers, flush=True)
