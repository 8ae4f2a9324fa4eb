"""The tables of many cases in one file, a JSON line a case, so that a killed evaluation goes on where it was.

The first line says how the tables were made. Tables made otherwise, of files that changed since, or by another version
are measured again.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from medfocal import __version__
from medfocal.errors import ResourceError
from medfocal.evaluate.pairs import Pair
from medfocal.evaluate.protocols import Protocol
from medfocal.evaluate.table import CaseTable
from medfocal.files import make_folder, plain

#: Of the tables' layout; raised when it changes.
FORMAT = 1

Tables = Mapping[str, CaseTable]


class TableStore:
    """A file of tables that grows by a line a case.

    Args:
        path: The file; what fits in it is kept, and everything else is dropped.
        made_by: The settings that tables depend on.
    """

    def __init__(self, path: Path, made_by: Mapping[str, Any]) -> None:
        self._path = Path(path)
        self._head = {"medfocal_tables": FORMAT, "version": __version__, "made_by": plain(dict(made_by))}
        self._file: IO[bytes] | None = None
        self._end = 0
        # Where the lines of each case stand: the tables themselves, as JSON, would fill the memory for many cases.
        self._known: dict[str, list[int]] = {}

    def __enter__(self) -> Self:
        self._end = self._read()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()

    def get(self, pair: Pair, protocol: Protocol, names: Collection[str]) -> Tables | None:
        """Give the tables of a case, one a name, if they are of these very files and shaped as the protocol asks."""
        places = self._known.get(pair.case, [])
        stamp = _stamp(pair) if places else None
        for place in reversed(places):
            try:
                line = self._line_at(place)
                if line["files"] != stamp:
                    continue
                read = {name: CaseTable.from_dict(table) for name, table in line["tables"].items()}
            except (AttributeError, IndexError, KeyError, OSError, OverflowError, TypeError, ValueError):
                continue  # not what was written: the case is measured again
            own = all((table.case, table.patient) == (pair.case, pair.patient) for table in read.values())
            alike = all(protocol.shapes_alike(table.shaping, is_mask=table.is_mask) for table in read.values())
            if own and alike and set(read) == set(names):
                return read
        return None

    def _line_at(self, place: int) -> dict[str, Any]:
        """Read a line that `_read` has seen to be whole."""
        with self._path.open("rb") as file:
            file.seek(place)
            line: dict[str, Any] = json.loads(file.readline())
        return line

    def add(self, pair: Pair, tables: Tables) -> None:
        """Append the tables of a case.

        Raises:
            ResourceError: The disk is full.
        """
        if self._file is None:
            self._open()
        self._write(
            {
                "case": pair.case,
                "files": _stamp(pair),
                "tables": {name: table.to_dict() for name, table in tables.items()},
            }
        )

    def _open(self) -> None:
        """Open the file behind what was read of it; an evaluation that fails before its first case leaves none."""
        make_folder(self._path.parent)
        try:
            self._file = self._path.open("r+b" if self._end else "wb")
            self._file.truncate(self._end)
            self._file.seek(self._end)
        except OSError as error:
            message = f"cannot write '{self._path}': {error.strerror or error}. Free space or choose another folder."
            raise ResourceError(message) from error
        if not self._end:
            self._write(self._head)

    def _write(self, value: Mapping[str, Any]) -> None:
        assert self._file is not None
        line = json.dumps(value, allow_nan=False, separators=(",", ":")).encode() + b"\n"
        try:
            self._file.write(line)
            self._file.flush()  # what is with the system survives the end of this process
        except OSError as error:
            message = f"cannot write '{self._path}': {error.strerror or error}. Free space or choose another folder."
            raise ResourceError(message) from error

    def _read(self) -> int:
        """Read what fits; gives where the last whole line ends, 0 if the file has to begin anew."""
        if not self._path.is_file():
            return 0
        end = 0
        try:
            with self._path.open("rb") as file:
                for line in file:
                    value = json.loads(line) if line.endswith(b"\n") else None
                    if value is None or (end == 0 and value != self._head):
                        break
                    if end and {"files", "tables"} <= value.keys():
                        self._known.setdefault(value["case"], []).append(end)
                    end += len(line)
        except (OSError, ValueError, AttributeError, KeyError, TypeError, RecursionError):
            pass  # what was read until here is whole; the rest is measured again
        return end


def _stamp(pair: Pair) -> list[Any]:
    """What tells whether the files of a case, or its names, changed."""
    files: list[Any] = [pair.patient]
    for path in (pair.reference, pair.prediction, pair.ignore):
        if path is None:
            files.append(None)
            continue
        place = str(path.absolute())
        try:
            state = path.stat()
        except OSError:
            files.append([place, None, None])
        else:
            files.append([place, state.st_size, state.st_mtime_ns])
    return files
