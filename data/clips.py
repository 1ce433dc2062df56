"""Collections of clips: folders of audio files, and several collections joined. data/tables.py has those in tables."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from data.audio import BadClipError, Clip
from system.command import UserError
from system.names import printable
from system.untrusted import read_file

AUDIO_SUFFIXES = (  # of what libsndfile reads
    *(".wav", ".flac", ".ogg", ".mp3", ".opus", ".oga"),
    *(".aif", ".aiff", ".au", ".caf", ".rf64", ".sph", ".w64"),
)
MAX_TRANSCRIPT = 1 << 20  # bytes


class DataError(UserError):
    """Data that cannot be used at all. The message says what, where, and what is accepted."""


class Clips(Protocol):
    """A numbered collection of clips. Reading one takes little memory, whatever the collection's size."""

    def __len__(self) -> int: ...

    def read(self, index: int) -> Clip: ...

    def speakers(self) -> np.ndarray:
        """Each clip's speaker as a number from 0 on: [clips], int32."""

    def texts(self) -> list[str]:
        """Each clip's transcript, empty where there is none. No audio is read."""


class FolderClips:
    """Every audio file below a folder, each real file once, sorted by path. In LibriTTS-R's layout,
    `speaker/chapter/*.wav` with a `*.normalized.txt` for each, that is the transcript. In any other layout a clip's
    folder is its speaker. `language` is that of all clips."""

    TRANSCRIPT = ".normalized.txt"

    def __init__(self, folder: Path, language: str = ""):
        self.folder, self.language = folder, language
        files = files_below(str(folder))
        self.transcribed = any(file.endswith(self.TRANSCRIPT) for file in files)
        names = [os.path.relpath(file, folder) for file in files if file.lower().endswith(AUDIO_SUFFIXES)]
        # an array of bytes: as objects, hundreds of thousands of names would be copied into every worker
        self.names = np.array(sorted(os.fsencode(name) for name in names))

    def __len__(self) -> int:
        return len(self.names)

    def read(self, index: int) -> Clip:
        path = self._path(index)
        name = printable(path)
        if not self.transcribed:
            return Clip(name, path, printable(path.parent.name), language=self.language)
        try:
            text = read_file(path.with_suffix(self.TRANSCRIPT), MAX_TRANSCRIPT).decode().strip()
        except FileNotFoundError:
            text = ""
        except (OSError, UnicodeDecodeError) as error:
            raise BadClipError(name, "has a transcript that cannot be read", printable(str(error))) from error
        return Clip(name, path, printable(path.parent.parent.name), text, self.language)

    def speakers(self) -> np.ndarray:
        up = 2 if self.transcribed else 1
        parts = [name.split(b"/") for name in self.names]
        return _numbered(np.array([b"/".join(part[:-up]) for part in parts]))

    def texts(self) -> list[str]:
        found = []
        for index in range(len(self)):
            try:
                found.append(self.read(index).text)
            except BadClipError:  # its transcript cannot be read
                found.append("")
        return found

    def _path(self, index: int) -> Path:
        return self.folder / os.fsdecode(self.names[index])


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

    def texts(self) -> list[str]:
        return [text for part in self.parts for text in part.texts()]


def files_below(folder: str) -> list[str]:
    """Every file below a folder. Links are followed last, and only to what has not been seen: a link to a folder above
    is no loop, and a linked file does not count twice."""
    files: list[str] = []
    links: list[str] = []
    seen: set[str] = set()
    folders = [(folder, os.path.realpath(folder))]
    while folders or links:
        if not folders:
            links.sort(reverse=True)
            link = links.pop()
            real = os.path.realpath(link)
            if real in seen:
                continue
            if not Path(real).is_dir():
                files.append(link)
                seen.add(real)
                continue
            folders.append((link, real))
        path, real = folders.pop()
        if real in seen:
            continue
        seen.add(real)
        try:
            entries = list(os.scandir(path))
        except OSError as error:
            raise DataError(f"{printable(path)} cannot be read ({error.strerror})") from error
        for entry in entries:
            there = f"{real}/{entry.name}"
            if entry.is_symlink():
                links.append(entry.path)
            elif entry.is_dir():
                folders.append((entry.path, there))
            elif there not in seen:
                files.append(entry.path)
                seen.add(there)
    return files


def _numbered(names: np.ndarray) -> np.ndarray:
    return np.unique(names, return_inverse=True)[1].astype(np.int32)
