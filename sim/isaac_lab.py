"""Isaac Lab 3.0 without Kit: our own MJCF on Newton, through Isaac Lab's simulation, in a Python 3.12 of its own.

The one module that imports `isaaclab` and `newton`. Isaac Lab holds one simulation per process, while a run of ours has several sets of
worlds, of which learning steps one and the gate another. So its simulation is started, which builds model, solver and buffers from its
settings, and is taken down again; what it built is kept and stepped, as it would itself.
"""
# isaaclab, newton and warp are not installed where types are checked; mujoco ships no type stubs.
# pyright: reportAttributeAccessIssue=false, reportMissingImports=false

from __future__ import annotations

import contextlib
import importlib.metadata
import sys
from collections.abc import Iterator
from functools import cache
from types import SimpleNamespace
from typing import Any

import mujoco
import torch
from torch import Tensor

from sim.isaac_env import IsaacVecEnv, inverse, rotated, to_wxyz, to_xyzw
from sim.isaac_lab_check import check_same
from sim.scene import Scene
from sinew.errors import InputError, MissingDependency

PYTHON = (3, 12)
CONTACTS, CONSTRAINTS = 48, 192
"""What a world may have at a time, as with MuJoCo Warp."""
PINNED = ("torch", "warp-lang", "newton", "mujoco", "mujoco-warp")
"""What Isaac Lab and Newton fix the version of, and an environment may hold another of."""
VENV = "python3.12 -m venv .venv-isaaclab && .venv-isaaclab/bin/pip install 'sinew[isaaclab]'"
_FREE = int(mujoco.mjtJoint.mjJNT_FREE)


class IsaacLabVecEnv(IsaacVecEnv):
    """N worlds of a task in Isaac Lab's physics: the VecEnv of `sinew.protocols` with tensors on `device`.

    Args:
        interface: task, action kind and cameras.
        num_envs: N.
        seed: worlds start with seeds seed, seed + 1, … where `reset` is called without one.
        device: "cuda", "cuda:1" or "cpu".

    Raises:
        MissingDependency: Isaac Lab is not installed, this is not its Python, or a version is not the one it needs.
        InputError: no such device, or Isaac Lab cannot express the model.
    """

    ENGINE = "Isaac Lab"

    def _engine(self, device: str) -> IsaacLabPhysics:
        return IsaacLabPhysics(self.scene, self.num_envs, device)


class IsaacLabPhysics:
    """What `WarpPhysics` is to MuJoCo Warp: states as MuJoCo lays them out, on top of Newton's joint coordinates."""

    def __init__(self, scene: Scene, num_envs: int, device: str) -> None:
        self._lab = _modules()
        self.device, self.num_envs, self.substeps = torch.device(device), num_envs, scene.substeps
        if self.device.type == "cuda" and not torch.cuda.is_available():
            raise InputError(f"--device {device}: no NVIDIA GPU that torch can use; --device cpu runs everywhere, hundreds of times slower")
        model, wp = scene.model, self._lab.warp
        self._solver, self._state, self._control, names = _built(self._lab, scene, num_envs, device)
        check_same(model, self._solver.mj_model, names)
        self._timestep_s = float(model.opt.timestep)
        self._joint_q, self._joint_qd = (wp.to_torch(a).view(num_envs, -1) for a in (self._state.joint_q, self._state.joint_qd))
        self.control = wp.to_torch(self._control.mujoco.ctrl).view(num_envs, model.nu)
        """(N, nu), shared with the physics."""
        self._place(model, names)
        start = torch.from_numpy(model.qpos0).float().to(self.device)
        self.qpos, self.qvel = start.repeat(num_envs, 1), start.new_zeros((num_envs, model.nv))
        """(N, nq) and (N, nv) as MuJoCo lays them out."""
        self.fields: dict[str, Tensor] = {}
        self._overflow = wp.to_torch(self._solver.mjw_data.overflow)
        self._targets = self.control.new_zeros((self.substeps, *self.control.shape))
        self._graph: Any = None

    def _place(self, model: mujoco.MjModel, names: list[str]) -> None:
        """Where each joint of Newton's lies in ours."""
        q = qd = 0
        places: list[tuple[int, int]] = []
        speeds: list[tuple[int, int]] = []
        self._free: list[tuple[int, int, int, int, Tensor]] = []
        for name in names:
            joint = model.joint(name).id
            at, velocity = int(model.jnt_qposadr[joint]), int(model.jnt_dofadr[joint])
            if int(model.jnt_type[joint]) == _FREE:
                centre = torch.from_numpy(model.body_ipos[model.jnt_bodyid[joint]]).float().to(self.device)
                self._free.append((at, velocity, q, qd, centre))
                q, qd = q + 7, qd + 6
            else:
                places.append((at, q))
                speeds.append((velocity, qd))
                q, qd = q + 1, qd + 1
        self._ours, self._theirs = (torch.tensor([p[k] for p in places], dtype=torch.int64, device=self.device) for k in (0, 1))
        self._our_speeds, self._their_speeds = (torch.tensor([p[k] for p in speeds], dtype=torch.int64, device=self.device) for k in (0, 1))
        self._reference = torch.from_numpy(model.qpos0).float().to(self.device)[self._ours]

    def step(self, targets: Tensor) -> None:
        """Move all worlds on under controls (S, N, nu), one for each physics step."""
        self._targets.copy_(targets)
        with self._lab.warp.ScopedDevice(str(self.device)), self._lab.warp.ScopedStream(self._stream(), sync_enter=False):
            self._solver.reset(self._state, flags=0)  # the solver starts cold, so that nothing is hidden beside positions and velocities
            if self.device.type != "cuda":
                self._advance()
            else:
                if self._graph is None:
                    kept = [(t, t.clone()) for t in (self._joint_q, self._joint_qd)]
                    self._advance()  # compiles what a recording must find compiled; the worlds are put back
                    with self._lab.warp.ScopedCapture() as capture:
                        self._advance()
                    for tensor, before in kept:
                        tensor.copy_(before)
                    self._graph = capture.graph
                self._lab.warp.capture_launch(self._graph)
        self._take()

    def _advance(self) -> None:
        for k in range(self.substeps):
            self._lab.warp.copy(self._control.mujoco.ctrl, self._lab.warp.from_torch(self._targets[k].flatten()))
            self._solver.step(self._state, self._state, self._control, None, self._timestep_s)

    def begin(self, which: Tensor, qpos: Tensor, control: Tensor) -> None:
        """Put the worlds where `which` (N,) is true at rest at positions (N, nq) under controls (N, nu)."""
        rows = which[:, None]
        self.qpos.copy_(torch.where(rows, qpos, self.qpos))
        self.qvel.copy_(torch.where(rows, 0.0, self.qvel))
        self.control.copy_(torch.where(rows, control, self.control))
        wanted = self._joint_q.clone()
        wanted[:, self._theirs] = self.qpos[:, self._ours] - self._reference
        for at, _, q, _, _ in self._free:
            wanted[:, q : q + 3], wanted[:, q + 3 : q + 7] = self.qpos[:, at : at + 3], to_xyzw(self.qpos[:, at + 3 : at + 7])
        self._joint_q.copy_(torch.where(rows, wanted, self._joint_q))
        self._joint_qd.copy_(torch.where(rows, 0.0, self._joint_qd))

    def _take(self) -> None:
        """Take over Newton's state: free bodies have the velocity of their centre of mass there, and turn along the world's axes."""
        self.qpos[:, self._ours] = self._joint_q[:, self._theirs] + self._reference
        self.qvel[:, self._our_speeds] = self._joint_qd[:, self._their_speeds]
        for at, velocity, q, qd, centre in self._free:
            quaternion, turning = to_wxyz(self._joint_q[:, q + 3 : q + 7]), self._joint_qd[:, qd + 3 : qd + 6]
            self.qpos[:, at : at + 3], self.qpos[:, at + 3 : at + 7] = self._joint_q[:, q : q + 3], quaternion
            arm = rotated(quaternion, centre.expand(self.num_envs, 3))
            self.qvel[:, velocity : velocity + 3] = self._joint_qd[:, qd : qd + 3] - torch.linalg.cross(turning, arm)
            self.qvel[:, velocity + 3 : velocity + 6] = rotated(inverse(quaternion), turning)

    def trouble(self) -> Tensor:
        """(N,) bool: worlds that diverged, or had more contacts than there is room for."""
        return ~(torch.isfinite(self.qpos).all(1) & torch.isfinite(self.qvel).all(1)) | (self._overflow != 0)

    def told(self, world: int) -> str:
        """What is wrong with a world, as the end of a sentence."""
        if int(self._overflow[world]):
            return f"needs more contacts than there is room for in Isaac Lab, {CONTACTS}"
        return "diverged in Isaac Lab; a smaller time step or softer servos are needed"

    def close(self) -> None:
        """Nothing is held but memory."""

    def _stream(self) -> Any:
        return self._lab.warp.stream_from_torch(torch.cuda.current_stream(self.device)) if self.device.type == "cuda" else None


def _built(lab: Any, scene: Scene, num_envs: int, device: str) -> tuple[Any, Any, Any, list[str]]:
    """(solver, state, control, names of our joints in Newton's order) of N worlds."""
    if scene.spec is None:
        raise InputError("Isaac Lab needs the MJCF of a scene, which this one was not kept with; use --backend mujoco or warp")
    if lab.SimulationContext.instance() is not None:
        raise InputError("a simulation of Isaac Lab runs in this process: end it first, with SimulationContext.clear_instance()")
    with _quiet():
        simulation = lab.SimulationContext(_settings(lab, scene.model, device))
        try:
            builder = simulation.get_or_create_backend(lab.NewtonBuilderCfg(physics_cfg=simulation.cfg.physics))
            one = simulation.physics_manager.create_builder()
            try:
                one.add_mjcf(scene.spec.to_xml(), ctrl_direct=True)
            except (ValueError, NotImplementedError) as e:
                raise InputError(f"Isaac Lab cannot express this model: {' '.join(str(e).split())}; use --backend mujoco or warp") from e
            names = _joint_names(scene.model, [label.rpartition("/")[2] for label in one.joint_label])
            builder.replicate(one, num_envs)
            simulation.reset()
            made = simulation.physics_manager
            return made._solver, made.get_state_0(), made.get_control(), names
        finally:
            lab.SimulationContext.clear_instance()


def _settings(lab: Any, model: mujoco.MjModel, device: str) -> Any:
    """Isaac Lab's configuration of a simulation that moves as the model says."""
    options = model.opt
    solver = lab.MJWarpSolverCfg(
        njmax=CONSTRAINTS,
        nconmax=CONTACTS,
        iterations=int(options.iterations),
        ls_iterations=int(options.ls_iterations),
        integrator="implicitfast" if int(options.integrator) == int(mujoco.mjtIntegrator.mjINT_IMPLICITFAST) else "euler",
        cone="elliptic" if int(options.cone) == int(mujoco.mjtCone.mjCONE_ELLIPTIC) else "pyramidal",
        impratio=float(options.impratio),
        tolerance=float(options.tolerance),
    )
    physics = lab.NewtonCfg(solver_cfg=solver, use_cuda_graph=False, default_shape_cfg=lab.NewtonShapeCfg(margin=0.0, gap=0.0))
    return lab.SimulationCfg(dt=float(options.timestep), device=device, gravity=tuple(options.gravity.tolist()), physics=physics)


def _joint_names(model: mujoco.MjModel, labels: list[str]) -> list[str]:
    """Names of our joints in Newton's order, which makes one joint of all those of a body."""
    bodies: dict[str, list[str]] = {}
    for body in range(model.nbody):
        first = int(model.body_jntadr[body])
        names = [model.joint(j).name for j in range(first, first + int(model.body_jntnum[body]))]
        bodies["_".join(names)] = names
    return [name for label in labels for name in bodies.get(label, ())]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """What Isaac Lab prints goes to the error stream: answers of commands are alone on the other."""
    with contextlib.redirect_stdout(sys.stderr):
        yield


@cache
def _modules() -> Any:
    """Everything of Isaac Lab that is used.

    Raises:
        MissingDependency: not installed, another Python, or versions that collide.
    """
    if sys.version_info[:2] != PYTHON:
        ours = ".".join(map(str, sys.version_info[:2]))
        raise MissingDependency(f"Isaac Lab 3.0 runs on Python 3.12 only, and this is {ours}: {VENV}")
    try:
        collisions = _collisions()
        with _quiet():
            import warp
            from isaaclab.sim import SimulationCfg, SimulationContext
            from isaaclab_newton.physics import MJWarpSolverCfg, NewtonBuilderCfg, NewtonCfg, NewtonShapeCfg
    except ImportError as e:
        raise MissingDependency(f"the Isaac Lab backend needs Isaac Lab 3.0 ({e}): {VENV}") from e
    if collisions:
        raise MissingDependency(f"Isaac Lab cannot share this environment ({', '.join(collisions)}); give it one of its own: {VENV}")
    return SimpleNamespace(
        warp=warp, SimulationCfg=SimulationCfg, SimulationContext=SimulationContext, MJWarpSolverCfg=MJWarpSolverCfg,
        NewtonBuilderCfg=NewtonBuilderCfg, NewtonCfg=NewtonCfg, NewtonShapeCfg=NewtonShapeCfg,
    )  # fmt: skip


def _collisions() -> list[str]:
    """What is installed in another version than Isaac Lab, or the Newton in it, needs."""
    from packaging.requirements import Requirement

    found = []
    for package, extra in (("isaaclab", ""), ("newton", "sim")):
        for text in importlib.metadata.requires(package) or ():
            wanted = Requirement(text)
            if wanted.name not in PINNED or (wanted.marker and not wanted.marker.evaluate({"extra": extra})):
                continue
            installed = importlib.metadata.version(wanted.name)
            if not wanted.specifier.contains(installed, prereleases=True):
                found.append(f"{package} needs {wanted.name}{wanted.specifier}, {installed} is installed")
    return found
