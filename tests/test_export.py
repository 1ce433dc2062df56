"""Clips decoded once, into WAV files."""

from __future__ import annotations

from pathlib import Path

import pytest
import soundfile
import torch

from data import decode, export, open_clips
from experiments.random_speech import audio_bytes, write_parquet


def test_clips_come_back_to_half_a_level_of_16_bits_and_a_broken_one_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_parquet(tmp_path / "clips.parquet", {"a": audio_bytes(0.5), "b": b"no audio", "c": audio_bytes(0.7)})
    assert export.main([str(tmp_path / "out"), str(source), "--workers", "2"]) == 0
    said = capsys.readouterr()
    assert "2 clips in" in said.out
    assert "left out: b cannot be decoded" in said.err
    before, after = open_clips([str(source)], str(tmp_path)), open_clips([str(tmp_path / "out")])
    assert len(after) == 2
    for new, old in ((0, 0), (1, 2)):
        assert after.read(new).speaker == before.read(old).speaker
        apart = decode(after.read(new), 24000) - decode(before.read(old), 24000)
        assert torch.as_tensor(apart).abs().max() <= 2**-15
        assert soundfile.info(next((tmp_path / "out").rglob(f"{old:07}.wav"))).subtype == "PCM_16"


def test_nothing_to_read_is_status_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = write_parquet(tmp_path / "broken.parquet", {"a": b"no audio"})
    assert export.main([str(tmp_path / "out"), str(broken), "--workers", "1"]) == 2
    assert export.main([str(tmp_path / "out"), str(tmp_path / "nowhere")]) == 2
    for workers in ("0", "-1", "many"):
        with pytest.raises(SystemExit, match=r"^2$"):
            export.main([str(tmp_path / "out"), str(broken), "--workers", workers])
    assert "does not exist" in capsys.readouterr().err
