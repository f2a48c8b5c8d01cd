"""Comparisons: every method over every seed, resumable, in one process or several, with the same results.

A *cell* is one method with one seed. Each is a `Study` with its own place in the ledger, so a run that was
killed goes on where it stopped, and what comes out has the same bytes as without the kill (but for fields
named ``seconds_*``).
"""

from __future__ import annotations

import concurrent.futures
import concurrent.futures.process
import contextlib
import dataclasses
import functools
import hashlib
import json
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

import dal_native as dn

from ._files import atomic_write, write_csv, write_jsonl
from ._ledger import Ledger, LedgerError, campaign_lock
from .batches import gold_conversations
from .campaign import Design, Round, Study, split_by_prompt
from .choices import choices_of
from .conversations import Conversations
from .design import METHODS
from .flags import FLAG_COLUMNS, LEAST, LEVEL
from .reward import RewardModel
from .teachers import HumanTeachers, ReplayedTeachers, SimulatedTeachers, Teachers, Votes

__all__ = [
    "BASELINES",
    "AnswersAwaited",
    "Comparison",
    "People",
    "Problem",
    "Simulation",
    "WorkerDied",
    "compare",
    "dataset_of",
    "models_of",
    "paired_difference",
    "read_results",
    "teacher_table",
    "write_results",
    "write_study",
    "write_teachers",
]

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

#: Methods that need no truth, in the order of reports.
BASELINES = tuple(name for name in METHODS if name not in ("dual", "oracle"))

#: Version of results.json.
RESULTS_FORMAT = 1

#: Files that a run writes and that somebody else's folder may hold under the same names.
_WRITTEN = (
    "flags.csv", "pessimistic.safetensors", "picks.jsonl", "policy.jsonl", "report.html", "results.csv",
    "reward.safetensors", "teachers.csv",
)  # fmt: skip

#: Characters of results.json that are read at most.
_LARGEST_RESULTS = 2**28

#: Teachers shown one by one in a report; the others are added up.
_TEACHERS_SHOWN = 24


@dataclass(frozen=True)
class Simulation:
    """A known truth from which answers are drawn.

    Parameters
    ----------
    reward : ndarray, (d,)
        True theta.
    rationality : ndarray, (m, C)
        True rationalities.
    lapse : float
        Share of answers given by a coin.
    names : tuple of str, optional
        Names of the teachers.
    schedule : ndarray, (R, m), optional
        Teachers who drift, as in `SimulatedTeachers`.
    """

    reward: Floats
    rationality: Floats
    lapse: float = 0.0
    names: tuple[str, ...] | None = None
    schedule: Floats | None = None


@dataclass(frozen=True)
class People:
    """Teachers who answer through files in a folder.

    Parameters
    ----------
    folder : Path
        Where questions are put and answers are looked for.
    names : tuple of str
        The teachers.
    """

    folder: Path
    names: tuple[str, ...]


class WorkerDied(RuntimeError):
    """A worker process ended without a word; what it had finished is in the ledger."""


class AnswersAwaited(Exception):
    """The run stopped because people have questions to answer; the same call goes on from there.

    Attributes
    ----------
    folder : Path
        Where the questions are.
    round : int
        The first round with open questions, from 1.
    open, asked : int
        Questions without an answer, and questions so far.
    """

    def __init__(self, folder: Path, round: int, open: int, asked: int) -> None:
        super().__init__(f"{open} of {asked} questions wait for an answer in {folder}")
        self.folder, self.round, self.open, self.asked = folder, round, open, asked


@dataclass(frozen=True)
class Problem:
    """What all methods share: the conversations, and who answers.

    Parameters
    ----------
    name : str
        Name of the data set.
    conversations : Conversations
    votes : Votes, optional
        Recorded answers to replay.
    simulation : Simulation, optional
        The truth to draw answers from.
    people : People, optional
        Who answers through files. Exactly one of the three is given.
    encoder : str, optional
        Fingerprint of what made the vectors; goes with the reward, so that nobody uses it with others.

    Raises
    ------
    ValueError
        Not exactly one of `votes`, `simulation` and `people` is given.

    Examples
    --------
    >>> conversations = Conversations.from_differences([[1.0], [-1.0]])
    >>> len(Problem("toy", conversations, votes=Votes([0, 1], [0, 0], [1, 0])).names)
    1
    """

    name: str
    conversations: Conversations
    votes: Votes | None = None
    simulation: Simulation | None = None
    people: People | None = None
    encoder: str | None = None

    def __post_init__(self) -> None:
        given = [source for source in (self.votes, self.simulation, self.people) if source is not None]
        if len(given) != 1:
            raise ValueError(f"{len(given)} of votes, simulation and people were given, expected exactly one")

    @property
    def answers(self) -> str:
        """Where answers come from, in a word."""
        if self.votes is not None:
            return "replayed"
        return "people" if self.people is not None else "simulated"

    @property
    def names(self) -> tuple[str, ...]:
        """The m teachers."""
        return self.teachers(0).names

    @property
    def truth(self) -> tuple[Floats, Floats] | None:
        """True theta and rationalities, where they are known."""
        return None if self.simulation is None else (self.simulation.reward, self.simulation.rationality)

    def teachers(self, seed: int) -> Teachers:
        """The teachers as this seed meets them."""
        if self.votes is not None:
            return ReplayedTeachers(self.votes, self.conversations, seed)
        if self.people is not None:
            return HumanTeachers(self.people.folder, self.people.names, self.conversations, seed)
        s = self.simulation
        assert s is not None
        shared: dict[str, Any] = {"lapse": s.lapse, "names": s.names, "schedule": s.schedule}
        return SimulatedTeachers(self.conversations, s.reward, s.rationality, seed=seed, **shared)

    def digest(self) -> str:
        """SHA-256 over everything that results depend on."""
        c = self.conversations
        arrays: list[Any] = [c.category, c.prompt, c.gold, c.completions, c.pairs]
        if c.completions is None:
            arrays.append(c.differences())
        if self.votes is not None:
            v = self.votes
            arrays += [v.conversation, v.teacher, v.label, v.repetition]
        if self.simulation is not None:
            s = self.simulation
            arrays += [s.reward, s.rationality, np.array([s.lapse])]
            arrays += [] if s.schedule is None else [s.schedule]
        digest = hashlib.sha256()
        for array in arrays:
            values = np.zeros(0) if array is None else np.ascontiguousarray(array)
            digest.update(f"{values.dtype.str}{values.shape}".encode())
            digest.update(values.data if values.size else b"")
        names = [c.category_names, c.ids, None if self.votes is None else self.votes.teacher_names]
        if self.people is not None:
            names.append(self.people.names)
        digest.update(json.dumps([self.name, self.encoder, *names]).encode())
        return digest.hexdigest()


@dataclass(frozen=True)
class Comparison:
    """What to compare, and how.

    Parameters
    ----------
    design : Design
        Shared by all cells; its method and seed are replaced in each.
    methods : tuple of str
        Which methods, the reports' order.
    seeds : int
        Seeds 0 to seeds - 1.
    holdout : float
        Share of the prompts held out for accuracy, split anew for each seed.
    delta : float
        Probability that the ellipsoid behind the pessimistic policy misses the truth.
    radius : float, optional
        Radius of that ellipsoid, in place of `delta`.
    reward_norm : float, optional
        S >= abs(theta) in that radius; see `choices_of`.
    top : str, optional
        The method whose first seed gives the top-level files; "dual", where it is among the methods, or else
        the first.
    """

    design: Design = field(default_factory=Design)
    methods: tuple[str, ...] = ("dual", *BASELINES)
    seeds: int = 5
    holdout: float = 0.3
    delta: float = 0.1
    radius: float | None = None
    reward_norm: float | None = None
    top: str | None = None

    def __post_init__(self) -> None:
        unknown = [name for name in self.methods if name not in METHODS]
        if unknown or not self.methods:
            what = repr(unknown[0]) if unknown else "nothing"
            raise ValueError(f"methods holds {what}, expected some of {', '.join(METHODS)}")
        if len(set(self.methods)) < len(self.methods):
            raise ValueError("methods holds a name twice, expected each once")
        if isinstance(self.seeds, bool) or not isinstance(self.seeds, int) or self.seeds < 1:
            raise ValueError(f"seeds is {self.seeds!r}, expected a whole number of at least 1")
        if not 0.0 <= self.holdout < 1.0:
            raise ValueError(f"holdout is {self.holdout!r}, expected a share of at least 0 and below 1")
        if not 0.0 < self.delta < 1.0:
            raise ValueError(f"delta is {self.delta!r}, expected a probability above 0 and below 1")
        for name in ("radius", "reward_norm"):
            value = getattr(self, name)
            if value is not None and not (np.isfinite(value) and value >= 0):
                raise ValueError(f"{name} is {value!r}, expected a finite number of at least 0")
        if self.top is not None and self.top not in self.methods:
            raise ValueError(f"top is {self.top!r}, expected one of the methods ({', '.join(self.methods)})")

    @property
    def main(self) -> str:
        """The method whose first seed gives the top-level files."""
        if self.top is not None:
            return self.top
        return "dual" if "dual" in self.methods else self.methods[0]

    def rounds(self) -> int:
        """Rounds of one cell when nothing ends it early."""
        d = self.design
        return -(-(d.budget - d.seed_labels) // d.batch) + (d.seed_labels > 0)


# ------------------------------------------------------------------------------------------------- the cells


def _cell(method: str, seed: int) -> str:
    return f"{method}/{seed}"


def _common(problem: Problem, comparison: Comparison, ledger: Ledger, seed: int) -> None:
    """The common parameters of a seed: the truth, or a fit to every training vote. Stored once."""
    if problem.votes is None or ledger.array(f"common/{seed}/reward") is not None:
        return
    c, votes = problem.conversations, problem.votes
    train, _ = split_by_prompt(c.prompt, comparison.holdout, seed)
    training = np.zeros(c.n, bool)
    training[train] = True
    v = votes.subset(training[votes.conversation])
    model = comparison.design.model().fit(
        c.differences(v.conversation),
        v.label,
        teacher=v.teacher,
        category=c.category[v.conversation],
        n_teachers=len(v.teacher_names),
        n_categories=c.n_categories,
    )
    ledger.store_array(f"common/{seed}/rationality", model.rationality_)
    ledger.store_array(f"common/{seed}/votes", np.array([len(v)], np.float64))
    ledger.store_array(f"common/{seed}/reward", model.coef_)  # last: it says that the others are there


def _study(problem: Problem, comparison: Comparison, ledger: Ledger, method: str, seed: int) -> Study:
    """The study of one cell, at the point where its ledger says it is."""
    train, held_out = split_by_prompt(problem.conversations.prompt, comparison.holdout, seed)
    common = problem.truth
    if problem.votes is not None:
        reward = ledger.array(f"common/{seed}/reward")
        rationality = ledger.array(f"common/{seed}/rationality")
        assert reward is not None and rationality is not None
        common = reward, rationality
    return Study(
        problem.conversations,
        problem.teachers(seed),
        dataclasses.replace(comparison.design, method=method, seed=seed),
        train=train,
        held_out=held_out,
        truth=problem.truth,
        common=common,
        ledger=ledger,
        cell=_cell(method, seed),
    )


def _run_cell(
    problem: Problem,
    comparison: Comparison,
    ledger: Ledger,
    method: str,
    seed: int,
    progress: Callable[[Round], None] | None = None,
) -> None:
    """One cell from where it stands to its end."""
    with dn.single_threaded_blas():  # so that the bits do not depend on how many threads BLAS takes
        study = _study(problem, comparison, ledger, method, seed)
        study.run(progress)
    if study.waiting:
        assert problem.people is not None  # the others answer at once
        first = int(study.issued.round[study.is_open()].min())
        raise AnswersAwaited(problem.people.folder, first + 1, study.waiting, len(study.issued.round))
    curve = [_without_seconds(r) for r in study.rounds]
    last = study.rounds[-1] if study.rounds else None
    conversation, teacher, _ = study.labelled()
    count = np.zeros((study.n_teachers, problem.conversations.n_categories), np.int64)
    np.add.at(count, (teacher, problem.conversations.category[conversation]), 1)
    ledger.finish(
        _cell(method, seed),
        {
            "labels": len(study.answers),
            "accuracy": last.accuracy if last else None,
            "log_loss": last.log_loss if last else None,
            "log_det": last.log_det if last else None,
            "direction_error": last.direction_error if last else None,
            "curve": curve,
            "asked": [[int(j), int(c), int(count[j, c])] for j, c in np.argwhere(count)],
            "seconds_selecting": sum(r.seconds_selecting for r in study.rounds),
            "seconds_fitting": sum(r.seconds_fitting for r in study.rounds),
        },
    )


def _without_seconds(r: Round) -> dict[str, Any]:
    return {k: v for k, v in dataclasses.asdict(r).items() if not k.startswith("seconds_")}


_shared: dict[str, Any] = {}  # of a worker process


def _start_worker(problem: Problem, comparison: Comparison, path: str, threads: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    threading.Thread(target=_end_with_parent, daemon=True).start()
    dn.set_threads(threads)
    _shared.update(problem=problem, comparison=comparison, ledger=Ledger(path))


def _end_with_parent() -> None:
    """A worker whose parent was killed must not write beside the run that goes on from there."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _work(task: tuple[str | None, int]) -> tuple[str | None, int]:
    method, seed = task
    if method is None:
        with dn.single_threaded_blas():
            _common(_shared["problem"], _shared["comparison"], _shared["ledger"], seed)
    else:
        _run_cell(_shared["problem"], _shared["comparison"], _shared["ledger"], method, seed)
    return task


def compare(
    problem: Problem,
    comparison: Comparison,
    folder: str | os.PathLike[str],
    *,
    workers: int = 1,
    force: bool = False,
    give_up: bool = False,
    progress: Callable[[int, int, str], None] | None = None,
) -> dict[str, Any]:
    """Run every method over every seed, and write what came out, all but `write_results`.

    Parameters
    ----------
    problem : Problem
    comparison : Comparison
    folder : str or path
        Where the ledger and the results go; made if it does not exist, other files in it are left alone.
    workers : int, default 1
        Processes; the results are the same for any number.
    force : bool, default False
        Start anew in a folder that holds a run, complete or not.
    give_up : bool, default False
        Stop waiting for the people's questions that are open; they count no more.
    progress : callable, optional
        Called with (rounds done, rounds in all, what).

    Returns
    -------
    dict
        The content of results.json.

    Raises
    ------
    ValueError
        The problem does not fit the settings, or the folder holds another run.
    AnswersAwaited
        People have questions to answer; call again when they have.
    """
    if problem.people is not None and (len(comparison.methods), comparison.seeds) != (1, 1):
        raise ValueError("people answer one method with one seed, expected no baselines and seeds 1")
    if "oracle" in comparison.methods and problem.truth is None:
        raise ValueError("methods holds 'oracle', which needs a simulation; expected methods without it")
    if isinstance(workers, bool) or not isinstance(workers, int) or workers < 1:
        raise ValueError(f"workers is {workers!r}, expected a whole number of at least 1")
    for seed in range(comparison.seeds):  # a split that cannot be made is refused before anything is written
        train, _ = split_by_prompt(problem.conversations.prompt, comparison.holdout, seed)
        if comparison.design.gold_share > 0:
            gold_conversations(problem.conversations, train, seed)
        if problem.votes is not None and not np.isin(problem.votes.conversation, train).any():
            held = f", and seed {seed} holds all of them out" if len(problem.votes) else ""
            raise ValueError(f"there are {len(problem.votes)} votes{held}; expected votes to learn from")
    if give_up and problem.people is None:
        raise ValueError("give_up is for questions to people; expected a problem with people")
    teachers = problem.teachers(0)  # whoever cannot be asked is refused before anything is written, too
    said = teachers.collect() if isinstance(teachers, HumanTeachers) else {}
    out = Path(folder)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"{out}: cannot be made ({error.strerror})") from None
    with campaign_lock(out):
        _prepare_folder(out, problem, comparison, force)
        with Ledger(out / "campaign.sqlite") as ledger:
            ledger.store("run", _identity(problem, comparison))
            if said:
                _refuse_changes(said, _study(problem, comparison, ledger, comparison.main, 0))
            if give_up:
                study = _study(problem, comparison, ledger, comparison.main, 0)
                study.collect()  # what people have answered since the last call is not given up
                study.give_up()
            _run_cells(problem, comparison, ledger, workers, progress)
            return _finish(problem, comparison, ledger, out)


def _refuse_changes(said: Mapping[tuple[int, int, int], float], study: Study) -> None:
    """An answer that was taken stays: what was chosen since rests on it. A changed one is not passed over."""
    for (number, i, j), label in said.items():
        if study.answers.get((i, j), label) != label:
            raise ValueError(
                f"round {number}: teacher {study.teachers.names[j]!r} answers otherwise on conversation "
                f"{study.conversations.ids[i]!r} than when it was taken; expected the first answer to stay"
            )


def read_results(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """Read the results.json of a finished run of ours.

    Parameters
    ----------
    folder : str or path

    Returns
    -------
    dict

    Raises
    ------
    ValueError
        There is none, or it is damaged, somebody else's, or of a newer version.
    """
    path = Path(folder) / "results.json"
    try:
        with open(path, encoding="utf-8") as file:
            found = json.loads(file.read(_LARGEST_RESULTS))
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file; expected the folder of a finished run") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: cannot be read ({error})") from None
    if not isinstance(found, dict) or found.get("made_by") != "dal-native":
        raise ValueError(f"{path}: not results of dal run or dal demo")
    if not isinstance(found.get("format"), int) or found["format"] > RESULTS_FORMAT:
        raise ValueError(f"{path}: of format {found.get('format')!r}, expected up to {RESULTS_FORMAT}")
    missing = [name for name in ("dataset", "sizes", "settings", "budget", "methods") if name not in found]
    if missing:
        raise ValueError(f"{path}: field {missing[0]!r} is missing")
    return found


def dataset_of(folder: str | os.PathLike[str]) -> str | None:
    """The data set of the complete results of ours in this folder; None where there are none.

    Parameters
    ----------
    folder : str or path

    Returns
    -------
    str or None
    """
    try:
        return str(read_results(folder)["dataset"])
    except ValueError:
        return None


def _identity(problem: Problem, comparison: Comparison) -> dict[str, Any]:
    """What a resumed run must agree on."""
    settings = dataclasses.asdict(comparison)
    return {
        "problem": problem.digest(),
        "settings": json.loads(json.dumps(settings)),
        "version": dn.__version__,
    }


def _prepare_folder(out: Path, problem: Problem, comparison: Comparison, force: bool) -> None:
    """Refuse to mix runs, or to write over files of others; with force, clear away the old run."""
    path = out / "campaign.sqlite"
    if dataset_of(out) is not None and not force:
        raise ValueError(f"{out}: holds a complete run; use --force to replace it, or another folder")
    if not path.exists():
        taken = [out / name for name in _WRITTEN if (out / name).exists()]
        if taken and not force:
            raise ValueError(f"{taken[0]}: exists; use --force to replace it, or another folder")
        return
    found = campaign = None
    try:
        with Ledger(path) as ledger:
            found, campaign = ledger.stored("run"), ledger.stored("design")
    except LedgerError:  # damaged, say
        if not force:
            raise
    if campaign is not None:  # people's answers are not a run's to clear away
        raise ValueError(f"{out}: holds a campaign of dal select; expected another folder")
    if not force:
        if found not in (None, _identity(problem, comparison)):
            raise ValueError(
                f"{out}: holds an unfinished run of other data or settings; "
                "use --force to replace it, or another folder"
            )
        return
    with contextlib.suppress(FileNotFoundError):
        (out / "results.json").unlink()
    for suffix in ("", "-wal", "-shm", "-journal"):
        with contextlib.suppress(FileNotFoundError):
            (out / f"campaign.sqlite{suffix}").unlink()


def _run_cells(
    problem: Problem,
    comparison: Comparison,
    ledger: Ledger,
    workers: int,
    progress: Callable[[int, int, str], None] | None,
) -> None:
    """Every cell that is not finished yet, seed after seed."""
    finished = ledger.finished()
    cells = [(method, seed) for seed in range(comparison.seeds) for method in comparison.methods]
    left = [(method, seed) for method, seed in cells if _cell(method, seed) not in finished]
    per_cell = comparison.rounds()
    done, total = (len(cells) - len(left)) * per_cell, len(cells) * per_cell

    def tell(rounds: int, what: str, *_: Round) -> None:
        nonlocal done
        done += rounds
        if progress is not None:
            progress(min(done, total), total, what)

    seeds = sorted({seed for _, seed in left})
    if workers == 1 or len(left) <= 1:
        for seed in seeds:
            with dn.single_threaded_blas():
                _common(problem, comparison, ledger, seed)
            for method in (method for method, s in left if s == seed):
                before, what = done, _cell(method, seed)
                tell(len(ledger.rounds(what)), what)
                _run_cell(problem, comparison, ledger, method, seed, functools.partial(tell, 1, what))
                tell(before + per_cell - done, what)  # a cell may end early
        return
    threads = max(1, dn.capabilities()["cpus"] // workers)
    context = multiprocessing.get_context("spawn")  # a forked child would inherit threads that are not there
    pool = concurrent.futures.ProcessPoolExecutor(
        workers, context, _start_worker, (problem, comparison, ledger.path, threads)
    )
    try:
        list(pool.map(_work, [(None, seed) for seed in seeds]))
        futures = [pool.submit(_work, task) for task in left]
        for future in concurrent.futures.as_completed(futures):
            name, seed = future.result()
            tell(per_cell, _cell(str(name), seed))
    except concurrent.futures.process.BrokenProcessPool:
        raise WorkerDied(
            "a worker process died (out of memory?); the same command goes on from here, best with fewer"
        ) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


# --------------------------------------------------------------------------------------------- what came out


def _finish(problem: Problem, comparison: Comparison, ledger: Ledger, out: Path) -> dict[str, Any]:
    """All files but results.json and the report, and the content of results.json."""
    finished = ledger.finished()
    seeds = range(comparison.seeds)
    cells = {m: [finished[_cell(m, seed)] for seed in seeds] for m in comparison.methods}
    with dn.single_threaded_blas():
        study = _study(problem, comparison, ledger, comparison.main, 0)
        study.restore_model()
        results = _results(problem, comparison, cells)
        if problem.votes is not None:
            results["all_votes"] = _all_votes(problem, comparison, ledger)
        results.update(write_study(out, study, comparison, problem.encoder))
    write_csv(out / "results.csv", _RESULTS_COLUMNS, _result_rows(results))
    return results


def _results(
    problem: Problem, comparison: Comparison, cells: Mapping[str, Sequence[Mapping[str, Any]]]
) -> dict[str, Any]:
    """results.json without what the main study adds."""
    c = problem.conversations
    methods = {name: _method_results(rows) for name, rows in cells.items()}
    return {
        "made_by": "dal-native",
        "format": RESULTS_FORMAT,
        "version": dn.__version__,
        "dataset": problem.name,
        "answers": problem.answers,
        "sizes": {
            "conversations": c.n,
            "prompts": len(np.unique(c.prompt)),
            "completions": None if c.completions is None else len(c.completions),
            "features": c.d,
            "teachers": len(problem.names),
            "categories": list(c.category_names),
            "admissible": None if problem.votes is None else int(problem.teachers(0).admissible().nnz),  # type: ignore[union-attr]
        },
        "budget": comparison.design.budget,
        "settings": {
            **dataclasses.asdict(comparison.design),
            "methods": list(comparison.methods),
            "seeds": comparison.seeds,
            "holdout": comparison.holdout,
        },
        "main": comparison.main,
        "methods": methods,
        "comparison": _against(methods, "uniform"),
        "asked": {name: _asked(rows, problem) for name, rows in cells.items()},
    }


_PER_SEED = (
    "accuracy", "log_loss", "log_det", "direction_error", "labels", "seconds_selecting", "seconds_fitting",
)  # fmt: skip
_RESULTS_COLUMNS = ("method", "seed", *_PER_SEED)


def _method_results(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One value per seed, and the curves."""
    result: dict[str, Any] = {name: [row[name] for row in rows] for name in _PER_SEED}
    efficiency = [r["d_efficiency"] for row in rows for r in row["curve"] if r["d_efficiency"] is not None]
    result["smallest_d_efficiency"] = min(efficiency, default=None)
    result["curve"] = {
        name: [[r[name] for r in row["curve"]] for row in rows]
        for name in ("labels", "accuracy", "log_loss", "log_det", "direction_error")
    }
    return result


def _result_rows(results: Mapping[str, Any]) -> list[list[Any]]:
    return [
        [name, seed, *(values[column][seed] for column in _PER_SEED)]
        for name, values in results["methods"].items()
        for seed in range(len(values["accuracy"]))
    ]


def _asked(rows: Sequence[Mapping[str, Any]], problem: Problem) -> dict[str, Any]:
    """How often whom about which category, added over seeds; the busiest teachers by name."""
    names = problem.names
    count = np.zeros((len(names), problem.conversations.n_categories), np.int64)
    for row in rows:
        for j, c, k in row["asked"]:
            count[j, c] += k
    total = count.sum(axis=1)
    order = np.argsort(-total, kind="stable")[:_TEACHERS_SHOWN]
    shown = np.sort(order) if len(names) <= _TEACHERS_SHOWN else order[total[order] > 0]
    return {
        "teachers": [names[j] for j in shown],
        "count": count[shown].tolist(),
        "others": (count.sum(axis=0) - count[shown].sum(axis=0)).tolist(),
        "teachers_asked": int((total > 0).sum()),
    }


def _all_votes(problem: Problem, comparison: Comparison, ledger: Ledger) -> dict[str, Any]:
    """What a fit to every training vote reaches: the most that this data and this model can show."""
    accuracy, log_loss, labels = [], [], []
    for seed in range(comparison.seeds):
        study = _study(problem, comparison, ledger, comparison.main, seed)
        reward, count = ledger.array(f"common/{seed}/reward"), ledger.array(f"common/{seed}/votes")
        assert reward is not None and count is not None
        a, b = study.measure(reward)
        accuracy.append(a)
        log_loss.append(b)
        labels.append(int(count[0]))
    return {"accuracy": accuracy, "log_loss": log_loss, "labels": labels}


def models_of(problem: Problem, comparison: Comparison, folder: str | os.PathLike[str]) -> list[RewardModel]:
    """The last fit of the main method for each seed of a finished run, from its ledger.

    Parameters
    ----------
    problem, comparison
        As given to `compare`.
    folder : str or path

    Returns
    -------
    list of RewardModel
        With the bits that the run had.
    """
    models = []
    with dn.single_threaded_blas(), Ledger(Path(folder) / "campaign.sqlite", must_exist=True) as ledger:
        for seed in range(comparison.seeds):
            study = _study(problem, comparison, ledger, comparison.main, seed)
            study.restore_model()
            assert study.model is not None
            models.append(study.model)
    return models


def paired_difference(values: ArrayLike, against: ArrayLike) -> dict[str, Any]:
    """Mean difference over seeds with its 95 % t-interval, and in how many seeds it is above or below 0.

    Parameters
    ----------
    values, against : array_like, (S,)
        One number per seed, the same seeds in both.

    Returns
    -------
    dict
        ``mean``, ``low``, ``high`` (None for a single seed), ``wins``, ``losses``, ``seeds``.

    Examples
    --------
    >>> d = paired_difference([0.75, 0.875, 0.875], [0.5, 0.625, 0.875])
    >>> round(d["mean"], 3), round(d["low"], 3), d["wins"]
    (0.167, -0.192, 2)
    """
    difference = np.asarray(values, np.float64) - np.asarray(against, np.float64)
    k = len(difference)
    mean = float(np.mean(difference))
    half = None
    if k > 1:
        half = float(special.stdtrit(k - 1, 0.975) * np.std(difference, ddof=1) / np.sqrt(k))
    return {
        "mean": mean,
        "low": None if half is None else mean - half,
        "high": None if half is None else mean + half,
        "wins": int((difference > 0).sum()),
        "losses": int((difference < 0).sum()),
        "seeds": k,
    }


def _against(methods: Mapping[str, Mapping[str, Any]], base: str) -> dict[str, Any] | None:
    """Paired differences of every method's accuracy and log det from the base method's."""
    if base not in methods:
        return None
    result: dict[str, Any] = {"against": base}
    for measure in ("accuracy", "log_det"):
        rows = {}
        for name, values in methods.items():
            both = values[measure], methods[base][measure]
            if name != base and None not in both[0] and None not in both[1]:
                rows[name] = paired_difference(*both)
        result[measure] = rows
    return result


def write_results(folder: str | os.PathLike[str], results: Mapping[str, Any]) -> None:
    """Write results.json: the last file of a run, whose presence says that the run is complete.

    Parameters
    ----------
    folder : str or path
    results : dict
        As `compare` returns it.
    """
    with atomic_write(Path(folder) / "results.json") as file:
        json.dump(results, file, indent=1, allow_nan=False, ensure_ascii=False)
        file.write("\n")


def write_study(
    folder: str | os.PathLike[str], study: Study, comparison: Comparison, encoder: str | None = None
) -> dict[str, Any]:
    """Write one study's picks, reward, teachers, flags and policy; returns what results.json says of them.

    Parameters
    ----------
    folder : str or path
    study : Study
        With at least one answer.
    comparison : Comparison
        For the radius of the policy.
    encoder : str, optional
        Fingerprint of what made the vectors.

    Returns
    -------
    dict
        ``teachers``, ``flags`` and ``policy``.
    """
    out = Path(folder)
    write_jsonl(out / "picks.jsonl", study.picks())
    if study.model is None:
        raise ValueError("the study has no answer yet, expected at least one to fit a reward")
    study.model.save(out / "reward.safetensors", encoder=encoder)
    truth = None if study.truth is None else study.truth[1]
    flags = study.flags()
    rows = teacher_table(
        study.model, study.conversations, study.teachers.names, *study.labelled(), truth, flags
    )
    write_teachers(out, rows, flags)
    choices = choices_of(
        study.conversations,
        study.model,
        delta=comparison.delta,
        radius=comparison.radius,
        reward_norm=comparison.reward_norm,
        truth=None if study.truth is None else study.truth[0],
        encoder=encoder,
    )
    shown = {"teachers": _shown_teachers(rows), "flags": _shown_flags(flags), "policy": None}
    if choices is None:
        return shown
    write_jsonl(out / "policy.jsonl", choices.rows)
    choices.reward.save(out / "pessimistic.safetensors")
    return {**shown, "policy": choices.summary}


TEACHER_COLUMNS = (
    "teacher", "category", "votes", "rationality", "low", "high", "standard_error", "agreement_with_gold",
    "agreement_with_reward", "true_rationality", "flags",
)  # fmt: skip


def write_teachers(
    folder: str | os.PathLike[str], rows: Sequence[Mapping[str, Any]], flags: Sequence[Mapping[str, Any]]
) -> list[Path]:
    """Write teachers.csv, a row for each teacher and category, and flags.csv, a row for each teacher.

    Parameters
    ----------
    folder : str or path
    rows : sequence of dict
        As of `teacher_table`.
    flags : sequence of dict
        As of `flag_teachers`.

    Returns
    -------
    list of Path
        The two files.
    """
    written = []
    for name, columns, table in (
        ("teachers.csv", TEACHER_COLUMNS, rows),
        ("flags.csv", FLAG_COLUMNS, flags),
    ):
        written.append(Path(folder) / name)
        cells = [{**row, "flags": "; ".join(row["flags"])} for row in table]
        write_csv(written[-1], columns, ([row[k] for k in columns] for row in cells))
    return written


def teacher_table(
    model: RewardModel,
    conversations: Conversations,
    names: Sequence[str],
    conversation: Integers,
    teacher: Integers,
    label: Floats,
    rationality: Floats | None = None,
    flags: Sequence[Mapping[str, Any]] = (),
) -> list[dict[str, Any]]:
    """What the answers say about each teacher in each category.

    Parameters
    ----------
    model : RewardModel
        Fitted.
    conversations : Conversations
    names : sequence of str, (m,)
    conversation, teacher, label : ndarray, (T,)
        The answers the model was fitted to.
    rationality : ndarray, (m, C), optional
        The truth, in a simulation.
    flags : sequence of dict, optional
        As of `flag_teachers`, one for each name.

    Returns
    -------
    list of dict
        One for each category of each teacher with an answer, keys `TEACHER_COLUMNS`: estimated rationality
        with its 95 % interval, the share of answers other than ties that agree with the gold label and
        with the fitted reward, and the teacher's flags, those for all categories
        together. A category without answers of the teacher shows what the prior says.
    """
    beta, interval, error = model.rationality_, model.rationality_interval_, model.rationality_se_
    category = conversations.category[conversation]
    margin = conversations.differences(conversation) @ model.coef_
    said = np.sign(label - 0.5)
    with_gold = said * np.sign(np.nan_to_num(conversations.gold[conversation], nan=0.5) - 0.5)
    with_reward = said * np.sign(margin)
    shape = (len(names), conversations.n_categories)
    votes, gold_right, gold_all, own_right, own_all = (np.zeros(shape) for _ in range(5))
    for total, amount in (
        (votes, np.ones(len(label))),
        (gold_right, with_gold > 0),
        (gold_all, with_gold != 0),
        (own_right, with_reward > 0),
        (own_all, with_reward != 0),
    ):
        np.add.at(total, (teacher, category), amount)
    return [
        {
            "teacher": names[j],
            "category": conversations.category_names[c],
            "votes": int(votes[j, c]),
            "rationality": float(beta[j, c]),
            "low": float(interval[j, c, 0]),
            "high": float(interval[j, c, 1]),
            "standard_error": float(error[j, c]),
            "agreement_with_gold": _share(gold_right[j, c], gold_all[j, c]),
            "agreement_with_reward": _share(own_right[j, c], own_all[j, c]),
            "true_rationality": None if rationality is None else float(rationality[j, c]),
            "flags": list(flags[j]["flags"]) if flags else [],
        }
        for j in np.flatnonzero(votes.sum(axis=1)).tolist()
        for c in range(shape[1])
    ]


def _share(part: float, whole: float) -> float | None:
    return float(part / whole) if whole > 0 else None


def _shown_teachers(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The rows of the teachers with most answers, for the report."""
    votes: dict[str, int] = {}
    for row in rows:
        votes[row["teacher"]] = votes.get(row["teacher"], 0) + row["votes"]
    shown = set(sorted(votes, key=lambda name: -votes[name])[:_TEACHERS_SHOWN])
    return [dict(row) for row in rows if row["teacher"] in shown]


def _shown_flags(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Who is flagged, and the teachers with most answers, for the report."""
    order = sorted(rows, key=lambda row: (not _is_suspect(row), -row["answers"]))
    shown = [row for k, row in enumerate(order) if _is_suspect(row) or k < _TEACHERS_SHOWN]
    return {
        "level": LEVEL,
        "least": LEAST,
        "tested": sum(row["p_opposes"] is not None for row in rows),
        "untested": sum(row["p_opposes"] is None for row in rows),
        "teachers": [{**row, "flags": list(row["flags"])} for row in shown if row["answers"]],
    }


def _is_suspect(row: Mapping[str, Any]) -> bool:
    return row["p_opposes"] is not None and bool(row["flags"])
