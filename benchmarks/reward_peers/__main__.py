"""Measure, and write what was measured into a page."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

from benchmarks import common
from benchmarks.peers import environments
from benchmarks.reward_peers import beside, plots, recorded, signs, simulated, target

SETS = ("llmbar", "pandalm", "mtbench_human", "ukp_convarg", "tulu_human")
PARTS = ("items", "features", "target", "data", "signs")


def size(text: str) -> tuple[int, ...]:
    return tuple(int(part.replace(",", "").replace("_", "")) for part in text.split("x"))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.reward_peers",
        description="Peers and dal_learn on the same answers, in turn; each peer in its environment.",
    )
    shared = Path(os.environ.get("DAL_SHARED_DATA") or common.ROOT.parent / "shared" / "data")
    vectors = environments.cache().parent / "vectors"
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; all by default")
    parser.add_argument(
        "--sizes",
        nargs="+",
        type=size,
        help="items: NxMxT, features: TxDxMxCxR, target: TxD (one part at a time)",
    )
    parser.add_argument("--only", nargs="*", choices=list(beside.PEERS), default=list(beside.PEERS))
    parser.add_argument("--seeds", type=int, default=5, help="crowds of each size")
    parser.add_argument(
        "--data", type=Path, default=shared, help=f"folder of the data sets (default {shared})"
    )
    parser.add_argument("--sets", nargs="+", default=list(SETS), help=f"of {', '.join(SETS)}")
    parser.add_argument("--encoder", default="offline", help="what makes vectors of the texts")
    parser.add_argument(
        "--folds", type=int, default=recorded.FOLDS, help=f"of the {recorded.FOLDS}, how many are held out"
    )
    parser.add_argument("--cache", type=Path, default=vectors, help=f"of encoded texts (default {vectors})")
    parser.add_argument("--pairs", type=int, default=5, help="pairs of runs for the target")
    parser.add_argument("--limit", type=float, default=600.0, help="seconds that a peer may take to answer")
    parser.add_argument(
        "--environments", type=Path, help=f"where they are made (default {environments.cache()})"
    )
    parser.add_argument("--out", type=Path, help="put everything measured into this JSON file")
    parser.add_argument("--page", type=Path, help="put the tables into this page's parts")
    parser.add_argument("--render", action="store_true", help="measure nothing: tables and plots from --out")
    wanted = parser.parse_args(arguments)
    parts = wanted.parts or list(PARTS)
    for part in parts:
        if part not in PARTS:
            parser.error(f"unknown part {part!r}; expected {', '.join(PARTS)}")
    if wanted.sizes and len(parts) != 1:
        parser.error("--sizes needs one part")
    known: dict[str, Any] = {}
    if wanted.out and wanted.out.exists():
        known = json.loads(wanted.out.read_text(encoding="utf-8"))

    def keep() -> None:
        if wanted.out:
            wanted.out.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")

    for part in parts:
        if not wanted.render and part == "data":
            known.setdefault(part, {})
            for name in wanted.sets:
                known[part][name] = data(name, wanted)
                keep()
        elif not wanted.render:
            known[part] = measure(part, wanted)
            keep()
        if part in known:
            text = markdown(part, known[part])
            common.say("\n" + text)
            if wanted.page:
                pictures = plots.draw(known[part], wanted.page.parent) if part == "data" else ""
                common.refresh(wanted.page, part, f"{pictures}\n\n{text}")


def measure(part: str, wanted: argparse.Namespace) -> dict[str, Any]:
    report: dict[str, Any] = dict(common.provenance())
    if part == "signs":
        folder = wanted.data / "llmbar"
        if not folder.is_dir():
            return absent(folder)
        return report | signs.measure(folder, wanted.cache, wanted.encoder)
    if part == "target":
        shape = wanted.sizes[0] if wanted.sizes else target.SIZE
        return report | target.measure(shape, wanted.pairs, wanted.limit, wanted.environments)
    report["sizes"] = [
        simulated.measure(part, each, wanted.only, wanted.seeds, wanted.limit, wanted.environments)
        for each in wanted.sizes or simulated.PARTS[part].sizes
    ]
    return report


def data(name: str, wanted: argparse.Namespace) -> dict[str, Any]:
    """A data set by every scheme, or why not."""
    folder = wanted.data / name
    if not folder.is_dir():
        return absent(folder)
    schemes = {
        scheme: recorded.measure(
            folder,
            scheme,
            wanted.only,
            wanted.limit,
            wanted.environments,
            wanted.cache,
            wanted.encoder,
            wanted.folds,
        )
        for scheme in recorded.SCHEMES
    }
    return common.provenance() | {"schemes": schemes}


def absent(folder: Path) -> dict[str, str]:
    return {"skipped": f"there is no folder {folder.name} in {'/'.join(folder.parts[-3:-1])}"}


def markdown(part: str, report: dict[str, Any]) -> str:
    if part == "data":
        return recorded.markdown(report)
    if part == "signs":
        return signs.markdown(report)
    return target.markdown(report) if part == "target" else simulated.markdown(part, report)


if __name__ == "__main__":
    main()
