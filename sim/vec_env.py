"""Many worlds of one task on MuJoCo's CPU thread pool."""
# mujoco ships no type stubs.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import mujoco
import mujoco.rollout
import numpy as np
import torch
from torch import Tensor

from sim.camera_noise import CameraNoise
from sim.interface import TaskInterface
from sim.latency import Drive, Late
from sim.model_fields import ModelFields
from sim.randomise import Randomisation
from sim.randomised import randomiser_of
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
        randomisation: what every episode draws anew from its seed; nothing if left out.

    Raises:
        InputError: no worlds, or the randomisation names what the scene does not have.
    """

    def __init__(
        self,
        interface: TaskInterface,
        num_envs: int,
        seed: int = 0,
        num_threads: int | None = None,
        randomisation: Randomisation | None = None,
    ) -> None:
        if num_envs < 1:
            raise InputError(f"num_envs is {num_envs}; at least one world is needed")
        interface, self.randomiser = randomiser_of(interface, randomisation)
        self.curriculum = None if self.randomiser is None else self.randomiser.curriculum
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
        self._decoder = interface.decoder(num_envs)
        self._drive = Drive(np.zeros((num_envs, model.nu)), self.scene.substeps, model.opt.timestep)
        self._late: Late | None = None
        self._noise: CameraNoise | None = None
        self._fields: ModelFields | None = None
        self.models: list[mujoco.MjModel] | None = None
        """The model of each world where they differ."""
        if self.randomiser is not None:
            self._prepare_randomised()
        self._renderer: SceneRenderer | None = None
        self.seeds = np.array([seed + i for i in range(num_envs)], dtype=np.int64)
        self._length = np.zeros(num_envs, dtype=np.int64)
        self._held = np.zeros(num_envs, dtype=np.int64)
        self._observation: dict[str, Tensor] = {}
        self.reset()

    def _prepare_randomised(self) -> None:
        """Make what differs between worlds, and what stands between them and who acts."""
        assert self.randomiser is not None
        sampler, model = self.randomiser.sampler, self.scene.model
        self.values = np.zeros((self.num_envs, len(sampler.slots)))
        """(N, P) what the worlds are played with; `randomiser.names` are the names."""
        self._boundary = np.full(self.num_envs, -1, dtype=np.int64)
        self._fields = ModelFields(model, sampler.slots)
        if self._fields.names:
            self.models = [copy.copy(model) for _ in range(self.num_envs)]
        self._drive = self.randomiser.drive(np.zeros((self.num_envs, model.nu)))
        noise = CameraNoise(sampler, self.interface.cameras, self.num_envs)
        self._noise = noise if noise.active else None

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
        fresh = self._observe(rows)[0]
        if not self._observation or len(rows) == self.num_envs:
            self._observation = fresh if ids is None else {k: v[np.argsort(rows)] for k, v in fresh.items()}
        else:
            self._observation = {k: v.clone() for k, v in self._observation.items()}
            for key, value in fresh.items():
                self._observation[key][rows] = value
        self._seen_first(rows)
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
        self._length += 1
        observation, success = self._observe(np.arange(self.num_envs))
        if self._late is not None:
            observation = self._late.seen(observation)
        self._held = np.where(success, self._held + 1, 0)
        terminated = self._held >= self.scene.task.hold_steps
        truncated = ~terminated & (self._length >= self.max_episode_steps)
        info = {
            "success": torch.from_numpy(terminated),
            "final_observation": observation,
            "episode_length": torch.from_numpy(self._length.copy()),
            "seed": torch.from_numpy(self.seeds.copy()),
        }
        if self.randomiser is not None:
            info["randomised"] = torch.from_numpy(self.values.copy())
        ended = np.flatnonzero(terminated | truncated)
        if len(ended):
            if self.randomiser is not None:
                self.randomiser.told(self._boundary[ended], terminated[ended])
            self._start(ended, [next_seed(int(s)) for s in self.seeds[ended]])
            fresh = self._observe(ended)[0]
            observation = {k: v.clone() for k, v in observation.items()}
            for key, value in fresh.items():
                observation[key][ended] = value
        self._observation = observation
        if len(ended):
            self._seen_first(ended)
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
        if self.randomiser is not None:
            self._randomise(rows, seeds)
        self._begin(rows, np.stack([self.scene.initial(int(seed)) for seed in seeds]) if len(rows) else np.zeros((0, self.scene.model.nq)))

    def _begin(self, rows: np.ndarray, qpos: np.ndarray) -> None:
        self._state[rows] = 0.0
        self._state[np.ix_(rows, np.arange(self._state.shape[1])[self._qpos])] = qpos
        self._length[rows] = 0
        self._held[rows] = 0
        command = np.zeros((self.num_envs, self.scene.model.nu))
        command[rows] = self.scene.control(qpos[:, self.scene.joint_qpos], self.scene.openings(qpos))
        self._drive.begin(self._mask(rows), command)
        self._decoder.reset(qpos[:, self.scene.joint_qpos], self.scene.openings(qpos), rows)

    def _randomise(self, rows: np.ndarray, seeds: Sequence[int]) -> None:
        """Draw what worlds `rows` are played with."""
        assert self.randomiser is not None and self._fields is not None
        draws = self.randomiser.draw(seeds)
        self.values[rows], self._boundary[rows] = draws.values, draws.boundary
        if self.models is not None:
            for row in rows:
                self._fields.write(self.values[row], self.models[row])
        self.randomiser.set_drive(self._drive, self.values)
        if self._noise is not None:
            self._noise.begin(torch.from_numpy(self._mask(rows)), torch.from_numpy(self.values))

    def _seen_first(self, rows: np.ndarray) -> None:
        """What was observed of worlds `rows` is the first of their episodes."""
        if self.randomiser is None or not self.randomiser.delay_max("observation_delay"):
            return
        if self._late is None:
            self._late = Late(self._observation, self.randomiser.delay_max("observation_delay"))
        self._late.delay_steps = torch.from_numpy(self.randomiser.observation_delay(self.values))
        self._late.begin(torch.from_numpy(self._mask(rows)), self._observation)

    def _mask(self, rows: np.ndarray) -> np.ndarray:
        """(N,) bool, true for worlds `rows`."""
        return np.isin(np.arange(self.num_envs), rows)

    def _simulate(self, control: np.ndarray) -> None:
        # Servo targets move evenly over the control period, as robot drivers interpolate, instead of jumping.
        self._pool.rollout(
            self.models or self.scene.model,
            self._data,
            self._state,
            self._drive.targets(control).swapaxes(0, 1).copy(),
            nstep=self.scene.substeps,
            state=self._trace,
            sensordata=self._sensors,
        )
        self._state[:] = self._trace[:, -1]
        if not np.isfinite(self._state).all():
            row = int(np.argwhere(~np.isfinite(self._state))[0, 0])
            culprit = f"world {row} (seed {self.seeds[row]})"
            raise InputError(f"the physics of {culprit} diverged; a smaller time step or softer servos are needed")

    def _observe(self, rows: np.ndarray) -> tuple[dict[str, Tensor], np.ndarray]:
        """What worlds `rows` are now, as cameras see it, and where their goal holds."""
        scene, qpos = self.scene, self.qpos[rows]
        vectors, view = self.interface.observe_and_view(
            qpos[:, scene.joint_qpos], self.qvel[rows][:, scene.joint_qvel], scene.openings(qpos), scene.poses(qpos)
        )
        tensors = {key: torch.from_numpy(value) for key, value in vectors.items()}
        for camera in self.interface.cameras:
            images = torch.from_numpy(self.render(camera, self.interface.image_size, self.interface.image_size, rows))
            if self._noise is not None:
                seeds, steps = torch.from_numpy(self.seeds[rows]), torch.from_numpy(self._length[rows])
                images = self._noise.seen(camera, images, seeds, steps, torch.from_numpy(rows))
            tensors[IMAGES + camera] = images
        return tensors, scene.task.success(view)

    def render(self, camera: str, height: int, width: int, rows: slice | np.ndarray = slice(None)) -> np.ndarray:
        """Images (n, height, width, 3) uint8 of worlds `rows`."""
        from sim.render import SceneRenderer

        if self._renderer is None:
            self._renderer = SceneRenderer(self.scene.model)
        models = None if self.models is None else [self.models[i] for i in np.arange(self.num_envs)[rows]]
        return self._renderer.images(self.qpos[rows], camera, height, width, models)
