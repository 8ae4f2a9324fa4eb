"""Running medfocal's commands in processes of their own.

`start` forks each from a server that has imported the slow packages once; `call` is the installed command itself.
"""

import contextlib
import multiprocessing
import os
import re
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

SLOW = ["medfocal.cli", "hydra", "medfocal.train.run", "medfocal.report.runs", "medfocal.losses", "matplotlib.pyplot"]
SLOW += [
    "torch._dynamo",
    "monai.networks.nets.dynunet",
    "monai.transforms",
    "monai.inferers",
    "monai.data",
    "nibabel",
    "jinja2",
]
SCRIPT = Path(sysconfig.get_path("scripts")) / "medfocal"

#: A network, patches and epochs that train within a second on one core.
TINY = (
    "network.channels=[4,8,16]",
    "sampling.patch_size=[16,16,16]",
    "trainer.max_epochs=2",
    "trainer.steps_per_epoch=3",
    "trainer.batch_size=2",
    "trainer.validate_every=1",
    "trainer.num_threads=1",
    "device=cpu",
)


@dataclass
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str


class Started:
    """A command that is running."""

    def __init__(self, words, folder, environment):
        self._streams = [folder / f".{name}-{os.urandom(4).hex()}" for name in ("out", "err")]
        _server()  # the environment of the server is that of the first use
        self.process = multiprocessing.get_context("forkserver").Process(
            target=_run, args=([str(word) for word in words], folder, *self._streams, environment)
        )
        self.process.start()

    def end(self, timeout=300):
        self.process.join(timeout)
        assert self.process.exitcode is not None, "the command hangs"
        out, err = (stream.read_text("utf-8") for stream in self._streams)
        for stream in self._streams:
            stream.unlink()
        return Ended(self.process.exitcode, out, err)


def start(*words, folder, **environment):
    """Start a command, with these variables of the environment besides."""
    return Started(words, folder, environment)


def run(*words, folder):
    return start(*words, folder=folder).end()


def call(*words, folder):
    """The installed command, from a cold start."""
    found = subprocess.run(
        [SCRIPT, *map(str, words)],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    return Ended(found.returncode, found.stdout, found.stderr)


def assert_refused(ended, code, *words):
    """One readable message on stderr, with these words in it, and no traceback."""
    assert "Traceback" not in ended.err
    kind, _, message = ended.err.partition(": ")
    kinds = {2: {"ConfigError"}, 3: {"InputError", "DatasetError", "GeometryError"}, 4: {"ModelError"}}
    assert kind in kinds.get(code, {"ResourceError"}), ended.err
    assert len(re.findall(r"^\w+Error: ", ended.err, re.MULTILINE)) == 1, ended.err
    for word in words:
        assert str(word) in message
    assert ended.code == code


def _server():
    os.environ["OMP_NUM_THREADS"] = "1"
    multiprocessing.set_forkserver_preload(SLOW)


def _run(words, folder, out, err, environment):
    os.chdir(folder)
    os.environ.update(environment)
    for path, stream in ((out, sys.stdout), (err, sys.stderr)):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, stream.fileno())
        os.close(descriptor)
    from medfocal.cli import main

    with contextlib.ExitStack() as stack:
        stack.callback(sys.stdout.flush)
        stack.callback(sys.stderr.flush)
        main(words)


def make_dataset(folder, *, channels=("FLAIR",), seed=3):
    """Six phantoms of unequal axes and spacing: 3 for training, 1 for validation, 2 for testing."""
    from medfocal.data.phantom import write_phantoms

    shape, spacing_mm = (28, 26, 20), (1.5, 1.6, 2.0)
    return write_phantoms(
        folder, num_cases=6, seed=seed, prevalence=3e-3, shape=shape, spacing_mm=spacing_mm, channels=channels
    )
