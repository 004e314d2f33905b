"""Line and bar charts as inline SVG, coloured by the page's CSS variables; all text from outside is escaped."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from markupsafe import Markup

from rlhf.console.text import figure

WIDTH, HEIGHT = 300, 170
LEFT, RIGHT, TOP, BOTTOM = 44, 10, 8, 20
MAX_POINTS = 240  # of a drawn line
MAX_TIPS = 60  # places of a chart that show their values under the pointer
SMOOTH_FROM = 40  # with this many points or more, a smoothed line is drawn over the raw one
FEW = 24  # up to this many points, each one is marked

Point = tuple[float, float]


@dataclass(frozen=True)
class Line:
    """A named series of (step, value); values that are not finite are gaps. A noisy one also gets a smoothed line."""

    name: str
    points: list[Point]
    noisy: bool = True


def line_chart(lines: Sequence[Line], *, floor: float | None = None, ceiling: float | None = None) -> Markup:
    """Lines over steps. `floor` and `ceiling` are shown even if no value reaches them."""
    finite = [(x, y) for line in lines for x, y in line.points if math.isfinite(y)]
    if not finite:
        return Markup('<p class="empty">no finite values</p>')
    first, last = min(x for x, _ in finite), max(x for x, _ in finite)
    values = [y for _, y in finite] + [bound for bound in (floor, ceiling) if bound is not None]
    marks = ticks(min(values), max(values))
    low, high = min(marks[0], min(values)), max(marks[-1], max(values))
    plot = _Plot(first, last, low, high)
    parts = [*_axes(plot, marks, ticks(first, last, whole=True))]
    for number, line in enumerate(lines):
        parts += _line(plot, line, number)
    parts += _tips(plot, lines)
    return _svg(parts, HEIGHT, ", ".join(line.name for line in lines))


def bar_chart(bars: Sequence[tuple[str, float, float | None]]) -> Markup:
    """Horizontal bars of (name, mean, standard error) from 0."""
    row, left = 30, 66
    values = [bound for _, mean, error in bars for bound in (mean - (error or 0), mean + (error or 0))]
    marks = ticks(min([0.0, *values]), max([0.0, *values]))
    low, high = min(marks[0], *values), max(marks[-1], *values)
    height = row * len(bars) + BOTTOM
    scale = (WIDTH - left - 16) / (high - low or 1)
    parts = []
    for mark in marks:
        x = left + (mark - low) * scale
        parts.append(_tag('<line class="grid" x1="{}" y1="0" x2="{}" y2="{}"/>', x, x, height - BOTTOM))
        parts.append(
            _tag('<text class="tick" x="{}" y="{}" text-anchor="middle">{}</text>', x, height - 6, figure(mark))
        )
    for index, (name, mean, error) in enumerate(bars):
        middle = index * row + row / 2
        begin, end = sorted((left + (0 - low) * scale, left + (mean - low) * scale))
        short = name if len(name) <= 10 else f"{name[:9]}…"
        parts.append(_tag('<text class="name" x="{}" y="{}" text-anchor="end">{}</text>', left - 8, middle + 4, short))
        parts.append(
            _tag(
                '<rect class="bar s{}" x="{}" y="{}" width="{}" height="14" rx="3"><title>{}: {}</title></rect>',
                index % 4, begin, middle - 7, max(end - begin, 1), name, figure(mean),
            )
        )  # fmt: skip
        if error:
            x1, x2 = (left + (v - low) * scale for v in (mean - error, mean + error))
            parts.append(
                _tag(
                    '<path class="whisker" d="M{} {}H{}M{} {}v8M{} {}v8"/>',
                    x1,
                    middle,
                    x2,
                    x1,
                    middle - 4,
                    x2,
                    middle - 4,
                )
            )
    return _svg(parts, height, "scores")


# --- parts -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Plot:
    """Where values lie in the picture."""

    first: float
    last: float
    low: float
    high: float

    def x(self, step: float) -> float:
        share = (step - self.first) / (self.last - self.first) if self.last > self.first else 0.5
        return LEFT + share * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        return TOP + (self.high - value) / (self.high - self.low) * (HEIGHT - TOP - BOTTOM)


def _tag(text: str, *values: object) -> Markup:
    """An element with its values escaped and its numbers short."""
    return Markup(text).format(*(f"{v:.1f}".removesuffix(".0") if isinstance(v, float) else v for v in values))


def _svg(parts: Sequence[Markup], height: float, label: str) -> Markup:
    head = _tag('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">', WIDTH, height, label)
    return head + Markup("").join(parts) + Markup("</svg>")


def _axes(plot: _Plot, y_marks: Sequence[float], x_marks: Sequence[float]) -> list[Markup]:
    parts = []
    for mark in y_marks:
        y = plot.y(mark)
        parts.append(_tag('<line class="grid" x1="{}" y1="{}" x2="{}" y2="{}"/>', LEFT, y, WIDTH - RIGHT, y))
        parts.append(
            _tag('<text class="tick" x="{}" y="{}" text-anchor="end">{}</text>', LEFT - 6, y + 3.5, figure(mark))
        )
    for mark in x_marks:
        x = plot.x(mark)
        parts.append(
            _tag('<text class="tick" x="{}" y="{}" text-anchor="middle">{}</text>', x, HEIGHT - 6, f"{mark:g}")
        )
    return parts


def _line(plot: _Plot, line: Line, number: int) -> list[Markup]:
    points, css = line.points, f"line s{number % 4}"
    smooth = line.noisy and len(points) >= SMOOTH_FROM
    parts = [_path(plot, thinned(points), f"{css} raw" if smooth else css)]
    if smooth:
        parts.append(_path(plot, thinned(smoothed(points)), css))
    if len(points) <= FEW:
        parts += [
            _tag('<circle class="dot s{}" cx="{}" cy="{}" r="2.5"/>', number % 4, plot.x(x), plot.y(y))
            for x, y in points
            if math.isfinite(y)
        ]
    return parts


def _path(plot: _Plot, points: Sequence[Point], css: str) -> Markup:
    """A path that is interrupted where a value is not finite."""
    steps, down = [], False
    for x, y in points:
        if math.isfinite(y):
            steps.append(f"{'L' if down else 'M'}{plot.x(x):.1f} {plot.y(y):.1f}")
        down = math.isfinite(y)
    return _tag('<path class="{}" d="{}"/>', css, "".join(steps))


def _tips(plot: _Plot, lines: Sequence[Line]) -> list[Markup]:
    """Invisible columns whose titles show the values at their step."""
    at: dict[float, list[str]] = {}
    for line in lines:
        for x, y in line.points:
            at.setdefault(x, []).append(f"{line.name}: {figure(float(y))}")
    steps = sorted(at)
    steps = steps[:: math.ceil(len(steps) / MAX_TIPS)]
    edges = [plot.x(x) for x in steps]
    middles = [(a + b) / 2 for a, b in pairwise(edges)]
    starts, ends = [float(LEFT), *middles], [*middles, float(WIDTH - RIGHT)]
    return [
        _tag(
            '<rect class="tip" x="{}" y="{}" width="{}" height="{}"><title>step {}\n{}</title></rect>',
            begin, TOP, max(end - begin, 0.1), HEIGHT - TOP - BOTTOM, f"{step:g}", "\n".join(at[step]),
        )
        for step, begin, end in zip(steps, starts, ends, strict=True)
    ]  # fmt: skip


# --- numbers ---------------------------------------------------------------------------------------------------------


def ticks(low: float, high: float, *, whole: bool = False) -> list[float]:
    """Three to six round numbers from at or below `low` to at or above `high`: 0.13..0.91 gives 0, 0.25, …, 1.

    `whole`: numbers inside the range that are whole, for steps.
    """
    largest = max(abs(low), abs(high))
    if high - low <= max(1e-6 * largest, 1e-300):  # one value, up to rounding
        if whole:
            return [low]
        margin = 0.1 * largest if largest > 1e-290 else 1.0
        low, high = low - margin, high + margin
    size = (high - low) / 4
    power = 10.0 ** math.floor(math.log10(size))
    step = next(power * m for m in (1, 2, 2.5, 5, 10) if power * m >= size * 0.999)
    if whole:
        step = max(1.0, math.ceil(step))
        begin, end = math.ceil(low / step), math.floor(high / step)
    else:
        begin, end = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [_round(i * step) for i in range(begin, end + 1)]


def _round(value: float) -> float:
    """Without the rounding error of binary fractions: 0.30000000000000004 → 0.3."""
    return float(f"{value:.10g}")


def thinned(points: Sequence[Point]) -> list[Point]:
    """At most about `MAX_POINTS` points; each stretch keeps its lowest and its highest, so that spikes stay visible."""
    size = math.ceil(2 * len(points) / MAX_POINTS)
    if size <= 2:
        return list(points)
    kept: list[Point] = []
    for begin in range(0, len(points), size):
        stretch = points[begin : begin + size]
        finite = [p for p in stretch if math.isfinite(p[1])]
        kept += sorted({min(finite, key=lambda p: p[1]), max(finite, key=lambda p: p[1])}) if finite else [stretch[0]]
    return kept


def smoothed(points: Sequence[Point]) -> list[Point]:
    """The mean over a twentieth of the line to both sides, so that it does not lag: with one point to each side,
    0, 3, 3, 0 becomes 1.5, 2, 2, 1.5. Near the ends both sides are shortened to the same length."""
    reach = max(len(points) // 20, 1)
    sums, counts = [0.0], [0]
    for _, y in points:
        sums.append(sums[-1] + (y if math.isfinite(y) else 0.0))
        counts.append(counts[-1] + math.isfinite(y))
    line = []
    for index, (x, _) in enumerate(points):
        side = min(reach, index, len(points) - 1 - index) or 1
        begin, end = max(index - side, 0), min(index + side + 1, len(points))
        count = counts[end] - counts[begin]
        line.append((x, (sums[end] - sums[begin]) / count if count else math.nan))
    return line
