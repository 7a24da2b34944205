"""The states of the gate, the reasons for leaving the first of them, and what is kept of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from typing import Literal, NamedTuple

import numpy as np

Outcome = Literal["pass", "clamp", "hold", "latched", "closed", "released"]


class State(IntEnum):
    """What the gate does; within an incident it only goes up."""

    NOMINAL = 0
    """Commands are followed, clamped where they must be."""
    HOLD = 1
    """The robot slows down and stands; the next good command ends it."""
    RAMP_DOWN = 2
    """The robot slows down, whatever is commanded."""
    LATCHED = 3
    """The robot stands until an operator releases it."""


class Verdict(NamedTuple):
    """What the gate makes of one controller tick."""

    joint_position: np.ndarray | None
    """(J,) float64 rad to send; None when the gate is closed and nothing may be sent."""
    gripper: tuple[float, ...]
    """Metres, one opening per gripper."""
    outcome: Outcome
    reason: str
    """Empty for "pass", else one of `REASONS`."""


@dataclass(frozen=True)
class GateEvent:
    """The beginning of a hold or latch, or a release, kept for the report; what is clamped is only counted."""

    stamp_ns: int
    outcome: Outcome
    reason: str
    detail: str


@dataclass
class Incident:
    """From leaving NOMINAL to coming back to it."""

    began_ns: int
    state: State
    """The highest that was reached."""
    reasons: list[str] = field(default_factory=list)
    """In the order in which they came, each once."""
    ended_ns: int | None = None
    released_by: str = ""
    """Operator who released the latch."""


class Reason(NamedTuple):
    """Why the gate does not simply follow."""

    answer: State
    """Where it leads at once; a HOLD that has to wait too long is latched."""
    meaning: str
    remedy: str


_HOLD, _STOP, _CLAMP = State.HOLD, State.RAMP_DOWN, State.NOMINAL
REASONS: dict[str, Reason] = {
    "not_seeded": Reason(_HOLD, "the gate was not seeded from a measured state", "wait for the robot's joint states"),
    "start_pose": Reason(_STOP, "the measured pose is not one to start from", "move the robot there by its own means"),
    "no_command": Reason(_HOLD, "no command has come yet", "start the policy"),
    "expired": Reason(_HOLD, "the newest command is past its time to live", "look at the policy's latency"),
    "out_of_order": Reason(_HOLD, "a command is not newer than the one before", "one sender only; a new one resumes first"),
    "shape": Reason(_STOP, "a command has another number of joints", "compare the specs of policy and robot"),
    "non_finite": Reason(_STOP, "a command holds NaN or infinity", "look at the policy and its normalisation"),
    "first_step": Reason(_STOP, "the first command is far from where the robot stands", "start from the measured pose"),
    "jump": Reason(_HOLD, "a target is far from the last command", "smaller steps"),
    "position": Reason(_CLAMP, "a target is outside the position limits", "clamped"),
    "velocity": Reason(_CLAMP, "a target is out of reach within velocity, acceleration and jerk limits", "clamped"),
    "workspace": Reason(_CLAMP, "a tool or link would leave the space it may be in", "slowed, then held at the wall"),
    "self_collision": Reason(_CLAMP, "links would come too near to one another", "slowed, then held"),
    "singularity": Reason(_CLAMP, "the arm comes near a singular pose", "slowed, then held; other directions are free"),
    "tcp_speed": Reason(_CLAMP, "a tool would be too fast", "slowed"),
    "gripper_force": Reason(_CLAMP, "the gripper presses with its largest force", "it closes no further"),
    "bad_measurement": Reason(_STOP, "measured joints are missing, not finite, or lead nowhere", "look at the driver"),
    "stale_observation": Reason(_HOLD, "the newest measurement is old", "look at the driver and the network"),
    "measurement_order": Reason(_HOLD, "measurements go back in time or come from the future", "one publisher, monotonic stamps"),
    "measured_jump": Reason(_STOP, "measured joints jump farther than joints can move", "look at the encoders and for a second publisher"),
    "frozen": Reason(_STOP, "measured joints stay the same to the bit while they are commanded to move", "restart the driver"),
    "not_following": Reason(_STOP, "the robot does not move as it is commanded", "is the controller active, the brake open, the way free?"),
    "effort": Reason(_STOP, "a joint's measured torque is beyond its limit", "look for contact or a wrong payload"),
    "stalled": Reason(_STOP, "no tick for too long", "look at the load of the machine"),
    "dead_man": Reason(_HOLD, "the dead-man switch is not held", "hold it"),
    "e_stop": Reason(_STOP, "the software emergency stop was pressed", "release it, then release the gate"),
    "robot_fault": Reason(_STOP, "the robot refuses commands", "see the detail"),
    "defect": Reason(_STOP, "a defect of this program", "see the log"),
}
"""Reason → answer, meaning, remedy."""
