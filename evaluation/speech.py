"""The speech an encoder is measured on: whole clips at 24 kHz, as the server takes them, and at other rates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soxr
from torch import Tensor

from data import BadClipError, DataError, open_clips
from data.reference import SAMPLE_RATE, prepare

RESAMPLER = "soxr HQ"
TOLD = ("clipped", "band-limited", "resampled", "mixed down")  # notes about a clip that change its scores


@dataclass(frozen=True, eq=False)
class Speech:
    """One clip. `text` is empty where nobody wrote down what is said."""

    name: str
    waveform: Tensor  # [T], 24 kHz, in [-1, 1]
    speaker: str = ""
    text: str = ""

    @property
    def seconds(self) -> float:
        return self.waveform.shape[-1] / SAMPLE_RATE


@dataclass(frozen=True)
class Problem:
    """Something that a clip could not be scored for: `what` names a metric, or is "clip" for all of them, or
    "sound" for all that hear it."""

    clip: str
    what: str
    reason: str
    encoder: str = ""


def read_speech(paths: Sequence[str], cache: str = "", limit: int = 0) -> tuple[list[Speech], list[Problem], list[str]]:
    """The clips of folders and parquet files, prepared as the server prepares a reference, with an empty text where the
    transcript is missing; those that cannot be used, with their reasons; and notes about the others. With a `limit`
    that many clips, spread evenly over all. Raises DataError where there are none at all."""
    clips = open_clips(paths, cache, needs_text=False)
    count = min(limit or len(clips), len(clips))
    speech, problems, notes = [], [], []
    for i in spread(count, len(clips)):
        name = f"clip {i + 1} of {len(clips)}"
        try:
            clip = clips.read(i)
            name = Path(clip.name).name
            reference = prepare([clip])
        except BadClipError as error:
            problems.append(Problem(name, "clip", str(error)))
            continue
        notes += [note.sentence for note in reference.notes if note.kind in TOLD]
        speech.append(Speech(name, reference.waveform[0], clip.speaker, clip.text))
    if not speech:
        raise DataError(f"none of {count} clips can be used; the first: {problems[0].reason}")
    return speech, problems, notes


def spread(count: int, clips: int) -> list[int]:
    """So many of the clips, or all where there are no more, evenly spread from the first to the last."""
    count = min(count, clips)
    return [round(k * (clips - 1) / max(1, count - 1)) for k in range(count)]


def at_rate(waveform: Tensor, rate: int) -> np.ndarray:
    """Samples [T] at 24 kHz to samples at `rate` Hz, float32."""
    return np.asarray(soxr.resample(waveform.numpy(), SAMPLE_RATE, rate, quality="HQ"), dtype=np.float32)
