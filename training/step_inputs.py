"""The inputs of one training step, and steps replayed from a CUDA graph.

All that differs from one step to the next is in `StepInputs`; everything else is state that a step changes in place.
So a step can be captured once and replayed: one call instead of thousands of kernel launches. That is faster where
networks are small or the CPU is slow.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Set
from typing import Generic, NamedTuple, TypeVar

import torch
from torch import Tensor

from codec.codec import Codec
from codec.quantizer import Draw
from data.pairs import PairBatch, empty_pairs
from data.seeds import derive_seed
from training.config import Config, ConfigError
from training.distributed import Ranks
from training.optimization import learning_rate

WARM_UP = 4  # eager steps before a capture: they compile, choose algorithms and allocate the optimizers' state
Result = TypeVar("Result")


class StepInputs(NamedTuple):
    """All on the device."""

    waveform: Tensor  # [B, 1, T]
    semantic: Tensor  # the quantizer's random numbers, in parts: codec.quantizer.Draw
    acoustic: Tensor
    noise: Tensor
    seeds: Tensor  # [entries], random numbers for the codebook
    learning_rate: Tensor  # scalar
    l1_stft_factor: Tensor  # scalar, on the weights of l1 and stft
    pair_codes: Tensor  # [P, 37, context + F] and [P]: data.pairs.PairBatch
    pair_begins: Tensor

    @property
    def draw(self) -> Draw:
        return Draw(self.semantic, self.acoustic, self.noise)


def step_inputs(
    config: Config, ranks: Ranks, codec: Codec, waveform: Tensor, step: int, pairs: PairBatch | None = None
) -> StepInputs:
    """This rank's inputs for its crops [B, 1, T], and for its crops of pairs if there are any. Random numbers are drawn
    for the crops of all ranks, as a function of the seed and the step, and each rank takes its part."""
    generator = torch.Generator().manual_seed(derive_seed(config.seed, step))
    frames = math.ceil(waveform.shape[-1] / codec.frame_size)
    draw = codec.quantizer.draw(len(waveform) * ranks.world_size, frames, generator).part(ranks.rank, ranks.world_size)
    seeds = codec.quantizer.semantic_codebook.draw(generator)
    rate, factor = torch.tensor(learning_rate(step, config)), torch.tensor(config.losses.l1_stft_decay**step)
    pairs = pairs or empty_pairs(0, codec.config, frames)
    others = (*draw, seeds, rate, factor, pairs.codes, pairs.begins)
    return StepInputs(waveform, *(to_device(tensor, ranks.device) for tensor in others))


def noise_for(config: Config, codec: Codec) -> tuple[Tensor, PairBatch]:
    """Crops [B, 1, T] of noise and crops of pairs as `Trainer.step` takes them, for trials and measurements."""
    samples = round(config.data.crop_seconds * codec.sample_rate)
    waveform = 0.1 * torch.randn(config.crops_a_batch * config.accumulate, 1, samples, device=codec.device)
    pairs = empty_pairs(config.pairs_a_batch * config.accumulate, codec.config, codec.config.frames(samples))
    return waveform, pairs


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A CPU tensor on another device, without waiting for that device."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


class GraphedStep(Generic[Result]):
    """Calls `compute(inputs, losses)`, and from the fifth call with the same set of losses on replays a CUDA graph of
    it. A replay overwrites the results of the one before.

    `compute` may change state in place only and must not wait for the device. Steps with a loss in `never` do wait,
    and are never captured. All training must run on one stream that is not the default one.
    """

    def __init__(self, compute: Callable[[StepInputs, frozenset[str]], Result], never: Set[str] = frozenset()):
        self.compute, self.never = compute, never
        self.calls: Counter[frozenset[str]] = Counter()
        self.captured: frozenset[str] | None = None

    def __call__(self, inputs: StepInputs, losses: frozenset[str]) -> Result:
        self.calls[losses] += 1
        if losses & self.never or self.calls[losses] <= WARM_UP:
            return self.compute(inputs, losses)
        if self.captured != losses:
            self.captured, self.inputs = losses, StepInputs(*(tensor.clone() for tensor in inputs))
            self.graph = torch.cuda.CUDAGraph()
            # other threads, such as the data loader's, may call the driver during the capture
            with torch.cuda.graph(self.graph, stream=torch.cuda.current_stream(), capture_error_mode="thread_local"):
                self.result = self.compute(self.inputs, losses)
        for static, current in zip(self.inputs, inputs, strict=True):
            static.copy_(current)
        self.graph.replay()
        return self.result


def graphed_if_asked(
    compute: Callable[[StepInputs, frozenset[str]], Result], config: Config, ranks: Ranks
) -> Callable[[StepInputs, frozenset[str]], Result]:
    """`compute` itself, or with `cuda_graph=true` on a GPU its GraphedStep; then all that follows runs on a new stream.
    Call it before anything is built on the device. Raises ConfigError with several GPUs."""
    if not config.cuda_graph or ranks.device.type != "cuda":
        return compute
    if ranks.world_size > 1:
        raise ConfigError(f"cuda_graph is true with {ranks.world_size} GPUs, expected one")
    torch.cuda.set_stream(torch.cuda.Stream())
    return GraphedStep(compute, never={"asr"})  # generating a transcript asks the device after every token
