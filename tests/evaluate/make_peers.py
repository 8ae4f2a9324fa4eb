"""Write peers.json: what other evaluation programs find in the toy cases and in random masks.

Run it where panoptica, picai_eval, lesion-metrics and MONAI are installed: python tests/evaluate/make_peers.py
"""

from __future__ import annotations

import json
import math
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
from scipy import ndimage

sys.path.insert(0, str(Path(__file__).parent))
from lesion_cases import TOY_CASES, random_masks

SEEDS = range(40)
PACKAGES = ("panoptica", "picai_eval", "lesion-metrics", "monai", "numpy", "scipy")


def confidences(prediction, seed):
    """A detection map: each 26-connected part of the mask has one confidence."""
    parts, num_parts = ndimage.label(prediction, np.ones((3, 3, 3)))
    drawn = np.random.RandomState(seed).randint(1, 10, num_parts) / 10
    return np.concatenate([[0.0], drawn])[parts]


def by_panoptica(reference, prediction):
    from panoptica import ConnectedComponentsInstanceApproximator, InputType, Metric, Panoptica_Evaluator
    from panoptica.instance_matcher import MaxBipartiteMatching, NaiveThresholdMatching

    matchers = {
        "panoptica": NaiveThresholdMatching(Metric.IOU, 0.5),
        "bipartite": MaxBipartiteMatching(Metric.DSC, 1e-6),
    }
    found = {}
    for name, matcher in matchers.items():
        evaluator = Panoptica_Evaluator(
            expected_input=InputType.SEMANTIC,
            instance_approximator=ConnectedComponentsInstanceApproximator(),
            instance_matcher=matcher,
            instance_metrics=[Metric.DSC, Metric.IOU],
            log_times=False,
            verbose=False,
        )
        result = evaluator.evaluate(prediction.astype(np.uint8), reference.astype(np.uint8))["ungrouped"]
        found[name] = [result.tp, result.fp, result.fn]
        if name == "panoptica":
            found["quality"] = [result.rq, result.sq, result.pq]
    return found


def by_picai(reference, prediction, seed):
    from picai_eval.eval import evaluate_case

    detection = confidences(prediction, seed)
    found = {}
    for name, least in (("picai", 0.1), ("picai_any", 1e-6)):
        marks, *_ = evaluate_case(detection, reference.astype(np.int32), min_overlap=least)
        found[name] = sorted([int(true), float(np.float32(sure))] for true, sure, _ in marks)
    return found


def by_lesion_metrics(reference, prediction):
    from lesion_metrics import metrics

    names = ("dice", "jaccard", "ppv", "tpr", "lfdr", "ltpr", "avd")
    return {name: float(getattr(metrics, name)(prediction, reference)) for name in names}


def by_monai(reference, prediction):
    import torch
    from monai.metrics import compute_panoptic_quality

    parts = [ndimage.label(mask, np.ones((3, 3, 3)))[0] for mask in (prediction, reference)]
    pred, true = (torch.from_numpy(part.astype(np.int32)) for part in parts)
    names = ("rq", "sq", "pq")
    return [float(compute_panoptic_quality(pred, true, metric_name=name, match_iou_threshold=0.5)) for name in names]


def by_all(reference, prediction, seed):
    return {
        **by_panoptica(reference, prediction),
        **by_picai(reference, prediction, seed),
        "lesion_metrics": by_lesion_metrics(reference, prediction),
        "monai": by_monai(reference, prediction),
    }


def plain(value):
    if isinstance(value, dict):
        return {key: plain(part) for key, part in value.items()}
    if isinstance(value, list):
        return [plain(part) for part in value]
    value = float(value)
    return None if math.isnan(value) else value


def main():
    toys = {toy.name: plain(by_all(toy.reference, toy.prediction, 0)) for toy in TOY_CASES}
    drawn = {str(seed): plain(by_all(*random_masks(seed), seed)) for seed in SEEDS}
    versions = {name: version(name) for name in PACKAGES}
    groups = {"toy_cases": toys, "random_masks": drawn}
    lines = [f'"versions": {json.dumps(versions)}']
    for name, cases in groups.items():  # a case a line, so that a difference shows where it is
        rows = ",\n".join(f"{json.dumps(case)}: {json.dumps(found)}" for case, found in cases.items())
        lines.append(f'"{name}": {{\n{rows}\n}}')
    text = "{\n" + ",\n".join(lines) + "\n}"
    (Path(__file__).parent / "peers.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
