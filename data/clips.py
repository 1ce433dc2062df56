"""Where clips come from: folders of audio files, and parquet files in LibriTTS-R's schema."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import soundfile
import torch
import torchaudio
from torch import Tensor

AUDIO_SUFFIXES = (".wav", ".flac", ".ogg", ".mp3")
SILENCE = 1e-4  # peak under which a clip counts as silent (-80 dBFS)


class DataError(Exception):
    """Data that cannot be used at all. The message says what, where and what is accepted."""


class BadClipError(Exception):
    """One clip that cannot be used, named with its reason. The run counts it by `kind` and goes on."""

    def __init__(self, name: str, kind: str, detail: str = ""):
        super().__init__(f"{name} {kind}" + (f" ({detail})" if detail else ""))
        self.kind = kind


@dataclass(frozen=True)
class Clip:
    """A clip as it is stored: `audio` is a whole file's bytes."""

    name: str
    audio: bytes
    speaker: str = ""
    text: str = ""


class Clips(Protocol):
    """A numbered collection of clips. Reading one is cheap in memory, whatever the collection's size."""

    def __len__(self) -> int: ...

    def read(self, index: int) -> Clip: ...


class FolderClips:
    """Every audio file below a folder, in the order of the paths."""

    def __init__(self, folder: Path):
        self.paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in AUDIO_SUFFIXES)

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, index: int) -> Clip:
        path = self.paths[index]
        try:
            return Clip(str(path), path.read_bytes())
        except OSError as error:
            raise BadClipError(str(path), "cannot be read", str(error.strerror)) from error


class ParquetClips:
    """The rows of parquet files, memory-mapped from an Arrow copy in the cache."""

    COLUMNS = ("audio", "text_normalized", "speaker_id", "id")

    def __init__(self, paths: Sequence[Path], cache: str):
        from datasets import Audio, Dataset, concatenate_datasets  # takes seconds to import, for parquet alone

        parts = []
        for path in paths:
            try:
                rows = Dataset.from_parquet(str(path), cache_dir=cache or None)
            except (OSError, ValueError) as error:
                raise DataError(f"{path} cannot be read as parquet: {error}") from error
            missing = [column for column in self.COLUMNS if column not in rows.column_names]
            if missing:
                raise DataError(f"{path} lacks the columns {missing}; expected LibriTTS-R's: {list(self.COLUMNS)}")
            parts.append(rows.select_columns(list(self.COLUMNS)).cast_column("audio", Audio(decode=False)))
        self.rows = concatenate_datasets(parts)

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, index: int) -> Clip:
        row = self.rows[index]
        audio = row["audio"]["bytes"]
        if not audio:
            raise BadClipError(row["id"], "holds no audio")
        return Clip(row["id"], audio, row["speaker_id"], row["text_normalized"])


class JoinedClips:
    """Several collections, one after another."""

    def __init__(self, parts: Sequence[Clips]):
        self.parts = list(parts)
        self.ends = np.cumsum([len(part) for part in parts])

    def __len__(self) -> int:
        return int(self.ends[-1])

    def read(self, index: int) -> Clip:
        part = int(np.searchsorted(self.ends, index, side="right"))
        return self.parts[part].read(index - int(self.ends[part - 1] if part else 0))


def open_clips(paths: Sequence[str], cache: str = "") -> Clips:
    """The clips of folders of audio files, of parquet files, and of folders of parquet files. Raises DataError for
    a path that is none of these or holds nothing."""
    parts: list[Clips] = []
    for path in map(Path, paths):
        parquet = sorted(path.glob("*.parquet")) if path.is_dir() else [path] * (path.suffix == ".parquet")
        if not path.exists():
            raise DataError(f"{path} does not exist; data is a folder of audio files or parquet files")
        part: Clips = ParquetClips(parquet, cache) if parquet else FolderClips(path)
        if not len(part):
            kinds = ", ".join(AUDIO_SUFFIXES)
            raise DataError(f"{path} holds no clips: expected {kinds} files, or parquet files in LibriTTS-R's schema")
        parts.append(part)
    return JoinedClips(parts)


def read_audio(clip: Clip) -> tuple[np.ndarray, int]:
    """A clip's samples [T, channels], float32, and its sample rate in Hz. Raises BadClipError where the bytes are no
    audio, hold no samples, values that are not finite, or nothing but silence."""
    try:
        # As mistral-common reads it: `soundfile.read` seeks first, after which an MP3 has other last bits.
        with soundfile.SoundFile(io.BytesIO(clip.audio)) as file:
            channels, rate = file.read(dtype="float32", always_2d=True), file.samplerate
    except soundfile.LibsndfileError as error:
        raise BadClipError(clip.name, "cannot be decoded", f"{error}; WAV, FLAC, MP3 and OGG can") from error
    if not channels.size:
        raise BadClipError(clip.name, "is empty")
    if not np.isfinite(channels).all():
        raise BadClipError(clip.name, "holds values that are not finite")
    if np.abs(channels).max() < SILENCE:
        raise BadClipError(clip.name, "is silent")
    return channels, rate


def decode(clip: Clip, sample_rate: int, resample: bool = False) -> Tensor:
    """A clip's waveform [1, T] at `sample_rate`, mixed down to mono, for training. Raises BadClipError as `read_audio`
    does, and for another sample rate where `resample` is off."""
    channels, rate = read_audio(clip)
    waveform = torch.from_numpy(channels).mean(dim=1)[None]
    if rate == sample_rate:
        return waveform
    if not resample:
        raise BadClipError(clip.name, f"is not at {sample_rate} Hz", f"{rate} Hz; data.resample=true accepts it")
    return torchaudio.functional.resample(waveform, rate, sample_rate)
