"""What the reader of a format hands over."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from medfocal.data.manifest import Case, LabelScheme


@dataclass(frozen=True)
class FoundDataset:
    """A dataset as its place tells of it, before settings and the disk are held against it.

    Attributes:
        path: File or folder.
        name: Of the dataset.
        channels: In order.
        cases: `patient` is "" where the place names none.
        scheme: None where the place does not say what label values mean.
        faults: Of entries that could not become cases.
        note: What else was understood, such as "labels *_mask".
    """

    path: Path
    name: str
    channels: tuple[str, ...]
    cases: Sequence[Case]
    scheme: LabelScheme | None = None
    faults: Sequence[str] = field(default_factory=tuple)
    note: str = ""
