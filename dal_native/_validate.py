"""Every argument enters here: one kind of argument, one function, one sentence of refusal."""

from __future__ import annotations

import importlib
import operator
import sys
from types import ModuleType
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

f8 = np.float64
i8 = np.int64

#: Storage types of a pool, by NumPy dtype name; "bfloat16" is stored as its uint16 bits.
STORAGE = ("float64", "float32", "float16", "bfloat16")

#: bfloat16 as this package produces it; a dtype of that name registered by another package is taken too.
_BFLOAT16 = np.dtype([("bfloat16", "<u2")])

#: Types of DLPack devices whose memory the processor can read: CPU, pinned for CUDA and ROCm, managed.
_HOST_DEVICES = (1, 3, 11, 13)
_DEVICES = {2: "CUDA", 4: "OpenCL", 7: "Vulkan", 8: "Metal", 10: "ROCm", 14: "oneAPI", 15: "WebGPU"}

#: Largest rationality: its square and the weight stay far from overflow.
LARGEST_RATIONALITY = 1e100


def require(module: str, extra: str, purpose: str) -> ModuleType:
    """Import an optional module, or say which extra brings it.

    Raises
    ------
    ImportError
        With the command that installs the missing extra.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f"{purpose} needs the package {module.partition('.')[0]!r}: "
            f"install it with: pip install 'dal-native[{extra}]' ({error})"
        ) from error


def is_torch(array: object) -> bool:
    """Whether ``array`` is a tensor of a torch that the caller has imported already."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(array, getattr(torch, "Tensor", ()))


def home(values: object) -> str | None:
    """The module whose arrays `values` is one of, where that is not NumPy: "torch", or a namespace of the
    array API standard; None for NumPy and for what has no namespace (a list, a bare DLPack producer)."""
    if is_torch(values):
        return "torch"
    if isinstance(values, (np.ndarray, np.generic)) or not hasattr(values, "__array_namespace__"):
        return None
    try:
        name = getattr(values.__array_namespace__(), "__name__", "numpy")
    except Exception:  # whatever is wrong with it, `array` will say so
        return None
    known = name != "numpy" and name in sys.modules and hasattr(sys.modules[name], "from_dlpack")
    return name if known else None


def like_input(result: NDArray[Any], module: str | None) -> Any:
    """Hand the result back where the input lives, zero copy, through DLPack: an array of `home`, or NumPy.

    NumPy as well where that library cannot hold the numbers (JAX knows no float64 unless it is told to).
    """
    if module is None or module not in sys.modules:
        return result
    try:
        moved = sys.modules[module].from_dlpack(result)
    except (BufferError, RuntimeError, TypeError, ValueError):
        return result
    return moved if str(moved.dtype).endswith(result.dtype.name) else result


def array(values: Any, name: str) -> NDArray[Any]:
    """Anything NumPy or DLPack understands, as a NumPy array, without a copy where that is possible.

    That is: NumPy arrays, torch tensors, and whatever has ``__array__`` or ``__dlpack__`` (any version) in
    memory that the processor can read; strided and read-only ones as they are. Lists are copied. bfloat16 (of
    torch, JAX, ml_dtypes or any producer) comes back as an array whose dtype is named ``bfloat16`` or as the
    structured one-field dtype ``[("bfloat16", "<u2")]`` that only this package produces.
    """
    if is_torch(values):
        return _from_torch(values, name)
    if isinstance(values, np.ma.MaskedArray):
        raise ValueError(f"{name} is a masked array; expected an array without missing numbers")
    _refuse_devices(values, name)
    try:
        if hasattr(values, "__dlpack__") and not hasattr(values, "__array__"):
            return _from_dlpack(values)
        return np.asarray(values)
    except Exception as error:  # whatever a foreign __array__ raises is bad input to us
        raise ValueError(f"{name} cannot be read as an array: {error}") from error


def _refuse_devices(values: Any, name: str) -> None:
    """Refuse arrays in the memory of a device before anybody tries to read them."""
    if isinstance(values, np.ndarray) or not hasattr(values, "__dlpack_device__"):
        return
    try:
        kind, number = values.__dlpack_device__()
    except Exception as error:
        raise ValueError(f"{name} cannot be read as an array: {error}") from error
    if int(kind) not in _HOST_DEVICES:
        named = _DEVICES.get(int(kind), f"type {int(kind)}")
        raise ValueError(f"{name} lives on device {named}:{int(number)}; expected an array on the CPU")


def _from_dlpack(values: Any) -> NDArray[Any]:
    """The producer's memory; bfloat16, which NumPy does not read, as its bits."""
    try:
        return cast(NDArray[Any], np.from_dlpack(values))
    except (BufferError, RuntimeError):  # which of them, depends on NumPy's version
        from dal_native._dlpack import BFloat16Bits

        try:
            capsule = values.__dlpack__(max_version=(1, 0))
        except TypeError:  # older than DLPack 1
            capsule = values.__dlpack__()
        try:
            bits = np.asarray(BFloat16Bits(capsule, _HOST_DEVICES))
        except BufferError:
            bits = None
        if bits is None:
            raise
        return bits.view(_BFLOAT16)


def _from_torch(tensor: Any, name: str) -> NDArray[Any]:
    torch = sys.modules["torch"]
    if tensor.device.type != "cpu":
        raise ValueError(f"{name} lives on device {tensor.device}; expected a tensor on the CPU")
    tensor = tensor.detach()
    try:
        if tensor.dtype == torch.bfloat16:
            return cast(NDArray[Any], tensor.view(torch.int16).numpy().view(_BFLOAT16))
        return cast(NDArray[Any], tensor.resolve_conj().resolve_neg().numpy())
    except Exception as error:  # sparse, quantised, meta tensors ...
        raise ValueError(f"{name} cannot be read as an array: {error}") from error


def storage_name(dtype: np.dtype[Any]) -> str | None:
    """Name of the storage type of ``dtype``, or None when it is none of `STORAGE`."""
    if dtype == _BFLOAT16 or (dtype.kind == "V" and dtype.names is None and dtype.name == "bfloat16"):
        return "bfloat16"
    name = dtype.newbyteorder("=").name
    return name if name in STORAGE else None


def rows(values: Any, name: str) -> tuple[NDArray[Any], str]:
    """A two-dimensional array of stored rows, C-contiguous, aligned, native byte order, and its storage type.

    float64, float32, float16 and bfloat16 keep their bits (bfloat16 as uint16); integers become float64;
    strided, Fortran-ordered, misaligned and big-endian input is copied. Anything else is refused.
    """
    a = array(values, name)
    if a.ndim != 2:
        raise ValueError(f"{name} has {a.ndim} dimensions (shape {a.shape}); expected 2: rows and features")
    if a.shape[1] == 0:
        raise ValueError(f"{name} has no columns (shape {a.shape}); expected at least one feature")
    stored = storage_name(a.dtype)
    if stored is None:
        if a.dtype.kind not in "iu":
            raise ValueError(f"{name} has dtype {a.dtype}; expected float64, float32, float16 or bfloat16")
        a, stored = a.astype(f8), "float64"
    if stored == "bfloat16":
        a = np.require(a, requirements=["C", "A"]).view(np.uint16)
    native = a.dtype.newbyteorder("=")
    if not (a.flags.c_contiguous and a.flags.aligned and a.dtype.isnative):
        a = np.require(a, dtype=native, requirements=["C", "A"])
    return a, stored


def floats(values: Any, name: str, ndim: int | tuple[int, ...]) -> NDArray[f8]:
    """A finite float64 array, C-contiguous and aligned, of a number of dimensions out of ``ndim``."""
    a = array(values, name)
    allowed = (ndim,) if isinstance(ndim, int) else ndim
    if a.ndim not in allowed:
        expected = " or ".join(str(k) for k in allowed)
        raise ValueError(f"{name} has {a.ndim} dimensions (shape {a.shape}); expected {expected}")
    stored = storage_name(a.dtype)
    if stored == "bfloat16":
        bits = np.ascontiguousarray(a).view(np.uint16)
        a = (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)
    elif stored is None and a.dtype.kind not in "iu" and not (a.dtype.kind == "f" and a.size == 0):
        raise ValueError(f"{name} has dtype {a.dtype}; expected real numbers")
    out = np.require(a, dtype=f8, requirements=["C", "A"])
    finite = np.isfinite(out)
    if not finite.all():
        where = tuple(int(k) for k in np.argwhere(~finite)[0])
        place = "" if not where else f" at {where[0] if len(where) == 1 else where}"
        raise ValueError(f"{name} is not finite{place} ({out[where]}); expected finite numbers")
    return cast(NDArray[f8], out)


def integers(values: Any, name: str, ndim: int | tuple[int, ...]) -> NDArray[i8]:
    """An int64 array, C-contiguous, of the given number of dimensions; bool and float input is refused."""
    a = array(values, name)
    allowed = (ndim,) if isinstance(ndim, int) else ndim
    if a.size == 0 and a.ndim in allowed:
        return np.zeros(a.shape, i8)
    if a.ndim not in allowed:
        expected = " or ".join(str(k) for k in allowed)
        raise ValueError(f"{name} has {a.ndim} dimensions (shape {a.shape}); expected {expected}")
    if a.dtype.kind not in "iu":
        raise ValueError(f"{name} has dtype {a.dtype}; expected integers")
    if a.dtype.kind == "u" and a.size and int(a.max()) > np.iinfo(i8).max:
        raise ValueError(f"{name} holds {int(a.max())}; expected integers that fit in 64 bits")
    return np.require(a, dtype=i8, requirements=["C", "A"])


def length(a: NDArray[Any], size: int, name: str, of: str) -> None:
    """Refuse an array whose first axis is not ``size`` long."""
    if a.shape[0] != size:
        raise ValueError(f"{name} has length {a.shape[0]}; expected {size}, one for each {of}")


def within(a: NDArray[i8], bound: int, name: str, of: str) -> None:
    """Refuse indices outside [0, bound)."""
    if a.size and (int(a.min()) < 0 or int(a.max()) >= bound):
        bad = int(a.min()) if int(a.min()) < 0 else int(a.max())
        raise ValueError(f"{name} holds {bad}; expected {of} between 0 and {bound - 1}")


def whole(value: Any, name: str, least: int) -> int:
    """A whole number of at least ``least``; bool and float are refused."""
    if isinstance(value, (bool, np.bool_)):
        raise ValueError(f"{name} is {value!r}; expected a whole number of at least {least}")
    try:
        number = operator.index(value)
    except TypeError:
        raise ValueError(f"{name} is {value!r}; expected a whole number of at least {least}") from None
    if number < least:
        raise ValueError(f"{name} is {number}; expected a whole number of at least {least}")
    return number


def number(value: Any, name: str, least: float = -np.inf) -> float:
    """A finite real number of at least ``least``."""
    if isinstance(value, (bool, np.bool_, str, bytes)) or np.ndim(value) != 0:
        raise ValueError(f"{name} is {value!r}; expected a finite number")
    try:
        x = float(value)
    except (TypeError, ValueError):
        raise ValueError(f"{name} is {value!r}; expected a finite number") from None
    except OverflowError:  # a whole number of hundreds of digits
        raise ValueError(f"{name} is beyond float64; expected a finite number") from None
    if not np.isfinite(x):
        raise ValueError(f"{name} is {x}; expected a finite number")
    if x < least:
        raise ValueError(f"{name} is {x:g}; expected a number of at least {least:g}")
    return x


def one_of(value: Any, name: str, choices: tuple[str, ...]) -> str:
    """One of a few words."""
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name} is {value!r}; expected one of {', '.join(map(repr, choices))}")
    return value


def category(values: Any, size: int, name: str = "category", of: str = "conversation") -> NDArray[np.int32]:
    """Category of each conversation (or prompt): (size,) int32, from 0; None is one category for all."""
    if values is None:
        return np.zeros(size, np.int32)
    c = integers(values, name, 1)
    length(c, size, name, of)
    within(c, np.iinfo(np.int32).max, name, "categories")
    return np.ascontiguousarray(c, np.int32)


def reward(values: Any, d: int) -> NDArray[f8]:
    """Reward parameter theta: (d,) float64."""
    theta = floats(values, "reward", 1)
    length(theta, d, "reward", "feature")
    return theta


def rationality(values: Any, n_categories: int, name: str = "rationality") -> NDArray[f8]:
    """Rationality of each teacher in each category: (m, C) float64; (m,) holds for every category.

    ``n_categories`` is how many categories the conversations use (largest category + 1).
    """
    beta = floats(values, name, (1, 2))
    if beta.shape[0] == 0:
        raise ValueError(f"{name} has no teachers (shape {beta.shape}); expected at least one")
    if beta.size and float(np.abs(beta).max()) > LARGEST_RATIONALITY:
        raise ValueError(
            f"{name} holds {float(np.abs(beta).max()):g}; expected at most {LARGEST_RATIONALITY:g} in size"
        )
    if beta.ndim == 1:
        return np.ascontiguousarray(np.broadcast_to(beta[:, None], (len(beta), max(1, n_categories))))
    if beta.shape[1] < n_categories:
        raise ValueError(
            f"{name} has {beta.shape[1]} categories (shape {beta.shape}); "
            f"expected at least {n_categories}, as the conversations' category says"
        )
    return beta


def rationality_interval(values: Any, m: int, n_categories: int) -> tuple[NDArray[f8], NDArray[f8]]:
    """Lower and upper ends, (m, C) each, of the size of each rationality; (m, 2) holds for every category."""
    name = "rationality_interval"
    ends = floats(values, name, (2, 3))
    length(ends, m, name, "teacher")
    if ends.shape[-1] != 2 or (ends.ndim == 3 and ends.shape[1] != n_categories):
        raise ValueError(f"{name} has shape {ends.shape}; expected ({m}, 2) or ({m}, {n_categories}, 2)")
    lower, upper = ends[..., 0], ends[..., 1]
    if float(lower.min()) < 0.0:
        raise ValueError(f"{name} holds {float(lower.min()):g}; expected sizes of rationalities, at least 0")
    if float(upper.max()) > LARGEST_RATIONALITY:
        raise ValueError(f"{name} holds {float(upper.max()):g}; expected at most {LARGEST_RATIONALITY:g}")
    if (lower > upper).any():
        at = tuple(int(k) for k in np.argwhere(lower > upper)[0])
        place = at[0] if len(at) == 1 else at
        raise ValueError(f"{name} holds [{lower[at]:g}, {upper[at]:g}] at {place}; expected lower ends first")
    return teacher_table(lower, name, m, n_categories), teacher_table(upper, name, m, n_categories)


def teacher_table(values: Any, name: str, m: int, n_categories: int) -> NDArray[f8]:
    """A number for each teacher, or for each teacher and category: (m, C) float64."""
    a = floats(values, name, (1, 2))
    length(a, m, name, "teacher")
    if a.ndim == 1:
        return np.ascontiguousarray(np.broadcast_to(a[:, None], (m, n_categories)))
    if a.shape[1] != n_categories:
        raise ValueError(f"{name} has shape {a.shape}; expected ({m},) or ({m}, {n_categories})")
    return a


def available(values: Any, m: int, n_categories: int) -> NDArray[np.uint8]:
    """Which teacher answers in which category: (m, C) uint8 of 0 and 1; None is everyone everywhere."""
    if values is None:
        return np.ones((m, n_categories), np.uint8)
    a = array(values, "available")
    if a.dtype.kind == "b":
        a = a.astype(i8)
    a = integers(a, "available", (1, 2))
    if a.size and (int(a.min()) < 0 or int(a.max()) > 1):
        raise ValueError("available holds numbers other than 0 and 1; expected true or false")
    return teacher_table(a, "available", m, n_categories).astype(np.uint8)


def symmetric(values: Any, d: int | None, name: str = "M") -> NDArray[f8]:
    """A symmetric (d, d) float64 matrix; asymmetry up to 1e-6 of the largest entry is averaged out."""
    a = floats(values, name, 2)
    if a.shape[0] != a.shape[1] or (d is not None and a.shape[0] != d):
        expected = "square" if d is None else f"({d}, {d})"
        raise ValueError(f"{name} has shape {a.shape}; expected {expected}")
    if a.shape[0] == 0:
        raise ValueError(f"{name} is empty; expected at least one row")
    if np.array_equal(a, a.T):
        return np.ascontiguousarray(a)
    if float(np.abs(a - a.T).max()) > 1e-6 * float(np.abs(a).max()):
        raise ValueError(f"{name} is not symmetric; expected an information matrix")
    return np.ascontiguousarray(0.5 * a + 0.5 * a.T)


def conversations(values: Any, n: int) -> NDArray[i8] | None:
    """Indices of conversations: (k,) int64 in [0, n), or None for all."""
    if values is None:
        return None
    index = integers(values, "conversations", 1)
    within(index, n, "conversations", "conversations")
    return index


def finite_result(out: NDArray[f8], name: str, index: NDArray[i8] | None = None) -> None:
    """Refuse a result that overflowed, naming the conversation."""
    finite = np.isfinite(out)
    if not finite.all():
        k = int(np.argmin(finite if finite.ndim == 1 else finite.all(axis=1)))
        i = k if index is None else int(index[k])
        raise ValueError(
            f"{name} of conversation {i} is not finite; expected smaller differences or parameters"
        )
