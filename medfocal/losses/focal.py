"""Voxelwise focal loss on logits, for softmax and sigmoid, stable for every gamma >= 0."""

from __future__ import annotations

import torch
from torch import Tensor

from medfocal.losses.activation import Activation
from medfocal.losses.closed_form import Formula
from medfocal.losses.fused import Backend, Job, compute
from medfocal.losses.module import TrainingLoss
from medfocal.losses.options import (
    Alpha,
    CapOption,
    Gamma,
    LabelSmoothing,
    Normalize,
    Soft,
    channel_weights,
    check_alpha,
    check_cap,
    check_epoch,
    check_gamma,
    check_label_smoothing,
    class_gammas,
    class_probabilities,
)
from medfocal.losses.soft import soft_focal
from medfocal.losses.target import (
    Labels,
    Probabilities,
    Reduction,
    along_channels,
    check_logits,
    check_range,
    check_reduction,
    check_target,
    check_weight,
    reduce_voxels,
)


def focal_loss(
    logits: Tensor,
    target: Tensor,
    *,
    gamma: Gamma = 2.0,
    alpha: Alpha = None,
    activation: str = "softmax",
    label_smoothing: LabelSmoothing = 0.0,
    soft: str = "expected",
    weight: Tensor | None = None,
    ignore_index: int | None = None,
    include_background: bool = True,
    cap: CapOption = None,
    normalize: str = "voxels",
    reduction: Reduction = "mean",
    backend: str = "auto",
) -> Tensor:
    """Focal loss per voxel: L = sum_c alpha_c y_c (1 - p_c)^gamma_c (-log p_c).

    With softmax the sum runs over the C classes. With sigmoid each channel is a problem of two classes with
    its own sum over foreground and rest, and a voxel's loss is the sum over its channels. At gamma 0 this is
    cross-entropy, or binary cross-entropy. The loss is linear in y: a target averaged over readers gives the
    average of the readers' losses.

    Smoothed and probabilistic targets make the optimal probabilities under-confident; `focal_posterior`
    undoes it.

    Values and gradients are computed in fp32 at least and are finite for |logit| <= 1e4; fp32 gradients of
    confident voxels keep their relative precision. The gradient is a closed form computed with the loss, which saves
    nothing else for the backward pass; it flows to the logits only and cannot be differentiated again. Checking
    labels costs one synchronisation with the device; a compiler around the call leaves that check out.

    Args:
        logits: (B, C, *spatial) with any number of spatial axes, also none.
        target: Labels of any integer type, (B, *spatial) or (B, 1, *spatial): 0..C - 1 with softmax; with
            sigmoid 0 is the background and 1..C are the channels. Or probabilities, floating point, in the
            logits' shape; only their shape and type are checked.
        gamma: Focusing exponent, >= 0; or one per class, the background first (asymmetric focal loss). With sigmoid
            the first is that of the rest in every channel.
        alpha: None weighs all classes 1. A number in (0, 1), for two softmax classes or one sigmoid channel
            only, weighs the foreground alpha and the background 1 - alpha. A sequence with softmax holds one
            weight > 0 per class; with sigmoid one number in (0, 1) per channel, each as the single number
            would be.
        activation: "softmax" or "sigmoid".
        label_smoothing: e in [0, 1): y becomes (1 - e) y + e / C with softmax, (1 - e) y + e / 2 with
            sigmoid. Or {"fg": rate, "bg": rate}, the shares of spurious and of missed marks: a foreground label means
            background with probability fg, a background label foreground with probability bg. Or a matrix whose row
            t holds the probabilities of the classes where the label is t (class confusion; softmax, or one sigmoid
            channel).
        soft: What the loss of a target between the classes is: "expected" (above), "quality" or "mixture", see
            `medfocal.losses.options.Soft`. The same for certain labels.
        weight: Weight per voxel, (B, *spatial) or (B, 1, *spatial).
        ignore_index: Label of voxels that have neither loss nor gradient. Only with integer labels.
        include_background: False leaves out the term of class 0, with softmax; its logit stays in the softmax.
        cap: ("zero", t) or ("linear", t): marked classes with a probability below t are taken for mislabelled, and
            their loss goes on from there as a constant, without gradient, or along its tangent in p. What label
            smoothing brings is not capped.
        normalize: What "mean" divides the weighted sum by: "voxels" (their number without the ignored, whatever their
            weights), "positives", "weight" or "factor", see `medfocal.losses.options.Normalize`.
        reduction: "mean"; without voxels to count it is 0 with zero gradients. "sum", or "none" for (B,
            *spatial), 0 where ignored.
        backend: "auto", "eager" or "compiled", see `medfocal.losses.fused.Backend`.

    Returns:
        The loss in fp32, or fp64 for fp64 logits.

    Raises:
        ValueError: An argument is malformed or contradicts another, or a label is no class.
        RuntimeError: In the backward pass, with create_graph=True.

    Example:
        >>> import torch
        >>> logits, labels = torch.zeros(1, 2, 12, 10, 8), torch.zeros(1, 12, 10, 8, dtype=torch.uint8)
        >>> round(float(focal_loss(logits, labels, gamma=2.0)), 4)  # 0.25 log 2
        0.1733

    References:
        Lin et al., "Focal loss for dense object detection", ICCV 2017, equation 5; extended to several
        classes and to probabilities by the sum over classes above, where the paper has a single p_t.
    """
    loss, _ = focal_loss_and_count(
        logits,
        target,
        gamma=gamma,
        alpha=alpha,
        activation=activation,
        label_smoothing=label_smoothing,
        soft=soft,
        weight=weight,
        ignore_index=ignore_index,
        include_background=include_background,
        cap=cap,
        normalize=normalize,
        reduction=reduction,
        backend=backend,
    )
    return loss


def focal_loss_and_count(
    logits: Tensor,
    target: Tensor,
    *,
    gamma: Gamma,
    alpha: Alpha,
    activation: str,
    label_smoothing: LabelSmoothing,
    soft: str,
    weight: Tensor | None,
    ignore_index: int | None,
    include_background: bool,
    cap: CapOption,
    normalize: str,
    reduction: Reduction,
    backend: str,
    whole: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """`focal_loss`, and the number of voxels below the cap (of sigmoid channels: summed over them).

    `whole` is the sum of `size_of_mean` over the parts of the batch, or None where this is all of it.
    """
    kind = Activation(activation)
    check_reduction(reduction)
    check_logits(logits, kind)
    formula = make_formula(
        kind,
        logits.shape[1],
        gamma=gamma,
        alpha=alpha,
        label_smoothing=label_smoothing,
        include_background=include_background,
        cap=cap,
    )
    checked = check_target(target, logits, activation=kind, ignore_index=ignore_index)
    voxel_weight = check_weight(weight, logits)
    mode, engine, meaning = Normalize(normalize), Backend(backend), Soft(soft)
    normaliser = make_normaliser(formula, checked, voxel_weight, logits, mode, whole) if reduction == "mean" else None
    if meaning is not Soft.EXPECTED:
        if mode is Normalize.FACTOR:
            raise ValueError(f"normalize='factor' is of the loss with soft='expected', got soft='{meaning}'")
        voxel_loss = soft_focal(logits, checked, formula, meaning)
        total = reduce_voxels(voxel_loss, valid=checked.valid, weight=voxel_weight, reduction=reduction, by=normaliser)
        return total, logits.new_zeros((), dtype=torch.int64)
    job = Job(
        formula,
        checked,
        voxel_weight,
        logits.new_ones((), dtype=torch.float64) if reduction == "sum" else normaliser,
        per_voxel=reduction == "none",
        backend=engine,
    )
    return compute(logits, job)


def make_formula(
    activation: Activation,
    num_channels: int,
    *,
    gamma: Gamma,
    alpha: Alpha,
    label_smoothing: LabelSmoothing,
    include_background: bool = True,
    cap: CapOption = None,
) -> Formula:
    """The closed form of these options for logits with this number of channels.

    Raises:
        ValueError: An option is out of range, does not fit the channels or contradicts another.
    """
    if not include_background and activation is Activation.SIGMOID:
        raise ValueError("include_background=False needs softmax: sigmoid logits have no channel for the background")
    return Formula(
        activation,
        num_channels,
        gamma=class_gammas(gamma, activation=activation, num_channels=num_channels),
        alpha=channel_weights(alpha, activation=activation, num_channels=num_channels),
        table=class_probabilities(label_smoothing, activation=activation, num_channels=num_channels),
        include_background=include_background,
        cap=check_cap(cap),
    )


def make_normaliser(
    formula: Formula,
    target: Labels | Probabilities,
    weight: Tensor | None,
    logits: Tensor,
    mode: Normalize,
    whole: Tensor | None = None,
) -> Tensor | None:
    """What the sum of the loss is divided by, 0-dimensional fp64; None where only the logits tell ("factor").

    `whole` is the sum of `size_of_mean` over the parts of the batch, or None where this is all of it.
    """
    if mode is Normalize.FACTOR:
        return None
    if mode is Normalize.VOXELS:
        return target.num_voxels if whole is None else whole
    if mode is Normalize.POSITIVES:
        return (_num_positives(target, formula.activation) if whole is None else whole).clamp_min(1.0)
    if whole is None:
        return _sum_of_alphas(formula, target, weight, torch.promote_types(logits.dtype, torch.float32))
    return whole * formula.num_channels if formula.activation is Activation.SIGMOID else whole


def size_of_mean(
    target: Labels | Probabilities,
    weight: Tensor | None,
    *,
    activation: Activation,
    alpha: Alpha,
    mode: Normalize,
    include_background: bool = True,
) -> Tensor:
    """What these voxels add to the normaliser of a batch, 0-dimensional fp64, without logits at hand.

    Differs from the normaliser where a sum over parts has to: positives are not raised to 1; and alphas are averaged
    over sigmoid channels instead of summed, because labels do not say how many there are.

    Raises:
        ValueError: Alpha does not fit the target.
    """
    if mode is Normalize.VOXELS:
        return target.num_voxels
    if mode is Normalize.POSITIVES:
        return _num_positives(target, activation)
    formula = make_formula(
        activation,
        _num_channels(target, activation, alpha),
        gamma=0.0,
        alpha=alpha,
        label_smoothing=0.0,
        include_background=include_background,
    )
    total = _sum_of_alphas(formula, target, weight, torch.float64)
    return total / formula.num_channels if activation is Activation.SIGMOID else total


def _num_channels(target: Labels | Probabilities, activation: Activation, alpha: Alpha) -> int:
    """Channels of logits that go with target and alpha; with labels, as few as will do."""
    if isinstance(target, Probabilities):
        return target.values.shape[1]
    if alpha is None:
        is_softmax = activation is Activation.SOFTMAX and target.values.numel() > 0
        return max(int(target.values.max()) + 1, 2) if is_softmax else 2
    least = 2 if activation is Activation.SOFTMAX else 1
    num_channels = least if isinstance(alpha, int | float) else len(alpha)
    check_range(target.values, activation=activation, num_channels=num_channels)
    return num_channels


def _num_positives(target: Labels | Probabilities, activation: Activation) -> Tensor:
    if isinstance(target, Labels):
        return (target.values > 0).sum(dtype=torch.float64)  # the ignored are 0
    return activation.foreground(target.values).sum(dtype=torch.float64)


def _sum_of_alphas(
    formula: Formula, target: Labels | Probabilities, weight: Tensor | None, dtype: torch.dtype
) -> Tensor:
    of_voxels = alpha_of_voxels(formula, target, dtype)
    return reduce_voxels(of_voxels, valid=target.valid, weight=weight, reduction="sum").double()


def alpha_of_voxels(formula: Formula, target: Labels | Probabilities, dtype: torch.dtype) -> Tensor:
    """sum_c alpha_c y_c of the target before smoothing, (B, *); with sigmoid summed over channels."""
    like = torch.empty((0,), dtype=dtype, device=target.values.device)
    if formula.activation is Activation.SOFTMAX:
        alphas = like.new_tensor([formula.alpha_of(c) for c in range(formula.num_channels)])
        if isinstance(target, Labels):
            return alphas[target.values.long()]
        return (along_channels(alphas, target.values.ndim) * target.values).sum(dim=1)
    pairs = like.new_tensor([formula.alphas_of_pair(c) for c in range(formula.num_channels)])
    shares = target.foreground(formula.num_channels) if isinstance(target, Labels) else target.values
    rest, one = along_channels(pairs[:, 0], shares.ndim), along_channels(pairs[:, 1], shares.ndim)
    return (rest + (one - rest) * shares).sum(dim=1)


def why_not_normalised(normalize: str) -> str | None:
    """Why the normaliser of a batch is not a sum over its parts, as a clause; None: it is."""
    if normalize != Normalize.FACTOR:
        return None
    return "normalize=factor divides by what the logits of the whole batch give"


class FocalLoss(TrainingLoss):
    """`focal_loss` with its options fixed, as the mean that `normalize` says.

    Called `loss(logits, target, weight=None)`. `gamma=0.0` is cross-entropy, or binary cross-entropy with
    sigmoid.

    Args:
        gamma: Focusing exponent, >= 0, or one per class.
        alpha: None, one number in (0, 1) for two classes, or one per channel.
        activation: "softmax" or "sigmoid".
        label_smoothing: A rate, {"fg": rate, "bg": rate} or a matrix, as in `focal_loss`.
        soft: "expected", "quality" or "mixture".
        ignore_index: Label of voxels without loss, or None.
        include_background: Whether the term of class 0 counts, with softmax.
        cap: None, ("zero", t) or ("linear", t).
        cap_start_epoch: Epoch from 0 at which the cap begins: early on a model finds many right labels wrong.
        normalize: "voxels", "positives", "weight" or "factor".
        backend: "auto", "eager" or "compiled".

    Raises:
        ValueError: An argument is out of range.
    """

    def __init__(
        self,
        *,
        gamma: Gamma = 2.0,
        alpha: Alpha = None,
        activation: str = "softmax",
        label_smoothing: LabelSmoothing = 0.0,
        soft: str = "expected",
        ignore_index: int | None = None,
        include_background: bool = True,
        cap: CapOption = None,
        cap_start_epoch: int = 0,
        normalize: str = "voxels",
        backend: str = "auto",
    ) -> None:
        super().__init__()
        self.gamma = check_gamma(gamma)
        self.alpha = check_alpha(alpha)
        self.activation = Activation(activation).value
        self.label_smoothing = check_label_smoothing(label_smoothing)
        self.soft = Soft(soft).value
        self.ignore_index = ignore_index
        self.include_background = include_background
        self.cap = check_cap(cap)
        self.cap_start_epoch = check_epoch("cap_start_epoch", cap_start_epoch)
        self.normalize = Normalize(normalize).value
        self.backend = Backend(backend).value

    @property
    def why_not_split(self) -> str | None:
        """As in `TrainingLoss`: where only the logits tell the divisor."""
        return why_not_normalised(self.normalize)

    def _sizes(self, target: Labels | Probabilities, weight: Tensor | None) -> list[Tensor]:
        size = size_of_mean(
            target,
            weight,
            activation=Activation(self.activation),
            alpha=self.alpha,
            mode=Normalize(self.normalize),
            include_background=self.include_background,
        )
        return [size]

    def forward(
        self, logits: Tensor, target: Tensor, weight: Tensor | None = None, *, whole: Tensor | None = None
    ) -> Tensor:
        """Mean loss; shapes as in `focal_loss`, `whole` as in `TrainingLoss`."""
        (of_batch,) = self._divisors(whole)
        cap = self.cap if self.epoch >= self.cap_start_epoch else None
        loss, num_capped = focal_loss_and_count(
            logits,
            target,
            gamma=self.gamma,
            alpha=self.alpha,
            activation=self.activation,
            label_smoothing=self.label_smoothing,
            soft=self.soft,
            weight=weight,
            ignore_index=self.ignore_index,
            include_background=self.include_background,
            cap=cap,
            normalize=self.normalize,
            reduction="mean",
            backend=self.backend,
            whole=of_batch,
        )
        if self.cap is not None:
            self._add_num_dropped(num_capped)
        return loss

    def extra_repr(self) -> str:
        """Options, for `print(loss)`."""
        names = (
            "gamma", "alpha", "activation", "label_smoothing", "soft", "ignore_index", "include_background", "cap",
            "cap_start_epoch", "normalize", "backend",
        )  # fmt: skip
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in names)
