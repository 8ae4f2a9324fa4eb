"""Small datasets by hand: an unequal grid, off-centre, its first axis flipped."""

from __future__ import annotations

import json

import numpy as np

from medfocal.data.check import check_dataset
from medfocal.data.formats import read_dataset
from medfocal.volume import Volume, write_volume

SHAPE = (12, 10, 8)
AFFINE = np.array([[-0.5, 0, 0, 41], [0, 1.0, 0, -17], [0, 0, 3.0, 12], [0, 0, 0, 1]])
TWO = [(2, 2, 2), (3, 2, 2), (4, 2, 2), (9, 8, 6), (9, 7, 6), (9, 6, 6)]  # two lesions of three voxels, 4.5 mm3


def image_of(seed, shape=SHAPE):
    return np.random.default_rng(seed).random(shape, np.float32)


def label_of(voxels, shape=SHAPE, dtype=np.uint8):
    label = np.zeros(shape, dtype)
    for voxel in voxels:
        label[voxel] = 1
    return label


def write(path, array, affine=AFFINE):
    write_volume(path, Volume(array, affine))
    return path


def make_dataset(folder, cases=None, *, channels=("MR",), labels=("background", "lesion")):
    """A `dataset.json`: by case, its split, and its lesion voxels or None for no label."""
    cases = {"a": ("training", TWO), "b": ("training", [])} if cases is None else cases
    content = {
        "labels": {str(value): name for value, name in enumerate(labels)},
        "channel_names": {str(number): name for number, name in enumerate(channels)},
        "training": [], "validation": [], "test": [],
    }  # fmt: skip
    for number, (name, (split, voxels)) in enumerate(cases.items()):
        images = [f"{name}_{channel}.nii.gz" for channel in channels]
        for channel, image in enumerate(images):
            write(folder / image, image_of(100 * number + channel))
        entry = {"case": name, "image": images}
        if voxels is not None:
            write(folder / f"{name}_label.nii.gz", label_of(voxels))
            entry["label"] = f"{name}_label.nii.gz"
        content[split].append(entry)
    (folder / "dataset.json").write_text(json.dumps(content))
    return folder / "dataset.json"


def annotate(dataset, marks):
    """Give cases annotations: by case, for each reader, the voxels that he marked."""
    content = json.loads(dataset.read_text())
    for entry in [entry for split in ("training", "validation", "test") for entry in content[split]]:
        for number, voxels in enumerate(marks.get(entry["case"], []), start=1):
            file = f"{entry['case']}_reader{number}.nii.gz"
            write(dataset.parent / file, label_of(voxels))
            entry.setdefault("annotations", []).append(file)
    dataset.write_text(json.dumps(content))


def checked(dataset, **settings):
    return check_dataset(read_dataset(dataset, need_images=False), **settings)


def kinds(report, case=None):
    """Kinds of the findings of a case, or of all; without those that the made files always have."""
    return [str(finding.kind) for finding in report.findings if case is None or finding.case == case]
