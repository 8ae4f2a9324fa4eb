"""What coarser levels of a network are taught: the target on their grids, and how much each level counts."""

from __future__ import annotations

import torch
from torch import Tensor


def level_weights(num_levels: int) -> list[float]:
    """Share of each level in the loss: each half of the one before, together 1.

    Args:
        num_levels: Levels with logits, at least 1; the first has full resolution.

    Raises:
        ValueError: There is none.

    References:
        Isensee et al., "nnU-Net", Nature Methods 2021, supplementary note 2, which also gives the lowest resolution
        weight 0; `deep_supervision` says how many levels there are instead.

    Example:
        >>> level_weights(2)
        [0.6666666666666666, 0.3333333333333333]
    """
    if num_levels < 1:
        raise ValueError(f"num_levels must be at least 1, got {num_levels}")
    total = 2.0 - 2.0 ** (1 - num_levels)
    return [2.0**-level / total for level in range(num_levels)]


def coarser(
    target: Tensor,
    weight: Tensor | None,
    shape: tuple[int, ...],
    *,
    with_background: bool,
    ignore_index: int | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Bring a target to the grid of a coarser level so that no lesion is lost, however small.

    A voxel of that grid stands for a block of voxels. Of these only the judged ones have a say: those that are not
    ignored and, where there are weights, weigh more than 0. So a lesion counts wherever it was judged, background
    where any of a block was, and a block of which nothing was judged stays ignored. (Were a block ignored for one
    ignored voxel, sparsely annotated slices would teach coarse levels lesions only.)

    - Classes: the highest judged class of the block.
    - Shares: of each lesion channel the highest. With a background channel, the first, it takes what they leave of 1;
      where they leave nothing they are divided by their sum.
    - Weight: the mean over the judged voxels that made it so. For classes those of the class that won; for shares the
      mean is weighted by each voxel's share of lesion, and is plain where there is none. A suspect lesion in a block
      of sure background keeps its low weight.

    Args:
        target: Classes int64 (B, I, J, K), or shares of the channels, floating point (B, N, I, J, K).
        weight: Of the voxels, floating point (B, I, J, K), 0 or more, or None.
        shape: Of the coarser grid; divides (I, J, K).
        with_background: Whether the first channel of shares is the background, as it is with softmax.
        ignore_index: Class of voxels that are not judged, or None.

    Returns:
        Target and weight on that grid, in their dtypes. A block of which nothing was judged has the class
        `ignore_index`, or where there is none 0; its shares are those of background and its weight is 0.

    Raises:
        ValueError: The grid is not divided by `shape`, or the weights lie on another one.
    """
    grid = tuple(target.shape[-3:])
    if len(shape) != 3 or any(size < 1 or full % size for full, size in zip(grid, shape, strict=True)):
        raise ValueError(f"a coarser grid must divide that of the target, {grid}, got {tuple(shape)}")
    if weight is not None and weight.shape != (target.shape[0], *grid):
        raise ValueError(f"weights must have the shape {(target.shape[0], *grid)}, got {tuple(weight.shape)}")
    weights = None if weight is None else _blocks(weight, shape)
    if target.is_floating_point():
        shares, votes = _shares(_blocks(target, shape), weights, with_background=with_background)
        return shares, None if weights is None else _mean(weights, votes)
    classes, votes = _classes(_blocks(target, shape), weights, ignore_index)
    return classes, None if weights is None else _mean(weights, votes)


def _blocks(values: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Turn (..., I, J, K) into (..., i, j, k, voxels of the block)."""
    sizes = [part for full, size in zip(values.shape[-3:], shape, strict=True) for part in (size, full // size)]
    parted = values.reshape(*values.shape[:-3], *sizes)
    return parted.movedim((-5, -3, -1), (-3, -2, -1)).flatten(-3)


def _classes(blocks: Tensor, weights: Tensor | None, ignore_index: int | None) -> tuple[Tensor, Tensor]:
    """Class of each block, and which of its voxels made it so."""
    judged = torch.ones_like(blocks, dtype=torch.bool) if weights is None else weights > 0
    if ignore_index is not None:
        judged = judged & (blocks != ignore_index)
    highest = blocks.masked_fill(~judged, -1).amax(dim=-1)
    classes = highest.masked_fill(~judged.any(dim=-1), 0 if ignore_index is None else ignore_index)
    return classes, judged & (blocks == classes.unsqueeze(-1))


def _shares(blocks: Tensor, weights: Tensor | None, *, with_background: bool) -> tuple[Tensor, Tensor]:
    """Shares of each block, and how much each of its voxels had to do with it."""
    judged = torch.ones_like(blocks[:, 0], dtype=torch.bool) if weights is None else weights > 0
    lesions = (blocks[:, 1:] if with_background else blocks) * judged.unsqueeze(1)
    highest, votes = lesions.amax(dim=-1), lesions.sum(dim=1)
    votes = torch.where(votes.sum(dim=-1, keepdim=True) > 0, votes, judged.to(votes.dtype))
    if not with_background:
        return highest, votes
    total = highest.sum(dim=1, keepdim=True)
    return torch.cat([(1 - total).clamp(min=0), highest / total.clamp(min=1)], dim=1), votes


def _mean(weights: Tensor, votes: Tensor) -> Tensor:
    """Mean weight of each block by the votes of its voxels, 0 where there are none."""
    votes = votes.to(weights.dtype)
    total = votes.sum(dim=-1)
    return torch.where(total > 0, (weights * votes).sum(dim=-1) / total, torch.zeros_like(total))
