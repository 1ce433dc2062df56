"""A step that is recorded once and replayed: one call instead of thousands of kernels started one by one (CUDA graphs).

Where networks are small or a machine's CPU is slow, starting the kernels takes longer than running them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Generic, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from codec.quantizer import Draw

WARM_UP = 4  # steps of a variant made one by one: they compile, choose algorithms and make the optimizers' memory
Found = TypeVar("Found")


class StepInputs(NamedTuple):
    """All that differs from one step to the next, on the device: with the state, it is all that a step depends on."""

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


class Replay(Generic[Found]):
    """Computes `compute(inputs, losses)`; the values that it returned last are overwritten.

    `compute` may change state in place only, must not wait for the device, and does the same for the same set of
    `losses`. All of the training has to run on one stream, and not on the default one.
    """

    def __init__(self, compute: Callable[[StepInputs, frozenset[str]], Found]):
        self.compute = compute
        self.made: Counter[frozenset[str]] = Counter()
        self.recorded: frozenset[str] | None = None

    def __call__(self, inputs: StepInputs, losses: frozenset[str]) -> Found:
        self.made[losses] += 1
        if self.made[losses] <= WARM_UP:
            return self.compute(inputs, losses)
        if self.recorded != losses:
            self.recorded, self.inputs = losses, StepInputs(*(tensor.clone() for tensor in inputs))
            self.graph = torch.cuda.CUDAGraph()
            # other threads, such as the loader's, may go on calling the driver meanwhile
            with torch.cuda.graph(self.graph, stream=torch.cuda.current_stream(), capture_error_mode="thread_local"):
                self.found = self.compute(self.inputs, losses)
        for kept, given in zip(self.inputs, inputs, strict=True):
            kept.copy_(given)
        self.graph.replay()
        return self.found


def adam(
    parameters: Iterable[nn.Parameter], lr: float, betas: tuple[float, float], device: torch.device
) -> torch.optim.Adam:
    """Adam that on a GPU steps in a few kernels and can be recorded."""
    on_gpu = device.type == "cuda"
    return torch.optim.Adam(parameters, lr, betas, fused=on_gpu, capturable=on_gpu)


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A CPU tensor on another device, without waiting for what that device still has to do."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)
