"""The page that asks a radiologist to look again, and what `medfocal suspect` prints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from medfocal.annotations.suspect import Kind, Suspect, SuspectList, SuspectRules, form_candidates, read_pair
from medfocal.errors import GeometryError
from medfocal.evaluate.pairs import Pair
from medfocal.report.page import package_versions, write_page
from medfocal.report.pictures import FIELD_MM, CaseImages, View, look_at
from medfocal.report.tables import Notes, Shown, count, number, percent, volume
from medfocal.volume import read_volume

#: What is asked about a suspect of each kind.
TITLES = {Kind.MISSED: "Missed lesion?", Kind.SPURIOUS: "No lesion?", Kind.BOUNDARY: "Another boundary?"}
QUESTIONS = {
    Kind.MISSED: "Nobody marked a lesion here, and the prediction (orange, dashed) sees one. Is there one?",
    Kind.SPURIOUS: "The label (blue, solid) marks a lesion here, and the prediction hardly sees one. Is it one?",
    Kind.BOUNDARY: "Label (blue, solid) and prediction (orange, dashed) draw this lesion differently. Which is right?",
}
#: Rows that the terminal shows, and the table of the page; the CSV holds all.
NUM_PRINTED = 10
NUM_ROWS = 500
RULES = {
    "connectivity": "Connectivity of components",
    "extent_ratio": "Extent ratio of a candidate",
    "floor": "Least confidence of a candidate",
    "confidence": "Confidence of a candidate or a lesion",
    "temperature": "Temperature of the label quality",
    "min_score": "Score from which a suspect is listed",
    "weight_min_score": "Score from which it weighs less",
    "weight_kinds": "What may weigh less",
    "suspect_weight": "Weight of its voxels",
}


@dataclass(frozen=True)
class Finding:
    """A suspect as the page shows it; `views` is empty where no picture can be had."""

    rank: int
    case: str
    title: str
    question: str
    facts: Sequence[tuple[str, Shown]]
    views: Sequence[View]


def write_suspect_page(
    path: Path,
    found: SuspectList,
    pairs: Sequence[Pair],
    *,
    pictures: Mapping[str, Path],
    max_pictures: int,
) -> Path:
    """Write one HTML file that needs nothing else, with pictures of the first suspects.

    Args:
        path: Of the HTML file; it appears once it is complete.
        found: All suspects.
        pairs: The files they were found in.
        pictures: Where the images lie, by case; suspects of other cases have no picture.
        max_pictures: Most suspects to show one by one.

    Returns:
        `path`.

    Raises:
        GeometryError: An image lies on another grid than its reference.
        InputError: A file cannot be read.
    """
    notes = Notes.of({"undefined": found.undefined})
    shown = found.suspects[:max_pictures]
    views = _draw_all(shown, pairs, pictures, found.rules)
    summary = found.to_dict()
    content = {
        "title": "Labels to look at again",
        "made": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "subtitle": ", ".join(
            (
                count(summary["num_cases"], "case"),
                count(summary["num_patients"], "patient"),
                count(summary["num_lesions"], "labelled lesion"),
                count(len(found.suspects), "suspect"),
            )
        ),
        "headlines": _headlines(summary, found.rules),
        "min_score": f"{found.rules.min_score:g}",
        "findings": [_finding(suspect, views.get(suspect.rank, ()), notes) for suspect in shown],
        "num_suspects": len(found.suspects),
        "rows": [_row(suspect, notes) for suspect in found.suspects[:NUM_ROWS]],
        "num_shown": len(shown),
        "cases": [_case_row(case, notes) for case in summary_cases(found)],
        "rules": [(RULES[key], _text(value), key) for key, value in summary["rules"].items()],
        "thresholds": [
            (
                "Voxels labelled background: suspected missed from p",
                _threshold(notes, found.thresholds.lesion, "lesion"),
            ),
            (
                "Voxels labelled lesion: suspected spurious from 1 \u2212 p",
                _threshold(notes, found.thresholds.background, "background"),
            ),
            (
                "Typical voxel Dice of a lesion and its candidate",
                notes.show(number(found.typical_dice), "typical_voxel_dice", "all cases"),
            ),
        ],
        "field_mm": f"{FIELD_MM:g}",
        "versions": package_versions(),
        "undefined": notes.lines,
    }
    return write_page(path, "suspects.html.j2", content)


def print_suspects(found: SuspectList, places: Mapping[str, Path]) -> None:
    """Print how many suspects of each kind there are, the first of them, and where the results lie."""
    summary = found.to_dict()
    lines = [
        f"  {count(summary['num_suspects'][kind], 'suspect'):<14}{kind:<10}"
        f"{summary['num_down_weighted'][kind]} weigh {found.rules.suspect_weight:g}"
        for kind in map(str, Kind)
    ]
    if found.suspects:
        width = max(len("case"), *(len(suspect.case) for suspect in found.suspects[:NUM_PRINTED]))
        lines += ["", f"  rank  kind      {'case':<{width}}  score  confidence  x, y, z mm (RAS)"]
        for suspect in found.suspects[:NUM_PRINTED]:
            score = "   -" if np.isnan(suspect.score) else f"{suspect.score:.2f}"
            place = ", ".join(f"{value:.1f}" for value in suspect.place.centroid_mm)
            lines.append(
                f"  {suspect.rank:>4}  {suspect.kind:<8}  {suspect.case:<{width}}  {score:>5}  "
                f"{suspect.confidence:>10.3f}  {place}"
            )
        if len(found.suspects) > NUM_PRINTED:
            lines.append(f"  … and {len(found.suspects) - NUM_PRINTED} more")
    lines += ["", *(f"  undefined: {line['what']}: {line['why']}" for line in found.undefined)]
    width = max(map(len, places))
    lines += [f"  {name:<{width}}  {place}" for name, place in places.items()]
    print("\n".join(lines), flush=True)


def summary_cases(found: SuspectList) -> list[Mapping[str, Any]]:
    """Rows of `cases.csv`, the worst label quality first."""
    return [vars(case) for case in found.cases]


def _headlines(summary: Mapping[str, Any], rules: SuspectRules) -> list[dict[str, Any]]:
    words = {
        "missed": f"Of {count(summary['num_lonely_candidates'], 'candidate')} that touch no labelled lesion.",
        "spurious": f"Of {count(summary['num_lesions'], 'labelled lesion')}.",
        "boundary": "Labelled lesions that the prediction draws much unlike the label.",
    }
    labels = {
        "missed": "Perhaps missed lesions",
        "spurious": "Perhaps no lesions",
        "boundary": "Perhaps other boundaries",
    }
    return [
        {
            "label": labels[kind],
            "value": summary["num_suspects"][kind],
            "unit": f"{summary['num_down_weighted'][kind]} weigh {rules.suspect_weight:g} in training",
            "words": words[kind],
        }
        for kind in labels
    ]


def _draw_all(
    shown: Sequence[Suspect], pairs: Sequence[Pair], pictures: Mapping[str, Path], rules: SuspectRules
) -> dict[int, Sequence[View]]:
    """Views by rank, drawn case by case, so that only one case is in memory."""
    views: dict[int, Sequence[View]] = {}
    for pair in pairs:
        mine = [suspect for suspect in shown if suspect.case == pair.case]
        if mine and pair.case in pictures:
            volumes = _volumes(pair, pictures[pair.case], mine, rules)
            for suspect in mine:
                place = suspect.place
                views[suspect.rank] = look_at(volumes, place.centroid_voxel, diameter_mm=place.equivalent_diameter_mm)
    return views


def _volumes(pair: Pair, path: Path, suspects: Sequence[Suspect], rules: SuspectRules) -> CaseImages:
    """The volumes of a case; of the candidates those that share a voxel with a lesion or are suspects."""
    reference, probability = read_pair(pair)
    image = read_volume(path)
    if not image.same_grid(reference):
        message = (
            f"case '{pair.case}': the grids of the image '{path}' and the reference '{pair.reference}' differ: "
            f"{image.grid_difference(reference)}. Give images on the grid of the references, or none."
        )
        raise GeometryError(message)
    candidates = form_candidates(probability, reference.affine, rules).labels
    drawn = {s.candidate for s in suspects if s.candidate is not None}
    drawn.update(np.unique(candidates[reference.array != 0]).tolist())
    return CaseImages(
        image=np.nan_to_num(image.array.astype(np.float32), nan=0, posinf=0, neginf=0),
        reference=reference.array != 0,
        predicted=np.isin(candidates, sorted(drawn - {0})),
        spacing_mm=image.spacing_mm,
        axis_codes=image.axis_codes,
    )


def _finding(suspect: Suspect, views: Sequence[View], notes: Notes) -> Finding:
    place = suspect.place
    facts = [
        ("Score", _score(suspect, notes)),
        ("Confidence of the prediction", Shown(f"{suspect.confidence:.3f}")),
        ("Volume", Shown(volume(place.volume_ml) or "")),
        ("Diameter", Shown(f"{number(place.equivalent_diameter_mm, 1)}\u00a0mm")),
        ("World x, y, z (RAS)", Shown(_triple(place.centroid_mm) + "\u00a0mm")),
        ("Voxel i, j, k", Shown(_triple(place.centroid_voxel))),
        ("In training", Shown("weighs less" if suspect.down_weighted else "weighs in full")),
    ]
    if suspect.kind is Kind.BOUNDARY:
        facts.insert(1, ("Voxel Dice", Shown(f"{suspect.voxel_dice:.2f}")))
    return Finding(suspect.rank, suspect.case, TITLES[suspect.kind], QUESTIONS[suspect.kind], facts, views)


def _row(suspect: Suspect, notes: Notes) -> dict[str, Any]:
    return {
        "rank": suspect.rank,
        "kind": str(suspect.kind),
        "case": suspect.case,
        "patient": suspect.patient,
        "score": _score(suspect, notes),
        "confidence": f"{suspect.confidence:.3f}",
        "volume": volume(suspect.place.volume_ml),
        "place": _triple(suspect.place.centroid_mm),
        "down_weighted": suspect.down_weighted,
    }


def _case_row(case: Mapping[str, Any], notes: Notes) -> dict[str, Any]:
    highest = number(case["highest_score"])
    quality = notes.show(percent(case["label_quality"]), "label_quality", f"case '{case['case']}'")
    return {**case, "label_quality": quality, "highest_score": highest or "no suspect"}


def _score(suspect: Suspect, notes: Notes) -> Shown:
    return notes.show(number(suspect.score), f"score of {suspect.kind}", "all cases")


def _threshold(notes: Notes, value: float, name: str) -> Shown:
    return notes.show(number(value, 4), f"voxel_thresholds: {name}", "all cases")


def _triple(values: Sequence[float]) -> str:
    return ", ".join(str(number(value, 1)) for value in values)


def _text(value: object) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value)) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value)
