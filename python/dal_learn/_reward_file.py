"""A fitted reward as one safetensors file: float64 tensors, and all else as one JSON text beside them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ._files import FileFormatError, atomic_write

__all__ = ["HEAD", "PESSIMISTIC", "REWARD", "Form", "form_of", "read_tensors", "write_tensors"]


class Form(NamedTuple):
    """What a file holds, and the version of how."""

    name: str
    version: int


#: A fitted model; a reward with its lower bound.
REWARD, PESSIMISTIC = Form("dal-native/reward", 2), Form("dal-native/pessimistic-reward", 1)
#: The largest file that is read: an information matrix of 8,192 features and a few small arrays.
LARGEST = 2**30
#: The tensor that holds the reward, (1, d): the name and shape of a linear head in the usual reward models.
HEAD = "score.weight"
_KEY = "dal-native"


def write_tensors(
    path: str | os.PathLike[str],
    tensors: dict[str, NDArray[Any]],
    facts: dict[str, Any],
    form: Form = REWARD,
) -> None:
    """Write tensors and facts, atomically.

    Parameters
    ----------
    path : str or path
    tensors : dict of ndarray
        Stored as float64.
    facts : dict
        What JSON can hold; format and version are added.
    form : Form
        Of which format and version the file is.

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

    text = json.dumps(
        {"format": form.name, "version": form.version, **facts}, allow_nan=False, sort_keys=True
    )
    arrays = {name: np.ascontiguousarray(array, np.float64) for name, array in tensors.items()}
    with atomic_write(path, "wb") as file:
        file.write(save(arrays, metadata={_KEY: text}))


def read_tensors(
    path: str | os.PathLike[str], form: Form = REWARD
) -> tuple[dict[str, NDArray[np.float64]], dict[str, Any]]:
    """Read back what `write_tensors` wrote; anything else is refused, nothing in it is ever run.

    Parameters
    ----------
    path : str or path
    form : Form
        The only format taken, and its newest version.

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

    _check_size(path)
    try:
        with safe_open(path, framework="numpy") as file:
            facts = _facts(path, (file.metadata() or {}).get(_KEY))
            _check_form(path, facts, form)
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


def form_of(path: str | os.PathLike[str]) -> str:
    """Name of the format that a file of this package says it has.

    Raises
    ------
    FileFormatError
        Not a safetensors file, or not of this package.

    Examples
    --------
    >>> import tempfile, pathlib
    >>> target = pathlib.Path(tempfile.mkdtemp()) / "a.safetensors"
    >>> write_tensors(target, {"score.weight": np.ones((1, 2))}, {})
    >>> form_of(target)
    'dal-native/reward'
    """
    from safetensors import SafetensorError, safe_open

    _check_size(path)
    try:
        with safe_open(path, framework="numpy") as file:
            return str(_facts(path, (file.metadata() or {}).get(_KEY)).get("format"))
    except (SafetensorError, OSError) as error:
        raise FileFormatError(path, None, f"not a safetensors file ({error})") from None


def _check_size(path: str | os.PathLike[str]) -> None:
    name = Path(path)
    if not name.is_file():
        raise FileFormatError(path, None, "no such file")
    if name.stat().st_size > LARGEST:
        raise FileFormatError(path, None, f"larger than {LARGEST} bytes, expected a reward head")


def _facts(path: str | os.PathLike[str], text: str | None) -> dict[str, Any]:
    if text is None:
        raise FileFormatError(path, None, "no reward head: its metadata does not come from this package")
    try:
        facts = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise FileFormatError(path, None, f"metadata is not JSON ({error})") from None
    if not isinstance(facts, dict):
        raise FileFormatError(path, None, "metadata is not a JSON object, expected a reward head")
    return facts


def _check_form(path: str | os.PathLike[str], facts: dict[str, Any], form: Form) -> None:
    if facts.get("format") != form.name:
        found = facts.get("format")
        raise FileFormatError(
            path, None, f"metadata names no {form.name!r} but {found!r}, expected a reward head"
        )
    version = facts.get("version")
    if isinstance(version, bool) or not isinstance(version, int) or version < 1:
        raise FileFormatError(path, None, f"version {version!r} is not a whole number of 1 or more")
    if version > form.version:
        raise FileFormatError(
            path, None, f"written by a newer version (format {version}), expected at most {form.version}"
        )
    if version < form.version:
        raise FileFormatError(
            path, None, f"written by an older version (format {version}), expected {form.version}: fit again"
        )


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not a JSON number")
