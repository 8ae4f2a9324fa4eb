"""The command `medfocal VERB key=value …`: composes the configuration, checks it, calls one function."""

from __future__ import annotations

import errno
import os
import re
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

from medfocal import __version__
from medfocal.errors import ConfigError, MedfocalError

if TYPE_CHECKING:
    from medfocal.evaluate import Reader  # importing it imports numpy, which `--help` does without
    from medfocal.train.ranks import Ranks

DESCRIPTION = """medfocal: find rare lesions in 3D medical images, and tell honestly how many were found.

usage: medfocal VERB key=value ...

  phantom    make brain-like volumes with small lesions to try things on
  check      read every case of a dataset as training would and name what is wrong
  plan       measure a dataset and propose, with reasons, how to train on it
  train      train a 3D U-Net, keep the epoch that finds most lesions, evaluate it
  predict    write masks and tables of candidates for new images
  evaluate   lesion sensitivity and false positives of anybody's masks
  compare    two models on the same cases: which finds more lesions, and whether that is more than chance
  suspect    labels that are probably wrong, by predictions that did not learn from them
  summarize  many training runs as one table: mean and spread over seeds and folds, figures
  calibrate  a model's operating points from cases that it has not learnt from, with a guarantee
  export     a model as a MONAI bundle, an ONNX file or a torch.export archive, held against the original
  info       versions and devices; with model=DIR what a model finds; with figure=focal_loss the loss, drawn

medfocal VERB --help shows a verb's settings.  medfocal train -m seed=1,2,3 runs all three.
Research use. Not a medical device.
"""

#: Options that Hydra answers to; the others of its own would put another configuration in place of ours.
OPTIONS = ("-m", "--multirun", "-c", "--cfg", "--resolve", "-p", "--package", "-i", "--info")


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run a verb and exit with its code: 0 done, 2 usage or configuration, 3 input, 4 model, 5 resources."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, _terminate)
    if not words or words[0] in {"-h", "--help", "help"}:
        print(DESCRIPTION, end="", file=sys.stdout if words else sys.stderr)
        sys.exit(0 if words else 2)
    if words[0] == "--version":
        print(f"medfocal {__version__}")
        sys.exit(0)
    debug = any(word in {"debug=true", "debug=True"} for word in words)
    try:
        _run(words[0], words[1:])
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # the reader of stdout has gone; the files are written
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except MedfocalError as error:
        _fail(error, error.exit_code, debug=debug)
    except Exception as error:
        code = _exit_code_of(error)
        if code is None:
            raise  # our own bug: the traceback is what a report of it needs
        _fail(error, code, debug=debug)
    sys.exit(0)


def _run(verb: str, words: Sequence[str]) -> None:
    from medfocal.config import VERBS, check, compose, conf_directory

    if verb not in VERBS:
        import difflib

        near = difflib.get_close_matches(verb, VERBS, n=1)
        message = f"there is no verb '{verb}'" + (f" (did you mean '{near[0]}'?)" if near else "")
        raise ConfigError(f"{message}. Verbs: {', '.join(VERBS)}.")
    if any(word in {"-h", "--help"} for word in words):
        print(_help(verb, conf_directory()), end="")
        return
    strange = [word for word in words if word.startswith("-") and word not in OPTIONS]
    if strange:
        message = f"there is no option {strange[0]}; settings are given as key=value, and -m runs each of a=1,2"
        raise ConfigError(message)
    plan, words = _with_plan(words) if verb == "train" else (None, words)
    if any(word in OPTIONS for word in words):
        _hand_to_hydra(verb, words, plan)
        return
    hydra_words = [word for word in words if _is_hydras(word) and not word.startswith("hydra.searchpath=")]
    if hydra_words:
        message = f"{hydra_words[0]}: a setting of Hydra's own has no effect without -m"
        raise ConfigError(message)
    FUNCTIONS[verb](_with_no_other_plan(check(compose(verb, words)), plan))


def _with_plan(words: Sequence[str]) -> tuple[str | None, Sequence[str]]:
    """The plan that is named, and the words with its settings before them, so that what the user says wins."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    from medfocal.config import compose, conf_directory, plan_overrides

    if not any(re.match(r"[+~]*plan\b", word) for word in words):
        return None, words
    overrides = OverridesParser.create().parse_overrides([w for w in words if "=" in w or w.startswith("~")])
    named = [override for override in overrides if override.key_or_group == "plan"]
    if any(override.is_sweep_override() for override in named):
        message = "plan: one file for all of a sweep; run each plan for itself"
        raise ConfigError(message)
    plan = named[-1].value() if named else None
    if plan is None:
        return None, words
    conf = compose("train", [word for word in map(_first_of_sweep, overrides) if word])
    chosen = {
        override.package or override.key_or_group: str(override.input_line)
        for override in overrides
        if (conf_directory() / override.key_or_group).is_dir() and override.key_or_group != "experiment"
    }
    before, notes = plan_overrides(Path(str(plan)), conf, chosen)
    for note in notes:
        print(note, file=sys.stderr)
    return str(plan), [*before, *words]


def _with_no_other_plan(values: dict[str, Any], plan: str | None) -> dict[str, Any]:
    """The configuration, once it is seen that no file names a plan, which would have no effect there."""
    if values.get("plan") != plan:
        message = f"plan '{values['plan']}' stands in an experiment; give it as plan=… on the command line"
        raise ConfigError(message)
    return values


def _hand_to_hydra(verb: str, words: Sequence[str], plan: str | None) -> None:
    """A sweep, or a look at the configuration: Hydra does it, once its own settings are seen to call nothing else."""
    import hydra
    from hydra.core.override_parser.overrides_parser import OverridesParser

    from medfocal.config import check, check_hydra, compose, conf_directory, register

    given = [word for word in words if "=" in word or word.startswith("~")]
    overrides = OverridesParser.create().parse_overrides(given)
    for override in overrides:
        if override.is_sweep_override() and _is_hydras(str(override.input_line)):
            message = f"{override.input_line}: a setting of Hydra's own cannot be swept"
            raise ConfigError(message)
    if verb == "train" and {"-m", "--multirun"} & set(words):
        from medfocal.train.ranks import num_announced

        if num_announced() > 1:
            message = "-m starts one training after another in one process; start torchrun once for each instead"
            raise ConfigError(message)
    first = [_first_of_sweep(override) for override in overrides]
    hydra_conf = compose(verb, [word for word in first if word], with_hydra=True)
    check_hydra(hydra_conf)
    is_search = "direction" in hydra_conf.hydra.sweeper
    register()

    def task(conf: Any) -> float | None:
        register()  # a launcher may have started another process for this
        found = FUNCTIONS[verb](_with_name_of_run(_with_no_other_plan(check(conf), plan)))
        if found is None and is_search:
            message = f"this {verb} gives no figure to search by; a training does where a validation case has a lesion"
            raise ConfigError(message)
        return found

    # Without this Hydra prints errors itself and exits with 1, whatever happened.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is told to anybody
    # Hydra loses overrides that stand behind an option.
    sys.argv = [f"medfocal {verb}", *given, *(word for word in words if word not in given)]
    hydra.main(version_base="1.3", config_path=str(conf_directory()), config_name=verb)(task)()


def _with_name_of_run(values: dict[str, Any]) -> dict[str, Any]:
    """The configuration with a name for a run of a sweep that stays when its job is started again."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    hydra = HydraConfig.get()
    if hydra.mode is RunMode.MULTIRUN and "run" in values and values["run"]["id"] is None:
        fold = values["data"]["fold"]
        name = f"seed{values['seed']}" if fold is None else f"fold{fold}-seed{values['seed']}"
        values["run"]["id"] = f"{Path(hydra.sweep.dir).name}-{hydra.job.num}-{name}"
    return values


def _first_of_sweep(override: Any) -> str:
    """An override with the first of its values; none for a sweep over an interval or a pattern."""
    if not override.is_sweep_override():
        return str(override.input_line)
    if override.is_choice_sweep() or override.is_range_sweep():
        return f"{override.get_key_element()}={next(override.sweep_string_iterator())}"
    return ""


def _is_hydras(word: str) -> bool:
    return re.match(r"[+~]*hydra\b", word) is not None


def _train(conf: dict[str, Any]) -> float | None:
    from medfocal.progress import silence
    from medfocal.train.ranks import join_ranks

    with join_ranks() as ranks:
        if not ranks.is_first:
            silence()
        return _train_in(ranks, conf)


def _train_in(ranks: Ranks, conf: dict[str, Any]) -> float | None:
    """Train in one of the processes that do it together."""
    from medfocal import config
    from medfocal.data.dataset import DataSettings
    from medfocal.files import make_folder
    from medfocal.infer.window import choose_device
    from medfocal.model import read_card
    from medfocal.progress import say
    from medfocal.report.runs import report_run
    from medfocal.train import run
    from medfocal.train.records import check_same_configuration
    from medfocal.train.settings import CacheSettings, SamplingSettings, TrainerSettings

    device = choose_device(ranks.device(conf["device"]))
    runs = Path(conf["paths"]["runs"]) / conf["experiment"]
    folder = runs / ranks.told_by_first(conf["run"]["id"] or run.new_run_id(conf["seed"]))
    check_same_configuration(folder, conf)
    manifest = DataSettings(**conf["data"]).open(own_split=folder / "split.json")
    make_folder(runs)
    settings = TrainerSettings(**conf["trainer"])
    if run.is_finished(folder, manifest, settings):
        say(
            f"the run '{folder}' is finished; raise trainer.max_epochs to go on, where it was stopped early "
            "trainer.patience too, or take another run.id"
        )
        return read_card(folder / "model")[0].operating_points[0].lesion_sensitivity
    augmentation: Any = config.build("augment", conf["augment"])
    tracking: Any = config.build("tracking", conf["tracking"])
    tracking.check()
    result = run.run_training(
        folder,
        configuration=conf,
        name=conf["experiment"],
        manifest=manifest,
        preprocessing=config.construct("transforms", conf["transforms"]),
        augmentation=augmentation,
        sampling=SamplingSettings(**conf["sampling"]),
        cache=CacheSettings(**conf["cache"]),
        cache_folder=Path(conf["paths"]["cache"]),
        annotations=config.construct("annotations", conf["annotations"]),
        smoothing=config.build("smoothing", conf["smoothing"]),
        build_loss=lambda **changed: config.build("loss", {**conf["loss"], **changed}),
        build_network=config.build("network", conf["network"]),
        build_optimizer=config.build("optimizer", conf["optimizer"]),
        schedule=config.build("schedule", conf["schedule"]),
        settings=settings,
        protocol=config.construct("evaluate", conf["evaluate"]),
        seed=conf["seed"],
        device=device,
        tracking=tracking,
        resume=conf["run"]["resume"],
        ranks=ranks,
    )
    if result is None:  # another process tells
        return None
    report_run(result, manifest)
    return result.operating_point.lesion_sensitivity


def _predict(conf: dict[str, Any]) -> None:
    from medfocal.infer import PredictSettings, load_models, predict
    from medfocal.infer.predict import VIEWS
    from medfocal.infer.window import choose_device
    from medfocal.progress import say

    if conf["tta"] not in VIEWS:
        message = f"tta must be {' or '.join(VIEWS)}, got {conf['tta']!r}"
        raise ConfigError(message)
    own = ("threshold", "save_probability", "save_spread", "max_memory_mb", "allow_cpu", "keep_going", "resume")
    try:
        settings = PredictSettings(
            **{name: conf[name] for name in (*own, "strict")},
            mirror=conf["tta"] == "mirror",
            exclude=_path(conf["exclude"]),
            shard=_shard(conf["shard"]),
        )
    except ValueError as error:
        raise ConfigError(str(error)) from error
    device = choose_device(conf["device"])
    folders = [conf["model"]] if isinstance(conf["model"], str) else conf["model"]
    model = load_models([Path(folder) for folder in folders], device)
    if len(folders) > 1 and conf["threshold"] is None:
        say(
            f"threshold {model.card.operating_points[0].threshold:.3g} is the mean of the models' own; it was not "
            "chosen for the ensemble. medfocal calibrate chooses one, on cases that no model has learnt from."
        )
    output = Path(conf["output"])
    masks = predict(model, Path(conf["input"]), output, device=device, settings=settings)
    say(f"{len(masks)} {'case' if len(masks) == 1 else 'cases'}: masks and candidates are in '{output}'")


def _shard(value: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d+)/(\d+)", value)
    if found is None:
        message = f"shard must be i/n such as 2/8, got {value!r}"
        raise ConfigError(message)
    return int(found[1]), int(found[2])


def _evaluate(conf: dict[str, Any]) -> None:
    from dataclasses import replace

    from medfocal import config
    from medfocal.data.formats import read_dataset
    from medfocal.errors import InputError
    from medfocal.evaluate import compare_readers, evaluate_measured, measure_pairs, write_evaluation
    from medfocal.evaluate.measure import WHOLE
    from medfocal.evaluate.pairs import find_pairs
    from medfocal.evaluate.readers import write_fused
    from medfocal.report.runs import find_pictures, print_table, report_evaluation

    reference, prediction, manifest = (_path(conf[key]) for key in ("reference", "prediction", "manifest"))
    is_fused = reference is None and prediction is not None and conf["readers"] is not None
    if manifest is None and not is_fused and (reference is None or prediction is None):
        message = "give reference=FOLDER and prediction=FOLDER, or manifest=FILE.csv; readers can stand for reference"
        raise ConfigError(message)
    output = Path(conf["output"])
    places = [Path(place) for place in conf["readers"]] if isinstance(conf["readers"], list) else []
    if any(path is not None and path.resolve() == output.resolve() for path in (reference, prediction, *places)):
        message = f"output '{output}' is one of the folders to evaluate; choose another, so that results stay apart"
        raise ConfigError(message)
    protocol = config.stated_protocol(conf["protocol"])
    pairs = find_pairs(
        reference,
        prediction,
        manifest=manifest,
        ignore=_path(conf["ignore"]),
        missing=conf["missing"],
        extra=conf["extra"],
        fused=output / "fused_reference" if is_fused else None,
    )
    if manifest is None and isinstance(conf["readers"], str):  # a dataset file knows the patients too
        patients = {case.name: case.patient for case in read_dataset(conf["readers"], need_images=False).cases}
        pairs = [replace(pair, patient=patients.get(pair.case, pair.patient)) for pair in pairs]
    readers = None if conf["readers"] is None else _find_readers(conf["readers"], [pair.case for pair in pairs])
    images = _path(conf["images"])
    pictures = {} if images is None else find_pictures(images, pairs)
    if is_fused and readers is not None:
        write_fused(pairs, readers)
    reading = config.reading_of(conf)
    measured = measure_pairs(
        pairs,
        protocol,
        reading,
        store=output / "tables.jsonl",
        workers=conf["workers"],
        keep_going=True,
    )
    given = {name: conf[name] for name in ("reference", "prediction", "manifest", "ignore", "images") if conf[name]}
    if is_fused:
        given["reference"] = f"what most of the readers marked: {conf['readers']}"
    found = replace(evaluate_measured(measured, protocol), inputs={name: str(value) for name, value in given.items()})
    if readers is not None:
        kept = {table.case for table in measured.tables[WHOLE]}
        found = replace(found, readers=compare_readers([p for p in pairs if p.case in kept], readers, protocol))
    write_evaluation(found, output)
    written = report_evaluation(
        found,
        output,
        pairs=pairs,
        images=pictures,
        reading=reading,
        max_pictures=conf["max_pictures"],
        viewer_limit_mb=conf["viewer_limit_mb"],
    )
    print_table(found, {**written, "figures": output / "evaluation.json"})
    if found.failed:
        more = f"\n    and {len(found.failed) - 10} more" if len(found.failed) > 10 else ""
        reasons = "".join(f"\n    {failure.error}" for failure in found.failed[:10])
        message = f"{len(found.failed)} of {len(pairs)} cases could not be evaluated and are left out:{reasons}{more}"
        raise InputError(message)


def _find_readers(given: list[str] | str, cases: Sequence[str]) -> list[Reader]:
    """The readers of `evaluate`: a list of places, or the annotations of a dataset file."""
    from medfocal.data.formats import read_dataset
    from medfocal.evaluate.readers import find_readers, readers_of_annotations

    if isinstance(given, list):
        return find_readers(given, cases)
    annotations = {case.name: case.annotations for case in read_dataset(given, need_images=False).cases}
    return readers_of_annotations(annotations, cases, given)


def _compare(conf: dict[str, Any]) -> None:
    from medfocal import config
    from medfocal.evaluate import measure_pairs
    from medfocal.evaluate.compare import compare_tables, write_comparison
    from medfocal.evaluate.measure import WHOLE
    from medfocal.evaluate.pairs import find_pairs
    from medfocal.report.comparison import print_comparison, write_comparison_page

    reference, output = Path(conf["reference"]), Path(conf["output"])
    models = {name: Path(conf[name]) for name in ("a", "b")}
    if any(path.resolve() == output.resolve() for path in (reference, *models.values())):
        message = f"output '{output}' is one of the folders to compare; choose another, so that results stay apart"
        raise ConfigError(message)
    protocol = config.stated_protocol(conf["protocol"])
    reading = config.reading_of(conf)
    pairs = {
        name: find_pairs(
            reference,
            place,
            manifest=_path(conf["manifest"]),
            ignore=_path(conf["ignore"]),
            missing=conf["missing"],
            extra=conf["extra"],
        )
        for name, place in models.items()
    }
    tables = {
        name: measure_pairs(
            pairs[name],
            protocol,
            reading,
            store=output / f"tables_{name}.jsonl",
            workers=conf["workers"],
            description=f"measure {name}",
        ).tables[WHOLE]
        for name in models
    }
    primary_rate = conf["primary_rate"]
    if primary_rate == "auto":
        has_masks = any(table.is_mask and len(table.candidates) for of in tables.values() for table in of)
        primary_rate = None if has_masks else 1.0
    found = compare_tables(
        tables["a"],
        tables["b"],
        protocol,
        primary_rate=primary_rate,
        num_permutations=conf["num_permutations"],
    )
    places = {name: str(place) for name, place in models.items()}
    write_comparison(found, output, **places)
    page = write_comparison_page(output / "comparison.html", found, **places)
    print_comparison(found, {"report": page, "figures": output / "comparison.json", "table": output / "comparison.csv"})


def _suspect(conf: dict[str, Any]) -> None:
    from medfocal import config
    from medfocal.annotations.suspect import suspect_files
    from medfocal.evaluate.pairs import find_pairs
    from medfocal.report.runs import find_pictures
    from medfocal.report.suspects import print_suspects, write_suspect_page

    reference, prediction, manifest = (_path(conf[key]) for key in ("reference", "prediction", "manifest"))
    if manifest is None and (reference is None or prediction is None):
        message = "give reference=FOLDER and prediction=FOLDER, or manifest=FILE.csv"
        raise ConfigError(message)
    output = Path(conf["output"])
    if any(path is not None and path.resolve() == output.resolve() for path in (reference, prediction)):
        message = f"output '{output}' is one of the folders to judge; choose another, so that results stay apart"
        raise ConfigError(message)
    rules = config.construct("rules", conf["rules"])
    images = _path(conf["images"])
    pairs = find_pairs(reference, prediction, manifest=manifest)
    pictures = {} if images is None else find_pictures(images, pairs)
    found = suspect_files(pairs, output, rules)
    page = write_suspect_page(
        output / "suspect.html", found, pairs, pictures=pictures, max_pictures=conf["max_pictures"]
    )
    print_suspects(found, {"page": page, "table": output / "suspect.csv", "weights": output / "weights"})


def _summarize(conf: dict[str, Any]) -> None:
    from medfocal.report.summary import summarize_runs

    given, names = conf["runs"], conf["experiments"]
    places = [Path(place) for place in (given if isinstance(given, list) else [given])]
    output = places[0] / "summary" if conf["output"] is None else Path(conf["output"])
    summarize_runs(places, output, experiments=[names] if isinstance(names, str) else names)


def _phantom(conf: dict[str, Any]) -> None:
    from medfocal import config
    from medfocal.data.phantom import write_phantoms
    from medfocal.progress import say

    arguments = {key: value for key, value in conf.items() if key not in {"debug", "paths", "output", "corruption"}}
    corruption: Any = config.build("corruption", conf["corruption"])
    try:
        dataset = write_phantoms(Path(conf["output"]), **arguments, corruption=corruption)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    say(f"the dataset is '{dataset}'")


def _check(conf: dict[str, Any]) -> None:
    from medfocal import config
    from medfocal.data.check import check_dataset, print_dataset_report, write_dataset_report
    from medfocal.data.dataset import DataSettings
    from medfocal.progress import say

    output, workers = _path(conf["output"]), conf["workers"]
    if conf["fix"] and output is None:
        message = "fix=true writes a repaired copy; give output=FOLDER for it"
        raise ConfigError(message)
    manifest = DataSettings(**conf["data"]).open(need_images=False)
    if conf["fix"] and output is not None:
        from medfocal.data.check.repair import refuse_own_folder

        refuse_own_folder(manifest, output)
    report = check_dataset(manifest, limits=config.construct("limits", conf["limits"]), workers=workers)
    print_dataset_report(report)
    if output is not None:
        from medfocal.report.dataset_page import write_dataset_page

        say(f"the report is '{write_dataset_report(report, output / 'dataset_report.json')}'")
        page = output / "dataset_report.html"
        say(f"the page is '{write_dataset_page(page, report, max_pictures=conf['max_pictures'], workers=workers)}'")
    if not (conf["fix"] and output is not None):
        report.raise_for_errors()
        return
    from medfocal.data.check.repair import print_repairs, repair_dataset

    repairs = repair_dataset(report, output, workers=workers)
    print_repairs(repairs)
    report.raise_for_errors(repairs.repaired)


def _plan(conf: dict[str, Any]) -> None:
    from medfocal.data.dataset import DataSettings
    from medfocal.data.plan.patch import Budget
    from medfocal.train.planned import device_to_plan_for, plan_dataset

    device = device_to_plan_for(conf["device"], conf["memory_gb"])
    plan_dataset(
        DataSettings(**conf["data"]).open(need_images=False),
        Path(conf["output"]),
        device=device,
        memory_gb=conf["memory_gb"],
        budget=Budget(conf["budget"]),
        workers=conf["workers"],
        data=conf["data"],
    )


def _calibrate(conf: dict[str, Any]) -> None:
    from medfocal import config
    from medfocal.data.dataset import DataSettings
    from medfocal.infer import load_models
    from medfocal.infer.calibrate import calibrate
    from medfocal.infer.window import choose_device
    from medfocal.report.calibration_page import print_calibration, write_calibration_figure

    device = choose_device(conf["device"])
    folders = [Path(folder) for folder in ([conf["model"]] if isinstance(conf["model"], str) else conf["model"])]
    if any(folder.resolve() == Path(conf["output"]).resolve() for folder in folders):
        message = f"output={conf['output']} is a folder of the model itself, whose card would be lost. Name another."
        raise ConfigError(message)
    model = load_models(folders, device)
    found = calibrate(
        model,
        DataSettings(**conf["data"]).open(),
        Path(conf["output"]),
        settings=config.calibration_of(conf),
        protocol=config.stated_protocol(conf["protocol"]),
        device=device,
    )
    print_calibration(found, write_calibration_figure(found))


def _export(conf: dict[str, Any]) -> None:
    from medfocal.infer.export import Format, export_model
    from medfocal.model import load_model
    from medfocal.progress import say

    model = load_model(Path(conf["model"]))
    found = export_model(model, Format(conf["format"]), Path(conf["output"]))
    size = "x".join(map(str, found.shape[2:]))
    say(f"a window of {size} voxels of noise: probabilities within {found.difference:.1e} of the model's, in float32")
    if conf["format"] != "monai_bundle" and model.card.is_corrected:
        say(
            "warning: the model corrects its probabilities, which is not in the graph: the card's operating points do "
            "not hold for what it gives"
        )
    say(f"the {conf['format']} is '{found.path}'")


def _info(conf: dict[str, Any]) -> None:
    if conf["figure"] is not None:
        from medfocal.progress import say
        from medfocal.report.loss_figure import FIGURES

        path = FIGURES[conf["figure"]](Path(conf["output"] or f"{conf['figure']}.png"))
        say(f"the figure is '{path}'")
        return
    from medfocal.report.cards import describe_installation, describe_model

    print(describe_installation() if conf["model"] is None else describe_model(Path(conf["model"])), end="")


FUNCTIONS: dict[str, Callable[[dict[str, Any]], float | None]] = {
    "train": _train,
    "predict": _predict,
    "evaluate": _evaluate,
    "compare": _compare,
    "suspect": _suspect,
    "summarize": _summarize,
    "phantom": _phantom,
    "check": _check,
    "plan": _plan,
    "calibrate": _calibrate,
    "export": _export,
    "info": _info,
}


def _path(value: str | None) -> Path | None:
    return None if value is None else Path(value)


def _help(verb: str, conf: Path) -> str:
    """A verb's settings as its configuration file states them; read as text, so that help needs no import."""
    text = (conf / f"{verb}.yaml").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line.strip() != "defaults:" and not line.startswith("  - ")]
    groups = [line[4:].split(":") for line in text.splitlines() if line.startswith("  - ") and ":" in line]
    shown = ""
    for name, chosen in groups:
        folder = conf / name.split("@")[0].strip()
        if len(choices := sorted(path.stem for path in folder.glob("*.yaml"))) > 1:
            shown += f"  {name.strip():<12} {' | '.join(choices)}   (default: {chosen.strip()})\n"
    body = "\n".join(lines).replace("\n\n\n", "\n\n")
    return (
        f"{body}\n\n"
        + (f"Groups, chosen by group=name:\n{shown}\n" if shown else "")
        + f"Every setting can be given as key=value; medfocal {verb} --cfg job prints all of them, resolved.\n"
        "debug=true shows the traceback of an error. Exit codes: 0 done, 2 usage or configuration, 3 input, 4 model,\n"
        "5 resources, 143 terminated.\n"
    )


def _exit_code_of(error: Exception) -> int | None:
    """Exit code of an error that another package raised for something the user can mend."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    if isinstance(error, HydraException | OmegaConfBaseException):
        return 2
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return 5
    if isinstance(error, RuntimeError) and "can't allocate memory" in str(error):  # torch on the CPU
        return 5
    if isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return 5
    return None


def _fail(error: BaseException, code: int, *, debug: bool) -> NoReturn:
    if debug:
        traceback.print_exception(error)
    kind = type(error).__name__ if isinstance(error, MedfocalError) else "ConfigError" if code == 2 else "ResourceError"
    print(f"{kind}: {error}", file=sys.stderr)
    sys.exit(code)


def _terminate(_signal: int, _frame: FrameType | None) -> NoReturn:
    """End at once, but through every `finally`, so that no half-written file stays."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one must not interrupt the cleaning up
    os.write(2, b"terminated\n")  # print could be what was interrupted
    sys.exit(143)


if __name__ == "__main__":
    main()
