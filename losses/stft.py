"""L1 distance of STFT magnitudes at several window lengths (Voxtral TTS, arXiv 2603.25551, codec loss)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from losses.frames import mean_of_whole_frames

WINDOWS = (2048, 1024, 512, 256)  # samples; the hop is a quarter


class STFTDistance(nn.Module):
    """Mean over the window lengths of the L1 distance between magnitude spectrograms. Each window has unit energy, so
    that all resolutions count the same. There is no padding. Takes two waveforms [B, 1, T], returns a scalar."""

    def __init__(self) -> None:
        super().__init__()
        for length in WINDOWS:
            window = torch.hann_window(length)
            self.register_buffer(f"window_{length}", window / window.norm(), persistent=False)

    def forward(self, reconstruction: Tensor, original: Tensor) -> Tensor:
        return self.per_clip(reconstruction, original).mean()

    def per_clip(self, reconstruction: Tensor, original: Tensor, lengths: Tensor | None = None) -> Tensor:
        """The distance of each clip: [B]. `lengths` as in `MelDistance.per_clip`."""
        total = torch.zeros(len(original), device=original.device)
        for length in WINDOWS:
            window, hop = self.get_buffer(f"window_{length}"), length // 4
            magnitudes = [
                torch.stft(x.float()[:, 0], length, hop, window=window, center=False, return_complex=True).abs()
                for x in (reconstruction, original)
            ]
            total = total + mean_of_whole_frames((magnitudes[0] - magnitudes[1]).abs(), length, hop, lengths)
        return total / len(WINDOWS)
