"""What counts as found: every choice an evaluation depends on, in one value that is printed with its results.

The rules come in three kinds. *Shaping* rules say what a lesion and a candidate are, and need the images. *Judging*
rules say which candidate finds which lesion, and *reporting* rules how the outcome is counted; both are functions of
the table of a case (`medfocal.evaluate.table`) and never read an image again.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args, get_origin, get_type_hints

from medfocal.components import CONNECTIVITIES, Confidence

CandidateRule = Literal["own_height", "threshold"]
HitRule = Literal[
    "any_overlap",
    "lesion_covered",
    "iou",
    "dice",
    "centroid_distance",
    "centroid_in_radius",
    "point_inside",
    "dilated_overlap",
    "covered_together",
]
Assignment = Literal[
    "one_to_one_surest_first",
    "one_to_one_most_pairs",
    "one_to_one_max_sum",
    "greedy_by_score",
    "greedy_by_confidence",
    "many_to_many",
]
Duplicates = Literal["false", "ignored"]
Diameter = Literal["longest", "axial", "equivalent"]
Interval = Literal["clopper_pearson", "wilson"]

#: Rules that need the images: tables made under others cannot be judged by these.
SHAPING = (
    "connectivity",
    "candidates",
    "extent_ratio",
    "floor",
    "confidence",
    "reference_dilation",
)
SHARES = ("threshold", "outside_share", "contributing_share", "small_hit_threshold", "max_ignored_share")


#: Those that masks need.
MASK_SHAPING = ("connectivity", "reference_dilation")


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """The rules of an evaluation.

    Attributes:
        name: What to call this set of rules.
        connectivity: Neighbours that belong to one lesion or candidate: 6, 18 or 26. Shaping.
        candidates: How a probability map becomes candidates: "own_height", each hill down to a share of its own
            height, or "threshold", the connected parts at or above `threshold`. Shaping.
        threshold: Confidence from which a candidate counts; under candidates="threshold" it is the cut too.
        extent_ratio: Share of its own height down to which a candidate "own_height" reaches. Shaping.
        floor: Candidates "own_height" lower than this are not formed. Shaping.
        confidence: Confidence of a candidate from a probability map: "max" or "mean_top". From a mask: 1. Shaping.
        reference_dilation: Steps (18-connected) by which lesions are grown; lesions that grow together are one, and
            `hit_rule="dilated_overlap"` asks for a voxel of the grown lesion. Sizes and overlaps are measured on the
            voxels that are not grown. 0: none. Shaping.
        hit_rule: What a candidate must do to find a lesion. Measures in [0, 1] must reach `hit_threshold`, and be
            above 0; distances must not exceed it.
            "any_overlap": share a voxel.
            "lesion_covered": cover this share of the lesion.
            "iou", "dice": of candidate and lesion.
            "centroid_distance": centroids at most `hit_threshold` mm apart.
            "centroid_in_radius": centroids less than `hit_threshold` radii of the lesion's equivalent sphere apart.
            "point_inside": the candidate's highest voxel (of a mask: the voxel nearest to its centroid) lies in the
            lesion.
            "dilated_overlap": share a voxel with the grown lesion (`reference_dilation`).
            "covered_together": all candidates that overlap the lesion cover this share of it together, and those that
            cover most of it keep to lesions (`outside_share`, `contributing_share`). A candidate is true by the same
            rule with lesions and candidates swapped. Only with many_to_many and candidates="threshold".
        hit_threshold: See `hit_rule`.
        outside_share: For "covered_together": the largest share of a contributing candidate that may lie outside of
            all lesions, in [0, 1]. 1: any.
        contributing_share: For "covered_together": candidates are looked at from the one that covers most until they
            hold this share of what is covered, in [0, 1]. 1: all of them.
        small_volume_mm3: Lesions below this volume must reach `small_hit_threshold` as well once they are paired; if
            not, the lesion is missed and its candidate is neither true nor false. 0: none.
        small_hit_threshold: See `small_volume_mm3`.
        assignment: Which hits count.
            "one_to_one_surest_first": as many lesions as possible at every threshold, then most shared voxels.
            "one_to_one_most_pairs": most pairs, then the largest sum of the rule's measure.
            "one_to_one_max_sum": the largest sum of the rule's measure, even if that is fewer pairs.
            "greedy_by_score": the pair of highest measure first.
            "greedy_by_confidence": the surest candidate first takes the free lesion of its highest measure.
            "many_to_many": every hit counts; the surest candidate finds a lesion, and all that hit one are true.
        duplicates: Whether a candidate that hits a lesion but is not paired is "false", or "ignored".
        diameter: Which diameter strata and `min_diameter_mm` mean: "longest" (3D), "axial" (longest in the slice) or
            "equivalent" (of the sphere of the same volume).
        min_diameter_mm: Lesions below it are ignored: neither missed nor found, and a candidate that hits one and
            nothing else is neither true nor false. 0: none.
        min_volume_mm3: The same by volume.
        min_candidate_volume_mm3: Candidates below it hit nothing and are ignored; their voxels stay in voxel figures.
            0: none.
        max_ignored_share: A lesion or candidate of which more than this share lies in the region to be ignored is
            ignored.
        diameter_edges_mm: Borders of the strata by diameter, rising.
        volume_edges_mm3: Borders of the strata by volume, rising.
        min_lesions: A stratum with fewer lesions gives no estimate.
        false_positive_rates: False candidates per case at which the FROC is read, rising.
        interval: Interval of proportions of lesions and candidates: "clopper_pearson" or "wilson", both on counts
            divided by the design effect of patients.
        level: Confidence level of the intervals.
        num_resamples: Patient resamples of what has no interval in closed form; 0 leaves these intervals out.
        seed: Of the resamples.
        tolerance_mm: Of the normalised surface distance.
    """

    name: str = "any_overlap"
    connectivity: int = 26
    candidates: CandidateRule = "own_height"
    threshold: float = 0.5
    extent_ratio: float = 0.5
    floor: float = 0.01
    confidence: Confidence = "max"
    reference_dilation: int = 0
    hit_rule: HitRule = "any_overlap"
    hit_threshold: float = 0.0
    outside_share: float = 1.0
    contributing_share: float = 1.0
    small_volume_mm3: float = 0.0
    small_hit_threshold: float = 0.0
    assignment: Assignment = "one_to_one_surest_first"
    duplicates: Duplicates = "false"
    diameter: Diameter = "longest"
    min_diameter_mm: float = 0.0
    min_volume_mm3: float = 0.0
    min_candidate_volume_mm3: float = 0.0
    max_ignored_share: float = 0.5
    diameter_edges_mm: tuple[float, ...] = (3.0, 5.0, 10.0)
    volume_edges_mm3: tuple[float, ...] = (20.0, 100.0, 1000.0)
    min_lesions: int = 10
    false_positive_rates: tuple[float, ...] = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
    interval: Interval = "clopper_pearson"
    level: float = 0.95
    num_resamples: int = 2000
    seed: int = 0
    tolerance_mm: float = 1.0

    def __post_init__(self) -> None:
        for name, choices in _choices().items():
            if getattr(self, name) not in choices:
                message = f"{name} must be one of {choices}, got {getattr(self, name)!r}"
                raise ValueError(message)
        if self.connectivity not in CONNECTIVITIES:
            message = f"connectivity must be one of {CONNECTIVITIES}, got {self.connectivity}"
            raise ValueError(message)
        for name in SHARES:
            self._require(name, 0 <= getattr(self, name) <= 1, "in [0, 1]")
        self._require("extent_ratio", 0 < self.extent_ratio < 1, "in (0, 1)")
        self._require("level", 0 < self.level < 1, "in (0, 1)")
        self._require("floor", 0 < self.floor <= 1, "in (0, 1]")
        self._require("tolerance_mm", 0 < self.tolerance_mm < math.inf, "above 0")
        at_least_zero = ("small_volume_mm3", "min_diameter_mm", "min_volume_mm3", "min_candidate_volume_mm3")
        for name in (*at_least_zero, "num_resamples", "seed", "min_lesions", "reference_dilation", "hit_threshold"):
            self._require(name, 0 <= getattr(self, name) < math.inf, "0 or more")
        self._check_hit_rule()
        for name in ("false_positive_rates", "diameter_edges_mm", "volume_edges_mm3"):
            values = tuple(float(value) for value in getattr(self, name))
            rising = all(a < b < math.inf for a, b in itertools.pairwise((0.0, *values)))
            self._require(name, rising and (bool(values) or name != "false_positive_rates"), "positive and rising")
            object.__setattr__(self, name, values)

    def _check_hit_rule(self) -> None:
        shares = ("lesion_covered", "iou", "dice", "covered_together")
        distances = ("centroid_distance", "centroid_in_radius")
        if self.hit_rule in shares:
            self._require("hit_threshold", self.hit_threshold <= 1, f"in [0, 1] for hit_rule={self.hit_rule}")
        if self.hit_rule in distances:
            self._require("hit_threshold", self.hit_threshold > 0, f"above 0 for hit_rule={self.hit_rule}")
        if self.hit_rule not in (*shares, *distances) and self.hit_threshold:
            message = f"hit_rule={self.hit_rule} has no hit_threshold, got {self.hit_threshold}. Set it to 0."
            raise ValueError(message)
        if self.hit_rule == "dilated_overlap" and self.reference_dilation == 0:
            message = "hit_rule=dilated_overlap needs reference_dilation above 0, got 0"
            raise ValueError(message)
        if self.duplicates == "ignored" and self.assignment == "many_to_many":
            message = "duplicates=ignored has no effect with assignment=many_to_many, where every hit is true"
            raise ValueError(message)
        self._check_covered_together()
        if self.small_hit_threshold and not self.small_volume_mm3:
            message = "small_hit_threshold has no effect without small_volume_mm3"
            raise ValueError(message)

    def _check_covered_together(self) -> None:
        if self.hit_rule == "covered_together":
            for name, needed in (("assignment", "many_to_many"), ("candidates", "threshold")):
                if getattr(self, name) != needed:
                    message = f"hit_rule=covered_together needs {name}={needed}, got {getattr(self, name)}"
                    raise ValueError(message)
            return
        for name in ("outside_share", "contributing_share"):
            if getattr(self, name) != 1:
                message = f"{name} is for hit_rule=covered_together only, got {getattr(self, name)}. Set it to 1."
                raise ValueError(message)

    def _require(self, name: str, fulfilled: bool, wanted: str) -> None:  # noqa: FBT001  private and always named by its place
        if not fulfilled:
            message = f"{name} must be {wanted}, got {getattr(self, name)}"
            raise ValueError(message)

    def shapes_alike(self, shaping: Mapping[str, Any], *, is_mask: bool) -> bool:
        """Whether a table made by other shaping rules would be the same under these: a mask has no hills to form."""
        asked = MASK_SHAPING if is_mask else set(self.shaping()) | set(shaping)
        own = self.shaping()
        return all(own.get(name) == shaping.get(name) for name in asked)

    def shaping(self) -> dict[str, Any]:
        """Give the rules that tables are made by; under candidates="threshold" the threshold is one of them."""
        names = (*SHAPING, "threshold") if self.candidates == "threshold" else SHAPING
        return {name: getattr(self, name) for name in names}

    def to_dict(self) -> dict[str, Any]:
        """Give every rule by its name, as evaluation.json prints it."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


@functools.cache
def _choices() -> dict[str, tuple[str, ...]]:
    """The words that may stand where there is a choice."""
    hints = get_type_hints(Protocol)
    return {name: get_args(hint) for name, hint in hints.items() if get_origin(hint) is Literal}


ANY_OVERLAP = Protocol()
