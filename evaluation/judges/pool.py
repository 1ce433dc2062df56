"""The judges at work: clip after clip in this process, or many clips at once in processes with judges of their own."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from threadpoolctl import threadpool_limits
from torch import Tensor

from evaluation.judges.available import open_judges
from evaluation.judges.judge import Judge, Metric, Verdict, first_line
from evaluation.speech import Speech
from system.command import UserError
from system.signals import StopRequest


class JuryError(UserError):
    """Judging cannot go on. The message says why."""


class Hearing(NamedTuple):
    """A clip and the sounds [T] to judge it by; the clip's own waveform is judged by the absolute judges alone. One
    hearing has one clip, because a judge remembers what it found out about an original."""

    clip: Speech
    sounds: Sequence[Tensor]


class Jury:
    """Judges in this process."""

    def __init__(self, judges: Sequence[Judge], missing: dict[str, str] | None = None):
        self.judges = judges
        self.missing = missing or {}  # judges that cannot be had -> why

    @property
    def metrics(self) -> tuple[Metric, ...]:
        return tuple(metric for judge in self.judges for metric in judge.metrics)

    @property
    def absolute_metrics(self) -> tuple[Metric, ...]:
        return tuple(metric for judge in self.judges if judge.absolute for metric in judge.metrics)

    def hear(self, hearings: Iterable[Hearing]) -> Iterator[list[Verdict]]:
        """A verdict for each sound of each hearing, in their order."""
        for hearing in hearings:
            yield hear(self.judges, hearing)


class Workers(Jury):
    """The same judges in `jobs` other processes, which give the same verdicts. `options` are those of `open_judges`."""

    def __init__(self, judges: Sequence[Judge], missing: dict[str, str], jobs: int, options: dict[str, Any]):
        super().__init__(judges, missing)
        self.jobs = jobs
        names = [judge.name for judge in judges]
        others = set(multiprocessing.active_children())
        # spawned, because a forked process cannot use a GPU that its parent has used
        context = multiprocessing.get_context("spawn")
        self.pool = ProcessPoolExecutor(jobs, context, _begin, (names, options))
        # no Ctrl-C for those that start in here: the parent answers it, when all of them have what they start with; the
        # mask is theirs, and not enough for the parent, whose other threads take the signal
        with StopRequest() as stop:
            mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
            try:
                for _ in range(jobs):  # all start now, and open their judges while the codec encodes
                    self.pool.submit(_ready)
                self.processes = set(multiprocessing.active_children()) - others
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        if stop.number:
            self.end(at_once=True)
            signal.raise_signal(stop.number)

    def hear(self, hearings: Iterable[Hearing]) -> Iterator[list[Verdict]]:
        waiting: deque[Future[list[Verdict]]] = deque()
        try:
            for hearing in hearings:
                waiting.append(self.pool.submit(_hear, _Packed.of(hearing)))
                if len(waiting) > 2 * self.jobs:  # enough for everyone to do, and few sounds in memory
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool as error:
            raise JuryError(
                f"one of {self.jobs} processes of judges ended before its work did (out of memory?): try fewer --jobs"
            ) from error

    def end(self, at_once: bool) -> None:
        """Ends the processes: at once, or when their work is done."""
        if at_once:
            for process in self.processes:
                process.terminate()
        self.pool.shutdown(cancel_futures=at_once)


@contextmanager
def open_jury(names: Collection[str], jobs: int = 1, **options: Any) -> Iterator[Jury]:
    """The judges of `names` that can be had here (`open_judges` explains the options), in `jobs` processes. They end
    with the context."""
    judges, missing = open_judges(names, **options)  # here too: first of all they may have to be downloaded, once
    if jobs == 1:
        yield Jury(judges, missing)
        return
    workers = Workers(judges, missing, jobs, options)
    done = False
    try:
        yield workers
        done = True
    finally:
        workers.end(at_once=not done)


def hear(judges: Sequence[Judge], hearing: Hearing) -> list[Verdict]:
    """What all judges say of each sound. Sums of several threads differ in their last bits from those of one: judges
    have one each, however many work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1):  # of numpy and scipy
            return [_verdict(judges, hearing.clip, sound) for sound in hearing.sounds]
    finally:
        torch.set_num_threads(threads)


def _verdict(judges: Sequence[Judge], clip: Speech, sound: Tensor) -> Verdict:
    whole = Verdict()
    for judge in judges:
        if sound is clip.waveform and not judge.absolute:
            continue
        try:
            verdict = judge.score(clip, sound)
        except (RuntimeError, ValueError) as error:
            # libraries of many kinds: what one of them cannot do with one clip must not take the others' scores along
            verdict = Verdict(failed={metric.name: first_line(error) for metric in judge.metrics})
        whole.add(verdict)
    return whole


class _Packed(NamedTuple):
    """A hearing on its way to another process: as arrays, because torch would send tensors by file descriptors, which
    run out. None stands for the clip's own waveform."""

    clip: Speech
    waveform: np.ndarray
    sounds: list[np.ndarray | None]

    @classmethod
    def of(cls, hearing: Hearing) -> _Packed:
        clip = hearing.clip
        sounds = [None if sound is clip.waveform else sound.numpy() for sound in hearing.sounds]
        return cls(replace(clip, waveform=torch.empty(0)), clip.waveform.numpy(), sounds)

    def unpacked(self) -> Hearing:
        clip = replace(self.clip, waveform=torch.from_numpy(self.waveform))
        return Hearing(clip, [clip.waveform if each is None else torch.from_numpy(each) for each in self.sounds])


_judges: list[Judge] = []  # of a process of judges
_missing: dict[str, str] = {}


def _begin(names: Collection[str], options: dict[str, Any]) -> None:
    """Opens the judges of this process."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    judges, missing = open_judges(names, **options)
    _judges.extend(judges)
    _missing.update(missing)


def _end_with_parent() -> None:
    """However the parent ends: killed, it could not tell its children."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _ready() -> None:
    pass


def _hear(packed: _Packed) -> list[Verdict]:
    if _missing:  # the parent has them all
        raise JuryError("a process of judges could not open " + "; ".join(f"{k}: {v}" for k, v in _missing.items()))
    return hear(_judges, packed.unpacked())
