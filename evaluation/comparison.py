"""Compares an encoder with another one: differences, paired by clip, and the recovered share, which is 0 for an
untrained encoder and 1 for the other one."""

from __future__ import annotations

from dataclasses import dataclass

from evaluation import statistics
from evaluation.judges.judge import Metric
from evaluation.scoring import Scores
from evaluation.statistics import Interval


@dataclass(frozen=True)
class Compared:
    metric: Metric
    clips: int  # clips that both encoders have a value for
    difference: Interval  # the encoder's value minus the other's
    recovered: Interval | None  # 0: untrained encoder, 1: other one; None if these two do not differ significantly
    recovered_clips: int = 0  # clips that the untrained encoder has a value for too


def compare(encoder: Scores, other: Scores, untrained: Scores | None = None, seed: int = 0) -> dict[str, Compared]:
    """Compares every metric. The difference is over the clips that both encoders have values for. The recovered share
    is over those that the untrained encoder has values for too: some judges refuse its audio, which may be almost
    silent. Metrics that only describe, and metrics over all clips at once, have no recovered share, and without
    `untrained` none has."""
    found = {}
    for metric in encoder.metrics:
        name = metric.name
        if name in encoder.whole and name in other.whole:
            if len(encoder.coded) == len(other.coded):  # a count over fewer clips is lower
                gap = Interval(encoder.whole[name] - other.whole[name], None, None)
                found[name] = Compared(metric, len(encoder.coded), gap, None)
            continue
        clips = [i for i in encoder.scored(name) if name in other.clips[i].values]
        if clips:
            (value, weight), (best, _) = (system.column(name, clips) for system in (encoder, other))
            gap = statistics.difference(value, best, weight, seed, encoder.speakers(clips))
            found[name] = Compared(metric, len(clips), gap, None)
            if untrained and metric.better:
                three = [i for i in clips if name in untrained.clips[i].values]
                share = _recovered(metric, (encoder, other, untrained), three, seed) if three else None
                found[name] = Compared(metric, len(clips), gap, share, len(three) if share else 0)
    return found


def _recovered(metric: Metric, systems: tuple[Scores, ...], clips: list[int], seed: int) -> Interval | None:
    (value, weight), (best, _), (worst, _) = (system.column(metric.name, clips) for system in systems)
    if not _better(metric, float(best @ weight), float(worst @ weight)):
        return None  # the other encoder is worse than the untrained one: there is nothing to recover
    return statistics.recovered(value, best, worst, weight, seed, systems[0].speakers(clips))


def _better(metric: Metric, a: float, b: float) -> bool:
    return a < b if metric.better == "lower" else a > b
