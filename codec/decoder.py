"""Latent -> waveform: the half of the codec that the release holds."""

from __future__ import annotations

from torch import Tensor, nn

from codec.config import CodecConfig
from codec.layers import CausalConv1d, CausalConvTranspose1d, Transformer


class Decoder(nn.Module):
    """Quantized latent [B, semantic + acoustic, F] to the waveform [B, 1, F * 1920] at 24 kHz."""

    def __init__(self, config: CodecConfig):
        super().__init__()
        self.decoder_blocks = nn.ModuleList()
        for i, stage in enumerate(config.decoder_stages):
            if i == 0:
                entry = CausalConv1d(config.latent_dim, config.dim, stage.kernel, stage.stride, "replicate")
                self.decoder_blocks.append(entry)
            elif stage.resamples:
                self.decoder_blocks.append(CausalConvTranspose1d(config.dim, config.dim, stage.kernel, stage.stride))
            self.decoder_blocks.append(Transformer(config, stage.layers, stage.window))
        patch, kernel = config.pretransform_patch_size, config.patch_proj_kernel_size
        self.output_proj = CausalConv1d(config.dim, patch, kernel, 1, "reflect", config.conv_weight_norm)

    def forward(self, latent: Tensor) -> Tensor:
        # [B, T, D] in memory from here on, as in the server: the layout is part of its arithmetic
        x = latent.transpose(1, 2).contiguous().transpose(1, 2)
        for block in self.decoder_blocks:
            x = block(x)
        return self.output_proj(x).transpose(1, 2).flatten(1)[:, None]  # patches back into samples
