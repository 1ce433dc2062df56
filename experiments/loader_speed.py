"""How much speech does the loader deliver, compared with what training consumes?

    python -m experiments.loader_speed                    # random clips as long as LibriTTS-R's, 1 to 8 workers
    python -m experiments.loader_speed --data SOURCE      # a run's own data: a path, or a hub name
    python -m experiments.loader_speed --consumes 140     # enough for a GPU that takes 140 s of audio a second?

Batches are made as in training: worker processes read and decode whole clips in random order, and cut crops of 4 s.
The files are in the page cache, so the disk is not measured. With --consumes, the exit status is 1 if the last number
of workers delivers less than 1.5 times that.
"""

from __future__ import annotations

import argparse
import io
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import soundfile
import torch

from codec.config import SAMPLE_RATE
from data import Crops, Shuffled, Stream, crop_loader, open_clips
from experiments.random_speech import write_parquet
from experiments.runs import experiment_status, spread

CLIPS = 500  # random ones
CROP, BATCH, ROUNDS = 4.0, 32, 3  # CROP in seconds
ENOUGH = 1.5  # times what training consumes


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="measure this instead of random clips")
    parser.add_argument(
        "--coding", default="WAV", choices=("WAV", "FLAC", "OGG"), help="of the random clips (default: %(default)s)"
    )
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4, 8], help="(default: 1 2 4 8)")
    parser.add_argument("--seconds", type=float, default=5.0, help="how long a round lasts (default: %(default)s)")
    parser.add_argument("--consumes", type=float, default=0.0, help="audio seconds per second that training takes")
    arguments = parser.parse_args()
    return experiment_status(lambda: measure(arguments))


def measure(arguments: argparse.Namespace) -> int:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="loader_speed_") as work:
        source = arguments.data or str(write_random_clips(Path(work), arguments.coding))
        clips = open_clips([source], work)
        crops = Crops(
            clips, Shuffled(len(clips), seed=0), round(CROP * SAMPLE_RATE), SAMPLE_RATE, resample=False, seed=0
        )
        order = Shuffled(len(clips), seed=0)
        print(f"{len(clips)} clips, {os.cpu_count()} CPU cores, crops of {CROP:g} s in batches of {BATCH}")
        print(f"{'workers':>7}{'clips/s':>24}{'audio s/s':>26}")
        for workers in arguments.workers:
            speeds = [clips_per_second(crops, order, workers, arguments.seconds) for _ in range(ROUNDS)]
            print(f"{workers:>7}{spread(speeds):>24}{spread([speed * CROP for speed in speeds]):>26}", flush=True)
    if not arguments.consumes:
        return 0
    times = statistics.median(speeds) * CROP / arguments.consumes
    print(f"{times:.1f} times the {arguments.consumes:g} audio s/s of one GPU (limit {ENOUGH})")
    return int(times < ENOUGH)


def clips_per_second(crops: Crops, order: Shuffled, workers: int, seconds: float) -> float:
    """Over so many seconds. Before that, the batches that the workers could prepare meanwhile are taken."""
    batches = crop_loader(crops, Stream(order, BATCH), workers, pin_memory=False)
    for _ in range(1 + 4 * workers):
        next(batches)
    started, count = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        count += len(next(batches).waveform)
    elapsed = time.perf_counter() - started
    batches.close()
    return count / elapsed


def write_random_clips(folder: Path, coding: str) -> Path:
    """Writes a parquet file of clips of noise, 4 to 15 s long, 6 s in the mean as LibriTTS-R's."""
    draws = np.random.default_rng(0)
    audio = {}
    for number in range(CLIPS):
        seconds = float(np.clip(draws.lognormal(1.6, 0.6), CROP, 15))
        stream = io.BytesIO()
        soundfile.write(
            stream, 0.1 * draws.standard_normal(int(seconds * SAMPLE_RATE)).clip(-9, 9), SAMPLE_RATE, format=coding
        )
        audio[f"{number}"] = stream.getvalue()
    return write_parquet(folder / "clips.parquet", audio)


if __name__ == "__main__":
    sys.exit(main())
