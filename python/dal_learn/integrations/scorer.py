"""The pessimistic reward of texts: one batched core under the faces that training stacks call.

Texts become vectors exactly as they did for learning (`encoder_input`, `embed`), vectors become a reward.
Callers that hold a whole batch are answered in their own thread; callers that come one text at a time, from
many threads or coroutines, wait a moment for one another and are answered together.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import threading
import time
import weakref
from collections import OrderedDict, deque
from collections.abc import Mapping, Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dal_native import _validate

from ..encoders import (
    MAX_CHARACTERS,
    TEXT_FORMS,
    Encoder,
    embed,
    encoder_input,
    get_encoder,
    text_form_of,
)
from ..pessimistic_reward import PessimisticReward

__all__ = ["KINDS", "Estimate", "RewardScorer", "shared_scorer", "text_of"]

#: What may be handed back as the reward of a completion.
KINDS = ("lower_bound", "mean", "least_favourable")
#: The thread that answers waiting callers ends after so many seconds without one.
IDLE_SECONDS = 1.0

Texts = Sequence[Any]
Unscorable = Literal["raise", "none"]


class Estimate(NamedTuple):
    """What is known of one completion.

    Attributes
    ----------
    reward : float
        Of the scorer's kind.
    mean, standard_deviation : float
        The estimate above the reference point, and how far off it may be.
    """

    reward: float
    mean: float
    standard_deviation: float


def text_of(given: Any, *, role: str | None = None) -> str | None:
    """The words of a text or of a list of messages; None where there are none.

    Parameters
    ----------
    given : str or list of messages
        A message is a mapping with `role` and `content`; its content is text, or a list of parts of type
        "text". Several messages are joined by a blank line.
    role : str, optional
        Only messages of this role count.

    Returns
    -------
    str or None
        None for what is neither, for parts that are not text, and for nothing but white space.

    Examples
    --------
    >>> text_of([{"role": "user", "content": "Why?"}])
    'Why?'
    >>> text_of("  ") is None
    True
    """
    if isinstance(given, np.ndarray) and given.ndim == 1:  # a column of messages, as Parquet gives it back
        given = given.tolist()
    if isinstance(given, str):
        return given if given.strip() else None
    if not isinstance(given, list | tuple):
        return None
    words = []
    for message in given:
        if not isinstance(message, Mapping):
            return None
        if role is not None and message.get("role") != role:
            continue
        content = _content(message.get("content"))
        if content is None:
            return None
        if content.strip():
            words.append(content)
    return "\n\n".join(words) or None


def _content(content: Any) -> str | None:
    """The text of a message; "" where it has none (a call of a tool), None where it is something else."""
    if content is None or isinstance(content, str):
        return content or ""
    if isinstance(content, np.ndarray) and content.ndim == 1:
        content = content.tolist()
    if not isinstance(content, list | tuple):
        return None
    parts: list[str] = []
    for part in content:
        words = part.get("text") if isinstance(part, Mapping) else None
        if not isinstance(words, str):
            return None
        parts.append(words)
    return "".join(parts)


@dataclass(eq=False)
class _Request:
    """Texts of one waiting caller: a thread, or a coroutine of an event loop."""

    inputs: list[str]
    answer: Future[list[Estimate]] | asyncio.Future[list[Estimate]]
    loop: asyncio.AbstractEventLoop | None
    since: float

    def begin(self) -> bool:
        """Whether the caller still waits."""
        if isinstance(self.answer, Future):
            return self.answer.set_running_or_notify_cancel()
        return not self.answer.cancelled()


_Answer = list[Estimate] | BaseException


def _hand_out(answers: list[tuple[_Request, _Answer]]) -> None:
    """Give every caller its answer, in its own thread or on its own event loop."""
    by_loop: dict[asyncio.AbstractEventLoop, list[tuple[Any, _Answer]]] = {}
    for request, answer in answers:
        if request.loop is None:
            _settle(request.answer, answer)
        else:
            by_loop.setdefault(request.loop, []).append((request.answer, answer))
    for loop, settled in by_loop.items():
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits there any more
            loop.call_soon_threadsafe(_settle_all, settled)


def _settle_all(settled: list[tuple[Any, _Answer]]) -> None:
    for future, answer in settled:
        if not future.done():  # the coroutine may have been cancelled meanwhile
            _settle(future, answer)


def _settle(future: Any, answer: _Answer) -> None:
    if isinstance(answer, BaseException):
        future.set_exception(answer)
    else:
        future.set_result(answer)


@dataclass
class _Waiting:
    """The queue of one process: what fork must throw away."""

    changed: threading.Condition = field(default_factory=threading.Condition)
    requests: deque[_Request] = field(default_factory=deque)
    rows: int = 0  # texts in all requests
    thread: threading.Thread | None = None


class RewardScorer:
    """Pessimistic rewards of prompts and completions given as text.

    Parameters
    ----------
    reward : PessimisticReward
    encoder : Encoder or str
        As in `get_encoder`; must be the one that the reward was made with.
    kind : {"lower_bound", "mean", "least_favourable"}
        What is handed back: what the labels can vouch for, the estimate alone, or the reward under the
        least favourable parameter of a policy.
    text : {"response", "prompt+response"}, optional
        What the encoder sees of a completion. By default what the reward says; "response" where it does not.
    window : float, default 0.002
        Seconds that the first caller of a batch waits for others at most; a quarter of it without a newcomer
        ends the wait.
    max_batch : int, default 256
        Texts that are answered at once at most; a caller with more is answered alone.
    cache_bytes : int, default 64 MiB
        Bound on the memory of the vectors that are kept; 0 keeps none. The least recently used go first.
    deadline : float, optional
        Seconds after which a call raises `TimeoutError`; no limit by default. Looked at between texts.
    reproducible : bool, default True
        A text's reward has the same bits whatever it is batched with. Encoders whose vectors depend on the
        batch in their last bits (Hugging Face models) then see one text at a time; False batches them.

    Attributes
    ----------
    reward_model, encoder, kind, text
        As above, the reward under `reward_model`.

    Raises
    ------
    ValueError
        The reward was made with another encoder or names none, or a parameter is out of range.

    Notes
    -----
    One object may serve many threads and event loops at once. It may be pickled: options travel, queue and
    cache do not. In a child process made by fork it starts with an empty queue and an empty cache; with an
    encoder that does not survive a fork it raises `RuntimeError` there.

    A linear reward over text embeddings costs next to nothing beside the encoder.

    Examples
    --------
    >>> from dal_learn.encoders import HashingEncoder
    >>> encoder = HashingEncoder(8)
    >>> reward = PessimisticReward(np.ones(8), np.eye(8), 0.5, encoder=encoder.fingerprint)
    >>> scorer = RewardScorer(reward, encoder)
    >>> bound, nothing = scorer.rewards(["Why?"] * 2, ["Because.", ""], unscorable="none")
    >>> bound == scorer.reward("Why?", "Because."), nothing
    (True, None)
    """

    def __init__(
        self,
        reward: PessimisticReward,
        encoder: Encoder | str,
        *,
        kind: str = "lower_bound",
        text: str | None = None,
        window: float = 0.002,
        max_batch: int = 256,
        cache_bytes: int = 64 * 2**20,
        deadline: float | None = None,
        reproducible: bool = True,
    ) -> None:
        if not isinstance(reward, PessimisticReward):
            raise ValueError(f"reward is a {type(reward).__name__}; expected a PessimisticReward")
        self.kind = _validate.one_of(kind, "kind", KINDS)
        if self.kind == "least_favourable" and reward.least_favourable_reward is None:
            raise ValueError("kind is 'least_favourable', but the reward holds no least favourable reward")
        self.reward_model = reward
        self.encoder = get_encoder(encoder) if isinstance(encoder, str) else encoder
        self.text = _text_form(reward, self.encoder, text)
        self.window = _validate.number(window, "window", 0.0)
        if self.window > _LONGEST_WINDOW:
            raise ValueError(f"window is {self.window:g}; expected at most {_LONGEST_WINDOW:g} seconds")
        self.max_batch = _validate.whole(max_batch, "max_batch", 1)
        self.cache_bytes = _validate.whole(cache_bytes, "cache_bytes", 0)
        self.deadline = None if deadline is None else _seconds(deadline)
        self.reproducible = bool(reproducible)
        self._usable = True
        self._start()

    def _start(self) -> None:
        """Everything that belongs to one process."""
        self._waiting = _Waiting()
        self._encoding = threading.Lock()  # encoders need not be thread-safe; guards the cache too
        self._counting = threading.Lock()
        self._cache: OrderedDict[bytes, NDArray[np.float32]] = OrderedDict()
        self._counts = dict.fromkeys(_COUNTS, 0.0)
        _in_this_process.add(self)

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        encoder: Encoder | str,
        *,
        radius: float | None = None,
        **options: Any,
    ) -> RewardScorer:
        """From the file of a `PessimisticReward`, or of a fitted `RewardModel` together with a radius.

        Parameters
        ----------
        path : str or path
        encoder : Encoder or str
        radius : float, optional
            As in `PessimisticReward.load`.
        **options
            As for the class.

        Returns
        -------
        RewardScorer

        Raises
        ------
        FileFormatError, ValueError
            The file cannot be used, or was made with another encoder.
        """
        return cls(PessimisticReward.load(path, radius=radius), encoder, **options)

    def __reduce__(self) -> tuple[Any, ...]:
        options = ("kind", "text", "window", "max_batch", "cache_bytes", "deadline", "reproducible")
        return _again, (self.reward_model, self.encoder, {name: getattr(self, name) for name in options})

    # ------------------------------------------------------------------------------------------ whole batches

    def rewards(
        self,
        prompts: Texts,
        completions: Texts,
        *,
        unscorable: Unscorable = "raise",
        deadline: float | None = None,
    ) -> list[float | None]:
        """Rewards of a whole batch, in the calling thread.

        Parameters
        ----------
        prompts, completions : sequence of str or of lists of messages, (k,)
            Of a conversational completion, the words of the assistant count.
        unscorable : {"raise", "none"}
            What an empty completion, or one that is not text, leads to.
        deadline : float, optional
            Seconds, in place of the scorer's.

        Returns
        -------
        list of float or None, (k,)
            Finite; None only where asked for.

        Raises
        ------
        ValueError
            The lengths differ, or a completion cannot be scored.
        TimeoutError
            The deadline passed.

        Examples
        --------
        See the class.
        """
        found = self.estimates(prompts, completions, unscorable=unscorable, deadline=deadline)
        return [None if one is None else one.reward for one in found]

    def estimates(
        self,
        prompts: Texts,
        completions: Texts,
        *,
        unscorable: Unscorable = "raise",
        deadline: float | None = None,
    ) -> list[Estimate | None]:
        """Rewards of a whole batch with their mean and standard deviation; arguments as in `rewards`."""
        until = self._until(deadline)
        inputs = self._inputs(prompts, completions, unscorable)
        self._count(calls=1, rows=len(inputs), unscored=inputs.count(None))
        answers = iter(self._estimates_or_count([words for words in inputs if words is not None], until))
        return [None if words is None else next(answers) for words in inputs]

    def features(self, prompts: Texts, completions: Texts) -> NDArray[np.float32]:
        """Vectors of prompts and completions, (k, d): the same that learning sees.

        Examples
        --------
        >>> from dal_learn.encoders import HashingEncoder
        >>> encoder = HashingEncoder(8)
        >>> reward = PessimisticReward(np.ones(8), np.eye(8), 0.5, encoder=encoder.fingerprint)
        >>> RewardScorer(reward, encoder).features(["Why?"], ["Because."]).shape
        (1, 8)
        """
        inputs = self._inputs(prompts, completions, "raise")
        return self._features([words for words in inputs if words is not None], None)

    # ------------------------------------------------------------------------------------------ one at a time

    def reward(self, prompt: Any, completion: Any, *, deadline: float | None = None) -> float:
        """The reward of one completion, answered together with what other threads ask at the same time.

        Parameters
        ----------
        prompt, completion : str or list of messages
        deadline : float, optional
            Seconds, in place of the scorer's.

        Returns
        -------
        float

        Raises
        ------
        ValueError, TimeoutError
            As `rewards`.
        """
        return self.queued([prompt], [completion], deadline=deadline)[0].reward

    def queued(self, prompts: Texts, completions: Texts, *, deadline: float | None = None) -> list[Estimate]:
        """Estimates of a few completions, answered together with what other threads ask at the same time.

        Parameters and errors as `rewards`; every completion must be scorable. A failure reaches the caller
        whose text it is, and nobody else.
        """
        limit = self._limit(deadline)
        answer: Future[list[Estimate]] = Future()
        self._submit(prompts, completions, answer, None)
        try:
            return answer.result(limit)
        except TimeoutError:
            if not answer.cancel() and answer.done():  # came at the last moment, or the encoder raised it
                return answer.result()
            raise TimeoutError(f"no reward within {limit:g} seconds") from None

    async def queued_async(
        self, prompts: Texts, completions: Texts, *, deadline: float | None = None
    ) -> list[Estimate]:
        """`queued` for coroutines: the event loop goes on meanwhile."""
        limit = self._limit(deadline)
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[list[Estimate]] = loop.create_future()
        self._submit(prompts, completions, answer, loop)
        if limit is None:
            return await answer
        try:
            async with asyncio.timeout(limit) as clock:
                return await answer
        except TimeoutError:
            if not clock.expired():
                raise
            raise TimeoutError(f"no reward within {limit:g} seconds") from None

    async def reward_async(self, prompt: Any, completion: Any, *, deadline: float | None = None) -> float:
        """`reward` for coroutines: the event loop goes on meanwhile."""
        return (await self.queued_async([prompt], [completion], deadline=deadline))[0].reward

    def statistics(self) -> dict[str, float]:
        """Counts and seconds since the scorer was made (or unpickled, or forked).

        Returns
        -------
        dict
            `calls`, `rows` asked for, `unscored` and `failed` among them, `encoded` and `cached` texts,
            `batches` of the queue and the `largest_batch`, and the seconds spent `seconds_encoding`,
            `seconds_estimating` and, summed over callers of the queue, `seconds_waiting`.
        """
        with self._counting:
            return {name: value if "seconds" in name else int(value) for name, value in self._counts.items()}

    # --------------------------------------------------------------------------------------------- the core

    def _inputs(self, prompts: Texts, completions: Texts, unscorable: str) -> list[str | None]:
        """What the encoder sees of each completion; None where there is nothing to see."""
        _validate.one_of(unscorable, "unscorable", ("raise", "none"))
        for name, given in (("prompts", prompts), ("completions", completions)):
            if isinstance(given, str | bytes) or not hasattr(given, "__len__"):
                raise ValueError(
                    f"{name} is a {type(given).__name__}; expected a list with an entry for each"
                )
        if len(prompts) != len(completions):
            raise ValueError(
                f"prompts has length {len(prompts)}; expected {len(completions)}, as completions"
            )
        inputs: list[str | None] = []
        for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
            words = text_of(completion, role="assistant")
            if words is None and unscorable == "raise":
                self._count(unscored=1)
                raise ValueError(
                    f"completions[{row}] is {_shown(completion)}; expected text that is not empty"
                )
            asked = text_of(prompt) if words is not None and self.text != "response" else ""
            if asked is None:
                if not isinstance(prompt, str):
                    raise ValueError(f"prompts[{row}] is {_shown(prompt)}; expected text or messages of text")
                asked = prompt
            inputs.append(None if words is None else encoder_input(asked, words, self.text))
        return inputs

    def _estimates(self, inputs: list[str], until: float | None) -> list[Estimate]:
        if not inputs:
            return []
        features = self._features(inputs, until)
        start = time.perf_counter()
        found = self.reward_model.estimates(features)
        if self.kind == "least_favourable":
            reward = self.reward_model.least_favourable(features)
        else:
            reward = found.mean if self.kind == "mean" else found.lower_bound
        _require_finite(reward)
        self._count(seconds_estimating=time.perf_counter() - start)
        columns = (reward, found.mean, found.standard_deviation)
        return [Estimate(*row) for row in zip(*(column.tolist() for column in columns), strict=True)]

    def _estimates_or_count(self, inputs: list[str], until: float | None) -> list[Estimate]:
        try:
            return self._estimates(inputs, until)
        except BaseException:
            self._count(failed=len(inputs))
            raise

    def _features(self, inputs: list[str], until: float | None) -> NDArray[np.float32]:
        """Vectors of the inputs; each distinct one that is not in the cache is encoded once."""
        if not self._usable:
            raise RuntimeError(
                f"encoder {self.encoder.name!r} does not survive a fork; make the scorer in this process, "
                "or start it by spawn"
            )
        out = np.empty((len(inputs), self.encoder.dimension), np.float32)
        if not self._encoding.acquire(timeout=-1 if until is None else max(0.0, until - time.monotonic())):
            raise TimeoutError("the deadline passed while another call was at the encoder")
        start = time.perf_counter()
        try:
            rows: dict[bytes, list[int]] = {}
            for row, words in enumerate(inputs):
                rows.setdefault(_key(words), []).append(row)
            missing = []
            for key, places in rows.items():
                if key in self._cache:
                    self._cache.move_to_end(key)
                    out[places] = self._cache[key]
                else:
                    missing.append(key)
            together = getattr(self.encoder, "independent", False) or not self.reproducible
            for part in [missing] if together and missing else [[key] for key in missing]:
                _look_at_the_clock(until)
                vectors = embed(
                    self.encoder,
                    [inputs[rows[key][0]] for key in part],
                    progress=None if until is None else lambda *_: _look_at_the_clock(until),
                )
                for key, vector in zip(part, vectors, strict=True):
                    out[rows[key]] = vector
                    self._keep(key, vector)
        finally:
            self._encoding.release()
        self._count(
            encoded=len(missing),
            cached=len(inputs) - len(missing),
            seconds_encoding=time.perf_counter() - start,
        )
        return out

    def _keep(self, key: bytes, vector: NDArray[np.float32]) -> None:
        room = self.cache_bytes // (vector.nbytes + _ENTRY_BYTES)
        if room:
            self._cache[key] = vector.copy()
        while len(self._cache) > room:
            self._cache.popitem(last=False)

    def _limit(self, deadline: float | None) -> float | None:
        return self.deadline if deadline is None else _seconds(deadline)

    def _until(self, deadline: float | None) -> float | None:
        limit = self._limit(deadline)
        return None if limit is None else time.monotonic() + limit

    def _count(self, **more: float) -> None:
        with self._counting:
            for name, value in more.items():
                self._counts[name] += value

    # -------------------------------------------------------------------------------------------- the queue

    def _submit(
        self,
        prompts: Texts,
        completions: Texts,
        answer: Future[list[Estimate]] | asyncio.Future[list[Estimate]],
        loop: asyncio.AbstractEventLoop | None,
    ) -> None:
        """Put a caller's texts into the queue; what is wrong with them is said here and now."""
        inputs = [words for words in self._inputs(prompts, completions, "raise") if words is not None]
        self._count(calls=1, rows=len(inputs))
        request = _Request(inputs, answer, loop, time.perf_counter())
        waiting = self._waiting
        with waiting.changed:
            waiting.requests.append(request)
            waiting.rows += len(inputs)
            if waiting.thread is not None:
                if len(waiting.requests) == 1 or waiting.rows >= self.max_batch:
                    waiting.changed.notify()
                return
            waiting.thread = threading.Thread(
                target=self._serve, args=(waiting,), name="dal-reward", daemon=True
            )
            try:
                waiting.thread.start()
                return
            except RuntimeError:  # the interpreter is on its way out and starts no thread any more
                waiting.thread = None
                waiting.requests.remove(request)
                waiting.rows -= len(inputs)
        self._answer([request])

    def _serve(self, waiting: _Waiting) -> None:
        """Answer batch after batch until nobody has come for a while."""
        batch: list[_Request] = []
        try:
            while batch := self._next_batch(waiting):
                self._answer(batch)
        except BaseException as error:  # out of memory, say: whoever waits must hear of it
            with waiting.changed:
                batch += waiting.requests
                waiting.requests.clear()
                waiting.rows, waiting.thread = 0, None
            _hand_out([(request, error) for request in batch if not request.answer.done()])

    def _next_batch(self, waiting: _Waiting) -> list[_Request]:
        with waiting.changed:
            while not waiting.requests:
                if not waiting.changed.wait(IDLE_SECONDS) and not waiting.requests:
                    waiting.thread = None
                    return []
            end = time.monotonic() + self.window
            while waiting.rows < self.max_batch and (left := end - time.monotonic()) > 0:
                before = waiting.rows
                waiting.changed.wait(min(left, self.window / 4))
                if waiting.rows == before:
                    break
            batch = [waiting.requests.popleft()]
            size = len(batch[0].inputs)
            while waiting.requests and size + len(waiting.requests[0].inputs) <= self.max_batch:
                batch.append(waiting.requests.popleft())
                size += len(batch[-1].inputs)
            waiting.rows -= size
            return batch

    def _answer(self, batch: list[_Request]) -> None:
        """Answer every caller of a batch: together, or one by one where one of them fails."""
        batch = [request for request in batch if request.begin()]
        if not batch:
            return
        inputs = [words for request in batch for words in request.inputs]
        now = time.perf_counter()
        with self._counting:
            self._counts["largest_batch"] = max(self._counts["largest_batch"], len(inputs))
        self._count(batches=1, seconds_waiting=sum(now - request.since for request in batch))
        if len(batch) == 1:
            self._answer_one(batch[0])
            return
        try:
            found = iter(self._estimates(inputs, None))
        except BaseException:  # whose fault it is shows when each is asked alone
            for request in batch:
                self._answer_one(request)
            return
        _hand_out([(request, [next(found) for _ in request.inputs]) for request in batch])

    def _answer_one(self, request: _Request) -> None:
        answer: _Answer
        try:
            answer = self._estimates_or_count(request.inputs, None)
        except _NOT_THROUGH_A_FUTURE as error:
            answer = RuntimeError(f"the encoder raised {type(error).__name__}")
            answer.__cause__ = error
        except BaseException as error:  # whatever it is, the caller must hear of it
            answer = error
        _hand_out([(request, answer)])


_COUNTS = (
    "calls",
    "rows",
    "unscored",
    "failed",
    "encoded",
    "cached",
    "batches",
    "largest_batch",
    "seconds_encoding",
    "seconds_estimating",
    "seconds_waiting",
)
_LONGEST_WINDOW = 60.0
#: A coroutine that awaits one of these waits for ever, or takes it for its own end.
_NOT_THROUGH_A_FUTURE = (StopIteration, CancelledError, asyncio.CancelledError)
#: Memory of a vector in the cache beside its numbers.
_ENTRY_BYTES = 300


def _again(reward: PessimisticReward, encoder: Encoder, options: dict[str, Any]) -> RewardScorer:
    """A pickled scorer in another process: the constructor checks that the encoder there is the same."""
    return RewardScorer(reward, encoder, **options)


def _text_form(reward: PessimisticReward, encoder: Encoder, text: str | None) -> str:
    """What the encoder saw of completions when the reward was made."""
    wanted = None if text is None else _validate.one_of(text, "text", TEXT_FORMS)
    if reward.encoder is None:
        raise ValueError("the reward names no encoder; expected one made with encoder=")
    bare = reward.encoder == encoder.fingerprint
    form = wanted or "response" if bare else text_form_of(reward.encoder, encoder)
    if form is None:
        raise ValueError(
            f"the reward was made with encoder {reward.encoder!r}, not with {encoder.name!r} "
            f"({encoder.fingerprint!r}): the features would not mean the same"
        )
    if wanted not in (None, form):
        raise ValueError(f"text is {wanted!r}; expected {form!r}, as when the reward was made")
    if reward.d != encoder.dimension:
        raise ValueError(
            f"the reward is for {reward.d} features, but encoder {encoder.name!r} gives {encoder.dimension}"
        )
    return form


def _key(words: str) -> bytes:
    """Of what `embed` hands to the encoder."""
    return hashlib.sha256(words[:MAX_CHARACTERS].encode("utf-8", "surrogatepass")).digest()


def _seconds(deadline: Any) -> float:
    return min(_validate.number(deadline, "deadline", 0.0), threading.TIMEOUT_MAX)


def _look_at_the_clock(until: float | None) -> None:
    if until is not None and time.monotonic() > until:
        raise TimeoutError("the deadline passed while texts were encoded")


def _require_finite(reward: NDArray[np.float64]) -> None:
    if not np.isfinite(reward).all():
        row = int(np.argmin(np.isfinite(reward)))
        raise ValueError(f"the reward of completion {row} is {reward[row]}; expected a finite number")


def _shown(given: Any) -> str:
    if isinstance(given, str):
        return "empty"
    return "missing" if given is None else f"a {type(given).__name__} without text"


# ----------------------------------------------------------------------------------------- one for a process

_in_this_process: weakref.WeakSet[RewardScorer] = weakref.WeakSet()
_shared: OrderedDict[tuple[Any, ...], RewardScorer] = OrderedDict()
_sharing = threading.Lock()
#: Scorers that `shared_scorer` keeps.
_MOST_SHARED = 4


def shared_scorer(reward: str | os.PathLike[str], encoder: str, **options: Any) -> RewardScorer:
    """The scorer of this process for a file, an encoder and options: loaded by the first who asks.

    Parameters
    ----------
    reward : str or path
        As in `RewardScorer.load`. A file that was replaced is read again.
    encoder : str
    **options
        `radius` and the options of `RewardScorer`.

    Returns
    -------
    RewardScorer

    Raises
    ------
    FileFormatError, ValueError
        As `RewardScorer.load`.
    """
    path = Path(reward).absolute()
    stamp = path.stat() if path.is_file() else None
    identity = None if stamp is None else (stamp.st_ino, stamp.st_mtime_ns, stamp.st_size)
    key = (path, identity, encoder, tuple(sorted(options.items())))
    with _sharing:
        if key not in _shared:
            _shared[key] = RewardScorer.load(path, encoder, **options)
        _shared.move_to_end(key)
        while len(_shared) > _MOST_SHARED:
            _shared.popitem(last=False)
        return _shared[key]


def _after_fork() -> None:
    """The child has none of the parent's threads: start anew rather than wait for them."""
    global _sharing
    _sharing = threading.Lock()
    for scorer in list(_in_this_process):
        scorer._usable = scorer._usable and getattr(scorer.encoder, "fork_safe", True)
        scorer._start()


os.register_at_fork(after_in_child=_after_fork)
