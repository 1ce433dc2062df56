"""Checkpoints of a run: folders that appear whole or not at all, the newest of them to go on from."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
import yaml

from training.config import ConfigError


class CheckpointError(Exception):
    """A checkpoint could not be written. The message says where and why."""


FREE_TO_CHANGE = ("steps", "output_dir", "hf_cache", "log_every", "validate_every", "save_every", "keep", "compile")


def save_checkpoint(folder: Path, step: int, state: dict[str, Any], keep: int) -> None:
    """Writes `folder/step_0001000/state.pt` beside, renames it into place and deletes all but the newest `keep`.
    Raises CheckpointError where it cannot be written; the checkpoints before it stay as they are."""
    target = folder / f"step_{step:07}"
    partial = folder / f".step_{step:07}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        torch.save(state, partial / "state.pt")
        shutil.rmtree(target, ignore_errors=True)
        partial.rename(target)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError of its writer
        shutil.rmtree(partial, ignore_errors=True)
        raise CheckpointError(
            f"{target} cannot be written ({error}): see to the disk; the one before is kept"
        ) from error
    for old in checkpoints(folder)[:-keep]:
        shutil.rmtree(old)


def load_newest(folder: Path) -> dict[str, Any] | None:
    """The state of the newest checkpoint, on the CPU; None where there is none."""
    found = checkpoints(folder)
    return torch.load(found[-1] / "state.pt", map_location="cpu", weights_only=True) if found else None


def checkpoints(folder: Path) -> list[Path]:
    """The whole checkpoints in `folder`, the oldest first."""
    return sorted(folder.glob("step_*"))


def check_same_run(before: str, now: str) -> None:
    """Raises ConfigError with the keys that differ between a checkpoint's configuration and this run's, both YAML.
    How long to run, where, and what to report may change."""
    old, new = (_flat(yaml.safe_load(text)) for text in (before, now))
    differing = [
        f"{key} ({old.get(key)!r} there, {new.get(key)!r} now)"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key) and key not in FREE_TO_CHANGE
    ]
    if differing:
        raise ConfigError(
            f"output_dir {new['output_dir']} holds checkpoints of another configuration: {', '.join(differing)}; "
            "give another output_dir, or the same values"
        )


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat
