"""Examples in the docstrings of the learning layer run."""

import doctest
import importlib
import pkgutil

import pytest

import dal_learn


@pytest.mark.parametrize("name", sorted(found.name for found in pkgutil.iter_modules(dal_learn.__path__)))
def test_examples_run(name, capsys):
    assert doctest.testmod(importlib.import_module(f"dal_learn.{name}")).failed == 0, capsys.readouterr().out
