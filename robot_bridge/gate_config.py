"""Limits of the safety gate."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite
from typing import Any, Literal

import numpy as np

from sinew.errors import InputError
from sinew.protocols import RobotSpec

OnViolation = Literal["clamp", "reject"]


@dataclass(frozen=True, kw_only=True)
class GateConfig:
    """Limits of a gate; `GateConfig.of` fills them from a robot."""

    dt_s: float
    """Period of the controller that the emitted stream feeds."""
    position_low_rad: tuple[float, ...]
    position_high_rad: tuple[float, ...]
    velocity_max_rad_s: tuple[float, ...]
    acceleration_max_rad_s2: tuple[float, ...]
    gripper_low_m: float
    gripper_high_m: float
    gripper_velocity_max_m_s: float | None = None
    """None: the gripper's own controller limits its speed."""
    workspace_low_m: tuple[float, float, float] = (-np.inf, -np.inf, -np.inf)
    workspace_high_m: tuple[float, float, float] = (np.inf, np.inf, np.inf)
    workspace_margin_m: float = 0.002
    """The box is shrunk by this much, since the braking path is checked at three points only."""
    stop_time_s: float = 0.25
    """Every joint stands at most this long after a stop; joint speed is limited so that it can."""
    observation_ttl_s: float = 0.1
    """Older measurements hold the robot."""
    command_ttl_max_s: float = 0.5
    """A command may claim no longer life than this."""
    latch_after_s: float = 1.0
    """A hold for a missing command or measurement that lasts longer is latched."""
    jump_max_rad: float = 0.5
    """Largest distance of a target from the last command, any joint."""
    first_step_max_rad: float = 0.25
    """The same for the first command after `seed`."""
    start_pose_rad: tuple[float, ...] = ()
    """Where the robot must stand at `seed`; empty for anywhere inside its limits."""
    start_pose_tolerance_rad: float = 0.1
    start_velocity_max_rad_s: float = 0.2
    on_position: OnViolation = "clamp"
    on_velocity: OnViolation = "clamp"
    on_workspace: OnViolation = "clamp"

    def __post_init__(self) -> None:
        lengths = {len(v) for v in (self.position_low_rad, self.position_high_rad, self.velocity_max_rad_s, self.acceleration_max_rad_s2)}
        if len(lengths) != 1:
            raise InputError(f"gate limits differ in length: {sorted(lengths)}; give one value per joint everywhere")
        if not all(lo < hi for lo, hi in zip(self.position_low_rad, self.position_high_rad, strict=True)):
            raise InputError(f"gate position limits {self.position_low_rad} are not below {self.position_high_rad}")
        if not all(isfinite(v) and v > 0 for v in (*self.velocity_max_rad_s, *self.acceleration_max_rad_s2, self.dt_s)):
            raise InputError("gate velocity and acceleration limits and dt_s must be finite and above 0: give the datasheet's values")
        if self.stop_time_s < 2 * self.dt_s:
            raise InputError(f"stop_time_s {self.stop_time_s} is below two controller periods of {self.dt_s} s")

    @classmethod
    def of(cls, robot: RobotSpec, rate_hz: float | None = None, **changes: Any) -> GateConfig:
        """Limits of `robot` at controller rate `rate_hz` (the robot's own by default), with `changes`."""
        values: dict[str, Any] = {
            "dt_s": 1.0 / (rate_hz or robot.rate_hz),
            "position_low_rad": robot.position_low_rad,
            "position_high_rad": robot.position_high_rad,
            "velocity_max_rad_s": robot.velocity_max_rad_s,
            "acceleration_max_rad_s2": robot.acceleration_max_rad_s2,
            "gripper_low_m": robot.gripper_low_m,
            "gripper_high_m": robot.gripper_high_m,
            "workspace_low_m": robot.workspace_low_m,
            "workspace_high_m": robot.workspace_high_m,
        }
        return cls(**{**values, **changes})
