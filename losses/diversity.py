"""Codebook diversity: each frame should choose one entry clearly, and all frames together should use many entries.

With p_f the soft assignment of frame f to the K entries, softmax(−|z_f − e|² / T), the mutual information of frame and
entry is I = H(mean p) − mean H(p): the entropy of the average assignment minus the average entropy (lookup-free
quantization, Yu et al. 2024, eq. 4, with both weights 1). I is 0 for a collapsed codebook and log K for an evenly used
one. The loss is 1 − I / log K.

The temperature T must fit the codebook. If T is far above the squared distances between entries, every assignment is
uniform and I is 0 whatever the frames do. So T is given relative to the codebook's spacing: the mean squared distance
of an entry to its nearest neighbour.
"""

from __future__ import annotations

import math

import torch
import torch.distributed as dist
from torch import Tensor, nn

SAMPLE = 512  # entries in the spacing's sample: its mean is within a few percent of the mean over all


class Diversity(nn.Module):
    """Takes latents [B, D, F] and entries [K, D], returns a scalar in [0, 1]. Only the latents get a gradient. The
    average assignment is taken over all ranks.

    `temperature` is relative to the codebook's spacing. `spacing` is the result of `codebook_spacing`, if the caller
    has it: for a frozen codebook it is computed only once.
    """

    def __init__(self, temperature: float = 0.1):
        super().__init__()
        if temperature <= 0:
            raise ValueError(f"temperature is {temperature}, expected more than 0")
        self.temperature = temperature

    def forward(self, semantic: Tensor, entries: Tensor, spacing: Tensor | None = None) -> Tensor:
        entries = entries.detach().float()
        frames = semantic.float().transpose(1, 2).reshape(-1, semantic.shape[1])
        squared = frames.square().sum(1, keepdim=True) - 2 * frames @ entries.T + entries.square().sum(1)
        spacing = codebook_spacing(entries) if spacing is None else spacing
        logarithms = torch.log_softmax(-squared / (self.temperature * spacing), dim=-1)  # [B·F, K]
        probabilities = logarithms.exp()
        of_frames = -(probabilities * logarithms).sum(dim=-1).mean()
        mean = probabilities.mean(dim=0)
        if dist.is_available() and dist.is_initialized():
            overall = mean.detach().clone()
            dist.all_reduce(overall)
            # the value is over all ranks; the gradient keeps the scale of this rank's mean, as in `of_frames`
            mean = mean + (overall / dist.get_world_size() - mean).detach()
        of_mean = -(mean * mean.clamp(min=1e-12).log()).sum()
        return 1 - (of_mean - of_frames) / math.log(len(entries))


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
