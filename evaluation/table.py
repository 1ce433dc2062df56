"""The table of totals: its cells, also for the report, and its text for the terminal."""

from __future__ import annotations

from collections.abc import Mapping

from evaluation.judges.judge import Metric
from evaluation.pairs import LIKE_SPOKEN, ON_PAIRS, PairResults
from evaluation.results import Evaluation, Results
from evaluation.statistics import Interval

ARROWS = {"lower": "↓", "higher": "↑", "": ""}
LONGEST_LINE = 180  # characters; wider tables are folded
WITHOUT_INTERVAL = ("untrained", "original")  # their intervals are in the JSON


def header(results: Evaluation) -> list[str]:
    """The headings of the columns."""
    one = len(results.comparisons) == 1
    kinds = ("difference", "recovered") if results.has_recovered else ("difference",)
    compared = [what if one else f"{name}: {what}" for name in results.comparisons for what in kinds]
    systems = [scores.name + fewer(results.sounding(scores), len(scores.clips)) for scores in results.systems]
    return ["metric", "", *systems, results.originals.name, *compared, "clips"]


def rows(results: Evaluation) -> list[tuple[Metric, list[str]]]:
    """Each metric with the cells of its row. Intervals are 95 % intervals; a dash means no value."""
    found = []
    for metric in results.metrics:
        name = metric.name
        cells = [metric.title, ARROWS[metric.better]]
        for scores in (*results.systems, results.originals):
            total = scores.total(name, results.seed)
            if total and scores.name in WITHOUT_INTERVAL:
                total = Interval(total.value, None, None)
            cells.append(with_interval(metric, total))
        for comparison in results.comparisons.values():
            compared = comparison.get(name)
            cells.append(with_interval(metric, compared.difference, signed=True) if compared else "–")
            if not results.has_recovered:
                continue
            of = fewer(compared.recovered_clips, compared.clips) if compared and compared.recovered else ""
            cells.append(as_share(compared.recovered) + of if compared else "–")
        clips = len(results.main.scored(name)) or len(results.main.clips)
        common = results.compared[name].clips if name in results.compared else clips
        cells.append(str(clips) if common == clips else f"{clips}, {common} compared")
        found.append((metric, cells))
    return found


def pair_table(pairs: PairResults, seed: int) -> list[list[str]]:
    """The encoders' scores on pairs: a heading, and a row for each metric."""
    found = [["metric on pairs", "", *(scores.name for scores in pairs.encoders)]]
    for metric in ON_PAIRS:
        totals = [with_interval(metric, scores.total(metric.name, seed, pairs.voices)) for scores in pairs.encoders]
        found.append([metric.title, ARROWS[metric.better], *totals])
    return found


def expected_of_spoken(pairs: PairResults) -> str:
    """What the metrics that compare codes with the spoken ones give for other spoken codes."""
    return ", ".join(f"{metric.title} {metric.show(pairs.expected[metric.name])}" for metric in LIKE_SPOKEN)


def fewer(clips: int, of: int) -> str:
    """`, 3 clips` if these are fewer than `of`, else an empty text."""
    return f", {clips} {'clip' if clips == 1 else 'clips'}" if clips < of else ""


def with_interval(metric: Metric, interval: Interval | None, signed: bool = False) -> str:
    """`1.15 [1.10, 1.21]`, in the metric's unit; a dash for None."""
    if interval is None:
        return "–"
    text = metric.show(interval.value)
    if signed and interval.value > 0 and float(text.split()[0]):
        text = "+" + text
    if interval.low is None or interval.high is None:
        return text
    return f"{text} [{_bare(metric, interval.low)}, {_bare(metric, interval.high)}]"


def as_share(interval: Interval | None) -> str:
    """A recovered share, `96 % [93, 98]`; a dash for None."""
    if interval is None:
        return "–"
    value, low, high = (None if part is None else round(100 * part) for part in interval)  # integers have no "-0"
    return f"{value} %" if low is None or high is None else f"{value} % [{low}, {high}]"


def _bare(metric: Metric, value: float) -> str:
    return metric.show(value).removesuffix(" %")


def as_text(results: Results) -> str:
    """All results but the speed, for the terminal. Repeating an evaluation gives the same text."""
    lines = [f"{results.settings['encoder']}: {described_data(results)}", ""]
    lines += folded([header(results), *(row for _, row in rows(results))])
    if results.pairs:
        lines += ["", f"On {results.pairs.described()}:", "", *folded(pair_table(results.pairs, results.seed))]
        lines += ["", f"Of the spoken codes themselves: {expected_of_spoken(results.pairs)}."]
    over = results.settings["bootstrap_over"]
    lines += ["", f"In brackets: 95 % intervals, bootstrap over the {over}. Counts over all clips at once have none."]
    if results.comparisons:
        lines.append(
            "Difference: encoder minus against, paired by clip. Recovered: 0 % is an untrained encoder whose layers "
            "mirror the decoder's,\n100 % is the encoder of --against; a dash means that these two do not differ "
            "significantly."
        )
    lines += [f"{metric.title}: {metric.definition}" for metric in results.metrics if metric.name == "mel"]
    lines.append(
        f"Resampler: {results.settings['resampler']}; seed {results.settings['seed']}; {described_versions(results)}"
    )
    if results.presets:
        among = results.presets.among_themselves
        lines.append(
            f"Preset voices: embedding norm {results.presets.norm:.2f}"
            + (f", cosine among themselves {among:.3f}" if among is not None else "")
        )
    return "\n".join([*lines, *remarks(results)])


def remarks(results: Evaluation) -> list[str]:
    """Lines about what was left out, which clips lack scores, and notes."""
    lines = [f"left out: {name}: {reason}" for name, reason in (results.missing | results.without_values()).items()]
    lines += problem_lines(results)
    lines += [f"note: {note}" for note in results.notes[:5]]
    if len(results.notes) > 5:
        lines.append(f"note: {len(results.notes) - 5} more in the JSON")
    return lines


def folded(table: list[list[str]], named: int = 2) -> list[str]:
    """The lines of a table. If they would be too long, the last columns follow below, with the first `named` columns
    repeated."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    parts: list[list[int]] = [[]]
    for column in range(named, len(widths)):
        taken = sum(widths[each] + 2 for each in (*range(named), *parts[-1], column)) - 2
        if taken > LONGEST_LINE and parts[-1]:
            parts.append([])
        parts[-1].append(column)
    lines = []
    for part in parts:
        columns = (*range(named), *part)
        lines += ["", *("  ".join(row[each].ljust(widths[each]) for each in columns).rstrip() for row in table)]
    return lines[1:]


def described_data(results: Results) -> str:
    """How much speech was measured, and in which arithmetic."""
    seconds = sum(clip.seconds for clip in results.speech)
    speakers = len({clip.speaker for clip in results.speech if clip.speaker})
    voices = f" of {speakers} speakers" if speakers else ""
    return f"{len(results.speech)} clips{voices}, {seconds / 60:.1f} minutes, {results.settings['arithmetic']}"


def described_versions(results: Evaluation) -> str:
    return ", ".join(f"{name} {version}" for name, version in results.settings["versions"].items())


def problem_lines(results: Evaluation, limit: int = 8) -> list[str]:
    """A line for each clip that is missing scores. Metrics that no clip has are not repeated here: `without_values`
    lists them."""
    empty = results.without_values()
    grouped: dict[tuple[str, str, str], list[str]] = {}
    for problem in results.all_problems:
        if problem.what not in empty:
            grouped.setdefault((problem.clip, problem.encoder, problem.reason), []).append(problem.what)
    lines = [
        f"not scored: {clip}: " + (f"{', '.join(names)} of {encoder}: " if encoder else "") + reason
        for (clip, encoder, reason), names in grouped.items()
    ]
    return lines[:limit] + ([f"not scored: {len(lines) - limit} more, in the JSON"] if len(lines) > limit else [])


def speed_lines(speed: Mapping[str, Mapping[str, float]]) -> list[str]:
    """A line for each device: latency and real-time factors."""
    return [
        f"{device}: a 10 s prompt takes {1000 * figures['latency']:.0f} ms "
        f"({1000 * figures['latency_min']:.0f} to {1000 * figures['latency_max']:.0f}); real-time factor "
        f"{figures['encode_rtf']:.4f} encoding, {figures['decode_rtf']:.4f} decoding"
        for device, figures in speed.items()
    ]
