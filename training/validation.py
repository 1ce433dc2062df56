"""Validation: the EMA weights and hard codes, on fixed clips."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from codec.codec import Codec
from losses import MelDistance


class Validation(NamedTuple):
    metrics: dict[str, float]
    reconstruction: Tensor  # [N, 1, T]
    codes: Tensor  # [N, 37, F]


@torch.no_grad()
def validate(
    codec: Codec, clips: Tensor, batch_size: int, autocast: Callable[[], AbstractContextManager[Any]]
) -> Validation:
    """Metrics, reconstructions and codes of clips [N, 1, T], which are on the codec's device, in batches. The steady
    codes are those that a second pass finds again, in the reconstruction."""
    encoder = codec.get_submodule("encoder")
    codes, outputs, steady = [], [], []
    for part in clips.split(batch_size):
        with autocast():
            quantized = codec.quantizer(encoder(part))
            outputs.append(codec.decoder(quantized.latent).float()[..., : part.shape[-1]])
            again = codec.quantizer(encoder(outputs[-1]))
        codes.append(quantized.codes)
        steady.append(again.codes == quantized.codes)
    reconstruction, all_codes, all_steady = torch.cat(outputs), torch.cat(codes), torch.cat(steady).float()
    acoustic, top = all_codes[:, 1:], codec.config.acoustic_codebook_size - 1
    metrics = {
        "mel": MelDistance(codec.sample_rate).to(clips.device)(reconstruction, clips),
        "l1": nn.functional.l1_loss(reconstruction, clips),
        "sem_util": all_codes[:, 0].unique().numel(),
        "acoustic_min": acoustic.min(),
        "acoustic_mean": acoustic.float().mean(),
        "acoustic_max": acoustic.max(),
        "acoustic_at_ends": ((acoustic == 0) | (acoustic == top)).float().mean(),
        "steady_semantic": all_steady[:, 0].mean(),
        "steady_acoustic": all_steady[:, 1:].mean(),
    }
    return Validation({name: float(value) for name, value in metrics.items()}, reconstruction, all_codes)
