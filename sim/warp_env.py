"""Thousands of worlds of one task on MuJoCo Warp; observations, actions and rewards never leave the device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sim.interface import TaskInterface
from sim.seeds import next_seed, seeds_of_reset
from sim.warp_physics import WarpPhysics
from sim.warp_views import WarpViews
from sinew.errors import InputError, SpecError
from sinew.specs import IMAGES


class WarpVecEnv:
    """N worlds of a task: the VecEnv of `sinew.protocols` with tensors on `device`; see there for `reset` and `step`.

    Where a world's next episode begins is known as soon as the present one has begun, and lies ready on the device, so that worlds are
    reset by mask without asking the host. A trajectory depends on its seed and actions, to single precision; on a GPU the order of sums
    differs between runs.

    Args:
        interface: task, action kind and cameras.
        num_envs: N.
        seed: worlds start with seeds seed, seed + 1, … where `reset` is called without one.
        device: "cuda", "cuda:1" or "cpu", which is for tests.
        contacts: contacts that a world may have at a time; None for what suits tables and grippers.

    Raises:
        MissingDependency: MuJoCo Warp is not installed.
        InputError: no such device, no room for so many worlds, or Warp cannot express the model.
    """

    def __init__(
        self, interface: TaskInterface, num_envs: int, seed: int = 0, device: torch.device | str = "cuda", contacts: int | None = None
    ) -> None:
        if num_envs < 1:
            raise InputError(f"num_envs is {num_envs}; at least one world is needed")
        self.interface, self.num_envs, self.scene = interface, num_envs, interface.scene
        self.observation_spec, self.action_spec = interface.observation_spec, interface.action_spec
        self.max_episode_steps = interface.max_episode_steps
        more = {} if contacts is None else {"contacts": contacts}
        self.physics = WarpPhysics(self.scene.model, num_envs, str(device), self.scene.substeps, **more)
        self.device = self.physics.device
        self._there: Any = interface.to(self.device)  # its arrays are tensors
        self._decoder: Any = self._there.decoder(num_envs)
        size = interface.image_size
        self.views = WarpViews(self.physics, self.scene.model, interface.cameras, size, size) if interface.cameras else None
        """What draws the cameras that are observed."""
        self._length = torch.zeros(num_envs, dtype=torch.int64, device=self.device)
        self._held = torch.zeros_like(self._length)
        self._seed = seed + torch.arange(num_envs, device=self.device)
        self._ended = torch.zeros(num_envs, dtype=torch.bool, device=self.device)
        self._next = torch.zeros_like(self.physics.qpos)
        self._next_seed = torch.zeros_like(self._length)
        self._next_observation: dict[str, Tensor] = {}
        self._observation: dict[str, Tensor] = {}
        self.reset()

    @property
    def seeds(self) -> np.ndarray:
        """(N,) seeds of the present episodes, on the host."""
        return self._seed.cpu().numpy()

    @property
    def qpos(self) -> Tensor:
        """(N, nq) positions of all worlds, shared with the physics."""
        return self.physics.qpos

    @property
    def qvel(self) -> Tensor:
        """(N, nv) velocities of all worlds, shared with the physics."""
        return self.physics.qvel

    def reset(self, seed: int | Sequence[int] | None = None, ids: Sequence[int] | None = None) -> dict[str, Tensor]:
        """Start new episodes; see `sinew.protocols.VecEnv`."""
        self._settle()
        rows, seeds = seeds_of_reset(seed, ids, self.seeds, bool(self._observation))
        which = torch.zeros_like(self._ended)
        which[torch.from_numpy(rows).to(self.device)] = True
        self._prepare(rows, seeds)
        fresh = self._observation or {k: torch.zeros_like(v) for k, v in self._next_observation.items()}
        self._observation = self._start(which, fresh) | self._pictures()
        self._prepare(rows, [next_seed(s) for s in seeds])
        return dict(self._observation)

    def step(self, action: Tensor) -> tuple[dict[str, Tensor], Tensor, Tensor, Tensor, dict[str, Any]]:
        """Step all worlds with physical actions (N, A); see `sinew.protocols.VecEnv`.

        Raises:
            SpecError: an action is not finite, or of another shape; no world has moved.
            InputError: a world diverged, or has more contacts than there is room for.
        """
        action = torch.as_tensor(action, dtype=torch.float32, device=self.device)
        if len(action) != self.num_envs:
            raise SpecError(f"{len(action)} actions given for {self.num_envs} worlds")
        self._settle()
        scene = self._there.scene
        joints, openings = self._decoder.decode(action, self.qpos[:, scene.joint_qpos])
        self.physics.step(scene.control(joints, openings))
        observation, success = self._observe(self.qpos)
        observation |= self._pictures()
        self._length = self._length + 1
        self._held = torch.where(success, self._held + 1, 0)
        terminated = self._held >= scene.task.hold_steps
        truncated = ~terminated & (self._length >= self.max_episode_steps)
        info = {"success": terminated, "final_observation": observation, "episode_length": self._length, "seed": self._seed}
        self._ended = terminated | truncated
        self._observation = self._start(self._ended, observation)
        if self.views is not None and self._ended.any():
            self._observation |= self._pictures()
        return dict(self._observation), terminated.float(), terminated.clone(), truncated, info

    def joint_targets(self) -> np.ndarray:
        """(N, J) joint targets commanded last, rad, on the host."""
        return self._decoder.joint_target.cpu().numpy().astype(np.float64)

    def place(self, world: int, qpos: np.ndarray) -> None:
        """Begin the episode of one world at positions (nq,), at rest."""
        which = torch.zeros_like(self._ended)
        which[world] = True
        there = torch.as_tensor(qpos, dtype=torch.float32, device=self.device).expand_as(self.qpos)
        self._put(which, there)

    def close(self) -> None:
        """Nothing is held but memory."""

    def _settle(self) -> None:
        """Look, in one transfer, at what the last step did: worlds that ended get their next episode made ready."""
        ended, trouble = torch.stack((self._ended, self.physics.trouble())).cpu().numpy()
        if trouble.any():
            world = int(np.flatnonzero(trouble)[0])
            raise InputError(f"world {world} (seed {self.seeds[world]}) {self.physics.told(world)}")
        rows = np.flatnonzero(ended)
        if len(rows):
            self._prepare(rows, [next_seed(int(s)) for s in self.seeds[rows]])
            self._ended = torch.zeros_like(self._ended)

    def _prepare(self, rows: np.ndarray, seeds: Sequence[int]) -> None:
        """Make ready what worlds `rows` begin with when they are reset next."""
        if not len(rows):
            return
        there = torch.from_numpy(rows).to(self.device)
        qpos = torch.from_numpy(np.stack([self.scene.initial(int(seed)) for seed in seeds])).to(self.device, torch.float32)
        self._next[there] = qpos
        self._next_seed[there] = torch.tensor(list(seeds), dtype=torch.int64, device=self.device)
        observation, _ = self._observe(qpos, torch.zeros_like(self.qvel[: len(rows)]))
        if not self._next_observation:
            self._next_observation = {k: v.new_zeros((self.num_envs, *v.shape[1:])) for k, v in observation.items()}
        for key, value in observation.items():
            self._next_observation[key][there] = value

    def _start(self, which: Tensor, observation: dict[str, Tensor]) -> dict[str, Tensor]:
        """Begin what lies ready where `which` (N,) is true; the observation after that, of all worlds."""
        self._put(which, self._next)
        self._seed = torch.where(which, self._next_seed, self._seed)
        begun = self._next_observation
        return {key: torch.where(which[:, None], begun[key], value) if key in begun else value for key, value in observation.items()}

    def _pictures(self) -> dict[str, Tensor]:
        """What the cameras see now, (N, H, W, 3) each."""
        if self.views is None:
            return {}
        self.views.look()
        return {IMAGES + camera: self.views.images(camera) for camera in self.interface.cameras}

    def _put(self, which: Tensor, qpos: Tensor) -> None:
        scene = self._there.scene
        joints, openings = qpos[:, scene.joint_qpos], scene.openings(qpos)
        self.physics.begin(which, qpos, scene.control(joints, openings))
        self._decoder.restart(which, joints)
        self._length, self._held = torch.where(which, 0, self._length), torch.where(which, 0, self._held)

    def _observe(self, qpos: Tensor, qvel: Tensor | None = None) -> tuple[dict[str, Tensor], Tensor]:
        """Observation vectors of worlds, and where their goal holds."""
        scene, velocities = self._there.scene, self.qvel if qvel is None else qvel
        vectors, view = self._there.observe_and_view(
            qpos[:, scene.joint_qpos], velocities[:, scene.joint_qvel], scene.openings(qpos), scene.poses(qpos)
        )
        return vectors, scene.task.success(view)
