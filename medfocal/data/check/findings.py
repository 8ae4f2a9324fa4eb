"""What can be wrong with a dataset, by kind, and how grave each is."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


class Severity(enum.StrEnum):
    """How grave a finding is.

    error: Training refuses it, or would learn or judge something wrong. The command ends with code 3.
    warning: Training accepts it and it is probably a mistake; somebody should look.
    note: Worth knowing; nothing need be done.
    """

    ERROR = "error"
    WARNING = "warning"
    NOTE = "note"


class Kind(enum.StrEnum):
    """What was found; `docs/check.md` explains each."""

    MISSING = "missing"
    UNREADABLE = "unreadable"
    TRUNCATED = "truncated"
    BAD_CHECKSUM = "bad_checksum"
    NOT_GZIP = "not_gzip"
    WRONG_AXES = "wrong_axes"
    IMPOSSIBLE_SPACING = "impossible_spacing"
    ODD_SPACING = "odd_spacing"
    NO_FORM_CODE = "no_form_code"
    ONE_FORM = "one_form"
    FORMS_DISAGREE = "forms_disagree"
    FOURTH_AXIS = "fourth_axis"
    GRIDS_DIFFER = "grids_differ"
    GRIDS_ROUNDED = "grids_rounded"
    MIXED_ORIENTATION = "mixed_orientation"
    MIXED_SPACING = "mixed_spacing"
    LABEL_MIRRORED = "label_mirrored"
    NOT_FINITE_INSIDE = "not_finite_inside"
    NOT_FINITE_OUTSIDE = "not_finite_outside"
    CONSTANT_IMAGE = "constant_image"
    EXTREME_VALUES = "extreme_values"
    UNUSUAL_INTENSITY = "unusual_intensity"
    CT_WITHOUT_NEGATIVES = "ct_without_negatives"
    LABEL_NOT_WHOLE = "label_not_whole"
    LABEL_ROUNDED = "label_rounded"
    LABEL_STORED_AS_FLOAT = "label_stored_as_float"
    LABEL_0_255 = "label_0_255"
    LABEL_UNNAMED = "label_unnamed"
    LABEL_WITHOUT_BACKGROUND = "label_without_background"
    LABEL_EMPTY = "label_empty"
    SPECKS = "specks"
    LESION_OUTSIDE_BODY = "lesion_outside_body"
    DUPLICATE_ACROSS_SPLITS = "duplicate_across_splits"
    DUPLICATE_IMAGE = "duplicate_image"
    DUPLICATE_LABEL = "duplicate_label"
    READERS_DISJOINT = "readers_disjoint"
    READERS_DISAGREE = "readers_disagree"
    UNUSABLE_ANNOTATION = "unusable_annotation"
    NO_LESION_TO_LEARN = "no_lesion_to_learn"
    SPLIT_WITHOUT_LESION = "split_without_lesion"
    FEW_LESIONS = "few_lesions"


_ERROR, _WARNING, _NOTE = Severity.ERROR, Severity.WARNING, Severity.NOTE

#: How grave each kind is; one severity a kind, so that the list of kinds says it all.
SEVERITIES: Mapping[Kind, Severity] = {
    Kind.MISSING: _ERROR,
    Kind.UNREADABLE: _ERROR,
    Kind.TRUNCATED: _ERROR,
    Kind.BAD_CHECKSUM: _ERROR,
    Kind.NOT_GZIP: _ERROR,
    Kind.WRONG_AXES: _ERROR,
    Kind.IMPOSSIBLE_SPACING: _ERROR,
    Kind.ODD_SPACING: _WARNING,
    Kind.NO_FORM_CODE: _WARNING,
    Kind.ONE_FORM: _NOTE,
    Kind.FORMS_DISAGREE: _WARNING,
    Kind.FOURTH_AXIS: _NOTE,
    Kind.GRIDS_DIFFER: _ERROR,
    Kind.GRIDS_ROUNDED: _NOTE,
    Kind.MIXED_ORIENTATION: _NOTE,
    Kind.MIXED_SPACING: _NOTE,
    Kind.LABEL_MIRRORED: _WARNING,
    Kind.NOT_FINITE_INSIDE: _ERROR,
    Kind.NOT_FINITE_OUTSIDE: _NOTE,
    Kind.CONSTANT_IMAGE: _ERROR,
    Kind.EXTREME_VALUES: _WARNING,
    Kind.UNUSUAL_INTENSITY: _WARNING,
    Kind.CT_WITHOUT_NEGATIVES: _WARNING,
    Kind.LABEL_NOT_WHOLE: _ERROR,
    Kind.LABEL_ROUNDED: _NOTE,
    Kind.LABEL_STORED_AS_FLOAT: _NOTE,
    Kind.LABEL_0_255: _ERROR,
    Kind.LABEL_UNNAMED: _ERROR,
    Kind.LABEL_WITHOUT_BACKGROUND: _WARNING,
    Kind.LABEL_EMPTY: _NOTE,
    Kind.SPECKS: _NOTE,
    Kind.LESION_OUTSIDE_BODY: _WARNING,
    Kind.DUPLICATE_ACROSS_SPLITS: _ERROR,
    Kind.DUPLICATE_IMAGE: _WARNING,
    Kind.DUPLICATE_LABEL: _WARNING,
    Kind.READERS_DISJOINT: _WARNING,
    Kind.READERS_DISAGREE: _WARNING,
    Kind.UNUSABLE_ANNOTATION: _ERROR,
    Kind.NO_LESION_TO_LEARN: _ERROR,
    Kind.SPLIT_WITHOUT_LESION: _WARNING,
    Kind.FEW_LESIONS: _WARNING,
}


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong, or worth knowing.

    Attributes:
        kind: What.
        message: What, where and the values, in a sentence.
        advice: What to do.
        case: In which case; None where it is about the set.
        file: In which file; None where it is about several.
        values: The values that the message names, for programs.
    """

    kind: Kind
    message: str
    advice: str
    case: str | None = None
    file: str | None = None
    values: Mapping[str, Any] = field(default_factory=dict)

    @property
    def severity(self) -> Severity:
        """How grave it is."""
        return SEVERITIES[self.kind]

    @property
    def words(self) -> str:
        """The message with its case, as one reads it."""
        return f"case '{self.case}': {self.message}" if self.case is not None else self.message

    def to_dict(self) -> dict[str, Any]:
        """As `dataset_report.json` holds it."""
        return {"kind": str(self.kind), "severity": str(self.severity)} | {
            name: getattr(self, name) for name in ("case", "file", "message", "advice", "values")
        }
