"""Runs commands in forked children, in which everything is imported already."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable

import torch


def forked(command: Callable[[], int], first: Callable[[], object] = lambda: None) -> int:
    """Forks a child that calls `first` and then the command. Returns the child's process id."""
    child = os.fork()
    if child:
        return child
    status = 70
    try:
        torch.set_num_threads(1)  # the parent's other threads do not exist in the child
        first()
        status = command()
    except BaseException:  # noqa: BLE001 (the child must not go on with the parent's tests)
        traceback.print_exc()
    finally:
        os._exit(status)


def exit_status(child: int) -> int:
    """The child's exit status, or minus the number of the signal that killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def without_rights() -> None:
    """Root can read and write everything. If the tests run as root, this process becomes another user."""
    if os.geteuid() == 0:
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
