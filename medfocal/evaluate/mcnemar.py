"""McNemar's test where lesions come in patients, and Holm's correction for several tests.

References:
    Q. McNemar, "Note on the sampling error of the difference between correlated proportions or percentages",
    Psychometrika 12 (1947) 153-157.
    N. A. Obuchowski, "On the comparison of correlated proportions for clustered data", Statistics in Medicine 17
    (1998) 1495-1507.
    Z. Yang, X. Sun, J. W. Hardin, "A note on the tests for clustered matched-pair binary data", Biometrical Journal 52
    (2010) 638-652.
    S. Holm, "A simple sequentially rejective multiple test procedure", Scandinavian Journal of Statistics 6 (1979)
    65-70.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import chi2


@dataclass(frozen=True)
class McNemar:
    """Whether two models find different shares of the same lesions.

    Attributes:
        num_both: Lesions that both find.
        num_only_a: Lesions that only a finds.
        num_only_b: Lesions that only b finds.
        num_neither: Lesions that neither finds.
        num_patients: Patients with lesions.
        statistic: Chi-square with one degree of freedom; NaN where the models differ on no patient.
        p: Its two-sided p; NaN likewise.
        method: Which statistic.
    """

    num_both: int
    num_only_a: int
    num_only_b: int
    num_neither: int
    num_patients: int
    statistic: float
    p: float
    method: str = "McNemar for lesions that come in patients (Obuchowski 1998, as in Yang, Sun & Hardin 2010)"


def clustered_mcnemar(found_a: ArrayLike, found_b: ArrayLike, patients: ArrayLike) -> McNemar:
    """Test whether a and b find the same share of lesions.

    With d_k the lesions of patient k that only b finds less those that only a finds,

        chi2 = (sum_k d_k)^2 / sum_k d_k^2

    which is Obuchowski's statistic without the factor (K - 1) / K. One lesion per patient gives McNemar's
    (b - c)^2 / (b + c), without correction for continuity. Each lesion counts the same, as in the sensitivity over
    lesions; Durkalski et al. 2003 divide d_k by the patient's lesions, and so test the mean over patients.

    Args:
        found_a: Whether a finds each lesion, bool (lesions,).
        found_b: Whether b does, bool (lesions,).
        patients: Patient of each lesion, (lesions,).

    Returns:
        The test. Where no patient has d_k other than 0, statistic and p are NaN.
    """
    a, b = np.asarray(found_a, np.bool_), np.asarray(found_b, np.bool_)
    _, patient = np.unique(np.asarray(patients), return_inverse=True)
    differences = np.bincount(patient, b.astype(np.float64) - a)
    squares = float((differences**2).sum())
    statistic = float(differences.sum()) ** 2 / squares if squares else math.nan
    return McNemar(
        num_both=int((a & b).sum()),
        num_only_a=int((a & ~b).sum()),
        num_only_b=int((b & ~a).sum()),
        num_neither=int((~a & ~b).sum()),
        num_patients=len(differences),
        statistic=statistic,
        p=float(chi2.sf(statistic, 1)),
    )


def holm(p: Sequence[float]) -> NDArray[np.float64]:
    """Adjust the p of several tests so that the chance of any false rejection keeps the level.

    Sorted p_(1) <= ... <= p_(m) become max over j <= i of (m - j + 1) p_(j), at most 1.

    Args:
        p: One p for each test; NaN for a test that could not be made, which doesn't count as one.

    Returns:
        The adjusted p in the same order, NaN where it was NaN.
    """
    given = np.asarray(p, np.float64)
    adjusted = np.full(len(given), math.nan)
    made = np.flatnonzero(~np.isnan(given))
    order = made[np.argsort(given[made], kind="stable")]
    factors = np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(1, np.maximum.accumulate(factors * given[order]))
    return adjusted
