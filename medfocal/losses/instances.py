"""Connected components of masks in plain torch, on the masks' own device, for losses that need them at every step."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

# Number of neighbours, and along how many axes at once a neighbour may differ, by number of spatial axes.
_AXES_OF_NEIGHBOURS = {1: {2: 1}, 2: {4: 1, 8: 2}, 3: {6: 1, 18: 2, 26: 3}}


def label_instances(mask: Tensor, *, connectivity: int) -> Tensor:
    """Number the connected components of each case.

    A run is a maximal stretch of foreground voxels along the last axis. Runs are the nodes of a graph, joined
    where they touch, and `_smallest_of_component` finds its components; the answer is exact, and the same on
    every device. Where two runs touch, the first pair of touching voxels has the first voxel of one of them, so
    the neighbours of first voxels show every contact. Beyond a few passes over the mask, and 5 bytes a voxel
    beside the result, time and memory grow with the foreground only. Each round synchronises with the device.

    Args:
        mask: Bool (B, *spatial) with 1 to 3 spatial axes, any of which may have a single voxel or none.
        connectivity: Number of neighbours of a voxel: 2 for one axis, 4 or 8 for two, 6, 18 or 26 for three.

    Returns:
        int32, in the mask's shape and on its device: 0 outside, 1..n in each case in the order of a
        component's first voxel (last axis fastest). An empty mask has 0 everywhere.

    Raises:
        ValueError: The mask isn't bool, has another number of axes, or `connectivity` does not go with it.

    Example:
        >>> import torch
        >>> mask = torch.tensor([[[1, 1, 0, 0], [0, 0, 1, 0], [1, 0, 0, 0]]], dtype=torch.bool)
        >>> label_instances(mask, connectivity=8).tolist()
        [[[1, 1, 0, 0], [0, 0, 1, 0], [2, 0, 0, 0]]]
        >>> label_instances(mask, connectivity=4).tolist()
        [[[1, 1, 0, 0], [0, 0, 2, 0], [3, 0, 0, 0]]]

    References:
        Shiloach and Vishkin, "An O(log n) parallel connectivity algorithm", Journal of Algorithms 1982, for
        hooking and pointer jumping; here every tree hooks at once, onto its smallest neighbour.
    """
    _check_mask(mask, connectivity)
    if mask.numel() == 0:
        return torch.zeros(mask.shape, dtype=torch.int32, device=mask.device)
    num_cases, num_axes = mask.shape[0], mask.ndim - 1
    # A border of background lets neighbours be found by adding to a flat index: none leaves its line or case.
    padded = F.pad(mask, [1, 1] * num_axes)
    inside = padded.flatten()
    begins = inside.clone()
    begins[1:] &= ~inside[:-1]
    run_of_voxel = begins.cumsum(0, dtype=torch.int32) - 1
    first_voxel = begins.nonzero().squeeze(1)

    first, second = _touching_runs(inside, run_of_voxel, first_voxel, _line_offsets(padded.shape[1:], connectivity))
    smallest = _smallest_of_component(len(first_voxel), first, second)
    case_of_run = first_voxel // padded[0].numel()
    number_of_run = _count_within_cases(smallest, case_of_run, num_cases)

    numbers = torch.zeros(inside.shape, dtype=torch.int32, device=mask.device)
    voxels = inside.nonzero().squeeze(1)
    numbers[voxels] = number_of_run[run_of_voxel[voxels].long()]
    within = (slice(None), *[slice(1, -1)] * num_axes)
    return numbers.reshape(padded.shape)[within].contiguous()


def check_connectivity(connectivity: int) -> int:
    """Return connectivity if it is one for some number of axes, before any mask is at hand."""
    allowed = sorted(itertools.chain.from_iterable(_AXES_OF_NEIGHBOURS.values()))
    if connectivity not in allowed:
        raise ValueError(f"connectivity must be one of {', '.join(map(str, allowed))}, got {connectivity}")
    return connectivity


def _check_mask(mask: Tensor, connectivity: int) -> None:
    if mask.dtype != torch.bool or not 2 <= mask.ndim <= 4:
        raise ValueError(
            f"mask must be bool (B, *spatial) with 1 to 3 spatial axes, got {mask.dtype} of shape {tuple(mask.shape)}"
        )
    allowed = _AXES_OF_NEIGHBOURS[mask.ndim - 1]
    if connectivity not in allowed:
        raise ValueError(
            f"connectivity must be {' or '.join(map(str, allowed))} for {mask.ndim - 1} spatial axes, "
            f"got {connectivity} for a mask of shape {tuple(mask.shape)}"
        )


def _line_offsets(shape: Sequence[int], connectivity: int) -> list[int]:
    """Flat offsets, in a volume of this shape, of a voxel's neighbours on other lines along the last axis."""
    most_axes = _AXES_OF_NEIGHBOURS[len(shape)][connectivity]
    strides = [1]
    for length in reversed(shape[1:]):
        strides.insert(0, strides[0] * length)
    return [
        sum(step * stride for step, stride in zip(steps, strides, strict=True))
        for steps in itertools.product((-1, 0, 1), repeat=len(shape))
        if any(steps[:-1]) and sum(map(abs, steps)) <= most_axes
    ]


def _touching_runs(
    inside: Tensor, run_of_voxel: Tensor, first_voxel: Tensor, offsets: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Pairs of runs on different lines that touch, int64 (E,) each; a pair may come more than once."""
    runs = torch.arange(len(first_voxel), device=inside.device)
    first, second = [runs[:0]], [runs[:0]]
    for offset in offsets:
        neighbour = first_voxel + offset
        touches = inside[neighbour]
        first.append(runs[touches])
        second.append(run_of_voxel[neighbour[touches]].long())
    return torch.cat(first), torch.cat(second)


def _smallest_of_component(num_nodes: int, first: Tensor, second: Tensor) -> Tensor:
    """Smallest node of each node's component in the graph with edges (first, second), int64 (num_nodes,).

    In each round every tree's root hooks onto the smallest root that an edge of the tree leads to, if that is
    smaller than itself, and then all paths are cut to length 1. A root that did not hook is smaller than its
    neighbours, and these have hooked onto it or onto a still smaller root; in the latter case it hooks one
    round later. So two rounds at least halve the number of trees that are not yet whole components.
    """
    parent = torch.arange(num_nodes, device=first.device)
    while len(first) > 0:
        parent.scatter_reduce_(0, torch.maximum(first, second), torch.minimum(first, second), "amin")
        grandparent = parent[parent]
        while not torch.equal(grandparent, parent):
            parent = grandparent
            grandparent = parent[parent]
        first, second = parent[first], parent[second]
        apart = first != second
        first, second = first[apart], second[apart]
    return parent


def _count_within_cases(smallest: Tensor, case_of_run: Tensor, num_cases: int) -> Tensor:
    """Number of each run's component within its case, from 1, int32."""
    is_first = smallest == torch.arange(len(smallest), device=smallest.device)
    per_case = torch.bincount(case_of_run[is_first], minlength=num_cases)
    in_earlier_cases = per_case.cumsum(0) - per_case
    number_in_batch = is_first.cumsum(0)[smallest]
    return (number_in_batch - in_earlier_cases[case_of_run]).to(torch.int32)
