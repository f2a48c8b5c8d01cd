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
#: Peers that ask for far more than what is run here needs: installed without what they ask for.
BARE = "bare"
NAMES = sorted(p.stem for p in REQUIREMENTS.glob("*.txt"))


#: Seconds that one step of an installation may take.
LIMIT = 1800


class NotInstalled(Exception):
    """An environment that could not be made, with pip's reason."""


def cache() -> Path:
    """Where environments are kept unless said otherwise."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dal-native" / "peers"


def home_of(name: str, folder: Path | None = None) -> Path:
    """Where a peer's environment is, or would be, for these pins and this Python."""
    parts = [REQUIREMENTS / f"{name}.txt", REQUIREMENTS / BARE / f"{name}.txt"]
    text = b"".join(part.read_bytes() for part in parts if part.exists())
    key = hashlib.sha256(text + sys.version.encode()).hexdigest()[:8]
    return (folder or cache()) / f"{name}-{key}"


def made(name: str, folder: Path | None = None) -> bool:
    """Whether a peer's environment is there already."""
    return (home_of(name, folder) / "finished").exists()


def python_of(name: str, folder: Path | None = None) -> Path:
    """The interpreter of a peer's environment, made if it is not there yet for these pins and this Python.

    Raises
    ------
    NotInstalled
        With the line of pip that says why.
    """
    home = home_of(name, folder)
    python, bare = home / "bin" / "python", REQUIREMENTS / BARE / f"{name}.txt"
    if not made(name, folder):
        shutil.rmtree(home, ignore_errors=True)
        home.parent.mkdir(parents=True, exist_ok=True)
        _run([sys.executable, "-m", "venv", str(home)])
        install = [str(python), "-m", "pip", "install", "--quiet"]
        _run([*install, "--requirement", str(REQUIREMENTS / f"{name}.txt")])
        if bare.exists():
            _run([*install, "--no-deps", "--requirement", str(bare)])
        (home / "finished").touch()
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
