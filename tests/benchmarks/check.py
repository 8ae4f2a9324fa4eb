"""How much longer it takes to check a dataset than to read its files.

    python tests/benchmarks/check.py [--cases 100] [--workers 2] [--rounds 3]

Both read the same synthetic heads, int16 `.nii.gz` of 160 x 160 x 100 voxels with a label each, in as many processes;
reading alone is `read_volume` on every file. Rounds alternate, and the ratio is that of the medians.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from medfocal.data.check import Severity, check_dataset
from medfocal.data.manifest import Case, LabelScheme, Manifest
from medfocal.parallel import in_processes
from medfocal.volume import Volume, read_volume, write_volume

SHAPE, SPACING_MM = (160, 160, 100), (1.0, 1.0, 1.5)
NUM_LESIONS = 8


def make_head(folder: Path, number: int) -> Case:
    """An ellipsoid with noise in the air of a scanner, and bright lesions of 1 to 6 mm radius in it."""
    rng = np.random.default_rng(number)
    places = np.meshgrid(*(np.linspace(-1, 1, n, dtype=np.float32) for n in SHAPE), indexing="ij")
    inside = (places[0] / 0.75) ** 2 + (places[1] / 0.9) ** 2 + (places[2] / 0.95) ** 2 < 1
    image = np.where(inside, 600 + 60 * rng.standard_normal(SHAPE, np.float32), 8 * rng.random(SHAPE, np.float32))
    label = np.zeros(SHAPE, np.uint8)
    for voxel in rng.choice(np.argwhere(inside), NUM_LESIONS):
        radius = rng.uniform(1, 6)
        far = sum(((i - v) * s) ** 2 for i, v, s in zip(np.ogrid[*map(slice, SHAPE)], voxel, SPACING_MM, strict=True))
        label[far <= radius**2] = 1
    label[~inside] = 0
    image[label > 0] += 300
    affine = np.diag([*SPACING_MM, 1.0])
    paths = folder / f"head_{number:03d}.nii.gz", folder / f"head_{number:03d}_label.nii.gz"
    write_volume(paths[0], Volume(image.astype(np.int16), affine))
    write_volume(paths[1], Volume(label, affine))
    return Case(f"head_{number:03d}", f"p{number:03d}", "training", (paths[0],), paths[1])


def read_files(case: Case) -> int:
    return sum(read_volume(path, order="K").array.size for path in case.files)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (("cases", 100), ("workers", 2), ("rounds", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        cases = tuple(make_head(Path(folder), number) for number in range(given.cases))
        manifest = Manifest(Path(folder), "heads", ("MR",), LabelScheme({0: "background", 1: "lesion"}), cases)
        read_s, check_s = [], []
        for _ in range(given.rounds):
            begin = time.perf_counter()
            with in_processes(read_files, cases, given.workers, what="read files") as sizes:
                sum(sizes)
            read_s.append(time.perf_counter() - begin)
            begin = time.perf_counter()
            report = check_dataset(manifest, workers=given.workers)
            check_s.append(time.perf_counter() - begin)
            assert not report.of(Severity.ERROR)
    ratio = statistics.median(check_s) / statistics.median(read_s)
    print(f"{given.cases} cases, {given.workers} processes, median (least) of {given.rounds} rounds")
    print(f"read   {statistics.median(read_s):6.2f} s ({min(read_s):.2f})")
    print(f"check  {statistics.median(check_s):6.2f} s ({min(check_s):.2f})")
    print(f"ratio  {ratio:6.2f}   ({min(check_s) / min(read_s):.2f} of the least); at most 1.6, aimed at 1.2")
    sys.exit(ratio > 1.6)


if __name__ == "__main__":
    main()
