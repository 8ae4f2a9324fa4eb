"""What a training case teaches: a label, shares of the classes, or one reader's marks at a time, and voxel weights."""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medfocal.annotations.agreement import reader_agreement
from medfocal.annotations.fusion import Fusion, intersection, majority, mean_shares, staple, union
from medfocal.annotations.smoothing import NoSmoothing
from medfocal.errors import DatasetError
from medfocal.volume import spacing_of

#: Makes shares (C, I, J, K) of a label: a class of `medfocal.annotations.smoothing`.
Smoothing = Callable[..., NDArray[np.float32]]

#: Fusions that give a label.
HARD_FUSIONS = {Fusion.MAJORITY: majority, Fusion.UNION: union, Fusion.INTERSECTION: intersection}


class Disagreement(enum.StrEnum):
    """What becomes of voxels on which the readers of a case disagree.

    keep: They count as any other.
    weight: Each voxel counts by the share of the readers who gave it its most frequent class.
    ignore: They do not count.
    """

    KEEP = "keep"
    WEIGHT = "weight"
    IGNORE = "ignore"

    @classmethod
    def _missing_(cls, value: object) -> None:
        message = f"disagreement must be one of {', '.join(cls)}, got {value!r}"
        raise ValueError(message)


@dataclass(frozen=True, kw_only=True)
class AnnotationSettings:
    """Who is believed about the training cases; `conf/annotations/` states each.

    Args:
        fusion: How the readers of a case become one target; "reference" believes `label` and no reader.
        disagreement: What becomes of voxels on which the readers disagree, whatever the fusion.
        estimate_smoothing: Whether the readers' error rates, estimated over all training cases, become the loss's
            `label_smoothing`.
        weights: Folder of voxel weights, `<case>_weight.nii.gz`, such as `medfocal suspect` writes, or None. Cases
            without a file weigh 1 everywhere.

    Raises:
        ValueError: A choice does not exist, or smoothing cannot be estimated for the fusion.
    """

    fusion: Fusion = Fusion.REFERENCE
    disagreement: Disagreement = Disagreement.KEEP
    estimate_smoothing: bool = False
    weights: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "fusion", Fusion(self.fusion))
        object.__setattr__(self, "disagreement", Disagreement(self.disagreement))
        soft = "which is soft already"
        why = {Fusion.REFERENCE: "which is not made of the readers' marks", Fusion.MEAN: soft, Fusion.STAPLE: soft}
        if self.estimate_smoothing and self.fusion in why:
            message = (
                f"estimate_smoothing=true does not go with fusion='{self.fusion}', {why[self.fusion]}; "
                "choose random, majority, union or intersection"
            )
            raise ValueError(message)

    @property
    def uses_readers(self) -> bool:
        """Whether the annotations of training cases are read."""
        return self.fusion is not Fusion.REFERENCE or self.disagreement is not Disagreement.KEEP


@dataclass(frozen=True, eq=False)
class Target:
    """What one training case teaches, on the network's grid.

    Attributes:
        lesions: Classes, uint8 `(I, J, K)`: lesions that patches are centred on and that transplants leave alone. Those
            of the label, or of any reader where each reader's opinion counts.
        alternatives: One target, or one of each reader of which an epoch takes one. Each is classes, uint8
            `(I, J, K)`, or shares of the lesion classes, float16 `(T, I, J, K)`, whose rest is the background's.
        weight: Of each voxel, float32 `(I, J, K)`, or None: 1.
        record: What is worth an entry in the run folder.
    """

    lesions: NDArray[np.uint8]
    alternatives: tuple[NDArray[Any], ...]
    weight: NDArray[np.float32] | None = None
    record: dict[str, Any] = field(default_factory=dict)

    @property
    def is_soft(self) -> bool:
        """Whether the alternatives are shares."""
        return self.alternatives[0].ndim == 4


def as_shares(taught: NDArray[Any], membership: NDArray[np.float32]) -> NDArray[np.float32]:
    """Turn an alternative of a `Target`, or a patch of one, into shares of what the network tells apart.

    Args:
        taught: Classes `(I, J, K)`, or shares of the lesion classes `(K, I, J, K)`.
        membership: Share of each class, the background first, in each of the `T` outputs, `(classes, T)`: the identity
            without its first column where outputs are classes, 0 and 1 where they are regions.

    Returns:
        `(T, I, J, K)`.
    """
    if taught.ndim == 3:
        return np.ascontiguousarray(np.take(membership.T, taught, axis=1))
    shares = np.asarray(taught, np.float32)
    of_lesions = membership[1:]
    if np.array_equal(of_lesions, np.eye(len(of_lesions))):
        return shares
    return np.asarray(np.einsum("kt,kxyz->txyz", of_lesions, shares), np.float32)


def make_target(
    case: str,
    *,
    reference: NDArray[Any] | None,
    readers: NDArray[Any] | None,
    settings: AnnotationSettings,
    smoothing: Smoothing,
    num_classes: int,
    affine: NDArray[np.float64],
    image: NDArray[np.float32],
    weight: NDArray[np.float32] | None = None,
) -> Target:
    """Make the target of a training case.

    Where readers are averaged or drawn, each one's marks are smoothed for themselves. A case without annotations is
    taught by its reference, as if that were its only reader, and its record says so.

    Args:
        case: Its name, for messages.
        reference: Classes `(I, J, K)` or None.
        readers: Classes, integers `(R, I, J, K)`; or shares of the one lesion class, floats; or None.
        settings: Who is believed.
        smoothing: Of what was drawn.
        num_classes: With the background.
        affine: Of the grid.
        image: As the network sees it, `(C, I, J, K)`.
        weight: Given voxel weights `(I, J, K)`, or None; multiplied with those of the disagreement.

    Raises:
        DatasetError: The case has nothing that the fusion could use, or shares are to be smoothed.
    """
    record: dict[str, Any] = {"case": case}

    def finished(label: NDArray[np.uint8]) -> NDArray[Any]:
        if isinstance(smoothing, NoSmoothing):
            return label
        return _stored(smoothing(label, num_classes=num_classes, spacing_mm=spacing_of(affine), image=image))

    if readers is not None:
        marks = as_marks(readers)
        record |= {"num_readers": len(marks), "agreement": [asdict(pair) for pair in reader_agreement(marks, affine)]}
        weight = _weighted(marks, settings.disagreement, num_classes, weight)
        if settings.fusion is not Fusion.REFERENCE:
            if readers.dtype.kind == "f" and not isinstance(smoothing, NoSmoothing):
                message = (
                    f"case '{case}': a reader gave shares between 0 and 1, which cannot be smoothed as marks can. "
                    "Set smoothing=none, or give whole classes."
                )
                raise DatasetError(message)
            lesions, alternatives = _fused(readers, settings.fusion, finished, num_classes, record)
            return Target(lesions, alternatives, weight, record)
    if reference is None:
        message = (
            f"case '{case}' has no 'label', and its annotations are not used. Choose annotations=majority or another "
            "fusion, or name a label in the dataset file."
        )
        raise DatasetError(message)
    if settings.fusion is not Fusion.REFERENCE:
        record |= {"num_readers": 0, "problem": "it has no annotations; its label is taken for the only reader's"}
    label = reference.astype(np.uint8)
    return Target(label, (finished(label),), weight, record)


def _fused(
    readers: NDArray[Any],
    fusion: Fusion,
    finished: Callable[[NDArray[np.uint8]], NDArray[Any]],
    num_classes: int,
    record: dict[str, Any],
) -> tuple[NDArray[np.uint8], tuple[NDArray[Any], ...]]:
    """Lesions and alternatives of a `Target` made of the readers; what STAPLE estimated goes into the record."""
    marks = as_marks(readers)
    if fusion in HARD_FUSIONS:
        label = HARD_FUSIONS[fusion](marks, num_classes=num_classes)
        return label, (finished(label),)
    if fusion is Fusion.STAPLE:
        found = staple(marks, num_classes=num_classes)
        rates = {"sensitivity": found.sensitivity.tolist(), "specificity": found.specificity.tolist()}
        record["staple"] = {**rates, "num_iterations": found.num_iterations}
        if found.problem is not None:
            record["problem"] = found.problem
        label = found.shares.argmax(axis=0).astype(np.uint8)
        smoothed = finished(label)
        return label, (_stored(found.shares) if smoothed is label else smoothed,)
    lesions = union(marks, num_classes=num_classes)
    if readers.dtype.kind == "f":
        each: list[NDArray[Any]] = [_stored(np.stack([1 - shares, shares])) for shares in readers]
    else:
        each = [finished(label) for label in marks]
    if fusion is Fusion.RANDOM or len(each) == 1:
        return lesions, tuple(each)
    if each[0].ndim == 3:
        return lesions, (_stored(mean_shares(marks, num_classes=num_classes)),)
    mean = np.mean([shares.astype(np.float32) for shares in each], axis=0)
    return lesions, (mean.astype(np.float16),)


def fused_label(readers: NDArray[Any], fusion: Fusion, *, num_classes: int) -> NDArray[np.uint8]:
    """The label by which a case without a reference is evaluated: the majority where the fusion gives no label.

    Args:
        readers: As those of `make_target`, `(R, I, J, K)`.
        fusion: Of the training cases.
        num_classes: With the background.
    """
    marks = as_marks(readers)
    if fusion is Fusion.STAPLE:
        return np.asarray(staple(marks, num_classes=num_classes).shares.argmax(axis=0), np.uint8)
    return HARD_FUSIONS.get(fusion, majority)(marks, num_classes=num_classes)


def as_marks(readers: NDArray[Any]) -> NDArray[np.uint8]:
    """Classes of each reader; a share counts as a mark from one half on."""
    marks = readers >= 0.5 if readers.dtype.kind == "f" else readers
    return np.asarray(marks, np.uint8)


def _stored(shares: NDArray[Any]) -> NDArray[np.float16]:
    """Shares of the lesion classes: near 0, where most voxels are, half precision still keeps three digits."""
    return shares[1:].astype(np.float16)


def _weighted(
    marks: NDArray[np.uint8], disagreement: Disagreement, num_classes: int, weight: NDArray[np.float32] | None
) -> NDArray[np.float32] | None:
    """Given weights times those of the disagreement."""
    if disagreement is Disagreement.KEEP or len(marks) == 1:
        return weight
    if disagreement is Disagreement.IGNORE:
        agreed = (marks == marks[0]).all(axis=0)
    else:
        agreed = np.max([(marks == c).mean(axis=0) for c in range(num_classes)], axis=0)
    return np.asarray(agreed if weight is None else agreed * weight, np.float32)
