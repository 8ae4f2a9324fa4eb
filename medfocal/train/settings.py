"""How long and how to train, apart from the choices that have a group of their own. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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


@dataclass(kw_only=True)
class TrainerSettings:
    """Settings of the training loop; `conf/trainer/default.yaml` states each.

    Args:
        max_epochs: Epochs in all; a finished run goes on when this grows.
        steps_per_epoch: Batches an epoch.
        batch_size: Patches a batch.
        validate_every: Epochs between validations; the last epoch is always validated.
        validation_false_positives: The epoch that is kept has the highest lesion sensitivity at this many false
            positives per case on the validation split; ties go to the higher CPM, then to the later epoch.
        gradient_clip_norm: Largest norm of the gradient, or None.
        prior_bias: Whether the last bias starts where the loss is stationary for the share of lesion voxels.
        precision: "auto" (bfloat16 where the hardware computes it natively), "bf16" or "float32".
        deterministic: Whether only deterministic algorithms are used.
        num_threads: Of the CPU, or None for all cores.
        window_size: Voxels `(I, J, K)` of the window that slides over whole cases, or None for the patch size.
        window_overlap: Share of overlap of the sliding window over whole cases.
        window_batch: Windows at once.
        save_test_predictions: Whether probability maps of the test cases are kept.
    """

    max_epochs: int
    steps_per_epoch: int
    batch_size: int
    validate_every: int
    validation_false_positives: float
    gradient_clip_norm: float | None
    prior_bias: bool
    precision: str
    deterministic: bool
    num_threads: int | None
    window_size: list[int] | None
    window_overlap: float
    window_batch: int
    save_test_predictions: bool

    def check(self) -> None:
        """Refuse values that make no sense.

        Raises:
            ValueError: One is out of range.
        """
        for name in ("max_epochs", "steps_per_epoch", "batch_size", "validate_every"):
            if getattr(self, name) < 1:
                message = f"{name} must be at least 1, got {getattr(self, name)}"
                raise ValueError(message)
        for name in ("validation_false_positives", "gradient_clip_norm", "num_threads"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                message = f"{name} must be above 0, got {value}"
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
