"""How often a training visited each lesion, small ones and large ones, as a figure."""

from __future__ import annotations

import csv
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from medfocal.errors import InputError
from medfocal.report.figures import Drawing, Theme, draw_figure, dress

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class Visit:
    """A row of visits.csv.

    Attributes:
        num_voxels: Of the lesion.
        num_centred: Patches that were centred on it.
        num_shown: Patches that showed all of it.
    """

    num_voxels: int
    num_centred: int
    num_shown: int


def read_visits(path: Path) -> list[Visit]:
    """Read visits.csv of a run folder.

    Raises:
        InputError: It cannot be read.
    """
    names = ("num_voxels", "num_centred", "num_shown")
    try:
        with Path(path).open(encoding="utf-8", newline="") as file:
            rows = csv.DictReader(file)
            if not set(names) <= set(rows.fieldnames or ()):
                message = f"it lacks {', '.join(names)}"
                raise ValueError(message)
            return [Visit(*(int(row[name]) for name in names)) for row in rows]
    except (OSError, UnicodeDecodeError, csv.Error, KeyError, TypeError, ValueError) as error:
        message = f"'{path}' is not a table of visits as training writes it: {error!r}"
        raise InputError(message) from error


def draw_visits(visits: Sequence[Visit]) -> Drawing:
    """Draw the visits of each lesion against its size."""
    words = "No lesion was visited."
    if visits:
        centred = sorted(visit.num_centred for visit in visits)
        words = (
            f"Patches centred on each of {len(visits)} training lesions, against its size: {centred[0]} to "
            f"{centred[-1]}, median {statistics.median(centred):g}."
        )
    return draw_figure((3.7, 2.9), words, lambda figure, theme: plot_visits(figure.add_subplot(), visits, theme))


def plot_visits(axes: Axes, visits: Sequence[Visit], theme: Theme) -> None:
    """Plot the same into axes."""
    from matplotlib.ticker import LogLocator, NullLocator

    dress(axes, theme, "Visits of each lesion", "voxels of the lesion", "patches")
    axes.set_xscale("log")
    size = [visit.num_voxels for visit in visits]
    shown, centred = [visit.num_shown for visit in visits], [visit.num_centred for visit in visits]
    axes.plot(size, shown, "o", color=theme.second, markersize=3.5, fillstyle="none", label="all of it shown")
    axes.plot(size, centred, "o", color=theme.first, markersize=3.5, label="centred on it")
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=9))
    axes.xaxis.set_minor_locator(NullLocator())  # its labels would lie over each other
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.legend(loc="best", fontsize=8, labelcolor=theme.ink, facecolor=theme.paper, edgecolor=theme.grid)
