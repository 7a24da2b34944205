"""Taking the views of a calibration with a robot: the first poses, every picture kept as it is taken, and going on with what is there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from calibration.boards import Board
from calibration.camera import Camera
from calibration.detection import detect
from calibration.model import Mount
from calibration.next_view import Goal, Sector
from calibration.routine import Outcome, Pace, run_routine
from calibration.session import SessionWriter, continue_session, find_views, write_session
from calibration.views import View, Views, board_poses, pack
from robot_bridge.calibrating.mover import RobotMover
from robot_bridge.clock import sleep
from sinew.errors import DataError, InputError, SafetyStop
from sinew.progress import SILENT, Progress
from sinew.se3 import Array, se3, so3_exp

TURN_RAD: dict[Mount, float] = {"in_hand": float(np.deg2rad(10.0)), "to_hand": float(np.deg2rad(20.0))}
"""Turns of the hand that the first poses are made of: a camera on it must not lose the board, whichever way it looks."""


def first_poses(T_base_hand: Array, mount: Mount) -> list[Array]:
    """Poses (4, 4) about one from which the board is seen: enough to tell roughly where the camera is, which chooses the others.

    The hand turns about its own axes, by twice as much about its third one, which cameras mostly look along; later ones are for
    those that lose the board.
    """
    x, y, z = TURN_RAD[mount] * np.eye(3)
    turns = [x, y, -x - 2 * z, 2 * z - y, -x, -y, 2 * z, -2 * z, *(0.5 * turn for turn in (x, y, -x, -y))]
    return [T_base_hand, *(T_base_hand @ se3(so3_exp(turn), np.zeros(3)) for turn in turns)]


def take_views(
    mover: RobotMover,
    folder: Path,
    board: Board,
    camera: Camera,
    mount: Mount,
    *,
    goal: Goal | None = None,
    pace: Pace | None = None,
    sector: Sector | None = None,
    resume: bool = False,
    confirm: Callable[[str], bool] | None = None,
    progress: Progress = SILENT,
    seed: int = 0,
) -> Outcome:
    """Take views until the wanted accuracy is reached; every picture is in the folder when the next one is taken.

    Args:
        mover: the robot, which stands where its camera sees the board.
        folder: of our own layout, made here, or gone on with.
        board: what is looked at.
        camera: its intrinsics.
        mount: "in_hand" or "to_hand".
        goal: the accuracy at which to stop.
        pace: how long to wait and try.
        sector: from where the board is looked at.
        resume: go on with a folder that is there.
        confirm: asked once before the robot moves, with what is going to happen; None goes ahead.
        progress: told of every view.
        seed: of the candidates.

    Raises:
        InputError: the board is not seen, the picture is of another size than the intrinsics, the folder is there or another's.
        DataError: the first poses gave too few views.
        SafetyStop: nobody confirmed, or the robot or its camera is not well; it holds, and what was taken is kept.
    """
    pace = pace or Pace()
    if board.kind == "checkerboard":
        raise InputError("a checkerboard looks the same upside down, which one view cannot tell: use a ChArUco board")
    begin = _begin(mover, board, camera)
    writer, taken = _folder(folder, board, camera, mount, resume)
    distance_m = _distance(begin, camera)
    most = pace.most - len(taken)
    what = f"robot {mover.robot.spec.name} moves its hand slowly to up to {most} places around here, {distance_m:.2f} m from the board"
    if confirm is not None and not confirm(what):
        raise SafetyStop(f"robot {mover.robot.spec.name} was not allowed to move; it holds")

    def keep(image: np.ndarray, T_base_hand: Array, name: str) -> None:
        shot = mover.shot
        assert shot is not None  # the picture is of it
        joints, jacobian = shot.joints, mover.hand.jacobian(shot.joints)
        writer.add(image, T_base_hand, stamp_ns=shot.stamp_ns, joint_position=joints, joint_jacobian=jacobian)

    first = [] if len(taken) >= pace.begin else list(mover.near(np.array(first_poses(begin.robot, mount))))
    return run_routine(
        mover, first, board, camera, mount, goal=goal, sector=sector, pace=pace, reachable=mover.free, near=mover.near, taken=taken,
        keep=keep, progress=progress, sleep=lambda s: sleep(mover.clock, s), seed=seed,
    )  # fmt: skip


def _folder(folder: Path, board: Board, camera: Camera, mount: Mount, resume: bool) -> tuple[SessionWriter, list[View]]:
    """What adds to the session, and the views that are there."""
    if not (folder / "session.json").exists():
        return write_session(folder, board, (camera,), mount), []
    if not resume:
        raise InputError(f"{folder} holds views already: go on with them by --resume, or choose another folder")
    session, writer = continue_session(folder, board, (camera,), mount)
    try:
        views = find_views(session).views if session.shots else None
    except DataError:  # nothing that can be used yet
        views = None
    return writer, [] if views is None else _unpacked(views)


def _unpacked(views: Views) -> list[View]:
    return [
        View(
            robot=views.robot[views.pose[i]], points=views.points[i, views.seen[i]], pixels=views.pixels[i, views.seen[i]],
            sigma=views.sigma[i, views.seen[i]], name=views.names[i],
        )
        for i in range(len(views))
    ]  # fmt: skip


def _begin(mover: RobotMover, board: Board, camera: Camera) -> View:
    """What is seen from where the robot stands.

    Raises:
        InputError: not the board.
    """
    if problem := mover.stands_badly():
        raise InputError(f"robot {mover.robot.spec.name} stands where it may not begin to move: {problem}")
    image = mover.picture()
    size = (image.shape[1], image.shape[0])
    if size != (camera.width, camera.height):
        raise InputError(
            f"camera {mover.camera} gives pictures of {size[0]} x {size[1]}, its intrinsics are for {camera.width} x {camera.height}: "
            "give those of this size with --intrinsics"
        )
    found = detect(image, board)
    if found.refused:
        raise InputError(
            f"camera {mover.camera} does not see the board from where the robot stands ({found.refused}): bring the robot to where the "
            "board fills about half of the picture, and check --kind, --columns, --rows and --dictionary"
        )
    return View(robot=mover.pose(), points=board.points[found.ids], pixels=found.pixels, sigma=found.sigma)


def _distance(view: View, camera: Camera) -> float:
    """From the camera to the board, m."""
    pose = board_poses(pack([view]), [camera])[0][0]
    if not np.isfinite(pose).all():
        raise InputError("where the board is cannot be told from the first picture: show more of it, nearer to the middle")
    return float(pose[2, 3])
