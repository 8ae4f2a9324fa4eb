"""Run folders as `medfocal train` leaves them, written by hand around real evaluations of tiny cases."""

from __future__ import annotations

import csv
import json
import os
from dataclasses import dataclass

import numpy as np
from omegaconf import OmegaConf

from medfocal.data.transforms import Preprocessing
from medfocal.evaluate import Protocol, evaluate_case, evaluate_cases, write_evaluation
from medfocal.files import write_json
from medfocal.model import CARD, FORMAT_VERSION, PLAIN_CANDIDATES, WEIGHTS, Member, ModelCard, OperatingPoint

AFFINE = np.diag([0.5, 1.0, 3.0, 1.0])
SHAPE = (24, 22, 8)
PROTOCOL = Protocol(num_resamples=50, threshold=0.5)
LONG_AGO = 1_600_000_000


@dataclass(frozen=True)
class TinyCase:
    """A case whose lesions are found with these confidences, None for missed, and with false candidates of others."""

    name: str
    lesions: tuple = ()
    false: tuple = ()
    patient: str = ""

    def table(self, protocol=PROTOCOL):
        reference, probability = np.zeros(SHAPE, np.uint8), np.zeros(SHAPE, np.float64)
        for place, confidence in enumerate(self.lesions):
            spot = (2 + 4 * (place % 5), 2 + 4 * (place // 5), 2)
            reference[spot] = 1
            probability[spot] = confidence or 0.0
        for place, confidence in enumerate(self.false):
            probability[2 + 4 * (place % 5), 14 + 4 * (place // 5), 5] = confidence
        patient = self.patient or self.name
        return evaluate_case(reference, probability, AFFINE, case=self.name, patient=patient, protocol=protocol)

    @property
    def entry(self):
        return {"case": self.name, "patient": self.patient or self.name}


TEST_CASES = (TinyCase("t1", (0.9, 0.4), (0.6, 0.5, 0.45)), TinyCase("t2", (0.7,), (0.3, 0.8)))
VALIDATION_CASES = (TinyCase("v1", (0.9, None), (0.2,)), TinyCase("v2", (0.8,), ()))
TRAINING_CASES = (TinyCase("a"), TinyCase("b"))


def make_run(
    folder,
    *,
    settings=None,
    seed=1,
    fold=None,
    num_folds=None,
    epochs=2,
    max_epochs=2,
    kept=None,
    validation=VALIDATION_CASES,
    test=TEST_CASES,
    training=TRAINING_CASES,
    sensitivities=None,
    protocol=PROTOCOL,
    rate=1.0,
    finished=True,
):
    """Write a run folder; `settings` are further ones by full name. Everything in it is long ago."""
    conf = OmegaConf.create(
        {
            "experiment": "try", "seed": seed, "fold": fold, "device": "cpu", "run": {"id": folder.name},
            "data": {"dataset": "d.json", "num_folds": num_folds, "fold": fold}, "paths": {"runs": str(folder.parent)},
            "trainer": {"max_epochs": max_epochs, "validation_false_positives": rate, "num_threads": seed},
            "loss": {"_target_": "medfocal.losses.FocalLoss", "gamma": 2.0, "alpha": 0.75},
        }
    )  # fmt: skip
    for key, value in (settings or {}).items():
        OmegaConf.update(conf, key, value, merge=False, force_add=True)
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(OmegaConf.to_yaml(conf))
    (folder / "train.log").write_text("2026-01-02 03:04:05,678 epoch 1 of 2  loss 0.5\n")
    splits = {"training": training, "validation": validation, "test": test}
    write_json(folder / "split.json", {"split_from": "hand", **{k: [c.entry for c in v] for k, v in splits.items()}})
    write_metrics(folder / "metrics.csv", epochs, sensitivities)
    if finished:
        for name, cases in (("validation", validation), ("test", test)):
            if cases:
                write_evaluation(evaluate_cases([case.table(protocol) for case in cases], protocol), folder / name)
                (folder / name / "report.html").write_text("a report")
        write_card(folder, epoch=kept or epochs, num_epochs=max_epochs)
    for path in folder.rglob("*"):
        os.utime(path, (LONG_AGO, LONG_AGO))
    return folder


def write_metrics(path, epochs, sensitivities=None):
    values = sensitivities or [0.1 * epoch for epoch in range(1, epochs + 1)]
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(
            ["epoch", "step", "loss", "seconds", "lesion_sensitivity", "lesion_sensitivity_low",
             "lesion_sensitivity_high", "cpm"]
        )  # fmt: skip
        for epoch, value in zip(range(1, epochs + 1), values, strict=True):
            writer.writerow([epoch, 10 * epoch, 1 / epoch, 900.0, value, max(0.0, value - 0.2), value + 0.2, value / 2])


def write_card(folder, *, epoch, num_epochs):
    card = ModelCard(
        name="try",
        members=(
            Member(network={"name": "UNet3d", "arguments": {}}, training={"epoch": epoch, "num_epochs": num_epochs}),
        ),
        channels=("x",),
        labels={0: "background", 1: "lesion"},
        activation="softmax",
        preprocessing=Preprocessing(),
        window={"size": [8, 8, 8], "overlap": 0.5, "batch": 1, "precision": "float32"},
        candidates={"extent_ratio": 0.5, "floor": 0.01, "connectivity": 26, "confidence": "max", **PLAIN_CANDIDATES},
        operating_points=(OperatingPoint(name="default", threshold=0.5, source="default"),),
    )
    (folder / "model").mkdir()
    values = card.to_dict()
    values["members"][0]["weights"] = {"file": WEIGHTS, "sha256": "0" * 64}
    write_json(folder / "model" / CARD, {"format_version": FORMAT_VERSION, **values})


def read_csv(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def read_json(path):
    return json.loads(path.read_text("utf-8"))
