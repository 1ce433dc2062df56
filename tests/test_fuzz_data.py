"""Whatever is in an audio file, a table or a name: a clip is used, or one sentence says why it is not."""

from __future__ import annotations

import io
import os
import random
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
import torch

from data import DataError, Source, decode, open_sources
from data.audio import MOST_SAMPLES, BadClipError, Clip, open_audio
from data.clips import Clips, FolderClips
from data.sources import ON_HUB
from experiments.random_speech import audio_bytes
from system.command import UserError
from system.files import write_whole
from tests.fuzzing import ODD, bounded, cases, mutated, refused_or_taken

RATE = 24000
HEADER = 120  # bytes
FORMATS = [
    *({"format": "WAV", "subtype": subtype} for subtype in ("PCM_16", "FLOAT", "GSM610", "IMA_ADPCM", "G721_32")),
    *({"format": name} for name in ("FLAC", "MP3", "RF64", "WAVEX", "AIFF", "CAF", "W64")),
    *({"format": "OGG", "subtype": subtype} for subtype in ("VORBIS", "OPUS")),
]


def encoded(form: dict[str, str]) -> bytes:
    stream = io.BytesIO()
    soundfile.write(stream, 0.1 * np.random.default_rng(0).standard_normal(4800), 8000, **form)
    return stream.getvalue()


def odd_bytes(content: bytes, dice: random.Random) -> bytes:
    """Damaged anywhere, or in the header; or with numbers at their limits there."""
    if dice.random() < 0.3:
        return mutated(content, dice)
    edited = bytearray(content[:HEADER])
    for _ in range(dice.randint(1, 3)):
        number = dice.choice(
            [0, 1, 255, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**36 - 1, 2**63 - 1, 2**64 - 1]
        )
        size = dice.choice([1, 2, 4, 5, 8])
        at = dice.randrange(len(edited))
        edited[at : at + size] = (number % 256**size).to_bytes(size, dice.choice(["little", "big"]))
    return bytes(edited) + content[HEADER:]


def use(clip: Clip) -> None:
    """As training does, and as data.export does."""
    waveform = decode(clip, RATE, resample=True)
    assert torch.isfinite(waveform).all()
    with open_audio(clip) as audio:
        assert sum(block.size for block in audio.blocks()) <= max(MOST_SAMPLES, audio.frames * audio.channels)


def test_damaged_sounds_are_used_or_named(tmp_path: Path) -> None:
    sounds = [encoded(form) for form in FORMATS]
    for dice in cases():
        content: bytes | Path = odd_bytes(dice.choice(sounds), dice)
        if dice.random() < 0.3:
            assert isinstance(content, bytes)
            (tmp_path / "x.wav").write_bytes(content)
            content = tmp_path / "x.wav"
        refused_or_taken(lambda content=content: use(Clip("clip", content)), BadClipError)


def read_all(parts: Sequence[Clips]) -> None:
    """Every row, each a clip or a sentence."""
    for clips in parts:
        clips.speakers()
        for index in range(len(clips)):
            refused_or_taken(lambda clips=clips, index=index: clips.read(index), BadClipError)


def test_damaged_tables_are_used_or_named(tmp_path: Path) -> None:
    rows = {
        "audio": [{"bytes": audio_bytes(0.01 + i / 100), "path": f"{i}.wav"} for i in range(3)],
        "text_normalized": ["a", None, "é"],
        "speaker_id": [1, 2, 2],
        "id": ["a", "b", "c"],
    }
    written = io.BytesIO()
    pq.write_table(pa.table(rows), written)
    parquet, listed = written.getvalue(), b"audio\tid\tspeaker_id\n0.wav\ta\tx\n1.wav\tb\ty\n"
    for dice in cases():
        kind = dice.choice([".parquet", ".tsv", ".csv", ".arrow"])
        content = mutated(listed if kind in (".tsv", ".csv") else parquet, dice)
        if kind == ".parquet" and dice.random() < 0.7:  # what describes the columns is at the end
            content = parquet[:-600] + odd_bytes(parquet[-600:-8], dice) + parquet[-8:]
        path = tmp_path / f"x{kind}"
        path.write_bytes(content)
        section = {name: dice.choice(ODD) for name in ("text", "speaker", "language") if dice.random() < 0.1}
        source = Source(str(path), **section)
        refused_or_taken(lambda source=source: read_all(open_sources([source], str(tmp_path / "cache"))), DataError)
        shutil.rmtree(tmp_path / "cache", ignore_errors=True)


def test_odd_names_are_read_shown_and_written(tmp_path: Path) -> None:
    sound = audio_bytes(0.1)
    for dice in cases():
        name = "".join(dice.choice(ODD) for _ in range(dice.randint(1, 3)))
        name = (
            name.replace("/", "").replace("\0", "").encode("utf-8", "surrogateescape" if "\udce9" in name else "ignore")
        )
        folder = tmp_path / "speech" / os.fsdecode(name[:200].strip(b".") or b"x")
        folder.mkdir(parents=True)
        (folder / f"{os.fsdecode(name[:200])}.wav").write_bytes(sound)
        with bounded():
            clips = FolderClips(tmp_path / "speech")
            clip = clips.read(0)
            decode(clip, RATE)
            write_whole(tmp_path / "skipped.txt", f"{clip.name} of {clip.speaker}\n")
        assert (tmp_path / "skipped.txt").read_text(encoding="utf-8").count("\n") == 1
        shutil.rmtree(tmp_path / "speech")


@pytest.mark.parametrize("name", [odd for odd in ODD if "\0" not in odd and "\ud800" not in odd])
def test_any_text_as_a_source_is_a_sentence(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    there = len(name) < 200 and Path(name).exists()
    if not there and not ON_HUB.fullmatch(name):
        with pytest.raises((UserError, OSError)):
            open_sources([Source.parse(name)], str(tmp_path / "cache"))
