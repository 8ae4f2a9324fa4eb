"""What could not be had, where and why: undefined is NaN, and each NaN has its line."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Undefined:
    """A figure that could not be had.

    Attributes:
        what: Name of the figure.
        where: The cases or the point it belongs to.
        why: The reason.
    """

    what: str
    where: str
    why: str
