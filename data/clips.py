"""Clips in folders of audio files and in parquet files with LibriTTS-R's schema."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from data.audio import BadClipError, Clip
from system.command import UserError
from system.names import printable

if TYPE_CHECKING:
    from pyarrow import Schema

AUDIO_SUFFIXES = (".wav", ".flac", ".ogg", ".mp3")


class DataError(UserError):
    """Data that cannot be used at all. The message says what, where, and what is accepted."""


class Clips(Protocol):
    """A numbered collection of clips. Reading one takes little memory, whatever the collection's size."""

    def __len__(self) -> int: ...

    def read(self, index: int) -> Clip: ...

    def speakers(self) -> np.ndarray:
        """Each clip's speaker as a number from 0 on: [clips], int32."""


class FolderClips:
    """Every audio file below a folder, sorted by path. In the corpus's layout, `speaker/chapter/*.wav` with a
    `*.normalized.txt` for each, a clip without transcript is a bad one, unless `needs_text` is off. In any other layout
    a clip's folder is its speaker."""

    TRANSCRIPT = ".normalized.txt"

    def __init__(self, folder: Path, needs_text: bool = True):
        self.folder, self.needs_text = folder, needs_text
        names, self.transcribed = [], False
        for parent, _, files in os.walk(folder, followlinks=True, onerror=_unreadable):
            names += [
                os.path.relpath(Path(parent, file), folder) for file in files if file.lower().endswith(AUDIO_SUFFIXES)
            ]
            self.transcribed = self.transcribed or any(file.endswith(self.TRANSCRIPT) for file in files)
        # an array of bytes: as objects, hundreds of thousands of names would be copied into every worker
        self.names = np.array(sorted(os.fsencode(name) for name in names))

    def __len__(self) -> int:
        return len(self.names)

    def read(self, index: int) -> Clip:
        path = self._path(index)
        name = printable(path)
        if not self.transcribed:
            return Clip(name, path, printable(path.parent.name))
        try:
            text = path.with_suffix(self.TRANSCRIPT).read_text(encoding="utf-8").strip()
        except FileNotFoundError:
            if self.needs_text:
                raise BadClipError(name, "has no transcript", f"expected {self.TRANSCRIPT} beside it") from None
            text = ""
        except (OSError, UnicodeDecodeError) as error:
            raise BadClipError(name, "has a transcript that cannot be read", str(error)) from error
        return Clip(name, path, printable(path.parent.parent.name), text)

    def speakers(self) -> np.ndarray:
        up = 2 if self.transcribed else 1
        parts = [name.split(b"/") for name in self.names]
        return _numbered(np.array([b"/".join(part[:-up]) for part in parts]))

    def _path(self, index: int) -> Path:
        return self.folder / os.fsdecode(self.names[index])


class ParquetClips:
    """The rows of parquet files, memory-mapped from an Arrow copy in the cache. A row without transcript is a bad clip,
    unless `needs_text` is off."""

    COLUMNS = ("audio", "text_normalized", "speaker_id", "id")

    def __init__(self, paths: Sequence[Path], cache: str, needs_text: bool = True):
        from datasets import Audio, Dataset, concatenate_datasets  # takes seconds to import, and only parquet needs it
        from datasets.exceptions import DatasetGenerationError
        from datasets.utils.logging import disable_progress_bar
        from pyarrow.parquet import read_metadata

        self.needs_text = needs_text
        if not sys.stderr.isatty():  # a log file needs no progress bar of the copy into the cache
            disable_progress_bar()
        parts = []
        for path in paths:
            try:
                about = read_metadata(path)
                self._check(path, about.schema.to_arrow_schema())
            except (OSError, ValueError) as error:
                raise DataError(f"{path} cannot be read as parquet: {error}") from error
            if not about.num_rows:
                continue
            try:
                rows = Dataset.from_parquet(str(path), cache_dir=cache or None, columns=list(self.COLUMNS))
            except (OSError, ValueError, DatasetGenerationError) as error:
                reason = error.__cause__ or error  # a damaged file, or a full cache
                raise DataError(
                    f"{path} could not be copied into the cache of memory-mapped rows ({reason}): HF_CACHE names a "
                    "folder with room for it"
                ) from error
            parts.append(rows.cast_column("audio", Audio(decode=False)))
        self.rows = concatenate_datasets(parts) if parts else Dataset.from_dict({column: [] for column in self.COLUMNS})

    def _check(self, path: Path, schema: Schema) -> None:
        from pyarrow.types import is_struct

        missing = [column for column in self.COLUMNS if column not in schema.names]
        if missing:
            raise DataError(f"{path} lacks the columns {missing}; expected LibriTTS-R's: {list(self.COLUMNS)}")
        audio = schema.field("audio").type
        if not is_struct(audio) or "bytes" not in {field.name for field in audio}:
            raise DataError(f"{path} has audio of type {audio}, expected LibriTTS-R's: a struct of bytes and path")

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, index: int) -> Clip:
        row = self.rows[index]
        name, text = printable(str(row["id"] or f"row {index}")), row["text_normalized"]
        speaker = "" if row["speaker_id"] is None else printable(str(row["speaker_id"]))
        audio = row["audio"] and row["audio"]["bytes"]
        if not audio:
            raise BadClipError(name, "holds no audio")
        if not text and self.needs_text:
            raise BadClipError(name, "has no transcript", "its text_normalized is empty")
        return Clip(name, audio, speaker, str(text or ""))

    def speakers(self) -> np.ndarray:
        return _numbered(np.array(self.rows["speaker_id"][:], dtype=np.str_))


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

    def speakers(self) -> np.ndarray:
        """Different collections have different speakers."""
        numbered, known = [], 0
        for part in self.parts:
            numbered.append(part.speakers() + known)
            known = int(numbered[-1].max()) + 1
        return np.concatenate(numbered)


def _unreadable(error: OSError) -> None:
    raise DataError(f"{error.filename} cannot be read ({error.strerror})") from error


def _numbered(names: np.ndarray) -> np.ndarray:
    return np.unique(names, return_inverse=True)[1].astype(np.int32)
