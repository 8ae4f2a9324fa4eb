"""FROC and training curves, drawn on figures of their own: no pyplot, no state shared with a caller's plots."""

from __future__ import annotations

import base64
import csv
import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from medfocal.errors import InputError
from medfocal.files import atomic_write

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Metrics = Sequence[Mapping[str, float]]
DrawMetrics = Callable[["Axes", Metrics, "Theme"], None]

# Of `medfocal.train.position.METRICS`, not imported because that needs torch; a test holds the two together.
COLUMNS = (
    "epoch",
    "step",
    "loss",
    "learning_rate",
    "seconds",
    "lesion_sensitivity",
    "cpm",
    "threshold",
    "voxel_dice",
    "num_lesions",
)
# Columns that an older metrics.csv lacks; what they would show is left out.
NEWER_COLUMNS = ("num_skipped", "lesion_sensitivity_low", "lesion_sensitivity_high")
PNG_DOTS_PER_INCH = 192  # twice the 96 of a screen


@dataclass(frozen=True)
class Theme:
    """Colours of a figure; those of the data follow the palette of Okabe and Ito, for colour-blind readers."""

    ink: str
    muted: str
    grid: str
    paper: str
    first: str
    second: str
    third: str


LIGHT = Theme("#1b1f24", "#59636e", "#dfe3e8", "#ffffff", "#0072b2", "#b35300", "#00795a")
DARK = Theme("#e6e9ed", "#9aa4af", "#343b44", "#14171b", "#56b4e9", "#e69f00", "#2fc79a")


@dataclass(frozen=True)
class Drawing:
    """A figure as data URIs of SVG for a light and for a dark page, and what it shows in words."""

    light: str
    dark: str
    width: int
    height: int
    words: str


def read_metrics(path: Path) -> list[dict[str, float]]:
    """Read the metrics.csv of a training run; an empty cell (an epoch without validation) becomes NaN.

    So does every cell of a column in `NEWER_COLUMNS` that the file lacks.

    Raises:
        InputError: The file is missing, lacks a column or holds something that is not a number.
    """
    try:
        with Path(path).open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            rows = list(reader)
            columns = reader.fieldnames or []
    except (OSError, UnicodeDecodeError) as error:
        message = f"cannot read the training metrics '{path}': {error}"
        raise InputError(message) from error
    missing = [name for name in COLUMNS if name not in columns]
    if missing:
        message = f"'{path}' has no column {', '.join(missing)}; found {', '.join(columns) or 'none'}."
        raise InputError(message)
    return [
        {
            name: read_cell(row.get(name), f"'{path}', row {number}, column {name}")
            for name in (*COLUMNS, *NEWER_COLUMNS)
        }
        for number, row in enumerate(rows, start=1)
    ]


def read_cell(text: str | None, where: str) -> float:
    """A number of a CSV; NaN where there is none.

    Raises:
        InputError: It is something else, with the place that `where` names.
    """
    if not text:
        return math.nan
    try:
        return float(text)
    except ValueError as error:
        message = f"{where}: '{text}' is not a number."
        raise InputError(message) from error


def best_epoch(metrics: Metrics) -> Mapping[str, float] | None:
    """Find the epoch that training keeps: of highest validation sensitivity, then of highest CPM, then the latest.

    Returns:
        Its row, or None where no epoch was validated.
    """
    validated = [row for row in metrics if math.isfinite(row["lesion_sensitivity"])]
    if not validated:
        return None
    return max(validated, key=lambda row: (row["lesion_sensitivity"], _or_least(row["cpm"]), row["epoch"]))


def _or_least(value: float) -> float:
    return value if math.isfinite(value) else -math.inf


def write_curves(metrics_csv: Path, path: Path) -> Path:
    """Draw loss, learning rate and validation of a training run into one PNG.

    Args:
        metrics_csv: What `train` writes, one row per epoch.
        path: Of the PNG, replaced at once when it is complete.

    Returns:
        `path`.

    Raises:
        InputError: `metrics_csv` cannot be used.
    """
    metrics = read_metrics(metrics_csv)

    def draw_all(figure: Figure, theme: Theme) -> None:
        for position, draw in enumerate(TRAINING, start=1):
            draw(figure.add_subplot(1, 3, position), metrics, theme)

    return write_png(path, (11.0, 3.4), draw_all)


def write_png(path: Path, size: tuple[float, float], draw: Callable[[Figure, Theme], None]) -> Path:
    """Draw on white into a PNG, which takes its name once it is complete.

    Args:
        path: Of the file.
        size: Inches.
        draw: Fills a figure.

    Returns:
        `path`.
    """
    figure = _figure(size, LIGHT)
    draw(figure, LIGHT)
    with atomic_write(Path(path), "wb") as file:
        figure.savefig(file, format="png", dpi=PNG_DOTS_PER_INCH)
    return Path(path)


def draw_training(metrics: Metrics) -> list[Drawing]:
    """Draw loss, learning rate and validation, a figure each."""
    return [
        _drawing((3.7, 2.9), words, partial(_draw_metrics, draw=draw, metrics=metrics))
        for draw, words in zip(TRAINING, _training_words(metrics), strict=True)
    ]


def _draw_metrics(axes: Axes, theme: Theme, *, draw: DrawMetrics, metrics: Metrics) -> None:
    draw(axes, metrics, theme)


def draw_froc(summary: Mapping[str, Any]) -> Drawing:
    """Draw the FROC curve of an evaluation with its band, its points, and the operating threshold with its intervals.

    Args:
        summary: What `evaluation.json` holds.
    """
    sensitivity, false_positives = summary["lesion_sensitivity"], summary["false_positives_per_case"]
    words = "FROC curve: lesion sensitivity against false candidates per case."
    if sensitivity["value"] is not None and false_positives["value"] is not None:
        words += (
            f" At the operating threshold the sensitivity is {sensitivity['value']:.2f}"
            f" at {false_positives['value']:.2f} false candidates per case."
        )
    words += " The table of the points holds the same numbers."
    return _drawing((5.6, 4.1), words, lambda axes, theme: _froc(axes, summary, theme))


def _drawing(size: tuple[float, float], words: str, draw: Callable[[Axes, Theme], None]) -> Drawing:
    return draw_figure(size, words, lambda figure, theme: draw(figure.add_subplot(), theme))


def draw_figure(size: tuple[float, float], words: str, draw: Callable[[Figure, Theme], None]) -> Drawing:
    """Draw a figure of a size in inches for a light and for a dark page; `words` say what it shows.

    It is drawn once, in the colours of the light page; the dark one is the same with its colours exchanged.
    """
    figure = _figure(size, LIGHT)
    draw(figure, LIGHT)
    light = _svg(figure)
    exchanged = dict(zip(astuple(LIGHT), astuple(DARK), strict=True))
    dark = re.sub("|".join(exchanged), lambda found: exchanged[found[0]], light)
    return Drawing(_data_uri(light), _data_uri(dark), round(size[0] * 96), round(size[1] * 96), words)


def _figure(size: tuple[float, float], theme: Theme) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained", facecolor=theme.paper)
    FigureCanvasAgg(figure)
    return figure


def _svg(figure: Figure) -> str:
    import matplotlib as mpl

    buffer = io.BytesIO()
    # Within this block only: the same figure gives the same bytes, and the page's background shines through.
    with mpl.rc_context({"svg.hashsalt": "medfocal", "svg.fonttype": "path"}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return buffer.getvalue().decode("utf-8")


def _data_uri(svg: str) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode("ascii")


def dress(axes: Axes, theme: Theme, title: str, x_label: str, y_label: str) -> None:
    """Give axes the looks of the report."""
    axes.set_facecolor(theme.paper)
    axes.set_title(title, loc="left", fontsize=10, fontweight="bold", color=theme.ink)
    axes.set_xlabel(x_label, fontsize=9, color=theme.muted)
    axes.set_ylabel(y_label, fontsize=9, color=theme.muted)
    axes.tick_params(labelsize=9, color=theme.muted, labelcolor=theme.muted)
    axes.grid(visible=True, color=theme.grid, linewidth=0.8)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_visible(side in {"left", "bottom"})
        spine.set_color(theme.muted)


def _legend(axes: Axes, theme: Theme, place: Literal["best", "upper right"] = "best") -> None:
    axes.legend(
        loc=place, fontsize=8, labelcolor=theme.ink, facecolor=theme.paper, edgecolor=theme.grid, framealpha=0.9
    )


def _say_empty(axes: Axes, theme: Theme, words: str) -> None:
    axes.text(0.5, 0.5, words, transform=axes.transAxes, ha="center", va="center", fontsize=10, color=theme.muted)


def _froc(axes: Axes, summary: Mapping[str, Any], theme: Theme) -> None:
    points = summary["froc"]["points"]
    rates = [point["false_positives_per_case"] for point in points]
    least = min(rates, default=0.125)
    # Linear from 0 to the least of the rates, a step of the same length for each doubling after it.
    axes.set_xscale("symlog", base=2, linthresh=least, linscale=1.0)
    axes.minorticks_off()
    axes.set_xticks([0.0, *rates], labels=["0", *(_fraction(rate) for rate in rates)])
    axes.set_ylim(-0.03, 1.03)
    curve = [
        (point["false_positives_per_case"], point["lesion_sensitivity"])
        for point in summary["froc"]["curve"]
        if point["false_positives_per_case"] is not None and point["lesion_sensitivity"] is not None
    ]
    end = 1.15 * max([*rates, summary["false_positives_per_case"]["value"] or 1.0])
    dress(axes, theme, "FROC", "false candidates per case", "lesion sensitivity")
    if curve:
        _froc_band(axes, summary["froc"]["band"], theme)
        _froc_curve(axes, visible(curve, end), points, theme)
    if _operating_point(axes, summary, theme) or curve:
        _legend(axes, theme)
    else:
        _say_empty(axes, theme, "no curve: nothing to find, or nothing proposed")
    # What lies beyond the last rate and the operating threshold interests nobody and would press the rest together.
    axes.set_xlim(-0.02, end)


def visible(curve: Sequence[tuple[float, float]], end: float) -> list[tuple[float, float]]:
    """Leave out corners of a rising curve that no eye tells from the one before, and those beyond `end` but one.

    Ten thousand cases give a hundred thousand corners, which would make the page heavy.
    """
    kept: list[tuple[float, float]] = []
    for number, corner in enumerate(curve, start=1):
        last = corner[0] > end or number == len(curve)
        if last or not kept or corner[1] - kept[-1][1] > 0.002:
            kept.append(corner)
        if last:
            break
    return kept


def _froc_band(axes: Axes, band: Sequence[Mapping[str, Any]], theme: Theme) -> None:
    ends = [(p["false_positives_per_case"], p["low"], p["high"]) for p in band if p["low"] is not None]
    if ends:
        x, low, high = zip(*ends, strict=True)
        axes.fill_between(
            x, low, high, step="post", color=theme.first, alpha=0.18, linewidth=0, label="interval of the curve"
        )


def _froc_curve(
    axes: Axes, curve: Sequence[tuple[float, float]], points: Sequence[Mapping[str, Any]], theme: Theme
) -> None:
    # Before the first candidate nothing is found; between two thresholds the earlier one holds.
    x, y = zip((0.0, 0.0), *curve, strict=True)
    axes.plot(x, y, drawstyle="steps-post", color=theme.first, linewidth=1.8, label="curve")
    reached = [point for point in points if point["reached"]]
    missed = [point for point in points if not point["reached"] and point["lesion_sensitivity"] is not None]
    for group, face, label in (
        (reached, theme.first, "the points"),
        (missed, theme.paper, "point not reached: last value held"),
    ):
        if group:
            axes.plot(
                [point["false_positives_per_case"] for point in group],
                [point["lesion_sensitivity"] for point in group],
                linestyle="none",
                marker="o",
                markersize=6,
                markerfacecolor=face,
                markeredgecolor=theme.first,
                label=label,
                zorder=3,
            )


def _operating_point(axes: Axes, summary: Mapping[str, Any], theme: Theme) -> bool:
    """Mark the protocol's threshold with both intervals; tell whether there was one to mark."""
    x, y = summary["false_positives_per_case"], summary["lesion_sensitivity"]
    if x["value"] is None or y["value"] is None:
        return False
    axes.errorbar(
        [x["value"]],
        [y["value"]],
        xerr=arms(x),
        yerr=arms(y),
        fmt="D",
        color=theme.second,
        markersize=7,
        markeredgecolor=theme.paper,
        elinewidth=1.2,
        capsize=3,
        zorder=4,
        label=f"threshold {summary['protocol']['threshold']:.3g}, with intervals",
    )
    return True


def arms(rate: Mapping[str, Any]) -> list[list[float]] | None:
    """Give the lengths of the arms of an interval below and above its value; None where there is no interval."""
    if rate["low"] is None or rate["high"] is None:
        return None
    return [[max(0.0, rate["value"] - rate["low"])], [max(0.0, rate["high"] - rate["value"])]]


def _fraction(rate: float) -> str:
    """Write 0.125 as 1/8."""
    if 0 < rate < 1 and (1 / rate).is_integer():
        return f"1/{round(1 / rate)}"
    return f"{rate:g}"


def _series(metrics: Metrics, name: str) -> tuple[list[float], list[float]]:
    rows = [(row["epoch"], row[name]) for row in metrics if math.isfinite(row[name])]
    return [epoch for epoch, _ in rows], [value for _, value in rows]


def _loss(axes: Axes, metrics: Metrics, theme: Theme) -> None:
    dress(axes, theme, "Loss", "epoch", "training loss")
    values = _line_of_one(axes, metrics, "loss", theme)
    if values and min(values) > 0:
        axes.set_yscale("log")
        _plain_ticks(axes, values)
    _mark_best(axes, metrics, theme)
    if _mark_skipped(axes, metrics, theme):
        _legend(axes, theme, "upper right")  # a loss falls


def _learning_rate(axes: Axes, metrics: Metrics, theme: Theme) -> None:
    dress(axes, theme, "Learning rate", "epoch", "learning rate")
    values = _line_of_one(axes, metrics, "learning_rate", theme)
    if values:
        # No power of ten above the axis: it would stand in the way of the title.
        axes.yaxis.set_major_formatter("{x:g}")
        axes.set_ylim(bottom=min(0.0, *values))
    _mark_best(axes, metrics, theme)


def _line_of_one(axes: Axes, metrics: Metrics, name: str, theme: Theme) -> list[float]:
    epochs, values = _series(metrics, name)
    if not values:
        _say_empty(axes, theme, "no epoch recorded")
        return []
    axes.plot(epochs, values, color=theme.first, linewidth=1.8, marker="o" if len(values) < 3 else "")
    _all_epochs(axes, metrics)
    return values


def _mark_skipped(axes: Axes, metrics: Metrics, theme: Theme) -> bool:
    """Mark, at the foot of the panel, the epochs in which steps were skipped; whether there are any."""
    epochs, numbers = _skipped(metrics)
    if not epochs:
        return False
    label = f"{_counted(sum(numbers), 'step')} skipped, in {_counted(len(epochs), 'epoch')}"
    foot = [0.02] * len(epochs)  # of the height
    axes.plot(
        epochs, foot, transform=axes.get_xaxis_transform(), linestyle="", marker="|", markersize=9, markeredgewidth=1.6,
        color=theme.second, label=label,
    )  # fmt: skip
    return True


def _skipped(metrics: Metrics) -> tuple[list[float], list[float]]:
    rows = [(row["epoch"], row["num_skipped"]) for row in metrics if row["num_skipped"] > 0]
    return [epoch for epoch, _ in rows], [number for _, number in rows]


def _counted(number: float, noun: str) -> str:
    return f"{number:.0f} {noun}{'' if number == 1 else 's'}"


def _interval(axes: Axes, metrics: Metrics, theme: Theme) -> None:
    """Shade between the ends of the interval of the lesion sensitivity; a bar where one epoch alone has one."""
    keys = ("epoch", "lesion_sensitivity_low", "lesion_sensitivity_high")
    rows = [[row[key] for key in keys] for row in metrics if all(math.isfinite(row[key]) for key in keys)]
    if not rows:
        return
    epochs, low, high = zip(*rows, strict=True)
    label = "its interval"
    if len(rows) == 1:
        axes.vlines(epochs, low, high, color=theme.first, linewidth=3, alpha=0.35, label=label)
    else:
        axes.fill_between(epochs, low, high, color=theme.first, linewidth=0, alpha=0.18, label=label)


def _validation(axes: Axes, metrics: Metrics, theme: Theme) -> None:
    dress(axes, theme, "Validation", "epoch", "")
    axes.set_ylim(-0.03, 1.03)
    lines = (
        ("lesion_sensitivity", "lesion sensitivity", theme.first, "o", "-"),
        ("cpm", "CPM", theme.second, "s", "--"),
        ("voxel_dice", "voxel Dice", theme.third, "^", ":"),
    )
    for name, label, colour, marker, style in lines:
        epochs, values = _series(metrics, name)
        if values:
            # A marker tells the lines apart without colour; many of them would hide the lines.
            every = max(1, len(values) // 12)
            axes.plot(
                epochs, values, color=colour, linestyle=style, linewidth=1.6, label=label,
                marker=marker, markersize=4, markevery=every,
            )  # fmt: skip
        if name == "lesion_sensitivity":
            _interval(axes, metrics, theme)
    if not axes.lines:
        _say_empty(axes, theme, "no epoch validated")
        return
    _all_epochs(axes, metrics)
    _mark_best(axes, metrics, theme, label=True)
    _legend(axes, theme)


def _all_epochs(axes: Axes, metrics: Metrics) -> None:
    """Let every panel show the same epochs, validated or not, at whole numbers."""
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    first, last = metrics[0]["epoch"], metrics[-1]["epoch"]
    margin = max(0.5, 0.03 * (last - first))
    axes.set_xlim(first - margin, last + margin)


def _plain_ticks(axes: Axes, values: Sequence[float]) -> None:
    """Label a short logarithmic axis with 1, 2 and 5 of each decade, a long one with the decades only."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

    if max(values) / min(values) < 1000:
        axes.yaxis.set_major_locator(LogLocator(base=10, subs=(1.0, 2.0, 5.0), numticks=12))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
        axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_minor_formatter(NullFormatter())


def _mark_best(axes: Axes, metrics: Metrics, theme: Theme, *, label: bool = False) -> None:
    best = best_epoch(metrics)
    if best is not None:
        words = f"kept epoch: {best['epoch']:.0f}" if label else None
        axes.axvline(best["epoch"], color=theme.muted, linewidth=1.2, linestyle=(0, (2, 2)), label=words)


def _training_words(metrics: Metrics) -> tuple[str, str, str]:
    if not metrics:
        return ("Training loss: no epoch recorded.", "Learning rate: no epoch recorded.", "Validation: no epoch.")
    last = metrics[-1]
    best = best_epoch(metrics)
    validation = "Validation: no epoch was validated."
    if best is not None:
        low, high = best["lesion_sensitivity_low"], best["lesion_sensitivity_high"]
        interval = f" (interval {low:.2f} to {high:.2f})" if math.isfinite(low) and math.isfinite(high) else ""
        validation = (
            f"Validation: lesion sensitivity is highest at epoch {best['epoch']:.0f}, "
            f"{best['lesion_sensitivity']:.2f}{interval}."
        )
    epochs, numbers = _skipped(metrics)
    skipped = f"; {_counted(sum(numbers), 'step')} skipped in {_counted(len(epochs), 'epoch')}" if epochs else ""
    return (
        f"Training loss per epoch, {metrics[0]['loss']:.3g} in the first and {last['loss']:.3g} in the last{skipped}.",
        f"Learning rate per epoch, {last['learning_rate']:.3g} in the last.",
        validation,
    )


TRAINING: tuple[DrawMetrics, ...] = (_loss, _learning_rate, _validation)
