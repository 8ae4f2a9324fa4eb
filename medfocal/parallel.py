"""Doing the same with many items in several processes, in order, so that nothing outlives the command."""

from __future__ import annotations

import concurrent.futures
import concurrent.futures.process
import contextlib
import ctypes
import functools
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from medfocal.errors import ResourceError

Item = TypeVar("Item")
Answer = TypeVar("Answer")


@contextlib.contextmanager
def in_processes(
    task: Callable[[Item], Answer],
    items: Sequence[Item],
    workers: int,
    *,
    what: str,
    name: Callable[[Item], str] = str,
    setting: str = "workers",
) -> Iterator[Iterator[Answer]]:
    """Give an iterator over `task(item)` in the order of the items, worked on here or in other processes.

    Leaving the context cancels what has not begun. Processes end with this one, however it ends.

    Args:
        task: Can be pickled where `workers` is above 1; what it raises is raised by the iterator.
        items: What to work on.
        workers: Processes; 1 does it in this one, when the iterator is asked.
        what: What the processes do, for messages, such as "measured cases".
        name: Of an item, for messages.
        setting: By which a user says how many there are.

    Raises:
        ResourceError: A process ended without an answer; what was being worked on is named.
    """
    if workers <= 1 or len(items) <= 1:
        yield map(task, items)
        return
    # A fresh process each: one that is forked would carry the threads of numerical libraries in any state.
    context = multiprocessing.get_context("spawn")
    workers = min(workers, len(items))
    progress = context.RawArray(ctypes.c_byte, len(items))
    begin = functools.partial(_begin_worker, os.getpid(), progress)
    with concurrent.futures.ProcessPoolExecutor(workers, context, initializer=begin) as pool:
        try:
            chunk = max(1, min(16, len(items) // (4 * workers)))
            yield pool.map(functools.partial(_work, task), enumerate(items), chunksize=chunk)
        except concurrent.futures.process.BrokenProcessPool as error:
            # The pool ends the other processes too, so that there can be one such item for each.
            begun = [f"'{name(item)}'" for item, state in zip(items, progress, strict=True) if state == _BEGUN]
            where = f" while {' or '.join(begun)} was worked on" if begun else ""
            message = (
                f"a process that {what} ended without an answer{where}; it may have been out of memory. "
                f"Try {setting}=1."
            )
            raise ResourceError(message) from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def available_cores() -> int:
    """Cores that this process may use, which in a container or a job can be fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


_BEGUN, _DONE = 1, 2
_progress: Any = None  # of each item, in memory that the processes share


def _work(task: Callable[[Item], Answer], numbered: tuple[int, Item]) -> Answer:
    number, item = numbered
    _progress[number] = _BEGUN
    try:
        return task(item)
    finally:
        _progress[number] = _DONE


def _begin_worker(parent: int, progress: Any) -> None:
    """Leave Ctrl-C to the parent, and end when it ends, however it ends."""
    global _progress  # noqa: PLW0603  the pool hands nothing else to its processes
    _progress = progress
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        set_death_signal = 1  # PR_SET_PDEATHSIG, prctl(2)
        ctypes.CDLL(None).prctl(set_death_signal, signal.SIGKILL)
        if os.getppid() != parent:  # it ended before this was said
            os._exit(1)
