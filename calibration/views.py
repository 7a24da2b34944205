"""What a calibration starts from: where the hand was and where the board's corners were seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from calibration.camera import Camera, by_twist
from sinew.errors import InputError
from sinew.se3 import Array, se3, se3_exp, so3_exp


@dataclass(frozen=True, kw_only=True)
class View:
    """One picture of the board, with the robot's pose at that moment."""

    robot: Array
    """T_base_hand (4, 4), m."""
    points: Array
    """Corners on the board (K, 3), m."""
    pixels: Array
    """The same corners in the picture (K, 2)."""
    sigma: Array | None = None
    """Standard deviation of each corner relative to the others (K,); None for equal ones."""
    name: str = ""
    camera: int = 0
    """Which of several cameras."""
    pose: int | None = None
    """Views with one number were taken at one pose of the robot and share its error; None for a pose of its own."""
    twist: Array | None = None
    """Velocity of the hand in its own frame (6,), m/s and rad/s; for an offset of the clocks."""
    joint_jacobian: Array | None = None
    """Twist of the hand in its own frame per joint (6, J); for offsets of the joints."""


@dataclass(frozen=True, kw_only=True)
class Views:
    """Views as padded arrays: V views of at most K corners, P poses."""

    robot: Array
    """(P, 4, 4)."""
    points: Array
    """(V, K, 3)."""
    pixels: Array
    """(V, K, 2)."""
    sigma: Array
    """(V, K), infinity where there is no corner."""
    camera: np.ndarray
    """(V,) int."""
    pose: np.ndarray
    """(V,) int."""
    twists: Array
    """(P, 6)."""
    joint_jacobians: Array
    """(P, 6, J)."""
    names: tuple[str, ...]

    @property
    def seen(self) -> np.ndarray:
        """(V, K) bool."""
        return np.isfinite(self.sigma)

    def __len__(self) -> int:
        return len(self.camera)

    @property
    def cameras(self) -> int:
        """Number of cameras."""
        return int(self.camera.max()) + 1

    def subset(self, keep: Sequence[int] | np.ndarray) -> Views:
        """Only the views whose numbers are in `keep`, with only their poses."""
        keep = np.asarray(keep)
        poses, pose = np.unique(self.pose[keep], return_inverse=True)
        return Views(
            robot=self.robot[poses], points=self.points[keep], pixels=self.pixels[keep], sigma=self.sigma[keep],
            camera=self.camera[keep], pose=pose, twists=self.twists[poses], joint_jacobians=self.joint_jacobians[poses],
            names=tuple(self.names[i] for i in keep),
        )  # fmt: skip


def pack(views: Sequence[View]) -> Views:
    """Views as arrays.

    Raises:
        InputError: no views, or arrays of wrong shapes.
    """
    if not views:
        raise InputError("there are no views to calibrate from")
    most = max(len(v.points) for v in views)
    points, pixels, sigma = np.zeros((len(views), most, 3)), np.zeros((len(views), most, 2)), np.full((len(views), most), np.inf)
    for i, view in enumerate(views):
        k = len(view.points)
        if np.shape(view.points) != (k, 3) or np.shape(view.pixels) != (k, 2) or np.shape(view.robot) != (4, 4):
            raise InputError(f"view {view.name or i}: corners {np.shape(view.points)}, pixels {np.shape(view.pixels)} do not fit together")
        points[i, :k], pixels[i, :k] = view.points, view.pixels
        sigma[i, :k] = 1.0 if view.sigma is None else view.sigma
    keys = [("own", i) if v.pose is None else ("shared", v.pose) for i, v in enumerate(views)]
    order = list(dict.fromkeys(keys))
    first = [keys.index(key) for key in order]
    known = [views[i].joint_jacobian for i in first]
    jacobians = np.zeros((len(first), 6, max(0 if j is None else j.shape[1] for j in known)))
    for row, jacobian in enumerate(known):
        if jacobian is not None:
            jacobians[row] = jacobian
    return Views(
        robot=np.array([views[i].robot for i in first], dtype=float), points=points, pixels=pixels, sigma=sigma,
        camera=np.array([v.camera for v in views]), pose=np.array([order.index(key) for key in keys]),
        twists=np.array([np.zeros(6) if views[i].twist is None else views[i].twist for i in first], dtype=float),
        joint_jacobians=jacobians, names=tuple(v.name or str(i) for i, v in enumerate(views)),
    )  # fmt: skip


def board_poses(views: Views, cameras: Sequence[Camera]) -> tuple[Array, Array]:
    """Where each picture alone says the board is.

    Returns:
        T_camera_board (V, 4, 4), NaN where it cannot be told; root mean square error in pixels (V,).
    """
    poses, errors = np.full((len(views), 4, 4), np.nan), np.full(len(views), np.inf)
    for c, camera in enumerate(cameras):
        mine = np.flatnonzero(views.camera == c)
        rays = camera.unproject(views.pixels[mine])
        known = views.seen[mine] & np.isfinite(rays).all(-1)
        found = [_pnp(views.points[i, k], ray[k]) for i, ray, k in zip(mine, rays, known, strict=True)]
        _keep_best(found, mine, known, views, camera, poses, errors)
        for row in np.flatnonzero(known.sum(1) >= 6):
            i, k = mine[row], known[row]
            if errors[i] > DOUBTFUL_PX:
                inliers = _agreeing(views.points[i, k], rays[row, k], camera)
                if len(inliers) >= 6:
                    agreeing = np.zeros((1, len(k)), dtype=bool)
                    agreeing[0, np.flatnonzero(k)[inliers]] = True
                    again = _pnp(views.points[i, agreeing[0]], rays[row, agreeing[0]])
                    _keep_best([again], np.array([i]), agreeing, views, camera, poses, errors)
    return poses, errors


DOUBTFUL_PX = 2.0
"""A picture whose corners fit a rigid board worse than this may hold wrong corners, which are then looked for."""
UNLIKE = 4.0
"""Of two poses that explain a flat board, one is looked at no more whose error is so many times, and a pixel, larger."""
REFINE_STEPS = 10


def _pnp(points: Array, rays: Array) -> list[Array]:
    """Poses (4, 4) of the board from its corners; of a flat board two look nearly alike, and both are given."""
    import cv2

    if len(points) < 4:
        return []
    flag = cv2.SOLVEPNP_IPPE if np.ptp(points[:, 2]) < 1e-9 else cv2.SOLVEPNP_SQPNP
    try:
        found = cv2.solvePnPGeneric(points[:, None], rays[:, None], np.eye(3), np.zeros(4), flags=flag)
    except cv2.error:
        return []
    return [se3(so3_exp(rotation.ravel()), translation.ravel()) for rotation, translation in zip(found[1], found[2], strict=True)]


def _keep_best(
    found: Sequence[list[Array]], which: np.ndarray, known: np.ndarray, views: Views, camera: Camera, poses: Array, errors: Array
) -> None:
    """Refine the poses found for views `which` (N,) from their `known` corners (N, K); the best of each goes to `poses` and `errors`."""
    rows = np.repeat(np.arange(len(found)), [len(f) for f in found])
    if not len(rows):
        return
    start = np.array([pose for f in found for pose in f])
    points, pixels = views.points[which[rows]], views.pixels[which[rows]]
    square = _seen_from(start, points, pixels, known[rows], camera)[2]
    least = np.full(len(found), np.inf)
    np.minimum.at(least, rows, square)
    near = square <= UNLIKE**2 * least[rows] + known[rows].sum(1)
    rows = rows[near]
    refined, off = _refine(start[near], points[near], pixels[near], known[rows], camera)
    for row, pose, error in zip(rows, refined, off, strict=True):
        if error < errors[which[row]]:
            poses[which[row]], errors[which[row]] = pose, error


def _refine(poses: Array, points: Array, pixels: Array, known: np.ndarray, camera: Camera) -> tuple[Array, Array]:
    """Poses (N, 4, 4) moved to where corners (N, K) fit best by Levenberg and Marquardt, and their root mean square error per axis (N,)."""
    count, damping = np.maximum(known.sum(1), 1), np.full(len(poses), 1e-6)
    r, j, square = _seen_from(poses, points, pixels, known, camera)
    for _ in range(REFINE_STEPS):
        jt = np.swapaxes(j, 1, 2)
        normal = jt @ j
        diagonal = np.einsum("nii->ni", normal) + 1e-12
        normal = normal + (damping[:, None] * diagonal)[..., None] * np.eye(6)
        moved = se3_exp(-np.linalg.solve(normal, jt @ r[..., None])[..., 0]) @ poses
        new_r, new_j, new_square = _seen_from(moved, points, pixels, known, camera)
        better = new_square < square
        settled = ~better | (new_square > (1 - 1e-9) * square)
        poses, square = np.where(better[:, None, None], moved, poses), np.where(better, new_square, square)
        r, j = np.where(better[:, None], new_r, r), np.where(better[:, None, None], new_j, j)
        damping = np.where(better, damping / 10, np.maximum(10 * damping, 1e-3))
        if settled.all():
            break
    return poses, np.sqrt(square / (2 * count))


def _seen_from(poses: Array, points: Array, pixels: Array, known: np.ndarray, camera: Camera) -> tuple[Array, Array, Array]:
    """Residuals (N, 2 K), derivatives (N, 2 K, 6) by twists in the camera's frame, squared errors (N,), infinite behind the lens."""
    in_camera = points @ np.swapaxes(poses[:, :3, :3], 1, 2) + poses[:, None, :3, 3]
    shown, by_point, _ = camera.project_with_jacobians(in_camera, True, False)
    known = known[..., None]
    r = np.where(known, shown - pixels, 0.0)
    square = np.nan_to_num(np.sum(r * r, (1, 2)), nan=np.inf)
    j = np.where(known[..., None], by_twist(by_point, in_camera), 0.0)
    n, k = r.shape[:2]
    return np.nan_to_num(r).reshape(n, 2 * k), np.nan_to_num(j).reshape(n, 2 * k, 6), square


def _agreeing(points: Array, rays: Array, camera: Camera) -> np.ndarray:
    """Numbers of the corners on which most agree."""
    import cv2

    cv2.setRNGSeed(0)
    try:
        found = cv2.solvePnPRansac(
            points[:, None], rays[:, None], np.eye(3), np.zeros(4), reprojectionError=3.0 / camera.focal[0], iterationsCount=300,
            flags=cv2.SOLVEPNP_AP3P,
        )  # fmt: skip
    except cv2.error:
        return np.zeros(0, dtype=int)
    return np.zeros(0, dtype=int) if found[3] is None else np.ravel(found[3])
