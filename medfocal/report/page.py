"""One HTML file that tells how good a prediction is, and shows the lesions it missed and its false alarms."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

from medfocal import __version__
from medfocal.files import atomic_write
from medfocal.report.figures import best_epoch, draw_froc, draw_training, read_metrics
from medfocal.report.pictures import FIELD_MM, CaseImages, View, look_at
from medfocal.report.readers import readers_section
from medfocal.report.tables import (
    MEASURES,
    SHARES,
    Notes,
    Records,
    Shown,
    SupportsEvaluation,
    count,
    false_positive_words,
    hit_rule_words,
    number,
    percent,
    protocol_rows,
    records_of,
    sensitivity_words,
    volume,
)

PACKAGES = ("numpy", "scipy", "connected-components-3d", "nibabel", "SimpleITK", "torch", "monai", "matplotlib")

# How the evaluation names these in its list of what is undefined.
ALL_CASES = "all cases"
FROC_UNDEFINED = "froc: lesion_sensitivity of points and curve, cpm"

Images = Callable[[str], CaseImages | None]
Kind = Literal["missed", "false"]


@dataclass(frozen=True)
class Finding:
    """A missed lesion or a false candidate, with its picture.

    Attributes:
        anchor: Where the page can be linked to; made of numbers only, since a case may have any name.
        case: Name of the case.
        title: "Missed lesion 3".
        facts: Label and value of what is known about it.
        views: The planes; empty where no picture can be had.
    """

    anchor: str
    case: str
    title: str
    facts: Sequence[tuple[str, Shown]]
    views: Sequence[View]


@dataclass(frozen=True)
class Section:
    """The findings of one kind that are shown, and how many there are in all."""

    kind: Kind
    total: int
    findings: Sequence[Finding]


def write_report(
    path: Path,
    *,
    title: str,
    evaluation: SupportsEvaluation | str | Path,
    images: Images,
    metrics: Path | None = None,
    facts: Mapping[str, str] | None = None,
    max_pictures: int = 60,
) -> Path:
    """Write the report of an evaluation as one HTML file that needs nothing else: no network, no script.

    Where there are more missed lesions and false candidates than `max_pictures`, the largest lesions and the most
    confident candidates are shown, as many of the one as of the other while both last, and the page says how many were
    left out.

    Args:
        path: Of the HTML file; it appears once it is complete.
        title: Heading of the page.
        evaluation: What `evaluate_cases` gave, or a folder that `write_evaluation` wrote.
        images: Gives the volumes of a case by its name, or None where no picture can be had. It is asked once for each
            case that has something to show.
        metrics: metrics.csv of a training run, for the training curves.
        facts: Further lines about the run, label and text.
        max_pictures: Most findings to show.

    Returns:
        `path`.

    Raises:
        InputError: A folder or `metrics` cannot be used.
        GeometryError: The volumes of a case do not fit each other.
    """
    if max_pictures < 0:
        message = f"max_pictures must be 0 or more, got {max_pictures}"
        raise ValueError(message)
    path = Path(path)
    html = render_page(
        "page.html.j2", _content(title, records_of(evaluation), images, metrics, facts or {}, max_pictures)
    )
    with atomic_write(path) as file:
        file.write(html)
    return path


def _content(
    title: str,
    records: Records,
    images: Images,
    metrics: Path | None,
    facts: Mapping[str, str],
    max_pictures: int,
) -> dict[str, Any]:
    summary = records.summary
    notes = Notes.of(summary)
    epochs = None if metrics is None else read_metrics(metrics)
    sections = _sections(records, images, notes, max_pictures)
    return {
        "title": title,
        "made": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "subtitle": _subtitle(records),
        "headlines": _headlines(records, notes),
        "hit_rule": hit_rule_words(summary["protocol"]),
        "level": percent(summary["protocol"].get("level", 0.95)),
        "protocol": protocol_rows(summary["protocol"]),
        "measures": _measures(summary, notes),
        "froc": draw_froc(summary),
        "points": _points(summary, notes),
        "cpm": notes.show(number(summary["froc"]["cpm"], 3), FROC_UNDEFINED, ALL_CASES),
        "threshold": f"{summary['protocol']['threshold']:.3g}",
        "training": None if epochs is None else draw_training(epochs),
        "best": None if epochs is None else best_epoch(epochs),
        "readers": readers_section(summary, notes),
        "cases": _case_rows(records, notes, sections),
        "sections": sections,
        "field_mm": f"{FIELD_MM:g}",
        "facts": [(str(label), str(text)) for label, text in facts.items()],
        "versions": package_versions(),
        # Last: the sections above have added what they met.
        "undefined": notes.lines,
    }


def render_page(template: str, content: Mapping[str, Any]) -> str:
    """Fill one of the templates beside this module; a name that it uses and `content` lacks is an error."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("medfocal.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(content)


def _num_lesion_free(records: Records) -> int:
    return sum(row["num_lesions"] == 0 for row in records.cases)


def _subtitle(records: Records) -> str:
    summary = records.summary
    return ", ".join(
        (
            count(summary["num_cases"], "case"),
            count(summary["num_patients"], "patient"),
            count(summary["num_lesions"], "lesion"),
            f"confidence threshold {summary['protocol']['threshold']:.3g}",
        )
    )


def _headlines(records: Records, notes: Notes) -> list[dict[str, Any]]:
    summary = records.summary
    sensitivity, false_positives = summary["lesion_sensitivity"], summary["false_positives_per_case"]
    dice, lesion_free = summary["voxel_dice"], _num_lesion_free(records)
    share = percent(sensitivity["value"])
    dice_words = f"Mean of {count(dice['num_cases'], 'case')}"
    dice_words += f", median {number(dice['median'])}." if dice["median"] is not None else "."
    if dice["num_undefined"]:
        dice_words += f" Undefined in {count(dice['num_undefined'], 'case')}, left out."
    return [
        {
            "label": "Lesions found",
            "value": notes.show(
                share and f"{summary['num_detected_lesions']} of {summary['num_lesions']}",
                "lesion_sensitivity",
                ALL_CASES,
            ),
            "unit": f"= {share}" if share else "",
            "words": sensitivity_words(sensitivity) if share else "There is no lesion to find.",
        },
        {
            "label": "False candidates per case",
            "value": notes.show(number(false_positives["value"]), "false_positives_per_case", ALL_CASES),
            "unit": f"{summary['num_false_candidates']} in {count(summary['num_cases'], 'case')}",
            "words": false_positive_words(false_positives),
        },
        {
            "label": "Voxel Dice",
            "value": notes.show(number(dice["mean"]), "voxel_dice: mean and median", ALL_CASES),
            "unit": "",
            "words": dice_words,
        },
        {
            "label": "Cases",
            "value": Shown(str(summary["num_cases"])),
            "unit": f"of {count(summary['num_patients'], 'patient')}",
            "words": f"{count(lesion_free, 'case')} without any lesion.",
        },
    ]


def _measures(summary: Mapping[str, Any], notes: Notes) -> list[dict[str, Any]]:
    """List every rate of the evaluation, those this version has no label for by their key."""
    rows = []
    for key, rate in summary.items():
        if key == "voxel_dice" or not isinstance(rate, int | float | Mapping | None) or isinstance(rate, bool):
            continue
        if not isinstance(rate, Mapping):
            if key not in MEASURES:
                continue
            rate = {"value": rate}  # noqa: PLW2901  a measure without an interval
        if "value" not in rate:
            continue
        text = percent if key in SHARES else number
        low, high = text(rate.get("low")), text(rate.get("high"))
        fraction = [_amount(rate.get(part)) for part in ("numerator", "denominator")]
        rows.append(
            {
                "label": MEASURES.get(key, key),
                "key": key,
                "value": notes.show(text(rate["value"]), key, ALL_CASES),
                "interval": f"{low} to {high}" if low and high else "",
                "fraction": f"{fraction[0]} / {fraction[1]}" if all(fraction) else "",
                "patients": number(rate.get("num_patients"), 0) or "",
                "deff": number(rate.get("deff")) or "",
                "method": rate.get("method") or "",
            }
        )
    return rows


def _amount(value: float | None) -> str | None:
    """Write a count, or an amount such as a mean over patients or a volume, which need not be whole."""
    if value is None or float(value).is_integer():
        return number(value, 0)
    return f"{value:.4g}"


def _points(summary: Mapping[str, Any], notes: Notes) -> list[dict[str, Any]]:
    rows = []
    for point in summary["froc"]["points"]:
        rate, threshold = f"{point['false_positives_per_case']:g}", point["threshold"]
        rows.append(
            {
                "rate": rate,
                "value": notes.show(percent(point["lesion_sensitivity"]), FROC_UNDEFINED, ALL_CASES),
                "threshold": notes.show(
                    None if threshold is None else f"{threshold:.3g}",
                    "froc: threshold",
                    f"{rate} false positives per case",
                ),
                "reached": point["reached"],
            }
        )
    return rows


def _case_rows(records: Records, notes: Notes, sections: Sequence[Section]) -> list[dict[str, Any]]:
    anchors: dict[tuple[str, str], str] = {}
    for section in sections:
        for finding in section.findings:
            anchors.setdefault((section.kind, finding.case), finding.anchor)
    rows = []
    for row in records.cases:
        missed = row["num_lesions"] - row["num_detected_lesions"]
        rows.append(
            {
                "case": row["case"],
                "patient": row["patient"] if row["patient"] is not None else "not given",
                "lesions": row["num_lesions"],
                "found": row["num_detected_lesions"],
                "missed": missed,
                "missed_anchor": anchors.get(("missed", row["case"])),
                "false": row["num_false_candidates"],
                "false_anchor": anchors.get(("false", row["case"])),
                "dice": notes.show(number(row["voxel_dice"]), "voxel_dice", f"case '{row['case']}'"),
                "reference": notes.show(volume(row["reference_volume_ml"]), "reference_volume_ml", row["case"]),
                "predicted": notes.show(volume(row["predicted_volume_ml"]), "predicted_volume_ml", row["case"]),
            }
        )
    return rows


def _sections(records: Records, images: Images, notes: Notes, max_pictures: int) -> list[Section]:
    missed = [row for row in records.lesions if not row["detected"]]
    false = [row for row in records.candidates if row["above_threshold"] and not row["true"]]
    missed.sort(key=lambda row: -(row["volume_ml"] or 0.0))
    false.sort(key=lambda row: -(row["confidence"] or 0.0))
    num_missed, num_false = _share_out(len(missed), len(false), max_pictures)
    shown: dict[Kind, list[Mapping[str, Any]]] = {"missed": missed[:num_missed], "false": false[:num_false]}
    views = _draw_all(shown, images)
    totals = {"missed": len(missed), "false": len(false)}
    return [
        Section(
            kind=kind,
            total=totals[kind],
            findings=[
                _finding(kind, number_on_page, row, views[kind, number_on_page], notes)
                for number_on_page, row in enumerate(rows, start=1)
            ],
        )
        for kind, rows in shown.items()
    ]


def _share_out(num_missed: int, num_false: int, most: int) -> tuple[int, int]:
    """Share the pictures: half each, and what one kind does not need goes to the other."""
    first = min(num_missed, max(most - most // 2, most - num_false))
    return first, min(num_false, most - first)


def _draw_all(
    shown: Mapping[Kind, Sequence[Mapping[str, Any]]], images: Images
) -> dict[tuple[Kind, int], Sequence[View]]:
    """Draw case by case, so that no volume is read twice and only one case is in memory."""
    by_case: dict[str, list[tuple[Kind, int, Mapping[str, Any]]]] = {}
    for kind, rows in shown.items():
        for position, row in enumerate(rows, start=1):
            by_case.setdefault(row["case"], []).append((kind, position, row))
    views: dict[tuple[Kind, int], Sequence[View]] = {}
    for case, wanted in by_case.items():
        volumes = images(case)
        for kind, position, row in wanted:
            if volumes is None:
                views[kind, position] = ()
            else:
                centre = (row["i"], row["j"], row["k"])
                views[kind, position] = look_at(volumes, centre, diameter_mm=row["equivalent_diameter_mm"] or 0.0)
    return views


def _finding(kind: Kind, position: int, row: Mapping[str, Any], views: Sequence[View], notes: Notes) -> Finding:
    name = "lesion" if kind == "missed" else "candidate"
    where = f"case '{row['case']}', {name} {row[name]}"
    diameter = number(row["equivalent_diameter_mm"], 1)
    world = [number(row[key], 1) for key in ("x_mm", "y_mm", "z_mm")]
    voxel = [number(row[key], 1) for key in ("i", "j", "k")]
    facts = [
        ("Volume", notes.show(volume(row["volume_ml"]), "volume_ml", where)),
        ("Diameter", notes.show(diameter and f"{diameter}\u00a0mm", "equivalent_diameter_mm", where)),
        (
            "Found from confidence" if kind == "missed" else "Confidence",
            notes.show(number(row["confidence"], 3), "confidence", where),
        ),
        ("World x, y, z (RAS)", notes.show(_triple(world, "\u00a0mm"), "x_mm, y_mm, z_mm", where)),
        ("Voxel i, j, k", notes.show(_triple(voxel), "i, j, k", where)),
    ]
    title = f"{'Missed lesion' if kind == 'missed' else 'False candidate'} {row[name]}"
    return Finding(f"{kind}-{position}", row["case"], title, facts, views)


def _triple(parts: Sequence[str | None], unit: str = "") -> str | None:
    texts = [part for part in parts if part is not None]
    return ", ".join(texts) + unit if len(texts) == 3 else None


def package_versions() -> list[tuple[str, str]]:
    """Names and versions of this package and of those that its numbers come from."""
    rows = [("medfocal", __version__), ("Python", platform.python_version())]
    for name in PACKAGES:
        try:
            rows.append((name, version(name)))
        except PackageNotFoundError:
            rows.append((name, "not installed"))
    return rows
