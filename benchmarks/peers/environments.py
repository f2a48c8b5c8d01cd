"""An environment for each peer: a virtual environment in a cache folder, never the project's own.

usage: python -m benchmarks.peers.environments [NAME ...]     (default: all; prints where each is, or why not)
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

REQUIREMENTS = Path(__file__).parent / "requirements"
NAMES = sorted(p.stem for p in REQUIREMENTS.glob("*.txt"))


#: Seconds that one step of an installation may take.
LIMIT = 1800


class NotInstalled(Exception):
    """An environment that could not be made, with pip's reason."""


def cache() -> Path:
    """Where environments are kept unless said otherwise."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dal-native" / "peers"


def python_of(name: str, folder: Path | None = None) -> Path:
    """The interpreter of a peer's environment, made if it is not there yet for these pins and this Python.

    Raises
    ------
    NotInstalled
        With the line of pip that says why.
    """
    pins = REQUIREMENTS / f"{name}.txt"
    key = hashlib.sha256(pins.read_bytes() + sys.version.encode()).hexdigest()[:8]
    home = (folder or cache()) / f"{name}-{key}"
    python, finished = home / "bin" / "python", home / "finished"
    if not finished.exists():
        shutil.rmtree(home, ignore_errors=True)
        home.parent.mkdir(parents=True, exist_ok=True)
        _run([sys.executable, "-m", "venv", str(home)])
        _run([str(python), "-m", "pip", "install", "--quiet", "--requirement", str(pins)])
        finished.touch()
    return python


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT)
    except subprocess.TimeoutExpired:
        raise NotInstalled(f"not finished within {LIMIT} s") from None
    if done.returncode:
        lines = [line.strip() for line in (done.stderr + done.stdout).splitlines() if line.strip()]
        errors = [line for line in lines if "error" in line.lower()]
        raise NotInstalled((errors or lines or [f"exit status {done.returncode}"])[0])


if __name__ == "__main__":
    for wanted in sys.argv[1:] or NAMES:
        try:
            print(f"{wanted}: {python_of(wanted)}")
        except NotInstalled as reason:
            print(f"{wanted}: not installed: {reason}")
