"""Lets the tests of this folder import the commands beside them, and makes the dataset that they share."""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def dataset(tmp_path_factory):
    """A small set of phantoms: 3 training, 1 validation and 2 test cases."""
    from commands import make_dataset

    return make_dataset(tmp_path_factory.mktemp("dataset"))


@pytest.fixture(scope="session")
def bare(dataset):
    """The same without validation and test: a run of it has nothing to report and is over in a moment."""
    path = dataset.with_name("bare.json")
    path.write_text(json.dumps(json.loads(dataset.read_text("utf-8")) | {"validation": [], "test": []}))
    return path
