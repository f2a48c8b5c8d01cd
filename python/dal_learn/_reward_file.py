"""A fitted reward as one safetensors file: float64 tensors, and all else as one JSON text beside them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ._files import FileFormatError, atomic_write

__all__ = ["HEAD", "read_tensors", "write_tensors"]

FORMAT, VERSION = "dal-native/reward", 2
#: The largest file that is read: an information matrix of 8,192 features and a few small arrays.
LARGEST = 2**30
#: The tensor that holds the reward, (1, d): the name and shape of a linear head in the usual reward models.
HEAD = "score.weight"
_KEY = "dal-native"


def write_tensors(
    path: str | os.PathLike[str], tensors: dict[str, NDArray[Any]], facts: dict[str, Any]
) -> None:
    """Write tensors and facts, atomically.

    Parameters
    ----------
    path : str or path
    tensors : dict of ndarray
        Stored as float64.
    facts : dict
        What JSON can hold; format and version are added.

    Raises
    ------
    ValueError
        A fact is NaN or infinite.

    Examples
    --------
    >>> import tempfile, pathlib
    >>> target = pathlib.Path(tempfile.mkdtemp()) / "a.safetensors"
    >>> write_tensors(target, {"score.weight": np.ones((1, 2))}, {"d": 2})
    >>> read_tensors(target)[1]["d"]
    2
    """
    from safetensors.numpy import save

    text = json.dumps({"format": FORMAT, "version": VERSION, **facts}, allow_nan=False, sort_keys=True)
    arrays = {name: np.ascontiguousarray(array, np.float64) for name, array in tensors.items()}
    with atomic_write(path, "wb") as file:
        file.write(save(arrays, metadata={_KEY: text}))


def read_tensors(path: str | os.PathLike[str]) -> tuple[dict[str, NDArray[np.float64]], dict[str, Any]]:
    """Read back what `write_tensors` wrote; anything else is refused, nothing in it is ever run.

    Parameters
    ----------
    path : str or path

    Returns
    -------
    tensors : dict of ndarray of float64
        All finite.
    facts : dict

    Raises
    ------
    FileFormatError
        Not such a file, damaged, too large, or written by another version.

    Examples
    --------
    >>> import tempfile, pathlib
    >>> target = pathlib.Path(tempfile.mkdtemp()) / "a.safetensors"
    >>> _ = target.write_bytes(b"garbage!")
    >>> try:
    ...     read_tensors(target)
    ... except FileFormatError as error:
    ...     "not a safetensors file" in str(error)
    True
    """
    from safetensors import SafetensorError, safe_open

    name = Path(path)
    if not name.is_file():
        raise FileFormatError(path, None, "no such file")
    if name.stat().st_size > LARGEST:
        raise FileFormatError(path, None, f"larger than {LARGEST} bytes, expected a reward head")
    try:
        with safe_open(name, framework="numpy") as file:
            metadata = file.metadata() or {}
            facts = _facts(path, metadata.get(_KEY))
            tensors = {}
            for key in file.keys():  # noqa: SIM118  (the handle is no mapping)
                if file.get_slice(key).get_dtype() != "F64":
                    raise FileFormatError(path, None, f"tensor {key!r} is not float64")
                tensors[key] = file.get_tensor(key)
    except (SafetensorError, OSError) as error:
        raise FileFormatError(path, None, f"not a safetensors file ({error})") from None
    for key, array in tensors.items():
        if not np.isfinite(array).all():
            raise FileFormatError(path, None, f"tensor {key!r} holds NaN or infinity")
    return tensors, facts


def _facts(path: str | os.PathLike[str], text: str | None) -> dict[str, Any]:
    if text is None:
        raise FileFormatError(path, None, "no reward head: its metadata does not come from this package")
    try:
        facts = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise FileFormatError(path, None, f"metadata is not JSON ({error})") from None
    if not isinstance(facts, dict) or facts.get("format") != FORMAT:
        raise FileFormatError(path, None, f"metadata names no {FORMAT!r}, expected a reward head")
    version = facts.get("version")
    if isinstance(version, bool) or not isinstance(version, int) or version < 1:
        raise FileFormatError(path, None, f"version {version!r} is not a whole number of 1 or more")
    if version > VERSION:
        raise FileFormatError(
            path, None, f"written by a newer version (format {version}), expected at most {VERSION}"
        )
    if version < VERSION:
        raise FileFormatError(
            path, None, f"written by an older version (format {version}), expected {VERSION}: fit again"
        )
    return facts


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not a JSON number")
