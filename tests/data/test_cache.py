"""The cache: entries are whole or not there, made once, and never what somebody else left half done."""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import shutil
import signal
import subprocess
import threading
import time
import zlib

import numpy as np
import pytest

from medfocal.data import cache as module
from medfocal.data.cache import Cache, digest, file_digest
from medfocal.errors import InputError, ResourceError

SHAPE = (12, 10, 8)
IMAGE = np.random.default_rng(0).normal(size=(2, *SHAPE)).astype(np.float16)
VOXELS = np.arange(40, dtype=np.uint32)
RECORD = {"affine": np.diag([0.5, 1.0, 3.0, 1.0]), "names": ["é", "\udcff"], "dice": float("nan"), "count": 3}
KEY = "k" * 32
SPAWN = multiprocessing.get_context("spawn")


def write(writer):
    writer.add("image", IMAGE)
    writer.add("voxels", VOXELS)
    return RECORD


def never(_):
    pytest.fail("the entry is there already")


def made(folder, **settings):
    cache = Cache(folder, **settings)
    return cache, cache.get("image", KEY, write)


def is_whole(entry):
    return np.array_equal(entry.array("image"), IMAGE) and np.array_equal(entry.array("voxels"), VOXELS)


def leavings(folder):
    return [path.name for path in folder.iterdir() if path.name.endswith(".part")]


def test_an_entry_gives_back_what_was_put_in(tmp_path):
    _, entry = made(tmp_path / "new" / "cache")
    image = entry.array("image")
    assert (image.dtype, image.shape) == (np.float16, (2, *SHAPE))
    assert is_whole(entry)
    assert entry.record["affine"] == [[0.5, 0, 0, 0], [0, 1, 0, 0], [0, 0, 3, 0], [0, 0, 0, 1]]
    assert entry.record["names"] == ["é", "\udcff"]
    assert np.isnan(entry.record["dice"])
    assert entry.record["count"] == 3


def test_arrays_are_mapped_and_cannot_be_written(tmp_path):
    _, entry = made(tmp_path)
    image = entry.array("image")
    assert type(image) is np.ndarray
    with pytest.raises(ValueError, match="read-only"):
        image[0, 0, 0, 0] = 1
    assert np.array_equal(image, np.load(entry.folder / "image.npy"))  # numpy reads the files too


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((0, 3), np.uint32),
        np.zeros(0, bool),
        np.ones((1, 1, 1), bool),
        np.asfortranarray(np.arange(960, dtype=np.int64).reshape(SHAPE)),
        np.arange(960, dtype=">f4").reshape(SHAPE)[::-1, :, ::2],
        np.random.default_rng(1).random((33, 32, 1)) > 0.5,
    ],
    ids=["no row", "empty", "one voxel", "column order", "foreign order, strided", "more than a header"],
)
def test_arrays_of_any_shape_and_order_come_back(tmp_path, array):
    entry = Cache(tmp_path).get("image", KEY, lambda writer: writer.add("a", array) or {})
    found = entry.array("a")
    assert (found.shape, found.dtype) == (array.shape, array.dtype)
    assert np.array_equal(found, array)
    assert found.flags.c_contiguous


def test_objects_are_not_stored(tmp_path):
    with pytest.raises(AssertionError, match="numbers only"):
        Cache(tmp_path).get("image", KEY, lambda writer: writer.add("a", np.array([{}])) or {})
    assert leavings(tmp_path) == []


def test_an_entry_is_made_once_and_another_key_or_kind_is_another_entry(tmp_path):
    cache, entry = made(tmp_path)
    assert cache.get("image", KEY, never).folder == entry.folder
    assert Cache(tmp_path).get("image", KEY, never).folder == entry.folder
    assert cache.find("image", "m" * 32) is None
    assert cache.find("target", KEY) is None


def test_an_entry_is_the_same_bytes_whoever_makes_it(tmp_path):
    _, here = made(tmp_path / "here")
    process = SPAWN.Process(target=_make_slowly, args=(tmp_path / "there", tmp_path / "marks", 0))
    process.start()
    process.join()
    there = tmp_path / "there" / here.folder.name
    names = {path.name for path in here.folder.iterdir()}
    assert names == {"image.npy", "voxels.npy", "entry.json"} == {path.name for path in there.iterdir()}
    for name in names:
        assert (here.folder / name).read_bytes() == (there / name).read_bytes()


def _truncate(folder):
    path = folder / "image.npy"
    path.write_bytes(path.read_bytes()[:-1])


def _flip(name, place):
    def change(folder):
        content = bytearray((folder / name).read_bytes())
        content[place] ^= 1
        (folder / name).write_bytes(content)

    return change


def _state(text):
    def change(folder):
        (folder / "entry.json").write_bytes(text if isinstance(text, bytes) else text.encode())

    return change


def _restate(**changes):
    """An entry.json that says something else, with or without a checksum that agrees."""

    def change(folder):
        content = json.loads((folder / "entry.json").read_text())
        (folder / "entry.json").write_text(json.dumps(content | changes))

    return change


def _swear(files, record=None):
    """An entry.json of somebody who knows how its checksum is made."""
    text = json.dumps([files, record]).encode()
    return _restate(files=files, record=record, crc32=zlib.crc32(text))


def _be_a_file(folder):
    shutil.rmtree(folder)
    folder.write_text("here I am")


def _be_a_link(folder):
    elsewhere = folder.parent / "elsewhere"
    folder.rename(elsewhere)
    folder.symlink_to(elsewhere)
    (elsewhere / "image.npy").unlink()


BROKEN = {
    "without an array": lambda folder: (folder / "voxels.npy").unlink(),
    "an array is cut off": _truncate,
    "an array is empty": lambda folder: (folder / "image.npy").write_bytes(b""),
    "a flipped bit in voxels": _flip("image.npy", -5),
    "a flipped bit in a header": _flip("image.npy", 20),
    "a flipped bit in the record": _flip("entry.json", -8),
    "an array is a folder": lambda folder: ((folder / "image.npy").unlink(), (folder / "image.npy").mkdir()),
    "without entry.json": lambda folder: (folder / "entry.json").unlink(),
    "empty": lambda folder: [path.unlink() for path in folder.iterdir()],
    "no JSON": _state("{"),
    "no text": _state(b"\xff\xfe\x00"),
    "JSON of another kind": _state("[1, 2]"),
    "JSON of a number": _state("3"),
    "deep JSON": _state("[" * 100_000),
    "a long number": _state('{"format": ' + "9" * 10_000 + "}"),
    "another format": _restate(format=module.FORMAT + 1),
    "files that are none": _restate(files=3),
    "files in a list": _swear(["image.npy"]),
    "files that state nothing": _swear({"image.npy": None}),
    "files that are not numbers": _swear({"image.npy": {"bytes": "many", "crc32": []}}),
    "no file at all": _restate(files={}),
    "another record": _restate(record={"affine": None}),
    "names a file elsewhere": _swear({"../../etc/passwd": {"bytes": 1, "crc32": 0}}),
    "names its own folder": _swear({"..": {"bytes": 4096, "crc32": 0}, ".": {"bytes": 4096, "crc32": 0}}),
    "names no file": _swear({"a\0b": {"bytes": 1, "crc32": 0}}),
    "a file where the folder was": _be_a_file,
    "a link to a broken one": _be_a_link,
}


@pytest.mark.parametrize("harm", BROKEN.values(), ids=BROKEN)
def test_a_broken_entry_is_found_out_and_made_anew(tmp_path, harm):
    cache, entry = made(tmp_path)
    harm(entry.folder)
    assert cache.find("image", KEY) is None
    assert is_whole(cache.get("image", KEY, write))
    assert is_whole(cache.get("image", KEY, never))


def test_an_entry_that_names_a_file_elsewhere_does_not_open_it(tmp_path):
    """Were the name followed, the file outside, of the right size and checksum, would pass."""
    cache, entry = made(tmp_path / "cache")
    (tmp_path / "secret").write_bytes(b"abc")
    _swear({"../../secret": {"bytes": 3, "crc32": zlib.crc32(b"abc")}}, {})(entry.folder)
    assert cache.find("image", KEY) is None


def test_without_verifying_only_sizes_count(tmp_path):
    cache, entry = made(tmp_path)
    _flip("image.npy", -5)(entry.folder)
    assert cache.find("image", KEY, verify=False) is not None
    _truncate(entry.folder)
    assert cache.find("image", KEY, verify=False) is None


@pytest.mark.parametrize("content", [b"", b"not numpy", b"not numpy" * 1000, b"\x80\x04K\x01.", b"PK\x03\x04" * 500])
def test_an_array_that_breaks_after_it_was_found_is_a_readable_error(tmp_path, content):
    _, entry = made(tmp_path)
    (entry.folder / "image.npy").write_bytes(content)
    with pytest.raises(ResourceError, match=r"image\.npy' cannot be read.*Delete '"):
        entry.array("image")


def test_nothing_is_unpickled(tmp_path):
    """Beside small arrays and large ones: an object array of numpy's is a pickle."""
    _, entry = made(tmp_path)
    for size in (1, 5000):
        np.save(entry.folder / "image.npy", np.array([{}] * size, dtype=object), allow_pickle=True)
        with pytest.raises(ResourceError, match="cannot be read"):
            entry.array("image")


def test_a_missing_array_is_a_readable_error(tmp_path):
    _, entry = made(tmp_path)
    with pytest.raises(ResourceError, match=r"nothing\.npy' cannot be read"):
        entry.array("nothing")


def _make_slowly(folder, marks, seconds):
    """Make the entry, and leave a mark for each time that it is made."""

    def slowly(writer):
        marks.mkdir(exist_ok=True)
        (marks / f"{os.getpid()}").touch()
        writer.add("image", IMAGE)
        time.sleep(seconds)
        writer.add("voxels", VOXELS)
        return RECORD

    assert is_whole(Cache(folder).get("image", KEY, slowly))


def wait_for(condition, what):
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.01)


def test_two_processes_make_an_entry_once_and_both_get_it(tmp_path):
    cache, marks = tmp_path / "cache", tmp_path / "marks"
    processes = [SPAWN.Process(target=_make_slowly, args=(cache, marks, 1.0)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    assert len(list(marks.iterdir())) == 1
    assert leavings(cache) == []


def test_what_a_killed_process_leaves_is_no_entry_and_the_next_one_removes_it(tmp_path):
    folder, marks = tmp_path / "cache", tmp_path / "marks"
    process = SPAWN.Process(target=_make_slowly, args=(folder, marks, 600))
    process.start()
    wait_for(lambda: folder.is_dir() and any((folder / name / "image.npy").exists() for name in leavings(folder)), "")
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert len(leavings(folder)) == 1
    cache = Cache(folder)
    assert cache.find("image", KEY) is None
    assert is_whole(cache.get("image", KEY, write))
    assert leavings(folder) == []


def test_a_process_that_waits_goes_on_when_the_one_at_work_is_killed(tmp_path):
    folder, marks = tmp_path / "cache", tmp_path / "marks"
    first = SPAWN.Process(target=_make_slowly, args=(folder, marks, 600))
    first.start()
    wait_for(lambda: marks.is_dir() and any(marks.iterdir()), "it did not begin")
    second = SPAWN.Process(target=_make_slowly, args=(folder, marks, 0))
    second.start()
    second.join(3)
    assert second.is_alive()  # it waits
    assert len(list(marks.iterdir())) == 1
    os.kill(first.pid, signal.SIGKILL)
    second.join(60)
    assert second.exitcode == 0
    assert leavings(folder) == []
    first.join()


def test_an_entry_whose_making_fails_is_not_there_and_can_be_made(tmp_path):
    cache = Cache(tmp_path)

    def fail(writer):
        writer.add("image", IMAGE)
        raise InputError("the label cannot be read")

    with pytest.raises(InputError, match="the label cannot be read"):
        cache.get("image", KEY, fail)
    assert leavings(tmp_path) == []
    assert cache.find("image", KEY) is None
    assert is_whole(cache.get("image", KEY, write))


def test_a_failure_to_read_another_file_is_not_called_one_of_the_cache(tmp_path):
    def fail(_):
        (tmp_path / "input.nii").read_bytes()

    with pytest.raises(FileNotFoundError):
        Cache(tmp_path / "cache").get("image", KEY, fail)


def test_where_a_disk_knows_no_locks_two_at_once_still_both_get_a_whole_entry(tmp_path, monkeypatch):
    """Both are in the middle of the work at the same time; neither removes what the other has begun."""

    def no_locks(*_):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(module.fcntl, "flock", no_locks)
    meeting, found = threading.Barrier(2, timeout=60), []

    def make(writer):
        writer.add("image", IMAGE)
        meeting.wait()
        writer.add("voxels", VOXELS)
        return RECORD

    def work():
        found.append(Cache(tmp_path).get("image", KEY, make))

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [is_whole(entry) for entry in found] == [True, True]
    assert leavings(tmp_path) == []


def test_the_folder_may_be_deleted_while_its_arrays_are_mapped(tmp_path):
    cache, entry = made(tmp_path / "cache")
    image = entry.array("image")
    shutil.rmtree(tmp_path / "cache")
    assert np.array_equal(image, IMAGE)
    assert cache.find("image", KEY) is None
    assert is_whole(Cache(tmp_path / "cache").get("image", KEY, write))


def test_a_broken_entry_is_replaced_while_another_has_it_mapped(tmp_path):
    _, entry = made(tmp_path)
    image = entry.array("image")
    (entry.folder / "voxels.npy").unlink()
    other = Cache(tmp_path).get("image", KEY, write)
    assert is_whole(other)
    assert np.array_equal(image, IMAGE)


def test_a_folder_that_disappears_during_the_work_is_a_readable_error(tmp_path):
    def fail(writer):
        shutil.rmtree(tmp_path / "cache")
        writer.add("image", IMAGE)

    with pytest.raises(ResourceError, match=r"cannot write the cache .*No such file"):
        Cache(tmp_path / "cache").get("image", KEY, fail)


def test_a_folder_that_disappears_at_the_last_moment_is_a_readable_error(tmp_path, monkeypatch):
    sync = module._sync

    def late(folder):
        if folder == tmp_path / "cache":
            shutil.rmtree(folder)
        sync(folder)

    monkeypatch.setattr(module, "_sync", late)
    with pytest.raises(ResourceError, match="cannot write the cache"):
        made(tmp_path / "cache")


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 1 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError:
        mounted = False
    if not mounted:
        pytest.skip("no disk can be mounted here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def large(writer):
    writer.add("image", np.zeros((2, 1 << 20), np.uint8))
    return {}


def assert_full(folder, what):
    """The entry there is too large; the one that is there stays."""
    cache, _ = made(folder)
    with pytest.raises(ResourceError, match=what) as found:
        cache.get("image", "m" * 32, large)
    assert "What it holds stays usable" in str(found.value)
    assert found.value.exit_code == 5
    assert leavings(folder) == []
    assert is_whole(cache.get("image", KEY, never))
    assert cache.get("image", "n" * 32, lambda _: {"small": 1}).record == {"small": 1}


def test_a_full_disk_is_a_readable_error_and_the_cache_stays_usable(small_disk):
    assert_full(small_disk / "cache", "No space left on device")


def test_a_limit_on_file_sizes_is_a_readable_error_and_the_cache_stays_usable(tmp_path):
    low, high = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, high))
    try:
        assert_full(tmp_path / "cache", "File too large")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (low, high))


def test_what_does_not_fit_the_disk_is_refused_before(small_disk):
    cache, _ = made(small_disk / "cache")
    cache.check_room(900e3)
    with pytest.raises(ResourceError, match=r"0\.002 GB more are needed .* and its disk has 0\.001\d* GB free"):
        cache.check_room(2e6)


def test_a_folder_that_cannot_be_written_is_refused(small_disk):
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(ResourceError, match=r"may not be written|cannot make the folder"):
        Cache(small_disk)
    with pytest.raises(ResourceError, match=r"cannot make the folder .*Read-only"):
        Cache(small_disk / "cache")


def test_a_folder_that_becomes_read_only_is_a_readable_error_where_something_is_missing(small_disk):
    cache, _ = made(small_disk / "cache")
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    assert is_whole(cache.get("image", KEY, never))
    with pytest.raises(ResourceError, match=r"cannot write the cache .*Read-only"):
        cache.get("image", "m" * 32, write)


def test_a_folder_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "cache").touch()
    with pytest.raises(ResourceError, match="cannot make the folder"):
        Cache(tmp_path / "cache")


def test_more_than_max_gb_is_refused_with_how_much_is_needed(tmp_path):
    """5 kB are there and 6 kB more wanted: 11 kB pass, 10.9 do not, and what is asked for would do."""
    made(tmp_path)
    held = sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
    assert 4000 < held < 6000
    Cache(tmp_path, max_gb=(held + 6000) / 1e9).check_room(6000)
    with pytest.raises(ResourceError, match=r"6e-06 GB more are needed in the cache .*cache\.max_gb is 1\.") as found:
        Cache(tmp_path, max_gb=(held + 5999) / 1e9).check_room(6000)
    assert str(tmp_path) in str(found.value)
    asked_for = float(str(found.value).split("Raise it to ")[1].split(",")[0])
    Cache(tmp_path, max_gb=asked_for).check_room(6000)
    assert asked_for * 1e9 < 1.02 * (held + 6000)
    assert {path.name for path in tmp_path.iterdir()} == {f"image-{KEY}", f".image-{KEY}.lock"}


def test_where_nothing_is_missing_a_cache_above_max_gb_is_used_as_it_is(tmp_path):
    made(tmp_path)
    Cache(tmp_path, max_gb=1e-9).check_room(0)


def test_a_key_depends_on_every_value_and_on_no_order():
    keys = {
        digest(a=1, b=[1, 2]),
        digest(a=2, b=[1, 2]),
        digest(a=1, b=[2, 1]),
        digest(a=1, c=[1, 2]),
        digest(a="1", b=[1, 2]),
        digest(a=True, b=[1, 2]),
        digest(a=None, b=[1, 2]),
        digest(a=1, b={"1": 2}),
    }
    assert len(keys) == 8
    assert digest(a=1, b=[1, 2]) == digest(b=(1, 2), a=np.int64(1))
    assert all(len(key) == 32 and set(key) <= set("0123456789abcdef") for key in keys)


def test_a_file_is_known_by_its_content(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_bytes(b"abc")
    two.write_bytes(b"abc")
    assert file_digest(one) == file_digest(two) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    os.utime(two, ns=(0, 0))
    assert file_digest(one) == file_digest(two)
    two.write_bytes(b"abd")
    assert file_digest(one) != file_digest(two)


def test_a_file_that_cannot_be_read_is_the_inputs_fault(tmp_path):
    with pytest.raises(InputError, match=r"'.*absent' cannot be read: No such file"):
        file_digest(tmp_path / "absent")
    with pytest.raises(InputError, match="cannot be read: Is a directory"):
        file_digest(tmp_path)
