"""Whether a candidate of confidence 0.8 is a lesion eight times in ten: the reliability diagram and its table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from medfocal.report.figures import Drawing, Theme, arms, draw_figure, dress
from medfocal.report.tables import Notes, count, interval, number, percent

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Row = Mapping[str, Any]


def reliability_section(summary: Mapping[str, Any], notes: Notes) -> dict[str, Any] | None:
    """What the page shows of the candidates' confidence, or None where they all have one confidence.

    Args:
        summary: The content of evaluation.json.
        notes: What is undefined here is added to it.
    """
    found = summary["calibration"]
    if found is None:
        return None
    bins = [row for row in found["bins"] if row["num_candidates"]]
    measures = [
        {
            "label": label,
            "value": notes.show(number(found[name]["value"], 3), name, "all cases"),
            "interval": interval(found[name], lambda value: number(value, 3)),
        }
        for name, label in (("brier", "Brier score"), ("d_ece", "D-ECE"))
    ]
    return {
        "figure": draw_reliability(bins),
        "candidates": count(found["num_candidates"], "candidate"),
        "measures": measures,
        "sentence": _sentence(bins),
        "rows": [_shown(row) for row in bins],
    }


def draw_reliability(bins: Sequence[Row]) -> Drawing:
    """Draw the share of true candidates against their mean confidence, and how many candidates each dot stands for."""
    words = "Reliability diagram: share of candidates that are true against their mean confidence, with intervals; "
    words += "below it the number of candidates. The table beside it holds the same numbers."
    return draw_figure((4.6, 4.6), words, lambda figure, theme: _draw(figure, bins, theme))


def _draw(figure: Figure, bins: Sequence[Row], theme: Theme) -> None:
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
    dress(upper, theme, "Reliability", "", "share that is true (precision)")
    dress(lower, theme, "", "confidence", "candidates")
    upper.plot([0, 1], [0, 1], color=theme.muted, linewidth=1.2, linestyle=(0, (4, 3)))
    for row in bins:
        of = row["lesion_precision"]
        lower.bar(
            row["low"], row["num_candidates"], width=row["high"] - row["low"], align="edge", color=theme.second,
            edgecolor=theme.paper, linewidth=0.8,
        )  # fmt: skip
        if of["value"] is None or row["mean_confidence"] is None:
            continue
        upper.errorbar(
            [row["mean_confidence"]], [of["value"]], yerr=arms(of), fmt="o", color=theme.first, markersize=6,
            markeredgecolor=theme.paper, elinewidth=1.4, capsize=2.5, zorder=3,
        )  # fmt: skip
    upper.set_ylim(-0.03, 1.03)
    lower.set_xlim(-0.02, 1.02)


def _sentence(bins: Sequence[Row]) -> str:
    """Tell the fullest bin, whose share is known best."""
    told = [row for row in bins if row["lesion_precision"]["value"] is not None]
    if not told:
        return ""
    row = max(told, key=lambda each: each["num_candidates"])
    share, between = percent(row["lesion_precision"]["value"]), interval(row["lesion_precision"], percent)
    words = f"Of the {count(row['num_candidates'], 'candidate')} of confidence {row['low']:g} to {row['high']:g}, "
    words += f"{number(row['mean_confidence'])} on average, {share} are true"
    return words + (f" ({between})." if between else ".")


def _shown(row: Row) -> dict[str, str]:
    return {
        "confidence": f"{row['low']:g} to {row['high']:g}",
        "mean": number(row["mean_confidence"]) or "",
        "candidates": str(row["num_candidates"]),
        "patients": str(row["num_patients"]),
        "precision": percent(row["lesion_precision"]["value"]) or "no estimate",
        "interval": interval(row["lesion_precision"], percent),
    }
