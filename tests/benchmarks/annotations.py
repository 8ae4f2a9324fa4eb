"""Training on wrong labels, testing on right ones: which loss, smoothing or fusion helps against which error.

    python tests/benchmarks/annotations.py [--seeds 1,2,3] [--noises …] [--work FOLDER] [--output PAGE.md]

Each run is a line of FOLDER/results.jsonl and is not repeated, so a stopped comparison goes on. Two runs at a time, a
thread each. Arms are settings of `medfocal train`; phantoms, errors and readers are seeded.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import multiprocessing
import os
import platform
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]

#: Phantoms of another seed than the sample data; training cases to learn from, all others to test on.
NUM_CASES, PHANTOM_SEED, PREVALENCE = 48, 2024, 0.0015
#: Readers who err independently and in the same way. Arms without a fusion believe the first.
NUM_READERS = 3
RATE = 1.0
DICE_CUTS = np.linspace(0.05, 0.95, 19)

#: The same for all arms beside the quickstart's settings. Network and budget are small, so that runs can be many.
COMMON = (
    "experiment=quickstart", "network.channels=[8,16,32]", "trainer.max_epochs=6",
    "trainer.steps_per_epoch=50", "trainer.batch_size=4", "trainer.window_size=[64,64,48]",
    "sampling.transplant_probability=0", "trainer.num_threads=1",
)  # fmt: skip
#: Gamma 1, as in the quickstart: gamma 2 learns too slowly for so short a training.
FOCAL = ("loss=focal_gamma1",)
ARMS: dict[str, tuple[str, ...]] = {
    "cross-entropy": ("loss=cross_entropy",),
    "focal": FOCAL,
    "focal, uniform .05": (*FOCAL, "loss.label_smoothing=0.05"),
    "focal, one-sided .03/.002": (*FOCAL, "loss.label_smoothing={fg: 0.03, bg: 0.002}"),
    "focal, SVLS": (*FOCAL, "smoothing=svls"),
    "focal, soft boundary 2 mm": (*FOCAL, "smoothing=soft_boundary"),
    "focal, geodesic": (*FOCAL, "smoothing=geodesic"),
    "focal, truncated at .1": (*FOCAL, "loss.cap=[zero, 0.1]", "loss.cap_start_epoch=2"),
    "focal, trimmed": ("loss=trimmed_focal", "loss.gamma=1.0", "loss.ramp_epochs=4"),
    "generalised cross-entropy": ("loss=generalised_cross_entropy",),
    "Dice + focal": ("loss=dice_focal", "loss.gamma=1.0"),
    "focal, mean of readers": (*FOCAL, "annotations=mean"),
    "focal, random reader": (*FOCAL, "annotations=random"),
    "focal, STAPLE": (*FOCAL, "annotations=staple"),
}
#: With --extras.
EXTRA_ARMS: dict[str, tuple[str, ...]] = {
    "focal, gamma 2": ("loss=focal",),
    "focal, majority": (*FOCAL, "annotations=majority"),
    "focal, random reader, estimated smoothing": (*FOCAL, "annotations=random", "annotations.estimate_smoothing=true"),
}
BASE = "cross-entropy"
#: By kind of error, arm and seed.
Results = dict[tuple[str, str, int], dict[str, Any]]


def corruptions() -> dict[str, Any]:
    """The kinds of error, None for none."""
    from medfocal.annotations import corrupt as c

    return {
        "omission": c.MissedLesions(rate=0.4),
        "invention": c.SpuriousLesions(per_case=2.0),
        "dilation": c.Dilation(dice=0.7),
        "jitter": c.BoundaryJitter(dice=0.7),
        "mixed": c.SimulatedReader(miss_rate=0.25, boundary_dice=0.75, bias=1.0, spurious_per_case=1.0),
        "none": None,
    }


@functools.cache
def phantoms(work: Path) -> Any:
    """The dataset with right labels, made where it is not there."""
    from medfocal.data.formats import read_dataset
    from medfocal.data.phantom import write_phantoms

    dataset = work / "phantoms" / "dataset.json"
    if not dataset.is_file():
        write_phantoms(dataset.parent, num_cases=NUM_CASES, seed=PHANTOM_SEED, prevalence=PREVALENCE)
    return read_dataset(dataset)


@functools.cache
def annotated(work: Path, noise: str) -> Any:
    """A dataset whose training labels are of readers who erred, and the severity of the first one's.

    Its test are all other cases, with their right labels; no case is for validation.
    """
    from medfocal.annotations.corrupt import case_rng
    from medfocal.annotations.severity import severity
    from medfocal.data.cases import read_case
    from medfocal.files import write_json
    from medfocal.volume import write_volume

    corruption, severities, manifest = corruptions()[noise], [], phantoms(work)
    folder = work / noise.replace(" ", "-")
    training = []
    for case in manifest.split("training"):
        volumes = read_case(case, manifest.scheme)
        clean, files = volumes.label.astype(np.uint8), []
        for reader in range(NUM_READERS):
            rng = case_rng(PHANTOM_SEED + reader, case.name)
            how = {"affine": volumes.grid.affine, "rng": rng, "spots": None, "image": volumes.image}
            marks = clean if corruption is None else corruption(clean, **how)
            if reader == 0:
                severities.append(severity(clean, marks, volumes.grid.affine))
            files.append(folder / f"{case.name}_reader{reader + 1}.nii.gz")
            if not files[-1].exists():
                write_volume(files[-1], volumes.grid.with_array(marks.astype(np.uint8)))
        names = list(map(str, files))
        training.append(_entry(case) | {"label": names[0], "annotations": names})
    rest = [*manifest.split("validation"), *manifest.split("test")]
    test = [_entry(case) | {"label": str(case.label)} for case in rest]
    labels = {"0": "background", "1": "lesion"}
    content = {"name": f"phantoms, {noise}", "channel_names": {"0": "FLAIR"}, "labels": labels}
    write_json(folder / "dataset.json", content | {"training": training, "validation": [], "test": test})
    return folder / "dataset.json", severities


def _entry(case: Any) -> dict[str, Any]:
    return {"case": case.name, "patient": case.patient, "image": str(case.images[0])}


def run(work: Path, noise: str, arm: str, seed: int) -> dict[str, Any]:
    """Train one arm on one kind of error by `medfocal train`, and test it on right labels."""
    from medfocal import config
    from medfocal.data.cases import read_case
    from medfocal.data.formats import read_dataset
    from medfocal.volume import read_volume

    dataset, _ = annotated(work, noise)
    run_id = f"{noise}-{arm}-{seed}".translate({ord(letter): "-" for letter in " ,./+"})
    words = [*COMMON, *(ARMS | EXTRA_ARMS)[arm], f"seed={seed}", f"data.dataset={dataset}", f"run.id={run_id}"]
    words += [f"paths.runs={work / 'runs'}", f"paths.cache={work / 'cache'}", "trainer.save_test_predictions=true"]
    started = time.monotonic()
    command = [sys.executable, "-m", "medfocal.cli", "train", *words]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    if ended.returncode:
        sys.exit(f"{' '.join(words)}\n{ended.stderr}")
    seconds = time.monotonic() - started
    manifest, found = read_dataset(dataset), []
    for case in manifest.split("test"):
        path = work / "runs" / "quickstart" / run_id / "test" / "predictions" / f"{case.name}_probability.nii.gz"
        volumes = read_case(case, manifest.scheme)
        found.append((volumes, np.asarray(read_volume(path).array)))
    protocol = config.construct("evaluate", config.check(config.compose("train", words))["evaluate"])
    return {"noise": noise, "arm": arm, "seed": seed, "seconds": round(seconds, 1), **figures(found, protocol)}


def figures(found: Sequence[tuple[Any, Any]], protocol: Any) -> dict[str, Any]:
    """Lesion sensitivity at the rate, CPM, mean Dice at its best cut; and found lesions of each patient."""
    from medfocal.evaluate import evaluate_case, evaluate_cases
    from medfocal.evaluate.froc import read_froc
    from medfocal.evaluate.judge import judge

    results = [
        evaluate_case(
            case.label, p, case.grid.affine, case=case.case.name, patient=case.case.patient, protocol=protocol
        )
        for case, p in found
    ]
    evaluation = evaluate_cases(results, protocol)
    (point,) = read_froc(evaluation.froc.curve, (RATE,), num_lesions=evaluation.num_lesions)
    patients: dict[str, list[int]] = {}
    for result in results:
        counts = patients.setdefault(result.patient, [0, 0])
        counts[0] += int((judge(result, protocol).lesion_confidence >= point.threshold).sum())
        counts[1] += len(result.lesions)
    marked = [(case.label > 0, p) for case, p in found if case.label.any()]
    dice = [np.mean([_dice(lesions, p >= cut) for lesions, p in marked]) for cut in DICE_CUTS]
    return {
        "lesion_sensitivity": point.lesion_sensitivity,
        "cpm": evaluation.froc.cpm,
        "best_dice": float(max(dice)),
        "num_lesions": evaluation.num_lesions,
        "num_cases": len(found),
        "patients": patients,
    }


def _dice(a: Any, b: Any) -> float:
    return 2.0 * float((a & b).sum()) / float(a.sum() + b.sum())


def worker(work: Path, tasks: Sequence[tuple[str, str, int]], lock: Any) -> None:
    """Do tasks one after the other; a line of results each."""
    for noise, arm, seed in tasks:
        result = run(work, noise, arm, seed)
        with lock, (work / "results.jsonl").open("a") as file:
            file.write(json.dumps(result) + "\n")
        print(
            f"{noise}, {arm}, seed {seed}: {result['lesion_sensitivity']:.2f} at {RATE:g} false positive per case, "
            f"{result['seconds']:.0f} s",
            flush=True,
        )


def _is_idle(noise: str, arm: str) -> bool:
    """Whether an arm with readers would only repeat what it is compared with, as all readers agree."""
    return noise == "none" and any(setting.startswith("annotations=") for setting in (ARMS | EXTRA_ARMS)[arm])


def results(work: Path) -> Results:
    """What has been run."""
    path = work / "results.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
    return {(line["noise"], line["arm"], line["seed"]): line for line in lines}


def difference(runs: Sequence[dict[str, Any]], base: Sequence[dict[str, Any]]) -> tuple[float, float, float]:
    """Difference of sensitivity and its 95 % interval: bootstrap of seeds and of patients, both paired."""
    patients = sorted(base[0]["patients"])
    counts = np.array([[[r["patients"][p] for p in patients] for r in group] for group in (runs, base)], float)
    hits, lesions = counts[..., 0], counts[..., 1]  # (2, seeds, patients)
    rng = np.random.default_rng(0)

    def rates(seeds: Any, drawn: Any) -> Any:
        found, there = (values[:, seeds][..., drawn].sum(axis=(1, 2)) for values in (hits, lesions))
        return found / np.maximum(there, 1)

    draws = [
        rates(rng.integers(len(base), size=len(base)), rng.integers(len(patients), size=len(patients)))
        for _ in range(4000)
    ]
    apart = np.subtract(*np.transpose(draws))
    low, high = np.quantile(apart, [0.025, 0.975])
    value = np.subtract(*rates(np.arange(len(base)), np.arange(len(patients))))
    return float(value), float(low), float(high)


def is_clear(low: float, high: float) -> bool:
    """Whether an interval, as the page shows it, leaves out 0."""
    return round(low, 2) > 0 or round(high, 2) < 0


#: Paragraphs; each becomes lines of 120 letters.
INTRODUCTION = """
Phantoms (`medfocal phantom output=phantoms num_cases={num_cases} seed={seed} prevalence={prevalence}`): the
training split has corrupted labels; the {num_test_cases} other cases with their true {num_lesions} lesions are the
test. {num_readers} readers err independently in the same way. Arms without a fusion believe the first, so the arms
with readers know more. All arms start at the prior bias and have the same network, patches and budget; no epoch is
chosen on the test set. The budget is small, so what an arm gains may be speed. Focal arms have gamma 1, as the
quickstart; prevalence, network and budget were set in trials of focal loss and cross-entropy on right labels of these
phantoms, in which gamma 2 and cross-entropy were tried too. Settings beside the quickstart's: `{settings}`.

Lesion sensitivity at 1 false positive per case, a figure a seed; then, over all seeds, CPM, the mean voxel Dice at its
best cut, and the difference of sensitivity to {base} with a 95 % interval (bootstrap of seeds and of test patients,
paired by both; each run's threshold held). Bold where the interval excludes 0; with {num_comparisons} comparisons a
table expect one bold by chance, and three seeds say little of how seeds vary, so intervals are rather too narrow.
"""


def render(work: Path, seeds: Sequence[int], noises: Sequence[str], command: str) -> str:
    """The page."""
    found = {key: run for key, run in results(work).items() if key[0] in noises and key[1] in ARMS and key[2] in seeds}
    any_run = next(iter(found.values()))
    lines = [
        "# Wrong labels in training, right ones in the test",
        "",
        f"`{command}` makes this page.",
        "",
        *_paragraphs(
            INTRODUCTION,
            num_cases=NUM_CASES,
            seed=PHANTOM_SEED,
            prevalence=PREVALENCE,
            num_test_cases=any_run["num_cases"],
            num_lesions=any_run["num_lesions"],
            num_readers=NUM_READERS,
            settings=" ".join(COMMON[1:-1]),
            base=BASE,
            num_comparisons=len(ARMS) - 1,
        ),
    ]
    kinds = [noise for noise in noises if any(key[0] == noise for key in found)]
    lines += ["## In short", "", *_summary(found, seeds, [noise for noise in kinds if noise != "none"]), ""]
    for noise in kinds:
        lines += [f"## {noise}", "", *_severity_lines(work, noise), ""]
        lines += ["| arm | " + " | ".join(f"seed {s}" for s in seeds) + " | mean | CPM | best Dice | difference |"]
        lines += ["| --- |" + " --- |" * (len(seeds) + 4)]
        shown = [arm for arm in ARMS if not _is_idle(noise, arm)]
        lines += [_row(arm, noise, found, seeds) for arm in shown]
        lines.append("")
    seconds = np.mean([r["seconds"] for r in found.values()])
    lines += [
        f"{len(found)} trainings of {seconds:.0f} s on average, a thread each, two at a time beside other work;",
        f"torch {_version('torch')}, {platform.machine()}, not measured on a GPU.",
        "",
    ]
    return "\n".join(lines)


def _paragraphs(text: str, **facts: Any) -> Iterable[str]:
    for paragraph in text.strip().split("\n\n"):
        yield textwrap.fill(
            paragraph.replace("\n", " ").format(**facts), 120, break_long_words=False, break_on_hyphens=False
        )
        yield ""


def _runs(found: Results, noise: str, arm: str, seeds: Sequence[int]) -> list[dict[str, Any]]:
    """Runs of an arm, or none where a seed is missing."""
    runs = [found.get((noise, arm, seed)) for seed in seeds]
    return [run for run in runs if run is not None] if None not in runs else []


def _summary(found: Results, seeds: Sequence[int], kinds: Sequence[str]) -> Iterable[str]:
    """A row an arm: how far it was from the base, over the kinds of error."""
    yield f"Difference of lesion sensitivity to {BASE} over the {len(kinds)} kinds of error, and where it is clear:"
    yield ""
    yield "| arm | least | most | clearly better | clearly worse |"
    yield "| --- | --- | --- | --- | --- |"
    for arm in ARMS:
        apart = {
            noise: difference(_runs(found, noise, arm, seeds), _runs(found, noise, BASE, seeds))
            for noise in kinds
            if arm != BASE and _runs(found, noise, arm, seeds)
        }
        if len(apart) < len(kinds):
            continue
        values = [value for value, _, _ in apart.values()]
        better = [noise for noise, (_, low, high) in apart.items() if is_clear(low, high) and low > 0]
        worse = [noise for noise, (_, low, high) in apart.items() if is_clear(low, high) and high < 0]
        yield f"| {arm} | {min(values):+.2f} | {max(values):+.2f} | {', '.join(better)} | {', '.join(worse)} |"


def _row(arm: str, noise: str, found: Results, seeds: Sequence[int]) -> str:
    runs = [found.get((noise, arm, seed)) for seed in seeds]
    cells = ["" if r is None else f"{r['lesion_sensitivity']:.2f}" for r in runs]
    there = [r for r in runs if r is not None]
    if not there:
        return f"| {arm} | {' | '.join(cells)} | not run | | | |"
    means = [np.mean([r[key] for r in there]) for key in ("lesion_sensitivity", "cpm", "best_dice")]
    complete, base = _runs(found, noise, arm, seeds), _runs(found, noise, BASE, seeds)
    apart = ""
    if arm != BASE and complete and base:
        value, low, high = difference(complete, base)
        mark = "**" if is_clear(low, high) else ""
        apart = f"{mark}{value:+.2f} ({low:+.2f} to {high:+.2f}){mark}"
    return f"| {arm} | {' | '.join(cells)} | {' | '.join(f'{m:.2f}' for m in means)} | {apart} |"


def _severity_lines(work: Path, noise: str) -> Iterable[str]:
    corruption = corruptions()[noise]
    if corruption is None:
        return ["The labels are right; all readers agree."]
    found = annotated(work, noise)[1]
    dice = [s.voxel_dice for s in found if not math.isnan(s.voxel_dice)]
    lesions, omitted = sum(s.num_lesions for s in found), sum(s.num_omitted for s in found)
    spurious = sum(s.num_spurious for s in found)
    return [
        f"`{corruption}`",
        "",
        f"Labels of the first reader: voxel Dice {np.mean(dice):.2f} with the truth, {omitted} of {lesions} lesions",
        f"omitted, {spurious} invented in {len(found)} cases.",
    ]


def _version(package: str) -> str:
    import importlib.metadata

    return importlib.metadata.version(package)


def main(words: list[str]) -> None:
    """Run what is missing and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--noises", default="", help="kinds of error to run, comma-separated; default all")
    parser.add_argument("--extras", action="store_true", help="more arms, and right labels for comparison")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--work", type=Path, default=ROOT / "runs/benchmark-annotations")
    parser.add_argument("--output", type=Path, default=ROOT / "docs/benchmarks/annotations-cpu.md")
    parser.add_argument("--render", action="store_true", help="write the page of what has been run, run nothing")
    options = parser.parse_args(words)
    seeds = [int(seed) for seed in options.seeds.split(",")]
    noises = options.noises.split(",") if options.noises else list(corruptions())
    if options.extras:
        ARMS.update(EXTRA_ARMS)
    elif not options.noises:
        noises.remove("none")
    options.work.mkdir(parents=True, exist_ok=True)
    os.environ["OMP_NUM_THREADS"] = "1"
    if not options.render:
        for noise in noises:
            annotated(options.work, noise)
        done = results(options.work)
        tasks = [(noise, arm, seed) for seed in seeds for noise in noises for arm in ARMS]
        tasks = [task for task in tasks if task not in done and not _is_idle(*task[:2])]
        context = multiprocessing.get_context("spawn")
        lock = context.Lock()
        parts = [tasks[rank :: options.jobs] for rank in range(options.jobs)]
        processes = [context.Process(target=worker, args=(options.work, part, lock)) for part in parts]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        if any(process.exitcode for process in processes):
            sys.exit("a worker failed; what was finished is kept")
    options.output.parent.mkdir(parents=True, exist_ok=True)
    command = " ".join(["python tests/benchmarks/annotations.py", *(["--extras"] if options.extras else [])])
    options.output.write_text(render(options.work, seeds, noises, command))
    print(f"wrote {options.output}")


if __name__ == "__main__":
    main(sys.argv[1:])
