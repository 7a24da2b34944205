"""How the scene comes back between episodes on a robot: by itself, by going home, by a policy, by a person."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

import numpy as np

from sinew.cli.scenes import first_scene
from sinew.errors import InputError

if TYPE_CHECKING:
    from pathlib import Path

    from policies import ChunkExecutor
    from rl.reset import Reset
    from robot_bridge.attended import AttendedRobot
    from robot_bridge.scene import Scene
    from sim import TaskInterface

ResetWay = Literal["scene", "home", "policy", "person"]
SAMPLES = 256
"""Scenes that the start region is taken from."""
MARGIN_M = 0.02
"""The region is this much larger than what was seen in them."""


def start_region(interface: TaskInterface) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """{object: (low, high) (3,) metres} where the objects of a task are when episodes begin, from scenes for practice."""
    first = first_scene("practice")
    scene = interface.scene
    starts = scene.poses(np.stack([scene.initial(first + i) for i in range(SAMPLES)]))
    return {name: (poses[:, :3].min(0) - MARGIN_M, poses[:, :3].max(0) + MARGIN_M) for name, poses in starts.items()}


def in_region(region: Mapping[str, tuple[np.ndarray, np.ndarray]], poses: Mapping[str, np.ndarray]) -> bool:
    """Whether every object is seen, and is where episodes begin."""
    return all(name in poses and bool(((low <= poses[name][:3]) & (poses[name][:3] <= high)).all()) for name, (low, high) in region.items())


def make_reset(
    way: ResetWay, policy_run: Path | None, arm: AttendedRobot, scene: Scene | None, interface: TaskInterface, *, unattended: bool
) -> Reset | None:
    """The reset procedure that was asked for; None for the scene's own.

    Args:
        way: which.
        policy_run: the policy that plays backward.
        arm: the robot.
        scene: a simulated scene.
        interface: the task.
        unattended: nobody is there to be asked; then the simulated scene is set up anew where a person would do it.

    Raises:
        InputError: options that do not go together.
        SpecError: the policy is not for this robot.
    """
    from rl.reset import Reset

    if (way == "policy") != (policy_run is not None):
        raise InputError("--reset policy and --reset-policy RUN go together: the run of a policy that brings the scene back")
    if way == "scene":
        if scene is None:
            raise InputError("--reset scene needs a simulated scene, and --no-scene says that there is none: use home, policy or person")
        return None
    region = start_region(interface)

    def ask(seed: int, why: str) -> None:
        if unattended and scene is not None:
            scene.reset(seed)
        else:
            arm.ask(f"{why}: set it up")

    def person(seed: int) -> None:
        ask(seed, "the episode is over")

    def home(seed: int) -> None:
        arm.go_home()

    def back() -> bool:
        return in_region(region, arm.poses())

    if way == "person":
        return Reset([person], lambda: True, ask, rounds=1)
    if policy_run is None:
        return Reset([home], back, ask, rounds=1)
    backward = _executor(policy_run, interface)

    def play(seed: int) -> None:
        backward.reset(seeds=[seed])
        arm.drive(backward.act, interface.max_episode_steps)

    return Reset([play, home], back, ask)


def _executor(run: Path, interface: TaskInterface) -> ChunkExecutor:
    """The policy of `run`, to be executed in one world."""
    import policies
    from sinew.rundir import RunDir
    from sinew.specs import check_action_join, check_observation_join

    policy = policies.load(RunDir.open(run))
    check_observation_join("the robot", interface.observation_spec, f"--reset-policy {run}", policy.spec.observation)
    check_action_join(f"--reset-policy {run}", policy.spec.action, "the robot", interface.action_spec)
    return policies.ChunkExecutor(policy, 1, instruction=interface.task_text)
