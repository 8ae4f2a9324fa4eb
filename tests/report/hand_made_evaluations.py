"""Evaluations written by hand, as `evaluate` gives them, for pages whose numbers a test can count."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import Any


def figure(value, low=None, high=None, numerator=None, denominator=None, **more):
    return {
        "value": value, "low": low, "high": high, "level": 0.95, "method": "Clopper-Pearson", "numerator": numerator,
        "denominator": denominator, "num_patients": 3, "deff": 1.0,
    } | more  # fmt: skip


def share(part, whole):
    """A proportion with an interval that is wide and easy to know again: half below and above."""
    if not whole:
        return figure(None, None, None, part, whole)
    value = part / whole
    return figure(value, value / 2, (1 + value) / 2, part, whole)


PROTOCOL = {
    "name": "any_overlap", "connectivity": 26, "candidates": "own_height", "threshold": 0.5, "extent_ratio": 0.5,
    "floor": 0.01, "confidence": "max", "reference_dilation": 0, "hit_rule": "any_overlap", "hit_threshold": 0.0,
    "outside_share": 1.0, "contributing_share": 1.0, "small_volume_mm3": 0.0, "small_hit_threshold": 0.0,
    "assignment": "one_to_one_surest_first", "duplicates": "false", "diameter": "longest", "min_diameter_mm": 0.0,
    "min_volume_mm3": 0.0, "min_candidate_volume_mm3": 0.0, "max_ignored_share": 0.5,
    "diameter_edges_mm": [3.0, 5.0, 10.0], "volume_edges_mm3": [20.0, 100.0, 1000.0], "min_lesions": 10,
    "false_positive_rates": [0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0], "interval": "clopper_pearson", "level": 0.95,
    "num_resamples": 2000, "seed": 0, "tolerance_mm": 1.0,
}  # fmt: skip
SURFACE = ("hd95_mm", "hd95_pooled_mm", "assd_mm", "masd_mm", "nsd")


def summary_of_values(value, **counts):
    return {
        "mean": value, "median": value, "low": None if value is None else value / 2,
        "high": None if value is None else value * 1.5, "level": 0.95, "method": "patient bootstrap",
        "num_patients": 3, "num_undefined": 0,
    } | counts  # fmt: skip


@dataclass
class HandMade:
    """An evaluation whose rows are given and whose figures follow from them, or are given by `changes`."""

    cases: list[dict[str, Any]] = field(default_factory=list)
    lesions: list[dict[str, Any]] = field(default_factory=list)
    candidates: list[dict[str, Any]] = field(default_factory=list)
    changes: dict[str, Any] = field(default_factory=dict)

    def add_case(self, name, *, lesions=(), false=(), patient=None, dice=0.5, **row):
        """`lesions` holds (place, volume in mm³, confidence or None if missed), `false` (place, volume, confidence)."""
        found = [confidence for _, _, confidence in lesions if confidence is not None and confidence >= 0.5]
        self.cases.append(
            {
                "case": name, "patient": patient or name, "num_lesions": len(lesions),
                "num_detected_lesions": len(found), "num_ignored_lesions": 0,
                "num_candidates": len(found) + len(false), "num_true_candidates": len(found),
                "num_false_candidates": len(false), "num_hit_missed_lesions": 0, "voxel_dice": dice,
                "reference_volume_ml": 0.5,
                "predicted_volume_ml": 0.4, "volume_difference_ml": -0.1, **dict.fromkeys(SURFACE, 1.25),
            } | row
        )  # fmt: skip
        for number, (place, volume, confidence) in enumerate(lesions, start=1):
            self.lesions.append(
                _part(name, patient, place, volume)
                | {
                    "lesion": number, "ignored": False, "detected": confidence is not None and confidence >= 0.5,
                    "num_hits": int(confidence is not None), "confidence": confidence,
                }
            )  # fmt: skip
        for number, (place, volume, confidence) in enumerate(false, start=1):
            self.candidates.append(
                _part(name, patient, place, volume)
                | {"candidate": number, "confidence": confidence, "above_threshold": confidence >= 0.5}
                | {"verdict": "false"}
            )

    def to_dict(self):
        total = {key: sum(row[key] for row in self.cases) for key in self.cases[0] if key.startswith("num_")}
        lesions, detected = total["num_lesions"], total["num_detected_lesions"]
        num_cases, false = len(self.cases), total["num_false_candidates"]
        given = self.cases and [row["voxel_dice"] for row in self.cases if row["voxel_dice"] is not None]
        return {
            "protocol": PROTOCOL, "num_cases": num_cases, "num_patients": len({r["patient"] for r in self.cases}),
            "num_lesion_free_cases": sum(r["num_lesions"] == 0 for r in self.cases), **total,
            "num_double_candidates": 2, "num_ignored_candidates": 0, "num_split_lesions": 1,
            "num_merging_candidates": 0,
            "lesion_sensitivity": share(detected, lesions), "lesion_sensitivity_macro": share(detected, lesions),
            "lesion_precision": share(total["num_true_candidates"], total["num_candidates"]),
            "lesion_f1": share(2 * detected, lesions + total["num_candidates"]),
            "false_positives_per_case": figure(false / num_cases, 0.25, 1.5, false, num_cases),
            "false_positives_per_lesion_free_case": figure(0.5, 0.1, 1.0),
            "false_positives_per_litre": figure(0.7, 0.2, 1.4),
            "claim": "Fewer than 36 lesions cannot show a sensitivity above 90 %.",
            "by_size": strata(lesions, detected, false), "froc": froc(detected, lesions),
            "hit_rule_curves": [
                {"hit_rule": rule, "points": hit_points(lesions, drop)}
                for rule, drop in (("iou", 0.9), ("dice", 0.7), ("lesion_covered", 0.4))
            ],
            "wafroc": figure(0.81, 0.7, 0.9), "wafroc1": figure(0.79, 0.7, 0.9),
            "free_response_ap": figure(0.66, 0.5, 0.8), "case_auroc": figure(0.9, 0.8, 0.97, method="DeLong"),
            "case_ap": figure(0.88, 0.7, 0.95), "case_sensitivity": share(3, 4), "case_specificity": share(1, 2),
            "calibration": calibration(), "recognition_quality": figure(0.6, 0.5, 0.7),
            "segmentation_quality": figure(0.75, 0.7, 0.8), "panoptic_quality": figure(0.45, 0.35, 0.55),
            "voxel_dice": summary_of_values(
                sum(given) / len(given) if given else None, num_cases=len(given), num_undefined=num_cases - len(given)
            ),
            "volume_difference_ml": summary_of_values(-0.1, num_cases=num_cases),
            "mean_absolute_volume_difference_ml": 0.2,
            "surface": {
                "threshold": 0.5, "tolerance_mm": 1.0,
                "cases": {key: summary_of_values(1.25, num_cases=3) for key in SURFACE},
                "lesions": {key: summary_of_values(0.75, num_lesions=5) for key in SURFACE},
            },
            "failed": [], "missing": [], "warnings": [], "undefined": [],
        } | self.changes  # fmt: skip


def _part(name, patient, place, volume):
    i, j, k = place
    return {
        "case": name, "patient": patient or name, "num_voxels": 8, "volume_ml": volume / 1000,
        "equivalent_diameter_mm": 2.8, "longest_diameter_mm": 4.4, "axial_diameter_mm": 3.1, "i": i, "j": j, "k": k,
        "x_mm": 20 - 0.5 * i, "y_mm": j - 7.0, "z_mm": 3.0 * k + 4,
    }  # fmt: skip


def strata(lesions, detected, false):
    few = lesions < 10
    rows = []
    for measure, edges in (("longest_diameter_mm", (3, 5, 10)), ("volume_mm3", (20, 100, 1000))):
        ends = [None, *edges, None]
        for at, (low, high) in enumerate(itertools.pairwise(ends)):
            mine = at == 1
            rows.append(
                {
                    "measure": measure, "low": low, "high": high, "num_lesions": lesions * mine,
                    "num_patients": 2 * mine,
                    "num_detected_lesions": detected * mine,
                    "lesion_sensitivity": share(detected, lesions) if mine and not few else share(0, 0),
                    "num_false_candidates": false * mine,
                    "false_positives_per_case": figure(0.5 * mine, 0.1 * mine, 0.2 + mine),
                }
            )  # fmt: skip
    return rows


def froc(detected, lesions):
    best = detected / lesions if lesions else None
    keys = ("false_positives_per_case", "lesion_sensitivity", "low", "high", "threshold", "reached")
    half = None if best is None else best / 2
    ends = (None, None) if best is None else (best / 3, best)
    points = [(0.125, 0.0 if lesions else None, *ends, None, True), (0.25, half, *ends, 0.75, True)]
    points += [(rate, best, *ends, 0.25, rate < 1) for rate in (0.5, 1.0, 2.0, 4.0, 8.0)]
    curve = [(0.9, 0.2, half), (0.75, 0.25, half), (0.25, 0.7, best)] if lesions else []
    return {
        "points": [dict(zip(keys, point, strict=True)) for point in points],
        "cpm": best, "cpm_low": ends[0], "cpm_high": ends[1], "method": "patient bootstrap",
        "curve": [
            dict(zip(("threshold", "false_positives_per_case", "lesion_sensitivity"), p, strict=True)) for p in curve
        ],
        "band": [
            {"false_positives_per_case": x, "low": ends[0], "high": ends[1]} for x in (0.125, 0.25, 0.5, 1, 2, 4, 8)
        ],
    }  # fmt: skip


def hit_points(lesions, drop):
    rows = []
    for step in range(21):
        found = round(lesions * max(0.0, 1 - drop * step / 20))
        of = share(found, lesions)
        rows.append(
            {
                "hit_threshold": step / 20, "num_detected_lesions": found, "lesion_sensitivity": of["value"],
                "low": of["low"], "high": of["high"], "num_false_candidates": 2 + lesions - found,
            }
        )  # fmt: skip
    return rows


def calibration():
    bins = []
    for at in range(5):
        amount = (12, 6, 0, 3, 9)[at]
        true = (2, 2, 0, 2, 7)[at]
        bins.append(
            {
                "low": at / 5, "high": (at + 1) / 5, "num_candidates": amount, "num_patients": min(3, amount),
                "mean_confidence": at / 5 + 0.11 if amount else None, "lesion_precision": share(true, amount),
            }
        )  # fmt: skip
    return {"bins": bins, "brier": figure(0.181, 0.1, 0.3), "d_ece": figure(0.093, 0.05, 0.2), "num_candidates": 30}


def example():
    """Three cases: a lesion found and one missed, of 12 mm³; one false candidate; and an empty case."""
    made = HandMade()
    made.add_case("first", lesions=[((2, 4.5, 3.5), 18, 0.9), ((8.5, 6.5, 4.5), 12, 0.3)], dice=16 / 28)
    made.add_case("second", false=[((5, 8, 6), 1.5, 0.7)], dice=0.0)
    made.add_case("third", dice=None)
    return made


def bare(**changes):
    """The example without what is drawn, for tests that look at other things: drawing takes most of the time."""
    made = example()
    made.changes |= {"by_size": [], "hit_rule_curves": [], "calibration": None} | changes
    return made
