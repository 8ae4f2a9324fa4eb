"""What a run folder says of the run: what was asked, with what it was computed, and what went wrong."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.metadata
import json
import logging
import os
import platform
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from medfocal import __version__
from medfocal.annotations.target import AnnotationSettings
from medfocal.data.cache import file_digest
from medfocal.data.formats.source import read_json
from medfocal.data.manifest import Manifest, listed
from medfocal.data.splits import write_split
from medfocal.data.targets import find_weights
from medfocal.errors import ConfigError, DatasetError, InputError, ResourceError
from medfocal.files import atomic_write, plain, write_json
from medfocal.train.settings import TrainerSettings

LOG = logging.getLogger("medfocal.train")

#: Configuration that may differ between the start of a run and its continuation.
MAY_CHANGE = (
    *("run.id", "run.resume", "plan", "paths.runs", "paths.cache", "cache.max_gb", "cache.compress", "cache.workers"),
    *("trainer.max_epochs", "trainer.num_threads", "trainer.checkpoint_minutes", "device", "debug"),
    *("trainer.patience", "trainer.accumulate", "trainer.checkpoint_activations"),
    *("tracking._target_", "tracking.folder", "tracking.experiment"),
)
#: What a run is computed with; another of these when a run goes on is told and recorded.
COMPUTED_WITH = (
    *("medfocal", "git_commit", "python", "device", "num_threads", "num_processes", "computed_in"),
    *("accumulate", "checkpoint_activations", "packages"),
)


def has_learnt(folder: Path) -> bool:
    """Whether a run has a checkpoint to go on from; what has none begins anew under its name."""
    return any((folder / "checkpoints" / f"{name}.pt").exists() for name in ("last", "previous"))


def check_same_configuration(folder: Path, configuration: Mapping[str, Any]) -> None:
    """Refuse to continue a run under another configuration; more epochs are welcome.

    Raises:
        ConfigError: It differs, with both values.
    """
    path = folder / "config.yaml"
    if not path.is_file() or not has_learnt(folder):
        return
    before, now = _flat(_read_configuration(path)), _flat(configuration)
    changed = [k for k in sorted({*before, *now}) if before.get(k) != now.get(k) and k not in MAY_CHANGE]
    if changed:
        lines = "\n".join(f"    {key}: {before.get(key)!r} then, {now.get(key)!r} now" for key in changed)
        message = (
            f"the run '{folder}' was started with another configuration:\n{lines}\n"
            "    Repeat its settings to continue it, or choose another run.id."
        )
        raise ConfigError(message)


def _read_configuration(path: Path) -> Mapping[str, Any]:
    """A run's configuration as it was written.

    Raises:
        InputError: The file is damaged.
    """
    from omegaconf import OmegaConf

    try:
        content = OmegaConf.to_container(OmegaConf.load(path))
    except Exception as error:  # a damaged or hostile file makes the readers raise anything
        reason = (str(error).splitlines() or [""])[0][:200] or type(error).__name__
        message = (
            f"the configuration '{path}' of the run cannot be read: {reason}. Put it back, or take another run.id."
        )
        raise InputError(message) from error
    if not isinstance(content, dict) or "trainer" not in content:
        message = f"the configuration '{path}' of the run is empty or damaged. Put it back, or take another run.id."
        raise InputError(message)
    return {str(key): value for key, value in content.items()}


def _read_record(path: Path, what: str) -> dict[str, Any]:
    """A file of the run folder that holds a JSON object.

    Raises:
        InputError: It holds something else.
    """
    content = read_json(path, what)
    if not isinstance(content, dict):
        message = f"the {what} '{path}' holds a {type(content).__name__}. Put it back, or take another run.id."
        raise InputError(message)
    return content


def conf_digest(configuration: Mapping[str, Any]) -> str:
    """SHA-256 of what may not change between the start of a run and its continuation."""
    settled = {key: value for key, value in _flat(configuration).items() if key not in MAY_CHANGE}
    return hashlib.sha256(json.dumps(plain(settled), sort_keys=True).encode()).hexdigest()


@contextlib.contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """Hold a run folder, so that no two programs train one run.

    Raises:
        ResourceError: Another one holds it.
    """
    path = folder / ".lock"
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        message = f"the lock '{path}' cannot be opened: {error.strerror}. Remove it if it is no file."
        raise ResourceError(message) from error
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.read(handle, 200).decode(errors="replace").strip() or "another process"
            message = f"the run '{folder}' is being trained by {holder}. Wait for it, or take another run.id."
            raise ResourceError(message) from error
        except OSError:
            LOG.info("this file system has no locks: see that no other program trains this run")
        else:
            os.ftruncate(handle, 0)
            os.write(handle, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
        yield
    finally:
        os.close(handle)  # the file stays: one that is removed can be locked by two


def start_log(path: Path) -> None:
    """Send the log of the whole package to the console and to a file; a second run in one process starts anew.

    Raises:
        ResourceError: The file cannot be written.
    """
    log = logging.getLogger("medfocal")
    for handler in list(log.handlers):
        log.removeHandler(handler)
        handler.close()
    try:
        to_file = logging.FileHandler(path, encoding="utf-8")
    except OSError as error:
        message = f"the log '{path}' cannot be written: {error.strerror}. Remove it if it is no file."
        raise ResourceError(message) from error
    to_file.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    log.addHandler(to_file)
    log.addHandler(logging.StreamHandler(sys.stdout))
    log.setLevel(logging.INFO)
    log.propagate = False


def keep_silent() -> None:
    """Log nothing of this process but warnings."""
    log = logging.getLogger("medfocal")
    log.setLevel(logging.WARNING)


@contextlib.contextmanager
def failures_logged() -> Iterator[None]:
    """Write into the log what ends a run before its end."""
    try:
        yield
    except (Exception, SystemExit, KeyboardInterrupt) as error:
        log = logging.getLogger("medfocal")
        record = log.makeRecord(log.name, logging.ERROR, __file__, 0, "%s: %s", (type(error).__name__, error), None)
        for handler in log.handlers:
            if isinstance(handler, logging.FileHandler):  # on the console the error itself is shown
                handler.emit(record)
        raise


def refuse_other_data(folder: Path, manifest: Manifest, annotations: AnnotationSettings) -> None:
    """Refuse to continue a run whose training or validation cases, or their files, are not those it began with."""
    if not has_learnt(folder):
        return
    before = _read_record(folder / "split.json", "record of the run's split")
    for split in ("training", "validation"):
        now = [{"case": case.name, "patient": case.patient} for case in manifest.split(split)]
        if before.get(split) != now:
            recorded = before.get(split)
            entries = recorded if isinstance(recorded, list) else []
            known = {str(entry.get("case")) for entry in entries if isinstance(entry, dict)}
            names = {entry["case"] for entry in now}
            other = sorted(known ^ names) or sorted(names)
            message = (
                f"the run '{folder}' began with other {split} cases: {listed(other)}. Take another run.id, or give it "
                f"its split: data.split={folder / 'split.json'}"
            )
            raise DatasetError(message)
    digests_then = _read_record(folder / "environment.json", "record of the run's inputs").get("cases")
    digests_then = digests_then if isinstance(digests_then, dict) else {}
    now_there = _digests_of_cases(manifest, annotations)
    changed = [name for name, digests in now_there.items() if digests_then.get(name) != digests]
    if changed:
        message = (
            f"the files of {len(changed)} cases are not those that the run '{folder}' began with: {listed(changed)}. "
            "Put them back to continue it, or take another run.id."
        )
        raise DatasetError(message)


def _digests_of_cases(manifest: Manifest, annotations: AnnotationSettings) -> dict[str, list[str]]:
    """SHA-256 of the files of each case that is trained or validated on, in their order, wherever they lie."""
    weights = find_weights(manifest.split("training"), annotations)
    found = {}
    for case in (*manifest.split("training"), *manifest.split("validation")):
        files = [*case.files, *([weights[case.name]] if case.name in weights else [])]
        found[case.name] = [file_digest(file) for file in files]
    return found


def write_records(
    folder: Path,
    configuration: Mapping[str, Any],
    manifest: Manifest,
    annotations: AnnotationSettings,
    now: Mapping[str, Any],
) -> None:
    """Write `config.yaml`, `split.json` and `environment.json`; when a run goes on, say what else computes it now.

    Args:
        folder: Run folder.
        configuration: Resolved.
        manifest: The dataset.
        annotations: Whose maps of voxel weights are among the inputs.
        now: From `environment`.
    """
    from omegaconf import OmegaConf

    with atomic_write(folder / "config.yaml") as file:
        file.write(OmegaConf.to_yaml(OmegaConf.create(dict(configuration))))
    write_split(folder / "split.json", manifest)
    path = folder / "environment.json"
    if not has_learnt(folder) or not path.exists():
        files = [manifest.path] if manifest.path.is_file() else []
        files += [file for case in manifest.cases for file in case.files]
        files += find_weights(manifest.split("training"), annotations).values()
        inputs = {str(file): file_digest(file) for file in files}
        write_json(path, {**now, "inputs": inputs, "cases": _digests_of_cases(manifest, annotations)})
        return
    before = _read_record(path, "record of the run's environment")
    continued = before.get("continued", [])
    try:
        latest = {**before, **(continued[-1]["now"] if continued else {})}
    except (TypeError, KeyError, IndexError) as error:
        message = f"'continued' in '{path}' is damaged. Put the file back, or take another run.id."
        raise InputError(message) from error
    changed = {key: plain(now[key]) for key in COMPUTED_WITH if latest.get(key) != plain(now[key])}
    for key, value in changed.items():
        LOG.warning("this run goes on with another %s: %s before, %s now", key, *_differing(latest.get(key), value))
    if changed:
        entry = {"at": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "now": changed}
        write_json(path, {**before, "continued": [*continued, entry]})


def _differing(before: Any, now: Any) -> tuple[Any, Any]:
    """Of two mappings what differs; of other values both."""
    if not (isinstance(before, Mapping) and isinstance(now, Mapping)):
        return before, now
    keys = [key for key in sorted({*before, *now}) if before.get(key) != now.get(key)]
    return {key: before.get(key) for key in keys}, {key: now.get(key) for key in keys}


def environment(
    device: torch.device, settings: TrainerSettings, num_processes: int, reduced: torch.dtype | None
) -> dict[str, Any]:
    """Versions, device, git commit, and how numbers are computed; `reduced` as of `training_type`."""
    packages = ("torch", "monai", "numpy", "scipy", "nibabel", "connected-components-3d", "hydra-core", "safetensors")
    return {
        "medfocal": __version__,
        "git_commit": _git_commit(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine(),
        "num_threads": torch.get_num_threads(),
        "num_processes": num_processes,
        "accumulate": settings.accumulate,
        "checkpoint_activations": settings.checkpoint_activations,
        "computed_in": str(reduced or torch.float32).removeprefix("torch."),
        "tf32": settings.tf32,
        "deterministic": settings.deterministic,
        "compile": settings.compile,
        "packages": {package: importlib.metadata.version(package) for package in packages},
    }


def _git_commit() -> str | None:
    """Commit of the checkout that this code runs from, None elsewhere."""
    here = Path(__file__).resolve().parents[2]
    if not (here / ".git").exists():
        return None
    try:
        command = ["git", "-C", str(here), "rev-parse", "HEAD"]
        found = subprocess.run(command, capture_output=True, text=True, check=False, timeout=10)  # noqa: S603
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() if found.returncode == 0 else None


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(value, Mapping):
        return {k: v for key, item in value.items() for k, v in _flat(item, f"{prefix}{key}.").items()}
    return {prefix.rstrip("."): value}
