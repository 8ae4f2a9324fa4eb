"""The files of the viewer, without a browser: what they hold, where they go and what is removed."""

from __future__ import annotations

import base64
import gzip
import json
import shlex

import nibabel as nib
import numpy as np
import pytest
from hand_made_evaluations import bare

from medfocal.errors import InputError
from medfocal.report import CaseImages, write_report
from medfocal.report.viewer import (
    Library,
    ViewerFiles,
    find_library,
    pack_image,
    pack_mask,
    place_in_volume,
    remove_volumes,
    serve_command,
)

SHAPE = (12, 10, 8)
AFFINE = np.array([[-0.5, 0, 0, 20], [0, -1, 0, 7], [0, 0, 3, 4], [0, 0, 0, 1]], float)


def case(image=None, affine=AFFINE):
    """Axes run to the left, posterior and superior; one voxel of the prediction, two of the reference."""
    noise = np.random.default_rng(0).normal(0, 20, SHAPE).astype(np.float32)
    reference, predicted = np.zeros(SHAPE, bool), np.zeros(SHAPE, bool)
    reference[9:11, 2, 6] = predicted[9, 2, 6] = True
    return CaseImages(noise if image is None else image, reference, predicted, (0.5, 1.0, 3.0), ("L", "P", "S"), affine)


@pytest.fixture
def library(tmp_path):
    """A script of another kind in place of NiiVue: to these files it is only bytes."""
    script = tmp_path / "library" / "widget.js"
    script.parent.mkdir()
    script.write_text("export default {}")
    return Library(script, "1.2.3", "the licence")


def unpacked(data):
    return nib.Nifti1Image.from_bytes(gzip.decompress(data))


def test_a_place_lies_along_the_axes_to_the_right_anterior_and_superior():
    # i runs to the left, so 9 of 12 is 2 from the right end; j to posterior, 2 of 10 is 7 from there.
    assert place_in_volume(case(), (9, 2, 6)) == (2.5 / 12, 7.5 / 10, 6.5 / 8)


def test_a_place_follows_the_order_of_the_axes():
    turned = CaseImages(
        np.zeros((8, 12, 10), np.float32), np.zeros((8, 12, 10), bool), np.zeros((8, 12, 10), bool),
        (3.0, 0.5, 1.0), ("S", "R", "A"),
    )  # fmt: skip
    assert place_in_volume(turned, (6, 9, 2)) == (9.5 / 12, 2.5 / 10, 6.5 / 8)


NOISE = case().image


@pytest.mark.parametrize(
    ("image", "tolerance"),
    [
        (np.rint(NOISE), 0.0),
        (NOISE / 7, np.ptp(NOISE / 7) / 4095 / 2 + 1e-5),
        (np.rint(NOISE) * 1000, np.ptp(np.rint(NOISE) * 1000) / 4095 / 2 + 1),  # whole, and too large for 16 bits
        (np.full(SHAPE, 0.25, np.float32), 1e-6),
        (np.zeros(SHAPE, np.float32), 0.0),
    ],
    ids=["whole", "fractions", "large", "flat", "empty"],
)
def test_packed_images_give_their_values_back(image, tolerance):
    back = unpacked(pack_image(case(image)))
    assert back.get_data_dtype() == np.dtype("<i2")
    np.testing.assert_allclose(back.get_fdata(), image, atol=tolerance)
    np.testing.assert_allclose(back.affine, AFFINE)
    assert back.header.get_zooms() == (0.5, 1.0, 3.0)


def test_packed_masks_lie_on_the_grid_of_the_image():
    back = unpacked(pack_mask(case(), case().reference))
    np.testing.assert_array_equal(back.get_fdata() != 0, case().reference)
    np.testing.assert_allclose(back.affine, AFFINE)


def test_without_an_affine_the_axes_still_point_where_their_letters_say():
    back = unpacked(pack_image(case(affine=None)))
    assert nib.aff2axcodes(back.affine) == ("L", "P", "S")


def test_the_same_case_is_packed_alike_every_time():
    assert pack_image(case()) == pack_image(case())


def test_few_volumes_go_into_the_page_and_leave_nothing_beside_it(tmp_path, library):
    page = tmp_path / "out" / "report.html"
    with ViewerFiles(page, library) as files:
        assert [files.add(case()), files.add(case())] == [0, 1]
        viewer = files.finish(1.0)
    assert viewer.embedded
    assert list(page.parent.iterdir()) == []
    blocks = dict(viewer.blocks)
    assert len(blocks) == 7
    second = viewer.settings["cases"][1]
    np.testing.assert_array_equal(
        unpacked(base64.b64decode(blocks[second["predicted"]])).get_fdata() != 0, case().predicted
    )
    assert gzip.decompress(base64.b64decode(blocks["widget.js"])) == library.script.read_bytes()
    json.dumps(viewer.settings)


def test_many_volumes_lie_beside_the_page_with_the_script_and_its_licence(tmp_path, library):
    page = tmp_path / "out" / "report.html"
    with ViewerFiles(page, library) as files:
        files.add(case())
        viewer = files.finish(0.0001)
    assert not viewer.embedded
    assert list(viewer.blocks) == []
    assert [path.name for path in page.parent.iterdir()] == ["viewer"]
    names = {path.name for path in (page.parent / "viewer").iterdir()}
    assert names == {
        "widget.js",
        "LICENSE",
        *(f"case-0001-{part}.nii.gz" for part in ("image", "reference", "predicted")),
    }
    assert (page.parent / "viewer").stat().st_mode == page.parent.stat().st_mode


def test_what_is_not_finished_is_removed(tmp_path, library):
    page = tmp_path / "out" / "report.html"

    def fail():
        with ViewerFiles(page, library) as files:
            files.add(case())
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert list(page.parent.iterdir()) == []


def test_without_a_case_there_is_no_viewer(tmp_path, library):
    with ViewerFiles(tmp_path / "r.html", library) as files:
        assert files.finish(1.0) is None


def test_a_folder_of_the_same_name_that_is_something_else_is_left_alone(tmp_path, library):
    (tmp_path / "viewer").mkdir()
    (tmp_path / "viewer" / "mine.txt").write_text("mine")
    remove_volumes(tmp_path)
    with ViewerFiles(tmp_path / "r.html", library) as files:
        files.add(case())
        with pytest.raises(InputError, match="holds something else"):
            files.finish(0.0)
    assert (tmp_path / "viewer" / "mine.txt").read_text() == "mine"


def test_volumes_of_an_earlier_report_go_even_if_the_new_one_has_none(tmp_path):
    (tmp_path / "viewer").mkdir()
    for name in ("widget.js", "case-0001-image.nii.gz"):
        (tmp_path / "viewer" / name).write_text("")
    write_report(tmp_path / "report.html", title="t", evaluation=bare(), images=lambda _: None)
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_the_command_takes_a_folder_with_a_space_and_serves_this_machine_only(tmp_path):
    command = serve_command(tmp_path / "a b's")
    assert "--bind 127.0.0.1" in command
    assert str(tmp_path / "a b's") in shlex.split(command)


@pytest.mark.skipif(find_library() is not None, reason="ipyniivue is installed")
def test_without_the_extra_the_page_says_how_to_get_the_viewer(tmp_path):
    images = {"first": case(), "second": case()}.get
    page = write_report(tmp_path / "r.html", title="t", evaluation=bare(), images=images).read_text("utf-8")
    assert "pip install 'medfocal[viewer]'" in page
    assert "<dialog" not in page
    assert "blob:" not in page
    assert [path.name for path in tmp_path.iterdir()] == ["r.html"]


@pytest.mark.skipif(find_library() is None, reason="needs ipyniivue: make viewer")
def test_the_page_with_the_viewer_carries_the_licence_of_its_script(tmp_path):
    images = {"first": case(), "second": case()}.get
    page = write_report(tmp_path / "r.html", title="t", evaluation=bare(), images=images).read_text("utf-8")
    assert "BSD 2-Clause" in page
    assert "This page holds the images of 2 cases: who gets it gets them." in page
    assert page.count('type="application/octet-stream"') == 7
    assert "pip install" not in page
