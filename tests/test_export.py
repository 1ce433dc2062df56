"""Clips decoded once, into WAV files."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import soundfile
import torch

from data import decode, open_clips
from experiments.random_speech import audio_bytes, write_parquet


def export(folder: Path, *sources: Path) -> subprocess.CompletedProcess[str]:
    command = ("-m", "data.export", str(folder), *map(str, sources), "--workers", "2")
    return subprocess.run([sys.executable, *command], capture_output=True, text=True, check=False)


def test_clips_come_back_to_half_a_level_of_16_bits_and_a_broken_one_is_named(tmp_path: Path) -> None:
    source = write_parquet(tmp_path / "clips.parquet", {"a": audio_bytes(0.5), "b": b"no audio", "c": audio_bytes(0.7)})
    ended = export(tmp_path / "out", source)
    assert ended.returncode == 0
    assert "2 clips in" in ended.stdout
    assert "left out: b cannot be decoded" in ended.stderr
    before, after = open_clips([str(source)], str(tmp_path)), open_clips([str(tmp_path / "out")])
    assert len(after) == 2
    for new, old in ((0, 0), (1, 2)):
        assert after.read(new).speaker == before.read(old).speaker
        apart = decode(after.read(new), 24000) - decode(before.read(old), 24000)
        assert torch.as_tensor(apart).abs().max() <= 2**-15
        assert soundfile.info(next((tmp_path / "out").rglob(f"{old:07}.wav"))).subtype == "PCM_16"


def test_nothing_to_read_is_status_2(tmp_path: Path) -> None:
    broken = write_parquet(tmp_path / "broken.parquet", {"a": b"no audio"})
    assert export(tmp_path / "out", broken).returncode == 2
    missing = export(tmp_path / "out", tmp_path / "nowhere")
    assert missing.returncode == 2
    assert "does not exist" in missing.stderr
