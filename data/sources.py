"""Speech sources: folders, parquet files and data sets of the hub, joined or mixed into one order."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.clips import AUDIO_SUFFIXES, Clips, DataError, FolderClips, JoinedClips, ParquetClips
from data.hub import download
from data.order import BySpeaker, Mixed, Order, Shuffled

ON_HUB = re.compile(r"(?P<name>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(:(?P<split>[\w.-]+))?")


@dataclass(frozen=True)
class Source:
    """`path` is a folder of audio files, in LibriTTS-R's layout or any other; or a parquet file in its schema, or a
    folder of them; or a data set's name on the hub, `owner/name`. On the hub, `split` names a part, in short
    `owner/name:split`; the common beginning of several splits' names takes all of them."""

    path: str
    split: str = ""
    weight: float = 0.0  # share of the crops: for every source, or for none; then all clips come equally often

    @classmethod
    def parse(cls, text: str) -> Source:
        """The short form: a path, a hub name, or a hub name with its split."""
        on_hub = ON_HUB.fullmatch(text)
        return cls(on_hub["name"], on_hub["split"]) if on_hub and on_hub["split"] else cls(text)

    @property
    def name(self) -> str:
        return f"{self.path}:{self.split}" if self.split else self.path


def open_sources(sources: Sequence[Source], cache: str = "", needs_text: bool = True) -> list[Clips]:
    """The clips of each source. A data set of the hub is downloaded into `cache`, unless it is there. A corpus's clip
    without transcript cannot be used; with `needs_text` off its text is empty. Raises DataError for a source that
    cannot be read or downloaded, is of no known kind, or is empty."""
    return [_open(source, cache, needs_text) for source in sources]


def open_clips(paths: Sequence[str], cache: str = "", needs_text: bool = True) -> Clips:
    """All clips of several sources in their short form, one after another. Raises DataError as `open_sources` does."""
    return JoinedClips(open_sources([Source.parse(path) for path in paths], cache, needs_text))


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
            raise DataError("data.sampling is speakers, but all clips are of one speaker: set it to clips")
        orders = [BySpeaker(numbers, seed + i) for i, numbers in enumerate(speakers)]
    return Mixed(orders, [len(part) for part in parts], weights, seed) if any(weights) else orders[0]


def _open(source: Source, cache: str, needs_text: bool) -> Clips:
    path = Path(source.path)
    if path.exists():
        if source.split:
            raise DataError(f"{path} is a local folder or file, which has no splits: leave out {source.split!r}")
        parquet = sorted(path.glob("*.parquet")) if path.is_dir() else [path] * (path.suffix == ".parquet")
    elif ON_HUB.fullmatch(source.path):
        parquet = download(source.path, source.split, cache)
    else:
        raise DataError(
            f"{path} does not exist; data is a folder of audio files, parquet files in LibriTTS-R's schema, or a data "
            "set's name on the hub, as in mythicinfinity/libritts_r:train"
        )
    clips: Clips = ParquetClips(parquet, cache, needs_text) if parquet else FolderClips(path, needs_text)
    if not len(clips):
        kinds = ", ".join(AUDIO_SUFFIXES)
        raise DataError(f"{source.name} has no clips: expected {kinds} files, or parquet files in LibriTTS-R's schema")
    return clips
