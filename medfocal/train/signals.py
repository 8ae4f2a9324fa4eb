"""Signals that ask a training to stop: they wait until the step is done and saved."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any

#: What a cluster sends before it ends a job, what a scheduler sends when time runs out (submitit: SIGUSR2), and Ctrl-C.
STOPPING = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT)
#: Within so many seconds a further signal says the same again: torchrun passes on what its processes were sent as well.
SAME_AGAIN_S = 2.0


class StopRequest:
    """Whether a signal has asked to stop.

    Attributes:
        signal: The first that came, or None.
        handlers: What the program does with signals otherwise.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self.handlers: dict[signal.Signals, Any] = {}

    def __bool__(self) -> bool:
        return self.signal is not None

    def raise_if_any(self) -> None:
        """End the program as the signal would have: with 143, or as an interruption from the keyboard.

        Raises:
            SystemExit: After SIGTERM, SIGUSR1 and SIGUSR2.
            KeyboardInterrupt: After SIGINT.
        """
        if self.signal is signal.SIGINT:
            raise KeyboardInterrupt
        handler = self.handlers.get(signal.SIGUSR2)
        if self.signal is signal.SIGUSR2 and callable(handler):
            handler(self.signal, None)  # submitit's own: it has the job queued again and ends the program
        if self.signal is not None:
            raise SystemExit(143)


@contextlib.contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Note signals instead of obeying them at once; a second one, after a moment, is obeyed.

    In a thread other than the main one signals cannot be caught, and none is noted.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {number: signal.getsignal(number) for number in STOPPING}
    request.handlers = before
    since = 0.0

    def note(number: int, _frame: FrameType | None) -> None:
        nonlocal since
        if request.signal is None:
            request.signal, since = signal.Signals(number), time.monotonic()
        elif time.monotonic() - since > SAME_AGAIN_S or number == signal.SIGINT:
            for each, handler in before.items():
                signal.signal(each, handler)
            signal.raise_signal(number)

    for number in STOPPING:
        signal.signal(number, note)
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
