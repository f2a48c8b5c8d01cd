"""Files from strangers, and files that are never half-written.

Every reader here treats its input as hostile: sizes are capped, nothing is unpickled, and whatever does not
fit is refused with one `FileFormatError` that names the file, the line and what was expected. Every writer
goes through `atomic_write`: a temporary file in the same folder, flushed to the disk, renamed into place.
"""

from __future__ import annotations

import contextlib
import csv
import gzip
import hashlib
import json
import os
import re
import secrets
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

__all__ = [
    "MAX_FILE_BYTES",
    "MAX_LINE_BYTES",
    "FileFormatError",
    "atomic_write",
    "file_sha256",
    "fingerprint",
    "read_csv",
    "read_json_lines",
    "read_lines",
    "write_csv",
    "write_jsonl",
]

#: The longest line that is read, in bytes after decompression.
MAX_LINE_BYTES = 16 * 2**20
#: The longest text file that is read, in bytes after decompression (a small archive may unpack to anything).
MAX_FILE_BYTES = 8 * 2**30

_FORMULA = re.compile(r"'*[=+\-@\t\r]")
_ESCAPED = re.compile(r"'+[=+\-@\t\r]")


class FileFormatError(ValueError):
    """A file does not hold what it should: one sentence with the file, the line and what was expected.

    Parameters
    ----------
    path : str or path
        The file.
    line : int or None
        Line number, counted from 1, or None when the whole file is meant.
    problem : str
        What was found and what was expected.

    Examples
    --------
    >>> str(FileFormatError("votes.csv", 3, "label 'yes' is not a number"))
    "votes.csv:3: label 'yes' is not a number"
    """

    def __init__(self, path: str | os.PathLike[str], line: int | None, problem: str) -> None:
        where = os.fspath(path) if line is None else f"{os.fspath(path)}:{line}"
        super().__init__(f"{where}: {problem}")
        self.path, self.line, self.problem = os.fspath(path), line, problem

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.path, self.line, self.problem)


# --------------------------------------------------------------------------------------------------- writing


@contextlib.contextmanager
def atomic_write(
    path: str | os.PathLike[str], mode: str = "w", *, overwrite: bool = True
) -> Iterator[IO[Any]]:
    r"""Open a file for writing so that `path` holds either its old content or all of the new.

    The text goes to a temporary file in the same folder, which is flushed to the disk and renamed over `path`
    when the block ends; the folder is flushed as well. When the block raises, `path` is untouched and
    nothing is left.

    Parameters
    ----------
    path : str or path
        The file to write; its folder must exist. A symbolic link is followed.
    mode : {"w", "wb"}, default "w"
        Text (UTF-8, "\n" line ends on every system) or bytes.
    overwrite : bool, default True
        With False an existing file is refused.

    Yields
    ------
    file object

    Raises
    ------
    FileExistsError
        `path` exists and `overwrite` is False.

    Examples
    --------
    >>> import tempfile, pathlib
    >>> target = pathlib.Path(tempfile.mkdtemp()) / "a.txt"
    >>> with atomic_write(target) as file:
    ...     _ = file.write("all or nothing")
    >>> target.read_text()
    'all or nothing'
    """
    if mode not in ("w", "wb"):
        raise ValueError(f"mode must be 'w' or 'wb', not {mode!r}")
    target = Path(os.path.realpath(path))
    if not overwrite and target.exists():
        raise FileExistsError(f"{os.fspath(path)} exists and may not be overwritten")
    # Not tempfile: its files are readable by their owner alone, ours follow the umask like any other file.
    temporary = target.with_name(f".{target.name[:200]}.{secrets.token_hex(6)}.tmp")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    try:
        descriptor = os.open(temporary, flags, 0o666)
    except OSError as error:  # in the caller's words: the temporary name says nothing to anybody
        raise OSError(error.errno, os.strerror(error.errno or 0), os.fspath(path)) from None
    try:
        text: dict[str, Any] = {} if mode == "wb" else {"encoding": "utf-8", "newline": "\n"}
        with os.fdopen(descriptor, mode, **text) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if overwrite:
            os.replace(temporary, target)
        else:
            _rename_new(temporary, target)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    sync_to_disk(target.parent)


def _rename_new(temporary: Path, target: Path) -> None:
    """Rename, unless `target` has appeared in the meantime (a hard link never replaces a file)."""
    try:
        os.link(temporary, target)
    except FileExistsError:
        raise FileExistsError(f"{target} exists and may not be overwritten") from None
    os.unlink(temporary)


def sync_to_disk(path: Path) -> None:
    """Flush a file, or the names in a folder (a rename), to the disk; on systems that can open a folder."""
    if os.name != "posix":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_jsonl(
    path: str | os.PathLike[str], rows: Iterable[Mapping[str, Any]], *, overwrite: bool = True
) -> None:
    """Write one JSON object a line, atomically; NaN and infinities are refused, as JSON has no such numbers.

    Parameters
    ----------
    path : str or path
        The file to write.
    rows : iterable of dict
        One object a line, keys in the order given.
    overwrite : bool, default True
        With False an existing file is refused.

    Raises
    ------
    ValueError
        A row holds NaN or an infinity.

    Examples
    --------
    >>> import tempfile, pathlib
    >>> target = pathlib.Path(tempfile.mkdtemp()) / "a.jsonl"
    >>> write_jsonl(target, [{"id": "p1", "gain": 0.5}])
    >>> list(read_json_lines(target))
    [(1, {'id': 'p1', 'gain': 0.5})]
    """
    with atomic_write(path, overwrite=overwrite) as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")


def write_csv(
    path: str | os.PathLike[str],
    header: Sequence[str],
    rows: Iterable[Sequence[Any]],
    *,
    overwrite: bool = True,
) -> None:
    """Write a CSV table, atomically; text that a spreadsheet would run as a formula is defused.

    A text cell that starts with one of ``= + - @``, a tab or a carriage return gets an apostrophe in front,
    which `read_csv` with ``unescape=True`` takes away again. Numbers are written as they are (floats with
    `repr`).

    Parameters
    ----------
    path : str or path
        The file to write.
    header : sequence of str
        Column names.
    rows : iterable of sequences
        Cells; None is written as an empty cell.
    overwrite : bool, default True
        With False an existing file is refused.

    Examples
    --------
    >>> import tempfile, pathlib
    >>> target = pathlib.Path(tempfile.mkdtemp()) / "a.csv"
    >>> write_csv(target, ["teacher", "rationality"], [["=SUM(A1)", -0.5]])
    >>> target.read_text()
    "teacher,rationality\\n'=SUM(A1),-0.5\\n"
    """
    with atomic_write(path, overwrite=overwrite) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([_defused(cell) for cell in header])
        for row in rows:
            writer.writerow([_defused(cell) for cell in row])


def _defused(cell: Any) -> Any:
    return f"'{cell}" if isinstance(cell, str) and _FORMULA.match(cell) else cell


# --------------------------------------------------------------------------------------------------- reading


def read_lines(
    path: str | os.PathLike[str], *, max_line_bytes: int = MAX_LINE_BYTES, max_bytes: int = MAX_FILE_BYTES
) -> Iterator[tuple[int, str]]:
    r"""Go through a text file (plain or gzip) line by line, with every size capped.

    Parameters
    ----------
    path : str or path
        UTF-8 text, with or without byte-order mark, "\n" or "\r\n" line ends; gzip is known by its first
        bytes.
    max_line_bytes, max_bytes : int
        Caps on one line and on the whole file, in bytes after decompression.

    Yields
    ------
    number : int
        Line number, from 1.
    line : str
        The line without its end.

    Raises
    ------
    FileFormatError
        Not a readable file, not UTF-8, a NUL byte, a damaged archive, or larger than the caps.

    Examples
    --------
    >>> import tempfile, pathlib
    >>> target = pathlib.Path(tempfile.mkdtemp()) / "a.txt"
    >>> _ = target.write_bytes(b"\xef\xbb\xbfone\r\ntwo")
    >>> list(read_lines(target))
    [(1, 'one'), (2, 'two')]
    """
    with _open_bytes(path) as file:
        total = 0
        for number in range(1, max_bytes + 2):
            try:
                raw = file.readline(max_line_bytes + 1)
            except (OSError, EOFError, zlib.error) as error:
                raise FileFormatError(path, number, f"cannot be read on ({error})") from None
            if not raw:
                return
            total += len(raw)
            if len(raw) > max_line_bytes:
                raise FileFormatError(path, number, f"line longer than {max_line_bytes} bytes")
            if total > max_bytes:
                raise FileFormatError(
                    path, number, f"file longer than {max_bytes} bytes (after decompression)"
                )
            yield number, _decoded(path, number, raw)


def _open_bytes(path: str | os.PathLike[str]) -> IO[bytes]:
    """Open plain or gzip bytes; anything but a regular file (a folder, a device, a pipe) is refused."""
    name = Path(path)
    if not name.exists():
        raise FileFormatError(path, None, "no such file")
    if not name.is_file():
        raise FileFormatError(path, None, "not a regular file")
    try:
        with open(name, "rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
        return gzip.open(name, "rb") if packed else open(name, "rb")  # type: ignore[return-value]
    except OSError as error:
        raise FileFormatError(path, None, f"cannot be opened ({error.strerror})") from None


def _decoded(path: str | os.PathLike[str], number: int, raw: bytes) -> str:
    if number == 1 and raw.startswith(b"\xef\xbb\xbf"):
        raw = raw[3:]
    if b"\x00" in raw:
        raise FileFormatError(path, number, "holds a NUL byte, expected UTF-8 text")
    try:
        line = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise FileFormatError(path, number, f"not UTF-8 text (byte {error.start + 1} of the line)") from None
    return line.removesuffix("\n").removesuffix("\r")


def read_json_lines(
    path: str | os.PathLike[str], *, max_line_bytes: int = MAX_LINE_BYTES
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Go through a JSONL file; blank lines are passed over.

    Refused: anything but one object a line, a key twice in one object, NaN and infinities (also ``1e400``),
    lone surrogates, nesting deeper than the interpreter's limit, integers of thousands of digits.

    Parameters
    ----------
    path : str or path
        JSONL, plain or gzip.
    max_line_bytes : int
        Cap on one line, in bytes.

    Yields
    ------
    number : int
        Line number, from 1.
    row : dict
        The object of that line.

    Raises
    ------
    FileFormatError
        With file and line number.

    Examples
    --------
    >>> import tempfile, pathlib
    >>> target = pathlib.Path(tempfile.mkdtemp()) / "a.jsonl"
    >>> _ = target.write_text('{"id": "p1"}\\n\\n{"id": "p2"}')
    >>> list(read_json_lines(target))
    [(1, {'id': 'p1'}), (3, {'id': 'p2'})]
    """
    for number, line in read_lines(path, max_line_bytes=max_line_bytes):
        if not line.strip():
            continue
        yield number, _json_object(path, number, line)


def _json_object(path: str | os.PathLike[str], number: int, line: str) -> dict[str, Any]:
    try:
        row = json.loads(line, object_pairs_hook=_no_twins, parse_constant=_no_constant, parse_float=_finite)
    except json.JSONDecodeError as error:
        raise FileFormatError(path, number, f"not JSON ({error.msg} at column {error.colno})") from None
    except RecursionError:
        raise FileFormatError(path, number, "JSON nested too deeply") from None
    except ValueError as error:
        raise FileFormatError(path, number, str(error)) from None
    if not isinstance(row, dict):
        raise FileFormatError(path, number, f"expected one JSON object a line, found {type(row).__name__}")
    # A lone surrogate can only come from an escape, and could never be written back as UTF-8.
    if "\\u" in line:
        try:
            json.dumps(row, ensure_ascii=False).encode("utf-8")
        except UnicodeEncodeError:
            raise FileFormatError(
                path, number, "text holds half of a surrogate pair, expected Unicode text"
            ) from None
    return row


def _no_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        seen: set[str] = set()
        twin = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"key {twin!r} occurs twice in one object")
    return row


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not a JSON number, expected a finite number or null")


def _finite(text: str) -> float:
    number = float(text)
    if number - number != 0.0:  # infinite
        raise ValueError(f"{text[:20]} is too large for a number")
    return number


def read_csv(
    path: str | os.PathLike[str],
    required: Sequence[str] = (),
    *,
    unescape: bool = False,
    max_line_bytes: int = 2**20,
) -> Iterator[tuple[int, dict[str, str]]]:
    """Go through a CSV table with a header line; blank lines are passed over.

    Parameters
    ----------
    path : str or path
        CSV, plain or gzip, comma-separated, first line the column names.
    required : sequence of str
        Columns that must be there (others may be).
    unescape : bool, default False
        Take away the apostrophe that `write_csv` puts in front of formula-like text.
    max_line_bytes : int
        Cap on one line, in bytes.

    Yields
    ------
    number : int
        Number of the row's last line, from 1.
    row : dict of str to str
        The cells by column name.

    Raises
    ------
    FileFormatError
        No header, a column missing or named twice, a row with too many or too few cells, bad quoting.

    Examples
    --------
    >>> import tempfile, pathlib
    >>> target = pathlib.Path(tempfile.mkdtemp()) / "a.csv"
    >>> _ = target.write_text("id,label\\np1,1\\n")
    >>> list(read_csv(target, ["id", "label"]))
    [(2, {'id': 'p1', 'label': '1'})]
    """
    reader = csv.reader(
        (line + "\n" for _, line in read_lines(path, max_line_bytes=max_line_bytes)), strict=True
    )
    header: list[str] | None = None
    while True:
        try:
            cells = next(reader)
        except StopIteration:
            break
        except csv.Error as error:
            raise FileFormatError(path, reader.line_num, f"not CSV ({error})") from None
        if not cells:
            continue
        if header is None:
            header = [cell.strip() for cell in cells]
            _check_header(path, reader.line_num, header, required)
            continue
        if len(cells) != len(header):
            raise FileFormatError(
                path, reader.line_num, f"{len(cells)} cells, expected {len(header)} as in the header"
            )
        if unescape:
            cells = [cell[1:] if _ESCAPED.match(cell) else cell for cell in cells]
        yield reader.line_num, dict(zip(header, cells, strict=True))
    if header is None:
        raise FileFormatError(path, None, f"empty, expected a header line{_listed(required)}")


def _check_header(
    path: str | os.PathLike[str], number: int, header: list[str], required: Sequence[str]
) -> None:
    twins = sorted({name for name in header if header.count(name) > 1})
    if twins:
        raise FileFormatError(path, number, f"column {twins[0]!r} occurs twice in the header")
    missing = [name for name in required if name not in header]
    if missing:
        raise FileFormatError(
            path, number, f"column {missing[0]!r} missing, expected the columns{_listed(required)}"
        )


def _listed(names: Sequence[str]) -> str:
    return " " + ",".join(names) if names else ""


# -------------------------------------------------------------------------------------------------- identity


def file_sha256(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file's bytes, as hexadecimal text.

    Parameters
    ----------
    path : str or path
        Any regular file.

    Returns
    -------
    str
        64 hexadecimal digits.

    Examples
    --------
    >>> import tempfile, pathlib
    >>> target = pathlib.Path(tempfile.mkdtemp()) / "a"
    >>> _ = target.write_bytes(b"")
    >>> file_sha256(target)[:8]
    'e3b0c442'
    """
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprint(*parts: str | bytes | float | None) -> str:
    """SHA-256 of a sequence of values such that different sequences never run together.

    Parameters
    ----------
    *parts : str, bytes, float, int or None
        Each enters with its type and its length, so ``("ab", "c")`` and ``("a", "bc")`` differ.

    Returns
    -------
    str
        64 hexadecimal digits.

    Examples
    --------
    >>> fingerprint("ab", "c") == fingerprint("a", "bc")
    False
    >>> fingerprint("ab", 1)[:8]
    'f44712dd'
    """
    digest = hashlib.sha256()
    for part in parts:
        raw = part if isinstance(part, bytes) else str(part).encode("utf-8", "surrogatepass")
        digest.update(f"{type(part).__name__}:{len(raw)}:".encode())
        digest.update(raw)
    return digest.hexdigest()
