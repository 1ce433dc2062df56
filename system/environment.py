"""The environment: MODEL_DIR, OUTPUT_DIR and HF_CACHE, which users of this project set, and the home folder."""

from __future__ import annotations

import os


def from_environment(name: str) -> str:
    """The variable's value, a path in which ~ is the home folder, or an empty string where it is not set."""
    return expand_home(os.environ.get(name, "").strip())


def expand_home(path: str) -> str:
    """A path with the home folder for a ~ at its beginning. Shells leave it in `--encoder=~/a` and `key=~/a`."""
    return os.path.expanduser(path)  # noqa: PTH111 (pathlib changes `x/`, and raises an error without a home)
