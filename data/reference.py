"""Checks a reference clip before it reaches the server, and prepares it as the server does: mono, 24 kHz, level
unchanged. A clip that would break the server is an error. A clip that makes a poor voice gets a note."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import soxr
import torch
from torch import Tensor

from codec.config import FRAME_SIZE, SAMPLE_RATE
from data.audio import SILENCE, BadClipError, Clip, open_audio, read_audio
from data.bandwidth import is_band_limited
from system.names import printable

MODEL_TOKENS = 4096  # prompt, text and speech together: `max_model_len` in vllm-omni's deploy/voxtral_tts.yaml
MODEL_SECONDS = (MODEL_TOKENS // 2 - 1) * FRAME_SIZE / SAMPLE_RATE  # a clip's; half of the tokens are for the speech
NAME = re.compile(r"[a-z0-9_-]{1,64}")

MIN_SECONDS, BEST_SECONDS, MAX_SECONDS = 1.0, (3.0, 25.0), 30.0  # best: 3 to 25 s, from the model's paper
# What quiet and shifted clips lose, by the demo's codec, for eight clips that reach -6 dBFS (RMS -18 to -27 dBFS):
# 24 dB quieter they have 83 % of their distinct semantic codes, 36 dB quieter 56 %, 48 dB quieter 28 %.
# With an offset of 0.01, 47 % of the frames have another semantic code; with 0.3 half of the distinct codes are gone.
QUIET = -45.0  # dBFS, RMS
OFFSET = 0.01  # mean of the samples; speech in `data/demo` has at most 0.00004
FLAT_SHARE = 1e-4  # of the samples; a clip with more counts as clipped
TRIM_BELOW = 40  # dB below the loudest window
TRIM_WINDOW, TRIM_MARGIN = 480, 2400  # samples: 20 ms, 100 ms
MAX_UNTRIMMED = 600.0  # seconds that are decoded in order to cut the silence


@dataclass(frozen=True)
class Note:
    """Something that the owner of a clip should know. `kind` is a name for programs."""

    kind: str
    sentence: str


@dataclass(frozen=True)
class Reference:
    """A waveform [1, T] at 24 kHz, ready to be encoded or sent, with notes."""

    waveform: Tensor
    notes: tuple[Note, ...]

    @property
    def seconds(self) -> float:
        return self.waveform.shape[-1] / SAMPLE_RATE

    def wav(self) -> bytes:
        """A WAV file of floats; the server reads exactly these samples from it."""
        file = io.BytesIO()
        soundfile.write(file, self.waveform[0].numpy(), SAMPLE_RATE, format="WAV", subtype="FLOAT")
        return file.getvalue()


def read_clip(path: str | Path) -> Clip:
    """An audio file, judged by its header; `prepare` decodes it. Raises BadClipError if it cannot be read."""
    clip = Clip(printable(path), Path(path))
    with open_audio(clip):
        return clip


def prepare(clips: Sequence[Clip], trim: bool = False) -> Reference:
    """Checks and joins one speaker's clips; `trim` cuts the silence at both ends of each. Raises BadClipError for a
    clip that is empty, silent, not finite, far over full scale or no audio, and for clips that together are too long
    for the model. Clips whose headers say so are not decoded."""
    name = " + ".join(clip.name for clip in clips)
    notes: list[Note] = []
    _check_length(name, sum(_claimed_seconds(clip, notes) for clip in clips), MAX_UNTRIMMED if trim else MODEL_SECONDS)
    parts = [_prepared(clip, trim, notes) for clip in clips]
    samples = np.concatenate(parts)
    seconds = len(samples) / SAMPLE_RATE
    _check_length(name, seconds, MODEL_SECONDS)
    best = f"the model works best with {BEST_SECONDS[0]:.0f} to {BEST_SECONDS[1]:.0f} s"
    if seconds < MIN_SECONDS:
        notes.append(Note("short", f"{name} has only {seconds:.2f} s of sound; {best}"))
    elif seconds > MAX_SECONDS:
        notes.append(Note("long", f"{name} lasts {seconds:.1f} s; {best}"))
    elif not BEST_SECONDS[0] <= seconds <= BEST_SECONDS[1]:
        notes.append(Note("length", f"{name} lasts {seconds:.1f} s; {best}"))
    if token_count(len(samples)) != math.ceil(len(samples) / FRAME_SIZE) + 1:
        notes.append(
            Note("miscounted", f"{name}: one sample is cut, because mistral-common miscounts {len(samples)} samples")
        )
        samples = samples[:-1]
    return Reference(torch.from_numpy(samples)[None], tuple(notes))


def _claimed_seconds(clip: Clip, notes: list[Note]) -> float:
    with open_audio(clip) as audio:
        if audio.cut_short:
            notes.append(Note("cut short", f"{clip.name} is shorter than its header says: copy it again"))
        return audio.seconds


def _check_length(name: str, seconds: float, most: float) -> None:
    """Raises BadClipError for more than `most` seconds."""
    if seconds > most:
        why = f"half of the model's {MODEL_TOKENS} tokens are for its speech"
        raise BadClipError(name, "is too long", f"{seconds:.0f} s, expected {int(MODEL_SECONDS)} s or less: {why}")


def token_count(samples: int) -> int:
    """The number of tokens that mistral-common reserves for a clip, by its formula and with its rounding. At some exact
    multiples of 1920 samples it is one more than the encoder makes."""
    return math.ceil((samples / SAMPLE_RATE) * (SAMPLE_RATE / FRAME_SIZE)) + 1


def _prepared(clip: Clip, trim: bool, notes: list[Note]) -> np.ndarray:
    """One clip's samples at 24 kHz, float32 [T]."""
    channels, rate = read_audio(clip)
    samples = channels[:, 0]
    if channels.shape[1] > 1:
        samples = channels.mean(axis=1)
        notes.append(Note("mixed down", f"{clip.name} has {channels.shape[1]} channels: mixed down to one"))
        if np.abs(samples).max() < SILENCE:
            raise BadClipError(clip.name, "is silent", "its channels cancel each other: export one of them")
    offset = float(samples.mean(dtype=np.float64))
    level = 20 * math.log10(max(float(samples.std(dtype=np.float64)), 1e-9))
    if _flat_share(samples - np.float32(offset)) > FLAT_SHARE or np.abs(samples).max() > 1:
        notes.append(Note("clipped", f"{clip.name} is clipped: the voice will sound distorted, record it more quietly"))
    if len(samples) >= MIN_SECONDS * rate and abs(offset) > OFFSET:
        notes.append(Note("offset", f"{clip.name} has an offset of {offset:.3f}: remove it with a high-pass filter"))
    if len(samples) >= MIN_SECONDS * rate and level < QUIET:
        why = "its voice has little detail, record it at a higher level"
        notes.append(Note("quiet", f"{clip.name} is quiet ({level:.0f} dBFS): {why}"))
    if is_band_limited(samples, rate):
        notes.append(Note("band-limited", f"{clip.name} has no energy above 8 kHz: the voice will sound dull"))
    if rate != SAMPLE_RATE:
        # The server's own resampler: a registered voice equals what the same clip gives as ref_audio.
        samples = soxr.resample(samples, rate, SAMPLE_RATE, quality="HQ")
        notes.append(Note("resampled", f"{clip.name} is at {rate} Hz: resampled to {SAMPLE_RATE} Hz"))
        if not len(samples):
            raise BadClipError(clip.name, "is empty", f"too short to have a sample at {SAMPLE_RATE} Hz")
    if trim:
        kept = _without_silent_ends(samples)
        if len(kept) < len(samples):
            cut = (len(samples) - len(kept)) / SAMPLE_RATE
            notes.append(Note("trimmed", f"{clip.name}: {cut:.2f} s of silence cut at its ends"))
        samples = kept
    return np.ascontiguousarray(samples, dtype=np.float32)


def _flat_share(samples: np.ndarray) -> float:
    """The share of samples [T], whose mean is 0, that equal both neighbours at the clip's peak. Unclipped speech has
    single points there."""
    peak = np.abs(samples).max()
    level = np.abs(np.diff(samples)) < 1e-4 * peak
    flat = level[:-1] & level[1:] & (np.abs(samples[1:-1]) > 0.98 * peak)
    return float(flat.sum() / len(samples))


def _without_silent_ends(samples: np.ndarray) -> np.ndarray:
    """The samples from the first to the last window that is not far below the loudest, with a margin on both sides."""
    windows = np.pad(samples, (0, -len(samples) % TRIM_WINDOW)).reshape(-1, TRIM_WINDOW)
    energy = np.square(windows, dtype=np.float64).mean(axis=1)
    loud = np.flatnonzero(energy > energy.max() * 10 ** (-TRIM_BELOW / 10))
    begin = max(0, loud[0] * TRIM_WINDOW - TRIM_MARGIN)
    return samples[begin : (loud[-1] + 1) * TRIM_WINDOW + TRIM_MARGIN]
