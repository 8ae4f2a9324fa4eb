"""Rotations, ellipsoids, and the share of a voxel that lies inside a surface."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]


def rotation(rng: np.random.Generator, low_degrees: float, high_degrees: float) -> Array:
    """A rotation by an angle in the given range about a random axis (Rodrigues)."""
    axis = rng.standard_normal(3)
    x, y, z = axis / np.linalg.norm(axis)
    angle = np.deg2rad(rng.uniform(low_degrees, high_degrees))
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.asarray(np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * (cross @ cross))


def about_z(degrees: float) -> Array:
    """A rotation about the axis that points to the head's top."""
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return np.array([[cosine, -sine, 0], [sine, cosine, 0], [0, 0, 1.0]])


@dataclass(frozen=True)
class Ellipsoid:
    """Centre and semi-axes in mm from the head's centre; the columns of `axes` are its directions."""

    centre_mm: Array
    semi_axes_mm: Array
    axes: Array

    def distance_mm(self, points: Array) -> Array:
        """Signed distance to the surface, negative inside; first-order, exact on the surface."""
        local = (points - self.centre_mm) @ self.axes
        scaled = np.linalg.norm(local / self.semi_axes_mm, axis=-1)
        slope = np.linalg.norm(local / self.semi_axes_mm**2, axis=-1)
        distance: Array = scaled * (scaled - 1) / np.maximum(slope, 1e-6)
        return distance


def share(distance_mm: Array, width_mm: float = 0.5) -> Array:
    """Share of a voxel inside a surface at a signed distance: 1 deep inside (negative), .5 on it, 0 outside."""
    return np.clip(0.5 - distance_mm / (2 * width_mm), 0, 1)
