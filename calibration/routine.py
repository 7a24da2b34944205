"""The routine that calibrates by itself: go to a pose, wait until all stands still, look, estimate again, choose the next pose, stop.

It knows nothing of robots: whoever calls it gives a `Mover`, which alone decides how the hand gets to a pose (through the safety gate,
with confirmation) and may refuse. A picture that cannot be used or a pose that was not reached is named, and the routine goes on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from calibration.boards import Board
from calibration.camera import Camera
from calibration.detection import detect
from calibration.estimator import Fit, calibrate
from calibration.model import Mount
from calibration.next_view import Goal, Sector, always, around_board, next_views, told_by
from calibration.views import View, Views, pack
from sinew.errors import DataError, InputError
from sinew.progress import SILENT, Progress
from sinew.se3 import Array, se3_inverse, so3_log

CHANGE = 6.0
"""Mean change of two pictures' grey values, above their noise, with which something still moves."""


class Mover(Protocol):
    """What the routine asks of a robot with a camera."""

    def move(self, T_base_hand: Array) -> None:
        """Bring the hand to a pose (4, 4), or as near as need be.

        Raises:
            InputError: the pose cannot be reached or was not confirmed; the routine takes another one.
        """
        ...

    def still(self) -> bool:
        """Whether the robot stands still now."""
        ...

    def picture(self) -> np.ndarray:
        """A picture taken after this call: (height, width) or (height, width, 3) uint8."""
        ...

    def pose(self) -> Array:
        """Where the hand was when the newest picture was taken, as measured (4, 4)."""
        ...


@dataclass(frozen=True, kw_only=True)
class Pace:
    """How long the routine waits and tries."""

    quiet: int = 5
    """Looks in a row at which the robot must stand still."""
    period_s: float = 0.05
    """Time between two looks."""
    settle_s: float = 10.0
    """A robot that does not stand still after this time has not settled."""
    least: int = 6
    """Views before which the noise is not known well enough to believe the accuracy."""
    most: int = 25
    """Views at which the routine ends though the accuracy is not reached."""
    failures: int = 8
    """Poses in a row without a view at which it gives up."""
    begin: int = 5
    """Views of first poses that are enough."""

    def __post_init__(self) -> None:
        if self.quiet < 1 or self.failures < 1 or not 0 <= self.period_s <= self.settle_s or not 3 <= self.least <= self.most:
            raise InputError(
                f"a pace of {self.quiet} looks, {self.failures} failures and {self.least} to {self.most} views cannot be: "
                "at least one look, one failure and three views"
            )


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What the routine ends with."""

    fit: Fit
    views: Views
    covariance: Array
    """Of the camera's pose from the views alone (6, 6; m, rad)."""
    reached: bool
    """Whether that is the wanted accuracy."""
    why: str
    """Why it ended."""
    rejected: dict[str, str] = field(default_factory=dict)
    """Poses without a view, and views that were not used, with the reason."""


def run_routine(
    mover: Mover,
    first: Sequence[Array],
    board: Board,
    camera: Camera,
    mount: Mount,
    *,
    goal: Goal | None = None,
    sector: Sector | None = None,
    pace: Pace | None = None,
    reachable: Callable[[Array], bool] = always,
    near: Callable[[Array], Array] | None = None,
    taken: Sequence[View] = (),
    keep: Callable[[np.ndarray, Array, str], None] | None = None,
    progress: Progress = SILENT,
    sleep: Callable[[float], None] = time.sleep,
    seed: int = 0,
) -> Outcome:
    """Calibrate one camera.

    Args:
        mover: robot and camera.
        first: hand poses (4, 4) that should show the board, at least three, turned about two axes: what the estimate begins with.
        board: what is looked at; of a kind that tells which way round it is.
        camera: its intrinsics.
        mount: "in_hand" or "to_hand".
        goal: the accuracy at which to stop.
        sector: from where the board is looked at.
        pace: how long to wait and to try.
        reachable: whether the robot can go to a pose.
        near: turns poses (N, 4, 4) into the nearest ones that the robot can go to (N, 4, 4); None where it can go to all that it can reach.
        taken: views of before, which count as if they were taken now.
        keep: gets every picture that was taken standing still, with the hand's pose and the view's name, before it is looked at.
        progress: told of every view.
        sleep: how to wait, s.
        seed: of the candidates.

    Raises:
        InputError: fewer than three first poses, or a board that looks the same upside down.
        DataError: the first poses gave fewer than three views.
    """
    goal, sector, pace = goal or Goal(), sector or Sector(), pace or Pace()
    if len(first) + len(taken) < 3:
        raise InputError(f"{len(first)} first poses are too few: give at least 3 that show the board, turned about two axes")
    if board.kind == "checkerboard":
        raise InputError("a checkerboard looks the same upside down, which one view cannot tell: use a ChArUco board")
    taking = _Taking(mover, board, camera, pace, sleep, taken, keep)
    progress.start("take views", pace.most, len(taken))
    for pose in first:
        if len(taking.views) >= pace.begin:
            break
        progress.advance(int(taking.take(pose)))
    if len(taking.views) < 3:
        told = "; ".join(f"{name}: {why}" for name, why in list(taking.rejected.items())[:3])
        raise DataError(f"{len(taking.views)} of {len(first)} first poses gave a view, 3 are needed: {told}")
    while True:
        views = pack(taking.views)
        fit = calibrate(views, (camera,), mount)
        if len(views) >= pace.least and goal.reached(told_by(fit)):
            why = "the wanted accuracy is reached"
        elif len(views) >= pace.most:
            why = f"{pace.most} views were taken"
        else:
            why = taking.one_more(fit, views, goal if len(views) >= pace.least else BEST, sector, reachable, near, seed)
        if why:
            break
        progress.advance()
    covariance = told_by(fit)
    return Outcome(
        fit=fit, views=views, covariance=covariance[0], reached=len(views) >= pace.least and goal.reached(covariance), why=why,
        rejected={**taking.rejected, **fit.rejected},
    )  # fmt: skip


BEST = Goal(position_m=0.3e-9, rotation_rad=float(np.deg2rad(0.05e-6)))
"""As the default, and never reached."""
NEAR_M, NEAR_RAD = 0.03, float(np.deg2rad(10.0))
"""Poses this near to one that failed are not tried."""


def _new(hand: Array, refused: Array) -> bool:
    moved = np.linalg.norm(refused[:, :3, 3] - hand[:3, 3], axis=-1)
    turned = np.linalg.norm(so3_log(se3_inverse(hand)[:3, :3] @ refused[:, :3, :3]), axis=-1)
    return not bool(((moved < NEAR_M) & (turned < NEAR_RAD)).any())


class _Taking:
    """Takes views one by one."""

    def __init__(
        self, mover: Mover, board: Board, camera: Camera, pace: Pace, sleep: Callable[[float], None], taken: Sequence[View],
        keep: Callable[[np.ndarray, Array, str], None] | None,
    ) -> None:  # fmt: skip
        self._mover, self._board, self._camera, self._pace, self._sleep = mover, board, camera, pace, sleep
        self._keep = keep
        self.views = list(taken)
        self.rejected: dict[str, str] = {}
        self._count = len(self.views)
        self._failed: list[Array] = []

    def one_more(
        self, fit: Fit, views: Views, goal: Goal, sector: Sector, reachable: Callable[[Array], bool],
        near: Callable[[Array], Array] | None, seed: int,
    ) -> str:  # fmt: skip
        """Choose poses until one gives a view; why none did."""
        for _ in range(self._pace.failures):
            failed = np.array(self._failed).reshape(-1, 4, 4)
            drawn = around_board(fit.estimate, views, self._board.points, sector, seed=seed + self._count)
            try:
                chosen = next_views(
                    fit, views, self._board.points, goal=goal, sector=sector, candidates=near(drawn) if near else drawn,
                    reachable=lambda hand, failed=failed: _new(hand, failed) and reachable(hand),
                )  # fmt: skip
            except InputError as e:
                return str(e)
            if self.take(chosen[0].T_base_hand):
                return ""
            self._failed.append(chosen[0].T_base_hand)
        return f"{self._pace.failures} poses in a row gave no view, the last one: {list(self.rejected.values())[-1]}"

    def take(self, T_base_hand: Array) -> bool:
        """Whether the pose gave a view; the reason is kept where it did not."""
        name = f"pose {self._count}"
        self._count += 1
        try:
            self._mover.move(T_base_hand)
            why = self._settle() or self._look(name)
        except InputError as e:
            why = str(e)
        if why:
            self.rejected[name] = why
        return not why

    def _settle(self) -> str:
        """Wait until the robot stands still and two pictures are alike; why it did not come to that."""
        looks, quiet = max(1, round(self._pace.settle_s / max(self._pace.period_s, 1e-3))), 0
        last: np.ndarray | None = None
        for _ in range(looks):
            quiet = quiet + 1 if self._mover.still() else 0
            if quiet >= self._pace.quiet:
                now = np.asarray(self._mover.picture())
                if last is not None and last.shape == now.shape and _change(last, now) < CHANGE:
                    return ""
                last = now
            self._sleep(self._pace.period_s)
        return f"it did not stand still within {self._pace.settle_s:g} s"

    def _look(self, name: str) -> str:
        """Take a picture and find the board; why that gave no view."""
        image = self._mover.picture()
        reached = np.asarray(self._mover.pose(), dtype=float)
        if not self._mover.still():
            return "the robot moved while the picture was taken"
        if reached.shape != (4, 4) or not np.isfinite(reached).all():
            return "the robot tells no finite pose"
        size = (image.shape[1], image.shape[0])
        if size != (self._camera.width, self._camera.height):
            return f"the picture is {size[0]} x {size[1]}, the camera's intrinsics are for {self._camera.width} x {self._camera.height}"
        if self._keep is not None:
            self._keep(image, reached, name)
        found = detect(image, self._board)
        if found.refused:
            return found.refused
        points = self._board.points[found.ids]
        self.views.append(View(robot=reached, points=points, pixels=found.pixels, sigma=found.sigma, name=name))
        return ""


def _change(a: np.ndarray, b: np.ndarray) -> float:
    """How much two pictures differ, noise of single pixels averaged away."""
    import cv2

    small = [cv2.resize(i, None, fx=0.125, fy=0.125, interpolation=cv2.INTER_AREA).astype(np.float32) for i in (a, b)]
    return float(np.percentile(np.abs(small[0] - small[1]), 99))
