"""Averages over the frames of a spectrogram that lie inside a padded clip."""

from __future__ import annotations

import torch
from torch import Tensor


def mean_of_whole_frames(values_bft: Tensor, window: int, hop: int, lengths: Tensor | None) -> Tensor:
    """The mean of each clip's values [B, F, T] over the frames that lie wholly inside its first `lengths` [B] samples:
    [B]. `lengths=None` averages over all frames. A frame has `window` samples; frame i starts at sample i · `hop`."""
    if lengths is None:
        return values_bft.mean(dim=(1, 2))
    whole = (lengths.to(values_bft.device) - window) // hop + 1
    inside = torch.arange(values_bft.shape[-1], device=values_bft.device) < whole[:, None]  # [B, T]
    return (values_bft.mean(dim=1) * inside).sum(dim=1) / whole
