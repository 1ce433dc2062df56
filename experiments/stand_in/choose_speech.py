"""Chooses the speech of data/demo: seen.parquet, unseen.parquet and sources.csv.

    python -m experiments.stand_in.choose_speech SPEECH_DIR

SPEECH_DIR holds train-*.parquet (speech to train on), test.parquet (speakers that are not in it), real.parquet
(recordings of people) and real_sources.csv (their licences). data/demo/README.md says what the parts of data/demo are.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from codec.config import SAMPLE_RATE
from data.audio import Clip, decode
from experiments.runs import DEMO, ExperimentError, experiment_status

SPEECH_FILES = ("train-*.parquet", "test.parquet", "real.parquet", "real_sources.csv")
SEEN_CLIPS, UNSEEN_CLIPS = 140, 20
SHORTEST, LONGEST = 3, 8  # seconds of a clip
# by the start of the speaker's name; without RAVDESS, because its share-alike licence differs from this project's
REAL_CLIPS = {"librittsr-": 5, "libritts-": 4, "ljspeech": 1, "vctk-": 6}
Row = dict[str, Any]  # of a parquet file


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("speech", type=Path, help="the folder of speech")
    options = parser.parse_args()
    return experiment_status(lambda: choose(options.speech), f"repeat the command: {DEMO} may be incomplete")


def choose(speech: Path) -> int:
    missing = [name for name in SPEECH_FILES if not any(speech.glob(name))]
    if missing:
        raise ExperimentError(f"{speech} has no {', '.join(missing)}: {DEMO} was not changed")
    seen = list(one_row_per_speaker(sorted(speech.glob("train-*.parquet")), SEEN_CLIPS))
    unseen = list(one_row_per_speaker([speech / "test.parquet"], UNSEEN_CLIPS))
    real = [
        row
        for start, count in REAL_CLIPS.items()
        for row in one_row_per_speaker([speech / "real.parquet"], count, start)
    ]
    pq.write_table(pa.Table.from_pylist(seen), DEMO / "seen.parquet")
    pq.write_table(pa.Table.from_pylist(unseen + real), DEMO / "unseen.parquet")
    write_sources(seen, unseen, real, speech / "real_sources.csv")
    return 0


def one_row_per_speaker(files: list[Path], count: int, start: str = "") -> Iterator[Row]:
    """Rows of parquet files: each speaker's first clip of 3 to 8 s, for the first `count` speakers whose names begin
    with `start`."""
    speakers: set[str] = set()
    for file in files:
        for row in pq.read_table(file).to_pylist():
            speaker = row["speaker_id"]
            if speaker in speakers or not speaker.startswith(start) or len(speakers) == count:
                continue
            waveform = decode(Clip(row["id"], row["audio"]["bytes"]), SAMPLE_RATE)
            if SHORTEST * SAMPLE_RATE <= waveform.shape[-1] <= LONGEST * SAMPLE_RATE:
                speakers.add(speaker)
                yield row


def write_sources(seen: Sequence[Row], unseen: Sequence[Row], real: Sequence[Row], real_sources: Path) -> None:
    """Writes sources.csv: where every clip comes from, and its licence."""
    with real_sources.open(encoding="utf-8") as file:
        known = {row["id"]: row for row in csv.DictReader(file)}
    with (DEMO / "sources.csv").open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["id", "file", "speaker_id", "source", "licence"])
        synthetic = ("synthetic, Kokoro-82M", "Apache-2.0 model; text in the public domain or written for it")
        for name, rows in (("seen.parquet", seen), ("unseen.parquet", unseen)):
            table.writerows([row["id"], name, row["speaker_id"], *synthetic] for row in rows)
        for row in real:
            stated = known[row["id"]]
            table.writerow([row["id"], "unseen.parquet", row["speaker_id"], stated["source"], stated["licence"]])


if __name__ == "__main__":
    sys.exit(main())
