"""Codebook diversity: frames should choose their entries clearly, and all frames together should choose many.

With p_f the soft assignment of frame f to the K entries, softmax(−|z_f − e|² / T), the mutual information of frame and
entry is I = H(mean p) − mean H(p): the entropy of the average assignment less the average entropy (lookup-free
quantization, Yu et al. 2024, eq. 4, with both weights 1). It is 0 for a collapsed codebook and log K for one that is
used evenly; the loss is 1 − I / log K.

The temperature decides whether it can tell them apart: far above the distances between entries every assignment is the
same even one, and I is 0 whatever the frames do. So T is given in units of the codebook itself: the mean squared
distance of an entry to its nearest neighbour.
"""

from __future__ import annotations

import math

import torch
import torch.distributed as dist
from torch import Tensor, nn

SAMPLE = 512  # entries whose nearest neighbour is looked for: the mean of all to a few percent


class Diversity(nn.Module):
    """Latents [B, D, F] and entries [K, D] to a scalar in [0, 1]. The gradient goes to the latents only; the average
    assignment is taken over all ranks. `temperature` is relative to the codebook's own spacing, which a caller can give
    who knows it: a frozen codebook's stays what it is."""

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
            # the value is that of all ranks; each frame's gradient has the size it has in the term beside
            mean = mean + (overall / dist.get_world_size() - mean).detach()
        of_mean = -(mean * mean.clamp(min=1e-12).log()).sum()
        return 1 - (of_mean - of_frames) / math.log(len(entries))


@torch.no_grad()
def codebook_spacing(entries: Tensor) -> Tensor:
    """Mean squared distance of an entry to its nearest neighbour, over an even sample of the codebook. Entries that
    coincide, as dead ones do, do not count; 1 where all of them do."""
    sample = entries[:: max(1, len(entries) // SAMPLE)]
    # by way of matrix products, an entry's distance to itself would be a rounding error and pass for a neighbour's
    distances = torch.cdist(sample, entries, compute_mode="donot_use_mm_for_euclid_dist")
    distances = torch.where(distances < 1e-6, torch.inf, distances)
    nearest = distances.amin(dim=1)
    counted = nearest.isfinite()
    mean = torch.where(counted, nearest, 0).square().sum() / counted.sum().clamp(min=1)
    return torch.where(counted.any(), mean, 1.0)
