"""Predicting one case: probability, classes, spread and candidates on the case's own grid."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from medfocal.components import Components
from medfocal.data.transforms import PreparedCase, classes_to_native, to_native
from medfocal.errors import ResourceError
from medfocal.infer.candidates import form_candidates, mask_at
from medfocal.infer.memory import is_out_of_memory
from medfocal.infer.voxels import Voxels, predict_voxels
from medfocal.infer.window import Window
from medfocal.model import Model, ModelCard

if TYPE_CHECKING:
    import torch
    from torch import nn

LOG = logging.getLogger("medfocal.infer")

#: Views of a window that probabilities are averaged over, as commands name them.
VIEWS = ("none", "mirror")


@dataclass(frozen=True)
class Prediction:
    """What a model says of one case, on the case's own grid.

    Attributes:
        probability: Of any lesion, float32 `(I, J, K)`.
        classes: Lesion class of each voxel, or the innermost region, from 1, uint8 `(I, J, K)`.
        candidates: All of them, whatever their confidence.
        spread: Standard deviation of the probability over members and mirrored views, float32 `(I, J, K)`; None
            unless it was asked for.
        notes: What was done otherwise than asked, for want of memory.
    """

    probability: NDArray[np.float32]
    classes: NDArray[np.uint8]
    candidates: Components
    spread: NDArray[np.float32] | None = None
    notes: tuple[str, ...] = ()

    def mask(self, threshold: float) -> NDArray[np.uint8]:
        """Classes within candidates of at least this confidence, 0 elsewhere."""
        return np.where(mask_at(self.candidates, threshold), self.classes, np.uint8(0))


def predict_case(
    model: Model,
    prepared: PreparedCase,
    *,
    device: torch.device,
    mirror: bool = False,
    with_spread: bool = False,
    max_memory_mb: float | None = None,
    allow_cpu: bool = False,
    exclude: NDArray[np.bool_] | None = None,
) -> Prediction:
    """Predict one prepared case.

    Args:
        model: Its networks are on `device`.
        prepared: By the model's own preprocessing.
        device: Where to compute.
        mirror: Whether to average over the eight mirrored views.
        with_spread: Whether to tell how far members and views differ.
        max_memory_mb: Of `medfocal.infer.voxels.predict_voxels`.
        allow_cpu: Whether to compute on the CPU where the GPU's memory does not suffice for one window.
        exclude: On the case's own grid: where no lesion can be, bool `(I, J, K)`.

    Returns:
        Everything on the case's own grid.

    Raises:
        ModelError: A network gives NaN.
        ResourceError: There is not enough memory.
    """
    card = model.card
    found, notes = _in_memory(
        model.networks,
        prepared.image,
        card,
        device,
        allow_cpu=allow_cpu,
        mirror=mirror,
        with_spread=with_spread,
        max_memory_mb=max_memory_mb,
    )
    probability = to_native(found.probability, prepared)
    if found.classes is None:
        classes = np.ones(probability.shape, np.uint8)
    else:
        classes = classes_to_native(found.classes, prepared)
    spread = None if found.spread is None else to_native(found.spread, prepared)
    del found
    candidates = form_candidates(probability, prepared.grid.affine, card.candidates, exclude=exclude)
    return Prediction(probability, classes, candidates, spread, tuple(notes))


def other_views(card: ModelCard, *, threshold: float | None, mirror: bool) -> list[str]:
    """What to say where a model's operating point was chosen with other views than it is used with."""
    point = card.operating_points[0]
    if threshold is not None or point.mirrored == mirror:
        return []
    words = {True: "mirrored views (tta=mirror)", False: "one view (tta=none)"}
    chosen, used = words[point.mirrored], words[mirror]
    note = (
        f"the operating point '{point.name}' was chosen with {chosen} and is used with {used}: what it states and "
        "promises was measured on other probabilities"
    )
    return [note]


def _in_memory(
    networks: Sequence[nn.Module],
    image: torch.Tensor,
    card: ModelCard,
    device: torch.device,
    *,
    allow_cpu: bool,
    **settings: Any,
) -> tuple[Voxels, list[str]]:
    """Predict with fewer windows at once, and at last on the CPU, where memory does not suffice."""
    import torch

    window, notes = Window(**card.window), []
    while True:
        try:
            for network in networks:  # a case before may have left them on the CPU
                network.to(device)
            found = predict_voxels(
                networks,
                image,
                window=window,
                activation=card.activation,
                num_classes=len(card.labels) - 1,
                overlapping=card.overlapping,
                correction=card.correction,
                device=device,
                **settings,
            )
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            where = str(device)
            if window.batch > 1:
                window = replace(window, batch=window.batch // 2)
                notes.append(f"out of memory on {where}: went on with {window.batch} windows at once")
            elif device.type != "cpu" and allow_cpu:
                device = torch.device("cpu")
                notes.append(f"out of memory on {where} with one window: went on on the CPU")
            else:
                size = "x".join(map(str, window.size))
                more = "" if device.type == "cpu" else " Or allow_cpu=true, which goes on there."
                message = f"not enough memory on {where} for one window of {size} voxels. Free some.{more}"
                raise ResourceError(message) from error
            LOG.warning("%s", notes[-1])
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        else:
            return found, notes
