"""Which settings differ between runs, and which runs are the same settings with another seed or fold."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medfocal.errors import ConfigError
from medfocal.report.summary_runs import Run, State

#: Runs that differ in these alone are replicates of one setting.
REPLICATES = ("seed", "fold", "data.fold")
#: What changes no weight: names, places, the machine and what is kept.
WITHOUT_EFFECT = frozenset(
    {
        *("run.id", "run.resume", "plan", "device", "debug"),
        *("cache.max_gb", "cache.compress", "cache.workers"),
        *(
            "trainer.num_threads",
            "trainer.checkpoint_minutes",
            "trainer.window_batch",
            "trainer.checkpoint_activations",
        ),
        *("trainer.save_test_predictions", "trainer.save_validation_predictions", "trainer.sharding"),
    }
)
GROUPS_WITHOUT_EFFECT = ("paths.", "tracking.")
#: What a run has that was written before the setting was made, or whose choice in a group has no such argument.
ABSENT = "not stated"


@dataclass(frozen=True)
class Setting:
    """Runs with one configuration but for seed and fold.

    Attributes:
        number: From 1, in the order of the values.
        values: Value of each setting that differs between settings, by its full name.
        runs: The finished ones that count, in the order of seed and fold.
        others: Unfinished, running and broken ones, and those that another finished run repeats.
    """

    number: int
    values: Mapping[str, Any]
    runs: Sequence[Run]
    others: Sequence[Run]

    @property
    def name(self) -> str:
        """Its values in words."""
        return ", ".join(f"{key}={text_of(value)}" for key, value in self.values.items()) or "the one setting"


@dataclass(frozen=True)
class Grouping:
    """The runs, grouped.

    Attributes:
        keys: Settings that differ and name the groups.
        implied: Further settings that differ, but follow from those, such as the arguments of another loss.
        settings: The groups.
        unknown: Runs whose configuration could not be read.
        repeated: Runs that a later finished one repeats, with that one.
    """

    keys: Sequence[str]
    implied: Sequence[str]
    settings: Sequence[Setting]
    unknown: Sequence[Run]
    repeated: Sequence[tuple[Run, Run]]


def choose_experiments(runs: Sequence[Run], wanted: Sequence[str] | None, places: Sequence[Path]) -> list[Run]:
    """The runs of the experiments that are wanted, and all whose configuration could not be read.

    Raises:
        ConfigError: There are runs of several and none is named, or one that is named has no run.
    """
    counts: dict[str, int] = {}
    for run in runs:
        if run.settings:
            counts[run.experiment] = counts.get(run.experiment, 0) + 1
    there = ", ".join(f"{name} ({number})" for name, number in sorted(counts.items()))
    if wanted is None:
        if len(counts) > 1:
            names = ",".join(sorted(counts))
            where = ", ".join(f"'{place}'" for place in places)
            message = (
                f"runs of {len(counts)} experiments lie in {where}: {there}. "
                f"Name one by experiments=NAME, or set several side by side by experiments=[{names}]."
            )
            raise ConfigError(message)
        return list(runs)
    absent = [name for name in wanted if name not in counts]
    if absent:
        message = f"there is no run of experiment {', '.join(absent)}; there are {there or 'none that could be read'}"
        raise ConfigError(message)
    return [run for run in runs if not run.settings or run.experiment in wanted]


def group_runs(runs: Sequence[Run]) -> Grouping:
    """Group runs by all that differs between them but seed, fold and what has no effect.

    Of finished runs with the same settings, seed and fold the one that ended last counts: the others tell nothing new.

    Args:
        runs: Of one experiment, or of several to be set side by side.
    """
    known = [run for run in runs if run.settings]
    differing = differing_keys([run.settings for run in known])
    keys, implied = _name_groups(differing, known)
    groups: dict[str, list[Run]] = {}
    for run in known:
        groups.setdefault(_identity(run, differing), []).append(run)
    repeated: list[tuple[Run, Run]] = []
    made = []
    for group in groups.values():
        counting = _latest([run for run in group if run.state is State.FINISHED], repeated)
        values = {key: group[0].settings.get(key, ABSENT) for key in keys}
        made.append((values, counting, [run for run in group if run not in counting]))
    made.sort(key=lambda entry: [order_of(value) for value in entry[0].values()])
    return Grouping(
        keys=keys,
        implied=implied,
        settings=[Setting(number, *entry) for number, entry in enumerate(made, start=1)],
        unknown=[run for run in runs if not run.settings],
        repeated=repeated,
    )


def differing_keys(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """Settings that have an effect and differ, seed and fold left out, in the order of their names."""
    keys = {key for of in settings for key in of} - WITHOUT_EFFECT - set(REPLICATES)
    keys = {key for key in keys if not key.startswith(GROUPS_WITHOUT_EFFECT)}
    found = sorted(key for key in keys if len({_written(of.get(key, ABSENT)) for of in settings}) > 1)
    # Of a mapping that one run leaves empty and another fills its parts tell.
    return [key for key in found if not any(other.startswith(f"{key}.") for other in found)]


def _written(value: Any) -> str:
    """A value so that equal ones are equal text: 2 and 2.0 are, 1 and true are not."""
    if isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    return json.dumps(value, sort_keys=True, default=str)


def _identity(run: Run, keys: Iterable[str]) -> str:
    return "\n".join(_written(run.settings.get(key, ABSENT)) for key in keys)


def _name_groups(differing: Sequence[str], runs: Sequence[Run]) -> tuple[list[str], list[str]]:
    """Tell the settings that name a group from those that follow from them.

    An experiment brings many settings along, and another loss its arguments: where the one says the other it is enough.
    """
    leaders = [
        key for key in ("experiment", *(key for key in differing if key.endswith("._target_"))) if key in differing
    ]
    implied: list[str] = []
    for leader in leaders:
        own = "" if leader == "experiment" else leader.removesuffix("_target_")
        followers = [key for key in differing if key != leader and key.startswith(own) and key not in implied]
        implied += [key for key in followers if leader not in implied and _follows(key, leader, runs)]
    return [key for key in differing if key not in implied], [key for key in differing if key in implied]


def _follows(key: str, leader: str, runs: Sequence[Run]) -> bool:
    said: dict[str, str] = {}
    for run in runs:
        value = _written(run.settings.get(key, ABSENT))
        if said.setdefault(_written(run.settings.get(leader, ABSENT)), value) != value:
            return False
    return True


def _latest(finished: Sequence[Run], repeated: list[tuple[Run, Run]]) -> list[Run]:
    """Of runs with the same seed and fold the one that ended last, in the order of both."""
    kept: dict[str, Run] = {}
    for run in sorted(finished, key=lambda run: (run.finished_at, str(run.folder))):
        at = _written([run.seed, run.fold])
        if at in kept:
            repeated.append((kept[at], run))
        kept[at] = run
    return sorted(kept.values(), key=lambda run: (order_of(run.seed), order_of(run.fold)))


def order_of(value: Any) -> tuple[Any, ...]:
    """Where a value stands among others: numbers by size, then lists by their items, then all else by its text."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return (0, float(value) if not math.isnan(value) else math.inf)
    if isinstance(value, list):
        return (1, *map(order_of, value))
    return (2, text_of(value))


def text_of(value: Any) -> str:
    """A value as it is given on the command line."""
    if isinstance(value, list):
        return f"[{','.join(map(text_of, value))}]"
    if isinstance(value, dict):
        return f"{{{','.join(f'{key}:{text_of(item)}' for key, item in value.items())}}}"
    if isinstance(value, float):
        return f"{value:g}" if float(f"{value:g}") == value else repr(value)
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    return str(value)
