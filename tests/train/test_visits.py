"""Visits of lesions: the table, the line of the log, and what the next epoch is told of the last validation."""

from __future__ import annotations

import csv
import logging
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from medfocal.annotations.target import Target
from medfocal.data.manifest import Case
from medfocal.data.sampling import LesionBalancedSampler
from medfocal.data.stored import training_case
from medfocal.data.transforms import PreparedCase
from medfocal.evaluate import evaluate_case, evaluate_cases
from medfocal.evaluate.protocols import ANY_OVERLAP
from medfocal.train.visits import missed_lesions, tell_visits, write_visits
from medfocal.volume import Volume

SHAPE, AFFINE = (12, 10, 8), np.diag([0.5, 1.0, 3.0, 1.0])


def a_case(name, *blocks):
    label = np.zeros(SHAPE, np.uint8)
    for block in blocks:
        label[tuple(slice(*side) for side in block)] = 1
    image = torch.from_numpy(np.random.default_rng(0).uniform(1, 2, (1, *SHAPE)).astype(np.float32))
    grid = Volume(np.zeros(SHAPE), AFFINE)
    prepared = PreparedCase(Case(name, f"p-{name}", "training", ()), image, AFFINE, None, grid, None)
    return training_case(prepared, Target(label, (label,)))


ONE, TWELVE, THREE = ((1, 2), (1, 2), (1, 2)), ((6, 8), (4, 7), (3, 5)), ((3, 6), (5, 6), (6, 7))
CASES = [a_case("a", ONE, TWELVE), a_case("bare"), a_case("c", THREE)]


def sampler(**settings):
    return LesionBalancedSampler(CASES, patch_size=(4, 4, 4), lesion_fraction=1.0, seed=1, **settings)


def test_each_lesion_has_its_row(tmp_path):
    visits = np.array([[5, 6, 7], [15, 16, 17]])
    write_visits(tmp_path / "visits.csv", sampler(size_power=1.0), CASES, visits)
    with (tmp_path / "visits.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(r["case"], r["patient"], r["lesion"], r["num_voxels"]) for r in rows] == [
        ("a", "p-a", "1", "1"),
        ("a", "p-a", "2", "12"),
        ("c", "p-c", "1", "3"),
    ]
    assert [float(r["volume_ml"]) for r in rows] == pytest.approx([0.0015, 0.018, 0.0045])
    assert [float(r["chance"]) for r in rows] == pytest.approx([1 / 16, 12 / 16, 3 / 16])
    assert [(r["num_centred"], r["num_shown"]) for r in rows] == [("5", "15"), ("6", "16"), ("7", "17")]


def test_how_evenly_lesions_were_visited_is_one_line(caplog):
    with caplog.at_level(logging.INFO, logger="medfocal"):
        tell_visits(sampler(), np.array([[5, 30, 10], [0, 0, 0]]))
    assert caplog.messages == [
        (
            "patches centred on each of 3 lesions: 5 to 30, median 10; on those of up to 3 voxels 7.5 on average, on "
            "those of 3 and more 20.0"
        )
    ]


def validated(*confidences, protocol=None):
    """An evaluation of lesions that were found with these confidences; with 0 there is no candidate."""
    reference, probability = np.zeros(SHAPE, np.uint8), np.zeros(SHAPE, np.float32)
    for block, confidence in zip((ONE, TWELVE, THREE), confidences, strict=False):
        box = tuple(slice(*side) for side in block)
        reference[box], probability[box] = 1, confidence
    protocol = protocol or PROTOCOL
    found = evaluate_case(reference, probability, AFFINE, case="v", patient="v", protocol=protocol)
    return evaluate_cases([found], protocol)


PROTOCOL = replace(ANY_OVERLAP, num_resamples=0)


def test_a_lesion_is_missed_where_no_candidate_reached_the_threshold_or_none_was_there():
    volumes, missed = missed_lesions(validated(0.75, 0.5, 0.0), 0.75)
    by_volume = dict(zip(np.round(volumes, 4).tolist(), missed.tolist(), strict=True))
    assert by_volume == {0.0015: False, 0.018: True, 0.0045: True}


def test_a_lesion_that_does_not_count_is_left_out():
    found = validated(0.75, 0.5, 0.0, protocol=replace(PROTOCOL, min_volume_mm3=4.0))
    volumes, missed = missed_lesions(found, 0.4)
    by_volume = dict(zip(np.round(volumes, 4).tolist(), missed.tolist(), strict=True))
    assert by_volume == {0.018: False, 0.0045: True}


def test_no_lesion_is_none_missed_and_the_sampler_takes_it():
    volumes, missed = missed_lesions(validated(), math.nan)
    assert volumes.shape == missed.shape == (0,)
    source = sampler(hardness=1.0)
    source.judge(volumes, missed)
    assert source.chances == pytest.approx([1 / 3] * 3)


def test_lesions_of_sizes_that_were_missed_are_drawn_more_often():
    source = sampler(hardness=1.0)
    source.judge(*missed_lesions(validated(0.0, 0.9, 0.9), 0.5))
    assert source.chances.argmax() == 0
    assert source.chances[0] == pytest.approx(2 * source.chances[1])
