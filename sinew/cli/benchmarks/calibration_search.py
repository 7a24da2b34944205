"""The search over poses beside the estimator, on the same pictures and on odometry alone: what each wins and loses.

With a board, the search is given the trajectory of the camera that the pictures tell one by one, and the estimator the corners, from
which it tells the noise. Without a board there is only odometry: drifting, jumping, of unknown scale; the estimator has no corners
then, and closed forms stand beside the search. These take the unit of the odometry for metres, which they must.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from sinew.bench import Row
from sinew.cli.benchmarks.calibration import _figures, _off, _told

REACH_M = 0.3
PICTURES: dict[str, dict[str, Any]] = {
    "in hand, 20 views": {},
    "20 views, robot 0.5 mm, 0.1 deg": {"sigma_m": 0.5e-3, "sigma_rad": np.deg2rad(0.1)},
    "20 views, 10 % wrong": {"bad_views": 0.1},
    "20 views, near one axis": {"motion": "near_axis"},
    "20 views, turns of 3 deg": {"motion": "tiny"},
    "20 views, one axis": {"motion": "one_axis"},
}
ODOMETRY: dict[str, dict[str, Any]] = {
    "30 poses": {},
    "30 poses, 10 % jumps": {"jumps": 3},
    "30 poses, unknown scale": {"scale": 3.0},
    "30 poses, unknown scale, 10 % jumps": {"scale": 3.0, "jumps": 3},
}


def search_rows(trials: int) -> list[Row]:
    """Measure everything.

    Args:
        trials: of every case; one takes about a second of one core.
    """
    rows: list[Row] = []
    for name, unusual in PICTURES.items():
        rows += _with_a_board(name, unusual, trials)
    for name, unusual in ODOMETRY.items():
        rows += _without_a_board(name, unusual, trials)
    return rows


def _with_a_board(name: str, unusual: dict[str, Any], trials: int) -> list[Row]:
    from calibration.observability import observability
    from calibration.simulate import Scenario, simulate
    from calibration.trajectory import TrajectoryReward
    from calibration.views import board_poses, pack
    from sinew.se3 import se3_inverse

    errors: dict[str, list[tuple[float, float]]] = {}
    costs: dict[str, list[float]] = {}
    weak = refused = 0
    for seed in range(trials):
        made = simulate(Scenario(**unusual), 30_000 + seed)
        views = pack(made.views)
        boards, _ = board_poses(views, (made.camera,))
        told = np.isfinite(boards).all((1, 2))
        reward = TrajectoryReward(robot=views.robot[views.pose[told]], visual=se3_inverse(boards[told]))
        weak += _searches(reward, seed, made.X, errors, costs)
        started = time.process_time()
        fit = _estimated(views, made.camera)
        costs.setdefault("estimator", []).append(time.process_time() - started)
        errors.setdefault("estimator", []).append((180.0, 1e6) if fit is None else _off(fit.estimate.X[0], made.X))
        refused += fit is None or not observability(fit, views).observable
    judged = f"search {weak}, estimator {refused} of {trials} called not observable"
    return _rows(f"with a board, {name}; {judged}", errors, costs, "estimator")


def _estimated(views: Any, camera: Any) -> Any:
    from calibration.estimator import calibrate
    from sinew.errors import SinewError

    try:
        return calibrate(views, (camera,), "in_hand")
    except SinewError:
        return None


def _without_a_board(name: str, unusual: dict[str, Any], trials: int) -> list[Row]:
    from calibration.closed_form import ABSOLUTE, RELATIVE, hand_eye
    from calibration.trajectory import TrajectoryReward
    from sinew.se3 import se3_inverse

    errors: dict[str, list[tuple[float, float]]] = {}
    costs: dict[str, list[float]] = {}
    for seed in range(trials):
        robot, visual, truth = _odometry(seed, **unusual)
        reward = TrajectoryReward(robot=robot, visual=visual, scale="scale" in unusual, keep=0.85)
        _searches(reward, seed, truth, errors, costs)
        for method in (*RELATIVE, *ABSOLUTE):
            started = time.process_time()
            errors.setdefault(method, []).append(_off(hand_eye(robot, se3_inverse(visual), method), truth))
            costs.setdefault(method, []).append(time.process_time() - started)
    best = min((*RELATIVE, *ABSOLUTE), key=lambda m: float(np.median([e[1] for e in errors[m]])))
    return _rows(f"odometry, {name}", errors, costs, best)


def _odometry(seed: int, *, scale: float = 1.0, jumps: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Poses of a hand, odometry of a camera on it with noise of 2 mm and 0.2 deg and drift, and the truth."""
    from sinew.se3 import se3, se3_exp, so3_exp

    rng = np.random.default_rng(40_000 + seed)
    robot = se3(so3_exp(rng.uniform(-0.6, 0.6, (30, 3))), rng.uniform([0.3, -0.2, 0.2], [0.7, 0.2, 0.6], (30, 3)))
    truth = se3(so3_exp(rng.normal(0, 1.0, 3)), rng.uniform(-0.15, 0.15, 3))
    sigma = np.array([2e-3] * 3 + [np.deg2rad(0.2)] * 3)
    noise = rng.normal(0, sigma, (30, 6)) + np.cumsum(rng.normal(0, 0.2 * sigma, (30, 6)), 0)
    noise[rng.permutation(30)[:jumps]] = rng.normal(0, 0.2, (jumps, 6))
    visual = se3_exp(rng.normal(size=6)) @ robot @ truth @ se3_exp(noise)
    visual[:, :3, 3] /= scale
    return robot, visual, truth


def _searches(
    reward: Any, seed: int, truth: np.ndarray, errors: dict[str, list[tuple[float, float]]], costs: dict[str, list[float]]
) -> bool:
    """Search in both ways.

    Returns:
        Whether the natural one found a weak direction.
    """
    from calibration.search import METHODS, SearchConfig, search

    weak = False
    for method in METHODS:
        started = time.process_time()
        found = search(reward, SearchConfig(method=method, reach_m=REACH_M, seed=seed))
        costs.setdefault(method, []).append(time.process_time() - started)
        errors.setdefault(method, []).append(_off(found.T, truth))
        weak = weak or (method == "natural" and bool(found.weak))
    return weak


def _rows(name: str, errors: dict[str, list[tuple[float, float]]], costs: dict[str, list[float]], peer: str) -> list[Row]:
    """The search beside its peer, and natural steps beside the cross-entropy method."""
    figures = {m: {**_figures(e), "cpu_ms": 1e3 * float(np.median(costs[m]))} for m, e in errors.items()}
    ours = figures["natural"]
    shown = f"search, {name}: {ours['deg']:.3f} deg, {100 * ours['failed']:.0f} % fail, {ours['cpu_ms']:.0f} ms; median"
    return [
        Row(
            name=shown if other == peer else f"search, {name}: the same", unit="mm", ours=ours["mm"],
            peer=f"{told} {_told(figures[other])}, {figures[other]['cpu_ms']:.0f} ms", peer_value=figures[other]["mm"],
            higher_is_better=False, detail=figures if other == peer else None,
        )
        for other, told in ((peer, peer if peer == "estimator" else f"best closed form, {peer}"), ("cross_entropy", "cross-entropy"))
    ]  # fmt: skip
