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

from losses.codebook import as_frames, codebook_spacing, squared_distances


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
        squared = squared_distances(as_frames(semantic), entries)
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
