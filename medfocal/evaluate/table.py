"""The lesion table of a case: all that is ever measured on its images, without a volume.

Hit rule, assignment, strata, operating point and intervals are functions of it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medfocal.components import Components
from medfocal.evaluate.overlap import Overlaps
from medfocal.files import plain

#: Columns of a surface measurement, in the order in which they are stored; see `medfocal.evaluate.surface`.
SURFACE_FIGURES = ("hd95_mm", "hd95_pooled_mm", "assd_mm", "masd_mm", "nsd")


@dataclass(frozen=True, eq=False)
class Parts:
    """Lesions or candidates of a case; row `n - 1` of each column belongs to number `n`.

    Attributes:
        num_voxels: Voxels, int64 (n,).
        volume_ml: Volume in millilitres, (n,).
        equivalent_diameter_mm: Diameter of the sphere of the same volume, (n,).
        longest_diameter_mm: Longest distance between corners of voxels, (n,).
        axial_diameter_mm: The same within one slice, the longest of all slices, (n,).
        centroid_voxel: Mean voxel index, (n, 3).
        centroid_mm: The same point in world coordinates (RAS), (n, 3).
        bounding_box: First index and the index after the last along each axis, int64 (n, 3, 2).
        confidence: Confidence, (n,). NaN for lesions, 1 for candidates from a mask.
        ignored_voxels: Voxels in the region to be ignored, int64 (n,).
    """

    num_voxels: NDArray[np.int64]
    volume_ml: NDArray[np.float64]
    equivalent_diameter_mm: NDArray[np.float64]
    longest_diameter_mm: NDArray[np.float64]
    axial_diameter_mm: NDArray[np.float64]
    centroid_voxel: NDArray[np.float64]
    centroid_mm: NDArray[np.float64]
    bounding_box: NDArray[np.int64]
    confidence: NDArray[np.float64]
    ignored_voxels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.num_voxels)

    @classmethod
    def of(cls, components: Components, ignored_voxels: NDArray[np.int64] | None = None) -> Parts:
        """Take the measurements of `components`, and leave their voxels."""
        own = {f.name: getattr(components, f.name) for f in fields(cls) if f.name != "ignored_voxels"}
        none = np.zeros(len(components), np.int64)
        return cls(**own, ignored_voxels=none if ignored_voxels is None else ignored_voxels)


@dataclass(frozen=True, eq=False)
class CaseTable:
    """One case, measured.

    Attributes:
        case: Name of the case.
        patient: Name of the patient.
        lesions: Lesions of the reference.
        candidates: Candidates of the prediction, those below the threshold too.
        overlaps: Pairs of a lesion and a candidate that share voxels, or whose grown lesion does.
        candidate_point_lesion: Number of the lesion in which each candidate's point lies, 0 for none, int64
            (candidates,). The point is its highest voxel, in a mask the voxel nearest to its centroid.
        pair_ignored_voxels: Of the voxels that each pair in `overlaps` shares, those in the region to be ignored, int64
            (pairs,).
        voxel_volume_ml: Volume of a voxel.
        scanned_litres: Volume of the whole image without the region to be ignored.
        shaping: The rules that lesions and candidates were made by (`Protocol.shaping`).
        is_mask: Whether the prediction was a mask, so that all confidences are 1.
        surface_threshold: Threshold at which the mask of `surface` was taken; NaN if surfaces were not measured.
        tolerance_mm: Tolerance of the normalised surface distances.
        surface: Surface figures of the whole case by name, `SURFACE_FIGURES`; empty if not measured.
        pair_surface: The same of each pair in `overlaps`, (pairs, figures); NaN if not measured.
        missing: Whether there was no prediction and it was counted as empty.
    """

    case: str
    patient: str
    lesions: Parts
    candidates: Parts
    overlaps: Overlaps
    candidate_point_lesion: NDArray[np.int64]
    pair_ignored_voxels: NDArray[np.int64]
    voxel_volume_ml: float
    scanned_litres: float
    shaping: Mapping[str, Any]
    is_mask: bool
    surface_threshold: float = float("nan")
    tolerance_mm: float = float("nan")
    surface: Mapping[str, float] = field(default_factory=dict)
    pair_surface: NDArray[np.float64] | None = None
    missing: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Give plain values, which JSON can hold without loss; NaN becomes None."""
        own = {f.name: _plain(getattr(self, f.name)) for f in fields(self) if f.name not in _PART_FIELDS}
        parts = {name: {f.name: _plain(getattr(getattr(self, name), f.name)) for f in fields(Parts)} for name in _SIDES}
        overlaps = {f.name: _plain(getattr(self.overlaps, f.name)) for f in fields(Overlaps)}
        return {**own, **parts, "overlaps": overlaps}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> CaseTable:
        """Read what `to_dict` gave.

        Raises:
            KeyError, TypeError, ValueError: It is something else.
        """
        own = {f.name: values[f.name] for f in fields(cls) if f.name not in _PART_FIELDS}
        for name in ("surface_threshold", "tolerance_mm"):
            own[name] = float("nan") if own[name] is None else float(own[name])
        own["surface"] = {name: np.nan if value is None else value for name, value in own["surface"].items()}
        own["candidate_point_lesion"] = np.array(own["candidate_point_lesion"], np.int64)
        own["pair_ignored_voxels"] = np.array(own["pair_ignored_voxels"], np.int64)
        if own["pair_surface"] is not None:
            own["pair_surface"] = np.array(own["pair_surface"], np.float64).reshape(-1, len(SURFACE_FIGURES))
        parts: dict[str, Any] = {
            name: Parts(**{f.name: _column(f.name, values[name][f.name]) for f in fields(Parts)}) for name in _SIDES
        }
        overlaps = Overlaps(**{f.name: np.array(values["overlaps"][f.name], np.int64) for f in fields(Overlaps)})
        table = cls(**own, **parts, overlaps=overlaps)
        table._check()
        return table

    def _check(self) -> None:
        """Hold what was read against what a table can be; a file of tables may have been changed by hand."""
        lesions, candidates, overlaps = self.lesions, self.candidates, self.overlaps
        columns = [(len(parts), getattr(parts, f.name)) for parts in (lesions, candidates) for f in fields(Parts)]
        columns += [(len(candidates), self.candidate_point_lesion), (len(overlaps), self.pair_ignored_voxels)]
        columns += [(len(overlaps), getattr(overlaps, f.name)) for f in fields(Overlaps)]
        columns += [] if self.pair_surface is None else [(len(overlaps), self.pair_surface)]
        key = overlaps.lesion * (len(candidates) + 1) + overlaps.candidate
        confidence = candidates.confidence
        fits = (
            all(len(column) == length for length, column in columns),
            all((parts.num_voxels >= 1).all() and (parts.volume_ml > 0).all() for parts in (lesions, candidates)),
            bool(((confidence >= 0) & (confidence <= 1)).all()) and bool(np.isnan(lesions.confidence).all()),
            all(
                bool(((number >= 1) & (number <= most)).all())
                for number, most in ((overlaps.lesion, len(lesions)), (overlaps.candidate, len(candidates)))
            ),
            bool((np.diff(key) > 0).all()) and bool((overlaps.num_grown >= 1).all()),
            self.voxel_volume_ml > 0 and 0 <= self.scanned_litres < float("inf"),
            isinstance(self.is_mask, bool) and isinstance(self.missing, bool),
            isinstance(self.case, str) and isinstance(self.patient, str) and isinstance(self.shaping, Mapping),
            not self.surface or set(self.surface) == set(SURFACE_FIGURES),
            math.isnan(self.surface_threshold) == (not self.surface),
        )
        if not all(fits):
            message = f"a table of case {self.case!r} does not fit together: check {fits.index(False)}"
            raise ValueError(message)


_SIDES = ("lesions", "candidates")
_PART_FIELDS = (*_SIDES, "overlaps")
_SHAPES = {"centroid_voxel": (-1, 3), "centroid_mm": (-1, 3), "bounding_box": (-1, 3, 2)}
_WHOLE = ("num_voxels", "bounding_box", "ignored_voxels")


def _plain(value: Any) -> Any:
    """Turn a column into lists; only those with NaN are gone through, since many cases have a million columns."""
    if isinstance(value, np.ndarray) and not (value.dtype.kind == "f" and np.isnan(value).any()):
        return value.tolist()
    return plain(value)


def _column(name: str, values: list[Any]) -> NDArray[Any]:
    dtype = np.int64 if name in _WHOLE else np.float64
    return np.array(values, dtype).reshape(_SHAPES.get(name, (-1,)))
