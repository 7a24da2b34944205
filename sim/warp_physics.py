"""MuJoCo Warp: the physics of thousands of worlds of one model in step, on an NVIDIA GPU or, for tests, on the CPU.

The one module that imports `warp` and `mujoco_warp`. Positions, velocities and controls are torch tensors that share its memory.
"""
# mujoco and warp ship no type stubs that pyright understands.
# pyright: reportAttributeAccessIssue=false, reportMissingImports=false, reportInvalidTypeForm=false

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import fields
from functools import cache
from typing import Any

import mujoco
import torch
from torch import Tensor

from sinew.errors import InputError, MissingDependency, NoRoom

CONTACTS, ROWS_PER_CONTACT = 48, 4
"""Contacts that a world may have at a time, and rows of constraints for each, limits included."""
OVERFLOWS = {"contacts": 2 | 4, "constraints": 1 | 64}
"""What ran over → the bits of MuJoCo Warp's `overflow` that say so."""


SKY = (0.86, 0.9, 0.95, 1.0)
"""Colour where a camera sees nothing; OpenGL draws a gradient there."""


class WarpPhysics:
    """N worlds of a model.

    Args:
        model: compiled; it is copied to the device.
        num_envs: N.
        device: "cpu", "cuda" or "cuda:1".
        substeps: physics steps per call of `step`.
        contacts: contacts that a world may have at a time.
        differing: fields of the model that each world has for itself.

    Raises:
        MissingDependency: MuJoCo Warp is not installed, or another version of MuJoCo than it was made for.
        InputError: no such device, its driver is too old, it has no room for so many worlds, or the model holds what Warp cannot express.
    """

    GEOM = int(mujoco.mjtObj.mjOBJ_GEOM)
    """Kind of what is seen that is a geom."""

    def __init__(
        self,
        model: mujoco.MjModel,
        num_envs: int,
        device: str,
        substeps: int,
        contacts: int = CONTACTS,
        differing: Sequence[str] = (),
    ) -> None:
        wp, mjw = _modules()
        self.device, self.num_envs, self.substeps = torch.device(device), num_envs, substeps
        self._wp, self._mjw, self._place, self._contacts = wp, mjw, _place(wp, self.device), contacts
        host = copy.copy(model)
        host.opt.disableflags &= ~int(mujoco.mjtDisableBit.mjDSBL_AUTORESET)  # Warp never resets by itself, and knows no such flag
        with wp.ScopedDevice(self._place):
            try:
                known = [field.name for field in fields(mjw.Model) if field.name in differing]
                self.model: Any = mjw.put_model(host, batch_sizes=dict.fromkeys(known, num_envs))
            except NotImplementedError as e:
                raise InputError(f"MuJoCo Warp cannot express this model: {e}; use --backend mujoco") from e
            start = mujoco.MjData(host)
            mujoco.mj_forward(host, start)
            try:
                self.data: Any = mjw.put_data(host, start, nworld=num_envs, nconmax=contacts, njmax=ROWS_PER_CONTACT * contacts)
            except RuntimeError as e:
                raise NoRoom(_too_many(num_envs, self.device)) from e
            except ValueError as e:
                raise InputError(f"room for {contacts} contacts a world is less than the task begins with: {e}") from e
        self.model.opt.warn_overflow = 0  # told by `trouble`, in one line and not from inside of a kernel
        self.qpos, self.qvel, self.control = (wp.to_torch(getattr(self.data, name)) for name in ("qpos", "qvel", "ctrl"))
        """(N, nq), (N, nv) and (N, nu), shared with the physics: write into them in place."""
        self.fields = {name: wp.to_torch(getattr(self.model, name)) for name in known}
        """{field of the model: (N, ...)} what each world has for itself, shared with the physics."""
        self._warmstart, self._overflow = wp.to_torch(self.data.qacc_warmstart), wp.to_torch(self.data.overflow)
        self._targets = self.control.new_zeros((substeps, *self.control.shape))
        self._graph: Any = None

    def step(self, targets: Tensor) -> None:
        """Move all worlds on by `substeps` under controls (substeps, N, nu)."""
        self._targets.copy_(targets)
        self._warmstart.zero_()  # the solver starts cold, so that nothing is hidden beside positions and velocities
        with self._wp.ScopedDevice(self._place), self._wp.ScopedStream(self._stream(), sync_enter=False):
            if self.device.type != "cuda":
                self._advance()
                return
            if self._graph is None:
                self._advance()  # compiles what a recording must find compiled; the worlds are put back
                self._graph = self._recorded()
            self._wp.capture_launch(self._graph)

    def begin(self, which: Tensor, qpos: Tensor, control: Tensor) -> None:
        """Put the worlds where `which` (N,) is true at rest at positions (N, nq) under controls (N, nu)."""
        rows = which[:, None]
        self.qpos.copy_(torch.where(rows, qpos, self.qpos))
        self.qvel.copy_(torch.where(rows, 0.0, self.qvel))
        self.control.copy_(torch.where(rows, control, self.control))

    def trouble(self) -> Tensor:
        """(N,) bool: worlds that diverged, or had more contacts than there is room for."""
        return ~(torch.isfinite(self.qpos).all(1) & torch.isfinite(self.qvel).all(1)) | (self._overflow != 0)

    def told(self, world: int) -> str:
        """What is wrong with a world, as the end of a sentence."""
        bits = int(self._overflow[world])
        over = [name for name, mask in OVERFLOWS.items() if bits & mask] or ["space for collisions"]
        if bits:
            return f"needs more {over[0]} than there is room for; give more than {self._contacts} contacts"
        return "diverged; a smaller time step or softer servos are needed"

    def eyes(self, model: mujoco.MjModel, cameras: Sequence[int], size: tuple[int, int], depth: bool, bodies: bool) -> Any:
        """What draws the cameras of these numbers, each in pictures of size (width, height)."""
        with self._wp.ScopedDevice(self._place):
            return self._mjw.create_render_context(
                model, nworld=self.num_envs, cam_res=size, render_rgb=True, render_depth=depth, render_seg=bodies,
                cam_active=list(cameras), background_color=SKY, enable_specular=False, use_precomputed_rays="cam_fovy" not in self.fields,
            )  # fmt: skip

    def looked(self, context: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Tensors that `draw` fills: (N, R) packed colours, (N, R) metres, (N, R, 2) numbers and kinds of what is seen."""
        return tuple(self._wp.to_torch(getattr(context, name)) for name in ("rgb_data", "depth_data", "seg_data"))  # type: ignore[return-value]

    def draw(self, context: Any) -> None:
        """Draw the worlds as they are now."""
        with self._wp.ScopedDevice(self._place), self._wp.ScopedStream(self._stream(), sync_enter=False):
            for place in (self._mjw.kinematics, self._mjw.com_pos, self._mjw.camlight):
                place(self.model, self.data)
            self._mjw.refit_bvh(self.model, self.data, context)
            self._mjw.render(self.model, self.data, context)

    def _advance(self) -> None:
        for k in range(self.substeps):
            self._wp.copy(self.data.ctrl, self._wp.from_torch(self._targets[k]))
            self._mjw.step(self.model, self.data)

    def _recorded(self) -> Any:
        """A CUDA graph of `_advance`; positions and velocities are as before afterwards."""
        kept = [(t, t.clone()) for t in (self.qpos, self.qvel)]
        with self._wp.ScopedCapture() as capture:
            self._advance()
        for tensor, before in kept:
            tensor.copy_(before)
        return capture.graph

    def _stream(self) -> Any:
        return self._wp.stream_from_torch(torch.cuda.current_stream(self.device)) if self.device.type == "cuda" else None


@cache
def _modules() -> tuple[Any, Any]:
    """(warp, mujoco_warp).

    Raises:
        MissingDependency: not installed, or for another MuJoCo.
    """
    try:
        import warp

        warp.config.log_level = warp.LOG_WARNING
        import mujoco_warp
    except ImportError as e:
        raise MissingDependency(f"the Warp backend needs MuJoCo Warp ({e}): pip install 'sinew[gpu]'") from e
    ours, theirs = mujoco.__version__.split(".")[:2], mujoco_warp.__version__.split(".")[:2]
    if ours != theirs:
        wanted = ".".join(theirs)
        raise MissingDependency(
            f"mujoco-warp {mujoco_warp.__version__} beside mujoco {mujoco.__version__}: pip install 'mujoco=={wanted}.*'"
        )
    return warp, mujoco_warp


def _place(wp: Any, device: torch.device) -> Any:
    """Warp's name of a torch device.

    Raises:
        InputError: there is none.
    """
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"MuJoCo Warp runs on cuda or, for tests, on cpu; not on {device}")
    if device.type == "cuda" and (not torch.cuda.is_available() or not wp.is_cuda_available()):
        why = "torch was built without CUDA" if torch.version.cuda is None else "no NVIDIA driver that Warp can use"
        raise InputError(f"--device {device}: {why}; --device cpu runs everywhere, hundreds of times slower")
    try:
        return wp.get_device("cpu" if device.type == "cpu" else f"cuda:{device.index or 0}")
    except ValueError as e:
        raise InputError(f"--device {device}: there are {wp.get_cuda_device_count()} CUDA devices") from e


def _too_many(num_envs: int, device: torch.device) -> str:
    free = f", {torch.cuda.mem_get_info(device)[0] / 2**30:.1f} GiB are free" if device.type == "cuda" else ""
    return f"{num_envs} worlds do not fit on {device}{free}; take fewer"
