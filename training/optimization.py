"""Adam, the learning-rate schedule, and the exponential moving average (EMA) of the weights."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from codec.codec import Codec
from training.config import Optimizer


def adam(
    parameters: Iterable[nn.Parameter], lr: float, betas: tuple[float, float], device: torch.device
) -> torch.optim.Adam:
    """Adam. On a GPU it steps in a few kernels and can be captured in a CUDA graph."""
    on_gpu = device.type == "cuda"
    return torch.optim.Adam(parameters, lr, betas, fused=on_gpu, capturable=on_gpu)


def load_optimizer(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Loads a saved state, but keeps this machine's `fused` and `capturable`: a run may move between GPU and CPU."""
    own = [{name: group[name] for name in ("fused", "capturable")} for group in optimizer.param_groups]
    groups = [dict(saved) | kept for saved, kept in zip(state["param_groups"], own, strict=True)]
    optimizer.load_state_dict({**state, "param_groups": groups})


def learning_rate(step: int, steps: int, options: Optimizer) -> float:
    """The schedule: linear warm-up to `lr`, then half a cosine down to `final_lr` at the last of the steps."""
    if step < options.warmup_steps:
        return options.lr * (step + 1) / options.warmup_steps
    progress = (step - options.warmup_steps) / max(1, steps - options.warmup_steps)
    return options.final_lr + (options.lr - options.final_lr) * 0.5 * (1 + math.cos(math.pi * progress))


class EMA:
    """The exponential moving average of the trained weights: these are validated, saved and injected.

    `codec` is a copy of the live codec in which the networks named in `trained` hold averages; it shares all else with
    the live one. At step n the decay is min(decay, (1 + n) / (10 + n)), so that a short run does not average in its
    start.
    """

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
        get_ema_multi_avg_fn(decay)(averages, current, None)  # one launch for hundreds of tensors
