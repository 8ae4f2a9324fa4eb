"""The numbers of an evaluation as a reader meets them: read from files, put into words, undefined never shown as 0."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from medfocal.errors import InputError
from medfocal.files import plain

TEXT_COLUMNS = frozenset({"case", "patient", "verdict"})
TRUTH_COLUMNS = frozenset({"detected", "above_threshold", "ignored"})
TRUTHS = {"true": True, "false": False}

# The evaluation tells why a number is undefined, except in the rows of its tables. There it can be only this:
REASONS_IN_ROWS = {
    "confidence": "no candidate finds this lesion at any threshold",
    "voxel_dice": "reference and prediction at the threshold are both empty",
}
#: Most places that a line on what is undefined names.
NUM_PLACES = 5

MEASURES = {
    "lesion_sensitivity": "Lesion sensitivity",
    "lesion_sensitivity_macro": "Lesion sensitivity, mean of patients",
    "lesion_precision": "Lesion precision",
    "lesion_f1": "Lesion F1",
    "false_positives_per_case": "False candidates per case",
    "false_positives_per_lesion_free_case": "False candidates per lesion-free case",
    "false_positives_per_litre": "False candidates per litre",
    "cpm": "CPM, mean of the FROC points",
    "wafroc": "wAFROC, area (false candidates of lesion-free cases)",
    "wafroc1": "wAFROC1, area (false candidates of all cases)",
    "free_response_ap": "Free-response average precision",
    "case_auroc": "Case AUROC (any lesion or none)",
    "case_ap": "Case average precision",
    "case_sensitivity": "Case sensitivity",
    "case_specificity": "Case specificity",
    "brier": "Brier score of the candidates' confidence",
    "d_ece": "Calibration error of the candidates' confidence (D-ECE)",
    "recognition_quality": "Recognition quality (RQ)",
    "segmentation_quality": "Segmentation quality (SQ)",
    "panoptic_quality": "Panoptic quality (PQ)",
    "voxel_dice": "Voxel Dice, mean of cases",
    "volume_difference_ml": "Volume difference, prediction \u2212 reference, mean of cases (ml)",
    "mean_absolute_volume_difference_ml": "Volume difference without its sign, mean of cases (ml)",
}
# The measures above that are shares of 1 and read best as a percentage.
SHARES = frozenset(
    {
        "lesion_sensitivity",
        "lesion_sensitivity_macro",
        "lesion_precision",
        "case_sensitivity",
        "case_specificity",
    }
)

PROTOCOL = {
    "name": "Protocol",
    "connectivity": "Connectivity of components",
    "candidates": "How a probability map becomes candidates",
    "threshold": "Operating threshold (confidence)",
    "extent_ratio": "Extent ratio of a candidate",
    "floor": "Least confidence of a candidate",
    "confidence": "Confidence of a candidate",
    "reference_dilation": "Steps by which lesions are grown",
    "hit_rule": "Hit rule",
    "hit_threshold": "What the hit rule asks for",
    "outside_share": "Most of a contributing candidate outside of lesions",
    "contributing_share": "Share of what is covered that candidates are looked at for",
    "small_volume_mm3": "Small lesions are below (mm\u00b3)",
    "small_hit_threshold": "What small lesions are asked for",
    "assignment": "Assignment",
    "duplicates": "Second candidate on a found lesion",
    "diameter": "Diameter that counts",
    "min_diameter_mm": "Lesions are ignored below (mm)",
    "min_volume_mm3": "Lesions are ignored below (mm\u00b3)",
    "min_candidate_volume_mm3": "Candidates are left out below (mm\u00b3)",
    "max_ignored_share": "Ignored if more of it lies in the ignored region",
    "diameter_edges_mm": "Borders of the strata by diameter (mm)",
    "volume_edges_mm3": "Borders of the strata by volume (mm\u00b3)",
    "min_lesions": "Least lesions of an estimate",
    "false_positive_rates": "False candidates per case of the FROC points",
    "interval": "Interval of proportions",
    "level": "Level of the intervals",
    "num_resamples": "Resamples of patients",
    "seed": "Seed of the resamples",
    "tolerance_mm": "Tolerance of the surface distance (mm)",
}

# What the choices of a protocol mean; a choice without words here is shown as it is.
CHOICES = {
    ("candidates", "own_height"): "Each hill of the map, down to a share of its own height (extent ratio).",
    ("candidates", "threshold"): "The connected parts at or above the operating threshold.",
    ("confidence", "max"): "The highest probability in it; 1 where the prediction is a mask.",
    ("confidence", "mean_top"): "The mean of its 5 highest probabilities; 1 where the prediction is a mask.",
    ("reference_dilation", "0"): "Lesions are not grown.",
    ("hit_rule", "any_overlap"): "A lesion counts as found when a candidate shares at least one voxel with it.",
    ("hit_rule", "lesion_covered"): "A lesion counts as found when a candidate covers enough of it.",
    ("hit_rule", "iou"): "A lesion counts as found when the IoU of a candidate and the lesion is high enough.",
    ("hit_rule", "dice"): "A lesion counts as found when the Dice of a candidate and the lesion is high enough.",
    (
        "hit_rule",
        "centroid_distance",
    ): "A lesion counts as found when a candidate's centroid is near enough to its own.",
    ("hit_rule", "centroid_in_radius"): (
        "A lesion counts as found when a candidate's centroid is nearer to its own than so many radii of the sphere of "
        "its volume."
    ),
    ("hit_rule", "point_inside"): (
        "A lesion counts as found when a candidate's highest voxel lies in it (of a mask: the voxel nearest to its "
        "centroid)."
    ),
    ("hit_rule", "dilated_overlap"): (
        "A lesion counts as found when a candidate shares at least one voxel with the grown lesion."
    ),
    ("hit_rule", "covered_together"): (
        "A lesion counts as found when all candidates that overlap it cover enough of it together, and those that "
        "cover most of it keep to lesions."
    ),
    ("assignment", "one_to_one_surest_first"): (
        "One to one: a candidate finds at most one lesion. As many lesions as possible are found at every threshold, "
        "then the pairs with most shared voxels are taken."
    ),
    ("assignment", "one_to_one_most_pairs"): "One to one: most pairs, then the largest sum of the rule's measure.",
    ("assignment", "one_to_one_max_sum"): (
        "One to one: the largest sum of the rule's measure, even if that is fewer pairs."
    ),
    ("assignment", "greedy_by_score"): "One to one: the pair of highest measure first.",
    ("assignment", "greedy_by_confidence"): (
        "One to one: the surest candidate first takes the free lesion of its highest measure."
    ),
    ("assignment", "many_to_many"): "Every hit counts: a candidate may find several lesions, and the reverse.",
    ("duplicates", "false"): "It counts as a false candidate.",
    ("duplicates", "ignored"): "It counts as neither true nor false.",
    ("diameter", "longest"): "The longest in 3D.",
    ("diameter", "axial"): "The longest in an axial slice.",
    ("diameter", "equivalent"): "Of the sphere of the same volume.",
    ("min_diameter_mm", "0"): "No lesion is ignored for its diameter.",
    ("min_volume_mm3", "0"): "No lesion is ignored for its volume.",
    ("min_candidate_volume_mm3", "0"): "No candidate is left out for its volume.",
    ("small_volume_mm3", "0"): "Small lesions are judged like the others.",
    ("outside_share", "1"): "Any share.",
    ("contributing_share", "1"): "All of it.",
    ("interval", "clopper_pearson"): "Clopper-Pearson on counts divided by the design effect of patients.",
    ("interval", "wilson"): "Wilson on counts divided by the design effect of patients.",
    ("num_resamples", "0"): "What has no interval in closed form has none here.",
}


class SupportsEvaluation(Protocol):
    """What a report needs of `medfocal.evaluate.Evaluation`."""

    @property
    def cases(self) -> Sequence[Mapping[str, Any]]:
        """Rows of cases.csv."""
        ...

    @property
    def lesions(self) -> Sequence[Mapping[str, Any]]:
        """Rows of lesions.csv."""
        ...

    @property
    def candidates(self) -> Sequence[Mapping[str, Any]]:
        """Rows of candidates.csv."""
        ...

    def to_dict(self) -> dict[str, Any]:
        """Give the content of evaluation.json."""
        ...


@dataclass(frozen=True)
class Records:
    """An evaluation as values; undefined is None in the summary, None or NaN in the rows.

    Attributes:
        summary: The content of evaluation.json.
        cases: Rows of cases.csv.
        lesions: Rows of lesions.csv.
        candidates: Rows of candidates.csv.
    """

    summary: Mapping[str, Any]
    cases: Sequence[Mapping[str, Any]]
    lesions: Sequence[Mapping[str, Any]]
    candidates: Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Shown:
    """A value as the page shows it; `note` is the number of the line that says why it is undefined, else 0."""

    text: str
    note: int = 0


@dataclass
class Notes:
    """The numbered list of everything undefined; what the page meets and the evaluation did not list is added.

    What is undefined for one reason in many places is one line: ten thousand cases may well lack a voxel Dice.
    """

    _places: dict[tuple[str, str], list[str]] = field(default_factory=dict)
    _numbers: dict[tuple[str, str], int] = field(default_factory=dict)

    @classmethod
    def of(cls, summary: Mapping[str, Any]) -> Notes:
        """Start with the lines of the evaluation."""
        notes = cls()
        for line in summary["undefined"]:
            notes.add(str(line["what"]), str(line["where"]), str(line["why"]))
        return notes

    @property
    def lines(self) -> list[dict[str, str]]:
        """What, where and why, in the order of the numbers, which start at 1."""
        return [{"what": what, "where": _some(places), "why": why} for (what, why), places in self._places.items()]

    def add(self, what: str, where: str, why: str) -> None:
        """Note that something is undefined; of two reasons for the same thing the first is pointed to."""
        if (what, why) not in self._places:
            self._places[what, why] = []
        self._places[what, why].append(where)
        if (what, where) not in self._numbers:
            self._numbers[what, where] = list(self._places).index((what, why)) + 1

    def show(self, text: str | None, what: str, where: str) -> Shown:
        """Show `text`, or for None 'undefined' with the number of its reason."""
        if text is not None:
            return Shown(text)
        if (what, where) not in self._numbers:
            self.add(what, where, REASONS_IN_ROWS.get(what, "the evaluation gives no reason"))
        return Shown("undefined", self._numbers[what, where])


def _some(places: Sequence[str]) -> str:
    if len(places) <= NUM_PLACES:
        return "; ".join(places)
    return f"{'; '.join(places[:NUM_PLACES])} and {count(len(places) - NUM_PLACES, 'more', 'more')}"


def records_of(evaluation: SupportsEvaluation | str | Path) -> Records:
    """Bring an `Evaluation`, or the folder that `write_evaluation` wrote, into plain values."""
    if isinstance(evaluation, str | Path):
        return read_records(Path(evaluation))
    return Records(
        summary=plain(evaluation.to_dict()),
        cases=evaluation.cases,
        lesions=evaluation.lesions,
        candidates=evaluation.candidates,
    )


def read_records(folder: Path) -> Records:
    """Read evaluation.json, cases.csv, lesions.csv and candidates.csv.

    Raises:
        InputError: A file is missing or is not what `evaluate` writes.
    """
    path = folder / "evaluation.json"
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        message = f"cannot read '{path}': {error}. Give a folder that 'medfocal evaluate' wrote."
        raise InputError(message) from error
    return Records(
        summary=summary,
        cases=_read_rows(folder / "cases.csv"),
        lesions=_read_rows(folder / "lesions.csv"),
        candidates=_read_rows(folder / "candidates.csv"),
    )


def _read_rows(path: Path) -> list[dict[str, Any]]:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return [
                {name: _cell(name, text, f"'{path}', row {number}") for name, text in row.items()}
                for number, row in enumerate(csv.DictReader(file), start=1)
            ]
    except (OSError, UnicodeDecodeError) as error:
        message = f"cannot read '{path}': {error}. Give a folder that 'medfocal evaluate' wrote."
        raise InputError(message) from error


def _cell(name: str, text: str | None, where: str) -> object:
    if not text:
        return None
    if name in TEXT_COLUMNS:
        return text
    try:
        if name in TRUTH_COLUMNS:
            return TRUTHS[text]
        value = float(text)
    except (KeyError, ValueError) as error:
        kind = "true or false" if name in TRUTH_COLUMNS else "a number"
        message = f"{where}: {name} is '{text}', not {kind}."
        raise InputError(message) from error
    return int(value) if value.is_integer() else value


def number(value: float | None, digits: int = 2) -> str | None:
    """Write a number with so many decimals; None and NaN give None."""
    if value is None or not math.isfinite(value):
        return None
    return f"{value:,.{digits}f}".replace(",", "\u202f").replace("-", "\u2212")


def percent(share: float | None) -> str | None:
    """Write a share as a percentage; 99.8 % never becomes 100 %, nor 0.3 % nothing."""
    if share is None or not math.isfinite(share):
        return None
    if 0 < share < 5e-6 or 1 - 5e-6 < share < 1:
        return "under\u00a00.001\u00a0%" if share < 0.5 else "over\u00a099.999\u00a0%"
    digits = 0
    while digits < 3 and f"{100 * share:.{digits}f}" in {f"{0:.{digits}f}", f"{100:.{digits}f}"}:
        if share in {0.0, 1.0}:
            break
        digits += 1
    return f"{100 * share:.{digits}f} %".replace(" ", "\u00a0")


def volume(value_ml: float | None) -> str | None:
    """Write a volume in millilitres, a small one in cubic millimetres."""
    if value_ml is None or not math.isfinite(value_ml):
        return None
    if 0 < value_ml < 0.1:
        return f"{1000 * value_ml:.3g}\u00a0mm³"
    return f"{value_ml:,.2f}\u00a0ml".replace(",", "\u202f")


def count(amount: int, one: str, many: str | None = None) -> str:
    """Write '1 lesion' and '2 lesions'."""
    return f"{amount:,} {one if amount == 1 else many or one + 's'}".replace(",", "\u202f")


def rate(value: float | None) -> str | None:
    """Write a rate of false candidates with two digits that count, such as 0.9, 0.04 and 12."""
    if value is None or not math.isfinite(value):
        return None
    return f"{value:.2g}" if value < 99.5 else number(value, 0)


def interval(of: Mapping[str, Any], text: Callable[[float | None], str | None]) -> str:
    """Write '76 % to 98 %', or nothing where there is no interval."""
    low, high = text(of.get("low")), text(of.get("high"))
    return f"{low} to {high}" if low and high else ""


def answer(summary: Mapping[str, Any]) -> str:
    """Say in one sentence how many lesions were found, at how many false candidates."""
    found = summary["lesion_sensitivity"]
    false = rate(summary["false_positives_per_case"]["value"])
    plural = "" if false == "1" else "s"
    false_words = f"{false or 'an undefined number of'} false positive{plural} per case"
    share = percent(found["value"])
    if share is None:
        return f"There is no lesion to find; {false_words}."
    brackets = [share]
    if found["low"] is not None and found["high"] is not None:
        low, high = str(percent(found["low"])).removesuffix("\u00a0%"), percent(found["high"])
        brackets.append(f"{percent(found['level'])} interval {low} to {high}")
    counts = f"{summary['num_detected_lesions']} of {count(summary['num_lesions'], 'lesion')} found"
    return f"{counts} ({', '.join(brackets)}) at {false_words}."


def sensitivity_words(rate: Mapping[str, Any]) -> str:
    """Say what the interval of the lesion sensitivity means."""
    low, high = percent(rate["low"]), percent(rate["high"])
    if low is None or high is None:
        return "No interval can be given."
    return f"In patients like these, the true rate is plausibly between {low} and {high}."


def false_positive_words(rate: Mapping[str, Any]) -> str:
    """Say how often a false candidate comes, and what the interval means."""
    value, low, high = rate["value"], number(rate["low"]), number(rate["high"])
    words = ""
    if value is not None and 0 < value < 1 and round(1 / value) > 1:
        words = f"About one in every {round(1 / value)} cases. "
    if low is None or high is None:
        return words + "No interval can be given."
    return words + f"In patients like these, the true rate is plausibly between {low} and {high} per case."


def protocol_rows(protocol: Mapping[str, Any]) -> list[dict[str, str]]:
    """List every parameter of the protocol: its key, its value as it stands, a label and what the value means."""
    return [
        {
            "key": key,
            "label": PROTOCOL.get(key, key),
            "value": _protocol_text(value),
            "words": CHOICES.get((key, _protocol_text(value)), ""),
        }
        for key, value in protocol.items()
    ]


def hit_rule_words(protocol: Mapping[str, Any]) -> str:
    """Say in one or two sentences when a lesion counts as found and what a second candidate on it is."""
    rule = str(protocol["hit_rule"])
    words = CHOICES.get(("hit_rule", rule), f"{rule}.")
    if protocol.get("hit_threshold"):
        unit = {"centroid_distance": "\u00a0mm", "centroid_in_radius": " radii"}.get(rule, "")
        words += f" Asked for: {protocol['hit_threshold']:g}{unit}."
    if str(protocol.get("assignment", "")).startswith(("one_to_one", "greedy")):
        words += " One candidate finds one lesion: of lesions merged in one candidate the others count as missed."
    if protocol.get("duplicates") == "false" and protocol.get("assignment") != "many_to_many":
        words += " A second candidate on a found lesion counts as false."
    return words


def _protocol_text(value: object) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list | tuple):
        return ", ".join(_protocol_text(item) for item in value)
    return str(value)
