"""Where a camera beside the robot is, from pictures of the robot itself: no board, no mark, no first guess.

The pose comes with its covariance, with what each view contributed, and with what the views cannot tell; masks that do not fit are
named and left out, and where too little is left the calibration is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from calibration.body import Body
from calibration.camera import Camera
from calibration.joint_noise import inverse, marginal, normals
from calibration.masks import unusable
from calibration.observability import Observability, _directions
from calibration.results import Mounted
from calibration.silhouette_start import starts
from calibration.silhouettes import BLEED_PX, Aligned, Look, Prior, Silhouettes, align, approach
from calibration.solve import UnobservableError
from sinew.errors import DataError, InputError
from sinew.progress import SILENT, Progress
from sinew.se3 import Array, so3_log

LEAST_VIEWS = 3
SAME_RAD = 1e-3
"""Views at which no joint differs by more are one."""
DEGREES = 2.2 * np.pi
"""Joint positions beyond this are taken for degrees."""
POOR = 0.5
"""Drawn body and masks that overlap less do not fit."""
APART_RAD, NEARLY = float(np.deg2rad(8.0)), 0.02
"""Another pose this far away with an overlap that is worse by less makes the answer ambiguous."""
MOVED_RAD = float(np.deg2rad(5.0))


@dataclass(frozen=True, kw_only=True)
class Markerless:
    """A calibration on the robot's own body."""

    T: Array
    """T_base_camera (4, 4)."""
    covariance: Array
    """(6, 6) of a twist in the camera's frame: rotation vector in rad first, then translation in m."""
    camera: Camera
    held_out_px: float | None
    """Median distance of outlines from where views that were left out of the estimate had them predicted; None of few views."""
    used: tuple[str, ...]
    rejected: dict[str, str]
    observability: Observability
    aligned: Aligned
    looks: tuple[Look, ...]
    """Those that were tried, in the order of `aligned`."""
    start: Array
    """T_base_camera (4, 4) before the refinement."""

    @property
    def pixel_sigma(self) -> float:
        """Noise of an outline, px."""
        return self.aligned.levels.pixel


def solve_markerless(
    body: Body, looks: Sequence[Look], camera: Camera, *, prior: Prior | None = None, tolerance_m: float = 0.01,
    tolerance_rad: float = float(np.deg2rad(1.0)), unobservable_ok: bool = False, seed: int = 0, progress: Progress = SILENT,
) -> Markerless:  # fmt: skip
    """Calibrate one camera.

    Args:
        body: what is drawn.
        looks: joint positions with masks, three or more; ten are good.
        camera: its intrinsics.
        prior: where the camera should be; the search begins there, and what masks do not tell comes from it.
        tolerance_m: a direction known worse than this is not known.
        tolerance_rad: the same of the rotation.
        unobservable_ok: return what there is instead of refusing.
        seed: of the search.
        progress: told of each stage.

    Raises:
        InputError: too few views, joints in degrees.
        DataError: the masks do not fit the body, or two poses fit alike.
        UnobservableError: a direction cannot be told and there is no prior.
    """
    good, rejected = usable(body, looks, camera)
    if len(good) < LEAST_VIEWS:
        told = "; ".join(f"{name}: {why}" for name, why in list(rejected.items())[:3])
        few = f"{len(good)} views are too few: at least {LEAST_VIEWS} different ones are needed, 10 are good"
        raise InputError(few + (f" ({told})" if told else ""))
    s = Silhouettes(body, good, camera)
    progress.start("look for the robot", 2)
    first = _starts(s, prior, seed)
    progress.advance()
    tried = [(align(s, pose, prior=prior), pose) for pose, _ in first]
    progress.advance()
    tried.sort(key=lambda t: -_quality(t[0]))
    best, start = tried[0]
    _check(best, tried[1:] if prior is None else [])
    for look, fits, fine in zip(good, best.fit, best.used, strict=True):
        if not fine:
            part = f"only {100 * fits:.0f} % of its outline is where the other views put the robot"
            rejected[look.name] = f"{part}: a wrong mask, other joints, or it is hidden"
    seen = judge(best, good, camera, body.joints, prior, tolerance_m, tolerance_rad)
    if not seen.observable and prior is None and not unobservable_ok:
        raise UnobservableError(_unobservable(seen))
    swap = [3, 4, 5, 0, 1, 2]
    return Markerless(
        T=best.T, covariance=covariance(best, prior)[np.ix_(swap, swap)], camera=camera, held_out_px=held_out(best, prior),
        used=tuple(look.name for look, u in zip(good, best.used, strict=True) if u), rejected=rejected, observability=seen, aligned=best,
        looks=tuple(good), start=start,
    )  # fmt: skip


def usable(body: Body, looks: Sequence[Look], camera: Camera) -> tuple[list[Look], dict[str, str]]:
    """The views that can be used, and why the others cannot.

    Raises:
        InputError: the joints look like degrees, or are of another number.
    """
    good: list[Look] = []
    rejected: dict[str, str] = {}
    for look in looks:
        if np.shape(look.joints) != (len(body.joints),):
            raise InputError(f"{look.name}: {np.size(look.joints)} joint positions for {len(body.joints)} joints: {', '.join(body.joints)}")
        if np.isfinite(look.joints).all() and np.abs(look.joints).max(initial=0.0) > DEGREES:
            raise InputError(f"{look.name}: a joint at {np.abs(look.joints).max():.0f} looks like degrees: give radians")
        same = [o.name for o in good if np.isfinite(look.joints).all() and np.abs(o.joints - look.joints).max(initial=0.0) < SAME_RAD]
        if not np.isfinite(look.joints).all():
            why = "its joint positions are not finite"
        elif look.mask.shape != (camera.height, camera.width):
            why = f"its mask is {look.mask.shape[1]} x {look.mask.shape[0]}, the camera's pictures {camera.width} x {camera.height}"
        elif same:
            why = f"the robot stood as in {same[0]}: it tells nothing new"
        else:
            why = unusable(look.mask)
        if why:
            rejected[look.name] = why
        else:
            good.append(look)
    return good, rejected


def _starts(s: Silhouettes, prior: Prior | None, seed: int) -> list[tuple[Array, float]]:
    """Poses to refine from, the best first."""
    if prior is not None:
        return [approach(s, prior.T, scale=0.5, widths_px=(30.0, 20.0, 12.0, 8.0), prior=prior)]
    found = starts(s, seed)
    if not found:
        raise DataError("no pose of the camera lets the robot look as in the masks: check joints, model and lens")
    chosen = [found[0]]
    for pose, overlap in found[1:]:
        apart = min(np.linalg.norm(so3_log(c[:3, :3].T @ pose[:3, :3])) for c, _ in chosen)
        if overlap > 0.8 * found[0][1] and apart > APART_RAD and len(chosen) < 3:
            chosen.append((pose, overlap))
    return chosen


def _quality(a: Aligned) -> float:
    return float(np.median(a.iou)) + float(np.median(a.fit))


def _check(best: Aligned, others: Sequence[tuple[Aligned, Array]]) -> None:
    """Refuse what does not fit, and what fits in two ways."""
    if int(best.used.sum()) < LEAST_VIEWS or float(np.median(best.iou[best.used])) < POOR:
        raise DataError(
            f"the masks do not fit the robot: in the best pose they overlap by {100 * float(np.median(best.iou)):.0f} %, and "
            f"{int(best.used.sum())} of {len(best.used)} views fit; check that masks show the whole robot, that joints are in the "
            "model's order and zero, and the lens"
        )
    for other, _ in others:
        apart = float(np.linalg.norm(so3_log(best.T[:3, :3].T @ other.T[:3, :3])))
        if apart > APART_RAD and _quality(other) > _quality(best) - NEARLY:
            raise DataError(
                f"two poses of the camera, {np.rad2deg(apart):.0f} degrees apart, fit the masks alike: add views with the arm turned to "
                "the side and stretched, or give a rough pose as prior"
            )


def _known(prior: Prior | None) -> Array:
    known = np.zeros((7, 7))
    known[6, 6] = BLEED_PX**-2.0
    if prior is not None:
        known[:6, :6] = prior.precision
    return known


def covariance(a: Aligned, prior: Prior | None) -> Array:
    """(6, 6) of a twist in the camera's frame, m and then rad."""
    return inverse(a.information.sum(0) / a.scatter + _known(prior))[:6, :6]


def held_out(a: Aligned, prior: Prior | None) -> float | None:
    """Median px between outlines and where an estimate without their view, and the joints as told, puts them; None of less than 5 views."""
    views = np.flatnonzero(a.used)
    if len(views) < 5:
        return None
    n = normals(a.rows, a.alike)
    gradient = marginal(n, a.levels)[1]
    total, errors = a.information.sum(0) + a.scatter * _known(prior), []
    for v in views:
        rows = a.rows[v]
        step = -inverse(total - a.information[v]) @ gradient[v]
        errors.append(np.abs(rows.e - rows.shared @ step)[rows.weight > 0])
    return float(np.median(np.concatenate(errors)))


def judge(
    a: Aligned, looks: Sequence[Look], camera: Camera, names: Sequence[str], prior: Prior | None, tolerance_m: float, tolerance_rad: float
) -> Observability:
    """How well the masks tell each direction of the camera's pose, and what would help."""
    alone, with_prior = covariance(a, None), covariance(a, prior)
    directions = [*_directions("translation", with_prior, alone, slice(0, 3)), *_directions("rotation", with_prior, alone, slice(3, 6))]
    own = np.sqrt([np.linalg.eigvalsh(alone[p, p])[-1] for p in (slice(0, 3), slice(3, 6))])
    fine = bool(own[0] <= tolerance_m and own[1] <= tolerance_rad)
    joints = np.array([look.joints for look, u in zip(looks, a.used, strict=True) if u])
    moved = [name for name, q in zip(names, joints.T, strict=True) if np.ptp(q) > MOVED_RAD]
    motion = "none" if not moved else "one joint" if len(moved) == 1 else "full"
    return Observability(fine, motion, tuple(directions), "" if fine else _advice(motion, moved, looks))


def _advice(motion: str, moved: Sequence[str], looks: Sequence[Look]) -> str:
    part = float(np.median([look.mask.mean() for look in looks]))
    if motion == "none":
        return "no joint moved by more than 5 degrees between the views: move all of them"
    if motion == "one joint":
        return f"only joint {moved[0]} moved: move the others too, by 30 degrees or more"
    if part < 0.01:
        return f"the robot fills {100 * part:.1f} % of the pictures: come nearer, or use a longer lens"
    return "the views are too few or the masks too rough: take more, with the arm stretched to all sides"


def _unobservable(seen: Observability) -> str:
    worst_m = next(d for d in seen.directions if d.kind == "translation")
    worst_rad = next(d for d in seen.directions if d.kind == "rotation")
    axis = " ".join(f"{v:+.2f}" for v in worst_m.axis)
    about = " ".join(f"{v:+.2f}" for v in worst_rad.axis)
    return (
        f"the masks do not tell where the camera is: {1e3 * worst_m.sigma:.0f} mm along {axis} and {np.rad2deg(worst_rad.sigma):.1f} "
        f"degrees about {about} (right, down, forward) are open; {seen.advice}, or give --cad-prior"
    )


def mounted(result: Markerless, name: str = "") -> Mounted:
    """What users of a calibration need; there is no board, so its place is the base's."""
    reach = np.concatenate([np.linalg.norm(r.joints, axis=1)[r.weight > 0] for r in result.aligned.rows if r.weight.any()])
    depth = float(np.linalg.norm(result.T[:3, 3]))
    sigma = result.aligned.levels.joint_rad
    return Mounted(
        name=name or "camera0", mount="to_hand", T=result.T, covariance=result.covariance, camera=result.camera, Z=np.eye(4),
        pixel_sigma=result.pixel_sigma, robot_sigma_rad=sigma,
        robot_sigma_m=float(sigma * np.sqrt(np.mean(reach**2)) * depth / result.camera.focal[0]),
    )  # fmt: skip


def summary(result: Markerless) -> dict[str, Any]:
    """What `--json` prints."""
    a, o = result.aligned, result.observability
    return {
        "mount": "to_hand",
        "T": result.T.tolist(),
        "covariance": result.covariance.tolist(),
        "held_out_px": result.held_out_px,
        "used": list(result.used),
        "rejected": result.rejected,
        "model": "silhouettes",
        "bleed_px": a.bleed_px,
        "noise": {"pixel": a.levels.pixel, "joint_rad": a.levels.joint_rad, "alike": a.alike, "scatter": a.scatter},
        "overlap": {look.name: float(i) for look, i in zip(result.looks, a.iou, strict=True)},
        "observability": [
            {
                "observable": o.observable, "motion": o.motion, "advice": o.advice,
                "directions": [{"kind": d.kind, "axis": list(d.axis), "sigma": d.sigma, "from_prior": d.from_prior} for d in o.directions],
            }
        ],
    }  # fmt: skip
