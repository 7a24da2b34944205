"""A low-cost arm whose joints' zeros are off: what estimating them is worth, at joints that are commanded later.

Base and flange cannot be told apart from the first and the last joint's zero, so that the camera's own pose is no measure: what counts
is how far the board is from where it should appear.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from sinew.bench import Row

TRIALS, QUICK_TRIALS = 25, 3
CASES = {
    "zeros 1 deg off, encoders 0.1 deg, in hand, 20 views": ("in_hand", 20, 0.1),
    "zeros 1 deg off, encoders 0.1 deg, to hand, 20 views": ("to_hand", 20, 0.1),
    "zeros 1 deg off, encoders 0.5 deg, in hand, 20 views": ("in_hand", 20, 0.5),
    "zeros 1 deg off, encoders 0.5 deg, in hand, 60 views": ("in_hand", 60, 0.5),
}
"""Case → mount, views, noise of the encoders in degrees."""


def joint_rows(quick: bool) -> list[Row]:
    """Measure every case."""
    return [row for name in CASES for row in joint_case(name, QUICK_TRIALS if quick else TRIALS)]


def joint_case(name: str, trials: int) -> list[Row]:
    """Errors with and without the joints' offsets estimated, and with Park and Martin's closed form."""
    from calibration.closed_form import hand_eye_and_world
    from calibration.joints import solve_joints
    from calibration.simulate import CAMERA
    from calibration.simulate_arm import commanded_error, forward, jacobian, simulate_arm
    from calibration.solve import solve
    from calibration.views import board_poses, pack
    from sinew.se3 import se3_inverse

    mount, count, encoder = CASES[name]
    errors: dict[str, list[tuple[float, float]]] = {"offsets": [], "poses": [], "park": []}
    for seed in range(trials):
        made = simulate_arm(50_000 + seed, mount, count, encoder_rad=float(np.deg2rad(encoder)))  # type: ignore[arg-type]
        views = pack(made.views)
        plain = solve(views, [CAMERA], made.mount, model="poses", unobservable_ok=True)
        joined = solve_joints(views, made.joints, forward, jacobian, [CAMERA], made.mount, model="poses", unobservable_ok=True)
        robot = views.robot if made.mount == "in_hand" else se3_inverse(views.robot)
        x, z = hand_eye_and_world(robot, board_poses(views, [CAMERA])[0], "park")
        for key, estimate in (
            ("offsets", joined.fit.estimate), ("poses", plain.fit.estimate), ("park", replace(plain.fit.estimate, X=x[None], Z=z))
        ):  # fmt: skip
            errors[key].append(commanded_error(made, estimate, seed))
    mm, px = (
        {k: float(np.median([e[0] for e in v])) for k, v in errors.items()},
        {k: float(np.median([e[1] for e in v])) for k, v in errors.items()},
    )
    detail = {f"{k}_p95_mm": float(np.percentile([e[0] for e in v], 95)) for k, v in errors.items()}
    shown = f"low-cost arm, {name}, {trials} trials: the board at joints commanded later, offsets estimated ({px['offsets']:.1f} px)"
    rows = []
    for key, peer in (("poses", "the same without offsets"), ("park", "Park and Martin's closed form")):
        rows.append(
            Row(
                name=shown,
                unit="mm",
                ours=mm["offsets"],
                peer=f"{peer} ({px[key]:.1f} px)",
                peer_value=mm[key],
                higher_is_better=False,
                detail=detail,
            )
        )
    return rows
