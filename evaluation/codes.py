"""Metrics of the codes themselves: how much of the codebooks is used, how many codes bf16 changes, and how similar they
are to the codes and embeddings of the release's preset voices."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from codec import Codec
from codec.voices import read_voices
from evaluation.judges.judge import Measurements, Metric, first_line
from losses.shaping import Target

PER_CLIP = (
    Metric("distinct_codes", "distinct semantic codes a clip", "", "distinct semantic codes in a clip", 1),
    Metric("at_ends", "acoustic codes at the ends", "", "share of acoustic codes that are 0 or the highest", 1, True),
    Metric("embedding_norm", "embedding norm", "", "mean norm of a voice embedding's rows, without the last one", 2),
    Metric(
        "embedding_to_presets",
        "embedding, to presets",
        "",
        "cosine of a clip's mean embedding row with each preset voice's, mean over the presets",
    ),
    Metric("moved_semantic", "semantic codes moved", "", "share that differs in float32 arithmetic", 1, True),
    Metric("moved_acoustic", "acoustic codes moved", "", "share that differs in float32 arithmetic", 1, True),
)
AGREEMENT = (
    Metric("equal_semantic", "semantic codes equal", "higher", "share that equals the other encoder's", 1, True),
    Metric("equal_acoustic", "acoustic codes equal", "higher", "share that equals the other encoder's", 1, True),
    Metric(
        "embedding_agreement",
        "embedding, to the other's",
        "higher",
        "cosine of each embedding row with the other encoder's, mean over the frames",
    ),
    Metric(
        "embedding_centred",
        "embedding, centred",
        "higher",
        "the same after the other encoder's mean row over all clips is subtracted from both",
    ),
)
WHOLE = (
    Metric("sem_util", "semantic codes used", "", "distinct semantic codes over all clips", 0),
    Metric("semantic_entropy", "semantic entropy", "", "entropy of the semantic codes of all clips, in bits", 2),
    Metric("acoustic_entropy", "acoustic entropy", "", "bits per code, mean over the acoustic dimensions", 2),
    Metric(
        "acoustic_to_target",
        "acoustic codes, to target",
        "lower",
        "total variation distance of the histograms of codes and target (losses/shaping.py), mean over the dimensions",
    ),
)


class Presets(NamedTuple):
    """Statistics of the release's preset voices."""

    means: Tensor  # [V, dim], the mean row of each voice, scaled to unit length
    norm: float  # mean norm of their rows

    @property
    def among_themselves(self) -> float | None:
        """Mean cosine between two voices; None if there are fewer than two."""
        count = len(self.means)
        if count < 2:
            return None
        return float((self.means @ self.means.T).sum() - count) / (count * (count - 1))


def read_presets(voices: Path, dim: int) -> Presets | None:
    """The preset voices in the folder `voices`, None if there are none; `dim` is the width of the language model.
    Raises ReleaseError if a voice file cannot be used."""
    embeddings = [rows[:-1].float() for rows in read_voices(voices, dim).values()]
    if not embeddings:
        return None
    means = torch.stack([F.normalize(embedding.mean(dim=0), dim=0) for embedding in embeddings])
    return Presets(means, float(torch.cat(embeddings).norm(dim=1).mean()))


def score_codes(
    codec: Codec, exact: Codec | None, waveform: Tensor, codes: Tensor, presets: Presets | None
) -> Measurements:
    """Scores the codes [37, F] that `codec` gave for a waveform [1, 1, T]. `exact` is the same codec in float32;
    without it (for codes that no encoder gave) the two "moved" metrics are missing."""
    found = Measurements()
    semantic, acoustic = codes[0], codes[1:]
    frames = float(codes.shape[1])
    found.set("distinct_codes", float(semantic.unique().numel()))
    top = codec.config.acoustic_codebook_size - 1
    found.set("at_ends", float(((acoustic == 0) | (acoustic == top)).float().mean()), frames)
    rows = embedding_rows(codec, codes)
    found.set("embedding_norm", float(rows.norm(dim=1).mean()), frames)
    if presets is None:
        found.failed["embedding_to_presets"] = "the release has no preset voices"
    else:
        mean = F.normalize(rows.mean(dim=0), dim=0)
        found.set("embedding_to_presets", float((presets.means @ mean).mean()))
    if exact is not None:
        try:
            moved = codes != exact.encode(waveform)[0].cpu()
        except RuntimeError as error:  # float32 takes twice the memory; the codes in bf16 are there anyway
            found.failed |= dict.fromkeys(("moved_semantic", "moved_acoustic"), f"in float32: {first_line(error)}")
            return found
        found.set("moved_semantic", float(moved[0].float().mean()), frames)
        found.set("moved_acoustic", float(moved[1:].float().mean()), frames)
    return found


def agreement(codec: Codec, codes: Tensor, other: Tensor, mean_row: Tensor) -> Measurements:
    """How similar the codes [37, F] of two encoders for the same clip are. `mean_row` [dim] is the other encoder's mean
    embedding row over all clips. Rows of a trained table have a large part in common: even an untrained encoder's may
    have a cosine of a half. Without the mean row it is about 0."""
    found = Measurements()
    equal, frames = (codes == other).float(), float(codes.shape[1])
    found.set("equal_semantic", float(equal[0].mean()), frames)
    found.set("equal_acoustic", float(equal[1:].mean()), frames)
    rows, others = embedding_rows(codec, codes), embedding_rows(codec, other)
    found.set("embedding_agreement", float(F.cosine_similarity(rows, others).mean()), frames)
    found.set("embedding_centred", float(F.cosine_similarity(rows - mean_row, others - mean_row).mean()), frames)
    return found


def mean_embedding_row(codec: Codec, codes: Iterable[Tensor]) -> Tensor:
    """The mean row [dim] of the embeddings of all clips' codes [37, F]."""
    total, frames = torch.zeros(codec.config.embedding_dim), 0
    for each in codes:
        total += embedding_rows(codec, each).sum(dim=0)
        frames += each.shape[1]
    return total / frames


def embedding_rows(codec: Codec, codes: Tensor) -> Tensor:
    """The voice embedding of codes [37, F] without its end-of-audio row: [F, dim], float32."""
    return codec.embed(codes[None].to(codec.device))[0, :-1].float().cpu()


def acoustic_histogram(codes: Sequence[Tensor], levels: int) -> Tensor:
    """Codes [37, F] of all clips to the share of each level in each acoustic dimension: [36, levels]."""
    counts = F.one_hot(torch.cat(list(codes), dim=1)[1:], levels).sum(dim=1).float()
    return counts / counts.sum(dim=1, keepdim=True)


def score_all_codes(codes: Sequence[Tensor], levels: int, target: Target) -> dict[str, float]:
    """The metrics in WHOLE, from the codes [37, F] of all clips."""
    semantic = torch.cat([each[0] for each in codes])
    histogram = acoustic_histogram(codes, levels)
    return {
        "sem_util": float(semantic.unique().numel()),
        "semantic_entropy": float(entropy(semantic.bincount().float() / semantic.numel())),
        "acoustic_entropy": float(entropy(histogram).mean()),
        "acoustic_to_target": float((histogram - target.histogram).abs().sum(dim=1).mean() / 2),
    }


def entropy(shares: Tensor) -> Tensor:
    """Entropy in bits, over the last dimension."""
    return -torch.special.xlogy(shares, shares).sum(dim=-1) / torch.log(torch.tensor(2.0))
