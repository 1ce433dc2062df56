"""A run's reports: lines on the terminal, metrics.jsonl, TensorBoard, and the names of skipped clips."""

from __future__ import annotations

import itertools
import json
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from shlex import quote
from typing import Any

import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from data.crops import Fault
from losses.mel import MelDistance
from system.files import write_whole
from training.config import Config
from training.distributed import Ranks
from training.validation import Validation


class Progress:
    """Rank 0 reports; the other ranks send it the clips they skipped. A run that resumes from `first_step` removes what
    was reported of later steps."""

    def __init__(self, folder: Path, first_step: int, steps: int, audio_seconds_a_step: float, ranks: Ranks):
        self.folder, self.steps, self.ranks, self.enabled = folder, steps, ranks, ranks.main
        self.audio_seconds_a_step = audio_seconds_a_step
        self.uncounted: list[tuple[str, Fault]] = []
        self.counts: dict[str, Counter[str]] = {"skipped": Counter(), "kept": Counter()}
        self.measured: dict[str, float] = {}
        self.since, self.step_since = time.perf_counter(), first_step
        self.waited = 0.0  # seconds, for the loader
        if self.enabled:
            folder.mkdir(parents=True, exist_ok=True)
            self.bar = tqdm(
                total=steps,
                initial=first_step,
                desc="training",
                unit="step",
                dynamic_ncols=True,
                disable=not sys.stderr.isatty(),  # a log file gets a line per interval
            )
            kept = first_step if first_step else -1
            with written(folder / "metrics.jsonl") as path:
                keep_lines(path, kept)
                self.lines = path.open("a", encoding="utf-8")
            self.named: set[str] = set()
            self.names = {}
            for fate in self.counts:
                with written(folder / f"{fate}_clips.txt") as path:
                    before = whole_lines(path) if path.exists() else []
                    write_whole(path, "".join(before))
                    self.named |= {line.rstrip("\n") for line in before}
                    self.names[fate] = path.open("a", encoding="utf-8", buffering=1)
            threading.excepthook = _report_of_thread
            with written(folder / "tensorboard") as path:
                self.board = SummaryWriter(str(path), purge_step=kept + 1)

    def say(self, text: str) -> None:
        if self.enabled:
            tqdm.write(text, file=sys.stderr)

    def advance(self) -> None:
        if self.enabled:
            self.bar.update()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Counts the time in this block as waiting for the loader."""
        before = time.perf_counter()
        yield
        self.waited += time.perf_counter() - before

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leaves the time in this block out of the training speed."""
        before = time.perf_counter()
        yield
        self.since += time.perf_counter() - before

    def count(self, fate: str, clips: tuple[Fault, ...]) -> None:
        """Notes clips of this rank that were "skipped", or "kept" although they have a fault."""
        self.uncounted += [(fate, clip) for clip in clips]

    def count_all(self) -> None:
        """Counts all ranks' clips and writes each name once into skipped_clips.txt or kept_clips.txt; the first of a
        kind is printed too. All ranks must call it, and before a state is saved: a resumed run does not see these clips
        again."""
        for fate, clip in itertools.chain(*self.ranks.gather_objects(self.uncounted)):
            if self.enabled and clip.message not in self.named:
                self.named.add(clip.message)
                with written(self.folder / f"{fate}_clips.txt"):
                    self.names[fate].write(clip.message + "\n")
                if clip.kind not in self.counts[fate]:
                    self.say(f"{fate}: {clip.message}; every other one is named in {self.names[fate].name}")
            self.counts[fate][clip.kind] += 1
        self.uncounted = []

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Writes one line of metrics, combined over the ranks, with the number of counted clips."""
        if not self.enabled:
            return
        now = time.perf_counter()
        speed = (step - self.step_since) / (now - self.since)
        values = dict(metrics)
        values["loader_wait"] = self.waited / (now - self.since)  # share of the time
        self.since, self.step_since, self.waited = now, step, 0.0
        values["audio_seconds_per_second"] = speed * self.audio_seconds_a_step
        values |= {f"{fate}_clips": counts.total() for fate, counts in self.counts.items()}
        if torch.cuda.is_available():
            values["memory_gb"] = torch.cuda.max_memory_allocated() / 1e9
        self._record(step, values)
        shown = {"mel": f"{values['mel']:.3f}"} if "mel" in values else {}
        shown |= {
            "sem_util": f"{values['sem_util']:.0f}",
            "acoustic": f"{values['acoustic_min']:.0f}-{values['acoustic_max']:.0f}",
            "audio s/s": f"{values['audio_seconds_per_second']:.3g}",
        }
        if self.bar.disable:
            left = timedelta(seconds=round((self.steps - step) / speed))
            self.say(f"step {step}/{self.steps}: {', '.join(f'{k} {v}' for k, v in shown.items())}, {left} left")
        else:
            self.bar.set_postfix(shown)

    def log_validation(self, step: int, found: Validation, original: Tensor, rate: int) -> None:
        """Writes validation metrics, histograms of the codes, and sound and spectrograms of up to four clips."""
        if not self.enabled:
            return
        metrics, reconstruction, codes = found
        self.measured = {"step": step, **metrics}
        self._record(step, {f"validation/{name}": value for name, value in metrics.items()})
        described = "  ".join(f"{name} {value:.4g}" for name, value in metrics.items())
        self.say(f"step {step}: validation {described}")
        mel = MelDistance(rate).scales[1].to(original.device)
        with self._on_board() as board:
            board.add_histogram("validation/acoustic_codes", codes[:, 1:].flatten(), step)
            board.add_histogram("validation/semantic_codes", codes[:, 0].flatten(), step)
            for i in range(min(4, len(original))):
                for name, waveform in (("original", original[i]), ("reconstruction", reconstruction[i])):
                    board.add_audio(f"clip_{i}/{name}", waveform.float().cpu().clamp(-1, 1), step, rate)
                    logs = (
                        mel(waveform.float()).clamp(min=1e-5).log()[0].flip(0).cpu()
                    )  # [mels, frames], low frequencies at the bottom
                    picture = (logs - logs.min()) / (logs.max() - logs.min() + 1e-9)
                    board.add_image(f"clip_{i}/{name}_mel", picture, step, dataformats="HW")

    def _record(self, step: int, values: dict[str, Any]) -> None:
        with written(self.folder / "metrics.jsonl"):
            self.lines.write(json.dumps({"step": step, **values}) + "\n")
            self.lines.flush()
        with self._on_board() as board:
            for name, value in values.items():
                board.add_scalar(name, value, step)

    @contextmanager
    def _on_board(self) -> Iterator[SummaryWriter]:
        """Waits for TensorBoard's own thread: an error of writing appears here, and a killed run loses nothing from its
        queue."""
        with written(self.folder / "tensorboard"):
            yield self.board
            self.board.flush()

    def close(self, config: Config, best_step: int, best_mel: float) -> None:
        """Prints at the end of a run where the encoder is, how good it is, and what to run next. All ranks must call
        it."""
        self.count_all()
        if not self.enabled:
            return
        self.bar.close()
        self.board.close()
        self.lines.close()
        for fate, counts in self.counts.items():
            for kind, count in counts.items():
                self.say(f"{fate} {count} times: a clip that {kind}")
            self.names[fate].close()
        encoder = self.folder / "encoder.safetensors"
        print(f"encoder after {config.steps} steps: {encoder}")
        if self.measured:
            print(f"  validation mel {self.measured['mel']:.4g}, {self.measured['sem_util']:.0f} semantic codes in use")
        if best_step and (best_step != config.steps or not self.measured):
            best = self.folder / "encoder_best.safetensors"
            of = f" of {self.folder / 'release_best'}" if config.train == "codec" else ""
            print(f"  the best was step {best_step}, mel {best_mel:.4g}: {best}{of}")
        release = config.model_dir if config.train == "encoder" else self.folder / "release"
        print(f"next: python inject_encoder.py --model-dir {quote(str(release))} --encoder {quote(str(encoder))}")


def keep_lines(path: Path, last_step: int) -> None:
    """Removes from a metrics file the lines of steps after `last_step`, and damaged lines."""
    if path.exists():
        write_whole(path, "".join(line for line in whole_lines(path) if 0 <= step_of(line) <= last_step))


def step_of(line: str) -> int:
    """The step of a line of metrics, or -1 if the line is damaged."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return -1
    step = found.get("step") if isinstance(found, dict) else None
    return step if isinstance(step, int) else -1


def whole_lines(path: Path) -> list[str]:
    """The lines of a text file, without those that a full disk, a killed run or a power cut left: an unfinished last
    line, empty ones, and ones with NULs."""
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]
    return [line + "\n" for line in lines if line.strip() and "\0" not in line]


@contextmanager
def written(path: Path) -> Iterator[Path]:
    """If a write in this block fails, raises OSError with the file's name and what the user still has."""
    try:
        yield path
    except OSError as error:
        reason = f"cannot be written ({error.strerror}): see to the disk; the last checkpoint is kept"
        raise OSError(error.errno, reason, str(path)) from error


def _report_of_thread(failed: threading.ExceptHookArgs) -> None:
    """Hides the traceback of an OSError in TensorBoard's thread: `_on_board` raises the same error as one sentence."""
    if failed.exc_type is None or not issubclass(failed.exc_type, OSError):
        threading.__excepthook__(failed)
