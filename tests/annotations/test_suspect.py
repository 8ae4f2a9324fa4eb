"""Suspect labels: thresholds, ranks and weights on volumes whose answer is worked out by hand."""

import csv
import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest

from medfocal.annotations.suspect import (
    CASE_COLUMNS,
    SUSPECT_COLUMNS,
    Kind,
    SuspectRules,
    find_voxel_thresholds,
    label_quality,
    rank_suspects,
    survey_case,
    suspect_files,
    suspect_voxels,
    suspect_weights,
)
from medfocal.errors import DatasetError, GeometryError, InputError
from medfocal.evaluate.pairs import Pair
from medfocal.volume import Volume, read_volume, write_volume

SHAPE = (12, 10, 8)
#: i runs to the left; spacing (0.5, 1, 3) mm.
AFFINE = np.array([[-0.5, 0, 0, 20.0], [0, 1.0, 0, -30.0], [0, 0, 3.0, 5.0], [0, 0, 0, 1.0]])
ALL = SuspectRules(min_score=0.0)


def volumes(lesions=(), hills=()):
    """A label and a map: lesions are boxes of slices, hills are (box or voxel, probability)."""
    label, probability = np.zeros(SHAPE, np.uint8), np.zeros(SHAPE, np.float32)
    for lesion in lesions:
        label[lesion] = 1
    for place, height in hills:
        probability[place] = height
    return label, probability


# Three lesions, of which the prediction is sure of two; and three lonely candidates, of which it is sure of one.
SURE, SURER, DOUBTED = np.s_[1:3, 1:3, 1], np.s_[9:11, 1:3, 1], np.s_[1:3, 7:9, 1]
MISSED, FAINT, FAINTER = np.s_[9:11, 7:9, 1], np.s_[1, 1, 6], np.s_[9, 7, 6]


def scene():
    return volumes(
        [SURE, SURER, DOUBTED],
        [(SURE, 0.8), (SURER, 0.9), (DOUBTED, 0.05), (MISSED, 0.85), (FAINT, 0.1), (FAINTER, 0.02)],
    )


def survey(label, probability, case="one", rules=ALL):
    return survey_case(label, probability, AFFINE, case=case, rules=rules)


def ranked(*cases, rules=ALL):
    return rank_suspects([survey(*case, case=f"case{n}", rules=rules) for n, case in enumerate(cases)], rules)


def order(found, kind=None):
    """Centroids by rank, in voxels."""
    return [suspect.place.centroid_voxel for suspect in found.suspects if kind in {None, suspect.kind}]


def test_scores_are_those_of_the_formula():
    found = ranked(scene())
    scores = {(suspect.kind, round(suspect.confidence, 2)): suspect.score for suspect in found.suspects}
    # Lesions .05, .8, .9 and lonely candidates .85, .1, .02, so n = m = 3. Of a candidate p_background counts itself,
    # and of a lesion p_lesion does. The lesion of .05 scores above 1/2, so that missed ones are compared with two.
    wanted = {
        # 2 p_lesion = 2 (1 + 1) / 3, 3 p_background = 1; then 2 (1 + 0) / 3 and 2 or 3
        (Kind.MISSED, 0.85): 4 / 3 / (4 / 3 + 1),
        (Kind.MISSED, 0.1): 2 / 3 / (2 / 3 + 2),
        (Kind.MISSED, 0.02): 2 / 3 / (2 / 3 + 3),
        # p_background = (1 + 2) / 4, p_lesion = 1 / 3
        (Kind.SPURIOUS, 0.05): 0.75 / (0.75 + 1 / 3),
        # p_background = (1 + 1) / 4, p_lesion = 2 / 3; then (1 + 0) / 4 and 1
        (Kind.SPURIOUS, 0.8): 0.5 / (0.5 + 2 / 3),
        (Kind.SPURIOUS, 0.9): 0.25 / (0.25 + 1),
    }
    assert scores == pytest.approx(wanted)
    assert [suspect.rank for suspect in found.suspects] == [1, 2, 3, 4, 5, 6]
    assert [suspect.score for suspect in found.suspects] == sorted(wanted.values(), reverse=True)


def test_a_suspect_says_where_it_is_in_millimetres():
    found = ranked(scene())
    first, second = found.suspects[:2]
    assert (first.kind, second.kind) == (Kind.SPURIOUS, Kind.MISSED)
    # The doubted lesion: i 1..2, j 7..8, k 1; the missed one: i 9..10.
    assert first.place.centroid_mm == pytest.approx((20 - 0.5 * 1.5, -30 + 7.5, 5 + 3))
    assert second.place.centroid_mm == pytest.approx((20 - 0.5 * 9.5, -30 + 7.5, 5 + 3))
    assert first.place.volume_ml == second.place.volume_ml == pytest.approx(4 * 1.5 / 1000)
    assert (first.lesion, second.lesion, second.candidate) == (2, None, 2)  # the second surest


def test_a_mark_one_voxel_beside_its_lesion_is_a_boundary_not_a_spurious_and_a_missed_lesion():
    agreeing = (np.s_[8:11, 1:3, 5], 0.9), (np.s_[8:11, 6:9, 1], 0.8)
    beside = np.s_[1:3, 1:3, 1], (np.s_[3:5, 3:5, 2], 0.85)  # they touch by a corner
    label, probability = volumes([beside[0], *(box for box, _ in agreeing)], [beside[1], *agreeing])
    probability[0, 9, 1:8:2] = 0.02, 0.03, 0.04, 0.05  # four that are no lesions
    found = ranked((label, probability))
    first = found.suspects[0]
    assert (first.kind, first.voxel_dice, first.lesion) == (Kind.BOUNDARY, 0.0, 1)
    # p_background = (1 + 0) / 5 and p_lesion = 2 / 3 (.8 is less sure), so spurious is 3 / 13; Dice 0 of typically 1.
    assert first.score == pytest.approx((1 - 3 / 13) * 1)
    assert {place[1] for place in order(found, Kind.MISSED)} == {9.0}


def test_two_voxels_away_it_is_both():
    label, probability = volumes([np.s_[1:3, 1:3, 1]], [(np.s_[4:6, 1:3, 1], 0.85)])
    found = ranked((label, probability))
    assert {suspect.kind for suspect in found.suspects} == {Kind.MISSED, Kind.SPURIOUS}


def test_the_boundary_score_takes_out_how_the_prediction_draws_in_general():
    # Lesions of 2 x 2 x 1 drawn as 4 x 2 x 1: Dice 2 * 4 / 12; and one as 2 x 2 x 5: 2 * 4 / 24.
    lesions = [np.s_[1:3, 1:3, 1], np.s_[7:9, 1:3, 1], np.s_[1:3, 6:8, 1]]
    hills = [
        (np.s_[1:5, 1:3, 1], 0.9),
        (np.s_[7:11, 1:3, 1], 0.9),
        (np.s_[1:3, 6:8, 1:6], 0.9),
        (np.s_[11, 9, 7], 0.02),
    ]
    found = ranked(volumes(lesions, hills))
    assert found.typical_dice == pytest.approx(2 / 3)
    (suspect,) = (suspect for suspect in found.suspects if suspect.kind is Kind.BOUNDARY)
    assert suspect.voxel_dice == pytest.approx(1 / 3)
    assert suspect.score == pytest.approx((1 - 1 / 3) * (1 - 0.5))  # spurious: (1 / 2) / (1 / 2 + 1)


def test_what_a_candidate_covers_of_another_lesion_does_not_count_against_the_first():
    """One candidate over two lesions: it is of each no larger than the other leaves."""
    label, probability = volumes([np.s_[1:3, 1:3, 1], np.s_[5:7, 1:3, 1]], [(np.s_[1:7, 1:3, 1], 0.9)])
    lesions = survey(label, probability).lesions
    # Each: 4 voxels, all shared, of a candidate with 12 - 4.
    assert [lesion.voxel_dice for lesion in lesions] == pytest.approx([2 * 4 / (4 + 8)] * 2)
    assert [lesion.candidate for lesion in lesions] == [1, 1]


@pytest.mark.parametrize("confidence", ["max", "mean_top"])
def test_a_lesions_confidence_reaches_one_voxel_further_but_not_into_another_lesion(confidence):
    label, probability = volumes([np.s_[2, 2, 2], np.s_[2, 2, 4]], [(np.s_[2, 2, 2], 0.2), (np.s_[3, 3, 3], 0.5)])
    probability[2, 2, 4] = 0.9
    probability[2, 4, 2] = 1.0  # two voxels from the first
    rules = SuspectRules(confidence=confidence)
    first, second = survey(label, probability, rules=rules).lesions
    wanted = {"max": (0.5, 0.9), "mean_top": ((0.5 + 0.2) / 5, (0.9 + 0.5) / 5)}[confidence]
    assert (first.confidence, second.confidence) == pytest.approx(wanted)


def test_a_lesions_confidence_does_not_reach_into_one_that_touches_it_by_a_corner():
    label, probability = volumes([np.s_[2, 2, 2], np.s_[3, 3, 3]], [(np.s_[2, 2, 2], 0.2), (np.s_[3, 3, 3], 0.9)])
    lesions = survey(label, probability, rules=SuspectRules(connectivity=6)).lesions
    assert [lesion.confidence for lesion in lesions] == pytest.approx([0.2, 0.9])


@pytest.mark.parametrize("axes", [(0,), (1,), (2,), (0, 1, 2)])
def test_flipping_label_and_map_changes_no_rank(axes):
    cases = [noisy(seed) for seed in (2, 3, 4)]
    found = ranked(*cases)
    flipped = ranked(*((np.flip(label, axes), np.flip(probability, axes)) for label, probability in cases))
    assert [s.case for s in flipped.suspects] == [s.case for s in found.suspects]
    back = [
        tuple(n - 1 - x if axis in axes else x for axis, (x, n) in enumerate(zip(place, SHAPE, strict=True)))
        for place in order(flipped)
    ]
    np.testing.assert_allclose(back, order(found), rtol=0, atol=1e-9)
    assert [s.score for s in flipped.suspects] == pytest.approx([s.score for s in found.suspects])
    assert {s.kind for s in found.suspects} == set(Kind)


def noisy(seed):
    """Some lesions and hills, no two of one height."""
    rng = np.random.default_rng(seed)
    label = np.zeros(SHAPE, np.uint8)
    probability = rng.uniform(0, 0.009, SHAPE)
    for _ in range(6):
        i, j, k = (int(rng.integers(0, n - 2)) for n in SHAPE)
        label[i : i + 2, j : j + 1, k : k + 2] = 1
        if rng.random() < 0.6:
            probability[i : i + 2, j : j + 2, k : k + 1] = rng.uniform(0.02, 0.95, (2, 2, 1))
    for _ in range(10):
        probability[tuple(int(rng.integers(0, n)) for n in SHAPE)] = rng.uniform(0.02, 0.9)
    return label, probability


def test_rescaling_the_probabilities_keeps_scores_of_missed_and_spurious():
    """Squared, with the same candidates: their extent and the floor are squared as well."""
    cases = [noisy(seed) for seed in (2, 3, 4)]
    found = ranked(*cases)
    rules = SuspectRules(min_score=0.0, extent_ratio=0.25, floor=1e-4)
    squared = ranked(*((label, probability**2) for label, probability in cases), rules=rules)
    for kind in (Kind.MISSED, Kind.SPURIOUS):
        assert order(squared, kind) == order(found, kind) != []
    assert [s.score for s in squared.suspects] == pytest.approx([s.score for s in found.suspects])


def test_voxel_thresholds_are_those_of_all_voxels_at_once():
    cases = [noisy(seed) for seed in (5, 6, 7)]
    label, probability = (np.concatenate([case[part].ravel() for case in cases]) for part in (0, 1))
    thresholds = find_voxel_thresholds(survey(*case) for case in cases)
    assert thresholds.lesion == pytest.approx(probability[label == 1].mean(), rel=1e-12)
    assert thresholds.background == pytest.approx((1 - probability[label == 0]).mean(), rel=1e-12)


def test_voxels_beyond_the_threshold_of_the_other_class_are_suspected():
    label, probability = volumes([SURE, DOUBTED], [(SURE, 0.8), (MISSED, 0.7)])
    probability[1, 1, 1] = 0.6
    thresholds = find_voxel_thresholds([survey(label, probability)])
    # Four voxels of .8, .8, .8, .6 and four of 0; of the 952 others, four of .7.
    assert thresholds.lesion == pytest.approx(3.0 / 8)
    assert thresholds.background == pytest.approx(1 - 4 * 0.7 / 952)
    missed, spurious = suspect_voxels(label, probability, thresholds)
    wanted = np.zeros((2, *SHAPE), bool)
    wanted[0][MISSED] = wanted[1][DOUBTED] = True
    np.testing.assert_array_equal([missed, spurious], wanted)


def test_label_quality_is_the_softmin_of_the_labels_own_probabilities():
    label, probability = noisy(8)
    voxels = zip(label.ravel().tolist(), probability.ravel().tolist(), strict=True)
    own = [p if is_lesion else 1 - p for is_lesion, p in voxels]
    for temperature in (0.05, 0.1, 1.0):
        weights = [math.exp((1 - q) / temperature) for q in own]
        wanted = math.fsum(w * q for w, q in zip(weights, own, strict=True)) / math.fsum(weights)
        assert label_quality(label, probability, temperature=temperature) == pytest.approx(wanted, rel=1e-9)


@pytest.mark.parametrize("temperature", [1e-6, 0.1, 1e6])
def test_label_quality_of_a_case_without_lesions_is_a_number(temperature):
    label, probability = volumes()
    assert label_quality(label, probability, temperature=temperature) == 1
    probability[MISSED] = 0.7
    wanted = {1e-6: 0.3, 1e6: 1 - 0.7 * 4 / 960}.get(temperature)
    found = label_quality(label, probability, temperature=temperature)
    assert found == pytest.approx(wanted, abs=1e-6) if wanted else 0.3 < found < 1


def test_weights_are_lower_exactly_where_the_down_weighted_suspects_lie():
    label, probability = scene()
    rules = SuspectRules(min_score=0.0, weight_min_score=0.5, suspect_weight=0.25)
    found = ranked((label, probability), rules=rules)
    assert [suspect.down_weighted for suspect in found.suspects] == [True, True, False, False, False, False]
    wanted = np.ones(SHAPE, np.float32)
    wanted[DOUBTED] = wanted[MISSED] = 0.25
    weight = suspect_weights(label, probability, AFFINE, case="case0", found=found)
    assert weight.dtype == np.float32
    np.testing.assert_array_equal(weight, wanted)


def test_only_the_kinds_that_may_weigh_less_do():
    label, probability = scene()
    weights = {}
    for kinds in (["missed"], ["spurious"], [], ["voxels"]):
        found = ranked((label, probability), rules=SuspectRules(weight_min_score=0.5, weight_kinds=kinds))
        weights[tuple(kinds)] = suspect_weights(label, probability, AFFINE, case="case0", found=found) == 0
    wanted = np.zeros((4, *SHAPE), bool)
    wanted[0][MISSED] = wanted[1][DOUBTED] = True
    # Lesion voxels: four of .8, .9 and .05 each, so .583; background: 4 .85 + .1 + .02 over 948, so .9963.
    wanted[3][MISSED] = True
    np.testing.assert_array_equal(list(weights.values()), wanted)


def test_a_wrong_boundary_weighs_less_where_label_and_candidate_differ():
    """But not where that candidate covers another lesion."""
    lesions = [np.s_[1:3, 1:3, 1], np.s_[7:9, 1:3, 1], np.s_[1:3, 6:8, 1], np.s_[2:4, 6:8, 6]]
    hills = [(np.s_[1:3, 1:3, 1], 0.9), (np.s_[7:9, 1:3, 1], 0.9), (np.s_[2:4, 6:8, 1:7], 0.9), (np.s_[11, 0, 7], 0.02)]
    label, probability = volumes(lesions, hills)
    found = ranked((label, probability), rules=SuspectRules(weight_min_score=0.45, min_score=0))
    # Dice 2 * 2 / (4 + 20) and 2 * 4 / (4 + 22), median of these and two of 1; spurious: (1 / 2) / (1 / 2 + 1).
    typical = (1 + 8 / 26) / 2
    boundary = [suspect for suspect in found.suspects if suspect.kind is Kind.BOUNDARY]
    wanted_scores = [2 / 3 * (1 - dice / typical) for dice in (4 / 24, 8 / 26)]
    assert [suspect.score for suspect in boundary] == pytest.approx(wanted_scores)
    assert [suspect.lesion for suspect in found.suspects if suspect.down_weighted] == [boundary[0].lesion]
    low = suspect_weights(label, probability, AFFINE, case="case0", found=found) == 0
    wanted = np.zeros(SHAPE, bool)
    wanted[1, 6:8, 1] = wanted[3, 6:8, 1] = wanted[2:4, 6:8, 2:6] = True
    np.testing.assert_array_equal(low, wanted)


def test_without_any_lesion_the_candidates_are_ranked_by_confidence_and_scores_are_undefined():
    found = ranked(volumes(hills=[(FAINT, 0.1), (MISSED, 0.7)]), volumes(), rules=SuspectRules())
    assert [suspect.confidence for suspect in found.suspects] == pytest.approx([0.7, 0.1])
    assert all(math.isnan(suspect.score) and not suspect.down_weighted for suspect in found.suspects)
    assert [line["what"] for line in found.undefined] == ["score of missed", "voxel_thresholds: lesion"]
    assert "no reference holds a lesion" in found.undefined[0]["why"]


def test_where_every_candidate_touches_a_lesion_only_lesions_without_a_candidate_are_listed():
    found = ranked(volumes([SURE, DOUBTED], [(SURE, 0.8)]), rules=SuspectRules())
    (suspect,) = found.suspects
    assert (suspect.kind, suspect.place.centroid_voxel) == (Kind.SPURIOUS, (1.5, 7.5, 1.0))
    assert math.isnan(suspect.score)
    assert found.undefined[0]["what"] == "score of spurious"


def test_neither_lesion_nor_candidate_says_so():
    found = ranked(volumes(), rules=SuspectRules())
    assert found.suspects == ()
    assert found.undefined[0]["why"].endswith("there is nothing to suspect")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("connectivity", 8),
        ("extent_ratio", 1.0),
        ("floor", 0.0),
        ("confidence", "median"),
        ("temperature", 0.0),
        ("min_score", 1.5),
        ("weight_min_score", -0.1),
        ("weight_kinds", ["misssed"]),
        ("suspect_weight", 2.0),
    ],
)
def test_a_rule_out_of_its_range_is_refused(name, value):
    with pytest.raises(ValueError, match=f"{name} must be .*, got "):
        SuspectRules(**{name: value})


def write_pairs(folder, cases):
    pairs = []
    for number, (label, probability) in enumerate(cases):
        paths = [folder / part / f"case{number}.nii.gz" for part in ("labels", "maps")]
        for path, array in zip(paths, (label, probability), strict=True):
            write_volume(path, Volume(array.astype(np.float32) if array.dtype.kind == "f" else array, AFFINE))
        pairs.append(Pair(f"case{number}", f"patient{number // 2}", *paths))
    return pairs


def rows(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_files_one_by_one_give_what_all_at_once_gives(tmp_path):
    cases = [noisy(seed) for seed in (2, 3, 4)] + [volumes()]
    cases = [(label, probability.astype(np.float32)) for label, probability in cases]
    rules = SuspectRules(min_score=0.1, weight_min_score=0.4, suspect_weight=0.5)
    pairs = write_pairs(tmp_path, cases)
    found = suspect_files(pairs, tmp_path / "o", rules)
    at_once = ranked(*cases, rules=rules)
    assert [s.score for s in found.suspects] == [s.score for s in at_once.suspects]
    assert [s.place.num_voxels for s in found.suspects] == [s.place.num_voxels for s in at_once.suspects]

    table = rows(tmp_path / "o" / "suspect.csv")
    assert tuple(table[0]) == SUSPECT_COLUMNS
    assert [(int(row["rank"]), row["kind"], row["case"], row["patient"]) for row in table] == [
        (s.rank, s.kind, s.case, s.patient) for s in found.suspects
    ]
    np.testing.assert_allclose(
        [[float(row[key]) for key in ("x_mm", "y_mm", "z_mm")] for row in table],
        [s.place.centroid_mm for s in at_once.suspects],
        rtol=0,
        atol=1e-4,  # a header stores float32
    )
    quality = rows(tmp_path / "o" / "cases.csv")
    assert tuple(quality[0]) == CASE_COLUMNS
    values = [float(row["label_quality"]) for row in quality]
    assert values == sorted(values)
    assert (quality[-1]["case"], values[-1]) == ("case3", 1)
    label, probability = (np.stack([case[part] for case in cases]) for part in (0, 1))
    missed, spurious = suspect_voxels(label, probability, at_once.thresholds)
    assert sum(int(row["num_missed_voxels"]) for row in quality) == missed.sum() > 0
    assert sum(int(row["num_spurious_voxels"]) for row in quality) == spurious.sum() > 0

    summary = json.loads((tmp_path / "o" / "suspect.json").read_text("utf-8"))
    assert summary["num_suspects"] == {str(kind): sum(s.kind is kind for s in found.suspects) for kind in Kind}
    assert (summary["num_cases"], summary["num_patients"], summary["rules"]["suspect_weight"]) == (4, 2, 0.5)
    for number, case in enumerate(cases):
        volume = read_volume(tmp_path / "o" / "weights" / f"case{number}_weight.nii.gz")
        weight = suspect_weights(*case, AFFINE, case=f"case{number}", found=at_once)
        assert volume.array.dtype == np.float32
        np.testing.assert_array_equal(volume.array, weight)
        assert volume.same_grid(Volume(case[0], AFFINE))
    assert (read_volume(tmp_path / "o" / "weights" / "case3_weight.nii.gz").array == 1).all()


@pytest.mark.parametrize(("kind", "value"), [(np.uint8, 1), (np.float32, 1), (np.uint8, 2), (np.uint8, 0)])
def test_a_mask_in_place_of_probabilities_is_refused(tmp_path, kind, value):
    label, _ = scene()
    pairs = write_pairs(tmp_path, [scene(), (label, (value * label).astype(kind))])
    with pytest.raises(InputError, match=r"case 'case1': .*is a mask.*save_probability=true"):
        suspect_files(pairs, tmp_path / "o", SuspectRules())
    assert not (tmp_path / "o").exists()


def test_an_empty_map_among_others_is_a_prediction_and_alone_is_refused(tmp_path):
    nothing = volumes()
    assert suspect_files(write_pairs(tmp_path, [scene(), nothing]), tmp_path / "o", SuspectRules()).suspects
    with pytest.raises(InputError, match=r"none of the 1 predictions, such as '.*case0.nii.gz', holds a value between"):
        suspect_files(write_pairs(tmp_path / "alone", [nothing]), tmp_path / "p", SuspectRules())
    assert not (tmp_path / "p").exists()


@pytest.mark.parametrize("wrong", [math.nan, -0.5, 7.5])
def test_what_is_no_probability_is_refused(tmp_path, wrong):
    label, probability = scene()
    probability[0, 0, 0] = wrong
    with pytest.raises(InputError, match=r"case 'case0': .*probabilities lie in \[0, 1\]"):
        suspect_files(write_pairs(tmp_path, [(label, probability)]), tmp_path / "o", SuspectRules())


def test_different_grids_are_refused_with_both(tmp_path):
    label, probability = scene()
    (pair,) = write_pairs(tmp_path, [(label, probability)])
    moved = AFFINE.copy()
    moved[2, 2] = 2.5
    write_volume(pair.prediction, Volume(probability, moved))
    with pytest.raises(GeometryError, match=r"spacing \(0.5, 1, 3\) and \(0.5, 1, 2.5\) mm. Resample the prediction"):
        suspect_files([pair], tmp_path / "o", SuspectRules())
    with pytest.raises(GeometryError, match=r"\(12, 10, 8\) and \(12, 10, 7\)"):
        survey(label, probability[..., :-1])


def test_a_case_name_that_is_a_path_is_refused(tmp_path):
    (pair,) = write_pairs(tmp_path, [scene()])
    with pytest.raises(DatasetError, match=r"so '\.\./case0' cannot be one"):
        suspect_files([Pair("../case0", "p", pair.reference, pair.prediction)], tmp_path / "o", SuspectRules())


def test_most_dropped_lesions_of_phantoms_are_found_by_held_out_predictions(tmp_path):
    """A third of the lesions is dropped; two folds of 200 steps predict each other's cases.

    The share that is found among twice as many suspects was .72, .78 and .44 for the seeds 1 to 3: so short a training
    does not always learn. Chance is 2 n of all candidates, .09 here. tests/benchmarks/suspects.py trains longer.
    """
    sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
    try:
        from suspects import Study, cross_validate, judge_seed
    finally:
        del sys.path[0]
    phantoms = ("num_cases=30", "shape=[40,40,28]", "prevalence=2e-3")
    study = Study(num_folds=2, num_steps=200, phantoms=phantoms, training=("trainer.batch_size=4",))
    dropped, _ = judge_seed(cross_validate(tmp_path, 1, study))
    num_dropped = dropped["missed"]["total"]
    assert num_dropped > 20
    assert 2 * num_dropped / dropped["num_lonely"] < 0.15
    assert dropped["missed"]["among_first"][2] / num_dropped >= 0.5
