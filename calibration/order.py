"""Boards that look the same when turned around: which way round they were in each picture, by what all pictures have in common."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from calibration.boards import Board
from calibration.camera import Camera
from calibration.closed_form import hand_eye_and_world
from calibration.model import Mount
from calibration.views import View, board_poses, pack
from sinew.se3 import Array, se3, se3_inverse, so3_exp, so3_log

TRIALS = 150
LEVER_M = 0.3
"""A radian counts as much as this many metres."""


def symmetries(board: Board) -> list[np.ndarray]:
    """Orders of the corners that cannot be told apart in a picture, each (count,), the printed one first."""
    if board.kind != "checkerboard":
        return [np.arange(board.count)]
    grid = np.arange(board.count).reshape(board.rows - 1, board.columns - 1)
    turns = [grid, np.rot90(grid, 2)]
    if board.rows == board.columns:
        turns += [np.rot90(grid, 1), np.rot90(grid, 3)]
    return [t.ravel() for t in turns]


def resolve_order(views: Sequence[View], board: Board, cameras: tuple[Camera, ...], mount: Mount, seed: int = 0) -> list[View]:
    """The same views with their corners in one order.

    Args:
        views: each with all corners of the board, in any of its orders.
        board: what was seen.
        cameras: of the views.
        mount: where the cameras are.
        seed: of the random triples that are tried.
    """
    orders = symmetries(board)
    whole = [i for i, v in enumerate(views) if len(v.points) == board.count]
    if len(orders) == 1 or len(whole) < 4:
        return list(views)
    packed = pack([views[i] for i in whole])
    boards, _ = board_poses(packed, cameras)
    robot = (packed.robot if mount == "in_hand" else se3_inverse(packed.robot))[packed.pose]
    turns = np.array([_turn_of(order, board) for order in orders])
    choice = np.zeros(len(whole), dtype=int)
    for c in range(len(cameras)):
        rows = np.flatnonzero((packed.camera == c) & np.isfinite(boards).all((1, 2)))
        if len(rows) >= 4:
            choice[rows] = _choose(robot[rows], boards[rows], turns, np.random.default_rng(seed))
    result = list(views)
    for i, k in zip(whole, choice, strict=True):
        result[i] = replace(views[i], pixels=np.asarray(views[i].pixels)[np.argsort(orders[k])], points=board.points)
    return result


def _turn_of(order: np.ndarray, board: Board) -> Array:
    """The motion (4, 4) that carries the board's corners to those of another order."""
    a, b = board.points[:, :2], board.points[order][:, :2]
    angle = float(np.arctan2(np.sum(a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]), np.sum(a * b)))
    return se3(so3_exp([0, 0, angle]), np.zeros(3))


def _choose(robot: Array, boards: Array, turns: Array, rng: np.random.Generator) -> np.ndarray:
    """Which of the turns each view needs (N,)."""
    n = len(robot)
    best, choice = np.inf, np.zeros(n, dtype=int)
    for _ in range(TRIALS):
        rows = rng.choice(n, 3, replace=False)
        some = rng.integers(len(turns), size=3)
        some[0] = 0
        x, z = hand_eye_and_world(robot[rows], boards[rows] @ turns[some], "park")
        places = robot[:, None] @ x @ boards[:, None] @ turns[None]
        off = np.linalg.norm(places[..., :3, 3] - z[:3, 3], axis=-1)
        off = off + LEVER_M * np.linalg.norm(so3_log(z[:3, :3].T @ places[..., :3, :3]), axis=-1)
        error = float(np.sort(off.min(1))[int(0.7 * (n - 1))])
        if error < best:
            best, choice = error, off.argmin(1)
    return choice
