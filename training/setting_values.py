"""One setting from the text that the user wrote, by its type: a number, a switch, a text or a path."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Annotated, Any

from system.command import UserError
from system.environment import expand_home

PROJECT = Path(__file__).parents[1]
# In paths ~ is the home folder. What a run reads is looked up in the project's folder if it is not in the current one.
InputPath = Annotated[str, "read"]
OutputPath = Annotated[str, "written"]

LARGEST = 10**9  # of whole numbers; a seed may have 63 bits
SWITCHES = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
EXPECTED = {int: "a whole number", float: "a number", bool: "true or false"}


class ConfigError(UserError):
    """A configuration that cannot be run. The message names the key, its value and what was expected."""


def convert(value: Any, kind: Any, name: str) -> Any:
    """The value of the setting `name` as `kind`: int, float, bool, str, InputPath or OutputPath. The value given is a
    text, or has that type already; None is an empty text. Raises ConfigError for anything else, for numbers that are
    not finite or too large, and for texts that no file name can have."""
    if isinstance(value, list | dict):
        raise ConfigError(f"{name} is {shown(value)}, expected {EXPECTED.get(kind, 'text')}")
    text = "" if value is None else str(value)
    if kind is int:
        return _whole_number(text, name)
    if kind is float:
        return _number(text, name)
    if kind is bool:
        if text.lower() not in SWITCHES:
            raise _unexpected(name, text, bool)
        return SWITCHES[text.lower()]
    _check_text(text, name)
    if kind == InputPath:
        return in_project(expand_home(text))
    return expand_home(text) if kind == OutputPath else text


def in_project(path: str) -> str:
    """A relative path that is not in the current folder, but in the project's, as a path to the latter. So a program
    that is started in another folder finds the files that the project's configurations name."""
    there = os.path.join(PROJECT, path)  # noqa: PTH118 (pathlib changes `x/`)
    return there if path and not exists(path) and exists(there) else path


def exists(path: str) -> bool:
    """Whether there is a file or a folder. False also for texts that no file can have as its name."""
    return os.path.lexists(path)


def shown(value: Any) -> str:
    """A value in a message: a number as it is, anything else in quotes, and only the beginning of a long one."""
    if value is None:
        return "empty"
    if isinstance(value, str) and value[:1].isdigit() and len(value) < 30:
        return value
    text = repr(value)
    return text if len(text) <= 120 else f"{text[:100]}...{text[-1]}"


def _whole_number(text: str, name: str) -> int:
    try:
        number = int(text)
    except ValueError:
        raise _unexpected(name, text, int) from None
    limit = 2**63 - 1 if name == "seed" else LARGEST
    if abs(number) > limit:
        raise ConfigError(f"{name} is {shown(text)}, expected {limit} or less")
    return number


def _number(text: str, name: str) -> float:
    try:
        number = float(text)
    except ValueError:
        raise _unexpected(name, text, float) from None
    if not math.isfinite(number):
        raise ConfigError(f"{name} is {shown(text)}, expected a finite number")
    return number


def _check_text(text: str, name: str) -> None:
    try:
        usable = b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:  # half of a surrogate pair
        usable = False
    if not usable:
        raise ConfigError(f"{name} is {shown(text)}, expected characters that a file name can have")


def _unexpected(name: str, text: str, kind: type) -> ConfigError:
    return ConfigError(f"{name} is {shown(text)}, expected {EXPECTED[kind]}")
