"""Reports: what came out, as a table for the screen, figures, and one HTML file that needs no network.

Everything is drawn from the content of results.json, so a report can be made again at any time. Tables
and sentences need no extra; figures and the HTML file need the extra ``plot``. Names from data are untrusted
text: HTML is escaped, and so are control characters on the screen and formulas in figures.
"""

from __future__ import annotations

import base64
import io
import os
import unicodedata
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dal_native._validate import require

from ._files import atomic_write

__all__ = [
    "FIGURES",
    "aligned",
    "flag_table",
    "printable",
    "render",
    "sentences",
    "table",
    "uncertain_table",
]

#: Method name -> what it is called in reports.
LABELS = {
    "dual": "dual design",
    "uniform": "uniform",
    "best_fixed_teacher": "uniform, best fixed teacher",
    "uniform_best_teacher": "uniform, best teacher each",
    "d_optimal_uniform_teacher": "D-optimal, uniform teachers",
    "apo": "APO (largest leverage)",
    "apo_best_teacher": "APO, best teacher each",
    "theta_free": "D-optimal without theta",
    "uncertainty": "most uncertain",
    "top_b": "top-B without updates",
    "oracle": "oracle (knows the truth)",
}

#: One line for each method, for the page.
DESCRIPTIONS = {
    "dual": "exact greedy D-optimal choice of conversation and teacher together",
    "uniform": "conversation and teacher at random",
    "best_fixed_teacher": "conversations at random, all to the teacher who looks best",
    "uniform_best_teacher": "conversations at random, each to its most informative teacher",
    "d_optimal_uniform_teacher": "D-optimal conversations as if all teachers were alike, teachers at random",
    "apo": "conversations of largest leverage, no updates in the batch, teachers at random",
    "apo_best_teacher": "conversations of largest leverage, each to its most informative teacher",
    "theta_free": "D-optimal conversations that look at no reward, teachers at random",
    "uncertainty": "conversations with the smallest estimated margin, teachers at random",
    "top_b": "pairs of largest weight times leverage, scored once",
    "oracle": "the dual rule with the true reward and rationalities, which are also given to the fit",
}

_COLOURS = {
    "dual": "#0b5fa5",
    "uniform": "#5b6168",
    "best_fixed_teacher": "#b5651d",
    "uniform_best_teacher": "#e08e0b",
    "d_optimal_uniform_teacher": "#2a9d6f",
    "apo": "#b03a76",
    "apo_best_teacher": "#e377a8",
    "theta_free": "#7fb069",
    "uncertainty": "#8d6cab",
    "top_b": "#c0392b",
    "oracle": "#111111",
}
_DASHES: dict[str, Any] = {"oracle": (0, (4, 2)), "uniform": (0, (1, 1))}

Figure = Any
Results = Mapping[str, Any]


# ------------------------------------------------------------------------------------------------ the screen


def printable(text: object) -> str:
    r"""Text that a terminal shows as it is: control and direction-changing characters become escapes.

    Parameters
    ----------
    text : object
        Untrusted.

    Returns
    -------
    str

    Examples
    --------
    >>> printable("a\x1b[31mb\u202e")
    'a\\x1b[31mb\\u202e'
    """
    return "".join(_escaped(c) if unicodedata.category(c) in _HIDDEN else c for c in str(text))


_HIDDEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def _width(text: str) -> int:
    """Columns on a terminal: wide characters take two, combining ones none."""
    wide = sum(unicodedata.east_asian_width(c) in "WF" for c in text)
    return len(text) + wide - sum(bool(unicodedata.combining(c)) for c in text)


def aligned(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table with aligned columns: text to the left, numbers (and None, as a dash) to the right.

    Parameters
    ----------
    header : sequence of str
    rows : sequence of sequences
        Strings are taken as text; a number should come as a string with a leading sign or digit.

    Returns
    -------
    str

    Examples
    --------
    >>> print(aligned(["method", "accuracy"], [["dual", "0.91"], ["uniform", None]]))
    method   accuracy
    dual         0.91
    uniform         -
    """
    cells = [[printable("-" if cell is None else cell) for cell in row] for row in (header, *rows)]
    widths = [max(_width(row[k]) for row in cells) for k in range(len(header))]
    numeric = [all(_is_number(row[k]) for row in cells[1:]) and len(cells) > 1 for k in range(len(header))]
    lines = []
    for row in cells:
        parts = []
        for text, width, right in zip(row, widths, numeric, strict=True):
            space = " " * (width - _width(text))
            parts.append(space + text if right else text + space)
        lines.append("  ".join(parts).rstrip())
    return "\n".join(lines)


def _is_number(text: str) -> bool:
    return text == "-" or text[:1].isdigit() or text[:1] in "+-" or text[:1] == "["


def _mean(values: Sequence[float | None]) -> float | None:
    return None if not values or None in values else float(np.mean(np.asarray(values, np.float64)))


def _spread(values: Sequence[float | None]) -> float | None:
    if not values or None in values or len(values) < 2:
        return None
    return float(np.std(np.asarray(values, np.float64), ddof=1))


def _number(value: float | None, digits: int = 3, sign: bool = False) -> str | None:
    return None if value is None else f"{value:{'+' if sign else ''}.{digits}f}"


_TABLE = (
    "method",
    "accuracy",
    "sd",
    "vs uniform",
    "95 % interval",
    "better in",
    "log det",
    "labels to match",
)


def _table_rows(results: Results) -> list[list[str | None]]:
    """One row for each method, the most accurate first."""
    compared = (results.get("comparison") or {}).get("accuracy", {})
    need = labels_to_match(results)

    def order(name: str) -> float:
        mean = _mean(results["methods"][name]["accuracy"])
        return -1.0 if mean is None else mean

    rows = []
    for name in sorted(results["methods"], key=order, reverse=True):
        values = results["methods"][name]
        d = compared.get(name)
        interval = None if d is None or d["low"] is None else f"[{d['low']:+.3f}, {d['high']:+.3f}]"
        rows.append(
            [
                LABELS.get(name, name),
                _number(_mean(values["accuracy"])),
                _number(_spread(values["accuracy"])),
                None if d is None else _number(d["mean"], sign=True),
                interval,
                None if d is None else f"{d['wins']}/{d['seeds']}",
                _number(_mean(values["log_det"]), 1),
                None if need.get(name) is None else f"{need[name]:.0f}",
            ]
        )
    return rows


def table(results: Results) -> str:
    """The comparison as an aligned table for the screen.

    Parameters
    ----------
    results : dict
        Content of results.json.

    Returns
    -------
    str
    """
    return aligned(_TABLE, _table_rows(results))


_FLAGS = ("teacher", "answers", "rationality", "95 % interval", "agrees", "early", "late", "flags")


def uncertain_table(policy: Mapping[str, Any]) -> str:
    """The prompts where the labels say least about the greedy answer, as aligned text.

    Parameters
    ----------
    policy : dict
        A policy's summary: see `choices_of`.

    Returns
    -------
    str
    """
    return aligned(_UNCERTAIN, _uncertain_rows(policy, 48))


_UNCERTAIN = ("prompt", "estimate", "deviation", "lower bound", "pessimism changed it")


def _uncertain_rows(policy: Mapping[str, Any], most: int) -> list[list[str | None]]:
    return [
        [
            _shortened(f"#{row['prompt']} {row['text'] or ''}".strip(), most),
            f"{row['estimate']:.2f}",
            f"{row['standard_deviation']:.2f}",
            f"{row['lower_bound']:.2f}",
            "yes" if row["changed"] else "no",
        ]
        for row in policy.get("most_uncertain", ())
    ]


def _shortened(text: str, most: int) -> str:
    line = printable(" ".join(text.split()))
    return line if len(line) <= most else line[: most - 1] + "…"


def flag_table(rows: Sequence[Mapping[str, Any]]) -> str | None:
    """The teachers with flags other than "few answers", as an aligned table for the screen.

    Parameters
    ----------
    rows : sequence of dict
        As of `flag_teachers`.

    Returns
    -------
    str or None
        None where nobody has such a flag.

    Examples
    --------
    >>> row = dict.fromkeys(("early_agreement", "late_agreement"))
    >>> row |= {"teacher": "ben", "answers": 60, "rationality": 0.2, "low": 0.1, "high": 0.5}
    >>> row |= {"agreement": 0.5, "p_opposes": 1.0, "flags": ("clicks at random",)}
    >>> print(flag_table([row]))
    teacher  answers  rationality  95 % interval  agrees  early  late  flags
    ben           60         0.20   [0.10, 0.50]    0.50      -     -  clicks at random
    """
    cells = [
        [
            row["teacher"],
            f"{row['answers']:,}",
            f"{row['rationality']:.2f}",
            f"[{row['low']:.2f}, {row['high']:.2f}]",
            _number(row["agreement"], 2),
            _number(row["early_agreement"], 2),
            _number(row["late_agreement"], 2),
            ", ".join(row["flags"]),
        ]
        for row in rows
        if _is_suspect(row)
    ]
    return aligned(_FLAGS, cells) if cells else None


def _is_suspect(row: Mapping[str, Any]) -> bool:
    """Flagged by a test: who was not tested has flags that say so, and no p."""
    return row["p_opposes"] is not None and bool(row["flags"])


def labels_to_match(results: Results) -> dict[str, float | None]:
    """Labels after which each method's mean curve stays at or above uniform's final mean accuracy.

    Parameters
    ----------
    results : dict
        Content of results.json.

    Returns
    -------
    dict
        Method -> labels, None where it ends below; empty without uniform or without accuracies.
    """
    if "uniform" not in results["methods"]:
        return {}
    goal = _mean(results["methods"]["uniform"]["accuracy"])
    if goal is None:
        return {}
    found: dict[str, float | None] = {}
    for name, values in results["methods"].items():
        labels, mean, _ = _curve(values["curve"], "accuracy")
        below = np.flatnonzero(mean < goal - 1e-12)
        first = below[-1] + 1 if len(below) else 0
        found[name] = float(labels[first]) if first < len(labels) else None
    return found


def _curve(
    curve: Mapping[str, Any], measure: str
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Labels, mean and standard deviation over seeds, as far as every seed goes."""
    length = min((len(row) for row in curve["labels"]), default=0)
    labels = np.array([row[:length] for row in curve["labels"]], np.float64)
    values = np.array([row[:length] for row in curve[measure]], np.float64)  # None becomes NaN
    if length == 0:
        return np.zeros(0), np.zeros(0), np.zeros(0)
    spread = np.std(values, axis=0, ddof=1) if len(values) > 1 else np.zeros(length)
    return labels.mean(axis=0), values.mean(axis=0), spread


# --------------------------------------------------------------------------------------------- plain language


def sentences(results: Results) -> list[str]:
    """What came out, in plain words, whichever way it fell.

    Parameters
    ----------
    results : dict
        Content of results.json.

    Returns
    -------
    list of str
        One sentence or two each.
    """
    lines = [*_accuracy_sentences(results), *_information_sentences(results)]
    return [
        *lines,
        *_teacher_sentences(results),
        *_flag_sentences(results.get("flags")),
        *_policy_sentences(results),
    ]


def _main(results: Results) -> str:
    """The method that the report is about."""
    methods = results["methods"]
    first = "dual" if "dual" in methods else next(iter(methods))
    return str(results.get("main", first))


def _accuracy_sentences(results: Results) -> list[str]:
    methods = results["methods"]
    name = _main(results)
    mean = _mean(methods[name]["accuracy"])
    if mean is None:
        return ["Accuracy could not be measured: no held-out conversation has a known answer of a or b."]
    labels = _mean(methods[name]["labels"])
    text = (
        f"With {labels:,.0f} labels the {LABELS.get(name, name)} ranks {mean:.1%} of held-out pairs rightly"
    )
    d = ((results.get("comparison") or {}).get("accuracy") or {}).get(name)
    if d is None:
        return [text + "."]
    lines = [f"{text}; uniform choice at the same budget {_mean(methods['uniform']['accuracy']):.1%}."]
    points = f"{abs(d['mean']) * 100:.1f} points"
    where = f"better in {d['wins']} and worse in {d['losses']} of {d['seeds']} seeds"
    if d["low"] is None:
        lines.append(f"One seed cannot tell chance from effect (difference {d['mean'] * 100:+.1f} points).")
    elif d["low"] > 0:
        lines.append(
            f"That is a clear gain of {points} (95 % interval {d['low'] * 100:+.1f} to "
            f"{d['high'] * 100:+.1f}, {where})."
        )
    elif d["high"] < 0:
        lines.append(
            f"That is a clear loss of {points} (95 % interval {d['low'] * 100:+.1f} to "
            f"{d['high'] * 100:+.1f}, {where}): on this data uniform choice is better."
        )
    else:
        lines.append(
            f"The difference of {d['mean'] * 100:+.1f} points is within chance (95 % interval "
            f"{d['low'] * 100:+.1f} to {d['high'] * 100:+.1f}, {where})."
        )
    if mean < 0.5 and (_mean(methods["uniform"]["accuracy"]) or 0.0) < 0.5:
        lines.append("Both are below one half: as a body these answers point away from the known truth.")
    return [*lines, *_rival_sentences(results, name), *_ceiling_sentences(results)]


def _rival_sentences(results: Results, name: str) -> list[str]:
    """The best of the others, and the labels that it takes to match uniform."""
    means = {k: _mean(v["accuracy"]) for k, v in results["methods"].items() if k not in (name, "oracle")}
    known = {k: v for k, v in means.items() if v is not None}
    own = _mean(results["methods"][name]["accuracy"])
    lines = []
    if known and own is not None:
        best = max(known, key=lambda k: known[k])
        if known[best] > own:
            lines.append(
                f"The best method here is not it but {LABELS.get(best, best)}, at {known[best]:.1%}."
            )
        elif best != "uniform":
            lines.append(f"The best of the others is {LABELS.get(best, best)}, at {known[best]:.1%}.")
    need, budget = labels_to_match(results).get(name), _mean(results["methods"]["uniform"]["labels"])
    if need is not None and budget is not None and need < budget:
        lines.append(
            f"It is past uniform's final accuracy for good after {need:,.0f} of {budget:,.0f} labels "
            f"({1 - need / budget:.0%} fewer)."
        )
    return lines


def _ceiling_sentences(results: Results) -> list[str]:
    everything = results.get("all_votes")
    if not everything or _mean(everything["accuracy"]) is None:
        return []
    mean, labels = _mean(everything["accuracy"]), _mean(everything["labels"])
    best = max((_mean(values["accuracy"]) or 0.0 for values in results["methods"].values()), default=0.0)
    note = ""
    if mean is not None and mean < 0.55:
        note = ": a reward that is linear in these features can hardly be learned from this data"
    elif mean is not None and mean < best + 0.01:
        note = ": on new prompts there is nothing left to win by more labels, only by other features"
    return [f"Fitted to all {labels:,.0f} training votes, the same model reaches {mean:.1%}{note}."]


def _information_sentences(results: Results) -> list[str]:
    lines, name = [], _main(results)
    d = ((results.get("comparison") or {}).get("log_det") or {}).get(name)
    if d is not None and d["low"] is not None:
        verb = "more" if d["mean"] >= 0 else "less"
        lines.append(
            f"Its labels carry {verb} information: log det {d['mean']:+.1f} against uniform's "
            f"(95 % interval {d['low']:+.1f} to {d['high']:+.1f})."
        )
    efficiency = results["methods"][name].get("smallest_d_efficiency")
    if efficiency is not None:
        settings = results["settings"]
        parts = settings.get("explore") or settings.get("gold_share")
        what = "Every batch without gold questions or exploration" if parts else "Every batch"
        hope = " (rationalities taken at their best)" if settings.get("criterion") == "optimistic" else ""
        lines.append(f"{what} is proved to gain at least {efficiency:.1%} of what any batch could{hope}.")
    return lines


def _teacher_sentences(results: Results) -> list[str]:
    rows = results.get("teachers") or []
    below = sorted({r["teacher"] for r in rows if r["votes"] and r["high"] < 0})
    lines = []
    if below:
        more = f" and {len(below) - 3} more" if len(below) > 3 else ""
        lines.append(f"Clearly worse than a coin somewhere: {', '.join(below[:3])}{more}.")
    true = [(r["true_rationality"], r["rationality"]) for r in rows if r["true_rationality"] and r["votes"]]
    if len(true) > 3:
        a, b = np.log(np.abs(np.array(true).T))
        if np.std(a) > 0 and np.std(b) > 0:
            lines.append(
                "Estimated and true rationalities (logarithms, cells with votes) correlate at "
                f"{np.corrcoef(a, b)[0, 1]:.2f}."
            )
    return lines


def _flag_sentences(flags: Mapping[str, Any] | None) -> list[str]:
    """Who is flagged, out of how many."""
    if not flags:
        return []
    if not flags["tested"]:
        return [f"No teacher has the {flags['least']} answers that a test for odd behaviour needs."]
    suspects = [row for row in flags["teachers"] if _is_suspect(row)]
    basis = (
        f"{flags['tested']:,} teachers tested, {1 - flags['level']:.0%} sure that nobody is flagged wrongly"
    )
    if not suspects:
        return [f"No teacher is flagged as opposing, clicking at random, drifting or one-sided ({basis})."]
    named = "; ".join(f"{row['teacher']} ({', '.join(row['flags'])})" for row in suspects[:5])
    more = f"; and {len(suspects) - 5} more" if len(suspects) > 5 else ""
    return [f"Look at these teachers: {named}{more} ({basis}, for each kind of flag)."]


def _policy_sentences(results: Results) -> list[str]:
    policy = results.get("policy")
    lines = []
    if policy:
        careful, greedy = policy["pessimistic"]["lower_bound"], policy["greedy"]["lower_bound"]
        differ = f"{policy['prompts_where_choices_differ']:,} of {policy['prompts']:,} prompts"
        if abs(policy["pessimistic"]["value"]) < 1e-3 and careful > -1e-3:
            lines.append(
                "The labels cannot vouch for any choice against the average completion yet: the pessimistic "
                f"policy stays there, while the greedy one may be as low as {greedy:.2f} (0: the average)."
            )
        elif careful - greedy <= 0.05 * abs(greedy):
            lines.append(
                f"On these completions the pessimistic policy gains little over the greedy one (lower bound "
                f"{careful:.2f}, not {greedy:.2f}; another choice in {differ})."
            )
        else:
            lines.append(
                f"The pessimistic policy chooses otherwise than the greedy one in {differ} and raises the "
                f"lower bound on the reward from {greedy:.2f} to {careful:.2f} (0: the average completion)."
            )
        if policy.get("prompts_vouched_for"):
            lines.append(
                f"{policy['prompts_vouched_for']:,} of its {policy['prompts']:,} choices are better than the "
                "reference by their own lower bound; of the others the labels say too little, one by one."
            )
        wins = [policy[name].get("gold_wins") for name in ("greedy", "pessimistic")]
        if None not in wins and results["answers"] != "simulated":
            lines.append(
                f"Where the better completion is known, the greedy choices win {wins[0]:.0%} of their "
                f"comparisons and the pessimistic choices {wins[1]:.0%}."
            )
    return [*lines, *_shift_sentences(results.get("shift"))]


def _shift_sentences(shift: Mapping[str, Any] | None) -> list[str]:
    if not shift:
        return []
    last = {k: np.array(shift[k])[:, -1] for k in ("greedy", "pessimistic", "greedy_promised")}
    greedy, careful = last["greedy"], last["pessimistic"]
    return [
        f"Where {shift['completions'][-1]} completions per prompt stray from what was labelled, the greedy "
        f"policy promises {last['greedy_promised'].mean():.2f} and reaches {greedy.mean():.2f} (worst seed "
        f"{greedy.min():.2f}); the pessimistic policy reaches {careful.mean():.2f} (worst seed "
        f"{careful.min():.2f})."
    ]


# ----------------------------------------------------------------------------------------------- the figures


def _plain(text: object) -> str:
    """Text for a figure: no formulas, nothing hidden, not too long."""
    shown = printable(text).replace("$", r"\$")
    return shown if len(shown) <= 30 else shown[:29] + "…"


def _axes(width: float, height: float, columns: int = 1, rows: int = 1, **options: Any) -> tuple[Figure, Any]:
    figure = require("matplotlib.figure", "plot", "drawing figures").Figure(
        figsize=(width, height), layout="constrained"
    )
    axes = figure.subplots(rows, columns, **options)
    for ax in np.atleast_1d(axes).ravel():
        ax.spines[["top", "right"]].set_visible(False)
        ax.tick_params(labelsize=9)
        ax.grid(True, axis="both", color="#e7e9ec", linewidth=0.8)
        ax.set_axisbelow(True)
    return figure, axes


def _draw_curve(
    ax: Any, values: Mapping[str, Any], measure: str, name: str, band: bool, **style: Any
) -> bool:
    labels, mean, spread = _curve(values["curve"], measure)
    if not len(labels) or not np.isfinite(mean).all():
        return False
    look = {"color": _COLOURS.get(name, "#333333"), "linestyle": _DASHES.get(name, "-"), "linewidth": 1.3}
    ax.plot(labels, mean, label=_plain(LABELS.get(name, name)), **{**look, **style})
    if band:
        ax.fill_between(labels, mean - spread, mean + spread, color=look["color"], alpha=0.13, linewidth=0)
    return True


def learning_curves(results: Results) -> Figure | None:
    """Held-out accuracy against labels, every method; bands of one standard deviation for two."""
    figure, ax = _axes(9.2, 4.6)
    order = [name for name in results["methods"] if name not in ("dual", "oracle")]
    drawn = False
    for name in [*order, "oracle", "dual"]:
        if name in results["methods"]:
            thick = {"dual": 2.8, "uniform": 2.2}.get(name, 1.3)
            values, band = results["methods"][name], name in ("dual", "uniform")
            drawn |= _draw_curve(ax, values, "accuracy", name, band, linewidth=thick)
    if not drawn:
        return None
    ceiling = results.get("all_votes")
    if ceiling and (level := _mean(ceiling["accuracy"])) is not None:
        ax.axhline(level, color="#999999", linewidth=1, linestyle=(0, (6, 3)))
        ax.annotate(
            "all training votes", (0.01, level), xycoords=("axes fraction", "data"), ha="left", va="bottom",
            fontsize=8, color="#777777",
        )  # fmt: skip
    ax.set_xlabel("labels")
    ax.set_ylabel("held-out accuracy")
    _ordered_legend(ax, results)
    return figure


def _ordered_legend(ax: Any, results: Results) -> None:
    """Beside the axes, in the order in which the curves end."""
    handles, labels = ax.get_legend_handles_labels()
    last = [float(handle.get_ydata()[-1]) for handle in handles]
    order = sorted(range(len(labels)), key=lambda k: -last[k])
    ax.legend(
        [handles[k] for k in order], [labels[k] for k in order],
        loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=9,
    )  # fmt: skip


def each_method(results: Results) -> Figure | None:
    """One panel for each method, with its spread, over uniform with its own."""
    methods = results["methods"]
    names = [name for name in methods if name != "uniform"]
    if "uniform" not in methods or not names or _mean(methods["uniform"]["accuracy"]) is None:
        return None
    columns = min(5, len(names))
    rows = -(-len(names) // columns)
    figure, axes = _axes(
        2.35 * columns, 2.1 * rows + 0.3, columns, rows, sharex=True, sharey=True, squeeze=False
    )
    for k, ax in enumerate(axes.ravel()):
        if k >= len(names):
            ax.set_visible(False)
            continue
        _draw_curve(ax, methods["uniform"], "accuracy", "uniform", True)
        _draw_curve(ax, methods[names[k]], "accuracy", names[k], True, linewidth=1.8)
        ax.set_title(
            _plain(LABELS.get(names[k], names[k])), fontsize=9.5, color=_COLOURS.get(names[k], "#333333")
        )
    figure.supxlabel("labels", fontsize=10)
    figure.supylabel("held-out accuracy", fontsize=10)
    return figure


def differences(results: Results) -> Figure | None:
    """Paired differences from uniform: every seed a dot, the mean with its 95 % interval."""
    compared = ((results.get("comparison") or {}).get("accuracy")) or {}
    if not compared:
        return None
    names = sorted(compared, key=lambda k: compared[k]["mean"])
    figure, ax = _axes(8.2, 0.42 * len(names) + 1.1)
    base = np.array(results["methods"]["uniform"]["accuracy"])
    for y, name in enumerate(names):
        d, colour = compared[name], _COLOURS.get(name, "#333333")
        dots = 100 * (np.array(results["methods"][name]["accuracy"]) - base)
        ax.plot(dots, np.full(len(dots), y + 0.25), "o", color=colour, alpha=0.55, markersize=4)
        if d["low"] is not None:
            ax.plot([100 * d["low"], 100 * d["high"]], [y, y], color=colour, linewidth=2.4)
        ax.plot(100 * d["mean"], y, "D", color=colour, markersize=6)
    ax.axvline(0, color="#5b6168", linewidth=1.2, linestyle=(0, (1, 1)))
    ax.set_yticks(range(len(names)), [_plain(LABELS.get(name, name)) for name in names])
    ax.set_xlabel("held-out accuracy minus uniform's, percentage points")
    ax.grid(False, axis="y")
    return figure


def information(results: Results) -> Figure | None:
    """log det of the information collected, above uniform's, against labels."""
    methods = results["methods"]
    if "uniform" not in methods or None in methods["uniform"]["log_det"]:
        return None
    figure, ax = _axes(9.2, 3.9)
    base_labels, base, _ = _curve(methods["uniform"]["curve"], "log_det")
    for name, values in methods.items():
        labels, mean, _ = _curve(values["curve"], "log_det")
        if not len(labels):
            continue
        above = mean - np.interp(labels, base_labels, base)
        ax.plot(
            labels, above, label=_plain(LABELS.get(name, name)), color=_COLOURS.get(name, "#333333"),
            linestyle=_DASHES.get(name, "-"), linewidth={"dual": 2.8, "uniform": 2.2}.get(name, 1.3),
        )  # fmt: skip
    ax.set_xlabel("labels")
    ax.set_ylabel("log det above uniform's")
    _ordered_legend(ax, results)
    return figure


def teachers(results: Results) -> Figure | None:
    """Estimated rationalities: beside the truth in a simulation, with intervals on real answers."""
    rows = results.get("teachers") or []
    if not rows:
        return None
    if all(row["true_rationality"] is not None for row in rows):
        return _teacher_maps(rows)
    return _teacher_intervals(rows)


def _matrix(rows: Sequence[Mapping[str, Any]], key: str) -> tuple[list[str], list[str], NDArray[np.float64]]:
    names = list(dict.fromkeys(row["teacher"] for row in rows))
    categories = list(dict.fromkeys(row["category"] for row in rows))
    matrix = np.full((len(names), len(categories)), np.nan)
    for row in rows:
        matrix[names.index(row["teacher"]), categories.index(row["category"])] = row[key]
    return names, categories, matrix


def _teacher_maps(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Heat maps: the truth, the estimate, the votes."""
    names, categories, true = _matrix(rows, "true_rationality")
    height = 0.3 * len(names) + 1.5
    figure, axes = _axes(10.4, height, 3, sharey=True)
    top = float(max(np.nanmax(true), np.nanmax(_matrix(rows, "rationality")[2])))
    for ax, key, title, colours, digits in (
        (axes[0], "true_rationality", "true rationality", "YlGnBu", 1),
        (axes[1], "rationality", "estimated rationality", "YlGnBu", 1),
        (axes[2], "votes", "answers asked for", "Oranges", 0),
    ):
        matrix = _matrix(rows, key)[2]
        largest = top if key != "votes" else max(1.0, float(np.nanmax(matrix)))
        _heat(ax, matrix, categories, colours, largest, digits)
        ax.set_title(title, fontsize=10.5)
    axes[0].set_yticks(range(len(names)), [_plain(name) for name in names])
    return figure


def _heat(
    ax: Any, matrix: NDArray[np.float64], columns: Sequence[str], colours: str, largest: float, digits: int
) -> None:
    ax.grid(False)
    ax.imshow(matrix, cmap=colours, vmin=0, vmax=largest, aspect="auto")
    ax.set_xticks(range(len(columns)), [_plain(c) for c in columns], rotation=30, ha="right")
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    for (y, x), value in np.ndenumerate(matrix):
        if np.isfinite(value):
            dark = value > 0.6 * largest
            ax.text(
                x, y, f"{value:.{digits}f}", ha="center", va="center", fontsize=8,
                color="white" if dark else "#333333",
            )  # fmt: skip


def _teacher_intervals(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """A panel for each category: estimate and 95 % interval of each teacher, busiest first."""
    votes: dict[str, int] = {}
    for row in rows:
        votes[row["teacher"]] = votes.get(row["teacher"], 0) + row["votes"]
    names = sorted(votes, key=lambda name: votes[name])
    categories = list(dict.fromkeys(row["category"] for row in rows))[:6]
    figure, axes = _axes(
        1.9 * len(categories) + 1.8, 0.26 * len(names) + 1.3, len(categories), sharey=True, sharex=True
    )
    for ax, category in zip(np.atleast_1d(axes), categories, strict=True):
        for row in rows:
            if row["category"] != category:
                continue
            y = names.index(row["teacher"])
            colour = "#0b5fa5" if row["votes"] else "#c3c8ce"
            ax.plot([row["low"], row["high"]], [y, y], color=colour, linewidth=1.6)
            ax.plot(row["rationality"], y, "o", color=colour, markersize=4)
        ax.axvline(0, color="#c0392b", linewidth=0.9)
        ax.axvline(1, color="#999999", linewidth=0.9, linestyle=(0, (1, 1)))
        ax.set_title(_plain(category), fontsize=9.5)
    np.atleast_1d(axes)[0].set_yticks(range(len(names)), [_plain(name) for name in names])
    figure.supxlabel(
        "rationality (0: a coin, 1: the average teacher; grey: not asked, prior only)", fontsize=9.5
    )
    return figure


_FLAGGED, _UNFLAGGED, _UNTESTED = "#c0392b", "#0b5fa5", "#c3c8ce"


def flags(results: Results) -> Figure | None:
    """Teachers' rationalities with intervals, the flagged ones marked; and how their agreement changed."""
    found = results.get("flags") or {}
    rows = list(reversed(found.get("teachers") or []))
    if not rows:
        return None
    changed = any(row["early_agreement"] is not None for row in rows)
    figure, axes = _axes(10.2, 0.26 * len(rows) + 1.5, 1 + changed, sharey=True)
    panels = np.atleast_1d(axes)
    for y, row in enumerate(rows):
        tested = _UNFLAGGED if row["p_opposes"] is not None else _UNTESTED
        colour = _FLAGGED if _is_suspect(row) else tested
        panels[0].plot([row["low"], row["high"]], [y, y], color=colour, linewidth=1.8)
        panels[0].plot(row["rationality"], y, "o", color=colour, markersize=5)
        if changed and row["early_agreement"] is not None:
            ends = row["early_agreement"], row["late_agreement"]
            drifts = "drifts" in row["flags"]
            panels[1].plot(ends, [y, y], color=colour, linewidth=2.2 if drifts else 1.0)
            panels[1].plot(ends[0], y, "o", color="white", markeredgecolor=colour, markersize=5)
            panels[1].plot(ends[1], y, "o", color=colour, markersize=5)
        if _is_suspect(row):
            panels[-1].annotate(
                ", ".join(row["flags"]), (1.01, y), xycoords=("axes fraction", "data"), va="center",
                fontsize=8.5, color=_FLAGGED, annotation_clip=False,
            )  # fmt: skip
    panels[0].axvline(0, color="#999999", linewidth=0.9)
    panels[0].axvline(1, color="#999999", linewidth=0.9, linestyle=(0, (1, 1)))
    panels[0].set_yticks(range(len(rows)), [_plain(row["teacher"]) for row in rows])
    panels[0].set_xlabel("rationality, 95 % interval (0: coin, 1: average teacher)", fontsize=9)
    if changed:
        panels[1].axvline(0.5, color="#999999", linewidth=0.9)
        panels[1].set_xlabel("agreement with the others' reward: early (hollow), late (full)", fontsize=9)
    return figure


def assignments(results: Results) -> Figure | None:
    """Which teacher was asked about which category: the dual design beside uniform, all seeds."""
    asked = results.get("asked") or {}
    shown = [name for name in ("dual", "uniform") if asked.get(name, {}).get("teachers")]
    if not shown:
        return None
    tables = [asked[name] for name in shown]
    tall = max(len(t["teachers"]) for t in tables)
    largest = max(100 * np.max(t["count"]) / max(1, np.sum(t["count"]) + sum(t["others"])) for t in tables)
    figure, axes = _axes(5.2 * len(shown), 0.28 * (tall + 1) + 1.4, len(shown))
    categories = results["sizes"]["categories"]
    for ax, name, counted in zip(np.atleast_1d(axes), shown, tables, strict=True):
        others = sum(counted["others"]) > 0
        count = np.array(counted["count"] + [counted["others"]] * others, np.float64)
        total = max(1.0, count.sum())
        _heat(ax, 100 * count / total, categories, "Oranges", largest, 1)
        rest = counted["teachers_asked"] - len(counted["teachers"])
        rows = [_plain(t) for t in counted["teachers"]] + [f"{rest:,} others"] * others
        ax.set_yticks(range(len(rows)), rows)
        ax.set_title(f"{_plain(LABELS.get(name, name))}: share of answers, %", fontsize=10.5)
    return figure


def policies(results: Results) -> Figure | None:
    """The pessimistic policy beside the greedy one: on average, and prompt by prompt."""
    policy = results.get("policy")
    if not policy or "drawn" not in policy:  # written by 0.1 before it drew prompts
        return None
    figure, axes = _axes(10.0, 3.6, 2)
    colours = {"greedy": "#b5651d", "pessimistic": "#0b5fa5"}
    for y, (name, colour) in enumerate(colours.items()):
        row = policy[name]
        axes[0].plot([row["lower_bound"], row["value"]], [y, y], color=colour, linewidth=2.2)
        axes[0].plot(row["value"], y, "o", color=colour, markersize=8)
        axes[0].plot(row["lower_bound"], y, "|", color=colour, markersize=14, markeredgewidth=2.4)
        drawn = policy["drawn"][name]
        axes[1].plot(
            drawn["estimate"], drawn["lower_bound"], "o", color=colour, markersize=3.4, alpha=0.55,
            markeredgewidth=0, label=name,
        )  # fmt: skip
    axes[0].set_yticks([0, 1], list(colours))
    axes[0].set_ylim(-0.6, 1.6)
    axes[0].axvline(0, color="#999999", linewidth=1, linestyle=(0, (1, 1)))
    axes[0].set_xlabel("all prompts: above the reference (dot: estimate, bar: lower bound)", fontsize=9)
    axes[0].grid(False, axis="y")
    axes[1].axhline(0, color="#999999", linewidth=1, linestyle=(0, (1, 1)))
    axes[1].set_xlabel("one prompt each: estimate above its reference", fontsize=9)
    axes[1].set_ylabel("lower bound of that prompt alone", fontsize=9)
    axes[1].legend(frameon=False, fontsize=9)
    return figure


def under_shift(results: Results) -> Figure | None:
    """The demo's two policies where completions stray from what was labelled."""
    return _policy_under_shift(results["shift"]) if results.get("shift") else None


def _policy_under_shift(shift: Mapping[str, Any]) -> Figure:
    """True reward and what each policy believes, as the choice per prompt grows."""
    figure, axes = _axes(10.0, 3.9, 2, sharex=True)
    n = np.array(shift["completions"], np.float64)
    for name, colour in (("greedy", "#b5651d"), ("pessimistic", "#0b5fa5")):
        true = np.array(shift[name])
        mean, spread = true.mean(axis=0), true.std(axis=0, ddof=1) if len(true) > 1 else np.zeros(len(n))
        axes[0].plot(n, mean, "o-", color=colour, linewidth=2.2, markersize=5, label=name)
        axes[0].fill_between(n, mean - spread, mean + spread, color=colour, alpha=0.14, linewidth=0)
        promised = np.array(shift[f"{name}_promised"]).mean(axis=0)
        basis = {"greedy": "its estimate", "pessimistic": "its lower bound"}[name]
        axes[1].plot(
            n, promised - mean, "o-", color=colour, linewidth=2.2, markersize=5, label=f"{name}: {basis}"
        )
    best = np.array(shift["best"]).mean(axis=0)
    axes[0].plot(n, best, color="#111111", linestyle=(0, (4, 2)), linewidth=1.3, label="best possible")
    axes[0].set_ylabel("true mean reward")
    axes[1].set_ylabel("promised minus true reward")
    axes[1].axhline(0, color="#999999", linewidth=1)
    for ax in axes:
        ax.set_xscale("log", base=2)
        ax.set_xticks(n, [f"{k:g}" for k in n])
        ax.set_xlabel("completions to choose from, per prompt")
        ax.legend(frameon=False, fontsize=9)
    return figure


#: File stem -> (title, what the figure shows, function), in the order of the page.
FIGURES: dict[str, tuple[str, str, Callable[[Results], Figure | None]]] = {
    "learning_curves": (
        "Accuracy as labels come in",
        "Mean over seeds; bands (dual design, uniform) are one standard deviation. All methods share the "
        "seed labels, so the curves start at one point (but for the oracle, whose fit knows the teachers).",
        learning_curves,
    ),
    "differences": (
        "Against uniform, seed by seed",
        "Dots: one seed each, on the same split and seed labels. Diamond and bar: mean and 95 % interval. "
        "Splits of different seeds overlap, so the interval is approximate.",
        differences,
    ),
    "each_method": (
        "Every method over uniform",
        "Colour: the method; grey: uniform. Bands are one standard deviation over seeds.",
        each_method,
    ),
    "information": (
        "Information collected",
        "log det of the information matrix above uniform's, all methods at the same parameters.",
        information,
    ),
    "teachers": (
        "Teachers",
        "What the answers say about each teacher in each category (first seed of the dual design).",
        teachers,
    ),
    "flags": (
        "Teachers to look at",
        "Red: flagged by a test against the reward of the others, corrected for the number of teachers; "
        "grey: too few answers for a test (first seed of the main design).",
        flags,
    ),
    "assignments": (
        "Who was asked about what",
        "Share of all answers, by teacher and category, added over seeds.",
        assignments,
    ),
    "policies": (
        "Policies",
        "What a policy that trusts the estimate promises, and one that guards against its error. Left: the "
        "mean over prompts, bounded jointly. Right: prompt by prompt; choices above the dotted line are "
        "better than the reference by their own lower bound.",
        policies,
    ),
    "policies_under_shift": (
        "Policies under shift",
        "True reward, and what each policy promises, as the choice strays from what was labelled.",
        under_shift,
    ),
}


# -------------------------------------------------------------------------------------------------- the page


def render(folder: str | os.PathLike[str], results: Results) -> list[Path]:
    """Write report.html and a PNG file for each figure.

    Parameters
    ----------
    folder : str or path
        An existing folder.
    results : dict
        Content of results.json.

    Returns
    -------
    list of Path
        The files written.

    Raises
    ------
    ImportError
        The extra ``plot`` is missing; the message says how to install it.
    """
    jinja2 = require("jinja2", "plot", "the report")
    require("matplotlib", "plot", "the report")
    out, written, shown = Path(folder), [], []
    for stem, (title, caption, draw) in FIGURES.items():
        png = _png(draw, results)
        if png is None:
            continue
        written.append(out / f"{stem}.png")
        with atomic_write(written[-1], "wb") as file:
            file.write(png)
        shown.append((title, caption, base64.b64encode(png).decode("ascii")))
    page = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(_PAGE)
    html = page.render(
        results=results,
        title=_title(results),
        sentences=sentences(results),
        header=_TABLE,
        rows=_table_rows(results),
        figures=shown,
        uncertain_header=_UNCERTAIN,
        uncertain=_uncertain_rows(results["policy"], 90) if results.get("policy") else [],
        facts=_facts(results),
        own=LABELS.get(_main(results)),
        lists=[
            ("How to read this", _GLOSSARY),
            ("The methods", [(LABELS.get(m, m), DESCRIPTIONS.get(m, "")) for m in results["methods"]]),
            ("Settings", _setting_rows(results)),
        ],
    )
    written.append(out / "report.html")
    with atomic_write(written[-1]) as file:
        file.write(html)
    return written


def _png(draw: Callable[[Results], Figure | None], results: Results) -> bytes | None:
    """A figure as PNG; the same results give the same bytes."""
    matplotlib = require("matplotlib", "plot", "drawing figures")
    with matplotlib.rc_context(), warnings.catch_warnings():
        matplotlib.rcdefaults()  # not the user's style: a report looks the same everywhere
        matplotlib.rcParams.update(
            {"font.size": 10, "axes.edgecolor": "#9aa1a9", "axes.labelcolor": "#333333"}
        )
        warnings.filterwarnings("ignore", "Glyph .* missing", UserWarning)  # names in any script
        figure = draw(results)
        if figure is None:
            return None
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=144, facecolor="white", metadata={"Software": None})
        return buffer.getvalue()


def _title(results: Results) -> str:
    return f"Whom to ask about what: {results['dataset']}"


def _facts(results: Results) -> list[tuple[str, str]]:
    s = results["sizes"]
    facts = [
        ("conversations", f"{s['conversations']:,}"),
        ("prompts", f"{s['prompts']:,}"),
        ("teachers", f"{s['teachers']:,}"),
        ("categories", f"{len(s['categories']):,}"),
        ("features", f"{s['features']:,}"),
        ("labels bought", f"{results['budget']:,}"),
        ("seeds", f"{results['settings']['seeds']:,}"),
    ]
    return facts


def _setting_rows(results: Results) -> list[tuple[str, str]]:
    hidden = {"methods", "method", "seed"}
    rows = [(k.replace("_", " "), str(v)) for k, v in results["settings"].items() if k not in hidden]
    return [("answers", results["answers"]), *rows, ("dal-native", results["version"])]


_GLOSSARY = (
    (
        "accuracy",
        "share of held-out pairs with a known answer whose reward difference has the right sign; prompts are "
        "split, never the pairs of one prompt",
    ),
    (
        "log det",
        "logarithm of the determinant of the information matrix: how sharply the labels pin the reward down; "
        "one unit is a factor e in volume",
    ),
    (
        "labels to match",
        "labels after which a method's mean curve stays at or above uniform's final accuracy",
    ),
    (
        "rationality",
        "how strongly a teacher's answers follow the reward: 0 is a coin, 1 the average teacher, below 0 "
        "worse than a coin",
    ),
    (
        "flags",
        "opposes: agrees with the others' reward less often than a coin; clicks at random: below half of the "
        "average rationality and not to be told from a coin; drifts: follows the reward more, or less, as "
        "rounds go by; prefers a side: chooses what is shown first too often, or too seldom",
    ),
    ("lower bound", "reward that a policy has under the least favourable reward the labels still allow"),
)

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>
:root { color-scheme: light; }
body { margin: 0; background: #f4f5f7; color: #22262b; font: 16px/1.55 system-ui, sans-serif; }
main { max-width: 66rem; margin: 0 auto; padding: 2.5rem 1.5rem 4rem; }
h1 { font-size: 1.75rem; line-height: 1.25; margin: 0 0 .3rem; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 0 0 .4rem; }
section { background: #fff; border: 1px solid #e2e5e9; border-radius: 10px; }
section { padding: 1.3rem 1.5rem; margin-top: 1.2rem; }
.facts { display: flex; flex-wrap: wrap; gap: .4rem 1.8rem; }
.facts { padding: 0; margin: .8rem 0 0; list-style: none; }
.facts b { display: block; font-size: 1.25rem; font-variant-numeric: tabular-nums; }
.facts span, .note { color: #626a73; font-size: .88rem; }
.lead li { margin: .3rem 0; }
.lead li:first-child { font-weight: 600; }
img { display: block; max-width: 100%; height: auto; margin: .6rem auto 0; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .86rem; }
table { font-variant-numeric: tabular-nums; }
th, td { padding: .38rem .45rem; border-bottom: 1px solid #e9ebee; }
th, td { text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
tr.own td { background: #eaf2fa; font-weight: 600; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .25rem 1.2rem; }
dl { margin: 0; font-size: .92rem; }
dt { font-weight: 600; }
dd { margin: 0; overflow-wrap: anywhere; }
@media print { body { background: #fff; } section { break-inside: avoid; border: 0; padding: 0; } }
</style>
</head>
<body><main>
<h1>{{ title }}</h1>
<ul class="facts">
{% for name, number in facts %}
<li><b>{{ number }}</b><span>{{ name }}</span></li>
{% endfor %}
</ul>
<section>
<h2>What came out</h2>
<ul class="lead">
{% for line in sentences %}
<li>{{ line }}</li>
{% endfor %}
</ul>
</section>
<section>
<h2>The methods side by side</h2>
<p class="note">Means over seeds, sd between seeds; differences from uniform are paired by seed, with a
95 % interval.</p>
<div class="wide"><table>
<tr>{% for name in header %}<th>{{ name }}</th>{% endfor %}</tr>
{% for row in rows %}
<tr{% if row[0] == own %} class="own"{% endif %}>
{% for cell in row %}
<td>{{ "–" if cell is none else cell }}</td>
{% endfor %}
</tr>
{% endfor %}
</table></div>
</section>
{% for heading, caption, image in figures %}
<section>
<h2>{{ heading }}</h2>
<p class="note">{{ caption }}</p>
<img alt="{{ heading }}" src="data:image/png;base64,{{ image }}">
</section>
{% endfor %}
{% if uncertain %}
<section>
<h2>Most uncertain prompts</h2>
<p class="note">Where the labels say least about the answer that the estimate would give: its estimate,
standard deviation and lower bound over the reference. Labels of these prompts would tell most.</p>
<div class="wide"><table>
<tr>{% for name in uncertain_header %}<th>{{ name }}</th>{% endfor %}</tr>
{% for row in uncertain %}
<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}
</table></div>
</section>
{% endif %}
{% for heading, pairs in lists %}
<section>
<h2>{{ heading }}</h2>
<dl>
{% for name, text in pairs %}
<dt>{{ name }}</dt><dd>{{ text }}</dd>
{% endfor %}
</dl>
</section>
{% endfor %}
</main></body></html>
"""
