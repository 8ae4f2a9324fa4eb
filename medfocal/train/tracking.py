"""Show a run in TensorBoard or MLflow, in files on this machine: nothing goes over the network.

`metrics.csv` is the record of a run. A tracker shows the same figures in another program, and a tracker that fails
costs no training: it is told once in the log, and its rows wait until they can be written.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import logging
import os
import re
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from medfocal.errors import ConfigError
from medfocal.files import plain, write_json

__all__ = ["MLflow", "NoTracking", "TensorBoard"]

LOG = logging.getLogger("medfocal.train")

#: In a run folder: which run of MLflow shows it.
MLFLOW_RUN = "mlflow.json"
#: A tracker's axis; the other columns of metrics.csv are drawn over it.
AXIS = "epoch"


class NoTracking:
    """Track nothing: `metrics.csv` and `curves.png` are the record."""

    def check(self) -> None:
        """Nothing is needed."""

    def start(self, folder: Path, *, name: str, configuration: Mapping[str, Any], first_epoch: int) -> None:
        """Do nothing."""

    def row(self, row: Mapping[str, Any]) -> None:
        """Do nothing."""

    def finish(self, status: str) -> None:
        """Do nothing."""


class TensorBoard:
    """Event files that TensorBoard reads: a scalar for each column of metrics.csv, with the epoch as step.

    Args:
        folder: Where `<experiment>/<run>` goes; None: `<run>/tensorboard`.

    Raises:
        ValueError: `folder` is not one of this machine.
    """

    def __init__(self, *, folder: str | None) -> None:
        self.folder = None if folder is None else _local_folder(folder)
        self._feed: _Feed | None = None

    def check(self) -> None:
        """See that TensorBoard is installed, before hours of work.

        Raises:
            ConfigError: It is not.
        """
        _require("tensorboard")

    def start(self, folder: Path, *, name: str, configuration: Mapping[str, Any], first_epoch: int) -> None:
        """Begin, or go on after `first_epoch` epochs; what an earlier start showed of later ones is taken back.

        Args:
            folder: Run folder.
            name: Of the experiment.
            configuration: Shown as text.
            first_epoch: Epochs that are done.

        Raises:
            ConfigError: TensorBoard is not installed.
        """
        self.check()
        place = folder / "tensorboard" if self.folder is None else self.folder / name / folder.name
        self._feed = _Feed("TensorBoard", functools.partial(_EventFile, place, configuration), first_epoch)

    def row(self, row: Mapping[str, Any]) -> None:
        """Show an epoch, a row of metrics.csv."""
        if self._feed is not None:
            self._feed.row(row)

    def finish(self, status: str) -> None:
        """Write what waits; TensorBoard knows no status."""
        if self._feed is not None:
            self._feed.finish(status)


class MLflow:
    """A run in MLflow's database `<folder>/mlflow.db`: configuration as parameters, metrics.csv as metrics by epoch.

    A run that goes on is the same run of MLflow, by `<run>/mlflow.json`. `MLFLOW_TRACKING_URI` has no effect, and
    MLflow's telemetry is off.

    Args:
        folder: On this machine.
        experiment: Of MLflow; None: the name of the run's experiment.

    Raises:
        ValueError: `folder` is not one of this machine.
    """

    def __init__(self, *, folder: str, experiment: str | None) -> None:
        self.folder = _local_folder(folder)
        if "?" in str(self.folder):  # what follows would be taken for settings of the database
            message = f"folder must have no '?' in its path, got '{self.folder}'"
            raise ValueError(message)
        self.experiment = experiment
        self._feed: _Feed | None = None

    def check(self) -> None:
        """See that MLflow is installed, before hours of work.

        Raises:
            ConfigError: It is not.
        """
        _require("mlflow", "sqlalchemy", "alembic")

    def start(self, folder: Path, *, name: str, configuration: Mapping[str, Any], first_epoch: int) -> None:
        """Begin a run, or go on with that of this run folder.

        Args:
            folder: Run folder; its name is the run's.
            name: Of the experiment.
            configuration: Becomes parameters such as `trainer.max_epochs`.
            first_epoch: Epochs that are done. Those that MLflow has are not written again, done or not.

        Raises:
            ConfigError: MLflow is not installed.
        """
        self.check()
        open_run = functools.partial(_MLflowRun, self.folder, self.experiment or name, folder, configuration)
        self._feed = _Feed("MLflow", open_run, first_epoch)

    def row(self, row: Mapping[str, Any]) -> None:
        """Show an epoch, a row of metrics.csv."""
        if self._feed is not None:
            self._feed.row(row)

    def finish(self, status: str) -> None:
        """Write what waits and end the run of MLflow with "FINISHED", "FAILED" or "KILLED"."""
        if self._feed is not None:
            self._feed.finish(status)


class _Store(Protocol):
    """Where rows go; every call may raise whatever the program behind it does."""

    def write(self, row: Mapping[str, Any]) -> None:
        """Write a row, whole or not at all."""

    def close(self, status: str) -> None:
        """End."""


class _Feed:
    """Rows on their way to a store that may fail; they wait in order until it takes them.

    Args:
        program: That shows them.
        open_store: Is given how many epochs are done.
        num_done: Epochs that an earlier start has shown.
    """

    def __init__(self, program: str, open_store: Callable[[int], _Store], num_done: int) -> None:
        self._program = program
        self._open = open_store
        self._num_done = num_done
        self._store: _Store | None = None
        self._waiting: list[Mapping[str, Any]] = []
        self._has_told = False
        self._try(self._send)

    def row(self, row: Mapping[str, Any]) -> None:
        self._waiting.append(dict(row))
        self._try(self._send)

    def finish(self, status: str) -> None:
        def send_and_close() -> None:
            self._send().close(status)

        self._try(send_and_close)
        if self._waiting:
            LOG.warning("%s lacks %d epochs; metrics.csv has them", self._program, len(self._waiting))

    def _send(self) -> _Store:
        if self._store is None:
            self._store = self._open(self._num_done)
        while self._waiting:
            self._store.write(self._waiting[0])
            self._num_done = self._waiting.pop(0)[AXIS]
        return self._store

    def _try(self, call: Callable[[], object]) -> None:
        try:
            call()
        except Exception as error:  # noqa: BLE001  whatever goes wrong in another program must not end a training
            self._store = None
            if not self._has_told:
                what = f"{type(error).__name__}: {str(error)[:300]}"
                LOG.warning("%s does not take what it should show; training goes on: %s", self._program, what)
            self._has_told = True


class _EventFile:
    """One file of TensorBoard's records, written without the thread of its own writer, which can wait forever."""

    def __init__(self, folder: Path, configuration: Mapping[str, Any], num_done: int) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.summary.writer.record_writer import RecordWriter

        folder.mkdir(parents=True, exist_ok=True)
        self._event = Event
        # TensorBoard reads the files of a folder in the order of their names.
        name = f"events.out.tfevents.{time.time_ns() // 1000:016d}.{socket.gethostname()}.{os.getpid()}"
        self._records = RecordWriter((folder / name).open("xb"))
        self._add(file_version="brain.Event:2")
        # What an earlier file shows of the next epoch and of later ones is of a training that was not kept.
        self._add(step=num_done + 1, session_log=SessionLog(status=SessionLog.START))
        self._add(step=num_done, summary={"value": [_text("configuration", plain(configuration))]})
        self._records.flush()

    def write(self, row: Mapping[str, Any]) -> None:
        values = [{"tag": key, "simple_value": value} for key, value in _figures(row)]
        self._add(step=row[AXIS], summary={"value": values})
        self._records.flush()

    def close(self, status: str) -> None:
        del status
        self._records.close()

    def _add(self, **content: Any) -> None:
        self._records.write(self._event(wall_time=time.time(), **content).SerializeToString())


def _text(tag: str, value: object) -> dict[str, Any]:
    """A value of TensorBoard's text plugin: JSON, indented so that its Markdown shows it as it is."""
    lines = json.dumps(value, indent=2, ensure_ascii=False).splitlines()
    content = "\n".join(f"    {line}" for line in lines).encode(errors="backslashreplace")
    return {
        "tag": f"{tag}/text_summary",
        "metadata": {"plugin_data": {"plugin_name": "text"}},
        "tensor": {"dtype": "DT_STRING", "string_val": [content], "tensor_shape": {"dim": [{"size": 1}]}},
    }


class _MLflowRun:
    """The run of MLflow that shows a run folder."""

    def __init__(
        self, folder: Path, experiment: str, run_folder: Path, configuration: Mapping[str, Any], num_done: int
    ) -> None:
        del num_done  # the database knows
        os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"  # asked at each event, also where MONAI has imported MLflow
        from mlflow.tracking import MlflowClient

        for name in ("mlflow", "alembic"):  # they tell of every table
            logging.getLogger(name).setLevel(logging.WARNING)
        folder.mkdir(parents=True, exist_ok=True)
        address = f"sqlite:///{folder / 'mlflow.db'}"
        self._client = MlflowClient(tracking_uri=address, registry_uri=address)
        self._run_id = self._begun(folder, run_folder) or self._begin(folder, experiment, run_folder, configuration)
        self._written = {metric.step for metric in self._client.get_metric_history(self._run_id, AXIS)}

    def write(self, row: Mapping[str, Any]) -> None:
        from mlflow.entities import Metric

        epoch = row[AXIS]
        if epoch in self._written:
            return
        now = time.time_ns() // 1_000_000
        metrics = [Metric(key, value, now, epoch) for key, value in _figures(row)]
        self._client.log_batch(self._run_id, metrics=[*metrics, Metric(AXIS, epoch, now, epoch)])
        self._written.add(epoch)

    def close(self, status: str) -> None:
        self._client.set_terminated(self._run_id, status)

    def _begun(self, folder: Path, run_folder: Path) -> str | None:
        """The run that an earlier start began in this database, if it is still there."""
        from mlflow.exceptions import MlflowException

        try:
            known = json.loads((run_folder / MLFLOW_RUN).read_text(encoding="utf-8"))
            run_id = known["run_id"] if known["folder"] == str(folder) else None
        except (OSError, ValueError, KeyError, TypeError):
            return None
        if not isinstance(run_id, str):
            return None
        try:
            self._client.update_run(run_id, status="RUNNING")
        except MlflowException as error:
            if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                raise
            return None  # deleted
        return run_id

    def _begin(self, folder: Path, experiment: str, run_folder: Path, configuration: Mapping[str, Any]) -> str:
        from mlflow.entities import Param

        found = self._client.get_experiment_by_name(experiment)
        number = (
            self._client.create_experiment(experiment, artifact_location=(folder / "artifacts").as_uri())
            if found is None
            else found.experiment_id
        )
        run_id: str = self._client.create_run(number, run_name=run_folder.name).info.run_id
        write_json(run_folder / MLFLOW_RUN, {"folder": str(folder), "experiment": experiment, "run_id": run_id})
        parameters = [Param(key, str(value)) for key, value in _parameters(configuration).items()]
        for start in range(0, len(parameters), 100):  # MLflow takes no more at once
            self._client.log_batch(run_id, params=parameters[start : start + 100])
        return run_id


def _figures(row: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """The cells of a row that are not empty, but for the axis."""
    return ((key, float(value)) for key, value in row.items() if key != AXIS and value is not None)


def _parameters(configuration: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration as dotted keys, of letters that MLflow takes."""
    found: dict[str, Any] = {}
    for key, value in configuration.items():
        name = re.sub(r"[^\w.\- ]", "_", str(key))
        if isinstance(value, Mapping) and value:
            found |= {f"{name}.{inner}"[:250]: item for inner, item in _parameters(value).items()}
        else:
            found[name[:250]] = value
    return found


def _local_folder(folder: str) -> Path:
    """An absolute path; addresses are refused, because TensorBoard's and MLflow's own writers would follow them."""
    if not folder.strip() or re.match(r"[A-Za-z][A-Za-z0-9+.-]*:", folder):
        message = (
            f"folder must be a folder of this machine, got {folder!r}; what a run shows is not sent elsewhere. Copy "
            "the folder, or mount the other machine's."
        )
        raise ValueError(message)
    return Path(folder).absolute()


def _require(*packages: str) -> None:
    """See that a tracker is installed.

    Raises:
        ConfigError: It is not.
    """
    missing = [package for package in packages if importlib.util.find_spec(package) is None]
    if missing:
        message = f"tracking needs {', '.join(missing)}, not installed here: pip install 'medfocal[tracking]'"
        raise ConfigError(message)
