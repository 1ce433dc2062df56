"""Checkpoints of a run: folders that appear whole or not at all. A run resumes from the newest one."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile

import torch
import yaml

from system.command import UserError
from system.files import folder_written_whole, sync
from training.config import RENAMED, ConfigError


class CheckpointError(UserError):
    """A checkpoint could not be written or read. The message says where and why."""


STATE = "state.pt"
# state keys of earlier versions
RENAMED_STATE = {"average": "ema", "companions": "auxiliary", "place": "clips_seen"}
# a resumed run may change how long it runs, where, on how many GPUs, and what it reports
FREE_TO_CHANGE = (
    *("steps", "output_dir", "hf_cache", "log_every", "validate_every", "save_every", "keep", "compile", "cuda_graph"),
    *("batch_size", "accumulate", "activation_checkpointing", "data.workers", "losses.asr_cache"),
)


def save_checkpoint(folder: Path, step: int, state: dict[str, Any], keep: int, best: int = 0) -> None:
    """Writes `folder/step_0001000/state.pt` under another name, renames it, and deletes all checkpoints but the newest
    `keep` and that of the step `best`. Raises CheckpointError if it cannot be written; older ones stay as they are."""
    target = folder / f"step_{step:07}"
    for left in folder.glob(".step_*.partial"):  # a run was killed while it wrote this
        shutil.rmtree(left)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with folder_written_whole(target) as partial:
            with (partial / STATE).open("wb") as file:
                torch.save(state, file)
            sync(partial / STATE)
            shutil.rmtree(target, ignore_errors=True)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError of its writer
        raise CheckpointError(
            f"{target} cannot be written ({error}): see to the disk; the checkpoint before it is kept"
        ) from error
    delete_old(folder, keep, best)


def delete_old(folder: Path, keep: int, best: int) -> None:
    """Deletes all checkpoints but the newest `keep` and that of the step `best`, and unfinished ones of killed runs."""
    for old in set(folder.glob("step_*")) - set(checkpoints(folder)[-keep:]) - {folder / f"step_{best:07}"}:
        shutil.rmtree(old)


def load_newest(folder: Path) -> dict[str, Any] | None:
    """The state of the newest checkpoint, on the CPU, or None. Raises CheckpointError if it is damaged."""
    found = checkpoints(folder)
    if not found:
        return None
    try:
        with ZipFile(found[-1] / STATE) as archive:  # torch writes checksums but does not check them
            if damaged := archive.testzip():
                raise BadZipFile(f"the checksum of {damaged} is wrong")
        state = torch.load(found[-1] / STATE, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, BadZipFile, pickle.UnpicklingError) as error:
        raise CheckpointError(
            f"{found[-1]} cannot be read ({error}): delete this folder to resume from the checkpoint before it"
        ) from error
    return {RENAMED_STATE.get(key, key): value for key, value in state.items()}


def checkpoints(folder: Path) -> list[Path]:
    """The complete checkpoints in `folder`, oldest first."""
    return sorted(state.parent for state in folder.glob(f"step_*/{STATE}"))


def check_same_run(before: str, now: str) -> None:
    """Raises ConfigError that names the keys in which a checkpoint's configuration and this run's differ, both YAML.
    Keys in FREE_TO_CHANGE may differ; the checkpoint may have the keys of an earlier version."""
    old, new = (
        {RENAMED.get(key, key): value for key, value in _flat(yaml.safe_load(text)).items()} for text in (before, now)
    )
    differing = [
        f"{key} ({old.get(key)!r} there, {new.get(key)!r} now)"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key) and key not in FREE_TO_CHANGE
    ]
    if differing:
        raise ConfigError(
            f"output_dir {new['output_dir']} has checkpoints of another configuration: {', '.join(differing)}; "
            "choose another output_dir, or the same values"
        )


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat
