"""Types of command-line arguments. argparse makes a usage error of their ValueError."""

from __future__ import annotations

import math


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


def seed(text: str) -> int:
    """An argument that seeds random numbers, from 0 to 2^63 - 1: numpy takes no others, and torch none above."""
    value = whole_number(text)
    if value >= 1 << 63:
        raise ValueError(text)
    return value


def positive_number(text: str) -> float:
    """An argument that is more than 0, and finite."""
    value = float(text)
    if not 0 < value < math.inf:
        raise ValueError(text)
    return value
