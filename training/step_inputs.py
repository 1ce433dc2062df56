"""The inputs of one training step, and steps replayed from a CUDA graph.

All that differs from one step to the next is in `StepInputs`; everything else is state that a step changes in place.
So a step is captured once and replayed: one call instead of thousands of kernel launches, for which a GPU would wait.
"""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from codec.codec import Codec
from codec.quantizer import Draw
from data.pairs import PairBatch, empty_pairs
from data.seeds import derive_seed
from losses.pseudo_labels import Labeller
from training.config import Config
from training.distributed import Ranks
from training.optimization import learning_rate

WARM_UP = 2  # steps computed before one is recorded: they choose algorithms and allocate the optimizers' state
Results = tuple[dict[str, Tensor], dict[str, Tensor]]  # metrics, and flags of crops whose gradients are not finite


class StepInputs(NamedTuple):
    """All on the device."""

    waveform: Tensor  # [B, 1, T]
    semantic: Tensor  # the quantizer's random numbers, in parts: codec.quantizer.Draw
    acoustic: Tensor
    noise: Tensor
    seeds: Tensor  # [entries], random numbers for the codebook
    learning_rate: Tensor  # scalar
    l1_stft_factor: Tensor  # scalar, on the weights of l1 and stft
    languages: Tensor  # [B], of the crops, as Whisper numbers them; all 0 without a teacher
    discriminator_begins: Tensor  # [B], first sample of the part of each crop that the discriminator gets
    pair_codes: Tensor  # [P, 37, context + F] and [P]: data.pairs.PairBatch
    pair_begins: Tensor
    labeller_draw: Tensor  # [P, channels] that the labeller may lose; [0, 0] without one

    @property
    def draw(self) -> Draw:
        return Draw(self.semantic, self.acoustic, self.noise)


def step_inputs(
    config: Config,
    ranks: Ranks,
    codec: Codec,
    waveform: Tensor,
    step: int,
    pairs: PairBatch | None = None,
    languages: Tensor | None = None,
    labeller: Labeller | None = None,
) -> StepInputs:
    """This rank's inputs for its crops [B, 1, T], and for its crops of pairs if there are any. Random numbers are drawn
    for the crops of all ranks, as a function of the seed and the step, and each rank takes its part."""
    generator, samples = torch.Generator().manual_seed(derive_seed(config.seed, step)), waveform.shape[-1]
    frames = math.ceil(samples / codec.frame_size)
    draw = codec.quantizer.draw(len(waveform) * ranks.world_size, frames, generator).part(ranks.rank, ranks.world_size)
    seeds = codec.quantizer.semantic_codebook.draw(generator)
    spare = samples - discriminator_samples(config, samples, codec.sample_rate)
    begins = torch.randint(spare + 1, (len(waveform) * ranks.world_size,), generator=generator)
    begins = begins.chunk(ranks.world_size)[ranks.rank]
    rate = torch.tensor(learning_rate(step, config.steps, config.optimizer))
    factor = torch.tensor(config.losses.l1_stft_decay**step)
    pairs = pairs or empty_pairs(0, codec.config, frames)
    channels = labeller.draw(len(pairs.codes) * ranks.world_size, generator) if labeller else torch.zeros(0, 0)
    channels = channels.chunk(ranks.world_size)[ranks.rank]
    languages = torch.zeros(len(waveform), dtype=torch.long) if languages is None else languages
    others = (*draw, seeds, rate, factor, languages, begins, pairs.codes, pairs.begins, channels)
    return StepInputs(waveform, *(to_device(tensor, ranks.device) for tensor in others))


def discriminator_samples(config: Config, samples: int, sample_rate: int) -> int:
    """How many samples of a crop of so many the discriminator gets."""
    return min(round(config.discriminator.crop_seconds * sample_rate), samples) or samples


def noise_for(config: Config, codec: Codec) -> tuple[Tensor, PairBatch]:
    """Crops [B, 1, T] of noise and crops of pairs as `Trainer.step` takes them, for trials and measurements."""
    samples = round(config.data.crop_seconds * codec.sample_rate)
    waveform = 0.1 * torch.randn(config.crops_a_batch * config.accumulate, 1, samples, device=codec.device)
    pairs = empty_pairs(config.pairs_a_batch * config.accumulate, codec.config, codec.config.frames(samples))
    return waveform, pairs


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A CPU tensor on another device, without waiting for that device."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


Compute = Callable[[StepInputs, frozenset[str]], Results]


class GraphedStep:
    """Calls `compute(inputs, losses)`, and later replays a CUDA graph of it, one for each set of losses.

    Each set is computed WARM_UP times first, and nothing is recorded before all sets that have come are warm: a step
    that is computed would need memory beside the graphs', which share theirs. A replay overwrites the results of the
    replay before with the same losses. A step that cannot be recorded gives a warning, and is computed each time.

    `compute` may change state in place only and must not wait for the device. `never` names losses whose steps are not
    recorded, and why. All training must run on one stream that is not the default one.
    """

    def __init__(self, compute: Compute, never: Mapping[str, str] | None = None):
        self.compute, self.never = compute, never or {}
        self.calls: Counter[frozenset[str]] = Counter()
        self.results: dict[frozenset[str], Results] = {}  # the last ones; a graph writes its own into them
        self.graphs: dict[frozenset[str], torch.cuda.CUDAGraph | None] = {}  # None where it cannot be recorded
        self.inputs: StepInputs | None = None  # that the graphs read

    def __call__(self, inputs: StepInputs, losses: frozenset[str]) -> Results:
        self.calls[losses] += 1
        for name in losses & self.never.keys():
            self.give_up(losses, self.never[name])
        if losses not in self.graphs and self.calls[losses] > WARM_UP and self.all_warm():
            self.record(inputs, losses)
        graph = self.graphs.get(losses)
        if graph is None:
            self.results[losses] = self.compute(inputs, losses)
        else:
            assert self.inputs is not None
            for static, current in zip(self.inputs, inputs, strict=True):
                static.copy_(current)
            graph.replay()
        return self.results[losses]

    def all_warm(self) -> bool:
        return all(self.calls[losses] >= WARM_UP for losses in self.calls if losses not in self.graphs)

    def record(self, inputs: StepInputs, losses: frozenset[str]) -> None:
        if self.inputs is None:
            self.inputs, self.memory = StepInputs(*(each.clone() for each in inputs)), torch.cuda.graph_pool_handle()
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
        try:
            # other threads, such as the data loader's, may call the driver during the capture
            with torch.cuda.graph(graph, pool=self.memory, stream=stream, capture_error_mode="thread_local"):
                found = self.compute(self.inputs, losses)
                for kept, new in zip(self.results[losses], found, strict=True):
                    for name, tensor in new.items():
                        kept[name].copy_(tensor)
            self.graphs[losses] = graph
        except RuntimeError as error:  # torch's for a wait, for what cannot be recorded, and for full memory
            self.give_up(losses, str(error).strip().splitlines()[0])

    def give_up(self, losses: frozenset[str], reason: str) -> None:
        if losses not in self.graphs:
            which = f"with {' and '.join(sorted(losses))}" if losses else "without feature matching and the teacher"
            warnings.warn(f"steps {which} are not recorded, which is slower: {reason}", stacklevel=2)
        self.graphs[losses] = None


def graphed_on_gpu(compute: Compute, config: Config, ranks: Ranks) -> Compute:
    """`compute` itself, or on a GPU its GraphedStep, unless `cuda_graph=false`; then all that follows runs on a new
    stream. Call it before anything is built on the device."""
    if not config.cuda_graph or ranks.device.type != "cuda":
        return compute
    torch.cuda.set_stream(torch.cuda.Stream())
    cached = {"asr": "losses.asr_cache looks for transcripts in files"} if config.losses.asr_cache else {}
    return GraphedStep(compute, never=cached)
