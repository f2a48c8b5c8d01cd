"""Votes of real teachers: how well held-out ones are predicted, and whether knowing the teacher helps.

Five folds, so that every vote is held out once. By *prompt*: the votes on a fifth of the prompts, new to the
models. By *vote*: a fifth of the answers (pair, teacher); scored where another answer on the pair was seen.
Ties are left out, but where they are modelled. The ridges of a fold are those by which the model of one
rationality and the one of a rationality per teacher predict best within the rest; scikit-learn gets the
former, all that know teachers the latter. (They differ: the anchor of the scale counts teachers, not labels.)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import common
from benchmarks.reward_peers import beside, measures, ours
from benchmarks.reward_peers.problems import Comparisons, Differences, Learnt
from dal_learn import sources

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

FOLDS = 5
RIDGES = (0.1, 0.5, 2.0, 10.0, 50.0)
SCHEMES = {"prompt": "prompts held out", "vote": "votes held out, pairs known"}
BASE, EVIDENCE = "ours, one rationality", "ours, per teacher, evidence"
#: What each of our models knows, and its options.
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    BASE: ("nothing", {}),
    "ours, per teacher": ("teacher", {}),
    "ours, one rationality, averaged": ("nothing", {"averaged": True}),
    "ours, per teacher, averaged": ("teacher", {"averaged": True}),
    "ours, per teacher and category": ("teacher x category", {}),
    "ours, per teacher and category, signed": ("teacher x category", {"signed": True}),
    "ours, per teacher, lapse fitted": ("teacher", {"lapse": "fit"}),
    "ours, per teacher, ties modelled": ("teacher", {"ties": True}),
    "ours, per teacher, position bias": ("teacher", {"position_bias": 1.0}),
    EVIDENCE: ("teacher", {"ridge": "evidence", "rationality_scale": "evidence"}),
}
#: Whose calibration is drawn.
CURVES = (BASE, "ours, per teacher", "ours, per teacher, averaged")
ITEM_MODELS: dict[str, dict[str, Any]] = {
    "ours on items, one rationality": {"method": "homogeneous"},
    "ours on items, per teacher": {},
}
#: With more votes than these the evidence takes minutes a fold, and is left out.
LARGEST_EVIDENCE = 1_000
#: Sets in which every teacher was asked twice: repetition 0 with a shown first, repetition 1 with b.
BOTH_ORDERS = ("llmbar",)
#: A table of conversations x teachers with more cells is not asked of scikit-activeml, which holds several.
LARGEST_TABLE = 10_000_000


@dataclass(frozen=True, eq=False)
class Votes:
    """Votes on n pairs, ties among them."""

    rows: Floats  # (n, d)
    pair: Integers  # (n, 2): completions
    prompt: Integers  # (n,)
    kind: Integers  # (n,): category
    conversation: Integers  # (T,)
    teacher: Integers  # (T,)
    choice: Floats  # (T,)
    side: Integers  # (T,)
    completions: int
    teachers: int
    categories: int

    def told(self) -> NDArray[np.bool_]:
        """Votes that are no ties, (T,)."""
        return self.choice != 0.5

    def problem(
        self, seen: NDArray[np.bool_], held: NDArray[np.bool_], ridge: float, ties: bool = False
    ) -> Differences:
        """To learn from what was seen, ties only if asked for, and be asked about what is held."""
        i = self.conversation
        if not ties:
            seen = seen & self.told()
        return Differences(
            self.rows,
            i[seen],
            self.choice[seen],
            self.teacher[seen],
            self.kind[i[seen]],
            self.side[seen],
            i[held],
            self.teacher[held],
            self.kind[i[held]],
            self.side[held],
            self.teachers,
            self.categories,
            ridge,
        )

    def item_problem(self, seen: NDArray[np.bool_], held: NDArray[np.bool_], ridge: float) -> Comparisons:
        pair, seen = self.pair[self.conversation], seen & self.told()
        return Comparisons(
            pair[seen],
            self.choice[seen],
            self.teacher[seen],
            pair[held],
            self.teacher[held],
            self.completions,
            self.teachers,
            ridge,
        )


def read(folder: Path, cache: Path | None = None, encoder: str = "offline") -> Votes:
    """A folder of the layout of `dal_learn.sources.read_folder`, with sentence vectors of the responses."""
    return read_both(folder, cache, encoder)[0]


def read_both(
    folder: Path, cache: Path | None = None, encoder: str = "offline"
) -> tuple[Votes, Floats, tuple[str, ...]]:
    """The votes, the truth of the pairs (n,) and the names of the categories."""
    recording = sources.read_folder(folder, encoder=encoder, cache=cache)
    c, v = recording.conversations, recording.votes
    assert v is not None and c.pairs is not None and c.completions is not None
    side = np.where(v.repetition == 1, 1, -1) if folder.name in BOTH_ORDERS else np.zeros_like(v.repetition)
    votes = Votes(
        c.differences(),
        c.pairs,
        c.prompt,
        c.category,
        v.conversation,
        v.teacher,
        v.label,
        side,
        len(c.completions),
        len(v.teacher_names),
        c.n_categories,
    )
    return votes, c.gold, c.category_names


def folds(votes: Votes, scheme: str, seed: int, count: int = FOLDS) -> Integers:
    """Which fold each vote is held out in, (T,): votes of a prompt, or of a pair and teacher, in one fold."""
    if scheme == "prompt":
        group = votes.prompt[votes.conversation]
    else:
        group = votes.conversation * votes.teachers + votes.teacher
    names, index = np.unique(group, return_inverse=True)
    return (np.random.default_rng(seed).permutation(len(names)) % count)[index]


def known(votes: Votes, seen: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Votes on pairs that have a seen vote that is no tie, (T,)."""
    return np.isin(votes.conversation, votes.conversation[seen & votes.told()])


def best_ridge(votes: Votes, scheme: str, seen: NDArray[np.bool_], seed: int, knows: str) -> float:
    """The ridge by which a model predicts a quarter of the seen votes best from the rest."""
    inner = folds(votes, scheme, seed, 4) == 0
    losses = []
    for ridge in RIDGES:
        held = seen & inner & votes.told()
        learnt = ours.on_differences(votes.problem(seen & ~inner, held, ridge), knows)()
        losses.append(measures.log_loss(learnt.chance(), votes.choice[held]).mean())
    return RIDGES[int(np.argmin(losses))]


def measure(
    folder: Path,
    scheme: str,
    wanted: list[str],
    limit: float,
    environments: Path | None = None,
    cache: Path | None = None,
    encoder: str = "offline",
    count: int = FOLDS,
) -> dict[str, Any]:
    """Every model and wanted peer on one data set, votes held out by one scheme: the first `count` folds.

    Returns
    -------
    dict
        Ready for JSON.
    """
    votes = read(folder, cache, encoder)
    fold = folds(votes, scheme, seed=0)
    chances: dict[str, Floats] = {}
    failed: dict[str, str] = {}
    ridges, scored = [], np.zeros(len(fold), bool)
    for k in range(count):
        seen = fold != k
        held = (fold == k) & votes.told() & (known(votes, seen) if scheme == "vote" else True)
        scored |= held
        ridges.append([best_ridge(votes, scheme, seen, k + 1, knows) for knows in ("nothing", "teacher")])
        for name, predict in _predictors(votes, scheme, seen, held, ridges[-1], wanted, failed):
            answer = predict(limit, environments)
            if isinstance(answer, str):
                failed[name] = answer
                chances.pop(name, None)
                continue
            chances.setdefault(name, np.full(len(fold), np.nan))[held] = answer
        common.say(f"{folder.name}, by {scheme}, fold {k + 1} of {count}, ridges {ridges[-1]}")
    choice, prompt = votes.choice[scored], votes.prompt[votes.conversation[scored]]
    chances = {name: chance[scored] for name, chance in chances.items()}
    return {
        "votes": int(scored.sum()),
        "ties": int((~votes.told()).sum()),
        "teachers": votes.teachers,
        "prompts": len(np.unique(prompt)),
        "pairs": len(np.unique(votes.conversation[scored])),
        "folds": count,
        "ridges": ridges,
        "models": measures.described(chances, choice, prompt, BASE),
        "curves": {name: measures.curve(chances[name], choice) for name in CURVES},
        "failed": failed,
    }


Predictor = Callable[[float, Path | None], "Floats | str"]


def _predictors(
    votes: Votes,
    scheme: str,
    seen: NDArray[np.bool_],
    held: NDArray[np.bool_],
    ridges: list[float],
    wanted: list[str],
    failed: dict[str, str],
) -> list[tuple[str, Predictor]]:
    """What predicts the held-out votes: ours, then the wanted peers that have not failed before."""
    alike, given = (votes.problem(seen, held, ridge) for ridge in ridges)
    with_ties = votes.problem(seen, held, ridges[1], ties=True)

    def problem(knows: str, ties: bool) -> Differences:
        return alike if knows == "nothing" else with_ties if ties else given

    found: list[tuple[str, Predictor]] = [
        (name, _own(ours.on_differences(problem(knows, bool(options.get("ties"))), knows, **options)))
        for name, (knows, options) in MODELS.items()
        if _says_something(votes, options)
    ]
    if len(votes.choice) > LARGEST_EVIDENCE:
        found = [(name, predict) for name, predict in found if name != EVIDENCE]
        failed[EVIDENCE] = f"left out above {LARGEST_EVIDENCE:,} votes: it takes minutes a fold"
    peers: dict[str, Comparisons | Differences] = {
        name: alike if peer.module == "scikit_learn" else given for name, peer in beside.FEATURE_PEERS.items()
    }
    if scheme == "vote":  # scores say something of known completions only
        items = votes.item_problem(seen, held, 1.0)
        found += [(name, _own(ours.on_items(items, **options))) for name, options in ITEM_MODELS.items()]
        peers |= dict.fromkeys(beside.ITEM_PEERS, items)
    found += [
        (name, _peer(name, each)) for name, each in peers.items() if name in wanted and name not in failed
    ]
    return found


def _says_something(votes: Votes, options: dict[str, Any]) -> bool:
    """Whether a model can differ from the same without these options on this data set."""
    if options.get("position_bias"):
        return bool(votes.side.any())
    return bool((~votes.told()).any()) or not options.get("ties")


def _own(fit: Callable[[], Learnt]) -> Predictor:
    return lambda limit, environments: np.asarray(fit().chance())


def _peer(name: str, problem: Comparisons | Differences) -> Predictor:
    def predict(limit: float, environments: Path | None) -> Floats | str:
        if isinstance(problem, Differences) and beside.PEERS[name].module == "scikit_activeml":
            cells = len(problem.rows) * problem.teachers
            if cells > LARGEST_TABLE:
                return f"holds several tables of conversations x teachers, here of {cells:,} cells"
        try:
            return np.asarray(beside.answer(beside.PEERS[name], problem, limit, environments)["chance"])
        except beside.Failed as reason:
            return str(reason)

    return predict


# ----------------------------------------------------------------------------------------------------- tables


def _value(found: dict[str, Any], digits: int, percent: bool = False) -> str:
    scale, unit = (100, " %") if percent else (1, "")
    low, high = (f"{scale * end:.{digits}f}" for end in found["interval"])
    return f"{scale * found['value']:.{digits}f}{unit} [{low}, {high}]"


def _change(found: dict[str, Any], digits: int) -> str:
    low, high = (f"{end:+.{digits}f}" for end in found["change_interval"])
    return f"{found['change']:+.{digits}f} [{low}, {high}]"


HEAD = ("model", "log-loss", "change from one rationality", "accuracy", "calibration error")


def markdown(report: dict[str, Any]) -> str:
    """A table for each data set and scheme, with where it comes from."""
    parts = []
    for name, each in report.items():
        if "skipped" in each:
            parts.append(f"### {name}\n\nSkipped: {each['skipped']}.")
            continue
        parts.append(f"### {name}\n\n{common.source(each)}")
        for scheme, found in each["schemes"].items():
            lines = [
                (
                    model,
                    _value(row["log_loss"], 4),
                    "" if model == BASE else _change(row["log_loss"], 4),
                    _value(row["accuracy"], 1, percent=True),
                    _value(row["calibration"], 3),
                )
                for model, row in found["models"].items()
            ]
            lines += [
                (model, f"no figure: {reason}", "", "", "") for model, reason in found["failed"].items()
            ]
            ridges = ", ".join(f"{alike:g} | {given:g}" for alike, given in found["ridges"])
            words = (
                f"**{SCHEMES[scheme].capitalize()}**: {found['votes']:,} votes of {found['teachers']:,} "
                f"teachers on {found['pairs']:,} pairs of {found['prompts']:,} prompts; {found['ties']:,} "
                f"ties left out; {found['folds']} of {FOLDS} folds; ridge alike | by teacher: {ridges}."
            )
            parts.append(f"{words}\n\n{common.table(HEAD, lines)}")
    return "\n\n".join(parts)
