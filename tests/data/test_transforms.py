"""To the network's grid and back: no voxel leaves its place in the world."""

from __future__ import annotations

import nibabel
import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from medfocal.data.cases import CaseVolumes
from medfocal.data.manifest import Case
from medfocal.data.transforms import (
    Augmentation,
    Intensity,
    PreparedCase,
    Preprocessing,
    RandomTransforms,
    body_mask,
    check_transposable,
    prepare_case,
    to_native,
)
from medfocal.errors import ConfigError, ResourceError
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


@pytest.mark.parametrize("change", [{"flip_probability": 1.1}, {"noise_std": -0.1}, {"scaling": np.nan}])
def test_an_augmentation_out_of_range_is_refused(change):
    with pytest.raises(ValueError, match=rf"{next(iter(change))} must be in \[0, (1|inf)\]"):
        Augmentation(**change)


# Augmentation

EVERYTHING = Augmentation(
    flip_probability=0.5,
    affine_probability=0.7,
    rotation_degrees=20,
    intensity_probability=0.7,
    noise_probability=0.7,
)


def sample(seed=0):
    rng = np.random.default_rng(seed)
    label = np.zeros((1, 16, 12, 8), np.uint8)
    label[0, 9:14, 2:6, 1:5] = 1
    image = rng.random((2, 16, 12, 8), np.float32) + 100 * label
    return {"image": torch.from_numpy(image.astype(np.float32)), "label": torch.from_numpy(label)}


def changed(chain, seed, given=None):
    chain.set_random_state(seed=seed)
    return chain(given or sample())


def test_what_a_sample_becomes_depends_on_its_seed_alone():
    """Not on the chain's past: a run that goes on after a stop has another past."""
    chain, fresh = RandomTransforms(EVERYTHING), RandomTransforms(EVERYTHING)
    first = [changed(chain, seed) for seed in range(12)]
    for seed in reversed(range(12)):
        again = changed(fresh, seed)
        for key in ("image", "label"):
            np.testing.assert_array_equal(np.asarray(again[key]), np.asarray(first[seed][key]))


def test_other_seeds_give_other_samples():
    chain = RandomTransforms(EVERYTHING)
    found = {np.asarray(changed(chain, seed)["image"]).tobytes() for seed in range(12)}
    assert len(found) == 12


def test_global_random_generators_neither_matter_nor_move():
    chain = RandomTransforms(EVERYTHING)
    before = (torch.get_rng_state(), np.random.get_state()[1].copy())  # noqa: NPY002  the generator that must not move
    first = np.asarray(changed(chain, 5)["image"])
    np.testing.assert_array_equal(torch.get_rng_state(), before[0])
    np.testing.assert_array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002
    torch.manual_seed(99)
    np.testing.assert_array_equal(np.asarray(changed(chain, 5)["image"]), first)


def test_image_and_label_move_together():
    spatial = Augmentation(affine_probability=1.0, rotation_degrees=20, intensity_probability=0, noise_probability=0)
    chain, moved = RandomTransforms(spatial), 0
    for seed in range(12):
        found = changed(chain, seed)
        bright, lesion = np.asarray(found["image"][0]) > 50, np.asarray(found["label"][0]) > 0
        assert set(np.unique(np.asarray(found["label"]))) <= {0, 1}
        assert 2 * (bright & lesion).sum() / (bright.sum() + lesion.sum()) > 0.85
        moved += not np.array_equal(lesion, sample()["label"][0].numpy() > 0)
    assert moved == 12


def test_flips_alone_permute_voxels_along_every_axis_and_are_exact():
    chain = RandomTransforms(Augmentation(intensity_probability=0, noise_probability=0))
    image, ways = sample()["image"][0].numpy(), set()
    for seed in range(60):
        found = changed(chain, seed)
        flips = [
            axes
            for axes in ((), (0,), (1,), (2,), (0, 1), (0, 2), (1, 2), (0, 1, 2))
            if np.array_equal(np.flip(image, axes), np.asarray(found["image"][0]))
        ]
        assert len(flips) == 1
        np.testing.assert_array_equal(
            np.flip(sample()["label"][0].numpy(), flips[0]), np.asarray(found["label"][0]).astype(np.uint8)
        )
        ways.add(flips[0])
    assert len(ways) == 8


def test_transposition_swaps_the_first_two_axes_of_image_and_label_and_is_exact():
    chain = RandomTransforms(
        Augmentation(flip_probability=0, transpose_probability=0.5, intensity_probability=0, noise_probability=0)
    )
    given, turned = sample(), 0
    for seed in range(20):
        found = changed(chain, seed)
        swap = found["image"].shape[1:] == (12, 16, 8)
        for key in ("image", "label"):
            expected = given[key].numpy().swapaxes(1, 2) if swap else given[key].numpy()
            np.testing.assert_array_equal(found[key].numpy(), expected)
        turned += swap
    assert 4 < turned < 16


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


def placed(spacing_mm):
    affine = np.diag([*spacing_mm, 1.0])
    grid = Volume(np.zeros((4, 4, 4), np.uint8), affine)
    return PreparedCase(Case("s1", "s1", "training", ()), torch.zeros(1, 4, 4, 4), affine, None, grid, None)


def test_transposing_needs_square_patches_and_equal_spacing():
    check_transposable([placed((1.0, 1.001, 3.0))], (8, 8, 4))
    with pytest.raises(ConfigError, match=r"patches of \[8, 6, 4\] voxels cannot be transposed"):
        check_transposable([], (8, 6, 4))
    with pytest.raises(ConfigError, match=r"case 's1' cannot be transposed: its spacing is 0.5 mm .* and 1 mm"):
        check_transposable([placed((0.5, 1.0, 3.0))], (8, 8, 4))


def test_intensity_changes_leave_the_label_alone():
    chain = RandomTransforms(Augmentation(flip_probability=0, intensity_probability=1, noise_probability=1))
    found = changed(chain, 3)
    np.testing.assert_array_equal(np.asarray(found["label"]), sample()["label"].numpy())
    assert not np.array_equal(np.asarray(found["image"]), sample()["image"].numpy())


def test_no_augmentation_changes_nothing():
    chain = RandomTransforms(Augmentation(flip_probability=0, intensity_probability=0, noise_probability=0))
    np.testing.assert_array_equal(np.asarray(changed(chain, 3)["image"]), sample()["image"].numpy())


# Body


def test_the_body_of_a_skull_stripped_image_is_what_is_not_0_in_some_channel():
    image = torch.zeros(2, 12, 10, 8)
    image[0, 2:5, 3, 4] = -1.5  # below the background after z-scoring
    image[1, 7, 3, 4] = 2.0
    expected = np.zeros((12, 10, 8), bool)
    expected[2:5, 3, 4] = expected[7, 3, 4] = True
    np.testing.assert_array_equal(body_mask(image), expected)


def test_the_body_of_a_ct_is_what_is_above_the_lowest_value():
    image = torch.full((1, 12, 10, 8), -1.7)
    image[0, 2:5, 3, 4] = 0.3
    assert body_mask(image).sum() == 3
