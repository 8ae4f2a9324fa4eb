"""Training cases with targets: what is read, made alike, estimated and refused."""

from __future__ import annotations

import logging
import math

import numpy as np
import pytest
import torch

from medfocal.annotations.fusion import Fusion
from medfocal.annotations.smoothing import SVLS, NoSmoothing
from medfocal.annotations.target import AnnotationSettings
from medfocal.data.manifest import Case, LabelScheme, Manifest
from medfocal.data.targets import log_annotations, read_case_with_reference, read_training, teach
from medfocal.data.transforms import PreparedCase, Preprocessing
from medfocal.errors import DatasetError
from medfocal.losses import focal_loss
from medfocal.volume import Volume, write_volume

SHAPE = (12, 10, 8)
AFFINE = np.diag([0.5, 1.0, 3.0, 1.0])
LABELS = LabelScheme({0: "background", 1: "lesion"})
NONE = NoSmoothing()


def marks(*starts):
    label = np.zeros(SHAPE, np.uint8)
    for i in starts:
        label[i : i + 2, 4:7, 3:5] = 1
    return label


def prepared(name, label, *readers, weight=None):
    image = torch.ones(1, *SHAPE)
    grid = Volume(np.zeros(SHAPE), AFFINE)
    found = None if label is None else torch.from_numpy(label)
    annotations = np.stack(readers) if readers else None
    case = Case(name, name, "training", ())
    return PreparedCase(case, image, AFFINE, found, grid, label, annotations, weight)


TWO = prepared("two", marks(2), marks(2), marks(2, 8))
FOUR = prepared("four", marks(5), *[marks(5)] * 3, marks(1))
BARE = prepared("bare", marks(7))


def test_without_wishes_the_label_stays_the_target():
    found = teach([TWO, BARE], AnnotationSettings(), NONE, 2)
    assert [case.target for case in found.cases] == [None, None]
    assert not found.is_soft
    assert not found.is_weighted
    assert found.record["cases"] == []


def test_cases_with_one_two_and_four_readers_are_taught_together():
    found = teach([TWO, FOUR, BARE], AnnotationSettings(fusion="random"), NONE, 2)
    assert [len(case.target.alternatives) for case in found.cases] == [2, 4, 1]
    assert [case["num_readers"] for case in found.record["cases"]] == [2, 4, 0]
    assert np.array_equal(found.cases[0].label.numpy(), marks(2, 8))  # patches look where anybody marked
    assert all(case.readers is None for case in found.cases)


def test_shares_of_one_case_make_all_shares_and_weights_of_one_make_all_weighted():
    weighted = prepared("weighted", marks(7), weight=np.full(SHAPE, 0.5, np.float32))
    found = teach([TWO, weighted], AnnotationSettings(fusion="mean"), NONE, 2)
    assert found.is_soft
    assert found.is_weighted
    assert [case.target.is_soft for case in found.cases] == [True, True]
    assert (found.cases[0].target.weight == 1).all()
    assert (found.cases[1].target.weight == 0.5).all()
    assert np.array_equal(found.cases[1].target.alternatives[0][0], marks(7))


def test_smoothing_alone_makes_shares_of_the_label():
    found = teach([BARE], AnnotationSettings(), SVLS(sigma=1.0), 2)
    assert found.is_soft
    assert "num_readers" not in found.record["cases"][0]


def test_smoothing_estimated_from_the_readers_suits_the_loss():
    settings = AnnotationSettings(fusion="random", estimate_smoothing=True)
    found = teach([TWO, FOUR, BARE], settings, NONE, 2)
    assert np.allclose(np.sum(found.smoothing, axis=1), 1)
    assert found.smoothing[1][0] > found.smoothing[0][1] > 0
    loss = focal_loss(torch.zeros(1, 2, 4, 4), torch.ones(1, 4, 4, dtype=torch.long), label_smoothing=found.smoothing)
    assert math.isfinite(loss)
    assert found.record["label_smoothing"] == found.smoothing


def test_what_was_found_is_logged(caplog):
    settings = AnnotationSettings(fusion="random", estimate_smoothing=True)
    found = teach([TWO, FOUR, BARE], settings, NONE, 2)
    with caplog.at_level(logging.INFO, logger="medfocal"):
        log_annotations(found.record)
    text = caplog.text
    assert "1 with 0, 1 with 2, 1 with 4; fusion random" in text
    assert "agree with a Dice of" in text
    assert "case 'bare': it has no annotations" in text
    assert "label smoothing by the readers' rates: where the label is 0" in text


def test_how_much_weight_is_left_is_logged_and_recorded(caplog):
    found = teach([TWO, FOUR], AnnotationSettings(fusion="majority", disagreement="ignore"), NONE, 2)
    mean = np.mean([case["mean_weight"] for case in found.record["cases"]])
    assert 0.9 < mean < 1
    assert found.record["cases"][0]["mean_weight_of_lesions"] == 1
    with caplog.at_level(logging.INFO, logger="medfocal"):
        log_annotations(found.record)
    assert f"voxels weigh {mean:.3f} on average" in caplog.text


@pytest.mark.parametrize(
    ("cases", "settings", "message"),
    [
        (
            [BARE],
            {"fusion": "majority"},
            "no training case has 'annotations'.*annotations=majority.*annotations=reference",
        ),
        ([BARE], {"disagreement": "ignore"}, "no training case has 'annotations'"),
        (
            [prepared("one", marks(2), marks(2))],
            {"fusion": "union", "disagreement": "weight"},
            "disagreement=weight needs cases with two readers",
        ),
        (
            [prepared("one", marks(2), marks(2))],
            {"fusion": "union", "estimate_smoothing": True},
            "estimate_smoothing needs cases with two readers",
        ),
        (
            [prepared("soft", marks(2), *[marks(2) * np.float32(0.3)] * 2)],
            {"fusion": "random", "estimate_smoothing": True},
            "estimate_smoothing is of readers who gave classes, and some gave shares",
        ),
        ([prepared("bare", None, marks(2))], {}, "1 training cases have annotations and no 'label', such as 'bare'"),
    ],
)
def test_settings_that_no_case_can_follow_are_refused(cases, settings, message):
    with pytest.raises(DatasetError, match=message):
        teach(cases, AnnotationSettings(**settings), NONE, 2)


def on_disk(folder, *, label=True):
    def stored(name, array):
        write_volume(folder / f"{name}.nii.gz", Volume(array, AFFINE))
        return folder / f"{name}.nii.gz"

    image = np.random.default_rng(0).normal(100, 10, SHAPE).astype(np.float32)
    readers = (stored("r1", marks(2)), stored("r2", marks(2, 8)))
    reference = stored("l", marks(2)) if label else None
    return Case("c1", "c1", "training", (stored("image", image),), reference, readers)


def manifest_of(folder, case):
    return Manifest(folder / "dataset.json", "d", ("FLAIR",), LABELS, (case,))


def test_readers_and_weights_come_onto_the_grid_of_the_network(tmp_path):
    known = manifest_of(tmp_path, on_disk(tmp_path))
    write_volume(tmp_path / "c1_weight.nii.gz", Volume((1 - 0.5 * marks(2)).astype(np.float32), AFFINE))
    settings = AnnotationSettings(fusion="mean", weights=str(tmp_path))
    (found,) = read_training(known, Preprocessing(orientation="LPS", spacing_mm=(0.5, 1.0, 1.5)), settings)
    assert found.readers.shape[1:] == found.image.shape[1:] == found.weight.shape
    # Axes are turned: what lay at the start lies at the end, each reader in the same place as the label.
    turned = found.label.numpy()
    assert turned[-4:-2].any()
    assert np.array_equal(found.readers[0], turned)
    assert (found.readers[1] >= found.readers[0]).all()
    assert found.readers[1].sum() == 2 * found.readers[0].sum()
    # Between voxels weights are interpolated; the label is the nearest voxel's.
    inside = (found.weight < 0.75)[turned > 0]
    assert inside.mean() > 0.5
    assert found.weight.min() == pytest.approx(0.5)


def test_a_folder_without_weights_of_these_cases_is_refused(tmp_path):
    known = manifest_of(tmp_path, on_disk(tmp_path))
    settings = AnnotationSettings(weights=str(tmp_path))
    with pytest.raises(DatasetError, match=r"no weight map of any of the 1 training cases.*c1_weight\.nii\.gz"):
        read_training(known, Preprocessing(), settings)


@pytest.mark.parametrize(("fusion", "expected"), [("majority", marks(2)), ("union", marks(2, 8))])
def test_a_case_without_label_has_its_fused_readers_as_reference(tmp_path, fusion, expected):
    found = read_case_with_reference(on_disk(tmp_path, label=False), LABELS, Fusion(fusion))
    assert np.array_equal(found.label, expected)
    assert np.array_equal(read_case_with_reference(on_disk(tmp_path), LABELS, Fusion(fusion)).label, marks(2))
