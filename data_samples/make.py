"""Write the sample data and the README that holds their right answers.

`python data_samples/make.py` writes into its own folder, `python data_samples/make.py OUTPUT` elsewhere.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from scipy import ndimage

from medfocal.data.phantom import SPLITS, write_phantoms
from medfocal.files import atomic_write
from medfocal.progress import say

DATA_SETS: dict[str, dict[str, Any]] = {
    "brain": {"num_cases": 36, "seed": 20261},
    # The small field holds a sixth of the voxels: at 1e-3 its lesions are as large as those of the other set.
    "two_channel": {
        "num_cases": 6,
        "seed": 20262,
        "prevalence": 1e-3,
        "shape": (40, 40, 32),
        "channels": ("FLAIR", "T1"),
    },
}

HEAD = """# Sample data

Phantoms: made by `make.py` from random numbers, no person was imaged. CC0-1.0.

```
python data_samples/make.py            # writes this folder again, this page included
python data_samples/make.py OUTPUT     # writes it elsewhere
```

Each case is a brain-like head in air (air is exactly 0) with vessels, bright rims along the ventricles, single
bright voxels and diffuse patches, all of which only look like lesions, and with 0 to 5 lesions. The `label` is the
truth of the phantom; the two `annotations` are of readers who miss lesions, mark lookalikes and draw boundaries
differently. A third of the grids are oblique by 5 to 20 degrees, some axes are flipped (LAS, LPS), images are int16
with a slope and some with an intercept, and one image of each set has its geometry in the qform only.
The docstring of `medfocal.data.phantom` states contrast and noise.

| folder | cases (training, validation, test) | patients | channels | grid | voxel in mm | in MB |
| --- | --- | --- | --- | --- | --- | --- |
"""

TABLE = """
## The right answers

Lesions are 26-connected parts of the label; the lists of a case are in the same order, from the largest to the
smallest. The diameter is that of a sphere of the lesion's volume. A lesion is missed by a reader who marked none of
its voxels; a spurious mark is a 26-connected part of the annotation that touches no voxel of the label.

| case | split | patient | axes | share of voxels | lesions | volumes in ml | diameters in mm | \
reader 1 missed / spurious | reader 2 missed / spurious |
| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |
"""


def main(output: Path) -> None:
    """Write both data sets and the README."""
    for name, arguments in DATA_SETS.items():
        say(f"wrote {write_phantoms(output / name, **arguments)}")
    with atomic_write(output / "README.md") as file:
        file.write(HEAD)
        file.writelines(data_set_row(output / name) for name in DATA_SETS)
        file.write(TABLE)
        for name in DATA_SETS:
            file.writelines(case_rows(output / name))
    say(f"wrote {output / 'README.md'}")


def data_set_row(folder: Path) -> str:
    """One line on a data set as a whole."""
    content = json.loads((folder / "dataset.json").read_text("utf-8"))
    entries = [entry for split in SPLITS for entry in content[split]]
    grid = nibabel.load(folder / entries[0]["label"])
    cells = (
        f"`{folder.name}/`",
        f"{len(entries)} ({', '.join(str(len(content[split])) for split in SPLITS)})",
        str(len({entry["patient"] for entry in entries})),
        ", ".join(content["channel_names"].values()),
        " x ".join(str(n) for n in grid.shape),
        " x ".join(f"{step:g}" for step in grid.header.get_zooms()),
        f"{sum(path.stat().st_size for path in folder.rglob('*.gz')) / 1e6:.1f}",
    )
    return f"| {' | '.join(cells)} |\n"


def case_rows(folder: Path) -> Iterator[str]:
    """The rows of a data set, in order of the cases' names."""
    content = json.loads((folder / "dataset.json").read_text("utf-8"))
    pairs = [(split, entry) for split in SPLITS for entry in content[split]]
    for split, entry in sorted(pairs, key=lambda pair: str(pair[1]["case"])):
        label = nibabel.load(folder / entry["label"])
        reference = np.asarray(label.dataobj) > 0
        voxel_ml = abs(float(np.linalg.det(label.affine[:3, :3]))) / 1000
        volumes = sorted((np.bincount(parts(reference).ravel())[1:] * voxel_ml).tolist(), reverse=True)
        diameters = [(6000 * volume / np.pi) ** (1 / 3) for volume in volumes]
        cells = [
            f"{folder.name}/{entry['case']}",
            split,
            entry["patient"],
            "".join(nibabel.aff2axcodes(label.affine)) + (" oblique" if is_oblique(label.affine) else ""),
            f"{reference.mean():.2e}",
            str(len(volumes)),
            ", ".join(f"{volume:.4f}" for volume in volumes),
            ", ".join(f"{diameter:.2f}" for diameter in diameters),
        ]
        for annotation in entry["annotations"]:
            marks = np.asarray(nibabel.load(folder / annotation).dataobj) > 0
            missed = untouched(parts(reference), marks)
            spurious = untouched(parts(marks), reference)
            cells.append(f"{missed} / {spurious}")
        yield f"| {' | '.join(cells)} |\n"


def parts(mask: np.ndarray) -> np.ndarray:
    """Number the 26-connected parts of a mask."""
    numbers, _ = ndimage.label(mask, np.ones((3, 3, 3)))
    return numbers


def untouched(numbers: np.ndarray, mask: np.ndarray) -> int:
    """Count the numbered parts that hold no voxel of the mask."""
    return len(np.setdiff1d(numbers, np.append(numbers[mask], 0)))


def is_oblique(affine: np.ndarray) -> bool:
    """Whether an axis of the array lies along no axis of the world, by more than half a degree."""
    directions = np.abs(affine[:3, :3]) / np.linalg.norm(affine[:3, :3], axis=0)
    return bool(directions.max(axis=0).min() < np.cos(np.deg2rad(0.5)))


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
