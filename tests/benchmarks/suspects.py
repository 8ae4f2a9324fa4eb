"""Are dropped lesions found again? Cross-validated training on phantoms with wrong labels; writes a page of docs.

    python tests/benchmarks/suspects.py [RUNS_FOLDER] [PAGE.md]

A third of the lesions is dropped from the labels of all cases, at random. Three folds by patient: each case is
predicted by a model that was trained on the wrong labels of the other two, and the suspects are ranked. A second table
judges the marks of the phantoms' second reader, who misses, invents and redraws lesions, by the same predictions. Runs
that are finished are not repeated, so a stopped comparison goes on. About 2 minutes a fold on a free core.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from medfocal.annotations.suspect import (
    Kind,
    SuspectRules,
    form_candidates,
    rank_suspects,
    read_pair,
    survey_case,
    suspect_voxels,
)
from medfocal.components import find_components
from medfocal.data.formats import read_dataset
from medfocal.data.manifest import Case
from medfocal.evaluate.pairs import Pair
from medfocal.volume import read_labels, write_volume

ROOT = Path(__file__).resolve().parents[2]
SEEDS = (1, 2, 3)
#: Every third lesion, in a random order over all cases.
DROPPED_SHARE = 1 / 3


@dataclass(frozen=True)
class Study:
    """How large a cross-validation is.

    Attributes:
        num_folds: By patient.
        num_steps: Of each training, a multiple of 100.
        phantoms: Settings of `medfocal phantom`.
        training: Settings of `medfocal train`.
    """

    num_folds: int
    num_steps: int
    phantoms: tuple[str, ...]
    training: tuple[str, ...] = ()

    @property
    def overrides(self) -> tuple[str, ...]:
        """All settings of a training."""
        length = (f"trainer.max_epochs={self.num_steps // 100}", "trainer.steps_per_epoch=100")
        return ("experiment=quickstart", *length, "trainer.num_threads=1", "device=cpu", *self.training)


FULL = Study(num_folds=3, num_steps=600, phantoms=("num_cases=36",))


@dataclass(frozen=True)
class Corrupted:
    """A dataset with lesions dropped from its labels.

    Attributes:
        folder: `labels/` holds the wrong labels, `predictions/` will hold the held-out maps.
        cases: As they were, with their right labels.
    """

    folder: Path
    cases: tuple[Case, ...]


def drop_lesions(dataset: Path, folder: Path, *, seed: int) -> Corrupted:
    """Write the labels of all cases without `DROPPED_SHARE` of the lesions, drawn over all cases."""
    cases = read_dataset(dataset).cases
    volumes = {case.name: read_labels(case.label) for case in cases}
    parts = {name: find_components(volume.array, volume.affine) for name, volume in volumes.items()}
    lesions = [(name, number) for name, found in parts.items() for number in range(1, len(found) + 1)]
    order = np.random.default_rng([seed, 1]).permutation(len(lesions))[: round(DROPPED_SHARE * len(lesions))]
    chosen = {lesions[place] for place in order}
    for name, volume in volumes.items():
        gone = np.isin(parts[name].labels, [number for case, number in chosen if case == name])
        left = np.where(gone, 0, volume.array).astype(np.uint8)
        write_volume(folder / "labels" / f"{name}.nii.gz", volume.with_array(left))
    return Corrupted(folder, cases)


def write_folds(corrupted: Corrupted, dataset: Path, num_folds: int) -> list[Path]:
    """A `dataset_fold<n>.json` each: the n-th part of the patients is the test split, all others are trained on."""
    content = json.loads(dataset.read_text("utf-8"))
    entries = [entry for split in ("training", "validation", "test") for entry in content[split]]
    patients = sorted({entry["patient"] for entry in entries})
    for entry in entries:
        images = [entry["image"]] if isinstance(entry["image"], str) else entry["image"]
        entry["image"] = [str((dataset.parent / image).absolute()) for image in images]
        entry["label"] = str((corrupted.folder / "labels" / f"{entry['case']}.nii.gz").absolute())
        entry.pop("annotations", None)
    paths = []
    for fold in range(num_folds):
        held_out = patients[fold::num_folds]
        parts = {
            "training": [entry for entry in entries if entry["patient"] not in held_out],
            "validation": [],
            "test": [entry for entry in entries if entry["patient"] in held_out],
        }
        paths.append(corrupted.folder / f"dataset_fold{fold}.json")
        paths[-1].write_text(json.dumps(content | parts), "utf-8")
    return paths


def medfocal(*words: object) -> None:
    """Run a command, and fail with it."""
    subprocess.run([sys.executable, "-m", "medfocal.cli", *map(str, words)], check=True, stdout=subprocess.DEVNULL)


def cross_validate(runs: Path, seed: int, study: Study) -> Corrupted:
    """Make the phantoms and the wrong labels of a seed, train each fold, and gather the held-out maps."""
    home = runs / f"seed{seed}"
    dataset = home / "data" / "dataset.json"
    if not dataset.is_file():
        medfocal("phantom", f"output={home / 'data'}", f"seed={seed}", *study.phantoms)
    corrupted = drop_lesions(dataset, home, seed=seed)
    (home / "predictions").mkdir(exist_ok=True)
    for fold, path in enumerate(write_folds(corrupted, dataset, study.num_folds)):
        name = f"fold{fold}-steps{study.num_steps}"
        words = [f"data.dataset={path}", f"paths.runs={home}", f"run.id={name}", f"seed={seed}"]
        medfocal("train", *study.overrides, *words)
        for file in (home / "quickstart" / name / "test" / "predictions").glob("*_probability.nii.gz"):
            shutil.copy(file, home / "predictions" / file.name)
    return corrupted


def judge_seed(corrupted: Corrupted) -> tuple[dict[str, Any], dict[str, Any]]:
    """Judge the labels with dropped lesions, and the marks of the second reader."""
    home, right = corrupted.folder, {}
    for case in corrupted.cases:
        label = read_labels(case.label)
        right[case.name] = find_components(label.array, label.affine).labels
    maps = {case.name: home / "predictions" / f"{case.name}_probability.nii.gz" for case in corrupted.cases}
    labels = {case.name: home / "labels" / f"{case.name}.nii.gz" for case in corrupted.cases}
    dropped = [Pair(case.name, case.patient, labels[case.name], maps[case.name]) for case in corrupted.cases]
    read = [Pair(case.name, case.patient, case.annotations[1], maps[case.name]) for case in corrupted.cases]
    return judge(dropped, right), judge(read, right)


def judge(pairs: list[Pair], right: dict[str, np.ndarray]) -> dict[str, Any]:
    """Rank the suspects of labels of which the right ones are known.

    A missed lesion is one of the right labels that touches no given label; a suspect finds it where its candidate
    shares a voxel with it, the first one alone. A spurious mark touches no lesion of the right labels. Touching is
    within one voxel, as for the suspects.

    Args:
        pairs: Given labels and held-out maps.
        right: Lesion numbers of the right labels by case, 0 outside.
    """
    rules = SuspectRules(min_score=0)
    volumes = {pair.case: read_pair(pair) for pair in pairs}
    surveys = [
        survey_case(label.array, probability, label.affine, case=case, rules=rules)
        for case, (label, probability) in volumes.items()
    ]
    found = rank_suspects(surveys, rules)
    near, hits, numbers = np.ones((3, 3, 3)), {}, {}
    voxels = {"missed": np.zeros(3, int), "spurious": np.zeros(3, int)}
    faulty = {}
    for case, (label, probability) in volumes.items():
        given, lesions = label.array != 0, right[case]
        touched = np.unique(lesions[ndimage.binary_dilation(given, near)])
        missed = np.setdiff1d(lesions, [0, *touched])
        marks = find_components(given, label.affine).labels
        true_marks = np.unique(marks[ndimage.binary_dilation(lesions > 0, near)])
        spurious = np.setdiff1d(marks, [0, *true_marks])
        numbers[case] = (len(missed), len(spurious))
        faulty[case] = bool(len(missed) or len(spurious))
        candidates = form_candidates(probability, label.affine, rules).labels
        for number in missed.tolist():
            for candidate in np.unique(candidates[lesions == number]).tolist():
                hits.setdefault((case, Kind.MISSED, candidate), number)
        hits |= {(case, Kind.SPURIOUS, number): number for number in spurious.tolist()}
        flagged = dict(zip(voxels, suspect_voxels(label.array, probability, found.thresholds), strict=True))
        for kind, wrong in (("missed", np.isin(lesions, missed)), ("spurious", np.isin(marks, spurious))):
            voxels[kind] += [(flagged[kind] & wrong).sum(), flagged[kind].sum(), wrong.sum()]
    result = {"num_labelled": sum(len(s.lesions) for s in surveys), "num_lonely": found.num_lonely_candidates}
    for kind, place in ((Kind.MISSED, 0), (Kind.SPURIOUS, 1)):
        scores, true, seen = [], [], set()
        for suspect in found.suspects:
            if suspect.kind is kind or (kind is Kind.SPURIOUS and suspect.kind is Kind.BOUNDARY):
                key = (suspect.case, kind, suspect.candidate if kind is Kind.MISSED else suspect.lesion)
                hit = (suspect.case, hits[key]) if key in hits else None
                true.append(hit is not None and hit not in seen)
                seen.add(hit)
                scores.append(suspect.score if suspect.kind is kind else -1.0)
        total = sum(counts[place] for counts in numbers.values())
        scores, true = np.array(scores), np.array(true)
        result[str(kind)] = {
            "total": total,
            "among_first": {n: int(true[scores >= 0][: n * total].sum()) for n in (1, 2)},
            "from_score": {s: (int(true[scores >= s].sum()), int((scores >= s).sum())) for s in (0.2, 0.5)},
            "voxels": voxels[str(kind)].tolist(),
        }
    quality = {case.case: (1 - case.label_quality, case.highest_score) for case in found.cases}
    result["auroc"] = [
        area([quality[c][column] for c in faulty if faulty[c]], [quality[c][column] for c in faulty if not faulty[c]])
        for column in (0, 1)
    ]
    result["num_faulty"] = sum(faulty.values())
    return result


def area(positive: list[float], negative: list[float]) -> float:
    """Chance that one of the first is above one of the second; NaN where one of them is empty."""
    return float(np.mean([(a > b) + (a == b) / 2 for a in positive for b in negative])) if negative else float("nan")


def main(runs: Path, page: Path) -> None:
    """Run what is missing and write the page."""
    dropped, read = zip(*(judge_seed(cross_validate(runs, seed, FULL)) for seed in SEEDS), strict=True)
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(render(dropped, read), "utf-8")
    print(f"wrote {page}")


def render(dropped: Sequence[dict[str, Any]], read: Sequence[dict[str, Any]]) -> str:
    """The page: a column a seed."""
    heading = ["| | " + " | ".join(f"seed {seed}" for seed in SEEDS) + " | all |", "| --- |" + " --- |" * 4]
    lines = [
        "# Are wrong labels found?",
        "",
        "`python tests/benchmarks/suspects.py` makes this page. Phantoms (`medfocal phantom`), 36 cases a seed; the",
        f"quickstart experiment with {FULL.num_steps} steps, three folds by patient, trained on the wrong labels.",
        "The form of the score and the two default scores were chosen on these phantoms, so rows that name a score",
        "flatter. The bold row depends on the order of the confidences alone; nothing was chosen for it.",
        "",
        "## A third of the lesions dropped from the labels, at random",
        "",
        *heading,
        row("labelled lesions", dropped, lambda r: (r["num_labelled"],)),
        row("dropped lesions", dropped, lambda r: (r["missed"]["total"],)),
        row("candidates that touch no label", dropped, lambda r: (r["num_lonely"],)),
        row("found among the first n `missed` suspects", dropped, lambda r: first(r["missed"], 1)),
        row("**found among the first 2 n**", dropped, lambda r: first(r["missed"], 2)),
        row("found among 2 n candidates drawn at random", dropped, chance),
        *scores("missed", dropped),
        row("`missed` voxels: in dropped lesions, of flagged", dropped, lambda r: r["missed"]["voxels"][:2]),
        row("`missed` voxels: flagged, of dropped", dropped, lambda r: [r["missed"]["voxels"][k] for k in (0, 2)]),
        row("labelled lesions called `spurious` from score 0.5 (none is)", dropped, lambda r: wrong(r["spurious"])),
        auroc("cases: AUROC of `label_quality`", dropped, 0),
        auroc("cases: AUROC of `highest_score`", dropped, 1),
        "",
        "n is the number of dropped lesions. AUROC: cases with a dropped lesion against cases without.",
        "",
        "## The marks of a reader who misses, invents and redraws lesions",
        "",
        "The second reader of the phantoms, by the same predictions (they did not learn from these marks).",
        "",
        *heading,
        row("marks", read, lambda r: (r["num_labelled"],)),
        row("missed lesions", read, lambda r: (r["missed"]["total"],)),
        row("found among the first 2 n `missed` suspects", read, lambda r: first(r["missed"], 2)),
        *scores("missed", read),
        row("invented lesions", read, lambda r: (r["spurious"]["total"],)),
        row("found among the first n `spurious` suspects", read, lambda r: first(r["spurious"], 1)),
        row("found among the first 2 n", read, lambda r: first(r["spurious"], 2)),
        *scores("spurious", read),
        row("`spurious` voxels: in invented lesions, of flagged", read, lambda r: r["spurious"]["voxels"][:2]),
        row("`spurious` voxels: flagged, of invented", read, lambda r: [r["spurious"]["voxels"][k] for k in (0, 2)]),
        auroc("cases: AUROC of `label_quality`", read, 0),
        auroc("cases: AUROC of `highest_score`", read, 1),
        "",
        "One thread of a CPU; not measured on a GPU, and not on real images.",
        "",
    ]
    return "\n".join(lines)


def scores(kind: str, results: Sequence[dict[str, Any]]) -> list[str]:
    """Rows of what lies above each default score."""
    return [
        row(f"`{kind}` from score {score}: right, of listed", results, lambda r, s=score: r[kind]["from_score"][s])
        for score in (0.2, 0.5)
    ]


def row(name: str, results: Sequence[dict[str, Any]], counts: Any) -> str:
    """Counts of each seed and their sum, as shares where there are two."""
    cells = [list(counts(result)) for result in results]
    return f"| {name} | " + " | ".join(map(share, [*cells, np.sum(cells, axis=0).tolist()])) + " |"


def share(counts: list[float]) -> str:
    """A number, or a share with its numbers."""
    if len(counts) == 1:
        return f"{counts[0]:g}"
    return f"{counts[0] / counts[1]:.2f} ({counts[0]:.3g}/{counts[1]:g})" if counts[1] else "0 of 0"


def auroc(name: str, results: Sequence[dict[str, Any]], column: int) -> str:
    """A row of areas, and their mean."""
    values = [result["auroc"][column] for result in results]
    return f"| {name} | " + " | ".join(f"{value:.2f}" for value in [*values, np.mean(values)]) + " |"


def first(found: dict[str, Any], times: int) -> tuple[int, int]:
    """Wrong labels found among so many times as many suspects."""
    return found["among_first"][times], found["total"]


def wrong(found: dict[str, Any]) -> tuple[int]:
    """Suspects from score 0.5 that are none."""
    right, listed = found["from_score"][0.5]
    return (listed - right,)


def chance(result: dict[str, Any]) -> tuple[float, int]:
    """Expected number of hits of 2 n candidates drawn at random; each lesion has one candidate at most."""
    total = result["missed"]["total"]
    return 2 * total * total / result["num_lonely"], total


if __name__ == "__main__":
    given = sys.argv[1:]
    main(
        Path(given[0] if given else "runs/suspects").absolute(),
        Path(given[1] if len(given) > 1 else ROOT / "docs/benchmarks/suspects-cpu.md").absolute(),
    )
