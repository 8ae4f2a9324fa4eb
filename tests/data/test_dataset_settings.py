"""The settings of the group `data`: what they refuse, and how a dataset is split by them."""

import json

import numpy as np
import pytest

from medfocal.data.dataset import DataSettings
from medfocal.data.splits import write_split
from medfocal.errors import DatasetError
from medfocal.volume import Volume, write_volume

SHAPE, AFFINE = (12, 10, 8), np.diag([0.5, -1.0, 3.0, 1.0])
NOTHING = dict.fromkeys(
    ("root", "labels", "channels", "classes", "ignore_value", "patient_pattern", "split", "num_folds", "fold")
) | {"format": "auto", "resample_channels": False, "fold_seed": 0}


@pytest.fixture
def folder(tmp_path):
    """Images and masks of eight patients; the first four have a lesion."""
    place = tmp_path / "data"
    rng = np.random.default_rng(0)
    for number in range(8):
        label = np.zeros(SHAPE, np.uint8)
        label[2:4, 3, 4] = number < 4
        write_volume(place / f"p{number}_T1.nii.gz", Volume(rng.random(SHAPE, np.float32), AFFINE))
        write_volume(place / f"p{number}_mask.nii.gz", Volume(label, AFFINE))
    return place


def settings(dataset, **changes):
    return DataSettings(**(NOTHING | {"dataset": str(dataset)} | changes))


def test_without_settings_the_dataset_says_it_all(folder, capsys):
    manifest = settings(folder).open()
    assert [len(manifest.split(name)) for name in ("training", "validation", "test")] == [8, 0, 0]
    out = capsys.readouterr().out
    assert f"'{folder}' understood as folders: 8 cases, channel T1, labels *_mask; class lesion=1\n" in out
    assert "split by the dataset: 8 training, 0 validation, 0 test\n" in out


def test_folds_are_made_and_every_fold_has_lesions(folder, capsys):
    for fold in range(4):
        manifest = settings(folder, num_folds=4, fold=fold).open()
        validating = [case.name for case in manifest.split("validation")]
        assert sorted(name < "p4" for name in validating) == [False, True]
        assert manifest.split_from == f"fold {fold} of 4, seed 0"
    assert "warning" not in capsys.readouterr().out


def test_a_fold_without_a_lesion_to_find_is_warned_of(folder, capsys):
    for fold in range(6):
        settings(folder, num_folds=6, fold=fold).open()
    assert capsys.readouterr().out.count("warning: no lesion in the 1 cases that fold") == 2


def test_folds_depend_on_their_own_seed(folder):
    names = {
        tuple(case.name for case in settings(folder, num_folds=2, fold=0, fold_seed=seed).open().split("validation"))
        for seed in range(6)
    }
    assert len(names) > 1


def test_a_run_that_continues_keeps_its_folds_whatever_became_of_the_labels(folder, tmp_path):
    chosen = settings(folder, num_folds=4, fold=1)
    before = chosen.open(own_split=tmp_path / "split.json")  # not there yet
    write_split(tmp_path / "split.json", before)
    for number in range(8):
        (folder / f"p{number}_mask.nii.gz").write_bytes(b"no label is read again")
    assert chosen.open(own_split=tmp_path / "split.json").cases == before.cases


def test_a_run_that_continues_without_folds_takes_the_splits_of_the_dataset(folder, tmp_path):
    (tmp_path / "split.json").write_text("{}")
    assert len(settings(folder).open(own_split=tmp_path / "split.json").split("training")) == 8


def test_a_file_splits(folder, tmp_path):
    folds = [{"train": [f"p{n}" for n in range(8) if n != out], "val": [f"p{out}"]} for out in range(8)]
    (tmp_path / "splits_final.json").write_text(json.dumps(folds))
    manifest = settings(folder, split=str(tmp_path / "splits_final.json"), fold=5).open()
    assert [case.name for case in manifest.split("validation")] == ["p5"]


def test_masks_alone_are_welcome_where_no_image_is_needed(tmp_path):
    (tmp_path / "a_mask.nii").touch()
    assert settings(tmp_path).open(need_images=False).cases[0].images == ()
    with pytest.raises(DatasetError, match="1 case without an image"):
        settings(tmp_path).open()


def test_every_setting_of_reading_reaches_the_reader(folder):
    manifest = settings(
        folder / "",
        format="folders",
        labels="mask",
        channels=["T1"],
        classes={"core": 1, "whole": [1, 2]},
        ignore_value=7,
        resample_channels=True,
        patient_pattern="^(.)",
    ).open()
    assert manifest.scheme.regions == {"core": (1,), "whole": (1, 2)}
    assert manifest.scheme.ignore_value == 7
    assert {case.patient for case in manifest.cases} == {"p"}
    assert all(case.resample_channels for case in manifest.cases)
    with pytest.raises(DatasetError, match=r"data\.root has no effect"):
        settings(folder, root="x").open()
    with pytest.raises(DatasetError, match="has no image T2"):
        settings(folder, channels=["T2"]).open()
    with pytest.raises(DatasetError, match="no name ends in '_seg'"):
        settings(folder, labels="seg").open()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dataset": " "}, "dataset must name a file or folder, got ' '"),
        ({"labels": ""}, "labels must name a file or folder, got ''"),
        ({"split": ""}, "split must name a file or folder"),
        ({"format": "nifti"}, "format must be one of auto, decathlon, nnunet, bids, table, folders, got 'nifti'"),
        ({"num_folds": 1, "fold": 0}, "num_folds must be 2 or more, got 1"),
        ({"num_folds": 5}, "num_folds 5 needs fold, the one that validates, from 0 to 4, got None"),
        ({"num_folds": 5, "fold": 5}, "num_folds 5 needs fold, .* got 5"),
        ({"num_folds": 5, "fold": -1}, "num_folds 5 needs fold, .* got -1"),
        ({"num_folds": 5, "fold": 0, "split": "s.json"}, "split 's.json' and num_folds 5 are two ways to split"),
        ({"fold": 0}, "fold must be 0 or more and needs num_folds, or a split file"),
        ({"fold": -1, "split": "s.json"}, "fold must be 0 or more"),
        ({"fold_seed": -1}, "fold_seed must be 0 or more, got -1"),
        ({"classes": [1]}, "classes must be names"),
        ({"patient_pattern": "x"}, "patient_pattern must have one group"),
    ],
)
def test_settings_that_make_no_sense_are_refused_before_anything_is_read(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        settings(tmp_path / "nothing", **changes).check() if "dataset" not in changes else DataSettings(
            **NOTHING, **changes
        ).check()


def test_sound_settings_pass_without_the_dataset_being_there(tmp_path):
    settings(tmp_path / "nothing", num_folds=2, fold=1).check()
    settings(tmp_path / "nothing", split="s.json", fold=3).check()
