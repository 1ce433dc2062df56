"""Histograms and curves as SVG. The page's style sheet gives the colours: its classes s1 to s10, which repeat after ten
series."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

STYLES = 10  # classes of series in the style sheet
WIDTH, HEIGHT = 340, 200  # the width of a phone, so that text keeps its size there
LEFT, RIGHT, TOP, BOTTOM = 52, 8, 10, 36  # margins for the axes


@dataclass(frozen=True)
class Series:
    name: str
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Chart:
    """An SVG picture with title, legend and caption, for the template."""

    title: str
    svg: Markup
    series: tuple[str, ...]
    caption: str = ""

    @property
    def legend(self) -> list[tuple[str, str]]:
        """The class and name of each series."""
        return [(style(number), name) for number, name in enumerate(self.series, 1)]


def style(number: int) -> str:
    """The class of a series, counted from 1."""
    return f"s{(number - 1) % STYLES + 1}"


def lines(title: str, series: Sequence[Series], x_label: str, caption: str = "") -> Chart | None:
    """Curves over a common axis. A series without finite values is left out; None if no series has any."""
    finite = [Series(each.name, [p for p in each.points if math.isfinite(p[1])]) for each in series]
    shown = [each for each in finite if each.points]
    if not shown:
        return None
    axes = _Axes([p[0] for s in shown for p in s.points], [p[1] for s in shown for p in s.points])
    body = [axes.drawn(x_label)]
    for number, each in enumerate(shown, 1):
        path = " ".join(f"{axes.x(x):.1f},{axes.y(y):.1f}" for x, y in each.points)
        body.append(f'<polyline class="line {style(number)}" points="{path}"/>')
        if len(each.points) == 1:
            x, y = each.points[0]
            body.append(f'<circle class="dot {style(number)}" cx="{axes.x(x):.1f}" cy="{axes.y(y):.1f}" r="3"/>')
    return _chart(title, body, shown, caption)


def histogram(title: str, series: Sequence[Series], x_label: str, caption: str = "") -> Chart:
    """A histogram over evenly spaced values: the first series as bars, the others as stepped lines over them."""
    xs = [p[0] for s in series for p in s.points]
    step = min((b - a for a, b in zip(sorted(set(xs)), sorted(set(xs))[1:], strict=False)), default=1.0)
    axes = _Axes([min(xs) - step / 2, max(xs) + step / 2], [0.0, *(p[1] for s in series for p in s.points)])
    body = [axes.drawn(x_label)]
    for number, each in enumerate(series, 1):
        if number == 1:
            for x, y in each.points:
                left, right = axes.x(x - step / 2) + 0.5, axes.x(x + step / 2) - 0.5
                height = axes.y(0) - axes.y(y)
                body.append(
                    f'<rect class="bar s1" x="{left:.1f}" y="{axes.y(y):.1f}" width="{max(right - left, 0.5):.1f}" '
                    f'height="{height:.1f}"/>'
                )
            continue
        path = " ".join(
            f"{axes.x(x + side * step / 2):.1f},{axes.y(y):.1f}" for x, y in each.points for side in (-1, 1)
        )
        body.append(f'<polyline class="line {style(number)}" points="{path}"/>')
    return _chart(title, body, series, caption)


def counted(values: Sequence[float], bins: int, low: float, high: float) -> list[tuple[float, float]]:
    """A (middle, count) pair for each of `bins` between `low` and `high`. Values outside count in the outer bins."""
    width = (high - low) / bins or 1.0
    counts = [0] * bins
    for value in values:
        counts[min(bins - 1, max(0, int((value - low) / width)))] += 1
    return [(low + (i + 0.5) * width, float(count)) for i, count in enumerate(counts)]


class _Axes:
    """Maps values to coordinates in the picture, and draws the grid and the ticks."""

    def __init__(self, xs: Sequence[float], ys: Sequence[float]):
        self.x_range = _span(xs)
        self.y_range = _span(ys)

    def x(self, value: float) -> float:
        low, high = self.x_range
        return LEFT + (value - low) / (high - low) * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        low, high = self.y_range
        return HEIGHT - BOTTOM - (value - low) / (high - low) * (HEIGHT - TOP - BOTTOM)

    def drawn(self, x_label: str) -> str:
        parts = []
        for value in round_numbers(*self.y_range, 4):
            y = self.y(value)
            parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
            parts.append(f'<text class="tick" x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{value:g}</text>')
        for value in round_numbers(*self.x_range, 5):
            x = self.x(value)
            anchor = "end" if x > WIDTH - 40 else "middle"
            parts.append(f'<text class="tick" x="{x:.1f}" y="{HEIGHT - 20}" text-anchor="{anchor}">{value:g}</text>')
        parts.append(
            f'<text class="tick" x="{WIDTH - RIGHT}" y="{HEIGHT - 4}" text-anchor="end">{escape(x_label)}</text>'
        )
        return "".join(parts)


def round_numbers(low: float, high: float, about: int) -> list[float]:
    """About `about` ticks between `low` and `high`, all multiples of 1, 2 or 5 times a power of ten."""
    rough = (high - low) / about
    power = 10 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
    first = math.ceil(low / step)
    return [round(i * step, 12) for i in range(first, math.floor(high / step) + 1)]


def _span(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    if high - low < 1e-12:
        return low - 0.5, low + 0.5
    return low, high + 0.04 * (high - low)


def _chart(title: str, body: Sequence[str], series: Sequence[Series], caption: str) -> Chart:
    names = tuple(each.name for each in series)
    label = escape(f"{title}: {', '.join(names)}")
    svg = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">{"".join(body)}</svg>'
    return Chart(title, Markup(svg), names, caption)
