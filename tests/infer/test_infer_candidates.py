"""Candidates of a probability map, the mask at an operating point, and the table of both."""

from __future__ import annotations

import numpy as np
import pytest

from medfocal.infer.candidates import COLUMNS, candidate_rows, form_candidates, mask_at

AFFINE = np.array([[-0.5, 0, 0, 31], [0, -1, 0, 17], [0, 0, 3, -42], [0, 0, 0, 1.0]])
RULE = {"extent_ratio": 0.5, "floor": 0.01, "connectivity": 26, "confidence": "max"}


def candidates(**changes):
    probability = np.zeros((12, 10, 8), np.float32)
    probability[2:4, 3, 4] = 0.25
    probability[9, 8, 6] = 0.75
    probability[6, 1, 1] = 0.005
    return form_candidates(probability, AFFINE, {**RULE, **changes})


def test_the_mask_holds_candidates_from_the_threshold_up():
    found = candidates()
    expected = np.zeros((12, 10, 8), bool)
    expected[9, 8, 6] = True
    np.testing.assert_array_equal(mask_at(found, 0.75), expected)
    assert not mask_at(found, 0.76).any()
    expected[2:4, 3, 4] = True
    np.testing.assert_array_equal(mask_at(found, 0.25), expected)
    np.testing.assert_array_equal(mask_at(found, 0.0), expected)


def test_no_candidate_gives_an_empty_mask_and_no_row():
    found = form_candidates(np.zeros((12, 10, 8), np.float32), AFFINE, RULE)
    assert not mask_at(found, 0.0).any()
    assert candidate_rows("c", found, 0.5) == []


def test_rows_tell_place_size_and_whether_a_candidate_is_kept():
    rows = candidate_rows("c", candidates(), 0.5)
    assert [tuple(row) for row in rows] == [COLUMNS, COLUMNS]
    assert rows[0] == {
        "case": "c", "candidate": 1, "confidence": 0.75, "kept": True, "num_voxels": 1,
        "volume_ml": pytest.approx(0.0015), "equivalent_diameter_mm": pytest.approx((6 * 1.5 / np.pi) ** (1 / 3)),
        "i": 9.0, "j": 8.0, "k": 6.0, "x_mm": 26.5, "y_mm": 9.0, "z_mm": -24.0,
    }  # fmt: skip
    assert (rows[1]["kept"], rows[1]["num_voxels"], rows[1]["i"], rows[1]["x_mm"]) == (False, 2, 2.5, 29.75)


def test_the_rule_of_the_card_is_what_counts():
    assert len(candidates(floor=0.3)) == 1
    assert len(candidates(floor=0.001)) == 3
    with pytest.raises(KeyError):
        form_candidates(np.zeros((2, 2, 2)), AFFINE, {})
