"""Whether the signs of the judges' rationalities come out right: llmbar, whose judges are worse than a coin
in some categories, and whose truth is known.

A judge's truth in a category is the share of its votes that agree with gold, where that differs from 1/2 by
more than three standard errors of a coin. The fit sees votes; in some runs also *gold questions*: the right
answers to a share of the pairs, as those of one more teacher, of known rationality.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import dal_learn as dl
from benchmarks import common
from benchmarks.reward_peers.recorded import read_both

#: Shares of the pairs with gold questions.
SHARES = (0.0, 0.1, 0.3, 1.0)
#: Known rationality of who answers them: margins of these features are well below 1.
GOLD_RATIONALITY = 10.0
ERRORS = 3.0


def truth(
    right: NDArray[np.bool_], teacher: NDArray[np.int64], category: NDArray[np.int64], shape: tuple[int, int]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Sign of (share of right votes - 1/2), (m, C), 0 where it is not sure; and how many votes there are."""
    cell = teacher * shape[1] + category
    votes = np.bincount(cell, minlength=shape[0] * shape[1])
    excess = np.bincount(cell, right, len(votes)) - votes / 2
    sign = np.where(np.abs(excess) > ERRORS * np.sqrt(votes) / 2, np.sign(excess), 0).astype(np.int64)
    return sign.reshape(shape), votes.reshape(shape)


def measure(folder: Path, cache: Path | None = None, encoder: str = "offline") -> dict[str, Any]:
    """Sign agreement of signed fits with more and more gold questions: ready for JSON."""
    votes, gold, names = read_both(folder, cache, encoder)
    told = votes.told() & np.isin(gold[votes.conversation], (0.0, 1.0))
    i, j, y = votes.conversation[told], votes.teacher[told], votes.choice[told]
    shape = (votes.teachers, votes.categories)
    sign, _ = truth(y == gold[i], j, votes.kind[i], shape)
    runs = []
    for share in SHARES:
        known = np.isin(gold, (0.0, 1.0)) & (np.random.default_rng(0).random(len(gold)) < share)
        asked = np.flatnonzero(known)
        options: dict[str, Any] = {}
        if len(asked):
            rationality = np.full((shape[0] + 1, shape[1]), np.nan)
            rationality[-1] = GOLD_RATIONALITY
            options["rationality"] = rationality
        conversation = np.concatenate([i, asked])
        model = dl.RewardModel(signed=True, **options).fit(
            votes.rows[conversation],
            np.concatenate([y, gold[asked]]),
            np.concatenate([j, np.full(len(asked), shape[0])]),
            votes.kind[conversation],
            n_teachers=shape[0] + bool(len(asked)),
            n_categories=shape[1],
        )
        agree = np.sign(model.rationality_[: shape[0]]) == sign
        runs.append(
            {
                "share": share,
                "gold": len(asked),
                "agree": [int((agree & (sign != 0))[:, c].sum()) for c in range(shape[1])],
                "agree_below": [int((agree & (sign < 0))[:, c].sum()) for c in range(shape[1])],
                "converged": bool(model.converged_),
            }
        )
        common.say(f"signs of {folder.name}, gold on {share:.0%} of the pairs: {runs[-1]}")
    return {
        "set": folder.name,
        "categories": list(names),
        "sure": (sign != 0).sum(axis=0).tolist(),
        "below": (sign < 0).sum(axis=0).tolist(),
        "runs": runs,
    }


def markdown(report: dict[str, Any]) -> str:
    """Cells whose sign is right, by category and by how much gold was asked."""
    if "skipped" in report:
        return f"Skipped: {report['skipped']}."
    head = ["category", "judges that differ from a coin", "of them below it"]
    head += [
        f"right, gold on {run['share']:.0%} ({run['gold']} pairs)" if run["gold"] else "right, votes alone"
        for run in report["runs"]
    ]
    lines = [
        [name, report["sure"][c], report["below"][c], *(run["agree"][c] for run in report["runs"])]
        for c, name in enumerate(report["categories"])
    ]
    total = sum(report["sure"])
    below = sum(report["below"])
    shares = [
        f"{sum(run['agree'])}, {sum(run['agree']) / total:.1%}; {sum(run['agree_below'])} of {below} below"
        for run in report["runs"]
    ]
    lines.append(["all", total, below, *shares])
    return f"{report['set']}. {common.source(report)}\n\n{common.table(head, lines)}"
