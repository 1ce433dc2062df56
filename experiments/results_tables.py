"""What are the figures of an evaluation? Prints the Markdown tables of RESULTS.md from `evaluate_encoder.py --json`.

    python -m experiments.results_tables figures.json [more.json ...]
    python -m experiments.results_tables figures.json --curve 'step_*' recipe    # adds a curve

The curve shows what each encoder of a run recovered, over the hours of audio it was trained on. --curve takes names
of encoders or patterns. The hours are from the encoder's file (`audio_seconds`), or else its step times
--seconds-a-step. The other tables leave these encoders out, except the first encoder of the evaluation.
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

GOAL = 0.95  # of the difference between the untrained and the other encoder, to be recovered by every metric
ENDS = ("untrained", "against", "original")
ALIKE = {metric.name for metric in AGREEMENT}  # similarity of two encoders' codes: not a measure of quality


class ResultsError(UserError):
    """A file or a name that no table can be made from. The message says which, and what is expected."""


class Figures:
    """One evaluation, read from its JSON file. Raises ResultsError if the file has another content."""

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
        """The encoders and, if it was measured, `descent`: codes found without an encoder."""
        return [name for name in self.totals if name not in ENDS]

    def heading(self, system: str) -> str:
        """The system's name, and the number of clips it has scores of if these are not all."""
        return system + fewer(self.scored(system), len(self.found["clips"]))

    def scored(self, system: str) -> int:
        """How many clips the system has scores of. All for the originals, which only some judges score."""
        clips = self.found["clips"]
        return len(clips) if system == "original" else sum(bool(clip["scores"].get(system)) for clip in clips)

    def total(self, system: str, metric: Metric) -> Interval | None:
        """The mean over the clips; None if it was not measured."""
        total = self.totals.get(system, {}).get(metric.name)
        return total and Interval(total["value"], total["low"], total["high"])

    def compared(self, system: str, metric: Metric, what: str) -> Interval | None:
        """The interval of the `difference` or of what is `recovered`; None if there is none."""
        interval = self.comparisons.get(system, {}).get(metric.name, {}).get(what)
        return interval and Interval(**interval)

    def fewer(self, system: str, metric: Metric) -> str:
        """The number of clips of a total, as `, N clips`; empty if it is over all that the system has scores of."""
        total = self.totals.get(system, {}).get(metric.name)
        return fewer(total["clips"], self.scored(system)) if total else ""

    def fewer_compared(self, system: str, metric: Metric, what: str) -> str:
        """The same for a `difference` or for what is `recovered`."""
        compared = self.comparisons.get(system, {}).get(metric.name, {})
        if not compared.get(what):
            return ""
        clips = compared["clips"] if what == "difference" else compared["recovered_clips"]
        return fewer(clips, self.scored(system))

    def hours(self, encoder: str, seconds_a_step: float) -> float:
        """Hours of audio that the encoder was trained on. Raises ResultsError if they are not known."""
        about = self.encoders.get(encoder, {})
        seconds = about.get("audio_seconds")
        if seconds is None and seconds_a_step and "step" in about:
            seconds = about["step"] * seconds_a_step
        if seconds is None:
            raise ResultsError(
                f"--curve: the file of {encoder} does not say on how much audio it was trained: give --seconds-a-step"
            )
        return float(seconds) / 3600


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="written by evaluate_encoder.py --json")
    parser.add_argument(
        "--curve", nargs="+", default=[], metavar="NAME", help="encoders of one run, such as 'step_*'; adds the curve"
    )
    parser.add_argument(
        "--seconds-a-step",
        type=float,
        default=0.0,
        help="audio in a step of that run, for encoders whose files do not say it",
    )
    arguments = parser.parse_args(argv)

    def run() -> int:
        print("\n\n".join(described(path, arguments.curve, arguments.seconds_a_step) for path in arguments.files))
        return 0

    return exit_status(run, "nothing was written", "no table was printed")


def described(path: Path, curve: Sequence[str], seconds_a_step: float) -> str:
    """All tables and lines about one file."""
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
    over = settings.get("bootstrap_over", "clips")  # older files do not have it
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
    """Each system's difference from the other encoder, and what it recovered."""
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
    """A sentence: how many metrics of the first encoder's quality reach the goal, and which is furthest from it."""
    shares = {
        metric: share
        for metric in figures.metrics
        if metric.name not in ALIKE and (share := figures.compared(figures.first, metric, "recovered"))
    }
    if not shares:
        return "No share can be computed: no metric separates the untrained encoder from the other one."
    worst = min(shares, key=lambda metric: shares[metric].value)
    reached = sum(share.value >= GOAL for share in shares.values())
    without_share = [
        metric.title
        for metric in figures.metrics
        if metric.better and metric.name not in ALIKE and metric not in shares and figures.total("against", metric)
    ]
    text = (
        f"{figures.first}: {reached} of {len(shares)} metrics at {100 * GOAL:.0f} % or more; furthest from it is "
        f"{worst.title}: recovered {share_cell(figures, figures.first, worst)}."
    )
    if without_share:
        text += (
            f" Without a share, because these do not separate the two or none is defined: {', '.join(without_share)}."
        )
    return text


def curve_table(figures: Figures, hours: Mapping[str, float]) -> str:
    """What each encoder of a run has recovered, over the hours of audio it was trained on."""
    rows = []
    for metric in figures.metrics:
        cells = [share_cell(figures, name, metric) for name in hours]
        if set(cells) != {"–"}:
            rows.append([metric_cell(metric), *cells])
    return markdown(["recovered after", *(f"{each:.3g} h" for each in hours.values())], rows)


def about_encoders(figures: Figures) -> str:
    """Each encoder's file, step, and hours of training audio."""
    rows = []
    for name, about in figures.encoders.items():
        step, seconds = about.get("step"), about.get("audio_seconds")
        hours = "–" if seconds is None else f"{seconds / 3600:.3g} h"
        rows.append([name, f"`{about['file']}`", "–" if step is None else f"{step:.0f}", hours])
    return markdown(["encoder", "file", "step", "trained on"], rows)


def beside_tables(figures: Figures) -> list[str]:
    """A line about what was left out and one about the speed, each only if there is something to say."""
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
    """A table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


if __name__ == "__main__":
    sys.exit(main())
