"""Commitment loss: keeps semantic latents near their codebook entries (VQ-VAE, van den Oord et al. 2017, eq. 3).

The acoustic latents have no commitment loss. Every value is within half a step of a level, and a pull toward the
nearest level would work against the noise that makes the codes robust.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def commitment(semantic_latent: Tensor, chosen_entry: Tensor) -> Tensor:
    """Mean squared distance of latents [B, D, F] to their entries [B, D, F]. Only the latents get a gradient."""
    return F.mse_loss(semantic_latent.float(), chosen_entry.detach().float())
