"""From files to conversations and votes, and from results to files.

Two layouts are read. A folder holds ``pairs.jsonl[.gz]``, ``votes.csv[.gz]`` and an optional
``teachers.csv``: `read_folder`. Or conversations, completions and votes lie in files of their own:
`read_inputs`. Everything read is somebody else's: sizes are capped, nothing is unpickled, and what does
not fit is refused in one line with the file, the line and what was expected.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

import dal_native as dn
from dal_native import _validate
from dal_native._files import mapped_rows
from dal_native.pool import decode

from ._files import (
    MAX_FILE_BYTES,
    FileFormatError,
    atomic_write,
    read_csv,
    read_json_lines,
    read_lines,
    write_csv,
    write_jsonl,
)
from ._reward_file import HEAD, read_tensors, write_tensors
from .conversations import Conversations, Texts
from .encoders import TEXT_FORMS, Encoder, embed, encoder_input, get_encoder
from .teachers import Votes

__all__ = [
    "Completions",
    "FileFormatError",
    "Recording",
    "atomic_write",
    "holds_text_only",
    "read_completions",
    "read_conversations",
    "read_folder",
    "read_inputs",
    "read_reward",
    "read_teachers",
    "read_votes",
    "write_csv",
    "write_jsonl",
    "write_policy",
    "write_reward",
]

PathLike = str | os.PathLike[str]
Progress = Callable[[int, int], object]
Teacher = dict[str, str | float | None]

#: Words taken for a label beside the numbers from 0 to 1.
_LABELS = {"a": 0.0, "b": 1.0, "tie": 0.5}


class Recording(NamedTuple):
    """What a folder or a set of files holds.

    Attributes
    ----------
    conversations : Conversations
    votes : Votes or None
        None where there is no vote file.
    teachers : tuple of dict
        The rows of ``teachers.csv``, numbers as float, empty cells as None; empty where there is no such
        file.
    """

    conversations: Conversations
    votes: Votes | None
    teachers: tuple[Teacher, ...]


class Completions(NamedTuple):
    """Feature vectors of completions, sorted by prompt.

    Attributes
    ----------
    rows : ndarray, (N, d)
        float64, float32 or float16, memory-mapped where the format allows.
    prompt_offsets : ndarray of int64, (P + 1,)
    ids : tuple of str
        One per row, each once; "0", "1", ... where the file names none.
    prompts : tuple of str
        One name per prompt; "0", "1", ... where the file names none.
    """

    rows: NDArray[Any]
    prompt_offsets: NDArray[np.int64]
    ids: tuple[str, ...]
    prompts: tuple[str, ...]


# ------------------------------------------------------------------------------------------------ folders


def read_folder(
    path: PathLike,
    *,
    encoder: Encoder | str | None = None,
    embeddings: PathLike | None = None,
    text: str = "response",
    cache: PathLike | None = None,
    progress: Progress | None = None,
) -> Recording:
    """Read a folder of ``pairs.jsonl[.gz]`` with optional ``votes.csv[.gz]`` and ``teachers.csv[.gz]``.

    Parameters
    ----------
    path : str or path
        The folder. Lines of ``pairs.jsonl`` are as in `read_conversations`, columns of ``votes.csv`` as in
        `read_votes`.
    encoder : Encoder or str, optional
        Turns the texts into vectors; see `get_encoder`. Each distinct text is encoded once.
    embeddings : str or path, optional
        Vectors in place of an encoder: ``.npy`` or ``.safetensors`` with one completion id a line in a
        text file beside it (``embeddings.npy`` and ``embeddings.ids.txt``), or ``.parquet`` with columns
        id and embedding. Without `encoder` and `embeddings`, an ``embeddings`` file in the folder is used.
    text : {"response", "prompt+response"}
        What the encoder sees of a completion.
    cache : str or path, optional
        Folder of the embedding cache; see `embed`.
    progress : callable, optional
        Called with (done, total) while texts are encoded.

    Returns
    -------
    Recording

    Raises
    ------
    FileFormatError
        With file and line; a `ValueError`.
    ValueError
        The arguments do not fit together.

    Examples
    --------
    >>> import tempfile, pathlib
    >>> folder = pathlib.Path(tempfile.mkdtemp())
    >>> pair = {"id": "p", "prompt": "?", "response_a": "no", "response_b": "yes"}
    >>> write_jsonl(folder / "pairs.jsonl", [pair])
    >>> write_csv(folder / "votes.csv", ["id", "teacher", "label"], [["p", "Ann", 1]])
    >>> recording = read_folder(folder, encoder="hashing:8")
    >>> recording.conversations.n, recording.votes.teacher_names
    (1, ('Ann',))
    """
    folder = Path(path)
    if not folder.is_dir():
        raise FileFormatError(
            path, None, "no such folder, expected one that holds pairs.jsonl or pairs.jsonl.gz"
        )
    pairs = _one_of(folder, "pairs", (".jsonl", ".jsonl.gz"))
    if pairs is None:
        raise FileFormatError(path, None, "holds neither pairs.jsonl nor pairs.jsonl.gz")
    if encoder is None and embeddings is None:
        embeddings = _one_of(folder, "embeddings", (".npy", ".safetensors", ".parquet"))
    conversations = read_conversations(
        pairs, encoder=encoder, embeddings=embeddings, text=text, cache=cache, progress=progress
    )
    teachers_file = _one_of(folder, "teachers", (".csv", ".csv.gz"))
    teachers = () if teachers_file is None else read_teachers(teachers_file)
    votes_file = _one_of(folder, "votes", (".csv", ".csv.gz", ".jsonl", ".jsonl.gz"))
    votes = None
    if votes_file is not None:
        votes = read_votes(votes_file, conversations, teachers=[str(row["teacher"]) for row in teachers])
    return Recording(conversations, votes, teachers)


def holds_text_only(path: PathLike) -> bool:
    """Whether a folder of the layout of `read_folder` has no vectors, so that an encoder must make them.

    Parameters
    ----------
    path : str or path

    Returns
    -------
    bool
        False also where the pairs cannot be read; `read_folder` then says why.

    Examples
    --------
    >>> import tempfile, pathlib
    >>> folder = pathlib.Path(tempfile.mkdtemp())
    >>> _ = (folder / "pairs.jsonl").write_text('{"response_a": "yes", "response_b": "no"}')
    >>> holds_text_only(folder)
    True
    """
    folder = Path(path)
    try:
        pairs = _one_of(folder, "pairs", (".jsonl", ".jsonl.gz"))
        if pairs is None or _one_of(folder, "embeddings", (".npy", ".safetensors", ".parquet")) is not None:
            return False
        first = next(iter(read_json_lines(pairs)), None)
    except FileFormatError:
        return False
    return first is not None and "embedding_a" not in first[1]


def _one_of(folder: Path, stem: str, suffixes: Sequence[str]) -> Path | None:
    found = [folder / f"{stem}{suffix}" for suffix in suffixes if (folder / f"{stem}{suffix}").exists()]
    if len(found) > 1:
        raise FileFormatError(folder, None, f"holds both {found[0].name} and {found[1].name}, expected one")
    return found[0] if found else None


def read_inputs(
    *,
    conversations: PathLike | None = None,
    completions: PathLike | None = None,
    votes: PathLike | None = None,
    teachers: PathLike | None = None,
    encoder: Encoder | str | None = None,
    embeddings: PathLike | None = None,
    text: str = "response",
    cache: PathLike | None = None,
    progress: Progress | None = None,
) -> Recording:
    """Read conversations, completions and votes from files of their own.

    Parameters
    ----------
    conversations : str or path, optional
        JSONL or Parquet, as in `read_conversations`. Without it every pair of completions of one prompt is a
        conversation, named by its number in the order (prompt, a, b).
    completions : str or path, optional
        Vectors, as in `read_completions`; the conversations' ``a_id`` and ``b_id`` then name its rows.
    votes : str or path, optional
        CSV or JSONL, as in `read_votes`.
    teachers : str or path, optional
        CSV, as in `read_teachers`.
    encoder, embeddings, text, cache, progress
        As in `read_folder`.

    Returns
    -------
    Recording

    Raises
    ------
    FileFormatError, ValueError
        As `read_folder`.

    Examples
    --------
    >>> import tempfile, pathlib
    >>> folder = pathlib.Path(tempfile.mkdtemp())
    >>> np.save(folder / "phi.npy", np.eye(3))
    >>> np.save(folder / "phi.offsets.npy", np.array([0, 3]))
    >>> read_inputs(completions=folder / "phi.npy").conversations.n
    3
    """
    if conversations is None and completions is None:
        raise ValueError("conversations and completions are both missing; expected at least one")
    table = None if completions is None else read_completions(completions)
    if conversations is not None:
        chosen = read_conversations(
            conversations,
            completions=table,
            encoder=encoder,
            embeddings=embeddings,
            text=text,
            cache=cache,
            progress=progress,
        )
    else:
        assert table is not None
        if encoder is not None or embeddings is not None:
            raise ValueError(
                "encoder and embeddings have no use here; expected neither beside completions alone"
            )
        chosen = Conversations.from_completions(table.rows, table.prompt_offsets)
    rows = () if teachers is None else read_teachers(teachers)
    recorded = None
    if votes is not None:
        recorded = read_votes(votes, chosen, teachers=[str(row["teacher"]) for row in rows])
    return Recording(chosen, recorded, rows)


# ---------------------------------------------------------------------------------------------- conversations


def read_conversations(
    path: PathLike,
    *,
    completions: Completions | None = None,
    encoder: Encoder | str | None = None,
    embeddings: PathLike | None = None,
    text: str = "response",
    cache: PathLike | None = None,
    progress: Progress | None = None,
) -> Conversations:
    """Read conversations, one a line or row, from JSONL (plain or gzip) or Parquet.

    Parameters
    ----------
    path : str or path
        Fields, others being passed over:

        - ``id``: text or whole number, each once;
        - ``prompt``: text; equal prompts are one prompt (not needed with `completions`);
        - ``response_a``, ``response_b``: text, needed with `encoder`;
        - ``embedding_a``, ``embedding_b``: lists of numbers, needed where nothing else gives vectors;
        - ``a_id``, ``b_id``: text or whole number; equal ids are the same completion. Without them equal
          texts (or vectors) under one prompt are the same completion;
        - ``category``: text, optional; ``gold``: 0 (a better), 1 (b better), between, or null, optional.
    completions : Completions, optional
        Vectors by completion id; see `read_completions`.
    encoder, embeddings, text, cache, progress
        As in `read_folder`.

    Returns
    -------
    Conversations
        Prompts, and the completions of a prompt, in the order of their first appearance. A completion id that
        stands under two prompts makes two rows with the same vector.

    Raises
    ------
    FileFormatError, ValueError
        As `read_folder`.

    Examples
    --------
    >>> import tempfile, pathlib
    >>> target = pathlib.Path(tempfile.mkdtemp()) / "c.jsonl"
    >>> row = {"id": 7, "prompt": "?", "embedding_a": [0.0, 1.0], "embedding_b": [1.0, 1.0]}
    >>> write_jsonl(target, [row])
    >>> read_conversations(target).differences().tolist()
    [[1.0, 0.0]]
    """
    text = _validate.one_of(text, "text", TEXT_FORMS)
    if sum(given is not None for given in (completions, encoder, embeddings)) > 1:
        raise ValueError(
            "more than one of completions, encoder and embeddings was given; expected at most one"
        )
    if completions is not None:
        return _over_completions(path, completions)
    needs = "text" if encoder is not None else "id" if embeddings is not None else "vector"
    read = _Reading(path, needs)
    for line, row in _rows(path):
        read.take(line, row)
    read.require_some()
    order = read.order()
    if encoder is not None:
        chosen = get_encoder(encoder) if isinstance(encoder, str) else encoder
        vectors = embed(chosen, read.inputs(order, text), cache=cache, progress=progress)
    elif embeddings is not None:
        vectors = _by_id(embeddings, [read.completion_ids[k] for k in order])
    else:
        vectors = np.stack([read.vectors[k] for k in order])
    return read.conversations(vectors, order)


def _rows(path: PathLike) -> Iterator[tuple[int, dict[str, Any]]]:
    if os.fspath(path).lower().endswith((".parquet", ".pq")):
        return _parquet_rows(path)
    return read_json_lines(path)


def _parquet_rows(path: PathLike) -> Iterator[tuple[int, dict[str, Any]]]:
    """Rows of a Parquet file, counted from 1."""
    parquet = _validate.require("pyarrow.parquet", "arrow", "reading Parquet")
    if not Path(path).is_file():
        raise FileFormatError(path, None, "no such file")
    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            groups = (file.metadata.row_group(k).total_byte_size for k in range(file.num_row_groups))
            if sum(groups) > MAX_FILE_BYTES:
                raise FileFormatError(path, None, f"larger than {MAX_FILE_BYTES} bytes (after decompression)")
            for batch in file.iter_batches(batch_size=1024):
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
    except FileFormatError:
        raise
    except Exception as error:  # a hostile file may raise anything from the reader below us
        reason = " ".join(str(error).split())[:200]
        raise FileFormatError(path, None, f"not a readable Parquet file ({reason})") from None


@dataclass
class _Reading:
    """Collects the rows of a file of conversations and checks each as it comes."""

    path: PathLike
    needs: str  # what every completion must have: "text", "vector" or "id"
    prompts: dict[str, int] = field(default_factory=dict)
    categories: dict[str, int] = field(default_factory=dict)
    ids: dict[str, int] = field(default_factory=dict)  # -> line
    completions: dict[tuple[int, Any], int] = field(default_factory=dict)  # (prompt, key) -> number
    completion_prompt: list[int] = field(default_factory=list)
    completion_ids: list[str] = field(default_factory=list)
    texts: list[str | None] = field(default_factory=list)
    vectors: list[NDArray[np.float64]] = field(default_factory=list)
    pairs: list[tuple[int, int]] = field(default_factory=list)
    category: list[int] = field(default_factory=list)
    gold: list[float] = field(default_factory=list)
    text_of_id: dict[str, str | None] = field(default_factory=dict)

    def take(self, line: int, row: Mapping[str, Any]) -> None:
        name = _name(self.path, line, row, "id")
        if name in self.ids:
            raise FileFormatError(
                self.path, line, f"id {name!r} occurs twice, first in line {self.ids[name]}"
            )
        prompt = row.get("prompt")
        if not isinstance(prompt, str):
            raise FileFormatError(self.path, line, f"prompt is {_shown(prompt)}, expected text")
        owner = self.prompts.setdefault(prompt, len(self.prompts))
        a = self._completion(line, row, "a", owner, name)
        b = self._completion(line, row, "b", owner, name)
        if a == b:
            if "a_id" in row:
                raise FileFormatError(self.path, line, "a_id and b_id are equal, expected two completions")
            b = self._add(
                owner, ("twin", name), f"{name}/b", self.texts[a], self.vectors[a] if self.vectors else None
            )
        self.ids[name] = line
        self.pairs.append((a, b))
        self.category.append(_category(self.path, line, row, self.categories))
        self.gold.append(_gold(self.path, line, row))

    def _completion(self, line: int, row: Mapping[str, Any], side: str, owner: int, name: str) -> int:
        text = row.get(f"response_{side}")
        if text is not None and not isinstance(text, str):
            raise FileFormatError(self.path, line, f"response_{side} is {_shown(text)}, expected text")
        if text is None and self.needs == "text":
            raise FileFormatError(
                self.path, line, f"response_{side} is missing, expected text for the encoder"
            )
        vector = None
        if self.needs == "vector":
            vector = self._vector(line, row, side)
        has_id = row.get(f"{side}_id") is not None
        if not has_id and self.needs == "id":
            raise FileFormatError(self.path, line, f"{side}_id is missing, expected the id of a vector")
        known = _name(self.path, line, row, f"{side}_id") if has_id else f"{name}/{side}"
        if has_id and self.text_of_id.setdefault(known, text) != text:
            raise FileFormatError(
                self.path, line, f"{side}_id {known!r} had another text before, expected the same"
            )
        key = ("id", known) if has_id else ("same", text, None if vector is None else vector.tobytes())
        number = self.completions.get((owner, key))
        if number is None:
            return self._add(owner, key, known, text, vector)
        if vector is not None and not np.array_equal(vector, self.vectors[number]):
            raise FileFormatError(self.path, line, f"{side}_id {known!r} had another embedding before")
        return number

    def _add(
        self,
        owner: int,
        key: tuple[Any, ...],
        known: str,
        text: str | None,
        vector: NDArray[np.float64] | None,
    ) -> int:
        number = len(self.completion_prompt)
        self.completions[owner, key] = number
        self.completion_prompt.append(owner)
        self.completion_ids.append(known)
        self.texts.append(text)
        if vector is not None:
            self.vectors.append(vector)
        return number

    def _vector(self, line: int, row: Mapping[str, Any], side: str) -> NDArray[np.float64]:
        values = row.get(f"embedding_{side}")
        if values is None:
            raise FileFormatError(
                self.path,
                line,
                f"embedding_{side} is missing, expected a list of numbers (or name an encoder)",
            )
        if not isinstance(values, list) or not all(type(x) in (int, float) for x in values):
            raise FileFormatError(self.path, line, f"embedding_{side} is {_shown(values)}, expected numbers")
        try:
            vector = np.asarray(values, np.float64)
        except OverflowError:
            vector = np.full(1, np.inf)
        if not np.isfinite(vector).all():
            raise FileFormatError(self.path, line, f"embedding_{side} holds NaN or infinity")
        expected = len(self.vectors[0]) if self.vectors else max(1, len(vector))
        if len(vector) != expected:
            raise FileFormatError(
                self.path, line, f"embedding_{side} has {len(vector)} features, expected {expected}"
            )
        return vector

    def require_some(self) -> None:
        if not self.pairs:
            raise FileFormatError(self.path, None, "holds no conversation")

    def order(self) -> list[int]:
        """Completions sorted by prompt, in order of first appearance."""
        return sorted(range(len(self.completion_prompt)), key=lambda k: (self.completion_prompt[k], k))

    def inputs(self, order: list[int], text: str) -> list[str]:
        """What the encoder sees of each completion."""
        prompts = list(self.prompts)
        return [encoder_input(prompts[self.completion_prompt[k]], str(self.texts[k]), text) for k in order]

    def conversations(self, vectors: NDArray[Any], order: list[int]) -> Conversations:
        place = np.empty(len(order), np.int64)
        place[order] = np.arange(len(order))
        count = np.bincount(np.asarray(self.completion_prompt, np.int64), minlength=len(self.prompts))
        texts = None
        if all(words is not None for words in self.texts):
            texts = Texts(
                list(self.prompts),
                [str(self.texts[k]) for k in order],
                [self.completion_ids[k] for k in order],
            )
        return Conversations.from_completions(
            vectors,
            np.concatenate([[0], np.cumsum(count)]),
            place[np.asarray(self.pairs, np.int64)],
            category=self.category,
            category_names=tuple(self.categories),
            ids=tuple(self.ids),
            gold=self.gold,
            texts=texts,
        )


def _over_completions(path: PathLike, table: Completions) -> Conversations:
    """Conversations whose completions are rows of a table of vectors, named by their ids."""
    row_of = {name: k for k, name in enumerate(table.ids)}
    prompt_of = np.repeat(np.arange(len(table.prompts)), np.diff(table.prompt_offsets))
    ids: dict[str, int] = {}
    categories: dict[str, int] = {}
    pairs, category, gold = [], [], []
    for line, row in _rows(path):
        name = _name(path, line, row, "id")
        if name in ids:
            raise FileFormatError(path, line, f"id {name!r} occurs twice, first in line {ids[name]}")
        ids[name] = line
        pair = []
        for side in ("a_id", "b_id"):
            completion = _name(path, line, row, side)
            if completion not in row_of:
                raise FileFormatError(path, line, f"{side} {completion!r} is not among the completions")
            pair.append(row_of[completion])
        if pair[0] == pair[1] or prompt_of[pair[0]] != prompt_of[pair[1]]:
            raise FileFormatError(path, line, "a_id and b_id must be two different completions of one prompt")
        pairs.append(pair)
        category.append(_category(path, line, row, categories))
        gold.append(_gold(path, line, row))
    if not pairs:
        raise FileFormatError(path, None, "holds no conversation")
    return Conversations.from_completions(
        table.rows,
        table.prompt_offsets,
        pairs,
        category=category,
        category_names=tuple(categories),
        ids=tuple(ids),
        gold=gold,
    )


def _name(path: PathLike, line: int, row: Mapping[str, Any], key: str) -> str:
    """An id: text, or a whole number as its decimal text, so that 7 and "7" name the same thing."""
    value = row.get(key)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str) or not value:
        raise FileFormatError(path, line, f"{key} is {_shown(value)}, expected text or a whole number")
    return value


def _shown(value: Any) -> str:
    if value is None:
        return "missing"
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]}..."


def _category(path: PathLike, line: int, row: Mapping[str, Any], known: dict[str, int]) -> int:
    value = row.get("category")
    name = "all" if value is None else _name(path, line, row, "category")
    return known.setdefault(name, len(known))


def _gold(path: PathLike, line: int, row: Mapping[str, Any]) -> float:
    value = row.get("gold")
    if value is None:
        return math.nan
    if (
        isinstance(value, bool)
        or not isinstance(value, (int, float))
        or not (0 <= value <= 1 or value != value)
    ):
        raise FileFormatError(path, line, f"gold is {_shown(value)}, expected a number from 0 to 1 or null")
    return float(value)


# ------------------------------------------------------------------------------------------------ vectors


def read_completions(path: PathLike, prompt_offsets: ArrayLike | None = None) -> Completions:
    """Read the feature vectors of completions, sorted by prompt.

    Parameters
    ----------
    path : str or path
        - ``.npy``: (N, d), with the prompts' offsets in ``NAME.offsets.npy`` beside it (or as an argument);
        - ``.safetensors``: one (N, d) tensor (named embeddings where there are several) and a tensor
          ``prompt_offsets`` (or as an argument);
        - ``.parquet``: one list column (embedding), with columns ``prompt`` and, optional, ``id``; the
        rows of a
          prompt need not lie together.

        Ids of the rows of the first two may stand in ``NAME.ids.txt``, one a line.
    prompt_offsets : array_like of int, (P + 1,), optional
        In place of those in the file.

    Returns
    -------
    Completions

    Raises
    ------
    FileFormatError, ValueError
        Not such a file, sizes that contradict each other, NaN, an id twice.

    Examples
    --------
    >>> import tempfile, pathlib
    >>> target = pathlib.Path(tempfile.mkdtemp()) / "phi.npy"
    >>> np.save(target, np.eye(3, dtype=np.float32))
    >>> read_completions(target, [0, 1, 3]).ids
    ('0', '1', '2')
    """
    rows = _vectors(path)
    order = None
    suffix = Path(path).suffix.lower()
    if suffix == ".parquet":
        if prompt_offsets is not None:
            raise ValueError("prompt_offsets has no use here; expected none beside Parquet's prompt column")
        names, owner, prompts = _parquet_names(path, len(rows))
        order = np.argsort(owner, kind="stable")
        offsets = np.concatenate([[0], np.cumsum(np.bincount(owner, minlength=len(prompts)))])
        rows, names = rows[order], [names[k] for k in order]
    else:
        found = _stored_offsets(path) if prompt_offsets is None else prompt_offsets
        offsets = _checked_offsets(path, found, len(rows))
        names = _side_ids(path, len(rows)) or [str(k) for k in range(len(rows))]
        prompts = [str(k) for k in range(len(offsets) - 1)]
    _each_once(path, names)
    return Completions(rows, np.asarray(offsets, np.int64), tuple(names), tuple(prompts))


def _vectors(path: PathLike) -> NDArray[Any]:
    """The (N, d) rows of a file, finite; bfloat16 becomes float32, which holds it exactly."""
    if not Path(path).is_file():
        raise FileFormatError(path, None, "no such file")
    try:
        pool = dn.Pool(mapped_rows(os.fspath(path)))
    except ValueError as error:
        message = str(error)
        where = os.fspath(path)
        raise FileFormatError(path, None, message.removeprefix(f"{where}: ")) from None
    if len(pool) == 0:
        raise FileFormatError(path, None, "holds no vector")
    if pool.dtype_name == "bfloat16":
        return decode(pool.stored(), pool.dtype_name).astype(np.float32)
    return np.asarray(pool.stored())


def _stored_offsets(path: PathLike) -> Any:
    name = Path(path)
    if name.suffix.lower() == ".npy":
        beside = name.with_name(f"{name.stem}.offsets.npy")
        if not beside.is_file():
            raise FileFormatError(path, None, f"its prompts are unknown, expected {beside.name} beside it")
        try:
            return np.load(beside, allow_pickle=False)
        except Exception as error:
            raise FileFormatError(beside, None, f"not a readable .npy file ({error})") from None
    from safetensors import safe_open

    try:
        with safe_open(name, framework="numpy") as file:
            if "prompt_offsets" in file.keys():  # noqa: SIM118  (the handle is no mapping)
                return file.get_tensor("prompt_offsets")
    except Exception as error:
        raise FileFormatError(path, None, f"not a readable safetensors file ({error})") from None
    raise FileFormatError(path, None, "has no tensor prompt_offsets, expected the first row of each prompt")


def _checked_offsets(path: PathLike, values: Any, n_rows: int) -> NDArray[np.int64]:
    try:
        offsets = _validate.integers(values, "prompt_offsets", 1)
    except ValueError as error:
        raise FileFormatError(path, None, str(error)) from None
    if len(offsets) < 2 or offsets[0] != 0 or offsets[-1] != n_rows or (np.diff(offsets) < 1).any():
        raise FileFormatError(
            path, None, f"prompt_offsets must rise from 0 to {n_rows}, the number of vectors"
        )
    return offsets


def _side_ids(path: PathLike, n_rows: int) -> list[str] | None:
    """Ids in NAME.ids.txt, one a line."""
    name = Path(path)
    beside = name.with_name(f"{name.stem}.ids.txt")
    if not beside.exists():
        return None
    names = []
    for line, text in read_lines(beside, max_line_bytes=2**16):
        if not text:
            raise FileFormatError(beside, line, "empty line, expected the id of a vector")
        names.append(text)
    if len(names) != n_rows:
        raise FileFormatError(beside, None, f"{len(names)} ids, expected {n_rows}, one for each vector")
    return names


def _parquet_names(path: PathLike, n_rows: int) -> tuple[list[str], NDArray[np.int64], list[str]]:
    """Ids, prompt of each row, and names of the prompts."""
    parquet = _validate.require("pyarrow.parquet", "arrow", "reading Parquet")
    columns = parquet.read_schema(path).names
    if "prompt" not in columns:
        raise FileFormatError(path, None, "has no column prompt, expected the prompt of each completion")
    table = parquet.read_table(
        path, columns=[name for name in ("prompt", "id") if name in columns]
    ).to_pylist()
    prompts: dict[str, int] = {}
    owner = np.empty(n_rows, np.int64)
    names = []
    for line, row in enumerate(table, start=1):
        owner[line - 1] = prompts.setdefault(_name(path, line, row, "prompt"), len(prompts))
        names.append(_name(path, line, row, "id") if "id" in columns else str(line - 1))
    return names, owner, list(prompts)


def _each_once(path: PathLike, names: Sequence[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise FileFormatError(path, None, f"id {name!r} occurs twice, expected each once")
        seen.add(name)


def _by_id(path: PathLike, wanted: list[str]) -> NDArray[Any]:
    """Vectors of these completions, found by id."""
    rows = _vectors(path)
    if Path(path).suffix.lower() == ".parquet":
        names = [_name(path, line, row, "id") for line, row in _parquet_column(path, "id")]
    else:
        found = _side_ids(path, len(rows))
        if found is None:
            raise FileFormatError(
                path, None, f"its ids are unknown, expected {Path(path).stem}.ids.txt beside it"
            )
        names = found
    _each_once(path, names)
    place = {name: k for k, name in enumerate(names)}
    for name in wanted:
        if name not in place:
            raise FileFormatError(path, None, f"no vector for completion {name!r}")
    return np.ascontiguousarray(rows[[place[name] for name in wanted]])


def _parquet_column(path: PathLike, column: str) -> Iterable[tuple[int, dict[str, Any]]]:
    parquet = _validate.require("pyarrow.parquet", "arrow", "reading Parquet")
    if column not in parquet.read_schema(path).names:
        raise FileFormatError(path, None, f"has no column {column}")
    return enumerate(parquet.read_table(path, columns=[column]).to_pylist(), start=1)


# -------------------------------------------------------------------------------------------- votes, teachers


def read_votes(path: PathLike, conversations: Conversations, *, teachers: Sequence[str] = ()) -> Votes:
    """Read recorded votes from CSV (with a header) or JSONL, plain or gzip.

    Parameters
    ----------
    path : str or path
        Columns: ``id`` or ``conversation``; ``teacher``; ``label`` or ``answer``, a number from 0 (a
        preferred) to 1 (b preferred), 0.5 being a tie, or one of a, b, tie; ``rep`` or ``repetition``,
        optional, a whole number that tells repeated answers of one teacher on one conversation apart
        (their order does so without it).
    conversations : Conversations
        The ids must be among theirs.
    teachers : sequence of str
        Names in the order wanted; those without a vote are left out, others follow in order of appearance.

    Returns
    -------
    Votes
        Repeated answers are kept, each on its own; ties are kept as 0.5.

    Raises
    ------
    FileFormatError
        An unknown conversation, a wrong label, the same (conversation, teacher, repetition) twice.

    Examples
    --------
    >>> import tempfile, pathlib
    >>> target = pathlib.Path(tempfile.mkdtemp()) / "votes.csv"
    >>> write_csv(target, ["conversation", "teacher", "answer"], [["x", "Ann", "b"], ["x", "Bob", "tie"]])
    >>> read_votes(target, Conversations.from_differences([[1.0]], ids=["x"])).label.tolist()
    [1.0, 0.5]
    """
    row_of = {name: k for k, name in enumerate(conversations.ids)}
    names: dict[str, int] = {}
    asked: dict[tuple[int, int, int], int] = {}
    times: dict[tuple[int, int], int] = {}
    cells: list[tuple[int, int, int]] = []
    labels: list[float] = []
    for line, row in _vote_rows(path):
        conversation = _either(path, line, row, "id", "conversation")
        if conversation not in row_of:
            raise FileFormatError(path, line, f"conversation {conversation!r} is not among the conversations")
        i, j = row_of[conversation], names.setdefault(_name(path, line, row, "teacher"), len(names))
        given = row.get("rep", row.get("repetition"))
        r = times.get((i, j), 0) if given is None else _repetition(path, line, given)
        times[i, j] = times.get((i, j), 0) + 1
        if (i, j, r) in asked:
            raise FileFormatError(
                path,
                line,
                f"conversation {conversation!r}, teacher {row['teacher']!r}, repetition {r} "
                f"was answered before, in line {asked[i, j, r]}",
            )
        asked[i, j, r] = line
        cells.append((i, j, r))
        labels.append(_label(path, line, row))
    order = [name for name in dict.fromkeys(teachers) if name in names]
    order += [name for name in names if name not in set(order)]
    place = {names[name]: k for k, name in enumerate(order)}
    table = np.asarray(cells, np.int64).reshape(-1, 3)
    teacher = np.asarray([place[j] for j in table[:, 1].tolist()], np.int64)
    return Votes(table[:, 0].copy(), teacher, labels, table[:, 2].copy(), order)


def _vote_rows(path: PathLike) -> Iterator[tuple[int, Mapping[str, Any]]]:
    if os.fspath(path).lower().endswith((".jsonl", ".jsonl.gz")):
        return read_json_lines(path)
    return read_csv(path, ["teacher"])


def _either(path: PathLike, line: int, row: Mapping[str, Any], first: str, second: str) -> str:
    if first in row and second in row:
        raise FileFormatError(path, line, f"both {first} and {second} are given, expected one of them")
    if first not in row and second not in row:
        raise FileFormatError(path, line, f"neither {first} nor {second} is given, expected one of them")
    return _name(path, line, row, first if first in row else second)


def _label(path: PathLike, line: int, row: Mapping[str, Any]) -> float:
    key = "label" if "label" in row else "answer"
    value: Any = row.get(key)
    if isinstance(value, str):
        word = value.strip().lower()
        if word in _LABELS:
            return _LABELS[word]
        try:
            number = float(word) if word.isascii() and "_" not in word else math.nan
        except ValueError:
            number = math.nan
    else:
        plain = isinstance(value, (int, float)) and not isinstance(value, bool)
        number = float(value) if plain and abs(value) <= 1 else math.nan
    if not 0.0 <= number <= 1.0:
        raise FileFormatError(
            path, line, f"{key} is {_shown(value)}, expected a number from 0 to 1, a, b or tie"
        )
    return number


def _repetition(path: PathLike, line: int, value: Any) -> int:
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 10:
        return int(value)
    if type(value) is int and 0 <= value < 10**9:
        return value
    raise FileFormatError(path, line, f"repetition is {_shown(value)}, expected a whole number from 0")


def read_teachers(path: PathLike) -> tuple[Teacher, ...]:
    """Read a table of teachers: CSV with a column ``teacher``, others being passed on.

    Parameters
    ----------
    path : str or path
        CSV, plain or gzip.

    Returns
    -------
    tuple of dict
        One per teacher; finite numbers as float, empty cells as None, the teacher's name always as text.

    Raises
    ------
    FileFormatError
        No such column, an empty name, a name twice.

    Examples
    --------
    >>> import tempfile, pathlib
    >>> target = pathlib.Path(tempfile.mkdtemp()) / "teachers.csv"
    >>> write_csv(target, ["teacher", "votes"], [["Ann", 3]])
    >>> read_teachers(target)
    ({'teacher': 'Ann', 'votes': 3.0},)
    """
    rows: list[Teacher] = []
    seen: dict[str, int] = {}
    for line, cells in read_csv(path, ["teacher"]):
        name = _name(path, line, cells, "teacher")
        if name in seen:
            raise FileFormatError(path, line, f"teacher {name!r} occurs twice, first in line {seen[name]}")
        seen[name] = line
        rows.append({key: name if key == "teacher" else _cell(text) for key, text in cells.items()})
    return tuple(rows)


def _cell(text: str) -> str | float | None:
    if not text:
        return None
    try:
        number = float(text)
    except ValueError:
        return text
    return number if math.isfinite(number) else text


# ------------------------------------------------------------------------------------------------ results


def write_reward(
    path: PathLike,
    coef: ArrayLike,
    metadata: Mapping[str, Any] | None = None,
    *,
    information: ArrayLike | None = None,
    encoder: str | None = None,
) -> None:
    """Write a reward as a linear head that reward trainers load: ``score.weight`` of shape (1, d), no bias.

    Parameters
    ----------
    path : str or path
        A safetensors file, written atomically.
    coef : array_like, (d,)
        The reward: an estimate, or a least favourable reward.
    metadata : dict, optional
        Whatever JSON can hold: seeds, versions, radius, temperature.
    information : array_like, (d, d), optional
        Information matrix of the estimate, kept as the tensor ``information``.
    encoder : str, optional
        Fingerprint of the encoder that made the features.

    Raises
    ------
    ValueError
        A shape does not fit, a number is not finite, a metadata key is taken.

    Examples
    --------
    >>> import tempfile, pathlib
    >>> target = pathlib.Path(tempfile.mkdtemp()) / "reward.safetensors"
    >>> write_reward(target, [1.0, -2.0], {"seed": 0})
    >>> coef, information, metadata = read_reward(target)
    >>> coef.tolist(), information, metadata["seed"]
    ([1.0, -2.0], None, 0)
    """
    theta = _validate.floats(coef, "coef", 1)
    tensors: dict[str, NDArray[Any]] = {HEAD: theta[None, :]}
    if information is not None:
        tensors["information"] = _validate.symmetric(information, len(theta), "information")
    extra = dict(metadata or {})
    taken = {"format", "version", "encoder"} & set(extra)
    if taken:
        raise ValueError(f"metadata holds the key {min(taken)!r}; expected other keys")
    write_tensors(path, tensors, {**extra, "encoder": encoder})


def read_reward(
    path: PathLike, *, encoder: str | None = None
) -> tuple[NDArray[np.float64], NDArray[np.float64] | None, dict[str, Any]]:
    """Read back what `write_reward` wrote.

    Parameters
    ----------
    path : str or path
    encoder : str, optional
        Fingerprint of the encoder in use: a reward made with another one is refused.

    Returns
    -------
    coef : ndarray, (d,)
    information : ndarray, (d, d), or None
    metadata : dict

    Raises
    ------
    FileFormatError
        Not such a file, damaged, or made with another encoder.

    Examples
    --------
    >>> import tempfile, pathlib
    >>> target = pathlib.Path(tempfile.mkdtemp()) / "reward.safetensors"
    >>> write_reward(target, [1.0], encoder="one")
    >>> try:
    ...     read_reward(target, encoder="another")
    ... except FileFormatError as error:
    ...     error.problem
    "made with encoder 'one', expected 'another': the features would not mean the same"
    """
    tensors, facts = read_tensors(path)
    head = tensors.get(HEAD)
    if head is None or head.ndim != 2 or head.shape[0] != 1 or head.shape[1] == 0:
        raise FileFormatError(path, None, f"has no tensor {HEAD} of shape (1, d)")
    d = head.shape[1]
    information = tensors.get("information")
    if information is not None and information.shape != (d, d):
        raise FileFormatError(path, None, f"information has shape {information.shape}, expected ({d}, {d})")
    stored = facts.get("encoder")
    if encoder is not None and stored != encoder:
        problem = f"made with encoder {stored!r}, expected {encoder!r}: the features would not mean the same"
        raise FileFormatError(path, None, problem)
    kept = {key: value for key, value in facts.items() if key not in ("format", "version")}
    return head[0].copy(), information, kept


def write_policy(path: PathLike, conversations: Conversations, probability: ArrayLike) -> None:
    """Write a policy, one prompt a line: JSONL with prompt, completions, probability and choice.

    Parameters
    ----------
    path : str or path
        Written atomically.
    conversations : Conversations
        Made from completions; with texts, completions are named by their ids, else by their row.
    probability : array_like, (N,)
        Of each completion, as `PessimisticPolicy.probability`.

    Raises
    ------
    ValueError
        The conversations have no completions, or the length does not fit.

    Examples
    --------
    >>> import tempfile, pathlib
    >>> target = pathlib.Path(tempfile.mkdtemp()) / "policy.jsonl"
    >>> write_policy(target, Conversations.from_completions([[0.0], [1.0]], [0, 2]), [0.25, 0.75])
    >>> target.read_text()
    '{"prompt": 0, "completions": ["0", "1"], "probability": [0.25, 0.75], "choice": "1"}\\n'
    """
    if conversations.completions is None or conversations.prompt_offsets is None:
        raise ValueError(
            "conversations hold differences only; expected completions, which a policy chooses from"
        )
    offsets, texts = conversations.prompt_offsets, conversations.texts
    pi = _validate.floats(probability, "probability", 1)
    _validate.length(pi, int(offsets[-1]), "probability", "completion")
    names = texts.completion_ids if texts is not None else tuple(map(str, range(len(pi))))

    def lines() -> Iterator[dict[str, Any]]:
        for p in range(len(offsets) - 1):
            first, last = int(offsets[p]), int(offsets[p + 1])
            row: dict[str, Any] = {"prompt": p}
            if texts is not None:
                row["text"] = texts.prompts[p]
            row["completions"] = list(names[first:last])
            row["probability"] = pi[first:last].tolist()
            row["choice"] = names[first + int(np.argmax(pi[first:last]))]
            yield row

    write_jsonl(path, lines())
