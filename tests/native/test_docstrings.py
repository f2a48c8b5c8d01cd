"""Examples of docstrings run; every public function and class has one, in NumPy style."""

import doctest
import importlib
import inspect

import pytest

import dal_native as dn

MODULES = [
    "_dispatch",
    "_reuse",
    "_validate",
    "information",
    "nuisance",
    "operations",
    "pool",
    "selection",
    "testing",
]


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name):
    module = importlib.import_module(f"dal_native.{name}")
    result = doctest.testmod(module)
    assert result.failed == 0
    assert name == "_validate" or result.attempted > 0


def public():
    for name in dn.__all__:
        item = getattr(dn, name)
        if inspect.isfunction(item):
            yield name, item
        if inspect.isclass(item):
            for method, function in vars(item).items():
                function = getattr(function, "__func__", function)
                if inspect.isfunction(function) and not method.startswith("_"):
                    yield f"{name}.{method}", function


@pytest.mark.parametrize(("name", "function"), list(public()))
def test_public_functions_are_documented(name, function):
    text = inspect.getdoc(function) or ""
    assert text, f"{name} has no docstring"
    if name not in ("single_threaded_blas", "Pool.blocks"):
        assert ">>>" in text, f"{name} has no example"
    parameters = [p for p in inspect.signature(function).parameters if p not in ("self", "cls")]
    if "Parameters\n---" in text:
        described = text[: text.find("Examples\n---")]
        missing = [p for p in parameters if p not in described and p not in ("backend", "threads", "options")]
        assert missing == [], f"{name} does not describe {missing}"


def test_everything_public_exists():
    for name in dn.__all__:
        assert getattr(dn, name).__doc__
