"""Lets the tests of this folder import the canary beside them and the commands of tests/cli."""

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "cli")]
