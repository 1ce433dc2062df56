"""`--require metric>=value`: a condition on a metric. If it is not met, the exit status is 1."""

from __future__ import annotations

import operator
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from system.command import UserError

COMPARISONS: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
}


class RequirementError(UserError):
    """Text that is no requirement. The message shows what one looks like."""


@dataclass(frozen=True)
class Requirement:
    metric: str
    comparison: str
    value: float

    def __str__(self) -> str:
        return f"{self.metric}{self.comparison}{self.value:g}"

    def unmet(self, figures: Mapping[str, float]) -> str:
        """Why the requirement is not met; empty if it is."""
        if self.metric not in figures:
            return f"{self}: {self.metric} was not measured; measured: {', '.join(figures)}"
        found = figures[self.metric]
        return "" if COMPARISONS[self.comparison](found, self.value) else f"{self}: it is {found:.6g}"


def unmet(requirements: Sequence[Requirement], figures: Mapping[str, float]) -> int:
    """Prints each requirement that is not met on standard error. Returns the exit status: 1 if there is one, else 0."""
    reasons = [reason for each in requirements if (reason := each.unmet(figures))]
    for reason in reasons:
        print(f"required {reason}", file=sys.stderr)
    return 1 if reasons else 0


def read_requirement(text: str) -> Requirement:
    """Reads `pesq>=2.5`, `wer<0.1`, `recovered.mel>=0.95`. Raises RequirementError."""
    match = re.fullmatch(r"\s*([\w.:-]+)\s*(>=|<=|>|<)\s*(\S+)\s*", text)
    if match:
        try:
            return Requirement(match[1], match[2], float(match[3]))
        except ValueError:
            pass
    raise RequirementError(f"--require {text!r}: expected a metric, one of >= <= > <, and a number: 'pesq>=2.5'")
