"""Showing how far long work has come: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")

# Elsewhere than on a terminal a line at most this often, so that a log stays readable.
SECONDS_BETWEEN_LINES = 5.0


def say(message: str) -> None:
    """Print one line for the user, at once."""
    if not _IS_SILENT[0]:
        print(message, flush=True)


#: What `silence` has set.
_IS_SILENT = [False]


def silence() -> None:
    """Show nothing from here on, as all but the first of several processes do."""
    _IS_SILENT[0] = True


def track(
    items: Iterable[Item], description: str, total: int | None = None, *, status: Callable[[], str] | None = None
) -> Iterator[Item]:
    """Go through `items` and show progress: a bar where stderr is a terminal, else plain lines.

    Args:
        items: What to go through.
        description: What is done with them, such as "read".
        total: How many there are; None asks `len(items)`.
        status: What else to say of the work so far.
    """
    if _IS_SILENT[0]:
        yield from items
        return
    total = len(items) if total is None else total  # type: ignore[arg-type]  # the docstring says so
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import Progress

        with Progress(console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(description, total=total)
            for item in items:
                yield item
                bar.update(task, advance=1, description=f"{description}  {status()}" if status else description)
        return
    last = time.monotonic()
    for number, item in enumerate(items, start=1):
        yield item
        if time.monotonic() - last >= SECONDS_BETWEEN_LINES and number < total:
            last = time.monotonic()
            more = f", {status()}" if status else ""
            print(f"{description}: {number} of {total}{more}", file=sys.stderr, flush=True)
