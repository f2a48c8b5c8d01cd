"""The demonstration: a realistic campaign, made up so that the truth is known.

Prompts of several subjects lie in clusters, with features whose variance decays; each has a few completions.
Teachers are specialists: sharp in some subjects and close to guessing in others. The designs are compared on
it; then completions are put forward that stray from everything labelled, and the pessimistic policy is
compared with the greedy one.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .campaign import Design
from .comparison import BASELINES, Comparison, Problem, Simulation
from .conversations import Conversations
from .design import random_stream
from .policy import (
    PolicyNotConverged,
    greedy_policy,
    mean_features,
    pessimistic_policy,
)
from .radius import confidence_radius
from .reward import RewardModel

__all__ = ["DemoSize", "demo_comparison", "demo_problem", "policy_under_shift", "small"]

Floats = NDArray[np.float64]

CATEGORIES = ("writing", "coding", "mathematics", "advice")
#: Standard deviation of the usual features falls as a power law; the last few hardly vary among them.
DECAY = 0.6
RARE = 4
#: How much a feature varies among completions of another subject than its own.
QUIET = 0.35
#: How far completions stray in the rare features where policies are compared.
STRAY = 1.5
#: Standard deviation of the margins at rationality 1.
MARGIN = 1.2


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
    seed_labels: int = 60
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
    shape: dict[str, Any] = {"prompt_category": category, "category_names": CATEGORIES}
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
    """Standard deviation of each feature among the completions of a pool; the rare ones hardly vary."""
    scale: Floats = np.arange(1, d + 1, dtype=np.float64) ** -DECAY
    scale[d - RARE :] *= 0.1
    return scale


def _usual_completions(s: DemoSize, category: Any, rng: np.random.Generator) -> Floats:
    """(prompts, completions, features): a subject's centre, the prompt's own place, each completion's own."""
    d, c = s.features, len(CATEGORIES)
    scale = _scales(d)
    centre = 1.5 * rng.standard_normal((c, d)) * scale
    # Completions of a subject vary most in the subject's own features: each subject teaches something else.
    loud = np.where(np.arange(d) % c == np.arange(c)[:, None], 1.0, QUIET)
    place = centre[category] + 0.7 * rng.standard_normal((len(category), d)) * scale
    own = rng.standard_normal((len(category), s.completions, d)) * (scale * loud[category])[:, None]
    return np.asarray(place[:, None] + own)


def _true_reward(conversations: Conversations, rng: np.random.Generator) -> Floats:
    """A theta of many features; straying in the rare ones costs, as where completions game a reward."""
    d = conversations.d
    reward = rng.standard_normal(d) * np.arange(1, d + 1) ** (DECAY / 2)
    reward[d - RARE :] = -np.abs(reward[d - RARE :]) - 1.0
    return reward * (MARGIN / float(np.std(conversations.differences() @ reward)))


def _specialists(rng: np.random.Generator) -> tuple[Floats, tuple[str, ...]]:
    """(m, C) rationalities with geometric mean 1: specialists, all-rounders and careless ones."""
    c = len(CATEGORIES)
    rows, names = [], []
    for k, subject in enumerate(CATEGORIES):
        row = 0.35 * np.exp(0.2 * rng.standard_normal(c))
        row[k] = 4.0 * np.exp(0.2 * rng.standard_normal())
        rows.append(row)
        names.append(f"{subject} expert")
    for number in (1, 2):
        rows.append(np.exp(0.15 * rng.standard_normal(c)))
        names.append(f"all-rounder {number}")
    for number in (1, 2):
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


def small(seeds: int, prompts: int | None = None, budget: int | None = None) -> DemoSize:
    """The usual demonstration with other numbers of seeds, prompts or labels.

    Parameters
    ----------
    seeds : int
    prompts, budget : int, optional

    Returns
    -------
    DemoSize

    Examples
    --------
    >>> small(2, prompts=40, budget=60).budget
    60
    """
    size = replace(DemoSize(), seeds=seeds)
    if prompts is not None:
        size = replace(size, prompts=prompts, shift_prompts=prompts, shift_completions=8)
    if budget is not None:
        size = replace(size, budget=budget, seed_labels=min(size.seed_labels, budget))
    return size


def policy_under_shift(
    problem: Problem, size: DemoSize, models: Sequence[RewardModel], seed: int = 2026
) -> dict[str, Any]:
    """Best of more and more completions that stray from everything labelled, greedily and pessimistically.

    The completions vary as those of the pool do, and besides by heavy tails in the rare features, where every
    step costs true reward. The more of them there are, the further an optimiser can run after an error of the
    estimate.

    Parameters
    ----------
    problem : Problem
        From `demo_problem`.
    size : DemoSize
    models : sequence of RewardModel
        One fit for each seed.
    seed : int
        Draws the completions.

    Returns
    -------
    dict
        ``completions`` (the numbers to choose from), and for each seed a list over them: ``greedy``,
        ``pessimistic`` (true mean reward above the average completion), the same with ``_promised`` (the
        greedy policy's estimate, the pessimistic policy's lower bound), and ``best``; ``radius``.
    """
    truth = problem.simulation
    assert truth is not None
    phi = _straying_completions(size, random_stream(seed, "shift"))
    counts = [k for k in (2, 4, 8, 16, 32, 64, 128) if k <= size.shift_completions]
    radius = confidence_radius(size.features, 0.05, kind="policy")
    result: dict[str, Any] = {name: [] for name in _SHIFT_LINES}
    for model in models:
        rows = [_one_shift(phi[:, :k], truth.reward, model, radius) for k in counts]
        for name, line in zip(_SHIFT_LINES, zip(*rows, strict=True), strict=True):
            result[name].append(list(line))
    return {"completions": counts, "radius": radius, **result}


_SHIFT_LINES = ("greedy", "pessimistic", "greedy_promised", "pessimistic_promised", "best")


def _straying_completions(s: DemoSize, rng: np.random.Generator) -> Floats:
    """(prompts, completions, features)"""
    phi = rng.standard_normal((s.shift_prompts, s.shift_completions, s.features)) * _scales(s.features)
    stray = rng.standard_t(3, size=(s.shift_prompts, s.shift_completions, RARE))
    phi[:, :, s.features - RARE :] = STRAY * np.abs(stray)
    return np.asarray(phi)


def _one_shift(phi: Floats, truth: Floats, model: RewardModel, radius: float) -> tuple[float, ...]:
    """In the order of `_SHIFT_LINES`."""
    prompts, k, d = phi.shape
    rows, offsets = phi.reshape(-1, d), np.arange(prompts + 1) * k
    greedy = greedy_policy(rows, offsets, model.coef_, reference="mean")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PolicyNotConverged)  # a rough optimum will do for a picture
        careful = pessimistic_policy(
            rows, offsets, model.coef_, model.information_, radius, reference="mean", tol=1e-2, max_iter=100
        )
    best = greedy_policy(rows, offsets, truth, reference="mean").value
    true = [
        float((mean_features(rows, offsets, policy.probability) - policy.reference) @ truth)
        for policy in (greedy, careful)
    ]
    return true[0], true[1], greedy.value, careful.lower_bound, best
