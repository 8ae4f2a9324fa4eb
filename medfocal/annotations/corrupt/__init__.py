"""Clean labels made wrong on purpose, to measure what wrong labels cost and which losses bear them.

Each corruption is called with a label and gives a wrong one:

    corruption(label, affine=affine, rng=case_rng(seed, case), spots=None, image=None)

Corrupt training labels only, and state the severity that came out (`medfocal.annotations.severity`), since what was
asked cannot be reached in every case. Random errors (`MissedLesions`, `BoundaryJitter` without bias, `Shift`) average
out over cases; systematic ones (`Erosion`, `Dilation`, a bias) do not, and are learnt.

References:
    Heller et al. 2018, "Imperfect segmentation labels: how much do they matter?", LABELS (boundary and other errors);
    Vorontsov and Kadoury 2021, "Label noise in segmentation networks: mitigation must deal with bias", DGM4MICCAI
    (omitted and invented structures, biased and unbiased); Karimi et al. 2020, "Deep learning with noisy labels",
    Medical Image Analysis (review). None of them sets severities by case; the parametrisation here is ours.
"""

from medfocal.annotations.corrupt.boundary import BoundaryJitter, Dilation, Erosion, Shift
from medfocal.annotations.corrupt.corruption import Composed, Corruption, NoCorruption, case_rng
from medfocal.annotations.corrupt.lesions import ClassFlips, MissedLesions, SpuriousLesions
from medfocal.annotations.corrupt.readers import SimulatedReader, SkippedSlices

__all__ = [
    "BoundaryJitter",
    "ClassFlips",
    "Composed",
    "Corruption",
    "Dilation",
    "Erosion",
    "MissedLesions",
    "NoCorruption",
    "Shift",
    "SimulatedReader",
    "SkippedSlices",
    "SpuriousLesions",
    "case_rng",
]
