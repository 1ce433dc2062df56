"""Waveform -> latent: the half of the codec that the release lacks."""

from __future__ import annotations

import math

from torch import Tensor, nn
from torch.nn import functional as F

from codec.config import CodecConfig
from codec.decoder import Decoder
from codec.layers import CausalConv1d, Transformer


class Encoder(nn.Module):
    """Waveform [B, 1, T] at 24 kHz, in [-1, 1], to the latent before quantization [B, semantic + acoustic, F], with
    F = ceil(T / 1920). Samples missing to a whole patch of 240 are zeros; nothing is squashed at the end: the
    quantizer holds the codec's one tanh. A frame depends on `context` frames before it and on none after it."""

    def __init__(self, config: CodecConfig):
        super().__init__()
        self.patch_size = config.pretransform_patch_size
        self.input_proj = CausalConv1d(
            self.patch_size, config.dim, config.patch_proj_kernel_size, 1, "reflect", config.conv_weight_norm
        )
        self.encoder_blocks = nn.ModuleList()
        stages = config.encoder_stages
        before, step = config.patch_proj_kernel_size - 1, 1  # both in patches
        for i, stage in enumerate(stages):
            last = i == len(stages) - 1
            before += step * (stage.layers * stage.window + stage.kernel - stage.stride)
            step *= stage.stride
            self.encoder_blocks.append(Transformer(config, stage.layers, stage.window))
            if stage.resamples or last:
                out = config.latent_dim if last else config.dim
                self.encoder_blocks.append(CausalConv1d(config.dim, out, stage.kernel, stage.stride, "replicate"))
        self.context = math.ceil(before / step)

    def forward(self, waveform: Tensor) -> Tensor:
        waveform = F.pad(waveform, (0, -waveform.shape[-1] % self.patch_size))
        x = waveform[:, 0].unflatten(-1, (-1, self.patch_size)).transpose(1, 2)  # patches as channels [B, 240, T/240]
        # the transformers work on [B, T, D]; that layout from here on is part of the server's arithmetic
        x = self.input_proj(x).transpose(1, 2).contiguous().transpose(1, 2)
        for block in self.encoder_blocks:
            x = block(x)
        return x

    def mirror(self, decoder: Decoder) -> None:
        """Starts the transformers from the decoder's: stage by stage from the end, where the windows are the same."""
        mine = [block for block in self.encoder_blocks if isinstance(block, Transformer)]
        theirs = [block for block in decoder.decoder_blocks if isinstance(block, Transformer)]
        for block, source in zip(mine, reversed(theirs), strict=True):
            block.load_state_dict(source.state_dict())
