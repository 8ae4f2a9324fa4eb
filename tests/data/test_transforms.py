"""To the network's grid and back: no voxel leaves its place in the world."""

from __future__ import annotations

import nibabel
import numpy as np
import pytest
import torch
from scipy import ndimage
from scipy.spatial.transform import Rotation

from medfocal.data.cases import CaseVolumes
from medfocal.data.manifest import Case
from medfocal.data.transforms import (
    Intensity,
    Preprocessing,
    prepare_case,
    to_native,
)
from medfocal.errors import ResourceError
from medfocal.volume import Volume

SHAPE, SPACING_MM = (24, 20, 16), (0.5, 1.0, 3.0)


def grid(codes="LPS", degrees=(0, 0, 0)):
    """Affine whose axes point about as `codes` say, turned by `degrees`, off-centre."""
    axes = np.zeros((3, 3))
    for axis, code in enumerate(codes):
        axes["RLAPSI".index(code) // 2, axis] = 1 if code in "RAS" else -1
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", degrees, degrees=True).as_matrix() @ axes * SPACING_MM
    affine[:3, 3] = (31.0, -17.0, 42.5)
    return affine


GRIDS = {
    "RAS": grid("RAS"),
    "oblique LPS": grid("LPS", (20, -11, 7)),
    "permuted": grid("SAL"),
    "permuted oblique": grid("PIR", (5, 14, -9)),
}


def volumes(affine, *, lesion=((6, 10), (5, 9), (4, 8)), channels=1):
    """A case whose lesion is a block, 100 times brighter than the body in each channel."""
    block = tuple(slice(*side) for side in lesion)
    label = np.zeros(SHAPE, np.int16)
    label[block] = 1
    image = np.random.default_rng(0).uniform(0.5, 1.5, (channels, *SHAPE)).astype(np.float32)
    image[(slice(None), *block)] = 100
    return CaseVolumes(Case("c", "p", "training", ()), image, Volume(np.zeros(SHAPE), affine), label)


def centroid_mm(weight, affine):
    index = np.argwhere(weight > 0)
    weights = weight[tuple(index.T)]
    return affine[:3, :3] @ np.average(index, axis=0, weights=weights) + affine[:3, 3]


def world(affine, shape):
    """World coordinate of every voxel, (I, J, K, 3)."""
    return nibabel.affines.apply_affine(affine, np.moveaxis(np.indices(shape), 0, -1))


def shift_in_voxels(found, affine, label, native, network):
    """How far one centroid lies from another along each axis of the network's grid."""
    return np.linalg.inv(network[:3, :3]) @ (centroid_mm(found, affine) - centroid_mm(label, native))


PLAIN = {"intensity": "none"}


@pytest.mark.parametrize("name", GRIDS)
def test_every_voxel_keeps_its_world_coordinate_when_axes_are_turned(name):
    case = volumes(GRIDS[name])
    marked = np.random.default_rng(1).permutation(case.image.size).reshape(case.image.shape).astype(np.float32)
    prepared = prepare_case(CaseVolumes(case.case, marked, case.grid, case.label), Preprocessing(**PLAIN))
    assert "".join(nibabel.aff2axcodes(prepared.affine)) == "RAS"
    here, there = np.argsort(marked.ravel()), np.argsort(prepared.image.numpy().ravel())
    before = nibabel.affines.apply_affine(case.grid.affine, np.stack(np.unravel_index(here, SHAPE), axis=1))
    shape = prepared.image.shape[1:]
    after = nibabel.affines.apply_affine(prepared.affine, np.stack(np.unravel_index(there, shape), axis=1))
    np.testing.assert_allclose(after, before, atol=1e-6)


@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize("spacing_mm", [None, (1.0, 1.0, 1.5), (0.7, 0.9, 3.3)])
def test_a_lesion_keeps_its_place_in_the_world_in_image_and_label(name, spacing_mm):
    case = volumes(GRIDS[name])
    prepared = prepare_case(case, Preprocessing(spacing_mm=spacing_mm, **PLAIN))
    for found in (prepared.label.numpy(), np.maximum(prepared.image[0].numpy() - 2, 0)):
        moved = shift_in_voxels(found, prepared.affine, case.label, case.grid.affine, prepared.affine)
        assert np.abs(moved).max() < 0.5 + 1e-6
    if spacing_mm is not None:
        np.testing.assert_allclose(np.linalg.norm(prepared.affine[:3, :3], axis=0), spacing_mm, atol=1e-6)


@pytest.mark.parametrize("name", GRIDS)
def test_resampling_an_image_that_is_linear_in_the_world_gives_it_again(name):
    """Linear interpolation of a linear map is exact, so any shift of the grid would show."""
    case = volumes(GRIDS[name])
    case.image[0] = 0.01 * world(case.grid.affine, SHAPE) @ [3, -2, 1]
    prepared = prepare_case(case, Preprocessing(spacing_mm=(0.8, 0.7, 1.3), **PLAIN))
    shape = prepared.image.shape[1:]
    expected = 0.01 * world(prepared.affine, shape) @ [3, -2, 1]
    inner = tuple(slice(2, n - 3) for n in shape)  # beyond the border the last value is repeated
    np.testing.assert_allclose(prepared.image[0].numpy()[inner], expected[inner], atol=1e-4)


@pytest.mark.parametrize("spacing_mm", [None, (1.0, 1.0, 1.5)])
def test_label_and_image_stay_on_one_another(spacing_mm):
    prepared = prepare_case(volumes(GRIDS["oblique LPS"]), Preprocessing(spacing_mm=spacing_mm, **PLAIN))
    bright, lesion = prepared.image[0].numpy() > 50, prepared.label.numpy() > 0
    assert prepared.label.dtype == torch.uint8
    overlap = 2 * (bright & lesion).sum() / (bright.sum() + lesion.sum())
    assert overlap == 1 if spacing_mm is None else overlap > 0.8


def test_resampled_labels_hold_no_class_that_was_not_there():
    case = volumes(GRIDS["oblique LPS"])
    case.label[case.label == 1] = 3
    prepared = prepare_case(case, Preprocessing(spacing_mm=(0.8, 0.8, 0.8), **PLAIN))
    assert set(prepared.label.unique().tolist()) == {0, 3}


@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize("orientation", ["RAS", "ASL", "SRA", "PIR"])
def test_the_way_back_is_exact_without_resampling(name, orientation):
    case = volumes(GRIDS[name], channels=2)
    prepared = prepare_case(case, Preprocessing(orientation=orientation, **PLAIN))
    for channel in range(2):
        back = to_native(prepared.image[channel].numpy(), prepared)
        assert back.dtype == np.float32
        np.testing.assert_array_equal(back, case.image[channel])


@pytest.mark.parametrize("name", GRIDS)
def test_the_way_back_from_another_spacing_meets_the_lesion(name):
    case = volumes(GRIDS[name], lesion=((6, 14), (5, 13), (4, 10)))
    prepared = prepare_case(case, Preprocessing(spacing_mm=(0.8, 0.8, 1.5), **PLAIN))
    back = to_native(prepared.label.numpy().astype(np.float32), prepared)
    assert back.shape == SHAPE
    assert (back.min(), back.max()) == (0, 1)
    moved = shift_in_voxels(back, case.grid.affine, case.label, case.grid.affine, prepared.affine)
    assert np.abs(moved).max() < 0.5  # of the network's grid, where the label went to the nearest voxel
    lesion = case.label > 0
    assert 2 * ((back > 0.5) & lesion).sum() / ((back > 0.5).sum() + lesion.sum()) > 0.85


def test_the_way_back_from_another_spacing_keeps_a_smooth_map():
    case = volumes(GRIDS["oblique LPS"])
    prepared = prepare_case(case, Preprocessing(spacing_mm=(0.8, 0.8, 1.5), **PLAIN))
    values = 0.01 * world(prepared.affine, prepared.image.shape[1:]) @ [3, -2, 1]
    back = to_native(values.astype(np.float32), prepared)
    inner = (slice(2, -2), slice(2, -2), slice(1, -1))  # linear interpolation of a linear map, but for the border
    np.testing.assert_allclose(back[inner], (0.01 * world(case.grid.affine, SHAPE) @ [3, -2, 1])[inner], atol=1e-4)


def resampled(label, spacing_mm, old_mm=(1.0, 1.0, 1.0)):
    """A label of voxels of `old_mm` at another spacing."""
    image, native = (label > 0)[None].astype(np.float32), Volume(label, np.diag([*old_mm, 1.0]))
    case = CaseVolumes(Case("c", "p", "training", ()), image, native, label)
    return prepare_case(case, Preprocessing(spacing_mm=spacing_mm, **PLAIN))


def marked(*blocks, shape=SHAPE):
    """A label with blocks of (corner, size, class)."""
    label = np.zeros(shape, np.int16)
    for corner, size, value in blocks:
        label[tuple(slice(c, c + n) for c, n in zip(corner, size, strict=True))] = value
    return label


@pytest.mark.parametrize("spacing_mm", [(0.5, 0.5, 0.5), (2.0, 2.0, 2.0), (0.25, 2.0, 1.0), (1.5, 1.0, 1.0)])
@pytest.mark.parametrize("flips", [(), (0,), (1, 2), (0, 1, 2)])
def test_a_label_does_not_depend_on_the_way_its_axes_run(spacing_mm, flips):
    """Of 12 k + 1 voxels an axis has voxels of the new grid at both ends, so flipped it is the same grid.

    No lesion is thinner than 3 voxels, so none is lost: a lost one that lies half-way would have to choose a side.
    """
    seeds = np.random.default_rng(0).random((25, 13, 37)) < 0.005
    label = ndimage.binary_dilation(seeds, np.ones((3, 3, 3))).astype(np.int16)
    there = resampled(label, spacing_mm).label.numpy()
    flipped = resampled(np.flip(label, flips).copy(), spacing_mm).label.numpy()
    np.testing.assert_array_equal(np.flip(flipped, flips), there)


@pytest.mark.parametrize("spacing_mm", [0.25, 0.5, 1 / 3, 2.0])
def test_a_block_keeps_its_centre_at_whole_ratios(spacing_mm):
    """Three voxels a side, so that at 2 mm it ends half-way between new voxels on both sides."""
    label = marked(((7, 5, 3), (3, 3, 3), 1))
    prepared = resampled(label, (spacing_mm,) * 3)
    np.testing.assert_allclose(centroid_mm(prepared.label.numpy(), prepared.affine), (8, 6, 4), atol=1e-6)


def test_half_a_voxel_of_lesion_is_lesion():
    """At 0.5 mm new voxels lie on old ones and half-way between: a voxel's six neighbours at half a voxel are lesion,
    its neighbours across an edge have a share of a quarter."""
    found = resampled(marked(((5, 4, 3), (1, 1, 1), 1)), (0.5, 0.5, 0.5)).label.numpy()
    assert np.argwhere(found).tolist() == [
        [9, 8, 6], [10, 7, 6], [10, 8, 5], [10, 8, 6], [10, 8, 7], [10, 9, 6], [11, 8, 6],
    ]  # fmt: skip


def test_less_than_half_a_voxel_of_lesion_is_none():
    """At 0.89 mm new voxels lie at 4.45, 5.34, … 8.01 and 8.9: the first has a share of 0.45 and the last of 0.1."""
    found = resampled(marked(((5, 4, 3), (4, 4, 4), 1)), (0.89, 1.0, 1.0)).label.numpy()
    assert np.flatnonzero(found.any(axis=(1, 2))).tolist() == [6, 7, 8, 9]


def test_as_many_voxels_of_another_spacing_are_other_voxels():
    """24 voxels of 1 mm and of 1.02 mm: the new ones read a ramp where they lie."""
    image = np.broadcast_to(np.arange(24, dtype=np.float32)[:, None, None], SHAPE)[None]
    case = CaseVolumes(Case("c", "p", "training", ()), image, Volume(np.zeros(SHAPE), np.eye(4)), None)
    found = prepare_case(case, Preprocessing(spacing_mm=(1.02, 1.0, 1.0), **PLAIN)).image[0, :, 3, 3]
    assert found[1:23].tolist() == pytest.approx((1.02 * np.arange(1, 23)).tolist(), abs=1e-4)


def test_a_tie_goes_to_the_lesion_though_files_round_their_spacing():
    exact = resampled(marked(((5, 4, 3), (4, 4, 4), 1)), (0.4, 0.4, 0.4), (0.8, 0.8, 0.8)).label.numpy()
    stored = tuple(float(np.float32(0.8) * np.float32(1 + way * 1e-6)) for way in (-1, 0, 1))
    np.testing.assert_array_equal(resampled(marked(((5, 4, 3), (4, 4, 4), 1)), (0.4,) * 3, stored).label, exact)


@pytest.mark.parametrize(
    ("corner", "drawn_at"), [((8, 4, 4), (4, 2, 2)), ((9, 5, 3), (5, 3, 2)), ((23, 19, 15), (11, 9, 7))]
)
def test_a_lesion_of_one_voxel_is_drawn_as_one_of_a_coarser_grid_and_shows_in_the_image(corner, drawn_at):
    """At 2 mm it has a share of an eighth at most where it lies half-way, and the last voxel lies beyond the last."""
    prepared = resampled(marked((corner, (1, 1, 1), 1)), (2.0, 2.0, 2.0))
    (found,) = np.argwhere(prepared.label.numpy())
    assert (np.abs(2 * found - corner) <= 1).all()
    assert (np.abs(found - drawn_at) <= 1).all()
    assert prepared.image[0][tuple(found)] > 0


def test_a_lost_lesion_is_drawn_at_its_centre_with_the_class_of_most_of_its_voxels():
    """Two voxels of class 2 and one of class 3 in a row, none on a voxel of the 4 mm grid, nearest to (2, 1, 1)."""
    label = marked(((6, 5, 5), (2, 1, 1), 2), ((8, 5, 5), (1, 1, 1), 3))
    found = resampled(label, (4.0, 4.0, 4.0)).label.numpy()
    assert [(*place, int(found[tuple(place)])) for place in np.argwhere(found).tolist()] == [(2, 1, 1, 2)]
    label[7, 5, 5] = 3
    assert resampled(label, (4.0, 4.0, 4.0)).label[2, 1, 1] == 3
    label[8, 5, 5] = 0  # one voxel of each: the higher class
    assert set(resampled(label, (4.0, 4.0, 4.0)).label.unique().tolist()) == {0, 3}


def test_a_lost_lesion_that_is_nearest_to_two_voxels_is_drawn_at_the_one_by_its_centre():
    """At 4 mm voxel 1 of the row is nearest to 0 and voxels 2 to 5 to 1; its centre 3 lies at 0.75."""
    found = resampled(marked(((1, 6, 6), (5, 1, 1), 1)), (4.0, 4.0, 4.0)).label.numpy()
    assert np.argwhere(found).tolist() == [[1, 2, 2]]


def test_each_of_several_lost_lesions_is_drawn():
    label = marked(*(((i, 5, 5), (1, 1, 1), 1) for i in (1, 9, 17)), ((13, 16, 12), (5, 4, 4), 2))
    found = resampled(label, (4.0, 4.0, 4.0)).label.numpy()
    assert int((found == 1).sum()) == 3
    assert (found == 2).any()


def test_between_two_classes_the_larger_share_counts_and_together_they_are_lesion():
    """At 1.5 mm new voxels lie at 0, 1.5, 3 … old ones: half-way between two they have a half of each."""
    label = marked(((0, 4, 4), (1, 8, 8), 1), ((1, 4, 4), (1, 8, 8), 3), ((2, 4, 4), (1, 8, 8), 2))
    found = resampled(label, (1.5, 1.0, 1.0)).label.numpy()[:4, 6, 6]
    assert found.tolist() == [1, 3, 0, 0]  # 0: class 1; 1.5: classes 3 and 2 alike, so the higher; 3: none


def test_an_axis_keeps_a_spacing_that_differs_by_rounding_and_its_voxels_exactly():
    case = volumes(np.diag([0.5000001, 1.001, 3.0, 1.0]))
    prepared = prepare_case(case, Preprocessing(spacing_mm=(0.5, 1.0, 3.0), **PLAIN))
    np.testing.assert_array_equal(prepared.image, case.image)
    np.testing.assert_array_equal(prepared.affine, case.grid.affine)
    farther = prepare_case(volumes(np.diag([0.5, 1.004, 3.0, 1.0])), Preprocessing(spacing_mm=(0.5, 1.0, 3.0), **PLAIN))
    np.testing.assert_allclose(np.diag(farther.affine), (0.5, 1.0, 3.0, 1.0))


def test_an_axis_of_one_voxel_takes_the_spacing_of_the_network():
    label = marked(((5, 4, 0), (2, 2, 1), 1), shape=(12, 10, 1))
    prepared = resampled(label, (1.0, 1.0, 3.0))
    assert prepared.image.shape == (1, 12, 10, 1)
    assert np.diag(prepared.affine).tolist() == [1, 1, 3, 1]
    np.testing.assert_array_equal(prepared.label, label)


def test_a_gap_in_what_was_judged_keeps_one_voxel_at_least():
    label = marked(((5, 4, 3), (8, 8, 8), 1))
    ignore = marked(((9, 9, 9), (1, 1, 1), 1)) > 0
    case = CaseVolumes(
        Case("c", "p", "training", ()), label[None].astype(np.float32), Volume(label, np.eye(4)), label, ignore=ignore
    )
    for spacing_mm in (None, (1.0, 1.0, 1.0), (2.0, 2.0, 2.0)):
        prepared = prepare_case(case, Preprocessing(spacing_mm=spacing_mm, **PLAIN))
        assert prepared.ignore.dtype == np.bool_
        assert prepared.ignore.shape == prepared.label.shape
        assert prepared.ignore.sum() == 1
    assert prepare_case(volumes(GRIDS["RAS"]), Preprocessing()).ignore is None


@pytest.mark.parametrize("spacing_mm", [(0.4, 0.9, 1.3), (0.5, 0.5, 1.0), (0.25, 1.0, 3.0)])
@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize("intensity", list(Intensity))
def test_on_a_finer_grid_images_are_those_of_monai(name, spacing_mm, intensity):
    """An independent answer for the grid, for linear interpolation and for intensities."""
    from monai import transforms
    from monai.data.meta_tensor import MetaTensor

    case = volumes(GRIDS[name], channels=2)
    old_mm = nibabel.as_closest_canonical(nibabel.Nifti1Image(case.label, GRIDS[name])).header.get_zooms()
    spacing_mm = tuple(np.minimum(spacing_mm, old_mm))
    found = prepare_case(case, Preprocessing(spacing_mm=spacing_mm, intensity=intensity))
    image = MetaTensor(torch.from_numpy(case.image.copy()), affine=torch.as_tensor(GRIDS[name]))
    image = transforms.Orientation("RAS", labels=None)(image)
    image = transforms.Spacing(spacing_mm, mode="bilinear", padding_mode="border", dtype=np.float64)(image)
    if intensity is Intensity.ZSCORE_NONZERO:
        image = transforms.NormalizeIntensity(nonzero=True, channel_wise=True)(image)
    elif intensity is Intensity.PERCENTILE_ZSCORE:
        image = transforms.ClipIntensityPercentiles(lower=0.5, upper=99.5, channel_wise=True)(image)
        image = transforms.NormalizeIntensity(channel_wise=True)(image)
    np.testing.assert_allclose(found.affine, image.affine, atol=1e-6)
    np.testing.assert_allclose(found.image, image.as_tensor().float(), rtol=1e-4, atol=1e-4)


def test_on_a_coarser_grid_each_old_voxel_has_its_part_by_its_distance():
    """At 3 mm weights fall from 3/9 by 1/9 a voxel; a voxel beyond an end stands for the one at the end."""
    label = marked(((5, 0, 0), (1, 20, 16), 1))
    expected = [0, 1 / 9, 2 / 9, 0, 0, 0, 0, 0, 0]
    assert resampled(label, (3.0, 1.0, 1.0)).image[0, :, 4, 4].tolist() == pytest.approx(expected, abs=1e-6)
    label = marked(((0, 0, 0), (1, 20, 16), 1))
    expected = [6 / 9, 0, 0]  # its own 3/9, and 2/9 and 1/9 for those beyond
    assert resampled(label, (3.0, 1.0, 1.0)).image[0, :3, 4, 4].tolist() == pytest.approx(expected, abs=1e-6)


def test_a_map_goes_back_onto_coarser_voxels_as_their_average():
    """Network at 1 mm, case at 3 mm: a peak between two slices is seen in both."""
    case = volumes(np.diag([1.0, 1.0, 3.0, 1.0]))
    prepared = prepare_case(case, Preprocessing(spacing_mm=(1.0, 1.0, 1.0), **PLAIN))
    values = np.zeros(prepared.image.shape[1:], np.float32)
    values[6, 5, 13] = 1  # slices lie at 12 and 15
    back = to_native(values, prepared)
    assert back[6, 5, 3:7].tolist() == pytest.approx([0, 2 / 9, 1 / 9, 0], abs=1e-6)
    assert np.count_nonzero(back > 1e-6) == 2


def test_what_has_no_spread_becomes_0_and_what_is_0_everywhere_stays():
    case = volumes(GRIDS["RAS"], channels=3)
    case.image[0] = 7.7  # a mean over float32 is off by 1e-6 here or below
    case.image[1] = 0
    case.image[2, :7] = 0
    case.image[2, 7:] = 0.3
    for intensity in (Intensity.ZSCORE_NONZERO, Intensity.PERCENTILE_ZSCORE):
        found = prepare_case(case, Preprocessing(intensity=intensity)).image
        assert not found[:2].any()
    assert not prepare_case(case, Preprocessing()).image[2].any()


def test_a_small_spread_about_a_large_mean_is_not_lost():
    case = volumes(GRIDS["RAS"])
    case.image[:] = np.random.default_rng(5).normal(30_000, 2, case.image.shape)
    found = prepare_case(case, Preprocessing()).image.double()
    assert float(found.mean()) == pytest.approx(0, abs=1e-3)
    assert float(found.std()) == pytest.approx(1, abs=1e-3)


def test_the_reference_stays_on_the_native_grid():
    case = volumes(GRIDS["permuted"])
    prepared = prepare_case(case, Preprocessing(spacing_mm=(1, 1, 1), **PLAIN))
    np.testing.assert_array_equal(prepared.reference, case.label)
    np.testing.assert_array_equal(prepared.grid.affine, case.grid.affine)


def test_a_case_without_label_is_prepared_without_one():
    case = volumes(GRIDS["RAS"])
    prepared = prepare_case(CaseVolumes(case.case, case.image, case.grid, None), Preprocessing())
    assert prepared.label is None
    assert prepared.reference is None


def test_preparing_does_not_change_what_was_read():
    case = volumes(GRIDS["RAS"])
    before = case.image.copy()
    prepare_case(case, Preprocessing())
    np.testing.assert_array_equal(case.image, before)


def test_zscore_is_over_the_voxels_that_are_not_0_of_each_channel():
    case = volumes(GRIDS["RAS"], channels=2)
    case.image[:, :7] = 0
    case.image[1] *= -30
    found = prepare_case(case, Preprocessing(intensity=Intensity.ZSCORE_NONZERO)).image.numpy()
    for channel, image in zip(found, case.image.astype(np.float64), strict=True):
        inside = image[image != 0]
        expected = np.where(image != 0, (image - inside.mean()) / inside.std(), 0)
        np.testing.assert_allclose(channel, expected, atol=1e-4)


def test_percentile_scheme_clips_then_scales_over_all_voxels_of_each_channel():
    case = volumes(GRIDS["RAS"], channels=2)
    case.image[:] = np.random.default_rng(3).normal(-400, 300, case.image.shape)
    case.image[1] *= 5
    found = prepare_case(case, Preprocessing(intensity="percentile_zscore")).image.numpy()
    for channel, image in zip(found, case.image.astype(np.float64), strict=True):
        clipped = np.clip(image, *np.percentile(image, [0.5, 99.5]))
        np.testing.assert_allclose(channel, (clipped - clipped.mean()) / clipped.std(), atol=1e-4)


@pytest.mark.parametrize("intensity", list(Intensity))
def test_every_scheme_keeps_the_affine_and_gives_finite_float32(intensity):
    case = volumes(GRIDS["oblique LPS"])
    prepared = prepare_case(case, Preprocessing(intensity=intensity))
    assert prepared.image.dtype == torch.float32
    assert type(prepared.image) is torch.Tensor
    assert torch.isfinite(prepared.image).all()
    np.testing.assert_allclose(
        centroid_mm(prepared.label.numpy(), prepared.affine), centroid_mm(case.label, case.grid.affine), atol=1e-6
    )


@pytest.mark.parametrize("orientation", ["RA", "RAX", "RLS", "RRS", "ras", "RASS", ""])
def test_an_orientation_that_is_none_is_refused(orientation):
    with pytest.raises(ValueError, match="orientation must name each of L/R, P/A and I/S once"):
        Preprocessing(orientation=orientation)


@pytest.mark.parametrize("spacing_mm", [(1, 1), (1, 0, 1), (1, -1, 1), (1, np.nan, 1), (1, 1, np.inf)])
def test_a_spacing_that_is_none_is_refused(spacing_mm):
    with pytest.raises(ValueError, match="spacing_mm must be three positive numbers"):
        Preprocessing(spacing_mm=spacing_mm)


def test_an_unknown_intensity_scheme_is_refused():
    with pytest.raises(ValueError, match="minmax"):
        Preprocessing(intensity="minmax")


def test_preprocessing_survives_its_plain_form():
    preprocessing = Preprocessing(orientation="LPS", spacing_mm=[1, 2, 3], intensity="percentile_zscore")
    assert Preprocessing(**preprocessing.to_dict()) == preprocessing


def test_a_mistyped_spacing_is_refused_before_memory_is_asked_for():
    affine = np.diag([0.5, 1.0, 3.0, 1.0])
    case = CaseVolumes(
        Case("s1", "s1", "test", ()),
        np.zeros((1, 12, 10, 8), np.float32),
        Volume(np.zeros((12, 10, 8), np.uint8), affine),
        None,
    )
    with pytest.raises(ResourceError, match=r"more than 5e\+09\. Choose a coarser spacing_mm"):
        prepare_case(case, Preprocessing(spacing_mm=(1e-4, 1e-4, 1e-4)))


@pytest.mark.parametrize("axes", ["x", "y", "z", "xy"])
@pytest.mark.parametrize("degrees", [45, 135, 225])
@pytest.mark.parametrize("spacing_mm", [None, (1.0, 1.0, 1.0)])
def test_grids_at_45_degrees_come_back_though_their_axes_have_no_clear_name(axes, degrees, spacing_mm):
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler(axes, [degrees] * len(axes), degrees=True).as_matrix() * [0.8, 1.1, 1.7]
    image = np.zeros((1, 16, 14, 12), np.float32)
    image[0, 5:9, 6:9, 4:8] = 1
    grid = Volume(np.zeros(image.shape[1:]), affine)
    prepared = prepare_case(
        CaseVolumes(Case("c", "c", "training", ()), image, grid, None),
        Preprocessing(spacing_mm=spacing_mm, intensity=Intensity.NONE),
    )
    back = to_native(prepared.image[0].numpy(), prepared)
    assert back.shape == grid.shape
    assert np.abs(ndimage.center_of_mass(back) - np.array(ndimage.center_of_mass(image[0]))).max() < 0.1
