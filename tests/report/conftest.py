"""Lets the tests of this folder import what lies beside them, and the lesion cases that the matcher is tested with."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "evaluate"))
sys.path.insert(0, str(Path(__file__).parent))
