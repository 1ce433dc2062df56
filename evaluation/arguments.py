"""Options that the programs that evaluate have in common."""

from __future__ import annotations

import argparse
import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from system.arguments import positive
from system.device import open_device
from system.environment import from_environment

MOST_JOBS = 16  # by default


@dataclass(frozen=True, kw_only=True)
class JudgeOptions:
    """By whom and how something is judged. `without` names judges to leave out, `jobs` is the number of their
    processes, and `seed` is that of the intervals. The others are explained at `open_judges`."""

    device: torch.device
    without: Collection[str] = ()
    jobs: int = 1
    whisper: str = "base"
    language: str = "en"
    speaker_model: str = ""
    cache: str = ""
    seed: int = 0


def add_judge_options(parser: argparse.ArgumentParser, leave: Sequence[str]) -> None:
    """Options about judges, intervals and requirements. `leave` names what --without can leave out."""
    parser.add_argument(
        "--jobs", type=positive, default=default_jobs(), metavar="N", help="judge processes (default: %(default)s here)"
    )
    parser.add_argument(
        "--require", action="append", default=[], metavar="METRIC>=VALUE", help="exit with status 1 if this is not met"
    )
    parser.add_argument(
        "--without", nargs="+", default=[], choices=leave, metavar="JUDGE", help=f"leave out: {', '.join(leave)}"
    )
    parser.add_argument("--whisper", default="base", metavar="MODEL", help="name or file (default: base)")
    parser.add_argument("--language", default="en", help="the language of the speech (default: en)")
    parser.add_argument("--speaker-model", default="", metavar="SOURCE", help="ECAPA-TDNN: hub name or folder")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda if available")


def judge_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """The fields of JudgeOptions from the options of `add_judge_options` and --seed, and from HF_CACHE."""
    names = ("without", "jobs", "whisper", "language", "speaker_model", "seed")
    given = {name: getattr(arguments, name) for name in names}
    return {"device": open_device(arguments.device or ""), "cache": from_environment("HF_CACHE"), **given}


def default_jobs() -> int:
    """Half of the cores that this process may use, at most MOST_JOBS: each process keeps the judges' networks in
    memory, about 1 GB."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(MOST_JOBS, max(1, cores // 2))
