"""How much of a training step do several ranks spend on exchanging gradients and statistics?

    torchrun --standalone --nproc_per_node=2 -m experiments.exchange_speed CONFIG [key=value ...]

Times steps on noise twice: as they are, and with collectives that do nothing, so that each rank trains alone. Without
collectives a step takes as long as on the slowest rank. `experiments.recipe_speed` runs this.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch import Tensor

from experiments.runs import experiment_status
from experiments.step_speed import CYCLES, ROUNDS, seconds_a_step
from train_encoder import Trainer
from training.config import Config, load_config
from training.distributed import Ranks, exit_process, start_ranks
from training.profile import first_full_step
from training.step_inputs import noise_for


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="a YAML file, such as configs/v3.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings to change")
    options = parser.parse_intermixed_args()

    def measure() -> int:
        with start_ranks() as ranks:
            config = load_config(options.config, ["data.train=x", "data.validation=x", *options.overrides])
            whole = milliseconds(config, ranks)
            with nothing_exchanged():
                alone = milliseconds(config, ranks)
            slowest = max(statistics.median(rounds) for rounds in ranks.gather_objects(alone))
            if ranks.main:
                print(json.dumps({"step_ms": statistics.median(whole), "step_alone_ms": slowest}))
        return 0

    return experiment_status(measure)


def milliseconds(config: Config, ranks: Ranks) -> list[float]:
    """A step's time in each of ROUNDS."""
    gc.collect()  # what was measured before
    torch.cuda.empty_cache()
    trainer = Trainer(config, ranks)
    waveform, pairs = noise_for(config, trainer.codec)
    steps = iter(range(first_full_step(config), sys.maxsize))
    seconds_a_step(trainer, waveform, pairs, steps, 6 * config.cycle)  # as many as recording every kind of step needs
    return [1e3 * seconds_a_step(trainer, waveform, pairs, steps, CYCLES * config.cycle) for _ in range(ROUNDS)]


@contextmanager
def nothing_exchanged() -> Iterator[None]:
    """Within this block a rank computes as if all ranks had its own values."""

    def gather(parts: list[Tensor], tensor: Tensor, **_: Any) -> None:
        for part in parts:
            part.copy_(tensor)

    silent = patch.object(dist, "all_reduce", lambda tensor, *_, **__: None)
    with silent, patch.object(dist, "all_gather", gather):
        yield


if __name__ == "__main__":
    exit_process(main())
