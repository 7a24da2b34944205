"""Limits of the safety gate."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite
from typing import Any, Literal

import numpy as np

from sinew.errors import InputError
from sinew.protocols import RobotSpec

OnViolation = Literal["clamp", "reject"]
Plane = tuple[float, float, float, float]
FIRST_RUN_SPEED_M_S = 0.25
"""Reduced speed of ISO 10218-1."""
SINGULARITY_STOP = 30.0
"""MoveIt Servo's value."""
JERK_TIME_S = 0.01
"""Time in which a joint builds up its largest acceleration, where no jerk limit is given: datasheets of arms that tell one give
2 ms (Franka FR3: 10 rad/s², 5000 rad/s³) to 40 ms (xArm7: 20 rad/s², 500 rad/s³)."""


@dataclass(frozen=True, kw_only=True)
class GateConfig:
    """Limits of a gate; `GateConfig.of` fills them from a robot."""

    dt_s: float
    """Period of the controller that the emitted stream feeds."""
    position_low_rad: tuple[float, ...]
    position_high_rad: tuple[float, ...]
    velocity_max_rad_s: tuple[float, ...]
    acceleration_max_rad_s2: tuple[float, ...]
    jerk_max_rad_s3: tuple[float, ...] = ()
    """Empty for the acceleration limit within 10 ms, and never less than stopping in `stop_time_s` needs."""
    gripper_low_m: float
    gripper_high_m: float
    gripper_velocity_max_m_s: float | None = None
    """None: the gripper's own controller limits its speed."""
    gripper_force_max_n: float | None = None
    """A gripper that is measured ("gripper_effort") to press harder closes no further; None leaves it unchecked."""
    workspace_low_m: tuple[float, float, float] = (-np.inf, -np.inf, -np.inf)
    """Corner of the box that the tools stay in, world frame."""
    workspace_high_m: tuple[float, float, float] = (np.inf, np.inf, np.inf)
    cell_low_m: tuple[float, float, float] = (-np.inf, -np.inf, -np.inf)
    """Corner of the box that every link stays in, world frame."""
    cell_high_m: tuple[float, float, float] = (np.inf, np.inf, np.inf)
    keep_out: tuple[Plane, ...] = ()
    """Planes (a, b, c, d) that every link stays in front of: a x + b y + c z >= d, metres, (a, b, c) a unit vector."""
    workspace_margin_m: float = 0.002
    """Boxes and planes are moved inwards by this much, since the way to a standstill is checked at a few points only."""
    self_collision_margin_m: float = 0.01
    """Links stay this far apart (the slow-down distance of MoveIt Servo)."""
    singularity_slow: float = 17.0
    """Condition number of the tool's Jacobian above which motion that makes it larger is slowed (MoveIt Servo's value)."""
    singularity_stop: float = np.inf
    """Condition number at which such motion ends, `SINGULARITY_STOP` for policies that move the tool; infinity for no check, where
    joints are commanded and singular poses are none of their concern."""
    tcp_speed_max_m_s: float | None = None
    """Largest speed of every tool; None leaves it unchecked."""
    first_run: bool = False
    """Limit the tools to 0.25 m/s, whatever `tcp_speed_max_m_s` allows."""
    stop_time_s: float = 0.25
    """Every joint stands at most this long after a stop; joint speed is limited so that it can."""
    observation_ttl_s: float = 0.1
    """Older measurements hold the robot."""
    command_ttl_max_s: float = 0.1
    """A command may claim no longer life than this: the robot holds at most so long after the last one (MoveIt Servo's value)."""
    latch_after_s: float = 1.0
    """A hold for something missing that lasts longer is latched."""
    jump_max_rad: float = 0.5
    """Largest distance of a target from the last command, any joint."""
    first_step_max_rad: float = 0.25
    """The same for the first command after `seed`."""
    start_pose_rad: tuple[float, ...] = ()
    """Where the robot must stand at `seed`; empty for anywhere inside its limits."""
    start_pose_tolerance_rad: float = 0.1
    start_velocity_max_rad_s: float = 0.2
    measured_jump_max_rad: float = 0.2
    """Measured joints may differ by this much, and by what they can move in that time, from one measurement to the next."""
    frozen_after_s: float = 0.06
    """Measured joints that stay the same to the bit for longer, while the command moves, are frozen."""
    frozen_travel_rad: float = 0.01
    """What the command must have moved meanwhile."""
    start_grace_s: float = 0.2
    """Not in this time from the beginning of a motion: drives and friction take a while."""
    tracking_error_max_rad: float = 0.35
    """Largest difference of measured and commanded joints for `tracking_time_s`."""
    tracking_time_s: float = 0.2
    standing_error_max_rad: float = 0.05
    """Joints that stand still this far from their command for `standing_time_s` do not follow it. A policy that acts from where the
    robot is measured to be never asks for more, however long the robot stands."""
    standing_time_s: float = 1.5
    effort_max_nm: tuple[float, ...] = ()
    """Largest measured torque of each joint; empty leaves it unchecked."""
    effort_time_s: float = 0.1
    """How long a torque may be larger."""
    on_position: OnViolation = "clamp"
    on_velocity: OnViolation = "clamp"
    on_workspace: OnViolation = "clamp"

    def __post_init__(self) -> None:
        if not self.jerk_max_rad_s3:
            object.__setattr__(self, "jerk_max_rad_s3", tuple(a / JERK_TIME_S for a in self.acceleration_max_rad_s2))
        limits = (self.velocity_max_rad_s, self.acceleration_max_rad_s2, self.jerk_max_rad_s3)
        lengths = {len(v) for v in (self.position_low_rad, self.position_high_rad, *limits, self.effort_max_nm or self.position_low_rad)}
        if len(lengths) != 1:
            raise InputError(f"gate limits differ in length: {sorted(lengths)}; give one value per joint everywhere")
        if not all(lo < hi for lo, hi in zip(self.position_low_rad, self.position_high_rad, strict=True)):
            raise InputError(f"gate position limits {self.position_low_rad} are not below {self.position_high_rad}")
        if not all(isfinite(v) and v > 0 for v in (*sum(limits, ()), self.dt_s)):
            raise InputError("gate velocity, acceleration and jerk limits and dt_s must be finite and above 0: give the datasheet's values")
        if self.stop_time_s < 2 * self.dt_s:
            raise InputError(f"stop_time_s {self.stop_time_s} is below two controller periods of {self.dt_s} s")
        slow = [j for j, (a, k) in enumerate(zip(*limits[1:], strict=True)) if 2 * (a / k + self.dt_s) > self.stop_time_s]
        if slow:
            raise InputError(
                f"joint {slow[0]} cannot stop within stop_time_s {self.stop_time_s:g}: jerk_max_rad_s3 {limits[2][slow[0]]:g} takes "
                f"{limits[1][slow[0]] / limits[2][slow[0]]:.3g} s to build up its acceleration; raise the jerk limit or the time"
            )
        if any(abs(a * a + b * b + c * c - 1.0) > 1e-6 for a, b, c, _ in self.keep_out):
            raise InputError(f"keep_out planes {self.keep_out} need unit normals: divide all four numbers by the normal's length")
        if not 1.0 <= self.singularity_slow < self.singularity_stop:
            raise InputError(
                f"singularity_slow {self.singularity_slow} must be at least 1 and below singularity_stop {self.singularity_stop}"
            )

    @property
    def tcp_speed_m_s(self) -> float | None:
        """Largest speed of every tool that is in force."""
        limits = [v for v in (self.tcp_speed_max_m_s, FIRST_RUN_SPEED_M_S if self.first_run else None) if v is not None]
        return min(limits, default=None)

    @classmethod
    def of(cls, robot: Any, rate_hz: float | None = None, **changes: Any) -> GateConfig:
        """Limits of `robot` at controller rate `rate_hz` (the robot's own by default), with `changes`.

        Args:
            robot: a `RobotSpec`, or what has one as `spec` and more limits beside it under the names of these fields.
            rate_hz: controller rate.
            changes: fields of this class.
        """
        spec: RobotSpec = getattr(robot, "spec", robot)
        values: dict[str, Any] = {
            "dt_s": 1.0 / (rate_hz or spec.rate_hz),
            "position_low_rad": spec.position_low_rad,
            "position_high_rad": spec.position_high_rad,
            "velocity_max_rad_s": spec.velocity_max_rad_s,
            "acceleration_max_rad_s2": spec.acceleration_max_rad_s2,
            "gripper_low_m": spec.gripper_low_m,
            "gripper_high_m": spec.gripper_high_m,
            "workspace_low_m": spec.workspace_low_m,
            "workspace_high_m": spec.workspace_high_m,
        }
        for name in ("jerk_max_rad_s3", "effort_max_nm", "gripper_velocity_max_m_s", "gripper_force_max_n", "keep_out"):
            if getattr(robot, name, None):
                values[name] = getattr(robot, name)
        return cls(**{**values, **changes})
