"""Acoustic distribution shaping: over a batch, the codes of each acoustic dimension should have the same distribution
as in the release's preset voices.

The loss is the squared Wasserstein distance of order 2 in one dimension, which sorting gives: the i-th smallest value
of a dimension is compared with the target's quantile at (i + ½) / N. It is computed before the quantizer's tanh, where
a value stuck at the end of the range still has a gradient.
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

DEFAULT_MEAN, DEFAULT_SPREAD = 10.0, 4.0  # of 21 levels, for a release without preset voices


class Target(NamedTuple):
    """The distribution that acoustic codes should have."""

    histogram: Tensor  # [dims, levels], each row sums to 1
    frames: int  # that were counted; 0 for the default
    residual: float  # the largest relative residual of the recovered codes

    @property
    def mean(self) -> Tensor:
        """The mean of each dimension in levels, [dims]."""
        return self.histogram @ torch.arange(self.histogram.shape[1], dtype=torch.float32)

    @property
    def spread(self) -> Tensor:
        """The standard deviation of each dimension in levels, [dims]."""
        levels = torch.arange(self.histogram.shape[1], dtype=torch.float32)
        return (self.histogram * (levels - self.mean[:, None]).square()).sum(dim=1).sqrt()


def voices_target(codec: Codec, voices: Path) -> Target:
    """The histogram of the codes of a release's preset voices (`voices`/*.pt). The codes are recovered from the
    voices' embeddings by the embedding table. Without voice files, every dimension gets the default: a normal
    distribution with mean 10 and standard deviation 4. Raises ReleaseError if a voice file cannot be used, or if no
    codes explain a voice."""
    levels, dims = codec.config.acoustic_codebook_size, codec.config.acoustic_dim
    embeddings = read_voices(voices, codec.config.embedding_dim)
    if not embeddings:
        centred = torch.arange(levels, dtype=torch.float32) - DEFAULT_MEAN
        return Target(torch.softmax(-0.5 * (centred / DEFAULT_SPREAD) ** 2, dim=0).expand(dims, -1).clone(), 0, 0.0)
    counts, frames, worst = torch.zeros(dims, levels), 0, 0.0
    for name, rows in embeddings.items():
        embedding = rows[:-1]  # without the end-of-audio row
        recovered = recover_codes(embedding, codec.embedding_table.cpu(), codec.config.codebook_sizes)
        worst = max(worst, float(recovered.residual.max()))
        if worst > EXPLAINED:
            raise ReleaseError(
                f"{voices / name}.pt: no codes explain this voice (relative residual {worst:.3f}); is it from this "
                "release? losses.shaping=0 trains without the voices"
            )
        counts += nn.functional.one_hot(recovered.codes[:, 1:], levels).sum(dim=0)
        frames += len(embedding)
    return Target(counts / frames, frames, worst)


def target_as_json(target: Target) -> str:
    """A target as JSON text, with the number of frames it was counted over and the largest residual."""
    stated = {"frames": target.frames, "residual": target.residual, "mean": target.mean.tolist()}
    stated |= {"spread": target.spread.tolist(), "histogram": target.histogram.tolist()}
    return json.dumps(stated) + "\n"


class Shaping(nn.Module):
    """Takes acoustic latents [B, dims, F] before the tanh, returns a scalar. It is 0 if each dimension's values, over
    all ranks together, are the target's quantiles. Values are ranked among those of all processes; a process's loss and
    gradient are those of its own values. All processes need batches of the same size."""

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
        """The target's quantiles at (i + ½) / count, before the tanh: [dims, count]. Within a level, the values that
        round to it are taken as uniformly distributed."""
        levels = self.histogram.shape[1]
        ends = self.histogram.cumsum(dim=1)
        ends = ends / ends[:, -1:]
        at = (torch.arange(count, device=ends.device) + 0.5) / count
        level = torch.searchsorted(ends, at.expand(len(ends), -1).contiguous()).clamp(max=levels - 1)
        share = self.histogram.gather(1, level).clamp(min=1e-12)
        within = 1 - (ends.gather(1, level) - at) / share  # 0 at the level's lower edge, 1 at its upper edge
        value = (level - 0.5 + within).clamp(0, levels - 1) * 2 / (levels - 1) - 1
        inside = 1 - 1 / (levels - 1)  # half a level from the ends of the range, where the outermost codes begin
        return torch.atanh(value.clamp(-inside, inside))
