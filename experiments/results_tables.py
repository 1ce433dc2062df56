"""The tables of RESULTS.md, in Markdown, from the files that `evaluate_encoder.py --json` wrote.

    python -m experiments.results_tables figures.json [more.json ...]
    python -m experiments.results_tables figures.json --curve 'step_*' recipe    # and a curve over hours

The curve's encoders are named or matched; how much speech they had heard stands in their files (`audio_seconds`), or is
their step times --seconds-a-step. They are left out of the other tables, but for the first encoder.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from evaluation.codes import AGREEMENT
from evaluation.judges.judge import Metric
from evaluation.statistics import Interval
from evaluation.table import ARROWS, as_share, fewer, speed_lines, with_interval
from system.command import UserError, exit_status

GOAL = 0.95  # of the other encoder's quality, recovered by every metric
ENDS = ("untrained", "against", "original")
ALIKE = {metric.name for metric in AGREEMENT}  # how alike two encoders are is not how good one is


class ResultsError(UserError):
    """Figures that cannot be made into tables. The message says which, and what is expected."""


class Figures:
    """One evaluation, as it was written."""

    def __init__(self, path: Path):
        try:
            self.found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            self.metrics = [Metric(**each) for each in self.found["metrics"].values()]
            self.encoders: dict[str, dict[str, Any]] = self.found["encoders"]
            self.comparisons: dict[str, Any] = self.found["comparisons"]
            self.totals: dict[str, Any] = self.found["totals"]
        except (UnicodeDecodeError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ResultsError(f"{path}: expected what evaluate_encoder.py --json writes ({error!r})") from error

    @property
    def first(self) -> str:
        """The encoder that the evaluation is about."""
        return next(iter(self.totals))

    @property
    def systems(self) -> list[str]:
        """Encoders, and the descent without one."""
        return [name for name in self.totals if name not in ENDS]

    def heading(self, system: str) -> str:
        """Its name, and how many clips it has scores of where these are not all."""
        return system + fewer(self.scored(system), len(self.found["clips"]))

    def scored(self, system: str) -> int:
        """How many clips it has scores of; an original is there for every clip, and only some judges score it."""
        clips = self.found["clips"]
        return len(clips) if system == "original" else sum(bool(clip["scores"].get(system)) for clip in clips)

    def total(self, system: str, metric: Metric) -> Interval | None:
        total = self.totals.get(system, {}).get(metric.name)
        return total and Interval(total["value"], total["low"], total["high"])

    def compared(self, system: str, metric: Metric, what: str) -> Interval | None:
        """The `difference` or what is `recovered`."""
        interval = self.comparisons.get(system, {}).get(metric.name, {}).get(what)
        return interval and Interval(**interval)

    def fewer(self, system: str, metric: Metric) -> str:
        """How many clips a total is over, where these are not all that the system has scores of."""
        total = self.totals.get(system, {}).get(metric.name)
        return fewer(total["clips"], self.scored(system)) if total else ""

    def fewer_compared(self, system: str, metric: Metric, what: str) -> str:
        """The same of a `difference` or of what is `recovered`."""
        compared = self.comparisons.get(system, {}).get(metric.name, {})
        if not compared.get(what):
            return ""
        clips = compared["clips"] if what == "difference" else compared["recovered_clips"]
        return fewer(clips, self.scored(system))

    def hours(self, encoder: str, seconds_a_step: float) -> float:
        """Of audio that an encoder has heard. Raises ResultsError where nobody says so."""
        about = self.encoders.get(encoder, {})
        seconds = about.get("audio_seconds")
        if seconds is None and seconds_a_step and "step" in about:
            seconds = about["step"] * seconds_a_step
        if seconds is None:
            raise ResultsError(f"--curve: the file of {encoder} does not say how much it heard: give --seconds-a-step")
        return float(seconds) / 3600


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="written by evaluate_encoder.py --json")
    parser.add_argument("--curve", nargs="+", default=[], metavar="NAME", help="encoders of one run, such as 'step_*'")
    parser.add_argument("--seconds-a-step", type=float, default=0.0, help="audio in a step of that run")
    arguments = parser.parse_args(argv)

    def run() -> int:
        print("\n\n".join(described(path, arguments.curve, arguments.seconds_a_step) for path in arguments.files))
        return 0

    return exit_status(run, "nothing was written", "no table was printed")


def described(path: Path, curve: Sequence[str], seconds_a_step: float) -> str:
    """Everything about one file."""
    figures = Figures(path)
    on_curve = [name for name in figures.encoders if any(fnmatchcase(name, each) for each in curve)]
    if curve and not on_curve:
        raise ResultsError(f"--curve: {path} has none of these: it has {', '.join(figures.encoders)}")
    shown = [name for name in figures.systems if name not in on_curve or name == figures.first]
    parts = [about_data(figures), totals_table(figures, shown)]
    if figures.comparisons:
        parts += [comparison_table(figures, shown), furthest(figures)]
    if on_curve:
        hours = {name: figures.hours(name, seconds_a_step) for name in on_curve}
        parts.append(curve_table(figures, dict(sorted(hours.items(), key=lambda item: item[1]))))
    parts.append(about_encoders(figures))
    parts += beside_tables(figures)
    return "\n\n".join(parts)


def about_data(figures: Figures) -> str:
    clips, settings = figures.found["clips"], figures.found["settings"]
    minutes = sum(clip["seconds"] for clip in clips) / 60
    speakers = len({clip["speaker"] for clip in clips if clip["speaker"]})
    voices = f" of {speakers} speakers" if speakers else ""
    versions = ", ".join(f"{name} {version}" for name, version in settings["versions"].items())
    over = settings.get("bootstrap_over", "clips")  # files of before say nothing
    return (
        f"{len(clips)} clips{voices}, {minutes:.1f} minutes, of {', '.join(settings['data'])}; "
        f"{settings['arithmetic']}, {settings['machine']}; seed {settings['seed']}; Whisper {settings['whisper']}; "
        f"{versions}. In brackets 95 % intervals, bootstrap over the {over}."
    )


def totals_table(figures: Figures, systems: Sequence[str]) -> str:
    columns = [name for name in (*systems, *ENDS) if name in figures.totals]
    rows = [
        [metric_cell(metric), *(total_cell(figures, name, metric) for name in columns)] for metric in figures.metrics
    ]
    return markdown(["metric", *map(figures.heading, columns)], rows)


def comparison_table(figures: Figures, systems: Sequence[str]) -> str:
    """Differences from the other encoder, and what is recovered of it."""
    columns = [name for name in systems if name in figures.comparisons]
    rows = []
    for metric in figures.metrics:
        cells = []
        for name in columns:
            difference = with_interval(metric, figures.compared(name, metric, "difference"), signed=True)
            cells.append(difference + figures.fewer_compared(name, metric, "difference"))
            cells.append(share_cell(figures, name, metric))
        if set(cells) != {"–"}:
            rows.append([metric_cell(metric), *cells])
    return markdown(["metric", *(f"{name}, {what}" for name in columns for what in ("difference", "recovered"))], rows)


def furthest(figures: Figures) -> str:
    """Which metric is furthest from the goal, of those that say how good the first encoder is."""
    shares = {
        metric: share
        for metric in figures.metrics
        if metric.name not in ALIKE and (share := figures.compared(figures.first, metric, "recovered"))
    }
    if not shares:
        return "Nothing can be recovered: the untrained encoder and the other one cannot be told apart."
    worst = min(shares, key=lambda metric: shares[metric].value)
    reached = sum(share.value >= GOAL for share in shares.values())
    untold = [
        metric.title
        for metric in figures.metrics
        if metric.better and metric.name not in ALIKE and metric not in shares and figures.total("against", metric)
    ]
    text = (
        f"{figures.first}: {reached} of {len(shares)} metrics at {100 * GOAL:.0f} % or more; furthest from it is "
        f"{worst.title}: recovered {share_cell(figures, figures.first, worst)}."
    )
    if untold:
        text += f" Without a share, because the ends are not told apart or none is defined: {', '.join(untold)}."
    return text


def curve_table(figures: Figures, hours: Mapping[str, float]) -> str:
    """What each encoder of a run has recovered, over the hours of audio it has heard."""
    rows = []
    for metric in figures.metrics:
        cells = [share_cell(figures, name, metric) for name in hours]
        if set(cells) != {"–"}:
            rows.append([metric_cell(metric), *cells])
    return markdown(["recovered after", *(f"{each:.3g} h" for each in hours.values())], rows)


def about_encoders(figures: Figures) -> str:
    """Where each encoder is from."""
    rows = []
    for name, about in figures.encoders.items():
        step, seconds = about.get("step"), about.get("audio_seconds")
        heard = "–" if seconds is None else f"{seconds / 3600:.3g} h"
        rows.append([name, f"`{about['file']}`", "–" if step is None else f"{step:.0f}", heard])
    return markdown(["encoder", "file", "step", "heard"], rows)


def beside_tables(figures: Figures) -> list[str]:
    """A line for what was left out, and one for how fast it is, where there is something to say."""
    left_out = "; ".join(f"{name} ({reason})" for name, reason in figures.found["left_out"].items())
    speed = "; ".join(speed_lines(figures.found["speed"]))
    return [f"{what}: {line}." for what, line in (("Left out", left_out), ("Speed", speed)) if line]


def total_cell(figures: Figures, system: str, metric: Metric) -> str:
    return with_interval(metric, figures.total(system, metric)) + figures.fewer(system, metric)


def share_cell(figures: Figures, system: str, metric: Metric) -> str:
    return as_share(figures.compared(system, metric, "recovered")) + figures.fewer_compared(system, metric, "recovered")


def metric_cell(metric: Metric) -> str:
    return f"{metric.title} {ARROWS[metric.better]}".strip()


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


if __name__ == "__main__":
    sys.exit(main())
