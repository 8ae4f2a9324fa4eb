"""Every fault of a NIfTI file gives an error that names it, and nothing but a Medfocal error ever comes out."""

from __future__ import annotations

import gzip
import zlib

import nibabel
import numpy as np
import pytest

from medfocal.errors import GeometryError, InputError, MedfocalError
from medfocal.volume import Volume, read_volume, write_volume

SHAPE = (12, 10, 8)
AFFINE = np.diag([0.5, 1.0, 3.0, 1.0])
VALUES = np.random.default_rng(6).integers(0, 900, SHAPE).astype(np.int16)
ENDINGS = [".nii", ".nii.gz"]


def content(kind=nibabel.Nifti1Image, **fields):
    """Bytes of a valid file, with header fields overwritten; `dim=(1, 5)` sets dim[1]."""
    raw = kind(VALUES, AFFINE).to_bytes()
    header = np.frombuffer(raw, kind.header_class.template_dtype, 1).copy()
    for field, value in fields.items():
        if isinstance(value, tuple):
            header[field][0][value[0]] = value[1]
        else:
            header[field] = value
    return header.tobytes() + raw[header.nbytes :]


def written(folder, data, ending):
    path = folder / f"a{ending}"
    path.write_bytes(gzip.compress(data) if ending.endswith("gz") else data)
    return path


def test_the_file_is_valid_before_it_is_broken(tmp_path):
    for ending in ENDINGS:
        np.testing.assert_array_equal(read_volume(written(tmp_path, content(), ending)).array, VALUES)


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"pixdim": (2, 0)}, GeometryError, r"voxel spacing of \(0\.5, 0, 3\) mm"),
        ({"pixdim": (2, np.nan)}, GeometryError, r"voxel spacing of \(0\.5, nan, 3\) mm"),
        ({"pixdim": (2, np.inf)}, GeometryError, "voxel spacing"),
        ({"pixdim": (3, 1e6)}, GeometryError, "voxel spacing"),
        ({"pixdim": (2, -1), "sform_code": 0, "qform_code": 1}, GeometryError, r"spacing of \(0\.5, -1, 3\)"),
        ({"srow_x": (0, np.nan)}, GeometryError, r"affine .* makes no sense"),
        ({"srow_x": (0, 0.0)}, GeometryError, r"affine .* makes no sense"),
        ({"srow_y": (0, 0.5), "srow_x": (1, 1.0)}, GeometryError, "axes lie in one plane"),
        ({"sform_code": 0, "qform_code": 1, "quatern_b": np.nan}, GeometryError, r"affine .* makes no sense"),
        ({"sform_code": 77}, GeometryError, "'sform_code': 77"),
        ({"sform_code": 0, "qform_code": -1}, GeometryError, "'qform_code': -1"),
        ({"xyzt_units": 1}, GeometryError, "measures in metres"),
        ({"xyzt_units": 3}, GeometryError, "measures in micrometres"),
        ({"xyzt_units": 7}, GeometryError, r"unknown units \(code 7\)"),
        ({"datatype": 32}, InputError, "holds complex64 voxels"),
        ({"datatype": 128}, InputError, "one real number a voxel is expected"),
        ({"datatype": 77}, InputError, "states data type 77"),
        ({"dim": (3, 0)}, InputError, r"an axis without voxels: shape \(12, 10, 0\)"),
        ({"dim": (1, -12)}, InputError, r"an axis without voxels: shape \(-12, 10, 8\)"),
        ({"dim": (0, 2)}, InputError, "has 2 axes"),
        ({"dim": (3, 80)}, InputError, "is cut off: 2272 bytes where its header states 19552"),
        ({"vox_offset": np.nan}, InputError, "damaged"),
        ({"vox_offset": np.inf}, InputError, "damaged"),
        ({"vox_offset": 0}, InputError, "voxels start at byte 0, in its header"),
        ({"scl_slope": 2, "scl_inter": np.nan}, InputError, "damaged"),
        ({"magic": b"xyz"}, InputError, "is not NIfTI"),
    ],
)
def test_a_faulty_header_is_named(tmp_path, fields, error, message, ending):
    with pytest.raises(error, match=message):
        read_volume(written(tmp_path, content(**fields), ending))


@pytest.mark.parametrize("ending", ENDINGS)
def test_four_dimensions_are_refused(tmp_path, ending):
    four = nibabel.Nifti1Image(np.zeros((12, 10, 8, 2), np.int16), AFFINE).to_bytes()
    with pytest.raises(InputError, match=r"has 4 axes, shape \(12, 10, 8, 2\).*file of its own"):
        read_volume(written(tmp_path, four, ending))


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
def test_a_header_that_promises_terabytes_is_refused_without_reserving_them(tmp_path, ending, kind):
    data = bytearray(content(kind))
    header = np.frombuffer(data, kind.header_class.template_dtype, 1).copy()
    header["dim"][0][1:4] = 32000 if kind is nibabel.Nifti1Image else 2**40
    data[: header.nbytes] = header.tobytes()
    with pytest.raises(InputError, match="cut off" if ending == ".nii" else "does not fit into memory"):
        read_volume(written(tmp_path, bytes(data), ending))


def test_a_gzip_header_that_promises_more_than_follows_is_cut_off(tmp_path):
    data = bytearray(content(dim=(2, 32000)))
    data[46:48] = (1000).to_bytes(2, "little")  # dim[3]
    with pytest.raises(InputError, match="is cut off: 2272 bytes where its header states 768000352"):
        read_volume(written(tmp_path, bytes(data), ".nii.gz"))


def test_a_gzip_bomb_is_given_up_soon_after_what_its_header_states(tmp_path):
    packer = zlib.compressobj(9, wbits=31)
    packed = packer.compress(content())
    for _ in range(40):
        packed += packer.compress(bytes(1 << 20))
    (tmp_path / "a.nii.gz").write_bytes(packed + packer.flush())
    with pytest.raises(InputError, match="unpacks to far more than the 2272 bytes its header states"):
        read_volume(tmp_path / "a.nii.gz")


def test_a_little_padding_behind_the_voxels_is_no_fault(tmp_path):
    for ending in ENDINGS:
        np.testing.assert_array_equal(read_volume(written(tmp_path, content() + bytes(512), ending)).array, VALUES)


def test_gzip_members_one_after_another_and_zeros_behind_them_are_read(tmp_path):
    """As bgzip writes them, and tapes pad them."""
    write_volume(tmp_path / "a.nii", Volume(np.arange(24, dtype=np.uint8).reshape(4, 3, 2), np.eye(4)))
    whole = (tmp_path / "a.nii").read_bytes()
    packed = b"".join(gzip.compress(whole[start : start + 100]) for start in range(0, len(whole), 100))
    first = gzip.compress(whole[:360]) + gzip.compress(whole[360:])
    for number, content in enumerate((first, first + bytes(512))):
        path = tmp_path / f"{number}.nii.gz"
        path.write_bytes(content)
        assert np.array_equal(read_volume(path).array, np.arange(24).reshape(4, 3, 2))
    (tmp_path / "b.nii.gz").write_bytes(first + b"rubbish")
    with pytest.raises(InputError, match="damaged"):
        read_volume(tmp_path / "b.nii.gz")
    (tmp_path / "c.nii.gz").write_bytes(packed)
    assert read_volume(tmp_path / "c.nii.gz").shape == (4, 3, 2)


def test_array_in_the_files_own_order_is_the_same_array(tmp_path):
    array = np.arange(24, dtype=np.int16).reshape(4, 3, 2)
    for name in ("a.nii", "a.nii.gz"):
        write_volume(tmp_path / name, Volume(array, np.eye(4)))
        assert np.array_equal(read_volume(tmp_path / name, order="K").array, array)
        assert read_volume(tmp_path / name).array.flags.writeable
        assert read_volume(tmp_path / name).array.flags.c_contiguous


def test_a_line_of_voxels_can_be_written_to(tmp_path):
    """It lies in C and in Fortran order at once, so that no copy is made on the way from one to the other."""
    write_volume(tmp_path / "a.nii.gz", Volume(np.zeros((5, 1, 1), np.uint8), np.eye(4)))
    read_volume(tmp_path / "a.nii.gz").array[2] = 1


def test_a_truncated_gzip_stream_is_damaged(tmp_path):
    path = written(tmp_path, content(), ".nii.gz")
    whole = path.read_bytes()
    for length in (len(whole) // 2, len(whole) - 4, 20):
        path.write_bytes(whole[:length])
        with pytest.raises(InputError, match=r"damaged|not NIfTI"):
            read_volume(path)


def test_a_truncated_plain_file_is_cut_off(tmp_path):
    path = written(tmp_path, content()[:-1], ".nii")
    with pytest.raises(InputError, match="is cut off: 2271 bytes where its header states 2272"):
        read_volume(path)


def test_a_wrong_gzip_checksum_is_damaged_though_nibabel_would_read_it(tmp_path):
    path = written(tmp_path, content(), ".nii.gz")
    whole = bytearray(path.read_bytes())
    whole[-8] ^= 1
    path.write_bytes(bytes(whole))
    with pytest.raises(InputError, match="CRC"):
        read_volume(path)


def test_a_plain_file_named_gz_says_so(tmp_path):
    (tmp_path / "a.nii.gz").write_bytes(content())
    with pytest.raises(InputError, match=r"named \.gz but is not gzip"):
        read_volume(tmp_path / "a.nii.gz")


@pytest.mark.parametrize("ending", [".nii", ".nii.gz", ".hdr", ".img", ".mha", ".mhd", ".nrrd"])
def test_missing_empty_random_and_folder_are_input_errors(tmp_path, ending):
    path = tmp_path / f"a{ending}"
    with pytest.raises(InputError, match="does not exist"):
        read_volume(path)
    for data in (b"", b"\x1f\x8b", np.random.default_rng(1).bytes(3000)):
        path.write_bytes(data)
        with pytest.raises(InputError):
            read_volume(path)
    path.unlink()
    path.mkdir()
    with pytest.raises(InputError, match="is not a file"):
        read_volume(path)


def test_an_unknown_ending_names_those_that_are_known(tmp_path):
    (tmp_path / "a.dcm").write_bytes(b"")
    with pytest.raises(InputError, match=r"'.*a\.dcm' is not an image that can be read; endings known: \.nii\.gz"):
        read_volume(tmp_path / "a.dcm")


def pair(folder):
    nibabel.save(nibabel.Nifti1Pair(VALUES, AFFINE), folder / "a.hdr")
    return folder / "a.hdr", folder / "a.img"


def test_a_pair_without_one_of_its_files_is_an_input_error(tmp_path):
    head, voxels = pair(tmp_path)
    voxels.unlink()
    with pytest.raises(InputError, match=r"a\.img"):
        read_volume(head)
    head, voxels = pair(tmp_path)
    head.unlink()
    with pytest.raises(InputError, match=r"a\.hdr"):
        read_volume(voxels)


def test_a_pair_with_too_few_voxels_is_cut_off(tmp_path):
    head, voxels = pair(tmp_path)
    voxels.write_bytes(voxels.read_bytes()[:-2])
    with pytest.raises(InputError, match="is cut off: 1918 bytes where its header states 1920"):
        read_volume(head)


def test_analyze_without_left_and_right_is_not_taken_for_nifti(tmp_path):
    nibabel.save(nibabel.AnalyzeImage(VALUES, AFFINE), tmp_path / "a.hdr")
    with pytest.raises(InputError, match="is not NIfTI"):
        read_volume(tmp_path / "a.hdr")


@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
def test_random_corruption_gives_a_volume_or_our_error(tmp_path, kind):
    """Bytes of the header, and of the gzip around it, are overwritten at random."""
    whole, rng, refused = content(kind), np.random.default_rng(7), 0
    for trial in range(400):
        data = bytearray(whole)
        for place in rng.integers(0, 348, rng.integers(1, 5)):
            data[place] = rng.integers(256)
        ending = ENDINGS[trial % 2]
        path = written(tmp_path, bytes(data), ending)
        if trial % 8 == 1:
            packed = bytearray(gzip.compress(whole))
            packed[rng.integers(len(packed))] ^= 1 << rng.integers(8)
            path.write_bytes(bytes(packed))
        try:
            assert np.isfinite(read_volume(path).affine).all()
        except MedfocalError:
            refused += 1
    assert refused > 50


def test_random_corruption_of_a_pair_gives_a_volume_or_our_error(tmp_path):
    head, _ = pair(tmp_path)
    whole, rng = head.read_bytes(), np.random.default_rng(8)
    for _ in range(150):
        data = bytearray(whole)
        for place in rng.integers(0, len(data), rng.integers(1, 5)):
            data[place] = rng.integers(256)
        head.write_bytes(bytes(data))
        try:
            read_volume(head)
        except MedfocalError:
            continue


def test_reading_does_not_depend_on_the_file_staying_there(tmp_path):
    line = VALUES.reshape(-1, 1, 1)  # the one kind of array that needs no copy to be in C order
    nibabel.save(nibabel.Nifti1Pair(line, AFFINE), tmp_path / "a.hdr")
    volume = read_volume(tmp_path / "a.hdr")
    with (tmp_path / "a.img").open("r+b") as file:
        file.write(bytes(1920))
    np.testing.assert_array_equal(volume.array, line)
