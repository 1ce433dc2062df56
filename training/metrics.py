"""Metrics of a step's parts and of all ranks as those of the whole step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from training.distributed import Ranks

# by the last word of a metric's name; all others are means
WAYS: dict[str, Callable[[Tensor], Tensor]] = {"min": torch.amin, "max": torch.amax, "clips": torch.sum}


def combined(parts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Scalars of the same names: of a `_min` the smallest, of a `_max` the largest, of `_clips` the sum, of all others
    the mean."""
    columns = {name: torch.stack([part[name].float() for part in parts]) for name in parts[0]}
    return {name: WAYS.get(name.rpartition("_")[2], torch.mean)(column) for name, column in columns.items()}


def over_ranks(metrics: Mapping[str, Tensor], ranks: Ranks) -> dict[str, float]:
    """All ranks' metrics, `combined`. This is where values are read from the device."""
    found = ranks.gather(torch.stack([value.float() for value in metrics.values()])[None]).cpu()
    parts = [dict(zip(metrics, row, strict=True)) for row in found]
    return {name: float(value) for name, value in combined(parts).items()}
