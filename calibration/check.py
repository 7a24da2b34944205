"""Is a calibration still true: what new views say beside it, with the uncertainty of both."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace

import numpy as np

from calibration.estimator import Priors, fit
from calibration.model import Estimate, Free, first_estimate, residuals
from calibration.results import Mounted
from calibration.solve import Result, UnobservableError, solve
from calibration.start import guesses
from calibration.views import Views
from sinew.calibrations import SURE, Apart
from sinew.calibrations import apart as apart_of
from sinew.config import to_json
from sinew.errors import DataError
from sinew.se3 import Array

OTHER_SIZE = 5e-3
"""A board whose size differs by a larger share than this is another one than was told."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What new views say of a calibration."""

    holds: bool
    moved_m: float
    moved_rad: float
    chance: float
    """How often chance alone would make such a difference."""
    px: float
    """Median distance of the new corners from where the calibration puts them, the board's place and the robot's errors fitted."""
    px_new: float
    """The same of a calibration from the new views."""
    board_scale: float
    """Size of the board in the new views by what was told of it; 1 unless it must be another."""
    told: str
    """One line for a person."""


def check(stored: Mounted, views: Views) -> Verdict:
    """Compare a stored calibration with views of now; the board may be elsewhere.

    Args:
        stored: the calibration.
        views: of its camera, three poses or more with turns about two axes.

    Raises:
        UnobservableError: the views cannot tell.
        InputError: too few.
    """
    views = replace(views, points=views.points * stored.scale, camera=np.zeros(len(views), dtype=int))
    now, size = _now(stored, views), ""
    apart = _compare(stored, now)
    if now.scale != 1.0:
        percent, direction = 100 * abs(now.scale - 1), "larger" if now.scale > 1 else "smaller"
        size = f"the board of these views is {percent:.1f} % {direction} than told (scale {now.scale:.4f}): give its true size; "
        views = replace(views, points=views.points * now.scale)
    px, px_new = _px(_held(stored.T, views, stored), views), _px(replace(now.fit.estimate, log_scale=0.0), views)
    holds = apart.chance > SURE
    by = f"{1e3 * apart.metres:.1f} mm and {np.rad2deg(apart.radians):.2f} degrees"
    told = (
        f"{size}camera {stored.name} still is where it was: {by} apart, which chance explains (p = {apart.chance:.2g})"
        if holds
        else f"{size}camera {stored.name} has moved, or its calibration was wrong: {by} apart (p = {apart.chance:.1g}); calibrate again"
    )
    return Verdict(
        holds=holds, moved_m=apart.metres, moved_rad=apart.radians, chance=apart.chance, px=px, px_new=px_new, board_scale=now.scale,
        told=told,
    )  # fmt: skip


def _now(stored: Mounted, views: Views) -> Result:
    """What the new views say; with another size of the board where they do not fit the calibration otherwise."""
    now, trouble = None, None
    try:
        now = solve(views, [stored.camera], stored.mount, model="poses")
        if _compare(stored, now).chance > SURE:
            return now
    except UnobservableError as e:
        trouble = e
    with suppress(DataError):
        scaled = solve(views, [stored.camera], stored.mount, model="scale")
        if abs(scaled.scale - 1) > OTHER_SIZE:
            return scaled
    if now is None:
        raise trouble or DataError("the views do not tell where the camera is")
    return now


def _compare(stored: Mounted, now: Result) -> Apart:
    """How far two calibrations are apart, and how often chance alone would make it so."""
    found = replace(stored, T=now.T[0], covariance=now.covariance[0])
    return apart_of({**to_json(stored)}, {**to_json(found)})


def _held(T: Array, views: Views, stored: Mounted) -> Estimate:
    """The most likely board and robot's errors if the camera is where it was."""
    first = guesses(views, (stored.camera,), stored.mount)[0].estimate
    best = None
    for place in (stored.Z, first.Z):
        start = first_estimate(stored.mount, T, place, (stored.camera,), views)
        try:
            found = fit(views, start, free=Free(), priors=Priors(X=T, X_sigma_m=1e-6, X_sigma_rad=1e-6)).estimate
        except DataError:  # a start too far off: the other one
            continue
        if best is None or _px(found, views) < _px(best, views):
            best = found
    return best or first_estimate(stored.mount, T, first.Z, (stored.camera,), views)


def _px(estimate: Estimate, views: Views) -> float:
    distance = np.linalg.norm(residuals(estimate, views), axis=-1)[views.seen]
    return float(np.median(distance[np.isfinite(distance)])) if np.isfinite(distance).any() else float("inf")
