"""Lesions outside the body and mirrored labels are suspected, and sound ones are not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from medfocal.components import find_components
from medfocal.data.check.body import find_body
from medfocal.data.check.placement import check_placement, fit_of
from medfocal.volume import Volume, read_volume

SHARED = Path(__file__).resolve().parents[4] / "shared" / "data"
SHAPE = (40, 32, 28)
AFFINE = np.array([[-4.0, 0, 0, 71], [0, 5.0, 0, -80], [0, 0, 6.0, 12], [0, 0, 0, 1]])
PLACES = np.ogrid[:40, :32, :28]


def ellipsoid(centre, radii):
    """Voxels within an ellipsoid, both in voxels."""
    return sum(((place - c) / r) ** 2 for place, c, r in zip(PLACES, centre, radii, strict=True)) <= 1


#: Within it everything is tissue of 100, outside is air.
BODY = ellipsoid((20, 16, 14), (15, 14, 13))
#: Its surroundings are tissue, and so are those of its mirrors, of which none touches it.
LESION = ellipsoid((13, 12, 9), (3, 3, 2))


def head(lesion=LESION, brightness=60.0):
    image = np.where(BODY, 100.0, 0.0) + np.random.default_rng(0).normal(0, 10, SHAPE) * BODY
    return Volume((image + brightness * lesion).astype(np.float32), AFFINE)


def found(image, label):
    lesions = find_components(label, AFFINE)
    return [str(finding.kind) for finding in check_placement([image], lesions, Path("label.nii.gz"), "a")]


def test_a_label_on_its_lesion_is_not_suspected():
    assert found(head(), LESION) == []


@pytest.mark.parametrize(("axis", "words"), [(0, "left-right"), (1, "front-back"), (2, "up-down")])
def test_a_label_that_was_mirrored_is_suspected_and_the_axis_named(axis, words):
    label = np.flip(LESION, axis)
    [finding] = check_placement([head()], find_components(label, AFFINE), Path("label.nii.gz"), "a")
    assert (finding.kind, finding.values["axis"]) == ("label_mirrored", axis)
    assert f"mirrored {words}" in finding.message


def test_the_axis_is_named_by_the_body_and_not_by_its_number():
    """The same head stored as (K, I, J)."""
    affine = AFFINE[:, [2, 0, 1, 3]]
    image = Volume(head().array.transpose(2, 0, 1), affine)
    label = np.flip(LESION.transpose(2, 0, 1), 1)
    [finding] = check_placement([image], find_components(label, affine), Path("label.nii.gz"), "a")
    assert "mirrored left-right" in finding.message


def test_a_faint_lesion_is_not_suspected_where_its_mirror_is_no_better():
    assert found(head(brightness=1.0), LESION) == []


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_mirroring_the_voxels_is_mirroring_the_label(axis):
    """In an image whose brightness rises along every axis, so that each place has surroundings of its own."""
    slope = sum(place * factor for place, factor in zip(PLACES, (3.0, 5.0, 7.0), strict=True))
    images = [Volume(np.broadcast_to(slope, SHAPE) + 40 * LESION, AFFINE)]
    body = find_body(head().array, (4.0, 5.0, 6.0), "LAS")
    there = fit_of(images, body, np.nonzero(LESION), SHAPE, axis)
    assert there == pytest.approx(fit_of(images, body, np.nonzero(np.flip(LESION, axis)), SHAPE, None))
    assert there != pytest.approx(fit_of(images, body, np.nonzero(LESION), SHAPE, None))


def test_contrast_of_any_channel_counts():
    plain = head(brightness=0.0)
    lesions = find_components(np.flip(LESION, 0), AFFINE)
    assert check_placement([plain], lesions, Path("l"), "a") == []
    assert [f.kind for f in check_placement([plain, head()], lesions, Path("l"), "a")] == ["label_mirrored"]


def test_a_dark_lesion_counts_like_a_bright_one():
    assert found(head(brightness=-60.0), np.flip(LESION, 0)) == ["label_mirrored"]


def test_a_speck_in_the_air_is_told_beside_sound_lesions():
    label = LESION.copy()
    label[1, 1, 1] = True
    lesions = find_components(label, AFFINE)
    [finding] = check_placement([head()], lesions, Path("label.nii.gz"), "a")
    assert finding.kind == "lesion_outside_body"
    assert (finding.values["num_outside"], finding.values["first_voxel"]) == (1, [1.0, 1.0, 1.0])


def test_a_lesion_that_reaches_into_the_body_is_not_outside():
    label = LESION.copy()
    label[0:8, 16, 14] = True  # from the air into the body
    assert found(head(), label) == []


def test_a_lesion_in_a_cavity_is_inside():
    cavity = ellipsoid((26, 18, 14), (5, 5, 4))
    image = head()
    image.array[cavity] = 0
    label = LESION.copy()
    label[26, 18, 14] = True
    assert found(image, label) == []


def test_half_a_label_in_the_air_that_lies_inside_mirrored_is_suspected_without_contrast():
    """A body in one half of the volume: mirrored, the label lies in it."""
    image = Volume(np.zeros(SHAPE, np.int16), AFFINE)
    image.array[3:18, 4:28, 3:24] = 100
    label = np.zeros(SHAPE, bool)
    label[30:34, 10:14, 8:11] = True
    assert found(image, label) == ["label_mirrored"]


def test_no_body_is_told_where_the_border_is_tissue():
    image = 100 + np.random.default_rng(0).normal(0, 20, SHAPE)
    assert find_body(image, (4.0, 5.0, 6.0), "LAS") is None


def test_the_body_reaches_one_block_beyond_its_tissue():
    body = find_body(head().array, (4.0, 5.0, 6.0), "LAS")
    assert body.step == (1, 1, 1)
    inside = body.holds(np.nonzero(BODY))
    assert inside.all()
    assert not body.inside[:3].any()
    assert body.inside.sum() < 1.6 * BODY.sum()


def test_air_that_is_not_a_number_is_air():
    image = head()
    image.array[~BODY] = np.nan
    label = LESION.copy()
    label[1, 1, 1] = True
    assert found(image, label) == ["lesion_outside_body"]


@pytest.mark.skipif(not SHARED.is_dir(), reason="no ../shared/data beside the repository")
@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("case", ["patient19", "patient26"])
def test_real_labels_are_suspected_only_when_they_are_mirrored(case, mirrored):
    image = read_volume(SHARED / f"ms_flair/{case}_FLAIR.nii.gz")
    label = read_volume(SHARED / f"ms_flair/{case}_mask.nii.gz").array
    lesions = find_components(label[::-1] if mirrored else label, image.affine)
    kinds = [str(finding.kind) for finding in check_placement([image], lesions, Path("label"), case)]
    assert kinds == ["label_mirrored"] * mirrored


@pytest.mark.skipif(not SHARED.is_dir(), reason="no ../shared/data beside the repository")
def test_no_label_of_34_tumours_in_pet_is_suspected():
    for path in sorted((SHARED / "sts_pet").glob("*_image.nii.gz")):
        label = Path(str(path).replace("_image", "_mask"))
        volume, lesions = read_volume(path), read_volume(label)
        assert check_placement([volume], find_components(lesions.array, volume.affine), label, path.name) == []
