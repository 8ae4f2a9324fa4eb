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
