"""A run that is killed, stopped, or loses a rank, and what becomes of it."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from tests.processes import start, statuses

KILLS = 30
STEPS = 6
ARGUMENTS = [
    *(f"steps={STEPS}", "save_every=1", "keep=1", "validate_every=3", "data.crop_seconds=0.15"),
    *("data.validation_seconds=0.15", "losses.feature_matching=1", "discriminator.channels=1"),
]
WITHIN = 60.0  # seconds


def state_of(folder: Path, step: int = STEPS) -> dict[str, Any]:
    return torch.load(folder / f"checkpoints/step_{step:07}/state.pt", weights_only=True)


def mel_lines(folder: Path) -> list[tuple[int, float]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line[key]) for line in lines for key in ("mel", "validation/mel") if key in line]


def differing(one: Any, other: Any, name: str = "") -> list[str]:
    """The names of everything that is not the same to the bit in two states, but for where they were written."""
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        return [d for key in one if key != "config" for d in differing(one[key], other[key], f"{name}.{key}")]
    if isinstance(one, list | tuple):
        return [d for i, (a, b) in enumerate(zip(one, other, strict=True)) for d in differing(a, b, f"{name}.{i}")]
    same = torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other
    return [] if same else [name]


def test_killed_at_random_moments_and_started_again_a_run_of_two_ranks_ends_with_the_same_bits(
    settings: Path, tmp_path: Path
) -> None:
    def command(folder: Path) -> list[str]:
        return ["--config", str(settings), f"output_dir={folder}", *ARGUMENTS]

    def finish(folder: Path) -> float:
        began = time.monotonic()
        assert statuses(start(2, command(folder), tmp_path / "log"), WITHIN) == [0, 0]
        return time.monotonic() - began

    whole = tmp_path / "whole"
    finish(whole)
    length = finish(tmp_path / "again")  # the first start took longer
    assert not differing(state_of(whole), state_of(tmp_path / "again"))

    draws = random.Random(0)
    kills = {"one": 0, "all": 0, "terminated": 0}
    runs = [tmp_path / "run0"]
    while sum(kills.values()) < KILLS:
        kind = draws.choice(list(kills))
        processes = start(2, command(runs[-1]), tmp_path / "log")
        time.sleep(draws.uniform(0.1, 0.9) * length)
        if any(process.exitcode is not None for process in processes):
            assert statuses(processes, WITHIN) == [0, 0]
            runs.append(tmp_path / f"run{len(runs)}")
            continue
        chosen = [draws.choice(processes)] if kind == "one" else processes
        for process in chosen:
            os.kill(process.pid, signal.SIGTERM if kind == "terminated" else signal.SIGKILL)
        ended = statuses(processes, WITHIN)
        assert None not in ended, "a rank goes on without the other"
        kills[kind] += ended != [0, 0]
    finish(runs[-1])
    assert min(kills.values()) > 3
    for folder in runs:
        assert differing(state_of(whole), state_of(folder)) == []
        assert differing(*(load_file(run / "encoder.safetensors") for run in (whole, folder))) == []
        assert mel_lines(folder) == mel_lines(whole)
        left = {path.name for path in (folder / "checkpoints").iterdir()}
        assert left == {path.name for path in (whole / "checkpoints").iterdir()}
