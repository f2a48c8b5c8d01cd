"""Conversations: a prompt with two completions each, as one validated object.

Completions are stored once, sorted by prompt; a conversation is a pair of rows ``(a, b)`` of one prompt, and
its difference is ``phi(b) - phi(a)``. A label of 1 says that b was preferred, 0 that a was.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

import dal_native as dn
from dal_native import _validate as V

__all__ = ["Conversations", "Texts"]

Floats = NDArray[np.floating[Any]]
Integers = NDArray[np.int64]

_LARGEST_FEATURE = 1e50  # as in RewardModel
_BLOCK_VALUES = 2**22  # values held at once while checking or subtracting: 32 MiB of float64


@dataclass(frozen=True)
class Texts:
    """The words behind the vectors: needed to ask people, never needed to learn.

    Parameters
    ----------
    prompts : sequence of str
        One per prompt, (P,).
    completions : sequence of str
        One per completion row, (N,).
    completion_ids : sequence of str or None
        One per completion row, (N,); the row numbers by default.

    Raises
    ------
    ValueError
        An entry is not a string, or the ids do not fit the completions.

    Examples
    --------
    >>> Texts(["Why?"], ["Because.", "No idea."]).completion_ids
    ('0', '1')
    """

    prompts: tuple[str, ...]
    completions: tuple[str, ...]
    completion_ids: tuple[str, ...] = ()

    def __init__(
        self,
        prompts: Iterable[str],
        completions: Iterable[str],
        completion_ids: Iterable[str] | None = None,
    ) -> None:
        object.__setattr__(self, "prompts", _strings(prompts, "prompts"))
        object.__setattr__(self, "completions", _strings(completions, "completions"))
        if completion_ids is None:
            completion_ids = map(str, range(len(self.completions)))
        object.__setattr__(self, "completion_ids", _strings(completion_ids, "completion_ids"))
        _same_length("completion_ids", len(self.completion_ids), "completions", len(self.completions))


@dataclass(frozen=True, eq=False)
class Conversations:
    """n conversations over N completions of P prompts, validated and read-only.

    Use `from_completions` (everything, the pessimistic policy included) or `from_differences` (vectors of
    pairs only: no policy can be made from them).

    Attributes
    ----------
    completions : ndarray or None, (N, d)
        Feature vectors phi, sorted by prompt, in the floating type they came in.
    prompt_offsets : ndarray of int64 or None, (P + 1,)
        Completions ``prompt_offsets[p]`` up to ``prompt_offsets[p + 1]`` belong to prompt p.
    pairs : ndarray of int64 or None, (n, 2)
        Rows (a, b) of `completions`, both of one prompt.
    category : ndarray of int64, (n,)
        Category of each conversation, an index into `category_names`.
    category_names : tuple of str, (C,)
    ids : tuple of str, (n,)
        One name per conversation, each only once.
    prompt : ndarray of int64, (n,)
        Prompt of each conversation.
    gold : ndarray of float64, (n,)
        Known truth: 1 (b better), 0 (a better), anything between (a tie is 0.5), NaN where unknown.
    texts : Texts or None
        The words of prompts and completions.

    Examples
    --------
    >>> c = Conversations.from_completions([[0.0, 1], [1, 1], [2, 0]], [0, 3])
    >>> c.pairs.tolist()
    [[0, 1], [0, 2], [1, 2]]
    >>> c.differences([1]).tolist()
    [[2.0, -1.0]]
    """

    completions: Floats | None
    prompt_offsets: Integers | None
    pairs: Integers | None
    category: Integers
    category_names: tuple[str, ...]
    ids: tuple[str, ...]
    prompt: Integers
    gold: NDArray[np.float64]
    texts: Texts | None = None
    _given: Floats | None = None  # differences handed over as such

    # ------------------------------------------------------------------------------------------------ making

    @classmethod
    def from_completions(
        cls,
        completions: ArrayLike,
        prompt_offsets: ArrayLike,
        pairs: ArrayLike | None = None,
        *,
        category: ArrayLike | None = None,
        prompt_category: ArrayLike | None = None,
        category_names: Iterable[str] | None = None,
        ids: Iterable[str | int] | None = None,
        gold: ArrayLike | None = None,
        texts: Texts | None = None,
    ) -> Conversations:
        """Conversations over the completions of each prompt.

        Parameters
        ----------
        completions : array_like, (N, d)
            Feature vectors sorted by prompt; float64, float32 and float16 are kept as they are.
        prompt_offsets : array_like of int, (P + 1,)
            First row of each prompt, then N. A prompt with one completion has no conversation but stays; an
            empty prompt is refused.
        pairs : array_like of int, (n, 2), optional
            Rows (a, b); by default every a < b inside a prompt, ordered by (prompt, a, b).
        category : array_like of int, (n,), optional
            Category of each conversation; 0 by default.
        prompt_category : array_like of int, (P,), optional
            Category of each prompt, in place of `category`.
        category_names : sequence of str, optional
            Names of the categories; "0", "1", ... by default.
        ids : sequence of str or int, (n,), optional
            Names of the conversations; "0", "1", ... by default.
        gold : array_like, (n,), optional
            Known truth in [0, 1], NaN where unknown.
        texts : Texts, optional
            The words of the P prompts and N completions.

        Returns
        -------
        Conversations

        Raises
        ------
        ValueError
            A shape, an index, a name or a number does not fit.

        Examples
        --------
        >>> c = Conversations.from_completions([[1.0], [3.0]], [0, 2], prompt_category=[1])
        >>> c.n, c.d, c.category.tolist()
        (1, 1, [1])
        """
        rows = _features(completions, "completions")
        offsets = _offsets(prompt_offsets, len(rows))
        chosen = _every_pair(offsets) if pairs is None else _checked_pairs(pairs, offsets)
        prompt = np.searchsorted(offsets, chosen[:, 0], side="right") - 1
        if prompt_category is not None:
            if category is not None:
                raise ValueError("category and prompt_category were both given, expected at most one")
            per_prompt = _indices(prompt_category, "prompt_category", len(offsets) - 1)
            category = per_prompt[prompt]
        if texts is not None:
            _same_length("texts.prompts", len(texts.prompts), "prompts", len(offsets) - 1)
            _same_length("texts.completions", len(texts.completions), "completions", len(rows))
        return cls._made(rows, offsets, chosen, None, prompt, category, category_names, ids, gold, texts)

    @classmethod
    def from_differences(
        cls,
        differences: ArrayLike,
        *,
        category: ArrayLike | None = None,
        category_names: Iterable[str] | None = None,
        ids: Iterable[str | int] | None = None,
        prompt: ArrayLike | None = None,
        gold: ArrayLike | None = None,
    ) -> Conversations:
        """Conversations known by their differences only; enough to select and to fit, not for a policy.

        Parameters
        ----------
        differences : array_like, (n, d)
            phi(b) - phi(a) of each conversation.
        category, category_names, ids, gold
            As in `from_completions`.
        prompt : array_like of int, (n,), optional
            Prompt of each conversation (for splits by prompt); each its own by default.

        Returns
        -------
        Conversations
            With `completions`, `prompt_offsets`, `pairs` and `texts` None.

        Raises
        ------
        ValueError
            A shape, an index, a name or a number does not fit.

        Examples
        --------
        >>> Conversations.from_differences([[1.0, 0], [0, 2]], ids=["x", "y"]).ids
        ('x', 'y')
        """
        rows = _features(differences, "differences")
        owner = np.arange(len(rows)) if prompt is None else _indices(prompt, "prompt", len(rows))
        return cls._made(None, None, None, rows, owner, category, category_names, ids, gold, None)

    @classmethod
    def _made(
        cls,
        completions: Floats | None,
        offsets: Integers | None,
        pairs: Integers | None,
        given: Floats | None,
        prompt: Integers,
        category: ArrayLike | None,
        category_names: Iterable[str] | None,
        ids: Iterable[str | int] | None,
        gold: ArrayLike | None,
        texts: Texts | None,
    ) -> Conversations:
        n = len(prompt)
        kind = np.zeros(n, np.int64) if category is None else _indices(category, "category", n)
        return cls(
            completions=None if completions is None else _frozen(completions),
            prompt_offsets=None if offsets is None else _frozen(offsets),
            pairs=None if pairs is None else _frozen(pairs),
            category=_frozen(kind),
            category_names=_category_names(category_names, kind),
            ids=_ids(ids, n),
            prompt=_frozen(prompt),
            gold=_frozen(_gold(gold, n)),
            texts=texts,
            _given=None if given is None else _frozen(given),
        )

    # ----------------------------------------------------------------------------------------------- reading

    @property
    def n(self) -> int:
        """Number of conversations."""
        return len(self.ids)

    def __len__(self) -> int:
        return self.n

    @property
    def d(self) -> int:
        """Number of features."""
        return int(self._features().shape[1])

    @property
    def n_categories(self) -> int:
        """Number of categories, C."""
        return len(self.category_names)

    def _features(self) -> Floats:
        rows = self._given if self.completions is None else self.completions
        assert rows is not None  # one of the two is always there
        return rows

    def differences(self, rows: ArrayLike | slice | None = None) -> NDArray[np.float64]:
        """phi(b) - phi(a), subtracted in float64.

        Parameters
        ----------
        rows : array_like of int, slice or None
            Which conversations; all by default (n * d float64 values).

        Returns
        -------
        ndarray of float64, (k, d)

        Raises
        ------
        ValueError
            An index lies outside 0..n-1.

        Examples
        --------
        >>> Conversations.from_completions([[1.0], [4.0]], [0, 2]).differences().tolist()
        [[3.0]]
        """
        if rows is None:
            rows = slice(None)
        elif not isinstance(rows, slice):
            rows = row_indices(rows, self.n)
        if self._given is not None:
            return np.array(self._given[rows], dtype=np.float64)
        assert self.completions is not None and self.pairs is not None
        pairs = self.pairs[rows]
        result = self.completions[pairs[:, 1]].astype(np.float64)
        # In blocks: the rows of a would otherwise be a second copy as large as the result.
        step = max(1, _BLOCK_VALUES // max(1, self.d))
        for start in range(0, len(pairs), step):
            result[start : start + step] -= self.completions[pairs[start : start + step, 0]]
        return result

    def pool(self) -> dn.Pool:
        """The conversations as rows for the kernels.

        Where the conversations are every pair of every prompt and outnumber the completions, the pool holds
        the completions and the differences are never stored; otherwise it holds the n differences.

        Returns
        -------
        dal_native.Pool

        Examples
        --------
        >>> len(Conversations.from_completions([[1.0], [4.0], [5.0]], [0, 3]).pool())
        3
        """
        kind = self._category_of_prompts()
        if kind is not None:
            return dn.Pool.from_completions(self.completions, self.prompt_offsets, category=kind)
        rows = self._given if self._given is not None else self.differences()
        return dn.Pool(rows, category=self.category)

    def _category_of_prompts(self) -> Integers | None:
        """Category per prompt when a pool of completions says the same as the pairs, else None."""
        if self.completions is None or self.n <= len(self.completions):
            return None
        assert self.prompt_offsets is not None and self.pairs is not None
        size = np.diff(self.prompt_offsets)
        if self.n != int((size * (size - 1) // 2).sum()):
            return None
        if not np.array_equal(self.pairs, _every_pair(self.prompt_offsets)):
            return None
        kind = np.zeros(len(size), np.int64)
        kind[self.prompt] = self.category
        return kind if np.array_equal(kind[self.prompt], self.category) else None

    def subset(self, indices: ArrayLike) -> Conversations:
        """Some of the conversations, in the order asked for.

        Only the prompts that occur stay, each with all of its completions (a policy may choose any of them);
        prompts are renumbered in their old order, category names are kept.

        Parameters
        ----------
        indices : array_like of int or bool
            Conversations to keep, none twice, or a mask of length n.

        Returns
        -------
        Conversations

        Raises
        ------
        ValueError
            An index lies outside 0..n-1 or occurs twice, or the mask has another length.

        Examples
        --------
        >>> Conversations.from_differences([[1.0], [2.0], [3.0]]).subset([2, 0]).ids
        ('2', '0')
        """
        rows = row_indices(indices, self.n)
        if len(np.unique(rows)) < len(rows):
            raise ValueError("indices holds a conversation twice, expected each at most once")
        kept, prompt = np.unique(self.prompt[rows], return_inverse=True)
        shared: dict[str, Any] = {
            "category": _frozen(self.category[rows]),
            "category_names": self.category_names,
            "ids": tuple(self.ids[i] for i in rows),
            "prompt": _frozen(prompt.astype(np.int64).reshape(-1)),
            "gold": _frozen(self.gold[rows]),
        }
        if self._given is not None:
            return Conversations(None, None, None, texts=None, _given=_frozen(self._given[rows]), **shared)
        assert self.completions is not None and self.prompt_offsets is not None and self.pairs is not None
        size = np.diff(self.prompt_offsets)[kept]
        offsets = np.concatenate([[0], np.cumsum(size)])
        shift = offsets[:-1] - self.prompt_offsets[:-1][kept]  # how far each kept prompt's rows move
        old_rows = np.repeat(-shift, size) + np.arange(offsets[-1])
        return Conversations(
            completions=_frozen(self.completions[old_rows]),
            prompt_offsets=_frozen(offsets),
            pairs=_frozen(self.pairs[rows] + shift[shared["prompt"]][:, None]),
            texts=_texts_of(self.texts, kept, old_rows),
            **shared,
        )


# --------------------------------------------------------------------------------------------------- checking


def _frozen(array: NDArray[Any]) -> Any:
    """A read-only view: the caller's own array stays writable."""
    view = array.view()
    view.flags.writeable = False
    return view


def _same_length(name: str, found: int, other: str, expected: int) -> None:
    if found != expected:
        raise ValueError(f"{name} has {found} entries, expected {expected}, one for each of the {other}")


def _strings(values: Iterable[str], name: str) -> tuple[str, ...]:
    if isinstance(values, str):
        raise ValueError(f"{name} is one string, expected a sequence of strings")
    result = tuple(values)
    for position, value in enumerate(result):
        if not isinstance(value, str):
            raise ValueError(f"{name}[{position}] is {type(value).__name__}, expected a string")
    return result


def _features(values: Any, name: str) -> Floats:
    """(rows, d), C-contiguous and finite, in the floating type that it came in."""
    stored, storage = V.rows(values, name)
    # bfloat16 is the upper half of float32: widening it is exact, and NumPy can then compute with it.
    array: Floats = (stored.astype(np.uint32) << 16).view(np.float32) if storage == "bfloat16" else stored
    step = max(1, _BLOCK_VALUES // array.shape[1])
    for start in range(0, len(array), step):
        finite = np.isfinite(array[start : start + step]).all(axis=1)
        if not finite.all():
            row = start + int(np.argmin(finite))
            raise ValueError(f"{name} row {row} holds NaN or infinity, expected finite numbers")
        if array.dtype == np.float64:  # no smaller type reaches so far
            large = (np.abs(array[start : start + step]) > _LARGEST_FEATURE).any(axis=1)
            if large.any():
                row = start + int(np.argmax(large))
                raise ValueError(
                    f"{name} row {row} holds a number above {_LARGEST_FEATURE:g}, whose square may overflow"
                )
    return array


def _indices(values: ArrayLike, name: str, length: int) -> Integers:
    array = V.integers(values, name, 1)
    if array.shape != (length,):
        raise ValueError(f"{name} has shape {array.shape}, expected ({length},)")
    if length and array.min() < 0:
        raise ValueError(f"{name}[{int(np.argmin(array))}] is {array.min()}, expected an index of 0 or more")
    return array


def row_indices(values: ArrayLike, n: int) -> Integers:
    """Indices in 0..n-1 from indices or a mask."""
    array = V.array(values, "indices")
    if array.dtype == bool:
        if array.shape != (n,):
            raise ValueError(f"indices is a mask of shape {array.shape}, expected ({n},)")
        return np.flatnonzero(array)
    rows = V.integers(array, "indices", 1)
    if rows.size and not (rows.min() >= 0 and rows.max() < n):
        raise ValueError(f"indices reach from {rows.min()} to {rows.max()}, expected 0 to {n - 1}")
    return rows


def _offsets(values: ArrayLike, n_rows: int) -> Integers:
    offsets = V.integers(values, "prompt_offsets", 1)
    if len(offsets) < 1:
        raise ValueError(f"prompt_offsets has shape {offsets.shape}, expected (P + 1,)")
    if offsets[0] != 0 or offsets[-1] != n_rows:
        raise ValueError(
            f"prompt_offsets reaches from {offsets[0]} to {offsets[-1]}, expected 0 to {n_rows} (completions)"
        )
    if (np.diff(offsets) < 1).any():
        prompt = int(np.argmin(np.diff(offsets) >= 1))
        raise ValueError(f"prompt_offsets gives prompt {prompt} no completion, expected at least one each")
    return offsets


def _every_pair(offsets: Integers) -> Integers:
    """(n, 2) rows a < b inside each prompt, ordered by (prompt, a, b)."""
    size = np.diff(offsets)
    # Row r of its prompt is the a of as many pairs as rows follow it there.
    last = np.repeat(offsets[1:], size)
    row = np.arange(len(last))
    following = last - row - 1
    first = np.repeat(row, following)
    start = np.cumsum(following) - following  # index of each row's first pair
    second = first + 1 + np.arange(len(first)) - np.repeat(start, following)
    return np.stack([first, second], axis=1).astype(np.int64)


def _checked_pairs(values: ArrayLike, offsets: Integers) -> Integers:
    pairs = V.integers(values, "pairs", (1, 2))
    if pairs.size == 0:
        return np.zeros((0, 2), np.int64)
    if pairs.ndim != 2 or pairs.shape[1] != 2:
        raise ValueError(f"pairs has shape {pairs.shape}, expected (n, 2)")
    if not (pairs.min() >= 0 and pairs.max() < offsets[-1]):
        raise ValueError(f"pairs reach from {pairs.min()} to {pairs.max()}, expected 0 to {offsets[-1] - 1}")
    prompt = np.searchsorted(offsets, pairs, side="right") - 1
    wrong = (prompt[:, 0] != prompt[:, 1]) | (pairs[:, 0] == pairs[:, 1])
    if wrong.any():
        i = int(np.argmax(wrong))
        raise ValueError(f"pairs[{i}] is {pairs[i].tolist()}, expected two different rows of one prompt")
    return np.ascontiguousarray(pairs)


def _category_names(names: Iterable[str] | None, category: Integers) -> tuple[str, ...]:
    needed = int(category.max()) + 1 if category.size else 1
    if names is None:
        if needed > max(10_000, len(category)):
            raise ValueError(f"category holds {needed - 1}, expected consecutive indices from 0")
        return tuple(map(str, range(needed)))
    result = _strings(names, "category_names")
    if len(set(result)) < len(result):
        raise ValueError("category_names holds a name twice, expected each once")
    if needed > len(result):
        raise ValueError(
            f"category holds {needed - 1}, expected an index below {len(result)} (category_names)"
        )
    return result


def _ids(ids: Iterable[str | int] | None, n: int) -> tuple[str, ...]:
    if ids is None:
        return tuple(map(str, range(n)))
    if isinstance(ids, str):
        raise ValueError("ids is one string, expected a sequence of strings")
    result = tuple(_id(value, position) for position, value in enumerate(ids))
    _same_length("ids", len(result), "conversations", n)
    if len(set(result)) < n:
        seen: set[str] = set()
        twin = next(name for name in result if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise ValueError(f"ids holds {twin!r} twice, expected each once")
    return result


def _id(value: object, position: int) -> str:
    """Whole numbers become their decimal text, so that 7 and "7" name the same conversation."""
    if isinstance(value, str) and value:
        return value
    if isinstance(value, int | np.integer) and not isinstance(value, bool):
        return str(int(value))
    raise ValueError(f"ids[{position}] is {value!r}, expected a non-empty string or an integer")


def _gold(values: ArrayLike | None, n: int) -> NDArray[np.float64]:
    if values is None:
        return np.full(n, np.nan)
    try:
        gold = np.array(values, dtype=np.float64)  # None becomes NaN
    except (TypeError, ValueError):
        raise ValueError("gold holds something that is not a number, expected [0, 1] or NaN") from None
    if gold.shape != (n,):
        raise ValueError(f"gold has shape {gold.shape}, expected ({n},)")
    wrong = ~(np.isnan(gold) | ((gold >= 0) & (gold <= 1)))
    if wrong.any():
        i = int(np.argmax(wrong))
        raise ValueError(f"gold[{i}] is {gold[i]}, expected a number in [0, 1] or NaN")
    return gold


def _texts_of(texts: Texts | None, prompts: Sequence[int] | Integers, rows: Integers) -> Texts | None:
    if texts is None:
        return None
    return Texts(
        [texts.prompts[p] for p in prompts],
        [texts.completions[r] for r in rows],
        [texts.completion_ids[r] for r in rows],
    )
