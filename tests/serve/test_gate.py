"""What the gate lets through is the volume that was written, to the bit; every fault has its code."""

from __future__ import annotations

import contextlib
import copy
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("pydicom", reason="pip install 'medfocal[dicom]'")

from made_dicom import (
    CANARIES,
    ENHANCED_MR,
    MR,
    PT,
    SHAPE,
    SPACING_MM,
    affine_of,
    enhanced,
    series,
    voxels,
    write,
)
from pydicom.uid import DeflatedExplicitVRLittleEndian, ImplicitVRLittleEndian, RLELossless, generate_uid

from medfocal.errors import ConfigError, InputError
from medfocal.serve.gate import Gate, Reason, Refusal, find_series
from medfocal.serve.series import read_series

REAL = Path(__file__).resolve().parents[3] / "shared" / "data" / "dicom"


def judged(folder, **settings):
    return find_series(folder, Gate(**settings))


def only(folder, **settings):
    found, refused = judged(folder, **settings)
    assert refused == []
    assert len(found) == 1
    return found[0]


# What is read


@pytest.mark.parametrize("degrees", [0.0, 18.5, -40.0])
@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, None])
def test_a_series_is_the_volume_that_was_written(tmp_path, degrees, syntax):
    angle = np.deg2rad(degrees)
    turn = [float(np.cos(angle)), 0.0, float(np.sin(angle))], [0.0, 1.0, 0.0]
    slices = series(directions=turn)
    write(tmp_path, slices, **({} if syntax is None else {"syntax": syntax}))
    (tmp_path / "task.json").write_text("{}")  # as routers lay beside images
    one = only(tmp_path)
    assert (one.modality, one.shape) == ("CT", SHAPE)
    volume = read_series(one)
    np.testing.assert_array_equal(volume.array, voxels() * np.float32(2) - 1000)
    np.testing.assert_allclose(volume.affine, affine_of(slices), atol=1e-9)
    np.testing.assert_allclose(volume.spacing_mm, SPACING_MM, atol=1e-9)
    assert one.instance_uids == tuple(str(s.SOPInstanceUID) for s in slices)


def test_slices_against_their_normal_are_put_along_it(tmp_path):
    slices = series()
    for one, place in zip(slices, [s.ImagePositionPatient for s in reversed(slices)], strict=True):
        one.ImagePositionPatient = place
    write(tmp_path, slices)
    volume = read_series(only(tmp_path))
    np.testing.assert_array_equal(volume.array, voxels()[:, :, ::-1] * np.float32(2) - 1000)
    np.testing.assert_allclose(volume.affine, affine_of(slices[::-1]), atol=1e-9)


def test_every_slice_has_its_own_rescale(tmp_path):
    slices = series(sop_class=PT, modality="PT")
    for number, one in enumerate(slices):
        one.RescaleSlope, one.RescaleIntercept = 1 + number / 4, number
    write(tmp_path, slices)
    scale = np.arange(SHAPE[2])
    np.testing.assert_array_equal(read_series(only(tmp_path)).array, voxels() * (1 + scale / 4) + scale)


def test_many_frames_in_one_file_are_the_same_volume(tmp_path):
    slices = series()
    for number, one in enumerate(slices):
        one.RescaleSlope = 1 + number / 4
    write(tmp_path / "many", [enhanced(slices)])
    write(tmp_path / "single", slices)
    many, single = only(tmp_path / "many"), only(tmp_path / "single")
    np.testing.assert_array_equal(read_series(many).array, read_series(single).array)
    np.testing.assert_allclose(many.affine, single.affine, atol=1e-9)
    assert many.modality == "MR"
    assert len(many.instance_uids) == 1


def test_run_lengths_are_unpacked(tmp_path):
    slices = series()
    write(tmp_path, slices)
    from pydicom import dcmread

    for path in tmp_path.iterdir():
        file = dcmread(path)
        file.compress(RLELossless, generate_instance_uid=False)
        file.save_as(path)
    np.testing.assert_array_equal(read_series(only(tmp_path)).array, voxels() * np.float32(2) - 1000)


def test_run_lengths_that_unpack_to_too_little_are_refused(tmp_path):
    from pydicom import dcmread
    from pydicom.encaps import encapsulate

    for path in write(tmp_path, series()):
        file = dcmread(path)
        file.compress(RLELossless, generate_instance_uid=False)
        file.PixelData = encapsulate([b"\x02" + bytes(63)])
        file.save_as(path)
    with pytest.raises(Refusal, match=r"PIXELS: series .* pixels cannot be read"):
        read_series(only(tmp_path))


def test_padding_takes_the_lowest_intensity(tmp_path):
    slices = series()
    for one in slices:
        one.PixelPaddingValue, one.PixelPaddingRangeLimit = 2000, 2100
    stored = voxels()
    write(tmp_path, slices)
    inside = (stored < 2000) | (stored > 2100)
    expected = np.where(inside, stored, stored[inside].min()) * 2.0 - 1000
    np.testing.assert_array_equal(read_series(only(tmp_path)).array, expected)


def test_a_folder_of_several_series_is_told_apart_by_tags(tmp_path):
    write(tmp_path, series(key="a"), prefix="a")
    write(tmp_path / "deeper", series(key="b", sop_class=MR, modality="MR"), prefix="b")
    found, refused = judged(tmp_path)
    assert sorted(one.modality for one in found) == ["CT", "MR"]
    assert refused == []
    found, refused = judged(tmp_path, modalities=("MR",))
    assert [one.modality for one in found] == ["MR"]
    assert [(one.reason, one.is_fault) for one in refused] == [(Reason.MODALITY, False)]


def test_the_same_file_under_two_names_is_one(tmp_path):
    paths = write(tmp_path, series())
    (tmp_path / "again").write_bytes(paths[3].read_bytes())
    assert only(tmp_path).shape == SHAPE


# What is refused


def place(slices, number, value):
    slices[number].ImagePositionPatient = [float(v) for v in value]


def at(slices, number):
    return np.array(slices[number].ImagePositionPatient, float)


def missing(slices):
    del slices[4]


def two_missing_in_a_row(slices):
    del slices[3:5]


def doubled(slices):
    place(slices, 4, at(slices, 3))


def uneven(slices):
    place(slices, 4, at(slices, 4) + 0.4 * (at(slices, 1) - at(slices, 0)))


def tilted(slices):
    for number in range(len(slices)):
        place(slices, number, at(slices, number) + np.array([0.5 * number, 0, 0]))


def turned_one(slices):
    slices[2].ImageOrientationPatient = [0.999, 0.0447, 0, -0.0447, 0.999, 0]


def other_size(slices):
    slices[5].Rows -= 1
    slices[5].PixelData = slices[5].PixelData[: 2 * slices[5].Rows * slices[5].Columns]


def other_spacing(slices):
    slices[5].PixelSpacing = [0.8, 0.75]


def other_frame(slices):
    slices[5].FrameOfReferenceUID = generate_uid()


def other_study(slices):
    slices[5].StudyInstanceUID = generate_uid()


def same_uid(slices):
    slices[5].SOPInstanceUID = slices[4].SOPInstanceUID


def localizer(slices):
    slices[0].ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]


def other_modality(slices):
    slices[5].Modality = "MR"


def a_report(slices):
    for one in slices:
        one.SOPClassUID = "1.2.840.10008.5.1.4.1.1.88.34"


def a_class_of_a_vendor(slices):
    for one in slices:
        one.SOPClassUID = "1.2.3.4.5"


def coloured(slices):
    slices[5].SamplesPerPixel, slices[5].PhotometricInterpretation = 3, "RGB"


def no_place(slices):
    del slices[5].ImagePositionPatient


def no_frame_of_reference(slices):
    del slices[5].FrameOfReferenceUID


def no_number(slices):
    slices[5].RescaleSlope = "nan"


def scales_to_nothing(slices):
    slices[5].RescaleSlope = 0


def no_directions(slices):
    for one in slices:
        one.ImageOrientationPatient = [1, 0, 0, 0.5, 0.5, 0]


def strange_bits(slices):
    for one in slices:
        one.HighBit = 11


def huge_pixels(slices):
    for one in slices:
        one.PixelSpacing = [5000, 5000]


FAULTS = [
    (missing, Reason.MISSING_POSITION, "1 slices are missing between its 8, 3 mm apart"),
    (two_missing_in_a_row, Reason.MISSING_POSITION, "2 slices are missing"),
    (doubled, Reason.DUPLICATE_POSITION, "1 of its 9 slices lie where another lies"),
    (uneven, Reason.UNEVEN_SPACING, "1.8 to 4.2 mm apart"),
    (tilted, Reason.GANTRY_TILT, "shift sideways by up to 4 mm"),
    (turned_one, Reason.SEVERAL_ORIENTATIONS, "turned against each other"),
    (other_size, Reason.SEVERAL_SIZES, "2 sizes"),
    (other_spacing, Reason.SEVERAL_SPACINGS, "2 pixel spacings"),
    (other_frame, Reason.SEVERAL_FRAMES_OF_REFERENCE, "2 frames of reference"),
    (other_study, Reason.SEVERAL_STUDIES, "2 studies"),
    (same_uid, Reason.DUPLICATE_UID, "two files have one SOP instance UID and differ"),
    (localizer, Reason.LOCALIZER, "localizer"),
    (other_modality, Reason.MODALITY, "contradict each other"),
    (a_report, Reason.SOP_CLASS, "1.2.840.10008.5.1.4.1.1.88.34"),
    (a_class_of_a_vendor, Reason.SOP_CLASS, "of a vendor"),
    (coloured, Reason.COLOUR, "not grey"),
    (no_place, Reason.TAG_MISSING, "files without ImagePositionPatient"),
    (no_frame_of_reference, Reason.TAG_MISSING, "files without FrameOfReferenceUID"),
    (no_number, Reason.TAG_NONSENSE, "not a number"),
    (scales_to_nothing, Reason.TAG_NONSENSE, "scales all to 0"),
    (no_directions, Reason.TAG_NONSENSE, "two unit vectors at right angles"),
    (strange_bits, Reason.TAG_NONSENSE, "16 of 16 bits with the highest 11"),
    (huge_pixels, Reason.SPACING_RANGE, "5000 x 5000 mm make no sense"),
]


@pytest.mark.parametrize(("spoil", "reason", "told"), FAULTS, ids=[spoil.__name__ for spoil, *_ in FAULTS])
def test_a_fault_has_its_code_and_a_sentence_without_a_patient(tmp_path, capsys, caplog, spoil, reason, told):
    slices = series()
    uid = str(slices[0].SeriesInstanceUID)
    spoil(slices)
    write(tmp_path, slices)
    found, (refusal,) = judged(tmp_path)
    assert found == []
    assert refusal.reason is reason
    assert told in refusal.told
    assert str(refusal).startswith(f"{reason.value}: series {refusal.series}: ")
    said = str(refusal) + capsys.readouterr().err + caplog.text
    assert all(word not in said for word in (*CANARIES.values(), uid))


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"min_slices": 10}, Reason.TOO_FEW_SLICES),
        ({"max_slices": 8}, Reason.TOO_MANY_SLICES),
        ({"max_voxels": 2879}, Reason.TOO_MANY_VOXELS),
    ],
)
def test_a_series_beyond_a_bound_is_refused(tmp_path, settings, reason):
    write(tmp_path, series())
    _, (refusal,) = judged(tmp_path, **settings)
    assert refusal.reason is reason
    assert judged(tmp_path, min_slices=9, max_slices=9, max_voxels=2880)[1] == []


@pytest.mark.parametrize(
    ("settings", "code"), [({"max_files": 8}, "TOO_MANY_FILES"), ({"max_gigabytes": 1e-6}, "TOO_MANY_BYTES")]
)
def test_a_folder_beyond_a_bound_is_not_looked_into(tmp_path, settings, code):
    write(tmp_path, series())
    with pytest.raises(InputError, match=code):
        judged(tmp_path, **settings)


def test_many_frames_that_are_described_less_often_are_refused(tmp_path):
    one = enhanced(series())
    one.NumberOfFrames = 10
    write(tmp_path, [one])
    assert [refusal.reason for refusal in judged(tmp_path)[1]] == [Reason.TAG_NONSENSE]
    del one.PerFrameFunctionalGroupsSequence
    write(tmp_path, [one])
    assert [refusal.reason for refusal in judged(tmp_path)[1]] == [Reason.TAG_MISSING]


def test_two_files_of_many_frames_are_not_one_volume(tmp_path):
    one = enhanced(series())
    other = copy.deepcopy(one)
    other.SOPInstanceUID = generate_uid()
    write(tmp_path, [one, other])
    assert [refusal.reason for refusal in judged(tmp_path)[1]] == [Reason.SEVERAL_SIZES]
    assert one.SOPClassUID == ENHANCED_MR


def test_a_deflated_file_is_refused_by_its_meta_information_alone(tmp_path):
    """Its header would unfold to a gigabyte."""
    import resource

    slices = series()
    slices[0].add_new(0x00204000, "LT", "x" * 200_000_000)
    write(tmp_path, slices[:1], syntax=DeflatedExplicitVRLittleEndian)
    del slices
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    _, (refusal,) = judged(tmp_path)
    assert refusal.reason is Reason.TRANSFER_SYNTAX
    assert "1.2.840.10008.1.2.1.99" in refusal.told
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000


def test_a_file_that_ends_in_its_header_or_its_pixels_is_refused(tmp_path):
    paths = write(tmp_path, series())
    whole = paths[0].read_bytes()
    for length in (*range(150, len(whole) - 8, 37), len(whole) - 1):
        paths[0].write_bytes(whole[:length])
        found, _ = judged(tmp_path)
        assert all(one.shape[2] == SHAPE[2] for one in found)
    paths[0].write_bytes(whole[:200])
    found, refused = judged(tmp_path)
    assert found == []  # the others would make a volume that lacks a slice
    assert Reason.INCOMPLETE in {one.reason for one in refused}


def test_a_link_out_of_the_folder_is_not_followed(tmp_path):
    paths = write(tmp_path / "elsewhere", series())
    (tmp_path / "in").mkdir()
    for number, path in enumerate(paths):
        (tmp_path / "in" / f"{number}").symlink_to(path)
    found, refused = judged(tmp_path / "in")
    assert found == []
    assert {one.reason for one in refused} == {Reason.OUTSIDE}


def test_a_folder_without_dicom_says_so(tmp_path):
    (tmp_path / "a.txt").write_text("no")
    with pytest.raises(InputError, match="holds no DICOM file"):
        judged(tmp_path)
    with pytest.raises(InputError, match="cannot be read"):
        judged(tmp_path / "nowhere")


def test_names_are_salted(tmp_path):
    write(tmp_path, series())
    first, second = only(tmp_path), only(tmp_path)
    assert first.name != second.name
    assert only(tmp_path, salt=b"1").name == only(tmp_path, salt=b"1").name
    assert b"salt" not in repr(Gate(salt=b"salt")).encode()


@pytest.mark.parametrize("settings", [{"modalities": ("US",)}, {"min_slices": 1}, {"min_slices": 9, "max_slices": 8}])
def test_a_gate_out_of_range_is_refused(settings):
    with pytest.raises(ConfigError):
        Gate(**settings)


@pytest.mark.parametrize("seed", range(40))
def test_bytes_that_are_thrown_about_raise_nothing_but_refusals(tmp_path, seed):
    paths = write(tmp_path, series())
    random = np.random.default_rng(seed)
    whole = bytearray(paths[2].read_bytes())
    for place in random.integers(132, 1200, 12):
        whole[place] = random.integers(256)
    paths[2].write_bytes(bytes(whole))
    found, refused = judged(tmp_path)
    assert len(found) + len(refused) >= 1
    for one in found:
        with contextlib.suppress(Refusal):
            assert np.isfinite(read_series(one).array).all()


def test_the_real_series_are_read_as_simpleitk_reads_them():
    """Siemens MR, oblique by 18.5 degrees."""
    SimpleITK = pytest.importorskip("SimpleITK")
    if not REAL.is_dir():
        pytest.skip("no folder shared/data beside the repository")
    for name in ("prostate_t2", "prostate_adc"):
        volume = read_series(only(REAL / name))
        reader = SimpleITK.ImageSeriesReader()
        reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(REAL / name)))
        theirs = reader.Execute()
        array = SimpleITK.GetArrayFromImage(theirs).transpose(2, 1, 0)
        ends = [(0, 0, 0), tuple(n - 1 for n in volume.shape)]
        for end in ends:
            place = volume.affine @ [*end, 1]
            index = theirs.TransformPhysicalPointToIndex([-place[0], -place[1], place[2]])
            assert volume.array[end] == array[index]
        np.testing.assert_allclose(np.sort(volume.array.ravel())[::997], np.sort(array.ravel())[::997])
