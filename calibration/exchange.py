"""Are cameras exchanged: is what comes under one camera's name the picture of another one.

Three looks, each enough: what the drivers tell of their lenses, a board that both see or that is where it was, and the robot's own body.
Each asks whether the pictures fit the calibrations better when two cameras change places; a camera that merely moved does not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import get_args

import numpy as np

from calibration.body import Body, drawing_lens, rim
from calibration.camera import Camera
from calibration.drift import USUAL, On, Picture
from calibration.results import Mounted
from calibration.views import View, board_poses, pack
from sinew.calibrations import lenses_apart
from sinew.config import to_json
from sinew.se3 import Array, se3_inverse, so3_log

BETTER = 3.0
"""An exchange is told of when it explains so many times better."""
LENS = 0.02
"""Lenses nearer to each other than this share of the width are not told apart."""
LEVER_M = 0.3
"""A radian counts as much as this way."""
FAR_M, NEAR_M = 0.03, 0.05
"""A board nearer than the first to where it must be is no sign of an exchange; farther than the second no exchange explains it."""
CONTRAST = 2.5
"""Edges along the robot's outline must be so many times as strong as edges are on the whole, in one of the pictures at least."""
ACROSS_PX = 2.0
LEAST_RIM = 30
"""Points of an outline with fewer of which nothing is said."""


def by_lens(cameras: Sequence[Mounted], told: Mapping[str, Camera], frames: Mapping[str, str] | None = None) -> str:
    """Compare what the drivers tell with the calibrations.

    Args:
        cameras: calibrated.
        told: each camera's lens, as its driver tells it.
        frames: each camera's frame, as its driver tells it.

    Returns:
        One line on the cameras that are exchanged; nothing where none are, or it cannot be told.
    """
    for a, b in combinations(cameras, 2):
        names = [] if frames is None else [frames.get(a.name, ""), frames.get(b.name, "")]
        if names and _of(b.name, names[0], a.name) and _of(a.name, names[1], b.name):
            return _line(a.name, b.name, f"their frames are {names[0]} and {names[1]}")
        if a.name not in told or b.name not in told:
            continue
        apart = [lenses_apart(to_json(m.camera), to_json(told[name])) for m, name in ((a, a.name), (b, b.name), (a, b.name), (b, a.name))]
        straight, crossed = max(apart[:2]), max(apart[2:])
        if min(apart[:2]) > LENS and straight > BETTER * crossed:
            return _line(a.name, b.name, f"the lens of each is that of the other (fx {_focal(told[a.name])} and {_focal(told[b.name])})")
    return ""


def _of(name: str, frame: str, other: str) -> bool:
    """Whether a frame is that of a camera, by its name."""
    return name in frame and (other not in frame or other in name)


def _focal(camera: Camera) -> str:
    return f"{camera.focal[0]:.0f}"


def by_board(cameras: Sequence[Mounted], pictures: Sequence[Picture]) -> str:
    """Compare where the cameras see a board with where it must be.

    Args:
        cameras: calibrated.
        pictures: one of each camera that sees a board; they see the same one, or those that they were calibrated with.

    Returns:
        As `by_lens`.
    """
    known = {m.name: m for m in cameras}
    seen = {p.camera: p for p in pictures if p.camera in known}
    for a, b in combinations(seen, 2):
        pair = {a: seen[a], b: seen[b]}
        straight = _misfit(pair, {a: known[a], b: known[b]})
        crossed = _misfit(pair, {a: known[b], b: known[a]})
        if straight > FAR_M and crossed < NEAR_M and straight > BETTER * crossed:
            off = f"{1e3 * straight:.0f} mm off where it must be, {1e3 * crossed:.0f} mm with the two exchanged"
            return _line(a, b, f"the board is {off}")
    return ""


def _misfit(pictures: Mapping[str, Picture], stored: Mapping[str, Mounted]) -> float:
    """Metres by which the worse of two pictures puts its board elsewhere than the calibration or the other picture, at best."""
    best = np.inf
    for told in (None, *(on for on in get_args(On) if on != "robot")):
        places = {name: _place(picture, stored[name], told or picture.on) for name, picture in pictures.items()}
        one, other = places.values()
        if one is None or other is None:
            return np.inf
        usual = [(place, stored[name]) for name, place in places.items() if place is not None]
        own = [_apart(place[1], m.Z) if place[0] == USUAL[m.mount] else np.inf for place, m in usual]
        together = _apart(one[1], other[1]) if one[0] == other[0] else np.inf
        best = min(best, max(own), together)
    return float(best)


def _place(picture: Picture, stored: Mounted, on: On | None) -> tuple[On, Array] | None:
    """What a board is on, and where it is there: T_base_board or T_hand_board (4, 4)."""
    on = on or USUAL[stored.mount]
    view = View(robot=picture.robot, points=picture.points * stored.scale, pixels=picture.pixels)
    pose = board_poses(pack([view]), [stored.camera])[0][0]
    if not np.isfinite(pose).all():
        return None
    in_mount = stored.T @ pose  # in the hand's frame for a camera on it, else in the base's
    if (stored.mount == "in_hand") == (on == "hand"):
        return on, in_mount
    return on, (picture.robot if stored.mount == "in_hand" else se3_inverse(picture.robot)) @ in_mount


def _apart(a: Array, b: Array) -> float:
    off = se3_inverse(a) @ b
    return float(np.linalg.norm(off[:3, 3]) + LEVER_M * np.linalg.norm(so3_log(off[:3, :3])))


def by_body(cameras: Sequence[Mounted], body: Body, joints: Array, robot: Array, images: Mapping[str, np.ndarray]) -> str:
    """Look for the robot's outline where each camera must see it.

    Args:
        cameras: calibrated.
        body: of the robot; its base's frame is that of the calibrations.
        joints: of the body (J,).
        robot: T_base_hand (4, 4) at them.
        images: the newest picture of each camera, (height, width) or (height, width, 3) uint8.

    Returns:
        As `by_lens`.
    """
    seen = [m for m in cameras if m.name in images]
    for a, b in combinations(seen, 2):
        found = {}
        for stored in (a, b):
            for name in (a.name, b.name):
                found[stored.name, name] = contrast(stored, body, joints, robot, images[name])
        straight = found[a.name, a.name] + found[b.name, b.name]
        crossed = found[a.name, b.name], found[b.name, a.name]
        if max(crossed) > CONTRAST and sum(crossed) > BETTER * straight:
            return _line(a.name, b.name, "the robot is where each of them sees it only with the two exchanged")
    return ""


def contrast(stored: Mounted, body: Body, joints: Array, robot: Array, image: np.ndarray) -> float:
    """How many times stronger the edges of a picture are along the robot's outline than on the whole; 0 where too little of it shows."""
    import cv2

    grey = image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    camera = _resized(stored.camera, grey.shape[1], grey.shape[0])
    if camera is None:
        return 0.0
    place, lens = robot @ stored.T if stored.mount == "in_hand" else stored.T, drawing_lens(camera)
    line = rim(body.draw(joints, place, lens), lens, camera, place)
    if len(line.pixels) < LEAST_RIM:
        return 0.0
    soft = cv2.GaussianBlur(grey.astype(np.float32), (0, 0), 1.0)
    along = (line.pixels + ACROSS_PX * line.normals).astype(np.float32), (line.pixels - ACROSS_PX * line.normals).astype(np.float32)
    out, inside = (cv2.remap(soft, p[:, :1], p[:, 1:], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)[:, 0] for p in along)
    step = round(2 * ACROSS_PX)
    usual = 0.5 * float(np.abs(soft[:, step:] - soft[:, :-step]).mean() + np.abs(soft[step:] - soft[:-step]).mean())
    return float(np.abs(out - inside).mean()) / max(usual, 0.5)


def _resized(camera: Camera, width: int, height: int) -> Camera | None:
    """The lens for pictures of another size and the same shape; None for another shape."""
    from dataclasses import replace

    scale = width / camera.width
    if abs(scale * camera.height - height) > 1.0:
        return None
    focal, centre = ((v[0] * scale, v[1] * scale) for v in (camera.focal, camera.centre))
    middle = 0.5 * (scale - 1.0)  # the middle of the first pixel is 0, 0
    return replace(camera, width=width, height=height, focal=focal, centre=(centre[0] + middle, centre[1] + middle))


def _line(a: str, b: str, why: str) -> str:
    return f"cameras {a} and {b} are exchanged: {why}; change their cables or topics, or calibrate again if that was meant"
