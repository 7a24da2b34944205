"""A markerless calibration for a person to judge: the drawn robot over every picture, what is known of the camera, what was left out.

Gives the parts of a page, as `calibration.report` does.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from html import escape
from pathlib import Path

import numpy as np

from calibration.body import Body, drawing_lens, outline, rim
from calibration.body_result import BodyResult
from calibration.markerless import Markerless
from calibration.report import Parts, _row
from calibration.report_pictures import STYLE, ellipse, figure
from sinew.se3 import Array

OVERLAY_PX = 480
"""Width of pictures in the page."""
MOST_VIEWS = 24
OVERLAY_STYLE = """
svg.overlay { width: 100%; height: auto; display: block; border-radius: 6px; background: #777; }
svg.overlay path { fill: none; stroke-linejoin: round; } svg.overlay .before { stroke: #ff5cc8; stroke-dasharray: 5 4; }
svg.overlay .after { stroke: #19e0ff; } svg.overlay .mask { stroke: #ffd400; }
.swatch { display: inline-block; width: 18px; border-top: 3px solid; vertical-align: middle; margin: 0 5px 0 12px; }
"""


def header(result: BodyResult, name: str) -> str:
    """The title, one sentence, and tiles with the figures that matter."""
    o = result.observability
    known = f"known to {1e3 * o.worst_m:.2g} mm and {np.rad2deg(o.worst_rad):.2g}°"
    told = "Every direction is told by the views." if o.observable else f"Not every direction is told by the views: {o.advice}."
    left = f"{len(result.used)} views used, {len(result.rejected)} left out." if result.rejected else f"All {len(result.used)} views used."
    tiles = [
        (f"± {1e3 * o.worst_m:.2g} mm", "place of the camera, worst direction, one standard deviation"),
        (f"± {np.rad2deg(o.worst_rad):.2g}°", "its orientation, worst direction"),
        ("–" if result.held_out_px is None else f"{result.held_out_px:.2f} px", "what was seen in views that were held out, median"),
        (f"{result.levels.pixel:.2f} px", "noise of an outline" if isinstance(result, Markerless) else "noise of a point"),
        (f"{np.rad2deg(result.levels.joint_rad):.2g}°", "what a joint is off, one standard deviation"),
    ]
    if isinstance(result, Markerless):
        a = result.aligned
        size = f"overlap of drawn robot and mask; masks are {a.bleed_px:+.1f} px too large"
        tiles.append((f"{100 * float(np.median(a.iou[a.used])):.0f} %", size))
    cells = "".join(f'<div class="tile"><b>{escape(big)}</b><span>{escape(small)}</span></div>' for big, small in tiles)
    lead = f'<span class="verdict {"better" if o.observable else "worse"}">{escape(told)}</span> {escape(left)}'
    return (
        f'<style>{STYLE}{OVERLAY_STYLE}</style><header><p class="kicker">Sinew calibration · camera beside the robot, markerless</p>'
        f'<h1>{escape(name)}: {known}</h1><p class="lead">{lead}</p></header><div class="tiles">{cells}</div>'
    )


def sections(result: BodyResult, body: Body, pictures: Mapping[str, Path], rejected: Mapping[str, str], name: str) -> Parts:
    """All below the header.

    Args:
        result: the calibration.
        body: what was drawn.
        pictures: of the views, where they were kept; the masks stand for those that were not.
        rejected: what was left out, and why.
        name: of the camera.
    """
    rows = "".join(f"<tr><td>{escape(view)}</td><td>{escape(why)}</td></tr>" for view, why in rejected.items())
    table = f'<div class="scroll"><table><thead><tr><th>View</th><th>Why</th></tr></thead><tbody>{rows}</tbody></table></div>'
    text = "\n".join("  ".join(f"{v:+.6f}" for v in row) for row in result.T)
    drawn = [("The robot drawn over the pictures", _overlays(result, body, pictures))] if isinstance(result, Markerless) else []
    return [
        *drawn,
        (f"What is known of {name}", _uncertainty(result)),
        ("Left out", table if rejected else "<p>Nothing.</p>"),
        ("The result", f"<dl><dt>{escape(name)}, T_base_camera</dt><dd><pre style='margin:0'><code>{text}</code></pre></dd></dl>"),
    ]


def overlay(result: Markerless, body: Body, view: int, picture: np.ndarray | None = None) -> str:
    """One picture with the outlines of the robot drawn before and after, and that of the mask, as SVG.

    Args:
        result: the calibration.
        body: what is drawn.
        view: number of the view in `result.looks`.
        picture: (height, width, 3) uint8 RGB; the mask if left out.
    """
    look, camera, a = result.looks[view], result.camera, result.aligned
    lens, lines = drawing_lens(camera), []
    for style, pose, joints in (("before", result.start, look.joints), ("after", result.T, look.joints + a.joint_errors[view])):
        drawn = rim(body.draw(joints, pose, lens), lens, camera, pose)
        lines.append((style, drawn.pixels, drawn.line))
    seen = outline(look.mask)
    lines.insert(1, ("mask", seen.pixels, seen.line))
    image = np.repeat((70 + 90 * look.mask.astype(np.uint8))[..., None], 3, 2) if picture is None else picture
    width = camera.width / OVERLAY_PX
    thick = {"before": 1.1 * width, "mask": 1.6 * width, "after": 1.1 * width}
    paths = "".join(f'<path class="{style}" stroke-width="{thick[style]:.1f}" d="{_path(p, n)}"/>' for style, p, n in lines)
    return (
        f'<svg class="overlay" viewBox="0 0 {camera.width} {camera.height}" role="img" aria-label="robot drawn over {escape(look.name)}">'
        f'<image href="{_data(image)}" width="{camera.width}" height="{camera.height}"/>{paths}</svg>'
    )


def _overlays(result: Markerless, body: Body, pictures: Mapping[str, Path]) -> str:
    from calibration.masks import read_picture
    from sinew.errors import DataError

    plates = []
    for v, look in enumerate(result.looks[:MOST_VIEWS]):
        picture = None
        if look.name in pictures:
            try:
                picture = read_picture(pictures[look.name])
            except DataError:  # masks without pictures are enough to calibrate
                picture = None
        if picture is not None and picture.shape[:2] != look.mask.shape:
            picture = None
        used = bool(result.aligned.used[v])
        note = f"overlap {100 * result.aligned.iou[v]:.0f} %" + ("" if used else ", left out")
        plates.append(figure(overlay(result, body, v, picture), look.name, note, "" if used else "out"))
    legend = "".join(
        f'<span class="swatch" style="border-color:{colour}"></span>{text}'
        for colour, text in (("#ff5cc8", "first guess"), ("#ffd400", "mask"), ("#19e0ff", "calibrated"))
    )
    note = f"Outlines of the robot:{legend}. Where the calibrated outline leaves the mask's, the mask is wrong or the model is."
    return f'<div class="plates three">{"".join(plates)}</div><p class="note">{note}</p>'


def _uncertainty(result: BodyResult) -> str:
    o = result.observability
    head = '<th>Direction</th><th class="n">Standard deviation</th><th></th><th class="n hide">From the prior</th>'
    rows = "".join(_row(d) for d in o.directions)
    table = f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'
    upwards = np.diag([1e3, -1e3, 1e3])  # right, up, forward, in mm
    square, plates = upwards @ result.covariance[3:, 3:] @ upwards, []
    reach = 1.25 * float(np.sqrt(5.991 * np.linalg.eigvalsh(square)[-1]))
    for i, j, names, title in (
        (0, 1, ("right", "up"), "From behind"), (0, 2, ("right", "forward"), "From above"), (2, 1, ("forward", "up"), "From the side")
    ):  # fmt: skip
        plates.append(figure(ellipse(square[np.ix_([i, j], [i, j])], names, " mm", reach), title, "of the camera"))
    note = "Axes are those of the camera: right, down, forward. Ellipses hold its true place with 95 %."
    advice = f'<p class="out">{escape(o.advice)}</p>' if o.advice else ""
    return f'{advice}{table}<div class="plates three" style="margin-top:18px">{"".join(plates)}</div><p class="note">{note}</p>'


def _path(pixels: Array, line: np.ndarray) -> str:
    """Points as an SVG path, begun anew where the line or the point before is another's."""
    parts, last = [], None
    for (x, y), n in zip(pixels, line, strict=True):
        near = last is not None and last[2] == n and abs(last[0] - x) + abs(last[1] - y) < 6
        parts.append(f"{'L' if near else 'M'}{x:.1f} {y:.1f}")
        last = (x, y, n)
    return "".join(parts)


def _data(image: np.ndarray) -> str:
    import cv2

    height, width = image.shape[:2]
    if width > OVERLAY_PX:
        image = cv2.resize(image, (OVERLAY_PX, round(height * OVERLAY_PX / width)), interpolation=cv2.INTER_AREA)
    _, data = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 75])
    return "data:image/jpeg;base64," + base64.b64encode(data.tobytes()).decode()
