"""Hand-eye calibration on made-up and real sets: our estimator beside OpenCV's best closed form and robust bundle adjustment.

"OpenCV's best" is the method with the least median error of all six that it has, chosen with the truth in hand, which no user can. A
user has one; its default, Tsai's, stands in the detail. Bundle adjustment is our own code with the robot believed.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from sinew.bench import Row

TRIALS, QUICK_TRIALS = 100, 6
NEXT_VIEW_TRIALS, SEARCH_TRIALS, MARKERLESS_TRIALS = 60, 10, 20
FAILED_DEG, FAILED_MM = 1.0, 10.0
CHI2_95 = 12.59
"""Of six degrees of freedom."""
CASES: dict[str, tuple[dict[str, Any], str, Callable[[dict[str, float]], bool] | None]] = {
    "in hand, 10 views": ({"views": 10}, "<= 0.36 mm and 0.065 deg", lambda r: r["mm"] <= 0.36 and r["deg"] <= 0.065),
    "in hand, 20 views": ({}, "<= 0.21 mm", lambda r: r["mm"] <= 0.21),
    "to hand, 10 views": ({"views": 10, "mount": "to_hand"}, "", None),
    "in hand, 20 views, robot 0.5 mm, 0.1 deg": ({"sigma_m": 0.5e-3, "sigma_rad": np.deg2rad(0.1)}, "", None),
    "in hand, 20 views, low-cost arm 2 mm, 0.5 deg": (
        {"sigma_m": 2e-3, "sigma_rad": np.deg2rad(0.5), "sigma_px": 0.5}, "<= 1.9 mm", lambda r: r["mm"] <= 1.9,
    ),
    "in hand, 20 views, focal length 1 % off": (
        {"focal_error": 0.01, "centre_error_px": (4.0, -3.0)}, "<= 0.35 mm", lambda r: r["mm"] <= 0.35,
    ),
    "in hand, 20 views, 30 % wrong": ({"bad_views": 0.3}, "0 % failures, p95 <= 0.5 mm", lambda r: r["failed"] == 0 and r["mm95"] <= 0.5),
    "in hand, 20 views, 10 % wrong, 10 % of corners": ({"bad_views": 0.1, "bad_corners": 0.1}, "", None),
    "in hand, 20 views, turns of 3 deg": ({"motion": "tiny"}, "", None),
    "in hand, 20 views, near one axis": ({"motion": "near_axis"}, "", None),
}  # fmt: skip
"""Case → what is unusual, target, whether it is met."""


def rows(quick: bool, out: Path | None = None) -> list[Row]:
    """Measure everything.

    Args:
        quick: few trials.
        out: folder with the real sets rosi_charuco, metric_workcell and ethz_robot_arm; they are left out without it.
    """
    from sinew.cli.benchmarks.calibration_honest import honest_rows
    from sinew.cli.benchmarks.calibration_joints import joint_rows
    from sinew.cli.benchmarks.calibration_markerless import markerless_rows
    from sinew.cli.benchmarks.calibration_search import search_rows
    from sinew.cli.benchmarks.calibration_views import next_view_rows

    trials = QUICK_TRIALS if quick else TRIALS
    made: list[Row] = []
    for name, (unusual, target, holds) in CASES.items():
        made += _case(name, unusual, trials, target, holds)
    views = next_view_rows(2 if quick else NEXT_VIEW_TRIALS)
    search = search_rows(1 if quick else SEARCH_TRIALS)
    alone = markerless_rows(1 if quick else MARKERLESS_TRIALS)
    return [*made, *honest_rows(quick), *_refusals(trials), *_speed(), *joint_rows(quick), *views, *search, *alone, *_real(out)]


def _case(name: str, unusual: dict[str, Any], trials: int, target: str, holds: Any) -> list[Row]:
    from calibration.estimator import calibrate
    from calibration.model import Free
    from calibration.noise import Noise
    from calibration.simulate import Scenario, simulate
    from calibration.views import pack

    scenario = Scenario(**unusual)
    free = Free(intrinsics="focal_error" in unusual)
    ours, adjusted, theirs = [], [], {}
    for seed in range(trials):
        made = simulate(scenario, 10_000 + seed)
        views = pack(made.views)
        found = calibrate(views, (made.camera,), scenario.mount, free=free)
        ours.append(_off(found.estimate.X[0], made.X))
        believed = Noise(found.noise.pixel, 1e-7, 1e-7)
        try:
            adjusted.append(_off(calibrate(views, (made.camera,), scenario.mount, free=free, noise=believed).estimate.X[0], made.X))
        except Exception as e:
            if type(e).__module__ != "sinew.errors":
                raise
            adjusted.append((180.0, 1e6))
        for method, pose in _opencv(views, made.camera, scenario.mount).items():
            theirs.setdefault(method, []).append(_off(pose, made.X))
    figures, bundle = _figures(ours), _figures(adjusted)
    best = min(theirs, key=lambda m: float(np.median([e[1] for e in theirs[m]])), default=None)
    detail: dict[str, Any] = {**figures, "bundle_adjustment": bundle, **{m: _figures(e) for m, e in theirs.items()}}
    met = None if holds is None or trials < TRIALS else bool(holds(figures))
    peer = _NO_OPENCV if best is None else f"OpenCV's best, {best} {_told(_figures(theirs[best]))}"
    shown = f"{name}: ours {figures['deg']:.3f} deg, p95 {figures['mm95']:.2f} mm, {100 * figures['failed']:.0f} % fail; median"
    first = Row(
        name=shown,
        unit="mm",
        ours=figures["mm"],
        peer=peer,
        peer_value=None if best is None else _figures(theirs[best])["mm"],
        target=target,
        holds=met,
        higher_is_better=False,
        detail=detail,
    )
    second = Row(
        name=f"{name}: the same",
        unit="mm",
        ours=figures["mm"],
        peer=f"robust bundle adjustment {_told(bundle)}",
        peer_value=bundle["mm"],
        higher_is_better=False,
    )
    return [first, second]


def _told(figures: dict[str, float]) -> str:
    return f"({figures['deg']:.3f} deg, {100 * figures['failed']:.0f} % fail)"


_NO_OPENCV = "this OpenCV has no hand-eye calibration; 4.x has"


def _opencv(views: Any, camera: Any, mount: str) -> dict[str, np.ndarray]:
    """What each of OpenCV's methods says, from the same pictures' board poses; nothing where it has none."""
    import cv2

    from calibration.views import board_poses
    from sinew.se3 import se3, se3_inverse

    if not hasattr(cv2, "calibrateHandEye"):
        return {}
    boards, _ = board_poses(views, (camera,))
    told = np.isfinite(boards).all((1, 2))
    api: Any = cv2
    robot = (views.robot if mount == "in_hand" else se3_inverse(views.robot))[views.pose[told]]
    boards, base, found = boards[told], se3_inverse(robot), {}
    for name, number in (("tsai", 0), ("park", 1), ("horaud", 2), ("andreff", 3), ("daniilidis", 4)):
        try:
            r, t = api.calibrateHandEye(robot[:, :3, :3], robot[:, :3, 3], boards[:, :3, :3], boards[:, :3, 3], method=number)
            found[name] = se3(r, np.ravel(t))
        except cv2.error:
            found[name] = np.full((4, 4), np.nan)
    for name, number in (("shah", 0), ("li", 1)):
        r, t = api.calibrateRobotWorldHandEye(boards[:, :3, :3], boards[:, :3, 3], base[:, :3, :3], base[:, :3, 3], method=number)[2:]
        found[name] = se3_inverse(se3(r, np.ravel(t)))
    return found


def _off(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """Degrees and millimetres between two poses; very large for none."""
    from sinew.se3 import so3_log

    if not np.isfinite(a).all():
        return 180.0, 1e6
    turned = float(np.linalg.norm(so3_log(a[:3, :3].T @ b[:3, :3])))
    return float(np.rad2deg(turned)), float(1e3 * np.linalg.norm(a[:3, 3] - b[:3, 3]))


def _figures(errors: list[tuple[float, float]]) -> dict[str, float]:
    deg, mm = np.array(errors).T
    failed = float(np.mean((deg > FAILED_DEG) | (mm > FAILED_MM)))
    return {
        "deg": float(np.median(deg)),
        "mm": float(np.median(mm)),
        "deg95": float(np.percentile(deg, 95)),
        "mm95": float(np.percentile(mm, 95)),
        "failed": failed,
    }


def _refusals(trials: int) -> list[Row]:
    """Motions that cannot tell must be refused, and those that can must not."""
    from calibration.simulate import Scenario, simulate
    from calibration.solve import UnobservableError, solve
    from calibration.views import pack

    made = []
    for motion, wanted in (("one_axis", True), ("translation", True), ("full", False)):
        refused = 0
        for seed in range(trials):
            case = simulate(Scenario(motion=motion), 20_000 + seed)  # type: ignore[arg-type]
            try:
                solve(pack(case.views), [case.camera], "in_hand", model="poses")
            except UnobservableError:
                refused += 1
        part = 100 * refused / trials
        made.append(
            Row(
                name=f"{motion} motion, {trials} trials: refused",
                unit="%",
                ours=part,
                peer="OpenCV answers without a word",
                target="100" if wanted else "0",
                holds=refused == (trials if wanted else 0),
                higher_is_better=wanted,
            )
        )
    return made


def _speed() -> list[Row]:
    """Whole solutions of 20 views, pictures already looked at, the median of CPU times."""
    from calibration.estimator import calibrate
    from calibration.simulate import Scenario, simulate
    from calibration.solve import solve
    from calibration.views import pack

    made = [simulate(Scenario(), seed) for seed in range(12)]
    views = [pack(m.views) for m in made]
    rows = []
    for name, target, call in (
        ("first guess, estimate and noise levels", "<= 50", lambda v, m: calibrate(v, (m.camera,), "in_hand")),
        ("the same, judged, with the error of left-out views", "", lambda v, m: solve(v, [m.camera], "in_hand", model="poses")),
        ("the same with four models to choose from", "", lambda v, m: solve(v, [m.camera], "in_hand")),
    ):
        times = []
        for v, m in zip(views, made, strict=True):
            start = time.process_time()
            call(v, m)
            times.append(1e3 * (time.process_time() - start))
        taken = float(np.median(times[2:]))
        rows.append(
            Row(
                name=f"20 views of 35 corners: {name}, CPU time",
                unit="ms",
                ours=taken,
                target=target,
                holds=taken <= 50 if target else None,
                higher_is_better=False,
            )
        )
    return rows


def _real(data: Path | None) -> list[Row]:
    """Sets of others; the real ones have no truth, only what they predict."""
    if data is None:
        return [Row(name="real sets", unit="px", ours=None, peer="not measured: give their folder with --out")]
    from dataclasses import replace

    from calibration.foreign import read_session, read_streams
    from calibration.session import find_views
    from calibration.solve import solve

    session = read_session(data / "rosi_charuco")
    result = solve(find_views(session).views, [c for c in session.cameras if c], "to_hand")
    held = result.held_out_px
    made = [
        Row(
            name=f"rosi_charuco, real: corners of each of {len(result.used)} views from all others, {result.model}, "
            f"board {100 * (result.scale - 1):+.2f} %",
            unit="px",
            ours=held,
            target="<= 1.1",
            holds=held is not None and held <= 1.1,
            higher_is_better=False,
            detail=dict(result.model_px),
        )
    ]
    session = read_session(data / "metric_workcell")
    found = find_views(session)
    for c in range(2):
        lens = session.cameras[c]
        assert lens is not None
        truth = np.loadtxt(data / f"metric_workcell/gt_cam{c + 1}.csv")
        mine = np.flatnonzero(found.views.camera == c)
        views = replace(found.views.subset(mine), camera=np.zeros(len(mine), dtype=int))
        ours, theirs = [], {}
        for seed in range(20):
            some = views.subset(np.random.default_rng(seed).choice(len(views), min(10, len(views)), replace=False))
            ours.append(_off(solve(some, [lens], "to_hand", model="poses", unobservable_ok=True).T[0], truth))
            for method, pose in _opencv(some, lens, "to_hand").items():
                theirs.setdefault(method, []).append(_off(pose, truth))
        figures, best = _figures(ours), min(theirs, key=lambda m: float(np.median([e[1] for e in theirs[m]])), default=None)
        made.append(
            Row(
                name=f"metric_workcell camera {c + 1}, rendered, 10 of {len(views)} views, 20 draws: ours {figures['deg']:.3f} deg; median",
                unit="mm",
                ours=figures["mm"],
                peer=_NO_OPENCV if best is None else f"OpenCV's best, {best}",
                peer_value=None if best is None else _figures(theirs[best])["mm"],
                target="<= 0.85" if c == 0 else "",
                holds=figures["mm"] <= 0.85 if c == 0 else None,
                higher_is_better=False,
                detail=figures,
            )
        )
    offset, told = 0.0, 0.0
    for _ in range(4):
        session = read_streams(
            data / "ethz_robot_arm",
            "robot_arm_complete_bag_color_and_ir_base_link_sr300_hinge.csv",
            "robot_arm_complete_bag_color_and_ir_target_ir.csv",
            offset,
        )
        streams = solve(
            find_views(session).views, [c for c in session.cameras if c], "in_hand", model="poses", time_offset=True, unobservable_ok=True
        )
        offset, told = offset + streams.time_offset_s, streams.time_offset_sigma_s
        if abs(streams.time_offset_s) < 2e-4:
            break
    made.append(
        Row(
            name=f"ethz_robot_arm, real, {len(streams.views)} pairs: offset of the clocks, ± {1e3 * told:.1f}",
            unit="ms",
            ours=1e3 * offset,
            peer="OpenCV knows no clocks",
            target="-20 ± 3",
            holds=abs(1e3 * offset + 20) <= 3,
        )
    )
    return made
