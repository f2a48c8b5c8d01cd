"""The figures of the README's table, measured in one process: medians of paired runs.

usage: python -m benchmarks.figures [PART ...]     (default: import small large warm; --help names all)
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

import dal_native as dn
from benchmarks import common
from benchmarks.common import once, read_seconds, say
from benchmarks.peers.exchange import measured, resident
from benchmarks.peers.numpy_loop import numpy_loop
from dal_native.testing import Problem, store

RUNS = 5
IMPORT = """import time, numpy, scipy.linalg
start = time.perf_counter()
import dal_native
print(time.perf_counter() - start)"""

Figures = dict[str, Any]


def select(name: str, p: Problem, size: int, loop_runs: int) -> Figures:
    """One problem: time, reads, memory, the same picks, and the ratio to the NumPy loop, pair by pair."""
    pool = p.pool()
    times, reads, single, ratios, memory = [], [], [], [], 0
    for run in range(RUNS):
        read = read_seconds(p.differences)
        batch, took, _, grown = measured(
            lambda: dn.select_batch(pool, p.reward, p.rationality, p.matrix, size)
        )
        times.append(took)
        single.append(once(lambda: dn.select_batch(pool, p.reward, p.rationality, p.matrix, size, threads=1)))
        reads.append(took / read)
        memory = max(memory, grown)
        if run < loop_runs:
            ratios.append(once(lambda: numpy_loop(p, size)) / took)
    picks = list(zip(batch.conversation.tolist(), batch.teacher.tolist(), strict=True))
    found = {
        "seconds": statistics.median(times),
        "reads": statistics.median(reads),
        "seconds_one_thread": statistics.median(single),
        "numpy_loop_ratio": statistics.median(ratios),
        "same_picks": picks == numpy_loop(p, size),
        "memory_share": memory / p.differences.nbytes,
        "d_efficiency": batch.d_efficiency,
        "counters": batch.counters,
    }
    say(f"{name}: {found['seconds']:.3f} s, {found['reads']:.1f} reads; one thread ", end="")
    say(f"{found['seconds_one_thread']:.3f} s; NumPy loop {found['numpy_loop_ratio']:.1f} times ", end="")
    say(f"slower; same picks {found['same_picks']}; memory beyond the pool ", end="")
    say(f"{100 * found['memory_share']:.1f} %; d_efficiency {batch.d_efficiency:.3f}; {batch.counters}")
    return found


# ------------------------------------------------------------------------------------------------- the parts


def importing(shrink: int) -> Figures:
    """Import time beyond NumPy and SciPy."""
    command = [sys.executable, "-c", IMPORT]
    times = [
        float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        for _ in range(2 * RUNS)
    ]
    say(f"import dal_native beyond numpy and scipy.linalg: {statistics.median(times):.3f} s")
    return {"seconds": statistics.median(times)}


def small(shrink: int) -> Figures:
    """Cold, 64 of 200,000 x 256, 2,000 labels."""
    p = common.pool_problem(200_000 // shrink, 256)
    return select(f"64 of {len(p.differences):,} x 256, m = 100, 2,000 labels", p, 64, RUNS)


def large(shrink: int) -> Figures:
    """Cold, 256 of 1,000,000 x 512, 2,000 labels (4 GB)."""
    p = common.pool_problem(1_000_000 // shrink, 512)
    return select(f"256 of {len(p.differences):,} x 512, m = 100, 2,000 labels", p, 256, 2)


def worst(shrink: int) -> Figures:
    """The same, isotropic with 20,000 labels, beside one SGEMM pass over the pool (4 GB)."""
    n = 1_000_000 // shrink
    sgemm = 2 * n * 512**2 / common.sgemm_speed()
    say(f"one SGEMM pass at {n:,} x 512: {sgemm:.2f} s")
    p = common.pool_problem(n, 512, labels=20_000, kind="isotropic")
    found = select(f"256 of {n:,} x 512, m = 100, isotropic, 20,000 labels", p, 256, 1)
    allowed = found["seconds"] - 3 * found["seconds"] / found["reads"]
    say(f"beyond 3 reads it takes {allowed / sgemm:.2f} SGEMM passes")
    return found | {"sgemm_seconds": sgemm, "sgemm_passes_beyond_3_reads": allowed / sgemm}


def warm(shrink: int) -> Figures:
    """Rounds of 64 from a Selector, 1,000,000 x 512, a refit between them (4 GB)."""
    p = common.pool_problem(1_000_000 // shrink, 512)
    rounds, shares, stages = common.Rounds(p.pool(), p), [], []
    for _ in range(6):
        read = read_seconds(p.differences)
        batch, took = common.timed(lambda: rounds.select(64))
        shares.append(took / read)
        stages.append(batch.counters["stages"][0])
        rounds.refit(batch)
    middle = statistics.median(shares[1:])
    say(f"warm rounds: {[round(s, 1) for s in shares]} reads ({stages}), median after the first {middle:.1f}")
    return {"reads": shares, "stages": stages, "median_reads": middle}


def completions(shrink: int) -> Figures:
    """Cold, 64 pairs of 100,000 prompts x 16 completions, d = 256, 2,000 labelled pairs (2 GB).

    Beside it, the arithmetic of looking at every pair once: a difference and a fused product-sum for each of
    its features, at half of the speed that SGEMM shows.
    """
    p = common.completion_problem(100_000 // shrink, 16, 256)
    rows = p.pool.rows
    arguments = common.arguments(p)
    arithmetic = common.pair_arithmetic_seconds(p.pool)
    times, reads, beyond, memory = [], [], [], 0
    for _ in range(RUNS):
        read = read_seconds(rows)
        batch, took, _, grown = measured(lambda: dn.select_batch(*arguments, 64))
        memory = max(memory, grown)
        times.append(took)
        reads.append(took / read)
        beyond.append((took - arithmetic) / read)
    single = once(lambda: dn.select_batch(*arguments, 64, threads=1))
    found = {
        "seconds": statistics.median(times),
        "reads": statistics.median(reads),
        "seconds_one_thread": single,
        "pair_arithmetic_seconds": arithmetic,
        "reads_beyond_arithmetic": statistics.median(beyond),
        "memory_share": memory / rows.nbytes,
        "d_efficiency": batch.d_efficiency,
        "counters": batch.counters,
    }
    say(f"64 of {len(p.pool):,} pairs of {len(rows):,} completions, d = 256, m = 100: ", end="")
    say(f"{found['seconds']:.3f} s, {found['reads']:.1f} reads of the completions; one thread ", end="")
    say(f"{single:.3f} s; pair arithmetic at half of peak {arithmetic:.3f} s, beyond it ", end="")
    say(f"{found['reads_beyond_arithmetic']:.1f} reads; memory beyond the pool ", end="")
    say(f"{100 * found['memory_share']:.1f} %; d_efficiency {batch.d_efficiency:.3f}; {batch.counters}")
    return found


def threads(shrink: int) -> Figures:
    """Two threads against one, where reading is the limit and where arithmetic is (4 GB)."""
    n = 1_000_000 // shrink
    found: Figures = {}

    def pairs(
        name: str, call: Callable[[int], Any], after: Callable[[int, Any], object] | None = None
    ) -> None:
        ratios = []
        for _ in range(RUNS):
            took = []
            for k in (1, 2):
                result, seconds = common.timed(lambda k=k: call(k))  # type: ignore[misc]
                took.append(seconds)
                if after:
                    after(k, result)
            ratios.append(took[0] / took[1])
        found[name] = statistics.median(ratios)
        say(f"two threads against one, {name}: {found[name]:.2f} times faster")

    def read_with(k: int) -> None:
        with threadpool_limits(k, user_api="blas"):
            p.differences @ ones

    p = common.pool_problem(n, 512)
    ones = np.ones(512, np.float32)
    pool, reward, rationality, matrix = common.arguments(p)
    pairs("one read (BLAS)", read_with)
    pairs("margins of the pool", lambda k: dn.margin(pool, reward, threads=k))
    pairs("cold", lambda k: dn.select_batch(pool, reward, rationality, matrix, 256, threads=k))
    rounds = [common.Rounds(pool, p), common.Rounds(pool, p)]
    for r in rounds:
        r.refit(r.select(64))
    pairs(
        "warm round",
        lambda k: rounds[k - 1].select(64, threads=k),
        lambda k, batch: rounds[k - 1].refit(batch),
    )
    common.pool_problem.cache_clear()
    q = common.pool_problem(n, 512, labels=20_000, kind="isotropic")
    worst_pool = q.pool()
    pairs(
        "cold, isotropic, 20,000 labels",
        lambda k: dn.select_batch(worst_pool, q.reward, q.rationality, q.matrix, 256, threads=k),
    )
    return found


# --------------------------------------------------------------------------------------------- from a file


def write_pool(path: Path, n: int, d: int) -> None:
    """A float16 pool of the power law as .npy, written block by block."""
    spectrum = common.SPECTRA["power_law"]
    with path.open("wb") as file:
        head = {"descr": "<f2", "fortran_order": False, "shape": (n, d)}
        np.lib.format.write_array_header_1_0(file, head)
        for block in spectrum.blocks(np.random.default_rng(0), n, d):
            file.write(store(block, "float16").tobytes())
        file.flush()
        os.fsync(file.fileno())


def forget(path: Path) -> None:
    """Let the operating system drop what it keeps of a file."""
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read_plainly(path: Path) -> None:
    """Read a file from one end to the other, 1 MB at a time, and do nothing with it."""
    block = bytearray(1 << 20)
    with path.open("rb", buffering=0) as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
        while file.readinto(block):
            pass


def _cold(path: Path, call: Callable[[], Any]) -> tuple[Any, float]:
    """A call's result and time, with nothing of the file in memory when it starts."""
    forget(path)
    return common.timed(call)


def streamed(shrink: int, gigabytes: float, memory: float, folder: Path | None) -> Figures:
    """A float16 pool in a file, d = 512: a Selector's rounds against plainly reading the file, both cold."""
    d = 512
    n = max(4096, int(gigabytes * 1e9 / shrink) // (2 * d))
    with tempfile.TemporaryDirectory(dir=folder) as name:
        path = Path(name) / "pool.npy"
        write_pool(path, n, d)
        rng = np.random.default_rng(1)
        category = rng.integers(0, common.CATEGORIES, n)
        forget(path)
        pool, opening = common.timed(
            lambda: dn.Pool.open(path, category, working_memory=max(1 << 22, int(memory * 1e9 / shrink)))
        )
        p = _labelled(pool, rng)
        rounds, plain, took, stages = common.Rounds(pool, p), [], [], []
        before, peak = resident("VmRSS"), 0
        for turn in range(5):
            if turn % 2 == 0:  # in turns, as a disk may answer faster what it was asked for just before
                plain.append(_cold(path, lambda: read_plainly(path))[1])
            (batch, _, highest, _), seconds = _cold(path, lambda: measured(lambda: rounds.select(64)))
            if turn % 2 == 1:
                plain.append(_cold(path, lambda: read_plainly(path))[1])
            took.append(seconds)
            peak = max(peak, highest)
            stages.append(batch.counters["stages"][0])
            rounds.refit(batch)
    ratios = [a / b for a, b in zip(took, plain, strict=True)]
    found = {
        "gigabytes": 2 * n * d / 1e9,
        "open_seconds": opening,
        "plain_seconds": plain,
        "seconds": took,
        "warm_ratio": statistics.median(ratios[1:]),
        "resident_peak_bytes": peak,
        "resident_before_bytes": before,
        "stages": stages,
    }
    say(
        f"float16 pool of {found['gigabytes']:.1f} GB in a file ({n:,} x {d}): opened and checked in ", end=""
    )
    say(f"{opening:.1f} s; reading it plainly {statistics.median(plain):.1f} s; rounds of 64 in ", end="")
    say(f"{[round(s, 1) for s in took]} s ({stages}), warm ones {found['warm_ratio']:.2f} times ", end="")
    say(f"the reading; resident memory at most {peak / 1e9:.2f} GB")
    return found


def _labelled(pool: dn.Pool, rng: np.random.Generator) -> common.CompletionProblem:
    """Teachers, a reward and M of 2,000 labelled conversations of any pool."""
    seen = np.sort(rng.choice(len(pool), 2_000, replace=False))
    x = pool.take(seen)
    reward = rng.standard_normal(pool.d)
    reward *= 2.0 / float(np.std(x @ reward))
    rationality = rng.lognormal(0.0, 0.5, (common.TEACHERS, common.CATEGORIES))
    beta = rationality[rng.integers(0, common.TEACHERS, len(seen)), pool.category_of(seen)]
    matrix = dn.information_matrix(x, dn.choice_weight(x @ reward, beta))
    return common.CompletionProblem(pool, reward, rationality, matrix)


PARTS: dict[str, Callable[..., Figures]] = {
    "import": importing,
    "small": small,
    "large": large,
    "worst": worst,
    "warm": warm,
    "completions": completions,
    "threads": threads,
    "streamed": streamed,
}
USUAL = ["import", "small", "large", "warm", "worst"]


def main(arguments: list[str] | None = None) -> None:
    about = "\n".join(
        f"  {name:12}{(part.__doc__ or '').splitlines()[0].removesuffix('.')}" for name, part in PARTS.items()
    )
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.figures",
        description="Measures the figures of the README; without a part: " + " ".join(USUAL) + ".",
        epilog="parts:\n" + about,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help="what to measure, in this order")
    parser.add_argument("--gigabytes", type=float, default=24.0, help="streamed: size of the file")
    parser.add_argument("--memory", type=float, default=1.0, help="streamed: working memory in GB")
    parser.add_argument("--folder", type=Path, help="streamed: where the file is written (then removed)")
    parser.add_argument(
        "--shrink", type=int, default=1, help="divide the numbers of conversations, for a try"
    )
    parser.add_argument("--out", type=Path, help="write what was measured to this JSON file")
    wanted = parser.parse_args(arguments)
    unknown = [part for part in wanted.parts if part not in PARTS]
    if unknown:
        parser.error(f"unknown part {unknown[0]!r}; expected some of: {' '.join(PARTS)}")
    report: Figures = dict(common.provenance())
    say("; ".join([report["machine"], report["versions"], f"commit {report['commit']}"]))
    for part in wanted.parts or USUAL:
        extra = (wanted.gigabytes, wanted.memory, wanted.folder) if part == "streamed" else ()
        report[part] = PARTS[part](wanted.shrink, *extra)
        common.completion_problem.cache_clear()
        if part in ("completions", "threads", "streamed"):
            common.pool_problem.cache_clear()
        time.sleep(0.5)
    if wanted.out:
        wanted.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
