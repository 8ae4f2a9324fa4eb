import numpy as np
import pytest

from medfocal.errors import InputError
from medfocal.evaluate.values import whole_labels

WHERE = "case 'a': the reference 'a.nii'"


def labels(value, dtype):
    array = np.zeros((3, 2, 4), dtype)
    array[2, 0, 1] = value
    return array


def test_a_label_that_a_tool_rounded_is_the_whole_number():
    assert whole_labels(labels(1.0009, np.float32), WHERE)[2, 0, 1] == 1


def test_integers_are_given_back_without_a_copy():
    array = labels(7, np.uint16)
    assert whole_labels(array, WHERE) is array


@pytest.mark.parametrize(
    ("value", "dtype", "message"),
    [
        (0.25, np.float32, r"the reference 'a.nii' holds 0.25 at voxel \(2, 0, 1\), which is not a whole number"),
        (np.nan, np.float64, r"holds nan at voxel \(2, 0, 1\)"),
        (np.inf, np.float64, r"holds inf at voxel \(2, 0, 1\)"),
        (-1.0, np.float64, r"holds -1.0 at voxel \(2, 0, 1\)"),
        (-1, np.int16, "holds the value -1; labels are 0 or more"),
        (3e9, np.float64, r"holds 3e\+09; labels are at most 2147483647"),
    ],
)
def test_what_is_no_label_is_refused(value, dtype, message):
    with pytest.raises(InputError, match=message):
        whole_labels(labels(value, dtype), WHERE)
