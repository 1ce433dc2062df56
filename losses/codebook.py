"""Distances of semantic latents to the entries of the codebook, which three losses are made of."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from codec.quantizer import Quantizer

SAMPLE = 512  # entries in the spacing's sample: its mean is within a few percent of the mean over all


class CodebookLoss(nn.Module):
    """What losses have in common that score a frame for each entry of a frozen codebook: its `entries` [K, D], their
    `spacing`, and the `temperature` T in units of it. Raises ValueError for a temperature of 0 or less."""

    entries: Tensor
    spacing: Tensor

    def __init__(self, quantizer: Quantizer, temperature: float = 0.5):
        super().__init__()
        if temperature <= 0:
            raise ValueError(f"temperature is {temperature}, expected more than 0")
        self.temperature = temperature
        entries = quantizer.semantic_codebook.embedding.detach().float()
        self.register_buffer("entries", entries, persistent=False)
        self.register_buffer("spacing", codebook_spacing(entries), persistent=False)

    def scores(self, squared: Tensor) -> Tensor:
        """From squared distances [N, K]: −|z − e_k|² / (T s), of which the softmax chooses an entry."""
        return -squared / (self.temperature * self.spacing)


def as_frames(latent: Tensor) -> Tensor:
    """Latents [B, D, F] as frames [B·F, D], in float32."""
    return latent.float().transpose(1, 2).reshape(-1, latent.shape[1])


def squared_distances(frames: Tensor, entries: Tensor) -> Tensor:
    """Of each frame [N, D] to each entry [K, D]: [N, K]."""
    return frames.square().sum(1, keepdim=True) - 2 * frames @ entries.T + entries.square().sum(1)


@torch.no_grad()
def codebook_spacing(entries: Tensor) -> Tensor:
    """Mean squared distance of an entry to its nearest neighbour, over an even sample of the codebook [K, D]: a scalar.
    Entries that coincide, as dead ones do, do not count as neighbours. If all entries coincide, the result is 1."""
    sample = entries[:: max(1, len(entries) // SAMPLE)]
    # with matrix products, rounding would make an entry's distance to itself positive, like a close neighbour's
    distances = torch.cdist(sample, entries, compute_mode="donot_use_mm_for_euclid_dist")
    distances = torch.where(distances < 1e-6, torch.inf, distances)
    nearest = distances.amin(dim=1)
    counted = nearest.isfinite()
    mean = torch.where(counted, nearest, 0).square().sum() / counted.sum().clamp(min=1)
    return torch.where(counted.any(), mean, 1.0)
