"""Draws what a keypoint reward looks for on a picture: both ways, what is walked of them, and the points that walk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import cv2
import numpy as np

from rewards.files import CameraView

WALKED, AHEAD, POINTS = (250, 210, 60), (90, 200, 250), {"tool": (90, 200, 250), "grasp": (235, 70, 60), "function": (80, 220, 110)}
"""Colours, RGB."""
LEGEND = "blue the tool, red where it takes hold, green the point that does the work; yellow what was walked, light blue what is ahead"
NEAREST_M = 0.01
"""What is nearer to the camera than this, or behind it, is not drawn."""


def draw(
    image: np.ndarray, view: CameraView, ways: Sequence[tuple[np.ndarray, float]], points: Mapping[str, np.ndarray], value: float
) -> np.ndarray:
    """A picture with ways and points drawn on it, (H, W, 3) uint8 RGB.

    Args:
        image: (H, W, 3) uint8 RGB, of any size with the proportions of `view`.
        view: the camera.
        ways: (M, 3) world, metres, and the metres walked of each.
        points: {"tool", "grasp", "function": (3,) world, metres}.
        value: of the potential, written beside.
    """
    drawn, scale = image.copy(), image.shape[1] / view.width
    for way, walked in ways:
        steps = np.linalg.norm(np.diff(way, axis=0), axis=1)
        arc = np.concatenate(([0.0], np.cumsum(steps)))
        here = np.array([np.interp(walked, arc, way[:, i]) for i in range(3)]) if arc[-1] > 0 else way[0]
        done = int((arc <= walked).sum())
        _line(drawn, _pixels(np.vstack([here, way[done:]]), view, scale), AHEAD, 1)
        _line(drawn, _pixels(np.vstack([way[:done], here]), view, scale), WALKED, 2)
        for pixel in _pixels(way[1:], view, scale):
            if pixel is not None:
                cv2.circle(drawn, pixel, 3, AHEAD, 1, cv2.LINE_AA)
    for name, place in points.items():
        pixel = _pixels(place[None], view, scale)[0]
        if pixel is not None:
            cv2.circle(drawn, pixel, 5, (20, 20, 20), 2, cv2.LINE_AA)
            cv2.circle(drawn, pixel, 4, POINTS[name], -1, cv2.LINE_AA)
    for row, name in enumerate(points):  # points often lie on each other, and names beside them would too
        _write(drawn, name, (6, 14 + 14 * row), POINTS[name])
    _write(drawn, f"potential {value:.2f}", (6, drawn.shape[0] - 8), WALKED)
    return drawn


def _write(image: np.ndarray, text: str, place: tuple[int, int], colour: tuple[int, int, int]) -> None:
    for ink, width in (((20, 20, 20), 3), (colour, 1)):
        cv2.putText(image, text, place, cv2.FONT_HERSHEY_SIMPLEX, 0.42, ink, width, cv2.LINE_AA)


def _pixels(places: np.ndarray, view: CameraView, scale: float) -> list[tuple[int, int] | None]:
    """Where world points (M, 3) are in the picture; None for those behind the camera."""
    inside = (np.linalg.inv(view.T_world_camera) @ np.column_stack([places, np.ones(len(places))]).T)[:3]
    flat = view.matrix @ inside
    return [
        (round(scale * (u / z + 0.5) - 0.5), round(scale * (v / z + 0.5) - 0.5)) if z > NEAREST_M else None for u, v, z in flat.T.tolist()
    ]


def _line(image: np.ndarray, pixels: Sequence[tuple[int, int] | None], colour: tuple[int, int, int], width: int) -> None:
    for a, b in pairwise(pixels):
        if a is not None and b is not None:
            cv2.line(image, a, b, colour, width, cv2.LINE_AA)
