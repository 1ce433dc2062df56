"""Multi-resolution mel distance: the main measure of a reconstruction in training, validation and reports."""

from __future__ import annotations

import warnings

import torch
import torchaudio
from torch import Tensor, nn

from losses.frames import mean_of_whole_frames

RESOLUTIONS = ((2048, 512), (1024, 256), (512, 128))  # (n_fft, hop) in samples at 24 kHz
MELS = 80
FLOOR = 1e-5


class MelDistance(nn.Module):
    """Mean over the resolutions of the L1 distance between natural-log mel spectrograms (80 HTK bands from 0 Hz to
    the Nyquist frequency, of magnitudes, with a floor of 1e-5). All frames lie wholly inside the signal; there
    is no padding. Takes two waveforms [B, 1, T], returns a scalar, 0 for equal waveforms. Raises ValueError for fewer
    than 2048 samples.

    `offset` is added to the magnitudes before the logarithm: 0 for evaluation, more than 0 for a loss. The gradient of
    a logarithm is 1 / magnitude, so without an offset nearly all of the gradient comes from the few quietest moments of
    a clip.
    """

    def __init__(self, sample_rate: int, offset: float = 0.0):
        super().__init__()
        self.offset = offset
        self.scales = nn.ModuleList()
        for n_fft, hop in RESOLUTIONS:
            with warnings.catch_warnings():
                # at n_fft 512 the lowest bands are narrower than a bin and stay empty, which adds 0 to the distance
                warnings.filterwarnings("ignore", message="At least one mel filterbank has all zero values")
                mel = torchaudio.transforms.MelSpectrogram(
                    sample_rate, n_fft=n_fft, hop_length=hop, n_mels=MELS, power=1.0, center=False
                )
            self.scales.append(mel)

    def forward(self, reconstruction: Tensor, original: Tensor) -> Tensor:
        return self.per_clip(reconstruction, original).mean()

    def per_clip(self, reconstruction: Tensor, original: Tensor, lengths: Tensor | None = None) -> Tensor:
        """The distance of each clip: [B]. If clips are padded at the end, `lengths` [B] are their lengths in samples,
        and the padding is ignored."""
        shortest = original.shape[-1] if lengths is None else int(lengths.min())
        if shortest < RESOLUTIONS[0][0]:
            raise ValueError(f"{shortest} samples are too few, expected {RESOLUTIONS[0][0]} or more")
        total = torch.zeros(len(original), device=original.device)
        for (n_fft, hop), mel in zip(RESOLUTIONS, self.scales, strict=True):
            magnitudes = (mel(waveform.float()[:, 0]) for waveform in (reconstruction, original))
            logs = [(magnitude.clamp(min=FLOOR) + self.offset).log() for magnitude in magnitudes]
            total = total + mean_of_whole_frames((logs[0] - logs[1]).abs(), n_fft, hop, lengths)
        return total / len(self.scales)
