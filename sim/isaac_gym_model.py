"""What a compiled scene is in the terms of Isaac Gym: actors with an MJCF file each, drives of joints, and which shapes may touch.

An actor is a tree of bodies that hangs on the world: fixed there, or free. Its file holds nothing but what Isaac Gym's reader was seen to
know from the files of IsaacGymEnvs: masses, hinges, slides, and the primitive shapes that collide.
"""
# mujoco ships no type stubs.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import mujoco
import numpy as np

from sim.collisions import colliding, touch
from sinew.errors import InputError

TABLE_HALF_M = 0.05
"""A plane becomes a slab of this half thickness below it, since planes of Isaac Gym cannot be told what not to touch."""
_SHAPES = {
    int(mujoco.mjtGeom.mjGEOM_BOX): ("box", 3),
    int(mujoco.mjtGeom.mjGEOM_SPHERE): ("sphere", 1),
    int(mujoco.mjtGeom.mjGEOM_CAPSULE): ("capsule", 2),
    int(mujoco.mjtGeom.mjGEOM_CYLINDER): ("cylinder", 2),
}
"""What Isaac Gym can express → name, and how many sizes it has."""
_PLANE = int(mujoco.mjtGeom.mjGEOM_PLANE)
_FREE, _SLIDE, _HINGE = (int(getattr(mujoco.mjtJoint, f"mjJNT_{kind}")) for kind in ("FREE", "SLIDE", "HINGE"))
_EFFORT_MAX = 1e9
_BITS = 31


@dataclass(frozen=True)
class Plan:
    """A model as actors, and where their joints lie in its state; D joints in all, F actors that move about."""

    actors: list[dict[str, Any]]
    """One message per actor: name, mjcf, fixed, gravity, dofs and shapes of each body."""
    joints: tuple[str, ...]
    """(D,) names, actor after actor."""
    dof_qpos: np.ndarray
    """(D,) index in qpos."""
    dof_qvel: np.ndarray
    """(D,) index in qvel."""
    dof_ctrl: np.ndarray
    """(D,) index in ctrl of the servo that pulls, -1 for none."""
    free_qpos: np.ndarray
    """(F,) first index in qpos of each actor that moves about."""
    free_qvel: np.ndarray
    """(F,) first index in qvel."""


def plan(model: mujoco.MjModel) -> Plan:
    """Take a model apart.

    Raises:
        InputError: it holds what Isaac Gym cannot express, which is named.
    """
    _refuse(model)
    servos, filters = _servos(model), _filters(model)
    actors: list[dict[str, Any]] = []
    joints: list[int] = []
    free: list[int] = []
    if colliding(model, 0):
        actors.append(_actor(model, 0, [], servos, filters))
    for root in np.flatnonzero(model.body_parentid == 0)[1:]:
        bodies = [b for b in range(model.nbody) if model.body_rootid[b] == root]
        inside = [j for j in range(model.njnt) if model.jnt_bodyid[j] in bodies]
        free += [j for j in inside if model.jnt_type[j] == _FREE]
        joints += [j for j in inside if model.jnt_type[j] != _FREE]
        actors.append(_actor(model, int(root), bodies, servos, filters))
    return Plan(
        actors=actors,
        joints=tuple(model.joint(j).name for j in joints),
        dof_qpos=model.jnt_qposadr[joints],
        dof_qvel=model.jnt_dofadr[joints],
        dof_ctrl=np.array([servos.get(j, (-1, 0.0, 0.0, 0.0))[0] for j in joints], dtype=np.int64),
        free_qpos=model.jnt_qposadr[free],
        free_qvel=model.jnt_dofadr[free],
    )


def _refuse(model: mujoco.MjModel) -> None:
    for count, what in ((model.neq, "constraints of equality"), (model.ntendon, "tendons"), (model.nflex, "soft bodies")):
        if count:
            raise InputError(f"Isaac Gym cannot express the {what} of this model; use --backend mujoco")
    for j in range(model.njnt):
        name, kind = model.joint(j).name, int(model.jnt_type[j])
        if not name or kind not in (_FREE, _SLIDE, _HINGE):
            raise InputError(f"Isaac Gym cannot express joint {name!r}: it takes named hinges and slides, and free bodies")
        if kind != _FREE and (model.qpos0[model.jnt_qposadr[j]] != 0 or model.jnt_stiffness[j] != 0):
            raise InputError(f"Isaac Gym cannot express the reference or the spring of joint {name!r}")


def _servos(model: mujoco.MjModel) -> dict[int, tuple[int, float, float, float]]:
    """{joint: (index in ctrl, stiffness, damping, largest force)}."""
    servos = {}
    for a in range(model.nu):
        gain, bias = model.actuator_gainprm[a], model.actuator_biasprm[a]
        direct = int(model.actuator_trntype[a]) == int(mujoco.mjtTrn.mjTRN_JOINT) and model.actuator_gear[a, 0] == 1
        affine = int(model.actuator_biastype[a]) == int(mujoco.mjtBias.mjBIAS_AFFINE)
        if not (direct and affine and gain[0] == -bias[1] and bias[0] == 0):
            raise InputError(f"Isaac Gym cannot express actuator {model.actuator(a).name!r}: it takes position servos of joints")
        force = float(model.actuator_forcerange[a, 1]) if model.actuator_forcelimited[a] else _EFFORT_MAX
        servos[int(model.actuator_trnid[a, 0])] = (a, float(gain[0]), float(-bias[2]), force)
    return servos


def _actor(model: mujoco.MjModel, root: int, bodies: Sequence[int], servos: dict[int, Any], filters: dict[int, int]) -> dict[str, Any]:
    joints = [j for j in range(model.njnt) if model.jnt_bodyid[j] in bodies]
    free = any(model.jnt_type[j] == _FREE for j in joints)
    moving = [b for b in bodies if model.body_weldid[b]]
    compensated = {float(model.body_gravcomp[b]) for b in moving}
    if not compensated <= {0.0} and not compensated <= {1.0}:
        raise InputError(f"Isaac Gym cannot compensate gravity for a part of {_name(model, root)!r}: all of its bodies, or none")
    shapes = {_name(model, b): [_shape(model, g, filters) for g in colliding(model, b)] for b in (bodies or [0])}
    return {
        "name": _name(model, root),
        "mjcf": _mjcf(model, root, free),
        "fixed": not free,
        "gravity": compensated <= {0.0},
        "dofs": [_dof(model, j, servos.get(j)) for j in joints if model.jnt_type[j] != _FREE],
        "shapes": shapes,
    }


def _dof(model: mujoco.MjModel, joint: int, servo: tuple[int, float, float, float] | None) -> dict[str, Any]:
    """How a joint is driven: by its servo, or braked by its damping alone, as a drive towards standing still."""
    at = int(model.jnt_dofadr[joint])
    _, stiffness, damping, effort = servo or (-1, 0.0, 0.0, _EFFORT_MAX)
    return {
        "name": model.joint(joint).name,
        "mode": "position" if servo else "velocity",
        "stiffness": stiffness,
        "damping": damping + float(model.dof_damping[at]),
        "armature": float(model.dof_armature[at]),
        "friction": float(model.dof_frictionloss[at]),
        "effort": effort,
    }


def _shape(model: mujoco.MjModel, geom: int, filters: dict[int, int]) -> dict[str, float]:
    return {"friction": float(model.geom_friction[geom, 0]), "filter": filters[geom]}


def _filters(model: mujoco.MjModel) -> dict[int, int]:
    """{geom: bits}: two shapes touch in Isaac Gym if they share no bit, so each group of shapes that never touch gets a bit of its own."""
    geoms = [g for body in range(model.nbody) for g in colliding(model, body)]
    apart = {(a, b) for a in geoms for b in geoms if a != b and not touch(model, a, b)}
    bits, left = dict.fromkeys(geoms, 0), {pair for pair in apart if pair[0] < pair[1]}
    for bit in range(_BITS):
        if not left:
            return bits
        group = list(min(left))
        group += [g for g in geoms if g not in group and all((g, other) in apart for other in group)]
        kept = [g for i, g in enumerate(group) if i < 2 or all((g, other) in apart for other in group[:i])]
        for g in kept:
            bits[g] |= 1 << bit
        left = {pair for pair in left if not (pair[0] in kept and pair[1] in kept)}
    raise InputError(f"Isaac Gym cannot express which shapes of this model touch: {_BITS} groups are too few")


def _mjcf(model: mujoco.MjModel, root: int, free: bool) -> str:
    """One actor as a file: a free body at the origin, or a mount at the origin that carries the tree."""
    mount = _inertial(1.0, np.zeros(3), np.array([1.0, 0.0, 0.0, 0.0]), np.ones(3))
    if root == 0:
        tree = f'<body name="{_name(model, 0)}">{mount}{_geoms(model, 0)}</body>'
    elif free:
        tree = _body(model, root, at_origin=True)
    else:
        tree = f'<body name="{_name(model, root)}_mount">{mount}{_body(model, root)}</body>'
    head = '<compiler angle="radian" coordinate="local"/>'
    return f'<mujoco model="{_name(model, root)}">{head}<worldbody>{tree}</worldbody></mujoco>'


def _body(model: mujoco.MjModel, body: int, at_origin: bool = False) -> str:
    place = "" if at_origin else f' pos="{_row(model.body_pos[body])}" quat="{_row(model.body_quat[body])}"'
    mass, inertia = max(float(model.body_mass[body]), 1e-4), np.maximum(model.body_inertia[body], 1e-7)
    first = int(model.body_jntadr[body])
    inside = [
        _inertial(mass, model.body_ipos[body], model.body_iquat[body], inertia),
        *(_joint(model, j) for j in range(first, first + int(model.body_jntnum[body]))),
        _geoms(model, body),
        *(_body(model, int(child)) for child in np.flatnonzero(model.body_parentid == body) if child != body),
    ]
    return f'<body name="{_name(model, body)}"{place}>{"".join(inside)}</body>'


def _joint(model: mujoco.MjModel, joint: int) -> str:
    name, kind = model.joint(joint).name, int(model.jnt_type[joint])
    if kind == _FREE:
        return f'<freejoint name="{name}"/>'
    limits = f' limited="true" range="{_row(model.jnt_range[joint])}"' if model.jnt_limited[joint] else ' limited="false"'
    shape = "slide" if kind == _SLIDE else "hinge"
    return f'<joint name="{name}" type="{shape}" pos="{_row(model.jnt_pos[joint])}" axis="{_row(model.jnt_axis[joint])}"{limits}/>'


def _geoms(model: mujoco.MjModel, body: int) -> str:
    return "".join(_geom(model, g) for g in colliding(model, body))


def _geom(model: mujoco.MjModel, geom: int) -> str:
    kind, size, position = int(model.geom_type[geom]), model.geom_size[geom], model.geom_pos[geom]
    if kind == _PLANE:
        down = np.zeros(3)
        mujoco.mju_rotVecQuat(down, np.array([0.0, 0.0, -TABLE_HALF_M]), model.geom_quat[geom])
        kind, size, position = int(mujoco.mjtGeom.mjGEOM_BOX), np.array([size[0] or 10.0, size[1] or 10.0, TABLE_HALF_M]), position + down
    if kind not in _SHAPES:
        shape = mujoco.mjtGeom(kind).name.removeprefix("mjGEOM_").lower()
        owner = _name(model, int(model.geom_bodyid[geom]))
        raise InputError(f"Isaac Gym cannot express the {shape} of body {owner!r}: it takes boxes, spheres, capsules and cylinders")
    name, sizes = _SHAPES[kind]
    return f'<geom type="{name}" size="{_row(size[:sizes])}" pos="{_row(position)}" quat="{_row(model.geom_quat[geom])}"/>'


def _inertial(mass: float, position: np.ndarray, quaternion: np.ndarray, inertia: np.ndarray) -> str:
    return f'<inertial mass="{mass!r}" pos="{_row(position)}" quat="{_row(quaternion)}" diaginertia="{_row(inertia)}"/>'


def _name(model: mujoco.MjModel, body: int) -> str:
    return (model.body(body).name or f"body{body}") if body else "scene"


def _row(values: np.ndarray) -> str:
    return " ".join(repr(float(v)) for v in values)
