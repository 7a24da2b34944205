"""A robot as the calibration's routine moves it: slowly, through the control loop and its gate, and holding whenever in doubt.

Between two moves nothing is sent, and the robot holds by itself. A move that was not proved free is not begun; one that the gate
holds back is given up; whatever closes the gate, a silent robot and a camera without pictures end the routine.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np

from robot_bridge.approach import Approach
from robot_bridge.calibrating.hand import Hand
from robot_bridge.clock import Clock
from robot_bridge.loop import ControlLoop
from robot_bridge.ros_robot import RosRobot
from robot_bridge.safety.config import FIRST_RUN_SPEED_M_S
from robot_bridge.safety.space import Space
from robot_bridge.safety.states import REASONS
from robot_bridge.standing import why_stopped
from sinew.errors import InputError, SafetyStop
from sinew.protocols import Robot
from sinew.se3 import Array, se3_inverse, so3_log

STILL_RAD, LOOKS, FRESH_S = 2e-3, 5, 0.3
"""A robot stands still when its joints stayed within this over so many looks, and were measured no longer ago than this."""
REACHED_M, REACHED_RAD = 2e-3, float(np.deg2rad(1.0))
"""Poses that the arm cannot come nearer to are not gone to."""
PLACES = 12
"""Of a way that are looked at before it is gone."""
TARGETS_HZ, TTL_S = 20.0, 0.095
"""Targets per second for the control loop, and how long each is followed."""
NEARER = 0.7
"""Of the way that was left; a robot that was held up, by its speed limit or a busy machine, and came no nearer is given up."""
WALLS = ("workspace", "self_collision", "singularity")
"""What the gate holds a robot back for without there being anything wrong with it."""


@dataclass(frozen=True, kw_only=True)
class Care:
    """How carefully a robot is moved."""

    speed: float = 0.1
    """Share of the joints' largest speed."""
    tool_speed_m_s: float = 0.8 * FIRST_RUN_SPEED_M_S
    """Speed of the hand that is planned with; the gate lets no more than a first run's 0.25 m/s through."""
    picture_s: float = 5.0
    """A camera that gives no picture for this long ends the routine."""

    def __post_init__(self) -> None:
        if not 0 < self.speed <= 1 or not 0 < self.tool_speed_m_s <= FIRST_RUN_SPEED_M_S or not self.picture_s > 0:
            raise InputError(
                f"a speed of {self.speed} of the joints' and {self.tool_speed_m_s} m/s of the hand cannot be: up to 1 and up to "
                f"{FIRST_RUN_SPEED_M_S} m/s"
            )


@dataclass(frozen=True)
class Shot:
    """A picture with where the robot was when it was taken."""

    image: np.ndarray
    """(height, width, 3) uint8."""
    joints: Array
    """(J,) rad."""
    stamp_ns: int
    """Wall-clock time where the robot has one, else the control loop's."""


class RobotMover:
    """A `calibration.routine.Mover` that drives a robot.

    Args:
        robot: connected.
        loop: its control loop, started and paused.
        hand: of the arm that moves; other arms stay where they are.
        camera: whose pictures are taken.
        space: where the robot may be, to look at ways before they are gone.
        care: how fast.
        clock: the loop's.
    """

    def __init__(self, robot: Robot, loop: ControlLoop, hand: Hand, camera: str, space: Space, care: Care, clock: Clock) -> None:
        self.robot, self.loop, self.hand, self.camera, self.care, self.clock = robot, loop, hand, camera, care, clock
        self._space, self._looks = space, deque[Array](maxlen=LOOKS)
        self.shot: Shot | None = None
        """The newest picture."""

    # ------------------------------------------------------------ what the routine asks

    def move(self, T_base_hand: Array) -> None:
        """Bring the hand to a pose (4, 4); the robot stands when this returns.

        Raises:
            InputError: it cannot be reached, or the way there is not free.
            SafetyStop: the gate closed, or the robot does not follow.
        """
        self._check_stop()
        start = self._measured()
        joints, reached = self.hand.near(T_base_hand, start)
        off = se3_inverse(reached[0]) @ np.asarray(T_base_hand)
        if np.linalg.norm(off[:3, 3]) > REACHED_M or np.linalg.norm(so3_log(off[:3, :3])) > REACHED_RAD:
            raise InputError("the arm cannot reach it")
        if problem := self.way_problem(start, joints[0]):
            raise InputError(problem)
        self._go(start, joints[0])

    def still(self) -> bool:
        """Whether the robot has stood still since some looks ago.

        Raises:
            SafetyStop: somebody stopped it.
        """
        self._check_stop()
        newest = self.robot.read()
        if self.clock.now_ns() - newest.stamp_ns > FRESH_S * 1e9:
            self._looks.clear()
            return False
        self._looks.append(np.array(newest.values["joint_position"], dtype=float))
        return len(self._looks) == LOOKS and float(np.ptp(np.array(self._looks), axis=0).max()) < STILL_RAD

    def picture(self) -> np.ndarray:
        """A picture (height, width, 3) uint8 taken after this call.

        Raises:
            SafetyStop: none comes, the robot is silent, or somebody stopped it.
        """
        asked_ns = self.clock.now_ns()
        while (shot := self._newer(asked_ns)) is None:
            self._check_stop()
            now_ns = self.clock.now_ns()
            if now_ns - asked_ns > self.care.picture_s * 1e9:
                raise SafetyStop(self._no_picture())
            self.clock.wait_until(now_ns + 5_000_000)
        self.shot = shot
        return shot.image

    def pose(self) -> Array:
        """T_base_hand (4, 4) when the newest picture was taken."""
        assert self.shot is not None  # the routine looks first
        return self.hand.pose(self.shot.joints)

    # ------------------------------------------------------------ what chooses poses asks

    def near(self, poses: Array) -> Array:
        """The nearest that the hand comes to poses (N, 4, 4), going there from here."""
        return self.hand.near(poses, self._measured())[1]

    def free(self, T_base_hand: Array) -> bool:
        """Whether the hand can go to a pose (4, 4) from here."""
        start = self._measured()
        return not self.way_problem(start, self.hand.near(T_base_hand, start)[0][0])

    def stands_badly(self) -> str:
        """Why the robot may not begin to move from where it stands; empty where it may."""
        return self._space.start_problem(self._measured().tolist())

    def way_problem(self, start: Array, end: Array) -> str:
        """Why the straight way of the joints from one place to another is not free; empty where it is."""
        for part in np.linspace(0.0, 1.0, PLACES)[1:]:
            if problem := self._space.start_problem((start + part * (end - start)).tolist()):
                return f"the way there is not free: {problem}"
        return ""

    # ------------------------------------------------------------ inside

    def _check_stop(self) -> None:
        if pressed := self.loop.gate.operator.pressed:
            raise SafetyStop(f"robot {self.robot.spec.name} was stopped ({pressed}); it holds")

    def _measured(self) -> Array:
        newest = self.robot.read()
        joints = np.array(newest.values.get("joint_position", ()), dtype=float)
        if joints.shape != (len(self.hand.spec.joint_names),) or not np.isfinite(joints).all():
            raise SafetyStop(f"robot {self.robot.spec.name} does not tell where its joints are; it holds")
        return joints

    def _go(self, start: Array, end: Array) -> None:
        """Go to joints (J,), in one go or, where the robot was held up but gets nearer, in several."""
        self._looks.clear()
        left = float(np.abs(end - start).max())
        while True:
            approach = Approach(
                self.loop, end.tolist(), speed=self._speed(start, end), period_s=1 / TARGETS_HZ, ttl_s=TTL_S, clock=self.clock,
                what="the next view",
            )  # fmt: skip
            try:
                closed = approach.move()
                break
            except SafetyStop:
                reason = "" if self.loop.verdict is None else self.loop.verdict.reason
                start = self._measured()
                before, left = left, float(np.abs(end - start).max())
                if self.loop.gate.latched or (reason not in WALLS and left > NEARER * before):
                    raise
                if reason in WALLS:
                    raise InputError(f"the safety gate held the robot on the way: {REASONS[reason].meaning}") from None
        if self.loop.defect is not None:
            raise self.loop.defect
        if closed:
            raise SafetyStop(self._why_closed(closed))

    def _speed(self, start: Array, end: Array) -> float:
        """Share of the joints' speed at which the hand keeps to its own."""
        far, top = np.abs(end - start), np.array(self.loop.gate.velocity_cap)
        least_s = float((far / top).max())
        if least_s <= 0:
            return self.care.speed
        velocity = (end - start) / least_s
        fastest = max(self.hand.tool_speed(start + part * (end - start), velocity) for part in np.linspace(0.0, 1.0, PLACES))
        return min(self.care.speed, self.care.tool_speed_m_s / max(fastest, 1e-6))

    def _why_closed(self, reason: str) -> str:
        self._check_stop()
        said = why_stopped(self.loop.gate, self.robot) or reason
        return f"the safety gate stopped robot {self.robot.spec.name}: {said}; the robot holds"

    def _newer(self, asked_ns: int) -> Shot | None:
        """A picture that was taken after a time, with the joints at its time; None where there is none yet."""
        key, newest = f"images.{self.camera}", self.robot.read()
        came_ns = newest.stamps_ns.get(key, -1)
        if came_ns <= asked_ns or key not in newest.values:
            return None
        if not isinstance(self.robot, RosRobot):
            return Shot(np.array(newest.values[key]), np.array(newest.values["joint_position"], dtype=float), came_ns)
        shown = self.robot.aligner.newest(self.clock.now_ns())
        taken_ns = shown.stamps_ns.get(key, -1)
        joints = self.robot.aligner.frame(taken_ns).values.get("joint_position")
        if taken_ns <= asked_ns or joints is None:
            return None
        return Shot(np.array(shown.values[key]), np.array(joints, dtype=float), taken_ns - self.robot.offset_ns)

    def _no_picture(self) -> str:
        newest = self.robot.read()
        age_s = (self.clock.now_ns() - newest.stamp_ns) / 1e9
        if age_s > FRESH_S:
            return f"robot {self.robot.spec.name} has not told its joints for {age_s:.1f} s; it holds"
        came = f"images.{self.camera}" in newest.values
        return (
            f"camera {self.camera} gave no {'new ' * came}picture for {self.care.picture_s:g} s: is its driver running, and its topic "
            "the one of the robot's contract? The robot holds"
        )
