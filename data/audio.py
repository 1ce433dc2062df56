"""Audio files. A file is judged by its header before it is decoded, and no more is decoded than is asked for, whatever
the header claims."""

from __future__ import annotations

import io
import math
import os
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import soundfile
import soxr
import torch
from torch import Tensor

from system.command import UserError

MOST_SAMPLES = 2**26  # of all channels, decoded at once: 256 MB, which is 46 minutes in mono at 24 kHz
BLOCK = 2**20  # frames decoded at a time where they are only counted or skipped
RATES = (4_000, 384_000)  # Hz. Others come from a damaged header, and resampling from 1 Hz would fill the memory
UNKNOWN_FRAMES = 2**62  # libsndfile says more for a FLAC file that was written into a pipe
UNKNOWN_SIZE = 0x7FFF0000  # bytes; a WAV file written into a pipe claims this size or more, or 0
SLACK = 64  # bytes; some programs count a WAV file's header as samples
MOST_CHUNKS = 1000  # before a WAV file's samples
OGG_END = 4  # the flag of an OGG file's last page
OGG_PAGE = 2**17  # bytes; a page has at most 65,307
SILENCE = 1e-4  # peak under which a clip counts as silent (-80 dBFS)
MAX_PEAK = 100.0  # full scale is 1. At 32768 the stand-in's encoder had 4 semantic codes for a clip instead of 58
Stream = io.BytesIO | io.FileIO


class BadClipError(UserError):
    """One clip that cannot be used. The message names it and the reason; a run counts it by `kind` and continues."""

    def __init__(self, name: str, kind: str, detail: str = ""):
        super().__init__(f"{name} {kind}" + (f" ({detail})" if detail else ""))
        self.kind = kind


@dataclass(frozen=True)
class Clip:
    """A clip as it is stored. `audio` is the bytes of a whole file, or the file's path. `language` is as its source
    writes it, such as `de` or `en-US`. Speaker, text and language are empty if the source has none."""

    name: str
    audio: bytes | Path
    speaker: str = ""
    text: str = ""
    language: str = ""


class _Decoder(soundfile.SoundFile):
    """Decodes forward. After each read soundfile seeks to where it already is, unless the file is not seekable. In some
    files this seek fails, and after it an MP3 decodes to other last bits. mistral-common does not seek either."""

    def seekable(self) -> bool:
        return False

    def can_seek(self) -> bool:
        return bool(super().seekable())


class AudioFile:
    """An open audio file. `frames`, `channels` and `rate` (Hz) are what its header says; nothing is decoded yet.
    `cut_short` is true for a WAV or OGG file that is shorter than it claims, as after an interrupted copy."""

    def __init__(self, name: str, decoder: _Decoder, frames: int, seekable: bool, cut_short: bool):
        self.name, self.frames, self.seekable, self.cut_short = name, frames, seekable, cut_short
        self.channels, self.rate = int(decoder.channels), int(decoder.samplerate)
        self._decoder = decoder

    @property
    def seconds(self) -> float:
        return self.frames / self.rate

    def read(self, first: int = 0, frames: int | None = None) -> np.ndarray:
        """Decodes `frames` frames from `first` on, by default all: samples [T, channels], float32. A file is read once.
        Raises BadClipError for more than MOST_SAMPLES samples, and if there are none or they are not finite, silent or
        far over full scale."""
        name, rate = self.name, self.rate
        if frames is None:
            frames = self.frames - first
        elif frames < self.frames:
            name = f"{name}, {first / rate:.0f} to {(first + frames) / rate:.0f} s,"
        if frames * self.channels > MOST_SAMPLES:
            detail = f"{frames / rate:.0f} s with {self.channels} channels by its header: cut it into shorter files"
            raise BadClipError(name, "is too long", detail)
        with _reasons(name):
            self._skip(first)
            channels = self._decoder.read(frames, dtype="float32", always_2d=True)
        check_level(name, peak_of(name, channels))
        return channels

    def blocks(self) -> Iterator[np.ndarray]:
        """Decodes the whole file, however long it is: samples [up to BLOCK, channels] at a time. A file is read
        once."""
        left = self.frames
        while left:
            with _reasons(self.name):
                block = self._decoder.read(min(left, BLOCK), dtype="float32", always_2d=True)
            if not len(block):
                return
            left -= len(block)
            yield block

    def _skip(self, frames: int) -> None:
        if frames and self.seekable:
            self._decoder.seek(frames)
            return
        while frames:
            skipped = len(self._decoder.read(min(frames, BLOCK), dtype="float32"))
            frames = frames - skipped if skipped else 0


def peak_of(name: str, channels: np.ndarray) -> float:
    """The largest magnitude of samples [T, channels]. Raises BadClipError if there are none or they are not finite."""
    if not channels.size:
        raise BadClipError(name, "is empty", "no samples: record or export it again")
    peak = max(float(channels.max()), -float(channels.min()))
    if not math.isfinite(peak):  # NaN if one sample is
        raise BadClipError(name, "holds values that are not finite", "NaN or infinity: export it again")
    return peak


def check_level(name: str, peak: float) -> None:
    """Raises BadClipError for a clip whose largest magnitude shows that it is silent, or far over full scale, as floats
    in the range of int16 are."""
    if peak < SILENCE:
        raise BadClipError(name, "is silent", "no sample reaches -80 dBFS: record it again")
    if peak > MAX_PEAK:
        raise BadClipError(name, "is far over full scale", f"its peak is {peak:.3g} instead of 1: export it again")


@contextmanager
def open_audio(clip: Clip) -> Iterator[AudioFile]:
    """Opens a clip and reads its header, in milliseconds and little memory. Raises BadClipError if the file cannot be
    read, is no audio, holds nothing, or has an impossible sample rate."""
    with ExitStack() as stack:
        with _reasons(clip.name):
            stream = _opened(clip)
            stack.enter_context(stream)
            if not stream.seek(0, os.SEEK_END):
                raise BadClipError(clip.name, "is empty", "it has 0 bytes: copy it again")
            data = _wav_data(stream)
            cut_short = data.is_cut_short if data else _is_ogg_cut_short(stream)
            decoder = stack.enter_context(_decoder(stream))
            if data and data.claimed is None and not decoder.frames:
                stream = _with_size(clip.name, stream, data)
                decoder = stack.enter_context(_decoder(stream))
            frames, seekable = decoder.frames, decoder.can_seek()
            if frames > UNKNOWN_FRAMES:
                frames, seekable = _counted(decoder), False
                decoder = stack.enter_context(_decoder(stream))
            if not frames:
                raise BadClipError(clip.name, "is empty", "no samples: record or export it again")
            if not RATES[0] <= decoder.samplerate <= RATES[1]:
                detail = f"{decoder.samplerate} Hz, expected {RATES[0]} to {RATES[1]}: export it again"
                raise BadClipError(clip.name, "has an impossible sample rate", detail)
        yield AudioFile(clip.name, decoder, frames, seekable, cut_short)


def read_audio(clip: Clip, most_seconds: float = math.inf) -> tuple[np.ndarray, int]:
    """A clip's samples [T, channels], float32, and its sample rate in Hz. Raises BadClipError as `open_audio` and
    `AudioFile.read` do, and before decoding if the clip is longer than `most_seconds` by its header."""
    with open_audio(clip) as audio:
        if audio.seconds > most_seconds:
            detail = f"{audio.seconds:.0f} s by its header, expected {most_seconds:.0f} s or less"
            raise BadClipError(clip.name, "is too long", detail)
        return audio.read(), audio.rate


def decode(clip: Clip, sample_rate: int, resample: bool = False) -> Tensor:
    """A clip's waveform [1, T] at `sample_rate`, mixed down to mono, for training. Raises BadClipError as `read_audio`
    does, for a file that is cut short, and for another sample rate if `resample` is off."""
    with open_audio(clip) as audio:
        return decode_part(audio, sample_rate, resample)


def decode_part(
    audio: AudioFile, sample_rate: int, resample: bool, first: int = 0, frames: int | None = None
) -> Tensor:
    """`decode` for a part of an open file: `frames` frames from `first` on, counted at the file's own rate."""
    if audio.cut_short:
        raise BadClipError(audio.name, "is cut short")
    if audio.rate != sample_rate and not resample:
        detail = f"{audio.rate} Hz; data.resample=true accepts it"
        raise BadClipError(audio.name, f"is not at {sample_rate} Hz", detail)
    samples = audio.read(first, frames).mean(axis=1)
    if audio.rate != sample_rate:
        samples = soxr.resample(samples, audio.rate, sample_rate, quality="HQ")
    return torch.from_numpy(samples)[None]


@contextmanager
def _reasons(name: str) -> Iterator[None]:
    """Turns the errors of reading and decoding a clip into BadClipErrors."""
    try:
        yield
    except soundfile.LibsndfileError as error:
        reason = error.error_string.rstrip(".")  # without the address of the memory it read from
        raise BadClipError(name, "cannot be decoded", f"{reason}: give WAV, FLAC, MP3 or OGG") from error
    except OSError as error:
        raise BadClipError(name, "cannot be read", str(error.strerror)) from error


class _Bytes(io.BytesIO):
    """In damaged files libsndfile seeks to places before the beginning. An exception in its call would be printed."""

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        try:
            return super().seek(offset, whence)
        except (ValueError, OverflowError):
            return self.tell()


def _opened(clip: Clip) -> Stream:
    """The clip's bytes as a stream. Raises OSError, and BadClipError for a pipe or a device, which could block."""
    if isinstance(clip.audio, bytes):
        return _Bytes(clip.audio)
    descriptor = os.open(clip.audio, os.O_RDONLY | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise BadClipError(clip.name, "cannot be read", "it is no regular file")
    return io.FileIO(descriptor)


def _decoder(stream: Stream) -> _Decoder:
    stream.seek(0)
    # the descriptor rather than the file: soundfile would take `x.raw` for samples without a header
    return _Decoder(stream.fileno(), closefd=False) if isinstance(stream, io.FileIO) else _Decoder(stream)


def _counted(decoder: _Decoder) -> int:
    """The number of frames of a file that does not say it, counted up to a little more than MOST_SAMPLES."""
    frames, block = 0, BLOCK
    while block and frames * decoder.channels <= MOST_SAMPLES:
        block = len(decoder.read(BLOCK, dtype="float32"))
        frames += block
    return frames


class _WavData(NamedTuple):
    """Where a WAV file's samples are: the place of their size in the header, that size in bytes (None if the program
    that wrote the file did not know it), and how many bytes there are."""

    place: int
    claimed: int | None
    there: int

    @property
    def is_cut_short(self) -> bool:
        return self.claimed is not None and self.claimed > self.there + SLACK


def _wav_data(stream: Stream) -> _WavData | None:
    """The data chunk of a WAV file, of whatever kind; None for other files."""
    end = stream.seek(0, os.SEEK_END)
    stream.seek(0)
    head = stream.read(12)
    if head[:4] not in (b"RIFF", b"RIFX", b"RF64", b"BW64") or head[8:] != b"WAVE":
        return None
    order: Literal["big", "little"] = "big" if head.startswith(b"RIFX") else "little"
    large = None  # the size of the samples in a file that may have more than 4 GB
    for place, name, size in _chunks(stream, 12, order):
        if name == b"ds64":
            stream.seek(place + 16)
            large = int.from_bytes(stream.read(8), "little")
        if name == b"data":
            there, unknown = end - place - 8, size >= UNKNOWN_SIZE
            if not size and there:  # chunks may follow an empty one; anything else is samples
                unknown = any(at + 8 + length > end + 1 for at, _, length in _chunks(stream, place + 8, order))
            return _WavData(place + 4, large if large and unknown else None if unknown else size, there)
    return None


def _chunks(stream: Stream, place: int, order: Literal["big", "little"]) -> Iterator[tuple[int, bytes, int]]:
    """Place, name and size of a WAV file's chunks from a place on, MOST_CHUNKS of them at most."""
    for _ in range(MOST_CHUNKS):
        stream.seek(place)
        head = stream.read(8)
        if len(head) < 8:
            return
        size = int.from_bytes(head[4:], order)
        yield place, head[:4], size
        place += 8 + size + size % 2


def _with_size(name: str, stream: Stream, data: _WavData) -> io.BytesIO:
    """A copy of a WAV file whose header says that it holds nothing, with the size of what it holds."""
    if data.there > 4 * MOST_SAMPLES:
        raise BadClipError(name, "is too long", f"{data.there / 1e6:.0f} MB of samples, and 0 by its header")
    stream.seek(0)
    content = bytearray(stream.read())
    content[data.place : data.place + 4] = b"\xff" * 4
    return _Bytes(content)


def _is_ogg_cut_short(stream: Stream) -> bool:
    """Whether an OGG file ends before its last page does; it decodes without an error."""
    stream.seek(0)
    if stream.read(4) != b"OggS":
        return False
    stream.seek(max(0, stream.seek(0, os.SEEK_END) - OGG_PAGE))
    tail = stream.read()
    page = tail[tail.rfind(b"OggS") :]  # its header is 27 bytes and the lengths of its segments
    segments = page[27 : 27 + page[26]] if len(page) > 26 else b""
    return not segments or not page[5] & OGG_END or len(page) < 27 + len(segments) + sum(segments)
