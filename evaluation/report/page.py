"""The report: one HTML file with all its audio and pictures, which opens from disk without a network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from torch import Tensor

from codec import Codec
from evaluation import table
from evaluation.codes import acoustic_histogram
from evaluation.judges.judge import Metric
from evaluation.report.charts import Chart, Series, counted, histogram
from evaluation.report.spectrograms import audio_url, log_mel, raster_url, spectrogram_url
from evaluation.results import Evaluation, Results
from evaluation.scoring import ORIGINAL, ClipScores, Scores, reconstruct
from evaluation.speech import spread
from system.files import write_whole

HEADLINES = ("mel", "pesq", "wer", "speaker_resemblyzer")  # shown at the top, if they were measured
# settings that a page lists: those that all pages have, and an encoder's
ABOUT_JUDGES = ("without", "machine", "resampler", "whisper", "language", "speaker_model", "seed", "bootstrap_draws")
FACTS = ("release", "encoders", "data", "clips", *ABOUT_JUDGES)
SPAN = 9.0  # a spectrogram's range in natural logarithms, down from the original's loudest point: 78 dB


@dataclass(frozen=True)
class Tile:
    """A figure at the top of the page, with the line beneath it."""

    title: str
    value: str
    beneath: str


@dataclass(frozen=True)
class Version:
    """The original or one system's reconstruction of a clip. All but the name and transcript are data URLs."""

    name: str
    audio: str
    spectrogram: str
    raster: str  # of codes; empty for the original
    transcript: str  # by the speech recognizer, empty without it


@dataclass(frozen=True)
class Shown:
    """A clip to listen to. A row of `scores` is a metric's title and a cell for each version."""

    name: str
    speaker: str
    seconds: float
    text: str
    versions: list[Version]
    scores: list[list[str]]


@dataclass(frozen=True)
class Recovered:
    """A bar for a recovered share: the untrained encoder is 0, the other one 1. A share can lie outside of 0 to 1."""

    title: str
    text: str
    share: float
    low: float
    high: float


def write_report(folder: Path, results: Results, codec: Codec, shown: int, curves: Sequence[Chart] = ()) -> Path:
    """Writes `folder`/index.html, with `shown` clips to listen to and a training run's curves. Returns its path."""
    return write_page(
        folder,
        "encoder.html",
        results,
        tiles=headlines(results, HEADLINES),
        shown=shown_clips(results, codec, shown),
        facts=FACTS,
        described=table.described_data(results),
        recovered=recovered(results),
        histograms=histograms(results),
        curves=curves,
        pairs=table.pair_table(results.pairs, results.seed) if results.pairs else [],
        about_pairs=results.pairs.described() if results.pairs else "",
        expected=table.expected_of_spoken(results.pairs) if results.pairs else "",
        speed=table.speed_lines(results.speed),
    )


def write_page(
    folder: Path,
    template: str,
    results: Evaluation,
    *,
    tiles: Sequence[Tile],
    shown: Sequence[Shown],
    facts: Sequence[str],
    **more: Any,
) -> Path:
    """Writes `folder`/index.html from a template that extends base.html. `facts` names the settings to list. `more` is
    what only this template needs. Returns the page's path."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    page = environment.get_template(template).render(
        results=results,
        tiles=tiles,
        header=table.header(results),
        rows=table.rows(results),
        shown=shown,
        all_clips=clip_rows(results),
        left_out=results.missing | results.without_values(),
        problems=table.problem_lines(results, limit=50),
        facts=facts,
        **more,
    )
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "index.html"
    write_whole(path, page)
    return path


def headlines(results: Evaluation, names: Sequence[str]) -> list[Tile]:
    """The metrics of `names` that the main system was measured by."""
    found = []
    for metric in results.metrics:
        total = results.main.total(metric.name, results.seed)
        if metric.name not in names or total is None:
            continue
        compared = results.compared.get(metric.name)
        beneath = "lower is better" if metric.better == "lower" else "higher is better"
        if compared and compared.recovered:
            beneath = f"{100 * compared.recovered.value:.0f} % recovered"
        found.append(Tile(metric.title, metric.show(total.value), beneath))
    return found


def recovered(results: Results) -> dict[str, list[Recovered]]:
    """By system the bars of all metrics with a recovered share. On the page, the first system's are unfolded."""
    bars: dict[str, list[Recovered]] = {}
    for name, comparison in results.comparisons.items():
        for compared in comparison.values():
            if compared.recovered:
                share, low, high = compared.recovered
                ends = (share if low is None else low, share if high is None else high)
                text = table.as_share(compared.recovered) + table.fewer(compared.recovered_clips, len(results.speech))
                bar = Recovered(compared.metric.title, text, share, *ends)
                bars.setdefault(name, []).append(bar)
    return bars


def shown_clips(results: Results, codec: Codec, count: int) -> list[Shown]:
    """`count` clips, evenly spread over all clips ordered by mel distance, the best first."""

    def mel(index: int) -> float:
        values = results.main.clips[index].values
        return values["mel"].value if "mel" in values else float("inf")

    order = sorted(range(len(results.speech)), key=mel)
    return [_shown(results, codec, order[rank]) for rank in spread(count, len(order))]


def _shown(results: Results, codec: Codec, index: int) -> Shown:
    clip = results.speech[index]
    original = results.originals.clips[index]
    versions = [sounding_version(ORIGINAL, clip.waveform, clip.waveform, original.transcript)]
    shown = [scores for scores in results.systems if scores is not results.untrained]
    systems = [scores for scores in shown if scores.clips[index].codes is not None]
    for scores in systems:
        scored = scores.clips[index]
        assert scored.codes is not None
        audio = reconstruct(codec, scored.codes, clip)
        raster = raster_url(scored.codes, results.levels)
        versions.append(sounding_version(scores.name, audio, clip.waveform, scored.transcript, raster))
    return Shown(clip.name, clip.speaker, clip.seconds, clip.text, versions, score_rows(results, index, systems))


def sounding_version(name: str, audio: Tensor, original: Tensor, transcript: str, raster: str = "") -> Version:
    """A waveform [T] to listen to. The spectrogram's colours are relative to the original's loudest point."""
    high = float(log_mel(original).max())
    return Version(name, audio_url(audio), spectrogram_url(log_mel(audio), high - SPAN, high), raster, transcript)


def score_rows(results: Evaluation, index: int, systems: Sequence[Scores]) -> list[list[str]]:
    """The scores of a clip's original and of its versions: a row for each metric that a version has."""
    return [
        [metric.title, *(_cell(metric, scores.clips[index]) for scores in (results.originals, *systems))]
        for metric in results.metrics
        if any(metric.name in scores.clips[index].values for scores in systems)
    ]


def clip_rows(results: Evaluation) -> tuple[list[Metric], list[list[str]]]:
    """The main system's scores of every clip: the metrics that have a better direction, and a row for each clip."""
    metrics = [metric for metric in results.metrics if metric.better and results.main.scored(metric.name)]
    rows = [
        [clip.name, f"{clip.seconds:.1f}", *(_cell(metric, results.main.clips[i]) for metric in metrics)]
        for i, clip in enumerate(results.speech)
    ]
    return metrics, rows


def _cell(metric: Metric, scored: ClipScores) -> str:
    return metric.show(scored.values[metric.name].value) if metric.name in scored.values else "–"


def histograms(results: Results) -> list[Chart]:
    """Histograms of the acoustic codes beside their target, and of a few metrics over the clips."""
    charts = [acoustic_chart(results)]
    for name in ("mel", "distinct_codes", "speaker_resemblyzer"):
        metric = next((metric for metric in results.metrics if metric.name == name), None)
        if metric is None:
            continue
        compared = [results.main, *([results.other] if results.other else []), *results.extra]
        systems = [scores for scores in compared if scores.scored(name)]
        values = {scores.name: [c.values[name].value for c in scores.clips if name in c.values] for scores in systems}
        everything = [value for each in values.values() for value in each]
        low, high = min(everything), max(everything)
        series = [Series(system, counted(each, 12, low, high)) for system, each in values.items()]
        charts.append(histogram(f"{metric.title}, by clip", series, metric.title, metric.definition))
    return charts


def acoustic_chart(results: Results) -> Chart:
    """The share of each level over all acoustic dimensions, beside the target."""

    def shares(rows: Sequence[Sequence[float]]) -> list[tuple[float, float]]:
        return [(float(i), 100 * sum(column) / len(rows)) for i, column in enumerate(zip(*rows, strict=True))]

    found = acoustic_histogram(results.main.coded, results.levels).tolist()
    source = f"{results.target.frames} frames of the release's voices" if results.target.frames else "the default"
    series = [Series(results.main.name, shares(found)), Series("target", shares(results.target.histogram.tolist()))]
    return histogram("acoustic codes, %", series, "code", f"All dimensions together. The target is {source}.")
