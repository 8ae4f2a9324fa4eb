"""One case: its files read once, held against each other and measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from medfocal.components import Components
from medfocal.data.check.files import FileFacts, check_same_grid, facts_of, read_file
from medfocal.data.check.findings import Finding, Kind, Severity
from medfocal.data.check.images import check_image
from medfocal.data.check.labels import check_label
from medfocal.data.check.limits import CheckLimits
from medfocal.data.check.placement import check_placement
from medfocal.data.manifest import Case, LabelScheme
from medfocal.volume import Volume

if TYPE_CHECKING:
    from medfocal.annotations.agreement import PairAgreement


@dataclass(frozen=True)
class CaseReport:
    """What was found in one case.

    Attributes:
        case: Its name.
        patient: Whose it is.
        split: Where it belongs.
        files: What each file that could be read holds: images in the order of the channels, label, readers.
        num_lesions: 26-connected parts of the reference; None without one that can be understood.
        lesion_share: Share of the voxels that are lesion, None likewise.
        lesion_voxels: Voxels of each lesion.
        lesion_volumes_mm3: Volume of each lesion.
        largest_lesion: Voxel index of the centre of the largest lesion, of the reference or else of the first reader
            who marked one; None without any.
        largest_diameter_mm: Diameter of a sphere of its volume.
        num_reader_lesions: Lesions of each reader of its annotations.
        num_majority_lesions: Lesions of the majority of the readers; None where the case has a label, or readers who
            cannot be understood.
        agreement: Of each pair of these readers.
        findings: What is wrong, or worth knowing.
    """

    case: str
    patient: str
    split: str
    files: tuple[FileFacts, ...] = ()
    num_lesions: int | None = None
    lesion_share: float | None = None
    lesion_voxels: tuple[int, ...] = ()
    lesion_volumes_mm3: tuple[float, ...] = ()
    largest_lesion: tuple[float, ...] | None = None
    largest_diameter_mm: float | None = None
    num_reader_lesions: tuple[int, ...] = ()
    num_majority_lesions: int | None = None
    agreement: tuple[PairAgreement, ...] = ()
    findings: tuple[Finding, ...] = ()

    @property
    def has_error(self) -> bool:
        """Whether something is wrong that training would refuse or learn from."""
        return any(finding.severity is Severity.ERROR for finding in self.findings)

    @property
    def images(self) -> tuple[FileFacts, ...]:
        """Of the images alone."""
        return tuple(file for file in self.files if file.role.startswith("image"))


@dataclass
class _Found:
    """What is known of a case while it is looked at."""

    case: Case
    images: list[Volume]
    files: list[FileFacts]
    findings: list[Finding]
    grid: Volume | None = None
    grid_name: str = ""


def check_case(case: Case, *, channels: tuple[str, ...], scheme: LabelScheme, limits: CheckLimits) -> CaseReport:
    """Read all files of a case, once each, and say what is wrong with them.

    Args:
        case: What to read.
        channels: Names of its images.
        scheme: What label values mean.
        limits: What is suspicious.
    """
    found = _Found(case, [], [], [])
    for number in range(len(case.images)):
        channel = channels[number] if number < len(channels) else str(number)
        _check_image_file(found, number, channel)
    lesions = _check_label_file(found, scheme, limits)
    readers: dict[str, Any] = {}
    if case.annotations:
        from medfocal.data.check.readers import check_readers  # cases without readers do without what it imports

        marked = check_readers(case, found.grid, scheme, limits)
        found.files += marked.files
        found.findings += marked.findings
        readers = {
            "num_reader_lesions": marked.num_lesions,
            "num_majority_lesions": marked.num_majority_lesions,
            "agreement": marked.agreement,
        }
        if lesions is None:
            readers |= _largest(marked.largest)
    return CaseReport(
        case=case.name,
        patient=case.patient,
        split=case.split,
        files=tuple(found.files),
        findings=tuple(found.findings),
        **({} if lesions is None else _lesion_facts(lesions)),
        **readers,
    )


def _check_image_file(found: _Found, number: int, channel: str) -> None:
    case, path = found.case, found.case.images[number]
    role = f"image {channel}"
    volume, findings = read_file(path, role, case.name)
    found.findings += findings
    if volume is None:
        return
    percentiles, findings = check_image(volume, path, channel, role, case.name)
    found.findings += findings
    found.files.append(facts_of(volume, path, role, percentiles))
    if found.grid is None:
        found.grid, found.grid_name = volume, role
        found.images.append(volume)
        return
    is_same, findings = check_same_grid(
        volume, found.grid, (role, found.grid_name), path, case.name, may_differ=case.resample_channels
    )
    found.findings += findings
    if is_same:
        found.images.append(volume)


def _check_label_file(found: _Found, scheme: LabelScheme, limits: CheckLimits) -> Components | None:
    case = found.case
    if case.label is None:
        return None
    volume, findings = read_file(case.label, "label", case.name)
    found.findings += findings
    if volume is None:
        return None
    found.files.append(facts_of(volume, case.label, "label"))
    is_same = False
    if found.grid is None:
        found.grid = volume
    else:
        is_same, findings = check_same_grid(volume, found.grid, ("label", "image"), case.label, case.name)
        found.findings += findings
    marked = check_label(volume, scheme, limits, case.label, "label", case.name)
    found.findings += marked.findings
    is_whole = any(finding.kind is Kind.LABEL_WITHOUT_BACKGROUND for finding in marked.findings)
    if marked.lesions is not None and is_same and not is_whole:
        found.findings += check_placement(found.images, marked.lesions, case.label, case.name)
    return marked.lesions


def _lesion_facts(lesions: Components) -> dict[str, Any]:
    size = 1
    for side in lesions.shape:
        size *= side
    return {
        "num_lesions": len(lesions),
        "lesion_share": float(lesions.num_voxels.sum()) / size,
        "lesion_voxels": tuple(lesions.num_voxels.tolist()),
        "lesion_volumes_mm3": tuple((lesions.volume_ml * 1000).tolist()),
        **_largest(lesions),
    }


def _largest(lesions: Components | None) -> dict[str, Any]:
    if lesions is None or not len(lesions):
        return {}
    row = int(lesions.num_voxels.argmax())
    return {
        "largest_lesion": tuple(lesions.centroid_voxel[row].tolist()),
        "largest_diameter_mm": float(lesions.equivalent_diameter_mm[row]),
    }
