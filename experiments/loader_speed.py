"""Measures how much speech the loader delivers, against what training consumes.

    python -m experiments.loader_speed                         # made-up clips as long as LibriTTS-R's, 1 to 8 workers
    python -m experiments.loader_speed --data SOURCE           # a run's own data: a path, or a hub name
    python -m experiments.loader_speed --consumes 140          # enough for a GPU that takes 140 s of audio a second?

Batches are those of training: crops of 4 s out of whole clips, read and decoded in worker processes, in random order.
The files are in the page cache: the disk is not what is measured.
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

from data import Crops, Shuffled, Stream, crop_loader, open_clips
from experiments.random_speech import write_parquet

RATE = 24000
CLIPS = 500
CROP, BATCH, ROUNDS = 4.0, 32, 3
ENOUGH = 1.5


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="measure this instead of made-up clips")
    parser.add_argument("--coding", default="WAV", choices=("WAV", "FLAC", "OGG"), help="of the made-up clips")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--seconds", type=float, default=5.0, help="how long a round lasts")
    parser.add_argument("--consumes", type=float, default=0.0, help="audio seconds a second that training takes")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="measure_loader_") as work:
        source = arguments.data or str(make(Path(work), arguments.coding))
        clips = open_clips([source], work)
        crops = Crops(clips, Shuffled(len(clips), seed=0), round(CROP * RATE), RATE, resample=False, seed=0)
        order = Shuffled(len(clips), seed=0)
        print(f"{len(clips)} clips, {os.cpu_count()} CPU cores, crops of {CROP:g} s in batches of {BATCH}")
        print(f"{'workers':>7}{'clips/s':>24}{'audio s/s':>26}")
        for workers in arguments.workers:
            speeds = [measured(crops, order, workers, arguments.seconds) for _ in range(ROUNDS)]
            print(f"{workers:>7}{spread(speeds):>24}{spread([speed * CROP for speed in speeds]):>26}", flush=True)
    if not arguments.consumes:
        return 0
    times = statistics.median(speeds) * CROP / arguments.consumes
    print(f"{times:.1f} times the {arguments.consumes:g} audio s/s of one GPU (limit {ENOUGH})")
    return int(times < ENOUGH)


def measured(crops: Crops, order: Shuffled, workers: int, seconds: float) -> float:
    """Clips a second, after the workers have filled their queues and been read empty once."""
    batches = crop_loader(crops, Stream(order, BATCH), workers, pin_memory=False)
    for _ in range(1 + 4 * workers):
        next(batches)
    started, count = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        count += len(next(batches).waveform)
    elapsed = time.perf_counter() - started
    batches.close()
    return count / elapsed


def make(folder: Path, coding: str) -> Path:
    """Clips of noise, 1 to 15 s, 6 s in the mean as LibriTTS-R's."""
    draws = np.random.default_rng(0)
    audio = {}
    for number in range(CLIPS):
        seconds = float(np.clip(draws.lognormal(1.6, 0.6), CROP, 15))
        stream = io.BytesIO()
        soundfile.write(stream, 0.1 * draws.standard_normal(int(seconds * RATE)).clip(-9, 9), RATE, format=coding)
        audio[f"{number}"] = stream.getvalue()
    return write_parquet(folder / "clips.parquet", audio)


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):.0f} ({min(values):.0f} to {max(values):.0f})"


if __name__ == "__main__":
    sys.exit(main())
