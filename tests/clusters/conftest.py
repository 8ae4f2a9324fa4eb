"""Lets the tests of this folder import what lies beside them and in tests/cli, and makes what they share."""

import sys
from pathlib import Path

import pytest

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "cli")]


@pytest.fixture(scope="session")
def dataset(tmp_path_factory):
    """A small set of phantoms: 3 training, 1 validation and 2 test cases."""
    from commands import make_dataset

    return make_dataset(tmp_path_factory.mktemp("dataset"))


@pytest.fixture(scope="session")
def slurm(tmp_path_factory):
    """Environment for the commands of a Slurm that runs while these tests do."""
    from small_slurm import missing, small_slurm

    if reason := missing():
        pytest.skip(reason)
    with small_slurm(tmp_path_factory.mktemp("slurm") / "slurm") as environment:
        yield environment
