"""Two models on the same cases: by how much they differ, and whether that is more than chance.

Patients are what is drawn: a resample of the patients takes both models' outcomes with it, and the permutation test
swaps the two models within a patient. Thresholds that belong to a rate of false candidates are found anew each time.

References:
    B. Efron, R. Tibshirani, "An Introduction to the Bootstrap", Chapman & Hall 1993, chapters 8 and 13.
    P. Good, "Permutation, Parametric, and Bootstrap Tests of Hypotheses", 3rd ed., Springer 2005, chapter 3.
    B. Phipson, G. K. Smyth, "Permutation p-values should never be zero", Statistical Applications in Genetics and
    Molecular Biology 9 (2010) 39.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medfocal.errors import DatasetError
from medfocal.evaluate.bootstrap import FEW_PATIENTS, bootstrap_rate, replicate
from medfocal.evaluate.judge import judge
from medfocal.evaluate.mcnemar import McNemar, clustered_mcnemar, holm
from medfocal.evaluate.operating_points import (
    false_positives_per_case_at,
    sensitivity_at,
    sensitivity_at_rates,
    threshold_at_rate,
)
from medfocal.evaluate.pairs import some
from medfocal.evaluate.pool import Pool, pool
from medfocal.evaluate.protocols import Protocol
from medfocal.evaluate.table import CaseTable
from medfocal.evaluate.tally import Floats
from medfocal.evaluate.undefined import Undefined
from medfocal.evaluate.wafroc import wafroc, why_undefined
from medfocal.files import write_csv, write_json

Verdict = Literal["better", "worse", "undecided"]

#: Swaps whose weights are held at once.
SWAPS_AT_ONCE = 500


@dataclass(frozen=True)
class Difference:
    """A figure of both models and how far b is from a.

    Attributes:
        figure: "lesion_sensitivity", "false_positives_per_case", "cpm", "wafroc" or "wafroc1".
        false_positives_per_case: Rate of false candidates at which it is read; NaN for figures at the threshold or of
            the whole curve.
        a: Figure of a, NaN where undefined.
        b: Figure of b.
        difference: b - a.
        low: Lower end of the interval of the difference.
        high: Upper end.
        level: Confidence level of the interval.
        method: How the interval was computed.
        p: Two-sided p of the permutation test, for this figure alone.
    """

    figure: str
    false_positives_per_case: float
    a: float
    b: float
    difference: float
    low: float
    high: float
    level: float
    method: str
    p: float


@dataclass(frozen=True)
class SizeDifference:
    """Lesions of one size, at the operating points of the verdict.

    Attributes:
        low: Least diameter in mm.
        high: Diameter from which the next stratum begins; infinite for the last.
        num_lesions: Lesions of that size.
        a: Share that a finds; NaN below the protocol's `min_lesions`.
        b: Share that b finds.
        mcnemar: The test; of too few lesions its p is NaN.
        p_holm: Its p, adjusted for the number of strata.
    """

    low: float
    high: float
    num_lesions: int
    a: float
    b: float
    mcnemar: McNemar
    p_holm: float


@dataclass(frozen=True)
class PairedComparison:
    """What can be said of b against a.

    Attributes:
        protocol: The rules both were judged by.
        primary_rate: False positives per case at which the verdict is made; NaN: at the protocol's threshold.
        verdict: Whether b is "better" or "worse" than a, or "undecided": the interval of the primary difference lies
            above 0, below 0, or holds 0.
        sentence: The verdict in words and numbers.
        primary: The figure of the verdict.
        num_cases: Cases.
        num_patients: Patients.
        num_lesions: Lesions.
        differences: Every figure.
        num_resamples: Resamples of patients behind the intervals.
        num_permutations: Swaps behind each p.
        is_exact: Whether these were all swaps that there are.
        threshold_a: Confidence from which candidates of a count at the operating point of the verdict; infinite where
            none may.
        threshold_b: The same of b.
        mcnemar: Lesions found and missed at these thresholds.
        by_size: The same by size.
        warnings: What limits the comparison.
        undefined: What is NaN, where and why.
    """

    protocol: Protocol
    primary_rate: float
    verdict: Verdict
    sentence: str
    primary: Difference
    num_cases: int
    num_patients: int
    num_lesions: int
    differences: list[Difference]
    num_resamples: int
    num_permutations: int
    is_exact: bool
    threshold_a: float
    threshold_b: float
    mcnemar: McNemar
    by_size: list[SizeDifference]
    warnings: list[str]
    undefined: list[Undefined]

    def to_dict(self) -> dict[str, Any]:
        """Give what comparison.json holds. Undefined is NaN."""
        return asdict(self) | {"protocol": self.protocol.to_dict()}


def compare(
    a: Pool,
    b: Pool,
    protocol: Protocol,
    *,
    cases: Sequence[str],
    primary_rate: float | None = 1.0,
    num_permutations: int = 10_000,
    has_curves: bool = True,
) -> PairedComparison:
    """Compare two models on the same lesions.

    Every figure is given for both, with the difference b - a, the percentile interval of that difference over resamples
    of patients, and the p of swapping the models within patients: exact if there are no more than `num_permutations`
    swaps, otherwise (1 + as extreme ones) / (1 + drawn ones). These p are not adjusted for one another; the verdict
    rests on one figure that is chosen beforehand.

    With fewer than `min_deciding_patients` patients with lesions the verdict is "undecided" whatever the interval says:
    the percentiles of so few patients are too narrow.

    Args:
        a: The outcomes of one model.
        b: Those of the other on the same cases in the same order.
        protocol: The rules they were judged by, with threshold, rates, level, resamples and seed.
        cases: Names of the cases, for messages.
        primary_rate: False positives per case at which sensitivities are compared for the verdict; None compares them
            at the protocol's threshold, which is what masks have.
        num_permutations: Swaps to draw, at least 1.
        has_curves: Whether both models can be read at other rates than that of the threshold, which masks cannot.

    Returns:
        The comparison; what could not be had is NaN and listed in `undefined`.

    Raises:
        DatasetError: The cases or lesions of a and b are not the same.
    """
    check_same_reference(a, b, cases)
    rate = math.nan if primary_rate is None else primary_rate
    swaps, is_exact = draw_swaps(a.num_patients, num_permutations, seed=protocol.seed)
    differences = _differences(
        a, b, protocol, _columns(protocol, primary_rate, has_curves=has_curves), swaps, is_exact=is_exact
    )
    primary = next(
        d for d in differences if d.figure == "lesion_sensitivity" and _same(d.false_positives_per_case, rate)
    )
    threshold_a, threshold_b = (
        protocol.threshold if primary_rate is None else threshold_at_rate(p, rate) for p in (a, b)
    )
    found_a, found_b = a.lesion_confidence >= threshold_a, b.lesion_confidence >= threshold_b
    mcnemar = clustered_mcnemar(found_a, found_b, a.lesion_patient)
    by_size = _by_size(a, found_a, found_b, protocol)
    false = [_false_per_case(p, protocol.threshold) for p in (a, b)]
    verdict = judge_difference(primary, num_patients=mcnemar.num_patients)
    return PairedComparison(
        protocol=protocol,
        primary_rate=rate,
        verdict=verdict,
        sentence=_sentence(primary, verdict, a.num_lesions, mcnemar.num_patients, protocol.threshold, *false),
        primary=primary,
        num_cases=a.num_cases,
        num_patients=a.num_patients,
        num_lesions=a.num_lesions,
        differences=differences,
        num_resamples=protocol.num_resamples,
        num_permutations=len(swaps),
        is_exact=is_exact,
        threshold_a=threshold_a,
        threshold_b=threshold_b,
        mcnemar=mcnemar,
        by_size=by_size,
        warnings=_warnings(a, b, primary, mcnemar.num_patients),
        undefined=_undefined(a, differences, mcnemar, by_size, protocol.min_lesions),
    )


def compare_tables(
    a: Sequence[CaseTable],
    b: Sequence[CaseTable],
    protocol: Protocol,
    *,
    primary_rate: float | None = 1.0,
    num_permutations: int = 10_000,
) -> PairedComparison:
    """Compare two models from the tables of their cases, in the same order; see `compare`.

    Raises:
        DatasetError: There is no case, or the cases or lesions of a and b are not the same.
        ValueError: A table was made by other shaping rules than the protocol's.
    """
    names = [[table.case for table in tables] for tables in (a, b)]
    if names[0] != names[1] or not a:
        lonely = sorted(set(names[0]) ^ set(names[1]))
        what = f"only one of a and b has '{lonely[0]}'" if lonely else "their order differs, or there is none"
        message = f"a and b must have the same cases, but {what}. Compare models on the same cases."
        raise DatasetError(message)
    of_a, of_b = (pool([judge(table, protocol) for table in tables]) for tables in (a, b))
    has_masks = any(table.is_mask and len(table.candidates) for table in (*a, *b))
    found = compare(
        of_a,
        of_b,
        protocol,
        cases=names[0],
        primary_rate=primary_rate,
        num_permutations=num_permutations,
        has_curves=primary_rate is not None or not has_masks,
    )
    warnings = [
        f"{model} has no prediction of {some(missing)}: that counts as nothing found."
        for model, tables in (("a", a), ("b", b))
        if (missing := [table.case for table in tables if table.missing])
    ]
    return replace(found, warnings=[*warnings, *found.warnings])


def write_comparison(comparison: PairedComparison, directory: Path, *, a: str, b: str) -> Path:
    """Write comparison.json, and comparison.csv with a row for each figure. Undefined is null or an empty cell.

    Args:
        comparison: What to write.
        directory: Folder to write into; it is made if missing.
        a: What a is, such as its folder.
        b: What b is.

    Returns:
        The folder.
    """
    rows = [asdict(difference) for difference in comparison.differences]
    write_csv(directory / "comparison.csv", rows, [column.name for column in fields(Difference)])
    write_json(directory / "comparison.json", {"a": a, "b": b, **comparison.to_dict()})
    return directory


def check_same_reference(a: Pool, b: Pool, cases: Sequence[str]) -> None:
    """See that two models were judged on the same lesions of the same cases.

    Raises:
        DatasetError: They were not; the message names the first difference.
    """
    if a.num_cases != b.num_cases:
        message = f"a has {a.num_cases} cases and b {b.num_cases}. Compare models on the same cases."
        raise DatasetError(message)
    ways = (("case_patient", "a patient"), ("case_num_lesions", "lesions"), ("case_is_certain", "ignored lesions"))
    for name, what in ways:
        ours, theirs = getattr(a, name), getattr(b, name)
        if (off := np.flatnonzero(ours != theirs)).size:
            values = f"{ours[off[0]]} and {theirs[off[0]]}"
            message = f"case '{cases[off[0]]}': {what} in a and b differ: {values}. Give both the same reference."
            raise DatasetError(message)
    off = np.flatnonzero(a.lesion_volume_mm3 != b.lesion_volume_mm3)
    if off.size:
        volumes = f"{a.lesion_volume_mm3[off[0]]:.6g} and {b.lesion_volume_mm3[off[0]]:.6g} mm3"
        case = cases[a.lesion_case[off[0]]]
        message = f"case '{case}': a lesion in a and b differs: {volumes}. Give both the same reference."
        raise DatasetError(message)


def draw_swaps(num_patients: int, num_permutations: int, *, seed: int) -> tuple[NDArray[np.bool_], bool]:
    """Choose in which patients the two models are swapped.

    Args:
        num_patients: Patients.
        num_permutations: Swaps to draw.
        seed: Of the draw.

    Returns:
        Whether each patient is swapped, bool (swaps, patients), and whether these are all possible swaps, the one that
        changes nothing among them. If there are more than `num_permutations`, so many are drawn.
    """
    if 2**num_patients <= num_permutations:
        every = np.arange(2**num_patients)[:, None] >> np.arange(num_patients)
        return (every & 1).astype(np.bool_), True
    return np.random.default_rng(seed).random((num_permutations, num_patients)) < 0.5, False


def permutation_p(observed: ArrayLike, swapped: ArrayLike, *, is_exact: bool) -> Floats:
    """Give the two-sided p of differences: the share of swaps whose difference is as far from 0, or farther.

    Args:
        observed: Differences as they are, (figures,).
        swapped: Differences after each swap, (swaps, figures).
        is_exact: Whether these are all swaps. If not, the one that changes nothing is counted with them, so that p is
            never 0 (Phipson & Smyth 2010).

    Returns:
        p, (figures,); NaN where the difference is NaN.
    """
    observed, swapped = np.asarray(observed, np.float64), np.asarray(swapped, np.float64)
    # Sums in another order differ by rounding; a swap that leaves all as it is must count.
    num_extreme = (np.abs(swapped) >= np.abs(observed) - 1e-12).sum(axis=0)
    extra = 0 if is_exact else 1
    return np.where(np.isnan(observed), math.nan, (num_extreme + extra) / (len(swapped) + extra))


def min_deciding_patients(level: float) -> int:
    """Give the least number of patients with lesions among whom swapping models can reach p <= 1 - level: 6 for 95 %.

    All of K patients on one side have a chance of 2^(1 - K).
    """
    return 1 + math.ceil(math.log2(1 / (1 - level)) - 1e-9)


def judge_difference(difference: Difference, *, num_patients: int) -> Verdict:
    """Say "better" if the interval lies above 0, "worse" if below it, "undecided" otherwise, or of too few patients."""
    if num_patients >= min_deciding_patients(difference.level):
        if difference.low > 0:
            return "better"
        if difference.high < 0:
            return "worse"
    return "undecided"


def place_of(rate: float) -> str:
    """Name the place where a figure is read: "1 false positive per case", or "all cases" where the rate is NaN."""
    return "all cases" if math.isnan(rate) else f"{_count(rate, 'false positive')} per case"


Column = tuple[str, float]


def _columns(protocol: Protocol, primary_rate: float | None, *, has_curves: bool) -> list[Column]:
    """Every figure with the rate it is read at; of masks nobody knows what they would find at another rate."""
    rates = sorted({*protocol.false_positive_rates, *(() if primary_rate is None else (primary_rate,))})
    at_threshold = [("lesion_sensitivity", math.nan), ("false_positives_per_case", math.nan)]
    of_curve = [*(("lesion_sensitivity", rate) for rate in rates), ("cpm", math.nan)] if has_curves else []
    return [*at_threshold, *of_curve, ("wafroc", math.nan), ("wafroc1", math.nan)]


def _figures(of: Pool, weights: Floats, protocol: Protocol, columns: Sequence[Column]) -> Floats:
    """Every figure under each weighting of the patients, (weightings, figures)."""
    rates = [rate for _, rate in columns if not math.isnan(rate)]
    of_curve = []
    if rates:
        sensitivity = sensitivity_at_rates(of, weights, rates)
        of_cpm = [rates.index(rate) for rate in protocol.false_positive_rates]
        of_curve = [sensitivity, sensitivity[:, of_cpm].mean(axis=1)]
    return np.column_stack(
        [
            sensitivity_at(of, weights, protocol.threshold),
            false_positives_per_case_at(of, weights, protocol.threshold),
            *of_curve,
            wafroc(of, weights),
            wafroc(of, weights, false_of_all_cases=True),
        ]
    )


def _differences(
    a: Pool, b: Pool, protocol: Protocol, columns: Sequence[Column], swaps: NDArray[np.bool_], *, is_exact: bool
) -> list[Difference]:
    def figures(of: Pool, weights: Floats) -> Floats:
        return _figures(of, weights, protocol, columns)

    once = np.ones((1, a.num_patients))
    of_a, of_b = figures(a, once)[0], figures(b, once)[0]
    resamples = replicate(
        lambda weights: figures(b, weights) - figures(a, weights),
        a.num_patients,
        num_resamples=protocol.num_resamples,
        seed=protocol.seed,
    )
    p = permutation_p(of_b - of_a, _swapped(_joined(a, b), swaps, figures), is_exact=is_exact)
    differences = []
    for n, (figure, rate) in enumerate(columns):
        # Differences of two models are nearly symmetric; BCa rejects equal models twice as often as it should where
        # patients are few, percentiles no more often than they should (simulated in the tests).
        found = bootstrap_rate(resamples, level=protocol.level, kind="percentile", figure=n)
        own = (float(of_a[n]), float(of_b[n]), found.value, found.low, found.high)
        differences.append(Difference(figure, rate, *own, protocol.level, found.method, float(p[n])))
    return differences


def _joined(a: Pool, b: Pool) -> Pool:
    """Both models as one set of twice as many patients: weights of 1 and 0 choose the model of each patient."""
    shifts = dict.fromkeys(("case_patient", "lesion_patient", "candidate_patient"), a.num_patients)
    shifts |= dict.fromkeys(("lesion_case", "candidate_case"), a.num_cases)
    columns = [field.name for field in fields(Pool) if field.name != "num_patients"]
    joined = {name: np.concatenate([getattr(a, name), getattr(b, name) + shifts.get(name, 0)]) for name in columns}
    joined["case_is_certain"] = np.concatenate([a.case_is_certain, b.case_is_certain])
    joined["candidate_is_true"] = np.concatenate([a.candidate_is_true, b.candidate_is_true])
    return Pool(num_patients=2 * a.num_patients, **joined)


def _swapped(joined: Pool, swaps: NDArray[np.bool_], figures: Callable[[Pool, Floats], Floats]) -> Floats:
    """Differences b - a after each swap, (swaps, figures)."""
    parts = []
    for start in range(0, len(swaps), SWAPS_AT_ONCE):
        part = swaps[start : start + SWAPS_AT_ONCE].astype(np.float64)
        as_a, as_b = np.hstack([1 - part, part]), np.hstack([part, 1 - part])
        parts.append(figures(joined, as_b) - figures(joined, as_a))
    return np.concatenate(parts)


def _by_size(
    cases: Pool, found_a: NDArray[np.bool_], found_b: NDArray[np.bool_], protocol: Protocol
) -> list[SizeDifference]:
    edges = (0.0, *protocol.diameter_edges_mm, math.inf)
    rows = []
    for low, high in itertools.pairwise(edges):
        own = (cases.lesion_diameter_mm >= low) & (cases.lesion_diameter_mm < high)
        test = clustered_mcnemar(found_a[own], found_b[own], cases.lesion_patient[own])
        enough = int(own.sum()) >= max(1, protocol.min_lesions)
        of_a, of_b = (float(found[own].mean()) if enough else math.nan for found in (found_a, found_b))
        if not enough:
            test = replace(test, statistic=math.nan, p=math.nan)
        rows.append(SizeDifference(low, high, int(own.sum()), of_a, of_b, test, math.nan))
    adjusted = holm([row.mcnemar.p for row in rows])
    return [replace(row, p_holm=float(p)) for row, p in zip(rows, adjusted, strict=True)]


def _false_per_case(cases: Pool, threshold: float) -> float:
    return float((~cases.candidate_is_true & (cases.candidate_confidence >= threshold)).sum()) / cases.num_cases


def _same(one: float, other: float) -> bool:
    return one == other or (math.isnan(one) and math.isnan(other))


def _count(amount: float, one: str) -> str:
    return f"{amount:g} {one}{'' if amount == 1 else 's'}"


def _sentence(
    primary: Difference,
    verdict: Verdict,
    num_lesions: int,
    num_patients: int,
    threshold: float,
    false_a: float,
    false_b: float,
) -> str:
    rate = primary.false_positives_per_case
    where = f"at {place_of(rate)}"
    if math.isnan(rate):
        where = f"at the threshold {threshold:g}, with {false_b:.3g} false positives per case against {false_a:.3g}"
    if math.isnan(primary.difference):
        return f"Undecided: there is no lesion to find {where}."
    by = f"by {_count(num_lesions, 'lesion')} of {_count(num_patients, 'patient')}"
    shares = f"{100 * primary.b:.1f} % against {100 * primary.a:.1f} %"
    points = f"{100 * primary.difference:+.1f} points"
    if math.isnan(primary.low):
        return f"Undecided: b against a {where}: {shares}, {points}, {by}; without an interval nothing is claimed."
    interval = f"{100 * primary.level:g} % interval {100 * primary.low:+.1f} to {100 * primary.high:+.1f}"
    if verdict == "undecided":
        return (
            f"Undecided whether b finds more or fewer lesions than a {where}: {shares}, {points} ({interval}), {by}."
            " Neither a difference nor equality is shown."
        )
    more = "more" if verdict == "better" else "fewer"
    return f"b is {verdict}: it finds {more} lesions than a {where}: {shares}, {points} ({interval}), {by}."


def _warnings(a: Pool, b: Pool, primary: Difference, num_patients: int) -> list[str]:
    lines = []
    least = min_deciding_patients(primary.level)
    if num_patients < least:
        lines.append(
            f"{_count(num_patients, 'patient')} with lesions: among fewer than {least} no difference can be told from"
            " chance, so the verdict is undecided whatever the interval."
        )
    elif num_patients < FEW_PATIENTS:
        lines.append(
            f"{_count(num_patients, 'patient')} with lesions: intervals from resamples of fewer than {FEW_PATIENTS} are"
            " rough."
        )
    rate = primary.false_positives_per_case
    for name, model in (("a", a), ("b", b)):
        if not math.isnan(rate) and model.candidate_confidence.size and math.isinf(threshold_at_rate(model, rate)):
            lines.append(
                f"No candidate of {name} may count at {place_of(rate)}: its surest ones are too often"
                " false. Compare at the threshold, or at a higher rate."
            )
    return lines


def _undefined(
    cases: Pool,
    differences: Sequence[Difference],
    mcnemar: McNemar,
    by_size: Sequence[SizeDifference],
    min_lesions: int,
) -> list[Undefined]:
    no_lesion = "there is no lesion"
    reasons = {"wafroc": why_undefined(cases), "wafroc1": why_undefined(cases, false_of_all_cases=True)}
    lines = []
    for difference in differences:
        where = place_of(difference.false_positives_per_case)
        if math.isnan(difference.difference):
            lines.append(Undefined(difference.figure, where, reasons.get(difference.figure, no_lesion)))
        elif math.isnan(difference.low):
            lines.append(Undefined(f"{difference.figure}: interval", where, difference.method))
    same = "in no patient does one model find more lesions than the other" if cases.num_lesions else no_lesion
    if math.isnan(mcnemar.p):
        lines.append(Undefined("mcnemar", "all lesions", same))
    for row in by_size:
        if math.isnan(row.mcnemar.p):
            few = f"there are {row.num_lesions}, fewer than {max(1, min_lesions)}"
            why = same if row.num_lesions >= max(1, min_lesions) else few
            lines.append(Undefined("mcnemar", f"lesions of {row.low:g} to {row.high:g} mm", why))
    return lines
