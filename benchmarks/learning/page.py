"""Tables and plots of what the cells say."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from benchmarks import common
from benchmarks.learning.crowds import Setting
from benchmarks.learning.loop import KNOWN, OURS, RIVALS, SPREAD_METHODS

Cell = Mapping[str, Any]

#: How methods are called in tables; others by their name.
WORDS = {
    OURS: "**dual, learnt rationalities**",
    KNOWN: "dual, rationalities known",
    "dual:criterion=plug_in": "dual, plug-in weights",
    "dual:criterion=nuisance": "dual, D_s",
    "dual:criterion=plug_in,fit=joint_map": "dual, plug-in weights, joint MAP fit",
    "dual:fit=homogeneous": "dual, homogeneous fit",
    "uniform": "uniform",
    "uniform:fit=homogeneous": "uniform, homogeneous fit",
    "best_fixed_teacher": "uniform x best fixed teacher",
    "uniform_best_teacher": "uniform x best teacher",
    "d_optimal_uniform_teacher": "D-optimal x uniform teacher",
    "apo": "APO",
    "apo_best_teacher": "APO x best teacher",
    "theta_free": "theta-free D-optimal",
    "uncertainty": "largest uncertainty",
    "top_b": "top-B of one score",
}
#: What issue and design ask for, in points of accuracy over these two.
REQUIRED = {"uniform": 3.5, "d_optimal_uniform_teacher": 1.5}


@dataclass(frozen=True)
class Estimate:
    """Mean over seeds, its standard error, and half the width of its 95 % interval (Student's t)."""

    mean: float
    error: float
    half: float
    seeds: int

    @classmethod
    def of(cls, values: Sequence[float] | NDArray[np.float64]) -> Estimate:
        """From one value a seed; with one seed there is no error (nan)."""
        x, k = np.asarray(values, np.float64), len(values)
        error = float(np.std(x, ddof=1) / np.sqrt(k)) if k > 1 else float("nan")
        return cls(float(np.mean(x)), error, float(stats.t.ppf(0.975, k - 1)) * error if k > 1 else error, k)


class Results:
    """Cells by setting, method and seed."""

    def __init__(self, cells: Iterable[Cell]) -> None:
        self.cells = {(c["setting"], c["method"], c["seed"]): c for c in cells}

    def has(self, setting: str, method: str) -> bool:
        return any(key[:2] == (setting, method) for key in self.cells)

    def values(self, setting: str, method: str, what: str = "accuracy") -> dict[int, float]:
        """By seed."""
        chosen = {key[2]: c[what] for key, c in self.cells.items() if key[:2] == (setting, method)}
        return dict(sorted(chosen.items()))

    def mean(self, setting: str, method: str, what: str = "accuracy") -> Estimate:
        return Estimate.of(list(self.values(setting, method, what).values()))

    def difference(self, setting: str, method: str, other: str, what: str = "accuracy") -> Estimate:
        """Of the seeds that both have, paired."""
        a, b = self.values(setting, method, what), self.values(setting, other, what)
        return Estimate.of([a[seed] - b[seed] for seed in a if seed in b])

    def closest(self, setting: str) -> str:
        """The method that ours leads least, on the seeds of both, of those that do not know the truth."""
        there = [method for method in RIVALS if self.has(setting, method)]
        return min(there, key=lambda method: self.difference(setting, OURS, method).mean)


def _plain(e: Estimate) -> str:
    return f"{e.mean:.3f}" if np.isnan(e.error) else f"{e.mean:.3f} ± {e.error:.3f}"


def _points(e: Estimate) -> str:
    """A difference in points of accuracy with its interval."""
    return f"{100 * e.mean:+.1f}" + ("" if np.isnan(e.half) else f" ± {100 * e.half:.1f}")


def accuracy_table(found: Results, settings: Mapping[str, Setting], methods: Sequence[str]) -> str:
    """Held-out accuracy: mean and standard error, a line for each method."""
    return _by_method(found, settings, methods, lambda s, m: _plain(found.mean(s, m)))


def lead_table(found: Results, settings: Mapping[str, Setting], methods: Sequence[str]) -> str:
    """Our accuracy less that of each method, paired by seed, in points."""
    others = [method for method in methods if method != OURS]
    return _by_method(found, settings, others, lambda s, m: _points(found.difference(s, OURS, m)))


def _by_method(
    found: Results,
    settings: Mapping[str, Setting],
    methods: Sequence[str],
    text: Callable[[str, str], str],
) -> str:
    lines = [
        [
            WORDS.get(method, f"`{method}`"),
            *(text(s, method) if found.has(s, method) else "" for s in settings),
        ]
        for method in methods
    ]
    return common.table(["method", *(s.words for s in settings.values())], lines)


def summary_table(found: Results, settings: Mapping[str, Setting]) -> str:
    """Each setting on a line: what is asked for, the closest rival, and what knowing would add."""
    over = [f"over {WORDS[method]} (asked: {least})" for method, least in REQUIRED.items()]
    head = ["setting", "dual", *over, "closest rival", "lead over it", "known rationalities"]
    lines = []
    for name, setting in settings.items():
        if not found.has(name, OURS):
            continue
        line = [setting.words, _plain(found.mean(name, OURS))]
        line += [_points(found.difference(name, OURS, m)) if found.has(name, m) else "" for m in REQUIRED]
        if any(found.has(name, method) for method in RIVALS):
            rival = found.closest(name)
            line += [WORDS[rival], _points(found.difference(name, OURS, rival))]
        else:
            line += ["", ""]
        line.append(_points(found.difference(name, KNOWN, OURS)) if found.has(name, KNOWN) else "")
        lines.append(line)
    return common.table(head, lines)


def spread_table(found: Results, settings: Mapping[str, Setting]) -> str:
    """Accuracy and 1 - cosine along the spreads."""
    methods = [m for m in SPREAD_METHODS if any(found.has(s, m) for s in settings)]
    parts = []
    for what, words in (("accuracy", "held-out accuracy"), ("direction_error", "1 - cosine")):
        lines = [
            [s.words, *(_plain(found.mean(name, m, what)) if found.has(name, m) else "" for m in methods)]
            for name, s in settings.items()
        ]
        parts.append(f"{words}:\n\n" + common.table(["", *(WORDS[m] for m in methods)], lines))
    return "\n\n".join(parts)


def source(report: Mapping[str, Any], cells: Sequence[Cell]) -> str:
    """Where the cells come from, in words."""
    commits = ", ".join(sorted({cell["commit"] for cell in cells}))
    seeds = sorted({cell["seed"] for cell in cells})
    late = sum(cell["unconverged"] > 0 for cell in cells)
    return (
        f"Seeds {seeds[0]} to {seeds[-1]}; mean ± standard error, differences in points of accuracy, paired "
        f"by seed, with 95 % intervals. {late} of {len(cells)} studies had a fit that did not converge. "
        f"{report['machine']}; {report['versions']}; `{report['command']}` at commit {commits}."
    )


# ------------------------------------------------------------------------------------------------------ plots

_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "dal-native",
    "font.size": 9,
    "axes.grid": True,
    "grid.alpha": 0.3,
}
_DRAWN = {
    OURS: ("tab:blue", "-"),
    KNOWN: ("black", ":"),
    "dual:criterion=plug_in": ("tab:purple", "-"),
    "dual:criterion=plug_in,fit=joint_map": ("tab:purple", "--"),
    "top_b": ("tab:brown", "-"),
    "d_optimal_uniform_teacher": ("tab:orange", "-"),
    "apo_best_teacher": ("tab:red", "--"),
    "uniform_best_teacher": ("tab:green", "--"),
    "uniform": ("tab:green", "-"),
}
_SPREAD_DRAWN = {
    "uniform": ("tab:green", "o-"),
    "uniform:fit=homogeneous": ("tab:green", "s--"),
    OURS: ("tab:blue", "o-"),
    "dual:fit=homogeneous": ("tab:blue", "s--"),
    KNOWN: ("black", "x:"),
}


def _label(method: str) -> str:
    return WORDS.get(method, method).replace("*", "")


def plot_curves(found: Results, settings: Mapping[str, Setting], path: Path) -> None:
    """Held-out accuracy against labels, a panel for each setting; bands are one standard error."""
    from matplotlib import pyplot

    shown = [name for name in settings if found.has(name, OURS)]
    columns = min(4, len(shown))
    rows = -(-len(shown) // columns)
    with pyplot.rc_context(_STYLE):
        figure, panels = pyplot.subplots(
            rows, columns, figsize=(2.7 * columns, 2.5 * rows + 0.4), layout="constrained", squeeze=False
        )
        for panel in panels.ravel()[len(shown) :]:
            panel.set_axis_off()
        for name, panel in zip(shown, panels.ravel(), strict=False):
            for method, (colour, line) in _DRAWN.items():
                if not found.has(name, method):
                    continue
                curves = np.array(list(found.values(name, method, "curve").values()))
                labels = next(iter(found.values(name, method, "labels").values()))
                mean, error = curves.mean(axis=0), curves.std(axis=0) / np.sqrt(len(curves))
                panel.plot(labels, mean, line, color=colour, label=_label(method), linewidth=1.2)
                panel.fill_between(labels, mean - error, mean + error, color=colour, alpha=0.15, linewidth=0)
            panel.set_title(settings[name].words, fontsize=8)
            panel.set_xlabel("labels")
            panel.set_ylabel("held-out accuracy")
            panel.set_ylim(bottom=0.6)
        figure.legend(
            *panels[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=4, fontsize=8
        )
        _save(figure, path)


def plot_spread(found: Results, settings: Mapping[str, Setting], path: Path) -> None:
    """Accuracy and 1 - cosine against the spread of the rationalities."""
    from matplotlib import pyplot

    with pyplot.rc_context(_STYLE):
        figure, panels = pyplot.subplots(1, 2, figsize=(8, 3.2), layout="constrained")
        for panel, what, words in zip(
            panels, ("accuracy", "direction_error"), ("held-out accuracy", "1 - cosine"), strict=True
        ):
            for method, (colour, mark) in _SPREAD_DRAWN.items():
                points = [
                    (s.spread, found.mean(name, method, what))
                    for name, s in settings.items()
                    if found.has(name, method)
                ]
                if points:
                    x, y = zip(*points, strict=True)
                    error = np.nan_to_num([e.error for e in y])
                    panel.errorbar(
                        x,
                        [e.mean for e in y],
                        error,
                        fmt=mark,
                        color=colour,
                        label=_label(method),
                        markersize=4,
                    )
            panel.set_xlabel("standard deviation of log rationality")
            panel.set_ylabel(words)
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=3, fontsize=8)
        _save(figure, path)


def _save(figure: Any, path: Path) -> None:
    from matplotlib import pyplot

    figure.savefig(path, format="svg", metadata={"Date": None})
    pyplot.close(figure)


# ------------------------------------------------------------------------------------------------ the parts


def loop_part(report: Mapping[str, Any], settings: Mapping[str, Setting], methods: Sequence[str]) -> str:
    """Summary, accuracies and leads in the settings that were measured; empty without any."""
    cells = [c for c in report["cells"] if c["setting"] in settings and c["method"] in methods]
    if not cells:
        return ""
    found = Results(cells)
    shown = {name: s for name, s in settings.items() if any(c["setting"] == name for c in cells)}
    methods = [m for m in methods if any(c["method"] == m for c in cells)]
    parts = [source(report, cells)]
    parts += [
        f"{settings[n].words}: skipped, {why}." for n, why in report["skipped"].items() if n in settings
    ]
    if OURS in methods:
        parts.append(summary_table(found, shown))
    parts.append("Held-out accuracy:\n\n" + accuracy_table(found, shown, methods))
    if OURS in methods and len(methods) > 1:
        parts.append("Dual with learnt rationalities less each:\n\n" + lead_table(found, shown, methods))
    return "\n\n".join(parts)


def spread_part(report: Mapping[str, Any], settings: Mapping[str, Setting]) -> str:
    """What was measured along the spreads; empty without any."""
    cells = [c for c in report["cells"] if c["setting"] in settings]
    if not cells:
        return ""
    shown = {name: s for name, s in settings.items() if any(c["setting"] == name for c in cells)}
    return f"{source(report, cells)}\n\n{spread_table(Results(cells), shown)}"
