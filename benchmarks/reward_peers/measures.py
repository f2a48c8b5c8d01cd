"""How good predicted chances of held-out votes are: log-loss, accuracy, calibration error, with intervals.

All three are functions of sums over votes: a bootstrap over clusters of votes costs one matrix product.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.reward_peers.problems import LEAST_CHANCE

Floats = NDArray[np.float64]

BINS = 10
RESAMPLES = 2_000


def log_loss(chance: Floats, choice: Floats) -> Floats:
    """Of every vote, in nats: a coin has log 2 = 0.693. Chances are kept within `LEAST_CHANCE` of 0 and 1."""
    p = np.clip(chance, LEAST_CHANCE, 1 - LEAST_CHANCE)
    return np.asarray(-(choice * np.log(p) + (1 - choice) * np.log1p(-p)))


def right(chance: Floats, choice: Floats) -> Floats:
    """1 where the likelier answer was given, 1/2 where both were equally likely."""
    return np.where(chance == 0.5, 0.5, (chance > 0.5) == (choice > 0.5)).astype(np.float64)


def bins(chance: Floats, choice: Floats) -> tuple[NDArray[np.int64], Floats]:
    """Which of `BINS` bins of equal width on [0, 1] a chance is in, and choice - chance."""
    return np.minimum((chance * BINS).astype(np.int64), BINS - 1), choice - chance


class Sums:
    """What the measures are made of, per cluster: votes, loss, right answers, choice - chance in each bin."""

    def __init__(self, chance: Floats, choice: Floats, cluster: NDArray[np.int64], clusters: int) -> None:
        index, gap = bins(chance, choice)
        self.votes = np.bincount(cluster, minlength=clusters).astype(np.float64)
        self.loss = np.bincount(cluster, log_loss(chance, choice), clusters)
        self.right = np.bincount(cluster, right(chance, choice), clusters)
        self.gap = np.bincount(cluster * BINS + index, gap, clusters * BINS).reshape(clusters, BINS)

    def measured(self, weight: Floats) -> dict[str, Floats]:
        """The measures under one or more weightings of the clusters, (k, clusters).

        The calibration error is the expected one of 10 bins of equal width: sum over bins of the share of
        votes in it times |share of b among them - mean chance of b|.
        """
        votes = weight @ self.votes
        return {
            "log_loss": weight @ self.loss / votes,
            "accuracy": weight @ self.right / votes,
            "calibration": np.abs(weight @ self.gap).sum(axis=1) / votes,
        }


def resampled(clusters: int, seed: int = 0) -> Floats:
    """How often each cluster is drawn in every resample, (RESAMPLES, clusters)."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(clusters, np.full(clusters, 1 / clusters), RESAMPLES).astype(np.float64)


def _interval(values: Floats) -> list[float]:
    return [float(end) for end in np.quantile(values, [0.025, 0.975])]


def described(
    chances: dict[str, Floats], choice: Floats, cluster: NDArray[np.int64], base: str
) -> dict[str, dict[str, Any]]:
    """Every model's measures, and their changes from those of the base, with 95 % bootstrap intervals.

    Parameters
    ----------
    chances : dict of (H,)
        Chance of b by model.
    choice : (H,)
        1 where b was preferred.
    cluster : (H,)
        What is resampled: votes of one cluster stay together.
    base : str
        The model that others are compared with.
    """
    _, cluster = np.unique(cluster, return_inverse=True)
    clusters = int(cluster.max()) + 1
    draws, once = resampled(clusters), np.ones((1, clusters))
    sums = {name: Sums(chance, choice, cluster, clusters) for name, chance in chances.items()}
    drawn = {name: each.measured(draws) for name, each in sums.items()}
    found: dict[str, dict[str, Any]] = {}
    for name, each in sums.items():
        whole, against = each.measured(once), sums[base].measured(once)
        found[name] = {
            measure: {
                "value": float(whole[measure][0]),
                "interval": _interval(drawn[name][measure]),
                "change": float(whole[measure][0] - against[measure][0]),
                "change_interval": _interval(drawn[name][measure] - drawn[base][measure]),
            }
            for measure in whole
        }
    return found


def curve(chance: Floats, choice: Floats) -> list[dict[str, float]]:
    """Votes, mean chance and share of b in every bin that has votes."""
    index, _ = bins(chance, choice)
    return [
        {
            "votes": int((index == k).sum()),
            "chance": float(chance[index == k].mean()),
            "share": float(choice[index == k].mean()),
        }
        for k in range(BINS)
        if (index == k).any()
    ]
