"""Killing a training at random moments and starting it again until it ends, and what runs leave behind."""

import csv
import hashlib
import os
import re
import signal
import time
from dataclasses import dataclass

from commands import start

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGUSR1)
#: Columns of metrics.csv that tell time.
TIMES = ("seconds", "wait_share", "patches_per_second")
REPORTED = ("evaluation.json", "cases.csv", "lesions.csv", "candidates.csv")


@dataclass
class Kill:
    """A start of a run that a signal ended, or that came to its end.

    Attributes:
        seconds: That it lasted.
        signal: None: it came to its end.
        code: Its exit code.
        went_on: After how many epochs and steps; None: it did not come so far, or began.
        done: The last line that it said.
    """

    seconds: float
    signal: signal.Signals | None
    code: int
    went_on: tuple[int, int] | None
    done: str


def rows(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def outcome(home):
    """All of a run folder that must not depend on how it came about."""
    found = {
        "weights": hashlib.sha256((home / "model" / "weights.safetensors").read_bytes()).hexdigest(),
        "metrics": [{k: v for k, v in row.items() if k not in TIMES} for row in rows(home / "metrics.csv")],
        "visits": rows(home / "visits.csv"),
    }
    places = [home / split / name for split in ("validation", "test") for name in REPORTED]
    return found | {str(path.relative_to(home)): path.read_bytes() for path in places if path.exists()}


def start_until_ended(words, folder, moments, rng):
    """Start a command again and again, with a random signal at each moment, then leave it alone.

    Args:
        words: The command.
        folder: Where.
        moments: Each is called with what was started and returns when it is to be killed, or has ended.
        rng: Chooses signals.

    Returns:
        One `Kill` a start, the last of a run that came to its end.
    """
    kills = []
    for moment in (*moments, lambda started: started.process.join(300)):
        number = rng.choice(SIGNALS)
        started, begun = start(*words, folder=folder), time.monotonic()
        moment(started)
        was_killed = started.process.is_alive()
        if was_killed:
            os.kill(started.process.pid, number)
        ended = started.end()
        assert was_killed or (ended.code, ended.err) == (0, ""), ended.err
        went_on = re.search(r"continuing after (\d+) epochs and (\d+) steps", ended.out)
        kills.append(
            Kill(
                time.monotonic() - begun,
                number if was_killed else None,
                ended.code,
                None if went_on is None else (int(went_on[1]), int(went_on[2])),
                (ended.out.strip().splitlines() or ["nothing yet"])[-1],
            )
        )
        if not was_killed:
            break
    return kills


def when_changed(path, times=1, *, then_seconds=0.0):
    """A moment: once a file or folder has come, or been replaced, so many times, and a little later."""

    def moment(started):
        left, last = times, stamp(path)
        while left and started.process.is_alive():
            time.sleep(0.002)
            now = stamp(path)
            left, last = left - (now != last), now
        time.sleep(then_seconds)

    return moment


def stamp(path):
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return None
