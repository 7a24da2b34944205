"""Where a camera beside the robot is, from pictures of the robot itself: no board, no mark, no first guess.

The pose comes with its covariance, with what each view contributed, and with what the views cannot tell; masks that do not fit are
named and left out, and where too little is left the calibration is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from calibration.body import Body
from calibration.body_result import BodyResult, Limits, held_out, judge, lever_px, open_directions
from calibration.camera import Camera
from calibration.joint_noise import inverse
from calibration.masks import unusable
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
POOR, LOOSE_RAD = 0.6, float(np.deg2rad(3.0))
"""Drawn body and masks that overlap less, or fit only with joints that are off by more, do not fit."""
CLOSE = 0.9
"""Other poses are refined too where their overlap is at least this part of the best one's."""
APART_RAD, NEARLY = float(np.deg2rad(8.0)), 0.02
"""Another pose this far away with an overlap that is worse by less makes the answer ambiguous."""


@dataclass(frozen=True, kw_only=True)
class Markerless(BodyResult):
    """A calibration on the robot's outline."""

    aligned: Aligned
    looks: tuple[Look, ...]
    """Those that were tried, in the order of `aligned`."""
    start: Array
    """T_base_camera (4, 4) before the refinement."""


def solve_markerless(
    body: Body, looks: Sequence[Look], camera: Camera, *, prior: Prior | None = None, limits: Limits | None = None,
    unobservable_ok: bool = False, seed: int = 0, progress: Progress = SILENT,
) -> Markerless:  # fmt: skip
    """Calibrate one camera.

    Args:
        body: what is drawn.
        looks: joint positions with masks, three or more; ten are good.
        camera: its intrinsics.
        prior: where the camera should be; the search begins there, and what masks do not tell comes from it.
        limits: what counts as known.
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
    progress.start("find the robot", 1)
    first = _starts(s, prior, seed)
    progress.advance()
    progress.start("fit its outline", len(first))
    tried = []
    for pose, _ in first:
        tried.append((align(s, pose, prior=prior), pose))
        progress.advance()
    tried.sort(key=lambda t: -_quality(t[0]))
    best, start = tried[0]
    _fits(best)
    information, known = best.information.sum(0) / best.scatter, _known(prior)
    joints = np.array([look.joints for look, u in zip(good, best.used, strict=True) if u])
    part = float(np.median([look.mask.mean() for look in good]))
    seen = judge(information, known, joints, body.joints, limits or Limits(), part)
    if not seen.observable and prior is None and not unobservable_ok:
        raise UnobservableError(open_directions(seen))
    _alone(best, [other for other, _ in tried[1:]])
    for v in np.flatnonzero(~best.used):
        told = f"only {100 * best.fit[v]:.0f} % of its outline is where the other views put the robot"
        rejected[good[v].name] = f"{told} (overlap {100 * best.iou[v]:.0f} %): a wrong mask, other joints, or it is hidden"
    swap = [3, 4, 5, 0, 1, 2]
    return Markerless(
        T=best.T, covariance=covariance(best, prior)[np.ix_(swap, swap)], camera=camera, model="silhouettes",
        held_out_px=held_out(best.rows, best.used, best.levels, known, alike=best.alike, scatter=best.scatter),
        used=tuple(look.name for look, u in zip(good, best.used, strict=True) if u), rejected=rejected, observability=seen,
        levels=best.levels, lever_px=lever_px(best.rows), aligned=best, looks=tuple(good), start=start,
        more={
            "bleed_px": best.bleed_px, "alike": best.alike, "scatter": best.scatter,
            "overlap": {look.name: float(i) for look, i in zip(good, best.iou, strict=True)},
        },
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
        if overlap > CLOSE * found[0][1] and apart > APART_RAD and len(chosen) < 3:
            chosen.append((pose, overlap))
    return chosen


def _quality(a: Aligned) -> float:
    return float(np.median(a.iou)) + float(np.median(a.fit))


def _fits(a: Aligned) -> None:
    few = int(a.used.sum()) < max(LEAST_VIEWS, 0.5 * len(a.used))
    if few or float(np.median(a.iou[a.used])) < POOR or a.levels.joint_rad > LOOSE_RAD:
        raise DataError(
            f"the masks do not fit the robot: in the best pose they overlap by {100 * float(np.median(a.iou)):.0f} %, "
            f"{int(a.used.sum())} of {len(a.used)} views fit, with joints {np.rad2deg(a.levels.joint_rad):.1f} degrees off; check that "
            "masks show the whole robot, that joints have the model's order, signs and zeros, and the lens"
        )


def _alone(best: Aligned, others: Sequence[Aligned]) -> None:
    """Refuse what fits in two ways."""
    for other in others:
        apart = float(np.linalg.norm(so3_log(best.T[:3, :3].T @ other.T[:3, :3])))
        if apart > APART_RAD and _quality(other) > _quality(best) - NEARLY:
            raise DataError(
                f"two poses of the camera, {np.rad2deg(apart):.0f} degrees apart, fit the masks alike: add views with the arm turned to "
                "the side and stretched, or give a rough pose with --cad-prior"
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
