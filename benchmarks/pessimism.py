"""What pessimism buys, and what it costs: plots and tables of docs/pessimism.md, all simulated.

usage: python -m benchmarks.pessimism [--page PAGE] [--parts zhu shift radius slope coverage cost]
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import dal_learn as dl
import dal_native as dn
from benchmarks import common, pages
from benchmarks.pages import Part
from dal_learn.policy import PolicyNotConverged

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

PAGE = Path(__file__).resolve().parents[1] / "docs" / "pessimism.md"
RIDGE = 0.1
DELTA = 0.1
TEMPERATURE = 0.1
#: Of a bootstrap.
DRAWS = 400


@dataclass(frozen=True)
class Sizes:
    """How much is simulated; `SMALL` is for a try."""

    zhu_labels: tuple[int, ...] = (10, 100, 1_000, 10_000, 100_000, 1_000_000)
    zhu_seeds: int = 300
    prompts: int = 30
    each: int = 12  # completions of a prompt, half of them of the kind that was labelled
    half: int = 6  # features of either kind
    shifts: tuple[float, ...] = (0.0, 0.5, 0.8, 0.9, 0.95, 0.98, 1.0)
    shift_labels: int = 400
    shift_seeds: int = 60
    radii: tuple[float, ...] = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.5, 8.0)
    radius_seeds: int = 60
    slope_labels: tuple[int, ...] = (400, 800, 1_600, 3_200, 6_400, 12_800, 25_600)
    slope_seeds: int = 200
    coverage_labels: tuple[int, ...] = (60, 240, 960)
    coverage_seeds: int = 150
    levels: tuple[float, ...] = (0.5, 0.3, 0.2, 0.1, 0.05)
    cost_seeds: int = 100


SMALL = Sizes(
    zhu_labels=(10, 1_000, 100_000), zhu_seeds=4, prompts=4, each=4, half=2, shifts=(0.0, 1.0),
    shift_labels=60, shift_seeds=3, radii=(0.0, 1.0, 4.0), radius_seeds=3, slope_labels=(60, 240),
    slope_seeds=3, coverage_labels=(60,), coverage_seeds=3, levels=(0.5, 0.1), cost_seeds=3,
)  # fmt: skip

# --------------------------------------------------------------------------------------------------- worlds


@dataclass(frozen=True)
class World:
    """Prompts with completions of two kinds; labels come mostly from the first.

    A completion of the first kind has features (a, 0), of the second (0.3 a, b), a and b normal: what b is
    worth shows only in labels about the second kind. `worse` moves b against theta, as completions
    that nobody has looked at tend to be worse than they seem.
    """

    phi: Floats
    offsets: Integers
    theta: Floats
    first_kind: NDArray[np.bool_]
    each: int

    @classmethod
    def drawn(cls, rng: np.random.Generator, sizes: Sizes, worse: float = 0.0) -> World:
        half, n = sizes.half, sizes.prompts * sizes.each
        first = np.tile(np.arange(sizes.each) < sizes.each // 2, sizes.prompts)
        a, b = rng.standard_normal((2, n, half))
        theta = rng.standard_normal(2 * half)
        theta *= 2.0 / np.linalg.norm(theta)
        b -= worse * theta[half:] / np.linalg.norm(theta[half:])
        phi = np.hstack([np.where(first[:, None], a, 0.3 * a), np.where(first[:, None], 0.0, b)])
        return cls(phi, np.arange(sizes.prompts + 1) * sizes.each, theta, first, sizes.each)

    @property
    def d(self) -> int:
        return self.phi.shape[1]

    def behaviour(self, shift: float) -> Floats:
        """Where labels come from: uniform, mixed with uniform over the first kind."""
        return np.where(self.first_kind, (1 + shift) / self.each, (1 - shift) / self.each)

    def pairs(self, rng: np.random.Generator, count: int, shift: float) -> Integers:
        """Pairs of one prompt: with chance 1 - shift of any two completions, else of the first kind."""
        prompt = rng.integers(0, len(self.offsets) - 1, count)
        among = np.where(rng.random(count) < shift, self.each // 2, self.each)
        one = (rng.random(count) * among).astype(np.int64)
        other = (rng.random(count) * (among - 1)).astype(np.int64)
        other += other >= one
        return np.stack([prompt * self.each + one, prompt * self.each + other], axis=1)

    def differences(self, pairs: Integers) -> Floats:
        return np.asarray(self.phi[pairs[:, 1]] - self.phi[pairs[:, 0]])

    def fitted(self, rng: np.random.Generator, count: int, shift: float) -> dl.RewardModel:
        x = self.differences(self.pairs(rng, count, shift))
        return dl.RewardModel(RIDGE, method="homogeneous").fit(x, answers(rng, x @ self.theta))

    def loss(self, probability: Floats, theta: Floats | None = None) -> float:
        """Share of what there is to gain that a policy leaves: 0 the best, 1 a uniform choice."""
        reward = self.phi @ (self.theta if theta is None else theta)
        best = float(np.maximum.reduceat(reward, self.offsets[:-1]).mean())
        mine = float(probability @ reward) / (len(self.offsets) - 1)
        return max(0.0, best - mine) / (best - float(reward.mean()))

    def distance_to_best(self, information: Floats, reference: Floats) -> float:
        """|x(pi*) - nu|_{M^-1}: how badly the labels cover the best policy."""
        away = dl.mean_features(self.phi, self.offsets, chosen(self, self.phi @ self.theta)) - reference
        return float(np.sqrt(away @ np.linalg.solve(information, away)))


def answers(rng: np.random.Generator, t: Floats) -> Floats:
    """1 with chance s(t), else 0."""
    return (rng.random(len(t)) < dn.choice_probability(t, 1.0)).astype(np.float64)


def chosen(world: World, reward: Floats) -> Floats:
    """Each prompt's best completion, as probabilities."""
    pick = world.offsets[:-1] + reward.reshape(-1, world.each).argmax(axis=1)
    probability = np.zeros(len(reward))
    probability[pick] = 1.0
    return probability


def joint(world: World, model: dl.RewardModel, radius: float, nu: Floats, **options: Any) -> Floats:
    """The jointly pessimistic policy's probabilities."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PolicyNotConverged)  # 1e-4 of what the rewards are is plenty here
        return dl.pessimistic_policy(
            *(world.phi, world.offsets, model.coef_, model.information_, radius),
            reference=nu,
            tol=1e-4,
            **options,
        ).probability


def pointwise(world: World, model: dl.RewardModel, radius: float, nu: Floats) -> Floats:
    """Best of n by the lower bound of each completion."""
    bound = dl.lower_confidence_bound(world.phi, model.coef_, model.information_, radius, reference=nu)
    return chosen(world, bound)


def mean_error(values: Floats) -> tuple[float, float]:
    """Mean over the first axis, and half of its 95 % interval."""
    return float(np.mean(values)), 1.96 * float(np.std(values, ddof=1)) / np.sqrt(len(values))


def words(values: Any) -> str:
    middle, half = mean_error(np.asarray(values))
    return f"{middle:.3f} ± {half:.3f}"


# -------------------------------------------------------------------------------- the instance of Zhu et al.

ACTIONS = np.array([[1.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
TRUTH = np.array([-1.0, 0.1, 0.9])
#: Name: radius used?, reference, temperature.
ZHU = {
    "greedy": (False, None, 0.0),
    "joint, nu = a3": (True, ACTIONS[2], 0.0),
    "pointwise, nu = a3": (True, ACTIONS[2], None),
    "KL, nu = a3": (True, ACTIONS[2], 0.01),
    "joint, nu = a2": (True, ACTIONS[1], 0.0),
    "joint, nu = mean of the actions": (True, ACTIONS.mean(axis=0), 0.0),
}


def zhu(sizes: Sizes) -> dict[str, Any]:
    """n - 1 comparisons of (a1, a2) and one of (a2, a3)."""
    loss: dict[str, list[list[float]]] = {name: [] for name in ZHU}
    for labels in sizes.zhu_labels:
        rows: dict[str, list[float]] = {name: [] for name in ZHU}
        for seed in range(sizes.zhu_seeds):
            rng = np.random.default_rng([1, labels, seed])
            model = _zhu_model(rng, labels)
            for name in ZHU:
                rows[name].append(_zhu_loss(name, model))
        for name in ZHU:
            loss[name].append(rows[name])
        common.say(f"{labels} labels: " + ", ".join(f"{k} {np.mean(v):.3f}" for k, v in rows.items()))
    return {
        "labels": list(sizes.zhu_labels),
        "seeds": sizes.zhu_seeds,
        "loss": {name: [mean_error(np.array(rows)) for rows in found] for name, found in loss.items()},
    }


def _zhu_model(rng: np.random.Generator, labels: int) -> dl.RewardModel:
    often, once = ACTIONS[0] - ACTIONS[1], ACTIONS[1] - ACTIONS[2]
    won = rng.binomial(labels - 1, dn.choice_probability(often @ TRUTH, 1.0))
    first = answers(rng, np.array([once @ TRUTH]))[0]
    weight = np.array([won, labels - 1 - won, first, 1 - first])
    x = np.stack([often, often, once, once])
    return dl.RewardModel(RIDGE, method="homogeneous").fit(x, [1, 0, 1, 0], sample_weight=weight)


def _zhu_loss(name: str, model: dl.RewardModel) -> float:
    careful, nu, temperature = ZHU[name]
    reward, information = model.coef_, model.information_
    if not careful:
        probability = dl.greedy_policy(ACTIONS, [0, 4], reward).probability
    elif temperature is None:
        bound = dl.lower_confidence_bound(ACTIONS, reward, information, _radius(model), reference=nu)
        probability = np.eye(4)[int(np.argmax(bound))]
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PolicyNotConverged)
            probability = dl.pessimistic_policy(
                *(ACTIONS, [0, 4], reward, information, _radius(model)),
                reference=nu,
                temperature=temperature,
            ).probability
    reward_true = ACTIONS @ TRUTH
    return float(reward_true.max() - probability @ reward_true)


def _radius(model: dl.RewardModel) -> float:
    return dl.nominal_radius(model, DELTA).value


def plot_zhu(found: Mapping[str, Any], figure: Any) -> None:
    panel = figure.subplots(1, 1)
    marks = ("s-", "o-", "v-", "^-", "d:", "x:")
    for (name, rows), mark in zip(found["loss"].items(), marks, strict=True):
        middle, half = np.array(rows).T
        panel.errorbar(found["labels"], middle, half, fmt=mark, markersize=4, label=name)
    panel.set_xscale("log")
    panel.set_xlabel("labels n")
    panel.set_ylabel("loss, mean and 95 % interval")
    figure.legend(fontsize=7, loc="outside right center")


def table_zhu(found: Mapping[str, Any]) -> str:
    head = ["loss at n labels", *(f"{n:,}" for n in found["labels"])]
    lines = [
        [name, *(f"{middle:.3f} ± {half:.3f}" for middle, half in rows)]
        for name, rows in found["loss"].items()
    ]
    return f"Seeds 0 to {found['seeds'] - 1} at each n.\n\n" + common.table(head, lines)


# -------------------------------------------------------------------------------------------- shift and loss

WORLDS = {"as good": 0.0, "worse": 1.5}


def shift(sizes: Sizes) -> dict[str, Any]:
    """Loss of policies as labels leave half of the completions out."""
    found: dict[str, Any] = {}
    for world, worse in WORLDS.items():
        found[world] = []
        for moved in sizes.shifts:
            runs = [_shifted(sizes, seed, moved, worse) for seed in range(sizes.shift_seeds)]
            rows = {key: [run[key] for run in runs] for key in runs[0]}
            found[world].append({key: np.round(rows[key], 5).tolist() for key in rows})
            common.say(
                f"{world}, shift {moved}: " + ", ".join(f"{k} {np.mean(v):.3f}" for k, v in rows.items())
            )
    return {"shifts": list(sizes.shifts), "labels": sizes.shift_labels, "worlds": found}


def _shifted(sizes: Sizes, seed: int, moved: float, worse: float) -> dict[str, float]:
    world = World.drawn(np.random.default_rng([2, seed]), sizes, worse)
    model = world.fitted(np.random.default_rng([3, seed, round(1000 * moved)]), sizes.shift_labels, moved)
    behaviour = world.behaviour(moved)
    nu = dl.mean_features(world.phi, world.offsets, behaviour)
    radius = radii(model) | {"policy": dl.nominal_radius(model, DELTA, "policy").value}
    policies = {"greedy": chosen(world, world.phi @ model.coef_)}
    for kind in ("ellipsoid", "policy"):
        policies[f"pointwise, {kind}"] = pointwise(world, model, radius[kind], nu)
    for kind in ("ellipsoid", "bootstrap", "calibrated", "policy"):
        policies[f"joint, {kind}"] = joint(world, model, radius[kind], nu)
    soft = {"temperature": TEMPERATURE, "base_policy": behaviour}
    for kind in ("ellipsoid", "policy"):
        policies[f"KL, {kind}"] = joint(world, model, radius[kind], nu, **soft)
    found = {name: world.loss(probability) for name, probability in policies.items()}
    found["behaviour"] = world.loss(behaviour)
    found["distance"] = world.distance_to_best(model.information_, nu)
    return found | {f"radius {kind}": value for kind, value in radius.items()}


def radii(model: dl.RewardModel, delta: float = DELTA, groups: Any = "conversation") -> dict[str, float]:
    """For all policies at once: as the model claims, from a bootstrap, and from held-out labels."""
    return {
        "ellipsoid": dl.nominal_radius(model, delta).value,
        "bootstrap": dl.bootstrap_radius(model, delta, groups=groups, n_boot=DRAWS).value,
        "calibrated": dl.calibrated_radius(model, delta, groups=groups).value,
    }


#: Colour and line of each policy drawn.
_DRAWN = {
    "greedy": ("tab:red", "-"),
    "pointwise, ellipsoid": ("tab:orange", "-"),
    "pointwise, policy": ("tab:orange", ":"),
    "joint, ellipsoid": ("tab:blue", "-"),
    "joint, policy": ("tab:blue", ":"),
    "joint, calibrated": ("tab:cyan", "--"),
    "KL, ellipsoid": ("tab:green", "-"),
    "KL, policy": ("tab:green", ":"),
}


def plot_shift(found: Mapping[str, Any], figure: Any) -> None:
    panels = figure.subplots(1, 2, sharey=True)
    places = np.arange(len(found["shifts"]))
    for panel, (world, rows) in zip(panels, found["worlds"].items(), strict=True):
        for name, (colour, line) in _DRAWN.items():
            middle, half = np.array([mean_error(np.array(row[name])) for row in rows]).T
            label = name if panel is panels[0] else None
            panel.plot(places, middle, line, color=colour, label=label, marker="o", markersize=2.5)
            panel.fill_between(places, middle - half, middle + half, color=colour, alpha=0.12, linewidth=0)
        panel.set_xticks(places, [f"{value:.0%}" for value in found["shifts"]])
        panel.set_title(f"second kind {world}", fontsize=9)
        panel.set_xlabel("shift: share of labels kept to the first kind")
        panel.set_ylim(0, 0.6)
    panels[0].set_ylabel("loss (1: a uniform choice)")
    figure.legend(fontsize=7, loc="outside right center")


def table_shift(found: Mapping[str, Any]) -> str:
    texts = []
    for world, rows in found["worlds"].items():
        names = [name for name in rows[0] if name != "distance" and not name.startswith("radius")]
        lines = [[name, *(words(row[name]) for row in rows)] for name in names]
        worst = [
            [f"*{name}, worst tenth*", *(f"{_worst_tenth(row[name]):.2f}" for row in rows)]
            for name in ("greedy", "joint, ellipsoid", "joint, policy")
        ]
        paired = [
            [f"*{name} less greedy*", *(_difference(row[name], row["greedy"]) for row in rows)]
            for name in ("joint, ellipsoid", "joint, policy", "pointwise, policy")
        ]
        sizes = [
            [label, *(f"{np.mean(row[key]):.2f}" for row in rows)]
            for label, key in (
                ("distance of the best policy", "distance"),
                *(
                    (f"radius, {kind}", f"radius {kind}")
                    for kind in ("ellipsoid", "bootstrap", "calibrated", "policy")
                ),
            )
        ]
        head = [f"second kind {world}; shift:", *(f"{value:.0%}" for value in found["shifts"])]
        texts.append(common.table(head, lines + worst + paired + sizes))
    seeds = len(next(iter(found["worlds"].values()))[0]["greedy"])
    return (
        f"{found['labels']} labels, seeds 0 to {seeds - 1}, the same worlds at every shift.\n\n"
        + "\n\n".join(texts)
    )


def _worst_tenth(values: Any) -> float:
    """Mean of the largest tenth, of one at least."""
    return float(np.mean(np.sort(values)[-max(1, len(values) // 10) :]))


def _difference(mine: Any, other: Any) -> str:
    middle, half = mean_error(np.asarray(mine) - np.asarray(other))
    return f"{middle:+.3f} ± {half:.3f}"


# ------------------------------------------------------------------------------------- coverage against loss

PLACES = {
    "no shift": (0.0, 0.0),
    "shift 95 %, as good": (0.95, 0.0),
    "shift 95 %, worse": (0.95, 1.5),
    "disjoint, worse": (1.0, 1.5),
}
TURNED = ("joint", "pointwise", "KL")


def turned(sizes: Sizes) -> dict[str, Any]:
    """Loss, and how often a policy's own lower bound holds, as the radius is turned up from 0."""
    found: dict[str, Any] = {}
    for place, (moved, worse) in PLACES.items():
        runs = [_turned(sizes, seed, moved, worse) for seed in range(sizes.radius_seeds)]
        found[place] = {
            name: [
                {"loss": mean_error(np.array(loss)), "held": float(np.mean(held))}
                for loss, held in (
                    np.transpose([run[name][k] for run in runs]) for k in range(len(sizes.radii))
                )
            ]
            for name in TURNED
        }
        nominal = float(np.mean([run["nominal"] for run in runs]))
        found[place]["nominal"] = nominal
        common.say(
            f"{place}: "
            + ", ".join(f"{row['loss'][0]:.3f} {row['held']:.2f}" for row in found[place]["joint"])
        )
    return {
        "radii": list(sizes.radii),
        "labels": sizes.shift_labels,
        "seeds": sizes.radius_seeds,
        "places": found,
    }


def _turned(sizes: Sizes, seed: int, moved: float, worse: float) -> dict[str, Any]:
    world = World.drawn(np.random.default_rng([11, seed]), sizes, worse)
    model = world.fitted(np.random.default_rng([12, seed, round(1000 * moved)]), sizes.shift_labels, moved)
    behaviour = world.behaviour(moved)
    nu = dl.mean_features(world.phi, world.offsets, behaviour)
    found: dict[str, Any] = {name: [] for name in TURNED} | {"nominal": dl.nominal_radius(model, DELTA).value}
    for radius in sizes.radii:
        soft = {"temperature": TEMPERATURE, "base_policy": behaviour}
        for name, probability in (
            ("joint", joint(world, model, radius, nu)),
            ("pointwise", pointwise(world, model, radius, nu)),
            ("KL", joint(world, model, radius, nu, **soft)),
        ):
            away = dl.mean_features(world.phi, world.offsets, probability) - nu
            held = away @ (model.coef_ - world.theta) <= radius * _norm(away, model.information_) + 1e-12
            found[name].append([world.loss(probability), float(held)])
    return found


def plot_turned(found: Mapping[str, Any], figure: Any) -> None:
    panels = figure.subplots(1, len(found["places"]), sharey=True)
    for panel, (place, rows) in zip(panels, found["places"].items(), strict=True):
        for name in TURNED:
            colour, _ = _DRAWN[f"{name}, ellipsoid"]
            held = [row["held"] for row in rows[name]]
            loss = [row["loss"][0] for row in rows[name]]
            panel.plot(
                held, loss, "o-", color=colour, markersize=3, label=name if panel is panels[0] else None
            )
            if name == "joint":
                for k in range(0, len(held), 2):
                    panel.annotate(f"{found['radii'][k]:g}", (held[k], loss[k]), fontsize=6, xytext=(2, 3),
                                   textcoords="offset points")  # fmt: skip
        panel.axvline(1 - DELTA, color="black", linewidth=0.6)
        panel.set_title(place, fontsize=9)
        panel.set_xlabel("lower bounds that hold")
        panel.set_xlim(-0.03, 1.06)
    panels[0].set_ylabel("loss (1: a uniform choice)")
    figure.legend(fontsize=7, loc="outside right center")


def table_turned(found: Mapping[str, Any]) -> str:
    head = ["", "policy", *(f"radius {radius:g}" for radius in found["radii"]), "ellipsoid's radius"]
    lines = []
    for place, rows in found["places"].items():
        for name in TURNED:
            cells = [f"{row['loss'][0]:.3f} ({row['held']:.0%})" for row in rows[name]]
            lines.append([place, name, *cells, f"{rows['nominal']:.1f}"])
    text = (
        f"{found['labels']} labels, seeds 0 to {found['seeds'] - 1}. Loss (share of lower bounds that hold)."
    )
    return f"{text}\n\n{common.table(head, lines)}"


# --------------------------------------------------------------------------------------------------- slopes

SLOPES = ("greedy", "pointwise, ellipsoid", "joint, ellipsoid", "joint, policy", "bound")


def slope(sizes: Sizes) -> dict[str, Any]:
    """Loss against the number of labels over random instances, half of the labels kept to the first kind."""
    found: dict[str, list[list[float]]] = {name: [] for name in SLOPES}
    for labels in sizes.slope_labels:
        rows = [_sloping(sizes, seed, labels) for seed in range(sizes.slope_seeds)]
        for name in SLOPES:
            found[name].append([row[name] for row in rows])
        common.say(f"{labels} labels: " + ", ".join(f"{k} {np.mean(v[-1]):.4f}" for k, v in found.items()))
    fitted = {name: _slope(sizes.slope_labels, np.array(values)) for name, values in found.items()}
    means = {name: [mean_error(np.array(row)) for row in values] for name, values in found.items()}
    return {"labels": list(sizes.slope_labels), "seeds": sizes.slope_seeds, "loss": means, "slope": fitted}


def _sloping(sizes: Sizes, seed: int, labels: int) -> dict[str, float]:
    world = World.drawn(np.random.default_rng([4, seed]), sizes)
    model = world.fitted(np.random.default_rng([5, seed, labels]), labels, 0.5)
    nu = dl.mean_features(world.phi, world.offsets, world.behaviour(0.5))
    nominal = dl.nominal_radius(model, DELTA).value
    policy = dl.nominal_radius(model, DELTA, "policy").value
    reward = world.phi @ world.theta
    gain = float(np.maximum.reduceat(reward, world.offsets[:-1]).mean() - reward.mean())
    return {
        "greedy": world.loss(chosen(world, world.phi @ model.coef_)),
        "pointwise, ellipsoid": world.loss(pointwise(world, model, nominal, nu)),
        "joint, ellipsoid": world.loss(joint(world, model, nominal, nu)),
        "joint, policy": world.loss(joint(world, model, policy, nu)),
        "bound": 2 * nominal * world.distance_to_best(model.information_, nu) / gain,
    }


def _slope(labels: tuple[int, ...], loss: Floats) -> list[float]:
    """Of log mean loss on log labels, with the ends of a 95 % interval over instances (bootstrap)."""
    rng = np.random.default_rng(6)
    logs = np.log(labels)

    def fit(columns: Integers) -> float:
        mean = np.maximum(loss[:, columns].mean(axis=1), 1e-12)
        return float(np.polyfit(logs, np.log(mean), 1)[0])

    count = loss.shape[1]
    drawn = [fit(rng.integers(0, count, count)) for _ in range(2000)]
    return [fit(np.arange(count)), *np.quantile(drawn, [0.025, 0.975]).tolist()]


def plot_slope(found: Mapping[str, Any], figure: Any) -> None:
    panel = figure.subplots(1, 1)
    for name, rows in found["loss"].items():
        middle, half = np.array(rows).T
        colour, line = _DRAWN.get(name, ("tab:gray", "--"))
        text = "2 radius |x(pi*) - nu|" if name == "bound" else name
        low = np.minimum(half, 0.9 * middle)
        panel.errorbar(
            found["labels"], middle, [low, half], fmt=line, color=colour, marker="o", markersize=3, label=text
        )
    panel.set_xscale("log")
    panel.set_yscale("log")
    panel.set_xlabel("labels T")
    panel.set_ylabel("loss, mean over instances")
    figure.legend(fontsize=7, loc="outside right center")


def table_slope(found: Mapping[str, Any]) -> str:
    head = ["", "slope", "95 % interval over instances", *(f"T = {n:,}" for n in found["labels"])]
    lines = []
    for name, rows in found["loss"].items():
        middle, low, high = found["slope"][name]
        text = "2 radius times distance (the bound)" if name == "bound" else name
        lines.append(
            [text, f"{middle:.2f}", f"{low:.2f} to {high:.2f}", *(f"{mean:.4f}" for mean, _ in rows)]
        )
    return f"Instances 0 to {found['seeds'] - 1}.\n\n" + common.table(head, lines)


# -------------------------------------------------------------------------------------------------- coverage

TEACHERS = 12
#: What is wrong with the labels, and what shares a fold or a weight.
TROUBLES = {
    "none": "conversation",
    "adaptive": "conversation",
    "copied": "conversation",
    "tastes": "teacher",
    "rationalities": "conversation",
    "lapses": "conversation",
}
_TROUBLE_WORDS = {
    "none": "the model is right",
    "adaptive": "right, pairs and teachers chosen round by round",
    "copied": "every answer copied by three others",
    "tastes": "each teacher a theta of his own (grouped by teacher)",
    "rationalities": "rationalities of others believed",
    "lapses": "a fifth of the answers by a coin",
}


def coverage(sizes: Sizes) -> dict[str, Any]:
    """How often lower bounds hold, by trouble, number of labels and radius."""
    table: dict[str, Any] = {}
    for trouble in TROUBLES:
        table[trouble] = {}
        for labels in sizes.coverage_labels:
            runs = [_covered(sizes, seed, trouble, labels, DELTA) for seed in range(sizes.coverage_seeds)]
            rows = {key: float(np.mean([run[key] for run in runs])) for key in runs[0]}
            table[trouble][str(labels)] = rows
            common.say(f"{trouble}, {labels}: " + ", ".join(f"{k} {v:.3f}" for k, v in rows.items()))
    middle = sizes.coverage_labels[len(sizes.coverage_labels) // 2]
    curves = {
        trouble: [
            {key: float(np.mean([run[key] for run in runs])) for key in runs[0]}
            for runs in (
                [_covered(sizes, seed, trouble, middle, delta) for seed in range(sizes.coverage_seeds)]
                for delta in sizes.levels
            )
        ]
        for trouble in ("none", "copied")
    }
    return {
        "seeds": sizes.coverage_seeds,
        "table": table,
        "levels": list(sizes.levels),
        "curves": curves,
        "curve_labels": middle,
    }


def _covered(sizes: Sizes, seed: int, trouble: str, labels: int, delta: float) -> dict[str, float]:
    """1 where a bound holds: of all policies at once, of the greedy policy, of a fixed one, of 20 samples."""
    half = replace(sizes, half=3, each=8, prompts=20)
    world = World.drawn(np.random.default_rng([7, seed]), half)
    model, best = _troubled(world, np.random.default_rng([8, seed, labels]), trouble, labels)
    error, information = model.coef_ - best, model.information_
    length = float(np.sqrt(error @ information @ error))
    greedy = dl.mean_features(world.phi, world.offsets, chosen(world, world.phi @ model.coef_))
    greedy -= dl.mean_features(world.phi, world.offsets, world.behaviour(0.0))
    found: dict[str, float] = {}
    for name, radius in radii(model, delta, TROUBLES[trouble]).items():
        found[f"{name}: all"] = length <= radius
        found[f"{name}: greedy"] = greedy @ error <= radius * _norm(greedy, information)
        found[f"{name}: radius"] = radius
    unmoved = dl.nominal_radius(model, delta, reward_norm=0.0).value
    found["no ridge term: all"] = length <= unmoved
    found["no ridge term: radius"] = unmoved
    fixed = world.phi[:: world.each].mean(axis=0) - world.phi.mean(axis=0)
    single = dl.nominal_radius(model, delta, "policy").value
    found["policy: fixed"] = fixed @ error <= single * _norm(fixed, information)
    found["policy: greedy"] = greedy @ error <= single * _norm(greedy, information)
    found["policy: radius"] = single
    some = world.phi[:20] - world.phi.mean(axis=0)
    together = dl.nominal_radius(model, delta, "sample", count=20).value
    norms = np.sqrt(np.einsum("ij,ij->i", some, np.linalg.solve(information, some.T).T))
    found["sample: 20 at once"] = bool(np.all(some @ error <= together * norms))
    found["sample: radius"] = together
    return {key: float(value) for key, value in found.items()}


def _norm(x: Floats, information: Floats) -> float:
    return float(np.sqrt(x @ np.linalg.solve(information, x)))


def _troubled(
    world: World, rng: np.random.Generator, trouble: str, labels: int
) -> tuple[dl.RewardModel, Floats]:
    """A model fitted to labels it may misunderstand, and the theta that predicts endless such labels best."""
    if trouble == "adaptive":
        return _chosen_by_design(world, rng, labels), world.theta
    copies = 4 if trouble == "copied" else 1
    x = world.differences(world.pairs(rng, labels // copies, 0.0))
    teacher = np.arange(len(x)) % TEACHERS
    beta = np.exp(rng.normal(0.0, 0.8, TEACHERS)) if trouble == "rationalities" else np.ones(TEACHERS)
    spread = 0.4 if trouble == "tastes" else 0.0
    lapse = 0.2 if trouble == "lapses" else 0.0
    own = world.theta + spread * rng.standard_normal((TEACHERS, world.d))
    t = beta[teacher] * np.sum(x * own[teacher], axis=1)
    y = np.where(rng.random(len(x)) < lapse, rng.integers(0, 2, len(x)), answers(rng, t))
    believed = rng.permutation(beta)[:, None]
    parameters: dict[str, Any] = {"rationality": believed}
    model = dl.RewardModel(RIDGE, **parameters)
    model.fit(np.tile(x, (copies, 1)), np.tile(y, copies), teacher=np.tile(teacher, copies))
    if trouble in ("none", "copied"):
        return model, world.theta
    chance = _chance(world, beta, spread, lapse)
    every, asked = _every(world), np.repeat(np.arange(TEACHERS), len(chance[0]))
    endless = dl.RewardModel(1e-6, **parameters)
    endless.fit(np.tile(every, (TEACHERS, 1)), np.concatenate(chance), teacher=asked)
    return model, endless.coef_


def _chosen_by_design(world: World, rng: np.random.Generator, labels: int) -> dl.RewardModel:
    """Batches of 20 from D-optimal selection, a fit after each; no teacher answers the same pair twice."""
    pool = dn.Pool.from_completions(world.phi, world.offsets)
    every, beta = pool.take(np.arange(len(pool))), np.ones((TEACHERS, 1))
    asked = np.stack([rng.permutation(len(pool))[:20], np.arange(20) % TEACHERS], axis=1)
    y = np.zeros(0)
    while True:
        y = np.append(y, answers(rng, every[asked[len(y) :, 0]] @ world.theta))
        model = dl.RewardModel(RIDGE, rationality=beta)
        model.fit(every[asked[:, 0]], y, teacher=asked[:, 1])
        if len(asked) >= labels:
            return model
        batch = dn.select_batch(pool, model.coef_, beta, model.information_, 20, exclude=asked, threads=1)
        asked = np.concatenate([asked, np.stack([batch.conversation, batch.teacher], axis=1)])


def _every(world: World) -> Floats:
    """Differences of all pairs of each prompt, one way round: the answers' chances are symmetric."""
    a, b = np.triu_indices(world.each, 1)
    start = world.offsets[:-1, None]
    return np.asarray((world.phi[start + b] - world.phi[start + a]).reshape(-1, world.d))


def _chance(world: World, beta: Floats, spread: float, lapse: float) -> list[Floats]:
    """Of b, by teacher and pair, averaged over tastes."""
    every = _every(world)
    node, weight = np.polynomial.hermite_e.hermegauss(24)
    t = (every @ world.theta)[:, None] + spread * np.linalg.norm(every, axis=1)[:, None] * node
    found = []
    for b in beta:
        chance = np.asarray(dn.choice_probability(b * t, 1.0)) @ (weight / weight.sum())
        found.append(lapse / 2 + (1 - lapse) * chance)
    return found


def plot_coverage(found: Mapping[str, Any], figure: Any) -> None:
    panels = figure.subplots(1, 1 + len(found["curves"]))
    first, *others = panels
    places, width = np.arange(len(found["table"])), 0.2
    last = list(next(iter(found["table"].values())))[-1]
    for k, (name, colour) in enumerate(_SOURCES.items()):
        heights = [rows[last][f"{name}: all"] for rows in found["table"].values()]
        first.bar(places + (k - 1.5) * width, heights, width, color=colour, label=name)
    first.axhline(1 - DELTA, color="black", linewidth=0.8)
    first.set_xticks(places, list(found["table"]), rotation=30, ha="right", fontsize=7)
    first.set_ylim(0, 1.02)
    first.set_ylabel(f"all policies covered, {last} labels")
    for panel, (trouble, rows) in zip(others, found["curves"].items(), strict=True):
        nominal = 1 - np.array(found["levels"])
        panel.plot([0.4, 1], [0.4, 1], color="tab:gray", linewidth=0.8)
        for name, colour in _SOURCES.items():
            panel.plot(nominal, [row[f"{name}: all"] for row in rows], "o-", color=colour, markersize=3)
        panel.set_title(f"{trouble}, {found['curve_labels']} labels", fontsize=9)
        panel.set_xlabel("nominal coverage")
        panel.set_ylim(0, 1.02)
    first.set_title("trouble with the labels", fontsize=9)
    figure.legend(fontsize=7, loc="outside right center")


_SOURCES = {
    "no ridge term": "tab:gray",
    "ellipsoid": "tab:blue",
    "bootstrap": "tab:orange",
    "calibrated": "tab:green",
}


def table_coverage(found: Mapping[str, Any]) -> str:
    radii_shown = (f"{name}: all / greedy (radius)" for name in _SOURCES if name != "no ridge term")
    head = ["trouble with the labels", "labels", *radii_shown, "no ridge term: all", "policy: fixed / greedy",
            "20 samples"]  # fmt: skip
    lines = []
    for trouble, rows in found["table"].items():
        for labels, row in rows.items():
            cells = [
                f"{row[f'{name}: all']:.0%} / {row[f'{name}: greedy']:.0%} ({row[f'{name}: radius']:.1f})"
                for name in ("ellipsoid", "bootstrap", "calibrated")
            ]
            cells += [
                f"{row['no ridge term: all']:.0%}",
                f"{row['policy: fixed']:.0%} / {row['policy: greedy']:.0%}",
            ]
            lines.append([_TROUBLE_WORDS[trouble], labels, *cells, f"{row['sample: 20 at once']:.0%}"])
    error = 1.96 * np.sqrt(DELTA * (1 - DELTA) / found["seeds"])
    curves = []
    for trouble, rows in found["curves"].items():
        for name in _SOURCES:
            curves.append([_TROUBLE_WORDS[trouble], name, *(f"{row[f'{name}: all']:.0%}" for row in rows)])
    levels = ["all policies at once; nominal:", "radius", *(f"{1 - level:.0%}" for level in found["levels"])]
    return (
        f"Nominal {1 - DELTA:.0%}; seeds 0 to {found['seeds'] - 1}, so that {1 - DELTA:.0%} is measured to "
        f"within ± {error:.1%}.\n\n{common.table(head, lines)}\n\nAt {found['curve_labels']} labels:\n\n"
        + common.table(levels, curves)
    )


# ---------------------------------------------------------------------------------------------- what it costs


@dataclass(frozen=True)
class Setting:
    """One way in which pessimism may cost."""

    words: str
    labels: int
    shift: float
    worse: float = 0.0
    reference: str = "behaviour"
    times: float = 1.0


SETTINGS = (
    Setting("no shift, many labels", 6_400, 0.0),
    Setting("no shift", 400, 0.0),
    Setting("no shift, radius doubled", 400, 0.0, times=2.0),
    Setting("no shift, radius times 4", 400, 0.0, times=4.0),
    Setting("no shift, few labels", 100, 0.0),
    Setting("shift 90 %, second kind as good", 400, 0.9),
    Setting("shift 90 %, second kind worse", 400, 0.9, 1.5),
    Setting("the same, reference in the second kind", 400, 0.9, 1.5, "second kind"),
    Setting("the same, reference 0", 400, 0.9, 1.5, "zero"),
)


def cost(sizes: Sizes) -> dict[str, Any]:
    """Loss beside greedy's where pessimism has little to give."""
    found = []
    for setting in SETTINGS:
        setting = replace(setting, labels=min(setting.labels, 16 * sizes.shift_labels))
        runs = [_costing(sizes, seed, setting) for seed in range(sizes.cost_seeds)]
        rows = {key: [run[key] for run in runs] for key in runs[0]}
        common.say(f"{setting.words}: " + ", ".join(f"{k} {np.mean(v):.3f}" for k, v in rows.items()))
        found.append({"words": setting.words, "labels": setting.labels, "loss": rows})
    return {"seeds": sizes.cost_seeds, "settings": found}


def _costing(sizes: Sizes, seed: int, setting: Setting) -> dict[str, float]:
    world = World.drawn(np.random.default_rng([9, seed]), sizes, setting.worse)
    model = world.fitted(np.random.default_rng([10, seed, setting.labels]), setting.labels, setting.shift)
    behaviour = world.behaviour(setting.shift)
    nu = {
        "behaviour": dl.mean_features(world.phi, world.offsets, behaviour),
        "second kind": world.phi[~world.first_kind].mean(axis=0),
        "zero": np.zeros(world.d),
    }[setting.reference]
    found = {"greedy": world.loss(chosen(world, world.phi @ model.coef_))}
    for kind in ("ellipsoid", "policy"):
        radius = setting.times * dl.nominal_radius(model, DELTA, kind).value
        found[f"joint, {kind}"] = world.loss(joint(world, model, radius, nu))
        found[f"pointwise, {kind}"] = world.loss(pointwise(world, model, radius, nu))
    soft = {"temperature": TEMPERATURE, "base_policy": behaviour}
    radius = setting.times * dl.nominal_radius(model, DELTA).value
    found["KL, ellipsoid"] = world.loss(joint(world, model, radius, nu, **soft))
    return found


def plot_cost(found: Mapping[str, Any], figure: Any) -> None:
    panel = figure.subplots(1, 1)
    places = np.arange(len(found["settings"]))[::-1]
    names = [name for name in found["settings"][0]["loss"] if name != "greedy"]
    for k, name in enumerate(names):
        differences = [
            mean_error(np.array(row["loss"][name]) - np.array(row["loss"]["greedy"]))
            for row in found["settings"]
        ]
        middle, half = np.array(differences).T
        colour, line = _DRAWN[name]
        mark = "o" if line == "-" else "^"
        at = places - 0.12 * (k - (len(names) - 1) / 2)
        panel.errorbar(middle, at, xerr=half, fmt=mark, color=colour, markersize=3.5, label=name)
    panel.axvline(0, color="tab:red", linewidth=0.8)
    panel.set_yticks(places, [f"{row['words']} ({row['labels']:,})" for row in found["settings"]], fontsize=7)
    panel.set_xlabel("loss less that of greedy: to the right pessimism costs")
    figure.legend(fontsize=7, loc="outside right center")


def table_cost(found: Mapping[str, Any]) -> str:
    names = [name for name in found["settings"][0]["loss"] if name != "greedy"]
    head = ["setting", "labels", "loss of greedy", *(f"{name}, less greedy" for name in names)]
    lines = []
    for row in found["settings"]:
        loss = row["loss"]
        lines.append([row["words"], f"{row['labels']:,}", words(loss["greedy"]),
                      *(_difference(loss[name], loss["greedy"]) for name in names)])  # fmt: skip
    return f"Seeds 0 to {found['seeds'] - 1}.\n\n" + common.table(head, lines)


# -------------------------------------------------------------------------------------------------- the page

PARTS: dict[str, Part[Sizes]] = {
    "zhu": Part(
        zhu, plot_zhu, table_zhu,
        "Loss against the number of labels on the instance of Zhu, Jordan and Jiao", (8.0, 3.2),
    ),
    "shift": Part(
        shift, plot_shift, table_shift,
        "Loss of greedy and pessimistic policies against the shift between labels and target", (9.0, 3.6),
    ),
    "radius": Part(
        turned, plot_turned, table_turned,
        "Loss against the share of lower bounds that hold, as the radius grows", (9.5, 3.0),
    ),
    "slope": Part(
        slope, plot_slope, table_slope,
        "Loss against the number of labels, both on logarithmic scales", (8.0, 3.2),
    ),
    "coverage": Part(
        coverage, plot_coverage, table_coverage, "Measured against nominal coverage by radius", (9.0, 3.2)
    ),
    "cost": Part(cost, plot_cost, table_cost, "Loss less that of the greedy policy, by setting", (8.5, 3.8)),
}  # fmt: skip


def with_seeds(sizes: Sizes, seeds: int) -> Sizes:
    return replace(
        sizes,
        zhu_seeds=seeds,
        shift_seeds=seeds,
        radius_seeds=seeds,
        slope_seeds=seeds,
        coverage_seeds=seeds,
        cost_seeds=seeds,
    )


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.pessimism",
        description="Simulates what docs/pessimism.md says; refreshes its plots, tables and data.",
    )
    pages.main(parser, PARTS, Sizes(), SMALL, with_seeds, arguments, PAGE)


if __name__ == "__main__":
    main()
