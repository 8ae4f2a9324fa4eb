"""Series of a made patient, whose every voxel and place is known, and ways to spoil them."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

CT, MR, PT = (f"1.2.840.10008.5.1.4.1.1.{kind}" for kind in ("2", "4", "128"))
ENHANCED_MR = "1.2.840.10008.5.1.4.1.1.4.1"
#: Words that stand for a patient: none of them may come out anywhere.
CANARIES = {
    "PatientName": "CANARYNAME^ADA",
    "PatientID": "CANARYID77",
    "AccessionNumber": "CANARYACC55",
    "StudyDescription": "CANARYSTUDY",
    "SeriesDescription": "CANARYSERIES",
    "ReferringPhysicianName": "CANARYREF^BO",
    "InstitutionName": "CANARYINST",
}
SHAPE, SPACING_MM = (20, 16, 9), (0.7, 0.8, 3.0)


def turned(degrees: float = 18.5) -> tuple[list[float], list[float]]:
    """Row and column directions of slices that lie obliquely."""
    angle = np.deg2rad(degrees)
    return [1.0, 0.0, 0.0], [0.0, float(np.cos(angle)), float(np.sin(angle))]


def voxels(shape=SHAPE, seed=0):
    """Stored numbers `(I, J, K)`, each its own."""
    return np.random.default_rng(seed).permutation(int(np.prod(shape))).reshape(shape).astype(np.int16) - 100


def series(
    array=None,
    *,
    sop_class=CT,
    modality="CT",
    spacing_mm=SPACING_MM,
    directions=None,
    origin=(-30.0, 40.0, -12.5),
    slope=2.0,
    intercept=-1000.0,
    key="a",
):
    """Slices of one series, in the order of K; each a dataset that may be spoilt before it is written."""
    array = voxels() if array is None else array
    row, column = turned() if directions is None else directions
    normal = np.cross(row, column)
    uids = {name: generate_uid(entropy_srcs=[key, name]) for name in ("study", "series", "frame")}
    made = []
    for number in range(array.shape[2]):
        one = Dataset()
        one.SOPClassUID = sop_class
        one.SOPInstanceUID = generate_uid(entropy_srcs=[key, str(number)])
        one.StudyInstanceUID, one.SeriesInstanceUID = uids["study"], uids["series"]
        one.FrameOfReferenceUID = uids["frame"]
        for keyword, value in CANARIES.items():
            setattr(one, keyword, value)
        one.PatientBirthDate, one.PatientSex, one.StudyDate, one.StudyTime = "19500101", "O", "20260101", "101010"
        one.StudyID, one.SeriesNumber, one.InstanceNumber = "1", 3, number + 1
        one.Modality, one.ImageType = modality, ["ORIGINAL", "PRIMARY", "AXIAL"]
        one.PositionReferenceIndicator = ""
        one.ImagePositionPatient = [float(v) for v in np.asarray(origin) + number * spacing_mm[2] * normal]
        one.ImageOrientationPatient = [*row, *column]
        one.PixelSpacing = [spacing_mm[1], spacing_mm[0]]  # between rows, then between columns
        one.SliceThickness = spacing_mm[2]
        one.RescaleSlope, one.RescaleIntercept = slope, intercept
        one.SamplesPerPixel, one.PhotometricInterpretation = 1, "MONOCHROME2"
        one.Columns, one.Rows = array.shape[:2]
        one.BitsAllocated, one.BitsStored, one.HighBit, one.PixelRepresentation = 16, 16, 15, 1
        one.PixelData = np.ascontiguousarray(array[:, :, number].T).tobytes()
        made.append(one)
    return made


def affine_of(slices):
    """Voxel index to RAS, by hand: columns, rows and slices of the first and last slice."""
    first, last = slices[0], slices[-1]
    row, column = (np.array(first.ImageOrientationPatient[n : n + 3], float) for n in (0, 3))
    place = np.array(first.ImagePositionPatient, float)
    step = (np.array(last.ImagePositionPatient, float) - place) / (len(slices) - 1)
    affine = np.eye(4)
    affine[:3] = np.stack([row * first.PixelSpacing[1], column * first.PixelSpacing[0], step, place], axis=1)
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine


def enhanced(slices):
    """The same as one file of many frames, with a rescale of its own each."""
    one = copy.deepcopy(slices[0])
    for keyword in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "RescaleSlope"):
        delattr(one, keyword)
    del one.RescaleIntercept
    one.SOPClassUID, one.Modality, one.NumberOfFrames = ENHANCED_MR, "MR", len(slices)
    shared, measures, turn = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = slices[0].PixelSpacing, slices[0].SliceThickness
    turn.ImageOrientationPatient = slices[0].ImageOrientationPatient
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = Sequence([measures]), Sequence([turn])
    one.SharedFunctionalGroupsSequence = Sequence([shared])
    frames = []
    for each in slices:
        own, place, scale = Dataset(), Dataset(), Dataset()
        place.ImagePositionPatient = each.ImagePositionPatient
        scale.RescaleSlope, scale.RescaleIntercept, scale.RescaleType = each.RescaleSlope, each.RescaleIntercept, "US"
        own.PlanePositionSequence, own.PixelValueTransformationSequence = Sequence([place]), Sequence([scale])
        frames.append(own)
    one.PerFrameFunctionalGroupsSequence = Sequence(frames)
    one.PixelData = b"".join(each.PixelData for each in slices)
    return one


def write(folder: Path, slices, *, syntax=ExplicitVRLittleEndian, prefix="s", order=None):
    """Write slices under names that say nothing of their order."""
    folder.mkdir(parents=True, exist_ok=True)
    names = np.random.default_rng(1).permutation(len(slices)) if order is None else order
    paths = []
    for one, name in zip(slices, names, strict=True):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID = one.SOPClassUID
        meta.MediaStorageSOPInstanceUID = one.SOPInstanceUID
        meta.TransferSyntaxUID = syntax
        path = folder / f"{prefix}{name:03d}"
        file = FileDataset(str(path), one, preamble=b"\0" * 128, file_meta=meta)
        file.save_as(path, enforce_file_format=True)
        paths.append(path)
    return paths
