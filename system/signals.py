"""Ctrl-C and SIGTERM, at any moment of a program: one sentence, and the exit status 128 plus the signal's number.

While a program imports its libraries, a signal ends it at once (`end_on_signals`). While it works, a signal is an
exception, so what it has begun is tidied up (`RaisedSignals`). A training run finishes its step and saves its state
(`StopRequest`). A signal that is ignored, as SIGINT is in a shell's background jobs, stays ignored.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from types import FrameType
from typing import Any, NoReturn, Self

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StoppedError(Exception):
    """A signal stopped the run, and its state is saved. `status` is the exit status: 128 plus the signal's number."""

    def __init__(self, number: int, step: int):
        name = signal.Signals(number).name
        super().__init__(f"stopped by {name} after step {step}, which is saved")
        self.status = 128 + number


def end_on_signals() -> None:
    """From now on SIGTERM and SIGINT end the process. Programs call this before their imports, which take seconds."""
    EndingSignals().__enter__()


def runs_as_module() -> bool:
    """Whether this is `python -m MODULE`, which still imports the module's packages. Each of them calls
    `end_on_signals` then, because the module's own code comes after these imports."""
    return sys.argv[:1] == ["-m"]


class _Handlers:
    """Takes SIGTERM and SIGINT while it is entered, unless they are ignored. `number` is that of the signal that came,
    or 0."""

    def __init__(self) -> None:
        self.number = 0

    def __enter__(self) -> Self:
        self.before: dict[int, Any] = {}  # must exist before the first signal can come
        if threading.current_thread() is threading.main_thread():  # Python sets handlers in no other
            for number in SIGNALS:
                if signal.getsignal(number) != signal.SIG_IGN:
                    self.before[number] = signal.signal(number, self.take)
        return self

    def __exit__(self, *failure: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def take(self, number: int, frame: FrameType | None) -> None:
        self.number = number


class EndingSignals(_Handlers):
    """A signal ends the process where it is, with a sentence that ends in `left`: what state that leaves."""

    def __init__(self, left: str = ""):
        super().__init__()
        self.left = left

    def take(self, number: int, frame: FrameType | None) -> NoReturn:
        reason = f"interrupted: {self.left}" if self.left else f"interrupted by {signal.Signals(number).name}"
        os.write(2, f"error: {reason}\n".encode())  # sys.stderr may be in the middle of a write
        os._exit(128 + number)


class RaisedSignals(_Handlers):
    """A signal raises KeyboardInterrupt. A library may turn that into an error of its own, so look at `number` too."""

    def take(self, number: int, frame: FrameType | None) -> NoReturn:
        self.number = number
        raise KeyboardInterrupt


class StopRequest(_Handlers):
    """A signal is only noted in `number`."""

    def take(self, number: int, frame: FrameType | None) -> None:
        self.number = number
        # A signal to the whole process group also ends the loader's workers: from now on their death is no failure.
        self.before.setdefault(signal.SIGCHLD, signal.signal(signal.SIGCHLD, signal.SIG_DFL))


@contextmanager
def children_without_ctrl_c() -> Iterator[None]:
    """Processes that start in this block never receive Ctrl-C: a terminal sends it to all of them, and only this one
    answers it. It does so at the end of the block, when all children have received their start-up data."""
    # multiprocessing starts this with the first child, and then unblocks Ctrl-C, whether it was blocked or not
    resource_tracker.ensure_running()
    # the mask alone is not enough: this process's other threads take the signal
    with StopRequest() as stop:
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    if stop.number:
        signal.raise_signal(stop.number)
