"""What a deployment asks of a task and offers to those who watch it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from robot_bridge.gate import Verdict
from robot_bridge.report import EpisodeResult
from sinew.protocols import Command, Observation, RobotSpec
from sinew.specs import ENVIRONMENT_STATE, IMAGES, ActionSpec, ObservationSpec

UNKNOWN_POSE = np.array([0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0])


class Decoder(Protocol):
    """Turns actions in physical units into targets of the robot."""

    def reset(self, joint_position: np.ndarray, gripper: np.ndarray | None = None, ids: Sequence[int] | None = None) -> None: ...

    def decode(self, action: np.ndarray, joint_position: np.ndarray) -> tuple[np.ndarray, np.ndarray]: ...


class TaskInterface(Protocol):
    """What a task tells about its observations and actions; `sim.make_interface` makes one."""

    objects: tuple[str, ...]
    task_text: str
    max_episode_steps: int

    @property
    def observation_spec(self) -> ObservationSpec: ...

    @property
    def action_spec(self) -> ActionSpec: ...

    @property
    def robot_spec(self) -> RobotSpec: ...

    def observe(
        self, joint_position: np.ndarray, joint_velocity: np.ndarray, gripper: np.ndarray, poses: Mapping[str, np.ndarray]
    ) -> dict[str, np.ndarray]: ...

    def decoder(self, num: int) -> Decoder: ...


@dataclass(frozen=True)
class Frame:
    """One policy tick, for those who watch or record."""

    episode: int
    seed: int
    step: int
    observation: Mapping[str, np.ndarray]
    """{key: (...)} as the policy saw it, without a batch axis."""
    action: np.ndarray
    """(A,) in physical units."""
    measured: Observation
    command: Command | None = None
    """What was asked of the control loop: the action as targets of the joints."""
    verdict: Verdict | None = None
    """The gate's newest word when the command was handed over, which is about the command before; None before the first."""
    due_ns: int = 0
    """Deadline of the tick, monotonic."""
    passed: Mapping[str, int] = field(default_factory=dict)
    """Ticks since the frame before that have none, by reason: "deadline", "thinking", "link", or the value that was too old."""


class Recorder(Protocol):
    """Takes the frames of a deployment, for example into a dataset."""

    def frame(self, frame: Frame) -> None: ...

    def end_episode(self, result: EpisodeResult) -> None: ...


class Tap(Protocol):
    """Takes what a robot measures and is sent at its own rate, on the thread on which it comes; neither waits nor raises."""

    def sample(self, stream: str, stamp_ns: int, receipt_ns: int, value: np.ndarray | None = None, sequence: int | None = None) -> None:
        """A value of a stream, monotonic times; None for a picture. A sequence that jumps tells of values that are lost."""
        ...

    def happened(self, what: str, of: str, n: int = 1) -> None:
        """Something else: "dropped" or "clock_jump", of which topic, how often."""
        ...


def needed_values(interface: TaskInterface, wanted: ObservationSpec) -> list[str]:
    """Keys of `Observation.values` that the observations `wanted` of a task are made of, the joints' first."""
    named = getattr(interface, "values", None)
    if named is not None:
        return list(dict.fromkeys(("joint_position", "joint_velocity", *named)))
    needed = ["joint_position", "joint_velocity", *["gripper"] * (interface.robot_spec.gripper_name is not None)]
    if ENVIRONMENT_STATE in wanted.tensors:
        needed += [f"pose.{name}" for name in interface.objects]
    return [*needed, *("images." + key.removeprefix(IMAGES) for key in wanted.images)]


def grippers_of(measured: Observation) -> np.ndarray:
    """(G,) openings in metres; (0,) of a robot without grippers."""
    return np.atleast_1d(measured.values.get("gripper", np.zeros(0)))
