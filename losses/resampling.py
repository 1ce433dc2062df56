"""Resamples to 16 kHz, the sample rate of the frozen networks that losses use."""

from __future__ import annotations

import torchaudio

JUDGE_RATE = 16000  # Hz: Whisper, the speaker networks, DistillMOS and wide-band PESQ take this rate


def band_limited_resample(sample_rate: int) -> torchaudio.transforms.Resample:
    """A differentiable resampler from `sample_rate` (Hz) to 16 kHz. Filter width 64 keeps 7.5 kHz unchanged and
    attenuates 9 kHz by 87 dB. With the default width of 6, 9 kHz would be folded back into the band at −17 dB."""
    return torchaudio.transforms.Resample(sample_rate, JUDGE_RATE, lowpass_filter_width=64)
