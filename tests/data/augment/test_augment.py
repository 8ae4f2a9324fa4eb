"""Random changes of batches: each against an independent answer, and each patch from its own seed alone."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from scipy import interpolate, ndimage
from scipy.spatial.transform import Rotation
from torch.nn import functional as F

from medfocal.data.augment import BatchAugmentation, intensity, warp
from medfocal.data.augment.monai import MonaiAugmentation
from medfocal.errors import ConfigError

PATCH, SPACING_MM = (12, 10, 8), (0.5, 1.0, 3.0)
NAMES = [f.name for f in dataclasses.fields(BatchAugmentation)]
KINDS = [n for n in NAMES if n.endswith("_probability") and not n.endswith("channel_probability")]
OFF = dict.fromkeys(KINDS, 0.0)
#: All that can happen, with values that small patches of unequal spacing can take.
EVERYTHING = {
    **dict.fromkeys(KINDS, 0.6),
    "transpose_probability": 0.0,  # the patch is not square
    "elastic_spacing_mm": 6.0,
    "elastic_displacement_mm": (0.0, 2.0),
    "rotation_degrees": (20.0, 15.0, 30.0),
    "shift": (-1.0, 1.0),
}
SPATIAL = {
    **EVERYTHING,
    **{n: 0.0 for n in KINDS if n.split("_")[0] not in {"mirror", "rotation", "scaling", "zoom", "elastic"}},
}
INTENSITY = {**EVERYTHING, **{n: 0.0 for n in KINDS if SPATIAL[n] > 0}}


def only(**settings):
    """Nothing but what is asked for."""
    return BatchAugmentation(**{**OFF, **settings})


def batch(size=PATCH, *, num_patches=3, num_channels=2, seed=0):
    rng = np.random.default_rng(seed)
    shares = rng.dirichlet((1, 1, 3), (num_patches, *size)).astype(np.float32)[..., :2]
    return {
        "image": torch.from_numpy(rng.normal(1, 2, (num_patches, num_channels, *size)).astype(np.float32)),
        "label": torch.from_numpy((rng.random((num_patches, 1, *size)) < 0.2).astype(np.uint8) * 3),
        "shares": torch.from_numpy(np.moveaxis(shares, -1, 1).copy()),
        "weight": torch.from_numpy(rng.random((num_patches, 1, *size), np.float32)),
    }


def places(size, num_patches=1):
    """In `shares`, which only geometry changes: the three coordinates of each voxel of the input, and how far in."""
    return torch.from_numpy(np.indices(size).astype(np.float32))[None].repeat(num_patches, 1, 1, 1, 1)


def changed(augmentation, given, seeds=None, *, spacing_mm=SPACING_MM, patch=PATCH):
    num_patches = len(given["image"])
    seeds = range(num_patches) if seeds is None else seeds
    return augmentation(given, seeds=seeds, spacing_mm=[spacing_mm] * num_patches, patch_size=patch)


def assert_same(one, other):
    assert one.keys() == other.keys()
    for key in one:
        np.testing.assert_array_equal(one[key].numpy(), other[key].numpy(), err_msg=key)


def channel(seed=0, size=PATCH):
    return torch.from_numpy(np.random.default_rng(seed).normal(1, 2, size).astype(np.float32))


# What a patch depends on


def test_nothing_drawn_is_nothing_changed_to_the_bit():
    given = batch()
    found = changed(only(), given)
    assert_same(found, given)
    assert all(found[key].data_ptr() != given[key].data_ptr() for key in given)


def test_nothing_drawn_cuts_the_middle_of_a_larger_input():
    given = batch((16, 13, 8))
    found = changed(only(), given)
    assert_same(found, {key: values[:, :, 2:14, 1:11] for key, values in given.items()})


def test_a_patch_is_the_same_whatever_is_beside_it_and_before_it():
    augmentation = BatchAugmentation(**EVERYTHING)
    given = batch((16, 14, 10), num_patches=6)
    seeds = [11, 2**63, 5, 5, 0, 77]
    together = changed(augmentation, given, seeds)
    for number in reversed(range(6)):
        alone = {key: values[number : number + 1] for key, values in given.items()}
        found = changed(BatchAugmentation(**EVERYTHING), alone, [seeds[number]])
        assert_same(found, {key: values[number : number + 1] for key, values in together.items()})


def test_other_seeds_give_other_patches():
    augmentation, given = BatchAugmentation(**EVERYTHING), batch(num_patches=1)
    found = {changed(augmentation, given, [seed])["image"].numpy().tobytes() for seed in range(30)}
    assert len(found) == 30


def test_what_was_given_stays_as_it_is():
    given = batch((14, 12, 10))
    before = {key: values.clone() for key, values in given.items()}
    changed(BatchAugmentation(**EVERYTHING), given)
    assert_same(given, before)


def test_global_generators_neither_matter_nor_move():
    given = batch((14, 12, 10))
    before = (torch.get_rng_state(), np.random.get_state()[1].copy())  # noqa: NPY002  the generator that must not move
    first = changed(BatchAugmentation(**EVERYTHING), given)
    np.testing.assert_array_equal(torch.get_rng_state(), before[0])
    np.testing.assert_array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002
    torch.manual_seed(99)
    assert_same(changed(BatchAugmentation(**EVERYTHING), given), first)


@pytest.mark.parametrize("kind", KINDS)
def test_switching_one_kind_off_leaves_what_the_others_draw(kind):
    settings = {**EVERYTHING, "mirror_probability": 1.0}
    for seed in range(10):
        whole = BatchAugmentation(**settings).changes(seed, 3)
        without = BatchAugmentation(**{**settings, kind: 0.0}).changes(seed, 3)
        moved = [
            f.name for f in dataclasses.fields(whole) if str(getattr(whole, f.name)) != str(getattr(without, f.name))
        ]
        alone = {"mirror": "mirrored", "rotation": "degrees", "scaling": "factors", "zoom": "factors"}
        name = kind.removesuffix("_probability")
        assert moved in ([], [alone.get(name, "elastic_mm" if name == "elastic" else name)])


def test_it_runs_under_deterministic_algorithms_and_needs_no_gradient():
    given = batch((14, 12, 10))
    given["image"].requires_grad_()
    wanted = changed(BatchAugmentation(**EVERYTHING), given)
    torch.use_deterministic_algorithms(True)
    try:
        found = changed(BatchAugmentation(**EVERYTHING), given)
    finally:
        torch.use_deterministic_algorithms(False)
    assert_same(found, wanted)
    assert all(values.is_contiguous() and not values.requires_grad for values in found.values())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA")
def test_cuda_gives_what_the_cpu_gives_but_for_noise():
    augmentation = BatchAugmentation(**{**EVERYTHING, "noise_probability": 0.0})
    given = batch((16, 14, 10), num_patches=20)
    wanted = changed(augmentation, given)
    found = changed(augmentation, {key: values.cuda() for key, values in given.items()})
    for key in ("image", "shares", "weight"):
        np.testing.assert_allclose(found[key].cpu().numpy(), wanted[key].numpy(), atol=1e-3)
    assert (found["label"].cpu() != wanted["label"]).float().mean() < 0.01  # a point halfway between two voxels


# Geometry


def matrix_of(changes, spacing_mm):
    """From voxels of the patch to voxels of the input, made in another way."""
    degrees = np.zeros(3) if changes.degrees is None else changes.degrees
    factors = np.ones(3) if changes.factors is None else changes.factors
    to_mm = np.diag(spacing_mm)
    forward_mm = Rotation.from_euler("xyz", degrees, degrees=True).as_matrix() @ np.diag(factors)
    return np.linalg.inv(np.linalg.inv(to_mm) @ forward_mm @ to_mm)


AFFINE = {
    "a turn": {"rotation_probability": 1.0, "rotation_degrees": (25.0, 40.0, 60.0)},
    "a size": {"scaling_probability": 1.0, "scaling": (0.5, 2.0)},
    "sizes by axis": {"zoom_probability": 1.0, "zoom": (0.6, 1.7)},
    "all": {
        "rotation_probability": 1.0,
        "rotation_degrees": (25.0, 40.0, 60.0),
        "scaling_probability": 1.0,
        "zoom_probability": 1.0,
    },
}


@pytest.mark.parametrize("size", [PATCH, (20, 18, 12), (13, 15, 9)], ids=str)
@pytest.mark.parametrize("name", AFFINE)
def test_turns_and_sizes_in_mm_are_those_of_scipy(name, size):
    augmentation, given = only(**AFFINE[name]), batch(size, num_patches=8)
    found = changed(augmentation, given)
    starts = np.array([(n - m) // 2 for n, m in zip(size, PATCH, strict=True)])
    centre = (np.array(PATCH) - 1) / 2
    for seed in range(8):
        matrix = matrix_of(augmentation.changes(seed, 2), SPACING_MM)
        place = {"offset": starts + centre - matrix @ centre, "output_shape": PATCH}
        for key in ("image", "shares", "weight"):
            for values, other in zip(given[key][seed].double().numpy(), found[key][seed].numpy(), strict=True):
                wanted = ndimage.affine_transform(values, matrix, order=1, mode="grid-constant", **place)
                np.testing.assert_allclose(other, wanted, atol=2e-4)
        wanted = ndimage.affine_transform(
            given["label"][seed, 0].numpy(), matrix, order=0, mode="grid-constant", **place
        )
        # Points within 1e-5 voxels of halfway may go either way.
        assert (found["label"][seed, 0].numpy() != wanted).mean() < 0.003


def test_a_turn_keeps_distances_in_mm_where_spacing_is_unequal():
    """A turn by 90 degrees about the third axis swaps the first two, which differ in spacing."""
    size, spacing_mm = (25, 25, 5), (1.0, 2.0, 3.0)
    label = torch.zeros(1, 1, *size, dtype=torch.uint8)
    label[0, 0, 12 + 8, 12, 2] = 1  # 8 mm along the first axis
    label[0, 0, 12, 12 + 3, 2] = 2  # 6 mm along the second
    found = warp.sample(
        {"label": label[0]},
        size,
        warp.Warp(matrix=warp.affine_matrix(np.array([0.0, 0.0, 90.0]), np.ones(3), spacing_mm)),
    )["label"][0].numpy()
    assert found[12, 12 + 4, 2] == 1
    assert {tuple(place) for place in np.argwhere(found == 2)} >= {(12 - 6, 12, 2)}


def test_label_image_and_soft_label_show_the_same_place():
    """The label holds numbers of voxels and `shares` their coordinates: never more than half a voxel apart."""
    augmentation, size = BatchAugmentation(**{**SPATIAL, "input_limit": 3.0}), (24, 20, 16)
    for axis in range(3):
        where = places(size, 30)
        label = where[:, axis : axis + 1].to(torch.uint8)
        given = {"image": where, "label": label, "shares": where, "weight": torch.ones(30, 1, *size)}
        found = changed(augmentation, given)
        assert_same({"image": found["image"]}, {"image": found["shares"]})
        inside = found["weight"] > 0.999
        assert inside.float().mean() > 0.8
        apart = (found["label"].float() - found["shares"][:, axis : axis + 1]).abs()
        assert apart[inside].max() < 0.5 + 1e-3
        assert (found["shares"] != where[:, :, 6:18, 5:15, 4:12]).flatten(1).any(dim=1).float().mean() > 0.8


def signs(augmentation, seed, size=(24, 20, 16)):
    """Which way each axis of the patch runs in the input, and whether the map between them mirrors.

    From the best linear map of the coordinates that are shown, so whatever bends them counts too.
    """
    given = {"image": torch.ones(1, 1, *size), "shares": places(size), "weight": torch.ones(1, 1, *size)}
    found = changed(augmentation, given, [seed], patch=(10, 10, 8))
    inside = found["weight"][0, 0].numpy() > 0.999
    shown, own = found["shares"][0].numpy()[:, inside].T, np.argwhere(inside)
    linear = np.linalg.lstsq(own - own.mean(axis=0), shown - shown.mean(axis=0), rcond=None)[0].T
    return np.sign(np.diag(linear)).astype(int), int(np.sign(np.linalg.det(linear)))


@pytest.mark.parametrize("axes", [axes for n in range(4) for axes in itertools.combinations(range(3), n)], ids=str)
def test_nothing_mirrors_but_mirror_axes(axes):
    augmentation = BatchAugmentation(**{**EVERYTHING, "mirror_axes": axes, "mirror_probability": 0.5})
    mirrored = set()
    for seed in range(60):
        along, handed = signs(augmentation, seed)
        assert handed == np.prod(along)
        assert set(np.flatnonzero(along < 0)) <= set(axes)
        mirrored.add(tuple(np.flatnonzero(along < 0)))
    assert len(mirrored) == 2 ** len(axes)


def test_mirrors_and_transposition_move_voxels_exactly():
    augmentation = only(mirror_probability=0.5, transpose_probability=0.5)
    given, ways = batch((10, 10, 8), num_patches=40), set()
    found = changed(augmentation, given, patch=(10, 10, 8))
    for seed in range(40):
        changes = augmentation.changes(seed, 2)
        for key, values in given.items():
            wanted = np.flip(values[seed].numpy(), [axis + 1 for axis in changes.mirrored])
            wanted = wanted.swapaxes(1, 2) if changes.transposed else wanted
            np.testing.assert_array_equal(found[key][seed].numpy(), wanted)
        ways.add((changes.mirrored, changes.transposed))
    assert len(ways) > 12


@pytest.mark.parametrize("axes", [(), (0,), (1, 2)], ids=str)
def test_a_transposition_is_refused_where_its_axes_may_not_be_mirrored(axes):
    with pytest.raises(ValueError, match="transpose_probability must be 0 unless mirror_axes has 0 and 1"):
        only(transpose_probability=0.5, mirror_axes=axes)


def test_a_transposition_needs_square_patches_and_equal_spacing():
    augmentation = only(transpose_probability=0.5)
    augmentation.check((8, 8, 4), {"s1": (1.0, 1.001, 3.0)})
    with pytest.raises(ConfigError, match=r"patches of \[8, 6, 4\] voxels cannot be transposed"):
        augmentation.check((8, 6, 4), {})
    with pytest.raises(ConfigError, match=r"case 's1' cannot be transposed: its spacing is 0.5 mm .* and 1 mm"):
        augmentation.check((8, 8, 4), {"s1": SPACING_MM})
    only().check((8, 6, 4), {"s1": SPACING_MM})


# What must be cut


@pytest.mark.parametrize("kind", ["rotation", "scaling", "zoom", "elastic"])
@pytest.mark.parametrize("spacing_mm", [(1.0, 1.0, 1.0), SPACING_MM], ids=str)
def test_no_corner_of_a_patch_is_empty_when_the_input_is_as_large_as_asked_for(kind, spacing_mm):
    """With the largest of changes, where a single warp is concerned."""
    largest = {
        "rotation": {"rotation_degrees": (25.0, 20.0, 35.0)},
        "scaling": {"scaling": (0.7, 0.71)},
        "zoom": {"zoom": (0.7, 0.71)},
        "elastic": {"elastic_spacing_mm": 6.0, "elastic_displacement_mm": (2.0, 2.4)},
    }
    augmentation = only(**{f"{kind}_probability": 1.0}, input_limit=9.0, **largest[kind])
    size = augmentation.input_size(PATCH, [spacing_mm])
    assert size != PATCH
    given = {"image": torch.ones(40, 1, *size)}
    found = changed(augmentation, given, spacing_mm=spacing_mm)["image"]
    np.testing.assert_allclose(found.numpy(), 1, atol=1e-5)


def test_no_corner_is_empty_at_the_extremes_of_everything_together():
    settings = {**SPATIAL, "input_limit": 9.0}
    augmentation = BatchAugmentation(**settings)
    size = augmentation.input_size(PATCH, [SPACING_MM])
    factor = augmentation.scaling[0] * augmentation.zoom[0]
    for signs_of_turns in itertools.product((-1, 0.5, 1), repeat=3):
        degrees = np.array(signs_of_turns) * augmentation.rotation_degrees
        matrix = warp.affine_matrix(degrees, np.full(3, factor), SPACING_MM)
        largest = tuple(2.0 / s for s in SPACING_MM)
        bent = torch.tensor(largest).view(3, 1, 1, 1).expand(3, *PATCH)
        for sign in (-1, 1):
            moved = warp.Warp(matrix=matrix, displacement=sign * bent, largest=largest)
            found = warp.sample({"image": torch.ones(1, *size)}, PATCH, moved)["image"]
            np.testing.assert_allclose(found.numpy(), 1, atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        ({}, (12, 10, 8)),
        ({"mirror_probability": 0.5, "noise_probability": 1.0}, (12, 10, 8)),
        # The half diagonal of 11 x 9 steps is 7.11: 1.61 beyond the first axis, 2.61 beyond the second.
        ({"rotation_probability": 0.1, "rotation_degrees": (0, 0, 90)}, (16, 16, 8)),
        ({"rotation_probability": 0.1, "rotation_degrees": (0, 0, 90), "input_limit": 1.2}, (14, 12, 8)),
        # Half of 11, 9 and 7 steps doubled: 5.5, 4.5 and 3.5 more on either side.
        ({"scaling_probability": 0.1, "scaling": (0.5, 1.0)}, (24, 20, 16)),
        ({"scaling_probability": 0.1, "scaling": (1.2, 1.5)}, (14, 12, 10)),
    ],
    ids=str,
)
def test_the_input_is_as_large_as_worked_out(settings, wanted):
    found = only(**{"input_limit": 9.0, **settings}).input_size(PATCH, [(1.0, 1.0, 1.0)])
    if settings.get("scaling") == (
        1.2,
        1.5,
    ):  # things grow: the patch itself would do, and a voxel of margin is allowed
        assert all(n <= most for n, most in zip(found, wanted, strict=True))
    else:
        assert found == wanted


def test_the_input_suits_the_worst_spacing_of_all_cases():
    augmentation = only(rotation_probability=1.0, input_limit=9.0)
    each = [augmentation.input_size(PATCH, [s]) for s in ((1.0, 1.0, 1.0), SPACING_MM)]
    both = augmentation.input_size(PATCH, [(1.0, 1.0, 1.0), SPACING_MM])
    assert both == tuple(np.max(each, axis=0))


def test_beyond_the_input_everything_is_0():
    augmentation = only(scaling_probability=1.0, scaling=(0.5, 0.5))
    given = {key: torch.ones_like(values) for key, values in batch().items()}
    for key, values in changed(augmentation, given).items():
        assert (values[:, :, 4:8, 3:7, 3:5] == 1).all(), key
        for axis in (2, 3, 4):
            assert (values.index_select(axis, torch.tensor([0, values.shape[axis] - 1])) == 0).all(), key


def test_what_an_elastic_change_alone_brings_from_beyond_the_input_is_0():
    displacement = torch.zeros(3, *PATCH)
    displacement[1] = 3.0
    moved = warp.Warp(matrix=np.eye(3), displacement=displacement, largest=(0.0, 3.0, 0.0))
    found = warp.sample({"weight": torch.ones(1, 14, 12, 10)}, PATCH, moved)["weight"][0].numpy()
    assert (found[:, :8] == 1).all()  # the input begins one voxel before the patch, and the last is its 12th
    assert (found[:, 8:] == 0).all()


# Elastic


def test_a_control_point_moves_voxels_as_a_cubic_b_spline_of_scipy():
    spacing_mm, control_mm = (1.0, 1.0, 2.0), 4.0
    shape = warp.control_points(PATCH, spacing_mm, control_mm)
    middle = tuple(n // 2 for n in shape)
    coefficients = np.zeros((3, *shape))
    coefficients[(1, *middle)] = 3.0
    found = warp.elastic_displacement(
        coefficients, PATCH, spacing_mm=spacing_mm, control_spacing_mm=control_mm, device=torch.device("cpu")
    ).numpy()
    element = interpolate.BSpline.basis_element(np.arange(-2, 3), extrapolate=False)
    along = []
    for n, step, number in zip(PATCH, (4.0, 4.0, 2.0), middle, strict=True):
        place = (np.arange(n) - (n - 1) / 2) / step
        point = np.floor(place[0]) - 1 + number
        along.append(np.nan_to_num(element(place - point)))
    wanted = 3.0 * np.einsum("i,j,k->ijk", *along)
    np.testing.assert_allclose(found[1], wanted, atol=1e-6)
    assert not found[[0, 2]].any()


def test_control_points_that_move_together_move_all_voxels_so():
    shape = warp.control_points(PATCH, SPACING_MM, 5.0)
    moved = np.array([1.0, -2.0, 3.0])
    found = warp.elastic_displacement(
        np.broadcast_to(moved[:, None, None, None], (3, *shape)),
        PATCH,
        spacing_mm=SPACING_MM,
        control_spacing_mm=5.0,
        device=torch.device("cpu"),
    )
    wanted = np.broadcast_to((moved / SPACING_MM)[:, None, None, None], (3, *PATCH))
    np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-5)


def test_elastic_changes_bend_within_their_bound_and_never_fold():
    augmentation = only(elastic_probability=1.0, elastic_spacing_mm=6.0, elastic_displacement_mm=(2.4, 2.4))
    size, spacing_mm = (40, 36, 32), (1.0, 1.5, 2.0)
    given = {"image": torch.ones(10, 1, *size), "shares": places(size, 10)}
    found = changed(augmentation, given, patch=(24, 20, 16), spacing_mm=spacing_mm)["shares"].numpy()
    moved_mm = (found - places(size).numpy()[:, :, 8:32, 8:28, 8:24]) * np.array(spacing_mm).reshape(1, 3, 1, 1, 1)
    assert np.abs(moved_mm).max() <= 2.4 + 1e-4
    assert np.abs(moved_mm).max() > 1.2
    slopes = np.stack([np.stack(np.gradient(found[:, axis], axis=(1, 2, 3)), -1) for axis in range(3)], -1)
    assert np.linalg.det(slopes).min() > 0
    assert (np.ptp(moved_mm, axis=(2, 3, 4)) > 1).all()


# Intensities


def test_blur_is_that_of_scipy():
    sigma = np.array([0.5, 1.3, 2.1])
    found = intensity.blurred(channel(), sigma).numpy()
    wanted = ndimage.gaussian_filter(channel().double().numpy(), sigma, mode="nearest")
    np.testing.assert_allclose(found, wanted, atol=1e-5)


@pytest.mark.parametrize("scale", [0.01, 0.5, 0.63, 1.0])
def test_low_resolution_is_that_of_interpolate(scale):
    few = [max(1, round(n * scale)) for n in PATCH]
    coarse = F.interpolate(channel()[None, None], few, mode="nearest-exact")
    wanted = F.interpolate(coarse, PATCH, mode="trilinear")[0, 0]
    np.testing.assert_allclose(intensity.at_low_resolution(channel(), scale).numpy(), wanted.numpy(), atol=1e-5)


@pytest.mark.parametrize("size", [PATCH, (11, 9, 7)], ids=str)
@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("kept", [0.01, 0.5, 0.8])
def test_ringing_is_the_fourier_transform_without_its_outer_part(size, axis, kept):
    values = channel(size=size).double().numpy()
    frequencies = np.abs(np.fft.fftfreq(size[axis])).reshape([-1 if n == axis else 1 for n in range(3)])
    spectrum = np.where(frequencies <= 0.5 * kept, np.fft.fft(values, axis=axis), 0)
    found = intensity.without_high_frequencies(channel(size=size), axis, kept).numpy()
    np.testing.assert_allclose(found, np.fft.ifft(spectrum, axis=axis).real, atol=1e-5)
    assert abs(found.mean() - values.mean()) < 1e-5


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_motion_moves_each_part_of_k_space_by_its_own_shift(axis):
    shifts = np.array([0.0, 1.5, -0.7])
    values = channel().double().numpy()
    frequencies = np.fft.fftfreq(PATCH[axis]).reshape([-1 if n == axis else 1 for n in range(3)])
    spectrum, wanted = np.fft.fft(values, axis=axis), np.zeros(PATCH, complex)
    for part, shift in enumerate(shifts):
        low, high = part / 6, (part + 1) / 6 + (part == 2)
        own = (np.abs(frequencies) >= low) & (np.abs(frequencies) < high)
        wanted += np.fft.ifft(np.where(own, spectrum, 0) * np.exp(-2j * np.pi * frequencies * shift), axis=axis)
    found = intensity.moved_while_measured(channel(), axis, shifts).numpy()
    np.testing.assert_allclose(found, wanted.real, atol=1e-5)


def test_motion_at_one_place_all_the_time_is_a_shift_towards_higher_numbers():
    found = intensity.moved_while_measured(channel(), 1, np.array([2.0, 2.0])).numpy()
    np.testing.assert_allclose(found, np.roll(channel().numpy(), 2, axis=1), atol=1e-5)


def test_motion_leaves_the_image_where_its_label_is():
    """The part of k-space with the contrast has no shift, in mm or in voxels."""
    augmentation = only(motion_probability=1.0, motion_shift_mm=(4.0, 4.0))
    smooth = ndimage.gaussian_filter(channel(size=(48, 40, 32)).double().numpy(), 5, mode="wrap")
    given = {"image": torch.from_numpy(smooth.astype(np.float32))[None, None].repeat(8, 1, 1, 1, 1)}
    found = changed(augmentation, given, patch=(48, 40, 32))["image"].numpy()[:, 0]
    assert np.abs(found - smooth).max() < 0.1 * np.ptp(smooth)
    assert all((values != found[0]).any() for values in found[1:])


def test_motion_is_in_mm_along_its_axis():
    given = batch(num_patches=8)
    found = changed(only(motion_probability=1.0, motion_shift_mm=(4.0, 4.0)), given)["image"]
    for axis, spacing in enumerate(SPACING_MM):
        augmentation = only(motion_probability=1.0, motion_shift_mm=(4.0 / spacing, 4.0 / spacing))
        in_voxels = changed(augmentation, given, spacing_mm=(1.0, 1.0, 1.0))["image"]
        for seed, number in itertools.product(range(8), range(2)):
            same = np.allclose(found[seed, number], in_voxels[seed, number], atol=1e-4)
            assert same == (augmentation.changes(seed, 2).motion[number][0] == axis)


def test_a_bias_field_is_smooth_and_as_strong_as_drawn_above_the_lowest_value():
    augmentation = only(bias_field_probability=1.0, bias_field_strength=(0.2, 0.5), keeps_background=False)
    given = batch(num_patches=10)
    found = changed(augmentation, given)["image"].double().numpy()
    axes = np.meshgrid(*(np.linspace(-1, 1, n) for n in PATCH), indexing="ij")
    powers = [p for p in itertools.product(range(4), repeat=3) if 0 < sum(p) <= 3]
    terms = np.stack([np.prod([a**n for a, n in zip(axes, p, strict=True)], axis=0).ravel() for p in powers], 1)
    for seed, channel_number in itertools.product(range(10), range(2)):
        before = given["image"][seed, channel_number].double().numpy()
        low = before.min()
        above = (before - low).ravel() > 0.5
        logarithm = np.log((found[seed, channel_number] - low).ravel()[above] / (before - low).ravel()[above])
        residual = logarithm - terms[above] @ np.linalg.lstsq(terms[above], logarithm, rcond=None)[0]
        assert np.abs(residual).max() < 1e-4
        strength = augmentation.changes(seed, 2).bias_field[channel_number]
        assert 0.5 * strength < np.abs(logarithm).max() <= strength + 1e-5
        assert found[seed, channel_number].min() == pytest.approx(low, abs=1e-5)
    assert not np.allclose(found[0, 0] - given["image"][0, 0].numpy(), found[0, 1] - given["image"][0, 1].numpy())


@pytest.mark.parametrize("keeps_range", [True, False])
def test_contrast_multiplies_differences_from_the_mean(keeps_range):
    values = channel().double().numpy()
    image = channel()
    intensity.change_contrast(image, 1.7, keeps_range=keeps_range)
    wanted = (values - values.mean()) * 1.7 + values.mean()
    wanted = wanted.clip(values.min(), values.max()) if keeps_range else wanted
    np.testing.assert_allclose(image.numpy(), wanted, atol=1e-5)


@pytest.mark.parametrize("inverted", [True, False])
@pytest.mark.parametrize("gamma", [0.7, 1.0, 1.5])
def test_gamma_is_a_power_within_the_range_and_keeps_mean_and_deviation(gamma, inverted):
    values = channel().double().numpy()
    sign = -1 if inverted else 1
    powered = ((sign * values - (sign * values).min()) / np.ptp(values)) ** gamma
    wanted = sign * ((powered - powered.mean()) / powered.std() * values.std() + (sign * values).mean())
    image = channel()
    intensity.change_gamma(image, gamma, inverted=inverted)
    np.testing.assert_allclose(image.numpy(), wanted, atol=2e-5)


@pytest.mark.parametrize("value", [0.0, 5.0, -3.1, 1e6, -1e-20])
def test_a_constant_patch_becomes_nothing_that_is_not_finite(value):
    everything = {**INTENSITY, **{n: 1.0 for n in KINDS if INTENSITY[n] > 0}, "keeps_background": False}
    found = changed(BatchAugmentation(**everything), {"image": torch.full((8, 2, *PATCH), value)})["image"]
    assert torch.isfinite(found).all()
    for kind in ("gamma", "gamma_inverted", "contrast", "bias_field", "blur", "low_resolution", "gibbs", "motion"):
        more = {f"{kind}_channel_probability": 1.0} if f"{kind}_channel_probability" in NAMES else {}
        alone = only(**{f"{kind}_probability": 1.0}, **more)
        found = changed(alone, {"image": torch.full((8, 2, *PATCH), value)})["image"].numpy()
        np.testing.assert_allclose(found, value, rtol=1e-5)


def test_noise_has_the_deviation_that_was_drawn_and_is_another_in_each_channel():
    augmentation = only(noise_probability=1.0, noise_std=(0.5, 2.0))
    size = (24, 20, 16)
    found = changed(augmentation, {"image": torch.ones(6, 2, *size)}, patch=size)["image"].numpy() - 1
    for seed in range(6):
        deviation = augmentation.changes(seed, 2).noise[0]
        assert 0.5 <= deviation <= 2
        assert found[seed].std() == pytest.approx(deviation, rel=0.03)
        assert abs(found[seed].mean()) < 0.05
        assert abs(np.corrcoef(found[seed, 0].ravel(), found[seed, 1].ravel())[0, 1]) < 0.05
        assert abs(np.corrcoef(found[seed, 0].ravel(), found[seed - 1, 0].ravel())[0, 1]) < 0.05


def test_brightness_is_one_factor_and_shift_one_number_for_each_channel():
    given = batch(num_patches=10)
    for kind, settings in (("brightness", {"brightness_factor": (0.5, 3.0)}), ("shift", {"shift": (-2.0, 1.0)})):
        augmentation = only(**{f"{kind}_probability": 1.0}, **settings)
        found = changed(augmentation, given)["image"]
        for seed, number in itertools.product(range(10), range(2)):
            value = getattr(augmentation.changes(seed, 2), kind)[number]
            before = given["image"][seed, number]
            wanted = before * value if kind == "brightness" else before + value
            np.testing.assert_allclose(found[seed, number].numpy(), wanted.numpy(), rtol=1e-6)


def test_each_kind_follows_the_one_before_it():
    """Brightness, then contrast, then the two gammas, then the shift; blur comes before all of them."""
    settings = {
        **{f"{k}_probability": 1.0 for k in ("blur", "brightness", "contrast", "gamma", "gamma_inverted", "shift")},
        "blur_channel_probability": 1.0,
    }
    augmentation, given = only(**settings), batch()
    drawn = augmentation.changes(1, 2)
    image = intensity.blurred(given["image"][1, 0], drawn.blur[0]) * drawn.brightness[0]
    intensity.change_contrast(image, drawn.contrast[0], keeps_range=True)
    intensity.change_gamma(image, drawn.gamma_inverted[0], inverted=True)
    intensity.change_gamma(image, drawn.gamma[0], inverted=False)
    np.testing.assert_allclose(changed(augmentation, given)["image"][1, 0], image + drawn.shift[0], atol=1e-6)


@pytest.mark.parametrize("kind", [n.removesuffix("_probability") for n in KINDS if INTENSITY[n] > 0])
def test_a_kind_of_intensity_changes_the_image_and_nothing_else(kind):
    more = {f"{kind}_channel_probability": 1.0} if f"{kind}_channel_probability" in NAMES else {}
    given = batch()
    found = changed(only(**{f"{kind}_probability": 1.0}, **more), given)
    assert all((found["image"][n, c] != given["image"][n, c]).any() for n in range(3) for c in range(2))
    for key in ("label", "shares", "weight"):
        np.testing.assert_array_equal(found[key].numpy(), given[key].numpy())


@pytest.mark.parametrize("kind", ["blur", "low_resolution"])
def test_a_channel_is_changed_by_its_own_probability(kind):
    augmentation = only(
        **{f"{kind}_probability": 1.0, f"{kind}_channel_probability": 0.3}, low_resolution_scale=(0.5, 0.7)
    )
    chosen = [getattr(augmentation.changes(seed, 4), kind) for seed in range(400)]
    share = np.mean([len(channels) / 4 for channels in chosen])
    assert 0.25 < share < 0.35
    given = batch(num_patches=20)
    found = changed(augmentation, given)["image"]
    for seed, number in itertools.product(range(20), range(2)):
        same = torch.equal(found[seed, number], given["image"][seed, number])
        assert same == (number not in getattr(augmentation.changes(seed, 2), kind))


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("bias_field", {"bias_field_strength": (0.4, 0.4)}),
        ("motion", {"motion_shift_mm": (4.0, 4.0)}),
        ("noise", {"noise_std": (1.0, 1.0)}),
        ("elastic", {"elastic_spacing_mm": 6.0, "elastic_displacement_mm": (2.0, 2.0)}),
    ],
    ids=str,
)
def test_fields_differ_between_patches_and_between_channels_even_at_one_strength(kind, settings):
    same = {"image": channel().repeat(12, 2, 1, 1, 1)}
    found = changed(only(**{f"{kind}_probability": 1.0}, **settings), same)["image"]
    channels = found[:, :1] if kind == "elastic" else found  # channels are bent together
    each = channels.flatten(0, 1).flatten(1).numpy()
    for one, other in itertools.combinations(each, 2):
        assert np.abs(one - other).max() > 0.05


# Background


def test_voxels_that_are_0_in_every_channel_are_0_again():
    given = batch(num_patches=12)
    given["image"][:, :, :5] = 0
    given["image"][:, 0, 5] = 0  # in one channel only
    found = changed(BatchAugmentation(**INTENSITY), given)["image"].numpy()
    assert not found[:, :, :5].any()
    assert found[:, 0, 5].any()
    kept = changed(BatchAugmentation(**{**INTENSITY, "keeps_background": False}), given)["image"].numpy()
    assert kept[:, :, :5].any()


# Ranges


def drawn(augmentation, name, num_seeds=600):
    """All values of a kind that a few hundred patches of two channels get."""
    values = []
    for seed in range(num_seeds):
        found = getattr(augmentation.changes(seed, 2), name)
        found = list(found.values()) if isinstance(found, dict) else [found]
        values += [np.atleast_1d(v[1] if isinstance(v, tuple) else v) for v in found]
    return np.stack(values)


RANGES = {
    "scaling": ("factors", (0.5, 3.0)),
    "zoom": ("factors", (0.5, 3.0)),
    "elastic": ("elastic_mm", (1.0, 4.0)),
    "bias_field": ("bias_field", (0.1, 0.4)),
    "motion": ("motion", (1.0, 3.0)),
    "gibbs": ("gibbs", (0.3, 0.6)),
    "low_resolution": ("low_resolution", (0.25, 0.75)),
    "blur": ("blur", (1.0, 3.0)),
    "noise": ("noise", (0.2, 0.9)),
    "brightness": ("brightness", (0.5, 3.0)),
    "contrast": ("contrast", (0.5, 3.0)),
    "gamma": ("gamma", (0.5, 3.0)),
    "gamma_inverted": ("gamma_inverted", (0.5, 3.0)),
    "shift": ("shift", (-2.0, 5.0)),
}
SETTINGS = {
    "elastic": "elastic_displacement_mm",
    "bias_field": "bias_field_strength",
    "motion": "motion_shift_mm",
    "gibbs": "gibbs_kept",
    "low_resolution": "low_resolution_scale",
    "blur": "blur_sigma_voxels",
    "noise": "noise_std",
    "brightness": "brightness_factor",
    "contrast": "contrast_factor",
    "gamma_inverted": "gamma",
}


@pytest.mark.parametrize("kind", RANGES)
def test_values_fill_their_range_and_factors_are_as_often_below_1_as_above(kind):
    name, (low, high) = RANGES[kind]
    augmentation = only(**{f"{kind}_probability": 1.0, SETTINGS.get(kind, kind): (low, high)})
    values = drawn(augmentation, name)
    margin = 0.02 * (high - low)
    assert low <= values.min() <= low + margin
    assert high - margin <= values.max() <= high
    if (low, high) == (0.5, 3.0):
        assert 0.45 < (values < 1).mean() < 0.55
        assert np.quantile(values[values > 1], 0.5) == pytest.approx(2, abs=0.2)  # uniform on either side
    else:
        assert np.quantile(values, 0.5) == pytest.approx((low + high) / 2, abs=0.1 * (high - low))
    if kind == "scaling":
        assert (np.ptp(values, axis=1) == 0).all()
    if kind in {"zoom", "blur"}:
        assert (np.ptp(values, axis=1) > 0).all()


def test_angles_fill_the_range_of_each_axis_on_both_sides():
    values = drawn(only(rotation_probability=1.0, rotation_degrees=(0.0, 10.0, 40.0)), "degrees")
    np.testing.assert_allclose(np.abs(values).max(axis=0), (0, 10, 40), rtol=0.02)
    np.testing.assert_allclose(values.mean(axis=0) / 40, 0, atol=0.05)


def test_every_axis_is_met_by_motion_and_ringing():
    augmentation = only(motion_probability=1.0, gibbs_probability=1.0)
    for name in ("motion", "gibbs"):
        axes = [v[0] for seed in range(300) for v in getattr(augmentation.changes(seed, 2), name).values()]
        assert np.bincount(axes, minlength=3).min() > 150


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_happens_as_often_as_its_probability_says(kind):
    square = {"transpose_probability": 0.0, kind: 0.3}
    name = {"mirror": "mirrored", "transpose": "transposed", "rotation": "degrees", "elastic": "elastic_mm"}
    name |= {"scaling": "factors", "zoom": "factors"}
    augmentation = only(
        **square, mirror_axes=(0, 1), blur_channel_probability=1.0, low_resolution_channel_probability=1.0
    )
    short = kind.removesuffix("_probability")
    found = [getattr(augmentation.changes(seed, 2), name.get(short, short)) for seed in range(1000)]
    if short == "mirror":
        found = [0 in axes for axes in found]
    happened = [f is not None and f is not False and (not isinstance(f, dict) or len(f) > 0) for f in found]
    assert 0.25 < np.mean(happened) < 0.35


def test_soft_labels_stay_shares_and_labels_stay_classes():
    given = batch((16, 14, 10), num_patches=40)
    found = changed(BatchAugmentation(**EVERYTHING), given)
    for key in ("shares", "weight"):
        assert found[key].min() >= 0
        assert found[key].max() <= 1
    assert found["shares"].sum(dim=1).max() <= 1 + 1e-6
    assert set(found["label"].unique().tolist()) == {0, 3}
    assert found["label"].dtype == torch.uint8


# Refusals


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        *(({kind: 1.1}, rf"{kind} must be in \[0, 1\], got 1.1") for kind in KINDS),
        ({"blur_channel_probability": -0.1}, r"blur_channel_probability must be in \[0, 1\], got -0.1"),
        ({"scaling": (1.2, 0.8)}, r"scaling must be two rising numbers in \[0.001, inf\], got \(1.2, 0.8\)"),
        ({"scaling": (0.0, 0.8)}, "scaling must be two rising numbers"),
        ({"gamma": (0.7,)}, "gamma must be two rising numbers"),
        ({"gamma": 0.7}, "gamma must be two rising numbers"),
        ({"noise_std": (0.0, np.nan)}, "noise_std must be two rising numbers"),
        ({"noise_std": (-0.1, 0.1)}, "noise_std must be two rising numbers"),
        ({"gibbs_kept": (0.5, 1.1)}, "gibbs_kept must be two rising numbers"),
        ({"low_resolution_scale": (0.0, 1.0)}, "low_resolution_scale must be two rising numbers"),
        ({"shift": (0.0, np.inf)}, "shift must be two rising numbers"),
        ({"rotation_degrees": (30.0, 30.0)}, r"rotation_degrees must be three numbers in \[0, 180\]"),
        ({"rotation_degrees": (30.0, 30.0, -1.0)}, "rotation_degrees must be three numbers"),
        ({"input_limit": 0.9}, r"input_limit must be in \[1, inf\], got 0.9"),
        ({"motion_parts": 1}, r"motion_parts must be in \[2, inf\], got 1"),
        ({"mirror_axes": (0, 3)}, r"mirror_axes must be some of 0, 1 and 2, such as \[1, 2\], got \[0, 3\]"),
        ({"mirror_axes": (1, 1)}, "mirror_axes must be some of 0, 1 and 2"),
        (
            {"elastic_probability": 0.1, "elastic_displacement_mm": (0, 13)},
            r"at most 0.4 times .* \(32 mm\).* got 13 mm",
        ),
    ],
    ids=str,
)
def test_a_setting_out_of_its_range_is_refused(settings, match):
    with pytest.raises(ValueError, match=match):
        BatchAugmentation(**settings)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"labels": torch.zeros(3, 1, *PATCH)}, "a batch must have an image and may have label, shares, weight, got"),
        ({"weight": torch.zeros(3, 1, 12, 10, 9)}, "all of a batch must be of one size and number"),
        ({"weight": torch.zeros(2, 1, *PATCH)}, "all of a batch must be of one size and number"),
    ],
    ids=["name", "size", "number"],
)
@pytest.mark.parametrize("make", [BatchAugmentation, MonaiAugmentation])
def test_a_batch_that_does_not_fit_together_is_refused(make, change, match):
    with pytest.raises(ValueError, match=match):
        changed(make(), {**batch(), **change})


@pytest.mark.parametrize("make", [BatchAugmentation, MonaiAugmentation])
def test_seeds_spacings_and_sizes_must_fit_the_batch(make):
    with pytest.raises(ValueError, match="got 3 patches, 2 and 3"):
        make()(batch(), seeds=[1, 2], spacing_mm=[SPACING_MM] * 3, patch_size=PATCH)
    with pytest.raises(ValueError, match=r"patches of \[12, 10, 9\] voxels cannot be cut from \[12, 10, 8\]"):
        changed(make(), batch(), patch=(12, 10, 9))


# MONAI's

MONAI_KINDS = [f.name for f in dataclasses.fields(MonaiAugmentation) if f.name.endswith("probability")]
MONAI_ALL = dict.fromkeys(MONAI_KINDS, 0.6)


def test_monai_without_anything_drawn_cuts_the_middle():
    given = batch((16, 14, 10))
    found = changed(MonaiAugmentation(**dict.fromkeys(MONAI_KINDS, 0.0)), given)
    assert_same(found, {key: values[:, :, 2:14, 2:12, 1:9] for key, values in given.items()})
    assert all(type(values) is torch.Tensor for values in found.values())


def test_monai_makes_a_patch_from_its_seed_alone_and_leaves_the_batch():
    given = batch((16, 14, 10), num_patches=5)
    before = {key: values.clone() for key, values in given.items()}
    together = changed(MonaiAugmentation(**MONAI_ALL), given, [4, 2**63, 2, 1, 0])
    assert_same(given, before)
    again = MonaiAugmentation(**MONAI_ALL)
    for number, seed in reversed(list(enumerate([4, 2**63, 2, 1, 0]))):
        alone = changed(again, {key: values[number : number + 1] for key, values in given.items()}, [seed])
        assert_same(alone, {key: values[number : number + 1] for key, values in together.items()})
    assert {key: values.dtype for key, values in together.items()} == {k: v.dtype for k, v in given.items()}


@pytest.mark.parametrize("axes", [(), (1,), (0, 2)], ids=str)
def test_monai_mirrors_nothing_but_mirror_axes(axes):
    settings = {**MONAI_ALL, "rotation_degrees": (20.0, 15.0, 30.0), "scaling": (0.8, 1.1)}
    augmentation = MonaiAugmentation(**settings, mirror_axes=axes)
    mirrored = set()
    for seed in range(30):
        along, handed = signs(augmentation, seed)
        assert handed == np.prod(along)
        mirrored.add(tuple(np.flatnonzero(along < 0)))
    assert set().union(*mirrored) == set(axes)


def test_monai_leaves_no_corner_empty_when_the_input_is_as_large_as_asked_for():
    settings = {**dict.fromkeys(MONAI_KINDS, 0.0), "affine_probability": 1.0, "input_limit": 9.0}
    augmentation = MonaiAugmentation(**settings)
    size = augmentation.input_size(PATCH, [(1.0, 1.0, 1.0)])
    found = changed(augmentation, {"image": torch.ones(20, 1, *size)})["image"]
    np.testing.assert_allclose(found.numpy(), 1, atol=1e-4)
    assert MonaiAugmentation(affine_probability=0.0).input_size(PATCH, [SPACING_MM]) == PATCH


def test_monai_refuses_turns_that_would_shear():
    with pytest.raises(ConfigError, match=r"case 's1' would be sheared .* 1 mm along axis 1 and 3 mm along axis 2"):
        MonaiAugmentation().check(PATCH, {"s1": SPACING_MM})
    MonaiAugmentation(rotation_degrees=(0, 0, 30)).check(PATCH, {"s1": (1.0, 1.0, 3.0)})
    MonaiAugmentation(affine_probability=0.0).check(PATCH, {"s1": SPACING_MM})


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"affine_probability": 2.0}, r"affine_probability must be in \[0, 1\], got 2"),
        ({"scaling": (1.2, 0.8)}, "scaling must be two rising numbers"),
        ({"noise_std": -1.0}, "noise_std must be in"),
        ({"mirror_axes": (5,)}, "mirror_axes must be some of"),
    ],
    ids=str,
)
def test_monai_settings_out_of_their_range_are_refused(settings, match):
    with pytest.raises(ValueError, match=match):
        MonaiAugmentation(**settings)
