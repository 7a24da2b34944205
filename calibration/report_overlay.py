"""Before and after, drawn on the pictures: where the board's corners would be by a first guess or a drawing, and by the calibration.

What the robot may get wrong at a view is not taken out: this is what anybody sees who uses the calibration.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from calibration.estimator import board_place
from calibration.model import Estimate, residuals
from calibration.report_pictures import figure
from calibration.solve import Result
from calibration.start import guesses
from sinew.errors import InputError
from sinew.se3 import Array

MOST, WIDE_PX = 6, 520
"""Pictures drawn, and their width."""
MARGIN = 0.35
"""Around the board, as a part of its size."""
STYLE = """
svg.plate .seen { stroke: #fff; fill: none; } svg.plate .before { stroke: #ff9f43; fill: none; stroke-dasharray: 5 4; }
svg.plate .after { stroke: #38d0ff; fill: none; } .befores b { padding: 0 .4em; border-radius: 4px; background: #222; }
"""


def before_of(result: Result, drawing: Array | None = None) -> tuple[str, Estimate] | None:
    """What was believed before: the drawing (C, 4, 4), or else the best closed form; None where neither can be told."""
    estimate, views = result.fit.estimate, result.views
    told = tuple(
        replace(c, focal=s.focal, centre=s.centre, distortion=s.distortion) for c, s in zip(result.cameras, result.told, strict=True)
    )
    still = replace(estimate, cameras=told, log_scale=0.0, xi=np.zeros_like(estimate.xi), joint_offsets_rad=0 * estimate.joint_offsets_rad)
    try:
        if drawing is not None:
            x = np.reshape(drawing, (-1, 4, 4))
            return "the drawing", replace(still, X=x, Z=board_place(views, x, told, result.mount))
        first = guesses(views, told, result.mount)[0].estimate
    except InputError:
        return None
    return "the best closed form", replace(still, X=first.X, Z=first.Z)


def overlay(result: Result, pictures: Mapping[str, Path], before: tuple[str, Estimate] | None) -> str:
    """HTML of some views' pictures with the corners where they were seen, before and after.

    Args:
        result: the calibration.
        pictures: file of each view by name; views without one are left out.
        before: what it is called and the estimate, of `before_of`.
    """
    views, estimate = result.views, result.fit.estimate
    used = [i for i in np.flatnonzero(result.fit.weights.any(1)) if views.names[i] in pictures]
    if not used:
        return ""
    after_r = residuals(replace(estimate, xi=np.zeros_like(estimate.xi)), views)
    before_r = None if before is None else residuals(before[1], views)
    figures = []
    for i in (used[k] for k in np.unique(np.linspace(0, len(used) - 1, MOST).round().astype(int))):
        seen = views.seen[i]
        off = None if before_r is None else before_r[i, seen]
        plate = _plate(pictures[views.names[i]], views.points[i, seen], views.pixels[i, seen], after_r[i, seen], off)
        if plate:
            notes = [f"{_middle(r[i, seen]):.1f} px" for r in (before_r, after_r) if r is not None]
            figures.append(figure(plate, views.names[i], " before, ".join(notes) + " after" if len(notes) > 1 else notes[0]))
    if not figures:
        return ""
    size = [_middle(r[used][views.seen[used]]) for r in (before_r, after_r) if r is not None]
    was = "" if before is None else f'<b style="color:#ff9f43">by {before[0]}</b> ({size[0]:.1f} px off in the middle of all views), '
    key = f'<b style="color:#fff">seen</b>, {was}<b style="color:#38d0ff">by the calibration</b> ({size[-1]:.1f} px).'
    told = "What the robot gets wrong at a view is not taken out: this is how the calibration works where it is used."
    return f'<style>{STYLE}</style><div class="plates three">{"".join(figures)}</div><p class="note befores">{key} {told}</p>'


def _middle(r: Array) -> float:
    size = np.linalg.norm(r, axis=-1)
    return float(np.median(size[np.isfinite(size)])) if np.isfinite(size).any() else float("inf")


def _plate(path: Path, points: Array, seen: Array, after: Array, before: Array | None) -> str:
    """The part of the picture around the board, lines between its corners (K, 3), seen at (K, 2), drawn over it; nothing without one."""
    import cv2

    image = cv2.imread(str(path))
    if image is None:
        return ""
    size, margin = np.array(image.shape[1::-1]), MARGIN * float(np.ptp(seen, axis=0).max())
    low = np.maximum(np.floor(seen.min(0) - margin), 0).astype(int)
    high = np.minimum(np.ceil(seen.max(0) + margin), size).astype(int)
    part = image[low[1] : high[1], low[0] : high[0]]
    scale = WIDE_PX / part.shape[1]
    height = max(1, round(part.shape[0] * scale))
    small = cv2.resize(part, (WIDE_PX, height), interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    code = b64encode(cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, 80])[1].tobytes()).decode()

    def at(pixels: Array) -> Array:
        return (pixels - low + 0.5) * scale

    parts = [f'<image href="data:image/jpeg;base64,{code}" width="{WIDE_PX}" height="{height}"/>']
    for kind, off in (("before", before), ("after", after)):
        if off is not None and np.isfinite(off).all():
            there = np.clip(at(seen + off), -2 * WIDE_PX, 3 * WIDE_PX)
            way = "".join(f"M{there[i, 0]:.1f} {there[i, 1]:.1f}L{there[j, 0]:.1f} {there[j, 1]:.1f}" for i, j in _neighbours(points))
            parts.append(f'<path class="{kind}" d="{way}"/>')
    parts += [f'<circle class="seen" cx="{x:.1f}" cy="{y:.1f}" r="4"/>' for x, y in at(seen)]
    label = "corners as seen, before and after"
    return f'<svg class="plate" viewBox="0 0 {WIDE_PX} {height}" role="img" aria-label="{label}" stroke-width="1.8">{"".join(parts)}</svg>'


def _neighbours(points: Array) -> list[tuple[int, int]]:
    """Pairs of corners (K, 3) that lie next to one another."""
    apart = np.linalg.norm(points[:, None] - points[None], axis=-1) + np.diag(np.full(len(points), np.inf))
    first, second = np.nonzero(np.triu(apart < 1.05 * apart.min()))
    return list(zip(first.tolist(), second.tolist(), strict=True))
