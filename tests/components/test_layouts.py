"""However an array lies in memory, what is found in it is the same, under the same numbers."""

import numpy as np
import pytest
from scipy import ndimage

from medfocal.components import find_at_threshold, find_candidates, find_components, find_grown, find_instances
from medfocal.components.voxels import PIECE_BYTES, Layout, find_positions

SHAPE = (12, 10, 8)
AFFINE = np.array([[-0.5, 0, 0, 20], [0, 1, 0, -7], [0, 0, 3, 4], [0, 0, 0, 1]], float)


def with_gaps(array):
    wide = np.zeros([2 * side for side in array.shape], array.dtype)
    wide[::2, ::2, ::2] = array
    return wide[::2, ::2, ::2]


def off_by_a_byte(array):
    room = np.zeros(array.nbytes + 1, np.uint8)
    moved = np.ndarray(array.shape, array.dtype, room.data, offset=1)
    moved[...] = array
    return moved


LAYOUTS = {
    "C": np.ascontiguousarray,
    "Fortran": np.asfortranarray,
    "middle axis slowest": lambda array: np.ascontiguousarray(array.transpose(1, 0, 2)).transpose(1, 0, 2),
    "turned back": lambda array: np.ascontiguousarray(array[::-1, :, ::-1])[::-1, :, ::-1],
    "with gaps": with_gaps,
    "off by a byte": off_by_a_byte,
    "read only": lambda array: np.frombuffer(array.tobytes(), array.dtype).reshape(array.shape),
}
FINDERS = {
    "components": lambda p: find_components(p > 0.8, AFFINE),
    "components of floats": lambda p: find_components(np.where(p > 0.95, p, 0), AFFINE, connectivity=6),
    "instances": lambda p: find_instances((p * 4).astype(np.int16), AFFINE)[0],
    "grown": lambda p: find_grown(p > 0.98, AFFINE, steps=1)[1],
    "hills": lambda p: find_candidates(p, AFFINE),
    "parts at a threshold": lambda p: find_at_threshold(p, AFFINE, threshold=0.9),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("finder", FINDERS)
def test_layout_in_memory_changes_nothing(finder, layout):
    probability = ndimage.gaussian_filter(np.random.default_rng(3).random(SHAPE), 0.6)
    probability = (probability / probability.max()) ** 3
    expected = FINDERS[finder](probability)
    assert len(np.unique(expected.part)) > 1
    found = FINDERS[finder](LAYOUTS[layout](probability))
    np.testing.assert_array_equal(found.voxels, expected.voxels)
    np.testing.assert_array_equal(found.part, expected.part)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int16, np.float32, np.float64, np.complex128, np.longdouble])
@pytest.mark.parametrize("shape", [(12, 10, 8), (3, 5, 7), (1, 1, 1), (1, 9, 1), (7, 1, 2)])
def test_positions_are_where_the_array_is_not_zero(shape, dtype, layout):
    """Sides that fill no whole word of eight bytes, and one voxel at the very end."""
    array = LAYOUTS[layout]((np.random.default_rng(0).random(shape) < 0.2).astype(dtype))
    if layout != "read only":
        array[-1, -1, -1] = 1
    own = Layout.of(array)
    voxels = own.in_c_order(find_positions(array, own))
    np.testing.assert_array_equal(np.sort(voxels), np.flatnonzero(array))


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32])
def test_single_voxel_beyond_the_last_whole_word_is_found(dtype):
    array = np.zeros((3, 5, 7), dtype)
    array[-1, -1, -1] = 1
    assert find_positions(array, Layout.of(array)).tolist() == [104]


def test_negative_zero_is_outside_and_nan_inside():
    array = np.zeros(SHAPE, np.float32)
    array[1, 1, 1], array[2, 2, 2] = -0.0, np.nan
    assert find_positions(array, Layout.of(array)).tolist() == [2 * 80 + 2 * 8 + 2]


def test_voxels_beyond_the_first_piece_are_found_at_their_place():
    array = np.zeros((3, 1, PIECE_BYTES - 3), np.uint8)
    ends = [0, PIECE_BYTES - 1, PIECE_BYTES, 2 * PIECE_BYTES + 5, array.size - 1]
    array.reshape(-1)[ends] = 1
    assert find_positions(array, Layout.of(array)).tolist() == ends


def test_search_gives_up_beyond_the_number_allowed_and_not_at_it():
    array = np.ones(SHAPE, np.uint8)
    assert find_positions(array, Layout.of(array), most=959) is None
    assert len(find_positions(array, Layout.of(array), most=960)) == 960


def test_fortran_array_is_searched_without_a_copy():
    array = np.zeros((64, 64, 64), np.uint8, order="F")
    layout = Layout.of(array)
    assert np.shares_memory(array, array.transpose(layout.axes).reshape(-1))
