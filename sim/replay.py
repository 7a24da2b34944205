"""Recorded episodes again in simulation: worlds as the first observation shows them, moved by the recorded actions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch

from sim.interface import TaskInterface
from sim.scene import Scene
from sim.vec_env import MujocoVecEnv
from sinew.errors import SpecError
from sinew.se3 import matrix_to_quaternion, rotation6d_to_matrix
from sinew.specs import ENVIRONMENT_STATE, STATE


@dataclass(frozen=True)
class Replayed:
    """An episode that was played again."""

    success: bool
    """Whether the task was solved this time."""
    steps: int
    """Actions that were executed; fewer than recorded where success came before."""
    tool_m: np.ndarray
    """(steps,) largest distance of a tool from where it was recorded, after each action that has a next frame."""
    objects_m: np.ndarray
    """(steps,) the same of the objects."""


def replay(
    env: MujocoVecEnv, observations: Mapping[str, np.ndarray], actions: np.ndarray, watch: Callable[[], None] = lambda: None
) -> Replayed:
    """Play an episode in the first world of `env`.

    Args:
        env: of the task that was recorded; its first world is used.
        observations: {key: (T, D)} observation.state and observation.environment_state, as recorded.
        actions: (T, A) in physical units.
        watch: called before every action; the world can be looked at then.

    Raises:
        SpecError: the shapes are not those of the task, or the observations do not tell where everything is.
    """
    place(env, 0, {key: value[0] for key, value in observations.items()})
    recorded = env.interface.view({key: np.asarray(value, dtype=np.float64) for key, value in observations.items()})
    tool_m, objects_m, step, success = [], [], -1, False
    for step, action in enumerate(actions):
        watch()
        whole = np.zeros((env.num_envs, len(action)), dtype=np.float32)
        whole[0] = action
        _, _, terminated, truncated, info = env.step(torch.from_numpy(whole))
        now = env.interface.view({key: value[:1].numpy() for key, value in info["final_observation"].items() if value.ndim == 2})
        if step + 1 < len(actions):
            tools = zip(now.tools, recorded.tools, strict=True)
            tool_m.append(max(float(np.linalg.norm(a[0] - b[step + 1])) for a, b in tools))
            apart = [np.linalg.norm(now.positions[name][0] - recorded.positions[name][step + 1]) for name in env.interface.objects]
            objects_m.append(max(map(float, apart), default=0.0))
        success = bool(info["success"][0])
        if bool(terminated[0] | truncated[0]):
            break
    return Replayed(success, step + 1, np.array(tool_m), np.array(objects_m))


def place(env: MujocoVecEnv, world: int, observation: Mapping[str, np.ndarray]) -> None:
    """Make a world what an observation shows: joints, grippers and objects where they are, everything at rest.

    Args:
        env: its episode in that world begins anew.
        world: its number.
        observation: {key: (D,)} observation.state and observation.environment_state.

    Raises:
        SpecError: an observation has another shape, or objects' poses are missing.
    """
    interface, scene = env.interface, env.scene
    for key in (STATE, ENVIRONMENT_STATE):
        wanted, seen = interface.observation_spec.tensors.get(key), np.shape(observation.get(key, ()))
        if wanted is not None and seen != wanted.shape:
            raise SpecError(f"{key} has shape {seen}, the task's is {wanted.shape}: was another task recorded?")
    view = interface.view({key: np.asarray(value, dtype=np.float64)[None] for key, value in observation.items()})
    qpos = env.scene.initial(int(env.seeds[world]))
    qpos[scene.joint_qpos] = joints(interface, observation[STATE])
    for fingers, opening in zip(scene.finger_qpos, view.grippers, strict=True):
        qpos[fingers] = opening[0] / len(fingers)
    for tracked in scene.objects:
        if tracked.free_address >= 0:
            turned = matrix_to_quaternion(rotation6d_to_matrix(view.rotations[tracked.name][0]))
            qpos[tracked.free_address : tracked.free_address + 7] = np.concatenate((view.positions[tracked.name][0], turned))
    _slide(scene, qpos, {name: position[0] for name, position in view.positions.items()})
    env.place(world, qpos)


def joints(interface: TaskInterface, state: np.ndarray) -> np.ndarray:
    """(J,) rad of observation.state (D,)."""
    names = interface.observation_spec[STATE].names
    return np.array([state[names.index(f"{joint}.position")] for robot in interface.scene.robots for joint in robot.joints], dtype=float)


def _slide(scene: Scene, qpos: np.ndarray, positions: Mapping[str, np.ndarray]) -> None:
    """Set the slide joints so that the bodies on them are where they were seen."""
    on_slides = [tracked for tracked in scene.objects if tracked.slides]
    addresses = sorted({address for tracked in on_slides for address, _ in tracked.slides})
    if not addresses:
        return
    directions, apart = np.zeros((3 * len(on_slides), len(addresses))), np.zeros(3 * len(on_slides))
    for i, tracked in enumerate(on_slides):
        for address, axis in tracked.slides:
            directions[3 * i : 3 * i + 3, addresses.index(address)] += axis
        apart[3 * i : 3 * i + 3] = positions[tracked.name] - tracked.origin[:3]
    qpos[addresses] = np.linalg.lstsq(directions, apart, rcond=None)[0]
