"""A run goes on with the cases and files it began with, or not at all."""

import json
import shutil

import numpy as np
import pytest
from commands import TINY, assert_refused, run

from medfocal.volume import read_volume, write_volume


def go(folder, epochs):
    words = [*TINY, "data.dataset=data/dataset.json", "run.id=r", f"trainer.max_epochs={epochs}"]
    return run("train", *words, folder=folder)


@pytest.fixture
def begun(dataset, tmp_path):
    shutil.copytree(dataset.parent, tmp_path / "data")
    ended = go(tmp_path, 1)
    assert (ended.code, ended.err) == (0, ""), ended.err
    return tmp_path


def test_a_label_with_a_lesion_more_is_refused(begun):
    entry = json.loads((begun / "data" / "dataset.json").read_text())["training"][0]
    path = begun / "data" / entry["label"]
    volume = read_volume(path)
    array = np.array(volume.array)
    array[tuple(n // 2 for n in array.shape)] = 1
    write_volume(path, volume.with_array(array))
    assert_refused(go(begun, 2), 3, "the files of 1 cases are not those", entry["case"], "run.id")


def test_cases_that_changed_their_split_are_refused(begun):
    path = begun / "data" / "dataset.json"
    content = json.loads(path.read_text())
    content["training"][0], content["validation"][0] = content["validation"][0], content["training"][0]
    path.write_text(json.dumps(content))
    assert_refused(go(begun, 2), 3, "other training cases", content["validation"][0]["case"], "split.json")
