"""Readers and the model beside each other: a table, a picture and a few lines for the terminal."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from medfocal.files import plain
from medfocal.report.figures import Drawing, Theme, arms, draw_figure, dress
from medfocal.report.tables import SHARES, Notes, number, percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from medfocal.evaluate.results import ReaderStudy

RATES = {
    "lesion_sensitivity": "lesion sensitivity",
    "lesion_precision": "lesion precision",
    "lesion_f1": "lesion F1",
    "false_positives_per_case": "false candidates per case",
}

Row = Mapping[str, Any]


def readers_section(summary: Mapping[str, Any], notes: Notes) -> dict[str, Any] | None:
    """What the page shows of the readers, or None where none were given.

    Args:
        summary: The content of evaluation.json.
        notes: What is undefined here is added to it.
    """
    study = summary.get("readers")
    if study is None:
        return None
    rows = _ordered(study["comparisons"])
    for row in rows:
        for line in row["undefined"]:
            notes.add(line["what"], _where(row), line["why"])
    return {
        "fusion": study["fusion"],
        "readers": study["readers"],
        "num_cases_unread": study["num_cases_unread"],
        "sentences": _sentences(rows),
        "figure": draw_readers(study),
        "rows": [_shown(row, notes) for row in rows],
    }


def reader_lines(study: ReaderStudy) -> dict[str, str]:
    """Lines of the table on the terminal: each reader by the marks of the others, the model by the same marks."""
    lines = {}
    for row in _ordered(plain(study.to_dict())["comparisons"]):
        if row["kind"] == "model_against_reader":
            continue
        dice = number(row["voxel_dice"]["mean"]) or "undefined"
        lines[f"{_judged(row)}, by {_judge(row)}"] = (
            f"sensitivity {_brief(row['lesion_sensitivity'])}, precision {_brief(row['lesion_precision'])}, "
            f"{_brief(row['false_positives_per_case'])} FP per case, voxel Dice {dice}"
        )
    return lines


def draw_readers(study: Mapping[str, Any]) -> Drawing:
    """Draw each reader and the model as dots with intervals, those that are judged by the same marks together.

    Args:
        study: What evaluation.json holds under `readers`.
    """
    rows = _ordered(study["comparisons"])
    words = (
        "Dots with intervals: lesion sensitivity, precision, F1 and false candidates per case of each reader and of "
    )
    words += "the model, by the marks of the same readers. The table below holds the same numbers."
    size = (10.4, 1.1 + 0.3 * len(rows) + 0.14 * len(_groups(rows)))
    return draw_figure(size, words, lambda figure, theme: _draw(figure, rows, theme))


def _draw(figure: Figure, rows: Sequence[Row], theme: Theme) -> None:
    places, labels = [], []
    at = 0.0
    for group in _groups(rows):
        for row in group:
            places.append(at)
            labels.append(f"{_judged(row)}, by {_judge(row)}")
            at += 1
        at += 0.5
    panels = figure.subplots(1, len(RATES), sharey=True)
    for panel, (rate, title) in zip(panels, RATES.items(), strict=True):
        dress(panel, theme, title, "", "")
        panel.grid(visible=False, axis="y")
        for row, place in zip(rows, places, strict=True):
            _dot(panel, row, rate, place, theme)
        if rate != "false_positives_per_case":
            panel.set_xlim(-0.04, 1.04)
            panel.set_xticks([0, 0.25, 0.5, 0.75, 1], labels=["0", "", "0.5", "", "1"])
        else:
            panel.set_xlim(left=-0.03 * panel.get_xlim()[1])
    panels[0].set_yticks(places, labels=labels, color=theme.ink)
    panels[0].set_ylim(at - 0.5, -0.8)


def _dot(axes: Axes, row: Row, rate: str, place: float, theme: Theme) -> None:
    found = row[rate]
    is_reader = row["kind"] == "reader_against_others"
    if found["value"] is None:
        axes.text(0.5, place, "undefined", fontsize=8, style="italic", color=theme.muted, ha="center", va="center")
        return
    axes.errorbar(
        [found["value"]],
        [place],
        xerr=arms(found),
        fmt="o" if is_reader else "D",
        color=theme.first if is_reader else theme.second,
        markersize=6.5 if is_reader else 5.5,
        markeredgecolor=theme.paper,
        elinewidth=1.4,
        capsize=2.5,
        zorder=3,
    )


def _ordered(comparisons: Sequence[Row]) -> list[Row]:
    """Each reader and then the model by the same marks; after them the model by each reader alone and by all."""
    others = [row for row in comparisons if row["kind"] == "reader_against_others"]
    paired = []
    for row in others:
        paired += [
            row,
            *(m for m in comparisons if m["kind"] == "model_against_others" and m["reader"] == row["reader"]),
        ]
    rest = [row for row in comparisons if row["kind"] in {"model_against_reader", "model_against_all"}]
    return paired + rest


def _groups(rows: Sequence[Row]) -> list[list[Row]]:
    """Rows that belong together in the picture."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        is_bar = "others" in row["kind"]
        groups.setdefault(("others", row["reader"]) if is_bar else ("alone", ""), []).append(row)
    return list(groups.values())


def _judged(row: Row) -> str:
    return str(row["reader"]) if row["kind"] == "reader_against_others" else "model"


def _judge(row: Row) -> str:
    words = {
        "reader_against_others": "the others",
        "model_against_others": f"all but {row['reader']}",
        "model_against_reader": f"{row['reader']} alone",
        "model_against_all": "all readers",
    }
    return words[row["kind"]]


def _where(row: Row) -> str:
    return f"{_judged(row)}, by the marks of {_judge(row)}"


def _shown(row: Row, notes: Notes) -> dict[str, Any]:
    cells = []
    where = _where(row)
    for name in RATES:
        rate = row[name]
        text = percent if name in SHARES else number
        low, high = text(rate["low"]), text(rate["high"])
        interval = f"{low} to {high}" if low and high else ""
        cells.append({"value": notes.show(text(rate["value"]), _reason_key(row, name), where), "interval": interval})
    dice = notes.show(number(row["voxel_dice"]["mean"]), _reason_key(row, "voxel_dice: mean and median"), where)
    return {
        "judge": _judge(row),
        "judged": _judged(row),
        "cases": row["num_cases"],
        "lesions": f"{row['num_detected_lesions']} of {row['num_lesions']}",
        "rates": cells,
        "dice": dice,
    }


def _reason_key(row: Row, name: str) -> str:
    """A comparison without a case has one reason for all its figures."""
    return name if row["num_cases"] else "every figure"


def _sentences(rows: Sequence[Row]) -> list[str]:
    """The ranges that a reader of the report asks for first."""
    sentences = []
    for kind, words in (
        ("reader_against_others", "Readers, each by the marks of the others, find {s} of the lesions"),
        ("model_against_others", "The model, by the same marks, finds {s}"),
    ):
        found = [row for row in rows if row["kind"] == kind]
        sensitivity = _range([row["lesion_sensitivity"]["value"] for row in found], percent)
        false = _range([row["false_positives_per_case"]["value"] for row in found], number)
        if sensitivity and false:
            sentences.append(words.format(s=sensitivity) + f" at {false} false candidates per case.")
    return sentences


def _range(values: Sequence[float | None], text: Any) -> str:
    defined = [value for value in values if value is not None and math.isfinite(value)]
    if not defined:
        return ""
    low, high = text(min(defined)), text(max(defined))
    return str(low) if low == high else f"{low} to {high}"


def _brief(rate: Row) -> str:
    if rate["value"] is None:
        return "undefined"
    return f"{rate['value']:.2f} ({rate['low']:.2f} to {rate['high']:.2f})"
