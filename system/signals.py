"""A run that is asked to stop finishes its step, saves its state, and ends with a status that says so."""

from __future__ import annotations

import signal
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StoppedError(Exception):
    """The run was stopped by a signal, and all is saved. `status` is the process's: 128 and the signal's number."""

    def __init__(self, number: int, step: int):
        super().__init__(f"stopped by {signal.Signals(number).name} after step {step}, which is saved")
        self.status = 128 + number


class StopRequest:
    """Takes SIGTERM and SIGINT while it is entered. `number` is that of the signal that came, 0 before."""

    def __init__(self) -> None:
        self.number = 0

    def __enter__(self) -> StopRequest:
        self.before: dict[int, Any] = {}  # there before the first signal can come
        for number in SIGNALS:
            self.before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *failure: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.number = number
        # A signal for the whole group ends the loader's workers too; their death is no failure now.
        self.before.setdefault(signal.SIGCHLD, signal.signal(signal.SIGCHLD, signal.SIG_DFL))
