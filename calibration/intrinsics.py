"""Intrinsics: the lens from pictures of a board, its model chosen by what it predicts, with what the pictures do not cover.

OpenCV's calibration does the estimate; what it leaves open is added: which lens model, which pictures do not fit, how well each
parameter is known, and where in the picture no corner was seen.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from calibration.camera import Camera, Model
from calibration.views import Views
from sinew.errors import DataError, unknown
from sinew.se3 import Array

MODELS: tuple[Model, ...] = ("pinhole", "rational", "fisheye")
FEWEST = 5
CELLS = (6, 4)
"""The picture is divided into so many columns and rows to see what the corners cover."""
BAD_PX = 4.0
"""A picture whose error is this many times the middle one is left out."""
BETTER = 0.97
"""A richer lens is taken only when it predicts this much better."""


@dataclass(frozen=True, kw_only=True)
class Intrinsics:
    """A camera with how well it is known."""

    camera: Camera
    sigma: Array
    """Standard deviations of `camera.parameters` (4 + D,)."""
    rms_px: float
    held_out_px: float
    """Median distance of corners of left-out pictures from where the lens puts them once their pose is fitted."""
    model_px: dict[str, float]
    used: tuple[str, ...]
    rejected: dict[str, str]
    covered: float
    """Part of the picture's cells in which corners were seen."""
    tilted_deg: float
    """How far the board was tilted at most."""
    advice: str
    """What is missing; empty when nothing is."""


def calibrate_intrinsics(views: Views, size: tuple[int, int], model: str = "auto") -> Intrinsics:
    """The lens from views of one camera; the robot's poses are not used.

    Args:
        views: of one camera.
        size: (width, height) of its pictures.
        model: "pinhole", "rational", "fisheye", or "auto" for what predicts left-out pictures best.

    Raises:
        DataError: fewer than five pictures.
    """
    if model != "auto" and model not in MODELS:
        raise unknown("model", model, ("auto", *MODELS))
    if len(views) < FEWEST:
        raise DataError(f"{len(views)} pictures of the board are too few for a lens: at least {FEWEST} are needed, 15 or more are better")
    tried: dict[str, float] = {}
    for name in MODELS if model == "auto" else (model,):
        try:
            tried[name] = _held_out(views, size, name)  # type: ignore[arg-type]
        except _Failed:
            tried[name] = float("inf")
    chosen = next(iter(tried))
    for name in tried:
        if tried[name] < BETTER * tried[chosen]:
            chosen = name
    if not np.isfinite(tried[chosen]):
        raise DataError("no lens model fits these pictures: check the board's description, and that it is flat and differently tilted")
    rejected: dict[str, str] = {}
    keep = np.arange(len(views))
    camera, errors, sigma, tilts = _fit(views, size, chosen)  # type: ignore[arg-type]
    bad = errors > BAD_PX * np.median(errors)
    if bad.any() and (~bad).sum() >= FEWEST:
        rejected = {
            views.names[i]: f"its corners are {errors[i]:.1f} px off, the others' {np.median(errors):.1f}" for i in np.flatnonzero(bad)
        }
        keep = np.flatnonzero(~bad)
        camera, errors, sigma, tilts = _fit(views.subset(keep), size, chosen)  # type: ignore[arg-type]
    covered, advice = _coverage(views.subset(keep), size, tilts)
    return Intrinsics(
        camera=camera, sigma=sigma, rms_px=float(np.sqrt(np.mean(errors**2))), held_out_px=tried[chosen], model_px=tried,
        used=tuple(views.names[i] for i in keep), rejected=rejected, covered=covered, tilted_deg=float(np.rad2deg(tilts.max())),
        advice=advice,
    )  # fmt: skip


class _Failed(Exception):  # noqa: N818
    """OpenCV found no lens."""


def _fit(views: Views, size: tuple[int, int], model: Model) -> tuple[Camera, Array, Array, Array]:
    """The camera, the error of every picture in px (V,), standard deviations of the parameters, tilts of the board (V,) rad."""
    import cv2

    points = [views.points[i, views.seen[i]].astype(np.float32) for i in range(len(views))]
    pixels = [views.pixels[i, views.seen[i]].astype(np.float32) for i in range(len(views))]
    guess = np.array([[max(size), 0, (size[0] - 1) / 2], [0, max(size), (size[1] - 1) / 2], [0, 0, 1.0]])
    try:
        if model == "fisheye":
            flags = sum(getattr(cv2, n, 0) or getattr(cv2.fisheye, n) for n in ("CALIB_RECOMPUTE_EXTRINSIC", "CALIB_FIX_SKEW"))
            found: Any = cv2.fisheye.calibrate(
                [p[:, None] for p in points], [p[:, None] for p in pixels], size, guess, np.zeros(4), flags=flags
            )
            k, d, rotations = found[1], found[2], found[3]
        else:
            flags = cv2.CALIB_RATIONAL_MODEL if model == "rational" else 0
            found = cv2.calibrateCamera(points, pixels, size, None, None, flags=flags)  # type: ignore[call-overload]
            k, d, rotations = found[1], np.ravel(found[2])[: 8 if model == "rational" else 5], found[3]
        camera = Camera.from_matrix(k, [float(v) for v in np.ravel(d)], *size, model=model)
    except Exception as e:  # cv2.error, and parameters that are no camera
        raise _Failed(str(e)) from None
    poses = [(np.ravel(r), np.ravel(t)) for r, t in zip(rotations, found[4], strict=True)]
    errors, information = _errors(views, camera, poses)
    tilts = np.array([np.arccos(min(abs(float(cv2.Rodrigues(r)[0][2, 2])), 1.0)) for r, _ in poses])
    noise = float(np.median(errors)) / 1.18
    sigma = noise * np.sqrt(np.maximum(np.diag(np.linalg.pinv(information)), 0.0))
    return camera, errors, sigma, tilts


def _errors(views: Views, camera: Camera, poses: list[tuple[Array, Array]]) -> tuple[Array, Array]:
    """Root mean square distance per picture (V,), and information about the parameters, the poses eliminated."""
    from sinew.se3 import so3_exp, so3_hat

    size = len(camera.parameters)
    errors, information = np.zeros(len(views)), np.zeros((size, size))
    for i, (r, t) in enumerate(poses):
        points = views.points[i, views.seen[i]] @ so3_exp(r).T + t
        seen, by_point, by_lens = camera.project_with_jacobians(points)
        errors[i] = np.sqrt(np.mean(np.sum((seen - views.pixels[i, views.seen[i]]) ** 2, 1)))
        pose = np.concatenate([by_point, -by_point @ so3_hat(points)], -1).reshape(-1, 6)
        lens = by_lens.reshape(-1, size)
        if np.isfinite(lens).all() and np.isfinite(pose).all():
            information += lens.T @ lens - lens.T @ pose @ np.linalg.pinv(pose.T @ pose) @ pose.T @ lens
    return errors, information


def _held_out(views: Views, size: tuple[int, int], model: Model, folds: int = 3) -> float:
    """Median distance of corners of pictures that the lens was not made from, their pose fitted."""
    from calibration.views import board_poses

    distances = []
    for k in range(folds):
        out = np.arange(len(views)) % folds == k
        if (~out).sum() < 4:
            continue
        camera = _fit(views.subset(np.flatnonzero(~out)), size, model)[0]
        left = views.subset(np.flatnonzero(out))
        left = replace(left, camera=np.zeros(len(left), dtype=int))
        boards, _ = board_poses(left, [camera])
        for i in range(len(left)):
            points = left.points[i, left.seen[i]] @ boards[i, :3, :3].T + boards[i, :3, 3]
            distances.append(np.linalg.norm(camera.project(points) - left.pixels[i, left.seen[i]], axis=1))
    found = np.concatenate(distances) if distances else np.zeros(0)
    if not len(found) or not np.isfinite(found).mean() > 0.9:
        raise _Failed
    return float(np.median(found[np.isfinite(found)]))


def _coverage(views: Views, size: tuple[int, int], tilts: Array) -> tuple[float, str]:
    """Part of the cells of the picture with corners, and what is missing."""
    pixels = views.pixels[views.seen]
    cells = np.floor(pixels / np.array(size) * np.array(CELLS)).astype(int)
    cells = np.clip(cells, 0, np.array(CELLS) - 1)
    seen = np.zeros(CELLS, dtype=bool)
    seen[cells[:, 0], cells[:, 1]] = True
    missing = []
    for name, part in {"left": seen[0], "right": seen[-1], "top": seen[:, 0], "bottom": seen[:, -1]}.items():
        if part.mean() < 0.5:
            missing.append(name)
    advice = [f"hold the board at the {' and '.join(missing)} of the picture too"] if missing else []
    if np.rad2deg(tilts.max()) < 20:
        advice.append("tilt the board by 30 degrees and more, to the side and up and down")
    if len(views) < 15:
        advice.append(f"take {15 - len(views)} more pictures")
    return float(seen.mean()), "; ".join(advice)
