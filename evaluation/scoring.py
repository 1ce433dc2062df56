"""Scores of an encoder: encodes and decodes every clip as the server does, and sends the result to the judges."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from codec import Codec
from data import DataError
from evaluation import statistics
from evaluation.codes import (
    AGREEMENT,
    PER_CLIP,
    WHOLE,
    Presets,
    agreement,
    mean_embedding_row,
    score_all_codes,
    score_codes,
)
from evaluation.judges.judge import Judge, Measurement, Measurements, Metric, first_line
from evaluation.judges.pool import ClipVersions, JudgePool
from evaluation.speech import Problem, Speech
from evaluation.statistics import Interval
from losses.shaping import Target

ORIGINAL = "original"
Encode = Callable[[Sequence[Tensor]], Sequence[Tensor]]
Progress = Callable[[Iterable[Any], str, int], Iterable[Any]]  # wraps an iterable: (items, what is done, how many)


def no_progress(items: Iterable[Any], work: str, count: int) -> Iterable[Any]:
    """A Progress that shows nothing."""
    return items


@dataclass
class ClipScores:
    clip: Speech
    codes: Tensor | None = None  # [37, F]; None for an original
    values: dict[str, Measurement] = field(default_factory=dict)  # by metric
    transcript: str = ""  # by the speech recognizer


@dataclass
class Scores:
    """The scores of one system: an encoder, other codes, or the originals. `clips` are in the order of the speech."""

    name: str
    metrics: tuple[Metric, ...]
    clips: list[ClipScores]
    problems: list[Problem]
    whole: dict[str, float] = field(default_factory=dict)  # metrics over all clips at once; they have no intervals

    def column(self, metric: str, clips: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Values and weights of these clips. All of them must have the metric."""
        pairs = [self.clips[i].values[metric] for i in clips]
        return np.array([pair.value for pair in pairs]), np.array([pair.weight for pair in pairs])

    def speakers(self, clips: Sequence[int]) -> list[str]:
        return [self.clips[i].clip.speaker for i in clips]

    def scored(self, metric: str) -> list[int]:
        """Indices of the clips that have a value."""
        return [i for i, clip in enumerate(self.clips) if metric in clip.values]

    def total(self, metric: str, seed: int = 0) -> Interval | None:
        """The weighted mean over the clips that have a value; None if no clip has one."""
        if metric in self.whole:
            return Interval(self.whole[metric], None, None)
        clips = self.scored(metric)
        return statistics.mean(*self.column(metric, clips), seed, self.speakers(clips)) if clips else None

    @property
    def coded(self) -> list[Tensor]:
        """The codes of the clips that have codes."""
        return [clip.codes for clip in self.clips if clip.codes is not None]

    def has(self, metric: str) -> bool:
        return metric in self.whole or bool(self.scored(metric))


def evaluate(
    codec: Codec,
    speech: Sequence[Speech],
    judges: Sequence[Judge],
    *,
    name: str = "encoder",
    presets: Presets | None = None,
    target: Target | None = None,
    encode: Encode | None = None,
) -> Scores:
    """Scores of a codec with its encoder. In bfloat16, as `load_release` gives it, the codec computes what the server
    does. `encode` replaces the encoder: it gives the codes [37, F] of waveforms [T]. If a judge cannot score a clip,
    only that judge's metrics of that clip are missing, with a Problem."""
    codes = encode([clip.waveform for clip in speech]) if encode else None
    scores = score_encoding(codec, speech, name=name, presets=presets, target=target, codes=codes)
    add_judge_scores(codec, [scores], JudgePool(judges))
    return scores


def evaluate_originals(speech: Sequence[Speech], judges: Sequence[Judge]) -> Scores:
    """The absolute judges' scores of the originals: what a perfect codec would get."""
    scores = unscored_originals(speech)
    add_judge_scores(None, [scores], JudgePool(judges))
    return scores


def score_encoding(
    codec: Codec,
    speech: Sequence[Speech],
    *,
    name: str,
    presets: Presets | None = None,
    target: Target | None = None,
    codes: Sequence[Tensor | None] | None = None,
    progress: Progress = no_progress,
) -> Scores:
    """Encodes every clip and scores the codes; `add_judge_scores` adds the rest. `codes` replaces the encoder's codes;
    a clip whose entry is None has no codes. Raises ValueError if the codec has no encoder and no codes are given, and
    DataError if no clip has codes."""
    if codes is None and codec.encoder is None:
        raise ValueError("this release has no encoder: inject one with inject_encoder.py")
    exact = copy.deepcopy(codec).float() if codes is None else None
    scores = Scores(name, PER_CLIP + (WHOLE if target else ()), [], [])
    for i, clip in enumerate(progress(speech, name, len(speech))):
        waveform = clip.waveform[None, None].to(codec.device)
        scored = ClipScores(clip)
        scores.clips.append(scored)
        try:
            found = codec.encode(waveform)[0].cpu() if codes is None else codes[i]
            if found is not None:
                add_values(scores, scored, score_codes(codec, exact, waveform, found, presets))
                scored.codes = found
        except (RuntimeError, ValueError, MemoryError) as error:
            # a clip too long for the memory, or weights that give no valid codes: go on with the other clips
            scores.problems.append(Problem(clip.name, "clip", first_line(error), name))
    if not scores.coded:
        reasons = [problem.reason for problem in scores.problems if problem.what == "clip"]
        raise DataError(f"{name}: no clip has codes; the first: {(reasons or ['none were given'])[0]}")
    if target:
        scores.whole = score_all_codes(scores.coded, codec.config.acoustic_codebook_size, target)
    return scores


def unscored_originals(speech: Sequence[Speech]) -> Scores:
    """The originals, without any scores yet."""
    return Scores(ORIGINAL, (), [ClipScores(clip) for clip in speech], [])


def add_judge_scores(
    codec: Codec | None, systems: Sequence[Scores], judges: JudgePool, progress: Progress = no_progress
) -> None:
    """Adds the judges' scores of each system's clips, decoded by `codec`. Originals need no codec."""
    for scores in systems:
        scores.metrics = (judges.absolute_metrics if scores.name == ORIGINAL else judges.metrics) + scores.metrics
    # whose versions were sent, clip by clip; it grows while the judges take more clips
    sent: list[list[tuple[Scores, ClipScores]]] = []

    def clips() -> Iterator[ClipVersions]:
        for same_clip in zip(*(scores.clips for scores in systems), strict=True):
            pairs = zip(systems, same_clip, strict=True)
            versions = [(pair, audio) for pair in pairs if (audio := _audio(codec, *pair)) is not None]
            if versions:
                sent.append([pair for pair, _ in versions])
                yield ClipVersions(same_clip[0].clip, [audio for _, audio in versions])

    measured = progress(judges.score(clips()), "judges", len(systems[0].clips))
    for of_clip, pairs in zip(measured, sent, strict=True):
        for (scores, scored), found in zip(pairs, of_clip, strict=True):
            add_values(scores, scored, found)


def _audio(codec: Codec | None, scores: Scores, scored: ClipScores) -> Tensor | None:
    """The audio [T] of a clip: None if it has no codes, or if they cannot be decoded, which adds a Problem."""
    if scores.name == ORIGINAL:
        return scored.clip.waveform
    if scored.codes is None:
        return None
    assert codec is not None
    try:
        return reconstruct(codec, scored.codes, scored.clip)
    except RuntimeError as error:  # too long for the memory: go on with the other clips
        scores.problems.append(Problem(scored.clip.name, "sound", first_line(error), scores.name))
        return None


def add_agreement(codec: Codec, scores: Scores, other: Scores) -> None:
    """Adds to `scores` how often its codes equal the other encoder's, and how similar the embeddings are."""
    scores.metrics += AGREEMENT
    mean_row = mean_embedding_row(codec, other.coded)
    for scored, reference in zip(scores.clips, other.clips, strict=True):
        if scored.codes is not None and reference.codes is not None:
            add_values(scores, scored, agreement(codec, scored.codes, reference.codes, mean_row))


@torch.no_grad()
def reconstruct(codec: Codec, codes: Tensor, clip: Speech) -> Tensor:
    """Codes [37, F] to a waveform [T] in [-1, 1], as long as the original."""
    decoded = codec.decode(codes[None].to(codec.device))
    return decoded[0, 0, : clip.waveform.shape[-1]].clamp(-1, 1).cpu()


def add_values(scores: Scores, scored: ClipScores, found: Measurements) -> None:
    """Adds what was measured on a clip. Metrics that could not be measured become problems."""
    scored.values |= found.values
    scored.transcript = found.transcript or scored.transcript
    name = scored.clip.name
    scores.problems += [Problem(name, metric, reason, scores.name) for metric, reason in found.failed.items()]
