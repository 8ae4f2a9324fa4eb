"""How long and how to train, apart from the choices that have a group of their own. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from medfocal.infer.window import Window


@dataclass(kw_only=True)
class SamplingSettings:
    """Where patches are cut and what is set into them; `conf/sampling/` states each.

    Args:
        patch_size: Voxels `(I, J, K)`.
        lesion_fraction: Share of patches that are centred on a lesion.
        size_power: See `medfocal.data.sampling.LesionBalancedSampler`.
        hardness: Likewise.
        transplant_probability: Of a lesion set into a patch, and of another one after each.
    """

    patch_size: list[int]
    lesion_fraction: float
    size_power: float
    hardness: float
    transplant_probability: float

    def check(self) -> None:
        """Refuse values that make no sense.

        Raises:
            ValueError: One is out of range.
        """
        from medfocal.data.sampling import check_sampling
        from medfocal.data.transplant import check_transplant_probability

        check_sampling(self.patch_size, self.lesion_fraction, self.size_power, self.hardness)
        check_transplant_probability(self.transplant_probability)
        if self.lesion_fraction == 0 and (self.size_power != 0 or self.hardness != 0):
            message = (
                f"size_power {self.size_power:g} and hardness {self.hardness:g} say which lesions patches are centred "
                "on, and with lesion_fraction 0 none is; leave one or the other out"
            )
            raise ValueError(message)


@dataclass(kw_only=True)
class CacheSettings:
    """Prepared cases on disk, in the folder `paths.cache`; `conf/cache/default.yaml` states each.

    Args:
        dtype: Of images: "float16", "float32", or "auto", which is float16 where intensities are scaled.
        compress: Whether volumes are compressed, which needs the extra `blosc2`.
        max_gb: Most that the folder may hold, in GB, or None for what the disk has.
        workers: Processes that prepare cases, or None for as many as pay.
    """

    dtype: str
    compress: bool
    max_gb: float | None
    workers: int | None

    def check(self) -> None:
        """Refuse values that make no sense.

        Raises:
            ValueError: One is out of range.
        """
        choices = ("auto", "float16", "float32")
        if self.dtype not in choices:
            message = f"dtype must be one of {', '.join(choices)}, got {self.dtype!r}"
            raise ValueError(message)
        for name in ("max_gb", "workers"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                message = f"{name} must be above 0, or null, got {value}"
                raise ValueError(message)


class Compile(StrEnum):
    """Whether the network is compiled: on a GPU, always, never, or with its steps recorded as CUDA graphs."""

    AUTO = "auto"
    ON = "on"
    OFF = "off"
    CUDA_GRAPHS = "cuda_graphs"


class Sharding(StrEnum):
    """What each of several processes holds: all weights, or its share of them and of the optimizer's state."""

    NONE = "none"
    FSDP = "fsdp"


@dataclass(kw_only=True)
class TrainerSettings:
    """Settings of the training loop; `conf/trainer/default.yaml` states each.

    Args:
        max_epochs: Epochs in all; a finished run goes on when this grows.
        steps_per_epoch: Batches an epoch.
        batch_size: Patches a step of the optimizer, over all processes together.
        accumulate: Parts that a process computes its patches in, one after the other, to save memory.
        validate_every: Epochs between validations; the last epoch is always validated.
        validation_false_positives: The epoch that is kept has the highest lesion sensitivity at this many false
            positives per case on the validation split; ties go to the higher CPM, then to the later epoch.
        patience: Validations without a better one after which training stops, or None.
        gradient_clip_norm: Largest norm of the gradient, or None.
        max_skipped_steps: Steps in a row whose loss or gradients are not finite that are left out; one more stops the
            training.
        ema_decay: Of the running mean of the weights that is validated and kept, in (0, 1), or None for the weights.
        prior_bias: Whether the last bias starts where the loss is stationary for the share of lesion voxels.
        curriculum: Arguments of the loss that move, see `medfocal.train.curriculum.Curriculum`; None: none does.
        initial_weights: What to start from; see `medfocal.train.pretrained`. None: random weights.
        precision: "auto" (bfloat16 where the hardware computes it natively, else float16 on a GPU), "bf16", "fp16" or
            "float32".
        tf32: Whether float32 is computed in TF32 on a GPU that has it.
        compile: See `Compile`.
        channels_last: Whether images and weights lie with their channels last.
        checkpoint_activations: Whether activations are computed again in the backward pass instead of kept.
        sharding: See `Sharding`.
        deterministic: Whether only deterministic algorithms are used.
        checkpoint_minutes: Between checkpoints within an epoch.
        num_threads: Of the CPU, or None for all cores.
        window_size: Voxels `(I, J, K)` of the window that slides over whole cases, or None for the patch size.
        window_overlap: Share of overlap of the sliding window over whole cases.
        window_batch: Windows at once.
        save_test_predictions: Whether probability maps of the test cases are kept.
        save_validation_predictions: Likewise of the validation cases.
    """

    max_epochs: int
    steps_per_epoch: int
    batch_size: int
    accumulate: int
    validate_every: int
    validation_false_positives: float
    patience: int | None
    gradient_clip_norm: float | None
    max_skipped_steps: int
    ema_decay: float | None
    prior_bias: bool
    curriculum: Any  # a mapping or None; the configuration's check holds it to that
    initial_weights: str | None
    precision: str
    tf32: bool
    compile: str
    channels_last: bool
    checkpoint_activations: bool
    sharding: str
    deterministic: bool
    checkpoint_minutes: float
    num_threads: int | None
    window_size: list[int] | None
    window_overlap: float
    window_batch: int
    save_test_predictions: bool
    save_validation_predictions: bool

    def check(self) -> None:
        """Refuse values that make no sense.

        Raises:
            ValueError: One is out of range.
        """
        for name in ("max_epochs", "steps_per_epoch", "batch_size", "accumulate", "validate_every", "patience"):
            value = getattr(self, name)
            if value is not None and value < 1:
                message = f"{name} must be at least 1, got {value}"
                raise ValueError(message)
        for name in ("validation_false_positives", "gradient_clip_norm", "num_threads", "checkpoint_minutes"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                message = f"{name} must be above 0, got {value}"
                raise ValueError(message)
        if self.max_skipped_steps < 0:
            message = f"max_skipped_steps must be 0 or more, got {self.max_skipped_steps}"
            raise ValueError(message)
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            message = f"ema_decay must be above 0 and below 1, or null, got {self.ema_decay}"
            raise ValueError(message)
        if self.batch_size % self.accumulate:
            message = f"batch_size {self.batch_size} cannot be computed in {self.accumulate} equal parts (accumulate)"
            raise ValueError(message)
        for name, choices in (("compile", Compile), ("sharding", Sharding)):
            if getattr(self, name) not in list(choices):
                message = f"{name} must be one of {', '.join(choices)}, got {getattr(self, name)!r}"
                raise ValueError(message)
        self.window((1, 1, 1))

    def window(self, patch_size: Sequence[int]) -> Window:
        """The window over whole cases.

        Raises:
            ValueError: Its size, overlap, batch or precision makes no sense.
        """
        size = list(patch_size if self.window_size is None else self.window_size)
        overlap, batch = self.window_overlap, self.window_batch
        return Window(size=size, overlap=overlap, batch=batch, precision=self.precision)
