"""Whether a case is like those that a model was calibrated on: intensities, grid, and what the network makes of it.

Nothing here says that a prediction is wrong. It says that nobody has measured how well the model does on such a case.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from medfocal.errors import ModelError
from medfocal.files import plain
from medfocal.infer.memory import outline_of

if TYPE_CHECKING:
    import torch
    from torch import nn

    from medfocal.data.cases import CaseVolumes

QUANTILES = (1, 50, 99)
AXES = ("left_right", "back_front", "down_up")
#: Voxels of a channel that are looked at, evenly spaced in the volume.
MOST_SAMPLED = 1_000_000
#: A figure may lie outside the range of the calibration cases by this share of the range, and by its tolerance.
MARGIN = 0.5
#: A case may be this much further away, in features, than the furthest calibration case is from the others.
FEATURE_MARGIN = 1.5
#: Cases below which nothing is said of features: how far they lie apart is not known.
MIN_FEATURE_CASES = 5


@dataclass(frozen=True)
class Kind:
    """A kind of figure.

    Attributes:
        words: What it is, for a sentence.
        tolerance: By which it may differ beside the margin.
        is_relative: Whether the tolerance is a share of the figure.
    """

    words: str
    tolerance: float
    is_relative: bool = False


def _grid_kind(words: str, axis: str, tolerance: float) -> Kind:
    return Kind(f"the {words} in mm ({axis.replace('_', ' to ')}) is", tolerance, is_relative=True)


KINDS: Mapping[str, Kind] = {
    "median_place": Kind("the median lies, between the 1 % and the 99 % quantile, at", 0.1),
    "zeros": Kind("the share of voxels that are 0 is", 0.15),
    **{f"quantile_{level}": Kind(f"the {level} % quantile of voxels that are not 0 is", 0.0) for level in QUANTILES},
    **{f"spacing_mm_{axis}": _grid_kind("spacing", axis, 0.1) for axis in AXES},
    **{f"extent_mm_{axis}": _grid_kind("field of view", axis, 0.2) for axis in AXES},
}


@dataclass(frozen=True)
class Figures:
    """Figures of one case.

    Attributes:
        values: By name, "<kind>" of the grid and "<channel>.<kind>" of a channel; undefined ones are left out.
        features: Mean of the network's deepest features over the windows of the case; None: not known.
    """

    values: Mapping[str, float]
    features: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Features:
    """The deepest features of the calibration cases.

    Attributes:
        mean: Over the cases, of each.
        spread: Standard deviation between cases, with a floor, of each.
        largest_distance: Of a calibration case from the others.
    """

    mean: tuple[float, ...]
    spread: tuple[float, ...]
    largest_distance: float


@dataclass(frozen=True, kw_only=True)
class Familiar:
    """What the cases that a model was calibrated on were like.

    Attributes:
        num_cases: How many.
        ranges: Least and largest of each figure.
        features: None: too few cases.
    """

    num_cases: int
    ranges: Mapping[str, tuple[float, float]]
    features: Features | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for the model's card."""
        return dict(plain(asdict(self)))


def image_figures(volumes: CaseVolumes, channels: Sequence[str]) -> dict[str, float]:
    """Figures of the images of a case as they were read, and of the grid.

    Quantiles are of the voxels that are not 0, which is what lies around a head or a body in MR. Spacing and field of
    view are of the native grid, its axes in the order of the body's.

    Args:
        volumes: From `medfocal.data.cases.read_case`.
        channels: Their names.

    Returns:
        By the names of `Figures.values`.
    """
    from nibabel import orientations

    found: dict[str, float] = {}
    for name, channel in zip(channels, volumes.image, strict=True):
        flat = channel.reshape(-1)
        flat = flat[:: _stride(channel.shape)]
        inside = flat[flat != 0]
        found[f"{name}.zeros"] = 1 - len(inside) / len(flat)
        if not len(inside):
            continue
        low, middle, high = (float(value) for value in np.percentile(inside, QUANTILES))
        quantiles = dict(zip(QUANTILES, (low, middle, high), strict=True))
        found |= {f"{name}.quantile_{level}": value for level, value in quantiles.items()}
        if high > low:
            found[f"{name}.median_place"] = (middle - low) / (high - low)
    grid = volumes.grid
    along = orientations.io_orientation(grid.affine)[:, 0].astype(int)
    for axis, world in enumerate(along):
        spacing = float(grid.spacing_mm[axis])
        found[f"spacing_mm_{AXES[world]}"] = spacing
        found[f"extent_mm_{AXES[world]}"] = spacing * grid.shape[axis]
    return found


def describe_cases(cases: Sequence[Figures]) -> Familiar:
    """Sum up the figures of calibration cases.

    A case's distance in features is the root of the mean over features of ((own - mean) / spread)^2; the largest is
    that of a case from mean and spread of all others. A spread is taken for a tenth of the mean spread at least, and
    for 0.001, so that a feature that hardly varies does not decide.

    Args:
        cases: At least one.
    """
    names = [name for name in cases[0].values if all(name in case.values for case in cases)]
    ranges = {name: _ends([case.values[name] for case in cases]) for name in names}
    known = [case.features for case in cases if case.features is not None]
    if len(known) < len(cases) or len(known) < MIN_FEATURE_CASES:
        return Familiar(num_cases=len(cases), ranges=ranges)
    table = np.array(known, np.float64)
    away = []
    for row in range(len(table)):
        mean, spread = _mean_and_spread(np.delete(table, row, axis=0))
        away.append(_distance(table[row], mean, spread))
    mean, spread = _mean_and_spread(table)
    features = Features(tuple(mean.tolist()), tuple(spread.tolist()), max(away))
    return Familiar(num_cases=len(cases), ranges=ranges, features=features)


def read_familiar(card_value: Mapping[str, Any] | None) -> Familiar | None:
    """Read what a model's card says of familiar cases, which may be anything.

    Raises:
        ModelError: It makes no sense.
    """
    if card_value is None:
        return None
    try:
        values = dict(card_value)
        given = values.pop("features")
        features = None
        if given is not None:
            mean, spread = (tuple(float(value) for value in given[name]) for name in ("mean", "spread"))
            features = Features(mean, spread, float(given["largest_distance"]))
            numbers = (*mean, *spread, features.largest_distance)
            is_sound = len(mean) == len(spread) >= 1 and all(map(math.isfinite, numbers)) and min(spread) > 0
            if not is_sound or set(given) != {"mean", "spread", "largest_distance"}:
                raise ValueError("features")
        ranges = {str(name): (float(low), float(high)) for name, (low, high) in values.pop("ranges").items()}
        for name, (low, high) in ranges.items():
            if not (math.isfinite(low) and low <= high < math.inf) or name.rpartition(".")[2] not in KINDS:
                raise ValueError(name)
        return Familiar(num_cases=int(values.pop("num_cases")), ranges=ranges, features=features, **values)
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        message = f"the model's card says of familiar cases what makes no sense: {type(error).__name__}: {error}"
        raise ModelError(message) from error


def unfamiliar(familiar: Familiar, figures: Figures) -> list[str]:
    """Say in what a case is unlike those that the model was calibrated on; nothing where it is like them.

    A figure is outside where it lies below the least or above the largest of the calibration cases by more than
    `MARGIN` of their range and the figure's tolerance (`KINDS`; of a raw quantile the whole span of the channel's
    intensities).

    Args:
        familiar: Of the model.
        figures: Of the case.
    """
    words = []
    for name, (low, high) in familiar.ranges.items():
        if name not in figures.values:
            continue
        value = figures.values[name]
        if not _is_within(value, low, high, _tolerance(name, familiar.ranges)):
            channel, _, kind = name.rpartition(".")
            where = f"channel {channel}: " if channel else ""
            words.append(
                f"{where}{KINDS[kind].words} {value:.4g}, and {low:.4g} to {high:.4g} in the {familiar.num_cases} "
                "calibration cases"
            )
    known = familiar.features
    if known is not None and figures.features is not None and len(figures.features) == len(known.mean):
        away = _distance(np.array(figures.features), np.array(known.mean), np.array(known.spread))
        if not away <= FEATURE_MARGIN * known.largest_distance:
            words.append(
                f"the network's features are {away:.3g} spreads from the mean of the calibration cases, of which the "
                f"furthest is {known.largest_distance:.3g} from the others"
            )
    return words


class Watch:
    """Mean of a module's output over all windows that passed it."""

    def __init__(self) -> None:
        self._total: torch.Tensor | None = None
        self._count = 0

    def see(self, output: Any) -> None:
        """Add a batch `(B, F, *)`; shapes alone, without values, are left out."""
        import torch

        if not isinstance(output, torch.Tensor) or output.device.type == "meta":
            return
        of_batch = output.detach().float().flatten(2).mean(dim=2).sum(dim=0)
        if self._total is None:
            self._total = of_batch
        elif self._total.shape == of_batch.shape:
            self._total = self._total.to(of_batch.device) + of_batch
        else:
            return
        self._count += len(output)

    @property
    def mean(self) -> tuple[float, ...] | None:
        """Of each feature; None: nothing passed, or it is not finite."""
        if self._total is None:
            return None
        values = (self._total / self._count).cpu().double().tolist()
        return tuple(values) if all(map(math.isfinite, values)) else None


@contextlib.contextmanager
def watched(network: nn.Module, name: str | None) -> Iterator[Watch]:
    """Watch the module of this name while a network computes; None watches nothing."""
    watch = Watch()
    if name is None:
        yield watch
        return
    handle = network.get_submodule(name).register_forward_hook(lambda _module, _given, made: watch.see(made))
    try:
        yield watch
    finally:
        handle.remove()


def deepest_module(network: nn.Module, in_channels: int, window_size: Sequence[int]) -> str:
    """Name of the module that sees most of a window at once: of those with the fewest places in their output the last.

    The network is run on shapes alone, which computes nothing.

    Args:
        network: Any that maps images to logits.
        in_channels: Of its images.
        window_size: Voxels `(I, J, K)`.
    """
    import torch

    outline = outline_of(network)
    names = {module: name for name, module in outline.named_modules()}
    found: list[tuple[int, str]] = []

    def look(module: nn.Module, _: Any, made: Any) -> None:
        if isinstance(made, torch.Tensor) and made.ndim == 5:
            found.append((math.prod(made.shape[2:]), names[module]))

    for module in outline.modules():
        if not any(True for _ in module.children()):
            module.register_forward_hook(look)
    with torch.inference_mode():
        outline(torch.empty(1, in_channels, *window_size, device="meta"))
    least = min((places for places, _ in found), default=0)
    return next((name for places, name in reversed(found) if places == least), "")


def _stride(shape: Sequence[int]) -> int:
    """Steps through a volume that leave about `MOST_SAMPLED` and fall on all places of every axis."""
    size = math.prod(shape)
    stride = max(1, size // MOST_SAMPLED)
    while math.gcd(stride, size) > 1:
        stride += 1
    return stride


def _ends(values: Sequence[float]) -> tuple[float, float]:
    return min(values), max(values)


def _mean_and_spread(table: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    spread = table.std(axis=0, ddof=1)
    return table.mean(axis=0), np.maximum(spread, max(0.1 * float(spread.mean()), 1e-3))


def _distance(values: NDArray[np.float64], mean: NDArray[np.float64], spread: NDArray[np.float64]) -> float:
    return float(np.sqrt(np.mean(((values - mean) / spread) ** 2)))


def _tolerance(name: str, ranges: Mapping[str, tuple[float, float]]) -> float:
    channel, _, word = name.rpartition(".")
    kind = KINDS[word]
    if word.startswith("quantile_"):
        ends = [ranges.get(f"{channel}.quantile_{level}", ranges[name]) for level in (QUANTILES[0], QUANTILES[-1])]
        return ends[1][1] - ends[0][0]
    return kind.tolerance * ranges[name][1] if kind.is_relative else kind.tolerance


def _is_within(value: float, low: float, high: float, tolerance: float) -> bool:
    slack = MARGIN * (high - low) + tolerance
    return low - slack <= value <= high + slack
