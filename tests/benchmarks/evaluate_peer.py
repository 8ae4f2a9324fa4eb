"""One case by panoptica or by us, again and again on request, so that two programs in two environments take turns.

python tests/benchmarks/evaluate_peer.py panoptica|medfocal FOLDER

FOLDER holds reference.npy and prediction.npy. Each line on stdin asks for one evaluation; each answer is a line of
JSON: seconds, and figures by name. `evaluate.py` starts it; panoptica's Python need not have medfocal.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np


def panoptica_once(reference: Any, prediction: Any) -> dict[str, float]:
    """Dice, normalised surface distance and HD95 of each pair that shares a voxel, and Dice of the case."""
    from panoptica import (
        ConnectedComponentsInstanceApproximator,
        InputType,
        MaxBipartiteMatching,
        Metric,
        Panoptica_Evaluator,
    )

    evaluator = Panoptica_Evaluator(
        expected_input=InputType.SEMANTIC,
        instance_approximator=ConnectedComponentsInstanceApproximator(),
        instance_matcher=MaxBipartiteMatching(matching_metric=Metric.DSC, matching_threshold=1e-6),
        instance_metrics=[Metric.DSC, Metric.NSD, Metric.HD95],
        global_metrics=[Metric.DSC],
        log_times=False,
        verbose=False,
    )
    found = evaluator.evaluate(prediction, reference, voxelspacing=(1.0, 1.0, 1.0), log_times=False, verbose=False)
    of = found["ungrouped"]
    return {"found": of.tp, "false": of.fp, "missed": of.fn, "dice": of.sq_dsc, "hd95_pooled_mm": of.sq_hd95}


def medfocal_once(reference: Any, prediction: Any) -> dict[str, float]:
    """All that the table of a case holds, surfaces of the case and of each pair among it, and who finds whom."""
    from medfocal.evaluate import Protocol, evaluate_case, judge
    from medfocal.evaluate.rows import case_row, pair_overlap, pair_surface
    from medfocal.evaluate.table import SURFACE_FIGURES

    rules = Protocol()
    outcome = judge(evaluate_case(reference, prediction, np.eye(4), case="case", surface=True), rules)
    row = case_row(outcome, rules.threshold)
    surface = pair_surface(outcome)[:, SURFACE_FIGURES.index("hd95_pooled_mm")]
    return {
        "found": row["num_detected_lesions"],
        "false": row["num_false_candidates"],
        "missed": row["num_lesions"] - row["num_detected_lesions"],
        "dice": float(np.nanmean(pair_overlap(outcome)[1])),
        "hd95_pooled_mm": float(np.nanmean(surface)),
    }


def main(name: str, folder: str) -> None:
    """Answer until the end of stdin; the first answer comes after one evaluation that is not timed."""
    once = {"panoptica": panoptica_once, "medfocal": medfocal_once}[name]
    masks = [np.load(Path(folder) / f"{role}.npy") for role in ("reference", "prediction")]
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what else is printed does not mix with the answers
    once(*masks)
    for _ in sys.stdin:
        start = time.perf_counter()
        figures = once(*masks)
        answers.write(json.dumps([time.perf_counter() - start, {k: float(v) for k, v in figures.items()}]) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
