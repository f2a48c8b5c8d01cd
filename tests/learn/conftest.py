"""Fixtures of the learning layer's tests."""

import os
from pathlib import Path

import pytest

DATA_SETS = ("llmbar", "mtbench_human", "pandalm", "tulu_human", "ukp_convarg")


def shared_data():
    """The folder of real preference data: DAL_SHARED_DATA, or ../shared/data beside the repository."""
    named = os.environ.get("DAL_SHARED_DATA")
    folder = Path(named) if named else Path(__file__).resolve().parents[2].parent / "shared" / "data"
    return folder if folder.is_dir() else None


@pytest.fixture(params=DATA_SETS)
def data_set(request):
    """Each real data set in turn; skipped where the data are not at hand."""
    folder = shared_data()
    if folder is None:
        pytest.skip("the shared data are not here: set DAL_SHARED_DATA")
    return folder / request.param


@pytest.fixture
def data_folder():
    """The folder that holds the real data sets; skipped where it is not at hand."""
    folder = shared_data()
    if folder is None:
        pytest.skip("the shared data are not here: set DAL_SHARED_DATA")
    return folder
