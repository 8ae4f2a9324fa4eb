"""Show a run in TensorBoard or MLflow, from files on this machine only."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["NoTracking"]


class NoTracking:
    """Track nothing: `metrics.csv` and `curves.png` are the record."""

    def start(self, folder: Path, *, name: str, configuration: Mapping[str, Any], first_epoch: int) -> None:
        """Do nothing."""

    def row(self, row: Mapping[str, Any]) -> None:
        """Do nothing."""

    def finish(self, status: str) -> None:
        """Do nothing."""
