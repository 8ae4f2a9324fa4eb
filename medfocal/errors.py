"""Errors a user can mend. Each carries the exit code of the command that meets it."""

from __future__ import annotations


class MedfocalError(Exception):
    """Something outside the program is wrong; the message says what, where and what to do."""

    exit_code = 1


class ConfigError(MedfocalError):
    """A configuration or an override that cannot be used."""

    exit_code = 2


class InputError(MedfocalError):
    """A file or folder that is missing, unreadable or unusable."""

    exit_code = 3


class GeometryError(InputError):
    """Two volumes that should share a grid do not, or a grid makes no sense."""


class DatasetError(InputError):
    """A set of cases that cannot be trained on or evaluated."""


class ModelError(MedfocalError):
    """A model folder that is incomplete, altered or of another version."""

    exit_code = 4


class ResourceError(MedfocalError):
    """Not enough memory, disk space or permission to go on."""

    exit_code = 5
