"""What a calibration starts from: where the hand was and where the board's corners were seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from calibration.camera import Camera
from sinew.errors import InputError
from sinew.se3 import Array, se3, se3_act, so3_exp


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
    all_rays = np.full(views.pixels.shape, np.nan)
    for c, camera in enumerate(cameras):
        all_rays[views.camera == c] = camera.unproject(views.pixels[views.camera == c])
    for i in range(len(views)):
        seen, camera = views.seen[i], cameras[views.camera[i]]
        rays = all_rays[i, seen]
        known = np.isfinite(rays).all(1)
        points, rays = views.points[i, seen][known], rays[known]
        if len(points) < 4:
            continue
        tries = _pnp(points, rays)
        best = _best(tries, points, views.pixels[i, seen][known], camera)
        if best is None or best[1] > DOUBTFUL_PX:
            inliers = _agreeing(points, rays, camera)
            if len(inliers) >= 6:
                again = _best(_pnp(points[inliers], rays[inliers]), points[inliers], views.pixels[i, seen][known][inliers], camera)
                best = again if again is not None and (best is None or again[1] < best[1]) else best
        if best is not None:
            poses[i], errors[i] = best
    return poses, errors


DOUBTFUL_PX = 2.0
"""A picture whose corners fit a rigid board worse than this may hold wrong corners, which are then looked for."""


def _pnp(points: Array, rays: Array) -> list[Array]:
    """Poses (4, 4) of the board from its corners; of a flat board two look nearly alike, and both are given."""
    import cv2

    flat = np.ptp(points[:, 2]) < 1e-9
    try:
        flag = cv2.SOLVEPNP_IPPE if flat else cv2.SOLVEPNP_SQPNP
        found = cv2.solvePnPGeneric(points[:, None], rays[:, None], np.eye(3), np.zeros(4), flags=flag)
        refined = [
            cv2.solvePnPRefineLM(points[:, None], rays[:, None], np.eye(3), np.zeros(4), rotation, translation)
            for rotation, translation in zip(found[1], found[2], strict=True)
        ]
    except cv2.error:
        return []
    return [se3(so3_exp(rotation.ravel()), translation.ravel()) for rotation, translation in refined]


def _best(poses: Sequence[Array], points: Array, pixels: Array, camera: Camera) -> tuple[Array, float] | None:
    """The pose with the least error, and that root mean square error in pixels per axis."""
    best = None
    for pose in poses:
        error = float(np.sqrt(np.mean(np.sum((camera.project(se3_act(pose, points)) - pixels) ** 2, 1)) / 2))
        if np.isfinite(error) and (best is None or error < best[1]):
            best = pose, error
    return best


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
