"""To the pose that an episode starts from: slowly, without a jump, through the control loop and its gate."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from robot_bridge.clock import Clock
from robot_bridge.loop import ControlLoop, openings
from robot_bridge.profile import ways
from sinew.errors import InputError, SafetyStop
from sinew.protocols import Command, Observation

ARRIVED_RAD = 0.02
"""The robot is at the start pose when no joint is farther from it."""
CAUTION = 0.9
"""Of the speed that is allowed is planned."""
SETTLE_S = 1.0
"""What the robot may take to follow the last command."""


class Approach:
    """Moves a robot to its start pose.

    Args:
        loop: started, paused.
        pose: (J,) rad.
        speed: share of the joints' speed limits, (0, 1].
        period_s: time between two targets: the policy's period.
        ttl_s: time to live of a target.
        confirm: asked once before the robot moves, with what is going to happen; None moves without asking.
        what: what a person calls the pose.

    Raises:
        InputError: a pose of another number of joints or outside the limits.
    """

    def __init__(
        self,
        loop: ControlLoop,
        pose: Sequence[float],
        *,
        speed: float,
        period_s: float,
        ttl_s: float,
        clock: Clock,
        confirm: Callable[[str], bool] | None = None,
        what: str = "its start pose",
    ) -> None:
        limits = loop.gate.config
        self.loop, self.pose, self._clock, self._confirm = loop, np.array(pose, dtype=float), clock, confirm
        self._period_ns, self._ttl_s = round(period_s * 1e9), ttl_s
        low, high = np.array(limits.position_low_rad), np.array(limits.position_high_rad)
        if self.pose.shape != low.shape or not ((self.pose >= low) & (self.pose <= high)).all():
            raise InputError(f"start pose {self.pose.tolist()} is not one of {len(low)} joints within {low.tolist()} to {high.tolist()}")
        self._slow = slow = loop.limits(speed)
        # planned a little slower than the stream may be, which has to catch up with what it is asked for
        velocity = [CAUTION * v for v in slow.velocity_max_rad_s]
        self._limits = list(zip(velocity, slow.acceleration_max_rad_s2, slow.jerk_max_rad_s3, strict=True))
        self._asked, self._what = False, what
        self._seq = 0

    def move(self) -> str:
        """Bring the robot there; it stands when this returns.

        Returns:
            Empty, or why the gate closed meanwhile.

        Raises:
            SafetyStop: nobody confirmed, or the robot did not arrive.
        """
        measured = self.loop.robot.read()
        far = float(np.abs(np.asarray(measured.values["joint_position"]) - self.pose).max())
        if far <= ARRIVED_RAD:
            return ""
        self._ask(far)
        self.loop.pause()
        self.loop.keep_to(self._slow)
        try:
            return self.loop.resume() or self._follow(measured)
        finally:
            self.loop.pause()
            self.loop.keep_to(self.loop.limits())

    # ------------------------------------------------------------ inside

    def _follow(self, measured: Observation) -> str:
        start = self.loop.gate.last_command
        assert start is not None  # the gate was seeded
        joints = len(start)
        states = [(float(q), 0.0, 0.0) for q in start]
        path = ways(states, self.pose.tolist(), [0.0] * joints, self._limits)
        begun_ns, duration_s = self._clock.now_ns(), max(way.duration_s for way in path)
        gripper = openings(tuple(np.atleast_1d(measured.values.get("gripper", 0.0)).tolist()))
        while not self.loop.gate.latched:
            now_ns = self._clock.now_ns()
            ahead_s = (now_ns - begun_ns + self._period_ns) / 1e9
            self._send(np.array([way.at(min(ahead_s, duration_s))[0] for way in path]), gripper)
            elapsed_s = (now_ns - begun_ns) / 1e9
            if elapsed_s > duration_s and self._arrived():
                break
            if elapsed_s > duration_s + SETTLE_S:
                self._missed()
            self._clock.wait_until(now_ns + self._period_ns)
        self.loop.ramp_down()
        return self.loop.gate.latched

    def _ask(self, far: float) -> None:
        if self._asked or self._confirm is None:
            return
        name = self.loop.robot.spec.name
        if not self._confirm(f"robot {name} moves to {self._what}, up to {far:.2f} rad, slowly"):
            raise SafetyStop(f"robot {name} was not allowed to move to {self._what}")
        self._asked = True

    def _send(self, target: np.ndarray, gripper: np.ndarray) -> None:
        self._seq += 1
        stamp_ns = self.loop.robot.read().stamp_ns
        self.loop.submit(Command(stamp_ns, self._seq, self._ttl_s, {"joint_position": target, "gripper": gripper}))

    def _arrived(self) -> bool:
        return bool(np.abs(np.asarray(self.loop.robot.read().values["joint_position"]) - self.pose).max() <= ARRIVED_RAD)

    def _missed(self) -> None:
        here = np.asarray(self.loop.robot.read().values["joint_position"])
        reason = "" if self.loop.verdict is None else self.loop.verdict.reason
        self.loop.ramp_down()
        joint = int(np.abs(here - self.pose).argmax())
        spec = self.loop.robot.spec
        stands = f"{spec.joint_names[joint]} stands at {here[joint]:.3f} rad, the pose has {self.pose[joint]:.3f}"
        still = getattr(self.loop.robot, "why_still", lambda: "is the way free and the controller active?")
        why = f"the safety gate holds it ({reason})" if reason else still()
        raise SafetyStop(f"robot {spec.name} did not reach {self._what}: {stands}; {why}")
