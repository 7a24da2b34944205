"""From masks alone to rough poses of the camera: no first guess needed.

All directions from which the body can be looked at, and all rolls, are tried. For each of them the translation follows in closed form
from where the masks' middles are and how large they are; the best ones are compared by how far the body's points and the masks overlap.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from calibration.body import Body
from calibration.camera import Camera
from calibration.silhouettes import Look, Silhouettes, approach
from sinew.errors import DataError
from sinew.se3 import Array, se3, se3_inverse, so3_exp, so3_log

DIRECTIONS, ROLLS = 240, 16
POINTS = 250
"""Of the body's surface, for each view."""
CELLS = 48
"""Of the longer side of the picture, for the overlap."""
COMPARED = 400
APPROACHED, FINISHED = 10, 4
"""Poses that are approached, and those of them that are approached to the end."""
APART_RAD = 0.35
"""Poses nearer to a better one are not approached as well."""
WIDTHS_PX = (60.0, 40.0, 30.0, 20.0, 15.0, 10.0, 8.0)
"""For pictures 640 wide."""
COARSE_PX = 200.0
"""Width of the pictures that are drawn to approach."""


def starts(s: Silhouettes, seed: int = 0, count: int = APPROACHED) -> list[tuple[Array, float]]:
    """Poses T_base_camera (4, 4) that fit, the best first, each with the overlap that it gives in the median view (0 to 1).

    Raises:
        DataError: no pose puts the body where the masks are.
    """
    rng = np.random.default_rng(seed)
    points = np.array([surface(s.body, look.joints, POINTS, rng) for look in s.looks])
    T = candidates(points, s.looks, s.camera)
    if not len(T):
        raise DataError("no pose of the camera puts the robot where the masks are: check joints, model and lens")
    scores = overlap(T, points, s.looks, s.camera)
    scale = min(1.0, COARSE_PX / s.camera.width)
    widths = [w * s.camera.width / 640 for w in WIDTHS_PX]
    found = [(T[i], float(scores[i])) for i in distinct(T, scores, count)]
    for some, kept in ((widths[:3], count), (widths[3:], FINISHED)):
        found = [approach(s, pose, scale=scale, widths_px=some) for pose, _ in found[:kept]]
        found = sorted([(pose, fit) for pose, fit in found if np.isfinite(pose).all()], key=lambda f: -f[1])
    return found


def surface(body: Body, joints: Array, count: int, rng: np.random.Generator) -> Array:
    """Points (count, 3) of what can be seen of the body from eight sides, base frame."""
    middle, radius = body.bounds(joints)
    away, side = 4.0 * radius, 72
    focal = 0.5 * side * away / (1.05 * radius)
    lens = Camera(side, side, (focal, focal), ((side - 1) / 2, (side - 1) / 2))
    found = []
    for direction in np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)]) / np.sqrt(3):
        T = se3(_looking(-direction[None])[0], middle + away * direction)
        drawing = body.draw(joints, T, lens)
        row, column = np.nonzero(drawing.mask)
        depth = drawing.depth[row, column].astype(float)[:, None]
        rays = np.concatenate([(np.stack([column, row], -1) - np.array(lens.centre)) / focal, np.ones_like(depth)], 1)
        found.append((rays * depth) @ T[:3, :3].T + T[:3, 3])
    every = np.concatenate(found)
    if not len(every):
        raise DataError("the drawn robot is empty: its model has no shape that can be seen")
    return every[rng.integers(0, len(every), count)]


def candidates(points: Array, looks: Sequence[Look], camera: Camera) -> Array:
    """Poses (N, 4, 4) that put the middles (V) of the points (V, P, 3) on those of the masks and are as far away as these are small."""
    middle, size = _masks(looks, camera)
    centre = points.mean(1)
    rotations = _rotations()  # base to camera
    y = np.einsum("rij,vj->rvi", rotations, centre)
    spread = np.einsum("rij,vpj->rvpi", rotations, points - centre[:, None])[..., :2].reshape(len(rotations), len(looks), -1)
    depth = np.sqrt(np.mean(spread**2, -1) * 2) / size
    a = np.zeros((len(rotations), len(looks), 3, 3))
    b = np.zeros((len(rotations), len(looks), 3))
    a[..., 0, 0] = a[..., 1, 1] = a[..., 2, 2] = 1.0
    a[..., :2, 2] = -middle
    b[..., :2] = middle * y[..., 2:] - y[..., :2]
    b[..., 2] = depth - y[..., 2]
    weight = np.array([1.0, 1.0, 0.1])[:, None]
    a, b = (a * weight).reshape(len(rotations), -1, 3), (b * weight[:, 0]).reshape(len(rotations), -1)
    t = np.linalg.solve(np.einsum("rni,rnj->rij", a, a), np.einsum("rni,rn->ri", a, b)[..., None])[..., 0]
    error = np.linalg.norm((a @ t[..., None])[..., 0] - b, axis=1) / np.abs(y[..., 2] + t[:, 2:]).mean(1)
    front = (np.einsum("rij,vpj->rvpi", rotations, points[:, ::10])[..., 2] + t[:, None, None, 2]).min((1, 2)) > 0.05
    order = np.argsort(np.where(front, error, np.inf))[: min(COMPARED, int(front.sum()))]
    return se3_inverse(se3(rotations[order], t[order]))


def overlap(T: Array, points: Array, looks: Sequence[Look], camera: Camera) -> Array:
    """How far points (V, P, 3) seen from poses (N, 4, 4) cover the masks: shared over either, of coarse cells, mean of the views (N,)."""
    import cv2

    cell = max(camera.width, camera.height) / CELLS
    width, height = int(np.ceil(camera.width / cell)), int(np.ceil(camera.height / cell))
    inverse, total = se3_inverse(T), np.zeros(len(T))
    for look, some in zip(looks, points, strict=True):
        mask = cv2.resize(look.mask.astype(np.float32), (width, height), interpolation=cv2.INTER_AREA).ravel() > 0.3
        pixels = camera.project(np.einsum("nij,pj->npi", inverse[:, :3, :3], some) + inverse[:, None, :3, 3])
        at = np.floor((np.nan_to_num(pixels, nan=-1e6) + 0.5) / cell)
        inside = ((at >= 0) & (at < [width, height])).all(-1)
        index = np.where(inside, at[..., 0] + width * at[..., 1], 0).astype(int)
        covered = np.zeros((len(T), width * height), dtype=bool)
        rows = np.broadcast_to(np.arange(len(T))[:, None], index.shape)
        covered[rows[inside], index[inside]] = True
        total += (covered & mask).sum(1) / np.maximum((covered | mask).sum(1), 1)
    return total / len(looks)


def distinct(T: Array, scores: Array, count: int) -> list[int]:
    """The best poses (N, 4, 4), none of them turned by less than `APART_RAD` from a better one."""
    chosen: list[int] = []
    for i in np.argsort(-scores):
        turns = so3_log(np.swapaxes(T[chosen, :3, :3], 1, 2) @ T[i, :3, :3]) if chosen else np.full((1, 3), np.inf)
        if np.linalg.norm(turns, axis=1).min() > APART_RAD:
            chosen.append(int(i))
        if len(chosen) == count:
            break
    return chosen


def _masks(looks: Sequence[Look], camera: Camera) -> tuple[Array, Array]:
    """Middle (V, 2) and size (V,) of the masks, at one metre before the lens."""
    middles, sizes = [], []
    for look in looks:
        row, column = np.nonzero(look.mask)
        step = max(1, len(row) // 400)
        rays = camera.unproject(np.stack([column, row], -1)[::step].astype(float))
        rays = rays[np.isfinite(rays).all(1)]
        middles.append(rays.mean(0))
        sizes.append(np.sqrt(np.mean(np.sum((rays - rays.mean(0)) ** 2, 1))))
    return np.array(middles), np.array(sizes)


def _rotations() -> Array:
    """From the base to cameras in all directions and rolls (N, 3, 3)."""
    k = np.arange(DIRECTIONS) + 0.5
    polar, turn = np.arccos(1 - 2 * k / DIRECTIONS), np.pi * (1 + np.sqrt(5)) * k
    towards = np.stack([np.sin(polar) * np.cos(turn), np.sin(polar) * np.sin(turn), np.cos(polar)], -1)
    rolls = so3_exp(np.array([[0, 0, a] for a in np.linspace(0, 2 * np.pi, ROLLS, endpoint=False)]))
    looking = np.swapaxes(_looking(towards), 1, 2)
    return np.asarray(rolls[None] @ looking[:, None], dtype=float).reshape(-1, 3, 3)


def _looking(forward: Array) -> Array:
    """Rotations (N, 3, 3) of cameras that look along directions (N, 3) of length 1, x right, y down, z forward."""
    up = np.where(np.abs(forward[:, 2:]) > 0.9, [[0.0, 1.0, 0.0]], [[0.0, 0.0, 1.0]])
    right: Array = np.asarray(np.cross(forward, up), dtype=np.float64)
    right /= np.linalg.norm(right, axis=1, keepdims=True)
    down: Array = np.asarray(np.cross(forward, right), dtype=np.float64)
    return np.stack([right, down, forward], -1)
