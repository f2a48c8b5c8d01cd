"""The rows to choose from: differences as stored, or completions whose pairs are the conversations."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dal_native import _dispatch, _files, _validate
from dal_native._files import RowFile

#: Stored numbers decoded at a time (8 MB of float64).
BLOCK_NUMBERS = 1 << 20


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
        as they are, bfloat16 included; results then live where they do.
    category : array_like of int, (n,), optional
        Category of each conversation, from 0; all 0 when absent.

    Attributes
    ----------
    rows : ndarray, (n, d) or (N, d), or None
        The stored differences or completions; bfloat16 as its uint16 bits. None where they stay in a file
        that is read as they are needed: see `Pool.open`.
    path : str or None
        The file that the pool was opened from.
    dtype_name : str
        "float64", "float32", "float16" or "bfloat16".
    d : int
        Number of features.
    category : ndarray of int32, (n,), or (P,) for completions
        For completions the category belongs to the prompt: see `category_of`.
    prompt_offsets, pair_offsets : ndarray of int64, (P+1,), or None
        Completions and conversations before each prompt.
    pair_rows : ndarray of int64, (n, 2), or None
        Completions a and b of each conversation, where these are listed: see `from_pairs`.

    Raises
    ------
    ValueError
        Wrong rank or dtype, no features, NaN or infinity (the first such row is named), bad category.

    Notes
    -----
    The rows must not change while the pool is in use. Conversations of a pool of completions are enumerated
    by (prompt, a, b) with a < b, and are never stored.

    Examples
    --------
    >>> import dal_native as dn
    >>> pool = dn.Pool([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]], category=[0, 1, 0])
    >>> len(pool), pool.d, pool.dtype_name
    (3, 2, 'float64')
    """

    rows: NDArray[Any] | None
    path: str | None
    dtype_name: str
    d: int
    category: NDArray[np.int32]
    prompt_offsets: NDArray[np.int64] | None
    pair_offsets: NDArray[np.int64] | None
    pair_rows: NDArray[np.int64] | None
    home: str | None  # whose arrays the results are: see _validate.home
    _size: int
    _file: RowFile | None
    _mapped: _files.MappedFile | None

    def __init__(self, differences: Any, category: Any = None) -> None:
        self._size = self._store(differences, "differences")
        self.category = _validate.category(category, self._size)

    def _store(self, values: Any, name: str) -> int:
        """Keep the rows; how many there are. Those of a file are checked as they are first read."""
        self.prompt_offsets = self.pair_offsets = self.pair_rows = None
        self.home, self.path, self._mapped = _validate.home(values), None, None
        self._file = values if isinstance(values, RowFile) else None
        if self._file is not None:
            self.rows, self.dtype_name, self.path = None, self._file.dtype_name, self._file.path
            n, self.d = self._file.shape
            return n
        self.rows, self.dtype_name = _validate.rows(values, name)
        self.d = int(self.rows.shape[1])
        bad = _first_nonfinite(self.rows, self.dtype_name)
        if bad >= 0:
            raise ValueError(f"{name} holds NaN or infinity, first in row {bad}; expected finite numbers")
        return int(self.rows.shape[0])

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
        n_rows = pool._store(completions, "completions")
        offsets = _validate.integers(prompt_offsets, "prompt_offsets", 1)
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
    def from_pairs(cls, completions: Any, pairs: Any, category: Any = None) -> Pool:
        """Make a pool whose conversations are listed pairs of completions, in any order.

        Parameters
        ----------
        completions : array_like, (N, d)
            Embeddings phi, kept as stored.
        pairs : array_like of int, (n, 2)
            Rows a and b of each conversation; a completion may be in many.
        category : array_like of int, (n,), optional
            Category of each conversation.

        Returns
        -------
        Pool
            Of n conversations, x = phi(b) - phi(a), formed block by block and never stored.

        Raises
        ------
        ValueError
            As for `Pool`, and for a row out of range or a pair of a completion with itself.

        Notes
        -----
        For fits and for looking: `select_batch` and `Selector` take differences, or completions by prompt.
        Where there are fewer completions than twice the pairs, margins and weighted sums go by completions:
        a margin is then the difference of two products with theta.

        Examples
        --------
        >>> import dal_native as dn
        >>> pool = dn.Pool.from_pairs([[0.0], [1.0], [4.0]], [[2, 1], [0, 2]])
        >>> pool.take([0, 1]).ravel()
        array([-3.,  4.])
        """
        pool = cls.__new__(cls)
        n_rows = pool._store(completions, "completions")
        listed = _validate.integers(pairs, "pairs", 2)
        if listed.shape[1] != 2:
            raise ValueError(f"pairs has shape {listed.shape}; expected two columns, completions a and b")
        _validate.within(listed, n_rows, "pairs", "completions")
        same = listed[:, 0] == listed[:, 1]
        if same.any():
            at = int(np.argmax(same))
            raise ValueError(
                f"pairs[{at}] is completion {int(listed[at, 0])} twice; expected two completions"
            )
        pool.pair_rows, pool._size = listed, len(listed)
        pool.category = _validate.category(category, len(listed))
        return pool

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        category: Any = None,
        *,
        prompt_offsets: Any = None,
        working_memory: int | None = None,
    ) -> Pool:
        """Open a file of differences or completions, mapped into memory or, when large, streamed.

        A file of at most half of the memory available now is mapped where the format allows, else read. A
        larger one, or any with ``working_memory``, is streamed: its rows stay in the file and are read, with
        read-ahead, as each pass comes to them. Picks are the same.

        Parameters
        ----------
        path : path
            ``.npy``; ``.safetensors``; ``.parquet`` or ``.arrow`` (extra ``arrow``). In the last three the
            rows are the tensor or list column named "differences", "embedding" or "embeddings", or else the
            only one.
        category : array_like of int, (n,) or, with ``prompt_offsets``, (P,), optional
        prompt_offsets : array_like of int, (P+1,), optional
            The rows are completions: see `Pool.from_completions`.
        working_memory : int, optional
            Stream, with at most so many bytes for the blocks being read and what is read ahead; at least 64
            bytes a feature. 128 MB where a file is streamed because of its size.

        Returns
        -------
        Pool

        Raises
        ------
        ValueError
            For text, garbage, a truncated file, the wrong shape or dtype, NaN, or too little
            ``working_memory``. A file that changes, or is replaced, while the pool is in use is refused by
            the next call, and a streamed one by the call during which it happens.
        FileNotFoundError
            If there is no such file.

        Notes
        -----
        Streamed rows are read in place from ``.npy`` in C order, ``.safetensors`` and uncompressed Arrow.
        Parquet, compressed Arrow and ``.npy`` in another order or of integers are decoded once, some rows at
        a time, into a temporary file without a name in the folder that TMPDIR names, best on a disk; it needs
        as much room as the rows and goes with the pool. NaN and infinity in streamed rows are refused when
        they are first read, not at opening. Completions of one prompt are read together,
        whatever the working memory.

        A mapped file must not be truncated during a call: the system ends a process that reads a page which
        is not there any more. A streamed one may be.

        Examples
        --------
        >>> import dal_native as dn, numpy as np, tempfile, pathlib
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "pool.npy"
        >>> np.save(path, np.eye(3)); len(dn.Pool.open(path))
        3
        >>> dn.Pool.open(path, working_memory=1 << 20)
        Pool(3 conversations, d=3, float64, streamed)
        """
        name = os.fspath(path)
        before = _files.state_of(name) if os.path.exists(name) else None
        rows = _files.open_rows(name, working_memory)
        pool = (
            cls(rows, category)
            if prompt_offsets is None
            else cls.from_completions(rows, prompt_offsets, category)
        )
        pool.path = os.path.abspath(name)
        if before is not None and pool.rows is not None and np.may_share_memory(pool.rows, rows):
            pool._mapped = _files.MappedFile(name, before)
            pool._mapped.check()
        return pool

    def __len__(self) -> int:
        return self._size

    def __repr__(self) -> str:
        kind = "" if self.prompt_offsets is None else f" from {self.prompt_offsets[-1]} completions"
        kind = kind if self.pair_rows is None else " of listed pairs"
        streamed = "" if self._file is None else ", streamed"
        return f"Pool({len(self)} conversations{kind}, d={self.d}, {self.dtype_name}{streamed})"

    @property
    def n_categories(self) -> int:
        """Largest category + 1 (at least 1)."""
        return int(self.category.max()) + 1 if len(self.category) else 1

    def in_numpy(self) -> Pool:
        """This pool, sharing its storage, with results as NumPy arrays wherever the rows came from.

        Examples
        --------
        >>> import dal_native as dn
        >>> len(dn.Pool([[1.0], [2.0]]).in_numpy())
        2
        """
        if self.home is None:
            return self
        view = Pool.__new__(Pool)
        view.__dict__.update(self.__dict__)
        view.home = None
        return view

    @property
    def completions(self) -> Pool:
        """The completions as rows of their own, in a pool that shares their storage: phi, not differences.

        Raises
        ------
        ValueError
            For a pool of differences, which has no completions.

        Examples
        --------
        >>> import dal_native as dn
        >>> dn.Pool.from_completions([[0.0], [1.0], [4.0]], [0, 3]).completions.take([2])
        array([[4.]])
        """
        if self.prompt_offsets is None and self.pair_rows is None:
            raise ValueError(
                "this pool holds differences; completions are known for pools of completions only"
            )
        view = Pool.__new__(Pool)
        view.__dict__.update(self.__dict__)
        view.prompt_offsets = view.pair_offsets = view.pair_rows = None
        view._size = int(self._file.shape[0] if self._file is not None else len(self.stored()))
        view.category = _validate.category(None, view._size)
        return view

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
        if self.pair_rows is not None:
            return self.pair_rows[self._indices(indices)]
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
        if self.prompt_offsets is None and self.pair_rows is None:
            return self._gathered(index)
        pair = self.pairs(index)
        return self._gathered(pair[:, 1]) - self._gathered(pair[:, 0])

    def block(self, start: int, stop: int) -> NDArray[np.float64]:
        """Differences of conversations start to stop: (stop - start, d) float64.

        Examples
        --------
        >>> import dal_native as dn
        >>> dn.Pool([[1.0], [3.0], [5.0]]).block(1, 3).ravel()
        array([3., 5.])
        """
        if self.prompt_offsets is None and self.pair_rows is None:
            if self._file is None:
                return decode(self.stored()[start:stop], self.dtype_name)
            start, stop, _ = slice(start, stop).indices(len(self))
            stored = self._file.read(start, max(start, stop))
            return self._finite(stored, np.arange(start, start + len(stored)))
        return self.take(np.arange(start, min(stop, len(self)), dtype=np.int64))

    def blocks(self) -> Iterator[tuple[int, int, NDArray[np.float64]]]:
        """Every conversation once, in blocks of fixed size: (start, stop, differences)."""
        room = BLOCK_NUMBERS if self._file is None else self._file.working_memory // 16
        step = max(1, min(BLOCK_NUMBERS, room) // self.d)
        for start in range(0, len(self), step):
            stop = min(start + step, len(self))
            yield start, stop, self.block(start, stop)

    def stored(self, compiled: Callable[..., Any] | None = None) -> Any:
        """What a backend reads: the rows in memory, or what ``compiled`` makes of the file, once.

        Raises
        ------
        ValueError
            If the file that the rows are mapped from has changed.

        Examples
        --------
        >>> import dal_native as dn
        >>> dn.Pool([[1.0, 2.0]]).stored()
        array([[1., 2.]])
        """
        if self._file is not None:
            return self._file.compiled(compiled) if compiled else self._file
        if self._mapped is not None:
            self._mapped.check()
        return self.rows

    def _gathered(self, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        """Stored rows, of differences or completions, as float64."""
        if self._file is None:
            return decode(self.stored()[rows], self.dtype_name)
        return self._finite(self._file.gather(rows), rows)

    def _finite(self, stored: NDArray[Any], rows: NDArray[np.int64]) -> NDArray[np.float64]:
        """Rows of the file as float64; NaN and infinity are refused, the first row of the file named."""
        bad = _first_nonfinite(stored, self.dtype_name)
        if bad < 0:
            return decode(stored, self.dtype_name)
        assert self._file is not None
        least, step = int(rows[bad]), max(1, BLOCK_NUMBERS // self.d)
        for start in range(0, least, step):
            earlier = _first_nonfinite(self._file.read(start, min(start + step, least)), self.dtype_name)
            if earlier >= 0:
                least = start + earlier
                break
        raise ValueError(f"{self.path}: holds NaN or infinity, first in row {least}; expected finite numbers")

    def _indices(self, indices: Any) -> NDArray[np.int64]:
        index = _validate.integers(indices, "conversations", 1)
        _validate.within(index, len(self), "conversations", "conversations")
        return index


def _first_nonfinite(stored: NDArray[Any], dtype_name: str) -> int:
    return int(_dispatch.find("first_nonfinite")(stored, dtype_name, _dispatch.threads()))


def as_pool(differences: Any) -> Pool:
    """A pool as it is, or a pool made of an array of differences."""
    return differences if isinstance(differences, Pool) else Pool(differences)
