"""From a dataset to a plan on paper: `plan.yaml` to train with, `plan.json` with everything, a summary to read."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from medfocal.data.manifest import Manifest
from medfocal.data.plan.file import write_plan
from medfocal.data.plan.fingerprint import Fingerprint, measure_dataset, summarize, write_fingerprint
from medfocal.data.plan.patch import Budget, Means
from medfocal.data.plan.proposal import Plan, propose
from medfocal.errors import ConfigError
from medfocal.files import make_folder, write_json
from medfocal.infer.memory import free_memory_gb
from medfocal.infer.window import choose_device, reduced_type
from medfocal.progress import say
from medfocal.train.capacity import StepTime, estimate_hours, time_plan

#: Settings of the group `data` that are paths; labels may be an ending instead.
PLACES = ("dataset", "root", "labels", "split")


def device_to_plan_for(name: str, memory_gb: float | None) -> torch.device | None:
    """The device of this machine, or None for a GPU that is elsewhere and whose memory is given.

    Raises:
        ConfigError: There is no such device, or its memory must be given.
    """
    if re.fullmatch(r"cuda(:\d+)?", name) and not torch.cuda.is_available():
        if memory_gb is None:
            message = f"device={name}: this machine has no GPU to ask; give memory_gb=… of the one to plan for"
            raise ConfigError(message)
        return None
    return choose_device(name)


def plan_dataset(
    manifest: Manifest,
    output: Path,
    *,
    device: torch.device | None,
    memory_gb: float | None,
    budget: Budget,
    workers: int,
    data: Mapping[str, Any],
) -> Plan:
    """Measure a dataset, propose how to train on it, time a step of that, and write and tell it all.

    Args:
        manifest: The dataset.
        output: Folder for `fingerprint.json`, `plan.json` and `plan.yaml`.
        device: From `device_to_plan_for`.
        memory_gb: Of the device; None asks it.
        budget: How much time there is.
        workers: Processes that measure.
        data: Settings of the group `data`, for the plan.

    Returns:
        The plan.

    Raises:
        DatasetError: Cases cannot be read.
        ConfigError: The memory is too little for any patch.
        ResourceError: The folder cannot be written.
    """
    output = make_folder(output)
    fingerprint = measure_dataset(manifest, workers=workers)
    write_fingerprint(output / "fingerprint.json", fingerprint)
    if memory_gb is None:
        assert device is not None, "the memory of a GPU that is elsewhere is given"
        memory_gb = free_memory_gb(device)
    means = Means(
        device="cuda" if device is None else device.type,
        memory_gb=memory_gb,
        bytes_per_value=2 if device is None or reduced_type("auto", device) is not None else 4,
        budget=budget,
    )
    plan = propose(fingerprint, means)
    timed = None if device is None or not fingerprint.has_images else time_plan(plan, fingerprint, device)
    write_planned(output, fingerprint, means, plan, timed, data=_with_whole_paths(data))
    for line in describe_plan(fingerprint, means, plan, timed):
        say(line)
    path = output / "plan.yaml"
    taken = f"medfocal train plan={path} takes it" if fingerprint.has_images else "train cannot take it without images"
    say(f"the plan is '{path}'; {taken}")
    return plan


def _with_whole_paths(data: Mapping[str, Any]) -> dict[str, Any]:
    """A plan may be used from another folder. What no file is named, such as an ending, stays."""
    return {
        key: str(Path(value).absolute())
        if key in PLACES and value is not None and (key != "labels" or Path(value).is_dir())
        else value
        for key, value in data.items()
    }


def write_planned(
    output: Path,
    fingerprint: Fingerprint,
    means: Means,
    plan: Plan,
    timed: StepTime | None,
    *,
    data: Mapping[str, Any],
) -> None:
    """Write `plan.yaml` and `plan.json`.

    Args:
        output: Folder.
        fingerprint: Of the dataset.
        means: What was planned for.
        plan: What is proposed.
        timed: A step of it, None if none was timed.
        data: Settings of the group `data`.
    """
    head = [
        f"Proposed for {fingerprint.name} on a {means.device} with {means.memory_gb:.3g} GB, budget={means.budget}.",
        "Every value is open to change, here or on the command line: medfocal train plan=FILE sampling.patch_size=…",
        *_time_lines(plan, timed),
        *(f"{note[:1].upper()}{note[1:]}." for note in plan.notes),
    ]
    write_plan(output / "plan.yaml", plan.proposals, head=head, data=data)
    hours = None if timed is None else dict(zip(("training", "validation"), estimate_hours(plan, timed), strict=True))
    write_json(
        output / "plan.json",
        {
            "dataset": fingerprint.dataset,
            "means": asdict(means) | {"budget": str(means.budget)},
            "summary": summarize(fingerprint),
            "proposals": [vars(proposal) for proposal in plan.proposals],
            "notes": plan.notes,
            "num_folds": plan.num_folds,
            "cache_gb": plan.cache_gb,
            "memory_gb": plan.patch.memory_gb,
            "num_parameters": plan.patch.levels.num_parameters(max(1, len(fingerprint.channels)), plan.out_channels),
            "step": None if timed is None else vars(timed),
            "hours": hours,
        },
    )


def describe_plan(fingerprint: Fingerprint, means: Means, plan: Plan, timed: StepTime | None) -> list[str]:
    """Lines for the terminal: what was measured, what is proposed, and what to know."""
    found = summarize(fingerprint)
    whole = (
        f"{fingerprint.name}: {_count(found['num_cases'], 'case')} of {_count(found['num_patients'], 'patient')}, "
        f"{_count(found['num_lesions'], 'lesion')}, {_count(found['num_free_cases'], 'case')} without; "
        f"{found['lesion_share_of_voxels']:.2g} of the voxels"
    )
    lines = [whole]
    sizes = found["lesion_volume_mm3"]
    if sizes is not None:
        lines.append(
            f"lesions: {sizes['p10']:.3g} to {sizes['p90']:.3g} mm3 (10th and 90th percentile), median "
            f"{sizes['p50']:.3g}; {found['num_one_voxel_lesions']} of one voxel"
        )
    for name, contrast in found["lesion_contrast"].items():
        if contrast is not None:
            lines.append(
                f"contrast in {name}: median {contrast['p50']:.2f} SD of the tissue around, 10th percentile "
                f"{contrast['p10']:.2f}"
            )
    width = max(len(proposal.key) for proposal in plan.proposals)
    lines.append(f"proposed for a {means.device} with {means.memory_gb:.3g} GB, budget={means.budget}:")
    lines += [f"  {proposal.key:<{width}}  {_shown(proposal.value)}" for proposal in plan.proposals]
    return [*lines, *_time_lines(plan, timed), *(f"note: {note}" for note in plan.notes)]


def _time_lines(plan: Plan, timed: StepTime | None) -> list[str]:
    if timed is None:
        return ["No step was timed: there is no image, or the device is not in this machine."]
    training, validation = estimate_hours(plan, timed)
    measured = "" if timed.peak_gb is None else f" and allocated {timed.peak_gb:.2g} GB"
    validating = (
        f"and {_hours(validation)} of validation" if plan.num_validation_windows else "without validation cases"
    )
    line = (
        f"A step took {timed.seconds:.2g} s here{measured}, measured on random patches: {_hours(training)} of training "
        f"{validating}, calculated from that; reading and evaluating cases comes on top."
    )
    return [line]


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _hours(hours: float) -> str:
    return f"{hours:.2g} h" if hours >= 1 else f"{60 * hours:.2g} min"


def _shown(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
