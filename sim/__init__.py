"""Simulated tasks: worlds in batch, scripted experts, cameras, and the interface that deployment shares.

Everything named here is imported on first use; `import sim` alone loads neither mujoco nor torch.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sim.expert import CLEAN, HUMAN, STYLES, Expert, ExpertStyle, make_expert, reached
    from sim.gymnasium_tasks import GymnasiumTask
    from sim.gymnasium_vec import GymnasiumVecEnv, from_gymnasium
    from sim.interface import TaskInterface, make_interface
    from sim.randomise import Parameter, Randomisation, load_randomisation
    from sim.render import SceneRenderer, camera_matrix, camera_pose, render_frame
    from sim.robot_sim import RobotSim
    from sim.robots.config import RobotConfig
    from sim.tasks import TASKS, Task
    from sim.vec_env import MujocoVecEnv
    from sim.warp_env import WarpVecEnv
    from sinew.protocols import VecEnv

TASK_NAMES = tuple(sorted(m.name for m in pkgutil.iter_modules([str(Path(__file__).parent / "tasks")]) if m.name != "base"))
"""Tasks that come with the package, one module each, known without importing mujoco; `TASKS` also holds tasks from elsewhere."""

_LAZY = {
    "CLEAN": "sim.expert",
    "HUMAN": "sim.expert",
    "STYLES": "sim.expert",
    "Expert": "sim.expert",
    "ExpertStyle": "sim.expert",
    "make_expert": "sim.expert",
    "reached": "sim.expert",
    "TaskInterface": "sim.interface",
    "make_interface": "sim.interface",
    "RobotSim": "sim.robot_sim",
    "RobotConfig": "sim.robots.config",
    "GymnasiumTask": "sim.gymnasium_tasks",
    "GymnasiumVecEnv": "sim.gymnasium_vec",
    "from_gymnasium": "sim.gymnasium_vec",
    "Parameter": "sim.randomise",
    "Randomisation": "sim.randomise",
    "load_randomisation": "sim.randomise",
    "SceneRenderer": "sim.render",
    "camera_matrix": "sim.render",
    "camera_pose": "sim.render",
    "render_frame": "sim.render",
    "TASKS": "sim.tasks",
    "Task": "sim.tasks",
    "MujocoVecEnv": "sim.vec_env",
    "WarpVecEnv": "sim.warp_env",
}

__all__ = [
    "CLEAN", "HUMAN", "STYLES", "TASKS", "TASK_NAMES", "Expert", "ExpertStyle", "GymnasiumTask", "GymnasiumVecEnv", "MujocoVecEnv",
    "Parameter", "Randomisation", "RobotConfig", "RobotSim", "SceneRenderer", "Task", "TaskInterface", "WarpVecEnv", "camera_matrix",
    "camera_pose", "from_gymnasium", "load_randomisation", "make_expert", "make_interface", "make_vec", "reached", "render_frame", "worlds",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'sim' has no attribute {name!r}")
    return getattr(importlib.import_module(_LAZY[name]), name)


def make_vec(
    task: str,
    num_envs: int,
    seed: int = 0,
    action: str = "ee_delta",
    cameras: Sequence[str] = (),
    image_size: int = 84,
    num_threads: int | None = None,
    robot: RobotConfig | None = None,
    randomisation: Randomisation | None = None,
) -> MujocoVecEnv:
    """N worlds of a registered task as a `sinew.protocols.VecEnv`; the reward is 1 on the step that solves the task, else 0.

    Args:
        task: its name, one of `TASK_NAMES` or of your own.
        num_envs: N.
        seed: worlds start with seeds seed, seed + 1, … where `reset` is called without one.
        action: "ee_delta" or "joint_position".
        cameras: "front", "wrist" or both, to have images in the observation.
        image_size: height and width of the images in pixels.
        num_threads: physics threads; None for one per core where N fills them.
        robot: any MJCF or URDF robot that takes the place of the task's own arm.
        randomisation: what every episode draws anew from its seed (`load_randomisation`).

    Raises:
        InputError: unknown task, action or camera, or one in the randomisation; the nearest names are offered.
        MissingDependency: cameras are wanted and no OpenGL library can be loaded.
    """
    from sim.interface import make_interface
    from sim.vec_env import MujocoVecEnv

    return MujocoVecEnv(make_interface(task, action, cameras, image_size, robot), num_envs, seed, num_threads, randomisation)


BACKENDS = ("mujoco", "warp", "isaaclab", "isaacgym")
"""What steps worlds: MuJoCo on the CPU's threads, MuJoCo Warp on a GPU, or one of the two Isaacs."""
_ON_DEVICE = {
    "warp": ("sim.warp_env", "WarpVecEnv"),
    "isaaclab": ("sim.isaac_lab", "IsaacLabVecEnv"),
    "isaacgym": ("sim.isaac_gym", "IsaacGymVecEnv"),
}
"""Backends whose worlds live on the device that is asked for → module and class."""


def worlds(
    interface: TaskInterface | GymnasiumTask,
    num_envs: int,
    seed: int = 0,
    backend: str = "mujoco",
    device: str = "cpu",
    randomisation: Randomisation | None = None,
) -> VecEnv:
    """N worlds of whatever a policy sees a task through.

    Args:
        interface: a task of ours, or a world of Gymnasium.
        num_envs: N.
        seed: of the first episode of the first world.
        backend: of `BACKENDS`; Gymnasium's worlds bring their own.
        device: where worlds live that are not MuJoCo's on the CPU.
        randomisation: what every episode draws anew from its seed; the same numbers for every backend.

    Raises:
        InputError: no such backend, or not for this world, or the randomisation names what the task does not have.
        MissingDependency: the backend is not installed.
    """
    from sinew.errors import InputError, unknown

    if backend not in BACKENDS:
        raise unknown("backend", backend, BACKENDS)
    if not hasattr(interface, "scene"):
        if backend != "mujoco":
            raise InputError(f"--backend {backend} steps tasks of ours; {interface.task_text!r} is a world of Gymnasium")
        if randomisation is not None:
            raise InputError(f"{interface.task_text!r} is a world of Gymnasium, whose properties are its own: it cannot be randomised")
        return interface.make_vec(num_envs, seed)  # type: ignore[union-attr]
    if backend in _ON_DEVICE:
        module, name = _ON_DEVICE[backend]
        made = getattr(importlib.import_module(module), name)
        return made(interface, num_envs, seed, device, randomisation=randomisation)
    from sim.vec_env import MujocoVecEnv

    return MujocoVecEnv(interface, num_envs, seed, randomisation=randomisation)  # type: ignore[arg-type]


# Gymnasium up to 1.3 also finds the tasks of an installed package through its entry point; 1.4 loads no plug-ins any more.
importlib.import_module("sim.gym_registration").register()
