"""Kill one training at random moments until it ends, and compare its weights with those of an undisturbed one.

    python tests/benchmarks/kill.py 20

prints each start: how long it lasted, the signal, the exit code and where it went on. Three of four kills come within
the training or its evaluation, the others at any moment. Everything happens in a temporary folder, on phantoms, on the
CPU.
"""

import hashlib
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SETTINGS = [
    "data.dataset=phantoms/dataset.json", "device=cpu", "trainer.num_threads=1", "trainer.max_epochs=40",
    "trainer.steps_per_epoch=20", "trainer.validate_every=2", "trainer.checkpoint_minutes=0.0001",
    "network.channels=[4,8,16]", "network.dropout=0.1", "sampling.patch_size=[16,16,16]", "sampling.hardness=0.5",
    "trainer.ema_decay=0.9",
]  # fmt: skip
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGUSR1)


def start(folder, *words):
    command = [sys.executable, "-m", "medfocal.cli", *words]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def weights(folder, run_id):
    content = (folder / "runs" / "default" / run_id / "model" / "weights.safetensors").read_bytes()
    return hashlib.sha256(content).hexdigest()


def wait_for_training(process, log, seconds):
    """Until a start has written its first line into the log of the run, or this long."""
    size, end = log.stat().st_size if log.exists() else 0, time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < end and (not log.exists() or log.stat().st_size == size):
        time.sleep(0.01)


def main(num_kills, seed=1):
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        start(folder, "phantom", "output=phantoms", "num_cases=8", "shape=[40,36,28]").wait()
        since = time.monotonic()
        assert start(folder, "train", *SETTINGS, "run.id=undisturbed").wait() == 0
        whole = time.monotonic() - since
        print(f"undisturbed: {whole:.1f} s, weights {weights(folder, 'undisturbed')[:16]}", flush=True)
        killed, num_runs, same = 0, 0, True
        while killed < num_kills:  # as many runs as it takes
            num_runs += 1
            run_id = f"killed{num_runs}"
            while True:
                process = start(folder, "train", *SETTINGS, f"run.id={run_id}")
                begun, number = time.monotonic(), rng.choice(SIGNALS)
                if rng.random() < 0.75:
                    wait_for_training(process, folder / "runs" / "default" / run_id / "train.log", whole)
                    moment = rng.uniform(0, whole / 5)
                else:
                    moment = rng.uniform(0, whole / 2)
                try:
                    said, _ = process.communicate(timeout=moment if killed < num_kills else None)
                    number = None
                except subprocess.TimeoutExpired:
                    process.send_signal(number)
                    said, _ = process.communicate()
                    killed += 1
                went_on = next(
                    (line for line in said.splitlines() if line.startswith("continuing")), "before it could go on"
                )
                by = "its end" if number is None else f"{number.name} after {time.monotonic() - begun:.1f} s"
                print(f"{run_id}: {went_on}, until {by}, exit code {process.returncode}", flush=True)
                if number is None:
                    break
            found = weights(folder, run_id)
            same = same and found == weights(folder, "undisturbed")
            print(f"{run_id}: weights {found[:16]}", flush=True)
        print(f"{killed} kills: {'all weights are those of the undisturbed run' if same else 'WEIGHTS DIFFER'}")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 20))
