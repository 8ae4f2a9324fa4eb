"""The two experiments on public data; writes a page of docs/benchmarks.

    python tests/benchmarks/real_data.py DATA_FOLDER [RUNS_FOLDER] [PAGE.md]

DATA_FOLDER holds `ms_flair/` and `sts_pet/`, whose sources the files in conf/experiment name. Finished runs are not
repeated.
"""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

from quickstart import ROOT, at_one, operating

EXPERIMENTS = {
    "ms_flair": "multiple sclerosis in FLAIR: 1 patient to train on, 1 to test on",
    "sts_pet": "soft-tissue sarcoma in PET: 26 patients to train on, 8 to test on",
}


def main(data: Path, runs: Path, page: Path) -> None:
    """Run what is missing and write the page."""
    lines = [
        "# Real data",
        "",
        "`python tests/benchmarks/real_data.py DATA_FOLDER` makes this page; the files in `conf/experiment` say where",
        "the public data come from. Neither set has a validation split, so the last epoch is kept and candidates count",
        "from a confidence of 0.5. One seed and few patients: they show that real files go through, not how good",
        "a method is.",
        "",
        (
            "| experiment | lesions found; false positives per case; voxel Dice | 95 % interval of the sensitivity | "
            "sensitivity at 1 FP per case | CPM | minutes of training |"
        ),
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, what in EXPERIMENTS.items():
        words = ["train", f"experiment={name}", f"data.root={data / name}", "run.id=real", f"paths.runs={runs}"]
        subprocess.run([sys.executable, "-m", "medfocal.cli", *words], check=True, stdout=subprocess.DEVNULL)
        folder = runs / name / "real"
        found = json.loads((folder / "test" / "evaluation.json").read_text())
        with (folder / "metrics.csv").open() as file:
            minutes = sum(float(row["seconds"]) for row in csv.DictReader(file)) / 60
        rate = found["lesion_sensitivity"]
        lines.append(
            f"| {name}: {what} | {operating(found)} | {rate['low']:.2f} to {rate['high']:.2f} | {at_one(found):.2f} | "
            f"{found['froc']['cpm']:.2f} | {minutes:.1f} |"
        )
    environment = json.loads((folder / "environment.json").read_text())
    lines += [
        "",
        f"Machine: {environment['device']}, {environment['num_threads']} threads; not measured on a GPU.",
        "",
    ]
    page.write_text("\n".join(lines))
    print(f"wrote {page}")


if __name__ == "__main__":
    words = sys.argv[1:]
    main(
        Path(words[0]).absolute(),
        Path(words[1] if len(words) > 1 else "runs/benchmark").absolute(),
        Path(words[2] if len(words) > 2 else ROOT / "docs/benchmarks/real-data-cpu.md").absolute(),
    )
