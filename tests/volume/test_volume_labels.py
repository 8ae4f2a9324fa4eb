"""Labels are whole numbers from 0, however they were stored."""

from __future__ import annotations

import numpy as np
import pytest

from medfocal.errors import InputError
from medfocal.volume import Volume, read_labels, write_volume

AFFINE = np.diag([0.5, 1.0, 3.0, 1.0])


def stored(folder, value, dtype):
    array = np.zeros((12, 10, 8), dtype)
    array[3, 4, 5] = value
    write_volume(folder / "a.nii.gz", Volume(array, AFFINE))
    return folder / "a.nii.gz"


@pytest.mark.parametrize(
    ("value", "dtype", "expected"),
    [
        (0.99999997, np.float64, 1),
        (1.0009, np.float32, 1),
        (-0.0004, np.float32, 0),
        (255, np.uint8, 255),
        (255.0, np.float64, 255),
        (32767, np.int32, 32767),
    ],
)
def test_nearly_whole_values_are_rounded_to_int16(tmp_path, value, dtype, expected):
    found = read_labels(stored(tmp_path, value, dtype)).array
    assert found.dtype == np.int16
    assert found[3, 4, 5] == expected
    assert np.count_nonzero(found) == (expected != 0)


def test_a_label_beyond_int16_is_kept_in_int32(tmp_path):
    found = read_labels(stored(tmp_path, 40000, np.int32)).array
    assert found.dtype == np.int32
    assert found[3, 4, 5] == 40000


@pytest.mark.parametrize("value", [0.5, 1.002, np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_whole_is_named_with_its_voxel(tmp_path, value):
    with pytest.raises(InputError, match=r"at voxel \(3, 4, 5\), which is not a whole number"):
        read_labels(stored(tmp_path, value, np.float32))


@pytest.mark.parametrize(("value", "dtype"), [(-1, np.int16), (-1.0, np.float32), (2**31, np.uint32), (1e30, float)])
def test_negative_and_enormous_labels_are_refused(tmp_path, value, dtype):
    with pytest.raises(InputError, match="labels are 0 or more"):
        read_labels(stored(tmp_path, value, dtype))
