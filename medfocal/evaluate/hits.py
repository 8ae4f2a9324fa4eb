"""Hits: the pairs of a lesion and a candidate that meet the hit rule."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import cdist

from medfocal.evaluate.protocols import HitRule, Protocol
from medfocal.evaluate.table import CaseTable

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Hits:
    """Pairs of a lesion and a candidate, by lesion, then by candidate.

    Attributes:
        lesion: Number of the lesion from 1, int64 (n,).
        candidate: Number of the candidate from 1, int64 (n,).
        measure: How well they meet by the hit rule, the more the better, (n,). The share itself, where the rule is one;
            for distances 1 - distance / limit; shared voxels otherwise.
        preference: What decides between equally sure candidates, the more the better, (n,): shared voxels (with the
            grown lesion, where lesions are grown), and for rules of distance the measure.
    """

    lesion: NDArray[np.int64]
    candidate: NDArray[np.int64]
    measure: Floats
    preference: Floats

    def __len__(self) -> int:
        return len(self.lesion)

    def of(self, rows: NDArray[np.bool_] | NDArray[np.int64]) -> Hits:
        """Give the hits of these rows."""
        return Hits(self.lesion[rows], self.candidate[rows], self.measure[rows], self.preference[rows])


def find_hits(table: CaseTable, protocol: Protocol) -> Hits:
    """Find the pairs that meet the protocol's hit rule, whether or not they are assigned.

    Args:
        table: A case; every candidate that is large enough takes part, however unsure.
        protocol: Its hit rule and `min_candidate_volume_mm3`.

    Returns:
        The hits. No lesion or no candidate: none.
    """
    limit = protocol.hit_threshold
    if protocol.hit_rule == "covered_together":
        return _covered_together(table, protocol)[0]
    if protocol.hit_rule in ("centroid_distance", "centroid_in_radius"):
        hits = _near(table, limit, in_radii=protocol.hit_rule == "centroid_in_radius")
    elif protocol.hit_rule == "point_inside":
        hits = _points_inside(table)
    else:
        hits = measure_overlaps(table, protocol.hit_rule)
        if limit > 0:
            hits = hits.of(hits.measure >= limit)
    return of_large_candidates(hits, table, protocol)


def find_claims(table: CaseTable, protocol: Protocol, hits: Hits) -> Hits:
    """Find the pairs by which candidates are judged: the hits, save where the rule is asked of candidates anew.

    Under "covered_together" a candidate is true if lesions cover enough of it, whether or not it finds one of them.
    """
    return _covered_together(table, protocol)[1] if protocol.hit_rule == "covered_together" else hits


def of_large_candidates(hits: Hits, table: CaseTable, protocol: Protocol) -> Hits:
    """Leave out the hits of candidates below `min_candidate_volume_mm3`."""
    if protocol.min_candidate_volume_mm3 == 0:
        return hits
    large = 1000 * table.candidates.volume_ml >= protocol.min_candidate_volume_mm3
    return hits.of(large[hits.candidate - 1])


def measure_overlaps(table: CaseTable, hit_rule: HitRule) -> Hits:
    """Measure all pairs that share voxels by a rule of overlap, before its threshold."""
    overlaps = table.overlaps
    if hit_rule == "dilated_overlap":
        grown = overlaps.num_grown.astype(np.float64)
        return Hits(overlaps.lesion, overlaps.candidate, grown, grown)
    sharing = overlaps.num_voxels > 0
    lesion, candidate = overlaps.lesion[sharing], overlaps.candidate[sharing]
    shared = overlaps.num_voxels[sharing].astype(np.float64)
    measure = MEASURES[hit_rule](
        shared, table.lesions.num_voxels[lesion - 1], table.candidates.num_voxels[candidate - 1]
    )
    return Hits(lesion, candidate, measure, shared)


#: Measure of a pair from the voxels it shares, those of the lesion and those of the candidate.
MEASURES: dict[HitRule, Callable[[Floats, NDArray[np.int64], NDArray[np.int64]], Floats]] = {
    "any_overlap": lambda shared, lesion, candidate: shared,  # noqa: ARG005  one signature
    "lesion_covered": lambda shared, lesion, candidate: shared / lesion,  # noqa: ARG005
    "covered_together": lambda shared, lesion, candidate: shared / lesion,  # noqa: ARG005
    "iou": lambda shared, lesion, candidate: shared / (lesion + candidate - shared),
    "dice": lambda shared, lesion, candidate: 2 * shared / (lesion + candidate),
}


def _near(table: CaseTable, limit: float, *, in_radii: bool) -> Hits:
    """Pairs with near centroids: at most `limit` mm, or less than `limit` radii of the lesion, apart."""
    distance = cdist(table.lesions.centroid_mm.reshape(-1, 3), table.candidates.centroid_mm.reshape(-1, 3))
    if in_radii:
        distance /= table.lesions.equivalent_diameter_mm[:, None] / 2
    row, column = np.nonzero(distance < limit if in_radii else distance <= limit)
    closeness = 1 - distance[row, column] / limit
    return Hits(row.astype(np.int64) + 1, column.astype(np.int64) + 1, closeness, closeness)


def _points_inside(table: CaseTable) -> Hits:
    """Pairs of a candidate and the lesion in which its point lies."""
    candidate = np.flatnonzero(table.candidate_point_lesion).astype(np.int64) + 1
    lesion = table.candidate_point_lesion[candidate - 1]
    order = np.lexsort((candidate, lesion))
    lesion, candidate = lesion[order], candidate[order]
    shared = shared_voxels(table, lesion, candidate).astype(np.float64)
    return Hits(lesion, candidate, shared, shared)


def shared_voxels(table: CaseTable, lesion: NDArray[np.int64], candidate: NDArray[np.int64]) -> NDArray[np.int64]:
    """Count the voxels that each pair shares; 0 for a pair that is not in the table's overlaps."""
    # The row -1 of a pair that is not there takes the 0 at the end.
    return np.append(table.overlaps.num_voxels, 0)[table.overlaps.rows_of(lesion, candidate)]


def _covered_together(table: CaseTable, protocol: Protocol) -> tuple[Hits, Hits]:
    """Pairs that overlap, once those of the lesions that are found and once those of the candidates that are true."""
    pairs = of_large_candidates(measure_overlaps(table, "covered_together"), table, protocol)
    sides = (pairs.lesion, table.lesions.num_voxels), (pairs.candidate, table.candidates.num_voxels)
    shared = pairs.preference
    found = []
    for (owner, owner_size), (part, part_size) in (sides, sides[::-1]):
        inside = np.bincount(part, shared, minlength=len(part_size) + 1)[part] / part_size[part - 1]
        covered = np.bincount(owner, shared, minlength=len(owner_size) + 1)
        enough = covered[owner] / owner_size[owner - 1] >= protocol.hit_threshold
        most_first = np.lexsort((part, -shared, owner))
        start = np.searchsorted(owner[most_first], owner[most_first])
        sums = np.concatenate([[0.0], np.cumsum(shared[most_first])])
        before = np.empty(len(pairs))
        before[most_first] = sums[:-1] - sums[start]
        contributes = before < protocol.contributing_share * covered[owner]
        strays = np.bincount(owner, contributes & (1 - inside > protocol.outside_share), minlength=len(covered))
        found.append(pairs.of(enough & (strays[owner] == 0)))
    return found[0], found[1]
