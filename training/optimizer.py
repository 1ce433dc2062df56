"""Adam, and the rate it learns at."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from training.config import Config


def adam(
    parameters: Iterable[nn.Parameter], lr: float, betas: tuple[float, float], device: torch.device
) -> torch.optim.Adam:
    """Adam that on a GPU steps in a few kernels and can be recorded."""
    on_gpu = device.type == "cuda"
    return torch.optim.Adam(parameters, lr, betas, fused=on_gpu, capturable=on_gpu)


def restore(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Takes over a saved state, but not how the machine that saved it stepped: it may have had no GPU, or this has
    none."""
    how = [{name: group[name] for name in ("fused", "capturable")} for group in optimizer.param_groups]
    groups = [dict(saved) | own for saved, own in zip(state["param_groups"], how, strict=True)]
    optimizer.load_state_dict({**state, "param_groups": groups})


def learning_rate(step: int, config: Config) -> float:
    """Linear warm-up, then half a cosine from the peak to the final rate at the last step."""
    options = config.optimizer
    if step < options.warmup_steps:
        return options.lr * (step + 1) / options.warmup_steps
    progress = (step - options.warmup_steps) / max(1, config.steps - options.warmup_steps)
    return options.final_lr + (options.lr - options.final_lr) * 0.5 * (1 + math.cos(math.pi * progress))
