"""Files and folders that a dataset is read from."""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from medfocal.errors import InputError
from medfocal.volume import is_volume, volume_name

# Names nearer than this to a known one are taken for a slip of the pen.
LIKENESS = 0.8


def read_json(path: Path, what: str) -> Any:
    """Read a JSON file.

    Args:
        path: The file.
        what: What it is, for messages, such as "dataset file".

    Raises:
        InputError: It does not exist or is not JSON.
    """
    if not path.is_file():
        message = f"the {what} '{path}' {'is a folder' if path.is_dir() else 'does not exist'}"
        raise InputError(message)
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, OSError, RecursionError) as error:  # undecodable text is a ValueError too
        message = f"the {what} '{path}' is not JSON: {error}"
        raise InputError(message) from error


def read_object(path: Path) -> dict[str, Any]:
    """Read a dataset file that holds a JSON object.

    Raises:
        InputError: It does not exist, is not JSON, or holds something else.
    """
    content = read_json(path, "dataset file")
    if not isinstance(content, dict):
        message = f"the dataset file '{path}' holds a {type(content).__name__}; an object with 'training' is expected"
        raise InputError(message)
    return content


class Places:
    """Turns the paths of a dataset file into absolute ones.

    `..` is taken out where that leads to the same folder, which a link on the way can prevent.

    Args:
        root: Folder that relative paths start from.
    """

    def __init__(self, root: Path) -> None:
        self._root = root.absolute()
        self._folders: dict[Path, Path] = {}

    def __call__(self, written: str) -> Path:
        """The absolute path of what is written in the file."""
        path = self._root / written
        folder = path.parent
        if folder not in self._folders:
            self._folders[folder] = _plain_folder(folder)
        return self._folders[folder] / path.name


class Ways:
    """Ways from a folder to files. Links among folders are followed, since `..` does; a file keeps its name.

    Args:
        folder: Where they start.
    """

    def __init__(self, folder: Path) -> None:
        self._start = folder.resolve()
        self._ways: dict[Path, Path] = {}

    def __call__(self, path: Path) -> str:
        """The way to a file, with `/`."""
        folder = path.parent
        if folder not in self._ways:
            self._ways[folder] = Path(os.path.relpath(folder.resolve(), self._start))
        return (self._ways[folder] / path.name).as_posix()


def list_images(folder: Path) -> dict[str, Path]:
    """The image files of a folder by their name without the ending, in order; hidden ones are left out.

    Links count, those that lead nowhere too: that they do is told when the files are looked for.

    Raises:
        InputError: The folder cannot be listed, or two files differ in their ending only.
    """
    found: dict[str, Path] = {}
    for file in sorted(_entries(folder)):
        if not is_volume(file):
            continue
        other = found.setdefault(volume_name(file), file)
        if other is not file:
            message = f"'{other.name}' and '{file.name}' in '{folder}' differ in their ending only; remove one of them"
            raise InputError(message)
    return found


def list_folders(folder: Path) -> list[Path]:
    """Folders within a folder, in order; hidden ones are left out.

    Raises:
        InputError: The folder cannot be listed.
    """
    try:
        with os.scandir(folder) as entries:
            return sorted(folder / e.name for e in entries if e.is_dir() and not e.name.startswith("."))
    except OSError as error:
        message = f"the folder '{folder}' cannot be listed: {error.strerror or error}"
        raise InputError(message) from error


def misspelt(given: Iterable[object], known: Sequence[str]) -> Mapping[str, str]:
    """Words that are not known but look like one that is, with that one."""
    found = {}
    for word in given:
        if word in known:
            continue
        near = difflib.get_close_matches(str(word).strip().lower(), known, n=1, cutoff=LIKENESS)
        if near:
            found[str(word)] = near[0]
    return found


def _entries(folder: Path) -> list[Path]:
    try:
        with os.scandir(folder) as entries:
            return [
                folder / entry.name
                for entry in entries
                if not entry.name.startswith(".") and (entry.is_file() or entry.is_symlink()) and not entry.is_dir()
            ]
    except OSError as error:
        message = f"the folder '{folder}' cannot be listed: {error.strerror or error}"
        raise InputError(message) from error


def _plain_folder(folder: Path) -> Path:
    """The same folder without `..`, if it is the same."""
    if ".." not in folder.parts:
        return folder
    plain = Path(os.path.normpath(folder))
    try:
        return plain if plain.samefile(folder) else folder
    except (OSError, ValueError):
        return folder
