"""How many lesions count as found, the more overlap is asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from medfocal.report.figures import Drawing, Theme, draw_figure, dress
from medfocal.report.tables import count, interval, percent

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Row = Mapping[str, Any]

RULES = {"iou": "IoU", "dice": "Dice", "lesion_covered": "share of the lesion covered"}
#: Thresholds that the sentence tells, where the curve has them.
TOLD = (0.1, 0.5)


def hit_rules_section(summary: Mapping[str, Any]) -> dict[str, Any] | None:
    """What the page shows of the curves over the hit rule's threshold, or None where there is no lesion or no curve.

    Args:
        summary: The content of evaluation.json.
    """
    curves = [curve for curve in summary["hit_rule_curves"] if curve["points"]]
    if not curves or not summary["num_lesions"]:
        return None
    return {
        "figures": [draw_hit_rule(curve, at) for at, curve in enumerate(curves)],
        "sentence": _sentence(curves, summary["num_lesions"]),
        "tables": [
            {"rule": RULES[curve["hit_rule"]], "rows": [_shown(point) for point in curve["points"]]} for curve in curves
        ],
    }


def draw_hit_rule(curve: Row, at: int) -> Drawing:
    """Draw lesion sensitivity against what is asked of the overlap, with its interval; `at` chooses the colour."""
    words = f"Curve with band: lesion sensitivity against the least {RULES[curve['hit_rule']]} that counts as found. "
    words += "The table below holds the same numbers."
    return draw_figure((3.7, 2.9), words, lambda figure, theme: _draw(figure, curve, at, theme))


def _draw(figure: Figure, curve: Row, at: int, theme: Theme) -> None:
    rule, points = RULES[curve["hit_rule"]], curve["points"]
    axes = figure.add_subplot()
    dress(axes, theme, rule[0].upper() + rule[1:], "at least", "lesion sensitivity")
    colour = (theme.first, theme.second, theme.third)[at % 3]
    banded = [point for point in points if point["low"] is not None and point["high"] is not None]
    x, low, high = ([point[key] for point in banded] for key in ("hit_threshold", "low", "high"))
    axes.fill_between(x, low, high, color=colour, alpha=0.18, linewidth=0)
    x, y = ([point[key] for point in points] for key in ("hit_threshold", "lesion_sensitivity"))
    axes.plot(x, y, color=colour, linewidth=1.8)
    axes.set_xlim(-0.02, 1.02)
    axes.set_ylim(-0.03, 1.03)


def _sentence(curves: Sequence[Row], num_lesions: int) -> str:
    rule, points = RULES[curves[0]["hit_rule"]], curves[0]["points"]
    told: list[tuple[Row, str]] = []
    for threshold in TOLD:
        near = min(points, key=lambda point: abs(point["hit_threshold"] - threshold))
        share = percent(near["lesion_sensitivity"])
        if share and near not in [point for point, _ in told]:
            told.append((near, share))
    parts = [
        f"{point['num_detected_lesions']} of {count(num_lesions, 'lesion')} ({share}) at {rule} "
        f"{point['hit_threshold']:g} or more"
        for point, share in told
    ]
    return f"The same candidates find {', and '.join(parts)}." if parts else ""


def _shown(point: Row) -> dict[str, str]:
    return {
        "threshold": f"{point['hit_threshold']:g}",
        "found": str(point["num_detected_lesions"]),
        "sensitivity": percent(point["lesion_sensitivity"]) or "",
        "interval": interval(point, percent),
        "false": str(point["num_false_candidates"]),
    }
