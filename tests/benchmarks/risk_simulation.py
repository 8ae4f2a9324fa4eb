"""Do thresholds keep what they promise? Random calibration sets of made patients; writes a page of docs and its figure.

    python tests/benchmarks/risk_simulation.py [PAGE.md FIGURE.png]

A pool of patients is made once for each kind. Each split draws some of them for calibration and holds the threshold
against all others. Half a minute on one core.
"""

from __future__ import annotations

import math
import platform
import sys
import textwrap
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy

from medfocal.evaluate.risk import controlled_threshold, miss_curve
from medfocal.report.figures import LIGHT, dress, write_png

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGE, FIGURE = DOCS / "benchmarks" / "risk-control.md", DOCS / "images" / "risk-control.png"
NUM_PATIENTS, NUM_SPLITS = 1000, 1000
TARGET, LEVEL = 0.1, 0.9
SIZES = (20, 40, 80)
NEVER = -np.inf


@dataclass(frozen=True)
class Kind:
    """A kind of patients.

    Attributes:
        words: What they are like.
        mean_lesions: Of a patient; numbers are geometric. 1: one each.
        hard_share: Share of patients whose lesions are hard to find.
        hard_effect: What is taken off the log-odds of their lesions' confidence.
        never: Share of lesions that are in no candidate.
    """

    words: str
    mean_lesions: float = 4.0
    hard_share: float = 0.0
    hard_effect: float = 0.0
    never: float = 0.02


KINDS = (
    Kind("alike, 4 lesions on average"),
    Kind("15 % of them hard, 4 lesions on average", hard_share=0.15, hard_effect=3.5),
    Kind("one lesion each", mean_lesions=1.0),
    Kind("12 lesions on average", mean_lesions=12.0),
    Kind("8 % of the lesions in no candidate", never=0.08),
)


def make_patients(kind: Kind, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw confidence and patient of all lesions; confidences have two digits, so that there are ties."""
    random = np.random.default_rng(seed)
    number = random.geometric(1 / kind.mean_lesions, NUM_PATIENTS)
    patient = np.repeat(np.arange(NUM_PATIENTS), number)
    effect = np.where(random.random(NUM_PATIENTS) < kind.hard_share, -kind.hard_effect, 0.0)
    log_odds = random.normal(1.5 + effect[patient], 1.2)
    confidence = np.round(1 / (1 + np.exp(-log_odds)), 2)
    confidence[random.random(len(patient)) < kind.never] = NEVER
    return confidence, patient


@dataclass(frozen=True, eq=False)
class Outcome:
    """What became of the splits.

    Attributes:
        rates: Mean miss rate of the patients that were not drawn, of each split with a threshold.
        share_without: Share of splits in which no threshold could be promised.
    """

    rates: np.ndarray
    share_without: float


def simulate(kind: Kind, num_calibrated: int, level: float | None, seed: int) -> Outcome:
    """Draw calibration sets and look at the others; without a threshold all candidates count, which is no promise."""
    confidence, patient = make_patients(kind, seed)
    count = np.bincount(patient, minlength=NUM_PATIENTS)
    random, rates, num_without = np.random.default_rng(seed), [], 0
    for _ in range(NUM_SPLITS):
        is_calibrated = np.zeros(NUM_PATIENTS, bool)
        is_calibrated[random.permutation(NUM_PATIENTS)[:num_calibrated]] = True
        own = is_calibrated[patient]
        threshold = controlled_threshold(miss_curve(confidence[own], patient[own]), TARGET, confidence_level=level)
        num_without += threshold is None
        missed = np.bincount(patient, confidence < (0.0 if threshold is None else threshold), minlength=NUM_PATIENTS)
        rates.append((missed / count)[~is_calibrated].mean())
    return Outcome(np.array(rates), num_without / NUM_SPLITS)


def main(page: Path, figure: Path) -> None:
    """Simulate everything and write it down."""
    start = time.perf_counter()
    found = {
        (kind, size, level): simulate(kind, size, level, seed)
        for seed, kind in enumerate(KINDS)
        for size in SIZES
        for level in (None, LEVEL)
    }
    seconds = time.perf_counter() - start
    page.write_text(_page(found, seconds), encoding="utf-8")
    write_png(figure, (9.2, 4.2), lambda drawing, theme: _draw(drawing, theme, found))
    print(f"wrote '{page}' and '{figure}'")


def _page(found: dict, seconds: float) -> str:
    expected = {key: one.rates for key, one in found.items() if key[2] is None}
    worst_mean = max(rates.mean() for rates in expected.values())
    worst_share = max((one.rates > TARGET).mean() for key, one in found.items() if key[2] is not None)
    error = max(rates.std() for rates in expected.values()) / math.sqrt(NUM_SPLITS)
    of_share = math.sqrt(LEVEL * (1 - LEVEL) / NUM_SPLITS)
    made = (
        "`python tests/benchmarks/risk_simulation.py` makes this page. Of a pool of "
        f"{NUM_PATIENTS} made patients {NUM_SPLITS} calibration sets are drawn for each row; the threshold of each is "
        f"held against all other patients. Promised is a miss rate of {TARGET}: the mean over patients of the share of "
        "lesions that each of them misses. Where no threshold can be promised all candidates count. Python "
        f"{platform.python_version()}, NumPy {np.__version__}, SciPy {scipy.__version__}; {seconds:.0f} seconds."
    )
    kept = (
        f"In expectation the mean over calibration sets may be {TARGET} at most: the highest is {worst_mean:.3f} (the "
        f"standard error of such a mean is {error:.4f} at most). With a probability of {LEVEL} at most {1 - LEVEL:.1f} "
        f"of the sets may miss more: the highest share is {worst_share:.3f} (standard error of a share of "
        f"{1 - LEVEL:.1f}: {of_share:.4f}). The second promise costs sensitivity and patients."
    )
    names = ("mean miss rate", f"sets above {TARGET}", "sets without a threshold")
    heads = [f"{name}, {how}" for how in ("in expectation", "with a probability") for name in names]
    lines = ["# Do thresholds keep what they promise?", ""]
    lines += [line for part in (made, kept) for line in (*textwrap.wrap(part, 150), "")]
    lines += [f"| patients | drawn | {' | '.join(heads)} |", "| --- " * (2 + len(heads)) + "|"]
    for kind in KINDS:
        for size in SIZES:
            cells = [kind.words, str(size)]
            for level in (None, LEVEL):
                one = found[kind, size, level]
                cells += [f"{one.rates.mean():.3f}", f"{(one.rates > TARGET).mean():.3f}", f"{one.share_without:.3f}"]
            lines.append("| " + " | ".join(cells) + " |")
    lines += [
        "",
        "Boxes hold the middle half of the calibration sets, whiskers reach from 10 to 90 % of them, dots are means.",
        "",
    ]
    lines += ["![Miss rates of patients that were not drawn](../images/risk-control.png)", ""]
    return "\n".join(lines)


def _draw(figure: object, theme: object, found: dict) -> None:
    panels = figure.subplots(1, 2, sharey=True)
    size = SIZES[1]
    for axes, level in zip(panels, (None, LEVEL), strict=True):
        title = "in expectation" if level is None else f"with a probability of {LEVEL}"
        dress(axes, theme, f"{size} patients, {title}", "miss rate of all other patients", "")
        rates = [found[kind, size, level].rates for kind in KINDS]
        axes.boxplot(
            rates,
            orientation="horizontal",
            whis=(10, 90),
            showfliers=False,
            showmeans=True,
            meanprops={"marker": "o", "markerfacecolor": LIGHT.first, "markeredgecolor": LIGHT.paper},
            medianprops={"color": LIGHT.muted},
            tick_labels=[kind.words for kind in KINDS],
        )
        axes.axvline(TARGET, color=LIGHT.second, linewidth=1.4, linestyle=(0, (4, 3)))
        axes.set_xlim(0, 0.2)
    panels[0].invert_yaxis()  # of both, which share it
    panels[0].text(TARGET, 5.48, " promised", color=LIGHT.second, fontsize=8, va="bottom")


if __name__ == "__main__":
    given = [Path(argument) for argument in sys.argv[1:]]
    main(*(given or (PAGE, FIGURE)))
