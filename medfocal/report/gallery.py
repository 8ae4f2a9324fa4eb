"""The missed lesions and false candidates that the page shows one by one, with their pictures."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from medfocal.files import plain
from medfocal.report.pictures import CaseImages, View, look_at
from medfocal.report.tables import Notes, Records, Shown, count, number, volume
from medfocal.report.viewer import ViewerFiles, place_in_volume

Images = Callable[[str], CaseImages | None]
Kind = Literal["missed", "false"]
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Pictures:
    """What is drawn of a finding.

    Attributes:
        views: The planes; empty where no picture can be had.
        volumes: Number of the case in the viewer, None where it is not there.
        place: Where the viewer looks, as shares of the axes to the right, anterior and superior.
    """

    views: Sequence[View] = ()
    volumes: int | None = None
    place: str = ""


@dataclass(frozen=True)
class Finding:
    """A missed lesion or a false candidate, with its picture.

    Attributes:
        anchor: Where the page can be linked to; made of numbers only, since a case may have any name.
        kind: Which of the two it is.
        case: Name of the case.
        title: "Missed lesion 3".
        facts: Label and value of what is known about it.
        size: Its volume in ml, to sort by.
        confidence: Of the candidate; of the one that finds the lesion at a lower threshold, or -1 if none does.
        pictures: The planes and the place in the viewer.
    """

    anchor: str
    kind: Kind
    case: str
    title: str
    facts: Sequence[tuple[str, Shown]]
    size: float
    confidence: float
    pictures: Pictures


@dataclass(frozen=True)
class Gallery:
    """What is shown and how many there are in all.

    Attributes:
        num_missed: Missed lesions.
        num_false: False candidates.
        missed: Those shown, the largest first.
        false: Those shown, the most confident first.
    """

    num_missed: int
    num_false: int
    missed: Sequence[Finding]
    false: Sequence[Finding]


def make_gallery(
    records: Records, images: Images, notes: Notes, *, max_pictures: int, files: ViewerFiles | None
) -> Gallery:
    """Choose the findings to show, draw them and hand the volumes of their cases to the viewer.

    Args:
        records: The evaluation.
        images: Gives the volumes of a case by its name; asked once for each case that has something to show.
        notes: What is undefined here is added to it.
        max_pictures: Most findings to show.
        files: Of the viewer, None where there is none.
    """
    missed, most_missed = _first(
        (row for row in records.lesions if not row["detected"] and not row["ignored"]), "volume_ml", max_pictures
    )
    false, most_false = _first(
        (row for row in records.candidates if row["above_threshold"] and row["verdict"] == "false"),
        "confidence",
        max_pictures,
    )
    num_missed, num_false = share_out(missed, false, max_pictures)
    shown: dict[Kind, Sequence[Row]] = {"missed": most_missed[:num_missed], "false": most_false[:num_false]}
    drawn = _draw_all(shown, images, files)
    found = {
        kind: [_finding(kind, at, row, drawn[kind, at], notes) for at, row in enumerate(rows, start=1)]
        for kind, rows in shown.items()
    }
    return Gallery(missed, false, found["missed"], found["false"])


def _first(rows: Iterable[Row], key: str, most: int) -> tuple[int, list[Row]]:
    """Count rows and keep those of the highest values, without holding the others."""
    amount = 0

    def counted() -> Iterator[Row]:
        nonlocal amount
        for row in rows:
            amount += 1
            yield row

    # Asked for none, nlargest would not even look at them.
    found = heapq.nlargest(max(most, 1), counted(), key=lambda row: row[key] or 0.0)[:most]
    return amount, [plain(row) for row in found]


def share_out(num_missed: int, num_false: int, most: int) -> tuple[int, int]:
    """Share the pictures: half each, and what one kind does not need goes to the other."""
    first = min(num_missed, max(most - most // 2, most - num_false))
    return first, min(num_false, most - first)


def _draw_all(
    shown: Mapping[Kind, Sequence[Row]], images: Images, files: ViewerFiles | None
) -> dict[tuple[Kind, int], Pictures]:
    """Draw case by case, so that no volume is read twice and only one case is in memory."""
    by_case: dict[str, list[tuple[Kind, int, Row]]] = {}
    for kind, rows in shown.items():
        for at, row in enumerate(rows, start=1):
            by_case.setdefault(row["case"], []).append((kind, at, row))
    drawn: dict[tuple[Kind, int], Pictures] = {}
    for case, wanted in by_case.items():
        volumes = images(case)
        number_in_viewer = None if volumes is None or files is None else files.add(volumes)
        for kind, at, row in wanted:
            drawn[kind, at] = Pictures() if volumes is None else _draw(volumes, row, number_in_viewer)
    return drawn


def _draw(volumes: CaseImages, row: Row, number_in_viewer: int | None) -> Pictures:
    centre = (row["i"], row["j"], row["k"])
    return Pictures(
        views=look_at(volumes, centre, diameter_mm=row["equivalent_diameter_mm"] or 0.0),
        volumes=number_in_viewer,
        place=" ".join(f"{share:.5f}" for share in place_in_volume(volumes, centre)),
    )


def _finding(kind: Kind, at: int, row: Row, pictures: Pictures, notes: Notes) -> Finding:
    name = "lesion" if kind == "missed" else "candidate"
    where = f"case '{row['case']}', {name} {row[name]}"

    def length(key: str) -> Shown:
        text = number(row[key], 1)
        return notes.show(text and f"{text}\u00a0mm", key, where)

    world = [number(row[key], 1) for key in ("x_mm", "y_mm", "z_mm")]
    voxel = [number(row[key], 1) for key in ("i", "j", "k")]
    facts = [
        ("Longest diameter", length("longest_diameter_mm")),
        ("Axial diameter", length("axial_diameter_mm")),
        ("Volume", notes.show(volume(row["volume_ml"]), "volume_ml", where)),
        (
            "Found from confidence" if kind == "missed" else "Confidence",
            notes.show(number(row["confidence"], 3), "confidence", where),
        ),
        ("World x, y, z (RAS)", notes.show(_triple(world, "\u00a0mm"), "x_mm, y_mm, z_mm", where)),
        ("Voxel i, j, k", notes.show(_triple(voxel), "i, j, k", where)),
    ]
    if kind == "missed" and row["num_hits"]:
        facts.insert(4, ("Hit, but not found, by", Shown(count(row["num_hits"], "candidate"))))
    return Finding(
        anchor=f"{kind}-{at}",
        kind=kind,
        case=row["case"],
        title=f"{'Missed lesion' if kind == 'missed' else 'False candidate'} {row[name]}",
        facts=facts,
        size=row["volume_ml"] or 0.0,
        confidence=-1.0 if row["confidence"] is None else row["confidence"],
        pictures=pictures,
    )


def _triple(parts: Sequence[str | None], unit: str = "") -> str | None:
    texts = [part for part in parts if part is not None]
    return ", ".join(texts) + unit if len(texts) == 3 else None
