"""Lets the tests of this folder import the commands beside them, and makes the dataset that they share."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def dataset(tmp_path_factory):
    """A small set of phantoms: 3 training, 1 validation and 2 test cases."""
    from commands import make_dataset

    return make_dataset(tmp_path_factory.mktemp("dataset"))
