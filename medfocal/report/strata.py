"""Lesions and false candidates by their size: a table, a picture and what the borders are called."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from medfocal.report.figures import Drawing, Theme, arms, draw_figure, dress
from medfocal.report.tables import interval, number, percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Row = Mapping[str, Any]

MEASURES = {
    "longest_diameter_mm": ("Longest diameter", "mm"),
    "axial_diameter_mm": ("Longest axial diameter", "mm"),
    "equivalent_diameter_mm": ("Diameter of the sphere of the same volume", "mm"),
    "volume_mm3": ("Volume", "mm³"),
}


def strata_section(summary: Mapping[str, Any]) -> dict[str, Any] | None:
    """What the page shows of the strata, or None where there are none.

    Args:
        summary: The content of evaluation.json.
    """
    rows = summary["by_size"]
    if not rows:
        return None
    return {
        "min_lesions": summary["protocol"]["min_lesions"],
        "groups": [
            {
                "measure": MEASURES[name][0],
                "figure": draw_strata([row for row in rows if row["measure"] == name]),
                "rows": [_shown(row) for row in rows if row["measure"] == name],
            }
            for name in _measures(rows)
        ],
    }


def draw_strata(rows: Sequence[Row]) -> Drawing:
    """Draw lesion sensitivity and false candidates per case of each stratum with their intervals.

    Args:
        rows: Of one measure, of what evaluation.json holds under `by_size`.
    """
    label = MEASURES[rows[0]["measure"]][0].lower()
    words = f"Dots with intervals: lesion sensitivity, and below it false candidates per case, by {label}. "
    words += "The table of the same name holds the same numbers."
    return draw_figure((4.9, 4.2), words, lambda figure, theme: _draw(figure, rows, theme))


def bounds(row: Row) -> str:
    """Say where a stratum begins and ends; its lower border belongs to it."""
    unit = MEASURES[row["measure"]][1]
    low, high = (None if row[end] is None else f"{row[end]:g}" for end in ("low", "high"))
    if low is None or low == "0":
        return f"any {unit}" if high is None else f"under {high}\u00a0{unit}"
    return f"{low}\u00a0{unit} or more" if high is None else f"{low} to under {high}\u00a0{unit}"


def _measures(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(str(row["measure"]) for row in rows))


def _shown(row: Row) -> dict[str, str]:
    sensitivity, false = row["lesion_sensitivity"], row["false_positives_per_case"]
    return {
        "size": bounds(row),
        "lesions": str(row["num_lesions"]),
        "patients": str(row["num_patients"]),
        "found": str(row["num_detected_lesions"]),
        "sensitivity": percent(sensitivity["value"]) or "",  # empty: too few lesions
        "interval": interval(sensitivity, percent),
        "false": str(row["num_false_candidates"]),
        "false_per_case": number(false["value"]) or "",
        "false_interval": interval(false, number),
    }


def _draw(figure: Figure, rows: Sequence[Row], theme: Theme) -> None:
    label, unit = MEASURES[rows[0]["measure"]]
    upper, lower = figure.subplots(2, 1, height_ratios=(3, 2))
    dress(upper, theme, label, "", "lesion sensitivity")
    dress(lower, theme, "", f"own size ({unit})", "false per case")
    for place, row in enumerate(rows):
        _dot(upper, place, row["lesion_sensitivity"], theme.first, theme)
        _dot(lower, place, row["false_positives_per_case"], theme.second, theme)
        if row["lesion_sensitivity"]["value"] is None:
            upper.text(place, 0.5, "too few", fontsize=8, style="italic", color=theme.muted, ha="center")
    upper.set_xticks(range(len(rows)), labels=[f"n = {row['num_lesions']}" for row in rows])
    lower.set_xticks(range(len(rows)), labels=[_tick(row) for row in rows])
    for panel in (upper, lower):
        panel.set_xlim(-0.5, len(rows) - 0.5)
        panel.grid(visible=False, axis="x")
    upper.set_ylim(-0.03, 1.03)
    lower.set_ylim(bottom=0)


def _dot(axes: Axes, place: float, of: Row, colour: str, theme: Theme) -> None:
    if of["value"] is None:
        return
    axes.errorbar(
        [place], [of["value"]], yerr=arms(of), fmt="o", color=colour, markersize=6.5, markeredgecolor=theme.paper,
        elinewidth=1.5, capsize=3, zorder=3,
    )  # fmt: skip


def _tick(row: Row) -> str:
    low, high = (None if row[end] is None else f"{row[end]:g}" for end in ("low", "high"))
    if low is None or low == "0":
        return "any" if high is None else f"< {high}"
    return f"≥ {low}" if high is None else f"{low}\u2013{high}"
