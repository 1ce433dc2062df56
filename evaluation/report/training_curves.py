"""The curves of a training run, from its metrics.jsonl."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path

from evaluation.report.charts import Chart, Series, lines
from system.command import UserError
from system.untrusted import read_file

LARGEST = 1 << 30  # bytes of a metrics file
POINTS = 400  # at most, per curve, to keep the page small
SHARES = {"share": "shares of the gradient, waveform", "share_latent": "shares of the gradient, latent"}
NOT_SHOWN = ("skipped_clips", "kept_clips", "audio_seconds_per_second", "memory_gb")


class CurvesError(UserError):
    """A metrics file that cannot be read. The message says which line, and what was expected."""


def read_curves(path: Path) -> list[Chart]:
    """One chart for each metric, with training and validation, and one for the gradient shares at the waveform and at
    the latent. If a resumed run logged a step twice, the last value counts. Raises CurvesError."""
    values: dict[str, dict[float, float]] = defaultdict(dict)
    try:
        text = read_file(path, LARGEST).decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CurvesError(f"{path} cannot be read ({error}): --metrics takes a run's metrics.jsonl") from error
    for number, line in enumerate(text.splitlines(), 1):
        try:
            entry = json.loads(line)
            step = float(entry.pop("step"))
            for name, value in entry.items():
                values[name][step] = float(value)
        except (ValueError, KeyError, AttributeError, TypeError, RecursionError, OverflowError) as error:
            raise CurvesError(f"{path}, line {number}: expected a JSON object with a step and numbers") from error
    charts: list[Chart | None] = []
    shares: dict[str, list[Series]] = {kind: [] for kind in SHARES}
    for name in values:
        series = Series(name, _thinned(sorted(values[name].items())))
        kind, _, loss = name.partition("/")
        if kind in SHARES:
            shares[kind].append(Series(loss, series.points))
        elif not name.startswith(("validation/", "gradient_norm/")) and name not in NOT_SHOWN:
            pair = [Series("training", series.points)]
            if f"validation/{name}" in values:
                pair.append(Series("validation", _thinned(sorted(values[f"validation/{name}"].items()))))
            charts.append(lines(name, pair, "step"))
        elif name.startswith("validation/") and name.partition("/")[2] not in values:
            charts.append(lines(name.partition("/")[2], [Series("validation", series.points)], "step"))
    charts += [lines(title, shares[kind], "step") for kind, title in SHARES.items()]
    drawn = [chart for chart in charts if chart]
    return sorted(drawn, key=lambda chart: chart.title != "mel")  # mel first: everybody looks for it first


def _thinned(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    every = -(-len(points) // POINTS)
    return points[::every]
