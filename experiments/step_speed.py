"""How long does a training step take on a GPU, with and without CUDA graphs?

    python -m experiments.step_speed CONFIG [key=value ...]
    python -m experiments.step_speed configs/codec.yaml losses.asr=0 losses.feature_matching=0

Times steps on noise. The discriminator takes part if the settings have one; steps with the ASR teacher are left out,
because they are never replayed as CUDA graphs. `experiments.loader_speed` measures the loader.
"""

from __future__ import annotations

import argparse
import sys
import time

import torch

from experiments.runs import experiment_status, require_gpu, spread
from train_encoder import Trainer
from training.config import load_config
from training.distributed import Ranks, start_ranks
from training.step_inputs import WARM_UP, noise_for

ROUNDS, STEPS = 5, 10


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="a YAML file, such as configs/codec.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings to change")
    options = parser.parse_intermixed_args()

    def measure_both() -> int:
        require_gpu()
        with start_ranks() as ranks:  # PyTorch's settings are those of a run
            for cuda_graph in ("false", "true"):
                measure(options.config, [*options.overrides, f"cuda_graph={cuda_graph}"], ranks)
        return 0

    return experiment_status(measure_both)


def measure(path: str, overrides: list[str], ranks: Ranks) -> None:
    """Times ROUNDS of STEPS steps and prints a line."""
    config = load_config(path, ["data.train=x", "data.validation=x", *overrides])
    trainer = Trainer(config, ranks)
    waveform, pairs = noise_for(config, trainer.codec)
    first = config.discriminator.start_step
    steps = (step for step in range(first, sys.maxsize) if "asr" not in trainer.losses_of(step))
    for _ in range(WARM_UP + 2):
        trainer.step(waveform, next(steps), pairs)
    taken = []
    for _ in range(ROUNDS):
        torch.cuda.synchronize()
        started = time.perf_counter()
        for _ in range(STEPS):
            trainer.step(waveform, next(steps), pairs)
        torch.cuda.synchronize()
        taken.append((time.perf_counter() - started) / STEPS)
    speeds = [len(waveform) * config.data.crop_seconds / seconds for seconds in taken]
    print(
        f"cuda_graph={str(config.cuda_graph).lower()}: {spread([1e3 * seconds for seconds in taken], 'ms', 1)} a step, "
        f"{spread(speeds)} s of audio per second, {torch.cuda.max_memory_reserved() / 1e9:.1f} GB",
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main())
