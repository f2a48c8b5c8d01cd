"""How the cost of a selection grows along each axis of the problem: plots and tables of docs/cost.md.

usage: python -m benchmarks.growth --out docs/ [--axes n d m B T K] [--peers]
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import dal_native as dn
from benchmarks import common
from benchmarks.peers.exchange import measured
from benchmarks.peers.numpy_loop import numpy_loop
from dal_native.testing import Problem

PAGE, DATA = "cost.md", "cost.json"


@dataclass(frozen=True)
class Point:
    """A size of the problem; with K, pairs of K completions of each prompt, n completions in all."""

    n: int = 200_000
    d: int = 256
    m: int = 100
    B: int = 64
    T: int = 2_000
    K: int = 1

    def problem(self, kind: str) -> Problem | common.CompletionProblem:
        if self.K > 1:
            return common.completion_problem(self.n // self.K, self.K, self.d, self.m, self.T)
        return common.pool_problem(self.n, self.d, self.m, self.T, kind)


#: Axis: what it counts, and the values it takes while all others stay at `Point`'s.
AXES: dict[str, tuple[str, list[int]]] = {
    "n": ("conversations n", [12_500, 25_000, 50_000, 100_000, 200_000, 400_000, 800_000]),
    "d": ("features d", [32, 64, 128, 256, 512, 1_024]),
    "m": ("teachers m", [1, 10, 100, 1_000, 10_000]),
    "B": ("picks in a batch B", [1, 4, 16, 64, 256, 512]),
    "T": ("labels T", [50, 200, 800, 3_200, 12_800, 51_200]),
    "K": ("completions of a prompt K", [2, 4, 8, 16, 32, 64]),
}
SPECTRA = {"power_law": "power law", "isotropic": "isotropic"}
LOOP, ARITHMETIC = "NumPy loop, power law", "arithmetic, every pair once at half of peak"
RUNS = 3


def cold(p: Problem | common.CompletionProblem, size: int) -> dict[str, Any]:
    """A first batch from a pool: medians of pairs with a read."""
    arguments = common.arguments(p)
    return _pairs(p, lambda: dn.select_batch(*arguments, size))


def warm(p: Problem | common.CompletionProblem, size: int) -> dict[str, Any]:
    """Later batches from a Selector, a refit before each."""
    rounds = common.Rounds(common.arguments(p)[0], p)
    rounds.refit(rounds.select(size))
    return _pairs(p, lambda: rounds.select(size), rounds.refit)


def _pairs(
    p: Problem | common.CompletionProblem,
    select: Callable[[], dn.Batch],
    after: Callable[[dn.Batch], object] = lambda batch: None,
) -> dict[str, Any]:
    rows = common.arguments(p)[0].rows
    times, units, memory = [], [], 0
    for _ in range(RUNS):
        units.append(common.read_seconds(rows))
        batch, took, _, grown = measured(select)
        times.append(took)
        memory = max(memory, grown)
        after(batch)
    return {
        "seconds": statistics.median(times),
        "reads": statistics.median(took / unit for took, unit in zip(times, units, strict=True)),
        "read_seconds": min(units),
        "pool_bytes": rows.nbytes,
        "memory_share": memory / rows.nbytes,
        "stages": batch.counters["stages"],
        "rows_rescored": batch.counters["rows_rescored"],
        "d_efficiency": batch.d_efficiency,
    }


#: The NumPy loop tries every teacher on every conversation: beyond so many pairs it is left out.
LOOP_PAIRS = 300_000_000


def loop(p: Problem, size: int) -> dict[str, Any] | None:
    """What a careful NumPy user writes, once."""
    if len(p.differences) * len(p.rationality) > LOOP_PAIRS:
        return None
    unit = common.read_seconds(p.differences)
    took = common.once(lambda: numpy_loop(p, size))
    return {"seconds": took, "reads": took / unit, "read_seconds": unit}


def arithmetic(p: common.CompletionProblem) -> dict[str, Any]:
    """What looking at every pair once would take."""
    unit = common.read_seconds(p.pool.rows)
    took = common.pair_arithmetic_seconds(p.pool)
    return {"seconds": took, "reads": took / unit, "read_seconds": unit}


def measure(axis: str, values: list[int], base: Point) -> dict[str, Any]:
    """All series along one axis, with where they come from: ready for JSON."""
    kinds = {"power_law": "completions"} if axis == "K" else SPECTRA
    names = [f"{temperature}, {words}" for words in kinds.values() for temperature in ("cold", "warm")]
    beside = ARITHMETIC if axis == "K" else LOOP
    series: dict[str, list[dict[str, Any] | None]] = {name: [] for name in [*names, beside]}
    for value in values:
        point = replace(base, **{axis: value})
        for kind, words in kinds.items():
            p = point.problem(kind)
            series[f"cold, {words}"].append(cold(p, point.B))
            series[f"warm, {words}"].append(warm(p, point.B))
            if isinstance(p, common.CompletionProblem):
                series[beside].append(arithmetic(p))
            elif kind == "power_law":
                series[beside].append(loop(p, point.B))
            common.pool_problem.cache_clear()
            common.completion_problem.cache_clear()
        common.say(f"{axis} = {value:,}: ", end="")
        last = {name: points[-1] for name, points in series.items()}
        common.say(", ".join(f"{name} {p['reads']:.1f}" for name, p in last.items() if p) + " reads")
    sizes = vars(base).items()
    base_words = ", ".join(f"{name} = {size:,}" for name, size in sizes if name not in (axis, "K"))
    if axis == "K":
        base_words = base_words.replace("n =", "completions =")
    return common.provenance() | {"at": base_words, "values": values, "series": series}


# ---------------------------------------------------------------------------------------------- plots, tables


def plot(axis: str, found: dict[str, Any], path: Path) -> None:
    """Reads of the pool and seconds against one axis, both logarithmic, as SVG."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    style = {"svg.fonttype": "none", "svg.hashsalt": "dal-native", "font.size": 9, "axes.grid": True}
    marks = {"cold": "o-", "warm": "s--"}
    colours = {"isotropic": "tab:orange", "power law": "tab:blue", "completions": "tab:blue"}
    with pyplot.rc_context(style):
        figure, panels = pyplot.subplots(1, 2, figsize=(8, 3.4), layout="constrained")
        for panel, unit, label in zip(
            panels, ("reads", "seconds"), ("reads of the pool", "seconds"), strict=True
        ):
            for name, points in found["series"].items():
                what, words = name.split(", ")
                mark, colour = marks.get(what, "x:"), colours[words] if what in marks else "tab:gray"
                drawn = [(x, p[unit]) for x, p in zip(found["values"], points, strict=True) if p]
                panel.loglog(*zip(*drawn, strict=True), mark, color=colour, label=name, markersize=4)
            panel.set_xlabel(AXES[axis][0])
            panel.set_ylabel(label)
            panel.set_xticks(found["values"], [f"{value:,}" for value in found["values"]], rotation=30)
            panel.minorticks_off()
            panel.grid(alpha=0.3)
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=5, fontsize=8)
        figure.savefig(path, metadata={"Date": None})
        pyplot.close(figure)


def markdown(axis: str, found: dict[str, Any]) -> str:
    """The plot and the table of one axis, with where they come from."""
    head = [AXES[axis][0], "one read", "memory beyond the pool"]
    lines = [[f"{value:,}"] for value in found["values"]]
    first = next(iter(found["series"].values()))
    for line, point in zip(lines, first, strict=True):
        bandwidth = point["pool_bytes"] / point["read_seconds"] / 1e9
        line.append(f"{common.figure(1e3 * point['read_seconds'])} ms ({bandwidth:.0f} GB/s)")
        line.append(f"{100 * point['memory_share']:.1f} %")
    for name, points in found["series"].items():
        head.append(name)
        for line, point in zip(lines, points, strict=True):
            if point is None:
                line.append("not run")
                continue
            route = f" {point['stages'][0]}" if "stages" in point else ""
            line.append(
                f"{common.figure(point['reads'])} ({common.figure(1e3 * point['seconds'])} ms){route}"
            )
    source = f"Reads of the pool (time) and route; {found['at']}. {common.source(found)}"
    image = f"![Reads of the pool, and seconds, against the number of {AXES[axis][0][:-2]}](cost_{axis}.svg)"
    return f"{image}\n\n{source}\n\n{common.table(head, lines)}"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.growth",
        description="Measures how the cost of a selection grows; refreshes cost.md, its plots and cost.json.",
    )
    parser.add_argument("--out", type=Path, required=True, help=f"the folder of {PAGE}")
    parser.add_argument(
        "--axes", nargs="+", choices=list(AXES), default=list(AXES), help="which axes to measure"
    )
    parser.add_argument(
        "--render", action="store_true", help=f"measure no axis: plots and tables from {DATA}"
    )
    parser.add_argument("--peers", action="store_true", help="measure the peers' table of the page too")
    parser.add_argument("--d", type=int, default=Point.d, help="features, where they are not the axis")
    parser.add_argument("--shrink", type=int, default=1, help="divide n (and values of n and T), for a try")
    wanted = parser.parse_args(arguments)
    page, data = wanted.out / PAGE, wanted.out / DATA
    if not page.is_file():
        parser.error(f"{page} does not exist; expected the folder of the page")
    base = Point(n=Point.n // wanted.shrink, d=wanted.d)
    known = json.loads(data.read_text(encoding="utf-8")) if data.exists() else {}
    for axis in wanted.axes:
        if not wanted.render:
            values = [v // wanted.shrink if axis in "nT" else v for v in AXES[axis][1]]
            known[axis] = measure(axis, values, base)
            data.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
        if axis in known:
            plot(axis, known[axis], wanted.out / f"cost_{axis}.svg")
            common.refresh(page, f"growth in {axis}", markdown(axis, known[axis]))
    if wanted.peers:
        from benchmarks.peers import __main__ as peers

        peers.main(["--out", str(wanted.out / "peers.json"), "--page", str(page)])


if __name__ == "__main__":
    main()
