"""Settings of a training program: a dataclass, changed by `key=value` arguments."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields
from typing import Any, TypeVar

Settings = TypeVar("Settings")


def read_settings(kind: type[Settings], overrides: Iterable[str]) -> Settings:
    """Raises ValueError for an unknown key or a value of another type."""
    defaults: dict[str, Any] = {field.name: field.default for field in fields(kind)}  # type: ignore[arg-type]
    values: dict[str, Any] = {}
    for override in overrides:
        key, _, text = override.partition("=")
        if key not in defaults:
            raise ValueError(f"{key} is no setting, expected one of {', '.join(defaults)}")
        values[key] = type(defaults[key])(text)
    return kind(**values)
