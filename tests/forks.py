"""Commands in forked children, everything imported, to be killed at moments that fall into their work."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable

import torch


def forked(command: Callable[[], int], first: Callable[[], object] = lambda: None) -> int:
    """Starts the command in a child process after it has called `first`. Gives the child's number."""
    child = os.fork()
    if child:
        return child
    status = 70
    try:
        torch.set_num_threads(1)  # the parent's threads do not exist here
        first()
        status = command()
    except BaseException:  # noqa: BLE001 (nothing may get out of the child into the test run)
        traceback.print_exc()
    finally:
        os._exit(status)


def exit_status(child: int) -> int:
    """What it exited with; minus the signal's number where one killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def without_rights() -> None:
    """Root may read and write everywhere, so where the tests run as root the command runs as another user."""
    if os.geteuid() == 0:
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
