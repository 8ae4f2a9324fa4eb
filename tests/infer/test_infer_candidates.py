"""Candidates of a probability map, the mask at an operating point, and the table of both."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage
from small_models import RULE

from medfocal.components import find_at_threshold
from medfocal.infer.candidates import (
    COLUMNS,
    calibrated_confidence,
    candidate_features,
    candidate_rows,
    form_candidates,
    mask_at,
)
from medfocal.model import OperatingPoint

AFFINE = np.array([[-0.5, 0, 0, 31], [0, -1, 0, 17], [0, 0, 3, -42], [0, 0, 0, 1.0]])


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
        "case": "c", "candidate": 1, "confidence": 0.75, "kept": True, "operating_points": "", "num_voxels": 1,
        "volume_ml": pytest.approx(0.0015), "equivalent_diameter_mm": pytest.approx((6 * 1.5 / np.pi) ** (1 / 3)),
        "longest_diameter_mm": pytest.approx((0.5**2 + 1 + 9) ** 0.5), "axial_diameter_mm": pytest.approx(1.25**0.5),
        "i": 9.0, "j": 8.0, "k": 6.0, "x_mm": 26.5, "y_mm": 9.0, "z_mm": -24.0, "spread": None,
    }  # fmt: skip
    assert (rows[1]["kept"], rows[1]["num_voxels"], rows[1]["i"], rows[1]["x_mm"]) == (False, 2, 2.5, 29.75)


def test_the_rule_of_the_card_is_what_counts():
    assert len(candidates(floor=0.3)) == 1
    assert len(candidates(floor=0.001)) == 3
    with pytest.raises(KeyError):
        form_candidates(np.zeros((2, 2, 2)), AFFINE, {})


POINTS = (
    OperatingPoint(name="few", threshold=0.75, source="validation"),
    OperatingPoint(name="many", threshold=0.25, source="validation"),
    OperatingPoint(name="none", threshold=0.9, source="validation"),
)


def test_rows_name_the_operating_points_at_which_a_candidate_counts():
    rows = candidate_rows("c", candidates(), 0.5, POINTS)
    assert [row["operating_points"] for row in rows] == ["few; many", "many"]


def test_rows_have_the_spread_of_their_highest_voxel():
    spread = np.zeros((12, 10, 8), np.float32)
    spread[9, 8, 6], spread[2, 3, 4], spread[3, 3, 4] = 0.125, 0.5, 0.75
    rows = candidate_rows("c", candidates(), 0.5, POINTS, spread)
    assert [row["spread"] for row in rows] == [0.125, 0.5]
    assert candidate_rows("c", form_candidates(np.zeros((2, 2, 2), np.float32), AFFINE, RULE), 0.5, (), spread) == []


def test_a_mask_is_made_without_a_volume_of_numbers():
    found = candidates()
    mask_at(found, 0.5)
    assert "labels" not in vars(found)  # made when first asked for


# Smallest volume and exclusion


@pytest.mark.parametrize(("least_ml", "count"), [(0.0, 2), (0.0015, 2), (0.00151, 1), (0.003, 1), (0.0031, 0)])
def test_candidates_below_the_declared_volume_are_none(least_ml, count):
    """Voxels are of 1.5 cubic mm; one candidate has one of them, the other two."""
    found = candidates(min_volume_ml=least_ml)
    assert len(found) == count
    assert (found.volume_ml >= least_ml).all()
    assert mask_at(found, 0.0).sum() == found.num_voxels.sum()


def test_a_candidate_of_just_the_declared_volume_is_one():
    smallest = float(candidates().volume_ml.min())
    assert len(candidates(min_volume_ml=smallest)) == 2
    assert len(candidates(min_volume_ml=np.nextafter(smallest, 1))) == 1


def test_numbers_have_no_gap_after_a_candidate_is_dropped():
    found = candidates(min_volume_ml=0.002)
    assert found.confidence.tolist() == [0.25]
    assert np.unique(found.part).tolist() == [1]
    assert found.labels[2:4, 3, 4].tolist() == [1, 1]
    assert np.unravel_index(found.peak[0], found.shape) == (2, 3, 4)


def test_a_candidate_whose_highest_voxel_is_excluded_is_none():
    probability = np.zeros((12, 10, 8), np.float32)
    probability[2:5, 3, 4] = (0.3, 0.8, 0.5)
    probability[9, 8, 6] = 0.7
    for place, expected in (((3, 3, 4), [0.7]), ((2, 3, 4), [0.8, 0.7]), ((9, 8, 6), [0.8]), ((0, 0, 0), [0.8, 0.7])):
        exclude = np.zeros(probability.shape, bool)
        exclude[place] = True
        found = form_candidates(probability, AFFINE, RULE, exclude=exclude)
        assert found.confidence.tolist() == pytest.approx(expected)
    everywhere = np.ones(probability.shape, bool)
    assert len(form_candidates(probability, AFFINE, RULE, exclude=everywhere)) == 0
    assert len(form_candidates(probability * 0, AFFINE, RULE, exclude=everywhere)) == 0


# One declared cut


def test_a_cut_takes_connected_voxels_from_it_up():
    rng = np.random.default_rng(0)
    probability = ndimage.gaussian_filter(rng.random((24, 20, 16)), 1.5).astype(np.float32)
    probability = (probability - probability.min()) / np.ptp(probability)
    for cut in (0.6, 0.75, 0.9):
        found = form_candidates(probability, AFFINE, {**RULE, "cut": cut})
        numbers, count = ndimage.label(probability >= cut, np.ones((3, 3, 3)))
        assert len(found) == count > 1
        np.testing.assert_array_equal(found.labels > 0, numbers > 0)
        highest = ndimage.maximum(probability, numbers, range(1, count + 1))
        np.testing.assert_allclose(found.confidence, np.sort(highest)[::-1])
        direct = find_at_threshold(probability, AFFINE, threshold=cut)
        np.testing.assert_array_equal(found.labels, direct.labels)


def test_a_cut_has_its_own_connectivity_and_no_floor():
    probability = np.zeros((6, 5, 4), np.float32)
    probability[1, 1, 1] = probability[2, 2, 2] = 0.6
    assert len(form_candidates(probability, AFFINE, {**RULE, "cut": 0.5})) == 1
    assert len(form_candidates(probability, AFFINE, {**RULE, "cut": 0.5, "connectivity": 18})) == 2
    assert len(form_candidates(probability, AFFINE, {**RULE, "cut": 0.5, "floor": 0.9})) == 1
    assert len(form_candidates(probability, AFFINE, {**RULE, "cut": 0.7})) == 0


# Touching lesions

SPACING_MM = np.array([0.5, 1.0, 3.0])
SCAN = np.diag([*SPACING_MM, 1.0])


def balls(*centres_mm, radius_mm=6.0, heights=None):
    """Cones of probability about centres, in a scan of unequal spacing."""
    grid = np.stack(
        np.meshgrid(*(np.arange(n) * s for n, s in zip((70, 24, 9), SPACING_MM, strict=True)), indexing="ij")
    )
    each = []
    for number, centre in enumerate(centres_mm):
        away = np.linalg.norm(grid - np.reshape(centre, (3, 1, 1, 1)), axis=0)
        each.append((heights[number] if heights else 0.9) * np.clip(1 - away / radius_mm, 0, 1))
    return np.max(each, axis=0).astype(np.float32), grid


LEFT, RIGHT = (9.0, 11.0, 12.0), (17.0, 11.0, 12.0)


@pytest.mark.parametrize("way", ["hills", "cut"])
def test_two_touching_balls_are_one_candidate_until_they_are_separated(way):
    probability, grid = balls(LEFT, RIGHT)
    rule = {**RULE, "extent_ratio": 0.2, "cut": 0.2 if way == "cut" else None}
    together = form_candidates(probability, SCAN, rule)
    assert len(together) == 1
    apart = form_candidates(probability, SCAN, {**rule, "separate": True})
    assert len(apart) == 2
    np.testing.assert_array_equal(apart.labels > 0, together.labels > 0)
    assert apart.num_voxels.sum() == together.num_voxels.sum()
    nearest = np.argmin([np.linalg.norm(grid - np.reshape(c, (3, 1, 1, 1)), axis=0) for c in (LEFT, RIGHT)], axis=0)
    inside = (apart.labels > 0) & (np.abs(grid[0] - 13.0) > 0.6)  # not on the border between the two
    owner = {number: nearest[apart.labels == number] for number in (1, 2)}
    for number in (1, 2):
        own = nearest[(apart.labels == number) & inside]
        assert len(np.unique(own)) == 1, owner[number].mean()
    centres = sorted(apart.centroid_mm[:, 0])
    assert centres[0] == pytest.approx(LEFT[0], abs=1.0)
    assert centres[1] == pytest.approx(RIGHT[0], abs=1.0)


def test_distances_to_hills_are_in_mm():
    """A row of voxels along the thick axis and one along the thin: each goes to the hill that is nearer in mm."""
    probability = np.zeros((20, 3, 8), np.float32)
    probability[2:18, 1, 2] = 0.5
    probability[2, 1, 2:6] = 0.5
    probability[2, 1, 5], probability[17, 1, 2] = 0.9, 0.9  # 9 mm and 7.5 mm from the corner
    found = form_candidates(probability, SCAN, {**RULE, "cut": 0.4, "separate": True})
    assert len(found) == 2
    corner = found.labels[2, 1, 2]
    assert corner == found.labels[17, 1, 2] != found.labels[2, 1, 5]


@pytest.mark.parametrize("confidence", ["max", "mean_top"])
@pytest.mark.parametrize("cut", [None, 0.2])
def test_what_is_one_ball_stays_one_to_the_bit(confidence, cut):
    probability, _ = balls(LEFT, (28.0, 8.0, 9.0), heights=[0.9, 0.5], radius_mm=4.0)
    rule = {**RULE, "confidence": confidence, "cut": cut}
    one, other = (form_candidates(probability, SCAN, {**rule, "separate": separate}) for separate in (False, True))
    assert len(one) == len(other) == 2
    np.testing.assert_array_equal(one.labels, other.labels)
    np.testing.assert_array_equal(one.confidence, other.confidence)
    np.testing.assert_array_equal(one.peak, other.peak)


@pytest.mark.parametrize("confidence", ["max", "mean_top"])
def test_confidences_follow_the_rule_of_the_card_after_a_separation_too(confidence):
    probability, _ = balls(LEFT, RIGHT, (29.0, 8.0, 9.0), heights=[0.9, 0.7, 0.5])
    rule = {**RULE, "cut": 0.15, "separate": True, "confidence": confidence}
    found = form_candidates(probability, SCAN, rule)
    assert len(found) == 3
    for number in (1, 2, 3):
        values = np.sort(probability[found.labels == number].astype(np.float64))[::-1]
        expected = values[0] if confidence == "max" else values[:5].mean()
        assert found.confidence[number - 1] == pytest.approx(expected, abs=1e-12)
    assert (np.diff(found.confidence) <= 0).all()
    np.testing.assert_array_equal(
        found.peak, [np.argmax(np.where(found.labels == n, probability, -1)) for n in (1, 2, 3)]
    )


def test_three_in_a_row_come_apart_and_noise_of_a_plateau_does_not():
    probability, _ = balls((7.0, 11.0, 12.0), (15.0, 11.0, 12.0), (23.0, 11.0, 12.0))
    assert len(form_candidates(probability, SCAN, {**RULE, "cut": 0.2, "separate": True})) == 3
    probability, _ = balls((16.0, 11.0, 12.0))
    rough = np.where(probability > 0.2, 0.8 + 0.05 * np.random.default_rng(0).random(probability.shape), 0)
    assert len(form_candidates(rough.astype(np.float32), SCAN, {**RULE, "cut": 0.2, "separate": True})) == 1


def test_nothing_is_separated_into_nothing():
    assert len(form_candidates(np.zeros((6, 5, 4), np.float32), SCAN, {**RULE, "separate": True})) == 0


# Confidence by logistic regression

LOGISTIC = {"intercept": -1.0, "log_volume": 0.5, "mean": 3.0, "max": -2.0}


def test_a_calibrated_confidence_is_the_logistic_of_size_mean_and_height():
    found = candidates(logistic=LOGISTIC)
    plain = candidates()
    values = [np.array([0.75]), np.array([0.25, 0.25])]
    volumes_ml = [0.0015, 0.003]
    expected = [
        1 / (1 + np.exp(-(-1.0 + 0.5 * np.log(v) + 3.0 * p.mean() - 2.0 * p.max())))
        for p, v in zip(values, volumes_ml, strict=True)
    ]
    np.testing.assert_allclose(np.sort(found.confidence)[::-1], sorted(expected, reverse=True), rtol=1e-6)
    by_volume = dict(zip(found.volume_ml.round(6).tolist(), found.confidence, strict=True))
    assert by_volume[0.0015] == pytest.approx(expected[0], rel=1e-6)
    np.testing.assert_array_equal(mask_at(found, 0.0), mask_at(plain, 0.0))


def test_a_calibrated_confidence_orders_the_candidates_anew():
    found = candidates(logistic={"intercept": 0.0, "log_volume": 0.0, "mean": 0.0, "max": -5.0})
    assert found.num_voxels.tolist() == [2, 1]  # the lower one is the surer
    assert (np.diff(found.confidence) < 0).all()
    assert found.labels[9, 8, 6] == 2
    assert mask_at(found, found.confidence[0]).sum() == 2


def test_features_are_the_logarithm_of_the_volume_the_mean_and_the_highest():
    probability = np.zeros((12, 10, 8), np.float32)
    probability[2:5, 3, 4] = (0.5, 0.75, 0.625)
    found = form_candidates(probability, AFFINE, RULE)
    np.testing.assert_allclose(candidate_features(found, probability), [[np.log(0.0045), 0.625, 0.75]])
    nothing = form_candidates(probability * 0, AFFINE, {**RULE, "logistic": LOGISTIC})
    assert len(nothing) == 0
    assert candidate_features(nothing, probability).shape == (0, 3)


def test_a_confidence_far_from_the_middle_does_not_overflow():
    features = np.array([[0.0, 0.0, 1.0], [0.0, 0.0, -1.0]])
    assert calibrated_confidence(features, {**LOGISTIC, "max": 1e4}).tolist() == [1.0, 0.0]
