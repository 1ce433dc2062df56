"""Fixed-length random crops in batches: the same for a seed on any number of workers and ranks.

The training data is one endless stream (`data/order.py`). A position in it is a number, so a run resumes anywhere
without reading what came before, and batches are always complete.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from data.audio import BadClipError, Clip, decode_part, open_audio
from data.bandwidth import is_band_limited
from data.clips import Clips, DataError
from data.order import Order, Shuffled
from data.seeds import derive_seed

ATTEMPTS = 50  # clips tried in a row before the data is called unusable
BAND_LIMITED = "has nothing above 8 kHz"
LONG_SECONDS = 120.0  # of a longer clip only an excerpt is decoded for a crop
EXCERPT_SECONDS = 30.0
UNSEEKABLE = "is long and can only be decoded from its beginning"


class Fault(NamedTuple):
    kind: str
    message: str  # the clip's name and what is wrong with it


class Item(NamedTuple):
    name: str  # of its clip
    waveform: Tensor  # [1, T]
    skipped: tuple[Fault, ...]  # the clips that it replaces, which could not be used
    kept: tuple[Fault, ...]  # faults of its own clip
    language: str  # as its source writes it; empty if unknown


class Batch(NamedTuple):
    names: tuple[str, ...]  # of the clips
    waveform: Tensor  # [B, 1, T]
    skipped: tuple[Fault, ...]
    kept: tuple[Fault, ...]
    languages: tuple[str, ...]


class Crops(Dataset[Item]):
    """A crop of `length` samples for (epoch, index), drawn by (seed, epoch, index). The order replaces a clip that
    cannot be used; the item carries the reason. A clip that is band-limited as a whole is used, and the item carries
    that fault as kept; with `drop_band_limited` it is replaced."""

    def __init__(
        self,
        clips: Clips,
        order: Order,
        length: int,
        sample_rate: int,
        resample: bool,
        seed: int,
        drop_band_limited: bool = False,
    ):
        self.clips, self.order, self.length, self.sample_rate = clips, order, length, sample_rate
        self.resample, self.seed, self.drop_band_limited = resample, seed, drop_band_limited

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, key: tuple[int, int]) -> Item:
        epoch, index = key
        generator = torch.Generator().manual_seed(derive_seed(self.seed, epoch, index))
        skipped = []
        for attempt in range(ATTEMPTS):
            try:
                clip, waveform, kept = self.usable(index, generator)
            except BadClipError as reason:
                skipped.append(Fault(reason.kind, str(reason)))
                index = self.order.replacement(index, attempt, generator)
                continue
            start = int(torch.randint(waveform.shape[-1] - self.length + 1, (), generator=generator))
            crop = waveform[:, start : start + self.length]
            return Item(clip.name, crop, tuple(skipped), kept, clip.language)
        raise DataError(f"no usable clip among {ATTEMPTS} tried; the last one: {skipped[-1].message}")

    def usable(self, index: int, generator: torch.Generator | None = None) -> tuple[Clip, Tensor, tuple[Fault, ...]]:
        """A clip, its waveform [1, T], and the faults with which it is used. Of a clip longer than LONG_SECONDS the
        waveform is an excerpt, drawn with the generator; without one it is the clip's beginning. Raises BadClipError
        for a clip that cannot be used."""
        clip = self.clips.read(index)
        kept: list[Fault] = []
        with open_audio(clip) as audio:
            first, frames = 0, audio.frames
            if audio.seconds > LONG_SECONDS:
                frames = min(frames, math.ceil(max(EXCERPT_SECONDS, self.length / self.sample_rate) * audio.rate) + 1)
                if generator:
                    first = int(torch.rand((), generator=generator, dtype=torch.float64) * (audio.frames - frames))
                if not audio.seekable:
                    detail = "decoding it for each crop is slow: data.export writes it as WAV, or cut it into pieces"
                    kept.append(Fault(UNSEEKABLE, f"{clip.name} {UNSEEKABLE} ({detail})"))
            waveform = decode_part(audio, self.sample_rate, self.resample, first, frames)
        if waveform.shape[-1] < self.length:
            seconds = waveform.shape[-1] / self.sample_rate
            raise BadClipError(clip.name, "is shorter than a crop", f"{seconds:.2f} s")
        if is_band_limited(waveform[0].numpy(), self.sample_rate):
            if self.drop_band_limited:
                raise BadClipError(clip.name, BAND_LIMITED, "data.band_limited=keep uses it")
            kept.append(Fault(BAND_LIMITED, f"{clip.name} {BAND_LIMITED} (data.band_limited=drop leaves it out)"))
        return clip, waveform, tuple(kept)


class Stream(Sampler[list[tuple[int, int]]]):
    """Endless batches of (epoch, index) for one rank, from a position of the order on. All ranks' batches together are
    consecutive positions."""

    def __init__(self, order: Order, batch_size: int, first_position: int = 0, rank: int = 0, ranks: int = 1):
        self.order, self.batch_size, self.first_position = order, batch_size, first_position
        self.rank, self.ranks = rank, ranks

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        position = self.first_position + self.rank * self.batch_size
        while True:
            yield [self.order(i) for i in range(position, position + self.batch_size)]
            position += self.batch_size * self.ranks


def crop_loader(crops: Crops, stream: Stream, workers: int, pin_memory: bool) -> Generator[Batch]:
    """Batches of crops, decoded ahead in worker processes. Closing the generator ends the processes."""
    batches = iter(
        DataLoader(
            crops,
            batch_sampler=stream,
            num_workers=workers,
            collate_fn=_collate,
            pin_memory=pin_memory,
            prefetch_factor=4 if workers else None,
        )
    )
    while True:
        try:
            batch = next(batches)
        except DataError as error:  # from a worker it comes with that process's whole traceback
            raise DataError(str(error).strip().splitlines()[-1].removeprefix("data.clips.DataError: ")) from error
        yield batch


def fixed_clips(
    clips: Clips, count: int, length: int, sample_rate: int, resample: bool, drop_band_limited: bool = False
) -> Tensor:
    """The beginnings [count, 1, length] of `count` clips that are long enough, the same every time. They are spread
    evenly over all clips, because a corpus is sorted by speaker."""
    crops = Crops(clips, Shuffled(len(clips), seed=0), length, sample_rate, resample, 0, drop_band_limited)
    found, last = [], ""
    # the first of each of `count` parts of the corpus, then the second of each, and so on
    for index in sorted(range(len(clips)), key=lambda index: index * count % len(clips) // count):
        try:
            found.append(crops.usable(index)[1][:, :length])
        except BadClipError as reason:  # not counted: validation only needs enough clips
            last = f"; the last clip that cannot be used: {reason}"
        if len(found) == count:
            return torch.stack(found)
    raise DataError(
        f"the validation data has {len(found)} usable clips of {length / sample_rate} s, expected {count}: "
        f"set data.validation_clips or data.validation_seconds lower{last}"
    )


def _collate(items: list[Item]) -> Batch:
    skipped = tuple(fault for item in items for fault in item.skipped)
    kept = tuple(fault for item in items for fault in item.kept)
    waveform = torch.stack([item.waveform for item in items])
    if get_worker_info():
        try:
            waveform.share_memory_()  # the queue does it too, but if it fails there, the run waits forever
        except RuntimeError as error:
            raise DataError(
                "a loader worker has no room for a batch in shared memory: enlarge /dev/shm (docker run --shm-size), "
                "or set data.workers lower"
            ) from error
    names, languages = (tuple(getattr(item, key) for item in items) for key in ("name", "language"))
    return Batch(names, waveform, skipped, kept, languages)
