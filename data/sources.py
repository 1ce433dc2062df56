"""Speech sources: folders, parquet files and data sets of the hub, joined or mixed into one order."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from data.clips import AUDIO_SUFFIXES, Clips, DataError, FolderClips, JoinedClips, files_below
from data.hub import download
from data.order import BySpeaker, Mixed, Order, Shuffled
from data.tables import TABLES, Columns, TableClips, saved_tables, shown
from system.environment import expand_home
from system.names import printable
from system.yaml_text import parse_yaml_text

ON_HUB = re.compile(r"(?P<name>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(:(?P<split>[\w./-]+))?")
KINDS = (
    "a folder of audio files, parquet files, a folder of datasets' save_to_disk, a list of files (.tsv, .csv), or a "
    "data set's name on the hub, as in mythicinfinity/libritts_r:train"
)


@dataclass(frozen=True)
class Source:
    """`path` is a folder of audio files, in LibriTTS-R's layout or any other; or a table (data/tables.py) or a folder
    of them; or a data set's name on the hub, `owner/name`. On the hub, `split` names a part, in short
    `owner/name:split`; the common beginning of several splits' names takes all of them, and `folder/split` those in a
    folder."""

    path: str
    split: str = ""
    weight: float = 0.0  # share of the crops: for every source, or for none; then all clips come equally often
    audio: str = ""  # the names of a table's columns, if they are not LibriTTS-R's
    text: str = ""
    speaker: str = ""
    id: str = ""
    language: str = ""  # a column with each clip's language
    asr_language: str = ""  # the language of all other clips, for the teacher; empty is losses.asr_language

    @classmethod
    def parse(cls, text: str) -> Source:
        """The short form: a path, a hub name, or a hub name with its split."""
        on_hub = ON_HUB.fullmatch(text)
        return cls(on_hub["name"], on_hub["split"]) if on_hub and on_hub["split"] else cls(text)

    @property
    def name(self) -> str:
        return f"{self.path}:{self.split}" if self.split else self.path

    @property
    def columns(self) -> Columns:
        return Columns(self.audio, self.text, self.speaker, self.id, self.language)

    def as_setting(self) -> str | dict[str, Any]:
        """What a configuration says for this source: the short form, or a section if there is more to say."""
        given = {field.name: getattr(self, field.name) for field in fields(self)}
        given = {name: value for name, value in given.items() if value}
        if given.keys() <= {"path", "split"}:
            return self.name
        return {"path": self.path, "split": self.split, "weight": self.weight} | given


def read_source(text: str) -> Source:
    """A source as a command line names it: in its short form, or as a section without a weight, `{path: cv/train.tsv,
    audio: path, text: sentence}`. Raises DataError for a section that is none of a source."""
    if not text.startswith("{") or os.path.lexists(text):
        return Source.parse(expand_home(text))
    known = [field.name for field in fields(Source) if field.name != "weight"]
    try:
        section = parse_yaml_text(text)
    except ValueError as error:
        raise DataError(f"{shown(text)} is not valid YAML: {error}") from error
    for key, value in section.items():
        if key not in known or not isinstance(value, str | None):
            raise DataError(f"{shown(text)}: {shown(key)} cannot be read, expected texts for {', '.join(known)}")
    if not section.get("path"):
        raise DataError(f"{shown(text)} has no path: expected a section such as {{path: train.tsv, text: sentence}}")
    values: dict[str, Any] = {key: value or "" for key, value in section.items()}
    return Source(**values | {"path": expand_home(section["path"])})


def open_sources(sources: Sequence[Source], cache: str = "") -> list[Clips]:
    """The clips of each source. A data set of the hub is downloaded into `cache`, unless it is there. Raises DataError
    for a source that cannot be read or downloaded, is of no known kind, or is empty."""
    return [_open(source, cache) for source in sources]


def open_clips(paths: Sequence[str], cache: str = "") -> Clips:
    """All clips of several sources, as `read_source` takes them, one after another. Raises DataError as it and
    `open_sources` do."""
    return JoinedClips(open_sources([read_source(path) for path in paths], cache))


def order_of(parts: Sequence[Clips], weights: Sequence[float], sampling: str, seed: int) -> Order:
    """The endless order of the joined clips of `parts`. `sampling` is "clips", for all clips equally often, or
    "speakers", for all speakers equally often. Weights that are not 0 are the parts' shares. Raises DataError if
    speakers are to be balanced and there is only one."""
    groups: list[Clips] = list(parts) if any(weights) else [JoinedClips(parts)]
    orders: list[Order]
    if sampling == "clips":
        orders = [Shuffled(len(group), seed + i) for i, group in enumerate(groups)]
    else:
        speakers = [group.speakers() for group in groups]
        if len(groups) == 1 and not np.any(speakers[0]):
            raise DataError(
                "data.sampling is speakers, but all clips are of one speaker: set it to clips, or name the table's "
                "column of speakers, as in speaker: NAME (docs/data.md)"
            )
        orders = [BySpeaker(numbers, seed + i) for i, numbers in enumerate(speakers)]
    return Mixed(orders, [len(part) for part in parts], weights, seed) if any(weights) else orders[0]


def _open(source: Source, cache: str) -> Clips:
    path, name = Path(source.path), printable(source.name)
    if not source.path:
        raise DataError("the name of a source of speech is empty: is a variable of the shell not set?")
    if path.exists():
        if source.split:
            raise DataError(f"{name}: a local folder or file has no splits: leave out {source.split!r}")
        tables = _tables_in(path)
    elif ON_HUB.fullmatch(source.path):
        tables = download(source.path, source.split, cache)
    else:
        raise DataError(f"{name} does not exist; data is {KINDS}")
    clips: Clips
    if tables:
        clips = TableClips(tables, cache, source.columns, source.asr_language)
    else:
        clips = FolderClips(path, source.asr_language)
        if len(clips) and source.columns != Columns():
            raise DataError(f"{name} is a folder of audio files, which has no columns: leave out their names")
    if not len(clips):
        raise DataError(f"{name} has no clips: expected {', '.join(AUDIO_SUFFIXES)} files; or {KINDS}")
    return clips


def _tables_in(path: Path) -> list[Path]:
    """The tables that a path names: itself, or those in the folder; or those below it, if they are in one folder and no
    audio file is below. None for a folder of audio files. Raises DataError for a file of another kind, and for tables
    in several folders."""
    if not path.is_dir():
        if path.suffix.lower() not in TABLES:
            raise DataError(f"{printable(path)} is no table ({', '.join(TABLES)}); data is {KINDS}")
        return [path]
    inside = saved_tables(path) or sorted(file for file in path.iterdir() if file.suffix.lower() == ".parquet")
    if inside:
        return inside
    below = [Path(file) for file in files_below(str(path)) if file.lower().endswith((".parquet", *AUDIO_SUFFIXES))]
    tables = sorted(file for file in below if file.suffix.lower() == ".parquet")
    if len(tables) < len(below):
        return []
    folders = sorted({printable(file.parent) for file in tables})
    if len(folders) > 1:
        raise DataError(
            f"{printable(path)} has parquet files in {len(folders)} folders, which may be different splits: name those "
            f"to use, as in {', '.join(folders[:20])}"
        )
    return tables
