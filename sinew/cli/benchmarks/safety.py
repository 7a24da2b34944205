"""The safety gate: fuzzed actions, alone and in closed loop in MuJoCo, what a tick costs and how fast an emergency stop is."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np

from sinew.bench import Row

NONE = "none: no stack that was looked at has one"
PLANE = (0.0, -1.0, 0.0, -0.2)
"""Keep-out plane of the closed loop: every link stays at y <= 0.2 m."""
MARGIN_RAD, MARGIN_M = 0.01, 0.005
"""What the servo of the simulated arm may overshoot the stream that the gate emits."""


def rows(quick: bool) -> list[Row]:
    """Measure everything; `quick` ends within a minute."""
    fuzzed = fuzz_rows(20_000 if quick else 1_000_000, 4_000 if quick else 100_000)
    return [*fuzzed, _over_dds(300 if quick else 10_000), *_ticks(400 if quick else 4_000), _e_stop(quick)]


def fuzz_rows(actions: int, simulated: int) -> list[Row]:
    """Violations among so many fuzzed actions, of the stream and in MuJoCo."""
    judge, reasons = stream(actions)
    closed, beyond = closed_loop(simulated)
    said = {"worst share of a limit": {k: round(v, 6) for k, v in judge.worst.items()}, "reasons": reasons}
    measured = {"beyond, at most": {k: round(v, 5) for k, v in beyond.items()}, "allowed": {"rad": MARGIN_RAD, "m": MARGIN_M}}
    violations = sum(closed.violations.values()) + sum(v > (MARGIN_RAD if k.endswith("rad") else MARGIN_M) for k, v in beyond.items())
    made = []
    for name, count, detail in (
        (f"{actions:,} fuzzed actions: position, velocity, acceleration, jerk, stop time", sum(judge.violations.values()), said),
        (f"{simulated:,} fuzzed actions in MuJoCo: joints, workspace, plane and distance of links as measured", violations, measured),
    ):
        figure = {"unit": "violations", "target": "0", "peer": NONE, "higher_is_better": False}
        made.append(Row(name=name, ours=float(count), holds=count == 0, detail=detail, **figure))
    return made


def _over_dds(commands: int) -> Row:
    """Violations among so many fuzzed commands through loop, gate and network, told by a robot in a process of its own."""
    import os
    import tempfile
    from pathlib import Path

    from robot_bridge.faults.fuzz import fuzz_over_dds

    with tempfile.TemporaryDirectory() as folder:
        told = fuzz_over_dds(commands, 0, Path(folder), 1 + os.getpid() % 99)
    violations = told.pop("violations")
    return Row(
        name=f"{commands:,} fuzzed commands over DDS at 250 Hz: refused, sudden, beyond joints or box at the driver",
        unit="violations",
        ours=float(violations),
        peer=NONE,
        target="0",
        holds=violations == 0,
        higher_is_better=False,
        detail=told,
    )


def stream(actions: int) -> tuple[Any, dict[str, int]]:
    """A judge of the stream of all robots that are known, each fuzzed at its own rate, and how often each reason was given."""
    from collections import Counter

    from robot_bridge.robots import ROBOTS, load_robot
    from robot_bridge.safety.config import GateConfig
    from robot_bridge.safety.fuzz import Judge, fuzz
    from robot_bridge.safety.gate import SafetyGate

    names, reasons, total = sorted(ROBOTS), Counter[str](), None
    for i, name in enumerate(names):
        robot = load_robot(name)
        gate = SafetyGate(GateConfig.of(robot))
        judge = fuzz(gate, actions // len(names), i, np.array(robot.spec.home_rad or np.zeros(len(robot.spec.joint_names))))
        reasons.update(gate.counts)
        total = total or Judge(gate.config)
        total.violations.update(judge.violations)
        total.worst = {k: max(judge.worst.get(k, 0.0), total.worst.get(k, 0.0)) for k in judge.worst}
    return total, dict(reasons)


def closed_loop(actions: int, seed: int = 0) -> tuple[Any, dict[str, float]]:
    """Fuzz the gate of the simulated arm.

    Returns:
        Judge of the stream; how far what was measured got beyond each limit at most: "joints_rad", "workspace_m", "plane_m", and
        "links_m" below the distance that links must keep.
    """
    from robot_bridge.kinematics import Arms
    from robot_bridge.safety.collision import SelfCollision, link_points
    from robot_bridge.safety.config import GateConfig
    from robot_bridge.safety.fuzz import fuzz
    from robot_bridge.safety.gate import SafetyGate
    from sim import RobotSim

    physics = RobotSim("reach", seed)
    interface, model = physics.interface, physics.scene.model
    spec = interface.robot_spec
    arms = Arms.of(interface.chains, [link_points(model, spec.joint_names)])
    collision = SelfCollision(model, spec.joint_names, _apart(model, spec.joint_names, spec.home_rad))
    gate = SafetyGate(GateConfig.of(spec, 100.0, keep_out=(PLANE,)), arms, collision=collision)
    low, high = np.array(spec.position_low_rad), np.array(spec.position_high_rad)
    beyond = {"joints_rad": -np.inf, "workspace_m": -np.inf, "plane_m": -np.inf, "links_m": -np.inf}

    def check(measured: np.ndarray) -> None:
        points = arms.points(measured[None])[0]
        apart = collision.distances(measured[None], np.arange(len(collision.pairs))).min()
        found = {
            "joints_rad": np.maximum(low - measured, measured - high).max(),
            "workspace_m": np.maximum(spec.workspace_low_m - points[0], points[0] - spec.workspace_high_m).max(),
            "plane_m": (PLANE[3] - points @ PLANE[:3] + arms.radii_m).max(),
            "links_m": gate.config.self_collision_margin_m - apart,
        }
        beyond.update({name: max(beyond[name], float(value)) for name, value in found.items()})

    judge = fuzz(gate, actions, seed, np.array(physics.joint_position), check, physics)
    return judge, beyond


def _apart(model: Any, joints: tuple[str, ...], home: tuple[float, ...]) -> list[tuple[int, int]]:
    """Pairs of geoms of the arm that two joints or more part and that are apart at home."""
    from itertools import combinations

    from robot_bridge.safety.collision import FAR_M, SelfCollision

    bodies = [int(model.joint(name).bodyid[0]) for name in joints]
    depth = {geom: sum(b in bodies for b in _ancestors(model, int(model.geom_bodyid[geom]))) for geom in range(model.ngeom)}
    pairs = [(a, b) for a, b in combinations(range(model.ngeom), 2) if depth[a] and depth[b] and abs(depth[a] - depth[b]) > 1]
    distances = SelfCollision(model, joints, pairs).distances(np.array([home]), np.arange(len(pairs)))[0]
    return [pair for pair, distance in zip(pairs, distances, strict=True) if 0.02 < distance <= FAR_M]


def _ancestors(model: Any, body: int) -> list[int]:
    found = []
    while body > 0:
        found.append(body)
        body = int(model.body_parentid[body])
    return found


# ---------------------------------------------------------------- cost


def _ticks(count: int) -> list[Row]:
    """One check of a 7-joint arm with all links and self-collision: followed, clamped, and with the tools' speed limited."""
    cases = (("followed", 0.05, {}, True), ("clamped", 0.4, {}, None), ("first run", 0.3, {"first_run": True}, None))
    made = []
    for name, amplitude, changes, target in cases:
        value, worst, outcomes = _tick(count, amplitude, changes)
        made.append(
            Row(
                name=f"gate check at 500 Hz, FR3, all links and self-collision, {name}",
                unit="us",
                ours=value,
                peer=NONE,
                target="< 250 us" if target else "",
                holds=value < 250.0 if target else None,
                higher_is_better=False,
                detail={"p99": worst, "outcomes": outcomes},
            )
        )
    return made


def _tick(count: int, amplitude: float, changes: dict[str, Any]) -> tuple[float, float, dict[str, int]]:
    """Median and 99th percentile of a tick in microseconds, and what became of the ticks."""
    from collections import Counter

    from robot_bridge.robots import load_robot
    from robot_bridge.safety.build import gate_for
    from sinew.protocols import Command, Observation

    robot = load_robot("fr3")
    gate, home = gate_for(robot, 500.0, **changes), np.array(robot.spec.home_rad)
    phase, last, took, outcomes = np.arange(len(home)), home, [], Counter[str]()
    gate.seed(Observation(0, 0, {"joint_position": home, "gripper": np.array(0.0)}), 0)
    for i in range(1, count + 1):
        now_ns = i * 2_000_000
        goal = home + amplitude * (np.sin(0.01 * i + phase) - np.sin(phase))
        command = Command(now_ns, i, 0.1, {"joint_position": last + np.clip(goal - last, -0.3, 0.3)})
        seen = Observation(now_ns, i, {"joint_position": last})
        before = time.perf_counter_ns()
        verdict = gate.check(command, seen, now_ns)
        took.append(time.perf_counter_ns() - before)
        last = last if verdict.joint_position is None else verdict.joint_position
        outcomes[verdict.reason or verdict.outcome] += 1
    return median(took) / 1e3, float(np.percentile(took, 99)) / 1e3, dict(outcomes)


def _e_stop(quick: bool) -> Row:
    """From the press of the software emergency stop, in another thread, to the first slower command, at 100 Hz in real time."""
    import threading

    from robot_bridge.gate import GateConfig, Operator, SafetyGate
    from robot_bridge.loop import ControlLoop
    from sinew.cli.benchmarks.loop import _Echo
    from sinew.protocols import Command

    took: list[float] = []
    for i in range(5 if quick else 50):
        robot, operator = _Echo(), Operator()
        gate = SafetyGate(GateConfig.of(robot.spec, 100.0), operator=operator)
        loop = ControlLoop(robot, gate, blend_s=0.05)
        stopped = threading.Event()
        _on_latch(gate, stopped.set)
        loop.start()
        loop.resume()
        for k in range(4):
            loop.submit(Command(time.monotonic_ns(), k, 0.1, {"joint_position": np.full(7, 0.02 * (k + 1))}))
            time.sleep(0.03 + 0.0007 * i)
        before = time.monotonic_ns()
        operator.press("bench")
        stopped.wait(5.0)
        took.append((time.monotonic_ns() - before) / 1e6)
        loop.close()
    return Row(
        name="software emergency stop to the first slower command, 100 Hz loop",
        unit="ms",
        ours=max(took),
        peer=NONE,
        target="<= 50 ms",
        holds=max(took) <= 50.0,
        higher_is_better=False,
        detail={"median": round(median(took), 2), "stops": len(took)},
    )


def _on_latch(gate: Any, call: Callable[[], None]) -> None:
    """Have `call` called when the gate has answered its first tick latched."""
    step = gate.step

    def told(*arguments: Any) -> Any:
        verdict = step(*arguments)
        if verdict.outcome == "latched":
            call()
        return verdict

    gate.step = told
