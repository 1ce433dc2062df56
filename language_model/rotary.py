"""Rotary positions (RoPE, Su et al. 2021, arXiv 2104.09864): angles, and the order of a head's dimensions.

A release stores the dimensions of a head so that neighbours (2i, 2i + 1) are turned together. `transformers` turns
dimension i with i + head_dim / 2. Both are the same model if the rows of the query and key weights are reordered, which
happens when weights are loaded and saved, here and nowhere else.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def to_halves(weight: Tensor, head_dim: int) -> Tensor:
    """Query or key weight [heads · head_dim, dim] as a release stores it -> as `transformers` wants it."""
    rows, dim = weight.shape
    return weight.view(rows // head_dim, head_dim // 2, 2, dim).transpose(1, 2).reshape(rows, dim)


def to_interleaved(weight: Tensor, head_dim: int) -> Tensor:
    """The inverse of `to_halves`, bit for bit."""
    rows, dim = weight.shape
    return weight.view(rows // head_dim, 2, head_dim // 2, dim).transpose(1, 2).reshape(rows, dim)


class RotaryAngles(nn.Module):
    """Takes the place of MistralModel's own module, which keeps its frequencies in a buffer. Nothing is kept here, so
    the angles are float32 after `model.to(torch.bfloat16)` too, and a model built on the meta device has them."""

    def __init__(self, head_dim: int, theta: float) -> None:
        super().__init__()
        self.head_dim, self.theta = head_dim, theta

    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Positions [B, T] -> cosines and sines [B, T, head_dim] in the dtype of `x`."""
        exponents = torch.arange(0, self.head_dim, 2, dtype=torch.float32, device=x.device) / self.head_dim
        with torch.autocast(x.device.type, enabled=False):
            angles = position_ids[..., None].float() * (1 / self.theta**exponents)
        angles = torch.cat([angles, angles], dim=-1)
        return angles.cos().to(x.dtype), angles.sin().to(x.dtype)
