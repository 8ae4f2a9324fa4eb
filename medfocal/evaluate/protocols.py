"""What counts as found: every choice an evaluation depends on, in one value that is printed with its results."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args, get_origin, get_type_hints

from medfocal.components import CONNECTIVITIES, Confidence

HitRule = Literal["any_overlap"]
Assignment = Literal["one_to_one_surest_then_most_overlap"]
Duplicates = Literal["false"]


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """The rules of an evaluation.

    Attributes:
        name: What to call this set of rules.
        hit_rule: A candidate can find a lesion if they share at least one voxel.
        assignment: A candidate finds one lesion and a lesion is found by one candidate. As many lesions as
            possible are found at every threshold, and of such pairings the one with most shared voxels is taken.
        duplicates: A second candidate on a found lesion is a false candidate.
        connectivity: Neighbours that belong to one lesion or candidate: 6, 18 or 26.
        threshold: Confidence from which a candidate counts.
        extent_ratio: Share of its own height down to which a candidate from a probability map reaches.
        floor: Candidates from a probability map lower than this are not formed.
        confidence: Confidence of a candidate from a probability map: "max" or "mean_top". From a mask: 1.
        false_positive_rates: False candidates per case at which the FROC is read, rising.
        level: Confidence level of the intervals.
    """

    name: str = "any_overlap"
    hit_rule: HitRule = "any_overlap"
    assignment: Assignment = "one_to_one_surest_then_most_overlap"
    duplicates: Duplicates = "false"
    connectivity: int = 26
    threshold: float = 0.5
    extent_ratio: float = 0.5
    floor: float = 0.01
    confidence: Confidence = "max"
    false_positive_rates: tuple[float, ...] = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
    level: float = 0.95

    def __post_init__(self) -> None:
        for name, hint in get_type_hints(type(self)).items():
            if get_origin(hint) is Literal and getattr(self, name) not in get_args(hint):
                message = f"{name} must be one of {get_args(hint)}, got {getattr(self, name)!r}"
                raise ValueError(message)
        if self.connectivity not in CONNECTIVITIES:
            message = f"connectivity must be one of {CONNECTIVITIES}, got {self.connectivity}"
            raise ValueError(message)
        if not 0 <= self.threshold <= 1:
            message = f"threshold must be in [0, 1], got {self.threshold}"
            raise ValueError(message)
        if not 0 < self.extent_ratio < 1:
            message = f"extent_ratio must be in (0, 1), got {self.extent_ratio}"
            raise ValueError(message)
        if not 0 < self.floor <= 1:
            message = f"floor must be in (0, 1], got {self.floor}"
            raise ValueError(message)
        if not 0 < self.level < 1:
            message = f"level must be in (0, 1), got {self.level}"
            raise ValueError(message)
        rates = tuple(float(rate) for rate in self.false_positive_rates)
        if not rates or rates[0] <= 0 or any(b <= a for a, b in itertools.pairwise(rates)):
            message = f"false_positive_rates must be positive and rising, got {self.false_positive_rates}"
            raise ValueError(message)
        object.__setattr__(self, "false_positive_rates", rates)

    def to_dict(self) -> dict[str, Any]:
        """Give every rule by its name, as evaluation.json prints it."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return values | {"false_positive_rates": list(self.false_positive_rates)}


ANY_OVERLAP = Protocol()
