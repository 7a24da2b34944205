"""Many worlds of one task on MuJoCo's CPU thread pool."""
# mujoco ships no type stubs.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import mujoco
import mujoco.rollout
import numpy as np
import torch
from torch import Tensor

from sim.interface import TaskInterface
from sim.seeds import next_seed, seeds_of_reset
from sinew.errors import InputError, SpecError
from sinew.specs import IMAGES

if TYPE_CHECKING:
    from sim.render import SceneRenderer

_STATE = mujoco.mjtState.mjSTATE_FULLPHYSICS


class MujocoVecEnv:
    """N worlds of a task: one model, N states. The VecEnv of `sinew.protocols`; see there for `reset` and `step`.

    A trajectory depends on its seed and actions alone: not on N, on the number of threads, or on the other worlds. The
    solver starts cold at every control step, so there is no hidden state beside what `observation` and decoder hold.

    Args:
        interface: task, action kind and cameras.
        num_envs: N.
        seed: worlds start with seeds seed, seed + 1, … where `reset` is called without one.
        num_threads: physics threads; None for one per core that this process may use, as far as N fills them.
    """

    def __init__(self, interface: TaskInterface, num_envs: int, seed: int = 0, num_threads: int | None = None) -> None:
        if num_envs < 1:
            raise InputError(f"num_envs is {num_envs}; at least one world is needed")
        self.interface, self.num_envs = interface, num_envs
        self.observation_spec, self.action_spec = interface.observation_spec, interface.action_spec
        self.scene, self.max_episode_steps = interface.scene, interface.max_episode_steps
        model = self.scene.model
        threads = num_threads if num_threads is not None else min(len(os.sched_getaffinity(0)), num_envs // 8)
        self._pool = mujoco.rollout.Rollout(nthread=threads if threads > 1 else 0)
        self._data = [mujoco.MjData(model) for _ in range(max(threads, 1))]
        self._state = np.zeros((num_envs, mujoco.mj_stateSize(model, _STATE)))
        self._qpos, self._qvel = slice(1, 1 + model.nq), slice(1 + model.nq, 1 + model.nq + model.nv)
        self._trace = np.zeros((num_envs, self.scene.substeps, self._state.shape[1]))
        self._sensors = np.zeros((num_envs, self.scene.substeps, model.nsensordata))
        self._control = np.zeros((num_envs, model.nu))
        self._ramp = (np.arange(1, self.scene.substeps + 1) / self.scene.substeps)[:, None]
        self._decoder = interface.decoder(num_envs)
        self._renderer: SceneRenderer | None = None
        self.seeds = np.array([seed + i for i in range(num_envs)], dtype=np.int64)
        self._length = np.zeros(num_envs, dtype=np.int64)
        self._held = np.zeros(num_envs, dtype=np.int64)
        self._observation: dict[str, Tensor] = {}
        self.reset()

    @property
    def qpos(self) -> np.ndarray:
        """(N, nq) positions of all worlds, a view."""
        return self._state[:, self._qpos]

    @property
    def qvel(self) -> np.ndarray:
        """(N, nv) velocities of all worlds, a view."""
        return self._state[:, self._qvel]

    def reset(self, seed: int | Sequence[int] | None = None, ids: Sequence[int] | None = None) -> dict[str, Tensor]:
        """Start new episodes; see `sinew.protocols.VecEnv`."""
        rows, seeds = seeds_of_reset(seed, ids, self.seeds, bool(self._observation))
        self._start(rows, seeds)
        fresh = self._tensors(rows)
        if not self._observation or len(rows) == self.num_envs:
            self._observation = fresh if ids is None else {k: v[np.argsort(rows)] for k, v in fresh.items()}
        else:
            self._observation = {k: v.clone() for k, v in self._observation.items()}
            for key, value in fresh.items():
                self._observation[key][rows] = value
        return dict(self._observation)

    def step(self, action: Tensor) -> tuple[dict[str, Tensor], Tensor, Tensor, Tensor, dict[str, Any]]:
        """Step all worlds with physical actions (N, A); see `sinew.protocols.VecEnv`.

        Raises:
            SpecError: an action is not finite, or of another shape; no world has moved.
        """
        values = action.detach().cpu().numpy() if isinstance(action, Tensor) else np.asarray(action)
        if len(values) != self.num_envs:
            raise SpecError(f"{len(values)} actions given for {self.num_envs} worlds")
        joint_target, gripper_target = self._decoder.decode(values, self.qpos[:, self.scene.joint_qpos])
        self._simulate(self.scene.control(joint_target, gripper_target))
        observation, success = self._observe(slice(None))
        self._length += 1
        self._held = np.where(success, self._held + 1, 0)
        terminated = self._held >= self.scene.task.hold_steps
        truncated = ~terminated & (self._length >= self.max_episode_steps)
        info = {
            "success": torch.from_numpy(terminated),
            "final_observation": observation,
            "episode_length": torch.from_numpy(self._length.copy()),
            "seed": torch.from_numpy(self.seeds.copy()),
        }
        ended = np.flatnonzero(terminated | truncated)
        if len(ended):
            self._start(ended, [next_seed(int(s)) for s in self.seeds[ended]])
            fresh = self._tensors(ended)
            observation = {k: v.clone() for k, v in observation.items()}
            for key, value in fresh.items():
                observation[key][ended] = value
        self._observation = observation
        reward = torch.from_numpy(terminated.astype(np.float32))
        return dict(observation), reward, info["success"].clone(), torch.from_numpy(truncated), info

    def joint_targets(self) -> np.ndarray:
        """(N, J) joint targets commanded last, rad."""
        return self._decoder.joint_target.copy()

    def close(self) -> None:
        """Stop the threads and free the renderer."""
        self._pool.close()
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None

    def place(self, world: int, qpos: np.ndarray) -> None:
        """Begin the episode of one world at positions (nq,), at rest."""
        self._begin(np.array([world]), np.asarray(qpos, dtype=np.float64)[None])

    def _start(self, rows: np.ndarray, seeds: Sequence[int]) -> None:
        self.seeds[rows] = seeds
        self._begin(rows, np.stack([self.scene.initial(int(seed)) for seed in seeds]) if len(rows) else np.zeros((0, self.scene.model.nq)))

    def _begin(self, rows: np.ndarray, qpos: np.ndarray) -> None:
        self._state[rows] = 0.0
        self._state[np.ix_(rows, np.arange(self._state.shape[1])[self._qpos])] = qpos
        self._length[rows] = 0
        self._held[rows] = 0
        self._control[rows] = self.scene.control(qpos[:, self.scene.joint_qpos], self.scene.openings(qpos))
        self._decoder.reset(qpos[:, self.scene.joint_qpos], self.scene.openings(qpos), rows)

    def _simulate(self, control: np.ndarray) -> None:
        # Servo targets move evenly over the control period, as robot drivers interpolate, instead of jumping.
        ramp = self._control[:, None] + self._ramp * (control - self._control)[:, None]
        self._control = control
        self._pool.rollout(
            self.scene.model,
            self._data,
            self._state,
            ramp,
            nstep=self.scene.substeps,
            state=self._trace,
            sensordata=self._sensors,
        )
        self._state[:] = self._trace[:, -1]
        if not np.isfinite(self._state).all():
            row = int(np.argwhere(~np.isfinite(self._state))[0, 0])
            culprit = f"world {row} (seed {self.seeds[row]})"
            raise InputError(f"the physics of {culprit} diverged; a smaller time step or softer servos are needed")

    def _observe(self, rows: slice | np.ndarray) -> tuple[dict[str, Tensor], np.ndarray]:
        scene, qpos = self.scene, self.qpos[rows]
        vectors, view = self.interface.observe_and_view(
            qpos[:, scene.joint_qpos], self.qvel[rows][:, scene.joint_qvel], scene.openings(qpos), scene.poses(qpos)
        )
        tensors = {key: torch.from_numpy(value) for key, value in vectors.items()}
        for camera in self.interface.cameras:
            tensors[IMAGES + camera] = torch.from_numpy(self.render(camera, self.interface.image_size, self.interface.image_size, rows))
        return tensors, scene.task.success(view)

    def _tensors(self, rows: np.ndarray) -> dict[str, Tensor]:
        return self._observe(rows)[0]

    def render(self, camera: str, height: int, width: int, rows: slice | np.ndarray = slice(None)) -> np.ndarray:
        """Images (n, height, width, 3) uint8 of worlds `rows`."""
        from sim.render import SceneRenderer

        if self._renderer is None:
            self._renderer = SceneRenderer(self.scene.model)
        return self._renderer.images(self.qpos[rows], camera, height, width)
