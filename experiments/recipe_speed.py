"""How fast is a recipe at the release's dimensions, on one or several GPUs, and how much memory does it take?

    python -m experiments.recipe_speed [key=value ...] --config configs/v3.yaml --gpus 1 2 4 8
    python -m experiments.recipe_speed --speech SPEECH --whisper MODEL

Trains some steps on each number of GPUs, with the same number of crops on each GPU (weak scaling), and shows a table
and everything else that the runs log. The release and the speaker network (of the published one's size) have random
weights, on which speed and memory do not depend. Without --speech the clips are noise. Without --whisper the teacher
has random weights too, and speaks up to its limit, as a recorded one always does.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from experiments.loader_speed import write_random_clips
from experiments.random_release import REAL, random_codec, write_release
from experiments.runs import ExperimentError, experiment_status, require_gpu, run, run_shown, spread, training_metrics
from experiments.stand_in.speaker_network import PUBLISHED, write_random_network
from experiments.step_speed import random_teacher

STEPS, LOG_EVERY = 80, 20


class Measured(NamedTuple):
    """A recipe on so many GPUs."""

    gpus: int
    speed: float  # seconds of audio a second
    memory: float  # GB on the first GPU
    loader_wait: float  # share of the time
    exchange: float  # share of a step that goes to collectives
    first: float  # seconds from the command to the first metrics, after LOG_EVERY steps


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/v3.yaml", help="(default: %(default)s)")
    parser.add_argument("--speech", help="what `data.train` takes: files, a folder or a hub name")
    parser.add_argument("--whisper", help="name or file of the teacher")
    parser.add_argument("--gpus", type=int, nargs="+", default=[1], help="numbers of GPUs (default: 1)")
    parser.add_argument("--cpu", action="store_true", help="processes on the CPU instead of GPUs, to try this program")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings of every run")
    options = parser.parse_intermixed_args()
    return experiment_status(lambda: measure(options))


def measure(options: argparse.Namespace) -> int:
    if not options.cpu:
        require_gpu()
        if max(options.gpus) > torch.cuda.device_count():
            raise ExperimentError(f"--gpus is {max(options.gpus)}, and this machine has {torch.cuda.device_count()}")
        print(f"{torch.cuda.get_device_name()}, {options.config} {' '.join(options.overrides)}", flush=True)
    with tempfile.TemporaryDirectory(prefix="recipe_speed_") as folder:
        work = Path(folder)
        settings = tuple(made_settings(work, options))
        found = [measured(gpus, work / f"run_{gpus}", options.config, settings) for gpus in options.gpus]
    print(table(found))
    return 0


def made_settings(work: Path, options: argparse.Namespace) -> list[str]:
    """The settings of every run. What no option or override names is made in the folder `work`."""
    speech = options.speech or write_random_clips(work, "WAV")
    settings = [f"steps={STEPS}", f"log_every={LOG_EVERY}", f"validate_every={STEPS}", f"save_every={STEPS}"]
    settings += [f"data.train={speech}", f"data.validation={speech}"]
    if options.whisper:
        settings.append(f"losses.asr_teacher={options.whisper}")
    settings += options.overrides
    named = {setting.partition("=")[0] for setting in settings}
    makers: dict[str, Callable[[], Path]] = {
        "model_dir": lambda: write_release(work / "release", random_codec(REAL), with_encoder=False),
        "losses.speaker_model": lambda: write_random_network(work / "speaker", PUBLISHED),
        "losses.asr_teacher": lambda: random_teacher(work),
    }
    return settings + [f"{name}={make()}" for name, make in makers.items() if name not in named]


def measured(gpus: int, folder: Path, config: str, settings: tuple[str, ...]) -> Measured:
    """A run on so many GPUs, and on several the time of their collectives. Shows what they log."""
    launcher = ("-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={gpus}") if gpus > 1 else ()
    began = time.time()
    run_shown(*launcher, "train_encoder.py", "--config", config, *settings, f"output_dir={folder}")
    lines = training_metrics(folder)
    for name, value in lines[-1].items():
        print(f"{name:32}{value:.4g}")
    speeds = [line["audio_seconds_per_second"] for line in lines[1:]]  # the first interval warms up
    print(f"{gpus} GPUs: {spread(speeds)} s of audio per second in intervals of {LOG_EVERY} steps, without the first")
    reports = EventAccumulator(str(folder / "tensorboard")).Reload()
    logged, validated = ([at.wall_time for at in reports.Scalars(name)] for name in ("mel", "validation/mel"))
    print(f"{gpus} GPUs: the last validation took {validated[-1] - logged[-1]:.1f} s")
    exchange = 0.0
    if gpus > 1:
        times = json.loads(run(*launcher, "-m", "experiments.exchange_speed", config, *settings).splitlines()[-1])
        whole, alone = times["step_ms"], times["step_alone_ms"]
        print(f"{gpus} GPUs: {whole:.1f} ms a step on noise, {alone:.1f} ms without collectives")
        exchange = 1 - alone / whole
    sys.stdout.flush()
    return Measured(
        gpus=gpus,
        speed=statistics.median(speeds),
        memory=lines[-1].get("memory_gb", 0.0),
        loader_wait=statistics.median(line["loader_wait"] for line in lines[1:]),
        exchange=exchange,
        first=logged[0] - began,
    )


def table(found: list[Measured]) -> str:
    columns = ["GPUs", "audio seconds a second", "times the first", "memory a GPU", "waiting for the loader"]
    columns += ["collectives", f"start and {LOG_EVERY} steps"]
    rows = [columns, ["---"] * len(columns)]
    for one in found:
        cells = [f"{one.gpus}", f"{one.speed:.0f}", f"{one.speed / found[0].speed:.2f}", f"{one.memory:.1f} GB"]
        rows.append([*cells, f"{one.loader_wait:.1%}", f"{one.exchange:.1%}", f"{one.first:.0f} s"])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


if __name__ == "__main__":
    sys.exit(main())
