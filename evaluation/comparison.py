"""An encoder against another one: differences, paired by clip, and how much of the way from an untrained encoder to
the other one it has come."""

from __future__ import annotations

from dataclasses import dataclass

from evaluation import statistics
from evaluation.metric import Metric
from evaluation.scoring import Scores
from evaluation.statistics import Interval


@dataclass(frozen=True)
class Compared:
    metric: Metric
    clips: int  # that all of them have a value for
    difference: Interval  # the encoder's minus the other's
    recovered: Interval | None  # 0 at the untrained encoder, 1 at the other one; None where these cannot be told apart


def compare(encoder: Scores, other: Scores, untrained: Scores, seed: int = 0) -> dict[str, Compared]:
    """By metric, for those that all three have, over the clips that all three have values for. What only describes
    is not recovered, and what is counted over all clips at once has no recovered share."""
    found = {}
    for metric in encoder.metrics:
        systems = (encoder, other, untrained)
        name = metric.name
        if all(name in system.whole for system in systems):
            if len({len(system.coded) for system in systems}) > 1:
                continue  # fewer clips have fewer distinct codes
            gap = Interval(encoder.whole[name] - other.whole[name], None, None)
            found[name] = Compared(metric, len(encoder.coded), gap, None)
            continue
        clips = sorted(set.intersection(*(set(system.scored(name)) for system in systems)))
        if not clips:
            continue
        (value, weight), (best, _), (worst, _) = (system.column(name, clips) for system in systems)
        gap = statistics.difference(value, best, weight, seed)
        share = statistics.recovered(value, best, worst, weight, seed) if metric.better else None
        if share and not _better(metric, float(best @ weight), float(worst @ weight)):
            share = None  # the other one is worse than an untrained encoder: there is nothing to recover
        found[name] = Compared(metric, len(clips), gap, share)
    return found


def _better(metric: Metric, a: float, b: float) -> bool:
    return a < b if metric.better == "lower" else a > b
