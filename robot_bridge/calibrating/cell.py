"""What stands around a calibration on a robot: the gate of a first run, the control loop, and the mover that uses them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from robot_bridge.calibrating.hand import Hand
from robot_bridge.calibrating.mover import TARGETS_HZ, Care, RobotMover
from robot_bridge.clock import Clock, MonotonicClock
from robot_bridge.gate import GateConfig, Operator, SafetyGate
from robot_bridge.kinematics import Arms
from robot_bridge.loop import ControlLoop
from robot_bridge.robots.config import RobotConfig
from robot_bridge.safety.build import link_model, self_collision_of
from robot_bridge.safety.space import Space
from sinew.errors import InputError
from sinew.protocols import Robot

CONTROLLER_HZ = 100.0


@contextmanager
def calibrating(
    robot: Robot,
    hand: Hand,
    camera: str,
    *,
    config: RobotConfig | None = None,
    chains: Any = None,
    floor_m: float | None = None,
    care: Care | None = None,
    operator: Operator | None = None,
    clock: Clock | None = None,
    timeout_s: float = 10.0,
    realtime: bool = True,
) -> Iterator[RobotMover]:
    """Connect a robot and move it by a `RobotMover`; it holds when this ends, however it ends.

    Args:
        robot: not connected yet; left connected.
        hand: of the arm that moves.
        camera: whose pictures are taken.
        config: the robot as data, with all of its limits, links and distances.
        chains: its kinematics, where there is no config.
        floor_m: the tools stay above this height, world frame; None for the workspace's own.
        care: how fast.
        operator: emergency stop.
        clock: `SteppedClock` with a stepped `SimRobot` makes every run alike.
        timeout_s: to wait for the robot.
        realtime: ask for SCHED_FIFO for the control loop.

    Raises:
        InputError: the robot does not answer, or its limits cannot be.
    """
    clock = clock or MonotonicClock()
    gate, space = _guards(robot, config, chains, floor_m, operator)
    loop = ControlLoop(robot, gate, blend_s=1 / TARGETS_HZ, clock=clock, realtime=realtime)
    robot.connect(timeout_s)
    loop.start()
    try:
        yield RobotMover(robot, loop, hand, camera, space, care or Care(), clock)
    finally:
        loop.close()


def _guards(
    robot: Robot, config: RobotConfig | None, chains: Any, floor_m: float | None, operator: Operator | None
) -> tuple[SafetyGate, Space]:
    """The gate, and the same knowledge of where the robot may be, for looking at ways beforehand."""
    spec, links, collision, limits = robot.spec, None, None, config or robot.spec
    if config is not None:
        links = link_model(config)
        collision = self_collision_of(config) if links is not None and config.capsules else None
    elif chains is not None:
        links = Arms.of(chains)
    x, y, z = spec.workspace_low_m
    if floor_m is not None and not floor_m < spec.workspace_high_m[2]:
        raise InputError(f"--floor {floor_m:g}: the workspace of robot {spec.name} ends at a height of {spec.workspace_high_m[2]:g} m")
    low = (x, y, z if floor_m is None else max(z, floor_m))
    gate_config = GateConfig.of(limits, CONTROLLER_HZ, first_run=links is not None, workspace_low_m=low)
    collision_too = None if config is None or collision is None else self_collision_of(config)
    return SafetyGate(gate_config, links, collision=collision, operator=operator), Space(gate_config, links, collision_too)
