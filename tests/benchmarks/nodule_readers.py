"""Four readers of the same lung nodules: how they agree, and what each fusion makes of them.

    python tests/benchmarks/nodule_readers.py DATA_FOLDER [PAGE.md] [FIGURE.png]

Writes a page and a figure. DATA_FOLDER holds `nodule_raters/`: an `index.json` and masks `<nodule>_r1.nii.gz` to
`_r4.nii.gz`, rasterised from the contours of LIDC-IDRI (CC BY 3.0) and cropped round each nodule.
"""

from __future__ import annotations

import json
import sys
import textwrap
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medfocal.annotations.agreement import reader_agreement
from medfocal.annotations.confusion import MarkCounts, ReaderRates, estimate_rates, smoothing_matrix
from medfocal.annotations.fusion import Staple, intersection, majority, mean_shares, staple, union
from medfocal.annotations.smoothing import SoftBoundary
from medfocal.evaluate.overlap import voxel_dice
from medfocal.evaluate.readers import fuse
from medfocal.volume import Volume, read_labels

ROOT = Path(__file__).parents[2]
WIDTH_MM = 2.0
NUM_READERS = 4


@dataclass(frozen=True, eq=False)
class Nodule:
    """A nodule and what becomes of its readers' marks.

    Attributes:
        name: Patient and number in LIDC-IDRI.
        grid: Grid of its crop.
        readers: Marks, uint8 (4, I, J, K).
        hard: Label of each fusion that gives one.
        mean: Share of the readers, (I, J, K).
        soft: Mean of each reader's marks with a border that is a ramp.
        staple: What STAPLE makes of them.
    """

    name: str
    grid: Volume
    readers: NDArray[np.uint8]
    hard: dict[str, NDArray[np.uint8]]
    mean: NDArray[np.float32]
    soft: NDArray[np.float32]
    staple: Staple

    @property
    def pair_dice(self) -> list[float]:
        """Voxel Dice of each of the six pairs."""
        return [pair.voxel_dice for pair in reader_agreement(self.readers, self.grid.affine)]

    @property
    def overlap(self) -> float:
        """Intersection over union of all four."""
        return float(self.hard["intersection"].sum() / self.hard["union"].sum())

    @property
    def dice_with_others(self) -> list[float]:
        """Voxel Dice of each reader with what more than half of the other three marked."""
        marks = self.readers != 0
        found = []
        for number, mark in enumerate(marks):
            others = fuse([other for place, other in enumerate(marks) if place != number])
            found.append(voxel_dice(int((mark & others).sum()), int(others.sum()), int(mark.sum())))
        return found

    def volume_ml(self, shares: NDArray[Any]) -> float:
        """Expected volume of shares, or volume of a label."""
        return float(shares.sum(dtype=np.float64)) * self.grid.voxel_volume_ml


def main(data: Path, page: Path, figure: Path) -> None:
    """Measure, write the page and draw the figure."""
    nodules = sorted(read_nodules(data / "nodule_raters"), key=lambda nodule: nodule.overlap)
    counts = MarkCounts()
    for nodule in nodules:
        counts.add(nodule.readers)
    page.write_text("\n".join(lines_of(nodules, estimate_rates(counts, 2))), encoding="utf-8")
    draw(nodules, figure)
    print(f"wrote {page} and {figure}")


def read_nodules(folder: Path) -> list[Nodule]:
    """Read all nodules and see that the voxel counts are those of the index."""
    found = []
    for entry in json.loads((folder / "index.json").read_text("utf-8")):
        volumes = [read_labels(folder / f"{entry['name']}_r{number + 1}.nii.gz") for number in range(NUM_READERS)]
        readers = np.stack([volume.array for volume in volumes]).astype(np.uint8)
        fusions = (("intersection", intersection), ("majority", majority), ("union", union))
        hard = {name: fusion(readers, num_classes=2) for name, fusion in fusions}
        votes = readers.sum(axis=0)
        counted = [*readers.sum(axis=(1, 2, 3)).tolist(), int((votes > 0).sum()), int((votes == NUM_READERS).sum())]
        assert counted == [*entry["vox"], entry["union"], entry["inter"]], entry["name"]
        grid = volumes[0]
        smooth = SoftBoundary(width_mm=WIDTH_MM)
        image = np.zeros((1, *grid.shape), np.float32)  # this smoothing looks at no image
        soft = [smooth(reader, num_classes=2, spacing_mm=grid.spacing_mm, image=image)[1] for reader in readers]
        found.append(
            Nodule(
                name=entry["name"].removeprefix("LIDC-IDRI-"),
                grid=grid,
                readers=readers,
                hard=hard,
                mean=mean_shares(readers, num_classes=2)[1],
                soft=np.mean(soft, axis=0),
                staple=staple(readers, num_classes=2),
            )
        )
    return found


def lines_of(nodules: list[Nodule], rates: ReaderRates) -> list[str]:
    """The page."""
    num_patients = len({nodule.name.split("_")[0] for nodule in nodules})
    sizes = np.array([nodule.readers.sum(axis=(1, 2, 3)) for nodule in nodules])
    largest = np.bincount(sizes.argmax(axis=1), minlength=NUM_READERS)
    return [
        "# Four readers of the same lung nodules",
        "",
        "`python tests/benchmarks/nodule_readers.py DATA_FOLDER` makes this page and its figure.",
        "",
        *paragraph(
            f"{len(nodules)} nodules of {num_patients} patients of LIDC-IDRI (CC BY 3.0), each marked by four "
            "radiologists; masks only, rasterised from their contours and cropped round the nodule. **Reader 1 of one "
            "nodule is not the same person as reader 1 of another**: the data do not say who read what. So a reader "
            "here is a place in the list, and a rate of a place is nobody's skill. Nor is the list in random order: "
            f"the largest of the four marks stands at place 1, 2, 3, 4 in {', '.join(map(str, largest))} nodules."
        ),
        "![Marks, mean, STAPLE and soft borders of six nodules](../images/nodule_readers.png)",
        "",
        *_agreement(nodules),
        *_volumes(nodules),
        *_votes(nodules),
        *_rates(nodules, rates),
    ]


def paragraph(text: str) -> list[str]:
    """The lines of a paragraph and the empty one after it."""
    return [*textwrap.wrap(text, 120, break_long_words=False, break_on_hyphens=False), ""]


def table(columns: list[str], rows: list[list[str]]) -> list[str]:
    """The lines of a table and the empty one after it."""
    return [f"| {' | '.join(cells)} |" for cells in (columns, ["---"] * len(columns), *rows)] + [""]


def _agreement(nodules: list[Nodule]) -> list[str]:
    pairs = np.array([nodule.pair_dice for nodule in nodules])
    others = np.array([nodule.dice_with_others for nodule in nodules])
    rows = [
        [
            nodule.name,
            " x ".join(f"{size:.3g}" for size in nodule.grid.spacing_mm),
            ", ".join(f"{nodule.volume_ml(reader):.2f}" for reader in nodule.readers),
            *(f"{value:.2f}" for value in nodule.pair_dice),
            f"{nodule.overlap:.2f}",
            f"{min(nodule.dice_with_others):.2f} to {max(nodule.dice_with_others):.2f}",
        ]
        for nodule in nodules
    ]
    columns = ["nodule", "voxel in mm", "volumes of the readers in ml", "Dice 1-2", "1-3", "1-4", "2-3", "2-4", "3-4"]
    return [
        "## Agreement",
        "",
        *paragraph(
            f"Voxel Dice of two readers: mean {pairs.mean():.2f}, from {pairs.min():.2f} to {pairs.max():.2f} over "
            f"{pairs.size} pairs. Of a reader with what more than half of the other three marked: mean "
            f"{others.mean():.2f}, from {others.min():.2f} to {others.max():.2f}; this is the bar for a network that "
            "is judged in the same way."
        ),
        *table([*columns, "intersection/union", "Dice of a reader with the others"], rows),
    ]


def _volumes(nodules: list[Nodule]) -> list[str]:
    def row(name: str, volumes: dict[str, float], iterations: str) -> list[str]:
        ratio = volumes["union"] / volumes["intersection"]
        return [name, *(f"{volume:.2f}" for volume in volumes.values()), f"{ratio:.1f}", iterations]

    volumes = [
        {
            "intersection": nodule.volume_ml(nodule.hard["intersection"]),
            "majority": nodule.volume_ml(nodule.hard["majority"]),
            "mean": nodule.volume_ml(nodule.mean),
            "soft mean": nodule.volume_ml(nodule.soft),
            "STAPLE": nodule.volume_ml(nodule.staple.shares[1]),
            "union": nodule.volume_ml(nodule.hard["union"]),
        }
        for nodule in nodules
    ]
    total = {name: sum(each[name] for each in volumes) for name in volumes[0]}
    problems = [f"{nodule.name} ({nodule.staple.problem})" for nodule in nodules if nodule.staple.problem is not None]
    rows = [
        row(nodule.name, each, str(nodule.staple.num_iterations)) for nodule, each in zip(nodules, volumes, strict=True)
    ]
    return [
        "## Volume by fusion",
        "",
        *paragraph(
            "In ml; of shares the expected volume, which for the mean is the mean of the four volumes. The majority "
            "needs three of four. The soft mean is the mean of the readers' marks, each with a border that is a ramp "
            f"of {WIDTH_MM:g} mm (`SoftBoundary`); it does not show across slices so far apart or farther. STAPLE "
            f"was not believed for {len(problems)} of {len(nodules)} nodules"
            f"{': ' if problems else ''}{'; '.join(problems)}."
        ),
        *table(
            ["nodule", *total, "union/intersection", "STAPLE's iterations"],
            [*rows, row("all", total, "")],
        ),
    ]


def _votes(nodules: list[Nodule]) -> list[str]:
    believed = [nodule for nodule in nodules if nodule.staple.problem is None]
    votes = np.concatenate([nodule.readers.sum(axis=0).ravel() for nodule in nodules])
    soft = np.concatenate([nodule.soft.ravel() for nodule in nodules])
    staple_votes = np.concatenate([nodule.readers.sum(axis=0).ravel() for nodule in believed])
    shares = np.concatenate([nodule.staple.shares[1].ravel() for nodule in believed])
    rows = []
    for number in range(NUM_READERS + 1):
        share = shares[staple_votes == number]
        rows.append(
            [
                str(number),
                str(int((votes == number).sum())),
                f"{number / NUM_READERS:g}",
                str(int(2 * number > NUM_READERS)),
                f"{share.mean():.2f}",
                f"{np.mean(share >= 0.5):.0%}",
                f"{soft[votes == number].mean():.2f}",
            ]
        )
    two = shares[staple_votes == 2]
    columns = ["readers who marked it", "voxels", "mean", "majority", "STAPLE, mean", "STAPLE .5 or more", "soft mean"]
    return [
        "## What the fusions say of a voxel, by the number of readers who marked it",
        "",
        *paragraph(
            f"STAPLE and the majority part where two of four marked: STAPLE gives {np.mean(two >= 0.5):.0%} of these "
            "voxels a probability of .5 or more, the majority none."
        ),
        *table(columns, rows),
    ]


def _rates(nodules: list[Nodule], rates: ReaderRates) -> list[str]:
    readers = [
        [str(number), f"{confusion[1, 1]:.3f}", f"{confusion[0, 1]:.4f}"]
        for number, confusion in enumerate(rates.confusion, start=1)
    ]
    matrices = [
        [fusion, *(f"{background:.4f}, {lesion:.4f}" for background, lesion in smoothing_matrix(rates, fusion))]
        for fusion in ("random", "intersection", "majority", "staple", "union")
    ]
    settled = "" if rates.converged else ", not settled"
    return [
        "## Error rates, and the smoothing that follows",
        "",
        *paragraph(
            f"Estimated over all {rates.num_voxels} voxels of the {len(nodules)} crops at once ({rates.num_iterations} "
            f"steps{settled}); {rates.prior[1]:.1%} of them are lesion. The crops are tight, so the background is the "
            "rim of a nodule: in a whole scan nearly all of it would be right, and a matrix to train with must be "
            "estimated on the grid that is trained on. The readers are persons that differ from nodule to nodule, so "
            "the rates are those of a place; the matrices depend less on who stands where."
        ),
        *table(["place", "marks lesion where there is one", "marks lesion where there is none"], readers),
        *paragraph(
            "The matrix for the loss's `label_smoothing`, for each way to make the label: how probable background and "
            "lesion are where the label says the one or the other."
        ),
        *table(["label", "says background: background, lesion", "says lesion: background, lesion"], matrices),
    ]


def draw(nodules: list[Nodule], path: Path) -> None:
    """Draw six nodules, from the least to the most agreement: marks, mean, STAPLE and soft mean of one slice."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    from medfocal.report.figures import LIGHT, PNG_DOTS_PER_INCH
    from medfocal.report.loss_figure import STYLES

    chosen = [nodules[round(place)] for place in np.linspace(0, len(nodules) - 1, 6)]
    figure = Figure(figsize=(8.6, 13.2), layout="constrained", facecolor=LIGHT.paper)
    FigureCanvasAgg(figure)
    colours = LinearSegmentedColormap.from_list("shares", [LIGHT.paper, "#cfe3f2", LIGHT.first, "#00263d"])
    titles = ("four readers", "mean of the readers", "STAPLE", f"mean, {WIDTH_MM:g} mm borders")
    panels = figure.subplots(len(chosen), len(titles))
    styles = STYLES[1:]
    for row, nodule in zip(panels, chosen, strict=True):
        slice_k = int((nodule.readers.any(axis=0)).sum(axis=(0, 1)).argmax())
        spacing = nodule.grid.spacing_mm
        shares = (nodule.mean, nodule.staple.shares[1], nodule.soft)
        for axes, title in zip(row, titles, strict=True):
            axes.set_xticks([])
            axes.set_yticks([])
            axes.set_facecolor(LIGHT.paper)
            for spine in axes.spines.values():
                spine.set_color(LIGHT.grid)
            if nodule is chosen[0]:
                axes.set_title(title, fontsize=10, fontweight="bold", color=LIGHT.ink)
        for reader, (colour, style, width) in zip(nodule.readers, styles, strict=True):
            _outline(row[0], reader[:, :, slice_k], spacing, colour, style, width * 0.75)
        for axes, share in zip(row[1:], shares, strict=True):
            part = share[:, :, slice_k]
            extent = (0, part.shape[0] * spacing[0], part.shape[1] * spacing[1], 0)
            image = axes.imshow(part.T, cmap=colours, vmin=0, vmax=1, extent=extent, interpolation="nearest")
        x_mm, y_mm, half_mm = _frame(nodule.readers.any(axis=0)[:, :, slice_k], spacing)
        for axes in row:
            axes.set_xlim(x_mm - half_mm, x_mm + half_mm)
            axes.set_ylim(y_mm + half_mm, y_mm - half_mm)
            axes.set_aspect("equal")
        row[0].set_ylabel(f"{nodule.name}\nintersection/union {nodule.overlap:.2f}", fontsize=9, color=LIGHT.ink)
        if nodule.staple.problem is not None:
            row[2].set_xlabel("not believed: the majority", fontsize=8.5, color=LIGHT.muted)
        right, bottom = x_mm + 0.94 * half_mm, y_mm + 0.92 * half_mm
        row[0].plot([right - 5, right], [bottom, bottom], color=LIGHT.ink, linewidth=2.5, solid_capstyle="butt")
        row[0].text(
            right - 2.5, bottom - 0.05 * half_mm, "5 mm", fontsize=7.5, color=LIGHT.ink, ha="center", va="bottom"
        )
    lines = [
        Line2D([], [], color=colour, linestyle=style, linewidth=width, label=f"reader {number}")
        for number, (colour, style, width) in enumerate(styles, start=1)
    ]
    figure.legend(handles=lines, loc="outside lower left", ncols=4, fontsize=9, frameon=False, labelcolor=LIGHT.ink)
    bar = figure.colorbar(image, ax=panels[:, 1:], location="bottom", shrink=0.5, pad=0.01, aspect=40)
    bar.set_label("share or probability of lesion", fontsize=9, color=LIGHT.muted)
    bar.ax.tick_params(labelsize=9, color=LIGHT.muted, labelcolor=LIGHT.muted)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=PNG_DOTS_PER_INCH * 0.7, metadata={"Software": None})


def _frame(mask: NDArray[np.bool_], spacing_mm: tuple[float, ...]) -> tuple[float, float, float]:
    """Middle of a mask in a slice and half the side of a square that holds it with a margin, in mm."""
    middle, half = [], 0.0
    for axis, side in ((1, spacing_mm[0]), (0, spacing_mm[1])):
        places = np.flatnonzero(mask.any(axis=axis))
        first, last = places[0] * side, (places[-1] + 1) * side
        middle.append(float(first + last) / 2)
        half = max(half, float(last - first) / 2 + WIDTH_MM)
    return middle[0], middle[1], half


def _outline(
    axes: Any, mask: NDArray[Any], spacing_mm: tuple[float, ...], colour: str, style: Any, width: float
) -> None:
    """Draw the voxel faces between inside and outside."""
    if not mask.any():
        return
    fine = 12
    padded = np.pad(np.kron(mask, np.ones((fine, fine))), 1)
    x, y = ((np.arange(size) - 0.5) / fine * side for size, side in zip(padded.shape, spacing_mm, strict=False))
    axes.contour(x, y, padded.T, levels=[0.5], colors=[colour], linestyles=[style], linewidths=[width])


if __name__ == "__main__":
    if not 2 <= len(sys.argv) <= 4:
        sys.exit(str(__doc__))
    warnings.simplefilter("error")
    main(
        Path(sys.argv[1]),
        Path(sys.argv[2]) if len(sys.argv) > 2 else ROOT / "docs" / "benchmarks" / "nodule-readers.md",
        Path(sys.argv[3]) if len(sys.argv) > 3 else ROOT / "docs" / "images" / "nodule_readers.png",
    )
