"""How fast does training run on one GPU, in how much memory, and how fast do EnCodec and DAC? Prints a table.

    pip install encodec==0.1.1 descript-audio-codec==1.0.0         # for their rows; without them those are left out
    python -m experiments.performance [--runs 3] [--rows ROW ...]

Networks have random weights at their real dimensions, and steps are on noise: `experiments.step_speed` and
`experiments.codec_training_speed`, which measure one of them. Every row has a process of its own, and every run builds
its networks anew. The table has the median of all rounds of all runs, and their range; the memory is that of a row's
first run. A smaller card is this one with less of its memory.
"""

from __future__ import annotations

import argparse
import importlib.util
import multiprocessing
import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch

from experiments import codec_training_speed, step_speed
from experiments.runs import experiment_status, require_gpu, spread
from experiments.step_speed import Measured
from training.config import load_config
from training.distributed import exit_process, start_ranks

Result = TypeVar("Result")


class Row(NamedTuple):
    title: str
    config: str = "configs/v3.yaml"
    settings: tuple[str, ...] = ()
    gigabytes: float | None = None  # of the GPU's memory that it may take; None is all


ROWS = {
    "v3": Row("`configs/v3.yaml`"),
    "40GB": Row("the same in 40 GB", gigabytes=40),
    "24GB": Row("the same in 24 GB", gigabytes=24),
    "launched": Row("`cuda_graph=false`", settings=("cuda_graph=false",)),
    "every": Row("`discriminator.every=2`", settings=("discriminator.every=2",)),
    "crop": Row("`discriminator.crop_seconds=1.5`", settings=("discriminator.crop_seconds=1.5",)),
    "quarter": Row("`discriminator.crop_seconds=0.75`", settings=("discriminator.crop_seconds=0.75",)),
    "both": Row(
        "`every=2` and `crop_seconds=1.5`", settings=("discriminator.every=2", "discriminator.crop_seconds=1.5")
    ),
    "v4": Row("`configs/v4.yaml`, with as many crops of pairs", "configs/v4.yaml", ("data.pairs=x",)),
}
CODECS = {"encodec": "EnCodec, 24 kHz", "dac": "descript-audio-codec, 24 kHz"}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3, help="of each row")
    parser.add_argument("--rows", nargs="+", choices=[*ROWS, *CODECS], default=[*ROWS, *CODECS], metavar="ROW")
    options = parser.parse_args()

    def measure_all() -> int:
        require_gpu()
        lines = [f"{torch.cuda.get_device_name()}, PyTorch {torch.__version__}", "", *HEAD]
        for title, found in measured(options.rows, options.runs):
            lines.append(line(title, found))
            print(lines[-1], flush=True)  # in case the rest is not reached
        print("", *lines, sep="\n")
        return 0

    return experiment_status(measure_all)


def measured(names: Sequence[str], runs: int) -> Iterator[tuple[str, list[Measured]]]:
    """The title of each row, and its runs. A codec whose package is missing is left out."""
    for name in names:
        if name in ROWS:
            yield ROWS[name].title, alone(of_this_repository, ROWS[name], runs)
        elif importlib.util.find_spec(name):
            for autocast in (False, True):
                found = alone(of_codec, name, autocast, runs)
                precision = "bf16" if autocast else "TF32"
                yield f"{CODECS[name]}, {found[0].audio_seconds:g} s a step, {precision}", found


HEAD = [
    "| | ms a step | seconds of audio a second | memory, GB | in the first steps, GB | hours for 585 h (LibriTTS-R) |",
    "|---|---|---|---|---|---|",
]
LIBRITTS_R = 585  # hours


def alone(measure: Callable[..., Result], *arguments: object) -> Result:
    """The result of `measure` in a process of its own, which has all memory of the GPU."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        return process.submit(measure, *arguments).result()


def of_this_repository(row: Row, runs: int) -> list[Measured]:
    step_speed.limit_memory(row.gigabytes)
    with start_ranks() as ranks, tempfile.TemporaryDirectory() as folder:
        networks = [*step_speed.random_networks(Path(folder)), "data.train=x", "data.validation=x"]
        config = load_config(row.config, [*networks, *row.settings])
        return [step_speed.measure(config, ranks) for _ in range(runs)]


def of_codec(name: str, autocast: bool, runs: int) -> list[Measured]:
    crops = load_config("configs/v3.yaml", ["model_dir=x"])
    batch, seconds = crops.batch_size, crops.data.crop_seconds
    torch.backends.cudnn.allow_tf32 = not autocast  # PyTorch's default, which their trainers leave
    return [codec_training_speed.measure(name, batch, seconds, autocast) for _ in range(runs)]


def line(title: str, found: list[Measured]) -> str:
    milliseconds = spread([each for run in found for each in run.milliseconds], digits=1)
    speeds = [each for run in found for each in run.speeds]
    memory = f"{found[0].gigabytes:.1f} | {found[0].gigabytes_at_first:.1f}"
    return f"| {title} | {milliseconds} | {spread(speeds)} | {memory} | {LIBRITTS_R / statistics.median(speeds):.1f} |"


if __name__ == "__main__":
    exit_process(main())
