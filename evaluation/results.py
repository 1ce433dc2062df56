"""Everything that one evaluation measured, for the terminal, the JSON file and the report."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from evaluation.codes import Presets, acoustic_histogram
from evaluation.comparison import Compared
from evaluation.judges.judge import Metric
from evaluation.scoring import Scores
from evaluation.speech import Problem, Speech
from evaluation.statistics import Interval
from losses.shaping import Target


@dataclass
class Results:
    """The first encoder is the main one: headlines, requirements and the list of clips are about it. `other` and
    `untrained` are None without --against."""

    settings: dict[str, Any]  # what the scores depend on: release, data, seed, versions, ...
    speech: list[Speech]
    encoders: list[Scores]
    originals: Scores
    target: Target
    presets: Presets | None
    levels: int
    extra: list[Scores] = field(default_factory=list)  # systems whose codes come from no encoder
    other: Scores | None = None
    untrained: Scores | None = None
    comparisons: dict[str, dict[str, Compared]] = field(default_factory=dict)  # with `other`, by system and metric
    about: dict[str, dict[str, Any]] = field(default_factory=dict)  # by encoder: its file, hash and training metadata
    missing: dict[str, str] = field(default_factory=dict)  # judges and speeds that could not be measured -> why
    problems: list[Problem] = field(default_factory=list)  # clips that could not be read, or have no codes
    notes: list[str] = field(default_factory=list)  # about the clips that were read
    speed: dict[str, dict[str, float]] = field(default_factory=dict)  # by device; differs from run to run

    @property
    def seed(self) -> int:
        return int(self.settings["seed"])

    @property
    def encoder(self) -> Scores:
        return self.encoders[0]

    @property
    def compared(self) -> dict[str, Compared]:
        """The first encoder's comparison, by metric."""
        return self.comparisons.get(self.encoder.name, {})

    @property
    def judged(self) -> list[Scores]:
        """The encoders and extra systems. Each is compared with `other`, if there is one."""
        return [*self.encoders, *self.extra]

    @property
    def systems(self) -> list[Scores]:
        """The same, and the two ends of the scale: `other` and `untrained`."""
        return [*self.judged, *(scores for scores in (self.other, self.untrained) if scores is not None)]

    @property
    def metrics(self) -> list[Metric]:
        """The metrics for which any system has a value."""
        return [metric for metric in self.encoder.metrics if any(scores.has(metric.name) for scores in self.systems)]

    @property
    def all_problems(self) -> list[Problem]:
        return self.problems + [problem for scores in (*self.systems, self.originals) for problem in scores.problems]

    def without_values(self) -> dict[str, str]:
        """Metrics whose judge could score no clip -> the first reason."""
        empty = {metric.name for metric in self.encoder.metrics} - {metric.name for metric in self.metrics}
        reasons: dict[str, str] = {}
        for problem in self.all_problems:
            if problem.what in empty:
                reasons.setdefault(problem.what, problem.reason)
        return reasons

    def figures(self) -> dict[str, float]:
        """Every figure that --require accepts, by name."""
        found = {}
        for metric in self.metrics:
            total = self.encoder.total(metric.name, self.seed)
            if total:
                found[metric.name] = total.value
        for name, compared in self.compared.items():
            found[f"difference.{name}"] = compared.difference.value
            if compared.recovered:
                found[f"recovered.{name}"] = compared.recovered.value
        for device, figures in self.speed.items():
            found |= {f"{device}.{name}": value for name, value in figures.items()}
        return found

    def to_json(self) -> dict[str, Any]:
        """Everything, as JSON types. Clips are in the order in which they were read."""
        systems = {scores.name: scores for scores in (*self.systems, self.originals)}
        return {
            "settings": self.settings,
            "metrics": {metric.name: asdict(metric) for metric in self.metrics},
            "totals": {
                name: {
                    metric.name: _interval(total) | {"clips": len(scores.scored(metric.name)) or len(scores.coded)}
                    for metric in scores.metrics
                    if (total := scores.total(metric.name, self.seed))
                }
                for name, scores in systems.items()
            },
            "encoders": self.about,
            "compared": _comparison(self.compared),
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
            "left_out": self.missing | self.without_values(),
            "problems": [asdict(problem) for problem in self.all_problems],
            "notes": self.notes,
            "speed": self.speed,
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
