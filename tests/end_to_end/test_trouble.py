"""What a workstation does to a training: its disk fills, its memory ends, processes die, a command is given twice.

Each ends with one message; the same command, once the trouble is over, ends with the weights of a run that had none.
"""

import json
import os
import re
import resource
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest
import torch
from commands import TINY, assert_refused, run, start
from killing import outcome, rows, stamp

HOME = "runs/default/r"
LONG = ("trainer.max_epochs=4", "trainer.steps_per_epoch=20", "trainer.validate_every=2", "run.id=r")
MEGABYTE = 10**6


def words(dataset, *overrides):
    return ["train", *TINY, *LONG, f"data.dataset={dataset}", *overrides]


def wait_until(is_so, started):
    deadline = time.monotonic() + 120
    while not is_so():
        assert time.monotonic() < deadline
        assert started.process.is_alive(), started.end()
        time.sleep(0.002)


def num_epochs(folder):
    path = folder / HOME / "metrics.csv"
    return len(rows(path)) if path.exists() else 0


def limit(started, what, value):
    resource.prlimit(started.process.pid, what, (value, value))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, dataset):
    folder = tmp_path_factory.mktemp("undisturbed")
    ended = run(*words(dataset), folder=folder)
    assert ended.code == 0, ended.err
    return folder / HOME


def test_a_disk_that_fills_within_a_checkpoint_leaves_the_last_good_one(undisturbed, tmp_path, dataset):
    """The limit on the size of a file stands for the full disk: a write gets so far and no further."""
    started = start(*words(dataset), folder=tmp_path)
    wait_until(lambda: num_epochs(tmp_path) == 1, started)
    size = (tmp_path / HOME / "checkpoints" / "last.pt").stat().st_size
    limit(started, resource.RLIMIT_FSIZE, size // 2)
    ended = started.end()
    assert_refused(ended, 5, "cannot write", "last.pt", "Free space")
    assert not list(tmp_path.rglob("*.part"))
    ended = run(*words(dataset), folder=tmp_path)
    assert ended.code == 0, ended.err
    assert "continuing after" in ended.out
    assert outcome(tmp_path / HOME) == outcome(undisturbed)


def test_memory_that_ends_says_what_would_fit_and_the_same_run_goes_on_with_it(tmp_path, dataset):
    """Its address space may not grow by more than part of what a step takes."""
    overrides = ["sampling.patch_size=[64,64,64]", "network.channels=[8,8,8]", "trainer.batch_size=12"]
    overrides += ["trainer.max_epochs=1", "trainer.steps_per_epoch=1", "trainer.precision=float32"]
    log = tmp_path / HOME / "train.log"

    def limited(*more):
        before, started = stamp(log), start(*words(dataset, *overrides, *more), folder=tmp_path)
        wait_until(lambda: stamp(log) != before, started)
        status = Path(f"/proc/{started.process.pid}/status").read_text()
        size = 1024 * int(re.search(r"VmSize:\s+(\d+) kB", status)[1])
        limit(started, resource.RLIMIT_AS, size + 600 * MEGABYTE)
        return started.end()

    ended = limited()
    told = "not enough memory for a training step: 12 patches of 64x64x64 voxels at once do not fit"
    assert_refused(ended, 5, told.partition(": ")[2])
    advice = re.search(r"The same run.id goes on with (trainer.accumulate=\d+)", ended.err)
    ended = limited(advice[1])
    assert ended.code == 0, ended.err
    assert num_epochs(tmp_path) == 1


def test_a_second_command_for_one_run_learns_who_trains_it_and_the_first_goes_on(undisturbed, tmp_path, dataset):
    first = start(*words(dataset), folder=tmp_path)
    wait_until(lambda: num_epochs(tmp_path) == 1, first)
    second = run(*words(dataset), folder=tmp_path)
    assert_refused(second, 5, "is being trained by process", first.process.pid, "run.id")
    ended = first.end()
    assert ended.code == 0, ended.err
    assert outcome(tmp_path / HOME) == outcome(undisturbed)


def test_an_epoch_that_is_done_is_not_lost_though_it_is_not_validated(tmp_path, dataset):
    long = ("trainer.validate_every=50", "trainer.max_epochs=50", "trainer.steps_per_epoch=3")
    started = start(*words(dataset, *long), folder=tmp_path)
    log = tmp_path / HOME / "train.log"
    wait_until(lambda: log.exists() and "epoch   3 of" in log.read_text(), started)
    os.kill(started.process.pid, signal.SIGTERM)
    assert started.end().code == 143
    position = torch.load(tmp_path / HOME / "checkpoints" / "last.pt", weights_only=True)["position"]
    assert position["epoch"] >= 3
    fewer = run(*words(dataset, *long, f"trainer.max_epochs={position['epoch']}"), folder=tmp_path)
    assert_refused(fewer, 2, f"has done {position['epoch']} epochs, none of them validated", "may grow, not shrink")


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["network.norm=batch", "trainer.accumulate=2"], "network.norm=batch takes its statistics"),
        (["trainer.patience=3", "data.num_folds=null"], "trainer.patience=3 counts validations"),
    ],
)
def test_what_cannot_be_is_refused_before_the_first_step(overrides, told, tmp_path, dataset):
    if "patience" in told:
        dataset = without_validation(dataset, tmp_path)
    assert_refused(run(*words(dataset, *overrides), folder=tmp_path), 2, told)


def with_place(**changes):
    return lambda state: state["position"].update(changes)


def spoil_weights(state):
    next(iter(state["network"].values())).fill_(float("nan"))


NONSENSE = {
    "epoch": with_place(epoch=-5),
    "epochs": with_place(epoch=10**9),
    "step": with_place(step=999),
    "rows": with_place(rows=None),
    "column": with_place(rows=[{"epoch": 1, "strange": 1}] * 4),
    "visits": with_place(visits=[[1], [2]]),
    "best": with_place(best="ab"),
    "position": lambda state: state.pop("position"),
    "weights": spoil_weights,
    "network": lambda state: state.update(network=None),
    "optimizer": lambda state: state.update(optimizer={}),
    "anomalies": lambda state: state.update(anomalies=["a", "b"]),
    "rates": lambda state: state.update(miss_rates="junk"),
}


@pytest.mark.parametrize("name", NONSENSE)
def test_a_checkpoint_of_the_right_form_that_holds_nonsense_is_refused(name, undisturbed, tmp_path, dataset):
    shutil.copytree(undisturbed, tmp_path / HOME)
    path = tmp_path / HOME / "checkpoints" / "last.pt"
    state = torch.load(path, weights_only=True)
    NONSENSE[name](state)
    torch.save(state, path)
    ended = run(*words(dataset, "trainer.max_epochs=5"), folder=tmp_path)
    assert_refused(ended, 4, "holds what no run of this version writes", "run.resume=previous")


@pytest.mark.parametrize(
    ("name", "content", "code"),
    [
        ("config.yaml", "a: [1\nb: }", 3),
        ("config.yaml", "", 3),
        ("config.yaml", "a: &a [*a]", 3),
        ("split.json", "[]", 3),
        ("split.json", '{"training": ["a"]}', 3),
        ("environment.json", "[]", 3),
        ("model/model.json", '{"training": [1]}', 4),
    ],
)
def test_a_record_of_a_run_that_was_damaged_is_refused(name, content, code, undisturbed, tmp_path, dataset):
    shutil.copytree(undisturbed, tmp_path / HOME)
    (tmp_path / HOME / name).write_text(content)
    assert_refused(run(*words(dataset, "trainer.max_epochs=5"), folder=tmp_path), code, Path(name).name)


@pytest.mark.parametrize("name", [".lock", "train.log"])
def test_a_folder_in_the_way_of_a_file_of_the_run_is_told(name, undisturbed, tmp_path, dataset):
    shutil.copytree(undisturbed, tmp_path / HOME)
    (tmp_path / HOME / name).unlink(missing_ok=True)
    (tmp_path / HOME / name).mkdir()
    assert_refused(run(*words(dataset, "trainer.max_epochs=5"), folder=tmp_path), 5, name)


def test_a_checkpoint_that_was_deleted_does_not_start_the_run_anew(undisturbed, tmp_path, dataset):
    shutil.copytree(undisturbed, tmp_path / HOME)
    checkpoints = tmp_path / HOME / "checkpoints"
    (checkpoints / "last.pt").unlink()
    assert_refused(run(*words(dataset, "trainer.max_epochs=5"), folder=tmp_path), 4, "last.pt", "run.resume=previous")
    ended = run(*words(dataset, "trainer.max_epochs=5", "run.resume=previous"), folder=tmp_path)
    assert ended.code == 0, ended.err
    assert "continuing after" in ended.out
    assert num_epochs(tmp_path) == 5


def test_a_run_that_was_refused_before_its_first_step_leaves_its_name_to_other_settings(tmp_path, dataset):
    assert run(*words(dataset, "network.norm=batch", "trainer.accumulate=2"), folder=tmp_path).code == 2
    ended = run(*words(dataset, "trainer.max_epochs=1"), folder=tmp_path)
    assert ended.code == 0, ended.err


def test_a_run_that_its_patience_ended_goes_on_with_more(tmp_path, dataset):
    """Nothing is learnt, so that no validation is better than the first."""
    still = ("optimizer.lr=1e-12", "trainer.validate_every=1", "trainer.steps_per_epoch=3", "trainer.max_epochs=6")
    for patience, epochs in ((1, 2), (3, 4)):
        ended = run(*words(dataset, *still, f"trainer.patience={patience}"), folder=tmp_path)
        assert ended.code == 0, ended.err
        assert num_epochs(tmp_path) == epochs
    again = run(*words(dataset, *still, "trainer.patience=3"), folder=tmp_path)
    assert "is finished" in again.out


def test_a_name_of_a_run_that_no_folder_can_have_is_refused(tmp_path, dataset):
    assert_refused(
        run(*words(dataset, f"run.id={'x' * 300}"), folder=tmp_path), 2, "run.id becomes the name of a folder"
    )


def without_validation(dataset, folder):
    content = json.loads(dataset.read_text())
    content["validation"] = []
    for split in ("training", "test"):
        for entry in content[split]:
            entry.pop("annotations", None)
            entry |= {key: str(dataset.parent / entry[key]) for key in ("image", "label") if key in entry}
    (folder / "dataset.json").write_text(json.dumps(content))
    return folder / "dataset.json"


@pytest.mark.skipif(sys.platform != "linux", reason="/proc names the processes of a command")
def test_a_process_that_dies_while_it_prepares_a_case_names_the_case(tmp_path):
    from medfocal.data.phantom import write_phantoms

    dataset = write_phantoms(tmp_path / "large", num_cases=10, seed=1, prevalence=1e-3, shape=(128, 128, 128))
    started = start(*words(dataset, "cache.workers=2"), folder=tmp_path)
    wait_until(lambda: list((tmp_path / "cache").rglob("*")), started)
    os.kill(max(spawned_by(started.process.pid)), signal.SIGKILL)
    ended = started.end()
    assert ended.code == 5
    told = r"ResourceError: a process that prepared cases ended without an answer while 'case_0\d\d'.* cache.workers=1"
    assert re.search(told, ended.err), ended.err


def spawned_by(process):
    """Processes that work for another one, which is how `multiprocessing` names them to itself."""
    found = []
    for path in Path(f"/proc/{process}/task").glob("*/children"):
        found += [int(child) for child in path.read_text().split()]
    return [child for child in found if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()]
