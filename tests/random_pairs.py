"""Pairs of random codes for tests."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from codec import Codec, load_release
from codec.checkpoint import codec_fingerprint
from codec.config import CodecConfig
from data.pairs import About, Pair, write_shard


def random_pair(config: CodecConfig, frames: int, seed: int) -> Pair:
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.tensor([config.semantic_codebook_size] + [config.acoustic_codebook_size] * config.acoustic_dim)
    codes = (torch.rand(len(sizes), frames, generator=generator) * sizes[:, None]).long()
    return Pair(codes, About(f"Text {seed}, ünïcode.", "casual_female", "en", seed, 1.2))


def write_random_shard(path: Path, codec: Codec, frames: Sequence[int], first_seed: int = 0) -> list[Pair]:
    pairs = [random_pair(codec.config, length, first_seed + i) for i, length in enumerate(frames)]
    write_shard(path, pairs, codec_fingerprint(codec))
    return pairs


def random_shards(release: Path, folder: Path) -> Path:
    """Two shards of pairs for a release, among them a pair that is too short for any crop. Returns their folder."""
    codec = load_release(release, torch.float32)
    write_random_shard(folder / "pairs_0.safetensors", codec, (60, 1, 30))
    write_random_shard(folder / "pairs_1.safetensors", codec, (20, 40), first_seed=10)
    return folder
