"""Several processes speak the shards of a plan, each on a GPU; one process follows and reports."""

from __future__ import annotations

import multiprocessing
import os
import queue
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, ExitStack
from datetime import timedelta
from itertools import count
from multiprocessing.process import BaseProcess
from typing import Any

from data.pairs import write_shard
from data.sources import open_clips
from data.speaking.engine import Engine
from data.speaking.faults import REASONS
from data.speaking.plan import Task
from system.command import UserError, exit_status
from system.signals import children_without_ctrl_c

REPORT_SECONDS = 30
CLOSE_SECONDS = 60


def speak_in_processes(task: Task, gpus: Sequence[str], report: Report) -> None:
    """Speaks the shards that are missing, in `task.processes` processes, a part of them on each GPU, until the report
    is complete. Without `gpus` the first GPU is used. Raises UserError if a process fails."""
    context = multiprocessing.get_context("spawn")
    messages, enough = context.Queue(), context.Event()
    devices: list[str | None] = list(gpus) or [None]
    starting = {gpu: context.Lock() for gpu in devices}  # an engine measures the free memory of its GPU when it starts
    workers = []
    for number in range(task.processes):
        gpu = devices[number * len(devices) // task.processes]
        given = (task, number, gpu, messages, enough, starting[gpu])
        workers.append(context.Process(target=run_worker, args=given, name=f"process {number}"))
    try:
        with children_without_ctrl_c():  # while they import their libraries
            for worker in workers if not report.complete else ():
                worker.start()
        follow([worker for worker in workers if worker.pid], messages, report, enough)
    finally:
        stop(worker for worker in workers if worker.pid)


class Report:
    """How much is spoken, how much was left out and why, and how long the rest takes."""

    def __init__(self, seconds_before: float, hours: float | None):
        self.spoken, self.before, self.goal = seconds_before, seconds_before, hours and 3600 * hours
        self.pairs, self.left_out, self.started, self.shown = 0, Counter[str](), time.monotonic(), 0.0

    @property
    def complete(self) -> bool:
        return self.goal is not None and self.spoken >= self.goal

    def take(self, kind: str, value: Any) -> None:
        if kind == "spoken":
            self.spoken, self.pairs = self.spoken + value, self.pairs + 1
        elif kind == "left out":
            self.left_out[value] += 1
        elif kind == "ready":
            self.started = time.monotonic()
        if time.monotonic() - self.shown > REPORT_SECONDS:
            self.show()

    def show(self, final: bool = False) -> None:
        self.shown = time.monotonic()
        rate = (self.spoken - self.before) / max(1e-9, self.shown - self.started)
        text = f"{self.spoken / 3600:.2f} hours spoken ({self.pairs} pairs now), {rate:.1f} s a second"
        if self.goal and rate > 0 and not final:
            left = timedelta(seconds=round(max(0.0, self.goal - self.spoken) / rate))
            text += f", {max(0.0, self.goal - self.spoken) / 3600:.2f} hours to go: {left}"
        print(text, file=sys.stderr, flush=True)
        if final:
            for reason, count in self.left_out.most_common():
                print(f"left out {count} times: {REASONS[reason]}", file=sys.stderr)


def follow(workers: Sequence[BaseProcess], messages: Any, report: Report, enough: Any) -> None:
    """Reports until all processes have ended. Raises UserError if one of them fails."""
    while True:
        try:
            report.take(*messages.get(timeout=1))
            if report.complete:
                enough.set()
            continue
        except queue.Empty:
            pass
        failed = [worker for worker in workers if worker.exitcode not in (None, 0)]
        if failed:
            raise UserError(f"{failed[0].name} ended with status {failed[0].exitcode}: its output above says why")
        if all(worker.exitcode == 0 for worker in workers):
            return


def stop(workers: Iterable[BaseProcess]) -> None:
    """Ends processes that still run. Each may close its engine first, whose own processes would outlive it."""
    running = [worker for worker in workers if worker.is_alive()]
    for worker in running:
        worker.terminate()
    for worker in running:
        worker.join(CLOSE_SECONDS)
        worker.kill()


def run_worker(
    task: Task, number: int, device: str | None, messages: Any, enough: Any, starting: AbstractContextManager[Any]
) -> None:
    """A process of its own, on one GPU. Of Ctrl-C the first process tells it, with SIGTERM."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if device is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = device
    left = "the file that was being spoken is not written"
    sys.exit(exit_status(lambda: work(task, number, messages, enough, starting), left, left))


def work(task: Task, number: int, messages: Any, enough: Any, starting: AbstractContextManager[Any]) -> int:
    """Speaks every `task.processes`-th shard that is not there yet, as long as the process that asked for it lives.
    `starting` is held while the engine starts. Raises UserError if nothing of a shard is speech."""
    parent, engine = multiprocessing.parent_process(), None
    clips = open_clips(task.prompts, task.cache) if task.prompts else None
    with ExitStack() as closing:
        for shard in count(number, task.processes):
            ended = task.plan.shards is not None and shard >= task.plan.shards
            if ended or enough.is_set() or (parent and not parent.is_alive()):
                return 0
            path = task.out / f"pairs_{shard:05}.safetensors"
            if path.exists():
                continue
            if engine is None:
                with starting:
                    engine = Engine(task, clips, seed=task.plan.seed + shard)
                closing.callback(engine.close)
                messages.put(("ready", number))
            pairs = []
            for pair, reason in engine.pairs(task.plan.jobs(shard), task.plan.guidance(shard)):
                if reason and reason not in task.keep:
                    messages.put(("left out", reason))
                else:
                    pairs.append(pair)
                    messages.put(("spoken", pair.codes.shape[1] / task.config.frame_rate))
            if not pairs:
                texts = task.plan.shard_jobs
                raise UserError(f"none of {texts} texts became speech: does this release speak when it is served?")
            write_shard(path, pairs, task.codec_fingerprint)
    return 0
