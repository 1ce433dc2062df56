"""What a person and a program see of a run: a line on the terminal, metrics.jsonl, TensorBoard."""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from data.crops import Fault
from losses.mel import MelDistance


class Progress:
    """Reports a run from its main process; elsewhere every call does nothing."""

    def __init__(self, folder: Path, first_step: int, steps: int, audio_seconds_a_step: float, enabled: bool):
        self.enabled, self.steps = enabled, steps
        self.audio_seconds_a_step = audio_seconds_a_step
        self.counts: dict[str, Counter[str]] = {"skipped": Counter(), "kept": Counter()}
        self.named: set[str] = set()
        self.since, self.step_since = time.perf_counter(), first_step
        if enabled:
            folder.mkdir(parents=True, exist_ok=True)
            self.bar = tqdm(
                total=steps,
                initial=first_step,
                desc="training",
                unit="step",
                dynamic_ncols=True,
                disable=not sys.stderr.isatty(),  # a log file gets a line per interval instead
            )
            self.lines = (folder / "metrics.jsonl").open("a", encoding="utf-8")
            self.names = {
                fate: (folder / f"{fate}_clips.txt").open("a", encoding="utf-8", buffering=1) for fate in self.counts
            }
            self.board = SummaryWriter(str(folder / "tensorboard"), purge_step=first_step)

    def say(self, text: str) -> None:
        if self.enabled:
            tqdm.write(text, file=sys.stderr)

    def advance(self) -> None:
        if self.enabled:
            self.bar.update()

    def count(self, fate: str, clips: tuple[Fault, ...]) -> None:
        """Counts clips that were "skipped", or "kept" in spite of a fault. Each is named once in skipped_clips.txt or
        kept_clips.txt, the first of a kind here too."""
        for clip in clips:
            if self.enabled and clip.message not in self.named:
                self.named.add(clip.message)
                self.names[fate].write(clip.message + "\n")
                if clip.kind not in self.counts[fate]:
                    self.say(f"{fate}: {clip.message}; every other one is named in {self.names[fate].name}")
            self.counts[fate][clip.kind] += 1

    def log(self, step: int, metrics: dict[str, Tensor | float]) -> None:
        """One line of metrics. This is where their values are read from the device."""
        if not self.enabled:
            return
        now = time.perf_counter()
        speed = (step - self.step_since) / (now - self.since)
        self.since, self.step_since = now, step
        values = {name: float(value) for name, value in metrics.items()}
        values["audio_seconds_per_second"] = speed * self.audio_seconds_a_step
        values |= {f"{fate}_clips": counts.total() for fate, counts in self.counts.items()}
        if torch.cuda.is_available():
            values["memory_gb"] = torch.cuda.max_memory_allocated() / 1e9
        self._record(step, values)
        shown = {
            "mel": f"{values['mel']:.3f}",
            "sem_util": f"{values['sem_util']:.0f}",
            "acoustic": f"{values['acoustic_min']:.0f}-{values['acoustic_max']:.0f}",
            "audio s/s": f"{values['audio_seconds_per_second']:.3g}",
        }
        if self.bar.disable:
            left = timedelta(seconds=round((self.steps - step) / speed))
            self.say(f"step {step}/{self.steps}: {', '.join(f'{k} {v}' for k, v in shown.items())}, {left} left")
        else:
            self.bar.set_postfix(shown)

    def log_validation(
        self, step: int, metrics: dict[str, float], reconstruction: Tensor, original: Tensor, rate: int
    ) -> None:
        """Validation metrics, and a few of its clips to hear and see."""
        if not self.enabled:
            return
        self._record(step, {f"validation/{name}": value for name, value in metrics.items()})
        described = "  ".join(f"{name} {value:.4g}" for name, value in metrics.items())
        self.say(f"step {step}: validation {described}")
        mel = MelDistance(rate).scales[1].to(original.device)
        for i in range(min(4, len(original))):
            for name, waveform in (("original", original[i]), ("reconstruction", reconstruction[i])):
                self.board.add_audio(f"clip_{i}/{name}", waveform.float().cpu().clamp(-1, 1), step, rate)
                logs = mel(waveform.float()).clamp(min=1e-5).log()[0].flip(0).cpu()  # [mels, frames], low bands below
                picture = (logs - logs.min()) / (logs.max() - logs.min() + 1e-9)
                self.board.add_image(f"clip_{i}/{name}_mel", picture, step, dataformats="HW")

    def _record(self, step: int, values: dict[str, Any]) -> None:
        self.lines.write(json.dumps({"step": step, **values}) + "\n")
        self.lines.flush()
        for name, value in values.items():
            self.board.add_scalar(name, value, step)

    def close(self) -> None:
        if self.enabled:
            self.bar.close()
            for fate, counts in self.counts.items():
                for kind, count in counts.items():
                    self.say(f"{fate} {count} times: a clip that {kind}")
                self.names[fate].close()
            self.lines.close()
            self.board.close()
