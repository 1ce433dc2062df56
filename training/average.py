"""An exponential average of the trained weights: what is validated, saved and injected."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from codec.codec import Codec


class AveragedCodec:
    """`codec` is a copy of the live one in which the networks named in `trained` are averages; all else is shared.
    The decay rises to its value over the first steps, (1 + n) / (10 + n) at step n, so that a short run is not an
    average of its start."""

    def __init__(self, live: Codec, trained: Sequence[str], decay: float):
        self.codec = copy.deepcopy(live).eval().requires_grad_(False)
        for name, network in live.named_children():
            if name not in trained:
                setattr(self.codec, name, network)
        self.networks = nn.ModuleDict({name: self.codec.get_submodule(name) for name in trained})
        self.live = nn.ModuleDict({name: live.get_submodule(name) for name in trained})
        self.decay = decay

    @torch.no_grad()
    def update(self, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        averages, current = list(self.networks.parameters()), list(self.live.parameters())
        get_ema_multi_avg_fn(decay)(averages, current, None)  # all in one launch: there are hundreds
