"""Is a calibration still true: what new views say beside it, with the uncertainty of both."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy.stats import chi2

from calibration.estimator import Priors, fit
from calibration.model import Estimate, Free, first_estimate, residuals
from calibration.results import Mounted
from calibration.solve import solve
from calibration.start import guesses
from calibration.views import Views
from sinew.errors import DataError
from sinew.se3 import Array, se3_inverse, se3_log

SURE = 1e-3
"""A difference that chance makes less often than this is one."""


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
    now = solve(views, [stored.camera], stored.mount, model="poses")
    swap = [3, 4, 5, 0, 1, 2]
    difference = se3_log(se3_inverse(stored.T) @ now.T[0])
    covariance = stored.covariance[np.ix_(swap, swap)] + now.fit.covariance_of()
    square = float(difference @ np.linalg.solve(covariance, difference))
    chance = float(chi2.sf(square, 6))
    moved_m, moved_rad = float(np.linalg.norm(stored.T[:3, 3] - now.T[0][:3, 3])), float(np.linalg.norm(difference[3:]))
    px, px_new = _px(_held(stored.T, views, stored), views), _px(now.fit.estimate, views)
    holds = chance > SURE
    by = f"{1e3 * moved_m:.1f} mm and {np.rad2deg(moved_rad):.2f} degrees"
    told = (
        f"camera {stored.name} still is where it was: {by} apart, which chance explains (p = {chance:.2g})"
        if holds
        else f"camera {stored.name} has moved, or its calibration was wrong: {by} apart (p = {chance:.1g}); calibrate again"
    )
    return Verdict(holds=holds, moved_m=moved_m, moved_rad=moved_rad, chance=chance, px=px, px_new=px_new, told=told)


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
