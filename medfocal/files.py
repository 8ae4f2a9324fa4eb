"""Writing files so that a reader sees the old content or the new, never half of one."""

from __future__ import annotations

import contextlib
import csv
import glob
import json
import math
import os
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np

from medfocal.errors import ResourceError


@contextlib.contextmanager
def atomic_write(path: Path, mode: Literal["w", "wb"] = "w") -> Iterator[IO[Any]]:
    """Open a temporary file beside `path` that takes its name once it is complete and on the disk.

    Args:
        path: Final name. Its folder is made if missing.
        mode: Text (UTF-8, newline as written) or bytes.

    Yields:
        The open file.

    Raises:
        ResourceError: The folder cannot be made or written, or the disk is full.
    """
    path = Path(path)
    # The name is known before the file exists, so that a signal between the two leaves nothing behind.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        make_folder(path.parent)
        handle = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        keywords: dict[str, Any] = (
            {}
            if mode == "wb"
            else {
                "encoding": "utf-8",
                "newline": "",
                "errors": "backslashreplace",  # a file name need not be text; "\\udcff" is how JSON writes such a byte
            }
        )
        with os.fdopen(handle, mode, **keywords) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        ours = error.filename is None or Path(error.filename) in {path, temporary}
        if not ours:  # of another file that the caller touched meanwhile
            raise
        message = f"cannot write '{path}': {error.strerror or error}. Free space or choose another folder."
        raise ResourceError(message) from error
    finally:
        with contextlib.suppress(OSError):  # it has its name, or never was
            temporary.unlink()


def unfinished(path: Path) -> list[Path]:
    """What a kill left of earlier writings of a file by `atomic_write`, or one that another process is writing."""
    return sorted(path.parent.glob(f".{glob.escape(path.name)}.????????.part"))


def make_folder(path: Path) -> Path:
    """Make a folder and its parents, and see that it can be written.

    Raises:
        ResourceError: It cannot be made, is a file, or may not be written.
    """
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        message = f"cannot make the folder '{path}': {error.strerror or error}. Choose another output folder."
        raise ResourceError(message) from error
    if not os.access(path, os.W_OK | os.X_OK):
        message = f"the folder '{path}' may not be written by this user. Choose another output folder."
        raise ResourceError(message)
    return path


def write_json(path: Path, value: object) -> None:
    """Write JSON (RFC 8259) atomically: NaN and infinity become null, numpy values plain ones."""
    with atomic_write(path) as file:
        json.dump(plain(value), file, indent=2, allow_nan=False, ensure_ascii=False)
        file.write("\n")


def plain(value: object) -> Any:
    """Turn nested mappings, sequences and numpy values into what JSON knows."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Path):
        return str(value)
    return value


def write_csv(path: Path, rows: Iterable[Mapping[str, object]], columns: Sequence[str]) -> None:
    """Write a table atomically; None and NaN become empty cells, true and false are lower case.

    Args:
        path: The file.
        rows: One mapping a row; every key is a column.
        columns: Columns in order; they are written even when there is no row.
    """
    with atomic_write(path) as file:
        writer, known = csv.writer(file, lineterminator="\n"), set(columns)
        writer.writerow(columns)
        for row in rows:
            if not row.keys() <= known:
                message = f"'{path.name}' has no column for {sorted(row.keys() - known)}"
                raise ValueError(message)
            writer.writerow([_cell(row.get(column)) for column in columns])


def _cell(value: object) -> object:
    # Plain values first: a table of ten thousand cases has ten million cells.
    if type(value) is float:
        return value if math.isfinite(value) else ""
    if type(value) is str or type(value) is int:
        return value
    value = plain(value)
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    return value
