"""Speaks a plan with Kokoro-82M: the speech that train_codec.py takes, with its phonemes.

    python -m experiments.stand_in.speak PLAN KOKORO SPEECH --workers 5    # 30 hours in 90 s on two H100s
    python -m experiments.stand_in.speak PLAN KOKORO SPEECH --clips 20      # 20 of them, to try it on a CPU

PLAN is plan_speech.py's, KOKORO the folder of kokoro_weights.py, SPEECH a folder as labelled_speech.py describes it.
All but 50 ms of the silence at both ends is cut, and each clip's peak gets a random level between -6 and -1 dBFS.
`--workers` is for each GPU; six of them filled 80 GB.
"""

from __future__ import annotations

import argparse
import gzip
import json
import multiprocessing
import random
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from experiments.stand_in.kokoro import UNIT, Kokoro
from experiments.stand_in.kokoro_layers import compile_elementwise
from experiments.stand_in.kokoro_phonemes import token_ids
from experiments.stand_in.labelled_speech import UNITS_A_SECOND

Row = list[Any]  # split, kind, speaker, text, phonemes
SPLITS = ("test", "dev", "train")
LAG = 2  # units by which the durations come too late: sibilants, vowels and silence lie there in the sound (measured)
MARGIN = 2  # units of silence that stay at each end
SHORTEST = 20  # units
SILENT = 0.01  # a clip whose peak is lower is left out


@dataclass(frozen=True)
class Clip:
    row: Row
    samples: np.ndarray  # int16, a whole number of units
    labels: np.ndarray  # uint8, one a unit


class Worker:
    """One process with the model on one device."""

    def __init__(self, kokoro: Path, speakers: dict[str, Any], device: str):
        self.device = device
        torch.set_num_threads(1)
        if self.device != "cpu":
            torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
            compile_elementwise()
        self.model = Kokoro.load(kokoro / "kokoro-q8.safetensors", self.device)
        self.voices = dict(np.load(kokoro / "voices.npz"))
        self.speakers = speakers

    def style(self, speaker: dict[str, Any], length: int) -> np.ndarray:
        """A voice has a style for every length of a sentence."""
        packs = (self.voices[name] for name in speaker["voices"])
        styles = (pack[min(length, len(pack)) - 1].astype(np.float32) for pack in packs)
        return np.sum([weight * style for weight, style in zip(speaker["weights"], styles, strict=True)], axis=0)

    def speak(self, job: tuple[int, list[Row]]) -> list[Clip]:
        number, rows = job
        rng = np.random.default_rng([18, number])
        tokens = [token_ids(row[4]) for row in rows]
        speakers = [self.speakers[row[2]] for row in rows]
        styles = [self.style(speaker, len(ids)) for speaker, ids in zip(speakers, tokens, strict=True)]
        speeds = [speaker["speed"] for speaker in speakers]
        dtype = torch.float16 if self.device != "cpu" else None
        sounds, durations = self.model(tokens, styles, speeds, seed=int(rng.integers(2**31)), dtype=dtype)
        clips = []
        for row, ids, sound, units in zip(rows, tokens, sounds, durations, strict=True):
            labels = np.repeat(np.array([0, *ids, 0], np.uint8), units.numpy())
            clip = finished(row, sound.float().cpu().numpy(), labels, rng)
            clips += [clip] if clip else []
        return clips


def finished(row: Row, sound: np.ndarray, labels: np.ndarray, rng: np.random.Generator) -> Clip | None:
    """Cuts silence and sets the level. None for a silent or broken clip."""
    labels = np.concatenate([labels[LAG:], labels[-LAG:]])
    units = min(len(sound) // UNIT, len(labels))
    sound = sound[: units * UNIT]
    peak = float(np.abs(sound).max(initial=0))
    if not np.isfinite(peak) or peak < SILENT or units < SHORTEST:
        return None
    loud = np.flatnonzero(np.abs(sound) > 0.02 * peak)
    first, last = max(0, loud[0] // UNIT - MARGIN), min(units, loud[-1] // UNIT + MARGIN + 1)
    samples = sound[first * UNIT : last * UNIT] * (10 ** (rng.uniform(-6, -1) / 20) / peak)
    return Clip(row, (samples.clip(-1, 1) * 32767).round().astype("<i2"), labels[first:last])


_worker: Worker


def _start(kokoro: Path, speakers: dict[str, Any], devices: multiprocessing.Queue[str]) -> None:
    global _worker
    _worker = Worker(kokoro, speakers, devices.get())


def _speak(job: tuple[int, list[Row]]) -> list[Clip]:
    return _worker.speak(job)


def batches(rows: list[Row], size: int) -> list[list[Row]]:
    """Sentences of similar length go together. Batches of the train split come in random order, after the others."""
    found = []
    for split in SPLITS:
        own = sorted((row for row in rows if row[0] == split), key=lambda row: len(row[4]))
        groups = [own[i : i + size] for i in range(0, len(own), size)]
        found += random.Random(2).sample(groups, len(groups)) if split == "train" else groups
    return found


def write(clips: Iterator[Clip], folder: Path) -> float:
    """Writes the files of all splits. Returns the hours of speech."""
    folder.mkdir(parents=True, exist_ok=True)
    rows: dict[str, list[Row]] = {split: [] for split in SPLITS}
    with ExitStack() as stack:
        files = {
            (split, kind): stack.enter_context((folder / f"{split}.{kind}").open("wb"))
            for split in SPLITS
            for kind in ("bin", "lab")
        }
        for clip in clips:
            split = clip.row[0]
            files[split, "bin"].write(clip.samples.tobytes())
            files[split, "lab"].write(clip.labels.tobytes())
            rows[split].append([*clip.row[1:], len(clip.labels)])
    for split, own in rows.items():
        (folder / f"{split}.json").write_text(json.dumps(own, ensure_ascii=False), encoding="utf-8")
    return sum(row[-1] for own in rows.values() for row in own) / UNITS_A_SECOND / 3600


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("plan", "kokoro", "speech"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--workers", type=int, default=1, help="processes for each GPU (default: %(default)s)")
    parser.add_argument("--batch", type=int, help="sentences at once (default: 64 on a GPU, 1 on a CPU)")
    parser.add_argument("--clips", type=int, help="speak only so many, drawn at random")
    arguments = parser.parse_args()
    with gzip.open(arguments.plan, "rt", encoding="utf-8") as file:
        speakers, *rows = map(json.loads, file)
    if arguments.clips:
        rows = random.Random(1).sample(rows, min(arguments.clips, len(rows)))
    devices = [f"cuda:{i}" for i in range(torch.cuda.device_count())] or ["cpu"]
    jobs = list(enumerate(batches(rows, arguments.batch or (1 if devices == ["cpu"] else 64))))
    began = time.time()
    context = multiprocessing.get_context("spawn")
    places = context.Queue()
    for device in devices * arguments.workers:
        places.put(device)
    with context.Pool(len(devices) * arguments.workers, _start, (arguments.kokoro, speakers, places)) as pool:
        clips = (clip for batch in pool.imap_unordered(_speak, jobs) for clip in batch)
        hours = write(clips, arguments.speech)
    print(f"{hours:.2f} hours of speech in {time.time() - began:.0f} seconds")


if __name__ == "__main__":
    main()
