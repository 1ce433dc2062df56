"""Reads a YAML file of settings. Every value stays the text that the user wrote: `training/config.py` knows its type.

With YAML's own types `output_dir: 2026` would be a number, and `2026-03-01` a date. Aliases (`*name`) and deep nesting
are refused: settings need neither, and with them a short file can describe a huge value.
"""

from __future__ import annotations

import os
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import yaml

from system.untrusted import require_regular
from training.setting_values import ConfigError, shown

LARGEST = 100_000  # bytes; for a longer text YAML's reader takes many seconds
DEEPEST = 8  # levels; settings have four
EXPECTED = "--config takes a YAML file, such as configs/v3.yaml"
EMPTY = ("", "~", "null", "Null", "NULL")

Values = dict[str, Any]  # keys to text, None, lists and Values


def read_settings(path: Path) -> Values:
    """The keys and values of a file. With `base: OTHER.yaml`, those of that file, in the same folder, with the changes
    of this one. Raises ConfigError for a file that cannot be read or is not valid YAML, and for a loop of bases."""
    return _read(path, ())


def parse_yaml(text: str, name: str) -> Any:
    """The content of a YAML text, with its values as text. `name` says in messages where it is from. Raises
    ConfigError."""
    try:
        return yaml.load(text, _TextLoader)
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # the last two from characters that do not exist
        raise ConfigError(f"{name} is not valid YAML: {_in_one_line(error)}") from error


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


class _TextLoader(yaml.BaseLoader):
    """Leaves every scalar as text, but a plain empty one or `null`, which is None. Raises YAMLError for aliases, keys
    that are there twice, and more than DEEPEST levels."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise _problem("aliases (*name) are not supported: write the value out", self.peek_event().start_mark)
        self.depth += 1
        if self.depth > DEEPEST:
            raise _problem(f"more than {DEEPEST} levels", self.peek_event().start_mark)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_scalar(self, node: yaml.ScalarNode) -> Any:
        text = super().construct_scalar(node)
        return None if node.style is None and text in EMPTY else text

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        values: dict[Hashable, Any] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise _problem("a key is a list or a section, expected a word", key.start_mark)
            if key.value in values:
                raise _problem(f"the key {shown(key.value)} is there twice", key.start_mark)
            values[key.value] = self.construct_object(value, deep=True)
        return values


def _problem(text: str, mark: Any) -> yaml.YAMLError:
    return yaml.MarkedYAMLError(problem=text, problem_mark=mark)


def _in_one_line(error: Exception) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark:
        mark = error.problem_mark
        return f"{error.problem} (line {mark.line + 1}, column {mark.column + 1})"
    return " ".join(str(error).split())
