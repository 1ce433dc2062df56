"""Full memory, of the machine or of a GPU: which errors say so, and what they say."""

from __future__ import annotations

import re

# RuntimeErrors: torch has no class of its own for the machine's memory, and the first is also that of a GPU
FULL = re.compile(r"[\w ]*out of memory|can't allocate memory: you tried to allocate \d+ bytes", re.IGNORECASE)


def full_memory(error: BaseException) -> str:
    """What a library says when it gets no memory, in a few words; empty for any other error."""
    found = FULL.search(str(error)) if isinstance(error, RuntimeError | MemoryError) else None
    if found:
        return found[0].strip()
    first = next(iter(str(error).splitlines()), "")
    return first or type(error).__name__ if isinstance(error, MemoryError) else ""
