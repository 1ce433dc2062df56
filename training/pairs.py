"""The pairs' part of a batch: what the frozen decoder makes of their codes, and which of these count."""

from __future__ import annotations

import copy
from typing import NamedTuple

import torch
from torch import Tensor

from codec.codec import Codec

# At the beginning of a crop the encoder lacks the sound before. So the codes of its first frames say little. On the
# stand-in the withheld encoder's codes of a crop were those of the whole clip from the fifth frame on.
SETTLING = 4  # frames


class DecodedPairs(NamedTuple):
    waveform: Tensor
    """[B, 1, T], the sound of the crops."""
    codes: Tensor
    """[B, 37, F] int64, the codes of the frames that lie wholly inside the crops."""
    counted: Tensor
    """[B, F] bool, the frames whose codes the encoder can find: all of a pair's beginning, else from SETTLING on."""


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
        frames = torch.arange(self.samples // self.frame_size, device=codes.device)
        of_crop = codes.gather(2, (frames + begins[:, None])[:, None].expand(-1, codes.shape[1], -1))
        counted = settled(len(codes), len(frames), codes.device) | (begins == 0)[:, None]
        return DecodedPairs(sound.gather(1, samples)[:, None], of_crop, counted)


def settled(crops: int, frames: int, device: torch.device) -> Tensor:
    """The frames [crops, frames] bool before which a crop has sound enough to know their codes."""
    return (torch.arange(frames, device=device) >= min(SETTLING, frames - 1)).expand(crops, -1)
