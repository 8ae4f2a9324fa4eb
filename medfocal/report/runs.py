"""What a user sees at the end of a command: a table on the terminal, and the report page with its pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from medfocal import __version__
from medfocal.data.manifest import Manifest
from medfocal.errors import DatasetError, GeometryError, InputError
from medfocal.evaluate import Evaluation, Protocol
from medfocal.evaluate.intervals import Rate
from medfocal.evaluate.measure import WHOLE, Reading, read_masks
from medfocal.evaluate.pairs import Pair, some, starred
from medfocal.evaluate.results import class_folder
from medfocal.report.figures import write_curves
from medfocal.report.page import write_report
from medfocal.report.pictures import CaseImages
from medfocal.report.readers import reader_lines
from medfocal.report.viewer import FOLDER, LIMIT_MB, serve_command
from medfocal.volume import is_volume, read_volume, volume_name

if TYPE_CHECKING:
    from medfocal.train.run import RunResult  # importing it imports torch, which evaluating does without


def report_run(result: RunResult, manifest: Manifest) -> None:
    """Write a training run's curves and reports, and print its table: the test split's, else the validation's."""
    folder = result.folder
    metrics, visits = folder / "metrics.csv", folder / "visits.csv"
    write_curves(metrics, folder / "curves.png")
    point = result.operating_point
    facts = {
        "Dataset": manifest.name,
        "Operating point": f"{point.name}, threshold {point.threshold:.3g}, chosen on: {point.source}",
        "medfocal": __version__,
    }
    predictions = folder / "test" / "predictions"
    pairs = [
        Pair(case.name, case.patient, case.label, predictions / f"{case.name}_mask.nii.gz")
        for case in manifest.split("test")
        if case.label is not None
    ]
    files = {case.name: case.images[0] for case in manifest.split("test")}
    for split, found in (("validation", result.validation), ("test", result.test)):
        if found is not None:
            volumes = CaseVolumes(pairs if split == "test" else [], files, found.protocol)
            title = f"{folder.parent.name}: {split} split"
            write_report(
                folder / split / "report.html",
                title=title,
                evaluation=found,
                images=volumes,
                metrics=metrics,
                visits=visits,
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


def find_pictures(images: Path, pairs: Sequence[Pair]) -> dict[str, Path]:
    """The image of each case of which `images`, a folder, a file or a pattern, holds one.

    It is the file of the case's name, or of the name and `_0000`, or the only one whose name begins with the case's and
    `_`, such as `sub-01_FLAIR.nii.gz`; in a pattern with one star that which the star stands for.

    Raises:
        InputError: `images` does not exist.
        DatasetError: It holds no image of any of the cases.
    """
    is_pattern = "*" in images.name and not images.exists()
    if not (images.parent if is_pattern else images).exists():
        message = f"the images '{images}' for the report's pictures do not exist"
        raise InputError(message)
    places = images.parent.glob(images.name) if is_pattern else [images] if images.is_file() else images.iterdir()
    found = {starred(images, p, volume_name(p)) if is_pattern else volume_name(p): p for p in places if is_volume(p)}
    files = {}
    for pair in pairs:
        longer = [name for name in found if name.startswith(f"{pair.case}_")]
        names = [name for name in (pair.case, f"{pair.case}_0000") if name in found] or longer
        if len(names) == 1 or (names and names[0] == pair.case):
            files[pair.case] = found[names[0]]
    if not files:
        message = (
            f"'{images}' holds no image for the report's pictures: {len(found)} images, and none has the name of one "
            f"of the {len(pairs)} cases, such as '{pairs[0].case}.nii.gz'"
        )
        raise DatasetError(message)
    return files


class CaseVolumes:
    """Reads what the pictures of a case are drawn from; without an image, outlines on an empty one.

    Args:
        pairs: The cases of which there may be pictures.
        images: Image of a case by its name.
        protocol: Its threshold says what is drawn as predicted.
        reading: What the values of the files mean.
        name: The class that is drawn.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        images: Mapping[str, Path],
        protocol: Protocol,
        reading: Reading = Reading(),  # noqa: B008  frozen
        name: str = WHOLE,
    ) -> None:
        self._pairs = {pair.case: pair for pair in pairs}
        self._images = images
        self._protocol = protocol
        self._reading = reading
        self._name = name

    def __call__(self, case: str) -> CaseImages | None:
        """Give the volumes of a case; None where it has none.

        Raises:
            GeometryError: The image lies on another grid than the reference.
            InputError: A file cannot be read.
        """
        pair = self._pairs.get(case)
        if pair is None:
            return None
        reference, predicted = read_masks(pair, self._protocol, self._reading, self._name)
        image = np.zeros(reference.shape, np.float32)
        if case in self._images:
            volume = read_volume(self._images[case])
            if not volume.same_grid(reference):
                message = (
                    f"case '{case}': the grids of the image '{self._images[case]}' and the reference "
                    f"'{pair.reference}' differ: {volume.grid_difference(reference)}. Give images on the grid of the "
                    "references, or none."
                )
                raise GeometryError(message)
            image = np.nan_to_num(volume.array.astype(np.float32), nan=0, posinf=0, neginf=0)
        return CaseImages(
            image=image,
            reference=reference.array,
            predicted=predicted,
            spacing_mm=reference.spacing_mm,
            axis_codes=reference.axis_codes,
            affine=reference.affine,
        )


def report_evaluation(
    evaluation: Evaluation,
    output: Path,
    *,
    pairs: Sequence[Pair],
    images: Mapping[str, Path],
    reading: Reading,
    max_pictures: int,
    viewer_limit_mb: float = LIMIT_MB,
) -> dict[str, Path | str]:
    """Write the report of `medfocal evaluate`, and one of each class.

    Args:
        evaluation: What was found.
        output: Folder of the report.
        pairs: The cases' files, for pictures.
        images: Image of a case by its name; a case without one has outlines only.
        reading: What the values of the files mean.
        max_pictures: Most findings to show in each report.
        viewer_limit_mb: Of the volumes that are embedded for the viewer.

    Returns:
        What to print: where the report is and, if the volumes of its viewer lie beside it, how to look at them.
    """
    path = write_report(
        output / "report.html",
        title="Lesion evaluation",
        evaluation=evaluation,
        images=CaseVolumes(pairs, images, evaluation.protocol, reading),
        facts={name.capitalize(): place for name, place in evaluation.inputs.items()},
        max_pictures=max_pictures,
        viewer_limit_mb=viewer_limit_mb,
    )
    for name, found in evaluation.classes.items():
        write_report(
            output / class_folder(name) / "report.html",
            title=f"Lesion evaluation: {name}",
            evaluation=found,
            images=CaseVolumes(pairs, images, evaluation.protocol, reading, name),
            facts={"medfocal": __version__},
            max_pictures=max_pictures,
            viewer_limit_mb=viewer_limit_mb,
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
    num_dice = e.voxel_dice.num_cases
    dice = f"{e.voxel_dice.mean:.2f}, mean of {num_dice} {'case' if num_dice == 1 else 'cases'}"
    rows = {
        "lesions found": lesions,
        "false positives per case": _rate(e.false_positives_per_case),
        "voxel Dice": dice if num_dice else "undefined: nothing to overlap",
    }
    for point in e.froc.points:
        if point.false_positives_per_case == 1 and e.num_lesions:
            ends = "" if point.reached else " (the curve ends before)"
            value = f"{point.lesion_sensitivity:.2f}{ends}"
            if np.isinf(point.threshold):
                value = "none: even the surest candidates alone give more"
            rows["sensitivity at 1 FP per case"] = value
    if e.num_ignored_lesions or e.num_ignored_candidates:
        rows["ignored"] = f"{e.num_ignored_lesions} lesions, {e.num_ignored_candidates} candidates"
    rows |= {name: "undefined" if np.isnan(value) else f"{value:.4g}" for name, value in e.published.items()}
    for name, found in e.classes.items():
        rows[f"class {name}"] = f"{found.num_detected_lesions} of {found.num_lesions} lesions found"
    if e.readers is not None:
        rows |= reader_lines(e.readers)
    if e.missing:
        rows["without a prediction"] = f"{some(e.missing)}: counted as nothing found"
    rows |= {
        "protocol": e.protocol.name,
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
