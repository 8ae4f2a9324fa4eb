"""Windows along a grid: their weights, what is skipped and cropped, and the planes that leave the slab."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_models import CPU, image, window

from medfocal.infer.sliding import SIGMA, body_box, grown_to, row_of, slide, tiles_of, with_margin
from medfocal.infer.window import Window

SHAPES = [(12, 10, 8), (8, 6, 4), (13, 7, 5), (19, 6, 11)]
SIZE = (8, 6, 4)


def position(windows):
    """Two channels that depend on the voxel and on where in the window it lies, without a constant anywhere."""
    ramps = torch.meshgrid(*(torch.linspace(0.2, 1, n) for n in windows.shape[2:]), indexing="ij")
    place = (ramps[0] * ramps[1] ** 2 * ramps[2] ** 3).expand(len(windows), 1, *windows.shape[2:])
    return torch.cat([windows[:, :1] * place, place], dim=1)


def slid(say, case, *, size=SIZE, overlap=0.5, batch=4, channels=2, **options):
    """All planes put together, and how often each voxel was given."""
    values = torch.full((channels, *case.shape[1:]), torch.nan)
    count = torch.zeros(case.shape[1:], dtype=torch.int64)
    own = window(size, overlap=overlap, batch=batch)
    for depth, columns, found in slide(say, case, window=own, num_channels=channels, device=CPU, **options):
        assert found.shape == (channels, depth.stop - depth.start, columns.stop - columns.start, case.shape[3])
        values[:, depth, columns] = found
        count[depth, columns] += 1
    return values.numpy(), count.numpy()


def starts_of(count, size, overlap):
    """As windows are usually placed: steps of the share that does not overlap, the last moved back to fit."""
    step, found = max(1, int(size * (1 - overlap))), [0]
    while found[-1] + size < count:
        found.append(min(found[-1] + step, count - size))
    return found


def brute_force(say, case, *, size=SIZE, overlap=0.5, is_skipped=lambda _: False):
    """With a volume of weights, a division at the end and float64."""
    away = [(np.arange(n) - (n - 1) / 2) / (SIGMA * n) for n in size]
    gauss = np.exp(-0.5 * (away[0][:, None, None] ** 2 + away[1][:, None] ** 2 + away[2] ** 2))
    total, weights = 0.0, np.zeros(case.shape[1:])
    for start in itertools.product(*(starts_of(n, s, overlap) for n, s in zip(case.shape[1:], size, strict=True))):
        place = tuple(slice(first, first + n) for first, n in zip(start, size, strict=True))
        weights[place] += gauss
        if is_skipped(case[:, *place]):
            continue
        said = say(case[None][:, :, *place])[0].double().numpy()
        if np.isscalar(total):
            total = np.zeros((len(said), *case.shape[1:]))
        total[:, *place] += gauss * said
    return total / weights


@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5, 0.7, 0.9])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_average_is_that_of_a_volume_of_weights_and_each_voxel_is_given_once(shape, overlap):
    case = image(*shape)
    found, count = slid(position, case, overlap=overlap)
    np.testing.assert_array_equal(count, 1)
    np.testing.assert_allclose(found, brute_force(position, case, overlap=overlap), atol=2e-6)  # float32


@pytest.mark.parametrize("size", [(1, 1, 1), (13, 1, 5), (1, 7, 1), (2, 3, 5), (13, 7, 5)])
def test_windows_of_any_shape_give_each_voxel_once(size):
    case = image(13, 7, 5)
    found, count = slid(position, case, size=size, overlap=0.6, skip=False)  # nothing varies within one voxel
    np.testing.assert_array_equal(count, 1)
    np.testing.assert_allclose(found, brute_force(position, case, size=size, overlap=0.6), atol=2e-6)


@pytest.mark.parametrize("overlap", [0.0, 0.3, 0.5, 0.8])
@pytest.mark.parametrize("shape", SHAPES)
def test_weights_sum_to_1_at_every_voxel(shape, overlap):
    found, _ = slid(lambda x: torch.ones(len(x), 1, *x.shape[2:]), image(*shape), overlap=overlap, channels=1)
    np.testing.assert_allclose(found, 1, atol=1e-6)


@pytest.mark.parametrize(
    ("count", "size", "overlap", "starts"),
    [
        (8, 8, 0.5, [0]),
        (12, 8, 0.5, [0, 4]),
        (13, 8, 0.5, [0, 4, 5]),
        (13, 8, 0.0, [0, 5]),
        (16, 8, 0.0, [0, 8]),
        (10, 4, 0.75, [0, 1, 2, 3, 4, 5, 6]),
        (5, 2, 0.99, [0, 1, 2, 3]),
        (3, 1, 0.5, [0, 1, 2]),
    ],
)
def test_windows_start_a_step_apart_and_the_last_is_moved_back_to_fit(count, size, overlap, starts):
    row = row_of(count, size, overlap)
    assert list(row.starts) == starts
    assert row.weights.shape == (len(starts), size)
    total = np.zeros(count)
    for start, weights in zip(row.starts, row.weights, strict=True):
        total[start : start + size] += weights
    np.testing.assert_allclose(total, 1, atol=1e-6)


def test_the_weight_of_a_voxel_is_a_gaussian_of_its_place_in_the_window():
    """At a voxel that two windows share weights are as the Gaussians there."""
    row = row_of(12, 8, 0.5)
    one, other = np.exp(-0.5 * ((np.array([5, 1]) - 3.5) / (0.125 * 8)) ** 2)
    assert row.weights[0][5] == pytest.approx(one / (one + other), rel=1e-6)
    assert row.weights[1][1] == pytest.approx(other / (one + other), rel=1e-6)


@pytest.mark.parametrize("overlap", [0.25, 0.7])
@pytest.mark.parametrize("shape", SHAPES)
def test_parts_of_the_second_axis_change_nothing(shape, overlap):
    case = image(*shape)
    whole, _ = slid(position, case, overlap=overlap)
    for num_tiles in range(2, shape[1] + 2):
        found, count = slid(position, case, overlap=overlap, num_tiles=num_tiles)
        np.testing.assert_array_equal(count, 1)
        np.testing.assert_allclose(found, whole, atol=1e-6)


def test_parts_hold_only_their_own_columns_in_memory():
    own = window(SIZE)
    for _, columns, values in slide(position, image(12, 20, 8), window=own, num_channels=2, device=CPU, num_tiles=4):
        assert columns.stop - columns.start == 5
        assert values.untyped_storage().nbytes() == 4 * 2 * 8 * 5 * 8  # channels, depth of a window, columns, rows


@pytest.mark.parametrize(("count", "num_tiles", "lengths"), [(10, 3, [3, 4, 3]), (4, 4, [1] * 4), (2, 5, [1, 1])])
def test_parts_are_as_equal_as_they_can_be(count, num_tiles, lengths):
    parts = tiles_of(count, num_tiles)
    assert sorted(part.stop - part.start for part in parts) == sorted(lengths)
    assert [voxel for part in parts for voxel in range(part.start, part.stop)] == list(range(count))


@pytest.mark.parametrize("batch", [1, 3, 64])
def test_the_number_of_windows_at_once_changes_nothing_and_is_kept(batch):
    seen = []

    def say(windows):
        seen.append(tuple(windows.shape))
        return position(windows)

    case = image(13, 10, 9)
    found, _ = slid(say, case, batch=batch)
    np.testing.assert_allclose(found, brute_force(position, case), atol=2e-6)
    assert {shape[1:] for shape in seen} == {(2, *SIZE)}
    assert max(shape[0] for shape in seen) == min(batch, 12)  # a plane has 3 times 4 windows


# Skipping


def hollow():
    """Two channels with a block in the middle of nothing; the nothing is not the same in both."""
    case = torch.empty(2, 21, 14, 12)
    case[0], case[1] = -1.5, 3.0
    case[:, 9:13, 6:9, 5:8] = image(4, 3, 3)
    return case


def is_constant(cut):
    return all(channel.min() == channel.max() for channel in cut)


def test_windows_in_which_nothing_varies_are_taken_for_0():
    case = hollow()
    found, _ = slid(position, case)
    np.testing.assert_allclose(found, brute_force(position, case, is_skipped=is_constant), atol=2e-6)
    assert (found[:, :4] == 0).all()


def test_skipping_changes_no_voxel_that_lies_in_no_skipped_window():
    case = hollow()
    skipped = np.zeros(case.shape[1:], bool)
    places = [starts_of(n, s, 0.5) for n, s in zip(case.shape[1:], SIZE, strict=True)]
    for start in itertools.product(*places):
        place = tuple(slice(first, first + n) for first, n in zip(start, SIZE, strict=True))
        skipped[place] |= is_constant(case[:, *place])
    assert skipped.any()
    assert not skipped.all()
    found, every = (slid(position, case, skip=skip)[0] for skip in (True, False))
    np.testing.assert_allclose(found[:, ~skipped], every[:, ~skipped], atol=1e-6)
    assert np.abs(found - every)[:, skipped].max() > 0.1


def test_no_voxel_that_differs_from_its_surroundings_lies_in_a_skipped_window():
    calls = []

    def say(windows):
        calls.extend(windows)
        return position(windows)

    case = hollow()
    slid(say, case)
    inside = [cut for cut in calls if not is_constant(cut)]
    assert len(inside) == len(calls) > 0
    slid(say, torch.full((2, 12, 10, 8), 7.0))
    assert len(inside) == len(calls)  # a case that says nothing is not computed


# Cropping


def box_by_hand(case):
    """Plane after plane from each end while all of it holds the values of the first."""
    sides = []
    for axis in range(3):
        planes = [case.select(1 + axis, n).flatten(1) for n in range(case.shape[1 + axis])]
        ends = []
        for order in (planes, planes[::-1]):
            value, length = order[0][:, :1], 0
            while length < len(order) and bool((order[length] == value).all()):
                length += 1
            ends.append(length)
        sides.append((ends[0], len(planes) - ends[1]))
    return tuple(sides)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("end", [0, 1])
@pytest.mark.parametrize("count", [0, 1, 3])
def test_constant_planes_are_cut_from_each_side(axis, end, count):
    case = image(9, 8, 7)
    if count:
        part = slice(0, count) if end == 0 else slice(case.shape[1 + axis] - count, None)
        case[(slice(None),) * (1 + axis) + (part,)] = torch.tensor([2.0, -1.0]).reshape(2, 1, 1, 1)
    expected = [(0, n) for n in (9, 8, 7)]
    expected[axis] = (count, expected[axis][1]) if end == 0 else (0, expected[axis][1] - count)
    assert [(side.start, side.stop) for side in body_box(case)] == expected
    assert box_by_hand(case) == tuple(expected)


def test_a_constant_plane_of_another_value_than_the_border_is_part_of_the_body():
    case = torch.zeros(1, 8, 6, 5)
    case[:, 2] = 4.0
    case[:, 5, 3, 2] = 1.0
    assert [(side.start, side.stop) for side in body_box(case)] == [(2, 6), (0, 6), (0, 5)] == list(box_by_hand(case))


def test_what_one_channel_shows_is_not_cut_off():
    case = torch.zeros(2, 8, 6, 5)
    case[1, 1, 4, 3], case[0, 6, 2, 2] = 1.0, 1.0
    assert [(side.start, side.stop) for side in body_box(case)] == [(1, 7), (2, 5), (2, 4)]


def test_one_voxel_is_a_body_and_a_constant_image_has_none():
    case = torch.full((1, 8, 6, 5), 3.0)
    assert [(side.start, side.stop) for side in body_box(case)] == [(0, 0)] * 3
    case[0, 7, 0, 2] = 2.0
    assert [(side.start, side.stop) for side in body_box(case)] == [(7, 8), (0, 1), (2, 3)]
    assert [(side.start, side.stop) for side in body_box(image(1, 1, 1))] == [(0, 0)] * 3


@pytest.mark.parametrize("seed", range(8))
def test_boxes_of_random_images_are_those_found_by_hand(seed):
    rng = np.random.default_rng(seed)
    case = torch.from_numpy((rng.random((2, 7, 6, 5)) < 0.01).astype(np.float32))
    expected = box_by_hand(case)
    if any(start >= stop for start, stop in expected):
        expected = ((0, 0),) * 3
    assert tuple((side.start, side.stop) for side in body_box(case)) == expected


@pytest.mark.parametrize(
    ("box", "size", "shape", "grown"),
    [
        ((4, 5), 4, 12, (3, 7)),
        ((0, 1), 4, 12, (0, 4)),
        ((11, 12), 4, 12, (8, 12)),
        ((2, 9), 4, 12, (2, 9)),
        ((1, 2), 20, 12, (0, 12)),
    ],
)
def test_a_box_grows_to_a_window_about_its_middle_within_the_volume(box, size, shape, grown):
    found = grown_to((slice(*box),) * 3, (size,) * 3, (shape,) * 3)
    assert [(side.start, side.stop) for side in found] == [grown] * 3


@given(
    ends=st.tuples(st.integers(0, 60), st.integers(1, 60)),
    size=st.integers(1, 24),
    overlap=st.sampled_from([0.0, 0.25, 0.5, 0.75]),
)
def test_a_margin_is_an_eighth_of_a_window_and_costs_no_window_beyond_that(ends, size, overlap):
    shape = 61
    start, stop = min(ends), max(*ends, min(ends) + 1)
    own = Window(size=(size, size, size), overlap=overlap)
    found = with_margin((slice(start, stop),) * 3, own, (shape,) * 3)[0]
    least = max(min(stop - start + 2 * (size // 8), shape), size)
    assert found.start <= start < stop <= found.stop
    assert 0 <= found.start < found.stop <= shape
    count = found.stop - found.start
    assert count >= least
    num_windows = len(row_of(count, size, overlap).starts)
    assert num_windows == len(row_of(least, size, overlap).starts)
    # Nothing that costs no window is left aside.
    assert count == shape or len(row_of(count + 1, size, overlap).starts) == num_windows + 1
    if found.start > 0 and found.stop < shape:
        assert abs((start - found.start) - (found.stop - stop)) <= 1
