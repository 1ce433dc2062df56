"""Metrics of a step's parts and of all ranks as those of the whole step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from training.distributed import Ranks

# by the last word of a metric's name; all others are means
WAYS: dict[str, Callable[[Tensor], Tensor]] = {"min": torch.amin, "max": torch.amax, "clips": torch.sum}


class Latest:
    """The metrics of a run so far: of a loss that is not in every step those of the last one that it was in; of
    `_clips` their number."""

    def __init__(self) -> None:
        self.values: dict[str, Tensor] = {}
        self.shares: list[tuple[list[str], Tensor]] = []  # by step, of the losses that were in it

    def update(self, metrics: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Adds a step's, and gives all."""
        counted = [name for name in metrics if name.endswith("_clips")]
        counts = {name: self.values.get(name, torch.zeros_like(metrics[name])) + metrics[name] for name in counted}
        names = [name for name in metrics if name.startswith("share")]
        # a copy: a replayed step reuses them
        self.shares.append((names, torch.stack([metrics[name] for name in names])))
        self.values |= {**metrics, **counts}
        return dict(self.values)

    def mean_shares(self) -> dict[str, Tensor]:
        """Each loss's real share of the gradient, over the steps since this was asked before: 0 where it was not in."""
        steps, self.shares = self.shares, []
        of_loss: dict[str, list[Tensor]] = {}
        for names, values in steps:
            for name, value in zip(names, values.unbind(), strict=True):
                of_loss.setdefault(name, []).append(value)
        return {name: torch.stack(values).sum() / len(steps) for name, values in of_loss.items()}


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
