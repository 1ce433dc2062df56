"""An encoder's scores: every clip encoded and decoded as the server does it, and put before the judges."""

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
from evaluation.codes import AGREEMENT, PER_CLIP, WHOLE, Presets, agreement, score_all_codes, score_codes
from evaluation.judges.judge import Judge, Measured, Metric, Verdict, first_line
from evaluation.judges.pool import Hearing, Jury
from evaluation.speech import Problem, Speech
from evaluation.statistics import Interval
from losses.shaping import Target

ORIGINAL = "original"
Encode = Callable[[Sequence[Tensor]], Sequence[Tensor]]
Progress = Callable[[Iterable[Any], str, int], Iterable[Any]]  # shows how far a named work of so many clips has come


def unseen(clips: Iterable[Any], work: str, count: int) -> Iterable[Any]:
    """No progress is shown."""
    return clips


@dataclass
class ClipScores:
    clip: Speech
    codes: Tensor | None = None  # [37, F]; None for an original
    values: dict[str, Measured] = field(default_factory=dict)
    heard: str = ""


@dataclass
class Scores:
    """Of one encoder, or of the originals themselves. `clips` are in the order of the speech given."""

    name: str
    metrics: tuple[Metric, ...]
    clips: list[ClipScores]
    problems: list[Problem]
    whole: dict[str, float] = field(default_factory=dict)  # over all clips at once; these have no intervals

    def column(self, metric: str, clips: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Values and weights of these clips, which all have the metric."""
        pairs = [self.clips[i].values[metric] for i in clips]
        return np.array([pair.value for pair in pairs]), np.array([pair.weight for pair in pairs])

    def speakers(self, clips: Sequence[int]) -> list[str]:
        return [self.clips[i].clip.speaker for i in clips]

    def scored(self, metric: str) -> list[int]:
        """The clips that have a value."""
        return [i for i, clip in enumerate(self.clips) if metric in clip.values]

    def total(self, metric: str, seed: int = 0) -> Interval | None:
        """Over the clips that have it; None where none has."""
        if metric in self.whole:
            return Interval(self.whole[metric], None, None)
        clips = self.scored(metric)
        return statistics.mean(*self.column(metric, clips), seed, self.speakers(clips)) if clips else None

    @property
    def coded(self) -> list[Tensor]:
        """The codes of the clips that have some."""
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
    """Scores of a codec with its encoder. In bfloat16, as `load_release` gives it, it computes what the server does.
    `encode` finds the codes [37, F] of waveforms [T] in another way. A clip that a judge cannot score is a problem of
    that judge's metrics alone."""
    codes = encode([clip.waveform for clip in speech]) if encode else None
    scores = score_encoding(codec, speech, name=name, presets=presets, target=target, codes=codes)
    add_verdicts(codec, [scores], Jury(judges))
    return scores


def evaluate_originals(speech: Sequence[Speech], judges: Sequence[Judge]) -> Scores:
    """What the absolute judges say of the originals: how far a perfect codec could come."""
    scores = unscored_originals(speech)
    add_verdicts(None, [scores], Jury(judges))
    return scores


def score_encoding(
    codec: Codec,
    speech: Sequence[Speech],
    *,
    name: str,
    presets: Presets | None = None,
    target: Target | None = None,
    codes: Sequence[Tensor | None] | None = None,
    progress: Progress = unseen,
) -> Scores:
    """The codes of every clip, and what they say themselves: as `evaluate`, before any judge has heard them. `codes`
    are those found in another way, None for a clip that has none."""
    if codes is None and codec.encoder is None:
        raise ValueError("this release has no encoder: inject one with inject_encoder.py")
    exact = copy.deepcopy(codec).float() if codes is None else None
    scores = Scores(name, PER_CLIP + (WHOLE if target else ()), [], [])
    for i, clip in enumerate(progress(speech, name, len(speech))):
        waveform = clip.waveform[None, None].to(codec.decoder.output_proj.conv.weight.device)
        scored = ClipScores(clip)
        scores.clips.append(scored)
        try:
            found = codec.encode(waveform)[0].cpu() if codes is None else codes[i]
            if found is not None:
                _add(scores, scored, score_codes(codec, exact, waveform, found, presets))
                scored.codes = found
        except (RuntimeError, ValueError) as error:
            # a clip that is too long for the memory, weights that give no codes: the others are scored all the same
            scores.problems.append(Problem(clip.name, "clip", first_line(error), name))
    if not scores.coded:
        reasons = [problem.reason for problem in scores.problems if problem.what == "clip"]
        raise DataError(f"{name}: no clip has codes; the first: {(reasons or ['none were given'])[0]}")
    if target:
        scores.whole = score_all_codes(scores.coded, codec.config.acoustic_codebook_size, target)
    return scores


def unscored_originals(speech: Sequence[Speech]) -> Scores:
    """The originals, before any judge has heard them."""
    return Scores(ORIGINAL, (), [ClipScores(clip) for clip in speech], [])


def add_verdicts(codec: Codec | None, systems: Sequence[Scores], jury: Jury, progress: Progress = unseen) -> None:
    """Adds what the judges say of each system's clips, decoded by `codec`; originals need none."""
    for scores in systems:
        scores.metrics = (jury.absolute_metrics if scores.name == ORIGINAL else jury.metrics) + scores.metrics
    heard: list[list[tuple[Scores, ClipScores]]] = []  # what each hearing is about; grows as the jury asks for more

    def hearings() -> Iterator[Hearing]:
        for versions in zip(*(scores.clips for scores in systems), strict=True):
            pairs = zip(systems, versions, strict=True)
            sounds = [(pair, sound) for pair in pairs if (sound := _sound(codec, *pair)) is not None]
            if sounds:
                heard.append([pair for pair, _ in sounds])
                yield Hearing(versions[0].clip, [sound for _, sound in sounds])

    verdicts = progress(jury.hear(hearings()), "judges", len(systems[0].clips))
    for found, about in zip(verdicts, heard, strict=True):
        for (scores, scored), verdict in zip(about, found, strict=True):
            _add(scores, scored, verdict)


def _sound(codec: Codec | None, scores: Scores, scored: ClipScores) -> Tensor | None:
    """What there is to hear of a clip: [T]; None without codes, or where they cannot be decoded, which is noted."""
    if scores.name == ORIGINAL:
        return scored.clip.waveform
    if scored.codes is None:
        return None
    assert codec is not None
    try:
        return reconstruct(codec, scored.codes, scored.clip)
    except RuntimeError as error:  # too long for the memory: the other clips are heard all the same
        scores.problems.append(Problem(scored.clip.name, "sound", first_line(error), scores.name))
        return None


def add_agreement(codec: Codec, scores: Scores, other: Scores) -> None:
    """Adds to one encoder's scores how alike the other one's codes and embeddings are."""
    scores.metrics += AGREEMENT
    for scored, reference in zip(scores.clips, other.clips, strict=True):
        if scored.codes is not None and reference.codes is not None:
            _add(scores, scored, agreement(codec, scored.codes, reference.codes))


@torch.no_grad()
def reconstruct(codec: Codec, codes: Tensor, clip: Speech) -> Tensor:
    """Codes [37, F] to the waveform [T] one hears, as long as the original."""
    device = codec.decoder.output_proj.conv.weight.device
    return codec.decode(codes[None].to(device))[0, 0, : clip.waveform.shape[-1]].clamp(-1, 1).cpu()


def _add(scores: Scores, scored: ClipScores, verdict: Verdict) -> None:
    scored.values |= verdict.values
    scored.heard = verdict.heard or scored.heard
    name = scored.clip.name
    scores.problems += [Problem(name, metric, reason, scores.name) for metric, reason in verdict.failed.items()]
