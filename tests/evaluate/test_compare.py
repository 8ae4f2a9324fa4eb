import csv
import json
import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from hand_made_pools import NEVER, make_pool, random_model, random_pool, random_set

from medfocal.errors import DatasetError
from medfocal.evaluate.cases import evaluate_case
from medfocal.evaluate.compare import (
    Difference,
    check_same_reference,
    compare,
    compare_tables,
    draw_swaps,
    judge_difference,
    min_deciding_patients,
    permutation_p,
    write_comparison,
)
from medfocal.evaluate.mcnemar import clustered_mcnemar, holm
from medfocal.evaluate.operating_points import sensitivity_at_rates, threshold_at_rate
from medfocal.evaluate.protocols import Protocol
from medfocal.evaluate.wafroc import wafroc

PROTOCOL = Protocol(num_resamples=300, min_lesions=5)


def names(pool):
    return [f"case-{number}" for number in range(pool.num_cases)]


def pair(seed, num_patients=10, *, better_by=0.0, skill=0.5, lesions_per_case=2.0):
    """Two models of one set; each patient is as hard for both."""
    rng = np.random.default_rng(seed)
    patients, lesions = random_set(rng, num_patients, lesions_per_case=lesions_per_case)
    effect = rng.normal(0, 0.7, num_patients)
    a = random_model(rng, patients, lesions, skill=skill, patient_effect=effect)
    return a, random_model(rng, patients, lesions, skill=skill + better_by, patient_effect=effect)


def run(a, b, protocol=PROTOCOL, **options):
    return compare(a, b, protocol, cases=names(a), **options)


def figure(found, name, rate=math.nan):
    same = [
        d
        for d in found.differences
        if d.figure == name and np.isclose(d.false_positives_per_case, rate, equal_nan=True)
    ]
    assert len(same) == 1
    return same[0]


def interval(low, high):
    return Difference("lesion_sensitivity", 1.0, 0.5, 0.5, 0.0, low, high, 0.95, "", 0.5)


class TestFigures:
    def test_a_model_against_itself_is_undecided_with_no_difference(self):
        a = random_pool(0)
        found = run(a, a)
        assert found.verdict == "undecided"
        for difference in found.differences:
            assert (difference.difference, difference.low, difference.high, difference.p) == (0, 0, 0, 1)
        assert math.isnan(found.mcnemar.p)

    def test_every_figure_is_that_of_each_model_alone(self):
        a, b = pair(1)
        found = run(a, b)
        once = np.ones((1, a.num_patients))
        rates = PROTOCOL.false_positive_rates
        for side, pool in (("a", a), ("b", b)):
            sensitivities = sensitivity_at_rates(pool, once, rates)[0]
            for rate, sensitivity in zip(rates, sensitivities, strict=True):
                assert getattr(figure(found, "lesion_sensitivity", rate), side) == pytest.approx(sensitivity)
            assert getattr(figure(found, "cpm"), side) == pytest.approx(sensitivities.mean())
            assert getattr(figure(found, "wafroc"), side) == pytest.approx(wafroc(pool, once)[0])
            of_all = wafroc(pool, once, false_of_all_cases=True)[0]
            assert getattr(figure(found, "wafroc1"), side) == pytest.approx(of_all)
            at_threshold = (pool.lesion_confidence >= 0.5).mean()
            assert getattr(figure(found, "lesion_sensitivity"), side) == pytest.approx(at_threshold)
            num_false = (~pool.candidate_is_true & (pool.candidate_confidence >= 0.5)).sum()
            assert getattr(figure(found, "false_positives_per_case"), side) == num_false / pool.num_cases
        for difference in found.differences:
            assert difference.difference == pytest.approx(difference.b - difference.a)

    def test_exchanged_models_give_the_same_with_the_other_sign(self):
        a, b = pair(2, better_by=1)
        one, other = run(a, b), run(b, a)
        for ours, theirs in zip(one.differences, other.differences, strict=True):
            assert (ours.difference, ours.low, ours.high) == pytest.approx(
                (-theirs.difference, -theirs.high, -theirs.low)
            )
            assert ours.p == theirs.p
        assert (one.mcnemar.num_only_a, one.mcnemar.p) == (other.mcnemar.num_only_b, other.mcnemar.p)

    def test_the_same_seed_gives_the_same_and_another_seed_does_not(self):
        a, b = pair(3, 20)
        assert repr(run(a, b)) == repr(run(a, b))  # NaN is not equal to itself
        assert run(a, b).differences != run(a, b, replace(PROTOCOL, seed=1)).differences

    def test_a_rate_of_the_verdict_that_is_no_rate_of_the_protocol_is_a_figure_but_not_part_of_the_cpm(self):
        a, b = pair(4)
        plain, other = run(a, b), run(a, b, primary_rate=0.3)
        assert len(other.differences) == len(plain.differences) + 1
        assert other.primary == figure(other, "lesion_sensitivity", 0.3)
        assert figure(other, "cpm") == figure(plain, "cpm")

    def test_both_models_are_resampled_together(self):
        """b finds one lesion more than a in every patient, so every resample has the same difference."""
        patients = range(8)
        lesions = [(case, 0.9, 5) for case in patients] + [(case, 0.8, 5) for case in patients]
        worse = [(case, 0.9, 5) for case in patients] + [(case, NEVER, 5) for case in patients]
        marks = [(case, 0.9, True) for case in patients]
        b = make_pool(patients, lesions, marks + [(case, 0.8, True) for case in patients])
        found = run(make_pool(patients, worse, marks), b).primary
        assert (found.difference, found.low, found.high) == (0.5, 0.5, 0.5)

    def test_without_resamples_there_is_no_interval_and_no_claim(self):
        a, b = pair(5, better_by=3)
        found = run(a, b, replace(PROTOCOL, num_resamples=0))
        assert found.verdict == "undecided"
        assert math.isnan(found.primary.low)
        assert "without an interval nothing is claimed" in found.sentence
        lines = [line for line in found.undefined if line.what == "cpm: interval"]
        assert [(line.where, line.why) for line in lines] == [("all cases", "no interval: no resamples were asked for")]


class TestPermutation:
    def test_all_swaps_of_few_patients_are_taken_once_each(self):
        swaps, is_exact = draw_swaps(5, 32, seed=0)
        assert is_exact
        assert len({tuple(row) for row in swaps.tolist()}) == len(swaps) == 32

    def test_many_patients_are_swapped_at_random_half_of_the_time(self):
        swaps, is_exact = draw_swaps(14, 10_000, seed=0)
        assert not is_exact
        assert swaps.shape == (10_000, 14)
        np.testing.assert_allclose(swaps.mean(axis=0), 0.5, atol=0.025)  # five standard errors
        assert draw_swaps(13, 10_000, seed=0)[1]
        assert not draw_swaps(5, 31, seed=0)[1]

    def test_p_counts_both_sides_and_the_drawn_one_counts_itself(self):
        swapped = np.array([[0.3], [-0.3], [0.1], [0.0]])
        np.testing.assert_allclose(permutation_p([0.3], swapped, is_exact=True), [0.5])
        np.testing.assert_allclose(permutation_p([0.3], swapped, is_exact=False), [0.6])
        np.testing.assert_allclose(permutation_p([-0.2], swapped, is_exact=False), [0.6])
        np.testing.assert_allclose(permutation_p([9.0], swapped, is_exact=False), [0.2])

    def test_rounding_does_not_make_the_observed_difference_its_own_exception(self):
        assert permutation_p([0.3], [[0.1 + 0.2 - 1e-15]], is_exact=True) == 1

    def test_p_is_that_of_pools_put_together_by_hand_for_every_swap(self):
        """Five patients: each swap as two new pools, with the threshold of the rate found anew."""
        a, b = pair(6, 5, better_by=1)
        found = run(a, b)
        observed = found.primary.difference
        num_extreme = 0
        for code in range(32):
            swapped = [bool(code >> patient & 1) for patient in range(5)]
            value = by_patient(b, a, swapped) - by_patient(a, b, swapped)
            num_extreme += abs(value) >= abs(observed) - 1e-12
        assert found.primary.p == num_extreme / 32
        assert (found.num_permutations, found.is_exact) == (32, True)

    def test_p_of_wafroc_takes_each_case_from_one_model(self):
        """One patient with a lesion, one without; only swapping both or none keeps the perfect pair together."""
        a = make_pool([0, 1], [(0, 0.3, 5)], [(0, 0.3, True), (1, 0.6, False)])
        b = make_pool([0, 1], [(0, 0.9, 5)], [(0, 0.9, True), (1, 0.1, False)])
        found = figure(run(a, b), "wafroc")
        # Swapped in patient 1 alone: a has .3 against .1 and b .9 against .6, no difference.
        assert (found.a, found.b, found.p) == (0, 1, 0.5)


class TestMcNemar:
    def test_lesions_are_counted_where_each_model_reaches_the_rate(self):
        a, b = pair(7, 12, better_by=1)
        found = run(a, b)
        of_a, of_b = (pool.lesion_confidence >= t for pool, t in ((a, found.threshold_a), (b, found.threshold_b)))
        assert found.mcnemar == clustered_mcnemar(of_a, of_b, a.lesion_patient)
        assert (found.threshold_a, found.threshold_b) == (threshold_at_rate(a, 1.0), threshold_at_rate(b, 1.0))
        assert found.threshold_a != found.threshold_b
        assert (of_a.mean(), of_b.mean()) == pytest.approx((found.primary.a, found.primary.b))

    def test_at_the_threshold_both_models_have_that_of_the_protocol(self):
        a, b = pair(7, 12)
        found = run(a, b, primary_rate=None)
        assert (found.threshold_a, found.threshold_b) == (0.5, 0.5)
        assert found.primary == figure(found, "lesion_sensitivity")
        assert "at the threshold 0.5" in found.sentence

    def test_sizes_hold_every_lesion_once_and_are_adjusted_for_one_another(self):
        a, b = pair(8, 30, better_by=1)
        found = run(a, b)
        assert [(row.low, row.high) for row in found.by_size] == [(0, 3), (3, 5), (5, 10), (10, math.inf)]
        assert sum(row.num_lesions for row in found.by_size) == a.num_lesions
        for row in found.by_size:
            own = (a.lesion_diameter_mm >= row.low) & (a.lesion_diameter_mm < row.high)
            of_b = b.lesion_confidence[own] >= found.threshold_b
            of_a = a.lesion_confidence[own] >= found.threshold_a
            assert (row.a, row.b) == pytest.approx((of_a.mean(), of_b.mean()))
            assert row.mcnemar == clustered_mcnemar(of_a, of_b, a.lesion_patient[own])
        np.testing.assert_array_equal(
            [row.p_holm for row in found.by_size], holm([row.mcnemar.p for row in found.by_size])
        )

    def test_a_lesion_on_a_border_belongs_to_the_larger_size(self):
        a = make_pool(range(4), [(0, NEVER, 2.99), (1, NEVER, 3), (2, NEVER, 5), (3, NEVER, 10)])
        assert [row.num_lesions for row in run(a, a).by_size] == [1, 1, 1, 1]

    def test_a_size_with_few_lesions_is_not_tested_and_says_so(self):
        a, b = pair(8, 30, better_by=1)
        found = run(a, b, replace(PROTOCOL, min_lesions=1000))
        assert all(math.isnan(value) for row in found.by_size for value in (row.a, row.b, row.mcnemar.p, row.p_holm))
        lines = [line for line in found.undefined if line.where == "lesions of 3 to 5 mm"]
        assert [line.why for line in lines] == [f"there are {found.by_size[1].num_lesions}, fewer than 1000"]


class TestVerdict:
    @pytest.mark.parametrize(
        ("low", "high", "verdict"),
        [
            (0.01, 0.3, "better"),
            (-0.3, -0.01, "worse"),
            (0, 0.3, "undecided"),
            (-0.3, 0, "undecided"),
            (-1, 1, "undecided"),
        ],
    )
    def test_the_interval_decides(self, low, high, verdict):
        assert judge_difference(interval(low, high), num_patients=6) == verdict

    def test_five_patients_decide_nothing(self):
        """All of five on one side happens by chance in 2 of 32 swaps, of six in 2 of 64."""
        assert judge_difference(interval(0.1, 0.3), num_patients=5) == "undecided"
        assert [min_deciding_patients(level) for level in (0.5, 0.9, 0.95, 0.99)] == [2, 5, 6, 8]

    def test_a_clearly_better_model_is_called_better_and_the_other_way_round_worse(self):
        a, b = pair(9, 40, better_by=2)
        found = run(a, b)
        assert found.verdict == "better"
        primary = found.primary
        numbers = [100 * value for value in (primary.b, primary.a, primary.difference, primary.low, primary.high)]
        assert found.sentence == (
            "b is better: it finds more lesions than a at 1 false positive per case: {:.1f} % against {:.1f} %, {:+.1f}"
            " points (95 % interval {:+.1f} to {:+.1f}), by {} lesions of {} patients."
        ).format(*numbers, a.num_lesions, found.mcnemar.num_patients)
        assert primary.p < 0.01
        other = run(b, a)
        assert other.verdict == "worse"
        assert other.sentence.startswith("b is worse: it finds fewer lesions than a at 1 false positive per case")

    def test_undecided_says_that_equality_is_not_shown_either(self):
        a, b = pair(10)
        assert "Neither a difference nor equality is shown." in run(a, b).sentence

    def test_few_patients_are_warned_of(self):
        assert "the verdict is undecided whatever the interval" in run(*pair(1, 4)).warnings[0]
        assert "fewer than 25" in run(*pair(1, 20)).warnings[0]
        assert run(*pair(1, 60)).warnings == []

    def test_a_mask_with_many_false_candidates_cannot_be_read_at_a_rate_and_says_so(self):
        """Three false candidates per case, all of confidence 1."""
        cases = range(30)
        marks = [(case, 1.0, False) for case in cases for _ in range(3)]
        lesions = [(case, 1.0, 5) for case in cases]
        a = make_pool(cases, lesions, marks + [(case, 1.0, True) for case in cases])
        b = make_pool(cases, [(case, NEVER, 5) for case in cases])
        found = run(a, b)
        assert (found.primary.a, found.threshold_a) == (0, math.inf)
        assert found.warnings[0].startswith("No candidate of a may count at 1 false positive per case")
        assert run(a, b, primary_rate=None).verdict == "worse"


class TestUndefined:
    def test_without_lesions_all_is_undecided_and_listed(self):
        a = make_pool([0, 1], candidates=[(0, 0.9, False)])
        found = run(a, make_pool([0, 1]))
        assert found.verdict == "undecided"
        assert found.sentence == "Undecided: there is no lesion to find at 1 false positive per case."
        assert figure(found, "false_positives_per_case").difference == -0.5
        assert math.isnan(figure(found, "cpm").p)
        whats = {line.what: line.why for line in found.undefined}
        assert {"lesion_sensitivity", "cpm", "wafroc", "wafroc1", "mcnemar"} == set(whats)
        assert whats["cpm"] == "there is no lesion"

    def test_without_lesion_free_cases_wafroc_has_its_reason(self):
        a = make_pool([0], [(0, 0.5, 5)], [(0, 0.5, True)])
        found = run(a, a)
        assert "no case without lesions" in next(line.why for line in found.undefined if line.what == "wafroc")

    def test_the_rates_of_the_froc_are_listed_once_each(self):
        a = make_pool([0])
        wheres = [line.where for line in run(a, a).undefined if line.what == "lesion_sensitivity"]
        assert wheres[0] == "all cases"
        assert wheres[1:] == [
            f"{r:g} false positive{'' if r == 1 else 's'} per case" for r in PROTOCOL.false_positive_rates
        ]

    def test_to_dict_is_plain(self):
        a, b = pair(1)
        values = run(a, b).to_dict()
        assert values["protocol"]["min_lesions"] == 5
        assert values["differences"][0]["figure"] == "lesion_sensitivity"
        assert values["by_size"][0]["mcnemar"]["num_both"] >= 0


class TestSameReference:
    def test_another_number_of_cases_is_refused(self):
        with pytest.raises(DatasetError, match="a has 2 cases and b 1"):
            check_same_reference(make_pool([0, 1]), make_pool([0]), ["x", "y"])

    def test_another_number_of_lesions_names_the_first_case(self):
        a = make_pool([0, 1, 2], [(0, 0.5, 5), (1, 0.5, 5), (2, 0.5, 5)])
        b = make_pool([0, 1, 2], [(0, 0.5, 5), (1, 0.5, 5), (1, 0.5, 5)])
        with pytest.raises(DatasetError, match="case 'y': lesions in a and b differ: 1 and 2"):
            check_same_reference(a, b, ["x", "y", "z"])

    def test_another_patient_is_refused(self):
        with pytest.raises(DatasetError, match="case 'y': a patient in a and b differ: 0 and 1"):
            check_same_reference(make_pool([0, 0]), make_pool([0, 1]), ["x", "y"])

    def test_a_lesion_of_another_volume_is_refused(self):
        a, b = make_pool([0, 1], [(1, 0.5, 5)]), make_pool([0, 1], [(1, 0.5, 6)])
        with pytest.raises(DatasetError, match="case 'y': a lesion in a and b differs: 125 and 216 mm3"):
            check_same_reference(a, b, ["x", "y"])

    def test_a_case_whose_lesions_only_one_ignores_is_refused(self):
        with pytest.raises(DatasetError, match="case 'y': ignored lesions"):
            check_same_reference(make_pool([0, 1]), make_pool([0, 1], uncertain=[1]), ["x", "y"])

    def test_models_that_find_different_lesions_are_welcome(self):
        check_same_reference(*pair(1), names(pair(1)[0]))


class TestTables:
    @pytest.mark.parametrize(
        ("of_a", "of_b", "match"),
        [
            (["x", "y"], ["x", "z"], "only one of a and b has 'y'"),
            (["x"], ["x", "y"], "only one of a and b has 'y'"),
            (["x", "y"], ["y", "x"], "their order differs"),
            ([], [], "there is none"),
        ],
    )
    def test_other_cases_are_refused(self, of_a, of_b, match):
        tables = [[SimpleNamespace(case=case) for case in names] for names in (of_a, of_b)]
        with pytest.raises(DatasetError, match=match):
            compare_tables(*tables, PROTOCOL)

    def test_tables_of_images_are_judged_by_the_protocol(self):
        """One lesion of 2 x 3 x 1 voxels; a covers a third of it, b all: found by both, or by b alone."""
        shape, affine = (12, 10, 8), np.diag([0.5, 1.0, 3.0, 1.0])
        label, part, whole = np.zeros(shape, bool), np.zeros(shape, bool), np.zeros(shape, bool)
        label[2:4, 1:4, 5] = whole[2:4, 1:4, 5] = part[2:4, 1, 5] = True
        a, b = ([evaluate_case(label, mask, affine, case="x")] for mask in (part, whole))
        assert compare_tables(a, b, PROTOCOL).primary.difference == 0
        strict = replace(PROTOCOL, hit_rule="lesion_covered", hit_threshold=0.5)
        found = compare_tables(a, b, strict, primary_rate=2.0)
        assert (found.primary.false_positives_per_case, found.primary.difference) == (2.0, 1)
        assert found.num_permutations == 2

    def test_files_hold_every_figure_and_null_for_undefined(self, tmp_path):
        a, b = pair(1)
        found = run(a, b, primary_rate=None)
        assert write_comparison(found, tmp_path / "new", a="first", b="second") == tmp_path / "new"
        summary = json.loads((tmp_path / "new" / "comparison.json").read_text("utf-8"))
        assert (summary["a"], summary["b"], summary["primary_rate"]) == ("first", "second", None)
        assert summary["sentence"] == found.sentence
        with (tmp_path / "new" / "comparison.csv").open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        assert [row["figure"] for row in rows] == [d.figure for d in found.differences]
        assert [row["false_positives_per_case"] for row in rows[:3]] == ["", "", "0.125"]
        assert float(rows[2]["low"]) == found.differences[2].low


class TestErrorRates:
    """Simulated sets; 300 of them give a rejection rate of 5 % a standard error of 1.3 %."""

    @pytest.mark.parametrize("num_patients", [8, 30])
    def test_equal_models_are_told_apart_in_about_5_percent_of_sets_at_most(self, num_patients):
        protocol = Protocol(num_resamples=400, false_positive_rates=(1.0,))
        decided = small_p = 0
        for seed in range(300):
            a, b = pair(1000 + seed, num_patients, lesions_per_case=1.5)
            found = run(a, b, protocol, num_permutations=399)
            decided += found.verdict != "undecided"
            small_p += found.primary.p <= 0.05
        assert decided / 300 <= 0.07
        assert small_p / 300 <= 0.07

    def test_a_better_model_is_found_out_more_often_the_better_it_is_and_never_called_worse(self):
        protocol = Protocol(num_resamples=300, false_positive_rates=(1.0,))
        shares = []
        for better_by in (0.5, 1.5):
            verdicts = []
            for seed in range(40):
                found = run(*pair(2000 + seed, 30, better_by=better_by), protocol, num_permutations=99)
                verdicts.append(found.verdict)
            shares.append(verdicts.count("better") / 40)
            assert verdicts.count("worse") <= 1
        assert shares[0] < shares[1]
        assert shares[1] > 0.5


def by_patient(pool, other, swapped):
    """Sensitivity at 1 false positive per case of a pool whose swapped patients come from another."""
    found, false = [], []
    for patient, is_swapped in enumerate(swapped):
        source = other if is_swapped else pool
        found += source.lesion_confidence[source.lesion_patient == patient].tolist()
        of_patient = (source.candidate_patient == patient) & ~source.candidate_is_true
        false += source.candidate_confidence[of_patient].tolist()
    is_found = [z > NEVER and sum(x >= z for x in false) / pool.num_cases <= 1 for z in found]
    return sum(is_found) / len(is_found)
