"""Files of rows: mapped where they fit in memory, else read as the rows are needed and never mapped."""

from __future__ import annotations

import errno
import json
import os
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from dal_native import _validate

Integers = NDArray[np.int64]

#: Names under which a file may hold the rows, in the order looked for.
COLUMN_NAMES = ("differences", "embedding", "embeddings")

#: Bytes that reading may hold where the caller does not say.
WORKING_MEMORY = 128 << 20

_SAFETENSORS = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}
_SAFETENSORS_HEADER_LIMIT = 100_000_000
_BFLOAT16 = np.dtype([("bfloat16", "<u2")])

#: Bytes converted at a time, where a file has to be decoded before it can be read.
_DECODED = 8 << 20

State = tuple[int, int, int, int]  # bytes, nanoseconds, device, inode


def open_rows(path: str, working_memory: int | None) -> NDArray[Any] | RowFile:
    """The rows of a file: an array where it is mapped or small, else a `RowFile`."""
    if working_memory is None and _memory_needed(path) <= available_memory() // 2:
        return mapped_rows(path)
    rows: NDArray[Any] | RowFile = _readable(path, lambda suffix: _STREAMED[suffix](path, working_memory))
    return rows


def mapped_rows(path: str) -> NDArray[Any]:
    """The rows of a file as an array, mapped where the format allows, else read into memory."""
    rows: NDArray[Any] = _readable(path, lambda suffix: _MAPPED[suffix](path))
    return rows


def available_memory() -> int:
    """Bytes of physical memory that can be had without swapping, as the system estimates them."""
    try:
        with open("/proc/meminfo") as file:
            fields = dict(line.split(":", 1) for line in file)
        free = int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            with open(limit) as file:
                free = min(free, int(file.read()))
        except (OSError, ValueError):  # no such limit
            continue
    return free


def state_of(at: str | int) -> State:
    """What tells one state of a file from another; by name or by descriptor."""
    found = os.stat(at)
    return found.st_size, found.st_mtime_ns, found.st_dev, found.st_ino


def check_state(path: str, now: State, then: State) -> None:
    """Refuse a file that is not as it was when it was opened, `then`."""
    if now == then:
        return
    how = "was written to"
    if now[2:] != then[2:]:
        how = "was replaced by another file"
    elif now[0] != then[0]:
        how = f"has {now[0]} bytes now and had {then[0]}"
    raise ValueError(f"{path}: {how} since the pool was opened; expected a file that does not change")


class MappedFile:
    """A file that is mapped: looked at before each use, because a page beyond its end ends the process."""

    def __init__(self, path: str, state: State) -> None:
        self.path = os.path.abspath(path)
        self._state = state

    def check(self) -> None:
        """Refuse a file that changed; one that was removed is still there for its map."""
        try:
            now = state_of(self.path)
        except FileNotFoundError:
            return
        check_state(self.path, now, self._state)


@dataclass(frozen=True)
class _Runs:
    """Where rows lie: from first_rows[k] on, up to the next, one after the other from byte offsets[k]."""

    shape: tuple[int, int]
    dtype_name: str
    first_rows: Integers
    offsets: Integers


class RowFile:
    """Rows that stay in a file. Reads are checked: a file that changed is a ValueError, never other rows.

    Parameters
    ----------
    path : str
        For messages and, where `named`, the file that must stay in its place.
    descriptors : (int, int)
        Open on the file, for passes and for single rows; closed with the object.
    runs : _Runs
        Where the rows lie.
    working_memory : int or None
        Bytes for the blocks being read and what is read ahead.
    source : State
        State of the file at `path` when it was opened.
    named : bool
        Whether the descriptors are open on `path` itself, not on a decoded copy that has no name.
    """

    def __init__(
        self,
        path: str,
        descriptors: tuple[int, int],
        runs: _Runs,
        working_memory: int | None,
        source: State,
        named: bool = True,
    ) -> None:
        self.path = os.path.abspath(path)
        self.shape, self.dtype_name = runs.shape, runs.dtype_name
        self.working_memory = _working_memory(working_memory, self.shape[1])
        self._asked, self._runs, self._source, self._named = working_memory, runs, source, named
        self._descriptors = descriptors
        self._state = source if named else state_of(descriptors[0])
        self._compiled: Any = None
        weakref.finalize(self, _close, descriptors).atexit = False
        number = np.uint16 if self.dtype_name == "bfloat16" else np.dtype(self.dtype_name)
        self._dtype = np.dtype(number)

    def __reduce__(self) -> tuple[Any, ...]:
        return _open_again, (self.path, self._asked, self._source)

    def check(self) -> None:
        """Refuse a file that is not as it was when it was opened."""
        check_state(self.path, state_of(self._descriptors[0]), self._state)
        if self._named and os.path.exists(self.path):
            check_state(self.path, state_of(self.path), self._state)

    def compiled(self, make: Callable[..., Any]) -> Any:
        """The same file for a compiled backend, made once."""
        if self._compiled is None:
            self._compiled = make(
                self.path,
                self._named,
                *self._descriptors,
                self._state,
                self._runs.first_rows,
                self._runs.offsets,
                self.dtype_name,
                *self.shape,
                self.working_memory,
            )
        return self._compiled

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """Rows start to stop as stored: (stop - start, d); bfloat16 as uint16."""
        out = np.empty((stop - start, self.shape[1]), self._dtype)
        self.check()
        self._read_into(out, start)
        self.check()
        return out

    def gather(self, rows: Integers) -> NDArray[Any]:
        """These rows as stored: (k, d), read in the order in which they lie."""
        unique, where = np.unique(rows, return_inverse=True)
        out = np.empty((len(unique), self.shape[1]), self._dtype)
        self.check()
        bounds = np.flatnonzero(np.diff(unique, prepend=-2, append=self.shape[0] + 1) != 1)
        for a, b in pairwise(bounds.tolist()):
            self._read_into(out[a:b], int(unique[a]))
        self.check()
        return out[where.reshape(-1)]

    def _read_into(self, out: NDArray[Any], start: int) -> None:
        row = self.shape[1] * self._dtype.itemsize
        stop, first = start + len(out), self._runs.first_rows
        to = memoryview(out.reshape(-1).view(np.uint8))
        while start < stop:
            k = int(np.searchsorted(first, start, side="right")) - 1
            end = stop if k + 1 == len(first) else min(stop, int(first[k + 1]))
            offset = int(self._runs.offsets[k]) + (start - int(first[k])) * row
            self._read_bytes(to[: (end - start) * row], offset)
            to, start = to[(end - start) * row :], end

    def _read_bytes(self, to: memoryview, offset: int) -> None:
        while len(to):
            got = os.preadv(self._descriptors[0], [to], offset)
            if got == 0:
                self.check()
                raise ValueError(
                    f"{self.path}: ended at byte {offset} since the pool was opened; "
                    "expected a file that does not change"
                )
            to, offset = to[got:], offset + got


def _close(descriptors: tuple[int, int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


def _open_again(path: str, working_memory: int | None, source: State) -> RowFile:
    check_state(path, state_of(path), source)
    opened = _readable(path, lambda suffix: _STREAMED[suffix](path, working_memory))
    if not isinstance(opened, RowFile):
        raise ValueError(f"{path}: holds no rows; expected the file that was opened before")
    return opened


def _working_memory(given: int | None, d: int) -> int:
    """Bytes to work with: at least two blocks of a row, as stored and as float64, and as much ahead."""
    least = 64 * d
    if given is None:
        return max(WORKING_MEMORY, least)
    working_memory = min(_validate.whole(given, "working_memory", 0), 1 << 60)
    if working_memory < least:
        raise ValueError(
            f"working_memory is {working_memory}; expected at least {least} bytes for rows of {d} features"
        )
    return working_memory


def _readable(path: str, read: Callable[[str], Any]) -> Any:
    """Call the reader for a path that can be one of ours; whatever it raises names the file."""
    suffix = os.path.splitext(path)[1].lower()
    if suffix not in _MAPPED:
        raise ValueError(f"{path}: unknown kind of file; expected one of {', '.join(_MAPPED)}")
    if not os.path.exists(path):
        raise FileNotFoundError(f"{path}: no such file")
    if not os.path.isfile(path):
        raise ValueError(f"{path}: not a regular file")
    try:
        return read(suffix)
    except ImportError:
        raise
    except Exception as error:  # a hostile file may raise anything from the reader below us
        text = str(error) or type(error).__name__
        ours = text.startswith((path, os.path.abspath(path), "working_memory"))
        raise ValueError(text if ours else f"{path}: not a readable {suffix} file: {text}") from error


def _memory_needed(path: str) -> int:
    """Bytes that the rows would take in memory, about; 0 for a file that cannot be looked at."""
    try:
        size = os.path.getsize(path)
        if path.lower().endswith(".parquet"):
            metadata = _validate.require("pyarrow.parquet", "arrow", "reading Parquet").read_metadata(path)
            size = max(
                size, sum(metadata.row_group(k).total_byte_size for k in range(metadata.num_row_groups))
            )
        return size
    except ImportError:
        raise
    except Exception:  # the reader says what is wrong
        return 0


# ------------------------------------------------------------------------------------ .npy and .safetensors


@dataclass(frozen=True)
class _Tensor:
    """One two-dimensional tensor of a file as its header describes it."""

    shape: tuple[int, int]
    dtype: np.dtype[Any]
    offset: int
    fortran: bool = False


def _map_npy(path: str) -> NDArray[Any]:
    """Map a .npy file; NumPy checks the header, refuses pickled objects and notices a truncated file."""
    with np.errstate(over="ignore"):  # of the size of a hostile shape; NumPy refuses it afterwards
        return np.lib.format.open_memmap(path, mode="r")


def _npy_header(path: str, file: BinaryIO, size: int) -> _Tensor:
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
    elif version == (2, 0):
        shape, fortran, dtype = np.lib.format.read_array_header_2_0(file)
    else:  # 3.0 is for names of fields, of which rows have none
        raise ValueError(f"version {version} of the format; expected 1.0 or 2.0")
    if dtype.hasobject:
        raise ValueError("holds Python objects; expected numbers")
    if len(shape) != 2:
        raise ValueError(
            f"{path}: has {len(shape)} dimensions (shape {shape}); expected 2: rows and features"
        )
    return _Tensor((shape[0], shape[1]), dtype, file.tell(), fortran)


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    if len(set(names)) != len(names):
        raise ValueError("a key appears twice in the header")
    return dict(pairs)


def _safetensors_header(path: str, file: BinaryIO, size: int) -> _Tensor:
    """One tensor of a .safetensors file: 8 bytes of header length, a JSON header, then the tensors."""
    header_size = int.from_bytes(file.read(8), "little")
    if size < 8 or header_size > min(size - 8, _SAFETENSORS_HEADER_LIMIT):
        raise ValueError("the header is longer than the file")
    header = json.loads(file.read(header_size), object_pairs_hook=_no_duplicates)
    if not isinstance(header, dict):
        raise ValueError("the header is not a JSON object")
    tensors = {
        name: entry
        for name, entry in header.items()
        if name != "__metadata__" and isinstance(entry, dict) and len(entry.get("shape", ())) == 2
    }
    entry = tensors[_only(path, list(tensors), "two-dimensional tensors")]
    if entry.get("dtype") not in _SAFETENSORS:
        raise ValueError(
            f"{path}: tensor has dtype {entry.get('dtype')!r}; expected one of {', '.join(_SAFETENSORS)}"
        )
    dtype = _BFLOAT16 if entry["dtype"] == "BF16" else np.dtype(_SAFETENSORS[entry["dtype"]])
    n, d = (_validate.whole(k, "shape", 0) for k in entry["shape"])
    begin, end = (_validate.whole(k, "data_offsets", 0) for k in entry["data_offsets"])
    if end - begin != n * d * dtype.itemsize or 8 + header_size + end > size:
        raise ValueError(f"{path}: truncated or wrong: {(n, d)} of {entry['dtype']} does not fit its bytes")
    return _Tensor((n, d), dtype, 8 + header_size + begin)


def _map_safetensors(path: str) -> NDArray[Any]:
    with open(path, "rb") as file:
        tensor = _safetensors_header(path, file, os.fstat(file.fileno()).st_size)
    if 0 in tensor.shape:
        return np.zeros(tensor.shape, tensor.dtype)
    return np.memmap(path, dtype=tensor.dtype, mode="r", offset=tensor.offset, shape=tensor.shape)


def _only(path: str, names: list[str], what: str) -> str:
    for name in COLUMN_NAMES:
        if name in names:
            return name
    if len(names) != 1:
        raise ValueError(
            f"{path}: found {len(names)} {what} {names[:5]}; expected one, or one named {COLUMN_NAMES[0]!r}"
        )
    return names[0]


def _stream_tensor(
    path: str, working_memory: int | None, header: Callable[[str, BinaryIO, int], _Tensor]
) -> NDArray[Any] | RowFile:
    with open(path, "rb") as file:
        source = state_of(file.fileno())
        tensor = header(path, file, source[0])
        (n, d), dtype = tensor.shape, tensor.dtype
        if d == 0:
            raise ValueError(f"{path}: has no columns (shape {(n, d)}); expected at least one feature")
        if n < 0 or d < 0 or tensor.offset + n * d * dtype.itemsize > source[0]:
            raise ValueError(f"shape {(n, d)} of {dtype} does not fit in {source[0]} bytes")
        stored = _validate.storage_name(dtype)
        if stored is None and dtype.kind not in "iu":
            raise ValueError(f"{path}: has dtype {dtype}; expected float64, float32, float16 or bfloat16")
        if n == 0:
            return np.zeros((n, d), dtype)
        if stored is None or not dtype.isnative or tensor.fortran:
            blocks = _converted(file, tensor, stored)
            rows = _Decoded(n, d, stored or "float64", blocks)
            return _decode(path, rows, working_memory, source)
        runs = _Runs((n, d), stored, np.zeros(1, np.int64), np.array([tensor.offset], np.int64))
        return _stream(path, runs, working_memory, source)


def _stream(path: str, runs: _Runs, working_memory: int | None, source: State) -> RowFile:
    """The file itself, where its rows lie as they are needed."""
    _working_memory(working_memory, runs.shape[1])
    descriptors = _descriptors(path)
    try:
        for descriptor in descriptors:
            check_state(path, state_of(descriptor), source)
    except ValueError:
        _close(descriptors)
        raise
    return RowFile(path, descriptors, runs, working_memory, source)


def _descriptors(path: str) -> tuple[int, int]:
    first = os.open(path, os.O_RDONLY)
    try:
        return first, os.open(path, os.O_RDONLY)
    except OSError:
        os.close(first)
        raise


def _converted(file: BinaryIO, tensor: _Tensor, stored: str | None) -> Iterator[NDArray[Any]]:
    """Rows that are stored by columns, in the other byte order or as integers, a block at a time."""
    (n, d), dtype = tensor.shape, tensor.dtype
    step = max(1, _DECODED // (d * dtype.itemsize))
    for start in range(0, n, step):
        many = min(step, n - start)
        if tensor.fortran:
            block = np.empty((many, d), dtype)
            for k in range(d):
                block[:, k] = _numbers(file, tensor.offset + (k * n + start) * dtype.itemsize, many, dtype)
        else:
            block = _numbers(file, tensor.offset + start * d * dtype.itemsize, many * d, dtype).reshape(
                many, d
            )
        yield block.astype(np.float64 if stored is None else dtype.newbyteorder("="))


def _numbers(file: BinaryIO, offset: int, count: int, dtype: np.dtype[Any]) -> NDArray[Any]:
    file.seek(offset)
    data = file.read(count * dtype.itemsize)
    if len(data) != count * dtype.itemsize:
        raise ValueError(f"ended at byte {offset + len(data)} while it was read")
    return np.frombuffer(data, dtype)


# ------------------------------------------------------------------------------------------------ decoding


@dataclass(frozen=True)
class _Decoded:
    """Rows that have to be decoded, in order, a block at a time; n is a lower bound where it is not known."""

    n: int
    d: int
    dtype_name: str
    blocks: Iterable[NDArray[Any]]


def _decode(path: str, rows: _Decoded, working_memory: int | None, source: State) -> RowFile:
    """Write the rows, as they will be read, to a file of ours that has no name and goes with the pool."""
    _working_memory(working_memory, rows.d)
    folder = tempfile.gettempdir()
    itemsize = 2 if rows.dtype_name == "bfloat16" else np.dtype(rows.dtype_name).itemsize
    needed, free = rows.n * rows.d * itemsize, shutil.disk_usage(folder).free
    room = "set TMPDIR to a folder with room, or store the rows as .npy (C order), which is read in place"
    if needed > free:
        raise ValueError(f"{path}: decoding takes {needed} bytes in {folder}, which has {free} free; {room}")
    descriptor, name = tempfile.mkstemp(prefix="dal-native-", suffix=".rows")
    try:
        descriptors = _descriptors(name)
    finally:
        os.unlink(name)
    try:
        n = 0
        with open(descriptor, "wb") as file:
            for block in rows.blocks:
                if block.shape[1] != rows.d:
                    raise ValueError(f"{path}: has rows of different lengths")
                file.write(memoryview(np.ascontiguousarray(block)).cast("B"))
                n += len(block)
        check_state(path, state_of(path), source)
    except OSError as error:
        _close(descriptors)
        if error.errno == errno.ENOSPC:
            raise ValueError(f"{path}: no room to decode it in {folder}; {room}") from error
        raise
    except BaseException:
        _close(descriptors)
        raise
    runs = _Runs((n, rows.d), rows.dtype_name, np.zeros(1, np.int64), np.zeros(1, np.int64))
    return RowFile(path, descriptors, runs, working_memory, source, named=False)


# ------------------------------------------------------------------------------------------ Parquet and Arrow


def _read_parquet(path: str) -> NDArray[Any]:
    parquet = _validate.require("pyarrow.parquet", "arrow", "reading Parquet")
    schema = parquet.read_schema(path)
    return _table_rows(path, parquet.read_table(path, columns=[_list_column(path, schema)]))


def _stream_parquet(path: str, working_memory: int | None) -> NDArray[Any] | RowFile:
    """Decode a Parquet file once, some rows of a row group at a time."""
    parquet = _validate.require("pyarrow.parquet", "arrow", "reading Parquet")
    source = state_of(path)
    with parquet.ParquetFile(path, memory_map=False, buffer_size=1 << 20, pre_buffer=False) as file:
        column = _list_column(path, file.schema_arrow)

        def blocks(rows_at_a_time: int) -> Iterator[NDArray[Any]]:
            for batch in file.iter_batches(rows_at_a_time, columns=[column], use_threads=False):
                yield _list_rows(path, column, batch.column(0))

        first = next(blocks(1), None)
        if first is None:
            raise ValueError(f"{path}: the column {column!r} is empty")
        step = max(1, _DECODED // first[0].nbytes) if first.size else 1
        return _decode_lists(path, file.metadata.num_rows, first, blocks(step), working_memory, source)


def _decode_lists(
    path: str,
    n: int,
    first: NDArray[Any],
    blocks: Iterable[NDArray[Any]],
    working_memory: int | None,
    source: State,
) -> RowFile:
    if first.shape[1] == 0:
        raise ValueError(f"{path}: has no columns (shape {(n, 0)}); expected at least one feature")
    return _decode(path, _Decoded(n, first.shape[1], first.dtype.name, blocks), working_memory, source)


def _map_arrow(path: str) -> NDArray[Any]:
    pa = _validate.require("pyarrow", "arrow", "reading Arrow")
    _validate.require("pyarrow.ipc", "arrow", "reading Arrow")
    table = pa.ipc.open_file(pa.memory_map(path)).read_all()
    return _table_rows(path, table.select([_list_column(path, table.schema)]))


def _stream_arrow(path: str, working_memory: int | None) -> NDArray[Any] | RowFile:
    """Find where the batches of an Arrow file keep their numbers; decode once what is compressed.

    The file is mapped while its batches are looked up, and no longer.
    """
    pa = _validate.require("pyarrow", "arrow", "reading Arrow")
    ipc = _validate.require("pyarrow.ipc", "arrow", "reading Arrow")
    source = state_of(path)
    with pa.memory_map(path) as file:
        reader = ipc.open_file(file)
        column, batches = _list_column(path, reader.schema), range(reader.num_record_batches)
        k = reader.schema.get_field_index(column)
        runs = _arrow_runs(path, column, file, (reader.get_batch(batch).column(k) for batch in batches))
        if runs is not None:
            return _stream(path, runs, working_memory, source)
        # a reader of one column copies its numbers, so it comes second
        reader = ipc.open_file(file, options=ipc.IpcReadOptions(included_fields=[k]))

        def blocks() -> Iterator[NDArray[Any]]:
            for batch in batches:
                chunk = reader.get_batch(batch).column(0)
                if len(chunk):
                    yield _list_rows(path, column, chunk)

        first = next(blocks(), None)
        if first is None:
            raise ValueError(f"{path}: the column {column!r} is empty")
        return _decode_lists(path, len(first), first, blocks(), working_memory, source)


def _arrow_runs(path: str, column: str, file: Any, chunks: Iterable[Any]) -> _Runs | None:
    """Where the numbers of each batch lie in the mapped file; None where one had to be decoded."""
    file.seek(0)
    whole = file.read_buffer()
    first_rows, offsets, n, d, dtype_name = [], [], 0, 0, ""
    for chunk in chunks:
        if len(chunk) == 0:
            continue
        rows = _list_rows(path, column, chunk)
        at = int(rows.ctypes.data) - int(whole.address)
        if n > 0 and (rows.shape[1], rows.dtype.name) != (d, dtype_name):
            raise ValueError(f"{path}: the column {column!r} has nulls or rows of different lengths")
        if rows.size == 0 or at < 0 or at + rows.nbytes > whole.size:
            return None
        d, dtype_name = rows.shape[1], rows.dtype.name
        first_rows.append(n)
        offsets.append(at)
        n += len(rows)
    if n == 0:
        return None
    return _Runs((n, d), dtype_name, np.array(first_rows, np.int64), np.array(offsets, np.int64))


def _list_column(path: str, schema: Any) -> str:
    types = _validate.require("pyarrow.types", "arrow", "reading Arrow")
    lists = [
        field.name
        for field in schema
        if (
            types.is_fixed_size_list(field.type)
            or types.is_list(field.type)
            or types.is_large_list(field.type)
        )
        and types.is_floating(field.type.value_type)
    ]
    return _only(path, lists, "columns of lists of floats")


def _table_rows(path: str, table: Any) -> NDArray[Any]:
    """One list column as (n, d): without a copy when it is one chunk of fixed-size lists without nulls."""
    column = table.column(0)
    if table.num_rows == 0:
        raise ValueError(f"{path}: the column {table.column_names[0]!r} is empty")
    chunk = column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)
    return _list_rows(path, table.column_names[0], chunk)


def _list_rows(path: str, name: str, chunk: Any) -> NDArray[Any]:
    """One array of lists, not empty, as (k, d)."""
    values = chunk.flatten()
    d, rest = divmod(len(values), len(chunk))
    widths = chunk.value_lengths() if hasattr(chunk, "value_lengths") else None
    ragged = rest != 0 or (
        widths is not None and widths.null_count == 0 and any(k != d for k in widths.unique().to_pylist())
    )
    if chunk.null_count or values.null_count or ragged:
        raise ValueError(f"{path}: the column {name!r} has nulls or rows of different lengths")
    rows: NDArray[Any] = values.to_numpy(zero_copy_only=False).reshape(len(chunk), d)
    return rows


_MAPPED: dict[str, Callable[[str], NDArray[Any]]] = {
    ".npy": _map_npy,
    ".safetensors": _map_safetensors,
    ".parquet": _read_parquet,
    ".arrow": _map_arrow,
    ".feather": _map_arrow,
}
_STREAMED: dict[str, Callable[[str, int | None], NDArray[Any] | RowFile]] = {
    ".npy": lambda path, memory: _stream_tensor(path, memory, _npy_header),
    ".safetensors": lambda path, memory: _stream_tensor(path, memory, _safetensors_header),
    ".parquet": _stream_parquet,
    ".arrow": _stream_arrow,
    ".feather": _stream_arrow,
}
