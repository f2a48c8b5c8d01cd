"""Fixtures of the native tests."""

import pytest

from dal_native import selection


@pytest.fixture(autouse=True)
def small_pools_are_remembered(monkeypatch):
    """Selectors use what they know on pools far shorter than those where that pays."""
    monkeypatch.setattr(selection, "_REUSE_FROM", 10)
