"""Totals with bootstrap intervals (Efron 1979, percentile method), resampling clips."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np

DRAWS = 2000
LEVEL = 0.95


class Interval(NamedTuple):
    value: float
    low: float | None  # None where there is a single clip
    high: float | None


@cache
def resampled_counts(clips: int, seed: int) -> np.ndarray:
    """How often each clip is drawn in each of the resamples: [DRAWS, clips]. The same for a seed, so that what is
    computed from the same clips is paired."""
    counts = np.random.default_rng(seed).multinomial(clips, np.full(clips, 1 / clips), size=DRAWS)
    counts.flags.writeable = False  # it is kept: every metric of every encoder asks for it
    return counts


def mean(values: np.ndarray, weights: np.ndarray, seed: int) -> Interval:
    """The weighted mean over the clips [N]."""
    return _interval(values @ weights / weights.sum(), _means(values, weights, seed), len(values))


def difference(a: np.ndarray, b: np.ndarray, weights: np.ndarray, seed: int) -> Interval:
    """Mean of a − b, paired by clip."""
    return mean(a - b, weights, seed)


def recovered(
    value: np.ndarray, best: np.ndarray, worst: np.ndarray, weights: np.ndarray, seed: int
) -> Interval | None:
    """Where `value` lies between `worst` (0) and `best` (1), all paired by clip. None where best and worst cannot be
    told apart: the interval of their difference holds 0."""
    span = difference(best, worst, weights, seed)
    if span.low is None or span.high is None or span.low <= 0 <= span.high:
        return None
    part, whole = _means(value - worst, weights, seed), _means(best - worst, weights, seed)
    share = ((value - worst) @ weights) / ((best - worst) @ weights)
    told = whole != 0  # one resample in thousands may hold only clips that do not tell the two apart
    return _interval(share, part[told] / whole[told], len(value))


def _means(values: np.ndarray, weights: np.ndarray, seed: int) -> np.ndarray:
    counts = resampled_counts(len(values), seed)
    return (counts @ (values * weights)) / (counts @ weights)


def _interval(value: float, draws: np.ndarray, clips: int) -> Interval:
    if clips < 2:
        return Interval(float(value), None, None)
    low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(value), float(low), float(high))
