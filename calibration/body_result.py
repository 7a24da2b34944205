"""What a calibration on the robot's own body gives, whether by its outline or by points of it: pose, honesty, and what is written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from calibration.camera import Camera
from calibration.joint_noise import Levels, Rows, inverse, marginal, normals
from calibration.observability import Observability, _directions
from calibration.results import Mounted
from sinew.se3 import Array

MOVED_RAD = float(np.deg2rad(5.0))
FEW = 5
"""With fewer views nothing is held out."""
SMALL = 0.01
"""A robot that fills less of its pictures is far away."""


@dataclass(frozen=True, kw_only=True)
class BodyResult:
    """A calibration on the robot's own body."""

    T: Array
    """T_base_camera (4, 4)."""
    covariance: Array
    """(6, 6) of a twist in the camera's frame: rotation vector in rad first, then translation in m."""
    camera: Camera
    model: str
    """"silhouettes" or "keypoints"."""
    held_out_px: float | None
    """Median distance from where views that were left out of the estimate had it predicted; None of few views."""
    used: tuple[str, ...]
    rejected: dict[str, str]
    observability: Observability
    levels: Levels
    lever_px: float
    """Root mean square of how far what was matched moves in the picture per rad of a joint, all joints together."""
    more: Mapping[str, Any]
    """Figures of this kind of calibration, for the summary."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What counts as known."""

    tolerance_m: float = 0.01
    """A direction known worse than this is not known."""
    tolerance_rad: float = float(np.deg2rad(1.0))
    """The same of the rotation."""


def judge(
    information: Array, known: Array, joints: Array, names: Sequence[str], limits: Limits, part: float | None = None
) -> Observability:
    """How well the pictures tell each direction of the camera's pose, and what would help.

    Args:
        information: of a twist of the camera in its own frame (m, rad) and whatever else is estimated (S, S), from the pictures alone.
        known: the same of what was known before.
        joints: positions of the views that were used (V, J).
        names: of the joints.
        limits: what counts as known.
        part: how much of a picture the robot fills, where that is known.
    """
    bleeding = np.zeros_like(known)
    bleeding[6:, 6:] = known[6:, 6:]
    alone, with_prior = inverse(information + bleeding)[:6, :6], inverse(information + known)[:6, :6]
    directions = [*_directions("translation", with_prior, alone, slice(0, 3)), *_directions("rotation", with_prior, alone, slice(3, 6))]
    own = np.sqrt([np.linalg.eigvalsh(alone[p, p])[-1] for p in (slice(0, 3), slice(3, 6))])
    fine = bool(own[0] <= limits.tolerance_m and own[1] <= limits.tolerance_rad)
    moved = [name for name, q in zip(names, joints.T, strict=True) if np.ptp(q) > MOVED_RAD]
    motion = "none" if not moved else "one joint" if len(moved) == 1 else "full"
    return Observability(fine, motion, tuple(directions), "" if fine else _advice(motion, moved, part))


def _advice(motion: str, moved: Sequence[str], part: float | None) -> str:
    if motion == "none":
        return "no joint moved by more than 5 degrees between the views: move all of them"
    if motion == "one joint":
        return f"only joint {moved[0]} moved: move the others too, by 30 degrees or more"
    if part is not None and part < SMALL:
        return f"the robot fills {100 * part:.1f} % of the pictures: come nearer, or use a longer lens"
    return "the views are too few or what is seen too rough: take more, with the arm stretched to all sides"


def open_directions(seen: Observability) -> str:
    """One line for a refusal."""
    worst_m = next(d for d in seen.directions if d.kind == "translation")
    worst_rad = next(d for d in seen.directions if d.kind == "rotation")
    axis, about = (" ".join(f"{v:+.2f}" for v in d.axis) for d in (worst_m, worst_rad))
    return (
        f"the pictures do not tell where the camera is: {1e3 * worst_m.sigma:.0f} mm along {axis} and {np.rad2deg(worst_rad.sigma):.1f} "
        f"degrees about {about} (right, down, forward) are open; {seen.advice}, or give --cad-prior"
    )


def held_out(
    rows: Sequence[Rows], used: np.ndarray, levels: Levels, known: Array, *, alike: float = 1.0, scatter: float = 1.0, per: int = 1
) -> float | None:
    """Median px from where an estimate without their view, and the joints as told, puts what was seen; None of few views.

    Args:
        rows: of all views, about the estimate.
        used: (V,) bool.
        levels: noise.
        known: precision of what was known before (S, S).
        alike: neighbours that count as one.
        scatter: factor of variances.
        per: rows that belong to one distance, 2 for points.
    """
    if int(used.sum()) < FEW:
        return None
    information, gradient, _, _ = marginal(normals(rows, alike), levels)
    total, errors = information[used].sum(0) + scatter * known, []
    for v in (int(i) for i in np.flatnonzero(used)):
        step = -inverse(total - information[v]) @ gradient[v]
        left = np.linalg.norm((rows[v].e - rows[v].shared @ step).reshape(-1, per), axis=1)
        errors.append(left[rows[v].weight.reshape(-1, per).any(1)])
    return float(np.median(np.concatenate(errors)))


def lever_px(rows: Sequence[Rows], per: int = 1) -> float:
    """See `BodyResult.lever_px`."""
    moved = np.concatenate([np.sum(r.joints**2, 1)[r.weight > 0] for r in rows])
    return float(np.sqrt(per * moved.mean())) if len(moved) else 0.0


def mounted(result: BodyResult, name: str = "") -> Mounted:
    """What users of a calibration need; there is no board, so its place is the base's."""
    away = float(np.linalg.norm(result.T[:3, 3]))
    sigma_m = result.levels.joint_rad * result.lever_px * away / float(np.mean(result.camera.focal))
    return Mounted(
        name=name or "camera0", mount="to_hand", T=result.T, covariance=result.covariance, camera=result.camera, Z=np.eye(4),
        pixel_sigma=result.levels.pixel, robot_sigma_rad=result.levels.joint_rad, robot_sigma_m=sigma_m,
    )  # fmt: skip


def summary(result: BodyResult) -> dict[str, Any]:
    """What `--json` prints."""
    o = result.observability
    return {
        "mount": "to_hand",
        "T": result.T.tolist(),
        "covariance": result.covariance.tolist(),
        "held_out_px": result.held_out_px,
        "used": list(result.used),
        "rejected": result.rejected,
        "model": result.model,
        "noise": {"pixel": result.levels.pixel, "joint_rad": result.levels.joint_rad},
        **result.more,
        "observability": [
            {
                "observable": o.observable, "motion": o.motion, "advice": o.advice,
                "directions": [{"kind": d.kind, "axis": list(d.axis), "sigma": d.sigma, "from_prior": d.from_prior} for d in o.directions],
            }
        ],
    }  # fmt: skip
