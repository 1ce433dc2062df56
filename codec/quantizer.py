"""VQ-FSQ: one semantic codebook of 8192 vectors, and 36 acoustic scalars of 21 levels, in one latent.

The serving path (`encode`, `decode`) is the server's arithmetic, operation by operation. The training path
(`forward`) is the paper's stochastic one (Voxtral TTS, arXiv 2603.25551, the codec's quantization). Codebook
learning follows the exponential moving averages of VQ-VAE-2 (Razavi et al. 2019, appendix A).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from codec.config import CodecConfig

SEMANTIC_QUANTIZED = 0.5  # share of samples whose semantic part is quantized in training
ACOUSTIC_QUANTIZED, ACOUSTIC_NOISY = 0.5, 0.25  # shares for the acoustic part; the rest passes untouched


class Draw(NamedTuple):
    """What is random in the training path, uniform: in [0, 1) which way a sample takes, in [-1, 1) the noise."""

    semantic: Tensor  # [B, 1, 1]
    acoustic: Tensor  # [B, 1, 1]
    noise: Tensor  # [B, 36, F]

    def part(self, rank: int, ranks: int) -> Draw:
        """The share of one rank of a draw for all."""
        return Draw(*(tensor.chunk(ranks)[rank] for tensor in self))


class Quantized(NamedTuple):
    latent: Tensor
    """[B, semantic + acoustic, F], what the decoder gets; straight-through to the encoder."""
    semantic: Tensor
    """[B, semantic, F], the chosen entry of every frame and sample; straight-through."""
    codes: Tensor
    """[B, 37, F] int64, the hard codes."""


class SemanticCodebook(nn.Module):
    """Entries are `embedding_sum / cluster_usage`, the two running sums the checkpoint holds."""

    cluster_usage: Tensor
    embedding_sum: Tensor

    def __init__(self, size: int, dim: int):
        super().__init__()
        self.register_buffer("cluster_usage", torch.ones(size))
        self.register_buffer("embedding_sum", torch.zeros(size, dim))

    @property
    def embedding(self) -> Tensor:
        """The entries [size, dim]."""
        return self.embedding_sum / self.cluster_usage.clamp(min=1e-5)[:, None]

    def encode(self, semantic: Tensor) -> Tensor:
        """[B, D, F] -> [B, 1, F], the nearest entry by Euclidean distance."""
        frames = semantic.transpose(1, 2)
        distances = torch.cdist(frames.reshape(-1, frames.shape[-1]), self.embedding.to(semantic.dtype))
        return distances.argmin(dim=-1).view(semantic.shape[0], 1, -1)

    def decode(self, codes: Tensor) -> Tensor:
        """[B, 1, F] -> [B, D, F]."""
        return F.embedding(codes[:, 0], self.embedding).transpose(1, 2)

    def draw(self, generator: torch.Generator) -> Tensor:
        """What `learn` takes: a uniform number in [0, 1) for every entry, from a CPU generator."""
        return torch.rand(len(self.cluster_usage), generator=generator)

    @torch.no_grad()
    def learn(
        self, semantic: Tensor, codes: Tensor, draw: Tensor, decay: float = 0.99, dead_below: float = 0.1
    ) -> Tensor:
        """Moves the entries toward the latents [B, D, F] that chose them (codes [B, 1, F]), over all ranks, and
        re-seeds the dead ones, used less than `dead_below` of the average, each from the latent of this batch that its
        number in `draw` says. A codebook that was never used is seeded whole. Returns the number of re-seeded entries,
        on the device: nothing here waits for it.
        """
        frames = semantic.transpose(1, 2).reshape(-1, semantic.shape[1]).float()
        assigned = codes.reshape(-1)
        usage = torch.zeros_like(self.cluster_usage).index_add_(0, assigned, frames.new_ones(len(frames)))
        total = torch.zeros_like(self.embedding_sum).index_add_(0, assigned, frames)
        seeds = frames[(draw * len(frames)).long().clamp(max=len(frames) - 1)]
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(usage)
            dist.all_reduce(total)
            dist.broadcast(seeds, src=0)
        untouched = ~self.embedding_sum.any()
        self.cluster_usage.lerp_(usage, 1 - decay)
        self.embedding_sum.lerp_(total, 1 - decay)
        # the average an entry tends to if all are used alike
        average = usage.sum() / len(usage)
        dead = untouched | (self.cluster_usage < dead_below * average)
        self.cluster_usage.copy_(torch.where(dead, average, self.cluster_usage))
        self.embedding_sum.copy_(torch.where(dead[:, None], seeds * average, self.embedding_sum))
        return dead.sum()


class AcousticCodebook(nn.Module):
    """Finite scalar quantization (Mentzer et al. 2023): every dimension by itself, bounded by tanh, on L levels."""

    def __init__(self, levels: int):
        super().__init__()
        self.levels = levels

    def encode(self, acoustic: Tensor) -> Tensor:
        """[B, 36, F], unbounded, to codes 0 … L−1."""
        return self.nearest_level(torch.tanh(acoustic)).long()

    def nearest_level(self, bounded: Tensor) -> Tensor:
        """Values in [-1, 1] to whole levels 0 … L−1, as floats."""
        return ((bounded + 1) / 2 * (self.levels - 1)).round()

    def decode(self, codes: Tensor) -> Tensor:
        """Levels 0 … L−1 to values in [-1, 1]."""
        return codes * 2 / (self.levels - 1) - 1


class Quantizer(nn.Module):
    """Latent [B, semantic + acoustic, F] <-> codes [B, 37, F], the semantic one first."""

    def __init__(self, config: CodecConfig):
        super().__init__()
        self.semantic_dim = config.semantic_dim
        self.split_sizes = (config.semantic_dim, config.acoustic_dim)
        self.semantic_codebook = SemanticCodebook(config.semantic_codebook_size, config.semantic_dim)
        self.acoustic_codebook = AcousticCodebook(config.acoustic_codebook_size)

    def encode(self, latent: Tensor) -> Tensor:
        """Hard codes, int64, in the latent's own arithmetic (the server's is bf16)."""
        semantic, acoustic = latent.split(self.split_sizes, dim=1)
        return torch.cat([self.semantic_codebook.encode(semantic), self.acoustic_codebook.encode(acoustic)], dim=1)

    def decode(self, codes: Tensor) -> Tensor:
        """The decoder's input for hard codes, in the codebook's dtype."""
        semantic = self.semantic_codebook.decode(codes[:, :1])
        return torch.cat([semantic, self.acoustic_codebook.decode(codes[:, 1:]).to(semantic.dtype)], dim=1)

    def draw(self, batch: int, frames: int, generator: torch.Generator) -> Draw:
        """The random numbers of one training step, from a CPU generator: the same on every device, and to be drawn
        for the batch of all ranks at once, so that their number does not change the result."""
        return Draw(
            torch.rand(batch, 1, 1, generator=generator),
            torch.rand(batch, 1, 1, generator=generator),
            torch.rand(batch, self.split_sizes[1], frames, generator=generator) * 2 - 1,
        )

    def forward(self, latent: Tensor, draw: Draw | None = None) -> Quantized:
        """The training path, in float32. Per sample, half of the semantic parts are quantized and half pass; of the
        acoustic parts, half are quantized, a quarter get uniform noise in ±1/L, a quarter pass. Without a draw
        everything is quantized."""
        semantic, acoustic = latent.float().split(self.split_sizes, dim=1)
        bounded = torch.tanh(acoustic)
        codes = self.encode(latent.detach().float())
        entry = _straight_through(semantic, self.semantic_codebook.decode(codes[:, :1]))
        level = _straight_through(bounded, self.acoustic_codebook.decode(codes[:, 1:]))
        if draw is None:
            return Quantized(torch.cat([entry, level], dim=1), entry, codes)
        semantic_draw, acoustic_draw, noise = (part.to(latent.device) for part in draw)
        mixed_semantic = torch.where(semantic_draw < SEMANTIC_QUANTIZED, entry, semantic)
        noisy = bounded + noise / self.acoustic_codebook.levels
        mixed_acoustic = torch.where(acoustic_draw < ACOUSTIC_QUANTIZED + ACOUSTIC_NOISY, noisy, bounded)
        mixed_acoustic = torch.where(acoustic_draw < ACOUSTIC_QUANTIZED, level, mixed_acoustic)
        return Quantized(torch.cat([mixed_semantic, mixed_acoustic], dim=1), entry, codes)


def _straight_through(value: Tensor, quantized: Tensor) -> Tensor:
    """`quantized` forward, the gradient to `value` as it is (Bengio et al. 2013)."""
    return value + (quantized - value).detach()
