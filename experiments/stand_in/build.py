"""Puts data/demo together from a finished run of configs/codec.yaml and a folder of speech.

    python -m experiments.stand_in.build runs/codec SPEECH_DIR

SPEECH_DIR holds train-*.parquet (the run's own data), test.parquet (speakers the run never saw), real.parquet (people)
and real_sources.csv (their licences). README.md in this folder tells what the parts are.
"""

from __future__ import annotations

import csv
import json
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from codec import Codec, load_release
from codec.checkpoint import with_encoder
from data.clips import Clip, decode

DEMO = Path(__file__).parents[2] / "data" / "demo"
SEEN_CLIPS, UNSEEN_CLIPS = 140, 20
# by the start of the speaker's name; RAVDESS is left out, its share-alike terms differ from this project's
REAL_CLIPS = {"librittsr-": 5, "libritts-": 4, "ljspeech": 1, "vctk-": 6}
VOICES = 4


def main() -> None:
    run, speech = Path(sys.argv[1]), Path(sys.argv[2])
    release = DEMO / "release"
    shutil.rmtree(release, ignore_errors=True)
    shutil.copytree(run / "release", release)
    shutil.copyfile(run / "encoder.safetensors", DEMO / "withheld_encoder.safetensors")

    seen = list(one_a_speaker(sorted(speech.glob("train-*.parquet")), SEEN_CLIPS))
    unseen = list(one_a_speaker([speech / "test.parquet"], UNSEEN_CLIPS))
    real = [
        row for start, count in REAL_CLIPS.items() for row in one_a_speaker([speech / "real.parquet"], count, start)
    ]
    pq.write_table(pa.Table.from_pylist(seen), DEMO / "seen.parquet")
    pq.write_table(pa.Table.from_pylist(unseen + real), DEMO / "unseen.parquet")
    write_sources(seen, unseen, real, speech / "real_sources.csv")
    codec = with_encoder(load_release(release), DEMO / "withheld_encoder.safetensors")
    add_voices(release, codec, [Clip(row["id"], row["audio"]["bytes"]) for row in seen[:VOICES]])


def one_a_speaker(files: list[Path], count: int, start: str = "") -> Iterator[dict[str, Any]]:
    """The first clip of 3 to 8 s of each speaker, of `count` speakers whose names start so."""
    speakers: set[str] = set()
    for file in files:
        for row in pq.read_table(file).to_pylist():
            speaker = row["speaker_id"]
            if speaker in speakers or not speaker.startswith(start) or len(speakers) == count:
                continue
            waveform = decode(Clip(row["id"], row["audio"]["bytes"]), 24000)
            if 3 * 24000 <= waveform.shape[-1] <= 8 * 24000:
                speakers.add(speaker)
                yield row


def write_sources(seen: list, unseen: list, real: list, real_sources: Path) -> None:
    """sources.csv: where every clip is from, and its licence."""
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


def add_voices(release: Path, codec: Codec, clips: Sequence[Clip]) -> None:
    """Preset voices, as a real release has them: embeddings that its own encoder made."""
    (release / "voice_embedding").mkdir()
    params = json.loads((release / "params.json").read_text(encoding="utf-8"))
    voices = params["multimodal"]["audio_tokenizer_args"]["voice"]
    for index, clip in enumerate(clips):
        waveform = decode(clip, codec.sample_rate)
        name = f"preset_{index + 1}"
        torch.save(codec.embed(codec.encode(waveform[None]))[0].clone(), release / "voice_embedding" / f"{name}.pt")
        voices[name] = index
    (release / "params.json").write_text(json.dumps(params, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
