"""The page of the benchmark of prediction."""

from __future__ import annotations

import datetime as dt
import importlib.metadata
import os
import platform
import re
import statistics
import subprocess
import textwrap
from pathlib import Path
from typing import Any

from predict_problems import (
    BRAIN,
    LARGE,
    MONAI,
    MONAI_4,
    MONAI_SUMS,
    MOST_MB,
    NETWORK,
    NNUNET,
    NNUNET_CROPPED,
    OURS,
    OURS_4,
    OURS_AUTO,
    SMALL,
)

Figures = dict[str, Any]
#: Least and wished for, as shares of the other's.
TIME, WHOLE, MEMORY = (0.3, 0.1), (0.7, 0.5), {2: (0.6, 0.3), 25: (0.5, 0.2)}


def outside(row: dict[str, list[float]]) -> list[float]:
    """Seconds outside the network, a round."""
    return [whole - inside for whole, inside in zip(row["seconds"], row["network"], strict=True)]


def sums(row: dict[str, list[float]]) -> list[float]:
    """Seconds outside the network until the mean logits are there, a round."""
    return [whole - after for whole, after in zip(outside(row), row["after"], strict=True)]


def quarter(values: list[float]) -> float:
    """Lower quartile."""
    return statistics.quantiles(values, n=4, method="inclusive")[0]


def quartiles(values: list[float]) -> str:
    """The three of them, for a cell."""
    return " / ".join(f"{value:.3g}" for value in statistics.quantiles(values, n=4, method="inclusive"))


def ratios(own: list[float], peer: list[float]) -> tuple[float, float]:
    """Ours as a share of the other's: of lower quartiles, and the median of the rounds."""
    of_rounds = statistics.median(a / b for a, b in zip(own, peer, strict=True))
    return quarter(own) / quarter(peer), of_rounds


def shown(pair: tuple[float, float]) -> str:
    return "; ".join(f"{value:.3f}" if value < 0.1 else f"{value:.2f}" for value in pair)


def table(heads: list[str]) -> list[str]:
    """The first two lines of a table."""
    return ["| " + " | ".join(heads) + " |", "| --- |" + " --- |" * (len(heads) - 1)]


def prose(*sentences: str) -> list[str]:
    """A paragraph and an empty line."""
    return [*textwrap.wrap(" ".join(sentences), 118, break_long_words=False, break_on_hyphens=False), ""]


def verdict(met: bool) -> str:
    return "yes" if met else "**no**"


def render_targets(found: Figures) -> list[str]:
    """A row a target; of several ratios the worst counts."""
    lines = ["## Targets", "", *table(["", "must", "aim", "found", "must met", "aim met"])]

    def add(what: str, bounds: tuple[float, float], share: float) -> None:
        must, aim = bounds
        verdicts = f"{verdict(share <= must)} | {verdict(share <= aim)}"
        lines.append(f"| {what} | <= {must:g} | <= {aim:g} | {share:.3f} | {verdicts} |")

    for problem in (SMALL, LARGE):
        times = found[f"times, {problem.name}, 2"]
        share = max(
            value
            for own, peer in ((OURS, MONAI), (OURS_4, MONAI_4))
            if peer in times
            for value in ratios(outside(times[own]), outside(times[peer]))
        )
        add(f"time outside the network, C=2, {problem.title}, against MONAI", TIME, share)
    for problem in NETWORK:
        times = found[f"times, {problem.name}, 2"]
        share = max(ratios(times[OURS_AUTO]["seconds"], times[NNUNET]["seconds"]))
        add(f"whole case, {problem.name} in a background of 0, against nnU-Net", WHOLE, share)
    for problem in (SMALL, LARGE):
        for count, bounds in MEMORY.items():
            memory = found[f"memory, {problem.name}, {count}"]
            whole = memory[MONAI] is not None
            peer = memory[MONAI if whole else MONAI_SUMS]
            if peer is not None:
                against = MONAI if whole else f"{MONAI_SUMS} (all of it does not fit)"
                add(f"peak memory, C={count}, {problem.title}, against {against}", bounds, memory[OURS] / peer)
    bounded = found["bounded"]["peak_mb"]
    cells = f"<= {MOST_MB} MB |  | {bounded:.0f} MB | {verdict(bounded <= MOST_MB)} |  |"
    lines.append(f"| {LARGE.title}, C={LARGE.channels[-1]}, `max_memory_mb={MOST_MB}`, image included | {cells}")
    lines.append("| GPU busy share over 50 cases | >= 0.85 | >= 0.95 | not measured on a GPU |  |  |")
    return [*lines, ""]


def render_overhead(found: Figures) -> list[str]:
    """A table a volume and number of classes."""
    lines = ["## Time outside the network", ""]
    lines += prose(
        "The network gives each voxel's intensity times a weight plus a bias, one of each a class, in float32, and",
        "sees noise; its time is taken off. Windows overlap by half and have Gaussian weights. medfocal gives the",
        "probability of any lesion of each voxel and its class where that is at least a half. MONAI",
        "(`sliding_window_inference`) gives mean logits, of which softmax and argmax are taken. nnU-Net",
        "(`predict_sliding_window_return_logits` without mirroring, then its own argmax) gives the class only, of",
        "logits that are summed in half precision. medfocal averages probabilities. Nothing is constant, so nothing is",
        "cropped or skipped. It is checked that all call the same voxels lesion, within 1 %.",
    )
    lines += prose(
        "Seconds are the processor's, which other work on the machine disturbs less than the clock's: lower quartile /",
        "median / upper quartile of the rounds, in which the programs take turns; a first round is not counted. Those",
        "after the sums are of what follows the last window, which medfocal does on the way. The last columns are",
        "medfocal's seconds, with one window at once, as a share of the row's: of lower quartiles, then the median",
        "within a round; first of all, then without what follows the sums.",
    )
    for problem in (SMALL, LARGE):
        for count in problem.timed_channels:
            times = found[f"times, {problem.name}, {count}"]
            lines += [f"### {problem.title}, windows of {problem.window}^3, C={count}", ""]
            lines += table(["", "s outside the network", "of them after the sums", "s in it", "share", "share of sums"])
            for name, row in times.items():
                is_ours = name in {OURS, OURS_4}
                after = "" if is_ours else quartiles(row["after"])
                cells = [quartiles(outside(row)), after, quartiles(row["network"])]
                peers = (outside(row), sums(row))
                cells += ["" if is_ours else shown(ratios(outside(times[OURS]), peer)) for peer in peers]
                lines.append(f"| {name} | {' | '.join(cells)} |")
            lines.append("")
    return lines


def render_memory(found: Figures) -> list[str]:
    """A row a program, a column a number of classes."""
    lines = ["## Peak memory beyond program, model and image", ""]
    lines += prose(
        "Each in a fresh process: most resident memory (`VmHWM`, reset before) less what was resident when the network",
        "and the image were there and one window had been predicted, in MB of 1e6 bytes. The same network; a real one",
        "adds what it computes, to all alike. In brackets medfocal's share of it.",
    )
    for problem in (SMALL, LARGE):
        lines += [f"### {problem.title} (image {problem.image_mb:.0f} MB), windows of {problem.window}^3", ""]
        lines += table(["", *(f"C={count}" for count in problem.channels)])
        columns = [found[f"memory, {problem.name}, {count}"] for count in problem.channels]
        for row in problem.memory_rows:
            cells = []
            for column in columns:
                value = column[row.name]
                share = "" if row.program == "medfocal" or value is None else f" ({column[OURS] / value:.2f})"
                cells.append("not enough memory here" if value is None else f"{value:.0f}{share}")
            lines.append(f"| {row.name} | {' | '.join(cells)} |")
        lines.append("")
    bounded = found["bounded"]
    lines += prose(
        f"With `max_memory_mb={MOST_MB}` the {LARGE.title} case and {LARGE.channels[-1]} classes took",
        f"{bounded['peak_mb']:.0f} MB at most, the image included, and {bounded['seconds']:.0f} s,",
        f"{bounded['network']:.0f} of them in the network.",
    )
    return lines


def render_whole(found: Figures) -> list[str]:
    """A table a case."""
    lines = ["## Whole cases with a background of 0", ""]
    lines += prose(
        "A U-Net of five levels with 16 to 256 features, random weights and two classes, the same for all, on an",
        f"ellipsoid of noise in zeros, {BRAIN.title} voxels, windows of {BRAIN.window}^3. The brain's box is 70, 75",
        "and 66 % of the sides, as of a skull-stripped FLAIR image in its template's grid; the head's is 90 %.",
        "medfocal crops the box by itself and skips windows in which nothing varies. nnU-Net's predictor is given the",
        "whole array, and in another row the box, which is what its preprocessing would leave; that does not count the",
        "preprocessing. On a CPU nnU-Net and MONAI compute in float32, medfocal in bfloat16 where the processor has it",
        "(`precision=auto`); the float32 row shows what is due to cropping and skipping alone.",
    )
    for problem in NETWORK:
        times = found[f"times, {problem.name}, 2"]
        heads = ["", "s", "s in the network", "share of nnU-Net's", "share of nnU-Net's, cropped"]
        lines += [f"### {problem.name.capitalize()}", "", *table(heads)]
        for name, row in times.items():
            shares = [
                "" if peer == name else shown(ratios(row["seconds"], times[peer]["seconds"]))
                for peer in (NNUNET, NNUNET_CROPPED)
            ]
            cells = [quartiles(row["seconds"]), quartiles(row["network"]), *shares]
            lines.append(f"| {name} | {' | '.join(cells)} |")
        lines.append("")
    return lines


def render(found: Figures, *, command: str, peer: str) -> str:
    """The page."""
    load_in_words = f"load {found['load']:.1f} before the start and {os.getloadavg()[0]:.1f} at the end"
    lines = [
        "# Prediction beside MONAI and nnU-Net, CPU",
        "",
        f"`{command}` made this page on {dt.datetime.now(dt.UTC).date()}.",
        *prose(
            f"{versions(peer)}. {machine()}, {load_in_words}, one thread each.",
            "Not measured on a GPU.",
        ),
        *render_targets(found),
        *render_overhead(found),
        *render_memory(found),
        *render_whole(found),
    ]
    return "\n".join(lines).rstrip() + "\n"


def versions(peer: str) -> str:
    """Of what decides times, in both environments."""
    ask = "import importlib.metadata as m, sys; print(*(f'{n} {m.version(n)}' for n in sys.argv[1:]), sep=', ')"
    asked = subprocess.run([peer, "-c", ask, "torch", "nnunetv2"], capture_output=True, text=True, check=True)
    packages = [f"{name} {importlib.metadata.version(name)}" for name in ("torch", "monai", "numpy")]
    own = ", ".join([f"Python {platform.python_version()}", *packages])
    return f"{own}; beside nnU-Net: {asked.stdout.strip()}"


def machine() -> str:
    """Processors in words."""
    info = Path("/proc/cpuinfo")
    model = re.search(r"model name\s*:\s*(.+)", info.read_text()) if info.exists() else None
    return f"{model[1] if model else platform.processor()}, {os.cpu_count()} cores"
