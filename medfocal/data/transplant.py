"""Lesion transplants: lesions of training cases, set at other places of training patches.

A network that sees fifty lesions for a thousand steps learns those fifty by heart, surroundings included. A transplant
shows a known lesion in new surroundings, so what the two places have in common is the lesion.

What travels is the lesion's residual: per channel its intensities minus the median of a ring around it (the voxels two
and three steps over faces away). At the new place the residual stands on the median of the same ring there:

    image <- (1 - soft) * image + soft * (median there + residual)

`soft` is the lesion grown by one step and blurred: 1 on a lesion with a core, .73 on a single voxel, a quarter two
voxels from a face, 0 further away; so no edge betrays the place. A patch gets one transplant with probability q, then
with q another one, and so on: q / (1 - q) on average, less those for which no place was found. Each is flipped along
the axes at random, and transposed where its first two axes have the same spacing.

Differs from CarveMix (Zhang et al. 2021, "CarveMix: a simple data augmentation method for brain lesion segmentation",
MICCAI), which carves a region around the lesions of one image and puts it at the same place of another with hard edges,
and from simple copy-paste (Ghiasi et al. 2021, "Simple copy-paste is a strong data augmentation method for instance
segmentation", CVPR), which pastes objects as they are: here single lesions move, to anywhere in the body, and only
what they add to their surroundings.

Limits: a place is any place in the body; where lesions keep to one tissue, transplants will not. One median stands for
all surroundings, so what lies beside a lesion (a ventricle, a sulcus) comes along within the soft margin. Ring and
margin are counted in voxels, not in mm. Lesions that touch the border of the body, or each other's margins, stay.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medfocal.annotations.target import Target, as_shares
from medfocal.data.sampling import Scalar, cut_body, cut_image, cut_patch
from medfocal.data.stored import TrainingCase
from medfocal.errors import DatasetError

LOG = logging.getLogger("medfocal.data")

#: Voxels around a lesion's bounding box that travel with it: as far as its ring reaches.
MARGIN = 3
#: Places that are tried for a lesion before the patch goes without.
NUM_TRIES = 5
#: Largest relative difference of spacings that count as equal, as for transposed patches.
SPACING_TOLERANCE = 0.01
#: Apart from the sampler's draws and the random changes, which are seeded by seed, epoch and index alone.
STREAM = 7


@dataclass(frozen=True, eq=False)
class Donor:
    """A lesion with what it adds to its surroundings, in its bounding box and `MARGIN` voxels around.

    Attributes:
        residual: Intensities minus the ring's median, float32 `(C, I, J, K)`.
        classes: The lesion's label values, uint8 `(I, J, K)`, 0 around it.
        soft: Weight of the residual, float32 `(I, J, K)` in [0, 1].
        ring: Voxels of the body around the lesion that give the level it stands on, `(I, J, K)`.
        spacing_mm: Of the three axes.
        targets: What the lesion teaches, one or one of each reader: classes `(I, J, K)` or shares `(T, I, J, K)`, 0
            where `soft` is. None: its classes.
        weight: Voxel weights `(I, J, K)`, or None.
    """

    residual: NDArray[np.float32]
    classes: NDArray[np.uint8]
    soft: NDArray[np.float32]
    ring: NDArray[np.bool_]
    spacing_mm: tuple[float, ...]
    targets: tuple[NDArray[Any], ...] | None = None
    weight: NDArray[np.float32] | None = None

    def turned(self, flips: Sequence[int], *, transpose: bool) -> Donor:
        """The lesion flipped along some of the axes 0 to 2, then with the first two swapped; shares its memory."""
        axes = tuple(axis - 3 for axis in flips)  # the residual has a channel before them

        def turn(array: NDArray[Scalar]) -> NDArray[Scalar]:
            array = np.flip(array, axes)
            return array.swapaxes(-3, -2) if transpose else array

        planes = (turn(self.residual), turn(self.classes), turn(self.soft), turn(self.ring))
        targets = None if self.targets is None else tuple(map(turn, self.targets))
        return Donor(*planes, self.spacing_mm, targets, None if self.weight is None else turn(self.weight))


def check_transplant_probability(probability: float) -> None:
    """Refuse a probability that is none, or with which transplants would never end.

    Raises:
        ValueError: It is not in [0, 1).
    """
    if not 0 <= probability < 1:
        message = (
            f"transplant_probability must be in [0, 1), got {probability}: "
            "it is drawn anew after each transplant, and with 1 they would never end"
        )
        raise ValueError(message)


class LesionTransplants:
    """Sets lesions of the training cases into training patches; the same seed, epoch and index give the same patch.

    A lesion goes only where its soft margin stays in the body and its box holds no lesion, so that lesions stay
    separate, and only into cases of its own spacing (1 %), so that its size in mm stays. It may come from the
    patch's own case.

    Args:
        cases: Training cases in the order of their numbers.
        membership: As that of `medfocal.data.targets.TaughtCases`: None where classes are taught.
        weighted: Whether patches have weights; a lesion of a case without any then brings ones.
        patch_size: Voxels `(I, J, K)`; lesions that do not fit, with `MARGIN` voxels around them, stay.
        probability: Of a transplant, and of another one after each, in [0, 1). With 0 no lesion is looked at.
        seed: Of the draws.

    Raises:
        ValueError: The probability is out of range.
        DatasetError: No lesion can be transplanted; says how many for which reason.
    """

    def __init__(
        self,
        cases: Sequence[TrainingCase],
        *,
        patch_size: Sequence[int],
        probability: float,
        seed: int,
        membership: NDArray[np.float32] | None = None,
        weighted: bool = False,
    ) -> None:
        check_transplant_probability(probability)
        self.probability = float(probability)
        #: Lesions that can be transplanted, by case and then by number within the case.
        self.donors: list[Donor] = []
        self._seed = seed
        self._spacings = [case.spacing_mm for case in cases]
        self._matching: dict[tuple[float, ...], list[Donor]] = {}
        if probability > 0:
            self._find_donors(cases, patch_size, _Form(membership, weighted))
            for spacing in set(self._spacings):
                self._matching[spacing] = [donor for donor in self.donors if _alike(donor.spacing_mm, spacing)]
            self._tell_cases_without()

    def __call__(
        self,
        image: NDArray[np.float32],
        label: NDArray[np.uint8],
        *,
        body: NDArray[np.bool_],
        case: int,
        epoch: int,
        index: int,
        target: NDArray[Any] | None = None,
        weight: NDArray[np.float32] | None = None,
    ) -> None:
        """Set lesions into a patch, in place.

        Args:
            image: Of the patch, `(C, I, J, K)`.
            label: Its lesions' classes, `(I, J, K)`.
            body: Where the body is, `(I, J, K)`.
            case: Number of its case.
            epoch: From 0.
            index: From 0, counted over the whole epoch.
            target: What it teaches, where that is not the label: classes `(I, J, K)`, or shares of the lesion classes
                `(T, I, J, K)`. Of a lesion with a target of each reader, one of them is taken.
            weight: Its voxel weights `(I, J, K)`, where there are some.
        """
        donors = self._matching.get(self._spacings[case])
        if not donors:
            return
        rng = np.random.default_rng([self._seed, epoch, index, STREAM])
        while rng.random() < self.probability:
            _transplant(image, label, body, donors[rng.integers(len(donors))], rng, target=target, weight=weight)

    def _find_donors(self, cases: Sequence[TrainingCase], patch_size: Sequence[int], form: _Form) -> None:
        """Collect the lesions that can be transplanted, and tell how many cannot, for which reason."""
        left_out: Counter[str] = Counter()
        for case in cases:
            for found in _donors_of(case, patch_size, form):
                if isinstance(found, Donor):
                    self.donors.append(found)
                else:
                    left_out[found] += 1
        if not left_out and self.donors:
            return
        reasons = ", ".join(f"{count} {reason}" for reason, count in left_out.most_common()) or "there is none"
        num_lesions = len(self.donors) + left_out.total()
        if not self.donors:
            message = (
                f"none of the {num_lesions} training lesions can be transplanted: {reasons}. "
                "Set sampling.transplant_probability=0, or enlarge sampling.patch_size where lesions are too large."
            )
            raise DatasetError(message)
        LOG.info("%d of %d training lesions can be transplanted; %s", len(self.donors), num_lesions, reasons)

    def _tell_cases_without(self) -> None:
        without = sum(not self._matching[spacing] for spacing in self._spacings)
        if without:
            LOG.info(
                "%d of %d training cases get no transplant: no lesion that can travel has their spacing",
                without, len(self._spacings),
            )  # fmt: skip


@dataclass(frozen=True, eq=False)
class _Form:
    """What patches are taught with, so that donors are too."""

    membership: NDArray[np.float32] | None
    weighted: bool


def _donors_of(case: TrainingCase, patch_size: Sequence[int], form: _Form) -> Iterator[Donor | str]:
    """Each lesion of a case, by number, as a donor, or why it cannot be one."""
    table, spacing_mm = case.table, case.spacing_mm
    for number, (low, high) in enumerate(zip(table.low, table.high, strict=True)):
        start, size = (low - MARGIN).tolist(), (high - low + 2 * MARGIN).tolist()
        if not any(_fits(turned, patch_size) for turned in _turned_sizes(size, spacing_mm)):
            yield f"too large for patches of {list(patch_size)} voxels"
            continue
        label = cut_patch(case.target.lesions, start, size)
        lesion = np.zeros(tuple(size), np.bool_)
        voxels = np.unravel_index(table.voxels[table.bounds[number] : table.bounds[number + 1]], table.shape)
        lesion[tuple(index - first for index, first in zip(voxels, start, strict=True))] = True
        donor = _donor(cut_image(case.image, start, size), label, lesion, cut_body(case, start, size), spacing_mm)
        yield donor if isinstance(donor, str) else _taught(donor, case.target, start, size, form)


def _taught(donor: Donor, target: Target, start: Sequence[int], size: Sequence[int], form: _Form) -> Donor:
    """A donor with what it teaches, from the box it was cut out of; without, where its classes are all."""
    weight = None
    if form.weighted:
        weights = target.weight
        weight = np.ones(tuple(size), np.float32) if weights is None else cut_patch(weights, start, size)
    if form.membership is None and target.alternatives[0] is target.lesions:
        return replace(donor, weight=weight)
    near = donor.soft > 0
    cuts: list[NDArray[Any]] = [cut_patch(alternative, start, size) for alternative in target.alternatives]
    if form.membership is not None:
        cuts = [as_shares(cut, form.membership) for cut in cuts]
    return replace(donor, targets=tuple(np.where(near, cut, 0).astype(cut.dtype) for cut in cuts), weight=weight)


def _donor(
    image: NDArray[np.float32],
    label: NDArray[np.uint8],
    lesion: NDArray[np.bool_],
    body: NDArray[np.bool_],
    spacing_mm: tuple[float, ...],
) -> Donor | str:
    """A donor from the box around a lesion, or why it cannot be one.

    Its ring is never empty, here or at a new place: all voxels two steps away (18 around a single voxel, else more) lie
    within the soft margin, and so in the body and in no lesion.
    """
    other = (label > 0) & ~lesion
    soft = _soft_mask(lesion)
    if (~body & (soft > 0)).any():
        return "at the border of the body or of the volume"
    if (other & (soft > 0)).any():
        return "with another lesion in the soft margin"
    near, far = (ndimage.binary_dilation(lesion, iterations=steps) for steps in (1, MARGIN))
    ring = far & ~near & ~other & body
    return Donor(image - _level(image, ring), np.where(lesion, label, 0).astype(np.uint8), soft, ring, spacing_mm)


def _soft_mask(lesion: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Weights in [0, 1] of the lesion's residual, float32; not 0 up to two voxels outside its bounding box."""
    blurred = ndimage.gaussian_filter(ndimage.binary_dilation(lesion).astype(np.float32), sigma=0.7)
    soft = np.clip(1.25 * blurred, 0, 1)
    soft[soft <= 0.05] = 0  # the Gaussian's tail would reach further than anything is checked
    return np.asarray(soft, np.float32)


def _level(image: NDArray[np.float32], ring: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Median of each channel of `(C, I, J, K)` over a ring, as `(C, 1, 1, 1)`."""
    return np.asarray(np.median(image[:, ring], axis=1), np.float32)[:, None, None, None]


def _transplant(
    image: NDArray[np.float32],
    label: NDArray[np.uint8],
    body: NDArray[np.bool_],
    donor: Donor,
    rng: np.random.Generator,
    *,
    target: NDArray[Any] | None,
    weight: NDArray[np.float32] | None,
) -> None:
    """Set a donor, turned at random, to one of a few random places of a patch; none that suits: the patch stays."""
    flips = [axis for axis in range(3) if rng.random() < 0.5]
    transpose = rng.random() < 0.5 and _transposable(donor.spacing_mm)
    donor = donor.turned(flips, transpose=transpose)
    size = donor.classes.shape
    if not _fits(size, label.shape):  # only where patches are not square
        return
    for _ in range(NUM_TRIES):
        start = [int(rng.integers(0, length - n + 1)) for length, n in zip(label.shape, size, strict=True)]
        box = tuple(slice(first, first + n) for first, n in zip(start, size, strict=True))
        if not label[box].any() and body[box][donor.soft > 0].all():
            _paste(image[(slice(None), *box)], label[box], donor, donor.ring & body[box])
            if target is not None:
                known = donor.targets or (donor.classes,)
                taught = known[0 if len(known) == 1 else rng.integers(len(known))]
                here = target[(slice(None),) * (target.ndim - 3) + box]
                np.maximum(here, taught, out=here)
            if weight is not None and donor.weight is not None:
                np.copyto(weight[box], donor.weight, where=donor.soft > 0)
            return


def _paste(image: NDArray[np.float32], label: NDArray[np.uint8], donor: Donor, ring: NDArray[np.bool_]) -> None:
    """Write a donor into views of its own size; the ring gives the level it stands on here."""
    image[:] = image * (1 - donor.soft) + (_level(image, ring) + donor.residual) * donor.soft
    np.copyto(label, donor.classes, where=donor.classes > 0)


def _turned_sizes(size: Sequence[int], spacing_mm: Sequence[float]) -> list[Sequence[int]]:
    """Sizes that a donor's box can have in a patch."""
    i, j, k = size
    return [(i, j, k), (j, i, k)] if _transposable(spacing_mm) else [(i, j, k)]


def _fits(size: Sequence[int], patch_size: Sequence[int]) -> bool:
    return all(n <= length for n, length in zip(size, patch_size, strict=True))


def _transposable(spacing_mm: Sequence[float]) -> bool:
    return _alike(spacing_mm[:1], spacing_mm[1:2])


def _alike(first: Sequence[float], second: Sequence[float]) -> bool:
    """Whether spacings agree along each axis."""
    return all(abs(a - b) <= SPACING_TOLERANCE * a for a, b in zip(first, second, strict=True))
