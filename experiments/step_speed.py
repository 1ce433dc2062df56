"""How long does a training step take on a GPU, in how much memory, and which statements take it?

    python -m experiments.step_speed CONFIG [key=value ...]
    python -m experiments.step_speed configs/v3.yaml --random --profile 5

Times steps on noise, launched kernel by kernel and replayed from CUDA graphs, with the teacher in every
`losses.asr_every`-th step. `experiments.loader_speed` measures the loader.

`--random` makes the release, the speaker network and the teacher with random weights at their real dimensions. The
teacher then speaks nonsense up to its limit, as a recorded one always does.
"""

from __future__ import annotations

import argparse
import gc
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from data.pairs import PairBatch
from experiments.random_release import REAL, random_codec, write_release
from experiments.runs import experiment_status, require_gpu, spread
from experiments.stand_in.speaker_network import PUBLISHED, write_random_network
from train_encoder import Trainer
from training.config import Config, load_config
from training.distributed import Ranks, exit_process, start_ranks
from training.profile import first_full_step, profile, synchronize
from training.step_inputs import noise_for

ROUNDS, CYCLES = 5, 2  # each of the steps after which the losses repeat


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="a YAML file, such as configs/codec.yaml")
    parser.add_argument("--random", action="store_true", help="networks with random weights, of the real dimensions")
    parser.add_argument(
        "--profile", type=int, default=0, metavar="N", help="show statements, over N steps of each kind"
    )
    parser.add_argument("--memory", type=float, metavar="GB", help="allow no more of the GPU's memory")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings to change")
    options = parser.parse_intermixed_args()

    def measure_both() -> int:
        require_gpu()
        limit_memory(options.memory)
        with start_ranks() as ranks, tempfile.TemporaryDirectory() as folder:  # PyTorch's settings are those of a run
            random = random_networks(Path(folder)) if options.random else []
            overrides = ["data.train=x", "data.validation=x", *random, *options.overrides]
            print(f"{torch.cuda.get_device_name()}, {options.config} {' '.join(options.overrides)}", flush=True)
            asked = [override for override in overrides if override.startswith("cuda_graph=")]
            for cuda_graph in asked or ("cuda_graph=true", "cuda_graph=false"):
                measure(load_config(options.config, [*overrides, cuda_graph]), ranks)
            if options.profile:
                trainer = Trainer(load_config(options.config, overrides), ranks)
                print(profile(trainer, options.profile))
        return 0

    return experiment_status(measure_both)


@dataclass(frozen=True)
class Measured:
    milliseconds: list[float]  # a step takes, in each round
    audio_seconds: float  # of speech in a step
    gigabytes: float  # of the GPU's memory that PyTorch holds
    gigabytes_at_first: float  # that it held in the first steps, which choose algorithms

    @property
    def speeds(self) -> list[float]:
        """Seconds of audio a second."""
        return [1e3 * self.audio_seconds / each for each in self.milliseconds]

    def __str__(self) -> str:
        speeds = f"{spread(self.speeds)} s of audio per second"
        memory = f"{self.gigabytes:.1f} GB, {self.gigabytes_at_first:.1f} GB in the first steps"
        return f"{spread(self.milliseconds, 'ms', 1)} a step, {speeds}, {memory}"


def measure(config: Config, ranks: Ranks) -> Measured:
    """Times ROUNDS of CYCLES and prints a line. The first steps can do with less memory than they take."""
    gc.collect()  # what was measured before
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    trainer = Trainer(config, ranks)
    waveform, pairs = noise_for(config, trainer.codec)
    every = config.cycle
    steps = iter(range(first_full_step(config), sys.maxsize))
    began = time.perf_counter()
    trainer.step(waveform, next(steps), pairs)
    torch.cuda.synchronize()
    start = time.perf_counter() - began
    for _ in range(6 * every - 1):  # as many as recording every kind of step needs
        trainer.step(waveform, next(steps), pairs)
    at_first = torch.cuda.max_memory_reserved() / 1e9
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    taken = [1e3 * seconds_a_step(trainer, waveform, pairs, steps, CYCLES * every) for _ in range(ROUNDS)]
    audio_seconds = len(waveform) * config.data.crop_seconds
    found = Measured(taken, audio_seconds, torch.cuda.max_memory_reserved() / 1e9, at_first)
    print(f"cuda_graph={str(config.cuda_graph).lower()}: {found}, {start:.0f} s for the first step", flush=True)
    return found


def limit_memory(gigabytes: float | None) -> None:
    """Lets PyTorch take no more of the GPU's memory; None for all of it."""
    share = gigabytes * 1e9 / torch.cuda.get_device_properties(0).total_memory if gigabytes else 1.0
    torch.cuda.set_per_process_memory_fraction(min(1.0, share))


def seconds_a_step(trainer: Trainer, waveform: Tensor, pairs: PairBatch, steps: Iterator[int], count: int) -> float:
    """The mean time of the next `count` steps."""
    device = trainer.ranks.device
    synchronize(device)
    began = time.perf_counter()
    for _ in range(count):
        trainer.step(waveform, next(steps), pairs)
    synchronize(device)
    return (time.perf_counter() - began) / count


def random_networks(folder: Path) -> list[str]:
    """The settings that name a release, a speaker network and a teacher with random weights, written to `folder`."""
    release = write_release(folder / "release", random_codec(REAL), with_encoder=False)
    speaker = write_random_network(folder / "speaker", PUBLISHED)
    return [f"model_dir={release}", f"losses.speaker_model={speaker}", f"losses.asr_teacher={random_teacher(folder)}"]


def random_teacher(folder: Path) -> Path:
    """A Whisper of the size "base" with random weights, in openai-whisper's format."""
    from whisper.model import ModelDimensions, Whisper

    dimensions = ModelDimensions(80, 1500, 512, 8, 6, 51865, 448, 512, 8, 6)
    torch.manual_seed(0)
    weights = Whisper(dimensions).state_dict()
    weights["decoder.positional_embedding"] = 0.02 * torch.randn(448, 512)  # which the class does not initialize
    path = folder / "whisper.pt"
    torch.save({"dims": asdict(dimensions), "model_state_dict": weights}, path)
    return path


if __name__ == "__main__":
    exit_process(main())
