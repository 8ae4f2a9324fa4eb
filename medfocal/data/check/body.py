"""Where the body is, roughly: enough to see a lesion that lies in the air."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

#: Side in mm of the blocks in which the body is told.
BLOCK_MM = 5.0
#: Blocks from which percentiles are taken.
NUM_SAMPLED = 1 << 14
#: Most blocks along an axis.
MOST_BLOCKS = 96
#: The border of the volume is air where this share of it is as dark as the air of the rest.
AIR_SHARE = 0.6
#: Air varies by less than this share of the way from it to the brightest half percent.
AIR_WIDTH = 0.03


@dataclass(frozen=True)
class Body:
    """A body on blocks of voxels.

    Attributes:
        inside: Which blocks belong to it or touch it, bool.
        step: Voxels of a block along each axis.
    """

    inside: NDArray[np.bool_]
    step: tuple[int, ...]

    def holds(self, index: Sequence[NDArray[np.integer[Any]]]) -> NDArray[np.bool_]:
        """Which voxels, given by their indices along each axis, lie in it."""
        blocks = tuple(i // step for i, step in zip(index, self.step, strict=True))
        found: NDArray[np.bool_] = self.inside[blocks]
        return found


def find_body(image: NDArray[Any], spacing_mm: Sequence[float], axis_codes: Sequence[str]) -> Body | None:
    """Tell the body from the air around it, with what lies between parts of it in axial slices, one block grown.

    Between are blocks that have body on all four sides along the axes of the slice: holes, cavities, a lung.

    Args:
        image: Grey values, `(I, J, K)`; voxels that are not finite are air.
        spacing_mm: Of the voxels.
        axis_codes: Nearest anatomical direction of each axis.

    Returns:
        The body, or None where the volume's border is not mostly air, so that there is none to be told.
    """
    step = tuple(
        max(1, round(BLOCK_MM / spacing), -(-length // MOST_BLOCKS))
        for spacing, length in zip(spacing_mm, image.shape, strict=True)
    )
    blocks = image[:: step[0], :: step[1], :: step[2]].astype(np.float32)
    finite = np.isfinite(blocks)
    if not finite.all():
        blocks = np.where(finite, blocks, blocks[finite].min() if finite.any() else 0)
    faces = np.concatenate([np.take(blocks, side, axis=axis).ravel() for axis in range(3) for side in (0, -1)])
    air = float(np.median(faces))
    darkest, brightest = np.percentile(blocks.ravel()[:: max(1, blocks.size // NUM_SAMPLED)], [1, 99.5]).tolist()
    width = AIR_WIDTH * (brightest - air)
    if width <= 0 or darkest < air - width or np.mean(np.abs(faces - air) <= width) < AIR_SHARE:
        return None
    inside = blocks > air + width
    across = next(axis for axis in range(3) if axis_codes[axis] in "SI")
    in_slice = [axis for axis in range(3) if axis != across]
    inside |= _is_between(inside, in_slice[0]) & _is_between(inside, in_slice[1])
    return Body(_grown(inside), step)


def _is_between(inside: NDArray[np.bool_], axis: int) -> NDArray[np.bool_]:
    """Blocks that have body on both sides along an axis, or are body."""
    before = np.logical_or.accumulate(inside, axis=axis)
    after = np.flip(np.logical_or.accumulate(np.flip(inside, axis), axis=axis), axis)
    found: NDArray[np.bool_] = before & after
    return found


def _grown(inside: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """And the blocks that share a face with it."""
    grown = inside.copy()
    for axis in range(3):
        moved, own = np.moveaxis(grown, axis, 0), np.moveaxis(inside, axis, 0)
        moved[1:] |= own[:-1]
        moved[:-1] |= own[1:]
    return grown
