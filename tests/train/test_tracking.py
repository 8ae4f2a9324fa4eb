import importlib.util
import json
import logging
import math
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys

import pytest

from medfocal import config
from medfocal.errors import ConfigError
from medfocal.train.tracking import MLflow, NoTracking, TensorBoard


def needs(*packages):
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    return pytest.mark.skipif(bool(missing), reason=f"{', '.join(missing)} not installed (the extra 'tracking')")


needs_tensorboard = needs("tensorboard")
needs_mlflow = needs("mlflow", "sqlalchemy", "alembic")
CONFIGURATION = {"seed": 1, "trainer": {"max_epochs": 3}, "data": {"classes": {"a/b (x)": 2}}, "plan": None}
ROWS = [
    {"epoch": 1, "step": 10, "loss": 0.5, "dropped_share": None, "num_skipped": 0},
    {"epoch": 2, "step": 20, "loss": 0.25, "dropped_share": None, "num_skipped": 1, "lesion_sensitivity": 0.75},
    {"epoch": 3, "step": 30, "loss": 0.125, "dropped_share": 0.0, "num_skipped": 0, "voxel_dice": math.nan},
]


@pytest.fixture
def run_folder(tmp_path):
    folder = tmp_path / "runs" / "trial" / "seed1"
    folder.mkdir(parents=True)
    return folder


@pytest.fixture(scope="module")
def empty_database(tmp_path_factory):
    """What MLflow takes 5 s to make."""
    folder = tmp_path_factory.mktemp("empty")
    database(folder).search_experiments()
    return folder / "mlflow.db"


@pytest.fixture
def store(tmp_path, empty_database):
    folder = tmp_path / "m"
    folder.mkdir()
    shutil.copy(empty_database, folder)
    return folder


def track(tracking, folder, rows, *, first_epoch=0, status="FINISHED"):
    tracking.start(folder, name="trial", configuration=CONFIGURATION, first_epoch=first_epoch)
    for row in rows:
        tracking.row(row)
    tracking.finish(status)


def expected(rows, key):
    return [(row["epoch"], row[key]) for row in rows if row.get(key) is not None]


def scalars(folder):
    """What TensorBoard itself reads: by tag, pairs of step and value."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    found.Reload()
    return {tag: [(event.step, event.value) for event in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


def database(folder):
    from mlflow.tracking import MlflowClient

    return MlflowClient(tracking_uri=f"sqlite:///{folder / 'mlflow.db'}")


def mlflow_runs(folder):
    client = database(folder)
    return client.search_runs([found.experiment_id for found in client.search_experiments()])


def mlflow_metric(folder, run, key):
    return sorted((metric.step, metric.value) for metric in database(folder).get_metric_history(run.info.run_id, key))


def mlflow_in(folder, experiment=None):
    return MLflow(folder=str(folder), experiment=experiment)


def test_no_tracking_leaves_the_run_folder_as_it_is(run_folder):
    track(NoTracking(), run_folder, ROWS)
    assert not list(run_folder.iterdir())


@pytest.mark.parametrize("tracking", [TensorBoard(folder=None), mlflow_in("x")])
def test_a_run_that_failed_before_it_began_can_be_finished(tracking):
    tracking.finish("FAILED")


@pytest.mark.parametrize("address", ["http://example.org/mlruns", "s3://bucket/runs", "gs://b", "file:/tmp/x", " "])
def test_a_place_that_is_no_folder_of_this_machine_is_refused(address):
    with pytest.raises(ValueError, match="folder must be a folder of this machine"):
        TensorBoard(folder=address)
    with pytest.raises(ValueError, match="folder must be a folder of this machine"):
        MLflow(folder=address, experiment=None)


def test_a_path_that_the_database_would_cut_off_is_refused():
    with pytest.raises(ValueError, match="no '\\?' in its path"):
        MLflow(folder="what?", experiment=None)


def test_the_configuration_cannot_name_another_machine():
    overrides = ["data.dataset=d.json", "tracking=mlflow", "tracking.folder=https://example.org"]
    with pytest.raises(ConfigError, match="tracking: folder must be a folder of this machine, got 'https://exa"):
        config.check(config.compose("train", overrides))


@pytest.mark.parametrize(
    ("tracking", "package"), [(TensorBoard(folder=None), "tensorboard"), (mlflow_in("x"), "mlflow")]
)
def test_a_missing_package_is_named_with_what_installs_it(tracking, package, run_folder, monkeypatch):
    there = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else there(name))
    with pytest.raises(ConfigError, match=rf"needs {package}.*pip install 'medfocal\[tracking\]'"):
        tracking.start(run_folder, name="trial", configuration={}, first_epoch=0)
    with pytest.raises(ConfigError, match=package):
        tracking.check()


@needs_tensorboard
def test_tensorboard_shows_each_figure_of_each_epoch(run_folder):
    track(TensorBoard(folder=None), run_folder, ROWS)
    found = scalars(run_folder / "tensorboard")
    assert set(found) == {"step", "loss", "dropped_share", "num_skipped", "lesion_sensitivity", "voxel_dice"}
    for key in set(found) - {"voxel_dice"}:
        assert found[key] == expected(ROWS, key)
    assert found["voxel_dice"][0][0] == 3
    assert math.isnan(found["voxel_dice"][0][1])


@needs_tensorboard
def test_tensorboard_shows_the_configuration(run_folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    track(TensorBoard(folder=None), run_folder, ROWS)
    found = EventAccumulator(str(run_folder / "tensorboard"))
    found.Reload()
    (event,) = found.Tensors("configuration/text_summary")
    text = event.tensor_proto.string_val[0].decode()
    assert all(line.startswith("    ") for line in text.splitlines())
    assert json.loads(text) == CONFIGURATION


@needs_tensorboard
def test_an_epoch_is_on_the_disk_when_its_row_was_given(run_folder):
    tracking = TensorBoard(folder=None)
    tracking.start(run_folder, name="trial", configuration={}, first_epoch=0)
    tracking.row(ROWS[0])
    assert scalars(run_folder / "tensorboard")["loss"] == [(1, 0.5)]


@needs_tensorboard
def test_epochs_that_are_trained_again_are_shown_once(run_folder):
    track(TensorBoard(folder=None), run_folder, ROWS, status="KILLED")
    again = [{**ROWS[1], "loss": 0.3}]
    track(TensorBoard(folder=None), run_folder, again, first_epoch=1)
    assert scalars(run_folder / "tensorboard")["loss"] == [(1, 0.5), (2, pytest.approx(0.3))]


@needs_tensorboard
def test_epochs_that_are_done_stay_when_the_run_goes_on(run_folder):
    track(TensorBoard(folder=None), run_folder, ROWS[:2])
    track(TensorBoard(folder=None), run_folder, ROWS[2:], first_epoch=2)
    assert scalars(run_folder / "tensorboard")["loss"] == expected(ROWS, "loss")


@needs_tensorboard
def test_runs_share_a_folder_by_experiment_and_run(run_folder, tmp_path):
    track(TensorBoard(folder=str(tmp_path / "all")), run_folder, ROWS)
    assert scalars(tmp_path / "all" / "trial" / "seed1")["loss"] == expected(ROWS, "loss")
    assert not list(run_folder.iterdir())


@needs_tensorboard
def test_a_tracker_that_fails_is_told_once_and_its_rows_wait(run_folder, caplog):
    blocked = run_folder / "tensorboard"
    blocked.write_text("a file where the folder should be")
    tracking = TensorBoard(folder=None)
    with caplog.at_level(logging.WARNING, "medfocal.train"):
        tracking.start(run_folder, name="trial", configuration=CONFIGURATION, first_epoch=0)
        tracking.row(ROWS[0])
        tracking.row(ROWS[1])
        assert len(caplog.records) == 1
        assert "training goes on: FileExistsError" in caplog.text
        blocked.unlink()
        tracking.row(ROWS[2])
        tracking.finish("FINISHED")
    assert len(caplog.records) == 1
    assert scalars(blocked)["loss"] == expected(ROWS, "loss")


@needs_tensorboard
def test_a_full_disk_costs_no_epoch_that_is_shown_already(run_folder):
    """A new file is begun after the failure; it takes nothing back."""
    tracking = TensorBoard(folder=None)
    tracking.start(run_folder, name="trial", configuration={}, first_epoch=0)
    tracking.row(ROWS[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1, hard))
        tracking.row(ROWS[1])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    tracking.row(ROWS[2])
    tracking.finish("FINISHED")
    assert scalars(run_folder / "tensorboard")["loss"] == expected(ROWS, "loss")


@needs_tensorboard
def test_what_could_not_be_shown_is_counted_at_the_end(run_folder, caplog):
    (run_folder / "tensorboard").write_text("")
    with caplog.at_level(logging.WARNING, "medfocal.train"):
        track(TensorBoard(folder=None), run_folder, ROWS)
    assert "TensorBoard lacks 3 epochs; metrics.csv has them" in caplog.text


@needs_mlflow
def test_mlflow_has_each_figure_of_each_epoch(run_folder, store):
    track(mlflow_in(store), run_folder, ROWS)
    (run,) = mlflow_runs(store)
    assert (run.info.run_name, run.info.status) == ("seed1", "FINISHED")
    for key in ("step", "loss", "dropped_share", "num_skipped", "lesion_sensitivity"):
        assert mlflow_metric(store, run, key) == expected(ROWS, key)
    ((step, value),) = mlflow_metric(store, run, "voxel_dice")
    assert step == 3
    assert math.isnan(value)


@needs_mlflow
def test_mlflow_has_the_configuration_as_parameters(run_folder, store):
    many = {"many": {f"key{n}": n for n in range(250)}}  # more than MLflow takes at once
    tracking = mlflow_in(store)
    tracking.start(run_folder, name="trial", configuration={**CONFIGURATION, **many}, first_epoch=0)
    tracking.finish("FINISHED")
    (run,) = mlflow_runs(store)
    assert run.data.params == {
        "seed": "1",
        "trainer.max_epochs": "3",
        "data.classes.a_b _x_": "2",
        "plan": "None",
        **{f"many.key{n}": str(n) for n in range(250)},
    }


@needs_mlflow
def test_a_run_that_goes_on_is_the_same_run_of_mlflow(run_folder, store):
    track(mlflow_in(store), run_folder, ROWS[:2], status="KILLED")
    (run,) = mlflow_runs(store)
    assert run.info.status == "KILLED"
    tracking = mlflow_in(store)
    tracking.start(run_folder, name="trial", configuration=CONFIGURATION, first_epoch=1)
    assert [run.info.status for run in mlflow_runs(store)] == ["RUNNING"]
    for row in ROWS[1:]:
        tracking.row(row)
    tracking.finish("FINISHED")
    (run,) = mlflow_runs(store)
    assert mlflow_metric(store, run, "loss") == expected(ROWS, "loss")
    assert run.info.status == "FINISHED"


@needs_mlflow
@pytest.mark.parametrize("known", ["[]", "{", '{"run_id": 5, "folder": "%s"}', '{"run_id": "f00", "folder": "%s"}'])
def test_a_run_that_mlflow_does_not_know_is_begun_anew(run_folder, store, known):
    (run_folder / "mlflow.json").write_text(known.replace("%s", str(store)))
    track(mlflow_in(store), run_folder, ROWS)
    (run,) = mlflow_runs(store)
    assert mlflow_metric(store, run, "loss") == expected(ROWS, "loss")
    assert json.loads((run_folder / "mlflow.json").read_text())["run_id"] == run.info.run_id


@needs_mlflow
def test_a_run_that_was_deleted_in_mlflow_is_begun_anew(run_folder, store):
    track(mlflow_in(store), run_folder, ROWS[:1])
    (deleted,) = mlflow_runs(store)
    database(store).delete_run(deleted.info.run_id)
    track(mlflow_in(store), run_folder, ROWS[1:], first_epoch=1)
    (run,) = mlflow_runs(store)
    assert mlflow_metric(store, run, "loss") == expected(ROWS[1:], "loss")


@needs_mlflow
@pytest.mark.parametrize(("given", "name"), [(None, "trial"), ("all trials", "all trials")])
def test_the_experiment_of_mlflow_is_that_of_the_run_unless_given(run_folder, store, given, name):
    track(mlflow_in(store, given), run_folder, ROWS[:1])
    track(mlflow_in(store, given), run_folder.parent, ROWS[:1])
    client = database(store)
    found = client.get_experiment_by_name(name)
    assert len(client.search_runs([found.experiment_id])) == 2
    assert found.artifact_location == (store / "artifacts").as_uri()


LOUD = """
import socket, sys
from pathlib import Path

def refuse(*arguments, **keywords):
    print("NETWORK", arguments[1:], flush=True)
    raise OSError("no network here")

import monai.inferers  # imports MLflow, as it does in a training

for name in ("connect", "connect_ex", "sendto"):
    setattr(socket.socket, name, refuse)
socket.getaddrinfo = socket.create_connection = refuse
from medfocal.train.tracking import MLflow, TensorBoard

folder = Path(sys.argv[1])
for tracking in (TensorBoard(folder=None), MLflow(folder=str(folder / "m"), experiment=None)):
    tracking.start(folder, name="trial", configuration={"seed": 1}, first_epoch=0)
    tracking.row({"epoch": 1, "loss": 0.5})
    tracking.finish("FINISHED")
import time; time.sleep(2)  # for threads that would tell of it later
"""


@needs_tensorboard
@needs_mlflow
def test_nothing_goes_over_the_network_whatever_the_environment_says(tmp_path):
    """In a process of its own, as MLflow's telemetry is off under pytest."""
    quiet = ("PYTEST", "CI", "GITHUB", "MLFLOW", "DO_NOT_TRACK")
    environment = {key: value for key, value in os.environ.items() if not key.startswith(quiet)}
    environment |= {"MLFLOW_TRACKING_URI": "http://192.0.2.1:5000", "HOME": str(tmp_path / "home")}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    done = subprocess.run(
        [sys.executable, "-c", LOUD, str(tmp_path / "run")],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert "NETWORK" not in done.stdout, done.stdout
    assert scalars(tmp_path / "run" / "tensorboard")["loss"] == [(1, 0.5)]
    (run,) = mlflow_runs(tmp_path / "run" / "m")
    assert run.data.metrics["loss"] == 0.5
    assert {path.name for path in tmp_path.iterdir()} <= {"run", "home"}  # nothing in the working folder
    assert socket.gethostname() not in (tmp_path / "run" / "m" / "mlflow.db").read_bytes().decode("latin-1")
