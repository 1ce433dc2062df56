"""What an encoder does with the language model's own codes: for a release whose original encoder nobody has.

On pairs (data/pairs.py) the right codes c are known. The encoder gets their sound D(c), and should find c. On speech
they are not known. There a second pass shows how steady the codes are, E(D(E(x))) against E(x), and their statistics
show how near they lie to the codes that the language model speaks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from codec import Codec
from data.pairs import Pairs
from evaluation import statistics
from evaluation.codes import AGREEMENT, acoustic_histogram, agreement, mean_embedding_row
from evaluation.judges.judge import Metric
from evaluation.scoring import Progress, Scores, add_values, no_progress, reconstruct
from evaluation.speech import spread
from evaluation.statistics import Interval
from losses import MelDistance

MEASURED = 64  # pairs, by default

ON_PAIRS = (
    Metric("found_semantic", "semantic codes found", "higher", "share of the codes that is found", 1, True),
    Metric("found_acoustic", "acoustic codes found", "higher", "share of the codes that is found", 1, True),
    Metric("found_within_one", "acoustic codes, within one level", "higher", "share found up to one level", 1, True),
    Metric("found_embedding", "embedding, to the pair's", "higher", "cosine of each row with the spoken codes' row"),
    Metric(
        "found_embedding_centred",
        "embedding, to the pair's, centred",
        "higher",
        "the same after the spoken codes' mean row is subtracted from both",
    ),
    Metric("found_mel", "mel, of the codes found", "lower", "mel distance of their sound to the pair's sound", 3),
    Metric("again_semantic", "semantic codes, second pass", "higher", "share equal after another pass", 1, True),
    Metric("again_acoustic", "acoustic codes, second pass", "higher", "share equal after another pass", 1, True),
)
STEADY = (
    Metric("steady_semantic", "semantic codes steady", "higher", "share that is equal after a second pass", 1, True),
    Metric("steady_acoustic", "acoustic codes steady", "higher", "share that is equal after a second pass", 1, True),
    Metric("steady_embedding", "embedding steady", "higher", "cosine of each row with the second pass's row"),
    Metric(
        "steady_embedding_centred",
        "embedding steady, centred",
        "higher",
        "the same after the first pass's mean row over all clips is subtracted from both",
    ),
)
LIKE_SPOKEN = (
    Metric(
        "acoustic_to_spoken",
        "acoustic codes, to spoken",
        "lower",
        "total variation distance of the histograms of codes and of spoken codes, mean over the dimensions",
    ),
    Metric(
        "semantic_bits",
        "semantic codes, bits by spoken",
        "lower",
        "bits a code costs under how often the spoken ones come (½ is added to each count)",
        2,
    ),
)


@dataclass
class PairScores:
    """One encoder's scores of the measured pairs: by metric a value for each."""

    name: str
    values: dict[str, list[float]] = field(default_factory=dict)

    def total(self, metric: str, seed: int, voices: Sequence[str]) -> Interval:
        values = np.array(self.values[metric])
        return statistics.mean(values, np.ones(len(values)), seed, voices)


@dataclass(frozen=True)
class SpokenStatistics:
    """How often codes come in one half of the pairs; the other half shows what is to be expected."""

    acoustic: Tensor  # [36, levels], each row sums to 1
    semantic: Tensor  # [entries], sums to 1

    @classmethod
    def of(cls, codes: Tensor, entries: int, levels: int) -> SpokenStatistics:
        counts = codes[0].bincount(minlength=entries).double() + 0.5
        return cls(acoustic_histogram([codes], levels), counts / counts.sum())

    def compare(self, codes: Tensor) -> dict[str, float]:
        """The metrics in LIKE_SPOKEN for codes [37, F]."""
        found = acoustic_histogram([codes], self.acoustic.shape[1])
        return {
            "acoustic_to_spoken": float((found - self.acoustic).abs().sum(dim=1).mean() / 2),
            "semantic_bits": float(-self.semantic[codes[0]].log2().mean()),
        }


@dataclass
class PairResults:
    """What was measured with the pairs. `expected` are the metrics in LIKE_SPOKEN of spoken codes themselves."""

    files: list[str]
    count: int
    hours: float
    sources: list[str]
    voices: list[str]  # of the measured pairs
    encoders: list[PairScores]
    expected: dict[str, float]

    def to_json(self, seed: int) -> dict[str, Any]:
        totals = {
            scores.name: {name: scores.total(name, seed, self.voices)._asdict() for name in scores.values}
            for scores in self.encoders
        }
        about = {"files": self.files, "count": self.count, "hours": self.hours, "sources": self.sources}
        metrics = {metric.name: asdict(metric) for metric in (*ON_PAIRS, *LIKE_SPOKEN)}
        return {**about, "measured": len(self.voices), "metrics": metrics, "totals": totals, "expected": self.expected}

    def figures(self, seed: int) -> dict[str, float]:
        """The main encoder's figures that --require accepts."""
        main = self.encoders[0]
        return {f"pairs.{name}": main.total(name, seed, self.voices).value for name in main.values}

    def described(self) -> str:
        """Which pairs, in a line."""
        return f"{len(self.voices)} of {self.count} pairs ({self.hours:.2f} hours, by {', '.join(self.sources)})"


def spoken_halves(pairs: Pairs) -> tuple[SpokenStatistics, dict[str, float]]:
    """The statistics of every second pair, and how the other pairs compare with them."""
    entries, levels = pairs.config.semantic_codebook_size, pairs.config.acoustic_codebook_size
    odd = range(1, len(pairs), 2) or range(1)  # a single pair has to do for both
    halves = [torch.cat([pairs.codes(i) for i in half], dim=1) for half in (range(0, len(pairs), 2), odd)]
    found = SpokenStatistics.of(halves[0], entries, levels)
    return found, found.compare(halves[1])


def score_pairs(
    codec: Codec, pairs: Pairs, name: str, count: int = MEASURED, progress: Progress = no_progress
) -> tuple[PairScores, list[int]]:
    """Scores an encoder on `count` pairs, spread over all; 0 for all. Returns the scores and which pairs these are."""
    chosen = list(spread(count, len(pairs))) if count else list(range(len(pairs)))
    scores, mel = PairScores(name), MelDistance(codec.sample_rate)
    mean_row = mean_embedding_row(codec, (pairs.codes(index) for index in chosen))
    for index in progress(chosen, f"{name}, pairs", len(chosen)):
        codes = pairs.codes(index)
        sound = codec.decode(codes[None].to(codec.device))
        found = codec.encode(sound)
        sound_of_found = codec.decode(found)
        again, found = codec.encode(sound_of_found)[0].cpu(), found[0].cpu()
        once = agreement(codec, found, codes, mean_row).values
        twice = (again == found).float()
        values = {
            "found_semantic": once["equal_semantic"].value,
            "found_acoustic": once["equal_acoustic"].value,
            "found_within_one": float(((found - codes)[1:].abs() <= 1).float().mean()),
            "found_embedding": once["embedding_agreement"].value,
            "found_embedding_centred": once["embedding_centred"].value,
            "found_mel": float(mel(sound_of_found.cpu(), sound.cpu())),
            "again_semantic": float(twice[0].mean()),
            "again_acoustic": float(twice[1:].mean()),
        }
        for metric, value in values.items():
            scores.values.setdefault(metric, []).append(value)
    return scores, chosen


def add_second_pass(codec: Codec, scores: Scores, progress: Progress = no_progress) -> None:
    """Adds to an encoder's scores of speech how steady its codes are under a second pass."""
    scores.metrics += STEADY
    mean_row = mean_embedding_row(codec, scores.coded)
    for scored in progress(scores.clips, f"{scores.name}, second pass", len(scores.clips)):
        if scored.codes is None:
            continue
        sound = reconstruct(codec, scored.codes, scored.clip)
        again = codec.encode(sound[None, None].to(codec.device))[0].cpu()
        found = agreement(codec, again, scored.codes, mean_row)
        found.values = {steady.name: found.values[same.name] for steady, same in zip(STEADY, AGREEMENT, strict=True)}
        add_values(scores, scored, found)


def add_likeness(scores: Scores, spoken: SpokenStatistics) -> None:
    """Adds to a system's scores of speech how near the statistics of its codes lie to the spoken ones'."""
    scores.metrics += LIKE_SPOKEN
    scores.whole |= spoken.compare(torch.cat(scores.coded, dim=1))
