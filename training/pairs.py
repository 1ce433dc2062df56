"""The pairs' part of a batch: what the frozen decoder makes of their codes."""

from __future__ import annotations

import copy
from typing import NamedTuple

import torch
from torch import Tensor

from codec.codec import Codec


class DecodedPairs(NamedTuple):
    waveform: Tensor
    """[B, 1, T], the sound of the crops."""
    codes: Tensor
    """[B, 37, F] int64, the codes of the frames that lie wholly inside the crops."""


class PairDecoder:
    """Decodes crops of pairs on the codec's device, without a gradient. With `bf16` the weights and the arithmetic are
    bfloat16, as in the server: what it plays, up to the rounding of a batch's larger matrix products."""

    def __init__(self, codec: Codec, samples: int, bf16: bool):
        self.samples, self.frame_size = samples, codec.frame_size
        self.decoder, self.quantizer = codec.decoder, codec.quantizer
        if bf16:
            self.decoder = copy.deepcopy(codec.decoder).bfloat16()
            self.quantizer = copy.deepcopy(codec.quantizer).bfloat16()

    @torch.no_grad()
    def __call__(self, codes: Tensor, begins: Tensor) -> DecodedPairs:
        """Codes [B, 37, context + F] and the frames [B] at which the crops begin, as in data.pairs.PairBatch."""
        codes = codes.long()
        sound = self.decoder(self.quantizer.decode(codes))[:, 0].float()
        samples = torch.arange(self.samples, device=codes.device) + begins[:, None] * self.frame_size
        frames = torch.arange(self.samples // self.frame_size, device=codes.device) + begins[:, None]
        of_crop = codes.gather(2, frames[:, None].expand(-1, codes.shape[1], -1))
        return DecodedPairs(sound.gather(1, samples)[:, None], of_crop)
