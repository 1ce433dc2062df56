"""Reads a YAML file of settings. Every value stays the text that the user wrote; `training/config.py` converts it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from system.untrusted import require_regular
from system.yaml_text import parse_yaml_text
from training.setting_values import ConfigError, shown

LARGEST = 100_000  # bytes; for a longer text YAML's reader takes many seconds
EXPECTED = "--config takes a YAML file, such as configs/v3.yaml"

Values = dict[str, Any]  # keys to text, None, lists and Values


def read_settings(path: Path) -> Values:
    """The keys and values of a file. With `base: OTHER.yaml`, those of that file, in the same folder, with the changes
    of this one. Raises ConfigError for a file that cannot be read or is not valid YAML, and for a loop of bases."""
    return _read(path, ())


def parse_yaml(text: str, name: str) -> Any:
    """The content of a YAML text, with its values as text. `name` says in messages where it is from. Raises
    ConfigError."""
    try:
        return parse_yaml_text(text)
    except ValueError as error:
        raise ConfigError(f"{name} is not valid YAML: {error}") from error


def merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> Values:
    """`base` with its values replaced by those of `changes`, section by section."""
    both = dict(base)
    for key, value in changes.items():
        inner = both.get(key)
        both[key] = merged(inner, value) if isinstance(inner, dict) and isinstance(value, dict) else value
    return both


def _read(path: Path, readers: tuple[str, ...]) -> Values:
    values = parse_yaml(_content(path), str(path))
    if values is None:
        return {}
    if not isinstance(values, dict):
        kind = "a list" if isinstance(values, list) else "a single value"
        raise ConfigError(f"{path} holds {kind}, expected lines of key: value")
    base = values.pop("base", None)
    if not base:
        return values
    if not isinstance(base, str):
        raise ConfigError(f"{path}: base is {shown(base)}, expected the name of a YAML file in the same folder")
    readers = (*readers, os.path.realpath(path))  # Path.resolve raises an error for a link to itself
    other = path.parent / base
    if "\0" not in base and os.path.realpath(other) in readers:
        raise ConfigError(f"{path}: base leads back to {other}, expected another file, which has no such base itself")
    return merged(_read(other, readers), values)


def _content(path: Path) -> str:
    try:
        if not str(path).startswith("/dev/fd/"):  # what a shell makes of <(command)
            require_regular(path)
        with path.open("rb") as file:
            content = file.read(LARGEST + 1)
        if len(content) > LARGEST:
            raise ConfigError(f"{path} is too large for settings: {EXPECTED}")
        return content.decode("utf-8-sig")
    except FileNotFoundError:
        raise ConfigError(f"{path} does not exist: {EXPECTED}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{path} is not UTF-8 text ({error.reason} at byte {error.start}): save it as UTF-8"
        ) from error
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = (error.strerror if isinstance(error, OSError) else None) or error
        raise ConfigError(f"{shown(str(path))} cannot be read ({reason}): {EXPECTED}") from error
