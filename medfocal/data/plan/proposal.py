"""From a fingerprint to proposals: each value with its reason in words."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medfocal.data.plan.fingerprint import ChannelFingerprint, Fingerprint
from medfocal.data.plan.patch import Budget, Means, PatchPlan, plan_patch

#: Words of a channel's name that say what it is.
CT_WORDS = frozenset({"CT", "CTA", "CECT", "NCCT", "CBCT", "HU"})
OTHER_WORDS = frozenset(
    {"MR", "MRI", "T1", "T1W", "T1C", "T1CE", "T1GD", "T2", "T2W", "FLAIR", "DWI", "ADC", "PET", "SUV"}
)
#: The orientation that every case is turned to.
ORIENTATION = "RAS"
#: Spacings of one case that differ by this factor are anisotropic (nnU-Net).
ANISOTROPY = 3.0
#: Spacings within this share of each other are the same.
SAME_SPACING = 0.01
#: Voxels across the diameter of a lesion that is still to be seen.
VOXELS_ACROSS = 2.0
#: Lesions of fewer voxels are taken for specks that no reader stands for.
SPECK_VOXELS = 3
#: Fewer of the lesions than this share may be specks without being left out.
SPECK_SHARE = 0.05
#: From this share of lesion voxels on, patches hold lesions wherever they are cut.
COMMON_SHARE = 0.05
#: Epochs and steps of each.
LENGTHS = {Budget.QUICK: (10, 100), Budget.STANDARD: (100, 250)}
VALIDATE_EVERY = 5
#: Fewer visits than these in a whole training teach little about a lesion.
FEW_VISITS = 20
MOST_FOLDS = 5
#: Of a lesion's voxels outside percentiles 0.5 to 99.5, from which on clipping is worth a word.
MUCH_CLIPPED = 0.25


@dataclass(frozen=True)
class Proposal:
    """A value for a setting of `medfocal train`.

    Attributes:
        key: Such as "sampling.patch_size".
        value: Plain.
        reason: In words, with the figures it rests on.
    """

    key: str
    value: Any
    reason: str


@dataclass(frozen=True)
class Plan:
    """What is proposed.

    Attributes:
        proposals: In the order of the configuration.
        notes: What to know that no setting says, and what could not be proposed.
        patch: What goes through the network at once.
        cache_gb: Disk for prepared cases.
        num_folds: Folds for cross-validation, None where fewer than two patients have a lesion.
        num_validation_windows: Windows over all validation cases, or over a fold of them where folds are proposed.
        activation: Of the logits: "sigmoid" for regions, else "softmax".
        out_channels: Of the logits.
    """

    proposals: tuple[Proposal, ...]
    notes: tuple[str, ...]
    patch: PatchPlan
    cache_gb: float
    num_folds: int | None
    num_validation_windows: int
    activation: str
    out_channels: int

    def value(self, key: str) -> Any:
        """Of a proposal.

        Raises:
            KeyError: It was not proposed.
        """
        return {proposal.key: proposal.value for proposal in self.proposals}[key]


@dataclass(frozen=True)
class _Grids:
    """Grids of all cases along the axes of `ORIENTATION`, `(n, 3)` each."""

    spacing_mm: NDArray[np.float64]
    shape: NDArray[np.float64]
    body: NDArray[np.float64]


def propose(fingerprint: Fingerprint, means: Means) -> Plan:
    """Propose settings for a dataset and the means there are.

    Args:
        fingerprint: Of the dataset; without images what they alone tell is left out and said so.
        means: Memory, device and time.

    Returns:
        The plan.

    Raises:
        ConfigError: The memory is too small for any patch.
    """
    grids = _grids(fingerprint)
    spacing, spacing_mm = _propose_spacing(fingerprint, grids)
    on_network = grids.spacing_mm / np.array(spacing_mm)
    body = np.median(grids.body * on_network, axis=0)
    num_channels = max(1, len(fingerprint.channels))
    activation, out_channels = _outputs(fingerprint)
    patch = plan_patch(body, spacing_mm, means, in_channels=num_channels, out_channels=out_channels)
    intensity = [_propose_intensity(fingerprint)] if fingerprint.has_images else []
    folds = _num_folds(fingerprint)
    is_split = any(case.split == "validation" for case in fingerprint.cases)
    made = None if is_split else folds
    proposals = [
        *([] if made is None else _propose_folds(fingerprint, made)),
        _propose_orientation(fingerprint),
        spacing,
        *intensity,
        *_propose_annotations(fingerprint),
        *_propose_patch(fingerprint, patch, body, means),
        *_propose_network(patch, spacing_mm),
        *_propose_loss(fingerprint),
        *_propose_length(fingerprint, patch, means, made),
        _propose_least_lesion(fingerprint),
    ]
    # As preprocessing does it: the first voxel stays, and the last is the nearest to the old one.
    shapes = grids.shape if spacing.value is None else np.floor((grids.shape - 1) * on_network + 0.5) + 1
    windows = [_num_windows(shape, patch.window_size) for shape in grids.shape * on_network]
    validated = [n for n, case in zip(windows, fingerprint.cases, strict=True) if case.split == "validation"]
    plan = Plan(
        proposals=tuple(proposals),
        notes=(),  # they speak of the plan
        patch=patch,
        cache_gb=float(np.prod(shapes, axis=1).sum()) * (2 * num_channels + 1) / 1e9,
        num_folds=folds,
        num_validation_windows=sum(validated) if made is None else math.ceil(sum(windows) / made),
        activation=activation,
        out_channels=out_channels,
    )
    return replace(plan, notes=tuple(_notes(fingerprint, plan, means)))


def _grids(fingerprint: Fingerprint) -> _Grids:
    def along(name: str) -> NDArray[np.float64]:
        return np.array([case.along(ORIENTATION, getattr(case, name)) for case in fingerprint.cases], float)

    return _Grids(along("spacing_mm"), along("shape"), along("body_shape"))


def _propose_orientation(fingerprint: Fingerprint) -> Proposal:
    found = Counter(case.orientation for case in fingerprint.cases)
    listed = ", ".join(f"{count} {name}" for name, count in found.most_common())
    reason = f"every case is turned to it; the files are {listed}. The values per axis below are in this order."
    return Proposal("transforms.orientation", ORIENTATION, reason)


def _propose_spacing(fingerprint: Fingerprint, grids: _Grids) -> tuple[Proposal, tuple[float, float, float]]:
    """The proposal, and the spacing that the network will see (of most cases, where each keeps its own)."""
    median = np.median(grids.spacing_mm, axis=0)
    key, n = "transforms.spacing_mm", len(grids.spacing_mm)
    if (np.abs(grids.spacing_mm - median) <= SAME_SPACING * median).all():
        who = "the only case has" if n == 1 else f"all {n} cases share"
        reason = f"{who} {_mm(median)} mm; resampling would only blur"
        return Proposal(key, None, reason), _floats(median)
    chosen = median.copy()
    low, high = (_mm(of(grids.spacing_mm, axis=0)) for of in (np.min, np.max))
    reasons = [f"the median of {n} cases, which range from {low} to {high} mm"]
    coarse = int(np.argmax(median))
    others = float(np.delete(median, coarse).max())
    if median[coarse] >= ANISOTROPY * others:
        chosen[coarse] = max(float(np.percentile(grids.spacing_mm[:, coarse], 10)), others)
        reasons.append(
            f"axis {ORIENTATION[coarse]} is {median[coarse] / others:.1f} times as coarse as the next, so there the "
            f"10th percentile is taken, {chosen[coarse]:.3g} mm, as nnU-Net does"
        )
    if fingerprint.lesions:
        chosen, reason = _fine_enough(chosen, fingerprint, grids)
        reasons.append(reason)
    chosen = np.array([float(f"{value:.3g}") for value in chosen])
    return Proposal(key, list(_floats(chosen)), "; ".join(reasons)), _floats(chosen)


def _fine_enough(
    spacing_mm: NDArray[np.float64], fingerprint: Fingerprint, grids: _Grids
) -> tuple[NDArray[np.float64], str]:
    """A spacing that small lesions allow, and why."""
    small = float(np.percentile([lesion.diameter_mm for lesion in fingerprint.lesions], 10))
    limit = np.maximum(small / VOXELS_ACROSS, np.percentile(grids.spacing_mm, 10, axis=0))
    if (spacing_mm <= limit).all():
        return spacing_mm, f"a lesion of the 10th size percentile, {small:.3g} mm across, allows it"
    finer = np.minimum(spacing_mm, limit)
    return finer, (
        f"made finer, to {_mm(finer)} mm, because one lesion in ten is no more than {small:.3g} mm across and should "
        f"have {VOXELS_ACROSS:g} voxels there (but no finer than the finest tenth of the cases)"
    )


def _is_ct(name: str, of_cases: Sequence[ChannelFingerprint]) -> bool:
    """By the words of its name; where none of them says a modality, by its values."""
    words = set(re.split(r"[^A-Z0-9]+", name.upper()))
    if words & CT_WORDS or words & OTHER_WORDS:
        return bool(words & CT_WORDS)
    return float(np.mean([channel.is_hounsfield for channel in of_cases])) > 0.5


def _propose_intensity(fingerprint: Fingerprint) -> Proposal:
    key = "transforms.intensity"
    channels = list(zip(*(case.channels for case in fingerprint.cases), strict=True))
    ct = [name for name, of_cases in zip(fingerprint.channels, channels, strict=True) if _is_ct(name, of_cases)]
    if ct:
        reason = (
            f"{_listed(ct)} {'is' if len(ct) == 1 else 'are'} CT by name, or by air below 0 in whole numbers: clipped "
            "to percentiles 0.5 and 99.5, then scaled over all voxels"
        )
        if len(ct) < len(channels):
            reason += "; it holds for the other channels as well, as there is one scheme for all"
        clipped = [
            c.clipped_lesion_share for of_cases in channels for c in of_cases if c.clipped_lesion_share is not None
        ]
        if clipped and np.mean(clipped) > MUCH_CLIPPED:
            reason += (
                f". On average {np.mean(clipped):.0%} of a lesion's voxels lie outside these percentiles: look at it"
            )
        return Proposal(key, "percentile_zscore", reason)
    zeros = float(np.mean([channel.zero_share for of_cases in channels for channel in of_cases]))
    reason = (
        f"no CT: mean 0 and standard deviation 1 over the voxels that are not 0 ({zeros:.0%} are), per case and channel"
    )
    if any("PET" in name.upper() or "SUV" in name.upper() for name in fingerprint.channels):
        reason += ". It gives up the absolute scale of SUV; transforms.intensity=none would keep it"
    return Proposal(key, "zscore_nonzero", reason)


def _propose_patch(
    fingerprint: Fingerprint, plan: PatchPlan, body: NDArray[np.float64], means: Means
) -> list[Proposal]:
    why = {
        "body": "as large as the body of the median case, rounded down",
        "memory": f"more would not fit {means.memory_gb:.3g} GB",
        "time": f"more would make steps slow on a {means.device}",
    }[plan.is_bound_by]
    reason = f"as cubic in mm as the body allows ({' x '.join(f'{n:.0f}' for n in body)} voxels at the median); {why}"
    known = "measured steps took 0.7 to 1.25 times as much" if means.device == "cpu" else "not measured on a GPU"
    memory = f"a training step of it is calculated at {plan.memory_gb:.2g} GB, the process included; {known}"
    share = fingerprint.lesion_share
    fraction = 0.5 if share < COMMON_SHARE else 0.33
    sample = (
        f"{len(fingerprint.lesions)} lesions fill {share:.2g} of the voxels; half of the patches hold one for certain, "
        "which did no harm and some good in docs/benchmarks/quickstart-cpu.md"
        if fraction == 0.5
        else f"lesions fill {share:.2g} of the voxels, so that patches hold some anywhere; a third, as in nnU-Net"
    )
    return [
        Proposal("sampling.patch_size", list(plan.patch_size), reason),
        Proposal("sampling.lesion_fraction", fraction, sample),
        Proposal("trainer.batch_size", plan.batch_size, memory),
        Proposal(
            "trainer.window_size",
            list(plan.window_size),
            "of the window over whole cases: up to twice the patch, where less is computed twice",
        ),
    ]


def _propose_network(plan: PatchPlan, spacing_mm: Sequence[float]) -> list[Proposal]:
    levels = plan.levels
    flat = [ORIENTATION[axis] for axis in range(3) if levels.kernel_sizes[0][axis] == 1]
    unequal = (
        f"{_listed(flat)} is not convolved or halved until its spacing is within a factor 2 of the others "
        f"({_mm(spacing_mm)} mm at full resolution), as in nnU-Net"
        if flat
        else f"all axes at {_mm(spacing_mm)} mm are within a factor 2, so kernels are 3 everywhere"
    )
    return [
        Proposal(
            "network.channels",
            list(levels.channels),
            f"{len(levels.channels)} levels: the patch is halved while 4 voxels remain along an axis",
        ),
        Proposal("network.kernel_sizes", [list(kernel) for kernel in levels.kernel_sizes], unequal),
        Proposal("network.strides", [list(stride) for stride in levels.strides], "the same rule, into each level"),
    ]


def _outputs(fingerprint: Fingerprint) -> tuple[str, int]:
    """Activation and number of the logits' channels: regions have no background among them."""
    if fingerprint.regions:
        return "sigmoid", len(fingerprint.regions)
    return "softmax", len(fingerprint.labels)


def _propose_annotations(fingerprint: Fingerprint) -> list[Proposal]:
    training = [case for case in fingerprint.cases if case.split == "training"]
    without = sum(not case.has_label for case in training)
    if not without:
        return []
    reason = (
        f"{without} of {len(training)} training cases have annotations and no label. Their lesions were measured as "
        "what most readers marked, so that is what is learnt; annotations=staple and others take its place"
    )
    if without < len(training):
        reason += ". Labelled cases that have annotations are learnt from these as well, though measured by the label"
    return [Proposal("annotations.fusion", "majority", reason)]


def _propose_activation(fingerprint: Fingerprint) -> list[Proposal]:
    if not fingerprint.regions:
        return []
    reason = (
        f"the regions {_listed(list(fingerprint.regions))} may share voxels, so each is an output of its own; the "
        "classes of a softmax exclude each other"
    )
    return [Proposal("loss.activation", "sigmoid", reason)]


def _propose_alpha(fingerprint: Fingerprint) -> Proposal:
    """One number where it weighs two classes; else one for each output, the background of a softmax first."""
    share = fingerprint.lesion_share
    is_rare = share < COMMON_SHARE
    weight = 0.75 if is_rare else 0.5
    reason = "the weight that the figures above were measured with; no other was compared"
    if not is_rare:
        reason = f"equal weights: at {share:.2g} of the voxels there is little rarity to make up for; not measured"
    activation, out_channels = _outputs(fingerprint)
    if activation == "softmax" and out_channels == 2:
        return Proposal("loss.alpha", weight, reason)
    weights = [weight] * out_channels
    if activation == "softmax":
        weights[0] = 1 - weight
    names = _listed(list(fingerprint.regions) or [name for _, name in sorted(fingerprint.labels.items())])
    reason = f"of {names}, as one lesion class would have: {reason}"
    return Proposal("loss.alpha", weights, reason)


def _propose_loss(fingerprint: Fingerprint) -> list[Proposal]:
    share = fingerprint.lesion_share
    gamma = (
        "gamma 1 with the prior bias found as many lesions as cross-entropy with it (0.93 and 0.93 at one false "
        "positive per case; 20 lesions of phantoms, 3 seeds: docs/benchmarks/quickstart-cpu.md). Nothing measured says "
        "what is best at the share of lesions here"
    )
    if fingerprint.num_readers > 1:
        gamma += ". Where readers disagree, a larger gamma makes more of the voxels that are labelled wrongly"
    bias = (
        f"at {share:.2g} lesion voxels a network that starts at one half spends its first steps on learning 'no "
        "lesion'; without it cross-entropy found 0.82 in place of 0.93 in the same table"
    )
    return [
        Proposal("loss.gamma", 1.0, gamma),
        _propose_alpha(fingerprint),
        *_propose_activation(fingerprint),
        Proposal("trainer.prior_bias", value=True, reason=bias),
    ]


def _propose_folds(fingerprint: Fingerprint, folds: int) -> list[Proposal]:
    patients = len(fingerprint.patients_with_lesions)
    reason = (
        f"no case is for validation, so the kept epoch and the operating point would be chosen by nothing; {patients} "
        f"patients have lesions, up to {MOST_FOLDS} folds are made"
    )
    return [
        Proposal("data.num_folds", folds, reason),
        Proposal("fold", 0, f"the one that validates; the last is fold={folds - 1}"),
    ]


def _propose_length(fingerprint: Fingerprint, plan: PatchPlan, means: Means, folds: int | None) -> list[Proposal]:
    epochs, steps = LENGTHS[means.budget]
    reason = f"budget={means.budget}"
    num_lesions = sum(len(case.lesions) for case in fingerprint.cases if case.split == "training")
    num_lesions -= 0 if folds is None else round(num_lesions / folds)  # those of the fold that validates
    if num_lesions:
        fraction = 0.5 if fingerprint.lesion_share < COMMON_SHARE else 0.33
        visits = epochs * steps * plan.batch_size * fraction / num_lesions
        reason += f"; each of {num_lesions} training lesions is then centred about {visits:.0f} times"
        reason += ", which is few: take more epochs" if visits < FEW_VISITS else ""
    return [
        Proposal("trainer.max_epochs", epochs, reason),
        Proposal("trainer.steps_per_epoch", steps, f"budget={means.budget}"),
        Proposal("trainer.validate_every", VALIDATE_EVERY, "epochs; validating takes time from learning"),
    ]


def _propose_least_lesion(fingerprint: Fingerprint) -> Proposal:
    lesions, key = fingerprint.lesions, "evaluate.min_volume_mm3"
    voxel = float(np.median([np.prod(case.spacing_mm) for case in fingerprint.cases]))
    specks = [lesion for lesion in lesions if lesion.num_voxels < SPECK_VOXELS]
    few = f"{len(specks)} of {len(lesions)} lesions have fewer than {SPECK_VOXELS} voxels"
    if len(specks) < SPECK_SHARE * len(lesions) or not specks:
        return Proposal(key, 0.0, f"{few}, so every one counts")
    least = float(f"{(SPECK_VOXELS - 0.5) * voxel:.3g}")
    left_out = sum(lesion.volume_mm3 < least for lesion in lesions)
    if 2 * left_out > len(lesions):
        return Proposal(key, 0.0, f"{few}; that is most of them, so they count. Are they lesions?")
    reason = (
        f"{few}, which may be specks of drawing; the {left_out} below this volume count as neither found nor missed. "
        "0 counts all"
    )
    return Proposal(key, least, reason)


def _num_folds(fingerprint: Fingerprint) -> int | None:
    found = min(MOST_FOLDS, len(fingerprint.patients_with_lesions))
    return found if found >= 2 else None


def _num_windows(shape: NDArray[np.float64], window: Sequence[int]) -> int:
    """Windows that overlap by half."""
    return math.prod(max(1, math.ceil(2 * n / size) - 1) for n, size in zip(shape, window, strict=True))


def _notes(fingerprint: Fingerprint, plan: Plan, means: Means) -> list[str]:
    lesions, cases, patch = fingerprint.lesions, fingerprint.cases, plan.patch
    notes = []
    if not fingerprint.has_images:
        notes.append(
            "some cases have no image, so transforms.intensity is not proposed and nothing is said of contrast"
        )
    if not lesions:
        notes.append("no lesion in the measured cases: nothing can be learnt from them")
    free = fingerprint.num_free_cases
    if free and lesions:
        notes.append(f"{free} of {len(cases)} cases have no lesion; patches of them teach what none looks like")
    absent = [name for name, voxels in fingerprint.label_voxels.items() if not voxels]
    if absent:
        notes.append(f"{_listed(absent)} does not occur in any measured case")
    spacing = plan.value("transforms.spacing_mm") or np.median(_grids(fingerprint).spacing_mm, axis=0)
    size_mm = np.array(patch.patch_size) * np.array(spacing)
    longer = sum(bool((np.array(lesion.extent_mm) > size_mm).any()) for lesion in lesions)
    if longer:
        notes.append(
            f"{longer} of {len(lesions)} lesions are longer than the patch, {_mm(size_mm)} mm, along some axis"
        )
    contrasts = [
        max(abs(c) for c in lesion.contrast if c is not None)
        for lesion in lesions
        if any(c is not None for c in lesion.contrast)
    ]
    faint = sum(contrast < 1 for contrast in contrasts)
    if faint:
        notes.append(
            f"{faint} of {len(contrasts)} lesions differ from the tissue around by less than 1 SD in any channel"
        )
    folds = plan.num_folds
    patients = len(fingerprint.patients_with_lesions)
    notes.append(
        f"{patients} {'patient has' if patients == 1 else 'patients have'} lesions: "
        + (f"{folds} folds by patient for cross-validation" if folds else "too few for cross-validation")
    )
    notes.append(
        f"a cache of the prepared cases takes about {plan.cache_gb:.2g} GB (whole volumes, float16 images, labels of a "
        "byte)"
    )
    if means.device != "cpu":
        notes.append("the memory for a GPU is calculated by the same formula as for a CPU, where it was measured")
    return notes


def _mm(values: Sequence[float] | NDArray[np.float64]) -> str:
    return " x ".join(f"{value:.3g}" for value in values)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)


def _floats(values: NDArray[np.float64]) -> tuple[float, float, float]:
    first, second, third = (float(value) for value in values)
    return first, second, third
