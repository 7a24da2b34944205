"""Wild commands through the control loop and its gate, judged where they arrive: at the robot's driver."""

from __future__ import annotations

from typing import Any

import numpy as np

from robot_bridge.clock import SteppedClock, sleep
from robot_bridge.faults.trial import Checked
from robot_bridge.gate import GateConfig, SafetyGate
from robot_bridge.loop import ControlLoop
from robot_bridge.safety.fuzz import Wild
from sinew.protocols import RobotSpec

TICKS_PER_COMMAND = 2


class Point:
    """Joints that are where they were sent a period ago: physics that costs nothing."""

    poses: dict[str, np.ndarray] = {}  # noqa: RUF012  (no objects at all)
    success = False

    def __init__(self, spec: RobotSpec) -> None:
        self._home = np.array(spec.home_rad or [(a + b) / 2 for a, b in zip(spec.position_low_rad, spec.position_high_rad, strict=True)])
        self.gripper: float = spec.gripper_low_m
        self.reset(0)

    def reset(self, seed: int) -> None:
        self.joint_position = self._home.copy()
        self.joint_velocity = np.zeros_like(self._home)

    def step(self, joint_target: np.ndarray, gripper_target: Any, duration_s: float) -> None:
        self.joint_velocity = (joint_target - self.joint_position) / duration_s
        self.joint_position = np.array(joint_target)
        self.gripper = float(np.asarray(gripper_target))

    def image(self, camera: str, height: int = 1, width: int = 1) -> np.ndarray:
        return np.zeros((height, width, 3), dtype=np.uint8)


def fuzz_driver(commands: int, seed: int, task: str = "lift") -> dict[str, Any]:
    """Send wild commands to a task's robot through loop and gate; a latch is released at rest, as an operator would.

    Args:
        commands: how many.
        seed: of the randomness.
        task: whose robot and limits.

    Returns:
        "sent", "latched" and the driver's own counts: "taken", "refused", "sudden".
    """
    import sim

    spec = sim.make_interface(task).robot_spec
    clock = SteppedClock()
    robot = Checked(Point(spec), spec, clock=clock)
    robot.connect()
    gate = SafetyGate(GateConfig.of(spec, 100.0))
    loop = ControlLoop(robot, gate, blend_s=0.05, clock=clock)
    loop.start()
    loop.resume()
    wild, latched, start_seq = Wild(np.random.default_rng(seed), len(spec.joint_names)), 0, 0
    wild.target = np.array(robot.read().values["joint_position"])
    period_s = gate.config.dt_s
    for i in range(1, commands + 1):
        last = gate.last_command
        if gate.latched and gate.speed == 0.0:
            latched += 1
            gate.release("fuzz", clock.now_ns())
            loop.resume()
            last = gate.last_command
            wild.target = np.array(robot.read().values["joint_position"])
        if last is not None:
            loop.submit(wild.command(clock.now_ns(), start_seq + i, last, period_s))
        sleep(clock, TICKS_PER_COMMAND * period_s)
    loop.close()
    robot.close()
    if loop.defect is not None:
        raise loop.defect
    return {"sent": commands, "latched": latched, **robot.check.report()}
