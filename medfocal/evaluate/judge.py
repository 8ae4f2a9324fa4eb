"""Judging a case: which candidates find which lesions under a protocol. Reads tables only, never an image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medfocal.evaluate.hits import Hits, find_claims, find_hits, measure_overlaps, of_large_candidates, shared_voxels
from medfocal.evaluate.matching import assign_hits
from medfocal.evaluate.protocols import HitRule, Protocol
from medfocal.evaluate.table import CaseTable

#: Rules of which `hit_rule_curve` raises the threshold, and the thresholds it does so by default.
CURVE_RULES: tuple[HitRule, ...] = ("iou", "dice", "lesion_covered")
HIT_THRESHOLDS = tuple(step / 20 for step in range(21))


class Verdict(IntEnum):
    """What a candidate is once it counts."""

    FALSE = 0
    TRUE = 1
    DOUBLE = 2  # a further candidate on a found lesion, where duplicates are ignored; or a hit that is too weak
    IGNORED = 3  # it lies in a region, or on a lesion, that is to be ignored, or is too small


@dataclass(frozen=True, eq=False)
class CaseOutcome:
    """A case under a protocol, at every threshold at once.

    Attributes:
        table: What was judged.
        diameter: The diameter that counts, "longest", "axial" or "equivalent".
        lesion_ignored: Whether the lesion is ignored: neither found nor missed, bool (lesions,).
        lesion_candidate: Number of the surest candidate that finds the lesion, 0 if none does, int64 (lesions,).
        lesion_confidence: That candidate's confidence, which is the highest threshold at which the lesion is found; NaN
            if none does, (lesions,).
        lesion_overlap_voxels: Voxels that the lesion shares with that candidate, int64 (lesions,).
        candidate_verdict: `Verdict` of each candidate, int8 (candidates,).
        candidate_lesion: Number of the lesion that the candidate finds (of several the one it shares most with), 0 for
            none, int64 (candidates,).
        candidate_overlap_voxels: Voxels that it shares with that lesion, int64 (candidates,).
        hit_lesion: Lesion of each hit (pairs that meet the hit rule, whether or not they were assigned), (hits,).
        hit_candidate: Candidate of each hit, (hits,).
        pair_lesion: Lesion of each pair that was assigned, (pairs,).
        pair_candidate: Candidate of each, (pairs,).
    """

    table: CaseTable
    diameter: str
    lesion_ignored: NDArray[np.bool_]
    lesion_candidate: NDArray[np.int64]
    lesion_confidence: NDArray[np.float64]
    lesion_overlap_voxels: NDArray[np.int64]
    candidate_verdict: NDArray[np.int8]
    candidate_lesion: NDArray[np.int64]
    candidate_overlap_voxels: NDArray[np.int64]
    hit_lesion: NDArray[np.int64]
    hit_candidate: NDArray[np.int64]
    pair_lesion: NDArray[np.int64]
    pair_candidate: NDArray[np.int64]


def judge(table: CaseTable, protocol: Protocol) -> CaseOutcome:
    """Say which candidates find which lesions.

    In this order: candidates that are too small are left out; hits are found (`medfocal.evaluate.hits`); lesions that
    are too small or lie in the region to be ignored are ignored; hits of the lesions that count are assigned
    (`medfocal.evaluate.matching`). A candidate that then finds no lesion is ignored if it hits ignored lesions and no
    other, or lies in the region to be ignored; it is a double if it hits a lesion that counts and doubles are ignored;
    else it is false.

    Args:
        table: A case.
        protocol: The rules; those that shape lesions and candidates must be the table's.

    Returns:
        The outcome at every threshold. A case without lesions or without candidates has empty columns.

    Raises:
        ValueError: The table was made by other shaping rules than the protocol's.
    """
    check_shaping(table, protocol)
    hits, ignored = find_hits(table, protocol), ignored_lesions(table, protocol)
    pairs, candidate_lesion, verdict = _decide(table, protocol, hits, ignored)
    lesion_candidate = _surest(table, pairs)
    found, finds = np.flatnonzero(lesion_candidate), np.flatnonzero(candidate_lesion)
    lesion_confidence = np.full(len(table.lesions), np.nan)
    lesion_confidence[found] = table.candidates.confidence[lesion_candidate[found] - 1]
    lesion_overlap = np.zeros(len(table.lesions), np.int64)
    lesion_overlap[found] = shared_voxels(table, found + 1, lesion_candidate[found])
    candidate_overlap = np.zeros(len(table.candidates), np.int64)
    candidate_overlap[finds] = shared_voxels(table, candidate_lesion[finds], finds + 1)
    return CaseOutcome(
        table=table,
        diameter=protocol.diameter,
        lesion_ignored=ignored,
        lesion_candidate=lesion_candidate,
        lesion_confidence=lesion_confidence,
        lesion_overlap_voxels=lesion_overlap,
        candidate_verdict=verdict,
        candidate_lesion=candidate_lesion,
        candidate_overlap_voxels=candidate_overlap,
        hit_lesion=hits.lesion,
        hit_candidate=hits.candidate,
        pair_lesion=pairs.lesion,
        pair_candidate=pairs.candidate,
    )


def check_shaping(table: CaseTable, protocol: Protocol) -> None:
    """Refuse a table whose lesions and candidates were made by other rules.

    Raises:
        ValueError: It was.
    """
    wanted, made = protocol.shaping(), dict(table.shaping)
    if protocol.shapes_alike(made, is_mask=table.is_mask):
        return
    names = [name for name in sorted({*wanted, *made}) if wanted.get(name) != made.get(name)]
    differences = ", ".join(f"{name} {made.get(name)!r}, not {wanted.get(name)!r}" for name in names)
    message = (
        f"case {table.case!r} was measured with {differences} as protocol {protocol.name!r} asks."
        " Measure its images again by that protocol."
    )
    raise ValueError(message)


def ignored_lesions(table: CaseTable, protocol: Protocol) -> NDArray[np.bool_]:
    """Tell the lesions that are ignored: too small, or too much inside the region to be ignored."""
    lesions = table.lesions
    ignored = lesions.ignored_voxels > protocol.max_ignored_share * lesions.num_voxels
    if protocol.min_diameter_mm > 0:
        ignored |= getattr(lesions, f"{protocol.diameter}_diameter_mm") < protocol.min_diameter_mm
    if protocol.min_volume_mm3 > 0:
        ignored |= 1000 * lesions.volume_ml < protocol.min_volume_mm3
    return ignored


def _decide(
    table: CaseTable, protocol: Protocol, hits: Hits, ignored: NDArray[np.bool_]
) -> tuple[Hits, NDArray[np.int64], NDArray[np.int8]]:
    """Assign hits and judge candidates.

    Returns:
        The pairs that count, the lesion of each candidate (0 for none), and its verdict.
    """
    counted = hits.of(~ignored[hits.lesion - 1])
    assigned = counted.of(assign_hits(counted, table.candidates.confidence, protocol.assignment))
    small = 1000 * table.lesions.volume_ml < protocol.small_volume_mm3
    weak = small[assigned.lesion - 1] & (assigned.measure < protocol.small_hit_threshold)
    pairs = assigned.of(~weak)
    claims = find_claims(table, protocol, hits)
    true = pairs if claims is hits else claims.of(~ignored[claims.lesion - 1])
    candidate_lesion = _most_shared(table, true)
    verdict = _verdicts(table, protocol, claims, ignored)
    verdict[assigned.candidate[weak] - 1] = Verdict.DOUBLE
    verdict[candidate_lesion > 0] = Verdict.TRUE
    return pairs, candidate_lesion, verdict


def _surest(table: CaseTable, pairs: Hits) -> NDArray[np.int64]:
    """Give each lesion the surest candidate of its pairs, of equals the one it shares most with; 0 for none."""
    # Written from the worst to the best, so that the best remains.
    confidence = table.candidates.confidence[pairs.candidate - 1]
    order = np.lexsort((-pairs.candidate, pairs.preference, confidence))
    surest = np.zeros(len(table.lesions), np.int64)
    surest[pairs.lesion[order] - 1] = pairs.candidate[order]
    return surest


def _most_shared(table: CaseTable, pairs: Hits) -> NDArray[np.int64]:
    """Give each candidate the lesion of its pairs that it shares most with; 0 for none."""
    order = np.lexsort((-pairs.lesion, pairs.preference))
    lesion = np.zeros(len(table.candidates), np.int64)
    lesion[pairs.candidate[order] - 1] = pairs.lesion[order]
    return lesion


def _verdicts(table: CaseTable, protocol: Protocol, claims: Hits, ignored: NDArray[np.bool_]) -> NDArray[np.int8]:
    """Judge candidates as if none found a lesion; later lines outrank earlier ones."""
    candidates = table.candidates
    verdict = np.full(len(candidates), Verdict.FALSE, np.int8)
    verdict[claims.candidate - 1] = Verdict.IGNORED
    on_counted = claims.candidate[~ignored[claims.lesion - 1]]
    verdict[on_counted - 1] = Verdict.FALSE if protocol.duplicates == "false" else Verdict.DOUBLE
    verdict[candidates.ignored_voxels > protocol.max_ignored_share * candidates.num_voxels] = Verdict.IGNORED
    verdict[1000 * candidates.volume_ml < protocol.min_candidate_volume_mm3] = Verdict.IGNORED
    return verdict


@dataclass(frozen=True, eq=False)
class HitRuleCurve:
    """How many lesions are found as the hit rule is made stricter.

    Attributes:
        hit_rule: The rule whose threshold rises.
        thresholds: The thresholds; 0 asks for a shared voxel, (thresholds,).
        patients: Names of the patients, sorted.
        num_lesions: Counted lesions of each, int64 (patients,).
        num_cases: Cases of each, int64 (patients,).
        num_detected: Of the lesions those found, int64 (patients, thresholds).
        num_false: False candidates, int64 (patients, thresholds).
    """

    hit_rule: HitRule
    thresholds: NDArray[np.float64]
    patients: tuple[str, ...]
    num_lesions: NDArray[np.int64]
    num_cases: NDArray[np.int64]
    num_detected: NDArray[np.int64]
    num_false: NDArray[np.int64]


def hit_rule_curve(
    tables: Sequence[CaseTable],
    protocol: Protocol,
    hit_rule: HitRule = "iou",
    thresholds: Sequence[float] = HIT_THRESHOLDS,
) -> HitRuleCurve:
    """Judge every case under each threshold of a hit rule, at the protocol's operating point.

    Overlaps are measured once; lesions, assignment, ignored lesions and duplicates stay the protocol's.

    Args:
        tables: The cases.
        protocol: All other rules.
        hit_rule: "iou", "dice" or "lesion_covered".
        thresholds: Thresholds of the rule in [0, 1], in any order.

    Returns:
        Counts by patient. No cases: no patients.

    Raises:
        ValueError: The rule is another one, or a table was made by other shaping rules than the protocol's.
    """
    if hit_rule not in CURVE_RULES:
        message = f"hit_rule must be one of {CURVE_RULES}, got {hit_rule!r}"
        raise ValueError(message)
    # What belongs to the protocol's own measure does not hold for another.
    others: dict[str, Any] = {"outside_share": 1.0, "contributing_share": 1.0}
    others |= {"small_volume_mm3": 0.0, "small_hit_threshold": 0.0}
    rules = [replace(protocol, hit_rule=hit_rule, hit_threshold=float(value), **others) for value in thresholds]
    patients, patient = np.unique([table.patient for table in tables], return_inverse=True)
    curve = HitRuleCurve(
        hit_rule=hit_rule,
        thresholds=np.array(thresholds, np.float64),
        patients=tuple(patients.tolist()),
        num_lesions=np.zeros(len(patients), np.int64),
        num_cases=np.bincount(patient, minlength=len(patients)).astype(np.int64),
        num_detected=np.zeros((len(patients), len(rules)), np.int64),
        num_false=np.zeros((len(patients), len(rules)), np.int64),
    )
    for row, table in zip(patient.tolist(), tables, strict=True):
        check_shaping(table, protocol)
        ignored = ignored_lesions(table, protocol)
        curve.num_lesions[row] += np.count_nonzero(~ignored)
        hits = of_large_candidates(measure_overlaps(table, hit_rule), table, protocol)
        detected, false = _over_thresholds(table, rules, hits, ignored)
        curve.num_detected[row] += detected
        curve.num_false[row] += false
    return curve


def _over_thresholds(
    table: CaseTable, rules: Sequence[Protocol], hits: Hits, ignored: NDArray[np.bool_]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Count found lesions and false candidates at each threshold, (thresholds,) each.

    Where a lesion and a candidate hit nothing but each other no assignment is needed: the pair holds up to its measure.
    Most are of this kind; the others are judged at each threshold.
    """
    counts = table.candidates.confidence >= rules[0].threshold
    degrees = [np.bincount(numbers)[numbers] for numbers in (hits.lesion, hits.candidate)]
    alone = (degrees[0] == 1) & (degrees[1] == 1)
    clear, others = hits.of(alone), hits.of(~alone)
    _, _, unhit = _decide(table, rules[0], others.of(np.zeros(len(others), np.bool_)), ignored)
    is_false = (unhit == Verdict.FALSE) & counts
    num_detected = np.zeros(len(rules), np.int64)
    num_false = np.full(len(rules), np.count_nonzero(is_false), np.int64)
    for column, rule in enumerate(rules if len(others) else ()):
        pairs, _, verdict = _decide(table, rule, others.of(others.measure >= rule.hit_threshold), ignored)
        num_detected[column] = len(np.unique(pairs.lesion[counts[pairs.candidate - 1]]))
        num_false[column] = np.count_nonzero((verdict == Verdict.FALSE) & counts)
    holds = clear.measure[:, None] >= np.array([rule.hit_threshold for rule in rules])
    finds = counts[clear.candidate - 1] & ~ignored[clear.lesion - 1]
    num_detected += (holds & finds[:, None]).sum(axis=0)
    num_false -= (holds & is_false[clear.candidate - 1][:, None]).sum(axis=0)
    return num_detected, num_false
