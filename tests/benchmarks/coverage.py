"""How often do the intervals hold the truth? Simulated data sets of known truth; writes a page of docs.

    python tests/benchmarks/coverage.py [PAGE.md]

Patients are drawn whose lesions are found with a probability of their own, so that lesions of one patient are found or
missed together; each interval is computed by the package and compared with the probability that all patients have on
average. The same for false candidates per case, points of the FROC and means over cases. About 6 minutes on one core.
"""

from __future__ import annotations

import platform
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import scipy
from scipy.special import ndtr, ndtri

from medfocal.evaluate.bootstrap import Replicates, bootstrap_interval, replicate
from medfocal.evaluate.froc import froc
from medfocal.evaluate.intervals import clopper_pearson, garwood, proportion, rate, wilson
from medfocal.evaluate.operating_points import sensitivity_at_rates
from medfocal.evaluate.pool import Pool

PAGE = Path(__file__).resolve().parents[2] / "docs" / "benchmarks" / "interval-coverage.md"
LEVEL = 0.95
LEAST, MOST = 0.93, 0.99
PATIENTS = (15, 30, 60, 100)
RATES = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)

Interval = tuple[float, float]
#: Name of a method and its interval, of one data set.
Intervals = dict[str, Interval]


@dataclass(frozen=True)
class Size:
    """How much is simulated.

    Attributes:
        num_sets: Data sets of each setting.
        num_resampled_sets: Those of them that are resampled too.
        num_froc_sets: Data sets of each setting of the FROC.
        num_resamples: Resamples of each data set.
    """

    num_sets: int
    num_resampled_sets: int
    num_froc_sets: int
    num_resamples: int


FULL = Size(num_sets=3000, num_resampled_sets=1500, num_froc_sets=1500, num_resamples=400)


@dataclass(frozen=True)
class Setting:
    """One population of patients.

    Attributes:
        kind: "beta-binomial" or "hard patients".
        mean_lesions: Lesions a patient.
        sensitivity: Probability that a lesion is found.
        correlation: Intraclass correlation of the lesions of a patient.
        num_patients: Patients of a data set.
    """

    kind: str
    mean_lesions: float
    sensitivity: float
    correlation: float
    num_patients: int


def settings() -> Iterator[Setting]:
    """Give every population; without correlation both kinds differ in the numbers of lesions only."""
    for kind in ("beta-binomial", "hard patients"):
        for mean_lesions in (2.5, 6.0):
            for sensitivity in (0.7, 0.9, 0.97):
                for correlation in (0.0, 0.1, 0.2, 0.3):
                    for num_patients in PATIENTS:
                        yield Setting(kind, mean_lesions, sensitivity, correlation, num_patients)


def draw(setting: Setting, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draw found lesions and lesions of each patient.

    beta-binomial: numbers of lesions are geometric, and the patients' probabilities have a beta distribution.
    hard patients: numbers are 1 + Poisson, and a few patients, for whom few lesions are found, make all correlation.
    """
    p, correlation, n = setting.sensitivity, setting.correlation, setting.num_patients
    if setting.kind == "beta-binomial":
        lesions = random.geometric(1 / setting.mean_lesions, n)
    else:
        lesions = 1 + random.poisson(setting.mean_lesions - 1, n)
    if not correlation:
        found_with = np.full(n, p)
    elif setting.kind == "beta-binomial":
        total = (1 - correlation) / correlation
        found_with = random.beta(p * total, (1 - p) * total, n)
    else:
        hard, easy_probability, hard_probability = hard_patients(p, correlation)
        found_with = np.where(random.random(n) < hard, hard_probability, easy_probability)
    return random.binomial(lesions, found_with), lesions


def hard_patients(sensitivity: float, correlation: float) -> tuple[float, float, float]:
    """Give the share of hard patients, and the probabilities for easy and hard ones.

    The share is half of the largest with which the probability for easy ones stays below 1, at most one half.
    """
    odds = min(1.0, 0.5 * (1 - sensitivity) / (correlation * sensitivity))
    hard = odds / (1 + odds)
    apart = np.sqrt(correlation * sensitivity * (1 - sensitivity) / (hard * (1 - hard)))
    easy_probability = sensitivity + hard * apart
    return hard, float(easy_probability), float(easy_probability - apart)


def sensitivity_intervals(found: np.ndarray, lesions: np.ndarray) -> Intervals:
    """Give all intervals without resamples."""
    by_patient = proportion(found, lesions, level=LEVEL)
    of_wilson = proportion(found, lesions, level=LEVEL, method="wilson")
    num_found, num_lesions = float(found.sum()), float(lesions.sum())
    return {
        "default": (by_patient.low, by_patient.high),
        "Wilson": (of_wilson.low, of_wilson.high),
        "Clopper-Pearson, lesions pooled": clopper_pearson(num_found, num_lesions, level=LEVEL),
        "Wilson, lesions pooled": wilson(num_found, num_lesions, level=LEVEL),
    }


def resampled_intervals(replicates: Replicates) -> Intervals:
    """Give both intervals from resamples of a single figure."""
    kinds = {"percentile bootstrap": "percentile", "BCa bootstrap": "bca"}
    both = {name: bootstrap_interval(replicates, level=LEVEL, kind=kind) for name, kind in kinds.items()}
    return {name: (float(low[0]), float(high[0])) for name, (low, high) in both.items()}


def ratio_replicates(counts: np.ndarray, totals: np.ndarray, num_resamples: int, seed: int) -> Replicates:
    """Resample patients of a quotient of sums."""

    def quotient(weights: np.ndarray) -> np.ndarray:
        return (weights @ counts) / (weights @ totals)

    return replicate(quotient, len(totals), num_resamples=num_resamples, seed=seed)


class Tally:
    """Counts how often each method holds the truth, and how wide it is."""

    def __init__(self) -> None:
        self.held: dict[str, list[bool]] = {}
        self.width: dict[str, list[float]] = {}

    def add(self, intervals: Intervals, truth: float) -> None:
        for name, (low, high) in intervals.items():
            # The truth may be 1 up to rounding.
            self.held.setdefault(name, []).append(low - 1e-9 <= truth <= high + 1e-9)
            self.width.setdefault(name, []).append(high - low)

    def coverage(self) -> dict[str, float]:
        return {name: float(np.mean(held)) for name, held in self.held.items()}


def cover_sensitivity(setting: Setting, size: Size, seed: int) -> Tally:
    """Simulate one population."""
    random = np.random.default_rng(seed)
    tally = Tally()
    for number in range(size.num_sets):
        found, lesions = draw(setting, random)
        intervals = sensitivity_intervals(found, lesions)
        if setting.kind == "beta-binomial" and number < size.num_resampled_sets:
            intervals |= resampled_intervals(ratio_replicates(found, lesions, size.num_resamples, number))
        tally.add(intervals, setting.sensitivity)
    return tally


def cover_false_positives(mean: float, variation: float, num_patients: int, size: Size, seed: int) -> Tally:
    """Simulate false candidates: a Poisson number in each case, the means of patients with a gamma distribution.

    `variation` is the variance of the patients' means over their squared mean. A patient has one to three cases.
    """
    random = np.random.default_rng(seed)
    tally = Tally()
    for number in range(size.num_sets):
        cases = random.choice([1, 1, 1, 2, 3], num_patients)
        means = random.gamma(1 / variation, mean * variation, num_patients) if variation else mean
        false = random.poisson(means * cases)
        by_patient = rate(false, cases, level=LEVEL)
        low, high = garwood(float(false.sum()), level=LEVEL)
        intervals = {"default": (by_patient.low, by_patient.high)}
        intervals["Garwood, cases pooled"] = (low / cases.sum(), high / cases.sum())
        if number < size.num_resampled_sets:
            intervals |= resampled_intervals(ratio_replicates(false, cases, size.num_resamples, number))
        tally.add(intervals, mean)
    return tally


def cover_mean(num_patients: int, size: Size, seed: int) -> Tally:
    """Simulate a mean over cases like that of the voxel Dice: beta of mean .8, and 0 in one case of eight."""
    random = np.random.default_rng(seed)
    tally = Tally()
    for number in range(size.num_resampled_sets):
        dice = random.beta(8, 2, num_patients) * (random.random(num_patients) < 7 / 8)
        tally.add(resampled_intervals(ratio_replicates(dice, np.ones(num_patients), size.num_resamples, number)), 0.7)
    return tally


@dataclass(frozen=True)
class Detector:
    """A model of known FROC.

    The score of a lesion is normal around `skill`, .3 of its variance between patients; its confidence is the normal
    distribution function of it, and below `never` there is no candidate. False candidates: Poisson with an exponential
    mean of 4 a case, whose confidences have the density 2 (1 - t).
    """

    skill: float
    never: float

    def truth(self) -> np.ndarray:
        """Give the sensitivities at `RATES`."""
        share = np.minimum(np.array(RATES) / 4, 1)
        threshold = ndtri(1 - np.sqrt(share))
        return np.asarray(ndtr(self.skill - np.maximum(threshold, self.never)))

    def draw(self, num_patients: int, random: np.random.Generator) -> Pool:
        """Draw one case of each patient, a fifth of them without lesions."""
        num_lesions = random.geometric(1 / 2.5, num_patients) * (random.random(num_patients) < 0.8)
        num_lesions[0] = max(num_lesions[0], 1)
        num_false = random.poisson(random.exponential(4, num_patients))
        lesion_case = np.repeat(np.arange(num_patients), num_lesions)
        false_case = np.repeat(np.arange(num_patients), num_false)
        effect, own = random.standard_normal(num_patients), random.standard_normal(len(lesion_case))
        score = self.skill + np.sqrt(0.3) * effect[lesion_case] + np.sqrt(0.7) * own
        found = score >= self.never
        candidate_case = np.append(lesion_case[found], false_case)
        nothing = partial(np.zeros, len(candidate_case))
        return Pool(
            num_patients=num_patients,
            case_patient=np.arange(num_patients),
            case_litres=np.ones(num_patients),
            case_num_lesions=num_lesions,
            case_is_certain=np.ones(num_patients, bool),
            case_confidence=np.ones(num_patients),
            lesion_case=lesion_case,
            lesion_patient=lesion_case,
            lesion_confidence=np.where(found, ndtr(score), -np.inf),
            lesion_diameter_mm=np.zeros(len(lesion_case)),
            lesion_volume_mm3=np.zeros(len(lesion_case)),
            candidate_case=candidate_case,
            candidate_patient=candidate_case,
            candidate_confidence=np.append(ndtr(score[found]), random.beta(1, 2, len(false_case))),
            candidate_is_true=np.arange(len(candidate_case)) < found.sum(),
            candidate_diameter_mm=nothing(),
            candidate_volume_mm3=nothing(),
        )


def cover_froc(detector: Detector, num_patients: int, size: Size, seed: int) -> tuple[Tally, Tally]:
    """Simulate the sensitivity at 1 false candidate per case, and the CPM."""
    random = np.random.default_rng(seed)
    at_one, cpm = Tally(), Tally()
    truth = detector.truth()
    for number in range(size.num_froc_sets):
        pool = detector.draw(num_patients, random)
        result = froc(pool, RATES, level=LEVEL, num_resamples=size.num_resamples, seed=number)
        read = partial(sensitivity_at_rates, pool, rates=RATES)
        replicates = replicate(read, num_patients, num_resamples=size.num_resamples, seed=number)
        point = result.points[RATES.index(1.0)]
        at_one.add(
            {"default": (point.low, point.high)} | resampled_intervals(_figure(replicates, _at_one)),
            float(truth[RATES.index(1.0)]),
        )
        cpm.add(
            {"default": (result.cpm_low, result.cpm_high)} | resampled_intervals(_figure(replicates, _mean)),
            float(truth.mean()),
        )
    return at_one, cpm


def _at_one(values: np.ndarray) -> np.ndarray:
    return values[..., RATES.index(1.0)]


def _mean(values: np.ndarray) -> np.ndarray:
    return values.mean(axis=-1)


def _figure(replicates: Replicates, of: Callable[[np.ndarray], np.ndarray]) -> Replicates:
    value, resampled, left_out = (
        of(values) for values in (replicates.value, replicates.resampled, replicates.left_out)
    )
    return Replicates(np.atleast_1d(value), resampled[:, None], left_out[:, None], replicates.num_patients)


def summary(tallies: dict[Setting, Tally]) -> list[str]:
    """One row a method, over all populations of a kind."""
    lines = ["| method | populations | lowest | highest | below .93 | above .99 | mean width |"]
    lines.append("| --- | --- | --- | --- | --- | --- | --- |")
    for name in next(iter(tallies.values())).held:
        covered = np.array([tally.coverage()[name] for tally in tallies.values()])
        width = np.mean([np.mean(tally.width[name]) for tally in tallies.values()])
        counts = f"{(covered < LEAST).sum()} | {(covered > MOST).sum()}"
        lines.append(
            f"| {name} | {len(covered)} | {covered.min():.3f} | {covered.max():.3f} | {counts} | {width:.3f} |"
        )
    return lines


def by_population(tallies: dict[Setting, Tally], name: str) -> list[str]:
    """One row a population, one column a number of patients; what lies outside is bold."""
    lines = [
        "| lesions a patient | sensitivity | correlation | " + " | ".join(f"{n} patients" for n in PATIENTS) + " |"
    ]
    lines.append("| --- " * (3 + len(PATIENTS)) + "|")
    rows: dict[tuple[float, float, float], list[str]] = {}
    for setting, tally in tallies.items():
        key = (setting.mean_lesions, setting.sensitivity, setting.correlation)
        rows.setdefault(key, []).append(_cell(tally.coverage()[name]))
    lines += [f"| {a:g} | {p:g} | {c:g} | {' | '.join(cells)} |" for (a, p, c), cells in rows.items()]
    return lines


def in_rows(first: str, rows: dict[str, Tally]) -> list[str]:
    """One row a setting, one column a method."""
    names = list(next(iter(rows.values())).held)
    lines = [f"| {first} | " + " | ".join(names) + " |", "| --- " * (1 + len(names)) + "|"]
    for label, tally in rows.items():
        lines.append(f"| {label} | " + " | ".join(_cell(tally.coverage()[name]) for name in names) + " |")
    return lines


def _cell(covered: float) -> str:
    return f"{covered:.3f}" if LEAST <= covered <= MOST else f"**{covered:.3f}**"


def make_page(size: Size) -> str:
    """Simulate everything and write it down."""
    start = time.perf_counter()
    seeds = iter(range(1, 10_000))
    sensitivity = {setting: cover_sensitivity(setting, size, next(seeds)) for setting in settings()}
    kinds = {
        kind: {setting: tally for setting, tally in sensitivity.items() if setting.kind == kind}
        for kind in ("beta-binomial", "hard patients")
    }
    false_positives = {
        f"{mean:g} a case, variation {variation:g}, {n} patients": cover_false_positives(
            mean, variation, n, size, next(seeds)
        )
        for mean in (0.1, 0.5, 2.0)
        for variation in (0.0, 1.0, 2.0)
        for n in (15, 30, 100)
    }
    at_one, cpm = {}, {}
    for detector in (Detector(1.0, -1.5), Detector(2.2, -1.0)):
        truth = detector.truth()
        for n in (15, 30, 60):
            first, second = cover_froc(detector, n, size, next(seeds))
            at_one[f"{truth[RATES.index(1.0)]:.2f}, {n} patients"] = first
            cpm[f"{truth.mean():.2f}, {n} patients"] = second
    means = {f"{n} patients": cover_mean(n, size, next(seeds)) for n in PATIENTS}
    minutes = (time.perf_counter() - start) / 60
    lines = [
        "# How often do the intervals hold the truth?",
        "",
        *paragraph(
            "`python tests/benchmarks/coverage.py` makes this page: the share of simulated data sets whose 95 %",
            "interval holds the value that they were drawn with. Bold: outside .93 to .99.",
            f"{size.num_sets} data sets a setting, {size.num_resampled_sets} of them resampled",
            f"{size.num_resamples} times, and {size.num_froc_sets} for the FROC; the standard error of a coverage of",
            f".95 is {np.sqrt(0.95 * 0.05 / size.num_sets):.3f} without and",
            f"{np.sqrt(0.95 * 0.05 / size.num_resampled_sets):.3f} with resamples.",
            f"Python {platform.python_version()}, NumPy {np.__version__}, SciPy {scipy.__version__};",
            f"{minutes:.0f} minutes by the wall clock.",
        ),
        "",
        *_meaning(kinds),
        "",
        "## Lesion sensitivity",
        "",
        *paragraph(
            "Correlation: of the lesions of a patient (intraclass). Beta-binomial: geometric numbers of lesions. Hard",
            "patients: Poisson numbers, and a few patients in whom lesions are missed make all correlation.",
        ),
    ]
    for kind, tallies in kinds.items():
        lines += ["", f"### {kind.capitalize()}", "", *summary(tallies), "", "The default:", ""]
        lines += by_population(tallies, "default")
    lines += ["", "## False candidates per case", ""]
    lines += ["Variation: variance of the patients' means over their squared mean; 0: the same for all.", ""]
    lines += in_rows("truth", false_positives)
    lines += ["", "## Lesion sensitivity at 1 false candidate per case", "", *in_rows("truth", at_one)]
    lines += ["", "## Mean of seven points of the FROC (CPM)", "", *in_rows("truth", cpm)]
    lines += ["", "## A mean over cases, such as the voxel Dice", "", *in_rows("of", means)]
    lines += [
        "",
        "## Limits",
        "",
        *paragraph(
            "Simulated patients only. Correlations above .3, and sets in which a few patients hold most lesions, are",
            "not simulated. The assumed correlation of .15 and its weight of 4 patients were chosen among a few round",
            "values by the coverage in the beta-binomial populations and in two others, with other seeds than here.",
        ),
    ]
    return "\n".join(lines) + "\n"


def _meaning(kinds: dict[str, dict[Setting, Tally]]) -> list[str]:
    covered = {s: t.coverage() for tallies in kinds.values() for s, t in tallies.items()}
    default = {setting: values["default"] for setting, values in covered.items()}
    pooled = min(values["Clopper-Pearson, lesions pooled"] for values in covered.values())
    resampled = [v["percentile bootstrap"] for v in covered.values() if "percentile bootstrap" in v]
    below = [setting for setting, value in default.items() if value < LEAST]
    above = [setting for setting, value in default.items() if value > MOST]
    return paragraph(
        f"The default lies in .93 to .99 in {len(default) - len(below) - len(above)} of {len(default)} populations,",
        f"below in {len(below)}{_where(below, default, min)}, and above in {len(above)}{_where(above, default, max)}.",
        "Where a few lesions of many are missed, no data tell whether misses come together. An interval that holds the",
        "truth if they do is wider than needed if they don't: that is where it lies above.",
        f"Lesions pooled as if independent go down to {pooled:.2f}, quantiles of patient resamples to",
        f"{min(resampled):.2f}: near a sensitivity of 1 they shrink to a point. Points of the FROC and the CPM",
        "therefore take from the resamples only the variance.",
    )


def paragraph(*parts: str) -> list[str]:
    """Break sentences into lines."""
    return textwrap.wrap(" ".join(parts), 116)


def _where(outside: list[Setting], default: dict[Setting, float], extreme: Callable[..., Setting]) -> str:
    if not outside:
        return ""
    worst = extreme(outside, key=default.__getitem__)
    return (
        f" (at the extreme {default[worst]:.3f}: {worst.kind}, {worst.num_patients} patients with"
        f" {worst.mean_lesions:g} lesions, sensitivity {worst.sensitivity:g}, correlation {worst.correlation:g})"
    )


if __name__ == "__main__":
    page = Path(sys.argv[1]) if len(sys.argv) > 1 else PAGE
    page.write_text(make_page(FULL), encoding="utf-8")
