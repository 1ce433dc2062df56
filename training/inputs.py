"""What differs from one step to the next: with a run's state, all that a step depends on."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from codec.codec import Codec
from codec.quantizer import Draw
from data.seeds import derive_seed
from training.config import Config
from training.distributed import Ranks
from training.optimizer import learning_rate


class StepInputs(NamedTuple):
    """All on the device."""

    waveform: Tensor  # [B, 1, T]
    semantic: Tensor  # the quantizer's draw, in parts: codec.quantizer.Draw
    acoustic: Tensor
    noise: Tensor
    seeds: Tensor  # [entries], the codebook's draw
    learning_rate: Tensor  # scalar
    fade: Tensor  # scalar: of the losses that fade

    @property
    def draw(self) -> Draw:
        return Draw(self.semantic, self.acoustic, self.noise)


def step_inputs(config: Config, ranks: Ranks, codec: Codec, waveform: Tensor, step: int) -> StepInputs:
    """This rank's part of a step, its crops [B, 1, T] given: everything drawn is a function of the seed and the step's
    number, for the crops of all ranks."""
    generator = torch.Generator().manual_seed(derive_seed(config.seed, step))
    frames = math.ceil(waveform.shape[-1] / codec.frame_size)
    draw = codec.quantizer.draw(len(waveform) * ranks.count, frames, generator).part(ranks.rank, ranks.count)
    seeds = codec.quantizer.semantic_codebook.draw(generator)
    rate, fade = torch.tensor(learning_rate(step, config)), torch.tensor(config.losses.fading**step)
    return StepInputs(waveform, *(to_device(tensor, ranks.device) for tensor in (*draw, seeds, rate, fade)))


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A CPU tensor on another device, without waiting for what that device still has to do."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)
