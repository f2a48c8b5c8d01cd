"""The timing that has a target: T labels of 100 teachers x 4 categories, our whole joint fit against the
fastest of scikit-learn's homogeneous fits that comes as near to its optimum.

Nearness is the length of the objective's gradient in posterior standard deviations, sqrt(g' M^-1 g): what
`RewardModel.gradient_norm_` is and `tol` bounds. Each solver of scikit-learn gets the largest tol that brings
it there. Both start from the same float64 array in memory.
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np

import dal_learn as dl
from benchmarks import common
from benchmarks.peers import exchange
from benchmarks.peers.side_by_side import Failed, Peer
from benchmarks.reward_peers import beside, ours, simulated
from benchmarks.reward_peers.problems import Differences

SIZE = (100_000, 512)
SOLVERS = ("lbfgs", "newton-cholesky", "newton-cg")
#: Our fit stops so near to its optimum, in posterior standard deviations: the default, and a loose one.
TOLERANCES = (1e-6, 1e-3)
#: Labels that come in for the incremental refit.
BATCH = 256
#: What a figure is to be at most: ours / theirs, refit / cold fit, (inputs + growth) / inputs.
TARGETS = {"fit": 1.0, "refit": 0.15, "memory": 1.2}


def measure(
    size: tuple[int, int], pairs: int, limit: float, environments: Path | None = None
) -> dict[str, Any]:
    """Fits in pairs, memory, and a refit after 256 more labels.

    Returns
    -------
    dict
        Ready for JSON.
    """
    t, d = size
    given = simulated.feature_crowd(0, t, d, common.TEACHERS, common.CATEGORIES, 1).given
    assert isinstance(given, Differences)
    found: dict[str, Any] = {"size": [t, d, common.TEACHERS, common.CATEGORIES]}
    found["tolerances"] = [_at(tol, given, pairs, limit, environments) for tol in TOLERANCES]
    found["memory"] = [_memory(given, dtype) for dtype in ("float64", "float32", "float16")]
    found["refit"] = _refit(given, pairs)
    return found


def _at(
    tol: float, given: Differences, pairs: int, limit: float, environments: Path | None
) -> dict[str, Any]:
    """Ours at one tolerance, and every solver of scikit-learn beside it."""
    fit, rows = ours.on_differences(given, rationality_scale=simulated.SPREAD, tol=tol), []
    alone = beside.ours(fit)
    for solver in SOLVERS:
        arguments = (solver, f"within:{max(tol, alone['facts']['gradient_in_sd'])}")  # as `_goal`
        peer = Peer("scikit_learn", arguments, package=beside.PACKAGE)
        row: dict[str, Any] = {"solver": solver}
        try:
            theirs, mine = beside.in_turn(peer, given, fit, limit, environments, pairs, long=limit)
            row |= {key: theirs[key] for key in ("seconds", "ratio", "version", "facts")}
            row["ours_seconds"] = mine["seconds"]
        except Failed as reason:
            row["failed"] = str(reason)
        rows.append(row)
        common.say(f"tol {tol:g}, {solver}: {row}")
    return {"tol": tol, "ours": alone["facts"], "solvers": rows}


def _memory(given: Differences, dtype: str) -> dict[str, Any]:
    """How far the resident memory grows beyond the inputs while fitting."""
    rows = given.asked().astype(dtype)
    inputs = [rows, given.choice, given.teacher, given.category]
    size = sum(array.nbytes for array in inputs)
    model = dl.RewardModel(given.ridge, simulated.SPREAD)
    _, took, _, grown = exchange.measured(lambda: model.fit(*inputs))
    return {"dtype": dtype, "inputs": size, "grown": grown, "share": (size + grown) / size, "seconds": took}


def _refit(given: Differences, pairs: int) -> dict[str, Any]:
    """Seconds of a cold fit, and of the fit that takes 256 more labels in, on the same labels in the end."""
    rows, choice, teacher, category = given.asked(), given.choice, given.teacher, given.category
    seen, new = slice(len(rows) - BATCH), slice(len(rows) - BATCH, None)
    cold, warm = [], []
    for _ in range(pairs):
        model = dl.RewardModel(given.ridge, simulated.SPREAD)
        model.fit(rows[seen], choice[seen], teacher[seen], category[seen])
        start = time.perf_counter()
        model.partial_fit(rows[new], choice[new], teacher[new], category[new])
        warm.append(time.perf_counter() - start)
        again, took = common.timed(
            lambda: dl.RewardModel(given.ridge, simulated.SPREAD).fit(rows, choice, teacher, category)
        )
        cold.append(took)
    error = float(np.linalg.norm(model.coef_ - again.coef_) / np.linalg.norm(again.coef_))
    ratio = statistics.median(a / b for a, b in zip(warm, cold, strict=True))
    return {
        "seconds": statistics.median(warm),
        "cold": statistics.median(cold),
        "ratio": ratio,
        "difference": error,
    }


def markdown(report: dict[str, Any]) -> str:
    """The figures against their targets, and the fits in pairs."""
    t, d, m, kinds = report["size"]
    lines = []
    for found in report["tolerances"]:
        mine = common.brief(found["ours"]["gradient_in_sd"])
        for row in found["solvers"]:
            if "failed" in row:
                lines.append([f"{found['tol']:g}", row["solver"], f"no figure: {row['failed']}", *[""] * 6])
                continue
            facts = row["facts"]
            lines.append(
                [
                    f"{found['tol']:g}",
                    f"{row['solver']} ({row['version'].split()[1]})",
                    common.figure(row["seconds"]),
                    f"{facts['tol']:g}",
                    common.brief(facts["gradient"]),
                    common.brief(facts["gradient_in_sd"]),
                    common.figure(row["ours_seconds"]),
                    mine,
                    f"{common.figure(1 / row['ratio'])} x",
                ]
            )
    head = (
        "our tol",
        "scikit-learn's solver",
        "its seconds",
        "its tol",
        "its gradient, Euclidean",
        "its gradient, sd",
        "our seconds",
        "our gradient, sd",
        "ours / its",
    )
    words = f"T = {t:,} labels, d = {d}, {m} teachers x {kinds} categories."
    return f"{words} {common.source(report)}\n\n{_against_targets(report)}\n\n{common.table(head, lines)}"


def _against_targets(report: dict[str, Any]) -> str:
    lines = []
    for found in report["tolerances"]:
        reached = [row for row in found["solvers"] if "failed" not in row]
        near = [row for row in reached if row["facts"]["gradient_in_sd"] <= _goal(found)]
        if near:
            best = min(near, key=lambda row: float(row["seconds"]))
            words = (
                f"whole joint fit / scikit-learn's fastest as near ({best['solver']}), tol {found['tol']:g}"
            )
            lines.append(_line(words, 1 / best["ratio"], TARGETS["fit"]))
    for row in report["memory"]:
        lines.append(
            _line(f"(inputs + growth) / inputs, {row['dtype']} rows", row["share"], TARGETS["memory"])
        )
    refit = report["refit"]
    words = f"refit after {BATCH} labels / cold fit"
    lines.append(_line(words, refit["ratio"], TARGETS["refit"]))
    return common.table(("figure", "measured", "target", ""), lines)


def _goal(found: dict[str, Any]) -> float:
    return float(max(found["tol"], found["ours"]["gradient_in_sd"]))


def _line(words: str, value: float, target: float) -> list[str]:
    return [words, f"{value:.2f} x", f"{target:g} x", "met" if value <= target else "missed"]
