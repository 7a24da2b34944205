"""Chosen views beside random ones: how many a calibration needs when every next view is the one that tells most.

Three first views, as a hand-guided arm takes them, give the first estimate; the others are chosen. Random views come from the very
candidates among which is chosen, or from a hand guided about as in `calibration.simulate` ("full" motion, turns up to 34 degrees).
"""

from __future__ import annotations

import numpy as np

from sinew.bench import Row

FIRST, CHOSEN, RANDOM = 3, 6, 12
LEVER_M = 0.34
"""Distance from the camera at which rotation and translation are told as one error, m: that of the default goal."""


def next_view_rows(trials: int) -> list[Row]:
    """Measure `trials` made-up calibrations, half of them with the camera on the hand."""
    errors = [trial(30_000 + seed, "in_hand" if seed % 2 else "to_hand") for seed in range(trials)]
    chosen, guided, same = "3 first views and", f"{RANDOM} random views of a guided hand", f"{RANDOM} random ones of the same candidates"
    pairs = (
        ("6 chosen views alone", "alone", same, "random", True),
        (f"{chosen} 3 chosen ones", "six", guided, "guided", True),
        (f"{chosen} 6 chosen ones", "nine", same, "random", False),
        (f"{chosen} 3 chosen ones", "six", same, "random", False),
    )
    rows = []
    for name, ours, peer, theirs, promised in pairs:
        a, b = np.array([e[ours] for e in errors]), np.array([e[theirs] for e in errors])
        value, other = float(np.median(a[:, 2])), float(np.median(b[:, 2]))
        rows.append(
            Row(
                name=f"{name}: {np.median(a[:, 0]):.2f} mm, {np.median(a[:, 1]):.3f} deg; of a point {LEVER_M} m before the camera, median",
                unit="mm",
                ours=value,
                peer=f"{peer} ({np.median(b[:, 0]):.2f} mm, {np.median(b[:, 1]):.3f} deg)",
                peer_value=other,
                target="not worse" if promised else "",
                holds=value <= other if promised and trials >= 30 else None,
                higher_is_better=False,
                detail={"p95": float(np.percentile(a[:, 2], 95)), "peer_p95": float(np.percentile(b[:, 2], 95)), "trials": trials},
            )
        )
    return rows


def trial(seed: int, mount: str) -> dict[str, tuple[float, float, float]]:
    """Errors of one made-up calibration by several sets of views: mm, degrees, and mm of a point before the camera."""
    from calibration.estimator import calibrate, fit
    from calibration.next_view import Goal, Sector, around_board, at, next_views
    from calibration.simulate import Scenario, board_points, simulate, view_at
    from calibration.views import pack

    scenario = Scenario(mount=mount, views=RANDOM)  # type: ignore[arg-type]
    made, rng = simulate(scenario, seed), np.random.default_rng(seed)
    points, strict = board_points(scenario.corners, scenario.square_m), Goal(position_m=0.3e-5, rotation_rad=np.deg2rad(0.05e-2))

    taken = made.views[:FIRST]
    found = calibrate(pack(taken), (made.camera,), scenario.mount)
    some = around_board(found.estimate, pack(taken), points, Sector(), 200, seed)
    seen = [v for v in (view_at(made, scenario, hand, rng) for hand in some) if v is not None]
    errors = {}
    for name, views in (("guided", made.views), ("random", seen[:RANDOM])):
        errors[name] = _off(calibrate(pack(views), (made.camera,), scenario.mount).estimate.X[0], made.X)
    for name in ("six", "nine"):
        for choice in next_views(found, pack(taken), points, goal=strict, count=CHOSEN // 2, seed=seed):
            view = view_at(made, scenario, choice.T_base_hand, rng)
            if view is None:
                raise RuntimeError("a chosen view does not show the whole board")
            taken = [*taken, view]
        found = fit(pack(taken), at(found.estimate, len(taken)))
        errors[name] = _off(found.estimate.X[0], made.X)
    alone = fit(pack(taken[FIRST:]), at(found.estimate, CHOSEN))
    return {**errors, "alone": _off(alone.estimate.X[0], made.X)}


def _off(found: np.ndarray, truth: np.ndarray) -> tuple[float, float, float]:
    from sinew.se3 import se3_inverse, se3_log

    error = se3_log(se3_inverse(found) @ truth)
    m, rad = float(np.linalg.norm(error[:3])), float(np.linalg.norm(error[3:]))
    return 1e3 * m, float(np.rad2deg(rad)), 1e3 * float(np.hypot(m, LEVER_M * rad))
