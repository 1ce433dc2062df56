"""What a metric, a measurement and a judge are, and what all judges share."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

from torch import Tensor

from data.audio import SILENCE
from data.reference import SAMPLE_RATE
from evaluation.speech import Speech

SHORTEST = 1.0  # seconds; the shortest clip that a network judges


@dataclass(frozen=True)
class Metric:
    """`better` says which direction is good; an empty one means that the metric only describes. `percent` metrics are
    shares, shown in percent."""

    name: str
    title: str
    better: Literal["lower", "higher", ""]
    definition: str
    digits: int = 3
    percent: bool = False

    def show(self, value: float) -> str:
        """The value as text, in the metric's unit."""
        digits, factor = (1, 100) if self.percent else (self.digits, 1)
        rounded = round(factor * value, digits) + 0.0  # no "-0.00"
        return f"{rounded:.{digits}f}" + (" %" if self.percent else "")


class Measurement(NamedTuple):
    """A metric's value for one clip. Totals are means weighted by `weight`: word errors are weighted by the number of
    words, so that a total is per word and not per clip."""

    value: float
    weight: float = 1.0


@dataclass
class Measurements:
    """What was measured on one version of a clip: by metric a value, or the reason why there is none."""

    values: dict[str, Measurement] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    transcript: str = ""  # by the speech recognizer; empty without it
    embeddings: dict[str, list[float]] = field(default_factory=dict)  # by metric; only from a Listener

    def set(self, name: str, value: float, weight: float = 1.0) -> None:
        """Stores a value. One that is not finite becomes a failure."""
        if math.isfinite(value):
            self.values[name] = Measurement(value, weight)
        else:
            self.failed[name] = f"its value is {value}"

    def add(self, other: Measurements) -> None:
        """Adds what another judge measured on the same version."""
        self.values |= other.values
        self.failed |= other.failed
        self.transcript = other.transcript or self.transcript
        self.embeddings |= other.embeddings


class MissingJudgeError(Exception):
    """A judge's library or weights are missing. The message says which, and how to get them."""


class Judge(Protocol):
    """Compares a reconstruction with its original. An `absolute` judge needs no original, so it scores the originals
    too. Judges cache what they compute from an original."""

    @property
    def name(self) -> str: ...

    @property
    def metrics(self) -> tuple[Metric, ...]: ...

    @property
    def absolute(self) -> bool: ...

    def score(self, clip: Speech, audio: Tensor) -> Measurements:
        """`audio` [T] is float32 in [-1, 1], with the clip's sample rate and length. Raises RuntimeError or ValueError
        if this clip cannot be scored."""
        ...


@runtime_checkable
class Listener(Judge, Protocol):
    """A judge that also describes a recording alone: its words, its quality, or the embedding of its speaker."""

    def listen(self, audio: Tensor) -> Measurements:
        """`audio` [T] as in `score`. Raises RuntimeError or ValueError if it cannot be described."""
        ...


def first_line(error: Exception) -> str:
    """The first line of the error's message, or the error's class if the message is empty."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def library(name: str) -> Any:
    """Imports a library that only evaluation needs. Raises MissingJudgeError if that fails."""
    try:
        return import_module(name)
    except ImportError as error:
        raise MissingJudgeError(f"{error.msg}: docs/evaluating.md says what to install") from error


def refuse_short(audio: Tensor) -> None:
    """Raises ValueError if `audio` [T] is too short for a network. Networks pad to their window and would answer
    anyway: 20 ms get a mean opinion score, and 0.1 s of noise counts as half the same voice."""
    seconds = audio.shape[-1] / SAMPLE_RATE
    if seconds < SHORTEST:
        raise ValueError(f"{seconds:.2f} s are too short to judge, expected {SHORTEST:g} s or more")


def refuse_silence(audio: Tensor) -> None:
    """Raises ValueError if `audio` [T] is silent, because the judges would give a meaningless number."""
    if float(audio.abs().max()) < SILENCE:
        raise ValueError("the audio is silent")
