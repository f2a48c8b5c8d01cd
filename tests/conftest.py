"""Settings and fixtures of all tests."""

import functools
import os
import subprocess
import sys
import textwrap

import pytest
from hypothesis import HealthCheck, settings

from dal_native import selection

# Child interpreters must find the installed package, as this one does, not the source tree they start in.
os.environ["PYTHONSAFEPATH"] = "1"

settings.register_profile(
    "house", deadline=None, derandomize=True, max_examples=60, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "house"))


@pytest.fixture(params=["reference", "cpu"])
def backend(request):
    """Each backend that a build must have: one that is missing fails, it is not skipped."""
    return request.param


@pytest.fixture
def take_route(monkeypatch):
    """take_route("screened"): selections look at the pool first by that route, where it can serve at all."""

    def take(name):
        problem = functools.partial(selection.SelectionProblem, route=name)
        monkeypatch.setattr(selection, "SelectionProblem", problem)
        monkeypatch.setattr(selection, "_REUSE_FROM", 0)  # short pools too

    return take


@pytest.fixture
def run_python():
    """Run a script in a fresh interpreter; its standard output. A failure shows what it wrote."""

    def run(script, timeout=60, **environment):
        env = {**os.environ, **environment}
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(script)],
            env=env,
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        assert done.returncode == 0, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    return run
