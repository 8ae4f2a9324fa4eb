"""What focusing does to cross-entropy: the loss against the probability of the labelled class, drawn."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from medfocal.files import atomic_write
from medfocal.report.figures import LIGHT, PNG_DOTS_PER_INCH

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Focusing exponents of the curves; 0 is cross-entropy.
GAMMAS = (0.0, 0.5, 1.0, 2.0, 5.0)

#: Colour, line style and width of each curve. Colours after Okabe and Ito; the styles tell the curves apart without.
STYLES: tuple[tuple[str, str | tuple[int, tuple[float, ...]], float], ...] = (
    (LIGHT.ink, "-", 2.4),
    ("#0072b2", (0, (5.0, 1.5)), 2.0),
    ("#d55e00", (0, (6.0, 1.2, 1.2, 1.2)), 2.0),
    ("#009e73", "-", 2.4),
    ("#cc79a7", (0, (1.2, 1.0)), 2.6),
)


def focal_curves(num_points: int = 999) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Evaluate `medfocal.losses.focal_loss` at alpha 1 over the probability p of the labelled class.

    The loss is computed from softmax logits (0, log(p / (1 - p))) in fp64, as it is in training.

    Args:
        num_points: Number of probabilities, >= 1.

    Returns:
        Probabilities (num_points,), evenly spaced in (0, 1) with both ends left out, and the losses (5,
        num_points), one row for each of `GAMMAS`.

    Raises:
        ValueError: `num_points` is less than 1.

    References:
        Lin et al., "Focal loss for dense object detection", ICCV 2017, figure 1.
    """
    import torch

    from medfocal.losses import focal_loss

    if num_points < 1:
        raise ValueError(f"num_points must be 1 or more, got {num_points}")
    probability = torch.arange(1, num_points + 1, dtype=torch.float64) / (num_points + 1)
    margin = torch.logit(probability)
    logits = torch.stack((torch.zeros_like(margin), margin), dim=1)
    labels = torch.ones(num_points, dtype=torch.int64)
    losses = torch.stack([focal_loss(logits, labels, gamma=gamma, reduction="none") for gamma in GAMMAS])
    return probability.numpy(), losses.numpy()


def draw_focal_loss() -> Figure:
    """Draw the curves of `focal_curves`, with the region p > .5 of well classified voxels shaded."""
    from matplotlib.figure import Figure

    probability, losses = focal_curves()
    figure = Figure(figsize=(6.4, 4.0), layout="constrained", facecolor=LIGHT.paper)
    axes = figure.add_subplot()
    axes.axvspan(0.5, 1.0, color=LIGHT.grid, alpha=0.7, linewidth=0, zorder=0)
    axes.text(0.75, 2.5, "well classified\n($p$ > 0.5)", ha="center", va="center", fontsize=11, color=LIGHT.muted)
    for gamma, loss, (colour, line, width) in zip(GAMMAS, losses, STYLES, strict=True):
        label = rf"$\gamma$ = {gamma:g}" + (" (cross-entropy)" if gamma == 0.0 else "")
        axes.plot(probability, loss, color=colour, linestyle=line, linewidth=width, label=label)
    axes.set_xlim(0.0, 1.0)
    axes.set_ylim(0.0, 5.0)
    axes.set_xlabel("probability $p$ of the labelled class", fontsize=11, color=LIGHT.ink)
    axes.set_ylabel(r"loss  $L = -(1-p)^\gamma\,\log\,p$", fontsize=11, color=LIGHT.ink)
    axes.tick_params(labelsize=10, color=LIGHT.muted, labelcolor=LIGHT.ink)
    axes.grid(visible=True, color=LIGHT.grid, linewidth=0.8)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_visible(side in {"left", "bottom"})
        spine.set_color(LIGHT.muted)
    axes.legend(loc="upper right", fontsize=11, handlelength=3.2, labelcolor=LIGHT.ink, edgecolor=LIGHT.grid)
    return figure


def write_focal_loss(path: Path) -> Path:
    """Write the figure of `draw_focal_loss` as a PNG.

    Args:
        path: Of the PNG, replaced at once when it is complete.

    Returns:
        `path`.

    Raises:
        ResourceError: It cannot be written.
    """
    from PIL import Image

    drawn = io.BytesIO()
    draw_focal_loss().savefig(drawn, format="png", dpi=PNG_DOTS_PER_INCH)
    # The picture has few colours: with a palette the file is a third as large.
    picture = Image.open(drawn).convert("RGB").quantize(256)
    with atomic_write(Path(path), "wb") as file:
        picture.save(file, format="PNG", optimize=True)
    return Path(path)


#: What `medfocal info figure=NAME` can draw.
FIGURES: Mapping[str, Callable[[Path], Path]] = {"focal_loss": write_focal_loss}
