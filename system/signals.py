"""A run that is asked to stop finishes its step, saves its state, and ends with an exit status that says so."""

from __future__ import annotations

import signal
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StoppedError(Exception):
    """A signal stopped the run, and its state is saved. `status` is the exit status: 128 plus the signal's number."""

    def __init__(self, number: int, step: int):
        name = signal.Signals(number).name
        super().__init__(f"stopped by {name} after step {step}, which is saved")
        self.status = 128 + number


class StopRequest:
    """Takes SIGTERM and SIGINT while it is entered. `number` is the number of the signal that came, or 0."""

    def __init__(self) -> None:
        self.number = 0

    def __enter__(self) -> StopRequest:
        self.before: dict[int, Any] = {}  # must exist before the first signal can come
        for number in SIGNALS:
            self.before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *failure: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.number = number
        # A signal to the whole process group also ends the loader's workers: from now on their death is no failure.
        self.before.setdefault(signal.SIGCHLD, signal.signal(signal.SIGCHLD, signal.SIG_DFL))
