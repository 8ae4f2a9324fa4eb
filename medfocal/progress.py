"""Showing how far long work has come: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")

# Elsewhere than on a terminal a line at most this often, so that a log stays readable.
SECONDS_BETWEEN_LINES = 5.0


def say(message: str) -> None:
    """Print one line for the user, at once."""
    print(message, flush=True)


def track(items: Iterable[Item], description: str, total: int | None = None) -> Iterator[Item]:
    """Go through `items` and show progress: a bar where stderr is a terminal, else plain lines.

    Args:
        items: What to go through.
        description: What is done with them, such as "read".
        total: How many there are; None asks `len(items)`.
    """
    total = len(items) if total is None else total  # type: ignore[arg-type]  # the docstring says so
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import track as rich_track

        console = Console(stderr=True)
        yield from rich_track(items, description=description, total=total, console=console, transient=True)
        return
    last = time.monotonic()
    for number, item in enumerate(items, start=1):
        yield item
        if time.monotonic() - last >= SECONDS_BETWEEN_LINES and number < total:
            last = time.monotonic()
            print(f"{description}: {number} of {total}", file=sys.stderr, flush=True)
