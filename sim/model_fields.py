"""From the numbers of an episode to the fields of a MuJoCo model, with everything that follows from them."""
# mujoco ships no type stubs.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import mujoco
import numpy as np

from sim.patterns import material
from sim.sampling import Slot, geoms_of
from sinew.errors import InputError

_FOLLOWING = ("body_subtreemass", "body_invweight0", "dof_invweight0", "dof_M0", "actuator_acc0")
"""What MuJoCo computes from masses and inertias (mj_setConst)."""
_OF_KIND: Mapping[str, tuple[str, ...]] = {
    "mass": ("body_mass", "body_inertia", *_FOLLOWING),
    "payload": ("body_mass", "body_inertia", *_FOLLOWING),
    "friction": ("geom_friction",),
    "damping": ("dof_damping",),
    "friction_loss": ("dof_frictionloss",),
    "armature": ("dof_armature", *_FOLLOWING),
    "servo_stiffness": ("actuator_gainprm", "actuator_biasprm"),
    "servo_damping": ("actuator_biasprm",),
    "camera_position": ("cam_pos",),
    "camera_rotation": ("cam_quat",),
    "field_of_view": ("cam_fovy",),
    "light_position": ("light_pos",),
    "light_brightness": ("light_diffuse",),
    "colour": ("geom_rgba",),
    "texture": ("geom_matid",),
}
PAYLOAD_RADIUS_M = 0.03
"""A payload is a ball of this size about the tool's point."""


class ModelFields:
    """Writes the numbers of episodes into models of one scene.

    Args:
        model: as the task has it; it is not changed.
        slots: which numbers there are.

    Raises:
        InputError: what shall be drawn is nothing that the model has: a servo without a stiffness, a surface without a colour of its own.
    """

    def __init__(self, model: mujoco.MjModel, slots: Sequence[Slot]) -> None:
        self.model = model
        self.slots = [(i, slot) for i, slot in enumerate(slots) if slot.what in _OF_KIND]
        for _, slot in self.slots:
            _check(model, slot)
        self.names = tuple(dict.fromkeys(name for _, slot in self.slots for name in _OF_KIND[slot.what]))
        """Fields of the model that differ between episodes."""
        self.whole = bool(set(self.names) & set(_FOLLOWING))
        """Whether what follows from masses and inertias has to be computed anew."""
        self._data = mujoco.MjData(model)
        self._scratch = copy.copy(model)

    def write(self, values: np.ndarray, model: mujoco.MjModel | None = None) -> mujoco.MjModel:
        """The model of an episode with the numbers `values` (P,).

        Args:
            values: as `Sampler.draw` gives them.
            model: a copy to write into; if left out, one that the next call writes into again.
        """
        model = self._scratch if model is None else model
        for name in self.names:
            getattr(model, name)[:] = getattr(self.model, name)
        for i, slot in self.slots:
            _WRITERS[slot.what](self.model, model, slot, float(values[i]))
        if self.whole:
            mujoco.mj_setConst(model, self._data)
        return model

    def read(self, model: mujoco.MjModel) -> dict[str, np.ndarray]:
        """{field: a copy of its values} of what differs between episodes."""
        return {name: np.array(getattr(model, name)) for name in self.names}


def _check(model: mujoco.MjModel, slot: Slot) -> None:
    """Refuse what a model does not have."""
    affine = int(mujoco.mjtBias.mjBIAS_AFFINE)
    if slot.what.startswith("servo_") and not (
        int(model.actuator_biastype[slot.index]) == affine and model.actuator_gainprm[slot.index, 0]
    ):
        raise InputError(f"{slot.what} of {slot.name!r}: this actuator is no position servo")
    if slot.what == "colour" and any(model.geom_matid[g] >= 0 for g in geoms_of(model, slot.index)):
        raise InputError(f"colour of {slot.name!r}: its colour comes from a material; draw a texture in its place")
    if slot.what in ("friction_loss", "damping") and slot.factor and slot.low != slot.high:
        field = model.dof_frictionloss if slot.what == "friction_loss" else model.dof_damping
        if field[model.jnt_dofadr[slot.index]] == 0:
            raise InputError(f"{slot.what} of {slot.name!r} is 0 in this scene, and stays so times any factor; give a range with a unit")


def _set(base: float, slot: Slot, value: float) -> float:
    return base * value if slot.factor else value


def _mass(base: mujoco.MjModel, model: mujoco.MjModel, slot: Slot, value: float) -> None:
    body = slot.index
    mass = _set(base.body_mass[body], slot, value)
    model.body_mass[body] = mass
    model.body_inertia[body] = base.body_inertia[body] * mass / base.body_mass[body]


def _payload(base: mujoco.MjModel, model: mujoco.MjModel, slot: Slot, value: float) -> None:
    model.body_mass[slot.index] = value
    model.body_inertia[slot.index] = 0.4 * value * PAYLOAD_RADIUS_M**2


def _friction(base: mujoco.MjModel, model: mujoco.MjModel, slot: Slot, value: float) -> None:
    for geom in geoms_of(base, slot.index):
        if slot.factor:  # rolling and twisting, too
            model.geom_friction[geom] = base.geom_friction[geom] * value
        else:
            model.geom_friction[geom, 0] = value


def _of_joint(field: str) -> Callable[[mujoco.MjModel, mujoco.MjModel, Slot, float], None]:
    def write(base: mujoco.MjModel, model: mujoco.MjModel, slot: Slot, value: float) -> None:
        dof = base.jnt_dofadr[slot.index]
        getattr(model, field)[dof] = _set(getattr(base, field)[dof], slot, value)

    return write


def _servo_stiffness(base: mujoco.MjModel, model: mujoco.MjModel, slot: Slot, value: float) -> None:
    stiffness = _set(base.actuator_gainprm[slot.index, 0], slot, value)
    model.actuator_gainprm[slot.index, 0], model.actuator_biasprm[slot.index, 1] = stiffness, -stiffness


def _servo_damping(base: mujoco.MjModel, model: mujoco.MjModel, slot: Slot, value: float) -> None:
    model.actuator_biasprm[slot.index, 2] = -_set(-base.actuator_biasprm[slot.index, 2], slot, value)


def _shift(field: str) -> Callable[[mujoco.MjModel, mujoco.MjModel, Slot, float], None]:
    def write(base: mujoco.MjModel, model: mujoco.MjModel, slot: Slot, value: float) -> None:
        getattr(model, field)[slot.index, "xyz".index(slot.part)] += value

    return write


def _camera_rotation(base: mujoco.MjModel, model: mujoco.MjModel, slot: Slot, value: float) -> None:
    axis, turn, turned = np.zeros(3), np.zeros(4), np.zeros(4)
    axis["xyz".index(slot.part)] = 1.0
    mujoco.mju_axisAngle2Quat(turn, axis, value)
    mujoco.mju_mulQuat(turned, model.cam_quat[slot.index], turn)
    model.cam_quat[slot.index] = turned


def _field_of_view(base: mujoco.MjModel, model: mujoco.MjModel, slot: Slot, value: float) -> None:
    model.cam_fovy[slot.index] = base.cam_fovy[slot.index] * value if slot.factor else np.rad2deg(value)


def _light_brightness(base: mujoco.MjModel, model: mujoco.MjModel, slot: Slot, value: float) -> None:
    model.light_diffuse[slot.index] = base.light_diffuse[slot.index] * value


def _colour(base: mujoco.MjModel, model: mujoco.MjModel, slot: Slot, value: float) -> None:
    channel = "rgb".index(slot.part)
    for geom in geoms_of(base, slot.index):
        model.geom_rgba[geom, channel] = np.clip(base.geom_rgba[geom, channel] + value, 0.0, 1.0)


def _texture(base: mujoco.MjModel, model: mujoco.MjModel, slot: Slot, value: float) -> None:
    if int(value) >= 1:
        model.geom_matid[slot.index] = model.material(material(int(value))).id


_WRITERS: Mapping[str, Callable[[Any, Any, Slot, float], None]] = {
    "mass": _mass,
    "payload": _payload,
    "friction": _friction,
    "damping": _of_joint("dof_damping"),
    "friction_loss": _of_joint("dof_frictionloss"),
    "armature": _of_joint("dof_armature"),
    "servo_stiffness": _servo_stiffness,
    "servo_damping": _servo_damping,
    "camera_position": _shift("cam_pos"),
    "camera_rotation": _camera_rotation,
    "field_of_view": _field_of_view,
    "light_position": _shift("light_pos"),
    "light_brightness": _light_brightness,
    "colour": _colour,
    "texture": _texture,
}
