"""The page of `medfocal check`: what is wrong first, then the set in figures, then a look at each case."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from medfocal.data.check import CaseReport, DatasetReport, Finding, Kind, Severity
from medfocal.data.check.visits import NUM_PATCHES, Visits
from medfocal.data.manifest import SPLITS, Case
from medfocal.errors import InputError
from medfocal.parallel import in_processes
from medfocal.progress import track
from medfocal.report.figures import Drawing, Theme, draw_figure, dress
from medfocal.report.page import package_versions, write_page
from medfocal.report.pictures import FIELD_MM, CaseImages, View, look_at
from medfocal.report.tables import count, number, volume
from medfocal.volume import Volume, read_labels, read_volume, resample_nearest

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Most findings of one kind that the page lists; dataset_report.json has all.
NUM_LISTED = 30
#: Most rows of the table of cases.
NUM_ROWS = 2000
ORDER = {severity: place for place, severity in enumerate(Severity)}
#: What is drawn of a lesion with fewer expected visits than this.
FEWEST_DRAWN = 1e-2


@dataclass(frozen=True)
class CasePicture:
    """A case as the page shows it; `views` is empty, and `why` says so, where no picture can be had."""

    case: str
    split: str
    anchor: str
    facts: Sequence[tuple[str, str]]
    findings: Sequence[Finding]
    views: Sequence[View]
    why: str = ""


def write_dataset_page(path: Path, report: DatasetReport, *, max_pictures: int = 40, workers: int = 1) -> Path:
    """Write one HTML file that needs nothing else.

    Pictured are cases with errors first, then those with warnings, with notes, and the others.

    Args:
        path: Of the HTML file; it appears once it is complete.
        report: What `check_dataset` found.
        max_pictures: Most cases to picture.
        workers: Processes that draw.

    Returns:
        `path`.

    Raises:
        ResourceError: It cannot be written.
    """
    pictures = _pictures(report, max_pictures, workers)
    anchors = {picture.case: picture.anchor for picture in pictures}
    content = {
        "title": f"Check of {report.manifest.name}",
        "made": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "subtitle": _subtitle(report),
        "answer": _answer(report),
        "headlines": _headlines(report),
        "groups": _groups(report, anchors),
        "num_findings": len(report.findings),
        "splits": report.split_rows(),
        "shares": {row.split: _range(row.lesion_share) for row in report.split_rows()},
        "agreement": _agreement(report),
        "visits": None if report.visits is None else _visits(report.visits),
        "pictures": pictures,
        "num_cases": len(report.cases),
        "cases": [_case_row(case, anchors) for case in report.cases[:NUM_ROWS]],
        "field_mm": f"{FIELD_MM:g}",
        "versions": package_versions(),
    }
    return write_page(path, "dataset.html.j2", content)


def _subtitle(report: DatasetReport) -> str:
    channels = ", ".join(report.manifest.channels) or "no images"
    labels = ", ".join(f"{value} {name}" for value, name in report.manifest.labels.items())
    return f"{report.manifest.path}; channels: {channels}; labels: {labels}"


def _answer(report: DatasetReport) -> str:
    errors, warnings = (len(report.of(severity)) for severity in (Severity.ERROR, Severity.WARNING))
    if errors:
        more = f" and {count(warnings, 'warning')}" if warnings else ""
        return f"{count(errors, 'error')}{more}: training would refuse this dataset or learn something wrong."
    if warnings:
        return f"No error, and {count(warnings, 'warning')} that somebody should look at."
    return "No error and no warning."


def _headlines(report: DatasetReport) -> list[dict[str, str]]:
    rows = report.split_rows()
    volumes = [v for case in report.cases for v in case.lesion_volumes_mm3]
    words = "No reference marks a lesion."
    if volumes:
        words = f"Volumes from {volume(min(volumes) / 1000)} to {volume(max(volumes) / 1000)}, "
        words += f"median {volume(float(np.median(volumes)) / 1000)}."
    return [
        {
            "label": "Errors",
            "value": str(len(report.of(Severity.ERROR))),
            "words": f"In {count(sum(case.has_error for case in report.cases), 'case')} and the set as a whole.",
        },
        {
            "label": "Warnings",
            "value": str(len(report.of(Severity.WARNING))),
            "words": f"And {count(len(report.of(Severity.NOTE)), 'note')} that need nothing done.",
        },
        {
            "label": "Cases",
            "value": str(len(report.cases)),
            "words": ", ".join(f"{row.split} {row.num_cases}" for row in rows)
            + f"; {count(sum(row.num_patients for row in rows), 'patient')}.",
        },
        {"label": "Lesions", "value": str(sum(row.num_lesions for row in rows)), "words": words},
    ]


def _groups(report: DatasetReport, anchors: dict[str, str]) -> list[dict[str, Any]]:
    """Findings by kind, errors first."""
    kinds = list(dict.fromkeys(finding.kind for finding in report.findings))
    groups = []
    for kind in sorted(kinds, key=lambda kind: ORDER[_severity(report, kind)]):
        findings = [finding for finding in report.findings if finding.kind is kind]
        advice = list(dict.fromkeys(finding.advice for finding in findings))
        groups.append(
            {
                "kind": str(kind).replace("_", " "),
                "severity": str(findings[0].severity),
                "number": len(findings),
                "advice": advice[0] if len(advice) == 1 else "",
                "lines": [
                    {
                        "case": finding.case,
                        "anchor": anchors.get(finding.case or ""),
                        "message": finding.message,
                        "advice": finding.advice if len(advice) > 1 else "",
                    }
                    for finding in findings[:NUM_LISTED]
                ],
                "more": max(0, len(findings) - NUM_LISTED),
            }
        )
    return groups


def _severity(report: DatasetReport, kind: Kind) -> Severity:
    return next(finding.severity for finding in report.findings if finding.kind is kind)


def _agreement(report: DatasetReport) -> list[dict[str, Any]]:
    if not any(case.agreement for case in report.cases):
        return []
    from medfocal.data.check.readers import agreement_rows

    return [
        {
            "split": row.split,
            "readers": f"{row.first} and {row.second}",
            "num_cases": row.num_cases,
            "dice": number(row.mean_voxel_dice, 3) or "undefined: neither marked a lesion",
            "num_defined": row.num_defined,
            "missed": [
                f"{missed} of {lesions}" for missed, lesions in zip(row.num_missed, row.num_lesions, strict=True)
            ],
        }
        for split in SPLITS
        for row in agreement_rows(split, [case for case in report.cases if case.split == split])
    ]


def _visits(visits: Visits) -> dict[str, Any]:
    rows = [
        {
            "size": f"{row.low_mm3:g} mm³ and more" if math.isinf(row.high_mm3) else _size(row.low_mm3, row.high_mm3),
            "number": row.num_lesions,
            "lowest": _visit(row.by_voxel_lowest),
            "median": _visit(row.by_voxel_median),
            "highest": _visit(row.by_voxel_highest),
            "by_lesion": _visit(row.by_lesion),
        }
        for row in visits.rows()
    ]
    few = int((visits.by_voxel < visits.by_lesion / 10).sum())
    return {
        "drawing": _draw_visits(visits),
        "rows": rows,
        "num_patches": f"{NUM_PATCHES:,}".replace(",", "\u202f"),
        "starved": f"{few} of {count(len(visits.by_voxel), 'lesion')}",
    }


def _size(low: float, high: float) -> str:
    return f"below {high:g} mm³" if low == 0 else f"{low:g} to {high:g} mm³"


def _visit(value: float) -> str:
    return f"{value:.2g}" if value < 100 else f"{value:,.0f}".replace(",", "\u202f")


def _draw_visits(visits: Visits) -> Drawing:
    words = (
        "Expected patches centred on each training lesion by its volume, drawn by voxels (dots) and by lesions (line), "
        "both axes logarithmic."
    )
    return draw_figure((6.4, 3.4), words, functools.partial(_plot_visits, visits=visits))


def _plot_visits(figure: Figure, theme: Theme, *, visits: Visits) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axes: Axes = figure.add_subplot()
    axes.loglog(
        visits.volumes_mm3,
        np.maximum(visits.by_voxel, FEWEST_DRAWN),
        linestyle="none",
        marker="o",
        markersize=4,
        markerfacecolor="none",
        color=theme.first,
        label="drawn by voxels",
    )
    axes.axhline(visits.by_lesion, color=theme.second, linewidth=1.6, label="drawn by lesions")
    # Lesions of one size would give an axis whose marks all read alike.
    axes.set_xlim(float(visits.volumes_mm3.min()) / 1.5, float(visits.volumes_mm3.max()) * 1.5)
    for axis, values in ((axes.xaxis, visits.volumes_mm3), (axes.yaxis, visits.by_voxel)):
        is_long = float(values.max()) > 1000 * float(values.min())
        axis.set_major_locator(LogLocator(base=10, subs=(1.0,) if is_long else (1.0, 2.0, 5.0), numticks=12))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_locator(NullLocator())
    dress(axes, theme, "Visits of each lesion", "volume of the lesion (mm³)", f"patches of {NUM_PATCHES:,}")
    axes.legend(loc="best", fontsize=8, labelcolor=theme.ink, facecolor=theme.paper, edgecolor=theme.grid)


def _pictures(report: DatasetReport, max_pictures: int, workers: int) -> list[CasePicture]:
    def rank(pair: tuple[Case, CaseReport]) -> int:
        return min((ORDER[finding.severity] for finding in pair[1].findings), default=len(ORDER))

    chosen = sorted(zip(report.manifest.cases, report.cases, strict=True), key=rank)[:max_pictures]
    task = functools.partial(draw_case, ignore_value=report.manifest.scheme.ignore_value)
    with in_processes(task, chosen, workers, what="drew cases", name=lambda pair: pair[0].name) as drawn:
        views = list(track(drawn, "draw", total=len(chosen)))
    return [
        CasePicture(
            case=found.case,
            split=found.split,
            anchor=f"case-{place}",
            facts=_facts(found),
            findings=[finding for finding in found.findings if finding.severity is not Severity.NOTE],
            views=view,
            why=why,
        )
        for place, ((_, found), (view, why)) in enumerate(zip(chosen, views, strict=True), start=1)
    ]


def draw_case(pair: tuple[Case, CaseReport], *, ignore_value: int | None) -> tuple[tuple[View, ...], str]:
    """Three planes through the largest lesion, or through the middle.

    Args:
        pair: Files of the case, and what was found in it.
        ignore_value: Label value that is no lesion.

    Returns:
        The views, and why there are none.
    """
    case, found = pair
    try:
        images = _volumes(case, ignore_value)
        if images is None:
            return (), "No file of the case can be drawn."
        middle = [(n - 1) / 2 for n in images.image.shape]
        place = found.largest_lesion if found.largest_lesion is not None else middle
        return look_at(images, place, diameter_mm=found.largest_diameter_mm or 0.0), ""
    except InputError as error:
        return (), str(error)


def _volumes(case: Case, ignore_value: int | None) -> CaseImages | None:
    masks = [case.label] if case.label is not None else list(case.annotations[:2])
    if not (case.images or masks):
        return None
    grid = read_volume(case.images[0] if case.images else masks[0])
    drawn = [_mask(path, grid, ignore_value) for path in masks] + [np.zeros(grid.shape, bool)] * 2
    image = grid.array.astype(np.float32) if case.images else np.zeros(grid.shape, np.float32)
    return CaseImages(
        image=np.nan_to_num(image, nan=0, posinf=0, neginf=0),
        reference=drawn[0],
        predicted=drawn[1],
        spacing_mm=grid.spacing_mm,
        axis_codes=grid.axis_codes,
    )


def _mask(path: Path, grid: Volume, ignore_value: int | None) -> NDArray[np.bool_]:
    """Where a label file marks a lesion, as its header places it; nowhere where it cannot be read."""
    try:
        labels = read_labels(path)
    except InputError:
        return np.zeros(grid.shape, bool)
    inside = labels.with_array(((labels.array > 0) & (labels.array != ignore_value)).astype(np.uint8))
    if inside.shape != grid.shape or not inside.same_grid(grid):
        try:
            inside = resample_nearest(inside, grid)
        except InputError:
            return np.zeros(grid.shape, bool)
    return np.asarray(inside.array > 0)


def _facts(found: CaseReport) -> list[tuple[str, str]]:
    facts = []
    if found.files:
        file = found.files[0]
        facts += [
            ("Voxels", " \u00d7 ".join(map(str, file.shape))),
            ("Spacing", " \u00d7 ".join(f"{s:.3g}" for s in file.spacing_mm) + "\u00a0mm"),
            ("Axes", file.axis_codes),
        ]
    if found.num_lesions is not None:
        facts.append(("Lesions", str(found.num_lesions)))
    if found.lesion_share:
        facts.append(("Share of voxels", f"{100 * found.lesion_share:.2g}\u00a0%"))
    if found.num_reader_lesions:
        facts.append(("Lesions of readers", ", ".join(map(str, found.num_reader_lesions))))
    if found.lesion_volumes_mm3:
        facts.append(("Largest lesion", volume(max(found.lesion_volumes_mm3) / 1000) or ""))
    return facts


def _case_row(found: CaseReport, anchors: dict[str, str]) -> dict[str, Any]:
    file = found.files[0] if found.files else None
    intensity = next((f.percentiles for f in found.images if f.percentiles is not None), None)
    return {
        "case": found.case,
        "anchor": anchors.get(found.case),
        "patient": found.patient,
        "split": found.split,
        "shape": "" if file is None else "\u00d7".join(map(str, file.shape)),
        "spacing": "" if file is None else "\u00d7".join(f"{s:.3g}" for s in file.spacing_mm),
        "axes": "" if file is None else file.axis_codes,
        "dtype": "" if file is None else file.dtype,
        "intensity": "" if intensity is None else f"{intensity['min']:.4g} to {intensity['max']:.4g}",
        "lesions": "" if found.num_lesions is None else found.num_lesions,
        "volume": volume(sum(found.lesion_volumes_mm3) / 1000) if found.lesion_volumes_mm3 else "",
        "worst": str(min((f.severity for f in found.findings), key=ORDER.__getitem__, default="")),
    }


def _range(share: tuple[float, float] | None) -> str:
    return "" if share is None else f"{share[0]:.1e} to {share[1]:.1e}"
