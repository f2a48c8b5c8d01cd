"""The demonstration: a made-up but realistic campaign whose truth is known, so that everything can be checked.

Prompts of several subjects lie in clusters, with features whose variance decays; each has a few completions.
Teachers are specialists: sharp in some subjects and close to guessing in others. The designs are compared on it;
then completions are put forward that stray from everything labelled, and the pessimistic policy is compared with
the greedy one.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

import dal_native as dn

from .campaign import Design
from .comparison import BASELINES, Comparison, Problem, Simulation
from .conversations import Conversations
from .design import random_stream
from .policy import (
    PolicyNotConverged,
    confidence_radius,
    greedy_policy,
    mean_features,
    pessimistic_policy,
)
from .reward import RewardModel

__all__ = ["DemoSize", "demo_comparison", "demo_problem"]

Floats = NDArray[np.float64]

CATEGORIES = ("writing", "coding", "mathematics", "advice")
#: Standard deviation of the usual features falls as a power law; the last few hardly vary among them.
DECAY = 0.7
RARE = 4


@dataclass(frozen=True)
class DemoSize:
    """How large the demonstration is.

    Parameters
    ----------
    prompts, completions, features : int
        Prompts, completions of each, and features of a completion.
    budget, batch, seed_labels, seeds : int
        As in `Design` and `Comparison`.
    shift_prompts, shift_completions : int
        Prompts and completions of each where policies are compared.

    Examples
    --------
    >>> DemoSize().features
    32
    """

    prompts: int = 500
    completions: int = 4
    features: int = 32
    budget: int = 320
    batch: int = 20
    seed_labels: int = 40
    seeds: int = 5
    shift_prompts: int = 150
    shift_completions: int = 64


def demo_problem(size: DemoSize | None = None, seed: int = 2026) -> Problem:
    """The pool, the teachers and the truth.

    Parameters
    ----------
    size : DemoSize, optional
    seed : int
        Draws everything.

    Returns
    -------
    Problem
        Of a simulation.

    Examples
    --------
    >>> demo_problem(DemoSize(prompts=8)).conversations.n
    48
    """
    s = size or DemoSize()
    rng = random_stream(seed, "demo problem")
    category = np.arange(s.prompts) % len(CATEGORIES)
    shape = {"prompt_category": category, "category_names": CATEGORIES}
    rows = _usual_completions(s, category, rng).reshape(-1, s.features)
    offsets = np.arange(s.prompts + 1) * s.completions
    plain = Conversations.from_completions(rows, offsets, **shape)
    reward = _true_reward(plain, rng)
    gold = (plain.differences() @ reward > 0).astype(np.float64)
    rationality, names = _specialists(rng)
    return Problem(
        "dal demo (simulated)",
        Conversations.from_completions(rows, offsets, gold=gold, **shape),
        simulation=Simulation(reward, rationality, names=names),
    )


def _scales(d: int) -> Floats:
    """Standard deviation of each usual feature; the rare ones hardly vary."""
    scale = np.arange(1, d + 1) ** -DECAY
    scale[d - RARE :] *= 0.1
    return scale


def _usual_completions(s: DemoSize, category: Any, rng: np.random.Generator) -> Floats:
    """(prompts, completions, features): a subject's centre, the prompt's own place, each completion's own."""
    d, scale = s.features, _scales(s.features)
    centre = 1.5 * rng.standard_normal((len(CATEGORIES), d)) * scale
    # Completions of one subject vary most in directions of its own, so that subjects teach different things.
    loud = np.exp(0.6 * rng.standard_normal((len(CATEGORIES), d)))
    place = centre[category] + 0.7 * rng.standard_normal((len(category), d)) * scale
    own = rng.standard_normal((len(category), s.completions, d)) * (scale * loud[category])[:, None]
    return np.asarray(place[:, None] + own)


def _true_reward(conversations: Conversations, rng: np.random.Generator) -> Floats:
    """A theta that needs many features, scaled so that an average teacher is right about two times in three."""
    d = conversations.d
    reward = rng.standard_normal(d) * _scales(d) ** -0.5
    # Straying far in a rare direction is bad on the whole, as it is where completions game a reward.
    reward[d - RARE :] = -np.abs(rng.standard_normal(RARE)) * 0.5
    margin = conversations.differences() @ reward
    return reward * (1.2 / float(np.std(margin)))


def _specialists(rng: np.random.Generator) -> tuple[Floats, tuple[str, ...]]:
    """(m, C) rationalities with geometric mean 1: specialists, all-rounders and careless ones."""
    c = len(CATEGORIES)
    rows, names = [], []
    for k, subject in enumerate(CATEGORIES):
        for number in (1, 2):
            row = 0.35 * np.exp(0.2 * rng.standard_normal(c))
            row[k] = 4.0 * np.exp(0.2 * rng.standard_normal())
            rows.append(row)
            names.append(f"{subject} expert {number}")
    for number in (1, 2, 3):
        rows.append(np.exp(0.15 * rng.standard_normal(c)))
        names.append(f"all-rounder {number}")
    for number in (1, 2, 3):
        rows.append(0.2 * np.exp(0.2 * rng.standard_normal(c)))
        names.append(f"careless {number}")
    rationality = np.array(rows)
    return rationality / np.exp(np.log(rationality).mean()), tuple(names)


def demo_comparison(size: DemoSize | None = None) -> Comparison:
    """Every method, the oracle included.

    Parameters
    ----------
    size : DemoSize, optional

    Returns
    -------
    Comparison

    Examples
    --------
    >>> demo_comparison().methods[0], demo_comparison().methods[-1]
    ('dual', 'oracle')
    """
    s = size or DemoSize()
    return Comparison(
        design=Design(budget=s.budget, batch=s.batch, seed_labels=s.seed_labels),
        methods=("dual", *BASELINES, "oracle"),
        seeds=s.seeds,
        holdout=0.3,
    )
