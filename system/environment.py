"""The environment variables that users of this project set: MODEL_DIR, OUTPUT_DIR and HF_CACHE, read here only."""

from __future__ import annotations

import os


def from_environment(name: str) -> str:
    """The variable's value, or an empty string where it is not set."""
    return os.environ.get(name, "").strip()
