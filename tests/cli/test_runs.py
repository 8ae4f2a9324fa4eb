"""Run folders: several at once, the same again, interrupted, continued, prolonged."""

import csv
import json
import re
import shutil
import time

import pytest
import torch
from commands import TINY, assert_refused, run, start


def train(dataset, *overrides):
    return ["train", *TINY, "sampling.transplant_probability=0.5", f"data.dataset={dataset}", *overrides]


def weights(folder):
    return member(folder)["weights"]["sha256"]


def member(folder):
    """What the card of a run's model says of its network."""
    return json.loads((folder / "model" / "model.json").read_text("utf-8"))["members"][0]


def epochs(folder):
    with (folder / "metrics.csv").open(encoding="utf-8", newline="") as file:
        return [int(row["epoch"]) for row in csv.DictReader(file)]


def stamps(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="session")
def finished(tmp_path_factory, dataset):
    """The folder in which a run `r` of four epochs was trained without an interruption."""
    folder = tmp_path_factory.mktemp("finished")
    ended = run(*train(dataset, "run.id=r", "trainer.max_epochs=4"), folder=folder)
    assert (ended.code, ended.err) == (0, "")
    return folder


@pytest.fixture
def again(finished, tmp_path):
    """A copy of that folder."""
    shutil.copytree(finished / "runs", tmp_path / "runs")
    return tmp_path


def test_a_sweep_makes_a_run_folder_for_each_seed(tmp_path, bare):
    ended = run(*train(bare, "trainer.max_epochs=1"), "-m", "seed=1,2", folder=tmp_path)
    assert (ended.code, ended.err) == (0, "")
    folders = sorted((tmp_path / "runs" / "default").iterdir())
    assert sorted(member(folder)["training"]["seed"] for folder in folders) == [1, 2]
    assert weights(folders[0]) != weights(folders[1])


def test_transplants_reach_training_and_its_lesion_share(tmp_path, bare):
    shares, sums = [], []
    for probability in (0, 0.9):
        words = [f"run.id=q{probability}", "trainer.max_epochs=1", f"sampling.transplant_probability={probability}"]
        ended = run(*train(bare, *words), folder=tmp_path)
        assert (ended.code, ended.err) == (0, "")
        folder = tmp_path / "runs" / "default" / f"q{probability}"
        shares.append(float(re.search(r"lesion share of patches (\S+)", (folder / "train.log").read_text())[1]))
        sums.append(weights(folder))
    assert shares[1] > 1.1 * shares[0]
    assert sums[0] != sums[1]


@pytest.mark.parametrize("index", [0, 1])
def test_ignoring_the_background_or_the_only_lesion_class_is_refused(tmp_path, bare, index):
    ended = run(*train(bare, f"loss.ignore_index={index}"), folder=tmp_path)
    assert_refused(ended, 2, f"loss.ignore_index={index} leaves nothing to tell apart: in the dataset 0 is background")


def test_metrics_hold_the_share_of_voxels_below_the_cap_from_its_start_epoch_on(tmp_path, bare):
    words = ["run.id=capped", "trainer.max_epochs=2", "loss.cap=[zero,0.999]", "loss.cap_start_epoch=1"]
    assert run(*train(bare, *words), folder=tmp_path).code == 0
    with (tmp_path / "runs" / "default" / "capped" / "metrics.csv").open(encoding="utf-8", newline="") as file:
        shares = [float(row["dropped_share"]) for row in csv.DictReader(file)]
    assert shares[0] == 0
    assert 0.5 < shares[1] <= 1


def test_a_share_of_dropped_voxels_counts_those_of_training_alone(tmp_path, bare):
    words = ["run.id=trimmed", "trainer.max_epochs=1", "loss=trimmed_focal", "loss.rates=[0.5,0.5]"]
    assert run(*train(bare, *words, "loss.ramp_epochs=0"), folder=tmp_path).code == 0
    with (tmp_path / "runs" / "default" / "trimmed" / "metrics.csv").open(encoding="utf-8", newline="") as file:
        assert 0.49 < float(next(csv.DictReader(file))["dropped_share"]) <= 0.5


def test_two_runs_started_together_have_folders_of_their_own_and_the_same_weights(tmp_path, bare):
    together = [start(*train(bare, "trainer.max_epochs=1"), folder=tmp_path) for _ in range(2)]
    assert [started.end().code for started in together] == [0, 0]
    first, second = sorted((tmp_path / "runs" / "default").iterdir())
    assert weights(first) == weights(second)


def test_the_same_run_again_says_finished_and_changes_nothing(again, dataset):
    before = stamps(again / "runs")
    ended = run(*train(dataset, "run.id=r", "trainer.max_epochs=4"), folder=again)
    assert (ended.code, ended.err) == (0, "")
    assert "is finished" in ended.out
    assert stamps(again / "runs") == before


def test_the_same_run_with_another_loss_is_refused_with_both_values(again, dataset):
    before = stamps(again / "runs")
    ended = run(*train(dataset, "run.id=r", "trainer.max_epochs=5", "loss.gamma=1.25"), folder=again)
    assert_refused(ended, 2, "loss.gamma: 2.0 then, 1.25 now")
    assert stamps(again / "runs") == before


def test_a_run_folder_may_be_reached_by_another_path(again, dataset):
    ended = run(*train(dataset, "run.id=r", "trainer.max_epochs=4", f"paths.runs={again / 'runs'}"), folder=again)
    assert ended.code == 0
    assert "is finished" in ended.out


def test_an_interrupted_run_goes_on_to_the_weights_of_an_uninterrupted_one(finished, tmp_path, dataset):
    folder = tmp_path / "runs" / "default" / "r"
    words = train(dataset, "run.id=r", "trainer.max_epochs=4")
    started = start(*words, folder=tmp_path)
    deadline = time.monotonic() + 300
    while not (folder / "checkpoints" / "last.pt").exists():
        assert time.monotonic() < deadline
        time.sleep(0.005)
    started.process.terminate()
    ended = started.end()
    assert ended.code == 143
    assert ended.err in ("", "terminated\n")  # the first within steps, where the log says it
    assert not list(tmp_path.rglob("*.part"))
    assert not (folder / "model").exists()
    assert torch.load(folder / "checkpoints" / "last.pt", weights_only=True)["position"]["epoch"] < 4

    ended = run(*words, folder=tmp_path)
    assert (ended.code, ended.err) == (0, "")
    assert "continuing after" in ended.out
    whole = finished / "runs" / "default" / "r"
    assert weights(folder) == weights(whole)
    assert epochs(folder) == [1, 2, 3, 4]
    for split in ("validation", "test"):
        assert (folder / split / "evaluation.json").read_bytes() == (whole / split / "evaluation.json").read_bytes()


def test_more_epochs_continue_a_finished_run(again, dataset):
    folder = again / "runs" / "default" / "r"
    ended = run(*train(dataset, "run.id=r", "trainer.max_epochs=5"), folder=again)
    assert (ended.code, ended.err) == (0, "")
    assert "continuing after 4 epochs and 0 steps" in ended.out
    assert epochs(folder) == [1, 2, 3, 4, 5]
    assert member(folder)["training"]["num_epochs"] == 5
    assert "max_epochs: 5\n" in (folder / "config.yaml").read_text()


def test_a_run_whose_last_report_is_missing_is_not_finished(again, dataset):
    """As after a kill between training and the reports: they are written, the weights stay."""
    folder = again / "runs" / "default" / "r"
    before = weights(folder)
    (folder / "test" / "report.html").unlink()
    ended = run(*train(dataset, "run.id=r", "trainer.max_epochs=4"), folder=again)
    assert ended.code == 0
    assert "is finished" not in ended.out
    assert (folder / "test" / "report.html").is_file()
    assert weights(folder) == before


def test_a_metrics_file_that_is_a_row_short_is_completed(again, dataset):
    """As after a kill between the last checkpoint and metrics.csv."""
    folder = again / "runs" / "default" / "r"
    lines = (folder / "metrics.csv").read_text().splitlines(keepends=True)
    (folder / "metrics.csv").write_text("".join(lines[:-1]))
    shutil.rmtree(folder / "model")
    assert run(*train(dataset, "run.id=r", "trainer.max_epochs=4"), folder=again).code == 0
    assert epochs(folder) == [1, 2, 3, 4]


def test_a_damaged_checkpoint_is_refused_by_name(again, dataset):
    path = again / "runs" / "default" / "r" / "checkpoints" / "last.pt"
    path.write_bytes(path.read_bytes()[:1000])
    ended = run(*train(dataset, "run.id=r", "trainer.max_epochs=5"), folder=again)
    assert_refused(ended, 4, "last.pt' is damaged", "run.resume=previous")
    ended = run(*train(dataset, "run.id=r", "trainer.max_epochs=5", "run.resume=previous"), folder=again)
    assert ended.code == 0
    assert epochs(again / "runs" / "default" / "r") == [1, 2, 3, 4, 5]


def test_without_validation_the_last_epoch_is_kept_also_after_more_epochs(tmp_path, bare):
    for max_epochs in (1, 2):
        ended = run(*train(bare, "run.id=r", f"trainer.max_epochs={max_epochs}"), folder=tmp_path)
        assert (ended.code, ended.err) == (0, "")
        card = json.loads((tmp_path / "runs" / "default" / "r" / "model" / "model.json").read_text())
        assert card["members"][0]["training"]["epoch"] == max_epochs
        assert card["operating_points"][0]["source"] == "default"


def test_a_prolonged_run_that_failed_before_its_reports_is_not_finished(again, dataset):
    """The reports of fewer epochs must not be taken for its own."""
    curves = again / "runs" / "default" / "r" / "curves.png"
    curves.unlink()
    curves.mkdir()
    words = train(dataset, "run.id=r", "trainer.max_epochs=5")
    assert_refused(run(*words, folder=again), 5, "curves.png")
    curves.rmdir()
    ended = run(*words, folder=again)
    assert (ended.code, ended.err) == (0, "")
    assert "is finished" not in ended.out
    assert curves.is_file()
