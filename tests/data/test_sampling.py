"""Patches: lesions are drawn, not voxels, and nothing depends on the order of the calls."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from medfocal.annotations.target import Target
from medfocal.data.manifest import Case
from medfocal.data.sampling import LesionBalancedSampler, cut_body, cut_patch
from medfocal.data.stored import training_case
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


def sampler(cases, *, patch_size=(8, 6, 4), lesion_fraction=1.0, seed=7):
    return LesionBalancedSampler(cases, patch_size=patch_size, lesion_fraction=lesion_fraction, seed=seed)


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


def test_a_patch_is_a_copy():
    array = np.ones((4, 4, 4))
    cut_patch(array, (0, 0, 0), (4, 4, 4))[:] = 0
    assert array.all()
