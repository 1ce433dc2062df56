"""Everything that one evaluation measured, for the terminal, the JSON file and the report."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from evaluation.codes import Presets, acoustic_histogram
from evaluation.comparison import Compared
from evaluation.judges.judge import Metric
from evaluation.pairs import PairResults
from evaluation.scoring import Scores
from evaluation.speech import Problem, Speech
from evaluation.statistics import Interval
from losses.shaping import Target
from system.files import write_whole


@dataclass(kw_only=True)
class Evaluation(ABC):
    """Scores of several systems and of the originals on the same clips. The first system is the main one: headlines,
    requirements and the list of clips are about it."""

    settings: dict[str, Any]  # what the scores depend on: data, judges, seed, versions, ...
    speech: list[Speech]
    originals: Scores
    comparisons: dict[str, dict[str, Compared]] = field(default_factory=dict)  # by system and metric
    missing: dict[str, str] = field(default_factory=dict)  # judges and speeds that could not be measured -> why
    problems: list[Problem] = field(default_factory=list)  # clips that could not be read, or have no codes
    notes: list[str] = field(default_factory=list)  # about the clips that were read

    @property
    @abstractmethod
    def systems(self) -> list[Scores]:
        """What the table compares, the main one first."""

    @abstractmethod
    def sounding(self, scores: Scores) -> int:
        """How many clips of a system have audio that could be scored."""

    @property
    def seed(self) -> int:
        return int(self.settings["seed"])

    @property
    def main(self) -> Scores:
        return self.systems[0]

    @property
    def compared(self) -> dict[str, Compared]:
        """The main system's comparison, by metric."""
        return self.comparisons.get(self.main.name, {})

    @property
    def has_recovered(self) -> bool:
        """Whether the comparisons say which share is recovered."""
        return False

    @property
    def metrics(self) -> list[Metric]:
        """The metrics for which any system has a value."""
        return [metric for metric in self.main.metrics if any(scores.has(metric.name) for scores in self.systems)]

    @property
    def all_problems(self) -> list[Problem]:
        return self.problems + [problem for scores in (*self.systems, self.originals) for problem in scores.problems]

    def without_values(self) -> dict[str, str]:
        """Metrics whose judge could score no clip -> the first reason."""
        empty = {metric.name for metric in self.main.metrics} - {metric.name for metric in self.metrics}
        reasons: dict[str, str] = {}
        for problem in self.all_problems:
            if problem.what in empty:
                reasons.setdefault(problem.what, problem.reason)
        return reasons

    def figures(self) -> dict[str, float]:
        """Every figure that --require accepts, by name."""
        found = {}
        for metric in self.metrics:
            total = self.main.total(metric.name, self.seed)
            if total:
                found[metric.name] = total.value
        for name, compared in self.compared.items():
            found[f"difference.{name}"] = compared.difference.value
            if compared.recovered:
                found[f"recovered.{name}"] = compared.recovered.value
        return found

    def to_json(self) -> dict[str, Any]:
        """Everything, as JSON types. Clips are in the order in which they were read."""
        systems = {scores.name: scores for scores in (*self.systems, self.originals)}
        return {
            "settings": self.settings,
            "metrics": {metric.name: asdict(metric) for metric in self.metrics},
            "totals": {
                name: {
                    metric.name: _interval(total) | {"clips": len(scores.scored(metric.name)) or self.sounding(scores)}
                    for metric in scores.metrics
                    if (total := scores.total(metric.name, self.seed))
                }
                for name, scores in systems.items()
            },
            "comparisons": {name: _comparison(compared) for name, compared in self.comparisons.items()},
            "clips": [
                {
                    "name": clip.name,
                    "speaker": clip.speaker,
                    "seconds": clip.seconds,
                    "text": clip.text,
                    "scores": {
                        name: {metric: measured.value for metric, measured in scores.clips[i].values.items()}
                        for name, scores in systems.items()
                    },
                    # of this clip in a total, if not 1; for word errors, the number of words
                    "weights": {
                        metric: measured.weight
                        for scores in systems.values()
                        for metric, measured in scores.clips[i].values.items()
                        if measured.weight != 1
                    },
                    "transcript": {
                        name: scores.clips[i].transcript
                        for name, scores in systems.items()
                        if scores.clips[i].transcript
                    },
                }
                for i, clip in enumerate(self.speech)
            ],
            "left_out": self.missing | self.without_values(),
            "problems": [asdict(problem) for problem in self.all_problems],
            "notes": self.notes,
        }

    def write(self, path: Path) -> None:
        """Writes all figures to a JSON file and prints its name. Raises OSError."""
        write_whole(path, json.dumps(self.to_json(), indent=1, allow_nan=False) + "\n")
        print(f"figures: {path}")


@dataclass(kw_only=True)
class Results(Evaluation):
    """What `measure` found. `other` and `untrained` are None without --against."""

    encoders: list[Scores]
    target: Target
    presets: Presets | None
    levels: int
    extra: list[Scores] = field(default_factory=list)  # systems whose codes come from no encoder
    other: Scores | None = None
    untrained: Scores | None = None
    about: dict[str, dict[str, Any]] = field(default_factory=dict)  # by encoder: its file, hash and training metadata
    speed: dict[str, dict[str, float]] = field(default_factory=dict)  # by device; differs from run to run
    pairs: PairResults | None = None

    @property
    def judged(self) -> list[Scores]:
        """The encoders and extra systems. Each is compared with `other`, if there is one."""
        return [*self.encoders, *self.extra]

    @property
    def systems(self) -> list[Scores]:
        """The same, and the two ends of the scale: `other` and `untrained`."""
        return [*self.judged, *(scores for scores in (self.other, self.untrained) if scores is not None)]

    def sounding(self, scores: Scores) -> int:
        return len(scores.coded)

    @property
    def has_recovered(self) -> bool:
        return self.untrained is not None

    def figures(self) -> dict[str, float]:
        found = super().figures()
        for device, figures in self.speed.items():
            found |= {f"{device}.{name}": value for name, value in figures.items()}
        return found | (self.pairs.figures(self.seed) if self.pairs else {})

    def to_json(self) -> dict[str, Any]:
        return super().to_json() | {
            "encoders": self.about,
            "compared": _comparison(self.compared),
            "acoustic_histogram": {
                "target": self.target.histogram.tolist(),
                **{
                    scores.name: acoustic_histogram(scores.coded, self.levels).double().tolist()
                    for scores in self.systems
                },
            },
            "presets": {"norm": self.presets.norm, "among_themselves": self.presets.among_themselves}
            if self.presets
            else None,
            "speed": self.speed,
            "pairs": self.pairs.to_json(self.seed) if self.pairs else None,
        }


def _comparison(compared: dict[str, Compared]) -> dict[str, Any]:
    return {
        name: {
            "clips": each.clips,
            "difference": _interval(each.difference),
            "recovered": _interval(each.recovered) if each.recovered else None,
            "recovered_clips": each.recovered_clips,
        }
        for name, each in compared.items()
    }


def _interval(interval: Interval) -> dict[str, float | None]:
    return interval._asdict()
