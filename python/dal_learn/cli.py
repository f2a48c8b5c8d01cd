"""The command line: every step of a campaign, and the whole of it.

Bad input ends with exit code 2 and one clear line, nothing half-written; progress bars appear only where
stderr is a terminal; ``--json`` prints one JSON object for machines.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np
from click.core import ParameterSource
from numpy.typing import NDArray
from tqdm import tqdm

import dal_native as dn

from . import comparison, demo, doctor, report, sources
from ._files import read_csv, read_json_lines, read_lines, write_jsonl
from ._reward_file import REWARD, form_of
from .best_of import best_of_n
from .campaign import UNLIMITED, Campaign, Design
from .choices import REFERENCES, choices_of, mean_completion, policy_for, ranked_rows
from .comparison import BASELINES, AnswersAwaited, Comparison, People, Problem
from .conversations import Conversations
from .design import METHODS
from .encoders import TEXT_FORMS, feature_fingerprint, get_encoder
from .flags import flag_teachers
from .pessimistic_reward import PessimisticReward
from .radius import Radius, bootstrap_radius, calibrated_radius, nominal_radius
from .reward import RewardModel
from .teachers import Votes

__all__ = ["main"]

_CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


class _Cli(click.Group):
    """A group whose errors are one line and exit code 2, whoever raised them."""

    def main(self, *args: Any, **extra: Any) -> Any:
        """Run the command line and exit with its code."""
        extra |= {"prog_name": "dal", "standalone_mode": False}
        sys.exit(_exit_code(lambda: super(_Cli, self).main(*args, **extra)))


def _exit_code(command: Callable[[], Any]) -> int:
    try:
        code = command()
        return code if isinstance(code, int) else 0
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
    except click.ClickException as error:
        _complain(error.format_message())
    except (click.Abort, KeyboardInterrupt):
        click.echo("dal: stopped; the same command goes on from here", err=True)
        return 130
    except BrokenPipeError:
        # Whoever read our output has gone; nothing is left to say, and Python must not try at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        _complain(f"{where}{error.strerror or error}")
    except (ValueError, ImportError, np.linalg.LinAlgError) as error:
        _complain(str(error))
    except comparison.WorkerDied as error:
        _complain(str(error))
        return 1
    return 2


def _complain(message: str) -> None:
    lines = [report.printable(line) for line in message.strip().splitlines()] or ["failed"]
    click.echo("dal: error: " + "\n".join(lines), err=True)


@click.group(cls=_Cli, context_settings=_CONTEXT)
@click.version_option(dn.__version__, prog_name="dal")
def main() -> None:
    """Choose which conversation to show to which teacher, learn a reward, and act on it safely.

    \b
    First steps:
      dal demo                       see the whole of it on made-up data, in less than a minute
      dal run FOLDER --out DIR       compare designs on your own recorded votes
      dal select CAMPAIGN ...        take the next batch of questions to your own teachers
    """


# -------------------------------------------------------------------------------------------- shared options


class _NumberOr(click.ParamType):  # type: ignore[type-arg]
    """A number, or one word."""

    def __init__(self, word: str) -> None:
        self.word = word
        self.name = f"number|{word}"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float | str:
        """The number, or the word."""
        if value == self.word:
            return self.word
        try:
            return float(value)
        except ValueError:
            self.fail(f"{value!r} is neither a number nor {self.word!r}", param, ctx)


def _options(*decorators: Callable[..., Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def apply(command: Callable[..., Any]) -> Callable[..., Any]:
        for decorate in reversed(decorators):
            command = decorate(command)
        return command

    return apply


_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_FOLDER = click.Path(file_okay=False, path_type=Path)

_json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
_force_option = click.option("--force", is_flag=True, help="Replace results of ours that are there already.")

_data_options = _options(
    click.option("--conversations", "pairs_file", type=_FILE,
                 help="Pairs: JSONL or Parquet, in place of FOLDER."),
    click.option("--completions", "completions_file", type=_FILE,
                 help="Vectors of all completions: .npy, .safetensors or .parquet."),
    click.option("--embeddings", "embeddings_file", type=_FILE,
                 help="Vectors by completion id, in place of an encoder."),
    click.option("--encoder", default=None, metavar="NAME",
                 help="Turns text into vectors: offline (the default for a FOLDER of text alone), hashing, "
                 "or a Hugging Face model or folder."),
    click.option("--text", "encoded_text", type=click.Choice(TEXT_FORMS),
                 default="response", show_default=True, help="What the encoder sees of a completion."),
    click.option("--cache", type=_FOLDER, default=None, help="Folder that remembers encoded texts."),
)  # fmt: skip

_model_options = _options(
    click.option("--ridge", type=_NumberOr("evidence"), default="1.0", show_default=True,
                 help="Prior precision of the reward, or evidence: what makes the answers likeliest."),
    click.option("--rationality-scale", type=_NumberOr("evidence"), default="0.5", show_default=True,
                 help="Prior standard deviation of log rationality, or evidence."),
    click.option("--category-correlation", type=float, default=0.5, show_default=True,
                 help="Share of its variance that a teacher's categories have in common, from 0 to below 1."),
    click.option("--fit", "fit_method", type=click.Choice(["marginal", "joint_map", "homogeneous"]),
                 default="marginal", show_default=True, help="How rationalities are fitted."),
    click.option("--signed", is_flag=True, help="Let rationalities be negative: teachers worse than a coin."),
    click.option("--lapse", type=_NumberOr("fit"), default="0.0", show_default=True,
                 help="Share of answers given by a coin, or fit: estimated for the crowd."),
    click.option("--ties", is_flag=True,
                 help="Ties are an outcome of their own (Rao and Kupper), not half an answer for each side."),
    click.option("--position-bias", type=float, default=0.0, show_default=True,
                 help="Prior standard deviation of each teacher's bias to what is shown first; 0: none."),
    click.option("--drift", type=float, default=0.0, show_default=True,
                 help="Standard deviation of a step of log rationality from round to round; 0: none."),
)  # fmt: skip

_asking_options = _options(
    click.option("--criterion", default="optimistic", show_default=True,
                 type=click.Choice(["plug_in", "optimistic", "nuisance"]),
                 help="How the dual design treats that rationalities are estimates: as they are, at their "
                 "most informative within an interval, or as a nuisance (D_s)."),
    click.option("--optimism-level", type=float, default=0.95, show_default=True,
                 help="Probability that such an interval covers its rationality."),
    click.option("--explore", type=int, default=0, show_default=True,
                 help="Teachers asked fewer times than this have first claim on half of every batch."),
    click.option("--gold-share", type=float, default=0.0, show_default=True,
                 help="Share of the questions that are gold questions (known answers), to measure teachers."),
)  # fmt: skip

_radius_options = _options(
    click.option("--delta", type=float, default=0.1, show_default=True,
                 help="Chance that the confidence set of the reward misses the truth."),
    click.option("--radius-source", type=click.Choice(["nominal", "calibrated", "bootstrap"]),
                 default="nominal", show_default=True,
                 help="Where its radius comes from: the model's own claim, that claim times how far held-out "
                 "labels belie it, or refits with the labels reweighted."),
    click.option("--radius-groups", type=click.Choice(["conversation", "teacher", "label"]),
                 default="conversation", show_default=True,
                 help="Labels that may depend on each other, for calibrated and bootstrap."),
    click.option("--reward-norm", type=float, default=None,
                 help="Bound on the length of theta in that radius; 0 leaves the ridge's bias out. "
                 "[default: estimated]"),
)  # fmt: skip

_policy_options = _options(
    click.option("--delta", type=float, default=0.1, show_default=True,
                 help="Chance that the confidence set behind the pessimistic policy misses the truth."),
    click.option("--radius", type=float, default=None, help="Radius of that set, in place of --delta."),
    click.option("--reward-norm", type=float, default=None,
                 help="Bound on the length of theta in that radius; 0 leaves the ridge's bias out. "
                 "[default: estimated]"),
)  # fmt: skip


def _print_json(body: Mapping[str, Any]) -> None:
    """One line of JSON that a terminal can show: where text would command it, everything is escaped."""
    text = json.dumps(body, ensure_ascii=False, allow_nan=False)
    click.echo(text if report.printable(text) == text else json.dumps(body, allow_nan=False))


@contextlib.contextmanager
def _bar(what: str, quiet: bool) -> Iterator[Callable[[int, int, str], None]]:
    """A progress bar on stderr, if that is a terminal."""
    with tqdm(total=1, desc=what, unit="round", leave=False, disable=True if quiet else None) as bar:

        def tell(done: int, total: int, text: str) -> None:
            bar.total = total
            bar.set_postfix_str(text, refresh=False)
            bar.update(done - bar.n)

        yield tell


class _Input(NamedTuple):
    """What the data options name."""

    name: str
    conversations: Conversations
    votes: Votes | None
    teachers: tuple[str, ...]
    encoder: str | None  # fingerprint


def _load(folder: Path | None, given: Mapping[str, Any]) -> _Input:
    """Read a folder, or the separate files."""
    separate = ("pairs_file", "completions_file", "votes_file")
    named = [name for name in separate if given.get(name) is not None]
    if folder is not None and named:
        option = {"pairs_file": "conversations"}.get(named[0], named[0].removesuffix("_file"))
        raise ValueError(f"FOLDER and --{option} were both given; expected one or the other")
    if folder is None and given["pairs_file"] is None and given["completions_file"] is None:
        raise ValueError("no data: expected a FOLDER, or --conversations or --completions")
    named_encoder = given["encoder"]
    if named_encoder is None and folder is not None and given["embeddings_file"] is None:
        named_encoder = "offline" if sources.holds_text_only(folder) else None
    encoder = None if named_encoder is None else get_encoder(named_encoder)
    quiet = bool(given.get("as_json"))
    with _bar("encoding", quiet) as tell:
        shared: dict[str, Any] = {
            "encoder": encoder,
            "embeddings": given["embeddings_file"],
            "text": given["encoded_text"],
            "cache": given["cache"],
            "progress": lambda done, total: tell(done, total, ""),
        }
        if folder is not None:
            read = sources.read_folder(folder, **shared)
        else:
            read = sources.read_inputs(
                conversations=given["pairs_file"],
                completions=given["completions_file"],
                votes=given.get("votes_file"),
                **shared,
            )
    stem = folder.resolve() if folder is not None else given["pairs_file"] or given["completions_file"]
    names = _teacher_names(given.get("teachers")) or tuple(str(row["teacher"]) for row in read.teachers)
    print_of = None if encoder is None else feature_fingerprint(encoder, given["encoded_text"])
    return _Input(stem.name.split(".")[0], read.conversations, read.votes, names, print_of)


def _teacher_names(given: str | None) -> tuple[str, ...]:
    """Names with commas, or those in a file."""
    if not given:
        return ()
    path = Path(given)
    if not path.is_file():
        return tuple(name.strip() for name in given.split(",") if name.strip())
    if path.name.lower().removesuffix(".gz").endswith(".csv"):
        return tuple(str(row["teacher"]) for row in sources.read_teachers(path))
    return tuple(line.strip() for _, line in read_lines(path) if line.strip())


def _only_categories(
    conversations: Conversations, votes: Votes | None, categories: Sequence[str]
) -> tuple[Conversations, Votes | None]:
    """The conversations of some categories, and the votes on them by teachers who have any."""
    unknown = [name for name in categories if name not in conversations.category_names]
    if unknown:
        known = ", ".join(conversations.category_names)
        raise ValueError(f"category is {unknown[0]!r}; expected one of {known}")
    kept = [k for k, name in enumerate(conversations.category_names) if name in categories]
    rows = np.flatnonzero(np.isin(conversations.category, kept))
    small = conversations.subset(rows)
    names = tuple(conversations.category_names[k] for k in kept)
    small = dataclasses.replace(small, category=np.searchsorted(kept, small.category), category_names=names)
    if votes is None:
        return small, None
    place = np.full(conversations.n, -1, np.int64)
    place[rows] = np.arange(len(rows))
    on = votes.subset(place[votes.conversation] >= 0)
    teachers, teacher = np.unique(on.teacher, return_inverse=True)
    who = [votes.teacher_names[j] for j in teachers]
    return small, Votes(place[on.conversation], teacher, on.label, on.repetition, who)


def _problem(folder: Path | None, given: Mapping[str, Any]) -> Problem:
    """What to run: recorded votes, or people."""
    read = _load(folder, given)
    votes = None if given["exchange"] is not None else read.votes
    conversations = read.conversations
    if given["categories"]:
        conversations, votes = _only_categories(conversations, votes, given["categories"])
    if given["exchange"] is not None:
        if not read.teachers:
            raise ValueError("nobody to ask: expected --teachers with --exchange")
        people = People(given["exchange"], read.teachers)
        return Problem(read.name, conversations, people=people, encoder=read.encoder)
    if votes is None:
        raise ValueError(
            "no recorded votes: expected votes.csv in FOLDER, --votes, or --exchange to ask people"
        )
    return Problem(read.name, conversations, votes=votes, encoder=read.encoder)


class _Answers(NamedTuple):
    """Answers to fit to, and what they are about."""

    conversations: Conversations
    conversation: NDArray[np.int64]
    teacher: NDArray[np.int64]
    label: NDArray[np.float64]
    names: tuple[str, ...]
    encoder: str | None
    fit: Mapping[str, Any]  # arguments of RewardModel.fit


def _answers(folder: Path | None, given: Mapping[str, Any]) -> _Answers:
    """The answers of a campaign, or the votes of data."""
    if folder is not None and (folder / "campaign.sqlite").exists():
        with Campaign.open(folder) as campaign:
            study = campaign.study
            found, fit = study.labelled(), study.fit_arguments()
            about = study.teachers.names, campaign.encoder
            return _Answers(study.conversations, *found, *about, fit)
    read = _load(folder, given)
    if read.votes is None:
        raise ValueError("no recorded votes: expected votes.csv in FOLDER, or --votes")
    v = read.votes
    c = read.conversations
    fit = {
        "X": c.differences(v.conversation),
        "y": v.label,
        "teacher": v.teacher,
        "category": c.category[v.conversation],
        "n_teachers": len(v.teacher_names),
        "n_categories": c.n_categories,
    }
    found = v.conversation, v.teacher, v.label
    return _Answers(c, *found, v.teacher_names, read.encoder, fit)


# ------------------------------------------------------------------------------------------------------ demo


@main.command(
    "demo",
    short_help="See the whole line on made-up data, in under a minute.",
    epilog="Example: dal demo && open dal-demo/report.html",
)
@click.option(
    "--out", type=_FOLDER, default=Path("dal-demo"), show_default=True, help="Where the results go."
)
@click.option(
    "--seeds",
    type=click.IntRange(1),
    default=demo.DemoSize().seeds,
    show_default=True,
    help="How often the comparison is repeated.",
)
@click.option(
    "--workers",
    type=click.IntRange(1),
    default=lambda: min(2, dn.capabilities()["cpus"]),
    show_default="2, where there are as many CPUs",
    help="Processes; same results for any number.",
)
@click.option("--prompts", type=click.IntRange(8), default=None, hidden=True)
@click.option("--budget", type=click.IntRange(1), default=None, hidden=True)
@_force_option
@_json_option
def demo_command(
    out: Path, seeds: int, workers: int, prompts: int | None, budget: int | None, force: bool, as_json: bool
) -> None:
    """Show the whole line on made-up data whose truth is known: no input, no network, under a minute.

    Specialist teachers answer; the dual design is compared with every baseline, then the pessimistic policy
    with the greedy one. The same command again replaces the last demonstration.
    """
    size = demo.small(seeds, prompts, budget)
    problem, settings = demo.demo_problem(size), demo.demo_comparison(size)
    force = force or comparison.dataset_of(out) == problem.name
    with _bar("dal demo", as_json) as tell:
        results = comparison.compare(problem, settings, out, workers=workers, force=force, progress=tell)
        models = comparison.models_of(problem, settings, out)
        results["shift"] = demo.policy_under_shift(problem, size, models)
    _conclude(out, results, as_json)


def _conclude(out: Path, results: Mapping[str, Any], as_json: bool) -> None:
    """Figures and page if they can be drawn, then results.json, which says that all is there."""
    missing = None
    try:
        report.render(out, results)
    except ImportError as error:
        missing = str(error)
    comparison.write_results(out, results)
    if as_json:
        files = sorted(path.name for path in out.iterdir() if not path.name.startswith("campaign."))
        _print_json({"out": str(out), "files": files, "report": missing is None, "results": results})
        return
    click.echo(f"{report.printable(results['dataset'])}\n\n{report.table(results)}\n")
    for line in report.sentences(results):
        click.echo(f"- {report.printable(line)}")
    suspects = report.flag_table((results.get("flags") or {}).get("teachers") or [])
    if suspects is not None:
        click.echo(f"\nTeachers to look at:\n{suspects}")
    click.echo(
        f"\nWritten to {out}: " + ("report.html, " if missing is None else "") + "results.json, results.csv"
    )
    if missing is not None:
        click.echo(f"No figures and no report.html: {missing}")


# ------------------------------------------------------------------------------------------------------- run


@main.command(
    "run",
    short_help="Run the whole line on recorded votes, or with people.",
    epilog="Examples:\n\n"
    "\b\n  dal run data/llmbar --seeds 10 --out llmbar\n"
    "  dal run --conversations pairs.jsonl --embeddings vectors.npy --votes votes.csv --out results\n"
    "  dal run data --exchange questions --teachers anna,ben --budget 200 --out results",
)
@click.argument("folder", required=False, type=click.Path(exists=True, file_okay=False, path_type=Path))
@_data_options
@click.option(
    "--votes", "votes_file", type=_FILE, help="Recorded answers: CSV or JSONL of id, teacher, label."
)
@click.option("--category", "categories", multiple=True, help="Keep only this category; may be repeated.")
@click.option("--out", type=_FOLDER, required=True, help="Where the ledger and the results go.")
@click.option(
    "--budget", type=int, default=400, show_default=True, help="Labels in all, seed labels included."
)
@click.option("--batch", type=int, default=20, show_default=True, help="Labels per round.")
@click.option(
    "--seed-labels", type=int, default=40, show_default=True, help="Random labels of the first round."
)
@click.option("--seeds", type=int, default=5, show_default=True, help="Repetitions: seeds 0 to N-1.")
@_model_options
@click.option(
    "--method",
    metavar="NAME",
    type=click.Choice(list(METHODS)),
    default="dual",
    show_default=True,
    help="The design whose results are the top-level files; names as in --baselines.",
)
@click.option(
    "--baselines",
    default="all",
    show_default=True,
    metavar="LIST",
    help="What to compare with: all, none, or names with commas of " + ", ".join(METHODS) + ".",
)
@click.option(
    "--holdout",
    type=float,
    default=0.3,
    show_default=True,
    help="Share of the prompts held out for accuracy, other ones for each seed.",
)
@click.option(
    "--optimism",
    type=float,
    default=0.0,
    show_default=True,
    help="k: treat margins as smaller by k standard deviations.",
)
@click.option(
    "--repeats",
    type=int,
    default=1,
    show_default=True,
    help="How often a conversation may be asked about in one batch.",
)
@click.option(
    "--stop-gain",
    type=float,
    default=0.0,
    show_default=True,
    help="Stop before a batch that gains less than this per label (log det).",
)
@_asking_options
@_policy_options
@click.option(
    "--exchange", type=_FOLDER, help="Ask people: put questions into this folder, read answers there."
)
@click.option(
    "--teachers",
    default=None,
    metavar="LIST",
    help="Who answers, with --exchange: names with commas, "
    "or a file with one name a line or a column teacher.",
)
@click.option("--give-up-open", is_flag=True, help="With --exchange: stop waiting for open questions.")
@click.option(
    "--workers", type=int, default=1, show_default=True, help="Processes; same results for any number."
)
@_force_option
@_json_option
def run_command(folder: Path | None, out: Path, **given: Any) -> None:
    """Run the whole line on recorded votes, or with people who answer through files.

    FOLDER holds pairs.jsonl[.gz], votes.csv[.gz] and perhaps teachers.csv and embeddings.npy. Every method
    runs over every seed on the same splits and seed labels. A run that is killed goes on where it stopped
    when the command is repeated, and gives the same results.
    """  # fmt: skip
    if folder is not None and out.resolve() == folder.resolve():
        raise ValueError(f"{out}: --out is FOLDER itself; expected another folder")
    people = given["exchange"] is not None
    for name in ("teachers", "give_up_open"):
        if given[name] and not people:
            raise ValueError(f"--{name.replace('_', '-')} goes with --exchange; expected both or neither")
    methods, seeds = _methods(given["method"], "none" if people else given["baselines"]), given["seeds"]
    settings = Comparison(
        design=_design(given, given["method"], given["budget"]),
        methods=methods,
        seeds=1 if people else seeds,
        holdout=given["holdout"],
        delta=given["delta"],
        radius=given["radius"],
        reward_norm=given["reward_norm"],
        top=given["method"],
    )
    problem = _problem(folder, given)
    try:
        with _bar("dal run", given["as_json"]) as tell:
            results = comparison.compare(
                problem,
                settings,
                out,
                workers=given["workers"],
                force=given["force"],
                give_up=given["give_up_open"],
                progress=tell,
            )
    except AnswersAwaited as waiting:
        _await(waiting, given["as_json"])
        return
    _conclude(out, results, given["as_json"])


def _design(given: Mapping[str, Any], method: str, budget: int) -> Design:
    return Design(
        method=method,
        budget=budget,
        batch=given["batch"],
        seed_labels=given["seed_labels"],
        stop_gain=given["stop_gain"],
        repeats=given["repeats"],
        optimism=given["optimism"],
        **_fit_settings(given),
        criterion=given["criterion"],
        optimism_level=given["optimism_level"],
        explore=given["explore"],
        gold_share=given["gold_share"],
    )


_FIT_SETTINGS = (
    "ridge", "rationality_scale", "category_correlation", "signed", "lapse", "ties", "position_bias", "drift",
)  # fmt: skip


def _fit_settings(given: Mapping[str, Any]) -> dict[str, Any]:
    """What `Design` takes of the model options."""
    return {"fit": given["fit_method"], **{name: given[name] for name in _FIT_SETTINGS}}


def _methods(method: str, baselines: str) -> tuple[str, ...]:
    if baselines == "all":
        others: Sequence[str] = BASELINES
    elif baselines == "none":
        others = ()
    else:
        others = [name.strip() for name in baselines.split(",") if name.strip()]
    return tuple(dict.fromkeys((method, *others)))


def _await(waiting: AnswersAwaited, as_json: bool) -> None:
    file = waiting.folder / f"round-{waiting.round:04d}.answers.jsonl"
    if as_json:
        body = {"state": "waiting", "folder": str(waiting.folder), "round": waiting.round}
        _print_json({**body, "open": waiting.open, "asked": waiting.asked})
        return
    click.echo(
        f"Round {waiting.round}: {waiting.open} of {waiting.asked} questions wait for an answer, "
        f"in {waiting.folder}.\n"
        f"Put answers (conversation, teacher, answer: left, right, tie or skip) into {file}\n"
        "or the same name with .csv, and run the same command again; with --give-up-open it goes on "
        "without what is open."
    )


# ----------------------------------------------------------------------------------------- select and ingest


@main.command(
    "select",
    short_help="Choose the next batch for your own loop.",
    epilog="Examples:\n\n"
    "\b\n  dal select campaign --folder data --teachers anna,ben > round-1.jsonl    (begins the campaign)\n"
    "  dal select campaign --batch 50 --out round-2.jsonl                        (the next batch)\n"
    "  dal select campaign --open                                                (what waits for an answer)",
)
@click.argument("campaign", type=_FOLDER)
@click.option(
    "--folder",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Begin: a folder with pairs.jsonl[.gz].",
)
@_data_options
@click.option(
    "--teachers",
    default=None,
    metavar="LIST",
    help="Begin: names with commas, or a file with one name a line or a column teacher.",
)
@click.option(
    "--seed-labels", type=int, default=40, show_default=True, help="Begin: size of the random first batch."
)
@click.option("--seed", type=int, default=0, show_default=True, help="Begin: decides everything random.")
@_model_options
@click.option(
    "--optimism",
    type=float,
    default=0.0,
    show_default=True,
    help="Begin: treat margins as smaller by so many standard deviations.",
)
@_asking_options
@click.option(
    "--batch", type=click.IntRange(1), default=None, help="Pairs in this batch. [default: 20, first 40]"
)
@click.option("--open", "show_open", is_flag=True, help="Choose nothing; show what waits for an answer.")
@click.option(
    "--out",
    "write_to",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write JSONL here instead of to the screen; must not exist.",
)
@_json_option
def select_command(
    campaign: Path, folder: Path | None, show_open: bool, write_to: Path | None, as_json: bool, **given: Any
) -> None:
    """Choose the next batch for your own loop, one JSON object a line: conversation, teacher, gain, texts.

    The first call begins a campaign: it copies the conversations into the folder CAMPAIGN. Which completion
    stands on the left is drawn for each question and remembered. Batches may overlap: what is out and not
    answered yet counts as information.
    """  # fmt: skip
    if write_to is not None and write_to.exists():
        raise ValueError(f"{write_to}: exists; expected a new file")
    if write_to is not None and not write_to.parent.is_dir():  # before questions are chosen and noted
        raise ValueError(f"{write_to.parent}: no such folder; expected one for the file {write_to.name}")
    begins = folder is not None or given["pairs_file"] is not None or given["completions_file"] is not None
    exists = (campaign / "campaign.sqlite").exists()
    if begins and exists:
        raise ValueError(f"{campaign}: holds a campaign already; go on with it, or use another folder")
    if not begins and not exists:
        raise ValueError(
            f"{campaign}: holds no campaign; to begin one, name the conversations and --teachers"
        )
    size = given.pop("batch")
    with contextlib.ExitStack() as stack:
        if exists:
            opened = stack.enter_context(Campaign.open(campaign))
        else:
            settings = _design({**given, "batch": 20, "stop_gain": 0.0, "repeats": 1}, "dual", UNLIMITED)
            read = _load(folder, given)
            opened = stack.enter_context(
                Campaign.create(campaign, read.conversations, read.teachers, settings, read.encoder)
            )
        rows = opened.open_questions() if show_open else opened.select(size)
        status = opened.status()
    if write_to is not None:
        write_jsonl(write_to, rows, overwrite=False)
    if as_json:
        _print_json({"questions": rows, **status})
    elif write_to is None:
        for row in rows:
            _print_json(row)
    else:
        click.echo(f"{len(rows)} questions written to {write_to}; {status['open']} wait for an answer in all")
    if not rows and not as_json:
        click.echo("dal: no question left" if not show_open else "dal: no question waits", err=True)


@main.command(
    "ingest",
    short_help="Take answers back into a campaign.",
    epilog="Example: dal ingest campaign answers.jsonl    "
    '(lines such as {"conversation": "p7", "teacher": "anna", "answer": "left"})',
)
@click.argument("campaign", type=_FOLDER)
@click.argument("files", nargs=-1, required=True, type=_FILE)
@_json_option
def ingest_command(campaign: Path, files: Sequence[Path], as_json: bool) -> None:
    """Take answers back into a campaign: FILES are CSV or JSONL with conversation, teacher and answer.

    An answer is left, right or tie; skip gives the question up; an empty one leaves it open. Everything is
    taken or, when one line does not fit, nothing; the same file twice changes nothing.
    """  # fmt: skip
    with Campaign.open(campaign) as opened:
        new, given_up = opened.ingest(_answer_rows(files))
        status = opened.status()
    if as_json:
        _print_json({"new_answers": new, "newly_given_up": given_up, **status})
    else:
        click.echo(
            f"{new} new answers, {given_up} given up; {status['answered']} of {status['issued']} questions "
            f"answered, {status['open']} open"
        )


def _answer_rows(files: Sequence[Path]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for path in files:
        csv = path.name.lower().removesuffix(".gz").endswith(".csv")
        wanted = ("conversation", "teacher", "answer")
        rows: Any = read_csv(path, wanted, unescape=True) if csv else read_json_lines(path)
        for line, row in rows:
            yield f"{path}:{line}", row


# -------------------------------------------------------------------------------------------- fit and policy


@main.command(
    "fit",
    short_help="Fit a reward and the teachers' rationalities.",
    epilog="Examples:\n\n"
    "\b\n  dal fit data --encoder offline --out fitted\n"
    "  dal fit campaign --out fitted        (the answers of a campaign of dal select)",
)
@click.argument("folder", required=False, type=click.Path(exists=True, file_okay=False, path_type=Path))
@_data_options
@click.option("--votes", "votes_file", type=_FILE, help="Answers: CSV or JSONL of id, teacher, label.")
@_model_options
@_radius_options
@click.option(
    "--out",
    type=_FOLDER,
    required=True,
    help="Where reward.safetensors, pessimistic.safetensors, teachers.csv, flags.csv go.",
)
@_force_option
@_json_option
def fit_command(folder: Path | None, out: Path, force: bool, as_json: bool, **given: Any) -> None:
    """Fit a reward and the teachers' rationalities to all answers of a data folder, or of a campaign."""
    written = ("reward.safetensors", "pessimistic.safetensors", "teachers.csv", "flags.csv")
    files = [out / name for name in written]
    taken = [path for path in files if path.exists()]
    if taken and not force:
        raise ValueError(f"{taken[0]}: exists; use --force to replace it, or another folder")
    found = _answers(folder, given)
    i, j, y, names = found.conversation, found.teacher, found.label, found.names
    if len(y) == 0:
        raise ValueError("there is no answer to fit to; expected at least one")
    for name, needed in (("drift", "round"), ("position_bias", "side")):
        if given[name] > 0 and needed not in found.fit:
            raise ValueError(
                f"{name} is {given[name]:g}, but recorded votes do not say the {needed} of an answer; "
                "expected a campaign"
            )
    model = Design(**_fit_settings(given)).model().fit(**found.fit)
    flags = flag_teachers(
        model,
        found.fit["X"],
        found.fit["y"],
        found.fit["teacher"],
        category=found.fit["category"],
        round=found.fit.get("round"),
        side=found.fit.get("side"),
        names=names,
    )
    rows = comparison.teacher_table(model, found.conversations, names, i, j, y, flags=flags)
    radius = _radius_of(model, given)
    reward = PessimisticReward.from_model(
        model,
        radius,  # type: ignore[arg-type]  # stands for a number
        reference=mean_completion(found.conversations),
        encoder=found.encoder,
    )
    out.mkdir(parents=True, exist_ok=True)
    model.save(files[0], encoder=found.encoder)
    reward.save(files[1])
    comparison.write_teachers(out, rows, flags)
    body: dict[str, Any] = {
        "answers": len(y),
        "teachers": len({row["teacher"] for row in rows}),
        "flagged": {
            row["teacher"]: list(row["flags"])
            for row in flags
            if row["p_opposes"] is not None and row["flags"]
        },
        "converged": bool(model.converged_),
        "iterations": int(model.n_iter_),
        "log_likelihood": float(model.log_likelihood_),
        "radius": dataclasses.asdict(radius),
        "files": [str(path) for path in files],
    }
    if as_json:
        _print_json(body)
        return
    click.echo(_teacher_text(rows))
    suspects = report.flag_table(flags)
    if suspects is not None:
        click.echo(f"\nTeachers to look at:\n{suspects}")
    click.echo(
        f"\n{body['answers']:,} answers of {body['teachers']:,} teachers, "
        f"{'converged' if body['converged'] else 'NOT converged'} in {body['iterations']} steps, "
        f"log likelihood {body['log_likelihood']:.2f}\n\nConfidence set of the reward: {radius}\n"
        f"It holds {radius.assumption}.\n\nWritten: {', '.join(body['files'])}"
    )


def _radius_of(model: RewardModel, given: Mapping[str, Any]) -> Radius:
    """From the model's own claim, from held-out labels, or from a bootstrap."""
    make: dict[str, Callable[..., Radius]] = {
        "nominal": nominal_radius,
        "calibrated": calibrated_radius,
        "bootstrap": bootstrap_radius,
    }
    options: dict[str, Any] = {"reward_norm": given["reward_norm"]}
    if given["radius_source"] != "nominal":
        options["groups"] = given["radius_groups"]
    return make[given["radius_source"]](model, given["delta"], **options)


def _teacher_text(rows: Sequence[Mapping[str, Any]], most: int = 30) -> str:
    """The cells with most votes."""
    shown = sorted(rows, key=lambda row: -row["votes"])[:most]
    header = ("teacher", "category", "votes", "rationality", "95 % interval", "agrees with gold")
    cells = [
        [
            row["teacher"],
            row["category"],
            str(row["votes"]),
            f"{row['rationality']:.2f}",
            f"[{row['low']:.2f}, {row['high']:.2f}]",
            None if row["agreement_with_gold"] is None else f"{row['agreement_with_gold']:.2f}",
        ]
        for row in shown
    ]
    more = f"\n... and {len(rows) - most:,} more in teachers.csv" if len(rows) > most else ""
    return report.aligned(header, cells) + more


_best_options = _options(
    click.option("--reward", "reward_file", type=_FILE, required=True,
                 help="reward.safetensors of dal run or dal fit, or pessimistic.safetensors."),
    click.option("--reference", type=click.Choice(tuple(REFERENCES)), default="mean", show_default=True,
                 help="What a choice must be better than: each prompt's mean completion, its first (the "
                 "answer in use), or a reward of 0."),
)  # fmt: skip


@main.command(
    "policy",
    short_help="Choose completions that the labels can vouch for.",
    epilog="Example: dal policy data --encoder offline --reward fitted/reward.safetensors --out policy.jsonl",
)
@click.argument("folder", required=False, type=click.Path(exists=True, file_okay=False, path_type=Path))
@_data_options
@_best_options
@_policy_options
@click.option(
    "--temperature",
    type=float,
    default=0.0,
    show_default=True,
    help="Of a KL penalty against choosing evenly; the least favourable reward then goes to --save-reward.",
)
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), required=True, help="JSONL to write.")
@click.option(
    "--save-reward",
    "saved",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write the reward with radius and reference as safetensors: for dal serve and training stacks.",
)
@_force_option
@_json_option
def policy_command(
    folder: Path | None,
    reward_file: Path,
    out: Path,
    saved: Path | None,
    force: bool,
    as_json: bool,
    **given: Any,
) -> None:
    """Choose, for every prompt, the best completion that the labels can vouch for: all prompts jointly."""
    _refuse_taken(force, reward_file, out, saved)
    read = _completions_of(folder, given)
    model: RewardModel | PessimisticReward
    if form_of(reward_file) == REWARD.name:
        model = RewardModel.load(reward_file, encoder=read.encoder)
        _check_width(reward_file, len(model.coef_), read.conversations)
    else:
        model = PessimisticReward.load(reward_file, encoder=read.encoder)
        _check_width(reward_file, model.d, read.conversations)
        for name in ("delta", "reward_norm"):
            if click.get_current_context().get_parameter_source(name) is not ParameterSource.DEFAULT:
                raise ValueError(f"{name} is given, but {reward_file} has a radius of its own")
    options = ("delta", "radius", "reward_norm", "reference", "temperature")
    with _reads("policy", as_json) as progress:
        found = choices_of(
            read.conversations,
            model,
            encoder=read.encoder,
            progress=progress,
            **{name: given[name] for name in options},
        )
    assert found is not None
    write_jsonl(out, found.rows)
    files = [out]
    if saved is not None:
        found.reward.save(saved)
        files.append(saved)
    summary = found.summary
    if as_json:
        shown = {key: value for key, value in summary.items() if key != "drawn"}
        _print_json({**shown, "file": str(out), "files": [str(path) for path in files]})
        return
    cells = [
        [name, f"{summary[name]['value']:.3f}", f"{summary[name]['lower_bound']:.3f}"]
        for name in ("pessimistic", "greedy")
    ]
    click.echo(report.aligned(("policy", "estimated reward", "lower bound"), cells))
    click.echo(
        f"\nRewards are above the reference ({summary['reference']}); radius {summary['radius']:.2f}. The "
        f"choices differ in {summary['prompts_where_choices_differ']:,} of {summary['prompts']:,} prompts; "
        f"{summary['prompts_vouched_for']:,} choices are better than the reference by their own lower bound."
    )
    click.echo(f"\nMost uncertain prompts:\n{report.uncertain_table(summary)}")
    click.echo(f"\nWritten: {', '.join(str(path) for path in files)}")


@main.command(
    "best-of-n",
    short_help="Rank the completions of each prompt, and abstain where the labels do not tell.",
    epilog="Example: dal best-of-n data --encoder offline --reward results/pessimistic.safetensors "
    "--reference first --abstain --out ranked.jsonl",
)
@click.argument("folder", required=False, type=click.Path(exists=True, file_okay=False, path_type=Path))
@_data_options
@_best_options
@click.option("--radius", type=float, default=None, help="In place of the one stored with the reward.")
@click.option(
    "--by",
    type=click.Choice(["lower_bound", "mean", "policy", "least_favourable"]),
    default="lower_bound",
    show_default=True,
    help="Rank by each completion's lower bound, the estimate, the joint policy's probabilities, or the "
    "least favourable reward that the file holds.",
)
@click.option(
    "--temperature", type=float, default=0.0, show_default=True, help="Of the policy for --by policy."
)
@click.option(
    "--abstain", is_flag=True, help="Choose nothing where the lower bound does not exceed the reference."
)
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), required=True, help="JSONL to write.")
@_force_option
@_json_option
def best_of_n_command(
    folder: Path | None, reward_file: Path, out: Path, force: bool, as_json: bool, **given: Any
) -> None:
    """Rank the completions of each prompt, one prompt at a time."""
    _refuse_taken(force, reward_file, out)
    read = _completions_of(folder, given)
    c = read.conversations
    reward = PessimisticReward.load(reward_file, encoder=read.encoder, radius=given["radius"])
    _check_width(reward_file, reward.d, c)
    by: Any = given["by"]
    if by == "policy":
        with _reads("policy", as_json) as progress:
            by = policy_for(c, reward, given["reference"], given["temperature"], progress=progress)
    elif given["temperature"] != 0:
        raise ValueError("temperature is given without --by policy, which is the only one that has it")
    reference, words = REFERENCES[given["reference"]]
    ranked = best_of_n(
        c.completions, c.prompt_offsets, reward, by=by, reference=reference, abstain=given["abstain"]
    )
    write_jsonl(out, ranked_rows(c, ranked))
    body = {
        "prompts": len(ranked.choice),
        "completions": len(ranked.mean),
        "by": ranked.by,
        "reference": words,
        "radius": reward.radius,
        "vouched_for": int(ranked.vouched.sum()),
        "abstained": int(ranked.abstained.sum()),
        "file": str(out),
    }
    if as_json:
        _print_json(body)
        return
    click.echo(
        f"{body['completions']:,} completions of {body['prompts']:,} prompts ranked by {ranked.by}; "
        f"{body['vouched_for']:,} first choices have a positive lower bound over the reference ({words}) at "
        f"radius {reward.radius:.2f}; abstained in {body['abstained']:,}.\nWritten: {out}"
    )


@contextlib.contextmanager
def _reads(what: str, quiet: bool) -> Iterator[Callable[[int, float], None]]:
    """Reads of the completions and the gap left, on stderr, if that is a terminal."""
    with tqdm(desc=what, unit="read", leave=False, disable=True if quiet else None) as bar:

        def tell(reads: int, gap: float) -> None:
            bar.set_postfix_str(f"gap {gap:.2g}", refresh=False)
            bar.update(reads - bar.n)

        yield tell


def _refuse_taken(force: bool, reward_file: Path, out: Path, saved: Path | None = None) -> None:
    """Nothing that exists is replaced without --force; choices never replace a reward."""
    if out.resolve() in [path.resolve() for path in (reward_file, saved) if path is not None]:
        raise ValueError(f"{out}: named twice; expected two files")
    for path in (out,) if saved is None else (out, saved):
        if path.exists() and not force:
            raise ValueError(f"{path}: exists; use --force to replace it, or another name")
        if not path.parent.is_dir():
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))


def _completions_of(folder: Path | None, given: Mapping[str, Any]) -> _Input:
    read = _load(folder, given)
    if read.conversations.completions is None:
        raise ValueError("a policy chooses completions, but only differences of pairs are given")
    return read


def _check_width(path: Path, d: int, c: Conversations) -> None:
    if d != c.d:
        raise ValueError(f"{path}: is for {d} features, but the completions have {c.d}")


# ---------------------------------------------------------------------------------------------------- serve


@main.command(
    "serve",
    short_help="Answer training stacks over HTTP.",
    epilog="Examples:\n\n"
    "\b\n  dal serve --reward pessimistic.safetensors --encoder offline\n"
    "  dal serve --reward fitted/reward.safetensors --radius 3 --encoder offline --write-openrlhf reward.py",
)
@click.option(
    "--reward",
    "reward_file",
    type=_FILE,
    required=True,
    help="File of a PessimisticReward, or reward.safetensors of dal fit together with --radius.",
)
@click.option("--encoder", required=True, metavar="NAME", help="The encoder that the reward was made with.")
@click.option(
    "--kind",
    type=click.Choice(["lower_bound", "mean", "least_favourable"]),
    default="lower_bound",
    show_default=True,
    help="What is answered: what the labels can vouch for, the estimate alone, or "
    "the reward under a policy's least favourable parameter.",
)
@click.option(
    "--radius", type=float, default=None, help="Radius of the confidence set, in place of the file's."
)
@click.option(
    "--text",
    "encoded_text",
    type=click.Choice(TEXT_FORMS),
    default=None,
    help="What the encoder sees of a completion. [default: as the reward says]",
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address; nobody is asked who they are.")
@click.option("--port", type=click.IntRange(0, 65535), default=5000, show_default=True, help="0: a free one.")
@click.option(
    "--threads", type=click.IntRange(1), default=None, help="Threads of the kernels. [default: all]"
)
@click.option(
    "--max-batch",
    type=click.IntRange(1),
    default=256,
    show_default=True,
    help="Completions that are answered at once.",
)
@click.option(
    "--max-body", type=click.IntRange(1), default=2**24, show_default=True, help="Largest request, in bytes."
)
@click.option(
    "--reproducible/--batch-encoder",
    default=True,
    show_default=True,
    help="A text's reward has the same bits whatever it is batched with; or Hugging Face models take many "
    "texts at once, which is faster and changes last bits.",
)
@click.option(
    "--deadline",
    type=float,
    default=60.0,
    show_default=True,
    help="Seconds after which a request is answered with an error.",
)
@click.option(
    "--unscorable", type=float, default=None, help="Reward of an empty completion. [default: an error]"
)
@click.option("--prompt-prefix", default="", help="What the chat template puts before a prompt.")
@click.option("--prompt-suffix", default="", help="What the chat template puts after a prompt.")
@click.option(
    "--write-openrlhf",
    "write_to",
    type=click.Path(dir_okay=False, path_type=Path),
    default=None,
    metavar="FILE.py",
    help="Serve nothing; write a file for --reward.remote_url of OpenRLHF.",
)
@_force_option
@_json_option
def serve_command(reward_file: Path, write_to: Path | None, force: bool, as_json: bool, **given: Any) -> None:
    """Answer POST /get_reward with pessimistic rewards, as OpenRLHF asks for them, and GET /health.

    Ctrl-C ends it, after what is being answered.
    """  # fmt: skip
    from .integrations import openrlhf_reward, scorer, server  # seldom needed

    options = {"radius": given["radius"], "kind": given["kind"], "text": given["encoded_text"]}
    options |= {name: given[name] for name in ("max_batch", "deadline", "reproducible")}
    face = {name: given[name] for name in ("unscorable", "prompt_prefix", "prompt_suffix")}
    if write_to is not None:
        if write_to.exists() and not force:
            raise ValueError(f"{write_to}: exists; use --force to replace it, or another name")
        openrlhf_reward.write_reward_function(write_to, reward_file, given["encoder"], face=face, **options)
        if as_json:
            _print_json({"file": str(write_to)})
        else:
            click.echo(f"Written: {write_to}, for --reward.remote_url of OpenRLHF")
        return
    dn.set_threads(given["threads"])
    made = scorer.RewardScorer.load(reward_file, given["encoder"], **options)
    app = server.RewardApp(openrlhf_reward.OpenRLHFReward(made, **face), max_body=given["max_body"])

    def ready(address: str, stop: Callable[[], None]) -> None:
        if as_json:
            _print_json({"address": address, **app.health()})
            sys.stdout.flush()
        click.echo(f"dal: serving {made.kind} at {address}; Ctrl-C ends it", err=True)

    with contextlib.suppress(KeyboardInterrupt):
        server.serve(app, host=given["host"], port=given["port"], ready=ready)
    click.echo(f"dal: stopped after {made.statistics()['rows']} completions", err=True)


# ----------------------------------------------------------------------------------------- report and doctor


@main.command(
    "report", short_help="Draw the figures and report.html again.", epilog="Example: dal report dal-demo"
)
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@_json_option
def report_command(folder: Path, as_json: bool) -> None:
    """Draw the figures and report.html again from the results.json in FOLDER."""
    results = comparison.read_results(folder)
    try:
        files = report.render(folder, results)
    except (LookupError, TypeError, AttributeError) as error:  # edited by hand, or damaged
        path = folder / "results.json"
        raise ValueError(f"{path}: does not hold what a run writes ({error!r})") from error
    if as_json:
        _print_json({"files": [str(path) for path in files]})
    else:
        click.echo(f"Written: {', '.join(path.name for path in files)} in {folder}")


@main.command(
    "doctor",
    short_help="Show what is installed, what serves, what is missing.",
    epilog="Example: dal doctor --json",
)
@_json_option
def doctor_command(as_json: bool) -> None:
    """Show versions, backends, SIMD level and threads, and what is missing and why."""
    found = doctor.examine()
    if as_json:
        _print_json(found)
        return
    lines = doctor.rows(found)
    width = max(len(name) for name, _ in lines)
    for name, text in lines:
        click.echo(f"{name:<{width}}  {report.printable(text)}")


if __name__ == "__main__":
    main()
