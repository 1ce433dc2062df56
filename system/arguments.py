"""Types of command-line arguments. argparse makes a usage error of their ValueError."""

from __future__ import annotations


def whole_number(text: str) -> int:
    """An argument that is 0 or more."""
    value = int(text)
    if value < 0:
        raise ValueError(text)
    return value


def positive(text: str) -> int:
    """An argument that is 1 or more."""
    value = int(text)
    if value < 1:
        raise ValueError(text)
    return value
