"""What is measured: a metric's name and meaning, one measurement of it, and what gives measurements."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, Literal, NamedTuple, Protocol

from torch import Tensor

from evaluation.speech import Speech


@dataclass(frozen=True)
class Metric:
    """`better` says which way is good; an empty one describes and does not judge. `percent` metrics are shares."""

    name: str
    title: str
    better: Literal["lower", "higher", ""]
    definition: str
    digits: int = 3
    percent: bool = False

    def show(self, value: float) -> str:
        """A value for people to read."""
        digits, factor = (1, 100) if self.percent else (self.digits, 1)
        rounded = round(factor * value, digits) + 0.0  # no "-0.00"
        return f"{rounded:.{digits}f}" + (" %" if self.percent else "")


class Measured(NamedTuple):
    """One clip's value. A total is the mean weighted by `weight`: word errors a word, say, and not a clip."""

    value: float
    weight: float = 1.0


@dataclass
class Verdict:
    """What a judge says of one clip: values by metric, and for the others why there is none."""

    values: dict[str, Measured] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    heard: str = ""  # the words a judge of words understood

    def set(self, name: str, value: float, weight: float = 1.0) -> None:
        if math.isfinite(value):
            self.values[name] = Measured(value, weight)
        else:
            self.failed[name] = f"its value is {value}"

    def add(self, other: Verdict) -> None:
        """What another judge says of the same clip."""
        self.values |= other.values
        self.failed |= other.failed
        self.heard = other.heard or self.heard


class MissingJudgeError(Exception):
    """A judge whose library or weights are not there. The message says which, and how to get it."""


class Judge(Protocol):
    """Compares a reconstruction with its original. `absolute` judges score the original itself too, because what they
    say needs no original to be meaningful. What a judge knows of an original it remembers."""

    @property
    def name(self) -> str: ...

    @property
    def metrics(self) -> tuple[Metric, ...]: ...

    @property
    def absolute(self) -> bool: ...

    def score(self, clip: Speech, audio: Tensor) -> Verdict:
        """`audio` [T], float32 in [-1, 1], at the clip's rate and of its length. RuntimeError and ValueError mean that
        this clip cannot be scored."""
        ...


def first_line(error: Exception) -> str:
    """Of its message; its name where it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def library(name: str) -> Any:
    """A module of requirements-eval.txt. Raises MissingJudgeError where it cannot be imported."""
    try:
        return import_module(name)
    except ImportError as error:
        raise MissingJudgeError(f"{error.msg}: README, Evaluating, tells what to install") from error
