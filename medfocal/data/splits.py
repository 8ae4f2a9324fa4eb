"""Which cases are learnt from, which choose the epoch and which are the test: given in a file, or made as folds.

A patient is never divided. Folds are made of all cases but those for test, alike in lesions, and the same ones from the
same seed whatever the order of the cases.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medfocal.annotations.target import as_marks
from medfocal.components import find_components
from medfocal.data.cases import classes_of, read_annotations
from medfocal.data.formats.source import read_json
from medfocal.data.manifest import SPLITS, Case, LabelScheme, Manifest, find_split_faults, listed, refuse
from medfocal.errors import DatasetError, InputError
from medfocal.files import write_json
from medfocal.parallel import available_cores, in_processes
from medfocal.progress import track
from medfocal.volume import read_grid, read_labels

#: Splits that folds are made of.
LEARNT_FROM = ("training", "validation")

# From so many labels on another process pays: it needs a second to begin, and a label 20 to 50 ms.
CASES_PER_PROCESS = 50

# Pairs of patients that are looked at before two change folds, and the most changes; 60 patients have 1,770 pairs.
NUM_PAIRS = 4096
MOST_CHANGES = 1000


@dataclass(frozen=True)
class CaseCensus:
    """How much lesion a case has.

    Attributes:
        num_lesions: 26-connected parts of the label; without one, of what at least half of its readers marked.
        lesion_ml: Their volume.
    """

    num_lesions: int
    lesion_ml: float


def census(manifest: Manifest, *, workers: int | None = None) -> dict[str, CaseCensus]:
    """Count the lesions of the cases that are not for test.

    Args:
        manifest: The dataset; no image is read.
        workers: Processes that read; None: as many as pay, up to one a core.

    Raises:
        InputError: A label or annotation cannot be read, or holds a value that the dataset does not name.
    """
    cases = [case for case in manifest.cases if case.split in LEARNT_FROM]
    task = functools.partial(count_lesions, scheme=manifest.scheme)
    workers = workers or min(available_cores(), max(1, len(cases) // CASES_PER_PROCESS))
    with in_processes(task, cases, workers, what="counted lesions", name=attrgetter("name")) as found:
        return {case.name: counted for case, counted in zip(cases, track(found, "census", len(cases)), strict=True)}


def count_lesions(case: Case, *, scheme: LabelScheme) -> CaseCensus:
    """Count the lesions of one annotated case.

    Raises:
        InputError: A file cannot be read, or holds a value that the dataset does not name.
    """
    mask: NDArray[np.bool_]
    if case.label is not None:
        where = f"case '{case.name}'"
        try:
            grid = read_labels(case.label)
        except InputError as error:
            message = f"{where}: {error}"
            raise type(error)(message) from error
        mask = classes_of(grid.array, scheme, f"{where}: the label '{case.label}'")[0] > 0
    else:
        assert case.annotations, "the manifest sees to it that cases to learn from are annotated"
        grid = read_grid((*case.images, *case.annotations)[0])
        readers, _ = read_annotations(case, grid, scheme)
        mask = as_marks(readers).astype(bool).mean(axis=0) >= 0.5
    lesions = find_components(mask, grid.affine)
    return CaseCensus(len(lesions), float(np.sum(lesions.volume_ml)))


def with_fold(
    manifest: Manifest, counted: Mapping[str, CaseCensus], *, num_folds: int, fold: int, seed: int
) -> Manifest:
    """The dataset with one of its folds as validation and the others as training; test cases stay.

    Args:
        manifest: The dataset.
        counted: Lesions of each case that is not for test.
        num_folds: 2 or more.
        fold: Which one validates, from 0.
        seed: Of the folds, 0 or more.

    Raises:
        DatasetError: There are fewer patients than folds.
    """
    folds = make_folds(manifest, counted, num_folds=num_folds, seed=seed)
    home = {name: "validation" if number == fold else "training" for number, own in enumerate(folds) for name in own}
    cases = tuple(replace(case, split=home.get(case.name, case.split)) for case in manifest.cases)
    return replace(manifest, cases=cases, split_from=f"fold {fold} of {num_folds}, seed {seed}")


def make_folds(
    manifest: Manifest, counted: Mapping[str, CaseCensus], *, num_folds: int, seed: int
) -> list[tuple[str, ...]]:
    """Divide the cases that are not for test into folds of whole patients that are alike.

    Patients are ordered by their number of lesions, then by volume, and those without lesions come last. Of each
    `num_folds` in a row every fold gets one, by lot, so that numbers of patients with and without lesions differ by one
    at most. Then two patients of a kind change folds as long as that makes the folds more alike in the sums of: cases,
    lesions, their volume, the logarithm of 1 and the lesions of a patient, and patients whose lesions are small.

    Args:
        manifest: The dataset.
        counted: Lesions of each case that is not for test.
        num_folds: 2 or more.
        seed: Of the lot, 0 or more.

    Returns:
        Names of the cases of each fold, in the order of the manifest.

    Raises:
        DatasetError: There are fewer patients than folds.
    """
    cases = [case for case in manifest.cases if case.split in LEARNT_FROM]
    names, amounts = _amounts_of_patients(cases, counted)
    if len(names) < num_folds:
        message = (
            f"'{manifest.path}' has {len(names)} patients that are not for test, which are too few for "
            f"{num_folds} folds. Choose fewer by data.num_folds."
        )
        raise DatasetError(message)
    rng = np.random.default_rng([seed, num_folds])
    num_with = int(np.count_nonzero(amounts[:, 0]))
    dealt = _deal(num_with, len(names), num_folds, rng)
    folds = _with_changes(dealt, _shares(amounts, num_folds), num_with, num_folds, rng)
    fold_of = dict(zip(names, folds.tolist(), strict=True))
    return [tuple(case.name for case in cases if fold_of[case.patient] == fold) for fold in range(num_folds)]


def _amounts_of_patients(
    cases: Iterable[Case], counted: Mapping[str, CaseCensus]
) -> tuple[list[str], NDArray[np.float64]]:
    """Patients from the one with most lesions to those without; and each one's lesions, volume and cases, (n, 3)."""
    sums: dict[str, NDArray[np.float64]] = {}
    for case in cases:
        own = np.array([counted[case.name].num_lesions, counted[case.name].lesion_ml, 1])
        sums[case.patient] = sums.get(case.patient, np.zeros(3)) + own
    names = sorted(sums, key=lambda patient: (*(-sums[patient]), patient))
    return names, np.array([sums[name] for name in names]).reshape(-1, 3)


def _deal(num_with: int, num_patients: int, num_folds: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """A fold for each patient in order: a lot of all folds for each `num_folds` of them.

    Where the last lot is not of all folds, those come first that got a patient with lesions in the lot that is of both
    kinds; they have fewer without.
    """
    lots = [rng.permutation(num_folds) for _ in range(-(-num_patients // num_folds))]
    is_mixed = num_with % num_folds > 0 and num_with // num_folds < len(lots) - 1
    if is_mixed:
        favoured = lots[num_with // num_folds][: num_with % num_folds]
        lots[-1] = np.array(sorted(lots[-1], key=lambda fold: fold not in favoured))
    return np.concatenate([*lots, np.zeros(0, np.int64)])[:num_patients].astype(np.int64)


def _shares(amounts: NDArray[np.float64], num_folds: int) -> NDArray[np.float64]:
    """What each patient would add to a fold, as a share of what the mean fold has, (n, 5); see `make_folds`."""
    num_lesions, volume_ml, _ = amounts.T
    with np.errstate(invalid="ignore"):
        mean_ml = volume_ml / num_lesions
    is_small = mean_ml < np.median(mean_ml[num_lesions > 0]) if num_lesions.any() else np.zeros(len(amounts), bool)
    wanted = np.column_stack([amounts, np.log1p(num_lesions), is_small])
    mean = wanted.sum(axis=0) / num_folds
    shares: NDArray[np.float64] = wanted / np.where(mean > 0, mean, 1)
    return shares


def _with_changes(
    folds: NDArray[np.int64], shares: NDArray[np.float64], num_with: int, num_folds: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    """The folds after changes that each lower the sum of the squared deviations of their amounts from the mean."""
    folds = folds.copy()
    amounts = np.zeros((num_folds, shares.shape[1]))
    np.add.at(amounts, folds, shares)
    every = np.stack(np.triu_indices(len(folds), 1)) if len(folds) ** 2 <= 2 * NUM_PAIRS else None
    for _ in range(MOST_CHANGES):
        one, other = rng.integers(len(folds), size=(2, NUM_PAIRS)) if every is None else every
        is_of_a_kind = (one < num_with) == (other < num_with)
        one, other = one[is_of_a_kind], other[is_of_a_kind]
        gained = shares[other] - shares[one]
        # (a + g - m)^2 + (b - g - m)^2 less (a - m)^2 + (b - m)^2; two of one fold would gain what they lose.
        change = np.sum(gained * (amounts[folds[one]] - amounts[folds[other]]) + gained**2, axis=1)
        change[folds[one] == folds[other]] = 0
        best = int(np.argmin(change)) if len(change) else 0
        if not len(change) or change[best] > -1e-9:
            break
        first, second = one[best], other[best]
        amounts[folds[first]] += gained[best]
        amounts[folds[second]] -= gained[best]
        folds[[first, second]] = folds[[second, first]]
    return folds


def write_split(path: Path, manifest: Manifest) -> None:
    """Write `split.json`: the cases and patients of each split, and where the splits come from.

    Raises:
        ResourceError: It cannot be written.
    """
    splits = {s: [{"case": case.name, "patient": case.patient} for case in manifest.split(s)] for s in SPLITS}
    write_json(path, {"split_from": manifest.split_from, **splits})


def read_split(path: Path, manifest: Manifest, *, fold: int | None = None) -> Manifest:
    """The dataset with the splits of a file.

    Args:
        path: A `split.json` that `write_split` wrote, which names every case; or nnU-Net's `splits_final.json`, a list
            with `train` and `val` for each fold, which names every case that is not for test.
        manifest: The dataset.
        fold: Which one, of a `splits_final.json`.

    Returns:
        The dataset; cases are in the order that they had.

    Raises:
        InputError: The file is missing or is neither.
        DatasetError: It names other cases or patients than the dataset, or a case twice, or divides a patient; or
            `fold` is missing, not in it, or given for a file without folds.
    """
    content = read_json(path, "split file")
    faults: list[str] = []
    if isinstance(content, list):
        named = _named_by_nnunet(path, content, fold)
        wanted = [case for case in manifest.cases if case.split in LEARNT_FROM]
        split_from = f"fold {fold} of {len(content)} in '{path}'"
    elif isinstance(content, dict):
        if fold is not None:
            message = f"the split file '{path}' has no folds, but data.fold is {fold}; leave it out"
            raise DatasetError(message)
        named = _named_by_us(path, content, manifest, faults)
        wanted = list(manifest.cases)
        split_from = str(content.get("split_from", f"'{path}'"))
    else:
        message = f"the split file '{path}' holds a {type(content).__name__}; an object or a list of folds is expected"
        raise InputError(message)
    home: dict[str, str] = {}
    for split, names in named.items():
        twice = [name for name in dict.fromkeys(names) if name in home or names.count(name) > 1]
        faults += [f"names {listed(twice)} more than once"] if twice else []
        home |= dict.fromkeys(names, split)
    missing = [case.name for case in wanted if case.name not in home]
    faults += [f"does not name {listed(missing)} of the dataset '{manifest.path}'"] if missing else []
    unknown = set(home) - {case.name for case in wanted}
    faults += [f"names {listed(unknown)}, unknown to the dataset '{manifest.path}'"] if unknown else []
    cases = tuple(replace(case, split=home.get(case.name, case.split)) for case in manifest.cases)
    faults += find_split_faults(cases)
    refuse(path, faults)
    return replace(manifest, cases=cases, split_from=split_from)


def _named_by_us(path: Path, content: Mapping[str, Any], manifest: Manifest, faults: list[str]) -> dict[str, list[str]]:
    patients = {case.name: case.patient for case in manifest.cases}
    named: dict[str, list[str]] = {}
    for split in SPLITS:
        entries = content.get(split)
        if not isinstance(entries, list) or not all(
            isinstance(entry, dict) and all(isinstance(entry.get(key), str) for key in ("case", "patient"))
            for entry in entries
        ):
            message = f"the split file '{path}': '{split}' must be a list of objects with 'case' and 'patient'"
            raise InputError(message)
        named[split] = [entry["case"] for entry in entries]
        faults += [
            f"the patient of case '{entry['case']}' is '{entry['patient']}', but "
            f"'{patients[entry['case']]}' in the dataset '{manifest.path}'"
            for entry in entries
            if entry["patient"] != patients.get(entry["case"], entry["patient"])
        ]
    return named


def _named_by_nnunet(path: Path, content: Sequence[Any], fold: int | None) -> dict[str, list[str]]:
    if fold is None or not 0 <= fold < len(content):
        message = f"the split file '{path}' has {len(content)} folds; choose one by data.fold, from 0, got {fold}"
        raise DatasetError(message)
    chosen = content[fold]
    if not isinstance(chosen, dict) or not all(
        isinstance(chosen.get(key), list) and all(isinstance(name, str) for name in chosen[key])
        for key in ("train", "val")
    ):
        message = f"the split file '{path}': fold {fold} must be an object with the lists 'train' and 'val' of names"
        raise InputError(message)
    return {"training": chosen["train"], "validation": chosen["val"]}
