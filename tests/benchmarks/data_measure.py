"""Sources of training patches and measurements of the cache, each in a process of its own.

    python tests/benchmarks/data_measure.py FOLDER NAME

`data.py` starts it. FOLDER holds `heads` and `cache`. Each line on stdin is a task as JSON, `{"what": ..., ...}`, each
answer a line of JSON; the first line is written when all is ready. A source is asked for `patches` and `memory`; the
program `medfocal` does the other tasks.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[2]
PATCH, SEED = (64, 64, 64), 1
OURS, BATCHES = "medfocal, patch by patch", "medfocal, batches of 2"
MONAI, INDEXED = "MONAI CacheDataset", "MONAI CacheDataset, indices kept"
PLAIN = "MONAI CacheDataset, indices kept, plain tensors, no copies"
TASKS = "medfocal"
KIB = 1024


class Patches:
    """Our patches, drawn, cut and ready, from the mapped cache."""

    def __init__(self, folder: Path, *, batches: bool) -> None:
        from medfocal.data.sampling import LesionBalancedSampler

        self.taught = open_cases(folder)
        self.sampler = LesionBalancedSampler(self.taught, patch_size=PATCH, lesion_fraction=0.5, seed=SEED)
        self.source = batch_source(self.taught, self.sampler, augment=None) if batches else None
        self.epoch = 0

    def make(self, num_patches: int) -> Iterator[tuple[Any, Any]]:
        """Image float32 and label uint8 of each patch or batch."""
        from medfocal.data.sampling import cut_image, cut_patch

        self.epoch += 1
        if self.source is not None:
            for step in range(num_patches // 2):
                planes = self.source.cut(self.epoch, step).planes
                yield planes["image"], planes["label"]
            return
        for index in range(num_patches):
            place = self.sampler.draw(self.epoch, index)
            case = self.taught[place.case]
            yield (
                torch.from_numpy(cut_image(case.image, place.start, PATCH)),
                torch.from_numpy(cut_patch(case.target.lesions, place.start, PATCH)),
            )


class MonaiPatches:
    """The same by MONAI: two patches an item, one centred on a lesion's voxel on average."""

    def __init__(self, folder: Path, *, indexed: bool, plain: bool) -> None:
        from data_heads import SPACING_MM, cases_of
        from monai import transforms as mt
        from monai.data import CacheDataset

        keys = ["image", "label"]
        chain = [
            mt.LoadImaged(keys),
            mt.EnsureChannelFirstd(keys),
            mt.Orientationd(keys, "RAS", labels=None),
            mt.Spacingd(keys, (SPACING_MM,) * 3, mode=("bilinear", "nearest")),
            mt.NormalizeIntensityd("image", nonzero=True),
            mt.EnsureTyped(keys, dtype=(torch.float32, torch.uint8), track_meta=not plain),
        ]
        indices = {}
        if indexed:
            chain.append(mt.FgBgToIndicesd("label"))
            indices = {"fg_indices_key": "label_fg_indices", "bg_indices_key": "label_bg_indices"}
        crop = mt.RandCropByPosNegLabeld(keys, "label", spatial_size=PATCH, pos=1, neg=1, num_samples=2, **indices)
        crop.set_random_state(SEED)
        files = [{"image": str(case.images[0]), "label": str(case.label)} for case in cases_of(folder / "heads")]
        chain = mt.Compose([*chain, crop])
        self.dataset = CacheDataset(files, chain, num_workers=1, progress=False, copy_cache=not plain)
        self.next = 0

    def make(self, num_patches: int) -> Iterator[tuple[Any, Any]]:
        """Image and label of each patch, in memory of its own as a batch needs it."""
        for _ in range(num_patches // 2):
            for patch in self.dataset[self.next % len(self.dataset)]:
                yield patch["image"].contiguous(), patch["label"].contiguous()
            self.next += 1


def open_cases(folder: Path) -> list[Any]:
    """The heads from the cache, made where they are missing."""
    return prepare(folder, folder / "cache", workers=1)


def prepare(folder: Path, cache: Path, workers: int) -> list[Any]:
    from data_heads import cases_of, recipe

    from medfocal.data.cache import Cache
    from medfocal.data.targets import prepare_training

    return prepare_training(cases_of(folder / "heads"), recipe(), Cache(cache), workers=workers).cases


def batch_source(cases: list[Any], sampler: Any, *, augment: Any, device: torch.device | None = None) -> Any:
    from medfocal.data.transplant import LesionTransplants
    from medfocal.train.batches import BatchSource

    transplants = LesionTransplants(cases, patch_size=sampler.patch_size, probability=0.0, seed=SEED)
    return BatchSource(cases, sampler, transplants=transplants, augment=augment, batch_size=2, seed=SEED, device=device)


SOURCES = {
    OURS: lambda folder: Patches(folder, batches=False),
    BATCHES: lambda folder: Patches(folder, batches=True),
    MONAI: lambda folder: MonaiPatches(folder, indexed=False, plain=False),
    INDEXED: lambda folder: MonaiPatches(folder, indexed=True, plain=False),
    PLAIN: lambda folder: MonaiPatches(folder, indexed=True, plain=True),
}


def import_all(name: str) -> None:
    """What a source imports, so that memory counts from there."""
    ours = "data_heads", "medfocal.train.batches"
    for module in ours if name in (OURS, BATCHES, TASKS) else ("data_heads", "monai.data", "monai.transforms"):
        importlib.import_module(module)


def make_patches(source: Any, num_patches: int) -> dict[str, float]:
    """Seconds of this process's cores and of the clock."""
    start, start_cpu, found = time.perf_counter(), time.process_time(), 0
    for image, label in source.make(num_patches):
        found += image.numel()
        assert image.dtype == torch.float32, image.dtype
        assert label.dtype == torch.uint8, label.dtype
    seconds = {"cpu": time.process_time() - start_cpu, "wall": time.perf_counter() - start}
    assert found == num_patches * np.prod(PATCH), found
    return seconds


def memory(folder: Path) -> dict[str, float]:
    """MB of this process: of mapped cache files, of all else, and what is not of files; `pss` shares pages out."""
    figures, mapped = dict.fromkeys(("cache", "cache_pss", "rest", "anonymous"), 0), False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        key, *words = line.split()
        if not key.endswith(":"):  # the first line of a mapping ends with its file
            mapped = f"{folder.resolve()}/" in line
        elif key == "Rss:":
            figures["cache" if mapped else "rest"] += int(words[0])
        elif key == "Pss:" and mapped:
            figures["cache_pss"] += int(words[0])
        elif key == "Anonymous:":
            figures["anonymous"] += int(words[0])
    return {key: value * KIB / 1e6 for key, value in figures.items()}


def build(folder: Path, *, name: str, workers: int) -> dict[str, float]:
    """Seconds of preparing all heads into a new cache, and its size."""
    cache = folder / name
    start = time.perf_counter()
    cases = prepare(folder, cache, workers)
    seconds = time.perf_counter() - start
    size = sum(path.stat().st_size for path in cache.rglob("*") if path.is_file())
    return {"seconds": seconds, "cases": len(cases), "bytes": size}


def open_again(folder: Path) -> dict[str, float]:
    """Seconds of opening a complete cache, and of what takes most of it."""
    from data_heads import cases_of

    from medfocal.data.cache import Cache, file_digest

    files = [path for case in cases_of(folder / "heads") for path in case.files]
    forget = file_digest.__globals__["_file_digest"].cache_clear
    forget()
    start = time.perf_counter()
    for path in files:
        file_digest(path)
    digested = time.perf_counter()
    cache = Cache(folder / "cache")
    for entry in cache.folder.iterdir():
        if entry.is_dir():
            assert cache.find(*entry.name.split("-")) is not None, entry
    checked = time.perf_counter()
    forget()
    begin = time.perf_counter()
    cases = prepare(folder, folder / "cache", workers=1)
    whole = time.perf_counter() - begin
    return {"digest": digested - start, "check": checked - digested, "whole": whole, "cases": len(cases)}


def train_steps(folder: Path, *, device: str, blocks: int, steps: int) -> dict[str, Any]:
    """Seconds a step with the next batch and with the same batch again, in turns, and of waiting for data.

    The first step of an epoch waits for its batch to be made, and is measured for itself.
    """
    from medfocal.data.augment import BatchAugmentation
    from medfocal.data.sampling import LesionBalancedSampler
    from medfocal.infer.window import reduced_type
    from medfocal.losses import FocalLoss
    from medfocal.networks import UNet3d

    where, on_gpu = torch.device(device), device == "cuda"
    cases, size = open_cases(folder), (128,) * 3 if on_gpu else PATCH
    sampler = LesionBalancedSampler(cases, patch_size=size, lesion_fraction=0.5, seed=SEED)
    batches = batch_source(cases, sampler, augment=BatchAugmentation(), device=where)
    torch.manual_seed(SEED)
    channels = (32, 64, 128, 256, 320) if on_gpu else (16, 32, 64)
    network = UNet3d(in_channels=1, out_channels=2, channels=channels).to(where).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    loss, bfloat16 = FocalLoss(gamma=2.0, alpha=0.75), reduced_type("auto", where) is not None

    def step(batch: Any) -> None:
        with torch.autocast(where.type, dtype=torch.bfloat16, enabled=bfloat16):
            logits = network(batch.image)
        batch_loss = loss(logits.float(), batch.target, weight=batch.weight)
        optimizer.zero_grad(set_to_none=True)
        batch_loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()

    def now() -> float:
        if on_gpu:
            torch.cuda.synchronize()
        return time.perf_counter()

    same = batches.batch(0, 0)
    for _ in range(2):
        step(same)
    found: dict[str, Any] = {"first": [], "wait": [], "step": [], "same": []}
    for epoch in range(1, blocks + 1):
        coming, start = batches.epoch(epoch, steps + 1), now()
        batch = next(coming)
        found["first"].append(now() - start)
        step(batch)
        start, waited = now(), 0.0
        for _ in range(steps):
            begin = time.perf_counter()
            batch = next(coming)
            waited += time.perf_counter() - begin
            step(batch)
        found["step"].append((now() - start) / steps)
        found["wait"].append(waited / steps)
        start = now()
        for _ in range(steps):
            step(same)
        found["same"].append((now() - start) / steps)
    name = torch.cuda.get_device_name() if on_gpu else f"{torch.get_num_threads()} threads"
    return found | {"device": name, "size": size[0], "bfloat16": bfloat16}


def answer(source: Any, folder: Path, task: dict[str, Any]) -> Any:
    """Do one task."""
    what = task.pop("what")
    if what == "patches":
        return make_patches(source, **task)
    if what == "memory":
        return memory(folder / "cache")
    return {"build": build, "open": open_again, "steps": train_steps}[what](folder, **task)


def main(folder: Path, name: str) -> None:
    """Answer until the end of stdin."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what else is printed does not mix with the answers
    if name != TASKS:
        torch.set_num_threads(1)
    import_all(name)
    before = memory(folder / "cache")
    source = SOURCES[name](folder) if name != TASKS else None
    answers.write(json.dumps(before) + "\n")
    for line in sys.stdin:
        answers.write(json.dumps(answer(source, folder, json.loads(line))) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
