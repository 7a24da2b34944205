"""Is the covariance honest: how often the truth lies in the 95 % region, mounts, numbers of views, noise and free parameters varied."""

from __future__ import annotations

from typing import Any

import numpy as np

from sinew.bench import Row
from sinew.cli.benchmarks.calibration import CHI2_95

TRIALS, QUICK_TRIALS = 200, 6
"""Chance alone moves a share of 0.95 by 0.015 (one standard deviation) in 200 trials."""
LOW_COST = {"sigma_m": 2e-3, "sigma_rad": np.deg2rad(0.5), "sigma_px": 0.5}
CASES: dict[str, tuple[dict[str, Any], dict[str, bool]]] = {
    "in hand, 10 views": ({"views": 10}, {}),
    "in hand, 20 views": ({}, {}),
    "in hand, 40 views": ({"views": 40}, {}),
    "to hand, 10 views": ({"views": 10, "mount": "to_hand"}, {}),
    "to hand, 20 views": ({"mount": "to_hand"}, {}),
    "to hand, 40 views": ({"views": 40, "mount": "to_hand"}, {}),
    "in hand, 20 views, low-cost arm": (LOW_COST, {}),
    "to hand, 20 views, low-cost arm": ({**LOW_COST, "mount": "to_hand"}, {}),
    "in hand, 20 views, 30 % wrong": ({"bad_views": 0.3}, {}),
    "in hand, 20 views, lens estimated, 1 % off": ({"focal_error": 0.01, "centre_error_px": (4.0, -3.0)}, {"intrinsics": True}),
    "in hand, 20 views, board 2 % too large, its size estimated": ({"told_scale": 1.02}, {"scale": True}),
    "to hand, 20 views, lens and board estimated": (
        {"mount": "to_hand", "focal_error": 0.01, "centre_error_px": (4.0, -3.0), "told_scale": 1.02},
        {"intrinsics": True, "scale": True},
    ),
}
"""Case → what is unusual, what is estimated besides the poses."""


def honest_rows(quick: bool) -> list[Row]:
    """Measure every case."""
    return [honest_row(name, QUICK_TRIALS if quick else TRIALS) for name in CASES]


def honest_row(name: str, trials: int) -> Row:
    """One case: the part of trials in which the truth lies in the 95 % region of six numbers."""
    from dataclasses import replace

    from calibration.estimator import calibrate
    from calibration.model import Free
    from calibration.simulate import Scenario, simulate
    from calibration.views import pack
    from sinew.se3 import se3_inverse, se3_log

    unusual, free = CASES[name]
    told = unusual.get("told_scale", 1.0)
    scenario = Scenario(**{k: v for k, v in unusual.items() if k != "told_scale"})
    squares, together = [], []
    for seed in range(trials):
        made = simulate(scenario, 40_000 + seed)
        views = pack([replace(v, points=v.points * told) for v in made.views])
        found = calibrate(views, (made.camera,), scenario.mount, free=Free(**free))
        error = se3_log(se3_inverse(found.estimate.X[0]) @ made.X)
        squares.append(float(error @ np.linalg.solve(found.covariance_of(), error)))
        both = np.concatenate([error, se3_log(se3_inverse(found.estimate.Z) @ made.Z)])
        together.append(float(both @ np.linalg.solve(found.covariance[:12, :12], both)))
    part = float(np.mean(np.array(squares) < CHI2_95))
    return Row(
        name=f"{name}: truth inside the 95 % region, {trials} trials",
        unit="part",
        ours=part,
        target="0.92 to 0.98",
        holds=None if trials < 100 else 0.92 <= part <= 0.98,
        peer="OpenCV tells no uncertainty",
        detail={
            "mean_square": float(np.mean(squares)),
            "ideal_mean_square": 6.0,
            "camera_and_board": float(np.mean(np.array(together) < 21.03)),  # chi-square of twelve, 95 %
        },
    )
