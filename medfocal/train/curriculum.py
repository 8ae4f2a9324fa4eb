"""Arguments of the loss that move with the training: easy first, or the cap only once right labels are learnt."""

from __future__ import annotations

import difflib
import inspect
import math
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from medfocal.losses.module import TrainingLoss

__all__ = ["Curriculum"]

Value = float | list[float | str]

# What a compiled loss has as constants in its code.
_CONSTANTS = frozenset({"gamma", "alpha", "label_smoothing", "cap"})

_EXAMPLE = "give points as in {gamma: [[0, 0], [0.5, 2]]}"


class Curriculum:
    """Values by share of training, linear between the given points and constant before the first and after the last.

    A value is a number, or a list of them such as gamma per class. A text in a list stays, as the kind of a cap:
    `{"cap": [[0.2, ["zero", 0.001]], [0.5, ["zero", 0.1]]]}`.

    Args:
        settings: A mapping: for each argument of the loss, points [share of training in [0, 1], value], shares rising.

    Raises:
        ValueError: There are fewer than two points, shares do not rise or are outside [0, 1], or values are not finite
            numbers or lists of one form.

    Example:
        >>> curriculum = Curriculum({"gamma": [[0, 0], [0.5, 2]]})
        >>> [curriculum.at(progress) for progress in (0, 0.25, 0.75)]
        [{'gamma': 0.0}, {'gamma': 1.0}, {'gamma': 2.0}]
    """

    def __init__(self, settings: Any) -> None:
        if not isinstance(settings, Mapping):
            message = f"a curriculum maps arguments of the loss to points, got {settings!r}; {_EXAMPLE}"
            raise ValueError(message)
        self._points = {name: _checked_points(name, points) for name, points in settings.items()}

    def at(self, progress: float) -> dict[str, Value]:
        """Each moving argument at this share of training; empty where nothing moves."""
        return {name: _value_at(points, progress) for name, points in self._points.items()}

    def loss_at(self, progress: float, build: Callable[..., TrainingLoss]) -> TrainingLoss:
        """The loss at this share of training, which takes some 50 microseconds to build.

        A compiled loss has gamma, alpha, label smoothing and cap as constants in its code. A new value for each epoch
        would compile it anew: some 2 s each on 2 CPU cores, saved only after 450 steps with two patches of 64^3 voxels
        (Dice + focal loss at gamma 1.37: eager 7.7 ms, compiled 3.4 ms), and 3 MB that stay. So while one of these
        moves, backend="auto" is eager, and from the last point on what it always is. It depends on `progress` alone,
        so that a training that was interrupted goes on with the same numbers. backend="compiled" compiles each value.

        Args:
            progress: Share of training that is done.
            build: Makes the loss, with other arguments than stated where some are given.
        """
        loss = build(**self.at(progress))
        if any(_moves_at(points, progress) for name, points in self._points.items() if name in _CONSTANTS):
            loss.avoid_compiling()
        return loss

    def check_against(self, loss: Callable[..., object], stated: Mapping[str, Any]) -> None:
        """Refuse what this loss cannot have, by building it at every point.

        Args:
            loss: A class with annotated arguments.
            stated: Its arguments that do not move, and those that do with whatever value.

        Raises:
            ValueError: An argument is unknown, is a choice or a whole number, or has a value out of range.
        """
        parameters = inspect.signature(loss, eval_str=True).parameters
        title = getattr(loss, "__name__", str(loss))
        for name in self._points:
            if name not in parameters:
                near = difflib.get_close_matches(name, parameters, n=1)
                hint = f" (did you mean '{near[0]}'?)" if near else f"; it has {', '.join(parameters)}"
                message = f"{title} has no '{name}'{hint}"
                raise ValueError(message)
            if float not in _kinds(parameters[name].annotation):
                message = (
                    f"'{name}' of {title} cannot move: between two points it would have values that are none of its "
                    "own. Only fractions can, such as gamma, weights and rates"
                )
                raise ValueError(message)
        for share in sorted({share for points in self._points.values() for share, _ in points}):
            try:
                loss(**{**stated, **self.at(share)})
            except (TypeError, ValueError) as error:
                message = f"{title} at {share:g} of the training: {error}"
                raise ValueError(message) from error


def _checked_points(name: str, points: Any) -> list[tuple[float, Value]]:
    if not _is_list(points) or len(points) < 2 or not all(_is_list(point) and len(point) == 2 for point in points):
        message = f"'{name}' needs two points [share, value] or more, got {points!r}; {_EXAMPLE}"
        raise ValueError(message)
    checked = [(_share(name, share), _checked_value(name, value)) for share, value in points]
    for (earlier, before), (later, after) in pairwise(checked):
        if not earlier < later:
            message = f"'{name}': shares of training must rise, got {later:g} after {earlier:g}"
            raise ValueError(message)
        if _form(before) != _form(after):
            message = (
                f"'{name}': values must be alike, numbers or lists of one length and text, got {before} and {after}"
            )
            raise ValueError(message)
    return checked


def _share(name: str, share: Any) -> float:
    if not _is_number(share) or not 0 <= share <= 1:
        message = f"'{name}': a share of training must be in [0, 1], got {share!r}"
        raise ValueError(message)
    return float(share)


def _checked_value(name: str, value: Any) -> Value:
    if _is_number(value):
        return float(value)
    if _is_list(value) and all(_is_number(item) or isinstance(item, str) for item in value):
        items = [item if isinstance(item, str) else float(item) for item in value]
        if not all(isinstance(item, str) for item in items):
            return items
    message = f"'{name}': a value must be a finite number or a list with some, got {value!r}"
    raise ValueError(message)


def _form(value: Value) -> list[str | None] | None:
    """What must be the same at all points: whether it is a list, its length, and its texts."""
    return [item if isinstance(item, str) else None for item in value] if isinstance(value, list) else None


def _value_at(points: Sequence[tuple[float, Value]], progress: float) -> Value:
    if progress <= points[0][0]:
        return points[0][1]
    for (earlier, before), (later, after) in pairwise(points):
        if earlier <= progress < later:
            part = (progress - earlier) / (later - earlier)
            if isinstance(before, list):
                return [_between(*pair, part) for pair in zip(before, cast("list[Any]", after), strict=True)]
            return cast("float", _between(before, cast("float", after), part))
    return points[-1][1]


def _between(before: float | str, after: float | str, part: float) -> float | str:
    if isinstance(before, str) or isinstance(after, str):
        return before
    return before + part * (after - before)  # exactly the value where the two are equal


def _moves_at(points: Sequence[tuple[float, Value]], progress: float) -> bool:
    return any(
        earlier <= progress < later and before != after for (earlier, before), (later, after) in pairwise(points)
    )


def _kinds(annotation: Any) -> Iterator[Any]:
    """The plain types within an annotation."""
    inner = typing.get_args(annotation)
    for part in inner:
        yield from _kinds(part)
    if not inner:
        yield annotation


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)
