"""Datasets of every form by the commands: how they were understood is said, and folds are kept."""

import json

import pytest
from commands import TINY, assert_refused, run

from medfocal.data.formats import read_dataset, write_manifest


@pytest.fixture(scope="module")
def folders(dataset, tmp_path_factory):
    """The shared dataset as a folder of images and masks, without any file that lists them."""
    folder = tmp_path_factory.mktemp("folders")
    for case in read_dataset(dataset).cases:
        (folder / f"{case.name}_MR.nii.gz").symlink_to(case.images[0])
        (folder / f"{case.name}_mask.nii.gz").symlink_to(case.label)
    return folder


@pytest.mark.parametrize("place", ["/some where/dataset.json", "dataset.json", "folder/of/data", "data set"])
def test_a_path_in_place_of_the_group_is_refused_with_the_right_setting(tmp_path, place):
    assert_refused(run("check", f"data={place}", folder=tmp_path), 2, f"did you mean data.dataset={place}?")


def test_check_says_how_a_folder_was_understood_and_split(folders, tmp_path):
    ended = run("check", f"data.dataset={folders}", folder=tmp_path)
    assert ended.code == 0, ended.err
    assert f"'{folders}' understood as folders: 6 cases, channel MR, labels *_mask; class lesion=1" in ended.out
    assert "split by the dataset: 6 training, 0 validation, 0 test" in ended.out


def test_settings_of_the_dataset_that_make_no_sense_are_a_usage_error(folders, tmp_path):
    assert_refused(run("check", f"data.dataset={folders}", "data.num_folds=3", folder=tmp_path), 2, "needs fold")
    assert_refused(run("check", f"data.dataset={folders}", "data.classes=[1]", folder=tmp_path), 2, "classes must be")
    ended = run("check", f"data.dataset={folders}", "data.formt=bids", folder=tmp_path)
    assert_refused(ended, 2, "did you mean 'data.format'?")


def test_masks_alone_cannot_be_trained_on(dataset, tmp_path):
    for case in read_dataset(dataset).cases:
        (tmp_path / f"{case.name}_mask.nii.gz").symlink_to(case.label)
    ended = run("train", *TINY, f"data.dataset={tmp_path}", folder=tmp_path)
    assert_refused(ended, 3, "6 cases without an image")


def test_a_table_trains_in_a_fold_and_goes_on_with_it(dataset, tmp_path):
    write_manifest(read_dataset(dataset), tmp_path / "cases.csv")
    words = ["train", *TINY, "data.dataset=cases.csv", "data.num_folds=2", "data.fold=1", "run.id=x"]
    ended = run(*words, folder=tmp_path)
    assert ended.code == 0, ended.err
    path = tmp_path / "runs/default/x/split.json"
    split = json.loads(path.read_text())
    assert [len(split[name]) for name in ("training", "validation", "test")] == [2, 2, 2]
    again = run(*words, "trainer.max_epochs=3", folder=tmp_path)
    assert again.code == 0, again.err
    assert json.loads(path.read_text()) == split
