"""Judges in worker processes: they give the same values as in one process, and they end with their parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from evaluation import Speech, open_judges, read_speech
from evaluation.judges.available import NAMES
from evaluation.judges.pool import ClipVersions, JudgeError, JudgePool, WorkerPool, open_judge_pool
from evaluation.judges.quality import Distances
from tests.waiting import LIMIT, until

DEMO = Path("data/demo")
WITHHELD = DEMO / "withheld_encoder.safetensors"

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def clips(tmp_path: Path) -> list[Speech]:
    return read_speech([str(DEMO / "unseen.parquet")], str(tmp_path), limit=3)[0]


def _versions(clips: list[Speech]) -> list[ClipVersions]:
    """More clips than the workers take at once. One is too short for some judges. Each has a noisy version and its
    original."""
    short = replace(clips[0], waveform=clips[0].waveform[24000:26400])
    noise = [0.01 * torch.randn(clip.waveform.shape) for clip in (*clips, short)]
    pairs = zip((*clips, short), noise, strict=True)
    return 2 * [ClipVersions(clip, [clip.waveform + louder, clip.waveform]) for clip, louder in pairs]


def test_two_workers_give_the_same_bits_in_the_same_order(clips: list[Speech]) -> None:
    names = ("distances", "pesq", "estoi", "resemblyzer", "quality")
    given = _versions(clips)
    with open_judge_pool(names, 1) as alone, open_judge_pool(names, 2) as several:
        expected, found = list(alone.score(given)), list(several.score(iter(given)))
        assert found == expected
        assert several.metrics == alone.metrics
        recordings = [clip.waveform for clip in clips]
        described = list(several.listen(recordings))
        assert described == list(alone.listen(recordings))
        assert set(described[0].values) == {"distillmos"}
        assert set(described[0].embeddings) == {"speaker_resemblyzer"}
        assert isinstance(several, WorkerPool)
        assert len(several.processes) == 2
    assert not any(process.is_alive() for process in several.processes)
    reconstruction, original = found[0]
    assert {"band_level", "mel", "stft", "pesq", "estoi", "speaker_resemblyzer", "distillmos"} == set(
        reconstruction.values
    )
    assert set(original.values) == {"distillmos"}, "an original gets the absolute metrics only"
    assert set(found[3][0].failed) >= {"pesq", "estoi"}


def test_the_number_of_threads_makes_no_difference(clips: list[Speech]) -> None:
    judges, _ = open_judges(["distances", "estoi"])
    found = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        torch.manual_seed(0)
        found.append(list(JudgePool(judges).score(_versions(clips))))
        assert torch.get_num_threads() == threads
    assert found[0] == found[1]


def test_a_killed_worker_is_an_error_and_not_an_endless_wait(clips: list[Speech]) -> None:
    """Workers ignore Ctrl-C: the parent answers it."""
    with open_judge_pool(["distances"], 2) as pool:
        assert isinstance(pool, WorkerPool)
        measured = pool.score(_versions(clips))
        next(measured)
        for process in pool.processes:
            assert process.pid is not None
            os.kill(process.pid, signal.SIGINT)
            assert _is_pending(signal.SIGINT, process.pid)
        assert all(process.is_alive() for process in pool.processes)
        next(iter(pool.processes)).kill()
        with pytest.raises(JudgeError, match="--jobs"):
            list(measured)


def test_a_judge_that_a_worker_cannot_open_is_an_error_and_not_missing_values(clips: list[Speech]) -> None:
    class Elsewhere(Distances):
        name = "words"

    workers = WorkerPool([Elsewhere()], {}, 1, {"whisper": "nowhere.pt"})
    try:
        with pytest.raises(JudgeError, match=r"words: Whisper 'nowhere.pt'"):
            next(workers.score(_versions(clips)))
    finally:
        workers.close(terminate=True)


def test_ctrl_c_waits_until_every_worker_has_its_start_up_data(monkeypatch: pytest.MonkeyPatch) -> None:
    submitted, over = [], threading.Event()
    submit = ProcessPoolExecutor.submit

    def interrupted(pool: ProcessPoolExecutor, *arguments: Any) -> Any:
        os.kill(os.getpid(), signal.SIGINT)
        found = submit(pool, *arguments)
        submitted.append(found)
        return found

    monkeypatch.setattr(ProcessPoolExecutor, "submit", interrupted)
    # a shell starts its background jobs with SIGINT ignored
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    other = threading.Thread(target=over.wait)  # takes the signal that the main thread has blocked
    other.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            WorkerPool([], {}, 2, {})
    finally:
        over.set()
        other.join()
        signal.signal(signal.SIGINT, before)
    assert len(submitted) == 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_however_the_evaluation_ends_its_workers_end_too(number: signal.Signals, tmp_path: Path) -> None:
    others = [name for name in NAMES if name != "distances"]
    arguments = ("--model-dir", DEMO / "release", "--encoder", WITHHELD, "--device", "cpu", "--jobs", "2", "--without")
    command = subprocess.Popen(
        [sys.executable, "evaluate_encoder.py", *map(str, arguments), *others],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=os.environ | {"HF_CACHE": str(tmp_path)},
        # a background job of a shell ignores Ctrl-C, and its children inherit that
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    children = Path(f"/proc/{command.pid}/task/{command.pid}/children")
    if not children.exists():
        command.kill()
        pytest.skip("this system does not list a process's children")
    # two workers and the resource tracker; all of them import torch by now
    until(lambda: len(children.read_text().split()) == 3)
    started = [Path(f"/proc/{child}") for child in children.read_text().split()]
    if number == signal.SIGINT:
        os.killpg(command.pid, number)  # as a terminal does
    else:
        command.kill()
    error = command.communicate(timeout=LIMIT)[1]
    until(lambda: not any(child.exists() for child in started))
    if number == signal.SIGINT:
        assert command.returncode == 128 + number
        assert error == "error: interrupted: nothing was written\n"


def _is_pending(number: signal.Signals, process: int) -> bool:
    """Whether the signal waits for the process, because all its threads block it."""
    status = Path(f"/proc/{process}/status").read_text()
    return bool(int(status.partition("ShdPnd:")[2].split()[0], 16) >> (number - 1) & 1)
