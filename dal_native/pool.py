"""The rows to choose from: differences as stored, or completions whose pairs are the conversations."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dal_native import _dispatch, _validate

#: Stored numbers decoded at a time (8 MB of float64).
BLOCK_NUMBERS = 1 << 20

#: Names under which a file may hold the rows, in the order looked for.
COLUMN_NAMES = ("differences", "embedding", "embeddings")

_SAFETENSORS = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}
_SAFETENSORS_HEADER_LIMIT = 100_000_000


def decode(stored: NDArray[Any], dtype_name: str) -> NDArray[np.float64]:
    """Stored rows as float64, exactly: the stored values are the data."""
    if dtype_name == "bfloat16":  # a bfloat16 is the upper half of a float32
        stored = (stored.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return stored.astype(np.float64)


class Pool:
    """A pool of conversations, kept as stored: float64, float32, float16 or bfloat16.

    Parameters
    ----------
    differences : array_like, (n, d)
        Row i is x_i = phi(s, a1) - phi(s, a0). NumPy arrays and memory maps that are C-contiguous, aligned
        and of native byte order are used in place, without a copy; strided, Fortran-ordered, misaligned and
        big-endian ones are copied; integers become float64. torch CPU tensors and DLPack producers are taken
        as they are.
    category : array_like of int, (n,), optional
        Category of each conversation, from 0; all 0 when absent.

    Attributes
    ----------
    rows : ndarray, (n, d) or (N, d)
        The stored differences or completions; bfloat16 as its uint16 bits.
    dtype_name : str
        "float64", "float32", "float16" or "bfloat16".
    d : int
        Number of features.
    category : ndarray of int32, (n,), or (P,) for completions
        For completions the category belongs to the prompt: see `category_of`.
    prompt_offsets, pair_offsets : ndarray of int64, (P+1,), or None
        Completions and conversations before each prompt.

    Raises
    ------
    ValueError
        Wrong rank or dtype, no features, NaN or infinity (the first such row is named), bad category.

    Notes
    -----
    The rows must not change while the pool is in use; a mapped file must not be shortened. Conversations of a
    pool of completions are enumerated by (prompt, a, b) with a < b, and are never stored.

    Examples
    --------
    >>> import dal_native as dn
    >>> pool = dn.Pool([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]], category=[0, 1, 0])
    >>> len(pool), pool.d, pool.dtype_name
    (3, 2, 'float64')
    """

    rows: NDArray[Any]
    dtype_name: str
    d: int
    category: NDArray[np.int32]
    prompt_offsets: NDArray[np.int64] | None
    pair_offsets: NDArray[np.int64] | None
    is_torch: bool
    _size: int

    def __init__(self, differences: Any, category: Any = None) -> None:
        self._store(differences, "differences")
        self.prompt_offsets = None
        self.pair_offsets = None
        self._size = int(self.rows.shape[0])
        self.category = _validate.category(category, self._size)

    def _store(self, values: Any, name: str) -> None:
        self.is_torch = _validate.is_torch(values)
        self.rows, self.dtype_name = _validate.rows(values, name)
        self.d = int(self.rows.shape[1])
        bad = int(_dispatch.find("first_nonfinite")(self.rows, self.dtype_name, _dispatch.threads()))
        if bad >= 0:
            raise ValueError(f"{name} holds NaN or infinity, first in row {bad}; expected finite numbers")

    @classmethod
    def from_completions(cls, completions: Any, prompt_offsets: Any, category: Any = None) -> Pool:
        """Make a pool whose conversations are the pairs of completions within each prompt.

        Parameters
        ----------
        completions : array_like, (N, d)
            Embeddings phi of the completions, those of one prompt next to each other.
        prompt_offsets : array_like of int, (P+1,)
            Completions of prompt p are rows prompt_offsets[p] to prompt_offsets[p+1]; from 0 to N. A prompt
            with one completion has no conversation; a prompt with none is refused.
        category : array_like of int, (P,), optional
            Category of each prompt.

        Returns
        -------
        Pool
            Of sum K (K - 1) / 2 conversations, x = phi(b) - phi(a) for a < b, in the order (prompt, a, b).

        Raises
        ------
        ValueError
            As for `Pool`, and for offsets that do not rise from 0 to N.

        Examples
        --------
        >>> import dal_native as dn
        >>> pool = dn.Pool.from_completions([[0.0], [1.0], [4.0], [7.0]], [0, 3, 4])
        >>> pool.take([0, 1, 2]).ravel()
        array([1., 4., 3.])
        """
        pool = cls.__new__(cls)
        pool._store(completions, "completions")
        offsets = _validate.integers(prompt_offsets, "prompt_offsets", 1)
        n_rows = pool.rows.shape[0]
        if len(offsets) == 0 or offsets[0] != 0 or offsets[-1] != n_rows:
            raise ValueError(f"prompt_offsets must start at 0 and end at {n_rows}, the number of completions")
        count = np.diff(offsets)
        if (count < 1).any():
            prompt = int(np.argmax(count < 1))
            raise ValueError(f"prompt {prompt} has {int(count[prompt])} completions; expected at least one")
        pool.prompt_offsets = offsets
        pool.pair_offsets = np.concatenate([[0], np.cumsum(count * (count - 1) // 2)]).astype(np.int64)
        pool._size = int(pool.pair_offsets[-1])
        pool.category = _validate.category(category, len(count), of="prompt")
        return pool

    @classmethod
    def open(cls, path: str | os.PathLike[str], category: Any = None) -> Pool:
        """Open a file of differences, mapped into memory where the format allows.

        Parameters
        ----------
        path : path
            ``.npy``; ``.safetensors``; ``.parquet`` or ``.arrow`` (extra ``arrow``). In the last three the
            rows are the tensor or list column named "differences", "embedding" or "embeddings", or else the
            only one.
        category : array_like of int, (n,), optional

        Returns
        -------
        Pool

        Raises
        ------
        ValueError
            For text, garbage, a truncated file, the wrong shape or dtype, or NaN.
        FileNotFoundError
            If there is no such file.

        Examples
        --------
        >>> import dal_native as dn, numpy as np, tempfile, pathlib
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "pool.npy"
        >>> np.save(path, np.eye(3)); len(dn.Pool.open(path))
        3
        """
        return cls(_open_rows(os.fspath(path)), category)

    def __len__(self) -> int:
        return self._size

    def __repr__(self) -> str:
        kind = "" if self.prompt_offsets is None else f" from {self.rows.shape[0]} completions"
        return f"Pool({len(self)} conversations{kind}, d={self.d}, {self.dtype_name})"

    @property
    def n_categories(self) -> int:
        """Largest category + 1 (at least 1)."""
        return int(self.category.max()) + 1 if len(self.category) else 1

    def pairs(self, indices: Any) -> NDArray[np.int64]:
        """Rows of the two completions of each conversation: (k, 2) int64, x = rows[second] - rows[first].

        Raises
        ------
        ValueError
            For a pool of differences, which has no completions, or an index out of range.

        Examples
        --------
        >>> import dal_native as dn
        >>> dn.Pool.from_completions([[0.0], [1.0], [4.0]], [0, 3]).pairs([1]).tolist()
        [[0, 2]]
        """
        if self.prompt_offsets is None or self.pair_offsets is None:
            raise ValueError("this pool holds differences; pairs are known for pools of completions only")
        index = self._indices(indices)
        prompt = np.searchsorted(self.pair_offsets, index, side="right") - 1
        first_row = self.prompt_offsets[prompt]
        k = self.prompt_offsets[prompt + 1] - first_row
        left = (
            self.pair_offsets[prompt + 1] - index
        )  # pairs from this one to the prompt's last, itself included
        # counted from the end, pairs form rows of 1, 2, 3, ... : row r ends at r (r + 1) / 2
        r = np.ceil((np.sqrt(8.0 * left + 1.0) - 1.0) / 2.0).astype(np.int64)
        r += (r * (r + 1) // 2 < left).astype(np.int64) - ((r - 1) * r // 2 >= left).astype(np.int64)
        a = k - 1 - r
        b = k - 1 - (left - 1 - (r - 1) * r // 2)
        return np.stack([first_row + a, first_row + b], axis=1)

    def category_of(self, indices: Any) -> NDArray[np.int32]:
        """Category of each of these conversations: (k,) int32, for both kinds of pool.

        Examples
        --------
        >>> import dal_native as dn
        >>> pool = dn.Pool.from_completions([[0.0], [1.0], [2.0], [3.0]], [0, 2, 4], category=[7, 9])
        >>> pool.category_of([0, 1])
        array([7, 9], dtype=int32)
        """
        index = self._indices(indices)
        if self.pair_offsets is not None:
            index = np.searchsorted(self.pair_offsets, index, side="right") - 1
        return self.category[index]

    def take(self, indices: Any) -> NDArray[np.float64]:
        """Differences of these conversations, in float64: (k, d).

        Examples
        --------
        >>> import dal_native as dn
        >>> dn.Pool([[1.0, 2.0], [3.0, 4.0]]).take([1])
        array([[3., 4.]])
        """
        index = self._indices(indices)
        if self.prompt_offsets is None:
            return decode(self.rows[index], self.dtype_name)
        pair = self.pairs(index)
        return decode(self.rows[pair[:, 1]], self.dtype_name) - decode(self.rows[pair[:, 0]], self.dtype_name)

    def block(self, start: int, stop: int) -> NDArray[np.float64]:
        """Differences of conversations start to stop: (stop - start, d) float64.

        Examples
        --------
        >>> import dal_native as dn
        >>> dn.Pool([[1.0], [3.0], [5.0]]).block(1, 3).ravel()
        array([3., 5.])
        """
        if self.prompt_offsets is None:
            return decode(self.rows[start:stop], self.dtype_name)
        return self.take(np.arange(start, min(stop, len(self)), dtype=np.int64))

    def blocks(self) -> Iterator[tuple[int, int, NDArray[np.float64]]]:
        """Every conversation once, in blocks of fixed size: (start, stop, differences)."""
        step = max(1, BLOCK_NUMBERS // self.d)
        for start in range(0, len(self), step):
            stop = min(start + step, len(self))
            yield start, stop, self.block(start, stop)

    def _indices(self, indices: Any) -> NDArray[np.int64]:
        index = _validate.integers(indices, "conversations", 1)
        _validate.within(index, len(self), "conversations", "conversations")
        return index


def as_pool(differences: Any) -> Pool:
    """A pool as it is, or a pool made of an array of differences."""
    return differences if isinstance(differences, Pool) else Pool(differences)


# ------------------------------------------------------------------------------------------------- files


def _open_rows(path: str) -> NDArray[Any]:
    readers = {
        ".npy": _open_npy,
        ".safetensors": _open_safetensors,
        ".parquet": _open_parquet,
        ".arrow": _open_arrow,
        ".feather": _open_arrow,
    }
    suffix = os.path.splitext(path)[1].lower()
    if suffix not in readers:
        raise ValueError(f"{path}: unknown kind of file; expected one of {', '.join(readers)}")
    if not os.path.exists(path):
        raise FileNotFoundError(f"{path}: no such file")
    if not os.path.isfile(path):
        raise ValueError(f"{path}: not a regular file")
    try:
        return readers[suffix](path)
    except ImportError:
        raise
    except Exception as error:  # a hostile file may raise anything from the reader below us
        text = str(error) or type(error).__name__
        raise ValueError(
            text if text.startswith(path) else f"{path}: not a readable {suffix} file: {text}"
        ) from error


def _open_npy(path: str) -> NDArray[Any]:
    """Map a .npy file; NumPy checks the header, refuses pickled objects and notices a truncated file."""
    with np.errstate(over="ignore"):  # of the size of a hostile shape; NumPy refuses it afterwards
        return np.lib.format.open_memmap(path, mode="r")


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    if len(set(names)) != len(names):
        raise ValueError("a key appears twice in the header")
    return dict(pairs)


def _open_safetensors(path: str) -> NDArray[Any]:
    """Map one tensor of a .safetensors file: 8 bytes of header length, a JSON header, then the tensors."""
    size = os.path.getsize(path)
    with open(path, "rb") as file:
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
    dtype = np.dtype(_SAFETENSORS[entry["dtype"]])
    shape = tuple(_validate.whole(k, "shape", 0) for k in entry["shape"])
    begin, end = (_validate.whole(k, "data_offsets", 0) for k in entry["data_offsets"])
    if end - begin != shape[0] * shape[1] * dtype.itemsize or 8 + header_size + end > size:
        raise ValueError(f"{path}: truncated or wrong: {shape} of {entry['dtype']} does not fit its bytes")
    if entry["dtype"] == "BF16":
        dtype = np.dtype([("bfloat16", "<u2")])
    if 0 in shape:
        return np.zeros(shape, dtype)
    return np.memmap(path, dtype=dtype, mode="r", offset=8 + header_size + begin, shape=shape)


def _only(path: str, names: list[str], what: str) -> str:
    for name in COLUMN_NAMES:
        if name in names:
            return name
    if len(names) != 1:
        raise ValueError(
            f"{path}: found {len(names)} {what} {names[:5]}; expected one, or one named {COLUMN_NAMES[0]!r}"
        )
    return names[0]


def _open_parquet(path: str) -> NDArray[Any]:
    parquet = _validate.require("pyarrow.parquet", "arrow", "reading Parquet")
    schema = parquet.read_schema(path)
    return _table_rows(path, parquet.read_table(path, columns=[_list_column(path, schema)]))


def _open_arrow(path: str) -> NDArray[Any]:
    pa = _validate.require("pyarrow", "arrow", "reading Arrow")
    _validate.require("pyarrow.ipc", "arrow", "reading Arrow")
    table = pa.ipc.open_file(pa.memory_map(path)).read_all()
    return _table_rows(path, table.select([_list_column(path, table.schema)]))


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
    values = chunk.flatten()
    d, rest = divmod(len(values), len(chunk))
    widths = chunk.value_lengths() if hasattr(chunk, "value_lengths") else None
    ragged = rest != 0 or (
        widths is not None and widths.null_count == 0 and any(k != d for k in widths.unique().to_pylist())
    )
    if chunk.null_count or values.null_count or ragged:
        raise ValueError(
            f"{path}: the column {table.column_names[0]!r} has nulls or rows of different lengths"
        )
    rows: NDArray[Any] = values.to_numpy(zero_copy_only=False).reshape(len(chunk), d)
    return rows
