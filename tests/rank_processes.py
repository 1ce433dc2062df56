"""Ranks of a run, each a process. They start quickly: they are forked from a process that has imported everything."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import socket
import sys
import tempfile
import time
from collections.abc import Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path

from tests.network_hosts import Host
from tests.waiting import LIMIT, until

STARTS = itertools.count()
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["train_encoder", "torch._dynamo"])  # the first optimizer imports the second


def start(
    ranks: int, arguments: list[str], log: Path, change: str = "", hosts: Sequence[Host] = ()
) -> list[BaseProcess]:
    """Starts `train_encoder.py` with these arguments as torchrun does, each rank on its host if `hosts` are given. All
    ranks write to `log`. When all of them are ready, each first runs the code `change`, which can use `rank`; so no
    limit counts the start of the processes."""
    ready = Path(tempfile.mkdtemp(dir=log.parent))
    address, port = hosts[0].name if hosts else "127.0.0.1", free_port()
    processes: list[BaseProcess] = []
    for rank in range(ranks):
        environment = torchrun_environment(rank, ranks, address, port)
        process = CONTEXT.Process(
            target=_run, args=(environment, arguments, log, change, ready, hosts[rank] if hosts else None)
        )
        process.start()
        processes.append(process)
    return processes


def torchrun_environment(rank: int, ranks: int, address: str, port: int) -> dict[str, str]:
    """What torchrun tells a rank on a host of its own."""
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(ranks),
        "MASTER_ADDR": address,
        "MASTER_PORT": str(port),
        "TORCHELASTIC_RUN_ID": "tests",
    }


def free_port() -> int:
    """A free port below those that the system gives to programs that ask for any: so no other program gets it."""
    while True:
        port = 20000 + (101 * os.getpid() + next(STARTS)) % 10000
        with socket.socket() as tried:
            if tried.connect_ex(("127.0.0.1", port)):
                return port


def statuses(processes: list[BaseProcess]) -> list[int | None]:
    """The exit status of each, minus the signal's number if a signal ended it; None if it still runs after LIMIT. A
    process that still runs is killed."""
    ends = time.monotonic() + LIMIT
    for process in processes:
        process.join(max(0, ends - time.monotonic()))
    found = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
    return found


def _run(
    environment: dict[str, str], arguments: list[str], log: Path, change: str, ready: Path, host: Host | None
) -> None:
    import torch

    import train_encoder

    with log.open("a") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    os.environ.update(environment)
    torch.set_num_threads(1)
    if host:
        host.enter()
    (ready / environment["RANK"]).touch()
    until(lambda: len(list(ready.iterdir())) == int(environment["WORLD_SIZE"]))
    exec(change, {"rank": int(environment["RANK"])})
    sys.argv = ["train_encoder.py", *arguments]
    sys.exit(train_encoder.main())
