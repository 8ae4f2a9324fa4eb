"""Every way in which lesions and candidates can meet, with answers worked out by hand.

All lie in a grid of 12 x 10 x 8 voxels of 0.5 x 1 x 3 mm. A box is given by its bounds along i, j and k, half open.
Lesions are numbered by their first voxel, candidates by falling confidence.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

SHAPE = (12, 10, 8)
AFFINE = np.array([[-0.5, 0, 0, 20], [0, 1, 0, -7], [0, 0, 3, 4], [0, 0, 0, 1]], float)

Box = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]


def fill(boxes: list[tuple[Box, float]]) -> np.ndarray:
    array = np.zeros(SHAPE)
    for box, value in boxes:
        array[tuple(slice(*bounds) for bounds in box)] = value
    return array


def bar(start: int, stop: int) -> Box:
    """A bar along i, 2 x 2 voxels thick."""
    return ((start, stop), (3, 5), (2, 4))


@dataclass(frozen=True)
class LesionCase:
    """A case and its answer.

    Attributes:
        name: What it shows.
        lesions: Boxes of the reference.
        candidates: Boxes of the prediction with their confidence.
        num_lesions: Lesions by 26 neighbours.
        pairs: Candidate number by lesion number.
        num_false: Candidates that find nothing.
        curve: Threshold, false candidates and lesion sensitivity, from the highest confidence down.
    """

    name: str
    lesions: tuple[Box, ...]
    candidates: tuple[tuple[Box, float], ...]
    num_lesions: int
    pairs: dict[int, int]
    num_false: int
    curve: tuple[tuple[float, float, float], ...]

    @property
    def reference(self) -> np.ndarray:
        return fill([(box, 1) for box in self.lesions]) != 0

    @property
    def probability(self) -> np.ndarray:
        return fill(list(self.candidates))


LESION_CASES = (
    LesionCase("nothing at all", (), (), 0, {}, 0, ()),
    LesionCase("missed, no candidate", (bar(1, 4),), (), 1, {}, 0, ()),
    LesionCase("exactly found", (bar(1, 4),), ((bar(1, 4), 0.9),), 1, {1: 1}, 0, ((0.9, 0, 1),)),
    LesionCase(
        "one found, one missed, one false candidate",
        (((1, 3), (1, 3), (1, 3)), ((8, 10), (6, 8), (4, 6))),
        ((((1, 3), (1, 3), (1, 2)), 0.9), (((5, 6), (8, 9), (6, 7)), 0.6)),
        2,
        {1: 1},
        1,
        ((0.9, 0, 0.5), (0.6, 1, 0.5)),
    ),
    LesionCase(
        # Candidate 1 is the surer, bar(5, 8); the other is a second candidate on a found lesion.
        "split in two candidates",
        (bar(1, 8),),
        ((bar(1, 3), 0.6), (bar(5, 8), 0.8)),
        1,
        {1: 1},
        1,
        ((0.8, 0, 1), (0.6, 1, 1)),
    ),
    LesionCase(
        # Equally sure: numbered by first voxel, and bar(5, 8) shares more voxels (12 against 8).
        "split in two equally sure candidates",
        (bar(1, 8),),
        ((bar(1, 3), 0.6), (bar(5, 8), 0.6)),
        1,
        {1: 2},
        1,
        ((0.6, 1, 1),),
    ),
    LesionCase(
        # bar(1, 8) shares 8 voxels with lesion 1 and 12 with lesion 2, and may find one only.
        "two lesions merged in one candidate",
        (bar(1, 3), bar(5, 8)),
        ((bar(1, 8), 0.7),),
        2,
        {2: 1},
        0,
        ((0.7, 0, 0.5),),
    ),
    LesionCase(
        "touching at a corner, so one lesion",
        (((1, 3), (1, 3), (1, 3)), ((3, 5), (3, 5), (3, 5))),
        ((((1, 5), (1, 5), (1, 5)), 0.9),),
        1,
        {1: 1},
        0,
        ((0.9, 0, 1),),
    ),
    LesionCase("adjacent without overlap", (bar(1, 3),), ((bar(3, 5), 0.9),), 1, {}, 1, ((0.9, 1, 0),)),
    LesionCase(
        "one voxel shared",
        (((1, 5), (1, 5), (1, 5)),),
        ((((4, 8), (4, 8), (4, 8)), 0.9),),
        1,
        {1: 1},
        0,
        ((0.9, 0, 1),),
    ),
    LesionCase(
        # bar(4, 9) shares 2 slices with lesion 1 and 1 with lesion 2; bar(1, 3) shares 1 with lesion 1. Both lesions
        # are found only if the first candidate takes the lesion it shares less with.
        "chain",
        (bar(2, 6), bar(8, 10)),
        ((bar(4, 9), 0.8), (bar(1, 3), 0.6)),
        2,
        {1: 2, 2: 1},
        0,
        ((0.8, 0, 0.5), (0.6, 0, 1)),
    ),
    LesionCase(
        # The surer shares 1 slice, the other 3: at threshold 0.9 the lesion is found already.
        "surer candidate with less overlap",
        (bar(2, 8),),
        ((bar(1, 3), 0.9), (bar(5, 8), 0.4)),
        1,
        {1: 1},
        1,
        ((0.9, 0, 1), (0.4, 1, 1)),
    ),
    LesionCase(
        "false candidate surer than the true one",
        (bar(7, 9),),
        ((bar(1, 3), 0.9), (bar(7, 8), 0.3)),
        1,
        {1: 2},
        1,
        ((0.9, 1, 0), (0.3, 1, 1)),
    ),
    LesionCase("no lesion, one false candidate", (), ((bar(1, 3), 0.9),), 0, {}, 1, ((0.9, 1, math.nan),)),
    LesionCase(
        "one exactly found, a lesion of two voxels missed",
        (bar(1, 4), ((9, 11), (8, 9), (6, 7))),
        ((bar(1, 4), 0.9),),
        2,
        {1: 1},
        0,
        ((0.9, 0, 0.5),),
    ),
)


TOY_SHAPE = (40, 40, 24)


def slab(start: int, stop: int, side: int = 3) -> Box:
    """A bar along i of the toy cases, `side` x `side` voxels thick."""
    return ((start, stop), (10, 10 + side), (8, 8 + side))


@dataclass(frozen=True)
class ToyCase:
    """Masks on 40 x 40 x 24 voxels of 1 mm, on which evaluation programs disagree.

    Attributes:
        name: What it shows.
        lesions: Boxes of the reference.
        candidates: Boxes of the prediction.
        counts: True candidates or found lesions, false candidates and missed lesions as each program counts them.
        lesion_wise_dice: Of BraTS 2023, metastases.
        ltpr: Share of lesions found and lfdr, of false candidates, by lesion-metrics.
        lfdr: See `ltpr`.
    """

    name: str
    lesions: tuple[Box, ...]
    candidates: tuple[Box, ...]
    counts: dict[str, tuple[int, int, int]]
    lesion_wise_dice: float
    ltpr: float
    lfdr: float

    @property
    def reference(self) -> np.ndarray:
        return toy_mask(self.lesions)

    @property
    def prediction(self) -> np.ndarray:
        return toy_mask(self.candidates)


def toy_mask(boxes: tuple[Box, ...]) -> np.ndarray:
    mask = np.zeros(TOY_SHAPE, bool)
    for box in boxes:
        mask[tuple(slice(*bounds) for bounds in box)] = True
    return mask


def counted(panoptica, bipartite, picai, picai_any, brats) -> dict[str, tuple[int, int, int]]:
    """Counts of panoptica (IoU 0.5; best sum of Dice), picai_eval (IoU 0.1; any) and BraTS 2023 (metastases)."""
    return {"panoptica": panoptica, "bipartite": bipartite, "picai": picai, "picai_any": picai_any, "brats": brats}


NAN = math.nan
CUBE = ((4, 9), (4, 9), (4, 9))
TOY_CASES = (
    ToyCase(
        "one found, one missed, one false candidate",
        (CUBE, ((20, 23), (20, 23), (10, 13))),
        (CUBE, ((30, 33), (5, 8), (15, 18))),
        counted(*[(1, 1, 1)] * 5),
        1 / 3,
        1 / 2,
        1 / 2,
    ),
    ToyCase(
        "split in two candidates",
        (slab(5, 15),),
        (slab(5, 9), slab(11, 15)),
        counted((0, 2, 1), (1, 1, 0), (1, 0, 0), (1, 0, 0), (1, 0, 0)),
        8 / 9,
        1,
        0,
    ),
    ToyCase(
        # Two slices lie between the lesions, so that one step of growth joins them.
        "two lesions merged in one candidate",
        (slab(5, 9), slab(11, 15)),
        (slab(5, 15),),
        counted((0, 1, 2), (1, 0, 1), (1, 0, 1), (1, 0, 1), (1, 0, 0)),
        8 / 9,
        1,
        0,
    ),
    ToyCase(
        "two cubes that touch at a corner",
        (((5, 8), (5, 8), (5, 8)), ((8, 11), (8, 11), (8, 11))),
        (((5, 8), (5, 8), (5, 8)),),
        counted(*[(1, 0, 0)] * 5),
        2 / 3,
        1,
        0,
    ),
    ToyCase(
        "adjacent without overlap",
        (slab(5, 9),),
        (slab(9, 13),),
        counted(*[(0, 1, 1)] * 4, (1, 0, 0)),
        0,
        0,
        1,
    ),
    ToyCase(
        "one voxel of a lesion of a thousand",
        (((5, 15), (5, 15), (5, 15)),),
        (((14, 16), (14, 16), (14, 16)),),
        counted((0, 1, 1), (1, 0, 0), (0, 1, 1), (1, 0, 0), (1, 0, 0)),
        2 / 1008,
        1,
        0,
    ),
    ToyCase(
        # IoU of lesion 1 and the large candidate 8/12, of lesion 2 and it 1/11, of lesion 1 and the small one 1/10.
        "chain",
        (slab(10, 20), slab(21, 23)),
        (slab(12, 22), slab(10, 11)),
        counted((1, 1, 1), (1, 1, 1), (1, 0, 1), (2, 0, 0), (1, 0, 0)),
        20 / 23,
        1,
        0,
    ),
    ToyCase("no lesion, one false candidate", (), (CUBE,), counted(*[(0, 1, 0)] * 5), 0, NAN, 1),
    ToyCase("nothing at all", (), (), counted(*[(0, 0, 0)] * 5), 1, NAN, NAN),
    ToyCase("no candidate", (CUBE,), (), counted(*[(0, 0, 1)] * 5), 0, 0, NAN),
    ToyCase(
        # BraTS 2023 leaves out lesions of up to 2 mm3.
        "one exactly found, a lesion of two voxels missed",
        (CUBE, ((20, 22), (20, 21), (10, 11))),
        (CUBE,),
        counted(*[(1, 0, 1)] * 4, (1, 0, 0)),
        1,
        1 / 2,
        0,
    ),
)


def random_masks(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A reference and a prediction of a few blobs each, many of which meet, (24, 20, 16)."""
    random = np.random.RandomState(seed)  # its numbers stay the same in every version of numpy
    shape = (24, 20, 16)
    index = np.indices(shape)
    masks = np.zeros((2, *shape), bool)
    for _ in range(random.randint(2, 9)):
        centre = random.uniform(0, shape)
        for side in range(2):
            if random.uniform() < 0.8:
                place, radius = centre + random.normal(0, 1.5, 3), random.uniform(0.8, 3)
                masks[side] |= ((index - place[:, None, None, None]) ** 2).sum(0) < radius**2
    return masks[0], masks[1]
