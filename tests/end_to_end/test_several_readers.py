"""Training on several readers through the command: every fusion and every smoothing, without labels, and continued."""

import json

import numpy as np
import pytest
from commands import TINY, assert_refused, run

from medfocal.config import conf_directory
from medfocal.volume import Volume, read_volume, write_volume

#: Each fusion and each smoothing of conf/ at least once.
PAIRS = {
    "reference": ("one_sided",),
    "mean": ("none", "soft_boundary"),
    "majority": ("svls",),
    "union": ("geodesic",),
    "intersection": ("none",),
    "staple": ("uniform",),
    "random": ("none",),
}


def train(dataset, *overrides, folder):
    folder.mkdir(exist_ok=True)
    words = [*TINY, "trainer.max_epochs=1", f"data.dataset={dataset}", "run.id=r", "seed=4", *overrides]
    ended = run("train", *words, folder=folder)
    assert (ended.code, ended.err) == (0, ""), ended.err
    return folder / "runs" / "default" / "r", ended.out


def weights(home):
    return json.loads((home / "model" / "model.json").read_text())["members"][0]["weights"]["sha256"]


def test_the_pairs_are_all_there_are():
    conf = conf_directory()
    assert {path.stem for path in (conf / "annotations").glob("*.yaml")} == set(PAIRS)
    assert {path.stem for path in (conf / "smoothing").glob("*.yaml")} == {s for pair in PAIRS.values() for s in pair}


@pytest.fixture(scope="module")
def bare(dataset):
    """The training cases alone, so that a run has nothing to evaluate."""
    path = dataset.with_name("bare.json")
    path.write_text(json.dumps(json.loads(dataset.read_text()) | {"validation": [], "test": []}))
    return path


@pytest.fixture(scope="module")
def models(bare, tmp_path_factory):
    """The weights that each pair trains, and its record of the annotations."""
    found = {}
    for fusion, smoothings in PAIRS.items():
        for smoothing in smoothings:
            folder = tmp_path_factory.mktemp(f"{fusion}-{smoothing}")
            home, _ = train(bare, f"annotations={fusion}", f"smoothing={smoothing}", folder=folder)
            found[fusion, smoothing] = weights(home), json.loads((home / "annotations.json").read_text())
    return found


def test_every_fusion_and_every_smoothing_trains_another_model(models):
    assert len({sha256 for sha256, _ in models.values()}) == len(models)


def test_the_run_folder_says_how_the_readers_agreed(models):
    _, record = models["staple", "uniform"]
    assert record["fusion"] == "staple"
    assert [case["num_readers"] for case in record["cases"]] == [2, 2, 2]
    assert {"first", "second", "voxel_dice", "num_only_first"} <= set(record["cases"][0]["agreement"][0])
    assert all(len(case["staple"]["sensitivity"]) == 2 for case in record["cases"])


def without_labels(dataset, folder):
    """The dataset with annotations only."""
    content = json.loads(dataset.read_text())
    for split in ("training", "validation", "test"):
        for entry in content[split]:
            del entry["label"]
            for key in ("image", "annotations"):
                places = entry[key] if isinstance(entry[key], list) else [entry[key]]
                entry[key] = [str(dataset.parent / place) for place in places]
    path = folder / "dataset.json"
    path.write_text(json.dumps(content))
    return path


def test_a_dataset_of_readers_alone_is_trained_and_evaluated(dataset, tmp_path):
    bare = without_labels(dataset, tmp_path)
    home, out = train(bare, "annotations=union", folder=tmp_path)
    assert "2 of 2 test cases have no label; their readers, fused, are the reference" in out
    tested = json.loads((home / "test" / "evaluation.json").read_text())
    assert tested["num_lesions"] > 0
    assert_refused(
        run("train", *TINY, f"data.dataset={bare}", folder=tmp_path),
        3,
        "training cases have annotations and no 'label'",
    )


def test_estimated_smoothing_and_ignored_disagreement_reach_the_loss(bare, tmp_path):
    home, out = train(bare, "annotations=random", "annotations.estimate_smoothing=true", folder=tmp_path)
    matrix = np.array(json.loads((home / "annotations.json").read_text())["label_smoothing"])
    assert matrix.shape == (2, 2)
    assert 0.5 < matrix[1, 1] < 1
    assert "label smoothing by the readers' rates" in out
    ignoring, _ = train(bare, "annotations.disagreement=ignore", folder=tmp_path / "other")
    assert weights(ignoring) != weights(home)


def test_a_random_reader_is_continued_to_the_same_weights(bare, tmp_path):
    words = ["annotations=random", "schedule=poly", "schedule.power=0"]  # rates that do not depend on the end
    whole, _ = train(bare, *words, "trainer.max_epochs=3", folder=tmp_path / "a")
    train(bare, *words, "trainer.max_epochs=2", folder=tmp_path / "b")
    continued, _ = train(bare, *words, "trainer.max_epochs=3", folder=tmp_path / "b")
    assert weights(continued) == weights(whole)


def test_transplants_carry_what_each_reader_said(bare, tmp_path):
    plain, _ = train(bare, "annotations=mean", "smoothing=svls", folder=tmp_path / "a")
    more = ["annotations=mean", "smoothing=svls", "sampling.transplant_probability=0.9"]
    assert weights(train(bare, *more, folder=tmp_path / "b")[0]) != weights(plain)


def test_weight_maps_reach_the_loss_and_foreign_ones_are_refused(bare, tmp_path):
    content = json.loads(bare.read_text())
    folder = tmp_path / "weights"
    for entry in content["training"]:
        image = read_volume(bare.parent / np.atleast_1d(entry["image"])[0])
        write_volume(
            folder / f"{entry['case']}_weight.nii.gz", Volume(np.full(image.shape, 0.5, np.float32), image.affine)
        )
    home, out = train(bare, f"annotations.weights={folder}", folder=tmp_path / "a")
    assert "3 of 3 training cases have voxel weights" in out
    inputs = json.loads((home / "environment.json").read_text())["inputs"]
    assert {str(path) for path in folder.iterdir()} <= set(inputs)
    plain, _ = train(bare, folder=tmp_path / "b")
    assert weights(home) != weights(plain)
    (tmp_path / "empty").mkdir()
    words = [*TINY, f"data.dataset={bare}", "annotations.weights=empty"]
    assert_refused(run("train", *words, folder=tmp_path), 3, "no weight map of any of the 3 training cases")


def test_a_loss_that_needs_classes_refuses_shares_before_it_trains(bare, tmp_path):
    words = [*TINY, f"data.dataset={bare}", "annotations=mean", "loss.ignore_index=255"]
    assert_refused(run("train", *words, folder=tmp_path), 2, "The targets are shares", "annotations=majority")
