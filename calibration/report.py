"""A calibration for a person to judge in ten seconds: how well the camera is known, what the views show, what was left out and why.

Gives the parts of a page; `sinew calibrate handeye` puts them into the frame that all our reports have.
"""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from pathlib import Path

import numpy as np

from calibration.model import residuals
from calibration.observability import Direction
from calibration.report_overlay import before_of, overlay
from calibration.report_pictures import STYLE, coverage_plate, ellipse, figure, residual_plate, scatter
from calibration.solve import Result
from sinew.se3 import Array, se3_inverse, so3_log

MOST_VIEWS = 24
"""Pictures drawn; with more views the worst ones."""
WELL_M, WELL_RAD = 2e-3, float(np.deg2rad(0.3))
"""Bars of directions known worse than this are red."""
Parts = list[tuple[str, str]]
"""Title and HTML of each section."""


def header(result: Result, names: tuple[str, ...] = ()) -> str:
    """The title, one sentence, and tiles with the figures that matter."""
    worst_m, worst_rad = max(o.worst_m for o in result.observability), max(o.worst_rad for o in result.observability)
    who = " and ".join(name_of(c, names) for c in range(len(result.T)))
    known = f"known to {1e3 * worst_m:.2g} mm and {np.rad2deg(worst_rad):.2g}°"
    short = f"{len(result.used)} views used, {len(result.rejected)} left out." if result.rejected else f"All {len(result.used)} views used."
    fine = all(o.observable for o in result.observability)
    told = "Every direction is told by the views." if fine else f"Not every direction is told by the views: {_advice(result)}."
    where = "on the hand" if result.mount == "in_hand" else "beside the robot"
    tiles = [
        (f"± {1e3 * worst_m:.2g} mm", "place of the camera, worst direction, one standard deviation"),
        (f"± {np.rad2deg(worst_rad):.2g}°", "its orientation, worst direction"),
        ("–" if result.held_out_px is None else f"{result.held_out_px:.2f} px", "corners of views that were held out, median"),
        (f"{result.pixel_sigma:.2f} px", "noise of a corner"),
        (f"{1e3 * result.robot_sigma_m:.2g} mm", f"noise of the robot's poses, and {np.rad2deg(result.robot_sigma_rad):.2g}°"),
    ]
    if abs(result.scale - 1) > 5e-3:
        tiles.append((f"{100 * (result.scale - 1):+.1f} %", "true size of the board against the told one: measure it"))
    cells = "".join(f'<div class="tile"><b>{escape(big)}</b><span>{escape(small)}</span></div>' for big, small in tiles)
    lead = f'<span class="verdict {"better" if fine else "worse"}">{escape(told)}</span> {escape(short)}'
    return (
        f'<style>{STYLE}</style><header><p class="kicker">Sinew calibration · camera {where}</p><h1>{escape(who)}: {known}</h1>'
        f'<p class="lead">{lead}</p></header><div class="tiles">{cells}</div>'
    )


def sections(
    result: Result, rejected: Mapping[str, str], names: tuple[str, ...] = (), pictures: Mapping[str, Path] | None = None,
    drawing: Array | None = None,
) -> Parts:  # fmt: skip
    """All below the header.

    Args:
        result: the calibration.
        rejected: what was left out and why, before and by the estimator.
        names: of the cameras.
        pictures: file of each view by name, to draw on.
        drawing: where the cameras should have been (C, 4, 4), to show beside; left out, a closed form stands there.
    """
    drawn = overlay(result, pictures, before_of(result, drawing)) if pictures else ""
    parts: Parts = [("Before and after", drawn)] if drawn else []
    parts += [("Residuals: arrows from where corners were seen to where the calibration puts them", _residuals(result))]
    parts += [(f"What is known of {name_of(c, names)}", _uncertainty(result, c)) for c in range(len(result.T))]
    parts.append(("Where the hand was, and what the pictures show", _coverage(result, names)))
    if rejected:
        rows = "".join(f"<tr><td>{escape(name)}</td><td>{escape(why)}</td></tr>" for name, why in rejected.items())
        table = f'<div class="scroll"><table><thead><tr><th>View</th><th>Why</th></tr></thead><tbody>{rows}</tbody></table></div>'
    else:
        table = "<p>Nothing.</p>"
    parts.append(("Left out", table))
    parts.append(("The result", _poses(result, names)))
    return parts


def name_of(camera: int, names: tuple[str, ...]) -> str:
    """As the files beside the report call it."""
    return names[camera] if camera < len(names) else f"camera{camera}"


def _advice(result: Result) -> str:
    return "; ".join(o.advice for o in result.observability if o.advice)


def _residuals(result: Result) -> str:
    views, estimate = result.views, result.fit.estimate
    r = residuals(estimate, views)
    used = result.fit.weights > 0
    size = np.linalg.norm(np.where(views.seen[..., None], r, np.nan), axis=-1)
    finite = np.where(np.isfinite(size), size, np.nan)
    worst = np.array([np.nanmedian(row) if np.isfinite(row).any() else np.inf for row in finite])
    chosen = np.sort(np.argsort(-worst, kind="stable")[:MOST_VIEWS])
    camera = estimate.cameras[0]
    larger = float(f"{0.03 * camera.width / max(result.pixel_sigma, 1e-3):.0e}")
    plates = []
    for i in chosen:
        seen, lens = views.seen[i], estimate.cameras[views.camera[i]]
        plate = residual_plate((lens.width, lens.height), views.pixels[i, seen], r[i, seen], used[i, seen], larger)
        out = not used[i].any()
        lost = int(seen.sum() - used[i].sum())
        note = (f"{worst[i]:.2f} px" if np.isfinite(worst[i]) else "behind the lens") + (
            ", left out" if out else f", {lost} corner{'s' * (lost > 1)} left out" if lost else ""
        )
        plates.append(figure(plate, views.names[i], note, "out" if out else ""))
    some = "" if len(chosen) == len(views) else f" The {MOST_VIEWS} worst of {len(views)} views."
    note = f"Arrows are drawn {larger:.0f} times too long; red ones were left out. Arrows of all views alike mean a wrong lens.{some}"
    return f'<div class="plates">{"".join(plates)}</div><p class="note">{note}</p>'


def _uncertainty(result: Result, camera: int) -> str:
    seen = result.observability[camera]
    rows = "".join(_row(d) for d in seen.directions)
    head = '<th>Direction</th><th class="n">Standard deviation</th><th></th><th class="n hide">From the drawing</th>'
    table = f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'
    upwards = np.diag([1e3, -1e3, 1e3])  # right, up, forward, in mm
    square, plates = upwards @ result.covariance[camera][3:, 3:] @ upwards, []
    reach = 1.25 * float(np.sqrt(5.991 * np.linalg.eigvalsh(square)[-1]))
    for i, j, names, title in (
        (0, 1, ("right", "up"), "From behind"), (0, 2, ("right", "forward"), "From above"), (2, 1, ("forward", "up"), "From the side")
    ):  # fmt: skip
        plates.append(figure(ellipse(square[np.ix_([i, j], [i, j])], names, " mm", reach), title, "of the camera"))
    note = "Axes are those of the camera: right, down, forward. Ellipses hold its true place with 95 %."
    advice = f'<p class="out">{escape(seen.advice)}</p>' if seen.advice else ""
    return f'{advice}{table}<div class="plates three" style="margin-top:18px">{"".join(plates)}</div><p class="note">{note}</p>'


def _row(d: Direction) -> str:
    turned = d.kind == "rotation"
    value = f"{np.rad2deg(d.sigma):.3g}°" if turned else f"{1e3 * d.sigma:.3g} mm"
    share = min(1.0, d.sigma / (2 * (WELL_RAD if turned else WELL_M)))
    weak = "weak" if share > 0.5 else ""
    axis = ", ".join(f"{v:+.2f}" for v in d.axis)
    return (
        f'<tr><td>{"turning about" if turned else "moving along"} <small>{axis}</small></td><td class="n">{value}</td>'
        f'<td class="wide"><div class="bar"><span class="{weak}" style="width:{max(100 * share, 2):.0f}%"></span></div></td>'
        f'<td class="n hide">{100 * d.from_prior:.0f} %</td></tr>'
    )


def _coverage(result: Result, names: tuple[str, ...]) -> str:
    views = result.views
    good = np.isin(np.arange(len(views.robot)), views.pose[result.fit.weights.any(1)])
    turns, places = _turns(views.robot, result.mount), 1e3 * (views.robot[:, :3, 3] - np.median(views.robot[:, :3, 3], axis=0))
    plates = [
        figure(scatter(turns[:, [0, 1]], good, ("first axis", "second axis"), "°"), "Rotations of the hand", "about its two main axes"),
        figure(scatter(places[:, [0, 1]], good, ("x", "y"), " mm"), "Positions of the hand", "from above"),
        figure(scatter(places[:, [0, 2]], good, ("x", "z"), " mm"), "Positions of the hand", "from the side"),
    ]
    for c, lens in enumerate(result.cameras):
        used = (result.fit.weights > 0) & (views.camera == c)[:, None]
        plates.append(
            figure(coverage_plate((lens.width, lens.height), views.pixels[used]), f"Picture of {name_of(c, names)}", "corners used")
        )
    motion = {o.motion for o in result.observability}
    note = f"The motion is {', '.join(sorted(motion))}. Good views turn the hand by 30° both ways about two axes and fill the picture."
    return f'<div class="plates three">{"".join(plates)}</div><p class="note">{escape(note)}</p>'


def _turns(robot: Array, mount: str) -> Array:
    """Rotations (P, 2) of the hand from its middle one, in degrees, about the two axes that it turns about most."""
    poses = robot if mount == "in_hand" else se3_inverse(robot)
    turns = np.rad2deg(so3_log(poses[len(poses) // 2, :3, :3].T @ poses[:, :3, :3]))
    turns = turns - np.median(turns, axis=0)
    return turns @ np.linalg.svd(turns, full_matrices=True)[2][:2].T


def _poses(result: Result, names: tuple[str, ...]) -> str:
    frame = "T_hand_camera" if result.mount == "in_hand" else "T_base_camera"
    rows = []
    for c, pose in enumerate(result.T):
        text = "\n".join("  ".join(f"{v:+.6f}" for v in row) for row in pose)
        rows.append(f"<dt>{escape(name_of(c, names))}, {frame}</dt><dd><pre style='margin:0'><code>{text}</code></pre></dd>")
    tried = ", ".join(f"{escape(k)} {v:.2f} px" for k, v in result.model_px.items())
    rows.append(f"<dt>Estimated besides the poses</dt><dd>{escape(result.model.replace('poses', 'nothing'))}</dd>")
    if result.joint_offsets_sigma_rad.any():
        pairs = zip(np.rad2deg(result.joint_offsets_rad), np.rad2deg(result.joint_offsets_sigma_rad), strict=True)
        offsets = ", ".join(f"{o:+.2f} ± {s:.2f}°" if s else "–" for o, s in pairs)
        rows.append(f"<dt>To be added to the joints</dt><dd>{offsets}</dd>")
    rows.append(f"<dt>What each model predicts</dt><dd>{tried}</dd>" if tried else "")
    return f"<dl>{''.join(rows)}</dl>"
