"""Pairs of codes and text: what a release's language model spoke, in shards that training and evaluation read.

A pair is a text, the voice that spoke it, and the codes of the speech. The sound is not stored, because the release's
decoder makes it from the codes: 100 hours take 171 MB. A shard is a safetensors file. The server's environment and
the training's both have that library, and it maps a file into memory, so 1000 hours need no more memory than one.

    semantic  [frames] int16        codes of all pairs, one pair after another
    acoustic  [frames, 36] uint8
    lengths   [pairs] int32         frames of each pair
    about     [bytes] uint8         a JSON list with a pair's text, voice, language, noise_seed and cfg_alpha

The file's metadata says who spoke (`source`), for which codec (`codec_fingerprint`), and holds a checksum. A shard
appears whole or not at all.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from codec.checkpoint import read_tensors, write_tensors
from codec.config import CodecConfig
from codec.files import open_tensors
from data.clips import DataError
from data.seeds import derive_seed

SPOKEN = "language model"  # the source of pairs that a release's own language model spoke
KIND = "pairs of codes and text"
TENSORS = {"semantic": torch.int16, "acoustic": torch.uint8, "lengths": torch.int32, "about": torch.uint8}
SHARD_PAIRS = 1000  # of one shard: about 3 hours, 5 MB
DRAWS = -5  # the crops' random numbers are not those of the clips


@dataclass(frozen=True)
class About:
    """How a pair came about. `noise_seed` is the seed of the process that drew the noise of the acoustic codes."""

    text: str = ""
    voice: str = ""
    language: str = ""
    noise_seed: int | None = None
    cfg_alpha: float | None = None


class Pair(NamedTuple):
    codes: Tensor
    """[37, F], integers, without special tokens and the end of audio."""
    about: About


def write_shard(path: Path, pairs: Sequence[Pair], codec_fingerprint: str, source: str = SPOKEN) -> None:
    """Writes a shard of one or more pairs, whole or not at all. Raises ReleaseError if it cannot be written."""
    codes = torch.cat([pair.codes for pair in pairs], dim=1)
    about = json.dumps([asdict(pair.about) for pair in pairs], ensure_ascii=False)
    tensors = {
        "semantic": codes[0].to(torch.int16),
        "acoustic": codes[1:].T.to(torch.uint8).contiguous(),
        "lengths": torch.tensor([pair.codes.shape[1] for pair in pairs], dtype=torch.int32),
        "about": torch.frombuffer(bytearray(about.encode()), dtype=torch.uint8),
    }
    stated = {"format": "pt", "kind": KIND, "source": source, "codec_fingerprint": codec_fingerprint}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_tensors(path, tensors, stated | {"checksum": _checksum(tensors)})


def shard_frames(path: Path) -> int:
    """How many frames a shard has, by its header. Raises DataError for a file that is no shard."""
    with open_tensors(path) as file:
        kind, names = (file.metadata() or {}).get("kind"), set(file.keys())
        if kind != KIND or names != set(TENSORS):
            raise DataError(f"{path} holds no pairs: expected a file that speak_pairs.py wrote")
        return int(math.prod(file.get_slice("semantic").get_shape()))


class Shard:
    """One file, memory-mapped. Reading it checks it: its codes are those that were written, and a codec's of this
    configuration. Raises DataError or ReleaseError for a file that is damaged, no shard, or of another codec."""

    def __init__(self, path: Path, config: CodecConfig, codec_fingerprint: str):
        shard_frames(path)
        with open_tensors(path) as file:
            stated: dict[str, str] = file.metadata() or {}
        found = stated.get("codec_fingerprint", "")
        if found != codec_fingerprint:
            raise DataError(
                f"{path} was spoken by another release (fingerprint {found}, this release's is {codec_fingerprint}): "
                "speak pairs with this one"
            )
        tensors = read_tensors(dict.fromkeys(TENSORS, path))
        self.path, self.source = path, stated.get("source", "")
        self.semantic, self.acoustic, self.lengths = (tensors[name] for name in ("semantic", "acoustic", "lengths"))
        self._about = tensors["about"]
        if not self._is_sound(config, tensors, stated.get("checksum", "")):
            raise DataError(f"{path} is damaged: copy it again, or delete it")

    def _is_sound(self, config: CodecConfig, tensors: dict[str, Tensor], checksum: str) -> bool:
        frames, shapes = self.semantic.numel(), {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        return (
            all(tensors[name].dtype == dtype for name, dtype in TENSORS.items())
            and shapes["semantic"] == (frames,)
            and shapes["acoustic"] == (frames, config.acoustic_dim)
            and self.lengths.ndim == 1
            and frames > 0
            and int(self.lengths.min()) > 0
            and int(self.lengths.sum()) == frames
            and _checksum(tensors) == checksum
            and 0 <= int(self.semantic.min()) <= int(self.semantic.max()) < config.semantic_codebook_size
            and int(self.acoustic.max()) < config.acoustic_codebook_size
        )

    def about(self) -> list[About]:
        """Each pair's text, voice and so on. Raises DataError where they are not those of this version."""
        try:
            found = [About(**row) for row in json.loads(self._about.numpy().tobytes())]
        except (ValueError, TypeError) as error:
            raise DataError(f"{self.path} does not say what was spoken ({error}): speak these pairs again") from error
        if len(found) != len(self.lengths):
            raise DataError(f"{self.path} has {len(self.lengths)} pairs and {len(found)} texts: speak them again")
        return found


class Pairs:
    """All pairs of some shards, numbered. `lengths` [pairs] are their frames, `names` what messages call them."""

    def __init__(self, paths: Iterable[str | Path], config: CodecConfig, codec_fingerprint: str):
        self.shards = [Shard(path, config, codec_fingerprint) for path in shard_paths(paths)]
        self.config = config
        lengths = [shard.lengths.numpy().astype(np.int64) for shard in self.shards]
        self.lengths = np.concatenate(lengths)
        self.shard_of = np.repeat(np.arange(len(lengths)), [len(each) for each in lengths])
        self.index_in_shard = np.concatenate([np.arange(len(each)) for each in lengths])
        self.begins = np.concatenate([np.cumsum(each) - each for each in lengths])  # first frames in the shards

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def hours(self) -> float:
        return float(self.lengths.sum() / self.config.frame_rate / 3600)

    @property
    def sources(self) -> list[str]:
        """Who spoke: `SPOKEN`, or what stands in for it."""
        return sorted({shard.source for shard in self.shards})

    def name(self, index: int) -> str:
        return f"{self.shards[self.shard_of[index]].path.name} pair {self.index_in_shard[index]}"

    def codes(self, index: int, first: int = 0, frames: int | None = None) -> Tensor:
        """The codes [37, F] int64 of a pair: `frames` of them from the frame `first` on, fewer at the pair's end."""
        last = int(self.lengths[index]) if frames is None else min(int(self.lengths[index]), first + frames)
        shard, begin = self.shards[self.shard_of[index]], int(self.begins[index])
        part = slice(begin + first, begin + last)
        return torch.cat([shard.semantic[part][None].long(), shard.acoustic[part].T.long()])

    def about(self) -> list[About]:
        """Every pair's text, voice and so on."""
        return [about for shard in self.shards for about in shard.about()]


def shard_paths(paths: Iterable[str | Path]) -> list[Path]:
    """The shards that files and folders name, in the order of their names within a folder. Raises DataError where there
    is none."""
    found: list[Path] = []
    for path in map(Path, paths):
        inside = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
        if not inside or not inside[0].exists():
            reason = "has no pairs (*.safetensors)" if path.is_dir() else "does not exist"
            raise DataError(f"{path} {reason}: speak_pairs.py makes them")
        found += inside
    return found


class PairBatch(NamedTuple):
    """Crops of pairs for one step. A crop's sound depends on the frames before it, so the decoder gets them too."""

    names: tuple[str, ...]
    codes: Tensor
    """[B, 37, context + F] int16: the crop's frames and what comes before, padded behind with zeros."""
    begins: Tensor
    """[B] int64, the frame of `codes` at which the crop begins."""


class PairCrops:
    """Crops of `samples` samples from pairs, drawn as a function of (seed, step). All positions of all pairs are drawn
    equally often; pairs shorter than a crop are left out. Raises DataError if all pairs are too short.

    The sound of a crop is the same as in the sound of its whole pair: the decoder is causal and sees
    `config.decoder_context` frames back, so a crop carries that many frames, or those from the pair's beginning on.
    """

    def __init__(self, pairs: Pairs, samples: int, seed: int):
        self.pairs, self.seed, self.frames = pairs, seed, pairs.config.frames(samples)
        self.context = pairs.config.decoder_context
        positions = np.clip(pairs.lengths - self.frames + 1, 0, None)
        self.ends = np.cumsum(positions)
        self.too_short = int((positions == 0).sum())
        if not self.ends[-1]:
            seconds = pairs.lengths.max() / pairs.config.frame_rate
            raise DataError(
                f"all {len(pairs)} pairs are shorter than a crop; the longest has {seconds:.2f} s: set "
                "data.crop_seconds lower"
            )

    def draw(self, step: int, count: int, rank: int = 0, ranks: int = 1) -> PairBatch:
        """This rank's `count` crops. They are drawn for all ranks at once, so that their number changes nothing."""
        generator = torch.Generator().manual_seed(derive_seed(self.seed, step, DRAWS))
        drawn = torch.randint(int(self.ends[-1]), (count * ranks,), generator=generator)[rank * count :][:count].numpy()
        indices = np.searchsorted(self.ends, drawn, side="right")
        names, begins = [], []
        codes = empty_pairs(count, self.pairs.config, self.frames).codes
        for row, (position, index) in enumerate(zip(drawn, indices, strict=True)):
            begin = int(position) - int(self.ends[index - 1] if index else 0)
            first = max(0, begin - self.context)
            found = self.pairs.codes(int(index), first, self.context + self.frames)
            codes[row, :, : found.shape[1]] = found
            names.append(self.pairs.name(int(index)))
            begins.append(begin - first)
        return PairBatch(tuple(names), codes, torch.tensor(begins, dtype=torch.long))


def empty_pairs(count: int, config: CodecConfig, frames: int) -> PairBatch:
    """`count` crops of zeros, for a step without pairs and for trials of memory."""
    codes = torch.zeros(count, config.num_codebooks, config.decoder_context + frames, dtype=torch.int16)
    return PairBatch(("",) * count, codes, torch.zeros(count, dtype=torch.long))


def _checksum(tensors: dict[str, Tensor]) -> str:
    value = 0
    for name in sorted(TENSORS):
        value = zlib.crc32(tensors[name].contiguous().view(torch.uint8).numpy().data, value)
    return f"{value:08x}"
