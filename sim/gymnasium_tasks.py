"""Gymnasium's worlds as tasks: "gym:<id>" stands wherever a task's name does in collect, train and eval.

A package's worlds are registered when it is imported, which is done here where the id's namespace is the package's name
("gym:gym_pusht/PushT-v0"). Meta-World's are "gym:Meta-World/<name>", for example "gym:Meta-World/reach-v3".
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import gymnasium
import numpy as np
import torch
from torch import Tensor

from sim.gymnasium_vec import GymnasiumVecEnv
from sinew.errors import InputError, MissingDependency

PREFIX, META_WORLD = "gym:", "Meta-World/"
INSTALL = "pip install 'sinew[worlds]' 'mujoco<3.17'"
"""Meta-World 3.0.0 does not run on MuJoCo 3.17."""
META_WORLD_STEPS = 200
"""Longest episode; Meta-World's own 500 are several times what its experts need."""


class DemonstrationExpert(Protocol):
    """What plays demonstrations in N worlds."""

    def reset(self, ids: Sequence[int] | None = None, seeds: Sequence[int] | None = None) -> None:
        """New episodes begin in worlds `ids`."""
        ...

    def act(self, obs: Mapping[str, Tensor]) -> Tensor:
        """Actions (N, A) in physical units."""
        ...


class GymnasiumTask:
    """A world of Gymnasium with what the verbs ask of a task.

    Args:
        name: "gym:<id>".

    Raises:
        InputError: Gymnasium knows no such id, or its spaces cannot be used.
        MissingDependency: the package of the world is not installed.
    """

    def __init__(self, name: str) -> None:
        self.name, self.world = name, name.removeprefix(PREFIX)
        if self.world.startswith(META_WORLD):
            register_meta_world(self.world)
        elif self.world not in gymnasium.registry:
            import_namespace(self.world)
        env = self.make_vec(1)
        self.observation_spec, self.action_spec, self.max_episode_steps = env.observation_spec, env.action_spec, env.max_episode_steps
        env.close()
        self.task_text = self.world

    def make_vec(self, num_envs: int, seed: int = 0) -> GymnasiumVecEnv:
        """N copies of the world."""
        return GymnasiumVecEnv(self.world, num_envs, seed)

    def make_expert(self, num_envs: int) -> DemonstrationExpert:
        """The scripted expert that is known for this world.

        Raises:
            InputError: none is.
        """
        if self.world.startswith(META_WORLD):
            return MetaWorldExpert(self.world.removeprefix(META_WORLD))
        if self.world == "gym_pusht/PushT-v0":
            from sim.pusht_expert import PushTExpert

            return PushTExpert(num_envs)
        raise InputError(
            f"no scripted expert is known for {self.name!r}; they are for {PREFIX}{META_WORLD}… and {PREFIX}gym_pusht/PushT-v0. "
            "Record demonstrations with demos.Writer instead"
        )


def import_namespace(world: str) -> None:
    """Import the package that is called as the id's namespace, so that it registers its worlds.

    Raises:
        MissingDependency: it is not installed.
    """
    namespace = world.partition("/")[0]
    if namespace.isidentifier() and "/" in world:
        try:
            importlib.import_module(namespace)
        except ModuleNotFoundError as e:
            if e.name != namespace:
                raise
            raise MissingDependency(
                f"no package {namespace!r} is installed that could register {world!r}; for gym_pusht and Meta-World: {INSTALL}"
            ) from None


# ---------------------------------------------------------------- Meta-World


def register_meta_world(world: str) -> None:
    """Make "Meta-World/<name>" known to Gymnasium: goal observed, places drawn from the seed of `reset`, over on success.

    Raises:
        InputError: no such world.
        MissingDependency: Meta-World is not installed.
    """
    metaworld = _meta_world()
    names, name = list(metaworld.ALL_V3_ENVIRONMENTS), world.removeprefix(META_WORLD)
    if name not in names:
        from sinew.errors import unknown

        raise unknown("Meta-World task", name, names)
    if world not in gymnasium.registry:
        entry = f"{__name__}:{SeededMetaWorld.__name__}"
        gymnasium.register(world, entry, kwargs={"name": name}, max_episode_steps=META_WORLD_STEPS, disable_env_checker=True)


class SeededMetaWorld(gymnasium.Wrapper):
    """A task of Meta-World whose places follow the seed of `reset`, which Meta-World itself ignores, and which ends on success.

    Args:
        name: of the task, for example "reach-v3".
    """

    def __init__(self, name: str) -> None:
        _meta_world()
        super().__init__(gymnasium.make("Meta-World/goal_observable", env_name=name, seed=0, disable_env_checker=True))
        world: Any = self.unwrapped
        world.seeded_rand_vec, world._freeze_rand_vec = True, False  # draw places anew at each reset, from the world's own generator

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Start an episode; goal and objects are drawn from `seed`, or from where the generator is."""
        if seed is not None:
            world: Any = self.unwrapped
            world.seed(seed)
        return self.env.reset(seed=seed, options=options)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """One control step."""
        observation, reward, _, truncated, info = self.env.step(action)
        return observation, reward, bool(info["success"]), truncated, info


class MetaWorldExpert:
    """Meta-World's own scripted expert of a task; it looks at nothing but the observation.

    Args:
        name: of the task, for example "reach-v3".
    """

    def __init__(self, name: str) -> None:
        metaworld = _meta_world()
        policies = importlib.import_module("metaworld.policies").ENV_POLICY_MAP
        if name not in policies:
            raise InputError(f"{metaworld.__name__} has no expert for {name!r}; it has them for {', '.join(sorted(policies))}")
        self._policy = policies[name]()

    def reset(self, ids: Sequence[int] | None = None, seeds: Sequence[int] | None = None) -> None:
        """Nothing is kept between steps."""

    def act(self, obs: Mapping[str, Tensor]) -> Tensor:
        """Actions (N, 4), clipped to [-1, 1] as the world does."""
        states = obs["observation.state"].numpy().astype(np.float64)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # its gains ask for more than the world executes, which it says at every step
            actions = np.stack([self._policy.get_action(state) for state in states])
        return torch.from_numpy(actions.clip(-1, 1).astype(np.float32))


def _meta_world() -> Any:
    try:
        return importlib.import_module("metaworld")
    except ModuleNotFoundError:
        raise MissingDependency(f"Meta-World is not installed: {INSTALL}") from None
