"""`plan.yaml`: proposals as settings of `medfocal train`, each with its reason above it, written and read back."""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medfocal.errors import ConfigError
from medfocal.files import atomic_write, plain

if TYPE_CHECKING:
    from medfocal.data.plan.proposal import Proposal  # brings scipy, and reading a plan needs none

#: A plan has a few dozen lines; what is larger is another file.
MOST_BYTES = 200_000
LINE_LENGTH = 110


def write_plan(path: Path, proposals: Sequence[Proposal], *, head: Sequence[str], data: Mapping[str, Any]) -> None:
    """Write a plan, atomically.

    Args:
        path: The file.
        proposals: In the order to be written; those of one group stand together.
        head: Paragraphs for the top.
        data: Settings of the group `data`, which say where the dataset is; what is proposed of them wins.
    """
    lines = [line for paragraph in head for line in _comment(paragraph, "")]
    proposed = {proposal.key for proposal in proposals}
    for proposal in proposals:
        if "." not in proposal.key:
            lines += [*_comment(proposal.reason, ""), f"{proposal.key}: {_yaml(proposal.value)}"]
    if data.get("fold") is not None and "fold" not in proposed:
        lines.append(f"fold: {_yaml(data['fold'])}")
    # data.fold is what the fold of a training is, so that fold=0,1,2 trains all of them by one plan.
    own = {key: value for key, value in data.items() if key != "fold" and f"data.{key}" not in proposed}
    groups = dict.fromkeys(("data", *(proposal.key.split(".")[0] for proposal in proposals if "." in proposal.key)))
    for group in groups:
        lines.append(f"{group}:")
        if group == "data":
            lines += [f"  {key}: {_yaml(value)}" for key, value in own.items()]
        for proposal in proposals:
            first, _, name = proposal.key.partition(".")
            if first == group and name:
                lines += [*_comment(proposal.reason, "  "), f"  {name}: {_yaml(proposal.value)}"]
    with atomic_write(path) as file:
        file.write("\n".join(lines) + "\n")


def _comment(text: str, indent: str) -> list[str]:
    """Lines of a comment; a name out of a dataset can neither end it nor hide in it."""
    words = "".join(letter if letter.isprintable() else " " for letter in text).split()
    return textwrap.wrap(" ".join(words), LINE_LENGTH, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# ")


def _yaml(value: Any) -> str:
    """JSON, which is YAML as well."""
    return json.dumps(plain(value), ensure_ascii=False)


def read_plan(path: Path, leaves: Collection[str] = ()) -> dict[str, Any]:
    """Read a plan: plain settings, such as `{"sampling.patch_size": [32, 32, 32]}`.

    Args:
        path: A YAML file that was written by `medfocal plan` or by hand.
        leaves: Settings whose value may be a mapping, such as "data.classes"; others are groups.

    Raises:
        ConfigError: It cannot be read, is no mapping of names to settings, or holds more than plain values.
    """
    from omegaconf import DictConfig, OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError  # type: ignore[import-untyped]

    where = f"plan '{path}'"
    text = _read_text(path, where)
    try:
        found = OmegaConf.create(text) if text.strip() else OmegaConf.create({})
    except (YAMLError, OmegaConfBaseException, ValueError, RecursionError) as error:
        message = f"{where} is not YAML that could be read: {' '.join(str(error).split())}"
        raise ConfigError(message) from error
    if not isinstance(found, DictConfig):
        message = f"{where} holds no settings; names and values such as 'sampling: {{patch_size: [32, 32, 32]}}' do"
        raise ConfigError(message)
    values = OmegaConf.to_container(found, resolve=False)
    settings = dict(_settings(values, "", leaves))
    for key, value in settings.items():
        _refuse_words(where, key, value)
    return settings


def _read_text(path: Path, where: str) -> str:
    try:
        if path.stat().st_size > MOST_BYTES:
            message = f"{where} has {path.stat().st_size} bytes; a plan has no more than {MOST_BYTES}"
            raise ConfigError(message)
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:  # a name with a zero byte and undecodable text are ValueErrors
        message = f"{where} cannot be read: {getattr(error, 'strerror', None) or error}"
        raise ConfigError(message) from error
    # Names for parts, used again and again, make a small file enormous.
    uncommented = re.sub(r"(?m)^\s*#.*$", "", text)
    if re.search(r"(?:^|[\s\[{,:-])[&*][^\s\]},]", uncommented):
        message = f"{where} uses YAML's & and *; a plan states each value where it belongs"
        raise ConfigError(message)
    return text


def _settings(values: Any, prefix: str, leaves: Collection[str]) -> Sequence[tuple[str, Any]]:
    """Every setting with its value; an empty mapping is one."""
    found: list[tuple[str, Any]] = []
    for key, value in values.items():
        inner = f"{prefix}{key}"
        is_group = isinstance(value, dict) and value and inner not in leaves
        found += _settings(value, f"{inner}.", leaves) if is_group else [(inner, value)]
    return found


def _refuse_words(where: str, key: str, value: Any) -> None:
    if not all(re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", part) for part in key.split(".")):
        message = f"{where}: {key!r} cannot be the name of a setting of a plan"
        raise ConfigError(message)
    if key == "plan":
        message = f"{where} names another plan; give one"
        raise ConfigError(message)
    if "${" in json.dumps(plain(value), default=str):
        message = f"{where}: {key} refers to another value (${{…}}); a plan states values"
        raise ConfigError(message)
    if not _is_plain(value) and not (isinstance(value, dict) and value and all(map(_is_plain, value.values()))):
        message = f"{where}: {key} must be a number, text, true, false, null or a list of these, got {value!r}"
        raise ConfigError(message)


def _is_plain(value: Any) -> bool:
    if isinstance(value, list):
        return all(_is_plain(item) for item in value)
    return value is None or isinstance(value, bool | int | float | str)
