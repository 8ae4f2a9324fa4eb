"""The quickstart beside cross-entropy: same budget, seeds, network and patches; writes a page of docs/benchmarks.

    python tests/benchmarks/quickstart.py [RUNS_FOLDER] [PAGE.md]

Runs that are finished are not repeated, so a stopped comparison goes on. About 3 minutes a run on two CPU cores.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SEEDS = (1, 2, 3)
ARMS = {
    "focal, prior bias, lesion patches (the quickstart)": (),
    "cross-entropy, prior bias, lesion patches": ("loss=cross_entropy",),
    "cross-entropy, prior bias, patches anywhere": ("loss=cross_entropy", "sampling=anywhere"),
    "cross-entropy, no prior bias, lesion patches": ("loss=cross_entropy", "trainer.prior_bias=false"),
    "cross-entropy, no prior bias, patches anywhere": (
        "loss=cross_entropy",
        "trainer.prior_bias=false",
        "sampling=anywhere",
    ),
    "focal, prior bias, lesion patches, no transplants": ("sampling.transplant_probability=0",),
}


def main(runs: Path, page: Path) -> None:
    """Run what is missing and write the page."""
    rows = []
    for number, (arm, overrides) in enumerate(ARMS.items()):
        found = [run(runs, f"arm{number}-seed{seed}", seed, overrides) for seed in SEEDS]
        rows.append((arm, found))
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(render(rows, json.loads((runs / "quickstart/arm0-seed1/environment.json").read_text())))
    print(f"wrote {page}")


def run(runs: Path, name: str, seed: int, overrides: tuple[str, ...]) -> dict[str, object]:
    """Train one arm with one seed unless it is there, and read its evaluation of the test split."""
    words = ["train", "experiment=quickstart", f"seed={seed}", f"run.id={name}", f"paths.runs={runs}", *overrides]
    words.append(f"data.dataset={ROOT / 'data_samples/brain/dataset.json'}")
    subprocess.run([sys.executable, "-m", "medfocal.cli", *words], check=True, stdout=subprocess.DEVNULL)
    return json.loads((runs / "quickstart" / name / "test" / "evaluation.json").read_text())


def render(rows: list[tuple[str, list[dict[str, object]]]], environment: dict[str, object]) -> str:
    """The page: a row an arm, a column a seed."""
    first = rows[0][1][0]
    lines = [
        "# The quickstart beside cross-entropy",
        "",
        (
            f"Test split of `data_samples/brain`: {first['num_lesions']} lesions in {first['num_cases']} cases of "
            f"{first['num_patients']} patients. All else is the same; a row names what differs. All but the last have "
            "lesion transplants ([why](../decisions/0005-lesion-transplants.md))."
        ),
        "`python tests/benchmarks/quickstart.py` makes this page.",
        "",
        "Lesion sensitivity at 1 false positive per case, read from the FROC of the test split:",
        "",
        "| arm | " + " | ".join(f"seed {seed}" for seed in SEEDS) + " | mean |",
        "| --- |" + " --- |" * (len(SEEDS) + 1),
    ]
    lines += [f"| {arm} | {cells(found, at_one)} |" for arm, found in rows]
    lines += ["", "CPM (mean sensitivity at 1/8 to 8 false positives per case):", "", *lines[7:9]]
    lines += [f"| {arm} | {cells(found, lambda e: e['froc']['cpm'])} |" for arm, found in rows]
    lines += [
        "",
        "At the operating point chosen on the validation split (lesions found; false positives per case; voxel Dice):",
        "",
    ]
    lines += ["| arm | " + " | ".join(f"seed {seed}" for seed in SEEDS) + " |", "| --- |" + " --- |" * len(SEEDS)]
    lines += [f"| {arm} | " + " | ".join(map(operating, found)) + " |" for arm, found in rows]
    low, high = first["lesion_sensitivity"]["low"], first["lesion_sensitivity"]["high"]
    lines += [
        "",
        (
            f"{first['num_lesions']} lesions decide little: the 95 % interval of the first cell of the last table is "
            f"{low:.2f} to {high:.2f}."
        ),
        (
            f"Machine: {environment['device']}, {environment['num_threads']} threads, torch "
            f"{environment['packages']['torch']}; not measured on a GPU."
        ),
        "",
    ]
    return "\n".join(lines)


def at_one(evaluation: dict[str, object]) -> float:
    """Lesion sensitivity at 1 false positive per case."""
    points = evaluation["froc"]["points"]
    return next(p["lesion_sensitivity"] for p in points if p["false_positives_per_case"] == 1)


def cells(found: list[dict[str, object]], value: object) -> str:
    """A cell a seed and their mean."""
    values = [value(evaluation) for evaluation in found]
    return " | ".join(f"{v:.2f}" for v in [*values, sum(values) / len(values)])


def operating(evaluation: dict[str, object]) -> str:
    """Counts at the operating point."""
    dice = evaluation["voxel_dice"]["mean"]
    return (
        f"{evaluation['num_detected_lesions']}/{evaluation['num_lesions']}; "
        f"{evaluation['false_positives_per_case']['value']:.2f}; " + ("undefined" if dice is None else f"{dice:.2f}")
    )


if __name__ == "__main__":
    words = sys.argv[1:]
    main(
        Path(words[0] if words else "runs/benchmark").absolute(),
        Path(words[1] if len(words) > 1 else ROOT / "docs/benchmarks/quickstart-cpu.md").absolute(),
    )
