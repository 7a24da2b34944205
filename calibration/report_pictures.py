"""Drawings of a calibration as inline SVG: residuals on the picture plane, where the hand was, ellipses of what is not known.

Colours are CSS variables of the page around them, so that they follow light and dark.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np

from sinew.se3 import Array

STYLE = """
svg.plate { width: 100%; height: auto; display: block; background: var(--track); border-radius: 6px; }
svg.plate .good { stroke: var(--improved); fill: none; }
svg.plate .bad { stroke: var(--bad); fill: none; } svg.plate circle.good { fill: var(--improved); stroke: none; }
svg.plate circle.bad { fill: none; stroke: var(--bad); stroke-width: 1.5; } svg.plate circle.spot { fill: var(--improved); opacity: .5; }
svg.plate .ring { fill: none; stroke: var(--soft); opacity: .5; } svg.plate .axis { stroke: var(--soft); opacity: .5; }
svg.plate .cloud { fill: var(--improved); fill-opacity: .18; stroke: var(--improved); stroke-width: 1.5; }
.plates { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(46%, 190px), 1fr)); gap: 14px; }
.plates.three { grid-template-columns: repeat(auto-fill, minmax(min(46%, 260px), 1fr)); }
.out { color: var(--bad); } .fine { color: var(--good); }
.bar { height: 9px; background: var(--track); border-radius: 5px; overflow: hidden; min-width: 90px; }
.bar span { display: block; height: 100%; background: var(--improved); } .bar span.weak { background: var(--bad); }
"""
"""What these drawings need besides the page's own style sheet."""
SIDE = 300
"""Units of a square drawing."""
MOST_POINTS = 4000


def figure(svg: str, title: str, note: str = "", style: str = "") -> str:
    """A drawing with a line below it."""
    told = f'<b class="{style}">{escape(title)}</b>' + (f" {escape(note)}" if note else "")
    return f"<figure>{svg}<figcaption>{told}</figcaption></figure>"


def residual_plate(size: tuple[int, int], pixels: Array, residual: Array, used: np.ndarray, larger: float) -> str:
    """Arrows from where corners were seen (K, 2) to where the calibration puts them, drawn `larger` times too long."""
    width, height = size
    reach = 0.5 * max(size)
    parts = []
    for (x, y), (dx, dy), good in zip(pixels, larger * residual, used, strict=True):
        length = float(np.hypot(dx, dy))
        if not np.isfinite(length):
            continue
        short = min(1.0, reach / length) if length else 1.0
        name = "good" if good else "bad"
        parts.append(f'<circle class="{name}" cx="{x:.0f}" cy="{y:.0f}" r="{0.005 * width:.1f}"/>')
        parts.append(f'<path class="{name}" d="M{x:.0f} {y:.0f}l{short * dx:.1f} {short * dy:.1f}"/>')
    label = f"residuals of {len(pixels)} corners"
    return (
        f'<svg class="plate" viewBox="0 0 {width} {height}" role="img" aria-label="{label}" stroke-width="{0.006 * width:.1f}">'
        f"{''.join(parts)}</svg>"
    )


def coverage_plate(size: tuple[int, int], pixels: Array) -> str:
    """Where in the picture (N, 2) corners were used."""
    step = max(1, len(pixels) // MOST_POINTS)
    radius = 0.006 * size[0]
    spots = "".join(f'<circle class="spot" cx="{x:.0f}" cy="{y:.0f}" r="{radius:.1f}"/>' for x, y in pixels[::step])
    return f'<svg class="plate" viewBox="0 0 {size[0]} {size[1]}" role="img" aria-label="where corners were seen">{spots}</svg>'


def scatter(points: Array, used: np.ndarray, names: tuple[str, str], unit: str) -> str:
    """Points (N, 2) about the middle with rings at round distances; what was left out in another colour."""
    reach = 1.12 * max(float(np.abs(points).max(initial=0.0)), 1e-9)
    ring = round_length(reach)
    scale = SIDE / 2 / reach
    rings = [k * ring for k in range(1, 6) if k * ring <= 0.9 * reach]
    parts = [_cross(), *(f'<circle class="ring" cx="{SIDE / 2}" cy="{SIDE / 2}" r="{scale * r:.1f}"/>' for r in rings)]
    parts += [f'<text x="{SIDE / 2 + 4}" y="{SIDE / 2 - scale * r - 3:.1f}">{r:g}{unit}</text>' for r in rings]
    for (x, y), good in zip(points, used, strict=True):
        at = f'cx="{SIDE / 2 + scale * x:.1f}" cy="{SIDE / 2 - scale * y:.1f}"'
        parts.append(f'<circle class="{"good" if good else "bad"}" {at} r="5"/>')
    return _square([*parts, _names(names)], f"{names[1]} over {names[0]}")


def ellipse(covariance: Array, names: tuple[str, str], unit: str, reach: float) -> str:
    """The 95 % ellipse of a covariance (2, 2); the drawing reaches `reach` to each side."""
    values, axes = np.linalg.eigh(covariance)
    radii = SIDE / 2 / reach * np.sqrt(5.991 * np.maximum(values, 0.0))  # chi-square of two, 95 %
    turn = -np.degrees(np.arctan2(axes[1, 1], axes[0, 1]))
    ring = round_length(reach)
    scale = SIDE / 2 / reach
    parts = [
        _cross(), f'<circle class="ring" cx="{SIDE / 2}" cy="{SIDE / 2}" r="{scale * ring:.1f}"/>',
        f'<text x="{SIDE / 2 + 4}" y="{SIDE / 2 - scale * ring - 3:.1f}">{ring:g}{unit}</text>',
        f'<ellipse class="cloud" rx="{max(radii[1], 1):.1f}" ry="{max(radii[0], 1):.1f}" '
        f'transform="translate({SIDE / 2} {SIDE / 2}) rotate({turn:.1f})"/>',
    ]  # fmt: skip
    return _square([*parts, _names(names)], f"95 % of {names[0]} and {names[1]}")


def round_length(reach: float) -> float:
    """The largest of 1, 2, 5 times a power of ten that fits into half of `reach` and a bit."""
    power = 10.0 ** np.floor(np.log10(0.7 * reach))
    return float(max(f * power for f in (1, 2, 5) if f * power <= 0.7 * reach))


def _square(parts: Sequence[str], label: str) -> str:
    return f'<svg class="plate" viewBox="0 0 {SIDE} {SIDE}" role="img" aria-label="{escape(label, quote=True)}">{"".join(parts)}</svg>'


def _cross() -> str:
    half = SIDE / 2
    return f'<path class="axis" d="M0 {half}H{SIDE}M{half} 0V{SIDE}"/>'


def _names(names: tuple[str, str]) -> str:
    return (
        f'<text x="{SIDE - 6}" y="{SIDE / 2 + 14}" text-anchor="end">{escape(names[0])}</text>'
        f'<text x="{SIDE / 2 - 6}" y="14" text-anchor="end">{escape(names[1])}</text>'
    )
