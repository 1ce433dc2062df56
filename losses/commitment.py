"""Commitment: keeps the semantic latents near the entries they choose (VQ-VAE, van den Oord et al. 2017, eq. 3).

The acoustic part has none: its levels lie everywhere within half a step, and a pull toward the nearest one works
against the noise that makes it robust.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def commitment(semantic_latent: Tensor, chosen_entry: Tensor) -> Tensor:
    """Mean squared distance of latents [B, D, F] to their entries [B, D, F]; the gradient goes to the latents only."""
    return F.mse_loss(semantic_latent.float(), chosen_entry.detach().float())
