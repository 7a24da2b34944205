"""Calibrate: from views to poses with honest uncertainty, the model chosen by what it predicts, refused when the views cannot tell."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from calibration.camera import Camera
from calibration.diagnose import diagnose
from calibration.estimator import Fit, Priors, calibrate, fit, left_out_px
from calibration.model import Free, Mount
from calibration.observability import Observability, observability
from calibration.views import Views
from sinew.errors import DataError, InputError, unknown
from sinew.se3 import Array

MODELS: dict[str, Free] = {
    "poses": Free(),
    "scale": Free(scale=True),
    "intrinsics": Free(intrinsics=True),
    "intrinsics+scale": Free(intrinsics=True, scale=True),
}
"""What may be estimated besides the poses, the simplest first."""
FOLDS = 20
"""So many parts are left out in turn; up to so many poses, each of them is predicted from all others."""
BETTER = 0.97
"""A richer model is taken only when it predicts views that it has not seen this much better."""
FEW = 8
"""With fewer poses nothing is held out and only the poses are estimated."""


class UnobservableError(DataError):
    """The views cannot tell where the camera is."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """A calibration."""

    mount: Mount
    T: Array
    """Per camera T_hand_camera (in_hand) or T_base_camera (to_hand), (C, 4, 4)."""
    covariance: Array
    """Per camera (C, 6, 6) of a twist in the camera's frame: rotation vector in rad first, then translation in m."""
    Z: Array
    """T_base_board or T_hand_board (4, 4)."""
    cameras: tuple[Camera, ...]
    """With what was estimated of their intrinsics."""
    told: tuple[Camera, ...]
    """Their intrinsics as they were given."""
    model: str
    held_out_px: float | None
    """Median distance of corners from where views that were left out of the estimate had them predicted; None of few views."""
    model_px: dict[str, float]
    """The same of every model that was tried."""
    pixel_sigma: float
    robot_sigma_m: float
    robot_sigma_rad: float
    scale: float
    """True size of the board over the told one."""
    time_offset_s: float
    time_offset_sigma_s: float
    joint_offsets_rad: Array
    """(J,), what is to be added to the joints that the robot told; 0 where not estimated."""
    joint_offsets_sigma_rad: Array
    """(J,)."""
    covariance_with_board: Array
    """Of all cameras' twists and then the board's, together (6 C + 6, 6 C + 6), each rotation first."""
    used: tuple[str, ...]
    rejected: dict[str, str]
    observability: tuple[Observability, ...]
    fit: Fit
    views: Views


def solve(
    views: Views, cameras: Sequence[Camera], mount: Mount, *, model: str = "auto", priors: Priors | None = None,
    tolerance_m: float = 0.01, tolerance_rad: float = float(np.deg2rad(1.0)), time_offset: bool = False, joint_offsets: bool = False,
    unobservable_ok: bool = False,
) -> Result:  # fmt: skip
    """Calibrate cameras.

    Args:
        views: what was seen; of several cameras at once, those at one pose share it.
        cameras: their intrinsics as far as known.
        mount: "in_hand" or "to_hand".
        model: one of `MODELS`, or "auto" for the one that predicts left-out views best.
        priors: what is known; with `priors.X`, a drawing, directions that views do not tell come from it.
        tolerance_m: a direction known worse than this is not known.
        tolerance_rad: the same of the rotation.
        time_offset: estimate the offset of the clocks too; views need twists.
        joint_offsets: estimate the joints' offsets too; views need Jacobians.
        unobservable_ok: return what there is instead of refusing.

    Raises:
        UnobservableError: a direction cannot be told, and there is no drawing to take it from.
        InputError: unknown model, too few views.
        DataError: the views contradict one another.
    """
    priors, cameras = priors or Priors(), tuple(cameras)
    if model != "auto" and model not in MODELS:
        raise unknown("model", model, ("auto", *MODELS))
    _check(views)
    if time_offset and not views.twists.any():
        raise InputError("an offset of the clocks needs the hand's velocity at every view: poses with stamps, taken while it moves")
    if joint_offsets and (views.joint_jacobians.shape[2] < 3 or not views.joint_jacobians.any((1, 2)).all()):
        raise InputError(
            "offsets of the joints need the arm's Jacobian at every view: take the views with 'sinew calibrate handeye --robot'"
        )
    base = _agreeing(views, cameras, mount, priors)
    few = len(np.unique(views.pose)) < FEW
    names = (["poses"] if few else list(MODELS)) if model == "auto" else [model]
    frees = {n: replace(MODELS[n], time_offset=time_offset, joint_offsets=joint_offsets) for n in names}
    found: dict[str, Fit] = {}
    tried: dict[str, float] = {}
    after = None if base.rejected else base  # a wrong lens may be why views do not fit
    for name, free in frees.items():
        try:
            found[name] = base if free == Free() else fit(views, base.estimate, free=free, priors=priors, after=after)
        except DataError:  # free of so much that views fall apart
            if model != "auto":
                raise
            continue
        if not few:
            tried[name] = left_out_px(found[name], views, base.estimate, priors, FOLDS)
    chosen = names[0]
    for name in tried:
        if tried[name] < BETTER * tried[chosen]:
            chosen = name
    best = found[chosen]
    seen = tuple(observability(best, views, c, tolerance_m=tolerance_m, tolerance_rad=tolerance_rad) for c in range(len(cameras)))
    for c, o in enumerate(seen):
        if not o.observable and priors.X is None and not unobservable_ok:
            who = "the camera's pose" if len(cameras) == 1 else f"the pose of camera {c}"
            raise UnobservableError(
                f"{who} cannot be told from these views: one direction is known to "
                f"{1e3 * o.worst_m:.0f} mm and {np.rad2deg(o.worst_rad):.1f} degrees only; {o.advice}, or give a drawing with --cad-prior"
            )
    return _result(best, views, cameras, mount, chosen, tried, seen)


SUSPECT_M, SUSPECT_RAD, SUSPECT_PX = 0.01, float(np.deg2rad(2.0)), 5.0
"""A robot or corners that seem to be worse than this, or two views in five that fit nothing, are looked into."""


def _agreeing(views: Views, cameras: tuple[Camera, ...], mount: Mount, priors: Priors) -> Fit:
    """The poses estimated; where the views do not agree, the mistake in the robot's poses is named."""
    try:
        found = calibrate(views, cameras, mount, priors=priors)
    except DataError as e:
        why = diagnose(views, cameras, mount)
        raise DataError(f"the views do not agree with one another: {why}" if why else str(e)) from None
    noise = found.noise
    bad = noise.position_m > SUSPECT_M or noise.rotation_rad > SUSPECT_RAD or noise.pixel > SUSPECT_PX
    if bad or len(found.rejected) > 0.4 * len(views):
        why = diagnose(views, cameras, mount)
        if why:
            raise DataError(f"the views do not agree with one another: {why}")
    return found


def _check(views: Views) -> None:
    """Refuse what no estimator can mend."""
    if not np.isfinite(views.robot).all():
        raise DataError("a robot pose is not finite")
    poses = views.robot
    apart = np.linalg.norm(poses[:, None, :3, 3] - poses[None, :, :3, 3], axis=-1) + np.abs(
        poses[:, None, :3, :3] - poses[None, :, :3, :3]
    ).max((-1, -2))
    if len(poses) > 2 and np.median(apart[np.triu_indices(len(poses), 1)]) < 1e-6:
        raise DataError(f"all {len(poses)} poses of the robot are the same: move it between the views")


def _result(
    found: Fit, views: Views, told: tuple[Camera, ...], mount: Mount, model: str, tried: dict[str, float], seen: tuple[Observability, ...]
) -> Result:  # fmt: skip
    estimate = found.estimate
    swap = [3, 4, 5, 0, 1, 2]
    covariance = np.array([found.covariance_of(c)[np.ix_(swap, swap)] for c in range(len(estimate.X))])
    time = found.layout.time
    sigma = float(np.sqrt(found.covariance[time, time].sum())) if time.stop > time.start else 0.0
    used = tuple(views.names[i] for i in np.flatnonzero(found.weights.sum(1)))
    joints, many = np.zeros(len(estimate.joint_offsets_rad)), found.layout.joints
    joints[1:-1][: many.stop - many.start] = np.sqrt(np.diag(found.covariance)[many])
    order = np.concatenate([6 * i + np.array(swap) for i in range(len(estimate.X) + 1)])
    return Result(
        mount=mount, T=estimate.X, covariance=covariance, Z=estimate.Z, cameras=estimate.cameras, told=told, model=model,
        held_out_px=tried.get(model), model_px=tried, pixel_sigma=found.noise.pixel, robot_sigma_m=found.noise.position_m,
        robot_sigma_rad=found.noise.rotation_rad, scale=float(np.exp(estimate.log_scale)), time_offset_s=estimate.time_offset_s,
        time_offset_sigma_s=sigma, joint_offsets_rad=estimate.joint_offsets_rad, joint_offsets_sigma_rad=joints,
        covariance_with_board=found.covariance[np.ix_(order, order)], used=used, rejected=dict(found.rejected), observability=seen,
        fit=found, views=views,
    )  # fmt: skip


def summary(result: Result) -> dict[str, Any]:
    """What `--json` prints of one camera's or several cameras' calibration."""
    many = len(result.T) > 1
    per = lambda values: [v.tolist() for v in values] if many else values[0].tolist()  # noqa: E731
    return {
        "mount": result.mount,
        "T": per(result.T),
        "covariance": per(result.covariance),
        "Z": result.Z.tolist(),
        "covariance_with_board": result.covariance_with_board.tolist(),
        "held_out_px": result.held_out_px,
        "used": list(result.used),
        "rejected": result.rejected,
        "model": result.model,
        "model_px": result.model_px,
        "scale": result.scale,
        "time_offset_s": result.time_offset_s,
        "joint_offsets_rad": result.joint_offsets_rad.tolist(),
        "joint_offsets_sigma_rad": result.joint_offsets_sigma_rad.tolist(),
        "noise": {"pixel": result.pixel_sigma, "robot_m": result.robot_sigma_m, "robot_rad": result.robot_sigma_rad},
        "observability": [
            {
                "observable": o.observable, "motion": o.motion, "advice": o.advice,
                "directions": [{"kind": d.kind, "axis": list(d.axis), "sigma": d.sigma, "from_prior": d.from_prior} for d in o.directions],
            }
            for o in result.observability
        ],
    }  # fmt: skip
