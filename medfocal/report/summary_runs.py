"""Run folders of `medfocal train` read as data, whatever state they are in. Imports no torch."""

from __future__ import annotations

import csv
import math
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from medfocal.data.formats.source import read_json
from medfocal.errors import InputError, ModelError
from medfocal.evaluate import Protocol
from medfocal.model import CARD, read_card
from medfocal.report.figures import read_cell
from medfocal.report.tables import count

CONFIGURATION, METRICS, LOG, SPLIT = "config.yaml", "metrics.csv", "train.log", "split.json"
#: Any of these makes a folder a run folder.
SIGNS = (METRICS, LOG, SPLIT, "checkpoints")
#: So far below the given place run folders are looked for: `<place>/<experiment>/<run>` is two.
MOST_LEVELS = 4
#: A configuration has a few hundred lines; what is larger is another file.
MOST_BYTES = 1_000_000
#: A run that wrote something within this time may still be running; by default a checkpoint comes every ten minutes.
SECONDS_ALIVE = 20 * 60
#: Rate of false positives per case at which the test split is compared.
TEST_RATE = 1.0


class State(StrEnum):
    """How far a run has come."""

    FINISHED = "finished"
    RUNNING = "running"
    UNFINISHED = "unfinished"
    BROKEN = "broken"


@dataclass(frozen=True)
class Epoch:
    """What a row of metrics.csv says; NaN where it says nothing."""

    number: int
    loss: float
    seconds: float
    lesion_sensitivity: float
    low: float
    high: float
    cpm: float


@dataclass(frozen=True)
class SplitResult:
    """What evaluation.json of a split says; NaN is undefined.

    Attributes:
        num_cases: Cases.
        num_patients: Patients.
        num_lesions: Lesions that count.
        protocol: The rules, with the run's own threshold.
        figures: Lesion sensitivity at the run's threshold and at `rate`, CPM, false positives per case, voxel Dice.
        interval: Ends of the interval of the lesion sensitivity at `rate`.
        num_failed: Cases that are in no figure.
    """

    num_cases: int
    num_patients: int
    num_lesions: int
    protocol: Protocol
    figures: Mapping[str, float]
    interval: tuple[float, float]
    num_failed: int


@dataclass(frozen=True)
class Run:
    """A run folder.

    Attributes:
        folder: Where.
        state: How far it came.
        words: That in words, such as "stopped after epoch 3 of 100".
        settings: Its configuration, flat: `{"loss.gamma": 2.0, …}`; empty where it could not be read.
        epochs: Of metrics.csv.
        kept: Number of the epoch whose weights are the model, from 1; 0 without a model.
        split: Patient of each case by split and name.
        results: What the evaluations of "validation" and "test" say, where there are such.
        finished_at: Time of the model, in seconds since 1970; 0 without one.
    """

    folder: Path
    state: State
    words: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    epochs: Sequence[Epoch] = ()
    kept: int = 0
    split: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    results: Mapping[str, SplitResult] = field(default_factory=dict)
    finished_at: float = 0.0

    @property
    def experiment(self) -> str:
        """First part of its place, by its configuration."""
        return str(self.settings.get("experiment", ""))

    @property
    def seed(self) -> Any:
        """Its seed."""
        return self.settings.get("seed")

    @property
    def fold(self) -> Any:
        """The fold that it validates on, None without folds."""
        return self.settings.get("data.fold")

    @property
    def rate(self) -> float:
        """False positives per case at which its validation is read."""
        return float(self.settings["trainer.validation_false_positives"])


def find_run_folders(places: Sequence[Path]) -> list[Path]:
    """Find run folders at or below the places, each once, in the order of their names.

    Raises:
        InputError: A place is no folder or cannot be read, or there is no run folder.
    """
    found: dict[Path, Path] = {}
    for place in places:
        if not place.is_dir():
            message = f"the folder of runs '{place}' {'is a file' if place.exists() else 'does not exist'}"
            raise InputError(message)
        for folder in _walk(place, MOST_LEVELS):
            found.setdefault(folder.resolve(), folder)
    if not found:
        named = ", ".join(f"'{place}'" for place in places)
        message = (
            f"no run of 'medfocal train' lies in {named}: such a folder holds {CONFIGURATION} and {METRICS}, and is "
            f"looked for down to {MOST_LEVELS} levels below. Give the folder that paths.runs named."
        )
        raise InputError(message)
    return list(found.values())


def _walk(folder: Path, levels: int) -> Iterator[Path]:
    if any((folder / name).exists() for name in SIGNS) or _is_training(folder / CONFIGURATION):
        yield folder
        return
    if not levels:
        return
    try:
        inner = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    except OSError as error:
        message = f"the folder '{folder}' cannot be read: {error.strerror}"
        raise InputError(message) from error
    for path in inner:
        yield from _walk(path, levels - 1)


def _is_training(path: Path) -> bool:
    """Whether a lone configuration is one of `train`; other programs have a config.yaml too."""
    try:
        return path.is_file() and "\ntrainer:\n" in path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return True  # it is told as broken


def read_run(folder: Path) -> Run:
    """Read a run folder; one with a file that cannot be used is "broken", and its words name the file."""
    settings: Mapping[str, Any] = {}
    try:
        settings = read_settings(folder / CONFIGURATION)
        return _read_run(folder, settings)
    except (InputError, ModelError) as error:
        return Run(folder=folder, state=State.BROKEN, words=" ".join(str(error).split()), settings=settings)


def _read_run(folder: Path, settings: Mapping[str, Any]) -> Run:
    epochs = read_epochs(folder / METRICS) if (folder / METRICS).exists() else []
    split = _read_split(folder / SPLIT) if (folder / SPLIT).exists() else {}
    max_epochs = settings["trainer.max_epochs"]
    card = read_card(folder / "model")[0].training if (folder / "model" / CARD).exists() else {}
    names = [name for name in ("validation", "test") if (folder / name / "evaluation.json").exists()]
    # Reports are what a run writes last, and a longer one removes those of fewer epochs.
    is_reported = all((folder / name / "report.html").exists() for name in names)
    num_epochs = _whole(card.get("num_epochs"), folder)
    if (num_epochs >= max_epochs or card.get("stopped_early") is True) and is_reported:
        results = {name: read_result(folder / name / "evaluation.json", _rate_of(name, settings)) for name in names}
        kept = _whole(card.get("epoch"), folder)
        if kept not in {epoch.number for epoch in epochs}:
            message = f"'{folder / METRICS}' has no row of epoch {kept}, which the model is of"
            raise InputError(message)
        return Run(
            folder=folder,
            state=State.FINISHED,
            words=f"finished, epoch {kept} of {num_epochs} kept",
            settings=settings,
            epochs=epochs,
            kept=kept,
            split=split,
            results=results,
            finished_at=(folder / "model" / CARD).stat().st_mtime,
        )
    state, words = _how_far(folder, epochs, max_epochs, has_model=bool(card))
    return Run(folder=folder, state=state, words=words, settings=settings, epochs=epochs, split=split)


def _rate_of(split: str, settings: Mapping[str, Any]) -> float:
    return TEST_RATE if split == "test" else float(settings["trainer.validation_false_positives"])


def _how_far(folder: Path, epochs: Sequence[Epoch], max_epochs: int, *, has_model: bool) -> tuple[State, str]:
    last = epochs[-1].number if epochs else 0
    done = f"after epoch {last} of {max_epochs}" if last else "before the end of its first epoch"
    if last >= max_epochs:
        done = f"after its last epoch, before its {'reports' if has_model else 'model'}"
    minutes = (time.time() - _last_sign(folder)) / 60
    if 60 * minutes < SECONDS_ALIVE:
        return State.RUNNING, f"wrote something within the last {count(max(1, math.ceil(minutes)), 'minute')}, {done}"
    said = _last_line(folder / LOG)
    return State.UNFINISHED, f"stopped {done}" + (f"; last in {LOG}: {said}" if said else "")


def _last_sign(folder: Path) -> float:
    """When the run last wrote something."""
    files = (CONFIGURATION, METRICS, LOG, "checkpoints", *(f"checkpoints/{name}.pt" for name in ("last", "best")))
    return max((path.stat().st_mtime for name in files if (path := folder / name).exists()), default=0.0)


def _last_line(path: Path) -> str:
    """The last words of a log without their time; nothing where there is none to be read."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - 4096))
            lines = file.read().decode("utf-8", "replace").split("\n")
    except OSError:
        return ""
    last = next((line for line in reversed(lines) if line.strip()), "")
    printable = "".join(letter if letter.isprintable() else " " for letter in last)
    return re.sub(r"^\d{4}-\d\d-\d\d \S+ ", "", printable)[:200].strip()


def read_settings(path: Path) -> dict[str, Any]:
    """Read the configuration of a run as plain values: nothing in it is called or looked up.

    Returns:
        Value of each setting by its full name; a list is one value.

    Raises:
        InputError: It cannot be read or is not what `train` writes.
    """
    from omegaconf import DictConfig, OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import AliasEvent, SafeLoader, YAMLError, parse  # type: ignore[import-untyped]

    where = f"the configuration '{path}'"
    text = _read_text(path, where)
    try:
        # A part that is named once and used again and again makes a small file enormous; `train` writes none.
        if any(isinstance(event, AliasEvent) for event in parse(text, Loader=SafeLoader)):
            message = f"{where} uses YAML's *, which 'medfocal train' does not write"
            raise InputError(message)
        found = OmegaConf.create(text)
    except (YAMLError, OmegaConfBaseException, ValueError, RecursionError) as error:
        message = f"{where} is not YAML that could be read: {' '.join(str(error).split())[:300]}"
        raise InputError(message) from error
    if not isinstance(found, DictConfig):
        message = f"{where} holds no settings"
        raise InputError(message)
    settings = dict(_flat(OmegaConf.to_container(found, resolve=False)))
    wanted: dict[str, tuple[type, ...]] = {
        "experiment": (str,),
        "seed": (int,),
        "trainer.max_epochs": (int,),
        "trainer.validation_false_positives": (int, float),
    }
    for key, kinds in wanted.items():
        if not isinstance(settings.get(key), kinds):
            message = f"{where} is not one of 'medfocal train': {key} is {settings.get(key)!r}"
            raise InputError(message)
    if not isinstance(settings.get("data.fold"), int | None):
        message = f"{where}: data.fold is {settings['data.fold']!r}, not a number or null"
        raise InputError(message)
    return settings


def _read_text(path: Path, where: str) -> str:
    try:
        if path.stat().st_size > MOST_BYTES:
            message = f"{where} has {path.stat().st_size} bytes; one of 'medfocal train' has fewer than {MOST_BYTES}"
            raise InputError(message)
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        message = f"{where} cannot be read: {getattr(error, 'strerror', None) or error}"
        raise InputError(message) from error


def _flat(values: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every setting with its full name; an empty mapping is a value."""
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def read_epochs(path: Path) -> list[Epoch]:
    """Read metrics.csv; an empty cell (an epoch without validation) and a column there is not are NaN.

    Raises:
        InputError: It cannot be read, lacks a column that every version writes, or holds what is no number.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            rows, columns = list(reader), reader.fieldnames or []
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        message = f"cannot read the training metrics '{path}': {error}"
        raise InputError(message) from error
    missing = [name for name in ("epoch", "loss", "seconds", "lesion_sensitivity", "cpm") if name not in columns]
    if missing:
        message = f"'{path}' has no column {', '.join(missing)}; found {', '.join(columns) or 'none'}."
        raise InputError(message)
    epochs = []
    for line, row in enumerate(rows, start=2):
        where = f"'{path}', line {line}"
        value = {name: read_cell(row.get(name), f"{where}, column {name}") for name in columns if name in _READ}
        if not value["epoch"] >= 1 or not value["epoch"].is_integer():
            message = f"{where}: the epoch is {row['epoch']!r}, not a whole number from 1"
            raise InputError(message)
        epochs.append(
            Epoch(
                number=int(value["epoch"]),
                loss=value["loss"],
                seconds=value["seconds"],
                lesion_sensitivity=value["lesion_sensitivity"],
                low=value.get("lesion_sensitivity_low", math.nan),
                high=value.get("lesion_sensitivity_high", math.nan),
                cpm=value["cpm"],
            )
        )
    return epochs


_READ = frozenset(
    {"epoch", "loss", "seconds", "cpm", "lesion_sensitivity", "lesion_sensitivity_low", "lesion_sensitivity_high"}
)


def _read_split(path: Path) -> dict[str, dict[str, str]]:
    content = read_json(path, "record of the run's split")
    try:
        return {
            name: {str(entry["case"]): str(entry["patient"]) for entry in content[name]}
            for name in ("training", "validation", "test")
        }
    except (KeyError, TypeError) as error:
        message = f"'{path}' is no record of a run's split: {type(error).__name__} {error}"
        raise InputError(message) from error


def read_result(path: Path, rate: float) -> SplitResult:
    """Read an evaluation.json.

    Args:
        path: The file.
        rate: False positives per case at which its FROC is read.

    Raises:
        InputError: It is not what `evaluate` writes.
    """
    content = read_json(path, "evaluation")
    try:
        rules: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in content["protocol"].items()}
        point = next((p for p in content["froc"]["points"] if p["false_positives_per_case"] == rate), None)
        return SplitResult(
            num_cases=int(content["num_cases"]),
            num_patients=int(content["num_patients"]),
            num_lesions=int(content["num_lesions"]),
            protocol=Protocol(**rules),
            figures={
                "lesion_sensitivity_at_rate": math.nan if point is None else _number(point["lesion_sensitivity"]),
                "cpm": _number(content["froc"]["cpm"]),
                "lesion_sensitivity": _number(content["lesion_sensitivity"]["value"]),
                "false_positives_per_case": _number(content["false_positives_per_case"]["value"]),
                "voxel_dice": _number(content["voxel_dice"]["mean"]),
            },
            interval=(math.nan, math.nan) if point is None else (_number(point["low"]), _number(point["high"])),
            num_failed=len(content["failed"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        message = f"'{path}' is not what 'medfocal evaluate' writes: {type(error).__name__} {error}"
        raise InputError(message) from error


def _number(value: Any) -> float:
    """A number; null is NaN.

    Raises:
        TypeError, ValueError: It is none, or too large to be one.
    """
    try:
        return math.nan if value is None else float(value)
    except OverflowError as error:
        raise ValueError(str(error)) from error


def _whole(value: Any, folder: Path) -> int:
    if value is None:
        return 0
    if not isinstance(value, int):
        message = f"'{folder / 'model' / CARD}': the number of an epoch is {value!r}"
        raise InputError(message)
    return value
