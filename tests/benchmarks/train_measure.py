"""Programs that train, each frozen while another has its turn; their time, processor time and memory.

All figures are of a program together with the processes that it has started.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
KIB = 1024
TICK = os.sysconf("SC_CLK_TCK")
#: Of a process that has stopped with an error, the lines that are shown.
LAST_LINES = 15


@dataclasses.dataclass(frozen=True)
class Trainer:
    """A program to measure.

    Attributes:
        name: In tables.
        command: Its words.
        threads: Of torch.
        processes: Those beside the one that trains, in words.
        environment: Added to ours.
    """

    name: str
    command: tuple[str, ...]
    threads: int
    processes: str
    environment: dict[str, str] = dataclasses.field(default_factory=dict)


class Program:
    """A running trainer that takes steps on request, frozen in between.

    Args:
        trainer: What to run.
        cores: Where it and all its processes may run.
        log: File of what it prints.
    """

    def __init__(self, trainer: Trainer, cores: set[int], log: Path) -> None:
        environment = dict(os.environ, PYTHONPATH=str(ROOT), PYTHONWARNINGS="ignore") | trainer.environment
        self.started = time.time()
        self._log = log
        with log.open("w") as file:
            self._process = subprocess.Popen(
                [*kept_to(cores), *trainer.command],
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                text=True,
                start_new_session=True,
            )
        self.most_processes = 1

    def answer(self) -> dict[str, Any]:
        """The next line of its own."""
        line = self._process.stdout.readline()
        if not line:
            last = "\n".join(self._log.read_text().splitlines()[-LAST_LINES:])
            message = f"a program of the benchmark ended with {self._process.wait()}; its last lines:\n{last}"
            raise RuntimeError(message)
        return json.loads(line)

    def steps(self, count: int) -> dict[str, float]:
        """Let it take some steps; seconds of the clock and of its processors, a step."""
        self._signal(signal.SIGCONT)
        before = self._processor_seconds()
        self._process.stdin.write(f"{count}\n")
        self._process.stdin.flush()
        found = self.answer()
        used = (self._processor_seconds() - before) / count
        self.freeze()
        return {"wall": found["seconds"], "cpu": used, "gpu_bytes": found["gpu_bytes"]}

    def freeze(self) -> None:
        """Stop it and all it has started, wherever they are."""
        self._signal(signal.SIGSTOP)

    def end(self) -> None:
        """Kill all of it."""
        self._signal(signal.SIGKILL)
        self._process.wait()
        self._process.stdin.close()
        self._process.stdout.close()

    def proportional_bytes(self) -> int:
        """Resident memory; a page that several processes share counts for each in part, together once."""
        total = 0
        members = self._members()
        self.most_processes = max(self.most_processes, len(members))
        for pid in members:
            with contextlib.suppress(OSError):  # it has ended
                for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                    if line.startswith("Pss:"):
                        total += int(line.split()[1]) * KIB
        return total

    def _signal(self, number: signal.Signals) -> None:
        for pid in self._members():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def _processor_seconds(self) -> float:
        ticks = 0
        for pid in self._members():
            with contextlib.suppress(OSError):
                ticks += sum(int(word) for word in _stat(pid)[11:13])
        return ticks / TICK

    def _members(self) -> list[int]:
        """It and what it has started, first itself."""
        parents = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError):
                    parents[int(entry.name)] = int(_stat(int(entry.name))[1])
        found = [self._process.pid]
        for pid in found:
            found += [child for child, parent in parents.items() if parent == pid]
        return found


def _stat(pid: int) -> list[str]:
    """Words of /proc/PID/stat behind the name: state, parent, …; user and system ticks are 11 and 12."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


@contextlib.contextmanager
def running(trainer: Trainer, cores: set[int], folder: Path) -> Iterator[Program]:
    """A program, killed at the end."""
    program = Program(trainer, cores, folder / "log.txt")
    try:
        yield program
    finally:
        program.end()


def measure_steps(
    trainers: Sequence[Trainer], cores: set[int], folder: Path, *, rounds: int, steps: int, warm_up: int
) -> dict[str, dict[str, Any]]:
    """Seconds a step of each trainer in each round, in which they take turns; only one ever runs.

    All are started and taken past their first steps before the first round. `start` is the seconds from a program's
    start to its first step, `parameters` the number of its weights.
    """
    found: dict[str, dict[str, Any]] = {}
    with contextlib.ExitStack() as stack:
        programs = {}
        for number, trainer in enumerate(trainers):
            report(f"  starting {trainer.name}")
            place = folder / f"log-{number}"
            place.mkdir(parents=True, exist_ok=True)
            program = stack.enter_context(running(trainer, cores, place))
            first = program.answer()
            program.steps(warm_up)
            programs[trainer.name] = program
            start = first["time"] - program.started
            found[trainer.name] = {"wall": [], "cpu": [], "start": start, "parameters": first["parameters"]}
        for number in range(rounds):
            report(f"  round {number + 1} of {rounds}")
            for name in list(programs)[:: 1 if number % 2 else -1]:
                turn = programs[name].steps(steps)
                for clock in ("wall", "cpu"):
                    found[name][clock].append(turn[clock])
                found[name]["gpu_bytes"] = turn["gpu_bytes"]
    return found


def measure_memory(trainer: Trainer, cores: set[int], folder: Path, *, steps: int) -> dict[str, float]:
    """Most memory of a trainer that is alone, from its start until after some steps."""
    report(f"  {trainer.name}")
    peak, most, is_over = 0, 0, threading.Event()
    with running(trainer, cores, folder) as program:

        def watch() -> None:
            nonlocal peak
            while not is_over.wait(0.02):
                peak = max(peak, program.proportional_bytes())

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            program.answer()
            program.steps(steps)
        finally:
            is_over.set()
            watcher.join()
        most = program.most_processes
    return {"peak_mb": peak / 1e6, "processes": most}


def seconds_to_first_step(trainer: Trainer, cores: set[int], folder: Path) -> float:
    """From its start to the end of its first step."""
    with running(trainer, cores, folder) as program:
        return program.answer()["time"] - program.started


def call(words: Sequence[str], cores: set[int], log: Path, **environment: str) -> float:
    """Run a command to its end; the seconds it took."""
    start = time.perf_counter()
    with log.open("w") as file:
        done = subprocess.run(
            [*kept_to(cores), *words],
            env=dict(os.environ, PYTHONPATH=str(ROOT), PYTHONWARNINGS="ignore") | environment,
            stdout=file,
            stderr=file,
            check=False,
        )
    if done.returncode:
        last = "\n".join(log.read_text().splitlines()[-LAST_LINES:])
        message = f"{' '.join(words)} ended with {done.returncode}; its last lines:\n{last}"
        raise RuntimeError(message)
    return time.perf_counter() - start


def kept_to(cores: set[int]) -> list[str]:
    """Words before a command that keep it and all it starts to some cores."""
    return ["taskset", "-c", ",".join(map(str, sorted(cores)))]


def report(line: str) -> None:
    """Progress, beside the figures."""
    print(line, file=sys.stderr, flush=True)
