"""Multi-resolution STFT discriminator (EnCodec, Défossez et al. 2022, section 3.4), its hinge loss, and the feature
matching that stands in place of the generator's adversarial loss (Voxtral TTS, arXiv 2603.25551)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

SIZES = (2296, 1418, 876, 542, 334, 206, 126, 76)  # samples; the hop is a quarter


class STFTDiscriminator(nn.Module):
    """One resolution: convolutions over the complex spectrogram, time by frequency. A waveform [B, 1, T] to the logits
    [B, 1, frames, bins] and the features of every layer before them."""

    window: Tensor

    def __init__(self, size: int, channels: int):
        super().__init__()
        self.size = size
        window = torch.hann_window(size)
        self.register_buffer("window", window / window.norm(), persistent=False)  # spectra of one scale at any size

        def conv(inputs: int, kernel: tuple[int, int], stride: int = 1, dilation: int = 1) -> nn.Conv2d:
            padding = (dilation * (kernel[0] - 1) // 2, (kernel[1] - 1) // 2)
            return weight_norm(nn.Conv2d(inputs, channels, kernel, (1, stride), padding, (dilation, 1)))

        self.layers = nn.ModuleList(
            [
                conv(2, (3, 9)),
                conv(channels, (3, 9), stride=2, dilation=1),
                conv(channels, (3, 9), stride=2, dilation=2),
                conv(channels, (3, 9), stride=2, dilation=4),
                conv(channels, (3, 3)),
            ]
        )
        self.last = weight_norm(nn.Conv2d(channels, 1, (3, 3), padding=(1, 1)))

    def forward(self, waveform: Tensor) -> tuple[Tensor, list[Tensor]]:
        hop = self.size // 4
        # half precision has no Fourier transform of these sizes
        with torch.autocast(waveform.device.type, enabled=False):
            spectrum = torch.stft(
                waveform[:, 0].float(), self.size, hop, window=self.window, center=False, return_complex=True
            )
        x = torch.view_as_real(spectrum).permute(0, 3, 2, 1)  # [B, 2, frames, bins]
        x = x.contiguous(memory_format=torch.channels_last)  # a tenth faster on a GPU in bf16
        features = []
        for layer in self.layers:
            x = F.leaky_relu(layer(x), 0.2, inplace=True)  # nobody asks for a convolution's own output again
            features.append(x)
        return self.last(x), features


class Discriminator(nn.Module):
    """All resolutions: a waveform [B, 1, T], T of 2296 samples or more, to logits and features of each."""

    def __init__(self, channels: int = 64):
        super().__init__()
        self.scales = nn.ModuleList(STFTDiscriminator(size, channels) for size in SIZES)

    def forward(self, waveform: Tensor) -> tuple[list[Tensor], list[list[Tensor]]]:
        if waveform.shape[-1] < SIZES[0]:
            raise ValueError(f"{waveform.shape[-1]} samples are too few, expected {SIZES[0]} or more")
        outputs = [scale(waveform) for scale in self.scales]
        return [logits for logits, _ in outputs], [features for _, features in outputs]


def hinge_loss(real: list[Tensor], fake: list[Tensor]) -> Tensor:
    """The discriminator's loss on its logits for originals and reconstructions, the mean over the resolutions."""
    losses = [F.relu(1 - r.float()).mean() + F.relu(1 + f.float()).mean() for r, f in zip(real, fake, strict=True)]
    return torch.stack(losses).mean()


def feature_matching(real: list[list[Tensor]], fake: list[list[Tensor]]) -> Tensor:
    """L1 distance of the features of originals and reconstructions, relative to the originals' size (EnCodec, eq. 2),
    the mean over all layers of all resolutions. The gradient goes to the reconstructions only."""
    distances = [
        # in the features' own precision, summed in float32: copies of them in float32 cost as much as the convolutions
        (f - r.detach()).abs().mean(dtype=torch.float32) / r.detach().abs().mean(dtype=torch.float32).clamp(min=1e-8)
        for real_scale, fake_scale in zip(real, fake, strict=True)
        for r, f in zip(real_scale, fake_scale, strict=True)
    ]
    return torch.stack(distances).mean()
