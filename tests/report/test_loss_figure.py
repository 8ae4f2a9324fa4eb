"""The figure of the focal loss: its values against independent formulas, and the drawing itself."""

from __future__ import annotations

import errno
import itertools
import json
import math
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex
from matplotlib.image import imread
from torch.nn import functional as F

from medfocal.errors import ResourceError
from medfocal.report.loss_figure import GAMMAS, draw_focal_loss, focal_curves, write_focal_loss


@pytest.fixture(scope="module")
def axes():
    (found,) = draw_focal_loss().axes
    return found


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    return write_focal_loss(tmp_path_factory.mktemp("figure") / "deeper" / "focal.png")


def test_the_curves_are_those_of_the_tutorial():
    assert GAMMAS == (0.0, 0.5, 1.0, 2.0, 5.0)


def test_the_probabilities_are_evenly_spaced_between_0_and_1():
    probability, losses = focal_curves(99)
    np.testing.assert_allclose(probability, [n / 100 for n in range(1, 100)], rtol=1e-15)
    assert losses.shape == (5, 99)
    assert probability.dtype == losses.dtype == np.float64


@pytest.mark.parametrize(("row", "gamma"), list(enumerate((0.0, 0.5, 1.0, 2.0, 5.0))))
def test_the_losses_are_those_of_the_formula(row, gamma):
    _, losses = focal_curves(99)
    expected = [-((1 - n / 100) ** gamma) * math.log(n / 100) for n in range(1, 100)]
    # p is turned into a logit and back, in double precision.
    np.testing.assert_allclose(losses[row], expected, rtol=1e-12)


def test_at_gamma_0_the_losses_are_torchs_cross_entropy():
    probability, losses = focal_curves(99)
    classes = torch.tensor(np.stack([1 - probability, probability], axis=1)).log()
    expected = F.cross_entropy(classes, torch.ones(99, dtype=torch.long), reduction="none")
    np.testing.assert_allclose(losses[0], expected.numpy(), rtol=1e-12)


def test_the_losses_come_from_the_loss_that_trains(monkeypatch):
    import medfocal.losses

    def twice(*arguments, **options):
        return 2 * focal_loss(*arguments, **options)

    focal_loss, before = medfocal.losses.focal_loss, focal_curves(9)[1]
    monkeypatch.setattr(medfocal.losses, "focal_loss", twice)
    np.testing.assert_array_equal(focal_curves(9)[1], 2 * before)


def test_no_point_at_all_is_refused():
    with pytest.raises(ValueError, match="num_points must be 1 or more, got 0"):
        focal_curves(0)


def test_five_curves_are_on_the_axes(axes):
    probability, losses = focal_curves()
    assert len(axes.get_lines()) == 5
    for line, loss in zip(axes.get_lines(), losses, strict=True):
        np.testing.assert_array_equal(line.get_xydata(), np.column_stack([probability, loss]))


def test_the_legend_names_every_gamma_and_cross_entropy_beside_0(axes):
    labels = [text.get_text().replace(r"$\gamma$", "gamma") for text in axes.get_legend().get_texts()]
    assert labels == ["gamma = 0 (cross-entropy)", "gamma = 0.5", "gamma = 1", "gamma = 2", "gamma = 5"]


def test_the_axes_are_labelled_and_show_all_probabilities(axes):
    assert axes.get_xlabel().replace("$", "") == "probability p of the labelled class"
    assert axes.get_ylabel().startswith("loss ")
    assert axes.get_xlim() == (0.0, 1.0)


def test_the_region_beyond_one_half_is_shaded_and_named(axes):
    (region,) = axes.patches
    left, right = region.get_extents().transformed(axes.transData.inverted()).intervalx
    assert (left, right) == pytest.approx((0.5, 1.0))
    (words,) = axes.texts
    assert words.get_text().startswith("well classified")
    assert words.get_position()[0] > 0.5


# Machado et al., "A physiologically-based model for simulation of color vision deficiency", 2009, severity 1.
COLOUR_VISION = {
    "usual": np.eye(3),
    "protanopia": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
}


@pytest.mark.parametrize("vision", COLOUR_VISION)
def test_the_colours_differ_for_colour_blind_readers(axes, vision):
    colours = np.array([[int(to_hex(line.get_color())[n : n + 2], 16) for n in (1, 3, 5)] for line in axes.get_lines()])
    seen = (colours / 255) ** 2.2 @ np.transpose(COLOUR_VISION[vision])
    seen = np.clip(seen, 0, 1) ** (1 / 2.2)
    apart = np.linalg.norm(seen[:, None] - seen, axis=-1)[~np.eye(5, dtype=bool)]
    # matplotlib's own first five colours come as near as 0.05 in this measure.
    assert apart.min() > 0.15


def test_neighbouring_curves_differ_in_style_too(axes):
    dashes = [str(line._unscaled_dash_pattern) for line in axes.get_lines()]
    assert all(one != other for one, other in itertools.pairwise(dashes))


def test_the_file_is_a_png_wide_enough_for_a_page_and_small_enough_for_a_repository(picture):
    assert picture.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    height, width = imread(picture).shape[:2]
    assert 1000 <= width <= 1600
    assert 0.5 < height / width < 0.8
    assert 10_000 < picture.stat().st_size < 80_000


def test_each_curve_can_be_seen_on_the_picture_in_its_colour(picture, axes):
    dots = (imread(picture)[..., :3] * 255).round().astype(int)
    for line in axes.get_lines():
        wanted = [int(to_hex(line.get_color())[n : n + 2], 16) for n in (1, 3, 5)]
        # The palette of the file may move a colour a little.
        assert (np.abs(dots - wanted).max(axis=-1) <= 8).sum() > 1000


def test_nothing_else_is_left_beside_the_file(picture):
    assert [path.name for path in picture.parent.iterdir()] == ["focal.png"]


def test_a_full_disk_keeps_the_picture_that_was_there(tmp_path, monkeypatch):
    (tmp_path / "focal.png").write_text("mine")

    def fsync(_handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(ResourceError, match="No space left on device"):
        write_focal_loss(tmp_path / "focal.png")
    assert [path.name for path in tmp_path.iterdir()] == ["focal.png"]
    assert (tmp_path / "focal.png").read_text() == "mine"


def test_importing_the_figure_loads_no_slow_package_and_drawing_loads_no_pyplot(tmp_path):
    code = (
        "import sys, json; from medfocal.report.loss_figure import write_focal_loss;"
        "before = [name for name in ('matplotlib', 'PIL', 'torch') if name in sys.modules];"
        f"write_focal_loss({str(tmp_path / 'focal.png')!r});"
        "print(json.dumps([before, 'matplotlib.pyplot' in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [[], False]
