"""An nnU-Net dataset whose regions lie within each other and whose readers left voxels out: trained and evaluated."""

import json

import numpy as np
import pytest
from commands import TINY, assert_refused, run

from medfocal.model import read_card
from medfocal.volume import Volume, write_volume

SHAPE, AFFINE = (20, 18, 16), np.diag([1.0, 1.0, 1.5, 1.0])
IGNORED = 3


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    """Four cases: a lesion with a core, and a corner that nobody judged in which the image is as bright as a lesion."""
    folder = tmp_path_factory.mktemp("raw") / "Dataset001_Nested"
    for number in range(4):
        rng = np.random.default_rng(number)
        label = np.zeros(SHAPE, np.uint8)
        i = 4 + 2 * number
        label[i : i + 5, 6:11, 5:10] = 1
        label[i + 1 : i + 4, 7:10, 6:9] = 2
        label[:4, :4, :4] = IGNORED
        image = (100 + 40 * (label > 0) + 40 * (label == 2) + rng.normal(0, 5, SHAPE)).astype(np.float32)
        image[0, :, -1] = 0
        write_volume(folder / "imagesTr" / f"case{number}_0000.nii.gz", Volume(image, AFFINE))
        write_volume(folder / "labelsTr" / f"case{number}.nii.gz", Volume(label, AFFINE))
    content = {
        "channel_names": {"0": "FLAIR"},
        "labels": {"background": 0, "whole": [1, 2], "core": [2], "ignore": IGNORED},
        "regions_class_order": [1, 2],
        "numTraining": 4,
        "file_ending": ".nii.gz",
    }
    (folder / "dataset.json").write_text(json.dumps(content))
    return folder


def words(raw, *more):
    folds = ["data.num_folds=2", "data.fold=0", "trainer.max_epochs=1", "run.id=r"]
    return ["train", *TINY, f"data.dataset={raw}", *folds, *more]


@pytest.fixture(scope="module")
def home(raw, tmp_path_factory):
    folder = tmp_path_factory.mktemp("nested")
    ended = run(*words(raw, "loss.activation=sigmoid", "loss.alpha=[0.75,0.75]"), folder=folder)
    assert (ended.code, ended.err) == (0, ""), ended.err
    return folder / "runs" / "default" / "r"


def test_classes_of_a_softmax_are_refused_for_regions(raw, tmp_path):
    assert_refused(run(*words(raw), folder=tmp_path), 2, "whole, core", "loss.activation=sigmoid")


def test_the_model_has_an_output_for_each_region_in_their_order(home):
    card, _ = read_card(home / "model")
    assert dict(card.labels) == {0: "background", 1: "whole", 2: "core"}
    assert card.activation == "sigmoid"
    assert card.members[0].network["arguments"]["out_channels"] == 2


def test_what_nobody_judged_is_no_lesion_in_training_and_in_evaluation(home):
    """Each case has one lesion; the corner would be a second."""
    visits = (home / "visits.csv").read_text().splitlines()[1:]
    assert len(visits) == 2
    assert {line.split(",")[3] for line in visits} == {"125"}
    found = json.loads((home / "validation" / "evaluation.json").read_text())
    assert (found["num_cases"], found["num_lesions"]) == (2, 2)
