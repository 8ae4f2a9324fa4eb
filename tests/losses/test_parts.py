"""A batch computed in parts has the loss and the gradient of the whole batch."""

from __future__ import annotations

import functools
import inspect
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from medfocal import config, losses
from medfocal.losses import (
    BlobDiceLoss,
    DiceCrossEntropyLoss,
    DiceFocalLoss,
    DiceLoss,
    FocalLoss,
    MarginFocalLoss,
    TrainingLoss,
    TrimmedLoss,
    TverskyFocalLoss,
)

IGNORED = 255
SHAPE = (7, 6, 5)
SPLITS = {"1 + 3": [1, 3], "2 + 2": [2, 2], "1 + 1 + 1 + 1": [1, 1, 1, 1]}
NAMES = sorted(path.stem for path in Path(config.conf_directory(), "loss").glob("*.yaml"))

in_splits = pytest.mark.parametrize("split", SPLITS.values(), ids=SPLITS)
both_activations = pytest.mark.parametrize("activation", ["softmax", "sigmoid"])


@functools.cache
def stated(name):
    """The class and the values of a file in conf/loss."""
    values = OmegaConf.to_container(config.compose("train", [f"loss={name}"]).loss, resolve=True)
    return getattr(losses, values.pop("_target_").rpartition(".")[2]), values


def lesions():
    """A large lesion; none, and a slab ignored; two small lesions and a slab ignored; two lesions."""
    labels = torch.zeros(4, *SHAPE, dtype=torch.uint8)
    labels[0, 1:5, 1:5, 1:4] = 1
    labels[2, 0, 0, 0] = labels[2, 3:5, 3, 2] = 1
    labels[3, 0, :2, 1] = labels[3, 4:, 3:5, 2:4] = 1
    labels[1, :2] = labels[2, 5] = IGNORED
    return labels


def example(activation, *, soft=False, weighted=True, dtype=torch.float64, num_classes=2):
    generator = torch.Generator().manual_seed(11)
    num_channels = num_classes if activation == "softmax" else num_classes - 1
    logits = 2.0 * torch.randn(4, num_channels, *SHAPE, generator=generator, dtype=dtype)
    weight = torch.rand(4, *SHAPE, generator=generator) if weighted else None
    target = lesions()
    if num_classes > 2:
        target[3][target[3] == 1] = 2
    if soft:
        marked = torch.where(target == IGNORED, 0, target).long()
        hard = torch.nn.functional.one_hot(marked, num_classes).movedim(-1, 1).float()
        hard = hard if activation == "softmax" else hard[:, 1:]
        share = torch.rand(4, 1, *SHAPE, generator=generator)
        target = share * hard + (1 - share) * hard.roll(1, dims=2)  # still nowhere anything in the second case
    return logits, target, weight


def of_whole(loss, logits, target, weight):
    logits = logits.clone().requires_grad_()
    value = loss(logits, target, weight)
    return value.detach(), *torch.autograd.grad(value, logits)


def of_parts(loss, logits, target, weight, split):
    weights = [None] * len(split) if weight is None else weight.split(split)
    parts = list(zip(logits.split(split), target.split(split), weights, strict=True))
    whole = sum(loss.part_sizes(of_target, of_weight) for _, of_target, of_weight in parts)
    value, gradients = 0.0, []
    for of_logits, of_target, of_weight in parts:
        leaf = of_logits.clone().requires_grad_()
        of_part = loss(leaf, of_target, of_weight, whole=whole)
        gradients += torch.autograd.grad(of_part, leaf)
        value = value + of_part.detach()
    return value, torch.cat(gradients)


def assert_same(loss, logits, target, weight, split):
    value, gradient = of_parts(loss, logits, target, weight, split)
    expected, of_expected = of_whole(loss, logits, target, weight)
    assert of_expected.abs().max() > 0
    tolerance = 1e-6  # weights and sizes of labels are summed in fp32 by the loss of the whole batch
    torch.testing.assert_close(value, expected, rtol=tolerance, atol=0.0)
    torch.testing.assert_close(gradient, of_expected, rtol=tolerance, atol=tolerance * float(of_expected.abs().max()))


@pytest.mark.parametrize("name", [name for name in NAMES if name != "trimmed_focal"])  # which refuses parts
@both_activations
@in_splits
@pytest.mark.parametrize("weighted", [False, True], ids=["unweighted", "weighted"])
@pytest.mark.parametrize("soft", [False, True], ids=["labels", "soft"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_parts_add_up_to_the_batch(name, activation, split, weighted, soft, dtype):
    kind, values = stated(name)
    values = {**values, "activation": activation, "ignore_index": None if soft else IGNORED}
    if "batch_dice" in values:
        values["batch_dice"] = False
    assert_same(kind(**values), *example(activation, soft=soft, weighted=weighted, dtype=dtype), split)


def test_parts_of_every_file_are_tried_or_refused():
    refused = {name for name in NAMES if stated(name)[0](**stated(name)[1]).why_not_split is not None}
    pooled = {name for name in NAMES if stated(name)[1].get("batch_dice")}
    assert refused == pooled | {"trimmed_focal"}
    assert len(NAMES) == 15


@pytest.mark.parametrize("kind", [FocalLoss, DiceFocalLoss, TverskyFocalLoss])
@pytest.mark.parametrize("normalize", ["voxels", "positives", "weight"])
@pytest.mark.parametrize("alpha", [None, (1.0, 3.0, 0.5), (0.7, 0.2)], ids=str)
@pytest.mark.parametrize("soft", [False, True], ids=["labels", "soft"])
@in_splits
def test_parts_add_up_for_each_normalisation_and_several_classes(kind, normalize, alpha, soft, split):
    activations = {3: ["softmax"], 2: ["sigmoid"]}.get(0 if alpha is None else len(alpha), ["softmax", "sigmoid"])
    for activation in activations:
        loss = kind(normalize=normalize, alpha=alpha, activation=activation, ignore_index=None if soft else IGNORED)
        assert_same(loss, *example(activation, soft=soft, num_classes=3), split)


@pytest.mark.parametrize("normalize", ["voxels", "positives", "weight"])
@pytest.mark.parametrize("meaning", ["quality", "mixture"])
@both_activations
def test_parts_add_up_for_each_meaning_of_soft_targets(normalize, meaning, activation):
    loss = FocalLoss(normalize=normalize, soft=meaning, activation=activation)
    assert_same(loss, *example(activation, soft=True), [1, 3])


@both_activations
def test_parts_add_up_where_logits_pass_the_margin(activation):
    loss = MarginFocalLoss(margin=0.5, activation=activation, ignore_index=IGNORED)
    assert_same(loss, *example(activation), [1, 3])


def test_parts_add_up_without_the_term_of_the_background():
    loss = FocalLoss(normalize="weight", include_background=False, ignore_index=IGNORED)
    assert_same(loss, *example("softmax"), [1, 3])


@pytest.mark.parametrize("share", [0.001, 0.01])
@pytest.mark.parametrize("kind", [FocalLoss, DiceFocalLoss])
def test_positives_are_raised_to_1_in_the_batch_and_not_in_its_parts(kind, share):
    """Of 4 cases with 210 voxels each: 0.84 positives in all, or 2.1 in each."""
    logits, _, _ = example("sigmoid")
    assert_same(kind(normalize="positives", activation="sigmoid"), logits, torch.full_like(logits, share), None, [1, 3])


@pytest.mark.parametrize("kind", [FocalLoss, MarginFocalLoss])
def test_mean_of_the_losses_of_parts_is_another_loss(kind):
    """Else the sizes would be for nothing."""
    logits, target, weight = example("softmax")
    loss = kind(ignore_index=IGNORED)
    naive = (loss(logits[:1], target[:1], weight[:1]) + loss(logits[1:], target[1:], weight[1:])) / 2
    assert abs(float(naive / loss(logits, target, weight)) - 1) > 0.01


@both_activations
def test_levels_of_deep_supervision_each_have_sizes_of_their_own(activation):
    loss = DiceFocalLoss(activation=activation, ignore_index=IGNORED)
    logits, target, weight = example(activation)
    for step in (1, 2):
        coarse = (slice(None), slice(None, None, step), slice(None, None, step))
        assert_same(loss, logits[(slice(None), *coarse)], target[coarse], weight[coarse], [1, 3])


def test_voxels_below_the_cap_are_counted_over_the_parts():
    loss = FocalLoss(cap=("zero", 0.3), ignore_index=IGNORED)
    example_ = example("softmax")
    of_whole(loss, *example_)
    expected = loss.take_num_dropped()
    of_parts(loss, *example_, [1, 3])
    assert loss.take_num_dropped() == expected > 0


# Sizes worked out by hand: 6 voxels a case, label 2 only in the second case, whose first voxel is ignored.
LABELS = torch.tensor([[0, 0, 1, 1, 0, 0], [IGNORED, 2, 0, 0, 0, 1]])
WEIGHT = torch.tensor([[1.0, 1.0, 0.0, 0.0, 0.5, 1.0], [9.0, 2.0, 1.0, 1.0, 1.0, 3.0]])


@pytest.mark.parametrize(
    ("loss", "unweighted", "weighted"),
    [
        (FocalLoss(ignore_index=IGNORED), [11], [11]),
        (FocalLoss(normalize="positives", ignore_index=IGNORED), [4], [4]),
        (FocalLoss(normalize="weight", ignore_index=IGNORED), [11], [11.5]),
        (FocalLoss(normalize="weight", alpha=(1.0, 2.0, 4.0), ignore_index=IGNORED), [17], [20.5]),
        (FocalLoss(normalize="weight", include_background=False, ignore_index=IGNORED), [4], [5]),
        (FocalLoss(normalize="weight", activation="sigmoid", ignore_index=IGNORED), [11], [11.5]),
        # Mean over channels: background 0.25 and 0.6; class 1 0.75 and 0.6; class 2 0.25 and 0.4.
        (
            FocalLoss(normalize="weight", alpha=(0.75, 0.4), activation="sigmoid", ignore_index=IGNORED),
            [(7 * 0.85 + 3 * 1.35 + 0.65) / 2],
            [(6.5 * 0.85 + 3 * 1.35 + 2 * 0.65) / 2],
        ),
        (DiceLoss(ignore_index=IGNORED), [3], [2]),
        (BlobDiceLoss(ignore_index=IGNORED), [3, 3], [2, 2]),
        (DiceFocalLoss(ignore_index=IGNORED), [11, 3], [11, 2]),
        (DiceCrossEntropyLoss(ignore_index=IGNORED), [11, 3], [11, 2]),
        (MarginFocalLoss(ignore_index=IGNORED), [11], [11]),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, TrainingLoss) else "",
)
@pytest.mark.parametrize("shape", ["(B, n)", "(B, 1, n)"])
def test_sizes_of_labels(loss, unweighted, weighted, shape):
    labels, weight = (LABELS, WEIGHT) if shape == "(B, n)" else (LABELS.unsqueeze(1), WEIGHT.unsqueeze(1))
    for sizes, expected in ((loss.part_sizes(labels), unweighted), (loss.part_sizes(labels, weight), weighted)):
        torch.testing.assert_close(sizes, torch.tensor(expected, dtype=torch.float64))
        assert not sizes.requires_grad


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        (FocalLoss(), [4]),
        (FocalLoss(normalize="positives"), [1.0]),
        (FocalLoss(normalize="weight"), [4]),
        (FocalLoss(normalize="weight", alpha=0.75), [3 * 0.25 + 1.0 * 0.75]),
        (DiceLoss(), [2]),
        (BlobDiceLoss(), [2, 1]),  # only the second case reaches 0.5
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, TrainingLoss) else "",
)
def test_sizes_of_soft_targets(loss, expected):
    foreground = torch.tensor([[0.3, 0.2], [0.5, 0.0]])
    sizes = loss.part_sizes(torch.stack((1 - foreground, foreground), dim=1))
    torch.testing.assert_close(sizes, torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.uint16, torch.int8, torch.int64], ids=str)
def test_sizes_are_the_same_for_each_type_of_labels(dtype):
    labels = torch.tensor([[0, 1, 1], [0, 0, 0]]).to(dtype)
    assert DiceFocalLoss(normalize="positives").part_sizes(labels).tolist() == [2, 1]


def test_sizes_without_spatial_axes():
    assert DiceFocalLoss(normalize="positives").part_sizes(torch.tensor([1, 0, 1])).tolist() == [2, 2]
    assert DiceFocalLoss().part_sizes(torch.tensor([[0.4, 0.6], [1.0, 0.0]])).tolist() == [2, 1]


@pytest.mark.parametrize("normalize", ["voxels", "positives", "weight"])
def test_sizes_of_no_case_are_0(normalize):
    loss = DiceFocalLoss(normalize=normalize)
    assert loss.part_sizes(torch.zeros(0, *SHAPE, dtype=torch.long)).tolist() == [0, 0]
    assert loss.part_sizes(torch.zeros(0, 2, *SHAPE)).tolist() == [0, 0]


EVERY_LOSS = [
    value
    for name in losses.__all__
    if inspect.isclass(value := getattr(losses, name)) and value is not TrainingLoss and issubclass(value, TrainingLoss)
]


@pytest.mark.parametrize("kind", [kind for kind in EVERY_LOSS if kind is not TrimmedLoss], ids=lambda k: k.__name__)
@both_activations
@pytest.mark.parametrize("others", [0.0, 1.0], ids=["alone", "beside others"])
def test_part_with_all_voxels_ignored_brings_0(kind, activation, others):
    loss = kind(activation=activation, ignore_index=IGNORED)
    logits, target, weight = example(activation)
    target = torch.full_like(target, IGNORED)
    sizes = loss.part_sizes(target, weight)
    assert sizes.tolist() == [0.0] * loss.num_means
    logits.requires_grad_()
    value = loss(logits, target, weight, whole=sizes + others)
    value.backward()
    assert value == 0.0
    assert not logits.grad.any()  # a NaN counts as true


@both_activations
@pytest.mark.parametrize("kind", [DiceLoss, BlobDiceLoss], ids=lambda k: k.__name__)
def test_part_without_lesions_brings_0_to_a_region_loss(kind, activation):
    loss = kind(activation=activation)
    logits, target, _ = example(activation)
    logits = logits.requires_grad_()
    value = loss(logits, torch.zeros_like(target), whole=torch.full((loss.num_means,), 3.0, dtype=torch.float64))
    value.backward()
    assert value == 0.0
    assert not logits.grad.any()


@pytest.mark.parametrize(
    ("loss", "reason"),
    [
        (FocalLoss(normalize="factor"), "normalize=factor divides by what the logits"),
        (DiceFocalLoss(normalize="factor"), "normalize=factor divides by what the logits"),
        (DiceFocalLoss(batch_dice=True), "batch_dice=true takes one quotient over all patches"),
        (TverskyFocalLoss(batch_dice=True), "batch_dice=true takes one quotient over all patches"),
        (DiceCrossEntropyLoss(batch_dice=True), "batch_dice=true takes one quotient over all patches"),
        (DiceLoss(batch_dice=True), "batch_dice=true takes one quotient over all patches"),
        (BlobDiceLoss(batch_dice=True), "batch_dice=true takes one quotient over all patches"),
        (TrimmedLoss(rates=[0.1, 0.1]), "leaves out the voxels of highest loss in the whole batch"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, TrainingLoss) else "",
)
def test_loss_that_has_no_parts_says_why(loss, reason):
    logits, target, _ = example("softmax")
    target = torch.where(target == IGNORED, 0, target)
    assert reason in loss.why_not_split
    with pytest.raises(ValueError, match=reason):
        loss.part_sizes(target)
    with pytest.raises(ValueError, match=reason):
        loss(logits, target, whole=torch.ones(loss.num_means))


def test_sizes_of_another_loss_are_refused():
    logits, target, _ = example("softmax")
    with pytest.raises(ValueError, match=r"whole must be a sum of part_sizes, \(2,\), got \(1,\)"):
        DiceFocalLoss(ignore_index=IGNORED)(logits, target, whole=FocalLoss().part_sizes(target))


def test_instances_are_refused_beside_sizes():
    logits, target, _ = example("softmax")
    loss = BlobDiceLoss(ignore_index=IGNORED)
    with pytest.raises(ValueError, match="give whole or instances, not both"):
        loss(logits, target, instances=target.long(), whole=loss.part_sizes(target))


@pytest.mark.parametrize("shape", [(4, 7, 6, 4), (3, 7, 6, 5)])
def test_weights_that_are_not_one_per_voxel_are_refused(shape):
    with pytest.raises(ValueError, match=r"weight must hold one value per voxel, \(4, 7, 6, 5\), got"):
        FocalLoss().part_sizes(lesions(), torch.ones(shape))


def test_label_without_an_alpha_is_refused():
    with pytest.raises(ValueError, match="label 2 is not among the 2 classes"):
        FocalLoss(normalize="weight", alpha=0.75).part_sizes(torch.tensor([[0, 2]]))


@pytest.mark.parametrize("target", [torch.tensor(1), torch.tensor([0.5])], ids=["number", "line of probabilities"])
def test_target_without_axes_is_refused(target):
    with pytest.raises(ValueError, match="target must have an axis for cases"):
        FocalLoss().part_sizes(target)


@pytest.mark.parametrize("kind", [FocalLoss, DiceFocalLoss, DiceCrossEntropyLoss, MarginFocalLoss])
def test_loss_that_avoids_compiling_is_eager_throughout(kind):
    loss = kind()
    loss.avoid_compiling()
    found = {part.backend for part in loss.modules() if hasattr(part, "backend")}
    assert found == {"eager"}


def test_chosen_backend_stays():
    loss = FocalLoss(backend="compiled")
    loss.avoid_compiling()
    assert loss.backend == "compiled"
