"""Figures that the README repeats must be those of the page they come from."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text("utf-8")
PAGE = (ROOT / "docs/benchmarks/loss-cpu.md").read_text("utf-8")

#: Columns of the README's table: the problem's heading in the page, and its plain loss.
PROBLEMS = {1: "(2, 2, 96, 96, 96) softmax", 2: "(2, 4, 64, 64, 64) softmax", 3: "(1, 1, 128, 128, 128) sigmoid"}
METHODS = {
    "medfocal `focal_loss`, compiled": "medfocal focal_loss, compiled",
    "medfocal `focal_loss`, eager": "medfocal focal_loss, eager",
    "MONAI 1.6.1 `FocalLoss`": "MONAI FocalLoss",
}


def cells(text, name):
    (line,) = re.findall(rf"^\| {re.escape(name)} \|(.+)\|$", text, re.MULTILINE)
    return [cell.strip() for cell in line.split("|")]


def section(heading):
    return re.split(r"^## ", PAGE.split(f"## {heading}\n")[1], maxsplit=1, flags=re.MULTILINE)[0]


def same(shown, measured):
    """Whether numbers are the same at the digits shown."""
    digits = len(shown.partition(".")[2])
    return shown == f"{float(measured):.{digits}f}"


@pytest.mark.parametrize("row", METHODS)
@pytest.mark.parametrize("column", PROBLEMS)
def test_ratios_of_the_loss_are_those_of_the_page(row, column):
    shown = cells(README, row)[column - 1].split(", ")
    measured = cells(section(f"{PROBLEMS[column]}, float32, 1 thread"), METHODS[row])[-2:]
    assert len(shown) == 2
    assert all(same(a, b.partition(";")[0]) for a, b in zip(shown, measured, strict=True)), (shown, measured)


@pytest.mark.parametrize("row", METHODS)
def test_peaks_of_the_loss_are_those_of_the_page(row):
    shown = cells(README, row)[3].split(" to ")
    found = [
        float(cell)
        for problem in PROBLEMS.values()
        for cell in cells(section(f"Memory, {problem}, float32"), METHODS[row])[:2]
    ]
    assert same(shown[0], min(found)), (shown, found)
    assert same(shown[-1], max(found)), (shown, found)


EVALUATION = (ROOT / "docs/benchmarks/evaluate-cpu.md").read_text("utf-8")


def ratios_of_files(name):
    return sorted(float(ratio) for ratio in cells(EVALUATION, name)[-1].split(";"))


def test_ratios_of_the_evaluation_are_those_of_the_page():
    """The worst of two runs beside labelled volumes; of panoptica both; of files the middle of three rounds."""
    said = re.search(
        r"in ([\d.]+) \(case A\) and ([\d.]+) \(case B\).*?in\s+([\d.]+) of panoptica's;"
        r" 1,000 pairs of files in ([\d.]+) times.*?with surfaces in ([\d.]+)\.",
        README,
        re.DOTALL,
    )
    for case, shown in (("A", said[1]), ("B", said[2])):
        row = cells(EVALUATION, f"{case}: parts, overlaps and judge / cc3d of both masks, bincount of all voxels")
        assert same(shown, max(float(cell.split()[0]) for cell in row[2:4]))
    assert all(same(said[3], ratio) for ratio in cells(EVALUATION, "ratio of lower quartiles"))
    assert same(said[4], ratios_of_files("evaluating, surface=false")[1])
    assert same(said[5], ratios_of_files("evaluating, surface=true")[1])


def test_coverage_of_pooled_intervals_is_that_of_the_page():
    page = (ROOT / "docs/benchmarks/interval-coverage.md").read_text("utf-8")
    lowest = [float(line.split("|")[3]) for line in page.splitlines() if "lesions pooled |" in line]
    assert f"in as few as {100 * min(lowest):.0f} % of studies" in README


DATA = (ROOT / "docs/benchmarks/data-cpu.md").read_text("utf-8")
PATCHES = DATA.split("## Patches of 64^3")[1].split("\n## ")[0]


def test_patches_from_the_cache_are_those_of_the_page():
    said = re.search(
        r"([\d,]+) patches of 64\^3 a second and core, (\d+) times\s+as many as MONAI's `CacheDataset`.*?"
        r"\((\d+) times as many as the leanest.*?from (\d+) MB that all",
        README,
        re.DOTALL,
    )
    own = cells(PATCHES, "medfocal, patch by patch")
    assert int(said[1].replace(",", "")) == int(own[1])
    assert int(said[4]) == int(own[5])
    plain, leanest = (
        cells(PATCHES, f"MONAI CacheDataset{tail}")[2].split(";")[0]
        for tail in ("", ", indices kept, plain tensors, no copies")
    )
    assert (int(said[2]), int(said[3])) == (int(float(plain)), int(float(leanest)))


def test_visits_are_those_of_the_page():
    said = re.search(r"visit each (\d+) to (\d+) times; drawn by voxels, (\d+) never", README)
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in DATA.splitlines() if "alike" in line]
    rows = [row for row in rows if len(row) == 6]
    alike = [[int(float(n)) for n in row[3].split("/")] for row in rows if row[2] == "lesions alike"]
    assert (int(said[1]), int(said[2])) == (min(row[0] for row in alike), max(row[2] for row in alike))
    assert int(said[3]) == sum(int(row[4]) for row in rows if row[2] == "voxels alike")


def test_augmentation_takes_no_more_than_the_readme_says():
    page = (ROOT / "docs/benchmarks/augment-cpu.md").read_text("utf-8")
    ratios = {}
    for channels in (1, 4):
        row = cells(page.split("## Each kind")[0], str(channels))
        ratios[channels] = [float(cell.split("/")[1]) for cell in row[-2:]]
    assert "in a third\n" in README
    assert "of batchgeneratorsv2's processor time and less than a quarter of MONAI's (one channel; with four" in README
    assert "in a half and two fifths)" in README
    assert ratios[1][0] >= 3
    assert ratios[1][1] > 4
    assert ratios[4][0] >= 2
    assert ratios[4][1] >= 2.5
