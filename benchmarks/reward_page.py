"""What the reward fit gets right and where it cannot: plots and tables of docs/reward.md, all simulated.

usage: python -m benchmarks.reward_page --page docs/reward.md [--parts shrinkage confirming zero pieces]
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

import dal_learn as dl
import dal_native as dn
from benchmarks import common, pages
from benchmarks.learning.crowds import SENTENCES
from benchmarks.pages import Part

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

FITS = {"marginal": "against the posterior", "joint_map": "joint maximum"}
CHOICES = {"dual": "dual choice", "optimistic": "optimistic dual choice", "uniform": "uniform choice"}


@dataclass(frozen=True)
class Sizes:
    """How much is simulated; `SMALL` is for a try."""

    d: int = 6
    answers: tuple[int, ...] = (3, 10, 30, 100)
    alike: int = 12  # teachers with so many answers each
    crowds: int = 20
    loop_d: int = 32
    loop_n: int = 4_000
    loop_teachers: int = 20
    loop_labels: int = 600
    loop_seeds: int = 8
    odd: tuple[float, ...] = (-1.0, -0.5, 0.0, 0.25, 0.5, 1.0, 2.0)
    odd_repeats: int = 20
    odd_answers: int = 60
    biased: int = 12
    biased_answers: int = 100
    walkers: int = 6
    rounds: int = 12
    walked_answers: int = 30
    draws: int = 10


SMALL = Sizes(
    answers=(3, 20), alike=3, crowds=2, loop_d=4, loop_n=200, loop_teachers=4, loop_labels=80, loop_seeds=2,
    odd=(0.0, 1.0), odd_repeats=2, odd_answers=15, biased=3, biased_answers=20, walkers=2, rounds=3,
    walked_answers=10, draws=2,
)  # fmt: skip


def answers(rng: np.random.Generator, t: Floats) -> Floats:
    """1 with chance s(t), else 0."""
    return (rng.random(len(t)) < dn.choice_probability(t, 1.0)).astype(np.float64)


def centred(rationality: Floats) -> Floats:
    """On the scale of a fit: with a geometric mean of 1."""
    return np.asarray(rationality / np.exp(np.mean(np.log(rationality))))


# ------------------------------------------------------------------------------------------------- shrinkage


def shrinkage(sizes: Sizes) -> dict[str, Any]:
    """Teachers with few and many answers: estimates and intervals beside the truth."""
    count = np.tile(sizes.answers, sizes.alike)
    teacher = np.repeat(np.arange(len(count)), count)
    drawn = []
    for seed in range(sizes.crowds):
        rng = np.random.default_rng(seed)
        theta, x = rng.standard_normal(sizes.d), rng.standard_normal((len(teacher), sizes.d))
        true = centred(rng.lognormal(0.0, 0.5, len(count)))
        model = dl.RewardModel().fit(x, answers(rng, true[teacher] * (x @ theta)), teacher=teacher)
        ends = model.rationality_interval_[:, 0]
        drawn.append(np.column_stack([true, model.rationality_[:, 0], ends]))
    found = np.stack(drawn)
    groups = {}
    for k in sizes.answers:
        true, estimate, low, high = found[:, count == k].reshape(-1, 4).T
        groups[str(k)] = {
            "first": found[0, count == k].round(4).tolist(),
            "slope": float(np.polyfit(np.log(true), np.log(estimate), 1)[0]),
            "error": float(np.sqrt(np.mean(np.log(estimate / true) ** 2))),
            "width": float(np.median(high / low)),
            "covered": float(np.mean((low <= true) & (true <= high))),
            "teachers": len(true),
        }
    return {"groups": groups, "crowds": sizes.crowds}


def plot_shrinkage(found: Mapping[str, Any], figure: Any) -> None:
    panels = figure.subplots(1, len(found["groups"]), sharex=True, sharey=True, squeeze=False)[0]
    for panel, (k, group) in zip(panels, found["groups"].items(), strict=True):
        true, estimate, low, high = np.array(group["first"]).T
        panel.loglog([0.2, 5], [0.2, 5], color="tab:gray", linewidth=0.8)
        panel.axhline(1, color="tab:gray", linewidth=0.8, linestyle=":")
        panel.vlines(true, low, high, color="tab:blue", alpha=0.5, linewidth=1.2)
        panel.plot(true, estimate, "o", color="tab:blue", markersize=3.5)
        panel.set_title(f"{k} answers", fontsize=9)
        panel.set_xlabel("true rationality")
        ticks = [0.25, 0.5, 1, 2, 4]
        panel.set_xticks(ticks, [f"{v:g}" for v in ticks])
        panel.set_yticks(ticks, [f"{v:g}" for v in ticks])
        panel.minorticks_off()
    panels[0].set_ylabel("estimate, 95 % interval")


def table_shrinkage(found: Mapping[str, Any]) -> str:
    head = ["answers of a teacher", "slope of log estimate on log truth", "rms error of the log",
            "upper end / lower end, median", "intervals that hold the truth"]  # fmt: skip
    lines = [
        [k, f"{g['slope']:.2f}", f"{g['error']:.2f}", f"{g['width']:.1f}", f"{g['covered']:.1%}"]
        for k, g in found["groups"].items()
    ]
    each = next(iter(found["groups"].values()))["teachers"]
    return f"{found['crowds']} crowds, {each} teachers in each row.\n\n" + common.table(head, lines)


# ------------------------------------------------------------------------------- the self-confirming teacher


def confirming(sizes: Sizes) -> dict[str, Any]:
    """Two fits under active and under uniform choice: accuracy by labels, and beliefs about teachers."""
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in _LOOPS}
    for seed in range(sizes.loop_seeds):
        for name, found in runs.items():
            found.append(_loop(sizes, seed, *name.split(", ")))
        common.say(f"seed {seed}: " + ", ".join(f"{k} {v[-1]['accuracy'][-1]:.3f}" for k, v in runs.items()))
    return {"runs": runs}


def _loop(sizes: Sizes, seed: int, fit: str, choice: str) -> dict[str, Any]:
    """Rounds of 20 labels, a refit after each."""
    rng = np.random.default_rng(seed)
    d, m, n = sizes.loop_d, sizes.loop_teachers, sizes.loop_n
    rows = SENTENCES.rows(rng, 2 * n, d).astype(np.float64)
    theta = rng.standard_normal(d)
    rows *= 2.0 / np.std(rows @ theta)
    x, held_out = rows[:n], rows[n:]
    true = centred(rng.lognormal(0.0, 0.8, m))
    asked = np.column_stack([rng.permutation(n)[:40], np.arange(40) % m])
    model = dl.RewardModel(method=fit, tol=1e-4)
    label, curve = np.zeros(0), []
    while True:
        i, j = asked.T
        label = np.append(label, answers(rng, true[j[len(label) :]] * (x[i[len(label) :]] @ theta)))
        model.fit(x[i], label, teacher=j, n_teachers=m)
        curve.append(float(np.mean((held_out @ model.coef_ > 0) == (held_out @ theta > 0))))
        if len(asked) >= sizes.loop_labels:
            break
        if choice == "uniform":
            more = np.column_stack([rng.integers(0, n, 20), rng.integers(0, m, 20)])
        else:
            options: dict[str, Any] = {"exclude": asked, "threads": 1}
            if choice == "optimistic":
                options |= {"criterion": choice, "rationality_interval": model.rationality_interval_}
            batch = dn.select_batch(x, model.coef_, model.rationality_, model.information_, 20, **options)
            more = np.column_stack([batch.conversation, batch.teacher])
        asked = np.concatenate([asked, more])
    return {
        "labels": list(range(40, len(asked) + 1, 20)),
        "accuracy": [round(value, 5) for value in curve],
        "true": true.round(4).tolist(),
        "estimate": model.rationality_[:, 0].round(4).tolist(),
        "answers": np.bincount(asked[:, 1], minlength=m).tolist(),
    }


#: Fit and choice, with the colour and line of its curve.
_LOOPS = {
    "marginal, dual": ("tab:blue", "-"),
    "marginal, optimistic": ("tab:green", "--"),
    "joint_map, dual": ("tab:red", "-"),
    "marginal, uniform": ("tab:blue", ":"),
    "joint_map, uniform": ("tab:red", ":"),
}
#: Seeds whose teachers are drawn.
_SHOWN = 3
#: Answers from which on a teacher's mark is larger.
_MANY = (10, 30, 100)


def _loop_words(name: str) -> str:
    fit, choice = name.split(", ")
    return f"{FITS[fit]}, {CHOICES[choice]}"


def plot_confirming(found: Mapping[str, Any], figure: Any) -> None:
    curves, teachers = figure.subplots(1, 2)
    for name, runs in found["runs"].items():
        colour, line = _LOOPS[name]
        mean = np.mean([run["accuracy"] for run in runs], axis=0)
        curves.plot(runs[0]["labels"], mean, line, color=colour, label=_loop_words(name))
    curves.set_xlabel("labels")
    curves.set_ylabel("held-out accuracy, mean over seeds")
    curves.legend(fontsize=7)
    for fit, mark in (("marginal", "o"), ("joint_map", "s")):
        colour = _LOOPS[f"{fit}, dual"][0]
        runs = found["runs"][f"{fit}, dual"][:_SHOWN]
        true, estimate, count = (
            np.concatenate([run[key] for run in runs]) for key in ("true", "estimate", "answers")
        )
        size = np.digitize(count, _MANY)
        for k in np.unique(size):
            teachers.plot(true[size == k], estimate[size == k], mark, color=colour, fillstyle="none",
                          markersize=2 + 2.5 * k, markeredgewidth=0.8)  # fmt: skip
        teachers.plot([], [], mark, color=colour, fillstyle="none", label=_loop_words(f"{fit}, dual"))
    teachers.loglog([0.1, 10], [0.1, 10], color="tab:gray", linewidth=0.8)
    ticks = [0.1, 0.25, 0.5, 1, 2, 4, 10]
    teachers.set_xticks(ticks, [f"{value:g}" for value in ticks])
    teachers.set_yticks(ticks, [f"{value:g}" for value in ticks])
    teachers.minorticks_off()
    teachers.set_xlabel("true rationality (larger marks: more answers)")
    teachers.set_ylabel(f"estimate after the last round, {_SHOWN} seeds")
    teachers.legend(fontsize=7)


def table_confirming(found: Mapping[str, Any]) -> str:
    head = ["fit, choice of pairs", "held-out accuracy at the end", "standard error",
            "correlation of log rationality with the truth", "labels from the teacher asked most",
            "that teacher's estimate / truth, median", "that teacher's true rank, by seed"]  # fmt: skip
    lines = []
    for name, runs in found["runs"].items():
        last = np.array([run["accuracy"][-1] for run in runs])
        logs = [np.corrcoef(np.log(run["true"]), np.log(run["estimate"]))[0, 1] for run in runs]
        share = [max(run["answers"]) / sum(run["answers"]) for run in runs]
        over, rank = zip(*(_busiest(run) for run in runs), strict=True)
        lines.append(
            [_loop_words(name), f"{last.mean():.3f}", f"{last.std(ddof=1) / np.sqrt(len(last)):.3f}",
             f"{np.mean(logs):.2f}", f"{np.mean(share):.0%}", f"{np.median(over):.1f}",
             ", ".join(map(str, rank))]
        )  # fmt: skip
    seeds = len(next(iter(found["runs"].values())))
    return f"{seeds} seeds, the same crowds and first labels for every row.\n\n" + common.table(head, lines)


def _busiest(run: Mapping[str, Any]) -> tuple[float, int]:
    """Of the teacher who was asked most: estimate over truth, and true rank (1 is the most rational)."""
    true, k = np.array(run["true"]), int(np.argmax(run["answers"]))
    return float(run["estimate"][k] / true[k]), int(np.sum(true >= true[k]))


# --------------------------------------------------------------------------------------- near and below zero


def zero(sizes: Sizes) -> dict[str, Any]:
    """One odd teacher among eleven of rationality 1: intervals on the logarithm, and profiles."""
    teacher = np.tile(np.arange(12), sizes.odd_answers)
    found: dict[str, Any] = {}
    for true in sizes.odd:
        beta = np.append(true, np.ones(11))
        ends = []
        for seed in range(sizes.odd_repeats):
            rng = np.random.default_rng(seed)
            theta, x = rng.standard_normal(sizes.d), rng.standard_normal((len(teacher), sizes.d))
            model = dl.RewardModel().fit(x, answers(rng, beta[teacher] * (x @ theta)), teacher=teacher)
            others = float(np.exp(np.mean(np.log(model.rationality_[1:, 0]))))
            ends.append(np.append(model.rationality_interval_[0, 0], model.rationality_profile(0)) / others)
        common.say(f"true rationality {true:g}: median ends {np.median(ends, axis=0).round(2)}")
        low, high, profile_low, profile_high = np.array(ends).T
        found[f"{true:g}"] = {
            "ends": np.median(ends, axis=0).round(4).tolist(),
            "interval": int(np.sum((low <= true) & (true <= high))),
            "profile": int(np.sum((profile_low <= true) & (true <= profile_high))),
        }
    return {"repeats": sizes.odd_repeats, "answers": sizes.odd_answers, "teachers": found}


def plot_zero(found: Mapping[str, Any], figure: Any) -> None:
    panel = figure.subplots(1, 1)
    places = np.arange(len(found["teachers"]))
    ends = np.array([row["ends"] for row in found["teachers"].values()])
    true = [float(key) for key in found["teachers"]]
    panel.axhline(0, color="tab:red", linewidth=0.8)
    panel.vlines(places - 0.12, ends[:, 0], ends[:, 1], color="tab:gray", linewidth=5, alpha=0.7,
                 label="rationality_interval_ (logarithm)")  # fmt: skip
    panel.vlines(places + 0.12, ends[:, 2], ends[:, 3], color="tab:blue", linewidth=5, alpha=0.8,
                 label="rationality_profile")  # fmt: skip
    panel.hlines(true, places - 0.3, places + 0.3, color="black", linewidth=1.4, label="truth")
    panel.set_xticks(places, [f"{value:g}" for value in true])
    panel.set_xlabel("true rationality of the odd teacher")
    panel.set_ylabel("95 % intervals, median ends")
    panel.legend(fontsize=7, loc="upper left")


def table_zero(found: Mapping[str, Any]) -> str:
    head = ["true rationality", "`rationality_interval_`, median ends", "holds the truth",
            "`rationality_profile`, median ends", "holds the truth"]  # fmt: skip
    of = found["repeats"]
    lines = [
        [true, "{:.2f} to {:.2f}".format(*row["ends"][:2]), f"{row['interval']} of {of}",
         "{:.2f} to {:.2f}".format(*row["ends"][2:]), f"{row['profile']} of {of}"]
        for true, row in found["teachers"].items()
    ]  # fmt: skip
    words = f"{found['answers']} answers of each of 12 teachers; numbers relative to the other eleven.\n\n"
    return words + common.table(head, lines)


# ----------------------------------------------------------------------------------- position bias and drift


def pieces(sizes: Sizes) -> dict[str, Any]:
    """Position biases and drifting crowds, recovered: the first draw in full, errors over all."""
    biases = [_biases(sizes, seed) for seed in range(sizes.draws)]
    paths = [_paths(sizes, seed) for seed in range(sizes.draws)]
    true, estimate, error = (np.array([draw[k] for draw in biases]) for k in ("true", "estimate", "error"))
    inside = np.abs(estimate - true) <= 1.96 * error
    return {
        "draws": sizes.draws,
        "bias": biases[0]
        | {"size": _rms(true), "rms": _rms(estimate - true), "covered": float(np.mean(inside))},
        "drift": {
            "true": np.exp(paths[0]["true"]).round(4).tolist(),
            "estimate": np.exp(paths[0]["estimate"]).round(4).tolist(),
            "answers": sizes.walked_answers,
            "rms": _rms(np.array([draw["estimate"] - draw["true"] for draw in paths])),
            "rms_constant": _rms(np.array([draw["constant"] - draw["true"] for draw in paths])),
        },
    }


def _biases(sizes: Sizes, seed: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    teacher = np.tile(np.arange(sizes.biased), sizes.biased_answers)
    theta, x = rng.standard_normal(sizes.d), rng.standard_normal((len(teacher), sizes.d))
    true, beta = rng.normal(0.0, 0.5, sizes.biased), centred(rng.lognormal(0.0, 0.5, sizes.biased))
    side = rng.choice([-1, 1], len(teacher))
    label = answers(rng, beta[teacher] * (x @ theta) + true[teacher] * side)
    model = dl.RewardModel(position_bias=0.5).fit(x, label, teacher=teacher, side=side)
    found = {"true": true, "estimate": model.position_bias_, "error": model.position_bias_se_}
    return {key: values.round(4).tolist() for key, values in found.items()}


def _paths(sizes: Sizes, seed: int) -> dict[str, Floats]:
    """Logarithms: the truth, a fit that lets rationalities drift, and one that does not; (m, rounds)."""
    rng = np.random.default_rng(seed)
    m = sizes.walkers
    steps = np.column_stack([rng.normal(0.0, 0.5, m), rng.normal(0.0, 0.25, (m, sizes.rounds - 1))])
    true = np.cumsum(steps, axis=1)
    true -= true.mean()
    teacher = np.repeat(np.arange(m), sizes.rounds * sizes.walked_answers)
    when = np.tile(np.repeat(np.arange(sizes.rounds), sizes.walked_answers), m)
    theta, x = rng.standard_normal(sizes.d), rng.standard_normal((len(teacher), sizes.d))
    label = answers(rng, np.exp(true[teacher, when]) * (x @ theta))
    walking = dl.RewardModel(drift=0.25).fit(x, label, teacher=teacher, round=when)
    still = dl.RewardModel().fit(x, label, teacher=teacher)
    path, constant = np.log(walking.rationality_path_[:, 0]), np.log(still.rationality_)
    return {"true": true, "estimate": path, "constant": np.broadcast_to(constant, true.shape)}


def plot_pieces(found: Mapping[str, Any], figure: Any) -> None:
    biases, paths = figure.subplots(1, 2)
    true, estimate, error = (np.array(found["bias"][key]) for key in ("true", "estimate", "error"))
    biases.axline((0, 0), slope=1, color="tab:gray", linewidth=0.8)
    biases.errorbar(true, estimate, 1.96 * error, fmt="o", color="tab:blue", markersize=4, linewidth=1)
    biases.set_xlabel("true position bias")
    biases.set_ylabel("estimate -+ 1.96 standard errors")
    colours = ("tab:blue", "tab:orange", "tab:green", "tab:purple")
    both = zip(found["drift"]["true"], found["drift"]["estimate"], colours, strict=False)
    for k, (truth, path, colour) in enumerate(both):
        paths.semilogy(truth, "--", color=colour, linewidth=1, label="truth" if not k else None)
        paths.semilogy(path, "-", color=colour, linewidth=1.6, label="estimate" if not k else None)
    ticks = [0.25, 0.5, 1, 2, 4]
    paths.set_yticks(ticks, [f"{value:g}" for value in ticks])
    paths.minorticks_off()
    paths.set_xlabel("round")
    paths.set_ylabel("rationality of some teachers")
    paths.legend(fontsize=7)


def table_pieces(found: Mapping[str, Any]) -> str:
    bias, drift = found["bias"], found["drift"]
    m, rounds = np.shape(drift["true"])
    return (
        f"The first of {found['draws']} draws; errors over all. Left: {len(bias['true'])} teachers; true "
        f"biases have a root mean square of {bias['size']:.2f}, their estimates an error of "
        f"{bias['rms']:.2f}; {bias['covered']:.1%} of the intervals hold the truth. Right: {m} teachers over "
        f"{rounds} rounds, {drift['answers']} answers of each in a round, steps of 0.25; root mean square "
        f"error of log rationality {drift['rms']:.2f} with `drift=0.25`, {drift['rms_constant']:.2f} with "
        "one rationality for all rounds."
    )


def _rms(values: Floats) -> float:
    return float(np.sqrt(np.mean(values**2)))


# -------------------------------------------------------------------------------------------------- the page


PARTS: dict[str, Part[Sizes]] = {
    "shrinkage": Part(
        shrinkage, plot_shrinkage, table_shrinkage,
        "Estimated against true rationality for teachers with few and many answers",
    ),
    "confirming": Part(
        confirming, plot_confirming, table_confirming,
        "Held-out accuracy by labels, and estimated against true rationality, of two fits", (8.0, 3.4),
    ),
    "zero": Part(
        zero, plot_zero, table_zero,
        "Two kinds of 95 % intervals for a teacher of small or negative rationality", (6.0, 3.0),
    ),
    "pieces": Part(
        pieces, plot_pieces, table_pieces,
        "Estimated position biases against true ones, and rationalities that drift over rounds",
    ),
}  # fmt: skip


def with_seeds(sizes: Sizes, seeds: int) -> Sizes:
    """Draws of every part but the last."""
    return replace(sizes, crowds=seeds, loop_seeds=seeds, odd_repeats=seeds)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.reward_page",
        description="Simulates what a page says about the reward fit; refreshes its plots, tables and data.",
    )
    pages.main(parser, PARTS, Sizes(), SMALL, with_seeds, arguments)


if __name__ == "__main__":
    main()
