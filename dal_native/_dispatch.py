"""Which backend serves an operation, with how many threads, and BLAS held at one thread meanwhile."""

from __future__ import annotations

import importlib
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType, TracebackType
from typing import Any

from dal_native import _validate

__version__ = "0.1.0"

#: The order in which "auto" asks. To register a backend, add its name here and a module of that name in
#: _backends.
AUTO = ("cpu", "reference")
#: Names kept for backends that this version does not have.
RESERVED = ("numba", "cuda")


#: What is asked for beyond this is cut: results have the same bits for any number.
MOST_THREADS = 1024


class BackendConfigurationError(ValueError):
    """A backend was named, or configured by the environment, in a way that cannot be served."""


_chosen: str | None = None  # by use_backend
_threads: int | None = None  # by set_threads
_failures: dict[str, str] = {}  # backend -> why its import failed


def load(name: str) -> ModuleType:
    """The backend module, or ImportError with the reason; a wrong configuration raises as itself."""
    if name in _failures:
        raise ImportError(_failures[name])
    try:
        return importlib.import_module(f"dal_native._backends.{name}")
    except ImportError as error:
        _failures[name] = str(error)
        raise


def _named(name: object, source: str) -> str:
    if name == "auto" or name in AUTO:
        return str(name)
    if name in RESERVED:
        raise BackendConfigurationError(
            f"{source} is {name!r}, which this version does not have; expected {_choices()}"
        )
    raise BackendConfigurationError(f"{source} is {name!r}; expected {_choices()}")


def _choices() -> str:
    return "one of " + ", ".join(repr(k) for k in ("auto", *AUTO))


def chosen_backend() -> str:
    """The backend in force: `use_backend`, else DAL_NATIVE_BACKEND, else "auto"."""
    if _chosen is not None:
        return _chosen
    return _named(os.environ.get("DAL_NATIVE_BACKEND") or "auto", "environment variable DAL_NATIVE_BACKEND")


def find(operation: str, backend: str | None = "auto") -> Callable[..., Any]:
    """The function of that name in the backend asked for.

    Only "auto" passes over a backend that cannot be imported or lacks the operation; one that is named
    raises.
    """
    name = _named("auto" if backend is None else backend, "backend")
    if name == "auto":
        name = chosen_backend()
    if name != "auto":
        try:
            found = getattr(load(name), operation, None)
        except ImportError as error:
            raise BackendConfigurationError(f"backend {name!r} is not available: {error}") from error
        if found is None:
            raise BackendConfigurationError(
                f"backend {name!r} has no operation {operation!r}; expected 'auto'"
            )
        return found  # type: ignore[no-any-return]
    for candidate in AUTO:
        try:
            found = getattr(load(candidate), operation, None)
        except ImportError:
            continue
        if found is not None:
            return found  # type: ignore[no-any-return]
    raise BackendConfigurationError(f"no backend has the operation {operation!r}")


class use_backend:
    """Choose the backend for the whole process, at once; as a context manager, until the block ends.

    Parameters
    ----------
    name : {"auto", "cpu", "reference"}
        A named backend must be able to serve; "auto" takes the fastest one that can.

    Raises
    ------
    BackendConfigurationError
        (A ValueError) for an unknown name, or one that cannot be loaded, with the reason.

    Examples
    --------
    >>> import dal_native as dn
    >>> with dn.use_backend("reference"):
    ...     dn.capabilities()["auto"]
    'reference'
    """

    def __init__(self, name: str) -> None:
        global _chosen
        _named(name, "backend")
        if name != "auto":
            try:
                load(name)
            except ImportError as error:
                raise BackendConfigurationError(f"backend {name!r} is not available: {error}") from error
        self._before = _chosen
        _chosen = name

    def __enter__(self) -> use_backend:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        global _chosen
        _chosen = self._before


def set_threads(threads: int | None) -> None:
    """Set how many threads operations use from now on; None returns to the environment's choice.

    The order of precedence is: the argument ``threads``, `set_threads`, DAL_NATIVE_NUM_THREADS,
    OMP_NUM_THREADS, the CPUs this process may run on. Results have the same bits for any number.

    Examples
    --------
    >>> import dal_native as dn
    >>> dn.set_threads(1); dn.capabilities()["threads"]
    1
    >>> dn.set_threads(None)
    """
    global _threads
    _threads = None if threads is None else _validate.whole(threads, "threads", 1)


def threads(argument: int | None = None) -> int:
    """How many threads an operation should use, at most `MOST_THREADS`; see `set_threads` for the order."""
    return min(_threads_wanted(argument), MOST_THREADS)


def _threads_wanted(argument: int | None) -> int:
    if argument is not None:
        return _validate.whole(argument, "threads", 1)
    if _threads is not None:
        return _threads
    for variable in ("DAL_NATIVE_NUM_THREADS", "OMP_NUM_THREADS"):
        text = os.environ.get(variable, "").strip()
        if not text:
            continue
        first = text.split(",")[0]  # OMP_NUM_THREADS may list one number per nesting level
        if first.isdigit() and int(first) > 0:
            return int(first)
        raise BackendConfigurationError(
            f"environment variable {variable} is {text!r}; expected a whole number of at least 1"
        )
    return usable_cpus()


def usable_cpus() -> int:
    """How many CPUs this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def capabilities() -> dict[str, Any]:
    """What this installation can do, and why what is missing is missing.

    Returns
    -------
    dict
        ``version``; ``backends``: name -> {"available", "reason"}; ``auto``: the backend in force;
        ``threads``; ``cpus``; ``simd``: level in use and levels present (None without the compiled backend);
        ``cuda``.

    Examples
    --------
    >>> import dal_native as dn
    >>> dn.capabilities()["backends"]["reference"]["available"]
    True
    """
    backends: dict[str, dict[str, Any]] = {}
    simd: Any = None
    for name in AUTO:
        try:
            module = load(name)
        except (ImportError, BackendConfigurationError) as error:
            backends[name] = {"available": False, "reason": str(error)}
            continue
        backends[name] = {"available": True, "reason": ""}
        describe = getattr(module, "capabilities", None)
        if describe is not None:
            details = describe()
            backends[name].update(details)
            simd = details.get("simd", simd)
    for name in RESERVED:
        backends[name] = {"available": False, "reason": "this version does not have it"}
    chosen = chosen_backend()
    usable = [name for name in AUTO if backends[name]["available"]]
    return {
        "version": __version__,
        "backends": backends,
        "auto": usable[0] if chosen == "auto" else chosen,
        "threads": threads(),
        "cpus": usable_cpus(),
        "simd": simd,
        "cuda": backends["cuda"],
    }


_Library = tuple[Callable[[], int], Callable[[int], object]]  # how to read and to set its number of threads


def _blas_libraries() -> tuple[list[_Library], list[_Library]]:
    """The BLAS libraries of this process: those with one setting for all threads, those with one for each.

    threadpoolctl finds them. Its own limits are no help here: since 3.7 they do nothing while another Python
    thread holds one, and only the thread that set a limit can lift it.
    """
    import scipy.linalg.cython_blas  # noqa: F401 - SciPy's own BLAS must be loaded to be found
    from threadpoolctl import ThreadpoolController

    shared: list[_Library] = []
    own: list[_Library] = []
    for library in ThreadpoolController().select(user_api="blas").lib_controllers:
        openmp = getattr(library, "threading_layer", "") == "openmp"
        if library.internal_api == "mkl" or (library.internal_api == "openblas" and openmp):
            own.append((library.get_num_threads, library.set_num_threads))
        else:
            set_threads = _openblas_setter(library.dynlib) or library.set_num_threads
            shared.append((library.get_num_threads, set_threads))
    return shared, own


def _openblas_setter(library: Any) -> Callable[[int], object] | None:
    for prefix in ("", "scipy_"):
        for suffix in ("", "64_", "_64"):
            found = getattr(library, f"{prefix}openblas_set_num_threads{suffix}", None)
            if found is not None:
                return found  # type: ignore[no-any-return]
    return None


class _BlasGuard:
    """Holds every BLAS at one thread while at least one caller is inside; any thread may enter and nest."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0  # threads inside
        self._this_thread = threading.local()  # .depth, .saved
        self._shared: list[_Library] | None = None
        self._own: list[_Library] = []
        self._saved: list[int] = []

    def enter(self) -> None:
        me = self._this_thread
        me.depth = getattr(me, "depth", 0) + 1
        if me.depth > 1:
            return
        with self._lock:
            if self._shared is None:  # finding the libraries takes milliseconds: once
                self._shared, self._own = _blas_libraries()
            self._inside += 1
            if self._inside == 1:
                self._saved = _set_to_one(self._shared)
        me.saved = _set_to_one(self._own)

    def leave(self) -> None:
        me = self._this_thread
        me.depth -= 1
        if me.depth > 0:
            return
        _restore(self._own, me.saved)
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                _restore(self._shared or [], self._saved)

    def after_fork(self) -> None:
        """In a forked child only this thread lives: whoever held the lock or the limit is gone."""
        self._lock = threading.Lock()
        inside, self._inside = self._inside, int(getattr(self._this_thread, "depth", 0) > 0)
        if inside and not self._inside:
            _restore(self._shared or [], self._saved)


def _set_to_one(libraries: list[_Library]) -> list[int]:
    before = [get() for get, _ in libraries]
    for _, set_threads in libraries:
        set_threads(1)
    return before


def _restore(libraries: list[_Library], before: list[int]) -> None:
    for (_, set_threads), threads in zip(libraries, before, strict=True):
        set_threads(threads)


_blas = _BlasGuard()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_blas.after_fork)


@contextmanager
def single_threaded_blas() -> Iterator[None]:
    """Hold BLAS at one thread inside the block, so that results have the same bits for any thread setting.

    Re-entrant and counted over all Python threads: the last one out restores the previous setting.
    """
    _blas.enter()
    try:
        yield
    finally:
        _blas.leave()
