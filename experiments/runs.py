"""What the experiments share: start a program of this repository, read a run's metrics, show repeated measurements.

Nothing heavy is imported here: `experiments.merge_speed` measures the memory of the programs it starts, and
a child's peak memory includes its parent's size.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import TextIO, TypeVar

from system.command import UserError, exit_status

ROOT = Path(__file__).parent.parent
DEMO = ROOT / "data" / "demo"
SHOWN = 3000  # characters of a failed program's output
TRAIN = ("train_encoder.py",)
Item = TypeVar("Item")
Result = TypeVar("Result")


class ExperimentError(UserError):
    """An experiment cannot go on. The message says why."""


def experiment_status(experiment: Callable[[], int], left_behind: str = "nothing is kept") -> int:
    """The exit status of an experiment: 2, and one sentence on standard error, if it fails. `left_behind` ends the
    sentence after Ctrl-C or an error of the operating system."""
    return exit_status(experiment, left_behind, left_behind)


def run(*arguments: str, environment: Mapping[str, str] | None = None) -> str:
    """Runs `python ARGUMENTS` in the repository's root, and returns what it wrote to standard output.

    `environment` is added to this process's own. Raises ExperimentError, with the end of its standard error, if the
    program's status is not 0.
    """
    ended = _started(arguments, environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    if ended.returncode:
        raise _failed(arguments, ended.returncode, f"it ends with:\n{ended.stderr[-SHOWN:]}")
    return ended.stdout


def run_shown(*arguments: str, log: Path | None = None, environment: Mapping[str, str] | None = None) -> None:
    """The same for a program whose output a person reads: on the terminal, or in the file `log`."""
    if not log:
        ended = _started(arguments, environment)
    else:
        with log.open("w", encoding="utf-8") as file:
            ended = _started(arguments, environment, stdout=file, stderr=file)
    if ended.returncode:
        raise _failed(arguments, ended.returncode, f"see {log}" if log else "see its output above")


def _started(
    arguments: Sequence[str],
    environment: Mapping[str, str] | None,
    stdout: TextIO | int | None = None,
    stderr: TextIO | int | None = None,
) -> subprocess.CompletedProcess[str]:
    everything = os.environ | (environment or {})
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=ROOT, env=everything, check=False, text=True, stdout=stdout, stderr=stderr)


def _failed(arguments: Sequence[str], status: int, output: str) -> ExperimentError:
    return ExperimentError(f"`python {' '.join(arguments)}` ended with status {status}; {output}")


def on_gpus(task: Callable[[Item, str], Result], items: Sequence[Item], at_once: int = 1) -> list[Result]:
    """Results of `task(item, gpu)` for every item, `at_once` of them at a time on each GPU.

    `gpu` is a name as CUDA_VISIBLE_DEVICES takes it, empty if there is no GPU.
    """
    import torch

    visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(torch.cuda.device_count())))
    free = SimpleQueue[str]()
    for gpu in visible.split(",") * at_once:
        free.put(gpu)

    def on_free_gpu(item: Item) -> Result:
        gpu = free.get()
        try:
            return task(item, gpu)
        finally:
            free.put(gpu)

    with ThreadPoolExecutor(free.qsize()) as threads:
        return list(threads.map(on_free_gpu, items))


def only(gpu: str) -> dict[str, str]:
    """The environment in which a program sees this GPU alone; all of them if no name is given."""
    return {"CUDA_VISIBLE_DEVICES": gpu} if gpu else {}


def named(text: str) -> tuple[str, str]:
    """`NAME=PATH` as (name, path)."""
    name, _, path = text.partition("=")
    if not name or not path:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=PATH, such as people=clips.parquet")
    return name, path


def training_program(trial: str, withheld: Path) -> tuple[str, ...]:
    """The program that trains: `train_encoder.py`, or a trial of trial_trainers.py."""
    return ("-m", "experiments.trial_trainers", trial, "--withheld", str(withheld)) if trial else TRAIN


def training_metrics(folder: Path) -> list[dict[str, float]]:
    """The training lines of a run's metrics.jsonl, without those of its validations."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [line for line in lines if "mel" in line]


def spread(values: Sequence[float], unit: str = "", digits: int = 0) -> str:
    """`median unit (min to max)`."""
    shown = f"{statistics.median(values):.{digits}f} {unit}".rstrip()
    return f"{shown} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def require_gpu() -> None:
    """Raises ExperimentError if PyTorch finds no GPU."""
    import torch

    if not torch.cuda.is_available():
        raise ExperimentError("this experiment measures a GPU, and PyTorch finds none: run it on a machine with one")
