"""Acoustic distribution shaping: the codes of each acoustic dimension, over a batch, should be distributed as those of
a release's own voices are.

The distance is Wasserstein's of order 2 in one dimension, which sorting solves: the i-th smallest value of a dimension
is compared with the target's quantile at (i + ½) / N. It is taken before the quantizer's tanh, where a value stuck at
the end of the range still has a gradient.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from codec.codec import Codec
from codec.config import ReleaseError
from codec.voices import EXPLAINED, read_voices, recover_codes

DEFAULT_MEAN, DEFAULT_SPREAD = 10.0, 4.0  # of 21 levels, where a release has no voices to learn from


class Target(NamedTuple):
    """What acoustic codes should look like."""

    histogram: Tensor  # [dims, levels], each row sums to 1
    frames: int  # it was counted over; 0 for the default
    residual: float  # the largest relative residual of the recovered codes

    @property
    def mean(self) -> Tensor:
        """[dims], in levels."""
        return self.histogram @ torch.arange(self.histogram.shape[1], dtype=torch.float32)

    @property
    def spread(self) -> Tensor:
        """[dims], the standard deviation in levels."""
        levels = torch.arange(self.histogram.shape[1], dtype=torch.float32)
        return (self.histogram * (levels - self.mean[:, None]).square()).sum(dim=1).sqrt()


def voices_target(codec: Codec, voices: Path) -> Target:
    """The histogram of a release's preset voices, from `voices`/*.pt, whose codes are recovered from the embedding
    table. Without voices it is the default for every dimension: a normal distribution of mean 10 and spread 4. Raises
    ReleaseError if a voice file cannot be used, or if no codes explain a voice."""
    levels, dims = codec.config.acoustic_codebook_size, codec.config.acoustic_dim
    embeddings = read_voices(voices, codec.config.embedding_dim)
    if not embeddings:
        centred = torch.arange(levels, dtype=torch.float32) - DEFAULT_MEAN
        return Target(torch.softmax(-0.5 * (centred / DEFAULT_SPREAD) ** 2, dim=0).expand(dims, -1).clone(), 0, 0.0)
    counts, frames, worst = torch.zeros(dims, levels), 0, 0.0
    for file, rows in embeddings.items():
        embedding = rows[:-1]  # without the end-of-audio row
        recovered = recover_codes(embedding, codec.embedding_table.cpu(), codec.config.codebook_sizes)
        worst = max(worst, float(recovered.residual.max()))
        if worst > EXPLAINED:
            raise ReleaseError(
                f"{file}: no codes explain this voice (relative residual {worst:.3f}); is it this release's? "
                "losses.shaping=0 trains without the voices"
            )
        counts += nn.functional.one_hot(recovered.codes[:, 1:], levels).sum(dim=0)
        frames += len(embedding)
    return Target(counts / frames, frames, worst)


def target_as_json(target: Target) -> str:
    """A target, readable, with what it was made from."""
    stated = {"frames": target.frames, "residual": target.residual, "mean": target.mean.tolist()}
    stated |= {"spread": target.spread.tolist(), "histogram": target.histogram.tolist()}
    return json.dumps(stated) + "\n"


class Shaping(nn.Module):
    """Acoustic latents before the tanh [B, dims, F] to a scalar, 0 where each dimension's values, those of all ranks
    together, are the target's quantiles. A rank's loss and gradient are those of its own values among all; batches are
    of one size."""

    histogram: Tensor

    def __init__(self, target: Target):
        super().__init__()
        self.register_buffer("histogram", target.histogram, persistent=False)

    def forward(self, acoustic: Tensor) -> Tensor:
        values = acoustic.float().transpose(0, 1).flatten(1)  # [dims, B·F]
        everyones, first = values.detach(), 0
        if dist.is_available() and dist.is_initialized():
            parts = [torch.empty_like(everyones) for _ in range(dist.get_world_size())]
            dist.all_gather(parts, everyones.contiguous())
            everyones, first = torch.cat(parts, dim=1), dist.get_rank() * values.shape[1]
        places = everyones.argsort(dim=1, stable=True).argsort(dim=1)[:, first : first + values.shape[1]]
        return (values - self.quantiles(everyones.shape[1]).gather(1, places)).square().mean()

    def quantiles(self, count: int) -> Tensor:
        """The target's quantiles at (i + ½) / count, before the tanh: [dims, count]. A level stands for all values that
        round to it, evenly."""
        levels = self.histogram.shape[1]
        ends = self.histogram.cumsum(dim=1)
        ends = ends / ends[:, -1:]
        at = (torch.arange(count, device=ends.device) + 0.5) / count
        level = torch.searchsorted(ends, at.expand(len(ends), -1).contiguous()).clamp(max=levels - 1)
        share = self.histogram.gather(1, level).clamp(min=1e-12)
        within = 1 - (ends.gather(1, level) - at) / share  # 0 at the level's lower edge, 1 at its upper one
        value = (level - 0.5 + within).clamp(0, levels - 1) * 2 / (levels - 1) - 1
        inside = 1 - 1 / (levels - 1)  # half a level from the ends, where the outermost codes begin
        return torch.atanh(value.clamp(-inside, inside))
