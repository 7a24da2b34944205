"""Isaac Gym (Preview 4, which NVIDIA no longer supports): worlds that a process under its own, older Python steps.

The interpreter is named by `SINEW_ISAACGYM_PYTHON`; it needs Isaac Gym, torch and NumPy and nothing of ours. Written to the documented
interface and tested against a stand-in for it; it has never run on the real one.
"""
# mujoco ships no type stubs.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import weakref
from typing import IO, Any

import mujoco
import numpy as np
import torch
from torch import Tensor

from sim import isaac_gym_worker as wire
from sim.isaac_env import IsaacVecEnv, inverse, rotated, to_wxyz, to_xyzw
from sim.isaac_gym_model import Plan, plan
from sinew.errors import InputError, MissingDependency

PYTHON = "SINEW_ISAACGYM_PYTHON"
"""Environment variable that names the interpreter."""
SOLVER_SUBSTEPS = 2
"""PhysX steps in a physics step."""
PHYSX = {
    "solver_type": 1,
    "num_position_iterations": 12,
    "num_velocity_iterations": 1,
    "contact_offset": 0.005,
    "rest_offset": 0.0,
    "bounce_threshold_velocity": 0.2,
    "max_depenetration_velocity": 5.0,
    "num_threads": 4,
}
"""Fields of `PhysXParams`, near those that IsaacGymEnvs grasps cubes with."""
GOODBYE_S = 5.0
HOW = f"install it into a Python 3.6 to 3.8 from NVIDIA's archive (pip install -e isaacgym/python) and set {PYTHON} to that python"


class IsaacGymVecEnv(IsaacVecEnv):
    """N worlds of a task that Isaac Gym steps: the VecEnv of `sinew.protocols` with tensors on `device`.

    Args:
        interface: task, action kind and cameras.
        num_envs: N.
        seed: worlds start with seeds seed, seed + 1, … where `reset` is called without one.
        device: "cuda", "cuda:1" or "cpu".

    Raises:
        MissingDependency: no interpreter with Isaac Gym is named.
        InputError: Isaac Gym cannot express the model, or refused it.
    """

    ENGINE = "Isaac Gym"

    def _engine(self, device: str) -> IsaacGymPhysics:
        return IsaacGymPhysics(self.scene.model, self.num_envs, device)


class IsaacGymPhysics:
    """What `WarpPhysics` is to MuJoCo Warp: states of ours here, the simulation in the other process."""

    def __init__(self, model: mujoco.MjModel, num_envs: int, device: str) -> None:
        self.plan: Plan = plan(model)
        self.device, self.num_envs = torch.device(device), num_envs
        start = torch.from_numpy(model.qpos0).float().to(self.device)
        self.qpos = start.repeat(num_envs, 1)
        self.qvel, self.control = start.new_zeros((num_envs, model.nv)), start.new_zeros((num_envs, model.nu))
        """(N, nq), (N, nv) and (N, nu) as MuJoCo lays them out."""
        self.fields: dict[str, Tensor] = {}
        self._put = torch.ones(num_envs, dtype=torch.bool, device=self.device)
        self._worker = Worker()
        made, _ = self._worker.ask(
            {
                "num_envs": num_envs,
                "device": str(device),
                "timestep_s": float(model.opt.timestep),
                "solver_substeps": SOLVER_SUBSTEPS,
                "gravity": model.opt.gravity.tolist(),
                "physx": PHYSX,
                "actors": self.plan.actors,
            }
        )
        self._order = np.array([self.plan.joints.index(name) for names in made["dofs"] for name in names], dtype=np.int64)
        """(D,) joint of the plan at each place of Isaac Gym's state."""

    def step(self, targets: Tensor) -> None:
        """Move all worlds on under controls (S, N, nu), one for each physics step."""
        self.control.copy_(targets[-1])
        roots, dofs = self._state(self._put)
        worlds = self._put.nonzero()[:, 0].cpu().numpy()
        servos = self.plan.dof_ctrl[self._order]
        wanted = np.zeros((*targets.shape[:2], len(servos)), dtype=np.float32)
        wanted[..., servos >= 0] = targets.cpu().numpy()[..., servos[servos >= 0]]
        _, answer = self._worker.ask({}, worlds=worlds, roots=roots, dofs=dofs, targets=wanted)
        self._put.zero_()
        self._take(answer["roots"], answer["dofs"])

    def begin(self, which: Tensor, qpos: Tensor, control: Tensor) -> None:
        """Put the worlds where `which` (N,) is true at rest at positions (N, nq) under controls (N, nu), from the next step on."""
        rows = which[:, None]
        self.qpos.copy_(torch.where(rows, qpos, self.qpos))
        self.qvel.copy_(torch.where(rows, 0.0, self.qvel))
        self.control.copy_(torch.where(rows, control, self.control))
        self._put |= which

    def trouble(self) -> Tensor:
        """(N,) bool: worlds that diverged."""
        return ~(torch.isfinite(self.qpos).all(1) & torch.isfinite(self.qvel).all(1))

    def told(self, world: int) -> str:
        """What is wrong with a world, as the end of a sentence."""
        return "diverged in Isaac Gym; a smaller time step or softer servos are needed"

    def close(self) -> None:
        """End the other process."""
        self._worker.close()

    def _state(self, which: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """Roots (n, F, 13) and joints (n, D, 2) of some worlds, in Isaac Gym's terms."""
        qpos, qvel = self.qpos[which], self.qvel[which]
        roots = qpos.new_zeros((len(qpos), len(self.plan.free_qpos), 13))
        for i, (at, velocity) in enumerate(zip(self.plan.free_qpos, self.plan.free_qvel, strict=True)):
            quaternion = qpos[:, at + 3 : at + 7]
            roots[:, i, :3], roots[:, i, 3:7] = qpos[:, at : at + 3], to_xyzw(quaternion)
            roots[:, i, 7:10] = qvel[:, velocity : velocity + 3]
            roots[:, i, 10:13] = rotated(quaternion, qvel[:, velocity + 3 : velocity + 6])  # ours turns with the body
        dofs = torch.stack((qpos[:, self.plan.dof_qpos[self._order]], qvel[:, self.plan.dof_qvel[self._order]]), -1)
        return roots.cpu().numpy(), dofs.cpu().numpy()

    def _take(self, roots: np.ndarray, dofs: np.ndarray) -> None:
        """Take over roots (N, F, 13) and joints (N, D, 2) of all worlds."""
        there, joints = torch.from_numpy(roots.copy()).to(self.device), torch.from_numpy(dofs.copy()).to(self.device)
        self.qpos[:, self.plan.dof_qpos[self._order]] = joints[..., 0]
        self.qvel[:, self.plan.dof_qvel[self._order]] = joints[..., 1]
        for i, (at, velocity) in enumerate(zip(self.plan.free_qpos, self.plan.free_qvel, strict=True)):
            quaternion = to_wxyz(there[:, i, 3:7])
            self.qpos[:, at : at + 3], self.qpos[:, at + 3 : at + 7] = there[:, i, :3], quaternion
            self.qvel[:, velocity : velocity + 3] = there[:, i, 7:10]
            self.qvel[:, velocity + 3 : velocity + 6] = rotated(inverse(quaternion), there[:, i, 10:13])


class Worker:
    """The other process.

    Raises:
        MissingDependency: no interpreter is named.
        InputError: there is none of that name.
    """

    def __init__(self) -> None:
        self.python = os.environ.get(PYTHON, "")
        if not self.python:
            raise MissingDependency(f"Isaac Gym runs under a Python of its own: {HOW}")
        if shutil.which(self.python) is None:
            raise InputError(f"{PYTHON}={self.python} is no program; {HOW}")
        self._link, theirs = socket.socketpair()
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - it lives as long as the process
        with theirs:
            command, number = [self.python, wire.__file__, str(theirs.fileno())], theirs.fileno()
            process = subprocess.Popen(command, pass_fds=(number,), stdin=subprocess.DEVNULL, stdout=self._log, stderr=subprocess.STDOUT)
        self._process = process
        self.close = weakref.finalize(self, _stop, process, self._link, self._log)

    def ask(self, message: dict[str, Any], **arrays: np.ndarray) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """What it answers.

        Raises:
            MissingDependency: it has no Isaac Gym.
            InputError: it could not do it, or has ended.
        """
        try:
            wire.send(self._link, message, **arrays)
            answer, found = wire.receive(self._link)
        except (EOFError, OSError) as e:
            raise InputError(f"Isaac Gym's process ({self.python}) has ended; what it said last: {self._said()}") from e
        if "missing" in answer:
            raise MissingDependency(f"{PYTHON}={self.python} cannot import Isaac Gym ({answer['missing']}); {HOW}")
        if "failed" in answer:
            raise InputError(f"Isaac Gym: {answer['failed']}")
        return answer, found

    def _said(self) -> str:
        if self._log.closed:
            return "nothing"
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "nothing")


def _stop(process: subprocess.Popen[bytes], link: socket.socket, log: IO[bytes]) -> None:
    """It ends by itself where nobody listens; what hangs is ended."""
    link.close()
    try:
        process.wait(GOODBYE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    log.close()
