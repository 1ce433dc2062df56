"""Runs the judges: one clip after another in this process, or many clips at once in worker processes."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from threadpoolctl import threadpool_limits
from torch import Tensor

from evaluation.judges.available import open_judges
from evaluation.judges.judge import Judge, Listener, Measurements, Metric, first_line
from evaluation.speech import Speech
from system.command import UserError
from system.signals import children_without_ctrl_c

Given = TypeVar("Given")
Found = TypeVar("Found")


class JudgeError(UserError):
    """The judges cannot continue. The message says why."""


class ClipVersions(NamedTuple):
    """A clip and the versions [T] of it to score: reconstructions, or the clip's own waveform, which only the absolute
    judges score. All versions of a clip go to the judges together, because a judge caches what it computes from the
    original."""

    clip: Speech
    versions: Sequence[Tensor]


class JudgePool:
    """Judges in this process."""

    def __init__(self, judges: Sequence[Judge], missing: dict[str, str] | None = None):
        self.judges = judges
        self.missing = missing or {}  # judges that are not available -> why

    @property
    def metrics(self) -> tuple[Metric, ...]:
        return tuple(metric for judge in self.judges for metric in judge.metrics)

    @property
    def absolute_metrics(self) -> tuple[Metric, ...]:
        """The metrics that originals get too."""
        return tuple(metric for judge in self.judges if judge.absolute for metric in judge.metrics)

    def score(self, clips: Iterable[ClipVersions]) -> Iterator[list[Measurements]]:
        """Measurements of each version of each clip, in the given order."""
        for each in clips:
            yield score_versions(self.judges, each)

    def listen(self, recordings: Iterable[Tensor]) -> Iterator[Measurements]:
        """What the judges say about each recording [T] alone, in the given order. Only Listeners are asked."""
        for each in recordings:
            yield describe(self.judges, each)


class WorkerPool(JudgePool):
    """The same judges in `workers` other processes, with the same results. `options` are those of `open_judges`."""

    def __init__(self, judges: Sequence[Judge], missing: dict[str, str], workers: int, options: dict[str, Any]):
        super().__init__(judges, missing)
        self.workers = workers
        names = [judge.name for judge in judges]
        others = set(multiprocessing.active_children())
        # spawned, because a forked process cannot use a GPU that its parent has used
        context = multiprocessing.get_context("spawn")
        self.pool = ProcessPoolExecutor(workers, context, _start_worker, (names, options))
        try:
            with children_without_ctrl_c():
                for _ in range(workers):  # start all now, so that they open their judges while the codec encodes
                    self.pool.submit(_do_nothing)
                self.processes = set(multiprocessing.active_children()) - others
        except KeyboardInterrupt:
            self.close(terminate=True)
            raise

    def score(self, clips: Iterable[ClipVersions]) -> Iterator[list[Measurements]]:
        return self._each(_score_in_worker, map(_Packed.of, clips))

    def listen(self, recordings: Iterable[Tensor]) -> Iterator[Measurements]:
        return self._each(_listen_in_worker, (each.numpy() for each in recordings))

    def _each(self, work: Callable[[Given], Found], items: Iterable[Given]) -> Iterator[Found]:
        """The results of `work` on the items, in their order."""
        pending: deque[Future[Found]] = deque()
        try:
            for each in items:
                pending.append(self.pool.submit(work, each))
                if len(pending) > 2 * self.workers:  # enough to keep all workers busy, and little audio in memory
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        except BrokenProcessPool as error:
            raise JudgeError(
                f"one of {self.workers} judge processes died before it had finished (out of memory?): try fewer --jobs"
            ) from error

    def close(self, terminate: bool) -> None:
        """Ends the workers: at once with `terminate`, else when their work is done."""
        if terminate:
            for process in self.processes:
                process.terminate()
        self.pool.shutdown(cancel_futures=terminate)


@contextmanager
def open_judge_pool(names: Collection[str], workers: int = 1, **options: Any) -> Iterator[JudgePool]:
    """Opens the judges of `names` that are available (`open_judges` explains the options): one worker means this
    process. Closes them at the end of the context."""
    judges, missing = open_judges(names, **options)  # in this process first: it may have to download weights, once
    if workers == 1:
        yield JudgePool(judges, missing)
        return
    pool = WorkerPool(judges, missing, workers, options)
    done = False
    try:
        yield pool
        done = True
    finally:
        pool.close(terminate=not done)


def score_versions(judges: Sequence[Judge], clip: ClipVersions) -> list[Measurements]:
    """What all judges measure on each version."""
    with _one_thread():
        return [_score_version(judges, clip.clip, version) for version in clip.versions]


def describe(judges: Sequence[Judge], recording: Tensor) -> Measurements:
    """What all Listeners say about a recording [T]."""
    listeners = [judge for judge in judges if isinstance(judge, Listener)]
    with _one_thread():
        return _collected((judge, partial(judge.listen, recording)) for judge in listeners)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Judges compute with one thread, because sums over several threads differ in their last bits; so the results do
    not depend on the number of threads or workers."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1):  # numpy and scipy
            yield
    finally:
        torch.set_num_threads(threads)


def _score_version(judges: Sequence[Judge], clip: Speech, audio: Tensor) -> Measurements:
    asked = [judge for judge in judges if judge.absolute or audio is not clip.waveform]
    return _collected((judge, partial(judge.score, clip, audio)) for judge in asked)


def _collected(work: Iterable[tuple[Judge, Callable[[], Measurements]]]) -> Measurements:
    """What the judges' work found. If a judge fails, its metrics have the reason."""
    total = Measurements()
    for judge, measure in work:
        try:
            found = measure()
        except (RuntimeError, ValueError, MemoryError) as error:
            # judges call many libraries; if one of them fails on a clip, the other judges' scores must remain
            found = Measurements(failed={metric.name: first_line(error) for metric in judge.metrics})
        total.add(found)
    return total


class _Packed(NamedTuple):
    """A ClipVersions to send to another process, as numpy arrays: torch sends tensors through file descriptors, which
    run out. None stands for the clip's own waveform."""

    clip: Speech
    waveform: np.ndarray
    versions: list[np.ndarray | None]

    @classmethod
    def of(cls, given: ClipVersions) -> _Packed:
        clip = given.clip
        versions = [None if version is clip.waveform else version.numpy() for version in given.versions]
        return cls(replace(clip, waveform=torch.empty(0)), clip.waveform.numpy(), versions)

    def unpacked(self) -> ClipVersions:
        clip = replace(self.clip, waveform=torch.from_numpy(self.waveform))
        versions = [clip.waveform if version is None else torch.from_numpy(version) for version in self.versions]
        return ClipVersions(clip, versions)


_judges: list[Judge] = []  # in a worker process
_missing: dict[str, str] = {}


def _start_worker(names: Collection[str], options: dict[str, Any]) -> None:
    """Opens the judges of a worker process."""
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    judges, missing = open_judges(names, **options)
    _judges.extend(judges)
    _missing.update(missing)


def _exit_with_parent() -> None:
    """Ends this worker when its parent ends. A killed parent cannot end its workers itself."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _do_nothing() -> None:
    pass


def _score_in_worker(packed: _Packed) -> list[Measurements]:
    return score_versions(_opened(), packed.unpacked())


def _listen_in_worker(recording: np.ndarray) -> Measurements:
    return describe(_opened(), torch.from_numpy(recording))


def _opened() -> list[Judge]:
    """This process's judges. Raises JudgeError if one of them could not be opened, because the parent could."""
    if _missing:
        raise JudgeError("a judge process could not open " + "; ".join(f"{k}: {v}" for k, v in _missing.items()))
    return _judges
