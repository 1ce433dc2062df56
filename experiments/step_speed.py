"""How long a training step takes on a GPU, its kernels started one by one and recorded and replayed.

    python -m experiments.step_speed CONFIG [key=value ...]
    python -m experiments.step_speed configs/codec.yaml losses.asr=0 losses.feature_matching=0

Steps on noise, the discriminator taking part where the settings have one, and no teacher in them: loaders are measured
by experiments/loader_speed.py.
"""

from __future__ import annotations

import statistics
import sys
import time

import torch

from train_encoder import Training
from training.config import load_config
from training.distributed import Ranks, start_ranks
from training.replay import WARM_UP

ROUNDS, STEPS = 5, 10


def main() -> None:
    with start_ranks() as ranks:  # PyTorch's settings are a run's
        measure(ranks)


def measure(ranks: Ranks) -> None:
    for cuda_graph in ("false", "true"):
        config = load_config(
            sys.argv[1], ["data.train=x", "data.validation=x", *sys.argv[2:], f"cuda_graph={cuda_graph}"]
        )
        training = Training(config, ranks)
        crops, samples = config.batch_size * config.accumulate, round(config.data.crop_seconds * 24000)
        waveform = 0.1 * torch.randn(crops, 1, samples, device="cuda")
        # steps in which a teacher listens are never recorded: left out here
        steps = (
            step for step in range(config.discriminator.from_step, sys.maxsize) if "asr" not in training.losses_in(step)
        )
        for _ in range(WARM_UP + 2):
            training.step(waveform, next(steps))
        taken = []
        for _ in range(ROUNDS):
            torch.cuda.synchronize()
            started = time.perf_counter()
            for _ in range(STEPS):
                training.step(waveform, next(steps))
            torch.cuda.synchronize()
            taken.append((time.perf_counter() - started) / STEPS)
        seconds = statistics.median(taken)
        print(
            f"cuda_graph={cuda_graph}: {1e3 * seconds:.1f} ms ({1e3 * min(taken):.1f} to {1e3 * max(taken):.1f}), "
            f"{crops * config.data.crop_seconds / seconds:.0f} s of audio a second, "
            f"{torch.cuda.max_memory_reserved() / 1e9:.1f} GB",
            flush=True,
        )


if __name__ == "__main__":
    main()
