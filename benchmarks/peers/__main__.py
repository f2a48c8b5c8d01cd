"""Run the peers and ours side by side."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from benchmarks import common
from benchmarks.peers import environments, side_by_side

#: (n, d, B): one that a dense kernel allows, and two that it does not.
SIZES = [(3_000, 64, 16), (20_000, 128, 32), (200_000, 256, 64)]


def size(text: str) -> tuple[int, int, int]:
    n, d, batch = (int(part.replace(",", "").replace("_", "")) for part in text.split("x"))
    return n, d, batch


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.peers",
        description="Peers and dal_native on the same problems, in pairs; each peer in its environment.",
        epilog="The largest problem of the README: --sizes 1000000x512x256 (8 to 14 GB of memory).",
    )
    parser.add_argument("--sizes", nargs="+", type=size, default=SIZES, metavar="NxDxB")
    parser.add_argument(
        "--only", nargs="+", choices=list(side_by_side.PEERS), default=list(side_by_side.PEERS)
    )
    parser.add_argument(
        "--pairs", type=int, default=5, help="pairs of runs (one where a run takes over 10 s)"
    )
    parser.add_argument("--limit", type=float, default=600.0, help="seconds that a peer may take to answer")
    parser.add_argument(
        "--environments", type=Path, help=f"where they are made (default {environments.cache()})"
    )
    parser.add_argument("--out", type=Path, help="write everything measured to this JSON file")
    parser.add_argument("--page", type=Path, help="put the table into the part 'peers' of this page")
    wanted = parser.parse_args(arguments)
    report = common.provenance()
    report["problems"] = [
        side_by_side.compare(shape, wanted.only, wanted.pairs, wanted.limit, wanted.environments)
        for shape in wanted.sizes
    ]
    text = side_by_side.markdown(report)
    common.say("\n" + text)
    if wanted.out:
        wanted.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    if wanted.page:
        common.refresh(wanted.page, "peers", text)


if __name__ == "__main__":
    main()
