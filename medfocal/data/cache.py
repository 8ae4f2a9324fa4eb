"""A folder of arrays that were made once and are mapped into memory, shared by processes and by trainings.

An entry is a folder `<kind>-<key>` of arrays and an `entry.json` that states their sizes and checksums. Its key is a
digest of everything it was made from, so a changed input is another entry and an entry is never out of date. It gets
its name by one renaming once it is complete and on the disk: what a killed process leaves behind is never taken for an
entry, and the next process to make it removes it. Two processes that want the same entry make it once.

The folder can be deleted at any time; what is mapped stays readable until its processes end.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import json
import os
import secrets
import shutil
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medfocal.errors import ConfigError, InputError, ResourceError
from medfocal.files import make_folder, plain

#: Raised with every change of what entries hold or how it is made, or old ones would be taken for new.
FORMAT = 1
ENTRY = "entry.json"
#: An `.npy` header of version 1 takes 128 bytes, or a multiple of 64 more.
SMALLEST_MAPPED = 1024
#: Ending of compressed arrays, and sides of what is compressed together: chunks of blocks.
PACKED = ".b2nd"
CHUNK_SIDE, BLOCK_SIDE = 64, 32
#: Arrays of these types are stored; nothing that could run code is ever read.
KINDS = "biuf"


@dataclass(frozen=True)
class Entry:
    """A complete entry.

    Attributes:
        folder: Where it lies.
        record: What was stored with the arrays.
    """

    folder: Path
    record: Mapping[str, Any]

    def array(self, name: str) -> NDArray[Any]:
        """Map an array into memory, read-only; pages are read when used and shared by all processes.

        Returns:
            The array; or, of one that is stored compressed, what gives arrays when sliced.

        Raises:
            ResourceError: It cannot be mapped.
        """
        path = self.folder / f"{name}.npy"
        packed = path.with_suffix(PACKED)
        if packed.is_file():
            unpacking: NDArray[Any] = _unpacking(packed)
            return unpacking
        try:
            if path.stat().st_size <= SMALLEST_MAPPED:  # nothing but a header cannot be mapped
                with path.open("rb") as file:
                    found = np.asarray(np.lib.format.read_array(file, allow_pickle=False))
            else:
                # `numpy.load` would open archives too; and every slice of a memmap would be one, and take a way around.
                found = np.lib.format.open_memmap(path, mode="r").view(np.ndarray)
            if found.dtype.kind not in KINDS:
                message = f"it holds {found.dtype}"
                raise ValueError(message)
        except (OSError, ValueError) as error:
            message = (
                f"the cached array '{path}' cannot be read: {error}. Delete '{self.folder}', so that it is made anew."
            )
            raise ResourceError(message) from error
        return found


class Cache:
    """A folder of entries.

    Args:
        folder: Made if missing.
        max_gb: Most that the folder may hold, in 1e9 bytes, or None for what the disk has.
        compress: Whether volumes that are written are compressed, by blosc2: a quarter of the disk or less, and patches
            are cut several times as slowly. What is there already is used as it is.

    Raises:
        ConfigError: The package blosc2 is missing.
        ResourceError: The folder cannot be made or written.
    """

    def __init__(self, folder: Path, *, max_gb: float | None = None, compress: bool = False) -> None:
        if compress:
            _blosc2()
        self.folder = make_folder(Path(folder)).absolute()
        self.max_gb = max_gb
        self.compress = compress

    def find(self, kind: str, key: str, *, verify: bool = True) -> Entry | None:
        """The entry of a key if it is complete.

        Args:
            kind: First part of the folder's name.
            key: From `digest`.
            verify: Whether every byte is compared with its checksum, at several GB a second, which also brings it into
                the page cache; else only sizes are.
        """
        return _opened(self.folder / f"{kind}-{key}", verify=verify)

    def get(self, kind: str, key: str, make: Callable[[Writer], Mapping[str, Any]]) -> Entry:
        """The entry of a key, made if it is missing or broken.

        Args:
            kind: First part of the folder's name.
            key: From `digest`.
            make: Adds arrays to the writer it is given and returns the record.

        Raises:
            ResourceError: It cannot be written.
        """
        found = self.find(kind, key)
        if found is not None:
            return found
        folder = self.folder / f"{kind}-{key}"
        with self._lock(folder.name) as alone:
            found = _opened(folder)  # another process may have made it meanwhile
            if found is not None:
                return found
            with self._writing(folder, alone=alone) as writer:
                writer.finish(make(writer))
        found = _opened(folder)
        if found is None:
            message = f"the cache entry '{folder}' was written and reads back otherwise; is the disk sound?"
            raise ResourceError(message)
        return found

    def check_room(self, needed_bytes: float) -> None:
        """See before any work that so much more fits.

        Raises:
            ResourceError: It does not fit into `max_gb`, or not onto the disk; says how much is needed.
        """
        if not needed_bytes:
            return
        free = shutil.disk_usage(self.folder).free
        most = "up to " if self.compress else ""  # how far arrays can be compressed is not known before
        needed = f"{most}{needed_bytes / 1e9:.3g} GB more are needed in the cache '{self.folder}'"
        if self.max_gb is not None:
            held = _bytes_in(self.folder)
            if held + needed_bytes > self.max_gb * 1e9:
                message = (
                    f"{needed}, which holds {held / 1e9:.3g} GB, and cache.max_gb is {self.max_gb:g}. Raise it to "
                    f"{(held + needed_bytes) / 1e9 * 1.01:.3g}, or delete the folder (it is made anew)."
                )
                raise ResourceError(message)
        if needed_bytes > free:
            message = (
                f"{needed}, and its disk has {free / 1e9:.3g} GB free. Free some, or set paths.cache to another disk."
            )
            raise ResourceError(message)

    @contextlib.contextmanager
    def _lock(self, name: str) -> Iterator[bool]:
        """Hold others off an entry, and say whether that worked.

        Where a disk knows no locks, work may be done twice, and nothing else happens.
        """
        path = self.folder / f".{name}.lock"
        with self._told(path):
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            alone = False
            with contextlib.suppress(OSError):
                fcntl.flock(handle, fcntl.LOCK_EX)
                alone = True
            yield alone
        finally:
            os.close(handle)  # the file stays: one that is removed can be locked by two

    @contextlib.contextmanager
    def _writing(self, folder: Path, *, alone: bool) -> Iterator[Writer]:
        if alone:  # what lies there is of a killed process; else it may be another's who is at work
            for left in self.folder.glob(f".{folder.name}.*.part"):
                shutil.rmtree(left, ignore_errors=True)
        part = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.part")
        try:
            with self._told(part):
                part.mkdir()
                yield Writer(part, compress=self.compress)
                _sync(part)
                _put(part, folder)
                _sync(self.folder)
        finally:
            shutil.rmtree(part, ignore_errors=True)

    @contextlib.contextmanager
    def _told(self, path: Path) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            path_of_error = None if error.filename is None else Path(os.fsdecode(error.filename))
            ours = path_of_error is None or self.folder in (path_of_error, *path_of_error.parents)
            if not ours:
                raise
            message = (
                f"cannot write the cache '{path}': {error.strerror or error}. What it holds stays usable; free space, "
                "or set paths.cache to another disk."
            )
            raise ResourceError(message) from error


class Writer:
    """Takes the arrays of an entry in the making."""

    def __init__(self, folder: Path, *, compress: bool) -> None:
        self._folder = folder
        self._compress = compress
        self._files: dict[str, dict[str, int]] = {}

    def add(self, name: str, array: NDArray[Any]) -> None:
        """Write an array of booleans or numbers as `<name>.npy`, or compressed, in C order."""
        assert array.dtype.kind in KINDS, "numbers only"
        array = np.ascontiguousarray(array)
        if self._compress and array.ndim >= 3 and array.size:
            self._write(f"{name}{PACKED}", [_packed(array)])
        else:
            self._write(f"{name}.npy", [_header(array), array.reshape(-1).view(np.uint8).data])

    def _write(self, name: str, pieces: Sequence[bytes | memoryview]) -> None:
        checksum = 0
        with (self._folder / name).open("wb", buffering=0) as file:
            for piece in pieces:
                left = memoryview(piece)
                checksum = zlib.crc32(left, checksum)
                while left:  # an unbuffered write may take a part, and says why when the disk is full
                    left = left[file.write(left) :]
            os.fsync(file.fileno())
        self._files[name] = {"bytes": sum(map(len, pieces)), "crc32": checksum}

    def finish(self, record: Mapping[str, Any]) -> None:
        """Write `entry.json`, which makes the entry complete and vouches for itself as for the arrays."""
        stated = json.loads(json.dumps({"files": self._files, "record": record}, default=plain))
        content = {"format": FORMAT, "crc32": _checksum(stated), **stated}
        with (self._folder / ENTRY).open("w", encoding="utf-8") as file:
            json.dump(content, file)  # with NaN, which only we read
            file.flush()
            os.fsync(file.fileno())


def digest(**made_from: Any) -> str:
    """A key of everything that an entry is made from: 32 hexadecimal digits of a SHA-256."""
    text = json.dumps({"format": FORMAT, **plain(made_from)}, sort_keys=True, allow_nan=False, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def file_digest(path: Path) -> str:
    """SHA-256 of a file's content; once a process and version of the file.

    Raises:
        InputError: It cannot be read.
    """
    try:
        stat = path.stat()
        return _file_digest(path, stat.st_size, stat.st_mtime_ns)
    except OSError as error:
        message = f"the file '{path}' cannot be read: {error.strerror or error}"
        raise InputError(message) from error


@functools.lru_cache(maxsize=65536)
def _file_digest(path: Path, _size: int, _mtime_ns: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _opened(folder: Path, *, verify: bool = True) -> Entry | None:
    """An entry whose files are as they were written, or None."""
    try:
        content = json.loads((folder / ENTRY).read_text(encoding="utf-8"))
        if content["format"] != FORMAT or content["crc32"] != _checksum(content):
            return None
        files = content["files"].items()
        if not all(_is_sound(folder / Path(name).name, stated, verify=verify) for name, stated in files):
            return None
        return Entry(folder, content["record"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def _checksum(content: Mapping[str, Any]) -> int:
    """Of what an `entry.json` states; JSON reads back as it was written, to the last digit."""
    return zlib.crc32(json.dumps([content["files"], content["record"]]).encode())


def _put(part: Path, folder: Path) -> None:
    """Give a complete entry its name, in place of a broken one; a sound one is of somebody whom no lock held off."""
    # First without removing anything: what has come there since we looked may be sound.
    with contextlib.suppress(OSError):
        part.rename(folder)
        return
    if _opened(folder) is not None:
        return
    if folder.is_dir() and not folder.is_symlink():
        shutil.rmtree(folder)
    elif os.path.lexists(folder):
        folder.unlink()
    try:
        part.rename(folder)
    except OSError:
        if _opened(folder) is None:
            raise


def _is_sound(path: Path, stated: Mapping[str, int], *, verify: bool) -> bool:
    if path.stat().st_size != stated["bytes"]:
        return False
    if not verify:
        return True
    found = 0
    with path.open("rb", buffering=0) as file:
        while piece := file.read(1 << 22):
            found = zlib.crc32(piece, found)
    return found == stated["crc32"]


def _header(array: NDArray[Any]) -> bytes:
    """What stands before the voxels of an `.npy` file of version 1."""
    import io

    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(array))
    return file.getvalue()


def _blosc2() -> Any:
    try:
        import blosc2
    except ImportError as error:
        message = "cache.compress=true needs the package blosc2: pip install 'medfocal[blosc2]', or set it to false"
        raise ConfigError(message) from error
    return blosc2


def _packed(array: NDArray[Any]) -> bytes:
    """A contiguous frame of blosc2, in blocks that a patch needs few of."""
    blosc2 = _blosc2()
    chunks, blocks = (
        (*(1,) * (array.ndim - 3), *(min(side, n) for n in array.shape[-3:])) for side in (CHUNK_SIDE, BLOCK_SIDE)
    )
    settings = {"codec": blosc2.Codec.ZSTD, "clevel": 1}
    frame: bytes = blosc2.asarray(array, chunks=chunks, blocks=blocks, cparams=settings).to_cframe()
    return frame


def _unpacking(path: Path) -> Any:
    """Open a compressed array and nothing else: a frame could hold expressions, which `safe` does not evaluate."""
    blosc2 = _blosc2()
    try:
        found = blosc2.open(str(path), mode="r", mmap_mode="r", deserialize="safe")
    except (RuntimeError, ValueError, OSError) as error:
        message = f"the cached array '{path}' cannot be read: {error}. Start again, so that it is made anew."
        raise ResourceError(message) from error
    if type(found) is not blosc2.NDArray or found.dtype.kind not in KINDS:
        message = f"the cached array '{path}' is not one that medfocal wrote. Delete the folder it lies in."
        raise ResourceError(message)
    return found


def _bytes_in(folder: Path) -> int:
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):  # gone meanwhile
                total += (Path(place) / name).stat().st_size
    return total


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
