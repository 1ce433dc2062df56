"""Means with bootstrap confidence intervals (Efron 1979, percentile method).

The bootstrap draws speakers, each with all of their clips (cluster bootstrap, Field and Welsh 2007), because the scores
of one voice's clips are correlated. A clip of unknown speaker counts as a speaker of its own. If all clips are of one
speaker, the bootstrap draws clips, and the interval holds for that speaker only.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import numpy as np

DRAWS = 2000
LEVEL = 0.95


class Interval(NamedTuple):
    value: float
    low: float | None  # None for a single clip
    high: float | None


def resampled(speakers: Sequence[str]) -> str:
    """What the bootstrap draws for clips of these speakers: "speakers" or "clips". An unknown speaker is empty."""
    return "speakers" if any(speakers) and len(set(speakers)) > 1 else "clips"


def grouped(speakers: Sequence[str]) -> tuple[int, ...]:
    """The group number of each clip. Clips of a group are drawn together."""
    if resampled(speakers) == "clips":
        return tuple(range(len(speakers)))
    numbers: dict[str | int, int] = {}
    return tuple(numbers.setdefault(speaker or clip, len(numbers)) for clip, speaker in enumerate(speakers))


@cache
def resampled_counts(groups: tuple[int, ...], seed: int) -> np.ndarray:
    """How often each clip is drawn in each resample: [DRAWS, clips]. A clip is drawn as often as its group. The same
    seed gives the same draws, so statistics of the same clips are paired."""
    count = len(set(groups))
    counts = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=DRAWS)[:, groups]
    counts.flags.writeable = False  # cached: every metric of every encoder uses it
    return counts


def mean(values: np.ndarray, weights: np.ndarray, seed: int, speakers: Sequence[str] = ()) -> Interval:
    """The weighted mean of values [N] of clips. Without `speakers` [N] each clip counts as a speaker of its own."""
    return _interval(values @ weights / weights.sum(), _means(values, weights, seed, speakers), len(values))


def difference(a: np.ndarray, b: np.ndarray, weights: np.ndarray, seed: int, speakers: Sequence[str] = ()) -> Interval:
    """The weighted mean of a − b, paired by clip."""
    return mean(a - b, weights, seed, speakers)


def recovered(
    value: np.ndarray,
    best: np.ndarray,
    worst: np.ndarray,
    weights: np.ndarray,
    seed: int,
    speakers: Sequence[str] = (),
) -> Interval | None:
    """Where `value` lies between `worst` (0) and `best` (1), all paired by clip. None if best and worst do not differ
    significantly, that is, if the interval of their difference contains 0."""
    span = difference(best, worst, weights, seed, speakers)
    if span.low is None or span.high is None or span.low <= 0 <= span.high:
        return None
    part, whole = (_means(each - worst, weights, seed, speakers) for each in (value, best))
    share = ((value - worst) @ weights) / ((best - worst) @ weights)
    usable = whole != 0  # in one resample of thousands, best and worst may be equal
    return _interval(share, part[usable] / whole[usable], len(value))


def _means(values: np.ndarray, weights: np.ndarray, seed: int, speakers: Sequence[str]) -> np.ndarray:
    counts = resampled_counts(grouped(speakers or [""] * len(values)), seed)
    return (counts @ (values * weights)) / (counts @ weights)


def _interval(value: float, draws: np.ndarray, clips: int) -> Interval:
    if clips < 2:
        return Interval(float(value), None, None)
    low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(value), float(low), float(high))
