"""Charts as inline SVG and HTML: lines with bands, histograms, interval bars, paired strips. No script, no fonts, no CDN.

Colours come from the page's CSS classes (`base`, `improved`, `deployed`, `control`), so that charts follow light and dark.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 440, 250
LEFT, RIGHT, TOP, BOTTOM = 58, 14, 12, 40


@dataclass(frozen=True, kw_only=True)
class Line:
    """One curve."""

    name: str
    points: Sequence[tuple[float, float]]
    style: str = "improved"
    """CSS class that gives the colour."""
    band: Sequence[tuple[float, float]] = ()
    """Lower and upper bound at each point."""
    dots: bool = False
    """Mark each point."""


@dataclass(frozen=True, kw_only=True)
class Level:
    """A dashed horizontal line."""

    name: str
    y: float
    style: str = "base"


def line_chart(
    lines: Sequence[Line],
    *,
    x_label: str,
    y_label: str,
    levels: Sequence[Level] = (),
    y_range: tuple[float, float] | None = None,
    log_y: bool = False,
    percent: bool = False,
) -> str:
    """SVG of curves over a common axis.

    Args:
        lines: what to draw; points that are not finite (or not positive on a log axis) are left out.
        x_label: what runs to the right, with its unit.
        y_label: what runs upwards, with its unit.
        levels: horizontal lines to compare with.
        y_range: fixed range; from the data if None.
        log_y: logarithmic y axis.
        percent: y is a fraction, labelled in percent.

    Returns:
        The SVG element, or a sentence where there is nothing to draw.
    """
    lines = [_drawable(line, log_y) for line in lines]
    xs = [x for line in lines for x, _ in line.points]
    ys = [y for line in lines for _, y in line.points] + [v for line in lines for b in line.band for v in b] + [v.y for v in levels]
    if not xs:
        return '<p class="none">Nothing was recorded.</p>'
    low, high = y_range or _padded(min(ys), max(ys), log_y)
    y_ticks = log_ticks(low, high) if log_y else nice_ticks(low, high)
    x_low = 0.0 if 0 < min(xs) <= 0.1 * max(xs) else min(xs)  # counts of steps begin at none
    x_high = max(xs) if max(xs) > x_low else x_low + 1
    scale = _Scale(x_low, x_high, low, high, log_y)
    parts = [_grid(scale, nice_ticks(x_low, x_high, 5), y_ticks, percent), _axis_names(x_label, y_label)]
    for level in levels:
        y = scale.y(level.y)
        parts.append(f'<line class="level {level.style}" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
    parts += [_curve(line, scale) for line in lines]
    label = escape(f"{y_label} over {x_label}: {', '.join(line.name for line in lines)}", quote=True)
    legend = _legend([(line.name, line.style, False) for line in lines] + [(v.name, v.style, True) for v in levels])
    return f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">{"".join(parts)}</svg>{legend}'


def histogram(edges: Sequence[float], counts: Sequence[float], *, x_label: str, marks: Mapping[str, float] | None = None) -> str:
    """SVG of counts between edges (one more than counts), with named vertical marks such as p99."""
    if not counts or len(edges) != len(counts) + 1 or max(counts) <= 0:
        return '<p class="none">Nothing was recorded.</p>'
    marks = {k: v for k, v in (marks or {}).items() if edges[0] <= v <= edges[-1]}
    scale = _Scale(edges[0], edges[-1] if edges[-1] > edges[0] else edges[0] + 1, 0, max(counts) * 1.12, False)
    parts = [_grid(scale, nice_ticks(scale.x_low, scale.x_high, 6), nice_ticks(0, scale.y_high, 4), False), _axis_names(x_label, "ticks")]
    for left, right, count in zip(edges, edges[1:], counts, strict=False):
        x, width, y = scale.x(left), max(0.6, scale.x(right) - scale.x(left) - 0.8), scale.y(count)
        parts.append(f'<rect class="column" x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{HEIGHT - BOTTOM - y:.1f}"/>')
    for i, (name, value) in enumerate(marks.items()):
        x = scale.x(value)
        parts.append(f'<line class="mark" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>')
        anchor, shift = ("end", -4) if x > WIDTH * 0.75 else ("start", 4)
        parts.append(f'<text x="{x + shift:.1f}" y="{TOP + 10 + 14 * (i % 4)}" text-anchor="{anchor}">{escape(name)} {value:.3g}</text>')
    return f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(x_label, quote=True)}">{"".join(parts)}</svg>'


def interval_bar(rate: float, low: float, high: float, style: str) -> str:
    """HTML bar from 0 to 100 % with the interval as a band and the rate as a dot."""
    return (
        f'<div class="interval {style}" role="img" aria-label="{100 * rate:.0f} %, between {100 * low:.0f} % and {100 * high:.0f} %">'
        f'<span class="range" style="left:{100 * low:.2f}%;width:{100 * (high - low):.2f}%"></span>'
        f'<span class="dot" style="left:{100 * rate:.2f}%"></span></div>'
    )


def share_bar(share: float, style: str = "improved") -> str:
    """HTML bar filled to `share` (0 to 1)."""
    return f'<div class="share {style}"><span style="width:{100 * min(max(share, 0), 1):.2f}%"></span></div>'


def paired_strip(seeds: Sequence[int], first: Sequence[bool], second: Sequence[bool]) -> str:
    """HTML strip with one cell for each seed: the upper half is the first policy, the lower the second; it wraps."""
    word = {True: "success", False: "failure"}
    cells = []
    for seed, a, b in zip(seeds, first, second, strict=True):
        outcome = "win" if b and not a else "loss" if a and not b else "both" if a else "neither"
        cells.append(f'<i class="{outcome}" title="seed {seed}: base {word[bool(a)]}, improved {word[bool(b)]}"></i>')
    return f'<div class="strip">{"".join(cells)}</div>'


def nice_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` round numbers from low to high."""
    if not high > low:
        return [low]
    raw = (high - low) / count
    magnitude = 10.0 ** math.floor(math.log10(raw))
    step = next(m * magnitude for m in (1, 2, 2.5, 5, 10) if m * magnitude >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten from low to high, with 2 and 5 between them where there are few."""
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for multiples in ((1,), (1, 3), (1, 2, 5)):
        ticks = [m * 10.0**e for e in exponents for m in multiples if low * 0.999 <= m * 10.0**e <= high * 1.001]
        if len(ticks) >= 3:
            return ticks
    return ticks


def number(value: float) -> str:
    """Short label: 0.05, 12, 4k, 1.5M."""
    for limit, unit in ((1e6, "M"), (1e4, "k")):
        if abs(value) >= limit:
            return f"{value / (1e6 if unit == 'M' else 1e3):g}{unit}"
    return f"{value:.4g}"


# ---------------------------------------------------------------- parts


@dataclass(frozen=True)
class _Scale:
    x_low: float
    x_high: float
    y_low: float
    y_high: float
    log_y: bool

    def x(self, value: float) -> float:
        return LEFT + (value - self.x_low) / (self.x_high - self.x_low) * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        value = min(max(value, self.y_low), self.y_high)
        if self.log_y:
            share = (math.log(value) - math.log(self.y_low)) / (math.log(self.y_high) - math.log(self.y_low))
        else:
            share = (value - self.y_low) / (self.y_high - self.y_low)
        return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)


def _drawable(line: Line, log_y: bool) -> Line:
    keep = [i for i, (x, y) in enumerate(line.points) if math.isfinite(x) and math.isfinite(y) and (y > 0 or not log_y)]
    band = [line.band[i] for i in keep] if line.band else []
    return Line(name=line.name, points=[line.points[i] for i in keep], style=line.style, band=band, dots=line.dots)


def _padded(low: float, high: float, log_y: bool) -> tuple[float, float]:
    if log_y:
        return (low / 1.15, high * 1.15)
    margin = 0.06 * (high - low) or abs(high) * 0.1 or 1.0
    return (low - margin, high + margin)


def _grid(scale: _Scale, x_ticks: Sequence[float], y_ticks: Sequence[float], percent: bool) -> str:
    parts = []
    for value in y_ticks:
        y, text = scale.y(value), f"{100 * value:.0f} %" if percent else number(value)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{text}</text>')
    for value in x_ticks:
        parts.append(f'<text x="{scale.x(value):.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{number(value)}</text>')
    bottom = HEIGHT - BOTTOM
    return "".join(parts) + f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{bottom}" y2="{bottom}"/>'


def _axis_names(x_label: str, y_label: str) -> str:
    middle_x, middle_y = (LEFT + WIDTH - RIGHT) / 2, (TOP + HEIGHT - BOTTOM) / 2
    return (
        f'<text class="name" x="{middle_x:.0f}" y="{HEIGHT - 6}" text-anchor="middle">{escape(x_label)}</text>'
        f'<text class="name" transform="translate(10 {middle_y:.0f}) rotate(-90)" text-anchor="middle">{escape(y_label)}</text>'
    )


def _curve(line: Line, scale: _Scale) -> str:
    at = [(scale.x(x), scale.y(y)) for x, y in line.points]
    parts = []
    if line.band:
        upper = [f"{x:.1f},{scale.y(high):.1f}" for (x, _), (_, high) in zip(at, line.band, strict=True)]
        lower = [f"{x:.1f},{scale.y(low):.1f}" for (x, _), (low, _) in zip(at, line.band, strict=True)]
        parts.append(f'<polygon class="band {line.style}" points="{" ".join(upper + lower[::-1])}"/>')
    parts.append(f'<polyline class="curve {line.style}" points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in at)}"/>')
    if line.dots or len(at) == 1:
        parts += [f'<circle class="{line.style}" cx="{x:.1f}" cy="{y:.1f}" r="3.2"/>' for x, y in at]
    return "".join(parts)


def _legend(entries: Sequence[tuple[str, str, bool]]) -> str:
    keys = [f'<span><b class="key {style} {"dashed" if dashed else ""}"></b>{escape(name)}</span>' for name, style, dashed in entries]
    return f'<p class="legend">{"".join(keys)}</p>'
