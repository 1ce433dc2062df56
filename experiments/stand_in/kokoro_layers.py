"""Kokoro's layers over padded batches: each masks the padding, so that a sentence sounds the same alone and in a batch.

What is elementwise can be fused for a GPU: `compile_elementwise`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Mask: TypeAlias = tuple[Tensor, Tensor]  # 1 for valid frames [B, 1, T], and how many they are [B, 1, 1]


def mask_of(lengths: Tensor, size: int) -> Tensor:
    """[B] lengths to 1 for the first frames of each, 0 after them: [B, size]."""
    return (torch.arange(size, device=lengths.device) < lengths[:, None]).float()


def trim(x: Tensor, mask: Mask) -> Tensor:
    """x [B, C, T] with zeros beyond every item's end."""
    return x * mask[0].to(x.dtype)


def moments(x: Tensor, mask: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance over the valid frames; x is zero beyond them."""
    x = x.float()
    mean = x.sum(2, keepdim=True) / count
    return mean, ((x - mean) * mask).square().sum(2, keepdim=True) / count


def leaky(x: Tensor, scale: Tensor, shift: Tensor, alpha: float, mask: Tensor) -> Tensor:
    """Scale and shift, then a leaky ReLU."""
    return (F.leaky_relu(x.float() * scale + shift, alpha) * mask).to(x.dtype)


def snake(x: Tensor, scale: Tensor, shift: Tensor, alpha: Tensor, mask: Tensor) -> Tensor:
    """Scale and shift, then x + sin²(αx)/α."""
    y = x.float() * scale + shift
    return ((y + torch.sin(alpha * y).square() / alpha) * mask).to(x.dtype)


ELEMENTWISE: dict[str, Callable[..., Any]] = {"moments": moments, "leaky": leaky, "snake": snake}


class AdaIN(nn.Module):
    """Instance norm over the valid frames, with scale and shift from the style, and the activation after it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc = nn.Linear(128, 2 * channels)

    def forward(self, x: Tensor, s: Tensor, mask: Mask, alpha: float | Tensor) -> Tensor:
        gamma, beta = self.fc(s).float().unsqueeze(2).chunk(2, 1)
        mean, var = ELEMENTWISE["moments"](x, *mask)
        scale = (1 + gamma) * torch.rsqrt(var + 1e-5)
        activation = ELEMENTWISE["leaky" if isinstance(alpha, float) else "snake"]
        return activation(x, scale, beta - mean * scale, alpha, mask[0])


def compile_elementwise() -> None:
    """Fuses activations and moments, which cost more than the convolutions on a GPU. The first call compiles."""
    torch._dynamo.config.recompile_limit = 64  # a variant for every kind of input, some ten in all
    for name, function in ELEMENTWISE.items():
        ELEMENTWISE[name] = torch.compile(function, dynamic=True)


class AdaINBlock(nn.Module):
    """The residual block of the prosody predictor and the decoder."""

    def __init__(self, inputs: int, outputs: int, upsample: bool = False) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv1d(inputs, outputs, 3, 1, 1), nn.Conv1d(outputs, outputs, 3, 1, 1)
        self.norm1, self.norm2 = AdaIN(inputs), AdaIN(outputs)
        if upsample:
            self.pool = nn.ConvTranspose1d(inputs, inputs, 3, 2, 1, 1, groups=inputs)
        if inputs != outputs:
            self.conv1x1 = nn.Conv1d(inputs, outputs, 1, bias=False)
        self.upsample = upsample

    def forward(self, x: Tensor, s: Tensor, mask: Mask, wide: Mask) -> Tensor:
        """`mask` before and `wide` after the upsampling."""
        y = self.norm1(x, s, mask, 0.2)
        y = trim(self.pool(y), wide) if self.upsample else y
        y = self.conv2(self.norm2(trim(self.conv1(y), wide), s, wide, 0.2))
        x = x.repeat_interleave(2, 2) if self.upsample else x
        x = self.conv1x1(x) if hasattr(self, "conv1x1") else x
        return trim((x + y) * math.sqrt(0.5), wide)


class SnakeBlock(nn.Module):
    """The residual block of the generator: three pairs of a dilated and a plain convolution, with snake activations."""

    def __init__(self, channels: int, kernel: int) -> None:
        super().__init__()
        self.convs1 = nn.ModuleList(
            nn.Conv1d(channels, channels, kernel, dilation=d, padding=d * (kernel - 1) // 2) for d in (1, 3, 5)
        )
        self.convs2 = nn.ModuleList(nn.Conv1d(channels, channels, kernel, padding=(kernel - 1) // 2) for _ in range(3))
        self.adain1, self.adain2 = (nn.ModuleList(AdaIN(channels) for _ in range(3)) for _ in range(2))
        self.alpha1, self.alpha2 = (
            nn.ParameterList(nn.Parameter(torch.ones(1, channels, 1)) for _ in range(3)) for _ in range(2)
        )

    def forward(self, x: Tensor, s: Tensor, mask: Mask) -> Tensor:
        for i in range(3):
            y = trim(self.convs1[i](self.adain1[i](x, s, mask, self.alpha1[i])), mask)
            x = x + trim(self.convs2[i](self.adain2[i](y, s, mask, self.alpha2[i])), mask)
        return x


class Lstm(nn.LSTM):
    """A bidirectional LSTM over padded batches [B, T, C]."""

    def __init__(self, inputs: int) -> None:
        super().__init__(inputs, 256, batch_first=True, bidirectional=True)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        return nn.utils.rnn.pad_packed_sequence(
            nn.LSTM.forward(self, packed)[0], batch_first=True, total_length=x.shape[1]
        )[0]
