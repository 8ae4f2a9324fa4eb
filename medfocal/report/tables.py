"""The numbers of an evaluation as a reader meets them: read from files, put into words, undefined never shown as 0."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from medfocal.errors import InputError
from medfocal.files import plain

TEXT_COLUMNS = frozenset({"case", "patient"})
TRUTH_COLUMNS = frozenset({"detected", "above_threshold", "true"})
TRUTHS = {"true": True, "false": False}

# The evaluation tells why a number is undefined, except in the rows of its tables. There it can be only this:
REASONS_IN_ROWS = {
    "confidence": "no candidate finds this lesion at any threshold",
    "voxel_dice": "reference and prediction at the threshold are both empty",
}

MEASURES = {
    "lesion_sensitivity": "Lesion sensitivity",
    "lesion_sensitivity_macro": "Lesion sensitivity, mean of patients",
    "lesion_precision": "Lesion precision",
    "lesion_f1": "Lesion F1",
    "false_positives_per_case": "False candidates per case",
    "false_positives_per_litre": "False candidates per litre",
}
# The measures above that are shares of 1 and read best as a percentage.
SHARES = frozenset({"lesion_sensitivity", "lesion_sensitivity_macro", "lesion_precision"})

PROTOCOL = {
    "name": "Protocol",
    "hit_rule": "Hit rule",
    "assignment": "Assignment",
    "duplicates": "Second candidate on a found lesion",
    "connectivity": "Connectivity of components",
    "threshold": "Operating threshold (confidence)",
    "extent_ratio": "Extent ratio of a candidate",
    "floor": "Least confidence of a candidate",
    "confidence": "Confidence of a candidate",
    "false_positive_rates": "False candidates per case of the FROC points",
    "level": "Level of the intervals",
}

# What the choices of a protocol mean; a choice without words here is shown as it is.
CHOICES = {
    ("hit_rule", "any_overlap"): "A lesion counts as found when a candidate shares at least one voxel with it.",
    ("assignment", "one_to_one_surest_then_most_overlap"): (
        "One to one: a candidate finds at most one lesion. As many lesions as possible are found at every threshold, "
        "then the pairs with most shared voxels are taken."
    ),
    ("duplicates", "false"): "It counts as a false candidate.",
    ("confidence", "max"): "The highest probability in it; 1 where the prediction is a mask.",
    ("confidence", "mean_top"): "The mean of its 5 highest probabilities; 1 where the prediction is a mask.",
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
    """An evaluation as plain values; undefined is None.

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
    """The numbered list of everything undefined; what the page meets and the evaluation did not list is added."""

    lines: list[dict[str, str]] = field(default_factory=list)

    @classmethod
    def of(cls, summary: Mapping[str, Any]) -> Notes:
        """Start with the lines of the evaluation."""
        return cls([{key: str(line[key]) for key in ("what", "where", "why")} for line in summary["undefined"]])

    def show(self, text: str | None, what: str, where: str) -> Shown:
        """Show `text`, or for None 'undefined' with the number of its reason."""
        if text is not None:
            return Shown(text)
        for position, line in enumerate(self.lines, start=1):
            if line["what"] == what and line["where"] == where:
                return Shown("undefined", position)
        why = REASONS_IN_ROWS.get(what, "the evaluation gives no reason")
        self.lines.append({"what": what, "where": where, "why": why})
        return Shown("undefined", len(self.lines))


def records_of(evaluation: SupportsEvaluation | str | Path) -> Records:
    """Bring an `Evaluation`, or the folder that `write_evaluation` wrote, into plain values."""
    if isinstance(evaluation, str | Path):
        return read_records(Path(evaluation))
    return Records(
        summary=plain(evaluation.to_dict()),
        cases=plain(list(evaluation.cases)),
        lesions=plain(list(evaluation.lesions)),
        candidates=plain(list(evaluation.candidates)),
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
            "words": CHOICES.get((key, str(value)), ""),
        }
        for key, value in protocol.items()
    ]


def hit_rule_words(protocol: Mapping[str, Any]) -> str:
    """Say in one or two sentences when a lesion counts as found and what a second candidate on it is."""
    rule = str(protocol["hit_rule"])
    words = CHOICES.get(("hit_rule", rule), f"{rule}.")
    if protocol.get("duplicates") == "false":
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
