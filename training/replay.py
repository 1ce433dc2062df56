"""A step that is recorded once and replayed: one call instead of thousands of kernels started one by one (CUDA graphs).

Where networks are small or a machine's CPU is slow, starting the kernels takes longer than running them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Generic, TypeVar

import torch

from training.inputs import StepInputs

WARM_UP = 4  # steps of a variant made one by one: they compile, choose algorithms and make the optimizers' memory
Found = TypeVar("Found")


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
