"""What label values mean, from the several ways in which datasets and settings say it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from medfocal.data.manifest import MOST_CLASSES, LabelScheme

BACKGROUND = "background"
#: What a dataset that does not name its label values is taken to hold.
ONE_LESION = LabelScheme({0: BACKGROUND, 1: "lesion"})
MOST_VALUE = 65535


def scheme_of_values(names: Mapping[int, str], *, ignore_value: int | None = None) -> LabelScheme:
    """A scheme of named values, such as `{0: "background", 1: "oedema", 4: "tumour"}`.

    Raises:
        ValueError: There is no background, no other value, too many, or a name twice.
    """
    check_values([*names], ignore_value)
    values = sorted(names)
    if values[:1] != [0] or len(values) < 2:
        message = f"label values must be 0 (background) and at least one more, got {values}"
        raise ValueError(message)
    twice = [name for name, count in Counter(names.values()).items() if count > 1]
    if twice:
        same = [value for value in values if names[value] == twice[0]]
        message = (
            f"the label values {', '.join(map(str, same))} are all named '{twice[0]}'. Name them apart, "
            f"or say what is one class: data.classes={{{twice[0]}: {same}}}"
        )
        raise ValueError(message)
    return LabelScheme(
        {number: names[value] for number, value in enumerate(values)},
        values=_unless_plain({value: number for number, value in enumerate(values)}),
        ignore_value=ignore_value,
    )


def scheme_of_names(
    values: Mapping[str, Sequence[int]], *, as_regions: bool, ignore_value: int | None = None
) -> LabelScheme:
    """A scheme of names with their values, such as `{"tumour": [1, 2], "oedema": [3]}`.

    Args:
        values: Values of each class or region. `background` is 0 where it is not among them.
        as_regions: Whether these are regions, which may share values. A class within them has the name of the region
            that it makes up alone, or is called "value 3".
        ignore_value: Of voxels that nobody judged.

    Raises:
        ValueError: A value is not a class's, is used twice, or there is no lesion.

    Example:
        >>> scheme_of_names({"whole": [1, 2], "core": [1]}, as_regions=True).regions
        {'whole': (1, 2), 'core': (1,)}
    """
    background = sorted(set(values.get(BACKGROUND, [0])))
    lesions = {name: sorted(set(own)) for name, own in values.items() if name != BACKGROUND}
    if 0 not in background:
        message = f"0 is the background, which was given {background}"
        raise ValueError(message)
    if not lesions or not all(lesions.values()):
        message = f"each class needs a label value, and one beside the background is needed, got {dict(values)}"
        raise ValueError(message)
    used = [value for own in (background, *lesions.values()) for value in own]
    check_values(used, ignore_value)
    twice = sorted(value for value, count in Counter(used).items() if count > 1)
    if twice and (not as_regions or set(twice) & set(background)):
        message = f"label value {twice[0]} belongs to more than one of {', '.join({BACKGROUND: 0, **values})}"
        raise ValueError(message)
    if not as_regions:
        numbers = {value: number for number, own in enumerate(lesions.values(), start=1) for value in own}
        names = {0: BACKGROUND, **dict(enumerate(lesions, start=1))}
        return LabelScheme(
            names, values=_unless_plain(dict.fromkeys(background, 0) | numbers), ignore_value=ignore_value
        )
    alone = {own[0]: name for name, own in lesions.items() if len(own) == 1}
    parts = sorted({value for own in lesions.values() for value in own})
    numbers = {value: number for number, value in enumerate(parts, start=1)}
    return LabelScheme(
        {0: BACKGROUND} | {numbers[value]: alone.get(value, f"value {value}") for value in parts},
        values=_unless_plain(dict.fromkeys(background, 0) | numbers),
        regions={name: tuple(numbers[value] for value in own) for name, own in lesions.items()},
        ignore_value=ignore_value,
    )


def scheme_of_classes(classes: Any, ignore_value: int | None = None) -> LabelScheme:
    """The scheme that `data.classes` names: `{lesion: 1}`, `{tumour: [1, 2], oedema: 3}`.

    Names whose values overlap are regions; otherwise they are classes.

    Raises:
        ValueError: It is no such mapping, or makes no sense.
    """
    if not isinstance(classes, Mapping) or not classes:
        message = f"classes must be names with a label value or a list of them, such as {{lesion: 1}}, got {classes!r}"
        raise ValueError(message)
    values = {}
    for name, given in classes.items():
        own = given if isinstance(given, Sequence) and not isinstance(given, str) else [given]
        if not str(name).strip() or not all(type(value) is int for value in own):
            message = f"classes: each name has a whole number or a list of them, got {name}: {given!r}"
            raise ValueError(message)
        values[str(name)] = list(own)
    counts = Counter(value for own in values.values() for value in set(own))
    return scheme_of_names(values, as_regions=max(counts.values(), default=0) > 1, ignore_value=ignore_value)


def numbered(found: Any, what: str) -> dict[int, str]:
    """The names of a JSON object such as `{"0": "background", "1": "lesion"}`.

    Args:
        found: The object.
        what: Its key, for messages.

    Raises:
        ValueError: It is not one.
    """
    if not isinstance(found, dict) or not found or not all(re.fullmatch("0|[1-9][0-9]{0,4}", key) for key in found):
        message = f"no usable '{what}': an object such as {{'0': 'name'}} is expected"
        raise ValueError(message)
    return {int(key): str(name) for key, name in found.items()}


def _unless_plain(classes: Mapping[int, int]) -> dict[int, int] | None:
    """Class of each value, or None where values are the classes."""
    return None if all(value == number for value, number in classes.items()) else dict(classes)


def check_values(values: Sequence[int], ignore_value: int | None) -> None:
    """Refuse label values that no file can have, more than classes can be, and one that is a class and ignored.

    Raises:
        ValueError: They are so.
    """
    if len(set(values)) > MOST_CLASSES:
        message = f"{len(set(values))} label values; classes are stored in a byte, so at most {MOST_CLASSES}"
        raise ValueError(message)
    wrong = [value for value in (*values, ignore_value) if value is not None and not 0 <= value <= MOST_VALUE]
    if wrong:
        message = f"label values must be in [0, {MOST_VALUE}], got {wrong[0]}"
        raise ValueError(message)
    if ignore_value in values:
        message = f"{ignore_value} is both the ignored value and the value of a class"
        raise ValueError(message)
