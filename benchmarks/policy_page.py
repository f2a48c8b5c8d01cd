"""What the pessimistic policy costs and how near to the best it comes: tables and plots of docs/policy.md.

usage: python -m benchmarks.policy_page [--page PAGE] [--parts settings storage conic cooling]

The part conic needs cvxpy.
"""

from __future__ import annotations

import argparse
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import solve_triangular

import dal_learn as dl
import dal_native as dn
from benchmarks import common, pages
from benchmarks.pages import Part
from dal_learn import _policy_hard
from dal_learn.policy import PolicyNotConverged

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

PAGE = Path(__file__).resolve().parents[1] / "docs" / "policy.md"
RTOL = 1e-3
#: Temperatures in units of the spread of the estimated rewards, which is 2.
TEMPERATURES = (0.0, 0.1)
REFERENCES = ("none", "mean", "vector")
#: Spectrum of M, lambda_j = 1 + labels j^-decay: what few labels, or labels of one kind, leave unknown.
MATRICES = {"all alike": (8e2, 0.0), "power law": (1e5, 1.5), "few labels": (1e4, 1.5)}


@dataclass(frozen=True)
class Sizes:
    """How much is measured; `SMALL` is for a try."""

    completions: int = 1_000_000
    d: int = 512
    each: tuple[int, ...] = (2, 8, 64, 0)  # completions of a prompt; 0: 1 to 32 of them
    alone: int = 100  # most reads of Frank-Wolfe alone
    conic: tuple[tuple[int, int, int], ...] = ((50, 4, 8), (200, 4, 16), (1_000, 8, 32), (4_000, 8, 64))
    cooled: tuple[int, int, int] = (2_000, 8, 64)
    repeats: int = 3


SMALL = Sizes(2_000, 8, (2, 0), 30, ((20, 3, 3),), (100, 4, 8), 1)

# ------------------------------------------------------------------------------------------------- problems


def pool_of(n: int, d: int, each: int, seed: int = 0) -> dn.Pool:
    """Normal features, float32; prompts with `each` completions, or with 1 to 32."""
    rng = np.random.default_rng(seed)
    counts = np.full(n // each, each) if each else rng.integers(1, 33, n // 16)
    offsets = np.concatenate([[0], np.cumsum(counts)])
    return dn.Pool.from_completions(rng.standard_normal((offsets[-1], d), dtype=np.float32), offsets)


@dataclass(frozen=True)
class Problem:
    """What stands beside the completions."""

    reward: Floats
    M: Floats
    radius: float
    reference: Any

    def solve(self, pool: dn.Pool, temperature: float, **more: Any) -> dl.PessimisticPolicy:
        return dl.pessimistic_policy(
            pool, None, self.reward, self.M, self.radius, reference=self.reference, temperature=temperature,
            **more,
        )  # fmt: skip


def problem_of(d: int, matrix: str, reference: str, seed: int = 1) -> Problem:
    """A reward of length 2, M with one of the spectra along random axes, the radius of 95 % and ridge 1."""
    rng = np.random.default_rng(seed)
    labels, decay = MATRICES[matrix]
    axes, _ = np.linalg.qr(rng.standard_normal((d, d)))
    M = (axes * (1.0 + labels * np.arange(1, d + 1) ** -decay)) @ axes.T
    reward = rng.standard_normal(d)
    vector = 0.3 * rng.standard_normal(d) / np.sqrt(d)
    nu = {"none": None, "mean": "mean", "vector": vector}[reference]
    radius = dl.confidence_radius(d, 0.05, ridge=1.0, reward_norm=2.0)
    return Problem(2 * reward / np.linalg.norm(reward), 0.5 * (M + M.T), float(radius), nu)


def traced(problem: Problem, pool: dn.Pool, temperature: float, **more: Any) -> dict[str, Any]:
    """A solution's reads, seconds and gap, and the gap after each read."""
    path: list[tuple[int, float]] = []
    arguments = {"tol": 0.0, "rtol": RTOL, "progress": lambda reads, gap: path.append((reads, gap)), **more}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PolicyNotConverged)
        p, seconds = common.timed(lambda: problem.solve(pool, temperature, **arguments))
    scale = p.scale if np.isfinite(p.scale) else 1.0  # not needed where the reference is the optimum
    return {
        "reads": p.reads, "seconds": seconds, "gap": p.duality_gap / scale, "lower_bound": p.lower_bound,
        "scale": scale, "converged": bool(p.converged),
        "path": [(reads, gap / scale) for reads, gap in path if np.isfinite(gap)],
    }  # fmt: skip


# ------------------------------------------------------------------------------------------------- settings


def settings(sizes: Sizes) -> dict[str, Any]:
    """Reads and seconds to a relative gap in every setting; Frank-Wolfe alone beside some."""
    rows = []
    for each in sizes.each:
        pool = pool_of(sizes.completions, sizes.d, each)
        theta = problem_of(sizes.d, "all alike", "none").reward
        unit = common.seconds(lambda pool=pool, theta=theta: dn.best_completions(pool, theta), sizes.repeats)
        for matrix in MATRICES:
            for reference in REFERENCES:
                problem = problem_of(sizes.d, matrix, reference)
                row: dict[str, Any] = {"each": each, "matrix": matrix, "reference": reference, "unit": unit}
                for tau in TEMPERATURES:
                    row[str(tau)] = traced(problem, pool, 2.0 * tau)
                if reference == "none" and each == sizes.each[1]:
                    row["alone"] = alone(problem, pool, sizes.alone)
                rows.append(row)
                common.say(f"{each} {matrix} {reference}: {row['0.0']['reads']}, {row['0.1']['reads']} reads")
        del pool  # before the next one is made
    return {"rows": rows, "completions": sizes.completions, "d": sizes.d, "alone": sizes.alone}


def alone(problem: Problem, pool: dn.Pool, max_iter: int) -> dict[str, Any]:
    """Fully corrective Frank-Wolfe from the greedy policy, without the smoothed start."""
    with mock.patch.object(_policy_hard, "_smoothed", lambda *_: []):
        return traced(problem, pool, 0.0, max_iter=max_iter)


def plot_settings(found: Mapping[str, Any], figure: Any) -> None:
    panels = figure.subplots(1, 3, sharey=True)
    marks = {"0.0": ("tab:blue", "temperature 0"), "0.1": ("tab:orange", "temperature 0.1"),
             "alone": ("tab:gray", "Frank-Wolfe alone")}  # fmt: skip
    for panel, matrix in zip(panels, MATRICES, strict=True):
        for row in found["rows"]:
            if row["matrix"] != matrix:
                continue
            for name, (colour, _) in marks.items():
                if name in row and row[name]["path"]:
                    reads, gap = np.array(row[name]["path"]).T
                    panel.semilogy(reads, np.maximum(gap, 1e-5), color=colour, linewidth=0.9, alpha=0.7)
        panel.axhline(RTOL, color="black", linewidth=0.7, linestyle=":")
        panel.set_title(matrix, fontsize=9)
        panel.set_xlabel("reads")
        panel.set_xlim(0, 60)
    panels[0].set_ylabel("gap / what greedy expects to win")
    for colour, words in marks.values():
        panels[-1].plot([], [], color=colour, label=words)
    panels[-1].legend(fontsize=7)


def table_settings(found: Mapping[str, Any]) -> str:
    head = ["K", "M", "reference", "V / scale", "reads, temperature 0", "seconds", "in reads",
            "reads, temperature 0.1", "seconds", "in reads", "Frank-Wolfe alone"]  # fmt: skip
    lines = []
    for row in found["rows"]:
        hard = row["0.0"]
        line = [row["each"] or "1 to 32", row["matrix"], row["reference"]]
        line.append(f"{hard['lower_bound'] / row['0.1']['scale']:.3f}")
        for tau in ("0.0", "0.1"):
            line += [
                _reads(row[tau]),
                f"{row[tau]['seconds']:.1f}",
                f"{row[tau]['seconds'] / row['unit']:.0f}",
            ]
        line.append(_reads(row["alone"]) if "alone" in row else "")
        lines.append(line)
    reads = [row[tau]["reads"] for row in found["rows"] for tau in ("0.0", "0.1")]
    over = sum(count > 20 for count in reads)
    return (
        f"About {found['completions']:,} completions of {found['d']} features in float32, to a gap of "
        f"{RTOL:g} times the scale. Most reads of any solution: {max(reads)}; {over} of {len(reads)} took "
        'more than 20. "In reads" is the wall time in units '
        f"of one pass that finds each prompt's best completion. Frank-Wolfe alone was stopped after "
        f"{found['alone']} steps; where it had not arrived, the gap it had left stands in brackets.\n\n"
        + common.table(head, lines)
    )


def _reads(found: Mapping[str, Any]) -> str:
    return f"{found['reads']}" + ("" if found["converged"] else f" ({common.brief(found['gap'])})")


# -------------------------------------------------------------------------------------------------- storage


def storage(sizes: Sizes) -> dict[str, Any]:
    """One problem from memory, from a mapped file and streamed: seconds, and whether bits are the same."""
    pool = pool_of(sizes.completions, sizes.d, 8)
    problem = problem_of(sizes.d, "power law", "mean")
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "completions.npy"
        np.save(path, pool.rows)
        offsets = pool.prompt_offsets
        pools = {
            "in memory": lambda: pool,
            "mapped": lambda: dn.Pool.open(path, prompt_offsets=offsets),
            "streamed, 128 MB": lambda: dn.Pool.open(path, prompt_offsets=offsets, working_memory=1 << 27),
        }
        first = {}
        for name, opened in pools.items():
            rows.append({"name": name})
            for tau in TEMPERATURES:
                here = opened()
                p, seconds = common.timed(
                    lambda here=here, tau=tau: problem.solve(here, 2.0 * tau, tol=0.0, rtol=RTOL)
                )
                same = first.setdefault(tau, p).probability.tobytes() == p.probability.tobytes()
                rows[-1][str(tau)] = {"seconds": seconds, "reads": p.reads, "same": bool(same)}
    return {"rows": rows, "bytes": int(pool.rows.nbytes)}


def plot_storage(found: Mapping[str, Any], figure: Any) -> None:
    panel = figure.subplots()
    at = np.arange(len(found["rows"]))
    for k, tau in enumerate(TEMPERATURES):
        seconds = [row[str(tau)]["seconds"] for row in found["rows"]]
        panel.barh(at + 0.36 * k, seconds, 0.34, label=f"temperature {tau:g}")
    panel.set_yticks(at + 0.18, [row["name"] for row in found["rows"]])
    panel.set_xlabel("seconds")
    panel.legend(fontsize=8)


def table_storage(found: Mapping[str, Any]) -> str:
    head = [
        "completions",
        "reads, temperature 0",
        "seconds",
        "reads, temperature 0.1",
        "seconds",
        "same bits",
    ]
    lines = []
    for row in found["rows"]:
        line = [row["name"]]
        for tau in TEMPERATURES:
            line += [row[str(tau)]["reads"], f"{row[str(tau)]['seconds']:.1f}"]
        line.append("yes" if all(row[str(tau)]["same"] for tau in TEMPERATURES) else "no")
        lines.append(line)
    return (
        f"{found['bytes'] / 1e9:.2f} GB of completions, K = 8, power law, nu the mean; the file lies in the "
        "system's cache.\n\n" + common.table(head, lines)
    )


# --------------------------------------------------------------------------------------------------- conic


def conic(sizes: Sizes) -> dict[str, Any]:
    """Beside a conic solver, to the same absolute gap of 1e-6, at sizes where that still runs."""
    import cvxpy

    rows = []
    for n_prompts, each, d in sizes.conic:
        pool = pool_of(n_prompts * each, d, each)
        problem = problem_of(d, "power law", "mean")
        for tau in TEMPERATURES:
            ours = common.seconds(lambda: problem.solve(pool, 2.0 * tau), sizes.repeats)  # noqa: B023
            p = problem.solve(pool, 2.0 * tau)
            best, theirs = common.timed(lambda: conic_optimum(cvxpy, pool, problem, 2.0 * tau, p))  # noqa: B023
            rows.append(
                {
                    "prompts": n_prompts, "each": each, "d": d, "tau": tau, "ours": ours, "theirs": theirs,
                    "apart": abs(p.lower_bound - 2.0 * tau * p.divergence - best), "gap": p.duality_gap,
                }
            )  # fmt: skip
            common.say(str(rows[-1]))
    return {"rows": rows, "solver": f"cvxpy {cvxpy.__version__}, Clarabel"}


def conic_optimum(cp: Any, pool: dn.Pool, problem: Problem, tau: float, p: dl.PessimisticPolicy) -> float:
    """max over pi of V(pi) - tau E KL(pi | uniform), as second-order and exponential cones."""
    phi, offsets = np.asarray(pool.rows, np.float64), pool.prompt_offsets
    counts = np.diff(offsets)
    n_prompts = len(counts)
    from scipy.sparse import csr_array

    one = csr_array((np.ones(len(phi)), (np.repeat(np.arange(n_prompts), counts), np.arange(len(phi)))))
    pi = cp.Variable(len(phi), nonneg=True)
    away = cp.Variable(phi.shape[1])
    white = solve_triangular(np.linalg.cholesky(problem.M), np.eye(phi.shape[1]), lower=True)
    objective = problem.reward @ away - problem.radius * cp.norm(white @ away)
    if tau > 0:
        base = np.repeat(1.0 / counts, counts)
        objective -= (tau / n_prompts) * cp.sum(cp.rel_entr(pi, base))
    constraints = [one @ pi == 1, away == (phi.T @ pi) / n_prompts - p.reference]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of an accuracy just missed; the value is compared
        return float(cp.Problem(cp.Maximize(objective), constraints).solve(solver=cp.CLARABEL))


def plot_conic(found: Mapping[str, Any], figure: Any) -> None:
    panel = figure.subplots()
    for tau, colour in zip(TEMPERATURES, ("tab:blue", "tab:orange"), strict=True):
        rows = [row for row in found["rows"] if row["tau"] == tau]
        size = [row["prompts"] * row["each"] for row in rows]
        words = f"temperature {tau:g}"
        panel.loglog(size, [row["theirs"] for row in rows], "s--", color=colour, label=f"conic, {words}")
        panel.loglog(size, [row["ours"] for row in rows], "o-", color=colour, label=f"dal_learn, {words}")
    panel.set_xlabel("completions")
    panel.set_ylabel("seconds")
    panel.legend(fontsize=8)


def table_conic(found: Mapping[str, Any]) -> str:
    head = ["prompts", "K", "d", "temperature", "conic solver, s", "dal_learn, s", "ratio", "values apart",
            "gap proved"]  # fmt: skip
    lines = [
        [f"{row['prompts']:,}", row["each"], row["d"], f"{row['tau']:g}", common.figure(row["theirs"]),
         common.figure(row["ours"]), f"{row['theirs'] / row['ours']:,.0f}", common.brief(row["apart"]),
         common.brief(row["gap"])]
        for row in found["rows"]
    ]  # fmt: skip
    return (
        f"{found['solver']} with its own settings; power law, nu the mean, an absolute gap of 1e-6.\n\n"
        + (common.table(head, lines))
    )


# -------------------------------------------------------------------------------------------------- cooling


def cooling(sizes: Sizes) -> dict[str, Any]:
    """How the two problems meet as the temperature goes to zero."""
    n_prompts, each, d = sizes.cooled
    pool = pool_of(n_prompts * each, d, each)
    series = {}
    for matrix in MATRICES:
        problem = problem_of(d, matrix, "none")
        hard = problem.solve(pool, 0.0, tol=1e-7)
        points = []
        for tau in _temperatures():
            soft = problem.solve(pool, tau, tol=1e-9)
            objective = soft.lower_bound - tau * soft.divergence
            points.append((tau, hard.lower_bound - objective, hard.lower_bound - soft.lower_bound))
        series[matrix] = points
    return {"series": series, "prompts": n_prompts, "each": each, "d": d}


def _temperatures() -> Iterator[float]:
    yield from (2.0 * 10.0**-k for k in range(5))


def plot_cooling(found: Mapping[str, Any], figure: Any) -> None:
    panels = figure.subplots(1, 2, sharex=True, sharey=True)
    for name, points in found["series"].items():
        tau, objective, value = np.array(points).T
        panels[0].loglog(tau, np.maximum(objective, 1e-10), "o-", label=name, markersize=3.5)
        panels[1].loglog(tau, np.maximum(value, 1e-10), "o-", label=name, markersize=3.5)
    panels[0].loglog(tau, tau * np.log(found["each"]), ":", color="tab:gray", label="temperature log K")
    for panel, words in zip(
        panels, ("V* less V - temperature KL", "V* less V of the soft policy"), strict=True
    ):
        panel.set_xlabel("temperature")
        panel.set_title(words, fontsize=9)
    panels[0].legend(fontsize=8)


def table_cooling(found: Mapping[str, Any]) -> str:
    head = ["temperature", *(f"{name}: objective, V" for name in found["series"])]
    lines = []
    for k, (tau, _, _) in enumerate(next(iter(found["series"].values()))):
        cells = [points[k] for points in found["series"].values()]
        lines.append([f"{tau:g}", *(f"{common.brief(o)}, {common.brief(v)}" for _, o, v in cells)])
    return (
        f"How far below V* of temperature 0 the objective and the V of the soft policy are: "
        f"{found['prompts']:,} prompts, K = {found['each']}, d = {found['d']}, no reference; a gap of 1e-7 "
        "bounds the first, of 1e-9 the others.\n\n" + common.table(head, lines)
    )


# -------------------------------------------------------------------------------------------------- the page

PARTS: dict[str, Part[Sizes]] = {
    "settings": Part(
        settings, plot_settings, table_settings,
        "Relative gap against the number of reads, for three spectra of M", (9.0, 3.2),
    ),
    "storage": Part(
        storage, plot_storage, table_storage, "Seconds from memory, mapped and streamed", (6.5, 2.2)
    ),
    "conic": Part(conic, plot_conic, table_conic, "Seconds against size, beside a conic solver", (6.0, 3.2)),
    "cooling": Part(
        cooling, plot_cooling, table_cooling, "Distance from the optimum of temperature 0, by temperature"
    ),
}  # fmt: skip


def with_seeds(sizes: Sizes, seeds: int) -> Sizes:
    """Nothing here is drawn more than once."""
    return sizes


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.policy_page",
        description="Measures what docs/policy.md says of the solver; refreshes its plots, tables and data.",
    )
    pages.main(parser, PARTS, Sizes(), SMALL, with_seeds, arguments, PAGE)


if __name__ == "__main__":
    main()
