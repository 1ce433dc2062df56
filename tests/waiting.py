"""Waiting for something that happens soon, with a limit that also a very busy machine keeps."""

from __future__ import annotations

import time
from collections.abc import Callable

LIMIT = 300  # seconds: what has not happened by then never will


def until(holds: Callable[[], bool]) -> None:
    """Waits until this holds. Fails if it does not hold within LIMIT."""
    ends = time.monotonic() + LIMIT
    while not holds():
        assert time.monotonic() < ends
        time.sleep(0.02)
