"""Examples in the docstrings of the learning layer run."""

import doctest
import importlib
import pkgutil

import pytest

import dal_learn

MODULES = sorted(found.name for found in pkgutil.walk_packages(dal_learn.__path__, "dal_learn."))


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name, capsys):
    if name == "dal_learn.integrations.torch_head":
        pytest.importorskip("torch")
    assert doctest.testmod(importlib.import_module(name)).failed == 0, capsys.readouterr().out
