"""wAFROC: how often a lesion is rated above the surest false candidate of a case.

References:
    D. P. Chakraborty, X. Zhai, "On the meaning of the weighted alternative free-response operating characteristic
    figure of merit", Medical Physics 43 (2016) 2548-2557. Equal weights: each lesion of a case counts 1 / L.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from medfocal.evaluate.pool import Pool
from medfocal.evaluate.tally import Floats, above, at, at_or_above, in_parts, levels_of, ratio, total


def wafroc(pool: Pool, weights: ArrayLike, *, false_of_all_cases: bool = False) -> Floats:
    r"""Compute the area under the weighted AFROC curve for many weightings of the patients.

    theta = 1 / (K1 K2) sum_i sum_j sum_l w_jl psi(x_i, z_jl), with

    - i one of K1 cases without lesions and x_i its surest false candidate, -inf if it has none;
    - j one of K2 cases with lesions, l one of its L_j lesions, w_jl = 1 / L_j, and z_jl the confidence at which that
      lesion is found, -inf if at none;
    - psi = 1 if x_i < z_jl, 1/2 if they are equal, 0 otherwise.

    A case counts as often as its patient's weight says. A case whose only lesions are ignored is neither i nor j.

    Args:
        pool: The outcomes of all cases.
        weights: Weight of each patient, (weightings, patients).
        false_of_all_cases: wAFROC1: i is any case, so that false candidates beside lesions count too. For sets with
            few cases without lesions.

    Returns:
        Values in [0, 1], (weightings,). NaN where no case i or no case j has weight.
    """
    has_lesions = pool.case_num_lesions > 0
    rated = pool.case_is_certain if false_of_all_cases else pool.case_is_lesion_free
    levels = levels_of(pool.lesion_confidence)
    surest_false = np.full(pool.num_cases, -np.inf)
    false = ~pool.candidate_is_true
    np.maximum.at(surest_false, pool.candidate_case[false], pool.candidate_confidence[false])
    lesion_weight = 1 / pool.case_num_lesions[pool.lesion_case]

    def statistic(weights: Floats) -> Floats:
        lesions = at(levels, pool.lesion_confidence, pool.lesion_patient, weights, lesion_weight)
        false_cases = (levels, surest_false[rated], pool.case_patient[rated], weights)
        num_false_cases = total(pool.case_patient[rated], weights)
        below = num_false_cases - (at_or_above(*false_cases) + above(*false_cases)) / 2
        num_lesion_cases = total(pool.case_patient[has_lesions], weights)
        return ratio((lesions * below).sum(axis=0), num_false_cases * num_lesion_cases)

    return in_parts(statistic, weights, num_levels=len(levels))


def why_undefined(pool: Pool, *, false_of_all_cases: bool = False) -> str:
    """Say why wAFROC (or wAFROC1) has no value; "" if it has one."""
    if not pool.num_lesions:
        return "there is no lesion"
    if not false_of_all_cases and not pool.case_is_lesion_free.any():
        return "there is no case without lesions; wafroc1 takes the false candidates of all cases"
    return ""
