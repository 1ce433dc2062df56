"""Totals with bootstrap intervals (Efron 1979, percentile method), resampling speakers, each with all of its clips
(cluster bootstrap, Field and Welsh 2007): clips of one voice fare alike, and ten of them do not tell ten times as much.
A clip whose speaker is not known counts as one of its own. Clips that are all of one speaker are resampled themselves,
and the interval is about that speaker alone.
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
    low: float | None  # None where there is a single clip
    high: float | None


def resampled(speakers: Sequence[str]) -> str:
    """What is resampled of clips of these speakers, empty where one is not known: "speakers" or "clips"."""
    return "speakers" if any(speakers) and len(set(speakers)) > 1 else "clips"


def grouped(speakers: Sequence[str]) -> tuple[int, ...]:
    """The number of each clip's group: of the clips that are drawn together."""
    if resampled(speakers) == "clips":
        return tuple(range(len(speakers)))
    numbers: dict[str | int, int] = {}
    return tuple(numbers.setdefault(speaker or clip, len(numbers)) for clip, speaker in enumerate(speakers))


@cache
def resampled_counts(groups: tuple[int, ...], seed: int) -> np.ndarray:
    """How often each clip is drawn in each of the resamples, as often as its group: [DRAWS, clips]. The same for a
    seed, so that what is computed from the same clips is paired."""
    count = len(set(groups))
    counts = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=DRAWS)[:, groups]
    counts.flags.writeable = False  # it is kept: every metric of every encoder asks for it
    return counts


def mean(values: np.ndarray, weights: np.ndarray, seed: int, speakers: Sequence[str] = ()) -> Interval:
    """The weighted mean over the clips [N] of these speakers [N]; without these each clip has one of its own."""
    return _interval(values @ weights / weights.sum(), _means(values, weights, seed, speakers), len(values))


def difference(a: np.ndarray, b: np.ndarray, weights: np.ndarray, seed: int, speakers: Sequence[str] = ()) -> Interval:
    """Mean of a − b, paired by clip."""
    return mean(a - b, weights, seed, speakers)


def recovered(
    value: np.ndarray,
    best: np.ndarray,
    worst: np.ndarray,
    weights: np.ndarray,
    seed: int,
    speakers: Sequence[str] = (),
) -> Interval | None:
    """Where `value` lies between `worst` (0) and `best` (1), all paired by clip. None where best and worst cannot be
    told apart: the interval of their difference holds 0."""
    span = difference(best, worst, weights, seed, speakers)
    if span.low is None or span.high is None or span.low <= 0 <= span.high:
        return None
    part, whole = (_means(each - worst, weights, seed, speakers) for each in (value, best))
    share = ((value - worst) @ weights) / ((best - worst) @ weights)
    told = whole != 0  # one resample in thousands may hold only clips that do not tell the two apart
    return _interval(share, part[told] / whole[told], len(value))


def _means(values: np.ndarray, weights: np.ndarray, seed: int, speakers: Sequence[str]) -> np.ndarray:
    counts = resampled_counts(grouped(speakers or [""] * len(values)), seed)
    return (counts @ (values * weights)) / (counts @ weights)


def _interval(value: float, draws: np.ndarray, clips: int) -> Interval:
    if clips < 2:
        return Interval(float(value), None, None)
    low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(value), float(low), float(high))
