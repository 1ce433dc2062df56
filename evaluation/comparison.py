"""An encoder against another one: differences, paired by clip, and how much of the way from an untrained encoder to
the other one it has come."""

from __future__ import annotations

from dataclasses import dataclass

from evaluation import statistics
from evaluation.judges.judge import Metric
from evaluation.scoring import Scores
from evaluation.statistics import Interval


@dataclass(frozen=True)
class Compared:
    metric: Metric
    clips: int  # that both have a value for
    difference: Interval  # the encoder's minus the other's
    recovered: Interval | None  # 0 at the untrained encoder, 1 at the other one; None where these cannot be told apart
    recovered_clips: int = 0  # that the untrained one has a value for too


def compare(encoder: Scores, other: Scores, untrained: Scores, seed: int = 0) -> dict[str, Compared]:
    """By metric: the difference from the other one over the clips that both have values for, and what is recovered over
    those that the untrained one has values for too: of a sound that is next to silence some judges say nothing. What
    only describes is not recovered, and what is counted over all clips at once has no recovered share."""
    found = {}
    for metric in encoder.metrics:
        name = metric.name
        if name in encoder.whole and name in other.whole:
            if len(encoder.coded) == len(other.coded):  # fewer clips have fewer distinct codes
                gap = Interval(encoder.whole[name] - other.whole[name], None, None)
                found[name] = Compared(metric, len(encoder.coded), gap, None)
            continue
        clips = [i for i in encoder.scored(name) if name in other.clips[i].values]
        if clips:
            (value, weight), (best, _) = (system.column(name, clips) for system in (encoder, other))
            gap = statistics.difference(value, best, weight, seed, encoder.speakers(clips))
            three = [i for i in clips if name in untrained.clips[i].values] if metric.better else []
            share = _recovered(metric, (encoder, other, untrained), three, seed) if three else None
            found[name] = Compared(metric, len(clips), gap, share, len(three) if share else 0)
    return found


def _recovered(metric: Metric, systems: tuple[Scores, ...], clips: list[int], seed: int) -> Interval | None:
    (value, weight), (best, _), (worst, _) = (system.column(metric.name, clips) for system in systems)
    if not _better(metric, float(best @ weight), float(worst @ weight)):
        return None  # the other one is worse than an untrained encoder: there is nothing to recover
    return statistics.recovered(value, best, worst, weight, seed, systems[0].speakers(clips))


def _better(metric: Metric, a: float, b: float) -> bool:
    return a < b if metric.better == "lower" else a > b
