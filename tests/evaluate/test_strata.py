import math
from dataclasses import replace

import numpy as np
import pytest
from hand_made_pools import NEVER, make_pool

from medfocal.evaluate.intervals import clopper_pearson, proportion, rate
from medfocal.evaluate.strata import by_size, claim

#: Three patients, the first with two cases; the last case has no lesion.
PATIENTS = [0, 0, 1, 2]
LESIONS = [(0, 0.9, 2.9), (0, 0.8, 3.0), (1, 0.4, 4.9), (1, NEVER, 5.0), (2, 0.7, 3.5), (2, 0.6, 12.0)]
CANDIDATES = [(0, 0.9, False), (0, 0.8, False), (3, 0.7, False), (2, 0.3, False), (0, 0.95, True)]


def sized_pool():
    """False candidates of 3, 5, 5 and 5 mm, the last below the threshold, and a true one of 5 mm."""
    diameter = np.array([3.0, 5.0, 5.0, 5.0, 5.0])
    pool = make_pool(PATIENTS, LESIONS, CANDIDATES)
    return replace(pool, candidate_diameter_mm=diameter, candidate_volume_mm3=diameter**3)


def strata(size="diameter_mm", edges=(3.0, 5.0, 10.0), **changes):
    options = {"measure": "longest_diameter_mm", "threshold": 0.5, "level": 0.95, "min_lesions": 1}
    return by_size(sized_pool(), size, edges, **(options | changes))


def test_strata_hold_their_lower_border_and_not_their_upper_one():
    found = strata()
    assert [(s.low, s.high) for s in found] == [(0, 3), (3, 5), (5, 10), (10, math.inf)]
    assert [s.num_lesions for s in found] == [1, 3, 1, 1]
    assert {s.measure for s in found} == {"longest_diameter_mm"}


def test_strata_count_detected_lesions_and_patients_with_lesions():
    found = strata()
    assert [s.num_detected_lesions for s in found] == [1, 2, 0, 1]
    assert [s.num_patients for s in found] == [1, 2, 1, 1]


def test_false_candidates_count_by_their_own_size():
    """Lesions of 5 to 10 mm have none near; those at 5 mm above the threshold are two, one at 3 mm."""
    assert [s.num_false_candidates for s in strata()] == [0, 1, 2, 0]


def test_stratum_without_lesions_lists_its_false_candidates():
    (low, middle, _) = strata(edges=(5.0, 5.5))[:3]
    assert (low.num_false_candidates, middle.num_false_candidates) == (1, 2)
    empty = strata(edges=(2.95, 3.0))[1]
    assert (empty.num_lesions, empty.lesion_sensitivity.method) == (0, "undefined: no lesion")
    none = by_size(
        make_pool([0], [], [(0, 0.9, False)]),
        "diameter_mm",
        (3.0,),
        measure="axial_diameter_mm",
        threshold=0.5,
        level=0.95,
    )
    assert [s.num_false_candidates for s in none] == [0, 1]
    assert math.isnan(none[1].lesion_sensitivity.value)
    assert none[1].false_positives_per_case.value == 1


def test_rates_are_per_case_of_the_whole_set_and_add_up():
    """Three false candidates at the threshold in 4 cases."""
    found = strata()
    assert [s.false_positives_per_case.value for s in found] == [0, 0.25, 0.5, 0]
    assert found[2].false_positives_per_case == rate([1, 0, 1], [2, 1, 1], level=0.95)


@pytest.mark.parametrize("interval", ["clopper_pearson", "wilson"])
def test_sensitivity_of_a_stratum_is_by_patient(interval):
    expected = proportion([1, 1, 0], [2, 1, 0], level=0.9, method=interval)
    assert strata(interval=interval, level=0.9)[1].lesion_sensitivity == expected


def test_too_few_lesions_give_no_estimate_but_counts():
    sensitivity = strata(min_lesions=4)[1].lesion_sensitivity
    assert np.isnan([sensitivity.value, sensitivity.low, sensitivity.high, sensitivity.deff]).all()
    assert (sensitivity.numerator, sensitivity.denominator, sensitivity.num_patients) == (2, 3, 2)
    assert sensitivity.method == "undefined: fewer than 4 lesions"
    assert not math.isnan(strata(min_lesions=3)[1].lesion_sensitivity.value)


def test_no_lesion_gives_no_estimate_even_if_none_is_asked_for():
    assert strata(edges=(2.95, 3.0), min_lesions=0)[1].lesion_sensitivity.method == "undefined: no lesion"


def test_volumes_are_compared_in_mm3():
    """Volumes are the diameters cubed."""
    found = strata(size="volume_mm3", edges=(27.0, 125.0), measure="volume_mm3")
    assert [s.num_lesions for s in found] == [1, 3, 2]
    assert [s.num_false_candidates for s in found] == [0, 1, 2]


def test_no_edges_give_one_stratum_of_everything():
    (everything,) = strata(edges=())
    assert (everything.num_lesions, everything.num_false_candidates, everything.num_patients) == (6, 3, 2)


def of_different_patients(num_found, num_lesions, **options):
    return proportion([1] * num_found + [0] * (num_lesions - num_found), [1] * num_lesions, level=0.95, **options)


def test_twenty_lesions_without_a_miss_do_not_claim_90_percent():
    """.025 ** (1 / 20) = .8316."""
    assert claim(of_different_patients(20, 20)) == (
        "No lesion of 20 was missed; that supports a sensitivity above 83 %, not above 90 %,"
        " for which 36 lesions of different patients without a miss would be needed."
    )


@pytest.mark.parametrize(("num_lesions", "supported", "next_claim"), [(35, 89, 90), (36, 90, 95), (71, 94, 95)])
def test_36_lesions_claim_90_percent_and_72_would_claim_95(num_lesions, supported, next_claim):
    sentence = claim(of_different_patients(num_lesions, num_lesions))
    assert f"above {supported} %, not above {next_claim} %" in sentence
    assert f"{36 if next_claim == 90 else 72} lesions of different patients" in sentence


def test_72_lesions_without_a_miss_claim_95_percent_and_nothing_more():
    assert claim(of_different_patients(72, 72)) == (
        "No lesion of 72 was missed; that supports a sensitivity above 95 %."
    )


def test_lesions_of_few_patients_claim_less():
    """36 lesions in 6 patients of 6: design effect 1.75."""
    sentence = claim(proportion([6] * 6, [6] * 6, level=0.95))
    assert (
        f"above {math.floor(100 * clopper_pearson(36 / 1.75, 36 / 1.75, level=0.95)[0])} %, not above 90 %" in sentence
    )


def test_lesions_needed_follow_the_level():
    """.05 ** (1 / n) > .9 from n = 29 on."""
    assert "for which 29 lesions" in claim(proportion([1] * 10, [1] * 10, level=0.9))


def test_missed_lesions_give_the_interval_and_nothing_more():
    """Clopper-Pearson of 31 of 34: .763 to .981."""
    assert claim(of_different_patients(31, 34)) == (
        "These lesions support a sensitivity between 76 and 98 %, and no narrower claim."
    )


def test_nothing_found_bounds_the_sensitivity_from_above():
    """1 - .025 ** (1 / 50) = .0711, rounded up."""
    assert claim(of_different_patients(0, 50)) == (
        "None of 50 lesions was found; that supports a sensitivity below 8 %."
    )


def test_one_lesion_is_not_many():
    assert claim(of_different_patients(1, 1)).startswith(
        "No lesion of 1 was missed; that supports a sensitivity above 2 %"
    )
    assert claim(of_different_patients(0, 1)).startswith("None of 1 lesion was found")
    assert claim(of_different_patients(1, 2)).startswith("These lesions support a sensitivity between 1 and 99 %")


def test_no_lesion_claims_nothing():
    assert claim(proportion([], [], level=0.95)) == "There is no lesion; nothing can be said of the sensitivity."


def test_a_stratum_without_estimate_claims_nothing():
    assert claim(strata(min_lesions=4)[1].lesion_sensitivity) == (
        "There are too few lesions (3) to say anything of the sensitivity."
    )
