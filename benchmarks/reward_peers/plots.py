"""Pictures of the held-out votes: what knowing the teacher changes, and how well chances are calibrated."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.reward_peers.recorded import BASE, SCHEMES

NAMES = {"change": "reward_peers_change.svg", "calibration": "reward_peers_calibration.svg"}
SHOWN = {
    "ours, per teacher": "tab:blue",
    "ours, per teacher, averaged": "tab:orange",
    "ours, per teacher and category": "tab:green",
}


@contextmanager
def _panels(count: int, width: float, height: float, path: Path) -> Iterator[tuple[Any, Any]]:
    """A figure with its panels in a row, written as SVG in the end, the same bytes every time."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    style = {"svg.fonttype": "none", "svg.hashsalt": "dal-native", "font.size": 9}
    with pyplot.rc_context(style):
        figure, panels = pyplot.subplots(
            1, count, figsize=(width, height), layout="constrained", sharey=True, squeeze=False
        )
        yield figure, panels[0]
        figure.savefig(path, metadata={"Date": None})
        pyplot.close(figure)


def draw(sets: dict[str, Any], folder: Path) -> str:
    """Both pictures into a folder; the Markdown that shows them."""
    measured = {name: each["schemes"] for name, each in sets.items() if "schemes" in each}
    if not measured:
        return ""
    change(measured, folder / NAMES["change"])
    calibration(measured, folder / NAMES["calibration"])
    return (
        f"![Change in log-loss of held-out votes against the model of one rationality]({NAMES['change']})\n\n"
        f"![Share of b among held-out votes against the predicted chance of b]({NAMES['calibration']})"
    )


def change(measured: dict[str, Any], path: Path) -> None:
    """Log-loss of held-out votes less that of one rationality, with 95 % intervals: left of 0 is better."""
    with _panels(len(SCHEMES), 8, 0.6 + 0.5 * len(measured), path) as (figure, panels):
        for panel, (scheme, words) in zip(panels, SCHEMES.items(), strict=True):
            for k, (model, colour) in enumerate(SHOWN.items()):
                for row, schemes in enumerate(measured.values()):
                    found = schemes[scheme]["models"][model]["log_loss"]
                    y = row + 0.2 * (k - 1)
                    panel.plot(found["change_interval"], [y, y], color=colour, linewidth=1.2)
                    panel.plot(
                        found["change"], y, "o", color=colour, markersize=4, label=model if not row else None
                    )
            panel.axvline(0, color="tab:gray", linewidth=0.8)
            panel.set_title(words, fontsize=9)
            panel.set_xlabel("change in log-loss, nats a vote")
            panel.set_yticks(range(len(measured)), list(measured))
            panel.grid(alpha=0.3, axis="x")
        panels[0].invert_yaxis()
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=3, fontsize=8)


def calibration(measured: dict[str, Any], path: Path) -> None:
    """Share of b among held-out votes of known pairs in each bin, against the mean predicted chance of b."""
    colours = {BASE: "tab:gray", **SHOWN}
    with _panels(len(measured), 2.0 * len(measured) + 0.6, 2.9, path) as (figure, panels):
        for panel, (name, schemes) in zip(panels, measured.items(), strict=True):
            panel.plot([0, 1], [0, 1], ":", color="black", linewidth=0.8)
            for model, points in schemes["vote"]["curves"].items():
                x, y = ([point[key] for point in points] for key in ("chance", "share"))
                panel.plot(x, y, "o-", color=colours[model], markersize=3, linewidth=1, label=model)
            panel.set_title(name, fontsize=9)
            panel.set_xlabel("predicted chance of b")
            panel.grid(alpha=0.3)
        panels[0].set_ylabel("share of b")
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=3, fontsize=8)
