"""Checkpoints of a run: folders that appear whole or not at all. A run resumes from the newest one."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import torch

from system.command import UserError
from system.files import folder_written_whole, sync
from system.torch_files import TorchFileError, load_torch_file


class CheckpointError(UserError):
    """A checkpoint could not be written or read. The message says where and why."""


STATE = "state.pt"
NAME = re.compile("step_[0-9]{7,15}")
# state keys of earlier versions
RENAMED_STATE = {"average": "ema", "companions": "auxiliary", "place": "clips_seen"}
# what a checkpoint holds at least
PARTS = {"step": int, "config": str, "clips_seen": int, **dict.fromkeys(("trained", "ema", "quantizer", "best"), dict)}


def save_checkpoint(folder: Path, step: int, state: dict[str, Any], keep: int, best: int = 0) -> None:
    """Writes `folder/step_0001000/state.pt` under another name, renames it, and deletes all checkpoints but the newest
    `keep` and that of the step `best`. Raises CheckpointError if it cannot be written; older ones stay as they are."""
    target = folder / f"step_{step:07}"
    for left in folder.glob(".step_*.partial"):  # a run was killed while it wrote this
        if not left.is_symlink():
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
    """Deletes all checkpoints but the newest `keep` and that of the step `best`, and unfinished ones of killed runs.
    What has another name than a checkpoint, such as a copy that somebody made, stays."""
    for old in set(_numbered(folder)) - set(checkpoints(folder)[-keep:]) - {folder / f"step_{best:07}"}:
        shutil.rmtree(old)


def load_newest(folder: Path) -> dict[str, Any] | None:
    """The state of the newest checkpoint, on the CPU, or None. Raises CheckpointError if it is damaged."""
    found = checkpoints(folder)
    if not found:
        return None
    try:
        state = load_torch_file(found[-1] / STATE, checksums=True)
        if not isinstance(state, dict):
            raise TorchFileError(f"it holds a {type(state).__name__}")
        state = {RENAMED_STATE.get(key, key): value for key, value in state.items()}
        if wrong := [name for name, kind in PARTS.items() if not isinstance(state.get(name), kind)]:
            raise TorchFileError(f"it has no {' or '.join(wrong)}")
    except TorchFileError as error:
        raise CheckpointError(
            f"{found[-1]} cannot be read ({error}): delete this folder to resume from the checkpoint before it"
        ) from error
    return state


def checkpoints(folder: Path) -> list[Path]:
    """The complete checkpoints in `folder`, oldest first."""
    return [path for path in _numbered(folder) if (path / STATE).exists()]


def _numbered(folder: Path) -> list[Path]:
    """The folders that have a checkpoint's name, in the order of their steps."""
    found = [path for path in folder.glob("step_*") if NAME.fullmatch(path.name) and path.is_dir()]
    return sorted((path for path in found if not path.is_symlink()), key=_step_of)


def _step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step_"))


def newest_step(folder: Path) -> int:
    """The step of the newest complete checkpoint in `folder`, 0 if there is none."""
    found = checkpoints(folder)
    return _step_of(found[-1]) if found else 0
