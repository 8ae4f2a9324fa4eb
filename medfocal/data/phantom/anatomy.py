"""A patient's head, ventricles and deep grey matter, and the tissue that each voxel of a study holds of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from medfocal.data.phantom.geometry import Array, Ellipsoid, about_z, share
from medfocal.data.phantom.grid import Grid


@dataclass(frozen=True)
class Anatomy:
    """What two studies of one patient share."""

    head: Ellipsoid
    ventricles: tuple[Ellipsoid, ...]
    deep_grey: tuple[Ellipsoid, ...]
    scale: float


@dataclass(frozen=True)
class Tissue:
    """Shares of tissue per voxel, in [0, 1], and distances in mm on the grid."""

    head: Array
    brain: Array
    scalp: Array
    grey: Array
    fluid: Array
    brain_depth_mm: Array
    ventricle_mm: Array


def draw_anatomy(rng: np.random.Generator, field_mm: Array) -> Anatomy:
    """Head, ventricles and deep grey matter; all lengths follow the field's size, 64 mm giving scale 1."""
    scale = float(field_mm.min()) / 64
    head = Ellipsoid(np.zeros(3), field_mm / 2 * rng.uniform((0.85, 0.89, 0.86), (0.9, 0.94, 0.91)), np.eye(3))
    size = scale * rng.uniform(0.85, 1.2)
    ventricles = [
        Ellipsoid(np.array([0.0, -1.0, -2.5]) * scale, np.array([1.1, 3.5, 3.0]) * size, np.eye(3)),
    ]
    deep_grey = []
    for side in (-1.0, 1.0):
        lean = about_z(side * rng.uniform(8, 18))
        back = about_z(-side * rng.uniform(18, 30))
        ventricles += [
            Ellipsoid(np.array([side * 3.6, 4.0, 3.5]) * scale, np.array([2.0, 6.5, 3.0]) * size, lean.T),
            Ellipsoid(np.array([side * 4.6, -6.5, 2.5]) * scale, np.array([2.0, 5.5, 2.6]) * size, back.T),
        ]
        deep_grey += [
            Ellipsoid(np.array([side * 4.6, -1.0, -3.5]) * scale, np.array([2.6, 4.0, 3.0]) * scale, lean.T),
            Ellipsoid(np.array([side * 9.5, 2.5, -1.5]) * scale, np.array([2.2, 6.0, 4.5]) * scale, lean),
        ]
    return Anatomy(head, tuple(ventricles), tuple(deep_grey), scale)


def sample_tissue(rng: np.random.Generator, anatomy: Anatomy, grid: Grid) -> Tissue:
    """Fold the surface of the brain anew and sample all layers on the grid."""
    scale = anatomy.scale
    folds = grid.smooth_field(rng, 7 * scale)
    fine = grid.smooth_field(rng, 4 * scale)
    outside = anatomy.head.distance_mm(grid.points_mm)
    # Layers from outside: scalp 2.2 mm, dark gap (bone and fluid) 2.5 mm, then brain with a slightly folded surface.
    inner = outside + 2.2 * scale
    brain_surface = outside + 4.7 * scale + 0.5 * scale * folds
    # A dark cleft between the hemispheres, down to 7 mm under the surface.
    cleft = np.maximum(np.abs(grid.points_mm[..., 0] + 0.5 * folds) - 0.7 * scale, -brain_surface - 7 * scale)
    brain = share(brain_surface)
    cortex = share(-brain_surface - 3.2 * scale - 1.4 * scale * fine, 1.0)
    deep = share(np.minimum.reduce([part.distance_mm(grid.points_mm) for part in anatomy.deep_grey]), 1.0)
    wobble = 0.3 * scale * fine
    ventricle_mm = np.minimum.reduce([part.distance_mm(grid.points_mm) for part in anatomy.ventricles]) + wobble
    fluid = np.maximum(share(ventricle_mm), 0.8 * share(cleft))
    return Tissue(
        head=outside <= 0,
        brain=brain,
        scalp=share(-inner),
        grey=np.maximum(cortex, deep),
        fluid=fluid,
        brain_depth_mm=-np.maximum(brain_surface, -cleft),
        ventricle_mm=ventricle_mm,
    )
