"""Whether a model that Newton read from our MJCF is the one it was written from: a reader that leaves something out says nothing."""
# mujoco ships no type stubs.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

from collections.abc import Sequence

import mujoco
import numpy as np

from sim.collisions import colliding, touch
from sinew.errors import InputError

_CLOSE = 1e-3
"""Relative; single precision and products of it stay far below."""
_SHAPE_FIELDS = ("geom_type", "geom_condim", "geom_solref", "geom_solimp", "geom_margin", "geom_gap")
_FRICTIONS = {1: 0, 3: 1, 4: 2, 6: 3}
"""Dimension of a contact → how many coefficients of a shape's friction count in it."""


def check_same(ours: mujoco.MjModel, theirs: mujoco.MjModel, names: Sequence[str]) -> None:
    """Compare how two models move and what touches what.

    Args:
        ours: the model as MuJoCo compiled it.
        theirs: the model as Newton handed it to its solver.
        names: of the joints of `theirs`, in its order, as `ours` calls them.

    Raises:
        InputError: they differ; what is named.
    """
    joints = [ours.joint(name).id for name in names]
    if sorted(joints) != list(range(ours.njnt)) or theirs.nu != ours.nu or theirs.neq != ours.neq or theirs.ntendon != ours.ntendon:
        raise _lost("joints, actuators, tendons or constraints")
    for field in ("jnt_type", "jnt_limited"):
        _compare(getattr(ours, field)[joints], getattr(theirs, field), f"{field} of the joints")
    limited = ours.jnt_limited[joints].astype(bool)
    _compare(ours.jnt_range[joints][limited], theirs.jnt_range[limited], "limits of the joints")
    dofs = np.concatenate([np.arange(ours.jnt_dofadr[j], ours.jnt_dofadr[j] + _size(ours, j, "v")) for j in joints])
    places = np.concatenate([np.arange(ours.jnt_qposadr[j], ours.jnt_qposadr[j] + _size(ours, j, "q")) for j in joints])
    _compare(ours.dof_frictionloss[dofs], theirs.dof_frictionloss, "friction of the joints")
    for field in ("cone", "impratio", "solver"):
        _compare(np.array(getattr(ours.opt, field)), np.array(getattr(theirs.opt, field)), f"option {field}")
    one, other = mujoco.MjData(ours), mujoco.MjData(theirs)
    rng = np.random.default_rng(0)
    for _ in range(3):
        _dispose(ours, one, rng)
        other.qpos[:], other.qvel[:], other.ctrl[:] = one.qpos[places], one.qvel[dofs], one.ctrl
        mujoco.mj_forward(ours, one)
        mujoco.mj_forward(theirs, other)
        _compare(one.qacc_smooth[dofs], other.qacc_smooth, "masses, servos, damping or weight")
    _compare_shapes(ours, one, theirs, other)


def _dispose(model: mujoco.MjModel, data: mujoco.MjData, rng: np.random.Generator) -> None:
    """Some state: joints within a quarter turn, everything in motion, servos pulling within what they may."""
    data.qpos[:] = model.qpos0
    for j in range(model.njnt):
        at = int(model.jnt_qposadr[j])
        if int(model.jnt_type[j]) in (int(mujoco.mjtJoint.mjJNT_HINGE), int(mujoco.mjtJoint.mjJNT_SLIDE)):
            data.qpos[at] += rng.uniform(-0.4, 0.4)
    data.qvel[:], data.ctrl[:] = rng.uniform(-0.3, 0.3, model.nv), rng.uniform(-0.02, 0.02, model.nu)


def _compare_shapes(ours: mujoco.MjModel, one: mujoco.MjData, theirs: mujoco.MjModel, other: mujoco.MjData) -> None:
    """Shapes that collide are matched by their places in a state that both are in."""
    left, right = ([g for b in range(m.nbody) for g in colliding(m, b)] for m in (ours, theirs))
    if len(left) != len(right):
        raise _lost("shapes that collide")
    pairs = [(g, min(right, key=lambda h: float(np.linalg.norm(one.geom_xpos[g] - other.geom_xpos[h])))) for g in left]
    if len({h for _, h in pairs}) != len(right):
        raise _lost("places of the shapes that collide")
    for g, h in pairs:
        sizes = {int(mujoco.mjtGeom.mjGEOM_PLANE): 0, int(mujoco.mjtGeom.mjGEOM_SPHERE): 1}.get(int(ours.geom_type[g]), 2)
        sizes = 3 if int(ours.geom_type[g]) == int(mujoco.mjtGeom.mjGEOM_BOX) else sizes
        meshes = int(ours.geom_type[g]) == int(mujoco.mjtGeom.mjGEOM_MESH)
        _compare(one.geom_xpos[g], other.geom_xpos[h], "places of the shapes that collide")
        if not meshes:
            _compare(ours.geom_size[g, :sizes], theirs.geom_size[h, :sizes], "sizes of the shapes that collide")
        friction = _FRICTIONS[int(ours.geom_condim[g])]
        _compare(ours.geom_friction[g, :friction], theirs.geom_friction[h, :friction], "friction of the shapes")
        for field in _SHAPE_FIELDS:
            _compare(getattr(ours, field)[g], getattr(theirs, field)[h], f"{field} of the shapes")
    for i, (g, h) in enumerate(pairs):
        for g2, h2 in pairs[:i]:
            if touch(ours, g, g2) != touch(theirs, h, h2):
                raise _lost("pairs of shapes that touch")


def _size(model: mujoco.MjModel, joint: int, which: str) -> int:
    free, ball = (int(getattr(mujoco.mjtJoint, f"mjJNT_{kind}")) for kind in ("FREE", "BALL"))
    sizes = {"q": {free: 7, ball: 4}, "v": {free: 6, ball: 3}}[which]
    return sizes.get(int(model.jnt_type[joint]), 1)


def _compare(ours: np.ndarray, theirs: np.ndarray, what: str) -> None:
    slack = _CLOSE * max(1.0, float(np.max(np.abs(ours), initial=0)))
    if np.shape(ours) != np.shape(theirs) or not np.allclose(ours, theirs, rtol=_CLOSE, atol=slack):
        raise _lost(what)


def _lost(what: str) -> InputError:
    return InputError(f"Isaac Lab cannot express this model: its reader of MJCF changes {what}; use --backend mujoco or warp")
