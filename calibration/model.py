"""What an estimate of a calibration is, and how well it predicts the corners: residuals with their derivatives.

A corner p of the board appears at project(X^-1 M_i Z (s p)) with M_i the inverse of the hand's pose for a camera on the hand, and the
pose itself for one that looks at the hand. The true pose of the hand is the told one, moved by a small twist in the hand's frame:
what the robot gets wrong at that view, the clocks' offset times the hand's velocity, and the joints' offsets through its Jacobian.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from calibration.camera import Camera, by_twist
from calibration.views import Views
from sinew.errors import InputError
from sinew.se3 import Array, se3_adjoint, se3_exp, se3_inverse

Mount = Literal["in_hand", "to_hand"]
MOUNTS = ("in_hand", "to_hand")


@dataclass(frozen=True, kw_only=True)
class Free:
    """What is estimated besides the poses."""

    intrinsics: bool = False
    """Focal lengths, centre and distortion, held near the given ones by `Priors`."""
    scale: bool = False
    """The board's size."""
    time_offset: bool = False
    """Seconds by which the robot's clock is behind the camera's."""
    joint_offsets: bool = False
    """Radians that each joint's zero is off; the first and the last cannot be told from the poses and stay."""

    @property
    def name(self) -> str:
        """For tables: "poses", or what is free besides them."""
        on = [k for k in ("intrinsics", "scale", "time_offset", "joint_offsets") if getattr(self, k)]
        return " + ".join(on) or "poses"


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Everything that is estimated."""

    mount: Mount
    X: Array
    """Per camera T_hand_camera, or T_base_camera for cameras that look at the hand (C, 4, 4)."""
    Z: Array
    """T_base_board, or T_hand_board (4, 4)."""
    cameras: tuple[Camera, ...]
    log_scale: float = 0.0
    time_offset_s: float = 0.0
    joint_offsets_rad: Array
    xi: Array
    """What the robot got wrong (P, 6), m and rad in the hand's frame."""
    _hands: dict[str, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    def hands(self, views: Views) -> Array:
        """T_base_hand (P, 4, 4), corrected."""
        if self._hands.get("views") is not views:
            twist = self.time_offset_s * views.twists + views.joint_jacobians @ self.joint_offsets_rad
            self._hands.update(views=views, value=views.robot @ se3_exp(self.xi + twist))
        return self._hands["value"]

    def boards(self, views: Views) -> Array:
        """T_camera_board (V, 4, 4)."""
        hands = self.hands(views)[views.pose]
        middle = se3_inverse(hands) if self.mount == "in_hand" else hands
        return se3_inverse(self.X)[views.camera] @ middle @ self.Z


def first_estimate(mount: Mount, x: Array, z: Array, cameras: tuple[Camera, ...], views: Views) -> Estimate:
    """Poses alone, the robot believed."""
    if mount not in MOUNTS:
        raise InputError(f"mount {mount!r} is not known; known are {', '.join(MOUNTS)}")
    x = np.asarray(x, dtype=float).reshape(-1, 4, 4)
    joints = np.zeros(views.joint_jacobians.shape[2])
    return Estimate(
        mount=mount, X=x, Z=np.asarray(z, dtype=float), cameras=cameras, joint_offsets_rad=joints, xi=np.zeros((len(views.robot), 6))
    )


class Layout:
    """Where each free parameter stands in the vector of all that views share."""

    def __init__(self, estimate: Estimate, free: Free) -> None:
        cameras = len(estimate.X)
        self.free = free
        self.x = [slice(6 * c, 6 * c + 6) for c in range(cameras)]
        self.z = slice(6 * cameras, 6 * cameras + 6)
        at = self.z.stop
        self.lens: list[slice] = []
        if free.intrinsics:
            for camera in estimate.cameras:
                self.lens.append(slice(at, at + len(camera.parameters)))
                at = self.lens[-1].stop
        self.scale = slice(at, at + int(free.scale))
        self.time = slice(self.scale.stop, self.scale.stop + int(free.time_offset))
        joints = max(len(estimate.joint_offsets_rad) - 2, 0) if free.joint_offsets else 0
        self.joints = slice(self.time.stop, self.time.stop + joints)
        self.size = self.joints.stop
        self.own = np.arange(self.z.stop, self.scale.stop)
        """What moves each corner its own way: lenses and the board's size."""

    def move(self, estimate: Estimate, step: Array, xi: Array) -> Estimate:
        """The estimate after a step (size,) and with other robot errors (P, 6)."""
        moved = se3_exp(step[: self.z.stop].reshape(-1, 6))
        cameras = estimate.cameras
        if self.lens:
            cameras = tuple(c.with_parameters(c.parameters + step[s]) for c, s in zip(cameras, self.lens, strict=True))
        joints = estimate.joint_offsets_rad.copy()
        joints[1:-1][: self.joints.stop - self.joints.start] += step[self.joints]
        return replace(
            estimate, X=estimate.X @ moved[:-1], Z=estimate.Z @ moved[-1], cameras=cameras, xi=xi,
            log_scale=estimate.log_scale + float(step[self.scale].sum()),
            time_offset_s=estimate.time_offset_s + float(step[self.time].sum()), joint_offsets_rad=joints,
        )  # fmt: skip


def residuals(estimate: Estimate, views: Views) -> Array:
    """Predicted minus seen pixels (V, K, 2); NaN of corners behind the lens."""
    return _project(estimate, views, False)[0]


@dataclass(frozen=True)
class Linear:
    """Residuals about an estimate, and what moves them: mostly twists of the board before the camera, six numbers per view.

    Poses, clocks and joints move all corners of a view by one twist; only the lens and the board's size move each corner its own way.
    """

    r: Array
    """Predicted minus seen pixels (V, K, 2); NaN of corners behind the lens, 0 where there is no corner."""
    by_twist: Array
    """Derivative by a twist of the board in the camera's frame (V, K, 2, 6)."""
    by_own: Array
    """Derivative by lens and size (V, K, 2, E), in the order of `Layout.own`."""
    shared: Array
    """That twist per parameter that views share (V, 6, size)."""
    robot: Array
    """That twist per twist of the hand in its own frame (V, 6, 6)."""


def linear(estimate: Estimate, views: Views, layout: Layout) -> Linear:
    """The linear model about an estimate."""
    r, by_point, by_lens, in_camera, board = _project(estimate, views, True, bool(layout.lens))
    robot = _by_hand(estimate, views)
    shared = np.zeros((len(views), 6, layout.size))
    for c, part in enumerate(layout.x):
        shared[views.camera == c, :, part] = -np.eye(6)
    shared[:, :, layout.z] = se3_adjoint(board)
    if layout.free.time_offset:
        shared[:, :, layout.time] = robot @ views.twists[views.pose][..., None]
    if layout.joints.stop > layout.joints.start:
        shared[:, :, layout.joints] = robot @ views.joint_jacobians[views.pose][..., 1:-1]
    own = np.zeros((*r.shape, len(layout.own)))
    for c, part in enumerate(layout.lens):
        rows, width = views.camera == c, part.stop - part.start
        own[rows, ..., part.start - layout.own[0] : part.stop - layout.own[0]] = by_lens[rows][..., :width]
    if layout.free.scale:
        own[..., -1] = np.einsum("vkij,vkj->vki", by_point, in_camera - board[:, None, :3, 3])
    return Linear(r, by_twist(by_point, in_camera), own, shared, robot)


def linearise(estimate: Estimate, views: Views, layout: Layout) -> tuple[Array, Array, Array]:
    """Residuals and derivatives corner by corner: by what views share, and by the robot's errors.

    Returns:
        Residuals (V, K, 2); their derivatives (V, K, 2, size) and (V, K, 2, 6). All are 0 where there is no corner.
    """
    at = linear(estimate, views, layout)
    shared = at.by_twist @ at.shared[:, None]
    shared[..., layout.own] += at.by_own
    return at.r, shared, at.by_twist @ at.robot[:, None]


def _by_hand(estimate: Estimate, views: Views) -> Array:
    """Twist of the board in the camera's frame per twist of the hand in its own frame (V, 6, 6)."""
    inverse = se3_inverse(estimate.X)[views.camera]
    if estimate.mount == "in_hand":
        return -se3_adjoint(inverse)
    return se3_adjoint(inverse @ estimate.hands(views)[views.pose])


def _project(estimate: Estimate, views: Views, jacobians: bool, lens: bool = False) -> tuple[Array, Array, Array, Array, Array]:
    board = estimate.boards(views)
    points = views.points * np.exp(estimate.log_scale)
    in_camera = points @ np.swapaxes(board[:, :3, :3], 1, 2) + board[:, None, :3, 3]
    seen = views.seen[..., None]
    if len(estimate.cameras) == 1:
        pixels, by_point, by_lens = estimate.cameras[0].project_with_jacobians(in_camera, jacobians, lens)
    else:
        pixels, by_point = np.zeros((*in_camera.shape[:2], 2)), np.zeros((*in_camera.shape[:2], 2, 3))
        by_lens = np.zeros((*in_camera.shape[:2], 2, max(len(c.parameters) for c in estimate.cameras)))
        for c, camera in enumerate(estimate.cameras):
            rows = views.camera == c
            some, by_p, by_l = camera.project_with_jacobians(in_camera[rows], jacobians, lens)
            pixels[rows] = some
            if jacobians:
                by_point[rows], by_lens[rows, ..., : by_l.shape[-1]] = by_p, by_l
    r = np.where(seen, pixels - views.pixels, 0.0)
    if not jacobians:
        return r, r, r, in_camera, board
    hidden = ~(seen & np.isfinite(r).all(-1, keepdims=True))[..., None]
    return r, np.where(hidden, 0.0, by_point), np.where(hidden, 0.0, by_lens), np.where(seen, in_camera, 0.0), board
