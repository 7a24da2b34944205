"""What a task is: a scene fragment, where things start, when it is solved, and how a scripted expert solves it.

A task is one class in one file of this folder, entered with `@TASKS.add("name")`; see `lift.py` for a whole one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from sim.arrays import namespace
from sim.robots.arm import ArmPart, arm
from sinew.registry import Registry

Axes = Literal["xyz", "xyz_yaw"]


@dataclass(frozen=True)
class View:
    """What is known of N worlds at one time; success and experts are written on it.

    Arrays of NumPy, or tensors where worlds live on a torch device: success and further state use what both know, such as `distance`.
    """

    tools: tuple[np.ndarray, ...]
    """Tool position (N, 3) of each arm, metres, world frame."""
    tool_yaws: tuple[np.ndarray, ...]
    """Direction (N,) of each tool's x axis seen from above, rad."""
    grippers: tuple[np.ndarray, ...]
    """Opening (N,) of each gripper, metres."""
    positions: Mapping[str, np.ndarray]
    """Position (N, 3) of each tracked object, metres, world frame."""
    rotations: Mapping[str, np.ndarray]
    """First two columns (N, 6) of each tracked object's rotation matrix."""

    @property
    def tool(self) -> np.ndarray:
        """Tool position (N, 3) of the first arm."""
        return self.tools[0]

    def yaw(self, name: str) -> np.ndarray:
        """Direction (N,) of an object's x axis seen from above, rad."""
        columns = self.rotations[name]
        return namespace(columns).arctan2(columns[:, 1], columns[:, 0])


@dataclass(frozen=True, kw_only=True)
class Phase:
    """One leg of a scripted expert: go to a goal, hold a gripper opening, until the goal is reached or time is up."""

    name: str
    goal: Callable[[View, View], np.ndarray]
    """(view now, view when the phase began) → tool goal (N, 3), metres."""
    opening_m: float = 0.08
    """Gripper opening that is commanded."""
    tolerance_m: float = 0.01
    """The goal counts as reached this close."""
    dwell_steps: int = 0
    """Steps to stay after the goal was reached: time to close the gripper."""
    limit_steps: int = 40
    """The phase ends after this many steps in any case."""
    aimed: bool = True
    """Whether a person's aim error shifts this goal; not for legs whose goal follows from where the tool is."""
    yaw: Callable[[View, View], np.ndarray] | None = None
    """Like `goal` for the tool's yaw (N,) in rad, for tasks whose actions turn the tool."""
    arm: int = 0
    """Which arm moves; the others hold still."""


class Task:
    """Base of every task: subclasses set the class attributes and write four short methods."""

    text: ClassVar[str]
    """The instruction, one sentence."""
    objects: ClassVar[tuple[str, ...]]
    """Bodies whose poses are tracked; each is free, or it and its parents move on slide joints only."""
    max_episode_steps: ClassVar[int]
    """Control steps until an episode is truncated."""
    axes: ClassVar[Axes] = "xyz"
    """What ee_delta actions move; the tool keeps pointing down."""
    step_m: ClassVar[float] = 0.025
    """Largest ee_delta per control step."""
    step_rad: ClassVar[float] = 0.15
    """Largest yaw per control step."""
    rate_hz: ClassVar[float] = 20.0
    """Control steps per second."""
    hold_steps: ClassVar[int] = 1
    """Consecutive steps for which `success` must be true."""
    home_noise_rad: ClassVar[float] = 0.02
    """Standard deviation of the joints around the home posture at the start."""
    camera_m: ClassVar[tuple[float, float, float]] = (1.12, 0.0, 0.52)
    """Where the front camera is, world frame."""
    camera_target_m: ClassVar[tuple[float, float, float]] = (0.5, 0.0, 0.1)
    """What the front camera looks at."""

    def arms(self) -> tuple[ArmPart, ...]:
        """The arms of the scene."""
        return (arm(),)

    def fixtures(self) -> str:
        """MJCF of everything but arms and table: <body> and <geom> elements for <worldbody>."""
        raise NotImplementedError

    def spawn(self, rng: np.random.Generator) -> Mapping[str, np.ndarray]:
        """Start of an episode.

        Returns:
            {joint: its position}: (7,) xyz in metres and quaternion wxyz for a free joint, (1,) metres for a slide. Joints
            left out start at their reference.
        """
        raise NotImplementedError

    def success(self, view: View) -> np.ndarray:
        """(N,) bool: whether the goal holds now."""
        raise NotImplementedError

    def expert(self) -> tuple[Phase, ...]:
        """The legs of a scripted solution; the last one goes on until the episode ends."""
        raise NotImplementedError

    def extra_features(self) -> tuple[str, ...]:
        """Names of further elements of observation.environment_state."""
        return ()

    def extra_state(self, view: View) -> np.ndarray:
        """(N, len(extra_features())) further elements of observation.environment_state."""
        return view.tool[:, :0]


TASKS: Registry[type[Task]] = Registry("task")


def pose(x: float, y: float, z: float, yaw: float = 0.0) -> np.ndarray:
    """Pose (7,): position in metres and the wxyz quaternion of a rotation about z."""
    return np.array([x, y, z, np.cos(yaw / 2), 0.0, 0.0, np.sin(yaw / 2)])


def distance(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(N,) metres between points (N, 3), or (N, 2); arrays or tensors."""
    return namespace(a).sqrt(((a - b) ** 2).sum(1))


def beside(name: str, x_m: float, y_m: float, z_m: float) -> Callable[[View, View], np.ndarray]:
    """Goal: a point given from an object's centre along the world's axes."""
    return lambda now, start: now.positions[name] + np.array([x_m, y_m, z_m])


def raised(height_m: float, arm: int = 0) -> Callable[[View, View], np.ndarray]:
    """Goal: `height_m` above where the tool was when the phase began; 0 to stay."""
    return lambda now, start: start.tools[arm] + np.array([0.0, 0.0, height_m])
