"""Wild commands through the control loop and its gate, judged where they arrive: at the robot's driver."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from robot_bridge.clock import MonotonicClock, SteppedClock, sleep
from robot_bridge.faults.trial import Checked
from robot_bridge.gate import GateConfig, SafetyGate
from robot_bridge.loop import ControlLoop
from robot_bridge.safety.fuzz import Wild
from sinew.protocols import RobotSpec

TICKS_PER_COMMAND = 2
SLACK = 1e-6
"""Rounding, rad and m."""
AT_REST_RAD_S = 0.01
REFUSALS = 5
"""Tries to start where the arm came to rest, before its scene is set up again."""


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


def fuzz_over_dds(commands: int, seed: int, folder: Path, domain: int, *, rate_hz: float = 250.0, task: str = "reach") -> dict[str, Any]:
    """Send wild commands through loop, gate and DDS to a robot in a process of its own, in real time.

    What is judged is not the gate's word: the driver in the other process looks at every command, and those that it obeyed are
    compared with the joints' limits, and with the gate's box by MuJoCo's own kinematics. So is where the arm truly was, which its servos
    and the load of the machine have a part in.

    Args:
        commands: how many.
        seed: of the randomness.
        folder: for the robot's trace.
        domain: DDS domain.
        rate_hz: commands per second, of the loop and of the robot.
        task: whose robot and limits.

    Returns:
        "sent", "latched", the driver's counts ("taken", "refused", "sudden"), and by how much commands and the arm were beyond the limits
        at most: "beyond_rad", "beyond_m", "arm_beyond_rad", "arm_beyond_m", negative where they never were. "violations" counts what
        must not be of commands.
    """
    import sim
    from robot_bridge.dds_robot import DdsRobot, DdsScene
    from robot_bridge.deploy import DeployConfig, make_gate
    from robot_bridge.faults.process import RobotProcess

    interface = sim.make_interface(task)
    served = RobotProcess(folder, domain, {}, rate_hz, task)
    robot = DdsRobot(interface.robot_spec, objects=interface.objects, domain=domain)
    try:
        robot.connect(60.0)
        scene, gate = DdsScene(robot), make_gate(interface, DeployConfig(controller_rate_hz=rate_hz))
        latched = _play(commands, seed, robot, scene, gate)
        ticks = served.ticks()
        told = served.end()
    finally:
        robot.close()
        served.kill()
    beyond_rad, beyond_m = _beyond(task, gate.config, np.array([tick["obeyed"] for tick in ticks if tick["obeyed"]]))
    arm_rad, arm_m = _beyond(task, gate.config, np.array([tick["joint_position"] for tick in ticks]))
    violations = sum(told["refused"].values()) + told["sudden"] + (beyond_rad > SLACK) + (beyond_m > SLACK)
    return {
        "sent": commands, "latched": latched, **told, "beyond_rad": beyond_rad, "beyond_m": beyond_m, "arm_beyond_rad": arm_rad,
        "arm_beyond_m": arm_m, "violations": int(violations),
    }  # fmt: skip


def _play(commands: int, seed: int, robot: Any, scene: Any, gate: SafetyGate) -> int:
    """Send the commands, one a tick; gives how often the gate latched and was released."""
    from robot_bridge.faults.process import until

    clock, period_s = MonotonicClock(), gate.config.dt_s
    loop = ControlLoop(robot, gate, blend_s=0.05, clock=clock)
    wild, latched, refusals = Wild(np.random.default_rng(seed), len(gate.config.position_low_rad)), 0, 0
    loop.start()
    scene.reset(seed)
    loop.resume()
    wild.target = np.array(robot.read().values["joint_position"])
    try:
        for i in range(1, commands + 1):
            while gate.latched:
                until(lambda: _released(gate, robot))
                latched += 1
                refusals = refusals + 1 if loop.resume() else 0
                if refusals > REFUSALS:  # it came to rest where it may not start
                    loop.pause()
                    scene.reset(seed + i)
                wild.target = np.array(robot.read().values["joint_position"])
            last = gate.last_command
            loop.submit(wild.command(clock.now_ns(), i, wild.target if last is None else last, period_s))
            sleep(clock, period_s)
    finally:
        loop.close()
    if loop.defect is not None:
        raise loop.defect
    return latched


def _released(gate: SafetyGate, robot: Any) -> bool:
    """Whether an operator could release: one waits until the arm rests, so that it is measured where it was told to be."""
    still = float(np.abs(robot.read().values["joint_velocity"]).max()) < AT_REST_RAD_S
    return still and gate.release("fuzz") == ""


def _beyond(task: str, limits: GateConfig, joints: np.ndarray) -> tuple[float, float]:
    """How far joints (N, J) and the tool were beyond their limits and their box at most, rad and m."""
    import mujoco

    import sim

    scene = sim.RobotSim(task, 0).scene
    data, beyond_m = mujoco.MjData(scene.model), -np.inf  # pyright: ignore[reportAttributeAccessIssue]
    beyond_rad = float(np.maximum(np.array(limits.position_low_rad) - joints, joints - np.array(limits.position_high_rad)).max())
    low, high = np.array(limits.workspace_low_m), np.array(limits.workspace_high_m)
    for row in joints:
        data.qpos[scene.joint_qpos] = row
        mujoco.mj_kinematics(scene.model, data)  # pyright: ignore[reportAttributeAccessIssue]
        tool = data.site(scene.robots[0].tool).xpos
        beyond_m = max(beyond_m, float(np.maximum(low - tool, tool - high).max()))
    return beyond_rad, beyond_m
