"""Commands killed at a moment of their work that is counted in function calls, not in seconds: it is the same moment
however busy the machine is.

The moments of a command are numbered within three parts of it: before, while and after it calls one function, such as
the one that writes. Every call of a function and every return counts, of Python's functions and of C's: between two of
them nothing changes on the disk.
"""

from __future__ import annotations

import itertools
import os
import random
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, ModuleType

from tests.forked_commands import exit_status

BEFORE, DURING, AFTER = range(3)
GRACE = 100  # calls at most that a process goes on after it has asked to be killed

Start = Callable[[Callable[[], object]], int]  # starts the command in a child that first calls this; the child's number


@dataclass(frozen=True)
class Moment:
    """The `number`th call within a part. The process kills itself there; or it asks its parent to, and goes on for
    `grace` calls at most, so that the kill can fall into the middle of one."""

    part: int
    number: int
    grace: int = 0


def moments(start: Start, owner: ModuleType, name: str, numbers: tuple[int, int, int]) -> Iterator[Moment]:
    """As many moments of each part as `numbers` says, spread over all of its calls. Every second one has a grace."""
    dice = random.Random(0)
    counted = calls(start, owner, name)
    for part, number in enumerate(numbers):
        for i in range(number):
            call = int(counted[part] * (i + dice.random()) / number)
            yield Moment(part, call, grace=dice.randint(1, GRACE) if i % 2 else 0)


def calls(start: Start, owner: ModuleType, name: str) -> list[int]:
    """How many calls the command makes in each part, undisturbed."""
    reading, writing = os.pipe()
    child = start(lambda: _Watch(owner, name, None, writing).begin())
    os.close(writing)
    with os.fdopen(reading) as file:
        text = file.read()
    assert exit_status(child) == 0
    return [int(number) for number in text.split()]


def kill(start: Start, owner: ModuleType, name: str, moment: Moment) -> None:
    """Runs the command in a child that is killed at the moment. At the latest it is killed at the end of the part."""
    reading, writing = os.pipe()
    child = start(lambda: _Watch(owner, name, moment, writing).begin())
    os.close(writing)
    if os.read(reading, 1):  # nothing where the child killed itself and asked nobody
        os.kill(child, signal.SIGKILL)
    os.close(reading)
    assert exit_status(child) == -signal.SIGKILL


class _Watch:
    """Counts the calls of this process, and kills it at the moment; without one it writes what it counted."""

    def __init__(self, owner: ModuleType, name: str, moment: Moment | None, writing: int):
        self.owner, self.name, self.moment, self.writing = owner, name, moment, writing
        self.part, self.counts = BEFORE, [0, 0, 0]

    def begin(self) -> None:
        function = getattr(self.owner, self.name)

        def watched(*arguments: object, **named: object) -> object:
            self._enter(DURING)
            result = function(*arguments, **named)
            self._enter(AFTER)
            return result

        setattr(self.owner, self.name, watched)
        sys.setprofile(self._count)

    def _enter(self, part: int) -> None:
        self._end_of_part()
        self.part = part

    def _end_of_part(self) -> None:
        if self.moment and self.moment.part == self.part:
            os.kill(os.getpid(), signal.SIGKILL)

    def _count(self, frame: FrameType, event: str, argument: object) -> None:
        count = self.counts[self.part]
        self.counts[self.part] += 1
        if argument is os._exit and event == "c_call":
            self._end_of_part()
            os.write(self.writing, " ".join(map(str, self.counts)).encode())
        elif self.moment and self.moment.part == self.part and count >= self.moment.number:
            if count >= self.moment.number + self.moment.grace:
                os.kill(os.getpid(), signal.SIGKILL)
            elif count == self.moment.number:
                os.write(self.writing, b"!")


def count_calls(path: Path) -> None:
    """When this process ends, it writes to `path` how many calls it has made since now."""
    calls = itertools.count()

    def count(frame: FrameType, event: str, argument: object) -> None:
        number = next(calls)
        if argument is os._exit and event == "c_call":
            path.write_text(str(number))

    sys.setprofile(count)


def signal_at(call: int, number: int, told: Path) -> None:
    """At this call, counted from now on, the process makes the file `told` and sends itself the signal."""
    calls = itertools.count()

    def count(frame: FrameType, event: str, argument: object) -> None:
        if next(calls) >= call:
            sys.setprofile(None)
            told.touch()
            os.kill(os.getpid(), number)

    sys.setprofile(count)


def killed_before_disk_change(number: int) -> None:
    """This process is killed before its `number`th call, from 0, of a function that changes what is on the disk."""
    calls = itertools.count()

    def watched(function: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: object, **named: object) -> object:
            if next(calls) == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **named)

        return call

    for name in ("fsync", "fchmod", "rename", "replace", "unlink", "rmdir"):
        setattr(os, name, watched(getattr(os, name)))
