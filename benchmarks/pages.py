"""Pages whose plots and tables come from one command: simulate, draw, fill in between the page's comments."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from benchmarks import common

__all__ = ["Part", "draw", "main"]

Sizes = TypeVar("Sizes")


@dataclass(frozen=True)
class Part(Generic[Sizes]):
    """One figure of a page, with its table."""

    measure: Callable[[Sizes], dict[str, Any]]
    plot: Callable[[Mapping[str, Any], Any], None]
    table: Callable[[Mapping[str, Any]], str]
    alternative: str
    size: tuple[float, float] = (8.0, 3.0)


def draw(part: Part[Any], found: Mapping[str, Any], path: Path) -> None:
    """One figure as SVG: the same bytes for the same numbers."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    style = {"svg.fonttype": "none", "svg.hashsalt": "dal-native", "font.size": 9}
    with pyplot.rc_context(style):
        figure = pyplot.figure(figsize=part.size, layout="constrained")
        part.plot(found, figure)
        figure.savefig(path, metadata={"Date": None})
        pyplot.close(figure)


def main(
    parser: argparse.ArgumentParser,
    parts: Mapping[str, Part[Sizes]],
    sizes: Sizes,
    small: Sizes,
    with_seeds: Callable[[Sizes, int], Sizes],
    arguments: list[str] | None = None,
    page: Path | None = None,
) -> None:
    """Refresh a page from the command line.

    Parameters
    ----------
    parser : ArgumentParser
        Its name and description; the options are added here.
    parts : mapping of str to Part
        By the names in the page's comments.
    sizes, small
        How much is simulated, and how much for a try.
    with_seeds : callable
        Sizes with another number of seeds.
    arguments : list of str, optional
    page : Path, optional
        The page when none is named.
    """
    words = "the page; plots and data go beside it"
    parser.add_argument("--page", type=Path, required=page is None, default=page, help=words)
    parser.add_argument("--parts", nargs="+", choices=list(parts), default=list(parts))
    parser.add_argument("--render", action="store_true", help="simulate nothing: plots and tables from data")
    parser.add_argument("--small", action="store_true", help="seconds instead of minutes, for a try")
    parser.add_argument("--seeds", type=int, help="draws of nearly every part")
    wanted = parser.parse_args(arguments)
    data = wanted.page.with_suffix(".json")
    if not wanted.page.is_file():
        parser.error(f"{wanted.page} does not exist; expected the page")
    sizes = small if wanted.small else sizes
    if wanted.seeds is not None:
        sizes = with_seeds(sizes, wanted.seeds)
    known = json.loads(data.read_text(encoding="utf-8")) if data.exists() else {}
    origin = {} if wanted.render else common.provenance()  # before the page itself is changed
    for name in wanted.parts:
        part = parts[name]
        if not wanted.render:
            known[name] = origin | part.measure(sizes)
            data.write_text(json.dumps(known, separators=(",", ":")) + "\n", encoding="utf-8")
        if name in known:
            found, picture = known[name], wanted.page.with_name(f"{wanted.page.stem}_{name}.svg")
            draw(part, found, picture)
            source = f"Simulated. {common.source(found)}"
            texts = [f"![{part.alternative}]({picture.name})", source, part.table(found)]
            common.refresh(wanted.page, name, "\n\n".join(texts))
