"""The report: one page that holds everything, to open from disk without a network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from codec import Codec
from evaluation import table
from evaluation.codes import acoustic_histogram
from evaluation.judges.judge import Metric
from evaluation.report.charts import Chart, Series, counted, histogram
from evaluation.report.spectrograms import audio_url, log_mel, raster_url, spectrogram_url
from evaluation.result import Evaluation
from evaluation.scoring import ClipScores, reconstruct
from evaluation.speech import spread
from system.files import write_whole

HEADLINES = ("mel", "pesq", "wer", "speaker_resemblyzer")  # the figures at the top, of those that were measured
SPAN = 9.0  # natural logarithms a spectrogram shows below its loudest point, 78 dB


@dataclass(frozen=True)
class Version:
    """One way a clip can be heard."""

    name: str
    audio: str
    spectrogram: str
    raster: str  # empty for the original
    heard: str


@dataclass(frozen=True)
class Shown:
    """A clip of the listening part. `scores` rows are a metric's title and a cell for each version."""

    name: str
    speaker: str
    seconds: float
    text: str
    versions: list[Version]
    scores: list[list[str]]


@dataclass(frozen=True)
class Recovered:
    """A bar between the untrained encoder and the other one; shares can lie outside of 0 to 1."""

    title: str
    text: str
    share: float
    low: float
    high: float


def write_report(folder: Path, result: Evaluation, codec: Codec, shown: int, curves: Sequence[Chart] = ()) -> Path:
    """Writes `folder`/index.html, with `shown` clips to listen to and the curves of a training run."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    page = environment.get_template("page.html").render(
        result=result,
        described=table.described_data(result),
        headlines=headlines(result),
        recovered=recovered(result),
        header=table.header(result),
        rows=table.rows(result),
        shown=shown_clips(result, codec, shown),
        all_clips=clip_rows(result),
        histograms=histograms(result),
        curves=curves,
        left_out=result.missing | result.without_values(),
        problems=table.problem_lines(result, limit=50),
        speed=table.speed_lines(result.speed),
    )
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "index.html"
    write_whole(path, page)
    return path


def headlines(result: Evaluation) -> list[tuple[Metric, str, str]]:
    """Metric, value, and a line beneath it."""
    found = []
    for metric in result.metrics:
        total = result.encoder.total(metric.name, result.seed)
        if metric.name not in HEADLINES or total is None:
            continue
        compared = result.compared.get(metric.name)
        beneath = "lower is better" if metric.better == "lower" else "higher is better"
        if compared and compared.recovered:
            beneath = f"{100 * compared.recovered.value:.0f} % recovered"
        found.append((metric, metric.show(total.value), beneath))
    return found


def recovered(result: Evaluation) -> dict[str, list[Recovered]]:
    """By system a bar for each metric that can be recovered. The page opens with the first system's."""
    bars: dict[str, list[Recovered]] = {}
    for name, comparison in result.comparisons.items():
        for compared in comparison.values():
            if compared.recovered:
                share, low, high = compared.recovered
                ends = (share if low is None else low, share if high is None else high)
                text = table.as_share(compared.recovered) + table.fewer(compared.recovered_clips, len(result.speech))
                bar = Recovered(compared.metric.title, text, share, *ends)
                bars.setdefault(name, []).append(bar)
    return bars


def shown_clips(result: Evaluation, codec: Codec, count: int) -> list[Shown]:
    """Clips from the best to the worst by mel distance, evenly spread over that order."""

    def mel(index: int) -> float:
        values = result.encoder.clips[index].values
        return values["mel"].value if "mel" in values else float("inf")

    order = sorted(range(len(result.speech)), key=mel)
    return [_shown(result, codec, order[place]) for place in spread(count, len(order))]


def _shown(result: Evaluation, codec: Codec, index: int) -> Shown:
    clip = result.speech[index]
    original = log_mel(clip.waveform)
    high = float(original.max())
    versions = [
        Version(
            "original",
            audio_url(clip.waveform),
            spectrogram_url(original, high - SPAN, high),
            "",
            result.originals.clips[index].heard,
        )
    ]
    systems = [
        scores for scores in result.systems if scores is not result.untrained and scores.clips[index].codes is not None
    ]
    for scores in systems:
        scored = scores.clips[index]
        assert scored.codes is not None
        audio = reconstruct(codec, scored.codes, clip)
        versions.append(
            Version(
                scores.name,
                audio_url(audio),
                spectrogram_url(log_mel(audio), high - SPAN, high),
                raster_url(scored.codes, result.levels),
                scored.heard,
            )
        )
    rows = [
        [metric.title, *(_cell(metric, scores.clips[index]) for scores in (result.originals, *systems))]
        for metric in result.metrics
        if any(metric.name in scores.clips[index].values for scores in systems)
    ]
    return Shown(clip.name, clip.speaker, clip.seconds, clip.text, versions, rows)


def clip_rows(result: Evaluation) -> tuple[list[Metric], list[list[str]]]:
    """The encoder's scores of every clip that judge it, and the rows."""
    metrics = [metric for metric in result.metrics if metric.better and result.encoder.scored(metric.name)]
    rows = [
        [clip.name, f"{clip.seconds:.1f}", *(_cell(metric, result.encoder.clips[i]) for metric in metrics)]
        for i, clip in enumerate(result.speech)
    ]
    return metrics, rows


def _cell(metric: Metric, scored: ClipScores) -> str:
    return metric.show(scored.values[metric.name].value) if metric.name in scored.values else "–"


def histograms(result: Evaluation) -> list[Chart]:
    """Acoustic codes beside their target, and how the clips spread."""
    charts = [acoustic_chart(result)]
    for name in ("mel", "distinct_codes", "speaker_resemblyzer"):
        metric = next((metric for metric in result.metrics if metric.name == name), None)
        if metric is None:
            continue
        shown = (result.encoder, result.other, result.descent)
        systems = [scores for scores in shown if scores is not None and scores.scored(name)]
        values = {scores.name: [c.values[name].value for c in scores.clips if name in c.values] for scores in systems}
        everything = [value for each in values.values() for value in each]
        low, high = min(everything), max(everything)
        series = [Series(system, counted(each, 12, low, high)) for system, each in values.items()]
        charts.append(histogram(f"{metric.title}, by clip", series, metric.title, metric.definition))
    return charts


def acoustic_chart(result: Evaluation) -> Chart:
    """Shares of the levels, over all acoustic dimensions."""

    def shares(rows: Sequence[Sequence[float]]) -> list[tuple[float, float]]:
        return [(float(i), 100 * sum(column) / len(rows)) for i, column in enumerate(zip(*rows, strict=True))]

    found = acoustic_histogram(result.encoder.coded, result.levels).tolist()
    source = f"{result.target.frames} frames of the release's voices" if result.target.frames else "the default"
    series = [Series(result.encoder.name, shares(found)), Series("target", shares(result.target.histogram.tolist()))]
    return histogram("acoustic codes, %", series, "code", f"All dimensions together; the target is {source}.")
