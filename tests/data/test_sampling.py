"""Patches: lesions are drawn, not voxels, and nothing depends on the order of the calls."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from medfocal.annotations.target import Target
from medfocal.data.manifest import Case
from medfocal.data.sampling import LesionBalancedSampler, cut_body, cut_image, cut_patch
from medfocal.data.stored import Precision, training_case
from medfocal.data.transforms import PreparedCase
from medfocal.errors import DatasetError
from medfocal.volume import Volume

SHAPE = (24, 20, 16)


def prepared(*blocks, shape=SHAPE, name="c", body=None):
    """A case with a block of lesion for each triple of sides."""
    label = np.zeros(shape, np.uint8)
    for block in blocks:
        label[tuple(slice(*side) for side in block)] = 1
    image = np.random.default_rng(0).uniform(1, 2, (1, *shape)).astype(np.float32)
    if body is not None:
        outside = np.ones(shape, bool)
        outside[body] = False
        image[0, outside] = 0
    affine = np.diag([0.5, 1.0, 3.0, 1.0])
    grid = Volume(np.zeros(shape), affine)
    case = Case(name, name, "training", ())
    prepared = PreparedCase(case, torch.from_numpy(image), affine, torch.from_numpy(label), grid, None)
    return training_case(prepared, Target(label, (label,)))


ONE_VOXEL = ((3, 4), (4, 5), (5, 6))
LARGE = ((10, 20), (8, 18), (9, 14))  # 500 voxels
SMALL = ((1, 3), (1, 3), (1, 2))


def sampler(cases, *, patch_size=(8, 6, 4), lesion_fraction=1.0, seed=7, **settings):
    return LesionBalancedSampler(cases, patch_size=patch_size, lesion_fraction=lesion_fraction, seed=seed, **settings)


def test_a_lesion_of_one_voxel_is_drawn_as_often_as_one_of_500():
    """Two lesions in one case and one in another: each a third, within 5 standard deviations."""
    source = sampler([prepared(ONE_VOXEL, LARGE), prepared(SMALL), prepared()])
    assert source.lesions == [(0, 0), (0, 1), (1, 0)]
    drawn = [source.draw(epoch, index) for epoch in range(2) for index in range(1500)]
    counts = np.bincount([place.lesion for place in drawn], minlength=3)
    assert np.abs(counts - 1000).max() < 5 * np.sqrt(3000 * (1 / 3) * (2 / 3))
    assert {place.case for place in drawn} == {0, 1}


def test_within_a_lesion_every_voxel_is_drawn_alike():
    source = sampler([prepared(((2, 4), (5, 8), (3, 5)))])  # 12 voxels
    centres = [source.draw(0, index).centre for index in range(2400)]
    _, counts = np.unique(np.array(centres), axis=0, return_counts=True)
    assert len(counts) == 12
    assert ((counts - 200) ** 2 / 200).sum() < 31.3  # 99.9 % of chi-square with 11 degrees of freedom


def test_the_centre_of_a_lesion_patch_lies_in_that_lesion_of_that_case():
    cases = [prepared(SMALL), prepared(ONE_VOXEL, LARGE)]
    source = sampler(cases)
    for index in range(200):
        place = source.draw(3, index)
        assert cases[place.case].target.lesions[place.centre] == 1
        case, number = source.lesions[place.lesion]
        assert case == place.case
        inside = [all(a <= c < b for c, (a, b) in zip(place.centre, side, strict=True)) for side in (ONE_VOXEL, LARGE)]
        assert case == 0 or inside.index(True) == number


def test_lesions_side_by_side_are_told_apart():
    source = sampler([prepared(((2, 20), (3, 4), (5, 6)), ((2, 20), (15, 16), (5, 6)))])
    drawn = {(place.lesion, place.centre[1]) for place in (source.draw(0, index) for index in range(100))}
    assert drawn == {(0, 3), (1, 15)}


@pytest.mark.parametrize("fraction", [0.0, 0.1, 1 / 3, 0.5, 2 / 3, 0.7, 0.9, 1.0])
def test_the_share_of_lesion_patches_is_exact_over_any_run(fraction):
    source = sampler([prepared(ONE_VOXEL, LARGE)], lesion_fraction=fraction)
    hits = np.cumsum([source.draw(1, index).lesion is not None for index in range(300)])
    expected = np.floor(np.arange(1, 301) * fraction + 1e-9)
    np.testing.assert_array_equal(hits, expected)


def test_other_patches_are_centred_in_the_body_of_any_case():
    body = np.zeros(SHAPE, bool)  # two blocks whose common box is mostly air
    body[4:10, 3:6, 2:8] = body[14:20, 12:15, 9:15] = True
    cases = [prepared(SMALL), prepared(body=body)]
    source = sampler(cases, lesion_fraction=0.0)
    drawn = [source.draw(0, index) for index in range(400)]
    assert all(place.lesion is None for place in drawn)
    assert 140 < sum(place.case for place in drawn) < 260
    centres = np.array([place.centre for place in drawn if place.case == 1])
    assert body[tuple(centres.T)].all()
    np.testing.assert_array_equal(centres.min(axis=0), [4, 3, 2])
    np.testing.assert_array_equal(centres.max(axis=0), [19, 14, 14])


@pytest.mark.parametrize("fraction", [0.0, 0.5, 1.0])
def test_patches_stay_inside_and_hold_their_centre(fraction):
    size = (8, 6, 5)
    source = sampler([prepared(ONE_VOXEL, ((23, 24), (19, 20), (15, 16)))], patch_size=size, lesion_fraction=fraction)
    for index in range(200):
        place = source.draw(0, index)
        for start, centre, patch, length in zip(place.start, place.centre, size, SHAPE, strict=True):
            assert 0 <= start <= length - patch
            assert start <= centre < start + patch


def test_away_from_the_border_the_centre_is_the_middle_of_the_patch():
    source = sampler([prepared(((12, 13), (10, 11), (8, 9)))], patch_size=(8, 6, 5))
    assert source.draw(0, 0).start == (12 - 4, 10 - 3, 8 - 2)


def test_a_volume_smaller_than_the_patch_lies_in_its_middle_among_zeros():
    case = prepared(((2, 3), (2, 3), (1, 2)), shape=(5, 20, 4))
    place = sampler([case], patch_size=(8, 6, 9)).draw(0, 0)
    assert place.start == (-1, 0, -2)
    patch = cut_patch(case.image, place.start, (8, 6, 9))
    assert patch.shape == (1, 8, 6, 9)
    np.testing.assert_array_equal(patch[:, 1:6, :, 2:6], case.image[:, :, :6])
    assert np.count_nonzero(patch) == 5 * 6 * 4


def test_the_body_of_a_patch_is_that_of_its_place_and_none_outside_the_volume():
    inside = np.zeros((5, 20, 4), bool)
    inside[1:4, 2:19, 1:3] = True
    case = prepared(((2, 3), (2, 3), (1, 2)), shape=(5, 20, 4), body=inside)
    source = sampler([case], patch_size=(8, 6, 9))
    for index in range(20):
        place = source.draw(0, index)
        body = cut_body(case, place.start, (8, 6, 9))
        assert body.shape == (8, 6, 9)
        np.testing.assert_array_equal(body[1:6, :, 2:6], inside[:, place.start[1] : place.start[1] + 6])
        assert not body[[0, 6, 7]].any()
        assert not body[:, :, [0, 1, 6, 7, 8]].any()


def test_draws_do_not_depend_on_the_order_of_the_calls():
    cases = [prepared(ONE_VOXEL, LARGE), prepared(SMALL)]
    first, second = sampler(cases, lesion_fraction=0.5), sampler(cases, lesion_fraction=0.5)
    places = [(epoch, index) for epoch in range(3) for index in range(20)]
    forward = {place: first.draw(*place) for place in places}
    backward = {place: second.draw(*place) for place in reversed(places)}
    assert forward == backward


def test_epochs_and_seeds_give_other_patches():
    cases = [prepared(LARGE)]
    drawn = [
        tuple(sampler(cases, seed=seed).draw(epoch, index).centre for index in range(20))
        for seed, epoch in ((7, 0), (7, 1), (8, 0))
    ]
    assert len(set(drawn)) == 3


def test_no_lesion_at_all_is_refused():
    with pytest.raises(DatasetError, match="no lesion in the whole training set: all 2 labels are empty"):
        sampler([prepared(), prepared()])


@pytest.mark.parametrize("patch_size", [(8, 6), (8, 0, 6)])
def test_a_patch_size_that_is_none_is_refused(patch_size):
    with pytest.raises(ValueError, match="patch_size must be three positive numbers"):
        sampler([prepared(LARGE)], patch_size=patch_size)


@pytest.mark.parametrize("fraction", [-0.1, 1.1, float("nan")])
def test_a_share_out_of_range_is_refused(fraction):
    with pytest.raises(ValueError, match=r"lesion_fraction must be in \[0, 1\]"):
        sampler([prepared(LARGE)], lesion_fraction=fraction)


def by_loop(array, start, size):
    patch = np.zeros((*array.shape[:-3], *size), array.dtype)
    for offset in itertools.product(*map(range, size)):
        source = tuple(s + o for s, o in zip(start, offset, strict=True))
        if all(0 <= n < length for n, length in zip(source, array.shape[-3:], strict=True)):
            patch[(..., *offset)] = array[(..., *source)]
    return patch


@pytest.mark.parametrize("size", [(3, 2, 4), (7, 6, 5), (1, 1, 1)])
def test_a_patch_anywhere_even_wholly_outside_is_what_a_loop_gives(size):
    array = np.random.default_rng(0).integers(1, 99, (2, 5, 4, 3)).astype(np.int16)
    for start in itertools.product((-9, -3, -1, 0, 2, 4), (-6, -2, 0, 1, 3, 5), (-5, 0, 2, 3, 8)):
        found = cut_patch(array, start, size)
        assert found.dtype == array.dtype
        np.testing.assert_array_equal(found, by_loop(array, start, size))


@pytest.mark.parametrize("start", [(0, 1, 0), (-2, 3, 1), (9, 9, 9)])
def test_a_patch_is_written_where_it_is_wanted_over_what_was_there(start):
    array = np.random.default_rng(0).integers(1, 99, (2, 5, 4, 3)).astype(np.int16)
    room = np.full((2, 3, 2, 4), 77, np.int16)
    assert cut_patch(array, start, (3, 2, 4), out=room) is room
    np.testing.assert_array_equal(room, by_loop(array, start, (3, 2, 4)))
    for stored in (array.astype(np.float16), array.astype(np.float32)):
        room = np.full((2, 3, 2, 4), 77, np.float32)
        assert cut_image(stored, start, (3, 2, 4), out=room) is room
        np.testing.assert_array_equal(room, by_loop(array, start, (3, 2, 4)))


def test_a_patch_is_a_copy():
    array = np.ones((4, 4, 4))
    cut_patch(array, (0, 0, 0), (4, 4, 4))[:] = 0
    assert array.all()


@pytest.mark.parametrize("power", [-1.0, -0.5, 0.0, 0.5, 1.0])
def test_chances_go_by_the_number_of_voxels_to_a_power(power):
    """Lesions of 1, 500 and 4 voxels in two cases."""
    source = sampler([prepared(ONE_VOXEL, LARGE), prepared(SMALL)], size_power=power)
    assert source.num_voxels.tolist() == [1, 500, 4]
    weights = np.array([1.0, 500**power, 4**power])
    np.testing.assert_allclose(source.chances, weights / weights.sum())


def test_with_power_1_the_share_of_visits_is_the_share_of_voxels():
    """Lesions of 60 and 90 voxels and of 30: a chi-square of two degrees of freedom, at its 99.9 % quantile."""
    cases = [prepared(((1, 5), (1, 4), (1, 6)), ((10, 16), (8, 11), (9, 14))), prepared(((2, 7), (2, 4), (2, 5)))]
    source = sampler(cases, size_power=1.0)
    assert source.num_voxels.tolist() == [60, 90, 30]
    centred, _ = source.visits(0, 3600)
    expected = np.array([1200, 1800, 600])
    assert ((centred - expected) ** 2 / expected).sum() < 13.8


def test_a_lesion_of_one_voxel_is_visited_as_often_as_one_of_a_million():
    shape = (120, 110, 100)
    case = prepared(((2, 112), (2, 102), (2, 95)), ((118, 119), (108, 109), (98, 99)), shape=shape)
    source = sampler([case])
    assert source.num_voxels.tolist() == [110 * 100 * 93, 1]
    centred, _ = source.visits(0, 2000)
    assert abs(centred[1] - 1000) < 5 * np.sqrt(2000 / 4)
    assert sampler([case], size_power=1.0).visits(0, 2000)[0].tolist() == [2000, 0]


#: Four lesions of 4, 1, 60 and 500 voxels of 1.5 mm^3: one in each quarter of the volumes.
FOUR_SIZES = (SMALL, ONE_VOXEL), (((1, 5), (1, 4), (1, 6)), LARGE)
VOLUMES_ML = [0.006, 0.0015, 0.09, 0.75]


def four_sizes(**settings):
    return sampler([prepared(*blocks) for blocks in FOUR_SIZES], **settings)


def test_hardness_follows_the_shares_that_were_missed_of_each_size():
    """Of two lesions of each size 2, 1, 0 and 0 were missed: shares of 3/4, 2/4, 1/4 and 1/4."""
    source = four_sizes(hardness=0.5)
    assert source.chances.tolist() == [0.25] * 4
    source.judge(np.repeat(VOLUMES_ML, 2), [1, 1, 1, 0, 0, 0, 0, 0])
    assert source.miss_rates == [0.5, 0.75, 0.25, 0.25]  # the smallest first
    factors = 0.5 + 0.5 * np.array([0.75, 0.5, 0.25, 0.25]) / 0.4375
    np.testing.assert_allclose(source.chances, factors / factors.sum())
    centred, _ = source.visits(3, 4000)
    expected = 4000 * source.chances
    assert ((centred - expected) ** 2 / expected).sum() < 16.3  # 99.9 % of chi-square with 3 degrees of freedom


def test_hardness_multiplies_the_chances_by_size():
    source = four_sizes(hardness=1.0, size_power=1.0)
    source.judge(VOLUMES_ML, [True, False, False, True])
    weights = np.array([4, 1, 60, 500]) * np.array([2, 1, 1, 2])
    np.testing.assert_allclose(source.chances, weights / weights.sum())


@pytest.mark.parametrize("missed", [[], [False] * 4, [True] * 4])
def test_where_all_sizes_are_missed_alike_hardness_changes_nothing(missed):
    source = four_sizes(hardness=1.0)
    source.judge(VOLUMES_ML[: len(missed)], missed)
    np.testing.assert_allclose(source.chances, 0.25)


def test_a_judgement_counts_for_the_size_of_the_missed_lesion_be_it_larger_than_any():
    source = four_sizes(hardness=1.0)
    source.judge([1e-6, 1e6], [False, True])
    np.testing.assert_allclose(source.miss_rates, [1 / 3, 1 / 2, 1 / 2, 2 / 3])


def test_without_hardness_a_judgement_changes_nothing():
    source = four_sizes()
    before = [source.draw(0, index) for index in range(50)]
    source.judge(VOLUMES_ML, [True, False, False, False])
    assert [source.draw(0, index) for index in range(50)] == before


def test_a_judgement_can_be_taken_up_and_taken_back():
    judged, fresh = four_sizes(hardness=0.7), four_sizes(hardness=0.7)
    judged.judge(VOLUMES_ML, [True, True, False, False])
    fresh.set_miss_rates(judged.miss_rates)
    places = [(epoch, index) for epoch in range(2) for index in range(100)]
    assert [judged.draw(*place) for place in places] == [fresh.draw(*place) for place in places]
    fresh.set_miss_rates(None)
    assert fresh.chances.tolist() == [0.25] * 4


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size_power": 1.1}, r"size_power must be in \[-1, 1\], got 1.1: 0 draws all lesions alike"),
        ({"size_power": float("nan")}, r"size_power must be in \[-1, 1\]"),
        ({"hardness": -0.1}, r"hardness must be in \[0, 1\], got -0.1"),
        ({"hardness": 1.5}, r"hardness must be in \[0, 1\], got 1.5"),
    ],
)
def test_sampling_out_of_range_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        four_sizes(**settings)


@pytest.mark.parametrize("fraction", [0.0, 0.4, 1.0])
def test_visits_are_what_counting_the_draws_gives(fraction):
    """Shown is a lesion all of which lies in the patch; by its voxels, not by its box."""
    cases = [prepared(*FOUR_SIZES[0]), prepared(), prepared(*FOUR_SIZES[1])]
    source = sampler(cases, patch_size=(9, 7, 6), lesion_fraction=fraction)
    centred, shown = np.zeros((2, 4), int)
    lesions = [(0, SMALL), (0, ONE_VOXEL), (2, FOUR_SIZES[1][0]), (2, LARGE)]
    for index in range(300):
        place = source.draw(5, index)
        if place.lesion is not None:
            centred[place.lesion] += 1
        for number, (case, block) in enumerate(lesions):
            voxels = list(itertools.product(*(range(*side) for side in block)))
            inside = [
                all(s <= n < s + size for n, s, size in zip(voxel, place.start, (9, 7, 6), strict=True))
                for voxel in voxels
            ]
            shown[number] += case == place.case and all(inside)
    found = source.visits(5, 300)
    assert found[0].tolist() == centred.tolist()
    assert found[1].tolist() == shown.tolist()
    assert fraction == 0 or centred.sum() == int(300 * fraction)
    assert shown[3] == 0  # it is larger than a patch
    assert shown[:3].all() or fraction == 0


def test_a_body_of_a_few_voxels_far_apart_is_found():
    """Two voxels in a box of eight million: drawing blindly would take minutes a patch."""
    shape = (200, 200, 200)
    image = np.zeros((1, *shape), np.float32)
    image[0, 0, 0, 0] = image[0, 199, 199, 199] = 1
    label = np.zeros(shape, np.uint8)
    label[0, 0, 0] = 1
    grid = Volume(np.broadcast_to(np.uint8(0), shape), np.eye(4))
    case = PreparedCase(Case("c", "c", "training", ()), torch.from_numpy(image), np.eye(4), None, grid, None)
    source = sampler([training_case(case, Target(label, (label,)))], lesion_fraction=0.0)
    drawn = [source.draw(0, index).centre for index in range(12)]
    assert set(drawn) == {(0, 0, 0), (199, 199, 199)}


@pytest.mark.parametrize("precision", [Precision.FLOAT16, Precision.FLOAT32])
def test_an_image_is_cut_in_single_precision_and_its_body_by_its_background(precision):
    image = np.random.default_rng(0).normal(5, 1, (2, 5, 20, 4)).astype(np.float32)
    image[:, :, :2] = np.array([-3.0, -7.0])[:, None, None, None]  # no 0: the lowest of each channel is background
    grid = Volume(np.zeros((5, 20, 4)), np.eye(4))
    label = np.zeros((5, 20, 4), np.uint8)
    label[2, 5, 2] = 1
    case = PreparedCase(Case("c", "c", "training", ()), torch.from_numpy(image), np.eye(4), None, grid, None)
    stored = training_case(case, Target(label, (label,)), precision)
    found = cut_image(stored.image, (-1, 1, -2), (8, 6, 9))
    assert found.dtype == np.float32
    half = image.astype(str(precision)).astype(np.float32)
    np.testing.assert_array_equal(found, by_loop(half, (-1, 1, -2), (8, 6, 9)))
    body = cut_body(stored, (-1, 1, -2), (8, 6, 9))
    inside = np.ones((5, 20, 4), bool)
    inside[:, :2] = False
    np.testing.assert_array_equal(body, by_loop(inside, (-1, 1, -2), (8, 6, 9)))
    found[:] = 0
    assert stored.image.any()
