"""How often 95 % intervals of the reward and of the teachers hold the truth, over many simulated crowds.

    python -m benchmarks.coverage --runs 1000 --page docs/reward_coverage.md

Truths are drawn from the priors that the fit believes in (theta, and the logarithms of the rationalities with
their mean at 0, where the scale is anchored); what is covered is then a Bayesian statement, exact but for the
approximations of the fit. The last settings break the model on purpose.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import dal_learn as dl
import dal_native as dn
from benchmarks import common

Floats = NDArray[np.float64]

TAU, RHO = 0.5, 0.5  # spread of log rationalities, and the share of its variance that is the teacher's
MARGINS = 10  # fresh differences a run
BATCH, POOL = 40, 400  # of the adaptive setting
PSEUDO = 100_000  # labels that tell what a wrong model tends to


@dataclass(frozen=True)
class Setting:
    """One kind of crowd and design.

    Parameters
    ----------
    name : str
    labels, features, teachers, categories : int
    adaptive : bool
        Batches chosen by the dual rule, a refit after each.
    coin : bool
        The first teacher answers by a coin.
    copies : int
        Every answer is written down so many times (as its weight).
    jitter : float
        Spread of log rationality from answer to answer.
    options : dict
        Of `RewardModel`.
    profile : int
        In every so-many-th run take the first teacher's profile interval too; 0 for never.
    """

    name: str
    labels: int
    features: int
    teachers: int
    categories: int = 1
    adaptive: bool = False
    coin: bool = False
    copies: int = 1
    jitter: float = 0.0
    options: dict[str, Any] = field(default_factory=dict)
    profile: int = 0


SETTINGS = (
    Setting("600 labels, 5 features, 6 teachers", 600, 5, 6, profile=5),
    Setting("2,000 labels, 8 features, 10 teachers", 2000, 8, 10),
    Setting("1,200 labels, 6 features, 6 teachers x 2 categories", 1200, 6, 6, 2),
    Setting("200 labels, 8 features, 10 teachers", 200, 8, 10, profile=5),
    Setting("600 labels chosen by the dual rule, 6 features, 8 teachers", 600, 6, 8, adaptive=True),
    Setting("one teacher is a coin: 800 labels, 5 features, 6 teachers", 800, 5, 6, coin=True, profile=2),
    Setting("joint MAP: 600 labels, 5 features, 6 teachers", 600, 5, 6, options={"method": "joint_map"}),
    Setting("each answer written down three times: 800 labels, 5 features, 6 teachers", 800, 5, 6, copies=3),
    Setting(
        "rationality varies from answer to answer: 1,500 labels, 5 features, 6 teachers",
        1500,
        5,
        6,
        jitter=1.0,
    ),
)


@dataclass(frozen=True)
class Crowd:
    """A truth: theta (d,), rationalities (m, C)."""

    theta: Floats
    beta: Floats
    jitter: float

    @classmethod
    def draw(cls, setting: Setting, rng: np.random.Generator) -> Crowd:
        m, C = setting.teachers, setting.categories
        shared, own = rng.normal(size=(m, 1)), rng.normal(size=(m, C))
        log_beta = TAU * (np.sqrt(RHO) * shared + np.sqrt(1 - RHO) * own)
        beta = np.exp(log_beta - log_beta.mean())
        if setting.coin:
            beta[0] = 0.0
            beta[1:] /= np.exp(np.log(beta[1:]).mean())
        return cls(rng.normal(size=setting.features), beta, setting.jitter)

    def answers(self, x: Floats, j: NDArray[Any], c: NDArray[Any], rng: np.random.Generator) -> Floats:
        beta = self.beta[j, c] * np.exp(self.jitter * rng.normal(size=len(x)))
        return (rng.random(len(x)) < 1 / (1 + np.exp(-beta * (x @ self.theta)))).astype(np.float64)


def fitted(
    setting: Setting, crowd: Crowd, count: int, rng: np.random.Generator, **more: Any
) -> dl.RewardModel:
    """A fit to `count` labels of the crowd."""
    m, C, d = setting.teachers, setting.categories, setting.features
    model = dl.RewardModel(rationality_scale=TAU, category_correlation=RHO, **setting.options)
    sizes = {"n_teachers": m, "n_categories": C}
    if setting.adaptive:
        return adaptive(setting, crowd, model, rng)
    x, j, c = rng.normal(size=(count, d)), rng.integers(0, m, count), rng.integers(0, C, count)
    y = crowd.answers(x, j, c, rng)
    return model.fit(x, y, j, c, np.full(count, float(setting.copies)), **sizes)


def adaptive(
    setting: Setting, crowd: Crowd, model: dl.RewardModel, rng: np.random.Generator
) -> dl.RewardModel:
    """Batches by the dual rule from one pool."""
    m, d = setting.teachers, setting.features
    pool = rng.normal(size=(POOL + setting.labels, d))
    conversations = dn.Pool(pool)
    i, j = rng.choice(len(pool), BATCH, replace=False), np.arange(BATCH) % m
    y = crowd.answers(pool[i], j, np.zeros(BATCH, np.int64), rng)
    while True:
        model.fit(pool[i], y, j, n_teachers=m)
        model.set_params(warm_start=True)
        if len(i) >= setting.labels:
            return model
        asked = np.stack([i, j], axis=1)
        picks = dn.select_batch(
            conversations, model.coef_, model.rationality_, model.information_, BATCH, exclude=asked
        )
        new_i, new_j = picks.conversation, picks.teacher
        new_y = crowd.answers(pool[new_i], new_j, np.zeros(len(new_i), np.int64), rng)
        i, j, y = np.append(i, new_i), np.append(j, new_j), np.append(y, new_y)


def run(
    setting: Setting, truth: Crowd, model: dl.RewardModel, rng: np.random.Generator, profile: bool
) -> dict[str, float]:
    """Share of each kind of interval that holds its truth."""
    held = {}
    if profile:
        low, high = model.rationality_profile(0)
        # The profile's scale is that of the other cells.
        others = [np.exp(np.log(b.ravel()[1:]).mean()) for b in (model.rationality_, truth.beta)]
        held["profile"] = float(low < truth.beta[0, 0] * others[0] / others[1] < high)
    if setting.coin:  # no logarithm, so nothing has the scale on which the logarithms' mean is 0
        return held
    x, z = rng.normal(size=(MARGINS, setting.features)), 1.959964
    for robust, mark in ((False, ""), (True, " (sandwich)")):
        error = np.sqrt(np.diag(model.coef_covariance(robust=robust)))
        held[f"theta{mark}"] = float(np.mean(np.abs(model.coef_ - truth.theta) < z * error))
        low, high = model.reward_interval(x, robust=robust).T
        held[f"margins{mark}"] = float(np.mean((low < x @ truth.theta) & (x @ truth.theta < high)))
    low, high = model.rationality_interval_[..., 0], model.rationality_interval_[..., 1]
    held["rationalities"] = float(np.mean((low < truth.beta) & (truth.beta < high)))
    return held


def pseudo_truth(setting: Setting, crowd: Crowd, rng: np.random.Generator) -> Crowd:
    """What the fit tends to: the truth, or with a wrong model where a fit to very many labels ends."""
    if not setting.jitter:
        return crowd
    model = fitted(setting, crowd, PSEUDO, rng)
    return Crowd(model.coef_, model.rationality_, 0.0)


def measured(setting: Setting, runs: int, seed: int = 0) -> Iterator[dict[str, float]]:
    """One dict of shares a run."""
    root = np.random.default_rng([seed, len(setting.name), setting.labels])
    crowd = Crowd.draw(setting, root)
    truth = pseudo_truth(setting, crowd, root)
    for number in range(runs):
        rng = np.random.default_rng([seed, number, setting.labels, setting.teachers])
        if not setting.jitter:  # a wrong model's end has to be found once: there one crowd serves all runs
            crowd = truth = Crowd.draw(setting, rng)
        model = fitted(setting, crowd, setting.labels, rng)
        yield run(setting, truth, model, rng, bool(setting.profile) and number % setting.profile == 0)


@dataclass(frozen=True)
class Coverage:
    """Share held in per cent, and its standard error over runs."""

    mean: float
    error: float

    @classmethod
    def of(cls, shares: list[float]) -> Coverage:
        return cls(100 * float(np.mean(shares)), 100 * float(np.std(shares) / np.sqrt(len(shares))))

    def __str__(self) -> str:
        return f"{self.mean:.1f} ({self.error:.1f})"


KINDS = ("theta", "margins", "rationalities", "profile", "theta (sandwich)", "margins (sandwich)")


def summary(setting: Setting, runs: int, say: Callable[[str], None]) -> dict[str, Coverage]:
    """Coverage of every kind of interval in one setting."""
    begin = time.perf_counter()
    held = list(measured(setting, runs))
    shares = {kind: [one[kind] for one in held if kind in one] for kind in KINDS}
    found = {kind: Coverage.of(some) for kind, some in shares.items() if some}
    seconds = time.perf_counter() - begin
    say(f"{setting.name}: " + ", ".join(f"{k} {v}" for k, v in found.items()) + f"; {seconds:.0f} s")
    return found


def main() -> None:
    """Command line: measure, and refresh the page."""
    parser = argparse.ArgumentParser(description="Coverage of nominal 95 % intervals.")
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--only", type=int, nargs="*", help="numbers of settings, from 0")
    parser.add_argument("--page", type=Path)
    given = parser.parse_args()
    origin = common.provenance()
    chosen = SETTINGS if given.only is None else [SETTINGS[k] for k in given.only]
    lines = []
    for setting in chosen:
        found = summary(setting, given.runs, common.say)
        lines.append([setting.name, *[found.get(kind, "") for kind in KINDS]])
    text = common.table(["setting", *KINDS], lines)
    text += (
        f"\n\nPer cent over {given.runs:,} runs a setting (profiles: every fifth run, with a coin every other"
    )
    text += " one), in brackets its standard error. "
    text += common.source(origin)
    common.say(text)
    if given.page:
        common.refresh(given.page, "coverage", text)


if __name__ == "__main__":
    main()
