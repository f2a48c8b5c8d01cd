"""Measure the loop on simulated crowds, and what modelling the teachers buys along their spread.

usage: python -m benchmarks.learning --out docs/learning.json --page docs/learning.md
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

import dal_native as dn
from benchmarks import common
from benchmarks.learning import crowds, loop, page

ALL = {**crowds.SETTINGS, **crowds.SPREAD_SETTINGS, **crowds.SMALL}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.learning",
        description="Designs on simulated crowds whose rationalities have to be learnt. With --out a run "
        "that was killed goes on where it stopped, as long as the commit is the same.",
    )
    parser.add_argument(
        "--settings",
        nargs="*",
        choices=list(ALL),
        default=[*crowds.SETTINGS, *crowds.SPREAD_SETTINGS],
        metavar="NAME",
        help="by default all of " + ", ".join([*crowds.SETTINGS, *crowds.SPREAD_SETTINGS]),
    )
    parser.add_argument("--seeds", type=int, default=6, help="seeds of each setting (default 6)")
    parser.add_argument(
        "--methods",
        nargs="+",
        metavar="METHOD",
        help="names of dal_learn.design.METHODS, with options after a colon: dual:known, "
        "dual:fit=joint_map, dual:repeats=2,optimism=0.5 (fields of Design, parameters of RewardModel)",
    )
    parser.add_argument("--fit", help="how rationalities are fitted, for every method without one of its own")
    parser.add_argument("--out", type=Path, help="keep what is measured in this JSON file")
    parser.add_argument("--page", type=Path, help="refresh this page's parts and plots")
    parser.add_argument(
        "--part", default="loop", help="the page's part for the loop; one of another name has no plot"
    )
    parser.add_argument("--render", action="store_true", help="measure nothing: tables and plots from --out")
    wanted = parser.parse_args(arguments)
    if wanted.render and (wanted.out is None or not wanted.out.is_file()):
        parser.error("--render needs an --out that exists")
    chosen = {name: ALL[name] for name in wanted.settings}
    along = {name: setting for name, setting in chosen.items() if name.startswith("spread ")}
    looped = {name: setting for name, setting in chosen.items() if name not in along}
    methods = _with_fit(wanted.methods or loop.METHODS, wanted.fit)
    spread_methods = _with_fit(wanted.methods or loop.SPREAD_METHODS, wanted.fit)
    cells = loop.Cells(wanted.out)
    if not wanted.render:
        dn.set_threads(1)
        loop.measure(cells, looped, methods, range(wanted.seeds))
        loop.measure(cells, along, spread_methods, range(wanted.seeds))
    report = cells.report | {"cells": [c for c in cells.report["cells"] if c["seed"] < wanted.seeds]}
    parts = {
        wanted.part: page.loop_part(report, looped, methods),
        "spread": page.spread_part(report, along),
    }
    for name, text in parts.items():
        if text:
            common.say(f"\n{text}")
            if wanted.page is not None:
                _publish(wanted.page, name, text, page.Results(report["cells"]), chosen)


def _with_fit(methods: list[str] | tuple[str, ...], fit: str | None) -> list[str]:
    if fit is None:
        return list(methods)
    return [m if "fit=" in m else f"{m}{',' if ':' in m else ':'}fit={fit}" for m in methods]


def _publish(
    path: Path, name: str, text: str, found: page.Results, chosen: Mapping[str, crowds.Setting]
) -> None:
    image = path.with_name(f"{path.stem}_{name}.svg")
    if name not in ("loop", "spread"):
        common.refresh(path, name, text)
        return
    if name == "loop":
        page.plot_curves(found, {n: s for n, s in chosen.items() if not n.startswith("spread ")}, image)
        words = "Held-out accuracy against the number of labels, in each setting"
    else:
        page.plot_spread(found, {n: s for n, s in chosen.items() if n.startswith("spread ")}, image)
        words = "Held-out accuracy and 1 - cosine against the spread of the rationalities"
    common.refresh(path, name, f"![{words}]({image.name})\n\n{text}")


if __name__ == "__main__":
    main()
