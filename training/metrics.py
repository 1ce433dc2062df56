"""Metrics of a step's parts and of all ranks, combined into those of the whole step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from training.distributed import Ranks

# how values combine, by the last word of a metric's name; all others are averaged
REDUCTIONS: dict[str, Callable[[Tensor], Tensor]] = {"min": torch.amin, "max": torch.amax, "clips": torch.sum}


class RunningMetrics:
    """The newest value of every metric. A loss that skips steps keeps its last value; `_clips` metrics add up."""

    def __init__(self) -> None:
        self.values: dict[str, Tensor] = {}
        self.shares: list[tuple[list[str], Tensor]] = []  # of each step since the last `mean_shares`

    def update(self, metrics: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Adds a step's metrics and returns all."""
        counted = [name for name in metrics if name.endswith("_clips")]
        counts = {name: self.values.get(name, torch.zeros_like(metrics[name])) + metrics[name] for name in counted}
        names = [name for name in metrics if name.startswith("share")]
        # stack copies: the next replay of a CUDA graph overwrites these tensors
        self.shares.append((names, torch.stack([metrics[name] for name in names])))
        self.values |= {**metrics, **counts}
        return dict(self.values)

    def mean_shares(self) -> dict[str, Tensor]:
        """Each loss's real share of the gradient, averaged over the steps since the last call; a step without the loss
        counts as 0."""
        steps, self.shares = self.shares, []
        of_loss: dict[str, list[Tensor]] = {}
        for names, values in steps:
            for name, value in zip(names, values.unbind(), strict=True):
                of_loss.setdefault(name, []).append(value)
        return {name: torch.stack(values).sum() / len(steps) for name, values in of_loss.items()}


def combine(parts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Scalars with the same names in every part, combined: `_min` the smallest, `_max` the largest, `_clips` the sum,
    all others the mean."""
    columns = {name: torch.stack([part[name].float() for part in parts]) for name in parts[0]}
    return {name: REDUCTIONS.get(name.rpartition("_")[2], torch.mean)(column) for name, column in columns.items()}


def combine_over_ranks(metrics: Mapping[str, Tensor], ranks: Ranks) -> dict[str, float]:
    """All ranks' metrics, combined. Waits for the device."""
    found = ranks.gather(torch.stack([value.float() for value in metrics.values()])[None]).cpu()
    parts = [dict(zip(metrics, row, strict=True)) for row in found]
    return {name: float(value) for name, value in combine(parts).items()}
