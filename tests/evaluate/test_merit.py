import math

import numpy as np
import pytest
from hand_made_pools import NEVER, make_pool, random_pool

from medfocal.evaluate.intervals import case_proportion
from medfocal.evaluate.merit import figures_of_merit
from medfocal.evaluate.protocols import Protocol
from medfocal.evaluate.ranking import case_ap, case_auroc, free_response_ap
from medfocal.evaluate.wafroc import wafroc

PROTOCOL = Protocol(num_resamples=300)


def test_every_figure_has_the_value_of_its_function_within_an_interval():
    pool = random_pool(0, num_patients=40, skill=1)
    rates, undefined = figures_of_merit(pool, PROTOCOL)
    once = np.ones((1, 40))
    expected = {
        "wafroc": wafroc(pool, once)[0],
        "wafroc1": wafroc(pool, once, false_of_all_cases=True)[0],
        "free_response_ap": free_response_ap(pool, once)[0],
        "case_ap": case_ap(pool, once)[0],
    }
    assert undefined == []
    for name, value in expected.items():
        assert rates[name].value == pytest.approx(value)
        assert rates[name].low < value < rates[name].high
        assert rates[name].method.startswith("BCa bootstrap of 300")
    assert rates["case_auroc"] == case_auroc(pool, level=0.95)


def test_case_sensitivity_and_specificity_are_counted_at_the_threshold():
    """With lesions: 0 is called (by a false candidate), 1 is not. Without: 2 and 4 are silent, 3 is called."""
    candidates = [(0, 0.7, False), (1, 0.4, True), (2, 0.5, False), (3, 0.6, False)]
    pool = make_pool(range(5), [(0, NEVER, 5), (1, 0.4, 5)], candidates)
    rates, _ = figures_of_merit(pool, Protocol(num_resamples=0, threshold=0.6))
    assert rates["case_sensitivity"] == case_proportion([True, False], [0, 1], level=0.95)
    assert rates["case_specificity"] == case_proportion([True, False, True], [2, 3, 4], level=0.95)
    assert "Wilson" in rates["case_sensitivity"].method


def test_uncertain_cases_are_counted():
    pool = make_pool([0, 1, 2], [(0, 0.9, 5)], [(0, 0.9, True)], uncertain=[2])
    rates, undefined = figures_of_merit(pool, PROTOCOL)
    assert rates["case_auroc"].denominator == 1
    assert [(line.where, line.why) for line in undefined] == [
        ("1 case", "all lesions are ignored, so that it is neither with nor without lesions")
    ]


def test_without_lesions_specificity_alone_is_left():
    rates, undefined = figures_of_merit(make_pool([0, 1], candidates=[(0, 0.9, False)]), PROTOCOL)
    assert rates["case_specificity"].value == 0.5
    assert all(math.isnan(rate.value) for name, rate in rates.items() if name != "case_specificity")
    assert {line.what: line.why for line in undefined} == {
        "wafroc": "there is no lesion",
        "wafroc1": "there is no lesion",
        "free_response_ap": "there is no lesion",
        "case_ap": "there is no case with lesions",
        "case_auroc": "there is no case with lesions",
        "case_sensitivity": "there is no case with lesions",
    }


def test_without_lesion_free_cases_the_figures_that_need_them_say_so():
    rates, undefined = figures_of_merit(make_pool([0, 1], [(0, 0.9, 5), (1, NEVER, 5)], [(0, 0.9, True)]), PROTOCOL)
    assert [line.what for line in undefined] == ["wafroc", "case_auroc", "case_specificity"]
    assert all("no case without lesions" in line.why for line in undefined)
    assert "no case without lesions" in rates["wafroc"].method
    assert rates["free_response_ap"].value == 0.5
