"""Learning curves of settings, and the heat map of two of them."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medfocal.report.figures import Drawing, Theme, draw_figure, dress, write_png
from medfocal.report.summary_runs import Epoch
from medfocal.report.summary_settings import order_of, text_of
from medfocal.report.summary_spread import Row
from medfocal.report.tables import count

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: So many settings have a colour of their own; more could not be told apart.
NUM_COLOURED = 3
MOST_LETTERS = 34
#: Ends of the colours of a heat map, and of the text on them. They are the same on a dark page, so none is a colour of
#: a theme, which would be exchanged there.
PALE, DEEP = (0.91, 0.95, 0.98), (0.02, 0.27, 0.45)
DARK_TEXT, LIGHT_TEXT = "#101010", "#fdfdfd"


def draw_curves(rows: Sequence[Row], at: str) -> list[Drawing]:
    """Draw validation lesion sensitivity and training loss over the epochs; `at` is the rate in words."""
    return [draw_figure((5.6, 3.9), words, partial(_draw_alone, draw=draw, rows=rows)) for draw, words in _panels(at)]


def write_curves_png(path: Path, rows: Sequence[Row]) -> Path:
    """Draw the same into one PNG."""

    def draw(figure: Figure, theme: Theme) -> None:
        for place, (panel, _) in enumerate(_panels(""), start=1):
            panel(figure.add_subplot(1, 2, place), rows, theme)

    return write_png(path, (11.0, 4.0), draw)


def draw_heat_map(keys: Sequence[str], rows: Sequence[Row], at: str) -> Drawing:
    """Draw the mean validation lesion sensitivity for each pair of values of two settings."""
    grid = _Grid(keys, rows)
    title = f"Validation lesion sensitivity at {at}"
    words = f"{title} for {len(grid.down)} values of {keys[0]} and {len(grid.across)} of {keys[1]}. {grid.words}"
    return draw_figure(grid.size, words, partial(grid.draw, title=title))


def write_heat_map_png(path: Path, keys: Sequence[str], rows: Sequence[Row], at: str) -> Path:
    """Draw the same into a PNG."""
    grid = _Grid(keys, rows)
    return write_png(path, grid.size, partial(grid.draw, title=f"Validation lesion sensitivity at {at}"))


Panel = Callable[["Axes", Sequence[Row], Theme], None]


def _panels(at: str) -> tuple[tuple[Panel, str], ...]:
    sensitivity = f"Validation lesion sensitivity at {at} over the epochs"
    band = "mean of the runs of a setting, and from the least to the largest of them"
    return (
        (_draw_sensitivity, f"{sensitivity}: {band}."),
        (_draw_loss, f"Training loss over the epochs: {band}."),
    )


def _draw_alone(figure: Figure, theme: Theme, *, draw: Panel, rows: Sequence[Row]) -> None:
    draw(figure.add_subplot(), rows, theme)


def _draw_sensitivity(axes: Axes, rows: Sequence[Row], theme: Theme) -> None:
    dress(axes, theme, "Validation lesion sensitivity", "epoch", "mean and range of runs")
    _lines(axes, rows, theme, lambda epoch: epoch.lesion_sensitivity)
    axes.set_ylim(-0.03, 1.03)


def _draw_loss(axes: Axes, rows: Sequence[Row], theme: Theme) -> None:
    dress(axes, theme, "Training loss", "epoch", "mean and range of runs")
    lowest = _lines(axes, rows, theme, lambda epoch: epoch.loss)
    if 0 < lowest < math.inf:
        from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(base=10, subs=(1.0, 2.0, 5.0), numticks=12))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())


def _lines(axes: Axes, rows: Sequence[Row], theme: Theme, value: Callable[[Epoch], float]) -> float:
    """Draw a line a setting, the highest ones in colours; give the least value drawn."""
    from matplotlib.ticker import MaxNLocator

    ranked = sorted(
        (row for row in rows if row.setting.runs),
        key=lambda row: (math.isnan(row.primary.mean), -row.primary.mean if row.primary.values else 0.0),
    )
    styles = ((theme.first, "o", "-"), (theme.second, "s", "--"), (theme.third, "^", ":"))
    lowest = math.inf
    for place, row in reversed(list(enumerate(ranked))):
        of_epochs = _by_epoch(row, value)
        if not of_epochs:
            continue
        epochs, groups = list(of_epochs), list(of_epochs.values())
        lowest = min(lowest, *itertools.chain.from_iterable(groups))
        means, lows, highs = ([of(group) for group in groups] for of in (statistics.fmean, min, max))
        if place >= NUM_COLOURED:
            label = "_" if place > NUM_COLOURED else count(len(ranked) - NUM_COLOURED, "other setting")
            axes.plot(epochs, means, color=theme.muted, linewidth=0.9, alpha=0.55, label=label)
            continue
        colour, marker, style = styles[place]
        axes.plot(
            epochs, means, color=colour, linestyle=style, linewidth=1.8, label=_shortened(row.setting.name),
            marker=marker, markersize=4, markevery=max(1, len(epochs) // 12),
        )  # fmt: skip
        if any(len(group) > 1 for group in groups):
            axes.fill_between(epochs, lows, highs, color=colour, alpha=0.16, linewidth=0)
    if not axes.lines:
        axes.text(0.5, 0.5, "no run is finished", transform=axes.transAxes, ha="center", va="center", color=theme.muted)
        return lowest
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    handles, labels = axes.get_legend_handles_labels()
    axes.legend(
        handles[::-1], labels[::-1], loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=1, fontsize=8,
        labelcolor=theme.ink, facecolor=theme.paper, edgecolor=theme.grid,
    )  # fmt: skip
    return lowest


def _by_epoch(row: Row, value: Callable[[Epoch], float]) -> dict[int, list[float]]:
    """What the runs have in each epoch, epochs in which none has it left out."""
    found: dict[int, list[float]] = {}
    for run in row.setting.runs:
        for epoch in run.epochs:
            if math.isfinite(value(epoch)):
                found.setdefault(epoch.number, []).append(value(epoch))
    return dict(sorted(found.items()))


class _Grid:
    """Settings in rows and columns.

    Args:
        keys: What stands down the side and what along the bottom.
        rows: One a pair of values; pairs may be missing.
    """

    def __init__(self, keys: Sequence[str], rows: Sequence[Row]) -> None:
        self.keys = keys
        self.down, self.across = (
            sorted({text_of(v): v for v in (row.setting.values[key] for row in rows)}.values(), key=order_of)
            for key in keys
        )
        self.cells: Mapping[tuple[str, ...], Row] = {
            tuple(text_of(row.setting.values[key]) for key in keys): row for row in rows
        }
        known = [row for row in rows if row.primary.values]
        means = [row.primary.mean for row in known] or [0.0]
        widths = [row.interval[1] - row.interval[0] for row in known if not math.isnan(row.interval[0])]
        # Differences smaller than the interval of one evaluation are not worth a colour.
        half = max(max(means) - min(means), statistics.fmean(widths) if widths else 0.1, 0.01) / 2
        self.low = (max(means) + min(means)) / 2 - half
        self.span = 2 * half

    @property
    def size(self) -> tuple[float, float]:
        """Width and height in inches."""
        names = max(len(_shortened(text_of(value))) for value in self.down)
        return max(4.2, 1.3 + 0.07 * names + 0.95 * len(self.across)), 1.5 + 0.62 * len(self.down)

    @property
    def words(self) -> str:
        """How many cells hold nothing."""
        num_absent = len(self.down) * len(self.across) - len(self.cells)
        num_unfinished = sum(not row.primary.values for row in self.cells.values())
        words = "Colours span at least the interval of one evaluation, so that noise looks alike."
        if num_absent:
            words += f" {count(num_absent, 'pair')} of values {_has(num_absent)} no run (hatched)."
        if num_unfinished:
            words += f" {count(num_unfinished, 'pair')} of values {_has(num_unfinished)} no finished figure (hatched)."
        return words

    def draw(self, figure: Figure, theme: Theme, *, title: str) -> None:
        """Draw it."""
        axes = figure.add_subplot()
        dress(axes, theme, title, self.keys[1], self.keys[0])
        axes.grid(visible=False)
        for i, j in itertools.product(range(len(self.down)), range(len(self.across))):
            row = self.cells.get((text_of(self.down[i]), text_of(self.across[j])))
            self._draw_cell(axes, i, j, row, theme)
        axes.set_xlim(-0.5, len(self.across) - 0.5)
        axes.set_ylim(len(self.down) - 0.5, -0.5)
        for axis, values in ((axes.xaxis, self.across), (axes.yaxis, self.down)):
            axis.set_ticks(range(len(values)), labels=[_shortened(text_of(value)) for value in values])
        axes.tick_params(length=0)
        for spine in axes.spines.values():
            spine.set_visible(False)

    def _draw_cell(self, axes: Axes, i: int, j: int, row: Row | None, theme: Theme) -> None:
        from matplotlib.patches import Rectangle

        place: dict[str, Any] = {"xy": (j - 0.48, i - 0.47), "width": 0.96, "height": 0.94}
        if row is None or not row.primary.values:
            axes.add_patch(Rectangle(**place, facecolor=theme.paper, edgecolor=theme.grid, hatch="////", linewidth=0.6))
            words = "no run" if row is None else "none\nfinished" if not row.setting.runs else "undefined"
            box = {"boxstyle": "round,pad=0.2", "facecolor": theme.paper, "edgecolor": "none"}
            axes.text(j, i, words, ha="center", va="center", fontsize=8, color=theme.muted, bbox=box)
            return
        share = min(1.0, max(0.0, (row.primary.mean - self.low) / self.span))
        colour = tuple(pale + share * (deep - pale) for pale, deep in zip(PALE, DEEP, strict=True))
        axes.add_patch(Rectangle(**place, facecolor=colour, edgecolor="none"))
        ink = LIGHT_TEXT if share > 0.68 else DARK_TEXT
        axes.text(j, i - 0.14, f"{row.primary.mean:.3f}", ha="center", va="center", fontsize=10, color=ink)
        axes.text(j, i + 0.24, f"n={len(row.primary.values)}", ha="center", va="center", fontsize=7.5, color=ink)


def _has(number: int) -> str:
    return "has" if number == 1 else "have"


def _shortened(text: str) -> str:
    return text if len(text) <= MOST_LETTERS else f"{text[: MOST_LETTERS - 1]}\u2026"
