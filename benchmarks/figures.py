"""The figures of the README's table, measured in one process: medians of paired runs.

usage: python -m benchmarks.figures [import] [small] [large] [warm]     (default: all; large needs 6 GB)
"""

from __future__ import annotations

import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import dal_native as dn
from benchmarks.peers.numpy_loop import numpy_loop
from dal_native.testing import Problem

RUNS = 5
IMPORT = """import time, numpy, scipy.linalg
start = time.perf_counter()
import dal_native
print(time.perf_counter() - start)"""


def power_law(n: int, d: int, labels: int, exponent: float = 0.5, tail: float = 6.0) -> Problem:
    """Float32 rows of heavy-tailed length, energy falling along rotated axes; 100 teachers, 4 categories."""
    rng = np.random.default_rng(0)
    scale = (np.arange(1, d + 1) ** -exponent).astype(np.float32)
    rotation = np.linalg.qr(rng.standard_normal((d, d)))[0].astype(np.float32)
    x = np.empty((n, d), np.float32)
    for start in range(0, n, 65536):
        g = rng.standard_normal((min(65536, n - start), d), dtype=np.float32) * scale
        g *= np.sqrt(tail / rng.chisquare(tail, len(g))).astype(np.float32)[:, None] / np.linalg.norm(
            g, axis=1, keepdims=True
        )
        x[start : start + len(g)] = g @ rotation
    reward = rng.standard_normal(d)
    reward *= 2.0 / float(np.std(x[:20_000] @ reward))
    category, rationality = rng.integers(0, 4, n), rng.lognormal(0.0, 0.5, (100, 4))
    seen, teacher = rng.choice(n, labels, replace=False), rng.integers(0, 100, labels)
    weight = dn.choice_weight(x[seen] @ reward, rationality[teacher, category[seen]])
    return Problem(x, category, rationality, reward, dn.information_matrix(x[seen], weight))


def read_seconds(rows: NDArray[np.float32], ones: NDArray[np.float32]) -> float:
    """The best of three reads, and a pause: BLAS keeps its idle threads spinning for a while."""
    best = min(seconds(lambda: rows @ ones) for _ in range(3))
    time.sleep(0.3)
    return best


def seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def resident(field: str) -> int:
    """Bytes of resident memory now (VmRSS) or at the peak (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(field)).split()[1])


def say(text: str, end: str = "\n") -> None:
    print(text, end=end, flush=True)


def select(name: str, p: Problem, size: int, loop_runs: int) -> None:
    """One problem: time, reads, memory, the same picks, and the ratio to the NumPy loop, pair by pair."""
    pool, ones = p.pool(), np.ones(p.differences.shape[1], np.float32)
    times, reads, single, ratios = [], [], [], []
    for run in range(RUNS):
        read = read_seconds(p.differences, ones)
        before = resident("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
        times.append(seconds(lambda: dn.select_batch(pool, p.reward, p.rationality, p.matrix, size)))
        memory = resident("VmHWM") - before
        single.append(
            seconds(lambda: dn.select_batch(pool, p.reward, p.rationality, p.matrix, size, threads=1))
        )
        reads.append(times[-1] / read)
        if run < loop_runs:
            ratios.append(seconds(lambda: numpy_loop(p, size)) / times[-1])
    batch = dn.select_batch(pool, p.reward, p.rationality, p.matrix, size)
    picks = list(zip(batch.conversation.tolist(), batch.teacher.tolist(), strict=True))
    same = picks == numpy_loop(p, size)
    say(
        f"{name}: {statistics.median(times):.3f} s, {statistics.median(reads):.1f} reads; one thread ", end=""
    )
    say(
        f"{statistics.median(single):.3f} s; NumPy loop {statistics.median(ratios):.1f} times slower; ",
        end="",
    )
    say(f"same picks {same}; memory beyond the pool {100 * memory / p.differences.nbytes:.1f} %; ", end="")
    say(f"d_efficiency {batch.d_efficiency:.3f}; {batch.counters}")


def sgemm_pass(n: int, d: int) -> float:
    """Seconds that 2 n d^2 operations take at the speed of a large float32 product."""
    a = np.ones((4096, 4096), np.float32)
    best = min(seconds(lambda: a @ a) for _ in range(3))
    return best * 2 * n * d * d / (2 * 4096**3)


def warm(p: Problem, rounds: int = 6, size: int = 64) -> None:
    """Rounds of 64 labels and a refit that moves theta and M, from one Selector."""
    rng = np.random.default_rng(5)
    selector, reward, matrix = dn.Selector(p.pool()), p.reward, p.matrix
    ones, shares, stages = np.ones(len(reward), np.float32), [], []
    for _ in range(rounds):
        read = read_seconds(p.differences, ones)
        start = time.perf_counter()
        batch = selector.select(reward, p.rationality, matrix, size)
        shares.append((time.perf_counter() - start) / read)
        stages.append(batch.counters["stages"][0])
        x = p.differences[batch.conversation].astype(np.float64)
        beta = p.rationality[batch.teacher, p.category[batch.conversation]]
        matrix = (
            0.97 * matrix
            + 0.03 * np.diag(np.diag(matrix))
            + (x * dn.choice_weight(x @ reward, beta)[:, None]).T @ x
        )
        matrix = 0.5 * (matrix + matrix.T)
        reward = reward + 0.2 * np.linalg.solve(
            np.linalg.cholesky(matrix).T, rng.standard_normal(len(reward))
        )
    middle = statistics.median(shares[1:])
    say(f"warm rounds: {[round(s, 1) for s in shares]} reads ({stages}), median after the first {middle:.1f}")


def machine() -> None:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    state = dn.capabilities()
    say(f"{model}, {state['cpus']} CPUs, {state['simd']['level']}, ", end="")
    say(f"Python {platform.python_version()}, NumPy {np.__version__}")


def main(wanted: list[str]) -> None:
    machine()
    if "import" in wanted:
        times = [
            float(
                subprocess.run(
                    [sys.executable, "-c", IMPORT], capture_output=True, text=True, check=True
                ).stdout
            )
            for _ in range(2 * RUNS)
        ]
        say(f"import dal_native beyond numpy and scipy.linalg: {statistics.median(times):.3f} s")
    if "small" in wanted:
        select("200,000 x 256, m = 100, B = 64", power_law(200_000, 256, 2_000), 64, RUNS)
    if "large" in wanted or "warm" in wanted:
        p = power_law(1_000_000, 512, 2_000)
        if "large" in wanted:
            select("1,000,000 x 512, m = 100, B = 256", p, 256, 2)
        if "warm" in wanted:
            warm(p)
        del p
    if "large" in wanted:
        say(f"one SGEMM pass at 1,000,000 x 512: {sgemm_pass(1_000_000, 512):.2f} s")
        select("the same, isotropic, 20,000 labels", power_law(1_000_000, 512, 20_000, 0.0, 60.0), 256, 1)


if __name__ == "__main__":
    main(sys.argv[1:] or ["import", "small", "large", "warm"])
