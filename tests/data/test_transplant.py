"""Lesion transplants: what travels, where it may go, and what stays as it was."""

from __future__ import annotations

import itertools
import logging
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import ndimage

from medfocal.annotations.target import Target, as_shares
from medfocal.data.manifest import Case
from medfocal.data.stored import training_case
from medfocal.data.transforms import PreparedCase
from medfocal.data.transplant import LesionTransplants
from medfocal.errors import DatasetError
from medfocal.volume import Volume

SHAPE, SPACING = (22, 20, 18), (0.5, 1.0, 3.0)
PATCH = (17, 16, 15)
LEVEL, RESIDUAL = 10.0, 3.0
BLOCK = ((8, 12), (8, 11), (7, 10))  # 4 x 3 x 3 voxels


def prepared(label, image=None, *, spacing=SPACING, air=True):
    """A case: lesions `RESIDUAL` above tissue of `LEVEL`, unless an image is given."""
    label = np.asarray(label, np.uint8)
    image = (LEVEL + RESIDUAL * (label > 0))[None] if image is None else np.array(image)
    if air:
        image[:, 0, 0, 0] = 0  # so that all else belongs to the body
    affine = np.diag([*spacing, 1.0])
    grid = Volume(np.zeros(label.shape), affine)
    image = torch.from_numpy(np.asarray(image, np.float32))
    found = PreparedCase(Case("c", "c", "training", ()), image, affine, torch.from_numpy(label), grid, None)
    return training_case(found, Target(label, (label,)))


def blocks(*sides, shape=SHAPE, value=1):
    label = np.zeros(shape, np.uint8)
    for side in sides:
        label[tuple(slice(*side) for side in side)] = value
    return label


def chiral():
    """A lesion that none of the 8 flips, nor a transposition, maps onto itself: arms of unequal length."""
    label = np.zeros(SHAPE, np.uint8)
    label[8:13, 8, 8] = label[8, 8:12, 8] = label[8, 8, 8:11] = 1
    return label


def transplants(*cases, probability=0.8, patch_size=PATCH, seed=3):
    return LesionTransplants(cases, patch_size=patch_size, probability=probability, seed=seed)


def a_patch(size=PATCH, *, channels=1, level=-4.0):
    image = np.full((channels, *size), level, np.float32)
    return image, np.zeros(size, np.uint8), np.ones(size, bool)


def apply(source, image, label, body, *, case=0, epoch=0, index=0):
    """What a patch becomes; the patch itself is kept."""
    image, label = image.copy(), label.copy()
    source(image, label, body=body, case=case, epoch=epoch, index=index)
    return image, label


def first_single(source, image, label, body, **where):
    """Image and label of the first patch that got one lesion."""
    for index in range(200):
        found = apply(source, image, label, body, index=index, **where)
        if ndimage.label(found[1], np.ones((3, 3, 3)))[1] == 1:
            return found
    raise AssertionError


def cropped(label):
    return label[ndimage.find_objects((label > 0).astype(int))[0]]


def flips_of(array):
    return [np.flip(array, axes) for n in range(4) for axes in itertools.combinations(range(3), n)]


def city_block(lesion):
    """Steps over faces from each voxel to the lesion, by brute force."""
    places = np.argwhere(np.ones(lesion.shape))
    return np.abs(places[:, None] - np.argwhere(lesion)).sum(axis=2).min(axis=1).reshape(lesion.shape)


def soft_by_loop(lesion):
    """The soft mask by its definition: a Gaussian of 0.7 voxels, cut at three, over all within one step."""
    kernel = np.exp(-(np.arange(-3, 4) ** 2) / (2 * 0.7**2))
    kernel /= kernel.sum()
    soft = np.zeros(lesion.shape)
    for centre in np.argwhere(city_block(lesion) <= 1):
        for offset in itertools.product(range(-3, 4), repeat=3):
            place = centre + offset
            if (place >= 0).all() and (place < lesion.shape).all():
                soft[tuple(place)] += np.prod(kernel[np.array(offset) + 3])
    soft = np.minimum(1.25 * soft, 1)
    return np.where(soft > 0.05, soft, 0)


def test_a_transplanted_lesion_has_the_shape_of_its_donor():
    donor = cropped(chiral())
    source = transplants(prepared(chiral()))
    for index in range(30):
        _, label = apply(source, *a_patch(), index=index)
        parts, num_parts = ndimage.label(label, np.ones((3, 3, 3)))
        for part in range(1, num_parts + 1):
            found = cropped(parts == part)
            assert any(np.array_equal(found, flipped) for flipped in flips_of(donor))


def test_a_residual_stands_on_the_level_of_the_new_place_in_each_channel():
    """10 + 3 and 100 - 7 become -4 + 3 and 6 - 7; on a block of three voxels and more the soft mask is 1 all over."""
    label = blocks(BLOCK)
    image = np.stack([10 + 3.0 * label, 100 - 7.0 * label])
    patch, empty, body = a_patch(channels=2)
    patch[1] = 6
    found, pasted = first_single(transplants(prepared(label, image)), patch, empty, body)
    lesion = pasted > 0
    np.testing.assert_allclose(found[0], np.where(lesion, -1, -4), atol=1e-5)
    np.testing.assert_allclose(found[1], np.where(lesion, -1, 6), atol=1e-4)


def test_the_classes_of_a_lesion_move_with_its_intensities():
    """Class 2, 5 above the tissue, is the first of four planes of the block, class 1 is 3 above: flips move both."""
    label = blocks(BLOCK)
    label[8, 8:11, 7:10] = 2
    source = transplants(prepared(label, LEVEL + np.choose(label, [0.0, 3.0, 5.0])[None]), probability=0.5)
    found = [apply(source, *a_patch(), index=index) for index in range(60)]
    ends = set()
    for image, pasted in found:
        np.testing.assert_allclose(image[0], -4 + np.choose(pasted, [0, 3, 5]), atol=1e-5)
        assert (pasted == 1).sum() == 3 * (pasted == 2).sum()
        if (pasted == 2).sum() == 9:
            ends.add(bool(cropped(pasted)[0, 0, 0] == 2))
    assert ends == {True, False}


@pytest.mark.parametrize("seed", range(4))
def test_image_and_margin_are_what_the_formula_says(seed):
    """All random: image <- (1 - soft) image + soft (median of the ring there + residual)."""
    rng = np.random.default_rng(seed)
    label, image = chiral(), rng.normal(5, 1, (2, *SHAPE))
    patch, empty, body = a_patch(channels=2)
    patch[:] = rng.normal(-2, 3, patch.shape)
    found, pasted = first_single(transplants(prepared(label, image), seed=seed), patch, empty, body)
    axes = next(
        axes
        for n in range(4)
        for axes in itertools.combinations(range(3), n)
        if np.array_equal(cropped(np.flip(label, axes)), cropped(pasted))
    )
    label, image = np.flip(label, axes), np.flip(image, [axis + 1 for axis in axes])
    boxes = [
        tuple(slice(side.start - 3, side.stop + 3) for side in ndimage.find_objects(array)[0])
        for array in (label, pasted)
    ]
    lesion, donor, there = label[boxes[0]] > 0, image[:, *boxes[0]], patch[:, *boxes[1]]
    steps, soft = city_block(lesion), soft_by_loop(lesion)
    ring = (steps == 2) | (steps == 3)
    expected = patch.astype(np.float64)
    for channel in range(2):
        residual = donor[channel] - np.median(donor[channel][ring])
        level = np.median(there[channel][ring])
        expected[channel][boxes[1]] = (1 - soft) * there[channel] + soft * (level + residual)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    outside = np.ones(PATCH, bool)
    outside[boxes[1]] = soft == 0
    np.testing.assert_array_equal(found[:, outside], patch[:, outside])


def test_the_level_of_the_new_place_is_that_of_its_body_alone():
    """In a body as small as a single voxel's soft margin, 30 of the 56 ring voxels are air, whose 0 is no level."""
    source = transplants(prepared(blocks(((8, 9), (8, 9), (8, 9)))))
    soft = soft_by_loop(blocks(((3, 4), (3, 4), (3, 4)), shape=(7, 7, 7)))
    image = np.where(soft > 0, 50, 0)[None].astype(np.float32)
    found, label = first_single(source, image, np.zeros((7, 7, 7), np.uint8), soft > 0)
    np.testing.assert_allclose(found[0][label > 0], 50 + RESIDUAL * soft[3, 3, 3], atol=1e-4)


def test_all_eight_flips_come():
    donor = cropped(chiral())
    source = transplants(prepared(chiral()), probability=0.5)
    labels = [apply(source, *a_patch(), index=n)[1] for n in range(200)]
    found = [cropped(label) for label in labels if label.sum() == chiral().sum()]
    counts = [sum(np.array_equal(label, flipped) for label in found) for flipped in flips_of(donor)]
    assert sum(counts) == len(found)
    assert min(counts) > 0


@pytest.mark.parametrize(("spacing", "sizes"), [((1, 1, 3), 2), ((1, 1.005, 3), 2), ((1, 1.02, 3), 1), (SPACING, 1)])
def test_a_lesion_is_transposed_only_where_its_first_two_axes_have_the_same_spacing(spacing, sizes):
    source = transplants(prepared(blocks(BLOCK), spacing=spacing), probability=0.5)
    labels = [apply(source, *a_patch(), index=n)[1] for n in range(60)]
    found = {cropped(label).shape for label in labels if label.sum() == 36}
    assert found == {(4, 3, 3), (3, 4, 3)} if sizes == 2 else {(4, 3, 3)}


def test_the_body_s_border_is_never_crossed():
    image, label, body = a_patch()
    i, j, k = np.indices(PATCH)
    body[:] = (i - 8) ** 2 + (j - 7) ** 2 + (k - 9) ** 2 <= 36
    image[0, ~body] = 0
    source, num_voxels = transplants(prepared(blocks(BLOCK))), 0
    for index in range(100):
        found, pasted = apply(source, image, label, body, index=index)
        assert not pasted[~body].any()
        np.testing.assert_array_equal(found[0, ~body], 0)
        num_voxels += pasted.sum()
    assert num_voxels > 0


def test_the_soft_margin_keeps_to_the_body_too():
    """The body holds the lesion and one voxel around it, but not all of the soft margin, so nothing may come."""
    source = transplants(prepared(blocks(BLOCK)))
    soft = source.donors[0].soft
    image, label = np.full((1, *soft.shape), 5, np.float32), np.zeros(soft.shape, np.uint8)
    body = soft > 0
    assert any(apply(source, image, label, body, index=n)[1].any() for n in range(20))
    body &= soft > 0.2
    assert not any(apply(source, image, label, body, index=n)[1].any() for n in range(20))


def test_other_lesions_stay_as_they_are_and_apart():
    """One lesion stands there, many come: each part keeps 36 voxels, and no intensity of the first one changes."""
    image, label, body = a_patch((26, 24, 22))
    here = label.copy()
    here[4:8, 12:15, 10:13] = 1
    image[0, here > 0] = 99
    source, num_more = transplants(prepared(blocks(BLOCK)), probability=0.9), 0
    for index in range(150):
        found, pasted = apply(source, image, here, body, index=index)
        np.testing.assert_array_equal(found[0, here > 0], 99)
        parts, num_parts = ndimage.label(pasted, np.ones((3, 3, 3)))
        np.testing.assert_array_equal(np.bincount(parts.ravel())[1:], 36)
        num_more += num_parts - 1
    assert num_more > 150


def test_no_lesion_that_came_is_faded_by_the_next():
    source = transplants(prepared(blocks(BLOCK)), probability=0.9)
    for index in range(50):
        image, label = apply(source, *a_patch((26, 24, 22)), index=index)
        np.testing.assert_allclose(image[0], np.where(label > 0, -4 + RESIDUAL, -4), atol=1e-4)


def test_a_lesion_as_large_as_the_patch_has_one_place():
    """4 x 3 x 3 voxels and three around them fill a patch of 10 x 9 x 9."""
    source = transplants(prepared(blocks(BLOCK)), patch_size=(10, 9, 9))
    _, label = first_single(source, *a_patch((10, 9, 9)))
    np.testing.assert_array_equal(label, blocks(((3, 7), (3, 6), (3, 6)), shape=(10, 9, 9)))


@pytest.mark.parametrize("axis", range(3))
def test_a_lesion_too_large_for_the_patch_stays(axis):
    size = [10, 9, 9]
    size[axis] -= 1
    with pytest.raises(DatasetError, match=rf"none of the 1 .*: 1 too large for patches of \[{size[0]}, {size[1]}, "):
        transplants(prepared(blocks(BLOCK)), patch_size=size)


@pytest.mark.parametrize(("size", "shape"), [((9, 10, 9), (3, 4, 3)), ((10, 9, 9), (4, 3, 3))])
def test_a_lesion_that_fits_one_way_round_only_comes_that_way(size, shape):
    source = transplants(prepared(blocks(BLOCK), spacing=(1, 1, 3)), patch_size=size)
    _, label = first_single(source, *a_patch(size))
    assert cropped(label).shape == shape


def test_five_places_are_tried():
    """One place of five suits, so a transplant fails with f = 0.8^5, and none comes with 1/2 sum (f/2)^n = 0.598."""
    source = transplants(prepared(blocks(BLOCK)), probability=0.5)
    image, label, body = a_patch((14, 9, 9))
    body[:4] = False  # the soft margin leaves one voxel of the box's edge free, so starts 0 to 2 reach into this
    label[13] = 1  # and start 4 into that
    num_empty = sum((apply(source, image, label, body, index=n)[1] == label).all() for n in range(400))
    expected = 400 * 0.5 / (1 - 0.5 * 0.8**5)
    assert abs(num_empty - expected) < 3 * np.sqrt(400 * 0.598 * 0.402)


@pytest.mark.parametrize("axis", range(3))
@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.parametrize("edge", ["volume", "body"])
def test_a_donor_lies_with_its_soft_margin_in_its_own_body(axis, side, edge):
    """The soft margin is two voxels wide: a lesion two voxels from the border travels, one nearer does not."""
    shape = (12, 11, 13)
    for distance in (1, 2):
        low, length = [4, 4, 5], [3, 2, 4]
        border = 0 if edge == "volume" else 1
        low[axis] = border + distance if side == 0 else shape[axis] - border - distance - length[axis]
        label = blocks([(a, a + n) for a, n in zip(low, length, strict=True)], shape=shape)
        image = (LEVEL + RESIDUAL * label)[None]
        if edge == "body":
            np.moveaxis(image, axis + 1, 0)[0 if side == 0 else -1] = 0
        case = prepared(label, image)
        if distance == 2:
            assert len(transplants(case).donors) == 1
        else:
            with pytest.raises(DatasetError, match="1 at the border of the body or of the volume"):
                transplants(case)


def test_in_images_without_air_of_0_the_body_is_what_rises_above_the_lowest_value():
    label = blocks(BLOCK)
    image = (LEVEL + RESIDUAL * label)[None]
    image[:, :, :6] = -1
    assert len(transplants(prepared(label, image, air=False)).donors) == 1
    image[:, :, :7] = -1
    with pytest.raises(DatasetError, match="at the border of the body"):
        transplants(prepared(label, image, air=False))


def test_a_lesion_in_the_soft_margin_of_another_keeps_both_from_travelling():
    first, near, far = ((6, 9), (8, 11), (7, 10)), ((10, 13), (8, 11), (7, 10)), ((11, 14), (8, 11), (7, 10))
    with pytest.raises(DatasetError, match=r"none of the 2 .*: 2 with another lesion in the soft margin"):
        transplants(prepared(blocks(first, near)))
    assert len(transplants(prepared(blocks(first, far))).donors) == 2


def test_another_lesion_in_the_ring_neither_counts_to_the_level_nor_comes_along():
    """A shell around a single voxel, beyond its soft margin, takes 30 of its 56 ring voxels."""
    one = blocks(((9, 10), (8, 9), (7, 8)))
    shell = (city_block(one) >= 3) & (city_block(one) <= 4) & (soft_by_loop(one) == 0)
    image = (LEVEL + RESIDUAL * one + 90.0 * shell)[None]
    source = transplants(prepared(one | shell, image), patch_size=SHAPE)
    (donor,) = [donor for donor in source.donors if donor.classes.shape == (7, 7, 7)]
    np.testing.assert_array_equal(np.argwhere(donor.classes), [[3, 3, 3]])
    assert donor.residual[0, 3, 3, 3] == pytest.approx(RESIDUAL)
    assert donor.ring.sum() == 26


def test_a_single_voxel_in_a_body_as_small_as_its_soft_margin_has_18_voxels_of_ring():
    label = blocks(((8, 9), (8, 9), (8, 9)))
    soft = soft_by_loop(label > 0)
    (donor,) = transplants(prepared(label, ((LEVEL + RESIDUAL * label) * (soft > 0))[None])).donors
    assert donor.ring.sum() >= 18
    assert donor.residual[0][donor.classes > 0] == pytest.approx(RESIDUAL)


@pytest.mark.parametrize("axis", range(3))
def test_a_lesion_goes_only_into_cases_of_its_own_spacing(axis):
    for factor, travels in ((1.008, True), (0.992, True), (1.03, False), (0.97, False)):
        spacing = [s * (factor if n == axis else 1) for n, s in enumerate(SPACING)]
        source = transplants(prepared(blocks(BLOCK)), prepared(blocks(), spacing=spacing))
        labels = [apply(source, *a_patch(), case=1, index=n)[1] for n in range(20)]
        assert any(label.any() for label in labels) == travels
        assert any(apply(source, *a_patch(), case=0, index=n)[1].any() for n in range(20))


def test_each_lesion_of_any_case_comes_equally_often():
    """Lesions of 18, 27 and 36 voxels in two cases: each a third of those that come, within 5 standard deviations."""
    label = blocks(((3, 6), (4, 7), (5, 7)), ((14, 17), (12, 15), (9, 12)))
    source = transplants(prepared(label), prepared(blocks(BLOCK)), probability=0.5)
    image, empty, body = a_patch()
    drawn = [apply(source, image, empty, body, case=n % 2, index=n)[1] for n in range(600)]
    parts = [ndimage.label(label, np.ones((3, 3, 3)))[0] for label in drawn]
    sizes = Counter(n for part in parts if part.max() == 1 for n in np.bincount(part.ravel())[1:].tolist())
    total = sizes.total()
    assert set(sizes) == {18, 27, 36}
    assert max(abs(n - total / 3) for n in sizes.values()) < 5 * np.sqrt(total * (1 / 3) * (2 / 3))


def test_transplants_come_with_the_probability_and_another_one_after_each():
    """In a wide patch all find a place: 0, 1, 2, ... of them with probability 1/2, 1/4, 1/8, ..."""
    source = transplants(prepared(blocks(((8, 9), (8, 9), (8, 9)))), probability=0.5)
    image, empty, body = a_patch((60, 50, 40))
    counts = Counter(int(apply(source, image, empty, body, index=n)[1].sum()) for n in range(400))
    for number in range(4):
        expected = 400 * 0.5 ** (number + 1)
        assert abs(counts[number] - expected) < 5 * np.sqrt(expected)


def test_the_same_seed_epoch_and_index_give_the_same_patch_in_any_order():
    case = prepared(chiral())
    places = [(epoch, index) for epoch in range(2) for index in range(12)]
    first, second = transplants(case), transplants(case)
    forward = {place: apply(first, *a_patch(), epoch=place[0], index=place[1]) for place in places}
    backward = {place: apply(second, *a_patch(), epoch=place[0], index=place[1]) for place in reversed(places)}
    for place in places:
        np.testing.assert_array_equal(forward[place][0], backward[place][0])
        np.testing.assert_array_equal(forward[place][1], backward[place][1])
    other = transplants(case, seed=4)
    runs = [
        [apply(source, *a_patch(), epoch=epoch, index=n)[1].tobytes() for n in range(12)]
        for source, epoch in ((first, 0), (first, 1), (other, 0))
    ]
    assert runs[0] != runs[1]
    assert runs[0] != runs[2]


def test_the_cases_stay_as_they_are():
    case = prepared(chiral(), np.random.default_rng(0).normal(5, 1, (2, *SHAPE)))
    image, label = case.image.copy(), case.target.lesions.copy()
    source = transplants(case)
    donor = source.donors[0].residual.copy()
    for index in range(20):
        apply(source, *a_patch(channels=2), index=index)
    np.testing.assert_array_equal(case.image, image)
    np.testing.assert_array_equal(case.target.lesions, label)
    np.testing.assert_array_equal(source.donors[0].residual, donor)


def test_probability_0_leaves_patches_as_they_are_and_asks_for_no_donor():
    image, label, body = a_patch()
    image[:] = np.random.default_rng(0).normal(size=image.shape)
    unusable = prepared(blocks(((0, 3), (0, 3), (0, 3))))
    for source in (transplants(prepared(chiral()), probability=0), transplants(unusable, probability=0.0)):
        assert source.donors == []
        for index in range(20):
            found = apply(source, image, label, body, index=index)
            assert found[0].tobytes() == image.tobytes()
            assert not found[1].any()


@pytest.mark.parametrize("probability", [-0.1, 1, 1.5, float("nan")])
def test_a_probability_with_which_transplants_never_end_or_that_is_none_is_refused(probability):
    with pytest.raises(ValueError, match=rf"transplant_probability must be in \[0, 1\), got {probability}"):
        transplants(prepared(chiral()), probability=probability)


CORNER, LARGE = ((0, 3), (0, 3), (0, 3)), ((5, 17), (8, 11), (8, 11))


def test_where_no_lesion_can_travel_the_error_counts_the_reasons():
    cases = [prepared(blocks(CORNER, LARGE)), prepared(blocks(CORNER))]
    wanted = (
        "none of the 3 training lesions .*: 2 at the border of the body or of the volume, 1 too large for patches of"
    )
    with pytest.raises(DatasetError, match=f"{wanted} .*transplant_probability=0"):
        transplants(*cases)


def messages_of(make):
    """What is logged meanwhile, whatever other tests made of the package's handlers."""
    found, log = [], logging.getLogger("medfocal.data")
    handler = logging.Handler()
    handler.emit = lambda record: found.append(record.getMessage())
    log.addHandler(handler)
    level = log.level
    log.setLevel(logging.INFO)
    try:
        make()
    finally:
        log.removeHandler(handler)
        log.setLevel(level)
    return found


def test_where_some_lesions_cannot_travel_one_line_counts_them():
    (line,) = messages_of(lambda: transplants(prepared(blocks(BLOCK, CORNER)), prepared(blocks(BLOCK))))
    assert line == "2 of 3 training lesions can be transplanted; 1 at the border of the body or of the volume"


def test_where_all_lesions_can_travel_everywhere_nothing_is_said():
    assert messages_of(lambda: transplants(prepared(blocks(BLOCK)), prepared(chiral()))) == []


def test_cases_that_get_no_transplant_are_counted():
    cases = [prepared(blocks(BLOCK)), prepared(blocks(), spacing=(1, 1, 1)), prepared(blocks(), spacing=(2, 2, 2))]
    (line,) = messages_of(lambda: transplants(*cases))
    assert line.startswith("2 of 3 training cases get no transplant")


NESTED = np.array([[0, 0], [1, 0], [1, 1]], np.float32)  # classes 0, 1, 2 in two regions, the second within the first
SINGLE = np.array([[0], [1]], np.float32)


def two_classes():
    """The block of class 1 with one of its four planes of class 2."""
    label = blocks(BLOCK)
    label[8, 8:11, 7:10] = 2
    return label


def taught(source, target, weight=None, *, index=0, label=None):
    """What a patch of an even image becomes: image, label, target and weight."""
    image, empty, body = a_patch()
    label = empty if label is None else label.copy()
    target = None if target is None else target.copy()
    weight = None if weight is None else weight.copy()
    source(image, label, body=body, case=0, epoch=0, index=index, target=target, weight=weight)
    return image, label, target, weight


def test_regions_of_a_transplant_are_those_of_its_classes():
    source = LesionTransplants(
        [prepared(two_classes())], patch_size=PATCH, probability=0.8, seed=3, membership=NESTED, weighted=False
    )
    num_lesions = 0
    for index in range(30):
        _, label, target, _ = taught(source, np.zeros((2, *PATCH), np.float32), index=index)
        np.testing.assert_array_equal(target, as_shares(label, NESTED))
        num_lesions += label.any()
    assert num_lesions > 10


def test_shares_of_a_transplant_come_along_as_far_as_its_intensities_do_and_no_further():
    """Shares of 0.25 all over the case, 0.75 in its lesion: around a transplant they end with its soft margin."""
    lesion = blocks(BLOCK)
    case = prepared(lesion)
    shares = np.where(lesion > 0, 0.75, 0.25).astype(np.float16)[None]
    case = replace(case, target=Target(case.target.lesions, (shares,)))
    source = LesionTransplants([case], patch_size=PATCH, probability=0.5, seed=3, membership=SINGLE)
    for index in range(100):
        _, label, target, _ = taught(source, np.zeros((1, *PATCH), np.float32), index=index)
        if ndimage.label(label)[1] != 1:
            continue
        expected = np.where(label > 0, 0.75, np.where(soft_by_loop(label > 0) > 0, 0.25, 0))
        np.testing.assert_array_equal(target[0], expected)
        break
    else:
        raise AssertionError


def test_where_shares_are_there_already_the_larger_one_stays():
    source = LesionTransplants([prepared(blocks(BLOCK))], patch_size=PATCH, probability=0.8, seed=3, membership=SINGLE)
    before = np.random.default_rng(0).uniform(0, 0.9, (1, *PATCH)).astype(np.float32)
    for index in range(10):
        _, label, target, _ = taught(source, before, index=index)
        np.testing.assert_array_equal(target[0], np.where(label > 0, 1, before[0]))


def test_a_lesion_of_several_readers_teaches_what_one_of_them_drew():
    lesion, small = blocks(BLOCK), blocks(((9, 11), (9, 10), (8, 9)))
    case = replace(prepared(lesion), target=Target(lesion, (lesion * 0, small, lesion)))
    source = transplants(case, probability=0.5)
    seen = set()
    for index in range(150):
        image, label, target, _ = taught(source, np.zeros(PATCH, np.uint8), index=index)
        if (label > 0).sum() == 36:  # one transplant
            assert (image > -4).sum() >= 36
            assert not target[label == 0].any()
            seen.add(int(target.sum()))
    assert seen == {0, 2, 36}


def test_what_is_taught_changes_neither_where_lesions_go_nor_how_they_look():
    plain = transplants(prepared(two_classes()))
    shares = LesionTransplants(
        [prepared(two_classes())], patch_size=PATCH, probability=0.8, seed=3, membership=NESTED, weighted=True
    )
    ones = np.ones(PATCH, np.float32)
    for index in range(20):
        alone = taught(plain, None, index=index)
        found = taught(shares, np.zeros((2, *PATCH), np.float32), ones, index=index)
        np.testing.assert_array_equal(found[0], alone[0])
        np.testing.assert_array_equal(found[1], alone[1])


@pytest.mark.parametrize("given", [None, 0.25, 0.0])
def test_a_transplant_brings_its_weights_or_1_where_its_case_has_none(given):
    case = prepared(blocks(BLOCK))
    if given is not None:
        case = replace(case, target=replace(case.target, weight=np.full(SHAPE, given, np.float32)))
    source = LesionTransplants([case], patch_size=PATCH, probability=0.5, seed=3, weighted=True)
    before = np.random.default_rng(0).uniform(2, 3, PATCH).astype(np.float32)
    for index in range(100):
        _, label, _, weight = taught(source, None, before, index=index)
        if ndimage.label(label)[1] == 1:
            soft = soft_by_loop(label > 0) > 0
            np.testing.assert_array_equal(weight, np.where(soft, 1 if given is None else given, before))
            return
    raise AssertionError


def test_weights_turn_with_the_lesion():
    """Half as much in class 2, at one end of the lesion, as in class 1: after any flip too."""
    label = two_classes()
    case = prepared(label)
    case = replace(case, target=replace(case.target, weight=np.where(label == 2, 0.5, 1).astype(np.float32)))
    source = LesionTransplants([case], patch_size=PATCH, probability=0.8, seed=3, weighted=True)
    ends = set()
    for index in range(20):
        _, pasted, _, weight = taught(source, None, np.ones(PATCH, np.float32), index=index)
        np.testing.assert_array_equal(weight, np.where(pasted == 2, 0.5, 1))
        if (pasted == 2).sum() == 9:
            ends.add(bool(cropped(pasted)[0, 0, 0] == 2))
    assert ends == {True, False}


def test_weights_of_an_image_in_the_cache_are_taken_too():
    """There they are whole numbers where they are 0 and 1."""
    case = prepared(blocks(BLOCK))
    case = replace(case, target=replace(case.target, weight=np.ones(SHAPE, np.uint8)))
    source = LesionTransplants([case], patch_size=PATCH, probability=0.8, seed=3, weighted=True)
    _, label, _, weight = taught(source, None, np.zeros(PATCH, np.float32), index=1)
    assert label.any()
    assert weight.dtype == np.float32
    assert (weight[label > 0] == 1).all()
