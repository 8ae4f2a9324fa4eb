"""Where each voxel of a training patch comes from: rotation, scaling and elastic change, sampled in one step.

Plain torch, on any device, and forward only. The eight neighbours of a point are fetched one after another with
indices that are computed once: on one core that is three to four times as fast as `affine_grid` with `grid_sample`,
and the label follows by the same indices. Turns are turns in mm: with unequal spacing nothing is sheared.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

#: Largest displacement of a control point, in distances of control points, that leaves a cubic B-spline one to one
#: (Choi and Lee 2000, "Injectivity conditions of 2D and 3D uniform cubic B-spline functions", Graphical Models 62).
INJECTIVE = 0.4

#: What goes to the nearest voxel instead of linearly between voxels.
NEAREST = frozenset({"label"})

#: Angles along each axis at which the reach of a rotation is tried.
NUM_ANGLES = 13

# The last voxel has no neighbour to interpolate with.
EDGE = 1e-3


@dataclass(frozen=True, kw_only=True)
class Warp:
    """From a voxel of the patch to the point of the input that it shows, both from the centre.

    Attributes:
        matrix: `(3, 3)`, from voxels to voxels.
        displacement: Added before the matrix, in voxels, float32 `(3, I, J, K)`, or None.
        largest: Bound of the displacement along each axis, in voxels.
    """

    matrix: NDArray[np.float64]
    displacement: Tensor | None = None
    largest: tuple[float, float, float] = (0.0, 0.0, 0.0)


def rotation_matrix(degrees: Sequence[float] | NDArray[np.float64]) -> NDArray[np.float64]:
    """Turns about the first, then the second, then the third axis, `(3, 3)`."""
    (ci, cj, ck), (si, sj, sk) = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    about_i = np.array([[1, 0, 0], [0, ci, -si], [0, si, ci]])
    about_j = np.array([[cj, 0, sj], [0, 1, 0], [-sj, 0, cj]])
    about_k = np.array([[ck, -sk, 0], [sk, ck, 0], [0, 0, 1]])
    turned: NDArray[np.float64] = about_k @ about_j @ about_i
    return turned


def affine_matrix(
    degrees: NDArray[np.float64], factors: NDArray[np.float64], spacing_mm: Sequence[float]
) -> NDArray[np.float64]:
    """From voxels of the patch to voxels of the input, for things that grow along the axes and then turn.

    Args:
        degrees: Of the turns about the three axes, in mm.
        factors: On the size of things along each axis.
        spacing_mm: Of the voxels.

    Returns:
        `(3, 3)`: diag(1 / spacing) diag(1 / factors) R^T diag(spacing).
    """
    spacing = np.asarray(spacing_mm, dtype=np.float64)
    matrix: NDArray[np.float64] = rotation_matrix(degrees).T * spacing / factors[:, None] / spacing[:, None]
    return matrix


def reach(
    patch_size: Sequence[int],
    spacing_mm: Sequence[float],
    *,
    degrees: Sequence[float],
    smallest: float,
    displacement_mm: float,
) -> tuple[int, int, int]:
    """Voxels of the input that hold all points that a patch may show, the difference even along each axis.

    Args:
        patch_size: Voxels of the patch.
        spacing_mm: Of the voxels.
        degrees: Largest angle about each axis.
        smallest: Least factor on the size of things along any axis.
        displacement_mm: Largest elastic displacement along an axis.
    """
    spacing = np.asarray(spacing_mm, dtype=np.float64)
    half_mm = (np.asarray(patch_size) - 1) / 2 * spacing + displacement_mm
    angles = itertools.product(*(np.unique(np.linspace(-a, a, NUM_ANGLES)) for a in degrees))
    turned = np.max([np.abs(rotation_matrix(found).T) @ half_mm for found in angles], axis=0)
    beyond = turned / smallest / spacing - (np.asarray(patch_size) - 1) / 2
    # The most between two of the angles is less than 1 % beyond what was tried.
    return _grown(patch_size, np.ceil(beyond * 1.01))


def limited(patch_size: Sequence[int], wanted: Sequence[int], limit: float) -> tuple[int, int, int]:
    """The wanted size, but no axis more than `limit` times the patch's."""
    most = np.floor((limit - 1) * np.asarray(patch_size) / 2 + 1e-6)  # 1.2 times 10 is 12, not a little less
    return _grown(patch_size, np.minimum((np.asarray(wanted) - patch_size) // 2, most))


def _grown(patch_size: Sequence[int], margin: NDArray[np.float64]) -> tuple[int, int, int]:
    i, j, k = (int(n + 2 * max(m, 0)) for n, m in zip(patch_size, margin, strict=True))
    return i, j, k


def elastic_displacement(
    coefficients: NDArray[np.float64],
    patch_size: Sequence[int],
    *,
    spacing_mm: Sequence[float],
    control_spacing_mm: float,
    device: torch.device,
) -> Tensor:
    """The displacement that a cubic B-spline makes of displacements of its control points.

    Args:
        coefficients: In mm, `(3, *control_points(...))`.
        patch_size: Voxels of the patch.
        spacing_mm: Of the voxels.
        control_spacing_mm: Distance of control points.
        device: Where the result is wanted.

    Returns:
        In voxels, float32 `(3, I, J, K)`; along no axis more than the largest coefficient.
    """
    steps = control_spacing_mm / np.asarray(spacing_mm)
    bases = [_spline_basis(n, step) for n, step in zip(patch_size, steps, strict=True)]
    in_voxels = coefficients / np.asarray(spacing_mm)[:, None, None, None]
    return tensor_product(in_voxels, bases, device)


def control_points(
    patch_size: Sequence[int], spacing_mm: Sequence[float], control_spacing_mm: float
) -> tuple[int, int, int]:
    """How many control points along each axis reach a patch."""
    i, j, k = (_spline_basis(n, control_spacing_mm / s).shape[1] for n, s in zip(patch_size, spacing_mm, strict=True))
    return i, j, k


def _spline_basis(num_voxels: int, step: float) -> NDArray[np.float64]:
    """Weight of each control point at each voxel, `(num_voxels, num_points)`; each row sums to 1."""
    place = (np.arange(num_voxels) - (num_voxels - 1) / 2) / step
    points = np.arange(np.floor(place[0]) - 1, np.floor(place[-1]) + 3)
    far = np.abs(place[:, None] - points)
    near = 2 / 3 - far**2 + far**3 / 2
    weights: NDArray[np.float64] = np.where(far < 1, near, np.maximum(2 - far, 0) ** 3 / 6)
    return weights


def tensor_product(
    coefficients: NDArray[np.float64], bases: Sequence[NDArray[np.float64]], device: torch.device
) -> Tensor:
    """Sums of products of functions of one axis each.

    Args:
        coefficients: `(N, P, Q, R)`.
        bases: Values of the functions, `(I, P)`, `(J, Q)` and `(K, R)`.
        device: Where the result is wanted.

    Returns:
        float32 `(N, I, J, K)`.
    """
    # The last axis stays small until the end, and is done where the memory is.
    first = np.einsum("npqr,ip,jq->nijr", coefficients, bases[0], bases[1], optimize=True)
    on_device = torch.from_numpy(first.astype(np.float32)).to(device)
    return on_device @ torch.from_numpy(bases[2].T.astype(np.float32)).to(device)


def sample(given: Mapping[str, Tensor], size: Sequence[int], warp: Warp | None) -> dict[str, Tensor]:
    """What a patch in the middle of the input shows.

    Args:
        given: Each `(N, I, J, K)` on one grid.
        size: Voxels of the patch.
        warp: Where its voxels come from; None: from where they are.

    Returns:
        Each `(N, *size)`: views of what was given where there is no warp; else linear between voxels, `label` the
        nearest. Points outside of what was given are 0.
    """
    shape = next(iter(given.values())).shape[1:]
    starts = [(n - m) // 2 for n, m in zip(shape, size, strict=True)]
    if warp is None:
        inner = (slice(None), *(slice(s, s + m) for s, m in zip(starts, size, strict=True)))
        return {key: values[inner] for key, values in given.items()}
    centre = np.array(starts) + (np.array(size) - 1) / 2
    if not _stays_inside(warp, shape, size, centre):
        # Two behind: where points are held back from the last voxel, both neighbours are 0.
        given = {key: F.pad(values, (1, 2) * 3) for key, values in given.items()}
        centre = centre + 1
    if warp.displacement is None and np.array_equal(warp.matrix, np.diag(np.diag(warp.matrix))):
        return _sample_along_axes(given, size, np.diag(warp.matrix), centre)
    return _sample_points(given, size, warp, centre)


def _stays_inside(warp: Warp, shape: Sequence[int], size: Sequence[int], centre: NDArray[np.float64]) -> bool:
    """Whether all points lie between voxels of the input."""
    far = np.abs(warp.matrix) @ ((np.array(size) - 1) / 2 + np.array(warp.largest))
    return bool((centre - far >= 0).all() and (centre + far <= np.array(shape) - 1 - EDGE).all())


def _sample_along_axes(
    given: Mapping[str, Tensor], size: Sequence[int], steps: NDArray[np.float64], centre: NDArray[np.float64]
) -> dict[str, Tensor]:
    """Linear interpolation is a product over the axes, where they are not turned: one after another then."""
    found = dict(given)
    for axis in range(3):
        length = next(iter(given.values())).shape[axis + 1]
        place = centre[axis] + steps[axis] * (np.arange(size[axis]) - (size[axis] - 1) / 2)
        place = place.clip(0, length - 1 - EDGE)
        for key, values in found.items():
            if key in NEAREST:
                found[key] = _picked(values, axis + 1, np.floor(place + 0.5))
            else:
                found[key] = between(values, axis + 1, np.floor(place), np.floor(place) + 1, place % 1)
    return found


def between(
    values: Tensor, axis: int, first: NDArray[np.float64], second: NDArray[np.float64], share: NDArray[np.float64]
) -> Tensor:
    """Along an axis, (1 - share) of one voxel and share of another.

    Args:
        values: float32.
        axis: Which of them.
        first: Index of the one voxel, `(M,)`.
        second: Of the other.
        share: Of the other, in [0, 1].

    Returns:
        Like `values`, with M voxels along the axis.
    """
    weight = torch.from_numpy(share.astype(np.float32)).to(values.device)
    weight = weight.view([-1 if n == axis else 1 for n in range(values.ndim)])
    low = _picked(values, axis, first)
    return low.lerp_(_picked(values, axis, second), weight.expand_as(low))


def _picked(values: Tensor, axis: int, places: NDArray[np.float64]) -> Tensor:
    """The voxels at these places along an axis."""
    index = torch.from_numpy(places.astype(np.int64)).to(values.device)
    if axis == values.ndim - 1:  # where index_select is two to three times as slow
        return values.gather(axis, index.expand(*values.shape[:-1], -1))
    return values.index_select(axis, index)


def _sample_points(
    given: Mapping[str, Tensor], size: Sequence[int], warp: Warp, centre: NDArray[np.float64]
) -> dict[str, Tensor]:
    """Linear interpolation, or the nearest voxel, at points anywhere within the input."""
    values = next(iter(given.values()))
    shape = values.shape[1:]
    points = _points(size, warp, centre, values.device)
    strides = (shape[1] * shape[2], shape[2], 1)
    base = torch.zeros(tuple(size), dtype=torch.int32, device=values.device)
    shares = []
    for point, length, stride in zip(points, shape, strides, strict=True):
        point.clamp_(0, length - 1 - EDGE)
        base.add_(point.to(torch.int32), alpha=stride)  # towards 0, which is down
        shares.append(point.frac_().view(-1))
    found = {}
    for key, channels in given.items():
        if key in NEAREST:
            nearest = base.clone().view(-1)
            for share, stride in zip(shares, strides, strict=True):
                nearest.add_(share.round().to(torch.int32), alpha=stride)
            flat = [channel.reshape(-1).index_select(0, nearest) for channel in channels]
        else:
            flat = [_interpolated(channel.reshape(-1), base.view(-1), shares, strides) for channel in channels]
        found[key] = torch.stack(flat).view(-1, *size)
    return found


def _points(size: Sequence[int], warp: Warp, centre: NDArray[np.float64], device: torch.device) -> list[Tensor]:
    """The three coordinates of each voxel's point, in voxels of the input, float32 `(I, J, K)`."""
    i, j, k = (torch.arange(n, dtype=torch.float32, device=device) - (n - 1) / 2 for n in size)
    points = []
    for row, middle in zip(warp.matrix.tolist(), centre.tolist(), strict=True):
        plane = (i * row[0] + middle)[:, None] + j * row[1]
        point = plane[:, :, None] + k * row[2]
        if warp.displacement is not None:
            for factor, moved in zip(row, warp.displacement, strict=True):
                point.add_(moved, alpha=factor)
        points.append(point)
    return points


def _interpolated(flat: Tensor, base: Tensor, shares: Sequence[Tensor], strides: Sequence[int]) -> Tensor:
    """Between the eight voxels around each point, of which `base` is the first."""
    along_i, along_j, along_k = shares
    slabs = []
    for offset in (0, strides[0]):
        rows = []
        for start in (offset, offset + strides[1]):
            low = flat[start:].index_select(0, base)
            rows.append(low.lerp_(flat[start + 1 :].index_select(0, base), along_k))
        slabs.append(rows[0].lerp_(rows[1], along_j))
    return slabs[0].lerp_(slabs[1], along_i)
