"""A peer and ours on one problem, in turn."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import common
from benchmarks.peers import exchange
from benchmarks.peers.side_by_side import Failed, Peer, Running
from benchmarks.reward_peers.problems import Comparisons, Differences, Learnt, told

PACKAGE = "benchmarks.reward_peers"
#: A first run that takes less only warms up.
SHORT = 2.0

#: Peers on scores of items, and on features.
ITEM_PEERS = {
    "evaluatorq fit_bt": Peer("evaluatorq", package=PACKAGE),
    "crowd-kit NoisyBradleyTerry": Peer("crowd_kit", package=PACKAGE),
    "choix opt_pairwise": Peer("choix", package=PACKAGE),
    "evalica bradley_terry": Peer("evalica", package=PACKAGE),
}
FEATURE_PEERS = {
    "scikit-learn LogisticRegression": Peer("scikit_learn", ("newton-cholesky", "1e-6"), package=PACKAGE),
    "scikit-activeml AnnotatorLogisticRegression": Peer("scikit_activeml", ("1",), package=PACKAGE),
    "scikit-activeml, annot_prior_full=2": Peer("scikit_activeml", ("2",), package=PACKAGE),
}
PEERS = ITEM_PEERS | FEATURE_PEERS


def arrays(answer: dict[str, Any]) -> dict[str, Any]:
    """An answer with its lists as arrays."""
    return {k: np.array(v, np.float64) if isinstance(v, list) else v for k, v in answer.items()}


def ours(fit: Callable[[], Learnt]) -> dict[str, Any]:
    """Our fit once, told as a peer tells its own."""
    learnt, took, _, grown = exchange.measured(fit)
    assert isinstance(learnt, Learnt)
    return arrays({"seconds": took, "grown_bytes": grown, **told(learnt)})


def answer(
    peer: Peer, given: Comparisons | Differences, limit: float, environments: Path | None
) -> dict[str, Any]:
    """What the peer learns, once.

    Raises
    ------
    Failed
        With what the peer said.
    """
    with tempfile.TemporaryDirectory() as name:
        exchange.hand_over(Path(name), given)
        with Running(peer, Path(name), limit, environments) as running:
            running.answer()
            return arrays(running.run())


def in_turn(
    peer: Peer,
    given: Comparisons | Differences,
    fit: Callable[[], Learnt],
    limit: float,
    environments: Path | None,
    pairs: int = 1,
    long: float = 10.0,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the peer learns and what ours does, in turn, with the medians of their seconds.

    A first run of less than `SHORT` seconds warms up and does not count, one of over `long` is the only one.

    Raises
    ------
    Failed
        With what the peer said.
    """
    seconds: list[tuple[float, float]] = []
    with tempfile.TemporaryDirectory() as name:
        exchange.hand_over(Path(name), given)
        with Running(peer, Path(name), limit, environments) as running:
            about = running.answer()
            theirs, mine = arrays(running.run()), ours(fit)
            if theirs["seconds"] > SHORT:
                seconds.append((theirs["seconds"], mine["seconds"]))
            while len(seconds) < (1 if theirs["seconds"] > long else pairs):
                theirs = arrays(running.run())
                time.sleep(0.1)  # idle threads of the peer's BLAS spin for a while
                mine = ours(fit)
                seconds.append((theirs["seconds"], mine["seconds"]))
    ratio = statistics.median(a / b for a, b in seconds)
    theirs["seconds"], mine["seconds"] = (statistics.median(side) for side in zip(*seconds, strict=True))
    return theirs | {"version": about["version"], "ratio": ratio}, mine


def tried(
    name: str,
    given: Comparisons | Differences,
    fit: Callable[[], Learnt],
    limit: float,
    environments: Path | None,
    pairs: int = 1,
) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """As `in_turn`, or why there is no answer."""
    try:
        return in_turn(PEERS[name], given, fit, limit, environments, pairs)
    except Failed as reason:
        common.say(f"  {name}: no figure: {reason}")
        return {"failed": str(reason)}, None
