"""Everything that one evaluation of cloning measured: as JSON, and as text for the terminal."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evaluation.cloning.speaking import Spoken
from evaluation.results import Evaluation
from evaluation.scoring import Scores
from evaluation.table import described_versions, folded, header, remarks, rows


@dataclass(kw_only=True)
class CloningResults(Evaluation):
    """Scores of systems that spoke the same prompts. The first system is the main one; the comparisons are the other
    systems' differences from it. `speech` has a row for each prompt, `originals` the scores of the reference clips."""

    scores: list[Scores]
    spoken: dict[str, Spoken]  # by system
    folder: Path  # of everything that is kept

    @property
    def systems(self) -> list[Scores]:
        return self.scores

    def sounding(self, scores: Scores) -> int:
        if scores is self.originals:
            return sum(bool(clip.seconds) for clip in self.speech)
        return sum(bool(each and not each.failed) for each in self.spoken[scores.name].utterances)

    @property
    def gone(self) -> dict[str, str]:
        """Systems whose server was gone before it had spoken all texts -> a sentence about it."""
        return {
            name: f"{name}: the server was gone after {spoken.asked} of {len(self.speech)} texts: {spoken.gone}"
            for name, spoken in self.spoken.items()
            if spoken.gone
        }

    def figures(self) -> dict[str, float]:
        """The main system's by metric, those of the others by `system.metric`."""
        found = super().figures()
        for scores in self.scores[1:]:
            for metric in scores.metrics:
                total = scores.total(metric.name, self.seed)
                if total:
                    found[f"{scores.name}.{metric.name}"] = total.value
        return found

    def to_json(self) -> dict[str, Any]:
        return super().to_json() | {
            "gone": self.gone,
            "spoken": {
                name: {
                    clip.name: {"failed": each.failed}
                    if each.timing is None
                    else {
                        "wav": str(each.wav.relative_to(self.folder)),
                        "seconds": each.timing.speech,
                        "first_sound": each.timing.first,
                        "took": each.timing.took,
                    }
                    for clip, each in zip(self.speech, spoken.utterances, strict=True)
                    if each is not None
                }
                for name, spoken in self.spoken.items()
            },
        }


def described(results: CloningResults) -> str:
    """How much was spoken."""
    speakers = len({clip.speaker for clip in results.speech if clip.speaker})
    voices = f" in the voices of {speakers} speakers" if speakers else ""
    return f"{len(results.speech)} texts{voices}, spoken one at a time"


def as_text(results: CloningResults) -> str:
    """All results for the terminal."""
    lines = [f"{', '.join(results.settings['servers'])}: {described(results)}", ""]
    lines += folded([header(results), *(row for _, row in rows(results))])
    over = results.settings["bootstrap_over"]
    lines += ["", f"In brackets: 95 % intervals, bootstrap over the {over}. clip: the reference clips themselves."]
    if results.comparisons:
        lines.append(f"Difference: from {results.main.name}, paired by text.")
    lines += [f"{metric.title}: {metric.definition}" for metric in results.metrics]
    lines.append(f"seed {results.settings['seed']}; {described_versions(results)}")
    return "\n".join([*lines, *remarks(results)])
