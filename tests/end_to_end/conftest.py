"""Lets the tests of this folder import what is beside them and tests/cli, and makes the dataset that they share."""

import sys
from pathlib import Path

import pytest

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "cli")]


@pytest.fixture(scope="session")
def dataset(tmp_path_factory):
    """A small set of phantoms: 3 training, 1 validation and 2 test cases."""
    from commands import make_dataset

    return make_dataset(tmp_path_factory.mktemp("dataset"))
