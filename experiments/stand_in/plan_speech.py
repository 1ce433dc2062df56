"""Plans the speech of the stand-in: who says what, and as which phonemes.

    python -m experiments.stand_in.plan_speech PLAN --voices KOKORO/voices.npz --speakers SPEECH/speakers.csv \\
        --text SPEECH --total 600

PLAN is a .jsonl.gz file for speak.py: first all speakers by name, then a row for each clip: [split, kind, speaker,
text, phonemes]. `--text` is a folder with train-*.parquet, dev.parquet and test.parquet in LibriTTS-R's schema: their
sentences are the open-vocabulary part, and each of the train split is spoken twice. Sentences of sentences.py are the
closed-vocabulary part. A second plan with other sentences and more speakers:

    ... PLAN_2 ... --total 3000 --skip 24000 --closed 72000 --seed 1

A speaker is a mix of Kokoro's voices. `--speakers` is a CSV file with speaker_id, split, voices (a+b), weights
(0.6+0.4), accent and speed. Random mixes are added to the train split until it has `--total` speakers. A mix whose mean
style is nearer than 1.1 to that of a dev or test speaker is refused. Phonemes need the package espeakng-loader.
"""

from __future__ import annotations

import argparse
import csv
import ctypes
import gzip
import json
import random
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from experiments.stand_in.sentences import sentences

ACCENTS = {"en-us": b"en-us", "en-gb": b"English (Great Britain)"}  # espeak's names
CLOSED = {"train": 24_000, "dev": 192, "test": 240}  # sentences of the closed vocabulary
OPEN = {"dev": 64, "test": 120}  # of the open one; of the train split all, twice
NEAREST = 1.1  # distance of mean styles; two of Kokoro's own voices are 0.57 apart at least, 3.1 in the median
LONGEST = 250  # phonemes


@dataclass(frozen=True)
class Speaker:
    id: str
    voices: list[str]
    weights: list[float]  # add up to 1
    accent: str
    speed: float

    def style(self, means: dict[str, np.ndarray]) -> np.ndarray:
        return sum((w * means[v] for v, w in zip(self.voices, self.weights, strict=True)), np.zeros(256))


class Phonemizer:
    """espeak-ng by way of ctypes. It drops punctuation, which is put back where it was."""

    def __init__(self) -> None:
        import espeakng_loader  # not among this project's requirements

        self.library = ctypes.CDLL(espeakng_loader.get_library_path())
        self.library.espeak_Initialize(2, 0, espeakng_loader.get_data_path().encode(), 0)
        self.library.espeak_TextToPhonemes.restype = ctypes.c_char_p
        self.accent = ""

    def __call__(self, text: str, accent: str) -> str:
        if accent != self.accent:
            if self.library.espeak_SetVoiceByName(ACCENTS[accent]):
                raise SystemExit(f"error: espeak-ng has no voice for {accent}")
            self.accent = accent
        parts = re.split(r'(\s*[;:,.!?"—…()“”]+\s*)', text)
        spoken = (part if i % 2 else self.words(part) for i, part in enumerate(parts))
        return " ".join("".join(spoken).split())

    def words(self, text: str) -> str:
        rest, out = ctypes.c_char_p(text.encode()), []
        while rest.value:
            out.append(self.library.espeak_TextToPhonemes(ctypes.byref(rest), 1, 2).decode())  # UTF-8 in, IPA out
        return " ".join(out)


def read_speakers(path: Path, split: str) -> list[Speaker]:
    with path.open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == split]
    found = []
    for row in rows:
        weights = [float(weight) for weight in row["weights"].split("+")]
        shares = [weight / sum(weights) for weight in weights]
        found.append(Speaker(row["speaker_id"], row["voices"].split("+"), shares, row["accent"], float(row["speed"])))
    return found


def add_mixes(
    speakers: list[Speaker], count: int, held_out: Sequence[Speaker], means: dict[str, np.ndarray], seed: int
) -> None:
    """Adds mixes of two or three voices until there are `count` speakers."""
    rng, names = np.random.default_rng(seed), sorted(means)
    away = np.stack([speaker.style(means) for speaker in held_out])
    while len(speakers) < count:
        voices = [str(name) for name in rng.choice(names, rng.integers(2, 4), replace=False)]
        weights = rng.dirichlet([2.0] * len(voices)).round(3)
        shares = (weights / weights.sum()).tolist()
        speed = round(float(rng.uniform(0.85, 1.15)), 3)
        accent = "en-gb" if voices[int(np.argmax(shares))].startswith("b") else "en-us"
        speaker = Speaker(str(8000 + len(speakers)), voices, shares, accent, speed)
        if np.linalg.norm(away - speaker.style(means), axis=1).min() >= NEAREST:
            speakers.append(speaker)


def texts(folder: Path, pattern: str) -> list[str]:
    found: set[str] = set()
    for file in sorted(folder.glob(pattern)):
        found |= set(pq.read_table(file, columns=["text_normalized"])["text_normalized"].to_pylist())
    return sorted(found)


def dealt(items: list[str], speakers: list[Speaker], seed: int) -> list[tuple[str, Speaker]]:
    """Each text with a speaker. All speakers come equally often."""
    rng = random.Random(seed)
    deck: list[Speaker] = []
    pairs = []
    for text in rng.sample(items, len(items)):
        deck = deck or rng.sample(speakers, len(speakers))
        pairs.append((text, deck.pop()))
    return pairs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("plan", type=Path)
    parser.add_argument("--voices", type=Path, required=True)
    parser.add_argument("--speakers", type=Path, required=True)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--total", type=int, default=600, help="speakers of the train split (default: %(default)s)")
    parser.add_argument(
        "--closed", type=int, default=CLOSED["train"], help="closed-vocabulary sentences to train on (%(default)s)"
    )
    parser.add_argument("--skip", type=int, default=0, help="leave out the first so many: another plan has them")
    parser.add_argument("--seed", type=int, default=0, help="who of the train split says what (default: %(default)s)")
    arguments = parser.parse_args()

    means = {name: voice.astype(np.float32).mean(axis=0) for name, voice in np.load(arguments.voices).items()}
    speakers = {split: read_speakers(arguments.speakers, split) for split in ("train", "dev", "test")}
    add_mixes(speakers["train"], arguments.total, speakers["dev"] + speakers["test"], means, seed=18)
    jobs: list[tuple[str, str, str, Speaker]] = []
    open_texts = texts(arguments.text, "train-*.parquet")
    closed = sentences("train", arguments.skip + arguments.closed, 1)
    for split, kind, items, seed in (
        ("train", "open", open_texts, 10 * arguments.seed + 1),
        ("train", "open", open_texts, 10 * arguments.seed + 2),
        ("train", "closed", closed[arguments.skip :], 10 * arguments.seed + 3),
        ("dev", "closed", sentences("dev", CLOSED["dev"], 1), 4),
        ("dev", "open", texts(arguments.text, "dev.parquet")[: OPEN["dev"]], 5),
        ("test", "closed", sentences("test", CLOSED["test"], 1), 6),
        ("test", "open", texts(arguments.text, "test.parquet")[: OPEN["test"]], 7),
    ):
        jobs += [(split, kind, text, speaker) for text, speaker in dealt(items, speakers[split], seed)]
    jobs.sort(key=lambda job: job[3].accent)  # espeak takes long to change its voice
    phonemize = Phonemizer()
    rows = []
    for split, kind, text, speaker in jobs:
        phonemes = phonemize(text, speaker.accent)
        if len(phonemes) <= LONGEST:
            rows.append([split, kind, speaker.id, text, phonemes])
    random.Random(0).shuffle(rows)
    rows.sort(key=lambda row: row[0] == "train")
    everybody = {speaker.id: asdict(speaker) for group in speakers.values() for speaker in group}
    with gzip.open(arguments.plan, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in [everybody, *rows])
    counts = Counter((row[0], row[1]) for row in rows)
    print(f"{len(rows)} clips of {len(everybody)} speakers: {dict(counts)}")


if __name__ == "__main__":
    main()
