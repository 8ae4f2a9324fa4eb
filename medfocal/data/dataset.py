"""The dataset that the settings of the group `data` describe, split as they say. Imports no numpy before it is read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medfocal.progress import say

if TYPE_CHECKING:
    from medfocal.data.manifest import Manifest


@dataclass(kw_only=True)
class DataSettings:
    """Where the dataset is, what is in it and how it is split; `conf/data/dataset.yaml` states each.

    Args:
        dataset: A `dataset.json`, a CSV, or a folder.
        format: See `medfocal.data.formats.read_dataset`, as for all down to `patient_pattern`.
        root: Likewise.
        labels: Likewise.
        channels: Likewise.
        classes: Likewise.
        ignore_value: Likewise.
        resample_channels: Likewise.
        patient_pattern: Likewise.
        split: File of the split, see `medfocal.data.splits.read_split`; None: as the dataset says, or folds.
        num_folds: How many folds to make of all cases that are not for test; None makes none.
        fold: Which one validates, from 0.
        fold_seed: Of the folds that are made.
    """

    dataset: str
    format: str
    root: str | None
    labels: str | None
    channels: list[str] | None
    classes: Any  # names with a label value or a list of them; `check` holds it to that
    ignore_value: int | None
    resample_channels: bool
    patient_pattern: str | None
    split: str | None
    num_folds: int | None
    fold: int | None
    fold_seed: int

    def check(self) -> None:
        """Refuse what makes no sense whatever the dataset is.

        Raises:
            ValueError: A setting makes none.
        """
        from medfocal.data.formats import DatasetFormat, check_reading

        for name in ("dataset", "labels", "split"):
            value = getattr(self, name)
            if value is not None and not value.strip():
                message = f"{name} must name a file or folder, got {value!r}"
                raise ValueError(message)
        if self.format not in list(DatasetFormat):
            message = f"format must be one of {', '.join(DatasetFormat)}, got {self.format!r}"
            raise ValueError(message)
        check_reading(self.channels, self.classes, self.ignore_value, self.patient_pattern)
        if self.split is not None and self.num_folds is not None:
            message = f"split '{self.split}' and num_folds {self.num_folds} are two ways to split; leave one out"
            raise ValueError(message)
        if self.num_folds is not None and self.num_folds < 2:
            message = f"num_folds must be 2 or more, got {self.num_folds}"
            raise ValueError(message)
        if self.num_folds is not None and (self.fold is None or not 0 <= self.fold < self.num_folds):
            most = self.num_folds - 1
            message = (
                f"num_folds {self.num_folds} needs fold, the one that validates, from 0 to {most}, got {self.fold}"
            )
            raise ValueError(message)
        if self.fold is not None and (self.fold < 0 or (self.num_folds is None and self.split is None)):
            message = f"fold must be 0 or more and needs num_folds, or a split file with folds, got {self.fold}"
            raise ValueError(message)
        if self.fold_seed < 0:
            message = f"fold_seed must be 0 or more, got {self.fold_seed}"
            raise ValueError(message)

    def open(self, *, need_images: bool = True, own_split: Path | None = None) -> Manifest:
        """Read the dataset, split it, and say in one line each how both were understood.

        Args:
            need_images: Whether cases of which there are masks only are refused.
            own_split: The `split.json` of a run that may have begun; its folds are used again rather than made.

        Raises:
            ValueError: A setting makes no sense.
            InputError: A file cannot be read.
            DatasetError: The dataset or its split is not sound.
        """
        from medfocal.data.formats import read_dataset
        from medfocal.data.manifest import SPLITS

        self.check()
        manifest = read_dataset(
            self.dataset,
            format=self.format,
            root=self.root,
            labels=self.labels,
            channels=self.channels,
            classes=self.classes,
            ignore_value=self.ignore_value,
            resample_channels=self.resample_channels,
            patient_pattern=self.patient_pattern,
            need_images=need_images,
        )
        say(f"'{self.dataset}' understood as {manifest.understood_as}")
        tables = sorted(path.name for path in manifest.path.glob("*.csv")) if manifest.path.is_dir() else []
        if tables:
            say(f"note: {', '.join(tables)} in it is not read; data.dataset={manifest.path / tables[0]} would read it")
        manifest = self._split(manifest, own_split)
        counts = ", ".join(f"{len(manifest.split(name))} {name}" for name in SPLITS)
        say(f"split by {manifest.split_from}: {counts}")
        return manifest

    def _split(self, manifest: Manifest, own_split: Path | None) -> Manifest:
        from medfocal.data.splits import census, read_split, with_fold

        if self.split is not None:
            return read_split(Path(self.split), manifest, fold=self.fold)
        if self.num_folds is None or self.fold is None:
            return manifest
        if own_split is not None and own_split.is_file():
            return read_split(own_split, manifest)
        counted = census(manifest)
        manifest = with_fold(manifest, counted, num_folds=self.num_folds, fold=self.fold, seed=self.fold_seed)
        validating = manifest.split("validation")
        if not any(counted[case.name].num_lesions for case in validating):
            say(f"warning: no lesion in the {len(validating)} cases that fold {self.fold} validates; make fewer folds")
        return manifest
