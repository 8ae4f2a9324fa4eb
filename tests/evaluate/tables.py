"""Tables of cases from arrays and from numbers, for the tests of this folder."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import numpy as np

from medfocal.config import named_protocol
from medfocal.evaluate.overlap import Overlaps
from medfocal.evaluate.protocols import ANY_OVERLAP, Protocol
from medfocal.evaluate.table import CaseTable, Parts


def named(name: str, **changes: Any) -> Protocol:
    """The protocol of conf/protocol/NAME.yaml, which states every rule, with changes."""
    return replace(_named(name), **changes)


_named = functools.cache(named_protocol)


def parts(num_voxels, *, volume_mm3=None, diameter_mm=None, centroid_mm=None, confidence=None, ignored=None) -> Parts:
    """Parts of these sizes, of voxels of 1 mm3 unless volumes are given."""
    num_voxels = np.asarray(num_voxels, np.int64).reshape(-1)
    n = len(num_voxels)
    volume_ml = np.asarray(num_voxels if volume_mm3 is None else volume_mm3, float) / 1000
    equivalent = np.cbrt(6000 * volume_ml / np.pi)
    diameter = equivalent if diameter_mm is None else np.asarray(diameter_mm, float)
    centroid = np.zeros((n, 3)) if centroid_mm is None else np.asarray(centroid_mm, float).reshape(-1, 3)
    return Parts(
        num_voxels=num_voxels,
        volume_ml=volume_ml,
        equivalent_diameter_mm=equivalent,
        longest_diameter_mm=diameter,
        axial_diameter_mm=diameter,
        centroid_voxel=centroid,
        centroid_mm=centroid,
        bounding_box=np.zeros((n, 3, 2), np.int64),
        confidence=np.full(n, np.nan) if confidence is None else np.asarray(confidence, float),
        ignored_voxels=np.zeros(n, np.int64) if ignored is None else np.asarray(ignored, np.int64),
    )


def table_of(
    shared,
    confidence=None,
    *,
    lesions: Parts | None = None,
    candidates: Parts | None = None,
    grown=None,
    point_lesion=None,
    protocol: Protocol = ANY_OVERLAP,
    **others: Any,
) -> CaseTable:
    """A table with these shared voxels, lesions down and candidates across; parts are of 10 voxels unless given."""
    shared = np.atleast_2d(np.asarray(shared, np.int64))
    grown = shared if grown is None else np.asarray(grown, np.int64)
    num_lesions, num_candidates = shared.shape
    lesion, candidate = np.nonzero(grown)
    if candidates is None:
        sure = np.ones(num_candidates) if confidence is None else confidence
        candidates = parts([10] * num_candidates, confidence=sure)
    point = np.zeros(num_candidates, np.int64) if point_lesion is None else np.asarray(point_lesion, np.int64)
    return CaseTable(
        **{"case": "a", "patient": "a", "voxel_volume_ml": 0.001, "scanned_litres": 1.0, "is_mask": False} | others,
        lesions=parts([10] * num_lesions) if lesions is None else lesions,
        candidates=candidates,
        overlaps=Overlaps(lesion + 1, candidate + 1, shared[lesion, candidate], grown[lesion, candidate]),
        candidate_point_lesion=point,
        pair_ignored_voxels=np.zeros(len(lesion), np.int64),
        shaping=protocol.shaping(),
    )
