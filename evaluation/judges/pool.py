"""Runs the judges: one clip after another in this process, or many clips at once in worker processes."""

from __future__ import annotations

import multiprocessing
import os
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
from evaluation.judges.judge import Judge, Measurements, Metric, first_line
from evaluation.speech import Speech
from system.command import UserError
from system.signals import children_without_ctrl_c


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
        pending: deque[Future[list[Measurements]]] = deque()
        try:
            for each in clips:
                pending.append(self.pool.submit(_score_in_worker, _Packed.of(each)))
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
    """What all judges measure on each version. Judges compute with one thread, because sums over several threads differ
    in their last bits; so the results do not depend on the number of threads or workers."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1):  # numpy and scipy
            return [_score_version(judges, clip.clip, version) for version in clip.versions]
    finally:
        torch.set_num_threads(threads)


def _score_version(judges: Sequence[Judge], clip: Speech, audio: Tensor) -> Measurements:
    total = Measurements()
    for judge in judges:
        if audio is clip.waveform and not judge.absolute:
            continue
        try:
            found = judge.score(clip, audio)
        except (RuntimeError, ValueError) as error:
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
    if _missing:  # the parent could open all of them
        raise JudgeError("a judge process could not open " + "; ".join(f"{k}: {v}" for k, v in _missing.items()))
    return score_versions(_judges, packed.unpacked())
