"""Clips of noise, as audio files and as parquet files with LibriTTS-R's schema, for tests and measurements."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile

from codec.config import SAMPLE_RATE


def audio_bytes(
    seconds: float, rate: int = SAMPLE_RATE, channels: int = 1, level: float = 0.1, kind: str = "WAV"
) -> bytes:
    """An audio file of white noise with standard deviation `level`. The same duration gives the same noise."""
    samples = level * np.random.default_rng(int(seconds * 1000)).standard_normal((int(seconds * rate), channels))
    stream = io.BytesIO()
    soundfile.write(stream, samples.clip(-1, 1), rate, format=kind)
    return stream.getvalue()


def write_parquet(path: Path, clips: dict[str, bytes]) -> Path:
    """Writes audio files by clip name as rows of a parquet file. A clip's speaker is the first letter of its name."""
    rows = [
        {
            "audio": {"bytes": audio, "path": f"{name}.wav"},
            "text_normalized": "words",
            "text_original": "Words.",
            "speaker_id": name[0],
            "path": f"{name}.wav",
            "chapter_id": "1",
            "id": name,
        }
        for name, audio in clips.items()
    ]
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path
