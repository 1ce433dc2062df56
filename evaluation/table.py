"""The totals as a table: cells for the report, lines for the terminal."""

from __future__ import annotations

from collections.abc import Mapping

from evaluation.judges.judge import Metric
from evaluation.result import Evaluation
from evaluation.scoring import Scores
from evaluation.statistics import Interval

ARROWS = {"lower": "↓", "higher": "↑", "": ""}
LONGEST_LINE = 180  # characters, of the table on the terminal
WITHOUT_INTERVAL = ("untrained", "original")  # the ends of the scale: theirs are in the JSON


def header(result: Evaluation) -> list[str]:
    """The table's columns."""
    one = len(result.comparisons) == 1
    compared = [
        what if one else f"{name}: {what}" for name in result.comparisons for what in ("difference", "recovered")
    ]
    return ["metric", "", *map(_heading, result.systems), result.originals.name, *compared, "clips"]


def _heading(scores: Scores) -> str:
    """A system's name, and how many clips it has scores of where these are not all."""
    return scores.name + fewer(len(scores.coded), len(scores.clips))


def rows(result: Evaluation) -> list[tuple[Metric, list[str]]]:
    """A metric and the cells of its row. Intervals hold 95 %; a dash stands where there is nothing to say."""
    found = []
    for metric in result.metrics:
        name = metric.name
        cells = [metric.title, ARROWS[metric.better]]
        for scores in (*result.systems, result.originals):
            total = scores.total(name, result.seed)
            if total and scores.name in WITHOUT_INTERVAL:
                total = Interval(total.value, None, None)
            cells.append(with_interval(metric, total))
        for comparison in result.comparisons.values():
            compared = comparison.get(name)
            cells.append(with_interval(metric, compared.difference, signed=True) if compared else "–")
            of = fewer(compared.recovered_clips, compared.clips) if compared and compared.recovered else ""
            cells.append(as_share(compared.recovered) + of if compared else "–")
        clips = len(result.encoder.scored(name)) or len(result.encoder.clips)
        common = result.compared[name].clips if name in result.compared else clips
        cells.append(str(clips) if common == clips else f"{clips}, {common} compared")
        found.append((metric, cells))
    return found


def fewer(clips: int, of: int) -> str:
    """`, 3 clips` where these are not all, else nothing."""
    return f", {clips} {'clip' if clips == 1 else 'clips'}" if clips < of else ""


def with_interval(metric: Metric, interval: Interval | None, signed: bool = False) -> str:
    """`1.15 [1.10, 1.21]`, in the metric's unit."""
    if interval is None:
        return "–"
    text = metric.show(interval.value)
    if signed and interval.value > 0 and float(text.split()[0]):
        text = "+" + text
    if interval.low is None or interval.high is None:
        return text
    return f"{text} [{_bare(metric, interval.low)}, {_bare(metric, interval.high)}]"


def as_share(interval: Interval | None) -> str:
    """A recovered share in percent."""
    if interval is None:
        return "–"
    value, low, high = (None if part is None else round(100 * part) for part in interval)  # whole numbers have no "-0"
    return f"{value} %" if low is None or high is None else f"{value} % [{low}, {high}]"


def _bare(metric: Metric, value: float) -> str:
    return metric.show(value).removesuffix(" %")


def as_text(result: Evaluation) -> str:
    """The whole finding for a terminal. Two evaluations of the same give the same text."""
    lines = [f"{result.settings['encoder']}: {described_data(result)}", ""]
    lines += folded([header(result), *(row for _, row in rows(result))])
    over = result.settings["bootstrap_over"]
    lines += ["", f"In brackets 95 % intervals: bootstrap over the {over}; counts over all clips at once have none."]
    if result.comparisons:
        lines.append(
            "Difference: encoder minus against, paired by clip. Recovered: 0 % is an untrained encoder of mirrored "
            "layers, 100 % the\none against; a dash where these two cannot be told apart."
        )
    lines += [f"{metric.title}: {metric.definition}" for metric in result.metrics if metric.name == "mel"]
    lines.append(
        f"Resampler: {result.settings['resampler']}; seed {result.settings['seed']}; {described_versions(result)}"
    )
    if result.presets:
        among = result.presets.among_themselves
        lines.append(
            f"Preset voices: embedding norm {result.presets.norm:.2f}"
            + (f", cosine among themselves {among:.3f}" if among is not None else "")
        )
    lines += [f"left out: {name}: {reason}" for name, reason in (result.missing | result.without_values()).items()]
    lines += problem_lines(result)
    lines += [f"note: {note}" for note in result.notes[:5]]
    if len(result.notes) > 5:
        lines.append(f"note: {len(result.notes) - 5} more of the kind, in the JSON")
    return "\n".join(lines)


def folded(table: list[list[str]], named: int = 2) -> list[str]:
    """Lines of a table; where they would be too long its columns go on below, after the first `named` ones."""
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


def described_data(result: Evaluation) -> str:
    """How much speech was looked at."""
    seconds = sum(clip.seconds for clip in result.speech)
    speakers = len({clip.speaker for clip in result.speech if clip.speaker})
    voices = f" of {speakers} speakers" if speakers else ""
    return f"{len(result.speech)} clips{voices}, {seconds / 60:.1f} minutes, {result.settings['arithmetic']}"


def described_versions(result: Evaluation) -> str:
    return ", ".join(f"{name} {version}" for name, version in result.settings["versions"].items())


def problem_lines(result: Evaluation, limit: int = 8) -> list[str]:
    """Clips that were not scored, or not by every judge; metrics that have no clip at all are named elsewhere."""
    empty = result.without_values()
    grouped: dict[tuple[str, str, str], list[str]] = {}
    for problem in result.all_problems:
        if problem.what not in empty:
            grouped.setdefault((problem.clip, problem.encoder, problem.reason), []).append(problem.what)
    lines = [
        f"not scored: {clip}: " + (f"{', '.join(names)} of {encoder}: " if encoder else "") + reason
        for (clip, encoder, reason), names in grouped.items()
    ]
    return lines[:limit] + ([f"not scored: {len(lines) - limit} more, in the JSON"] if len(lines) > limit else [])


def speed_lines(speed: Mapping[str, Mapping[str, float]]) -> list[str]:
    """What a client waits, by device."""
    return [
        f"{device}: a 10 s prompt takes {1000 * figures['latency']:.0f} ms "
        f"({1000 * figures['latency_min']:.0f} to {1000 * figures['latency_max']:.0f}); real-time factor "
        f"{figures['encode_rtf']:.4f} encoding, {figures['decode_rtf']:.4f} decoding"
        for device, figures in speed.items()
    ]
