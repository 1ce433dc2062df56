"""How near a reconstruction is to its original, as a signal: mel and STFT distance, PESQ, ESTOI."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from torch import Tensor

from data.bandwidth import OVER, band_powers
from data.clips import SILENCE
from data.reference import SAMPLE_RATE
from evaluation.judges.judge import Metric, Verdict, library
from evaluation.speech import Speech, at_rate
from losses.mel import FLOOR, MELS, RESOLUTIONS, MelDistance
from losses.stft import WINDOWS, STFTDistance

RATE = 16000  # Hz, of wide-band PESQ
LONGEST = 30.0  # seconds; P.862 is for shorter clips, and its code has room for 50 utterances: behind it, it crashes
SHORTEST = 1.0  # seconds, of what a network judges

MEL = Metric(
    "mel",
    "mel distance",
    "lower",
    f"L1 of natural-log mel magnitudes, {MELS} bands, floor {FLOOR:g}, mean over (n_fft, hop) "
    f"{', '.join(str(r) for r in RESOLUTIONS)} at {SAMPLE_RATE} Hz, no padding (losses/mel.py)",
)
STFT = Metric(
    "stft",
    "STFT distance",
    "lower",
    f"L1 of STFT magnitudes, windows {', '.join(map(str, WINDOWS))} of unit energy, hop a quarter (losses/stft.py)",
    digits=4,
)
PESQ = Metric("pesq", "PESQ", "higher", "ITU-T P.862.2, wide band, 16 kHz, MOS-LQO 1 to 4.64 (package pesq)", digits=2)
BAND = Metric(
    "band_level",
    "level above 8 kHz, dB",
    "",
    f"power from {OVER[0]} to {OVER[1]} Hz, relative to the original's, dB: 0 for as much of it",
    digits=1,
)
ESTOI = Metric("estoi", "ESTOI", "higher", "extended short-time objective intelligibility, up to 1 (package pystoi)")


class Distances:
    """Mel and STFT distance, as in training, and whether the upper band is there."""

    name = "distances"
    metrics = (MEL, STFT, BAND)
    absolute = False

    def __init__(self) -> None:
        self.mel, self.stft = MelDistance(SAMPLE_RATE), STFTDistance()

    def score(self, clip: Speech, audio: Tensor) -> Verdict:
        verdict = Verdict()
        pair = audio[None, None], clip.waveform[None, None]
        verdict.set("mel", float(self.mel(*pair)))
        verdict.set("stft", float(self.stft(*pair)))
        over, original = (band_powers(sound.numpy(), SAMPLE_RATE)[1] for sound in (audio, clip.waveform))
        # a sound without any such power, such as silence, has no level in decibels
        verdict.set("band_level", 10 * math.log10(over / original) if over and original else -math.inf)
        return verdict


class Pesq:
    """Perceptual evaluation of speech quality."""

    name = "pesq"
    metrics = (PESQ,)
    absolute = False

    def __init__(self) -> None:
        self.pesq = library("pesq").pesq

    def score(self, clip: Speech, audio: Tensor) -> Verdict:
        verdict = Verdict()
        if clip.seconds > LONGEST:
            raise ValueError(f"{clip.seconds:.1f} s are too long for PESQ, expected {LONGEST:g} s or less")
        refuse_silence(audio)
        # its errors, a clip under a quarter of a second or without an utterance in it, are RuntimeErrors
        try:
            verdict.set("pesq", self.pesq(RATE, at_rate(clip.waveform, RATE), at_rate(audio, RATE), "wb"))
        except RuntimeError as error:
            reason = error.args[0] if error.args else error
            raise ValueError(reason.decode() if isinstance(reason, bytes) else str(reason)) from error
        return verdict


class Estoi:
    """Extended short-time objective intelligibility."""

    name = "estoi"
    metrics = (ESTOI,)
    absolute = False

    def __init__(self) -> None:
        self.stoi = library("pystoi").stoi

    def score(self, clip: Speech, audio: Tensor) -> Verdict:
        verdict = Verdict()
        with warnings.catch_warnings(), repeatable():
            # too few frames for one value: it would warn and return 1e-5
            warnings.filterwarnings("error", category=RuntimeWarning, module="pystoi")
            try:
                value = self.stoi(clip.waveform.numpy(), audio.numpy(), SAMPLE_RATE, extended=True)
            except RuntimeWarning as warning:
                raise ValueError(str(warning).split(". ")[0]) from warning
        verdict.set("estoi", float(value))
        return verdict


@contextmanager
def repeatable() -> Iterator[None]:
    """pystoi adds noise of numpy's global generator, which decides the value of silent bands."""
    state = np.random.get_state()
    np.random.seed(0)
    try:
        yield
    finally:
        np.random.set_state(state)


def refuse_short(audio: Tensor) -> None:
    """Raises ValueError for audio [T] that a network has too little of to know anything: padded to its window, 20 ms
    have a mean opinion score, and a tenth of a second of noise is half the same voice."""
    seconds = audio.shape[-1] / SAMPLE_RATE
    if seconds < SHORTEST:
        raise ValueError(f"{seconds:.2f} s are too short to judge, expected {SHORTEST:g} s or more")


def refuse_silence(audio: Tensor) -> None:
    """Raises ValueError for audio that a network or a measure would answer with a meaningless number."""
    if float(audio.abs().max()) < SILENCE:
        raise ValueError("the reconstruction is silent")
