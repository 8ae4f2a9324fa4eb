"""The shape of the configuration, and the check that holds it against what will be called.

Plain groups are dataclasses here; a group with a `_target_`, and the groups in `CONSTRUCTED`, have their constructor
as schema. Values stand in `conf/` only. Imports neither torch nor MONAI until a check needs them.
"""

from __future__ import annotations

import difflib
import functools
import importlib
import importlib.util
import inspect
import math
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin

from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from medfocal.data.dataset import DataSettings
from medfocal.errors import ConfigError
from medfocal.train.settings import CacheSettings, SamplingSettings, TrainerSettings

if TYPE_CHECKING:
    from medfocal.evaluate import Protocol  # importing it imports numpy, which `--help` does without

VERBS = (
    *("phantom", "check", "plan", "train", "predict", "evaluate", "compare", "suspect"),
    *("summarize", "calibrate", "export", "info"),
)

#: Groups with a `_target_`: the module whose public classes are allowed, and classes of other packages.
TARGETS: Mapping[str, tuple[str | None, tuple[str, ...]]] = {
    "loss": ("medfocal.losses", ()),
    "network": ("medfocal.networks", ()),
    "optimizer": (None, ("torch.optim.AdamW", "torch.optim.SGD")),
    "schedule": ("medfocal.train.schedule", ()),
    "corruption": ("medfocal.annotations.corrupt", ()),
    "smoothing": ("medfocal.annotations.smoothing", ()),
    "augment": ("medfocal.data.augment", ()),
    "tracking": ("medfocal.train.tracking", ()),
}

#: Arguments that the program supplies, so that no configuration states them.
SUPPLIED: Mapping[str, frozenset[str]] = {
    "network": frozenset({"in_channels", "out_channels"}),
    "optimizer": frozenset({"params"}),
    "transforms": frozenset(),
}

#: Groups whose keys are a constructor's arguments, without a `_target_`.
CONSTRUCTED: Mapping[str, str] = {
    "transforms": "medfocal.data.transforms.Preprocessing",
    "annotations": "medfocal.annotations.target.AnnotationSettings",
    "evaluate": "medfocal.evaluate.Protocol",
    "protocol": "medfocal.evaluate.Protocol",
    "rules": "medfocal.annotations.suspect.SuspectRules",
    "limits": "medfocal.data.check.CheckLimits",
}

#: Ranges of single values, ends included.
LIMITS: Mapping[str, tuple[float, float]] = {
    "seed": (0, 2**63 - 1),
    "threshold": (0, 1),
    "max_pictures": (0, math.inf),
    "viewer_limit_mb": (0, math.inf),
    "workers": (1, math.inf),
    "num_permutations": (1, math.inf),
    "memory_gb": (0, math.inf),
}

#: Words of Hydra's `instantiate`; only the first is used, and only by the groups in `TARGETS`.
HYDRA_WORDS = ("_target_", "_args_", "_partial_", "_recursive_", "_convert_")


#: What Hydra itself may make for a sweep.
HYDRA_PLUGINS = ("hydra._internal.", "hydra_plugins.", "optuna.samplers.")

#: The extra that installs a plugin of Hydra's.
EXTRAS: Mapping[str, str] = {
    "hydra_plugins.hydra_submitit_launcher": "slurm",
    "hydra_plugins.hydra_ray_launcher": "ray",
    "hydra_plugins.hydra_optuna_sweeper": "sweep",
}


@dataclass
class PathsConfig:
    """Where results go."""

    runs: str = MISSING
    cache: str = MISSING


@dataclass
class RunConfig:
    """Which run folder, and from which of its checkpoints it goes on."""

    id: str | None = None
    resume: str = MISSING


@dataclass
class CommonConfig:
    """What every command has."""

    debug: bool = MISSING
    paths: PathsConfig = field(default_factory=PathsConfig)


@dataclass
class TrainConfig(CommonConfig):
    """medfocal train."""

    experiment: str = MISSING
    plan: str | None = None
    seed: int = MISSING
    device: str = MISSING
    fold: int | None = None
    run: RunConfig = field(default_factory=RunConfig)
    data: DataSettings = MISSING
    sampling: SamplingSettings = MISSING
    cache: CacheSettings = MISSING
    trainer: TrainerSettings = MISSING
    tracking: dict[str, Any] = MISSING
    transforms: dict[str, Any] = MISSING
    augment: dict[str, Any] = MISSING
    annotations: dict[str, Any] = MISSING
    smoothing: dict[str, Any] = MISSING
    loss: dict[str, Any] = MISSING
    network: dict[str, Any] = MISSING
    optimizer: dict[str, Any] = MISSING
    schedule: dict[str, Any] = MISSING
    evaluate: dict[str, Any] = MISSING


@dataclass
class PredictConfig(CommonConfig):
    """medfocal predict."""

    model: Any = MISSING  # a folder or a list of folders; `_check_models` holds it to that
    input: str = MISSING
    output: str = MISSING
    device: str = MISSING
    threshold: float | None = None
    save_probability: bool = MISSING
    save_spread: bool = MISSING
    tta: str = MISSING
    exclude: str | None = None
    max_memory_mb: float | None = None
    allow_cpu: bool = MISSING
    keep_going: bool = MISSING
    resume: bool = MISSING
    shard: str = MISSING
    strict: bool = MISSING


@dataclass
class ReadingConfig(CommonConfig):
    """What `evaluate` and `compare` have: how files are paired and read, and the rules."""

    manifest: str | None = None
    output: str = MISSING
    classes: Any = None  # a mapping of names to lists of label values; `reading_of` holds it to that
    ignore: str | None = None
    ignore_value: int | None = None
    instances: str = MISSING
    expect: str = MISSING
    resample: str | None = None
    missing: str = MISSING
    extra: str = MISSING
    workers: int = MISSING
    protocol: dict[str, Any] = MISSING


@dataclass
class EvaluateConfig(ReadingConfig):
    """medfocal evaluate."""

    reference: str | None = None
    prediction: str | None = None
    readers: Any = None  # a list of places, or the path of a dataset file; `_check_readers` holds it to that
    surface: bool = MISSING
    images: str | None = None
    max_pictures: int = MISSING
    viewer_limit_mb: float = MISSING


@dataclass
class CompareConfig(ReadingConfig):
    """medfocal compare."""

    reference: str = MISSING
    a: str = MISSING
    b: str = MISSING
    primary_rate: Any = MISSING  # a rate, null or auto; `_check_primary_rate` holds it to that
    num_permutations: int = MISSING


@dataclass
class SuspectConfig(CommonConfig):
    """medfocal suspect."""

    reference: str | None = None
    prediction: str | None = None
    manifest: str | None = None
    output: str = MISSING
    images: str | None = None
    max_pictures: int = MISSING
    rules: dict[str, Any] = MISSING


@dataclass
class SummarizeConfig(CommonConfig):
    """medfocal summarize."""

    runs: Any = MISSING  # a folder or a list of them; `_check_runs` holds it to that
    output: str | None = None
    experiments: Any = None  # a name or a list of them; likewise


@dataclass
class PhantomConfig(CommonConfig):
    """medfocal phantom: arguments of `medfocal.data.phantom.write_phantoms`."""

    output: str = MISSING
    num_cases: int = MISSING
    seed: int = MISSING
    prevalence: float = MISSING
    lesion_free_share: float = MISSING
    shape: list[int] = MISSING
    spacing_mm: list[float] = MISSING
    channels: list[str] = MISSING
    corruption: dict[str, Any] = MISSING


@dataclass
class CheckConfig(CommonConfig):
    """medfocal check."""

    data: DataSettings = MISSING
    output: str | None = None
    fix: bool = MISSING
    workers: int = MISSING
    max_pictures: int = MISSING
    limits: dict[str, Any] = MISSING


@dataclass
class PlanConfig(CommonConfig):
    """medfocal plan."""

    data: DataSettings = MISSING
    output: str = MISSING
    device: str = MISSING
    memory_gb: float | None = None
    budget: str = MISSING
    workers: int = MISSING


@dataclass
class CalibrateConfig(CommonConfig):
    """medfocal calibrate: arguments of `medfocal.infer.calibrate.CalibrateSettings` beside model, data and protocol."""

    model: Any = MISSING  # a folder or a list of folders; `_check_models` holds it to that
    data: DataSettings = MISSING
    output: str = MISSING
    split: str = MISSING
    device: str = MISSING
    false_positives: list[float] = MISSING
    sensitivity: float | None = None
    min_diameter_mm: float = MISSING
    guarantee: str = MISSING
    confidence_level: float = MISSING
    correct: bool = MISSING
    confidence: str | None = None
    cut: float | None = None
    separate: bool | None = None
    min_volume_ml: float | None = None
    tta: str = MISSING
    fit_share: float = MISSING
    protocol: dict[str, Any] = MISSING


@dataclass
class ExportConfig(CommonConfig):
    """medfocal export."""

    model: str = MISSING
    format: str = MISSING
    output: str = MISSING


@dataclass
class InfoConfig(CommonConfig):
    """medfocal info."""

    model: str | None = None
    figure: str | None = None
    output: str | None = None


SCHEMAS: Mapping[str, type] = {
    "train": TrainConfig,
    "predict": PredictConfig,
    "evaluate": EvaluateConfig,
    "compare": CompareConfig,
    "suspect": SuspectConfig,
    "summarize": SummarizeConfig,
    "phantom": PhantomConfig,
    "check": CheckConfig,
    "plan": PlanConfig,
    "calibrate": CalibrateConfig,
    "export": ExportConfig,
    "info": InfoConfig,
}


def conf_directory() -> Path:
    """The folder `conf/`: inside the installed package, or beside it in a checkout.

    Raises:
        ConfigError: It is in neither place.
    """
    package = Path(__file__).resolve().parent
    for folder in (package / "conf", package.parent / "conf"):
        if (folder / "train.yaml").is_file():
            return folder
    message = (
        f"the configuration folder 'conf' is missing from the installation in '{package}'. Install medfocal again."
    )
    raise ConfigError(message)


def register() -> None:
    """Tell Hydra the schemas, and OmegaConf the resolver `${conf_file:NAME}`: a file shipped in `conf/`."""
    from hydra.core.config_store import ConfigStore

    store = ConfigStore.instance()
    for verb, schema in SCHEMAS.items():
        store.store(name=f"{verb}_schema", node=schema)
    # The plugin has a schema of the same name as our file; Hydra holds the file to it and warns that one day it won't.
    warnings.filterwarnings("ignore", message=r"\s*'hydra/launcher/ray' is validated against ConfigStore schema")
    OmegaConf.register_new_resolver("conf_file", lambda name: str(conf_directory() / name), replace=True)


def compose(verb: str, overrides: Sequence[str] = (), *, with_hydra: bool = False) -> DictConfig:
    """Compose the configuration of a verb, without running it.

    Args:
        verb: One of `VERBS`.
        overrides: As on the command line, without sweeps.
        with_hydra: Whether Hydra's own settings are in the result, under `hydra`.

    Raises:
        ConfigError: An override does not fit.
    """
    from hydra.errors import HydraException

    try:
        return _compose(verb, overrides, with_hydra=with_hydra)
    except (HydraException, OmegaConfBaseException, ValueError) as error:  # a group set to null is a ValueError
        raise ConfigError(_describe(verb, overrides, error)) from error


def _compose(name: str, overrides: Sequence[str], *, with_hydra: bool = False) -> DictConfig:
    """Compose the file of this name in `conf/`."""
    import hydra

    register()
    with hydra.initialize_config_dir(str(conf_directory()), version_base="1.3", job_name="medfocal"):
        conf: DictConfig = hydra.compose(name, overrides=list(overrides), return_hydra_config=with_hydra)
    return conf


def _describe(verb: str, overrides: Sequence[str], error: Exception) -> str:
    """Say what Hydra or OmegaConf refused, with the nearest name for a key that does not exist."""
    text = str(error).split("\nConfig search path:")[0].strip()
    place = next((word.removeprefix("data=") for word in overrides if word.startswith("data=")), None)
    if place is not None and "Could not find 'data/" in text:
        return f"data={place}: there is no file of that name in conf/data (did you mean data.dataset={place}?)"
    unknown = re.match(r"Could not override '([^']+)'", text)
    if unknown is None:
        if isinstance(error, ValueError):
            return f"{text}, in: {' '.join(overrides)}"
        cause = error.__cause__
        return text if cause is None else f"{text}: {str(cause).splitlines()[0]}"
    key = unknown[1]
    others = [word for word in overrides if not word.startswith(f"{key}=")]
    known = [path for path in _paths(OmegaConf.to_container(_compose(verb, others))) if not key.startswith(f"{path}.")]
    near = difflib.get_close_matches(key, known, n=1)
    hint = f"did you mean '{near[0]}'?" if near else f"medfocal {verb} --cfg job prints all there are"
    return f"there is no setting '{key}' ({hint})"


def check(conf: DictConfig) -> dict[str, Any]:
    """Hold a composed configuration against the constructors it will reach, before anything is called.

    Args:
        conf: Composed for one verb.

    Returns:
        The configuration, resolved, as plain values.

    Raises:
        ConfigError: A value is missing or out of range; a key is unknown to its schema or constructor or not
            stated; a `_target_` is not allowed or stands where none belongs; a constructor refuses its arguments.
    """
    _check_schema(conf)
    try:
        missing = sorted(OmegaConf.missing_keys(conf))
        values = OmegaConf.to_container(conf, resolve=True, enum_to_str=True)
    except OmegaConfBaseException as error:
        raise ConfigError(str(error)) from error
    if missing:
        message = f"{', '.join(missing)} must be given, such as: medfocal … {missing[0]}=VALUE"
        raise ConfigError(message)
    assert isinstance(values, dict)
    plain: dict[str, Any] = {str(key): value for key, value in values.items()}
    _refuse_stray_targets(plain)
    for group in TARGETS:
        if group in plain:
            resolve_target(group, plain[group])
            _check_arguments(group, plain[group]["_target_"], plain[group])
    for group, name in CONSTRUCTED.items():
        if group.split(".")[0] in plain:
            found = _at(plain, group)
            _check_arguments(group, name, _own(group, found))
            construct(group, found)
    _check_limits(plain)
    of_verbs: dict[str, Callable[[Mapping[str, Any]], None]] = {
        "corruption": _check_corruption,
        "trainer": _check_training,
        "readers": _check_readers,
        "instances": _check_reading,
        "primary_rate": _check_primary_rate,
        "save_probability": _check_models,
        "guarantee": _check_calibration,
        "protocol": _check_protocol,
        "runs": _check_runs,
        "figure": _check_figure,
        "format": _check_format,
        "budget": _check_budget,
        "data": _check_data,
    }
    for key, check_part in of_verbs.items():
        if key in plain:
            check_part(plain)
    return plain


def plan_overrides(path: Path, conf: DictConfig, chosen: Mapping[str, str]) -> tuple[list[str], list[str]]:
    """Turn a plan into overrides of `medfocal train`, to stand before those that the user gave.

    Args:
        path: Written by `medfocal plan`.
        conf: Composed from the user's words alone, to tell which settings there are.
        chosen: Group to the word that chose a file for it, such as `{"loss": "loss=dice"}`; what the plan says of
            these groups would not fit.

    Returns:
        The overrides, and a line for the user about each group that was left out.

    Raises:
        ConfigError: The plan cannot be read, or sets what there is not.
    """
    from medfocal.data.plan.file import read_plan

    values = OmegaConf.to_container(conf)
    known = list(_paths(values))
    leaves = {key for key, value in _items(values) if not isinstance(value, Mapping) or not value}
    settings = read_plan(path, leaves)
    left_out = [group for group in chosen if any(key.startswith(f"{group}.") for key in settings)]
    overrides = []
    for key, value in settings.items():
        if key.split(".")[0] in left_out:
            continue
        if key not in known or key.split(".")[0] == "hydra" or _last(key) in HYDRA_WORDS:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f" (did you mean '{near[0]}'?)" if near else ""
            message = f"plan '{path}': there is no setting '{key}'{hint}"
            raise ConfigError(message)
        overrides.append(f"{key}={_written(value)}")
    return overrides, [f"{chosen[group]} takes the place of what plan '{path}' says of {group}" for group in left_out]


def _written(value: Any) -> str:
    """A plain value in the grammar of Hydra's overrides."""
    if isinstance(value, list):
        return f"[{','.join(map(_written, value))}]"
    if isinstance(value, dict):
        keys = (re.sub(r"([\\()\[\]{}:=, \t])", r"\\\1", str(key)) for key in value)
        return f"{{{','.join(f'{key}:{_written(item)}' for key, item in zip(keys, value.values(), strict=True))}}}"
    if not isinstance(value, str):
        return "null" if value is None else str(value).lower()
    # A backslash is one unless it stands before a quote or at the end.
    escaped = re.sub(r"(\\*)('|$)", lambda found: found[1] * 2 + ("\\'" if found[2] else ""), value)
    return f"'{escaped}'"


def check_hydra(conf: DictConfig) -> None:
    """Refuse settings of Hydra's own that would make it call anything but its own plugins.

    Args:
        conf: Composed `with_hydra`.

    Raises:
        ConfigError: They would; or a plugin is not installed, or would start one run several times at once.
    """
    try:
        settings = OmegaConf.to_container(conf.hydra, resolve=False)
        called = {path: OmegaConf.select(conf.hydra, path) for path in _paths(settings) if _last(path) == "_target_"}
    except OmegaConfBaseException as error:
        raise ConfigError(str(error)) from error
    factories = [path for path in _paths(settings) if _last(path) == "()"]
    wrong = [path for path, name in called.items() if not str(name).startswith(HYDRA_PLUGINS)]
    if wrong or factories or conf.hydra.callbacks:
        message = f"hydra.{[*wrong, *factories, 'callbacks'][0]}: Hydra may call launchers and sweepers only"
        raise ConfigError(message)
    if OmegaConf.select(conf.hydra, "sweeper.custom_search_space") is not None:
        message = "hydra.sweeper.custom_search_space: it names a function to call; state the search in settings"
        raise ConfigError(message)
    for key in ("nodes", "tasks_per_node"):
        number = OmegaConf.select(conf.hydra, f"launcher.{key}")
        if number not in (None, 1):
            message = (
                f"hydra.launcher.{key}={number} would start the same run {number} times in one folder; a job of a "
                f"sweep is one process. Several GPUs train together by '{conf_directory() / 'cluster'}/train.sbatch'."
            )
            raise ConfigError(message)
    for name in map(str, called.values()):
        plugin = ".".join(name.split(".")[:2])
        if plugin in EXTRAS and not _is_installed(plugin):
            message = f"{name.rpartition('.')[2]} is not installed: pip install 'medfocal[{EXTRAS[plugin]}]'"
            raise ConfigError(message)


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # nor is what it would lie in
        return False


def _check_schema(node: DictConfig, prefix: str = "") -> None:
    """Hold the keys of every plain group against its dataclass: `+key=value` would add to it."""
    schema = OmegaConf.get_type(node)
    if is_dataclass(schema):
        known = [f.name for f in fields(schema)]
        for key in map(str, node):
            if key not in known:
                near = difflib.get_close_matches(key, known, n=1)
                hint = f"did you mean '{prefix}{near[0]}'?" if near else f"known are {', '.join(known)}"
                message = f"there is no setting '{prefix}{key}' ({hint})"
                raise ConfigError(message)
        absent = [f"{prefix}{name}" for name in known if name not in list(node)]  # `in node` is false for ???
        if absent:
            message = f"{', '.join(absent)} must be stated and was removed"
            raise ConfigError(message)
    for key in map(str, node):
        child = node._get_node(key)  # noqa: SLF001  the node itself: reading the value would resolve it
        if isinstance(child, DictConfig) and not child._is_none() and not child._is_interpolation():  # noqa: SLF001
            _check_schema(child, f"{prefix}{key}.")


def _check_limits(values: Mapping[str, Any]) -> None:
    for key, (low, high) in LIMITS.items():
        if values.get(key) is not None and not low <= values[key] <= high:
            message = (
                f"{key} must be {f'in [{low:g}, {high:g}]' if high == 1 else f'{low:g} or more'}, got {values[key]}"
            )
            raise ConfigError(message)


def _check_training(values: Mapping[str, Any]) -> None:
    """Make everything that training will make, on stand-ins, and pass a patch of the right size through it."""
    import torch

    run_id = values["run"]["id"]
    if run_id is not None and (
        not run_id.isprintable() or run_id[:1] in {"", "."} or run_id != Path(run_id).name or len(run_id.encode()) > 200
    ):
        message = f"run.id becomes the name of a folder, so {run_id!r} cannot be one"
        raise ConfigError(message)
    _reworded("trainer", TrainerSettings(**values["trainer"]).check)
    sampling = SamplingSettings(**values["sampling"])
    _reworded("sampling", sampling.check)
    _reworded("sampling", lambda: TrainerSettings(**values["trainer"]).window(sampling.patch_size))
    _reworded("cache", CacheSettings(**values["cache"]).check)
    if values["run"]["resume"] not in ("last", "previous"):
        message = f"run.resume must be last or previous, got {values['run']['resume']!r}"
        raise ConfigError(message)
    for group in ("loss", "schedule", "smoothing", "tracking"):
        build(group, values[group])
    _check_curriculum(values)
    _check_smoothings(values)
    augmentation: Any = build("augment", values["augment"])
    augmentation.check(sampling.patch_size, {})
    make = build("optimizer", values["optimizer"])
    _reworded("optimizer", lambda: make([torch.nn.Parameter(torch.zeros(1))]))
    with torch.device("meta"):  # shapes without memory
        build_network = build("network", values["network"])
        network = _reworded("network", lambda: build_network(in_channels=1, out_channels=2))
        patch = torch.zeros(2, 1, *values["sampling"]["patch_size"])
        _reworded("sampling.patch_size", lambda: network(patch))


def _check_curriculum(values: Mapping[str, Any]) -> None:
    """Refuse what the loss cannot have at some time of the training."""
    from medfocal.train.curriculum import Curriculum

    given = values["trainer"]["curriculum"]
    if given is None:
        return
    stated = {key: value for key, value in values["loss"].items() if key != "_target_"}
    loss = resolve_target("loss", values["loss"])
    _reworded("trainer.curriculum", lambda: Curriculum(given).check_against(loss, stated))


def _check_smoothings(values: Mapping[str, Any]) -> None:
    """Refuse to smooth labels twice."""
    of_target = values["smoothing"]["_target_"].rpartition(".")[2]
    of_loss = values["loss"].get("label_smoothing", 0.0)
    ways = [f"smoothing ({of_target})"] if of_target != "NoSmoothing" else []
    rates = of_loss.values() if isinstance(of_loss, dict) else [of_loss]
    ways += [f"loss.label_smoothing ({of_loss})"] if any(rate not in (0.0, None) for rate in rates) else []
    if values["annotations"]["estimate_smoothing"]:
        if "label_smoothing" not in values["loss"]:
            message = (
                f"annotations.estimate_smoothing: {values['loss']['_target_']} has no label_smoothing for the readers' "
                "rates; choose loss=focal or another that has"
            )
            raise ConfigError(message)
        ways.append("annotations.estimate_smoothing")
    if len(ways) > 1:
        message = f"{' and '.join(ways)} would smooth the labels twice; keep one of them"
        raise ConfigError(message)


def _check_corruption(values: Mapping[str, Any]) -> None:
    build("corruption", values["corruption"])


def _check_readers(values: Mapping[str, Any]) -> None:
    """Refuse what names neither readers nor a dataset file that lists them."""
    given = values["readers"]
    if given is None or (isinstance(given, str) and given.endswith((".json", ".csv"))):
        return
    if not isinstance(given, list) or not all(isinstance(place, str) and place for place in given):
        message = f"readers must be a list such as [DIR1,DIR2], or a dataset file (.json or .csv), got {given!r}"
        raise ConfigError(message)


def _check_runs(values: Mapping[str, Any]) -> None:
    """Refuse what names neither a folder of runs nor several."""
    for key, what in (("runs", "a folder"), ("experiments", "a name")):
        given = values[key]
        entries = given if isinstance(given, list) else [given]
        is_absent = key == "experiments" and given is None
        if not is_absent and (not entries or not all(isinstance(entry, str) and entry.strip() for entry in entries)):
            message = f"{key} must be {what}, or a list of them such as [A,B], got {given!r}"
            raise ConfigError(message)
    if values["output"] is None and isinstance(values["runs"], list):
        message = f"output must be given where runs lie in several folders: {', '.join(values['runs'])}"
        raise ConfigError(message)


def _check_reading(values: Mapping[str, Any]) -> None:
    """Refuse settings of how files are paired and read that make no sense."""
    for key, choices in (("missing", ("error", "empty")), ("extra", ("error", "skip"))):
        if values[key] not in choices:
            message = f"{key} must be one of {choices}, got {values[key]!r}"
            raise ConfigError(message)
    reading_of(values)
    if not values["output"].strip():
        message = "output must name a folder, got ''"
        raise ConfigError(message)
    if values.get("readers") is not None:
        refused = ("classes", "ignore", "ignore_value", "resample")
        given = [key for key in refused if values[key] is not None]
        given += ["instances"] * (values["instances"] != "none") + ["missing"] * (values["missing"] != "error")
        if given:
            message = f"readers are compared without {', '.join(given)}; leave out one or the other"
            raise ConfigError(message)


def _check_models(values: Mapping[str, Any]) -> None:
    given = values["model"]
    folders = [given] if isinstance(given, str) else given
    if not isinstance(folders, list) or not folders or not all(isinstance(one, str) and one for one in folders):
        message = f"model must be a model's folder or a list such as [DIR1,DIR2], got {given!r}"
        raise ConfigError(message)


def _check_calibration(values: Mapping[str, Any]) -> None:
    """Refuse what no operating point can be chosen by, and an output that would replace the model."""
    _check_models(values)
    calibration_of(values)
    folders = [values["model"]] if isinstance(values["model"], str) else values["model"]
    output = Path(values["output"])
    if not values["output"].strip() or any(Path(folder).resolve() == output.resolve() for folder in folders):
        message = f"output must name another folder than the model, which stays as it is, got '{values['output']}'"
        raise ConfigError(message)
    if values["protocol"]["hit_rule"] == "covered_together":
        message = (
            "protocol.hit_rule=covered_together judges candidates together at one threshold, so it cannot say at which "
            "a lesion is found; choose another protocol"
        )
        raise ConfigError(message)


def calibration_of(values: Mapping[str, Any]) -> Any:
    """What `calibrate` is asked for (`medfocal.infer.calibrate.CalibrateSettings`).

    Raises:
        ConfigError: A setting is out of its range.
    """
    settings = _load("medfocal.infer.calibrate.CalibrateSettings")
    names = [f.name for f in fields(settings)]
    return _reworded("calibrate", lambda: settings(**{name: values[name] for name in names}))


def _check_primary_rate(values: Mapping[str, Any]) -> None:
    given = values["primary_rate"]
    is_number = isinstance(given, int | float) and not isinstance(given, bool)
    if given not in (None, "auto") and not (is_number and 0 <= given < math.inf):
        message = f"primary_rate must be false positives per case, 0 or more, or null, or auto, got {given!r}"
        raise ConfigError(message)


def reading_of(values: Mapping[str, Any]) -> Any:
    """What the values of the files of `evaluate` or `compare` mean (`medfocal.evaluate.measure.Reading`).

    Raises:
        ConfigError: A setting is out of its range.
    """
    reading = _load("medfocal.evaluate.measure.Reading")
    names = ("classes", "ignore_value", "instances", "expect", "resample", "surface")
    return _reworded("evaluate", lambda: reading(**{name: values[name] for name in names if name in values}))


def _check_data(values: Mapping[str, Any]) -> None:
    _reworded("data", DataSettings(**values["data"]).check)


def _check_budget(values: Mapping[str, Any]) -> None:
    from medfocal.data.plan.patch import Budget

    _reworded("budget", functools.partial(Budget, values["budget"]))
    if not values["output"].strip():
        message = "output must name a folder, got ''"
        raise ConfigError(message)


def _check_format(values: Mapping[str, Any]) -> None:
    """Refuse what a model cannot be written as, and a file that would not be known by its ending."""
    from medfocal.infer.export import Format

    name, names = values["format"], [str(kind) for kind in Format]
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1)
        hint = f" (did you mean '{near[0]}'?)" if near else ""
        message = f"there is no format '{name}'{hint}. Formats: {', '.join(names)}."
        raise ConfigError(message)
    _reworded("export", lambda: Format(name).check_output(values["output"]))


def _check_figure(values: Mapping[str, Any]) -> None:
    """Refuse a figure that cannot be drawn, and settings of `info` of which one would have no effect."""
    from medfocal.report.loss_figure import FIGURES

    name, model, output = (values[key] for key in ("figure", "model", "output"))
    if name is None:
        if output is not None:
            message = f"output '{output}' is where a figure goes; choose one: figure={'|'.join(FIGURES)}"
            raise ConfigError(message)
        return
    if name not in FIGURES:
        near = difflib.get_close_matches(name, FIGURES, n=1)
        hint = f" (did you mean '{near[0]}'?)" if near else ""
        message = f"there is no figure '{name}'{hint}. Figures: {', '.join(FIGURES)}."
        raise ConfigError(message)
    if model is not None:
        message = f"figure '{name}' has nothing to do with model '{model}'; give one of them"
        raise ConfigError(message)
    if output is not None and Path(output).suffix.lower() != ".png":
        message = f"output '{output}' must end in .png, which is what a figure is written as"
        raise ConfigError(message)


def build(group: str, values: Mapping[str, Any]) -> Callable[..., Any] | Any:
    """Make the object of a `_target_` group, or, where the program supplies arguments, what makes it from them.

    Raises:
        ConfigError: The target is not allowed, or its constructor refuses the arguments.
    """
    target = resolve_target(group, values)
    arguments = {key: value for key, value in values.items() if key != "_target_"}
    if SUPPLIED.get(group):
        return functools.partial(target, **arguments)
    return _reworded(group, functools.partial(target, **arguments))


def construct(group: str, values: Mapping[str, Any]) -> Any:
    """Make the value of a group in `CONSTRUCTED`.

    Raises:
        ConfigError: Its constructor refuses the arguments.
    """
    return _reworded(group, functools.partial(_load(CONSTRUCTED[group]), **_own(group, values)))


def named_protocol(name: str) -> Protocol:
    """Give the protocol of `conf/protocol/NAME.yaml`, as `protocol=NAME` on the command line does.

    Args:
        name: Such as "picai".

    Raises:
        ConfigError: There is none of that name.

    Example:
        >>> named_protocol("picai").hit_rule
        'iou'
    """
    names = sorted(path.stem for path in (conf_directory() / "protocol").glob("*.yaml"))
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1)
        hint = f" (did you mean '{near[0]}'?)" if near else ""
        message = f"there is no protocol '{name}'{hint}. Protocols: {', '.join(names)}."
        raise ConfigError(message)
    protocol: Protocol = construct("protocol", _stated(conf_directory() / "protocol" / f"{name}.yaml"))
    return protocol


def _stated(path: Path) -> dict[str, Any]:
    """What a file states together with those that its `defaults` names; within a sweep Hydra cannot compose anew."""
    values = OmegaConf.to_container(OmegaConf.load(path), resolve=True)
    assert isinstance(values, dict)
    own = {str(key): value for key, value in values.items()}
    stated: dict[str, Any] = {}
    for other in own.pop("defaults", []):
        if other != "_self_":
            stated |= _stated(path.with_name(f"{other}.yaml"))
    return stated | own


#: Settings of a protocol that say how an outcome is reported, not what it is: changing them leaves its name.
REPORTING = frozenset(
    {
        *("name", "threshold", "diameter_edges_mm", "volume_edges_mm3", "min_lesions", "false_positive_rates"),
        *("interval", "level", "num_resamples", "seed", "tolerance_mm"),
    }
)


def stated_protocol(values: Mapping[str, Any]) -> Protocol:
    """The protocol of a composed configuration, under a name that says which rules of the named one were changed.

    Raises:
        ConfigError: The rules make no sense.
    """
    protocol: Protocol = construct("protocol", values)
    if not (conf_directory() / "protocol" / f"{protocol.name}.yaml").is_file():
        return protocol  # somebody's own, under its own name
    named = named_protocol(protocol.name).to_dict()
    changed = [
        f"{rule}={value:g}" if isinstance(value, float) else f"{rule}={value}"
        for rule, value in protocol.to_dict().items()
        if rule not in REPORTING and value != named[rule]
    ]
    return replace(protocol, name=f"{protocol.name}, changed: {', '.join(changed)}") if changed else protocol


def _check_protocol(values: Mapping[str, Any]) -> None:
    """Refuse a hit rule that is a share without the share, which would be any overlap under another name."""
    rules = values["protocol"]
    if rules["hit_rule"] in ("iou", "dice", "lesion_covered", "covered_together") and not rules["hit_threshold"]:
        message = (
            f"protocol.hit_rule={rules['hit_rule']} with hit_threshold 0 is any overlap; give the share that a hit"
            " needs, such as protocol.hit_threshold=0.25"
        )
        raise ConfigError(message)


def resolve_target(group: str, values: Mapping[str, Any]) -> Any:
    """The class that a group's `_target_` names, if it is one of those allowed there.

    Raises:
        ConfigError: It is not.
    """
    name = values.get("_target_")
    module, outside = TARGETS[group]
    allowed = [*outside]
    if module is not None:
        public = importlib.import_module(module)
        allowed += [f"{module}.{n}" for n in public.__all__ if inspect.isclass(getattr(public, n))]
    if name not in allowed:
        message = f"{group}: the _target_ {name!r} is not allowed. Allowed are {', '.join(sorted(allowed))}."
        raise ConfigError(message)
    return _load(name)


def _load(name: str) -> Any:
    module, _, attribute = name.rpartition(".")
    return getattr(importlib.import_module(module), attribute)


def _check_arguments(group: str, name: str, values: Mapping[str, Any]) -> None:
    """Hold names and types of a group's values against the constructor `name`."""
    target = _load(name)
    parameters = inspect.signature(target, eval_str=True).parameters
    supplied = SUPPLIED.get(group, frozenset())
    known = [parameter for parameter in parameters if parameter not in supplied]
    given = {key: value for key, value in values.items() if key != "_target_"}
    for key, value in given.items():
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f" (did you mean '{near[0]}'?)" if near else f"; it has {', '.join(known)}"
            message = f"{group}: {name} has no '{key}'{hint}. Correct the override or the file in conf/."
            raise ConfigError(message)
        if not _fits(value, parameters[key].annotation):
            wanted = inspect.formatannotation(parameters[key].annotation).replace("collections.abc.", "")
            message = f"{group}.{key}: {name} takes {wanted}, got {value!r}"
            raise ConfigError(message)
    if not target.__module__.startswith("medfocal."):
        return  # another package's defaults hold, and its version is recorded with the run
    unstated = [parameter for parameter in known if parameter not in given]
    if unstated:
        message = (
            f"{group}: {name} needs {', '.join(unstated)} to be stated, so that the run's configuration is complete"
        )
        raise ConfigError(message)


def _fits(value: Any, hint: Any) -> bool:
    """Whether a plain value may be given where a parameter has this type; ranges are the constructor's."""
    choices, parts = get_args(hint), get_origin(hint)
    if parts in {Union, UnionType}:
        return any(_fits(value, choice) for choice in choices)
    if parts is not None:
        if parts is Literal:
            return True  # a Literal: the constructor's own message names the choices
        if isinstance(parts, type) and issubclass(parts, Mapping):
            return isinstance(value, dict) and all(_fits(item, choices[1]) for item in value.values())
        return isinstance(value, list) and all(_fits(item, choices[0]) for item in value)
    if hint in {int, float}:
        return isinstance(value, int | hint) and not isinstance(value, bool)
    return isinstance(value, str if issubclass(hint, str) else hint)  # a StrEnum is written as a string


def _own(group: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Keys of a group without those of a group within it."""
    nested = {name.rpartition(".")[2] for name in CONSTRUCTED if name.rpartition(".")[0] == group}
    return {key: value for key, value in values.items() if key not in nested}


def _refuse_stray_targets(values: Mapping[str, Any]) -> None:
    for path in _paths(values):
        group, _, word = path.rpartition(".")
        if word in HYDRA_WORDS and not (word == "_target_" and group in TARGETS):
            message = f"{path}: only {', '.join(TARGETS)} may have a _target_, and no other word of instantiation"
            raise ConfigError(message)


def _paths(value: Any) -> Iterator[str]:
    return (path for path, _ in _items(value))


def _items(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The path of everything within, and what stands there."""
    items = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield f"{prefix}{key}", item
        yield from _items(item, f"{prefix}{key}.")


def _last(path: str) -> str:
    return path.rpartition(".")[2]


def _at(values: Mapping[str, Any], path: str) -> Mapping[str, Any]:
    found: Any = values
    for key in path.split("."):
        found = found.get(key) if isinstance(found, Mapping) else None
    if not isinstance(found, Mapping):
        message = f"{path}: the settings of {CONSTRUCTED[path]} are expected, got {found!r}"
        raise ConfigError(message)
    return found


def _reworded(group: str, call: Callable[[], Any]) -> Any:
    try:
        return call()
    except (TypeError, ValueError) as error:
        message = f"{group}: {error}"
        raise ConfigError(message) from error
