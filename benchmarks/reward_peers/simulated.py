"""Crowds whose truth is known: what the peers and we recover of it, and how fast."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scipy.stats
from numpy.typing import NDArray

from benchmarks import common
from benchmarks.peers.side_by_side import Peer
from benchmarks.reward_peers import beside, measures, ours
from benchmarks.reward_peers.problems import Comparisons, Differences, logistic

Floats = NDArray[np.float64]

#: Standard deviation of log rationality in the crowds, and what our fit is told of it.
SPREAD = 0.8
HELD = 5_000
OURS, TRUTH = "ours, default", "the truth"

#: (items, teachers, answers)
ITEMS = [(50, 10, 2_000), (50, 50, 2_000), (200, 20, 5_000), (200, 50, 20_000)]
#: (answers, features, teachers, categories, how many teachers answer on each conversation)
FEATURES = [
    (2_000, 16, 20, 1, 1),
    (2_000, 16, 20, 1, 5),
    (20_000, 128, 50, 4, 1),
    (20_000, 128, 50, 4, 5),
    (100_000, 512, 100, 4, 1),
]


@dataclass(frozen=True, eq=False)
class Crowd:
    """A problem and its truth."""

    given: Comparisons | Differences
    parameter: Floats  # scores or theta
    log_rationality: Floats  # (m,) or (m C,), mean 0
    chance: Floats  # (H,): of b in the held-out questions
    choice: Floats  # (H,): their answers


def item_crowd(seed: int, items: int, teachers: int, answers: int) -> Crowd:
    """Answers on random pairs; scores are N(0, 1)."""
    rng = np.random.default_rng(seed)
    score, log_rationality = rng.standard_normal(items), _anchored(SPREAD * rng.standard_normal(teachers))
    total = answers + HELD
    first = rng.integers(0, items, total)
    pair = np.stack([first, (first + rng.integers(1, items, total)) % items], axis=1)
    teacher = rng.integers(0, teachers, total)
    chance = logistic(np.exp(log_rationality[teacher]) * (score[pair[:, 1]] - score[pair[:, 0]]))
    choice = (rng.random(total) < chance).astype(np.float64)
    seen, held = slice(answers), slice(answers, None)
    given = Comparisons(
        pair[seen], choice[seen], teacher[seen], pair[held], teacher[held], items, teachers, ridge=1.0
    )
    return Crowd(given, score, log_rationality, chance[held], choice[held])


def feature_crowd(seed: int, answers: int, d: int, teachers: int, categories: int, repeats: int) -> Crowd:
    """Answers on rows of standard deviations k^-1/4, margins of standard deviation 2; where there are several
    categories, a teacher's share half of the variance of log rationality. `repeats` teachers, drawn with
    replacement, answer on each conversation; held-out ones are asked about once.
    """
    rng = np.random.default_rng(seed)
    asked = -(-answers // repeats)
    rows = rng.standard_normal((asked + HELD, d)) * np.arange(1, d + 1) ** -0.25
    conversation = np.concatenate([np.repeat(np.arange(asked), repeats)[:answers], asked + np.arange(HELD)])
    total = answers + HELD
    theta = rng.standard_normal(d)
    theta *= 2 / np.std(rows[-HELD:] @ theta)
    in_common, own = rng.standard_normal((teachers, 1)), rng.standard_normal((teachers, categories))
    share = 0.5 if categories > 1 else 1.0
    log_rationality = _anchored(SPREAD * (np.sqrt(share) * in_common + np.sqrt(1 - share) * own))
    teacher, category = rng.integers(0, teachers, total), rng.integers(0, categories, len(rows))[conversation]
    chance = logistic(np.exp(log_rationality[teacher, category]) * (rows @ theta)[conversation])
    choice = (rng.random(total) < chance).astype(np.float64)
    seen, held = slice(answers), slice(answers, None)
    given = Differences(
        rows,
        conversation[seen],
        choice[seen],
        teacher[seen],
        category[seen],
        np.zeros(answers, np.int64),
        conversation[held],
        teacher[held],
        category[held],
        np.zeros(HELD, np.int64),
        teachers,
        categories,
        ridge=1.0,
    )
    return Crowd(given, theta, log_rationality.ravel(), chance[held], choice[held])


def _anchored(log_rationality: Floats) -> Floats:
    return log_rationality - log_rationality.mean()


def recovered(answer: dict[str, Any], crowd: Crowd) -> dict[str, Any]:
    """How near an answer is to the truth."""
    found: dict[str, Any] = {key: answer[key] for key in ("seconds", "facts") if key in answer}
    estimate = answer["parameter"]
    if isinstance(crowd.given, Comparisons):
        found["direction"] = float(scipy.stats.kendalltau(estimate, crowd.parameter).statistic)
    else:
        lengths = np.linalg.norm(estimate) * np.linalg.norm(crowd.parameter)
        found["direction"] = float(estimate @ crowd.parameter / lengths)
    if answer.get("belief") is not None:
        belief = answer["belief"]
        alike = np.ptp(belief) < 1e-9
        found["teachers_rank"] = (
            0.0 if alike else float(scipy.stats.spearmanr(belief, crowd.log_rationality)[0])
        )
    if answer.get("log_rationality") is not None:
        estimate, truth = answer["log_rationality"], crowd.log_rationality
        found["teachers"] = float(np.corrcoef(estimate, truth)[0, 1])
        found["teachers_error"] = float(np.sqrt(np.mean((_anchored(estimate) - truth) ** 2)))
    found["log_loss"] = float(measures.log_loss(answer["chance"], crowd.choice).mean())
    # against the chances themselves: how much worse than the truth on average over answers
    truth = measures.log_loss(crowd.chance, crowd.chance)
    found["excess"] = float((measures.log_loss(answer["chance"], crowd.chance) - truth).mean())
    return found


@dataclass(frozen=True)
class Part:
    """A kind of crowd."""

    crowd: Callable[..., Crowd]
    sizes: list[tuple[int, ...]]
    words: str  # what the sizes are
    direction: str  # what is measured of the parameters
    peers: dict[str, Peer]


PARTS = {
    "items": Part(item_crowd, ITEMS, "N items x m teachers x T answers", "Kendall tau", beside.ITEM_PEERS),
    "features": Part(
        feature_crowd,
        FEATURES,
        "T answers x d features x m teachers x C categories, answers on each conversation",
        "cosine",
        beside.FEATURE_PEERS,
    ),
}


def measure(
    part: str,
    size: tuple[int, ...],
    wanted: list[str],
    seeds: int,
    limit: float,
    environments: Path | None = None,
) -> dict[str, Any]:
    """Every wanted peer beside ours, on `seeds` crowds of one size.

    Returns
    -------
    dict
        Ready for JSON: the size, and for each method what was measured on each crowd.
    """
    found: dict[str, list[dict[str, Any]]] = {}
    given_up: set[str] = set()
    for seed in range(seeds):
        crowd = PARTS[part].crowd(seed, *size)
        fits = _fits(crowd.given)
        for name, fit in fits.items():
            found.setdefault(name, []).append(recovered(beside.ours(fit), crowd))
        truth = {"parameter": crowd.parameter, "chance": crowd.chance}
        found.setdefault(TRUTH, []).append(recovered(truth, crowd))
        for peer in (p for p in PARTS[part].peers if p in wanted and p not in given_up):
            theirs, mine = beside.tried(peer, crowd.given, fits[OURS], limit, environments, pairs=3)
            if mine is None:
                found.setdefault(peer, []).append(theirs)
                given_up.add(peer)
                continue
            row = recovered(theirs, crowd) | {"ratio": theirs["ratio"], "version": theirs["version"]}
            found.setdefault(peer, []).append(row | {"ours_seconds": mine["seconds"]})
        common.say(f"{part} {'x'.join(map(str, size))}, crowd {seed + 1} of {seeds}: {_in_words(found)}")
    return {"size": list(size), "seeds": seeds, "methods": found}


def _fits(given: Comparisons | Differences) -> dict[str, Callable[[], ours.Learnt]]:
    fit = ours.on_items if isinstance(given, Comparisons) else ours.on_differences
    return {
        OURS: fit(given, rationality_scale=SPREAD),
        "ours, joint MAP": fit(given, rationality_scale=SPREAD, method="joint_map"),
        "ours, one rationality": fit(given, method="homogeneous"),
    }


def _in_words(found: dict[str, list[dict[str, Any]]]) -> str:
    last = {name: rows[-1] for name, rows in found.items() if "direction" in rows[-1]}
    return "; ".join(
        f"{name} {row['direction']:.3f}"
        + (f" in {common.figure(row['seconds'])} s" if "seconds" in row else "")
        for name, row in last.items()
    )


def markdown(part: str, report: dict[str, Any]) -> str:
    """The table of a part, with where it comes from."""
    words, direction = PARTS[part].words, PARTS[part].direction
    head = (
        words,
        "method",
        direction,
        "teachers: rank correlation",
        "teachers: correlation of logs",
        "log-loss above the truth's",
        "seconds",
        "ours is faster",
    )
    lines = [
        [_size(found["size"]), *_line(name, rows)]
        for found in report["sizes"]
        for name, rows in found["methods"].items()
        if name != TRUTH
    ]
    return f"{common.source(report)}\n\n{common.table(head, lines)}"


def _size(size: list[int]) -> str:
    words = " x ".join(f"{each:,}" for each in size[:4])
    return f"{words}, {size[4]}" if len(size) > 4 else words


def _line(name: str, rows: list[dict[str, Any]]) -> list[str]:
    good = [row for row in rows if "failed" not in row]
    if not good:
        return [name, f"no figure: {rows[0]['failed']}", *[""] * 5]
    version = f" ({good[0]['version'].split()[1]})" if "version" in good[0] else ""
    ratio = [row["ratio"] for row in good if "ratio" in row]
    return [
        name + version,
        spread([row["direction"] for row in good], 3),
        spread([row["teachers_rank"] for row in good if "teachers_rank" in row], 2),
        spread([row["teachers"] for row in good if "teachers" in row], 2),
        spread([row["excess"] for row in good], 4),
        common.figure(statistics.median(row["seconds"] for row in good)),
        f"{common.figure(statistics.median(ratio))} times" if ratio else "",
    ]


def spread(values: list[float], digits: int) -> str:
    """Mean and standard error over crowds."""
    if not values:
        return ""
    mean = f"{np.mean(values):.{digits}f}"
    if len(values) == 1:
        return mean
    return f"{mean} ± {np.std(values, ddof=1) / np.sqrt(len(values)):.{digits}f}"
