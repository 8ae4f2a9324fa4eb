"""Figures of merit that need no threshold, and the case-level figures beside them, each with its interval."""

from __future__ import annotations

import math

import numpy as np

from medfocal.evaluate.bootstrap import bootstrap_rate, replicate
from medfocal.evaluate.intervals import Rate, case_proportion
from medfocal.evaluate.pool import Pool
from medfocal.evaluate.protocols import Protocol
from medfocal.evaluate.ranking import case_ap, case_auroc, case_is_called, free_response_ap, split_cases
from medfocal.evaluate.tally import Floats
from medfocal.evaluate.undefined import Undefined
from medfocal.evaluate.wafroc import wafroc, why_undefined


def figures_of_merit(pool: Pool, protocol: Protocol) -> tuple[dict[str, Rate], list[Undefined]]:
    """Estimate how well lesions and cases are told apart.

    Args:
        pool: The outcomes of all cases.
        protocol: The rules, with threshold, level, resamples and seed.

    Returns:
        - By name: "wafroc", "wafroc1", "free_response_ap", "case_ap" (BCa over resamples of patients), "case_auroc"
          (DeLong), "case_sensitivity" and "case_specificity" at the threshold (Wilson). Undefined is NaN.
        - What is NaN, and why; and the cases that no case-level figure counts, since their only lesions are ignored.
    """
    reasons = _reasons(pool)
    names = ("wafroc", "wafroc1", "free_response_ap", "case_ap")

    def statistic(weights: Floats) -> Floats:
        of_all_cases = wafroc(pool, weights, false_of_all_cases=True)
        return np.column_stack(
            [wafroc(pool, weights), of_all_cases, free_response_ap(pool, weights), case_ap(pool, weights)]
        )

    resamples = replicate(statistic, pool.num_patients, num_resamples=protocol.num_resamples, seed=protocol.seed)
    rates = {
        name: bootstrap_rate(resamples, level=protocol.level, figure=n, why_undefined=reasons[name])
        for n, name in enumerate(names)
    }
    rates["case_auroc"] = case_auroc(pool, level=protocol.level)
    with_lesions, without = split_cases(pool)
    called, patient = case_is_called(pool, protocol.threshold), pool.case_patient
    rates["case_sensitivity"] = case_proportion(called[with_lesions], patient[with_lesions], level=protocol.level)
    rates["case_specificity"] = case_proportion(~called[without], patient[without], level=protocol.level)
    undefined = [Undefined(n, "all cases", reasons[n]) for n, rate in rates.items() if math.isnan(rate.value)]
    if num_uncertain := int((~pool.case_is_certain).sum()):
        what = "wafroc, wafroc1, case_auroc, case_ap, case_sensitivity, case_specificity"
        where = "1 case" if num_uncertain == 1 else f"each of {num_uncertain} cases"
        why = "all lesions are ignored, so that it is neither with nor without lesions"
        undefined.append(Undefined(what, where, why))
    return rates, undefined


def _reasons(pool: Pool) -> dict[str, str]:
    """Why each figure would be undefined."""
    with_lesions, without = split_cases(pool)
    no_lesion = "there is no lesion"
    no_case = "" if with_lesions.any() else "there is no case with lesions"
    no_free_case = "" if without.any() else "there is no case without lesions"
    return {
        "wafroc": why_undefined(pool),
        "wafroc1": why_undefined(pool, false_of_all_cases=True),
        "free_response_ap": no_lesion,
        "case_ap": no_case,
        "case_auroc": no_case or no_free_case,
        "case_sensitivity": no_case,
        "case_specificity": no_free_case,
    }
