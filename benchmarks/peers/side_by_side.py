"""Peers and ours on the same problems: pairs of runs in turn, the same picks or the first difference, in
one table.
"""

from __future__ import annotations

import json
import os
import select
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

import dal_native as dn
from benchmarks import common
from benchmarks.peers import environments, exchange
from dal_native.testing import Problem

#: A first run that took so long is not repeated as a mere warm-up.
LONG = 10.0


@dataclass(frozen=True)
class Peer:
    """Which file answers in whose environment, and where it cannot."""

    module: str
    arguments: tuple[str, ...] = ()
    prepared: str = "whitened rows"  # what is made for it before the clock starts
    too_large: Callable[[int, int, int], str | None] = lambda n, d, size: None
    environment: str = ""  # the module's name unless said
    package: str = "benchmarks.peers"


def _dense_kernel(n: int, d: int, size: int) -> str | None:
    gigabytes = 40 * n * n / 1e9  # a Python list of lists of floats, and the C++ copy
    return None if gigabytes < 2 else f"needs a dense n x n kernel: {gigabytes:,.0f} GB as the lists it takes"


PEERS = {
    "NumPy loop": Peer("numpy_loop", prepared="nothing", environment="numpy"),
    "bmdal-reg MaxDet": Peer("bmdal", ("float32",)),
    "bmdal-reg MaxDet, float64": Peer("bmdal", ("float64",)),
    "submodlib LogDeterminant": Peer("submodlib", prepared="the dense kernel", too_large=_dense_kernel),
    "contextualbandits LinUCB": Peer("contextualbandits", ("float32",)),
}


class Failed(Exception):
    """A peer that could not answer, and why."""


class Running:
    """A peer's process, which has the problem in memory and answers when told."""

    def __init__(self, peer: Peer, folder: Path, limit: float, environment_folder: Path | None) -> None:
        try:
            python = environments.python_of(peer.environment or peer.module, environment_folder).absolute()
        except environments.NotInstalled as reason:
            raise Failed(f"not installed: {reason}") from None
        self.limit = limit
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115, closed on exit
        self.process = subprocess.Popen(
            [str(python), "-m", f"{peer.package}.{peer.module}", str(folder), *peer.arguments],
            cwd=common.ROOT,
            env={
                **os.environ,
                "PYTHONPATH": str(common.ROOT),
            },  # also where the current folder is not searched
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            bufsize=0,
        )
        self.answers = b""

    def __enter__(self) -> Running:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout, self.errors):
            if stream:
                stream.close()

    def answer(self) -> dict[str, Any]:
        """The next line of the peer, within the limit."""
        assert self.process.stdout
        end = time.monotonic() + self.limit
        while b"\n" not in self.answers:
            left = end - time.monotonic()
            if left <= 0 or not select.select([self.process.stdout], [], [], left)[0]:
                raise Failed(f"no answer within {self.limit:.0f} s")
            part = self.process.stdout.read(1 << 20)
            if not part:
                raise Failed(self._last_words())
            self.answers += part
        line, self.answers = self.answers.split(b"\n", 1)
        answer: dict[str, Any] = json.loads(line)
        return answer

    def run(self) -> dict[str, Any]:
        """One run: a selection, or a fit."""
        assert self.process.stdin
        self.process.stdin.write(b"\n")
        return self.answer()

    def _last_words(self) -> str:
        status = self.process.wait()
        self.errors.seek(0)
        lines = [line.strip() for line in self.errors.read().splitlines() if line.strip()]
        return f"ended with status {status}: {lines[-1] if lines else 'said nothing'}"


def compare(
    size: tuple[int, int, int],
    wanted: list[str],
    pairs: int,
    limit: float,
    environment_folder: Path | None = None,
) -> dict[str, Any]:
    """One problem, (n, d, B): every wanted peer beside ours.

    Returns
    -------
    dict
        Ready for JSON: the problem, the read, and for every peer its seconds, ours, and the picks compared.
    """
    n, d, batch_size = size
    p = common.pool_problem(n, d)
    pool, reward, rationality, matrix = common.arguments(p)
    margin = dn.margin(pool, reward)
    weight = dn.best_teacher(margin, p.category, rationality)[1]
    ours = dn.select_batch(pool, reward, rationality, matrix, batch_size)
    with tempfile.TemporaryDirectory() as name:
        given = exchange.Given(p.differences, p.category, rationality, reward, matrix, weight, batch_size)
        exchange.hand_over(Path(name), given)
        found = []
        for peer in wanted:
            common.say(f"{n:,} x {d}, B = {batch_size}: {peer} ...", end=" ")
            try:
                result = _pairs(
                    PEERS[peer], Path(name), p, pool, batch_size, pairs, limit, environment_folder
                )
                result |= _same_picks(ours, result.pop("conversation"), p, weight)
            except Failed as reason:
                result = {"failed": str(reason)}
            common.say(_in_words(result))
            found.append({"peer": peer, **result})
    return {
        "n": n,
        "d": d,
        "size": batch_size,
        "teachers": common.TEACHERS,
        "read_seconds": common.read_seconds(p.differences),
        "counters": ours.counters,
        "log_det_gain": _log_det_gain(p, ours.conversation, weight),
        "peers": found,
    }


def _pairs(
    peer: Peer,
    folder: Path,
    p: Problem,
    pool: dn.Pool,
    size: int,
    pairs: int,
    limit: float,
    environment_folder: Path | None,
) -> dict[str, Any]:
    """Peer, ours, peer, ours: medians of the seconds, of their ratio and of both in reads."""
    reason = peer.too_large(len(pool), pool.d, size)
    if reason:
        raise Failed(reason)
    with Running(peer, folder, limit, environment_folder) as running:
        about = running.answer()
        theirs, mine, in_reads, mine_in_reads = [], [], [], []
        answer = running.run()
        grown, mine_grown = answer["grown_bytes"], 0
        if answer["seconds"] > LONG:
            pairs = 1
        for run in range(pairs):
            if run > 0 or answer["seconds"] <= LONG:
                answer = running.run()
            time.sleep(0.2)  # idle threads of the peer's BLAS spin for a while
            unit = common.read_seconds(p.differences)
            _, took, _, more = exchange.measured(
                lambda: dn.select_batch(pool, p.reward, p.rationality, p.matrix, size)
            )
            grown, mine_grown = max(grown, answer["grown_bytes"]), max(mine_grown, more)
            theirs.append(answer["seconds"])
            mine.append(took)
            in_reads.append(answer["seconds"] / unit)
            mine_in_reads.append(took / unit)
    return {
        "version": about["version"],
        "prepared": peer.prepared,
        "prepare_seconds": about["prepare_seconds"],
        "seconds": statistics.median(theirs),
        "ours_seconds": statistics.median(mine),
        "ratio": statistics.median(a / b for a, b in zip(theirs, mine, strict=True)),
        "ratios": [a / b for a, b in zip(theirs, mine, strict=True)],
        "reads": statistics.median(in_reads),
        "ours_reads": statistics.median(mine_in_reads),
        "peak_bytes": answer["peak_bytes"],
        "grown_bytes": grown,
        "ours_grown_bytes": mine_grown,
        "conversation": answer["conversation"],
    }


def _log_det_gain(p: Problem, conversations: Any, weight: Any) -> float:
    """log det(M + the batch) - log det M, in float64."""
    x = p.differences[conversations].astype(np.float64)
    grown = p.matrix + (x * weight[conversations][:, None]).T @ x
    return float(np.linalg.slogdet(grown)[1] - np.linalg.slogdet(p.matrix)[1])


def _same_picks(ours: dn.Batch, theirs: list[int], p: Problem, weight: Any) -> dict[str, Any]:
    mine = ours.conversation.tolist()
    different = [k for k, (i, j) in enumerate(zip(mine, theirs, strict=False)) if i != j]
    return {
        "same_picks": mine == theirs,
        "first_difference": different[0] if different else None,
        "same_set": sorted(mine) == sorted(theirs),
        "log_det_gain": _log_det_gain(p, np.array(theirs, np.int64), weight),
        "log_det_short": _log_det_gain(p, ours.conversation, weight)
        - _log_det_gain(p, np.array(theirs, np.int64), weight),
    }


def _picks_in_words(result: dict[str, Any]) -> str:
    if result["same_picks"]:
        return "the same, in order"
    first = result["first_difference"]
    where = "fewer" if first is None else f"differ from pick {first + 1} on"
    if result["same_set"]:
        return f"{where}; the same set in another order"
    short = result["log_det_short"]
    return f"{where}; log det {'lower' if short >= 0 else 'higher'} by {abs(short):.2g}"


def _prepared(result: dict[str, Any]) -> str:
    if result["prepared"] == "nothing":
        return "nothing"
    return f"{result['prepared']}, {common.figure(result['prepare_seconds'])} s"


def _in_words(result: dict[str, Any]) -> str:
    if "failed" in result:
        return f"no figure: {result['failed']}"
    return (
        f"{result['seconds']:.3f} s, {result['reads']:.1f} reads; ours {result['ours_reads']:.1f} reads, "
        f"{result['ratio']:.1f} times faster; picks {_picks_in_words(result)}"
    )


HEAD = (
    "problem",
    "peer",
    "selecting",
    "reads",
    "ours, reads",
    "ours is faster",
    "before (not counted)",
    "memory; ours",
    "picks",
)


def markdown(report: dict[str, Any]) -> str:
    """The table of a report, with where it comes from."""
    lines = []
    for problem in report["problems"]:
        name = f"{problem['size']} of {problem['n']:,} x {problem['d']}"
        for result in problem["peers"]:
            if "failed" in result:
                lines.append((name, result["peer"], f"no figure: {result['failed']}", *[""] * 6))
                continue
            lines.append(
                (
                    name,
                    f"{result['peer']} ({result['version'].split()[1]})",
                    f"{common.figure(result['seconds'])} s",
                    common.figure(result["reads"]),
                    common.figure(result["ours_reads"]),
                    f"{common.figure(result['ratio'])} times",
                    _prepared(result),
                    f"{result['grown_bytes'] / 1e6:,.0f} MB; {result['ours_grown_bytes'] / 1e6:,.0f} MB",
                    _picks_in_words(result),
                )
            )
    return f"{common.source(report)}\n\n{common.table(HEAD, lines)}"
