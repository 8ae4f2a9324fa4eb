"""Signals that ask a training to stop: they wait until the step is done and saved."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

#: What a cluster sends before it ends a job, what a scheduler sends when time runs out, and Ctrl-C.
STOPPING = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class StopRequest:
    """Whether a signal has asked to stop.

    Attributes:
        signal: The first that came, or None.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None

    def __bool__(self) -> bool:
        return self.signal is not None

    def raise_if_any(self) -> None:
        """End the program as the signal would have: with 143, or as an interruption from the keyboard.

        Raises:
            SystemExit: After SIGTERM and SIGUSR1.
            KeyboardInterrupt: After SIGINT.
        """
        if self.signal is signal.SIGINT:
            raise KeyboardInterrupt
        if self.signal is not None:
            raise SystemExit(143)


@contextlib.contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Note signals instead of obeying them at once; a second one is obeyed.

    In a thread other than the main one signals cannot be caught, and none is noted.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {number: signal.getsignal(number) for number in STOPPING}

    def note(number: int, _frame: FrameType | None) -> None:
        request.signal = signal.Signals(number)
        for each, handler in before.items():
            signal.signal(each, handler)

    for number in STOPPING:
        signal.signal(number, note)
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
