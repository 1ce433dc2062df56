"""Ranks of a run as processes of their own, quickly started: they are forked from one that has imported everything."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import socket
import sys
from multiprocessing.process import BaseProcess
from pathlib import Path

STARTS = itertools.count()
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["train_encoder", "torch._dynamo"])  # the second is imported by the first optimizer


def start(ranks: int, arguments: list[str], log: Path, change: str = "") -> list[BaseProcess]:
    """Starts `train_encoder.py` with these arguments as torchrun would. All write to `log`. `change` is code that runs
    before, with `rank` at hand."""
    port = _free_port()
    processes: list[BaseProcess] = []
    for rank in range(ranks):
        environment = {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(ranks),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "TORCHELASTIC_RUN_ID": "tests",
        }
        process = CONTEXT.Process(target=_run, args=(environment, arguments, log, change))
        process.start()
        processes.append(process)
    return processes


def _free_port() -> int:
    """One below those that the system gives to whoever asks for any, so that nobody else is given it meanwhile."""
    while True:
        port = 20000 + (101 * os.getpid() + next(STARTS)) % 10000
        with socket.socket() as tried:
            if tried.connect_ex(("127.0.0.1", port)):
                return port


def statuses(processes: list[BaseProcess], within: float) -> list[int | None]:
    """What they exit with, minus the signal's number where one ended it; None for one that runs on."""
    for process in processes:
        process.join(within)
    return [process.exitcode for process in processes]


def _run(environment: dict[str, str], arguments: list[str], log: Path, change: str) -> None:
    import torch

    import train_encoder

    with log.open("a") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    os.environ.update(environment)
    torch.set_num_threads(1)
    exec(change, {"rank": int(environment["RANK"])})
    sys.argv = ["train_encoder.py", *arguments]
    sys.exit(train_encoder.main())
