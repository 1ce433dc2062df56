"""The data a run names: folders, parquet files and data sets of the hub, joined or mixed, in an order of its own."""

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
    """`path` is a folder of audio files, in LibriTTS-R's layout or any other; a parquet file in its schema, or a folder
    of them; or a data set's name on the hub, as `owner/name`, of which `split` names a part (`owner/name:split` for
    short; the beginning of several splits' names takes them all)."""

    path: str
    split: str = ""
    weight: float = 0.0  # share of the crops; give every source one, or none: then every clip is used equally often

    @classmethod
    def parse(cls, text: str) -> Source:
        """The short form: a path, a hub name, or a hub name with its split."""
        on_hub = ON_HUB.fullmatch(text)
        return cls(on_hub["name"], on_hub["split"]) if on_hub and on_hub["split"] else cls(text)

    @property
    def name(self) -> str:
        return f"{self.path}:{self.split}" if self.split else self.path


def open_sources(sources: Sequence[Source], cache: str = "", needs_text: bool = True) -> list[Clips]:
    """The clips of each source. A data set of the hub is downloaded into `cache` when it is not there yet. A clip of a
    corpus that lacks its transcript is a bad one, or with `needs_text` off has an empty text. Raises DataError for a
    source that cannot be had, is of no known kind or holds nothing."""
    return [_open(source, cache, needs_text) for source in sources]


def open_clips(paths: Sequence[str], cache: str = "", needs_text: bool = True) -> Clips:
    """All clips of several sources in their short form, one after another. Raises DataError as `open_sources` does."""
    return JoinedClips(open_sources([Source.parse(path) for path in paths], cache, needs_text))


def order_of(parts: Sequence[Clips], weights: Sequence[float], sampling: str, seed: int) -> Order:
    """The endless order in which the joined clips of `parts` are used. `sampling` is "clips": each as often as any
    other; or "speakers": each speaker as often as any other. Weights, where they are not 0, are the parts' shares.
    Raises DataError where speakers are to be balanced and there is one alone."""
    groups: list[Clips] = list(parts) if any(weights) else [JoinedClips(parts)]
    orders: list[Order]
    if sampling == "clips":
        orders = [Shuffled(len(group), seed + i) for i, group in enumerate(groups)]
    else:
        speakers = [group.speakers() for group in groups]
        if len(groups) == 1 and not np.any(speakers[0]):
            raise DataError("data.sampling is speakers, and the clips are all of one speaker: set it to clips")
        orders = [BySpeaker(numbers, seed + i) for i, numbers in enumerate(speakers)]
    return Mixed(orders, [len(part) for part in parts], weights, seed) if any(weights) else orders[0]


def _open(source: Source, cache: str, needs_text: bool) -> Clips:
    path = Path(source.path)
    if path.exists():
        if source.split:
            raise DataError(f"{path} is a folder or file here, which has no splits: leave out {source.split!r}")
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
        raise DataError(
            f"{source.name} holds no clips: expected {kinds} files, or parquet files in LibriTTS-R's schema"
        )
    return clips
