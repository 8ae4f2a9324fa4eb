"""`medfocal predict` with one model or several."""

import json

import numpy as np
import pytest
from command_models import make_model
from commands import assert_refused, run

from medfocal.volume import Volume, write_volume


@pytest.fixture
def folder(tmp_path):
    """Two models and an image."""
    for seed, threshold in ((1, 0.2), (2, 0.6)):
        make_model(tmp_path / f"model{seed}", seed=seed, channels=[4, 4, 4], window=[16, 16, 16], threshold=threshold)
    image = np.random.default_rng(0).normal(size=(20, 18, 16)).astype(np.float32)
    write_volume(tmp_path / "a.nii.gz", Volume(image, np.diag([0.5, 1.0, 3.0, 1.0])))
    return tmp_path


def predicted(folder, *words):
    ended = run("predict", *words, "input=a.nii.gz", "output=o", "device=cpu", folder=folder)
    assert ended.code == 0, ended.err
    return ended, json.loads((folder / "o" / "run.json").read_text("utf-8"))


def test_several_models_are_averaged_and_the_mean_threshold_is_told_for_what_it_is(folder):
    ended, record = predicted(folder, "model=[model1,model2]")
    assert len(record["weights_sha256"]) == 2
    assert record["threshold"] == pytest.approx(0.4)
    words = " ".join((ended.out + ended.err).split())
    assert "threshold 0.4 is the mean of the models' own" in words
    assert "it was not chosen for the ensemble" in words
    assert "medfocal calibrate chooses one" in words


def test_a_given_threshold_is_taken_without_a_word(folder):
    ended, record = predicted(folder, "model=[model1,model2]", "threshold=0.5")
    assert record["threshold"] == 0.5
    assert "mean of the models" not in ended.out + ended.err


@pytest.mark.parametrize("word", ["model=model1", "model=[model1]"])
def test_one_model_alone_keeps_its_own_threshold(folder, word):
    ended, record = predicted(folder, word)
    assert record["threshold"] == 0.2
    assert len(record["weights_sha256"]) == 1
    assert "mean of the models" not in ended.out + ended.err


def test_a_share_of_the_cases_has_a_record_of_its_own(folder):
    ended = run("predict", "model=model1", "input=a.nii.gz", "output=o", "shard=2/2", "device=cpu", folder=folder)
    assert ended.code == 0, ended.err
    assert [path.name for path in (folder / "o").iterdir()] == [
        "run_2of2.json"
    ]  # one case, and it is in the first share


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("shard=0/2", "shard must be i/n with i from 1 to n, got 0/2"),
        ("shard=3/2", "shard must be i/n with i from 1 to n, got 3/2"),
        ("shard=half", "shard must be i/n such as 2/8, got 'half'"),
        ("threshold=1.5", r"threshold must be in [0, 1], got 1.5"),
        ("max_memory_mb=0", "max_memory_mb must be above 0, got 0"),
        ("tta=flip", "tta must be none or mirror, got 'flip'"),
    ],
)
def test_settings_out_of_range_are_refused_before_any_work(folder, word, told):
    ended = run("predict", "model=nowhere", "input=a.nii.gz", "output=o", word, folder=folder)
    assert_refused(ended, 2, told)


def test_too_little_memory_is_an_error_of_resources(folder):
    words = ("model=model1", "input=a.nii.gz", "output=o", "max_memory_mb=0.1", "device=cpu")
    assert_refused(run("predict", *words, folder=folder), 5, "max_memory_mb is 0.1")


@pytest.mark.parametrize("word", ["model=[]", "model=5", "model=[model1,7]", "model={a:1}", "model=''", "model=null"])
def test_what_names_no_model_is_refused(folder, word):
    ended = run("predict", word, "input=a.nii.gz", "output=o", folder=folder)
    assert_refused(ended, 2, "model must be a model's folder or a list such as [DIR1,DIR2]")


def test_a_missing_member_is_refused_by_name(folder):
    ended = run("predict", "model=[model1,nowhere]", "input=a.nii.gz", "output=o", folder=folder)
    assert_refused(ended, 4, "'nowhere' is not a model folder")
