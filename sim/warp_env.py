"""Thousands of worlds of one task on MuJoCo Warp; observations, actions and rewards never leave the device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

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
        randomisation: what every episode draws anew from its seed; nothing if left out.

    Raises:
        MissingDependency: MuJoCo Warp is not installed.
        InputError: no such device, no room for so many worlds, Warp cannot express the model, or the randomisation names what the scene
            does not have.
    """

    def __init__(
        self,
        interface: TaskInterface,
        num_envs: int,
        seed: int = 0,
        device: torch.device | str = "cuda",
        contacts: int | None = None,
        randomisation: Randomisation | None = None,
    ) -> None:
        if num_envs < 1:
            raise InputError(f"num_envs is {num_envs}; at least one world is needed")
        interface, self.randomiser = randomiser_of(interface, randomisation)
        self.curriculum = None if self.randomiser is None else self.randomiser.curriculum
        self.interface, self.num_envs, self.scene = interface, num_envs, interface.scene
        self.observation_spec, self.action_spec = interface.observation_spec, interface.action_spec
        self.max_episode_steps = interface.max_episode_steps
        more = {} if contacts is None else {"contacts": contacts}
        self._fields = None if self.randomiser is None else ModelFields(self.scene.model, self.randomiser.sampler.slots)
        differing = () if self._fields is None else self._fields.names
        self.physics = self._make_physics(str(device), differing, **more)
        self.device = self.physics.device
        self._there: Any = interface.to(self.device)  # its arrays are tensors
        self._decoder: Any = self._there.decoder(num_envs)
        self.views = self._make_views() if interface.cameras else None
        """What draws the cameras that are observed."""
        self._drive = Drive(self.physics.control, self.scene.substeps, self.scene.model.opt.timestep)
        self._late: Late | None = None
        self._noise: CameraNoise | None = None
        if self.randomiser is not None:
            self._prepare_randomised()
        self._length = torch.zeros(num_envs, dtype=torch.int64, device=self.device)
        self._held = torch.zeros_like(self._length)
        self._seed = seed + torch.arange(num_envs, device=self.device)
        self._ended = self._won = torch.zeros(num_envs, dtype=torch.bool, device=self.device)
        self._next = torch.zeros_like(self.physics.qpos)
        self._next_seed = torch.zeros_like(self._length)
        self._next_observation: dict[str, Tensor] = {}
        self._observation: dict[str, Tensor] = {}
        self.reset()

    def _make_physics(self, device: str, differing: Sequence[str], **more: int) -> Any:
        """What moves the worlds; backends of another engine have another, with the same methods."""
        return WarpPhysics(self.scene.model, self.num_envs, device, self.scene.substeps, **more, differing=differing)

    def _make_views(self) -> Any:
        """What draws the cameras that are observed: `look`, then `images` of each."""
        size = self.interface.image_size
        return WarpViews(self.physics, self.scene.model, self.interface.cameras, size, size)

    def _prepare_randomised(self) -> None:
        """Make what differs between worlds, and what stands between them and who acts."""
        assert self.randomiser is not None
        sampler = self.randomiser.sampler
        self.values = torch.zeros(self.num_envs, len(sampler.slots), device=self.device)
        """(N, P) what the worlds are played with; `randomiser.names` are the names."""
        self._next_values = torch.zeros_like(self.values)
        self._next_fields = {name: field.clone() for name, field in self.physics.fields.items()}
        self._boundary, self._next_boundary = (np.full(self.num_envs, -1, dtype=np.int64) for _ in range(2))
        self._drive = self.randomiser.drive(self.physics.control)
        noise = CameraNoise(sampler, self.interface.cameras, self.num_envs, self.device)
        self._noise = noise if noise.active else None

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
        if self.randomiser is not None:
            self._boundary[rows] = self._next_boundary[rows]
        fresh = self._observation or {k: torch.zeros_like(v) for k, v in self._next_observation.items()}
        fresh = self._start(which, fresh)
        self._observation = fresh | self._pictures(which, fresh)
        self._seen_first(which)
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
        self.physics.step(self._drive.targets(scene.control(joints, openings)))
        self._length = self._length + 1
        observation, success = self._observe(self.qpos)
        observation |= self._pictures()
        if self._late is not None:
            observation = self._late.seen(observation)
        self._held = torch.where(success, self._held + 1, 0)
        terminated = self._held >= scene.task.hold_steps
        truncated = ~terminated & (self._length >= self.max_episode_steps)
        info = {"success": terminated, "final_observation": observation, "episode_length": self._length, "seed": self._seed}
        if self.randomiser is not None:
            info["randomised"] = self.values
        self._ended, self._won = terminated | truncated, terminated
        self._observation = self._start(self._ended, observation)
        if self.views is not None and self._ended.any():
            self._observation |= self._pictures(self._ended, observation)
        self._seen_first(self._ended)
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
        ended, won, trouble = torch.stack((self._ended, self._won, self.physics.trouble())).cpu().numpy()
        if trouble.any():
            world = int(np.flatnonzero(trouble)[0])
            raise InputError(f"world {world} (seed {self.seeds[world]}) {self.physics.told(world)}")
        rows = np.flatnonzero(ended)
        if len(rows):
            if self.randomiser is not None:
                self.randomiser.told(self._boundary[rows], won[rows])
                self._boundary[rows] = self._next_boundary[rows]
            self._prepare(rows, [next_seed(int(s)) for s in self.seeds[rows]])
            self._ended = torch.zeros_like(self._ended)

    def _prepare(self, rows: np.ndarray, seeds: Sequence[int]) -> None:
        """Make ready what worlds `rows` begin with when they are reset next."""
        if not len(rows):
            return
        there = torch.from_numpy(rows).to(self.device)
        qpos = torch.from_numpy(np.stack([self.scene.initial(int(seed)) for seed in seeds])).to(self.device, torch.float32)
        self._next[there] = qpos
        if self.randomiser is not None:
            self._draw(rows, there, seeds)
        self._next_seed[there] = torch.tensor(list(seeds), dtype=torch.int64, device=self.device)
        observation, _ = self._observe(qpos, torch.zeros_like(self.qvel[: len(rows)]))
        if not self._next_observation:
            self._next_observation = {k: v.new_zeros((self.num_envs, *v.shape[1:])) for k, v in observation.items()}
        for key, value in observation.items():
            self._next_observation[key][there] = value

    def _draw(self, rows: np.ndarray, there: Tensor, seeds: Sequence[int]) -> None:
        """Draw what worlds `rows` are played with next."""
        assert self.randomiser is not None and self._fields is not None
        draws = self.randomiser.draw(seeds)
        self._next_boundary[rows] = draws.boundary
        self._next_values[there] = torch.from_numpy(draws.values).to(self.values)
        if self._next_fields:
            models = [self._fields.read(self._fields.write(values)) for values in draws.values]
            for name, field in self._next_fields.items():
                new = torch.from_numpy(np.stack([model[name] for model in models])).to(field)
                field[there] = new.reshape(len(rows), *field.shape[1:])

    def _start(self, which: Tensor, observation: dict[str, Tensor]) -> dict[str, Tensor]:
        """Begin what lies ready where `which` (N,) is true; the observation after that, of all worlds."""
        if self.randomiser is not None:
            self._begin_randomised(which)
        self._put(which, self._next)
        self._seed = torch.where(which, self._next_seed, self._seed)
        begun = self._next_observation
        return {key: torch.where(which[:, None], begun[key], value) if key in begun else value for key, value in observation.items()}

    def _pictures(self, which: Tensor | None = None, others: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
        """What the cameras see now, (N, H, W, 3) each; where `which` (N,) is given, of these worlds alone, and of the others `others`."""
        if self.views is None:
            return {}
        self.views.look()
        seen = {IMAGES + camera: self.views.images(camera) for camera in self.interface.cameras}
        if self._noise is not None:
            every = torch.arange(self.num_envs, device=self.device)
            rows = every if which is None else every[which]
            for camera in self.interface.cameras:
                key = IMAGES + camera
                made = self._noise.seen(camera, seen[key][rows], self._seed[rows], self._length[rows], rows)
                seen[key] = seen[key].index_copy(0, rows, made)
        if which is None or others is None or (self._noise is None and self._late is None):
            return seen
        before = seen | others
        return {key: torch.where(which[:, None, None, None], value, before[key]) for key, value in seen.items()}

    def _seen_first(self, which: Tensor) -> None:
        """What was observed of the worlds where `which` (N,) is true is the first of their episodes."""
        if self.randomiser is None or not self.randomiser.delay_max("observation_delay"):
            return
        if self._late is None:
            self._late = Late(self._observation, self.randomiser.delay_max("observation_delay"))
        self._late.delay_steps = self.randomiser.observation_delay(self.values)
        self._late.begin(which, self._observation)

    def _put(self, which: Tensor, qpos: Tensor) -> None:
        scene = self._there.scene
        joints, openings = qpos[:, scene.joint_qpos], scene.openings(qpos)
        command = scene.control(joints, openings)
        self.physics.begin(which, qpos, command)
        self._drive.begin(which, command)
        self._decoder.restart(which, joints)
        self._length, self._held = torch.where(which, 0, self._length), torch.where(which, 0, self._held)

    def _begin_randomised(self, which: Tensor) -> None:
        """Play with what was drawn for them where `which` (N,) is true."""
        assert self.randomiser is not None
        self.values = torch.where(which[:, None], self._next_values, self.values)
        for name, field in self.physics.fields.items():
            field.copy_(torch.where(which.reshape((-1,) + (1,) * (field.ndim - 1)), self._next_fields[name], field))
        self.randomiser.set_drive(self._drive, self.values)
        if self._noise is not None:
            self._noise.begin(which, self.values)

    def _observe(self, qpos: Tensor, qvel: Tensor | None = None) -> tuple[dict[str, Tensor], Tensor]:
        """Observation vectors of worlds, and where their goal holds."""
        scene, velocities = self._there.scene, self.qvel if qvel is None else qvel
        vectors, view = self._there.observe_and_view(
            qpos[:, scene.joint_qpos], velocities[:, scene.joint_qvel], scene.openings(qpos), scene.poses(qpos)
        )
        return vectors, scene.task.success(view)
