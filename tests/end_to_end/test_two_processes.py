"""Two processes that train together give the training of one, and so do parts of a batch."""

import csv
import subprocess
import sys

import pytest
import torch
from commands import TINY, run

HOME = ("runs", "default")
SETTINGS = ("trainer.batch_size=4", "trainer.precision=float32", "run.id=r")
FIGURES = ("lesion_sensitivity", "cpm", "threshold", "voxel_dice")


def rows(folder):
    with (folder.joinpath(*HOME) / "r" / "metrics.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def words(dataset, *overrides):
    return ["train", *TINY, f"data.dataset={dataset}", *SETTINGS, *overrides]


def together(folder, *command):
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--rdzv-backend=c10d"]
    launch += ["--rdzv-endpoint=localhost:0", "-m", "medfocal.cli"]
    return subprocess.run([*launch, *command], cwd=folder, capture_output=True, text=True, check=False, timeout=300)


@pytest.fixture(scope="module", params=["focal", "positives"])
def loss(request):
    """With the second the parts of a batch divide by numbers of their own."""
    return {"focal": ["loss.gamma=1"], "positives": ["loss.normalize=positives", "optimizer.lr=0.001"]}[request.param]


@pytest.fixture(scope="module")
def alone(tmp_path_factory, dataset, loss):
    folder = tmp_path_factory.mktemp("alone")
    ended = run(*words(dataset, *loss), folder=folder)
    assert (ended.code, ended.err) == (0, "")
    return folder


def assert_same_training(folder, alone, tolerance):
    found, expected = rows(folder), rows(alone)
    assert len(found) == len(expected)
    for row, wanted in zip(found, expected, strict=True):
        assert float(row["loss"]) == pytest.approx(float(wanted["loss"]), rel=tolerance)
        for name in FIGURES:
            assert float(row[name]) == pytest.approx(float(wanted[name]), rel=1e-3, abs=1e-3)
    visits = [(path.joinpath(*HOME) / "r" / "visits.csv").read_bytes() for path in (folder, alone)]
    assert visits[0] == visits[1]


@pytest.mark.parametrize(
    ("overrides", "tolerance"),
    [([], 1e-5), (["trainer.accumulate=2"], 1e-5), (["trainer.sharding=fsdp"], 1e-4)],
    ids=["ddp", "parts", "fsdp"],
)
def test_two_processes_have_the_loss_curve_of_one(overrides, tolerance, loss, alone, tmp_path, dataset):
    ended = together(tmp_path, *words(dataset, *loss, *overrides))
    assert ended.returncode == 0, ended.stderr
    assert_same_training(tmp_path, alone, tolerance)
    assert ended.stdout.count("epoch   1 of 2") == 1  # the first alone tells
    log = (tmp_path.joinpath(*HOME) / "r" / "train.log").read_text("utf-8")
    assert log.count("epoch   1 of 2") == 1
    checkpoint = torch.load(tmp_path.joinpath(*HOME) / "r" / "checkpoints" / "last.pt", weights_only=True)
    drawn = [state["torch"] for state in checkpoint["random"]]
    assert not torch.equal(*drawn)  # each draws its own dropout


def test_one_process_in_parts_has_the_loss_curve_of_the_whole(loss, alone, tmp_path, dataset):
    ended = run(*words(dataset, *loss, "trainer.accumulate=4"), folder=tmp_path)
    assert (ended.code, ended.err) == (0, "")
    assert_same_training(tmp_path, alone, 1e-5)


def test_a_batch_that_cannot_be_shared_out_is_refused(tmp_path, dataset):
    ended = together(tmp_path, *words(dataset, "trainer.batch_size=3"))
    assert ended.returncode != 0
    assert "ConfigError: trainer.batch_size=3 cannot be shared out to 2 processes" in ended.stderr
