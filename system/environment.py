"""The environment variables that users of this project set: MODEL_DIR, OUTPUT_DIR and HF_CACHE, read here only."""

from __future__ import annotations

import os


def from_environment(name: str) -> str:
    """The variable's value, a path in which ~ is the home folder, or an empty string where it is not set."""
    return os.path.expanduser(os.environ.get(name, "").strip())  # noqa: PTH111 (pathlib raises an error without a home)
