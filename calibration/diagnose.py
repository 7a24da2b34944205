"""What is wrong with poses that fit no pictures: millimetres, a quaternion read in the wrong order, inverses, the wrong mount.

Each mistake is undone in turn, and the one that makes the views agree is named. Inverted poses of a camera on the hand are the poses of
a camera beside the robot: no view can tell the two apart, so both are named, first the one that puts the camera where cameras are.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from calibration.camera import Camera
from calibration.model import Mount
from calibration.start import guesses
from calibration.views import Views
from sinew.errors import InputError
from sinew.se3 import Array, matrix_to_quaternion, quaternion_to_matrix, se3_inverse

BETTER = 0.25
"""A mistake is named only when undoing it leaves so small a part of the disagreement."""
ENOUGH = 12
"""So many views of one camera tell."""
AGREE_PX = 40.0
"""Views that are farther apart than this still do not agree."""
UNITS = {
    1.0: "",
    1e-3: "the poses' positions are in millimetres: give metres",
    1e3: "the board's size is in millimetres: give metres",
}
ORDERS: dict[tuple[int, ...], str] = {
    (0, 1, 2, 3): "",
    (3, 0, 1, 2): "the poses' quaternions are xyzw and were read as wxyz",
    (1, 2, 3, 0): "the poses' quaternions are wxyz and were read as xyzw",
}
"""Where w, x, y and z are in the quaternion that was read."""


def diagnose(views: Views, cameras: tuple[Camera, ...], mount: Mount) -> str:
    """Name the mistake in the poses.

    Args:
        views: which do not agree.
        cameras: their lenses.
        mount: as it was told.

    Returns:
        One line, or nothing when no known mistake explains the views.
    """
    first = np.flatnonzero(views.camera == np.argmax(np.bincount(views.camera)))
    cameras = (cameras[views.camera[first[0]]],)
    views = views.subset(first[np.unique(np.linspace(0, len(first) - 1, ENOUGH).round().astype(int))])
    views = replace(views, camera=np.zeros(len(views), dtype=int))
    told = _disagreement(views, cameras, mount)[0]
    best, named = max(BETTER * told, 0.0), ""
    for order, wrong_order in ORDERS.items():
        for unit, wrong_unit in UNITS.items():
            mended = replace(views, robot=_read(views.robot, unit, order))
            for inverse in (False, True):
                if not (wrong_order or wrong_unit or inverse):
                    continue
                tried = replace(mended, robot=se3_inverse(mended.robot)) if inverse else mended
                error, x, z = _disagreement(tried, cameras, mount)
                # the simplest mistake wins unless another explains the views far better
                if error < AGREE_PX and error < best:
                    why = [w for w in (wrong_unit, wrong_order, _inverted(x, z, mount) if inverse else "") if w]
                    best, named = 0.5 * error, "; and ".join(why)
    return named


def _disagreement(views: Views, cameras: tuple[Camera, ...], mount: Mount) -> tuple[float, Array, Array]:
    """Pixels by which most views disagree (infinite when it cannot be told), and the first guess of X and Z, (3,) m each."""
    try:
        guess = guesses(views, cameras, mount)[0]
    except (InputError, np.linalg.LinAlgError):
        return np.inf, np.zeros(3), np.zeros(3)
    return guess.error_px, guess.estimate.X[0, :3, 3], guess.estimate.Z[:3, 3]


def _read(robot: Array, unit: float, order: tuple[int, ...]) -> Array:
    """The poses with positions times `unit`, and quaternions whose w, x, y, z stand at `order` in those that were read."""
    result = robot.copy()
    result[:, :3, 3] *= unit
    if order != (0, 1, 2, 3):
        result[:, :3, :3] = quaternion_to_matrix(matrix_to_quaternion(robot[:, :3, :3])[:, list(order)])
    return result


def _inverted(x: Array, z: Array, mount: Mount) -> str:
    """Cameras and boards on a hand are near it: that tells inverted poses from the wrong mount, most of the time."""
    other = "to_hand" if mount == "in_hand" else "in_hand"
    poses, wrong = "the poses are T_hand_base and must be T_base_hand", f"the mount is {other} and not {mount}"
    near = np.linalg.norm(x) < np.linalg.norm(z)
    first, second = (poses, wrong) if near == (mount == "in_hand") else (wrong, poses)
    return f"{first} (or {second}: views cannot tell the two apart)"
