"""The speech an encoder is measured on: whole clips at 24 kHz, prepared as for the server, and resampling."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soxr
from torch import Tensor

from data import BadClipError, DataError, open_clips
from data.audio import Clip
from data.reference import SAMPLE_RATE, prepare

RESAMPLER = "soxr HQ"
REPORTED = ("clipped", "band-limited", "resampled", "mixed down")  # kinds of notes: these change a clip's scores


@dataclass(frozen=True, eq=False)
class Speech:
    """One clip. `text` is what is said, empty without a transcript; `speaker` is empty if unknown."""

    name: str
    waveform: Tensor  # [T], 24 kHz, in [-1, 1]
    speaker: str = ""
    text: str = ""

    @property
    def seconds(self) -> float:
        return self.waveform.shape[-1] / SAMPLE_RATE


@dataclass(frozen=True)
class Problem:
    """Why a clip has no score. `what` is a metric's name, "clip" for all metrics, or "sound" for all metrics of the
    decoded audio. `encoder` is the system's name, empty for all of them."""

    clip: str
    what: str
    reason: str
    encoder: str = ""


def read_speech(paths: Sequence[str], cache: str = "", limit: int = 0) -> tuple[list[Speech], list[Problem], list[str]]:
    """Reads folders and parquet files. Returns the clips, prepared as the server prepares a reference; a Problem for
    each clip that cannot be used; and notes about the clips. With a `limit`, reads that many clips, spread evenly over
    all. Raises DataError if no clip can be used."""
    clips = open_clips(paths, cache)
    count = min(limit or len(clips), len(clips))
    speech, problems, notes = [], [], []
    for i in spread(count, len(clips)):
        name = f"clip {i + 1} of {len(clips)}"
        try:
            clip = clips.read(i)
            name = Path(clip.name).name
            prepared, about = prepared_clip(clip, name)
        except BadClipError as error:
            problems.append(Problem(name, "clip", str(error)))
            continue
        notes += about
        speech.append(prepared)
    if not speech:
        raise DataError(f"none of {count} clips can be used; the first: {problems[0].reason}")
    return speech, problems, notes


def prepared_clip(clip: Clip, name: str) -> tuple[Speech, list[str]]:
    """A clip, prepared as the server prepares a reference, under another name; and notes about it. Raises
    BadClipError."""
    reference = prepare([clip])
    notes = [note.sentence for note in reference.notes if note.kind in REPORTED]
    return Speech(name, reference.waveform[0], clip.speaker, clip.text), notes


def spread(count: int, clips: int) -> list[int]:
    """The indices of `count` of `clips`, evenly spread from the first to the last; of all if there are fewer."""
    count = min(count, clips)
    return [round(k * (clips - 1) / max(1, count - 1)) for k in range(count)]


def at_rate(waveform: Tensor, rate: int) -> np.ndarray:
    """Resamples a waveform [T] from 24 kHz to `rate` Hz, float32."""
    return np.asarray(soxr.resample(waveform.numpy(), SAMPLE_RATE, rate, quality="HQ"), dtype=np.float32)
