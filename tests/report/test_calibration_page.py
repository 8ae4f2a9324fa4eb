"""What is said of an operating point, in words."""

from medfocal.model import Guarantee, OperatingPoint
from medfocal.report.calibration_page import describe_point


def point(**changes):
    values = {"name": "one", "threshold": 0.25, "source": "test of made: 4 cases of 3 patients"}
    return OperatingPoint(**{**values, **changes})


def test_a_point_that_nothing_is_known_of_has_a_threshold_and_a_source():
    assert describe_point(point()) == "one: threshold 0.25 (from: test of made: 4 cases of 3 patients)"


def test_figures_stand_with_their_interval_and_what_they_rest_on():
    known = {"lesion_sensitivity": 0.8, "num_lesions": 5, "false_positives_per_case": 0.5}
    assert describe_point(point(**known)).endswith(
        "lesion sensitivity 0.80 on 5 lesions, 0.50 false positives per case"
    )
    ends = {"lesion_sensitivity_low": 0.28, "lesion_sensitivity_high": 0.99}
    assert "lesion sensitivity 0.80 (0.28 to 0.99) on 5 lesions" in describe_point(point(**known, **ends))


def test_both_promises_are_told_apart():
    promise = {"miss_rate": 0.1, "min_diameter_mm": 3.0, "num_patients": 40}
    assert describe_point(point(guarantee=Guarantee(**promise))).endswith(
        ". Misses at most 10 % of a patient's lesions of 3 mm or more in expectation, by patients exchangeable with "
        "the 40 of calibration"
    )
    assert describe_point(point(guarantee=Guarantee(**{**promise, "min_diameter_mm": 0.0}, confidence=0.9))).endswith(
        ". Misses at most 10 % of a patient's lesions on average, with a probability of 0.9 over calibration sets of "
        "40 patients drawn as future ones are"
    )
