"""Sound quality. Against the original: mel and STFT distance, the level above 8 kHz, PESQ and ESTOI. Without it:
DistillMOS."""

from __future__ import annotations

import contextlib
import io
import math
import warnings
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from data.bandwidth import ABOVE, band_powers
from data.reference import SAMPLE_RATE
from evaluation.judges.judge import Measurements, Metric, library, refuse_short, refuse_silence
from evaluation.speech import Speech, at_rate
from losses.mel import FLOOR, MELS, RESOLUTIONS, MelDistance
from losses.resampling import JUDGE_RATE
from losses.stft import WINDOWS, STFTDistance

LONGEST = 30.0  # seconds; P.862 is for shorter clips, and its code crashes on more than 50 utterances

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
    f"power from {ABOVE[0]} to {ABOVE[1]} Hz relative to the original's, in dB; 0 means equal",
    digits=1,
)
ESTOI = Metric("estoi", "ESTOI", "higher", "extended short-time objective intelligibility, up to 1 (package pystoi)")
DISTILLMOS = Metric(
    "distillmos", "DistillMOS", "higher", "predicted mean opinion score, 1 to 5, no reference (package distillmos)", 2
)


class Distances:
    """The mel and STFT distances of the training, and the level of the upper band."""

    name = "distances"
    metrics = (MEL, STFT, BAND)
    absolute = False

    def __init__(self) -> None:
        self.mel, self.stft = MelDistance(SAMPLE_RATE), STFTDistance()

    def score(self, clip: Speech, audio: Tensor) -> Measurements:
        found = Measurements()
        pair = audio[None, None], clip.waveform[None, None]
        found.set("mel", float(self.mel(*pair)))
        found.set("stft", float(self.stft(*pair)))
        above, original = (band_powers(each.numpy(), SAMPLE_RATE)[1] for each in (audio, clip.waveform))
        # audio without any power in the band, such as silence, has no level in decibels
        found.set("band_level", 10 * math.log10(above / original) if above and original else -math.inf)
        return found


class Pesq:
    """Perceptual evaluation of speech quality (ITU-T P.862.2)."""

    name = "pesq"
    metrics = (PESQ,)
    absolute = False

    def __init__(self) -> None:
        self.pesq = library("pesq").pesq

    def score(self, clip: Speech, audio: Tensor) -> Measurements:
        found = Measurements()
        if clip.seconds > LONGEST:
            raise ValueError(f"{clip.seconds:.1f} s are too long for PESQ, expected {LONGEST:g} s or less")
        refuse_silence(audio)
        # the package raises RuntimeErrors for a clip under a quarter of a second or without an utterance
        try:
            pair = at_rate(clip.waveform, JUDGE_RATE), at_rate(audio, JUDGE_RATE)
            found.set("pesq", self.pesq(JUDGE_RATE, *pair, "wb"))
        except RuntimeError as error:
            reason = error.args[0] if error.args else error
            raise ValueError(reason.decode() if isinstance(reason, bytes) else str(reason)) from error
        return found


class Estoi:
    """Extended short-time objective intelligibility (Jensen and Taal 2016)."""

    name = "estoi"
    metrics = (ESTOI,)
    absolute = False

    def __init__(self) -> None:
        self.stoi = library("pystoi").stoi

    def score(self, clip: Speech, audio: Tensor) -> Measurements:
        found = Measurements()
        with warnings.catch_warnings(), fixed_numpy_seed():
            # with too few frames, pystoi would only warn and return 1e-5
            warnings.filterwarnings("error", category=RuntimeWarning, module="pystoi")
            try:
                value = self.stoi(clip.waveform.numpy(), audio.numpy(), SAMPLE_RATE, extended=True)
            except RuntimeWarning as warning:
                raise ValueError(str(warning).split(". ")[0]) from warning
        found.set("estoi", float(value))
        return found


class DistillMOS:
    """Predicted mean opinion score without a reference (Stahl and Gamper 2025). The package contains the weights."""

    name = "quality"
    metrics = (DISTILLMOS,)
    absolute = True

    def __init__(self, device: torch.device):
        self.device = device
        with contextlib.redirect_stdout(io.StringIO()):  # it prints the path of its weights
            self.network = library("distillmos").ConvTransformerSQAModel().eval().to(device)

    def score(self, clip: Speech, audio: Tensor) -> Measurements:
        return self.listen(audio)

    @torch.no_grad()
    def listen(self, audio: Tensor) -> Measurements:
        found = Measurements()
        refuse_short(audio)
        refuse_silence(audio)
        waveform = torch.from_numpy(at_rate(audio, JUDGE_RATE))[None].to(self.device)
        found.set("distillmos", float(self.network(waveform)))
        return found


@contextlib.contextmanager
def fixed_numpy_seed() -> Iterator[None]:
    """Seeds numpy's global generator with 0 and restores it: pystoi adds noise, which decides the value of silent
    bands."""
    state = np.random.get_state()
    np.random.seed(0)
    try:
        yield
    finally:
        np.random.set_state(state)
