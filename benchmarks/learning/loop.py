"""Cells: one method on one draw of one setting, each kept as soon as it is done."""

from __future__ import annotations

import dataclasses
import json
import os
import time
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import dal_native as dn
from benchmarks import common
from benchmarks.learning.crowds import Crowd, NoTexts, Setting, crowd
from dal_learn.campaign import Design, Study
from dal_learn.reward import ConvergenceWarning, RewardModel
from dal_learn.teachers import SimulatedTeachers

#: The project's own rule with its default fit.
OURS = "dual"
#: What the same rule reaches when rationalities need not be learnt (theta still has to be).
KNOWN = "dual:known"
#: Methods that do not know the truth.
RIVALS = (
    "uniform",
    "best_fixed_teacher",
    "uniform_best_teacher",
    "d_optimal_uniform_teacher",
    "apo",
    "apo_best_teacher",
    "theta_free",
    "uncertainty",
    "top_b",
)
METHODS = (
    OURS,
    KNOWN,
    "dual:criterion=plug_in",
    "dual:criterion=nuisance",
    "dual:criterion=plug_in,fit=joint_map",
    *RIVALS,
)
#: Along the spreads: one budget, the same labels where conversations and teachers are uniform, two fits.
SPREAD_METHODS = ("uniform", "uniform:fit=homogeneous", OURS, "dual:fit=homogeneous", KNOWN)


@dataclass(frozen=True)
class Asking(Design):
    """A design whose fit may know the rationalities, or take parameters that a `Design` has not.

    Parameters
    ----------
    known : ndarray, (m, C), optional
        The true rationalities.
    parameters : tuple of (str, value)
        Of the `RewardModel`.
    """

    known: Any = None
    parameters: tuple[tuple[str, Any], ...] = ()

    def model(self, rationality: Any = None) -> RewardModel:
        """As a `Design`'s, with what is known here."""
        known = rationality if self.known is None else self.known
        return super().model(known).set_params(**dict(self.parameters))


def asking(method: str, setting: Setting, seed: int, truth: Crowd) -> Asking:
    """The settings that a method's name stands for.

    Parameters
    ----------
    method : str
        A name of `dal_learn.design.METHODS`, then after a colon, separated by commas, "known" (the
        rationalities are) or NAME=VALUE: a field of `Design` or a parameter of `RewardModel`.
    setting : Setting
    seed : int
    truth : Crowd

    Raises
    ------
    ValueError
        A name is unknown.
    """
    name, _, given = method.partition(":")
    chosen: dict[str, Any] = {
        "budget": setting.budget,
        "batch": setting.batch,
        "seed_labels": setting.seed_labels,
        "signed": setting.opposed > 0,
    }
    fields, parameters = {field.name for field in dataclasses.fields(Design)}, {}
    for option in filter(None, given.split(",")):
        key, _, text = option.partition("=")
        if key == "known":
            chosen["known"] = truth.rationality
        else:
            (chosen if key in fields else parameters)[key] = _value(text)
    made = Asking(method=name, seed=seed, parameters=tuple(parameters.items()), **chosen)
    made.model()  # refuses unknown parameters
    return made


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def run_cell(setting: Setting, method: str, seed: int) -> dict[str, Any]:
    """A whole study: what it learnt, and how its accuracy grew.

    Returns
    -------
    dict
        ``accuracy`` (share of the held-out conversations whose margin's sign came out right),
        ``direction_error`` (1 - cosine between fitted and true theta), ``rationality_error`` (standard
        deviation of the error of log|rationality|), ``signs_wrong``, ``busiest`` (share of the labels that
        the most asked teacher gave), ``labels`` and ``curve`` (accuracy after each round),
        ``unconverged`` (fits that warned), ``seconds_selecting``, ``seconds_fitting``.
    """
    truth = crowd(setting, seed)
    teachers = SimulatedTeachers(truth.conversations, truth.reward, truth.rationality, seed=seed)
    with warnings.catch_warnings(record=True) as caught, dn.single_threaded_blas():
        warnings.simplefilter("always", ConvergenceWarning)
        study = Study(
            truth.conversations,
            teachers,
            asking(method, setting, seed, truth),
            train=truth.train,
            held_out=truth.held_out,
            truth=(truth.reward, truth.rationality),
        )
        rounds = study.run()
    fitted, true = study.estimates[1], truth.rationality
    apart = np.log(np.abs(fitted)) - np.log(np.abs(true))
    asked = np.bincount(study.labelled()[1], minlength=setting.m)
    return {
        "accuracy": rounds[-1].accuracy,
        "direction_error": rounds[-1].direction_error,
        "rationality_error": float(np.std(apart)),
        "signs_wrong": int(np.sum(np.sign(fitted) != np.sign(true))),
        "busiest": float(asked.max() / asked.sum()),
        "labels": [r.labels for r in rounds],
        "curve": [round(r.accuracy, 4) for r in rounds],
        "unconverged": len(caught),
        "seconds_selecting": sum(r.seconds_selecting for r in rounds),
        "seconds_fitting": sum(r.seconds_fitting for r in rounds),
    }


# ------------------------------------------------------------------------------------------ many, with a file


class Cells:
    """The cells measured so far, in a JSON file that is replaced after each.

    A cell counts as measured when setting, method, seed and commit are the same.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.report: dict[str, Any] = {"cells": [], "skipped": {}}
        if path is not None and path.exists():
            self.report = json.loads(path.read_text(encoding="utf-8"))

    def find(self, setting: str, what: Setting, method: str, seed: int, commit: str) -> int | None:
        """Place of the cell in the file, at that commit; None when it has to be measured."""
        wanted = (setting, dataclasses.asdict(what), method, seed, commit)
        for place, cell in enumerate(self.report["cells"]):
            if wanted == tuple(cell[key] for key in ("setting", "drawn", "method", "seed", "commit")):
                return place
        return None

    def put(self, cell: dict[str, Any]) -> None:
        """Add a cell, in place of one of another commit, and write the file."""
        key = ("setting", "method", "seed")
        others = [c for c in self.report["cells"] if any(c[k] != cell[k] for k in key)]
        self.report["cells"] = [*others, cell]
        self.write()

    def write(self) -> None:
        if self.path is not None:
            fresh = self.path.with_name(self.path.name + ".new")
            fresh.write_text(_json(self.report), encoding="utf-8")
            os.replace(fresh, self.path)


def _json(report: Mapping[str, Any]) -> str:
    """One line for each cell, so that two files can be compared."""
    head = {key: value for key, value in report.items() if key != "cells"}
    cells = ",\n ".join(json.dumps(cell) for cell in report["cells"])
    return json.dumps(head, indent=1).removesuffix("\n}") + ',\n "cells": [\n ' + cells + "\n]}\n"


def measure(
    cells: Cells, settings: Mapping[str, Setting], methods: Iterable[str], seeds: Iterable[int]
) -> None:
    """Measure what the file has not; a setting whose texts are not at hand is skipped, with the reason."""
    commit, where = common.commit(), common.provenance()
    skipped = {name: why for name, why in cells.report["skipped"].items() if name not in settings}
    cells.report = where | {"skipped": skipped, "cells": cells.report["cells"]}
    todo = [(name, method, seed) for seed in seeds for name in settings for method in methods]
    todo = [(n, m, s) for n, m, s in todo if cells.find(n, settings[n], m, s, commit) is None]
    began, done = time.perf_counter(), 0
    for name, method, seed in todo:
        if name in skipped:
            continue
        try:
            found = run_cell(settings[name], method, seed)
        except NoTexts as reason:
            skipped[name] = str(reason)
            common.say(f"{name}: skipped, {reason}")
            continue
        drawn = dataclasses.asdict(settings[name])
        cells.put({"setting": name, "method": method, "seed": seed, "commit": commit, "drawn": drawn} | found)
        done += 1
        left = (time.perf_counter() - began) / done * (len(todo) - done)
        common.say(
            f"{done}/{len(todo)} {name}, {method}, seed {seed}: accuracy {found['accuracy']:.3f}, "
            f"{found['seconds_selecting'] + found['seconds_fitting']:.1f} s, about {left / 60:.0f} min left"
        )
    cells.write()
