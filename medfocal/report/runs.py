"""What a user sees at the end of a command: a table on the terminal, and the report page with its pictures."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from medfocal import __version__
from medfocal.data.manifest import Manifest
from medfocal.errors import DatasetError, GeometryError, InputError
from medfocal.evaluate import Evaluation, Protocol
from medfocal.evaluate.intervals import Rate
from medfocal.evaluate.pairs import Pair
from medfocal.evaluate.results import class_folder
from medfocal.evaluate.values import find_predicted
from medfocal.infer.candidates import mask_at
from medfocal.report.figures import write_curves
from medfocal.report.page import write_report
from medfocal.report.pictures import CaseImages
from medfocal.report.readers import reader_lines
from medfocal.report.viewer import FOLDER, LIMIT_MB, serve_command
from medfocal.volume import Volume, is_volume, read_labels, read_volume, resample_nearest, volume_name

if TYPE_CHECKING:
    from medfocal.train.run import RunResult  # importing it imports torch, which evaluating does without


@dataclass(frozen=True)
class CaseFiles:
    """Where the volumes of a case's pictures lie."""

    image: Path
    reference: Path
    prediction: Path | None


def report_run(result: RunResult, manifest: Manifest) -> None:
    """Write a training run's curves and reports, and print its table: the test split's, else the validation's."""
    folder = result.folder
    metrics = folder / "metrics.csv"
    write_curves(metrics, folder / "curves.png")
    point = result.operating_point
    facts = {
        "Dataset": manifest.name,
        "Operating point": f"{point.name}, threshold {point.threshold:.3g}, chosen on: {point.source}",
        "medfocal": __version__,
    }
    predictions = folder / "test" / "predictions"
    files = {
        case.name: CaseFiles(case.images[0], case.label, predictions / f"{case.name}_mask.nii.gz")
        for case in manifest.split("test")
        if case.label is not None
    }
    for split, found in (("validation", result.validation), ("test", result.test)):
        if found is not None:
            images = functools.partial(_images, files if split == "test" else {}, found.protocol)
            title = f"{folder.parent.name}: {split} split"
            write_report(
                folder / split / "report.html",
                title=title,
                evaluation=found,
                images=images,
                metrics=metrics,
                facts=facts,
            )
    split, shown = ("test", result.test) if result.test is not None else ("validation", result.validation)
    places = {"model": folder / "model", "curves": folder / "curves.png"}
    if shown is None:
        print(f"the dataset has neither validation nor test cases with labels; the model is '{places['model']}'")
        return
    print_table(
        shown, {"report": folder / split / "report.html", **places}, heading=f"{split} split of {manifest.name}"
    )


def find_pictures(images: Path, pairs: Sequence[Pair]) -> dict[str, CaseFiles]:
    """Where the volumes of each case's pictures lie, for the cases of which `images` holds an image.

    Raises:
        InputError: `images` does not exist.
        DatasetError: It holds no image of any of the cases.
    """
    if not images.exists():
        message = f"the images '{images}' for the report's pictures do not exist"
        raise InputError(message)
    found = {volume_name(p): p for p in ([images] if images.is_file() else images.iterdir()) if is_volume(p)}
    files = {p.case: CaseFiles(found[p.case], p.reference, p.prediction) for p in pairs if p.case in found}
    if not files:
        message = (
            f"'{images}' holds no image for the report's pictures: {len(found)} images, and none has the name of one "
            f"of the {len(pairs)} cases, such as '{pairs[0].case}.nii.gz'"
        )
        raise DatasetError(message)
    return files


def report_evaluation(
    evaluation: Evaluation,
    output: Path,
    *,
    pictures: Mapping[str, CaseFiles],
    max_pictures: int,
    viewer_limit_mb: float = LIMIT_MB,
) -> dict[str, Path | str]:
    """Write the report of `medfocal evaluate`, with pictures of the cases in `pictures`, and one of each class.

    Returns:
        What to print: where the report is and, if the volumes of its viewer lie beside it, how to look at them.
    """
    path = write_report(
        output / "report.html",
        title="Lesion evaluation",
        evaluation=evaluation,
        images=functools.partial(_images, pictures, evaluation.protocol),
        facts={"medfocal": __version__},
        max_pictures=max_pictures,
        viewer_limit_mb=viewer_limit_mb,
    )
    for name, found in evaluation.classes.items():
        write_report(
            output / class_folder(name) / "report.html",
            title=f"Lesion evaluation: {name}",
            evaluation=found,
            images=lambda _: None,
            facts={"medfocal": __version__, "Pictures": "in the report of all classes"},
            max_pictures=max_pictures,
        )
    places: dict[str, Path | str] = {"report": path}
    if (output / FOLDER).is_dir():
        places["with its viewer"] = f"{serve_command(output)}, then open http://127.0.0.1:8000/report.html"
    return places


def print_table(evaluation: Evaluation, places: Mapping[str, Path | str], heading: str = "") -> None:
    """Print the headline figures and where the results lie."""
    e = evaluation
    lesions = f"{e.num_detected_lesions} of {e.num_lesions}"
    if e.num_lesions:
        lesions += f", sensitivity {_rate(e.lesion_sensitivity)}"
    dice = f"{e.voxel_dice.mean:.2f}, mean of {e.voxel_dice.num_cases} cases"
    rows = {
        "lesions found": lesions,
        "false positives per case": _rate(e.false_positives_per_case),
        "voxel Dice": dice if e.voxel_dice.num_cases else "undefined: nothing to overlap",
    }
    for point in e.froc.points:
        if point.false_positives_per_case == 1 and e.num_lesions:
            ends = "" if point.reached else " (the curve ends before)"
            value = f"{point.lesion_sensitivity:.2f}{ends}"
            if np.isinf(point.threshold):
                value = "none: even the surest candidates alone give more (a mask has one confidence)"
            rows["sensitivity at 1 FP per case"] = value
    if e.readers is not None:
        rows |= reader_lines(e.readers)
    rows |= {
        "cases, patients": f"{e.num_cases}, {e.num_patients}",
        "counted from confidence": f"{e.protocol.threshold:.3g}",
        **{name: str(place) for name, place in places.items()},
    }
    width = max(map(len, rows))
    print(
        "\n".join([heading, *(f"  {name:<{width}}  {value}" for name, value in rows.items())]).strip("\n"), flush=True
    )


def _rate(rate: Rate) -> str:
    if np.isnan(rate.value):
        return "undefined"
    return f"{rate.value:.2f} ({rate.level:.0%} interval {rate.low:.2f} to {rate.high:.2f})"


def _images(files: Mapping[str, CaseFiles], protocol: Protocol, case: str) -> CaseImages | None:
    if case not in files:
        return None
    place = files[case]
    image, reference = read_volume(place.image), read_labels(place.reference)
    if not image.same_grid(reference):
        message = (
            f"case '{case}': the grids of the image '{place.image}' and the reference '{place.reference}' differ: "
            f"{image.grid_difference(reference)}. Give images on the grid of the references, or none."
        )
        raise GeometryError(message)
    predicted = _predicted(place, reference, protocol, case)
    return CaseImages(
        image=np.nan_to_num(image.array.astype(np.float32), nan=0, posinf=0, neginf=0),
        reference=reference.array != 0,
        predicted=predicted,
        spacing_mm=image.spacing_mm,
        axis_codes=image.axis_codes,
        affine=image.affine,
    )


def _predicted(place: CaseFiles, reference: Volume, protocol: Protocol, case: str) -> NDArray[np.bool_]:
    """The mask of what counts at the threshold, on the grid of the reference."""
    if place.prediction is None:
        return np.zeros(reference.shape, np.bool_)
    prediction = read_volume(place.prediction)
    if not reference.same_grid(prediction):  # the evaluation has refused it, unless it was to be resampled
        prediction = resample_nearest(prediction, reference)
    found, _ = find_predicted(prediction.array, reference.affine, protocol, f"case '{case}': '{place.prediction}'")
    return mask_at(found, protocol.threshold)
