"""Trainings in a real Slurm: stopped, requeued and ended with the weights of an undisturbed one.

Skipped where Slurm is not installed or the tests do not run as root.
"""

import contextlib
import hashlib
import subprocess
import sys
import time
from pathlib import Path

import pytest
from commands import TINY, run

from medfocal.config import conf_directory

CLUSTER = conf_directory() / "cluster"
#: Long enough that a signal after the third epoch comes in time.
EPOCHS = 24
PATIENCE_S = 150


def words(dataset):
    return [word for word in TINY if "max_epochs" not in word] + [
        f"data.dataset={dataset}",
        f"trainer.max_epochs={EPOCHS}",
    ]


def weights(folder, run_id):
    path = folder / "runs" / "default" / run_id / "model" / "weights.safetensors"
    return hashlib.sha256(path.read_bytes()).hexdigest()


def call(slurm, *command):
    found = subprocess.run(list(map(str, command)), env=slurm, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    return found.stdout


def wait_until(is_so, what, shown=lambda: ""):
    end = time.monotonic() + PATIENCE_S
    while not is_so():
        assert time.monotonic() < end, f"not so within {PATIENCE_S} s: {what}\n{shown()}"
        time.sleep(0.1)


def submit(slurm, folder, dataset, file, *options):
    """The job's number, and its log."""
    environment = slurm | {"PATH": f"{Path(sys.executable).parent}:{slurm['PATH']}", "OMP_NUM_THREADS": "1"}
    command = ["sbatch", "--parsable", f"--chdir={folder}", "--output=log", *options, CLUSTER / file, *words(dataset)]
    return call(environment, *command).strip(), Said(folder / "log")


class Said:
    """What a job has written so far."""

    def __init__(self, path):
        self.path = path

    def __call__(self):
        with contextlib.suppress(FileNotFoundError):
            return self.path.read_text("utf-8")
        return ""

    def wait_for_epoch(self, number):
        text = f"epoch {number:3} of {EPOCHS}"
        wait_until(lambda: text in self(), f"the log has '{text}'", self)


def wait_for_end(slurm, job, said):
    wait_until(lambda: call(slurm, "squeue", "--noheader", "--format=%i") == "", f"job {job} has ended", said)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, dataset):
    """SHA-256 of the weights of a training that nothing stopped."""
    folder = tmp_path_factory.mktemp("undisturbed")
    ended = run("train", *words(dataset), "run.id=undisturbed", folder=folder)
    assert (ended.code, ended.err) == (0, "")
    return weights(folder, "undisturbed")


@pytest.mark.parametrize("file", ["train.sbatch", "train_multinode.sbatch"])
def test_slurm_accepts_the_file_as_it_ships(slurm, file):
    found = subprocess.run(
        ["sbatch", "--test-only", CLUSTER / file], env=slurm, capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stderr
    assert "to start at" in found.stderr


def test_a_job_stopped_for_time_and_then_preempted_ends_with_the_weights_of_an_undisturbed_one(
    slurm, tmp_path, dataset, undisturbed
):
    job, said = submit(slurm, tmp_path, dataset, "train.sbatch", "--job-name=stopped")
    said.wait_for_epoch(3)
    call(slurm, "scancel", "--signal=USR1", "--batch", job)  # what --signal sends before the time limit
    said.wait_for_epoch(8)
    call(slurm, "scontrol", "requeue", job)  # what a preemption does
    wait_for_end(slurm, job, said)
    # Slurm may end a requeued job before it has said that it stops; what counts is that it goes on.
    assert said().count("continuing after") == 2, said()
    assert weights(tmp_path, "stopped") == undisturbed


def test_two_nodes_that_are_stopped_end_with_the_weights_of_two_processes_on_one(slurm, tmp_path, dataset):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "-m", "medfocal.cli", "train"]
    environment = slurm | {"OMP_NUM_THREADS": "1"}
    subprocess.run([*torchrun, *words(dataset), "run.id=one"], cwd=tmp_path, env=environment, check=True, timeout=150)
    job, said = submit(slurm, tmp_path, dataset, "train_multinode.sbatch", "--job-name=two")
    said.wait_for_epoch(3)
    call(slurm, "scancel", "--signal=USR1", "--batch", job)
    wait_for_end(slurm, job, said)
    assert said().count("continuing after") == 1, said()
    assert weights(tmp_path, "two") == weights(tmp_path, "one")


def test_an_array_of_three_of_which_one_is_stopped_for_time_ends_with_the_same_weights(
    slurm, tmp_path, dataset, undisturbed
):
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="needs pip install 'medfocal[slurm]'")
    command = [sys.executable, "-m", "medfocal.cli", "train", "-m", *words(dataset), "hydra/launcher=slurm"]
    command += ["hydra.launcher.gpus_per_node=null", "hydra.launcher.cpus_per_task=4"]
    command += ["seed=1,2,3", "hydra.sweep.dir=runs/multirun/three"]
    launcher = subprocess.Popen(
        command,
        cwd=tmp_path,
        env=slurm | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    jobs = tmp_path / "runs" / "multirun" / "three" / ".submitit"
    wait_until(lambda: list(jobs.glob("*_0/*_log.out")), "the first job of the array writes")
    said = Said(next(jobs.glob("*_0/*_log.out")))
    said.wait_for_epoch(3)
    call(slurm, "scancel", "--signal=USR2", said.path.parent.name)  # what submitit has Slurm send
    output, _ = launcher.communicate(timeout=PATIENCE_S)
    assert launcher.returncode == 0, output
    assert said().count("continuing after") == 1, said()
    found = [weights(tmp_path, f"three-{number}-seed{number + 1}") for number in range(3)]
    assert found[0] == undisturbed
    assert len(set(found)) == 3
